//! The extended protocol: whose statement a name means, and what the server calls it.
//!
//! A client's names are its own; on servers a statement has a name that is unique on the host, so
//! that clients share it. A Parse of a statement that the server holds is answered in its place in
//! the reply queue. What a message means rests on what the server has confirmed and on what its own
//! batch has said before it; what depends on an earlier batch waits (I2): guessing there would run
//! another statement than the client means. Next on the path: `statements.rs`.

use std::rc::Rc;

use pgwire::frame::{HEAD_BYTES, Head};
use pgwire::frontend::{BindNames, Named as NamedMessage, Parse};
use pgwire::write;
use sqlscan::{Class, Reset, Scanner};

use super::input::Run;
use super::requests::{Place, Step};
use crate::client::{self, Session};
use crate::core::Core;
use crate::errors::{Failure, PROGRAM_LIMIT_EXCEEDED};
use crate::ids::{ClientId, Conn};
use crate::limits::{CLIENT_STATEMENT_BYTES_MAX, CLIENT_STATEMENTS_MAX, COLLECT_BYTES_MAX};
use crate::owed::{Change, Kind, Note, Owed, Pending};
use crate::pin::PinReason;
use crate::prepared::{NAME_PREFIX, NO_SUCH_NAME, ServerName, Statement};
use crate::server::Server;
use crate::sink::{Now, Sink};

/// What a client's name means right now.
pub(crate) enum Meaning {
    Statement(Rc<Statement>),
    /// The name is as the client says it: it does not exist, or the server holds it under this
    /// name.
    AsItIs,
    /// Only an answer that has not come can tell.
    Unconfirmed,
}

impl Core {
    pub(crate) fn parse(
        &mut self,
        place: Place,
        run: &mut Run<'_>,
        now: Now,
        sink: &mut dyn Sink,
    ) -> Step {
        let Place { client: id, server: server_id, at, head } = place;
        let rest = run.rest(at);
        let available = rest.len();
        let Some(body) = rest.get(HEAD_BYTES..head.total()) else {
            return self.long_parse(place, run, now, sink);
        };
        let Ok(message) = Parse::read(body) else {
            // The server says what is wrong with it.
            self.owe(server_id, Owed::forward(Kind::Parse));
            return self.forward_message(id, head, available);
        };
        let Some(key) = self.variable_key(place) else { return self.stall(place, run, sink) };
        if message.name.is_empty() {
            return self.parse_unnamed(place, &message, &key, available);
        }
        let Some(server) = self.servers.get(server_id) else { return Step::Ended };
        let Some(session) = self.clients.get(id).and_then(|c| c.session.as_deref()) else {
            return Step::Ended;
        };
        match meaning(session, server, message.name) {
            Meaning::Unconfirmed => self.stall(place, run, sink),
            Meaning::Statement(statement) => self.parse_duplicate(place, &statement, run, sink),
            Meaning::AsItIs if session.has_native_names() => {
                if message.name.starts_with(NAME_PREFIX) {
                    return self.reserved_name(id, run, at, now, sink);
                }
                // Behind a reset that is under way the name is a new reason to stay. What the
                // statement may leave behind counts from now on: nobody looks at it again when it
                // runs.
                let verdict = sqlscan::scan(message.query);
                self.pin_for_one(id, PinReason::PreparedStatement, now, sink);
                self.pin_for(id, verdict, now, sink);
                if verdict.reset.is_some() {
                    self.pin_for_one(id, PinReason::SessionVariable, now, sink);
                }
                self.owe(server_id, Owed::forward(Kind::Parse));
                self.forward_message(id, head, available)
            }
            Meaning::AsItIs
                if session.statements.has_no_room_for(message.query.len(), &server.owed) =>
            {
                run.flush(at, sink);
                let failure =
                    Failure::fatal(PROGRAM_LIMIT_EXCEEDED, "too many prepared statements")
                        .detail(format!(
                            "One client may hold {CLIENT_STATEMENTS_MAX} with \
                             {CLIENT_STATEMENT_BYTES_MAX} bytes of text."
                        ))
                        .hint("Close statements that are not used, or lower the driver's cache.");
                self.end_client(id, &failure, now, sink);
                Step::Ended
            }
            Meaning::AsItIs => self.parse_named(place, &key, run, sink),
        }
    }

