//! What must hold after each step, what must come true in the calm, and what must be left at the
//! end.
//!
//! The core checks its own state after each call (`check_invariants`); here it is judged from
//! outside. Next on the path: `rush.rs`.

use ledger::Limit;
use proxy_core::ids::Conn;

use crate::client::{Client, Stage};
use crate::net::{Desk, show};
use crate::server::Server;
use crate::settings;
use crate::workers::Life;
use crate::world::World;

/// Steps of calm after which whoever still waits waits for ever.
const CALM_STEPS: u64 = 400_000;
/// Back-off is over after this, and nobody waits for answers to a client that has left, in
/// microseconds.
const SETTLING_US: u64 = 6_000_000;
/// How often in the calm it is looked whether everybody is served.
const LOOK_EVERY: u64 = 64;

impl World {
    /// After each step: the budget as the servers see it (I4), over all workers.
    pub(crate) fn check_step(&mut self) {
        let is_server = |conn: &&Conn| matches!(conn, Conn::Server(_));
        let coming = self.net.desks.iter().flat_map(|desk| &desk.connecting);
        let coming = coming.filter(is_server).count();
        let open = self.servers.iter().filter(|server| server.is_living()).count();
        let allowed = self.page.configured() as usize;
        // What a fallen limit finds may stay for a while; no more may come.
        if open + coming > allowed.max(self.living) {
            let why = format!("I4: {open} + {coming} server connections of {allowed}");
            self.net.fail(why);
        }
        self.living = open + coming;
        self.check_limit(allowed);
        self.check_paused();
    }

    /// The limit is that of the newest settings, whichever the workers have.
    fn check_limit(&mut self, allowed: usize) {
        let epoch = self.published.len() as u64;
        let is_right = match self.settings_of(epoch).limit {
            Limit::Connections(limit) => allowed == limit as usize,
            // Unknown, or of the 5 connections that the servers leave to users.
            Limit::Percent(percent) => allowed == 1 || allowed == 5 * usize::from(percent) / 100,
        };
        if !is_right {
            self.net.fail(format!("the limit is {allowed}, which epoch {epoch} does not say"));
        }
    }

    /// Whoever waits for a pause is not told too early that it is complete.
    fn check_paused(&mut self) {
        for at in self.running() {
            let config = self.settings_of(self.workers[at].epoch);
            if config.paused.is_empty() || self.page.worker_view(at as u8).paused_busy > 0 {
                continue;
            }
            let open = |server: &&Server| {
                let owner = self.net.wires[server.wire].owner;
                server.is_living()
                    && owner.is_some_and(|(worker, _)| worker == at)
                    && config.is_paused(server.database.as_bytes())
                    && server.is_ready()
            };
            if let Some(server) = self.servers.iter().find(open) {
                let pid = server.pid;
                self.net.fail(format!("worker {at} calls a pause complete and has server {pid}"));
            }
        }
    }

    /// A client's connection has ended from the proxy's side: there must be a reason.
    pub(crate) fn client_ended(&mut self, at: usize) {
        let leave = self.leave;
        let client = &mut self.clients[at];
        let stage = std::mem::replace(&mut client.stage, Stage::Over);
        self.net.wires[client.wire].finish();
        if stage == Stage::Cancel || leave.hostile || client.uncertain {
            return;
        }
        let tag = client.tag;
        let excused = client.told_fatal.is_some() || client.doomed || leave.faults;
        // The proxy waits for so long with the answers of a client that sends no more.
        let in_time = self.now < client.left_at + 5_000_000;
        if client.half_closed && in_time && !excused && !client.is_answered() {
            let why = format!("client {tag} half closed and was not answered to the end");
            return self.net.fail(why);
        }
        if !client.left && !excused && !leave.query_timeout {
            self.net.fail(format!("client {tag} was ended without a word"));
        }
    }

