//! Parameters: what a client asked for at start-up, and what servers report (ParameterStatus).
//!
//! Start-up parameters cannot be changed after login, so they are part of a pool's key; only
//! `application_name` rides along with the client's next request. Reported values are kept as
//! shared, immutable sets: a client holds the set it was told, a server the set it has; where the
//! two differ when a client gets a server, the client is told the difference (it is never told a
//! value that is not true). Next on the path: `pool.rs`.

use std::rc::Rc;

use pgwire::write;

/// The one parameter that a client may differ in from its server's login.
pub(crate) const APPLICATION_NAME: &[u8] = b"application_name";

/// What stands for the `application_name` of a server that did not take the last one: no client can
/// have it.
pub(crate) const NO_APPLICATION_NAME: &[u8] = b"\0";

/// A parameter's name and value.
pub(crate) type Parameter = (Box<[u8]>, Box<[u8]>);

/// Start-up parameters that decide the pool, in the client's order, as they stand in the start-up
/// packet.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) struct StartupParams(pub(crate) Vec<Parameter>);

/// Encodings whose second bytes may be quotes' or backslashes' neighbours: text in them cannot be
/// judged.
const OPAQUE_ENCODINGS: [&[u8]; 8] =
    [b"sjis", b"big5", b"gbk", b"uhc", b"gb18030", b"johab", b"shift", b"windows9"];

