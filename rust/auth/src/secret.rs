//! Bytes that must not be seen: a password or a token.
//!
//! Not here: keys derived from a password (`scram_client.rs`) and what is stored instead of one
//! (`verifier.rs`). Next on the path: `verifier.rs`.

use std::fmt;

use zeroize::Zeroizing;

/// Secret bytes: wiped when dropped, never printed.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes the bytes over.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes themselves; whoever calls this answers for where they go.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

#[cfg(test)]
mod tests {
    use super::Secret;

    #[test]
    fn a_secret_is_never_printed() {
        let secret = Secret::new(b"pencil".to_vec());
        assert_eq!(format!("{secret:?}"), "<secret>");
        assert_eq!(secret.clone().expose(), b"pencil");
    }
}
