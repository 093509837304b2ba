//! A pool: the servers of one (user, database, start-up parameters), and who waits for them.
//!
//! The servers of all pools share the target's budget. Waiters are served first in, first out (I5).
//! Next on the path: `lending.rs`.

use std::collections::VecDeque;
use std::rc::Rc;

use crate::ids::{ClientId, Id, ServerId};
use crate::keys::Keys;
use crate::limits::{BACKOFF_FIRST_MS, BACKOFF_MAX_MS};
use crate::params::{ParamSet, StartupParams};
use crate::prepared::Statements;
use crate::sink::{Address, Now};
use crate::timer::Timer;

/// Marker of pool ids.
#[derive(Debug)]
pub struct PoolTag;
/// A pool.
pub type PoolId = Id<PoolTag>;

/// What makes a pool: all that cannot be changed after a server's login.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct PoolKey {
    /// The client's user name.
    pub(crate) user: Box<str>,
    pub(crate) database: Box<[u8]>,
    pub(crate) params: StartupParams,
}

impl PoolKey {
    fn hash(&self, key: &[u8; 32]) -> u64 {
        let mut bytes = Vec::new();
        let parts = [self.user.as_bytes(), &self.database].into_iter();
        let params = self.params.0.iter().flat_map(|(name, value)| [&**name, &**value]);
        for part in parts.chain(params) {
            bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
            bytes.extend_from_slice(part);
        }
        let hash = auth::keyed_hash(key, &[&bytes]);
        hash.iter().take(8).fold(0, |hash, byte| hash << 8 | u64::from(*byte))
    }
}

/// One pool.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) key: PoolKey,
    /// Names the pool alike in every worker.
    pub(crate) hash: u64,
    /// Its clients get no server until it is resumed.
    pub(crate) paused: bool,
    /// Servers that were opened under a lower number are replaced.
    pub(crate) serial: u64,
    /// `user@database`, as people read it.
    pub(crate) name: String,
    /// What its servers report; none until the first has logged in.
    pub(crate) params: Option<Rc<ParamSet>>,
    /// What a server reports as `application_name` after login.
    pub(crate) application_name: Rc<[u8]>,
    pub(crate) statements: Statements,
    /// Idle servers, the last one used last.
    pub(crate) idle: Vec<ServerId>,
    waiters: VecDeque<(u64, ClientId)>,
    /// Live entries of `waiters`.
    waiting: u32,
    /// Clients logged in that wait for `params`.
    pub(crate) welcoming: Vec<ClientId>,
    /// The first one's place among the waiters of all pools.
    welcoming_ticket: u64,
    /// Server connections, under way ones included.
    pub(crate) servers: u32,
    /// Those under way.
    pub(crate) connecting: u32,
    pub(crate) clients: u32,
    pub(crate) backoff: Backoff,
    /// Looks at the pool again when its back-off ends.
    pub(crate) timer: Timer,
    /// Why the last connect failed, for the people who wait.
    pub(crate) last_failure: Option<String>,
}

impl Pool {
    pub(crate) fn new(key: PoolKey, name: String, seed: u64, keys: &Keys) -> Self {
        Self {
            hash: key.hash(&keys.pools),
            key,
            name,
            paused: false,
            serial: 0,
            params: None,
            application_name: Rc::from(&b""[..]),
            statements: Statements::new(seed, keys.statements),
            idle: Vec::new(),
            waiters: VecDeque::new(),
            waiting: 0,
            welcoming: Vec::new(),
            welcoming_ticket: 0,
            servers: 0,
            connecting: 0,
            clients: 0,
            backoff: Backoff::default(),
            timer: Timer::default(),
            last_failure: None,
        }
    }

    /// A client has logged in and waits for `params`.
    pub(crate) fn await_params(&mut self, ticket: u64, client: ClientId) {
        if self.welcoming.is_empty() {
            self.welcoming_ticket = ticket;
        }
        self.welcoming.push(client);
    }

    /// Whether a login waits for `params`.
    pub(crate) fn is_welcoming(&self) -> bool {
        !self.welcoming.is_empty()
    }

    /// Puts a client at the end of the queue.
    pub(crate) fn enqueue(&mut self, ticket: u64, client: ClientId) {
        self.waiters.push_back((ticket, client));
        self.waiting += 1;
    }

    /// A waiter left the queue by itself; its entry is passed over when its turn comes. `is_live`
    /// tells which entries still wait, for the case that the stale ones pile up.
    pub(crate) fn forget_waiter(&mut self, is_live: impl Fn(u64, ClientId) -> bool) {
        self.waiting -= 1;
        if self.waiters.len() > 2 * self.waiting as usize + 64 {
            self.waiters.retain(|(ticket, client)| is_live(*ticket, *client));
        }
    }

    /// Takes the longest-waiting client out.
    pub(crate) fn next_waiter(
        &mut self,
        is_live: impl Fn(u64, ClientId) -> bool,
    ) -> Option<ClientId> {
        while let Some((ticket, client)) = self.waiters.pop_front() {
            if is_live(ticket, client) {
                self.waiting -= 1;
                return Some(client);
            }
        }
        None
    }

