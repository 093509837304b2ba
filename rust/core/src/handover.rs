//! What travels with a connection from one worker to another, as bytes.
//!
//! Both ends are the same program, so there is no version in it; lengths are checked all the same,
//! because a worker must never fall over another's mistake. Numbers are little-endian; a text is
//! its length and its bytes. Next on the path: `sharing.rs`.

use std::net::SocketAddr;
use std::rc::Rc;

use ledger::{Offer, Permit};

use crate::params::{ParamSet, Parameter, StartupParams};
use crate::pool::{Pool, PoolId, PoolKey};
use crate::prepared::{ServerStatements, StatementId};
use crate::server::{Server, State};
use crate::sink::{Address, Now};
use crate::variables::Variables;

/// First byte of a mail that brings a server.
pub const SERVER: u8 = 1;
/// First byte of a mail that brings a client which asked for a cancel.
pub const CANCEL: u8 = 2;

/// A server as it arrives.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) offer: Offer,
    pub(crate) key: PoolKey,
    pub(crate) address: Address,
    epoch: u64,
    serial: u64,
    since: Now,
    expires: Now,
    params: ParamSet,
    /// What a new client of the pool is told; the server has the last one's.
    pub(crate) pool_params: ParamSet,
    pub(crate) pool_application_name: Rc<[u8]>,
    application_name: Rc<[u8]>,
    variables: Variables,
    server_key: Option<(u32, Box<[u8]>)>,
    statements: ServerStatements,
}

impl Arrival {
    /// Its unnamed statement; 0 = none.
    #[cfg(test)]
    pub(crate) const fn unnamed(&self) -> StatementId {
        self.statements.unnamed
    }

    /// The server of this worker that it becomes. Under other settings than its sender's it serves
    /// nobody: its login may not be the right one any more.
    pub(crate) fn into_server(
        self,
        pool: PoolId,
        permit: Permit,
        address: Rc<Address>,
        epoch: u64,
    ) -> Server {
        let mut server = Server::new(pool, permit, address, self.since, self.expires);
        server.state = State::Arriving;
        server.fresh = false;
        server.unfit = self.epoch != epoch;
        server.serial = self.serial;
        server.params = Rc::new(self.params);
        server.application_name = self.application_name;
        server.variables = Rc::new(self.variables);
        server.key = self.server_key;
        server.statements = self.statements;
        server
    }
}

/// Writes the mail that goes with a server at rest.
pub(crate) fn write_server(
    out: &mut Vec<u8>,
    server: &Server,
    pool: &Pool,
    offer: Offer,
    epoch: u64,
) {
    let key = &pool.key;
    out.push(SERVER);
    number(out, u64::from(offer.slot));
    for value in [offer.word, epoch, server.serial, server.since.0, server.expires.0] {
        number(out, value);
    }
    match &*server.address {
        Address::Tcp(address) => text(out, address.to_string().as_bytes()),
        Address::Unix(path) => text(out, path.as_bytes()),
    }
    text(out, key.user.as_bytes());
    text(out, &key.database);
    parameters(out, &key.params.0);
    parameters(out, server.params.parameters());
    parameters(out, pool.params.as_ref().unwrap_or(&server.params).parameters());
    text(out, &pool.application_name);
    text(out, &server.application_name);
    let variables = server.variables.entries();
    number(out, variables.len() as u64);
    for (name, sql) in variables {
        text(out, name);
        text(out, sql);
    }
    let (pid, secret) = server.key.as_ref().map_or((0, &[][..]), |(pid, key)| (*pid, &**key));
    number(out, u64::from(pid));
    text(out, secret);
    out.extend_from_slice(&server.statements.unnamed.to_le_bytes());
    let statements = server.statements.ids();
    number(out, statements.len() as u64);
    for id in statements {
        out.extend_from_slice(&id.to_le_bytes());
    }
}

