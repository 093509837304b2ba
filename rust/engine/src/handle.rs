//! Starting the engine thread, and the handle by which the rest of the process talks to it.
//!
//! The handle never touches a socket or the core: it sends commands, takes events out and reads
//! counters. If the engine thread panics the process ends, never half of it. Next: `engine.rs`.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
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
    finished: AtomicBool,
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

    /// The counters published last.
    #[cfg(test)]
    pub(crate) fn rows(&self) -> Rows {
        self.snapshot.lock().unwrap_or_else(PoisonError::into_inner).rows.clone()
    }
}

/// An engine. Dropping it ends every client.
#[derive(Debug)]
pub struct Handle {
    thread: Mutex<Thread>,
    commands: CommandSender,
    events: EventReceiver,
    shared: Arc<Shared>,
}

/// The engine thread's life: made, running, joined.
#[derive(Debug)]
enum Thread {
    Ready(Box<Start>),
    Running(JoinHandle<()>),
    Ended,
}

/// What the new thread needs; the core itself is built there.
#[derive(Debug)]
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
    let mut engine = Engine::new(core, driver, events, commands, Arc::clone(&shared));
    let outcome = engine.run();
    let mut events = engine.into_events();
    if let Err(error) = outcome {
        let text = format!("the engine's loop has failed: {error}");
        events.send(Event::Log { level: Level::Error, text });
    }
    // The reader looks whether the engine has ended whenever the bell rings.
    shared.finished.store(true, Ordering::Release);
    events.ring();
}

impl Handle {
    /// Makes an engine that does nothing yet; commands and its event descriptor work already.
    ///
    /// # Errors
    /// The process is out of descriptors, or a listener is no socket.
    pub fn new(settings: Settings) -> io::Result<Self> {
        let (events_in, events) = ring::events()?;
        let (commands, commands_out) = ring::commands()?;
        let shared = Arc::new(Shared::default());
        let mut seed = [0_u8; 32];
        getrandom(&mut seed, GetRandomFlags::empty())?;
        let start = Box::new(Start {
            config: settings.config,
            seed,
            driver: Epoll::new(settings.listeners, commands_out.fd())?,
            events: events_in,
            commands: commands_out,
            shared: Arc::clone(&shared),
        });
        Ok(Self { thread: Mutex::new(Thread::Ready(start)), commands, events, shared })
    }

    /// Starts the thread; a second call does nothing. Call it after the last fork, since threads do
    /// not survive one.
    ///
    /// # Errors
    /// The process is out of threads or memory; the engine is lost then.
    pub fn start(&self) -> io::Result<()> {
        let mut thread = self.thread();
        match std::mem::replace(&mut *thread, Thread::Ended) {
            Thread::Ready(start) => {
                let _blocked = Blocked::all()?;
                let running = thread::Builder::new()
                    .name("pyproxy-engine".to_owned())
                    .spawn(move || run_or_abort(*start))?;
                *thread = Thread::Running(running);
            }
            other => *thread = other,
        }
        Ok(())
    }

