//! Lending: who gets which server, when one is opened, and when one is closed.
//!
//! A client that needs a server gets an idle one, or waits first in, first out (I5); whoever
//! returns a server hands it straight to the oldest waiter. Connections are opened while there are
//! waiters and permits, two at a time a pool; a pool without permits takes the least recently used
//! idle server of another pool. Next on the path: `server.rs`, `pg/replies.rs`.

use std::rc::Rc;

use ledger::{GRANT_GRACE_US, Refused};

use crate::client;
use crate::config::PoolMode;
use crate::core::Core;
use crate::errors::{CONNECTION_EXCEPTION, Failure};
use crate::ids::{ClientId, ClientTag, Conn, ServerId, Slab};
use crate::limits::{
    ABANDONED_MS, BUDGET_REREAD_MS, CLOSING_MS, CONNECTS_IN_FLIGHT_MAX, EXCESS_IDLE_MS,
    STARVED_LOOK_MS, STOPPING_CLOSING_MS,
};
use crate::pool::PoolId;
use crate::server::{self, Server, Task};
use crate::sink::{Address, Now, Sink};
use crate::timer::{NEVER, Owner};

/// A pool whose oldest waiter has waited this much longer than another pool's gets that pool's
/// server.
const TICKETS_OVERTAKEN_MAX: u64 = 64;

/// What came of asking for a server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Borrow {
    Linked(ServerId),
    Waits,
    /// The request was refused and the client told.
    Refused,
}

impl Core {
    /// Gives an idle client a server, or puts it into the queue.
    pub(crate) fn borrow(&mut self, id: ClientId, now: Now, sink: &mut dyn Sink) -> Borrow {
        let Some(pool_id) = self.session_mut(id).map(|session| session.pool) else {
            return Borrow::Refused;
        };
        // A paused pool has no idle servers, and gets none.
        while let Some(server_id) = self.take_idle(id, pool_id) {
            self.count_idle(-1);
            let Some(server) = self.servers.get_mut(server_id) else { continue };
            if now >= server.expires || server.unfit {
                self.retire(server_id, now, sink);
            } else if now.since(server.since) > self.config.check_delay_ms * 1000 {
                server.needs.check = true;
                self.next_task(server_id, now, sink);
            } else {
                self.link(id, server_id, now, sink);
                return Borrow::Linked(server_id);
            }
        }
        self.wait_in_queue(id, pool_id, now, sink)
    }

    /// Takes an idle server out of its pool: one that has the client's variables if there is one,
    /// else one that has none, else the one used last.
    fn take_idle(&mut self, id: ClientId, pool_id: PoolId) -> Option<ServerId> {
        let session = self.clients.get(id)?.session.as_deref()?;
        let pool = self.pools.get_mut(pool_id)?;
        let servers = &self.servers;
        let variables = |id: &ServerId| servers.get(*id).map(|server| &server.variables);
        let has_same = |id: &ServerId| variables(id).is_some_and(|v| session.variables.same(v));
        let has_none = |id: &ServerId| variables(id).is_some_and(|v| v.is_empty());
        let last = pool.idle.last()?;
        if has_same(last) {
            return pool.idle.pop();
        }
        let at = pool.idle.iter().rposition(has_same);
        let at = at.or_else(|| pool.idle.iter().rposition(has_none));
        Some(pool.idle.remove(at.unwrap_or(pool.idle.len() - 1)))
    }

