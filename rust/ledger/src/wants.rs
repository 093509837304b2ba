//! Wants: which workers need a permit or a server, and since when their oldest client waits.
//!
//! A worker that finds no permit leaves one want here, that of its longest-waiting client, looks
//! for a permit once more (one may have been freed in between) and pokes those who have idle
//! servers. Whoever frees a permit, or has a server to spare, serves the oldest want. Next on the
//! path: `views.rs`.

use crate::Page;
use crate::layout::{ALIVE, WANTING, WORKERS_MAX, WorkerId, entry};
use crate::slots::{Offer, to};
use crate::word::Word;

/// What is on its way to a worker that wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Claim {
    /// Nothing: whoever can helps.
    Open = 0,
    /// Somebody closes a server so that a permit comes free.
    Permit = 1,
    /// Somebody hands a server over.
    Server = 2,
    /// What was promised will not come: the permit is free, for whoever takes it, or the server
    /// stays where it is.
    Lapsed = 3,
    /// Nothing, and a permit would be of no use: the worker may not log in now. A server of the
    /// pool would help.
    ServerOnly = 4,
}

impl Claim {
    /// Whether somebody may help.
    const fn is_open(self) -> bool {
        matches!(self, Self::Open | Self::Lapsed | Self::ServerOnly)
    }

    /// Whether a free permit would serve the want.
    const fn takes_permit(self) -> bool {
        !matches!(self, Self::Server | Self::ServerOnly)
    }
}

/// What became of a want that was published.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Published {
    /// It stood there already.
    Unchanged,
    /// It takes the place of one that was open: whoever could help knows already.
    Moved,
    /// Nothing was open before: a permit may have come free unseen, and others must be told.
    Opened,
}

/// Another worker's want.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Want {
    /// Who wants.
    pub worker: WorkerId,
    /// Since when its oldest client waits, in microseconds.
    pub since: u64,
    /// The pool, by a hash that all workers compute alike.
    pub pool: u64,
    /// What is on its way already.
    pub claim: Claim,
}

fn claim(word: u64) -> Claim {
    match word & CLAIM_MASK {
        0 => Claim::Open,
        1 => Claim::Permit,
        2 => Claim::Server,
        3 => Claim::Lapsed,
        _ => Claim::ServerOnly,
    }
}

const CLAIM_BITS: u32 = 3;
const CLAIM_MASK: u64 = (1 << CLAIM_BITS) - 1;

fn word_of(since: u64, claim: Claim) -> u64 {
    since << CLAIM_BITS | claim as u64
}

impl<W: Word> Page<W> {
    /// Leaves this worker's want: its oldest client waits since `since` (microseconds, not 0) for a
    /// server of `pool`; `servers_only`: it may not log in itself now. One that stands there
    /// already, and what has been claimed of it, stays, unless `renew`.
    pub fn publish_want(
        &self,
        since: u64,
        pool: u64,
        servers_only: bool,
        renew: bool,
    ) -> Published {
        let word = self.entry(self.me, entry::WANT_SINCE);
        let before = word.load();
        let stands = match claim(before) {
            Claim::ServerOnly => servers_only,
            Claim::Server => true,
            _ => !servers_only,
        };
        let is_same = before >> CLAIM_BITS == since
            && self.entry(self.me, entry::WANT_POOL).load() == pool
            && stands;
        if is_same && !renew {
            return Published::Unchanged;
        }
        self.entry(self.me, entry::WANT_POOL).store(pool);
        word.store(word_of(since, if servers_only { Claim::ServerOnly } else { Claim::Open }));
        if before == 0 {
            self.head(WANTING).set_bits(self.bit());
        }
        W::fence();
        if before != 0 && claim(before) == Claim::Open && !renew {
            Published::Moved
        } else {
            Published::Opened
        }
    }

    /// This worker wants nothing any more.
    pub fn clear_want(&self) {
        let word = self.entry(self.me, entry::WANT_SINCE);
        if word.load() != 0 {
            word.store(0);
            self.head(WANTING).clear_bits(self.bit());
        }
    }

