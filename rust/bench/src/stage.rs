//! What every work needs: an engine with the product's settings, a database server, clients.
//!
//! Unix-domain sockets, since what they deliver, and when, does not depend on the machine. The
//! server is a script: it knows its answers beforehand. Next on the path: `works.rs`.

use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Instant;

use auth::{ScramClient, ScramKeys, Verifier};
use engine::{Backend, Listener, Page, Post, Setup, Turns};
use ledger::Limit;
use pgwire::backend::Authentication;
use pgwire::frame::HEAD_BYTES;
use pgwire::{frontend, tag, write};
use proxy_core::config::{ClientAuth, Config, Credential, PoolMode};
use proxy_core::sink::Address;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::Failure;
use crate::peers::{self, Peer};

/// Bytes that the server sends at a time: a Unix-domain socket takes them everywhere.
const PIECE_BYTES: usize = 64 * 1024;
const USER: &str = "app";
const PASSWORD: &[u8] = b"pencil";
const SALT: &[u8] = b"0123456789abcdef";
/// Only the client derives keys, and the client is not counted.
const ITERATIONS: u32 = 1;
/// What PostgreSQL 15 tells of itself.
const PARAMETERS: [(&[u8], &[u8]); 13] = [
    (b"application_name", b""),
    (b"client_encoding", b"UTF8"),
    (b"DateStyle", b"ISO, MDY"),
    (b"default_transaction_read_only", b"off"),
    (b"in_hot_standby", b"off"),
    (b"integer_datetimes", b"on"),
    (b"IntervalStyle", b"postgres"),
    (b"is_superuser", b"off"),
    (b"server_encoding", b"UTF8"),
    (b"server_version", b"15.14"),
    (b"session_authorization", b"app"),
    (b"standard_conforming_strings", b"on"),
    (b"TimeZone", b"Etc/UTC"),
];

/// A proxy with one server connection.
pub(crate) struct Stage {
    /// The proxy.
    pub(crate) turns: Turns,
    /// The server's end of the connection.
    pub(crate) server: Peer,
    keys: ScramKeys,
    folder: Folder,
}

/// A folder for the sockets; goes with the value.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self, Failure> {
        let path = std::env::temp_dir().join(format!("pyproxy-bench-{}", std::process::id()));
        std::fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Nobody could be told, and the system clears its folder of temporary files itself.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Stage {
    /// Starts the proxy and logs a first client in, which brings the server and leaves again.
    pub(crate) fn new(backend: Backend) -> Result<Self, Failure> {
        let folder = Folder::new()?;
        let target_path = folder.0.join("target");
        let target = UnixListener::bind(&target_path)?;
        target.set_nonblocking(true)?;
        let clients = UnixListener::bind(folder.0.join("clients"))?;
        // The settings are the path of the target; the rest is the same for all.
        let settings = folder.0.join("settings");
        std::fs::write(&settings, target_path.to_str().unwrap_or_default())?;
        let (inbox, outbox) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let setup = Setup {
            backend,
            listeners: vec![(1, Listener::new(clients.into(), true)?)],
            ledger: Page::create(4)?.ledger(0).ok_or("there is no worker 0")?,
            incarnation: 1,
            epoch: 1,
            settings: OwnedFd::from(std::fs::File::open(&settings)?),
            parse,
            post: Post::new(inbox, vec![outbox]),
        };
        let mut turns = Turns::new(setup, [7; 32]).map_err(|error| error.to_string())?;
        let keys = ScramKeys::derive(PASSWORD, SALT, ITERATIONS);
        let mut first = begin(&folder, &mut turns, &keys)?;
        let server = serve_login(&target, &mut turns)?;
        first.hear(&mut turns, tag::READY_FOR_QUERY)?;
        let mut stage = Self { turns, server, keys, folder };
        stage.leave(first)?;
        Ok(stage)
    }

    /// A client that has logged in.
    pub(crate) fn client(&mut self) -> Result<Peer, Failure> {
        let mut client = begin(&self.folder, &mut self.turns, &self.keys)?;
        client.hear(&mut self.turns, tag::READY_FOR_QUERY)?;
        Ok(client)
    }

    /// A client leaves as clients do.
    pub(crate) fn leave(&mut self, mut client: Peer) -> Result<(), Failure> {
        let mut bytes = Vec::new();
        write::terminate(&mut bytes);
        client.say(&bytes)?;
        client.hear_end(&mut self.turns)
    }

    /// The client asks, and the server gets a request whose last message has this tag.
    pub(crate) fn ask(
        &mut self,
        client: &mut Peer,
        request: &[u8],
        last: u8,
    ) -> Result<Vec<u8>, Failure> {
        client.say(request)?;
        self.server.hear(&mut self.turns, last)
    }

    /// The server answers, and the client gets it all.
    pub(crate) fn answer(&mut self, client: &mut Peer, answer: &[u8]) -> Result<(), Failure> {
        let mut heard = Vec::with_capacity(answer.len());
        let mut said = 0;
        for piece in answer.chunks(PIECE_BYTES) {
            self.server.say(piece)?;
            said += piece.len();
            // The proxy keeps a head that has come in part.
            let rest = if said < answer.len() { HEAD_BYTES - 1 } else { 0 };
            let wanted = said - rest - heard.len();
            let came = client.hear_until(&mut self.turns, |came| Ok(came.len() >= wanted))?;
            heard.extend(came);
        }
        if heard == answer { Ok(()) } else { Err("the answer has changed on its way".into()) }
    }
}

