//! Cancel: whose query a CancelRequest means, and its way to the server.
//!
//! A client's key is a random number and a secret of this worker's own; the server's key never
//! leaves the proxy. A request is forwarded only while *that client's* request runs on a server,
//! and the server is held back from everybody else until the cancel's connection has ended:
//! PostgreSQL closes it after the signal was sent, and a signal that arrives while a backend is
//! idle does nothing. So a cancel never hits another client's query. Next on the path:
//! `lending.rs`.

use pgwire::write;

use crate::client::{self, Session};
use crate::core::Core;
use crate::errors::{Failure, QUERY_CANCELED};
use crate::ids::{CancellerId, ClientId, Conn, ServerId};
use crate::limits::{CANCEL_TIMEOUT_MS, CANCELLERS_MAX};
use crate::sink::{Now, Sink};
use crate::timer::{Owner, Timer};

/// One CancelRequest on its way.
#[derive(Debug)]
pub(crate) struct Canceller {
    pub(crate) server: ServerId,
    /// The client connection that asked; closed when the server has acted, as PostgreSQL does.
    pub(crate) requester: Option<ClientId>,
    /// The server's key, kept here: the server may be gone when the connection is made.
    key: (u32, Box<[u8]>),
    pub(crate) timer: Timer,
}

impl Core {
    /// Draws a cancel key for a client that has logged in.
    pub(crate) fn draw_cancel_key(&mut self, id: ClientId, session: &mut Session, minor: u16) {
        session.cancel_secret_len = if minor >= 2 { 32 } else { 4 };
        loop {
            let mut drawn = [0; 36];
            self.rng.fill(&mut drawn);
            let (pid, secret) = drawn.split_at(4);
            session.cancel_secret.copy_from_slice(secret);
            // Positive as a signed number: some drivers read it so.
            let pid = pid.iter().fold(0, |pid, byte| pid << 8 | u32::from(*byte)) & 0x7FFF_FFFF;
            if pid != 0 && !self.client_by_pid.contains_key(&pid) {
                self.client_by_pid.insert(pid, id);
                session.cancel_pid = pid;
                return;
            }
        }
    }

    /// A connection turned out to be a CancelRequest. Nothing is answered, whatever it names.
    pub(crate) fn handle_cancel_request(
        &mut self,
        requester: ClientId,
        pid: u32,
        secret: &[u8],
        now: Now,
        sink: &mut dyn Sink,
    ) {
        let target = self.client_by_pid.get(&pid).copied();
        let target = target.filter(|id| self.secret_matches(*id, secret));
        let forwarded = target.is_some_and(|id| self.cancel_client(id, requester, now, sink));
        if forwarded {
            if let Some(client) = self.clients.get_mut(requester) {
                client.state = client::State::Cancelling;
                client.timer.clear();
            }
        } else {
            sink.close(Conn::Client(requester));
            self.client_left(requester, now, sink);
        }
    }

    fn secret_matches(&self, id: ClientId, secret: &[u8]) -> bool {
        let Some(session) = self.clients.get(id).and_then(|client| client.session.as_ref()) else {
            return false;
        };
        let own = session.cancel_secret.get(..usize::from(session.cancel_secret_len));
        own.is_some_and(|own| auth::constant_time_eq(own, secret))
    }

    /// Cancels what a client does; true if a CancelRequest is on its way to the server.
    fn cancel_client(
        &mut self,
        id: ClientId,
        requester: ClientId,
        now: Now,
        sink: &mut dyn Sink,
    ) -> bool {
        let Some(client) = self.clients.get(id) else { return false };
        match client.state {
            client::State::Waiting { .. } => {
                let failure =
                    Failure::error(QUERY_CANCELED, "canceling statement due to user request")
                        .detail("The statement waited for a server connection; it was not sent.");
                self.refuse_waiter(id, &failure, now, sink);
                false
            }
            client::State::Linked { server } => {
                let busy = self.servers.get(server).is_some_and(|server| server.is_busy());
                busy && self.start_cancel(server, Some(requester), now, sink)
            }
            _ => false,
        }
    }

    /// Sends a CancelRequest to a server; false if that is not possible.
    pub(crate) fn start_cancel(
        &mut self,
        server_id: ServerId,
        requester: Option<ClientId>,
        now: Now,
        sink: &mut dyn Sink,
    ) -> bool {
        if self.cancellers.len() >= CANCELLERS_MAX {
            return false;
        }
        let Some(server) = self.servers.get_mut(server_id) else { return false };
        let Some(key) = server.key.clone() else { return false };
        let Some(address) = self.config.targets.get(server.target) else { return false };
        server.cancels += 1;
        self.stats.cancels += 1;
        let canceller = Canceller { server: server_id, requester, key, timer: Timer::default() };
        let id = self.cancellers.insert_with(|_| canceller);
        if let Some(canceller) = self.cancellers.get_mut(id) {
            let deadline = now.plus_ms(CANCEL_TIMEOUT_MS);
            self.wheel.set(&mut canceller.timer, Owner::Canceller(id), deadline);
        }
        sink.connect(Conn::Canceller(id), address);
        true
    }

    pub(crate) fn send_cancel(&mut self, id: CancellerId, sink: &mut dyn Sink) {
        let Some(canceller) = self.cancellers.get(id) else { return };
        self.scratch.clear();
        write::cancel_request(&mut self.scratch, canceller.key.0, &canceller.key.1);
        sink.send_own(Conn::Canceller(id), &self.scratch);
    }

    /// A cancel's connection has ended. `acted` is false if it ran into its deadline: its signal
    /// may then come at any time, and the server must serve nobody else.
    pub(crate) fn cancel_done(
        &mut self,
        id: CancellerId,
        acted: bool,
        now: Now,
        sink: &mut dyn Sink,
    ) {
        let Some(canceller) = self.cancellers.remove(id) else { return };
        if let Some(requester) = canceller.requester {
            if self.clients.get(requester).is_some() {
                sink.close(Conn::Client(requester));
                self.client_left(requester, now, sink);
            }
        }
        let Some(server) = self.servers.get_mut(canceller.server) else { return };
        server.cancels -= 1;
        server.unfit |= !acted;
        self.at_rest(canceller.server, now, sink);
    }
}
