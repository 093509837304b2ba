//! A faithful little PostgreSQL backend behind its login: messages in, replies out, one unit of
//! work a step.
//!
//! The simulated servers are made of it, and so is each client's oracle: what a direct connection
//! would have answered. It does no I/O and has no clock; who runs it decides how far it gets.
//! Files: `sql.rs` (texts), `session.rs` (state), `run.rs` (statements), `extended.rs` (the
//! extended protocol). Next on the path: `run.rs`.

pub(crate) mod extended;
pub(crate) mod run;
pub(crate) mod session;
pub(crate) mod sql;

use std::collections::{BTreeMap, VecDeque};

use pgwire::{tag, write};

use self::extended::{Portal, Prepared};
use self::session::{Session, Transactional};
use self::sql::Stmt;
use crate::wire::Message;

/// What a backend is in the middle of.
#[derive(Clone, Debug)]
pub(crate) enum Active {
    /// A message has been read and is about to be dealt with.
    Message(Message),
    /// A statement of a simple Query is about to run.
    Statement(Stmt),
    /// Rows go out, one a step; `limit` rows at most before a portal is suspended.
    Rows { portal: Option<Vec<u8>>, limit: u32, sent: u32 },
    /// It sleeps.
    Sleep { until: u64, portal: Option<Vec<u8>>, stmt: Stmt },
    /// COPY FROM STDIN.
    CopyIn { rows: u32 },
    /// COPY TO STDOUT.
    CopyOut { left: u32, count: u32, stmt: Stmt },
}

/// Rows that are left of a result.
#[derive(Clone, Debug)]
pub(crate) struct Rows {
    /// How many are to come.
    pub(crate) left: u32,
    /// Each of them.
    pub(crate) values: Vec<Vec<u8>>,
}

/// A backend.
#[derive(Clone, Debug)]
pub(crate) struct Backend {
    /// What lasts between statements.
    pub(crate) session: Session,
    inbox: VecDeque<Message>,
    /// Replies, oldest first, whole messages.
    pub(crate) out: VecDeque<Vec<u8>>,
    /// How many of `out` the peer can see: the rest is buffered until something flushes.
    pub(crate) flushed: usize,
    in_block: bool,
    failed: bool,
    /// What a rollback goes back to; set while a transaction, implicit or not, is open.
    snapshot: Option<Transactional>,
    /// A statement has run in the open implicit transaction.
    has_run: bool,
    /// A simple Query of several statements runs.
    several: bool,
    skipping: bool,
    active: Option<Active>,
    /// The statements left of a simple Query.
    simple: Option<VecDeque<Stmt>>,
    /// The result that a simple Query is sending.
    rows: Option<Rows>,
    /// Prepared statements by name, unnamed and SQL-level ones included.
    pub(crate) statements: BTreeMap<Vec<u8>, Prepared>,
    portals: BTreeMap<Vec<u8>, Portal>,
    /// The proxy refused a request: nothing runs up to its end.
    refusing: Refusing,
    /// The time of the current step.
    now: u64,
    /// The client whose statements opened the transaction.
    opener: Option<u32>,
    /// The client whose statement ran last.
    pub(crate) last_tag: Option<u32>,
    /// The client whose statement has begun to run since somebody looked.
    pub(crate) began: Option<u32>,
    /// It has ended the connection.
    pub(crate) ended: bool,
    /// What must never happen and did.
    pub(crate) violations: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Refusing {
    No,
    /// The first message shows how far.
    Request,
    ToSync,
}

/// A failure of a statement.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    pub(crate) code: &'static [u8; 5],
    pub(crate) text: String,
}

impl Fault {
    pub(crate) fn new(code: &'static [u8; 5], text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }
}

pub(crate) const CANCELED: &[u8; 5] = b"57014";

impl Backend {
    /// A backend right after login.
    #[must_use]
    pub(crate) fn new(session: Session) -> Self {
        Self {
            session,
            inbox: VecDeque::new(),
            out: VecDeque::new(),
            flushed: 0,
            in_block: false,
            failed: false,
            snapshot: None,
            has_run: false,
            several: false,
            skipping: false,
            active: None,
            simple: None,
            rows: None,
            statements: BTreeMap::new(),
            portals: BTreeMap::new(),
            refusing: Refusing::No,
            now: 0,
            opener: None,
            last_tag: None,
            began: None,
            ended: false,
            violations: Vec::new(),
        }
    }

    /// Takes a message that has come whole.
    pub(crate) fn accept(&mut self, message: Message) {
        self.inbox.push_back(message);
    }

    /// Messages that have not been looked at.
    #[must_use]
    pub(crate) fn inbox(&self) -> &VecDeque<Message> {
        &self.inbox
    }

