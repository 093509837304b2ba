//! What workers tell each other: connections handed over, settings, pokes, questions, balance.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::cell::RefCell;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::rc::Rc;

use super::Bed;
use crate::driver::{Completion, Driver};
use crate::limits::{MAIL_BYTES_MAX, MAILS_PER_TURN, WAIT_MS_MAX};
use crate::post::{Incoming, Post};
use crate::ring::Command;
use crate::testbed::{
    LARGE, Told, client, client_id, echo, mailbox, memory, pattern, send, server,
};
use proxy_core::event::{Event, Level};
use proxy_core::ids::Conn;
use proxy_core::sink::{Chunk, Gone, Sink};

/// The mail with which client 0 is passed on in these tests.
const CANCEL: &[u8] = b"\x02from 0";

fn passed(to: bool) -> Told {
    Told::Passed(client(0), to)
}

/// Runs turns of two beds until this holds.
fn until(zero: &mut Bed, one: &mut Bed, mut holds: impl FnMut(&mut Bed, &mut Bed) -> bool) {
    zero.until(|zero| {
        one.engine.turn(0).unwrap();
        holds(zero, one)
    });
}

/// Hands the mail with these descriptors to an engine, as its driver would.
fn deliver(bed: &mut Bed, bytes: &[u8], fds: Vec<OwnedFd>) {
    bed.engine.dispatch(Completion::Mail(bytes.to_vec(), fds));
    bed.engine.complete();
}

/// The mail of an epoch that lists these listeners, with its descriptors.
fn epoch(
    number: u64,
    settings: &str,
    listeners: &[(u32, &TcpListener)],
) -> (Vec<u8>, Vec<OwnedFd>) {
    let mut bytes = vec![4];
    bytes.extend_from_slice(&number.to_le_bytes());
    bytes.push(listeners.len() as u8);
    let mut fds = vec![memory(settings)];
    for (id, listener) in listeners {
        bytes.extend_from_slice(&id.to_le_bytes());
        bytes.push(0);
        fds.push(listener.try_clone().unwrap().into());
    }
    (bytes, fds)
}

/// The error texts since this was last asked.
fn logs(bed: &Bed) -> Vec<(Level, String)> {
    let text = |event| match event {
        Event::Log { level, text } => (level, text),
        other => panic!("{other:?}"),
    };
    bed.events.drain(usize::MAX).into_iter().map(text).collect()
}

/// A pipe's two ends: whether the second has been closed shows at the first.
fn pipe() -> (File, OwnedFd) {
    let (reader, writer) = std::io::pipe().unwrap();
    (OwnedFd::from(reader).into(), writer.into())
}

fn connect(listener: &TcpListener) -> TcpStream {
    let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    stream.set_nonblocking(true).unwrap();
    stream
}

/// Answers `ack` to what client 0 says, then passes it to worker 1; more comes from it meanwhile.
fn passing(near: Rc<RefCell<Option<TcpStream>>>) -> impl FnMut(&Told, &mut dyn Sink) {
    move |told, sink| {
        if *told == Told::Bytes(client(0), b"first".to_vec()) {
            sink.send_own(client(0), b"ack");
            sink.pass(client(0), 1, CANCEL);
            if let Some(near) = near.borrow_mut().as_mut() {
                near.write_all(b" in flight").unwrap();
            }
        }
    }
}

#[test]
fn a_connection_passed_on_loses_no_byte_and_its_peer_notices_nothing() {
    let shared = Rc::new(RefCell::new(None));
    let mut react = passing(Rc::clone(&shared));
    let (mut zero, mut one) = Bed::pair(move |told, _, sink| react(told, sink), echo);
    let mut near = zero.client();
    *shared.borrow_mut() = Some(near.try_clone().unwrap());
    zero.write(&mut near, b"first");
    until(&mut zero, &mut one, |_, one| {
        one.told().iter().any(|told| matches!(told, Told::Bytes(..)))
    });
    assert_eq!(zero.read(&mut near, 3), b"ack");
    assert_eq!(one.read(&mut near, 10), b" in flight");
    near.write_all(b"and on").unwrap();
    assert!(zero.is_quiet(), "a connection that is gone is still watched");
    assert_eq!(one.read(&mut near, 6), b"and on");
    let accepted = Told::Accept(client_id(0));
    let first = Told::Bytes(client(0), b"first".to_vec());
    assert_eq!(zero.told(), [accepted, first, passed(true)], "nothing more is told here");
    assert_eq!(one.told()[0], Told::Mail(CANCEL.to_vec()));
    assert_eq!((zero.ledger.clients(0), zero.ledger.clients(1)), (0, 1));
    drop((near, shared.take()));
    one.until_told(&Told::Eof(client_id(0)));
    assert!(zero.is_quiet());
}

