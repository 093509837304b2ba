//! The engines as the cores see them: carry out effects on the simulated wires and check the seam's
//! rules.
//!
//! Wires are shared; each worker has a desk of its own: its names for its connections, and its
//! inbox. Nothing may be sent to a connection that has ended, and what waits for a slow peer stays
//! bounded. Next on the path: `workers.rs`.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use ledger::{Ledger, WorkerId};
use proxy_core::event::Event;
use proxy_core::ids::Conn;
use proxy_core::sink::{Address, ChunkId, Sink};

use crate::wire::Wire;

/// Beyond the high mark a peer's queue may grow by what one call can produce, not more.
const QUEUE_SLACK_BYTES: usize = 128 * 1024;

/// A datagram in a worker's inbox.
#[derive(Debug)]
pub(crate) enum Mail {
    /// Look at the page.
    Poke,
    /// A connection and what is said about it.
    Connection { wire: usize, bytes: Vec<u8> },
}

/// A connection that is to go to another worker.
#[derive(Debug)]
pub(crate) struct Pass {
    pub(crate) conn: Conn,
    pub(crate) to: usize,
    pub(crate) mail: Vec<u8>,
}

/// One worker's side of its connections.
#[derive(Debug, Default)]
pub(crate) struct Desk {
    /// The open ones by the core's names.
    pub(crate) by_conn: BTreeMap<Conn, usize>,
    /// Connections asked for and not yet decided on.
    pub(crate) connecting: Vec<Conn>,
    /// Connections whose queue has passed the high mark during this call.
    pub(crate) crowded: Vec<Conn>,
    /// Connections to hand over, in the order in which that was asked for.
    pub(crate) passes: VecDeque<Pass>,
    /// What became of earlier ones; the core has not been told.
    pub(crate) answers: VecDeque<(Conn, bool)>,
    /// Datagrams that have come; they outlive the worker.
    pub(crate) inbox: VecDeque<Mail>,
    /// Events not yet looked at.
    pub(crate) events: Vec<Event>,
}

/// All wires, and what the cores have asked for.
#[derive(Debug)]
pub(crate) struct Net {
    /// Every connection of the run; indices are stable.
    pub(crate) wires: Vec<Wire>,
    /// By worker.
    pub(crate) desks: Vec<Desk>,
    /// The worker whose core is being called.
    pub(crate) me: usize,
    /// Attempts to connect that were given up: the server may have accepted all the same.
    pub(crate) given_up: usize,
    /// The bytes that the current call is about.
    pub(crate) chunk: Vec<u8>,
    /// Bytes towards a peer at which the core is told.
    pub(crate) high_bytes: usize,
    /// Datagrams that an inbox holds.
    pub(crate) inbox_max: usize,
    /// What must never happen and did.
    pub(crate) failure: Option<String>,
    /// A line an effect, if the run is told in full.
    pub(crate) log: Option<Vec<String>>,
    page: Ledger,
}

impl Net {
    /// No wires yet; a desk for each worker.
    pub(crate) fn new(workers: usize, page: Ledger, told_in_full: bool) -> Self {
        Self {
            wires: Vec::new(),
            desks: (0..workers).map(|_| Desk::default()).collect(),
            me: 0,
            given_up: 0,
            chunk: Vec::new(),
            high_bytes: 0,
            inbox_max: 1,
            failure: None,
            log: told_in_full.then(Vec::new),
            page,
        }
    }

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

    /// A new connection of a worker's.
    pub(crate) fn open(&mut self, worker: usize, conn: Conn) -> usize {
        self.wires.push(Wire { owner: Some((worker, conn)), ..Wire::default() });
        let index = self.wires.len() - 1;
        self.desks[worker].by_conn.insert(conn, index);
        index
    }

    /// A connection that nobody holds on our side.
    pub(crate) fn open_closed(&mut self) -> usize {
        let mut wire = Wire::default();
        wire.close();
        self.wires.push(wire);
        self.wires.len() - 1
    }