    fn wait_in_queue(
        &mut self,
        id: ClientId,
        pool_id: PoolId,
        now: Now,
        sink: &mut dyn Sink,
    ) -> Borrow {
        self.next_ticket += 1;
        let ticket = self.next_ticket;
        if self.config.borrow_timeout_ms == 0 {
            // The pool is told all the same, or its first connection would never be made.
            self.grow_by(pool_id, 1, now, sink);
            let failure = self.borrow_failure(pool_id, 0);
            self.refuse(id, &failure, sink);
            return Borrow::Refused;
        }
        let Some(client) = self.clients.get_mut(id) else { return Borrow::Refused };
        client.state = client::State::Waiting { ticket, notified: false };
        client.since = now;
        let notify = self.config.query_wait_notify_ms;
        let first = if notify == 0 { u64::MAX } else { notify };
        let deadline = now.plus_ms(first.min(self.config.borrow_timeout_ms));
        self.wheel.set(&mut client.timer, Owner::Client(id), deadline);
        if let Some(pool) = self.pools.get_mut(pool_id) {
            pool.enqueue(ticket, id);
        }
        // A pool that found no permit is told when one comes free.
        if !self.hungry.contains(&pool_id) {
            self.grow(pool_id, now, sink);
        }
        Borrow::Waits
    }

    /// RDS Proxy's words first, then the pool, its numbers and the cause.
    pub(crate) fn borrow_failure(&self, pool_id: PoolId, waited_ms: u64) -> Failure {
        let failure = Failure::error(
            CONNECTION_EXCEPTION,
            "Timed-out waiting to acquire database connection.",
        );
        let Some(pool) = self.pools.get(pool_id) else { return failure };
        let busy = pool.servers as usize - pool.idle.len() - pool.connecting as usize;
        let mut detail = format!(
            "Pool {} of proxy {}: {} of {} server connections in use, {busy} by this pool, \
             {} clients waiting; waited {waited_ms} ms of connection_borrow_timeout {} ms.",
            pool.name,
            self.config.name,
            self.ledger.busy(),
            self.ledger.allowed(),
            pool.waiting(),
            self.config.borrow_timeout_ms,
        );
        if let Some(cause) = &pool.last_failure {
            detail.push_str(" The last attempt to connect failed: ");
            detail.push_str(cause);
        }
        let hint = if pool.last_failure.is_some() {
            format!("Check that {} accepts connections.", self.config.target_name)
        } else {
            "Raise max_connections or connection_borrow_timeout, or look for long transactions and \
             pinned clients."
                .to_owned()
        };
        failure.detail(detail).hint(hint)
    }

    /// Makes a client and a server each other's.
    pub(crate) fn link(
        &mut self,
        id: ClientId,
        server_id: ServerId,
        now: Now,
        sink: &mut dyn Sink,
    ) {
        let Some(client) = self.clients.get_mut(id) else { return };
        let Some(server) = self.servers.get_mut(server_id) else { return };
        let Some(session) = client.session.as_deref_mut() else { return };
        client.state = client::State::Linked { server: server_id };
        client.since = now;
        client.timer.clear();
        if client.eof {
            // It may have sent less than it began: it gets its answers for a while only.
            let deadline = now.plus_ms(ABANDONED_MS);
            self.wheel.set(&mut client.timer, Owner::Client(id), deadline);
        }
        server.state = server::State::Linked { client: id };
        server.since = now;
        server.timer.clear();
        session.batch_mark = server.statements.mark();
        self.stats.borrows += 1;
        let same_name = Rc::ptr_eq(&session.application_name, &server.application_name)
            || session.application_name == server.application_name;
        let congested = client.congested;
        self.restore(id, server_id, now, sink);
        if !same_name {
            self.send_application_name(id, server_id, sink);
        }
        if congested {
            self.pause_server(server_id, server::pause::PEER, true, sink);
        }
        if self.servers.get(server_id).is_some_and(|server| server.congested) {
            self.pause_client(id, client::pause::PEER, true, sink);
        }
    }

    /// Takes a server away from its client, which stays.
    pub(crate) fn unlink(&mut self, id: ClientId, server_id: ServerId, sink: &mut dyn Sink) {
        if let Some(client) = self.clients.get_mut(id) {
            client.state = client::State::Idle;
        }
        self.pause_client(id, client::pause::PEER, false, sink);
        self.pause_server(server_id, server::pause::PEER, false, sink);
    }

