//! What one call of the core wants to send, gathered a connection, so that each gets one system
//! call.
//!
//! A piece is a range of the received chunk or of the arena that holds the core's own bytes;
//! touching pieces merge. All lists are reused, so that the usual call allocates nothing. This does
//! not send: next on the path is `conn.rs`.

use std::ops::Range;

use proxy_core::ids::Conn;

use crate::limits::REUSE_MAX;

/// The batches of one call.
#[derive(Debug, Default)]
pub(crate) struct Batches {
    lists: Vec<Batch>,
    used: usize,
    arena: Vec<u8>,
}

/// The bytes for one connection.
#[derive(Debug)]
struct Batch {
    conn: Conn,
    pieces: Vec<Piece>,
    bytes: usize,
}

/// A slice of what is to be sent.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Piece {
    Chunk(Range<usize>),
    Own(Range<usize>),
}

impl Batches {
    /// Opens a batch for a connection and returns its number.
    #[inline]
    pub(crate) fn open(&mut self, conn: Conn) -> usize {
        let number = self.used;
        self.used += 1;
        if let Some(batch) = self.lists.get_mut(number) {
            batch.conn = conn;
        } else {
            self.lists.push(Batch { conn, pieces: Vec::new(), bytes: 0 });
        }
        number
    }

    /// Adds a range of the chunk.
    #[inline]
    pub(crate) fn add_chunk(&mut self, number: usize, range: Range<usize>) {
        let Some(batch) = self.lists.get_mut(number) else { return };
        batch.bytes += range.len();
        match batch.pieces.last_mut() {
            Some(Piece::Chunk(last)) if last.end == range.start => last.end = range.end,
            _ => batch.pieces.push(Piece::Chunk(range)),
        }
    }

    /// Adds a copy of these bytes.
    #[inline]
    pub(crate) fn add_own(&mut self, number: usize, bytes: &[u8]) {
        let Some(batch) = self.lists.get_mut(number) else { return };
        let start = self.arena.len();
        self.arena.extend_from_slice(bytes);
        batch.bytes += bytes.len();
        match batch.pieces.last_mut() {
            Some(Piece::Own(last)) if last.end == start => last.end = self.arena.len(),
            _ => batch.pieces.push(Piece::Own(start..self.arena.len())),
        }
    }

    /// How many batches were opened in this call.
    #[inline]
    pub(crate) const fn count(&self) -> usize {
        self.used
    }

    /// Whom a batch is for, and its total bytes (0 once it has been dropped).
    #[inline]
    pub(crate) fn head(&self, number: usize) -> Option<(Conn, usize)> {
        self.lists.get(number).map(|batch| (batch.conn, batch.bytes))
    }

    /// The slices of a batch in order.
    #[inline]
    pub(crate) fn slices<'a>(
        &'a self,
        number: usize,
        chunk: &'a [u8],
    ) -> impl Iterator<Item = &'a [u8]> + Clone {
        let pieces = self.lists.get(number).map_or(&[][..], |batch| batch.pieces.as_slice());
        pieces.iter().map(move |piece| match piece {
            Piece::Chunk(range) => chunk.get(range.clone()).unwrap_or_default(),
            Piece::Own(range) => self.arena.get(range.clone()).unwrap_or_default(),
        })
    }

    /// Empties one batch: it was sent early, or its connection is gone.
    pub(crate) fn drop_one(&mut self, number: usize) {
        if let Some(batch) = self.lists.get_mut(number) {
            batch.pieces.clear();
            batch.bytes = 0;
        }
    }

    /// Ends the call: all lists are empty again, and rare large ones are given back.
    #[inline]
    pub(crate) fn clear(&mut self) {
        for batch in self.lists.iter_mut().take(self.used) {
            batch.pieces.clear();
            batch.bytes = 0;
        }
        self.used = 0;
        self.arena.clear();
        if self.arena.capacity() > REUSE_MAX {
            self.arena = Vec::new();
        }
        if self.lists.len() > REUSE_MAX / size_of::<Batch>() {
            self.lists = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use proxy_core::ids::{ClientId, Conn};

    use super::Batches;

    #[test]
    fn touching_pieces_of_one_source_merge_and_order_is_kept() {
        let mut batches = Batches::default();
        let conn = Conn::Client(ClientId::from_parts(1, 1));
        let other = Conn::Client(ClientId::from_parts(2, 1));
        let (first, second) = (batches.open(conn), batches.open(other));
        batches.add_chunk(first, 0..2);
        batches.add_chunk(first, 2..4);
        batches.add_own(first, b"xy");
        batches.add_own(second, b"-");
        batches.add_own(first, b"z");
        batches.add_chunk(first, 5..6);
        let slices: Vec<&[u8]> = batches.slices(first, b"abcdef").collect();
        assert_eq!(slices, [&b"abcd"[..], b"xy", b"z", b"f"]);
        assert_eq!(batches.head(first), Some((conn, 8)));
        assert_eq!(batches.head(second), Some((other, 1)));
        batches.clear();
        assert_eq!(batches.count(), 0);
        let again = batches.open(other);
        assert_eq!(batches.head(again), Some((other, 0)));
    }
}
