//! Permits: one word each, and the steps by which it changes hands.
//!
//! ```text
//!              take            confirm           offer                accept (by the other)
//!   FREE ───────────► CONNECTING ────► HELD ───────────► TRANSIT ───────────► HELD
//!    ▲                    │             │ ▲  take_back      │
//!    │ free               │ free        │ └────────────────┘
//!    ├────────────────────┴─────────────┤                   │
//!    │                                  │ orphan, bury: the holder is dead, or closed the socket
//!    │ free                             ▼                   ▼ without seeing the server's end
//!    └──────── RECLAIMING ◄───────── ORPHANED ◄──────── any state but FREE
//!                         adopt
//! ```
//! A permit in transit whose one side has died is left to the other side.
//! Every step is one compare-and-swap from the exact word that the actor knows, sequence number
//! included: whoever acts on old news fails and changes nothing. Next on the path: `wants.rs`.

use crate::layout::{
    ACCEPTING, ALIVE, BURIALS, HIGH_WATER, ORPHANINGS, SUPERVISOR, WANTING, WorkerId, entry, side,
};
use crate::word::Word;
use crate::{Page, STATS_MAX};

/// A freed permit is kept this long for workers whose clients have waited longer, in microseconds.
pub const GRANT_GRACE_US: u64 = 20_000;

const STATE_SHIFT: u32 = 60;
const FROM_SHIFT: u32 = 52;
const TO_SHIFT: u32 = 44;
const SEQUENCE_MASK: u64 = (1 << TO_SHIFT) - 1;

/// What a permit is used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum State {
    Free = 0,
    Connecting = 1,
    Held = 2,
    Transit = 3,
    Orphaned = 4,
    Reclaiming = 5,
}

pub(crate) fn state(word: u64) -> State {
    match word >> STATE_SHIFT {
        0 => State::Free,
        1 => State::Connecting,
        2 => State::Held,
        3 => State::Transit,
        4 => State::Orphaned,
        _ => State::Reclaiming,
    }
}

fn from(word: u64) -> WorkerId {
    (word >> FROM_SHIFT) as u8
}

pub(crate) fn to(word: u64) -> WorkerId {
    (word >> TO_SHIFT) as u8
}

/// The word that follows `before`.
fn next(before: u64, state: State, from: WorkerId, to: WorkerId) -> u64 {
    (state as u64) << STATE_SHIFT
        | u64::from(from) << FROM_SHIFT
        | u64::from(to) << TO_SHIFT
        | (before + 1) & SEQUENCE_MASK
}

/// Why there is no permit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// None is free.
    Full,
    /// What is free is left to workers whose clients have waited longer, or the target is so full
    /// that it is left alone for a moment; look again after [`GRANT_GRACE_US`].
    Reserved,
}

/// The right to hold one server connection. Not `Clone`: giving it away consumes it.
#[must_use = "a permit that is dropped is lost until its worker ends"]
#[derive(PartialEq, Eq, Debug)]
pub struct Permit {
    slot: u32,
    word: u64,
    is_probe: bool,
}

impl Permit {
    /// Which slot it is.
    #[must_use]
    pub const fn slot(&self) -> u32 {
        self.slot
    }

    /// Whether it was taken to see if the target takes more than it is known to take.
    #[must_use]
    pub const fn is_probe(&self) -> bool {
        self.is_probe
    }
}

/// A permit on its way to another worker, as it stands in the message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Offer {
    /// Which slot.
    pub slot: u32,
    /// The slot's word while it is on its way.
    pub word: u64,
}

/// A server's own process number and secret, by which its statements can be cancelled.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServerKey {
    /// Process number.
    pub pid: u32,
    /// Secret of 1–32 bytes; a longer one is not kept.
    pub secret: Box<[u8]>,
}

