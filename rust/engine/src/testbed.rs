//! A test bed: the loop with one of its drivers, run turn by turn, and a scripted core.
//!
//! The script notes what it is told in the order in which it is told, and reacts as a test says.
//! Tests wait for conditions by running turns, never by sleeping, and do not know which driver
//! runs: each is there once for every driver. Next on the path: `tests.rs`, `tests_ends.rs`,
//! `tests_mail.rs`, `tests_both.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use auth::Secret;
use ledger::{Ledger, Limit};
use proxy_core::config::{ClientAuth, Config, Credential, PoolMode};
use proxy_core::core::KeysAnswer;
use proxy_core::ids::{CancellerId, ClientId, ClientTag, Conn, ServerId, Slab};
use proxy_core::show::Show;
use proxy_core::sink::{Address, Chunk, Gone, Now, Peer, Sink};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    sendmsg, socketpair,
};

use crate::driver::Driver;
use crate::engine::{Engine, Place, clock};
use crate::epoll::Epoll;
use crate::handle::Shared;
use crate::limits::RECEIVE_BYTES;
use crate::listen::Listener;
use crate::page::Page;
use crate::post::Post;
use crate::protocol::Protocol;
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
    Passed(Conn, bool),
    Mail(Vec<u8>),
    Adopted(Conn),
    Settings(u64),
    Kill(String),
    KillClient(u64),
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
    /// How often it was told to look at the page.
    pub(crate) looks: usize,
    ledger: Ledger,
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
    fn handle_passed(&mut self, conn: Conn, passed: bool, _: Now, sink: &mut dyn Sink) {
        if let (Conn::Client(id), true) = (conn, passed) {
            self.clients.remove(id);
        }
        self.tell(Told::Passed(conn, passed), None, sink);
    }
    /// Takes a server as its server 0 and a client as a new one.
    fn handle_mail(&mut self, mail: &[u8], _: Now, sink: &mut dyn Sink) -> Option<Conn> {
        self.tell(Told::Mail(mail.to_vec()), None, sink);
        match mail {
            _ if self.refuse => None,
            [1, ..] => Some(server(0, 1)),
            _ => Some(Conn::Client(self.clients.insert_with(|_| ()))),
        }
    }
    fn handle_adopted(&mut self, conn: Conn, _: Now, sink: &mut dyn Sink) {
        self.tell(Told::Adopted(conn), None, sink);
    }
    fn handle_look(&mut self, _: Now, _: &mut dyn Sink) {
        self.ledger.silence();
        self.looks += 1;
    }
    fn handle_settings(&mut self, _: Config, epoch: u64, _: Now, sink: &mut dyn Sink) {
        self.tell(Told::Settings(epoch), None, sink);
    }
    fn handle_kill(&mut self, database: &str, _: Now, sink: &mut dyn Sink) -> u32 {
        self.tell(Told::Kill(database.to_owned()), None, sink);
        12
    }
    fn kill_client(&mut self, id: u64, _: Now, sink: &mut dyn Sink) -> u32 {
        self.tell(Told::KillClient(id), None, sink);
        1
    }
    fn show(&self, what: Show, _: Now, out: &mut Vec<u8>) {
        out.extend_from_slice(format!("[\"{what:?}\"]").as_bytes());
    }
    fn set_server_keys(&mut self, _: KeysAnswer, _: Now, _: &mut dyn Sink) {}
    fn publish(&mut self) -> Vec<(&'static str, u64)> {
        vec![("told", self.told.len() as u64)]
    }
}

