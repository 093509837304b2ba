//! What holds for any text: no cut changes the verdict, no bytes panic, time is linear.
//!
//! Not about what a verdict should be (`verdicts.rs`).

use proptest::prelude::*;
use sqlscan::{Effects, Scanner, scan};

/// Pieces that take the scanner through its states, to be joined in any order.
const PIECES: [&str; 64] = [
    " ",
    "\n",
    ";",
    "(",
    ")",
    ",",
    ".",
    "=",
    "*",
    "'",
    "''",
    "\"",
    "\\",
    "\\'",
    "$",
    "$$",
    "$a$",
    "$set$",
    "$1",
    "-",
    "--",
    "/",
    "/*",
    "*/",
    "e'",
    "U&'",
    "u&\"",
    "n'",
    "&",
    "SET",
    "LOCAL",
    "SESSION",
    "AUTHORIZATION",
    "ROLE",
    "RESET",
    "ALL",
    "DISCARD",
    "DEALLOCATE",
    "PREPARE",
    "TRANSACTION",
    "EXECUTE",
    "CREATE",
    "TEMP",
    "INTO",
    "BEGIN",
    "ATOMIC",
    "CASE",
    "END",
    "AS",
    "DO",
    "LANGUAGE",
    "plpgsql",
    "EXPLAIN",
    "WITH",
    "SELECT",
    "set_config(",
    "true",
    "pg_temp",
    "\"set_config\"",
    "nextval(",
    "UPDATE",
    "pg_settings",
    "UESCAPE",
    "12",
];

fn text() -> impl Strategy<Value = String> {
    let piece = proptest::sample::select(&PIECES[..]);
    let spaced =
        (piece, any::<bool>()).prop_map(|(p, s)| format!("{p}{}", if s { " " } else { "" }));
    proptest::collection::vec(spaced, 0..40).prop_map(|pieces| pieces.concat())
}

fn in_pieces(bytes: &[u8], mut lengths: impl Iterator<Item = usize>) -> sqlscan::Verdict {
    let mut scanner = Scanner::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let len = lengths.next().unwrap_or(rest.len()).min(rest.len());
        let (piece, left) = rest.split_at(len);
        scanner.feed(piece);
        rest = left;
    }
    scanner.finish()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn any_cut_of_the_text_gives_the_verdict_of_the_whole(
        sql in text(),
        lengths in proptest::collection::vec(0_usize..9, 0..80),
    ) {
        let whole = scan(sql.as_bytes());
        prop_assert_eq!(in_pieces(sql.as_bytes(), std::iter::repeat(1)), whole);
        prop_assert_eq!(in_pieces(sql.as_bytes(), lengths.into_iter()), whole);
    }

    #[test]
    fn any_bytes_give_a_verdict(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let whole = scan(&bytes);
        prop_assert_eq!(in_pieces(&bytes, std::iter::repeat(1)), whole);
    }

    #[test]
    fn a_closed_literal_hides_everything_within(inside in "[^']{0,60}") {
        let sql = format!("SELECT '{inside}'");
        prop_assert_eq!(scan(sql.as_bytes()), scan(b"SELECT ''"));
    }

    #[test]
    fn what_follows_a_closed_literal_is_seen(inside in "[^'\\\\]{0,60}", kind in "[eEbBxXnN]?|U&") {
        let sql = format!("SELECT {kind}'{inside}'; LISTEN a");
        prop_assert_eq!(scan(sql.as_bytes()).effects, Effects::LISTEN);
    }
}

#[test]
fn depth_and_length_cost_time_alone() {
    let deep = 1_000_000;
    let parens = format!("SELECT {}1{}; LISTEN a", "(".repeat(deep), ")".repeat(deep));
    assert_eq!(scan(parens.as_bytes()).effects, Effects::LISTEN);
    let comments = format!("{}{} LISTEN a", "/*".repeat(deep), "*/".repeat(deep));
    assert_eq!(scan(comments.as_bytes()).effects, Effects::LISTEN);
    let piece = vec![b'x'; 1 << 20];
    let mut scanner = Scanner::new();
    scanner.feed(b"SELECT '");
    for _ in 0..8 {
        scanner.feed(&piece);
    }
    scanner.feed(b"'; LISTEN a");
    assert_eq!(scanner.finish().effects, Effects::LISTEN);
}
