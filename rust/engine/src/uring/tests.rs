//! What the io_uring driver promises when more happens at once than its ring or its blocks hold,
//! and when it ends while the kernel is at work for it. Next on the path: `testbed.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use proxy_core::ids::Conn;

use super::Uring;
use super::buffers::Size;
use super::inspect::with_rings_of;
use super::ring::{Done, ENTRIES, Entries, Key};
use super::socket::SocketId;
use crate::driver::Driver;
use crate::engine::clock;
use crate::limits::{
    BUFFER_BYTES, BUFFERS, LINGER_MS, SERVER_LOOK_MS, TURN_BYTES_MAX, UNSUITED_MAX,
};
use crate::listen::Listener;
use crate::ring::Command;
use crate::testbed::{Inspect, LARGE, Told, client, echo, pattern};

type Bed = crate::testbed::Bed<Uring>;

/// Far fewer entries than connections.
const SMALL: Entries = (8, 16);
/// More connections than blocks.
const MANY: u32 = 200;

/// Gives a bed so many clients, numbered from 0; returns their other ends, which do not block.
fn adopt(bed: &mut Bed, count: u32) -> Vec<UnixStream> {
    let adopt_one = |number| {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        bed.engine.parts().1.adopt(client(number), ours.into());
        theirs
    };
    let peers = (0..count).map(adopt_one).collect();
    bed.until(|bed| bed.engine.parts().1.is_at_rest());
    peers
}

/// The kernel has nothing but the bells and the listener.
fn is_empty(bed: &mut Bed) -> bool {
    let driver = bed.engine.parts().1;
    driver.sockets.len() == 0 && driver.holds_nothing() && driver.is_at_rest()
}

#[test]
fn more_ends_at_once_than_the_ring_holds_are_all_told_behind_the_last_bytes() {
    with_rings_of(SMALL, || {
        let mut bed = Bed::new(|told, _, sink| {
            if let Told::Eof(id) = told {
                sink.close(Conn::Client(*id));
            }
        });
        for mut peer in adopt(&mut bed, MANY) {
            peer.write_all(b"last words").unwrap();
        }
        let driver = bed.engine.parts().1;
        driver.wait(0).unwrap();
        assert!(driver.ring.is_overflown(), "the ring holds them all");
        bed.until(|bed| bed.told().len() == 2 * MANY as usize);
        bed.until(is_empty);
        for number in 0..MANY {
            let words = Told::Bytes(client(number), b"last words".to_vec());
            assert_eq!(bed.count(&words), 1, "client {number}");
        }
        assert_eq!(bed.told().len(), 2 * MANY as usize, "nothing is told twice");
    });
}

fn all_who_speak_at_once_are_answered(entries: Entries) {
    const LEN: usize = 4_000;
    with_rings_of(entries, || {
        // Two pieces, too large to be copied together: their list is read at the submission.
        let mut bed = Bed::new(|told, chunk, sink| {
            if let (Told::Bytes(conn, bytes), Some(chunk)) = (told, chunk) {
                sink.send(*conn, chunk.id, 0..chunk.bytes.len());
                sink.send_own(*conn, bytes);
            }
        });
        let mut peers = adopt(&mut bed, MANY);
        for round in 0..3 {
            let said = |number: usize| pattern(LEN + 251).split_off((7 * number + round) % 251);
            let said = |number| said(number)[..LEN].to_vec();
            for (number, peer) in peers.iter_mut().enumerate() {
                peer.write_all(&said(number)).unwrap();
            }
            for (number, peer) in peers.iter_mut().enumerate() {
                let heard = bed.read(peer, 2 * LEN);
                assert!(heard == said(number).repeat(2), "client {number} hears something else");
            }
        }
        assert_eq!(bed.told().len(), 3 * MANY as usize);
        bed.until(|bed| bed.engine.parts().1.is_at_rest());
        assert!(bed.engine.parts().1.holds_nothing(), "a block is lost");
    });
}

#[test]
fn more_speakers_at_once_than_there_are_blocks_are_all_answered() {
    assert!(MANY > u32::from(BUFFERS));
    all_who_speak_at_once_are_answered(ENTRIES);
}

