//! What the loop and the epoll driver promise, over real sockets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::cell::RefCell;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::rc::Rc;

use proxy_core::event::{Event, Level};
use proxy_core::ids::{CancellerId, Conn};
use proxy_core::sink::{Address, Chunk, Gone, Sink};

use crate::driver::Driver;
use crate::engine::clock;
use crate::limits::{LINGER_MS, QUEUE_HIGH, RECEIVE_BYTES};
use crate::ring::Command;
use crate::testbed::{Bed, Told, client, client_id, pattern, reset, server};

const LARGE: usize = 12 << 20;

/// Sends back all that a client says.
fn echo(told: &Told, chunk: Option<Chunk<'_>>, sink: &mut dyn Sink) {
    if let (Told::Bytes(conn @ Conn::Client(_), _), Some(chunk)) = (told, chunk) {
        sink.send(*conn, chunk.id, 0..chunk.bytes.len());
    }
}

/// Connects server 0 when the first client arrives, and relays between the two with back-pressure.
fn relay(address: Address) -> impl FnMut(&Told, Option<Chunk<'_>>, &mut dyn Sink) {
    let (near, far) = (client(0), server(0, 1));
    move |told, chunk, sink| {
        let other = |conn: Conn| if conn == near { far } else { near };
        match (told, chunk) {
            (Told::Accept(_), _) => sink.connect(far, &address),
            (Told::Bytes(conn, _), Some(chunk)) => {
                sink.send(other(*conn), chunk.id, 0..chunk.bytes.len());
            }
            (Told::Congested(conn), _) => sink.pause_read(other(*conn)),
            (Told::Drained(conn), _) => sink.resume_read(other(*conn)),
            _ => {}
        }
    }
}

/// A listener for servers, and its address.
fn tcp_server() -> (TcpListener, Address) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = Address::Tcp(listener.local_addr().unwrap());
    (listener, address)
}

