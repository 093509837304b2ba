//! Cancel: whose query a CancelRequest means, and its way to the server.
//!
//! A client's key is a number and a secret; the server's key never leaves the proxy. The number
//! hides which worker has the client, so that whichever worker a CancelRequest reaches can pass its
//! connection on to that one. A request is forwarded only while *that client's* request runs on a
//! server, and the server is held back from everybody else until the cancel's connection has ended:
//! PostgreSQL closes it after the signal was sent, and a signal that arrives while a backend is
//! idle does nothing. So a cancel never hits another client's query. Nor does it hit a request of
//! our own that goes ahead of the client's: it is not sent before that one has been answered, and
//! no such request is sent while a cancel is on its way. Nor is it lost because the client has only
//! just been given its server and the request is still on its way. Next on the path: `lending.rs`.

use std::rc::Rc;

use ledger::{Permit, WorkerId};
use pgwire::write;

use crate::client::{self, Session};
use crate::core::Core;
use crate::errors::{Failure, QUERY_CANCELED};
use crate::handover;
use crate::ids::{CancellerId, ClientId, Conn, ServerId};
use crate::keys::Keys;
use crate::limits::{
    CANCEL_SETTLE_MS, CANCEL_TIMEOUT_MS, CANCELLERS_MAX, CANCELS_PER_SERVER_MAX, RECLAIM_PAUSE_MS,
};
use crate::pg::login::Login;
use crate::sink::{Address, Now, Peer, Sink};
use crate::timer::{Owner, Timer};

/// One CancelRequest on its way.
#[derive(Debug)]
pub(crate) struct Canceller {
    pub(crate) purpose: Purpose,
    /// The server's key, kept here: the server may be gone when the connection is made.
    pub(crate) key: Option<(u32, Box<[u8]>)>,
    /// Where the server listens; none if that is not known any more.
    pub(crate) address: Option<Rc<Address>>,
    /// The engine has a connection for it.
    pub(crate) connected: bool,
    /// The request has been written to that connection.
    pub(crate) sent: bool,
    pub(crate) timer: Timer,
}

/// What a CancelRequest is for.
#[derive(Debug)]
pub(crate) enum Purpose {
    /// A request on a server of this worker, and the client connection that asked, if any: closed
    /// when the server has acted, as PostgreSQL does. `settles`: before it is sent, the request has
    /// to be on its way for long enough, or to be over.
    Request { server: ServerId, requester: Option<ClientId>, settles: bool },
    /// What a server without an owner may still run; the permit is freed after these rounds.
    /// `target` names where it runs; `patience` is how often a signal that is not delivered yet is
    /// waited for, or sent again.
    Orphan { permit: Permit, rounds: u8, patience: u8, target: u64 },
}

/// Bits of a client's process number that tell its worker, hidden.
const ROUTE_BITS: u32 = 8;

impl Keys {
    /// Which bits hide the worker in a process number whose other bits are these.
    fn route_mask(&self, rest: u32) -> u32 {
        let hash = auth::keyed_hash(&self.route, &[&rest.to_be_bytes()]);
        u32::from(hash[0])
    }

    /// The process number of a client of this worker: `random` with the worker hidden in it.
    /// Positive as a signed number: some drivers read it so.
    fn route_to(&self, worker: WorkerId, random: u32) -> u32 {
        let rest = random & (0x7FFF_FFFF >> ROUTE_BITS);
        rest << ROUTE_BITS | (u32::from(worker) ^ self.route_mask(rest))
    }

    /// The worker that a process number tells; any number tells one, 0–255.
    fn route_of(&self, pid: u32) -> WorkerId {
        ((pid & 0xFF) ^ self.route_mask(pid >> ROUTE_BITS)) as WorkerId
    }
}