    fn command(&self, command: Command) -> io::Result<()> {
        match self.commands.send(command) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            outcome => outcome,
        }
    }

    fn thread(&self) -> MutexGuard<'_, Thread> {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner)
    }

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
    /// `WouldBlock`: the engine does not take commands. One that has ended has nothing to do.
    pub fn stop(&self) -> io::Result<()> {
        self.command(Command::Stop)
    }

    /// Ends every client with 57P01 and then the thread.
    ///
    /// # Errors
    /// As [`Handle::stop`].
    pub fn stop_now(&self) -> io::Result<()> {
        self.command(Command::StopNow)
    }

    /// Answers `Event::ServerKeysNeeded`: SCRAM keys derived with this salt and iteration count for
    /// the credential of that index.
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
        self.command(Command::Keys(ServerKeys { credential, salt, iterations, keys }))
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

    /// Whether the engine has run and ended.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.shared.finished.load(Ordering::Acquire)
    }

    /// Waits for the thread's end; call [`Handle::stop`] first.
    pub fn join(&self) {
        let thread = std::mem::replace(&mut *self.thread(), Thread::Ended);
        if let Thread::Running(thread) = thread {
            // A panic in it has ended the process: there is no error to look at.
            let _ = thread.join();
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // It fails only for an engine that takes no commands, which no telling can help.
        let _ = self.stop_now();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use std::collections::BTreeMap;
    use std::ffi::OsString;
    use std::fs;
    use std::net::{TcpListener, TcpStream};
    use std::sync::{Mutex, PoisonError};

    use proxy_core::config::{BudgetLimit, Config, PoolMode};
    use proxy_core::sink::Address;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::{Handle, Settings};
    use crate::listen::Listener;

    fn handle() -> (Handle, TcpListener) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let config = Config {
            name: "test".to_owned(),
            worker: 0,
            worker_generation: 1,
            allow: Vec::new(),
            client_connections_max: 10,
            credentials: Vec::new(),
            targets: vec![Address::Tcp(listener.local_addr().unwrap())],
            target_name: "test".to_owned(),
            mode: PoolMode::Transaction,
            limit: BudgetLimit::Connections(1),
            min_connections: 0,
            max_idle_percent: 50,
            borrow_timeout_ms: 1_000,
            idle_timeout_ms: 0,
            max_lifetime_ms: 0,
            check_delay_ms: 0,
            idle_client_timeout_ms: 0,
            idle_transaction_timeout_ms: 0,
            query_timeout_ms: 0,
            query_wait_notify_ms: 0,
            login_timeout_ms: 1_000,
            connect_timeout_ms: 1_000,
            init_query: String::new(),
            prepared_statements_max: 10,
        };
        let copy = Listener::new(listener.try_clone().unwrap().into(), false).unwrap();
        (Handle::new(Settings { listeners: vec![copy], config }).unwrap(), listener)
    }

    /// Engines are started one at a time here, so that a test can tell which thread is its own.
    static ALONE: Mutex<()> = Mutex::new(());

    /// The status of each engine thread of this process, by thread.
    fn engine_threads() -> BTreeMap<OsString, String> {
        let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
        tasks
            .filter_map(|task| {
                let status = fs::read_to_string(task.path().join("status")).ok()?;
                Some((task.file_name(), status))
            })
            .filter(|(_, status)| status.starts_with("Name:\tpyproxy-engine\n"))
            .collect()
    }

    #[test]
    fn the_engine_thread_blocks_all_signals_and_its_starter_keeps_its_own() {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        // Threads on their way out, whose mask the kernel shows as empty.
        let others = engine_threads();
        let (handle, _listener) = handle();
        assert!(!handle.is_finished() && handle.heartbeat() == 0);
        handle.start().unwrap();
        handle.start().unwrap();
        assert!(!handle.stats().is_empty(), "the thread answers");
        let mut threads = engine_threads();
        threads.retain(|thread, _| !others.contains_key(thread));
        assert_eq!(threads.len(), 1, "one engine, one thread");
        let status = threads.into_values().next().unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:\t")).unwrap();
        let mask = u64::from_str_radix(mask, 16).unwrap();
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGCHLD, libc::SIGUSR1] {
            assert_ne!(mask & 1 << (signal - 1), 0, "signal {signal} is not blocked");
        }
        let own = fs::read_to_string("/proc/thread-self/status").unwrap();
        assert!(own.contains("SigBlk:\t0000000000000000"), "{own}");
    }

    #[test]
    fn a_stop_rings_the_bell_when_the_engine_has_ended_and_later_commands_do_nothing() {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let (handle, listener) = handle();
        handle.start().unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        handle.stop_now().unwrap();
        while !handle.is_finished() {
            let fd = handle.event_fd();
            let deadline = Timespec { tv_sec: 20, tv_nsec: 0 };
            let rung = poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&deadline)).unwrap();
            assert_eq!(rung, 1, "no bell");
            let _ = handle.drain(usize::MAX);
        }
        handle.join();
        handle.stop().unwrap();
        handle.stop_now().unwrap();
        assert!(!handle.stats().is_empty(), "the last counters stay");
    }
}
