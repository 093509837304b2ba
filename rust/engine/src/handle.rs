//! Starting the engine thread, and the handle by which the rest of the process talks to it.
//!
//! The handle never touches a socket or the core: it sends commands, takes events out and reads
//! counters. If the engine thread panics the process ends, never half of it. Next: `engine.rs`.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use ledger::Ledger;
use proxy_core::config::Config;
use proxy_core::core::{Core, Home, KeysAnswer};
use proxy_core::event::{Event, Level};
use rustix::rand::{GetRandomFlags, getrandom};

use crate::driver::{Backend, Driver};
use crate::engine::{Engine, Place, clock};
use crate::epoll::Epoll;
use crate::listen::Listener;
use crate::post::Post;
use crate::ring::{self, Command, CommandSender, EventReceiver, EventSender};
use crate::settings::{self, Parse, Passwords, StartError};
use crate::signals::Blocked;
use crate::uring::Uring;

/// What an engine is started with.
#[derive(Debug)]
pub struct Setup {
    /// The way to ask the kernel.
    pub backend: Backend,
    /// Where clients arrive, by the supervisor's ids.
    pub listeners: Vec<(u32, Listener)>,
    /// The page, as this worker.
    pub ledger: Ledger,
    /// Which start of a worker this is, counted over the service, from 1.
    pub incarnation: u64,
    /// The epoch of the settings, from 1.
    pub epoch: u64,
    /// The settings: a file in memory that is only read.
    pub settings: OwnedFd,
    /// How their text is read, also that of later epochs.
    pub parse: Parse,
    /// The way to and from other processes.
    pub post: Post,
}

/// Counters as `name, value`.
pub type Rows = Vec<(&'static str, u64)>;

/// How long [`Handle::stats`] waits for fresh counters.
const STATS_WAIT: Duration = Duration::from_millis(250);

/// What the engine thread leaves for other threads to read.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// For the keys that other threads derive.
    pub(crate) passwords: Passwords,
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
    ledger: Ledger,
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
    driver: AnyDriver,
    place: Place,
}

/// One of the drivers, until the thread runs that is made for it.
#[derive(Debug)]
enum AnyDriver {
    Epoll(Box<Epoll>),
    Uring(Box<Uring>),
}

impl AnyDriver {
    fn new(
        backend: Backend,
        wake: BorrowedFd<'_>,
        post: Post,
        listeners: Vec<(u32, Listener)>,
    ) -> io::Result<Self> {
        Ok(match backend {
            Backend::Epoll => {
                let mut driver = Epoll::new(wake, post)?;
                driver.set_listeners(listeners)?;
                Self::Epoll(Box::new(driver))
            }
            Backend::Uring => {
                let mut driver = Uring::new(wake, post)?;
                driver.set_listeners(listeners)?;
                Self::Uring(Box::new(driver))
            }
        })
    }
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
    let Start { config, seed, driver, place } = start;
    let shared = Arc::clone(&place.shared);
    let home = Home { ledger: place.ledger.clone(), incarnation: place.incarnation, seed };
    let core = Core::new(config, place.epoch, home, clock());
    let events = match driver {
        AnyDriver::Epoll(driver) => run(core, *driver, place),
        AnyDriver::Uring(driver) => run(core, *driver, place),
    };
    // The reader looks whether the engine has ended whenever the bell rings.
    shared.finished.store(true, Ordering::Release);
    events.ring();
}

/// Runs an engine to its end; the ring to Python is left.
fn run(core: Core, driver: impl Driver, place: Place) -> EventSender {
    let mut engine = Engine::new(core, driver, place);
    let outcome = engine.run();
    let mut events = engine.into_events();
    if let Err(error) = outcome {
        let text = format!("the engine's loop has failed: {error}");
        events.send(Event::Log { level: Level::Error, text });
    }
    events
}

