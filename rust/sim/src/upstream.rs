//! The servers' steps: connections are made, bytes are read, statements run, faults strike.
//!
//! A backend whose connection is closed ends by itself as soon as it notices: when it reads, when
//! it writes, when a signal ends what it runs. Time does not pass it by: that is what the core's
//! reclaim relies on. Next on the path: `server.rs`.

use std::rc::Rc;

use proxy_core::ids::Conn;
use proxy_core::sink::Gone;

use crate::server::Server;
use crate::wire::Wire;
use crate::workers::Life;
use crate::world::World;

/// Backends without a connection act within this, in microseconds: well below the time that a
/// reclaim gives them behind its signal.
const PROMPT_US: u64 = 40_000;

impl World {
    /// A backend that a worker's connection has reached.
    fn accepted(&mut self, worker: usize, wire: usize, for_cancel: bool) {
        let pid = 1000 + self.servers.len() as u32;
        let settings = self.settings_of(self.workers[worker].epoch);
        let server = Server::new(wire, pid, self.plan.server_auth, settings, for_cancel);
        self.servers.push(server);
    }

    /// An attempt to connect was given up: the server may have accepted it all the same.
    pub(crate) fn accepted_too_late(&mut self, worker: usize) {
        if self.rng.percent(50) {
            let wire = self.net.open_closed();
            self.net.note(|| format!("a server accepts what worker {worker} has given up"));
            self.accepted(worker, wire, false);
        }
    }

    pub(crate) fn connect_ends(&mut self) {
        let mut candidates = Vec::new();
        for at in self.running() {
            let under_way = self.net.desks[at].connecting.iter();
            candidates.extend(under_way.map(|conn| (at, *conn)));
        }
        if candidates.is_empty() {
            return;
        }
        let (at, conn) = self.rng.pick(&candidates);
        let refused = self.stormy && self.plan.faults && self.rng.percent(15);
        if refused {
            self.leave.faults = true;
            self.net.desks[at].connecting.retain(|other| *other != conn);
            let why = Gone::Refused(std::io::ErrorKind::ConnectionRefused);
            return self.tell_end(at, conn, why);
        }
        self.connected(at, conn);
    }

    fn connected(&mut self, at: usize, conn: Conn) {
        self.net.desks[at].connecting.retain(|other| *other != conn);
        let wire = self.net.open(at, conn);
        self.net.note(|| format!("{conn:?} of {at} is connected, server {}", self.servers.len()));
        self.accepted(at, wire, matches!(conn, Conn::Canceller(_)));
        self.call(at, |core, now, net| match conn {
            Conn::Server(id) => core.handle_server_connected(id, now, net),
            Conn::Canceller(id) => core.handle_canceller_connected(id, now, net),
            Conn::Client(_) => {}
        });
    }

    pub(crate) fn server_reads(&mut self) {
        let candidates: Vec<usize> = (0..self.servers.len())
            .filter(|at| {
                let server = &self.servers[*at];
                !server.ended && !self.net.wires[server.wire].to_peer.is_empty()
            })
            .collect();
        let Some(at) = self.pick(&candidates) else { return };
        let wire = &mut self.net.wires[self.servers[at].wire];
        let bytes = Wire::cut(&mut wire.to_peer, &mut self.rng);
        self.server_gets(at, &bytes);
    }

    fn server_gets(&mut self, at: usize, bytes: &[u8]) {
        let full = self.full();
        let server = &mut self.servers[at];
        let had_ended = server.ended;
        let index = server.wire;
        let wire = &mut self.net.wires[index];
        let settings = match wire.owner {
            Some((worker, _)) => {
                let epoch = self.workers[worker].epoch as usize;
                Rc::clone(&self.published[epoch.saturating_sub(1)])
            }
            None => Rc::clone(&server.settings),
        };
        if let Err(why) = server.read(bytes, wire, (&settings, &full), &mut self.rng) {
            self.net.fail(format!("server {at}: {why}"));
        }
        if server.refused && !had_ended {
            self.note_refusal(at);
        }
        self.drained(index);
    }

    pub(crate) fn server_works(&mut self) {
        let candidates: Vec<usize> = (0..self.servers.len())
            .filter(|at| {
                let server = &self.servers[*at];
                server.can_work(&self.net.wires[server.wire], self.now)
            })
            .collect();
        let Some(at) = self.pick(&candidates) else { return };
        if self.stormy && self.servers[at].is_ready() && self.rng.permille(10) {
            self.servers[at].chatter(&mut self.rng);
        }
        self.work(at);
    }

    fn work(&mut self, at: usize) {
        let server = &self.servers[at];
        if let Some((pid, secret)) = server.cancels() {
            let found = self.servers.iter().position(|other| {
                other.pid == pid && other.secret == secret && other.is_ready() && !other.ended
            });
            let hit = found.is_some_and(|found| {
                let backend = &mut self.servers[found].backend;
                backend.cancel()
            });
            self.net.note(|| format!("server {at} carries a signal to {found:?}: {hit}"));
        }
        let server = &mut self.servers[at];
        let wire = &mut self.net.wires[server.wire];
        if server.cancels().is_some() {
            return server.end(wire);
        }
        server.work(wire, self.now, &mut self.rng);
        self.began = server.backend.began.take().or(self.began);
        if let Some(why) = server.backend.violations.pop() {
            self.net.fail(format!("server {at}: {why}"));
        }
    }

    fn is_bereaved(&self, server: &Server) -> bool {
        !server.ended && self.net.wires[server.wire].closed
    }

    /// Before time passes up to `then`, backends without a connection have done what they can.
    pub(crate) fn keep_pace(&mut self, then: u64) {
        if then < self.prompt_at {
            return;
        }
        self.prompt_at = self.now + PROMPT_US;
        for at in 0..self.workers.len() {
            if matches!(self.workers[at].life, Life::Buried) {
                self.empty_inbox(at);
            }
        }
        self.run_out_bereaved();
    }

    /// The next time that passes waits for whoever is to be prompt.
    pub(crate) fn be_prompt(&mut self) {
        self.prompt_at = 0;
    }

    fn run_out_bereaved(&mut self) {
        for at in 0..self.servers.len() {
            while self.is_bereaved(&self.servers[at]) {
                let wire = &mut self.net.wires[self.servers[at].wire];
                let bytes: Vec<u8> = wire.to_peer.drain(..).collect();
                if !bytes.is_empty() {
                    self.server_gets(at, &bytes);
                }
                let server = &self.servers[at];
                if !server.can_work(&self.net.wires[server.wire], self.now) {
                    break;
                }
                self.work(at);
            }
        }
    }

    pub(crate) fn fault(&mut self) {
        if !self.plan.faults {
            return;
        }
        let candidates: Vec<usize> = (0..self.servers.len())
            .filter(|at| {
                let server = &self.servers[*at];
                !server.ended && !self.net.wires[server.wire].closed
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
