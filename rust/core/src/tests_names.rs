//! Names: a client's statement names mean what they would mean on a direct connection, whatever it
//! pipelines, drops, prepares again, cancels and fails with.
//!
//! Each test is the shortest form of a run in which the simulator found a fault.
#![allow(clippy::panic, reason = "that is how a test fails")]

use crate::ids::ClientId;
use crate::testbed::{Bed, answer, say};

/// A client with the name `p1`.
fn with_p1() -> (Bed, ClientId) {
    let mut bed = Bed::new();
    let client = bed.client("");
    let told = bed.say(client, &[say::parse("p1", "SELECT 1"), say::sync()]);
    assert_eq!(told, ["P ours SELECT 1", "S"]);
    bed.answer(client, &[answer::parsed(), answer::ready(b'I')]);
    (bed, client)
}

fn drop_all() -> [Vec<u8>; 3] {
    [say::parse("", "DEALLOCATE ALL"), say::bind(""), say::execute()]
}

fn dropped() -> [Vec<u8>; 3] {
    [answer::parsed(), answer::bound(), answer::done("DEALLOCATE ALL")]
}

#[test]
fn a_batch_that_may_drop_all_names_is_waited_for_whatever_is_answered_before_it() {
    let (mut bed, client) = with_p1();
    bed.say(client, &[say::query("SELECT 2")]);
    bed.say(client, &drop_all());
    bed.answer(client, &[answer::done("SELECT 1"), answer::ready(b'I')]);
    assert_eq!(bed.say(client, &[say::sync(), say::bind("p1"), say::sync()]), ["S"]);
    bed.answer(client, &[&dropped()[..], &[answer::ready(b'I')]].concat());
    assert_eq!(bed.told_server(), ["B p1", "S"], "the name does not exist any more");
}

#[test]
fn a_name_behind_what_drops_all_names_in_its_own_batch_waits_for_the_answer() {
    let (mut bed, client) = with_p1();
    let told = bed.say(client, &[&drop_all()[..], &[say::bind("p1"), say::sync()]].concat());
    assert_eq!(told, ["P DEALLOCATE ALL", "B", "E", "H"]);
    bed.answer(client, &dropped());
    assert_eq!(bed.told_server(), ["B p1", "S"]);
}

#[test]
fn a_portal_that_drops_all_names_is_waited_for_in_a_later_batch_than_its_own() {
    let (mut bed, client) = with_p1();
    bed.say(client, &[say::query("BEGIN")]);
    bed.answer(client, &[answer::done("BEGIN"), answer::ready(b'T')]);
    bed.say(client, &[say::parse("", "DEALLOCATE ALL"), say::bind(""), say::sync()]);
    bed.answer(client, &[answer::parsed(), answer::bound(), answer::ready(b'T')]);
    let told = bed.say(client, &[say::execute(), say::sync(), say::bind("p1"), say::sync()]);
    assert_eq!(told, ["E", "S"]);
    bed.answer(client, &[answer::done("DEALLOCATE ALL"), answer::ready(b'T')]);
    assert_eq!(bed.told_server(), ["B p1", "S"]);
}

#[test]
fn a_name_that_is_prepared_behind_a_drop_of_all_names_stays() {
    let (mut bed, client) = with_p1();
    bed.say(client, &drop_all());
    bed.say(client, &[say::sync(), say::parse("p1", "SELECT 1"), say::sync()]);
    bed.answer(client, &[&dropped()[..], &[answer::ready(b'I')]].concat());
    assert_eq!(bed.told_server(), ["P ours SELECT 1", "S"], "the server holds it no more");
    bed.answer(client, &[answer::parsed(), answer::ready(b'I')]);
    assert_eq!(bed.say(client, &[say::bind("p1"), say::sync()]), ["B ours", "S"]);
}

