//! The page: memory that all processes of one service share, with the ledger in it.
//!
//! The supervisor makes it before its first fork and its children inherit the mapping. What the
//! words mean is the crate `ledger`'s affair. Next on the path: that crate's `lib.rs`.

use std::io;
use std::ptr;
use std::slice;
use std::sync::atomic::AtomicU64;

use ledger::{Ledger, WorkerId};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap};
use rustix::rand::{GetRandomFlags, getrandom};

/// A formatted page; copies name the same memory.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    words: &'static [AtomicU64],
}

impl Page {
    /// Makes a page for a budget of at most `slots` server connections and formats it. The memory
    /// stays mapped for the life of the process: a service makes one.
    ///
    /// # Errors
    /// `slots` is larger than any page can be, the caller's fault, or the host is out of memory or
    /// descriptors.
    pub fn create(slots: u32) -> io::Result<Self> {
        let words = map(ledger::words_for(slots))?;
        let mut secret = [0_u8; 32];
        getrandom(&mut secret, GetRandomFlags::empty())?;
        ledger::format(words, slots, secret);
        Ok(Self { words })
    }

    /// A handle on the page for this worker, or for `ledger::SUPERVISOR`; `None` for a number that
    /// no worker has.
    #[must_use]
    pub fn ledger(&self, worker: WorkerId) -> Option<Ledger> {
        Ledger::new(self.words, worker)
    }
}

/// Maps this many zeroed words, shared with every process forked from now on.
fn map(count: usize) -> io::Result<&'static [AtomicU64]> {
    let bytes = count.checked_mul(size_of::<AtomicU64>()).filter(|bytes| *bytes > 0);
    let bytes = bytes.ok_or(io::ErrorKind::InvalidInput)?;
    let memory = memfd_create("pyproxy-page", MemfdFlags::CLOEXEC)?;
    ftruncate(&memory, bytes as u64)?;
    // SAFETY: a new mapping at an address of the kernel's choice touches no memory in use. The
    // descriptor is closed when this returns, so nobody can shrink the file below the mapping.
    #[allow(unsafe_code)]
    let start = unsafe {
        mmap(
            ptr::null_mut(),
            bytes,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED,
            &memory,
            0,
        )?
    };
    // SAFETY: this changes what a core dump holds, not what the memory does. There are cancel keys
    // in it; a kernel that cannot leave them out is no reason not to start.
    #[allow(unsafe_code)]
    let _ = unsafe { madvise(start, bytes, Advice::LinuxDontDump) };
    // SAFETY: `start` is aligned to a page of the host and followed by `bytes` readable and
    // writable bytes, all zero, which are valid `AtomicU64`s. They are never unmapped, so they live
    // for ever, and they are only ever reached through these atomics, here and in other processes.
    #[allow(unsafe_code)]
    let words = unsafe { slice::from_raw_parts(start.cast::<AtomicU64>(), count) };
    Ok(words)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use ledger::SUPERVISOR;

    use super::Page;

    #[test]
    fn all_handles_on_a_page_see_the_same_words_and_pages_differ() {
        let (page, other) = (Page::create(7).unwrap(), Page::create(7).unwrap());
        let (one, all) = (page.ledger(3).unwrap(), page.ledger(SUPERVISOR).unwrap());
        one.clients_add(5, 2);
        assert_eq!((all.clients(5), all.budget_view().capacity), (2, 7));
        assert_eq!(other.ledger(3).unwrap().clients(5), 0);
        assert_ne!(one.secret(), other.ledger(3).unwrap().secret());
        assert!(page.ledger(SUPERVISOR + 1).is_none());
    }
}
