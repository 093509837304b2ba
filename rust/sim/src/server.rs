//! A simulated server connection: login, then a [`Backend`]; or a CancelRequest.
//!
//! What it answers leaves when PostgreSQL would flush it, or earlier, as a full buffer does.
//! Next on the path: `client/mod.rs`.

use std::rc::Rc;

use auth::{SCRAM_SHA_256, ScramServer, Verifier};
use pgwire::frontend::{self, SaslInitial, Startup};
use pgwire::{tag, write};
use proxy_core::config::Config;

use crate::backend::Backend;
use crate::backend::session::Session;
use crate::plan::ServerAuth;
use crate::rng::Rng;
use crate::room::Full;
use crate::settings::{password, password_version, version_that};
use crate::wire::{Wire, take_message};

/// Where a connection stands.
enum Stage {
    Startup,
    Password {
        md5: Option<[u8; 4]>,
    },
    ScramFirst(Box<ScramServer>),
    ScramFinal(Box<ScramServer>),
    Ready,
    /// It carries a CancelRequest.
    Cancel {
        pid: u32,
        secret: Vec<u8>,
    },
}

/// A server connection.
pub(crate) struct Server {
    /// Its wire's index.
    pub(crate) wire: usize,
    /// What serves it after login.
    pub(crate) backend: Backend,
    /// Its process number.
    pub(crate) pid: u32,
    /// Its cancel secret.
    pub(crate) secret: Vec<u8>,
    /// It has ended its side.
    pub(crate) ended: bool,
    /// It had no room for this connection.
    pub(crate) refused: bool,
    /// The settings of the worker that opened it, then.
    pub(crate) settings: Rc<Config>,
    /// Which password it was entered with.
    pub(crate) password: Option<u64>,
    /// It is known only to be a CancelRequest's.
    pub(crate) for_cancel: bool,
    pub(crate) user: String,
    pub(crate) database: String,
    stage: Stage,
    buffer: Vec<u8>,
    auth: ServerAuth,
}

impl Server {
    /// A connection that has just been accepted.
    #[must_use]
    pub(crate) fn new(
        wire: usize,
        pid: u32,
        auth: ServerAuth,
        settings: Rc<Config>,
        for_cancel: bool,
    ) -> Self {
        Self {
            wire,
            backend: Backend::new(Session::default()),
            pid,
            secret: (pid.wrapping_mul(0x9E37_79B9)).to_be_bytes().to_vec(),
            ended: false,
            refused: false,
            settings,
            password: None,
            for_cancel,
            user: String::new(),
            database: String::new(),
            stage: Stage::Startup,
            buffer: Vec::new(),
            auth,
        }
    }

    /// Whether it has logged in.
    #[must_use]
    pub(crate) const fn is_ready(&self) -> bool {
        matches!(self.stage, Stage::Ready)
    }

    /// The CancelRequest that it carries.
    #[must_use]
    pub(crate) fn cancels(&self) -> Option<(u32, &[u8])> {
        match &self.stage {
            Stage::Cancel { pid, secret } => Some((*pid, secret)),
            _ => None,
        }
    }

    /// Reads what has come from a worker that works by these settings now.
    ///
    /// # Errors
    /// The core broke the protocol towards a server.
    pub(crate) fn read(
        &mut self,
        bytes: &[u8],
        wire: &mut Wire,
        (settings, full): (&Config, &Full),
        rng: &mut Rng,
    ) -> Result<(), String> {
        self.buffer.extend_from_slice(bytes);
        loop {
            if matches!(self.stage, Stage::Startup) {
                if !self.startup(wire, (settings, full), rng)? {
                    return Ok(());
                }
                continue;
            }
            let Some((tag, body)) = take_message(&mut self.buffer)? else { return Ok(()) };
            match (&self.stage, tag) {
                (Stage::Ready, _) if b"QPBDECHSXFdcf".contains(&tag) => {
                    self.backend.accept((tag, body));
                }
                (Stage::Password { .. } | Stage::ScramFirst(_) | Stage::ScramFinal(_), b'p') => {
                    self.password(&body, wire, full)?;
                }
                // It gave up while logging in.
                (_, tag::TERMINATE) => self.end(wire),
                _ => return Err(format!("message {:?} came to a server", char::from(tag))),
            }
        }
    }

