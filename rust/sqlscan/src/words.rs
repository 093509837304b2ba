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

/// Values of `client_encoding` (or pieces of them) whose text the lexer reads as the server does.
const PLAIN_ENCODINGS: [&[u8]; 14] = [
    b"utf8",
    b"utf",
    b"8",
    b"unicode",
    b"sql_ascii",
    b"latin1",
    b"latin9",
    b"iso",
    b"8859",
    b"1",
    b"15",
    b"win1252",
    b"windows",
    b"1252",
];

/// A setting that decides how text is cut into tokens, and whether its new value is plainly safe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Recoding {
    #[default]
    No,
    /// `standard_conforming_strings` was named; this many values of "on" have followed.
    Strings(u8),
    /// `client_encoding` was named, or NAMES.
    Encoding,
}

/// What the words have shown so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// A word that can change the session.
    pub(crate) changing: bool,
    /// The temporary schema.
    pub(crate) temp: bool,
    /// A backslash or UESCAPE, behind which a word may hide.
    pub(crate) hidden: bool,
    /// From here on the server may cut text into other tokens than the lexer does.
    pub(crate) recodes: bool,
}

/// A resumable look at words.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Words {
    word: [u8; WORD_BYTES_MAX],
    /// Bytes of the word so far, at most `WORD_BYTES_MAX`.
    len: u8,
    recoding: Recoding,
    found: Found,
}

impl Words {
    pub(crate) const fn new() -> Self {
        let found = Found { changing: false, temp: false, hidden: false, recodes: false };
        Self { word: [0; WORD_BYTES_MAX], len: 0, recoding: Recoding::No, found }
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
        // One value and a safe one, or who knows.
        let strings = std::mem::take(&mut self.recoding);
        self.found.recodes |= matches!(strings, Recoding::Strings(values) if values != 1);
        std::mem::take(&mut self.found)
    }

    fn end_word(&mut self) {
        let word = self.word.get(..usize::from(self.len)).unwrap_or_default();
        self.len = 0;
        let is_name = word == &b"standard_conforming_strings"[..WORD_BYTES_MAX];
        let (recoding, unsafe_value) = recode(self.recoding, word, is_name);
        self.recoding = recoding;
        self.found.recodes |= unsafe_value;
        if word.len() < 3 {
            return;
        }
        self.found.temp |= word == b"pg_temp" || word.starts_with(b"pg_temp_");
        self.found.hidden |= word == b"uescape";
        self.found.changing |=
            CHANGING.contains(&word) || CHANGING_STARTS.iter().any(|start| word.starts_with(start));
    }
}

/// What a word does to the look-out for settings that change how text is read.
fn recode(state: Recoding, word: &[u8], is_strings: bool) -> (Recoding, bool) {
    match (state, word) {
        (_, b"" | b"to") => (state, false),
        _ if is_strings => (Recoding::Strings(0), false),
        (_, b"client_encoding" | b"names") => (Recoding::Encoding, false),
        (Recoding::No, _) => (state, false),
        (Recoding::Strings(values), b"on" | b"default") => {
            (Recoding::Strings(values.saturating_add(1)), false)
        }
        (Recoding::Encoding, b"default" | b"true" | b"false") => (state, false),
        (Recoding::Encoding, value) => (state, !PLAIN_ENCODINGS.contains(&value)),
        (Recoding::Strings(_), _) => (state, true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_change_how_text_is_read_are_safe_only_with_a_plain_value() {
        for safe in [
            "standard_conforming_strings = on",
            "standard_conforming_strings TO 'on'",
            "client_encoding TO 'UTF8'",
            "client_encoding = 'utf-8'",
            "names 'latin1'",
            "TimeZone = 'UTC'",
        ] {
            assert!(!found(safe.as_bytes()).recodes, "{safe}");
        }
        for doubtful in [
            "standard_conforming_strings = off",
            "standard_conforming_strings = /* on */ off",
            "Standard_Conforming_Strings = $1",
            "standard_conforming_strings",
            "client_encoding = 's-j-i-s'",
            "client_encoding = /* utf8 */ big5",
            "names 'GBK'",
        ] {
            assert!(found(doubtful.as_bytes()).recodes, "{doubtful}");
        }
    }

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
