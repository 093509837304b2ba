//! The rush: many clients on all workers want few servers, and nothing is wrong.
//!
//! Nobody is passed over for long (I5 over workers), nothing stands still while somebody waits, and
//! a cancel finds its way from any worker to the statement that it means, and only a right one
//! does. Next on the path: `campaign.rs`.

use proxy_core::config::PoolMode;
use proxy_core::ids::Conn;

use crate::client::{Client, Leave, Stage};
use crate::rng::Rng;
use crate::workers::Life;
use crate::world::World;

/// Requests of each client.
const REQUESTS: u32 = 8;
/// The same where workers die: enough for the others to go on as long as a promise is forgotten.
const REQUESTS_BESIDE_DEATHS: u32 = 24;
/// How often a request may see later ones of its pool begin before it. Workers let a server go only
/// to a client that has waited an eighth longer, and moving it takes its time.
const OVERTAKEN_MAX: u32 = 24;
/// How long nothing may happen while somebody waits, in microseconds: workers look at the page once
/// a second, but nothing may depend on that.
const STILL_US: u64 = 200_000;
/// The same where a worker has died: twice the time that a backend gets to end goes by.
const STILL_AFTER_DEATH_US: u64 = 400_000;
/// Workers that die in a rush in which some die.
const DEATHS_MAX: u32 = 3;
/// Steps after which a rush must be over.
const RUSH_STEPS: u64 = 200_000;

/// One client in the rush.
struct Runner {
    /// Its place among the clients.
    at: usize,
    left: u32,
    /// When its request came to its worker, as a number in order; none if no request waits.
    turn: Option<u64>,
    asked: bool,
    overtaken: u32,
}

impl World {
    /// Runs the rush. In session mode whoever has a server keeps it: there is nothing to see.
    pub(crate) fn rush(&mut self) {
        if self.leave.stopping || self.plan.config.mode == PoolMode::Session {
            return;
        }
        self.net.note(|| "the rush".to_owned());
        self.leave = Leave::default();
        self.plan.hostile = false;
        self.net.inbox_max = 64;
        self.hurried = true;
        self.still_max = STILL_US;
        let is_deadly = self.workers.len() > 2 && self.rng.percent(30);
        let mut deaths = if is_deadly { DEATHS_MAX } else { 0 };
        let requests = if is_deadly { REQUESTS_BESIDE_DEATHS } else { REQUESTS };
        self.plan.slow_passes |= is_deadly;
        let count = 2 + 2 * self.workers.len();
        let mut runners = Vec::new();
        for _ in 0..count {
            let Some(at) = self.newcomer(is_deadly) else { return };
            runners.push(Runner { at, left: requests, turn: None, asked: false, overtaken: 0 });
        }
        let mut turns = 0;
        for _ in 0..RUSH_STEPS {
            if self.net.failure.is_some() {
                return;
            }
            self.step += 1;
            self.runners_ask(&mut runners, &mut turns);
            if runners.iter().all(|runner| runner.left == 0) {
                return self.cancel_drills(&runners);
            }
            if deaths > 0 && self.a_helper_dies() {
                deaths -= 1;
            }
            self.step_in_a_hurry();
            self.watch(&mut runners);
        }
        self.net.fail("I6: the rush does not end");
    }

    /// A worker dies that was about to hand a server over to one that has none; false if there is
    /// no such worker.
    fn a_helper_dies(&mut self) -> bool {
        let mut helpers = self.running();
        let is_server = |conn: &Conn| matches!(conn, Conn::Server(_));
        let has_none = |at: usize| {
            let desk = &self.net.desks[at];
            !desk.by_conn.keys().chain(&desk.connecting).any(is_server)
        };
        helpers.retain(|at| {
            let mut passes = self.net.desks[*at].passes.iter();
            passes.any(|pass| is_server(&pass.conn) && has_none(pass.to))
        });
        let Some(at) = self.pick(&helpers).filter(|_| self.rng.percent(20)) else { return false };
        self.die(at);
        self.still_max = STILL_AFTER_DEATH_US;
        true
    }

    /// A client of some pool, or of a pool that all share.
    fn newcomer(&mut self, same_pool: bool) -> Option<usize> {
        let tag = self.next_tag;
        self.next_tag += 1;
        let wire = self.accept()?;
        let mut plain = Rng::new(if same_pool { 0 } else { u64::from(tag) });
        let mut client = Client::connect(tag, wire, 1, &mut plain);
        client.slow = false;
        client.begin(&mut self.net.wires[wire]);
        self.clients.push(client);
        Some(self.clients.len() - 1)
    }

    fn runners_ask(&mut self, runners: &mut [Runner], turns: &mut u64) {
        for runner in runners {
            let client = &mut self.clients[runner.at];
            let wire = &mut self.net.wires[client.wire];
            if client.doomed {
                runner.left = 0;
                runner.turn = None;
            }
            if client.stage != Stage::Ready || client.doomed {
                continue;
            }
            if runner.asked {
                if wire.to_core.is_empty() && runner.turn.is_none() {
                    *turns += 1;
                    runner.turn = Some(*turns);
                }
                if client.is_answered() {
                    runner.asked = false;
                    runner.turn = None;
                    runner.overtaken = 0;
                    runner.left -= 1;
                }
            }
            if !runner.asked && runner.left > 0 {
                runner.asked = true;
                client.ask_own_tag(wire);
            }
        }
    }

