//! Where everything stands on the page.
//!
//! ```text
//!   head          24 words
//!   workers       64 × 64 words: a line of the worker's own, a line that others write, counters
//!   slots         capacity words, one a permit, side by side: a search reads few cache lines
//!   sides         capacity × 8 words: what belongs to a permit's server connection
//! ```
//! Next on the path: `slots.rs`.

use crate::word::Word;

/// A worker's number on this host, 0–63.
pub type WorkerId = u8;

/// Most workers of one service: one bit each in a word.
pub const WORKERS_MAX: usize = 64;
/// The handle of the supervisor, which holds no permit.
pub const SUPERVISOR: WorkerId = 64;
/// Counters that a worker may publish.
pub const STATS_MAX: usize = 48;

pub(crate) const MAGIC: usize = 0;
pub(crate) const CAPACITY: usize = 1;
/// Permits allowed now.
pub(crate) const ALLOWED: usize = 2;
/// The configured limit, as `budget.rs` writes it.
pub(crate) const LIMIT: usize = 3;
/// When the target was last asked for its limits, in microseconds; 0 = never or not to be trusted.
pub(crate) const LIMITS_READ_AT: usize = 4;
/// What ordinary users may reach of the target's `max_connections`; 0 = not known.
pub(crate) const USABLE: usize = 5;
/// A bit a worker that wants a permit or a server.
pub(crate) const WANTING: usize = 6;
/// A bit a worker whose engine runs.
pub(crate) const ALIVE: usize = 7;
/// A bit a worker that takes new clients.
pub(crate) const ACCEPTING: usize = 15;
/// Grows whenever a permit has been orphaned.
pub(crate) const ORPHANINGS: usize = 8;
/// No slot from here on has ever been taken.
pub(crate) const HIGH_WATER: usize = 9;
/// Grows whenever a worker has died.
pub(crate) const BURIALS: usize = 14;
/// Four words of a shared secret.
pub(crate) const SECRET: usize = 10;
/// Fewer permits than `ALLOWED`, because the target takes no more; 0 = it takes all. Upper half:
/// how many there were when it last refused one.
pub(crate) const CEILING: usize = 16;
/// When the ceiling last changed, in microseconds.
pub(crate) const CEILING_AT: usize = 17;

pub(crate) const MAGIC_VALUE: u64 = 0x7079_7072_6f78_7901;
const HEAD_WORDS: usize = 24;
const WORKER_WORDS: usize = 64;
const SIDE_WORDS: usize = 8;

/// Words of a worker's entry; the first eight are written by the worker alone.
pub(crate) mod entry {
    pub(crate) const HEARTBEAT: usize = 0;
    pub(crate) const INCARNATION: usize = 1;
    pub(crate) const EPOCH: usize = 2;
    pub(crate) const IDLE: usize = 3;
    pub(crate) const WAITING: usize = 4;
    pub(crate) const SERVERS: usize = 5;
    pub(crate) const PAUSED_BUSY: usize = 6;
    /// How its engine waits for sockets, as a number of the engine's.
    pub(crate) const IO: usize = 7;
    /// `since << 3 | claim` of the oldest want; 0 = none.
    pub(crate) const WANT_SINCE: usize = 8;
    pub(crate) const WANT_POOL: usize = 9;
    /// 1 while a poke is on its way.
    pub(crate) const RUNG: usize = 10;
    pub(crate) const CLIENTS: usize = 11;
    pub(crate) const STATS: usize = 16;
}

/// Words beside a slot.
pub(crate) mod side {
    /// When the slot was freed or orphaned, in microseconds.
    pub(crate) const SINCE: usize = 0;
    /// `1 << 63 | secret length << 32 | process number`; 0 = no cancel key.
    pub(crate) const KEY: usize = 1;
    /// Names the target that the server belongs to.
    pub(crate) const TARGET: usize = 2;
    /// The cancel secret: up to 32 bytes.
    pub(crate) const SECRET: usize = 3;
}

/// How many words a page for so many permits has.
#[must_use]
pub const fn words_for(slots: u32) -> usize {
    HEAD_WORDS + WORKERS_MAX * WORKER_WORDS + slots as usize * (1 + SIDE_WORDS)
}

/// Prepares a page of zeroed words, once, before anybody uses it. `secret` must be random.
///
/// Words beyond [`words_for`] stay as they are; fewer words hold fewer slots than asked for.
pub fn format<W: Word>(words: &[W], slots: u32, secret: [u8; 32]) {
    debug_assert!(words.len() >= words_for(slots), "the page is too small for its slots");
    let Some(head) = words.get(..HEAD_WORDS) else { return };
    head[CAPACITY].store(u64::from(slots));
    head[ALLOWED].store(1);
    for (part, at) in secret.chunks_exact(8).zip(SECRET..) {
        let bytes = part.try_into().unwrap_or_default();
        head[at].store(u64::from_ne_bytes(bytes));
    }
    head[MAGIC].store(MAGIC_VALUE);
}

impl<W: Word> crate::Page<W> {
    #[inline]
    pub(crate) fn head(&self, word: usize) -> &W {
        &self.words[word]
    }

    #[inline]
    pub(crate) fn entry(&self, worker: WorkerId, word: usize) -> &W {
        let worker = usize::from(worker).min(WORKERS_MAX - 1);
        &self.words[HEAD_WORDS + worker * WORKER_WORDS + word]
    }

    #[inline]
    pub(crate) fn slot(&self, slot: u32) -> &W {
        &self.words[HEAD_WORDS + WORKERS_MAX * WORKER_WORDS + slot as usize]
    }

    #[inline]
    pub(crate) fn side(&self, slot: u32, word: usize) -> &W {
        let sides = HEAD_WORDS + WORKERS_MAX * WORKER_WORDS + self.capacity as usize;
        &self.words[sides + slot as usize * SIDE_WORDS + word]
    }
}
