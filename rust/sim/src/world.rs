//! A run: clients, the core, servers, and chance, step by step.
//!
//! First the safety phase, in which everything may happen; then the calm (`checks.rs`), in which
//! everybody must be served. Next on the path: `net.rs`.

use std::sync::atomic::AtomicU64;

use auth::ScramKeys;
use ledger::{Ledger, Limit};
use proxy_core::core::{Core, Home, KeysAnswer};
use proxy_core::event::Event;
use proxy_core::ids::{ClientId, Conn};
use proxy_core::sink::{Chunk, ChunkId, Gone, Now, Peer};

use crate::client::{Client, Leave, Stage};
use crate::net::{Net, show};
use crate::plan::{PASSWORD, Plan};
use crate::rng::Rng;
use crate::server::Server;
use crate::wire::{End, Wire};

/// One run.
pub(crate) struct World {
    /// Its circumstances.
    pub(crate) plan: Plan,
    /// The thing under test.
    pub(crate) core: Core,
    /// Its side of the connections.
    pub(crate) net: Net,
    /// All chance.
    pub(crate) rng: Rng,
    /// Virtual time in microseconds.
    pub(crate) now: u64,
    /// All clients there ever were.
    pub(crate) clients: Vec<Client>,
    /// All server connections there ever were, those of CancelRequests included.
    pub(crate) servers: Vec<Server>,
    /// What clients may hear because of what has happened.
    pub(crate) leave: Leave,
    /// Server connections allowed.
    pub(crate) allowed: u32,
    /// Faults still happen.
    pub(crate) stormy: bool,
    /// SCRAM keys that the core asked for.
    keys_wanted: Vec<(u32, u64, Vec<u8>, u32)>,
    next_tag: u32,
    pub(crate) step: u64,
}

/// What can happen in a step, with its weight.
const EVENTS: [u64; 12] = [16, 18, 18, 22, 16, 14, 6, 7, 4, 1, 2, 2];

impl World {
    /// The world of a seed.
    #[must_use]
    pub(crate) fn new(seed: u64, steps: u64, told_in_full: bool) -> Self {
        let mut rng = Rng::new(seed);
        let plan = Plan::draw(&mut rng, steps);
        let mut net = Net { high_bytes: plan.high_bytes, ..Net::default() };
        net.log = told_in_full.then(Vec::new);
        net.note(|| format!("{plan:#?}"));
        let mut core_seed = [0; 32];
        core_seed[..8].copy_from_slice(&seed.to_be_bytes());
        let config = &plan.config;
        let leave = Leave {
            hostile: plan.hostile,
            pipelined: plan.pipelining > 0,
            query_timeout: plan.has_query_timeout(),
            idle_timeout: config.idle_client_timeout_ms > 0,
            idle_transaction_timeout: config.idle_transaction_timeout_ms > 0,
            borrow_timeout: true,
            connect_timeout: config.connect_timeout_ms < 1000,
            ..Leave::default()
        };
        let slots = 256;
        let words = (0..ledger::words_for(slots)).map(|_| AtomicU64::new(0)).collect::<Vec<_>>();
        let words: &'static [AtomicU64] = Box::leak(words.into());
        ledger::format(words, slots, core_seed);
        let home = Home {
            ledger: Ledger::new(words, 0).expect("a page"),
            incarnation: 1,
            seed: core_seed,
        };
        home.ledger.set_alive(true, 1);
        let allowed = match config.limit {
            Limit::Connections(allowed) => allowed,
            Limit::Percent(_) => 1,
        };
        Self {
            core: Core::new(plan.config.clone(), 1, home, Now(0)),
            plan,
            net,
            rng,
            now: 0,
            clients: Vec::new(),
            servers: Vec::new(),
            leave,
            allowed,
            stormy: true,
            keys_wanted: Vec::new(),
            next_tag: 0,
            step: 0,
        }
    }

    /// The safety phase.
    pub(crate) fn storm(&mut self, steps: u64) {
        for step in 0..steps {
            self.step = step;
            if self.plan.stop_at == Some(step) {
                self.stop();
            }
            self.take_step();
            if self.net.failure.is_some() {
                return;
            }
        }
    }

    fn stop(&mut self) {
        self.net.note(|| "stop".to_owned());
        self.leave.stopping = true;
        self.core.handle_stop(Now(self.now), &mut self.net);
        self.settle();
    }

    /// Something happens.
    pub(crate) fn take_step(&mut self) {
        match self.rng.weighted(&EVENTS) {
            0 if self.stormy => self.client_acts(),
            1 => self.core_reads(true),
            2 => self.core_reads(false),
            3 => self.server_works(),
            4 => self.client_reads(),
            5 => self.server_reads(),
            6 => self.connect_ends(),
            7 => self.time_passes(),
            8 if self.stormy => self.client_comes(),
            9 if self.stormy => self.fault(),
            10 if self.stormy => self.client_cancels(),
            11 => self.keys_come(),
            _ => {}
        }
        self.check_step();
    }

