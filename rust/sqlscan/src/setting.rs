//! What one SET, RESET or `set_config` sets for the session: names, values, and SQL to set them
//! again.
//!
//! Plain values with their canonical forms. Not about transactions: whether a setting stays, and
//! what it replaces, is the caller's to follow. Off the hot path, so everything is owned.
//! Next on the path: `setting/grammar.rs` reads a statement, `setting/tokens.rs` its tokens.

mod grammar;
mod tokens;

/// The longest part of a parameter's name, in bytes: PostgreSQL cuts identifiers there
/// (NAMEDATALEN - 1), and the name must survive being written as one.
const PART_BYTES_MAX: usize = 63;

/// Names of old that PostgreSQL still takes, and what they are called now.
const OLD_NAMES: [(&str, &str); 2] =
    [("sort_mem", "work_mem"), ("vacuum_mem", "maintenance_work_mem")];

/// What a statement sets once the server has run it without an error.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Setting {
    /// These parameters in this order: at least one, none twice.
    Changes(Vec<(Name, Action)>),
    /// RESET ALL: all parameters but `role` and `session_authorization`.
    ResetAll,
}

/// The canonical name of a parameter: two names are equal if PostgreSQL takes them for the same
/// parameter.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Name(String);

/// What happens to a parameter.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Action {
    /// It gets a value.
    Set(Value),
    /// It goes back to what the session began with.
    Default,
    /// `role` only: the current user is the session user again, also where a session began with
    /// another role.
    RoleNone,
}

/// A value as it was given. Equal values of one parameter are equal to PostgreSQL; unequal ones may
/// mean the same.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Value {
    /// The items of a SET; never empty.
    List(Vec<Item>),
    /// The text that `set_config` or a start-up packet gives, whole: `a, b` in it may be a list.
    Raw(Box<[u8]>),
}

/// One item of a SET's list.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Item {
    /// The exact text: of a literal, a quoted name, or a word folded to lower case.
    Text(Box<[u8]>),
    /// A decimal number as it was written, with its sign if it had one and no blanks.
    Number(Box<[u8]>),
}

/// What one statement sets for the session, if the whole text is one such statement and its effect
/// is fully known from the text.
///
/// `sql`: the text of a Query or Parse message without its final zero byte, any length. `None`: the
/// text is anything else, or there is a doubt; then nothing is known of it. It takes SET (not
/// LOCAL), RESET and `SELECT set_config(…, false)`, all with constants only and without escapes;
/// not what ends with its transaction (SET TRANSACTION, SET CONSTRAINTS), not FROM CURRENT, no
/// `DateStyle` that leaves style or order as it was, and no more than 1,000 tokens. A session
/// authorization changes `role` as well, as in PostgreSQL.
///
/// The result holds once the server has run the text without an error; whether it takes the name
/// and the value is its business. The other effects that [`scan`](crate::scan) finds still hold
/// (`SET search_path = pg_temp`, `SET standard_conforming_strings = off`), and so do the conditions
/// of this crate. Texts are bytes in the client's encoding of that moment.
///
/// Linear time; a text that begins with another word costs next to nothing.
#[must_use]
pub fn setting(sql: &[u8]) -> Option<Setting> {
    let found = grammar::statement(sql)?;
    // No message holds a zero byte; the server would not read behind it.
    (!sql.contains(&0)).then_some(found)
}

impl Name {
    /// The canonical form of a name as `set_config`, start-up packets and ParameterStatus have it,
    /// with its parts joined by dots; `None` if PostgreSQL could not have a parameter of that name,
    /// or SET could not write it.
    #[must_use]
    pub fn new(name: &[u8]) -> Option<Self> {
        let is_part = |part: &[u8]| match part {
            [first, rest @ ..] => {
                let follows = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'$');
                (first.is_ascii_alphabetic() || *first == b'_')
                    && rest.iter().all(follows)
                    && part.len() <= PART_BYTES_MAX
            }
            [] => false,
        };
        if !name.split(|byte| *byte == b'.').all(is_part) {
            return None;
        }
        let name: String = name.iter().map(|byte| char::from(byte.to_ascii_lowercase())).collect();
        Some(match OLD_NAMES.iter().find(|(old, _)| *old == name) {
            Some((_, new)) => Self((*new).to_owned()),
            None => Self(name),
        })
    }

    /// The name in lower case, its parts joined by dots.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Appends the name as SET and RESET take it: each part quoted, for it may be a keyword.
    fn write_quoted(&self, out: &mut Vec<u8>) {
        let mut separator = "\"";
        for part in self.0.split('.') {
            out.extend_from_slice(separator.as_bytes());
            out.extend_from_slice(part.as_bytes());
            separator = "\".\"";
        }
        out.push(b'"');
    }
}

impl Action {
    /// Appends the statement that does this to the parameter `name` for the session.
    ///
    /// Without a semicolon; it means the same whatever `standard_conforming_strings` is. That of a
    /// raw value is a SELECT with one row. A session authorization changes `role` as well: run it
    /// before the role's.
    pub fn write_sql(&self, name: &Name, out: &mut Vec<u8>) {
        match (self, name.as_str()) {
            (Self::Set(value), _) => value.write_sql(name, out),
            (Self::RoleNone, _) => out.extend_from_slice(b"SET ROLE NONE"),
            (Self::Default, "role") => out.extend_from_slice(b"RESET ROLE"),
            (Self::Default, "session_authorization") => {
                out.extend_from_slice(b"RESET SESSION AUTHORIZATION");
            }
            (Self::Default, _) => {
                out.extend_from_slice(b"RESET ");
                name.write_quoted(out);
            }
        }
    }

    /// What setting `name` to `value` is: `none` is no role.
    fn set(name: &Name, value: Value) -> Self {
        if name.as_str() == "role" && value.sole_text() == Some(b"none") {
            Self::RoleNone
        } else {
            Self::Set(value)
        }
    }
}

impl Value {
    /// Appends the statement that gives the parameter `name` this value for the session; as
    /// [`Action::write_sql`].
    pub fn write_sql(&self, name: &Name, out: &mut Vec<u8>) {
        match self {
            Self::List(items) => {
                out.extend_from_slice(b"SET ");
                name.write_quoted(out);
                let mut separator = " TO ";
                for item in items {
                    out.extend_from_slice(separator.as_bytes());
                    match item {
                        Item::Text(text) => write_literal(text, out),
                        Item::Number(number) => out.extend_from_slice(number),
                    }
                    separator = ", ";
                }
            }
            Self::Raw(text) => {
                out.extend_from_slice(b"SELECT pg_catalog.set_config(");
                write_literal(name.as_str().as_bytes(), out);
                out.extend_from_slice(b", ");
                write_literal(text, out);
                out.extend_from_slice(b", false)");
            }
        }
    }

    /// A list of one text.
    fn text(text: &[u8]) -> Self {
        Self::List(vec![Item::Text(text.into())])
    }

    /// The text of a value that is nothing else.
    fn sole_text(&self) -> Option<&[u8]> {
        match self {
            Self::Raw(text) => Some(text),
            Self::List(items) => match items.as_slice() {
                [Item::Text(text)] => Some(text),
                _ => None,
            },
        }
    }
}

/// Appends a literal that any server reads as `text`: a backslash is safe only in `E'…'`.
fn write_literal(text: &[u8], out: &mut Vec<u8>) {
    if text.contains(&b'\\') {
        out.push(b'E');
    }
    out.push(b'\'');
    for &byte in text {
        if matches!(byte, b'\'' | b'\\') {
            out.push(byte);
        }
        out.push(byte);
    }
    out.push(b'\'');
}
