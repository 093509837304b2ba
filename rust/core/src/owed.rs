//! The reply queue of a server: what it still owes, in the order in which it will answer.
//!
//! Each entry says which reply ends it and whether the client sees that reply. An error inside an
//! extended batch makes the server skip to the next Sync; the entries it skips are taken out here,
//! too.
//!
//! What a message changes about statements is kept beside its entry and counts once its reply has
//! come; what the server skips has never counted. Until then a later message of the same batch
//! takes the change as made (had it failed, that message would be skipped as well), and a message
//! of a later batch has to wait. Next on the path: `pg/replies.rs`.

use std::collections::VecDeque;
use std::rc::Rc;

use sqlscan::Reset;

use crate::prepared::{Statement, StatementId};
use crate::variables::Assignment;

/// What kind of request an entry stands for, that is, which reply ends it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// A simple Query: ends with ReadyForQuery.
    Query,
    /// A FunctionCall: ends with ReadyForQuery.
    Function,
    /// A Sync: ends with ReadyForQuery.
    Sync,
    Parse,
    Bind,
    /// Describe of a statement or portal: ends with RowDescription or NoData.
    Describe,
    Execute,
    Close,
    /// CopyDone or CopyFail: no reply of its own.
    CopyEnd,
    /// A ParseComplete of ours for a statement that the server holds already.
    Synthetic,
}

impl Kind {
    pub(crate) const fn ends_with_ready(self) -> bool {
        matches!(self, Self::Query | Self::Function | Self::Sync)
    }
}

/// A change that a message makes if the server passes it.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    /// The client's name (empty: its unnamed statement) means this statement; none: what the server
    /// holds under that name, if anything.
    Name { name: Box<[u8]>, means: Option<Rc<Statement>> },
    /// The server's unnamed statement is this one; 0 = none.
    Unnamed(StatementId),
    /// The server holds a statement, or holds it no more.
    Held { statement: Rc<Statement>, is_held: bool },
    /// Every named statement may be gone; the reply tells.
    DropAll,
    /// Session variables get other values.
    Assign(Rc<[Assignment]>),
}

/// What the messages on their way make of something.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Pending<T> {
    /// None of them touches it.
    Untouched,
    /// This, wherever a message that is sent now is not skipped.
    Will(T),
    /// Only the server's answer can tell.
    Unsure,
}

/// What else there is to know about an entry.
#[derive(Debug, Default)]
pub(crate) enum Note {
    #[default]
    None,
    /// An error about this message names our statement: the client is shown its own name instead.
    Shown { server_name: Box<[u8]>, client_name: Box<[u8]> },
    /// A simple Query that is one of the known resets; `failed` once an error came.
    Reset { reset: Reset, failed: bool },
    /// A simple Query that sets session variables; `failed` once an error came.
    Assigns { failed: bool },
    /// Our own `SET application_name`.
    OwnName,
    /// Our own statements that give the server its client's variables; the server's words once an
    /// error came.
    Restore { failure: Option<String> },
    /// A step of our own housekeeping; `failed` once an error came.
    Own { failed: bool },
}

/// One entry.
#[derive(Debug)]
pub(crate) struct Owed {
    pub(crate) kind: Kind,
    /// The client does not see the reply.
    pub(crate) swallow: bool,
    pub(crate) note: Note,
    /// How many of the queue's changes are its own.
    changes: u8,
}

impl Owed {
    pub(crate) const fn forward(kind: Kind) -> Self {
        Self { kind, swallow: false, note: Note::None, changes: 0 }
    }

    pub(crate) const fn swallow(kind: Kind) -> Self {
        Self { kind, swallow: true, note: Note::None, changes: 0 }
    }

    pub(crate) const fn own(note: Note) -> Self {
        Self { kind: Kind::Query, swallow: true, note, changes: 0 }
    }

    /// How many changes its answer makes.
    pub(crate) const fn changes(&self) -> u8 {
        self.changes
    }

    pub(crate) const fn noted(kind: Kind, note: Note) -> Self {
        Self { kind, swallow: false, note, changes: 0 }
    }
}

/// The queue.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    entries: VecDeque<Owed>,
    /// What they change, in the same order, each with its batch.
    changes: VecDeque<(u64, Change)>,
    /// So many of the changes belong to an entry that was taken out last.
    due: usize,
    /// Counts the Syncs that were sent: between two of them an error skips all that follows.
    batch: u64,
    /// ReadyForQuery still to come.
    readies: usize,
    /// Since the last Sync or Query that was sent, an extended-protocol message was sent.
    open: bool,
    /// The server reported an error and reads nothing but Sync.
    skipping: bool,
    /// Behind the last entry the server was asked for the replies that it holds back.
    flushed: bool,
}

