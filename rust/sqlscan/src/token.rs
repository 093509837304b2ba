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
        }

        #[allow(non_upper_case_globals)]
        mod head {
            $(pub(super) const $word: u64 = super::pack($text);)+
        }

        /// The plain words, by their first eight bytes.
        fn word(head: u64, name: &[u8]) -> Token {
            let (token, text): (Token, &[u8]) = match head {
                $(head::$word => (Token::$word, $text),)+
                _ => return call(head, name),
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

const PG_TEMP_N: u64 = pack(b"pg_temp_");
const SET_CONFIG: u64 = pack(b"set_config");
const SET_LIMIT: u64 = pack(b"set_limit");
const NEXTVAL: u64 = pack(b"nextval");
const SETVAL: u64 = pack(b"setval");
const CURRVAL: u64 = pack(b"currval");
const LASTVAL: u64 = pack(b"lastval");
const SETSEED: u64 = pack(b"setseed");
const PG_ADVISORY: u64 = pack(b"pg_advisory_");
const PG_TRY_ADVISORY: u64 = pack(b"pg_try_advisory_");
const DBLINK_CONNECT: u64 = pack(b"dblink_connect");
const PG_REPLICATION: u64 = pack(b"pg_replication_");
const PG_BACKUP: u64 = pack(b"pg_backup_start");
const PG_START: u64 = pack(b"pg_start_backup");
const PG_CREATE: u64 = pack(b"pg_create_");
const PG_COPY: u64 = pack(b"pg_copy_");

/// The function names and the numbered temporary schemas, by their first eight bytes.
fn call(head: u64, name: &[u8]) -> Token {
    let is = |text: &[u8]| name.eq_ignore_ascii_case(text);
    let begins =
        |text: &[u8]| name.get(..text.len()).is_some_and(|start| start.eq_ignore_ascii_case(text));
    let found = match head {
        PG_TEMP_N if name.get(8..).is_some_and(|n| n.iter().all(u8::is_ascii_digit)) => {
            Token::PgTemp
        }
        SET_CONFIG if is(b"set_config") => Token::SetConfig,
        SET_LIMIT if is(b"set_limit") => Token::SetLimit,
        NEXTVAL if is(b"nextval") => Token::SequenceWrite,
        SETVAL if is(b"setval") => Token::SequenceWrite,
        CURRVAL if is(b"currval") => Token::SequenceRead,
        LASTVAL if is(b"lastval") => Token::SequenceRead,
        SETSEED if is(b"setseed") => Token::SetSeed,
        PG_ADVISORY if begins(b"pg_advisory_lock") => Token::AdvisoryLock,
        PG_ADVISORY if is(b"pg_advisory_unlock_all") => Token::UnlockAll,
        PG_TRY_ADVISORY if begins(b"pg_try_advisory_lock") => Token::AdvisoryLock,
        DBLINK_CONNECT if begins(b"dblink_connect") => Token::Foreign,
        PG_REPLICATION if is(b"pg_replication_origin_session_setup") => Token::Foreign,
        PG_BACKUP if is(b"pg_backup_start") => Token::Foreign,
        PG_START if is(b"pg_start_backup") => Token::Foreign,
        PG_CREATE if is(b"pg_create_logical_replication_slot") => Token::Foreign,
        PG_CREATE if is(b"pg_create_physical_replication_slot") => Token::Foreign,
        PG_COPY if is(b"pg_copy_logical_replication_slot") => Token::Foreign,
        PG_COPY if is(b"pg_copy_physical_replication_slot") => Token::Foreign,
        _ => Token::Name,
    };
    found
}

impl Token {
    /// The token of an unquoted name: letters fold, as PostgreSQL's do.
    pub(crate) fn of_name(name: &[u8]) -> Self {
        word(pack(name), name)
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
