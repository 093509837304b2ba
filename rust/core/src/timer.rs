//! A coarse timer wheel: one armed entry a session, checked against the session's real deadline.
//!
//! Arming is lazy. A session keeps its true deadline; the wheel only promises to look at the
//! session no later than that. Moving a deadline further away (every query does) costs one store
//! and no wheel work: the entry fires early, finds the true deadline and is put back. Next on the
//! path: `core.rs`.

use crate::ids::{CancellerId, ClientId, ServerId};
use crate::pool::PoolId;
use crate::sink::Now;

/// Microseconds a tick.
const TICK_US: u64 = 16_384;
/// Slots of the wheel; deadlines beyond its horizon (16 s) are looked at once a round.
const SLOTS: usize = 1024;
/// A deadline that never comes: arms nothing.
pub(crate) const NEVER: Now = Now(u64::MAX);

/// What a timer belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Owner {
    Client(ClientId),
    Server(ServerId),
    Canceller(CancellerId),
    Pool(PoolId),
}

/// A session's half of its timer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timer {
    deadline: Now,
    /// The tick of the wheel entry that counts; entries with another tick are stale.
    armed: u64,
}

const NOT_ARMED: u64 = u64::MAX;

impl Default for Timer {
    fn default() -> Self {
        Self { deadline: NEVER, armed: NOT_ARMED }
    }
}

impl Timer {
    /// When the session wants to be looked at.
    pub(crate) fn deadline(&self) -> Now {
        self.deadline
    }

    /// Forgets the deadline; the wheel entry, if any, will find nothing to do.
    #[inline]
    pub(crate) fn clear(&mut self) {
        self.deadline = NEVER;
    }
}

/// The wheel.
#[derive(Debug)]
pub(crate) struct Wheel {
    slots: Vec<Vec<(u64, Owner)>>,
    occupied: [u64; SLOTS / 64],
    /// All ticks before this one have been looked at.
    next: u64,
    /// The tick of the first entry; `NOT_ARMED` if there is none.
    first: u64,
}

impl Wheel {
    pub(crate) fn new(now: Now) -> Self {
        Self {
            slots: (0..SLOTS).map(|_| Vec::new()).collect(),
            occupied: [0; SLOTS / 64],
            next: now.0 / TICK_US,
            first: NOT_ARMED,
        }
    }

    /// Sets a session's deadline. Cheap if the session is armed already and the deadline moved
    /// away.
    #[inline]
    pub(crate) fn set(&mut self, timer: &mut Timer, owner: Owner, deadline: Now) {
        timer.deadline = deadline;
        if deadline == NEVER {
            return;
        }
        // Rounded up: a timer never fires before its time.
        let tick = deadline.0.saturating_add(TICK_US - 1) / TICK_US;
        if timer.armed <= tick {
            return;
        }
        self.arm(timer, owner, tick);
    }

    fn arm(&mut self, timer: &mut Timer, owner: Owner, tick: u64) {
        let tick = tick.clamp(self.next, self.next + SLOTS as u64 - 1);
        timer.armed = tick;
        let slot = (tick % SLOTS as u64) as usize;
        self.slots[slot].push((tick, owner));
        self.occupied[slot / 64] |= 1 << (slot % 64);
        self.first = self.first.min(tick);
    }

    /// Whether an entry taken by [`Wheel::take_due`] means that the session's deadline has passed.
    /// If the deadline lies ahead, the session is armed again.
    pub(crate) fn fired(&mut self, timer: &mut Timer, owner: Owner, tick: u64, now: Now) -> bool {
        if timer.armed != tick {
            return false;
        }
        timer.armed = NOT_ARMED;
        if timer.deadline > now {
            self.set(timer, owner, timer.deadline);
            return false;
        }
        timer.deadline = NEVER;
        true
    }

    /// Moves the entries whose tick has come into `due`.
    pub(crate) fn take_due(&mut self, now: Now, due: &mut Vec<(u64, Owner)>) {
        let last = now.0 / TICK_US;
        if last < self.first {
            self.next = self.next.max(last);
            return;
        }
        let steps = (last - self.next + 1).min(SLOTS as u64);
        for step in 0..steps {
            let slot = ((self.next + step) % SLOTS as u64) as usize;
            if self.occupied[slot / 64] & (1 << (slot % 64)) == 0 {
                continue;
            }
            self.occupied[slot / 64] &= !(1 << (slot % 64));
            due.append(&mut self.slots[slot]);
        }
        self.next = last + 1;
        self.first = self.find_first();
    }

