//! Statements as a backend runs them: simple Query, results, COPY, transactions, session state.
//!
//! Next on the path: `extended.rs`.

use std::collections::VecDeque;

use pgwire::{frontend, tag, write};

use super::extended::Prepared;
use super::sql::{self, Op, Stmt};
use super::{Active, Backend, Fault, Rows, aborted};

/// What running a statement leads to.
pub(crate) enum Eval {
    /// Done; the command tag.
    Tag(String),
    /// Rows follow.
    Rows(Rows),
    /// Sleeps, then answers with one row.
    Sleep(u64),
    CopyIn,
    CopyOut(u32),
}

impl Backend {
    /// A simple Query has been read.
    pub(crate) fn begin_query(&mut self, body: &[u8]) {
        self.statements.remove(&b""[..]);
        let text = frontend::query_text(body).unwrap_or_default();
        let Some(statements) = sql::read(text) else {
            return self.fail_query(&Fault::new(b"42601", "syntax error"));
        };
        if statements.is_empty() {
            self.push(write::empty_query);
            return self.finish_request();
        }
        self.several = statements.len() > 1;
        self.simple = Some(VecDeque::from(statements));
    }

    pub(crate) fn end_query(&mut self) {
        self.simple = None;
        self.several = false;
        self.finish_request();
    }

    /// Runs one statement of a simple Query.
    pub(crate) fn run_simple(&mut self, stmt: &Stmt, now: u64) {
        match self.evaluate(stmt, None) {
            Err(fault) => self.fail(&fault),
            Ok(eval) => {
                if stmt.has_rows() {
                    self.describe(stmt);
                }
                self.begin(eval, stmt, None, 0, now);
            }
        }
    }

    /// Starts what a statement's evaluation led to; `portal` is none in a simple Query.
    pub(crate) fn begin(
        &mut self,
        eval: Eval,
        stmt: &Stmt,
        portal: Option<Vec<u8>>,
        limit: u32,
        now: u64,
    ) {
        match eval {
            Eval::Tag(command) => {
                self.push(|out| write::command_complete(out, command.as_bytes()));
            }
            Eval::Rows(rows) => self.start_rows(rows, portal, limit),
            Eval::Sleep(ms) => {
                let until = now.saturating_add(ms * 1000);
                self.active = Some(Active::Sleep { until, portal, stmt: stmt.clone() });
            }
            Eval::CopyIn => {
                self.push(write::copy_in_response);
                self.flushed = self.out.len();
                self.active = Some(Active::CopyIn { rows: 0 });
            }
            Eval::CopyOut(count) => {
                self.push(write::copy_out_response);
                self.active = Some(Active::CopyOut { left: count, count, stmt: stmt.clone() });
            }
        }
    }

    pub(crate) fn start_rows(&mut self, rows: Rows, portal: Option<Vec<u8>>, limit: u32) {
        match &portal {
            Some(name) => {
                if let Some(portal) = self.portals.get_mut(name) {
                    portal.rows = Some(rows);
                }
            }
            None => self.rows = Some(rows),
        }
        self.active = Some(Active::Rows { portal, limit, sent: 0 });
    }

    /// Sends a row, or the result's end.
    pub(crate) fn next_row(&mut self, portal: Option<Vec<u8>>, limit: u32, sent: u32) {
        let rows = match &portal {
            Some(name) => self.portals.get_mut(name).and_then(|portal| portal.rows.as_mut()),
            None => self.rows.as_mut(),
        };
        let Some(rows) = rows else { return };
        if limit > 0 && sent == limit {
            return self.push(write::portal_suspended);
        }
        if rows.left == 0 {
            return self.push(|out| {
                write::command_complete(out, format!("SELECT {sent}").as_bytes());
            });
        }
        rows.left -= 1;
        let values: Vec<Option<Vec<u8>>> = rows.values.iter().cloned().map(Some).collect();
        let borrowed: Vec<Option<&[u8]>> = values.iter().map(Option::as_deref).collect();
        self.push(|out| write::data_row(out, &borrowed));
        self.active = Some(Active::Rows { portal, limit, sent: sent + 1 });
    }

