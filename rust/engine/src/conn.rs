//! What the epoll driver knows of a connection, and how it sends.
//!
//! An entry is small, and an idle connection owns nothing but its descriptor: bytes that the kernel
//! would not take live in a spill that exists only while there are any. Where entries are kept is
//! `table.rs`. This knows nothing of epoll; next on the path is `epoll.rs`.

use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags, Shutdown, send, sendmsg, shutdown};

use crate::limits::SLICES_PER_SEND;

const FLAGS: SendFlags = SendFlags::NOSIGNAL.union(SendFlags::DONTWAIT);

/// Facts about a connection that are either true or not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Flags(u8);

impl Flags {
    /// The core paused reading.
    pub(crate) const PAUSED: u8 = 1;
    /// The peer will send no more.
    pub(crate) const EOF: u8 = 1 << 1;
    /// The core was told that the queue is long.
    pub(crate) const CONGESTED: u8 = 1 << 2;
    /// What epoll watches may have to change at the end of the turn.
    pub(crate) const DIRTY: u8 = 1 << 3;
    /// The connection is being made.
    pub(crate) const CONNECTING: u8 = 1 << 4;
    /// Sending failed; nothing more is sent, and the core will be told.
    pub(crate) const BROKEN: u8 = 1 << 5;
    /// epoll does not watch it: a paused server has hung up and would be reported without end.
    pub(crate) const PARKED: u8 = 1 << 6;
    /// Our sending ends once everything is sent.
    pub(crate) const FIN: u8 = 1 << 7;

    /// Whether any of these is true.
    #[inline]
    pub(crate) const fn any(self, bits: u8) -> bool {
        self.0 & bits != 0
    }

    /// Makes these true.
    #[inline]
    pub(crate) const fn set(&mut self, bits: u8) {
        self.0 |= bits;
    }

    /// Makes these false.
    #[inline]
    pub(crate) const fn clear(&mut self, bits: u8) {
        self.0 &= !bits;
    }
}

/// One connection's socket.
#[derive(Debug)]
pub(crate) struct Socket {
    /// The descriptor, non-blocking.
    pub(crate) fd: OwnedFd,
    /// Its batch in the call under way, plus one; 0 = none.
    pub(crate) batch: u32,
    /// What is true of it.
    pub(crate) flags: Flags,
    /// What epoll watches now.
    pub(crate) armed: u8,
    /// Bytes that the kernel has not taken yet.
    pub(crate) spill: Option<Box<Spill>>,
}

/// Bytes that wait for a socket to become writable; never empty.
#[derive(Debug, Default)]
pub(crate) struct Spill {
    bytes: Vec<u8>,
    sent: usize,
}

impl Spill {
    /// Appends bytes. The front that was sent is given up once it is the larger part.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        if self.sent > self.bytes.len() / 2 {
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// Bytes still to be sent.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Sends what the socket takes.
    ///
    /// # Errors
    /// The peer's or the network's, except would-block, which counts as nothing sent.
    pub(crate) fn flush(&mut self, fd: impl AsFd) -> Result<usize, Errno> {
        let rest = self.bytes.get(self.sent..).unwrap_or_default();
        let sent = taken(|| send(fd.as_fd(), rest, FLAGS))?;
        self.sent += sent;
        Ok(sent)
    }
}

impl Socket {
    /// A new entry around a non-blocking socket.
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self { fd, batch: 0, flags: Flags::default(), armed: 0, spill: None }
    }

    /// Ends our sending if that was asked for and nothing is left to send.
    #[inline]
    pub(crate) fn finish(&mut self) {
        if self.flags.any(Flags::FIN) && self.batch == 0 && self.spill.is_none() {
            // It fails only for a connection that has ended, which its next event says.
            let _ = shutdown(&self.fd, Shutdown::Write);
            self.flags.clear(Flags::FIN);
        }
    }

    /// Bytes that wait in the spill.
    #[inline]
    pub(crate) fn queued(&self) -> usize {
        self.spill.as_ref().map_or(0, |spill| spill.len())
    }

    /// Sends slices of `total` bytes as far as the socket takes them and spills the rest. Returns
    /// how many bytes were spilled.
    ///
    /// # Errors
    /// The peer's or the network's; nothing is spilled then.
    pub(crate) fn write<'a>(
        &mut self,
        slices: impl Iterator<Item = &'a [u8]> + Clone,
        total: usize,
    ) -> Result<usize, Errno> {
        let must_wait = self.spill.is_some() || self.flags.any(Flags::CONNECTING);
        let sent = if must_wait { 0 } else { self.send_slices(slices.clone(), total)? };
        if sent >= total {
            return Ok(0);
        }
        let spill = self.spill.get_or_insert_default();
        let mut skip = sent;
        for slice in slices {
            let step = skip.min(slice.len());
            skip -= step;
            spill.push(slice.get(step..).unwrap_or_default());
        }
        Ok(total - sent)
    }

    /// Tries to send everything, with one system call for every `SLICES_PER_SEND` slices.
    fn send_slices<'a>(
        &self,
        mut slices: impl Iterator<Item = &'a [u8]>,
        total: usize,
    ) -> Result<usize, Errno> {
        let mut sent = 0;
        let mut next = slices.next();
        while let Some(first) = next.take() {
            if sent + first.len() == total {
                return Ok(sent + taken(|| send(&self.fd, first, FLAGS))?);
            }
            let mut list = [IoSlice::new(first); SLICES_PER_SEND];
            let (mut used, mut bytes) = (1, first.len());
            for place in list.iter_mut().skip(1) {
                let Some(slice) = slices.next() else { break };
                *place = IoSlice::new(slice);
                used += 1;
                bytes += slice.len();
            }
            let list = list.get(..used).unwrap_or_default();
            let now =
                taken(|| sendmsg(&self.fd, list, &mut SendAncillaryBuffer::default(), FLAGS))?;
            sent += now;
            if now < bytes {
                break;
            }
            next = slices.next();
        }
        Ok(sent)
    }
}

/// Runs a send again when a signal cut it short, and takes would-block as nothing sent.
fn taken(mut attempt: impl FnMut() -> Result<usize, Errno>) -> Result<usize, Errno> {
    loop {
        match attempt() {
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(0),
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Spill;

    #[test]
    fn a_spill_keeps_the_order_when_its_front_is_given_up() {
        let mut spill = Spill { bytes: b"abcdef".to_vec(), sent: 4 };
        spill.push(b"gh");
        assert_eq!((spill.len(), spill.bytes.as_slice()), (4, &b"efgh"[..]));
    }
}
