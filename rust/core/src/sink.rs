//! The seam to the engine: the bytes that come in and the effects that go out.
//!
//! The core never touches a socket. Each `handle_*` call gets a `&mut dyn Sink` and calls its
//! methods; the engine (epoll or io_uring) or the simulator carries them out in the order they were
//! made. Next on the path: `core.rs`.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use ledger::WorkerId;

use crate::event::Event;
use crate::ids::Conn;

/// Monotonic time in microseconds since an arbitrary start; the engine reads it once a loop turn.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Now(pub u64);

impl Now {
    /// This time plus a number of milliseconds.
    #[must_use]
    pub const fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms.saturating_mul(1000)))
    }

    /// Microseconds since `earlier`, 0 if that lies ahead.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Names a received buffer that the driver keeps valid until the last send made from it is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChunkId(pub u32);

/// Received bytes; `id` names them in [`Sink::send`].
#[derive(Clone, Copy, Debug)]
pub struct Chunk<'a> {
    /// The driver's name for the buffer.
    pub id: ChunkId,
    /// What was received, never empty.
    pub bytes: &'a [u8],
}

/// Where a client comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Peer {
    /// TCP; an IPv4-mapped IPv6 address has been turned into IPv4.
    Tcp(IpAddr),
    /// A Unix-domain socket.
    Unix,
}

/// Where a server listens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Address {
    /// TCP.
    Tcp(SocketAddr),
    /// The path of a Unix-domain socket.
    Unix(String),
}

/// How a server's connection ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gone {
    /// Nobody listens there, or the system refused the attempt.
    Refused(std::io::ErrorKind),
    /// The connection was reset, or a send failed.
    Reset,
    /// The server ended it.
    Eof,
    /// It did not answer in time.
    Unreachable,
}

/// What the core asks of the engine. Calls are made in the order in which they must take effect.
pub trait Sink {
    /// Sends a range of the chunk that is being handled. The driver merges sends to one connection
    /// made during one `handle_*` call into one system call, and copies only what the socket does
    /// not take.
    fn send(&mut self, to: Conn, chunk: ChunkId, range: Range<usize>);

    /// Sends bytes of the core's own; the driver copies them.
    fn send_own(&mut self, to: Conn, bytes: &[u8]);

    /// Opens a connection for this id; ends in `handle_server_connected` /
    /// `handle_canceller_connected` or in `…_gone`.
    fn connect(&mut self, conn: Conn, address: &Address);

    /// Ends a connection: what was sent before is still delivered (for a bounded time), nothing
    /// more is read, and no call about this id reaches the core again. The id may be reused at
    /// once.
    fn close(&mut self, conn: Conn);

    /// Sends FIN after what was sent before; reading goes on until the peer ends, too.
    fn shutdown(&mut self, conn: Conn);

    /// Stops reading from a connection: no more bytes and no `eof` until resumed (a reset is still
    /// told).
    fn pause_read(&mut self, conn: Conn);

    /// Reads again after [`Sink::pause_read`].
    fn resume_read(&mut self, conn: Conn);

    /// Hands a connection and these bytes to another worker; ends in `handle_passed`. What was sent
    /// to the connection before goes out first, and nothing is read from it meanwhile.
    fn pass(&mut self, conn: Conn, to: WorkerId, mail: &[u8]);

    /// Wakes another worker, which then looks at the ledger (`handle_look`). Nothing is lost if it
    /// cannot be told: it has mail to read then.
    fn poke(&mut self, to: WorkerId);

    /// Tells Python something off the path. Never blocks: a full ring drops and counts.
    fn event(&mut self, event: Event);
}
