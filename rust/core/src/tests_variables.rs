//! Session variables: a request never runs under another client's, and what is undone stays undone.
#![allow(clippy::panic, reason = "that is how a test fails")]

use crate::ids::ClientId;
use crate::limits::CLIENT_VARIABLES_MAX;
use crate::testbed::{Bed, answer, say};

/// Two clients of one server; the first has set `a`.
fn two_clients() -> (Bed, ClientId, ClientId) {
    let mut bed = Bed::new();
    let (one, other) = (bed.client(""), bed.client(""));
    assert_eq!(bed.say(one, &[say::query("SET a.x TO 1")]), ["Q SET a.x TO 1"]);
    bed.answer(one, &[answer::done("SET"), answer::ready(b'I')]);
    (bed, one, other)
}

fn done(bed: &mut Bed, client: ClientId, command: &str, status: u8) {
    bed.answer(client, &[answer::done(command), answer::ready(status)]);
}

#[test]
fn a_request_waits_until_the_server_says_that_it_has_its_clients_variables() {
    let (mut bed, one, other) = two_clients();
    let told = bed.say(other, &[say::query("SELECT 1"), say::query("SELECT 2")]);
    assert_eq!(told, ["Q RESET \"a\".\"x\";"]);
    let heard = bed.answer(other, &[answer::done("RESET"), answer::ready(b'I')]);
    assert!(heard.is_empty(), "nothing of it is the client's answer");
    assert_eq!(bed.told_server(), ["Q SELECT 1", "Q SELECT 2"]);
    done(&mut bed, other, "SELECT 1", b'I');
    done(&mut bed, other, "SELECT 1", b'I');
    assert_eq!(bed.say(one, &[say::query("SELECT 3")]), ["Q SET \"a\".\"x\" TO 1;"]);
}

#[test]
fn a_client_whose_variables_are_refused_never_reaches_that_server() {
    let (mut bed, _, other) = two_clients();
    bed.say(other, &[say::query("SELECT 1")]);
    let heard = bed.answer(other, &[answer::error(b"42704"), answer::ready(b'I')]);
    assert!(heard[0].contains("08000"), "it is told and ended: {heard:?}");
    assert_eq!(bed.told_server(), ["Q DISCARD ALL"]);
}

#[test]
fn what_is_undone_needs_no_restoring() {
    let (mut bed, one, other) = two_clients();
    for (text, command, status) in
        [("BEGIN", "BEGIN", b'T'), ("SET a.x TO 2", "SET", b'T'), ("ROLLBACK", "ROLLBACK", b'I')]
    {
        bed.say(one, &[say::query(text)]);
        done(&mut bed, one, command, status);
    }
    bed.say(other, &[say::query("SELECT 1")]);
    bed.answer(other, &[answer::done("RESET"), answer::ready(b'I')]);
    done(&mut bed, other, "SELECT 1", b'I');
    bed.told_server();
    assert_eq!(bed.say(one, &[say::query("SELECT 3")]), ["Q SET \"a\".\"x\" TO 1;"]);
}

#[test]
fn an_error_behind_a_set_in_one_batch_undoes_it() {
    let (mut bed, one, other) = two_clients();
    let set = [say::parse("", "SET a.x TO 2"), say::bind(""), say::execute()];
    bed.say(one, &[&set[..], &[say::parse("", "SELECT 1/0"), say::sync()]].concat());
    bed.answer(one, &[answer::parsed(), answer::bound(), answer::done("SET")]);
    bed.answer(one, &[answer::error(b"22012"), answer::ready(b'I')]);
    bed.say(other, &[say::query("SELECT 1")]);
    bed.answer(other, &[answer::done("RESET"), answer::ready(b'I')]);
    done(&mut bed, other, "SELECT 1", b'I');
    bed.told_server();
    assert_eq!(bed.say(one, &[say::query("SELECT 3")]), ["Q SET \"a\".\"x\" TO 1;"]);
}

#[test]
fn where_a_part_may_have_been_undone_the_client_keeps_its_server() {
    let (mut bed, one, other) = two_clients();
    for (text, command, status) in [
        ("BEGIN", "BEGIN", b'T'),
        ("SAVEPOINT s", "SAVEPOINT", b'T'),
        ("SET a.x TO 2", "SET", b'T'),
        ("ROLLBACK TO s", "ROLLBACK", b'T'),
        ("COMMIT", "COMMIT", b'I'),
    ] {
        bed.say(one, &[say::query(text)]);
        done(&mut bed, one, command, status);
    }
    bed.told_server();
    assert!(bed.say(other, &[say::query("SELECT 1")]).is_empty(), "it waits");
}

#[test]
fn a_statement_behind_a_set_of_its_own_batch_is_prepared_under_it() {
    let (mut bed, one, _) = two_clients();
    let set = [say::parse("", "SET search_path TO a"), say::bind(""), say::execute()];
    let told = bed.say(one, &[&set[..], &[say::parse("p1", "SELECT 1"), say::sync()]].concat());
    assert_eq!(told, ["P SET search_path TO a", "B", "E", "H"], "it waits for the answer");
    bed.answer(one, &[answer::parsed(), answer::bound(), answer::done("SET")]);
    assert_eq!(bed.told_server(), ["P ours SELECT 1", "S"]);
}

#[test]
fn a_server_whose_client_left_in_the_middle_of_a_set_is_reset() {
    for text in ["SET a.x TO 2", "RESET ALL"] {
        let (mut bed, one, other) = two_clients();
        bed.say(one, &[say::query(text)]);
        bed.leaves(one);
        bed.answer(one, &[answer::error(b"22023"), answer::ready(b'I')]);
        assert_eq!(bed.told_server(), ["Q DISCARD ALL"], "{text}");
        bed.answer(one, &[answer::done("DISCARD ALL"), answer::ready(b'I')]);
        assert_eq!(bed.say(other, &[say::query("SELECT 1")]), ["Q SELECT 1"]);
    }
}

#[test]
fn who_sets_too_much_keeps_his_server_and_no_more_memory() {
    let (mut bed, one, other) = two_clients();
    for number in 0..=CLIENT_VARIABLES_MAX {
        bed.say(one, &[say::query(&format!("SET a.y{number} TO 1"))]);
        done(&mut bed, one, "SET", b'I');
    }
    assert!(bed.say(other, &[say::query("SELECT 1")]).is_empty(), "it waits");
    bed.say(one, &[say::query("RESET ALL")]);
    done(&mut bed, one, "RESET", b'I');
    assert_eq!(bed.told_server(), ["Q SELECT 1"], "all is as it was");
}