#[test]
fn what_a_failed_batch_would_have_done_to_names_never_shows() {
    let (mut bed, client) = with_p1();
    let batch = [
        say::bind("none"),
        say::close("p1"),
        say::parse("p1", "SELECT 2"),
        say::parse("p2", "SELECT 3"),
        say::sync(),
        say::bind("p1"),
        say::bind("p2"),
        say::sync(),
    ];
    let told = bed.say(client, &batch);
    assert_eq!(told, ["B none", "C S ours", "P ours SELECT 2", "P ours SELECT 3", "S"]);
    bed.answer(client, &[answer::error(b"26000"), answer::ready(b'I')]);
    assert_eq!(bed.told_server(), ["B ours", "B p2", "S"]);
}

#[test]
fn what_a_batch_did_before_it_failed_stays() {
    let (mut bed, client) = with_p1();
    let batch = [say::parse("p2", "SELECT 3"), say::close("p1"), say::bind("none"), say::sync()];
    bed.say(client, &batch);
    let replies = [
        answer::parsed(),
        answer::closed(),
        // A cancel may strike any message.
        answer::error(b"57014"),
        answer::ready(b'I'),
    ];
    bed.answer(client, &replies);
    let told = bed.say(client, &[say::bind("p2"), say::bind("p1"), say::sync()]);
    assert_eq!(told, ["B ours", "B p1", "S"]);
}

#[test]
fn names_for_sql_are_awaited_before_anything_that_may_use_them() {
    let (mut bed, client) = with_p1();
    let told = bed.say(client, &[say::query("EXECUTE p1"), say::bind("p1"), say::sync()]);
    assert_eq!(told, ["P p1 SELECT 1", "S"]);
    assert!(bed.answer(client, &[answer::parsed(), answer::ready(b'I')]).is_empty());
    assert_eq!(bed.told_server(), ["Q EXECUTE p1", "B p1", "S"]);
}

#[test]
fn names_for_sql_that_a_cancel_struck_inside_a_batch_are_prepared_behind_it() {
    let (mut bed, client) = with_p1();
    let batch = [say::parse("", "EXECUTE p1"), say::bind(""), say::execute(), say::sync()];
    assert_eq!(bed.say(client, &batch), ["P EXECUTE p1", "H"]);
    bed.answer(client, &[answer::parsed()]);
    assert_eq!(bed.told_server(), ["P p1 SELECT 1", "H"]);
    let told = bed.answer(client, &[answer::error(b"57014")]);
    assert_eq!(told, ["E SERROR VERROR C57014 Mwhy"]);
    assert_eq!(bed.told_server(), ["S"]);
    let next = [say::parse("p1", "SELECT 2"), say::sync()];
    assert!(bed.say(client, &next).is_empty(), "whether it exists is not known yet");
    bed.answer(client, &[answer::ready(b'I')]);
    assert_eq!(bed.told_server(), ["P p1 SELECT 1", "S"]);
    bed.answer(client, &[answer::parsed(), answer::ready(b'I')]);
    assert_eq!(bed.told_server(), ["P p1 SELECT 2", "S"], "the server refuses the second one");
}

#[test]
fn sql_behind_a_rollback_in_its_batch_finds_the_clients_names() {
    let (mut bed, client) = with_p1();
    bed.say(client, &[say::query("BEGIN; SELECT 1/0")]);
    bed.answer(client, &[answer::error(b"22012"), answer::ready(b'E')]);
    let batch = [say::parse("", "ROLLBACK"), say::bind(""), say::execute()];
    bed.say(client, &batch);
    assert_eq!(bed.say(client, &[say::query("DEALLOCATE p1")]), ["H"]);
    bed.answer(client, &[answer::parsed(), answer::bound(), answer::done("ROLLBACK")]);
    assert_eq!(bed.told_server(), ["P p1 SELECT 1", "H"]);
    bed.answer(client, &[answer::parsed()]);
    assert_eq!(bed.told_server(), ["Q DEALLOCATE p1"]);
}

