//! Requests: from a client's bytes to a server, message by message.
//!
//! Only heads and the few messages that name statements or carry SQL are looked at; all else is
//! sent on as it came, in one piece. A message that is too long to be held is streamed. What makes
//! a client wait (no server free, an earlier batch must be confirmed first) leaves its bytes in
//! `held`. Next on the path: `extended.rs`, then `pin.rs`, `lending.rs`.

use std::rc::Rc;

use pgwire::frame::{HEAD_BYTES, Head};
use pgwire::frontend::Named as NamedMessage;
use pgwire::{tag, write};
use sqlscan::{Effects, Reset, Scanner, Verdict};

use super::input::{Input, Run};
use crate::client::{self, Refuse, Session};
use crate::core::Core;
use crate::errors::Failure;
use crate::event::Event;
use crate::ids::{ClientId, Conn, ServerId};
use crate::lending::Borrow;
use crate::limits::{COLLECT_BYTES_MAX, REPLIES_MAX};
use crate::owed::{Change, Kind, Note, Owed};
use crate::params;
use crate::pin::{PinReason, Reasons};
use crate::server::CopyIn;
use crate::sink::{Now, Sink};
use crate::timer::Owner;
use crate::variables::assignments_of;

/// Where a request stands: whose it is, on which server, and at which of the received bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) client: ClientId,
    pub(crate) server: ServerId,
    pub(crate) at: usize,
    pub(crate) head: Head,
}

/// What was done with a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// This many bytes go on as they are; fewer than the message has means that the rest streams.
    Forward(usize),
    /// This many bytes are done with and go nowhere.
    Drop(usize),
    /// The message has to be looked at again.
    Again,
    /// More bytes are needed.
    More,
    /// The client waits; its bytes are kept.
    Blocked,
    /// The client is gone.
    Ended,
}

impl Core {
    /// Deals with a client's bytes; what cannot be dealt with yet is kept in `held`.
    pub(crate) fn pump_client(
        &mut self,
        id: ClientId,
        input: Input<'_>,
        now: Now,
        sink: &mut dyn Sink,
    ) {
        let to = self.clients.get(id).and_then(client::Client::server).map(Conn::Server);
        let mut run = Run { input, start: 0, to };
        let mut at = 0;
        let length = run.input.bytes().len();
        while at < length {
            let Some(client) = self.clients.get_mut(id) else { return };
            let step = if client.stream.left > 0 {
                self.stream_on(id, &run, at, now, sink)
            } else {
                self.client_message(id, &mut run, at, now, sink)
            };
            match step {
                Step::Forward(bytes) => at += bytes,
                Step::Drop(bytes) => {
                    run.flush(at, sink);
                    at += bytes;
                    run.start = at;
                }
                Step::Again => {}
                Step::More | Step::Blocked => break,
                Step::Ended => return,
            }
        }
        run.flush(at, sink);
        self.keep_rest(id, run, at, sink);
        self.after_pump(id, now, sink);
    }

    /// Keeps what was not dealt with.
    fn keep_rest(&mut self, id: ClientId, run: Run<'_>, at: usize, sink: &mut dyn Sink) {
        let Some(client) = self.clients.get_mut(id) else { return };
        match run.input {
            Input::Held(mut held) => {
                if at < held.len() {
                    held.drain(..at);
                    client.held = held;
                }
            }
            Input::Chunk(chunk) => {
                if let Some(rest) = chunk.bytes.get(at..) {
                    if !rest.is_empty() {
                        // Exactly as much as is needed: a waiter holds no more than its request.
                        client.held = Vec::with_capacity(rest.len());
                        client.held.extend_from_slice(rest);
                    }
                }
            }
        }
        let full = client.held.len() >= crate::limits::HELD_BYTES_MAX
            && matches!(client.state, client::State::Waiting { .. });
        self.pause_client(id, client::pause::HELD, full, sink);
    }

    /// More of a message whose head has been dealt with.
    fn stream_on(
        &mut self,
        id: ClientId,
        run: &Run<'_>,
        at: usize,
        now: Now,
        sink: &mut dyn Sink,
    ) -> Step {
        let Some(client) = self.clients.get_mut(id) else { return Step::Ended };
        let rest = run.rest(at);
        let bytes = rest.len().min(client.stream.left);
        client.stream.left -= bytes;
        if client.stream.drop {
            return Step::Drop(bytes);
        }
        let done = client.stream.left == 0;
        if let Some(mut scanner) = client.stream.scanner.take() {
            let text = rest.get(..bytes).unwrap_or_default();
            let nul = text.iter().position(|byte| *byte == 0);
            scanner.feed(text.get(..nul.unwrap_or(text.len())).unwrap_or_default());
            if nul.is_some() || done {
                self.pin_for(id, scanner.finish(), now, sink);
            } else {
                client.stream.scanner = Some(scanner);
            }
        }
        Step::Forward(bytes)
    }

