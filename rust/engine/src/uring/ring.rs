//! The ring itself: setting it up, telling whether a kernel can do it, submitting and waiting.
//!
//! Entries are gathered and go to the kernel together with the wait, one system call a turn. User
//! data names the operation and whose it is. This does not know what the operations mean. Next on
//! the path: `mod.rs`.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::types::{CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, Probe, cqueue, opcode, squeue};
use proxy_core::ids::Id;
use rustix::event::{Timespec as PollTime, poll};

use super::buffers::{Pool, Size};
use super::envelope::Envelopes;
use super::socket::SocketId;
use crate::limits::{COMPLETIONS_MAX, RING_WAIT_MS, RING_WAITS_MAX, SUBMISSIONS_MAX};

const ENTER_GETEVENTS: u32 = 1;
const ENTER_EXT_ARG: u32 = 1 << 3;

/// What an operation is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Key {
    /// Receives of a socket.
    Recv(SocketId),
    /// The send in flight of a socket, which waits for room.
    Send(SocketId),
    /// One that does not wait, and completes only if it has not sent all.
    Quick(SocketId),
    /// A look for the end of a socket, or for its connection being made.
    Watch(SocketId),
    /// Ends an operation of a socket.
    Cancel(SocketId),
    /// Clients of a listener, by its id and by how often one was armed.
    Accept(u32, u32),
    /// The command ring.
    Wake,
    /// The mailbox.
    Inbox,
    /// Ends something; whether it could is of no interest.
    Nobody,
}

const INDEX_BITS: u32 = 31;
const SECOND_BITS: u32 = 30;
/// How many times a listener may be armed before the count starts again.
pub(crate) const SERIAL_MASK: u32 = (1 << SECOND_BITS) - 1;

const fn pack(kind: u64, index: usize, second: u32) -> u64 {
    let index = index as u64 & ((1 << INDEX_BITS) - 1);
    kind << (INDEX_BITS + SECOND_BITS) | (second as u64) << INDEX_BITS | index
}

impl Key {
    const fn pack(self) -> u64 {
        match self {
            Self::Recv(id) => pack(0, id.index(), id.generation()),
            Self::Send(id) => pack(1, id.index(), id.generation()),
            Self::Watch(id) => pack(2, id.index(), id.generation()),
            Self::Cancel(id) => pack(3, id.index(), id.generation()),
            Self::Accept(listener, serial) => pack(4, listener as usize, serial),
            Self::Quick(id) => pack(5, id.index(), id.generation()),
            Self::Wake => pack(6, 0, 0),
            Self::Inbox => pack(6, 1, 0),
            Self::Nobody => pack(6, 2, 0),
        }
    }

    const fn unpack(data: u64) -> Self {
        let index = (data & ((1 << INDEX_BITS) - 1)) as u32;
        let second = (data >> INDEX_BITS & SERIAL_MASK as u64) as u32;
        let id = Id::from_parts(index, second);
        match data >> (INDEX_BITS + SECOND_BITS) {
            0 => Self::Recv(id),
            1 => Self::Send(id),
            2 => Self::Watch(id),
            3 => Self::Cancel(id),
            4 => Self::Accept(index, second),
            5 => Self::Quick(id),
            _ => match index {
                0 => Self::Wake,
                1 => Self::Inbox,
                _ => Self::Nobody,
            },
        }
    }

    /// Whether the kernel has something of ours until this completes.
    const fn counts(self) -> bool {
        !matches!(self, Self::Quick(_) | Self::Cancel(_) | Self::Nobody)
    }
}

/// What a completion says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Done {
    /// Which operation.
    pub(crate) key: Key,
    /// Its result: a count, a descriptor, a mask, or an error as a negative number.
    pub(crate) result: i32,
    /// The operation goes on.
    pub(crate) more: bool,
    /// More waits in the socket.
    pub(crate) nonempty: bool,
    /// The buffer that was filled.
    pub(crate) buffer: Option<u16>,
}

/// The ring.
pub(crate) struct Ring {
    ring: IoUring,
    /// Entries that did not fit.
    backlog: Vec<squeue::Entry>,
    envelopes: Envelopes,
    enabled: bool,
    outstanding: usize,
}

/// How many entries a ring holds, powers of two: asked for in one system call, and completed.
pub(crate) type Entries = (u32, u32);
/// Those of a worker.
pub(crate) const ENTRIES: Entries = (SUBMISSIONS_MAX, COMPLETIONS_MAX);

