//! The sink of one `handle_*` call: it passes the core's effects on to the driver.
//!
//! Sends are only queued here; `Driver::submit` makes one system call a connection of them when the
//! call has returned. Next on the path: `driver.rs`.

use std::ops::Range;

use ledger::{Ledger, WorkerId};
use proxy_core::event::Event;
use proxy_core::ids::Conn;
use proxy_core::sink::{Address, ChunkId, Now, Sink};

use crate::driver::Driver;
use crate::mail;
use crate::ring::EventSender;

/// Borrowed for one call of the core.
pub(crate) struct EngineSink<'a, D> {
    /// Who carries the effects out.
    pub(crate) driver: &'a mut D,
    /// The ring to Python.
    pub(crate) events: &'a mut EventSender,
    /// The chunk that is being handled, and its bytes.
    pub(crate) chunk: Option<(ChunkId, &'a [u8])>,
    /// The time of this turn.
    pub(crate) now: Now,
    /// The page.
    pub(crate) ledger: &'a Ledger,
}

impl<D: Driver> Sink for EngineSink<'_, D> {
    fn send(&mut self, to: Conn, chunk: ChunkId, range: Range<usize>) {
        let known = self.chunk.filter(|(id, bytes)| *id == chunk && range.end <= bytes.len());
        debug_assert!(known.is_some(), "a send refers to a chunk that is not being handled");
        if let Some((_, bytes)) = known {
            self.driver.send(to, bytes, range);
        }
    }

    fn send_own(&mut self, to: Conn, bytes: &[u8]) {
        self.driver.send_own(to, bytes);
    }

    fn connect(&mut self, conn: Conn, address: &Address) {
        self.driver.connect(conn, address);
    }

    fn shutdown(&mut self, conn: Conn) {
        self.driver.shutdown(conn);
    }

    fn close(&mut self, conn: Conn) {
        let bytes = self.chunk.map_or(&[][..], |(_, bytes)| bytes);
        self.driver.close(conn, bytes, self.now);
    }

    fn pause_read(&mut self, conn: Conn) {
        self.driver.pause_read(conn);
    }

    fn resume_read(&mut self, conn: Conn) {
        self.driver.resume_read(conn);
    }

    fn pass(&mut self, conn: Conn, to: WorkerId, mail: &[u8]) {
        self.driver.pass(conn, to, mail);
    }

    fn poke(&mut self, to: WorkerId) {
        // A poke that a full inbox refuses is not missed: whoever reads mail looks at the page.
        if !self.ledger.rung(to) {
            self.driver.post(to, &[mail::POKE], None);
        }
    }

    fn event(&mut self, event: Event) {
        self.events.send(event);
    }
}
