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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use std::fs::File;
    use std::io::{Read, Seek};
    use std::os::fd::AsRawFd;
    use std::thread;

    use super::set_panic_file;
    use crate::testbed::memory;

    /// Panics in a thread of its own and returns what the file holds then.
    fn words_after(file: &mut File, message: &'static str) -> String {
        thread::spawn(move || panic!("{message}")).join().unwrap_err();
        file.rewind().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn the_message_of_a_panic_is_written_to_the_last_file_named() {
        let (mut first, mut second) = (File::from(memory("")), File::from(memory("")));
        set_panic_file(first.as_raw_fd()).unwrap();
        assert!(words_after(&mut first, "first words").contains("first words"));
        set_panic_file(second.as_raw_fd()).unwrap();
        assert!(words_after(&mut second, "last words").contains("last words"));
        assert!(!words_after(&mut first, "others").contains("last words"));
        assert!(set_panic_file(-1).is_err());
    }
}