    /// Whether it has nothing to do and nothing to say.
    #[must_use]
    pub(crate) fn is_quiet(&self) -> bool {
        self.inbox.is_empty() && self.active.is_none() && self.simple.is_none()
    }

    /// Whether it can only go on with more from its peer.
    #[must_use]
    pub(crate) fn wants_input(&self) -> bool {
        let copying = matches!(self.active, Some(Active::CopyIn { .. }));
        self.inbox.is_empty() && (copying || self.is_quiet())
    }

    /// Whether it could do something now.
    #[must_use]
    pub(crate) fn can_step(&self, now: u64) -> bool {
        match &self.active {
            _ if self.ended => false,
            Some(Active::Sleep { until, .. }) => now >= *until,
            Some(Active::CopyIn { .. }) => !self.inbox.is_empty(),
            Some(_) => true,
            None => self.simple.is_some() || !self.inbox.is_empty(),
        }
    }

    /// When it wakes up, if it sleeps.
    #[must_use]
    pub(crate) fn wakes_at(&self) -> Option<u64> {
        match self.active {
            Some(Active::Sleep { until, .. }) => Some(until),
            _ => None,
        }
    }

    /// `I`, `T` or `E`.
    #[must_use]
    pub(crate) const fn status(&self) -> u8 {
        match (self.failed, self.in_block) {
            (true, _) => b'E',
            (_, true) => b'T',
            _ => b'I',
        }
    }

    /// Whether the next message would begin a request of an idle session.
    #[must_use]
    pub(crate) fn is_between_requests(&self) -> bool {
        self.status() == b'I'
            && !self.skipping
            && self.active.is_none()
            && self.simple.is_none()
            && self.snapshot.is_none()
            && self.refusing == Refusing::No
    }

    /// Whether a COPY FROM STDIN of the extended protocol is open.
    #[must_use]
    pub(crate) fn is_in_extended_copy(&self) -> bool {
        matches!(self.active, Some(Active::CopyIn { .. })) && self.simple.is_none()
    }

    /// One unit of work; false if there is none.
    pub(crate) fn step(&mut self, now: u64) -> bool {
        if !self.can_step(now) {
            return false;
        }
        self.now = now;
        match self.active.take() {
            Some(Active::Message(message)) => self.deal_with(message),
            Some(Active::Statement(stmt)) => self.run_simple(&stmt, now),
            Some(Active::Rows { portal, limit, sent }) => self.next_row(portal, limit, sent),
            Some(Active::Sleep { portal, stmt, .. }) => {
                let value = sql::tag_text(stmt.tag.unwrap_or(0)).into_bytes();
                self.start_rows(Rows { left: 1, values: vec![value] }, portal, 0);
            }
            Some(Active::CopyIn { rows }) => self.copy_in(rows),
            Some(Active::CopyOut { left, count, stmt }) => self.copy_out(left, count, stmt),
            None => match &mut self.simple {
                Some(rest) => match rest.pop_front() {
                    Some(stmt) => self.active = Some(Active::Statement(stmt)),
                    None => self.end_query(),
                },
                None => self.next_message(),
            },
        }
        true
    }

    fn next_message(&mut self) {
        let Some(message) = self.inbox.pop_front() else { return };
        if self.refusing != Refusing::No {
            return self.refuse_message(message.0);
        }
        match message.0 {
            tag::COPY_DATA | tag::COPY_DONE | tag::COPY_FAIL => {}
            tag::SYNC => {
                self.skipping = false;
                self.finish_request();
            }
            tag::FLUSH => {
                if !self.skipping {
                    self.flushed = self.out.len();
                }
            }
            tag::TERMINATE => self.ended = true,
            _ if self.skipping => {}
            _ => self.active = Some(Active::Message(message)),
        }
    }

    fn deal_with(&mut self, (tag, body): Message) {
        match tag {
            tag::QUERY => self.begin_query(&body),
            tag::FUNCTION_CALL => {
                if self.failed {
                    self.fail_query(&aborted());
                } else {
                    self.start_transaction();
                    self.out.push_back(crate::wire::message(tag::FUNCTION_RESPONSE, &[0xFF; 4]));
                    self.finish_request();
                }
            }
            _ => {
                if let Err(fault) = self.extended(tag, &body) {
                    self.fail(&fault);
                }
            }
        }
    }