    fn pick(&mut self, candidates: &[usize]) -> Option<usize> {
        if candidates.is_empty() { None } else { Some(self.rng.pick(candidates)) }
    }

    pub(crate) fn settle(&mut self) {
        while let Some(conn) = self.net.crowded.pop() {
            self.core.handle_congested(conn, Now(self.now), &mut self.net);
        }
        for event in std::mem::take(&mut self.net.events) {
            match event {
                Event::ServerKeysNeeded { credential, epoch, salt, iterations } => {
                    self.keys_wanted.push((credential, epoch, salt, iterations));
                }
                Event::BudgetChanged { allowed } => self.allowed = allowed,
                Event::ProtocolViolation { side: "server", reason } if !self.plan.hostile => {
                    self.net.fail(format!("a faithful server was accused: {reason}"));
                }
                _ => {}
            }
        }
    }

    pub(crate) fn keys_come(&mut self) {
        let Some((credential, epoch, salt, iterations)) = self.keys_wanted.pop() else { return };
        let keys = ScramKeys::derive(PASSWORD, &salt, iterations);
        let now = Now(self.now);
        let answer = KeysAnswer { credential, epoch, salt, iterations, keys };
        self.core.set_server_keys(answer, now, &mut self.net);
        self.settle();
    }

    fn client_comes(&mut self) {
        let live = self.clients.iter().filter(|client| client.stage != Stage::Over).count();
        if live >= self.plan.clients_max {
            return;
        }
        let users = self.plan.config.credentials.len();
        let tag = self.next_tag;
        self.next_tag += 1;
        if let Some(wire) = self.accept() {
            let mut client = Client::connect(tag, wire, users, &mut self.rng);
            client.begin(&mut self.net.wires[wire]);
            self.clients.push(client);
        }
    }

    fn accept(&mut self) -> Option<usize> {
        let id: ClientId = self.core.handle_accept(Peer::Unix, Now(self.now), &mut self.net)?;
        self.net.note(|| format!("accept {id:?}"));
        let wire = self.net.open(Some(Conn::Client(id)));
        self.settle();
        Some(wire)
    }

    fn client_acts(&mut self) {
        let pipelining = self.rng.percent(self.plan.pipelining);
        let able = |client: &Client| {
            client.stage == Stage::Ready
                && !client.left
                && !client.rude
                && client.told_fatal.is_none()
                && (client.copying || client.is_answered() || pipelining || client.uncertain)
        };
        let candidates: Vec<usize> =
            (0..self.clients.len()).filter(|at| able(&self.clients[*at])).collect();
        let Some(at) = self.pick(&candidates) else { return };
        let client = &mut self.clients[at];
        let wire = &mut self.net.wires[client.wire];
        if wire.to_core.len() > 4096 {
            return;
        }
        if self.rng.permille(15) {
            return self.client_leaves(at);
        }
        if self.plan.garbage && self.rng.permille(5) {
            client.be_rude(wire, &mut self.rng);
            return self.net.note(|| "a client is rude".to_owned());
        }
        client.act(wire, &mut self.rng);
    }

    fn client_leaves(&mut self, at: usize) {
        let client = &mut self.clients[at];
        client.left_at = self.now;
        let wire = &mut self.net.wires[client.wire];
        let how = self.rng.below(6);
        match how {
            0 | 1 => client.terminate(wire),
            2 => {
                client.left = true;
                wire.finish();
            }
            3 => {
                client.left = true;
                wire.reset();
            }
            4 => {
                // In the middle of a message.
                client.act(wire, &mut self.rng);
                client.left = true;
                let most = wire.to_core.len();
                wire.to_core.truncate(most - self.rng.index(most.min(12) + 1));
                wire.finish();
            }
            _ => {
                // Half-closed behind whole requests: it gets every answer.
                client.conclude(wire);
                client.left = true;
                client.half_closed = true;
                wire.finish();
            }
        }
        let tag = client.tag;
        self.net.note(|| format!("client {tag} leaves, way {how}"));
    }