/// Connects a client and proves who it is, up to its last message.
fn begin(folder: &Folder, turns: &mut Turns, keys: &ScramKeys) -> Result<Peer, Failure> {
    let mut client = Peer::new(UnixStream::connect(folder.0.join("clients"))?)?;
    let mut scram = ScramClient::new([9; 18]);
    let mut bytes = Vec::new();
    write::startup(&mut bytes, 0, &[(b"user", USER.as_bytes()), (b"database", b"shop")]);
    client.say(&bytes)?;
    client.hear(turns, tag::AUTHENTICATION)?;
    bytes.clear();
    write::sasl_initial(&mut bytes, auth::SCRAM_SHA_256.as_bytes(), &scram.first());
    client.say(&bytes)?;
    let challenge = client.hear(turns, tag::AUTHENTICATION)?;
    let body = challenge.get(HEAD_BYTES..).unwrap_or_default();
    let Ok(Authentication::SaslContinue(data)) = Authentication::read(body) else {
        return Err("the proxy sent no SCRAM challenge".into());
    };
    scram.server_first(data, ITERATIONS)?;
    bytes.clear();
    write::sasl_response(&mut bytes, &scram.finish(keys)?);
    client.say(&bytes)?;
    Ok(client)
}

/// The server takes the proxy's connection and lets it in.
fn serve_login(target: &UnixListener, turns: &mut Turns) -> Result<Peer, Failure> {
    let start = Instant::now();
    let stream = loop {
        match target.accept() {
            Ok((stream, _)) => break stream,
            Err(error) if error.kind() == ErrorKind::WouldBlock => peers::turn(turns, start)?,
            Err(error) => return Err(error.into()),
        }
    };
    let mut server = Peer::new(stream)?;
    server.hear_until(turns, |heard| match frontend::startup_length(heard) {
        Ok(length) => Ok(length == Some(heard.len())),
        Err(malformed) => Err(malformed.0.into()),
    })?;
    let mut bytes = Vec::new();
    write::authentication_ok(&mut bytes);
    for (name, value) in PARAMETERS {
        write::parameter_status(&mut bytes, name, value);
    }
    write::backend_key_data(&mut bytes, 42, b"abcd");
    write::ready_for_query(&mut bytes, b'I');
    server.say(&bytes)?;
    Ok(server)
}

/// The product's default settings, with one server connection. Times below the timer wheel's
/// horizon are raised above it: when a run began must not show in its count.
fn parse(target: &[u8]) -> Result<Config, String> {
    let target = String::from_utf8_lossy(target).into_owned();
    Ok(Config {
        name: "bench".to_owned(),
        workers: 1,
        allow: Vec::new(),
        client_connections_max: 10_000,
        credentials: vec![Credential {
            user: USER.to_owned(),
            client_auth: ClientAuth::Scram(Verifier::from_password(PASSWORD, SALT, ITERATIONS)),
            databases: Vec::new(),
            server_user: USER.to_owned(),
            server_password: None,
        }],
        target_name: target.clone(),
        targets: vec![Address::Unix(target)],
        mode: PoolMode::Transaction,
        limit: Limit::Connections(1),
        min_connections: 0,
        max_idle_percent: 100,
        borrow_timeout_ms: 120_000,
        idle_timeout_ms: 300_000,
        max_lifetime_ms: 86_400_000,
        check_delay_ms: 30_000,
        idle_client_timeout_ms: 1_800_000,
        idle_transaction_timeout_ms: 0,
        query_timeout_ms: 0,
        query_wait_notify_ms: 60_000,
        login_timeout_ms: 60_000,
        connect_timeout_ms: 60_000,
        init_query: String::new(),
        prepared_statements_max: 500,
        paused: Vec::new(),
        reconnect: Vec::new(),
    })
}
