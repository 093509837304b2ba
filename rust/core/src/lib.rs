//! The sans-I/O multiplexer: clients, servers, pools, budget, pins, statements, cancel and timers.
//!
//! It owns no socket, clock, thread or randomness: bytes, time and a seed are arguments, and what
//! is to be done comes out through a [`sink::Sink`]. Files, in the order in which a query meets
//! them: `core` (entry points) → `client` → `pg/requests`, `pg/extended` → `pin`, `params`,
//! `prepared` → `pool`, `lending` → `server` → `pg/replies`, `owed` → `pg/release` → `stats`.
//! Beside them: `sharing`, `handover` and `reclaim` (several workers, one budget) and `settings`.

pub mod broken;
mod cancel;
#[cfg(any(debug_assertions, feature = "broken"))]
mod check;
mod client;
pub mod config;
pub mod core;
mod errors;
pub mod event;
pub mod handover;
pub mod ids;
mod keys;
mod lending;
pub mod limits;
mod owed;
mod params;
mod pg;
mod pin;
mod pool;
mod prepared;
mod reclaim;
mod server;
mod settings;
mod sharing;
pub mod show;
pub mod sink;
pub mod stats;
#[cfg(test)]
mod testbed;
#[cfg(test)]
mod tests_cancel;
#[cfg(test)]
mod tests_full;
#[cfg(test)]
mod tests_names;
#[cfg(test)]
mod tests_variables;
mod timer;
mod variables;

pub use pin::PinReason;
pub use pool::{PoolId, PoolTag};
