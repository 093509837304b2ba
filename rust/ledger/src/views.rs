//! What others may see of a worker: alive, its heartbeat, its gauges, its counters.
//!
//! Gauges may lag by a moment; nothing that must be exact is decided by them. Next on the path:
//! the core's `budget.rs`.

use crate::Page;
use crate::layout::{ACCEPTING, ALIVE, STATS_MAX, WORKERS_MAX, WorkerId, entry};
use crate::slots::{State, state};
use crate::word::Word;

/// A worker as its entry on the page shows it.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct WorkerView {
    /// Whether its engine runs.
    pub alive: bool,
    /// Whether it takes new clients.
    pub accepting: bool,
    /// Which start of a worker it is, counted over the service.
    pub incarnation: u64,
    /// Grows at least once a second while its engine runs.
    pub heartbeat: u64,
    /// The epoch of the settings that it works by.
    pub epoch: u64,
    /// Clients, log-ins included.
    pub clients: u64,
    /// Idle servers.
    pub idle: u64,
    /// Clients that wait for a server.
    pub waiting: u64,
    /// Server connections.
    pub servers: u64,
    /// Servers of paused pools that it still has.
    pub paused_busy: u64,
    /// Its counters, in the core's order.
    pub stats: Vec<u64>,
}

/// How the permits are used.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct BudgetView {
    /// Permits allowed now: fewer than configured while the target takes no more.
    pub allowed: u32,
    /// Permits that the settings allow.
    pub configured: u32,
    /// Connections under way.
    pub connecting: u32,
    /// Connections that workers hold.
    pub held: u32,
    /// Connections on their way from one worker to another.
    pub transit: u32,
    /// Connections without an owner, and those whose statements are being cancelled.
    pub orphaned: u32,
    /// The most that the page can hold.
    pub capacity: u32,
}

impl<W: Word> Page<W> {
    /// Shows that this worker's loop is alive.
    #[inline]
    pub fn beat(&self) {
        let word = self.entry(self.me, entry::HEARTBEAT);
        word.store(word.load().wrapping_add(1));
    }

    /// This worker's engine runs and takes clients; `incarnation` tells which start of a worker it
    /// is. The supervisor takes both back when the process has ended.
    pub fn begin(&self, incarnation: u64) {
        self.entry(self.me, entry::INCARNATION).store(incarnation);
        self.head(ALIVE).set_bits(self.bit());
        self.head(ACCEPTING).set_bits(self.bit());
    }

    /// This worker takes no more clients; those it has it still serves.
    pub fn stop_accepting(&self) {
        self.head(ACCEPTING).clear_bits(self.bit());
    }

    /// This worker's engine has ended: nothing can be handed to it any more.
    pub fn end(&self) {
        self.stop_accepting();
        self.head(ALIVE).clear_bits(self.bit());
    }

    /// A bit a worker that takes new clients.
    #[must_use]
    pub fn accepting(&self) -> u64 {
        self.head(ACCEPTING).load()
    }

    /// A bit a worker whose engine runs.
    #[must_use]
    pub fn alive(&self) -> u64 {
        self.head(ALIVE).load()
    }

    /// Whether a worker's engine runs.
    #[must_use]
    pub fn is_alive(&self, worker: WorkerId) -> bool {
        usize::from(worker) < WORKERS_MAX && self.alive() >> worker & 1 == 1
    }

    /// Tells how this worker's engine waits for sockets, as a number that means nothing here.
    pub fn set_io(&self, io: u64) {
        self.entry(self.me, entry::IO).store(io);
    }

    /// What a worker told by [`Page::set_io`]; 0 = nothing yet.
    #[must_use]
    pub fn io(&self, worker: WorkerId) -> u64 {
        self.entry(worker, entry::IO).load()
    }

    /// Acknowledges the settings of an epoch.
    pub fn set_epoch(&self, epoch: u64) {
        self.entry(self.me, entry::EPOCH).store(epoch);
    }