    /// The unnamed statement keeps its (empty) name; client and server remember which one it is.
    fn parse_unnamed(
        &mut self,
        place: Place,
        message: &Parse<'_>,
        key: &Rc<[u8]>,
        available: usize,
    ) -> Step {
        let Place { client: id, server: server_id, head, .. } = place;
        let Some(statement) = self.intern(id, message.query, message.oids, key) else {
            return Step::Ended;
        };
        let changes = [
            Change::Unnamed(statement.id),
            Change::Name { name: Box::default(), means: Some(statement) },
        ];
        self.owe_changing(server_id, Owed::forward(Kind::Parse), changes);
        self.forward_message(id, head, available)
    }

    /// A new name: the server is asked to prepare the statement only if it does not hold it.
    fn parse_named(
        &mut self,
        place: Place,
        key: &Rc<[u8]>,
        run: &mut Run<'_>,
        sink: &mut dyn Sink,
    ) -> Step {
        let Place { client: id, server: server_id, at, head } = place;
        let body = run.rest(at).get(HEAD_BYTES..head.total()).unwrap_or_default();
        let Ok(message) = Parse::read(body) else { return Step::Ended };
        let Some(statement) = self.intern(id, message.query, message.oids, key) else {
            return Step::Ended;
        };
        let name: Box<[u8]> = message.name.into();
        let held = self.holds(server_id, statement.id);
        let Some(server) = self.servers.get(server_id) else { return Step::Ended };
        let named = Change::Name { name, means: Some(Rc::clone(&statement)) };
        let failed_already = server.status == b'E'
            && !matches!(statement.verdict.class, Class::Commit | Class::Rollback);
        let close_first = match held {
            None => return self.stall(place, run, sink),
            Some(true) if server.owed.readies() > 0 => return self.stall(place, run, sink),
            // If it is on its way in this batch and fails, this message is skipped with it.
            Some(true) if !failed_already => {
                self.owe_changing(server_id, Owed::forward(Kind::Synthetic), [named]);
                return Self::replaced(head);
            }
            // The transaction has failed, unless this batch ends it first: closed and prepared
            // again, the statement is refused in the one case and answered in the other. A Close
            // always runs.
            held => held == Some(true),
        };
        run.flush(at, sink);
        if close_first {
            self.send_close(server_id, Rc::clone(&statement), sink);
        }
        self.evict(id, server_id, &statement, sink);
        self.send_parse(server_id, &statement, sink);
        let held = Change::Held { statement, is_held: true };
        self.owe_changing(server_id, Owed::forward(Kind::Parse), [held, named]);
        Self::replaced(head)
    }

    /// A name that exists: PostgreSQL refuses it (42P05), and so does the server, because the Parse
    /// goes to it under the name that the statement has there.
    fn parse_duplicate(
        &mut self,
        place: Place,
        statement: &Rc<Statement>,
        run: &mut Run<'_>,
        sink: &mut dyn Sink,
    ) -> Step {
        let Place { server: server_id, at, head, .. } = place;
        if !self.ensure_on_server(place, statement, run, sink) {
            return self.stall(place, run, sink);
        }
        let body = run.rest(at).get(HEAD_BYTES..head.total()).unwrap_or_default();
        let Ok(message) = Parse::read(body) else { return Step::Ended };
        let server_name = ServerName::new(statement.id);
        let shown = Note::Shown {
            server_name: server_name.as_bytes().into(),
            client_name: message.name.into(),
        };
        self.scratch.clear();
        let out = &mut self.scratch;
        write::parse(out, server_name.as_bytes(), message.query, message.oids);
        run.flush(at, sink);
        sink.send_own(Conn::Server(server_id), &self.scratch);
        self.owe(server_id, Owed::noted(Kind::Parse, shown));
        Self::replaced(head)
    }

