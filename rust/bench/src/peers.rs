//! A peer's end of a connection: it says bytes and hears messages, and runs the proxy meanwhile.
//!
//! Peers never block: while they wait, the engine takes turns. So the order of everything is the
//! same in each run. Next on the path: `stage.rs`.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use engine::Turns;
use pgwire::frame::Head;

use crate::Failure;

/// How long one answer may take.
const DEADLINE: Duration = Duration::from_secs(60);
/// Bytes that a peer reads at a time.
const READ_BYTES: usize = 64 * 1024;

/// One end of a connection, the other of which is the proxy's.
pub(crate) struct Peer {
    stream: UnixStream,
    heard: Vec<u8>,
}

impl Peer {
    /// Takes over a connected socket.
    pub(crate) fn new(stream: UnixStream) -> Result<Self, Failure> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, heard: Vec::new() })
    }

    /// Sends bytes that the socket takes at once.
    pub(crate) fn say(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        Ok(self.stream.write_all(bytes)?)
    }

    /// Runs the proxy until messages have come whose last one has this tag; gives them all.
    pub(crate) fn hear(&mut self, turns: &mut Turns, last: u8) -> Result<Vec<u8>, Failure> {
        self.hear_until(turns, |heard| ends_with(heard, last))
    }

    /// Runs the proxy until `enough` says so of what has come; gives it all.
    pub(crate) fn hear_until(
        &mut self,
        turns: &mut Turns,
        enough: impl Fn(&[u8]) -> Result<bool, Failure>,
    ) -> Result<Vec<u8>, Failure> {
        let start = Instant::now();
        loop {
            let before = self.heard.len();
            let open = self.read()?;
            if self.heard.len() > before && enough(&self.heard)? {
                return Ok(std::mem::take(&mut self.heard));
            }
            if !open {
                return Err("the proxy closed a connection".into());
            }
            turn(turns, start)?;
        }
    }

    /// Runs the proxy until it has closed this connection.
    pub(crate) fn hear_end(mut self, turns: &mut Turns) -> Result<(), Failure> {
        let start = Instant::now();
        while self.read()? {
            turn(turns, start)?;
        }
        if self.heard.is_empty() { Ok(()) } else { Err("words after the last ones".into()) }
    }

    /// Reads what is there; false: the other side has ended.
    fn read(&mut self) -> Result<bool, Failure> {
        let mut bytes = [0; READ_BYTES];
        loop {
            match self.stream.read(&mut bytes) {
                Ok(0) => return Ok(false),
                Ok(length) => self.heard.extend_from_slice(bytes.get(..length).unwrap_or_default()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// One turn of the proxy, unless the wait has lasted too long.
pub(crate) fn turn(turns: &mut Turns, start: Instant) -> Result<(), Failure> {
    if start.elapsed() > DEADLINE {
        return Err("an answer did not come in time".into());
    }
    Ok(turns.turn()?)
}

/// Whether these bytes are whole messages, the last of them with this tag.
fn ends_with(mut bytes: &[u8], last: u8) -> Result<bool, Failure> {
    while let Some(head) = Head::read(bytes).map_err(|malformed| malformed.0)? {
        let Some(rest) = bytes.get(head.total()..) else { return Ok(false) };
        if rest.is_empty() {
            return Ok(head.tag == last);
        }
        bytes = rest;
    }
    Ok(false)
}
