//! The receive buffer of the epoll driver.
//!
//! One buffer is enough: what a socket does not take of a chunk is copied to that connection's
//! spill before the next receive. It is lent out by value, so that the borrow checker guards the
//! contract. Next on the path: `batch.rs`.

use proxy_core::sink::ChunkId;

use crate::driver::Received;
use crate::limits::RECEIVE_BYTES;

/// The buffer, with the number of bytes that the last receive put there.
#[derive(Debug)]
pub(crate) struct Buffer {
    memory: Box<[u8]>,
    len: usize,
}

impl Buffer {
    /// An empty buffer of `RECEIVE_BYTES`.
    pub(crate) fn new() -> Self {
        Self { memory: vec![0; RECEIVE_BYTES].into_boxed_slice(), len: 0 }
    }

    /// All of its memory, to receive into.
    pub(crate) fn memory(&mut self) -> &mut [u8] {
        &mut self.memory
    }

    /// Sets how many bytes were received.
    pub(crate) fn set_len(&mut self, len: usize) {
        self.len = len.min(self.memory.len());
    }

    /// Whether the receive filled it: then there is probably more.
    pub(crate) fn is_full(&self) -> bool {
        self.len == self.memory.len()
    }
}

impl Received for Buffer {
    fn id(&self) -> ChunkId {
        ChunkId(0)
    }

    fn bytes(&self) -> &[u8] {
        self.memory.get(..self.len).unwrap_or_default()
    }
}