    pub(crate) fn copy_in(&mut self, rows: u32) {
        let Some((tag, body)) = self.inbox.pop_front() else { return };
        match tag {
            tag::COPY_DATA if body == b"bad\n" => {
                self.fail(&Fault::new(b"22P02", "invalid input syntax"));
            }
            tag::COPY_DATA => self.active = Some(Active::CopyIn { rows: rows + 1 }),
            tag::COPY_DONE => {
                self.push(|out| write::command_complete(out, format!("COPY {rows}").as_bytes()));
            }
            tag::COPY_FAIL => {
                self.fail(&Fault::new(b"57014", "COPY from stdin failed: by the client"));
            }
            tag::FLUSH | tag::SYNC => self.active = Some(Active::CopyIn { rows }),
            _ => {
                let text = format!("unexpected message type 0x{tag:02X} during COPY from stdin");
                self.push(|out| write::error(out, "ERROR", b"08P01", &text, None, None));
                let text = "terminating connection because protocol synchronization was lost";
                self.push(|out| write::error(out, "FATAL", b"08P01", text, None, None));
                self.flushed = self.out.len();
                self.ended = true;
            }
        }
    }

    pub(crate) fn copy_out(&mut self, left: u32, count: u32, stmt: Stmt) {
        if left == 0 {
            self.push(write::copy_done);
            let command = format!("COPY {count}");
            return self.push(|out| write::command_complete(out, command.as_bytes()));
        }
        let line = format!("{}\n", sql::tag_text(stmt.tag.unwrap_or(0)));
        self.push(|out| write::copy_data(out, line.as_bytes()));
        self.active = Some(Active::CopyOut { left: left - 1, count, stmt });
    }

    /// RowDescription or NoData.
    pub(crate) fn describe(&mut self, stmt: &Stmt) {
        match &stmt.op {
            Op::Rows { param: true, .. } | Op::Execute(_) => {
                self.push(|out| write::row_description_text(out, &["tag", "label"]));
            }
            _ if stmt.has_rows() => {
                self.push(|out| write::row_description_text(out, &["value"]));
            }
            _ => self.push(write::no_data),
        }
    }

    /// Looks at what a client's statement would meet in the session.
    fn check_session(&mut self, tag: u32) {
        self.last_tag = Some(tag);
        self.began = Some(tag);
        if let Some(what) = self.session.foreign_to(tag) {
            self.violations.push(format!("I3: client {tag} met {what}"));
        }
        if self.in_block && self.opener.is_some_and(|opener| opener != tag) {
            let opener = self.opener;
            self.violations.push(format!("I2: client {tag} ran inside {opener:?}'s transaction"));
        }
    }

    /// Runs a statement; `param` is the client's tag as the first parameter gives it.
    pub(crate) fn evaluate(&mut self, stmt: &Stmt, param: Option<&[u8]>) -> Result<Eval, Fault> {
        let tag = stmt.tag.or_else(|| param.and_then(sql::read_tag));
        if let Some(tag) = tag {
            self.check_session(tag);
        }
        if self.failed && !stmt.is_exit() {
            return Err(aborted());
        }
        self.start_transaction();
        let alone = !self.in_block && !self.has_run && !self.several;
        self.has_run = true;
        let done = |tag: &str| Ok(Eval::Tag(tag.to_owned()));
        match &stmt.op {
            Op::Begin => {
                if !self.in_block {
                    self.opener = tag;
                }
                self.in_block = true;
                done("BEGIN")
            }
            Op::Commit if self.failed => {
                self.roll_back();
                done("ROLLBACK")
            }
            Op::Commit => {
                self.end_transaction();
                done("COMMIT")
            }
            Op::Rollback => {
                self.roll_back();
                done("ROLLBACK")
            }
            Op::DiscardAll if !alone => {
                Err(Fault::new(b"25001", "DISCARD ALL cannot run inside a transaction block"))
            }
            _ => self.evaluate_state(stmt, tag, param),
        }
    }

    fn evaluate_state(
        &mut self,
        stmt: &Stmt,
        tag: Option<u32>,
        param: Option<&[u8]>,
    ) -> Result<Eval, Fault> {
        let done = |tag: &str| Ok(Eval::Tag(tag.to_owned()));
        match &stmt.op {
            Op::Set { name, value, local } => {
                self.session.set(name, value, *local, tag);
                done("SET")
            }
            Op::Reset(name) => {
                self.session.kept.settings.remove(name);
                self.session.locals.remove(name);
                done("RESET")
            }
            Op::ResetAll => {
                self.session.reset_all(tag);
                done("RESET")
            }
            Op::DiscardAll => {
                self.session.discard_all(tag);
                self.drop_named();
                done("DISCARD ALL")
            }
            Op::DiscardSequences => {
                self.session.sequence = None;
                done("DISCARD SEQUENCES")
            }
            Op::Temp if self.session.kept.temp.is_some() => {
                Err(Fault::new(b"42P07", "relation \"t\" already exists"))
            }
            Op::Temp => {
                self.session.kept.temp = tag;
                done("CREATE TABLE")
            }
            Op::Listen => {
                self.session.kept.listens = tag;
                done("LISTEN")
            }
            Op::UnlistenAll => {
                self.session.kept.listens = None;
                done("UNLISTEN")
            }
            Op::CloseAll => done("CLOSE CURSOR ALL"),
            Op::CopyIn => Ok(Eval::CopyIn),
            Op::CopyOut(rows) => Ok(Eval::CopyOut(*rows)),
            Op::Sleep(ms) => Ok(Eval::Sleep(*ms)),
            Op::Prepare { .. } | Op::Execute(_) | Op::Deallocate(_) | Op::DeallocateAll => {
                self.evaluate_prepared(stmt, tag)
            }
            _ => self.evaluate_rows(stmt, tag, param),
        }
    }