    /// A server that nobody uses and that needs no more work: to the oldest waiter, or to the idle
    /// ones.
    pub(crate) fn give_back(&mut self, server_id: ServerId, now: Now, sink: &mut dyn Sink) {
        let Some(server) = self.servers.get_mut(server_id) else { return };
        let pool_id = server.pool;
        let is_over = server.permit.as_ref().is_some_and(|permit| self.ledger.is_over(permit));
        let paused = self.pools.get(pool_id).is_some_and(|pool| pool.paused);
        if server.unfit || now >= server.expires || is_over || paused {
            return self.retire(server_id, now, sink);
        }
        let is_live = waits_in(&self.clients);
        let Some(pool) = self.pools.get_mut(pool_id) else { return };
        if !self.hungry.is_empty() {
            let oldest = pool.oldest_waiter(is_live).map(|(ticket, _)| ticket);
            if self.is_wanted_elsewhere(pool_id, oldest, now) {
                return self.retire(server_id, now, sink);
            }
        }
        if self.ledger.others_want() && self.give_to_other(server_id, pool_id, now, sink) {
            return;
        }
        let is_live = waits_in(&self.clients);
        let waiter = self.pools.get_mut(pool_id).and_then(|pool| pool.next_waiter(is_live));
        if let Some(waiter) = waiter {
            self.link(waiter, server_id, now, sink);
            // Its request is held still: until it has been sent, the server is not at rest.
            self.pause_client(waiter, client::pause::STALLED, true, sink);
            self.resume.push_back(waiter);
            return;
        }
        if self.stopping {
            return self.retire(server_id, now, sink);
        }
        if self.ledger.claim_limits_look(now.0, BUDGET_REREAD_MS * 1000) {
            return self.run_task(server_id, Task::Limits, now, sink);
        }
        self.put_to_rest(server_id, pool_id, now);
    }

    /// Keeps the number of idle servers, which other workers see.
    fn count_idle(&mut self, change: isize) {
        self.idle_servers = self.idle_servers.saturating_add_signed(change);
        self.ledger.set_idle(self.idle_servers);
    }

    /// Keeps the numbers of servers, which other workers and the supervisor see.
    pub(crate) fn count_servers(&mut self) {
        // One that leaves or ends is no help to this worker's clients any more.
        let leaves = |server: &Server| {
            matches!(server.state, server::State::Leaving { .. } | server::State::Closing)
        };
        let leaving = self.servers.iter().filter(|(_, server)| leaves(server)).count();
        let servers = self.servers.len() - leaving;
        let had_some = self.ledger.worker_servers(self.ledger.me()) > 0;
        self.ledger.set_servers(servers);
        // Others let a worker that has none have what they keep warm, too.
        self.renew_want |= had_some && servers == 0;
        self.count_paused();
    }

    fn put_to_rest(&mut self, server_id: ServerId, pool_id: PoolId, now: Now) {
        let Some(pool) = self.pools.get_mut(pool_id) else { return };
        pool.idle.push(server_id);
        self.count_idle(1);
        let Some(server) = self.servers.get_mut(server_id) else { return };
        server.state = server::State::Idle;
        server.since = now;
        let idle_end = match self.config.idle_timeout_ms {
            0 => NEVER,
            ms => now.plus_ms(ms),
        };
        let deadline = idle_end.min(server.expires);
        self.wheel.set(&mut server.timer, Owner::Server(server_id), deadline);
        self.trim_idle(pool_id, now);
    }

    /// With more idle servers than are to be kept, the least recently used one of this pool ends
    /// soon, unless it is needed before.
    pub(crate) fn trim_idle(&mut self, pool_id: PoolId, now: Now) {
        let percent = usize::from(self.config.max_idle_percent);
        let idle_max = (self.ledger.configured() as usize * percent / 100).max(1);
        // Within its own share a worker need not look at the others.
        let share = idle_max.div_ceil(self.config.workers.max(1) as usize);
        if self.idle_servers <= share || self.ledger.idle() <= idle_max as u64 {
            return;
        }
        let Some(oldest) = self.pools.get(pool_id).and_then(|pool| pool.idle.first()) else {
            return;
        };
        let Some(server) = self.servers.get_mut(*oldest) else { return };
        let deadline = now.plus_ms(EXCESS_IDLE_MS);
        if server.timer.deadline() > deadline {
            self.wheel.set(&mut server.timer, Owner::Server(*oldest), deadline);
        }
    }