/// Makes a ring. Its memory counts as locked (RLIMIT_MEMLOCK, over all processes of the user) until
/// the kernel has cleared up behind it, which is a little after its end: a limit that has room for
/// one ring must do for one after the other, so this waits if there is none.
fn build(entries: Entries) -> io::Result<IoUring> {
    let pause = PollTime { tv_sec: 0, tv_nsec: RING_WAIT_MS * 1_000_000 };
    for _ in 0..RING_WAITS_MAX {
        match build_once(entries) {
            Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => {
                // For nothing but its time.
                let _ = poll(&mut [], Some(&pause));
            }
            built => return built,
        }
    }
    build_once(entries)
}

fn build_once((submissions, completions): Entries) -> io::Result<IoUring> {
    IoUring::builder()
        .dontfork()
        // Enabled by the thread that uses it, which need not be the one that makes it.
        .setup_r_disabled()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_submit_all()
        .setup_cqsize(completions)
        .build(submissions)
}

/// The opcodes in use, by the names that the kernel's documentation has for them.
const OPCODES: [(u8, &str); 6] = [
    (opcode::AcceptMulti::CODE, "IORING_OP_ACCEPT"),
    (opcode::RecvMulti::CODE, "IORING_OP_RECV"),
    (opcode::Send::CODE, "IORING_OP_SEND"),
    (opcode::SendMsg::CODE, "IORING_OP_SENDMSG"),
    (opcode::PollAdd::CODE, "IORING_OP_POLL_ADD"),
    (opcode::AsyncCancel2::CODE, "IORING_OP_ASYNC_CANCEL"),
];

/// Tells whether this kernel, here and now, has all that the driver needs.
///
/// # Errors
/// The first thing that is missing, for one line of the log.
pub fn probe() -> Result<(), String> {
    let ring = build(ENTRIES).map_err(|error| why_not(&error))?;
    let features = [
        (ring.params().is_feature_ext_arg(), "IORING_FEAT_EXT_ARG"),
        (ring.params().is_feature_nodrop(), "IORING_FEAT_NODROP"),
        (ring.params().is_feature_submit_stable(), "IORING_FEAT_SUBMIT_STABLE"),
        (ring.params().is_feature_fast_poll(), "IORING_FEAT_FAST_POLL"),
        (ring.params().is_feature_skip_cqe_on_success(), "IORING_FEAT_CQE_SKIP"),
    ];
    if let Some((_, name)) = features.into_iter().find(|(there, _)| !there) {
        return Err(format!("the kernel has no {name}"));
    }
    let mut known = Probe::new();
    let asked = ring.submitter().register_probe(&mut known);
    asked.map_err(|error| format!("the kernel does not tell what it can: {error}"))?;
    if let Some((_, name)) = OPCODES.into_iter().find(|(code, _)| !known.is_supported(*code)) {
        return Err(format!("the kernel has no {name}"));
    }
    let mut ring = Ring::around(ring);
    // A filter of system calls may allow a ring to be made and not to be used.
    ring.enter(0).map_err(|error| why_not(&error))?;
    let pool = Pool::new(&mut ring);
    // The ring first: the kernel must not write to memory that is gone.
    drop(ring);
    pool.map(drop).map_err(|error| format!("no ring of provided buffers (Linux 5.19): {error}"))
}

fn why_not(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => "the kernel has no io_uring".to_owned(),
        Some(libc::EPERM) => "io_uring is not allowed (kernel.io_uring_disabled, seccomp)".into(),
        Some(libc::EINVAL) => "no ring with SINGLE_ISSUER and DEFER_TASKRUN (Linux 6.1)".into(),
        Some(libc::ENOMEM) => "no memory for a ring (RLIMIT_MEMLOCK; raise LimitMEMLOCK)".into(),
        _ => format!("no ring: {error}"),
    }
}

impl Ring {
    /// A ring that nothing has been submitted to.
    ///
    /// # Errors
    /// The kernel cannot do it, or the process is out of descriptors or memory.
    pub(crate) fn new(entries: Entries) -> io::Result<Self> {
        Ok(Self::around(build(entries)?))
    }

    const fn around(ring: IoUring) -> Self {
        Self {
            ring,
            backlog: Vec::new(),
            envelopes: Envelopes::new(),
            enabled: false,
            outstanding: 0,
        }
    }

