//! Sharing: what workers do for each other, so that many of them act as one proxy.
//!
//! A worker whose clients wait and that finds no permit leaves a want on the page (`ledger`). Who
//! has a server to spare serves the oldest want: a server of the wanted pool is handed over as it
//! stands, another is closed so that its permit comes free. A server that comes back to a worker
//! whose own clients have waited less goes to the worker whose client has waited longer. Next on
//! the path: `handover.rs`, `reclaim.rs`.

use std::rc::Rc;

use ledger::{Claim, Permit, Published, Want, WorkerId};

use crate::core::Core;
use crate::event::Event;
use crate::handover;
use crate::ids::{Conn, ServerId};
use crate::lending::waits_in;
use crate::limits::{WANT_OTHER_POOL_US, WANT_SAME_POOL_US};
use crate::pool::{Pool, PoolId};
use crate::server;
use crate::sink::{Now, Sink};

impl Core {
    /// Since when the oldest client of a pool waits, in microseconds.
    pub(crate) fn oldest_since(&mut self, pool_id: PoolId) -> Option<u64> {
        let pool = self.pools.get_mut(pool_id)?;
        let (_, client) = pool.oldest_claim(waits_in(&self.clients))?;
        self.clients.get(client).map(|client| client.since.0.max(1))
    }

    /// Leaves on the page what this worker wants most, if anything, and asks those who could help.
    /// `renew`: what was promised has not come.
    pub(crate) fn refresh_want(&mut self, renew: bool, now: Now, sink: &mut dyn Sink) {
        self.starving = false;
        let mut oldest: Option<(bool, u64, u64)> = None;
        let mut at = 0;
        while let Some(&pool_id) = self.hungry.get(at) {
            let since = self.oldest_since(pool_id);
            let pool = self.pools.get(pool_id).filter(|pool| !pool.paused);
            let Some((since, pool)) = since.zip(pool) else {
                self.hungry.swap_remove(at);
                continue;
            };
            // One that may not log in now stands back: nobody can do much for it.
            let want = (!pool.backoff.is_over(now), since, pool.hash);
            if oldest.is_none_or(|first| want < first) {
                oldest = Some(want);
            }
            at += 1;
        }
        self.wanting = oldest.is_some();
        let Some((servers_only, since, pool)) = oldest else { return self.ledger.clear_want() };
        let renew = renew && !crate::broken::is("want");
        if self.ledger.publish_want(since, pool, servers_only, renew) != Published::Opened {
            return;
        }
        // A permit may have come free before the want could be seen.
        self.feed(now, sink);
        for worker in self.ledger.with_idle_servers() {
            sink.poke(worker);
        }
    }

    /// Woken by another worker or the supervisor: looks at the page and does what is due there.
    pub fn handle_look(&mut self, now: Now, sink: &mut dyn Sink) {
        self.ledger.silence();
        let burials = self.ledger.burials();
        self.renew_want |= std::mem::replace(&mut self.burials, burials) != burials;
        self.renew_want |= self.ledger.has_lapsed();
        self.reclaim(now, sink);
        self.feed(now, sink);
        self.end_idle_beyond_limit(now, sink);
        let could = |core: &Self, want: &Want| {
            let is_its = |pool: &Pool| pool.hash == want.pool && !pool.idle.is_empty();
            want.claim != Claim::ServerOnly || core.pools.iter().any(|(_, pool)| is_its(pool))
        };
        while let Some(want) = self.ledger.oldest_want(|want| could(self, want)) {
            let Some(server) = self.spare_server(&want) else { break };
            if !self.give(server, &want, now, sink) {
                break;
            }
        }
        self.settle(now, sink);
    }

