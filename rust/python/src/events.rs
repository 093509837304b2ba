//! Events of the engine as `(kind, fields)` for the worker's log.
//!
//! Kinds and fields are those of `proxy_core::event::Event` in snake case; enums become words,
//! peers become their address or `unix`. Next on the path: `pyproxy/worker/bridge.py`.

use proxy_core::event::{Event, Level};
use proxy_core::sink::Peer;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

/// What Python gets of one event.
pub(crate) type Record<'py> = (&'static str, Bound<'py, PyDict>);

/// Turns one event into its kind and fields.
pub(crate) fn to_record(py: Python<'_>, event: Event) -> PyResult<Record<'_>> {
    let fields = PyDict::new(py);
    let kind = match event {
        Event::LoginFailed { peer, user, reason } => {
            fields.set_item("peer", peer_text(peer))?;
            fields.set_item("user", user)?;
            fields.set_item("reason", reason)?;
            "login_failed"
        }
        Event::Pinned { client, pool, reason } => {
            fields.set_item("client", client)?;
            fields.set_item("pool", pool)?;
            fields.set_item("reason", reason.as_str())?;
            "pinned"
        }
        Event::Unpinned { client, after_ms } => {
            fields.set_item("client", client)?;
            fields.set_item("after_ms", after_ms)?;
            "unpinned"
        }
        Event::ServerFailed { pool, reason, sqlstate } => {
            fields.set_item("pool", pool)?;
            fields.set_item("reason", reason)?;
            let sqlstate = sqlstate.map(|code| String::from_utf8_lossy(&code).into_owned());
            fields.set_item("sqlstate", sqlstate)?;
            "server_failed"
        }
        Event::ServerKeysNeeded { credential, epoch, salt, iterations } => {
            fields.set_item("credential", credential)?;
            fields.set_item("epoch", epoch)?;
            fields.set_item("salt", PyBytes::new(py, &salt))?;
            fields.set_item("iterations", iterations)?;
            "server_keys_needed"
        }
        Event::ProtocolViolation { side, reason } => {
            fields.set_item("side", side)?;
            fields.set_item("reason", reason)?;
            "protocol_violation"
        }
        Event::BudgetChanged { allowed } => {
            fields.set_item("allowed", allowed)?;
            "budget_changed"
        }
        Event::Log { level, text } => {
            fields.set_item("level", level_text(level))?;
            fields.set_item("text", text)?;
            "log"
        }
    };
    Ok((kind, fields))
}

fn peer_text(peer: Peer) -> String {
    match peer {
        Peer::Tcp(address) => address.to_string(),
        Peer::Unix => "unix".to_owned(),
    }
}

const fn level_text(level: Level) -> &'static str {
    match level {
        Level::Debug => "debug",
        Level::Info => "info",
        Level::Warning => "warning",
        Level::Error => "error",
    }
}