    /// Operations that the kernel has.
    pub(crate) const fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// Makes the kernel take buffers of a group from this ring of `entries`.
    ///
    /// # Errors
    /// The kernel cannot do it, or it is done already.
    ///
    /// # Safety
    /// `address` is that of so many entries, page-aligned, that live as long as this ring.
    #[allow(unsafe_code)]
    pub(crate) unsafe fn register_buffers(
        &self,
        address: u64,
        entries: u16,
        group: u16,
    ) -> io::Result<()> {
        // SAFETY: as the caller promises.
        unsafe { self.ring.submitter().register_buf_ring_with_flags(address, entries, group, 0) }
    }

    /// Receives into provided buffers until it is cancelled or ends.
    pub(crate) fn recv(&mut self, fd: BorrowedFd<'_>, size: Size, id: SocketId) {
        let entry = opcode::RecvMulti::new(Fd(fd.as_raw_fd()), size.group()).build();
        self.push(entry, Key::Recv(id));
    }

    /// Waits once for these events, and for errors and hang-ups in any case.
    pub(crate) fn poll(&mut self, fd: BorrowedFd<'_>, events: u32, key: Key) {
        self.push(opcode::PollAdd::new(Fd(fd.as_raw_fd()), events).build(), key);
    }

    /// Tells the state of a socket now and whenever its end may have come nearer, until it is
    /// cancelled. A single wait would not do: it ends at once for a peer that has half-closed.
    pub(crate) fn watch(&mut self, fd: BorrowedFd<'_>, id: SocketId) {
        let entry = opcode::PollAdd::new(Fd(fd.as_raw_fd()), 0).multi(true).build();
        self.push(entry, Key::Watch(id));
    }

    /// Accepts clients until it is cancelled or fails.
    pub(crate) fn accept(&mut self, fd: i32, listener: u32, serial: u32) {
        let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        let entry = opcode::AcceptMulti::new(Fd(fd)).flags(flags).build();
        self.push(entry, Key::Accept(listener, serial));
    }

    /// Ends an operation, which then completes; `key` hears only if there is none.
    pub(crate) fn cancel(&mut self, target: Key, key: Key) {
        let entry = opcode::AsyncCancel2::new(CancelBuilder::user_data(target.pack()));
        self.push(entry.build().flags(squeue::Flags::SKIP_SUCCESS), key);
    }

    /// Sends what there is in these slices: all of it, however long that takes, or, `quick`, as
    /// much as the kernel takes at once. A quick send is over when [`Ring::enter`] has submitted
    /// it, and completes only if it has failed or sent less.
    ///
    /// # Safety
    /// The bytes stay where they are, unchanged, until the send is over.
    #[allow(unsafe_code)]
    pub(crate) unsafe fn send(
        &mut self,
        fd: BorrowedFd<'_>,
        slices: &[&[u8]],
        quick: bool,
        id: SocketId,
    ) {
        let fd = Fd(fd.as_raw_fd());
        let wait = if quick { libc::MSG_DONTWAIT } else { 0 };
        let flags = wait | libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
        let entry = if let [one] = slices {
            let len = u32::try_from(one.len()).unwrap_or(u32::MAX);
            opcode::Send::new(fd, one.as_ptr(), len).flags(flags).build()
        } else {
            let header = self.envelopes.fill(slices);
            opcode::SendMsg::new(fd, header).flags(flags as u32).build()
        };
        if quick {
            self.push(entry.flags(squeue::Flags::SKIP_SUCCESS), Key::Quick(id));
        } else {
            self.push(entry, Key::Send(id));
        }
    }

    /// Whether the kernel has everything that was asked for.
    fn is_submitted(&mut self) -> bool {
        self.backlog.is_empty() && self.ring.submission().is_empty()
    }

    /// Whether a quick send of which nothing was heard has sent all: the kernel has it, and keeps
    /// back no completions for which the ring had no room.
    pub(crate) fn has_told_all(&mut self) -> bool {
        let submission = self.ring.submission();
        self.backlog.is_empty() && submission.is_empty() && !submission.cq_overflow()
    }

    fn push(&mut self, entry: squeue::Entry, key: Key) {
        let entry = entry.user_data(key.pack());
        self.outstanding += usize::from(key.counts());
        // SAFETY: only `send` names memory; its caller answers for the bytes, and the envelopes
        // stay until everything has been submitted.
        #[allow(unsafe_code)]
        let pushed =
            self.backlog.is_empty() && unsafe { self.ring.submission().push(&entry) }.is_ok();
        if !pushed {
            self.backlog.push(entry);
        }
    }

