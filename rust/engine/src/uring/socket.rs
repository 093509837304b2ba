//! What the io_uring driver knows of a connection.
//!
//! ```text
//!   connecting ──▶ open ──close──▶ delivering ──all sent──▶ draining ──▶ closed
//!        │           │   (bytes wait) │     (its input would reset it)     ▲
//!        └───────────┴────────────────┴────────────────────────────────────┘
//!                        nothing to deliver, broken, or time is up
//! ```
//!
//! An entry outlives its connection's id: it goes when the kernel has no operation on it. An idle
//! one owns its descriptor and no buffer. Next on the path: `pieces.rs`.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use proxy_core::ids::{Conn, Id};
use proxy_core::sink::Gone;
use rustix::net::{Shutdown, shutdown};

use super::buffers::Size;
use super::pieces::Queue;

/// Marker of sockets' ids.
#[derive(Debug)]
pub(crate) struct SocketTag;
/// A socket of this driver.
pub(crate) type SocketId = Id<SocketTag>;

/// Facts about a socket that are either true or not.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Flags(u32);

impl Flags {
    /// The core paused reading.
    pub(crate) const PAUSED: u32 = 1;
    /// The peer will send no more: its end has been received.
    pub(crate) const ENDED: u32 = 1 << 1;
    /// The core was told that the queue is long.
    pub(crate) const CONGESTED: u32 = 1 << 2;
    /// The end of the turn looks at it.
    pub(crate) const DIRTY: u32 = 1 << 3;
    /// The connection is being made.
    pub(crate) const CONNECTING: u32 = 1 << 4;
    /// Sending failed; nothing more is sent.
    pub(crate) const BROKEN: u32 = 1 << 5;
    /// A paused server has hung up: it is looked at when it is read again.
    pub(crate) const PARKED: u32 = 1 << 6;
    /// Our sending ends once everything is sent.
    pub(crate) const FIN: u32 = 1 << 7;
    /// The core knows it no more.
    pub(crate) const CLOSED: u32 = 1 << 8;
    /// The kernel receives for it.
    pub(crate) const ARMED: u32 = 1 << 9;
    /// The kernel looks for its end, or for the connection being made.
    pub(crate) const WATCHED: u32 = 1 << 10;
    /// The receiving was told to end.
    pub(crate) const RECV_ENDS: u32 = 1 << 11;
    /// The watching was told to end.
    pub(crate) const WATCH_ENDS: u32 = 1 << 12;
    /// The send in flight was told to end.
    pub(crate) const SEND_ENDS: u32 = 1 << 13;
    /// The kernel did not take all at once: the next send waits for room.
    pub(crate) const STALLED: u32 = 1 << 14;
    /// It waits for a buffer to receive into.
    pub(crate) const STARVING: u32 = 1 << 15;
    /// It is being handed to another worker.
    pub(crate) const PASSING: u32 = 1 << 16;
    /// Closed, and what was sent to it is on its way.
    pub(crate) const LINGERING: u32 = 1 << 17;
    /// Lingering, all sent: its input is thrown away until it ends.
    pub(crate) const DRAINING: u32 = 1 << 18;
    /// The peer went on sending after the close, or took its bytes slowly.
    pub(crate) const TALKING: u32 = 1 << 19;

    /// Its end was seen while it was read: it has to be seen again if reading does not tell it.
    pub(crate) const SEEN: u32 = 1 << 20;
    /// Its end was seen since the kernel began to receive for it: the receiving may have missed it.
    pub(crate) const MISSED: u32 = 1 << 21;

    /// Too new to be looked at apart from receiving.
    pub(crate) const YOUNG: u32 = 1 << 22;
    /// The send in flight is a quick one: it may be over without a word.
    pub(crate) const QUICK: u32 = 1 << 23;

    /// It sends much: the kernel shall receive into large blocks.
    pub(crate) const BULKY: u32 = 1 << 24;
    /// The kernel receives into large blocks.
    pub(crate) const ARMED_BULKY: u32 = 1 << 25;

    /// Whether any of these is true.
    #[inline]
    pub(crate) const fn any(self, bits: u32) -> bool {
        self.0 & bits != 0
    }

    /// Makes these true.
    #[inline]
    pub(crate) const fn set(&mut self, bits: u32) {
        self.0 |= bits;
    }

