//! The four works: what one transaction of each is.
//!
//! The peers check what they get, so that a count is never one of work left undone.

use pgwire::frame::HEAD_BYTES;
use pgwire::{tag, write};

use crate::Failure;
use crate::stage::Stage;

/// Bytes of the large answer's rows, and of one value.
const LARGE_BYTES: usize = 4 << 20;
const VALUE_BYTES: usize = 100;

/// One of the works.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Work {
    /// A client asks and gets one row.
    RelaySmall,
    /// A client asks and gets 4 MiB in rows of 100 bytes.
    RelayLarge,
    /// Two clients in turn run a statement that each has prepared, on one server: it is given back
    /// after each.
    Prepared,
    /// A client connects, logs in with SCRAM-SHA-256, asks, gets one row and leaves.
    Login,
}

impl Work {
    /// The names of all works.
    pub(crate) const NAMES: [&str; 4] = ["relay_small", "relay_large", "prepared", "login"];

    /// The work of this name.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        let all = [Self::RelaySmall, Self::RelayLarge, Self::Prepared, Self::Login];
        let at = Self::NAMES.iter().position(|each| *each == name)?;
        all.get(at).copied()
    }

    /// Plays so many transactions.
    pub(crate) fn play(self, stage: &mut Stage, transactions: u32) -> Result<(), Failure> {
        match self {
            Self::RelaySmall => relay_small(stage, transactions),
            Self::RelayLarge => relay_large(stage, transactions),
            Self::Prepared => prepared(stage, transactions),
            Self::Login => login(stage, transactions),
        }
    }
}

fn relay_small(stage: &mut Stage, transactions: u32) -> Result<(), Failure> {
    let mut client = stage.client()?;
    let (request, answer) = (query(), rows(&[b"1"]));
    for _ in 0..transactions {
        stage.ask(&mut client, &request, tag::QUERY)?;
        stage.answer(&mut client, &answer)?;
    }
    Ok(())
}

fn relay_large(stage: &mut Stage, transactions: u32) -> Result<(), Failure> {
    let mut client = stage.client()?;
    let (request, value) = (query(), [b'x'; VALUE_BYTES]);
    let answer = rows(&vec![&value[..]; LARGE_BYTES / VALUE_BYTES]);
    for _ in 0..transactions {
        stage.ask(&mut client, &request, tag::QUERY)?;
        stage.answer(&mut client, &answer)?;
    }
    Ok(())
}

fn prepared(stage: &mut Stage, transactions: u32) -> Result<(), Failure> {
    let mut bytes = Vec::new();
    write::parse(&mut bytes, b"by_id", b"SELECT name FROM items WHERE id = $1", &[]);
    write::sync(&mut bytes);
    let prepare = std::mem::take(&mut bytes);
    write::parse_complete(&mut bytes);
    write::ready_for_query(&mut bytes, b'I');
    let prepared = std::mem::take(&mut bytes);
    let mut clients = [stage.client()?, stage.client()?];
    for client in &mut clients {
        // The second client's Parse is answered by the proxy, since the server has the statement.
        let asked = stage.ask(client, &prepare, tag::SYNC)?;
        let is_known = asked.first() == Some(&tag::SYNC);
        stage
            .server
            .say(prepared.get(if is_known { HEAD_BYTES } else { 0 }..).unwrap_or_default())?;
        client.hear(&mut stage.turns, tag::READY_FOR_QUERY)?;
    }
    let request = bind_execute_sync();
    write::bind_complete(&mut bytes);
    write::data_row(&mut bytes, &[Some(b"a name of usual length")]);
    write::command_complete(&mut bytes, b"SELECT 1");
    write::ready_for_query(&mut bytes, b'I');
    for (_, turn) in (0..transactions).zip([0, 1].into_iter().cycle()) {
        let Some(client) = clients.get_mut(turn) else { break };
        stage.ask(client, &request, tag::SYNC)?;
        stage.answer(client, &bytes)?;
    }
    Ok(())
}

fn login(stage: &mut Stage, transactions: u32) -> Result<(), Failure> {
    let (request, answer) = (query(), rows(&[b"1"]));
    for _ in 0..transactions {
        let mut client = stage.client()?;
        stage.ask(&mut client, &request, tag::QUERY)?;
        stage.answer(&mut client, &answer)?;
        stage.leave(client)?;
    }
    Ok(())
}

fn query() -> Vec<u8> {
    let mut bytes = Vec::new();
    write::query(&mut bytes, b"SELECT id FROM items WHERE id = 1");
    bytes
}

/// The answer to a Query: a row of one column for each value.
fn rows(values: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    write::row_description_text(&mut bytes, &["id"]);
    for value in values {
        write::data_row(&mut bytes, &[Some(value)]);
    }
    write::command_complete(&mut bytes, format!("SELECT {}", values.len()).as_bytes());
    write::ready_for_query(&mut bytes, b'I');
    bytes
}

fn bind_execute_sync() -> Vec<u8> {
    let mut bytes = Vec::new();
    // One parameter in text form, "12345"; results in text form.
    let rest = [&[0, 0, 0, 1, 0, 0, 0, 5][..], b"12345", &[0, 0]].concat();
    write::bind_head(&mut bytes, b"", b"by_id", rest.len());
    bytes.extend(rest);
    write::execute(&mut bytes, b"", 0);
    write::sync(&mut bytes);
    bytes
}