    /// An idle server that another worker may have: of the wanted pool if there is one, never one
    /// that is kept warm for another pool unless that worker has none at all.
    fn spare_server(&self, want: &Want) -> Option<ServerId> {
        if self.idle_servers == 0 {
            return None;
        }
        let has_none = self.ledger.worker_servers(want.worker) == 0;
        let min = self.config.min_share();
        let candidates = self.pools.iter().filter_map(|(_, pool)| {
            if want.claim == Claim::ServerOnly && pool.hash != want.pool {
                return None;
            }
            let is_warm = pool.hash != want.pool && pool.clients > 0 && pool.servers <= min;
            let oldest = *pool.idle.first()?;
            let since = self.servers.get(oldest)?.since;
            (!is_warm || has_none).then_some((pool.hash != want.pool, since, oldest))
        });
        candidates.min().map(|(_, _, server)| server)
    }

    /// Gives a server that has just come to rest to another worker if a client there has waited
    /// longer than this worker's; false if it stays.
    pub(crate) fn give_to_other(
        &mut self,
        server_id: ServerId,
        pool_id: PoolId,
        now: Now,
        sink: &mut dyn Sink,
    ) -> bool {
        let Some(hash) = self.pools.get(pool_id).map(|pool| pool.hash) else { return false };
        let oldest = self.ledger.oldest_want(|want| want.claim != Claim::ServerOnly);
        // An older one of another pool, which has not waited for long enough yet, hides none.
        let of_pool = self.ledger.oldest_want(|want| want.pool == hash);
        let mut wants = [oldest, of_pool].into_iter().flatten();
        let due = wants.find(|want| self.is_due(want, pool_id, now));
        due.is_some_and(|want| self.give(server_id, &want, now, sink))
    }

    /// Whether another worker's client has waited so much longer than this worker's for a server of
    /// this pool that one is to go there.
    fn is_due(&mut self, want: &Want, pool_id: PoolId, now: Now) -> bool {
        let Some(pool) = self.pools.get(pool_id) else { return false };
        // A server of the same pool stays warm wherever it goes.
        let is_same = pool.hash == want.pool;
        let is_warm = !is_same && pool.clients > 0 && pool.servers <= self.config.min_share();
        if is_warm && self.ledger.worker_servers(want.worker) > 0 {
            return false;
        }
        let slack = if is_same { WANT_SAME_POOL_US } else { WANT_OTHER_POOL_US };
        let Some(own) = self.oldest_since(pool_id) else { return true };
        // Up to an eighth of the wait on top: moving servers to and fro costs more than that.
        let slack = slack.max(now.0.saturating_sub(own) / 8);
        want.since.saturating_add(slack) < own
    }

    /// Serves a want with this server, which is at rest; false if somebody else was faster.
    fn give(&mut self, server_id: ServerId, want: &Want, now: Now, sink: &mut dyn Sink) -> bool {
        let Some(server) = self.servers.get(server_id) else { return false };
        let is_wanted = self.pools.get(server.pool).is_some_and(|pool| pool.hash == want.pool);
        // Half a message: the rest, if it ever comes, would make no sense elsewhere.
        if !is_wanted || !server.partial.is_empty() {
            if want.claim == Claim::ServerOnly {
                return false;
            }
            let claimed = self.ledger.claim_want(want, Claim::Permit);
            if claimed {
                self.retire(server_id, now, sink);
            }
            return claimed;
        }
        let claimed = self.ledger.claim_want(want, Claim::Server);
        if claimed {
            self.hand_over(server_id, want, now, sink);
        }
        claimed
    }

    fn hand_over(&mut self, server_id: ServerId, want: &Want, now: Now, sink: &mut dyn Sink) {
        let Some(server) = self.servers.get_mut(server_id) else { return };
        let Some(permit) = server.permit.take() else { return };
        let offer = match self.ledger.offer(permit, want.worker) {
            Ok(offer) => offer,
            Err(permit) => {
                if self.takes_back(server_id, Some(permit), now, sink) {
                    self.give_back(server_id, now, sink);
                }
                return;
            }
        };
        self.leave_pool(server_id);
        let Some(server) = self.servers.get_mut(server_id) else { return };
        server.state = server::State::Leaving { offer };
        server.timer.clear();
        self.departing.push((server_id, want.worker));
        self.stats.handovers += 1;
        self.count_servers();
    }

