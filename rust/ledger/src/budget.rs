//! The limit: how many permits there are, from the configuration and from what the target says.
//!
//! A target may take fewer connections than it says, for others use it, too, or a role has a limit
//! of its own. Each refusal lowers a *ceiling* to what is taken; as long as somebody needs more it
//! rises again, little by little. So a server that is full is one more reason why permits are few,
//! and those there are go from worker to worker as ever. A permit beyond what there was at the last
//! refusal is a *probe*: if it is refused as well, that says nothing new.
//!
//! Next on the path: `slots.rs`.

use crate::Page;
use crate::layout::{ALLOWED, CEILING, CEILING_AT, LIMIT, LIMITS_READ_AT, USABLE};
use crate::word::Word;

/// How many server connections the configuration allows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Limit {
    /// So many, at least 1.
    Connections(u32),
    /// Percent (1–100) of what ordinary users may reach of the target's `max_connections`.
    Percent(u8),
}

/// What a target says of its connection limits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TargetLimits {
    /// `max_connections`.
    pub max_connections: u32,
    /// `superuser_reserved_connections`.
    pub superuser_reserved: u32,
    /// `reserved_connections`, 0 where the server has none.
    pub reserved: u32,
}

const PERCENT: u64 = 1 << 32;
/// How long a ceiling stands before more is tried, in microseconds.
pub const CEILING_US: u64 = 1_000_000;
/// The ceiling rises by one in so many, at least by one.
const CEILING_STEP: u64 = 8;
/// How long nothing is tried once a target that has none of these connections refuses one, in
/// microseconds: pools of all workers would take turns and keep it busy with logins.
const SHUT_US: u64 = 50_000;
/// The ceiling's bit that says so.
const SHUT: u64 = 1 << 63;
/// The lower half of a word.
const HALF: u64 = (1 << 32) - 1;

impl<W: Word> Page<W> {
    /// Sets the configured limit. With a percentage one connection is allowed until the target has
    /// been asked. Gives the new number of permits if it changed.
    ///
    /// Only one process may do it, in the order of the settings: of two, the one that lags behind
    /// would put an old limit back.
    pub fn set_limit(&self, limit: Limit) -> Option<u32> {
        self.head(LIMIT).store(match limit {
            Limit::Connections(connections) => u64::from(connections),
            Limit::Percent(percent) => PERCENT | u64::from(percent),
        });
        self.apply()
    }

    /// Sets the limit of a page that has none yet.
    pub fn set_first_limit(&self, limit: Limit) {
        if self.head(LIMIT).load() == 0 {
            self.set_limit(limit);
        }
    }

    /// Whether the limit depends on the target.
    #[must_use]
    pub fn is_percent(&self) -> bool {
        self.head(LIMIT).load() & PERCENT != 0
    }

    fn apply(&self) -> Option<u32> {
        let limit = self.head(LIMIT).load();
        let usable = self.head(USABLE).load();
        let allowed = match limit & PERCENT {
            0 => limit,
            _ => usable * (limit & 0xFF) / 100,
        };
        let allowed = allowed.clamp(1, u64::from(self.capacity.max(1)));
        let before = self.head(ALLOWED).swap(allowed);
        if before != allowed {
            self.head(CEILING).store(0);
        }
        (before != allowed).then_some(u32::try_from(allowed).unwrap_or(u32::MAX))
    }

    /// Whether this worker shall ask the target for its limits now; true for one worker in `every`
    /// microseconds.
    #[must_use]
    pub fn claim_limits_look(&self, now: u64, every: u64) -> bool {
        let at = self.head(LIMITS_READ_AT).load();
        self.is_percent()
            && (at == 0 || now >= at.saturating_add(every))
            && self.head(LIMITS_READ_AT).replace(at, now.max(1))
    }

    /// The target may have been restarted with other limits: they are asked for at the next chance.
    pub fn distrust_limits(&self) {
        self.head(LIMITS_READ_AT).store(0);
    }

    /// Applies what the target said; gives the new number of permits if it changed.
    pub fn set_target_limits(&self, limits: TargetLimits) -> Option<u32> {
        let usable = limits
            .max_connections
            .saturating_sub(limits.superuser_reserved)
            .saturating_sub(limits.reserved);
        self.head(USABLE).store(u64::from(usable));
        self.apply()
    }
    /// Permits allowed now, at least 1: what the settings say, or fewer if the target takes fewer.
    #[must_use]
    pub fn allowed(&self) -> u32 {
        match self.head(CEILING).load() & HALF {
            0 => self.configured(),
            ceiling => self.configured().min(ceiling as u32),
        }
    }

    /// Permits that the settings allow, at least 1.
    #[must_use]
    pub fn configured(&self) -> u32 {
        let allowed = u32::try_from(self.head(ALLOWED).load()).unwrap_or(u32::MAX);
        allowed.clamp(1, self.capacity)
    }

    /// The target refused this worker a connection because it has too many: no more are tried for
    /// `CEILING_US` than there are now, without that one, whose permit still counts.
    pub fn lower_ceiling(&self, now: u64) {
        let others = u64::from(self.busy().saturating_sub(1));
        self.head(CEILING_AT).store(now);
        self.head(CEILING).store(match others {
            0 => SHUT | 1 << 32 | 1,
            _ => others << 32 | others,
        });
    }

    /// Whether so many permits are more than there were when the target last refused one, or it has
    /// refused none for long.
    pub(crate) fn is_probing(&self, busy: u32) -> bool {
        u64::from(busy) > (self.head(CEILING).load() & !SHUT) >> 32
    }

    /// Whether the target has just refused a connection and has none.
    pub(crate) fn is_shut(&self, now: u64) -> bool {
        self.head(CEILING).load() & SHUT != 0
            && now < self.head(CEILING_AT).load().saturating_add(SHUT_US)
    }

    /// Somebody needs a permit: if the ceiling has stood for long enough it rises; tells whether it
    /// did.
    pub(crate) fn raise_ceiling(&self, now: u64) -> bool {
        let (word, at) = (self.head(CEILING).load(), self.head(CEILING_AT).load());
        let ceiling = word & HALF;
        let is_due = ceiling != 0 && now >= at.saturating_add(CEILING_US);
        if !is_due || !self.head(CEILING_AT).replace(at, now) {
            return false;
        }
        let raised = ceiling + (ceiling / CEILING_STEP).max(1);
        let is_over = raised >= u64::from(self.configured());
        self.head(CEILING).store(if is_over { 0 } else { word & !HALF & !SHUT | raised });
        true
    }
}
