//! Settings that change while the workers run: what an operator may publish at any time.
//!
//! Next on the path: `world.rs`.

use auth::Secret;
use proxy_core::config::{Config, Credential};

use crate::plan::{PASSWORD, draw_limit};
use crate::rng::Rng;

/// More epochs than a run has.
const VERSIONS_MAX: u64 = 1000;

/// The password that the server knows a user by, since the settings of this epoch changed it.
#[must_use]
pub(crate) fn password(version: u64) -> Vec<u8> {
    match version {
        0 => PASSWORD.to_vec(),
        _ => [PASSWORD, b" ", version.to_string().as_bytes()].concat(),
    }
}

/// Which password it is that passes this check.
pub(crate) fn version_that(is_right: impl Fn(&[u8]) -> bool) -> Option<u64> {
    (0..VERSIONS_MAX).find(|version| is_right(&password(*version)))
}

/// Which password these settings have for a user.
#[must_use]
pub(crate) fn password_version(config: &Config, user: &str) -> Option<u64> {
    let (_, credential) = config.credential(user)?;
    let secret = credential.server_password.as_ref()?;
    version_that(|password| password == secret.expose())
}

/// The settings of an epoch, after `config`; `first` tells what the run began with.
#[must_use]
pub(crate) fn changed(config: &Config, first: &Config, epoch: u64, rng: &mut Rng) -> Config {
    let mut next = config.clone();
    match rng.below(8) {
        0 | 1 => next.limit = draw_limit(rng),
        2 if next.targets.is_empty() => next.targets.clone_from(&first.targets),
        2 => next.targets.clear(),
        3 if next.credentials.len() < first.credentials.len() => {
            restore_users(&mut next, first, epoch);
        }
        3 if next.credentials.len() > 1 => {
            next.credentials.remove(rng.index(next.credentials.len()));
        }
        4 => {
            let at = rng.index(next.credentials.len());
            let credential = &mut next.credentials[at];
            change_password(credential, epoch);
        }
        5 => {
            let database = rng.pick(&["db0", "db1", "*"]).to_owned();
            if next.paused.is_empty() {
                next.paused.push(database);
            } else {
                next.paused.clear();
            }
        }
        6 => {
            let database = rng.pick(&["db0", "db1", "*"]).to_owned();
            let serial = next.reconnect.iter().map(|(_, serial)| *serial).max().unwrap_or(0) + 1;
            next.reconnect.retain(|(name, _)| *name != database);
            next.reconnect.push((database, serial));
        }
        _ => {
            next.prepared_statements_max = rng.pick(&[1, 3, 100]);
            next.max_idle_percent = rng.pick(&[0, 50, 100]);
            if rng.percent(50) {
                let is_set = !next.init_query.is_empty();
                next.init_query = if is_set { "" } else { "SET lock_timeout TO '7'" }.to_owned();
            }
        }
    }
    next
}

/// The settings of the calm: nothing that could keep a client from being served.
#[must_use]
pub(crate) fn generous(config: &Config, first: &Config, epoch: u64) -> Config {
    let mut next = config.clone();
    restore_users(&mut next, first, epoch);
    next.targets.clone_from(&first.targets);
    next.paused.clear();
    next.borrow_timeout_ms = 120_000;
    next.connect_timeout_ms = 10_000;
    next.idle_client_timeout_ms = 0;
    next.idle_transaction_timeout_ms = 0;
    next.query_timeout_ms = 0;
    next
}

/// Users come back, with a new password.
fn restore_users(config: &mut Config, first: &Config, epoch: u64) {
    for credential in &first.credentials {
        if config.credential(&credential.user).is_none() {
            let mut credential = credential.clone();
            change_password(&mut credential, epoch);
            config.credentials.push(credential);
        }
    }
}

fn change_password(credential: &mut Credential, epoch: u64) {
    credential.server_password = Some(Secret::new(password(epoch)));
}