/// What tests look at that the loop does not.
pub(crate) trait Inspect: Driver + Sized {
    /// Bytes that one turn may add to a queue before the core can have it stop.
    fn turn_bytes(&self) -> usize;
    /// A driver.
    fn create(wake: BorrowedFd<'_>, post: Post) -> io::Result<Self>;
    /// A connection's socket.
    fn fd(&mut self, conn: Conn) -> BorrowedFd<'_>;
    /// Bytes that wait for a connection.
    fn queued(&mut self, conn: Conn) -> usize;
    /// Whether nothing is left to be done but what the kernel will report.
    fn is_at_rest(&mut self) -> bool;
    /// Whether no received byte is in the driver's hands.
    fn holds_nothing(&self) -> bool;
    /// As the driver's own look at dead links, with another patience.
    fn look_for_dead_links(&mut self, retransmits: u8);
    /// Does now what comes with time, but for what ends connections.
    fn age(&mut self);
}

impl Inspect for Epoll {
    fn turn_bytes(&self) -> usize {
        RECEIVE_BYTES
    }
    fn create(wake: BorrowedFd<'_>, post: Post) -> io::Result<Self> {
        Self::new(wake, post)
    }
    fn fd(&mut self, conn: Conn) -> BorrowedFd<'_> {
        self.table.get(conn).unwrap().fd.as_fd()
    }
    fn queued(&mut self, conn: Conn) -> usize {
        self.table.get(conn).unwrap().queued()
    }
    fn is_at_rest(&mut self) -> bool {
        true
    }
    fn holds_nothing(&self) -> bool {
        self.buffer.is_some()
    }
    fn look_for_dead_links(&mut self, retransmits: u8) {
        self.give_up_unreachable(retransmits);
    }
    fn age(&mut self) {}
}

/// An engine around a script, with one TCP listener, whose id is 1.
pub(crate) struct Bed<D> {
    pub(crate) engine: Engine<Script, D>,
    pub(crate) commands: CommandSender,
    pub(crate) events: EventReceiver,
    pub(crate) shared: Arc<Shared>,
    pub(crate) ledger: Ledger,
    pub(crate) listener: TcpListener,
}

