//! Replies: from a server's bytes to its client, message by message.
//!
//! The reply queue says which request a message answers and whether the client sees it. What goes
//! on goes on in one piece, straight from the received bytes; rows and copy data are never held,
//! whatever their size. A message that does not fit what is owed ends the connection. Next on the
//! path: `release.rs`.

use std::ops::Range;
use std::rc::Rc;

use pgwire::backend::{self, ErrorFields, ParameterStatus};
use pgwire::frame::{HEAD_BYTES, Head};
use pgwire::{tag, write};

use super::input::{Input, Run};
use crate::core::Core;
use crate::errors::server_lost;
use crate::event::{Event, Level};
use crate::ids::{Conn, ServerId};
use crate::limits::{ABANDONED_BYTES_MAX, SERVER_COLLECT_BYTES_MAX};
use crate::owed::{Kind, Note};
use crate::params::{APPLICATION_NAME, NO_APPLICATION_NAME};
use crate::server::{self, CopyIn, Task};
use crate::sink::{Chunk, Now, Sink};

/// What to do with a reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// The client gets it.
    Forward,
    /// Nobody does.
    Swallow,
    /// It was dealt with in another way (and what had to be sent was sent).
    Handled,
    /// The server is gone, or no longer read.
    Ended,
}

impl Core {
    /// Deals with a server's bytes.
    pub(crate) fn server_input(
        &mut self,
        id: ServerId,
        chunk: Chunk<'_>,
        now: Now,
        sink: &mut dyn Sink,
    ) {
        let Some(server) = self.servers.get_mut(id) else { return };
        if server.partial.is_empty() {
            return self.pump_server(id, Input::Chunk(chunk), now, sink);
        }
        let mut held = std::mem::take(&mut server.partial);
        held.extend_from_slice(chunk.bytes);
        self.pump_server(id, Input::Held(held), now, sink);
    }

    fn pump_server(&mut self, id: ServerId, input: Input<'_>, now: Now, sink: &mut dyn Sink) {
        let to = self.servers.get(id).and_then(|server| server.client()).map(Conn::Client);
        let mut run = Run { input, start: 0, to };
        let mut at = 0;
        let length = run.input.bytes().len();
        while at < length {
            let Some(server) = self.servers.get_mut(id) else { return };
            if matches!(server.state, server::State::Closing) {
                return;
            }
            let mut is_row = false;
            let (forward, bytes) = if server.stream_left > 0 {
                let bytes = (length - at).min(server.stream_left);
                server.stream_left -= bytes;
                (server.stream_forward, bytes)
            } else {
                let Some(head) = self.reply_head(id, &mut run, at, now, sink) else { break };
                let bytes = head.total().min(length - at);
                let verdict = self.reply(id, &mut run, at, head, now, sink);
                if verdict == Verdict::Ended {
                    return;
                }
                let forward = verdict == Verdict::Forward;
                is_row = matches!(head.tag, tag::DATA_ROW | tag::COPY_DATA);
                if let Some(server) = self.servers.get_mut(id) {
                    server.stream_left = head.total() - bytes;
                    server.stream_forward = forward;
                }
                (forward, bytes)
            };
            if forward {
                at += bytes;
            } else {
                self.note_thrown_away(id, bytes, now, sink);
                run.flush(at.max(run.start), sink);
                at += bytes;
                run.start = at;
            }
            let Some(server) = self.servers.get(id) else { return };
            if server.stream_left == 0 && !is_row {
                self.message_ended(id, &mut run, at, now, sink);
            }
        }
        run.flush(at.max(run.start), sink);
        self.note_mid_reply(id);
        if let Some(server) = self.servers.get_mut(id) {
            if let Some(rest) = run.input.bytes().get(at..) {
                server.partial.extend_from_slice(rest);
            }
        }
    }

