//! What the loop needs from a core; the real one is `proxy_core::core::Core`, tests use a script.
//!
//! The loop is generic over it, so that each call is a direct one. Next on the path: `sink.rs`.

use proxy_core::core::Core;
use proxy_core::ids::{CancellerId, ClientId, Conn, ServerId};
use proxy_core::sink::{Chunk, Gone, Now, Peer, Sink};

/// The core's contract, method by method as documented there. A call with a stale id does nothing.
pub(crate) trait Protocol {
    /// A client connected; `None` refuses it. The sink takes no sends to the new client in this
    /// call.
    fn handle_accept(&mut self, peer: Peer, now: Now, sink: &mut dyn Sink) -> Option<ClientId>;
    /// Bytes came from a client.
    fn handle_client_bytes(
        &mut self,
        id: ClientId,
        chunk: Chunk<'_>,
        now: Now,
        sink: &mut dyn Sink,
    );
    /// A client will send no more, but may still read.
    fn handle_client_eof(&mut self, id: ClientId, now: Now, sink: &mut dyn Sink);
    /// A client is gone; its id is dead for the engine, too.
    fn handle_client_gone(&mut self, id: ClientId, now: Now, sink: &mut dyn Sink);
    /// A connection to a server is made.
    fn handle_server_connected(&mut self, id: ServerId, now: Now, sink: &mut dyn Sink);
    /// Bytes came from a server.
    fn handle_server_bytes(
        &mut self,
        id: ServerId,
        chunk: Chunk<'_>,
        now: Now,
        sink: &mut dyn Sink,
    );
    /// A server is gone, or could not be reached.
    fn handle_server_gone(&mut self, id: ServerId, why: Gone, now: Now, sink: &mut dyn Sink);
    /// The connection for a CancelRequest is made.
    fn handle_canceller_connected(&mut self, id: CancellerId, now: Now, sink: &mut dyn Sink);
    /// The connection for a CancelRequest has ended.
    fn handle_canceller_gone(&mut self, id: CancellerId, now: Now, sink: &mut dyn Sink);
    /// More than `QUEUE_HIGH` bytes wait to be sent to a connection.
    fn handle_congested(&mut self, conn: Conn, now: Now, sink: &mut dyn Sink);
    /// Fewer than `QUEUE_LOW` bytes wait again.
    fn handle_drained(&mut self, conn: Conn, now: Now, sink: &mut dyn Sink);
    /// The time of `poll_deadline` has come.
    fn handle_timeouts(&mut self, now: Now, sink: &mut dyn Sink);
    /// When `handle_timeouts` wants to be called.
    fn poll_deadline(&self) -> Option<Now>;
    /// No new clients; the others end at their next idle point.
    fn handle_stop(&mut self, now: Now, sink: &mut dyn Sink);
    /// Every client ends now.
    fn handle_stop_now(&mut self, now: Now, sink: &mut dyn Sink);
    /// Whether no client is left after a stop.
    fn is_stopped(&self) -> bool;
    /// The answer to `Event::ServerKeysNeeded`.
    fn set_server_keys(&mut self, keys: ServerKeys, now: Now, sink: &mut dyn Sink);
    /// Counters by name.
    fn rows(&self) -> Vec<(&'static str, u64)>;
}

/// SCRAM keys that Python derived for one server login.
pub(crate) struct ServerKeys {
    /// Index in `Config::credentials`.
    pub(crate) credential: u32,
    /// The salt they were derived with.
    pub(crate) salt: Vec<u8>,
    /// The iteration count they were derived with.
    pub(crate) iterations: u32,
    /// The keys.
    pub(crate) keys: auth::ScramKeys,
}

impl Protocol for Core {
    fn handle_accept(&mut self, peer: Peer, now: Now, sink: &mut dyn Sink) -> Option<ClientId> {
        Self::handle_accept(self, peer, now, sink)
    }
    fn handle_client_bytes(
        &mut self,
        id: ClientId,
        chunk: Chunk<'_>,
        now: Now,
        sink: &mut dyn Sink,
    ) {
        Self::handle_client_bytes(self, id, chunk, now, sink);
    }
    fn handle_client_eof(&mut self, id: ClientId, now: Now, sink: &mut dyn Sink) {
        Self::handle_client_eof(self, id, now, sink);
    }
    fn handle_client_gone(&mut self, id: ClientId, now: Now, sink: &mut dyn Sink) {
        Self::handle_client_gone(self, id, now, sink);
    }
    fn handle_server_connected(&mut self, id: ServerId, now: Now, sink: &mut dyn Sink) {
        Self::handle_server_connected(self, id, now, sink);
    }
    fn handle_server_bytes(
        &mut self,
        id: ServerId,
        chunk: Chunk<'_>,
        now: Now,
        sink: &mut dyn Sink,
    ) {
        Self::handle_server_bytes(self, id, chunk, now, sink);
    }
    fn handle_server_gone(&mut self, id: ServerId, why: Gone, now: Now, sink: &mut dyn Sink) {
        Self::handle_server_gone(self, id, why, now, sink);
    }
    fn handle_canceller_connected(&mut self, id: CancellerId, now: Now, sink: &mut dyn Sink) {
        Self::handle_canceller_connected(self, id, now, sink);
    }
    fn handle_canceller_gone(&mut self, id: CancellerId, now: Now, sink: &mut dyn Sink) {
        Self::handle_canceller_gone(self, id, now, sink);
    }
    fn handle_congested(&mut self, conn: Conn, now: Now, sink: &mut dyn Sink) {
        Self::handle_congested(self, conn, now, sink);
    }
    fn handle_drained(&mut self, conn: Conn, now: Now, sink: &mut dyn Sink) {
        Self::handle_drained(self, conn, now, sink);
    }
    fn handle_timeouts(&mut self, now: Now, sink: &mut dyn Sink) {
        Self::handle_timeouts(self, now, sink);
    }
    fn poll_deadline(&self) -> Option<Now> {
        Self::poll_deadline(self)
    }
    fn handle_stop(&mut self, now: Now, sink: &mut dyn Sink) {
        Self::handle_stop(self, now, sink);
    }
    fn handle_stop_now(&mut self, now: Now, sink: &mut dyn Sink) {
        Self::handle_stop_now(self, now, sink);
    }
    fn is_stopped(&self) -> bool {
        Self::is_stopped(self)
    }
    fn set_server_keys(&mut self, answer: ServerKeys, now: Now, sink: &mut dyn Sink) {
        let ServerKeys { credential, salt, iterations, keys } = answer;
        Self::set_server_keys(self, credential, &salt, iterations, keys, now, sink);
    }
    fn rows(&self) -> Vec<(&'static str, u64)> {
        self.stats().rows()
    }
}
