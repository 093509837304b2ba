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
//! counted apart and limited; the rest is copied.
//!
//! There are two groups: many small blocks, and a few large ones for those that send much. Large
//! ones are never kept, and give their memory back when nobody has needed them for a while. Next on
//! the path: `reads.rs`.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;
use proxy_core::sink::ChunkId;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use super::ring::Ring;
use crate::driver::Received;
use crate::limits::{BUFFER_BYTES, BUFFERS, BUFFERS_KEPT_MAX, LARGE_BUFFER_BYTES, LARGE_BUFFERS};

/// Which blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Size {
    Small,
    Large,
}

impl Size {
    /// The kernel's name for them.
    pub(crate) const fn group(self) -> u16 {
        match self {
            Self::Small => 1,
            Self::Large => 2,
        }
    }

    const fn count(self) -> u16 {
        match self {
            Self::Small => BUFFERS,
            Self::Large => LARGE_BUFFERS,
        }
    }

    const fn bytes(self) -> usize {
        match self {
            Self::Small => BUFFER_BYTES,
            Self::Large => LARGE_BUFFER_BYTES,
        }
    }
}

/// With the allocator's own 16 bytes one line of the processor's cache more than a power of two, so
/// that the heads of the blocks do not all share one place in it. Not aligned any further: that
/// would have all of it written to at once, and memory that no traffic needs would be used.
#[repr(align(16))]
struct BlockMemory {
    _bytes: [u8; BUFFER_BYTES + 48],
}

/// Zeroed memory that may be shared with the kernel.
#[derive(Debug)]
enum Memory {
    /// From the allocator.
    Small(NonNull<u8>),
    /// Of so many bytes, from the kernel: on pages of its own.
    Mapped(NonNull<u8>, usize),
}

impl Memory {
    fn small() -> Self {
        let layout = Layout::new::<BlockMemory>();
        // SAFETY: the layout's size is not zero.
        #[allow(unsafe_code)]
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Self::Small(start)
    }

