//! A client's login: start-up packet, proof of identity, welcome.
//!
//! Owned stages: a message is read only in the stage that expects it, one start-up packet is
//! accepted, and an unknown user goes through the same steps as a known one (PostgreSQL protocol,
//! "Start-up"; RFC 5802, RFC 7677). Next on the path: `requests.rs`.

use std::rc::Rc;

use auth::{SCRAM_SHA_256, ScramServer, Verifier};
use pgwire::frame::{HEAD_BYTES, Head};
use pgwire::frontend::{self, SaslInitial, Startup, StartupMessage};
use pgwire::{tag, write};

use crate::client::{self, Refuse, Session};
use crate::config::ClientAuth;
use crate::core::Core;
use crate::errors::{
    self, FEATURE_NOT_SUPPORTED, Failure, INVALID_AUTHORIZATION, LIMIT_EXCEEDED,
    PROTOCOL_VIOLATION, TOO_MANY_CONNECTIONS,
};
use crate::event::Event;
use crate::ids::{ClientId, Conn};
use crate::limits::{PASSWORD_BYTES_MAX, POOLS_MAX};
use crate::params::{APPLICATION_NAME, StartupParams};
use crate::pin::Pin;
use crate::pool::{Pool, PoolId, PoolKey};
use crate::prepared::ClientStatements;
use crate::sink::{Now, Peer, Sink};
use crate::timer::Owner;
use crate::variables::Variables;

/// Where a login stands, and what the start-up packet said.
#[derive(Debug, Default)]
pub(crate) struct Login {
    asked_tls: bool,
    asked_gss: bool,
    stage: Stage,
    user: String,
    database: Box<[u8]>,
    params: StartupParams,
    application_name: Option<Rc<[u8]>>,
    minor: u16,
}

#[derive(Debug, Default)]
enum Stage {
    #[default]
    Startup,
    Md5 {
        inner: [u8; 32],
        salt: [u8; 4],
        known: bool,
    },
    ScramFirst(Box<ScramServer>),
    ScramFinal(Box<ScramServer>),
}

/// What one message of a login led to.
enum Outcome {
    /// The message was dealt with; this many bytes are done.
    Done(usize),
    /// More bytes are needed.
    More,
    /// The login ended, one way or the other.
    Ended,
}

/// The newest minor version that this proxy speaks with clients.
const MINOR_MAX: u16 = 2;

impl Core {
    /// Reads what a client that is logging in has sent.
    pub(crate) fn login_input(&mut self, id: ClientId, now: Now, sink: &mut dyn Sink) {
        loop {
            let Some(client) = self.clients.get_mut(id) else { return };
            let client::State::Login(login) = &mut client.state else {
                // Logged in; what follows is a request.
                if !client.held.is_empty() {
                    self.resume.push_back(id);
                }
                return;
            };
            let in_startup = matches!(login.stage, Stage::Startup);
            let held = std::mem::take(&mut client.held);
            let outcome = if in_startup {
                self.startup_packet(id, &held, now, sink)
            } else {
                self.password_message(id, &held, now, sink)
            };
            let Some(client) = self.clients.get_mut(id) else { return };
            client.held = held;
            match outcome {
                Outcome::Done(bytes) => {
                    client.held.drain(..bytes);
                    if client.held.is_empty() {
                        client.held = Vec::new();
                    }
                }
                Outcome::More => return,
                Outcome::Ended => return client.held = Vec::new(),
            }
        }
    }