#[test]
fn a_client_that_asks_and_ends_at_once_is_passed_on_with_its_end() {
    let (mut zero, mut one) = Bed::pair(
        |told, _, sink| {
            if let Told::Bytes(conn, _) = told {
                sink.pass(*conn, 1, CANCEL);
            }
        },
        |_, _, _| {},
    );
    let mut near = zero.client();
    zero.until_told(&Told::Accept(client_id(0)));
    zero.settle();
    near.write_all(b"cancel").unwrap();
    drop(near);
    zero.until_told(&passed(true));
    one.until_told(&Told::Eof(client_id(0)));
    assert_eq!(one.told()[..2], [Told::Mail(CANCEL.to_vec()), Told::Adopted(client(0))]);
    zero.settle();
    assert_eq!(zero.told().len(), 3, "nothing more is told here");
    assert!(zero.is_quiet());
}

#[test]
fn a_full_inbox_refuses_and_the_connection_stays_as_it_was() {
    let shared = Rc::new(RefCell::new(None));
    let mut react = passing(Rc::clone(&shared));
    let (mut zero, mut one) = Bed::pair(
        move |told, chunk, sink| {
            react(told, sink);
            if *told != Told::Bytes(client(0), b"first".to_vec()) {
                echo(told, chunk, sink);
            }
        },
        echo,
    );
    let mut mails = 0;
    while zero.engine.parts().1.post(1, b"?", None) {
        mails += 1;
        assert!(mails < 1_000_000, "the inbox has no end");
    }
    let mut near = zero.client();
    *shared.borrow_mut() = Some(near.try_clone().unwrap());
    zero.write(&mut near, b"first");
    zero.until_told(&passed(false));
    assert_eq!(zero.read(&mut near, 13), b"ack in flight", "it is served on");
    assert_eq!((zero.ledger.clients(0), zero.ledger.clients(1)), (1, 0));
    one.until(|bed| bed.counter("engine_mails") == mails);
    one.settle();
    assert!(zero.engine.parts().1.post(1, b"?", None), "there is room again");
}

#[test]
fn a_connection_with_bytes_still_to_send_is_not_passed_on() {
    let sent = pattern(LARGE);
    let bytes = sent.clone();
    let (mut zero, mut one) = Bed::pair(
        move |told, _, sink| {
            if let Told::Bytes(conn, _) = told {
                sink.send_own(*conn, &bytes);
                sink.pass(*conn, 1, CANCEL);
            }
        },
        echo,
    );
    let mut near = zero.client();
    zero.write(&mut near, b"go");
    zero.until_told(&passed(false));
    assert!(zero.read(&mut near, LARGE) == sent, "the bytes differ");
    one.settle();
    assert_eq!(one.told(), []);
}

#[test]
fn a_pass_to_nobody_fails_and_one_of_a_closed_connection_is_not_answered() {
    let mut bed = Bed::new(|told, _, sink| match told {
        Told::Bytes(conn, bytes) if bytes == b"nobody" => sink.pass(*conn, 9, CANCEL),
        Told::Bytes(conn, _) => {
            sink.pass(*conn, 0, CANCEL);
            sink.send_own(*conn, b"bye");
            sink.close(*conn);
        }
        _ => {}
    });
    let mut near = bed.client();
    bed.write(&mut near, b"nobody");
    bed.until_told(&passed(false));
    bed.write(&mut near, b"close");
    assert_eq!(bed.read(&mut near, 3), b"bye");
    bed.read_eof(&mut near);
    bed.settle();
    assert_eq!(bed.count(&passed(true)) + bed.count(&passed(false)), 1);
    assert_eq!(bed.counter("engine_mails"), 0);
}

#[test]
fn a_server_arrives_with_the_cores_own_bytes_and_is_used_at_once() {
    let mut bed = Bed::new(|told, _, sink| {
        if let Told::Adopted(conn) = told {
            sink.send_own(*conn, b"query");
        }
    });
    let (mut far, near) = std::os::unix::net::UnixStream::pair().unwrap();
    far.write_all(b"notice").unwrap();
    deliver(&mut bed, b"\x01state", vec![near.into()]);
    bed.until_told(&Told::Bytes(server(0, 1), b"notice".to_vec()));
    let arrived = [Told::Mail(b"\x01state".to_vec()), Told::Adopted(server(0, 1))];
    assert_eq!(bed.told()[..2], arrived);
    far.set_nonblocking(true).unwrap();
    assert_eq!(bed.read(&mut far, 5), b"query");
    assert_eq!(bed.ledger.clients(0), 0);
}