impl Handle {
    /// Makes an engine that does nothing yet; commands and its event descriptor work already.
    ///
    /// # Errors
    /// The settings do not fit, the process is out of descriptors, a descriptor is of a wrong kind,
    /// or the kernel lacks what the backend needs.
    pub fn new(setup: Setup) -> Result<Self, StartError> {
        let Setup { backend, listeners, ledger, incarnation, epoch, settings, parse, post } = setup;
        let (events_in, events) = ring::events()?;
        let (commands, commands_out) = ring::commands()?;
        let shared = Arc::new(Shared::default());
        let config = settings::load(settings, parse)?;
        shared.passwords.keep(epoch, &config);
        let mut seed = [0_u8; 32];
        getrandom(&mut seed, GetRandomFlags::empty()).map_err(io::Error::from)?;
        let driver = AnyDriver::new(backend, commands_out.fd(), post, listeners)?;
        let place = Place {
            ledger: ledger.clone(),
            incarnation,
            epoch,
            parse,
            events: events_in,
            commands: commands_out,
            shared: Arc::clone(&shared),
        };
        let start = Box::new(Start { config, seed, driver, place });
        Ok(Self { thread: Mutex::new(Thread::Ready(start)), commands, events, shared, ledger })
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

    /// Answers `Event::ServerKeysNeeded` with the fields that it came with: derives the SCRAM keys
    /// of that credential's password and sends them to the engine. Takes about a quarter of a
    /// millisecond for a thousand iterations. Settings that are not in force any more need no keys:
    /// nothing happens.
    ///
    /// # Errors
    /// As [`Handle::stop`].
    pub fn derive_server_keys(
        &self,
        credential: u32,
        epoch: u64,
        salt: Vec<u8>,
        iterations: u32,
    ) -> io::Result<()> {
        let Some(password) = self.shared.passwords.find(epoch, credential) else { return Ok(()) };
        let keys = auth::ScramKeys::derive(password.expose(), &salt, iterations);
        self.command(Command::Keys(KeysAnswer { credential, epoch, salt, iterations, keys }))
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
        self.ledger.worker_view(self.ledger.me()).heartbeat
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

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::{Backend, Handle, Setup, StartError};
    use crate::listen::Listener;
    use crate::page::Page;
    use crate::testbed::{memory, parse, posts};

    fn setup(backend: Backend) -> (Setup, TcpListener) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let copy = Listener::new(listener.try_clone().unwrap().into(), false).unwrap();
        let setup = Setup {
            backend,
            listeners: vec![(1, copy)],
            ledger: Page::create(4).unwrap().ledger(0).unwrap(),
            incarnation: 7,
            epoch: 3,
            settings: memory("settings"),
            parse,
            post: posts(1).remove(0),
        };
        (setup, listener)
    }

    fn handle(backend: Backend) -> (Handle, TcpListener) {
        let (setup, listener) = setup(backend);
        (Handle::new(setup).unwrap(), listener)
    }

    #[test]
    fn settings_that_do_not_fit_are_refused_with_their_reason() {
        let (setup, _listener) = setup(Backend::Epoll);
        let wrong = Handle::new(Setup { settings: memory("nonsense"), ..setup }).unwrap_err();
        assert!(matches!(wrong, StartError::Settings(why) if why.contains("nonsense")));
    }

    #[test]
    fn a_started_engine_shows_itself_on_the_page_and_disappears_when_it_drains() {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let (setup, _listener) = setup(Backend::Epoll);
        let ledger = setup.ledger.clone();
        let handle = Handle::new(setup).unwrap();
        assert!(!ledger.worker_view(0).alive);
        handle.start().unwrap();
        assert!(!handle.stats().is_empty(), "the thread answers");
        let view = ledger.worker_view(0);
        assert_eq!((view.alive, view.incarnation, view.epoch), (true, 7, 3));
        assert!(view.heartbeat > 0);
        handle.stop().unwrap();
        handle.join();
        assert!(!ledger.worker_view(0).alive);
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
        let (handle, _listener) = handle(Backend::Epoll);
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
        stop_with_a_client(Backend::Epoll);
    }

    #[test]
    fn so_it_does_with_io_uring() {
        stop_with_a_client(Backend::Uring);
    }

    fn stop_with_a_client(backend: Backend) {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let (handle, listener) = handle(backend);
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