    /// The next reply's head, if the reply can be dealt with now: short ones must be whole.
    fn reply_head(
        &mut self,
        id: ServerId,
        run: &mut Run<'_>,
        at: usize,
        now: Now,
        sink: &mut dyn Sink,
    ) -> Option<Head> {
        let rest = run.rest(at);
        let head = match Head::read(rest) {
            Ok(head) => head?,
            Err(malformed) => {
                run.flush(at.max(run.start), sink);
                self.server_violation(id, malformed.0, now, sink);
                return None;
            }
        };
        let streams = matches!(
            head.tag,
            tag::DATA_ROW | tag::COPY_DATA | tag::ROW_DESCRIPTION | tag::FUNCTION_RESPONSE
        );
        // Our own question's answer is read, not passed on: it must be whole, too.
        let is_ours = self.servers.get(id).is_some_and(|server| {
            matches!(
                server.state,
                server::State::LoggingIn(_) | server::State::Working(Task::Limits)
            )
        });
        if streams && !is_ours || rest.len() >= head.total() {
            return Some(head);
        }
        if head.total() <= SERVER_COLLECT_BYTES_MAX {
            return None;
        }
        // Errors, notices and the like may be of any size; those that say something to us may not.
        let must_be_read = matches!(
            head.tag,
            tag::READY_FOR_QUERY | tag::PARAMETER_STATUS | tag::BACKEND_KEY_DATA
        );
        let is_idle =
            self.servers.get(id).is_some_and(|server| matches!(server.state, server::State::Idle));
        if must_be_read || is_ours || is_idle {
            run.flush(at.max(run.start), sink);
            self.server_violation(id, "a message is longer than it may be", now, sink);
            return None;
        }
        Some(head)
    }

    /// A reply from its head on; `Ended` if there is nobody left to deal with what follows. Rows
    /// come through here one by one: what else may come stays out of line.
    #[inline]
    fn reply(
        &mut self,
        id: ServerId,
        run: &mut Run<'_>,
        at: usize,
        head: Head,
        now: Now,
        sink: &mut dyn Sink,
    ) -> Verdict {
        let Some(server) = self.servers.get_mut(id) else { return Verdict::Ended };
        let body_end = (at + head.total()).min(run.input.bytes().len());
        match server.state {
            server::State::LoggingIn(_) => {
                let body = run.input.bytes().get(at + HEAD_BYTES..body_end).unwrap_or_default();
                self.login_reply(id, head.tag, body, now, sink);
                return self.still_read(id);
            }
            server::State::Connecting | server::State::Closing => return Verdict::Ended,
            _ => {}
        }
        match head.tag {
            tag::DATA_ROW => self.row(id, run, at, body_end, now, sink),
            tag::NOTICE_RESPONSE | tag::NOTIFICATION_RESPONSE => self.asynchronous(id),
            tag::PARAMETER_STATUS => self.parameter(id, run, at, body_end, now, sink),
            tag::READY_FOR_QUERY => self.ready(id, run, at, body_end, now, sink),
            tag::ERROR_RESPONSE => self.error(id, run, at, body_end, now, sink),
            _ => {
                self.emit_synthetic(id, run, at, sink);
                self.in_order(id, run, head.tag, at + HEAD_BYTES..body_end, now, sink)
            }
        }
    }

    pub(crate) fn still_read(&self, id: ServerId) -> Verdict {
        match self.servers.get(id).map(|server| &server.state) {
            None | Some(server::State::Closing) => Verdict::Ended,
            Some(_) => Verdict::Handled,
        }
    }

    /// Rows and copy data, the hot path.
    #[inline]
    fn row(
        &mut self,
        id: ServerId,
        run: &mut Run<'_>,
        at: usize,
        body_end: usize,
        now: Now,
        sink: &mut dyn Sink,
    ) -> Verdict {
        if self.servers.get(id).is_some_and(|server| server.owed.front_is_synthetic()) {
            // Everything before it had been answered when it was added.
            self.emit_synthetic(id, run, at, sink);
        }
        let Some(server) = self.servers.get_mut(id) else { return Verdict::Ended };
        match server.owed.front() {
            Some(owed) if matches!(owed.kind, Kind::Query | Kind::Execute) => {
                if !owed.swallow {
                    return Verdict::Forward;
                }
                if matches!(server.state, server::State::Working(Task::Limits)) {
                    let body = run.input.bytes().get(at + HEAD_BYTES..body_end);
                    self.limits_row(id, body.unwrap_or_default(), now, sink);
                }
                Verdict::Swallow
            }
            _ => self.unexpected(id, now, sink),
        }
    }