    fn client_cancels(&mut self) {
        let candidates: Vec<usize> = (0..self.clients.len())
            .filter(|at| self.clients[*at].stage == Stage::Ready && self.clients[*at].key.is_some())
            .collect();
        let Some(at) = self.pick(&candidates) else { return };
        let Some((pid, mut secret)) = self.clients[at].key.clone() else { return };
        if self.rng.percent(10) {
            secret[0] ^= 1;
        } else {
            self.clients[at].cancels += 1;
        }
        let tag = self.clients[at].tag;
        self.net.note(|| format!("client {tag} cancels"));
        if let Some(wire) = self.accept() {
            let mut canceller = Client::canceller(u32::MAX, wire, (pid, &secret));
            canceller.begin(&mut self.net.wires[wire]);
            self.clients.push(canceller);
        }
    }

    /// The core reads from a client, or from a server.
    fn core_reads(&mut self, from_client: bool) {
        let candidates: Vec<(Conn, usize)> = self
            .net
            .by_conn
            .iter()
            .filter(|(conn, index)| {
                matches!(conn, Conn::Client(_)) == from_client
                    && self.net.wires[**index].has_input()
            })
            .map(|(conn, index)| (*conn, *index))
            .collect();
        if candidates.is_empty() {
            return;
        }
        let (conn, index) = self.rng.pick(&candidates);
        let now = Now(self.now);
        let wire = &mut self.net.wires[index];
        if wire.to_core_end == Some(End::Reset) {
            return self.tell_end(conn, Gone::Reset);
        }
        if wire.to_core.is_empty() {
            return self.tell_end(conn, Gone::Eof);
        }
        let bytes = Wire::cut(&mut wire.to_core, &mut self.rng);
        self.net.note(|| format!("{conn:?} -> {}", show(&bytes)));
        self.net.chunk.clone_from(&bytes);
        let chunk = Chunk { id: ChunkId(0), bytes: &bytes };
        match conn {
            Conn::Client(id) => self.core.handle_client_bytes(id, chunk, now, &mut self.net),
            Conn::Server(id) => self.core.handle_server_bytes(id, chunk, now, &mut self.net),
            // Nothing is answered to a CancelRequest.
            Conn::Canceller(_) => {}
        }
        self.net.chunk.clear();
        self.settle();
    }

    fn tell_end(&mut self, conn: Conn, why: Gone) {
        let now = Now(self.now);
        self.net.note(|| format!("{conn:?} ends: {why:?}"));
        match conn {
            Conn::Client(id) if why == Gone::Eof => {
                let index = self.net.by_conn[&conn];
                self.net.wires[index].eof_told = true;
                self.core.handle_client_eof(id, now, &mut self.net);
            }
            Conn::Client(id) => {
                self.net.forget(conn);
                self.core.handle_client_gone(id, now, &mut self.net);
            }
            Conn::Server(id) => {
                self.net.forget(conn);
                self.core.handle_server_gone(id, why, now, &mut self.net);
            }
            Conn::Canceller(id) => {
                self.net.forget(conn);
                self.core.handle_canceller_gone(id, now, &mut self.net);
            }
        }
        self.settle();
    }

    /// A queue has become shorter: the core may be told.
    fn drained(&mut self, index: usize) {
        let wire = &mut self.net.wires[index];
        let Some(conn) = wire.conn else { return };
        if wire.congested && wire.to_peer.len() <= self.plan.high_bytes / 2 {
            wire.congested = false;
            self.core.handle_drained(conn, Now(self.now), &mut self.net);
            self.settle();
        }
    }

    fn client_reads(&mut self) {
        let lazy = self.stormy && self.rng.percent(80);
        let due = |client: &Client, wires: &[Wire]| {
            let wire = &wires[client.wire];
            let has_end =
                wire.to_peer_fin && wire.to_peer.is_empty() && client.stage != Stage::Over;
            !(client.slow && lazy) && (!wire.to_peer.is_empty() || has_end)
        };
        let candidates: Vec<usize> =
            (0..self.clients.len()).filter(|at| due(&self.clients[*at], &self.net.wires)).collect();
        let Some(at) = self.pick(&candidates) else { return };
        let client = &mut self.clients[at];
        let index = client.wire;
        let wire = &mut self.net.wires[index];
        if wire.to_peer.is_empty() {
            return self.client_ended(at);
        }
        let bytes = Wire::cut(&mut wire.to_peer, &mut self.rng);
        let tag = client.tag;
        if let Err(why) = client.read(&bytes, wire, &self.leave) {
            self.net.fail(format!("client {tag}: {why}"));
        }
        self.drained(index);
    }

    fn server_reads(&mut self) {
        let candidates: Vec<usize> = (0..self.servers.len())
            .filter(|at| {
                let server = &self.servers[*at];
                !server.ended && !self.net.wires[server.wire].to_peer.is_empty()
            })
            .collect();
        let Some(at) = self.pick(&candidates) else { return };
        let server = &mut self.servers[at];
        let index = server.wire;
        let wire = &mut self.net.wires[index];
        let bytes = Wire::cut(&mut wire.to_peer, &mut self.rng);
        if let Err(why) = server.read(&bytes, wire, &mut self.rng) {
            self.net.fail(format!("server {at}: {why}"));
        }
        self.drained(index);
    }

