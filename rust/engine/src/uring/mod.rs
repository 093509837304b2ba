//! The io_uring driver: operations are asked for once a turn, and the kernel does them meanwhile.
//!
//! A turn is one system call: it submits what the last turn asked for and waits. Receiving is armed
//! once a connection and fills blocks of a pool; a send goes out straight from the block.
//!
//! Invariants:
//! - U1 A block is the kernel's, lent to the loop, or in hand; in hand, its count says how many
//!   queued ranges it serves, and it goes back with the last (`buffers.rs`).
//! - U2 At most one send is in flight a socket, and bytes leave in the order of `send`, `send_own`,
//!   `shutdown` and `close` (`sends.rs`).
//! - U3 An entry of the socket table stays until the kernel has no operation on it, however soon
//!   the core uses its id again: each completion finds its own (`socket.rs`).
//! - U4 So a descriptor is closed, and memory that the kernel may touch is given up, only when no
//!   operation needs it, also when the driver ends (`ending.rs`).
//! - U5 What arrives while reading is paused, or while a hand-over is undecided, is held and told
//!   later, in order (`reads.rs`, `passing.rs`).
//! - U6 Slow peers never take the blocks away from the others: beyond a turn no more than
//!   `BUFFERS_KEPT_MAX` are kept, none of them large, everything else is copied. A receive that
//!   found no block is armed again as soon as there is one: all blocks but those come back with the
//!   sends of this turn.
//! - U7 A quick send of which nothing is heard has sent all, but only once the kernel keeps back no
//!   completion that did not fit into the ring (`sends.rs`).
//! - U8 `Congested` and `Drained` are told as by the epoll driver: when the kernel has refused
//!   bytes and more than `QUEUE_HIGH` wait, and when fewer than `QUEUE_LOW` do.
//!
//! A connection's wishes (to receive, to be watched, to send) are compared with what the kernel has
//! at the end of a turn only, so a pause and a resume in one turn cost nothing. Next: `ring.rs`.

mod accept;
mod buffers;
mod ending;
mod envelope;
#[cfg(test)]
pub(crate) mod inspect;
mod passing;
mod pieces;
mod reads;
mod ring;
mod sends;
mod socket;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ledger::WorkerId;
use proxy_core::ids::{Conn, Slab};
use proxy_core::sink::{Address, Gone, Now};
use rustix::io::Errno;

use self::accept::Acceptor;
use self::buffers::{Chunk, Pool};
use self::passing::Handover;
use self::pieces::Pieces;
use self::ring::{Done, ENTRIES, Key, READABLE, Ring, WRITABLE};
use self::socket::{Flags, Socket, SocketId, SocketTag};
use crate::counters::Counters;
use crate::driver::{Backend, Completion, Driver};
use crate::engine::clock;
use crate::limits::{
    ACCEPT_RENEW_MS, ACCEPTS_PER_TURN, MAILS_PER_TURN, SERVER_LOOK_MS, SERVER_RETRANSMITS_MAX,
    TURN_BYTES_MAX, YOUNG_US,
};
use crate::listen::{Listener, Listeners};
use crate::net;
use crate::notes::{Note, refused};
use crate::passing::{Taken, take_mail};
use crate::post::Post;
use crate::table::Table;

pub use self::ring::probe;

/// Something that takes more than one step.
#[derive(Debug)]
enum Work {
    /// What was held is told.
    Held(SocketId),
    /// The last words of a broken server are read.
    LastWords(SocketId, u8),
    Mail {
        left: u8,
        hangup: bool,
    },
}