impl Queue {
    pub(crate) fn push(&mut self, owed: Owed) {
        self.push_changing(owed, []);
    }

    /// Adds an entry, and what changes once it is answered; at most 255 changes.
    pub(crate) fn push_changing(
        &mut self,
        mut owed: Owed,
        changes: impl IntoIterator<Item = Change>,
    ) {
        self.flushed = false;
        match owed.kind {
            Kind::Query | Kind::Function => {
                // Inside a batch that failed the server drops these, too.
                if self.skipping {
                    return;
                }
                self.open = false;
                self.readies += 1;
            }
            Kind::Sync => {
                self.open = false;
                self.skipping = false;
                self.readies += 1;
                self.batch += 1;
            }
            Kind::CopyEnd => {}
            _ => {
                self.open = true;
                if self.skipping {
                    return;
                }
            }
        }
        for change in changes {
            self.changes.push_back((self.batch, change));
            owed.changes += 1;
        }
        self.entries.push_back(owed);
    }

    /// Notes the end of copy data; an end right behind another one ends nothing more.
    pub(crate) fn push_copy_end(&mut self) {
        let is_last = |owed: &Owed| owed.kind == Kind::CopyEnd;
        if self.entries.back().is_some_and(|owed| !is_last(owed)) {
            self.push(Owed::forward(Kind::CopyEnd));
        }
    }

    /// Whether the server holds replies back until a Flush or Sync, and has not been asked for them
    /// since the last entry. It is counted as asked from now on.
    pub(crate) fn wants_flush(&mut self) -> bool {
        self.open && !std::mem::replace(&mut self.flushed, true)
    }

    pub(crate) fn front(&self) -> Option<&Owed> {
        self.entries.front()
    }

    /// Whether a ParseComplete of ours is the oldest.
    #[inline]
    pub(crate) fn front_is_synthetic(&self) -> bool {
        self.front().is_some_and(|owed| owed.kind == Kind::Synthetic)
    }

    pub(crate) fn front_mut(&mut self) -> Option<&mut Owed> {
        self.entries.front_mut()
    }

    /// Takes the oldest entry out; its changes are for [`Queue::take_change`].
    pub(crate) fn pop(&mut self) -> Option<Owed> {
        let owed = self.entries.pop_front()?;
        if owed.kind.ends_with_ready() {
            self.readies -= 1;
        }
        self.due += usize::from(owed.changes);
        Some(owed)
    }

    /// Takes a change of an entry that was answered, in the order in which they were made.
    pub(crate) fn take_change(&mut self) -> Option<Change> {
        self.due = self.due.checked_sub(1)?;
        self.changes.pop_front().map(|(_, change)| change)
    }

    /// Takes out what the server skips after an error in an extended batch: gives the entry that
    /// failed and the changes that it would have made.
    pub(crate) fn skip_to_sync(&mut self) -> Option<(Owed, Vec<Change>)> {
        let end = self.entries.iter().position(|owed| owed.kind == Kind::Sync);
        self.skipping = end.is_none();
        let mut skipped = self.entries.drain(..end.unwrap_or(self.entries.len()));
        let failed = skipped.next();
        let (mut readies, mut changes) = (0, 0);
        for owed in skipped {
            readies += usize::from(owed.kind.ends_with_ready());
            changes += usize::from(owed.changes);
        }
        self.readies -= readies;
        let failed = failed?;
        let own = usize::from(failed.changes);
        let mut dropped = self.changes.drain(..(own + changes).min(self.changes.len()));
        let own = dropped.by_ref().take(own).map(|(_, change)| change).collect();
        Some((failed, own))
    }

    /// The server entered COPY IN: it ignores the Syncs that come before the CopyDone or CopyFail.
    /// Gives how many were on their way.
    pub(crate) fn drop_syncs_before_copy_end(&mut self) -> usize {
        let end = self
            .entries
            .iter()
            .position(|owed| owed.kind == Kind::CopyEnd)
            .unwrap_or(self.entries.len());
        let before = self.entries.len();
        let mut index = 0;
        self.entries.retain(|owed| {
            let keep = index >= end || owed.kind != Kind::Sync;
            index += 1;
            keep
        });
        let dropped = before - self.entries.len();
        self.readies -= dropped;
        dropped
    }

