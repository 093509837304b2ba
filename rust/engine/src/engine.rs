//! The loop: wait, read the clock once, hand each completion to the core, carry its effects out.
//!
//! One turn is one wait. Nothing here blocks but the wait, and the core is never entered while it
//! is at work: what a send brings to light (a broken peer, a long queue) is a completion of its
//! own. What comes by mail from other processes is in `delivery.rs`. Next on the path of a query:
//! `epoll.rs`, then the core's `core.rs`.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use ledger::Ledger;
use proxy_core::ids::Conn;
use proxy_core::sink::{Chunk, Gone, Now, Peer};
use rustix::time::{ClockId, clock_gettime};

use crate::balance::{self, Pulses};
use crate::driver::{Completion, Driver, Received};
use crate::handle::Shared;
use crate::limits::WAIT_MS_MAX;
use crate::mail;
use crate::net;
use crate::protocol::Protocol;
use crate::ring::{Command, CommandReceiver, EventSender};
use crate::settings::Parse;
use crate::sink::EngineSink;

/// Reads the monotonic clock, in microseconds.
pub(crate) fn clock() -> Now {
    let time = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let micros = u64::try_from(time.tv_nsec / 1000).unwrap_or(0);
    Now(seconds * 1_000_000 + micros)
}

/// What an engine has to do with besides its core and its driver.
#[derive(Debug)]
pub(crate) struct Place {
    /// The page, as this worker.
    pub(crate) ledger: Ledger,
    /// Which start of a worker this is, counted over the service.
    pub(crate) incarnation: u64,
    /// The epoch of the settings in force.
    pub(crate) epoch: u64,
    /// Reads the settings of later epochs.
    pub(crate) parse: Parse,
    /// The ring to Python.
    pub(crate) events: EventSender,
    /// The ring from Python.
    pub(crate) commands: CommandReceiver,
    /// What other threads may read.
    pub(crate) shared: Arc<Shared>,
}

/// Clients of a worker that takes no more, as the balance counts them.
const FULL: u64 = u32::MAX as u64;

/// A core, a driver and their place among threads and processes.
pub(crate) struct Engine<P, D> {
    pub(crate) core: P,
    pub(crate) driver: D,
    pub(crate) place: Place,
    pub(crate) now: Now,
    /// Clients that the page counts for this worker.
    pub(crate) counted: usize,
    /// Mail has come since the page was looked at.
    pub(crate) look: bool,
    pub(crate) stopping: bool,
    pulses: Pulses,
    /// When the last look around was, once in `WAIT_MS_MAX`.
    looked: Now,
    turns: u64,
}

/// A sink over the engine's fields but the core, which the borrow checker wants to see apart.
macro_rules! sink {
    ($engine:ident, $chunk:expr) => {
        $crate::sink::EngineSink {
            driver: &mut $engine.driver,
            events: &mut $engine.place.events,
            chunk: $chunk,
            now: $engine.now,
            ledger: &$engine.place.ledger,
        }
    };
}
pub(crate) use sink;

impl<P: Protocol, D: Driver> Engine<P, D> {
    /// Puts an engine together; it runs in the calling thread.
    pub(crate) fn new(core: P, driver: D, place: Place) -> Self {
        let now = clock();
        Self {
            core,
            driver,
            place,
            now,
            counted: 0,
            look: true,
            stopping: false,
            pulses: Pulses::default(),
            looked: now,
            turns: 0,
        }
    }

    /// Runs until the core has stopped and the last bytes are delivered.
    ///
    /// # Errors
    /// The driver is broken: a bug of ours.
    pub(crate) fn run(&mut self) -> io::Result<()> {
        self.place.ledger.set_epoch(self.place.epoch);
        self.place.ledger.set_io(D::BACKEND as u64);
        self.place.ledger.begin(self.place.incarnation);
        while !self.is_finished() {
            self.turn(WAIT_MS_MAX)?;
        }
        self.place.ledger.end();
        self.publish();
        Ok(())
    }

    /// Ends the engine, which closes every socket, and keeps the ring to Python.
    pub(crate) fn into_events(self) -> EventSender {
        self.place.events
    }

