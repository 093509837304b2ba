//! What waits to be sent: a list of pieces for each socket, all in one vector.
//!
//! A piece is a range of a received block or bytes of our own. Pieces and their vectors are used
//! again, so that a message allocates nothing. The first `flying` pieces of a queue are the
//! kernel's: they neither move nor grow. Next on the path: `sends.rs`.

use std::ops::Range;

use super::buffers::Pool;
use crate::limits::{SPARE_BYTES_MAX, SPARES_MAX};

/// The bytes that wait for one socket, in order.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    /// Number of the first piece, plus one; 0 = none.
    head: u32,
    tail: u32,
    count: u32,
    /// Pieces from the first on that the send in flight has.
    pub(crate) flying: u32,
    /// Bytes of that send.
    pub(crate) flight: usize,
    /// Bytes in all pieces.
    pub(crate) bytes: usize,
}

impl Queue {
    /// How many pieces there are.
    #[inline]
    pub(crate) const fn count(&self) -> u32 {
        self.count
    }
}

#[derive(Debug)]
enum Source {
    /// A range of a block; `kept`: it is counted as kept beyond a turn.
    Block {
        id: u16,
        kept: bool,
    },
    Own(Vec<u8>),
}

#[derive(Debug)]
struct Piece {
    /// As `Queue::head`.
    next: u32,
    range: Range<usize>,
    source: Source,
}

/// All pieces.
#[derive(Debug, Default)]
pub(crate) struct Pieces {
    list: Vec<Piece>,
    /// First of the unused, as `Queue::head`.
    free: u32,
    /// Empty vectors to use again.
    spares: Vec<Vec<u8>>,
}

impl Pieces {
    fn get(&mut self, number: u32) -> Option<&mut Piece> {
        self.list.get_mut((number as usize).checked_sub(1)?)
    }

    fn spare(&mut self) -> Vec<u8> {
        self.spares.pop().unwrap_or_default()
    }

    fn give_up(&mut self, mut bytes: Vec<u8>) {
        if bytes.capacity() <= SPARE_BYTES_MAX && self.spares.len() < SPARES_MAX {
            bytes.clear();
            self.spares.push(bytes);
        }
    }

    fn append(&mut self, queue: &mut Queue, range: Range<usize>, source: Source) {
        let piece = Piece { next: 0, range, source };
        let number = self.free;
        let number = if let Some(slot) = self.get(number) {
            let next = std::mem::replace(slot, piece).next;
            self.free = next;
            number
        } else {
            self.list.push(piece);
            u32::try_from(self.list.len()).unwrap_or(u32::MAX)
        };
        match self.get(queue.tail) {
            Some(tail) => tail.next = number,
            None => queue.head = number,
        }
        queue.tail = number;
        queue.count += 1;
    }

    /// The last piece, if it is not in flight.
    fn growing(&mut self, queue: &Queue) -> Option<&mut Piece> {
        if queue.count > queue.flying { self.get(queue.tail) } else { None }
    }

    /// Queues a range of a block.
    #[inline]
    pub(crate) fn push_block(
        &mut self,
        queue: &mut Queue,
        id: u16,
        range: Range<usize>,
        pool: &mut Pool,
    ) {
        queue.bytes += range.len();
        if let Some(Piece { range: last, source: Source::Block { id: same, .. }, .. }) =
            self.growing(queue)
        {
            if *same == id && last.end == range.start {
                last.end = range.end;
                return;
            }
        }
        pool.hold(id);
        self.append(queue, range, Source::Block { id, kept: false });
    }

    /// Queues a copy of these bytes.
    #[inline]
    pub(crate) fn push_own(&mut self, queue: &mut Queue, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        queue.bytes += bytes.len();
        if let Some(Piece { range, source: Source::Own(own), .. }) = self.growing(queue) {
            own.extend_from_slice(bytes);
            range.end = own.len();
            return;
        }
        let mut own = self.spare();
        own.extend_from_slice(bytes);
        self.append(queue, 0..bytes.len(), Source::Own(own));
    }

    /// The bytes of the first pieces, as the kernel shall send them.
    pub(crate) fn slices<'a>(
        &'a self,
        queue: &Queue,
        pool: &'a Pool,
    ) -> impl Iterator<Item = &'a [u8]> {
        let mut number = queue.head;
        std::iter::from_fn(move || {
            let piece = self.list.get((number as usize).checked_sub(1)?)?;
            number = piece.next;
            Some(match &piece.source {
                Source::Block { id, .. } => pool.bytes(*id, piece.range.start, piece.range.end),
                Source::Own(own) => own.get(piece.range.clone()).unwrap_or_default(),
            })
        })
    }

    /// Makes one piece of all, none of which is in flight.
    pub(crate) fn gather(&mut self, queue: &mut Queue, pool: &mut Pool) {
        let mut own = self.spare();
        for slice in self.slices(queue, pool) {
            own.extend_from_slice(slice);
        }
        self.clear(queue, pool);
        queue.bytes = own.len();
        self.append(queue, 0..own.len(), Source::Own(own));
    }

    /// No piece stays in a block unless it may be kept there: the others are copied. Returns how
    /// many bytes were copied.
    pub(crate) fn settle(&mut self, queue: &Queue, pool: &mut Pool) -> usize {
        let (mut number, mut left) = (queue.head, queue.flying);
        let mut copied = 0;
        let mut spare = Vec::new();
        while let Some(piece) = self.get(number) {
            number = piece.next;
            let flies = left > 0;
            left = left.saturating_sub(1);
            let Source::Block { id, kept } = &mut piece.source else { continue };
            if *kept || flies {
                continue;
            }
            let id = *id;
            if pool.keep(id) {
                *kept = true;
                continue;
            }
            let bytes = pool.bytes(id, piece.range.start, piece.range.end);
            let mut own = std::mem::take(&mut spare);
            own.reserve_exact(bytes.len());
            own.extend_from_slice(bytes);
            copied += own.len();
            piece.range = 0..own.len();
            piece.source = Source::Own(own);
            pool.release(id);
            spare = self.spare();
        }
        self.give_up(spare);
        copied
    }

    /// So many bytes have been sent; nothing is in flight any more.
    #[inline]
    pub(crate) fn advance(&mut self, queue: &mut Queue, sent: usize, pool: &mut Pool) {
        queue.flying = 0;
        let mut sent = sent.min(queue.bytes);
        queue.bytes -= sent;
        while sent > 0 {
            let head = queue.head;
            let Some(piece) = self.get(head) else { return };
            let step = sent.min(piece.range.len());
            sent -= step;
            piece.range.start += step;
            if piece.range.is_empty() {
                self.pop(queue, pool);
            }
        }
    }

    /// Drops all pieces, none of which may be in flight.
    pub(crate) fn clear(&mut self, queue: &mut Queue, pool: &mut Pool) {
        queue.bytes = 0;
        while queue.head != 0 {
            self.pop(queue, pool);
        }
    }

    fn pop(&mut self, queue: &mut Queue, pool: &mut Pool) {
        let (number, free) = (queue.head, self.free);
        let Some(piece) = self.get(number) else { return };
        queue.head = std::mem::replace(&mut piece.next, free);
        if queue.head == 0 {
            queue.tail = 0;
        }
        queue.count -= 1;
        let source = std::mem::replace(&mut piece.source, Source::Own(Vec::new()));
        self.free = number;
        match source {
            Source::Block { id, kept } => {
                if kept {
                    pool.unkeep();
                }
                pool.release(id);
            }
            Source::Own(own) => self.give_up(own),
        }
    }
}