    /// A Parse too long to be held: it streams, and its statement exists on this server only.
    fn long_parse(
        &mut self,
        place: Place,
        run: &mut Run<'_>,
        now: Now,
        sink: &mut dyn Sink,
    ) -> Step {
        let Place { client: id, server: server_id, at, head } = place;
        let rest = run.rest(at);
        let available = rest.len();
        let body = rest.get(HEAD_BYTES..).unwrap_or_default();
        let Some(name_len) = body.iter().position(|byte| *byte == 0) else {
            if available < COLLECT_BYTES_MAX {
                return Step::More;
            }
            run.flush(at, sink);
            self.client_violation(id, "statement name is too long", now, sink);
            return Step::Ended;
        };
        let is_named = name_len > 0;
        if is_named && body.starts_with(NAME_PREFIX) {
            return self.reserved_name(id, run, at, now, sink);
        }
        if is_named {
            let name = body.get(..name_len).unwrap_or_default();
            match self.meaning(place, name) {
                Meaning::Unconfirmed => return self.stall(place, run, sink),
                Meaning::Statement(statement) => {
                    let name = name.to_vec();
                    return self.long_duplicate(place, &statement, &name, run, sink);
                }
                Meaning::AsItIs => {}
            }
        }
        let mut scanner = Box::new(Scanner::new());
        let text = body.get(name_len + 1..).unwrap_or_default();
        let nul = text.iter().position(|byte| *byte == 0);
        scanner.feed(text.get(..nul.unwrap_or(text.len())).unwrap_or_default());
        let verdict = nul.map(|_| scanner.clone().finish());
        self.pin_for_one(id, PinReason::LongStatement, now, sink);
        if let Some(verdict) = verdict {
            self.pin_for(id, verdict, now, sink);
        }
        if is_named {
            if let Some(session) = self.session_mut(id) {
                session.long_named = true;
            }
            self.owe(server_id, Owed::forward(Kind::Parse));
        } else {
            let changes = [
                Change::Unnamed(Statement::LONG),
                Change::Name { name: Box::default(), means: None },
            ];
            self.owe_changing(server_id, Owed::forward(Kind::Parse), changes);
        }
        let step = self.forward_message(id, head, available);
        if verdict.is_none() {
            if let Some(client) = self.clients.get_mut(id) {
                client.stream.scanner = Some(scanner);
            }
        }
        step
    }

    /// As [`Core::parse_duplicate`]: only the name is replaced, the text streams behind it.
    fn long_duplicate(
        &mut self,
        place: Place,
        statement: &Rc<Statement>,
        name: &[u8],
        run: &mut Run<'_>,
        sink: &mut dyn Sink,
    ) -> Step {
        let Place { client: id, server: server_id, at, head } = place;
        if !self.ensure_on_server(place, statement, run, sink) {
            return self.stall(place, run, sink);
        }
        let server_name = ServerName::new(statement.id);
        let shown =
            Note::Shown { server_name: server_name.as_bytes().into(), client_name: name.into() };
        let behind_name = HEAD_BYTES + name.len() + 1;
        self.scratch.clear();
        let rest_bytes = head.total() - behind_name;
        write::parse_head(&mut self.scratch, server_name.as_bytes(), rest_bytes);
        run.flush(at, sink);
        sink.send_own(Conn::Server(server_id), &self.scratch);
        self.owe(server_id, Owed::noted(Kind::Parse, shown));
        // The text follows as it stands.
        run.start = at + behind_name;
        let available = run.rest(at).len();
        self.forward_message(id, head, available)
    }

    /// A client that puts a name of ours on its server could run other clients into it.
    fn reserved_name(
        &mut self,
        id: ClientId,
        run: &mut Run<'_>,
        at: usize,
        now: Now,
        sink: &mut dyn Sink,
    ) -> Step {
        run.flush(at, sink);
        let why = "statement names that begin with _pyproxy_ are reserved";
        self.client_violation(id, why, now, sink);
        Step::Ended
    }

