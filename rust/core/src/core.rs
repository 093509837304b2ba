//! The multiplexer's entry points: what the engine calls, and in which order things are settled.
//!
//! Each `handle_*` call deals with one input, then with the clients whose turn has come through it,
//! and leaves a consistent whole (`check_invariants`). An id that has ended is ignored. Not here:
//! the protocol (`pg/`), who gets a server (`lending.rs`). Next on the path: `client.rs`,
//! `pg/requests.rs`.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use auth::{Drbg, ScramKeys};
use ledger::{Ledger, WorkerId};
use pgwire::write;

use crate::cancel::Canceller;
use crate::client::{self, Client, Session};
use crate::config::Config;
use crate::errors::{self, Failure, Severity};
use crate::event::{Event, Level};
use crate::ids::{CancellerId, CancellerTag, ClientId, ClientTag, Conn, ServerId, ServerTag, Slab};
use crate::keys::Keys;
use crate::pg::input::Input;
use crate::pg::login::Login;
use crate::pool::{Pool, PoolId, PoolKey, PoolTag, Target};
use crate::server::{self, Server};
use crate::settings::targets_of;
use crate::sink::{Chunk, Gone, Now, Peer, Sink};
use crate::stats::Stats;
use crate::timer::{Owner, Wheel};
use crate::variables::Variables;

/// SCRAM keys of one server login, made off the loop and kept so that a login storm costs no
/// PBKDF2.
#[derive(Debug)]
pub(crate) struct ServerKeys {
    pub(crate) salt: Vec<u8>,
    pub(crate) iterations: u32,
    pub(crate) keys: ScramKeys,
}

/// The answer to [`Event::ServerKeysNeeded`], whose fields it repeats.
#[derive(Debug)]
pub struct KeysAnswer {
    /// Index of the credential.
    pub credential: u32,
    /// The epoch of the settings that hold it.
    pub epoch: u64,
    /// The server's salt.
    pub salt: Vec<u8>,
    /// The server's iteration count.
    pub iterations: u32,
    /// The keys.
    pub keys: ScramKeys,
}

/// What a worker is born with.
#[derive(Debug)]
pub struct Home {
    /// The page that all workers share.
    pub ledger: Ledger,
    /// Which start of a worker this is, counted over the service.
    pub incarnation: u64,
    /// From the operating system's random source: cancel keys and SCRAM nonces are drawn from it.
    pub seed: [u8; 32],
}

/// A client's number is its worker's incarnation times this, and a count.
const CLIENTS_PER_INCARNATION: u64 = 1_000_000_000;

/// The multiplexer of one worker.
pub struct Core {
    pub(crate) config: Config,
    /// Which settings `config` is, counted over the service.
    pub(crate) epoch: u64,
    pub(crate) ledger: Ledger,
    pub(crate) keys: Keys,
    pub(crate) clients: Slab<Client, ClientTag>,
    pub(crate) servers: Slab<Server, ServerTag>,
    pub(crate) cancellers: Slab<Canceller, CancellerTag>,
    pub(crate) pools: Slab<Pool, PoolTag>,
    pub(crate) pool_by_key: BTreeMap<PoolKey, PoolId>,
    pub(crate) wheel: Wheel,
    pub(crate) rng: Drbg,
    /// Those of a client that has set none.
    pub(crate) no_variables: Rc<Variables>,
    pub(crate) stats: Stats,
    pub(crate) client_by_pid: BTreeMap<u32, ClientId>,
    pub(crate) server_keys: BTreeMap<u32, ServerKeys>,
    /// Servers that wait for their SCRAM keys.
    pub(crate) awaiting_keys: Vec<ServerId>,
    pub(crate) targets: Vec<Target>,
    /// Clients whose held bytes are to be dealt with before the current call ends.
    pub(crate) resume: VecDeque<ClientId>,
    /// Servers that are to go to other workers when the current call is done with its bytes.
    pub(crate) departing: Vec<(ServerId, WorkerId)>,
    /// Pools that want a permit and got none.
    pub(crate) hungry: Vec<PoolId>,
    /// Idle servers of all pools.
    pub(crate) idle_servers: usize,
    /// Servers in `Closing`, whose permits come back soon.
    pub(crate) closing: u32,
    /// Clients are numbered from the worker's incarnation on: each number is unique on this host.
    pub(crate) next_number: u64,
    pub(crate) next_ticket: u64,
    /// A pool has found no permit since the page was last told.
    pub(crate) starving: bool,
    /// What this worker wants stands on the page.
    pub(crate) wanting: bool,
    /// A promise of another worker may have been broken.
    pub(crate) renew_want: bool,
    /// Orphanings on the page that have been looked at.
    pub(crate) orphanings: u64,
    /// Deaths of workers on the page that have been looked at.
    pub(crate) burials: u64,
    /// Connections without an owner that this worker deals with.
    pub(crate) reclaims: usize,
    /// New clients are refused and each client ends at its next idle point.
    pub(crate) stopping: bool,
    due: Vec<(u64, Owner)>,
    /// Reused for messages of our own.
    pub(crate) scratch: Vec<u8>,
}

