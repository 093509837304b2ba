//! The host-wide page: who may hold a server connection, who waits for one, and how each worker is.
//!
//! The page is a flat array of 64-bit words in memory that all processes share. Each permit is one
//! word, changed by one compare-and-swap, so that a process can die between any two steps and leave
//! nothing half done (I4). This crate makes no system call and reads no clock: the engine maps the
//! memory and passes the time in. Next on the path: `layout.rs`, `slots.rs`, `wants.rs`.

mod budget;
mod layout;
mod slots;
mod views;
mod wants;
mod word;

pub use budget::{CEILING_US, Limit, TargetLimits};
pub use layout::{STATS_MAX, SUPERVISOR, WORKERS_MAX, WorkerId, format, words_for};
pub use slots::{GRANT_GRACE_US, Offer, Orphan, Permit, Refused, ServerKey};
pub use views::{BudgetView, WorkerView};
pub use wants::{Claim, Published, Want};
pub use word::Word;

use std::sync::atomic::AtomicU64;

/// The page as one process uses it, in the type that processes share.
pub type Ledger = Page<AtomicU64>;

/// The page as one process uses it: its words and the number of the worker that it is.
#[derive(Debug)]
pub struct Page<W: Word + 'static> {
    words: &'static [W],
    me: WorkerId,
    capacity: u32,
}

impl<W: Word> Clone for Page<W> {
    fn clone(&self) -> Self {
        Self { words: self.words, me: self.me, capacity: self.capacity }
    }
}

impl<W: Word> Page<W> {
    /// Uses a page that [`format()`] has prepared, as worker `me` (0–63) or as [`SUPERVISOR`].
    ///
    /// `None`: the words are no such page, or `me` is out of range; a fault of the caller.
    #[must_use]
    pub fn new(words: &'static [W], me: WorkerId) -> Option<Self> {
        let magic = words.get(layout::MAGIC)?.load();
        let capacity = u32::try_from(words.get(layout::CAPACITY)?.load()).ok()?;
        let fits = words.len() >= words_for(capacity);
        (magic == layout::MAGIC_VALUE && fits && me <= SUPERVISOR).then_some(Self {
            words,
            me,
            capacity,
        })
    }

    /// The worker that this handle acts for.
    #[must_use]
    pub const fn me(&self) -> WorkerId {
        self.me
    }

    /// This worker's bit; none for the supervisor.
    #[inline]
    pub(crate) const fn bit(&self) -> u64 {
        if self.me < SUPERVISOR { 1 << self.me } else { 0 }
    }

    /// A secret that all processes of the service share and nobody else knows: 32 bytes.
    #[must_use]
    pub fn secret(&self) -> [u8; 32] {
        let mut secret = [0; 32];
        for (part, at) in secret.chunks_exact_mut(8).zip(layout::SECRET..) {
            part.copy_from_slice(&self.words[at].load().to_ne_bytes());
        }
        secret
    }
}
