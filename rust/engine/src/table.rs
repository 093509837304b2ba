//! What a driver keeps for each connection, found by the core's ids.
//!
//! The tables run parallel to the core's slabs; an id of an older generation finds nothing. Next on
//! the path: `conn.rs` for the epoll driver, `uring/socket.rs` for the other one.

use proxy_core::ids::{Conn, ServerId};

/// All connections, by kind and slot.
#[derive(Debug)]
pub(crate) struct Table<T> {
    clients: Vec<Option<Slot<T>>>,
    servers: Vec<Option<Slot<T>>>,
    cancellers: Vec<Option<Slot<T>>>,
    clients_open: usize,
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    value: T,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        let (clients, servers, cancellers) = (Vec::new(), Vec::new(), Vec::new());
        Self { clients, servers, cancellers, clients_open: 0 }
    }
}

impl<T> Table<T> {
    /// How many clients there are.
    #[inline]
    pub(crate) const fn clients_open(&self) -> usize {
        self.clients_open
    }

    /// The value of a live id.
    #[inline]
    pub(crate) fn get(&mut self, conn: Conn) -> Option<&mut T> {
        let (list, index, generation) = self.place(conn);
        let slot = list.get_mut(index)?.as_mut()?;
        if slot.generation == generation { Some(&mut slot.value) } else { None }
    }

    /// Stores a value under a new id.
    pub(crate) fn insert(&mut self, conn: Conn, value: T) -> Option<&mut T> {
        let (list, index, generation) = self.place(conn);
        if list.len() <= index {
            list.resize_with(index + 1, || None);
        }
        let before = list.get_mut(index)?.replace(Slot { generation, value });
        if before.is_none() && matches!(conn, Conn::Client(_)) {
            self.clients_open += 1;
        }
        self.get(conn)
    }

    /// Takes a value out; its id reaches nobody from now on.
    pub(crate) fn remove(&mut self, conn: Conn) -> Option<T> {
        self.get(conn)?;
        if let Conn::Client(_) = conn {
            self.clients_open -= 1;
        }
        let (list, index, _) = self.place(conn);
        list.get_mut(index)?.take().map(|slot| slot.value)
    }

    /// All servers.
    pub(crate) fn servers(&self) -> impl Iterator<Item = (Conn, &T)> {
        self.servers.iter().enumerate().filter_map(|(index, slot)| {
            let slot = slot.as_ref()?;
            let index = u32::try_from(index).ok()?;
            Some((Conn::Server(ServerId::from_parts(index, slot.generation)), &slot.value))
        })
    }

    #[inline]
    fn place(&mut self, conn: Conn) -> (&mut Vec<Option<Slot<T>>>, usize, u32) {
        match conn {
            Conn::Client(id) => (&mut self.clients, id.index(), id.generation()),
            Conn::Server(id) => (&mut self.servers, id.index(), id.generation()),
            Conn::Canceller(id) => (&mut self.cancellers, id.index(), id.generation()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proxy_core::ids::{ClientId, Conn};

    use super::{Slot, Table};
    use crate::conn::Socket;

    #[test]
    fn an_idle_connection_takes_no_more_than_64_bytes() {
        let bytes = size_of::<Option<Slot<Socket>>>();
        assert!(bytes <= 64, "{bytes}");
    }

    #[test]
    fn a_value_of_an_older_generation_is_not_found() {
        let mut table = Table::default();
        let old = Conn::Client(ClientId::from_parts(3, 1));
        let new = Conn::Client(ClientId::from_parts(3, 2));
        table.insert(old, "old");
        assert!(table.remove(new).is_none());
        table.insert(new, "new");
        assert!(table.get(old).is_none() && table.remove(old).is_none());
        assert_eq!(table.get(new), Some(&mut "new"));
        assert_eq!(table.clients_open(), 1);
    }
}
