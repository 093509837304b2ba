//! Signals stay with Python's main thread: the engine thread is born with all of them blocked.
//!
//! A thread inherits the mask of the one that starts it, so the mask is changed around the start
//! and there is no moment at which a signal could hit the new thread. Next on the path:
//! `handle.rs`.

use std::io;
use std::mem::MaybeUninit;
use std::ptr;

/// All signals are blocked in this thread until it drops.
pub(crate) struct Blocked {
    before: libc::sigset_t,
}

impl Blocked {
    /// Blocks all signals in the calling thread.
    ///
    /// # Errors
    /// None in practice.
    #[allow(unsafe_code)]
    pub(crate) fn all() -> io::Result<Self> {
        let mut all = MaybeUninit::uninit();
        let mut before = MaybeUninit::uninit();
        // SAFETY: both pointers are to memory of the right type; sigfillset fills the first before
        // it is read, and pthread_sigmask fills the second whenever it returns 0.
        unsafe {
            libc::sigfillset(all.as_mut_ptr());
            match libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) {
                0 => Ok(Self { before: before.assume_init() }),
                code => Err(io::Error::from_raw_os_error(code)),
            }
        }
    }
}

impl Drop for Blocked {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: the mask was filled by pthread_sigmask, and the old one is not asked for.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, ptr::null_mut());
        }
    }
}