/// Reads it; `None` if it is cut short or no such mail.
pub(crate) fn read_server(body: &[u8]) -> Option<Arrival> {
    let mut rest = body;
    let rest = &mut rest;
    let slot = u32::try_from(take_number(rest)?).ok()?;
    let offer = Offer { slot, word: take_number(rest)? };
    let (epoch, serial) = (take_number(rest)?, take_number(rest)?);
    let (since, expires) = (Now(take_number(rest)?), Now(take_number(rest)?));
    let address = std::str::from_utf8(take_text(rest)?).ok()?;
    let address = match address.parse::<SocketAddr>() {
        Ok(address) => Address::Tcp(address),
        Err(_) => Address::Unix(address.to_owned()),
    };
    let user = std::str::from_utf8(take_text(rest)?).ok()?.into();
    let database = take_text(rest)?.into();
    let key = PoolKey { user, database, params: StartupParams(take_parameters(rest)?) };
    let params = ParamSet::from_parameters(take_parameters(rest)?);
    let pool_params = ParamSet::from_parameters(take_parameters(rest)?);
    let pool_application_name = Rc::from(take_text(rest)?);
    let application_name = Rc::from(take_text(rest)?);
    let mut entries = Vec::new();
    for _ in 0..take_number(rest)? {
        entries.push((take_text(rest)?, take_text(rest)?));
    }
    let pid = u32::try_from(take_number(rest)?).ok()?;
    let secret = take_text(rest)?;
    let server_key = (!secret.is_empty()).then(|| (pid, secret.into()));
    let mut statements = ServerStatements::default();
    statements.unnamed = take_id(rest)?;
    for _ in 0..take_number(rest)? {
        statements.add_elsewhere(take_id(rest)?);
    }
    let arrival = Arrival {
        offer,
        key,
        address,
        epoch,
        serial,
        since,
        expires,
        params,
        pool_params,
        pool_application_name,
        application_name,
        variables: Variables::from_entries(entries)?,
        server_key,
        statements,
    };
    rest.is_empty().then_some(arrival)
}

/// Writes the mail that goes with a client which asked for a cancel.
pub(crate) fn write_cancel(out: &mut Vec<u8>, pid: u32, secret: &[u8]) {
    out.push(CANCEL);
    number(out, u64::from(pid));
    text(out, secret);
}

/// Reads it: the process number and the secret of the CancelRequest.
pub(crate) fn read_cancel(body: &[u8]) -> Option<(u32, &[u8])> {
    let mut rest = body;
    let pid = u32::try_from(take_number(&mut rest)?).ok()?;
    let secret = take_text(&mut rest)?;
    rest.is_empty().then_some((pid, secret))
}

fn number(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn text(out: &mut Vec<u8>, bytes: &[u8]) {
    number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn parameters(out: &mut Vec<u8>, parameters: &[Parameter]) {
    number(out, parameters.len() as u64);
    for (name, value) in parameters {
        text(out, name);
        text(out, value);
    }
}

fn take_number(rest: &mut &[u8]) -> Option<u64> {
    let (bytes, tail) = rest.split_first_chunk()?;
    *rest = tail;
    Some(u64::from_le_bytes(*bytes))
}

fn take_id(rest: &mut &[u8]) -> Option<StatementId> {
    let (bytes, tail) = rest.split_first_chunk()?;
    *rest = tail;
    Some(StatementId::from_le_bytes(*bytes))
}

fn take_text<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(take_number(rest)?).ok()?;
    let (bytes, tail) = rest.split_at_checked(length)?;
    *rest = tail;
    Some(bytes)
}

fn take_parameters(rest: &mut &[u8]) -> Option<Vec<Parameter>> {
    let count = take_number(rest)?;
    (0..count).map(|_| Some((take_text(rest)?.into(), take_text(rest)?.into()))).collect()
}

#[cfg(test)]
mod tests {
    use super::{CANCEL, read_cancel, read_server, write_cancel};

    #[test]
    fn a_cancel_arrives_as_it_was_sent_and_a_cut_one_not_at_all() {
        let mut mail = Vec::new();
        write_cancel(&mut mail, 7, b"secret");
        assert_eq!(mail.first(), Some(&CANCEL));
        assert_eq!(read_cancel(&mail[1..]), Some((7, &b"secret"[..])));
        for end in 0..mail.len() - 1 {
            assert_eq!(read_cancel(&mail[1..=end]), None);
        }
    }

    #[test]
    fn claimed_lengths_beyond_the_mail_are_refused() {
        let mut body = vec![0; 48];
        body.extend_from_slice(&u64::MAX.to_le_bytes());
        assert!(read_server(&body).is_none());
        assert!(read_server(&[]).is_none());
    }
}
