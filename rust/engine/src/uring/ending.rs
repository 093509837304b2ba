//! How sockets end with the io_uring driver, and how the driver itself does.
//!
//! A closed connection delivers what was queued for it. Then, if its peer goes on talking, our side
//! is shut down and input is thrown away until the peer has closed, too: closing a socket with
//! unread input resets it, and the reset can overtake the error message that tells the client why.
//! Both together are bounded in time, and all are in number, as in `linger.rs`. An entry goes when
//! the kernel has no operation on it. Next on the path: nothing, this is its end.

use proxy_core::ids::Conn;
use proxy_core::sink::{Gone, Now};
use rustix::net::{Shutdown, shutdown};

use super::Uring;
use super::buffers::Chunk;
use super::socket::{End, Flags, HeldBytes, SocketId};
use crate::driver::Completion;
use crate::limits::{END_ROUNDS_MAX, END_WAIT_MS, LINGER_MS, LINGERING_MAX};
use crate::linger::has_unread;

impl Uring {
    /// Forgets a connection and reports its end.
    pub(super) fn gone(&mut self, id: SocketId, why: Gone) -> Option<Completion<Chunk>> {
        let socket = self.sockets.get(id)?;
        if socket.flags.any(Flags::CLOSED) {
            return None;
        }
        let conn = socket.conn;
        self.table.remove(conn);
        self.retire(id);
        Some(Completion::Gone(conn, why))
    }

    /// The core ends a connection: what is queued for it is still delivered.
    pub(super) fn start_close(&mut self, conn: Conn, now: Now) {
        let Some(id) = self.table.remove(conn) else { return };
        let Some(socket) = self.sockets.get_mut(id) else { return };
        if socket.queue.bytes == 0 || socket.flags.any(Flags::BROKEN | Flags::CONNECTING) {
            return self.retire(id);
        }
        if self.lingering_count >= LINGERING_MAX {
            self.drop_oldest();
        }
        self.drop_held(id);
        let Some(socket) = self.sockets.get_mut(id) else { return };
        if socket.flags.any(Flags::STALLED) {
            socket.flags.set(Flags::TALKING);
        }
        socket.flags.set(Flags::CLOSED | Flags::LINGERING);
        self.lingering.push_back((now.plus_ms(LINGER_MS), id));
        self.lingering_count += 1;
        self.mark(id);
    }

    /// All that was queued for a closed connection has been sent.
    pub(super) fn delivered(&mut self, id: SocketId) {
        let Some(socket) = self.sockets.get_mut(id) else { return };
        let client = matches!(socket.conn, Conn::Client(_));
        let talks = socket.flags.any(Flags::TALKING) || client && has_unread(&socket.fd);
        if !talks || socket.flags.any(Flags::ENDED) {
            return self.retire(id);
        }
        let _ = shutdown(&socket.fd, Shutdown::Write);
        socket.flags.set(Flags::DRAINING);
        self.mark(id);
    }

    /// A closed connection's peer has ended.
    pub(super) fn end_of_closed(&mut self, id: SocketId, end: End) {
        let Some(socket) = self.sockets.get_mut(id) else { return };
        socket.flags.set(Flags::ENDED);
        let delivers = socket.flags.any(Flags::LINGERING) && !socket.flags.any(Flags::DRAINING);
        if !delivers || matches!(end, End::Error(_)) {
            self.retire(id);
        }
    }

    /// Nothing is delivered to a socket any more, and what the kernel has on it is ended.
    pub(super) fn retire(&mut self, id: SocketId) {
        self.drop_held(id);
        let Some(socket) = self.sockets.get_mut(id) else { return };
        if socket.flags.any(Flags::LINGERING) {
            self.lingering_count -= 1;
        }
        socket.flags.clear(Flags::LINGERING | Flags::DRAINING);
        socket.flags.set(Flags::CLOSED | Flags::BROKEN);
        if socket.queue.flying == 0 {
            self.pieces.clear(&mut socket.queue, &mut self.pool);
        }
        self.leave(id);
    }

    /// Lets a socket go that is closed, if the kernel has no operation on it.
    pub(super) fn leave(&mut self, id: SocketId) {
        let Some(socket) = self.sockets.get(id) else { return };
        if !socket.flags.any(Flags::CLOSED) {
            return;
        }
        if socket.is_busy() || socket.flags.any(Flags::LINGERING) {
            self.mark(id);
        } else {
            self.sockets.remove(id);
            self.freed = true;
        }
    }

    fn drop_held(&mut self, id: SocketId) {
        let Some(held) = self.sockets.get_mut(id).and_then(|socket| socket.held.take()) else {
            return;
        };
        for bytes in held.bytes {
            if let HeldBytes::Block(block) = bytes {
                self.pool.unkeep();
                self.pool.discard(block);
            }
        }
    }

    /// Ends those whose time is over.
    pub(super) fn expire(&mut self, now: Now) {
        while let Some((deadline, id)) = self.lingering.front().copied() {
            if deadline > now {
                return;
            }
            self.lingering.pop_front();
            self.end_lingering(id);
        }
    }

    fn drop_oldest(&mut self) {
        // Those that have ended by themselves are skipped.
        while let Some((_, id)) = self.lingering.pop_front() {
            if self.end_lingering(id) {
                return;
            }
        }
    }

    fn end_lingering(&mut self, id: SocketId) -> bool {
        let lingers = |flags: Flags| flags.any(Flags::LINGERING);
        let found = self.sockets.get(id).is_some_and(|socket| lingers(socket.flags));
        if found {
            self.retire(id);
        }
        found
    }
}

impl Uring {
    /// Ends everything that the kernel has; returns whether it has nothing of ours any more.
    pub(super) fn end(&mut self) -> bool {
        if self.ring.outstanding() == 0 {
            return true;
        }
        self.ring.cancel_all();
        for _ in 0..END_ROUNDS_MAX {
            if self.ring.enter(END_WAIT_MS).is_err() {
                return false;
            }
            while let Some(done) = self.ring.next() {
                self.refuse(&done);
            }
            if self.ring.outstanding() == 0 {
                return true;
            }
        }
        false
    }
}

impl Drop for Uring {
    /// Memory and descriptors go when the kernel has nothing of ours any more.
    fn drop(&mut self) {
        if !self.end() {
            // Something does not end: its memory stays, which is better than that it is written to.
            std::mem::forget(std::mem::take(&mut self.pieces));
            self.pool.leak();
        }
    }
}