    fn startup_packet(
        &mut self,
        id: ClientId,
        held: &[u8],
        now: Now,
        sink: &mut dyn Sink,
    ) -> Outcome {
        let length = match frontend::startup_length(held) {
            Ok(Some(length)) if length <= held.len() => length,
            Ok(_) => return Outcome::More,
            Err(malformed) => return self.login_violation(id, malformed.0, now, sink),
        };
        let packet = held.get(..length).unwrap_or_default();
        match frontend::read_startup(packet) {
            Err(malformed) => self.login_violation(id, malformed.0, now, sink),
            Ok(Startup::Ssl | Startup::GssEnc) => {
                let is_tls = matches!(frontend::read_startup(packet), Ok(Startup::Ssl));
                if length < held.len() {
                    let why = "received unencrypted data after SSL request";
                    return self.login_violation(id, why, now, sink);
                }
                self.encryption_request(id, is_tls, length, now, sink)
            }
            Ok(Startup::Cancel { pid, secret }) => {
                self.handle_cancel_request(id, pid, secret, now, sink);
                Outcome::Ended
            }
            Ok(Startup::Unsupported { major, minor }) => {
                let failure = Failure::fatal(
                    FEATURE_NOT_SUPPORTED,
                    format!(
                        "unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.2"
                    ),
                );
                self.login_failed(id, &failure, "unsupported protocol version", now, sink)
            }
            Ok(Startup::Session(message)) => {
                match self.read_parameters(id, &message) {
                    Ok(()) => {}
                    Err(failure) => {
                        return self.login_failed(id, &failure, "start-up refused", now, sink);
                    }
                }
                self.negotiate(id, &message, sink);
                match self.begin_auth(id, now, sink) {
                    Outcome::Done(_) => Outcome::Done(length),
                    other => other,
                }
            }
        }
    }

    /// Answers SSLRequest and GSSENCRequest: one of each at most.
    fn encryption_request(
        &mut self,
        id: ClientId,
        is_tls: bool,
        length: usize,
        now: Now,
        sink: &mut dyn Sink,
    ) -> Outcome {
        let Some(client) = self.clients.get_mut(id) else { return Outcome::Ended };
        let client::State::Login(login) = &mut client.state else { return Outcome::Ended };
        let asked = if is_tls { &mut login.asked_tls } else { &mut login.asked_gss };
        if std::mem::replace(asked, true) {
            let (major, minor) = if is_tls { (1234, 5679) } else { (1234, 5680) };
            let failure = Failure::fatal(
                FEATURE_NOT_SUPPORTED,
                format!(
                    "unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.2"
                ),
            );
            return self.login_failed(id, &failure, "encryption asked for twice", now, sink);
        }
        sink.send_own(Conn::Client(id), b"N");
        Outcome::Done(length)
    }

    fn read_parameters(
        &mut self,
        id: ClientId,
        message: &StartupMessage<'_>,
    ) -> Result<(), Failure> {
        let Some(client) = self.clients.get_mut(id) else { return Ok(()) };
        let client::State::Login(login) = &mut client.state else { return Ok(()) };
        login.minor = message.minor.min(MINOR_MAX);
        let mut user: &[u8] = b"";
        let mut database: &[u8] = b"";
        for (name, value) in message.parameters() {
            match name {
                b"user" => user = value,
                b"database" => database = value,
                b"replication" => {
                    if !is_false(value) {
                        return Err(Failure::fatal(
                            FEATURE_NOT_SUPPORTED,
                            "this proxy does not support streaming replication mode",
                        )
                        .hint("Connect to the database server itself for replication."));
                    }
                }
                b"application_name" => login.application_name = Some(Rc::from(value)),
                _ if name.starts_with(b"_pq_.") => {}
                _ => login.params.0.push((name.into(), value.into())),
            }
        }
        if user.is_empty() {
            return Err(Failure::fatal(
                INVALID_AUTHORIZATION,
                "no PostgreSQL user name specified in startup packet",
            ));
        }
        login.user = String::from_utf8_lossy(user).into_owned();
        login.database = if database.is_empty() { user.into() } else { database.into() };
        Ok(())
    }

    /// Exactly one NegotiateProtocolVersion, if the client asked for more than there is.
    fn negotiate(&mut self, id: ClientId, message: &StartupMessage<'_>, sink: &mut dyn Sink) {
        let unknown: Vec<&[u8]> = message
            .parameters()
            .map(|(name, _)| name)
            .filter(|name| name.starts_with(b"_pq_."))
            .collect();
        if message.minor > MINOR_MAX || !unknown.is_empty() {
            self.scratch.clear();
            write::negotiate(&mut self.scratch, message.minor.min(MINOR_MAX), &unknown);
            sink.send_own(Conn::Client(id), &self.scratch);
        }
    }

