//! What the loop and its drivers promise, over real sockets; how connections end is in
//! `tests_ends.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::cell::RefCell;
use std::os::fd::AsFd;
use std::rc::Rc;

use proxy_core::event::{Event, Level};
use rustix::net::sockopt;

use super::Bed;
use crate::engine::clock;
use crate::limits::{ACCEPTS_PER_TURN, KEEPALIVE_IDLE_S, QUEUE_HIGH};
use crate::post::{Incoming, Post};
use crate::ring::Command;
use crate::testbed::{
    Inspect, LARGE, Told, client, client_id, echo, mailbox, pattern, relay, send, server,
    tcp_server,
};

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
    let queued = bed.engine.parts().1.queued(client(0));
    assert!(queued <= QUEUE_HIGH + bed.engine.parts().1.turn_bytes(), "{queued} bytes are queued");
    assert!(bed.read(&mut near, sent.len()) == sent, "the bytes differ");
    writer.join().unwrap();
    bed.settle();
    assert!(bed.engine.parts().1.holds_nothing(), "a buffer is lost");
}

#[test]
fn slow_peers_do_not_keep_the_others_from_being_served() {
    const SLOW: u32 = 3;
    let mut bed = Bed::new(|told, chunk, sink| match (told, chunk) {
        (Told::Bytes(conn, _), Some(chunk)) if *conn == client(0) => {
            for each in 1..=SLOW {
                sink.send(client(each), chunk.id, 0..chunk.bytes.len());
            }
        }
        _ => echo(told, chunk, sink),
    });
    let mut near: Vec<_> = (0..SLOW + 2).map(|_| bed.client()).collect();
    bed.until(|bed| bed.told().len() == near.len());
    let sent = pattern(LARGE);
    bed.write(&mut near[0], &sent);
    let served = near.last_mut().unwrap();
    for _ in 0..3 {
        bed.write(served, b"ping");
        assert_eq!(bed.read(served, 4), b"ping");
    }
    for slow in near.iter_mut().skip(1).take(SLOW as usize) {
        assert!(bed.read(slow, LARGE) == sent, "the bytes differ");
    }
    bed.settle();
    assert!(bed.engine.parts().1.holds_nothing(), "a buffer is lost");
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
fn an_accepted_client_does_not_delay_small_messages_and_is_probed_when_idle() {
    let mut bed = Bed::new(echo);
    let _near = bed.client();
    bed.until_told(&Told::Accept(client_id(0)));
    let fd = bed.engine.parts().1.fd(client(0));
    assert!(sockopt::tcp_nodelay(fd).unwrap() && sockopt::socket_keepalive(fd).unwrap());
    assert_eq!(sockopt::tcp_keepidle(fd).unwrap().as_secs(), KEEPALIVE_IDLE_S);
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
    assert!(bed.is_quiet(), "a listener that is closed is still watched");
}

#[test]
fn a_stop_forgets_nobody_who_was_accepted() {
    const STORM: usize = 100;
    assert!(STORM > usize::from(ACCEPTS_PER_TURN));
    let mut bed = Bed::new(|_, _, _| {});
    bed.settle();
    let clients: Vec<_> = (0..STORM).map(|_| bed.client()).collect();
    bed.commands.send(Command::Stop).unwrap();
    bed.engine.run().unwrap();
    let told = bed.told().iter().filter(|told| matches!(told, Told::Accept(_))).count();
    let Bed { engine, listener, .. } = bed;
    drop(engine);
    // Other processes listen there, too.
    listener.set_nonblocking(true).unwrap();
    let waiting = std::iter::from_fn(|| listener.accept().ok()).count();
    assert_eq!(told + waiting, STORM, "{told} were told, {waiting} wait");
    drop(clients);
}

/// Lets this process open one descriptor more.
fn leave_one_descriptor() {
    use rustix::process::{Resource, getrlimit, setrlimit};

    let is_free =
        |number: &u64| std::fs::symlink_metadata(format!("/proc/self/fd/{number}")).is_err();
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = (0..).find(is_free).map(|number| number + 1);
    setrlimit(Resource::Nofile, limit).unwrap();
}

/// Runs a test of this file that would disturb others.
fn run_in_a_process_of_its_own(test: &str) {
    let module = module_path!().strip_prefix("engine::").unwrap();
    let name = format!("{module}::{test}");
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", &name, "--test-threads=1"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("1 passed"), "{text}");
}

#[test]
#[ignore = "run by the test that follows, in a process of its own"]
fn child_out_of_descriptors() {
    let mut bed = Bed::new(echo);
    let mut first = bed.client();
    bed.write(&mut first, b"a");
    assert_eq!(bed.read(&mut first, 1), b"a");
    let waiting: Vec<_> = (0..3).map(|_| bed.client()).collect();
    // The kernel remembers the limit of the time when it was told to accept.
    bed.listen_anew();
    leave_one_descriptor();
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
    run_in_a_process_of_its_own("child_out_of_descriptors");
}

#[test]
#[ignore = "run by the test that follows, in a process of its own"]
fn child_out_of_descriptors_for_mail() {
    let (mut zero, mut one) = Bed::pair(
        |told, _, sink| {
            if let Told::Bytes(conn, _) = told {
                sink.pass(*conn, 1, b"\x02key");
            }
        },
        |_, _, _| {},
    );
    // Otherwise the second client would be passed on before it says anything.
    one.ledger.stop_accepting();
    let mut near = [zero.client(), zero.client()];
    zero.write(&mut near[0], b"x");
    zero.write(&mut near[1], b"x");
    zero.until_told(&Told::Passed(client(0), true));
    zero.until_told(&Told::Passed(client(1), true));
    let (inbox, outbox) = mailbox();
    let mut post = Post::new(inbox, Vec::new());
    send(&outbox, b"both", &[near[0].as_fd(), near[1].as_fd()]);
    leave_one_descriptor();
    // Room for one of two is room for none, and that one is free again afterwards.
    let Incoming::Mail(bytes, fds) = post.receive() else { panic!("a mail is lost") };
    assert_eq!((&bytes[..], fds.len()), (&b"both"[..], 0));
    one.until_told(&Told::Gone(client(1), None));
    one.settle();
    assert_eq!((one.count(&Told::Gone(client(0), None)), one.ledger.clients(1)), (0, 1));
    assert_eq!(one.events.drain(usize::MAX).len(), 1, "the operator is told");
    zero.read_eof(&mut near[1]);
}

#[test]
fn out_of_descriptors_a_connection_passed_on_is_closed_and_told_as_gone() {
    run_in_a_process_of_its_own("child_out_of_descriptors_for_mail");
}

#[test]
fn clients_that_come_together_are_not_probed_together() {
    let mut bed = Bed::new(echo);
    let near: Vec<_> = (0..3).map(|_| bed.client()).collect();
    bed.until(|bed| bed.told().len() == near.len());
    let driver = bed.engine.parts().1;
    let times = [0, 1, 2].map(|number| sockopt::tcp_keepidle(driver.fd(client(number))).unwrap());
    assert!(times[0] < times[1] && times[1] < times[2], "{times:?}");
}