#[test]
fn nothing_of_ours_goes_to_a_server_that_skips_to_the_next_sync() {
    let (mut bed, client) = with_p1();
    // A failed transaction, in which SQL that may leave it asks for names: they are due behind it.
    bed.say(client, &[say::query("BEGIN; SELECT 1/0")]);
    bed.answer(client, &[answer::error(b"22012"), answer::ready(b'E')]);
    bed.say(client, &[say::query("ROLLBACK; EXECUTE p1")]);
    bed.say(client, &[say::bind("none"), say::query("SELECT 2")]);
    let replies = [answer::done("ROLLBACK"), answer::error(b"26000"), answer::ready(b'I')];
    bed.answer(client, &replies);
    assert_eq!(bed.told_server(), ["P p1 SELECT 1", "S"]);
    bed.answer(client, &[answer::parsed(), answer::ready(b'I')]);
    assert_eq!(bed.told_server(), ["B none", "Q SELECT 2"]);
    bed.say(client, &[say::parse("p2", "SELECT 3")]);
    bed.answer(client, &[answer::error(b"26000")]);
    assert_eq!(bed.say(client, &[say::bind("p1"), say::sync()]), ["S"]);
}

#[test]
fn an_unnamed_statement_survives_a_query_that_the_server_skipped() {
    let (mut bed, client) = with_p1();
    bed.say(client, &[say::query("LISTEN news")]);
    bed.answer(client, &[answer::done("LISTEN"), answer::ready(b'I')]);
    bed.say(client, &[say::parse("", "SELECT 4"), say::sync()]);
    bed.answer(client, &[answer::parsed(), answer::ready(b'I')]);
    bed.say(client, &[say::bind("none"), say::query("SELECT 2"), say::sync()]);
    bed.answer(client, &[answer::error(b"26000"), answer::ready(b'I')]);
    let told = bed.say(client, &[say::bind(""), say::parse("", "SELECT 4"), say::sync()]);
    assert_eq!(told, ["B", "P SELECT 4", "S"]);
    bed.answer(client, &[answer::bound(), answer::error(b"57014"), answer::ready(b'I')]);
    // A Parse that fails has dropped the one before; nobody else's may be found there.
    assert_eq!(bed.say(client, &[say::bind(""), say::sync()]), ["B", "S"]);
}

#[test]
fn a_parse_that_failed_leaves_no_unnamed_statement() {
    let (mut bed, client) = with_p1();
    bed.say(client, &[say::parse("", "SELECT 4"), say::sync()]);
    bed.answer(client, &[answer::parsed(), answer::ready(b'I')]);
    bed.say(client, &[say::parse("", "SELEC"), say::sync()]);
    bed.answer(client, &[answer::error(b"42601"), answer::ready(b'I')]);
    assert_eq!(bed.say(client, &[say::bind(""), say::sync()]), ["B", "S"]);
}

#[test]
fn another_clients_unnamed_statement_is_closed_first_and_known_to_the_worker_that_gets_it() {
    let (mut bed, client) = with_p1();
    assert_eq!(bed.unnamed_as_handed_over(), 0);
    bed.say(client, &[say::parse("", "SELECT 4"), say::sync()]);
    bed.answer(client, &[answer::parsed(), answer::ready(b'I')]);
    assert_ne!(bed.unnamed_as_handed_over(), 0);
    let other = bed.client("");
    assert_eq!(bed.say(other, &[say::describe(""), say::sync()]), ["C S", "D S", "S"]);
}

#[test]
fn a_parse_complete_of_ours_comes_before_the_rows_behind_it() {
    let (mut bed, client) = with_p1();
    bed.say(client, &[say::bind("p1")]);
    bed.answer(client, &[answer::bound()]);
    let told = bed.say(client, &[say::parse("p2", "SELECT 1"), say::execute(), say::sync()]);
    assert_eq!(told, ["E", "S"], "the server holds that text");
    let replies = [answer::row(), answer::done("SELECT 1"), answer::ready(b'I')];
    let heard = bed.answer(client, &replies);
    let tags: String = heard.iter().filter_map(|text| text.chars().next()).collect();
    assert_eq!(tags, "1DCZ");
}
