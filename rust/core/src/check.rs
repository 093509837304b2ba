//! The invariants, as a check that debug builds and the simulator run after each call.
//!
//! A failure here is a bug of ours, so it panics; nothing a peer sends may ever lead here (I7).

use crate::client;
use crate::core::Core;
use crate::server;

impl Core {
    /// Panics if what must always hold does not (I1, I2, I4, I5, and the book-keeping behind them).
    pub fn check_invariants(&self) {
        self.check_links();
        self.check_pools();
        for (_, server) in self.servers.iter() {
            let is_leaving = matches!(server.state, server::State::Leaving { .. });
            assert_eq!(server.permit.is_none(), is_leaving, "I4: a server without a permit");
            let is_valid = |permit| self.ledger.is_valid(permit);
            assert!(server.permit.as_ref().is_none_or(is_valid), "I4: another's permit");
        }
        assert!(self.resume.is_empty(), "a client was left behind whose turn had come");
    }

    fn check_links(&self) {
        for (id, server) in self.servers.iter() {
            match server.state {
                server::State::Linked { client } => {
                    let back = self.clients.get(client).and_then(client::Client::server);
                    assert_eq!(back, Some(id), "I2: a server's client has another server");
                }
                server::State::Idle => {
                    assert!(
                        server.is_at_rest(),
                        "I1: a server in the pool is not at rest: {server:?}"
                    );
                    assert!(!server.unfit && server.stream_left == 0, "I1: unfit in the pool");
                }
                _ => {}
            }
            let readies = server.owed.iter().filter(|owed| owed.kind.ends_with_ready()).count();
            assert_eq!(readies, server.owed.readies(), "owed ReadyForQuery are miscounted");
        }
        for (id, client) in self.clients.iter() {
            if let client::State::Linked { server } = client.state {
                let back = self.servers.get(server).and_then(server::Server::client);
                assert_eq!(back, Some(id), "I2: a client's server has another client");
            }
            if !matches!(client.state, client::State::Linked { .. }) {
                let pinned = client.session.as_ref().is_some_and(|s| s.pin.is_set());
                assert!(!pinned, "I3: a pinned client without its server");
            }
            if let client::State::Waiting { .. } = client.state {
                assert!(client.timer.deadline() < crate::timer::NEVER, "I6: an endless wait");
            }
        }
    }

    fn check_pools(&self) {
        let mut connecting = 0;
        for (id, pool) in self.pools.iter() {
            let live = |ticket, client| {
                self.clients
                    .get(client)
                    .is_some_and(|client: &client::Client| client.waits_with(ticket))
            };
            let waiters = pool.waiters();
            let waiting = waiters.iter().filter(|(t, c)| live(*t, *c)).count();
            assert_eq!(waiting, pool.waiting() as usize, "I6: waiters are miscounted");
            assert!(waiters.is_sorted_by_key(|(ticket, _)| *ticket), "I5: the queue is unordered");
            assert!(
                waiting == 0 || pool.paused || pool.idle.is_empty(),
                "I5: waiters beside idle servers"
            );
            let owned = |server: &&server::Server| {
                server.pool == id
                    && !matches!(
                        server.state,
                        server::State::Closing | server::State::Leaving { .. }
                    )
            };
            let servers = self.servers.iter().map(|(_, server)| server).filter(owned);
            let (all, fresh) = servers
                .fold((0, 0), |(all, fresh), server| (all + 1, fresh + u32::from(server.fresh)));
            assert_eq!((all, fresh), (pool.servers, pool.connecting), "a pool's servers differ");
            connecting += pool.connecting;
        }
        assert!(connecting as usize <= self.servers.len());
    }
}
