//! The servers' room: how many ordinary backends they take, perhaps fewer than the proxy may ask
//! for. Others use them, too, or a role has a limit of its own.
//!
//! Whoever comes beyond is refused with 53300. How often that happens is bounded: a proxy that only
//! tried again and again would keep a full server busy with logins. Next on the path: `server.rs`.

use std::collections::{BTreeSet, VecDeque};

use crate::rng::Rng;
use crate::server::Server;
use crate::world::World;

/// So many seeds of a hundred have servers with little room.
const ROOM_PERCENT: u64 = 20;
/// More than that is room for every limit that plans have.
const PLACES_MAX: u64 = 5;
/// The room changes in so many of a thousand events about settings.
const CHANGES_PERMILLE: u64 = 60;
/// Refused logins in one second: five under way at first, four, three, …; then one in 50 ms as long
/// as there is no room at all.
const REFUSALS_MAX: usize = 35;
const SECOND_US: u64 = 1_000_000;

/// How many backends there may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Room {
    /// It is a limit of each role, not of all servers together.
    by_role: bool,
    places: u64,
}

impl Room {
    /// The room of a run; none if there is enough. Its chance is its own, so that a seed without it
    /// runs as if there were no such thing.
    pub(crate) fn draw(rng: &Rng) -> Option<Self> {
        let mut own = Rng::new(rng.clone().next_u64());
        let is_little = own.percent(ROOM_PERCENT);
        let (by_role, places) = (own.percent(40), 1 + own.below(PLACES_MAX));
        is_little.then_some(Self { by_role, places })
    }
}

/// Whom the servers would refuse now.
#[derive(Default, Debug)]
pub(crate) struct Full {
    /// Everybody, before they ask for a password.
    pub(crate) for_all: bool,
    /// These users, behind their password.
    pub(crate) users: BTreeSet<String>,
}

/// Refused logins of the last second.
#[derive(Default, Debug)]
pub(crate) struct Refusals(VecDeque<u64>);

impl World {
    /// Whom the servers would refuse now.
    pub(crate) fn full(&self) -> Full {
        let Some(Room { by_role, places }) = self.plan.room else { return Full::default() };
        let living = || self.servers.iter().filter(|server| server.is_living());
        if !by_role {
            let there = living().filter(|server| server.has_begun()).count();
            return Full { for_all: there as u64 >= places, users: BTreeSet::new() };
        }
        let is_full = |user: &String| {
            let is_theirs = |server: &&Server| server.is_ready() && server.user == *user;
            living().filter(is_theirs).count() as u64 >= places
        };
        let users = self.plan.config.credentials.iter().map(|credential| &credential.user);
        Full { for_all: false, users: users.filter(|user| is_full(user)).cloned().collect() }
    }

    /// Others come to the servers, or leave. In the calm somebody can be served.
    pub(crate) fn room_changes(&mut self) {
        let Some(mut room) = self.plan.room.take() else { return };
        if self.stormy && self.rng.permille(CHANGES_PERMILLE) {
            room.places = self.rng.below(1 + PLACES_MAX);
            self.net.note(|| format!("the servers have room: {room:?}"));
        }
        self.plan.room = Some(room);
    }

    /// The storm is over: somebody can be served.
    pub(crate) fn leave_room(&mut self) {
        if let Some(room) = &mut self.plan.room {
            room.places = room.places.max(1);
        }
    }

    /// A login was refused: not the next of too many.
    pub(crate) fn note_refusal(&mut self, at: usize) {
        let (now, refused) = (self.now, &mut self.refusals.0);
        refused.push_back(now);
        while refused.front().is_some_and(|then| then + SECOND_US < now) {
            refused.pop_front();
        }
        let count = refused.len();
        self.net.note(|| format!("server {at} has no room, {count} refused in a second"));
        if count > REFUSALS_MAX {
            self.net.fail(format!("{count} logins refused in a second"));
        }
    }
}