    /// When [`Wheel::take_due`] next has something to do. Every turn asks.
    #[inline]
    pub(crate) fn poll_deadline(&self) -> Option<Now> {
        (self.first != NOT_ARMED).then(|| Now(self.first * TICK_US))
    }

    /// The tick of the first entry, found 64 slots at a glance. The word of `next` comes twice: for
    /// the slots from it on, and in the end for those below it.
    fn find_first(&self) -> u64 {
        let next = (self.next % SLOTS as u64) as usize;
        let words = SLOTS / 64;
        let found = (0..=words).find_map(|step| {
            let word = self.occupied[(next / 64 + step) % words];
            let word = if step == 0 { word & (u64::MAX << (next % 64)) } else { word };
            let slot = (next / 64 + step) * 64 + word.trailing_zeros() as usize;
            (word != 0).then(|| self.next + (slot - next) as u64)
        });
        found.unwrap_or(NOT_ARMED)
    }
}

#[cfg(test)]
mod tests {
    use super::{NEVER, Owner, TICK_US, Timer, Wheel};
    use crate::ids::Id;
    use crate::sink::Now;

    fn fire(wheel: &mut Wheel, timer: &mut Timer, now: Now) -> bool {
        let mut due = Vec::new();
        wheel.take_due(now, &mut due);
        due.into_iter().any(|(tick, owner)| wheel.fired(timer, owner, tick, now))
    }

    #[test]
    fn a_timer_fires_once_and_never_early() {
        let owner = Owner::Client(Id::from_parts(0, 1));
        for deadline in [1_u64, 16_384, 100_000, 5_000_000, 60_000_000, 3_600_000_000] {
            let mut wheel = Wheel::new(Now(0));
            let mut timer = Timer::default();
            wheel.set(&mut timer, owner, Now(deadline));
            let mut fired_at = None;
            let mut now = Now(0);
            while let Some(next) = wheel.poll_deadline() {
                now = now.max(next);
                if fire(&mut wheel, &mut timer, now) {
                    assert!(fired_at.replace(now).is_none());
                }
            }
            let at = fired_at.map_or(0, |at| at.0);
            assert!(at >= deadline && at < deadline + 2 * TICK_US, "{deadline}: {at}");
        }
    }

    #[test]
    fn the_next_deadline_is_the_earliest_wherever_the_wheel_stands() {
        let owner = Owner::Client(Id::from_parts(0, 1));
        for start in [0, 1, 62, 63, 64, 65, 500, 1022, 1023, 1024, 5000_u64] {
            for ahead in [0, 1, 62, 63, 64, 127, 128, 900, 960, 961, 1022, 1023] {
                let mut wheel = Wheel::new(Now(start * TICK_US));
                for more in [ahead, 1023] {
                    let (mut timer, tick) = (Timer::default(), start + more);
                    wheel.set(&mut timer, owner, Now(tick * TICK_US));
                }
                let expected = Some(Now((start + ahead) * TICK_US));
                assert_eq!(wheel.poll_deadline(), expected, "{start} {ahead}");
            }
        }
    }

    #[test]
    fn a_deadline_that_moves_away_does_not_fire_at_its_old_time() {
        let owner = Owner::Client(Id::from_parts(0, 1));
        let mut wheel = Wheel::new(Now(0));
        let mut timer = Timer::default();
        wheel.set(&mut timer, owner, Now(100_000));
        wheel.set(&mut timer, owner, Now(500_000));
        assert!(!fire(&mut wheel, &mut timer, Now(200_000)));
        assert_eq!(timer.deadline(), Now(500_000));
        assert!(fire(&mut wheel, &mut timer, Now(520_000)));
    }

    #[test]
    fn a_deadline_that_moves_closer_or_is_cleared_is_kept() {
        let owner = Owner::Client(Id::from_parts(0, 1));
        let mut wheel = Wheel::new(Now(0));
        let mut timer = Timer::default();
        wheel.set(&mut timer, owner, Now(500_000));
        wheel.set(&mut timer, owner, Now(100_000));
        assert!(fire(&mut wheel, &mut timer, Now(120_000)));
        assert!(!fire(&mut wheel, &mut timer, Now(600_000)));
        wheel.set(&mut timer, owner, Now(700_000));
        timer.clear();
        assert!(!fire(&mut wheel, &mut timer, Now(800_000)));
        assert_eq!(timer.deadline(), NEVER);
        assert_eq!(wheel.poll_deadline(), None);
    }
}