    /// What the latest change that touches something says; `touched` gives none for a change that
    /// does not, and `Some(None)` for one whose outcome only the reply tells.
    fn latest<'a, T>(&'a self, touched: impl Fn(&'a Change) -> Option<Option<T>>) -> Pending<T> {
        let says = |(batch, change): &'a (u64, Change)| Some((*batch, touched(change)?));
        match self.changes.iter().rev().find_map(says) {
            None => Pending::Untouched,
            Some((batch, Some(will))) if batch == self.batch => Pending::Will(will),
            Some(_) => Pending::Unsure,
        }
    }

    /// What a name of the client's will mean; the empty one is its unnamed statement.
    pub(crate) fn name(&self, name: &[u8]) -> Pending<Option<&Rc<Statement>>> {
        self.latest(|change| match change {
            Change::Name { name: other, means } if **other == *name => Some(Some(means.as_ref())),
            // The unnamed statement is no entry of PostgreSQL's table: it stays.
            Change::DropAll if !name.is_empty() => Some(None),
            _ => None,
        })
    }

    /// What the server's unnamed statement will be.
    pub(crate) fn unnamed(&self) -> Pending<StatementId> {
        self.latest(|change| match change {
            Change::Unnamed(id) => Some(Some(*id)),
            _ => None,
        })
    }

    /// Whether the server will hold a statement.
    pub(crate) fn held(&self, id: StatementId) -> Pending<bool> {
        self.latest(|change| match change {
            Change::Held { statement, is_held } if statement.id == id => Some(Some(*is_held)),
            Change::DropAll => Some(None),
            _ => None,
        })
    }

    /// Whether a message on its way puts this statement in the unnamed one's place.
    pub(crate) fn brings_unnamed(&self, id: StatementId) -> bool {
        self.changes.iter().any(|(_, change)| matches!(change, Change::Unnamed(to) if *to == id))
    }

    /// The changes that are on their way, oldest first.
    pub(crate) fn changes(&self) -> impl Iterator<Item = &Change> + Clone {
        self.changes.iter().map(|(_, change)| change)
    }

    /// Whether a message on its way touches names (but for the unnamed statement).
    pub(crate) fn touches_names(&self) -> bool {
        let touches = |change: &Change| match change {
            Change::Name { name, .. } => !name.is_empty(),
            change => matches!(change, Change::DropAll),
        };
        self.changes().any(touches)
    }

    /// Whether the server is being given its client's variables.
    #[inline]
    pub(crate) fn is_restoring(&self) -> bool {
        self.front().is_some_and(|owed| matches!(owed.note, Note::Restore { .. }))
    }

    /// Whether our own `SET application_name` is all that the server has to answer.
    #[inline]
    pub(crate) fn is_name_alone(&self) -> bool {
        self.len() == 1 && self.front().is_some_and(|owed| matches!(owed.note, Note::OwnName))
    }

    /// Whether a message on its way gives a session variable another value.
    pub(crate) fn assigns(&self) -> bool {
        self.changes().any(|change| matches!(change, Change::Assign(_)))
    }

    /// Whether what is on its way may change session variables in any way that is followed.
    pub(crate) fn sets_variables(&self) -> bool {
        let sets = |note: &Note| {
            matches!(note, Note::Reset { .. } | Note::Assigns { .. } | Note::Restore { .. })
        };
        self.assigns() || self.iter().any(|owed| sets(&owed.note))
    }

    /// Whether what the server deals with next, up to its next ReadyForQuery, is ours alone.
    pub(crate) fn is_ours(&self) -> bool {
        let ours = |owed: &Owed| owed.swallow;
        let end = self.entries.iter().position(|owed| owed.kind.ends_with_ready());
        let count = end.map_or(self.entries.len(), |end| end + 1);
        count > 0 && self.entries.iter().take(count).all(ours)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// ReadyForQuery still to come.
    pub(crate) fn readies(&self) -> usize {
        self.readies
    }

    /// Whether an extended batch waits for its Sync.
    pub(crate) fn is_open(&self) -> bool {
        self.open
    }

    /// Whether the server reads nothing but Sync.
    pub(crate) fn is_skipping(&self) -> bool {
        self.skipping
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Owed> {
        self.entries.iter()
    }

    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.changes.clear();
        self.due = 0;
        self.readies = 0;
        self.open = false;
        self.skipping = false;
    }
}

#[cfg(test)]
mod tests {
    use super::{Change, Kind, Owed, Pending, Queue};

    fn queue(kinds: &[Kind]) -> Queue {
        let mut queue = Queue::default();
        for kind in kinds {
            queue.push(Owed::forward(*kind));
        }
        queue
    }