    /// A signal: cancels what runs; an idle backend does not notice it.
    pub(crate) fn cancel(&mut self) -> bool {
        if !self.is_cancellable() {
            return false;
        }
        let fault = Fault::new(CANCELED, "canceling statement due to user request");
        if let Some(Active::Message(message)) = &self.active {
            let is_query = matches!(message.0, tag::QUERY | tag::FUNCTION_CALL);
            if message.0 == tag::QUERY || message.0 == tag::PARSE && message.1.first() == Some(&0) {
                self.statements.remove(&b""[..]);
            }
            self.active = None;
            if is_query {
                self.fail_query(&fault);
            } else {
                self.fail(&fault);
            }
            return true;
        }
        self.active = None;
        self.fail(&fault);
        true
    }

    /// Whether a signal would cancel something.
    #[must_use]
    pub(crate) const fn is_cancellable(&self) -> bool {
        self.active.is_some()
    }

    /// The end of a Query, a FunctionCall or a batch: an implicit transaction commits.
    pub(crate) fn finish_request(&mut self) {
        if !self.in_block {
            self.commit();
        }
        self.ready();
    }

    /// Reports changed settings, then ReadyForQuery, and flushes.
    pub(crate) fn ready(&mut self) {
        let now = self.session.reportable();
        let mut bytes = Vec::new();
        for (name, value) in &now {
            if self.session.reported.get(name) != Some(value) {
                write::parameter_status(&mut bytes, name.as_bytes(), value.as_bytes());
                self.out.push_back(std::mem::take(&mut bytes));
            }
        }
        self.session.reported = now;
        write::ready_for_query(&mut bytes, self.status());
        self.push_flushed(bytes);
    }

    pub(crate) fn push(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = Vec::new();
        write(&mut bytes);
        self.out.push_back(bytes);
    }

    /// Adds a reply that goes out at once, with all that came before it.
    pub(crate) fn push_flushed(&mut self, bytes: Vec<u8>) {
        self.out.push_back(bytes);
        self.flushed = self.out.len();
    }

    /// Takes the oldest reply.
    pub(crate) fn take_reply(&mut self) -> Option<Vec<u8>> {
        self.flushed = self.flushed.saturating_sub(1);
        self.out.pop_front()
    }

    /// An error: what runs ends, its transaction is rolled back.
    pub(crate) fn fail(&mut self, fault: &Fault) {
        self.push(|out| write::error(out, "ERROR", fault.code, &fault.text, None, None));
        self.flushed = self.out.len();
        self.abort();
        self.active = None;
        self.rows = None;
        if self.simple.take().is_some() {
            self.several = false;
            self.ready();
        } else {
            self.skipping = true;
        }
    }

    /// An error of a message that is answered with ReadyForQuery by itself.
    pub(crate) fn fail_query(&mut self, fault: &Fault) {
        self.simple = Some(VecDeque::new());
        self.fail(fault);
    }

    pub(crate) fn start_transaction(&mut self) {
        if self.snapshot.is_none() {
            self.snapshot = Some(self.session.kept.clone());
        }
    }

    pub(crate) fn commit(&mut self) {
        self.end_transaction();
    }

    /// Rolls back; inside a block, the block goes on as a failed one.
    fn abort(&mut self) {
        if let Some(before) = self.snapshot.take() {
            self.session.kept = before;
        }
        self.session.locals.clear();
        self.has_run = false;
        if self.in_block {
            self.failed = true;
            self.snapshot = Some(self.session.kept.clone());
        }
        self.portals.clear();
    }

    pub(crate) fn end_transaction(&mut self) {
        self.snapshot = None;
        self.in_block = false;
        self.failed = false;
        self.has_run = false;
        self.opener = None;
        self.session.locals.clear();
        self.portals.clear();
    }

    pub(crate) fn roll_back(&mut self) {
        if let Some(before) = self.snapshot.take() {
            self.session.kept = before;
        }
        self.end_transaction();
    }

    /// The proxy answers the next request with an error of its own: nothing of it runs.
    pub(crate) fn refuse(&mut self) {
        self.refusing = Refusing::Request;
    }

    fn refuse_message(&mut self, tag: u8) {
        match tag {
            tag::COPY_DATA | tag::COPY_DONE | tag::COPY_FAIL => {}
            tag::FLUSH if self.refusing == Refusing::Request => {}
            tag::TERMINATE => self.ended = true,
            tag::SYNC => self.end_refusal(),
            tag::QUERY | tag::FUNCTION_CALL if self.refusing == Refusing::Request => {
                self.end_refusal();
            }
            _ => self.refusing = Refusing::ToSync,
        }
    }

    fn end_refusal(&mut self) {
        self.refusing = Refusing::No;
        self.ready();
    }
}

pub(crate) fn aborted() -> Fault {
    let text = "current transaction is aborted, commands ignored until end of transaction block";
    Fault::new(b"25P02", text)
}
