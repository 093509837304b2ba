//! Release: ReadyForQuery, the release rule, our own queries, and what follows an idle point.
//!
//! A server goes back only by [`Core::at_rest`], which asks the one release rule (I1).
//! Next on the path: `lending.rs`.

use std::rc::Rc;

use ledger::TargetLimits;
use pgwire::backend;
use pgwire::frame::HEAD_BYTES;
use pgwire::write;

use super::input::Run;
use crate::client;
use crate::core::Core;
use crate::event::{Event, Level};
use crate::ids::{ClientId, ServerId};
use crate::limits::HOUSEKEEPING_TIMEOUT_MS;
use crate::owed::{Kind, Note, Owed};
use crate::server::{self, Task};
use crate::sink::{Now, Sink};
use crate::timer::{NEVER, Owner};
use crate::variables::{Assignment, Pending};

/// Asks a target for its [`TargetLimits`]; `reserved_connections` exists from PostgreSQL 16 on.
const LIMITS_QUERY: &[u8] = b"SELECT current_setting('max_connections'), \
    current_setting('superuser_reserved_connections'), \
    current_setting('reserved_connections', true)";

impl Core {
    /// ReadyForQuery: one batch or query has been answered to its end.
    #[inline(never)]
    pub(crate) fn ready(
        &mut self,
        id: ServerId,
        run: &mut Run<'_>,
        at: usize,
        body_end: usize,
        now: Now,
        sink: &mut dyn Sink,
    ) -> super::replies::Verdict {
        use super::replies::Verdict;
        self.emit_synthetic(id, run, at, sink);
        let body = run.input.bytes().get(at + HEAD_BYTES..body_end).unwrap_or_default();
        let Ok(status) = backend::ready_status(body) else {
            self.server_violation(id, "ReadyForQuery with an unknown status", now, sink);
            return Verdict::Ended;
        };
        let Some(server) = self.servers.get_mut(id) else { return Verdict::Ended };
        // A Query is answered with something before its ReadyForQuery.
        let (begun, doubtful) = (std::mem::take(&mut server.begun), server.doubtful_sync);
        let is_due = |owed: &Owed| {
            owed.kind.ends_with_ready() && (begun || !doubtful || owed.kind == Kind::Sync)
        };
        if !server.owed.front().is_some_and(is_due) {
            // After an error during COPY IN the server may count a Sync that we took for ignored.
            if doubtful {
                server.status = status;
                return Verdict::Forward;
            }
            self.server_violation(id, "ReadyForQuery that nothing was owed for", now, sink);
            return Verdict::Ended;
        }
        server.status = status;
        server.was_reset = false;
        server.copy_in = server::CopyIn::No;
        let Some(owed) = self.passed(id) else { return Verdict::Ended };
        if status == b'I' && !owed.swallow {
            self.stats.transactions += 1;
        }
        if let Note::Reset { reset, failed: false } = owed.note {
            self.reset_ran(id, reset);
        }
        if status == b'I' && self.servers.get(id).is_some_and(|server| !server.pending.is_fresh()) {
            self.commit_variables(id, now, sink);
        }
        match owed.note {
            Note::Restore { failure } => {
                self.restored(id, failure, now, sink);
                return self.still_read(id);
            }
            Note::Own { failed } => {
                self.task_done(id, failed, now, sink);
                return self.still_read(id);
            }
            Note::Reset { reset, failed: false } if status == b'I' => {
                self.reset_done(id, reset, now, sink);
            }
            _ => {}
        }
        if owed.swallow { Verdict::Swallow } else { Verdict::Forward }
    }

    /// A reset that returns the session's variables to what they were at log-in.
    fn reset_ran(&mut self, id: ServerId, reset: sqlscan::Reset) {
        use sqlscan::Reset;
        let Some(server) = self.servers.get_mut(id) else { return };
        if matches!(reset, Reset::DiscardAll | Reset::ResetAll | Reset::Asyncpg) {
            server.pending.add(&[Assignment::AllDefault]);
        }
    }

    /// A reset that the client ran has succeeded: the pins whose cause it removed end.
    fn reset_done(&mut self, id: ServerId, reset: sqlscan::Reset, now: Now, sink: &mut dyn Sink) {
        let Some(client_id) = self.servers.get(id).and_then(server::Server::client) else { return };
        let Some(client) = self.clients.get_mut(client_id) else { return };
        let Some(session) = client.session.as_deref_mut() else { return };
        let was_pinned = session.pin.is_set();
        session.pin.reset(reset);
        if was_pinned && !session.pin.is_set() {
            let after_ms = now.since(session.pin.since()) / 1000;
            sink.event(Event::Unpinned { client: client.number, after_ms });
        }
    }

