//! Planted defects: proof that the simulator finds what it is there to find.
//!
//! Only a build with the feature `broken` can switch one on; elsewhere the question is a constant
//! `false` and costs nothing.

#[cfg(feature = "broken")]
mod planted {
    use std::cell::Cell;

    thread_local! {
        static PLANTED: Cell<Option<&'static str>> = const { Cell::new(None) };
    }

    /// Plants one defect in this thread's cores: `release_rule`, `reply_queue`, `statement_map`,
    /// `handover`, `reclaim`, `want`, `ceiling` or `restore`.
    pub fn plant(name: Option<&'static str>) {
        PLANTED.with(|planted| planted.set(name));
    }

    pub(crate) fn is(name: &str) -> bool {
        PLANTED.with(|planted| planted.get() == Some(name))
    }
}

#[cfg(feature = "broken")]
pub(crate) use planted::is;
#[cfg(feature = "broken")]
pub use planted::plant;

/// Whether a defect is planted.
#[cfg(not(feature = "broken"))]
#[inline(always)]
pub(crate) const fn is(_name: &str) -> bool {
    false
}
