//! Proof that the simulator can fail: each planted defect is found, and the same seeds pass without
//! it.
#![cfg(feature = "broken")]

use sim::campaign::{Run, plant, run_seeds};

/// Seeds within which each defect must be found.
const SEEDS: u64 = 64;
/// The same for a defect that only slows down.
const SEEDS_FOR_A_DELAY: u64 = 128;
const STEPS: u64 = 3_000;

fn is_found(defect: &'static str) {
    is_found_within(SEEDS, Run { steps: STEPS, workers: None }, defect);
}

fn is_found_within(seeds: u64, run: Run, defect: &'static str) {
    // By as many workers as the seeds want, the campaign runs them.
    if run.workers.is_some() {
        let sound = run_seeds(0, seeds, run, || plant(None));
        assert!(sound.is_empty(), "without a defect: {sound:?}");
    }
    let found = run_seeds(0, seeds, run, || plant(Some(defect)));
    let first = found.first().map(|failure| failure.why.lines().next().unwrap_or_default());
    println!("{defect}: {} of {seeds} seeds; the first: {first:?}", found.len());
    assert!(!found.is_empty(), "{defect} was not found");
}

#[test]
fn a_broken_release_rule_is_found() {
    is_found("release_rule");
}

#[test]
fn a_broken_reply_queue_is_found() {
    is_found("reply_queue");
}

#[test]
fn a_broken_statement_map_is_found() {
    is_found("statement_map");
}

#[test]
fn a_permit_freed_behind_a_hand_over_is_found() {
    is_found("handover");
}

#[test]
fn a_reclaim_without_a_cancel_is_found() {
    is_found("reclaim");
}

#[test]
fn a_want_that_is_never_renewed_is_found() {
    let run = Run { steps: STEPS, workers: Some(4) };
    is_found_within(SEEDS_FOR_A_DELAY, run, "want");
}

#[test]
fn a_refusal_that_lowers_nothing_is_found() {
    is_found("ceiling");
}

#[test]
fn variables_that_are_not_restored_are_found() {
    is_found("restore");
}
