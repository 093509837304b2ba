//! The engine: one thread that owns every client and server socket of a worker.
//!
//! It turns readiness into calls of the core and the core's effects into system calls. It never
//! looks into the bytes, never takes a lock on the way of a query and never knows about Python.
//! Everything that decides is in `proxy-core`; everything that waits is here. Start reading at
//! `engine.rs` (the loop), then `driver.rs` (the seam), `epoll.rs` (its first driver), `batch.rs`
//! and `conn.rs`.

mod batch;
mod chunk;
mod conn;
mod driver;
mod engine;
mod epoll;
mod handle;
mod limits;
mod linger;
mod listen;
mod net;
mod poller;
mod protocol;
mod receive;
mod ring;
mod signals;
mod sink;
#[cfg(test)]
mod testbed;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_ends;

pub use handle::{Handle, Rows, Settings};
pub use listen::Listener;
