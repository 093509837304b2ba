//! Keys that all workers of this host share, derived from the page's secret.
//!
//! What they name or hide means the same in every worker and nothing to anybody else. Next on the
//! path: `pool.rs`, `cancel.rs`.

use crate::sink::Address;

/// Keys that all workers of this host derive from the page's secret.
#[derive(Debug)]
pub(crate) struct Keys {
    /// For the numbers of pools and targets.
    pub(crate) pools: [u8; 32],
    /// For the names of statements on servers.
    pub(crate) statements: [u8; 32],
    /// For the salts that unknown users see.
    pub(crate) mock: [u8; 32],
    /// For the way of a CancelRequest to its worker.
    pub(crate) route: [u8; 32],
}

impl Keys {
    pub(crate) fn new(secret: [u8; 32]) -> Self {
        let key = |label: &str| auth::keyed_hash(&secret, &[label.as_bytes()]);
        Self {
            pools: key("pools"),
            statements: key("statements"),
            mock: key("mock"),
            route: key("route"),
        }
    }

    /// Names a target alike in every worker.
    pub(crate) fn address_number(&self, address: &Address) -> u64 {
        let hash = match address {
            Address::Tcp(address) => {
                auth::keyed_hash(&self.pools, &[b"tcp", address.to_string().as_bytes()])
            }
            Address::Unix(path) => auth::keyed_hash(&self.pools, &[b"unix", path.as_bytes()]),
        };
        hash.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
    }
}