    fn startup(
        &mut self,
        wire: &mut Wire,
        (current, full): (&Config, &Full),
        rng: &mut Rng,
    ) -> Result<bool, String> {
        let length = frontend::startup_length(&self.buffer).map_err(|m| m.0.to_owned())?;
        let Some(length) = length.filter(|length| *length <= self.buffer.len()) else {
            return Ok(false);
        };
        let rest = self.buffer.split_off(length);
        let packet = std::mem::replace(&mut self.buffer, rest);
        let message = match frontend::read_startup(&packet).map_err(|m| m.0.to_owned())? {
            Startup::Cancel { pid, secret } => {
                self.stage = Stage::Cancel { pid, secret: secret.to_vec() };
                return Ok(true);
            }
            Startup::Session(message) => message,
            other => return Err(format!("start-up packet {other:?}")),
        };
        let mut settings = Vec::new();
        for (name, value) in message.parameters() {
            match name {
                b"user" => self.user = String::from_utf8_lossy(value).into_owned(),
                b"database" => self.database = String::from_utf8_lossy(value).into_owned(),
                _ => settings.push((
                    String::from_utf8_lossy(name).into_owned(),
                    String::from_utf8_lossy(value).into_owned(),
                )),
            }
        }
        let settings: Vec<(&str, &str)> =
            settings.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let mut session = Session::new(&settings);
        session.kept.init_undone = (!self.settings.init_query.is_empty()).then_some(None);
        self.backend = Backend::new(session);
        if full.for_all {
            self.refuse(wire, "sorry, too many clients already");
        } else {
            self.ask(wire, (current, full), rng);
        }
        Ok(!self.ended)
    }

    fn ask(&mut self, wire: &mut Wire, (current, full): (&Config, &Full), rng: &mut Rng) {
        let mut out = Vec::new();
        self.stage = match self.auth {
            ServerAuth::Trust => return self.welcome(wire, full),
            ServerAuth::Cleartext => {
                write::authentication_cleartext(&mut out);
                Stage::Password { md5: None }
            }
            ServerAuth::Md5 => {
                let salt = (rng.next_u64() as u32).to_be_bytes();
                write::authentication_md5(&mut out, salt);
                Stage::Password { md5: Some(salt) }
            }
            ServerAuth::Scram => {
                write::authentication_sasl(&mut out, &[SCRAM_SHA_256]);
                self.password = password_version(current, &self.user);
                let password = password(self.password.unwrap_or(0));
                let verifier = Verifier::from_password(&password, b"salt of a server", 2);
                let mut nonce = [0; 18];
                nonce[..8].copy_from_slice(&rng.next_u64().to_be_bytes());
                Stage::ScramFirst(Box::new(ScramServer::new(&verifier, nonce)))
            }
        };
        wire.to_core.extend(out);
    }

    fn password(&mut self, body: &[u8], wire: &mut Wire, full: &Full) -> Result<(), String> {
        let mut out = Vec::new();
        match std::mem::replace(&mut self.stage, Stage::Startup) {
            Stage::Password { md5 } => {
                let given = frontend::password(body).map_err(|m| m.0.to_owned())?;
                self.password = version_that(|password| match md5 {
                    None => given == password,
                    Some(salt) => {
                        let inner = auth::md5::inner(password, self.user.as_bytes());
                        auth::md5::verify(&inner, salt, given)
                    }
                });
                if self.password.is_none() {
                    return Err("a wrong password came to a server".to_owned());
                }
                if self.password < password_version(&self.settings, &self.user) {
                    return Err("an old password came to a server".to_owned());
                }
            }
            Stage::ScramFirst(mut scram) => {
                let initial = SaslInitial::read(body).map_err(|m| m.0.to_owned())?;
                let reply = scram
                    .first(initial.data.unwrap_or_default())
                    .map_err(|error| format!("SCRAM: {error:?}"))?;
                write::authentication_sasl_continue(&mut out, &reply);
                wire.to_core.extend(out);
                self.stage = Stage::ScramFinal(scram);
                return Ok(());
            }
            Stage::ScramFinal(mut scram) => {
                let Ok(reply) = scram.finish(body) else {
                    // It was changed between the two messages.
                    let text = "password authentication failed";
                    write::error(&mut out, "FATAL", b"28P01", text, None, None);
                    wire.to_core.extend(out);
                    self.end(wire);
                    return Ok(());
                };
                write::authentication_sasl_final(&mut out, &reply);
                wire.to_core.extend(out);
            }
            _ => {}
        }
        self.welcome(wire, full);
        Ok(())
    }

