//! The completion-shaped seam between the loop and the way the kernel is asked.
//!
//! A driver hands out *completions*: bytes have arrived, a connection is made, a queue has drained.
//! What was received stays valid until [`Driver::submit`] takes it back; the driver keeps it for
//! the sends made from it, or copies it. It keeps one send in flight a socket, in order. epoll
//! (`epoll.rs`) turns readiness into completions; io_uring (`uring/mod.rs`) gets them from its
//! ring. Neither the core nor the loop knows which one runs. Next on the path: `epoll.rs`.

use std::io;
use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};

use ledger::WorkerId;
use proxy_core::event::Event;
use proxy_core::ids::Conn;
use proxy_core::sink::{Address, ChunkId, Gone, Now, Peer};

use crate::listen::Listener;

/// Something that happened; `C` owns received bytes.
#[derive(Debug)]
pub(crate) enum Completion<C> {
    /// A client connected. The loop adopts the socket or drops it, which closes it.
    Accepted(OwnedFd, Peer),
    /// A connection asked for by [`Driver::connect`] is made.
    Connected(Conn),
    /// Bytes arrived.
    Received(Conn, C),
    /// A client's sending side has ended; it may still read.
    Eof(Conn),
    /// A connection has ended and the driver has forgotten it.
    Gone(Conn, Gone),
    /// More than `QUEUE_HIGH` bytes wait for this connection.
    Congested(Conn),
    /// Fewer than `QUEUE_LOW` bytes wait again.
    Drained(Conn),
    /// A command waits in the ring.
    Woken,
    /// A mail came, with its descriptors; none if there was no room for all of them.
    Mail(Vec<u8>, Vec<OwnedFd>),
    /// A [`Driver::pass`] has ended. True: the other worker has the connection, and the driver has
    /// forgotten it. False: it is as it was before.
    Passed(Conn, bool),
    /// Something for the operator.
    Notice(Event),
}

/// The way an engine asks the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Backend {
    /// Readiness: works on every Linux.
    Epoll = 1,
    /// Completions: less CPU a query, where [`probe`](crate::probe) finds nothing missing.
    Uring = 2,
}

impl Backend {
    const ALL: [Self; 2] = [Self::Epoll, Self::Uring];

    /// Its name in the settings.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Epoll => "epoll",
            Self::Uring => "io_uring",
        }
    }

    /// The one of this name, if there is one.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|each| each.name() == name)
    }

    /// The one that a worker has put on the page; `None`: its engine has not run yet.
    #[must_use]
    pub fn from_page(word: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|each| *each as u64 == word)
    }
}

/// Received bytes that a driver lends out.
pub(crate) trait Received {
    /// The name by which a send refers to them.
    fn id(&self) -> ChunkId;
    /// The bytes, at least one.
    fn bytes(&self) -> &[u8];
}

/// One way to ask the kernel. Calls with a stale id do nothing.
pub(crate) trait Driver {
    /// Owned received bytes.
    type Chunk: Received;

    /// Which one it is.
    const BACKEND: Backend;

    /// Waits until something completes, at most `timeout_ms` milliseconds.
    ///
    /// # Errors
    /// A broken driver, which is a bug of ours; the loop ends.
    fn wait(&mut self, timeout_ms: u64) -> io::Result<()>;

    /// The next completion of this turn; `None` ends the turn. Never blocks.
    fn next(&mut self, now: Now) -> Option<Completion<Self::Chunk>>;

    /// Makes an open socket, accepted here or handed over by another worker, this connection.
    fn adopt(&mut self, conn: Conn, socket: OwnedFd);

    /// Hands a connection and a mail to another worker, behind everything queued for it; carried
    /// out by [`Driver::submit`], answered by [`Completion::Passed`] unless it is closed before.
    ///
    /// It succeeds only if all that was queued has been sent and the other worker's inbox took the
    /// mail. Nothing is read between this and the answer: what arrives meanwhile stays in the
    /// kernel for whoever has the connection then. A driver that receives ahead has to stop that
    /// first; bytes which it holds already and has not told make it fail, and are told after the
    /// answer. Success closes our copy of the socket only: the peer notices nothing.
    fn pass(&mut self, conn: Conn, to: WorkerId, mail: &[u8]);

    /// Puts a mail, with a descriptor if need be, into another worker's inbox now. False: it is
    /// full or there is none, and nothing has been sent.
    fn post(&mut self, to: WorkerId, mail: &[u8], fd: Option<BorrowedFd<'_>>) -> bool;

    /// Queues a range of the chunk that is being handled, whose bytes are `chunk`.
    fn send(&mut self, to: Conn, chunk: &[u8], range: Range<usize>);

    /// Queues a copy of these bytes.
    fn send_own(&mut self, to: Conn, bytes: &[u8]);

    /// Opens a connection.
    fn connect(&mut self, conn: Conn, address: &Address);

    /// Ends our sending after what was queued; reading goes on.
    fn shutdown(&mut self, conn: Conn);

    /// Ends a connection after what was queued for it, also in this call; `chunk` holds the bytes
    /// that queued ranges refer to.
    fn close(&mut self, conn: Conn, chunk: &[u8], now: Now);

    /// Stops reading.
    fn pause_read(&mut self, conn: Conn);

    /// Reads again.
    fn resume_read(&mut self, conn: Conn);

    /// Carries out what one call of the core has queued, at the latest when the turn ends, and
    /// takes its chunk back.
    fn submit(&mut self, chunk: Option<Self::Chunk>);

    /// Listens on exactly these sockets, known by their ids: keeps those it has, adds the others
    /// and closes what is missing. A client that waits in a kept one's queue stays there.
    ///
    /// # Errors
    /// One of them cannot be watched, or an id is used twice; nothing has changed then.
    fn set_listeners(&mut self, listeners: Vec<(u32, Listener)>) -> io::Result<()>;

    /// Closes the listeners.
    fn stop_listening(&mut self);

    /// Connections to clients that are open and not lingering.
    fn clients(&self) -> usize;

    /// Does what is due; called when the time of `poll_deadline` has come.
    fn handle_timeouts(&mut self, now: Now);

    /// When the driver has work of its own to do.
    fn poll_deadline(&self) -> Option<Now>;

    /// Closed connections that still deliver what was sent to them.
    fn lingering(&self) -> usize;

    /// Counters by name.
    fn rows(&self) -> Vec<(&'static str, u64)>;
}
