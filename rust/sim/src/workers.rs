//! The workers' lives: start, settings, mail, hand-overs, a pause, death, burial.
//!
//! A worker that dies leaves its permits where they are; the supervisor empties its inbox, buries
//! it on the page and starts another one under its number. Each may happen between any two steps
//! of the others. Next on the path: `upstream.rs`.

use std::rc::Rc;

use auth::ScramKeys;
use ledger::{Ledger, WorkerId};
use proxy_core::config::Config;
use proxy_core::core::{Core, Home, KeysAnswer};
use proxy_core::event::Event;
use proxy_core::ids::Conn;
use proxy_core::sink::{Gone, Now};

use crate::net::{Mail, Net, Pass};
use crate::settings;
use crate::world::World;

/// How often a worker looks at the page unasked, in microseconds.
const LOOK_US: u64 = 1_000_000;

/// Whether a worker runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Life {
    /// It runs.
    Serves,
    /// It is stopped and goes on later.
    Hangs,
    /// Its process has ended.
    Dead,
    /// The supervisor has cleared up behind it.
    Buried,
}

/// One worker.
pub(crate) struct Worker {
    /// The thing under test; none while the process does not run.
    pub(crate) core: Option<Core>,
    pub(crate) life: Life,
    /// The settings that it works by, counted from 1.
    pub(crate) epoch: u64,
    /// It is to look at the page.
    look: bool,
    looked_at: u64,
    /// SCRAM keys that its core asked for.
    keys_wanted: Vec<(u32, u64, Vec<u8>, u32)>,
}

impl Worker {
    /// A number without a process.
    #[must_use]
    pub(crate) const fn unborn() -> Self {
        Self {
            core: None,
            life: Life::Buried,
            epoch: 0,
            look: false,
            looked_at: 0,
            keys_wanted: Vec::new(),
        }
    }

    /// When it has something to do by the clock, in microseconds; never if it does not run.
    pub(crate) fn deadline(&self) -> Option<u64> {
        if self.life != Life::Serves {
            return None;
        }
        let own = self.core.as_ref()?.poll_deadline().map_or(u64::MAX, |deadline| deadline.0);
        Some(own.min(self.looked_at + LOOK_US))
    }

    /// Whether something waits for it that is none of the network's.
    pub(crate) fn has_errands(&self) -> bool {
        self.look || !self.keys_wanted.is_empty()
    }
}

impl World {
    /// The workers that run now.
    pub(crate) fn running(&self) -> Vec<usize> {
        let runs = |at: &usize| self.workers[*at].life == Life::Serves;
        (0..self.workers.len()).filter(runs).collect()
    }

    /// Calls a worker's core and does what must follow at once; nothing if it has none.
    pub(crate) fn call<R>(
        &mut self,
        at: usize,
        call: impl FnOnce(&mut Core, Now, &mut Net) -> R,
    ) -> Option<R> {
        let core = self.workers[at].core.as_mut()?;
        self.net.me = at;
        let result = call(core, Now(self.now), &mut self.net);
        self.settle(at);
        Some(result)
    }

    fn settle(&mut self, at: usize) {
        while let Some(conn) = self.net.desks[at].crowded.pop() {
            self.call(at, |core, now, net| core.handle_congested(conn, now, net));
        }
        for event in std::mem::take(&mut self.net.desks[at].events) {
            match event {
                Event::ServerKeysNeeded { credential, epoch, salt, iterations } => {
                    let wanted = (credential, epoch, salt, iterations);
                    self.workers[at].keys_wanted.push(wanted);
                }
                Event::ProtocolViolation { side: "server", reason } if !self.plan.hostile => {
                    self.net.fail(format!("a faithful server was accused: {reason}"));
                }
                _ => {}
            }
        }
        for _ in 0..std::mem::take(&mut self.net.given_up) {
            self.accepted_too_late(at);
        }
        while !self.plan.slow_passes && !self.net.desks[at].passes.is_empty() {
            self.carry_out_pass(at);
        }
    }