/// A permit whose server connection has lost its owner.
#[derive(Debug)]
pub struct Orphan {
    /// The permit, to be freed when the server has surely ended.
    pub permit: Permit,
    /// How to cancel what it left running; none if it had not logged in.
    pub key: Option<ServerKey>,
    /// The target, by the number that [`Page::confirm`] was given.
    pub target: u64,
}

impl<W: Word> Page<W> {
    /// Takes a free permit.
    ///
    /// `now` is in microseconds, `since` tells since when the oldest client waits that it is for
    /// (`u64::MAX`: none does).
    ///
    /// # Errors
    /// There is none for this worker now.
    pub fn take(&self, now: u64, since: u64) -> Result<Permit, Refused> {
        if self.is_shut(now) {
            return Err(Refused::Reserved);
        }
        match self.take_free(now, since) {
            Err(Refused::Full) if self.raise_ceiling(now) => self.take_free(now, since),
            taken => taken,
        }
    }

    fn take_free(&self, now: u64, since: u64) -> Result<Permit, Refused> {
        let older = self.older_wants(since);
        let mut left_to_others = 0;
        for slot in 0..self.reach() {
            let word = self.slot(slot).load();
            if state(word) != State::Free {
                continue;
            }
            let freed = self.side(slot, side::SINCE).load();
            if left_to_others < older && now < freed.saturating_add(GRANT_GRACE_US) {
                left_to_others += 1;
                continue;
            }
            let taken = next(word, State::Connecting, self.me, 0);
            if self.slot(slot).replace(word, taken) {
                self.raise_high_water(slot + 1);
                let is_probe = self.is_probing(self.busy());
                return Ok(Permit { slot, word: taken, is_probe });
            }
        }
        Err(if left_to_others > 0 { Refused::Reserved } else { Refused::Full })
    }

    /// Slots below this number may be taken. After the limit has fallen, those still held above it
    /// count, so that no number of takers passes the limit.
    fn reach(&self) -> u32 {
        let allowed = self.allowed();
        let high = u32::try_from(self.head(HIGH_WATER).load()).unwrap_or(u32::MAX);
        let is_busy = |slot: u32| state(self.slot(slot).load()) != State::Free;
        let mut above = (allowed..high.min(self.capacity)).filter(|slot| is_busy(*slot)).count();
        let mut reach = allowed;
        while above > 0 && reach > 0 && reach as usize + above > allowed as usize {
            reach -= 1;
            above += usize::from(is_busy(reach));
        }
        reach
    }

    fn raise_high_water(&self, slots: u32) {
        loop {
            let high = self.head(HIGH_WATER).load();
            if high >= u64::from(slots) || self.head(HIGH_WATER).replace(high, u64::from(slots)) {
                return;
            }
        }
    }

    pub(crate) fn used_slots(&self) -> u32 {
        let high = u32::try_from(self.head(HIGH_WATER).load()).unwrap_or(u32::MAX);
        high.min(self.capacity)
    }

    fn change(&self, slot: u32, word: u64, new: u64) -> bool {
        slot < self.capacity && self.slot(slot).replace(word, new)
    }

    /// The server of this permit has logged in; before its first statement its key is left here,
    /// so that others can cancel what this worker leaves behind. `target` is a number that names
    /// the target alike in every worker.
    ///
    /// False: the permit is not this worker's any more (the supervisor took it for dead).
    pub fn confirm(&self, permit: &mut Permit, key: Option<(u32, &[u8])>, target: u64) -> bool {
        self.side(permit.slot, side::TARGET).store(target);
        if let Some((pid, secret)) = key.filter(|(_, secret)| secret.len() <= 32) {
            for (at, part) in (side::SECRET..).zip(secret.chunks(8)) {
                let mut bytes = [0; 8];
                bytes[..part.len()].copy_from_slice(part);
                self.side(permit.slot, at).store(u64::from_ne_bytes(bytes));
            }
            let length = (secret.len() as u64) << 32;
            self.side(permit.slot, side::KEY).store(1 << 63 | length | u64::from(pid));
        }
        let held = next(permit.word, State::Held, self.me, 0);
        let changed = self.change(permit.slot, permit.word, held);
        if changed {
            permit.word = held;
        }
        changed
    }

