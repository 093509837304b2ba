//! New settings: an epoch is taken over whole, between two inputs, and nobody is dropped for it.
//!
//! Servers that the new settings would have opened otherwise are replaced when they are at rest;
//! clients whose user is gone end at their next idle point. Next on the path: `config.rs`.

use std::collections::BTreeSet;
use std::rc::Rc;

use crate::client;
use crate::config::{Config, Credential};
use crate::core::Core;
use crate::errors::{ADMIN_SHUTDOWN, Failure};
use crate::ids::ClientId;
use crate::pool::{Backoff, PoolId, Target};
use crate::server;
use crate::sink::{Address, Now, Sink};

/// The targets of a configuration, with what is known of those that were there before.
pub(crate) fn targets_of(config: &Config, before: &[Target]) -> Vec<Target> {
    let known = |address: &Address| before.iter().find(|target| *target.address == *address);
    let target = |address: &Address| match known(address) {
        Some(target) => Target { address: Rc::clone(&target.address), backoff: target.backoff },
        None => Target { address: Rc::new(address.clone()), backoff: Backoff::default() },
    };
    config.targets.iter().map(target).collect()
}

/// Whether servers opened for the one serve the other as well.
fn has_same_login(before: &Credential, after: &Credential) -> bool {
    let password = |credential: &Credential| {
        credential.server_password.as_ref().map(|secret| secret.expose().to_vec())
    };
    before.server_user == after.server_user && password(before) == password(after)
}

impl Core {
    /// Works by these settings from now on; `epoch` counts them over the service.
    pub fn handle_settings(&mut self, config: Config, epoch: u64, now: Now, sink: &mut dyn Sink) {
        let before = std::mem::replace(&mut self.config, config);
        self.epoch = epoch;
        self.targets = targets_of(&self.config, &self.targets);
        if before.limit != self.config.limit {
            // Who published these settings has set it; these may not be the newest ones.
            self.budget_changed(self.ledger.allowed(), now, sink);
        }
        self.end_idle_beyond_limit(now, sink);
        self.server_keys.clear();
        let outdated = self.outdated_pools(&before);
        self.replace_servers(&outdated, now, sink);
        for id in std::mem::take(&mut self.awaiting_keys) {
            // Their number among the credentials may be another one now.
            self.continue_server_scram(id, now, sink);
        }
        self.end_clients_of_removed_users(now, sink);
        self.count_paused();
        for id in self.pools.ids() {
            self.grow(id, now, sink);
        }
        self.settle(now, sink);
    }

    /// Brings each pool up to date; gives those whose servers must be replaced.
    fn outdated_pools(&mut self, before: &Config) -> BTreeSet<PoolId> {
        let mut outdated = BTreeSet::new();
        let init_changed = before.init_query != self.config.init_query;
        for id in self.pools.ids() {
            let Some(pool) = self.pools.get_mut(id) else { continue };
            let was = before.credential(&pool.key.user).map(|(_, credential)| credential);
            let is = self.config.credential(&pool.key.user).map(|(_, credential)| credential);
            let same = was.zip(is).is_some_and(|(was, is)| has_same_login(was, is));
            let serial = self.config.reconnect_serial(&pool.key.database);
            let paused = self.config.is_paused(&pool.key.database);
            if init_changed || !same || serial > pool.serial || paused {
                outdated.insert(id);
            }
            pool.serial = serial;
            pool.paused = paused;
        }
        outdated
    }

    fn replace_servers(&mut self, outdated: &BTreeSet<PoolId>, now: Now, sink: &mut dyn Sink) {
        for id in self.servers.ids() {
            let Some(server) = self.servers.get_mut(id) else { continue };
            let has_target = self.targets.iter().any(|target| target.address == server.address);
            if has_target && !outdated.contains(&server.pool) {
                continue;
            }
            server.unfit = true;
            if matches!(server.state, server::State::Idle) {
                self.retire(id, now, sink);
            }
        }
    }

