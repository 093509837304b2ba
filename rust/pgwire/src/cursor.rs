//! A cursor over one message body: takes values off the front, refuses what is not there.
//!
//! Mirrors PostgreSQL's `pq_getmsg*` family, so that both refuse the same messages. Private to the
//! crate. Next on the path: `frontend.rs` and `backend.rs`, its only users.

use std::ffi::CStr;

use crate::Malformed;

/// What is left of a body.
#[derive(Clone, Copy)]
pub(crate) struct Cursor<'a> {
    rest: &'a [u8],
}

const SHORT: Malformed = Malformed("insufficient data left in message");

impl<'a> Cursor<'a> {
    #[inline]
    pub(crate) const fn new(body: &'a [u8]) -> Self {
        Self { rest: body }
    }

    /// Everything not taken yet.
    #[inline]
    pub(crate) const fn rest(self) -> &'a [u8] {
        self.rest
    }

    /// The next `N` bytes.
    #[inline]
    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(SHORT)?;
        self.rest = rest;
        Ok(*taken)
    }

    #[inline]
    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        self.array().map(u8::from_be_bytes)
    }

    #[inline]
    pub(crate) fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_be_bytes)
    }

    #[inline]
    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    #[inline]
    pub(crate) fn i32(&mut self) -> Result<i32, Malformed> {
        self.array().map(i32::from_be_bytes)
    }

    /// The next `count` bytes, borrowed: a claim of more than there is costs nothing.
    #[inline]
    pub(crate) fn bytes(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(SHORT)?;
        self.rest = rest;
        Ok(taken)
    }

    /// The next NUL-terminated text, without its NUL.
    #[inline]
    pub(crate) fn string(&mut self) -> Result<&'a [u8], Malformed> {
        let text = CStr::from_bytes_until_nul(self.rest)
            .map_err(|_| Malformed("invalid string in message"))?
            .to_bytes();
        self.rest = self.rest.get(text.len() + 1..).unwrap_or_default();
        Ok(text)
    }

    /// A value of 32 bits with a length in front; -1 means NULL.
    #[inline]
    pub(crate) fn value(&mut self) -> Result<Option<&'a [u8]>, Malformed> {
        match self.i32()? {
            -1 => Ok(None),
            length => {
                let length =
                    usize::try_from(length).map_err(|_| Malformed("negative value length"))?;
                self.bytes(length).map(Some)
            }
        }
    }

    /// Checks that nothing is left, as `pq_getmsgend` does.
    #[inline]
    pub(crate) fn end(self) -> Result<(), Malformed> {
        if self.rest.is_empty() { Ok(()) } else { Err(Malformed("invalid message format")) }
    }
}
