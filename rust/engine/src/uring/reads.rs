//! Receiving with the io_uring driver, and what the end of a connection looks like.
//!
//! What may not be told now is held, in its block if few are kept and copied otherwise, so that
//! nobody's pause costs the others their blocks. Each connection's end is looked for apart. It is
//! told from there while nothing is received (it is paused, or a client has half-closed). And Linux
//! (seen with 6.18) may miss a reset that comes together with the last bytes: no more bytes wait,
//! so it takes it that there is no more news. Such a receive is armed anew, which brings it out. A
//! connection that is received from is looked at so only when it is a second or two old: most short
//! ones are over by then.
//! Ends are told as by the epoll driver (`receive.rs` has the table). Next on the path: `sends.rs`.

use proxy_core::ids::Conn;
use proxy_core::sink::Gone;
use rustix::io::Errno;

use super::buffers::{Chunk, Size};
use super::ring::{Done, ERROR, HANGUP, WRITABLE};
use super::socket::{End, Flags, HeldBytes, SocketId};
use super::{Uring, Work};
use crate::driver::Completion;
use crate::limits::{BUFFER_BYTES, LAST_WORDS_RECEIVES, UNSUITED_MAX};
use crate::net;

/// What one completion of a receive says.
enum Received {
    Bytes(u16),
    End(End),
    /// Nothing: it was cancelled, or found no block.
    Nothing,
}

fn read(done: &Done) -> Received {
    match (done.result, done.buffer) {
        (1.., Some(block)) => Received::Bytes(block),
        (0.., _) => Received::End(End::Eof),
        (error, _) => match Errno::from_raw_os_error(-error) {
            Errno::NOBUFS | Errno::CANCELED | Errno::INTR | Errno::AGAIN => Received::Nothing,
            error => Received::End(End::Error(net::loss(error))),
        },
    }
}

impl Uring {
    #[inline]
    pub(super) fn handle_received(
        &mut self,
        id: SocketId,
        done: Done,
    ) -> Option<Completion<Chunk>> {
        if let Some(block) = done.buffer {
            self.pool.filled(block, usize::try_from(done.result).unwrap_or(0));
        }
        let received = read(&done);
        if let (Received::End(_) | Received::Nothing, Some(block)) = (&received, done.buffer) {
            self.pool.discard(block);
        }
        let socket = self.sockets.get_mut(id)?;
        let (conn, closed) = (socket.conn, socket.flags.any(Flags::CLOSED));
        if !done.more {
            socket.flags.clear(Flags::ARMED | Flags::ARMED_BULKY | Flags::RECV_ENDS);
            self.mark(id);
        }
        match received {
            Received::Bytes(block) if closed => {
                self.pool.discard(block);
                if let Some(socket) = self.sockets.get_mut(id) {
                    socket.flags.set(Flags::TALKING);
                }
                self.leave(id);
                None
            }
            Received::Bytes(block) => {
                self.counters.receives += 1;
                self.suit_size(id, block, usize::try_from(done.result).unwrap_or(0));
                if self.sockets.get(id)?.must_hold() {
                    self.hold(id, block);
                    return None;
                }
                self.lent = Some(block);
                self.pool.lend(block).map(|chunk| Completion::Received(conn, chunk))
            }
            Received::End(end) if closed => {
                self.end_of_closed(id, end);
                None
            }
            Received::End(end) => self.handle_end(id, end),
            Received::Nothing => {
                self.leave(id);
                None
            }
        }
    }

    /// Chooses the blocks for what this connection sends next by what it has sent lately.
    #[inline]
    fn suit_size(&mut self, id: SocketId, block: u16, len: usize) {
        let size = self.pool.size(block);
        let Some(socket) = self.sockets.get_mut(id) else { return };
        let other = match size {
            Size::Small => len >= BUFFER_BYTES,
            Size::Large => len < BUFFER_BYTES,
        };
        socket.unsuited = if other { socket.unsuited.saturating_add(1) } else { 0 };
        if socket.unsuited == UNSUITED_MAX {
            match size {
                Size::Small => socket.flags.set(Flags::BULKY),
                Size::Large => socket.flags.clear(Flags::BULKY),
            }
            self.mark(id);
        }
    }

    /// Keeps received bytes for later.
    fn hold(&mut self, id: SocketId, block: u16) {
        let Some(socket) = self.sockets.get_mut(id) else { return };
        let held = socket.held.get_or_insert_default();
        if self.pool.keep(block) {
            held.bytes.push_back(HeldBytes::Block(block));
        } else {
            let bytes = self.pool.received(block).to_vec();
            self.counters.spilled_bytes += bytes.len() as u64;
            held.bytes.push_back(HeldBytes::Copy(bytes));
            self.pool.discard(block);
        }
    }

    /// The receiving has ended.
    fn handle_end(&mut self, id: SocketId, end: End) -> Option<Completion<Chunk>> {
        let socket = self.sockets.get_mut(id)?;
        socket.flags.set(Flags::ENDED);
        let hand_over = socket.flags.any(Flags::PASSING);
        if socket.must_hold() {
            if let (End::Error(why), false) = (end, hand_over) {
                if socket.flags.any(Flags::PAUSED) {
                    // A reset is told, whatever is held.
                    return self.gone(id, why);
                }
            }
            socket.held.get_or_insert_default().end = Some(end);
            return None;
        }
        self.tell_end(id, end)
    }

