//! The engine as the core sees it: carries out effects on the simulated wires and checks the seam's
//! rules.
//!
//! Nothing may be sent to a connection that has ended, and what waits for a slow peer stays
//! bounded. Next on the path: `world.rs`.

use std::collections::BTreeMap;
use std::ops::Range;

use proxy_core::event::Event;
use proxy_core::ids::Conn;
use proxy_core::sink::{Address, ChunkId, Sink};

use crate::wire::Wire;

/// Beyond the high mark a peer's queue may grow by what one call can produce, not more.
const QUEUE_SLACK_BYTES: usize = 128 * 1024;

/// All wires, and what the core has asked for.
#[derive(Debug, Default)]
pub(crate) struct Net {
    /// Every connection of the run; indices are stable.
    pub(crate) wires: Vec<Wire>,
    /// The open ones by the core's names.
    pub(crate) by_conn: BTreeMap<Conn, usize>,
    /// Connections asked for and not yet decided on.
    pub(crate) connecting: Vec<Conn>,
    /// Connections whose queue has passed the high mark during this call.
    pub(crate) crowded: Vec<Conn>,
    /// Events not yet looked at.
    pub(crate) events: Vec<Event>,
    /// The bytes that the current call is about.
    pub(crate) chunk: Vec<u8>,
    /// Bytes towards a peer at which the core is told.
    pub(crate) high_bytes: usize,
    /// What must never happen and did.
    pub(crate) failure: Option<String>,
    /// A line an effect, if the run is told in full.
    pub(crate) log: Option<Vec<String>>,
}

impl Net {
    /// Notes a failure; the first one counts.
    pub(crate) fn fail(&mut self, why: impl Into<String>) {
        let why = why.into();
        self.note(|| format!("FAILURE {why}"));
        self.failure.get_or_insert(why);
    }

    /// Adds a line to the log of a run that is told in full.
    pub(crate) fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(log) = &mut self.log {
            log.push(line());
        }
    }

    /// A new connection.
    pub(crate) fn open(&mut self, conn: Option<Conn>) -> usize {
        self.wires.push(Wire { conn, ..Wire::default() });
        let index = self.wires.len() - 1;
        if let Some(conn) = conn {
            self.by_conn.insert(conn, index);
        }
        index
    }

    /// The engine forgets a connection.
    pub(crate) fn forget(&mut self, conn: Conn) {
        if let Some(index) = self.by_conn.remove(&conn) {
            self.wires[index].conn = None;
        }
    }

    fn queue(&mut self, to: Conn, bytes: &[u8]) {
        self.note(|| format!("  {to:?} <- {}", show(bytes)));
        let Some(&index) = self.by_conn.get(&to) else {
            return self.fail(format!("the core sent to {to:?}, which has ended"));
        };
        let wire = &mut self.wires[index];
        if wire.to_peer_fin {
            return self.fail(format!("the core sent to {to:?} behind its own FIN"));
        }
        wire.to_peer.extend(bytes);
        if wire.to_peer.len() > self.high_bytes && !wire.congested {
            wire.congested = true;
            self.crowded.push(to);
        }
        if self.wires[index].to_peer.len() > self.high_bytes + QUEUE_SLACK_BYTES {
            self.fail(format!("what waits for {to:?} grows without bound"));
        }
    }
}

/// How much of a send or a read the log shows.
const SHOWN_BYTES: usize = 4096;

/// Bytes for the log: text as it is, the rest as dots.
#[must_use]
pub(crate) fn show(bytes: &[u8]) -> String {
    let plain = |byte: &u8| if (32..127).contains(byte) { char::from(*byte) } else { '.' };
    let shown: String = bytes.iter().take(SHOWN_BYTES).map(plain).collect();
    if bytes.len() > SHOWN_BYTES { format!("{shown}… {} bytes", bytes.len()) } else { shown }
}

impl Sink for Net {
    fn send(&mut self, to: Conn, _chunk: ChunkId, range: Range<usize>) {
        match self.chunk.get(range.clone()).map(<[u8]>::to_vec) {
            Some(bytes) => self.queue(to, &bytes),
            None => self.fail(format!("a send of {range:?} from a shorter chunk")),
        }
    }

    fn send_own(&mut self, to: Conn, bytes: &[u8]) {
        let bytes = bytes.to_vec();
        self.queue(to, &bytes);
    }

    fn connect(&mut self, conn: Conn, _address: &Address) {
        self.note(|| format!("  connect {conn:?}"));
        self.connecting.push(conn);
    }

    fn close(&mut self, conn: Conn) {
        self.note(|| format!("  close {conn:?}"));
        if let Some(at) = self.connecting.iter().position(|other| *other == conn) {
            self.connecting.remove(at);
            return;
        }
        let Some(&index) = self.by_conn.get(&conn) else {
            return self.fail(format!("the core closed {conn:?}, which has ended"));
        };
        self.wires[index].to_peer_fin = true;
        self.forget(conn);
    }

    fn shutdown(&mut self, conn: Conn) {
        self.note(|| format!("  shutdown {conn:?}"));
        match self.by_conn.get(&conn) {
            Some(&index) => self.wires[index].to_peer_fin = true,
            None => self.fail(format!("the core shut down {conn:?}, which has ended")),
        }
    }

    fn pause_read(&mut self, conn: Conn) {
        if let Some(&index) = self.by_conn.get(&conn) {
            self.wires[index].paused = true;
        }
    }

    fn resume_read(&mut self, conn: Conn) {
        if let Some(&index) = self.by_conn.get(&conn) {
            self.wires[index].paused = false;
        }
    }

    fn pass(&mut self, conn: Conn, _to: u8, _mail: &[u8]) {
        self.note(|| format!("  pass {conn:?}"));
    }

    fn poke(&mut self, _to: u8) {}

    fn event(&mut self, event: Event) {
        self.note(|| format!("  event {event:?}"));
        self.events.push(event);
    }
}
