//! The listeners: accepting, and what happens when descriptors run out.
//!
//! Out of descriptors, a level-triggered listener would spin: so all of them pause until a
//! connection closes or a second has passed, and the operator is told once an episode. An episode
//! ends when the queue of connections has been accepted to its end. Next on the path: `net.rs`.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use proxy_core::event::{Event, Level};
use proxy_core::sink::{Now, Peer};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

use crate::limits::ACCEPT_PAUSE_MS;
use crate::net;
use crate::poller::LISTENER_ID_MAX;

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
}

/// How a driver comes to know that clients wait.
pub(crate) trait Watch {
    /// Starts to look at a listener, known by its id.
    ///
    /// # Errors
    /// It is no socket, or the host is short of something.
    fn watch(&mut self, id: u32, listener: BorrowedFd<'_>) -> io::Result<()>;

    /// Looks at it no more.
    fn unwatch(&mut self, id: u32, listener: BorrowedFd<'_>);
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

/// All listeners, by the ids that the supervisor gave them.
#[derive(Debug, Default)]
pub(crate) struct Listeners {
    list: Vec<(u32, Listener)>,
    paused_until: Option<Now>,
    in_episode: bool,
}

impl Listeners {
    /// Listens on exactly these: one with a known id stays as it is, new ones are watched, the
    /// others are closed (our copies).
    ///
    /// # Errors
    /// One cannot be watched (it is no socket, or the host is out of watches), or an id comes twice
    /// or is larger than `LISTENER_ID_MAX`; nothing has changed then.
    pub(crate) fn set(
        &mut self,
        wanted: Vec<(u32, Listener)>,
        watch: &mut impl Watch,
    ) -> io::Result<()> {
        let ids: BTreeSet<u32> = wanted.iter().map(|(id, _)| *id).collect();
        if ids.len() < wanted.len() || ids.last().is_some_and(|id| *id > LISTENER_ID_MAX) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut new = wanted;
        new.retain(|(id, _)| !self.list.iter().any(|(known, _)| known == id));
        if self.paused_until.is_none() {
            for (number, (id, listener)) in new.iter().enumerate() {
                if let Err(error) = watch.watch(*id, listener.fd.as_fd()) {
                    for (id, listener) in new.iter().take(number) {
                        watch.unwatch(*id, listener.fd.as_fd());
                    }
                    return Err(error);
                }
            }
        }
        self.list.retain(|(id, listener)| {
            let stays = ids.contains(id);
            if !stays {
                watch.unwatch(*id, listener.fd.as_fd());
            }
            stays
        });
        self.list.append(&mut new);
        Ok(())
    }

    /// Accepts one connection of a listener.
    pub(crate) fn accept(&mut self, id: u32, watch: &mut impl Watch, now: Now) -> Accepted {
        let Some((_, listener)) = self.list.iter().find(|(each, _)| *each == id) else {
            return Accepted::Empty;
        };
        if self.paused_until.is_some() {
            return Accepted::Empty;
        }
        match net::accept(&listener.fd, listener.unix) {
            Ok((fd, peer)) => Accepted::Client(fd, peer),
            Err(Errno::AGAIN) => {
                self.end_episode();
                Accepted::Empty
            }
            Err(error) if is_the_connections_own(error) => Accepted::Again,
            Err(error) => Accepted::Paused(self.pause(error, watch, now)),
        }
    }

    /// Whether clients of a listener come through a Unix-domain socket; `None` if it is not known.
    pub(crate) fn is_unix(&self, id: u32) -> Option<bool> {
        self.list.iter().find(|(each, _)| *each == id).map(|(_, listener)| listener.unix)
    }

    /// Nobody waits any more: what goes wrong next is news again.
    pub(crate) fn end_episode(&mut self) {
        self.in_episode = false;
    }

    /// Accepting has failed for want of something: it pauses. The operator is told if that is news.
    pub(crate) fn pause(
        &mut self,
        error: Errno,
        watch: &mut impl Watch,
        now: Now,
    ) -> Option<Event> {
        for (id, listener) in &self.list {
            watch.unwatch(*id, listener.fd.as_fd());
        }
        self.paused_until = Some(now.plus_ms(ACCEPT_PAUSE_MS));
        let news = !std::mem::replace(&mut self.in_episode, true);
        news.then(|| accept_paused(error))
    }

    /// When accepting goes on by itself.
    pub(crate) fn poll_deadline(&self) -> Option<Now> {
        self.paused_until
    }

    /// Goes on accepting: the pause is over, or a descriptor has been freed.
    pub(crate) fn resume(&mut self, watch: &mut impl Watch, now: Now) {
        if self.paused_until.take().is_none() {
            return;
        }
        for (id, listener) in &self.list {
            if watch.watch(*id, listener.fd.as_fd()).is_err() {
                // Out of memory: what was added is reported at most once more before the next try.
                self.paused_until = Some(now.plus_ms(ACCEPT_PAUSE_MS));
            }
        }
    }

    /// Closes our copies.
    pub(crate) fn stop(&mut self, watch: &mut impl Watch) {
        for (id, listener) in self.list.drain(..) {
            // Other processes keep the socket open, and the kernel would go on watching it for us.
            watch.unwatch(id, listener.fd.as_fd());
        }
        self.paused_until = None;
    }
}

/// accept4(2): the new connection's own errors, which say nothing about the listener.
pub(crate) fn is_the_connections_own(error: Errno) -> bool {
    matches!(
        error,
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
            | Errno::NETUNREACH
    )
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
