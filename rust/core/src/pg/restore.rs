//! Session variables on servers: followed while a client has its server, restored when it gets
//! another one (I3).
//!
//! What a statement assigns counts for the server once it has succeeded and its transaction has
//! committed; the server's answers tell both. A client that is given a server with other variables
//! waits until its own are set there and the server has said so. Where a rollback to a savepoint
//! may have undone a part, nobody knows which: the client is pinned. Next on the path:
//! `release.rs`.

use std::rc::Rc;

use pgwire::write;

use super::requests::Place;
use crate::core::Core;
use crate::errors::{CONNECTION_EXCEPTION, Failure};
use crate::event::Level;
use crate::ids::{ClientId, Conn, ServerId};
use crate::limits::HOUSEKEEPING_TIMEOUT_MS;
use crate::owed::{Note, Owed};
use crate::pin::PinReason;
use crate::prepared::Statement;
use crate::sink::{Now, Sink};
use crate::timer::Owner;
use crate::variables::Assignment;

impl Core {
    /// Gives a client's new server the client's variables, if it has others. Until that is answered
    /// the client's requests wait.
    pub(crate) fn restore(
        &mut self,
        id: ClientId,
        server_id: ServerId,
        now: Now,
        sink: &mut dyn Sink,
    ) {
        let Some(client) = self.clients.get_mut(id) else { return };
        let Some(session) = client.session.as_deref_mut() else { return };
        let Some(server) = self.servers.get_mut(server_id) else { return };
        if session.variables.same(&server.variables) || crate::broken::is("restore") {
            // One set for all who have the same.
            session.variables = Rc::clone(&server.variables);
            return self.tell_parameters(id, server_id, sink);
        }
        let mut sql = Vec::new();
        let init = self.config.init_query.as_bytes();
        server.variables.write_way(&session.variables, init, &mut sql);
        server.statements.unnamed = 0;
        server.owed.push(Owed::own(Note::Restore { failure: None }));
        self.scratch.clear();
        write::query(&mut self.scratch, &sql);
        sink.send_own(Conn::Server(server_id), &self.scratch);
        self.stats.restores += 1;
        let deadline = now.plus_ms(HOUSEKEEPING_TIMEOUT_MS);
        self.wheel.set(&mut client.timer, Owner::Client(id), deadline);
    }

    /// The server has answered: it has the client's variables, or its client cannot be served any
    /// more, since nobody knows what would run otherwise.
    pub(crate) fn restored(
        &mut self,
        server_id: ServerId,
        failure: Option<String>,
        now: Now,
        sink: &mut dyn Sink,
    ) {
        let Some(server) = self.servers.get_mut(server_id) else { return };
        let Some(id) = server.client() else {
            // The client has left: what is set now is not known.
            server.needs.reset = true;
            return;
        };
        let Some(client) = self.clients.get_mut(id) else { return };
        let Some(session) = client.session.as_deref() else { return };
        let Some(why) = failure else {
            client.timer.clear();
            server.variables = Rc::clone(&session.variables);
            return self.tell_parameters(id, server_id, sink);
        };
        server.needs.reset = true;
        let text = format!("a client's session variables could not be set again: {why}");
        Self::log(sink, Level::Warning, text);
        let failure = Failure::fatal(
            CONNECTION_EXCEPTION,
            "The session's variables could not be set again on another server connection.",
        )
        .detail(format!("The server said: {why}"))
        .hint("Connect again, and look whether what was SET still exists.");
        self.end_client(id, &failure, now, sink);
    }

    /// Tells a client what its server reports otherwise than it was told.
    fn tell_parameters(&mut self, id: ClientId, server_id: ServerId, sink: &mut dyn Sink) {
        let Some(server) = self.servers.get(server_id) else { return };
        let Some(client) = self.clients.get_mut(id) else { return };
        let Some(session) = client.session.as_deref_mut() else { return };
        if Rc::ptr_eq(&session.params, &server.params) {
            return;
        }
        if session.params != server.params {
            self.scratch.clear();
            server.params.write_changes(&session.params, &mut self.scratch);
            sink.send_own(Conn::Client(id), &self.scratch);
        }
        session.params = Rc::clone(&server.params);
        session.opaque |= server.params.is_opaque();
    }

    /// A whole transaction has ended well: what it assigned counts.
    pub(crate) fn commit_variables(&mut self, server_id: ServerId, now: Now, sink: &mut dyn Sink) {
        let Some(server) = self.servers.get_mut(server_id) else { return };
        let changes = server.pending.commit();
        if changes.is_empty() {
            return;
        }
        let client = server.client().and_then(|client| self.clients.get_mut(client));
        let session = client.and_then(|client| client.session.as_deref_mut());
        let is_pinned = session.as_ref().is_some_and(|s| s.pin.has(PinReason::SessionVariable));
        if is_pinned && !changes.contains(&Assignment::AllDefault) {
            // Nobody follows them any more until they are all reset.
            return;
        }
        server.variables = server.variables.with(&changes);
        let Some(session) = session else { return };
        session.variables = Rc::clone(&server.variables);
        let Some(client) = server.client() else { return };
        if server.variables.is_unclear() || server.variables.is_too_much() {
            self.pin_for_one(client, PinReason::SessionVariable, now, sink);
        }
    }

    /// What the transaction has assigned so far may have been undone, or not.
    pub(crate) fn doubt_variables(&mut self, server_id: ServerId, now: Now, sink: &mut dyn Sink) {
        let Some(server) = self.servers.get_mut(server_id) else { return };
        if server.pending.is_empty() {
            return;
        }
        match server.client() {
            Some(client) => self.pin_for_one(client, PinReason::SessionVariable, now, sink),
            None => server.needs.reset = true,
        }
    }

    /// Something was rolled back.
    pub(crate) fn undo_variables(&mut self, server_id: ServerId, now: Now, sink: &mut dyn Sink) {
        let Some(server) = self.servers.get_mut(server_id) else { return };
        if server.pending.undo() {
            return;
        }
        match server.client() {
            Some(client) => self.pin_for_one(client, PinReason::SessionVariable, now, sink),
            None => server.needs.reset = true,
        }
    }

    /// The variables under which a statement is prepared that is sent now; none if that only shows
    /// when the server has answered.
    pub(crate) fn variable_key(&self, place: Place) -> Option<Rc<[u8]>> {
        let server = self.servers.get(place.server)?;
        if server.owed.assigns() {
            return None;
        }
        if server.pending.is_empty() {
            return Some(Rc::clone(&server.variables.key));
        }
        Some(Rc::clone(&server.variables.with(server.pending.changes()).key))
    }

    /// A statement as it is prepared under the variables of now; none: the client must wait.
    pub(crate) fn suited(
        &mut self,
        place: Place,
        statement: Rc<Statement>,
    ) -> Option<Rc<Statement>> {
        let server = self.servers.get(place.server)?;
        let is_plain = server.pending.is_empty() && !server.owed.assigns();
        if is_plain && Rc::ptr_eq(&statement.key, &server.variables.key) {
            return Some(statement);
        }
        let key = self.variable_key(place)?;
        if statement.key == key || statement.id == Statement::LONG {
            return Some(statement);
        }
        self.intern(place.client, &statement.text, &statement.oids, &key)
    }
}
