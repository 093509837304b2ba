//! What a server sends: bodies of typed messages, borrowed.
//!
//! A body is what follows the head (`frame.rs`). Only what the multiplexer looks at has a reader;
//! rows, COPY data and descriptions are relayed unread. A server is trusted no more than a client
//! is.
//! Next on the path: `write.rs`, the other direction.

use std::fmt;

use crate::Malformed;
use crate::cursor::Cursor;

/// Bytes of a cancel secret: 4 up to protocol 3.0, at most 256 in 3.2.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 4..=256;

/// An Authentication message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Authentication<'a> {
    /// The client is in.
    Ok,
    /// The server wants the password as it is.
    Cleartext,
    /// The server wants `md5(md5(password ‖ user) ‖ salt)`.
    Md5 {
        /// The salt of this log-in.
        salt: [u8; 4],
    },
    /// The server offers SASL; see [`Authentication::mechanisms`].
    Sasl {
        /// NUL-terminated names, without the final NUL.
        mechanisms: &'a [u8],
    },
    /// A SASL challenge.
    SaslContinue(&'a [u8]),
    /// The end of a SASL exchange, with the mechanism's last words.
    SaslFinal(&'a [u8]),
    /// Anything else: GSSAPI, SSPI, or what a later version brings.
    Other(u32),
}

impl<'a> Authentication<'a> {
    /// Reads a whole body.
    ///
    /// # Errors
    /// The server's fault: a known request with a body of the wrong shape.
    pub fn read(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut cursor = Cursor::new(body);
        match cursor.u32()? {
            0 => cursor.end().map(|()| Self::Ok),
            3 => cursor.end().map(|()| Self::Cleartext),
            5 => {
                let salt = cursor.array()?;
                cursor.end().map(|()| Self::Md5 { salt })
            }
            10 => {
                let (last, mechanisms) = cursor
                    .rest()
                    .split_last()
                    .ok_or(Malformed("SASL mechanisms without a terminator"))?;
                // Names and their NULs, then one NUL more: the byte before it is a NUL, too.
                if *last != 0 || mechanisms.last().is_some_and(|byte| *byte != 0) {
                    return Err(Malformed("SASL mechanisms without a terminator"));
                }
                if mechanisms.starts_with(&[0]) || mechanisms.windows(2).any(|two| two == [0, 0]) {
                    return Err(Malformed("empty name of a SASL mechanism"));
                }
                Ok(Self::Sasl { mechanisms })
            }
            11 => Ok(Self::SaslContinue(cursor.rest())),
            12 => Ok(Self::SaslFinal(cursor.rest())),
            other => Ok(Self::Other(other)),
        }
    }

    /// The names of the SASL mechanisms offered, in the server's order of preference; nothing for
    /// other requests.
    pub fn mechanisms(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let mut cursor = Cursor::new(match *self {
            Self::Sasl { mechanisms } => mechanisms,
            _ => &[],
        });
        std::iter::from_fn(move || cursor.string().ok())
    }
}

/// The body of a BackendKeyData: what a CancelRequest for this session must show.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct BackendKeyData<'a> {
    /// The server's process id.
    pub pid: u32,
    /// The secret, 4 to 256 bytes.
    pub secret: &'a [u8],
}

// By hand, so that the secret never reaches a log (I9).
impl fmt::Debug for BackendKeyData<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackendKeyData").field("pid", &self.pid).finish_non_exhaustive()
    }
}

impl<'a> BackendKeyData<'a> {
    /// Reads a whole body.
    ///
    /// # Errors
    /// The server's fault: a secret that is not 4 to 256 bytes long.
    pub fn read(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut cursor = Cursor::new(body);
        let pid = cursor.u32()?;
        let secret = cursor.rest();
        if SECRET_BYTES.contains(&secret.len()) {
            Ok(Self { pid, secret })
        } else {
            Err(Malformed("invalid length of cancel key"))
        }
    }
}

/// The body of a ParameterStatus.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ParameterStatus<'a> {
    /// The parameter's name, as the server spells it.
    pub name: &'a [u8],
    /// Its value now.
    pub value: &'a [u8],
}

impl<'a> ParameterStatus<'a> {
    /// Reads a whole body.
    ///
    /// # Errors
    /// The server's fault: not exactly two NUL-terminated texts.
    pub fn read(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut cursor = Cursor::new(body);
        let name = cursor.string()?;
        let value = cursor.string()?;
        cursor.end()?;
        Ok(Self { name, value })
    }
}

