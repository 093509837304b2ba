//! SCRAM-SHA-256, the client's role: proves to a server that we know a password.
//!
//! RFC 5802 and 7677 as PostgreSQL speaks them, without channel binding. The costly step, deriving
//! keys from the password, is the caller's: [`ScramClient::server_first`] says for which salt and
//! iterations, and [`ScramKeys`] may be kept and used again. The server is trusted with nothing.
//! Next on the path: `scram.rs`, the functions that both roles share.

use std::fmt;

use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

use crate::scram::{self, Attributes, KEY_BYTES, NONCE_BYTES, ScramError};
use crate::verifier::parse_iterations;

/// The GS2 header (no channel binding, no authorisation identity), and its base64.
const GS2_HEADER: &str = "n,,";
const GS2_HEADER_BASE64: &str = "biws";

/// What a password becomes for one salt and iteration count. As good as the password towards that
/// server: wiped when dropped, never printed.
#[derive(Clone)]
pub struct ScramKeys {
    pub(crate) client_key: [u8; KEY_BYTES],
    pub(crate) server_key: [u8; KEY_BYTES],
}

impl ScramKeys {
    /// Derives the keys (PBKDF2). Blocks in proportion to `iterations` (0 counts as 1; about a
    /// quarter of a millisecond per thousand): never for an unbounded count, never on the engine's
    /// thread.
    #[must_use]
    pub fn derive(password: &[u8], salt: &[u8], iterations: u32) -> Self {
        Self::from_salted(&scram::salted_password(password, salt, iterations))
    }

    /// Takes the result of a PBKDF2 that was done elsewhere (RFC 5802's SaltedPassword).
    #[must_use]
    pub fn from_salted_password(salted_password: [u8; 32]) -> Self {
        Self::from_salted(&Zeroizing::new(salted_password))
    }

    fn from_salted(salted_password: &[u8; KEY_BYTES]) -> Self {
        Self {
            client_key: scram::hmac(salted_password, &[b"Client Key"]),
            server_key: scram::hmac(salted_password, &[b"Server Key"]),
        }
    }

    pub(crate) fn stored_key(&self) -> [u8; KEY_BYTES] {
        scram::sha256(&self.client_key)
    }
}

impl Drop for ScramKeys {
    fn drop(&mut self) {
        self.client_key.zeroize();
        self.server_key.zeroize();
    }
}

impl fmt::Debug for ScramKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

/// What the server wants keys for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Challenge {
    /// The salt of the password, at least 1 byte.
    pub salt: Vec<u8>,
    /// Iterations of PBKDF2, from 1 to the limit that was given.
    pub iterations: u32,
}

/// One exchange with a server.
///
/// ```text
///            server_first         finish            verify
///  Start ──────────────▶ Asked ──────────▶ Proved ──────────▶ Over
///    └───── error ─────────┴───── error ─────┴────── error ─────▲
/// ```
pub struct ScramClient {
    /// Our half of the nonce.
    nonce: String,
    /// The first message without its GS2 header.
    bare: String,
    state: State,
}

enum State {
    /// No challenge has come.
    Start,
    /// The challenge is known; `nonce` is whole, `transcript` is both first messages.
    Asked { nonce: String, transcript: String },
    /// Our proof is out; the server must answer with this signature.
    Proved { signature: [u8; KEY_BYTES] },
    /// Nothing more is accepted.
    Over,
}

impl ScramClient {
    /// Starts an exchange. `nonce` is 18 fresh random bytes.
    #[must_use]
    pub fn new(nonce: [u8; NONCE_BYTES]) -> Self {
        // PostgreSQL takes the user from the start-up packet and ignores `n=`; libpq sends it
        // empty.
        Self::with_user_and_nonce("", scram::encode(&nonce))
    }

    /// The same with a user and our half of the nonce as text, as published vectors have them.
    pub(crate) fn with_user_and_nonce(user: &str, nonce: String) -> Self {
        Self { bare: format!("n={user},r={nonce}"), nonce, state: State::Start }
    }

    /// The first message, for SASLInitialResponse.
    #[must_use]
    pub fn first(&self) -> Vec<u8> {
        format!("{GS2_HEADER}{}", self.bare).into_bytes()
    }

