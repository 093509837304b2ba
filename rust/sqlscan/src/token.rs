//! Tokens: the few words, function names and marks that the statement watcher tells apart.
//!
//! Not a keyword table of SQL: a word that changes nothing is [`Token::Name`]. Look-up is by the
//! first eight bytes, packed in one integer. Next on the path: `statement.rs`.

/// Packs up to eight bytes, letters folded to lower case (`_` becomes 0x7f, which is no name byte).
const fn pack(name: &[u8]) -> u64 {
    const FOLD: u64 = 0x2020_2020_2020_2020;
    if let Some(head) = name.first_chunk::<8>() {
        return u64::from_le_bytes(*head) | FOLD;
    }
    let mut head = 0;
    let mut rest = name;
    let mut shift = 0;
    while let [byte, tail @ ..] = rest {
        head |= ((*byte | 0x20) as u64) << shift;
        shift += 8;
        rest = tail;
    }
    head
}

macro_rules! words {
    ($($(#[$doc:meta])* $word:ident = $text:literal,)+) => {
        /// One token, as far as the watcher cares.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        #[repr(u8)]
        pub(crate) enum Token {
            /// Nothing yet.
            Start,
            /// A name without meaning here, quoted or not.
            Name,
            /// A number, parameter, operator: anything else.
            Other,
            /// The opening quote of a literal of any kind.
            Literal,
            /// `(`
            Open,
            /// `)`
            Close,
            /// `,`
            Comma,
            /// `;`
            Semicolon,
            /// `.`
            Dot,
            /// `=`
            Equals,
            /// `*`
            Star,
            /// A `U&"…"` name.
            UnicodeName,
            $($(#[$doc])* $word,)+
            // Names that matter with `(` behind them come last: see `is_call`.
            /// `set_config`
            SetConfig,
            /// `set_limit` of pg_trgm
            SetLimit,
            /// `nextval`, `setval`
            SequenceWrite,
            /// `currval`, `lastval`
            SequenceRead,
            /// `setseed`
            SetSeed,
            /// The session-level advisory locks.
            AdvisoryLock,
            /// `pg_advisory_unlock_all`
            UnlockAll,
            /// Functions whose state DISCARD ALL leaves alone.
            Foreign,
            /// Functions that run SQL given as text.
            RunsText,
        }

        #[allow(non_upper_case_globals)]
        mod head {
            $(pub(super) const $word: u64 = super::pack($text);)+
        }

        const WORDS: &[&[u8]] = &[$($text),+];

        /// The plain words, by their first eight bytes.
        fn word(head: u64, name: &[u8]) -> Token {
            let (token, text): (Token, &[u8]) = match head {
                $(head::$word => (Token::$word, $text),)+
                _ => return call(name),
            };
            // Equal heads of up to eight bytes are equal words: no name byte folds to zero.
            let same = if text.len() <= 8 {
                name.len() == text.len()
            } else {
                name.eq_ignore_ascii_case(text)
            };
            if same { token } else { Token::Name }
        }
    };
}

words! {
    Abort = b"abort", All = b"all", Analyse = b"analyse", Analyze = b"analyze", As = b"as",
    Atomic = b"atomic", Authorization = b"authorization", Begin = b"begin", Case = b"case",
    CloseWord = b"close", Commit = b"commit", Constraints = b"constraints", Copy = b"copy",
    Create = b"create", Deallocate = b"deallocate", Declare = b"declare", Delete = b"delete",
    Discard = b"discard", Do = b"do", End = b"end", Execute = b"execute", Explain = b"explain",
    For = b"for", Global = b"global", Hold = b"hold", Insert = b"insert", Into = b"into",
    Key = b"key", Language = b"language", Listen = b"listen", Load = b"load", Local = b"local",
    Merge = b"merge", PgSettings = b"pg_settings", Plans = b"plans", Plpgsql = b"plpgsql",
    Prepare = b"prepare", Prepared = b"prepared", Release = b"release", Replace = b"replace",
    Reset = b"reset", Role = b"role", Rollback = b"rollback", Savepoint = b"savepoint",
    Seed = b"seed", Select = b"select", Sequences = b"sequences", Session = b"session",
    SessionAuthorization = b"session_authorization", Set = b"set", StartWord = b"start",
    Table = b"table", Temp = b"temp", Temporary = b"temporary", To = b"to",
    Transaction = b"transaction", True = b"true", Uescape = b"uescape", Unlisten = b"unlisten",
    Update = b"update", Values = b"values", Verbose = b"verbose", With = b"with", Work = b"work",
    PgTemp = b"pg_temp",
}

/// Functions by their whole names.
const CALLS: [(&[u8], Token); 20] = [
    (b"set_config", Token::SetConfig),
    (b"set_limit", Token::SetLimit),
    (b"nextval", Token::SequenceWrite),
    (b"setval", Token::SequenceWrite),
    (b"currval", Token::SequenceRead),
    (b"lastval", Token::SequenceRead),
    (b"setseed", Token::SetSeed),
    (b"pg_advisory_unlock_all", Token::UnlockAll),
    (b"pg_replication_origin_session_setup", Token::Foreign),
    (b"pg_backup_start", Token::Foreign),
    (b"pg_start_backup", Token::Foreign),
    (b"pg_create_logical_replication_slot", Token::Foreign),
    (b"pg_create_physical_replication_slot", Token::Foreign),
    (b"pg_copy_logical_replication_slot", Token::Foreign),
    (b"pg_copy_physical_replication_slot", Token::Foreign),
    (b"query_to_xml", Token::RunsText),
    (b"query_to_xmlschema", Token::RunsText),
    (b"query_to_xml_and_xmlschema", Token::RunsText),
    (b"ts_stat", Token::RunsText),
    (b"ts_rewrite", Token::RunsText),
];

/// Functions and schemas by the beginnings of their names.
const FAMILIES: [(&[u8], Token); 4] = [
    (b"pg_advisory_lock", Token::AdvisoryLock),
    (b"pg_try_advisory_lock", Token::AdvisoryLock),
    (b"dblink_connect", Token::Foreign),
    (b"pg_temp_", Token::PgTemp),
];

/// The functions and the numbered temporary schemas.
fn call(name: &[u8]) -> Token {
    let same = |text: &[u8]| name.len() == text.len() && name.eq_ignore_ascii_case(text);
    if let Some((_, token)) = CALLS.iter().find(|(text, _)| same(text)) {
        return *token;
    }
    let begins =
        |text: &[u8]| name.get(..text.len()).is_some_and(|start| start.eq_ignore_ascii_case(text));
    match FAMILIES.iter().find(|(text, _)| begins(text)) {
        // A schema's number, or another name altogether.
        Some((_, Token::PgTemp)) if !name.iter().skip(8).all(u8::is_ascii_digit) => Token::Name,
        Some((_, token)) => *token,
        None => Token::Name,
    }
}

/// For each first letter (its low five bits) the lengths of the names that matter, one a bit; the
/// highest bit stands for all longer ones. Most names of a query end their look-up here.
static LENGTHS: [u32; 32] = {
    let mut lengths = [0; 32];
    let mut i = 0;
    while i < WORDS.len() {
        let (letter, bit) = length_bit(WORDS[i]);
        lengths[letter] |= bit;
        i += 1;
    }
    i = 0;
    while i < CALLS.len() {
        let (letter, bit) = length_bit(CALLS[i].0);
        lengths[letter] |= bit;
        i += 1;
    }
    i = 0;
    while i < FAMILIES.len() {
        let (letter, bit) = length_bit(FAMILIES[i].0);
        // This length and every longer one.
        lengths[letter] |= !(bit - 1);
        i += 1;
    }
    lengths
};

/// Where in [`LENGTHS`] a name belongs.
const fn length_bit(name: &[u8]) -> (usize, u32) {
    let letter = match name {
        [first, ..] => (*first & 31) as usize,
        [] => 0,
    };
    (letter, 1 << if name.len() < 31 { name.len() } else { 31 })
}

impl Token {
    /// The token of an unquoted name: letters fold, as PostgreSQL's do.
    pub(crate) fn of_name(name: &[u8]) -> Self {
        Self::of_name_in(name, name.len())
    }

    /// The token of the name that is the first `len` bytes of `text`.
    #[inline]
    pub(crate) fn of_name_in(text: &[u8], len: usize) -> Self {
        let name = text.get(..len).unwrap_or_default();
        let (letter, bit) = length_bit(name);
        if LENGTHS[letter] & bit == 0 {
            return Self::Name;
        }
        // With text enough behind the name one load takes it, and the rest of the load is cut off.
        let head = match text.first_chunk::<8>() {
            Some(_) if len < 8 => pack(text) & !(u64::MAX << (8 * len)),
            _ => pack(name),
        };
        word(head, name)
    }

    /// The token of the inside of a quoted name: never a keyword, but still a function or a schema
    /// if its case is theirs. Names of parameters ignore case even when quoted.
    pub(crate) fn of_quoted(name: &[u8]) -> Self {
        match Self::of_name(name) {
            token @ (Self::Role | Self::SessionAuthorization | Self::Seed) => token,
            _ if name.iter().any(u8::is_ascii_uppercase) => Self::Name,
            token @ (Self::PgTemp | Self::PgSettings | Self::Plpgsql) => token,
            token if token.is_call() => token,
            _ => Self::Name,
        }
    }

    /// Whether a `(` behind the name makes it a call that matters.
    pub(crate) const fn is_call(self) -> bool {
        self as u8 >= Self::SetConfig as u8
    }

    /// Whether the token matters only to what stands right around it.
    pub(crate) const fn is_plain(self) -> bool {
        (self as u8) < Self::UnicodeName as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_fold_and_match_whole() {
        assert_eq!(Token::of_name(b"SeLect"), Token::Select);
        assert_eq!(Token::of_name(b"selects"), Token::Name);
        assert_eq!(Token::of_name(b"selec"), Token::Name);
        assert_eq!(Token::of_name(b"TEMPORARY"), Token::Temporary);
        assert_eq!(Token::of_name(b"temporar"), Token::Name);
        assert_eq!(Token::of_name(b"Deallocated"), Token::Name);
        assert_eq!(Token::of_name(b"rollback"), Token::Rollback);
        assert_eq!(Token::of_name(b"rollbacks"), Token::Name);
        assert_eq!(Token::of_name(b""), Token::Name);
    }

    #[test]
    fn families_of_functions_match_by_prefix_only_where_postgresql_has_families() {
        assert_eq!(Token::of_name(b"pg_advisory_lock_shared"), Token::AdvisoryLock);
        assert_eq!(Token::of_name(b"PG_TRY_ADVISORY_LOCK"), Token::AdvisoryLock);
        assert_eq!(Token::of_name(b"pg_advisory_xact_lock"), Token::Name);
        assert_eq!(Token::of_name(b"pg_try_advisory_xact_lock"), Token::Name);
        assert_eq!(Token::of_name(b"dblink_connect_u"), Token::Foreign);
        assert_eq!(Token::of_name(b"pg_temp_12"), Token::PgTemp);
        assert_eq!(Token::of_name(b"pg_temp_x"), Token::Name);
    }

    #[test]
    fn quoted_names_are_no_keywords_and_keep_their_case() {
        assert_eq!(Token::of_quoted(b"select"), Token::Name);
        assert_eq!(Token::of_quoted(b"set_config"), Token::SetConfig);
        assert_eq!(Token::of_quoted(b"SET_CONFIG"), Token::Name);
        assert_eq!(Token::of_quoted(b"Role"), Token::Role);
    }
}
