//! A server that takes fewer connections than it may be asked for: whose login is tried when, and
//! what becomes of the permits.
//!
//! Nothing happens but what a test does. Next on the path: `tests_names.rs`.
#![allow(clippy::unwrap_used, reason = "that is how a test fails")]

use std::ops::Range;
use std::sync::atomic::AtomicU64;

use ledger::{Claim, Ledger, Limit, SUPERVISOR, Want, WorkerId};
use pgwire::write;

use crate::core::{Core, Home};
use crate::event::Event;
use crate::ids::{ClientId, Conn, ServerId};
use crate::limits::BACKOFF_FIRST_MS;
use crate::sink::{Address, Chunk, ChunkId, Gone, Now, Peer, Sink};
use crate::testbed::{answer, config, say};

const NOW: Now = Now(1_000_000);

/// What the core has asked for.
#[derive(Default)]
struct Effects {
    connects: Vec<ServerId>,
    shut: Vec<Conn>,
    passed: Vec<WorkerId>,
    poked: Vec<WorkerId>,
}

impl Sink for Effects {
    fn send(&mut self, _to: Conn, _chunk: ChunkId, _range: Range<usize>) {}
    fn send_own(&mut self, _to: Conn, _bytes: &[u8]) {}
    fn connect(&mut self, conn: Conn, _address: &Address) {
        if let Conn::Server(id) = conn {
            self.connects.push(id);
        }
    }
    fn close(&mut self, _conn: Conn) {}
    fn shutdown(&mut self, conn: Conn) {
        self.shut.push(conn);
    }
    fn pause_read(&mut self, _conn: Conn) {}
    fn resume_read(&mut self, _conn: Conn) {}
    fn pass(&mut self, _conn: Conn, to: WorkerId, _mail: &[u8]) {
        self.passed.push(to);
    }
    fn poke(&mut self, to: WorkerId) {
        self.poked.push(to);
    }
    fn event(&mut self, _event: Event) {}
}

/// Worker 0, and the page that it shares with others.
struct Full {
    core: Core,
    effects: Effects,
    words: &'static [AtomicU64],
}

impl Full {
    fn new(limit: u32) -> Self {
        let slots = 16;
        let words: Vec<AtomicU64> =
            (0..ledger::words_for(slots)).map(|_| AtomicU64::new(0)).collect();
        let words: &'static [AtomicU64] = Box::leak(words.into_boxed_slice());
        ledger::format(words, slots, [7; 32]);
        let page = Ledger::new(words, 0).unwrap();
        page.begin(1);
        page.set_limit(Limit::Connections(limit));
        let home = Home { ledger: page, incarnation: 1, seed: [1; 32] };
        let core = Core::new(config(), 1, home, NOW);
        Self { core, effects: Effects::default(), words }
    }

    /// The page as another worker, or the supervisor, sees it.
    fn page(&self, of: WorkerId) -> Ledger {
        Ledger::new(self.words, of).unwrap()
    }

    fn orphaned_and_connecting(&self) -> (u32, u32) {
        let view = self.page(SUPERVISOR).budget_view();
        (view.orphaned, view.connecting)
    }

    /// What this worker wants, as others see it.
    fn want(&self) -> Option<Want> {
        self.page(9).oldest_want(|_| true)
    }

    /// A client of this database, logged in as far as that goes without a server.
    fn client(&mut self, database: &str) -> ClientId {
        let id = self.core.handle_accept(Peer::Unix, NOW, &mut self.effects).unwrap();
        let mut startup = Vec::new();
        write::startup(&mut startup, 0, &[(b"user", b"app"), (b"database", database.as_bytes())]);
        self.say(id, &startup, NOW);
        id
    }

    fn say(&mut self, id: ClientId, bytes: &[u8], now: Now) {
        let chunk = Chunk { id: ChunkId(0), bytes };
        self.core.handle_client_bytes(id, chunk, now, &mut self.effects);
    }

    fn answer(&mut self, id: ServerId, bytes: &[u8]) {
        let chunk = Chunk { id: ChunkId(0), bytes };
        self.core.handle_server_bytes(id, chunk, NOW, &mut self.effects);
    }

    /// The connection that has been asked for, if one has.
    fn connect(&mut self) -> Option<ServerId> {
        self.effects.connects.pop()
    }

