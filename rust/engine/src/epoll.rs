//! The epoll driver: readiness becomes completions, sends are tried at once.
//!
//! A query costs its share of one wait, two receives and two sends. What epoll watches is changed
//! only at the end of a turn and only if it differs by then, so a pause and a resume in one turn
//! cost nothing. Reading is in `receive.rs`; this file holds the state, the sends and the seam.
//! Next: `conn.rs`.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};

use ledger::WorkerId;
use proxy_core::ids::Conn;
use proxy_core::sink::{Address, Gone, Now};
use rustix::io::Errno;

use crate::batch::Batches;
use crate::chunk::Buffer;
use crate::conn::{Flags, Socket};
use crate::counters::Counters;
use crate::driver::{Backend, Completion, Driver, Received};
use crate::engine::clock;
use crate::limits::{
    ACCEPTS_PER_TURN, DEFER_BYTES_MAX, DEFERRED_SENDS_MAX, MAILS_PER_TURN, QUEUE_HIGH, QUEUE_LOW,
    SERVER_LOOK_MS, SERVER_RETRANSMITS_MAX,
};
use crate::linger::{Lingering, has_unread};
use crate::listen::{Accepted, Listener, Listeners};
use crate::net;
use crate::notes::{Note, refused};
use crate::passing::Pass;
use crate::poller::{Key, Poller, READ, Ready, WRITE};
use crate::post::Post;
use crate::receive::Reading;
use crate::table::Table;

/// A readiness event that takes more than one step.
#[derive(Debug)]
pub(crate) enum Work {
    Read(Reading),
    Accept { listener: u32, left: u8 },
    Mail { left: u8, hangup: bool },
}

/// The driver.
#[derive(Debug)]
pub(crate) struct Epoll {
    pub(crate) poller: Poller,
    pub(crate) table: Table<Socket>,
    pub(crate) work: Option<Work>,
    pub(crate) notes: VecDeque<Note<Conn>>,
    /// Servers whose last words are to be read.
    broken: VecDeque<(Conn, Gone)>,
    pub(crate) counters: Counters,
    /// `None` while it is lent out.
    pub(crate) buffer: Option<Buffer>,
    pub(crate) post: Post,
    /// Connections to hand over at the end of the call under way.
    pub(crate) passes: Vec<Pass>,
    listeners: Listeners,
    lingering: Lingering,
    batches: Batches,
    dirty: Vec<Conn>,
    /// A connection has closed since accepting paused.
    pub(crate) freed: bool,
    now: Now,
    /// When the servers are looked at next.
    look_at: Now,
}

impl Epoll {
    /// A driver that has no listeners yet and reports `Woken` when `wake` is readable.
    ///
    /// # Errors
    /// Descriptors or epoll watches ran out, or the inbox is no socket.
    pub(crate) fn new(wake: BorrowedFd<'_>, post: Post) -> io::Result<Self> {
        let poller = Poller::new()?;
        poller.add(wake, Key::Wake, READ)?;
        poller.add(post.fd(), Key::Inbox, READ)?;
        Ok(Self {
            listeners: Listeners::default(),
            poller,
            post,
            passes: Vec::new(),
            table: Table::default(),
            work: None,
            notes: VecDeque::new(),
            broken: VecDeque::new(),
            counters: Counters::default(),
            buffer: Some(Buffer::new()),
            lingering: Lingering::default(),
            batches: Batches::default(),
            dirty: Vec::new(),
            freed: false,
            now: clock(),
            look_at: clock().plus_ms(SERVER_LOOK_MS),
        })
    }

    /// Has the end of the turn look at what epoll shall watch for this connection.
    pub(crate) fn mark(dirty: &mut Vec<Conn>, socket: &mut Socket, conn: Conn) {
        if !socket.flags.any(Flags::DIRTY) {
            socket.flags.set(Flags::DIRTY);
            dirty.push(conn);
        }
    }

    /// The peer has ended its sending: reading stops, or the end of file would be reported for
    /// ever.
    pub(crate) fn stop_reading(&mut self, conn: Conn) {
        if let Some(socket) = self.table.get(conn) {
            socket.flags.set(Flags::EOF);
            Self::mark(&mut self.dirty, socket, conn);
        }
    }

    /// Forgets a connection and reports its end.
    pub(crate) fn gone(&mut self, conn: Conn, why: Gone) -> Option<Completion<Buffer>> {
        self.table.remove(conn)?;
        self.freed = true;
        Some(Completion::Gone(conn, why))
    }