impl<D: Inspect> Bed<D> {
    /// A bed whose script reacts like this.
    pub(crate) fn new(
        react: impl FnMut(&Told, Option<Chunk<'_>>, &mut dyn Sink) + 'static,
    ) -> Self {
        let ledger = Page::create(4).unwrap().ledger(0).unwrap();
        Self::at(ledger, posts(1).remove(0), Box::new(react))
    }

    /// A bed with this mailbox whose script does nothing.
    pub(crate) fn with(post: Post) -> Self {
        Self::at(Page::create(4).unwrap().ledger(0).unwrap(), post, Box::new(|_, _, _| {}))
    }

    /// Two beds on one page, workers 0 and 1, whose scripts react like this.
    pub(crate) fn pair(
        zero: impl FnMut(&Told, Option<Chunk<'_>>, &mut dyn Sink) + 'static,
        one: impl FnMut(&Told, Option<Chunk<'_>>, &mut dyn Sink) + 'static,
    ) -> (Self, Self) {
        let page = Page::create(4).unwrap();
        let mut posts = posts(2);
        let one = Self::at(page.ledger(1).unwrap(), posts.remove(1), Box::new(one));
        (Self::at(page.ledger(0).unwrap(), posts.remove(0), Box::new(zero)), one)
    }

    fn at(ledger: Ledger, post: Post, react: React) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (events_in, events) = ring::events().unwrap();
        let (commands, commands_out) = ring::commands().unwrap();
        let shared = Arc::new(Shared::default());
        let mut driver = D::create(commands_out.fd(), post).unwrap();
        let copy = Listener::new(listener.try_clone().unwrap().into(), false).unwrap();
        driver.set_listeners(vec![(1, copy)]).unwrap();
        let script = Script {
            clients: Slab::default(),
            react,
            told: Vec::new(),
            deadline: None,
            refuse: false,
            looks: 0,
            ledger: ledger.clone(),
        };
        let place = Place {
            ledger: ledger.clone(),
            incarnation: 1,
            epoch: 1,
            parse,
            events: events_in,
            commands: commands_out,
            shared: Arc::clone(&shared),
        };
        let engine = Engine::new(script, driver, place);
        ledger.begin(1);
        Self { engine, commands, events, shared, ledger, listener }
    }

    /// Gives the listener up and takes it again.
    pub(crate) fn listen_anew(&mut self) {
        self.engine.parts().1.stop_listening();
        let copy = Listener::new(self.listener.try_clone().unwrap().into(), false).unwrap();
        self.engine.parts().1.set_listeners(vec![(1, copy)]).unwrap();
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

    /// Runs turns until nothing is ready; a spinning loop fails. What a closed client has sent is
    /// thrown away meanwhile: with a tiny ring some blocks of it a turn.
    pub(crate) fn settle(&mut self) {
        for _ in 0..1_000 {
            let driver = self.engine.parts().1;
            driver.wait(0).unwrap();
            let Some(completion) = driver.next(clock()) else {
                if driver.is_at_rest() {
                    return;
                }
                continue;
            };
            self.engine.dispatch(completion);
            self.engine.complete();
        }
        panic!("the loop spins; told: {:?}", self.summary());
    }

    /// Whether the driver has nothing to tell: the loop would sleep.
    pub(crate) fn is_quiet(&mut self) -> bool {
        let driver = self.engine.parts().1;
        (0..100).any(|_| {
            driver.wait(0).unwrap();
            assert!(driver.next(clock()).is_none(), "something is told");
            driver.is_at_rest()
        })
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

/// The mailboxes of so many workers.
pub(crate) fn posts(workers: usize) -> Vec<Post> {
    let pairs: Vec<_> = (0..workers).map(|_| mailbox()).collect();
    let copies = || pairs.iter().map(|(_, outbox)| outbox.try_clone().unwrap()).collect();
    let inboxes: Vec<_> = pairs.iter().map(|(inbox, _)| inbox.try_clone().unwrap()).collect();
    inboxes.into_iter().map(|inbox| Post::new(inbox, copies())).collect()
}

/// One worker's inbox and its other end.
pub(crate) fn mailbox() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
}

/// Sends whatever it is told to, which the product's own `Post` would not.
pub(crate) fn send(outbox: &OwnedFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(fds)));
    let sent = sendmsg(outbox, &[IoSlice::new(bytes)], &mut control, SendFlags::empty());
    assert_eq!(sent.unwrap(), bytes.len());
}

/// A file in memory.
pub(crate) fn memory(text: &str) -> OwnedFd {
    let memory = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::io::pwrite(&memory, text.as_bytes(), 0).unwrap();
    memory
}

/// Understands the settings "settings" and nothing else.
pub(crate) fn parse(text: &[u8]) -> Result<Config, String> {
    if text != b"settings" {
        return Err(format!("what is {}?", String::from_utf8_lossy(text)));
    }
    Ok(Config {
        name: "test".to_owned(),
        workers: 1,
        allow: Vec::new(),
        client_connections_max: 10,
        credentials: vec![Credential {
            user: "app".to_owned(),
            client_auth: ClientAuth::Trust,
            databases: Vec::new(),
            server_user: "app".to_owned(),
            server_password: Some(Secret::new(b"pencil".to_vec())),
        }],
        targets: Vec::new(),
        target_name: "test".to_owned(),
        mode: PoolMode::Transaction,
        limit: Limit::Connections(1),
        min_connections: 0,
        max_idle_percent: 50,
        borrow_timeout_ms: 1_000,
        idle_timeout_ms: 0,
        max_lifetime_ms: 0,
        check_delay_ms: 0,
        idle_client_timeout_ms: 0,
        idle_transaction_timeout_ms: 0,
        query_timeout_ms: 0,
        query_wait_notify_ms: 0,
        login_timeout_ms: 1_000,
        connect_timeout_ms: 1_000,
        init_query: String::new(),
        prepared_statements_max: 10,
        paused: Vec::new(),
        reconnect: Vec::new(),
    })
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

/// Lets this process open so many files, if it may.
pub(crate) fn allow_descriptors(count: u64) {
    use rustix::process::{Resource, getrlimit, setrlimit};

    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < count) {
        limit.current = Some(limit.maximum.map_or(count, |maximum| maximum.min(count)));
        setrlimit(Resource::Nofile, limit).unwrap();
    }
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