    /// Whether a pool that cannot get a permit has an older claim to a server of `pool_id`.
    fn is_wanted_elsewhere(&mut self, pool_id: PoolId, own_oldest: Option<u64>, now: Now) -> bool {
        let Some(min) = self
            .pools
            .get(pool_id)
            .map(|pool| if pool.clients > 0 { self.config.min_share() } else { 0 })
        else {
            return false;
        };
        if self.closing as usize >= self.hungry.len() {
            return false;
        }
        let at_minimum = self.pools.get(pool_id).is_some_and(|pool| pool.servers <= min);
        let is_live = waits_in(&self.clients);
        let pools = &mut self.pools;
        self.hungry.iter().filter(|id| **id != pool_id).any(|id| {
            let Some(other) = pools.get_mut(*id) else { return false };
            if !other.backoff.is_over(now) {
                return false;
            }
            // A minimum keeps servers warm; it keeps nobody out who has none.
            if at_minimum && other.servers > 0 {
                return false;
            }
            let slack = if other.servers == 0 { 0 } else { TICKETS_OVERTAKEN_MAX };
            let theirs = other.oldest_claim(is_live).map(|(ticket, _)| ticket);
            match (theirs, own_oldest) {
                (Some(theirs), Some(own)) => theirs.saturating_add(slack) < own,
                (theirs, None) => theirs.is_some(),
                (None, Some(_)) => false,
            }
        })
    }

    /// Opens what a pool's waiters and its minimum want.
    pub(crate) fn grow(&mut self, pool_id: PoolId, now: Now, sink: &mut dyn Sink) {
        let Some(pool) = self.pools.get(pool_id) else { return };
        let wanted = pool.wanted(self.config.min_share());
        self.grow_by(pool_id, wanted, now, sink);
    }

    fn grow_by(&mut self, pool_id: PoolId, wanted: u32, now: Now, sink: &mut dyn Sink) {
        for _ in 0..wanted {
            let Some(pool) = self.pools.get_mut(pool_id) else { return };
            if pool.paused || pool.connecting >= CONNECTS_IN_FLIGHT_MAX {
                return;
            }
            if !pool.backoff.is_over(now) {
                let deadline = pool.backoff.not_before();
                self.wheel.set(&mut pool.timer, Owner::Pool(pool_id), deadline);
                // Another worker's server would help all the same.
                return self.hunger(pool_id);
            }
            let Some(target) = self.pick_target(now) else {
                return self.wait_for_target(pool_id);
            };
            if let Err(refused) = self.open_server(pool_id, &target, now, sink) {
                return self.starve(pool_id, refused, now, sink);
            }
        }
    }

    fn pick_target(&self, now: Now) -> Option<Rc<Address>> {
        let target = self.targets.iter().find(|target| target.backoff.is_over(now))?;
        Some(Rc::clone(&target.address))
    }

    fn wait_for_target(&mut self, pool_id: PoolId) {
        // Without any address the next settings bring one.
        let targets = self.targets.iter();
        let Some(first) = targets.map(|target| target.backoff.not_before()).min() else { return };
        let Some(pool) = self.pools.get_mut(pool_id) else { return };
        self.wheel.set(&mut pool.timer, Owner::Pool(pool_id), first);
    }

