//! The campaign that every change must survive.
#![allow(clippy::panic, reason = "that is how a test fails")]

use sim::campaign::{Run, number_from_env, run_seed, run_seeds};

const SEEDS: u64 = 256;
const STEPS: u64 = 3_000;

#[test]
fn no_seed_breaks_an_invariant_or_is_left_waiting() {
    let steps = number_from_env("SIM_STEPS").unwrap_or(STEPS);
    let run = Run { steps, workers: number_from_env("SIM_WORKERS") };
    if let Some(seed) = number_from_env("SIM_SEED") {
        if let Err(failure) = run_seed(seed, run, true) {
            panic!("seed {} {}", failure.seed, failure.why);
        }
        return;
    }
    let from = number_from_env("SIM_FROM").unwrap_or(0);
    let seeds = number_from_env("SIM_SEEDS").unwrap_or(SEEDS);
    let failures = run_seeds(from, seeds, run, || {});
    for failure in &failures {
        println!("seed {} {}", failure.seed, failure.why);
    }
    if let Some(first) = failures.first() {
        let seed = first.seed;
        panic!(
            "{} of {seeds} seeds failed; replay: SIM_SEED={seed} SIM_STEPS={steps} \
             (and SIM_WORKERS as it is) cargo test -p sim --test campaign -- --nocapture",
            failures.len()
        );
    }
}