impl StartupParams {
    /// Whether these parameters make SQL text mean something else than the scanner believes: where
    /// literals end, or which tables are temporary. Names of settings ignore case.
    pub(crate) fn is_opaque(&self) -> bool {
        self.0.iter().any(|(name, value)| match &*name.to_ascii_lowercase() {
            b"client_encoding" => is_opaque_encoding(value),
            b"standard_conforming_strings" => !value.eq_ignore_ascii_case(b"on"),
            b"search_path" => contains(&value.to_ascii_lowercase(), b"pg_temp"),
            b"options" => {
                // As PostgreSQL reads them: a backslash is dropped, `-` in a name is `_`.
                let plain: Vec<u8> = value
                    .iter()
                    .filter(|byte| **byte != b'\\')
                    .map(|byte| if *byte == b'-' { b'_' } else { byte.to_ascii_lowercase() })
                    .collect();
                [&b"standard_conforming_strings"[..], b"client_encoding", b"pg_temp"]
                    .iter()
                    .any(|name| contains(&plain, name))
            }
            _ => false,
        })
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

/// PostgreSQL compares encoding names without case, blanks and punctuation.
fn is_opaque_encoding(value: &[u8]) -> bool {
    let plain: Vec<u8> = value
        .iter()
        .filter(|byte| byte.is_ascii_alphanumeric())
        .map(u8::to_ascii_lowercase)
        .collect();
    OPAQUE_ENCODINGS.iter().any(|name| contains(&plain, name))
        || [&b"mskanji"[..], b"win932", b"win936", b"win949", b"win950"].contains(&&*plain)
}

/// Reported parameters without `application_name`, in the order in which the server first told
/// them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct ParamSet(Vec<Parameter>);

impl ParamSet {
    /// The set with one value changed; the same set if it is no change.
    pub(crate) fn with(self: &Rc<Self>, name: &[u8], value: &[u8]) -> Rc<Self> {
        if self.0.iter().any(|(n, v)| **n == *name && **v == *value) {
            return Rc::clone(self);
        }
        let mut changed = Self::clone(self);
        match changed.0.iter_mut().find(|(n, _)| **n == *name) {
            Some((_, old)) => *old = value.into(),
            None => changed.0.push((name.into(), value.into())),
        }
        Rc::new(changed)
    }

    /// Whether the server reads SQL text otherwise than the scanner does (a role's own default,
    /// say).
    pub(crate) fn is_opaque(&self) -> bool {
        self.0.iter().any(|(name, value)| match &**name {
            b"client_encoding" => is_opaque_encoding(value),
            b"standard_conforming_strings" => **value != *b"on",
            _ => false,
        })
    }

    /// The parameters, for another worker.
    pub(crate) fn parameters(&self) -> &[Parameter] {
        &self.0
    }

    /// A set that another worker sent.
    pub(crate) fn from_parameters(parameters: Vec<Parameter>) -> Self {
        Self(parameters)
    }

    /// How many parameters there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Appends a ParameterStatus for each value.
    pub(crate) fn write_all(&self, out: &mut Vec<u8>) {
        for (name, value) in &self.0 {
            write::parameter_status(out, name, value);
        }
    }

    /// Appends a ParameterStatus for each value that differs from `told`.
    pub(crate) fn write_changes(&self, told: &Self, out: &mut Vec<u8>) {
        for (name, value) in &self.0 {
            if !told.0.iter().any(|(n, v)| n == name && v == value) {
                write::parameter_status(out, name, value);
            }
        }
    }
}

/// Appends `SET application_name`, quoted so that any value is a literal.
pub(crate) fn write_set_application_name(out: &mut Vec<u8>, value: &[u8]) {
    let mut sql = Vec::with_capacity(value.len() + 32);
    sql.extend_from_slice(b"SET application_name TO E'");
    for byte in value {
        if matches!(byte, b'\'' | b'\\') {
            sql.push(b'\\');
        }
        sql.push(*byte);
    }
    sql.push(b'\'');
    write::query(out, &sql);
}

#[cfg(test)]
mod tests {
    use super::{ParamSet, StartupParams, write_set_application_name};
    use std::rc::Rc;

    #[test]
    fn a_set_is_shared_until_a_value_really_changes() {
        let empty = Rc::new(ParamSet::default());
        let one = empty.with(b"TimeZone", b"UTC");
        assert!(Rc::ptr_eq(&one, &one.with(b"TimeZone", b"UTC")));
        let two = one.with(b"TimeZone", b"utc");
        let mut out = Vec::new();
        two.write_changes(&one, &mut out);
        assert_eq!(out, b"S\0\0\0\x11TimeZone\0utc\0");
        out.clear();
        one.write_changes(&one, &mut out);
        assert!(out.is_empty());
    }

    #[test]
    fn a_quote_in_application_name_stays_inside_the_literal() {
        let mut out = Vec::new();
        write_set_application_name(&mut out, b"a'; DROP TABLE t; --\\");
        assert!(out.windows(3).any(|w| w == b"a\\'"));
        assert!(out.ends_with(b"--\\\\'\0"));
    }

    #[test]
    fn encodings_that_hide_quotes_are_known_by_any_spelling() {
        for (value, opaque) in [
            ("SJIS", true),
            ("Shift_JIS", true),
            ("GB-18030", true),
            ("utf-8", false),
            ("UTF8", false),
            ("LATIN1", false),
            ("windows-936", true),
        ] {
            let params = StartupParams(vec![(
                b"client_encoding".as_slice().into(),
                value.as_bytes().into(),
            )]);
            assert_eq!(params.is_opaque(), opaque, "{value}");
        }
    }

    #[test]
    fn settings_that_move_quotes_or_tables_are_known_by_any_spelling() {
        for (name, value, opaque) in [
            ("Standard_Conforming_Strings", "off", true),
            ("standard_conforming_strings", "on", false),
            ("options", "-c standard_conforming-strings=off", true),
            ("options", "-c Client\\_encoding=SJIS", true),
            ("options", "-c search_path=pg\\_temp", true),
            ("options", "-c work_mem=1MB", false),
            ("SEARCH_PATH", "\"PG_TEMP\"", true),
            ("search_path", "public", false),
        ] {
            let params = StartupParams(vec![(name.as_bytes().into(), value.as_bytes().into())]);
            assert_eq!(params.is_opaque(), opaque, "{name}={value}");
        }
    }
}