    /// Tells how many idle servers this worker has.
    #[inline]
    pub fn set_idle(&self, idle: usize) {
        self.entry(self.me, entry::IDLE).store(idle as u64);
    }

    /// Idle servers of all workers.
    #[must_use]
    pub fn idle(&self) -> u64 {
        let alive = self.alive();
        let workers = (0..WORKERS_MAX as WorkerId).filter(|worker| alive >> worker & 1 == 1);
        workers.map(|worker| self.entry(worker, entry::IDLE).load()).sum()
    }

    /// Tells how many server connections this worker has, idle or not.
    pub fn set_servers(&self, servers: usize) {
        self.entry(self.me, entry::SERVERS).store(servers as u64);
    }

    /// How many server connections a worker has.
    #[must_use]
    pub fn worker_servers(&self, worker: WorkerId) -> u64 {
        self.entry(worker, entry::SERVERS).load()
    }

    /// Tells how many clients of this worker wait for a server.
    pub fn set_waiting(&self, waiting: u64) {
        self.entry(self.me, entry::WAITING).store(waiting);
    }

    /// Tells how many servers of paused pools this worker still has.
    pub fn set_paused_busy(&self, servers: usize) {
        self.entry(self.me, entry::PAUSED_BUSY).store(servers as u64);
    }

    /// Changes a worker's number of clients by `change`.
    pub fn clients_add(&self, worker: WorkerId, change: i64) {
        self.entry(worker, entry::CLIENTS).add(change as u64);
    }

    /// A worker's number of clients, log-ins and those passed on to it included.
    #[must_use]
    pub fn clients(&self, worker: WorkerId) -> u64 {
        // A burial while clients leave can take the sum below 0 for a moment.
        let clients = self.entry(worker, entry::CLIENTS).load();
        if clients > u64::MAX / 2 { 0 } else { clients }
    }

    /// Clients of all workers.
    #[must_use]
    pub fn all_clients(&self) -> u64 {
        let alive = self.alive();
        let workers = (0..WORKERS_MAX as WorkerId).filter(|worker| alive >> worker & 1 == 1);
        workers.map(|worker| self.clients(worker)).sum()
    }

    /// Publishes this worker's counters; those beyond [`STATS_MAX`] are left out.
    pub fn set_stats(&self, stats: &[u64]) {
        for (at, value) in stats.iter().take(STATS_MAX).enumerate() {
            self.entry(self.me, entry::STATS + at).store(*value);
        }
    }

    /// A worker as its entry shows it.
    #[must_use]
    pub fn worker_view(&self, worker: WorkerId) -> WorkerView {
        let word = |at| self.entry(worker, at).load();
        WorkerView {
            alive: self.is_alive(worker),
            accepting: self.accepting() >> (worker & 63) & 1 == 1,
            incarnation: word(entry::INCARNATION),
            heartbeat: word(entry::HEARTBEAT),
            epoch: word(entry::EPOCH),
            clients: self.clients(worker),
            idle: word(entry::IDLE),
            waiting: word(entry::WAITING),
            servers: word(entry::SERVERS),
            paused_busy: word(entry::PAUSED_BUSY),
            stats: (0..STATS_MAX).map(|at| word(entry::STATS + at)).collect(),
        }
    }

    /// How the permits are used.
    #[must_use]
    pub fn budget_view(&self) -> BudgetView {
        let mut view = BudgetView {
            allowed: self.allowed(),
            configured: self.configured(),
            capacity: self.capacity,
            ..BudgetView::default()
        };
        for slot in 0..self.used_slots() {
            match state(self.slot(slot).load()) {
                State::Free => {}
                State::Connecting => view.connecting += 1,
                State::Held => view.held += 1,
                State::Transit => view.transit += 1,
                State::Orphaned | State::Reclaiming => view.orphaned += 1,
            }
        }
        view
    }
}
