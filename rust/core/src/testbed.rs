//! A test bed: one core, clients and servers that say what a test lets them say, byte by byte.
//!
//! Messages are told as text: their type, then what they hold, with `ours` for each server name of
//! our own. Nothing happens but what a test does. Next on the path: `tests_names.rs`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "that is how a test fails")]

use std::ops::Range;
use std::sync::atomic::AtomicU64;

use ledger::{Ledger, Limit, WorkerId};
use pgwire::frame::Head;
use pgwire::{tag, write};

use crate::config::{ClientAuth, Config, Credential, PoolMode};
use crate::core::{Core, Home};
use crate::event::Event;
use crate::ids::{CancellerId, ClientId, Conn, ServerId};
use crate::prepared::NAME_PREFIX;
use crate::sink::{Address, Chunk, ChunkId, Now, Peer, Sink};

/// What the core has asked for.
#[derive(Debug, Default)]
struct Effects {
    chunk: Vec<u8>,
    sent: Vec<(Conn, Vec<u8>)>,
    connects: Vec<Conn>,
    passed: Vec<Vec<u8>>,
}

impl Effects {
    fn queue(&mut self, to: Conn, bytes: &[u8]) {
        match self.sent.iter_mut().find(|(conn, _)| *conn == to) {
            Some((_, sent)) => sent.extend_from_slice(bytes),
            None => self.sent.push((to, bytes.to_vec())),
        }
    }
}

impl Sink for Effects {
    fn send(&mut self, to: Conn, _chunk: ChunkId, range: Range<usize>) {
        let bytes = self.chunk[range].to_vec();
        self.queue(to, &bytes);
    }
    fn send_own(&mut self, to: Conn, bytes: &[u8]) {
        self.queue(to, bytes);
    }
    fn connect(&mut self, conn: Conn, _address: &Address) {
        self.connects.push(conn);
    }
    fn close(&mut self, _conn: Conn) {}
    fn shutdown(&mut self, _conn: Conn) {}
    fn pause_read(&mut self, _conn: Conn) {}
    fn resume_read(&mut self, _conn: Conn) {}
    fn pass(&mut self, _conn: Conn, _to: WorkerId, mail: &[u8]) {
        self.passed.push(mail.to_vec());
    }
    fn poke(&mut self, _to: WorkerId) {}
    fn event(&mut self, _event: Event) {}
}

/// A core with at most one server connection.
pub(crate) struct Bed {
    core: Core,
    effects: Effects,
    now: Now,
}

/// The settings of a core with one server connection.
pub(crate) fn config() -> Config {
    Config {
        name: "test".to_owned(),
        workers: 1,
        allow: Vec::new(),
        client_connections_max: 10,
        credentials: vec![Credential {
            user: "app".to_owned(),
            client_auth: ClientAuth::Trust,
            databases: Vec::new(),
            server_user: "app".to_owned(),
            server_password: None,
        }],
        targets: vec![Address::Unix("target".to_owned())],
        target_name: "test".to_owned(),
        mode: PoolMode::Transaction,
        limit: Limit::Connections(1),
        min_connections: 0,
        max_idle_percent: 100,
        borrow_timeout_ms: 120_000,
        idle_timeout_ms: 0,
        max_lifetime_ms: 0,
        check_delay_ms: 0,
        idle_client_timeout_ms: 0,
        idle_transaction_timeout_ms: 0,
        query_timeout_ms: 0,
        query_wait_notify_ms: 0,
        login_timeout_ms: 1_000,
        connect_timeout_ms: 1_000,
        init_query: String::new(),
        prepared_statements_max: 10,
        paused: Vec::new(),
        reconnect: Vec::new(),
    }
}

impl Bed {
    /// One core that has its page for itself.
    pub(crate) fn new() -> Self {
        let slots = 16;
        let words: Vec<AtomicU64> =
            (0..ledger::words_for(slots)).map(|_| AtomicU64::new(0)).collect();
        let words: &'static [AtomicU64] = Box::leak(words.into_boxed_slice());
        ledger::format(words, slots, [7; 32]);
        let page = Ledger::new(words, 0).unwrap();
        page.begin(1);
        let home = Home { ledger: page, incarnation: 1, seed: [1; 32] };
        let now = Now(1_000_000);
        Self { core: Core::new(config(), 1, home, now), effects: Effects::default(), now }
    }