    fn open_server(
        &mut self,
        pool_id: PoolId,
        address: &Rc<Address>,
        now: Now,
        sink: &mut dyn Sink,
    ) -> Result<(), Refused> {
        let since = self.oldest_since(pool_id).unwrap_or(u64::MAX);
        let permit = self.ledger.take(now.0, since)?;
        let lifetime = self.config.max_lifetime_ms;
        let expires = if lifetime == 0 {
            NEVER
        } else {
            // Up to 10 % less, so that servers opened together do not end together.
            now.plus_ms(lifetime - self.rng.next_u64() % (lifetime / 10 + 1))
        };
        let server = Server::new(pool_id, permit, Rc::clone(address), now, expires);
        let id = self.servers.insert_with(|_| server);
        self.count_servers();
        if let Some(server) = self.servers.get_mut(id) {
            server.needs.limits = self.ledger.claim_limits_look(now.0, BUDGET_REREAD_MS * 1000);
            server.needs.init = !self.config.init_query.is_empty();
            let deadline = now.plus_ms(self.config.connect_timeout_ms);
            self.wheel.set(&mut server.timer, Owner::Server(id), deadline);
        }
        if let Some(pool) = self.pools.get_mut(pool_id) {
            pool.servers += 1;
            pool.connecting += 1;
            if let Some(server) = self.servers.get_mut(id) {
                server.serial = pool.serial;
            }
        }
        sink.connect(Conn::Server(id), address);
        Ok(())
    }

    /// Remembers a pool's need, for other workers to see.
    fn hunger(&mut self, pool_id: PoolId) {
        if !self.hungry.contains(&pool_id) {
            self.hungry.push(pool_id);
        }
        self.starving = true;
    }

    /// No permit is free: take the least recently used idle server of another pool, or remember the
    /// need.
    fn starve(&mut self, pool_id: PoolId, why: Refused, now: Now, sink: &mut dyn Sink) {
        self.hunger(pool_id);
        if let Some(pool) = self.pools.get_mut(pool_id) {
            let deadline = match why {
                Refused::Full => now.plus_ms(STARVED_LOOK_MS),
                Refused::Reserved => Now(now.0 + GRANT_GRACE_US),
            };
            self.wheel.set(&mut pool.timer, Owner::Pool(pool_id), deadline);
        }
        if self.idle_servers == 0 || self.closing as usize >= self.hungry.len() {
            return;
        }
        // A pool that has none and is asked for one may take what another only keeps warm.
        let may_take_warm = self
            .pools
            .get(pool_id)
            .is_some_and(|pool| pool.servers == 0 && (pool.waiting() > 0 || pool.is_welcoming()));
        let min = self.config.min_share();
        let victim = self
            .pools
            .iter()
            .filter(|(id, _)| *id != pool_id)
            .map(|(_, pool)| (pool.clients > 0 && pool.servers <= min, pool.idle.first()))
            .filter(|(is_warm, _)| !is_warm || may_take_warm)
            .filter_map(|(is_warm, oldest)| Some((is_warm, *oldest?)))
            .min_by_key(|(is_warm, id)| (*is_warm, self.servers.get(*id).map(|s| s.since)));
        if let Some((_, victim)) = victim {
            self.retire(victim, now, sink);
        }
    }

    /// A permit may have come free: the pools take what there is, whose client has waited longest
    /// first.
    pub(crate) fn feed(&mut self, now: Now, sink: &mut dyn Sink) {
        let mut hungry = std::mem::take(&mut self.hungry);
        let is_live = waits_in(&self.clients);
        let pools = &mut self.pools;
        hungry.sort_by_cached_key(|id| {
            let claim = pools.get_mut(*id).and_then(|pool| pool.oldest_claim(is_live));
            claim.map_or(u64::MAX, |(ticket, _)| ticket)
        });
        let mut hungry = hungry.into_iter();
        for pool_id in hungry.by_ref() {
            self.grow(pool_id, now, sink);
            // One that may not log in now keeps no permit from the others.
            let may_try = self.pools.get(pool_id).is_some_and(|pool| pool.backoff.is_over(now));
            if may_try && self.hungry.contains(&pool_id) {
                break;
            }
        }
        self.hungry.extend(hungry);
    }

