//! What a client sends: start-up packets and the bodies of typed messages, borrowed.
//!
//! A body is what follows the head (`frame.rs`). Not here: messages that have nothing to read
//! (Sync, Flush, Terminate, CopyDone) and those that are only relayed (CopyData, FunctionCall, the
//! values of a Bind). Next on the path: `backend.rs`, the answers.

use std::fmt;

use crate::Malformed;
use crate::cursor::Cursor;

/// Bytes of the shortest start-up packet: length word and protocol version.
const STARTUP_BYTES_MIN: u32 = 8;
/// Bytes of the longest: PostgreSQL's MAX_STARTUP_PACKET_LENGTH.
const STARTUP_BYTES_MAX: u32 = 10_000;
/// Parameters of a start-up packet; drivers send about ten, and names are compared with one
/// another.
const STARTUP_PAIRS_MAX: usize = 64;
/// Bytes of a cancel secret, as protocol 3.2 bounds it.
const SECRET_BYTES_MAX: usize = 256;

/// The major number that requests rather than versions carry.
const REQUEST_MAJOR: u16 = 1234;
const CANCEL_MINOR: u16 = 5678;
const SSL_MINOR: u16 = 5679;
const GSSENC_MINOR: u16 = 5680;

/// Reads how long the start-up packet at the start of `bytes` is: total bytes, length word
/// included, 8 to 10,000. `None` when fewer than four bytes are there.
///
/// # Errors
/// The client's fault: a length outside 8..=10,000 (most often not a PostgreSQL client at all).
pub fn startup_length(bytes: &[u8]) -> Result<Option<usize>, Malformed> {
    let Some(word) = bytes.first_chunk::<4>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes(*word);
    if (STARTUP_BYTES_MIN..=STARTUP_BYTES_MAX).contains(&length) {
        Ok(Some(length as usize))
    } else {
        Err(Malformed("invalid length of startup packet"))
    }
}

/// A start-up packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Startup<'a> {
    /// SSLRequest.
    Ssl,
    /// GSSENCRequest.
    GssEnc,
    /// CancelRequest.
    Cancel {
        /// The process id of the BackendKeyData that the client was given.
        pid: u32,
        /// Its secret, 1 to 256 bytes (4 up to protocol 3.0). Compare it in constant time.
        secret: &'a [u8],
    },
    /// StartupMessage of protocol 3, any minor version.
    Session(StartupMessage<'a>),
    /// Any other version or request.
    Unsupported {
        /// The upper 16 bits.
        major: u16,
        /// The lower 16 bits.
        minor: u16,
    },
}

// By hand, so that a cancel secret never reaches a log (I9).
impl fmt::Debug for Startup<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ssl => f.write_str("Ssl"),
            Self::GssEnc => f.write_str("GssEnc"),
            Self::Cancel { pid, .. } => {
                f.debug_struct("Cancel").field("pid", pid).finish_non_exhaustive()
            }
            Self::Session(message) => f.debug_tuple("Session").field(message).finish(),
            Self::Unsupported { major, minor } => {
                f.debug_struct("Unsupported").field("major", major).field("minor", minor).finish()
            }
        }
    }
}

/// A StartupMessage of protocol 3 whose parameters have been checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StartupMessage<'a> {
    /// The minor version asked for; 0 is 3.0, 2 is 3.2, 9999 is a client that greases.
    pub minor: u16,
    /// NUL-terminated texts, names and values in turn, without the final NUL.
    pairs: &'a [u8],
}

impl<'a> StartupMessage<'a> {
    /// The parameters in the order they came: name and value, both without NUL; at most 64 of them,
    /// no name empty, none twice.
    pub fn parameters(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        let mut cursor = Cursor::new(self.pairs);
        std::iter::from_fn(move || {
            let name = cursor.string().ok()?;
            Some((name, cursor.string().ok()?))
        })
    }

    fn read(minor: u16, parameters: &'a [u8]) -> Result<Self, Malformed> {
        // PostgreSQL stops at the first empty name and demands that this NUL be the last byte.
        const LAYOUT: Malformed =
            Malformed("invalid startup packet layout: expected terminator as last byte");
        let mut cursor = Cursor::new(parameters);
        let mut names: [&[u8]; STARTUP_PAIRS_MAX] = [&[]; STARTUP_PAIRS_MAX];
        let mut free = names.iter_mut();
        loop {
            let name = cursor.string().map_err(|_| LAYOUT)?;
            if name.is_empty() {
                break;
            }
            cursor.string().map_err(|_| LAYOUT)?;
            let slot = free.next().ok_or(Malformed("too many parameters in startup packet"))?;
            *slot = name;
        }
        cursor.end().map_err(|_| LAYOUT)?;
        let unused = free.len();
        let used = names.get(..STARTUP_PAIRS_MAX - unused).unwrap_or_default();
        let twice = used
            .iter()
            .enumerate()
            .any(|(index, name)| used.iter().skip(index + 1).any(|other| other == name));
        if twice {
            // Two layers that disagree on which of two `user`s counts are a way past
            // authentication.
            return Err(Malformed("duplicate parameter in startup packet"));
        }
        let pairs = parameters.split_last().map_or(parameters, |(_, pairs)| pairs);
        Ok(Self { minor, pairs })
    }
}