    /// Chooses the proof for the user, or a mock one that never succeeds.
    fn begin_auth(&mut self, id: ClientId, now: Now, sink: &mut dyn Sink) -> Outcome {
        let clients = self.ledger.all_clients().max(self.clients.len() as u64);
        if clients > u64::from(self.config.client_connections_max) {
            let failure = Failure::fatal(TOO_MANY_CONNECTIONS, "sorry, too many clients already")
                .detail(format!(
                    "Proxy {} allows {} clients.",
                    self.config.name, self.config.client_connections_max
                ))
                .hint("Raise max_clients or close connections that are not used.");
            return self.login_failed(id, &failure, "too many clients", now, sink);
        }
        let Some(client) = self.clients.get_mut(id) else { return Outcome::Ended };
        let peer = client.peer;
        let client::State::Login(login) = &mut client.state else { return Outcome::Ended };
        let credential = self.config.credentials.iter().find(|c| c.user == login.user);
        if let Some(ClientAuth::Trust) = credential.map(|c| &c.client_auth) {
            if is_local(peer) {
                return self.authenticated(id, now, sink);
            }
        }
        let mut nonce = [0; 18];
        self.rng.fill(&mut nonce);
        self.scratch.clear();
        let any_md5 =
            || self.config.credentials.iter().any(|c| matches!(c.client_auth, ClientAuth::Md5(_)));
        let any_scram = || {
            self.config.credentials.iter().any(|c| matches!(c.client_auth, ClientAuth::Scram(_)))
        };
        login.stage = match credential.map(|c| &c.client_auth) {
            Some(ClientAuth::Scram(verifier)) => {
                Stage::ScramFirst(Box::new(ScramServer::new(verifier, nonce)))
            }
            Some(ClientAuth::Md5(inner)) => {
                let salt = [nonce[0], nonce[1], nonce[2], nonce[3]];
                Stage::Md5 { inner: *inner, salt, known: true }
            }
            // Unknown users look like the others do.
            _ if any_md5() && !any_scram() => {
                let salt = [nonce[0], nonce[1], nonce[2], nonce[3]];
                Stage::Md5 { inner: [b'0'; 32], salt, known: false }
            }
            _ => {
                let mock = Verifier::mock(&login.user, &self.keys.mock);
                Stage::ScramFirst(Box::new(ScramServer::new(&mock, nonce)))
            }
        };
        match &login.stage {
            Stage::Md5 { salt, .. } => write::authentication_md5(&mut self.scratch, *salt),
            _ => write::authentication_sasl(&mut self.scratch, &[SCRAM_SHA_256]),
        }
        sink.send_own(Conn::Client(id), &self.scratch);
        Outcome::Done(0)
    }

    fn password_message(
        &mut self,
        id: ClientId,
        held: &[u8],
        now: Now,
        sink: &mut dyn Sink,
    ) -> Outcome {
        let head = match Head::read(held) {
            Ok(Some(head)) => head,
            Ok(None) => return Outcome::More,
            Err(malformed) => return self.login_violation(id, malformed.0, now, sink),
        };
        if head.tag != tag::PASSWORD {
            let failure = Failure::fatal(
                PROTOCOL_VIOLATION,
                format!("expected password response, got message type {}", head.tag),
            );
            return self.login_failed(id, &failure, "no password message", now, sink);
        }
        if head.total() > PASSWORD_BYTES_MAX {
            return self.login_violation(id, "password message is too long", now, sink);
        }
        let Some(body) = held.get(HEAD_BYTES..head.total()) else { return Outcome::More };
        let Some(client) = self.clients.get_mut(id) else { return Outcome::Ended };
        let client::State::Login(login) = &mut client.state else { return Outcome::Ended };
        self.scratch.clear();
        let passed = match std::mem::take(&mut login.stage) {
            Stage::Startup => return Outcome::Ended,
            Stage::Md5 { inner, salt, known } => {
                let given = frontend::password(body).unwrap_or_default();
                auth::md5::verify(&inner, salt, given) && known
            }
            Stage::ScramFirst(mut scram) => {
                let reply = SaslInitial::read(body)
                    .ok()
                    .filter(|initial| initial.mechanism == SCRAM_SHA_256.as_bytes())
                    .and_then(|initial| initial.data)
                    .and_then(|data| scram.first(data).ok());
                if let Some(reply) = reply {
                    write::authentication_sasl_continue(&mut self.scratch, &reply);
                    sink.send_own(Conn::Client(id), &self.scratch);
                    login.stage = Stage::ScramFinal(scram);
                    return Outcome::Done(head.total());
                }
                return self.login_violation(id, "malformed SCRAM message", now, sink);
            }
            Stage::ScramFinal(mut scram) => match scram.finish(body) {
                Ok(reply) => {
                    write::authentication_sasl_final(&mut self.scratch, &reply);
                    sink.send_own(Conn::Client(id), &self.scratch);
                    true
                }
                Err(_) => false,
            },
        };
        if !passed {
            let failure = errors::wrong_password(&login.user);
            return self.login_failed(id, &failure, "wrong password or unknown user", now, sink);
        }
        match self.authenticated(id, now, sink) {
            Outcome::Done(_) => Outcome::Done(head.total()),
            other => other,
        }
    }