    /// The longest-waiting client and its ticket.
    pub(crate) fn oldest_waiter(
        &mut self,
        is_live: impl Fn(u64, ClientId) -> bool,
    ) -> Option<(u64, ClientId)> {
        while let Some(&(ticket, client)) = self.waiters.front() {
            if is_live(ticket, client) {
                return Some((ticket, client));
            }
            self.waiters.pop_front();
        }
        None
    }

    /// Whoever has waited longest for a server of this pool, with its ticket, be it for a request
    /// or for the end of a login.
    pub(crate) fn oldest_claim(
        &mut self,
        is_live: impl Fn(u64, ClientId) -> bool,
    ) -> Option<(u64, ClientId)> {
        let first = self.welcoming.first().map(|client| (self.welcoming_ticket, *client));
        self.oldest_waiter(is_live).into_iter().chain(first).min_by_key(|(ticket, _)| *ticket)
    }

    /// A live waiter's place in the queue, from 1; entries that left ahead of it are not counted.
    pub(crate) fn place_of(&self, ticket: u64, is_live: impl Fn(u64, ClientId) -> bool) -> usize {
        let ahead = self.waiters.iter().take_while(|(other, _)| *other != ticket);
        1 + ahead.filter(|(other, client)| is_live(*other, *client)).count()
    }

    /// All waiters, in order.
    pub(crate) fn waiters(&self) -> Vec<(u64, ClientId)> {
        self.waiters.iter().copied().collect()
    }

    pub(crate) fn waiting(&self) -> u32 {
        self.waiting
    }

    /// How many connections are wanted beyond those there are.
    pub(crate) fn wanted(&self, min: u32) -> u32 {
        if self.paused {
            return 0;
        }
        let welcoming = u32::from(!self.welcoming.is_empty() && self.servers == 0);
        let warm = if self.clients > 0 { min.saturating_sub(self.servers) } else { 0 };
        (self.waiting.max(welcoming)).saturating_sub(self.connecting).max(warm)
    }
}

/// Pauses that double with each failure in a row.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Backoff {
    failures: u32,
    not_before: Now,
}

impl Backoff {
    pub(crate) fn fail(&mut self, now: Now) {
        let pause = BACKOFF_FIRST_MS << self.failures.min(10);
        self.failures = self.failures.saturating_add(1);
        self.not_before = now.plus_ms(pause.min(BACKOFF_MAX_MS));
    }

    pub(crate) fn succeed(&mut self) {
        *self = Self::default();
    }

    pub(crate) fn not_before(&self) -> Now {
        self.not_before
    }

    pub(crate) fn is_over(&self, now: Now) -> bool {
        now >= self.not_before
    }
}

/// A target's address and whether it answers.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) address: Rc<Address>,
    pub(crate) backoff: Backoff,
}

#[cfg(test)]
mod tests {
    use super::{Backoff, Pool, PoolKey};
    use crate::ids::Id;
    use crate::keys::Keys;
    use crate::params::StartupParams;
    use crate::sink::Now;

    fn pool() -> Pool {
        let key = PoolKey {
            user: "u".into(),
            database: (*b"db").into(),
            params: StartupParams::default(),
        };
        Pool::new(key, "u@db".into(), 0, &Keys::new([0; 32]))
    }

    #[test]
    fn waiters_leave_in_the_order_in_which_they_came() {
        let mut pool = pool();
        for ticket in 1..=3 {
            pool.enqueue(ticket, Id::from_parts(ticket as u32, 1));
        }
        let live = |ticket, _| ticket != 2;
        pool.forget_waiter(live);
        assert_eq!(pool.place_of(3, live), 2);
        assert_eq!(pool.oldest_waiter(live).map(|(ticket, _)| ticket), Some(1));
        assert_eq!(pool.next_waiter(live), Some(Id::from_parts(1, 1)));
        assert_eq!(pool.next_waiter(live), Some(Id::from_parts(3, 1)));
        assert_eq!((pool.next_waiter(live), pool.waiting()), (None, 0));
    }

    #[test]
    fn waiters_that_left_do_not_pile_up() {
        let mut pool = pool();
        for ticket in 0..10_000 {
            pool.enqueue(ticket, Id::from_parts(0, 1));
            pool.forget_waiter(|_, _| false);
        }
        assert!(pool.waiters().len() <= 65);
    }

    #[test]
    fn back_off_doubles_up_to_its_limit_and_ends_with_a_success() {
        let mut backoff = Backoff::default();
        let mut pauses = Vec::new();
        for _ in 0..12 {
            backoff.fail(Now(0));
            pauses.push(backoff.not_before().0 / 1000);
        }
        assert_eq!(pauses[..3], [50, 100, 200]);
        assert_eq!(pauses[11], 5_000);
        backoff.succeed();
        assert!(backoff.is_over(Now(0)));
    }
}
