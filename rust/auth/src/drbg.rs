//! A deterministic random bit generator: nonces, salts and cancel keys from one seed.
//!
//! Crates above take randomness as an argument; the engine seeds one of these from the kernel, the
//! simulator from its own seed, which makes a run repeatable. Not a source of entropy itself.
//! Next on the path: `core/core.rs`, which asks it for nonces and cancel keys.

use std::fmt;

use zeroize::Zeroize;

use crate::scram::{self, KEY_BYTES};

/// Bytes made at a time: one HMAC for 32 of them, and one more for the next key.
const STOCK_BYTES: usize = 16 * KEY_BYTES;

/// HMAC-SHA-256 in counter mode with fast key erasure.
///
/// A stock of output and the next key are made from the current key `K`: block *i* of the stock is
/// `HMAC(K, 1 ‖ i)`, the next key is `HMAC(K, 0)`, and `K` is wiped, as is each byte of the stock
/// that is given out. Whoever reads the memory later learns nothing about what was given out before
/// (forward secrecy: to find `K` from `HMAC(K, 0)` breaks HMAC as a pseudorandom function). There
/// is no reseeding and no need for one: 2^64 stocks under a 256-bit key are out of reach.
pub struct Drbg {
    key: [u8; KEY_BYTES],
    stock: [u8; STOCK_BYTES],
    /// Bytes at the beginning of the stock that have not been given out.
    left: usize,
}

impl Drbg {
    /// Starts from a seed, 32 bytes that nobody else knows. The same seed gives the same bytes: two
    /// processes must never share one.
    #[must_use]
    pub fn new(mut seed: [u8; 32]) -> Self {
        let key = scram::hmac(&seed, &[b"pyproxy drbg"]);
        seed.zeroize();
        Self { key, stock: [0; STOCK_BYTES], left: 0 }
    }

    /// Fills `out` with random bytes. Takes about a third of a microsecond per 32 bytes; never
    /// fails.
    pub fn fill(&mut self, out: &mut [u8]) {
        let mut out = out;
        while !out.is_empty() {
            if self.left == 0 {
                self.restock();
            }
            let count = out.len().min(self.left);
            let (now, later) = out.split_at_mut(count);
            let given = &mut self.stock[self.left - count..self.left];
            now.copy_from_slice(given);
            given.zeroize();
            self.left -= count;
            out = later;
        }
    }

    fn restock(&mut self) {
        for (counter, block) in (0u64..).zip(self.stock.chunks_exact_mut(KEY_BYTES)) {
            let mut bytes = scram::hmac(&self.key, &[&[1], &counter.to_be_bytes()]);
            block.copy_from_slice(&bytes);
            bytes.zeroize();
        }
        self.left = STOCK_BYTES;
        let mut next = scram::hmac(&self.key, &[&[0]]);
        self.key.zeroize();
        self.key = next;
        next.zeroize();
    }

    /// A random number, all 64 bits of it.
    #[must_use]
    pub fn next_u64(&mut self) -> u64 {
        let mut bytes = [0; 8];
        self.fill(&mut bytes);
        u64::from_be_bytes(bytes)
    }
}

impl Drop for Drbg {
    fn drop(&mut self) {
        self.key.zeroize();
        self.stock.zeroize();
    }
}

impl fmt::Debug for Drbg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Drbg")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::Drbg;

    #[test]
    fn the_same_seed_gives_the_same_bytes_and_another_seed_others() {
        let bytes = |seed| {
            let mut out = [0; 100];
            Drbg::new([seed; 32]).fill(&mut out);
            out
        };
        assert_eq!(bytes(1), bytes(1));
        assert_ne!(bytes(1), bytes(2));
    }

    #[test]
    fn no_output_comes_twice() {
        let mut drbg = Drbg::new([0; 32]);
        let mut seen: BTreeSet<[u8; 8]> =
            (0..1_000).map(|_| drbg.next_u64().to_be_bytes()).collect();
        let mut out = [0; 8_000];
        drbg.fill(&mut out);
        seen.extend(out.chunks_exact(8).filter_map(|chunk| <[u8; 8]>::try_from(chunk).ok()));
        assert_eq!(seen.len(), 2_000);
    }

    #[test]
    fn what_is_given_out_is_not_in_memory_any_more() {
        let mut drbg = Drbg::new([7; 32]);
        let mut out = [0; 100];
        drbg.fill(&mut out);
        assert!(drbg.stock[drbg.left..].iter().all(|byte| *byte == 0));
        assert_eq!(drbg.left, super::STOCK_BYTES - 100);
    }

    #[test]
    fn every_byte_of_any_length_is_filled() {
        for length in [0, 1, 31, 32, 33, 64, 65, 511, 512, 513, 1025] {
            let mut drbg = Drbg::new([9; 32]);
            let mut seen = vec![0u8; length];
            for _ in 0..64 {
                let mut out = vec![0; length];
                drbg.fill(&mut out);
                seen.iter_mut().zip(&out).for_each(|(seen, byte)| *seen |= byte);
            }
            assert!(seen.iter().all(|byte| *byte != 0), "{length}");
        }
    }

    #[test]
    fn bits_are_balanced() {
        let mut out = vec![0; 1 << 16];
        Drbg::new([5; 32]).fill(&mut out);
        let ones: u32 = out.iter().map(|byte| byte.count_ones()).sum();
        // 2^19 bits: mean 2^18, standard deviation 362; six of them.
        assert!(ones.abs_diff(1 << 18) < 2_172, "{ones}");
    }
}