#[test]
fn a_connection_that_the_core_refuses_is_closed() {
    let mut bed = Bed::new(|_, _, _| {});
    bed.engine.parts().0.refuse = true;
    let (mut far, near) = std::os::unix::net::UnixStream::pair().unwrap();
    deliver(&mut bed, b"\x01old", vec![near.into()]);
    assert_eq!(far.read(&mut [0]).unwrap(), 0);
    assert_eq!(bed.told(), [Told::Mail(b"\x01old".to_vec())]);
}

#[test]
fn a_connection_that_got_lost_on_its_way_is_told_as_gone() {
    let mut bed = Bed::new(|_, _, _| {});
    deliver(&mut bed, b"\x01state", Vec::new());
    deliver(&mut bed, b"\x02key", Vec::new());
    let mail = |bytes: &[u8]| Told::Mail(bytes.to_vec());
    let lost = Told::Gone(server(0, 1), Some(Gone::Unreachable));
    let asking = Told::Gone(client(0), None);
    assert_eq!(bed.told(), [mail(b"\x01state"), lost, mail(b"\x02key"), asking]);
    assert_eq!(logs(&bed).len(), 2);
}

#[test]
fn a_poke_wakes_the_loop_once_and_it_looks_at_the_page() {
    let (mut zero, mut one) = Bed::pair(
        |told, _, sink| {
            if let Told::Bytes(..) = told {
                sink.poke(1);
                sink.poke(1);
            }
        },
        |_, _, _| {},
    );
    one.engine.turn(0).unwrap();
    let looks = one.engine.parts().0.looks;
    let mut near = zero.client();
    zero.write(&mut near, b"x");
    zero.until(|zero| zero.told().len() == 2);
    one.engine.turn(WAIT_MS_MAX).unwrap();
    assert_eq!((one.counter("engine_mails"), one.engine.parts().0.looks), (1, looks + 1));
    zero.write(&mut near, b"y");
    until(&mut zero, &mut one, |_, one| one.counter("engine_mails") == 2);
}

#[test]
fn a_burst_of_mail_is_read_over_several_turns_and_looked_at_once_each() {
    let (mut zero, mut one) = Bed::pair(|_, _, _| {}, |_, _, _| {});
    one.engine.turn(0).unwrap();
    let looks = one.engine.parts().0.looks;
    for _ in 0..=MAILS_PER_TURN {
        assert!(zero.engine.parts().1.post(1, &[0], None));
    }
    one.engine.turn(0).unwrap();
    assert_eq!(one.counter("engine_mails"), u64::from(MAILS_PER_TURN));
    one.engine.turn(0).unwrap();
    assert_eq!(one.counter("engine_mails"), u64::from(MAILS_PER_TURN) + 1);
    assert_eq!(one.engine.parts().0.looks, looks + 2);
}

#[test]
fn what_does_not_fit_is_dropped_with_one_line_and_its_descriptors_are_closed() {
    let mut bed = Bed::new(|_, _, _| {});
    for bytes in [&b""[..], b"\xFF", b"\x00", b"\x03", b"\x04\x00", b"\x05\x09", b"\x06\x01x"] {
        let (mut reader, writer) = pipe();
        deliver(&mut bed, bytes, vec![writer]);
        assert_eq!(reader.read(&mut [0]).unwrap(), 0, "{bytes:?}: the descriptor is open");
        let logs = logs(&bed);
        assert!(matches!(&logs[..], [(Level::Warning, _)]), "{bytes:?}: {logs:?}");
    }
    assert_eq!(bed.told(), []);
    assert_eq!(bed.ledger.clients(0), 0);
}

#[test]
fn a_mail_that_is_too_long_is_thrown_away_with_its_descriptors() {
    let (inbox, outbox) = mailbox();
    let (mut reader, writer) = pipe();
    let mut post = Post::new(inbox, vec![outbox.try_clone().unwrap()]);
    assert!(!post.send(0, &pattern(MAIL_BYTES_MAX + 1), None));
    send(&outbox, &pattern(MAIL_BYTES_MAX + 1), &[writer.as_fd()]);
    drop(writer);
    assert!(matches!(post.receive(), Incoming::TooLong));
    assert_eq!(reader.read(&mut [0]).unwrap(), 0, "the descriptor is open");
    assert!(post.send(0, &pattern(MAIL_BYTES_MAX), None));
    let Incoming::Mail(bytes, fds) = post.receive() else { panic!("a mail is lost") };
    assert!(bytes == pattern(MAIL_BYTES_MAX) && fds.is_empty());
    assert!(matches!(post.receive(), Incoming::Empty));
}