/// The driver. The ring comes first: the kernel must be done before memory goes.
#[derive(Debug)]
pub(crate) struct Uring {
    ring: Ring,
    pool: Pool,
    pieces: Pieces,
    sockets: Slab<Socket, SocketTag>,
    table: Table<SocketId>,
    /// The block that the loop has.
    lent: Option<u16>,
    /// Sockets with a quick send in this turn.
    quick: Vec<SocketId>,
    /// Something waits for the end of one.
    hurry: bool,
    work: VecDeque<Work>,
    notes: VecDeque<Note<SocketId>>,
    counters: Counters,
    dirty: Vec<SocketId>,
    starving: Vec<SocketId>,
    passes: Vec<Handover>,
    post: Post,
    /// The command ring's bell.
    wake: OwnedFd,
    /// The kernel waits for the bell, and for mail.
    wake_watched: bool,
    inbox_watched: bool,
    inbox_ended: bool,
    listeners: Listeners,
    acceptor: Acceptor,
    /// Clients that may still be told of in this turn.
    accepts_left: u32,
    /// Bytes that may still be received in this turn.
    turn_left: usize,
    /// Receives that wait for their turn.
    arrived: VecDeque<Done>,
    /// Connections that are looked at apart from receiving from this time on, oldest first.
    young: VecDeque<(Now, SocketId)>,
    /// Closed connections that are delivering, oldest first.
    lingering: VecDeque<(Now, SocketId)>,
    lingering_count: usize,
    /// A connection has closed since accepting paused.
    freed: bool,
    now: Now,
    /// When accepting is asked for anew; a turn comes by then (`WAIT_MS_MAX`).
    renew_at: Now,
    /// When the servers are looked at next.
    look_at: Now,
}

impl Uring {
    /// A driver that has no listeners yet and reports `Woken` when `wake` is readable.
    ///
    /// # Errors
    /// The kernel cannot do it, or the process is out of descriptors or memory.
    pub(crate) fn new(wake: BorrowedFd<'_>, post: Post) -> io::Result<Self> {
        Self::around(Ring::new(ENTRIES)?, wake, post)
    }

    /// A driver with this ring, to which nothing has been submitted.
    ///
    /// # Errors
    /// As [`Uring::new`].
    fn around(mut ring: Ring, wake: BorrowedFd<'_>, post: Post) -> io::Result<Self> {
        let wake = wake.try_clone_to_owned()?;
        let pool = Pool::new(&mut ring)?;
        Ok(Self {
            ring,
            pool,
            pieces: Pieces::default(),
            sockets: Slab::default(),
            table: Table::default(),
            lent: None,
            quick: Vec::new(),
            hurry: false,
            work: VecDeque::new(),
            notes: VecDeque::new(),
            counters: Counters::default(),
            dirty: Vec::new(),
            starving: Vec::new(),
            passes: Vec::new(),
            post,
            wake,
            wake_watched: false,
            inbox_watched: false,
            inbox_ended: false,
            listeners: Listeners::default(),
            acceptor: Acceptor::default(),
            accepts_left: 0,
            turn_left: 0,
            arrived: VecDeque::new(),
            young: VecDeque::new(),
            lingering: VecDeque::new(),
            lingering_count: 0,
            freed: false,
            now: clock(),
            renew_at: clock().plus_ms(ACCEPT_RENEW_MS),
            look_at: clock().plus_ms(SERVER_LOOK_MS),
        })
    }

    /// Has the end of the turn look at this socket.
    #[inline]
    fn mark(&mut self, id: SocketId) {
        if let Some(socket) = self.sockets.get_mut(id) {
            if !socket.flags.any(Flags::DIRTY) {
                socket.flags.set(Flags::DIRTY);
                self.dirty.push(id);
            }
        }
    }

    /// The socket that the core knows by this id.
    #[inline]
    fn find(&mut self, conn: Conn) -> Option<(SocketId, &mut Socket)> {
        let id = *self.table.get(conn)?;
        self.sockets.get_mut(id).map(|socket| (id, socket))
    }

    fn take_note(&mut self, note: Note<SocketId>) -> Option<Completion<Chunk>> {
        match note.tell(|conn| self.table.get(conn).is_some()) {
            Ok(told) => told,
            Err((id, why)) => self.break_off(id, why),
        }
    }

