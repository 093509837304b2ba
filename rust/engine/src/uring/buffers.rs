//! The received bytes: blocks of memory that the kernel picks from and the loop lends.
//!
//! ```text
//!                 a receive completes            the loop takes it
//!   offered ─────────────────────────▶ in hand ──────────────────▶ lent
//!      ▲                                  │  ▲                       │
//!      └──────────────────────────────────┘  └───────────────────────┘
//!        no range of it is queued or in flight    `submit` gives it back
//! ```
//!
//! INVARIANT: a block is in one of these places only. In hand, `uses` counts the queued ranges, and
//! the block is offered again when the last is gone. What is kept beyond a turn for a slow peer is
//! counted apart and limited; the rest is copied. Next on the path: `reads.rs`.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;
use proxy_core::sink::ChunkId;

use super::ring::Ring;
use crate::driver::Received;
use crate::limits::{BUFFER_BYTES, BUFFERS, BUFFERS_KEPT_MAX};

/// The kernel's name for the blocks.
pub(crate) const GROUP: u16 = 1;

/// With the allocator's own 16 bytes one line of the processor's cache more than a power of two, so
/// that the heads of the blocks do not all share one place in it. Not aligned any further: that
/// would have all of it written to at once, and memory that no traffic needs would be used.
#[repr(align(16))]
struct BlockMemory {
    _bytes: [u8; BUFFER_BYTES + 48],
}

/// The entries that the kernel reads; it wants them page-aligned.
#[repr(align(4096))]
struct EntryMemory {
    _bytes: [u8; BUFFERS as usize * size_of::<BufRingEntry>()],
}

/// Memory of a fixed layout that may be shared with the kernel.
#[derive(Debug)]
struct Memory {
    start: NonNull<u8>,
    layout: Layout,
}

impl Memory {
    fn new(layout: Layout) -> Self {
        // SAFETY: neither layout has a size of zero.
        #[allow(unsafe_code)]
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Self { start, layout }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.layout.size() > 0 {
            // SAFETY: it was allocated so, and nobody has it any more.
            #[allow(unsafe_code)]
            unsafe {
                dealloc(self.start.as_ptr(), self.layout);
            }
        }
    }
}

// SAFETY: it owns plain bytes.
#[allow(unsafe_code)]
unsafe impl Send for Memory {}

/// Received bytes on loan.
#[derive(Debug)]
pub(crate) enum Chunk {
    /// In a block of the pool.
    Block {
        /// Its number.
        id: u16,
        /// The block itself.
        block: Block,
    },
    /// In memory of its own: they were held while reading was paused.
    Copy(Vec<u8>),
}

/// A block that is not the kernel's, with the number of bytes received into it.
#[derive(Debug)]
pub(crate) struct Block {
    memory: Memory,
    len: usize,
}

impl Block {
    fn bytes(&self) -> &[u8] {
        let len = self.len.min(BUFFER_BYTES);
        // SAFETY: the block is at least this long, it was zeroed when made, and the kernel does not
        // write to it while we have it.
        #[allow(unsafe_code)]
        unsafe {
            std::slice::from_raw_parts(self.memory.start.as_ptr(), len)
        }
    }
}

impl Received for Chunk {
    fn id(&self) -> ChunkId {
        match self {
            Self::Block { id, .. } => ChunkId(u32::from(*id)),
            Self::Copy(_) => ChunkId(u32::MAX),
        }
    }

    #[inline]
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Block { block, .. } => block.bytes(),
            Self::Copy(bytes) => bytes,
        }
    }
}

#[derive(Debug)]
struct Slot {
    /// `None` while the loop has it.
    block: Option<Block>,
    /// Where the block's memory is, wherever the block is.
    start: NonNull<u8>,
    /// Queued ranges of it.
    uses: u32,
    /// The kernel may write to it.
    offered: bool,
}

// SAFETY: `start` is that of memory which the slot or the loop owns, both in one thread.
#[allow(unsafe_code)]
unsafe impl Send for Slot {}

/// All blocks.
#[derive(Debug)]
pub(crate) struct Pool {
    entries: Memory,
    tail: u16,
    slots: Vec<Slot>,
    /// How many the kernel has.
    offered: usize,
    /// How many ranges keep a block beyond a turn.
    kept: usize,
}

impl Pool {
    /// Makes the blocks and offers them all. The pool must be dropped after the ring.
    ///
    /// # Errors
    /// As [`Ring::register_buffers`].
    pub(crate) fn new(ring: &mut Ring) -> io::Result<Self> {
        let entries = Memory::new(Layout::new::<EntryMemory>());
        // SAFETY: it is the address of so many entries, page-aligned, and the caller keeps them as
        // long as the ring.
        #[allow(unsafe_code)]
        unsafe {
            ring.register_buffers(entries.start.as_ptr() as u64, BUFFERS)?;
        }
        let slots = (0..BUFFERS).map(|_| {
            let memory = Memory::new(Layout::new::<BlockMemory>());
            let start = memory.start;
            Slot { block: Some(Block { memory, len: 0 }), start, uses: 0, offered: false }
        });
        let mut pool = Self { entries, tail: 0, slots: slots.collect(), offered: 0, kept: 0 };
        for id in 0..BUFFERS {
            pool.offer(id);
        }
        Ok(pool)
    }

