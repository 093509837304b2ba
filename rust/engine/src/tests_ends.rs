//! How connections end: resets, half-closes, hang-ups, dead links, last words and lingering.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::Read;
use std::os::unix::net::UnixStream;

use proxy_core::ids::{CancellerId, Conn};
use proxy_core::sink::{Address, Gone};
use rustix::net::sockopt;

use super::Bed;
use crate::driver::Driver;
use crate::engine::clock;
use crate::limits::{LINGER_MS, LINGERING_MAX, RECEIVE_BYTES};
use crate::testbed::{
    Inspect, LARGE, Told, allow_descriptors, client, client_id, echo, pattern, relay, reset,
    server, tcp_server, unix_server,
};

#[test]
fn the_reset_of_a_paused_client_is_told_once_and_nothing_spins() {
    let mut bed = Bed::new(|told, _, sink| {
        if let Told::Bytes(conn, _) = told {
            sink.pause_read(*conn);
        }
    });
    let mut near = bed.client();
    bed.write(&mut near, b"x");
    bed.until(|bed| bed.told().len() == 2);
    bed.write(&mut near, b"never read");
    bed.settle();
    assert_eq!(bed.told().len(), 2, "a paused connection is not read");
    reset(near);
    bed.until_told(&Told::Gone(client(0), None));
    bed.settle();
    assert_eq!(bed.told().len(), 3);
}

#[test]
fn a_reset_that_comes_together_with_the_last_bytes_is_told() {
    let (listener, address) = tcp_server();
    let mut bed = Bed::new(move |told, _, sink| {
        if let Told::Accept(id) = told {
            if *id == client_id(0) {
                sink.connect(server(0, 1), &address);
            }
        }
    });
    let near = bed.client();
    bed.until_told(&Told::Connected(server(0, 1)));
    let far = listener.accept().unwrap().0;
    for (mut peer, told) in
        [(near, Told::Gone(client(0), None)), (far, Told::Gone(server(0, 1), Some(Gone::Reset)))]
    {
        bed.settle();
        peer.set_nonblocking(true).unwrap();
        let full = (0..).find(|_| std::io::Write::write(&mut peer, &pattern(100_000)).is_err());
        assert!(full > Some(3), "the kernel's buffers are small");
        reset(peer);
        bed.until_told(&told);
    }
}

#[test]
fn a_half_closed_client_is_told_once_can_still_be_sent_to_and_its_end_is_noticed() {
    let mut bed = Bed::new(echo);
    let mut near = bed.client();
    bed.write(&mut near, b"last");
    near.shutdown(std::net::Shutdown::Write).unwrap();
    bed.until_told(&Told::Eof(client_id(0)));
    bed.settle();
    assert_eq!(bed.read(&mut near, 4), b"last");
    reset(near);
    bed.until_told(&Told::Gone(client(0), None));
    bed.settle();
    assert_eq!(bed.count(&Told::Eof(client_id(0))), 1);
}

#[test]
fn a_paused_server_that_hangs_up_does_not_spin_and_its_rest_is_read_after_the_pause() {
    let (listener, address) = unix_server("parked");
    let mut reacting = relay(address);
    let mut bed = Bed::new(move |told, chunk, sink| {
        match told {
            Told::Connected(conn) => sink.pause_read(*conn),
            Told::Bytes(Conn::Client(_), _) => return sink.resume_read(server(0, 1)),
            _ => {}
        }
        reacting(told, chunk, sink);
    });
    let mut near = bed.client();
    bed.until_told(&Told::Connected(server(0, 1)));
    let mut far = listener.accept().unwrap().0;
    bed.settle();
    bed.write(&mut far, b"rows");
    drop(far);
    bed.settle();
    assert_eq!(bed.count(&Told::Gone(server(0, 1), Some(Gone::Eof))), 0);
    bed.write(&mut near, b"go on");
    assert_eq!(bed.read(&mut near, 4), b"rows");
    bed.until_told(&Told::Gone(server(0, 1), Some(Gone::Eof)));
}