    /// Ends a server that is at rest: Terminate, then its own end is awaited.
    pub(crate) fn retire(&mut self, server_id: ServerId, now: Now, sink: &mut dyn Sink) {
        let Some(server) = self.servers.get(server_id) else { return };
        match server.state {
            server::State::Closing | server::State::Leaving { .. } => return,
            server::State::Connecting => {
                sink.close(Conn::Server(server_id));
                return self.forget_server(server_id, false, now, sink);
            }
            _ => {}
        }
        if server.is_busy() {
            self.start_cancel(server_id, None, now, sink);
        } else {
            self.scratch.clear();
            pgwire::write::terminate(&mut self.scratch);
            sink.send_own(Conn::Server(server_id), &self.scratch);
        }
        self.await_end(server_id, now, sink);
    }

    /// Sends FIN to a server that ends, told to or by itself: once that is seen its permit is free.
    pub(crate) fn await_end(&mut self, server_id: ServerId, now: Now, sink: &mut dyn Sink) {
        sink.shutdown(Conn::Server(server_id));
        self.leave_pool(server_id);
        self.pause_server(server_id, server::pause::PEER, false, sink);
        let Some(server) = self.servers.get_mut(server_id) else { return };
        server.state = server::State::Closing;
        server.owed.clear();
        server.partial = Vec::new();
        self.closing += 1;
        let patience = if self.stopping { STOPPING_CLOSING_MS } else { CLOSING_MS };
        let deadline = now.plus_ms(patience);
        self.wheel.set(&mut server.timer, Owner::Server(server_id), deadline);
        self.count_servers();
    }

    /// The worker stops: the ends of connections that were told to end are awaited for less long.
    pub(crate) fn hasten_closing(&mut self, now: Now) {
        for id in self.servers.ids() {
            let Some(server) = self.servers.get_mut(id) else { continue };
            let deadline = now.plus_ms(STOPPING_CLOSING_MS);
            if matches!(server.state, server::State::Closing) && server.timer.deadline() > deadline
            {
                self.wheel.set(&mut server.timer, Owner::Server(id), deadline);
            }
        }
    }

    /// Takes a server out of the lists of its pool.
    pub(crate) fn leave_pool(&mut self, server_id: ServerId) {
        let Some(server) = self.servers.get_mut(server_id) else { return };
        let Some(pool) = self.pools.get_mut(server.pool) else { return };
        pool.servers -= 1;
        if std::mem::take(&mut server.fresh) {
            pool.connecting -= 1;
            // Nobody knows whether it would have told the target's limits.
            self.ledger.distrust_limits();
        }
        let before = pool.idle.len();
        pool.idle.retain(|id| *id != server_id);
        let left = before - pool.idle.len();
        self.count_idle(-isize::try_from(left).unwrap_or(0));
    }

    /// A server's connection is over. If its own end has been seen its permit is free again; else
    /// somebody has to make sure of it first.
    pub(crate) fn forget_server(
        &mut self,
        server_id: ServerId,
        has_ended: bool,
        now: Now,
        sink: &mut dyn Sink,
    ) {
        let Some(server) = self.servers.get(server_id) else { return };
        let pool_id = server.pool;
        // What was promised to this worker has broken on its way.
        self.renew_want |= matches!(server.state, server::State::Arriving);
        match server.state {
            server::State::Closing => self.closing -= 1,
            server::State::Leaving { .. } => {}
            _ => self.leave_pool(server_id),
        }
        self.awaiting_keys.retain(|id| *id != server_id);
        let Some(mut server) = self.servers.remove(server_id) else { return };
        self.count_servers();
        let permit = match server.state {
            server::State::Leaving { offer } => self.ledger.take_back(offer),
            _ => server.permit.take(),
        };
        match permit {
            Some(permit) if has_ended => self.free_permit(permit, now, sink),
            Some(permit) => self.orphan_permit(permit, now, sink),
            None => {}
        }
        self.grow(pool_id, now, sink);
        self.drop_pool_if_unused(pool_id);
    }