    /// A message from its head on.
    fn client_message(
        &mut self,
        id: ClientId,
        run: &mut Run<'_>,
        at: usize,
        now: Now,
        sink: &mut dyn Sink,
    ) -> Step {
        let rest = run.rest(at);
        let head = match Head::read(rest) {
            Ok(Some(head)) => head,
            Ok(None) => return Step::More,
            Err(malformed) => {
                run.flush(at, sink);
                self.client_violation(id, malformed.0, now, sink);
                return Step::Ended;
            }
        };
        if head.body as usize > longest_body(head.tag) {
            run.flush(at, sink);
            self.client_violation(id, "invalid message length", now, sink);
            return Step::Ended;
        }
        let whole = rest.len() >= head.total();
        match head.tag {
            tag::QUERY
            | tag::PARSE
            | tag::BIND
            | tag::DESCRIBE
            | tag::CLOSE
            | tag::EXECUTE
            | tag::SYNC
            | tag::FLUSH
            | tag::FUNCTION_CALL => {
                // A server is not kept waiting for the rest of a short message.
                if !whole && head.total() <= COLLECT_BYTES_MAX {
                    return Step::More;
                }
            }
            tag::COPY_DATA | tag::COPY_DONE | tag::COPY_FAIL => {
                return self.copy_message(id, head, rest.len());
            }
            other => {
                run.flush(at, sink);
                self.last_message(id, other, now, sink);
                return Step::Ended;
            }
        }
        let Some(client) = self.clients.get_mut(id) else { return Step::Ended };
        let Some(session) = client.session.as_deref_mut() else { return Step::Ended };
        if session.refuse != Refuse::Nothing {
            return self.refused_message(id, head, rest.len(), sink);
        }
        let server_id = match client.server() {
            Some(server_id) => server_id,
            None if self.answers_alone(id, head, rest, now, sink) => {
                return self.drop_message(id, head, rest.len());
            }
            None => match self.borrow(id, now, sink) {
                Borrow::Linked(server_id) => {
                    run.to = Some(Conn::Server(server_id));
                    server_id
                }
                Borrow::Waits => return Step::Blocked,
                Borrow::Refused => return Step::Again,
            },
        };
        self.request(Place { client: id, server: server_id, at, head }, run, now, sink)
    }

    /// Answers what an idle client asks that no server is needed for: a Close, since servers keep
    /// the shared statements, a Sync, and a Flush, of nothing. False: it is something else.
    ///
    /// So a statement that a driver drops ahead of its next request waits for no server, and a
    /// cancel meanwhile strikes that request.
    fn answers_alone(
        &mut self,
        id: ClientId,
        head: Head,
        rest: &[u8],
        now: Now,
        sink: &mut dyn Sink,
    ) -> bool {
        let body = rest.get(HEAD_BYTES..head.total()).unwrap_or_default();
        self.scratch.clear();
        match head.tag {
            tag::FLUSH => return true,
            tag::SYNC if body.is_empty() => write::ready_for_query(&mut self.scratch, b'I'),
            tag::CLOSE => {
                let Ok(message) = NamedMessage::read(body) else { return false };
                match (message.kind, self.session_mut(id)) {
                    (b'S', Some(session)) => session.statements.set(message.name.into(), None),
                    // Without a server it has no portals.
                    (b'P', _) => {}
                    _ => return false,
                }
                write::close_complete(&mut self.scratch);
            }
            _ => return false,
        }
        sink.send_own(Conn::Client(id), &self.scratch);
        self.client_is_idle(id, now);
        true
    }

    /// Terminate, or a message that no client may send.
    fn last_message(&mut self, id: ClientId, kind: u8, now: Now, sink: &mut dyn Sink) {
        if kind == tag::TERMINATE {
            return self.terminate(id, now, sink);
        }
        let told = format!("invalid frontend message type {kind}");
        self.client_misbehaved(id, "invalid frontend message type", &told, now, sink);
    }

