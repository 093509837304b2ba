//! The few kinds of SQL that the simulated clients and the core send, read as PostgreSQL would.
//!
//! The texts are real SQL, so that the core's scanner judges them as it would in production. Whose
//! a statement is stands in it: a literal or a comment `cN` names client N. Next on the path:
//! `session.rs`.

/// What a statement does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Op {
    /// Rows of constants; with `param`, the first column is the first parameter.
    Rows { count: u32, label: String, param: bool },
    /// BEGIN.
    Begin,
    /// COMMIT.
    Commit,
    /// ROLLBACK.
    Rollback,
    /// SET, with LOCAL or without.
    Set { name: String, value: String, local: bool },
    /// RESET of one setting.
    Reset(String),
    /// RESET ALL.
    ResetAll,
    /// SHOW.
    Show(String),
    /// PREPARE name AS statement.
    Prepare { name: String, label: String },
    /// EXECUTE name with a tag as parameter.
    Execute(String),
    /// DEALLOCATE name.
    Deallocate(String),
    /// DEALLOCATE ALL.
    DeallocateAll,
    /// DISCARD ALL.
    DiscardAll,
    /// DISCARD SEQUENCES.
    DiscardSequences,
    /// A session-level advisory lock.
    Lock,
    /// Frees all advisory locks.
    UnlockAll,
    /// CLOSE ALL.
    CloseAll,
    /// A temporary table that holds its maker's tag.
    Temp,
    /// Reads that table.
    TempRead,
    /// LISTEN.
    Listen,
    /// UNLISTEN *.
    UnlistenAll,
    /// nextval: the session remembers the tag.
    Nextval,
    /// currval: what the session remembers.
    Currval,
    /// Fails when it runs.
    Fail,
    /// Runs for this many milliseconds.
    Sleep(u64),
    /// COPY FROM STDIN.
    CopyIn,
    /// COPY TO STDOUT of this many rows.
    CopyOut(u32),
    /// The core's question for the connection limits.
    Limits,
}

/// One statement.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Stmt {
    /// What it does.
    pub(crate) op: Op,
    /// The client whose it is; the core's own statements name none.
    pub(crate) tag: Option<u32>,
}

impl Stmt {
    /// Whether it ends a failed transaction.
    #[must_use]
    pub(crate) const fn is_exit(&self) -> bool {
        matches!(self.op, Op::Commit | Op::Rollback)
    }

    /// Whether it answers with rows.
    #[must_use]
    pub(crate) const fn has_rows(&self) -> bool {
        matches!(
            self.op,
            Op::Rows { .. }
                | Op::Show(_)
                | Op::Execute(_)
                | Op::Lock
                | Op::UnlockAll
                | Op::TempRead
                | Op::Nextval
                | Op::Currval
                | Op::Fail
                | Op::Sleep(_)
                | Op::Limits
        )
    }
}

/// The tag of a client as it stands in texts and rows.
#[must_use]
pub(crate) fn tag_text(tag: u32) -> String {
    format!("c{tag}")
}

/// Reads a tag back.
#[must_use]
pub(crate) fn read_tag(text: &[u8]) -> Option<u32> {
    std::str::from_utf8(text).ok()?.strip_prefix('c')?.parse().ok()
}

/// Reads a whole text; none if it holds a syntax error.
#[must_use]
pub(crate) fn read(text: &[u8]) -> Option<Vec<Stmt>> {
    let text = std::str::from_utf8(text).ok()?;
    let whole = find_tag(text);
    text.split(';')
        .map(strip_comment)
        .filter(|part| !part.is_empty())
        .map(|part| Some(Stmt { op: read_op(part)?, tag: whole }))
        .collect()
}

fn strip_comment(part: &str) -> &str {
    part.split("/*").next().unwrap_or_default().trim()
}

fn find_tag(text: &str) -> Option<u32> {
    let comment = text.rsplit_once("/* ").and_then(|(_, rest)| rest.split_once(" */"));
    comment.and_then(|(tag, _)| read_tag(tag.as_bytes()))
}

