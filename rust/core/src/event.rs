//! What the core tells Python: facts for the log, and the one question it asks (server keys).
//!
//! Events never carry SQL text, parameters or secrets (I9). Next on the path: the engine's event
//! ring.

use crate::pin::PinReason;
use crate::sink::Peer;

/// How important a log line is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Level {
    /// Detail for a person who looks for a fault.
    Debug,
    /// Normal operation.
    Info,
    /// Something that the operator should look at.
    Warning,
    /// Something failed.
    Error,
}

/// One event; `kind()` names it in the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// A client could not log in. `reason` is for the log only: it may say more than the client was
    /// told.
    LoginFailed {
        /// Where the client came from.
        peer: Peer,
        /// The user it named.
        user: String,
        /// Why, for the operator.
        reason: &'static str,
    },
    /// A client was pinned to a server.
    Pinned {
        /// The client's number, unique on this host.
        client: u64,
        /// The pool's name.
        pool: String,
        /// Why.
        reason: PinReason,
    },
    /// A pin ended; `after_ms` is how long it lasted.
    Unpinned {
        /// The client's number.
        client: u64,
        /// How long it was pinned, in milliseconds.
        after_ms: u64,
    },
    /// A server connection could not be made or did not survive log-in.
    ServerFailed {
        /// The pool's name.
        pool: String,
        /// What happened, in words (the server's own message text included, never a secret).
        reason: String,
        /// The SQLSTATE if the server sent one.
        sqlstate: Option<[u8; 5]>,
    },
    /// Python shall have derived the SCRAM keys of a server login off the loop and answer with
    /// `Core::set_server_keys`.
    ServerKeysNeeded {
        /// Index of the credential in `Config::credentials`.
        credential: u32,
        /// The epoch of the settings that the index belongs to.
        epoch: u64,
        /// The server's salt.
        salt: Vec<u8>,
        /// The server's iteration count, at most `limits::SCRAM_ITERATIONS_MAX`.
        iterations: u32,
    },
    /// A peer broke the protocol and was disconnected.
    ProtocolViolation {
        /// `client` or `server`.
        side: &'static str,
        /// What was wrong.
        reason: &'static str,
    },
    /// The budget became known or changed.
    BudgetChanged {
        /// Server connections allowed now.
        allowed: u32,
    },
    /// A plain log line from the engine (accept paused, ring full, …).
    Log {
        /// How important.
        level: Level,
        /// `key=value` pairs or a sentence.
        text: String,
    },
}
