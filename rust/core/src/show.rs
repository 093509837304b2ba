//! What a person sees of clients, servers, pools and targets: rows as JSON.
//!
//! Columns carry PgBouncer's names where it has them. Never SQL text, parameters or secrets (I9).
//! A table is written in one go: about a microsecond a row. Next on the path: `core.rs`.

use crate::client::{self, Client};
use crate::config::PoolMode;
use crate::core::Core;
use crate::pool::Pool;
use crate::server::{self, Server};
use crate::sink::{Address, Now, Peer};

/// One of the tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Show {
    /// Client connections.
    Clients,
    /// Server connections.
    Servers,
    /// Pools.
    Pools,
    /// Target addresses.
    Targets,
}

/// A JSON array that is being written.
struct Rows<'a> {
    out: &'a mut Vec<u8>,
    first: bool,
}

/// A JSON object that is being written.
struct Row<'a> {
    out: &'a mut Vec<u8>,
    first: bool,
}

impl Rows<'_> {
    fn row(&mut self, write: impl FnOnce(&mut Row<'_>)) {
        self.out.extend_from_slice(if self.first { b"{" } else { b",\n{" });
        self.first = false;
        write(&mut Row { out: self.out, first: true });
        self.out.push(b'}');
    }
}

impl Row<'_> {
    fn name(&mut self, name: &str) {
        if !std::mem::take(&mut self.first) {
            self.out.push(b',');
        }
        self.text_value(name.as_bytes());
        self.out.push(b':');
    }

    fn text_value(&mut self, text: &[u8]) {
        self.out.push(b'"');
        for character in String::from_utf8_lossy(text).chars() {
            match character {
                '"' | '\\' => self.out.extend_from_slice(&[b'\\', character as u8]),
                control if control < ' ' => {
                    let code = u32::from(control);
                    self.out.extend_from_slice(format!("\\u{code:04x}").as_bytes());
                }
                other => self.out.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        self.out.push(b'"');
    }

    fn text(&mut self, name: &str, text: &[u8]) {
        self.name(name);
        self.text_value(text);
    }

    fn number(&mut self, name: &str, value: u64) {
        self.name(name);
        self.out.extend_from_slice(value.to_string().as_bytes());
    }

    fn flag(&mut self, name: &str, value: bool) {
        self.name(name);
        self.out.extend_from_slice(if value { b"true" } else { b"false" });
    }

    fn maybe_text(&mut self, name: &str, text: Option<&[u8]>) {
        self.name(name);
        match text {
            Some(text) => self.text_value(text),
            None => self.out.extend_from_slice(b"null"),
        }
    }

    fn maybe_number(&mut self, name: &str, value: Option<u64>) {
        self.name(name);
        match value {
            Some(value) => self.out.extend_from_slice(value.to_string().as_bytes()),
            None => self.out.extend_from_slice(b"null"),
        }
    }
}

fn address_text(address: &Address) -> String {
    match address {
        Address::Tcp(address) => address.to_string(),
        Address::Unix(path) => path.clone(),
    }
}

impl Core {
    /// Appends a table as a JSON array of objects.
    pub fn show(&self, what: Show, now: Now, out: &mut Vec<u8>) {
        out.push(b'[');
        let mut rows = Rows { out, first: true };
        match what {
            Show::Clients => {
                self.clients.iter().for_each(|(_, c)| rows.row(|row| self.client_row(c, now, row)));
            }
            Show::Servers => {
                self.servers.iter().for_each(|(_, s)| rows.row(|row| self.server_row(s, now, row)));
            }
            Show::Pools => {
                self.pools.iter().for_each(|(_, p)| rows.row(|row| self.pool_row(p, now, row)));
            }
            Show::Targets => self.target_rows(now, &mut rows),
        }
        out.push(b']');
    }

    fn client_row(&self, client: &Client, now: Now, row: &mut Row<'_>) {
        let session = client.session.as_deref();
        let pool = session.and_then(|session| self.pools.get(session.pool));
        let server = client.server().and_then(|id| self.servers.get(id));
        row.number("id", client.number);
        row.maybe_text("user", pool.map(|pool| pool.key.user.as_bytes()));
        row.maybe_text("database", pool.map(|pool| &*pool.key.database));
        row.text("state", client_state(client, server).as_bytes());
        match client.peer {
            Peer::Tcp(address) => row.text("addr", address.to_string().as_bytes()),
            Peer::Unix => row.text("addr", b"unix"),
        }
        row.maybe_text("application_name", session.map(|session| &*session.application_name));
        row.number("state_us", now.since(client.since));
        let waits = matches!(client.state, client::State::Waiting { .. });
        row.number("wait_us", if waits { now.since(client.since) } else { 0 });
        let pin = session.and_then(|session| session.pin.reason());
        row.maybe_text("pinned", pin.map(|reason| reason.as_str().as_bytes()));
        let pid = server.and_then(|server| server.key.as_ref()).map(|(pid, _)| u64::from(*pid));
        row.maybe_number("server_pid", pid);
        let statements = session.map_or(0, |session| session.statements.named.len());
        row.number("prepared_statements", statements as u64);
    }

    fn server_row(&self, server: &Server, now: Now, row: &mut Row<'_>) {
        let pool = self.pools.get(server.pool);
        row.maybe_number("pid", server.key.as_ref().map(|(pid, _)| u64::from(*pid)));
        row.maybe_text("user", pool.map(|pool| pool.key.user.as_bytes()));
        row.maybe_text("database", pool.map(|pool| &*pool.key.database));
        row.text("state", server_state(server).as_bytes());
        row.text("addr", address_text(&server.address).as_bytes());
        row.number("state_us", now.since(server.since));
        let client = server.client().and_then(|id| self.clients.get(id));
        row.maybe_number("client", client.map(|client| client.number));
        row.number("prepared_statements", server.statements.ids().len() as u64);
        row.flag("close_needed", server.unfit);
        row.number("cancels", u64::from(server.cancels));
    }

    fn pool_row(&self, pool: &Pool, now: Now, row: &mut Row<'_>) {
        let id = self.pool_by_key.get(&pool.key);
        let of_pool = |server: &&Server| Some(&server.pool) == id;
        let servers = || self.servers.iter().map(|(_, server)| server).filter(of_pool);
        let count = |is: fn(&server::State) -> bool| {
            servers().filter(|server| is(&server.state)).count() as u64
        };
        let active = count(|state| matches!(state, server::State::Linked { .. }));
        let waits = pool.waiters().into_iter().filter_map(|(ticket, id)| {
            let client = self.clients.get(id).filter(|client| client.waits_with(ticket))?;
            Some(now.since(client.since))
        });
        row.text("database", &pool.key.database);
        row.text("user", pool.key.user.as_bytes());
        row.number("cl_total", u64::from(pool.clients));
        row.number("cl_active", active);
        row.number("cl_waiting", u64::from(pool.waiting()));
        row.number("sv_active", active);
        row.number("sv_idle", pool.idle.len() as u64);
        row.number("sv_login", u64::from(pool.connecting));
        row.number("sv_total", servers().count() as u64);
        row.number("maxwait_us", waits.max().unwrap_or(0));
        let mode = match self.config.mode {
            PoolMode::Transaction => "transaction",
            PoolMode::Session => "session",
        };
        row.text("pool_mode", mode.as_bytes());
        row.flag("paused", pool.paused);
        row.maybe_text("last_failure", pool.last_failure.as_deref().map(str::as_bytes));
    }

    fn target_rows(&self, now: Now, rows: &mut Rows<'_>) {
        for target in &self.targets {
            let is_its = |server: &Server| server.address == target.address;
            let servers = self.servers.iter().filter(|(_, server)| is_its(server)).count();
            rows.row(|row| {
                row.text("addr", address_text(&target.address).as_bytes());
                row.flag("answers", target.backoff.is_over(now));
                row.number("servers", servers as u64);
            });
        }
    }
}

fn client_state(client: &Client, server: Option<&Server>) -> &'static str {
    match client.state {
        client::State::Login(_) | client::State::Welcome => "login",
        client::State::Cancelling => "cancel",
        client::State::Idle => "idle",
        client::State::Waiting { .. } => "waiting",
        client::State::Linked { .. } => match server {
            Some(server) if server.is_busy() => "active",
            Some(server) if server.status != b'I' => "idle_in_transaction",
            _ => "linked",
        },
    }
}

fn server_state(server: &Server) -> &'static str {
    match server.state {
        server::State::Connecting => "connecting",
        server::State::LoggingIn(_) => "login",
        server::State::Working(task) => task.as_str(),
        server::State::Idle => "idle",
        server::State::Linked { .. } => "active",
        server::State::Abandoned { .. } => "abandoned",
        server::State::Leaving { .. } => "leaving",
        server::State::Arriving => "arriving",
        server::State::Closing => "closing",
    }
}

#[cfg(test)]
mod tests {
    use super::Row;

    #[test]
    fn texts_of_clients_cannot_break_out_of_the_json() {
        let mut out = Vec::new();
        let mut row = Row { out: &mut out, first: true };
        row.text("a", b"\"\\\n\x01\xFF\xC3\xA4");
        row.maybe_text("b", None);
        row.number("c", 7);
        row.flag("d", true);
        let expected =
            "\"a\":\"\\\"\\\\\\u000a\\u0001\u{FFFD}\u{E4}\",\"b\":null,\"c\":7,\"d\":true";
        assert_eq!(String::from_utf8_lossy(&out), expected);
    }
}
