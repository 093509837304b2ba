//! Bytes on their way through a state machine, and the part of them that is to be sent on.

use std::ops::Range;

use crate::ids::Conn;
use crate::sink::{Chunk, Sink};

/// Received bytes: straight from the driver's buffer, or kept by the core for a while.
#[derive(Debug)]
pub(crate) enum Input<'a> {
    Chunk(Chunk<'a>),
    Held(Vec<u8>),
}

impl Input<'_> {
    #[inline]
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::Chunk(chunk) => chunk.bytes,
            Self::Held(held) => held,
        }
    }

    /// Sends a range on; a chunk's bytes are not copied here.
    #[inline]
    pub(crate) fn send(&self, to: Conn, range: Range<usize>, sink: &mut dyn Sink) {
        match self {
            Self::Chunk(chunk) => sink.send(to, chunk.id, range),
            Self::Held(held) => {
                if let Some(bytes) = held.get(range) {
                    sink.send_own(to, bytes);
                }
            }
        }
    }
}

/// The bytes from `start` on that have been dealt with and wait to be sent on in one piece.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    pub(crate) input: Input<'a>,
    pub(crate) start: usize,
    pub(crate) to: Option<Conn>,
}

impl Run<'_> {
    /// Sends what waits, up to `end`: whatever is sent next comes behind it.
    #[inline]
    pub(crate) fn flush(&mut self, end: usize, sink: &mut dyn Sink) {
        if let Some(to) = self.to {
            if self.start < end {
                self.input.send(to, self.start..end, sink);
            }
        }
        self.start = end;
    }

    /// The bytes from `at` on.
    #[inline]
    pub(crate) fn rest(&self, at: usize) -> &[u8] {
        self.input.bytes().get(at..).unwrap_or_default()
    }
}
