//! The settings as the supervisor publishes them: a file in memory, and the passwords in it.
//!
//! Settings are replaced whole, one epoch after the other. The passwords stay where another thread
//! can find them, since keys are derived off the engine's thread. Next on the path: `delivery.rs`.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use auth::Secret;
use proxy_core::config::Config;

use crate::limits::SETTINGS_BYTES_MAX;

/// Reads settings from their text; an error says what is wrong and never shows a secret.
pub type Parse = fn(&[u8]) -> Result<Config, String>;

/// Why an engine cannot be made.
#[derive(Debug)]
pub enum StartError {
    /// The settings do not fit: the caller's fault.
    Settings(String),
    /// The system refused: descriptors or memory ran out, or a descriptor is of a wrong kind.
    System(io::Error),
}

impl From<io::Error> for StartError {
    fn from(error: io::Error) -> Self {
        Self::System(error)
    }
}

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Settings(why) => f.write_str(why),
            Self::System(error) => error.fmt(f),
        }
    }
}

/// Reads and parses a memory file from its beginning, wherever others have read up to.
///
/// # Errors
/// The file cannot be read or is too large, or its text does not fit.
pub(crate) fn load(memory: OwnedFd, parse: Parse) -> Result<Config, StartError> {
    let file = File::from(memory);
    let len = file.metadata()?.len();
    if len > SETTINGS_BYTES_MAX {
        return Err(StartError::Settings(format!("{len} bytes are too many for settings")));
    }
    let mut text = vec![0; usize::try_from(len).unwrap_or(0)];
    file.read_exact_at(&mut text, 0)?;
    // It holds passwords: wiped when parsed.
    parse(Secret::new(text).expose()).map_err(StartError::Settings)
}

/// The passwords of the settings that are in force. Never touched on the path of a query.
#[derive(Debug, Default)]
pub(crate) struct Passwords(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    epoch: u64,
    by_credential: Vec<Option<Secret>>,
}

impl Passwords {
    /// Keeps those of a new epoch; the old ones are wiped.
    pub(crate) fn keep(&self, epoch: u64, config: &Config) {
        let passwords = config.credentials.iter().map(|each| each.server_password.clone());
        *self.kept() = Kept { epoch, by_credential: passwords.collect() };
    }

    /// The password of a credential; `None` if it has none or the epoch is not in force any more.
    pub(crate) fn find(&self, epoch: u64, credential: u32) -> Option<Secret> {
        let kept = self.kept();
        let known = kept.by_credential.get(usize::try_from(credential).ok()?)?;
        if kept.epoch == epoch { known.clone() } else { None }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::{Passwords, StartError, load};
    use crate::limits::SETTINGS_BYTES_MAX;
    use crate::testbed::{memory, parse};

    #[test]
    fn settings_are_read_from_the_beginning_wherever_others_have_read_to() {
        let memory = memory("settings");
        rustix::fs::seek(&memory, rustix::fs::SeekFrom::Start(5)).unwrap();
        let copy = memory.try_clone().unwrap();
        assert_eq!(load(memory, parse).unwrap().name, "test");
        assert_eq!(load(copy, parse).unwrap().name, "test");
    }

    #[test]
    fn settings_without_end_are_not_read() {
        let memory = memory("");
        rustix::fs::ftruncate(&memory, SETTINGS_BYTES_MAX + 1).unwrap();
        assert!(matches!(load(memory, parse), Err(StartError::Settings(_))));
    }

    #[test]
    fn a_password_is_found_for_its_own_epoch_only() {
        let passwords = Passwords::default();
        passwords.keep(3, &parse(b"settings").unwrap());
        assert_eq!(passwords.find(3, 0).unwrap().expose(), b"pencil");
        assert!(passwords.find(2, 0).is_none() && passwords.find(4, 0).is_none());
        assert!(passwords.find(3, 1).is_none());
    }
}
