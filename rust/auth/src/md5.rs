//! PostgreSQL's md5 password exchange, both roles: `md5(md5(password ‖ user) ‖ salt)`.
//!
//! Weak and going away (deprecated since PostgreSQL 18), spoken for databases and drivers that have
//! nothing else. The inner digest is as good as the password. Next on the path: `secret.rs`.

use md5::{Digest, Md5};
use subtle::ConstantTimeEq;

/// Makes the inner digest, 32 lower-case hexadecimal digits: what PostgreSQL stores behind `md5`.
#[must_use]
pub fn inner(password: &[u8], user: &[u8]) -> [u8; 32] {
    hex(&[password, user])
}

/// Makes the answer to AuthenticationMD5Password: `md5` and 32 hexadecimal digits.
#[must_use]
pub fn response(inner_hex: &[u8; 32], salt: [u8; 4]) -> [u8; 35] {
    let mut answer = [0; 35];
    let digits = hex(&[inner_hex, &salt]);
    answer.iter_mut().zip(b"md5".iter().chain(&digits)).for_each(|(to, from)| *to = *from);
    answer
}

/// Checks a client's answer in constant time; an answer of any other length is wrong.
#[must_use]
pub fn verify(inner_hex: &[u8; 32], salt: [u8; 4], given: &[u8]) -> bool {
    response(inner_hex, salt).ct_eq(given).into()
}

/// The MD5 of the parts, one after another, in lower-case hexadecimal digits.
fn hex(parts: &[&[u8]]) -> [u8; 32] {
    let mut md5 = Md5::new();
    for part in parts {
        md5.update(part);
    }
    let mut digits = [0; 32];
    for (pair, byte) in digits.chunks_exact_mut(2).zip(md5.finalize()) {
        pair.copy_from_slice(&[digit(byte >> 4), digit(byte & 15)]);
    }
    digits
}

/// The digit of a number below 16. No table: a look-up by a secret leaves traces in the cache.
const fn digit(value: u8) -> u8 {
    let beyond_nine = (9u8.wrapping_sub(value) >> 7) * (b'a' - b'0' - 10);
    b'0' + value + beyond_nine
}

#[cfg(test)]
mod tests {
    use super::{inner, response, verify};

    #[test]
    fn the_inner_digest_is_what_postgresql_stores() {
        // PostgreSQL 15: CREATE ROLE old PASSWORD 'pencil' with password_encryption = md5.
        assert_eq!(&inner(b"pencil", b"old"), b"b15721e6326bc6e9a7c72a38963ec03d");
    }

    #[test]
    fn only_the_right_answer_to_this_salt_is_accepted() {
        let stored = inner(b"pencil", b"old");
        let answer = response(&stored, [1, 2, 3, 4]);
        assert!(answer.starts_with(b"md5"));
        assert!(verify(&stored, [1, 2, 3, 4], &answer));
        assert!(!verify(&stored, [1, 2, 3, 5], &answer));
        assert!(!verify(&inner(b"pen", b"old"), [1, 2, 3, 4], &answer));
        for bad in [&b""[..], b"md5", &answer[..34], &[&answer[..], b"0"].concat()] {
            assert!(!verify(&stored, [1, 2, 3, 4], bad));
        }
        for at in 0..answer.len() {
            let mut bad = answer;
            bad[at] ^= 1;
            assert!(!verify(&stored, [1, 2, 3, 4], &bad));
        }
    }
}
