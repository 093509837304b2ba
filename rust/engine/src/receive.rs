//! Reading with the epoll driver, and what the end of a connection looks like.
//!
//! A readiness event gives one receive; only if that filled the buffer, or if the peer has hung up
//! and the rest should be seen, a few more. A paused connection is not read, but its reset is told.
//! Ends:
//!
//! ```text
//! client, end of file           Eof once, then only errors are watched
//! client, hang-up or error      Gone (after the bytes and the Eof, unless paused)
//! server, end of file           Gone(Eof)
//! server, hang-up while paused  parked: not watched until resumed, nothing is lost or spins
//! server, a send failed         its last words, then Gone
//! ```
//!
//! Next on the path: `driver.rs` hands the completion to `engine.rs`.

use proxy_core::ids::Conn;
use proxy_core::sink::Gone;
use rustix::io::Errno;

use crate::chunk::Buffer;
use crate::conn::Flags;
use crate::driver::Completion;
use crate::epoll::{Epoll, Work};
use crate::limits::{LAST_WORDS_RECEIVES, RECEIVES_PER_TURN};
use crate::net;
use crate::notes::Note;
use crate::poller::Ready;

/// A connection that is being read in this turn.
#[derive(Debug)]
pub(crate) struct Reading {
    conn: Conn,
    left: u8,
    hangup: bool,
    error: bool,
    /// The connection is broken; this is told after its last words.
    why: Option<Gone>,
}

impl Reading {
    /// Reads what an event promises.
    pub(crate) const fn new(conn: Conn, ready: Ready) -> Self {
        let Ready { hangup, error, .. } = ready;
        Self { conn, left: RECEIVES_PER_TURN, hangup, error, why: None }
    }

    /// Reads what a broken connection has left.
    pub(crate) const fn last_words(conn: Conn, why: Gone) -> Self {
        Self { conn, left: LAST_WORDS_RECEIVES, hangup: true, error: true, why: Some(why) }
    }
}

impl Epoll {
    /// One step: a receive at most.
    #[inline]
    pub(crate) fn read(&mut self, mut reading: Reading) -> Option<Completion<Buffer>> {
        let conn = reading.conn;
        let socket = self.table.get(conn)?;
        if socket.flags.any(Flags::PAUSED | Flags::EOF) {
            return self.look_at_paused(&reading);
        }
        let Some(left) = reading.left.checked_sub(1) else {
            return reading.why.and_then(|why| self.gone(conn, why));
        };
        reading.left = left;
        let buffer = self.buffer.as_mut()?;
        self.counters.receives += 1;
        match net::receive(&socket.fd, buffer.memory()) {
            Ok(0) => self.handle_eof(&reading),
            Ok(len) => {
                buffer.set_len(len);
                if buffer.is_full() || reading.hangup || reading.error {
                    self.work = Some(Work::Read(reading));
                }
                self.buffer.take().map(|buffer| Completion::Received(conn, buffer))
            }
            Err(Errno::AGAIN) => {
                let pending = if reading.error { net::pending_error(&socket.fd) } else { None };
                let why = reading.why.or_else(|| pending.map(net::loss))?;
                self.gone(conn, why)
            }
            Err(error) => self.gone(conn, reading.why.unwrap_or_else(|| net::loss(error))),
        }
    }

    fn handle_eof(&mut self, reading: &Reading) -> Option<Completion<Buffer>> {
        let conn = reading.conn;
        let Conn::Client(_) = conn else {
            return self.gone(conn, reading.why.unwrap_or(Gone::Eof));
        };
        self.stop_reading(conn);
        if reading.hangup || reading.error {
            self.notes.push_back(Note::Broken(conn, Gone::Reset));
        }
        Some(Completion::Eof(conn))
    }

    /// An event for a connection that is not read now.
    fn look_at_paused(&mut self, reading: &Reading) -> Option<Completion<Buffer>> {
        let conn = reading.conn;
        if reading.why.is_some() {
            return reading.why.and_then(|why| self.gone(conn, why));
        }
        let socket = self.table.get(conn)?;
        if reading.error {
            let why = net::pending_error(&socket.fd).map_or(Gone::Reset, net::loss);
            return self.gone(conn, why);
        }
        if !reading.hangup {
            return None;
        }
        if let Conn::Client(_) = conn {
            return self.gone(conn, Gone::Reset);
        }
        self.poller.remove(&socket.fd);
        socket.flags.set(Flags::PARKED);
        socket.armed = 0;
        None
    }
}