    /// The client says goodbye: what it has asked for before is still answered, as PostgreSQL does.
    fn terminate(&mut self, id: ClientId, now: Now, sink: &mut dyn Sink) {
        let Some(client) = self.clients.get_mut(id) else { return };
        client.held = Vec::new();
        let answers_to_come = client
            .server()
            .and_then(|server_id| self.servers.get(server_id))
            .is_some_and(|server| server.owed.readies() > 0 && !server.owed.is_open());
        if answers_to_come && !client.eof {
            sink.pause_read(Conn::Client(id));
            self.expect_no_more(id, now);
        } else if !answers_to_come {
            sink.close(Conn::Client(id));
            self.client_left(id, now, sink);
        }
    }

    /// A request of a client that has a server.
    #[inline]
    fn request(&mut self, place: Place, run: &mut Run<'_>, now: Now, sink: &mut dyn Sink) -> Step {
        let Place { client: id, server: server_id, at, head } = place;
        let Some(server) = self.servers.get_mut(server_id) else { return Step::Ended };
        if server.owed.len() >= REPLIES_MAX {
            return self.wait_for_replies(place, run, sink);
        }
        let available = run.rest(at).len();
        if server.owed.is_restoring() {
            return self.stall(place, run, sink);
        }
        let told_fatal = self
            .clients
            .get(id)
            .and_then(|client| client.session.as_deref())
            .is_some_and(|session| session.told_fatal);
        if told_fatal || server.owed.is_skipping() && head.tag != tag::SYNC {
            // The server would throw it away.
            return self.drop_message(id, head, available);
        }
        if (!server.is_busy() || server.owed.is_name_alone()) && head.tag != tag::FLUSH {
            self.request_begins(id, now);
            if self.has_lost_name(id, server_id) {
                if self.is_being_cancelled(server_id) {
                    return self.stall(place, run, sink);
                }
                run.flush(at, sink);
                self.send_application_name(id, server_id, sink);
            }
        }
        let has_both = |session: &mut Session| {
            session.has_native_names() && !session.statements.named.is_empty()
        };
        if self.session_mut(id).is_some_and(has_both)
            && !self.names_are_settled(place, run, now, sink)
        {
            return self.stall(place, run, sink);
        }
        match head.tag {
            tag::QUERY => self.query(place, run, now, sink),
            tag::PARSE => self.parse(place, run, now, sink),
            tag::BIND => self.bind(place, run, now, sink),
            tag::DESCRIBE | tag::CLOSE => self.describe_or_close(place, run, now, sink),
            tag::EXECUTE => {
                let is_unnamed = run.rest(at).get(HEAD_BYTES) == Some(&0);
                let Some(session) = self.session_mut(id) else { return Step::Ended };
                let drops = session.drops_bound.then_some(Change::DropAll);
                let assigns = session.bound.as_ref().filter(|_| is_unnamed);
                let assigns = assigns.map(|assigns| Change::Assign(Rc::clone(assigns)));
                let changes = drops.into_iter().chain(assigns);
                self.owe_changing(server_id, Owed::forward(Kind::Execute), changes);
                self.forward_message(id, head, available)
            }
            tag::SYNC => self.sync(id, server_id, head, available),
            tag::FUNCTION_CALL => {
                self.pin_for_function(id, run.rest(at), now, sink);
                if let Some(server) = self.servers.get_mut(server_id) {
                    // As with a Query there.
                    server.unfit |= server.owed.is_open();
                }
                self.owe(server_id, Owed::forward(Kind::Function));
                self.next_batch(id, server_id);
                self.forward_message(id, head, available)
            }
            _ => {
                self.flush_synthetic(id, server_id, sink);
                self.forward_message(id, head, available)
            }
        }
    }

