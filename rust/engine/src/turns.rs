//! The loop in the caller's thread, one turn a call: so a program can count what a turn costs.
//!
//! Not in the product: the feature `turns` adds it, for the crate `bench`. The core, the loop and
//! the drivers are the real ones, put together as `handle.rs` does it. Next on the path:
//! `engine.rs`.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use proxy_core::core::{Core, Home};

use crate::driver::{Backend, Driver};
use crate::engine::{Engine, Place, clock};
use crate::epoll::Epoll;
use crate::handle::{Setup, Shared};
use crate::ring::{self, CommandSender, EventReceiver};
use crate::settings::{self, StartError};
use crate::uring::Uring;

/// An engine that does nothing but in [`Turns::turn`].
pub struct Turns {
    engine: Either,
    /// Nobody sends or reads: the rings are there because the loop looks at them.
    _ends: (EventReceiver, CommandSender),
}

enum Either {
    Epoll(Box<Engine<Core, Epoll>>),
    Uring(Box<Engine<Core, Uring>>),
}

impl Turns {
    /// Puts an engine together in this thread, which must run all its turns. What is random in
    /// other engines comes from `seed`.
    ///
    /// # Errors
    /// As [`Handle::new`](crate::Handle::new).
    pub fn new(setup: Setup, seed: [u8; 32]) -> Result<Self, StartError> {
        let Setup { backend, listeners, ledger, incarnation, epoch, settings, parse, post } = setup;
        let (events_in, events) = ring::events()?;
        let (commands, commands_out) = ring::commands()?;
        let config = settings::load(settings, parse)?;
        let core =
            Core::new(config, epoch, Home { ledger: ledger.clone(), incarnation, seed }, clock());
        let wake = commands_out.fd().try_clone_to_owned()?;
        ledger.begin(incarnation);
        let place = Place {
            ledger,
            incarnation,
            epoch,
            parse,
            events: events_in,
            commands: commands_out,
            shared: Arc::new(Shared::default()),
        };
        let engine = match backend {
            Backend::Epoll => {
                let mut driver = Epoll::new(wake.as_fd(), post)?;
                driver.set_listeners(listeners)?;
                Either::Epoll(Box::new(Engine::new(core, driver, place)))
            }
            Backend::Uring => {
                let mut driver = Uring::new(wake.as_fd(), post)?;
                driver.set_listeners(listeners)?;
                Either::Uring(Box::new(Engine::new(core, driver, place)))
            }
        };
        Ok(Self { engine, _ends: (events, commands) })
    }

    /// One turn over what has happened; never waits. This is what is counted, so it stays a
    /// function of its own.
    ///
    /// # Errors
    /// The driver is broken: a bug of ours.
    #[inline(never)]
    pub fn turn(&mut self) -> io::Result<()> {
        match &mut self.engine {
            Either::Epoll(engine) => engine.turn(0),
            Either::Uring(engine) => engine.turn(0),
        }
    }
}
