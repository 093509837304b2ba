//! Accepting with the io_uring driver: the kernel accepts ahead, a turn takes a few.
//!
//! What the listeners are and what happens when descriptors run out is `listen.rs`'s affair. A
//! listener whose accepting has ended may be closed at once: the kernel has its own hold on it.
//!
//! Of the workers that share a listener the kernel wakes one for a client, and always the same one
//! as long as that does not take it. So accepting is asked for anew now and then, which takes
//! whoever waits: a worker that hangs keeps nobody waiting for longer. Next on the path: `net.rs`.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use proxy_core::sink::Peer;
use rustix::io::Errno;
use rustix::net::{AddressFamily, sockopt};

use super::Uring;
use super::buffers::Chunk;
use super::ring::{Done, Key, Ring, SERIAL_MASK};
use crate::driver::Completion;
use crate::listen::{Watch, is_the_connections_own};
use crate::net;

#[derive(Clone, Copy, Debug)]
struct Arm {
    listener: u32,
    /// Tells this arming from earlier ones of the same listener.
    serial: u32,
    fd: RawFd,
}

/// Which listeners the kernel accepts from, and whom it has accepted.
#[derive(Debug, Default)]
pub(crate) struct Acceptor {
    wanted: Vec<Arm>,
    armed: Vec<Arm>,
    ending: Vec<Arm>,
    serial: u32,
    clients: VecDeque<(OwnedFd, bool)>,
}

impl Watch for Acceptor {
    fn watch(&mut self, id: u32, listener: BorrowedFd<'_>) -> io::Result<()> {
        sockopt::socket_acceptconn(listener)?;
        self.wanted.push(Arm { listener: id, serial: 0, fd: listener.as_raw_fd() });
        Ok(())
    }

    fn unwatch(&mut self, id: u32, _: BorrowedFd<'_>) {
        self.wanted.retain(|arm| arm.listener != id);
        self.ending.extend(self.armed.iter().filter(|arm| arm.listener == id));
        self.armed.retain(|arm| arm.listener != id);
    }
}

impl Acceptor {
    /// Has the kernel accept from the listeners that are wanted, and from no others.
    pub(crate) fn arm(&mut self, ring: &mut Ring) {
        for arm in self.ending.drain(..) {
            ring.cancel(Key::Accept(arm.listener, arm.serial), Key::Nobody);
        }
        for mut arm in self.wanted.drain(..) {
            self.serial = (self.serial + 1) & SERIAL_MASK;
            arm.serial = self.serial;
            ring.accept(arm.fd, arm.listener, arm.serial);
            self.armed.push(arm);
        }
    }

    /// Asks for everything anew: clients that wait for another process are accepted, and the limit
    /// of open files is the one of now.
    pub(crate) fn renew(&mut self) {
        self.wanted.extend(&self.armed);
        self.ending.append(&mut self.armed);
    }

    /// Whether the kernel has been asked for all that is wanted.
    #[cfg(test)]
    pub(crate) fn is_armed(&self) -> bool {
        self.wanted.is_empty() && self.ending.is_empty()
    }

    /// Whether clients wait to be told of.
    pub(crate) fn has_clients(&self) -> bool {
        !self.clients.is_empty()
    }

    /// The next client.
    pub(crate) fn take(&mut self) -> Option<(OwnedFd, Peer)> {
        let (fd, unix) = self.clients.pop_front()?;
        let peer = net::peer(&fd, unix);
        Some((fd, peer))
    }

    fn find(&self, listener: u32, serial: u32) -> Option<usize> {
        let same = |arm: &Arm| arm.listener == listener && arm.serial == serial;
        self.armed.iter().position(same)
    }
}

/// The socket that an accept has brought, if any.
fn accepted(done: &Done) -> Option<OwnedFd> {
    let accepts = matches!(done.key, Key::Accept(..)) && done.result >= 0;
    // SAFETY: the kernel has just made this descriptor for us.
    #[allow(unsafe_code)]
    accepts.then(|| unsafe { OwnedFd::from_raw_fd(done.result) })
}

impl Uring {
    /// Closes whom the kernel has accepted when nobody is there for it any more.
    pub(super) fn refuse(&self, done: &Done) {
        drop(accepted(done));
    }

    /// The kernel has accepted a client, or cannot any more.
    pub(super) fn handle_accepted(
        &mut self,
        listener: u32,
        serial: u32,
        done: Done,
    ) -> Option<Completion<Chunk>> {
        let known = self.acceptor.find(listener, serial);
        if let (Some(at), false) = (known, done.more) {
            let arm = self.acceptor.armed.swap_remove(at);
            self.acceptor.wanted.push(arm);
        }
        if let Some(fd) = accepted(&done) {
            let is_unix = || sockopt::socket_domain(&fd) == Ok(AddressFamily::UNIX);
            let unix = self.listeners.is_unix(listener).unwrap_or_else(is_unix);
            self.acceptor.clients.push_back((fd, unix));
            if !done.nonempty {
                self.listeners.end_episode();
            }
            return None;
        }
        let error = Errno::from_raw_os_error(-done.result);
        let passing = is_the_connections_own(error) || error == Errno::CANCELED;
        if known.is_none() || passing || error == Errno::AGAIN {
            return None;
        }
        self.counters.accept_pauses += 1;
        self.freed = false;
        let news = self.listeners.pause(error, &mut self.acceptor, self.now);
        news.map(Completion::Notice)
    }
}