impl Core {
    /// Builds the multiplexer of one worker, by the settings of an epoch.
    ///
    /// The same home and the same inputs give the same effects.
    #[must_use]
    pub fn new(config: Config, epoch: u64, home: Home, now: Now) -> Self {
        let Home { ledger, incarnation, seed } = home;
        ledger.set_first_limit(config.limit);
        Self {
            targets: targets_of(&config, &[]),
            epoch,
            keys: Keys::new(ledger.secret()),
            ledger,
            config,
            clients: Slab::default(),
            servers: Slab::default(),
            cancellers: Slab::default(),
            pools: Slab::default(),
            pool_by_key: BTreeMap::new(),
            wheel: Wheel::new(now),
            rng: Drbg::new(seed),
            no_variables: Rc::default(),
            stats: Stats::default(),
            client_by_pid: BTreeMap::new(),
            server_keys: BTreeMap::new(),
            awaiting_keys: Vec::new(),
            resume: VecDeque::new(),
            departing: Vec::new(),
            hungry: Vec::new(),
            idle_servers: 0,
            closing: 0,
            next_number: incarnation.saturating_mul(CLIENTS_PER_INCARNATION),
            next_ticket: 0,
            starving: false,
            wanting: false,
            renew_want: false,
            orphanings: 0,
            burials: 0,
            reclaims: 0,
            stopping: false,
            due: Vec::new(),
            scratch: Vec::new(),
        }
    }

    /// A client has connected. `None` means that it is refused: close its socket without an answer
    /// (its network is not allowed, or the proxy stops).
    pub fn handle_accept(&mut self, peer: Peer, now: Now, sink: &mut dyn Sink) -> Option<ClientId> {
        if self.stopping {
            return None;
        }
        if !self.is_allowed(peer) {
            sink.event(Event::LoginFailed {
                peer,
                user: String::new(),
                reason: "the client's network is not in `allow`",
            });
            return None;
        }
        self.stats.clients_accepted += 1;
        self.next_number += 1;
        let number = self.next_number;
        let login = Login::default();
        let id = self.clients.insert_with(|_| Client::new(number, peer, login, now));
        let deadline = now.plus_ms(self.config.login_timeout_ms);
        if let Some(client) = self.clients.get_mut(id) {
            self.wheel.set(&mut client.timer, Owner::Client(id), deadline);
        }
        self.settle(now, sink);
        Some(id)
    }

    fn is_allowed(&self, peer: Peer) -> bool {
        match peer {
            Peer::Unix => true,
            Peer::Tcp(ip) => self.config.allow.iter().any(|network| network.contains(ip)),
        }
    }

    /// Bytes from a client.
    pub fn handle_client_bytes(
        &mut self,
        id: ClientId,
        chunk: Chunk<'_>,
        now: Now,
        sink: &mut dyn Sink,
    ) {
        self.client_input(id, Input::Chunk(chunk), now, sink);
        self.settle(now, sink);
    }

    /// A client sent FIN: it sends no more but may still read.
    pub fn handle_client_eof(&mut self, id: ClientId, now: Now, sink: &mut dyn Sink) {
        self.client_eof(id, now, sink);
        self.settle(now, sink);
    }

    /// A client's connection broke; the engine has forgotten it.
    pub fn handle_client_gone(&mut self, id: ClientId, now: Now, sink: &mut dyn Sink) {
        self.client_left(id, now, sink);
        self.settle(now, sink);
    }

