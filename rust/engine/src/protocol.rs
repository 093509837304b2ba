//! What the loop needs from a core; the real one is `proxy_core::core::Core`, tests use a script.
//!
//! The loop is generic over it, so that each call is a direct one. Next on the path: `sink.rs`.

use proxy_core::config::Config;
use proxy_core::core::{Core, KeysAnswer};
use proxy_core::ids::{CancellerId, ClientId, Conn, ServerId};
use proxy_core::show::Show;
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
    /// A pass has ended; after `true` the id is dead for the engine.
    fn handle_passed(&mut self, conn: Conn, passed: bool, now: Now, sink: &mut dyn Sink);
    /// Another worker hands a connection over; `None` refuses it. The sink takes no sends to the
    /// new connection in this call.
    fn handle_mail(&mut self, mail: &[u8], now: Now, sink: &mut dyn Sink) -> Option<Conn>;
    /// The engine holds the socket of such a connection now.
    fn handle_adopted(&mut self, conn: Conn, now: Now, sink: &mut dyn Sink);
    /// The page may have changed; pokes are allowed again.
    fn handle_look(&mut self, now: Now, sink: &mut dyn Sink);
    /// New settings are in force.
    fn handle_settings(&mut self, config: Config, epoch: u64, now: Now, sink: &mut dyn Sink);
    /// Ends the clients of a database (`*`: all); tells how many.
    fn handle_kill(&mut self, database: &str, now: Now, sink: &mut dyn Sink) -> u32;
    /// Ends one client; tells how many that were.
    fn kill_client(&mut self, id: u64, now: Now, sink: &mut dyn Sink) -> u32;
    /// Writes a JSON array of what is asked for.
    fn show(&self, what: Show, now: Now, out: &mut Vec<u8>);
    /// The answer to `Event::ServerKeysNeeded`.
    fn set_server_keys(&mut self, answer: KeysAnswer, now: Now, sink: &mut dyn Sink);
    /// Counters by name, left on the page as well.
    fn publish(&mut self) -> Vec<(&'static str, u64)>;
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
    fn handle_passed(&mut self, conn: Conn, passed: bool, now: Now, sink: &mut dyn Sink) {
        Self::handle_passed(self, conn, passed, now, sink);
    }
    fn handle_mail(&mut self, mail: &[u8], now: Now, sink: &mut dyn Sink) -> Option<Conn> {
        Self::handle_mail(self, mail, now, sink)
    }
    fn handle_adopted(&mut self, conn: Conn, now: Now, sink: &mut dyn Sink) {
        Self::handle_adopted(self, conn, now, sink);
    }
    fn handle_look(&mut self, now: Now, sink: &mut dyn Sink) {
        Self::handle_look(self, now, sink);
    }
    fn handle_settings(&mut self, config: Config, epoch: u64, now: Now, sink: &mut dyn Sink) {
        Self::handle_settings(self, config, epoch, now, sink);
    }
    fn handle_kill(&mut self, database: &str, now: Now, sink: &mut dyn Sink) -> u32 {
        Self::handle_kill(self, database, now, sink)
    }
    fn kill_client(&mut self, id: u64, now: Now, sink: &mut dyn Sink) -> u32 {
        Self::kill_client(self, id, now, sink)
    }
    fn show(&self, what: Show, now: Now, out: &mut Vec<u8>) {
        Self::show(self, what, now, out);
    }
    fn set_server_keys(&mut self, answer: KeysAnswer, now: Now, sink: &mut dyn Sink) {
        Self::set_server_keys(self, answer, now, sink);
    }
    fn publish(&mut self) -> Vec<(&'static str, u64)> {
        Self::publish(self).rows()
    }
}
