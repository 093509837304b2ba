//! Statements on servers: preparing what a client's message needs before the message itself.
//!
//! Messages of ours inside a client's batch are Parse and Close only, never a Sync: an error in one
//! fails the batch as the client's own Parse would have. Next on the path: `replies.rs`, then
//! `names.rs`.

use std::rc::Rc;

use pgwire::write;
use sqlscan::{Effects, Verdict};

use super::input::Run;
use super::requests::{Place, Step};
use crate::core::Core;
use crate::ids::{ClientId, Conn, ServerId};
use crate::owed::{Change, Kind, Note, Owed, Pending};
use crate::prepared::{ServerName, Statement, StatementId};
use crate::sink::{Now, Sink};

impl Core {
    /// The shared copy of a statement in the client's pool, prepared under these variables.
    pub(crate) fn intern(
        &mut self,
        id: ClientId,
        text: &[u8],
        oids: &[u8],
        key: &Rc<[u8]>,
    ) -> Option<Rc<Statement>> {
        let pool_id = self.session_mut(id)?.pool;
        let pool = self.pools.get_mut(pool_id)?;
        Some(pool.statements.intern(text, oids, key))
    }

    /// Whether the client's names stand on its server as they are, all of them.
    pub(crate) fn is_native(&self, place: Place) -> bool {
        let client = self.clients.get(place.client);
        let session = client.and_then(|client| client.session.as_deref());
        session.is_some_and(|session| {
            session.has_native_names()
                && session.statements.named.is_empty()
                && !self.servers.get(place.server).is_some_and(|s| s.owed.touches_names())
        })
    }

    /// Whether the server holds a statement when it reads what comes next; none if only what it
    /// answers to an earlier batch can tell. Counts as a use.
    pub(crate) fn holds(&mut self, server_id: ServerId, id: StatementId) -> Option<bool> {
        let server = self.servers.get_mut(server_id)?;
        match server.owed.held(id) {
            Pending::Will(is_held) => Some(is_held),
            Pending::Unsure => None,
            Pending::Untouched => Some(server.statements.touch(id)),
        }
    }

    /// Makes sure that the server holds a statement when it reads what comes next. False: an
    /// earlier batch decides that, and the client must wait.
    pub(crate) fn ensure_on_server(
        &mut self,
        place: Place,
        statement: &Rc<Statement>,
        run: &mut Run<'_>,
        sink: &mut dyn Sink,
    ) -> bool {
        let Place { client: id, server: server_id, at, .. } = place;
        match self.holds(server_id, statement.id) {
            Some(true) => return true,
            None => return false,
            Some(false) => {}
        }
        if crate::broken::is("statement_map") {
            return true;
        }
        run.flush(at, sink);
        self.evict(id, server_id, statement, sink);
        self.send_parse(server_id, statement, sink);
        let held = Change::Held { statement: Rc::clone(statement), is_held: true };
        self.owe_changing(server_id, Owed::swallow(Kind::Parse), [held]);
        true
    }

    /// Sends a statement's Parse; the caller owes it.
    pub(crate) fn send_parse(
        &mut self,
        server_id: ServerId,
        statement: &Statement,
        sink: &mut dyn Sink,
    ) {
        let name = ServerName::new(statement.id);
        self.scratch.clear();
        write::parse(&mut self.scratch, name.as_bytes(), &statement.text, &statement.oids);
        sink.send_own(Conn::Server(server_id), &self.scratch);
    }

    /// Takes a statement off the server.
    pub(crate) fn send_close(
        &mut self,
        server_id: ServerId,
        statement: Rc<Statement>,
        sink: &mut dyn Sink,
    ) {
        self.scratch.clear();
        write::close(&mut self.scratch, b'S', ServerName::new(statement.id).as_bytes());
        sink.send_own(Conn::Server(server_id), &self.scratch);
        let gone = Change::Held { statement, is_held: false };
        self.owe_changing(server_id, Owed::swallow(Kind::Close), [gone]);
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
        if server.expected_unnamed() == Some(statement.id) {
            return;
        }
        let change = Change::Unnamed(statement.id);
        server.owed.push_changing(Owed::swallow(Kind::Parse), [change]);
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
        if matches!(server.expected_unnamed(), Some(0 | Statement::LONG)) {
            return;
        }
        server.owed.push_changing(Owed::swallow(Kind::Close), [Change::Unnamed(0)]);
        self.scratch.clear();
        write::close(&mut self.scratch, b'S', b"");
        run.flush(at, sink);
        sink.send_own(Conn::Server(server_id), &self.scratch);
    }

    /// Closes statements so that there is room for one more; never one that this batch has used.
    pub(crate) fn evict(
        &mut self,
        id: ClientId,
        server_id: ServerId,
        to_come: &Statement,
        sink: &mut dyn Sink,
    ) {
        let max = self.config.prepared_statements_max as usize;
        let Some(mark) = self.session_mut(id).map(|session| session.batch_mark) else { return };
        loop {
            let Some(server) = self.servers.get_mut(server_id) else { return };
            // Behind an error the Close would be skipped and the statement stay: look again later.
            if server.owed.readies() > 0 {
                return;
            }
            let chosen = server.statements.to_evict(max, mark, &server.owed, to_come);
            let Some(statement) = chosen else { return };
            self.send_close(server_id, statement, sink);
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
        let Place { client: id, server: server_id, .. } = place;
        let effects = verdict.effects;
        if effects.contains(Effects::SQL_PREPARE) && !self.is_native(place) {
            let Some(server) = self.servers.get(server_id) else { return Step::Ended };
            let failed = server.status == b'E';
            if server.owed.readies() > 0 || failed && !server.owed.is_empty() {
                return self.stall(place, run, sink);
            }
            if failed {
                // The server refuses a single statement, and the names stay what they are. Behind a
                // ROLLBACK in the same text it may run; the client's names are prepared as soon as
                // the server takes them.
                if verdict.statements > 1 {
                    self.pin_for(id, verdict, now, sink);
                }
                return Step::Again;
            }
            if !self.give_names(place, run, now, sink) {
                return self.stall(place, run, sink);
            }
        }
        if effects.contains(Effects::SEQUENCE_READ) && !self.forget_sequences(place, run, sink) {
            return self.stall(place, run, sink);
        }
        self.pin_for(id, verdict, now, sink);
        Step::Again
    }

    /// `currval` and `lastval` read what the session's last `nextval` gave: on a server that just
    /// came from another client that would be the other client's number. It is told to forget
    /// first. False: a cancel could strike that, and the client must wait.
    fn forget_sequences(&mut self, place: Place, run: &mut Run<'_>, sink: &mut dyn Sink) -> bool {
        let Place { client: id, server: server_id, at, .. } = place;
        let pinned = self.session_mut(id).is_some_and(|session| session.pin.is_set());
        let Some(server) = self.servers.get_mut(server_id) else { return true };
        if pinned || server.status != b'I' || server.owed.is_open() || server.owed.readies() > 0 {
            return true;
        }
        if server.cancels > 0 {
            return false;
        }
        server.statements.unnamed = 0;
        server.owed.push(Owed::own(Note::None));
        self.scratch.clear();
        write::query(&mut self.scratch, b"DISCARD SEQUENCES");
        run.flush(at, sink);
        sink.send_own(Conn::Server(server_id), &self.scratch);
        true
    }
}
