//! A test bed: the loop with its epoll driver, run turn by turn, and a scripted core.
//!
//! The script notes what it is told in the order in which it is told, and reacts as a test says.
//! Tests wait for conditions by running turns, never by sleeping. Next on the path: `tests.rs`,
//! `tests_ends.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proxy_core::ids::{CancellerId, ClientId, ClientTag, Conn, ServerId, Slab};
use proxy_core::sink::{Address, Chunk, Gone, Now, Peer, Sink};

use crate::driver::Driver;
use crate::engine::{Engine, clock};
use crate::epoll::Epoll;
use crate::handle::Shared;
use crate::listen::Listener;
use crate::protocol::{Protocol, ServerKeys};
use crate::ring::{self, CommandSender, EventReceiver};

/// How long a condition may take to come true.
const DEADLINE: Duration = Duration::from_secs(20);

/// What a script is told; `Debug` is what it notes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Told {
    Accept(ClientId),
    Bytes(Conn, Vec<u8>),
    Eof(ClientId),
    Connected(Conn),
    Gone(Conn, Option<Gone>),
    Congested(Conn),
    Drained(Conn),
    Timeouts,
    Stop,
    StopNow,
}

type React = Box<dyn FnMut(&Told, Option<Chunk<'_>>, &mut dyn Sink)>;

/// A core that does as a test says.
pub(crate) struct Script {
    clients: Slab<(), ClientTag>,
    react: React,
    pub(crate) told: Vec<Told>,
    pub(crate) deadline: Option<Now>,
    pub(crate) refuse: bool,
}

impl Script {
    fn tell(&mut self, told: Told, chunk: Option<Chunk<'_>>, sink: &mut dyn Sink) {
        (self.react)(&told, chunk, sink);
        self.told.push(told);
    }
}

impl Protocol for Script {
    fn handle_accept(&mut self, _: Peer, _: Now, sink: &mut dyn Sink) -> Option<ClientId> {
        if self.refuse {
            return None;
        }
        let id = self.clients.insert_with(|_| ());
        self.tell(Told::Accept(id), None, sink);
        Some(id)
    }
    fn handle_client_bytes(&mut self, id: ClientId, chunk: Chunk<'_>, _: Now, sink: &mut dyn Sink) {
        self.tell(Told::Bytes(Conn::Client(id), chunk.bytes.to_vec()), Some(chunk), sink);
    }
    fn handle_client_eof(&mut self, id: ClientId, _: Now, sink: &mut dyn Sink) {
        self.tell(Told::Eof(id), None, sink);
    }
    fn handle_client_gone(&mut self, id: ClientId, _: Now, sink: &mut dyn Sink) {
        self.clients.remove(id);
        self.tell(Told::Gone(Conn::Client(id), None), None, sink);
    }
    fn handle_server_connected(&mut self, id: ServerId, _: Now, sink: &mut dyn Sink) {
        self.tell(Told::Connected(Conn::Server(id)), None, sink);
    }
    fn handle_server_bytes(&mut self, id: ServerId, chunk: Chunk<'_>, _: Now, sink: &mut dyn Sink) {
        self.tell(Told::Bytes(Conn::Server(id), chunk.bytes.to_vec()), Some(chunk), sink);
    }
    fn handle_server_gone(&mut self, id: ServerId, why: Gone, _: Now, sink: &mut dyn Sink) {
        self.tell(Told::Gone(Conn::Server(id), Some(why)), None, sink);
    }
    fn handle_canceller_connected(&mut self, id: CancellerId, _: Now, sink: &mut dyn Sink) {
        self.tell(Told::Connected(Conn::Canceller(id)), None, sink);
    }
    fn handle_canceller_gone(&mut self, id: CancellerId, _: Now, sink: &mut dyn Sink) {
        self.tell(Told::Gone(Conn::Canceller(id), None), None, sink);
    }
    fn handle_congested(&mut self, conn: Conn, _: Now, sink: &mut dyn Sink) {
        self.tell(Told::Congested(conn), None, sink);
    }
    fn handle_drained(&mut self, conn: Conn, _: Now, sink: &mut dyn Sink) {
        self.tell(Told::Drained(conn), None, sink);
    }
    fn handle_timeouts(&mut self, now: Now, sink: &mut dyn Sink) {
        assert!(self.deadline.take().is_some_and(|deadline| deadline <= now), "too early");
        self.tell(Told::Timeouts, None, sink);
    }
    fn poll_deadline(&self) -> Option<Now> {
        self.deadline
    }
    fn handle_stop(&mut self, _: Now, sink: &mut dyn Sink) {
        self.tell(Told::Stop, None, sink);
    }
    fn handle_stop_now(&mut self, _: Now, sink: &mut dyn Sink) {
        self.tell(Told::StopNow, None, sink);
    }
    fn is_stopped(&self) -> bool {
        self.told.iter().any(|told| matches!(told, Told::Stop | Told::StopNow))
    }
    fn set_server_keys(&mut self, _: ServerKeys, _: Now, _: &mut dyn Sink) {}
    fn rows(&self) -> Vec<(&'static str, u64)> {
        vec![("told", self.told.len() as u64)]
    }
}

/// An engine around a script, with one TCP listener.
pub(crate) struct Bed {
    pub(crate) engine: Engine<Script, Epoll>,
    pub(crate) commands: CommandSender,
    pub(crate) events: EventReceiver,
    pub(crate) shared: Arc<Shared>,
    listener: TcpListener,
}

impl Bed {
    /// A bed whose script reacts like this.
    pub(crate) fn new(
        react: impl FnMut(&Told, Option<Chunk<'_>>, &mut dyn Sink) + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let copy = Listener::new(listener.try_clone().unwrap().into(), false).unwrap();
        let (events_in, events) = ring::events().unwrap();
        let (commands, commands_out) = ring::commands().unwrap();
        let shared = Arc::new(Shared::default());
        let driver = Epoll::new(vec![copy], commands_out.fd()).unwrap();
        let script = Script {
            clients: Slab::default(),
            react: Box::new(react),
            told: Vec::new(),
            deadline: None,
            refuse: false,
        };
        let engine = Engine::new(script, driver, events_in, commands_out, Arc::clone(&shared));
        Self { engine, commands, events, shared, listener }
    }

    /// A new client's socket, non-blocking.
    pub(crate) fn client(&self) -> TcpStream {
        let stream = TcpStream::connect(self.listener.local_addr().unwrap()).unwrap();
        stream.set_nonblocking(true).unwrap();
        stream
    }

    pub(crate) fn told(&mut self) -> &[Told] {
        &self.engine.parts().0.told
    }

    pub(crate) fn count(&mut self, told: &Told) -> usize {
        self.told().iter().filter(|each| *each == told).count()
    }

    /// Runs turns until this holds.
    pub(crate) fn until(&mut self, mut holds: impl FnMut(&mut Self) -> bool) {
        let start = Instant::now();
        while !holds(self) {
            assert!(start.elapsed() < DEADLINE, "not in time; told: {:?}", self.summary());
            self.engine.turn(5).unwrap();
        }
    }

    /// Runs turns until the script was told this.
    pub(crate) fn until_told(&mut self, told: &Told) {
        self.until(|bed| bed.count(told) > 0);
    }

    /// Runs turns until nothing is ready, and tells how many that took: a spinning loop fails.
    pub(crate) fn settle(&mut self) {
        for _ in 0..100 {
            let driver = self.engine.parts().1;
            driver.wait(0).unwrap();
            let Some(completion) = driver.next(clock()) else { return };
            self.engine.dispatch(completion);
            self.engine.complete();
        }
        panic!("the loop spins; told: {:?}", self.summary());
    }

    /// Runs turns while reading exactly this many bytes.
    pub(crate) fn read(&mut self, stream: &mut impl Read, wanted: usize) -> Vec<u8> {
        let mut got = vec![0; wanted];
        let mut len = 0;
        self.until(|_| {
            match stream.read(&mut got[len..]) {
                Ok(0) => assert_eq!(len, wanted, "end of file after {len} of {wanted} bytes"),
                Ok(more) => len += more,
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
            len == wanted
        });
        got
    }

    /// Runs turns until this stream ends, and fails if it is reset.
    pub(crate) fn read_eof(&mut self, stream: &mut impl Read) {
        self.until(|_| match stream.read(&mut [0; 16]) {
            Ok(read) => {
                assert_eq!(read, 0, "surplus bytes");
                true
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                false
            }
        });
    }

    /// Runs turns while writing all of this.
    pub(crate) fn write(&mut self, stream: &mut impl Write, bytes: &[u8]) {
        let mut len = 0;
        self.until(|_| {
            match stream.write(&bytes[len..]) {
                Ok(more) => len += more,
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
            len == bytes.len()
        });
    }

    pub(crate) fn counter(&mut self, name: &str) -> u64 {
        let rows = self.engine.parts().1.rows();
        rows.iter().find(|(each, _)| *each == name).unwrap().1
    }

    fn summary(&mut self) -> Vec<String> {
        let text = |told: &Told| match told {
            Told::Bytes(conn, bytes) => format!("Bytes({conn:?}, {})", bytes.len()),
            other => format!("{other:?}"),
        };
        self.told().iter().rev().take(20).map(text).collect()
    }
}

/// The id that the first client of a bed gets, and so on.
pub(crate) fn client_id(index: u32) -> ClientId {
    ClientId::from_parts(index, 1)
}

/// The connection of the first client of a bed, and so on.
pub(crate) fn client(index: u32) -> Conn {
    Conn::Client(client_id(index))
}

/// A server's connection.
pub(crate) fn server(index: u32, generation: u32) -> Conn {
    Conn::Server(ServerId::from_parts(index, generation))
}

/// Bytes in which every position looks different from its neighbours.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

/// Makes closing this socket send a reset.
pub(crate) fn reset(stream: TcpStream) {
    let linger = Some(Duration::ZERO);
    rustix::net::sockopt::set_socket_linger(&stream, linger).unwrap();
    drop(stream);
}

/// More than the kernel's buffers take.
pub(crate) const LARGE: usize = 12 << 20;

/// Sends back all that a client says.
pub(crate) fn echo(told: &Told, chunk: Option<Chunk<'_>>, sink: &mut dyn Sink) {
    if let (Told::Bytes(conn @ Conn::Client(_), _), Some(chunk)) = (told, chunk) {
        sink.send(*conn, chunk.id, 0..chunk.bytes.len());
    }
}

/// Connects server 0 when the first client arrives, and relays between the two with back-pressure.
pub(crate) fn relay(address: Address) -> impl FnMut(&Told, Option<Chunk<'_>>, &mut dyn Sink) {
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
pub(crate) fn tcp_server() -> (TcpListener, Address) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = Address::Tcp(listener.local_addr().unwrap());
    (listener, address)
}

/// The same over a Unix socket; the directory goes with the first part.
pub(crate) fn unix_server(name: &str) -> (UnixListener, Address) {
    let path = std::env::temp_dir().join(format!("engine-{}-{name}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).unwrap();
    (listener, Address::Unix(path.to_str().unwrap().to_owned()))
}
