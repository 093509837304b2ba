//! The proxy's own login to a server: start-up, password, and what the server tells of itself.
//!
//! The server may be hostile: lengths, iteration counts and nonces are bounded, and a message that
//! does not belong here ends the connection. PBKDF2 does not run on this thread: if the keys for
//! the server's salt are not known, Python is asked and the login goes on when they have come. Next
//! on the path: `replies.rs`.

use std::rc::Rc;

use auth::{SCRAM_SHA_256, ScramClient};
use pgwire::backend::{self, Authentication, BackendKeyData, ErrorFields, ParameterStatus};
use pgwire::{tag, write};

use super::replies::message_of;
use crate::client;
use crate::core::Core;
use crate::errors::TOO_MANY_CONNECTIONS;
use crate::event::Event;
use crate::ids::{Conn, ServerId};
use crate::limits::SCRAM_ITERATIONS_MAX;
use crate::params::APPLICATION_NAME;
use crate::server::{self, Task};
use crate::sink::{Now, Sink};

/// Where our login stands.
#[derive(Debug, Default)]
pub(crate) struct ServerLogin {
    scram: Option<ScramClient>,
    /// The salt and iteration count that keys are awaited for.
    wants_keys: Option<(Vec<u8>, u32)>,
    authenticated: bool,
}

impl Core {
    /// The connection has been made: send the start-up packet.
    pub(crate) fn begin_server_login(&mut self, id: ServerId, now: Now, sink: &mut dyn Sink) {
        let Some(server) = self.servers.get_mut(id) else { return };
        let Some(pool) = self.pools.get(server.pool) else { return };
        let Some((_, credential)) = self.config.credential(&pool.key.user) else {
            // The user was removed meanwhile.
            return self.retire(id, now, sink);
        };
        server.state = server::State::LoggingIn(Box::default());
        let mut parameters: Vec<(&[u8], &[u8])> =
            vec![(b"user", credential.server_user.as_bytes()), (b"database", &pool.key.database)];
        parameters.extend(pool.key.params.0.iter().map(|(name, value)| (&**name, &**value)));
        self.scratch.clear();
        write::startup(&mut self.scratch, 0, &parameters);
        sink.send_own(Conn::Server(id), &self.scratch);
    }

    /// One whole message of a server that is logging in.
    pub(crate) fn login_reply(
        &mut self,
        id: ServerId,
        tag: u8,
        body: &[u8],
        now: Now,
        sink: &mut dyn Sink,
    ) {
        match tag {
            tag::AUTHENTICATION => self.authentication_reply(id, body, now, sink),
            tag::ERROR_RESPONSE => self.login_error(id, body, now, sink),
            tag::NOTICE_RESPONSE | tag::NEGOTIATE_PROTOCOL_VERSION => {}
            tag::PARAMETER_STATUS => self.note_parameter(id, body, now, sink),
            tag::BACKEND_KEY_DATA => {
                let Ok(key) = BackendKeyData::read(body) else {
                    return self.server_violation(id, "malformed BackendKeyData", now, sink);
                };
                if let Some(server) = self.servers.get_mut(id) {
                    server.key = Some((key.pid, key.secret.into()));
                }
            }
            tag::READY_FOR_QUERY => {
                let Some(server) = self.servers.get_mut(id) else { return };
                let server::State::LoggingIn(login) = &server.state else { return };
                if !login.authenticated || backend::ready_status(body) != Ok(b'I') {
                    let why = "ReadyForQuery before authentication";
                    return self.server_violation(id, why, now, sink);
                }
                server.state = server::State::Working(Task::Check);
                let key = server.key.as_ref().map(|(pid, secret)| (*pid, &**secret));
                let target = self.keys.address_number(&server.address);
                if let Some(permit) = &mut server.permit {
                    // Before the first statement: whoever finds this server without an owner can
                    // cancel what runs there.
                    self.ledger.confirm(permit, key, target);
                }
                self.next_task(id, now, sink);
            }
            _ => self.server_violation(id, "unexpected message during login", now, sink),
        }
    }