    fn login_violation(
        &mut self,
        id: ClientId,
        why: &'static str,
        now: Now,
        sink: &mut dyn Sink,
    ) -> Outcome {
        self.stats.login_failures += 1;
        self.client_violation(id, why, now, sink);
        Outcome::Ended
    }

    fn login_failed(
        &mut self,
        id: ClientId,
        failure: &Failure,
        reason: &'static str,
        now: Now,
        sink: &mut dyn Sink,
    ) -> Outcome {
        self.stats.login_failures += 1;
        if let Some(client) = self.clients.get(id) {
            let user = match &client.state {
                client::State::Login(login) => login.user.clone(),
                _ => String::new(),
            };
            sink.event(Event::LoginFailed { peer: client.peer, user, reason });
        }
        self.end_client(id, failure, now, sink);
        Outcome::Ended
    }

    /// The client is who it says: find its pool, and welcome it once the pool's parameters are
    /// known.
    fn authenticated(&mut self, id: ClientId, now: Now, sink: &mut dyn Sink) -> Outcome {
        let Some(client) = self.clients.get_mut(id) else { return Outcome::Ended };
        let client::State::Login(login) = &mut client.state else { return Outcome::Ended };
        let login = std::mem::take(&mut **login);
        let Some(credential) = self.config.credentials.iter().find(|c| c.user == login.user) else {
            let failure = errors::wrong_password(&login.user);
            return self.login_failed(id, &failure, "the user was removed meanwhile", now, sink);
        };
        let allowed = credential.databases.is_empty()
            || credential.databases.iter().any(|name| name.as_bytes() == &*login.database);
        if !allowed {
            let database = String::from_utf8_lossy(&login.database).into_owned();
            let failure = Failure::fatal(
                INVALID_AUTHORIZATION,
                format!("user \"{}\" may not use database \"{database}\"", login.user),
            )
            .hint("Add the database to `databases` of this user in the proxy's configuration.");
            return self.login_failed(id, &failure, "database not allowed", now, sink);
        }
        let opaque = login.params.is_opaque();
        let key =
            PoolKey { user: login.user.into(), database: login.database, params: login.params };
        let Some(pool_id) = self.pool_for(key) else {
            let failure = Failure::fatal(LIMIT_EXCEEDED, "too many different pools in use")
                .detail(format!("The proxy keeps at most {POOLS_MAX} pools."))
                .hint("Use fewer different databases and start-up parameters.");
            return self.login_failed(id, &failure, "too many pools", now, sink);
        };
        let name = login.application_name.unwrap_or_else(|| Rc::from(&b""[..]));
        let mut session =
            Box::new(new_session(pool_id, name, Rc::clone(&self.no_variables), opaque));
        self.draw_cancel_key(id, &mut session, login.minor);
        let Some(client) = self.clients.get_mut(id) else { return Outcome::Ended };
        self.scratch.clear();
        write::authentication_ok(&mut self.scratch);
        sink.send_own(Conn::Client(id), &self.scratch);
        client.session = Some(session);
        client.state = client::State::Welcome;
        client.since = now;
        self.stats.logins += 1;
        let Some(pool) = self.pools.get_mut(pool_id) else { return Outcome::Ended };
        pool.clients += 1;
        if pool.params.is_some() {
            self.welcome(id, now, sink);
            self.grow(pool_id, now, sink);
        } else {
            self.next_ticket += 1;
            pool.await_params(self.next_ticket, id);
            // The first connection takes its time even where nobody may wait for a free one.
            let patience = match self.config.borrow_timeout_ms {
                0 => self.config.connect_timeout_ms,
                ms => ms,
            };
            let deadline = now.plus_ms(patience);
            self.wheel.set(&mut client.timer, Owner::Client(id), deadline);
            self.grow(pool_id, now, sink);
        }
        Outcome::Done(0)
    }