    fn end_clients_of_removed_users(&mut self, now: Now, sink: &mut dyn Sink) {
        for id in self.clients.ids() {
            let Some(client) = self.clients.get_mut(id) else { continue };
            let Some(session) = client.session.as_deref_mut() else { continue };
            let Some(pool) = self.pools.get(session.pool) else { continue };
            session.dismissed = self.config.credential(&pool.key.user).is_none();
            if !session.dismissed {
                continue;
            }
            if matches!(client.state, client::State::Waiting { .. }) {
                // Nothing of its request was sent, and no server can be opened for it any more.
                self.end_client(id, &removed(), now, sink);
            } else {
                self.dismiss(id, now, sink);
            }
        }
    }

    /// Ends a client whose time has come, if it is at an idle point.
    pub(crate) fn dismiss(&mut self, id: ClientId, now: Now, sink: &mut dyn Sink) {
        let Some(client) = self.clients.get(id) else { return };
        if client.held.is_empty() && self.is_at_idle_point(client) {
            let failure = self.dismissal(client);
            self.end_client(id, &failure, now, sink);
        }
    }

    /// Whether a client is to end at its next idle point.
    pub(crate) fn is_dismissed(&self, client: &client::Client) -> bool {
        self.stopping || client.session.as_ref().is_some_and(|session| session.dismissed)
    }

    fn dismissal(&self, client: &client::Client) -> Failure {
        if self.stopping || client.session.as_ref().is_none_or(|session| !session.dismissed) {
            return crate::errors::shutdown();
        }
        removed()
    }

    /// Ends every client of a database (`*` = of all) with 57P01, whatever it does, and closes its
    /// servers; gives the number of clients.
    pub fn handle_kill(&mut self, database: &str, now: Now, sink: &mut dyn Sink) -> u32 {
        let is_meant = |id: PoolId| {
            let pool = self.pools.get(id);
            pool.is_some_and(|pool| database == "*" || *pool.key.database == *database.as_bytes())
        };
        let pools: BTreeSet<PoolId> =
            self.pools.ids().into_iter().filter(|id| is_meant(*id)).collect();
        let of_pools = |client: &client::Client| {
            client.session.as_ref().is_some_and(|session| pools.contains(&session.pool))
        };
        let clients: Vec<ClientId> =
            self.clients.iter().filter(|(_, client)| of_pools(client)).map(|(id, _)| id).collect();
        for id in &clients {
            self.end_client(*id, &killed(), now, sink);
        }
        for id in self.servers.ids() {
            if self.servers.get(id).is_some_and(|server| pools.contains(&server.pool)) {
                self.retire(id, now, sink);
            }
        }
        self.settle(now, sink);
        u32::try_from(clients.len()).unwrap_or(u32::MAX)
    }

    /// Ends one client with 57P01 and cancels what it runs; gives 1 if it is here, else 0.
    pub fn kill_client(&mut self, number: u64, now: Now, sink: &mut dyn Sink) -> u32 {
        let found = self.clients.iter().find(|(_, client)| client.number == number);
        let Some((id, client)) = found else { return 0 };
        let server = client.server();
        self.end_client(id, &killed(), now, sink);
        if let Some(server) = server {
            if self.servers.get(server).is_some_and(|server| server.is_busy()) {
                self.retire(server, now, sink);
            }
        }
        self.settle(now, sink);
        1
    }

    /// Counts the servers of paused pools, which whoever asked for the pause waits for.
    pub(crate) fn count_paused(&self) {
        if self.config.paused.is_empty() {
            return self.ledger.set_paused_busy(0);
        }
        let is_paused =
            |server: &server::Server| self.pools.get(server.pool).is_some_and(|pool| pool.paused);
        let count = self.servers.iter().filter(|(_, server)| is_paused(server)).count();
        self.ledger.set_paused_busy(count);
    }
}

fn removed() -> Failure {
    killed().detail("The user was removed from the proxy's configuration.")
}

fn killed() -> Failure {
    Failure::fatal(ADMIN_SHUTDOWN, "terminating connection due to administrator command")
}