/// The same over a Unix socket; the directory goes with the first part.
fn unix_server(name: &str) -> (UnixListener, Address) {
    let path = std::env::temp_dir().join(format!("engine-{}-{name}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).unwrap();
    (listener, Address::Unix(path.to_str().unwrap().to_owned()))
}

#[test]
fn a_query_and_its_answer_cost_two_receives_and_two_sends() {
    let (listener, address) = tcp_server();
    let mut bed = Bed::new(relay(address));
    let mut near = bed.client();
    bed.until_told(&Told::Connected(server(0, 1)));
    let mut far = listener.accept().unwrap().0;
    far.set_nonblocking(true).unwrap();
    for round in 1..4 {
        bed.write(&mut near, b"select 1");
        assert_eq!(bed.read(&mut far, 8), b"select 1");
        bed.write(&mut far, b"one row");
        assert_eq!(bed.read(&mut near, 7), b"one row");
        let counters = (bed.counter("engine_receives"), bed.counter("engine_sends"));
        assert_eq!(counters, (2 * round, 2 * round));
    }
}

#[test]
fn all_sends_of_one_call_to_a_connection_are_one_system_call_in_order() {
    let mut bed = Bed::new(|told, chunk, sink| {
        if let (Told::Bytes(conn, _), Some(chunk)) = (told, chunk) {
            sink.send(*conn, chunk.id, 0..2);
            sink.send(*conn, chunk.id, 2..3);
            sink.send_own(*conn, b"-");
            sink.send(*conn, chunk.id, 5..6);
            sink.send_own(*conn, b"+");
            sink.send_own(*conn, b"!");
        }
    });
    let mut near = bed.client();
    bed.write(&mut near, b"abcdef");
    assert_eq!(bed.read(&mut near, 7), b"abc-f+!");
    assert_eq!(bed.counter("engine_sends"), 1);
}

#[test]
fn what_a_slow_reader_does_not_take_arrives_later_and_congestion_is_told_once() {
    let sent = pattern(LARGE);
    let bytes = sent.clone();
    let mut bed = Bed::new(move |told, _, sink| {
        if let Told::Bytes(conn, _) = told {
            sink.send_own(*conn, &bytes);
        }
    });
    let mut near = bed.client();
    bed.write(&mut near, b"go");
    bed.until_told(&Told::Congested(client(0)));
    bed.settle();
    assert_eq!(bed.count(&Told::Drained(client(0))), 0);
    assert!(bed.read(&mut near, LARGE) == sent, "the bytes differ");
    bed.until_told(&Told::Drained(client(0)));
    bed.settle();
    assert_eq!(bed.count(&Told::Congested(client(0))), 1);
    assert_eq!(bed.count(&Told::Drained(client(0))), 1);
}

#[test]
fn a_flood_from_a_server_stops_at_the_queue_limit_and_loses_nothing() {
    let (listener, address) = tcp_server();
    let mut bed = Bed::new(relay(address));
    let mut near = bed.client();
    bed.until_told(&Told::Connected(server(0, 1)));
    let mut far = listener.accept().unwrap().0;
    let sent = pattern(2 * LARGE);
    let flood = sent.clone();
    let writer = std::thread::spawn(move || std::io::Write::write_all(&mut far, &flood).unwrap());
    bed.until_told(&Told::Congested(client(0)));
    bed.settle();
    let queued = bed.engine.parts().1.table.get(client(0)).unwrap().queued();
    assert!(queued <= QUEUE_HIGH + RECEIVE_BYTES, "{queued} bytes are queued");
    assert!(bed.read(&mut near, sent.len()) == sent, "the bytes differ");
    writer.join().unwrap();
}

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
fn a_pause_and_a_resume_in_one_turn_change_nothing() {
    let mut bed = Bed::new(|told, chunk, sink| {
        if let Told::Bytes(conn, _) = told {
            sink.pause_read(*conn);
            sink.resume_read(*conn);
            echo(told, chunk, sink);
        }
    });
    let mut near = bed.client();
    for _ in 0..3 {
        bed.write(&mut near, b"ping");
        assert_eq!(bed.read(&mut near, 4), b"ping");
    }
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
fn an_event_for_a_connection_closed_earlier_in_the_batch_reaches_nobody() {
    let mut bed = Bed::new(|told, _, sink| {
        if let Told::Bytes(conn, _) = told {
            for other in [client(0), client(1)] {
                if other != *conn {
                    sink.close(other);
                }
            }
        }
    });
    let (mut one, mut other) = (bed.client(), bed.client());
    bed.until(|bed| bed.told().len() == 2);
    std::io::Write::write_all(&mut one, b"1").unwrap();
    std::io::Write::write_all(&mut other, b"2").unwrap();
    bed.until(|bed| bed.told().len() == 3);
    bed.settle();
    assert_eq!(bed.told().len(), 3, "only the first of the two was told");
}

#[test]
fn a_slot_may_be_reused_in_the_call_that_closed_it_and_stale_calls_do_nothing() {
    let (listener, address) = tcp_server();
    let mut bed = Bed::new(move |told, _, sink| match told {
        Told::Accept(_) => sink.connect(server(0, 1), &address),
        Told::Connected(conn) if *conn == server(0, 1) => {
            sink.send_own(*conn, b"old");
            sink.close(*conn);
            sink.connect(server(0, 2), &address);
            sink.send_own(*conn, b"stale");
            sink.pause_read(*conn);
            sink.shutdown(*conn);
            sink.close(*conn);
        }
        Told::Connected(conn) => sink.send_own(*conn, b"new"),
        _ => {}
    });
    let _near = bed.client();
    bed.until_told(&Told::Connected(server(0, 2)));
    for expected in [b"old", b"new"] {
        let mut far = listener.accept().unwrap().0;
        far.set_nonblocking(true).unwrap();
        assert_eq!(bed.read(&mut far, 3), expected);
    }
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
fn a_deadline_is_told_when_it_has_come_and_not_before() {
    let mut bed = Bed::new(|_, _, _| {});
    let deadline = clock().plus_ms(20);
    bed.engine.parts().0.deadline = Some(deadline);
    bed.until_told(&Told::Timeouts);
    assert!(clock() >= deadline);
}

#[test]
fn a_stop_closes_the_listeners_and_ends_the_loop_with_its_counters_published() {
    let order = Rc::new(RefCell::new(Vec::new()));
    let seen = Rc::clone(&order);
    let mut bed = Bed::new(move |told, _, _| seen.borrow_mut().push(told.clone()));
    bed.commands.send(Command::Stop).unwrap();
    bed.engine.run().unwrap();
    assert_eq!(*order.borrow(), [Told::Stop]);
    assert!(bed.engine.is_finished());
    assert!(bed.shared.rows().contains(&("told", 1)));
    let _waits_in_the_backlog = bed.client();
    bed.settle();
    assert_eq!(order.borrow().len(), 1, "nothing is accepted any more");
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
        bed.engine.parts().1.give_up_unreachable(2);
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

/// Runs in a process of its own, started by the next test, since it lowers the limit of open files.
#[test]
#[ignore = "run by the test that follows, in a process of its own"]
fn child_out_of_descriptors() {
    use rustix::process::{Resource, getrlimit, setrlimit};

    let mut bed = Bed::new(echo);
    let mut first = bed.client();
    bed.write(&mut first, b"a");
    assert_eq!(bed.read(&mut first, 1), b"a");
    let waiting: Vec<_> = (0..3).map(|_| bed.client()).collect();
    let mut limit = getrlimit(Resource::Nofile);
    let highest = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
    // The directory's own descriptor is gone again: that one slot is taken by the next accept.
    limit.current = Some(highest);
    setrlimit(Resource::Nofile, limit).unwrap();
    bed.until(|bed| bed.counter("engine_accept_pauses") > 0);
    bed.settle();
    let accepted = bed.counter("engine_accepted");
    assert!(accepted < 4, "the limit does not bite");
    let turns = bed.counter("engine_accept_pauses");
    assert_eq!(turns, 1, "the pause holds until something changes");
    drop(first);
    bed.until(|bed| bed.counter("engine_accepted") == accepted + 1);
    bed.settle();
    let logs = bed.events.drain(usize::MAX);
    assert_eq!(logs.len(), 1, "the operator is told once: {logs:?}");
    assert!(matches!(&logs[..], [Event::Log { level: Level::Warning, .. }]));
    drop(waiting);
}

#[test]
fn out_of_descriptors_accepting_pauses_says_so_once_and_goes_on_when_one_is_free() {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "tests::child_out_of_descriptors", "--test-threads=1"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("1 passed"), "{text}");
}