impl Core {
    /// Draws a cancel key for a client that has logged in.
    pub(crate) fn draw_cancel_key(&mut self, id: ClientId, session: &mut Session, minor: u16) {
        session.cancel_secret_len = if minor >= 2 { 32 } else { 4 };
        loop {
            let mut random = [0; 4];
            self.rng.fill(&mut random);
            let len = usize::from(session.cancel_secret_len);
            self.rng.fill(session.cancel_secret.get_mut(..len).unwrap_or_default());
            let random = u32::from_be_bytes(random);
            let pid = self.keys.route_to(self.ledger.me(), random);
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
        let owner = self.keys.route_of(pid);
        if self.is_other(owner) {
            return self.pass_cancel(requester, owner, pid, secret, now, sink);
        }
        self.cancel_here(requester, pid, secret, now, sink);
    }

    /// The client is another worker's: that one gets the connection that asked.
    fn pass_cancel(
        &mut self,
        requester: ClientId,
        owner: WorkerId,
        pid: u32,
        secret: &[u8],
        now: Now,
        sink: &mut dyn Sink,
    ) {
        let Some(client) = self.clients.get_mut(requester) else { return };
        client.state = client::State::Cancelling;
        let deadline = now.plus_ms(CANCEL_TIMEOUT_MS);
        self.wheel.set(&mut client.timer, Owner::Client(requester), deadline);
        let mut mail = Vec::new();
        handover::write_cancel(&mut mail, pid, secret);
        sink.pass(Conn::Client(requester), owner, &mail);
    }

    /// A client that asked another worker for a cancel arrives here.
    pub(crate) fn cancel_arrives(&mut self, body: &[u8], now: Now) -> Option<ClientId> {
        handover::read_cancel(body)?;
        self.next_number += 1;
        let number = self.next_number;
        // Where it came from has been checked where it came in.
        let mut client = client::Client::new(number, Peer::Unix, Login::default(), now);
        client.state = client::State::Cancelling;
        client.held = body.to_vec();
        Some(self.clients.insert_with(|_| client))
    }

    pub(crate) fn cancel_adopted(&mut self, id: ClientId, now: Now, sink: &mut dyn Sink) {
        let Some(client) = self.clients.get_mut(id) else { return };
        let body = std::mem::take(&mut client.held);
        if let Some((pid, secret)) = handover::read_cancel(&body) {
            self.cancel_here(id, pid, secret, now, sink);
        }
    }

    fn cancel_here(
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
        if server.cancels >= CANCELS_PER_SERVER_MAX {
            return false;
        }
        let Some(key) = server.key.clone() else { return false };
        let client = server.client().and_then(|client| self.clients.get(client));
        let for_ours = client.is_some() && server.owed.is_ours();
        let settled = client.filter(|_| requester.is_some()).map_or(now, |client| {
            // Since its request began, or since it was given this server.
            client.since.plus_ms(CANCEL_SETTLE_MS)
        });
        let settles = !for_ours && now < settled;
        let address = Rc::clone(&server.address);
        server.cancels += 1;
        self.stats.cancels += 1;
        let canceller = Canceller {
            purpose: Purpose::Request { server: server_id, requester, settles },
            key: Some(key),
            address: Some(Rc::clone(&address)),
            connected: !for_ours && !settles,
            sent: false,
            timer: Timer::default(),
        };
        let id = self.cancellers.insert_with(|_| canceller);
        if let Some(canceller) = self.cancellers.get_mut(id) {
            let patience = now.plus_ms(CANCEL_TIMEOUT_MS);
            let deadline = if settles { settled } else { patience };
            self.wheel.set(&mut canceller.timer, Owner::Canceller(id), deadline);
        }
        if !for_ours && !settles {
            sink.connect(Conn::Canceller(id), &address);
        }
        true
    }

    /// This server has answered something: a cancel that waited for the answer to a request of our
    /// own, or until the client's had been read, may go, or comes too late if nothing runs.
    pub(crate) fn release_cancels(&mut self, server_id: ServerId, now: Now, sink: &mut dyn Sink) {
        let Some(server) = self.servers.get(server_id) else { return };
        if server.cancels == 0 || server.owed.is_ours() {
            return;
        }
        let is_busy = server.is_busy();
        for id in self.cancellers.ids() {
            let Some(canceller) = self.cancellers.get_mut(id) else { continue };
            let Purpose::Request { server, settles, .. } = canceller.purpose else { continue };
            if canceller.connected || server != server_id {
                continue;
            }
            if !is_busy {
                self.cancel_done(id, true, now, sink);
            } else if !settles {
                self.begin_cancel(id, now, sink);
            }
        }
    }

    /// A cancel that waited is on its way.
    fn begin_cancel(&mut self, id: CancellerId, now: Now, sink: &mut dyn Sink) {
        let Some(canceller) = self.cancellers.get_mut(id) else { return };
        let Some(address) = &canceller.address else { return };
        canceller.connected = true;
        sink.connect(Conn::Canceller(id), address);
        let deadline = now.plus_ms(CANCEL_TIMEOUT_MS);
        self.wheel.set(&mut canceller.timer, Owner::Canceller(id), deadline);
    }

    pub(crate) fn send_cancel(&mut self, id: CancellerId, sink: &mut dyn Sink) {
        let Some(canceller) = self.cancellers.get_mut(id) else { return };
        let Some((pid, secret)) = &canceller.key else { return };
        canceller.sent = true;
        self.scratch.clear();
        write::cancel_request(&mut self.scratch, *pid, secret);
        sink.send_own(Conn::Canceller(id), &self.scratch);
    }

    pub(crate) fn canceller_timed_out(&mut self, id: CancellerId, now: Now, sink: &mut dyn Sink) {
        let Some(canceller) = self.cancellers.get(id) else { return };
        if matches!(canceller.purpose, Purpose::Orphan { .. }) {
            return self.reclaim_round(id, now, sink);
        }
        let connected = canceller.connected;
        if connected {
            sink.close(Conn::Canceller(id));
        } else if let Purpose::Request { server, .. } = canceller.purpose {
            // Its request has been on its way for long enough: from here on as if it came now.
            let server = self.servers.get(server);
            if server.is_some_and(|server| server.is_busy() && !server.owed.is_ours()) {
                return self.begin_cancel(id, now, sink);
            }
        }
        self.cancel_done(id, !connected, now, sink);
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
        let Some(canceller) = self.cancellers.get_mut(id) else { return };
        canceller.connected = false;
        let (server, requester) = match &mut canceller.purpose {
            Purpose::Request { server, requester, .. } => (*server, *requester),
            Purpose::Orphan { rounds, patience, .. } => {
                if !canceller.sent && *patience > 0 {
                    // No signal was sent: this round counts for nothing.
                    *patience -= 1;
                    *rounds += 1;
                }
                // The backend's time to end begins.
                let deadline = now.plus_ms(RECLAIM_PAUSE_MS);
                return self.wheel.set(&mut canceller.timer, Owner::Canceller(id), deadline);
            }
        };
        self.cancellers.remove(id);
        if let Some(requester) = requester.filter(|id| self.clients.get(*id).is_some()) {
            sink.close(Conn::Client(requester));
            self.client_left(requester, now, sink);
        }
        let Some(state) = self.servers.get_mut(server) else { return };
        state.cancels -= 1;
        state.unfit |= !acted;
        if let Some(client) = state.client() {
            // It may have waited for that.
            self.unstall(client);
        }
        self.at_rest(server, now, sink);
    }
}

#[cfg(test)]
mod tests {
    use crate::keys::Keys;

    #[test]
    fn a_process_number_tells_its_worker_to_those_who_know_the_key_only() {
        let keys = Keys::new([1; 32]);
        let mut other_agrees = 0;
        for random in (0..10_000_u32).map(|n| n.wrapping_mul(0x9E37_79B9)) {
            for worker in [0, 1, 63] {
                let pid = keys.route_to(worker, random);
                assert!(pid <= 0x7FFF_FFFF);
                assert_eq!(keys.route_of(pid), worker);
                other_agrees += u32::from(Keys::new([2; 32]).route_of(pid) == worker);
            }
        }
        assert!(other_agrees < 300, "30,000 guesses at 256 values: {other_agrees} right");
    }
}
