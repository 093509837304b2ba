//! What tests look at in the io_uring driver. Next on the path: `testbed.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use proxy_core::ids::Conn;
use proxy_core::sink::Now;

use super::ring::{ENTRIES, Entries, Ring};
use super::{Uring, probe};
use crate::driver::Driver;
use crate::limits::{LARGE_BUFFER_BYTES, TURN_BYTES_MAX, YOUNG_US};
use crate::post::Post;
use crate::testbed::Inspect;

thread_local! {
    static RINGS_OF: Cell<Entries> = const { Cell::new(ENTRIES) };
}

/// The drivers that are made meanwhile have rings of so many entries.
pub(crate) fn with_rings_of<R>(entries: Entries, run: impl FnOnce() -> R) -> R {
    let before = RINGS_OF.replace(entries);
    let result = run();
    RINGS_OF.set(before);
    result
}

impl Inspect for Uring {
    fn turn_bytes(&self) -> usize {
        TURN_BYTES_MAX + LARGE_BUFFER_BYTES
    }
    fn create(wake: BorrowedFd<'_>, post: Post) -> io::Result<Self> {
        assert_eq!(probe(), Ok(()), "these tests need io_uring");
        Self::around(Ring::new(RINGS_OF.get())?, wake, post)
    }
    fn fd(&mut self, conn: Conn) -> BorrowedFd<'_> {
        self.find(conn).unwrap().1.fd.as_fd()
    }
    fn queued(&mut self, conn: Conn) -> usize {
        self.find(conn).unwrap().1.queue.bytes
    }
    fn is_at_rest(&mut self) -> bool {
        !self.has_more()
            && self.dirty.is_empty()
            && self.starving.is_empty()
            && self.quick.is_empty()
            && !self.ring.is_overflown()
            && self.is_served()
    }
    fn holds_nothing(&self) -> bool {
        self.pool.is_whole()
    }
    fn look_for_dead_links(&mut self, retransmits: u8) {
        self.give_up_unreachable(retransmits);
    }
    fn age(&mut self) {
        self.look_at = self.now;
        self.handle_timeouts(Now(self.now.0 + 2 * YOUNG_US));
    }
}

impl Uring {
    /// The kernel waits for the bells, and for clients as far as it shall.
    fn is_served(&self) -> bool {
        self.wake_watched && (self.inbox_watched || self.inbox_ended) && self.acceptor.is_armed()
    }
}
