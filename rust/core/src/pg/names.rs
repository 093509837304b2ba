//! Names: what becomes of a client's names and a server's statements as replies come.
//!
//! One rule: what a message changes counts once the server has answered it, never before, and what
//! the server skips has changed nothing. Until then the reply queue (`owed.rs`) says what to
//! expect. Here, too: names as SQL sees them. Next on the path: `release.rs`.

use pgwire::write;

use super::input::Run;
use super::requests::Place;
use crate::client::Session;
use crate::core::Core;
use crate::ids::{Conn, ServerId};
use crate::owed::{Change, Kind, Note, Owed};
use crate::pin::PinReason;
use crate::prepared::Statement;
use crate::server::Server;
use crate::sink::{Now, Sink};

impl Core {
    /// The oldest message has been answered: what it changes counts from now on.
    pub(crate) fn passed(&mut self, id: ServerId) -> Option<Owed> {
        let owed = self.servers.get_mut(id)?.owed.pop()?;
        for _ in 0..owed.changes() {
            let change = self.servers.get_mut(id)?.owed.take_change()?;
            let failed = matches!(owed.note, Note::Assigns { failed: true });
            if !(failed && matches!(change, Change::Assign(_))) {
                self.apply(id, change);
            }
        }
        Some(owed)
    }

    fn apply(&mut self, id: ServerId, change: Change) {
        let Some(server) = self.servers.get_mut(id) else { return };
        let session = server
            .client()
            .and_then(|client| self.clients.get_mut(client))
            .and_then(|client| client.session.as_deref_mut());
        match change {
            Change::Name { name, means } => {
                if let Some(session) = session {
                    session.statements.set(name, means);
                }
            }
            Change::Unnamed(to) => {
                server.statements.unnamed = to;
                unpin_long(server, session);
            }
            Change::Held { statement, is_held: true } => server.statements.insert(statement),
            Change::Held { statement, is_held: false } => server.statements.remove(statement.id),
            // Whether it did shows in its CommandComplete.
            Change::DropAll => {}
            Change::Assign(assignments) => server.pending.add(&assignments),
        }
    }

    /// `DEALLOCATE ALL` or `DISCARD ALL` has run: what was answered before it is gone.
    pub(crate) fn all_dropped(&mut self, id: ServerId) {
        let Some(server) = self.servers.get_mut(id) else { return };
        server.statements.clear_named();
        let client = server.client();
        if let Some(session) = client.and_then(|client| self.session_mut(client)) {
            session.statements.named.clear();
            session.long_named = false;
        }
    }

    /// The oldest message failed: it and what the server skips behind it up to the next Sync has
    /// changed nothing.
    pub(crate) fn skip_batch(&mut self, id: ServerId) {
        let Some(server) = self.servers.get_mut(id) else { return };
        if crate::broken::is("reply_queue") {
            server.owed.pop();
            return;
        }
        let Some((failed, changes)) = server.owed.skip_to_sync() else { return };
        let in_batch_of_ours =
            server.owed.front().is_some_and(|owed| owed.swallow && owed.kind == Kind::Sync);
        for change in changes {
            match change {
                _ if failed.kind != Kind::Parse => {}
                // A Parse of the unnamed statement drops the one before, whatever comes of it.
                Change::Name { name, .. } if name.is_empty() => {
                    self.apply(id, Change::Name { name, means: None });
                }
                Change::Unnamed(_) => self.apply(id, Change::Unnamed(0)),
                // A name that cannot be prepared for SQL (its table is gone, say) is lost. In the
                // client's batch anything may have struck it: it is prepared again behind that.
                Change::Name { means: None, .. } if in_batch_of_ours => self.apply(id, change),
                _ => {}
            }
        }
        let Some(server) = self.servers.get_mut(id) else { return };
        let client = server.client().and_then(|client| self.clients.get_mut(client));
        unpin_long(server, client.and_then(|client| client.session.as_deref_mut()));
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
        let Some(server) = self.servers.get(place.server) else { return true };
        if server.owed.readies() > 0 {
            return false;
        }
        // In a failed transaction they stay what they are. In an open batch what needs them asks.
        let in_batch = server.owed.is_open() || server.owed.is_skipping();
        server.status == b'E' || in_batch || self.give_names(place, run, now, sink)
    }

    /// SQL is about to use statement names: the client's names are prepared on its server as they
    /// are. The client is pinned, so they stand there until it resets them or leaves. False:
    /// something has to be answered first, and the client must wait. Inside a batch nothing else is
    /// on its way meanwhile, so that no error of another message takes them along.
    pub(crate) fn give_names(
        &mut self,
        place: Place,
        run: &mut Run<'_>,
        now: Now,
        sink: &mut dyn Sink,
    ) -> bool {
        let Place { client: id, server: server_id, at, .. } = place;
        let Some(server) = self.servers.get_mut(server_id) else { return true };
        let Some(client) = self.clients.get(id) else { return true };
        let Some(session) = client.session.as_deref() else { return true };
        if session.statements.named.is_empty() && !server.owed.touches_names() {
            return true;
        }
        if !server.owed.is_empty() || server.cancels > 0 {
            return false;
        }
        let names = session.statements.named.clone();
        let in_batch = server.owed.is_open();
        self.scratch.clear();
        for (name, statement) in &names {
            write::parse(&mut self.scratch, name, &statement.text, &statement.oids);
            let given = Change::Name { name: name.clone(), means: None };
            server.owed.push_changing(Owed::swallow(Kind::Parse), [given]);
            if !in_batch {
                // One each, so that a statement whose table is gone does not take the others along.
                write::sync(&mut self.scratch);
                server.owed.push(Owed::swallow(Kind::Sync));
            }
        }
        run.flush(at, sink);
        sink.send_own(Conn::Server(server_id), &self.scratch);
        self.pin_for_one(id, PinReason::PreparedStatement, now, sink);
        // From here on nobody looks at them again when they run.
        for statement in names.values() {
            self.pin_for(id, statement.verdict, now, sink);
        }
        false
    }
}

/// A client whose unnamed statement was too long to be kept is pinned until it is gone.
fn unpin_long(server: &Server, session: Option<&mut Session>) {
    let Some(session) = session else { return };
    let is_there = server.statements.unnamed == Statement::LONG
        || server.owed.brings_unnamed(Statement::LONG)
        || session.long_named;
    if !is_there && session.pin.has(PinReason::LongStatement) {
        session.pin.remove(PinReason::LongStatement);
    }
}