    fn evaluate_prepared(&mut self, stmt: &Stmt, tag: Option<u32>) -> Result<Eval, Fault> {
        let unknown = |name: &str| {
            Fault::new(b"26000", format!("prepared statement \"{name}\" does not exist"))
        };
        let tag_value = sql::tag_text(tag.unwrap_or(0)).into_bytes();
        match &stmt.op {
            Op::Prepare { name, label } => {
                if self.statements.contains_key(name.as_bytes()) {
                    let text = format!("prepared statement \"{name}\" already exists");
                    return Err(Fault::new(b"42P05", text));
                }
                let op = Op::Rows { count: 1, label: label.clone(), param: true };
                let prepared = Prepared { stmt: Some(Stmt { op, tag: None }), params: 1 };
                self.statements.insert(name.as_bytes().to_vec(), prepared);
                Ok(Eval::Tag("PREPARE".to_owned()))
            }
            Op::Execute(name) => {
                let Some(prepared) = self.statements.get(name.as_bytes()) else {
                    return Err(unknown(name));
                };
                let label = match prepared.stmt.as_ref().map(|stmt| &stmt.op) {
                    Some(Op::Rows { label, .. }) => label.clone().into_bytes(),
                    _ => b"other".to_vec(),
                };
                Ok(Eval::Rows(Rows { left: 1, values: vec![tag_value, label] }))
            }
            Op::Deallocate(name) => match self.statements.remove(name.as_bytes()) {
                Some(_) => Ok(Eval::Tag("DEALLOCATE".to_owned())),
                None => Err(unknown(name)),
            },
            _ => {
                self.drop_named();
                Ok(Eval::Tag("DEALLOCATE ALL".to_owned()))
            }
        }
    }

    /// The unnamed statement is no entry of PostgreSQL's table of prepared statements: it stays.
    fn drop_named(&mut self) {
        self.statements.retain(|name, _| name.is_empty());
    }

    fn evaluate_rows(
        &mut self,
        stmt: &Stmt,
        tag: Option<u32>,
        param: Option<&[u8]>,
    ) -> Result<Eval, Fault> {
        let text = |tag: u32| sql::tag_text(tag).into_bytes();
        let one = |value: Vec<u8>| Ok(Eval::Rows(Rows { left: 1, values: vec![value] }));
        match &stmt.op {
            Op::Rows { count, label, param: false } => {
                let values = vec![label.clone().into_bytes()];
                Ok(Eval::Rows(Rows { left: *count, values }))
            }
            Op::Rows { count, label, param: true } => {
                let values = vec![param.unwrap_or_default().to_vec(), label.clone().into_bytes()];
                Ok(Eval::Rows(Rows { left: *count, values }))
            }
            Op::Show(name) => match self.session.show(name) {
                Some(value) => one(value.as_bytes().to_vec()),
                None => Err(Fault::new(b"42704", "unrecognized configuration parameter")),
            },
            Op::Lock => {
                self.session.lock = tag;
                one(Vec::new())
            }
            Op::UnlockAll => {
                self.session.lock = None;
                one(Vec::new())
            }
            Op::TempRead => match self.session.kept.temp {
                Some(owner) => one(text(owner)),
                None => Err(Fault::new(b"42P01", "relation \"pg_temp.t\" does not exist")),
            },
            Op::Nextval => {
                self.session.sequence = tag;
                one(text(tag.unwrap_or(0)))
            }
            Op::Currval => match self.session.sequence {
                Some(owner) => one(text(owner)),
                None => Err(Fault::new(b"55000", "currval of sequence \"s\" is not yet defined")),
            },
            Op::Limits => {
                let values = vec![b"8".to_vec(), b"3".to_vec(), b"0".to_vec()];
                Ok(Eval::Rows(Rows { left: 1, values }))
            }
            _ => Err(Fault::new(b"22012", "division by zero")),
        }
    }
}