/// Reads a whole start-up packet, length word included.
///
/// # Errors
/// The client's fault: a length word that is out of bounds or not the packet's length, an
/// SSLRequest or GSSENCRequest with more than its eight bytes, a CancelRequest whose secret is not
/// 1 to 256 bytes long, or parameters that are not pairs of texts with a NUL behind the last.
pub fn read_startup(packet: &[u8]) -> Result<Startup<'_>, Malformed> {
    if startup_length(packet)? != Some(packet.len()) {
        return Err(Malformed("length of startup packet does not match"));
    }
    let mut cursor = Cursor::new(packet);
    cursor.u32()?;
    let (major, minor) = (cursor.u16()?, cursor.u16()?);
    match (major, minor) {
        (3, _) => StartupMessage::read(minor, cursor.rest()).map(Startup::Session),
        (REQUEST_MAJOR, CANCEL_MINOR) => {
            let pid = cursor.u32()?;
            let secret = cursor.rest();
            if secret.is_empty() || secret.len() > SECRET_BYTES_MAX {
                return Err(Malformed("invalid length of cancel key"));
            }
            Ok(Startup::Cancel { pid, secret })
        }
        (REQUEST_MAJOR, SSL_MINOR) => cursor.end().map(|()| Startup::Ssl),
        (REQUEST_MAJOR, GSSENC_MINOR) => cursor.end().map(|()| Startup::GssEnc),
        _ => Ok(Startup::Unsupported { major, minor }),
    }
}

/// The body of a Parse.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Parse<'a> {
    /// The statement's name, empty for the unnamed one.
    pub name: &'a [u8],
    /// The SQL text.
    pub query: &'a [u8],
    /// The parameter types given in advance: big-endian u32 one after another, 0 for "infer".
    pub oids: &'a [u8],
}

impl<'a> Parse<'a> {
    /// Reads a whole body.
    ///
    /// # Errors
    /// The client's fault: a text without its NUL, or a count of types that is not how many follow.
    pub fn read(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut cursor = Cursor::new(body);
        let name = cursor.string()?;
        let query = cursor.string()?;
        let count = usize::from(cursor.u16()?);
        let oids = cursor.bytes(count * 4)?;
        cursor.end()?;
        Ok(Self { name, query, oids })
    }
}

/// The two names at the start of a Bind; the rest is relayed unread.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BindNames<'a> {
    /// The portal's name, empty for the unnamed one.
    pub portal: &'a [u8],
    /// The statement's name, empty for the unnamed one.
    pub statement: &'a [u8],
    /// How many bytes of the body the names and their NULs take: the rest begins here.
    pub rest: usize,
}

impl<'a> BindNames<'a> {
    /// Reads the names from the start of a body, which need not be whole; `None` when the second
    /// NUL is not there yet. If the body is whole, `None` means that it is malformed.
    #[must_use]
    pub fn read(prefix: &'a [u8]) -> Option<Self> {
        let mut cursor = Cursor::new(prefix);
        let portal = cursor.string().ok()?;
        let statement = cursor.string().ok()?;
        Some(Self { portal, statement, rest: portal.len() + statement.len() + 2 })
    }
}

/// The body of a Describe or a Close.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Named<'a> {
    /// `S` for a prepared statement, `P` for a portal.
    pub kind: u8,
    /// The name, empty for the unnamed one.
    pub name: &'a [u8],
}

impl<'a> Named<'a> {
    /// Reads a whole body.
    ///
    /// # Errors
    /// The client's fault: a kind other than `S` and `P`, a name without its NUL, bytes behind it.
    pub fn read(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut cursor = Cursor::new(body);
        let kind = cursor.u8()?;
        let name = cursor.string()?;
        cursor.end()?;
        match kind {
            b'S' | b'P' => Ok(Self { kind, name }),
            _ => Err(Malformed("invalid subtype of a Describe or Close message")),
        }
    }
}

/// The body of an Execute.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Execute<'a> {
    /// The portal's name, empty for the unnamed one.
    pub portal: &'a [u8],
    /// Rows at most; PostgreSQL takes everything below 1 as "all".
    pub max_rows: i32,
}

impl<'a> Execute<'a> {
    /// Reads a whole body.
    ///
    /// # Errors
    /// The client's fault: a name without its NUL, or not exactly four bytes behind it.
    pub fn read(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut cursor = Cursor::new(body);
        let portal = cursor.string()?;
        let max_rows = cursor.i32()?;
        cursor.end()?;
        Ok(Self { portal, max_rows })
    }
}

/// Reads the body of a Query: the SQL text without its NUL.
///
/// # Errors
/// The client's fault: no NUL, or bytes behind it.
pub fn query_text(body: &[u8]) -> Result<&[u8], Malformed> {
    let mut cursor = Cursor::new(body);
    let text = cursor.string()?;
    cursor.end()?;
    Ok(text)
}

/// Reads the body of a PasswordMessage: the password (or md5 answer) without its NUL, possibly
/// empty. It is a secret.
///
/// # Errors
/// The client's fault: no NUL, or bytes behind it.
pub fn password(body: &[u8]) -> Result<&[u8], Malformed> {
    query_text(body).map_err(|_| Malformed("invalid password packet size"))
}

/// The body of a SASLInitialResponse. (A SASLResponse is its body, as it stands.)
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SaslInitial<'a> {
    /// The mechanism that the client chose, such as `SCRAM-SHA-256`.
    pub mechanism: &'a [u8],
    /// The mechanism's first message, if the client sent one along.
    pub data: Option<&'a [u8]>,
}

// By hand: some mechanisms carry a token in their first message (I9).
impl fmt::Debug for SaslInitial<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SaslInitial").field("mechanism", &self.mechanism).finish_non_exhaustive()
    }
}

impl<'a> SaslInitial<'a> {
    /// Reads a whole body.
    ///
    /// # Errors
    /// The client's fault: a mechanism without its NUL, a length that is negative but not -1, or
    /// not that many bytes behind it.
    pub fn read(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut cursor = Cursor::new(body);
        let mechanism = cursor.string()?;
        let data = cursor.value()?;
        cursor.end()?;
        Ok(Self { mechanism, data })
    }
}
