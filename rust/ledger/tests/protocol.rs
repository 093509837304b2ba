//! The slot protocol under every interleaving of two or three processes (loom), and its rules one
//! by one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::atomic::AtomicU64;

use ledger::{
    CEILING_US, Claim, Ledger, Limit, Page, Permit, Published, Refused, SUPERVISOR, TargetLimits,
    Word, WorkerId, format, words_for,
};
use loom::sync::atomic::{AtomicU64 as LoomU64, Ordering, fence};
use loom::thread;

struct Loomed(LoomU64);

impl Word for Loomed {
    fn load(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
    fn store(&self, value: u64) {
        self.0.store(value, Ordering::Release);
    }
    fn replace(&self, old: u64, new: u64) -> bool {
        self.0.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
    fn add(&self, value: u64) -> u64 {
        self.0.fetch_add(value, Ordering::SeqCst)
    }
    fn set_bits(&self, bits: u64) -> u64 {
        self.0.fetch_or(bits, Ordering::SeqCst)
    }
    fn clear_bits(&self, bits: u64) {
        self.0.fetch_and(!bits, Ordering::SeqCst);
    }
    fn swap(&self, value: u64) -> u64 {
        self.0.swap(value, Ordering::SeqCst)
    }
    fn fence() {
        fence(Ordering::SeqCst);
    }
}

fn loomed(slots: u32) -> impl Fn(WorkerId) -> Page<Loomed> + Clone {
    let words: Vec<_> = (0..words_for(slots)).map(|_| Loomed(LoomU64::new(0))).collect();
    let words: &'static [Loomed] = Box::leak(words.into());
    format(words, slots, [7; 32]);
    let page = move |me| Page::new(words, me).unwrap();
    page(SUPERVISOR).set_limit(Limit::Connections(slots));
    page
}

fn plain(slots: u32) -> impl Fn(WorkerId) -> Ledger {
    let words: Vec<_> = (0..words_for(slots)).map(|_| AtomicU64::new(0)).collect();
    let words: &'static [AtomicU64] = Box::leak(words.into());
    format(words, slots, [7; 32]);
    let page = move |me| Page::new(words, me).unwrap();
    page(SUPERVISOR).set_limit(Limit::Connections(slots));
    page
}

const NEVER: u64 = u64::MAX;

#[test]
fn of_two_workers_that_reach_for_the_last_permit_one_gets_it() {
    loom::model(|| {
        let page = loomed(1);
        let other = page.clone();
        let thread = thread::spawn(move || other(1).take(1, NEVER).is_ok());
        let mine = page(0).take(1, NEVER).is_ok();
        assert!(mine != thread.join().unwrap(), "one permit, one holder");
        assert_eq!(page(SUPERVISOR).busy(), 1);
    });
}

#[test]
fn a_permit_freed_while_a_worker_begins_to_want_is_found_or_announced() {
    loom::model(|| {
        let page = loomed(1);
        let holder = page(0);
        let permit = holder.take(1, NEVER).unwrap();
        let wanting = page(1);
        let thread = thread::spawn(move || {
            if wanting.take(1, 1).is_ok() {
                return true;
            }
            wanting.publish_want(1, 9, false, false);
            wanting.take(1, 1).is_ok()
        });
        let poked = holder.free(permit, 1);
        let got = thread.join().unwrap();
        assert!(got || poked == Some(1), "the permit is free and nobody was told");
    });
}

#[test]
fn an_offered_permit_has_one_holder_however_its_receiver_dies() {
    loom::model(|| {
        let page = loomed(1);
        let sender = page(0);
        sender.begin(1);
        page(1).begin(2);
        let mut permit = sender.take(1, NEVER).unwrap();
        assert!(sender.confirm(&mut permit, None, 0));
        let supervisor = page(SUPERVISOR);
        let burial = thread::spawn(move || supervisor.bury(1));
        let held = match sender.offer(permit, 1) {
            // Nothing could be delivered.
            Ok(offer) => sender.take_back(offer).is_some(),
            Err(permit) => sender.is_valid(&permit),
        };
        let orphaned = burial.join().unwrap();
        assert_eq!(orphaned, u32::from(!held), "held by one, or orphaned");
        assert!(page(2).adopt().is_none(), "the socket may still be the sender's");
        assert_eq!(sender.adopt().is_some(), !held);
    });
}

#[test]
fn a_delivered_permit_is_accepted_or_its_receivers_to_reclaim_when_its_sender_dies() {
    loom::model(|| {
        let page = loomed(1);
        let (sender, receiver) = (page(0), page(1));
        receiver.begin(1);
        let mut permit = sender.take(1, NEVER).unwrap();
        assert!(sender.confirm(&mut permit, Some((7, b"key")), 3));
        let offer = sender.offer(permit, 1).unwrap();
        let supervisor = page(SUPERVISOR);
        let burial = thread::spawn(move || supervisor.bury(0));
        let accepted = receiver.accept(offer).is_some();
        assert_eq!(burial.join().unwrap(), u32::from(!accepted));
        assert!(page(2).adopt().is_none(), "the socket may be in the receiver's inbox");
        let orphan = receiver.adopt();
        assert_eq!(orphan.is_some(), !accepted);
        assert!(orphan.is_none_or(|orphan| orphan.key.is_some() && orphan.target == 3));
        assert!(receiver.accept(offer).is_none(), "the same offer twice");
    });
}

#[test]
fn one_of_two_helpers_serves_a_want() {
    loom::model(|| {
        let page = loomed(1);
        page(2).publish_want(5, 9, false, false);
        let other = page(1);
        let claim = |page: &Page<Loomed>| {
            page.oldest_want(|_| true).is_some_and(|want| page.claim_want(&want, Claim::Server))
        };
        let thread = thread::spawn(move || claim(&other));
        let mine = claim(&page(0));
        assert!(mine != thread.join().unwrap());
    });
}

#[test]
fn one_adopts_what_a_dead_worker_left_and_its_death_leaves_it_again() {
    loom::model(|| {
        let page = loomed(1);
        let dead = page(0);
        let permit = dead.take(1, NEVER);
        assert!(permit.is_ok_and(|_| page(SUPERVISOR).bury(0) == 1));
        let other = page(2);
        let thread = thread::spawn(move || other.adopt().is_some());
        let mine = page(1).adopt();
        assert!(mine.is_some() != thread.join().unwrap());
        let adopter = if mine.is_some() { 1 } else { 2 };
        assert_eq!(page(SUPERVISOR).bury(adopter), 1);
        let orphan = page(3).adopt().unwrap();
        page(3).free(orphan.permit, 2);
        assert_eq!(page(SUPERVISOR).busy(), 0);
    });
}

#[test]
fn a_fallen_limit_is_never_passed_by_new_takers() {
    let page = plain(8);
    let worker = page(0);
    let mut permits: Vec<_> = (0..8).map(|_| worker.take(1, NEVER).unwrap()).collect();
    page(SUPERVISOR).set_limit(Limit::Connections(3));
    for _ in 0..5 {
        assert!(worker.take(1, NEVER).is_err());
        // The low ones go first, so that those above the limit stay longest.
        let permit = permits.remove(0);
        worker.free(permit, 1);
    }
    assert!(worker.take(1, NEVER).is_err(), "three are held, all of them above the limit");
    worker.free(permits.remove(0), 1);
    let last = worker.take(1, NEVER);
    assert!(last.is_ok_and(|permit| !worker.is_over(&permit)));
    assert!(worker.take(1, NEVER).is_err());
    assert_eq!(worker.busy(), 3);
}

#[test]
fn a_freed_permit_is_left_to_the_worker_that_has_waited_longer_for_a_while() {
    let page = plain(1);
    let (holder, old, young) = (page(0), page(1), page(2));
    let permit = holder.take(1, NEVER).unwrap();
    old.publish_want(100, 9, false, false);
    young.publish_want(200, 9, false, false);
    assert_eq!(holder.free(permit, 1_000), Some(1));
    assert!(young.take(1_001, 200) == Err(Refused::Reserved), "the older one goes first");
    assert!(holder.take(1_001, NEVER).is_err(), "who needs it for nobody goes last");
    let permit = old.take(1_002, 100).unwrap();
    old.clear_want();
    assert_eq!(old.free(permit, 2_000), Some(2));
    assert!(page(3).take(2_000 + 30_000, NEVER).is_ok(), "an offer that is not taken lapses");
}

#[test]
fn a_percentage_counts_only_what_an_ordinary_user_can_reach() {
    let page = plain(200);
    let worker = page(0);
    assert_eq!(worker.set_limit(Limit::Percent(50)), Some(1));
    assert!(worker.claim_limits_look(5, 100) && !worker.claim_limits_look(6, 100));
    let limits = TargetLimits { max_connections: 100, superuser_reserved: 3, reserved: 5 };
    assert_eq!(worker.set_target_limits(limits), Some(46));
    assert_eq!(worker.set_target_limits(limits), None);
    assert_eq!(worker.set_limit(Limit::Percent(100)), Some(92));
    assert!(worker.claim_limits_look(105, 100));
    worker.distrust_limits();
    assert!(worker.claim_limits_look(106, 100));
    assert_eq!(worker.set_limit(Limit::Connections(1_000)), Some(200), "the page has no more");
    assert!(!worker.claim_limits_look(1_000, 100), "an absolute number needs no target");
}

#[test]
fn a_target_that_takes_no_more_lowers_the_limit_until_more_is_tried() {
    let page = plain(20);
    let worker = page(0);
    let mut held: Vec<_> = (0..11).map(|_| worker.take(0, 1).unwrap()).collect();
    worker.lower_ceiling(5);
    worker.free(held.pop().unwrap(), 5);
    assert_eq!((worker.allowed(), worker.configured()), (10, 20));
    assert!(held.iter().all(|permit| !worker.is_over(permit)), "what there is stays");
    assert_eq!(worker.take(5 + CEILING_US - 1, 1).err(), Some(Refused::Full));
    let more = worker.take(5 + CEILING_US, 1).unwrap();
    assert_eq!(worker.allowed(), 11, "an eighth more, at least one");
    assert!(worker.take(5 + CEILING_US, 1).is_err(), "once in that time");
    worker.free(more, 0);
    for turn in 2..20 {
        while worker.take(5 + turn * CEILING_US, 1).is_ok_and(|permit| {
            held.push(permit);
            true
        }) {}
    }
    assert_eq!((worker.allowed(), held.len()), (20, 20), "then as the settings say");
}

#[test]
fn only_what_is_beyond_the_last_refusal_probes() {
    let page = plain(20);
    let worker = page(0);
    let mut held: Vec<_> = (0..11).map(|_| worker.take(0, 1).unwrap()).collect();
    assert!(held.iter().all(Permit::is_probe), "nothing is known");
    worker.lower_ceiling(0);
    for _ in 0..2 {
        worker.free(held.pop().unwrap(), 0);
    }
    held.push(worker.take(0, 1).unwrap());
    assert_eq!(held.last().map(Permit::is_probe), Some(false), "the tenth was there");
    held.push(worker.take(CEILING_US, 1).unwrap());
    assert_eq!(held.last().map(Permit::is_probe), Some(true), "the eleventh was not");
}

#[test]
fn a_target_that_takes_not_even_one_is_left_alone_for_a_moment() {
    let page = plain(4);
    let worker = page(0);
    let refused = worker.take(0, 1).unwrap();
    worker.lower_ceiling(1_000);
    worker.free(refused, 1_000);
    assert_eq!(page(1).take(50_999, 1).err(), Some(Refused::Reserved));
    let next = page(1).take(51_000, 1).unwrap();
    assert!(!next.is_probe(), "its refusal counts as its own");
}

#[test]
fn a_want_that_no_permit_would_serve_keeps_none_from_the_others() {
    let page = plain(1);
    let (old, young) = (page(0), page(1));
    let held = page(2).take(0, 1).unwrap();
    old.publish_want(100, 9, true, false);
    young.publish_want(200, 9, false, false);
    assert_eq!(page(2).free(held, 1_000), Some(1));
    let taken = young.take(1_000, 200).unwrap();
    let want = page(2).oldest_want(|_| true).unwrap();
    assert_eq!((want.worker, want.claim), (0, Claim::ServerOnly));
    assert_eq!(old.publish_want(100, 9, true, false), Published::Unchanged);
    assert_eq!(old.publish_want(100, 9, false, false), Published::Opened, "now it would");
    assert_eq!(page(2).free(taken, 2_000), Some(0));
}

#[test]
fn a_new_limit_ends_what_a_refusal_has_lowered_and_one_permit_is_always_tried() {
    let page = plain(8);
    let worker = page(0);
    let only = worker.take(0, 1).unwrap();
    worker.lower_ceiling(0);
    assert_eq!(worker.allowed(), 1);
    worker.free(only, 0);
    page(SUPERVISOR).set_limit(Limit::Connections(5));
    assert_eq!(worker.allowed(), 5);
}

#[test]
fn a_page_that_was_not_prepared_is_refused() {
    let words: &'static [AtomicU64] = Box::leak((0..100).map(|_| AtomicU64::new(0)).collect());
    assert!(Ledger::new(words, 0).is_none());
    assert!(Ledger::new(words, 65).is_none(), "no such worker");
    assert!(plain(1)(SUPERVISOR).secret() == [7; 32]);
}

#[test]
fn a_poke_is_sent_once_until_the_worker_has_looked() {
    let page = plain(1);
    let (me, other) = (page(0), page(1));
    assert!(!me.rung(1) && me.rung(1));
    other.silence();
    assert!(!me.rung(1));
    assert!(me.rung(200), "no such worker");
}
