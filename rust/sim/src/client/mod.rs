//! A simulated client: its login, its wire, what it was told, and its oracle.
//!
//! Files: `script.rs` (what it asks), `oracle.rs` (what it must hear). Next on the path:
//! `script.rs`.

pub(crate) mod oracle;
pub(crate) mod script;

use std::collections::BTreeMap;

use auth::{SCRAM_SHA_256, ScramClient, ScramKeys};
use pgwire::backend::{Authentication, BackendKeyData, ParameterStatus};
use pgwire::{tag, write};

use crate::backend::Backend;
use crate::backend::session::Session;
use crate::plan::PASSWORD;
use crate::rng::Rng;
use crate::wire::{Message, Wire, message, take_message};

/// Where a client stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stage {
    /// It waits for the answer to SSLRequest.
    Encryption,
    /// It logs in.
    Login,
    /// It is logged in.
    Ready,
    /// It carries a CancelRequest and waits for the end.
    Cancel,
    /// Its connection is over.
    Over,
}

/// What may differ from a direct connection in this run, now.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Leave {
    /// A server or a connection has broken.
    pub(crate) faults: bool,
    /// Clients ask before they have been answered.
    pub(crate) pipelined: bool,
    /// Servers talk nonsense: only whose rows come is checked.
    pub(crate) hostile: bool,
    /// The proxy was asked to stop.
    pub(crate) stopping: bool,
    /// Queries may be cancelled by the proxy.
    pub(crate) query_timeout: bool,
    /// Idle clients may be ended.
    pub(crate) idle_timeout: bool,
    /// Clients idle in a transaction may be ended.
    pub(crate) idle_transaction_timeout: bool,
    /// Waiting may end in an error.
    pub(crate) borrow_timeout: bool,
    /// Logins of servers may run out of time.
    pub(crate) connect_timeout: bool,
}

/// A client.
pub(crate) struct Client {
    /// Its number, unique in the run: its rows carry it.
    pub(crate) tag: u32,
    /// Its wire's index.
    pub(crate) wire: usize,
    /// Where it stands.
    pub(crate) stage: Stage,
    /// What a direct connection does: fed with all that the client sends, run as replies come.
    pub(crate) shadow: Backend,
    /// Parameters as it was told.
    pub(crate) told: BTreeMap<String, String>,
    /// Its cancel key.
    pub(crate) key: Option<(u32, Vec<u8>)>,
    /// Cancels that it sent and that have not shown.
    pub(crate) cancels: u32,
    /// It has left, or sent what is no request: nothing more is compared.
    pub(crate) left: bool,
    /// It sent FIN behind whole requests and still reads.
    pub(crate) half_closed: bool,
    /// When it did, in microseconds.
    pub(crate) left_at: u64,
    /// It sent garbage: it may be told 08P01.
    pub(crate) rude: bool,
    /// What it hears can no longer be foreseen.
    pub(crate) uncertain: bool,
    /// It was told a FATAL error.
    pub(crate) told_fatal: Option<[u8; 5]>,
    /// It may be in the middle of sending copy data.
    pub(crate) copying: bool,
    /// It has reset settings.
    pub(crate) has_reset: bool,
    /// It reads seldom.
    pub(crate) slow: bool,
    /// Its worker has died.
    pub(crate) doomed: bool,
    /// Its user was removed from the settings, for a while or for good.
    pub(crate) removable: bool,
    /// Its user's name.
    pub(crate) user: String,
    /// All that makes its pool.
    pub(crate) pool: String,
    /// ReadyForQuery received.
    pub(crate) readies: u64,
    buffer: Vec<u8>,
    startup: Vec<u8>,
    scram: Option<ScramClient>,
}

