//! SCRAM-SHA-256, the server's role: checks a client's proof against a stored verifier.
//!
//! RFC 5802 and 7677 as PostgreSQL speaks them: no channel binding (`SCRAM-SHA-256-PLUS` is not
//! offered), no authorisation identity, and the user name inside the exchange is ignored in favour
//! of the start-up packet's. Not here: looking up the verifier, framing, delays after failures.
//! Next on the path: `verifier.rs`, what is checked against.

use std::fmt;

use subtle::ConstantTimeEq;

use crate::scram::{self, Attributes, NONCE_BYTES, ScramError};
use crate::verifier::Verifier;

/// One client's exchange.
///
/// ```text
///           first            finish
///  Start ──────────▶ Asked ──────────▶ Over
///    └──── error ──────┴──── error ──────▲
/// ```
pub struct ScramServer {
    verifier: Verifier,
    state: State,
}

enum State {
    /// Nothing has come; holds our half of the nonce.
    Start { nonce: String },
    /// The challenge is out.
    Asked(Asked),
    /// Nothing more is accepted.
    Over,
}

/// What the client's last message is checked with.
struct Asked {
    /// What `c=` must hold: base64 of the GS2 header that came first.
    binding: &'static str,
    /// Both halves of the nonce.
    nonce: String,
    /// The client's first message without its GS2 header, a comma, and our challenge.
    transcript: String,
}

impl ScramServer {
    /// Starts an exchange. `nonce` is 18 fresh random bytes: with used ones a proof could be
    /// replayed.
    #[must_use]
    pub fn new(verifier: &Verifier, nonce: [u8; NONCE_BYTES]) -> Self {
        Self::with_nonce(verifier, scram::encode(&nonce))
    }

    /// The same with our half of the nonce as text: published vectors hold such that base64 cannot
    /// be.
    pub(crate) fn with_nonce(verifier: &Verifier, nonce: String) -> Self {
        Self { verifier: verifier.clone(), state: State::Start { nonce } }
    }

    /// Takes the client's first message; gives the challenge for AuthenticationSASLContinue.
    ///
    /// # Errors
    /// The client's fault: a message that is malformed, over 4 KiB or the second of its kind, or
    /// one that asks for channel binding, an authorisation identity or a mandatory extension.
    pub fn first(&mut self, client_first: &[u8]) -> Result<Vec<u8>, ScramError> {
        let State::Start { nonce } = std::mem::replace(&mut self.state, State::Over) else {
            return Err(ScramError::OutOfOrder);
        };
        let (binding, bare) = split_gs2_header(scram::message(client_first)?)?;
        let mut attributes = Attributes::new(bare);
        attributes.take(b'n')?;
        let client_nonce = attributes.take(b'r')?;
        scram::check_nonce(client_nonce)?;
        while attributes.any()?.is_some() {} // optional extensions: read for their form, ignored

        let nonce = format!("{client_nonce}{nonce}");
        let salt = scram::encode(&self.verifier.salt);
        let challenge = format!("r={nonce},s={salt},i={}", self.verifier.iterations);
        let transcript = format!("{bare},{challenge}");
        self.state = State::Asked(Asked { binding, nonce, transcript });
        Ok(challenge.into_bytes())
    }

    /// Takes the client's last message; gives our own proof for AuthenticationSASLFinal: the client
    /// is who it says. The proofs are compared in constant time.
    ///
    /// # Errors
    /// The client's fault: [`ScramError::WrongProof`] for another password, others for a message
    /// that is malformed, over 4 KiB, for another exchange, or out of order.
    pub fn finish(&mut self, client_final: &[u8]) -> Result<Vec<u8>, ScramError> {
        let State::Asked(asked) = std::mem::replace(&mut self.state, State::Over) else {
            return Err(ScramError::OutOfOrder);
        };
        let text = scram::message(client_final)?;
        // The proof is the last attribute and covers everything before it.
        let (covered, proof) = text
            .rsplit_once(",p=")
            .ok_or(ScramError::Malformed("SCRAM message without a proof"))?;
        let mut attributes = Attributes::new(covered);
        if attributes.take(b'c')? != asked.binding {
            return Err(ScramError::Malformed("SCRAM channel binding check failed"));
        }
        if attributes.take(b'r')? != asked.nonce {
            return Err(ScramError::Malformed("SCRAM nonce does not match"));
        }
        while let Some((letter, _)) = attributes.any()? {
            if letter == b'p' {
                return Err(ScramError::Malformed("SCRAM message with two proofs"));
            }
        }
        let proof =
            scram::decode_key(proof).ok_or(ScramError::Malformed("malformed SCRAM proof"))?;

        let transcript = [asked.transcript.as_bytes(), b",", covered.as_bytes()];
        let signature = scram::hmac(&self.verifier.stored_key, &transcript);
        let client_key = zeroize::Zeroizing::new(scram::xor(&proof, &signature));
        if !bool::from(scram::sha256(&*client_key).ct_eq(&self.verifier.stored_key)) {
            return Err(ScramError::WrongProof);
        }
        let own = scram::hmac(&self.verifier.server_key, &transcript);
        Ok(format!("v={}", scram::encode(&own)).into_bytes())
    }
}

// By hand: a transcript says nothing useful, a verifier too much (I9).
impl fmt::Debug for ScramServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.state {
            State::Start { .. } => "ScramServer(Start)",
            State::Asked(_) => "ScramServer(Asked)",
            State::Over => "ScramServer(Over)",
        })
    }
}

/// Splits the GS2 header off the client's first message (RFC 5802 §7); gives what `c=` must hold
/// later, and the bare message.
fn split_gs2_header(text: &str) -> Result<(&'static str, &str), ScramError> {
    // `y` says that the client could bind channels but saw no offer; that is true here.
    let (binding, rest) = if let Some(rest) = text.strip_prefix("n,") {
        ("biws", rest)
    } else if let Some(rest) = text.strip_prefix("y,") {
        ("eSws", rest)
    } else if text.starts_with("p=") {
        return Err(ScramError::Unsupported("SCRAM channel binding is not offered"));
    } else {
        return Err(ScramError::Malformed("invalid SCRAM channel binding flag"));
    };
    match rest.strip_prefix(',') {
        Some(bare) => Ok((binding, bare)),
        None if rest.starts_with("a=") => {
            Err(ScramError::Unsupported("SCRAM authorization identity is not supported"))
        }
        None => Err(ScramError::Malformed("invalid GS2 header in SCRAM message")),
    }
}