    fn mapped(bytes: usize) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory in use.
        #[allow(unsafe_code)]
        let start = unsafe {
            let access = ProtFlags::READ | ProtFlags::WRITE;
            mmap_anonymous(ptr::null_mut(), bytes, access, MapFlags::PRIVATE)?
        };
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self::Mapped(start, bytes))
    }

    const fn start(&self) -> NonNull<u8> {
        match self {
            Self::Small(start) | Self::Mapped(start, _) => *start,
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        match self {
            // SAFETY: it was allocated so, and nobody has it any more.
            #[allow(unsafe_code)]
            Self::Small(start) => unsafe {
                dealloc(start.as_ptr(), Layout::new::<BlockMemory>());
            },
            // SAFETY: it was mapped so, and nobody has it any more.
            #[allow(unsafe_code)]
            Self::Mapped(start, bytes) => unsafe {
                let _ = munmap(start.as_ptr().cast(), *bytes);
            },
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
    size: Size,
    len: usize,
}

impl Block {
    fn bytes(&self) -> &[u8] {
        let len = self.len.min(self.size.bytes());
        // SAFETY: the block is at least this long, it was zeroed when made, and the kernel does not
        // write to it while we have it.
        #[allow(unsafe_code)]
        unsafe {
            std::slice::from_raw_parts(self.memory.start().as_ptr(), len)
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
    size: Size,
    /// Queued ranges of it.
    uses: u32,
    /// The kernel may write to it.
    offered: bool,
}

// SAFETY: `start` is that of memory which the slot or the loop owns, both in one thread.
#[allow(unsafe_code)]
unsafe impl Send for Slot {}

/// What the kernel takes blocks of one size from.
#[derive(Debug)]
struct Group {
    /// The entries that the kernel reads, on pages of their own as it wants them.
    entries: Memory,
    tail: u16,
    /// How many blocks the kernel has.
    offered: usize,
}

/// All blocks.
#[derive(Debug)]
pub(crate) struct Pool {
    small: Group,
    large: Group,
    /// First the small ones, then the large ones.
    slots: Vec<Slot>,
    /// How many ranges keep a block beyond a turn.
    kept: usize,
    /// A large block has been filled since [`Pool::shrink`].
    large_used: bool,
}

impl Group {
    fn new(ring: &mut Ring, size: Size) -> io::Result<Self> {
        let count = size.count();
        let entries = Memory::mapped(usize::from(count) * size_of::<BufRingEntry>())?;
        // SAFETY: it is the address of so many entries, page-aligned, and the pool keeps them as
        // long as the ring.
        #[allow(unsafe_code)]
        unsafe {
            ring.register_buffers(entries.start().as_ptr() as u64, count, size.group())?;
        }
        Ok(Self { entries, tail: 0, offered: 0 })
    }
}

impl Pool {
    /// Makes the blocks and offers them all. The pool must be dropped after the ring.
    ///
    /// # Errors
    /// As [`Ring::register_buffers`], or the process is out of memory.
    pub(crate) fn new(ring: &mut Ring) -> io::Result<Self> {
        let (small, large) = (Group::new(ring, Size::Small)?, Group::new(ring, Size::Large)?);
        let mut slots = Vec::new();
        for size in [Size::Small, Size::Large] {
            for _ in 0..size.count() {
                let memory = match size {
                    Size::Small => Memory::small(),
                    Size::Large => Memory::mapped(size.bytes())?,
                };
                let start = memory.start();
                let block = Some(Block { memory, size, len: 0 });
                slots.push(Slot { block, start, size, uses: 0, offered: false });
            }
        }
        let mut pool = Self { small, large, slots, kept: 0, large_used: false };
        for id in 0..BUFFERS + LARGE_BUFFERS {
            pool.offer(id);
        }
        Ok(pool)
    }

    /// How many blocks of a size the kernel can fill.
    #[inline]
    pub(crate) const fn offered(&self, size: Size) -> usize {
        match size {
            Size::Small => self.small.offered,
            Size::Large => self.large.offered,
        }
    }

    /// Which size a block has.
    #[inline]
    pub(crate) fn size(&self, id: u16) -> Size {
        if id < BUFFERS { Size::Small } else { Size::Large }
    }

    #[inline]
    const fn group(&mut self, size: Size) -> &mut Group {
        match size {
            Size::Small => &mut self.small,
            Size::Large => &mut self.large,
        }
    }

    /// Gives a block that nobody uses to the kernel.
    #[inline]
    fn offer(&mut self, id: u16) {
        let Some(slot) = self.slots.get_mut(usize::from(id)) else { return };
        if slot.uses > 0 || slot.offered || slot.block.is_none() {
            return;
        }
        slot.offered = true;
        let (start, size) = (slot.start, slot.size);
        let group = self.group(size);
        group.offered += 1;
        let first = group.entries.start().as_ptr().cast::<BufRingEntry>();
        let at = usize::from(group.tail & (size.count() - 1));
        group.tail = group.tail.wrapping_add(1);
        // SAFETY: `at` is below the number of entries in this memory. The kernel reads an entry
        // only once the tail is beyond it, and there are no more blocks than entries. The tail lies
        // where `tail` says, aligned, and is written by us alone.
        #[allow(unsafe_code)]
        unsafe {
            let entry = &mut *first.add(at);
            entry.set_addr(start.as_ptr() as u64);
            entry.set_len(size.bytes() as u32);
            entry.set_bid(id);
            let tail = BufRingEntry::tail(first).cast_mut();
            AtomicU16::from_ptr(tail).store(group.tail, Ordering::Release);
        }
    }

    /// Gives the memory of large blocks back to the system, if none has been filled since the last
    /// time. All that the kernel has filled must have been told ([`Pool::filled`]): what it filled
    /// meanwhile would be lost.
    pub(crate) fn shrink(&mut self) {
        let used = std::mem::take(&mut self.large_used);
        if used || self.large.offered < usize::from(LARGE_BUFFERS) {
            return;
        }
        for slot in self.slots.iter().filter(|slot| slot.size == Size::Large) {
            // SAFETY: nothing of it is of interest while it is offered and, as the caller sees to,
            // not filled; the kernel fills it only while this thread is in a system call of the
            // ring, and it is on pages of its own.
            #[allow(unsafe_code)]
            unsafe {
                let start = slot.start.as_ptr().cast();
                let _ = madvise(start, slot.size.bytes(), Advice::LinuxDontNeed);
            }
        }
    }

    /// The kernel has filled a block with so many bytes: it is in hand.
    #[inline]
    pub(crate) fn filled(&mut self, id: u16, len: usize) {
        let Some(slot) = self.slots.get_mut(usize::from(id)) else { return };
        debug_assert!(slot.offered && slot.uses == 0, "the kernel had no such block");
        slot.offered = false;
        if let Some(block) = &mut slot.block {
            block.len = len;
        }
        let size = slot.size;
        self.large_used |= size == Size::Large;
        self.group(size).offered -= 1;
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
        let (end, start) = (end.min(slot.size.bytes()), start.min(end));
        // SAFETY: the block is at least this long. It is not the kernel's to write to, and the loop
        // has it for reading only.
        #[allow(unsafe_code)]
        unsafe {
            std::slice::from_raw_parts(slot.start.as_ptr().add(start), end.saturating_sub(start))
        }
    }

    /// Whether a range may stay in this block beyond this turn; it is counted then.
    pub(crate) fn keep(&mut self, id: u16) -> bool {
        let may = self.kept < BUFFERS_KEPT_MAX && self.size(id) == Size::Small;
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
        for group in [&mut self.small, &mut self.large] {
            let nothing = Memory::Mapped(NonNull::dangling(), 0);
            std::mem::forget(std::mem::replace(&mut group.entries, nothing));
        }
    }

    /// Every block is the kernel's and nothing is counted: what a test sees when all is at rest.
    #[cfg(test)]
    pub(crate) fn is_whole(&self) -> bool {
        self.small.offered + self.large.offered == self.slots.len()
            && self.kept == 0
            && self.slots.iter().all(|slot| slot.uses == 0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::{BUFFERS, Pool, Size};
    use crate::uring::ring::{ENTRIES, Ring};

    /// The first byte of a block.
    fn first_byte(pool: &Pool, id: u16) -> *mut u8 {
        pool.slots.get(usize::from(id)).unwrap().start.as_ptr()
    }

    #[test]
    fn large_blocks_give_their_memory_back_when_nobody_has_needed_them_for_a_while() {
        let mut ring = Ring::new(ENTRIES).unwrap();
        let mut pool = Pool::new(&mut ring).unwrap();
        let large = BUFFERS;
        let byte = first_byte(&pool, large);
        // SAFETY: the block is this pool's and nobody else looks at it.
        #[allow(unsafe_code)]
        let read = || unsafe { byte.read_volatile() };
        // SAFETY: as above.
        #[allow(unsafe_code)]
        unsafe {
            byte.write_volatile(7);
        }
        pool.filled(large, 1);
        assert_eq!(pool.received(large), [7]);
        pool.shrink();
        pool.shrink();
        assert_eq!(read(), 7, "it is in hand");
        pool.discard(large);
        pool.filled(large + 1, 1);
        pool.discard(large + 1);
        pool.shrink();
        assert_eq!(read(), 7, "one has just been filled");
        pool.shrink();
        assert_eq!(read(), 0, "its page is gone");
        drop(ring);
    }

    #[test]
    fn large_blocks_are_never_kept() {
        let mut ring = Ring::new(ENTRIES).unwrap();
        let mut pool = Pool::new(&mut ring).unwrap();
        assert!(pool.keep(0) && !pool.keep(BUFFERS));
        assert_eq!((pool.size(BUFFERS - 1), pool.size(BUFFERS)), (Size::Small, Size::Large));
        drop(ring);
    }
}
