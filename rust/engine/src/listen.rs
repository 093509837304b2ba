//! The listeners: accepting, and what happens when descriptors run out.
//!
//! Out of descriptors, a level-triggered listener would spin: so all of them pause until a
//! connection closes or a second has passed, and the operator is told once an episode. An episode
//! ends when the queue of connections has been accepted to its end. Next on the path: `net.rs`.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;

use proxy_core::event::{Event, Level};
use proxy_core::sink::{Now, Peer};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

use crate::limits::ACCEPT_PAUSE_MS;
use crate::net;
use crate::poller::{Key, LISTENER_ID_MAX, Poller, READ, SHARED};

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

    fn watch(&self, id: u32, poller: &Poller) -> io::Result<()> {
        poller.add(&self.fd, Key::Listener(id), READ | SHARED)
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
    /// epoll refuses one (it is no socket, or the host is out of watches), or an id comes twice or
    /// is larger than `LISTENER_ID_MAX`; nothing has changed then.
    pub(crate) fn set(&mut self, wanted: Vec<(u32, Listener)>, poller: &Poller) -> io::Result<()> {
        let ids: BTreeSet<u32> = wanted.iter().map(|(id, _)| *id).collect();
        if ids.len() < wanted.len() || ids.last().is_some_and(|id| *id > LISTENER_ID_MAX) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut new = wanted;
        new.retain(|(id, _)| !self.list.iter().any(|(known, _)| known == id));
        if self.paused_until.is_none() {
            for (number, (id, listener)) in new.iter().enumerate() {
                if let Err(error) = listener.watch(*id, poller) {
                    new.iter().take(number).for_each(|(_, listener)| poller.remove(&listener.fd));
                    return Err(error);
                }
            }
        }
        self.list.retain(|(id, listener)| {
            let stays = ids.contains(id);
            if !stays {
                poller.remove(&listener.fd);
            }
            stays
        });
        self.list.append(&mut new);
        Ok(())
    }

    /// Accepts one connection of a listener.
    pub(crate) fn accept(&mut self, id: u32, poller: &Poller, now: Now) -> Accepted {
        let Some((_, listener)) = self.list.iter().find(|(each, _)| *each == id) else {
            return Accepted::Empty;
        };
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
                for (_, listener) in &self.list {
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
        for (id, listener) in &self.list {
            if listener.watch(*id, poller).is_err() {
                // Out of memory: what was added is reported at most once more before the next try.
                self.paused_until = Some(now.plus_ms(ACCEPT_PAUSE_MS));
            }
        }
    }

    /// Closes our copies.
    pub(crate) fn stop(&mut self, poller: &Poller) {
        for (_, listener) in self.list.drain(..) {
            // Other processes keep the socket open, and epoll would go on watching it for us.
            poller.remove(&listener.fd);
        }
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
