//! Prepared statements: one shared copy of each statement, and what is prepared on a server.
//!
//! A statement's key is its text, its parameter types and the session variables that its meaning
//! may rest on, compared in full. The pool (database, user, start-up parameters) is the rest of the
//! key: each pool has its own [`Statements`]. A
//! client's name maps to a shared statement; a server holds it under a name of ours that is unique
//! on the host. Next on the path: `pg/extended.rs`.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hash, Hasher};
use std::rc::{Rc, Weak};

use sqlscan::Verdict;

use crate::limits::{
    CLIENT_STATEMENT_BYTES_MAX, CLIENT_STATEMENTS_MAX, SERVER_STATEMENT_BYTES_MAX,
};
use crate::owed::{Change, Pending, Queue};
use crate::variables::{Assignment, assignments_of};

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
    /// The session variables that its meaning may rest on, as they were when it was prepared.
    pub(crate) key: Rc<[u8]>,
    /// What running it may do to a session.
    pub(crate) verdict: Verdict,
    /// What running it makes of the session's variables, if that is known: then it does nothing
    /// else to the session.
    pub(crate) assigns: Option<Rc<[Assignment]>>,
}

impl Statement {
    /// Stands for an unnamed statement too long to be kept: the server has it, nobody else does.
    pub(crate) const LONG: StatementId = StatementId::MAX;

