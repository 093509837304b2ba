//! Connections that the core has closed, but whose last bytes are still on their way.
//!
//! First what was queued is sent. Then our side is shut down, and input is thrown away until the
//! peer has closed, too: closing a socket with unread input resets it, and the reset can overtake
//! the error message that tells the client why. Both together are bounded in time, and all are in
//! number. No id of the core reaches a socket here. Next on the path: nothing, this is its end.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use proxy_core::ids::{Id, Slab};
use proxy_core::sink::Now;
use rustix::io::{Errno, ioctl_fionread};
use rustix::net::{Shutdown, shutdown};

use crate::conn::Spill;
use crate::limits::{LINGER_MS, LINGERING_MAX, RECEIVES_PER_TURN};
use crate::net;
use crate::poller::{Key, Poller, READ, Ready, WRITE};

/// Marker of lingering sockets' ids.
#[derive(Debug)]
pub(crate) struct LingerTag;
/// A lingering socket.
pub(crate) type LingerId = Id<LingerTag>;

/// All lingering sockets, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Lingering {
    sockets: Slab<Socket, LingerTag>,
    order: VecDeque<(Now, LingerId)>,
}

#[derive(Debug)]
struct Socket {
    fd: OwnedFd,
    spill: Option<Box<Spill>>,
}

/// Whether closing this socket now would reset the connection.
pub(crate) fn has_unread(fd: &OwnedFd) -> bool {
    ioctl_fionread(fd).is_ok_and(|bytes| bytes > 0)
}

impl Lingering {
    /// Takes over a watched socket.
    pub(crate) fn add(
        &mut self,
        poller: &Poller,
        fd: OwnedFd,
        spill: Option<Box<Spill>>,
        now: Now,
    ) {
        if self.sockets.len() >= LINGERING_MAX {
            self.drop_oldest();
        }
        let interest = if spill.is_some() { WRITE } else { READ };
        if spill.is_none() {
            let _ = shutdown(&fd, Shutdown::Write);
        }
        let id = self.sockets.insert_with(|_| Socket { fd, spill });
        let watched =
            self.sockets.get(id).map(|socket| poller.modify(&socket.fd, Key::Linger(id), interest));
        if matches!(watched, Some(Ok(()))) {
            self.order.push_back((now.plus_ms(LINGER_MS), id));
        } else {
            self.sockets.remove(id);
        }
    }

    /// Goes on with a socket that is ready; `scratch` takes what is thrown away.
    pub(crate) fn handle_ready(&mut self, poller: &Poller, ready: Ready, scratch: &mut [u8]) {
        let Key::Linger(id) = ready.key else { return };
        let Some(socket) = self.sockets.get_mut(id) else { return };
        let done = ready.error || ready.hangup || socket.advance(poller, id, scratch);
        if done {
            self.sockets.remove(id);
        }
    }

    /// Closes those whose time is over.
    pub(crate) fn expire(&mut self, now: Now) {
        while let Some((deadline, id)) = self.order.front().copied() {
            if deadline > now {
                return;
            }
            self.order.pop_front();
            self.sockets.remove(id);
        }
    }

    /// When the oldest one's time is over.
    pub(crate) fn poll_deadline(&self) -> Option<Now> {
        self.order.front().map(|(deadline, _)| *deadline)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.sockets.len()
    }

    fn drop_oldest(&mut self) {
        // Entries of sockets that ended by themselves are skipped: their ids are stale.
        while let Some((_, id)) = self.order.pop_front() {
            if self.sockets.remove(id).is_some() {
                return;
            }
        }
    }
}

impl Socket {
    /// Sends or drains; returns whether nothing is left to wait for.
    fn advance(&mut self, poller: &Poller, id: LingerId, scratch: &mut [u8]) -> bool {
        if let Some(spill) = &mut self.spill {
            if spill.flush(&self.fd).is_err() {
                return true;
            }
            if spill.len() > 0 {
                return false;
            }
            self.spill = None;
            let _ = shutdown(&self.fd, Shutdown::Write);
            return poller.modify(&self.fd, Key::Linger(id), READ).is_err();
        }
        for _ in 0..RECEIVES_PER_TURN {
            match net::receive(&self.fd, scratch) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error != Errno::AGAIN,
            }
        }
        false
    }
}
