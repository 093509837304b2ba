//! Proof that the simulator can fail: each planted defect is found, and the same seeds pass without
//! it.
#![cfg(feature = "broken")]

use sim::campaign::{plant, run_seeds};

/// Seeds within which each defect must be found.
const SEEDS: u64 = 64;
const STEPS: u64 = 3_000;

fn is_found(defect: &'static str) {
    let sound = run_seeds(0, SEEDS, STEPS, || plant(None));
    assert!(sound.is_empty(), "without a defect: {sound:?}");
    let found = run_seeds(0, SEEDS, STEPS, || plant(Some(defect)));
    let first = found.first().map(|failure| failure.why.lines().next().unwrap_or_default());
    println!("{defect}: {} of {SEEDS} seeds; the first: {first:?}", found.len());
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