    /// The core and the driver, for tests that run turn by turn.
    #[cfg(test)]
    pub(crate) const fn parts(&mut self) -> (&mut P, &mut D) {
        (&mut self.core, &mut self.driver)
    }

    /// Whether `run` is done.
    pub(crate) fn is_finished(&self) -> bool {
        self.stopping && self.core.is_stopped() && self.driver.lingering() == 0
    }

    /// One turn; waits at most `wait_ms` milliseconds.
    ///
    /// # Errors
    /// As [`Engine::run`].
    pub(crate) fn turn(&mut self, wait_ms: u64) -> io::Result<()> {
        let wait_ms = wait_ms.min(self.wait_ms());
        self.driver.wait(wait_ms)?;
        self.now = clock();
        self.turns += 1;
        self.place.ledger.beat();
        self.complete();
        if self.driver.poll_deadline().is_some_and(|deadline| deadline <= self.now) {
            self.driver.handle_timeouts(self.now);
        }
        if self.core.poll_deadline().is_some_and(|deadline| deadline <= self.now) {
            let mut sink = sink!(self, None);
            self.core.handle_timeouts(self.now, &mut sink);
            self.driver.submit(None);
            self.complete();
        }
        if self.now.since(self.looked) >= WAIT_MS_MAX * 1000 {
            self.look_around();
        }
        if self.look {
            self.look_at_page();
        }
        self.count_clients();
        Ok(())
    }

    /// What is done once a second.
    fn look_around(&mut self) {
        self.looked = self.now;
        self.publish();
        let ledger = &self.place.ledger;
        self.pulses.look(ledger.alive(), |worker| ledger.worker_view(worker).heartbeat);
        // A poke that a full inbox refused is made up for here at the latest.
        self.look = true;
    }

    /// Has the core look at what other processes have changed on the page.
    fn look_at_page(&mut self) {
        self.look = false;
        let mut sink = sink!(self, None);
        self.core.handle_look(self.now, &mut sink);
        self.driver.submit(None);
        self.complete();
    }

    /// Brings this worker's number of clients on the page up to date.
    #[inline]
    pub(crate) fn count_clients(&mut self) {
        let clients = self.driver.clients();
        if clients != self.counted {
            let ledger = &self.place.ledger;
            ledger.clients_add(ledger.me(), clients as i64 - self.counted as i64);
            self.counted = clients;
        }
    }

    /// How long nothing needs to be done, in milliseconds, rounded up: never a turn too early.
    fn wait_ms(&self) -> u64 {
        let deadlines = [self.core.poll_deadline(), self.driver.poll_deadline()];
        let Some(first) = deadlines.into_iter().flatten().min() else { return WAIT_MS_MAX };
        first.since(self.now).div_ceil(1000)
    }

    /// Handles every completion of this turn.
    pub(crate) fn complete(&mut self) {
        while let Some(completion) = self.driver.next(self.now) {
            self.dispatch(completion);
        }
    }

    /// Hands one completion to the core.
    pub(crate) fn dispatch(&mut self, completion: Completion<D::Chunk>) {
        match completion {
            Completion::Received(conn, chunk) => self.handle_received(conn, chunk),
            Completion::Accepted(socket, peer) => self.handle_accepted(socket, peer),
            Completion::Mail(bytes, fds) => self.handle_mail(&bytes, fds),
            Completion::Woken => self.handle_commands(),
            Completion::Notice(event) => self.place.events.send(event),
            other => {
                let mut sink = sink!(self, None);
                tell(&mut self.core, &other, self.now, &mut sink);
                self.driver.submit(None);
            }
        }
    }

    #[inline]
    fn handle_received(&mut self, conn: Conn, received: D::Chunk) {
        let chunk = Chunk { id: received.id(), bytes: received.bytes() };
        let mut sink = sink!(self, Some((chunk.id, chunk.bytes)));
        match conn {
            Conn::Client(id) => self.core.handle_client_bytes(id, chunk, self.now, &mut sink),
            Conn::Server(id) => self.core.handle_server_bytes(id, chunk, self.now, &mut sink),
            // A server answers a CancelRequest by closing; anything else it says is of no use.
            Conn::Canceller(_) => {}
        }
        self.driver.submit(Some(received));
    }