    /// Behind a whole reply: if nothing is owed any more, the client is at an idle point.
    pub(crate) fn at_idle_point(
        &mut self,
        id: ServerId,
        run: &mut Run<'_>,
        at: usize,
        now: Now,
        sink: &mut dyn Sink,
    ) {
        let Some(server) = self.servers.get(id) else { return };
        match server.state {
            server::State::Abandoned { .. } => {
                self.release_cancels(id, now, sink);
                self.at_rest(id, now, sink);
            }
            server::State::Linked { client } if server.owed.readies() == 0 => {
                let is_busy = server.is_busy();
                if is_busy {
                    self.release_cancels(id, now, sink);
                    return self.unstall(client);
                }
                run.flush(at.max(run.start), sink);
                self.request_ended(client, id, now);
                self.release_cancels(id, now, sink);
                self.at_rest(id, now, sink);
                // What follows in these bytes, if anything, belongs to nobody or to the next
                // client.
                run.to = self
                    .servers
                    .get(id)
                    .and_then(|server| server.client())
                    .map(crate::ids::Conn::Client);
            }
            server::State::Linked { client } => {
                self.release_cancels(id, now, sink);
                self.unstall(client);
            }
            _ => self.release_cancels(id, now, sink),
        }
    }

    /// A client that waits for a confirmation may go on, and one that sends no more may be at its
    /// end.
    pub(crate) fn unstall(&mut self, id: ClientId) {
        let is_due = |c: &client::Client| c.eof || c.paused & client::pause::STALLED != 0;
        if self.clients.get(id).is_some_and(is_due) {
            self.resume.push_back(id);
        }
    }

    /// The client's requests have all been answered.
    fn request_ended(&mut self, id: ClientId, server_id: ServerId, now: Now) {
        self.unstall(id);
        let in_transaction = self.servers.get(server_id).is_some_and(|s| s.status != b'I');
        let Some(client) = self.clients.get_mut(id) else { return };
        client.since = now;
        if let Some(session) = client.session.as_deref_mut() {
            session.mid_reply = false;
            session.timed_out = false;
            // A portal ends with its transaction at the latest.
            session.drops_bound &= in_transaction;
            if !in_transaction {
                session.bound = None;
            }
        }
        let limit = if in_transaction {
            self.config.idle_transaction_timeout_ms
        } else {
            self.config.idle_client_timeout_ms
        };
        let deadline = if limit == 0 { NEVER } else { now.plus_ms(limit) };
        self.wheel.set(&mut client.timer, Owner::Client(id), deadline);
        let eof = client.eof;
        let may_end = client.held.is_empty() && !in_transaction;
        let Some(client) = self.clients.get(id) else { return };
        if eof || may_end && self.is_dismissed(client) {
            self.resume.push_back(id);
        }
    }

    /// A client without server and request: only its idle time counts.
    pub(crate) fn client_is_idle(&mut self, id: ClientId, now: Now) {
        let limit = self.config.idle_client_timeout_ms;
        let Some(client) = self.clients.get_mut(id) else { return };
        client.since = now;
        let deadline = if limit == 0 { NEVER } else { now.plus_ms(limit) };
        self.wheel.set(&mut client.timer, Owner::Client(id), deadline);
    }

    /// The release rule, in one place (I1): a server leaves its client when the server is at rest,
    /// no message of the client is half through, nothing of it waits to be sent, and it is not
    /// pinned.
    pub(crate) fn at_rest(&mut self, id: ServerId, now: Now, sink: &mut dyn Sink) {
        let Some(server) = self.servers.get(id) else { return };
        let client_id = match server.state {
            server::State::Linked { client } if server.is_at_rest() => client,
            // Whatever transaction is open is rolled back first.
            server::State::Abandoned { .. } if server.is_done() => {
                return self.next_task(id, now, sink);
            }
            _ => return,
        };
        let Some(client) = self.clients.get(client_id) else { return };
        let Some(session) = client.session.as_deref() else { return };
        let stays = client.stream.left > 0
            // What is held is a request that waits for replies; a message's mere beginning, which
            // its sender may never end, keeps no server.
            || client.paused & client::pause::STALLED != 0
            || session.pin.is_set()
            // It has been told that its connection ends: it ends with its server.
            || session.told_fatal
            || self.is_session_mode();
        if stays {
            return;
        }
        // A client whose server left it before anything was asked has no deadline of its own yet.
        let has_no_deadline = client.timer.deadline() == NEVER;
        self.unlink(client_id, id, sink);
        if has_no_deadline {
            self.client_is_idle(client_id, now);
        }
        self.next_task(id, now, sink);
    }

