//! Every limit of the core, with unit and reason. Nothing a peer sends makes a queue or a buffer
//! pass one.

/// Bytes of a start-up packet: PostgreSQL's own MAX_STARTUP_PACKET_LENGTH.
pub const STARTUP_BYTES_MAX: usize = 10_000;
/// Bytes of a password or SASL message: room for the longest tokens in use (64 KiB) with their
/// head.
pub const PASSWORD_BYTES_MAX: usize = 65_536 + 64;
/// Bytes of a message that must be looked at whole (Parse, Describe, Close, …, a Bind's two names).
/// A longer Parse or Query is streamed and, if it leaves state behind, pins.
pub const COLLECT_BYTES_MAX: usize = 65_536;
/// Bytes of a client's request held while it waits for a server; reading pauses beyond.
pub const HELD_BYTES_MAX: usize = 65_536;
/// Bytes of a ParameterStatus, BackendKeyData or CommandComplete that a server may send.
pub const SERVER_COLLECT_BYTES_MAX: usize = 65_536;
/// Iterations of SCRAM that a server may ask for: a hostile one must not buy seconds of CPU.
pub const SCRAM_ITERATIONS_MAX: u32 = 100_000;
/// Statement names one client may hold.
pub const CLIENT_STATEMENTS_MAX: usize = 10_000;
/// Bytes of statement text one client may hold by name.
pub const CLIENT_STATEMENT_BYTES_MAX: usize = 32 << 20;
/// Bytes of statement text one server may hold, unless a single batch needs more.
pub const SERVER_STATEMENT_BYTES_MAX: usize = 8 << 20;
/// Server connections of one pool that may be under way at a time.
pub const CONNECTS_IN_FLIGHT_MAX: u32 = 2;
/// First pause after a failed connect, in milliseconds; doubles up to the next.
pub const BACKOFF_FIRST_MS: u64 = 50;
/// Longest pause after failed connects, in milliseconds.
pub const BACKOFF_MAX_MS: u64 = 5_000;
/// Session variables that are followed for one client; with more it is pinned.
pub const CLIENT_VARIABLES_MAX: usize = 128;
/// Bytes of the statements that set them again: with the pool's parameters they fit into the mail
/// that hands a server to another worker, and a client cannot fill memory with them.
pub const CLIENT_VARIABLE_BYTES_MAX: usize = 64 * 1024;
/// Longest time a liveness check, a reset or a rollback may take, in milliseconds.
pub const HOUSEKEEPING_TIMEOUT_MS: u64 = 5_000;
/// Longest time a CancelRequest's connection may take, in milliseconds.
pub const CANCEL_TIMEOUT_MS: u64 = 10_000;
/// An idle server beyond `max_idle_connections_percent` is closed when it has not been needed for
/// this long, in milliseconds: closing at once would open the same connection again with the next
/// burst.
pub const EXCESS_IDLE_MS: u64 = 5_000;
/// A client's cancel waits until its request has been on its way to the server for this long, in
/// milliseconds: a signal that finds a backend which has not read the request yet does nothing.
pub const CANCEL_SETTLE_MS: u64 = 50;
/// CancelRequests forwarded at a time; more are dropped, as a busy server would.
pub const CANCELLERS_MAX: usize = 256;
/// CancelRequests on their way to one server; more say nothing new.
pub const CANCELS_PER_SERVER_MAX: u32 = 4;
/// Connections without an owner that are dealt with at a time.
pub const RECLAIMS_MAX: usize = 64;
/// Signals for a connection without an owner.
pub const RECLAIM_ROUNDS: u8 = 2;
/// How long a backend gets to end after each signal, in milliseconds.
pub const RECLAIM_PAUSE_MS: u64 = 150;
/// How many pauses more the signals for one such connection may take together, until their own
/// connections have ended: some 10 s, as `CANCEL_TIMEOUT_MS`.
pub const RECLAIM_PATIENCE: u8 = 66;
/// A server goes to another worker if a client there has waited this much longer, in microseconds.
/// A hand-over costs as much as a query: with 64 clients on 20 servers and two workers, 300 us made
/// one in twenty transactions move its server, and each transaction 5 % dearer.
pub const WANT_SAME_POOL_US: u64 = 1_000;
/// The same where a server must be closed and another be opened, in microseconds.
pub const WANT_OTHER_POOL_US: u64 = 50_000;
/// How often a pool that gets no permit looks again by itself, in milliseconds: a promise of a
/// worker that hangs is forgotten then.
pub const STARVED_LOOK_MS: u64 = 1_000;
/// Replies owed by one server; a client that pipelines more is not read until some have come.
pub const REPLIES_MAX: usize = 4_096;
/// Bytes of replies to a departed client that are read and thrown away before its query is
/// cancelled.
pub const ABANDONED_BYTES_MAX: u64 = 65_536;
/// How long the work of a departed client may go on before it is cancelled, in milliseconds.
pub const ABANDONED_MS: u64 = 5_000;
/// Pools (database, user, start-up parameters) a worker keeps; an authenticated client that varies
/// its start-up parameters without end gets an error beyond.
pub const POOLS_MAX: usize = 10_000;
/// How long the target's `max_connections` is trusted before the next server login reads it again.
pub const BUDGET_REREAD_MS: u64 = 30_000;
/// A query cancelled by `query_timeout` that still runs after this ends its client, in
/// milliseconds.
pub const CANCEL_GRACE_MS: u64 = 5_000;
/// How long the end of a connection that was told to end is awaited, in milliseconds.
pub const CLOSING_MS: u64 = 5_000;
/// The same when the worker stops, in milliseconds: what does not end is left to the others.
pub const STOPPING_CLOSING_MS: u64 = 500;
/// Parameters that a server may report.
pub const PARAMETERS_MAX: usize = 256;