    /// A client has connected: it is served here unless another worker has fewer clients.
    fn handle_accepted(&mut self, socket: OwnedFd, peer: Peer) {
        if !self.pass_on(&socket, peer) {
            self.admit(socket, peer);
        }
    }

    /// Passes a client on if another worker has fewer, or if this one takes no more.
    pub(crate) fn pass_on(&mut self, socket: &OwnedFd, peer: Peer) -> bool {
        self.count_clients();
        let ledger = &self.place.ledger;
        let (me, moving) = (ledger.me(), self.pulses.moving(ledger.accepting()));
        let full = self.stopping;
        let clients = |worker| if full && worker == me { FULL } else { ledger.clients(worker) };
        let Some(to) = balance::destination(me, moving, clients) else { return false };
        // Counted before it arrives, so that nobody else takes that worker for idle meanwhile.
        ledger.clients_add(to, 1);
        let mail = mail::client(peer == Peer::Unix);
        let passed = self.driver.post(to, &mail, Some(socket.as_fd()));
        if !passed {
            ledger.clients_add(to, -1);
        }
        passed
    }

    /// Serves a client here, if the core takes it.
    pub(crate) fn admit(&mut self, socket: OwnedFd, peer: Peer) {
        let mut sink = sink!(self, None);
        if let Some(id) = self.core.handle_accept(peer, self.now, &mut sink) {
            if peer != Peer::Unix {
                net::spread_keepalive(&socket, id.index());
            }
            self.driver.adopt(Conn::Client(id), socket);
        }
        self.driver.submit(None);
    }

    fn handle_commands(&mut self) {
        self.place.commands.silence();
        while let Some(command) = self.place.commands.next() {
            match command {
                Command::Stop => {
                    self.stop_accepting();
                    self.core.handle_stop(self.now, &mut sink!(self, None));
                }
                Command::StopNow => {
                    self.stop_accepting();
                    self.core.handle_stop_now(self.now, &mut sink!(self, None));
                }
                Command::Keys(keys) => {
                    self.core.set_server_keys(keys, self.now, &mut sink!(self, None));
                }
                Command::Publish => self.publish(),
            }
            self.driver.submit(None);
        }
    }

    fn stop_accepting(&mut self) {
        self.stopping = true;
        self.place.ledger.stop_accepting();
        self.driver.stop_listening();
    }

    /// Puts the counters where other threads and processes may read them.
    fn publish(&mut self) {
        let mut rows = self.core.publish();
        rows.extend(self.driver.rows());
        rows.push(("engine_turns", self.turns));
        rows.push(("engine_events_dropped", self.place.events.dropped()));
        self.place.shared.publish(rows);
    }
}

/// Tells the core of a completion that carries no bytes.
pub(crate) fn tell<P: Protocol, D: Driver, C>(
    core: &mut P,
    completion: &Completion<C>,
    now: Now,
    sink: &mut EngineSink<'_, D>,
) {
    match *completion {
        Completion::Connected(Conn::Server(id)) => core.handle_server_connected(id, now, sink),
        Completion::Connected(Conn::Canceller(id)) => {
            core.handle_canceller_connected(id, now, sink)
        }
        Completion::Eof(Conn::Client(id)) => core.handle_client_eof(id, now, sink),
        Completion::Gone(Conn::Client(id), _) => core.handle_client_gone(id, now, sink),
        Completion::Gone(Conn::Server(id), why) => core.handle_server_gone(id, why, now, sink),
        Completion::Gone(Conn::Canceller(id), _) => core.handle_canceller_gone(id, now, sink),
        Completion::Eof(Conn::Server(id)) => core.handle_server_gone(id, Gone::Eof, now, sink),
        Completion::Eof(Conn::Canceller(id)) => core.handle_canceller_gone(id, now, sink),
        Completion::Congested(conn) => core.handle_congested(conn, now, sink),
        Completion::Drained(conn) => core.handle_drained(conn, now, sink),
        Completion::Passed(conn, passed) => core.handle_passed(conn, passed, now, sink),
        Completion::Connected(Conn::Client(_))
        | Completion::Accepted(..)
        | Completion::Received(..)
        | Completion::Mail(..)
        | Completion::Woken
        | Completion::Notice(_) => {}
    }
}
