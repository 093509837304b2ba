//! The last words of a process that panics: its supervisor reads them after its death.
//!
//! Not here: what ends the process, which is `handle.rs` for the engine's thread.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::RawFd;
use std::panic;
use std::sync::{Mutex, Once, PoisonError};

use crate::descriptor;

static FILE: Mutex<Option<File>> = Mutex::new(None);
static HOOK: Once = Once::new();

/// From now on the message of a panic, in whatever thread, is also written to this descriptor,
/// which is duplicated. A second call replaces the first's.
///
/// # Errors
/// `raw` is not an open descriptor, the caller's fault, or descriptors ran out.
pub fn set_panic_file(raw: RawFd) -> io::Result<()> {
    let file = File::from(descriptor::duplicate(raw)?);
    *FILE.lock().unwrap_or_else(PoisonError::into_inner) = Some(file);
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            // Not awaited: another thread that panics at the same time is writing its own words.
            if let Ok(mut file) = FILE.try_lock() {
                if let Some(file) = file.as_mut() {
                    // Nobody is left who could be told of a failure.
                    let _ = writeln!(file, "{info}");
                }
            }
            before(info);
        }));
    });
    Ok(())
}
