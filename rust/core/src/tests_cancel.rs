//! Cancels: they strike what the client asked for, and nothing that the proxy itself sends ahead.
//!
//! Each test is the shortest form of a run in which the simulator found a fault.
#![allow(clippy::panic, reason = "that is how a test fails")]

use crate::limits::CANCEL_SETTLE_MS;
use crate::testbed::{Bed, answer, say};

const SET_A: &str = "Q SET application_name TO E'a'";

#[test]
fn a_cancel_waits_until_our_own_request_ahead_of_the_clients_has_been_answered() {
    let mut bed = Bed::new();
    let client = bed.client("a");
    assert_eq!(bed.say(client, &[say::query("SELECT 1")]), [SET_A, "Q SELECT 1"]);
    assert!(bed.cancel(client).is_none());
    bed.answer(client, &[answer::done("SET"), answer::ready(b'I')]);
    assert!(bed.begun_cancel().is_some(), "now it strikes the client's request");
}

#[test]
fn a_statement_dropped_ahead_of_a_request_waits_for_no_server_and_takes_no_cancel() {
    let mut bed = Bed::new();
    let (first, client) = (bed.client(""), bed.client(""));
    bed.say(first, &[say::query("BEGIN")]);
    bed.say(client, &[say::close("p1"), say::sync(), say::query("SELECT 1")]);
    assert_eq!(bed.heard(client), ["3", "Z I"]);
    assert!(bed.cancel(client).is_none());
    assert!(bed.heard(client)[0].contains("57014"), "the request that waits is struck");
    bed.answer(first, &[answer::done("BEGIN"), answer::ready(b'T')]);
    bed.say(first, &[say::query("COMMIT")]);
    bed.answer(first, &[answer::done("COMMIT"), answer::ready(b'I')]);
    assert!(bed.told_server().is_empty(), "nothing of it runs");
}

#[test]
fn a_cancel_waits_until_the_server_has_surely_read_the_request() {
    let mut bed = Bed::new();
    let client = bed.client("");
    bed.say(client, &[say::query("SELECT 1")]);
    assert!(bed.cancel(client).is_none(), "the request is still on its way");
    bed.wait_ms(2 * CANCEL_SETTLE_MS);
    assert!(bed.begun_cancel().is_some());
    bed.wait_ms(CANCEL_SETTLE_MS);
    assert!(bed.begun_cancel().is_none(), "once");
}

#[test]
fn a_cancel_that_waited_strikes_no_later_request() {
    let mut bed = Bed::new();
    let client = bed.client("");
    bed.say(client, &[say::query("SELECT 1")]);
    assert!(bed.cancel(client).is_none());
    bed.answer(client, &[answer::done("SELECT 1"), answer::ready(b'I')]);
    assert_eq!(bed.say(client, &[say::query("SELECT 2")]), ["Q SELECT 2"]);
    bed.wait_ms(2 * CANCEL_SETTLE_MS);
    assert!(bed.begun_cancel().is_none(), "it came too late");
}

#[test]
fn a_cancel_that_finds_only_our_own_request_is_over_with_it() {
    let mut bed = Bed::new();
    let client = bed.client("");
    bed.say(client, &[say::parse("p1", "SELECT 1"), say::sync()]);
    bed.answer(client, &[answer::parsed(), answer::ready(b'I')]);
    assert_eq!(bed.say(client, &[say::query("EXECUTE p1")]), ["P p1 SELECT 1", "S"]);
    assert!(bed.cancel(client).is_none());
    bed.answer(client, &[answer::parsed(), answer::ready(b'I')]);
    assert!(bed.begun_cancel().is_none());
    assert_eq!(bed.told_server(), ["Q EXECUTE p1"]);
}

#[test]
fn nothing_of_ours_goes_ahead_of_a_request_while_a_cancel_is_on_its_way() {
    let mut bed = Bed::new();
    let client = bed.client("");
    bed.say(client, &[say::parse("p1", "SELECT 1"), say::sync()]);
    bed.answer(client, &[answer::parsed(), answer::ready(b'I')]);
    bed.say(client, &[say::query("SELECT 2")]);
    bed.wait_ms(CANCEL_SETTLE_MS);
    let Some(cancel) = bed.cancel(client) else { panic!("no cancel on its way") };
    bed.answer(client, &[answer::done("SELECT 1"), answer::ready(b'I')]);
    assert!(bed.say(client, &[say::query("EXECUTE p1")]).is_empty());
    bed.cancel_ends(cancel);
    assert_eq!(bed.told_server(), ["P p1 SELECT 1", "S"]);
}

#[test]
fn an_application_name_that_was_not_taken_is_set_again_before_the_next_request() {
    let mut bed = Bed::new();
    let client = bed.client("a");
    bed.say(client, &[say::query("SELECT 1")]);
    let replies = [
        answer::error(b"57014"),
        answer::ready(b'I'),
        answer::done("SELECT 1"),
        answer::ready(b'I'),
    ];
    let heard = bed.answer(client, &replies);
    assert_eq!(heard, ["C SELECT 1", "Z I"]);
    assert_eq!(bed.say(client, &[say::query("SELECT 2")]), [SET_A, "Q SELECT 2"]);
}