    /// A worker begins to serve under this number.
    pub(crate) fn start_worker(&mut self, at: usize) {
        self.incarnation += 1;
        let incarnation = self.incarnation;
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&self.rng.next_u64().to_be_bytes());
        let ledger = self.ledger_of(at);
        let epoch = self.published.len() as u64;
        let config = Config::clone(&self.settings_of(epoch));
        self.net.note(|| format!("worker {at} starts, epoch {epoch}"));
        let home = Home { ledger: ledger.clone(), incarnation, seed };
        let worker = &mut self.workers[at];
        worker.core = Some(Core::new(config, epoch, home, Now(self.now)));
        worker.life = Life::Serves;
        worker.epoch = epoch;
        worker.look = true;
        ledger.set_epoch(epoch);
        ledger.begin(incarnation);
    }

    /// The page as a worker sees it.
    fn ledger_of(&self, at: usize) -> Ledger {
        Ledger::new(self.words, at as WorkerId).expect("a page")
    }

    /// The settings of an epoch; those of the run's beginning for 0.
    pub(crate) fn settings_of(&self, epoch: u64) -> Rc<Config> {
        Rc::clone(&self.published[(epoch as usize).saturating_sub(1)])
    }

    /// Something happens to one of the workers, or to none.
    pub(crate) fn life_goes_on(&mut self) {
        let at = self.rng.index(self.workers.len());
        let rough = self.stormy && !self.leave.stopping;
        let dies = rough && self.rng.permille(self.plan.deaths);
        let stops = rough && self.rng.permille(self.plan.hangs);
        let rests = self.stormy && self.rng.percent(60);
        match self.workers[at].life {
            Life::Serves if dies => self.die(at),
            Life::Serves if stops => {
                self.net.note(|| format!("worker {at} hangs"));
                self.workers[at].life = Life::Hangs;
            }
            Life::Serves => {
                let core = self.workers[at].core.as_ref();
                if core.is_some_and(Core::is_stopped) {
                    self.ledger_of(at).end();
                    self.die(at);
                }
            }
            Life::Hangs if dies => self.die(at),
            _ if rests => {}
            Life::Hangs => self.resume(at),
            Life::Dead => self.bury(at),
            Life::Buried if self.leave.stopping => {}
            Life::Buried => self.start_worker(at),
        }
    }

    /// It is told to end.
    pub(crate) fn stop_worker(&mut self, at: usize) {
        self.ledger_of(at).stop_accepting();
        self.call(at, |core, now, net| core.handle_stop(now, net));
    }

    /// It has been stopped and goes on.
    pub(crate) fn resume(&mut self, at: usize) {
        self.net.note(|| format!("worker {at} goes on"));
        self.workers[at].life = Life::Serves;
        // What came for it meanwhile it sees before any of its timers.
        self.be_prompt();
        let indices: Vec<usize> = self.net.desks[at].by_conn.values().copied().collect();
        for index in indices {
            self.drained(index);
        }
    }

    /// The process ends, without any last act.
    pub(crate) fn die(&mut self, at: usize) {
        self.net.note(|| format!("worker {at} dies"));
        let worker = &mut self.workers[at];
        worker.core = None;
        worker.life = Life::Dead;
        worker.look = false;
        worker.keys_wanted.clear();
        let desk = &mut self.net.desks[at];
        let inbox = std::mem::take(&mut desk.inbox);
        let desk = std::mem::take(desk);
        self.net.desks[at].inbox = inbox;
        for (conn, index) in desk.by_conn {
            let wire = &mut self.net.wires[index];
            match (conn, self.rng.below(3)) {
                // What it had not yet handed to the system is lost; with a reset, all of it.
                (Conn::Client(_), 0) => {
                    let sent = self.rng.index(wire.to_peer.len() + 1);
                    wire.to_peer.truncate(sent);
                }
                (_, 1) => wire.to_peer.clear(),
                _ => {}
            }
            wire.close();
        }
        for client in &mut self.clients {
            client.doomed |= self.net.wires[client.wire].closed;
        }
        let attempts = desk.connecting.iter().filter(|conn| matches!(conn, Conn::Server(_)));
        for _ in 0..attempts.count() {
            self.accepted_too_late(at);
        }
    }

    /// The supervisor has seen a worker's end.
    pub(crate) fn bury(&mut self, at: usize) {
        self.workers[at].life = Life::Buried;
        self.empty_inbox(at);
        let orphaned = self.page.bury(at as WorkerId);
        self.net.note(|| format!("worker {at} is buried, {orphaned} permits orphaned"));
        for other in 0..self.workers.len() {
            if self.page.is_alive(other as WorkerId) {
                self.net.ring(other as WorkerId);
            }
        }
    }

    /// Nobody will read this mail: what came with it is closed.
    pub(crate) fn empty_inbox(&mut self, at: usize) {
        for mail in std::mem::take(&mut self.net.desks[at].inbox) {
            if let Mail::Connection { wire, .. } = mail {
                self.net.wires[wire].close();
            }
        }
    }

    /// A worker reads a datagram, or looks at the page.
    pub(crate) fn mail_comes(&mut self) {
        let mut candidates = self.running();
        candidates.retain(|at| self.workers[*at].look || !self.net.desks[*at].inbox.is_empty());
        let Some(at) = self.pick(&candidates) else { return };
        if let Some(mail) = self.net.desks[at].inbox.pop_front() {
            self.workers[at].look = true;
            if let Mail::Connection { wire, bytes } = mail {
                self.connection_comes(at, wire, &bytes);
            }
            if self.rng.percent(50) {
                return;
            }
        }
        self.look_at_page(at);
    }

    fn look_at_page(&mut self, at: usize) {
        self.net.note(|| format!("worker {at} looks at the page"));
        self.workers[at].look = false;
        self.workers[at].looked_at = self.now;
        self.call(at, |core, now, net| core.handle_look(now, net));
    }

    fn connection_comes(&mut self, at: usize, index: usize, bytes: &[u8]) {
        self.net.note(|| format!("worker {at} gets wire {index} by mail"));
        let conn = self.call(at, |core, now, net| core.handle_mail(bytes, now, net)).flatten();
        let Some(conn) = conn else { return self.net.wires[index].close() };
        if self.stormy && self.rng.permille(20) {
            // The process had no descriptor for it.
            self.net.wires[index].close();
            return self.lost_in_mail(at, conn);
        }
        let wire = &mut self.net.wires[index];
        wire.arrive();
        wire.owner = Some((at, conn));
        self.net.desks[at].by_conn.insert(conn, index);
        self.call(at, |core, now, net| core.handle_adopted(conn, now, net));
    }

    fn lost_in_mail(&mut self, at: usize, conn: Conn) {
        self.net.note(|| format!("{conn:?} is lost in the mail"));
        self.leave.faults = true;
        self.call(at, |core, now, net| match conn {
            Conn::Server(id) => core.handle_server_gone(id, Gone::Unreachable, now, net),
            Conn::Client(id) => core.handle_client_gone(id, now, net),
            Conn::Canceller(_) => {}
        });
    }

    /// A connection goes to another worker, or its sender hears what became of it.
    pub(crate) fn passes_go(&mut self) {
        let mut candidates = self.running();
        candidates.retain(|at| {
            let desk = &self.net.desks[*at];
            !desk.passes.is_empty() || !desk.answers.is_empty()
        });
        let Some(at) = self.pick(&candidates) else { return };
        let to = self.net.desks[at].passes.front().map_or(at, |pass| pass.to);
        if self.stormy && !self.leave.stopping && self.rng.permille(self.plan.deaths) {
            let dies = self.rng.pick(&[at, to]);
            if self.workers[dies].core.is_some() {
                return self.die(dies);
            }
        }
        if !self.net.desks[at].passes.is_empty() && self.rng.percent(50) {
            return self.carry_out_pass(at);
        }
        let Some((conn, passed)) = self.net.desks[at].answers.pop_front() else { return };
        self.net.note(|| format!("worker {at} hears that {conn:?} was passed on: {passed}"));
        if let Some(index) = self.net.desks[at].by_conn.get(&conn) {
            self.net.wires[*index].leaving = false;
        }
        self.call(at, |core, now, net| core.handle_passed(conn, passed, now, net));
    }

    /// As the driver does it: once, behind what was sent before.
    fn carry_out_pass(&mut self, at: usize) {
        let Some(Pass { conn, to, mail }) = self.net.desks[at].passes.pop_front() else { return };
        // It may have been closed meanwhile.
        let Some(&wire) = self.net.desks[at].by_conn.get(&conn) else { return };
        let refused = self.net.wires[wire].congested || self.stormy && self.rng.permille(30);
        let passed = !refused && self.net.post(to, Mail::Connection { wire, bytes: mail });
        self.net.note(|| format!("worker {at} posts {conn:?} to {to}: {passed}"));
        if passed {
            self.net.desks[at].by_conn.remove(&conn);
            self.net.wires[wire].owner = None;
        }
        self.net.desks[at].answers.push_back((conn, passed));
    }

    /// New settings are published, or reach a worker.
    pub(crate) fn settings_come(&mut self) {
        if self.stormy && self.rng.permille(self.plan.publications) {
            let newest = self.settings_of(self.published.len() as u64);
            let epoch = self.published.len() as u64 + 1;
            let config = settings::changed(&newest, &self.plan.config, epoch, &mut self.rng);
            return self.publish(config);
        }
        let newest = self.published.len() as u64;
        let mut candidates = self.running();
        candidates.retain(|at| self.workers[*at].epoch < newest);
        let Some(at) = self.pick(&candidates) else { return };
        let before = self.workers[at].epoch;
        let epoch = before + 1 + self.rng.below(newest - before);
        let config = Config::clone(&self.settings_of(epoch));
        self.net.note(|| format!("worker {at} takes over epoch {epoch}"));
        self.workers[at].epoch = epoch;
        self.call(at, |core, now, net| core.handle_settings(config, epoch, now, net));
        self.ledger_of(at).set_epoch(epoch);
    }

    /// An operator orders new settings.
    pub(crate) fn publish(&mut self, config: Config) {
        let epoch = self.published.len() + 1;
        self.net.note(|| format!("epoch {epoch} is published: {config:#?}"));
        for credential in &self.plan.config.credentials {
            if config.credential(&credential.user).is_none() {
                self.removed.insert(credential.user.clone());
            }
        }
        for client in &mut self.clients {
            client.removable |= self.removed.contains(&client.user);
        }
        self.page.set_limit(config.limit);
        self.published.push(Rc::new(config));
    }

    /// Keys that a core has asked for have been derived.
    pub(crate) fn keys_come(&mut self) {
        let mut candidates = self.running();
        candidates.retain(|at| !self.workers[*at].keys_wanted.is_empty());
        let Some(at) = self.pick(&candidates) else { return };
        let worker = &mut self.workers[at];
        let Some((credential, epoch, salt, iterations)) = worker.keys_wanted.pop() else { return };
        if epoch != worker.epoch {
            // The password is looked up in the settings that are in force.
            return;
        }
        let config = self.settings_of(epoch);
        let secret = config.credentials.get(credential as usize);
        let Some(secret) = secret.and_then(|c| c.server_password.as_ref()) else { return };
        let keys = ScramKeys::derive(secret.expose(), &salt, iterations);
        let answer = KeysAnswer { credential, epoch, salt, iterations, keys };
        self.call(at, |core, now, net| core.set_server_keys(answer, now, net));
    }

    /// The clock of every running worker is looked at.
    pub(crate) fn timers_fire(&mut self) {
        for at in self.running() {
            let Some(core) = &self.workers[at].core else { continue };
            if core.poll_deadline().is_some_and(|deadline| deadline.0 <= self.now) {
                let now = self.now;
                self.net.note(|| format!("worker {at}: timeouts at {now}"));
                self.call(at, |core, now, net| core.handle_timeouts(now, net));
            }
            if self.now >= self.workers[at].looked_at + LOOK_US {
                self.look_at_page(at);
            }
        }
    }
}