    /// Takes the server's challenge; says what keys are wanted for. Computes nothing.
    ///
    /// # Errors
    /// The server's fault: a message that is malformed, over 4 KiB or out of order, a nonce that
    /// does not extend ours, iterations of 0 or above `iterations_max` (which must be at least 1).
    pub fn server_first(
        &mut self,
        message: &[u8],
        iterations_max: u32,
    ) -> Result<Challenge, ScramError> {
        let State::Start = std::mem::replace(&mut self.state, State::Over) else {
            return Err(ScramError::OutOfOrder);
        };
        let text = scram::message(message)?;
        let mut attributes = Attributes::new(text);
        let nonce = attributes.take(b'r')?;
        scram::check_nonce(nonce)?;
        if nonce.len() <= self.nonce.len() || !nonce.starts_with(&self.nonce) {
            return Err(ScramError::Malformed("SCRAM nonce does not extend the client's"));
        }
        let salt = scram::decode(attributes.take(b's')?)
            .filter(|salt| !salt.is_empty())
            .ok_or(ScramError::Malformed("malformed SCRAM salt"))?;
        let iterations = parse_iterations(attributes.take(b'i')?)
            .ok_or(ScramError::Malformed("malformed SCRAM iteration count"))?;
        attributes.end()?;
        if iterations > iterations_max {
            return Err(ScramError::TooManyIterations);
        }
        self.state =
            State::Asked { nonce: nonce.to_owned(), transcript: format!("{},{text}", self.bare) };
        Ok(Challenge { salt, iterations })
    }

    /// Makes the last message, for SASLResponse, with keys derived for the challenge's salt and
    /// iterations.
    ///
    /// # Errors
    /// The caller's fault: [`ScramError::OutOfOrder`] unless a challenge was accepted just before.
    pub fn finish(&mut self, keys: &ScramKeys) -> Result<Vec<u8>, ScramError> {
        let State::Asked { nonce, transcript } = std::mem::replace(&mut self.state, State::Over)
        else {
            return Err(ScramError::OutOfOrder);
        };
        let covered = format!("c={GS2_HEADER_BASE64},r={nonce}");
        let transcript = [transcript.as_bytes(), b",", covered.as_bytes()];
        let own = scram::hmac(&keys.stored_key(), &transcript);
        let proof = scram::xor(&keys.client_key, &own);
        self.state = State::Proved { signature: scram::hmac(&keys.server_key, &transcript) };
        Ok(format!("{covered},p={}", scram::encode(&proof)).into_bytes())
    }

    /// Takes the server's last message and checks, in constant time, that the server knows our
    /// password's verifier. Until this is `Ok`, AuthenticationOk must not be believed.
    ///
    /// # Errors
    /// The server's fault: [`ScramError::WrongProof`] if it refused us (`e=`) or its signature is
    /// wrong; others for a message that is malformed, over 4 KiB or out of order.
    pub fn verify(&mut self, server_final: &[u8]) -> Result<(), ScramError> {
        let State::Proved { signature } = std::mem::replace(&mut self.state, State::Over) else {
            return Err(ScramError::OutOfOrder);
        };
        let mut attributes = Attributes::new(scram::message(server_final)?);
        let given = match attributes.any()? {
            Some((b'v', given)) => given,
            Some((b'e', _)) => return Err(ScramError::WrongProof),
            _ => return Err(ScramError::Malformed("SCRAM message without a signature")),
        };
        attributes.end()?;
        let given =
            scram::decode_key(given).ok_or(ScramError::Malformed("malformed SCRAM signature"))?;
        if bool::from(given.ct_eq(&signature)) { Ok(()) } else { Err(ScramError::WrongProof) }
    }
}

// By hand: an expected signature is not for logs (I9).
impl fmt::Debug for ScramClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.state {
            State::Start => "ScramClient(Start)",
            State::Asked { .. } => "ScramClient(Asked)",
            State::Proved { .. } => "ScramClient(Proved)",
            State::Over => "ScramClient(Over)",
        })
    }
}
