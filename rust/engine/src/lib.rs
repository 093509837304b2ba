//! The engine: one thread that owns every client and server socket of a worker.
//!
//! It turns readiness into calls of the core and the core's effects into system calls. It never
//! looks into the bytes, never takes a lock on the way of a query and never knows about Python.
//! Everything that decides is in `proxy-core`; everything that waits is here. Start reading at
//! `engine.rs` (the loop), then `driver.rs` (the seam), `epoll.rs` and `uring/mod.rs` (its two
//! drivers).

mod balance;
mod batch;
mod chunk;
mod conn;
mod counters;
mod delivery;
mod descriptor;
mod driver;
mod engine;
mod epoll;
mod handle;
mod limits;
mod linger;
mod listen;
mod mail;
mod net;
mod notes;
mod page;
mod panics;
mod passing;
mod poller;
mod post;
mod protocol;
mod receive;
mod ring;
mod settings;
mod signals;
mod sink;
mod table;
#[cfg(test)]
mod testbed;
#[cfg(test)]
mod tests_both;
#[cfg(feature = "turns")]
mod turns;
mod uring;

/// The tests of the loop, with the epoll driver.
#[cfg(test)]
#[path = "."]
mod with_epoll {
    pub(crate) type Bed = crate::testbed::Bed<crate::epoll::Epoll>;

    #[path = "tests.rs"]
    mod tests;
    #[path = "tests_ends.rs"]
    mod tests_ends;
    #[path = "tests_mail.rs"]
    mod tests_mail;
}

/// The same tests with the io_uring driver.
#[cfg(test)]
#[allow(clippy::duplicate_mod, reason = "each test is there once for every driver")]
#[path = "."]
mod with_uring {
    pub(crate) type Bed = crate::testbed::Bed<crate::uring::Uring>;

    #[path = "tests.rs"]
    mod tests;
    #[path = "tests_ends.rs"]
    mod tests_ends;
    #[path = "tests_mail.rs"]
    mod tests_mail;
}

pub use descriptor::duplicate;
pub use driver::Backend;
pub use handle::{Handle, Rows, Setup};
pub use listen::Listener;
pub use page::Page;
pub use panics::set_panic_file;
pub use post::Post;
pub use settings::{Parse, StartError};
#[cfg(feature = "turns")]
pub use turns::Turns;
pub use uring::probe;
