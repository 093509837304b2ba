//! A client: its states, what it believes it has, and the message it is in the middle of.
//!
//! ```text
//!            start-up, password          pool's parameters unknown
//!  accept ──► Login ───────────────────► Welcome ──┐ first server is ready
//!               │  └── CancelRequest ──► Cancelling│
//!               └──────────────────────► Idle ◄────┘
//!                          request  │  ▲   ▲ timed out, cancelled
//!               no server is free   ▼  │   │
//!                    ┌────────── Waiting ──┘
//!        handed over │       │ server is free      ▲ release rule (I1)
//!                    └──────►└────► Linked ────────┘
//! ```
//! Any state ends when the client leaves. Next on the path: `pg/requests.rs`.

use std::rc::Rc;

use sqlscan::Scanner;

use crate::ids::ServerId;
use crate::params::ParamSet;
use crate::pg::login::Login;
use crate::pin::{Pin, PinReason};
use crate::pool::PoolId;
use crate::prepared::ClientStatements;
use crate::sink::{Now, Peer};
use crate::timer::Timer;
use crate::variables::{Assignment, Variables};

/// Where a client stands.
#[derive(Debug)]
pub(crate) enum State {
    /// Logging in.
    Login(Box<Login>),
    /// Logged in, but no server has told the pool's parameters yet.
    Welcome,
    /// It asked for a cancel and waits until that has been carried out.
    Cancelling,
    /// No request, no server.
    Idle,
    /// Its request waits for a server.
    Waiting { ticket: u64, notified: bool },
    /// It has a server.
    Linked { server: ServerId },
}

/// The rest of a message whose head has been dealt with.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    pub(crate) left: usize,
    pub(crate) drop: bool,
    /// Looks at SQL text that is too long to be held; taken when the text's NUL has come.
    pub(crate) scanner: Option<Box<Scanner>>,
}

/// What becomes of the next messages after a request was refused by the proxy itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Refuse {
    #[default]
    Nothing,
    /// The error has been sent; the head of the refused request has yet to show what ends it.
    Request,
    /// The error has been sent; all is dropped up to Sync, which is answered with ReadyForQuery.
    ToSync,
}

/// Why a client is not read from; any set bit pauses.
pub(crate) mod pause {
    pub(crate) const HELD: u8 = 1;
    pub(crate) const PEER: u8 = 2;
    pub(crate) const STALLED: u8 = 4;
}

/// What a logged-in client has and believes to have.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) pool: PoolId,
    /// What it was told at login or by its own SET.
    pub(crate) application_name: Rc<[u8]>,
    /// What `RESET application_name` returns to.
    pub(crate) application_name_at_start: Rc<[u8]>,
    /// The other parameters it was told.
    pub(crate) params: Rc<ParamSet>,
    /// The variables that it has set, but for what its open transaction makes of them.
    pub(crate) variables: Rc<Variables>,
    /// What running its unnamed portal makes of them.
    pub(crate) bound: Option<Rc<[Assignment]>>,
    pub(crate) statements: ClientStatements,
    pub(crate) pin: Pin,
    /// Its user is gone: it ends at its next idle point.
    pub(crate) dismissed: bool,
    /// Its BackendKeyData: a number and a secret of 4 (protocol 3.0) or 32 bytes.
    pub(crate) cancel_pid: u32,
    pub(crate) cancel_secret: [u8; 32],
    pub(crate) cancel_secret_len: u8,
    /// The server's statement clock when this batch began.
    pub(crate) batch_mark: u64,
    pub(crate) refuse: Refuse,
    /// A reply has been forwarded in part: nothing of ours may be sent before its rest.
    pub(crate) mid_reply: bool,
    /// The client was told a FATAL error: its end needs no second one.
    pub(crate) told_fatal: bool,
    /// A `query_timeout` cancel is on its way.
    pub(crate) timed_out: bool,
    /// Text of this session cannot be judged: it pins with its first statement.
    pub(crate) opaque: bool,
    /// A portal may be bound whose statement drops all names.
    pub(crate) drops_bound: bool,
    /// A named statement too long to be kept lives on the linked server.
    pub(crate) long_named: bool,
}

impl Session {
    /// Whether new names go to its server as they are, where SQL sees them.
    pub(crate) fn has_native_names(&self) -> bool {
        self.pin.has(PinReason::PreparedStatement)
    }
}

/// One client connection.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) state: State,
    pub(crate) session: Option<Box<Session>>,
    /// Received and not yet dealt with: a message's beginning, or a request that waits.
    pub(crate) held: Vec<u8>,
    pub(crate) stream: Stream,
    pub(crate) timer: Timer,
    /// When the current state or request began.
    pub(crate) since: Now,
    /// Unique on this host.
    pub(crate) number: u64,
    pub(crate) peer: Peer,
    pub(crate) paused: u8,
    /// What is sent to it piles up: its server is not read from.
    pub(crate) congested: bool,
    /// It sent FIN: it gets the replies it is owed, then its connection ends.
    pub(crate) eof: bool,
}

impl Client {
    pub(crate) fn new(number: u64, peer: Peer, login: Login, now: Now) -> Self {
        Self {
            state: State::Login(Box::new(login)),
            session: None,
            held: Vec::new(),
            stream: Stream::default(),
            timer: Timer::default(),
            since: now,
            number,
            peer,
            paused: 0,
            congested: false,
            eof: false,
        }
    }

    /// The server it has.
    #[inline]
    pub(crate) fn server(&self) -> Option<ServerId> {
        match self.state {
            State::Linked { server } => Some(server),
            _ => None,
        }
    }

    /// Whether its request waits with this ticket.
    pub(crate) fn waits_with(&self, ticket: u64) -> bool {
        matches!(self.state, State::Waiting { ticket: own, .. } if own == ticket)
    }
}

#[cfg(test)]
mod tests {
    use super::{Client, Session};

    #[test]
    fn an_idle_client_and_its_session_take_no_more_than_304_bytes() {
        let bytes = size_of::<Client>() + size_of::<Session>();
        assert!(bytes <= 304, "{bytes}");
    }
}