#[test]
fn more_sends_in_a_turn_than_the_ring_takes_all_go_out_with_their_own_bytes() {
    all_who_speak_at_once_are_answered(SMALL);
}

#[test]
fn receives_that_waited_for_their_turn_come_behind_other_news() {
    let mut bed = Bed::new(|_, _, _| {});
    bed.settle();
    bed.commands.send(Command::Publish).unwrap();
    let driver = bed.engine.parts().1;
    driver.wait(0).unwrap();
    let waited = Key::Recv(SocketId::from_parts(7, 1));
    let (result, more, nonempty, buffer) = (0, false, false, None);
    driver.arrived.push_back(Done { key: waited, result, more, nonempty, buffer });
    let told: Vec<Key> = std::iter::from_fn(|| driver.next_done().map(|done| done.key)).collect();
    assert_eq!(told, [Key::Wake, waited]);
}

#[test]
fn a_client_that_waits_for_a_worker_that_hangs_is_accepted_by_another() {
    let mut hangs = Bed::new(|_, _, _| {});
    hangs.settle();
    let mut lives = Bed::new(|_, _, _| {});
    let shared = Listener::new(hangs.listener.try_clone().unwrap().into(), false).unwrap();
    lives.engine.parts().1.set_listeners(vec![(2, shared)]).unwrap();
    lives.settle();
    let clients = [hangs.client(), hangs.client(), hangs.client()];
    lives.until(|bed| bed.counter("engine_accepted") == 3);
    assert_eq!(hangs.counter("engine_accepted"), 0);
    drop(clients);
}

/// A bed whose kernel has something of every kind to do: receives, looks, a listener, sends that
/// wait for room, and sends that were not submitted yet; some bytes are held, too.
fn busy() -> (Bed, Vec<UnixStream>) {
    let mut bed = Bed::new(echo);
    let mut peers = adopt(&mut bed, 60);
    let driver = bed.engine.parts().1;
    for number in 0..20 {
        driver.send_own(client(number), &pattern(LARGE / 8));
    }
    driver.submit(None);
    for _ in 0..3 {
        bed.engine.turn(0).unwrap();
    }
    let driver = bed.engine.parts().1;
    let waits = |number| Inspect::queued(driver, client(number)) > 0;
    assert!((0..20).all(waits), "the peers take it all");
    for (number, peer) in (0..).zip(&mut peers).skip(20).take(20) {
        driver.pause_read(client(number));
        peer.write_all(b"held").unwrap();
    }
    bed.engine.turn(0).unwrap();
    let driver = bed.engine.parts().1;
    for number in 40..60 {
        driver.send_own(client(number), b"not submitted");
    }
    driver.submit(None);
    driver.reconcile();
    assert!(driver.ring.outstanding() > 60);
    (bed, peers)
}

/// Whether all descriptors of ours are closed: nobody holds the other ends any more.
fn all_end(peers: Vec<UnixStream>) -> bool {
    peers.into_iter().all(|mut peer| {
        peer.set_nonblocking(false).unwrap();
        // It is a reset where we have not read all.
        let _ = peer.read_to_end(&mut Vec::new());
        peer.write_all(b"anybody?").is_err()
    })
}

#[test]
fn a_driver_that_ends_takes_everything_back_from_the_kernel_first() {
    for entries in [ENTRIES, SMALL] {
        with_rings_of(entries, || {
            let (mut bed, peers) = busy();
            let driver = bed.engine.parts().1;
            assert!(driver.end(), "the kernel goes on with {}", driver.ring.outstanding());
            assert_eq!(driver.ring.outstanding(), 0);
            drop(bed);
            assert!(all_end(peers));
        });
    }
}

#[test]
fn a_driver_that_cannot_take_everything_back_still_ends_its_connections() {
    let (bed, peers) = busy();
    let mut driver = bed.engine.driver;
    // The ring serves its own thread only, so that nothing can be taken back here.
    let elsewhere = std::thread::spawn(move || driver.end());
    assert!(!elsewhere.join().unwrap());
    assert!(all_end(peers));
}