    /// The liveness phase: no more faults; everybody must be answered, then all leave and nothing
    /// is left.
    pub(crate) fn calm(&mut self) {
        self.stormy = false;
        self.leave_room();
        self.net.note(|| "the calm".to_owned());
        let newest = self.settings_of(self.published.len() as u64);
        let epoch = self.published.len() as u64 + 1;
        self.publish(settings::generous(&newest, &self.plan.config, epoch));
        if self.leave.hostile {
            // One that has claimed a long message may never end it: nobody is served by waiting.
            for server in self.servers.iter_mut().filter(|server| !server.ended) {
                server.ended = true;
                self.net.wires[server.wire].reset();
            }
        }
        for client in &mut self.clients {
            let wire = &mut self.net.wires[client.wire];
            if client.stage == Stage::Over || client.left || client.told_fatal.is_some() {
                continue;
            }
            if client.rude || client.uncertain || self.leave.hostile {
                client.left = true;
                wire.reset();
            } else if client.stage == Stage::Ready {
                client.conclude(wire);
            }
        }
        self.run_until("answers", |world| {
            world.clients.iter().all(|client| world.is_served(client))
        });
        self.run_until("the end of all clients", Self::are_clients_gone);
        self.run_until("the end of all logins", |world| {
            let ready = |server: &Server| !server.is_living() || server.is_ready();
            world.net.desks.iter().all(|desk| desk.connecting.is_empty())
                && world.servers.iter().all(ready)
        });
        let end = self.now + SETTLING_US;
        self.run_until("what is left of the storm", |world| world.now >= end);
        if self.net.failure.is_none() {
            self.rush();
        }
        self.run_until("the end of all clients", Self::are_clients_gone);
        self.run_until("servers at rest", Self::is_at_rest);
        self.check_servers();
    }

    fn are_clients_gone(&self) -> bool {
        let newest = self.published.len() as u64;
        self.workers.iter().all(|worker| match &worker.core {
            Some(core) => {
                worker.life == Life::Serves && worker.epoch == newest && core.stats().clients == 0
            }
            None => worker.life == Life::Buried && self.leave.stopping,
        })
    }

    fn is_served(&self, client: &Client) -> bool {
        let wire = &self.net.wires[client.wire];
        match client.stage {
            Stage::Over => true,
            _ if client.left && !client.half_closed => wire.closed,
            Stage::Ready if client.half_closed => false,
            Stage::Ready => client.is_answered(),
            Stage::Encryption | Stage::Login | Stage::Cancel => false,
        }
    }

    /// Every server waits for work, and the page says the same as the servers.
    fn is_at_rest(&self) -> bool {
        let idle = |server: &Server| {
            let wire = &self.net.wires[server.wire];
            server.ended && wire.closed
                || server.is_ready()
                    && server.backend.is_quiet()
                    && wire.to_peer.is_empty()
                    && wire.to_core.is_empty()
                    && wire.owner.is_some()
                    && !wire.to_peer_fin
        };
        let is_idle = |desk: &Desk| {
            desk.connecting.is_empty() && desk.passes.is_empty() && desk.answers.is_empty()
        };
        let settled = self.net.desks.iter().all(is_idle) && self.servers.iter().all(idle);
        // Once all workers have gone, nobody is left to reclaim what they held.
        settled && (self.running().is_empty() || self.is_page_settled())
    }

    fn is_page_settled(&self) -> bool {
        let view = self.page.budget_view();
        let living = self.servers.iter().filter(|server| server.is_living()).count();
        view.held as usize == living
            && view.connecting + view.transit + view.orphaned == 0
            && !self.page.others_want()
    }

    pub(crate) fn run_until(&mut self, what: &str, is_done: impl Fn(&Self) -> bool) {
        for step in 0..CALM_STEPS {
            if self.net.failure.is_some() {
                return;
            }
            if step % LOOK_EVERY == 0 && is_done(self) {
                return;
            }
            self.step += 1;
            self.dismiss_clients();
            self.take_step();
        }
        let dump = self.dump();
        self.net.fail(format!("I6: waiting for {what} in vain\n{dump}"));
    }