    fn take_note(&mut self, note: Note<Conn>) -> Option<Completion<Buffer>> {
        match note.tell(|conn| self.table.get(conn).is_some()) {
            Ok(told) => told,
            Err((conn @ Conn::Server(_), why)) => {
                // What it said before it went (its FATAL message) is worth more than our error.
                self.table.get(conn)?;
                self.broken.push_back((conn, why));
                None
            }
            Err((conn, why)) => self.gone(conn, why),
        }
    }

    fn handle_ready(&mut self, ready: Ready) -> Option<Completion<Buffer>> {
        match ready.key {
            Key::Conn(conn) => self.handle_conn_ready(conn, ready),
            Key::Wake => Some(Completion::Woken),
            Key::Inbox => {
                self.work = Some(Work::Mail { left: MAILS_PER_TURN, hangup: ready.hangup });
                None
            }
            Key::Listener(listener) => {
                self.work = Some(Work::Accept { listener, left: ACCEPTS_PER_TURN });
                None
            }
            Key::Linger(_) => {
                let scratch = self.buffer.as_mut()?.memory();
                self.lingering.handle_ready(&self.poller, ready, scratch);
                self.freed = true;
                None
            }
        }
    }

    #[inline]
    fn handle_conn_ready(&mut self, conn: Conn, ready: Ready) -> Option<Completion<Buffer>> {
        let socket = self.table.get(conn)?;
        if socket.flags.any(Flags::CONNECTING) {
            return self.finish_connect(conn, ready);
        }
        if ready.write {
            self.flush_spill(conn);
        }
        if ready.read || ready.hangup || ready.error {
            self.work = Some(Work::Read(Reading::new(conn, ready)));
        }
        None
    }

    fn finish_connect(&mut self, conn: Conn, ready: Ready) -> Option<Completion<Buffer>> {
        let socket = self.table.get(conn)?;
        match net::finish_connect(&socket.fd) {
            Ok(()) if ready.write => {
                socket.flags.clear(Flags::CONNECTING);
                socket.finish();
                Self::mark(&mut self.dirty, socket, conn);
                Some(Completion::Connected(conn))
            }
            Ok(()) => None,
            Err(error) => self.gone(conn, net::refusal(error)),
        }
    }

    fn accept(&mut self, listener: u32, left: u8) -> Option<Completion<Buffer>> {
        let left = left.checked_sub(1)?;
        match self.listeners.accept(listener, &mut self.poller, self.now) {
            Accepted::Client(socket, peer) => {
                self.work = Some(Work::Accept { listener, left });
                self.counters.accepted += 1;
                Some(Completion::Accepted(socket, peer))
            }
            Accepted::Again => {
                self.work = Some(Work::Accept { listener, left });
                None
            }
            Accepted::Empty => None,
            Accepted::Paused(news) => {
                self.counters.accept_pauses += 1;
                self.freed = false;
                news.map(Completion::Notice)
            }
        }
    }

    /// Sends what waits for this connection as far as it goes.
    fn flush_spill(&mut self, conn: Conn) {
        let Some(socket) = self.table.get(conn) else { return };
        let Some(spill) = &mut socket.spill else { return };
        self.counters.sends += 1;
        if let Err(error) = spill.flush(&socket.fd) {
            return self.break_off(conn, error);
        }
        if spill.len() == 0 {
            socket.spill = None;
            socket.finish();
            Self::mark(&mut self.dirty, socket, conn);
        }
        if socket.queued() < QUEUE_LOW && socket.flags.any(Flags::CONGESTED) {
            socket.flags.clear(Flags::CONGESTED);
            self.notes.push_back(Note::Drained(conn));
        }
    }

    /// Sends every batch as far as it goes.
    ///
    /// Answers to many small messages go out together: a peer that serves several connections wakes
    /// once for them instead of once each, which is most of what a small send costs.
    fn flush(&mut self, chunk: &[u8]) {
        for number in 0..self.batches.count() {
            self.flush_batch(number, chunk);
        }
        self.batches.clear();
    }

    /// Sends a batch as far as it goes and spills the rest.
    #[inline]
    fn flush_batch(&mut self, number: usize, chunk: &[u8]) {
        let Some((conn, total)) = self.batches.head(number) else { return };
        let Some(socket) = self.table.get(conn) else { return };
        socket.batch = 0;
        if total == 0 || socket.flags.any(Flags::BROKEN) {
            return;
        }
        self.counters.sends += 1;
        match socket.write(self.batches.slices(number, chunk), total) {
            Ok(0) => socket.finish(),
            Ok(spilled) => {
                self.counters.spilled_bytes += spilled as u64;
                Self::mark(&mut self.dirty, socket, conn);
                if socket.queued() > QUEUE_HIGH && !socket.flags.any(Flags::CONGESTED) {
                    socket.flags.set(Flags::CONGESTED);
                    self.notes.push_back(Note::Congested(conn));
                }
            }
            Err(error) => self.break_off(conn, error),
        }
    }

