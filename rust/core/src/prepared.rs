//! Prepared statements: one shared copy of each statement, and what is prepared on a server.
//!
//! A statement's key is its text and its parameter types, compared in full. The pool (database,
//! user, start-up parameters) is the rest of the key: each pool has its own [`Statements`]. A
//! client's name maps to a shared statement; a server holds it under a name of ours that is unique
//! on the host. Next on the path: `pg/extended.rs`.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hash, Hasher};
use std::rc::{Rc, Weak};

use sqlscan::Verdict;

use crate::limits::{
    CLIENT_STATEMENT_BYTES_MAX, CLIENT_STATEMENTS_MAX, SERVER_STATEMENT_BYTES_MAX,
};

/// Names a statement alike in every worker of this host: 128 bits of a keyed hash over its text and
/// types. Whoever knows the key is one of us, so nobody can make two statements meet in one.
pub(crate) type StatementId = u128;

/// One statement, shared by the clients that know it and the servers that hold it.
#[derive(Debug)]
pub(crate) struct Statement {
    /// Never 0.
    pub(crate) id: StatementId,
    pub(crate) text: Box<[u8]>,
    /// Parameter type OIDs as they stood in the Parse message.
    pub(crate) oids: Box<[u8]>,
    /// What running it may do to a session.
    pub(crate) verdict: Verdict,
}

impl Statement {
    /// Stands for an unnamed statement too long to be kept: the server has it, nobody else does.
    pub(crate) const LONG: StatementId = StatementId::MAX;

    /// Stands for a statement on a server that came from another worker: enough to use it under its
    /// name if a client of this worker has the same one, and to close it.
    pub(crate) fn elsewhere(id: StatementId) -> Rc<Self> {
        let (text, oids) = (Box::default(), Box::default());
        Rc::new(Self { id, text, oids, verdict: Verdict::default() })
    }
}

/// The statements of one pool, found by key.
#[derive(Debug)]
pub(crate) struct Statements {
    by_hash: BTreeMap<u64, Vec<Weak<Statement>>>,
    hasher: SeededState,
    key: [u8; 32],
    sweep_at: usize,
}

/// A hasher that a client cannot aim at: SipHash over a secret seed, then the value.
#[derive(Clone, Debug)]
pub(crate) struct SeededState(pub(crate) u64);

impl BuildHasher for SeededState {
    type Hasher = std::hash::DefaultHasher;

    fn build_hasher(&self) -> Self::Hasher {
        let mut hasher = std::hash::DefaultHasher::new();
        hasher.write_u64(self.0);
        hasher
    }
}

const SWEEP_MIN: usize = 256;
/// Texts up to this need no adding up: `CLIENT_STATEMENTS_MAX` of them are 40 MB.
const SHORT_TEXT_BYTES: usize = 4_096;

impl Statements {
    /// `key` is the host's secret for the names of statements.
    pub(crate) fn new(seed: u64, key: [u8; 32]) -> Self {
        Self { by_hash: BTreeMap::new(), hasher: SeededState(seed), key, sweep_at: SWEEP_MIN }
    }

    /// The shared copy of a statement.
    pub(crate) fn intern(&mut self, text: &[u8], oids: &[u8]) -> Rc<Statement> {
        let mut hasher = self.hasher.build_hasher();
        text.hash(&mut hasher);
        oids.hash(&mut hasher);
        let bucket = self.by_hash.entry(hasher.finish()).or_default();
        let known = bucket
            .iter()
            .filter_map(Weak::upgrade)
            .find(|statement| *statement.text == *text && *statement.oids == *oids);
        if let Some(statement) = known {
            return statement;
        }
        let length = (text.len() as u64).to_be_bytes();
        let hash = auth::keyed_hash(&self.key, &[&length, text, oids]);
        let id = hash.iter().take(16).fold(0, |id, byte| id << 8 | StatementId::from(*byte));
        let statement = Rc::new(Statement {
            id,
            text: text.into(),
            oids: oids.into(),
            verdict: sqlscan::scan(text),
        });
        bucket.retain(|statement| statement.strong_count() > 0);
        bucket.push(Rc::downgrade(&statement));
        self.sweep();
        statement
    }

    /// Drops the entries of statements that nobody holds, in amortised constant time.
    fn sweep(&mut self) {
        if self.by_hash.len() < self.sweep_at {
            return;
        }
        self.by_hash.retain(|_, bucket| {
            bucket.retain(|statement| statement.strong_count() > 0);
            !bucket.is_empty()
        });
        self.sweep_at = (self.by_hash.len() * 2).max(SWEEP_MIN);
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.by_hash.len()
    }
}