#[test]
fn the_last_words_of_a_server_are_read_before_its_loss_is_told() {
    let (listener, address) = unix_server("words");
    let mut reacting = relay(address);
    let mut bed = Bed::new(move |told, chunk, sink| {
        if let Told::Bytes(Conn::Client(_), _) = told {
            // It goes just before the query is sent to it, so that the send is what finds out.
            let mut far = listener.accept().unwrap().0;
            std::io::Write::write_all(&mut far, b"FATAL").unwrap();
        }
        reacting(told, chunk, sink);
    });
    let mut near = bed.client();
    bed.until_told(&Told::Connected(server(0, 1)));
    bed.write(&mut near, b"select");
    assert_eq!(bed.read(&mut near, 5), b"FATAL");
    bed.settle();
    let (words, end) = (bed.told().iter().rev().nth(1).cloned(), bed.told().last().cloned());
    assert_eq!(words, Some(Told::Bytes(server(0, 1), b"FATAL".to_vec())));
    assert_eq!(end, Some(Told::Gone(server(0, 1), Some(Gone::Reset))));
}

#[test]
fn what_was_sent_before_a_close_is_delivered_and_then_the_stream_ends() {
    let sent = pattern(LARGE);
    let bytes = sent.clone();
    let mut bed = Bed::new(move |told, _, sink| {
        if let Told::Bytes(conn, _) = told {
            sink.send_own(*conn, &bytes);
            sink.close(*conn);
        }
    });
    let mut near = bed.client();
    bed.write(&mut near, b"go");
    bed.until(|bed| bed.engine.parts().1.lingering() == 1);
    assert!(bed.read(&mut near, LARGE) == sent, "the bytes differ");
    bed.read_eof(&mut near);
    drop(near);
    bed.until(|bed| bed.engine.parts().1.lingering() == 0);
    assert_eq!(bed.told().len(), 2, "nothing was told after the close");
}

#[test]
fn a_farewell_to_a_client_that_goes_on_sending_is_not_overtaken_by_a_reset() {
    let mut bed = Bed::new(|told, _, sink| {
        if let Told::Bytes(conn, _) = told {
            sink.send_own(*conn, b"FATAL");
            sink.close(*conn);
        }
    });
    let mut near = bed.client();
    std::io::Write::write_all(&mut near, &pattern(3 * RECEIVE_BYTES)).unwrap();
    assert_eq!(bed.read(&mut near, 5), b"FATAL");
    bed.read_eof(&mut near);
    drop(near);
    bed.until(|bed| bed.engine.parts().1.lingering() == 0);
}

#[test]
fn lingering_ends_after_its_time() {
    let bytes = pattern(LARGE);
    let mut bed = Bed::new(move |told, _, sink| {
        if let Told::Bytes(conn, _) = told {
            sink.send_own(*conn, &bytes);
            sink.close(*conn);
        }
    });
    let mut near = bed.client();
    bed.write(&mut near, b"go");
    bed.until(|bed| bed.engine.parts().1.lingering() == 1);
    bed.settle();
    let driver = bed.engine.parts().1;
    assert!(driver.poll_deadline().unwrap() <= clock().plus_ms(LINGER_MS));
    driver.handle_timeouts(clock());
    assert_eq!(driver.lingering(), 1);
    driver.handle_timeouts(clock().plus_ms(LINGER_MS));
    assert_eq!(driver.lingering(), 0);
}

#[test]
fn of_too_many_that_linger_the_oldest_gives_way_and_the_others_are_delivered() {
    const LEN: usize = 20_000;
    let mut bed = Bed::new(|_, _, _| {});
    allow_descriptors(2 * LINGERING_MAX as u64 + 500);
    let mut peers = Vec::new();
    for number in 0..=LINGERING_MAX as u32 {
        let (ours, theirs) = UnixStream::pair().unwrap();
        for end in [&ours, &theirs] {
            end.set_nonblocking(true).unwrap();
        }
        // The kernel takes a part of it.
        sockopt::set_socket_send_buffer_size(&ours, 1).unwrap();
        bed.engine.parts().1.adopt(client(number), ours.into());
        bed.engine.parts().1.send_own(client(number), &pattern(LEN));
        peers.push(theirs);
    }
    bed.engine.parts().1.submit(None);
    bed.until(|bed| bed.engine.parts().1.is_at_rest());
    for number in 0..=LINGERING_MAX as u32 {
        bed.engine.parts().1.close(client(number), &[], clock());
    }
    assert_eq!(bed.engine.parts().1.lingering(), LINGERING_MAX);
    // All are read at a time: each may linger for some seconds only.
    let mut heard = vec![Vec::new(); peers.len()];
    bed.until(|_| {
        let all = peers.iter_mut().zip(&mut heard);
        all.filter_map(|(peer, heard)| peer.read_to_end(heard).err()).count() == 0
    });
    assert!((1..LEN).contains(&heard[0].len()), "{} bytes of the oldest", heard[0].len());
    assert!(heard[1..].iter().all(|heard| *heard == pattern(LEN)), "bytes of others are lost");
    drop(peers);
    bed.until(|bed| bed.engine.parts().1.lingering() == 0);
}

