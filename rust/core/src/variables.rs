//! Session variables: what a client has set, what a server has, and the way from one to the other.
//!
//! A value is kept as the statement that sets it again, so any value of any length comes back as it
//! was. What a client sets counts once its transaction has committed: until then it stands in the
//! server's [`Pending`]. The sets are shared and immutable: clients that set the same things hold
//! the same set, and a server that has it already needs nothing. Next on the path: `pg/restore.rs`.

use std::rc::Rc;

use sqlscan::{Action, Effects, Name, Reset, Setting, Verdict};

use crate::limits::{CLIENT_VARIABLE_BYTES_MAX, CLIENT_VARIABLES_MAX};
use crate::params::APPLICATION_NAME;

/// What one statement makes of the variables.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Assignment {
    /// A variable has a value; `sql` sets it again.
    Set { name: Name, sql: Rc<[u8]> },
    /// A variable is what it was at log-in.
    Default { name: Name },
    /// All of them are.
    AllDefault,
}

/// Whether a variable can be set and undone on any server as it stands: who the session is, is not.
fn is_replayable(name: &Name, sql: &[u8]) -> bool {
    // Tables would be temporary without saying so.
    let hides_temp = || sql.to_ascii_lowercase().windows(7).any(|window| window == b"pg_temp");
    match name.as_str() {
        "role" | "session_authorization" => false,
        "search_path" => !hides_temp(),
        _ => true,
    }
}

/// What a text makes of the session's variables, if it is one statement that does nothing else to
/// the session and this can be told and repeated. `application_name` is not among them: the server
/// reports it.
pub(crate) fn assignments_of(text: &[u8], verdict: Verdict) -> Option<Vec<Assignment>> {
    if matches!(verdict.reset, Some(Reset::ResetAll | Reset::DiscardAll)) {
        return Some(vec![Assignment::AllDefault]);
    }
    let variables = Effects::SET_VARIABLE | Effects::SET_CONFIG;
    if verdict.effects.is_empty() || !variables.contains(verdict.effects) {
        return None;
    }
    changes_of(sqlscan::setting(text)?)
}

fn changes_of(setting: Setting) -> Option<Vec<Assignment>> {
    let Setting::Changes(changes) = setting else { return Some(vec![Assignment::AllDefault]) };
    let mut assignments = Vec::with_capacity(changes.len());
    for (name, action) in changes {
        let mut sql = Vec::new();
        action.write_sql(&name, &mut sql);
        if !is_replayable(&name, &sql) {
            return None;
        }
        if name.as_str().as_bytes() == APPLICATION_NAME {
            continue;
        }
        assignments.push(match action {
            Action::Set(_) => Assignment::Set { name, sql: sql.into() },
            Action::Default => Assignment::Default { name },
            Action::RoleNone => return None,
        });
    }
    Some(assignments)
}

/// A set of variables that differ from what they were at log-in, in the order in which they were
/// set.
#[derive(Debug, Default)]
pub(crate) struct Variables {
    list: Vec<(Name, Rc<[u8]>)>,
    /// The statements of those that can make a prepared statement mean something else, in the order
    /// of their names.
    pub(crate) key: Rc<[u8]>,
}

/// Variables that neither the meaning nor the plan of a statement rests on.
const PLAIN: [&str; 9] = [
    "statement_timeout",
    "lock_timeout",
    "transaction_timeout",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
    "client_min_messages",
    "log_min_messages",
    "log_statement",
    "log_min_duration_statement",
];

impl Variables {
    /// These with changes made; the same set if nothing differs.
    pub(crate) fn with(self: &Rc<Self>, changes: &[Assignment]) -> Rc<Self> {
        let mut list = self.list.clone();
        for change in changes {
            match change {
                Assignment::Set { name, sql } => {
                    list.retain(|(other, _)| other != name);
                    list.push((name.clone(), Rc::clone(sql)));
                }
                Assignment::Default { name } => list.retain(|(other, _)| other != name),
                Assignment::AllDefault => list.clear(),
            }
        }
        if list == self.list { Rc::clone(self) } else { Rc::new(Self::from_list(list)) }
    }