    fn go_on(&mut self, work: Work) -> Option<Completion<Chunk>> {
        match work {
            Work::Held(id) => self.tell_held(id),
            Work::LastWords(id, left) => self.read_last_words(id, left),
            Work::Mail { left, hangup } => self.take_mail(left, hangup),
        }
    }

    #[inline]
    fn handle_done(&mut self, done: Done) -> Option<Completion<Chunk>> {
        match done.key {
            Key::Recv(id) => self.handle_received(id, done),
            Key::Send(id) | Key::Quick(id) => {
                let error = |_| Errno::from_raw_os_error(done.result.wrapping_neg());
                self.handle_sent(id, usize::try_from(done.result).map_err(error))
            }
            Key::Watch(id) => self.handle_watched(id, &done),
            Key::Cancel(id) => {
                // A thread of the kernel's is at it: it ends soon, having been told so.
                if done.result == -libc::EALREADY {
                    return None;
                }
                // There was nothing to end, or not yet: the end of the turn looks again.
                if let Some(socket) = self.sockets.get_mut(id) {
                    socket.flags.clear(Flags::RECV_ENDS | Flags::WATCH_ENDS | Flags::SEND_ENDS);
                }
                self.mark(id);
                None
            }
            Key::Accept(listener, serial) => self.handle_accepted(listener, serial, done),
            Key::Wake => {
                self.wake_watched = false;
                Some(Completion::Woken)
            }
            Key::Inbox => {
                self.inbox_watched = false;
                let hangup = done.result & i32::from(libc::POLLHUP) != 0;
                self.work.push_back(Work::Mail { left: MAILS_PER_TURN, hangup });
                None
            }
            Key::Nobody => None,
        }
    }

    /// One step: a mail at most.
    fn take_mail(&mut self, left: u8, hangup: bool) -> Option<Completion<Chunk>> {
        let left = left.checked_sub(1)?;
        match take_mail(&mut self.post, hangup) {
            Taken::Nothing => None,
            Taken::Last(notice) => {
                self.inbox_ended = true;
                Some(notice)
            }
            Taken::One(completion) => {
                self.work.push_front(Work::Mail { left, hangup });
                self.counters.mails += u64::from(matches!(completion, Completion::Mail(..)));
                Some(completion)
            }
        }
    }

    /// Brings what the kernel has in line with what every connection wants.
    fn reconcile(&mut self) {
        if self.freed {
            self.freed = false;
            self.listeners.resume(&mut self.acceptor, self.now);
        }
        if self.renew_at <= self.now {
            self.renew_at = self.now.plus_ms(ACCEPT_RENEW_MS);
            self.acceptor.renew();
        }
        self.acceptor.arm(&mut self.ring);
        if !self.wake_watched {
            self.wake_watched = true;
            self.ring.poll(self.wake.as_fd(), READABLE, Key::Wake);
        }
        if !self.inbox_watched && !self.inbox_ended {
            self.inbox_watched = true;
            self.ring.poll(self.post.fd(), READABLE, Key::Inbox);
        }
        let starving = std::mem::take(&mut self.starving);
        for id in starving {
            if let Some(socket) = self.sockets.get_mut(id) {
                socket.flags.clear(Flags::STARVING);
            }
            self.mark(id);
        }
        for pass in &mut self.passes {
            pass.tried = true;
        }
        let mut at = 0;
        while let Some(id) = self.dirty.get(at).copied() {
            at += 1;
            self.reconcile_one(id);
        }
        self.dirty.clear();
    }

    fn reconcile_one(&mut self, id: SocketId) {
        if let Some(socket) = self.sockets.get_mut(id) {
            socket.flags.clear(Flags::DIRTY);
            self.send_queued(id);
            self.reconcile_receiving(id);
            self.reconcile_watching(id);
        }
    }

