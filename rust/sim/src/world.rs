//! A run: clients, workers, servers, and chance, step by step.
//!
//! First the safety phase, in which everything may happen; then the calm (`checks.rs`), in which
//! everybody must be served. What belongs to the workers is in `workers.rs`, what belongs to the
//! servers in `upstream.rs`. Next on the path: `net.rs`.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use ledger::{Ledger, SUPERVISOR};
use proxy_core::config::Config;
use proxy_core::core::Core;
use proxy_core::ids::Conn;
use proxy_core::sink::{Chunk, ChunkId, Gone, Peer};

use crate::client::{Client, Leave, Stage};
use crate::net::{Net, show};
use crate::plan::Plan;
use crate::rng::Rng;
use crate::room::Refusals;
use crate::server::Server;
use crate::wire::{End, Wire};
use crate::workers::{Life, Worker};

/// Permits that the page has room for; plans ask for fewer.
const SLOTS: u32 = 16;

/// One run.
pub(crate) struct World {
    /// Its circumstances.
    pub(crate) plan: Plan,
    /// The things under test.
    pub(crate) workers: Vec<Worker>,
    /// What they share.
    pub(crate) words: &'static [AtomicU64],
    /// The same, as the supervisor sees it.
    pub(crate) page: Ledger,
    /// Their side of the connections.
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
    /// All settings there ever were, by epoch from 1 on.
    pub(crate) published: Vec<Rc<Config>>,
    /// Users whom some settings do not know.
    pub(crate) removed: BTreeSet<String>,
    /// Server connections after the last step.
    pub(crate) living: usize,
    /// Faults still happen.
    pub(crate) stormy: bool,
    /// Starts of workers.
    pub(crate) incarnation: u64,
    /// When backends without a connection act next, at the latest.
    pub(crate) prompt_at: u64,
    /// The client whose statement has begun to run since somebody looked.
    pub(crate) began: Option<u32>,
    /// Time passes in small steps only.
    pub(crate) hurried: bool,
    /// Something could happen until then.
    pub(crate) still_since: u64,
    /// How long nothing may happen while somebody waits in the rush, in microseconds.
    pub(crate) still_max: u64,
    /// Logins that servers refused for want of room.
    pub(crate) refusals: Refusals,
    pub(crate) next_tag: u32,
    pub(crate) step: u64,
}

/// What can happen in a step, with its weight.
const EVENTS: [u64; 16] = [16, 18, 18, 22, 16, 14, 6, 7, 4, 1, 2, 2, 8, 6, 3, 3];

/// The page of this thread's runs, one after the other: nothing frees memory that all share.
fn fresh_page(secret: [u8; 32]) -> &'static [AtomicU64] {
    thread_local! {
        static PAGE: &'static [AtomicU64] =
            Box::leak((0..ledger::words_for(SLOTS)).map(|_| AtomicU64::new(0)).collect());
    }
    let words = PAGE.with(|page| *page);
    words.iter().for_each(|word| word.store(0, Ordering::Relaxed));
    ledger::format(words, SLOTS, secret);
    words
}

