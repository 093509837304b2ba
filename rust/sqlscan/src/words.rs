//! The words inside literals and comments, for the statements whose text runs: DO, and local SETs.
//!
//! Not a lexer: any run of name bytes is a word, wherever it stands, so that no trick of quoting
//! inside a body hides one. Next on the path: back to `statement.rs`, which switches it on and off.

/// The longest word looked at; longer ones matter by their beginnings alone.
const WORD_BYTES_MAX: usize = 16;

/// Words (whole) that can change the session from inside a DO.
const CHANGING: [&[u8]; 22] = [
    b"set",
    b"reset",
    b"set_config",
    b"set_limit",
    b"listen",
    b"temp",
    b"temporary",
    b"pg_temp",
    b"prepare",
    b"execute",
    b"load",
    b"discard",
    b"deallocate",
    b"nextval",
    b"setval",
    b"currval",
    b"lastval",
    b"setseed",
    b"hold",
    b"advisory",
    b"uescape",
    b"pg_settings",
];

/// Beginnings of words that can change the session from inside a DO.
const CHANGING_STARTS: [&[u8]; 8] = [
    b"pg_temp_",
    b"pg_advisory_",
    b"pg_try_advisory",
    b"dblink",
    b"pg_replication_",
    b"pg_backup_",
    b"pg_create_",
    b"query_to_xml",
];

/// What the words have shown so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// A word that can change the session.
    pub(crate) changing: bool,
    /// The temporary schema.
    pub(crate) temp: bool,
    /// A backslash or UESCAPE, behind which a word may hide.
    pub(crate) hidden: bool,
}

/// A resumable look at words.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Words {
    word: [u8; WORD_BYTES_MAX],
    /// Bytes of the word so far, at most `WORD_BYTES_MAX`.
    len: u8,
    found: Found,
}

impl Words {
    pub(crate) const fn new() -> Self {
        let found = Found { changing: false, temp: false, hidden: false };
        Self { word: [0; WORD_BYTES_MAX], len: 0, found }
    }

    /// Takes the next bytes of the statement, whatever they are to the lexer.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80 {
                if let Some(place) = self.word.get_mut(usize::from(self.len)) {
                    *place = byte.to_ascii_lowercase();
                    self.len += 1;
                }
            } else {
                self.end_word();
                self.found.hidden |= byte == b'\\';
            }
        }
    }

    /// Ends the statement: gives what was found and starts afresh.
    pub(crate) fn finish(&mut self) -> Found {
        self.end_word();
        std::mem::take(&mut self.found)
    }

    fn end_word(&mut self) {
        let word = self.word.get(..usize::from(self.len)).unwrap_or_default();
        self.len = 0;
        if word.len() < 3 {
            return;
        }
        self.found.temp |= word == b"pg_temp" || word.starts_with(b"pg_temp_");
        self.found.hidden |= word == b"uescape";
        self.found.changing |=
            CHANGING.contains(&word) || CHANGING_STARTS.iter().any(|start| word.starts_with(start));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &[u8]) -> Found {
        let mut words = Words::new();
        words.feed(text);
        words.finish()
    }

    #[test]
    fn words_are_found_in_any_case_and_only_whole() {
        assert!(found(b"begin PERFORM Set_Config('a','b',false)").changing);
        assert!(found(b"x'set").changing);
        assert!(found(b"pg_try_advisory_lock_shared(1)").changing);
        assert!(!found(b"settle reset_all upset loaded unlisten $1").changing);
    }

    #[test]
    fn what_may_hide_a_word_is_found() {
        assert!(found(b"E'\\x73et'").hidden);
        assert!(found(b"U&\"!0073et\" UESCAPE '!'").hidden);
        assert!(found(b"'a,PG_TEMP'").temp);
    }

    #[test]
    fn nothing_is_left_over_for_the_next_statement() {
        let mut words = Words::new();
        words.feed(b"pg_temp set se");
        assert!(words.finish().changing);
        words.feed(b"t");
        assert_eq!(words.finish(), Found::default());
    }
}
