//! The reply queue of a server: what it still owes, in the order in which it will answer.
//!
//! Each entry says which reply ends it and whether the client sees that reply. An error inside an
//! extended batch makes the server skip to the next Sync; the entries it skips are taken out here,
//! too, and the changes that their messages would have made to statement names are undone, last
//! first. Next on the path: `pg/replies.rs`.

use std::collections::VecDeque;
use std::rc::Rc;

use sqlscan::Reset;

use crate::prepared::{Statement, StatementId};

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
#[derive(Debug, Default)]
pub(crate) enum Note {
    #[default]
    None,
    /// A Parse of ours or of a client put this statement on the server.
    Prepared(Rc<Statement>),
    /// A client's Parse gave one of its names to a statement; `on_server` if it was really sent.
    Named { name: Box<[u8]>, on_server: Option<Rc<Statement>> },
    /// A client's Parse of the unnamed statement: what client and server had before.
    Unnamed { client: Option<Rc<Statement>>, server: StatementId },
    /// A Parse of ours of the unnamed statement: what the server had before.
    UnnamedOnServer { server: StatementId },
    /// A client's Close took this name away.
    Closed { name: Box<[u8]>, statement: Option<Rc<Statement>> },
    /// A Parse of ours put this name of the client's on the server as it is.
    Native { name: Box<[u8]>, statement: Rc<Statement> },
    /// A Close of ours took this statement off the server.
    Evicted(Rc<Statement>),
    /// An error about this message names our statement: the client is shown its own name instead.
    Shown { server_name: Box<[u8]>, client_name: Box<[u8]> },
    /// A simple Query that is one of the known resets; `failed` once an error came.
    Reset { reset: Reset, failed: bool },
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
}

impl Owed {
    pub(crate) const fn forward(kind: Kind) -> Self {
        Self { kind, swallow: false, note: Note::None }
    }

    pub(crate) const fn swallow(kind: Kind, note: Note) -> Self {
        Self { kind, swallow: true, note }
    }

    pub(crate) const fn noted(kind: Kind, note: Note) -> Self {
        Self { kind, swallow: false, note }
    }
}

/// The queue.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    entries: VecDeque<Owed>,
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
            }
            Kind::CopyEnd => {}
            _ => {
                self.open = true;
                if self.skipping {
                    return;
                }
            }
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

    pub(crate) fn front_mut(&mut self) -> Option<&mut Owed> {
        self.entries.front_mut()
    }

    pub(crate) fn pop(&mut self) -> Option<Owed> {
        let owed = self.entries.pop_front()?;
        if owed.kind.ends_with_ready() {
            self.readies -= 1;
        }
        Some(owed)
    }

    /// Takes out what the server skips after an error in an extended batch, last first.
    pub(crate) fn skip_to_sync(&mut self) -> Vec<Owed> {
        let end = self.entries.iter().position(|owed| owed.kind == Kind::Sync);
        self.skipping = end.is_none();
        let end = end.unwrap_or(self.entries.len());
        let skipped: Vec<Owed> = self.entries.drain(..end).rev().collect();
        self.readies -= skipped.iter().filter(|owed| owed.kind.ends_with_ready()).count();
        skipped
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

    /// Whether an earlier batch that has not been confirmed closes this statement: an error there
    /// would keep it.
    pub(crate) fn may_still_close(&self, id: StatementId) -> bool {
        let closes = |owed: &Owed| matches!(&owed.note, Note::Evicted(gone) if gone.id == id);
        self.readies > 0 && self.entries.iter().any(closes)
    }

    /// Whether a request on its way drops or replaces the unnamed statement: then its fate lies
    /// there. If that one fails as well, it goes back to these.
    pub(crate) fn is_unnamed_settled_later(
        &mut self,
        had: &Option<Rc<Statement>>,
        server_had: StatementId,
    ) -> bool {
        for owed in &mut self.entries {
            match &mut owed.note {
                Note::Unnamed { client, server } => {
                    client.clone_from(had);
                    *server = server_had;
                    return true;
                }
                _ if owed.kind == Kind::Query => return true,
                _ => {}
            }
        }
        false
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
        self.readies = 0;
        self.open = false;
        self.skipping = false;
    }
}

#[cfg(test)]
mod tests {
    use super::{Kind, Owed, Queue};

    fn queue(kinds: &[Kind]) -> Queue {
        let mut queue = Queue::default();
        for kind in kinds {
            queue.push(Owed::forward(*kind));
        }
        queue
    }

    #[test]
    fn an_error_skips_to_the_next_sync_and_no_further() {
        let mut queue =
            queue(&[Kind::Parse, Kind::Bind, Kind::Query, Kind::Sync, Kind::Parse, Kind::Sync]);
        assert_eq!(queue.readies(), 3);
        let skipped: Vec<Kind> = queue.skip_to_sync().iter().map(|owed| owed.kind).collect();
        assert_eq!(skipped, [Kind::Query, Kind::Bind, Kind::Parse]);
        assert_eq!((queue.readies(), queue.is_skipping()), (2, false));
        assert_eq!(queue.front().map(|owed| owed.kind), Some(Kind::Sync));
    }

    #[test]
    fn after_an_error_without_sync_only_the_sync_is_owed() {
        let mut queue = queue(&[Kind::Parse]);
        assert_eq!(queue.skip_to_sync().len(), 1);
        queue.push(Owed::forward(Kind::Bind));
        queue.push(Owed::forward(Kind::Query));
        assert!(queue.is_empty() && queue.is_skipping() && queue.readies() == 0);
        queue.push(Owed::forward(Kind::Sync));
        assert_eq!((queue.readies(), queue.is_skipping(), queue.len()), (1, false, 1));
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
