//! Pins: why a client keeps its server beyond the end of a transaction, and what ends that.
//!
//! Until a statement's effect is tracked and replayed, whatever may change session state pins its
//! client with a reason. A reset that the client runs ends the pins whose cause it removes. What
//! `DISCARD ALL` does not remove makes the server unfit for anybody else: it is closed. Next on the
//! path: `pool.rs`.

use sqlscan::{Effects, Reset};

use crate::sink::Now;

/// Why a client is pinned.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum PinReason {
    /// `SET`, `RESET` of a setting.
    SessionVariable,
    /// `SET ROLE`, `SET SESSION AUTHORIZATION`.
    Role,
    /// `set_config(…, false)`.
    SetConfig,
    /// SQL-level `PREPARE`, `EXECUTE`, `DEALLOCATE`.
    PreparedStatement,
    /// A temporary table, view or sequence.
    TemporaryObject,
    /// A session-level advisory lock.
    AdvisoryLock,
    /// A cursor `WITH HOLD`.
    HoldCursor,
    /// `LISTEN`.
    Listen,
    /// `LOAD`.
    Load,
    /// `nextval`, `setval`: `currval` and `lastval` must answer later.
    Sequence,
    /// `setseed`.
    Seed,
    /// A `DO` block with words that may change session state.
    DoBlock,
    /// A connection or replication origin that an extension keeps in the session.
    ForeignSession,
    /// `DISCARD` or `DEALLOCATE ALL` amid other statements.
    Discard,
    /// A statement too long to be kept for other servers.
    LongStatement,
    /// Text that cannot be judged (unterminated, or an encoding whose bytes hide quotes).
    Unsure,
}

impl PinReason {
    /// The reason's name in logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SessionVariable => "session_variable",
            Self::Role => "role",
            Self::SetConfig => "set_config",
            Self::PreparedStatement => "prepared_statement",
            Self::TemporaryObject => "temporary_object",
            Self::AdvisoryLock => "advisory_lock",
            Self::HoldCursor => "hold_cursor",
            Self::Listen => "listen",
            Self::Load => "load",
            Self::Sequence => "sequence",
            Self::Seed => "seed",
            Self::DoBlock => "do_block",
            Self::ForeignSession => "foreign_session",
            Self::Discard => "discard",
            Self::LongStatement => "long_statement",
            Self::Unsure => "unsure",
        }
    }
}

const BY_EFFECT: [(Effects, PinReason); 15] = [
    (Effects::SET_VARIABLE, PinReason::SessionVariable),
    (Effects::SET_ROLE, PinReason::Role),
    (Effects::SET_CONFIG, PinReason::SetConfig),
    (Effects::SQL_PREPARE, PinReason::PreparedStatement),
    (Effects::TEMP, PinReason::TemporaryObject),
    (Effects::ADVISORY_LOCK, PinReason::AdvisoryLock),
    (Effects::HOLD_CURSOR, PinReason::HoldCursor),
    (Effects::LISTEN, PinReason::Listen),
    (Effects::LOAD, PinReason::Load),
    (Effects::SEQUENCE, PinReason::Sequence),
    (Effects::SEED, PinReason::Seed),
    (Effects::DO_BLOCK, PinReason::DoBlock),
    (Effects::FOREIGN_SESSION, PinReason::ForeignSession),
    (Effects::DISCARD, PinReason::Discard),
    (Effects::UNSURE, PinReason::Unsure),
];

/// A set of reasons.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Reasons(u16);

impl Reasons {
    const fn of(reasons: &[PinReason]) -> Self {
        let mut bits = 0;
        let mut i = 0;
        while i < reasons.len() {
            bits |= 1 << reasons[i] as u16;
            i += 1;
        }
        Self(bits)
    }

    pub(crate) const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) const fn contains(self, reason: PinReason) -> bool {
        self.0 & (1 << reason as u16) != 0
    }

    fn first(self) -> Option<PinReason> {
        BY_EFFECT
            .iter()
            .map(|(_, reason)| *reason)
            .chain([PinReason::LongStatement])
            .find(|reason| self.contains(*reason))
    }

    /// The reasons that statements with these effects give. `currval` and `lastval` only read.
    pub(crate) fn from_effects(effects: Effects) -> Self {
        let mut reasons = Self::default();
        for (effect, reason) in BY_EFFECT {
            if effects.contains(effect) {
                reasons.0 |= 1 << reason as u16;
            }
        }
        reasons
    }
}

/// What `DISCARD ALL` leaves behind, or may leave behind.
const BEYOND_DISCARD_ALL: Reasons = Reasons::of(&[
    PinReason::Load,
    PinReason::Seed,
    PinReason::ForeignSession,
    PinReason::DoBlock,
    PinReason::Unsure,
]);

/// A client's pin: the reasons that hold, and since when.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Pin {
    reasons: Reasons,
    /// Whether something ran since the last DISCARD ALL that DISCARD ALL does not undo.
    tainted: bool,
    /// Reasons that came behind the reset under way: it does not end them.
    behind_reset: Reasons,
    since: Now,
}

impl Pin {
    pub(crate) const fn is_set(&self) -> bool {
        !self.reasons.is_empty()
    }

    pub(crate) const fn has(&self, reason: PinReason) -> bool {
        self.reasons.contains(reason)
    }