/// The content of the first literal.
fn literal(text: &str) -> Option<&str> {
    text.split('\'').nth(1)
}

fn number(text: &str) -> Option<u32> {
    let digits: String =
        text.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// A setting's name as ParameterStatus has it, however it is written.
fn setting_name(text: &str) -> String {
    let name = text.trim_matches('"');
    if name.eq_ignore_ascii_case("TimeZone") { "TimeZone".to_owned() } else { name.to_lowercase() }
}

fn read_op(text: &str) -> Option<Op> {
    let fixed = match text {
        "BEGIN" => Op::Begin,
        "COMMIT" => Op::Commit,
        "ROLLBACK" => Op::Rollback,
        "RESET ALL" => Op::ResetAll,
        "DEALLOCATE ALL" => Op::DeallocateAll,
        "DISCARD ALL" => Op::DiscardAll,
        "DISCARD SEQUENCES" => Op::DiscardSequences,
        "CLOSE ALL" => Op::CloseAll,
        "UNLISTEN *" => Op::UnlistenAll,
        "SELECT pg_advisory_lock(7)" => Op::Lock,
        "SELECT pg_advisory_unlock_all()" => Op::UnlockAll,
        "CREATE TEMP TABLE t (x text)" => Op::Temp,
        "SELECT x FROM pg_temp.t" => Op::TempRead,
        "LISTEN news" => Op::Listen,
        "SELECT nextval('s')" => Op::Nextval,
        "SELECT currval('s')" => Op::Currval,
        "SELECT 1/0" => Op::Fail,
        "COPY t FROM STDIN" => Op::CopyIn,
        _ => return read_open(text),
    };
    Some(fixed)
}

fn read_open(text: &str) -> Option<Op> {
    if let Some(rest) = text.strip_prefix("SELECT pg_sleep(") {
        return Some(Op::Sleep(u64::from(number(rest)?)));
    }
    if text.starts_with("SELECT current_setting('max_connections')") {
        return Some(Op::Limits);
    }
    if let Some(rest) = text.strip_prefix("SELECT $1::text, ") {
        let (label, series) = rest.split_once(" FROM generate_series(1, ")?;
        let label = literal(label)?.to_owned();
        return Some(Op::Rows { count: number(series)?, label, param: true });
    }
    if let Some(rest) = text.strip_prefix("SELECT ") {
        let label = literal(rest)?.to_owned();
        let count = rest.split_once("generate_series(1, ").and_then(|(_, n)| number(n));
        return Some(Op::Rows { count: count.unwrap_or(1), label, param: false });
    }
    if let Some(rest) = text.strip_prefix("COPY t TO STDOUT") {
        return Some(Op::CopyOut(number(rest).unwrap_or(3)));
    }
    if let Some(rest) = text.strip_prefix("COPY (SELECT x FROM generate_series(1, ") {
        return Some(Op::CopyOut(number(rest)?));
    }
    if let Some(rest) = text.strip_prefix("PREPARE ") {
        let (name, rest) = rest.split_once(" (text) AS ")?;
        return Some(Op::Prepare { name: name.to_owned(), label: literal(rest)?.to_owned() });
    }
    if let Some(rest) = text.strip_prefix("EXECUTE ") {
        return Some(Op::Execute(rest.split('(').next()?.to_owned()));
    }
    if let Some(name) = text.strip_prefix("DEALLOCATE ") {
        return Some(Op::Deallocate(name.to_owned()));
    }
    if let Some(name) = text.strip_prefix("SHOW ") {
        return Some(Op::Show(name.to_owned()));
    }
    if let Some(name) = text.strip_prefix("RESET ") {
        return Some(Op::Reset(setting_name(name)));
    }
    let rest = text.strip_prefix("SET ")?;
    let (rest, local) = rest.strip_prefix("LOCAL ").map_or((rest, false), |rest| (rest, true));
    let (name, value) = rest.split_once(" TO ")?;
    Some(Op::Set { name: setting_name(name), value: literal(value)?.to_owned(), local })
}