    fn unexpected(&mut self, id: ServerId, now: Now, sink: &mut dyn Sink) -> Verdict {
        if self.servers.get(id).is_some_and(|server| server.doubtful_sync) {
            // Not the server's fault: how many pipelined Syncs a cancelled COPY swallowed shows
            // only in what does not fit afterwards. Nobody else gets this server, and its client's
            // replies cannot be told apart any more.
            let what = "lost count of the Syncs behind a cancelled COPY";
            Self::log(sink, Level::Warning, format!("a server's connection {what}; it is closed"));
            if let Some(client) = self.servers.get(id).and_then(server::Server::client) {
                self.end_client(client, &server_lost(what), now, sink);
            }
            self.retire(id, now, sink);
            return Verdict::Ended;
        }
        self.server_violation(id, "a reply that nothing was owed for", now, sink);
        Verdict::Ended
    }

    /// Notices and notifications: for the client that has the server, unless they answer a query of
    /// ours.
    fn asynchronous(&mut self, id: ServerId) -> Verdict {
        let Some(server) = self.servers.get(id) else { return Verdict::Ended };
        let ours = server.owed.front().is_some_and(|owed| owed.swallow);
        if server.client().is_some() && !ours { Verdict::Forward } else { Verdict::Swallow }
    }

    /// Replies that answer the oldest request.
    #[inline(never)]
    fn in_order(
        &mut self,
        id: ServerId,
        run: &Run<'_>,
        message: u8,
        body: Range<usize>,
        now: Now,
        sink: &mut dyn Sink,
    ) -> Verdict {
        let Some(server) = self.servers.get_mut(id) else { return Verdict::Ended };
        let Some(owed) = server.owed.front() else { return self.unexpected(id, now, sink) };
        server.begun = true;
        let swallow = owed.swallow;
        let (fits, ends) = match (message, owed.kind) {
            (tag::PARSE_COMPLETE, Kind::Parse)
            | (tag::BIND_COMPLETE, Kind::Bind)
            | (tag::CLOSE_COMPLETE, Kind::Close)
            | (tag::NO_DATA | tag::ROW_DESCRIPTION, Kind::Describe)
            | (tag::COMMAND_COMPLETE | tag::EMPTY_QUERY | tag::PORTAL_SUSPENDED, Kind::Execute) => {
                (true, true)
            }
            (tag::PARAMETER_DESCRIPTION, Kind::Describe)
            | (tag::COMMAND_COMPLETE | tag::EMPTY_QUERY | tag::ROW_DESCRIPTION, Kind::Query)
            | (tag::COPY_DATA | tag::COPY_DONE | tag::COPY_OUT, Kind::Query | Kind::Execute)
            | (tag::FUNCTION_RESPONSE, Kind::Function) => (true, false),
            (tag::COPY_IN, Kind::Query | Kind::Execute) => {
                let ended = server.owed.iter().any(|owed| owed.kind == Kind::CopyEnd);
                server.copy_in = CopyIn::Reading { ended };
                server.doubtful_sync |= server.owed.drop_syncs_before_copy_end() > 0;
                let client =
                    server.client().filter(|id| self.clients.get(*id).is_some_and(|c| c.eof));
                // It sends no more, so no data either.
                self.resume.extend(client);
                if matches!(server.state, server::State::Abandoned { .. }) {
                    self.retire(id, now, sink);
                    return Verdict::Ended;
                }
                (true, false)
            }
            _ => (false, false),
        };
        if !fits {
            return self.unexpected(id, now, sink);
        }
        if message == tag::COMMAND_COMPLETE {
            // Data that was read to its end: what Syncs came before it were ignored for certain.
            server.doubtful_sync &= server.copy_in == CopyIn::No;
            server.copy_in = CopyIn::No;
            let body = run.input.bytes().get(body).unwrap_or_default();
            self.note_command(id, body, now, sink);
        }
        if ends {
            self.passed(id);
        }
        if swallow { Verdict::Swallow } else { Verdict::Forward }
    }