    fn authentication_reply(&mut self, id: ServerId, body: &[u8], now: Now, sink: &mut dyn Sink) {
        let Some(server) = self.servers.get_mut(id) else { return };
        let server::State::LoggingIn(login) = &mut server.state else { return };
        let Some(pool) = self.pools.get(server.pool) else { return };
        let Some((_, credential)) = self.config.credential(&pool.key.user) else {
            return self.retire(id, now, sink);
        };
        let password = credential.server_password.as_ref().map(auth::Secret::expose);
        self.scratch.clear();
        match (Authentication::read(body), password) {
            (Ok(Authentication::Ok), _) => {
                let unfinished = login.scram.take().is_some();
                if unfinished || login.authenticated {
                    let why = "AuthenticationOk before the server proved itself";
                    return self.server_violation(id, why, now, sink);
                }
                login.authenticated = true;
                return;
            }
            (Ok(Authentication::Cleartext), Some(password)) => {
                write::password(&mut self.scratch, password);
            }
            (Ok(Authentication::Md5 { salt }), Some(password)) => {
                let inner = auth::md5::inner(password, credential.server_user.as_bytes());
                write::password(&mut self.scratch, &auth::md5::response(&inner, salt));
            }
            (Ok(authentication @ Authentication::Sasl { .. }), Some(_)) => {
                let offered =
                    authentication.mechanisms().any(|name| name == SCRAM_SHA_256.as_bytes());
                if !offered || login.scram.is_some() {
                    let why = "the server offers no SASL mechanism that the proxy knows";
                    return self.server_violation(id, why, now, sink);
                }
                let mut nonce = [0; 18];
                self.rng.fill(&mut nonce);
                let scram = ScramClient::new(nonce);
                write::sasl_initial(&mut self.scratch, SCRAM_SHA_256.as_bytes(), &scram.first());
                login.scram = Some(scram);
            }
            (Ok(Authentication::SaslContinue(data)), Some(_)) => {
                let accept =
                    |scram: &mut ScramClient| scram.server_first(data, SCRAM_ITERATIONS_MAX);
                let Some(Ok(challenge)) = login.scram.as_mut().map(accept) else {
                    return self.server_violation(id, "malformed SCRAM challenge", now, sink);
                };
                login.wants_keys = Some((challenge.salt, challenge.iterations));
                return self.continue_server_scram(id, now, sink);
            }
            (Ok(Authentication::SaslFinal(data)), Some(_)) => {
                // Taken: AuthenticationOk is accepted only once the signature has been verified.
                if login.scram.take().is_some_and(|mut scram| scram.verify(data).is_ok()) {
                    return;
                }
                let why = "the server could not prove that it knows the password";
                return self.server_violation(id, why, now, sink);
            }
            (Ok(_), None) => {
                let reason = "the server asks for a password and the proxy has none for this user";
                return self.login_refused(id, reason.to_owned(), None, b"", now, sink);
            }
            (Ok(Authentication::Other(_)), _) => {
                let reason = "the server asks for an authentication that the proxy does not speak";
                return self.login_refused(id, reason.to_owned(), None, b"", now, sink);
            }
            (Err(_), _) => {
                return self.server_violation(id, "malformed authentication request", now, sink);
            }
        }
        sink.send_own(Conn::Server(id), &self.scratch);
    }

    /// Answers a SCRAM challenge if the keys for it are known; else Python is asked once.
    pub(crate) fn continue_server_scram(&mut self, id: ServerId, now: Now, sink: &mut dyn Sink) {
        let Some(server) = self.servers.get_mut(id) else { return };
        let server::State::LoggingIn(login) = &mut server.state else { return };
        let Some((salt, iterations)) = login.wants_keys.take() else { return };
        let Some(pool) = self.pools.get(server.pool) else { return };
        let Some((credential, _)) = self.config.credential(&pool.key.user) else { return };
        let credential = u32::try_from(credential).unwrap_or(u32::MAX);
        let known = self
            .server_keys
            .get(&credential)
            .filter(|known| known.salt == salt && known.iterations == iterations);
        let Some(known) = known else {
            login.wants_keys = Some((salt.clone(), iterations));
            self.awaiting_keys.push(id);
            let epoch = self.epoch;
            sink.event(Event::ServerKeysNeeded { credential, epoch, salt, iterations });
            return;
        };
        let reply = login.scram.as_mut().and_then(|scram| scram.finish(&known.keys).ok());
        let Some(reply) = reply else {
            return self.server_violation(id, "SCRAM message out of order", now, sink);
        };
        self.scratch.clear();
        write::sasl_response(&mut self.scratch, &reply);
        sink.send_own(Conn::Server(id), &self.scratch);
    }

    /// The server refused the login.
    fn login_error(&mut self, id: ServerId, body: &[u8], now: Now, sink: &mut dyn Sink) {
        let fields = ErrorFields::read(body).ok();
        let message = fields.as_ref().and_then(message_of);
        let message = message.unwrap_or_else(|| "the server gave no reason".to_owned());
        let sqlstate: Option<[u8; 5]> = fields
            .as_ref()
            .and_then(|fields| fields.get(b'C'))
            .and_then(|code| code.try_into().ok());
        self.login_refused(id, message, sqlstate, body, now, sink);
    }