#[test]
fn our_sending_ends_after_what_was_queued_and_reading_goes_on() {
    let sent = pattern(LARGE);
    let bytes = sent.clone();
    let mut bed = Bed::new(move |told, _, sink| {
        if *told == Told::Bytes(client(0), b"go".to_vec()) {
            sink.send_own(client(0), &bytes);
            sink.shutdown(client(0));
        }
    });
    let mut near = bed.client();
    bed.write(&mut near, b"go");
    assert!(bed.read(&mut near, LARGE) == sent, "the bytes differ");
    bed.read_eof(&mut near);
    bed.write(&mut near, b"still here");
    bed.until_told(&Told::Bytes(client(0), b"still here".to_vec()));
}

#[test]
fn a_refused_connection_says_why() {
    let (listener, closed) = tcp_server();
    drop(listener);
    let canceller = Conn::Canceller(CancellerId::from_parts(0, 1));
    let mut bed = Bed::new(move |told, _, sink| {
        if let Told::Accept(_) = told {
            sink.connect(server(0, 1), &closed);
            sink.connect(server(1, 1), &Address::Unix("/nowhere/at/all".to_owned()));
            sink.connect(canceller, &closed);
        }
    });
    let _near = bed.client();
    let refused = |kind| Some(Gone::Refused(kind));
    bed.until_told(&Told::Gone(server(0, 1), refused(std::io::ErrorKind::ConnectionRefused)));
    bed.until_told(&Told::Gone(server(1, 1), refused(std::io::ErrorKind::NotFound)));
    bed.until_told(&Told::Gone(canceller, None));
    bed.settle();
}

#[test]
fn a_cancel_request_is_sent_and_the_close_that_answers_it_is_told() {
    let (listener, address) = tcp_server();
    let canceller = Conn::Canceller(CancellerId::from_parts(0, 1));
    let mut bed = Bed::new(move |told, _, sink| match told {
        Told::Accept(_) => sink.connect(canceller, &address),
        Told::Connected(conn) => sink.send_own(*conn, b"cancel"),
        _ => {}
    });
    let _near = bed.client();
    bed.until_told(&Told::Connected(canceller));
    let mut far = listener.accept().unwrap().0;
    far.set_nonblocking(true).unwrap();
    assert_eq!(bed.read(&mut far, 6), b"cancel");
    drop(far);
    bed.until_told(&Told::Gone(canceller, None));
}

#[test]
fn a_refused_client_is_closed() {
    let mut bed = Bed::new(|_, _, _| {});
    bed.engine.parts().0.refuse = true;
    let mut near = bed.client();
    bed.read_eof(&mut near);
}

#[test]
fn a_server_behind_a_dead_link_is_given_up_and_one_that_only_does_not_read_is_kept() {
    let (listener, address) = tcp_server();
    let mut bed = Bed::new(move |told, _, sink| match told {
        Told::Accept(_) => {
            sink.connect(server(0, 1), &address);
            sink.connect(server(1, 1), &address);
        }
        Told::Connected(conn) if *conn == server(0, 1) => sink.send_own(*conn, &pattern(LARGE)),
        Told::Bytes(Conn::Client(_), _) => sink.send_own(server(1, 1), b"select"),
        _ => {}
    });
    let mut near = bed.client();
    bed.until_told(&Told::Connected(server(0, 1)));
    bed.until_told(&Told::Connected(server(1, 1)));
    let _does_not_read = listener.accept().unwrap().0;
    let behind_dead_link = listener.accept().unwrap().0;
    drop_all_packets(&behind_dead_link);
    bed.write(&mut near, b"go");
    bed.until(|bed| {
        bed.engine.parts().1.look_for_dead_links(2);
        bed.told().iter().any(|told| matches!(told, Told::Gone(..)))
    });
    assert_eq!(bed.told().last(), Some(&Told::Gone(server(1, 1), Some(Gone::Unreachable))));
}

/// Makes a socket deaf: the kernel drops whatever arrives, and acknowledges nothing.
fn drop_all_packets(socket: &impl std::os::fd::AsRawFd) {
    let mut filter = [libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0 }];
    let program = libc::sock_fprog { len: 1, filter: filter.as_mut_ptr() };
    // SAFETY: the program and its one instruction ("return 0 bytes") live across the call.
    #[allow(unsafe_code)]
    let outcome = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    assert_eq!(outcome, 0);
}