    fn welcome(&mut self, id: ServerId) {
        self.core.handle_server_connected(id, NOW, &mut self.effects);
        let mut login = Vec::new();
        write::authentication_ok(&mut login);
        write::backend_key_data(&mut login, 42, b"abcd");
        write::ready_for_query(&mut login, b'I');
        self.answer(id, &login);
    }

    fn refuse(&mut self, id: ServerId) {
        self.core.handle_server_connected(id, NOW, &mut self.effects);
        let mut error = Vec::new();
        write::error(&mut error, "FATAL", b"53300", "too many", None, None);
        self.answer(id, &error);
    }

    /// Tells the end of a server that was told to end.
    fn ends(&mut self, id: ServerId) {
        assert!(self.effects.shut.contains(&Conn::Server(id)));
        self.core.handle_server_gone(id, Gone::Eof, NOW, &mut self.effects);
    }
}

#[test]
fn a_refused_login_gives_its_permit_back_with_the_servers_own_end() {
    let mut full = Full::new(3);
    full.client("db");
    let server = full.connect().unwrap();
    full.refuse(server);
    assert_eq!(full.page(1).worker_servers(0), 0, "it is no help while it ends");
    assert_eq!(full.orphaned_and_connecting(), (0, 1), "until then it takes a place there");
    full.ends(server);
    assert_eq!(full.orphaned_and_connecting(), (0, 0));
}

/// A core that has found out that the target takes one connection only: an idle one of the
/// database `one` was closed for a client of `two`, whose login is under way.
fn moved_to_another_pool() -> (Full, ServerId) {
    let mut full = Full::new(3);
    full.client("one");
    let first = full.connect().unwrap();
    full.welcome(first);
    full.client("two");
    let probe = full.connect().unwrap();
    full.refuse(probe);
    full.ends(probe);
    assert_eq!(full.connect(), None, "the target takes no more");
    full.ends(first);
    let second = full.connect().unwrap();
    (full, second)
}

#[test]
fn a_refusal_of_one_more_does_not_delay_the_login_in_the_place_of_another() {
    let (mut full, second) = moved_to_another_pool();
    full.welcome(second);
    assert_eq!(full.orphaned_and_connecting(), (0, 0));
    assert_eq!(full.want(), None);
}

#[test]
fn a_pool_that_is_refused_in_the_place_of_another_waits_and_takes_no_more_places() {
    let (mut full, second) = moved_to_another_pool();
    full.refuse(second);
    full.ends(second);
    assert_eq!(full.connect(), None);
    assert_eq!(full.want().map(|want| want.claim), Some(Claim::ServerOnly));
    let later = NOW.plus_ms(2 * BACKOFF_FIRST_MS);
    full.core.handle_timeouts(later, &mut full.effects);
    assert!(full.connect().is_some(), "then it tries again");
}

#[test]
fn an_older_want_of_another_pool_hides_no_want_that_is_due() {
    let mut full = Full::new(1);
    let client = full.client("db");
    let server = full.connect().unwrap();
    full.welcome(server);
    full.say(client, &say::query("SELECT 1"), NOW);
    let waiting = full.client("db");
    let asked = Now(NOW.0 + 10_000);
    full.say(waiting, &say::query("SELECT 2"), asked);
    let hash = full.core.pools.iter().next().map(|(_, pool)| pool.hash).unwrap();
    for (worker, since, pool) in [(1, NOW.0 + 1, !hash), (2, NOW.0 + 2, hash)] {
        full.page(worker).begin(1);
        full.page(worker).publish_want(since, pool, false, false);
    }
    full.answer(server, &[answer::done("SELECT 1"), answer::ready(b'I')].concat());
    assert_eq!(full.effects.passed, [2]);
}

#[test]
fn a_worker_that_has_lost_its_last_server_asks_again_those_who_keep_some_warm() {
    let mut full = Full::new(2);
    let other = full.page(1);
    other.begin(1);
    let _held = other.take(NOW.0, 1).unwrap();
    other.set_idle(1);
    full.client("one");
    let server = full.connect().unwrap();
    full.client("two");
    assert_eq!(std::mem::take(&mut full.effects.poked), [1]);
    full.refuse(server);
    assert_eq!(full.effects.poked, [1]);
}