    /// A server's connection has been made.
    pub fn handle_server_connected(&mut self, id: ServerId, now: Now, sink: &mut dyn Sink) {
        self.begin_server_login(id, now, sink);
        self.settle(now, sink);
    }

    /// Bytes from a server.
    pub fn handle_server_bytes(
        &mut self,
        id: ServerId,
        chunk: Chunk<'_>,
        now: Now,
        sink: &mut dyn Sink,
    ) {
        self.server_input(id, chunk, now, sink);
        self.settle(now, sink);
    }

    /// A server's connection ended or could not be made; the engine has forgotten it.
    pub fn handle_server_gone(&mut self, id: ServerId, why: Gone, now: Now, sink: &mut dyn Sink) {
        self.server_gone(id, why, now, sink);
        self.settle(now, sink);
    }

    /// The connection for a CancelRequest has been made.
    pub fn handle_canceller_connected(&mut self, id: CancellerId, now: Now, sink: &mut dyn Sink) {
        self.send_cancel(id, sink);
        self.settle(now, sink);
    }

    /// The connection of a CancelRequest ended: the server has acted on it, or never will.
    pub fn handle_canceller_gone(&mut self, id: CancellerId, now: Now, sink: &mut dyn Sink) {
        self.cancel_done(id, true, now, sink);
        self.settle(now, sink);
    }

    /// What is queued towards a connection passed the engine's upper mark: the other side is
    /// paused.
    pub fn handle_congested(&mut self, conn: Conn, now: Now, sink: &mut dyn Sink) {
        self.set_congested(conn, true, sink);
        self.settle(now, sink);
    }

    /// What is queued towards a connection fell below the lower mark.
    pub fn handle_drained(&mut self, conn: Conn, now: Now, sink: &mut dyn Sink) {
        self.set_congested(conn, false, sink);
        self.settle(now, sink);
    }

    /// Looks at the sessions whose deadline has come.
    pub fn handle_timeouts(&mut self, now: Now, sink: &mut dyn Sink) {
        let mut due = std::mem::take(&mut self.due);
        self.wheel.take_due(now, &mut due);
        for (tick, owner) in due.drain(..) {
            self.timer_fired(tick, owner, now, sink);
        }
        self.due = due;
        self.settle(now, sink);
    }

    /// When [`Core::handle_timeouts`] next has something to do.
    #[must_use]
    pub fn poll_deadline(&self) -> Option<Now> {
        self.wheel.poll_deadline()
    }

    /// An orderly stop: no new clients; each client ends with 57P01 at its next idle point.
    pub fn handle_stop(&mut self, now: Now, sink: &mut dyn Sink) {
        self.stopping = true;
        for id in self.clients.ids() {
            let idle = self.clients.get(id).is_some_and(|client| self.is_at_idle_point(client));
            if idle {
                self.end_client(id, &errors::shutdown(), now, sink);
            }
        }
        for id in self.servers.ids() {
            let is_idle = |server: &Server| matches!(server.state, server::State::Idle);
            if self.servers.get(id).is_some_and(is_idle) {
                self.retire(id, now, sink);
            }
        }
        self.hasten_closing(now);
        self.settle(now, sink);
    }

    /// Ends every client with 57P01, whatever it does, and closes every server.
    pub fn handle_stop_now(&mut self, now: Now, sink: &mut dyn Sink) {
        self.stopping = true;
        for id in self.clients.ids() {
            self.end_client(id, &errors::shutdown(), now, sink);
        }
        for id in self.servers.ids() {
            self.retire(id, now, sink);
        }
        self.hasten_closing(now);
        self.settle(now, sink);
    }

