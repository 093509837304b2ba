//! The circumstances of a run, drawn from its seed: configuration, faults, sizes.
//!
//! Small numbers everywhere, so that everything is scarce. Next on the path: `world.rs`.

use auth::{Secret, Verifier};
use ledger::Limit;
use proxy_core::config::{ClientAuth, Config, Credential, PoolMode};
use proxy_core::sink::Address;

use crate::rng::Rng;
use crate::room::Room;

/// The password of every user.
pub(crate) const PASSWORD: &[u8] = b"open sesame";

/// How the simulated servers ask for a password.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ServerAuth {
    /// Not at all.
    Trust,
    /// In clear text.
    Cleartext,
    /// By md5.
    Md5,
    /// By SCRAM-SHA-256.
    Scram,
}

/// The circumstances.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// The core's settings.
    pub(crate) config: Config,
    /// Clients at a time.
    pub(crate) clients_max: usize,
    /// Connections break, servers die, attempts to connect are refused.
    pub(crate) faults: bool,
    /// Servers send garbage and wrong replies. What clients see is then not compared, only whose it
    /// is.
    pub(crate) hostile: bool,
    /// Clients send garbage.
    pub(crate) garbage: bool,
    /// Bytes towards a peer beyond which its other side is paused.
    pub(crate) high_bytes: usize,
    /// How the servers authenticate.
    pub(crate) server_auth: ServerAuth,
    /// The step at which the proxy is asked to stop, if any.
    pub(crate) stop_at: Option<u64>,
    /// How many of a hundred acts come although earlier ones are unanswered.
    pub(crate) pipelining: u64,
    /// Workers on one page.
    pub(crate) workers: usize,
    /// A worker is killed in so many of a thousand events of a worker's life.
    pub(crate) deaths: u64,
    /// A worker stops for a while in so many.
    pub(crate) hangs: u64,
    /// New settings are published in so many of a thousand events about settings.
    pub(crate) publications: u64,
    /// Datagrams that an inbox holds.
    pub(crate) inbox_max: usize,
    /// Connections are handed over some time after the core has asked for it.
    pub(crate) slow_passes: bool,
    /// The servers have room for so many backends; none: for all that may come.
    pub(crate) room: Option<Room>,
}

impl Plan {
    /// Draws a plan for a run of this many steps, by this many workers if that is given.
    pub(crate) fn draw(rng: &mut Rng, steps: u64, workers: Option<usize>) -> Self {
        let drawn = rng.pick(&[1, 1, 1, 2, 2, 3, 4, 4]);
        let workers = workers.unwrap_or(drawn);
        let character = rng.below(100);
        let server_auth = rng.pick(&[
            ServerAuth::Trust,
            ServerAuth::Trust,
            ServerAuth::Trust,
            ServerAuth::Cleartext,
            ServerAuth::Md5,
            ServerAuth::Scram,
        ]);
        let garbage = rng.percent(25);
        Self {
            config: draw_config(rng, workers),
            clients_max: 2 + rng.index(12),
            faults: character >= 50,
            hostile: character >= 88,
            garbage,
            high_bytes: rng.pick(&[64, 512, 4096, 65_536]),
            server_auth,
            stop_at: rng.percent(15).then(|| steps * 3 / 4),
            pipelining: rng.pick(&[0, 10, 40]),
            workers,
            deaths: rng.pick(&[0, 0, 20, 200]),
            hangs: rng.pick(&[0, 0, 50]),
            publications: rng.pick(&[0, 0, 50, 300]),
            inbox_max: rng.pick(&[1, 4, 64]),
            slow_passes: rng.percent(50),
            room: Room::draw(rng),
        }
    }

    /// Whether a client's query may be cancelled although it did not ask.
    #[must_use]
    pub(crate) const fn has_query_timeout(&self) -> bool {
        self.config.query_timeout_ms > 0
    }
}

/// One of these, the first most often.
fn mostly(rng: &mut Rng, usual: u64, others: &[u64]) -> u64 {
    if rng.percent(65) { usual } else { rng.pick(others) }
}

/// A limit; small, so that permits are scarce.
pub(crate) fn draw_limit(rng: &mut Rng) -> Limit {
    if rng.percent(15) {
        Limit::Percent(rng.pick(&[20, 100]))
    } else {
        Limit::Connections(1 + rng.below(5) as u32)
    }
}

fn draw_config(rng: &mut Rng, workers: usize) -> Config {
    let limit = draw_limit(rng);
    let mode = if rng.percent(10) { PoolMode::Session } else { PoolMode::Transaction };
    let init_query = if rng.percent(25) { "SET lock_timeout TO '7'" } else { "" };
    Config {
        name: "sim".to_owned(),
        workers: workers as u32,
        allow: Vec::new(),
        client_connections_max: 1000,
        credentials: (0..1 + rng.index(2)).map(|user| draw_credential(rng, user)).collect(),
        targets: vec![Address::Unix("target".to_owned())],
        target_name: "target".to_owned(),
        mode,
        limit,
        min_connections: mostly(rng, 0, &[0, 1, 2]) as u32,
        max_idle_percent: rng.pick(&[0, 50, 100]),
        borrow_timeout_ms: mostly(rng, 120_000, &[0, 20, 1000]),
        idle_timeout_ms: mostly(rng, 300_000, &[0, 50, 1000]),
        max_lifetime_ms: mostly(rng, 0, &[100, 2000]),
        check_delay_ms: mostly(rng, 30_000, &[0, 20]),
        idle_client_timeout_ms: mostly(rng, 0, &[500, 5000]),
        idle_transaction_timeout_ms: mostly(rng, 0, &[200, 5000]),
        query_timeout_ms: mostly(rng, 0, &[50, 500]),
        query_wait_notify_ms: mostly(rng, 0, &[10, 100]),
        login_timeout_ms: 10_000,
        connect_timeout_ms: mostly(rng, 10_000, &[50]),
        init_query: init_query.to_owned(),
        prepared_statements_max: mostly(rng, 100, &[1, 2, 3]) as u32,
        paused: Vec::new(),
        reconnect: Vec::new(),
    }
}

fn draw_credential(rng: &mut Rng, user: usize) -> Credential {
    let name = format!("u{user}");
    let client_auth = match rng.below(8) {
        0 => ClientAuth::Scram(Verifier::from_password(PASSWORD, b"salt of a client", 1)),
        1 => ClientAuth::Md5(auth::md5::inner(PASSWORD, name.as_bytes())),
        _ => ClientAuth::Trust,
    };
    Credential {
        user: name.clone(),
        client_auth,
        databases: Vec::new(),
        server_user: name,
        server_password: Some(Secret::new(PASSWORD.to_vec())),
    }
}
