//! The loop: wait, read the clock once, hand each completion to the core, carry its effects out.
//!
//! One turn is one wait. Nothing here blocks but the wait, and the core is never entered while it
//! is at work: what a send brings to light (a broken peer, a long queue) is a completion of its
//! own. Next on the path of a query: `epoll.rs`, then the core's `core.rs`.

use std::io;
use std::sync::Arc;

use proxy_core::ids::Conn;
use proxy_core::sink::{Chunk, Gone, Now};
use rustix::time::{ClockId, clock_gettime};

use crate::driver::{Completion, Driver, Received};
use crate::handle::Shared;
use crate::limits::WAIT_MS_MAX;
use crate::protocol::Protocol;
use crate::ring::{Command, CommandReceiver, EventSender};
use crate::sink::EngineSink;

/// Reads the monotonic clock, in microseconds.
pub(crate) fn clock() -> Now {
    let time = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let micros = u64::try_from(time.tv_nsec / 1000).unwrap_or(0);
    Now(seconds * 1_000_000 + micros)
}

/// A core, a driver and the rings between them and Python.
pub(crate) struct Engine<P, D> {
    core: P,
    driver: D,
    events: EventSender,
    commands: CommandReceiver,
    shared: Arc<Shared>,
    now: Now,
    published: Now,
    turns: u64,
    stopping: bool,
}

/// A sink over the engine's fields but the core, which the borrow checker wants to see apart.
macro_rules! sink {
    ($engine:ident, $chunk:expr) => {
        EngineSink {
            driver: &mut $engine.driver,
            events: &mut $engine.events,
            chunk: $chunk,
            now: $engine.now,
        }
    };
}

impl<P: Protocol, D: Driver> Engine<P, D> {
    /// Puts an engine together; it runs in the calling thread.
    pub(crate) fn new(
        core: P,
        driver: D,
        events: EventSender,
        commands: CommandReceiver,
        shared: Arc<Shared>,
    ) -> Self {
        let now = clock();
        Self {
            core,
            driver,
            events,
            commands,
            shared,
            now,
            published: now,
            turns: 0,
            stopping: false,
        }
    }

    /// Runs until the core has stopped and the last bytes are delivered.
    ///
    /// # Errors
    /// The driver is broken: a bug of ours.
    pub(crate) fn run(&mut self) -> io::Result<()> {
        while !self.is_finished() {
            self.turn(WAIT_MS_MAX)?;
        }
        self.publish();
        Ok(())
    }

    /// Ends the engine, which closes every socket, and keeps the ring to Python.
    pub(crate) fn into_events(self) -> EventSender {
        self.events
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
        self.shared.beat();
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
        if self.now.since(self.published) >= WAIT_MS_MAX * 1000 {
            self.publish();
        }
        Ok(())
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
            Completion::Accepted(socket, peer) => {
                let mut sink = sink!(self, None);
                if let Some(id) = self.core.handle_accept(peer, self.now, &mut sink) {
                    self.driver.adopt(id, socket);
                }
                self.driver.submit(None);
            }
            Completion::Woken => self.handle_commands(),
            Completion::Notice(event) => self.events.send(event),
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

    fn handle_commands(&mut self) {
        self.commands.silence();
        while let Some(command) = self.commands.next() {
            let mut sink = sink!(self, None);
            match command {
                Command::Stop => {
                    self.stopping = true;
                    sink.driver.stop_listening();
                    self.core.handle_stop(self.now, &mut sink);
                }
                Command::StopNow => {
                    self.stopping = true;
                    sink.driver.stop_listening();
                    self.core.handle_stop_now(self.now, &mut sink);
                }
                Command::Keys(keys) => self.core.set_server_keys(keys, self.now, &mut sink),
                Command::Publish => self.publish(),
            }
            self.driver.submit(None);
        }
    }

    /// Puts the counters where other threads may read them.
    fn publish(&mut self) {
        self.published = self.now;
        let mut rows = self.core.rows();
        rows.extend(self.driver.rows());
        rows.push(("engine_turns", self.turns));
        rows.push(("engine_events_dropped", self.events.dropped()));
        self.shared.publish(rows);
    }
}

/// Tells the core of a completion that carries no bytes.
fn tell<P: Protocol, D: Driver, C>(
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
        Completion::Connected(Conn::Client(_))
        | Completion::Accepted(..)
        | Completion::Received(..)
        | Completion::Woken
        | Completion::Notice(_) => {}
    }
}