    /// A client that has logged in under this `application_name`; the first one brings the server.
    pub(crate) fn client(&mut self, application_name: &str) -> ClientId {
        let id = self.core.handle_accept(Peer::Unix, self.now, &mut self.effects).unwrap();
        let mut startup = Vec::new();
        let parameters: [(&[u8], &[u8]); 3] = [
            (b"user", b"app"),
            (b"database", b"db"),
            (b"application_name", application_name.as_bytes()),
        ];
        write::startup(&mut startup, 0, &parameters);
        self.client_bytes(id, &startup);
        if let Some(Conn::Server(server)) = self.effects.connects.pop() {
            self.core.handle_server_connected(server, self.now, &mut self.effects);
            let mut login = Vec::new();
            write::authentication_ok(&mut login);
            write::parameter_status(&mut login, b"application_name", b"");
            write::backend_key_data(&mut login, 42, b"abcd");
            write::ready_for_query(&mut login, b'I');
            self.server_bytes(server, &login);
        }
        self.effects.sent.clear();
        id
    }

    /// The server.
    pub(crate) fn server(&self) -> ServerId {
        self.core.servers.ids()[0]
    }

    fn client_bytes(&mut self, id: ClientId, bytes: &[u8]) {
        self.effects.chunk = bytes.to_vec();
        let chunk = Chunk { id: ChunkId(0), bytes };
        self.core.handle_client_bytes(id, chunk, self.now, &mut self.effects);
    }

    fn server_bytes(&mut self, id: ServerId, bytes: &[u8]) {
        self.effects.chunk = bytes.to_vec();
        let chunk = Chunk { id: ChunkId(0), bytes };
        self.core.handle_server_bytes(id, chunk, self.now, &mut self.effects);
    }

    /// The client says this; gives what the server is told.
    pub(crate) fn say(&mut self, client: ClientId, messages: &[Vec<u8>]) -> Vec<String> {
        self.client_bytes(client, &messages.concat());
        self.told_server()
    }

    /// The server answers this; gives what the client is told.
    pub(crate) fn answer(&mut self, client: ClientId, replies: &[Vec<u8>]) -> Vec<String> {
        self.server_bytes(self.server(), &replies.concat());
        self.told(Conn::Client(client))
    }

    /// The client's connection ends.
    pub(crate) fn leaves(&mut self, client: ClientId) {
        self.core.handle_client_gone(client, self.now, &mut self.effects);
    }

    /// What the server has been told since somebody looked.
    pub(crate) fn told_server(&mut self) -> Vec<String> {
        self.told(Conn::Server(self.server()))
    }

    /// What a client has been told since somebody looked.
    pub(crate) fn heard(&mut self, client: ClientId) -> Vec<String> {
        self.told(Conn::Client(client))
    }

    fn told(&mut self, conn: Conn) -> Vec<String> {
        let at = self.effects.sent.iter().position(|(to, _)| *to == conn);
        at.map_or_else(Vec::new, |at| texts(&self.effects.sent.remove(at).1))
    }

    /// Time passes.
    pub(crate) fn wait_ms(&mut self, ms: u64) {
        self.now = self.now.plus_ms(ms);
        self.core.handle_timeouts(self.now, &mut self.effects);
    }

    /// Somebody asks for a cancel of what the client does; gives its way to the server, if it has
    /// been begun.
    pub(crate) fn cancel(&mut self, client: ClientId) -> Option<CancellerId> {
        let session = self.core.clients.get(client).unwrap().session.as_deref().unwrap();
        let (pid, secret) = (session.cancel_pid, session.cancel_secret);
        let id = self.core.handle_accept(Peer::Unix, self.now, &mut self.effects).unwrap();
        let mut request = Vec::new();
        write::cancel_request(&mut request, pid, &secret[..4]);
        self.client_bytes(id, &request);
        self.begun_cancel()
    }