    /// A message has been dealt with to its end: what of ours comes right behind it follows.
    fn message_ended(
        &mut self,
        id: ServerId,
        run: &mut Run<'_>,
        at: usize,
        now: Now,
        sink: &mut dyn Sink,
    ) {
        self.emit_synthetic(id, run, at, sink);
        self.at_idle_point(id, run, at, now, sink);
    }

    /// Sends the ParseCompletes of ours whose turn has come.
    pub(crate) fn emit_synthetic(
        &mut self,
        id: ServerId,
        run: &mut Run<'_>,
        at: usize,
        sink: &mut dyn Sink,
    ) {
        loop {
            let Some(server) = self.servers.get_mut(id) else { return };
            if !is_synthetic_due(server) {
                return;
            }
            let client = server.client();
            self.passed(id);
            if let Some(client) = client {
                run.flush(at.max(run.start), sink);
                self.scratch.clear();
                write::parse_complete(&mut self.scratch);
                sink.send_own(Conn::Client(client), &self.scratch);
            }
        }
    }

    /// A Flush asks for what is due; ParseCompletes of ours that nothing stands before are.
    pub(crate) fn flush_synthetic(
        &mut self,
        client: crate::ids::ClientId,
        id: ServerId,
        sink: &mut dyn Sink,
    ) {
        loop {
            let Some(server) = self.servers.get_mut(id) else { return };
            if server.stream_left > 0 || !is_synthetic_due(server) {
                return;
            }
            self.passed(id);
            self.scratch.clear();
            write::parse_complete(&mut self.scratch);
            sink.send_own(Conn::Client(client), &self.scratch);
        }
    }

    /// ParameterStatus: the server's new value; its client is told, except that `application_name`
    /// is the client's own business.
    #[inline(never)]
    fn parameter(
        &mut self,
        id: ServerId,
        run: &mut Run<'_>,
        at: usize,
        body_end: usize,
        now: Now,
        sink: &mut dyn Sink,
    ) -> Verdict {
        let body = run.input.bytes().get(at + HEAD_BYTES..body_end).unwrap_or_default();
        self.note_parameter(id, body, now, sink);
        if self.still_read(id) == Verdict::Ended {
            return Verdict::Ended;
        }
        let Some(server) = self.servers.get(id) else { return Verdict::Ended };
        let Some(client) = server.client() else { return Verdict::Swallow };
        let params = Rc::clone(&server.params);
        let name = Rc::clone(&server.application_name);
        let front = server.owed.front();
        let ours = front.is_some_and(|owed| owed.swallow);
        let is_reset =
            server.was_reset || front.is_some_and(|owed| matches!(owed.note, Note::Reset { .. }));
        let Some(session) = self.session_mut(client) else { return Verdict::Ended };
        let is_name = ParameterStatus::read(body).is_ok_and(|p| p.name == APPLICATION_NAME);
        if !is_name {
            if ours {
                // It is told when all of them are set.
                return Verdict::Swallow;
            }
            session.opaque |= params.is_opaque();
            session.params = params;
            return Verdict::Forward;
        }
        if ours {
            // The answer to our SET. A server may clean or shorten the name: then that is the
            // truth.
            if session.application_name == name {
                return Verdict::Swallow;
            }
            session.application_name_at_start = Rc::clone(&name);
            session.application_name = name;
            return Verdict::Forward;
        }
        if !is_reset {
            session.application_name = name;
            return Verdict::Forward;
        }
        // The server went back to its own login's value; the client's is what it said at start-up.
        if session.application_name != session.application_name_at_start {
            session.application_name = Rc::clone(&session.application_name_at_start);
            let name = Rc::clone(&session.application_name);
            run.flush(at.max(run.start), sink);
            self.scratch.clear();
            write::parameter_status(&mut self.scratch, APPLICATION_NAME, &name);
            sink.send_own(Conn::Client(client), &self.scratch);
        }
        Verdict::Swallow
    }