    /// Stands for a statement on a server that came from another worker: enough to use it under its
    /// name if a client of this worker has the same one, and to close it.
    pub(crate) fn elsewhere(id: StatementId) -> Rc<Self> {
        let (text, oids, key) = (Box::default(), Box::default(), Rc::default());
        Rc::new(Self { id, text, oids, key, verdict: Verdict::default(), assigns: None })
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

    /// The shared copy of a statement that is prepared under these variables.
    pub(crate) fn intern(&mut self, text: &[u8], oids: &[u8], key: &Rc<[u8]>) -> Rc<Statement> {
        let mut hasher = self.hasher.build_hasher();
        text.hash(&mut hasher);
        oids.hash(&mut hasher);
        key.hash(&mut hasher);
        let bucket = self.by_hash.entry(hasher.finish()).or_default();
        let known = bucket
            .iter()
            .filter_map(Weak::upgrade)
            .find(|known| *known.text == *text && *known.oids == *oids && known.key == *key);
        if let Some(statement) = known {
            return statement;
        }
        let lengths = [text.len() as u64, oids.len() as u64].map(u64::to_be_bytes).concat();
        let hash = auth::keyed_hash(&self.key, &[&lengths, text, oids, key]);
        let id = hash.iter().take(16).fold(0, |id, byte| id << 8 | StatementId::from(*byte));
        let verdict = sqlscan::scan(text);
        let statement = Rc::new(Statement {
            id,
            text: text.into(),
            oids: oids.into(),
            key: Rc::clone(key),
            verdict,
            assigns: assignments_of(text, verdict).map(Rc::from),
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

/// The names that a client has at the point up to which its server has answered: what messages on
/// their way make of them stands in the reply queue. A name that is not here means what the server
/// holds under it, if anything.
#[derive(Debug, Default)]
pub(crate) struct ClientStatements {
    pub(crate) named: BTreeMap<Box<[u8]>, Rc<Statement>>,
    pub(crate) unnamed: Option<Rc<Statement>>,
}

impl ClientStatements {
    pub(crate) fn get(&self, name: &[u8]) -> Option<&Rc<Statement>> {
        if name.is_empty() { self.unnamed.as_ref() } else { self.named.get(name) }
    }

    pub(crate) fn set(&mut self, name: Box<[u8]>, means: Option<Rc<Statement>>) {
        match means {
            means if name.is_empty() => self.unnamed = means,
            Some(statement) => drop(self.named.insert(name, statement)),
            None => {
                self.named.remove(&name);
                if self.named.is_empty() {
                    // A map keeps the memory of its last entry: nothing is owned without names.
                    self.named = BTreeMap::new();
                }
            }
        }
    }

    /// Whether one more text of so many bytes is one too many, with what is on its way. Short ones
    /// are limited by count alone.
    pub(crate) fn has_no_room_for(&self, text_bytes: usize, on_their_way: &Queue) -> bool {
        let coming = on_their_way.changes().filter_map(|change| match change {
            Change::Name { means, .. } => means.as_ref(),
            _ => None,
        });
        let held =
            || self.named.values().chain(coming.clone()).map(|s| s.text.len()).sum::<usize>();
        self.named.len() + coming.clone().count() >= CLIENT_STATEMENTS_MAX
            || text_bytes > SHORT_TEXT_BYTES && held() + text_bytes > CLIENT_STATEMENT_BYTES_MAX
    }
}

#[derive(Debug)]
struct Kept {
    statement: Rc<Statement>,
    used: u64,
}

/// The statements that one server holds at the point up to which it has answered: a bounded map,
/// least recently used out first.
#[derive(Debug, Default)]
pub(crate) struct ServerStatements {
    kept: BTreeMap<StatementId, Kept>,
    clock: u64,
    /// Which statement the server's unnamed one is; 0 = none or unknown.
    pub(crate) unnamed: StatementId,
}

impl ServerStatements {
    /// Whether the server holds the statement; counts as a use.
    pub(crate) fn touch(&mut self, id: StatementId) -> bool {
        let Some(kept) = self.kept.get_mut(&id) else { return false };
        self.clock += 1;
        kept.used = self.clock;
        true
    }

    pub(crate) fn insert(&mut self, statement: Rc<Statement>) {
        self.clock += 1;
        self.kept.insert(statement.id, Kept { statement, used: self.clock });
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
        self.insert(Statement::elsewhere(id));
    }

    pub(crate) fn clear(&mut self) {
        self.kept.clear();
        self.unnamed = 0;
    }

    /// All names were dropped: the unnamed statement is none of them.
    pub(crate) fn clear_named(&mut self) {
        self.kept.clear();
    }

    /// Marks the start of a batch: what is used from here on is not evicted before the next mark.
    pub(crate) fn mark(&self) -> u64 {
        self.clock
    }

    /// The least recently used statement that nothing on its way touches and that was not used
    /// since `mark`, if with the one to come more than `max` will be held or their texts are too
    /// long together.
    pub(crate) fn to_evict(
        &self,
        max: usize,
        mark: u64,
        on_their_way: &Queue,
        to_come: &Statement,
    ) -> Option<Rc<Statement>> {
        let mut count = self.kept.len() + 1;
        let mut bytes = to_come.text.len();
        bytes += self.kept.values().map(|kept| kept.statement.text.len()).sum::<usize>();
        for change in on_their_way.changes() {
            match change {
                Change::Held { statement, is_held: true } => {
                    count += 1;
                    bytes += statement.text.len();
                }
                Change::Held { statement, is_held: false } => {
                    count = count.saturating_sub(1);
                    bytes = bytes.saturating_sub(statement.text.len());
                }
                _ => {}
            }
        }
        if count <= max && bytes <= SERVER_STATEMENT_BYTES_MAX {
            return None;
        }
        let is_free = |id| on_their_way.held(id) == Pending::Untouched;
        self.kept
            .iter()
            .filter(|(id, kept)| kept.used <= mark && is_free(**id))
            .min_by_key(|(_, kept)| kept.used)
            .map(|(_, kept)| Rc::clone(&kept.statement))
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
    use std::rc::Rc;

    use super::{ServerName, ServerStatements, Statements};
    use crate::owed::{Change, Kind, Owed, Queue};

    #[test]
    fn equal_text_and_types_share_one_statement_and_nothing_less_does() {
        let mut statements = Statements::new(1, [1; 32]);
        let none = Rc::default();
        let first = statements.intern(b"SELECT $1", &[], &none);
        let again = statements.intern(b"SELECT $1", &[], &none);
        let typed = statements.intern(b"SELECT $1", &[0, 0, 0, 23], &none);
        assert!(std::rc::Rc::ptr_eq(&first, &again));
        assert_ne!(first.id, typed.id);
        let elsewhere = statements.intern(b"SELECT $1", &[], &b"SET search_path TO 'a'"[..].into());
        assert_ne!(first.id, elsewhere.id);
        // Another worker of this host finds the same name, another host another one.
        assert_eq!(Statements::new(2, [1; 32]).intern(b"SELECT $1", &[], &none).id, first.id);
        assert_ne!(Statements::new(2, [2; 32]).intern(b"SELECT $1", &[], &none).id, first.id);
        let shifted = statements.intern(b"SELECT $1\0\0\0", &[23], &none);
        assert_ne!(shifted.id, typed.id);
    }

    #[test]
    fn statements_that_nobody_holds_are_forgotten() {
        let mut statements = Statements::new(1, [1; 32]);
        for i in 0..10_000 {
            statements.intern(format!("SELECT {i}").as_bytes(), &[], &Rc::default());
        }
        assert!(statements.len() <= super::SWEEP_MIN);
    }

    #[test]
    fn eviction_takes_the_least_recently_used_but_nothing_of_the_running_batch() {
        let mut statements = Statements::new(1, [1; 32]);
        let mut server = ServerStatements::default();
        let mut queue = Queue::default();
        let mut add = |server: &mut ServerStatements, text: &str| {
            let statement = statements.intern(text.as_bytes(), &[], &Rc::default());
            server.insert(statement.clone());
            statement
        };
        let first = add(&mut server, "a");
        let second = add(&mut server, "b");
        let mark = server.mark();
        let third = add(&mut server, "c");
        assert!(server.touch(first.id));
        let fourth = statements.intern(b"d", &[], &Rc::default());
        assert!(server.to_evict(4, server.mark(), &queue, &fourth).is_none());
        let evicted = server.to_evict(2, mark, &queue, &fourth);
        assert_eq!(evicted.as_ref().map(|s| s.id), Some(second.id));
        let gone = evicted.map(|statement| Change::Held { statement, is_held: false });
        queue.push_changing(Owed::swallow(Kind::Close), gone);
        assert!(server.to_evict(2, mark, &queue, &fourth).is_none(), "used in this batch");
        let oldest = server.to_evict(2, server.mark(), &queue, &fourth);
        assert_eq!(oldest.map(|s| s.id), Some(third.id));
        assert!(server.to_evict(3, server.mark(), &queue, &fourth).is_none());
    }

    #[test]
    fn a_server_name_is_the_whole_number_in_hex() {
        let name = |id| ServerName::new(id).as_bytes().to_vec();
        assert_eq!(name(0x2a), b"_pyproxy_0000000000000000000000000000002a");
        assert_eq!(name(u128::MAX), [&b"_pyproxy_"[..], &[b'f'; 32]].concat());
    }
}