    fn server_works(&mut self) {
        let candidates: Vec<usize> = (0..self.servers.len())
            .filter(|at| {
                let server = &self.servers[*at];
                server.can_work(&self.net.wires[server.wire], self.now)
            })
            .collect();
        let Some(at) = self.pick(&candidates) else { return };
        let server = &self.servers[at];
        if let Some((pid, secret)) = server.cancels() {
            let found = self.servers.iter().position(|other| {
                other.pid == pid && other.secret == secret && other.is_ready() && !other.ended
            });
            let hit = found.is_some_and(|found| {
                let backend = &mut self.servers[found].backend;
                !backend.is_preparing_native() && backend.cancel()
            });
            self.net.note(|| format!("server {at} carries a signal to {found:?}: {hit}"));
        }
        let server = &mut self.servers[at];
        let wire = &mut self.net.wires[server.wire];
        if server.cancels().is_some() {
            return server.end(wire);
        }
        if self.stormy && server.is_ready() && self.rng.permille(10) {
            server.chatter(&mut self.rng);
        }
        server.work(wire, self.now, &mut self.rng);
        if let Some(why) = server.backend.violations.pop() {
            self.net.fail(format!("server {at}: {why}"));
        }
    }

    fn connect_ends(&mut self) {
        if self.net.connecting.is_empty() {
            return;
        }
        let at = self.rng.index(self.net.connecting.len());
        let conn = self.net.connecting.remove(at);
        let refused = self.stormy && self.plan.faults && self.rng.percent(15);
        if refused {
            self.leave.faults = true;
            let why = Gone::Refused(std::io::ErrorKind::ConnectionRefused);
            return self.tell_end(conn, why);
        }
        let wire = self.net.open(Some(conn));
        self.net.note(|| format!("{conn:?} is connected, server {}", self.servers.len()));
        let pid = 1000 + self.servers.len() as u32;
        let has_init = !self.plan.config.init_query.is_empty();
        self.servers.push(Server::new(wire, pid, self.plan.server_auth, has_init));
        let now = Now(self.now);
        match conn {
            Conn::Server(id) => self.core.handle_server_connected(id, now, &mut self.net),
            Conn::Canceller(id) => self.core.handle_canceller_connected(id, now, &mut self.net),
            Conn::Client(_) => {}
        }
        self.settle();
    }

    /// A little time, or all the time until something is due.
    pub(crate) fn time_passes(&mut self) {
        if self.rng.percent(if self.stormy { 90 } else { 50 }) {
            self.now += self.rng.below(5000);
        } else {
            let sleepers = self.servers.iter().filter(|server| !server.ended);
            let wake = sleepers.filter_map(|server| server.backend.wakes_at()).min();
            let deadline = self.core.poll_deadline().map(|deadline| deadline.0);
            let next = wake.into_iter().chain(deadline).min();
            // Never so far that a pause looks like a hang to everybody.
            let most = self.now + if self.stormy { 200_000 } else { 20_000_000 };
            self.now = next.unwrap_or(self.now).clamp(self.now, most);
        }
        let due = self.core.poll_deadline().is_some_and(|deadline| deadline.0 <= self.now);
        if due {
            let now = self.now;
            self.net.note(|| format!("timeouts at {now}"));
            self.core.handle_timeouts(Now(now), &mut self.net);
            self.settle();
        }
    }

    fn fault(&mut self) {
        if !self.plan.faults {
            return;
        }
        let candidates: Vec<usize> = (0..self.servers.len())
            .filter(|at| {
                let server = &self.servers[*at];
                !server.ended && self.net.wires[server.wire].conn.is_some()
            })
            .collect();
        let Some(at) = self.pick(&candidates) else { return };
        self.leave.faults = true;
        let server = &mut self.servers[at];
        let wire = &mut self.net.wires[server.wire];
        let what = self.rng.below(if self.plan.hostile { 5 } else { 2 });
        match what {
            0 => {
                server.ended = true;
                wire.reset();
            }
            1 if server.is_ready() => server.die_politely(wire),
            1 => server.end(wire),
            2 => wire.to_core.extend((0..30).map(|_| self.rng.next_u64() as u8)),
            3 => wire.to_core.extend([b'Z', 0, 0, 0, 5, b'Q']),
            _ => wire.to_core.extend([self.rng.pick(b"12CDGSKIRTZ"), 0, 0x7F, 0xFF, 0xFF, 1, 2]),
        }
        self.net.note(|| format!("fault {what} at server {at}"));
    }
}
