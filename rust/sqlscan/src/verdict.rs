//! What a scan says: effects on the session, known resets, the number and class of statements.
//!
//! Plain values; they decide nothing. Which effect pins, and what a reset clears, is the
//! multiplexer's policy. Next on the path: `lexer.rs`.

use std::fmt;
use std::ops::{BitOr, BitOrAssign};

/// What a text may leave behind in the session that runs it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Verdict {
    /// The effects of all statements together; empty if `reset` is set.
    pub effects: Effects,
    /// The known reset that the whole text consists of, if it is one.
    pub reset: Option<Reset>,
    /// How many statements the text holds, empty ones not counted; stops at 65,535.
    ///
    /// Never below PostgreSQL's own count unless `effects` holds [`Effects::UNSURE`].
    pub statements: u16,
    /// The class of the first statement.
    pub class: Class,
}

/// A set of effects.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Effects(u32);

/// Effects with their names, in the order of their bits.
const NAMES: [(Effects, &str); 16] = [
    (Effects::SET_VARIABLE, "SET_VARIABLE"),
    (Effects::SET_ROLE, "SET_ROLE"),
    (Effects::SET_CONFIG, "SET_CONFIG"),
    (Effects::SQL_PREPARE, "SQL_PREPARE"),
    (Effects::TEMP, "TEMP"),
    (Effects::ADVISORY_LOCK, "ADVISORY_LOCK"),
    (Effects::HOLD_CURSOR, "HOLD_CURSOR"),
    (Effects::LISTEN, "LISTEN"),
    (Effects::LOAD, "LOAD"),
    (Effects::SEQUENCE, "SEQUENCE"),
    (Effects::SEQUENCE_READ, "SEQUENCE_READ"),
    (Effects::SEED, "SEED"),
    (Effects::DO_BLOCK, "DO_BLOCK"),
    (Effects::FOREIGN_SESSION, "FOREIGN_SESSION"),
    (Effects::DISCARD, "DISCARD"),
    (Effects::UNSURE, "UNSURE"),
];

impl Effects {
    /// A run-time parameter set or reset for the session (SET, RESET; not SET LOCAL).
    pub const SET_VARIABLE: Self = Self(1);
    /// The current or session user changed (SET ROLE, SET SESSION AUTHORIZATION and their RESETs).
    pub const SET_ROLE: Self = Self(1 << 1);
    /// `set_config` whose third argument is not plainly `true`, an UPDATE of `pg_settings` (which
    /// calls it), `set_limit` of `pg_trgm`.
    pub const SET_CONFIG: Self = Self(1 << 2);
    /// Prepared statements by SQL: PREPARE, EXECUTE, DEALLOCATE of a name.
    pub const SQL_PREPARE: Self = Self(1 << 3);
    /// Temporary objects: CREATE TEMP, SELECT INTO TEMP, any mention of schema `pg_temp`.
    pub const TEMP: Self = Self(1 << 4);
    /// A session-level advisory lock taken or tried.
    pub const ADVISORY_LOCK: Self = Self(1 << 5);
    /// A cursor that outlives its transaction.
    pub const HOLD_CURSOR: Self = Self(1 << 6);
    /// LISTEN.
    pub const LISTEN: Self = Self(1 << 7);
    /// A library loaded into the server's process; nothing but its end undoes that.
    pub const LOAD: Self = Self(1 << 8);
    /// A sequence advanced or set: the session remembers its value.
    pub const SEQUENCE: Self = Self(1 << 9);
    /// The session's remembered sequence value read (`currval`, `lastval`).
    pub const SEQUENCE_READ: Self = Self(1 << 10);
    /// The session's random generator seeded.
    pub const SEED: Self = Self(1 << 11);
    /// A DO whose text holds a word that could change the session.
    pub const DO_BLOCK: Self = Self(1 << 12);
    /// State that DISCARD ALL does not reset: dblink connections, a replication origin, a running
    /// base backup, temporary replication slots.
    pub const FOREIGN_SESSION: Self = Self(1 << 13);
    /// DISCARD or DEALLOCATE ALL among other statements.
    pub const DISCARD: Self = Self(1 << 14);
    /// The scan does not know: the text ends inside a literal, a quoted name, a block comment, a
    /// dollar quote or the BEGIN ATOMIC body of a routine; a dollar quote's tag is longer than 64
    /// bytes (the rest is not looked at, nor counted); a `U&"…"` name holds an escape, names a
    /// function or has UESCAPE; a function runs SQL given as text (`query_to_xml` and its kin,
    /// `ts_stat`, `ts_rewrite`); a SET or `set_config` statement holds a backslash or UESCAPE.
    pub const UNSURE: Self = Self(1 << 15);