#[test]
fn an_empty_mail_is_dropped_and_an_inbox_that_nobody_can_write_to_does_not_spin() {
    let (inbox, outbox) = mailbox();
    let mut bed = Bed::with(Post::new(inbox, Vec::new()));
    send(&outbox, b"", &[]);
    bed.settle();
    assert!(matches!(&logs(&bed)[..], [(Level::Warning, _)]));
    send(&outbox, &[0], &[]);
    bed.settle();
    assert_eq!((bed.counter("engine_mails"), logs(&bed)), (2, Vec::new()));
    drop(outbox);
    bed.settle();
    assert!(matches!(&logs(&bed)[..], [(Level::Error, _)]));
    assert!(bed.is_quiet());
}

#[test]
fn listeners_come_and_go_with_epochs_while_clients_connect() {
    let mut bed = Bed::new(echo);
    let stays = bed.listener.try_clone().unwrap();
    let mut others = Vec::new();
    let mut clients = Vec::new();
    for number in 2..12_u32 {
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        // They wait in the queues while the listeners change.
        clients.push(connect(&stays));
        clients.push(connect(&other));
        let listeners = [(1, &stays), (number, &other)];
        let (bytes, fds) = epoch(u64::from(number), "settings", &listeners);
        deliver(&mut bed, &bytes, fds);
        assert_eq!(bed.ledger.worker_view(0).epoch, u64::from(number));
        clients.push(connect(&stays));
        clients.push(connect(&other));
        let expected = 4 * (u64::from(number) - 1);
        bed.until(|bed| bed.counter("engine_accepted") == expected);
        others.push(other);
    }
    for near in &mut clients {
        bed.write(near, b"alive");
        assert_eq!(bed.read(near, 5), b"alive");
    }
    assert_eq!(bed.ledger.clients(0), 40);
    let _waits = connect(&others[0]);
    bed.settle();
    assert_eq!(bed.counter("engine_accepted"), 40, "a listener that has gone still accepts");
    assert!(bed.is_quiet(), "a listener that has gone is still watched");
    let heard: Vec<u64> = bed
        .told()
        .iter()
        .filter_map(|told| if let Told::Settings(epoch) = told { Some(*epoch) } else { None })
        .collect();
    assert_eq!(heard, (2..12).collect::<Vec<_>>());
}

#[test]
fn settings_that_cannot_be_taken_over_change_nothing_and_are_not_acknowledged() {
    let mut bed = Bed::new(echo);
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let stays = bed.listener.try_clone().unwrap();
    let (no_socket, listeners) = (memory("no socket"), [(2, &other)]);
    let (bytes, fds) = epoch(2, "nonsense", &listeners);
    deliver(&mut bed, &bytes, fds);
    let (bytes, mut fds) = epoch(2, "settings", &listeners);
    fds[1] = no_socket;
    deliver(&mut bed, &bytes, fds);
    let (bytes, fds) = epoch(2, "settings", &[(2, &other), (2, &stays)]);
    deliver(&mut bed, &bytes, fds);
    let logs = logs(&bed);
    assert_eq!(logs.len(), 3, "{logs:?}");
    assert!(logs.iter().all(|(level, text)| *level == Level::Error && text.contains("epoch 2")));
    assert!(logs[0].1.contains("what is nonsense?"), "{logs:?}");
    assert_eq!((bed.told().len(), bed.ledger.worker_view(0).epoch), (0, 0));
    let _waits = connect(&other);
    let mut near = bed.client();
    bed.write(&mut near, b"still here");
    assert_eq!(bed.read(&mut near, 10), b"still here");
    assert_eq!(bed.counter("engine_accepted"), 1);
}

#[test]
fn an_older_epoch_changes_nothing() {
    let mut bed = Bed::new(|_, _, _| {});
    let stays = bed.listener.try_clone().unwrap();
    for number in [5, 4, 5, 6] {
        let (bytes, fds) = epoch(number, "settings", &[(1, &stays)]);
        deliver(&mut bed, &bytes, fds);
    }
    assert_eq!(bed.told(), [Told::Settings(5), Told::Settings(6)]);
    assert_eq!((logs(&bed).len(), bed.ledger.worker_view(0).epoch), (0, 6));
}

#[test]
fn an_engine_that_drains_takes_settings_but_listens_no_more() {
    let mut bed = Bed::new(|_, _, _| {});
    let stays = bed.listener.try_clone().unwrap();
    bed.commands.send(Command::Stop).unwrap();
    bed.until_told(&Told::Stop);
    let view = bed.ledger.worker_view(0);
    assert!(view.alive && !view.accepting);
    let (bytes, fds) = epoch(2, "settings", &[(1, &stays)]);
    deliver(&mut bed, &bytes, fds);
    assert_eq!(bed.ledger.worker_view(0).epoch, 2);
    let _waits = bed.client();
    assert!(bed.is_quiet());
}