    /// The cancel that has been begun since somebody looked.
    pub(crate) fn begun_cancel(&mut self) -> Option<CancellerId> {
        match self.effects.connects.pop() {
            Some(Conn::Canceller(id)) => Some(id),
            _ => None,
        }
    }

    /// A cancel has been carried out.
    pub(crate) fn cancel_ends(&mut self, id: CancellerId) {
        self.core.handle_canceller_connected(id, self.now, &mut self.effects);
        self.core.handle_canceller_gone(id, self.now, &mut self.effects);
    }

    /// What the server's mail to another worker says of its unnamed statement; 0 = none.
    pub(crate) fn unnamed_as_handed_over(&self) -> u128 {
        let server = self.core.servers.get(self.server()).unwrap();
        let pool = self.core.pools.get(server.pool).unwrap();
        let offer = ledger::Offer { slot: 0, word: 0 };
        let mut mail = Vec::new();
        crate::handover::write_server(&mut mail, server, pool, offer, 1);
        crate::handover::read_server(&mail[1..]).unwrap().unnamed()
    }
}

fn texts(mut bytes: &[u8]) -> Vec<String> {
    let mut texts = Vec::new();
    while let Some(head) = Head::read(bytes).unwrap() {
        let (message, rest) = bytes.split_at(head.total());
        let words: Vec<String> = message[5..]
            .split(|byte| !byte.is_ascii_graphic() && *byte != b' ')
            .filter(|word| !word.is_empty())
            .map(|word| {
                let at = word.windows(NAME_PREFIX.len()).position(|part| part == NAME_PREFIX);
                let kind = String::from_utf8_lossy(&word[..at.unwrap_or(word.len())]).into_owned();
                if at.is_some() { kind + " ours" } else { kind }
            })
            .collect();
        let text = format!("{} {}", char::from(head.tag), words.join(" "));
        texts.push(text.split_whitespace().collect::<Vec<_>>().join(" "));
        bytes = rest;
    }
    assert!(bytes.is_empty(), "a message in part");
    texts
}

fn made(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut out);
    out
}

/// What clients say.
pub(crate) mod say {
    use super::{made, write};

    pub(crate) fn query(text: &str) -> Vec<u8> {
        made(|out| write::query(out, text.as_bytes()))
    }
    pub(crate) fn parse(name: &str, text: &str) -> Vec<u8> {
        made(|out| write::parse(out, name.as_bytes(), text.as_bytes(), &[]))
    }
    pub(crate) fn bind(name: &str) -> Vec<u8> {
        made(|out| {
            write::bind_head(out, b"", name.as_bytes(), 6);
            out.extend([0; 6]);
        })
    }
    pub(crate) fn execute() -> Vec<u8> {
        made(|out| write::execute(out, b"", 0))
    }
    pub(crate) fn close(name: &str) -> Vec<u8> {
        made(|out| write::close(out, b'S', name.as_bytes()))
    }
    pub(crate) fn describe(name: &str) -> Vec<u8> {
        made(|out| write::describe(out, b'S', name.as_bytes()))
    }
    pub(crate) fn sync() -> Vec<u8> {
        made(write::sync)
    }
}

/// What servers answer.
pub(crate) mod answer {
    use super::{made, tag, write};

    pub(crate) fn parsed() -> Vec<u8> {
        made(write::parse_complete)
    }
    pub(crate) fn bound() -> Vec<u8> {
        made(write::bind_complete)
    }
    pub(crate) fn closed() -> Vec<u8> {
        made(write::close_complete)
    }
    pub(crate) fn row() -> Vec<u8> {
        made(|out| write::data_row(out, &[Some(b"x")]))
    }
    pub(crate) fn done(command: &str) -> Vec<u8> {
        made(|out| write::command_complete(out, command.as_bytes()))
    }
    pub(crate) fn ready(status: u8) -> Vec<u8> {
        made(|out| write::ready_for_query(out, status))
    }
    pub(crate) fn error(code: &[u8; 5]) -> Vec<u8> {
        let out = made(|out| write::error(out, "ERROR", code, "why", None, None));
        assert_eq!(out.first(), Some(&tag::ERROR_RESPONSE));
        out
    }
}