/// Reads the body of a ReadyForQuery: `I` idle, `T` in a transaction, `E` in a failed one.
///
/// # Errors
/// The server's fault: not exactly one of these bytes.
#[inline]
pub fn ready_status(body: &[u8]) -> Result<u8, Malformed> {
    match body {
        [status @ (b'I' | b'T' | b'E')] => Ok(*status),
        _ => Err(Malformed("invalid ReadyForQuery")),
    }
}

/// The body of an ErrorResponse or a NoticeResponse: fields of one code byte and a text each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ErrorFields<'a> {
    /// Code and NUL-terminated text in turn, without the final NUL.
    fields: &'a [u8],
}

impl<'a> ErrorFields<'a> {
    /// Reads a whole body. No field is required and unknown ones are kept; texts may be of any
    /// size.
    ///
    /// # Errors
    /// The server's fault: a text without its NUL, no NUL behind the last field, bytes behind that.
    pub fn read(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut cursor = Cursor::new(body);
        while cursor.u8()? != 0 {
            cursor.string()?;
        }
        cursor.end()?;
        let fields = body.split_last().map_or(body, |(_, fields)| fields);
        Ok(Self { fields })
    }

    /// The text of the first field with this code (`S` severity, `V` the same untranslated, `C`
    /// SQLSTATE, `M` message, `D` detail, `H` hint …), without its NUL.
    #[must_use]
    pub fn get(&self, code: u8) -> Option<&'a [u8]> {
        self.iter().find(|field| field.0 == code).map(|field| field.1)
    }

    /// All fields in the order they came: code and text.
    pub fn iter(&self) -> impl Iterator<Item = (u8, &'a [u8])> + use<'a> {
        let mut cursor = Cursor::new(self.fields);
        std::iter::from_fn(move || {
            let code = cursor.u8().ok()?;
            Some((code, cursor.string().ok()?))
        })
    }
}

/// Reads the body of a CommandComplete: the command tag (`INSERT 0 1`) without its NUL.
///
/// # Errors
/// The server's fault: no NUL, or bytes behind it.
pub fn command_tag(body: &[u8]) -> Result<&[u8], Malformed> {
    let mut cursor = Cursor::new(body);
    let tag = cursor.string()?;
    cursor.end()?;
    Ok(tag)
}

/// The body of a NegotiateProtocolVersion: the server speaks less than it was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NegotiateProtocolVersion<'a> {
    /// The minor version of protocol 3 that the server goes on with.
    pub minor: u16,
    /// NUL-terminated names.
    options: &'a [u8],
}

impl<'a> NegotiateProtocolVersion<'a> {
    /// Reads a whole body. The manual calls its first word the minor version, yet PostgreSQL sends
    /// major and minor; both are understood.
    ///
    /// # Errors
    /// The server's fault: a version other than 3, or a count that is not how many names follow.
    pub fn read(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut cursor = Cursor::new(body);
        let (major, minor) = (cursor.u16()?, cursor.u16()?);
        if major != 3 && major != 0 {
            return Err(Malformed("protocol negotiation to a version other than 3"));
        }
        let count = cursor.u32()?;
        let options = cursor.rest();
        // Each turn takes a byte or fails, so that a claimed count buys no time.
        for _ in 0..count {
            cursor.string()?;
        }
        cursor.end()?;
        Ok(Self { minor, options })
    }

    /// The names of the protocol options (`_pq_.…`) that the server does not know.
    pub fn options(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let mut cursor = Cursor::new(self.options);
        std::iter::from_fn(move || cursor.string().ok())
    }
}

/// Reads the body of a DataRow: its values in order, `None` for NULL.
///
/// # Errors
/// The server's fault: a negative length other than -1, or a count that is not how many follow.
pub fn data_row_values(
    body: &[u8],
) -> Result<impl Iterator<Item = Option<&[u8]>> + use<'_>, Malformed> {
    let mut cursor = Cursor::new(body);
    let count = cursor.u16()?;
    let mut values = cursor;
    for _ in 0..count {
        cursor.value()?;
    }
    cursor.end()?;
    Ok((0..count).map_while(move |_| values.value().ok()))
}
