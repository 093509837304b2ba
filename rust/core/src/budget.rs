//! The budget: how many server connections the target's pools may hold together (I4).
//!
//! A permit is taken before a connect and given back after the server's end has been seen. This is
//! the ledger of one worker; the host-wide ledger in shared memory takes this module's place. Next
//! on the path: `pool.rs`.

use crate::config::BudgetLimit;
use crate::limits::BUDGET_REREAD_MS;
use crate::sink::Now;

/// The right to hold one server connection. Not `Clone`: giving it back consumes it.
#[derive(Debug)]
pub(crate) struct Permit(());

/// The ledger.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: BudgetLimit,
    allowed: u32,
    held: u32,
    read_at: Option<Now>,
}

/// What a target says of its connection limits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct TargetLimits {
    pub(crate) max_connections: u32,
    pub(crate) superuser_reserved: u32,
    pub(crate) reserved: u32,
}

/// Asks a target for its [`TargetLimits`]; `reserved_connections` exists from PostgreSQL 16 on.
pub(crate) const LIMITS_QUERY: &[u8] = b"SELECT current_setting('max_connections'), \
    current_setting('superuser_reserved_connections'), \
    current_setting('reserved_connections', true)";

impl Budget {
    /// With a percentage, one connection is allowed until the target has been asked.
    pub(crate) fn new(limit: BudgetLimit) -> Self {
        let allowed = match limit {
            BudgetLimit::Connections(n) => n.max(1),
            BudgetLimit::Percent(_) => 1,
        };
        Self { limit, allowed, held: 0, read_at: None }
    }

    /// A permit, if one is free.
    pub(crate) fn take(&mut self) -> Option<Permit> {
        if self.held >= self.allowed {
            return None;
        }
        self.held += 1;
        Some(Permit(()))
    }

    /// Gives a permit back; the server's connection must have ended.
    pub(crate) fn give_back(&mut self, permit: Permit) {
        let Permit(()) = permit;
        self.held = self.held.saturating_sub(1);
    }

    /// Whether a permit could be taken now.
    pub(crate) fn has_free(&self) -> bool {
        self.held < self.allowed
    }

    /// Whether more permits are out than are allowed (the limit fell).
    pub(crate) fn is_over(&self) -> bool {
        self.held > self.allowed
    }

    pub(crate) fn allowed(&self) -> u32 {
        self.allowed
    }

    pub(crate) fn held(&self) -> u32 {
        self.held
    }

    /// Whether the next server login should ask the target for its limits.
    pub(crate) fn wants_limits(&self, now: Now) -> bool {
        matches!(self.limit, BudgetLimit::Percent(_))
            && self.read_at.is_none_or(|at| now.since(at) >= BUDGET_REREAD_MS * 1000)
    }

    /// Applies what the target said; gives the new number if it changed.
    pub(crate) fn set_limits(&mut self, limits: TargetLimits, now: Now) -> Option<u32> {
        self.read_at = Some(now);
        let BudgetLimit::Percent(percent) = self.limit else { return None };
        let usable = limits
            .max_connections
            .saturating_sub(limits.superuser_reserved)
            .saturating_sub(limits.reserved);
        let allowed = u64::from(usable) * u64::from(percent) / 100;
        let allowed = u32::try_from(allowed).unwrap_or(u32::MAX).max(1);
        let before = std::mem::replace(&mut self.allowed, allowed);
        (before != allowed).then_some(allowed)
    }
}

#[cfg(test)]
mod tests {
    use super::{Budget, TargetLimits};
    use crate::config::BudgetLimit;
    use crate::sink::Now;

    #[test]
    fn permits_never_pass_the_limit() {
        let mut budget = Budget::new(BudgetLimit::Connections(2));
        let first = budget.take();
        let second = budget.take();
        assert!(first.is_some() && second.is_some() && budget.take().is_none());
        if let Some(permit) = first {
            budget.give_back(permit);
        }
        assert!(budget.take().is_some() && !budget.has_free());
    }

    #[test]
    fn percent_counts_only_what_an_ordinary_user_can_reach() {
        let mut budget = Budget::new(BudgetLimit::Percent(100));
        assert_eq!(budget.allowed(), 1);
        assert!(budget.wants_limits(Now(0)));
        let limits = TargetLimits { max_connections: 100, superuser_reserved: 3, reserved: 5 };
        assert_eq!(budget.set_limits(limits, Now(0)), Some(92));
        assert_eq!(budget.set_limits(limits, Now(0)), None);
        assert!(!budget.wants_limits(Now(1)));
        let mut half = Budget::new(BudgetLimit::Percent(50));
        assert_eq!(half.set_limits(limits, Now(0)), Some(46));
    }
}
