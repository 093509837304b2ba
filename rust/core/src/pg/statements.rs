//! Statements on servers: preparing what a client's message needs before the message itself.
//!
//! Messages of ours inside a client's batch are Parse and Close only, never a Sync: an error in one
//! fails the batch as the client's own Parse would have. Next on the path: `replies.rs`.

use std::rc::Rc;

use pgwire::write;
use sqlscan::{Effects, Verdict};

use super::input::Run;
use super::requests::{Place, Step};
use crate::core::Core;
use crate::ids::{ClientId, Conn, ServerId};
use crate::owed::{Kind, Note, Owed};
use crate::prepared::{Held, ServerName, Statement};
use crate::sink::{Now, Sink};

impl Core {
    /// The shared copy of a statement in the client's pool.
    pub(crate) fn intern(
        &mut self,
        id: ClientId,
        text: &[u8],
        oids: &[u8],
    ) -> Option<Rc<Statement>> {
        let pool_id = self.session_mut(id)?.pool;
        let pool = self.pools.get_mut(pool_id)?;
        Some(pool.statements.intern(text, oids))
    }

    /// Whether the client's names stand on its server as they are.
    pub(crate) fn is_native(&self, id: ClientId) -> bool {
        let session = self.clients.get(id).and_then(|client| client.session.as_ref());
        session.is_some_and(|session| session.has_native_names())
    }

    /// Sends a statement's Parse, behind a Close if the server may still hold it; the caller owes
    /// the Parse.
    pub(crate) fn send_parse(
        &mut self,
        server_id: ServerId,
        statement: &Statement,
        sink: &mut dyn Sink,
    ) {
        let name = ServerName::new(statement.id);
        self.scratch.clear();
        let Some(server) = self.servers.get_mut(server_id) else { return };
        if server.statements.is_in_doubt() {
            write::close(&mut self.scratch, b'S', name.as_bytes());
            server.owed.push(Owed::swallow(Kind::Close, Note::None));
        }
        write::parse(&mut self.scratch, name.as_bytes(), &statement.text, &statement.oids);
        sink.send_own(Conn::Server(server_id), &self.scratch);
    }

    /// Makes sure that the server holds a statement when it reads what comes next. False: an
    /// earlier batch that prepares it has not been confirmed, and the client must wait.
    pub(crate) fn ensure_on_server(
        &mut self,
        place: Place,
        statement: &Rc<Statement>,
        run: &mut Run<'_>,
        sink: &mut dyn Sink,
    ) -> bool {
        let Place { client: id, server: server_id, at, .. } = place;
        let Some(batch) = self.session_mut(id).map(|session| session.batch) else { return true };
        let Some(server) = self.servers.get_mut(server_id) else { return true };
        match server.statements.touch(statement.id) {
            Some(Held::Ready) => return true,
            Some(Held::Pending(in_batch)) => return in_batch == batch,
            None if server.owed.may_still_close(statement.id) => return false,
            None => {}
        }
        if crate::broken::is("statement_map") {
            return true;
        }
        server.statements.insert(statement, batch);
        run.flush(at, sink);
        self.evict(id, server_id, sink);
        self.send_parse(server_id, statement, sink);
        let note = Note::Prepared(Rc::clone(statement));
        self.owe(server_id, Owed::swallow(Kind::Parse, note));
        true
    }

    /// Makes sure that the server's unnamed statement is this one.
    pub(crate) fn ensure_unnamed(
        &mut self,
        place: Place,
        statement: &Statement,
        run: &mut Run<'_>,
        sink: &mut dyn Sink,
    ) {
        let Place { server: server_id, at, .. } = place;
        let Some(server) = self.servers.get_mut(server_id) else { return };
        if server.statements.unnamed == statement.id {
            return;
        }
        let before = std::mem::replace(&mut server.statements.unnamed, statement.id);
        let note = Note::UnnamedOnServer { server: before };
        server.owed.push(Owed::swallow(Kind::Parse, note));
        self.scratch.clear();
        write::parse(&mut self.scratch, b"", &statement.text, &statement.oids);
        run.flush(at, sink);
        sink.send_own(Conn::Server(server_id), &self.scratch);
    }

    /// The client has no unnamed statement: it must not find another client's.
    pub(crate) fn drop_foreign_unnamed(
        &mut self,
        place: Place,
        run: &mut Run<'_>,
        sink: &mut dyn Sink,
    ) {
        let Place { server: server_id, at, .. } = place;
        let Some(server) = self.servers.get_mut(server_id) else { return };
        // A long statement can only be the client's own: it is pinned while one stands there.
        if matches!(server.statements.unnamed, 0 | Statement::LONG) {
            return;
        }
        let before = std::mem::take(&mut server.statements.unnamed);
        let note = Note::UnnamedOnServer { server: before };
        server.owed.push(Owed::swallow(Kind::Close, note));
        self.scratch.clear();
        write::close(&mut self.scratch, b'S', b"");
        run.flush(at, sink);
        sink.send_own(Conn::Server(server_id), &self.scratch);
    }

