//! Departures: clients that leave, servers that go, and deadlines that pass.
//!
//! A client may end anywhere; its server is then rolled back, reset or closed, never lent as it is.
//! A request that was sent whole runs to its end, as it would on a direct connection. A server may
//! end anywhere; its client hears of it once. Next on the path: `lending.rs`.

use crate::client;
use crate::core::Core;
use crate::errors::{self, Failure, IDLE_SESSION_TIMEOUT, IDLE_TRANSACTION_TIMEOUT};
use crate::ids::{ClientId, Conn, ServerId};
use crate::lending::waits_in;
use crate::limits::{ABANDONED_MS, CANCEL_GRACE_MS, CANCEL_TIMEOUT_MS};
use crate::server::{self, CopyIn};
use crate::sink::{Gone, Now, Sink};
use crate::timer::Owner;

impl Core {
    /// A client's connection is over: forget it, and leave a clean pool.
    pub(crate) fn client_left(&mut self, id: ClientId, now: Now, sink: &mut dyn Sink) {
        let Some(client) = self.clients.get(id) else { return };
        let linked = client.server();
        let was_waiting = matches!(client.state, client::State::Waiting { .. });
        let incomplete = client.stream.left > 0 && !client.stream.drop;
        if let Some(server) = linked {
            self.depart(id, server, incomplete, now, sink);
        }
        let Some(client) = self.clients.remove(id) else { return };
        let Some(session) = client.session else { return };
        self.client_by_pid.remove(&session.cancel_pid);
        if let Some(pool) = self.pools.get_mut(session.pool) {
            pool.clients -= 1;
            pool.welcoming.retain(|other| *other != id);
            if was_waiting {
                pool.forget_waiter(waits_in(&self.clients));
            }
        }
        self.drop_pool_if_unused(session.pool);
    }

    /// What becomes of the server of a client that leaves.
    fn depart(
        &mut self,
        id: ClientId,
        server_id: ServerId,
        incomplete: bool,
        now: Now,
        sink: &mut dyn Sink,
    ) {
        let (pinned, tainted) = self
            .clients
            .get(id)
            .and_then(|client| client.session.as_deref())
            .map_or((false, false), |s| (s.pin.is_set(), s.pin.is_tainted()));
        let session_mode = self.is_session_mode();
        self.unlink(id, server_id, sink);
        let Some(server) = self.servers.get_mut(server_id) else { return };
        // What of its SETs succeeds from here on nobody follows.
        let is_setting = !server.pending.is_fresh() || server.owed.sets_variables();
        server.needs.reset |= pinned || session_mode || is_setting;
        server.unfit |= tainted || server.doubtful_sync;
        let cannot_end = incomplete
            || server.owed.is_open()
            || server.owed.is_skipping()
            || server.copy_in == (CopyIn::Reading { ended: false });
        if cannot_end {
            // A Sync of ours would commit what the client never finished.
            return self.retire(server_id, now, sink);
        }
        server.state = server::State::Abandoned { bytes: 0 };
        server.since = now;
        if server.is_busy() || server.cancels > 0 {
            let deadline = now.plus_ms(ABANDONED_MS);
            self.wheel.set(&mut server.timer, Owner::Server(server_id), deadline);
        } else {
            self.next_task(server_id, now, sink);
        }
    }

    /// FIN from a client: it gets what it is owed, then its connection ends.
    pub(crate) fn client_eof(&mut self, id: ClientId, now: Now, sink: &mut dyn Sink) {
        let Some(client) = self.clients.get_mut(id) else { return };
        client.eof = true;
        let leaves = match client.state {
            client::State::Login(_) => true,
            // Requests may have come behind the start-up packet.
            client::State::Welcome | client::State::Cancelling => false,
            client::State::Idle => true,
            // A Terminate as the last thing said: nobody waits for an answer.
            client::State::Waiting { .. } => client.held.ends_with(b"X\0\0\0\x04"),
            client::State::Linked { server } => {
                let busy = self.servers.get(server).is_some_and(|s| s.owed.readies() > 0);
                let cut = |server: &server::Server| {
                    server.owed.is_open() || server.copy_in == (CopyIn::Reading { ended: false })
                };
                let unfinished = client.stream.left > 0
                    || client.held.is_empty() && self.servers.get(server).is_some_and(cut);
                let stalled = client.paused & client::pause::STALLED != 0;
                !busy && !stalled || unfinished
            }
        };
        if leaves {
            sink.close(Conn::Client(id));
            self.client_left(id, now, sink);
        } else {
            self.expect_no_more(id, now);
        }
    }

    /// A client that sends no more is given its answers, for a while: it may have gone for good,
    /// and a connection that is only half closed looks the same.
    pub(crate) fn expect_no_more(&mut self, id: ClientId, now: Now) {
        let Some(client) = self.clients.get_mut(id) else { return };
        client.eof = true;
        if client.server().is_some() {
            let deadline = now.plus_ms(ABANDONED_MS);
            self.wheel.set(&mut client.timer, Owner::Client(id), deadline);
        }
    }