    /// A send has failed: nothing more is sent, and the core hears of it after the call under way.
    fn break_off(&mut self, conn: Conn, error: Errno) {
        let Some(socket) = self.table.get(conn) else { return };
        socket.flags.set(Flags::BROKEN);
        socket.spill = None;
        self.notes.push_back(Note::Broken(conn, net::loss(error)));
    }

    /// The number of this connection's batch in the call under way.
    #[inline]
    fn batch(&mut self, conn: Conn) -> Option<usize> {
        let socket = self.table.get(conn)?;
        if socket.batch == 0 {
            socket.batch = u32::try_from(self.batches.open(conn)).ok()? + 1;
        }
        Some(socket.batch as usize - 1)
    }

    /// Has epoll watch what shall be watched from now on.
    fn rearm(&mut self, conn: Conn) {
        let Some(socket) = self.table.get(conn) else { return };
        socket.flags.clear(Flags::DIRTY);
        let wanted = interest(socket);
        let key = Key::Conn(conn);
        let armed = if socket.flags.any(Flags::PARKED) {
            if wanted & READ == 0 {
                return;
            }
            socket.flags.clear(Flags::PARKED);
            self.poller.add(&socket.fd, key, wanted)
        } else if wanted == socket.armed {
            return;
        } else {
            self.poller.modify(&socket.fd, key, wanted)
        };
        socket.armed = wanted;
        if armed.is_err() {
            self.notes.push_back(Note::Broken(conn, Gone::Reset));
        }
    }

    /// Gives up servers that have not answered so many retransmissions: their link is dead.
    pub(crate) fn give_up_unreachable(&mut self, retransmits: u8) {
        for (conn, socket) in self.table.servers() {
            let open = !socket.flags.any(Flags::CONNECTING | Flags::BROKEN);
            if open && net::retransmits(&socket.fd) >= retransmits {
                self.notes.push_back(Note::Broken(conn, Gone::Unreachable));
            }
        }
    }

    /// Stores a socket and has epoll watch it.
    fn watch(&mut self, conn: Conn, fd: OwnedFd, flags: u8) {
        let Some(socket) = self.table.insert(conn, Socket::new(fd)) else { return };
        socket.flags.set(flags);
        socket.armed = interest(socket);
        if self.poller.add(&socket.fd, Key::Conn(conn), socket.armed).is_err() {
            self.notes.push_back(Note::Broken(conn, Gone::Reset));
        }
    }
}

/// What epoll shall watch for a socket.
fn interest(socket: &Socket) -> u8 {
    if socket.flags.any(Flags::CONNECTING) {
        return WRITE;
    }
    let read = if socket.flags.any(Flags::PAUSED | Flags::EOF) { 0 } else { READ };
    if socket.spill.is_some() { read | WRITE } else { read }
}

impl Driver for Epoll {
    type Chunk = Buffer;
    const BACKEND: Backend = Backend::Epoll;

    fn wait(&mut self, timeout_ms: u64) -> io::Result<()> {
        if self.freed {
            self.freed = false;
            self.listeners.resume(&mut self.poller, self.now);
        }
        while let Some(conn) = self.dirty.pop() {
            self.rearm(conn);
        }
        let timeout_ms = if self.notes.is_empty() { timeout_ms } else { 0 };
        self.poller.wait(timeout_ms)
    }

    #[inline]
    fn next(&mut self, now: Now) -> Option<Completion<Buffer>> {
        self.now = now;
        loop {
            let step = if let Some(note) = self.notes.pop_front() {
                self.take_note(note)
            } else if let Some(work) = self.work.take() {
                match work {
                    Work::Read(reading) => self.read(reading),
                    Work::Accept { listener, left } => self.accept(listener, left),
                    Work::Mail { left, hangup } => self.take_mail(left, hangup),
                }
            } else if let Some((conn, why)) = self.broken.pop_front() {
                self.work = Some(Work::Read(Reading::last_words(conn, why)));
                None
            } else if let Some(ready) = self.poller.next() {
                self.handle_ready(ready)
            } else if self.batches.count() > 0 {
                self.flush(&[]);
                None
            } else {
                return None;
            };
            if step.is_some() {
                return step;
            }
        }
    }

    fn adopt(&mut self, conn: Conn, socket: OwnedFd) {
        self.watch(conn, socket, 0);
    }

    fn pass(&mut self, conn: Conn, to: WorkerId, mail: &[u8]) {
        self.passes.push(Pass { conn, to, mail: mail.to_vec() });
    }

