//! Plain data that Python hands down: one proxy's settings, checked before they arrive here.
//!
//! Times are in milliseconds, 0 means none unless said otherwise. Next on the path: `core.rs`.

use ledger::Limit;

use crate::sink::Address;

/// When a server connection changes hands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PoolMode {
    /// At the end of each transaction.
    Transaction,
    /// When the client ends.
    Session,
}

/// How a client proves who it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ClientAuth {
    /// No proof; Python allows it only on loopback and Unix listeners, and the core checks the peer
    /// again.
    Trust,
    /// SCRAM-SHA-256 against a stored verifier (`SCRAM-SHA-256$…`).
    Scram(auth::Verifier),
    /// md5 against `md5(password ‖ user)` as 32 hex digits.
    Md5([u8; 32]),
}

/// One user who may log in, and how the database is entered for it.
#[derive(Clone, Debug)]
pub struct Credential {
    /// The client's user name.
    pub user: String,
    /// How the client proves it.
    pub client_auth: ClientAuth,
    /// Databases this user may ask for; empty = all.
    pub databases: Vec<String>,
    /// The database's user name.
    pub server_user: String,
    /// The database's password, if one is known.
    pub server_password: Option<auth::Secret>,
}

/// A network in CIDR form.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Network {
    /// The address; bits beyond `prefix` are 0.
    pub address: std::net::IpAddr,
    /// Leading bits that count.
    pub prefix: u8,
}

impl Network {
    /// Whether an address lies in the network. IPv4 and IPv6 never match each other.
    #[must_use]
    pub fn contains(&self, ip: std::net::IpAddr) -> bool {
        use std::net::IpAddr::{V4, V6};
        let (a, b, width) = match (self.address, ip) {
            (V4(a), V4(b)) => (u128::from(a.to_bits()), u128::from(b.to_bits()), 32),
            (V6(a), V6(b)) => (a.to_bits(), b.to_bits(), 128),
            _ => return false,
        };
        let host_bits = width - u32::from(self.prefix).min(width);
        host_bits == 128 || (a ^ b) >> host_bits == 0
    }
}

/// One proxy (`[[proxy]]`) as the core needs it.
#[derive(Clone, Debug)]
pub struct Config {
    /// The proxy's name, for errors and logs.
    pub name: String,
    /// Workers that share the budget, at least 1.
    pub workers: u32,
    /// Networks whose clients may connect; Unix sockets always may.
    pub allow: Vec<Network>,
    /// Most clients at a time, log-ins included, at least 1.
    pub client_connections_max: u32,
    /// Who may log in.
    pub credentials: Vec<Credential>,
    /// The database server, by preference; the first that answers is used. None: clients wait until
    /// an address is known.
    pub targets: Vec<Address>,
    /// The target as a person knows it (`db1.internal:5432`).
    pub target_name: String,
    /// When servers change hands.
    pub mode: PoolMode,
    /// The budget of all workers together.
    pub limit: Limit,
    /// Servers that all workers together keep warm for each (database, user) pool that is in use.
    pub min_connections: u32,
    /// Idle servers kept, as percent of the budget.
    pub max_idle_percent: u8,
    /// Longest wait for a server; 0 = an error unless one is free at once.
    pub borrow_timeout_ms: u64,
    /// An idle server above the minimum is closed after this.
    pub idle_timeout_ms: u64,
    /// A server is replaced after this, jittered downwards by up to 10 %.
    pub max_lifetime_ms: u64,
    /// A server that idled longer than this is asked whether it lives before a client gets it.
    pub check_delay_ms: u64,
    /// A client without a request for this long is ended.
    pub idle_client_timeout_ms: u64,
    /// A client idle inside a transaction for this long is ended.
    pub idle_transaction_timeout_ms: u64,
    /// A request that runs longer is cancelled (57014); its client is ended only if it still does
    /// not stop.
    pub query_timeout_ms: u64,
    /// A waiter gets a NOTICE with its place in the queue after this.
    pub query_wait_notify_ms: u64,
    /// A client must have logged in after this, at least 1.
    pub login_timeout_ms: u64,
    /// A server must have been connected and logged in after this, at least 1.
    pub connect_timeout_ms: u64,
    /// SQL run on each new server before its first client; empty = none.
    pub init_query: String,
    /// Prepared statements kept on a server, at least 1.
    pub prepared_statements_max: u32,
    /// Databases whose clients get no server until they are resumed; `*` = all.
    pub paused: Vec<String>,
    /// Databases (`*` = all) whose servers are replaced, each with a number that grows with each
    /// such order.
    pub reconnect: Vec<(String, u64)>,
}

impl Config {
    /// A user and its place among the credentials.
    #[must_use]
    pub fn credential(&self, user: &str) -> Option<(usize, &Credential)> {
        self.credentials.iter().enumerate().find(|(_, credential)| credential.user == user)
    }

    /// What this worker keeps warm of `min_connections`: its share, rounded up.
    #[must_use]
    pub fn min_share(&self) -> u32 {
        self.min_connections.div_ceil(self.workers.max(1))
    }

    /// Whether a database is paused.
    #[must_use]
    pub fn is_paused(&self, database: &[u8]) -> bool {
        self.paused.iter().any(|name| name == "*" || name.as_bytes() == database)
    }

    /// The number of the last order to replace a database's servers; 0 = none.
    #[must_use]
    pub fn reconnect_serial(&self, database: &[u8]) -> u64 {
        let named = |name: &str| name == "*" || name.as_bytes() == database;
        let serials = self.reconnect.iter().filter(|(name, _)| named(name));
        serials.map(|(_, serial)| *serial).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::Network;

    #[test]
    fn a_network_holds_its_own_addresses_only() {
        let network = |address: &str, prefix| Network {
            address: address.parse().unwrap_or(std::net::Ipv4Addr::UNSPECIFIED.into()),
            prefix,
        };
        let cases = [
            ("127.0.0.0", 8, "127.255.0.1", true),
            ("127.0.0.0", 8, "128.0.0.1", false),
            ("10.1.2.3", 32, "10.1.2.3", true),
            ("10.1.2.3", 32, "10.1.2.2", false),
            ("0.0.0.0", 0, "203.0.113.9", true),
            ("0.0.0.0", 0, "::1", false),
            ("::1", 128, "::1", true),
            ("::", 0, "2001:db8::1", true),
            ("2001:db8::", 32, "2001:db9::", false),
        ];
        for (address, prefix, ip, expected) in cases {
            let ip = ip.parse().unwrap_or(std::net::Ipv4Addr::BROADCAST.into());
            assert_eq!(network(address, prefix).contains(ip), expected, "{address}/{prefix} {ip}");
        }
    }
}
