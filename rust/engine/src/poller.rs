//! epoll, level-triggered: a forgotten re-arm costs a turn, never a hang.
//!
//! User data names the connection with its generation, so that an event for one that has ended
//! reaches nobody. This does not decide what to watch: next on the path is `epoll.rs`.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use proxy_core::ids::{CancellerId, ClientId, Conn, Id, ServerId};
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use crate::limits::READY_PER_WAIT;
use crate::linger::LingerId;
use crate::listen::Watch;

/// Watches for bytes or end of file.
pub(crate) const READ: u8 = 1;
/// Watches for room to send.
pub(crate) const WRITE: u8 = 2;
/// Watches a listener: only one of the processes that share it is woken.
pub(crate) const SHARED: u8 = 4;

/// Whom an event is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Key {
    /// A connection.
    Conn(Conn),
    /// A closed connection that still delivers.
    Linger(LingerId),
    /// A listener, by its id.
    Listener(u32),
    /// The command ring.
    Wake,
    /// The mailbox.
    Inbox,
}

/// What a descriptor is ready for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Ready {
    /// Whose.
    pub(crate) key: Key,
    /// Bytes or end of file.
    pub(crate) read: bool,
    /// Room to send.
    pub(crate) write: bool,
    /// Both directions have ended.
    pub(crate) hangup: bool,
    /// An error is pending.
    pub(crate) error: bool,
}

/// The epoll instance and the events of the last wait.
#[derive(Debug)]
pub(crate) struct Poller {
    epoll: OwnedFd,
    ready: Vec<Ready>,
    next: usize,
}

const INDEX_BITS: u32 = 31;
/// The largest id of a listener that fits an event's user data.
pub(crate) const LISTENER_ID_MAX: u32 = (1 << INDEX_BITS) - 1;
const GENERATION_BITS: u32 = 30;

const fn pack(kind: u64, index: usize, generation: u32) -> u64 {
    let index = index as u64 & ((1 << INDEX_BITS) - 1);
    kind << (INDEX_BITS + GENERATION_BITS) | (generation as u64) << INDEX_BITS | index
}

impl Key {
    fn pack(self) -> epoll::EventData {
        epoll::EventData::new_u64(match self {
            Self::Conn(Conn::Client(id)) => pack(0, id.index(), id.generation()),
            Self::Conn(Conn::Server(id)) => pack(1, id.index(), id.generation()),
            Self::Conn(Conn::Canceller(id)) => pack(2, id.index(), id.generation()),
            Self::Linger(id) => pack(3, id.index(), id.generation()),
            Self::Listener(id) => pack(4, id as usize, 0),
            Self::Wake => pack(5, 0, 0),
            Self::Inbox => pack(6, 0, 0),
        })
    }

    const fn unpack(data: u64) -> Self {
        let index = (data & ((1 << INDEX_BITS) - 1)) as u32;
        let generation = (data >> INDEX_BITS & ((1 << GENERATION_BITS) - 1)) as u32;
        match data >> (INDEX_BITS + GENERATION_BITS) {
            0 => Self::Conn(Conn::Client(ClientId::from_parts(index, generation))),
            1 => Self::Conn(Conn::Server(ServerId::from_parts(index, generation))),
            2 => Self::Conn(Conn::Canceller(CancellerId::from_parts(index, generation))),
            3 => Self::Linger(Id::from_parts(index, generation)),
            4 => Self::Listener(index),
            5 => Self::Wake,
            _ => Self::Inbox,
        }
    }
}

fn flags(interest: u8) -> epoll::EventFlags {
    let mut flags = epoll::EventFlags::empty();
    flags.set(epoll::EventFlags::IN, interest & READ != 0);
    flags.set(epoll::EventFlags::OUT, interest & WRITE != 0);
    flags.set(epoll::EventFlags::EXCLUSIVE, interest & SHARED != 0);
    flags
}

impl Poller {
    /// A new epoll instance.
    ///
    /// # Errors
    /// The process or the host is out of descriptors.
    pub(crate) fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Self { epoll, ready: Vec::with_capacity(READY_PER_WAIT), next: 0 })
    }

    /// Starts to watch; errors and hang-ups are always reported.
    ///
    /// # Errors
    /// The host is out of memory or of `fs.epoll.max_user_watches`.
    pub(crate) fn add(&self, fd: impl AsFd, key: Key, interest: u8) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, fd, key.pack(), flags(interest))?)
    }

    /// Watches for something else, or for another key.
    ///
    /// # Errors
    /// None that the caller could mend: the descriptor is watched already.
    pub(crate) fn modify(&self, fd: impl AsFd, key: Key, interest: u8) -> io::Result<()> {
        Ok(epoll::modify(&self.epoll, fd, key.pack(), flags(interest))?)
    }

    /// Stops watching a descriptor that stays open.
    pub(crate) fn remove(&self, fd: impl AsFd) {
        // The only failure is that it is not watched, which is what was asked for.
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// Waits at most `timeout_ms` milliseconds for events; a signal ends it early with none.
    ///
    /// # Errors
    /// The epoll instance is broken: a bug of ours.
    pub(crate) fn wait(&mut self, timeout_ms: u64) -> io::Result<()> {
        self.next = 0;
        self.ready.clear();
        let seconds = i64::try_from(timeout_ms / 1000).unwrap_or(i64::MAX);
        let nanos = i64::try_from(timeout_ms % 1000 * 1_000_000).unwrap_or(0);
        let timeout = Timespec { tv_sec: seconds, tv_nsec: nanos };
        let mut events = [MaybeUninit::uninit(); READY_PER_WAIT];
        match epoll::wait(&self.epoll, &mut events[..], Some(&timeout)) {
            Ok((events, _)) => self.ready.extend(events.iter().map(Ready::from_event)),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// The next event of the last wait.
    #[inline]
    pub(crate) fn next(&mut self) -> Option<Ready> {
        let ready = self.ready.get(self.next).copied()?;
        self.next += 1;
        Some(ready)
    }
}

impl Watch for Poller {
    fn watch(&mut self, id: u32, listener: BorrowedFd<'_>) -> io::Result<()> {
        self.add(listener, Key::Listener(id), READ | SHARED)
    }

    fn unwatch(&mut self, _: u32, listener: BorrowedFd<'_>) {
        self.remove(listener);
    }
}

impl Ready {
    #[inline]
    fn from_event(event: &epoll::Event) -> Self {
        let (data, flags) = (event.data, event.flags);
        Self {
            key: Key::unpack(data.u64()),
            read: flags.contains(epoll::EventFlags::IN),
            write: flags.contains(epoll::EventFlags::OUT),
            hangup: flags.contains(epoll::EventFlags::HUP),
            error: flags.contains(epoll::EventFlags::ERR),
        }
    }
}

#[cfg(test)]
mod tests {
    use proxy_core::ids::{CancellerId, ClientId, Conn, Id, ServerId};

    use super::{Key, LISTENER_ID_MAX};

    #[test]
    fn user_data_carries_kind_generation_and_index() {
        let (index, generation) = ((1 << 31) - 1, (1 << 30) - 1);
        for key in [
            Key::Conn(Conn::Client(ClientId::from_parts(index, 1))),
            Key::Conn(Conn::Server(ServerId::from_parts(0, generation))),
            Key::Conn(Conn::Canceller(CancellerId::from_parts(index, generation))),
            Key::Linger(Id::from_parts(7, 9)),
            Key::Listener(LISTENER_ID_MAX),
            Key::Wake,
            Key::Inbox,
        ] {
            assert_eq!(Key::unpack(key.pack().u64()), key);
        }
    }
}