    fn reconcile_receiving(&mut self, id: SocketId) {
        let Some(socket) = self.sockets.get_mut(id) else { return };
        let flags = socket.flags;
        match (socket.wants_bytes(), flags.any(Flags::ARMED)) {
            (true, false) if self.pool.offered(socket.size()) > self.arrived.len() => {
                let bulky = if flags.any(Flags::BULKY) { Flags::ARMED_BULKY } else { 0 };
                socket.flags.clear(Flags::MISSED);
                socket.flags.set(Flags::ARMED | bulky);
                socket.unsuited = 0;
                self.ring.recv(socket.fd.as_fd(), socket.size(), id);
            }
            (true, false) if !flags.any(Flags::STARVING) => {
                socket.flags.set(Flags::STARVING);
                self.starving.push(id);
            }
            (wanted, true) if !flags.any(Flags::RECV_ENDS) => {
                let ends = match wanted {
                    true => flags.any(Flags::MISSED) || socket.is_missized(),
                    false => !is_delivering(socket),
                };
                if ends {
                    socket.flags.set(Flags::RECV_ENDS);
                    self.ring.cancel(Key::Recv(id), Key::Cancel(id));
                }
            }
            _ => {}
        }
        if socket.why.is_some() && !flags.any(Flags::ARMED | Flags::CLOSED) {
            self.start_last_words(id);
        }
    }

    fn reconcile_watching(&mut self, id: SocketId) {
        let Some(socket) = self.sockets.get_mut(id) else { return };
        if socket.flags.any(Flags::PAUSED | Flags::ENDED) {
            // Receiving tells nothing of it.
            socket.flags.clear(Flags::YOUNG);
        }
        let flags = socket.flags;
        // What was seen when nobody cared has to be seen again.
        let again = socket.is_unread() && flags.any(Flags::SEEN);
        let ends = again || !socket.wants_watch();
        if socket.wants_watch() && !flags.any(Flags::WATCHED) {
            socket.flags.set(Flags::WATCHED);
            socket.flags.clear(Flags::SEEN);
            if flags.any(Flags::CONNECTING) {
                self.ring.poll(socket.fd.as_fd(), WRITABLE, Key::Watch(id));
            } else {
                self.ring.watch(socket.fd.as_fd(), id);
            }
        } else if ends && flags.any(Flags::WATCHED) && !flags.any(Flags::WATCH_ENDS) {
            socket.flags.set(Flags::WATCH_ENDS);
            self.ring.cancel(Key::Watch(id), Key::Cancel(id));
        }
        let over = flags.any(Flags::CLOSED) && !flags.any(Flags::LINGERING | Flags::SEND_ENDS);
        if over && socket.queue.flying > 0 {
            socket.flags.set(Flags::SEND_ENDS);
            self.ring.cancel(Key::Send(id), Key::Cancel(id));
        }
    }

    /// Gives up servers that have not answered so many retransmissions: their link is dead.
    pub(crate) fn give_up_unreachable(&mut self, retransmits: u8) {
        for (_, id) in self.table.servers() {
            let Some(socket) = self.sockets.get(*id) else { continue };
            let open = !socket.flags.any(Flags::CONNECTING | Flags::BROKEN);
            if open && net::retransmits(&socket.fd) >= retransmits {
                self.notes.push_back(Note::Broken(*id, Gone::Unreachable));
            }
        }
    }

    /// The next completion to deal with in this turn. Once enough has been received the other
    /// receives wait, but nothing else does: a send that is in flight when the turn ends is one
    /// that the kernel has not taken. Receives that waited come behind what is new of other things,
    /// so that the core learns of a full queue before more is put into it.
    #[inline]
    fn next_done(&mut self) -> Option<Done> {
        if self.turn_left == 0 || !self.arrived.is_empty() {
            while let Some(done) = self.ring.next() {
                if !matches!(done.key, Key::Recv(_)) {
                    return Some(done);
                }
                self.arrived.push_back(done);
            }
        }
        if self.turn_left == 0 {
            return None;
        }
        let done = self.arrived.pop_front().or_else(|| self.ring.next())?;
        if done.buffer.is_some() {
            let bytes = usize::try_from(done.result).unwrap_or(0);
            self.turn_left = self.turn_left.saturating_sub(bytes);
        }
        Some(done)
    }

