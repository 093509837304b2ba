//! Descriptors that come from Python as numbers.
//!
//! The caller keeps its own and gets copies made, so that neither side can close what the other
//! uses. Next on the path: `handle.rs`.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

/// Duplicates a descriptor that the caller keeps (Python's socket object); the copy is
/// close-on-exec.
///
/// # Errors
/// `raw` is not an open descriptor, the caller's fault, or descriptors ran out.
pub fn duplicate(raw: RawFd) -> io::Result<OwnedFd> {
    if raw < 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: `raw` is not -1, and it is borrowed only for the duplication. A number that is no
    // open descriptor makes that fail with EBADF; one that the caller closes at the same time
    // could name another file, which a duplicate cannot harm.
    #[allow(unsafe_code)]
    let borrowed = unsafe { BorrowedFd::borrow_raw(raw) };
    borrowed.try_clone_to_owned()
}
