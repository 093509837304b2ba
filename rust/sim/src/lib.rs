//! The deterministic simulator: the real core between simulated clients and servers, under a seed.
//!
//! Everything that could differ between two runs comes from the seed: time, cuts, delays, faults,
//! what clients ask. Each client knows what a direct connection would have answered and compares.
//! After the faults comes a calm in which everybody must be served. Files, in the order of a step:
//! `rng`, `plan`, `settings` → `world` → `net`, `wire` → `workers` → `upstream` →
//! `client` (with its oracle) → `room` → `server` → `backend` → `checks`, `rush`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a simulator that is wrong must say so loudly"
)]

mod backend;
pub mod campaign;
mod checks;
mod client;
mod net;
mod plan;
mod rng;
mod room;
mod rush;
mod server;
mod settings;
mod upstream;
mod wire;
mod workers;
mod world;