    /// Behind the call that decided it, a server leaves as it is then: what came with the last
    /// reply has been read.
    pub(crate) fn depart_to_other(
        &mut self,
        id: ServerId,
        to: WorkerId,
        now: Now,
        sink: &mut dyn Sink,
    ) {
        let Some(server) = self.servers.get(id) else { return };
        let server::State::Leaving { offer } = server.state else { return };
        if !server.partial.is_empty() || server.stream_left > 0 {
            // A message is half through: its rest would make no sense elsewhere.
            return self.server_passed(id, false, now, sink);
        }
        let Some(pool) = self.pools.get(server.pool) else { return };
        self.scratch.clear();
        handover::write_server(&mut self.scratch, server, pool, offer, self.epoch);
        sink.pass(Conn::Server(id), to, &self.scratch);
    }

    /// A server could not be handed over: it stays, unless its permit is void; tells which.
    fn takes_back(
        &mut self,
        server_id: ServerId,
        permit: Option<Permit>,
        now: Now,
        sink: &mut dyn Sink,
    ) -> bool {
        let valid = permit.filter(|permit| self.ledger.is_valid(permit));
        let Some(server) = self.servers.get_mut(server_id) else { return false };
        server.permit = valid;
        let is_ours = server.permit.is_some();
        if !is_ours {
            // The other worker died meanwhile, and the permit counts as orphaned: whoever reclaims
            // it relies on this connection being closed.
            sink.close(Conn::Server(server_id));
            self.forget_server(server_id, false, now, sink);
        }
        is_ours
    }

    /// A connection was handed to another worker, or could not be.
    pub fn handle_passed(&mut self, conn: Conn, passed: bool, now: Now, sink: &mut dyn Sink) {
        match conn {
            Conn::Server(id) => self.server_passed(id, passed, now, sink),
            Conn::Client(id) => {
                if !passed && self.clients.get(id).is_some() {
                    sink.close(conn);
                }
                self.client_left(id, now, sink);
            }
            Conn::Canceller(_) => {}
        }
        self.settle(now, sink);
    }

    fn server_passed(&mut self, id: ServerId, passed: bool, now: Now, sink: &mut dyn Sink) {
        let Some(server) = self.servers.get_mut(id) else { return };
        let server::State::Leaving { offer } = server.state else { return };
        let pool_id = server.pool;
        if passed {
            if crate::broken::is("handover") {
                let permit = self.ledger.take_back(offer);
                permit.into_iter().for_each(|permit| self.free_permit(permit, now, sink));
            }
            self.servers.remove(id);
            self.count_servers();
            return self.drop_pool_if_unused(pool_id);
        }
        self.ledger.promise_permit(offer);
        // At rest again, as it was. It is closed instead: what stood in its way (too many
        // statements for a mail, half a message, a full inbox) would stand there again at once.
        server.state = server::State::Working(server::Task::Check);
        if let Some(pool) = self.pools.get_mut(pool_id) {
            pool.servers += 1;
        }
        self.count_servers();
        let permit = self.ledger.take_back(offer);
        if self.takes_back(id, permit, now, sink) {
            self.retire(id, now, sink);
        }
    }

    /// Another worker hands a connection over. `Some`: the engine makes the socket that came with
    /// the mail this connection and calls [`Core::handle_adopted`]; `None`: it closes it.
    pub fn handle_mail(&mut self, mail: &[u8], now: Now, sink: &mut dyn Sink) -> Option<Conn> {
        let (kind, body) = mail.split_first()?;
        let conn = match *kind {
            handover::SERVER => {
                let server = self.server_arrives(body, now, sink);
                self.renew_want |= server.is_none();
                server.map(Conn::Server)
            }
            handover::CANCEL => self.cancel_arrives(body, now).map(Conn::Client),
            _ => None,
        };
        self.settle(now, sink);
        conn
    }

