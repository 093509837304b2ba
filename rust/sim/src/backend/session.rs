//! A session's state: settings, temporary table, locks, channels, sequences, and whose each of them
//! is.
//!
//! The part that a rolled-back transaction takes back is kept apart. Next on the path: `mod.rs`.

use std::collections::BTreeMap;

use super::sql::read_tag;

/// A value and the client that set it; the core and the login set values of nobody's.
pub(crate) type Owned<T> = (T, Option<u32>);

/// What a rollback takes back.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Transactional {
    /// Settings that differ from what they were at login.
    pub(crate) settings: BTreeMap<String, Owned<String>>,
    /// The temporary table's maker.
    pub(crate) temp: Option<u32>,
    /// Who listens.
    pub(crate) listens: Option<u32>,
    /// Who took back the setting that `init_query` makes, if somebody did.
    pub(crate) init_undone: Option<Option<u32>>,
}

/// A session.
#[derive(Clone, Debug, Default)]
pub(crate) struct Session {
    /// What every setting was at login.
    pub(crate) defaults: BTreeMap<String, String>,
    /// What a rollback takes back.
    pub(crate) kept: Transactional,
    /// SET LOCAL.
    pub(crate) locals: BTreeMap<String, String>,
    /// Who holds advisory locks.
    pub(crate) lock: Option<u32>,
    /// Who advanced the sequence last.
    pub(crate) sequence: Option<u32>,
    /// What was reported to the peer.
    pub(crate) reported: BTreeMap<String, String>,
}

/// Settings whose changes are reported.
pub(crate) const REPORTED: [&str; 3] = ["TimeZone", "application_name", "DateStyle"];
/// The setting that the configured `init_query` makes.
pub(crate) const INIT_SETTING: &str = "lock_timeout";

impl Session {
    /// A session with these values at login.
    #[must_use]
    pub(crate) fn new(at_start: &[(&str, &str)]) -> Self {
        let mut session = Self::default();
        let fixed = [
            ("TimeZone", "UTC"),
            ("application_name", ""),
            ("DateStyle", "ISO"),
            ("work_mem", "4MB"),
            ("lock_timeout", "0"),
        ];
        for (name, value) in fixed.iter().chain(at_start) {
            session.defaults.insert((*name).to_owned(), (*value).to_owned());
        }
        session.reported = session.reportable();
        session
    }

    /// A setting's value now.
    #[must_use]
    pub(crate) fn show(&self, name: &str) -> Option<&str> {
        self.locals
            .get(name)
            .or_else(|| self.kept.settings.get(name).map(|(value, _)| value))
            .or_else(|| self.defaults.get(name))
            .map(String::as_str)
    }

    /// All reported settings as they are now.
    #[must_use]
    pub(crate) fn reportable(&self) -> BTreeMap<String, String> {
        REPORTED
            .iter()
            .map(|name| ((*name).to_owned(), self.show(name).unwrap_or_default().to_owned()))
            .collect()
    }

    /// SET; what equals the value at login is still somebody's.
    pub(crate) fn set(&mut self, name: &str, value: &str, local: bool, tag: Option<u32>) {
        if local {
            self.locals.insert(name.to_owned(), value.to_owned());
            return;
        }
        if name == INIT_SETTING {
            self.kept.init_undone = tag.map(Some);
        }
        self.locals.remove(name);
        self.kept.settings.insert(name.to_owned(), (value.to_owned(), tag));
    }

    /// RESET ALL.
    pub(crate) fn reset_all(&mut self, tag: Option<u32>) {
        if self.kept.settings.contains_key(INIT_SETTING) {
            self.kept.init_undone = Some(tag);
        }
        self.kept.settings.clear();
        self.locals.clear();
    }

    /// DISCARD ALL, but for prepared statements.
    pub(crate) fn discard_all(&mut self, tag: Option<u32>) {
        self.reset_all(tag);
        self.kept.temp = None;
        self.kept.listens = None;
        self.lock = None;
        self.sequence = None;
    }

    /// What of another client's a statement of this client would meet.
    #[must_use]
    pub(crate) fn foreign_to(&self, tag: u32) -> Option<String> {
        let is_foreign = |owner: Option<u32>| owner.is_some_and(|owner| owner != tag);
        for (name, (value, owner)) in &self.kept.settings {
            // What the core has set for a client is that client's, too.
            if is_foreign(owner.or_else(|| read_tag(value.as_bytes()))) {
                return Some(format!("{name} = {value} of client {owner:?}"));
            }
        }
        let states = [
            ("a temporary table", self.kept.temp),
            ("LISTEN", self.kept.listens),
            ("an advisory lock", self.lock),
            ("a sequence value", self.sequence),
        ];
        if let Some((what, owner)) = states.iter().find(|(_, owner)| is_foreign(*owner)) {
            return Some(format!("{what} of client {owner:?}"));
        }
        if self.kept.init_undone.is_some_and(|by| by != Some(tag)) {
            return Some("init_query was undone and not run again".to_owned());
        }
        None
    }
}