    /// A server's connection is over.
    pub(crate) fn server_gone(&mut self, id: ServerId, why: Gone, now: Now, sink: &mut dyn Sink) {
        let Some(server) = self.servers.get(id) else { return };
        let has_ended = why != Gone::Unreachable;
        let what = match why {
            Gone::Refused(_) => "was refused",
            Gone::Reset => "was reset",
            Gone::Eof => "was closed by the server",
            Gone::Unreachable => "timed out",
        };
        if server.fresh && !matches!(server.state, server::State::Closing) {
            let reason = match why {
                Gone::Refused(kind) => format!("connection to {}: {kind}", self.config.target_name),
                _ => format!("connection to {} {what} during login", self.config.target_name),
            };
            self.connect_failed(id, reason, None, now, sink);
            return self.forget_server(id, has_ended, now, sink);
        }
        // It may have been restarted with other limits.
        self.ledger.distrust_limits();
        self.server_broke(id, what, errors::CONNECTION_FAILURE, has_ended, now, sink);
    }

    /// A server's connection cannot go on; its client, if any, is told once. `has_ended` says that
    /// the server's own end has been seen.
    pub(crate) fn server_broke(
        &mut self,
        id: ServerId,
        what: &'static str,
        sqlstate: &'static [u8; 5],
        has_ended: bool,
        now: Now,
        sink: &mut dyn Sink,
    ) {
        let Some(server) = self.servers.get(id) else { return };
        if server.fresh && !matches!(server.state, server::State::Closing) {
            let reason = format!("connection to {}: {what}", self.config.target_name);
            self.connect_failed(id, reason, None, now, sink);
        }
        let client = self.servers.get(id).and_then(|server| server.client());
        if let Some(client_id) = client {
            self.unlink(client_id, id, sink);
            // Part of a reply may be kept back or half sent: then only the end of the connection is
            // left.
            let half_sent = self
                .servers
                .get(id)
                .is_some_and(|server| server.stream_left > 0 && server.stream_forward);
            if let Some(session) = self.session_mut(client_id) {
                session.mid_reply |= half_sent;
            }
            let failure = Failure { sqlstate, ..errors::server_lost(what) };
            self.end_client(client_id, &failure, now, sink);
        }
        self.forget_server(id, has_ended, now, sink);
    }

    /// A client's deadline has passed: which one, its state tells.
    pub(crate) fn client_timed_out(&mut self, id: ClientId, now: Now, sink: &mut dyn Sink) {
        let Some(client) = self.clients.get(id) else { return };
        match client.state {
            client::State::Login(_) => {
                let failure = Failure::fatal(b"08P01", "the login took too long").detail(format!(
                    "It must end within {} ms (login_timeout).",
                    self.config.login_timeout_ms
                ));
                self.stats.login_failures += 1;
                self.end_client(id, &failure, now, sink);
            }
            client::State::Welcome => {
                let Some(pool) = client.session.as_deref().map(|session| session.pool) else {
                    return;
                };
                self.stats.borrow_timeouts += 1;
                let mut failure = self.borrow_failure(pool, now.since(client.since) / 1000);
                failure.severity = errors::Severity::Fatal;
                self.end_client(id, &failure, now, sink);
            }
            client::State::Waiting { .. } => self.waiter_timed_out(id, now, sink),
            client::State::Linked { server } => self.linked_timed_out(id, server, now, sink),
            client::State::Idle => {
                let failure = Failure::fatal(
                    IDLE_SESSION_TIMEOUT,
                    "terminating connection due to idle-session timeout",
                )
                .detail(format!(
                    "No request came within {} ms (idle_client_timeout).",
                    self.config.idle_client_timeout_ms
                ));
                self.end_client(id, &failure, now, sink);
            }
            client::State::Cancelling => {}
        }
    }

    fn waiter_timed_out(&mut self, id: ClientId, now: Now, sink: &mut dyn Sink) {
        let borrow_timeout = self.config.borrow_timeout_ms;
        let Some(client) = self.clients.get_mut(id) else { return };
        let waited = now.since(client.since) / 1000;
        let Some(pool_id) = client.session.as_deref().map(|session| session.pool) else { return };
        let client::State::Waiting { ticket, notified } = &mut client.state else { return };
        if waited >= borrow_timeout {
            self.stats.borrow_timeouts += 1;
            let failure = self.borrow_failure(pool_id, waited);
            return self.refuse_waiter(id, &failure, now, sink);
        }
        let first_time = !std::mem::replace(notified, true);
        let ticket = *ticket;
        let deadline = client.since.plus_ms(borrow_timeout);
        self.wheel.set(&mut client.timer, Owner::Client(id), deadline);
        let Some(pool) = self.pools.get(pool_id) else { return };
        if first_time {
            let place = pool.place_of(ticket, waits_in(&self.clients));
            let detail = format!(
                "Place {place} of {} in pool {}; {} of {} server connections in use.",
                pool.waiting(),
                pool.name,
                self.ledger.busy(),
                self.ledger.allowed()
            );
            self.notice(id, "no server connection is free yet, still waiting", &detail, sink);
        }
    }