    /// Whether a name will mean a statement.
    fn name(queue: &Queue, name: &[u8]) -> Pending<bool> {
        match queue.name(name) {
            Pending::Untouched => Pending::Untouched,
            Pending::Will(means) => Pending::Will(means.is_some()),
            Pending::Unsure => Pending::Unsure,
        }
    }

    fn drops(name: &str) -> Change {
        Change::Name { name: name.as_bytes().into(), means: None }
    }

    #[test]
    fn an_error_skips_to_the_next_sync_and_no_further() {
        let mut queue =
            queue(&[Kind::Parse, Kind::Bind, Kind::Query, Kind::Sync, Kind::Parse, Kind::Sync]);
        assert_eq!(queue.readies(), 3);
        let failed = queue.skip_to_sync().map(|(owed, _)| owed.kind);
        assert_eq!(failed, Some(Kind::Parse));
        assert_eq!((queue.readies(), queue.is_skipping()), (2, false));
        assert_eq!(queue.front().map(|owed| owed.kind), Some(Kind::Sync));
    }

    #[test]
    fn after_an_error_without_sync_only_the_sync_is_owed() {
        let mut queue = queue(&[Kind::Parse]);
        assert!(queue.skip_to_sync().is_some());
        queue.push(Owed::forward(Kind::Bind));
        queue.push_changing(Owed::forward(Kind::Query), [drops("a")]);
        assert!(queue.is_empty() && queue.is_skipping() && queue.readies() == 0);
        assert_eq!(name(&queue, b"a"), Pending::Untouched);
        queue.push(Owed::forward(Kind::Sync));
        assert_eq!((queue.readies(), queue.is_skipping(), queue.len()), (1, false, 1));
    }

    #[test]
    fn a_change_is_expected_in_its_own_batch_and_waited_for_in_a_later_one() {
        let mut queue = Queue::default();
        queue.push_changing(Owed::forward(Kind::Close), [drops("a")]);
        queue.push(Owed::forward(Kind::Query));
        assert_eq!(name(&queue, b"a"), Pending::Will(false));
        queue.push(Owed::forward(Kind::Sync));
        assert_eq!(name(&queue, b"a"), Pending::Unsure);
        assert_eq!(name(&queue, b"b"), Pending::Untouched);
        queue.push_changing(Owed::forward(Kind::Close), [drops("a")]);
        assert_eq!(name(&queue, b"a"), Pending::Will(false));
    }

    #[test]
    fn what_may_drop_all_names_is_waited_for_but_not_for_the_unnamed_statement() {
        let mut queue = Queue::default();
        queue.push_changing(Owed::forward(Kind::Execute), [Change::DropAll]);
        assert_eq!((name(&queue, b"a"), queue.held(7)), (Pending::Unsure, Pending::Unsure));
        assert_eq!((name(&queue, b""), queue.unnamed()), (Pending::Untouched, Pending::Untouched));
        queue.push_changing(Owed::forward(Kind::Close), [drops("a")]);
        assert_eq!(name(&queue, b"a"), Pending::Will(false));
    }

    #[test]
    fn changes_count_once_they_are_answered_and_never_if_they_are_skipped() {
        let mut queue = Queue::default();
        for name in ["a", "b", "c"] {
            queue.push_changing(Owed::forward(Kind::Close), [drops(name)]);
        }
        queue.push(Owed::forward(Kind::Sync));
        queue.push_changing(Owed::forward(Kind::Close), [Change::Unnamed(5)]);
        assert!(queue.take_change().is_none());
        queue.pop();
        let is_a = |change| matches!(change, Some(Change::Name { name, .. }) if *name == *b"a");
        assert!(is_a(queue.take_change()) && queue.take_change().is_none());
        let failed = queue.skip_to_sync().map(|(_, changes)| changes.len());
        assert_eq!(
            (failed, name(&queue, b"b"), name(&queue, b"c")),
            (Some(1), Pending::Untouched, Pending::Untouched)
        );
        queue.pop();
        assert!(queue.take_change().is_none());
        queue.pop();
        assert!(matches!(queue.take_change(), Some(Change::Unnamed(5))));
    }

    #[test]
    fn copy_in_ignores_syncs_only_up_to_the_end_of_the_data() {
        let mut queue = queue(&[Kind::Execute, Kind::Sync, Kind::CopyEnd, Kind::Sync]);
        assert_eq!(queue.drop_syncs_before_copy_end(), 1);
        let left: Vec<Kind> = queue.iter().map(|owed| owed.kind).collect();
        assert_eq!(left, [Kind::Execute, Kind::CopyEnd, Kind::Sync]);
        assert_eq!(queue.readies(), 1);
    }
}
