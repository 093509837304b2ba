//! What both drivers count. Next on the path: `driver.rs`.

/// Plain counters.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Clients accepted.
    pub(crate) accepted: u64,
    /// Receives, whatever came of them.
    pub(crate) receives: u64,
    /// Sends, whatever came of them.
    pub(crate) sends: u64,
    /// Bytes copied because a peer did not take them at once.
    pub(crate) spilled_bytes: u64,
    /// How often accepting has paused.
    pub(crate) accept_pauses: u64,
    /// Mails taken from the inbox.
    pub(crate) mails: u64,
    /// Connections handed to other workers.
    pub(crate) passes: u64,
}

impl Counters {
    /// By name, with how many closed connections linger.
    pub(crate) fn rows(&self, lingering: usize) -> Vec<(&'static str, u64)> {
        vec![
            ("engine_accepted", self.accepted),
            ("engine_receives", self.receives),
            ("engine_sends", self.sends),
            ("engine_spilled_bytes", self.spilled_bytes),
            ("engine_accept_pauses", self.accept_pauses),
            ("engine_lingering", lingering as u64),
            ("engine_mails", self.mails),
            ("engine_passes", self.passes),
        ]
    }
}