    /// ErrorResponse: the client gets it at once; inside a batch the rest up to Sync is not owed
    /// any more.
    #[inline(never)]
    fn error(
        &mut self,
        id: ServerId,
        run: &mut Run<'_>,
        at: usize,
        body_end: usize,
        now: Now,
        sink: &mut dyn Sink,
    ) -> Verdict {
        self.emit_synthetic(id, run, at, sink);
        let body = run.input.bytes().get(at + HEAD_BYTES..body_end).unwrap_or_default();
        let fields = ErrorFields::read(body).ok();
        let severity = fields.as_ref().and_then(|f| f.get(b'V').or_else(|| f.get(b'S')));
        let is_fatal = matches!(severity, Some(b"FATAL" | b"PANIC"));
        let Some(server) = self.servers.get_mut(id) else { return Verdict::Ended };
        server.unfit |= is_fatal;
        let Some(client) = server.client() else {
            server.failure = fields.as_ref().and_then(message_of);
            return self.error_without_client(id, is_fatal, now, sink);
        };
        if is_fatal {
            if let Some(session) = self.session_mut(client) {
                session.told_fatal = true;
            }
            return Verdict::Forward;
        }
        let Some(server) = self.servers.get_mut(id) else { return Verdict::Ended };
        server.copy_in = CopyIn::No;
        server.begun = true;
        if !server.owed.front().is_some_and(|owed| owed.swallow) && !server.pending.is_empty() {
            // Whatever was open is rolled back, or will be, at least in part.
            self.undo_variables(id, now, sink);
        }
        let Some(server) = self.servers.get_mut(id) else { return Verdict::Ended };
        if server.doubtful_sync {
            // Whether that Sync was counted cannot be known: nobody else may get this server.
            server.unfit = true;
        }
        let Some(owed) = server.owed.front_mut() else { return self.unexpected(id, now, sink) };
        if owed.kind.ends_with_ready() {
            match &mut owed.note {
                Note::Reset { failed, .. } | Note::Assigns { failed } => *failed = true,
                Note::Restore { failure } => {
                    *failure = Some(fields.as_ref().and_then(message_of).unwrap_or_default());
                }
                // It stays what it was: whatever comes next is preceded by another SET.
                Note::OwnName => server.application_name = Rc::from(NO_APPLICATION_NAME),
                _ => {}
            }
            return if owed.swallow { Verdict::Swallow } else { Verdict::Forward };
        }
        let shown = match &owed.note {
            Note::Shown { server_name, client_name } => {
                rename_in_error(body, server_name, client_name)
            }
            _ => None,
        };
        self.skip_batch(id);
        // In a batch of ours, Sync included, a failure is nobody's answer.
        let front = self.servers.get(id).and_then(|server| server.owed.front());
        if front.is_some_and(|owed| owed.swallow && owed.kind == Kind::Sync) {
            return Verdict::Swallow;
        }
        let Some(renamed) = shown else { return Verdict::Forward };
        run.flush(at.max(run.start), sink);
        sink.send_own(Conn::Client(client), &renamed);
        Verdict::Handled
    }

    /// An error while no client has the server: our own query failed, or the server says goodbye.
    fn error_without_client(
        &mut self,
        id: ServerId,
        is_fatal: bool,
        now: Now,
        sink: &mut dyn Sink,
    ) -> Verdict {
        let Some(server) = self.servers.get_mut(id) else { return Verdict::Ended };
        if is_fatal {
            self.retire(id, now, sink);
            return Verdict::Ended;
        }
        server.copy_in = CopyIn::No;
        server.unfit |= server.doubtful_sync;
        match server.owed.front_mut() {
            Some(owed) if owed.kind.ends_with_ready() => {
                if let Note::Own { failed } = &mut owed.note {
                    *failed = true;
                }
            }
            Some(_) => {
                self.skip_batch(id);
                if self.servers.get(id).is_some_and(|server| server.owed.is_skipping()) {
                    // It waits for a Sync that nobody will send.
                    self.retire(id, now, sink);
                    return Verdict::Ended;
                }
            }
            None => return self.unexpected(id, now, sink),
        }
        Verdict::Swallow
    }