    /// Makes these false.
    #[inline]
    pub(crate) const fn clear(&mut self, bits: u32) {
        self.0 &= !bits;
    }
}

/// Received bytes that cannot be told yet.
#[derive(Debug)]
pub(crate) enum HeldBytes {
    /// In a block, which is counted as kept.
    Block(u16),
    Copy(Vec<u8>),
}

/// How the receiving ended, to be told behind what is held.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    Eof,
    Error(Gone),
}

/// What has been received and cannot be told yet, in order.
#[derive(Debug, Default)]
pub(crate) struct Held {
    pub(crate) bytes: VecDeque<HeldBytes>,
    pub(crate) end: Option<End>,
}

/// One connection's socket.
#[derive(Debug)]
pub(crate) struct Socket {
    /// The descriptor, non-blocking.
    pub(crate) fd: OwnedFd,
    /// Whom the core knows it as, or has known.
    pub(crate) conn: Conn,
    /// What is true of it.
    pub(crate) flags: Flags,
    /// Receives in a row for which blocks of the other size would have been better.
    pub(crate) unsuited: u8,
    /// What waits to be sent.
    pub(crate) queue: Queue,
    /// Received and not told.
    pub(crate) held: Option<Box<Held>>,
    /// It is broken; this is told after its last words.
    pub(crate) why: Option<Gone>,
}

impl Socket {
    /// A new entry around a non-blocking socket.
    pub(crate) fn new(fd: OwnedFd, conn: Conn) -> Self {
        let (flags, queue) = (Flags::default(), Queue::default());
        Self { fd, conn, flags, unsuited: 0, queue, held: None, why: None }
    }

    /// Whether the kernel has an operation on it: it must stay then.
    #[inline]
    pub(crate) const fn is_busy(&self) -> bool {
        self.flags.any(Flags::ARMED | Flags::WATCHED) || self.queue.flying > 0
    }

    /// Whether the kernel shall receive for it.
    #[inline]
    pub(crate) const fn wants_bytes(&self) -> bool {
        const NOT: u32 = Flags::PAUSED
            | Flags::ENDED
            | Flags::CONNECTING
            | Flags::BROKEN
            | Flags::PASSING
            | Flags::CLOSED;
        let drains = self.flags.any(Flags::DRAINING) && !self.flags.any(Flags::ENDED);
        drains || !self.flags.any(NOT)
    }

    /// Which blocks the kernel shall receive into.
    #[inline]
    pub(crate) const fn size(&self) -> Size {
        if self.flags.any(Flags::BULKY) { Size::Large } else { Size::Small }
    }

    /// Whether the kernel receives into blocks of the other size.
    #[inline]
    pub(crate) const fn is_missized(&self) -> bool {
        self.flags.any(Flags::BULKY) != self.flags.any(Flags::ARMED_BULKY)
    }

    /// Whether the kernel shall look for its end, or for the connection being made.
    #[inline]
    pub(crate) const fn wants_watch(&self) -> bool {
        let young = self.flags.any(Flags::YOUNG) && !self.flags.any(Flags::CONNECTING);
        !young && !self.flags.any(Flags::CLOSED | Flags::PASSING)
    }

    /// Whether its end has to be told when it is seen, since nothing is received.
    #[inline]
    pub(crate) const fn is_unread(&self) -> bool {
        const NOT: u32 = Flags::CLOSED | Flags::BROKEN | Flags::PASSING | Flags::PARKED;
        self.flags.any(Flags::PAUSED | Flags::ENDED) && !self.flags.any(NOT)
    }

    /// Whether what is received now cannot be told at once.
    #[inline]
    pub(crate) const fn must_hold(&self) -> bool {
        self.held.is_some() || self.flags.any(Flags::PAUSED | Flags::PASSING)
    }

    /// Ends our sending if that was asked for and nothing is left to send.
    pub(crate) fn finish(&mut self) {
        if self.flags.any(Flags::FIN) && self.queue.bytes == 0 {
            // It fails only for a connection that has ended, which its next event says.
            let _ = shutdown(&self.fd, Shutdown::Write);
            self.flags.clear(Flags::FIN);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Socket;

    #[test]
    fn an_idle_connection_takes_no_more_than_96_bytes() {
        let bytes = size_of::<Option<Socket>>();
        assert!(bytes <= 96, "{bytes}");
    }
}