    /// The empty set.
    #[must_use]
    pub const fn empty() -> Self {
        Self(0)
    }

    /// Whether every effect of `other` is in this set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether the set is empty.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The effects of both sets.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The set as bits, one an effect, for tables and masks.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// The single effects of this set, in the order of their bits.
    #[must_use]
    pub const fn iter(self) -> EffectsIter {
        EffectsIter(self.0)
    }

    /// The name of a single effect as its constant is called; of a larger set the first one's, of
    /// the empty set "none".
    #[must_use]
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(one, _)| self.contains(*one)).map_or("none", |(_, name)| name)
    }
}

impl BitOr for Effects {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.union(other)
    }
}

impl BitOrAssign for Effects {
    fn bitor_assign(&mut self, other: Self) {
        *self = self.union(other);
    }
}

impl IntoIterator for Effects {
    type Item = Self;
    type IntoIter = EffectsIter;

    fn into_iter(self) -> EffectsIter {
        self.iter()
    }
}

impl fmt::Debug for Effects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(Self::name)).finish()
    }
}

/// The single effects of a set; from [`Effects::iter`].
#[derive(Clone, Debug)]
pub struct EffectsIter(u32);

impl Iterator for EffectsIter {
    type Item = Effects;

    fn next(&mut self) -> Option<Effects> {
        let rest = self.0 & self.0.checked_sub(1)?;
        let lowest = self.0 ^ rest;
        self.0 = rest;
        Some(Effects(lowest))
    }
}

/// A text that is a known reset and nothing else but comments, blanks and semicolons.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Reset {
    /// `DISCARD ALL`.
    DiscardAll,
    /// `DEALLOCATE ALL`, `DEALLOCATE PREPARE ALL`.
    DeallocateAll,
    /// `RESET ALL`.
    ResetAll,
    /// `UNLISTEN *`.
    UnlistenAll,
    /// `DISCARD TEMP`, `DISCARD TEMPORARY`.
    DiscardTemp,
    /// `DISCARD PLANS`.
    DiscardPlans,
    /// `DISCARD SEQUENCES`.
    DiscardSequences,
    /// asyncpg's: `SELECT pg_advisory_unlock_all(); CLOSE ALL; UNLISTEN *; RESET ALL;`, with or
    /// without the UNLISTEN.
    Asyncpg,
}

/// What kind of statement the first one is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Class {
    /// No statement at all: PostgreSQL answers with EmptyQueryResponse.
    #[default]
    Empty,
    /// BEGIN, START TRANSACTION.
    Begin,
    /// COMMIT, END; not COMMIT PREPARED.
    Commit,
    /// ROLLBACK, ABORT; neither ROLLBACK TO nor ROLLBACK PREPARED.
    Rollback,
    /// SAVEPOINT, RELEASE, ROLLBACK TO.
    Savepoint,
    /// SET and RESET of any kind.
    Set,
    /// SELECT, VALUES, TABLE, also behind WITH; it may still write by the functions it calls.
    Select,
    /// INSERT, UPDATE, DELETE, MERGE, also inside WITH.
    Write,
    /// COPY.
    Copy,
    /// Anything else.
    Other,
}
