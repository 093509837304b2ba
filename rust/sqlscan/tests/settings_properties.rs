//! What holds for settings read from any text: no bytes panic, time is linear, dress does not
//! matter, the scan saw it too, and what is written reads back as the same.
//!
//! Not about what a statement sets (`settings.rs`).

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use sqlscan::{Action, Class, Effects, Name, Reset, Setting, Value, scan, setting};

/// Pieces that statements of settings are made of, and what may spoil them, to be joined in any
/// order.
const PIECES: [&str; 72] = [
    "SET",
    "SET",
    "set",
    "RESET",
    "SELECT",
    "SESSION",
    "LOCAL",
    "TIME",
    "ZONE",
    "NAMES",
    "SCHEMA",
    "ROLE",
    "NONE",
    "AUTHORIZATION",
    "CHARACTERISTICS",
    "AS",
    "TRANSACTION",
    "ISOLATION LEVEL",
    "SERIALIZABLE",
    "READ",
    "ONLY",
    "NOT",
    "DEFERRABLE",
    "XML OPTION",
    "DOCUMENT",
    "FROM",
    "CURRENT",
    "ALL",
    "TO",
    "TO",
    "=",
    "=",
    "DEFAULT",
    "app",
    "x",
    "search_path",
    "datestyle",
    "\"Role\"",
    "session_authorization",
    "seed",
    "pg_catalog",
    "set_config",
    "\"set_config\"",
    "(",
    ")",
    "false",
    "true",
    "'f'",
    "NULL",
    ".",
    ".",
    ",",
    ";",
    "'",
    "''",
    "'a'",
    "'it''s'",
    "\"a\"",
    "\"",
    "\\",
    "$",
    "$$",
    "$q$",
    "$1",
    "1",
    "-",
    "+",
    "e'",
    "u&\"",
    "/*",
    "*/",
    "--\n",
];

fn text() -> impl Strategy<Value = String> {
    let piece = proptest::sample::select(&PIECES[..]);
    let spaced =
        (piece, any::<bool>()).prop_map(|(p, s)| format!("{p}{}", if s { " " } else { "" }));
    proptest::collection::vec(spaced, 0..14).prop_map(|pieces| pieces.concat())
}

/// Texts of which few are taken, statements that are, and those with a piece too many or too few.
fn any_text() -> impl Strategy<Value = String> {
    let piece = proptest::sample::select(&PIECES[..]);
    let spoiled = (statement(), piece, any::<prop::sample::Index>(), any::<bool>()).prop_map(
        |(mut tokens, piece, place, more)| {
            let place = place.index(tokens.len());
            if more {
                tokens.insert(place, piece.to_owned());
            } else {
                tokens.remove(place);
            }
            tokens.join(" ")
        },
    );
    prop_oneof![text(), statement().prop_map(|tokens| tokens.join(" ")), spoiled]
}

/// What may stand between two tokens.
fn gap() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(&[" ", "\n", "\t\r\n", "/* ; */", " -- '\n", "/*/**/*/\x0c"][..])
}

/// The tokens of a statement that is taken.
fn statement() -> impl Strategy<Value = Vec<String>> {
    let special = proptest::sample::select(
        &[
            "SET TIME ZONE LOCAL",
            "SET SESSION TIME ZONE - 5",
            "RESET TIME ZONE",
            "SET NAMES",
            "SET NAMES 'UTF8'",
            "SET SCHEMA 'A'",
            "SET ROLE NONE",
            "SET SESSION ROLE a",
            "SET SESSION SESSION AUTHORIZATION \"A\"",
            "RESET SESSION AUTHORIZATION",
            "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY , NOT DEFERRABLE",
            "SET XML OPTION CONTENT",
            "RESET ALL",
            "RESET app . x",
            "SELECT set_config ( 'App.x' , 'A' , FALSE ) AS x",
            "SELECT pg_catalog . set_config ( 'role' , NULL , 'Off' )",
        ][..],
    )
    .prop_map(|text| text.split(' ').map(str::to_owned).collect());
    let list = (name(), proptest::collection::vec(item(), 1..4)).prop_map(|(name, items)| {
        let mut tokens = vec!["SET".to_owned(), name, "TO".to_owned()];
        for item in items {
            tokens.extend([item, ",".to_owned()]);
        }
        tokens.pop();
        tokens
    });
    prop_oneof![special, list]
}

fn name() -> impl Strategy<Value = String> {
    "[a-z_][a-z0-9_$]{0,9}(\\.[A-Z_][A-Z0-9_$]{0,9}){1,2}"
        .prop_map(|name| format!("\"{}\"", name.replace('.', "\".\"")))
}

fn item() -> impl Strategy<Value = String> {
    prop_oneof![
        "[^\0\\\\]{0,12}".prop_map(|text| format!("'{}'", text.replace('\'', "''"))),
        "[^\0\"]{1,9}".prop_map(|text| format!("\"{text}\"")),
        "[^\0$]{0,12}".prop_map(|text| format!("$q${text}$q$")),
        "[+-]?[0-9]{1,9}(\\.[0-9]{0,3})?(e[+-]?[0-9]{1,2})?",
        Just("ON".to_owned()),
        "[A-Z]z[0-9_$]{0,9}",
    ]
}