    /// Gives a permit back: its server's end has been seen. The worker to poke, if one wants it.
    pub fn free(&self, permit: Permit, now: u64) -> Option<WorkerId> {
        self.side(permit.slot, side::KEY).store(0);
        self.side(permit.slot, side::SINCE).store(now);
        self.change(permit.slot, permit.word, next(permit.word, State::Free, 0, 0));
        W::fence();
        self.keep_promise();
        self.longest_wanting().map(|want| want.worker)
    }

    /// Gives up a permit whose server's end has not been seen: it stays taken until somebody has
    /// cancelled what may run there.
    pub fn orphan(&self, permit: Permit, now: u64) {
        self.side(permit.slot, side::SINCE).store(now);
        self.change(permit.slot, permit.word, next(permit.word, State::Orphaned, 0, 0));
        self.head(ORPHANINGS).add(1);
    }

    /// Begins to hand a held permit to another worker. `Err`: that worker does not serve.
    ///
    /// # Errors
    /// The permit itself, unchanged in meaning: the other worker is not alive.
    pub fn offer(&self, permit: Permit, other: WorkerId) -> Result<Offer, Permit> {
        let word = next(permit.word, State::Transit, self.me, other);
        if !self.change(permit.slot, permit.word, word) {
            return Err(permit);
        }
        let offer = Offer { slot: permit.slot, word };
        W::fence();
        // Whoever buries the other worker clears this bit first and looks at the slots after it: it
        // finds this one, or we find the bit cleared.
        if self.is_alive(other) {
            return Ok(offer);
        }
        // Its burial may have taken the slot already: then the permit is void, and says so when it
        // is used.
        Err(self.take_back(offer).unwrap_or(permit))
    }

    /// Takes an offer back that could not be delivered. `None`: the other worker has died and the
    /// permit is orphaned; the connection must be closed.
    pub fn take_back(&self, offer: Offer) -> Option<Permit> {
        let held = next(offer.word, State::Held, self.me, 0);
        (from(offer.word) == self.me && self.change(offer.slot, offer.word, held))
            .then_some(Permit { slot: offer.slot, word: held, is_probe: false })
    }

    /// Takes an offer that has arrived with its connection. `None`: it is old news, or no offer to
    /// this worker at all; the connection must be closed.
    pub fn accept(&self, offer: Offer) -> Option<Permit> {
        let is_ours = state(offer.word) == State::Transit && to(offer.word) == self.me;
        let held = next(offer.word, State::Held, self.me, 0);
        (is_ours && self.change(offer.slot, offer.word, held)).then_some(Permit {
            slot: offer.slot,
            word: held,
            is_probe: false,
        })
    }

    /// Whether a permit is still this worker's.
    #[must_use]
    pub fn is_valid(&self, permit: &Permit) -> bool {
        permit.slot < self.capacity && self.slot(permit.slot).load() == permit.word
    }

    /// A number that has changed if permits have been orphaned since it was last asked for.
    #[must_use]
    pub fn orphanings(&self) -> u64 {
        self.head(ORPHANINGS).load()
    }

    /// A number that has changed if a worker has died since it was last asked for: what that one
    /// promised will not come.
    #[must_use]
    pub fn burials(&self) -> u64 {
        self.head(BURIALS).load()
    }

    /// Takes charge of one orphaned permit; `None` if there is none.
    pub fn adopt(&self) -> Option<Orphan> {
        for slot in 0..self.used_slots() {
            let word = self.slot(slot).load();
            let reclaiming = next(word, State::Reclaiming, self.me, 0);
            let is_left = state(word) == State::Orphaned || self.is_bequeathed(word);
            if is_left && self.slot(slot).replace(word, reclaiming) {
                let permit = Permit { slot, word: reclaiming, is_probe: false };
                let target = self.side(slot, side::TARGET).load();
                return Some(Orphan { permit, key: self.key(slot), target });
            }
        }
        None
    }