    pub(crate) fn bind(
        &mut self,
        place: Place,
        run: &mut Run<'_>,
        now: Now,
        sink: &mut dyn Sink,
    ) -> Step {
        let Place { client: id, server: server_id, at, head } = place;
        let rest = run.rest(at);
        let available = rest.len();
        let end = head.total().min(available);
        let body = rest.get(HEAD_BYTES..end).unwrap_or_default();
        let Some(names) = BindNames::read(body) else {
            if end < head.total() && available < COLLECT_BYTES_MAX {
                return Step::More;
            }
            self.owe(server_id, Owed::forward(Kind::Bind));
            return self.forward_message(id, head, available);
        };
        let (portal, names_len) = (names.portal.to_vec(), names.rest);
        let meaning = self.meaning(place, names.statement);
        let is_unnamed = names.statement.is_empty();
        if portal.is_empty() {
            if let Some(session) = self.session_mut(id) {
                session.bound = None;
            }
        }
        let name = match meaning {
            Meaning::Unconfirmed => return self.stall(place, run, sink),
            Meaning::AsItIs if is_unnamed => {
                self.drop_foreign_unnamed(place, run, sink);
                self.owe(server_id, Owed::forward(Kind::Bind));
                return self.forward_message(id, head, available);
            }
            Meaning::AsItIs if !names.statement.starts_with(NAME_PREFIX) => {
                self.owe(server_id, Owed::forward(Kind::Bind));
                return self.forward_message(id, head, available);
            }
            Meaning::AsItIs => None,
            Meaning::Statement(statement) => {
                let Some(statement) = self.suited(place, statement) else {
                    return self.stall(place, run, sink);
                };
                match self.before_bind(place, &statement, &portal, run, now, sink) {
                    Step::Again => {}
                    step => return step,
                }
                if is_unnamed {
                    self.ensure_unnamed(place, &statement, run, sink);
                    self.owe(server_id, Owed::forward(Kind::Bind));
                    return self.forward_message(id, head, available);
                }
                if !self.ensure_on_server(place, &statement, run, sink) {
                    return self.stall(place, run, sink);
                }
                Some(ServerName::new(statement.id))
            }
        };
        let name = name.as_ref().map_or(NO_SUCH_NAME, ServerName::as_bytes);
        self.scratch.clear();
        let rest_bytes = head.total() - HEAD_BYTES - names_len;
        write::bind_head(&mut self.scratch, &portal, name, rest_bytes);
        run.flush(at, sink);
        sink.send_own(Conn::Server(server_id), &self.scratch);
        self.owe(server_id, Owed::forward(Kind::Bind));
        // The parameters follow as they stand.
        run.start = at + HEAD_BYTES + names_len;
        self.set_stream(id, head.total() - end, false);
        Step::Forward(end)
    }

    /// What a statement's effects ask for before it is bound. `Step::Again`: it may be.
    fn before_bind(
        &mut self,
        place: Place,
        statement: &Statement,
        portal: &[u8],
        run: &mut Run<'_>,
        now: Now,
        sink: &mut dyn Sink,
    ) -> Step {
        let (id, verdict) = (place.client, statement.verdict);
        if matches!(verdict.reset, Some(Reset::DeallocateAll | Reset::DiscardAll)) {
            if let Some(session) = self.session_mut(id) {
                session.drops_bound = true;
            }
        }
        if let (Some(assigns), false) = (&statement.assigns, self.is_opaque(id)) {
            if portal.is_empty() {
                if let Some(session) = self.session_mut(id) {
                    session.bound = Some(Rc::clone(assigns));
                }
                return Step::Again;
            }
            // When a named portal runs is not followed.
            self.pin_for_one(id, PinReason::SessionVariable, now, sink);
        }
        if verdict.effects.is_empty() && !self.is_opaque(id) {
            return Step::Again;
        }
        self.before_statement(place, verdict, run, now, sink)
    }