    fn from_list(list: Vec<(Name, Rc<[u8]>)>) -> Self {
        // Names with a dot are the application's and extensions' own, which are read as they run.
        let counts = |name: &Name| !name.as_str().contains('.') && !PLAIN.contains(&name.as_str());
        let mut deciding: Vec<_> = list.iter().filter(|(name, _)| counts(name)).collect();
        deciding.sort();
        let sqls: Vec<&[u8]> = deciding.iter().map(|(_, sql)| &**sql).collect();
        let key = sqls.join(&0).into();
        Self { list, key }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    fn get(&self, name: &Name) -> Option<&Rc<[u8]>> {
        self.list.iter().find(|(other, _)| other == name).map(|(_, sql)| sql)
    }

    /// Whether both say the same, in whatever order.
    pub(crate) fn same(self: &Rc<Self>, other: &Rc<Self>) -> bool {
        Rc::ptr_eq(self, other)
            || self.list.len() == other.list.len()
                && self.list.iter().all(|(name, sql)| other.get(name) == Some(sql))
    }

    /// Whether it is more than is kept for one client.
    pub(crate) fn is_too_much(&self) -> bool {
        let bytes: usize = self.list.iter().map(|(_, sql)| sql.len()).sum();
        self.list.len() > CLIENT_VARIABLES_MAX || bytes > CLIENT_VARIABLE_BYTES_MAX
    }

    /// Whether it cannot be told which bytes are meant: the encoding was changed beside text that
    /// has another form in each.
    pub(crate) fn is_unclear(&self) -> bool {
        self.list.iter().any(|(name, _)| name.as_str() == "client_encoding")
            && self.list.iter().any(|(_, sql)| !sql.is_ascii())
    }

    /// Appends what brings a session from these to `target`, as one text. `init` is what every
    /// session begins with and what a return to the values of the log-in takes away: it comes back
    /// behind that.
    pub(crate) fn write_way(&self, target: &Self, init: &[u8], out: &mut Vec<u8>) {
        let mut resets = false;
        for (name, _) in self.list.iter().filter(|(name, _)| target.get(name).is_none()) {
            Action::Default.write_sql(name, out);
            out.extend_from_slice(b"; ");
            resets = true;
        }
        let anew = resets && !init.is_empty();
        if anew {
            out.extend_from_slice(init);
            out.extend_from_slice(b"; ");
        }
        for (name, sql) in &target.list {
            if anew || self.get(name) != Some(sql) {
                out.extend_from_slice(sql);
                out.extend_from_slice(b"; ");
            }
        }
    }

    /// The names and statements, for another worker.
    pub(crate) fn entries(&self) -> impl ExactSizeIterator<Item = (&[u8], &[u8])> {
        self.list.iter().map(|(name, sql)| (name.as_str().as_bytes(), &**sql))
    }

    /// A set that another worker sent; none if it is not one.
    pub(crate) fn from_entries(entries: Vec<(&[u8], &[u8])>) -> Option<Self> {
        let entry = |(name, sql)| Some((Name::new(name)?, Rc::from(sql)));
        entries.into_iter().map(entry).collect::<Option<_>>().map(Self::from_list)
    }
}

/// What the transaction under way has made of a server's variables.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    changes: Vec<Assignment>,
    /// A savepoint was set.
    has_savepoint: bool,
}

impl Pending {
    /// A statement has succeeded.
    pub(crate) fn add(&mut self, changes: &[Assignment]) {
        self.changes.extend_from_slice(changes);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Whether nothing has happened in this transaction.
    #[inline]
    pub(crate) fn is_fresh(&self) -> bool {
        self.changes.is_empty() && !self.has_savepoint
    }

    pub(crate) fn changes(&self) -> &[Assignment] {
        &self.changes
    }

    pub(crate) fn savepoint(&mut self) {
        self.has_savepoint = true;
    }

    /// Everything since the transaction began is undone. False: perhaps only a part of it, and what
    /// is left cannot be told.
    #[must_use]
    pub(crate) fn undo(&mut self) -> bool {
        let clear = !self.has_savepoint || self.changes.is_empty();
        self.changes.clear();
        clear
    }

    /// The transaction is over: what it has changed counts.
    pub(crate) fn commit(&mut self) -> Vec<Assignment> {
        self.has_savepoint = false;
        std::mem::take(&mut self.changes)
    }
}
