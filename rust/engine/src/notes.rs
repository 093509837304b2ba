//! What comes to light during a call of the core: kept, and told when the call has returned.
//!
//! Both drivers have it; `B` is how a driver names a connection that is broken. Next on the path:
//! `epoll.rs`, `uring/mod.rs`.

use std::io;

use proxy_core::event::{Event, Level};
use proxy_core::ids::Conn;
use proxy_core::sink::Gone;
use rustix::io::Errno;

use crate::driver::Completion;
use crate::net;

/// One of these things.
#[derive(Debug)]
pub(crate) enum Note<B> {
    Connected(Conn),
    /// No connection could be opened; there is no socket.
    Refused(Conn, Gone),
    /// A send failed, or the peer is dead.
    Broken(B, Gone),
    Congested(Conn),
    Drained(Conn),
    Passed(Conn, bool),
    Notice(Event),
}

impl<B> Note<B> {
    /// What the loop is told; nothing of a connection that is gone meanwhile, as `is_open` says.
    ///
    /// # Errors
    /// A connection is broken: what is told of that is the driver's affair.
    pub(crate) fn tell<C>(
        self,
        is_open: impl FnOnce(Conn) -> bool,
    ) -> Result<Option<Completion<C>>, (B, Gone)> {
        let open = |conn| is_open(conn).then_some(conn);
        Ok(match self {
            Self::Connected(conn) => open(conn).map(Completion::Connected),
            Self::Refused(conn, why) => Some(Completion::Gone(conn, why)),
            Self::Congested(conn) => open(conn).map(Completion::Congested),
            Self::Drained(conn) => open(conn).map(Completion::Drained),
            Self::Passed(conn, true) => Some(Completion::Passed(conn, true)),
            Self::Passed(conn, false) => open(conn).map(|conn| Completion::Passed(conn, false)),
            Self::Notice(event) => Some(Completion::Notice(event)),
            Self::Broken(which, why) => return Err((which, why)),
        })
    }
}

/// No connection could be opened: the core is told, and the operator if it is this machine that has
/// no room for one.
pub(crate) fn refused<B>(conn: Conn, error: Errno) -> impl Iterator<Item = Note<B>> {
    let is_ours = matches!(error, Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM);
    let notice = is_ours.then(|| {
        let error = io::Error::from(error);
        let text = format!("no socket for a connection to a server: {error}");
        Note::Notice(Event::Log { level: Level::Warning, text })
    });
    notice.into_iter().chain([Note::Refused(conn, net::refusal(error))])
}