/// One name of a client.
#[derive(Debug)]
pub(crate) struct Named {
    pub(crate) statement: Rc<Statement>,
    /// The batch that made it.
    pub(crate) changed_in: u64,
    /// Its ParseComplete has come.
    pub(crate) confirmed: bool,
}

/// The statements that a client believes it has.
#[derive(Debug, Default)]
pub(crate) struct ClientStatements {
    pub(crate) named: BTreeMap<Box<[u8]>, Named>,
    /// Names that were closed by a batch whose end has not come, with that batch: a later one
    /// waits.
    pub(crate) closed: BTreeMap<Box<[u8]>, u64>,
    /// The batch whose query drops all names and has not been confirmed; 0 = none. Names wait for
    /// it.
    pub(crate) dropping: u64,
    pub(crate) unnamed: Option<Rc<Statement>>,
    /// The batch that changed the unnamed statement last.
    pub(crate) unnamed_changed_in: u64,
}

impl ClientStatements {
    /// Whether one more text of so many bytes is one too many. Short ones are limited by count
    /// alone.
    pub(crate) fn has_no_room_for(&self, text_bytes: usize) -> bool {
        let held = || self.named.values().map(|named| named.statement.text.len()).sum::<usize>();
        self.named.len() >= CLIENT_STATEMENTS_MAX
            || text_bytes > SHORT_TEXT_BYTES && held() + text_bytes > CLIENT_STATEMENT_BYTES_MAX
    }

    /// `DEALLOCATE ALL` has run: every name is gone but those whose Parse came behind it.
    pub(crate) fn forget_confirmed(&mut self) {
        self.named.retain(|_, named| !named.confirmed);
        self.closed.clear();
    }
}

/// What a server holds of one statement.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Held {
    /// Its Parse is on the way, sent in this batch of the borrowing client.
    Pending(u64),
    /// ParseComplete has come.
    Ready,
}

#[derive(Debug)]
struct Kept {
    statement: Rc<Statement>,
    held: Held,
    used: u64,
}

/// The statements on one server: a bounded map, least recently used out first.
#[derive(Debug, Default)]
pub(crate) struct ServerStatements {
    kept: BTreeMap<StatementId, Kept>,
    clock: u64,
    /// The server may hold statements that are not in the map: a Parse comes behind a Close.
    in_doubt: bool,
    /// Which statement the server's unnamed one is; 0 = none or unknown.
    pub(crate) unnamed: StatementId,
}

impl ServerStatements {
    /// Whether the server holds the statement; counts as a use.
    pub(crate) fn touch(&mut self, id: StatementId) -> Option<Held> {
        let kept = self.kept.get_mut(&id)?;
        self.clock += 1;
        kept.used = self.clock;
        Some(kept.held)
    }

    pub(crate) fn insert(&mut self, statement: &Rc<Statement>, batch: u64) {
        self.clock += 1;
        let kept =
            Kept { statement: Rc::clone(statement), held: Held::Pending(batch), used: self.clock };
        self.kept.insert(statement.id, kept);
    }

    /// Puts back what an eviction took out whose Close the server skipped.
    pub(crate) fn restore(&mut self, statement: &Rc<Statement>) {
        self.insert(statement, 0);
        self.confirm(statement.id);
    }

    pub(crate) fn confirm(&mut self, id: StatementId) {
        if let Some(kept) = self.kept.get_mut(&id) {
            kept.held = Held::Ready;
        }
    }

    pub(crate) fn remove(&mut self, id: StatementId) {
        self.kept.remove(&id);
    }

    /// What a server at rest holds, for the worker that gets it.
    pub(crate) fn ids(&self) -> impl ExactSizeIterator<Item = StatementId> {
        self.kept.keys().copied()
    }

    /// A server that came from another worker holds this.
    pub(crate) fn add_elsewhere(&mut self, id: StatementId) {
        self.restore(&Statement::elsewhere(id));
    }

    pub(crate) fn clear(&mut self) {
        self.kept.clear();
        self.unnamed = 0;
        self.in_doubt = false;
    }

    /// A statement that drops all names was sent inside a batch: whether it runs shows too late for
    /// what follows it there.
    pub(crate) fn doubt_all(&mut self) {
        self.forget_confirmed();
        self.in_doubt = true;
    }

    pub(crate) fn is_in_doubt(&self) -> bool {
        self.in_doubt
    }

    /// `DEALLOCATE ALL` has run: what was confirmed is gone, what is on its way comes behind it.
    pub(crate) fn forget_confirmed(&mut self) {
        self.kept.retain(|_, kept| kept.held != Held::Ready);
    }