    /// Answers a waiter's request with an error; the client stays.
    pub(crate) fn refuse_waiter(
        &mut self,
        id: ClientId,
        failure: &Failure,
        now: Now,
        sink: &mut dyn Sink,
    ) {
        self.refuse(id, failure, sink);
        let Some(pool_id) = self.session_mut(id).map(|session| session.pool) else { return };
        if let Some(pool) = self.pools.get_mut(pool_id) {
            pool.forget_waiter(waits_in(&self.clients));
        }
        self.client_is_idle(id, now);
        self.resume.push_back(id);
    }

    fn linked_timed_out(
        &mut self,
        id: ClientId,
        server_id: ServerId,
        now: Now,
        sink: &mut dyn Sink,
    ) {
        let Some(server) = self.servers.get(server_id) else { return };
        let is_busy = server.is_busy();
        let waits = |c: &client::Client| !c.eof && c.paused & client::pause::STALLED != 0;
        if let Some(client) = self.clients.get_mut(id).filter(|c| !is_busy && waits(c)) {
            // Its request waits for the end of a cancel, which has its own deadline.
            let deadline = now.plus_ms(CANCEL_TIMEOUT_MS);
            return self.wheel.set(&mut client.timer, Owner::Client(id), deadline);
        }
        let Some(server) = self.servers.get(server_id) else { return };
        if !is_busy {
            let failure = if server.status == b'I' {
                Failure::fatal(
                    IDLE_SESSION_TIMEOUT,
                    "terminating connection due to idle-session timeout",
                )
            } else {
                Failure::fatal(
                    IDLE_TRANSACTION_TIMEOUT,
                    "terminating connection due to idle-in-transaction timeout",
                )
            };
            return self.end_client(id, &failure, now, sink);
        }
        let Some(client) = self.clients.get_mut(id) else { return };
        if client.eof {
            sink.close(Conn::Client(id));
            self.client_left(id, now, sink);
            return self.retire(server_id, now, sink);
        }
        let Some(session) = client.session.as_deref_mut() else { return };
        if std::mem::replace(&mut session.timed_out, true) {
            let failure = Failure::fatal(
                errors::QUERY_CANCELED,
                "terminating connection: a cancelled query did not end",
            )
            .detail(format!("query_timeout is {} ms.", self.config.query_timeout_ms));
            return self.end_client(id, &failure, now, sink);
        }
        let (mid_reply, told_fatal) = (session.mid_reply, session.told_fatal);
        let deadline = now.plus_ms(CANCEL_GRACE_MS);
        self.wheel.set(&mut client.timer, Owner::Client(id), deadline);
        if !mid_reply && !told_fatal {
            let detail = format!("query_timeout is {} ms.", self.config.query_timeout_ms);
            self.notice(id, "the query runs too long and is cancelled", &detail, sink);
        }
        self.start_cancel(server_id, None, now, sink);
    }

    /// A server's deadline has passed: which one, its state tells.
    pub(crate) fn server_timed_out(&mut self, id: ServerId, now: Now, sink: &mut dyn Sink) {
        let Some(server) = self.servers.get_mut(id) else { return };
        if server.fresh && !matches!(server.state, server::State::Closing) {
            sink.close(Conn::Server(id));
            return self.server_gone(id, Gone::Unreachable, now, sink);
        }
        match server.state {
            server::State::Idle => {
                let min = self.config.min_share();
                let spare = now < server.expires
                    && self
                        .pools
                        .get(server.pool)
                        .is_some_and(|pool| pool.clients > 0 && pool.servers <= min);
                if spare {
                    let expires = server.expires;
                    return self.wheel.set(&mut server.timer, Owner::Server(id), expires);
                }
                let pool_id = server.pool;
                self.retire(id, now, sink);
                self.trim_idle(pool_id, now);
            }
            server::State::Abandoned { .. } => {
                // Long work of a client that left: stop it, and trust the connection no more.
                server.unfit = true;
                self.retire(id, now, sink);
            }
            server::State::Working(_) => {
                sink.close(Conn::Server(id));
                self.server_broke(id, "timed out", errors::CONNECTION_FAILURE, false, now, sink);
            }
            server::State::Closing => {
                sink.close(Conn::Server(id));
                self.forget_server(id, false, now, sink);
            }
            server::State::Linked { .. }
            | server::State::Connecting
            | server::State::LoggingIn(_)
            | server::State::Leaving { .. }
            | server::State::Arriving => {}
        }
    }
}
