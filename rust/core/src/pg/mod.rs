//! PostgreSQL: what the multiplexer knows of its protocol. MySQL's side has the same file names.

pub(crate) mod departure;
pub(crate) mod extended;
pub(crate) mod input;
pub(crate) mod login;
pub(crate) mod names;
pub(crate) mod release;
pub(crate) mod replies;
pub(crate) mod requests;
pub(crate) mod restore;
pub(crate) mod server_login;
pub(crate) mod statements;
