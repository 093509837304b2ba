//! What must hold after each step, what must come true in the calm, and what must be left at the
//! end.
//!
//! The core checks its own state after each call (`check_invariants`); here it is judged from
//! outside. Next on the path: `campaign.rs`.

use proxy_core::ids::Conn;
use proxy_core::sink::Now;

use crate::client::{Client, Stage};
use crate::net::show;
use crate::world::World;

/// Steps of calm after which whoever still waits waits for ever.
const CALM_STEPS: u64 = 400_000;
/// How often in the calm it is looked whether everybody is served.
const LOOK_EVERY: u64 = 64;

impl World {
    /// After each step: the budget as the servers see it (I4).
    pub(crate) fn check_step(&mut self) {
        let is_server = |conn: &&Conn| matches!(conn, Conn::Server(_));
        let open = self.net.by_conn.keys().filter(is_server).count();
        let coming = self.net.connecting.iter().filter(is_server).count();
        if open + coming > self.allowed as usize {
            let allowed = self.allowed;
            self.net.fail(format!("I4: {open} + {coming} server connections of {allowed}"));
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
        let excused = client.told_fatal.is_some() || leave.faults;
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
        self.net.note(|| "the calm".to_owned());
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
        for client in &mut self.clients {
            if client.stage != Stage::Over && !client.left {
                client.terminate(&mut self.net.wires[client.wire]);
            }
        }
        self.run_until("the end of all clients", |world| world.core.stats().clients == 0);
        self.run_until("servers at rest", Self::are_servers_at_rest);
        self.check_servers();
    }

    fn is_served(&self, client: &Client) -> bool {
        let wire = &self.net.wires[client.wire];
        match client.stage {
            Stage::Over => true,
            _ if client.left && !client.half_closed => wire.conn.is_none(),
            Stage::Ready if client.half_closed => false,
            Stage::Ready => client.is_answered(),
            Stage::Encryption | Stage::Login | Stage::Cancel => false,
        }
    }

    fn are_servers_at_rest(&self) -> bool {
        self.net.connecting.is_empty()
            && self.servers.iter().all(|server| {
                let wire = &self.net.wires[server.wire];
                server.ended && wire.conn.is_none()
                    || server.is_ready()
                        && server.backend.is_quiet()
                        && wire.to_peer.is_empty()
                        && wire.to_core.is_empty()
                        && wire.conn.is_some()
                        && !wire.to_peer_fin
            })
    }

    fn run_until(&mut self, what: &str, is_done: impl Fn(&Self) -> bool) {
        for step in 0..CALM_STEPS {
            if self.net.failure.is_some() {
                return;
            }
            if step % LOOK_EVERY == 0 && is_done(self) {
                return;
            }
            self.step += 1;
            self.answer_new_arrivals();
            self.take_step();
        }
        let dump = self.dump();
        self.net.fail(format!("I6: waiting for {what} in vain\n{dump}"));
    }

    /// Clients that finish their login in the calm ask as well.
    fn answer_new_arrivals(&mut self) {
        for client in &mut self.clients {
            if client.uncertain && !client.left && client.stage == Stage::Ready {
                client.left = true;
                self.net.wires[client.wire].reset();
            }
            let is_new =
                client.stage == Stage::Ready && client.readies == 0 && client.is_answered();
            if is_new && !client.left && client.told_fatal.is_none() && !self.leave.hostile {
                client.readies = 1;
                client.conclude(&mut self.net.wires[client.wire]);
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
        self.core.handle_stop_now(Now(self.now), &mut self.net);
        self.settle();
    }

    /// Who stands where.
    fn dump(&self) -> String {
        let mut lines = vec![format!("now {} {:?}", self.now, self.core.stats())];
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
                wire.conn,
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
                wire.conn,
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