    /// Clients that finish their login in the calm ask as well; whoever has been answered goes, so
    /// that nobody waits for a pinned one.
    fn dismiss_clients(&mut self) {
        for client in &mut self.clients {
            if client.stage != Stage::Ready || client.left || client.told_fatal.is_some() {
                continue;
            }
            let wire = &mut self.net.wires[client.wire];
            if client.uncertain {
                client.left = true;
                wire.reset();
            } else if !client.is_answered() {
                continue;
            } else if client.readies == 0 && !self.leave.hostile {
                client.readies = 1;
                client.conclude(wire);
            } else {
                client.terminate(wire);
            }
        }
    }

    /// With no client left, no server holds anything of any.
    fn check_servers(&mut self) {
        if self.net.failure.is_some() {
            return;
        }
        for (at, server) in self.servers.iter().enumerate() {
            if server.ended || !server.is_ready() {
                continue;
            }
            let foreign = server.backend.session.foreign_to(u32::MAX);
            let status = server.backend.status();
            if foreign.is_some() || status != b'I' {
                let status = char::from(status);
                let why = format!("server {at} is left in {status} with {foreign:?}");
                return self.net.fail(why);
            }
            let strange = server
                .backend
                .statements
                .keys()
                .find(|name| !name.is_empty() && !name.starts_with(b"_pyproxy_"));
            if let Some(name) = strange {
                let why = format!("server {at} is left with a client's statement {}", show(name));
                return self.net.fail(why);
            }
        }
        self.check_settings();
        for at in self.running() {
            if self.page.worker_view(at as u8).paused_busy > 0 {
                return self.net.fail(format!("worker {at} still counts servers of paused pools"));
            }
            self.call(at, |core, now, net| core.handle_stop_now(now, net));
        }
    }

    /// No server is left that the newest settings would have opened otherwise.
    fn check_settings(&mut self) {
        let newest = self.settings_of(self.published.len() as u64);
        let is_old = |server: &&Server| {
            let before = &server.settings;
            let database = server.database.as_bytes();
            let version = settings::password_version(&newest, &server.user);
            server.is_living()
                && (server.password.is_some() && server.password != version
                    || before.init_query != newest.init_query
                    || before.reconnect_serial(database) < newest.reconnect_serial(database))
        };
        if self.running().is_empty() {
            return;
        }
        if let Some(server) = self.servers.iter().find(is_old) {
            let pid = server.pid;
            self.net.fail(format!("server {pid} of older settings was not replaced"));
        }
    }

    /// Who stands where.
    pub(crate) fn dump(&self) -> String {
        let mut lines = vec![format!("now {} {:?}", self.now, self.page.budget_view())];
        for (at, worker) in self.workers.iter().enumerate() {
            let desk = &self.net.desks[at];
            lines.push(format!(
                "worker {at} {:?} epoch {} {:?} connecting {:?} passes {:?} answers {:?} mail {:?}",
                worker.life,
                worker.epoch,
                worker.core.as_ref().map(proxy_core::core::Core::stats),
                desk.connecting,
                desk.passes,
                desk.answers,
                desk.inbox,
            ));
        }
        for client in &self.clients {
            let wire = &self.net.wires[client.wire];
            if client.stage == Stage::Over {
                continue;
            }
            lines.push(format!(
                "client {} {:?} {:?} left {} answered {} paused {} to_core {} to_peer {} fin {} \
                 shadow {} inbox {:?} out {:?}",
                client.tag,
                client.stage,
                wire.owner,
                client.left,
                client.is_answered(),
                wire.paused,
                wire.to_core.len(),
                wire.to_peer.len(),
                wire.to_peer_fin,
                char::from(client.shadow.status()),
                client.shadow.inbox().iter().map(|m| char::from(m.0)).collect::<String>(),
                client.shadow.out.iter().map(|m| char::from(m[0])).collect::<String>(),
            ));
        }
        for (at, server) in self.servers.iter().enumerate().filter(|(_, s)| !s.ended) {
            let wire = &self.net.wires[server.wire];
            lines.push(format!(
                "server {at} {:?} {} quiet {} paused {} to_core {} to_peer {} fin {} last {:?}",
                wire.owner,
                char::from(server.backend.status()),
                server.backend.is_quiet(),
                wire.paused,
                wire.to_core.len(),
                wire.to_peer.len(),
                wire.to_peer_fin,
                server.backend.last_tag,
            ));
        }
        lines.join("\n")
    }
}