impl Client {
    /// A client that connects and sends its start-up packet.
    pub(crate) fn connect(tag: u32, wire_index: usize, users: usize, rng: &mut Rng) -> Self {
        let user = format!("u{}", rng.index(users));
        let database = rng.pick(&["db0", "db0", "db1"]);
        let mut settings: Vec<(&str, &str)> = Vec::new();
        let name = format!("app{}", tag % 3);
        if rng.percent(50) {
            settings.push(("application_name", &name));
        }
        if rng.percent(20) {
            settings.push(("TimeZone", "Europe/Berlin"));
        }
        let mut parameters: Vec<(&[u8], &[u8])> =
            vec![(b"user", user.as_bytes()), (b"database", database.as_bytes())];
        parameters.extend(settings.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes())));
        let pool = format!("{user} {database} {}", settings.iter().any(|(n, _)| *n == "TimeZone"));
        let mut startup = Vec::new();
        write::startup(&mut startup, rng.pick(&[0, 0, 2]), &parameters);
        let mut client = Self::new(tag, wire_index, Backend::new(Session::new(&settings)));
        client.user = user;
        client.pool = pool;
        client.startup = startup;
        client.stage = if rng.percent(20) { Stage::Encryption } else { Stage::Login };
        client.slow = rng.percent(15);
        client
    }

    /// A connection that carries a CancelRequest.
    #[must_use]
    pub(crate) fn canceller(tag: u32, wire_index: usize, key: (u32, &[u8])) -> Self {
        let mut client = Self::new(tag, wire_index, Backend::new(Session::default()));
        write::cancel_request(&mut client.startup, key.0, key.1);
        client.stage = Stage::Cancel;
        client
    }

    fn new(tag: u32, wire: usize, shadow: Backend) -> Self {
        Self {
            tag,
            wire,
            stage: Stage::Login,
            shadow,
            told: BTreeMap::new(),
            key: None,
            cancels: 0,
            left: false,
            half_closed: false,
            left_at: 0,
            rude: false,
            uncertain: false,
            told_fatal: None,
            copying: false,
            has_reset: false,
            slow: false,
            doomed: false,
            removable: false,
            user: String::new(),
            pool: String::new(),
            readies: 0,
            buffer: Vec::new(),
            startup: Vec::new(),
            scram: None,
        }
    }

    /// Sends the first bytes.
    pub(crate) fn begin(&mut self, wire: &mut Wire) {
        if self.stage == Stage::Encryption {
            wire.to_core.extend([0, 0, 0, 8, 4, 210, 22, 47]);
        } else {
            wire.to_core.extend(&self.startup);
        }
    }

    /// Sends a message, and tells it the oracle.
    pub(crate) fn say(&mut self, (tag, body): Message, wire: &mut Wire) {
        wire.to_core.extend(message(tag, &body));
        self.shadow.accept((tag, body));
    }

    /// Whether it has heard all that a direct connection would have said.
    #[must_use]
    pub(crate) fn is_answered(&self) -> bool {
        self.shadow.is_quiet() && self.shadow.out.iter().all(|reply| reply[0] == b'S')
    }

    /// Reads what has come.
    ///
    /// # Errors
    /// It heard what it must not hear.
    pub(crate) fn read(
        &mut self,
        bytes: &[u8],
        wire: &mut Wire,
        leave: &Leave,
    ) -> Result<(), String> {
        if self.left && !self.half_closed {
            return Ok(());
        }
        self.buffer.extend_from_slice(bytes);
        if self.stage == Stage::Encryption {
            match self.buffer[0] {
                b'N' => drop(self.buffer.remove(0)),
                // The proxy stops, or has waited for too long: it says so before it has said
                // whether it encrypts.
                tag::ERROR_RESPONSE if take_message(&mut self.buffer.clone())?.is_none() => {
                    return Ok(());
                }
                tag::ERROR_RESPONSE if leave.stopping || is_too_late(&self.buffer) => {}
                _ => return Err("SSLRequest was not answered with N".to_owned()),
            }
            self.stage = Stage::Login;
            wire.to_core.extend(&self.startup);
        }
        while let Some((tag, body)) = take_message(&mut self.buffer)? {
            if self.told_fatal.is_some() && !leave.hostile {
                return Err(format!("{:?} came behind a FATAL error", char::from(tag)));
            }
            match self.stage {
                Stage::Login => self.login_message(tag, &body, wire, leave)?,
                Stage::Ready => self.reply(tag, &body, leave)?,
                // Before its request has been read it looks like any client.
                Stage::Cancel if tag == tag::ERROR_RESPONSE && leave.stopping => {}
                Stage::Cancel if tag == tag::ERROR_RESPONSE && is_too_late(&body) => {}
                _ => return Err(format!("{:?} came to nobody", char::from(tag))),
            }
        }
        Ok(())
    }

    fn login_message(
        &mut self,
        tag: u8,
        body: &[u8],
        wire: &mut Wire,
        leave: &Leave,
    ) -> Result<(), String> {
        match tag {
            tag::AUTHENTICATION => return self.authenticate(body, wire),
            tag::PARAMETER_STATUS => self.note_parameter(body)?,
            tag::NOTICE_RESPONSE => {}
            tag::BACKEND_KEY_DATA => {
                let key = BackendKeyData::read(body).map_err(|m| m.0.to_owned())?;
                self.key = Some((key.pid, key.secret.to_vec()));
            }
            tag::READY_FOR_QUERY if body == b"I" && self.key.is_some() => {
                self.stage = Stage::Ready;
                self.check_told(leave)?;
            }
            tag::ERROR_RESPONSE => return self.fatal_or_wrong(body, leave),
            _ => return Err(format!("{:?} came during login", char::from(tag))),
        }
        Ok(())
    }

    fn note_parameter(&mut self, body: &[u8]) -> Result<(), String> {
        let parameter = ParameterStatus::read(body).map_err(|m| m.0.to_owned())?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        self.told.insert(text(parameter.name), text(parameter.value));
        Ok(())
    }

    fn authenticate(&mut self, body: &[u8], wire: &mut Wire) -> Result<(), String> {
        let mut out = Vec::new();
        match Authentication::read(body).map_err(|m| m.0.to_owned())? {
            Authentication::Ok => {}
            Authentication::Md5 { salt } => {
                let inner = auth::md5::inner(PASSWORD, self.user.as_bytes());
                write::password(&mut out, &auth::md5::response(&inner, salt));
            }
            Authentication::Sasl { .. } => {
                let scram = ScramClient::new([7; 18]);
                write::sasl_initial(&mut out, SCRAM_SHA_256.as_bytes(), &scram.first());
                self.scram = Some(scram);
            }
            Authentication::SaslContinue(data) => {
                let scram = self.scram.as_mut().ok_or("SCRAM out of order")?;
                // A user who was removed is asked for more: it fails, and so it does with less
                // work.
                let most = if self.removable { u32::MAX } else { 1 };
                let asked = scram.server_first(data, most).map_err(|e| format!("{e:?}"))?;
                let keys = ScramKeys::derive(PASSWORD, &asked.salt, 1);
                let reply = scram.finish(&keys).map_err(|e| format!("{e:?}"))?;
                write::sasl_response(&mut out, &reply);
            }
            Authentication::SaslFinal(data) => {
                let scram = self.scram.as_mut().ok_or("SCRAM out of order")?;
                scram.verify(data).map_err(|e| format!("{e:?}"))?;
            }
            other => return Err(format!("authentication {other:?}")),
        }
        wire.to_core.extend(out);
        Ok(())
    }
}

/// Whether these bytes say that a login was not completed in time.
fn is_too_late(bytes: &[u8]) -> bool {
    String::from_utf8_lossy(bytes).contains("the login took too long")
}