    /// A simple Query.
    #[inline]
    fn query(&mut self, place: Place, run: &mut Run<'_>, now: Now, sink: &mut dyn Sink) -> Step {
        let Place { client: id, server: server_id, at, head } = place;
        let rest = run.rest(at);
        let whole = rest.len() >= head.total();
        let body = rest.get(HEAD_BYTES..head.total().min(rest.len())).unwrap_or_default();
        let mut note = Note::None;
        // Whether it drops all names, as far as its text is known.
        let mut drops = !whole;
        let mut assigns = None;
        if whole {
            let text = body.split(|byte| *byte == 0).next().unwrap_or_default();
            let verdict = sqlscan::scan(text);
            let is_opaque = self.is_opaque(id);
            if !verdict.effects.is_empty() && verdict.reset.is_none() && !is_opaque {
                assigns = assignments_of(text, verdict);
            }
            if assigns.is_some() {
                note = Note::Assigns { failed: false };
            } else if !verdict.effects.is_empty() || is_opaque {
                match self.before_statement(place, verdict, run, now, sink) {
                    Step::Again => {}
                    step => return step,
                }
            }
            drops = verdict.effects.contains(Effects::DISCARD)
                || matches!(verdict.reset, Some(Reset::DiscardAll | Reset::DeallocateAll));
            if let Some(reset) = verdict.reset {
                note = Note::Reset { reset, failed: false };
                self.reset_sent(id, server_id);
            }
        } else if let Some(client) = self.clients.get_mut(id) {
            let mut scanner = Box::new(Scanner::new());
            scanner.feed(body);
            client.stream.scanner = Some(scanner);
        }
        let available = run.rest(at).len();
        let Some(client) = self.clients.get_mut(id) else { return Step::Ended };
        let Some(session) = client.session.as_deref_mut() else { return Step::Ended };
        let Some(server) = self.servers.get_mut(server_id) else { return Step::Ended };
        // PostgreSQL 18 says idle after a Query inside a batch and its Sync, yet keeps the
        // transaction: its next statement fails (XX000). Nobody else may get such a server.
        server.unfit |= server.owed.is_open();
        let has_unnamed = session.statements.unnamed.is_some() || server.statements.unnamed != 0;
        // It drops the unnamed statement, whatever comes of it.
        let unnamed = (has_unnamed || server.owed.changes().next().is_some())
            .then(|| [Change::Unnamed(0), Change::Name { name: Box::default(), means: None }]);
        let assigns = assigns.map(|assignments| Change::Assign(assignments.into()));
        let changes = unnamed.into_iter().flatten().chain(drops.then_some(Change::DropAll));
        let changes = changes.chain(assigns);
        server.owed.push_changing(Owed::noted(Kind::Query, note), changes);
        session.batch_mark = server.statements.mark();
        let bytes = head.total().min(available);
        client.stream.left = head.total() - bytes;
        client.stream.drop = false;
        Step::Forward(bytes)
    }

    fn sync(&mut self, id: ClientId, server_id: ServerId, head: Head, available: usize) -> Step {
        if let Some(server) = self.servers.get_mut(server_id) {
            if server.copy_in == (CopyIn::Reading { ended: false }) {
                // The server ignores it while it reads copy data (protocol, "COPY Operations").
                server.doubtful_sync = true;
            } else {
                server.owed.push(Owed::forward(Kind::Sync));
            }
        }
        self.next_batch(id, server_id);
        self.forward_message(id, head, available)
    }

    pub(crate) fn next_batch(&mut self, id: ClientId, server_id: ServerId) {
        let Some(mark) = self.servers.get(server_id).map(|server| server.statements.mark()) else {
            return;
        };
        if let Some(session) = self.session_mut(id) {
            session.batch_mark = mark;
        }
    }

    #[inline]
    pub(crate) fn owe(&mut self, server_id: ServerId, owed: Owed) {
        self.owe_changing(server_id, owed, []);
    }

    #[inline]
    pub(crate) fn owe_changing(
        &mut self,
        server_id: ServerId,
        owed: Owed,
        changes: impl IntoIterator<Item = Change>,
    ) {
        if let Some(server) = self.servers.get_mut(server_id) {
            server.owed.push_changing(owed, changes);
        }
    }

    /// CopyData, CopyDone, CopyFail: for the server that reads copy data; late ones reach nobody.
    fn copy_message(&mut self, id: ClientId, head: Head, available: usize) -> Step {
        let server_id = self.clients.get(id).and_then(client::Client::server);
        let Some(server) = server_id.and_then(|server_id| self.servers.get_mut(server_id)) else {
            return self.drop_message(id, head, available);
        };
        if head.tag != tag::COPY_DATA {
            if let CopyIn::Reading { ended } = &mut server.copy_in {
                *ended = true;
            }
            server.owed.push_copy_end();
        }
        self.forward_message(id, head, available)
    }

