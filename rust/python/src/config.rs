//! The configuration as Python hands it down: JSON with the field names of `proxy_core::config`.
//!
//! Everything was checked with line numbers by `pyproxy/config/`; here an unknown or missing field
//! is a bug of ours and says so. Errors never quote a value: it may be a secret. Next: the core's
//! `config.rs`.

use std::net::{IpAddr, SocketAddr};

use auth::{Secret, Verifier};
use ledger::{Limit, WORKERS_MAX};
use proxy_core::config::{ClientAuth, Config, Credential, Network, PoolMode};
use proxy_core::sink::Address;
use serde::Deserialize;

/// Why a configuration cannot be used: the field and the rule, never the value.
#[derive(Debug)]
pub(crate) struct InvalidConfig(String);

impl std::fmt::Display for InvalidConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

fn invalid(why: impl Into<String>) -> InvalidConfig {
    InvalidConfig(why.into())
}

/// Reads a configuration.
///
/// # Errors
/// The caller's fault: it is no JSON, a field is missing, unknown or outside its range.
pub(crate) fn parse_config(json: &[u8]) -> Result<Config, InvalidConfig> {
    let raw: RawConfig = serde_json::from_slice(json).map_err(|error| {
        // serde's own message quotes what it found, and that may be a password.
        let (line, column) = (error.line(), error.column());
        let kind = match error.classify() {
            serde_json::error::Category::Data => "a field is missing, unknown or of a wrong type",
            _ => "this is not JSON",
        };
        invalid(format!("configuration: {kind} (line {line}, column {column})"))
    })?;
    raw.check()?;
    raw.into_config()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    name: String,
    workers: u32,
    allow: Vec<String>,
    client_connections_max: u32,
    credentials: Vec<RawCredential>,
    targets: Vec<RawAddress>,
    target_name: String,
    mode: RawMode,
    limit: RawLimit,
    min_connections: u32,
    max_idle_percent: u8,
    borrow_timeout_ms: u64,
    idle_timeout_ms: u64,
    max_lifetime_ms: u64,
    check_delay_ms: u64,
    idle_client_timeout_ms: u64,
    idle_transaction_timeout_ms: u64,
    query_timeout_ms: u64,
    query_wait_notify_ms: u64,
    login_timeout_ms: u64,
    connect_timeout_ms: u64,
    init_query: String,
    prepared_statements_max: u32,
    paused: Vec<String>,
    reconnect: Vec<(String, u64)>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCredential {
    user: String,
    client_auth: RawClientAuth,
    databases: Vec<String>,
    server_user: String,
    server_password: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum RawClientAuth {
    Trust(bool),
    Scram(String),
    Md5(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum RawAddress {
    Tcp(SocketAddr),
    Unix(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum RawMode {
    Transaction,
    Session,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum RawLimit {
    Connections(u32),
    Percent(u8),
}

impl RawConfig {
    /// Ranges that the core counts on.
    fn check(&self) -> Result<(), InvalidConfig> {
        let limit = match self.limit {
            RawLimit::Connections(number) => number >= 1,
            RawLimit::Percent(percent) => (1..=100).contains(&percent),
        };
        let rules = [
            (limit, "limit: at least 1 connection, or 1 to 100 percent"),
            (self.client_connections_max >= 1, "client_connections_max: at least 1"),
            (self.max_idle_percent <= 100, "max_idle_percent: 0 to 100"),
            (self.login_timeout_ms >= 1, "login_timeout_ms: at least 1"),
            (self.connect_timeout_ms >= 1, "connect_timeout_ms: at least 1"),
            (self.prepared_statements_max >= 1, "prepared_statements_max: at least 1"),
            ((1..=WORKERS_MAX as u32).contains(&self.workers), "workers: 1 to 64"),
        ];
        match rules.iter().find(|(holds, _)| !holds) {
            Some((_, rule)) => Err(invalid(*rule)),
            None => Ok(()),
        }
    }

    fn into_config(self) -> Result<Config, InvalidConfig> {
        Ok(Config {
            name: self.name,
            workers: self.workers,
            allow: self.allow.iter().map(|text| parse_network(text)).collect::<Result<_, _>>()?,
            client_connections_max: self.client_connections_max,
            credentials: self
                .credentials
                .into_iter()
                .map(RawCredential::into_credential)
                .collect::<Result<_, _>>()?,
            targets: self.targets.into_iter().map(RawAddress::into_address).collect(),
            target_name: self.target_name,
            mode: match self.mode {
                RawMode::Transaction => PoolMode::Transaction,
                RawMode::Session => PoolMode::Session,
            },
            limit: match self.limit {
                RawLimit::Connections(number) => Limit::Connections(number),
                RawLimit::Percent(percent) => Limit::Percent(percent),
            },
            min_connections: self.min_connections,
            max_idle_percent: self.max_idle_percent,
            borrow_timeout_ms: self.borrow_timeout_ms,
            idle_timeout_ms: self.idle_timeout_ms,
            max_lifetime_ms: self.max_lifetime_ms,
            check_delay_ms: self.check_delay_ms,
            idle_client_timeout_ms: self.idle_client_timeout_ms,
            idle_transaction_timeout_ms: self.idle_transaction_timeout_ms,
            query_timeout_ms: self.query_timeout_ms,
            query_wait_notify_ms: self.query_wait_notify_ms,
            login_timeout_ms: self.login_timeout_ms,
            connect_timeout_ms: self.connect_timeout_ms,
            init_query: self.init_query,
            prepared_statements_max: self.prepared_statements_max,
            paused: self.paused,
            reconnect: self.reconnect,
        })
    }
}

impl RawCredential {
    fn into_credential(self) -> Result<Credential, InvalidConfig> {
        let client_auth = match self.client_auth {
            RawClientAuth::Trust(true) => ClientAuth::Trust,
            RawClientAuth::Trust(false) => {
                return Err(invalid(format!("user {}: trust must be true", self.user)));
            }
            RawClientAuth::Scram(text) => {
                let verifier = Verifier::parse(&text)
                    .map_err(|why| invalid(format!("user {}: verifier: {why}", self.user)))?;
                ClientAuth::Scram(verifier)
            }
            RawClientAuth::Md5(text) => ClientAuth::Md5(parse_md5(&text).ok_or_else(|| {
                invalid(format!("user {}: md5 must be 32 lower-case hex digits", self.user))
            })?),
        };
        Ok(Credential {
            user: self.user,
            client_auth,
            databases: self.databases,
            server_user: self.server_user,
            server_password: self.server_password.map(|text| Secret::new(text.into_bytes())),
        })
    }
}

impl RawAddress {
    fn into_address(self) -> Address {
        match self {
            Self::Tcp(address) => Address::Tcp(address),
            Self::Unix(path) => Address::Unix(path),
        }
    }
}

fn parse_md5(text: &str) -> Option<[u8; 32]> {
    let digits: [u8; 32] = text.as_bytes().try_into().ok()?;
    digits.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')).then_some(digits)
}

/// Reads `address/prefix`; an address alone is a network of one. Bits beyond the prefix are
/// cleared.
fn parse_network(text: &str) -> Result<Network, InvalidConfig> {
    let wrong = || invalid(format!("allow: {text} is not a network (address/prefix)"));
    let (address, prefix) = text.split_once('/').map_or((text, None), |(a, p)| (a, Some(p)));
    let address: IpAddr = address.parse().map_err(|_| wrong())?;
    let bits = if address.is_ipv4() { 32_u8 } else { 128 };
    let prefix = prefix.map_or(Ok(bits), str::parse).map_err(|_| wrong())?;
    if prefix > bits {
        return Err(wrong());
    }
    let host_bits = u32::from(bits - prefix);
    let address = match address {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(host_bits).unwrap_or(0);
            IpAddr::V4((ip.to_bits() & mask).into())
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(host_bits).unwrap_or(0);
            IpAddr::V6((ip.to_bits() & mask).into())
        }
    };
    Ok(Network { address, prefix })
}
