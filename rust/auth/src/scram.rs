//! What both roles of SCRAM-SHA-256 share: the functions of RFC 5802 §3, the attributes of its
//! messages (§5.1, §7), and the errors.
//!
//! Not here: the order of messages, which the roles keep. Next on the path: `scram_server.rs`.

use std::borrow::Cow;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// The mechanism's name, as AuthenticationSASL offers it.
pub const SCRAM_SHA_256: &str = "SCRAM-SHA-256";

/// Bytes of a SHA-256 digest, and so of every key and proof.
pub(crate) const KEY_BYTES: usize = 32;
/// Bytes of randomness that each side adds: PostgreSQL's SCRAM_RAW_NONCE_LEN.
pub(crate) const NONCE_BYTES: usize = 18;
/// Bytes of any message that a peer may send: PostgreSQL's own have about 100; long user names and
/// nonces fit, and no peer buys work with a megabyte.
pub(crate) const MESSAGE_BYTES_MAX: usize = 4_096;
/// Bytes of a SHA-256 block: shorter HMAC keys are padded to it.
const BLOCK_BYTES: usize = 64;

/// Why an exchange ended. Every error is final: the exchange accepts nothing afterwards.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ScramError {
    /// The peer's fault: not a SCRAM message. The text says what is wrong and quotes nothing.
    Malformed(&'static str),
    /// The peer asks for something that is not offered: channel binding, an authorisation identity,
    /// a mandatory extension.
    Unsupported(&'static str),
    /// The server asks for more iterations than the limit, which would cost CPU.
    TooManyIterations,
    /// A message came, or was asked for, that has no place at this point.
    OutOfOrder,
    /// The proof is wrong: a client with another password, or a server that does not know this one.
    WrongProof,
}

impl fmt::Display for ScramError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed(what) | Self::Unsupported(what) => what,
            Self::TooManyIterations => "the server asks for too many SCRAM iterations",
            Self::OutOfOrder => "SCRAM message out of order",
            Self::WrongProof => "wrong SCRAM proof",
        })
    }
}

impl std::error::Error for ScramError {}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; KEY_BYTES] {
    Sha256::digest(bytes).into()
}

/// HMAC-SHA-256 over the parts, one after another.
pub(crate) fn hmac(key: &[u8], parts: &[&[u8]]) -> [u8; KEY_BYTES] {
    // A key of exactly one block makes construction infallible; RFC 2104 pads and hashes like this.
    let mut block = Zeroizing::new([0; BLOCK_BYTES]);
    if key.len() > BLOCK_BYTES {
        let hashed = Zeroizing::new(sha256(key));
        block.iter_mut().zip(hashed.iter()).for_each(|(to, from)| *to = *from);
    } else {
        block.iter_mut().zip(key).for_each(|(to, from)| *to = *from);
    }
    let mut mac = Hmac::<Sha256>::new((&*block).into());
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// RFC 5802's `SaltedPassword := Hi(Normalize(password), salt, i)`.
///
/// Takes time in proportion to `iterations` (0 counts as 1): bound what a peer asks for first.
pub(crate) fn salted_password(
    password: &[u8],
    salt: &[u8],
    iterations: u32,
) -> Zeroizing<[u8; KEY_BYTES]> {
    let password = normalized(password);
    let mut salted = Zeroizing::new([0; KEY_BYTES]);
    pbkdf2::pbkdf2_hmac::<Sha256>(&password, salt, iterations.max(1), &mut *salted);
    salted
}

/// The password after SASLprep (RFC 4013), or as it stands if it is ASCII, not UTF-8 or holds what
/// SASLprep prohibits: PostgreSQL and libpq do the same, so that such passwords work at all.
fn normalized(password: &[u8]) -> Zeroizing<Vec<u8>> {
    let prepared = match std::str::from_utf8(password) {
        Ok(text) if !text.is_ascii() => stringprep::saslprep(text).ok(),
        _ => None,
    };
    Zeroizing::new(match prepared {
        // PostgreSQL counts an empty result as a failure, too.
        Some(Cow::Owned(text)) if !text.is_empty() => text.into_bytes(),
        _ => password.to_vec(),
    })
}

pub(crate) fn xor(left: &[u8; KEY_BYTES], right: &[u8; KEY_BYTES]) -> [u8; KEY_BYTES] {
    let mut both = *left;
    both.iter_mut().zip(right).for_each(|(to, from)| *to ^= from);
    both
}

pub(crate) fn encode(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// Decodes base64 (with padding, nothing else in it); the caller has bounded the text.
pub(crate) fn decode(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}

/// Decodes the base64 of exactly one key, proof or signature.
pub(crate) fn decode_key(text: &str) -> Option<[u8; KEY_BYTES]> {
    let bytes = Zeroizing::new(decode(text)?);
    bytes.as_slice().try_into().ok()
}

/// Checks size and character set of a whole message.
pub(crate) fn message(bytes: &[u8]) -> Result<&str, ScramError> {
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(ScramError::Malformed("SCRAM message too long"));
    }
    let text = std::str::from_utf8(bytes)
        .map_err(|_| ScramError::Malformed("SCRAM message is not UTF-8"))?;
    if text.contains('\0') {
        return Err(ScramError::Malformed("SCRAM message contains a NUL"));
    }
    Ok(text)
}

/// Takes the attributes of a message one by one: a letter, `=`, a value without commas.
#[derive(Clone, Copy)]
pub(crate) struct Attributes<'a> {
    rest: Option<&'a str>,
}

impl<'a> Attributes<'a> {
    pub(crate) const fn new(text: &'a str) -> Self {
        Self { rest: Some(text) }
    }

    /// The next attribute, whatever it is; `None` behind the last.
    pub(crate) fn any(&mut self) -> Result<Option<(u8, &'a str)>, ScramError> {
        let Some(rest) = self.rest else {
            return Ok(None);
        };
        let (attribute, rest) = match rest.split_once(',') {
            Some((attribute, rest)) => (attribute, Some(rest)),
            None => (rest, None),
        };
        self.rest = rest;
        match attribute.split_once('=') {
            Some((name, value)) if name.len() == 1 => match name.as_bytes() {
                [letter] if letter.is_ascii_alphabetic() => Ok(Some((*letter, value))),
                _ => Err(ScramError::Malformed("invalid attribute in SCRAM message")),
            },
            _ => Err(ScramError::Malformed("invalid attribute in SCRAM message")),
        }
    }

    /// The next attribute, which must be this one.
    pub(crate) fn take(&mut self, letter: u8) -> Result<&'a str, ScramError> {
        match self.any()? {
            Some((found, value)) if found == letter => Ok(value),
            Some((b'm', _)) => Err(ScramError::Unsupported("mandatory SCRAM extension")),
            _ => Err(ScramError::Malformed("attributes of SCRAM message out of order")),
        }
    }

    /// Checks that nothing is left.
    pub(crate) fn end(self) -> Result<(), ScramError> {
        match self.rest {
            None => Ok(()),
            Some(_) => Err(ScramError::Malformed("garbage at end of SCRAM message")),
        }
    }
}

/// Checks that a nonce is not empty and printable ASCII (RFC 5802 §7; commas end it anyway).
pub(crate) fn check_nonce(nonce: &str) -> Result<(), ScramError> {
    if !nonce.is_empty() && nonce.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(())
    } else {
        Err(ScramError::Malformed("non-printable characters in SCRAM nonce"))
    }
}
