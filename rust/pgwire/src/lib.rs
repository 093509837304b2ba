//! PostgreSQL's wire protocol, version 3: bytes to borrowed messages, and values to bytes.
//!
//! Readers borrow from the caller's buffer, allocate nothing and never panic, whatever a peer
//! sends; they accept what PostgreSQL itself accepts and refuse what its `pq_getmsgend` would
//! refuse. There is no I/O, no state and no clock here: who may send what and when is the
//! multiplexer's business. Source of all layouts: the PostgreSQL manual, "Frontend/Backend
//! Protocol", "Message Formats".
//! Next on the path: `frame.rs`, which finds where a message ends.

mod cursor;

pub mod backend;
pub mod frame;
pub mod frontend;
pub mod tag;
pub mod write;

use std::fmt;

/// Bytes that are not the message they claim to be; always the sending peer's fault.
///
/// The text says what is wrong. It never quotes the bytes, so it may be logged and sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Malformed(pub &'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Malformed {}

#[cfg(test)]
mod tests;