/// Everything that a bed has been told to have arrived.
fn heard(bed: &mut Bed) -> Vec<u8> {
    let bytes = bed.told().iter().filter_map(|told| match told {
        Told::Bytes(_, bytes) => Some(bytes.as_slice()),
        _ => None,
    });
    bytes.flatten().copied().collect()
}

#[test]
fn who_sends_much_is_received_into_large_blocks_until_he_does_not() {
    let mut bed = Bed::new(|_, _, _| {});
    let mut peers = adopt(&mut bed, 1);
    let mut said = Vec::new();
    let mut size_after = |bytes: &[u8]| {
        bed.write(&mut peers[0], bytes);
        said.extend_from_slice(bytes);
        bed.until(|bed| heard(bed).len() == said.len() && bed.engine.parts().1.is_at_rest());
        assert!(heard(&mut bed) == said, "a byte is lost, or comes twice");
        let socket = bed.engine.parts().1.find(client(0)).unwrap().1;
        assert!(!socket.is_missized(), "the kernel has not been told");
        socket.size()
    };
    let much = pattern(usize::from(UNSUITED_MAX) * BUFFER_BYTES);
    let little = [b'x'; 100];
    assert_eq!(size_after(&little), Size::Small);
    assert_eq!(size_after(&much), Size::Large);
    assert_eq!(size_after(&much), Size::Large);
    for number in 1..UNSUITED_MAX {
        assert_eq!(size_after(&little), Size::Large, "after {number}");
    }
    assert_eq!(size_after(&little), Size::Small);
    assert_eq!(size_after(&little), Size::Small);
}

#[test]
fn received_bytes_that_wait_for_their_turn_outlast_the_large_blocks_giving_memory_back() {
    // As many as have the kernel fill small blocks with all that a turn may receive.
    const CROWD: u32 = (TURN_BYTES_MAX / (2 * BUFFER_BYTES)) as u32;
    let mut bed = Bed::new(|_, _, _| {});
    let mut peers = adopt(&mut bed, CROWD + 1);
    let bulky = CROWD;
    let heard = |bed: &mut Bed| {
        let of_bulky = |told: &Told| match told {
            Told::Bytes(conn, bytes) if *conn == client(bulky) => bytes.clone(),
            _ => Vec::new(),
        };
        bed.told().iter().flat_map(of_bulky).collect::<Vec<u8>>()
    };
    let mut said = pattern(2 * usize::from(UNSUITED_MAX) * BUFFER_BYTES);
    bed.write(&mut peers[bulky as usize], &said);
    bed.until(|bed| heard(bed).len() == said.len() && bed.engine.parts().1.is_at_rest());
    let driver = bed.engine.parts().1;
    assert_eq!(driver.find(client(bulky)).unwrap().1.size(), Size::Large);
    driver.pool.shrink();
    for peer in &mut peers[..bulky as usize] {
        assert_eq!(peer.write(&pattern(2 * BUFFER_BYTES)).unwrap(), 2 * BUFFER_BYTES);
    }
    peers[bulky as usize].write_all(b"not a byte of this may change").unwrap();
    said.extend_from_slice(b"not a byte of this may change");
    bed.engine.parts().1.wait(0).unwrap();
    bed.engine.complete();
    let driver = bed.engine.parts().1;
    assert!(!driver.arrived.is_empty(), "all is told in one turn");
    driver.handle_timeouts(clock().plus_ms(SERVER_LOOK_MS));
    bed.until(|bed| heard(bed).len() == said.len());
    assert!(heard(&mut bed) == said, "a byte has changed");
}

#[test]
fn what_the_kernel_is_already_ending_is_told_to_end_once() {
    let (mut bed, peers) = busy();
    let driver = bed.engine.parts().1;
    let id = driver.find(client(0)).unwrap().0;
    driver.close(client(0), &[], clock());
    driver.handle_timeouts(clock().plus_ms(LINGER_MS));
    driver.reconcile();
    for (error, again) in [(libc::EALREADY, false), (libc::ENOENT, true)] {
        let (key, result) = (Key::Cancel(id), -error);
        let done = Done { key, result, more: false, nonempty: false, buffer: None };
        assert!(driver.handle_done(done).is_none());
        assert_eq!(driver.dirty.contains(&id), again);
    }
    drop((bed, peers));
}