    /// Whether the next turn has something to do that no completion would tell of.
    fn has_more(&self) -> bool {
        let told = self.notes.is_empty() && self.work.is_empty() && self.passes.is_empty();
        !told || self.acceptor.has_clients() || !self.arrived.is_empty()
    }

    /// Stores a socket.
    fn insert(&mut self, conn: Conn, fd: OwnedFd, flags: u32) {
        let id = self.sockets.insert_with(|_| Socket::new(fd, conn));
        if let Some(socket) = self.sockets.get_mut(id) {
            socket.flags.set(flags | Flags::YOUNG);
        }
        // In steps, so that many of them are one piece of work.
        let grown_up = Now(self.now.0.next_multiple_of(YOUNG_US) + YOUNG_US);
        self.young.push_back((grown_up, id));
        self.table.insert(conn, id);
        self.mark(id);
    }
}

/// Closed, and its bytes are on their way: what it says meanwhile is thrown away.
const fn is_delivering(socket: &Socket) -> bool {
    socket.flags.any(Flags::LINGERING) && !socket.flags.any(Flags::ENDED)
}

impl Driver for Uring {
    type Chunk = Chunk;
    const BACKEND: Backend = Backend::Uring;

    fn wait(&mut self, timeout_ms: u64) -> io::Result<()> {
        self.accepts_left = u32::from(ACCEPTS_PER_TURN);
        self.turn_left = TURN_BYTES_MAX;
        self.reconcile();
        let now = self.has_more() || std::mem::take(&mut self.hurry) || !self.starving.is_empty();
        let timeout_ms = if now { 0 } else { timeout_ms };
        self.ring.enter(timeout_ms)
    }

    #[inline]
    fn next(&mut self, now: Now) -> Option<Completion<Chunk>> {
        self.now = now;
        loop {
            let step = if let Some(note) = self.notes.pop_front() {
                self.take_note(note)
            } else if let Some(work) = self.work.pop_front() {
                self.go_on(work)
            } else if let Some(done) = self.next_done() {
                self.handle_done(done)
            } else if self.accepts_left > 0 && self.acceptor.has_clients() {
                self.accepts_left -= 1;
                self.counters.accepted += 1;
                self.acceptor.take().map(|(socket, peer)| Completion::Accepted(socket, peer))
            } else if !self.quick.is_empty() && self.ring.has_told_all() {
                self.finish_quick();
                None
            } else if !self.passes.is_empty() && self.decide_passes() {
                None
            } else {
                // The next turn hears of the sends of this one.
                self.hurry |= !self.quick.is_empty();
                return None;
            };
            if step.is_some() {
                return step;
            }
        }
    }

    fn adopt(&mut self, conn: Conn, socket: OwnedFd) {
        self.insert(conn, socket, 0);
    }

    fn pass(&mut self, conn: Conn, to: WorkerId, mail: &[u8]) {
        self.start_pass(conn, to, mail);
    }

    fn post(&mut self, to: WorkerId, mail: &[u8], fd: Option<BorrowedFd<'_>>) -> bool {
        self.post.send(to, mail, fd)
    }

    #[inline]
    fn send(&mut self, to: Conn, chunk: &[u8], range: Range<usize>) {
        let Some(id) = self.table.get(to).copied() else { return };
        let Some(socket) = self.sockets.get_mut(id) else { return };
        if range.is_empty() || socket.flags.any(Flags::BROKEN) {
            return;
        }
        match self.lent {
            Some(block) => self.pieces.push_block(&mut socket.queue, block, range, &mut self.pool),
            None => {
                self.pieces.push_own(&mut socket.queue, chunk.get(range).unwrap_or_default());
            }
        }
        self.queued(id);
    }