    /// Sends a message on as it is; what has not come yet follows.
    pub(crate) fn forward_message(&mut self, id: ClientId, head: Head, available: usize) -> Step {
        let bytes = head.total().min(available);
        self.set_stream(id, head.total() - bytes, false);
        Step::Forward(bytes)
    }

    fn drop_message(&mut self, id: ClientId, head: Head, available: usize) -> Step {
        let bytes = head.total().min(available);
        self.set_stream(id, head.total() - bytes, true);
        Step::Drop(bytes)
    }

    pub(crate) fn set_stream(&mut self, id: ClientId, left: usize, drop: bool) {
        if let Some(client) = self.clients.get_mut(id) {
            client.stream.left = left;
            client.stream.drop = drop;
        }
    }

    /// A message behind a refused one.
    fn refused_message(
        &mut self,
        id: ClientId,
        head: Head,
        available: usize,
        sink: &mut dyn Sink,
    ) -> Step {
        let Some(session) = self.session_mut(id) else { return Step::Ended };
        let ends = head.tag == tag::SYNC
            || session.refuse == Refuse::Request
                && matches!(head.tag, tag::QUERY | tag::FUNCTION_CALL);
        if ends {
            session.refuse = Refuse::Nothing;
        } else if head.tag != tag::FLUSH {
            session.refuse = Refuse::ToSync;
        }
        if ends {
            self.scratch.clear();
            write::ready_for_query(&mut self.scratch, b'I');
            sink.send_own(Conn::Client(id), &self.scratch);
        }
        self.drop_message(id, head, available)
    }

    /// Answers an idle client's next request with an error instead of sending it anywhere.
    pub(crate) fn refuse(&mut self, id: ClientId, failure: &Failure, sink: &mut dyn Sink) {
        self.scratch.clear();
        failure.write(&mut self.scratch);
        sink.send_own(Conn::Client(id), &self.scratch);
        let Some(client) = self.clients.get_mut(id) else { return };
        client.state = client::State::Idle;
        if let Some(session) = client.session.as_deref_mut() {
            // Which kind of request it is shows when its head is read again.
            session.refuse = Refuse::Request;
        }
    }

    /// As much is owed as is kept.
    fn wait_for_replies(&mut self, place: Place, run: &mut Run<'_>, sink: &mut dyn Sink) -> Step {
        self.flush_synthetic(place.client, place.server, sink);
        let Some(server) = self.servers.get_mut(place.server) else { return Step::Ended };
        if server.owed.len() < REPLIES_MAX {
            return Step::Again;
        }
        self.stall(place, run, sink)
    }

    /// The client goes on when the server has answered what it owes. The server may hold all of
    /// that back until it reads a Sync that the client has not sent yet, so it is asked for what is
    /// due.
    pub(crate) fn stall(&mut self, place: Place, run: &mut Run<'_>, sink: &mut dyn Sink) -> Step {
        let Place { client: id, server: server_id, at, .. } = place;
        if self.servers.get_mut(server_id).is_some_and(|server| server.owed.wants_flush()) {
            run.flush(at, sink);
            self.scratch.clear();
            write::flush(&mut self.scratch);
            sink.send_own(Conn::Server(server_id), &self.scratch);
        }
        self.pause_client(id, client::pause::STALLED, true, sink);
        Step::Blocked
    }

    /// Pins that come from here on come behind the reset that is being sent.
    fn reset_sent(&mut self, id: ClientId, server_id: ServerId) {
        let Some(server) = self.servers.get(server_id) else { return };
        let is_reset = |owed: &Owed| matches!(owed.note, Note::Reset { .. });
        // With one under way already, what came between the two is kept as well: a pin too many.
        if server.owed.iter().any(is_reset) {
            return;
        }
        if let Some(session) = self.session_mut(id) {
            session.pin.reset_sent();
        }
    }

    /// Whether a reset took the server back to its login's `application_name`, which is not the
    /// client's.
    fn has_lost_name(&self, id: ClientId, server_id: ServerId) -> bool {
        let session = self.clients.get(id).and_then(|client| client.session.as_deref());
        let (Some(session), Some(server)) = (session, self.servers.get(server_id)) else {
            return false;
        };
        !Rc::ptr_eq(&session.application_name, &server.application_name)
            && session.application_name != server.application_name
            && server.status == b'I'
    }

    /// Whether a cancel is on its way that could strike a request of our own.
    pub(crate) fn is_being_cancelled(&self, server_id: ServerId) -> bool {
        self.servers.get(server_id).is_some_and(|server| server.cancels > 0)
    }

