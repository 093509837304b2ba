//! Which worker serves a client that has just been accepted.
//!
//! Whoever wakes first accepts, and that is often the same worker again: left alone, 64 clients end
//! up 62 on one worker and 2 on the other. So a worker that is ahead passes the new client on,
//! before a byte of it is read. Pure; `engine.rs` does the passing.

use ledger::{WORKERS_MAX, WorkerId};

use crate::limits::BEATS_MISSED_MAX;

/// Whose loops have moved lately. One that is stuck is not dead before the supervisor says so, but
/// a new client had better not wait for that.
#[derive(Debug)]
pub(crate) struct Pulses([Pulse; WORKERS_MAX]);

#[derive(Clone, Copy, Default, Debug)]
struct Pulse {
    beats: u64,
    missed: u8,
}

impl Default for Pulses {
    fn default() -> Self {
        Self([Pulse::default(); WORKERS_MAX])
    }
}

impl Pulses {
    /// Looks at the heartbeats of the workers in `alive`; called not more often than they beat.
    pub(crate) fn look(&mut self, alive: u64, heartbeat: impl Fn(WorkerId) -> u64) {
        for (worker, pulse) in (0..).zip(&mut self.0) {
            if alive >> worker & 1 == 0 {
                pulse.missed = 0;
                continue;
            }
            let beats = heartbeat(worker);
            pulse.missed = if beats == pulse.beats { pulse.missed.saturating_add(1) } else { 0 };
            pulse.beats = beats;
        }
    }

    /// Those of `alive` that are not stuck.
    pub(crate) fn moving(&self, alive: u64) -> u64 {
        let stuck = |(worker, pulse): (u32, &Pulse)| {
            if pulse.missed >= BEATS_MISSED_MAX { 1 << worker } else { 0 }
        };
        alive & !(0..).zip(&self.0).map(stuck).sum::<u64>()
    }
}

/// The worker to pass a new client of worker `me` to; `None` = it stays.
///
/// `alive` has a bit for each worker that serves, `clients` tells how many each has. The client
/// goes to the one with the fewest (the first of several) if it would put this worker ahead of that
/// one by more than a sixteenth of the mean, and by more than 1 in any case: small differences are
/// not worth a passing.
pub(crate) fn destination(
    me: WorkerId,
    alive: u64,
    clients: impl Fn(WorkerId) -> u64,
) -> Option<WorkerId> {
    let others = (0..WORKERS_MAX as WorkerId).filter(|worker| *worker != me);
    let own = clients(me) + 1;
    let (mut total, mut count) = (own, 1);
    let mut least = None;
    for worker in others.filter(|worker| alive >> worker & 1 == 1) {
        let number = clients(worker);
        total += number;
        count += 1;
        if least.is_none_or(|(fewest, _)| number < fewest) {
            least = Some((number, worker));
        }
    }
    let (fewest, worker) = least?;
    let slack = (total / count / 16).max(1);
    (own > fewest + slack).then_some(worker)
}

#[cfg(test)]
mod tests {
    use super::{Pulses, destination};

    /// Lets `clients` arrive at workers as `arrives` says and returns how many each serves.
    fn after(clients: usize, workers: usize, arrives: impl Fn(usize) -> usize) -> Vec<u64> {
        let mut counts = vec![0_u64; workers];
        for number in 0..clients {
            let me = arrives(number);
            let alive = (1_u64 << workers) - 1;
            let at = destination(me as u8, alive, |worker| counts[usize::from(worker)]);
            counts[at.map_or(me, usize::from)] += 1;
        }
        counts
    }

    #[test]
    fn clients_that_all_arrive_at_one_worker_end_up_evenly() {
        assert_eq!(after(16, 2, |_| 0), [8, 8]);
        assert_eq!(after(64, 2, |_| 1), [31, 33]);
        let counts = after(1000, 4, |_| 2);
        assert!(counts.iter().all(|count| (235..=265).contains(count)), "{counts:?}");
        let counts = after(1000, 4, |number| number % 2);
        assert!(counts.iter().all(|count| (235..=265).contains(count)), "{counts:?}");
    }

    #[test]
    fn clients_that_arrive_evenly_are_not_passed() {
        let counts = [10, 10, 10];
        for me in 0..3 {
            assert_eq!(destination(me, 0b111, |worker| counts[usize::from(worker)]), None);
        }
    }

    #[test]
    fn one_after_another_stays_where_it_arrives() {
        assert_eq!(destination(0, 0b11, |_| 0), None);
        assert_eq!(destination(1, 0b11, |_| 0), None);
    }

    #[test]
    fn a_worker_that_misses_two_beats_is_left_out_until_it_moves_again() {
        let mut pulses = Pulses::default();
        let mut look = |beats: u64| {
            pulses.look(0b11, |worker| if worker == 0 { beats } else { beats.min(2) });
            pulses.moving(0b11)
        };
        assert_eq!([look(1), look(2), look(3), look(4), look(5)], [3, 3, 3, 1, 1]);
        pulses.look(0b11, |_| 6);
        assert_eq!((pulses.moving(0b11), pulses.moving(0b10)), (0b11, 0b10));
    }

    #[test]
    fn a_worker_that_was_dead_is_not_late_when_it_returns() {
        let mut pulses = Pulses::default();
        for _ in 0..9 {
            pulses.look(0b01, |worker| u64::from(worker == 0));
        }
        assert_eq!(pulses.moving(0b10), 0b10);
    }

    #[test]
    fn nobody_passes_to_a_worker_that_does_not_serve() {
        let counts = |worker| if worker == 0 { 9 } else { 0 };
        assert_eq!(destination(0, 0b1, counts), None);
        assert_eq!(destination(0, 0b101, counts), Some(2));
        assert_eq!(destination(0, 1 << 63 | 1, counts), Some(63));
    }
}
