//! Plain data that Python hands down: one proxy's settings, checked before they arrive here.
//!
//! Times are in milliseconds, 0 means none unless said otherwise. Next on the path: `core.rs`.

use crate::sink::Address;

/// When a server connection changes hands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PoolMode {
    /// At the end of each transaction.
    Transaction,
    /// When the client ends.
    Session,
}

/// How many server connections there may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BudgetLimit {
    /// An absolute number, at least 1.
    Connections(u32),
    /// Percent (1–100) of what the target allows to ordinary users.
    Percent(u8),
}

/// How a client proves who it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ClientAuth {
    /// No proof; Python allows it only on loopback and Unix listeners, and the core checks the peer again.
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

/// One proxy (`[[proxy]]`) as the core needs it.
#[derive(Clone, Debug)]
pub struct Config {
    /// The proxy's name, for errors and logs.
    pub name: String,
    /// This worker's number on the host, for names that must be unique there.
    pub worker: u16,
    /// How often this worker's slot was started, for the same.
    pub worker_generation: u32,
    /// Networks whose clients may connect; Unix sockets always may.
    pub allow: Vec<Network>,
    /// Most clients at a time, log-ins included, at least 1.
    pub client_connections_max: u32,
    /// Who may log in.
    pub credentials: Vec<Credential>,
    /// The database server, by preference; the first that answers is used.
    pub targets: Vec<Address>,
    /// The target as a person knows it (`db1.internal:5432`).
    pub target_name: String,
    /// When servers change hands.
    pub mode: PoolMode,
    /// The budget.
    pub limit: BudgetLimit,
    /// Servers kept warm for each (database, user) pool that has been used.
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
    /// A request that runs longer is cancelled and its client ended.
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
}
