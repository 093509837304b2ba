//! The mailbox: datagrams with descriptors between the engines of one service.
//!
//! Each worker has an inbox of its own and an outbox for every worker, itself included; outboxes
//! are shared by all processes, so a datagram is whole or not there at all. Nothing here blocks: a
//! full inbox refuses. Every driver uses this as it is. What the bytes mean: `mail.rs`.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ledger::WorkerId;
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg, sockopt,
};

use crate::limits::{MAIL_BYTES_MAX, MAIL_DESCRIPTORS_MAX};

/// Control bytes of the largest mail.
const CONTROL_BYTES: usize = rustix::cmsg_space!(ScmRights(MAIL_DESCRIPTORS_MAX));

/// One worker's inbox and everybody's outboxes.
#[derive(Debug)]
pub struct Post {
    inbox: OwnedFd,
    /// By worker number.
    outboxes: Vec<OwnedFd>,
    /// Untouched, it costs no memory.
    buffer: Box<[u8]>,
}

/// What one look into the inbox gave.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// A mail and its descriptors; none if the process had no room for all of them.
    Mail(Vec<u8>, Vec<OwnedFd>),
    /// A mail longer than any of ours, thrown away with its descriptors.
    TooLong,
    /// No mail waits.
    Empty,
    /// The inbox cannot be read.
    Broken,
}

impl Post {
    /// Takes over ends of `SOCK_SEQPACKET` pairs: this worker's `inbox` and the other ends of all
    /// inboxes, by worker number.
    #[must_use]
    pub fn new(inbox: OwnedFd, outboxes: Vec<OwnedFd>) -> Self {
        for outbox in &outboxes {
            // The kernel doubles it and may grant less: a long mail then has to find its inbox
            // empty.
            let _ = sockopt::set_socket_send_buffer_size(outbox, MAIL_BYTES_MAX);
        }
        Self { inbox, outboxes, buffer: vec![0; MAIL_BYTES_MAX].into_boxed_slice() }
    }

    /// The descriptor to wait for.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.inbox.as_fd()
    }

    /// Puts a mail, with a descriptor if need be, into a worker's inbox. False: that worker has
    /// none, its inbox is full, or the mail is longer than `MAIL_BYTES_MAX`; nothing has been sent.
    pub(crate) fn send(&self, to: WorkerId, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> bool {
        let Some(outbox) = self.outboxes.get(usize::from(to)) else { return false };
        if bytes.len() > MAIL_BYTES_MAX {
            return false;
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if fd.is_some() && !control.push(SendAncillaryMessage::ScmRights(fd.as_slice())) {
            return false;
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        loop {
            match sendmsg(outbox, &[IoSlice::new(bytes)], &mut control, flags) {
                Err(Errno::INTR) => {}
                outcome => return outcome.is_ok(),
            }
        }
    }

    /// Takes one mail out.
    pub(crate) fn receive(&mut self) -> Incoming {
        let mut space = [MaybeUninit::uninit(); CONTROL_BYTES];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received = loop {
            let mut list = [IoSliceMut::new(&mut self.buffer)];
            match recvmsg(&self.inbox, &mut list, &mut control, flags) {
                Err(Errno::INTR) => {}
                // Short of memory, it is tried again in the next turn.
                Err(Errno::AGAIN | Errno::NOMEM | Errno::NOBUFS) => return Incoming::Empty,
                Err(_) => return Incoming::Broken,
                Ok(received) => break received,
            }
        };
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        if received.flags.contains(ReturnFlags::TRUNC) {
            return Incoming::TooLong;
        }
        if received.flags.contains(ReturnFlags::CTRUNC) {
            // Some are missing, and nobody can tell which: all are closed.
            fds.clear();
        }
        Incoming::Mail(self.buffer.get(..received.bytes).unwrap_or_default().to_vec(), fds)
    }
}