    fn tell_end(&mut self, id: SocketId, end: End) -> Option<Completion<Chunk>> {
        let socket = self.sockets.get(id)?;
        match end {
            End::Eof if matches!(socket.conn, Conn::Client(_)) => {
                Some(Completion::Eof(socket.conn))
            }
            End::Eof => self.gone(id, socket.why.unwrap_or(Gone::Eof)),
            End::Error(why) => self.gone(id, socket.why.unwrap_or(why)),
        }
    }

    /// One step: tells what was held, unless it still has to be.
    pub(super) fn tell_held(&mut self, id: SocketId) -> Option<Completion<Chunk>> {
        const NOT: u32 = Flags::PAUSED | Flags::PASSING | Flags::CLOSED;
        let socket = self.sockets.get_mut(id)?;
        if socket.flags.any(NOT) {
            return None;
        }
        let conn = socket.conn;
        let held = socket.held.as_mut()?;
        let Some(bytes) = held.bytes.pop_front() else {
            let end = held.end;
            socket.held = None;
            return end.and_then(|end| self.tell_end(id, end));
        };
        self.work.push_front(Work::Held(id));
        let chunk = match bytes {
            HeldBytes::Block(block) => {
                self.pool.unkeep();
                self.lent = Some(block);
                self.pool.lend(block)?
            }
            HeldBytes::Copy(bytes) => Chunk::Copy(bytes),
        };
        Some(Completion::Received(conn, chunk))
    }

    /// The kernel has seen the end of a connection that is not read, or one is made.
    pub(super) fn handle_watched(
        &mut self,
        id: SocketId,
        done: &Done,
    ) -> Option<Completion<Chunk>> {
        let socket = self.sockets.get_mut(id)?;
        if !done.more {
            socket.flags.clear(Flags::WATCHED | Flags::WATCH_ENDS);
        }
        let flags = socket.flags;
        if flags.any(Flags::CLOSED) {
            self.leave(id);
            return None;
        }
        let seen = u32::try_from(done.result).unwrap_or(0);
        let (error, hangup) = (seen & ERROR != 0, seen & HANGUP != 0);
        if flags.any(Flags::CONNECTING) {
            return self.finish_connect(id, seen & WRITABLE != 0);
        }
        if !done.more {
            self.mark(id);
        }
        if !(error || hangup) {
            return None;
        }
        let socket = self.sockets.get_mut(id)?;
        if !socket.is_unread() {
            socket.flags.set(Flags::SEEN | Flags::MISSED);
            self.mark(id);
            return None;
        }
        if error {
            let why = net::pending_error(&socket.fd).map_or(Gone::Reset, net::loss);
            return self.gone(id, why);
        }
        if let Conn::Client(_) = socket.conn {
            return self.gone(id, Gone::Reset);
        }
        socket.flags.set(Flags::PARKED);
        None
    }

    fn finish_connect(&mut self, id: SocketId, writable: bool) -> Option<Completion<Chunk>> {
        let socket = self.sockets.get_mut(id)?;
        let conn = socket.conn;
        match net::finish_connect(&socket.fd) {
            Ok(()) => {
                if writable {
                    socket.flags.clear(Flags::CONNECTING);
                    socket.finish();
                }
                self.mark(id);
                writable.then_some(Completion::Connected(conn))
            }
            Err(error) => self.gone(id, net::refusal(error)),
        }
    }

    /// A send has failed, or the connection has been given up: nothing more is sent. A server's
    /// last words (its FATAL message) are worth more than our error and come first.
    pub(super) fn break_off(&mut self, id: SocketId, why: Gone) -> Option<Completion<Chunk>> {
        let socket = self.sockets.get_mut(id)?;
        if socket.flags.any(Flags::CLOSED) {
            self.retire(id);
            return None;
        }
        socket.flags.set(Flags::BROKEN);
        if socket.queue.flying == 0 {
            self.pieces.clear(&mut socket.queue, &mut self.pool);
        }
        let speaks = matches!(socket.conn, Conn::Server(_)) && !socket.flags.any(Flags::PAUSED);
        if !speaks {
            return self.gone(id, why);
        }
        socket.why.get_or_insert(why);
        self.mark(id);
        None
    }

    /// A broken server is received for no more: what it has left is read.
    pub(super) fn start_last_words(&mut self, id: SocketId) {
        self.work.push_back(Work::LastWords(id, LAST_WORDS_RECEIVES));
    }

    /// One step: a receive at most.
    pub(super) fn read_last_words(&mut self, id: SocketId, left: u8) -> Option<Completion<Chunk>> {
        let socket = self.sockets.get(id)?;
        let why = socket.why?;
        if socket.flags.any(Flags::PASSING | Flags::CLOSED) {
            return None;
        }
        let Some(left) = left.checked_sub(1).filter(|_| !socket.flags.any(Flags::PAUSED)) else {
            return self.gone(id, why);
        };
        if socket.held.is_some() {
            self.work.push_front(Work::LastWords(id, left + 1));
            return self.tell_held(id);
        }
        let mut bytes = vec![0; BUFFER_BYTES];
        self.counters.receives += 1;
        match net::receive(&socket.fd, &mut bytes) {
            Ok(len @ 1..) => {
                bytes.truncate(len);
                self.work.push_front(Work::LastWords(id, left));
                Some(Completion::Received(socket.conn, Chunk::Copy(bytes)))
            }
            Ok(0) | Err(_) => self.gone(id, why),
        }
    }
}
