//! Newtyped, generational ids, and the slab that hands them out.
//!
//! A stale id (of a connection that has ended) never reaches the connection that took its place:
//! the generation differs and the look-up gives nothing. Next on the path: `core.rs`.

use std::fmt;
use std::marker::PhantomData;

/// A generational index into a [`Slab`]; `T` is a marker type, so ids of different things do not
/// mix.
pub struct Id<T> {
    index: u32,
    generation: u32,
    marker: PhantomData<fn() -> T>,
}

/// Marker of client ids.
#[derive(Debug)]
pub struct ClientTag;
/// Marker of server ids.
#[derive(Debug)]
pub struct ServerTag;
/// Marker of ids of the short connections that carry a CancelRequest to a server.
#[derive(Debug)]
pub struct CancellerTag;

/// A client's connection.
pub type ClientId = Id<ClientTag>;
/// A server's connection.
pub type ServerId = Id<ServerTag>;
/// A connection that carries one CancelRequest.
pub type CancellerId = Id<CancellerTag>;

/// Any connection that the engine holds a socket for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Conn {
    /// A client.
    Client(ClientId),
    /// A server.
    Server(ServerId),
    /// A CancelRequest on its way to a server.
    Canceller(CancellerId),
}

impl<T> Id<T> {
    /// Builds an id from its parts (the engine stores them in an event's user data).
    #[must_use]
    pub const fn from_parts(index: u32, generation: u32) -> Self {
        Self { index, generation, marker: PhantomData }
    }

    /// The slot, dense from 0: tables parallel to the slab may be indexed by it.
    #[must_use]
    pub const fn index(self) -> usize {
        self.index as usize
    }

    /// The slot's generation, at least 1, below 2^30.
    #[must_use]
    pub const fn generation(self) -> u32 {
        self.generation
    }
}

impl<T> Clone for Id<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Id<T> {}
impl<T> PartialEq for Id<T> {
    fn eq(&self, other: &Self) -> bool {
        self.index == other.index && self.generation == other.generation
    }
}
impl<T> Eq for Id<T> {}
impl<T> PartialOrd for Id<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<T> Ord for Id<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.index, self.generation).cmp(&(other.index, other.generation))
    }
}
impl<T> fmt::Debug for Id<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.index, self.generation)
    }
}

/// A vector with holes whose keys are generational.
#[derive(Debug)]
pub struct Slab<T, K> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    marker: PhantomData<fn() -> K>,
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

const GENERATION_MAX: u32 = (1 << 30) - 1;

impl<T, K> Default for Slab<T, K> {
    fn default() -> Self {
        Self { slots: Vec::new(), free: Vec::new(), marker: PhantomData }
    }
}

impl<T, K> Slab<T, K> {
    /// Stores what `make` builds for the new id.
    pub fn insert_with(&mut self, make: impl FnOnce(Id<K>) -> T) -> Id<K> {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, value: None });
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        });
        let slot = &mut self.slots[index as usize];
        slot.generation = if slot.generation >= GENERATION_MAX { 1 } else { slot.generation + 1 };
        let id = Id::from_parts(index, slot.generation);
        slot.value = Some(make(id));
        id
    }

    /// The value of a live id.
    #[inline]
    #[must_use]
    pub fn get(&self, id: Id<K>) -> Option<&T> {
        let slot = self.slots.get(id.index())?;
        if slot.generation == id.generation { slot.value.as_ref() } else { None }
    }

    /// The value of a live id, to change.
    #[inline]
    #[must_use]
    pub fn get_mut(&mut self, id: Id<K>) -> Option<&mut T> {
        let slot = self.slots.get_mut(id.index())?;
        if slot.generation == id.generation { slot.value.as_mut() } else { None }
    }

    /// Takes a value out; its id is stale from now on.
    pub fn remove(&mut self, id: Id<K>) -> Option<T> {
        let slot = self.slots.get_mut(id.index())?;
        if slot.generation != id.generation {
            return None;
        }
        let value = slot.value.take()?;
        self.free.push(id.index);
        Some(value)
    }

    /// How many values there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether there is no value.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All live ids with their values, by slot.
    pub fn iter(&self) -> impl Iterator<Item = (Id<K>, &T)> {
        self.slots.iter().enumerate().filter_map(|(index, slot)| {
            let id = Id::from_parts(u32::try_from(index).ok()?, slot.generation);
            slot.value.as_ref().map(|value| (id, value))
        })
    }

    /// All live ids, by slot.
    #[must_use]
    pub fn ids(&self) -> Vec<Id<K>> {
        self.iter().map(|(id, _)| id).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{ClientTag, Slab};

    #[test]
    fn a_stale_id_never_reaches_the_value_that_took_its_slot() {
        let mut slab: Slab<&str, ClientTag> = Slab::default();
        let first = slab.insert_with(|_| "first");
        assert_eq!(slab.remove(first), Some("first"));
        let second = slab.insert_with(|_| "second");
        assert_eq!(second.index(), first.index());
        assert_eq!(slab.get(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.get(second), Some(&"second"));
        assert_eq!(slab.len(), 1);
    }
}