    fn post(&mut self, to: WorkerId, mail: &[u8], fd: Option<BorrowedFd<'_>>) -> bool {
        self.post.send(to, mail, fd)
    }

    #[inline]
    fn send(&mut self, to: Conn, chunk: &[u8], range: Range<usize>) {
        let Some(number) = self.batch(to) else { return };
        if chunk.len() <= DEFER_BYTES_MAX {
            // Copied, so that it can wait for the others of this turn.
            self.batches.add_own(number, chunk.get(range).unwrap_or_default());
        } else {
            self.batches.add_chunk(number, range);
        }
    }

    #[inline]
    fn send_own(&mut self, to: Conn, bytes: &[u8]) {
        if let Some(number) = self.batch(to) {
            self.batches.add_own(number, bytes);
        }
    }

    fn connect(&mut self, conn: Conn, address: &Address) {
        match net::start_connect(address) {
            Ok((fd, true)) => {
                self.watch(conn, fd, 0);
                self.notes.push_back(Note::Connected(conn));
            }
            Ok((fd, false)) => self.watch(conn, fd, Flags::CONNECTING),
            Err(error) => self.notes.extend(refused(conn, error)),
        }
    }

    fn shutdown(&mut self, conn: Conn) {
        if let Some(socket) = self.table.get(conn) {
            socket.flags.set(Flags::FIN);
            if !socket.flags.any(Flags::CONNECTING) {
                socket.finish();
            }
        }
    }

    fn close(&mut self, conn: Conn, chunk: &[u8], now: Now) {
        let Some(mut socket) = self.table.remove(conn) else { return };
        self.freed = true;
        let mut farewell = false;
        if let Some(number) = (socket.batch as usize).checked_sub(1) {
            let total = self.batches.head(number).map_or(0, |(_, total)| total);
            if total > 0 && !socket.flags.any(Flags::BROKEN) {
                self.counters.sends += 1;
                farewell = true;
                if socket.write(self.batches.slices(number, chunk), total).is_err() {
                    socket.flags.set(Flags::BROKEN);
                }
            }
            self.batches.drop_one(number);
        }
        if socket.flags.any(Flags::BROKEN | Flags::CONNECTING) {
            return;
        }
        let reset = matches!(conn, Conn::Client(_)) && farewell && has_unread(&socket.fd);
        if socket.spill.is_some() || reset {
            self.lingering.add(&self.poller, socket.fd, socket.spill, now);
        }
    }

    fn pause_read(&mut self, conn: Conn) {
        if let Some(socket) = self.table.get(conn) {
            socket.flags.set(Flags::PAUSED);
            Self::mark(&mut self.dirty, socket, conn);
        }
    }

    fn resume_read(&mut self, conn: Conn) {
        if let Some(socket) = self.table.get(conn) {
            socket.flags.clear(Flags::PAUSED);
            Self::mark(&mut self.dirty, socket, conn);
        }
    }

    #[inline]
    fn submit(&mut self, chunk: Option<Buffer>) {
        let waits = chunk.as_ref().is_some_and(|chunk| chunk.bytes().len() <= DEFER_BYTES_MAX)
            && self.batches.count() < DEFERRED_SENDS_MAX
            && self.passes.is_empty();
        if !waits {
            self.flush(chunk.as_ref().map_or(&[][..], |chunk| chunk.bytes()));
            self.carry_out_passes();
        }
        if chunk.is_some() {
            self.buffer = chunk;
        }
    }

    fn set_listeners(&mut self, listeners: Vec<(u32, Listener)>) -> io::Result<()> {
        self.listeners.set(listeners, &mut self.poller)
    }

    fn stop_listening(&mut self) {
        self.listeners.stop(&mut self.poller);
    }

    #[inline]
    fn clients(&self) -> usize {
        self.table.clients_open()
    }

    fn handle_timeouts(&mut self, now: Now) {
        self.lingering.expire(now);
        if self.look_at <= now {
            self.look_at = now.plus_ms(SERVER_LOOK_MS);
            self.give_up_unreachable(SERVER_RETRANSMITS_MAX);
        }
        if self.listeners.poll_deadline().is_some_and(|deadline| deadline <= now) {
            self.listeners.resume(&mut self.poller, now);
        }
    }

    fn poll_deadline(&self) -> Option<Now> {
        let deadlines =
            [Some(self.look_at), self.lingering.poll_deadline(), self.listeners.poll_deadline()];
        deadlines.into_iter().flatten().min()
    }

    fn lingering(&self) -> usize {
        self.lingering.len()
    }

    fn rows(&self) -> Vec<(&'static str, u64)> {
        self.counters.rows(self.lingering.len())
    }
}