/// Whether a token's case means nothing.
fn is_plain(token: &str) -> bool {
    token.bytes().all(|byte| byte.is_ascii_alphabetic() || byte == b'_')
}

/// The statement that does `action` again.
fn written(name: &Name, action: &Action) -> Vec<u8> {
    let mut out = Vec::new();
    action.write_sql(name, &mut out);
    out
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let with_lead = [b"SET a.b = ".as_slice(), &bytes].concat();
        let _ = (setting(&bytes), setting(&with_lead));
    }

    #[test]
    fn what_is_read_is_one_statement_that_the_scan_notes(sql in any_text()) {
        if let Some(found) = setting(sql.as_bytes()) {
            let verdict = scan(sql.as_bytes());
            prop_assert_eq!(verdict.statements, 1);
            let set = Effects::SET_VARIABLE | Effects::SET_ROLE | Effects::SET_CONFIG;
            match found {
                Setting::ResetAll => prop_assert_eq!(verdict.reset, Some(Reset::ResetAll)),
                Setting::Changes(changes) => {
                    prop_assert!(!changes.is_empty());
                    prop_assert!(matches!(verdict.class, Class::Set | Class::Select));
                    prop_assert!(verdict.effects.bits() & set.bits() != 0);
                }
            }
        }
    }

    #[test]
    fn a_second_statement_is_never_overlooked(sql in any_text()) {
        if setting(sql.as_bytes()).is_some() {
            prop_assert_eq!(setting(format!("{sql}\n;SELECT 1").as_bytes()), None);
        }
    }

    #[test]
    fn comments_and_the_case_of_keywords_do_not_matter(
        tokens in statement(),
        gaps in proptest::collection::vec(gap(), 40),
        upper in any::<bool>(),
    ) {
        let plain = tokens.join(" ");
        let mut dressed = String::new();
        for (token, gap) in tokens.iter().zip(&gaps) {
            dressed.push_str(gap);
            match (is_plain(token), upper) {
                (true, true) => dressed.push_str(&token.to_ascii_uppercase()),
                (true, false) => dressed.push_str(&token.to_ascii_lowercase()),
                (false, _) => dressed.push_str(token),
            }
        }
        dressed.push_str(" ; -- x");
        let found = setting(plain.as_bytes());
        prop_assert!(found.is_some(), "{}", plain);
        prop_assert_eq!(setting(dressed.as_bytes()), found, "{}", dressed);
    }

    #[test]
    fn what_is_written_reads_back_as_the_same(sql in any_text()) {
        if let Some(Setting::Changes(changes)) = setting(sql.as_bytes()) {
            for (name, action) in &changes {
                let again = written(name, action);
                if again.contains(&b'\\') {
                    // Written with escapes, which are not read.
                    continue;
                }
                let again = setting(&again);
                let Some(Setting::Changes(again)) = again else {
                    return Err(TestCaseError::fail(format!("{name:?} {action:?} is refused")));
                };
                prop_assert_eq!(again.first(), Some(&(name.clone(), action.clone())));
            }
        }
    }

    #[test]
    fn a_raw_value_reads_back_as_the_same(value in "[^\0\\\\]{0,40}") {
        let name = Name::new(b"app.x").unwrap();
        let action = Action::Set(Value::Raw(value.as_bytes().into()));
        let again = setting(&written(&name, &action));
        prop_assert_eq!(again, Some(Setting::Changes(vec![(name, action)])));
    }
}

#[test]
fn depth_and_length_cost_time_alone() {
    let many = 1_000_000;
    let comments = format!("SET a.b = {}{} 1", "/*".repeat(many), "*/".repeat(many));
    assert!(setting(comments.as_bytes()).is_some());
    assert!(setting(format!("SET a.b = 1{}", "--\n".repeat(many)).as_bytes()).is_some());
    assert!(setting(format!("SET a.b = '{}'", "''".repeat(many)).as_bytes()).is_some());
    assert!(setting(format!("SET a.b = $q${}$q$", "$r".repeat(many)).as_bytes()).is_some());
    assert!(setting(format!("SET a.b = '{}", "x".repeat(many)).as_bytes()).is_none());
}

#[test]
fn more_tokens_than_any_real_setting_has_are_refused() {
    for (count, taken) in [(400, true), (1000, false), (1_000_000, false)] {
        for sql in [
            format!("SET search_path = a{}", ", a".repeat(count)),
            format!("SET a{} = 1", ".b".repeat(count)),
            format!("SET SESSION CHARACTERISTICS AS TRANSACTION {}", "READ ONLY ".repeat(count)),
            format!("SET a.b = 1{}", ";".repeat(count)),
        ] {
            assert_eq!(setting(sql.as_bytes()).is_some(), taken, "{count}");
        }
    }
}