    /// How many blocks the kernel can fill.
    #[inline]
    pub(crate) const fn offered(&self) -> usize {
        self.offered
    }

    /// Gives a block that nobody uses to the kernel.
    #[inline]
    fn offer(&mut self, id: u16) {
        let Some(slot) = self.slots.get_mut(usize::from(id)) else { return };
        if slot.uses > 0 || slot.offered || slot.block.is_none() {
            return;
        }
        slot.offered = true;
        self.offered += 1;
        let first = self.entries.start.as_ptr().cast::<BufRingEntry>();
        let at = usize::from(self.tail & (BUFFERS - 1));
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: `at` is below BUFFERS, the number of entries in this memory. The kernel reads an
        // entry only once the tail is beyond it, and there are no more blocks than entries. The
        // tail lies where `tail` says, aligned, and is written by us alone.
        #[allow(unsafe_code)]
        unsafe {
            let entry = &mut *first.add(at);
            entry.set_addr(slot.start.as_ptr() as u64);
            entry.set_len(BUFFER_BYTES as u32);
            entry.set_bid(id);
            let tail = BufRingEntry::tail(first).cast_mut();
            AtomicU16::from_ptr(tail).store(self.tail, Ordering::Release);
        }
    }

    /// The kernel has filled a block with so many bytes: it is in hand.
    #[inline]
    pub(crate) fn filled(&mut self, id: u16, len: usize) {
        let Some(slot) = self.slots.get_mut(usize::from(id)) else { return };
        debug_assert!(slot.offered && slot.uses == 0, "the kernel had no such block");
        slot.offered = false;
        self.offered -= 1;
        if let Some(block) = &mut slot.block {
            block.len = len;
        }
    }

    /// A block in hand is of no interest.
    #[inline]
    pub(crate) fn discard(&mut self, id: u16) {
        self.offer(id);
    }

    /// The bytes in a block that is in hand.
    pub(crate) fn received(&self, id: u16) -> &[u8] {
        let block = self.slots.get(usize::from(id)).and_then(|slot| slot.block.as_ref());
        block.map_or(&[][..], |block| block.bytes())
    }

    /// Lends a block that is in hand.
    #[inline]
    pub(crate) fn lend(&mut self, id: u16) -> Option<Chunk> {
        let block = self.slots.get_mut(usize::from(id))?.block.take()?;
        Some(Chunk::Block { id, block })
    }

    /// Takes a chunk back.
    #[inline]
    pub(crate) fn take_back(&mut self, chunk: Chunk) {
        let Chunk::Block { id, block } = chunk else { return };
        if let Some(slot) = self.slots.get_mut(usize::from(id)) {
            slot.block = Some(block);
            self.offer(id);
        }
    }

    /// A range of a block that is lent or in hand has been queued.
    #[inline]
    pub(crate) fn hold(&mut self, id: u16) {
        if let Some(slot) = self.slots.get_mut(usize::from(id)) {
            slot.uses += 1;
        }
    }

    /// A range has been sent, copied or dropped.
    #[inline]
    pub(crate) fn release(&mut self, id: u16) {
        if let Some(slot) = self.slots.get_mut(usize::from(id)) {
            slot.uses -= 1;
            self.offer(id);
        }
    }

    /// Bytes of a block that a queued range holds, or that is in hand.
    #[inline]
    pub(crate) fn bytes(&self, id: u16, start: usize, end: usize) -> &[u8] {
        let Some(slot) = self.slots.get(usize::from(id)) else { return &[] };
        debug_assert!(!slot.offered, "the kernel has this block");
        let (end, start) = (end.min(BUFFER_BYTES), start.min(end));
        // SAFETY: the block is at least this long. It is not the kernel's to write to, and the loop
        // has it for reading only.
        #[allow(unsafe_code)]
        unsafe {
            std::slice::from_raw_parts(slot.start.as_ptr().add(start), end.saturating_sub(start))
        }
    }

    /// Whether a range may stay in its block beyond this turn; it is counted then.
    pub(crate) fn keep(&mut self) -> bool {
        let may = self.kept < BUFFERS_KEPT_MAX;
        self.kept += usize::from(may);
        may
    }

    /// A range that was kept is gone.
    pub(crate) fn unkeep(&mut self) {
        self.kept -= 1;
    }

    /// The kernel may still write to the blocks: they stay for ever.
    pub(crate) fn leak(&mut self) {
        std::mem::forget(std::mem::take(&mut self.slots));
        let nothing = Memory { start: NonNull::dangling(), layout: Layout::new::<()>() };
        std::mem::forget(std::mem::replace(&mut self.entries, nothing));
    }

    /// Every block is the kernel's and nothing is counted: what a test sees when all is at rest.
    #[cfg(test)]
    pub(crate) fn is_whole(&self) -> bool {
        self.offered == self.slots.len()
            && self.kept == 0
            && self.slots.iter().all(|slot| slot.uses == 0)
    }
}
