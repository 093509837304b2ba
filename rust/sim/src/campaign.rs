//! Campaigns: many seeds on all cores, one seed in full.
//!
//! `SIM_SEED=n` replays one seed and tells each step; `SIM_SEEDS`, `SIM_FROM` and `SIM_STEPS`
//! change how much is run, `SIM_WORKERS` by how many workers (1–4). This is the last file on the
//! path.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::world::World;

/// Lines of a failing run's log that are shown.
const LINES_SHOWN: usize = 100_000;

/// What went wrong in a run.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The run's seed.
    pub seed: u64,
    /// What was seen.
    pub why: String,
}

/// How a seed is run.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Steps of the safety phase.
    pub steps: u64,
    /// How many workers, 1–4; none: the seed decides.
    pub workers: Option<u64>,
}

/// Runs one seed.
///
/// # Errors
/// What must not happen and did: in the core, or in the simulator itself.
pub fn run_seed(seed: u64, run: Run, told_in_full: bool) -> Result<(), Failure> {
    let Run { steps, workers } = run;
    let workers = workers.map(|workers| workers as usize);
    let mut world = World::new(seed, steps, workers, told_in_full);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        world.storm(steps);
        if world.net.failure.is_none() {
            world.calm();
        }
    }));
    let why = match outcome {
        Ok(()) => world.net.failure.take(),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|t| (*t).to_owned()));
            Some(format!("panic: {}", text.unwrap_or_default()))
        }
    };
    if told_in_full {
        let log = world.net.log.take().unwrap_or_default();
        let lines = log.len().saturating_sub(LINES_SHOWN);
        println!("{}", log.first().map_or("", String::as_str));
        log.iter().skip(lines).for_each(|line| println!("{line}"));
    }
    match why {
        None => Ok(()),
        Some(why) => Err(Failure { seed, why: format!("at step {}: {why}", world.step) }),
    }
}

/// Runs seeds from `from` on, `count` of them, on as many threads as there are cores; `before` runs
/// first on each thread. Gives the failures by seed.
pub fn run_seeds(from: u64, count: u64, how: Run, before: impl Fn() + Sync) -> Vec<Failure> {
    let next = AtomicU64::new(from);
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let run = || {
        before();
        let mut failures = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= from + count {
                return failures;
            }
            failures.extend(run_seed(seed, how, false).err());
        }
    };
    let mut failures: Vec<Failure> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap_or_default()).collect()
    });
    failures.sort_by_key(|failure| failure.seed);
    failures
}

/// A number from the environment.
#[must_use]
pub fn number_from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Plants one defect in the cores that this thread makes, or none.
#[cfg(feature = "broken")]
pub fn plant(defect: Option<&'static str>) {
    proxy_core::broken::plant(defect);
}