impl World {
    /// The world of a seed, with this many workers if that is given.
    #[must_use]
    pub(crate) fn new(seed: u64, steps: u64, workers: Option<usize>, told_in_full: bool) -> Self {
        let mut rng = Rng::new(seed);
        let plan = Plan::draw(&mut rng, steps, workers);
        let mut secret = [0; 32];
        secret[..8].copy_from_slice(&seed.to_be_bytes());
        let words = fresh_page(secret);
        let page = Ledger::new(words, SUPERVISOR).expect("a page");
        let mut net = Net::new(plan.workers, page.clone(), told_in_full);
        net.high_bytes = plan.high_bytes;
        net.inbox_max = plan.inbox_max;
        net.note(|| format!("{plan:#?}"));
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
        let mut world = Self {
            workers: (0..plan.workers).map(|_| Worker::unborn()).collect(),
            published: vec![Rc::new(plan.config.clone())],
            plan,
            words,
            page,
            net,
            rng,
            now: 1,
            clients: Vec::new(),
            servers: Vec::new(),
            leave,
            removed: BTreeSet::new(),
            living: 0,
            stormy: true,
            incarnation: 0,
            prompt_at: 0,
            began: None,
            hurried: false,
            still_since: 0,
            still_max: 0,
            refusals: Refusals::default(),
            next_tag: 0,
            step: 0,
        };
        for at in 0..world.workers.len() {
            world.start_worker(at);
        }
        world
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
        for at in 0..self.workers.len() {
            if self.workers[at].life == Life::Hangs {
                self.resume(at);
            }
            if self.workers[at].core.is_some() {
                self.stop_worker(at);
            }
        }
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
            12 => self.mail_comes(),
            13 => self.passes_go(),
            14 => self.life_goes_on(),
            15 => {
                self.room_changes();
                self.settings_come();
            }
            _ => {}
        }
        self.check_step();
    }

    pub(crate) fn pick(&mut self, candidates: &[usize]) -> Option<usize> {
        if candidates.is_empty() { None } else { Some(self.rng.pick(candidates)) }
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
            client.removable = self.removed.contains(&client.user);
            client.begin(&mut self.net.wires[wire]);
            self.clients.push(client);
        }
    }

    /// Some worker accepts a connection; none if there is none, or it refuses.
    pub(crate) fn accept(&mut self) -> Option<usize> {
        let running = self.running();
        let at = self.pick(&running)?;
        let accept = |core: &mut Core, now, net: &mut Net| core.handle_accept(Peer::Unix, now, net);
        let id = self.call(at, accept).flatten()?;
        self.net.note(|| format!("worker {at} accepts {id:?}"));
        Some(self.net.open(at, Conn::Client(id)))
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
        let mut candidates: Vec<(usize, Conn, usize)> = Vec::new();
        for at in self.running() {
            let readable = self.net.desks[at].by_conn.iter().filter(|(conn, index)| {
                matches!(conn, Conn::Client(_)) == from_client
                    && self.net.wires[**index].has_input()
            });
            candidates.extend(readable.map(|(conn, index)| (at, *conn, *index)));
        }
        if candidates.is_empty() {
            return;
        }
        let (at, conn, index) = self.rng.pick(&candidates);
        let wire = &mut self.net.wires[index];
        if wire.to_core_end == Some(End::Reset) {
            return self.tell_end(at, conn, Gone::Reset);
        }
        if wire.to_core.is_empty() {
            return self.tell_end(at, conn, Gone::Eof);
        }
        let bytes = Wire::cut(&mut wire.to_core, &mut self.rng);
        self.net.note(|| format!("worker {at}: {conn:?} -> {}", show(&bytes)));
        self.net.chunk.clone_from(&bytes);
        let chunk = Chunk { id: ChunkId(0), bytes: &bytes };
        self.call(at, |core, now, net| match conn {
            Conn::Client(id) => core.handle_client_bytes(id, chunk, now, net),
            Conn::Server(id) => core.handle_server_bytes(id, chunk, now, net),
            // Nothing is answered to a CancelRequest.
            Conn::Canceller(_) => {}
        });
        self.net.chunk.clear();
    }

    pub(crate) fn tell_end(&mut self, at: usize, conn: Conn, why: Gone) {
        self.net.note(|| format!("worker {at}: {conn:?} ends: {why:?}"));
        if matches!(conn, Conn::Client(_)) && why == Gone::Eof {
            let index = self.net.desks[at].by_conn[&conn];
            self.net.wires[index].eof_told = true;
        } else {
            self.net.forget(at, conn);
        }
        self.call(at, |core, now, net| match conn {
            Conn::Client(id) if why == Gone::Eof => core.handle_client_eof(id, now, net),
            Conn::Client(id) => core.handle_client_gone(id, now, net),
            Conn::Server(id) => core.handle_server_gone(id, why, now, net),
            Conn::Canceller(id) => core.handle_canceller_gone(id, now, net),
        });
    }

    /// A queue has become shorter: the core may be told.
    pub(crate) fn drained(&mut self, index: usize) {
        let wire = &mut self.net.wires[index];
        let Some((at, conn)) = wire.owner else { return };
        let runs = self.workers[at].life == Life::Serves;
        if runs && wire.congested && wire.to_peer.len() <= self.plan.high_bytes / 2 {
            wire.congested = false;
            self.call(at, |core, now, net| core.handle_drained(conn, now, net));
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

    /// A little time, or all the time until something is due.
    pub(crate) fn time_passes(&mut self) {
        if self.hurried || self.rng.percent(if self.stormy { 90 } else { 50 }) {
            let little = self.now + self.rng.below(5000);
            self.advance(little);
        } else {
            // Never so far that a pause looks like a hang to everybody.
            let most = self.now + if self.stormy { 200_000 } else { 20_000_000 };
            let next = self.next_due().unwrap_or(self.now).min(most);
            self.advance(next);
        }
    }

    /// When something happens by the clock alone.
    pub(crate) fn next_due(&self) -> Option<u64> {
        let sleepers = self.servers.iter().filter(|server| !server.ended);
        let wake = sleepers.filter_map(|server| server.backend.wakes_at()).min();
        let deadlines = self.workers.iter().filter_map(Worker::deadline);
        wake.into_iter().chain(deadlines).min()
    }

    /// Time passes up to `then`, if that lies ahead.
    pub(crate) fn advance(&mut self, then: u64) {
        self.keep_pace(then);
        self.now = self.now.max(then);
        self.timers_fire();
    }
}