#[test]
fn a_question_is_answered_into_the_memory_and_its_end_is_the_pipes_end() {
    let mut bed = Bed::new(|_, _, _| {});
    for (what, expected) in ["Clients", "Servers", "Pools", "Targets"].into_iter().enumerate() {
        let (mut done, writer) = pipe();
        let answer = memory("");
        let copy = File::from(answer.try_clone().unwrap());
        deliver(&mut bed, &[5, what as u8], vec![answer, writer]);
        assert_eq!(done.read(&mut [0]).unwrap(), 0);
        let mut text = vec![0; copy.metadata().unwrap().len() as usize];
        copy.read_exact_at(&mut text, 0).unwrap();
        assert_eq!(text, format!("[\"{expected}\"]").into_bytes());
    }
    assert_eq!(logs(&bed), []);
}

#[test]
fn an_order_answers_how_many_clients_it_ended_and_an_unknown_one_answers_nothing() {
    let mut bed = Bed::new(|_, _, _| {});
    for (bytes, expected) in
        [(&b"\x06\x00orders"[..], "12"), (b"\x06\x0117", "1"), (b"\x06\x63later", "")]
    {
        let (mut answer, writer) = pipe();
        deliver(&mut bed, bytes, vec![writer]);
        let mut text = String::new();
        answer.read_to_string(&mut text).unwrap();
        assert_eq!(text, expected);
    }
    assert_eq!(bed.told(), [Told::Kill("orders".to_owned()), Told::KillClient(17)]);
    // Whoever asked may have gone.
    let (answer, writer) = pipe();
    drop(answer);
    deliver(&mut bed, b"\x06\x00*", vec![writer]);
    assert!(matches!(&logs(&bed)[..], [(Level::Info, _)]));
}

/// Echoes, and closes when the client has ended.
fn serve(told: &Told, chunk: Option<Chunk<'_>>, sink: &mut dyn Sink) {
    if let Told::Eof(id) = told {
        sink.close(Conn::Client(*id));
    }
    echo(told, chunk, sink);
}

#[test]
fn clients_that_one_worker_accepts_are_shared_and_each_is_counted_once() {
    let (mut zero, mut one) = Bed::pair(serve, serve);
    let mut near: Vec<TcpStream> = (0..16).map(|_| zero.client()).collect();
    until(&mut zero, &mut one, |zero, one| zero.told().len() + one.told().len() == 16);
    assert_eq!((zero.told().len(), one.told().len()), (8, 8));
    assert_eq!((zero.ledger.clients(0), zero.ledger.clients(1)), (8, 8));
    for stream in &mut near {
        stream.write_all(b"who").unwrap();
        until(&mut zero, &mut one, |_, _| stream.peek(&mut [0; 3]).is_ok_and(|len| len == 3));
    }
    drop(near);
    until(&mut zero, &mut one, |zero, _| zero.ledger.clients(0) + zero.ledger.clients(1) == 0);
}

#[test]
fn a_client_that_the_next_worker_refuses_is_closed_and_not_counted() {
    let (mut zero, mut one) = Bed::pair(serve, serve);
    one.engine.parts().0.refuse = true;
    let _first = zero.client();
    zero.until_told(&Told::Accept(client_id(0)));
    let mut second = zero.client();
    until(&mut zero, &mut one, |_, one| one.counter("engine_mails") == 1);
    zero.read_eof(&mut second);
    assert_eq!((zero.ledger.clients(0), zero.ledger.clients(1)), (1, 0));
}

#[test]
fn clients_stay_when_the_other_worker_has_no_room_for_them_or_does_not_serve() {
    let (mut zero, mut one) = Bed::pair(serve, serve);
    one.ledger.stop_accepting();
    let _first = [zero.client(), zero.client(), zero.client()];
    zero.until(|zero| zero.told().len() == 3);
    one.ledger.begin(1);
    while zero.engine.parts().1.post(1, b"?", None) {}
    let _second = zero.client();
    zero.until(|zero| zero.told().len() == 4);
    assert_eq!((zero.ledger.clients(0), zero.ledger.clients(1)), (4, 0));
    one.settle();
    let _third = zero.client();
    until(&mut zero, &mut one, |_, one| one.told().len() == 1);
    assert_eq!((zero.ledger.clients(0), zero.ledger.clients(1)), (4, 1));
}