    /// Submits everything and waits until something completes, at most `timeout_ms` milliseconds.
    ///
    /// # Errors
    /// The ring is broken: a bug of ours.
    pub(crate) fn enter(&mut self, timeout_ms: u64) -> io::Result<()> {
        if !self.enabled {
            self.ring.submitter().register_enable_rings()?;
            self.enabled = true;
        }
        self.submit_all()?;
        self.enter_once(timeout_ms)?;
        if self.is_submitted() {
            // The kernel has read them.
            self.envelopes.clear();
        }
        Ok(())
    }

    /// As [`Ring::enter`], but comes back at once.
    ///
    /// # Errors
    /// As there.
    fn submit_all(&mut self) -> io::Result<()> {
        while !self.backlog.is_empty() {
            self.refill();
            let before = self.backlog.len();
            self.enter_once(0)?;
            self.refill();
            if self.backlog.len() == before {
                // The kernel takes none now; what has completed may change that.
                break;
            }
        }
        Ok(())
    }

    /// Moves entries that did not fit to where the kernel finds them.
    fn refill(&mut self) {
        let mut submission = self.ring.submission();
        let room = submission.capacity() - submission.len();
        for entry in self.backlog.drain(..room.min(self.backlog.len())) {
            // SAFETY: as in `push`.
            #[allow(unsafe_code)]
            let pushed = unsafe { submission.push(&entry) };
            debug_assert!(pushed.is_ok(), "there was room");
        }
    }

    fn enter_once(&mut self, timeout_ms: u64) -> io::Result<()> {
        let timeout = Timespec::from(std::time::Duration::from_millis(timeout_ms));
        let args = SubmitArgs::new().timespec(&timeout);
        let want = u32::from(timeout_ms > 0);
        let count = u32::try_from(self.ring.submission().len()).unwrap_or(u32::MAX);
        let flags = ENTER_GETEVENTS | ENTER_EXT_ARG;
        // SAFETY: the argument is what EXT_ARG asks for and lives across the call; the entries are
        // valid, as their callers promised.
        #[allow(unsafe_code)]
        let entered = unsafe { self.ring.submitter().enter(count, want, flags, Some(&args)) };
        match entered {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // Time is up, a signal, or the kernel is short of memory: what has not been
                // submitted is so in the next turn.
                Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ENOMEM) => {
                    Ok(())
                }
                _ => Err(error),
            },
        }
    }

    /// The next completion.
    #[inline]
    pub(crate) fn next(&mut self) -> Option<Done> {
        let entry = self.ring.completion().next()?;
        let (key, flags) = (Key::unpack(entry.user_data()), entry.flags());
        let more = cqueue::more(flags);
        if !more && key.counts() {
            self.outstanding -= 1;
        }
        Some(Done {
            key,
            result: entry.result(),
            more,
            nonempty: cqueue::sock_nonempty(flags),
            buffer: cqueue::buffer_select(flags),
        })
    }

    /// Whether completions wait in the kernel because the ring is full.
    #[cfg(test)]
    pub(crate) fn is_overflown(&mut self) -> bool {
        self.ring.submission().cq_overflow()
    }

    /// Ends all that the kernel has; it completes soon.
    pub(crate) fn cancel_all(&mut self) {
        let entry = opcode::AsyncCancel2::new(CancelBuilder::any().all());
        self.push(entry.build(), Key::Nobody);
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("outstanding", &self.outstanding).finish_non_exhaustive()
    }
}

/// Waits for bytes, or for a bell.
pub(crate) const READABLE: u32 = libc::POLLIN as u32;
/// Waits for room to send, or for a connection being made.
pub(crate) const WRITABLE: u32 = libc::POLLOUT as u32;
/// Both directions have ended.
pub(crate) const HANGUP: u32 = libc::POLLHUP as u32;
/// An error is pending.
pub(crate) const ERROR: u32 = libc::POLLERR as u32;

#[cfg(test)]
mod tests {
    use proxy_core::ids::Id;

    use super::{Key, SERIAL_MASK, probe};
    use crate::poller::LISTENER_ID_MAX;

    #[test]
    fn user_data_carries_the_operation_and_whose_it_is() {
        let id = Id::from_parts((1 << 31) - 1, (1 << 30) - 1);
        for key in [
            Key::Recv(id),
            Key::Send(Id::from_parts(0, 1)),
            Key::Quick(id),
            Key::Watch(id),
            Key::Cancel(id),
            Key::Accept(LISTENER_ID_MAX, SERIAL_MASK),
            Key::Wake,
            Key::Inbox,
            Key::Nobody,
        ] {
            assert_eq!(Key::unpack(key.pack()), key);
        }
    }

    #[test]
    fn a_probe_may_be_repeated() {
        assert_eq!(probe(), probe());
    }
}
