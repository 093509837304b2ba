//! The engine: one thread that owns every client and server socket of a worker.
//!
//! It turns readiness into calls of the core and the core's effects into system calls. It never
//! looks into the bytes, never takes a lock on the way of a query and never knows about Python.
//! Everything that decides is in `proxy-core`; everything that waits is here. Start reading at
//! `engine.rs` (the loop), then `driver.rs` (the seam), `epoll.rs` (its first driver), `batch.rs`
//! and `conn.rs`.

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
mod tests;
#[cfg(test)]
mod tests_ends;
#[cfg(test)]
mod tests_mail;

pub use descriptor::duplicate;
pub use handle::{Handle, Rows, Setup};
pub use listen::Listener;
pub use page::Page;
pub use panics::set_panic_file;
pub use post::Post;
pub use settings::{Parse, StartError};