    /// A server has logged in and been set up.
    pub(crate) fn server_is_ready(&mut self, server_id: ServerId, now: Now, sink: &mut dyn Sink) {
        let Some(server) = self.servers.get_mut(server_id) else { return };
        let address = Rc::clone(&server.address);
        let Some(pool) = self.pools.get_mut(server.pool) else { return };
        if std::mem::take(&mut server.fresh) {
            let pool_id = server.pool;
            pool.connecting -= 1;
            pool.backoff.succeed();
            pool.last_failure = None;
            self.stats.server_logins += 1;
            if let Some(target) = self.targets.iter_mut().find(|target| target.address == address) {
                target.backoff.succeed();
            }
            self.note_pool_params(server_id, now, sink);
            self.give_back(server_id, now, sink);
            return self.grow(pool_id, now, sink);
        }
        self.give_back(server_id, now, sink);
    }

    /// What a server reports after its login is what new clients of its pool are told.
    pub(crate) fn note_pool_params(&mut self, server_id: ServerId, now: Now, sink: &mut dyn Sink) {
        let Some(server) = self.servers.get(server_id) else { return };
        let Some(pool) = self.pools.get_mut(server.pool) else { return };
        if pool.application_name != server.application_name {
            pool.application_name = Rc::clone(&server.application_name);
        }
        self.welcome_waiting(server_id, now, sink);
    }

    /// Clients that waited for a first server are told what this one reports.
    pub(crate) fn welcome_waiting(&mut self, server_id: ServerId, now: Now, sink: &mut dyn Sink) {
        let Some(server) = self.servers.get(server_id) else { return };
        let Some(pool) = self.pools.get_mut(server.pool) else { return };
        if server.variables.is_empty() {
            pool.params = Some(Rc::clone(&server.params));
        }
        for id in std::mem::take(&mut pool.welcoming) {
            self.welcome(id, now, sink);
        }
    }

    /// Drops a pool that has neither clients nor servers.
    pub(crate) fn drop_pool_if_unused(&mut self, pool_id: PoolId) {
        let unused = self
            .pools
            .get(pool_id)
            .is_some_and(|pool| pool.clients == 0 && pool.servers == 0 && pool.waiting() == 0);
        // A server that is closing still names its pool.
        if !unused || self.servers.iter().any(|(_, server)| server.pool == pool_id) {
            return;
        }
        self.hungry.retain(|id| *id != pool_id);
        if let Some(pool) = self.pools.remove(pool_id) {
            self.pool_by_key.remove(&pool.key);
        }
    }

    /// Starts the next piece of our own work on a server, or declares it ready.
    pub(crate) fn next_task(&mut self, server_id: ServerId, now: Now, sink: &mut dyn Sink) {
        let Some(server) = self.servers.get_mut(server_id) else { return };
        if server.unfit {
            return self.retire(server_id, now, sink);
        }
        let task = if server.status != b'I' {
            Task::Rollback
        } else if std::mem::take(&mut server.needs.reset) {
            Task::Reset
        } else if std::mem::take(&mut server.needs.limits) {
            Task::Limits
        } else if std::mem::take(&mut server.needs.init) {
            Task::Init
        } else if std::mem::take(&mut server.needs.check) {
            Task::Check
        } else {
            return self.server_is_ready(server_id, now, sink);
        };
        self.run_task(server_id, task, now, sink);
    }

    /// Whether the pool's clients keep their server until they leave.
    pub(crate) fn is_session_mode(&self) -> bool {
        self.config.mode == PoolMode::Session
    }
}

/// Tells which entries of a queue still wait.
pub(crate) fn waits_in(
    clients: &Slab<client::Client, ClientTag>,
) -> impl Fn(u64, ClientId) -> bool + Copy {
    |ticket, id| clients.get(id).is_some_and(|client| client.waits_with(ticket))
}