    /// Whether a permit in transit is this worker's affair because the other side has died: its
    /// mail is refused here, or could not be sent from here.
    fn is_bequeathed(&self, word: u64) -> bool {
        let (from, to) = (from(word), to(word));
        state(word) == State::Transit
            && (from == SUPERVISOR && to == self.me || to == SUPERVISOR && from == self.me)
    }

    fn key(&self, slot: u32) -> Option<ServerKey> {
        let word = self.side(slot, side::KEY).load();
        if word == 0 {
            return None;
        }
        let length = (word >> 32) as usize & 0x3F;
        let mut secret = Vec::with_capacity(32);
        for at in side::SECRET..side::SECRET + 4 {
            secret.extend_from_slice(&self.side(slot, at).load().to_ne_bytes());
        }
        secret.truncate(length);
        Some(ServerKey { pid: word as u32, secret: secret.into() })
    }

    /// A worker has died: what it held, sent or was being sent is orphaned, and it wants nothing
    /// any more. Gives the number of orphaned permits. Only the supervisor calls this, when the
    /// process has ended.
    pub fn bury(&self, worker: WorkerId) -> u32 {
        self.head(BURIALS).add(1);
        self.head(ALIVE).clear_bits(1 << (worker & 63));
        self.head(ACCEPTING).clear_bits(1 << (worker & 63));
        self.head(WANTING).clear_bits(1 << (worker & 63));
        self.entry(worker, entry::WANT_SINCE).store(0);
        self.entry(worker, entry::RUNG).store(0);
        W::fence();
        let mut orphaned = 0;
        for slot in 0..self.used_slots() {
            loop {
                let word = self.slot(slot).load();
                let Some(after) = self.after_burial(word, worker) else { break };
                if self.slot(slot).replace(word, after) {
                    orphaned += 1;
                    break;
                }
            }
        }
        for word in [entry::IDLE, entry::WAITING, entry::SERVERS, entry::PAUSED_BUSY] {
            self.entry(worker, word).store(0);
        }
        self.entry(worker, entry::CLIENTS).store(0);
        self.entry(worker, entry::EPOCH).store(0);
        for at in 0..STATS_MAX {
            self.entry(worker, entry::STATS + at).store(0);
        }
        if orphaned > 0 {
            self.head(ORPHANINGS).add(1);
        }
        orphaned
    }

    /// What a slot becomes when a worker is buried; none if it stays as it is.
    fn after_burial(&self, word: u64, worker: WorkerId) -> Option<u64> {
        let (from, to) = (from(word), to(word));
        match state(word) {
            // Nobody knows whether the socket has left: the side that lives makes sure that it is
            // closed, then it may have the permit (`adopt`).
            State::Transit if from == worker && self.is_alive(to) => {
                Some(next(word, State::Transit, SUPERVISOR, to))
            }
            State::Transit if to == worker && self.is_alive(from) => {
                Some(next(word, State::Transit, from, SUPERVISOR))
            }
            State::Free | State::Orphaned => None,
            State::Transit if to == worker => Some(next(word, State::Orphaned, 0, 0)),
            _ => (from == worker).then_some(next(word, State::Orphaned, 0, 0)),
        }
    }

    /// Permits that are not free.
    #[must_use]
    pub fn busy(&self) -> u32 {
        let busy = |slot: &u32| state(self.slot(*slot).load()) != State::Free;
        u32::try_from((0..self.used_slots()).filter(busy).count()).unwrap_or(u32::MAX)
    }

    /// Whether this permit is one too many: the configured limit has fallen.
    #[must_use]
    pub fn is_over(&self, permit: &Permit) -> bool {
        permit.slot >= self.configured() && self.busy() > self.configured()
    }
}
