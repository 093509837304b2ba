//! A server connection: its states, what it owes, and what is known of its session.
//!
//! ```text
//!   connect ──► Connecting ──► LoggingIn ──► Working ──► Idle ◄────────┐
//!                                              ▲  ▲       │ borrow     │
//!                                  reset, init │  │ check ▼            │ release rule (I1)
//!                                              │  └──── Linked ────────┤
//!                        replies to the client │          │ client left│
//!                        that left have come   └───── Abandoned        │
//!   Closing (Terminate or FIN sent, the server's end awaited) ◄── any ─┘ when it is unfit
//!
//!   Idle ──► Leaving ──► (another worker) Arriving ──► Working: a client there waits longer
//! ```
//! The permit is given back when the server's end has been seen. Next on the path: `pg/replies.rs`.

use std::rc::Rc;

use ledger::{Offer, Permit};

use crate::ids::ClientId;
use crate::owed::{self, Queue};
use crate::params::ParamSet;
use crate::pg::server_login::ServerLogin;
use crate::pool::PoolId;
use crate::prepared::{ServerStatements, StatementId};
use crate::sink::{Address, Now};
use crate::timer::Timer;
use crate::variables::{Pending, Variables};

/// Our own work on a server, one query each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Task {
    /// `ROLLBACK` of what a departed client left open.
    Rollback,
    /// `DISCARD ALL` after a pinned client or a session.
    Reset,
    /// Reads the target's connection limits.
    Limits,
    /// `init_query`.
    Init,
    /// Asks whether the server still lives.
    Check,
}

impl Task {
    /// What the operator calls it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Rollback => "rollback",
            Self::Reset => "reset",
            Self::Limits => "reading the target's limits",
            Self::Init => "init_query",
            Self::Check => "liveness check",
        }
    }
}

/// Which of our own work a server needs before the next client.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Needs {
    pub(crate) reset: bool,
    pub(crate) limits: bool,
    pub(crate) init: bool,
    pub(crate) check: bool,
}

/// Where a server stands.
#[derive(Debug)]
pub(crate) enum State {
    Connecting,
    LoggingIn(Box<ServerLogin>),
    /// Our own query runs.
    Working(Task),
    Idle,
    Linked {
        client: ClientId,
    },
    /// Its client left; replies are thrown away.
    Abandoned {
        bytes: u64,
    },
    /// On its way to another worker; its permit is in the offer.
    Leaving {
        offer: Offer,
    },
    /// Come from another worker; the engine adopts its socket.
    Arriving,
    Closing,
}

/// COPY FROM STDIN as the server sees it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) enum CopyIn {
    #[default]
    No,
    /// The server reads copy data; `ended`: CopyDone or CopyFail has been sent.
    Reading { ended: bool },
}

/// Why a server is not read from; any set bit pauses.
pub(crate) mod pause {
    /// The client's queue is full.
    pub(crate) const PEER: u8 = 1;
}

/// One server connection.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) state: State,
    pub(crate) pool: PoolId,
    pub(crate) permit: Option<Permit>,
    /// Where it listens.
    pub(crate) address: Rc<Address>,
    pub(crate) owed: Queue,
    /// Transaction status of the last ReadyForQuery: `I`, `T` or `E`.
    pub(crate) status: u8,
    pub(crate) statements: ServerStatements,
    /// Bytes left of a reply whose head has been dealt with, and whether they go to the client.
    pub(crate) stream_left: usize,
    pub(crate) stream_forward: bool,
    /// A reply's beginning that had to be kept.
    pub(crate) partial: Vec<u8>,
    pub(crate) params: Rc<ParamSet>,
    pub(crate) application_name: Rc<[u8]>,
    /// The variables that are set on it, but for what the open transaction makes of them.
    pub(crate) variables: Rc<Variables>,
    /// What that is.
    pub(crate) pending: Pending,
    /// The server's own process number and secret, for CancelRequests.
    pub(crate) key: Option<(u32, Box<[u8]>)>,
    pub(crate) timer: Timer,
    pub(crate) since: Now,
    /// When it is to be replaced.
    pub(crate) expires: Now,
    pub(crate) copy_in: CopyIn,
    /// Syncs sent while the server read copy data: it may or may not have counted them.
    pub(crate) doubtful_sync: bool,
    /// Something has been answered since the last ReadyForQuery.
    pub(crate) begun: bool,
    /// A RESET or DISCARD ALL has run since the last ReadyForQuery.
    pub(crate) was_reset: bool,
    /// It must not serve another client.
    pub(crate) unfit: bool,
    pub(crate) needs: Needs,
    /// CancelRequests on their way to it.
    pub(crate) cancels: u32,
    pub(crate) congested: bool,
    pub(crate) paused: u8,
    /// What it said when one of our own queries failed.
    pub(crate) failure: Option<String>,
    /// It has never been ready.
    pub(crate) fresh: bool,
    /// Its pool's number when it was opened.
    pub(crate) serial: u64,
}

impl Server {
    pub(crate) fn new(
        pool: PoolId,
        permit: Permit,
        address: Rc<Address>,
        now: Now,
        expires: Now,
    ) -> Self {
        Self {
            state: State::Connecting,
            pool,
            permit: Some(permit),
            address,
            owed: Queue::default(),
            status: b'I',
            statements: ServerStatements::default(),
            stream_left: 0,
            stream_forward: false,
            partial: Vec::new(),
            params: Rc::default(),
            application_name: Rc::from(&b""[..]),
            variables: Rc::default(),
            pending: Pending::default(),
            key: None,
            timer: Timer::default(),
            since: now,
            expires,
            copy_in: CopyIn::No,
            doubtful_sync: false,
            begun: false,
            was_reset: false,
            unfit: false,
            needs: Needs::default(),
            cancels: 0,
            congested: false,
            paused: 0,
            failure: None,
            fresh: true,
            serial: 0,
        }
    }

    /// The client it serves.
    #[inline]
    pub(crate) fn client(&self) -> Option<ClientId> {
        match self.state {
            State::Linked { client } => Some(client),
            _ => None,
        }
    }

    /// Whether a request was sent whose end has not come.
    #[inline]
    pub(crate) fn is_busy(&self) -> bool {
        !self.owed.is_empty()
            || self.owed.is_open()
            || self.owed.is_skipping()
            || self.copy_in != CopyIn::No
    }

    /// What its unnamed statement is when it reads what comes next, if that is certain; 0 = none.
    pub(crate) fn expected_unnamed(&self) -> Option<StatementId> {
        match self.owed.unnamed() {
            owed::Pending::Will(id) => Some(id),
            owed::Pending::Unsure => None,
            owed::Pending::Untouched => Some(self.statements.unnamed),
        }
    }

    /// The server's half of the release rule (I1): all ReadyForQuery have come, the last one says
    /// idle, no COPY is open, no batch waits for its Sync, no reply is half through, no cancel is
    /// on its way.
    #[inline]
    pub(crate) fn is_at_rest(&self) -> bool {
        if crate::broken::is("release_rule") {
            return self.owed.readies() == 0;
        }
        self.status == b'I' && self.is_done()
    }

    /// The same but for the transaction status.
    pub(crate) fn is_done(&self) -> bool {
        self.owed.is_empty()
            && !self.owed.is_open()
            && !self.owed.is_skipping()
            && self.copy_in == CopyIn::No
            && self.stream_left == 0
            && self.cancels == 0
    }
}
