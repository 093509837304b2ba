//! What an idle client owns: the heap bytes that one more of them takes, core and engine together.
//!
//! A process of its own, since it counts all that the allocator gives out. Each client has worked
//! before: what a request needed must have gone with its answer. The kernel's memory is not
//! counted. Sizes of single structs are checked beside them (`client.rs`, `table.rs`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use engine::{Backend, Handle, Listener, Page, Post, Setup};
use ledger::Limit;
use pgwire::frame::Head;
use pgwire::{frontend, tag, write};
use proxy_core::config::{ClientAuth, Config, Credential, PoolMode};
use proxy_core::sink::Address;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

/// Heap bytes in use, as they were asked for.
static BYTES: AtomicI64 = AtomicI64::new(0);
/// Heap blocks in use.
static BLOCKS: AtomicI64 = AtomicI64::new(0);

struct Counting;

// SAFETY: it hands every call to the system's allocator as it came, and only counts.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BYTES.fetch_add(layout.size() as i64, Ordering::Relaxed);
        BLOCKS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is the one that this asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        BYTES.fetch_sub(layout.size() as i64, Ordering::Relaxed);
        BLOCKS.fetch_sub(1, Ordering::Relaxed);
        // SAFETY: as above; `alloc` has got the block from there.
        unsafe { System.dealloc(start, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// One test at a time has the counters.
static ALONE: Mutex<()> = Mutex::new(());

/// Clients at each look: with the server, powers of two, where tables that grow by doubling have no
/// room to spare.
const CROWDS: [usize; 3] = [63, 127, 255];
const DEADLINE: Duration = Duration::from_secs(20);

/// The settings are the target's path.
fn parse(target: &[u8]) -> Result<Config, String> {
    Ok(Config {
        name: "idle".to_owned(),
        workers: 1,
        allow: Vec::new(),
        client_connections_max: 10_000,
        credentials: vec![Credential {
            user: "app".to_owned(),
            client_auth: ClientAuth::Trust,
            databases: Vec::new(),
            server_user: "app".to_owned(),
            server_password: None,
        }],
        targets: vec![Address::Unix(String::from_utf8_lossy(target).into_owned())],
        target_name: "idle".to_owned(),
        mode: PoolMode::Transaction,
        limit: Limit::Connections(1),
        min_connections: 0,
        max_idle_percent: 100,
        borrow_timeout_ms: 120_000,
        idle_timeout_ms: 300_000,
        max_lifetime_ms: 86_400_000,
        check_delay_ms: 30_000,
        idle_client_timeout_ms: 1_800_000,
        idle_transaction_timeout_ms: 0,
        query_timeout_ms: 0,
        query_wait_notify_ms: 5_000,
        login_timeout_ms: 60_000,
        connect_timeout_ms: 15_000,
        init_query: String::new(),
        prepared_statements_max: 500,
        paused: Vec::new(),
        reconnect: Vec::new(),
    })
}

fn start(backend: Backend, folder: &Path) -> Handle {
    let memory = memfd_create("settings", MemfdFlags::CLOEXEC).unwrap();
    let target = folder.join("target");
    rustix::io::pwrite(&memory, target.to_str().unwrap().as_bytes(), 0).unwrap();
    let clients = UnixListener::bind(folder.join("clients")).unwrap();
    let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    let (inbox, outbox) = pair.unwrap();
    let handle = Handle::new(Setup {
        backend,
        listeners: vec![(1, Listener::new(clients.into(), true).unwrap())],
        ledger: Page::create(4).unwrap().ledger(0).unwrap(),
        incarnation: 1,
        epoch: 1,
        settings: memory,
        parse,
        post: Post::new(inbox, vec![outbox]),
    });
    let handle = handle.unwrap();
    handle.start().unwrap();
    handle
}

/// A server that answers each message on the proxy's one connection, until that ends.
fn serve(listener: &UnixListener) {
    let (mut stream, _) = listener.accept().unwrap();
    let (mut heard, mut answer) = (Vec::new(), Vec::new());
    let mut started = false;
    let mut bytes = [0; 4096];
    loop {
        match stream.read(&mut bytes).unwrap() {
            0 => return,
            length => heard.extend_from_slice(&bytes[..length]),
        }
        if !started && frontend::startup_length(&heard).unwrap() == Some(heard.len()) {
            started = true;
            heard.clear();
            write::authentication_ok(&mut answer);
            write::parameter_status(&mut answer, b"server_version", b"18.0");
            write::backend_key_data(&mut answer, 42, b"abcd");
            write::ready_for_query(&mut answer, b'I');
        }
        while let Some(head) = Head::read(&heard).unwrap().filter(|_| started) {
            if heard.len() < head.total() {
                break;
            }
            reply(head.tag, &mut answer);
            heard.drain(..head.total());
        }
        stream.write_all(&answer).unwrap();
        answer.clear();
    }
}

fn reply(tag: u8, out: &mut Vec<u8>) {
    match tag {
        tag::PARSE => write::parse_complete(out),
        tag::BIND => write::bind_complete(out),
        tag::CLOSE => write::close_complete(out),
        tag::EXECUTE => write::command_complete(out, b"SELECT 0"),
        tag::SYNC => write::ready_for_query(out, b'I'),
        tag::QUERY => {
            write::command_complete(out, b"SELECT 0");
            write::ready_for_query(out, b'I');
        }
        _ => {}
    }
}

/// What a client says, made beforehand: a client itself owns no heap here.
struct Words {
    startup: Vec<u8>,
    query: Vec<u8>,
    batch: Vec<u8>,
    prepare: Vec<u8>,
}

impl Words {
    fn new() -> Self {
        let made = |write: &dyn Fn(&mut Vec<u8>)| {
            let mut out = Vec::new();
            write(&mut out);
            out
        };
        let text = format!("SELECT '{}'", "x".repeat(10_000));
        Self {
            startup: made(&|out| {
                let name: (&[u8], &[u8]) = (b"application_name", b"idle test");
                write::startup(out, 0, &[(b"user", b"app"), (b"database", b"shop"), name]);
            }),
            query: made(&|out| write::query(out, text.as_bytes())),
            batch: made(&|out| {
                write::parse(out, b"once", b"SELECT $1", &[]);
                write::bind_head(out, b"", b"once", 6);
                out.extend([0; 6]);
                write::execute(out, b"", 0);
                write::close(out, b'S', b"once");
                write::sync(out);
            }),
            prepare: made(&|out| {
                write::parse(out, b"by_id", b"SELECT name FROM items WHERE id = $1", &[]);
                write::sync(out);
            }),
        }
    }
}

/// Reads up to the end of a request's answer, which is all that comes.
fn hear_ready(client: &mut UnixStream) {
    let mut bytes = [0; 1024];
    let mut len = 0;
    while !bytes[..len].ends_with(b"Z\0\0\0\x05I") {
        let more = client.read(&mut bytes[len..]).unwrap();
        assert_ne!(more, 0, "the proxy has closed, or said more than there is room for");
        len += more;
    }
}

/// A client that has logged in, asked in pieces, run a batch, and is idle.
fn client(folder: &Path, words: &Words) -> UnixStream {
    let mut client = UnixStream::connect(folder.join("clients")).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client.write_all(&words.startup).unwrap();
    hear_ready(&mut client);
    let (begin, rest) = words.query.split_at(5_000);
    client.write_all(begin).unwrap();
    client.write_all(rest).unwrap();
    hear_ready(&mut client);
    client.write_all(&words.batch).unwrap();
    hear_ready(&mut client);
    client
}

/// Heap bytes and blocks in use once the engine has nothing left to do.
fn in_use(handle: &Handle) -> (i64, i64) {
    // An answer comes between two inputs, and from the second on it takes the first's place.
    for _ in 0..3 {
        drop(handle.stats());
    }
    (BYTES.load(Ordering::Relaxed), BLOCKS.load(Ordering::Relaxed))
}

/// What was found, each for one client.
struct Found {
    client_bytes: i64,
    client_blocks: i64,
    statement_bytes: i64,
}

/// Measures one more idle client, and one statement that it keeps prepared.
fn measure(handle: &Handle, folder: &Path) -> Found {
    let words = Words::new();
    let mut clients: Vec<UnixStream> = Vec::with_capacity(CROWDS[2]);
    let looks = CROWDS.map(|crowd| {
        while clients.len() < crowd {
            clients.push(client(folder, &words));
        }
        in_use(handle)
    });
    // The smaller of two differences: a buffer of the engine's own may have grown in one of them.
    let each = |before: usize| {
        let ((bytes, blocks), (bytes_then, blocks_then)) = (looks[before], looks[before + 1]);
        let more = (CROWDS[before + 1] - CROWDS[before]) as i64;
        ((bytes_then - bytes) / more, (blocks_then - blocks) / more)
    };
    let (client_bytes, client_blocks) = each(0).min(each(1));
    for each in &mut clients {
        each.write_all(&words.prepare).unwrap();
        hear_ready(each);
    }
    let statement_bytes = (in_use(handle).0 - looks[2].0) / CROWDS[2] as i64;
    Found { client_bytes, client_blocks, statement_bytes }
}

fn found(backend: Backend) -> Found {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let name = format!("idle-{}-{}", std::process::id(), backend.name());
    let folder = std::env::temp_dir().join(name);
    std::fs::create_dir(&folder).unwrap();
    let target = UnixListener::bind(folder.join("target")).unwrap();
    let server = thread::spawn(move || serve(&target));
    let handle = start(backend, &folder);
    let found = measure(&handle, &folder);
    handle.stop_now().unwrap();
    handle.join();
    server.join().unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    println!(
        "{}: {} bytes and {} blocks a client, {} bytes a first statement",
        backend.name(),
        found.client_bytes,
        found.client_blocks,
        found.statement_bytes
    );
    found
}

/// What the core keeps is the same for both drivers: the session and a name of its own.
fn check(found: &Found, client_bytes_max: i64) {
    assert!((1..=client_bytes_max).contains(&found.client_bytes), "{} bytes", found.client_bytes);
    assert_eq!(found.client_blocks, 2, "blocks of its own");
    let bytes = found.statement_bytes;
    assert!((1..=320).contains(&bytes), "{bytes} bytes for a statement's name");
}

#[test]
fn an_idle_client_owns_at_most_430_bytes_with_epoll() {
    check(&found(Backend::Epoll), 430);
}

#[test]
fn an_idle_client_owns_at_most_510_bytes_with_uring() {
    check(&found(Backend::Uring), 510);
}
