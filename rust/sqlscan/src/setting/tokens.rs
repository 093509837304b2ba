//! The tokens of one statement with their texts, for the grammar of SET.
//!
//! Takes bytes for what the scanner (`lexer.rs`) takes them, but pulls tokens from a whole text and
//! knows only those that a SET with constants has: all else is [`Token::Unknown`], and so is what
//! may mean another thing elsewhere. Next on the path: back to `grammar.rs`.

use super::PART_BYTES_MAX;
use crate::lexer::{Kind, is_name_byte, is_newline, kind_of, name_run, run};

/// The longest tag of a dollar quote that is compared, in bytes; as the scanner's.
const TAG_BYTES_MAX: usize = 64;

/// Tokens that a text may have: lists are short, and the time that a hostile one takes stays small.
const TOKENS_MAX: u16 = 1000;

/// One token.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Token<'a> {
    /// An unquoted name as written, ASCII only: keyword or not.
    Word(&'a [u8]),
    /// The inside of a quoted name, quotes undoubled.
    Quoted(Vec<u8>),
    /// The text of a literal without escapes, quotes undoubled, or of a dollar quote.
    Text(Vec<u8>),
    /// An unsigned decimal number.
    Number(&'a [u8]),
    /// One of `. , = ( ) ; + -`.
    Mark(u8),
    /// The text ends.
    End,
    /// Anything else; what follows has no meaning.
    Unknown,
}

/// The tokens of a text, in order; a copy stays where it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tokens<'a> {
    rest: &'a [u8],
    /// How many more tokens are taken.
    left: u16,
}

impl<'a> Tokens<'a> {
    pub(super) const fn new(sql: &'a [u8]) -> Self {
        Self { rest: sql, left: TOKENS_MAX }
    }

    /// The next token; behind the end there are only ends.
    pub(super) fn take(&mut self) -> Token<'a> {
        if self.skip_blanks().is_none() {
            return Token::Unknown;
        }
        let Some(&first) = self.rest.first() else { return Token::End };
        let Some(left) = self.left.checked_sub(1) else { return Token::Unknown };
        self.left = left;
        let next = self.rest.get(1).copied().unwrap_or_default();
        match (kind_of(first), first) {
            (Kind::Name, _) => self.word(next),
            (Kind::Digit, _) => self.number(),
            (_, b'.') if next.is_ascii_digit() => self.number(),
            (Kind::Quote, _) => self.doubled(first).map_or(Token::Unknown, Token::Text),
            (Kind::DoubleQuote, _) => match self.doubled(first) {
                // Longer ones are cut, at a letter's end that only the server's encoding shows.
                Some(name) if (1..=PART_BYTES_MAX).contains(&name.len()) => Token::Quoted(name),
                _ => Token::Unknown,
            },
            (Kind::Dollar, _) => self.dollar_quote().unwrap_or(Token::Unknown),
            (_, b'.' | b',' | b'=' | b'(' | b')' | b';' | b'+' | b'-') => {
                self.advance(1);
                Token::Mark(first)
            }
            // Also what would make a longer operator of a mark: no SET has one.
            _ => Token::Unknown,
        }
    }

    /// Takes `len` bytes.
    fn advance(&mut self, len: usize) -> &'a [u8] {
        let (taken, left) = self.rest.split_at_checked(len).unwrap_or((self.rest, &[]));
        self.rest = left;
        taken
    }

    /// Skips blanks and comments; `None` if a comment does not end.
    fn skip_blanks(&mut self) -> Option<()> {
        loop {
            match self.rest {
                [b'-', b'-', ..] => {
                    self.advance(run(self.rest, is_newline));
                }
                [b'/', b'*', ..] => self.skip_block()?,
                [first, ..] if kind_of(*first) == Kind::Space => {
                    self.advance(1);
                }
                _ => return Some(()),
            }
        }
    }

    /// Skips a block comment and those within.
    fn skip_block(&mut self) -> Option<()> {
        let mut depth = 0_usize;
        loop {
            match self.rest {
                [b'/', b'*', ..] => {
                    depth += 1;
                    self.advance(2);
                }
                [b'*', b'/', ..] => {
                    depth -= 1;
                    self.advance(2);
                    if depth == 0 {
                        return Some(());
                    }
                }
                [_, ..] => {
                    self.advance(1);
                }
                [] => return None,
            }
        }
    }

    fn word(&mut self, next: u8) -> Token<'a> {
        let word = self.advance(name_run(self.rest));
        // Literals of bits and with escapes, letters that fold by locale, names that are cut.
        let prefix = next == b'\''
            && matches!(word, [b'b' | b'e' | b'n' | b'x'] | [b'B' | b'E' | b'N' | b'X']);
        if prefix || !word.is_ascii() || word.len() > PART_BYTES_MAX {
            return Token::Unknown;
        }
        Token::Word(word)
    }

    /// What stands between this quote and the next lone one.
    fn doubled(&mut self, quote: u8) -> Option<Vec<u8>> {
        let mut inside = Vec::new();
        loop {
            self.advance(1);
            inside.extend_from_slice(self.advance(run(self.rest, |byte| byte == quote)));
            match self.rest {
                [_, second, ..] if *second == quote => {
                    inside.push(quote);
                    self.advance(1);
                }
                [_, ..] => {
                    self.advance(1);
                    return Some(inside);
                }
                [] => return None,
            }
        }
    }

    /// Digits, a fraction and an exponent: the numbers that every version of PostgreSQL reads.
    fn number(&mut self) -> Token<'a> {
        let text = self.rest;
        let digits = |rest: &[u8]| run(rest, |byte| !byte.is_ascii_digit());
        self.advance(digits(self.rest));
        if let [b'.', ..] = self.rest {
            self.advance(1);
            self.advance(digits(self.rest));
        }
        if let [b'e' | b'E', b'+' | b'-', b'0'..=b'9', ..] = self.rest {
            self.advance(2);
            self.advance(digits(self.rest));
        } else if let [b'e' | b'E', b'0'..=b'9', ..] = self.rest {
            self.advance(1);
            self.advance(digits(self.rest));
        }
        match self.rest.first() {
            Some(&byte) if is_name_byte(byte) || byte == b'.' => Token::Unknown,
            _ => Token::Number(text.get(..text.len() - self.rest.len()).unwrap_or_default()),
        }
    }

    fn dollar_quote(&mut self) -> Option<Token<'a>> {
        let tag =
            1 + run(self.rest.get(1..)?, |byte| !matches!(kind_of(byte), Kind::Name | Kind::Digit));
        let opening = self.rest.get(..=tag)?;
        if tag > TAG_BYTES_MAX || opening.get(1)?.is_ascii_digit() || opening.last() != Some(&b'$')
        {
            return None;
        }
        self.advance(opening.len());
        let body = self.rest;
        while !self.rest.starts_with(opening) {
            self.advance(1);
            self.advance(run(self.rest, |byte| byte == b'$'));
            if self.rest.is_empty() {
                return None;
            }
        }
        let inside = body.get(..body.len() - self.rest.len())?;
        self.advance(opening.len());
        Some(Token::Text(inside.to_vec()))
    }
}