    /// A worker forgets a connection that the peer has ended.
    pub(crate) fn forget(&mut self, worker: usize, conn: Conn) {
        if let Some(index) = self.desks[worker].by_conn.remove(&conn) {
            self.wires[index].close();
        }
    }

    /// Puts a datagram into an inbox; false if it is full.
    pub(crate) fn post(&mut self, to: usize, mail: Mail) -> bool {
        let inbox_max = self.inbox_max;
        match self.desks.get_mut(to) {
            Some(desk) if desk.inbox.len() < inbox_max => desk.inbox.push_back(mail),
            _ => return false,
        }
        true
    }

    /// Wakes a worker unless that is under way already.
    pub(crate) fn ring(&mut self, to: WorkerId) {
        // A poke that a full inbox refuses is not missed: whoever reads mail looks at the page.
        if !self.page.rung(to) {
            self.post(usize::from(to), Mail::Poke);
        }
    }

    fn desk(&mut self) -> &mut Desk {
        &mut self.desks[self.me]
    }

    fn wire_of(&self, conn: Conn) -> Option<usize> {
        self.desks[self.me].by_conn.get(&conn).copied()
    }

    fn queue(&mut self, to: Conn, bytes: &[u8]) {
        self.note(|| format!("  {to:?} <- {}", show(bytes)));
        let Some(index) = self.wire_of(to) else {
            return self.fail(format!("the core sent to {to:?}, which has ended"));
        };
        let wire = &mut self.wires[index];
        if wire.to_peer_fin {
            return self.fail(format!("the core sent to {to:?} behind its own FIN"));
        }
        if wire.leaving {
            return self.fail(format!("the core sent to {to:?}, which is being handed over"));
        }
        wire.to_peer.extend(bytes);
        if wire.to_peer.len() > self.high_bytes && !wire.congested {
            wire.congested = true;
            self.desk().crowded.push(to);
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
        self.desk().connecting.push(conn);
    }

    fn close(&mut self, conn: Conn) {
        self.note(|| format!("  close {conn:?}"));
        if let Some(at) = self.desk().connecting.iter().position(|other| *other == conn) {
            self.desk().connecting.remove(at);
            self.given_up += usize::from(matches!(conn, Conn::Server(_)));
            return;
        }
        if self.wire_of(conn).is_none() {
            return self.fail(format!("the core closed {conn:?}, which has ended"));
        }
        self.forget(self.me, conn);
    }

    fn shutdown(&mut self, conn: Conn) {
        self.note(|| format!("  shutdown {conn:?}"));
        match self.wire_of(conn) {
            Some(index) => self.wires[index].to_peer_fin = true,
            None => self.fail(format!("the core shut down {conn:?}, which has ended")),
        }
    }

    fn pause_read(&mut self, conn: Conn) {
        if let Some(index) = self.wire_of(conn) {
            self.wires[index].paused = true;
        }
    }

    fn resume_read(&mut self, conn: Conn) {
        if let Some(index) = self.wire_of(conn) {
            self.wires[index].paused = false;
        }
    }

    fn pass(&mut self, conn: Conn, to: WorkerId, mail: &[u8]) {
        self.note(|| format!("  pass {conn:?} to worker {to}"));
        let Some(index) = self.wire_of(conn) else {
            return self.fail(format!("the core passed on {conn:?}, which has ended"));
        };
        self.wires[index].leaving = true;
        let pass = Pass { conn, to: usize::from(to), mail: mail.to_vec() };
        self.desk().passes.push_back(pass);
    }

    fn poke(&mut self, to: WorkerId) {
        self.note(|| format!("  poke worker {to}"));
        self.ring(to);
    }

    fn event(&mut self, event: Event) {
        self.note(|| format!("  event {event:?}"));
        self.desk().events.push(event);
    }
}
