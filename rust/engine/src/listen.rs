//! The listeners: accepting, and what happens when descriptors run out.
//!
//! Out of descriptors, a level-triggered listener would spin: so all of them pause until a
//! connection closes or a second has passed, and the operator is told once an episode. An episode
//! ends when the queue of connections has been accepted to its end. Next on the path: `net.rs`.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

use proxy_core::event::{Event, Level};
use proxy_core::sink::{Now, Peer};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

use crate::limits::ACCEPT_PAUSE_MS;
use crate::net;
use crate::poller::{Key, Poller, READ, SHARED};

/// A bound and listening socket.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
    unix: bool,
}

impl Listener {
    /// Takes over a listening socket and makes it non-blocking. `unix` says that it is a
    /// Unix-domain socket: its clients have no address.
    ///
    /// # Errors
    /// The descriptor does not allow its flags to be changed, a fault of the caller.
    pub fn new(fd: OwnedFd, unix: bool) -> io::Result<Self> {
        let flags = fcntl_getfl(&fd)?;
        fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        // Once here instead of five system calls for each client: accepted sockets inherit them.
        net::set_listener_options(&fd);
        Ok(Self { fd, unix })
    }

    /// Duplicates a descriptor that the caller keeps (Python's socket object) and takes the copy
    /// over.
    ///
    /// # Errors
    /// `raw` is not an open descriptor, or descriptors ran out.
    pub fn duplicate(raw: RawFd, unix: bool) -> io::Result<Self> {
        if raw < 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: `raw` is not -1, and it is borrowed only for the duplication. A number that is no
        // open descriptor makes that fail with EBADF; one that the caller closes at the same time
        // could name another file, which a duplicate cannot harm.
        #[allow(unsafe_code)]
        let borrowed = unsafe { BorrowedFd::borrow_raw(raw) };
        Self::new(borrowed.try_clone_to_owned()?, unix)
    }
}

/// What one attempt to accept gave.
#[derive(Debug)]
pub(crate) enum Accepted {
    /// A connection.
    Client(OwnedFd, Peer),
    /// This one is lost, others may wait.
    Again,
    /// None waits.
    Empty,
    /// Accepting has paused; the operator is told if this is news.
    Paused(Option<Event>),
}

/// All listeners.
#[derive(Debug)]
pub(crate) struct Listeners {
    list: Vec<Listener>,
    paused_until: Option<Now>,
    in_episode: bool,
}

impl Listeners {
    /// Watches the listeners.
    ///
    /// # Errors
    /// epoll refuses them: they are no sockets, or the host is out of watches.
    pub(crate) fn new(list: Vec<Listener>, poller: &Poller) -> io::Result<Self> {
        for (number, listener) in list.iter().enumerate() {
            poller.add(&listener.fd, Key::Listener(number), READ | SHARED)?;
        }
        Ok(Self { list, paused_until: None, in_episode: false })
    }

    /// Accepts one connection of a listener.
    pub(crate) fn accept(&mut self, number: usize, poller: &Poller, now: Now) -> Accepted {
        let Some(listener) = self.list.get(number) else { return Accepted::Empty };
        if self.paused_until.is_some() {
            return Accepted::Empty;
        }
        match net::accept(&listener.fd, listener.unix) {
            Ok((fd, peer)) => Accepted::Client(fd, peer),
            Err(Errno::AGAIN) => {
                self.in_episode = false;
                Accepted::Empty
            }
            // accept4(2): the new connection's own errors, which say nothing about the listener.
            Err(
                Errno::INTR
                | Errno::CONNABORTED
                | Errno::PROTO
                | Errno::PERM
                | Errno::NETDOWN
                | Errno::NOPROTOOPT
                | Errno::HOSTDOWN
                | Errno::NONET
                | Errno::HOSTUNREACH
                | Errno::OPNOTSUPP
                | Errno::NETUNREACH,
            ) => Accepted::Again,
            Err(error) => {
                for listener in &self.list {
                    poller.remove(&listener.fd);
                }
                self.paused_until = Some(now.plus_ms(ACCEPT_PAUSE_MS));
                let news = !std::mem::replace(&mut self.in_episode, true);
                Accepted::Paused(news.then(|| accept_paused(error)))
            }
        }
    }

    /// When accepting goes on by itself.
    pub(crate) fn poll_deadline(&self) -> Option<Now> {
        self.paused_until
    }

    /// Goes on accepting: the pause is over, or a descriptor has been freed.
    pub(crate) fn resume(&mut self, poller: &Poller, now: Now) {
        if self.paused_until.take().is_none() {
            return;
        }
        for (number, listener) in self.list.iter().enumerate() {
            if poller.add(&listener.fd, Key::Listener(number), READ | SHARED).is_err() {
                // Out of memory: what was added is reported at most once more before the next try.
                self.paused_until = Some(now.plus_ms(ACCEPT_PAUSE_MS));
            }
        }
    }

    /// Closes our copies.
    pub(crate) fn stop(&mut self) {
        self.list.clear();
        self.paused_until = None;
    }
}

fn accept_paused(error: Errno) -> Event {
    let hint = match error {
        Errno::MFILE | Errno::NFILE => " (hint: raise the limit of open files)",
        _ => "",
    };
    let error = io::Error::from(error);
    Event::Log {
        level: Level::Warning,
        text: format!("accept paused: {error}; new clients wait until a connection closes{hint}"),
    }
}
