//! Proofs of identity, both roles: SCRAM-SHA-256 and md5, as PostgreSQL speaks them.
//!
//! Messages go in and out as bytes; random bytes, iteration limits and passwords are arguments.
//! There is no I/O, no clock and no randomness here, and nothing that could print a secret (I9):
//! types that hold one wipe it when dropped and have a `Debug` that does not show it. How the
//! messages are framed is pgwire's business. Next on the path: `scram_server.rs` for clients,
//! `scram_client.rs` for servers.

mod drbg;
mod scram;
mod secret;
mod verifier;

pub mod md5;
pub mod scram_client;
pub mod scram_server;

pub use drbg::Drbg;
pub use scram::{SCRAM_SHA_256, ScramError};
pub use scram_client::{Challenge, ScramClient, ScramKeys};
pub use scram_server::ScramServer;
pub use secret::Secret;
pub use verifier::{InvalidVerifier, Verifier};

/// HMAC-SHA-256 (RFC 2104) over the parts one after the other: a hash that only those who know the
/// key can predict. The caller makes sure that no two inputs look alike when joined.
#[must_use]
pub fn keyed_hash(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    scram::hmac(key, parts)
}

/// Whether two byte strings are equal, in a time that depends on their lengths only.
#[must_use]
pub fn constant_time_eq(a: &[u8], b: &[u8]) -> bool {
    subtle::ConstantTimeEq::ct_eq(a, b).into()
}

#[cfg(test)]
mod tests;