    /// Whoever begins to be served has overtaken those of its pool that came before.
    fn watch(&mut self, runners: &mut [Runner]) {
        let Some(tag) = self.began.take() else { return };
        let is_same = |runner: &Runner, tag| self.clients[runner.at].tag == tag;
        let Some(served) = runners.iter().position(|runner| is_same(runner, tag)) else { return };
        let turn = runners[served].turn.take().unwrap_or(0);
        let pool = self.clients[runners[served].at].pool.clone();
        for runner in runners {
            if runner.turn.is_some_and(|own| own < turn) {
                let client = &self.clients[runner.at];
                runner.overtaken += u32::from(client.pool == pool);
                if runner.overtaken > OVERTAKEN_MAX {
                    let tag = client.tag;
                    self.net.fail(format!("I5: client {tag} is overtaken again and again"));
                }
            }
        }
    }

    /// A step in which time passes a little at most, unless nothing else is left to happen.
    fn step_in_a_hurry(&mut self) {
        let dead = self.workers.iter().position(|worker| worker.life == Life::Dead);
        if let Some(at) = dead.filter(|_| self.rng.percent(5)) {
            // The supervisor does not let others wait for what a dead one has promised.
            self.bury(at);
        }
        if !self.is_still() {
            self.still_since = self.now;
            return self.take_step();
        }
        let Some(next) = self.next_due() else { return self.net.fail("I6: nothing is ever due") };
        let sleeps = self.servers.iter().any(|server| server.backend.wakes_at().is_some());
        if next > self.still_since + self.still_max && !sleeps {
            let dump = self.dump();
            self.net.fail(format!("I6: nothing happens up to {next} while somebody waits\n{dump}"));
        }
        self.advance(next);
    }

    /// Whether only time can change anything.
    fn is_still(&self) -> bool {
        let wires = &self.net.wires;
        let reads = self.net.desks.iter().all(|desk| {
            desk.connecting.is_empty()
                && desk.passes.is_empty()
                && desk.answers.is_empty()
                && desk.inbox.is_empty()
                && !desk.by_conn.values().any(|index| wires[*index].has_input())
        });
        reads
            && !self.workers.iter().any(|w| w.has_errands() || w.life != Life::Serves)
            && !self.clients.iter().any(|client| {
                let wire = &wires[client.wire];
                client.stage != Stage::Over && (!wire.to_peer.is_empty() || wire.to_peer_fin)
            })
            && !self.servers.iter().any(|server| {
                let wire = &wires[server.wire];
                !server.ended && (!wire.to_peer.is_empty() || server.can_work(wire, self.now))
            })
    }

    /// Cancels from anywhere: a right one strikes the statement that it means, a wrong one nothing.
    fn cancel_drills(&mut self, runners: &[Runner]) {
        for is_right in [false, true] {
            let mut there: Vec<usize> = runners.iter().map(|runner| runner.at).collect();
            there.retain(|at| !self.clients[*at].doomed);
            let Some(at) = self.pick(&there) else { return };
            self.cancel_drill(at, is_right);
            if self.net.failure.is_some() {
                return;
            }
        }
    }

    fn cancel_drill(&mut self, at: usize, is_right: bool) {
        let client = &mut self.clients[at];
        let tag = client.tag;
        client.ask_for_sleep(&mut self.net.wires[client.wire]);
        self.run_quietly("a statement to run", |world| world.sleeper(tag).is_some());
        let Some(sleeper) = self.sleeper(tag) else { return };
        let Some((pid, mut secret)) = self.clients[at].key.clone() else { return };
        if is_right {
            self.clients[at].cancels += 1;
        } else {
            let byte = self.rng.index(secret.len());
            secret[byte] ^= 1 << self.rng.below(8);
        }
        let Some(wire) = self.accept() else { return };
        let mut canceller = Client::canceller(u32::MAX, wire, (pid, &secret));
        canceller.begin(&mut self.net.wires[wire]);
        self.clients.push(canceller);
        self.run_quietly("a cancel to end", |world| world.net.wires[wire].to_peer_fin);
        let runs = self.servers[sleeper].backend.wakes_at().is_some();
        if runs == is_right && self.net.failure.is_none() {
            let way = if is_right { "right" } else { "wrong" };
            self.net.fail(format!("client {tag}: a {way} cancel, and its statement runs: {runs}"));
        }
        self.run_quietly("the cancelled client", |world| world.clients[at].is_answered());
    }

    /// The server that sleeps for a client.
    fn sleeper(&self, tag: u32) -> Option<usize> {
        self.servers.iter().position(|server| {
            server.is_living()
                && server.backend.last_tag == Some(tag)
                && server.backend.wakes_at().is_some()
        })
    }

    fn run_quietly(&mut self, what: &str, is_done: impl Fn(&Self) -> bool) {
        for _ in 0..RUSH_STEPS {
            if self.net.failure.is_some() || is_done(self) {
                return;
            }
            self.step += 1;
            self.step_in_a_hurry();
        }
        self.net.fail(format!("I6: waiting for {what} in vain in the rush"));
    }
}
