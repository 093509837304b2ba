//! The two rings between Python and the engine: events out, commands in.
//!
//! Both are bounded and never block the engine: a full event ring drops and counts. Each has an
//! eventfd; that of the events is written only when the reader may be asleep, so that a burst costs
//! one system call. This knows nothing of Python; next on the path is `handle.rs`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use proxy_core::core::KeysAnswer;
use proxy_core::event::Event;
use rustix::event::{EventfdFlags, eventfd};

use crate::limits::{COMMANDS_MAX, EVENTS_MAX};

/// A counter in the kernel that one side writes and the other waits for.
#[derive(Debug)]
struct Bell(OwnedFd);

impl Bell {
    fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    fn ring(&self) {
        // It can only fail when the counter is full, and then it rings already.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    fn silence(&self) {
        let _ = rustix::io::read(&self.0, &mut [0_u8; 8]);
    }
}

#[derive(Debug)]
struct EventBell {
    bell: Bell,
    rung: AtomicBool,
    dropped: AtomicU64,
}

/// The engine's end of the event ring.
#[derive(Debug)]
pub(crate) struct EventSender {
    ring: SyncSender<Event>,
    shared: Arc<EventBell>,
}

/// Python's end of the event ring.
#[derive(Debug)]
pub(crate) struct EventReceiver {
    ring: Mutex<Receiver<Event>>,
    shared: Arc<EventBell>,
}

/// Builds the event ring.
///
/// # Errors
/// The process is out of descriptors.
pub(crate) fn events() -> io::Result<(EventSender, EventReceiver)> {
    let (sender, receiver) = sync_channel(EVENTS_MAX);
    let (rung, dropped) = (AtomicBool::new(false), AtomicU64::new(0));
    let shared = Arc::new(EventBell { bell: Bell::new()?, rung, dropped });
    let sender = EventSender { ring: sender, shared: Arc::clone(&shared) };
    Ok((sender, EventReceiver { ring: Mutex::new(receiver), shared }))
}

impl EventSender {
    /// Puts an event into the ring, or counts it as dropped.
    pub(crate) fn send(&mut self, event: Event) {
        if self.ring.try_send(event).is_err() {
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if !self.shared.rung.swap(true, Ordering::SeqCst) {
            self.shared.bell.ring();
        }
    }

    /// Wakes the reader without an event.
    pub(crate) fn ring(&self) {
        self.shared.bell.ring();
    }

    /// Events dropped so far because the ring was full.
    pub(crate) fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }
}

impl EventReceiver {
    /// The descriptor to wait for: readable while there may be events.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.shared.bell.0.as_fd()
    }

    /// Takes up to `max` events out.
    pub(crate) fn drain(&self, max: usize) -> Vec<Event> {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.bell.silence();
        // From here on each new event rings again: a reader never sleeps on a ring with events in
        // it.
        self.shared.rung.store(false, Ordering::SeqCst);
        let events: Vec<Event> = ring.try_iter().take(max).collect();
        if events.len() == max && !self.shared.rung.swap(true, Ordering::SeqCst) {
            self.shared.bell.ring();
        }
        events
    }
}

/// What Python tells the engine.
pub(crate) enum Command {
    /// Take no more clients, end when the last has gone.
    Stop,
    /// End every client now.
    StopNow,
    /// SCRAM keys for a server login.
    Keys(KeysAnswer),
    /// Publish the counters.
    Publish,
}

/// Python's end of the command ring.
#[derive(Debug)]
pub(crate) struct CommandSender {
    ring: SyncSender<Command>,
    bell: Arc<Bell>,
}

/// The engine's end of the command ring.
#[derive(Debug)]
pub(crate) struct CommandReceiver {
    ring: Receiver<Command>,
    bell: Arc<Bell>,
}

/// Builds the command ring.
///
/// # Errors
/// The process is out of descriptors.
pub(crate) fn commands() -> io::Result<(CommandSender, CommandReceiver)> {
    let (sender, receiver) = sync_channel(COMMANDS_MAX);
    let bell = Arc::new(Bell::new()?);
    let sender = CommandSender { ring: sender, bell: Arc::clone(&bell) };
    Ok((sender, CommandReceiver { ring: receiver, bell }))
}

impl CommandSender {
    /// Puts a command into the ring and wakes the engine. Never blocks.
    ///
    /// # Errors
    /// `BrokenPipe`: the engine has ended. `WouldBlock`: it has not taken the last 256 commands
    /// yet.
    pub(crate) fn send(&self, command: Command) -> io::Result<()> {
        let sent = self.ring.try_send(command).map_err(|error| match error {
            TrySendError::Full(_) => io::ErrorKind::WouldBlock.into(),
            TrySendError::Disconnected(_) => io::ErrorKind::BrokenPipe.into(),
        });
        self.bell.ring();
        sent
    }
}

impl CommandReceiver {
    /// The descriptor to wait for.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.bell.0.as_fd()
    }

    /// Stops the bell; every command sent before is in the ring now.
    pub(crate) fn silence(&self) {
        self.bell.silence();
    }

    /// The next command.
    pub(crate) fn next(&self) -> Option<Command> {
        self.ring.try_recv().ok()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use std::os::fd::BorrowedFd;

    use proxy_core::event::Event;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::{commands, events};
    use crate::limits::EVENTS_MAX;

    fn is_readable(fd: BorrowedFd<'_>) -> bool {
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).unwrap() == 1
    }

    #[test]
    fn the_bell_rings_while_events_are_left_and_is_silent_when_none_is() {
        let (mut sender, receiver) = events().unwrap();
        assert!(!is_readable(receiver.fd()));
        for allowed in 0..3 {
            sender.send(Event::BudgetChanged { allowed });
        }
        assert!(is_readable(receiver.fd()));
        assert_eq!(receiver.drain(2).len(), 2);
        assert!(is_readable(receiver.fd()), "one event is left");
        assert_eq!(receiver.drain(2), [Event::BudgetChanged { allowed: 2 }]);
        assert!(!is_readable(receiver.fd()));
    }

    #[test]
    fn a_full_ring_drops_and_counts() {
        let (mut sender, receiver) = events().unwrap();
        for _ in 0..EVENTS_MAX + 7 {
            sender.send(Event::BudgetChanged { allowed: 1 });
        }
        assert_eq!(sender.dropped(), 7);
        assert_eq!(receiver.drain(usize::MAX).len(), EVENTS_MAX);
    }

    #[test]
    fn a_command_to_an_engine_that_has_ended_is_refused() {
        let (sender, receiver) = commands().unwrap();
        sender.send(super::Command::Stop).unwrap();
        assert!(is_readable(receiver.fd()));
        drop(receiver);
        let error = sender.send(super::Command::Stop).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    }
}
