//! Starting the engine thread, and the handle by which the rest of the process talks to it.
//!
//! The handle never touches a socket or the core: it sends commands, takes events out and reads
//! counters. If the engine thread panics the process ends, never half of it. Next: `engine.rs`.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use proxy_core::config::Config;
use proxy_core::core::Core;
use proxy_core::event::{Event, Level};
use rustix::rand::{GetRandomFlags, getrandom};

use crate::engine::{Engine, clock};
use crate::epoll::Epoll;
use crate::listen::Listener;
use crate::protocol::ServerKeys;
use crate::ring::{self, Command, CommandReceiver, CommandSender, EventReceiver, EventSender};
use crate::signals::Blocked;

/// What an engine is started with.
#[derive(Debug)]
pub struct Settings {
    /// Where clients arrive.
    pub listeners: Vec<Listener>,
    /// What the core is made from.
    pub config: Config,
}

/// Counters as `name, value`.
pub type Rows = Vec<(&'static str, u64)>;

/// How long [`Handle::stats`] waits for fresh counters.
const STATS_WAIT: Duration = Duration::from_millis(250);

/// What the engine thread leaves for other threads to read.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    heartbeat: AtomicU64,
    snapshot: Mutex<Snapshot>,
    published: Condvar,
}

#[derive(Debug, Default)]
struct Snapshot {
    version: u64,
    rows: Rows,
}

impl Shared {
    /// Shows that the loop is alive.
    #[inline]
    pub(crate) fn beat(&self) {
        self.heartbeat.fetch_add(1, Ordering::Relaxed);
    }

    /// Leaves counters for whoever asks.
    pub(crate) fn publish(&self, rows: Rows) {
        let mut snapshot = self.snapshot.lock().unwrap_or_else(PoisonError::into_inner);
        snapshot.version += 1;
        snapshot.rows = rows;
        self.published.notify_all();
    }
}

/// A running engine. Dropping it ends every client.
#[derive(Debug)]
pub struct Handle {
    thread: Mutex<Option<JoinHandle<()>>>,
    commands: CommandSender,
    events: EventReceiver,
    shared: Arc<Shared>,
}

/// Starts the engine thread. Call it after the last fork: threads do not survive one.
///
/// # Errors
/// The process is out of descriptors, memory or threads, or a listener is no socket.
pub fn start(settings: Settings) -> io::Result<Handle> {
    let (events_in, events) = ring::events()?;
    let (commands, commands_out) = ring::commands()?;
    let shared = Arc::new(Shared::default());
    let driver = Epoll::new(settings.listeners, commands_out.fd())?;
    let mut seed = [0_u8; 32];
    getrandom(&mut seed, GetRandomFlags::empty())?;
    let start = Start {
        config: settings.config,
        seed,
        driver,
        events: events_in,
        commands: commands_out,
        shared: Arc::clone(&shared),
    };
    let blocked = Blocked::all()?;
    let thread = thread::Builder::new()
        .name("pyproxy-engine".to_owned())
        .spawn(move || run_or_abort(start))?;
    drop(blocked);
    Ok(Handle { thread: Mutex::new(Some(thread)), commands, events, shared })
}

/// What the new thread needs; the core itself is built there.
struct Start {
    config: Config,
    seed: [u8; 32],
    driver: Epoll,
    events: EventSender,
    commands: CommandReceiver,
    shared: Arc<Shared>,
}

/// Ends the process when it is dropped by a panic.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            std::process::abort();
        }
    }
}

fn run_or_abort(start: Start) {
    let _guard = AbortOnPanic;
    let Start { config, seed, driver, events, commands, shared } = start;
    let core = Core::new(config, seed, clock());
    let mut engine = Engine::new(core, driver, events, commands, shared);
    if let Err(error) = engine.run() {
        let text = format!("the engine's loop has failed: {error}");
        engine.events().send(Event::Log { level: Level::Error, text });
    }
}

impl Handle {
    /// The descriptor that is readable while events wait; valid as long as the handle.
    #[must_use]
    pub fn event_fd(&self) -> BorrowedFd<'_> {
        self.events.fd()
    }

    /// Takes up to `max` events out. Never blocks.
    #[must_use]
    pub fn drain(&self, max: usize) -> Vec<Event> {
        self.events.drain(max)
    }

    /// Drains: no new clients, the others end when they are idle; then the thread ends.
    ///
    /// # Errors
    /// `BrokenPipe`: the engine has ended. `WouldBlock`: it does not take commands.
    pub fn stop(&self) -> io::Result<()> {
        self.commands.send(Command::Stop)
    }

    /// Ends every client with 57P01 and then the thread.
    ///
    /// # Errors
    /// As [`Handle::stop`].
    pub fn stop_now(&self) -> io::Result<()> {
        self.commands.send(Command::StopNow)
    }

    /// Answers `Event::ServerKeysNeeded`: SCRAM keys derived with this salt and iteration count for the
    /// credential of that index.
    ///
    /// # Errors
    /// As [`Handle::stop`].
    pub fn set_server_keys(
        &self,
        credential: u32,
        salt: Vec<u8>,
        iterations: u32,
        keys: auth::ScramKeys,
    ) -> io::Result<()> {
        self.commands.send(Command::Keys(ServerKeys { credential, salt, iterations, keys }))
    }

    /// Counters, fresh if the engine answers within a quarter of a second, else those of its last
    /// second (or of its end).
    #[must_use]
    pub fn stats(&self) -> Rows {
        let snapshot = self.shared.snapshot.lock().unwrap_or_else(PoisonError::into_inner);
        let version = snapshot.version;
        if self.commands.send(Command::Publish).is_err() {
            return snapshot.rows.clone();
        }
        self.shared
            .published
            .wait_timeout_while(snapshot, STATS_WAIT, |snapshot| snapshot.version == version)
            .unwrap_or_else(PoisonError::into_inner)
            .0
            .rows
            .clone()
    }

    /// A number that grows at least once a second while the loop is alive.
    #[must_use]
    pub fn heartbeat(&self) -> u64 {
        self.shared.heartbeat.load(Ordering::Relaxed)
    }

    /// Whether the thread has ended.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits for the thread's end; call [`Handle::stop`] first.
    pub fn join(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // A panic in it has ended the process: there is no error to look at.
        let _ = thread.map(JoinHandle::join);
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // An engine that has ended needs no telling.
        let _ = self.stop_now();
    }
}
