//! What is stored of a SCRAM password: enough to check a proof, not enough to make one.
//!
//! The text form is PostgreSQL's (`pg_authid.rolpassword`). Not here: the exchange
//! (`scram_server.rs`, next on the path).

use std::fmt;

use zeroize::Zeroize;

use crate::scram::{self, KEY_BYTES, SCRAM_SHA_256};
use crate::scram_client::ScramKeys;

/// Iterations of verifiers that have none of their own: PostgreSQL's default.
const MOCK_ITERATIONS: u32 = 4_096;
/// Bytes of a salt, as PostgreSQL makes them.
const MOCK_SALT_BYTES: usize = 16;
/// Bytes of the longest salt accepted: it travels in a message of bounded size.
const SALT_BYTES_MAX: usize = 1_024;

/// A text that is not a SCRAM-SHA-256 verifier: the operator's fault. Says what is wrong and never
/// quotes the text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InvalidVerifier(pub &'static str);

impl fmt::Display for InvalidVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for InvalidVerifier {}

/// A stored SCRAM-SHA-256 password (RFC 5803). Its keys let nobody log in, but they let one pose as
/// the server: they are wiped when dropped and never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    pub(crate) iterations: u32,
    pub(crate) salt: Vec<u8>,
    pub(crate) stored_key: [u8; KEY_BYTES],
    pub(crate) server_key: [u8; KEY_BYTES],
}

impl Verifier {
    /// Reads `SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>`, the last three in
    /// base64.
    ///
    /// # Errors
    /// The operator's fault: another mechanism, a part missing or too many, iterations that are not
    /// a number from 1 to 2^31 - 1, a salt that is not 1 to 1,024 bytes, a key that is not 32
    /// bytes.
    pub fn parse(text: &str) -> Result<Self, InvalidVerifier> {
        const SHAPE: InvalidVerifier =
            InvalidVerifier("not of the form SCRAM-SHA-256$iterations:salt$storedkey:serverkey");
        let mut parts = text.split('$');
        let (Some(mechanism), Some(cost), Some(keys), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(SHAPE);
        };
        if mechanism != SCRAM_SHA_256 {
            return Err(SHAPE);
        }
        let (iterations, salt) = cost.split_once(':').ok_or(SHAPE)?;
        let (stored_key, server_key) = keys.split_once(':').ok_or(SHAPE)?;
        let iterations = parse_iterations(iterations)
            .ok_or(InvalidVerifier("iterations must be a number from 1 to 2147483647"))?;
        let salt = scram::decode(salt)
            .filter(|salt| (1..=SALT_BYTES_MAX).contains(&salt.len()))
            .ok_or(InvalidVerifier("salt must be base64 of 1 to 1024 bytes"))?;
        let key = |text| {
            scram::decode_key(text).ok_or(InvalidVerifier("keys must be base64 of 32 bytes each"))
        };
        Ok(Self { iterations, salt, stored_key: key(stored_key)?, server_key: key(server_key)? })
    }

    /// The text form that [`Verifier::parse`] reads. For files that hold secrets only.
    #[expect(clippy::inherent_to_string, reason = "a Display would end up in a log (I9)")]
    #[must_use]
    pub fn to_string(&self) -> String {
        format!(
            "{SCRAM_SHA_256}${}:{}${}:{}",
            self.iterations,
            scram::encode(&self.salt),
            scram::encode(&self.stored_key),
            scram::encode(&self.server_key),
        )
    }

    /// Makes the verifier of a password. `salt` is 16 random bytes with PostgreSQL, `iterations` at
    /// least 1 (0 counts as 1). Blocks for about a quarter of a millisecond per thousand
    /// iterations.
    #[must_use]
    pub fn from_password(password: &[u8], salt: &[u8], iterations: u32) -> Self {
        let keys = ScramKeys::derive(password, salt, iterations);
        Self {
            iterations: iterations.max(1),
            salt: salt.to_vec(),
            stored_key: keys.stored_key(),
            server_key: keys.server_key,
        }
    }

    /// Makes a verifier for a user who does not exist, so that its exchange looks like any other
    /// and fails like any other. The salt is the same each time for the same user and install key,
    /// as a real one is; `install_key` is random, secret and the same on all workers.
    #[must_use]
    pub fn mock(user: &str, install_key: &[u8; 32]) -> Self {
        let part = |what: &[u8]| scram::hmac(install_key, &[what, b"\0", user.as_bytes()]);
        let mut salt = part(b"mock salt").to_vec();
        salt.truncate(MOCK_SALT_BYTES);
        // No password leads to a stored key that was not made from one: a proof that matches would
        // be a preimage of SHA-256.
        Self {
            iterations: MOCK_ITERATIONS,
            salt,
            stored_key: part(b"mock stored key"),
            server_key: part(b"mock server key"),
        }
    }
}

impl Drop for Verifier {
    fn drop(&mut self) {
        self.stored_key.zeroize();
        self.server_key.zeroize();
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("iterations", &self.iterations).finish_non_exhaustive()
    }
}

/// A number from 1 to 2^31 - 1 of digits only, without leading zeros, as both roles exchange it.
pub(crate) fn parse_iterations(text: &str) -> Option<u32> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    let number = if plain { text.parse::<i32>().ok()? } else { return None };
    u32::try_from(number).ok()
}