    fn request_begins(&mut self, id: ClientId, now: Now) {
        let Some(client) = self.clients.get_mut(id) else { return };
        client.since = now;
        if client.eof {
            self.expect_no_more(id, now);
        } else if self.config.query_timeout_ms == 0 {
            client.timer.clear();
        } else {
            let deadline = now.plus_ms(self.config.query_timeout_ms);
            self.wheel.set(&mut client.timer, Owner::Client(id), deadline);
        }
    }

    pub(crate) fn is_opaque(&self, id: ClientId) -> bool {
        self.clients.get(id).and_then(|c| c.session.as_ref()).is_some_and(|s| s.opaque)
    }

    /// Pins for what a statement may leave behind.
    pub(crate) fn pin_for(
        &mut self,
        id: ClientId,
        verdict: Verdict,
        now: Now,
        sink: &mut dyn Sink,
    ) {
        let reasons = Reasons::from_effects(verdict.effects);
        let Some(session) = self.session_mut(id) else { return };
        let mut first = session.pin.add(reasons, now);
        if session.opaque {
            first = first.or(session.pin.add_one(PinReason::Unsure, now));
        }
        if let Some(reason) = first {
            self.pinned(id, reason, sink);
        }
    }

    pub(crate) fn pin_for_one(
        &mut self,
        id: ClientId,
        reason: PinReason,
        now: Now,
        sink: &mut dyn Sink,
    ) {
        let Some(session) = self.session_mut(id) else { return };
        if let Some(reason) = session.pin.add_one(reason, now) {
            self.pinned(id, reason, sink);
        }
    }

    fn pinned(&mut self, id: ClientId, reason: PinReason, sink: &mut dyn Sink) {
        let Some(client) = self.clients.get(id) else { return };
        let Some(session) = client.session.as_deref() else { return };
        let pool = self.pools.get(session.pool).map_or_else(String::new, |p| p.name.clone());
        self.stats.pins += 1;
        sink.event(Event::Pinned { client: client.number, pool, reason });
    }

    /// A FunctionCall names its function by OID; these change session state (pg_proc.dat).
    fn pin_for_function(&mut self, id: ClientId, message: &[u8], now: Now, sink: &mut dyn Sink) {
        let oid = message.get(HEAD_BYTES..HEAD_BYTES + 4).and_then(|b| b.try_into().ok());
        let reason = match oid.map(u32::from_be_bytes) {
            Some(2078) => PinReason::SetConfig,
            Some(2880..=2883 | 2886..=2889) => PinReason::AdvisoryLock,
            Some(1574 | 1576 | 1765) => PinReason::Sequence,
            Some(1599) => PinReason::Seed,
            Some(2172 | 3779 | 3786 | 4220..=4224 | 6006) => PinReason::ForeignSession,
            // These run SQL given as text: query_to_xml and its kin, ts_rewrite, ts_stat.
            Some(2924 | 2927 | 2930 | 3685 | 3689 | 3690) => PinReason::Unsure,
            Some(_) => return,
            None => PinReason::Unsure,
        };
        self.pin_for_one(id, reason, now, sink);
    }

    /// Sends `SET application_name` ahead of the client's first message; its reply is swallowed.
    pub(crate) fn send_application_name(
        &mut self,
        id: ClientId,
        server_id: ServerId,
        sink: &mut dyn Sink,
    ) {
        let Some(session) = self.clients.get(id).and_then(|c| c.session.as_deref()) else { return };
        let Some(server) = self.servers.get_mut(server_id) else { return };
        self.scratch.clear();
        params::write_set_application_name(&mut self.scratch, &session.application_name);
        server.application_name = Rc::clone(&session.application_name);
        server.statements.unnamed = 0;
        server.owed.push(Owed::own(Note::OwnName));
        sink.send_own(Conn::Server(server_id), &self.scratch);
    }
}

/// The longest body that PostgreSQL accepts, by type (`PQ_SMALL_MESSAGE_LIMIT`,
/// `PQ_LARGE_MESSAGE_LIMIT`).
const fn longest_body(message: u8) -> usize {
    match message {
        tag::DESCRIBE
        | tag::CLOSE
        | tag::EXECUTE
        | tag::SYNC
        | tag::FLUSH
        | tag::TERMINATE
        | tag::COPY_DONE => 10_000,
        _ => 0x3FFF_FFFE,
    }
}