    /// After a client's bytes have been dealt with: what had to wait for that.
    pub(crate) fn after_pump(&mut self, id: ClientId, now: Now, sink: &mut dyn Sink) {
        let Some(client) = self.clients.get(id) else { return };
        if let Some(server) = client.server() {
            self.at_rest(server, now, sink);
        }
        let Some(client) = self.clients.get(id) else { return };
        if client.eof && self.has_said_all(client) {
            sink.close(crate::ids::Conn::Client(id));
            self.client_left(id, now, sink);
        } else if self.is_dismissed(client) {
            self.dismiss(id, now, sink);
        }
    }

    /// Whether nothing more can come of a client that sent FIN: what it asked has been answered, or
    /// it can never end what it began (the rest of a message, copy data).
    pub(crate) fn has_said_all(&self, client: &client::Client) -> bool {
        let is_over = |server: ServerId| {
            self.servers.get(server).is_none_or(|server| {
                server.owed.readies() == 0
                    || server.copy_in == (server::CopyIn::Reading { ended: false })
            })
        };
        // Held bytes are a message's beginning, unless they wait for a server or for replies.
        client.paused & client::pause::STALLED == 0
            && match client.state {
                client::State::Idle => true,
                client::State::Linked { server } => is_over(server),
                _ => false,
            }
    }

    /// Whether a client has no request under way and no transaction open.
    pub(crate) fn is_at_idle_point(&self, client: &client::Client) -> bool {
        match client.state {
            client::State::Login(_) | client::State::Welcome => true,
            client::State::Idle => client.stream.left == 0,
            client::State::Linked { server } => {
                client.stream.left == 0
                    && self.servers.get(server).is_none_or(|server| {
                        !server.is_busy() && server.status == b'I' && server.stream_left == 0
                    })
            }
            client::State::Cancelling | client::State::Waiting { .. } => false,
        }
    }

    /// Runs one of our own queries on a server that no client has.
    pub(crate) fn run_task(&mut self, id: ServerId, task: Task, now: Now, sink: &mut dyn Sink) {
        let sql: &[u8] = match task {
            Task::Rollback => b"ROLLBACK",
            Task::Reset => b"DISCARD ALL",
            Task::Limits => LIMITS_QUERY,
            Task::Init => self.config.init_query.as_bytes(),
            Task::Check => b";",
        };
        self.scratch.clear();
        write::query(&mut self.scratch, sql);
        let Some(server) = self.servers.get_mut(id) else { return };
        server.state = server::State::Working(task);
        server.since = now;
        server.statements.unnamed = 0;
        server.owed.push(Owed::own(Note::Own { failed: false }));
        if !server.fresh {
            let deadline = now.plus_ms(HOUSEKEEPING_TIMEOUT_MS);
            self.wheel.set(&mut server.timer, Owner::Server(id), deadline);
        }
        sink.send_own(crate::ids::Conn::Server(id), &self.scratch);
    }

    fn task_done(&mut self, id: ServerId, failed: bool, now: Now, sink: &mut dyn Sink) {
        let Some(server) = self.servers.get_mut(id) else { return };
        let server::State::Working(task) = server.state else { return };
        if failed || server.status != b'I' {
            let why = server.failure.take().unwrap_or_default();
            if server.fresh {
                let reason = format!("{} failed on a new connection: {why}", task.as_str());
                self.connect_failed(id, reason, Some(None), now, sink);
            } else {
                self.stats.server_failures += 1;
                let task = task.as_str();
                let text = format!("{task} failed on a server connection, which is closed: {why}");
                Self::log(sink, Level::Error, text);
            }
            return self.retire(id, now, sink);
        }
        if task == Task::Reset {
            server.statements.clear();
            server.variables = Rc::default();
            server.pending = Pending::default();
            server.needs.init = !self.config.init_query.is_empty();
            self.stats.resets += 1;
        }
        self.next_task(id, now, sink);
    }

    /// The one row that says what the target's limits are.
    pub(crate) fn limits_row(&mut self, id: ServerId, body: &[u8], now: Now, sink: &mut dyn Sink) {
        let Ok(values) = backend::data_row_values(body) else {
            return self.server_violation(id, "malformed DataRow", now, sink);
        };
        let number = |value: Option<&[u8]>| {
            value.and_then(|v| std::str::from_utf8(v).ok()).and_then(|v| v.parse().ok())
        };
        let numbers: Vec<Option<u32>> = values.map(number).collect();
        let [Some(max_connections), Some(superuser_reserved), reserved] = numbers[..] else {
            return Self::log(
                sink,
                Level::Warning,
                "the target did not tell its connection limits".to_owned(),
            );
        };
        let reserved = reserved.unwrap_or(0);
        let limits = TargetLimits { max_connections, superuser_reserved, reserved };
        if let Some(allowed) = self.ledger.set_target_limits(limits) {
            self.budget_changed(allowed, now, sink);
        }
    }
}