    /// Whether, after a stop, no client is left and no server: its permits are free for others, or
    /// theirs to reclaim.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.is_over() && self.servers.is_empty()
    }

    /// Whether a stop has ended the last client: nothing is worth waiting for any more.
    pub(crate) fn is_over(&self) -> bool {
        self.stopping && self.clients.is_empty()
    }

    /// The answer to [`Event::ServerKeysNeeded`].
    pub fn set_server_keys(&mut self, answer: KeysAnswer, now: Now, sink: &mut dyn Sink) {
        let KeysAnswer { credential, epoch, salt, iterations, keys } = answer;
        // Of a password that has been replaced since.
        if epoch == self.epoch {
            self.server_keys.insert(credential, ServerKeys { salt, iterations, keys });
        }
        for id in std::mem::take(&mut self.awaiting_keys) {
            self.continue_server_scram(id, now, sink);
        }
        self.settle(now, sink);
    }

    /// Counters and gauges as they are now; they are left on the page, too.
    pub fn publish(&mut self) -> Stats {
        let stats = self.stats();
        self.ledger.set_waiting(stats.waiting);
        let rows: Vec<u64> = stats.rows().into_iter().map(|(_, value)| value).collect();
        self.ledger.set_stats(&rows);
        stats
    }

    /// Counters and gauges as they are now.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let waiting = self.pools.iter().map(|(_, pool)| u64::from(pool.waiting())).sum();
        let pinned = |client: &Client| client.session.as_ref().is_some_and(|s| s.pin.is_set());
        Stats {
            clients: self.clients.len() as u64,
            waiting,
            pinned: self.clients.iter().filter(|(_, client)| pinned(client)).count() as u64,
            servers: self.servers.len() as u64,
            ..self.stats
        }
    }

    /// Deals with the clients whose turn came through what has just happened.
    #[inline]
    pub(crate) fn settle(&mut self, now: Now, sink: &mut dyn Sink) {
        loop {
            if let Some(id) = self.resume.pop_front() {
                self.resume_client(id, now, sink);
            } else if let Some((id, to)) = self.departing.pop() {
                self.depart_to_other(id, to, now, sink);
            } else {
                break;
            }
        }
        if self.starving || self.wanting {
            let renew = std::mem::take(&mut self.renew_want);
            self.refresh_want(renew, now, sink);
        }
        #[cfg(any(debug_assertions, feature = "broken"))]
        self.check_invariants();
    }

    /// Bytes for a client's state machine, wherever they come from.
    pub(crate) fn client_input(
        &mut self,
        id: ClientId,
        input: Input<'_>,
        now: Now,
        sink: &mut dyn Sink,
    ) {
        let Some(client) = self.clients.get_mut(id) else { return };
        if !client.held.is_empty() {
            client.held.extend_from_slice(input.bytes());
            return self.continue_held(id, now, sink);
        }
        match client.state {
            client::State::Idle | client::State::Linked { .. } => {
                self.pump_client(id, input, now, sink);
            }
            _ => {
                client.held.extend_from_slice(input.bytes());
                self.continue_held(id, now, sink);
            }
        }
    }

    /// Deals with what a client has sent and nobody has looked at yet.
    fn continue_held(&mut self, id: ClientId, now: Now, sink: &mut dyn Sink) {
        let Some(client) = self.clients.get_mut(id) else { return };
        match client.state {
            client::State::Login(_) => self.login_input(id, now, sink),
            client::State::Idle | client::State::Linked { .. } => {
                let held = std::mem::take(&mut client.held);
                self.pump_client(id, Input::Held(held), now, sink);
            }
            client::State::Cancelling => client.held = Vec::new(),
            client::State::Welcome | client::State::Waiting { .. } => {
                let full = client.held.len() >= crate::limits::HELD_BYTES_MAX;
                self.pause_client(id, client::pause::HELD, full, sink);
            }
        }
    }

    /// A client's turn has come: it has a server, or what held it up is over.
    pub(crate) fn resume_client(&mut self, id: ClientId, now: Now, sink: &mut dyn Sink) {
        self.pause_client(id, client::pause::STALLED, false, sink);
        self.pause_client(id, client::pause::HELD, false, sink);
        let Some(client) = self.clients.get(id) else { return };
        if !client.held.is_empty() {
            self.continue_held(id, now, sink);
        }
        self.after_pump(id, now, sink);
    }

    /// Sets or clears one reason for not reading from a client.
    pub(crate) fn pause_client(&mut self, id: ClientId, why: u8, on: bool, sink: &mut dyn Sink) {
        let Some(client) = self.clients.get_mut(id) else { return };
        let before = client.paused;
        client.paused = if on { before | why } else { before & !why };
        if before == 0 && client.paused != 0 {
            sink.pause_read(Conn::Client(id));
        } else if before != 0 && client.paused == 0 {
            sink.resume_read(Conn::Client(id));
        }
    }

    /// Sets or clears one reason for not reading from a server.
    pub(crate) fn pause_server(&mut self, id: ServerId, why: u8, on: bool, sink: &mut dyn Sink) {
        let Some(server) = self.servers.get_mut(id) else { return };
        let before = server.paused;
        server.paused = if on { before | why } else { before & !why };
        if before == 0 && server.paused != 0 {
            sink.pause_read(Conn::Server(id));
        } else if before != 0 && server.paused == 0 {
            sink.resume_read(Conn::Server(id));
        }
    }

    fn set_congested(&mut self, conn: Conn, on: bool, sink: &mut dyn Sink) {
        match conn {
            Conn::Client(id) => {
                let Some(client) = self.clients.get_mut(id) else { return };
                client.congested = on;
                if let Some(server) = client.server() {
                    self.pause_server(server, server::pause::PEER, on, sink);
                }
            }
            Conn::Server(id) => {
                let Some(server) = self.servers.get_mut(id) else { return };
                server.congested = on;
                if let Some(client) = server.client() {
                    self.pause_client(client, client::pause::PEER, on, sink);
                }
            }
            Conn::Canceller(_) => {}
        }
    }

    fn timer_fired(&mut self, tick: u64, owner: Owner, now: Now, sink: &mut dyn Sink) {
        let timer = match owner {
            Owner::Client(id) => self.clients.get_mut(id).map(|client| &mut client.timer),
            Owner::Server(id) => self.servers.get_mut(id).map(|server| &mut server.timer),
            Owner::Canceller(id) => self.cancellers.get_mut(id).map(|c| &mut c.timer),
            Owner::Pool(id) => self.pools.get_mut(id).map(|pool| &mut pool.timer),
        };
        let Some(timer) = timer else { return };
        if !self.wheel.fired(timer, owner, tick, now) {
            return;
        }
        match owner {
            Owner::Client(id) => self.client_timed_out(id, now, sink),
            Owner::Server(id) => self.server_timed_out(id, now, sink),
            Owner::Canceller(id) => self.canceller_timed_out(id, now, sink),
            Owner::Pool(id) => {
                self.renew_want = true;
                self.grow(id, now, sink);
            }
        }
    }

    /// Sends a client an error of ours if the protocol allows one now, and ends it if it is fatal.
    pub(crate) fn end_client(
        &mut self,
        id: ClientId,
        failure: &Failure,
        now: Now,
        sink: &mut dyn Sink,
    ) {
        debug_assert_eq!(failure.severity, Severity::Fatal);
        let Some(client) = self.clients.get(id) else { return };
        let session = client.session.as_deref();
        // Inside a half-sent reply, or behind a FATAL, another error would be no message at all
        // (I8).
        if session.is_none_or(|session| !session.mid_reply && !session.told_fatal) {
            self.scratch.clear();
            failure.write(&mut self.scratch);
            sink.send_own(Conn::Client(id), &self.scratch);
        }
        sink.close(Conn::Client(id));
        self.client_left(id, now, sink);
    }

    /// A client broke the protocol: it is told and ended, and the operator gets a line.
    pub(crate) fn client_violation(
        &mut self,
        id: ClientId,
        why: &'static str,
        now: Now,
        sink: &mut dyn Sink,
    ) {
        self.client_misbehaved(id, why, why, now, sink);
    }

    /// As [`Core::client_violation`], where the client is told more than the log.
    pub(crate) fn client_misbehaved(
        &mut self,
        id: ClientId,
        why: &'static str,
        told: &str,
        now: Now,
        sink: &mut dyn Sink,
    ) {
        self.stats.client_violations += 1;
        sink.event(Event::ProtocolViolation { side: "client", reason: why });
        self.end_client(id, &errors::violation(told), now, sink);
    }

    /// Sends a notice between a client's messages.
    pub(crate) fn notice(
        &mut self,
        id: ClientId,
        message: &str,
        detail: &str,
        sink: &mut dyn Sink,
    ) {
        self.scratch.clear();
        let detail = Some(detail);
        write::notice(&mut self.scratch, "NOTICE", b"00000", message, detail, None);
        sink.send_own(Conn::Client(id), &self.scratch);
    }

    /// A logged-in client's session.
    #[inline]
    pub(crate) fn session_mut(&mut self, id: ClientId) -> Option<&mut Session> {
        self.clients.get_mut(id)?.session.as_deref_mut()
    }

    pub(crate) fn log(sink: &mut dyn Sink, level: Level, text: String) {
        sink.event(Event::Log { level, text });
    }
}