    fn welcome(&mut self, wire: &mut Wire, full: &Full) {
        let mut out = Vec::new();
        write::authentication_ok(&mut out);
        if full.users.contains(&self.user) {
            wire.to_core.extend(out);
            let text = format!("too many connections for role \"{}\"", self.user);
            return self.refuse(wire, &text);
        }
        for (name, value) in &self.backend.session.reported {
            write::parameter_status(&mut out, name.as_bytes(), value.as_bytes());
        }
        write::backend_key_data(&mut out, self.pid, &self.secret);
        write::ready_for_query(&mut out, b'I');
        wire.to_core.extend(out);
        self.stage = Stage::Ready;
    }

    /// It has no room for another backend.
    fn refuse(&mut self, wire: &mut Wire, text: &str) {
        let mut out = Vec::new();
        write::error(&mut out, "FATAL", b"53300", text, None, None);
        wire.to_core.extend(out);
        self.refused = true;
        self.end(wire);
    }

    /// Whether it could do something.
    #[must_use]
    pub(crate) fn can_work(&self, wire: &Wire, now: u64) -> bool {
        !self.ended
            && (self.cancels().is_some()
                || self.backend.ended
                || self.backend.can_step(now)
                || self.backend.flushed > 0
                || wire.to_peer_fin && wire.to_peer.is_empty() && self.backend.wants_input())
    }

    /// Works for a while and sends what is due.
    pub(crate) fn work(&mut self, wire: &mut Wire, now: u64, rng: &mut Rng) {
        for _ in 0..=rng.below(6) {
            if !self.backend.step(now) {
                break;
            }
        }
        if rng.percent(5) {
            self.backend.flushed = self.backend.out.len();
        }
        // Whoever writes to a connection that is closed learns of it.
        let writes_in_vain = wire.closed && self.backend.flushed > 0;
        while self.backend.flushed > 0 {
            let Some(reply) = self.backend.take_reply() else { break };
            wire.to_core.extend(reply);
        }
        let hung_up = wire.to_peer_fin && wire.to_peer.is_empty() && self.backend.wants_input();
        if self.backend.ended || hung_up || writes_in_vain {
            self.end(wire);
        }
    }

    /// Whether it is a backend that takes a place among the target's connections.
    #[must_use]
    pub(crate) const fn is_living(&self) -> bool {
        !self.ended && !self.for_cancel
    }

    /// Whether it has been told who comes.
    #[must_use]
    pub(crate) const fn has_begun(&self) -> bool {
        !matches!(self.stage, Stage::Startup)
    }

    /// Sends a message that nobody asked for.
    pub(crate) fn chatter(&mut self, rng: &mut Rng) {
        let mut out = Vec::new();
        match rng.below(3) {
            0 => write::parameter_status(&mut out, b"in_hot_standby", rng.pick(&[b"on", b"of"])),
            _ => write::notice(&mut out, "NOTICE", b"00000", "by the way", None, None),
        }
        self.backend.push_flushed(out);
    }

    /// Says goodbye and ends, as after pg_terminate_backend.
    pub(crate) fn die_politely(&mut self, wire: &mut Wire) {
        let mut out = Vec::new();
        while let Some(reply) = self.backend.take_reply() {
            out.extend(reply);
        }
        let text = "terminating connection due to administrator command";
        write::error(&mut out, "FATAL", b"57P01", text, None, None);
        wire.to_core.extend(out);
        self.end(wire);
    }

    /// Closes its side.
    pub(crate) fn end(&mut self, wire: &mut Wire) {
        self.ended = true;
        wire.finish();
        wire.to_peer.clear();
    }
}