    pub(crate) const fn since(&self) -> Now {
        self.since
    }

    /// Whether the server cannot be made clean by `DISCARD ALL`.
    pub(crate) const fn is_tainted(&self) -> bool {
        self.tainted
    }

    /// Adds reasons; gives the first that is new.
    pub(crate) fn add(&mut self, reasons: Reasons, now: Now) -> Option<PinReason> {
        self.behind_reset.0 |= reasons.0;
        let new = Reasons(reasons.0 & !self.reasons.0);
        if new.is_empty() {
            return None;
        }
        if self.reasons.is_empty() {
            self.since = now;
        }
        self.reasons.0 |= new.0;
        self.tainted |= new.0 & BEYOND_DISCARD_ALL.0 != 0;
        new.first()
    }

    /// The first of the reasons that hold.
    pub(crate) fn reason(&self) -> Option<PinReason> {
        self.reasons.first()
    }

    pub(crate) fn add_one(&mut self, reason: PinReason, now: Now) -> Option<PinReason> {
        self.add(Reasons::of(&[reason]), now)
    }

    pub(crate) fn remove(&mut self, reason: PinReason) {
        self.reasons.0 &= !(1 << reason as u16);
    }

    /// A reset is sent, and none is under way: what comes from here on comes behind it.
    pub(crate) fn reset_sent(&mut self) {
        self.behind_reset = Reasons::default();
    }

    /// Takes away the reasons that a successful reset, run outside a transaction, has removed.
    pub(crate) fn reset(&mut self, reset: Reset) {
        // A statement that lives on this server only runs again without being looked at, so what it
        // may leave behind counts for as long as it can run.
        let lives_on = self.has(PinReason::PreparedStatement) || self.has(PinReason::LongStatement);
        let gone = match reset {
            Reset::DiscardAll => !BEYOND_DISCARD_ALL.0,
            Reset::DeallocateAll => {
                Reasons::of(&[PinReason::PreparedStatement, PinReason::LongStatement]).0
            }
            _ if lives_on => 0,
            Reset::Asyncpg => {
                Reasons::of(&[
                    PinReason::SessionVariable,
                    PinReason::AdvisoryLock,
                    PinReason::HoldCursor,
                    PinReason::Listen,
                ])
                .0
            }
            Reset::ResetAll => Reasons::of(&[PinReason::SessionVariable]).0,
            Reset::UnlistenAll => Reasons::of(&[PinReason::Listen]).0,
            Reset::DiscardTemp => Reasons::of(&[PinReason::TemporaryObject]).0,
            Reset::DiscardSequences => Reasons::of(&[PinReason::Sequence]).0,
            Reset::DiscardPlans => 0,
        };
        self.reasons.0 &= !(gone & !self.behind_reset.0);
    }
}

#[cfg(test)]
mod tests {
    use super::{Pin, PinReason, Reasons};
    use crate::sink::Now;
    use sqlscan::{Effects, Reset};

    #[test]
    fn a_reset_ends_only_the_pins_whose_cause_it_removes() {
        let mut pin = Pin::default();
        let reasons = Reasons::from_effects(Effects::SET_VARIABLE | Effects::TEMP);
        assert_eq!(pin.add(reasons, Now(7)), Some(PinReason::SessionVariable));
        assert_eq!(pin.add(reasons, Now(9)), None);
        pin.reset_sent();
        pin.reset(Reset::Asyncpg);
        assert!(pin.is_set() && pin.has(PinReason::TemporaryObject));
        pin.reset_sent();
        pin.reset(Reset::DiscardAll);
        assert!(!pin.is_set() && !pin.is_tainted());
        assert_eq!(pin.since(), Now(7));
    }

    #[test]
    fn a_reset_does_not_end_the_pins_that_come_behind_it() {
        let mut pin = Pin::default();
        pin.add(Reasons::from_effects(Effects::LISTEN | Effects::TEMP), Now(0));
        pin.reset_sent();
        pin.add(Reasons::from_effects(Effects::LISTEN), Now(0));
        pin.reset(Reset::DiscardAll);
        assert!(pin.has(PinReason::Listen) && !pin.has(PinReason::TemporaryObject));
    }

    #[test]
    fn what_a_prepared_statement_may_do_counts_until_the_statement_is_gone() {
        let mut pin = Pin::default();
        pin.add(Reasons::from_effects(Effects::SQL_PREPARE | Effects::ADVISORY_LOCK), Now(0));
        for reset in [Reset::Asyncpg, Reset::DeallocateAll] {
            pin.reset_sent();
            pin.reset(reset);
            assert!(pin.has(PinReason::AdvisoryLock), "{reset:?}");
        }
        pin.reset_sent();
        pin.reset(Reset::Asyncpg);
        assert!(!pin.is_set());
    }

    #[test]
    fn what_discard_all_does_not_undo_stays() {
        let mut pin = Pin::default();
        pin.add(Reasons::from_effects(Effects::LOAD | Effects::SET_VARIABLE), Now(0));
        pin.reset_sent();
        pin.reset(Reset::DiscardAll);
        assert!(pin.has(PinReason::Load) && !pin.has(PinReason::SessionVariable));
        assert!(pin.is_tainted());
    }
}
