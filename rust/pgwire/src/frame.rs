//! The head of a message: its type byte and its length. The hot path of the relay starts here.
//!
//! Not here: start-up packets (no type byte, see `frontend.rs`) and what is inside a message.
//! Next on the path: `frontend.rs` for a client's messages, `backend.rs` for a server's.

use crate::Malformed;

/// Bytes of a message head: one of type, four of length.
pub const HEAD_BYTES: usize = 5;

/// The largest length that the signed 32-bit length word can claim.
const LENGTH_MAX: u32 = i32::MAX as u32;

/// The head of one message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head {
    /// The message's type, one of [`crate::tag`] or anything else that a peer made up.
    pub tag: u8,
    /// Bytes of the body, without type byte and length word: 0 to 2^31 - 5. A claim, not a promise:
    /// never allocate by it.
    pub body: u32,
}

impl Head {
    /// Reads the head at the start of `bytes`; `None` when fewer than five bytes are there.
    ///
    /// # Errors
    /// The peer's fault: a length word below 4 (it counts itself) or above 2^31 - 1.
    #[inline]
    pub fn read(bytes: &[u8]) -> Result<Option<Self>, Malformed> {
        let Some(&[tag, a, b, c, d]) = bytes.first_chunk::<HEAD_BYTES>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes([a, b, c, d]);
        if !(4..=LENGTH_MAX).contains(&length) {
            return Err(Malformed("invalid message length"));
        }
        Ok(Some(Self { tag, body: length - 4 }))
    }

    /// Bytes of the whole message, head included: 5 to 2^31.
    #[inline]
    #[must_use]
    pub fn total(self) -> usize {
        self.body as usize + HEAD_BYTES
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::Head;
    use crate::Malformed;

    fn head(length: u32) -> Result<Option<Head>, Malformed> {
        let [a, b, c, d] = length.to_be_bytes();
        Head::read(&[b'Q', a, b, c, d])
    }

    #[test]
    fn a_head_is_none_until_its_fifth_byte() {
        let bytes = [b'Q', 0, 0, 0, 4, b'x'];
        for n in 0..5 {
            assert_eq!(Head::read(&bytes[..n]), Ok(None));
        }
        assert_eq!(Head::read(&bytes), Ok(Some(Head { tag: b'Q', body: 0 })));
    }

    #[test]
    fn lengths_that_cannot_be_are_refused() {
        for length in [0, 1, 3, 1 << 31, (1 << 31) + 4, u32::MAX] {
            assert!(head(length).is_err(), "{length}");
        }
        for length in [4, 7, 8, 10_000, 10_001, i32::MAX as u32] {
            let read = head(length).unwrap().unwrap();
            assert_eq!(read.body, length - 4);
            assert_eq!(read.total(), length as usize + 1);
        }
    }
}