    pub(crate) fn pool_for(&mut self, key: PoolKey) -> Option<PoolId> {
        if let Some(id) = self.pool_by_key.get(&key) {
            return Some(*id);
        }
        if self.pools.len() >= POOLS_MAX {
            return None;
        }
        let credential = self.config.credential(&key.user);
        let user = credential.map_or("", |(_, credential)| credential.server_user.as_str());
        let name = format!("{user}@{}", String::from_utf8_lossy(&key.database));
        let seed = self.rng.next_u64();
        let mut pool = Pool::new(key.clone(), name, seed, &self.keys);
        pool.paused = self.config.is_paused(&key.database);
        pool.serial = self.config.reconnect_serial(&key.database);
        let id = self.pools.insert_with(|_| pool);
        self.pool_by_key.insert(key, id);
        Some(id)
    }

    /// The pool's parameters with the client's own `application_name`, the cancel key.
    pub(crate) fn welcome(&mut self, id: ClientId, now: Now, sink: &mut dyn Sink) {
        let Some(client) = self.clients.get_mut(id) else { return };
        let Some(session) = client.session.as_deref_mut() else { return };
        let Some(pool) = self.pools.get(session.pool) else { return };
        let Some(params) = &pool.params else { return };
        session.params = Rc::clone(params);
        session.opaque |= params.is_opaque();
        if session.application_name.is_empty() {
            session.application_name = Rc::clone(&pool.application_name);
            session.application_name_at_start = Rc::clone(&pool.application_name);
        }
        let out = &mut self.scratch;
        out.clear();
        params.write_all(out);
        write::parameter_status(out, APPLICATION_NAME, &session.application_name);
        let secret_len = usize::from(session.cancel_secret_len);
        let secret = session.cancel_secret.get(..secret_len).unwrap_or_default();
        write::backend_key_data(out, session.cancel_pid, secret);
        write::ready_for_query(out, b'I');
        sink.send_own(Conn::Client(id), out);
        client.state = client::State::Idle;
        self.resume.push_back(id);
        self.client_is_idle(id, now);
    }
}

fn new_session(pool: PoolId, name: Rc<[u8]>, variables: Rc<Variables>, opaque: bool) -> Session {
    Session {
        pool,
        application_name: Rc::clone(&name),
        application_name_at_start: name,
        params: Rc::default(),
        variables,
        bound: None,
        statements: ClientStatements::default(),
        pin: Pin::default(),
        dismissed: false,
        cancel_pid: 0,
        cancel_secret: [0; 32],
        cancel_secret_len: 4,
        batch_mark: 0,
        refuse: Refuse::Nothing,
        mid_reply: false,
        told_fatal: false,
        timed_out: false,
        opaque,
        drops_bound: false,
        long_named: false,
    }
}

/// PostgreSQL's boolean spellings that mean false.
fn is_false(value: &[u8]) -> bool {
    let value = value.to_ascii_lowercase();
    let is_prefix_of = |word: &[u8], least: usize| value.len() >= least && word.starts_with(&value);
    is_prefix_of(b"false", 1) || is_prefix_of(b"no", 1) || is_prefix_of(b"off", 2) || value == b"0"
}

fn is_local(peer: Peer) -> bool {
    match peer {
        Peer::Unix => true,
        Peer::Tcp(ip) => ip.is_loopback(),
    }
}
