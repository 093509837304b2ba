//! Lists of slices in the form in which the kernel reads them.
//!
//! It reads them when they are submitted, so an envelope serves again in the next turn. Next on the
//! path: `ring.rs`.

use std::ptr;

use crate::limits::SLICES_PER_SEND;

/// A message header and its list, which stay where they are until the kernel has read them.
#[derive(Debug)]
struct Envelope {
    header: libc::msghdr,
    list: [libc::iovec; SLICES_PER_SEND],
}

// SAFETY: its pointers are used by the kernel only, during one system call of one thread.
#[allow(unsafe_code)]
unsafe impl Send for Envelope {}

/// The envelopes of one turn, to be used again in the next.
#[derive(Debug)]
pub(crate) struct Envelopes {
    #[expect(clippy::vec_box, reason = "they may not move while the list grows")]
    list: Vec<Box<Envelope>>,
    used: usize,
}

impl Envelopes {
    /// None yet.
    pub(crate) const fn new() -> Self {
        Self { list: Vec::new(), used: 0 }
    }

    /// The kernel has read them all.
    pub(crate) const fn clear(&mut self) {
        self.used = 0;
    }

    /// Writes slices (at most `SLICES_PER_SEND`) into an envelope.
    pub(crate) fn fill(&mut self, slices: &[&[u8]]) -> *const libc::msghdr {
        if self.used == self.list.len() {
            // SAFETY: for both structures all zeroes are valid: null pointers and empty lists.
            #[allow(unsafe_code)]
            let envelope = unsafe { std::mem::zeroed() };
            self.list.push(Box::new(envelope));
        }
        let number = self.used;
        self.used += 1;
        let Some(envelope) = self.list.get_mut(number) else { return ptr::null() };
        for (place, slice) in envelope.list.iter_mut().zip(slices) {
            place.iov_base = slice.as_ptr().cast_mut().cast();
            place.iov_len = slice.len();
        }
        envelope.header.msg_iov = envelope.list.as_mut_ptr();
        envelope.header.msg_iovlen = slices.len() as _;
        &raw const envelope.header
    }
}
