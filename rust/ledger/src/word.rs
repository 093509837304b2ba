//! One shared word. The product uses `AtomicU64`; the tests of the protocol use loom's.
//!
//! All operations are sequentially consistent where the type allows it: permits change hands a few
//! hundred times a second at most, and an order that is easy to think about is worth more there.

use std::sync::atomic::{AtomicU64, Ordering, fence};

/// A 64-bit word that several processes change.
pub trait Word: Send + Sync {
    /// Reads it.
    fn load(&self) -> u64;
    /// Writes it.
    fn store(&self, value: u64);
    /// Replaces `old` by `new`; false if it is not `old` any more.
    fn replace(&self, old: u64, new: u64) -> bool;
    /// Adds, wrapping; gives the value before.
    fn add(&self, value: u64) -> u64;
    /// Sets bits; gives the value before.
    fn set_bits(&self, bits: u64) -> u64;
    /// Clears bits.
    fn clear_bits(&self, bits: u64);
    /// Writes it and gives the value before.
    fn swap(&self, value: u64) -> u64;
    /// Orders all accesses before against all accesses after, over all words.
    fn fence();
}

impl Word for AtomicU64 {
    fn load(&self) -> u64 {
        Self::load(self, Ordering::SeqCst)
    }

    fn store(&self, value: u64) {
        // A reader that must not miss the value is served by `fence`.
        Self::store(self, value, Ordering::Release);
    }

    fn replace(&self, old: u64, new: u64) -> bool {
        self.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    fn add(&self, value: u64) -> u64 {
        self.fetch_add(value, Ordering::SeqCst)
    }

    fn set_bits(&self, bits: u64) -> u64 {
        self.fetch_or(bits, Ordering::SeqCst)
    }

    fn clear_bits(&self, bits: u64) {
        self.fetch_and(!bits, Ordering::SeqCst);
    }

    fn swap(&self, value: u64) -> u64 {
        Self::swap(self, value, Ordering::SeqCst)
    }

    fn fence() {
        fence(Ordering::SeqCst);
    }
}