    /// A login failed for good (waiters are told) or for now (they go on waiting).
    fn login_refused(
        &mut self,
        id: ServerId,
        reason: String,
        sqlstate: Option<[u8; 5]>,
        error_body: &[u8],
        now: Now,
        sink: &mut dyn Sink,
    ) {
        let Some(server) = self.servers.get(id) else { return };
        let (pool_id, outdated) = (server.pool, server.unfit);
        // Resources, operator intervention and system errors pass; what is wrong with the login
        // stays.
        let passing =
            sqlstate.is_some_and(|code| matches!(&code[..2], b"53" | b"57" | b"58" | b"08"));
        self.connect_failed(id, reason.clone(), Some(sqlstate), now, sink);
        let is_full = sqlstate.as_ref() == Some(TOO_MANY_CONNECTIONS);
        if is_full && !crate::broken::is("ceiling") {
            self.ledger.lower_ceiling(now.0);
        }
        // Its end is near: until then it takes a place there.
        self.await_end(id, now, sink);
        self.grow(pool_id, now, sink);
        // What older settings tried says nothing about the newer ones.
        if !passing && !outdated {
            self.fail_pool(pool_id, &reason, error_body, now, sink);
        }
    }

    /// Notes a failed attempt to connect: back-off, cause, event. `answer` is none if the server
    /// gave none, and else the SQLSTATE that it gave, if any.
    pub(crate) fn connect_failed(
        &mut self,
        id: ServerId,
        reason: String,
        answer: Option<Option<[u8; 5]>>,
        now: Now,
        sink: &mut dyn Sink,
    ) {
        self.stats.server_failures += 1;
        let sqlstate = answer.flatten();
        let Some(server) = self.servers.get(id) else { return };
        let address = Rc::clone(&server.address);
        let Some(pool) = self.pools.get_mut(server.pool) else { return };
        // Whether the target takes more is tried again and again for all pools together: that it
        // does not is no reason why this one's next login should fail.
        let is_probe = sqlstate.as_ref() == Some(TOO_MANY_CONNECTIONS)
            && server.permit.as_ref().is_some_and(ledger::Permit::is_probe);
        if !is_probe {
            pool.backoff.fail(now);
        }
        pool.last_failure = Some(reason.clone());
        let name = pool.name.clone();
        // A server that answers is no unreachable address: what is wrong with this pool (its
        // user's password, its init_query) delays no other one.
        if let Some(target) = self.targets.iter_mut().find(|target| target.address == address) {
            if answer.is_none() {
                target.backoff.fail(now);
            } else {
                target.backoff.succeed();
            }
        }
        sink.event(Event::ServerFailed { pool: name, reason, sqlstate });
    }

    /// Everybody who waits for this pool is told what the server said, and ended.
    fn fail_pool(
        &mut self,
        pool_id: crate::pool::PoolId,
        reason: &str,
        error_body: &[u8],
        now: Now,
        sink: &mut dyn Sink,
    ) {
        let Some(pool) = self.pools.get_mut(pool_id) else { return };
        let mut waiting = std::mem::take(&mut pool.welcoming);
        waiting.extend(pool.waiters().into_iter().map(|(_, client)| client));
        for id in waiting {
            let waits = self.clients.get(id).is_some_and(|client| {
                matches!(client.state, client::State::Welcome | client::State::Waiting { .. })
            });
            if !waits {
                continue;
            }
            if error_body.is_empty() {
                let failure = crate::errors::Failure::fatal(
                    crate::errors::INVALID_AUTHORIZATION,
                    "the proxy could not log in to the database",
                )
                .detail(reason);
                self.end_client(id, &failure, now, sink);
                continue;
            }
            self.scratch.clear();
            self.scratch.push(tag::ERROR_RESPONSE);
            let length = u32::try_from(error_body.len() + 4).unwrap_or(u32::MAX);
            self.scratch.extend_from_slice(&length.to_be_bytes());
            self.scratch.extend_from_slice(error_body);
            sink.send_own(Conn::Client(id), &self.scratch);
            sink.close(Conn::Client(id));
            self.client_left(id, now, sink);
        }
    }

    /// A ParameterStatus: what the server has now; a client that it serves is told by the caller.
    pub(crate) fn note_parameter(
        &mut self,
        id: ServerId,
        body: &[u8],
        now: Now,
        sink: &mut dyn Sink,
    ) {
        let Ok(parameter) = ParameterStatus::read(body) else {
            return self.server_violation(id, "malformed ParameterStatus", now, sink);
        };
        let Some(server) = self.servers.get_mut(id) else { return };
        if parameter.name == APPLICATION_NAME {
            server.application_name = Rc::from(parameter.value);
        } else {
            server.params = server.params.with(parameter.name, parameter.value);
            if server.params.len() > crate::limits::PARAMETERS_MAX {
                self.server_violation(id, "too many parameters reported", now, sink);
            }
        }
    }
}