    /// Closes statements that the server has too many of; never one that this batch has used.
    pub(crate) fn evict(&mut self, id: ClientId, server_id: ServerId, sink: &mut dyn Sink) {
        let max = self.config.prepared_statements_max as usize;
        let Some(mark) = self.session_mut(id).map(|session| session.batch_mark) else { return };
        loop {
            let Some(server) = self.servers.get_mut(server_id) else { return };
            // Behind an error the Close would be skipped and the statement stay: look again later.
            if server.owed.readies() > 0 {
                return;
            }
            let Some(statement) = server.statements.evict(max, mark) else { return };
            server.owed.push(Owed::swallow(Kind::Close, Note::Evicted(Rc::clone(&statement))));
            let name = ServerName::new(statement.id);
            self.scratch.clear();
            write::close(&mut self.scratch, b'S', name.as_bytes());
            sink.send_own(Conn::Server(server_id), &self.scratch);
        }
    }

    /// What must happen before a statement with effects runs: pins, names as SQL sees them, and no
    /// other client's sequence values. `Step::Again`: it may run.
    pub(crate) fn before_statement(
        &mut self,
        place: Place,
        verdict: Verdict,
        run: &mut Run<'_>,
        now: Now,
        sink: &mut dyn Sink,
    ) -> Step {
        let Place { client: id, server: server_id, at, .. } = place;
        let effects = verdict.effects;
        if effects.contains(Effects::SQL_PREPARE) && !self.is_native(id) {
            let Some(server) = self.servers.get(server_id) else { return Step::Ended };
            if server.owed.readies() > 0 {
                return self.stall(id, sink);
            }
            if server.status == b'E' {
                // The transaction has failed: the server refuses a single statement, and the names
                // stay what they are. Behind a ROLLBACK in the same text or batch it may run; the
                // client's names are prepared as soon as the server takes them.
                if verdict.statements > 1 || server.owed.is_open() {
                    if let Some(session) = self.session_mut(id) {
                        session.names_due = true;
                    }
                    self.pin_for(id, verdict, now, sink);
                }
                return Step::Again;
            }
            run.flush(at, sink);
            self.materialise_names(id, server_id, now, sink);
        }
        if effects.contains(Effects::SEQUENCE_READ) {
            self.forget_sequences(place, run, sink);
        }
        self.pin_for(id, verdict, now, sink);
        Step::Again
    }

    /// Prepares the client's names where SQL can see them, if that had to wait. False: it still has
    /// to, and so has the client.
    pub(crate) fn names_are_settled(
        &mut self,
        place: Place,
        run: &mut Run<'_>,
        now: Now,
        sink: &mut dyn Sink,
    ) -> bool {
        let Place { client: id, server: server_id, at, .. } = place;
        let Some(server) = self.servers.get(server_id) else { return true };
        if server.owed.readies() > 0 {
            return false;
        }
        if server.status != b'E' {
            if let Some(session) = self.session_mut(id) {
                session.names_due = false;
            }
            run.flush(at, sink);
            self.materialise_names(id, server_id, now, sink);
        }
        true
    }

    /// SQL is about to use statement names: the client's names are prepared on its server as they
    /// are. The client is pinned, so they stand there until it resets them or leaves.
    fn materialise_names(
        &mut self,
        id: ClientId,
        server_id: ServerId,
        now: Now,
        sink: &mut dyn Sink,
    ) {
        let Some(session) = self.session_mut(id) else { return };
        let named = std::mem::take(&mut session.statements.named);
        session.statements.closed.clear();
        let Some(server) = self.servers.get_mut(server_id) else { return };
        let in_batch = server.owed.is_open();
        self.scratch.clear();
        for (name, named) in &named {
            let statement = &named.statement;
            write::parse(&mut self.scratch, name, &statement.text, &statement.oids);
            let (name, statement) = (name.clone(), Rc::clone(statement));
            server.owed.push(Owed::swallow(Kind::Parse, Note::Native { name, statement }));
            if !in_batch {
                // One each, so that a statement whose table is gone does not take the others along.
                write::sync(&mut self.scratch);
                server.owed.push(Owed::swallow(Kind::Sync, Note::None));
            }
        }
        if !self.scratch.is_empty() {
            sink.send_own(Conn::Server(server_id), &self.scratch);
        }
        // From here on nobody looks at them again when they run.
        for named in named.values() {
            self.pin_for(id, named.statement.verdict, now, sink);
        }
    }

    /// `currval` and `lastval` read what the session's last `nextval` gave: on a server that just
    /// came from another client that would be the other client's number. It is told to forget
    /// first.
    fn forget_sequences(&mut self, place: Place, run: &mut Run<'_>, sink: &mut dyn Sink) {
        let Place { client: id, server: server_id, at, .. } = place;
        let pinned = self.session_mut(id).is_some_and(|session| session.pin.is_set());
        let Some(server) = self.servers.get_mut(server_id) else { return };
        if pinned || server.status != b'I' || server.owed.is_open() || server.owed.readies() > 0 {
            return;
        }
        server.statements.unnamed = 0;
        server.owed.push(Owed::swallow(Kind::Query, Note::None));
        self.scratch.clear();
        write::query(&mut self.scratch, b"DISCARD SEQUENCES");
        run.flush(at, sink);
        sink.send_own(Conn::Server(server_id), &self.scratch);
    }
}