    /// Whether another worker wants something: one read, for the path of a query.
    #[inline]
    #[must_use]
    pub fn others_want(&self) -> bool {
        self.head(WANTING).load() & !self.bit() != 0
    }

    fn wants(&self) -> impl Iterator<Item = Want> {
        let mut bits = self.head(WANTING).load() & !self.bit();
        std::iter::from_fn(move || {
            let worker = bits.trailing_zeros();
            bits &= bits.wrapping_sub(1);
            (worker < WORKERS_MAX as u32).then_some(worker as WorkerId)
        })
        .filter_map(|worker| {
            let word = self.entry(worker, entry::WANT_SINCE).load();
            let pool = self.entry(worker, entry::WANT_POOL).load();
            let since = word >> CLAIM_BITS;
            (word != 0).then_some(Want { worker, since, pool, claim: claim(word) })
        })
    }

    /// The oldest want of another worker that nobody serves yet, among those that this worker could
    /// serve, which `could` tells.
    #[must_use]
    pub fn oldest_want(&self, could: impl Fn(&Want) -> bool) -> Option<Want> {
        let open = self.wants().filter(|want| want.claim.is_open());
        open.filter(could).min_by_key(|want| want.since)
    }

    /// The oldest want of another worker that a free permit would serve.
    pub(crate) fn longest_wanting(&self) -> Option<Want> {
        self.wants().filter(|want| want.claim.takes_permit()).min_by_key(|want| want.since)
    }

    /// How many other workers wait for a permit longer than `since`.
    pub(crate) fn older_wants(&self, since: u64) -> usize {
        self.wants().filter(|want| want.claim.takes_permit() && want.since < since).count()
    }

    /// Undertakes to serve a want; false if it has changed or somebody else was faster.
    pub fn claim_want(&self, want: &Want, with: Claim) -> bool {
        want.claim.is_open() && self.reclaim_want(want, with)
    }

    fn reclaim_want(&self, want: &Want, with: Claim) -> bool {
        let (from, to) = (word_of(want.since, want.claim), word_of(want.since, with));
        self.entry(want.worker, entry::WANT_SINCE).replace(from, to)
    }

    /// A permit has come free: one promise of a permit is kept. Whether the one it was made to gets
    /// it is another matter: an older want goes first, so it may have to ask again.
    pub(crate) fn keep_promise(&self) {
        let promised = self.wants().filter(|want| want.claim == Claim::Permit);
        if let Some(want) = promised.min_by_key(|want| want.since) {
            self.reclaim_want(&want, Claim::Lapsed);
        }
    }

    /// A server that was promised does not come; it is closed, so its permit will.
    pub fn promise_permit(&self, offer: Offer) {
        let promised = self.wants().find(|want| want.worker == to(offer.word));
        if let Some(want) = promised.filter(|want| want.claim == Claim::Server) {
            self.reclaim_want(&want, Claim::Permit);
        }
    }

    /// Whether what was promised to this worker has come free; it may have missed it.
    #[must_use]
    pub fn has_lapsed(&self) -> bool {
        claim(self.entry(self.me, entry::WANT_SINCE).load()) == Claim::Lapsed
    }

    /// Notes that a worker is to be poked; true if it has been already and has not looked since.
    #[must_use]
    pub fn rung(&self, worker: WorkerId) -> bool {
        usize::from(worker) >= WORKERS_MAX || self.entry(worker, entry::RUNG).swap(1) != 0
    }

    /// Allows the next poke; called before the page is looked at.
    pub fn silence(&self) {
        self.entry(self.me, entry::RUNG).swap(0);
        W::fence();
    }

    /// Other workers that serve and have idle servers.
    pub fn with_idle_servers(&self) -> impl Iterator<Item = WorkerId> {
        let alive = self.head(ALIVE).load() & !self.bit();
        (0..WORKERS_MAX as WorkerId).filter(move |worker| {
            alive >> worker & 1 == 1 && self.entry(*worker, entry::IDLE).load() > 0
        })
    }
}
