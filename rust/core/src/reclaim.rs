//! Reclaim: server connections that have lost their owner, and when their permits are free again.
//!
//! A dead worker's sockets are closed, but a backend notices that only when it next reads or
//! writes: what runs there is cancelled, twice, since the first signal may fall between two
//! statements. When it has had time to end, the permit is freed. The same happens to a connection
//! that this worker closed without seeing its end. Next on the path: `cancel.rs`.

use std::rc::Rc;

use ledger::{Orphan, Permit};

use crate::cancel::{Canceller, Purpose};
use crate::core::Core;
use crate::ids::{CancellerId, Conn};
use crate::limits::{RECLAIM_PATIENCE, RECLAIM_PAUSE_MS, RECLAIM_ROUNDS, RECLAIMS_MAX};
use crate::pool::Target;
use crate::sink::{Now, Sink};
use crate::timer::{Owner, Timer};

impl Core {
    /// Takes charge of permits without an owner, if there are any.
    pub(crate) fn reclaim(&mut self, now: Now, sink: &mut dyn Sink) {
        let orphanings = self.ledger.orphanings();
        if orphanings == self.orphanings || self.is_over() {
            return;
        }
        while self.reclaims < RECLAIMS_MAX {
            let Some(orphan) = self.ledger.adopt() else {
                self.orphanings = orphanings;
                return;
            };
            self.begin_reclaim(orphan, now, sink);
        }
    }

    fn begin_reclaim(&mut self, orphan: Orphan, now: Now, sink: &mut dyn Sink) {
        self.reclaims += 1;
        let (permit, target) = (orphan.permit, orphan.target);
        let (rounds, patience) = (RECLAIM_ROUNDS, RECLAIM_PATIENCE);
        let canceller = Canceller {
            purpose: Purpose::Orphan { permit, rounds, patience, target },
            key: orphan.key.map(|key| (key.pid, key.secret)),
            address: None,
            connected: false,
            sent: false,
            timer: Timer::default(),
        };
        let id = self.cancellers.insert_with(|_| canceller);
        self.reclaim_round(id, now, sink);
    }

    /// One more signal, or just time, for a connection without an owner.
    pub(crate) fn reclaim_round(&mut self, id: CancellerId, now: Now, sink: &mut dyn Sink) {
        let Some(canceller) = self.cancellers.get_mut(id) else { return };
        let Purpose::Orphan { rounds, patience, target, .. } = &mut canceller.purpose else {
            return;
        };
        let deadline = now.plus_ms(RECLAIM_PAUSE_MS);
        if canceller.connected && *patience > 0 {
            // Over a long way the signal takes longer than a backend gets to end.
            *patience -= 1;
            return self.wheel.set(&mut canceller.timer, Owner::Canceller(id), deadline);
        }
        if std::mem::take(&mut canceller.connected) {
            sink.close(Conn::Canceller(id));
        }
        if self.targets.is_empty() && canceller.key.is_some() {
            // As long as no address is known nobody can use the permit, and what runs there goes
            // on.
            return self.wheel.set(&mut canceller.timer, Owner::Canceller(id), deadline);
        }
        let is_its = |known: &&Target| self.keys.address_number(&known.address) == *target;
        let known = self.targets.iter().find(is_its);
        canceller.address = known.map(|known| Rc::clone(&known.address));
        if *rounds == 0 || crate::broken::is("reclaim") {
            let Some(canceller) = self.cancellers.remove(id) else { return };
            if let Purpose::Orphan { permit, .. } = canceller.purpose {
                self.reclaims -= 1;
                self.free_permit(permit, now, sink);
                self.reclaim(now, sink);
            }
            return;
        }
        *rounds -= 1;
        self.wheel.set(&mut canceller.timer, Owner::Canceller(id), deadline);
        if let (Some(address), true) = (&canceller.address, canceller.key.is_some()) {
            (canceller.connected, canceller.sent) = (true, false);
            self.stats.cancels += 1;
            sink.connect(Conn::Canceller(id), address);
        }
    }

    /// Gives up a permit whose server's end was not seen.
    pub(crate) fn orphan_permit(&mut self, permit: Permit, now: Now, sink: &mut dyn Sink) {
        self.ledger.orphan(permit, now.0);
        self.reclaim(now, sink);
    }
}