    pub(crate) fn describe_or_close(
        &mut self,
        place: Place,
        run: &mut Run<'_>,
        now: Now,
        sink: &mut dyn Sink,
    ) -> Step {
        let Place { client: id, server: server_id, at, head } = place;
        let rest = run.rest(at);
        let available = rest.len();
        let is_close = head.tag == pgwire::tag::CLOSE;
        let kind = if is_close { Kind::Close } else { Kind::Describe };
        let Some(body) = rest.get(HEAD_BYTES..head.total()) else {
            run.flush(at, sink);
            self.client_violation(id, "statement or portal name is too long", now, sink);
            return Step::Ended;
        };
        let message = match NamedMessage::read(body) {
            Ok(message) if message.kind == b'S' => message,
            _ => {
                self.owe(server_id, Owed::forward(kind));
                return self.forward_message(id, head, available);
            }
        };
        let means = match self.meaning(place, message.name) {
            Meaning::Statement(statement) => {
                self.suited(place, statement).map_or(Meaning::Unconfirmed, Meaning::Statement)
            }
            means => means,
        };
        let name = message.name.to_vec();
        if matches!(means, Meaning::Unconfirmed) {
            return self.stall(place, run, sink);
        }
        if is_close {
            return self.close_statement(place, &name, means, run, sink);
        }
        match means {
            Meaning::Statement(statement) if name.is_empty() => {
                self.ensure_unnamed(place, &statement, run, sink);
            }
            Meaning::Statement(statement) => {
                if !self.ensure_on_server(place, &statement, run, sink) {
                    return self.stall(place, run, sink);
                }
                let server_name = ServerName::new(statement.id);
                self.scratch.clear();
                write::describe(&mut self.scratch, b'S', server_name.as_bytes());
                run.flush(at, sink);
                sink.send_own(Conn::Server(server_id), &self.scratch);
                self.owe(server_id, Owed::forward(kind));
                return Self::replaced(head);
            }
            _ if name.is_empty() => self.drop_foreign_unnamed(place, run, sink),
            _ => {
                self.owe(server_id, Owed::forward(kind));
                return self.forward_guarded(place, &name, run, sink, |out, name| {
                    write::describe(out, b'S', name);
                });
            }
        }
        self.owe(server_id, Owed::forward(kind));
        self.forward_message(id, head, available)
    }

    /// A Close takes the client's name away. The server keeps the shared statement and is asked to
    /// close a name that does not exist, which succeeds: its answer comes in the right place.
    fn close_statement(
        &mut self,
        place: Place,
        name: &[u8],
        means: Meaning,
        run: &mut Run<'_>,
        sink: &mut dyn Sink,
    ) -> Step {
        let Place { client: id, server: server_id, at, head } = place;
        let available = run.rest(at).len();
        let gone = Change::Name { name: name.into(), means: None };
        if name.is_empty() {
            let changes = [Change::Unnamed(0), gone];
            self.owe_changing(server_id, Owed::forward(Kind::Close), changes);
            return self.forward_message(id, head, available);
        }
        let Meaning::Statement(_) = means else {
            self.owe(server_id, Owed::forward(Kind::Close));
            return self.forward_guarded(place, name, run, sink, |out, name| {
                write::close(out, b'S', name);
            });
        };
        self.owe_changing(server_id, Owed::forward(Kind::Close), [gone]);
        self.scratch.clear();
        write::close(&mut self.scratch, b'S', NO_SUCH_NAME);
        run.flush(at, sink);
        sink.send_own(Conn::Server(server_id), &self.scratch);
        Self::replaced(head)
    }

    /// Sends a message with the client's own name on, unless the name is one that only we may use.
    fn forward_guarded(
        &mut self,
        place: Place,
        name: &[u8],
        run: &mut Run<'_>,
        sink: &mut dyn Sink,
        write: impl FnOnce(&mut Vec<u8>, &[u8]),
    ) -> Step {
        let Place { client: id, at, head, .. } = place;
        if !name.starts_with(NAME_PREFIX) {
            let available = run.rest(at).len();
            return self.forward_message(id, head, available);
        }
        let Some(server_id) = self.clients.get(id).and_then(client::Client::server) else {
            return Step::Ended;
        };
        self.scratch.clear();
        write(&mut self.scratch, NO_SUCH_NAME);
        run.flush(at, sink);
        sink.send_own(Conn::Server(server_id), &self.scratch);
        Self::replaced(head)
    }

    fn meaning(&self, place: Place, name: &[u8]) -> Meaning {
        let client = self.clients.get(place.client);
        match (client.and_then(|c| c.session.as_deref()), self.servers.get(place.server)) {
            (Some(session), Some(server)) => meaning(session, server, name),
            _ => Meaning::AsItIs,
        }
    }

    /// A whole message went out in another form, or is answered by us: its own bytes go nowhere.
    fn replaced(head: Head) -> Step {
        Step::Drop(head.total())
    }
}

/// What a client's name means to a message that is sent now.
fn meaning(session: &Session, server: &Server, name: &[u8]) -> Meaning {
    let means = match server.owed.name(name) {
        Pending::Unsure => return Meaning::Unconfirmed,
        Pending::Will(means) => means,
        Pending::Untouched => session.statements.get(name),
    };
    means.map_or(Meaning::AsItIs, |statement| Meaning::Statement(Rc::clone(statement)))
}
