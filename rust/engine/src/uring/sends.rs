//! Sending with the io_uring driver.
//!
//! At the end of a turn each queue leaves as one quick send, straight from the received blocks; it
//! is over when the system call returns, and says nothing if all went out. What the kernel does not
//! take is kept in its blocks if few are, else copied, and goes out with sends that wait for room,
//! one at a time. Next on the path: `ending.rs`.

use std::os::fd::AsFd;

use rustix::io::Errno;

use super::Uring;
use super::buffers::Chunk;
use super::socket::{Flags, SocketId};
use crate::driver::Completion;
use crate::limits::{FLIGHT_BYTES_MAX, GATHER_BYTES_EACH, QUEUE_HIGH, QUEUE_LOW, SLICES_PER_SEND};
use crate::net;
use crate::notes::Note;

impl Uring {
    /// Something has been queued: it is sent when the turn ends.
    #[inline]
    pub(super) fn queued(&mut self, id: SocketId) {
        self.mark(id);
        self.judge(id);
    }

    /// Tells the core of a queue that is long because the kernel does not take it.
    #[inline]
    fn judge(&mut self, id: SocketId) {
        let Some(socket) = self.sockets.get_mut(id) else { return };
        let stalled = socket.flags.any(Flags::STALLED | Flags::CONNECTING);
        let open = !socket.flags.any(Flags::CONGESTED | Flags::CLOSED);
        if stalled && open && socket.queue.bytes > QUEUE_HIGH {
            socket.flags.set(Flags::CONGESTED);
            self.notes.push_back(Note::Congested(socket.conn));
        }
    }

    /// Sends what waits for this socket, unless a send is in flight.
    #[inline]
    pub(super) fn send_queued(&mut self, id: SocketId) {
        let Some(socket) = self.sockets.get_mut(id) else { return };
        if socket.queue.bytes == 0 || socket.flags.any(Flags::BROKEN) {
            return;
        }
        if socket.queue.flying > 0 || socket.flags.any(Flags::CONNECTING) {
            self.settle(id);
            return;
        }
        let patient = socket.flags.any(Flags::STALLED);
        let count = socket.queue.count() as usize;
        if count > 1 && socket.queue.bytes <= count * GATHER_BYTES_EACH {
            self.pieces.gather(&mut socket.queue, &mut self.pool);
        } else if patient {
            self.settle(id);
        }
        self.launch(id, !patient);
    }

    /// Starts a send of the first pieces.
    fn launch(&mut self, id: SocketId, quick: bool) {
        let Some(socket) = self.sockets.get_mut(id) else { return };
        let limit = if quick { usize::MAX } else { FLIGHT_BYTES_MAX };
        let mut list: [&[u8]; SLICES_PER_SEND] = [&[]; SLICES_PER_SEND];
        let (mut used, mut bytes) = (0, 0);
        for (place, slice) in list.iter_mut().zip(self.pieces.slices(&socket.queue, &self.pool)) {
            if bytes == limit {
                break;
            }
            *place = slice.get(..slice.len().min(limit - bytes)).unwrap_or_default();
            bytes += place.len();
            used += 1;
        }
        let list = list.get(..used).unwrap_or_default();
        // SAFETY: the pieces are in flight from here on: they stay where they are, and their blocks
        // are not the kernel's to fill, until `handle_sent`.
        #[allow(unsafe_code)]
        unsafe {
            self.ring.send(socket.fd.as_fd(), list, quick, id);
        }
        socket.queue.flying = u32::try_from(used).unwrap_or(u32::MAX);
        socket.queue.flight = bytes;
        self.counters.sends += 1;
        if quick {
            const WAITED_FOR: u32 = Flags::FIN | Flags::CLOSED | Flags::CONGESTED;
            socket.flags.set(Flags::QUICK);
            self.quick.push(id);
            self.hurry |= socket.queue.bytes > bytes || socket.flags.any(WAITED_FOR);
        }
    }

    /// The quick sends of the turn are over, and all completions are known; of those that are in
    /// flight still all went out, since nothing else was said.
    pub(super) fn finish_quick(&mut self) {
        let mut quick = std::mem::take(&mut self.quick);
        for id in quick.drain(..) {
            let socket = self.sockets.get(id).filter(|socket| socket.flags.any(Flags::QUICK));
            if let Some(flight) = socket.map(|socket| socket.queue.flight) {
                let told = self.handle_sent(id, Ok(flight));
                debug_assert!(told.is_none(), "only a failure is told");
            }
        }
        self.quick = quick;
    }

    /// A send is over.
    #[inline]
    pub(super) fn handle_sent(
        &mut self,
        id: SocketId,
        sent: Result<usize, Errno>,
    ) -> Option<Completion<Chunk>> {
        let socket = self.sockets.get_mut(id)?;
        socket.flags.clear(Flags::SEND_ENDS | Flags::QUICK);
        let flight = std::mem::take(&mut socket.queue.flight);
        self.pieces.advance(&mut socket.queue, sent.unwrap_or(0), &mut self.pool);
        if socket.flags.any(Flags::BROKEN) {
            self.pieces.clear(&mut socket.queue, &mut self.pool);
            self.leave(id);
            return None;
        }
        match sent {
            Ok(sent) if sent >= flight => {}
            Ok(_) => socket.flags.set(Flags::STALLED),
            Err(Errno::AGAIN) => socket.flags.set(Flags::STALLED),
            Err(Errno::INTR) => {}
            Err(error) => return self.break_off(id, net::loss(error)),
        }
        if socket.queue.bytes < QUEUE_LOW && socket.flags.any(Flags::CONGESTED) {
            socket.flags.clear(Flags::CONGESTED);
            self.notes.push_back(Note::Drained(socket.conn));
        }
        if socket.queue.bytes > 0 {
            if socket.flags.any(Flags::STALLED) {
                self.settle(id);
            }
            self.mark(id);
            return None;
        }
        if socket.flags.any(Flags::STALLED) {
            socket.flags.clear(Flags::STALLED);
            if socket.flags.any(Flags::CLOSED) {
                socket.flags.set(Flags::TALKING);
            }
        }
        socket.finish();
        if socket.flags.any(Flags::CLOSED) {
            self.delivered(id);
        }
        None
    }

    /// Bytes wait for a peer: few of them may keep their blocks, and the core hears if they are
    /// many.
    fn settle(&mut self, id: SocketId) {
        let Some(socket) = self.sockets.get_mut(id) else { return };
        let copied = self.pieces.settle(&socket.queue, &mut self.pool);
        self.counters.spilled_bytes += copied as u64;
        self.judge(id);
    }
}
