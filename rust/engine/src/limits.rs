//! Every limit of the engine, with unit and reason. The core's own are in `proxy_core::limits`.

/// Bytes of the receive buffer: a turn of a large result costs one system call for each 64 KiB, and
/// the buffer still fits a core's cache beside the work that is done with it.
pub(crate) const RECEIVE_BYTES: usize = 64 * 1024;
/// Receives from one socket in one turn, so that a flood does not starve its neighbours.
pub(crate) const RECEIVES_PER_TURN: u8 = 4;
/// Receives from a server whose sending side broke, to save its last words (its FATAL message).
pub(crate) const LAST_WORDS_RECEIVES: u8 = 16;
/// Blocks of the io_uring driver, a power of two: with `BUFFER_BYTES` 2 MiB a worker, of which only
/// what traffic has touched costs memory. The kernel fills some 20 to 50 of them a turn.
pub(crate) const BUFFERS: u16 = 128;
/// Bytes of a block: most messages fit.
pub(crate) const BUFFER_BYTES: usize = 16 * 1024;
/// Large blocks, a power of two: with `LARGE_BUFFER_BYTES` 1 MiB a worker while somebody sends
/// much, twice `TURN_BYTES_MAX`.
pub(crate) const LARGE_BUFFERS: u16 = 16;
/// Bytes of a large block: a large result takes one completion for each 64 KiB at best instead of
/// four, a tenth less CPU.
pub(crate) const LARGE_BUFFER_BYTES: usize = 64 * 1024;
/// Receives in a row that fill a small block, or would not have filled one, after which blocks of
/// the other size are used: a result of 64 KiB is not worth the change, which takes two operations.
pub(crate) const UNSUITED_MAX: u8 = 8;
/// Ranges that may stay in their blocks beyond a turn, since their peer is slow or reading is
/// paused; far below `BUFFERS`, so that the others never run out of blocks.
pub(crate) const BUFFERS_KEPT_MAX: usize = 32;
/// Bytes received in one turn, from all connections together: then they are sent before more is
/// taken, so that a flood neither fills a queue nor takes all blocks.
pub(crate) const TURN_BYTES_MAX: usize = 512 * 1024;
/// Bytes of a send that waits for room: few enough that a queue is seen to shrink, enough that a
/// large result takes few of them.
pub(crate) const FLIGHT_BYTES_MAX: usize = 128 * 1024;
/// Mean bytes of pieces up to which they are copied together: that is cheaper than a list of them.
pub(crate) const GATHER_BYTES_EACH: usize = 1024;
/// Vectors kept to be used again for bytes of our own.
pub(crate) const SPARES_MAX: usize = 64;
/// Bytes up to which such a vector is kept: 256 KiB in all.
pub(crate) const SPARE_BYTES_MAX: usize = 4 * 1024;
/// Entries submitted at a time; more take another system call.
pub(crate) const SUBMISSIONS_MAX: u32 = 1_024;
/// Completions that the kernel holds ready without allocating.
pub(crate) const COMPLETIONS_MAX: u32 = 8_192;
/// Waits for the kernel to clear up behind an ended ring where memory has no room for another:
/// 0.5 s in all, where a few milliseconds were seen.
pub(crate) const RING_WAITS_MAX: u32 = 50;
/// How long each is, in milliseconds.
pub(crate) const RING_WAIT_MS: i64 = 10;
/// Waits for operations to end when the driver ends, and how long each is, in milliseconds.
pub(crate) const END_ROUNDS_MAX: usize = 100;
/// See `END_ROUNDS_MAX`.
pub(crate) const END_WAIT_MS: u64 = 20;
/// Bytes queued towards a connection above which the core is told to pause the other side.
pub(crate) const QUEUE_HIGH: usize = 256 * 1024;
/// Bytes queued below which it is told to go on; far from the former, so that it does not flutter.
pub(crate) const QUEUE_LOW: usize = 64 * 1024;
/// Bytes of a received message whose answers may wait for others of the same turn; they are copied.
pub(crate) const DEFER_BYTES_MAX: usize = 2 * 1024;
/// How long a connection is at least open before the io_uring driver looks for its end apart from
/// receiving, in microseconds, and at most twice as long: most short ones are over by then.
pub(crate) const YOUNG_US: u64 = 1_000_000;
/// Sends that wait for each other: enough that a peer with many connections wakes once for several,
/// few enough that the first does not wait long (some 5 µs a message).
pub(crate) const DEFERRED_SENDS_MAX: usize = 16;
/// Slices of one `sendmsg`; a longer list takes a second call.
pub(crate) const SLICES_PER_SEND: usize = 32;
/// Connections accepted in one turn, so that a login storm does not starve the running queries.
pub(crate) const ACCEPTS_PER_TURN: u8 = 64;
/// How long accepting pauses when descriptors or memory ran out, in milliseconds.
pub(crate) const ACCEPT_PAUSE_MS: u64 = 1_000;
/// How often the io_uring driver asks for clients anew, in milliseconds: so long a new one waits at
/// most when the worker that the kernel woke for it hangs.
pub(crate) const ACCEPT_RENEW_MS: u64 = 1_000;
/// How long a closed connection may take to accept what was sent to it, in milliseconds.
pub(crate) const LINGER_MS: u64 = 5_000;
/// Closed connections that may linger at a time; the oldest gives way to a new one.
pub(crate) const LINGERING_MAX: usize = 1_024;
/// Longest wait in milliseconds: the heartbeat must move even when nothing happens.
pub(crate) const WAIT_MS_MAX: u64 = 1_000;
/// Readiness events of one wait.
pub(crate) const READY_PER_WAIT: usize = 256;
/// Events on their way to Python; more are dropped and counted.
pub(crate) const EVENTS_MAX: usize = 1_024;
/// Commands on their way to the engine.
pub(crate) const COMMANDS_MAX: usize = 256;
/// Bytes (or entries) of a reused list kept between calls; a rare larger one is given back.
pub(crate) const REUSE_MAX: usize = 64 * 1024;
/// Seconds without traffic before the first keepalive probe.
pub(crate) const KEEPALIVE_IDLE_S: u64 = 60;
/// Clients send their first probe this many seconds apart at most. The kernel rounds such times to
/// seconds, so the probes of clients that came together would leave together, and a queue on the
/// way (loopback's holds 1,000 packets) drops some: of 5,000 clients' 12,000 probes 3,000 were lost
/// that way, and none when spread. A client is reset when three of its own are lost in a row.
pub(crate) const KEEPALIVE_SPREAD_S: u64 = 60;
/// Seconds between keepalive probes.
pub(crate) const KEEPALIVE_INTERVAL_S: u64 = 10;
/// Unanswered keepalive probes after which the peer is dead.
pub(crate) const KEEPALIVE_PROBES: u32 = 3;
/// Retransmissions in a row without an answer after which a server is unreachable: about 25 s where
/// the round trip is short, instead of the kernel's quarter of an hour. TCP_USER_TIMEOUT would say
/// it in one option, but also kills a server that lives and only does not read for a while (a COPY
/// that waits for a lock): measured.
pub(crate) const SERVER_RETRANSMITS_MAX: u8 = 7;
/// How often the servers are looked at for that, in milliseconds.
pub(crate) const SERVER_LOOK_MS: u64 = 5_000;
/// Bytes of a mail to another worker: a server's state with its prepared statements fits, and the
/// mail into an inbox that Linux allows by default (208 KiB).
pub(crate) const MAIL_BYTES_MAX: usize = 192 * 1024;
/// Descriptors of a mail: Linux's own SCM_MAX_FD.
pub(crate) const MAIL_DESCRIPTORS_MAX: usize = 253;
/// Mails taken from the inbox in one turn, so that a burst does not starve the running queries.
pub(crate) const MAILS_PER_TURN: u8 = 64;
/// Bytes of the settings: some 100,000 users.
pub(crate) const SETTINGS_BYTES_MAX: u64 = 64 << 20;
/// Looks in a row, `WAIT_MS_MAX` apart, after which a worker whose heartbeat stands still gets no
/// new clients: one miss can be two clocks slightly apart.
pub(crate) const BEATS_MISSED_MAX: u8 = 2;