    fn server_arrives(&mut self, body: &[u8], now: Now, sink: &mut dyn Sink) -> Option<ServerId> {
        let arrival = handover::read_server(body)?;
        let permit = self.ledger.accept(arrival.offer)?;
        let address = self.targets.iter().find(|target| *target.address == arrival.address);
        let address = address.map(|target| Rc::clone(&target.address));
        let known = self.config.credential(&arrival.key.user).is_some();
        let pool_id = if known { self.pool_for(arrival.key.clone()) } else { None };
        let (Some(pool_id), Some(address)) = (pool_id, address) else {
            // Nobody here could ever use it.
            self.ledger.orphan(permit, now.0);
            self.reclaim(now, sink);
            return None;
        };
        if let Some(pool) = self.pools.get_mut(pool_id) {
            pool.application_name = Rc::clone(&arrival.pool_application_name);
            pool.params.get_or_insert_with(|| Rc::new(arrival.pool_params.clone()));
        }
        let epoch = self.epoch;
        let id = self.servers.insert_with(|_| arrival.into_server(pool_id, permit, address, epoch));
        let server = self.servers.get_mut(id)?;
        let pool = self.pools.get_mut(pool_id)?;
        pool.servers += 1;
        server.unfit |= server.serial < pool.serial;
        self.count_servers();
        Some(id)
    }

    /// The engine has made the socket that came with a mail this connection.
    pub fn handle_adopted(&mut self, conn: Conn, now: Now, sink: &mut dyn Sink) {
        match conn {
            Conn::Server(id) => {
                let Some(server) = self.servers.get_mut(id) else { return };
                server.state = server::State::Working(server::Task::Check);
                // The promise is kept, even if the server goes on to somebody who waits longer.
                self.renew_want = true;
                self.welcome_waiting(id, now, sink);
                self.next_task(id, now, sink);
            }
            Conn::Client(id) => self.cancel_adopted(id, now, sink),
            Conn::Canceller(_) => {}
        }
        self.settle(now, sink);
    }

    /// A permit is free again: it goes to whoever has waited longest.
    pub(crate) fn free_permit(&mut self, permit: Permit, now: Now, sink: &mut dyn Sink) {
        if let Some(worker) = self.ledger.free(permit, now.0) {
            sink.poke(worker);
        }
        self.feed(now, sink);
    }

    /// The number of permits has changed: everybody looks at the page.
    pub(crate) fn budget_changed(&mut self, allowed: u32, now: Now, sink: &mut dyn Sink) {
        sink.event(Event::BudgetChanged { allowed });
        self.poke_all(sink);
        self.feed(now, sink);
        self.end_idle_beyond_limit(now, sink);
    }

    pub(crate) fn poke_all(&self, sink: &mut dyn Sink) {
        let alive = self.ledger.alive();
        for worker in 0..64 {
            if alive >> worker & 1 == 1 && worker != self.ledger.me() {
                sink.poke(worker);
            }
        }
    }

    /// Closes idle servers that are beyond a limit that has fallen.
    pub(crate) fn end_idle_beyond_limit(&mut self, now: Now, sink: &mut dyn Sink) {
        if self.idle_servers == 0 || self.ledger.busy() <= self.ledger.configured() {
            return;
        }
        for id in self.servers.ids() {
            let Some(server) = self.servers.get(id) else { continue };
            let is_idle = matches!(server.state, server::State::Idle);
            if is_idle && server.permit.as_ref().is_some_and(|permit| self.ledger.is_over(permit)) {
                self.retire(id, now, sink);
            }
        }
    }

    /// Whether another worker serves under this number.
    pub(crate) fn is_other(&self, worker: WorkerId) -> bool {
        worker != self.ledger.me() && self.ledger.is_alive(worker)
    }
}