    /// Marks the start of a batch: what is used from here on is not evicted before the next mark.
    pub(crate) fn mark(&self) -> u64 {
        self.clock
    }

    /// Takes out the least recently used statement that is confirmed and was not used since `mark`,
    /// if more than `max` are held or their texts are too long together. The caller sends its
    /// Close.
    pub(crate) fn evict(&mut self, max: usize, mark: u64) -> Option<Rc<Statement>> {
        let bytes: usize = self.kept.values().map(|kept| kept.statement.text.len()).sum();
        if self.kept.len() <= max && bytes <= SERVER_STATEMENT_BYTES_MAX {
            return None;
        }
        let (&id, _) = self
            .kept
            .iter()
            .filter(|(_, kept)| kept.held == Held::Ready && kept.used <= mark)
            .min_by_key(|(_, kept)| kept.used)?;
        self.kept.remove(&id).map(|kept| kept.statement)
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.kept.len()
    }
}

/// The prefix of the names under which servers hold our statements; no client's name passes with
/// it.
pub(crate) const NAME_PREFIX: &[u8] = b"_pyproxy_";

/// A name that no server ever holds: a Close of it succeeds and a Bind of it fails, as the client
/// expects.
pub(crate) const NO_SUCH_NAME: &[u8] = b"_pyproxy_none";

/// The name of a statement on every server of this host that holds it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ServerName([u8; NAME_BYTES]);

/// The prefix and 32 hex digits; PostgreSQL keeps 63 bytes of a name.
const NAME_BYTES: usize = NAME_PREFIX.len() + 32;

impl ServerName {
    pub(crate) fn new(id: StatementId) -> Self {
        let mut bytes = [0; NAME_BYTES];
        let (prefix, digits) = bytes.split_at_mut(NAME_PREFIX.len());
        prefix.copy_from_slice(NAME_PREFIX);
        for (digit, shift) in digits.iter_mut().zip((0..32).rev()) {
            *digit = b"0123456789abcdef"[(id >> (shift * 4)) as usize & 0xF];
        }
        Self(bytes)
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::{Held, ServerName, ServerStatements, Statements};

    #[test]
    fn equal_text_and_types_share_one_statement_and_nothing_less_does() {
        let mut statements = Statements::new(1, [1; 32]);
        let first = statements.intern(b"SELECT $1", &[]);
        let again = statements.intern(b"SELECT $1", &[]);
        let typed = statements.intern(b"SELECT $1", &[0, 0, 0, 23]);
        assert!(std::rc::Rc::ptr_eq(&first, &again));
        assert_ne!(first.id, typed.id);
        // Another worker of this host finds the same name, another host another one.
        assert_eq!(Statements::new(2, [1; 32]).intern(b"SELECT $1", &[]).id, first.id);
        assert_ne!(Statements::new(2, [2; 32]).intern(b"SELECT $1", &[]).id, first.id);
        let shifted = statements.intern(b"SELECT $1\0\0\0", &[23]);
        assert_ne!(shifted.id, typed.id);
    }

    #[test]
    fn statements_that_nobody_holds_are_forgotten() {
        let mut statements = Statements::new(1, [1; 32]);
        for i in 0..10_000 {
            statements.intern(format!("SELECT {i}").as_bytes(), &[]);
        }
        assert!(statements.len() <= super::SWEEP_MIN);
    }

    #[test]
    fn eviction_takes_the_least_recently_used_but_nothing_of_the_running_batch() {
        let mut statements = Statements::new(1, [1; 32]);
        let mut server = ServerStatements::default();
        let mut add = |server: &mut ServerStatements, text: &str| {
            let statement = statements.intern(text.as_bytes(), &[]);
            server.insert(&statement, 1);
            server.confirm(statement.id);
            statement
        };
        let first = add(&mut server, "a");
        let second = add(&mut server, "b");
        let mark = server.mark();
        let third = add(&mut server, "c");
        assert_eq!(server.touch(first.id), Some(Held::Ready));
        assert_eq!(server.evict(1, mark).map(|s| s.id), Some(second.id));
        assert!(server.evict(1, mark).is_none());
        assert_eq!(server.len(), 2);
        assert_eq!(server.evict(1, server.mark()).map(|s| s.id), Some(third.id));
    }

    #[test]
    fn a_server_name_is_the_whole_number_in_hex() {
        let name = |id| ServerName::new(id).as_bytes().to_vec();
        assert_eq!(name(0x2a), b"_pyproxy_0000000000000000000000000000002a");
        assert_eq!(name(u128::MAX), [&b"_pyproxy_"[..], &[b'f'; 32]].concat());
    }
}