    #[inline]
    fn send_own(&mut self, to: Conn, bytes: &[u8]) {
        let Some(id) = self.table.get(to).copied() else { return };
        let Some(socket) = self.sockets.get_mut(id) else { return };
        if !socket.flags.any(Flags::BROKEN) {
            self.pieces.push_own(&mut socket.queue, bytes);
            self.queued(id);
        }
    }

    fn connect(&mut self, conn: Conn, address: &Address) {
        match net::start_connect(address) {
            Ok((fd, true)) => {
                self.insert(conn, fd, 0);
                self.notes.push_back(Note::Connected(conn));
            }
            Ok((fd, false)) => self.insert(conn, fd, Flags::CONNECTING),
            Err(error) => self.notes.extend(refused(conn, error)),
        }
    }

    fn shutdown(&mut self, conn: Conn) {
        if let Some((_, socket)) = self.find(conn) {
            socket.flags.set(Flags::FIN);
            if !socket.flags.any(Flags::CONNECTING) {
                socket.finish();
            }
        }
    }

    fn close(&mut self, conn: Conn, _: &[u8], now: Now) {
        self.start_close(conn, now);
    }

    fn pause_read(&mut self, conn: Conn) {
        if let Some((id, socket)) = self.find(conn) {
            socket.flags.set(Flags::PAUSED);
            self.mark(id);
        }
    }

    fn resume_read(&mut self, conn: Conn) {
        if let Some((id, socket)) = self.find(conn) {
            socket.flags.clear(Flags::PAUSED | Flags::PARKED);
            let holds = socket.held.is_some();
            if holds {
                self.work.push_back(Work::Held(id));
            }
            self.mark(id);
        }
    }

    #[inline]
    fn submit(&mut self, chunk: Option<Chunk>) {
        self.lent = None;
        if let Some(chunk) = chunk {
            self.pool.take_back(chunk);
        }
    }

    fn set_listeners(&mut self, listeners: Vec<(u32, Listener)>) -> io::Result<()> {
        self.listeners.set(listeners, &mut self.acceptor)
    }

    fn stop_listening(&mut self) {
        self.listeners.stop(&mut self.acceptor);
        // Whom the kernel has accepted is nobody else's any more, and this turn may be the last.
        self.accepts_left = u32::MAX;
    }

    #[inline]
    fn clients(&self) -> usize {
        self.table.clients_open()
    }

    fn handle_timeouts(&mut self, now: Now) {
        self.expire(now);
        while let Some((_, id)) = self.young.front().copied().filter(|(at, _)| *at <= now) {
            self.young.pop_front();
            if let Some(socket) = self.sockets.get_mut(id) {
                socket.flags.clear(Flags::YOUNG);
            }
            self.mark(id);
        }
        if self.look_at <= now {
            self.look_at = now.plus_ms(SERVER_LOOK_MS);
            self.give_up_unreachable(SERVER_RETRANSMITS_MAX);
            if self.arrived.is_empty() && self.ring.has_told_all() {
                self.pool.shrink();
            }
        }
        if self.listeners.poll_deadline().is_some_and(|deadline| deadline <= now) {
            self.listeners.resume(&mut self.acceptor, now);
        }
    }

    fn poll_deadline(&self) -> Option<Now> {
        let lingering = self.lingering.front().map(|(deadline, _)| *deadline);
        let young = self.young.front().map(|(grown_up, _)| *grown_up);
        let deadlines = [Some(self.look_at), young, lingering, self.listeners.poll_deadline()];
        deadlines.into_iter().flatten().min()
    }

    fn lingering(&self) -> usize {
        self.lingering_count
    }

    fn rows(&self) -> Vec<(&'static str, u64)> {
        self.counters.rows(self.lingering_count)
    }
}