    /// CommandComplete tags that say what became of statement names, or of a failed transaction.
    fn note_command(&mut self, id: ServerId, body: &[u8], now: Now, sink: &mut dyn Sink) {
        let command = backend::command_tag(body);
        match command {
            Ok(b"COMMIT") => self.commit_variables(id, now, sink),
            Ok(b"ROLLBACK") => self.undo_variables(id, now, sink),
            // What they have run may have ended transactions of its own.
            Ok(b"CALL" | b"DO") => self.doubt_variables(id, now, sink),
            Ok(b"SAVEPOINT") => {
                if let Some(server) = self.servers.get_mut(id) {
                    server.pending.savepoint();
                }
            }
            _ => {}
        }
        let Some(server) = self.servers.get_mut(id) else { return };
        if server.status == b'E' && matches!(command, Ok(b"ROLLBACK")) {
            // The failed transaction is over; what is open now the ReadyForQuery will tell.
            server.status = b'T';
        }
        if matches!(command, Ok(b"DISCARD ALL" | b"RESET")) {
            server.was_reset = true;
            // What init_query set is the server's baseline: it comes back before the next client.
            server.needs.init |= !self.config.init_query.is_empty();
        }
        if !matches!(command, Ok(b"DISCARD ALL" | b"DEALLOCATE ALL")) {
            return;
        }
        self.all_dropped(id);
    }

    /// Remembers whether the client has been sent a part of a reply.
    fn note_mid_reply(&mut self, id: ServerId) {
        let Some(server) = self.servers.get(id) else { return };
        let mid_reply = server.stream_left > 0 && server.stream_forward;
        let Some(client) = server.client() else { return };
        if let Some(session) = self.session_mut(client) {
            session.mid_reply = mid_reply;
        }
    }

    /// Replies to a client that has left: a flood of them is cut short.
    fn note_thrown_away(&mut self, id: ServerId, bytes: usize, now: Now, sink: &mut dyn Sink) {
        let Some(server) = self.servers.get_mut(id) else { return };
        let server::State::Abandoned { bytes: total } = &mut server.state else { return };
        let before = *total;
        *total += bytes as u64;
        if before <= ABANDONED_BYTES_MAX && *total > ABANDONED_BYTES_MAX {
            self.start_cancel(id, None, now, sink);
        }
    }

    /// A server broke the protocol: its connection ends at once, and so does its client's.
    pub(crate) fn server_violation(
        &mut self,
        id: ServerId,
        why: &'static str,
        now: Now,
        sink: &mut dyn Sink,
    ) {
        self.stats.server_violations += 1;
        sink.event(Event::ProtocolViolation { side: "server", reason: why });
        sink.close(Conn::Server(id));
        self.server_broke(id, why, crate::errors::PROTOCOL_VIOLATION, false, now, sink);
    }
}

/// Whether a ParseComplete of ours comes next. The end of copy data that nobody reads is passed
/// over on the way: PostgreSQL ignores it.
fn is_synthetic_due(server: &mut server::Server) -> bool {
    loop {
        match server.owed.front().map(|owed| owed.kind) {
            Some(Kind::CopyEnd) if server.copy_in == CopyIn::No => server.owed.pop(),
            kind => return kind == Some(Kind::Synthetic),
        };
    }
}

/// An error's text, for the operator.
pub(crate) fn message_of(fields: &ErrorFields<'_>) -> Option<String> {
    let text = fields.get(b'M')?;
    Some(String::from_utf8_lossy(text.get(..256).unwrap_or(text)).into_owned())
}

/// An ErrorResponse with one name in its message replaced; none if the name does not occur.
fn rename_in_error(body: &[u8], from: &[u8], to: &[u8]) -> Option<Vec<u8>> {
    let at = body.windows(from.len()).position(|window| window == from)?;
    let mut out = vec![tag::ERROR_RESPONSE];
    let length = u32::try_from(body.len() - from.len() + to.len() + 4).ok()?;
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(body.get(..at)?);
    out.extend_from_slice(to);
    out.extend_from_slice(body.get(at + from.len()..)?);
    Some(out)
}
