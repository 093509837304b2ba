//! Cuts SQL text into tokens as PostgreSQL's `scan.l` does, byte by byte and resumable anywhere.
//!
//! It knows literals, quoted names, dollar quotes, comments and names, nothing of statements. Each
//! state has one function that takes as many bytes as it can; what a cut may divide (a name, the
//! tag of a dollar quote) is kept in one small buffer. Next on the path: `token.rs`.

use crate::statement::Statements;
use crate::token::Token;
use crate::verdict::Verdict;

/// Bytes kept of a name or a tag; PostgreSQL truncates names to 63, and no name of ours is longer.
const NAME_BYTES_MAX: usize = 64;

/// Where the scan stands between two bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Between tokens.
    Ground,
    /// In an unquoted name whose beginning is in the buffer.
    Name,
    /// Behind `u&`.
    UnicodePrefix,
    /// Behind one `-`.
    Dash,
    /// Behind one `/`.
    Slash,
    LineComment,
    Block,
    /// In a block comment behind `*`.
    BlockStar,
    /// In a block comment behind `/`.
    BlockSlash,
    /// In a literal without backslash escapes.
    Literal,
    /// In an `E'…'` literal.
    Escape,
    /// In an `E'…'` literal behind a backslash.
    EscapeBackslash,
    /// Behind a quote within `E'…'`: its end or a doubled quote.
    EscapeQuote,
    /// In a quoted name.
    Quoted,
    /// Behind a quote within a quoted name: its end or a doubled quote.
    QuotedQuote,
    /// Behind one `$`.
    Dollar,
    /// In the tag of an opening dollar quote.
    DollarTag,
    /// In a dollar-quoted literal.
    DollarBody,
    /// In a dollar-quoted literal behind `$` and part of the tag.
    DollarEnd,
    /// Behind a tag too long to compare: the rest is not looked at.
    Lost,
}

/// Whether a literal may go on as `E'…'` in the next line (SQL's continuation of literals).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Resume {
    No,
    /// An `E'…'` has ended and no line has.
    AfterNewline,
    Now,
}

/// What a byte between tokens begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Kind {
    // The kinds of name bytes stand together: one comparison tells them.
    Name,
    Digit,
    Dollar,
    Other,
    Space,
    Quote,
    DoubleQuote,
    Dash,
    Slash,
    Mark,
}

const fn kind(byte: u8) -> Kind {
    match byte {
        b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c => Kind::Space,
        b'a'..=b'z' | b'A'..=b'Z' | b'_' | 0x80.. => Kind::Name,
        b'0'..=b'9' => Kind::Digit,
        b'\'' => Kind::Quote,
        b'"' => Kind::DoubleQuote,
        b'$' => Kind::Dollar,
        b'-' => Kind::Dash,
        b'/' => Kind::Slash,
        b'(' | b')' | b',' | b';' | b'.' | b'=' | b'*' => Kind::Mark,
        _ => Kind::Other,
    }
}

/// [`kind`] of every byte.
static KINDS: [Kind; 256] = {
    let mut kinds = [Kind::Other; 256];
    let mut byte = 0;
    while byte < 256 {
        kinds[byte] = kind(byte as u8);
        byte += 1;
    }
    kinds
};

pub(crate) fn kind_of(byte: u8) -> Kind {
    KINDS[usize::from(byte)]
}

pub(crate) fn is_name_byte(byte: u8) -> bool {
    matches!(kind_of(byte), Kind::Name | Kind::Digit | Kind::Dollar)
}

pub(crate) fn is_newline(byte: u8) -> bool {
    byte == b'\n' || byte == b'\r'
}

/// How many bytes of `bytes` come before the first one that `stops`.
pub(crate) fn run(bytes: &[u8], stops: impl Fn(u8) -> bool) -> usize {
    bytes.iter().position(|&byte| stops(byte)).unwrap_or(bytes.len())
}

/// How many name bytes `bytes` starts with.
///
/// Eight at a time in one integer, without a branch a byte: names are short and their ends are what
/// a branch predictor fails at. Each byte's answer is its highest bit.
#[inline]
pub(crate) fn name_run(bytes: &[u8]) -> usize {
    const EACH: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = EACH * 0x80;
    let mut rest = bytes;
    while let Some((chunk, behind)) = rest.split_first_chunk::<8>() {
        let word = u64::from_le_bytes(*chunk);
        let low = word & !HIGH;
        // No sum leaves its byte: `low` is below 0x80 there.
        let at_least = |bytes: u64, least: u8| bytes + EACH * u64::from(0x80 - least);
        let is = |byte: u8| !((low ^ (EACH * u64::from(byte))) + EACH * 0x7f);
        let folded = low | (EACH * 0x20);
        let letter = at_least(folded, b'a') & !at_least(folded, b'z' + 1);
        let digit = at_least(low, b'0') & !at_least(low, b'9' + 1);
        let others = !(word | letter | digit | is(b'_') | is(b'$')) & HIGH;
        if others != 0 {
            return bytes.len() - rest.len() + others.trailing_zeros() as usize / 8;
        }
        rest = behind;
    }
    bytes.len() - rest.len() + run(rest, |byte| !is_name_byte(byte))
}

/// A scan of text that comes in pieces, cut anywhere: the verdict is that of the whole.
///
/// Of fixed size, below 256 bytes; never allocates, never panics; linear time.
#[derive(Clone, Debug)]
pub struct Scanner {
    statements: Statements,
    state: State,
    resume: Resume,
    /// Whether the quoted name is a `U&"…"`.
    unicode: bool,
    /// Block comments open.
    comments: u32,
    /// Bytes in `name`.
    len: u8,
    /// Bytes of the closing tag that match so far.
    matched: u8,
    /// The beginning of a cut name, the inside of a quoted one, or the tag of a dollar quote.
    name: [u8; NAME_BYTES_MAX],
}

impl Default for Scanner {
    fn default() -> Self {
        Self::new()
    }
}

impl Scanner {
    /// A scanner before the first byte of a text.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            statements: Statements::new(),
            state: State::Ground,
            resume: Resume::No,
            unicode: false,
            comments: 0,
            len: 0,
            matched: 0,
            name: [0; NAME_BYTES_MAX],
        }
    }

    /// Takes the next piece of the text; `bytes` may be of any length and cut anywhere.
    pub fn feed(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while let [first, ..] = rest {
            // INVARIANT: a step takes a byte or goes to `Ground`, which takes one: the loop ends.
            let used = self.step(*first, rest);
            let (taken, left) = rest.split_at_checked(used).unwrap_or((rest, &[]));
            if self.statements.watches_text() {
                self.statements.text(taken);
            }
            rest = left;
        }
    }

    /// Ends the text and says what it may leave behind.
    #[must_use]
    pub fn finish(mut self) -> Verdict {
        match self.state {
            State::Name => self.end_name(),
            State::UnicodePrefix => self.end_unicode_prefix(),
            State::Dash | State::Slash | State::Dollar | State::DollarTag => {
                self.token(Token::Other);
            }
            State::QuotedQuote => self.end_quoted(),
            State::Ground | State::LineComment | State::EscapeQuote => {}
            State::Block | State::BlockStar | State::BlockSlash | State::Literal => {
                self.statements.on_doubt();
            }
            State::Escape | State::EscapeBackslash | State::Quoted => self.statements.on_doubt(),
            State::DollarBody | State::DollarEnd | State::Lost => self.statements.on_doubt(),
        }
        self.statements.finish()
    }

    /// Takes bytes from the start of `rest`, whose first byte is `first`; returns how many.
    #[inline]
    fn step(&mut self, first: u8, rest: &[u8]) -> usize {
        match self.state {
            State::Ground => self.step_ground(first, rest),
            State::Name => self.step_name(first, rest),
            State::UnicodePrefix => self.step_unicode_prefix(first),
            State::Dash | State::Slash => self.step_operator(first),
            State::LineComment => self.step_line_comment(rest),
            State::Block | State::BlockStar | State::BlockSlash => self.step_block(first, rest),
            State::Literal => {
                let len = run(rest, |byte| byte == b'\'');
                self.take_through(len, rest, State::Ground)
            }
            State::Escape => {
                let len = run(rest, |byte| byte == b'\'' || byte == b'\\');
                let quoted = rest.get(len) == Some(&b'\'');
                let next = if quoted { State::EscapeQuote } else { State::EscapeBackslash };
                self.take_through(len, rest, next)
            }
            State::EscapeBackslash => self.take(1, State::Escape),
            State::EscapeQuote if first == b'\'' => self.take(1, State::Escape),
            State::EscapeQuote => {
                self.resume = Resume::AfterNewline;
                self.take(0, State::Ground)
            }
            State::Quoted => {
                let len = run(rest, |byte| byte == b'"');
                self.keep(rest.get(..len).unwrap_or_default());
                self.take_through(len, rest, State::QuotedQuote)
            }
            State::QuotedQuote if first == b'"' => {
                self.keep(b"\"");
                self.take(1, State::Quoted)
            }
            State::QuotedQuote => {
                self.end_quoted();
                self.take(0, State::Ground)
            }
            State::Dollar | State::DollarTag => self.step_dollar(first),
            State::DollarBody => {
                let len = run(rest, |byte| byte == b'$');
                self.matched = 0;
                self.take_through(len, rest, State::DollarEnd)
            }
            State::DollarEnd => self.step_dollar_end(first),
            State::Lost => rest.len(),
        }
    }

    fn take(&mut self, len: usize, next: State) -> usize {
        self.state = next;
        len
    }

    /// Takes `len` bytes and the one behind them, which leads to `next`; or all if there is none.
    fn take_through(&mut self, len: usize, rest: &[u8], next: State) -> usize {
        if len < rest.len() {
            self.state = next;
            len + 1
        } else {
            len
        }
    }

    #[inline]
    fn token(&mut self, token: Token) {
        self.resume = Resume::No;
        self.statements.token(token);
    }

    #[inline]
    fn step_ground(&mut self, first: u8, rest: &[u8]) -> usize {
        match kind_of(first) {
            Kind::Space => {
                let len = run(rest, |byte| kind_of(byte) != Kind::Space);
                if self.resume == Resume::AfterNewline
                    && rest.iter().take(len).copied().any(is_newline)
                {
                    self.resume = Resume::Now;
                }
                return len;
            }
            Kind::Name => return self.begin_name(first, rest),
            Kind::Digit => {
                self.token(Token::Other);
                return run(rest, |byte| kind_of(byte) != Kind::Digit);
            }
            Kind::Quote => {
                let again = self.resume == Resume::Now;
                self.token(Token::Literal);
                self.state = if again { State::Escape } else { State::Literal };
            }
            Kind::DoubleQuote => self.begin_quoted(false),
            Kind::Dollar => self.state = State::Dollar,
            Kind::Dash => self.state = State::Dash,
            Kind::Slash => self.state = State::Slash,
            Kind::Mark => self.token(match first {
                b'(' => Token::Open,
                b')' => Token::Close,
                b',' => Token::Comma,
                b';' => Token::Semicolon,
                b'.' => Token::Dot,
                b'=' => Token::Equals,
                _ => Token::Star,
            }),
            Kind::Other => self.token(Token::Other),
        }
        1
    }

    /// The usual name lies whole in the piece and is looked at where it lies.
    #[inline]
    fn begin_name(&mut self, first: u8, rest: &[u8]) -> usize {
        let len = name_run(rest);
        match rest.get(len) {
            Some(&next) if len > 1 || !self.is_prefix(first, next) => {
                self.token(Token::of_name_in(rest, len));
                // The blank behind most names, without another turn.
                len + usize::from(next == b' ')
            }
            Some(_) => len + 1,
            None => {
                self.len = 0;
                self.keep(rest);
                self.take(len, State::Name)
            }
        }
    }

    /// Whether a name of one letter and the byte behind it begin a literal or a `U&"…"` name.
    fn is_prefix(&mut self, letter: u8, next: u8) -> bool {
        self.state = match (letter | 0x20, next) {
            (b'e', b'\'') => State::Escape,
            (b'b' | b'n' | b'x', b'\'') => State::Literal,
            (b'u', b'&') => State::UnicodePrefix,
            _ => return false,
        };
        if next == b'\'' {
            self.token(Token::Literal);
        }
        true
    }

    fn step_name(&mut self, first: u8, rest: &[u8]) -> usize {
        let len = name_run(rest);
        self.keep(rest.get(..len).unwrap_or_default());
        if len == rest.len() {
            return len;
        }
        let [letter, ..] = self.name;
        if len == 0 && self.len == 1 && self.is_prefix(letter, first) {
            return 1;
        }
        self.end_name();
        self.take(len, State::Ground)
    }

    /// Adds to the buffer what fits; the rest of a name that long does not matter.
    fn keep(&mut self, bytes: &[u8]) {
        let room = self.name.iter_mut().skip(usize::from(self.len));
        let kept = room.zip(bytes).map(|(place, byte)| *place = *byte).count();
        // At most NAME_BYTES_MAX in all.
        self.len += kept as u8;
    }

    fn kept(&self) -> &[u8] {
        self.name.get(..usize::from(self.len)).unwrap_or_default()
    }

    fn end_name(&mut self) {
        let token = Token::of_name(self.kept());
        self.token(token);
    }

    fn step_unicode_prefix(&mut self, first: u8) -> usize {
        match first {
            b'\'' => {
                self.token(Token::Literal);
                self.take(1, State::Literal)
            }
            b'"' => {
                self.begin_quoted(true);
                1
            }
            _ => {
                self.end_unicode_prefix();
                self.take(0, State::Ground)
            }
        }
    }

    /// The `u&` was a name and an operator.
    fn end_unicode_prefix(&mut self) {
        self.token(Token::Name);
        self.token(Token::Other);
    }

    fn begin_quoted(&mut self, unicode: bool) {
        self.unicode = unicode;
        self.len = 0;
        self.state = State::Quoted;
    }

    fn end_quoted(&mut self) {
        if !self.unicode {
            let token = Token::of_quoted(self.kept());
            return self.token(token);
        }
        if self.kept().contains(&b'\\') {
            self.statements.on_doubt();
        }
        self.token(match Token::of_quoted(self.kept()) {
            Token::Name => Token::UnicodeName,
            token => token,
        });
    }

    /// Behind one `-` or `/`: a comment begins, even within a longer operator.
    fn step_operator(&mut self, first: u8) -> usize {
        match (self.state, first) {
            (State::Dash, b'-') => self.take(1, State::LineComment),
            (State::Slash, b'*') => {
                self.resume = Resume::No;
                self.comments = 1;
                self.take(1, State::Block)
            }
            _ => {
                self.token(Token::Other);
                self.take(0, State::Ground)
            }
        }
    }

    fn step_line_comment(&mut self, rest: &[u8]) -> usize {
        let len = run(rest, is_newline);
        if len < rest.len() && self.resume == Resume::AfterNewline {
            self.resume = Resume::Now;
        }
        self.take_through(len, rest, State::Ground)
    }

    fn step_block(&mut self, first: u8, rest: &[u8]) -> usize {
        match (self.state, first) {
            (State::BlockStar, b'/') => {
                self.comments = self.comments.saturating_sub(1);
                self.take(1, if self.comments == 0 { State::Ground } else { State::Block })
            }
            (State::BlockSlash, b'*') => {
                self.comments = self.comments.saturating_add(1);
                self.take(1, State::Block)
            }
            (_, b'*') => self.take(1, State::BlockStar),
            (_, b'/') => self.take(1, State::BlockSlash),
            _ => {
                let len = run(rest, |byte| byte == b'*' || byte == b'/');
                self.take(len, State::Block)
            }
        }
    }

    /// Behind `$`: a parameter, the tag of a dollar quote, or nothing that PostgreSQL takes.
    fn step_dollar(&mut self, first: u8) -> usize {
        if self.state == State::Dollar {
            self.len = 0;
        }
        match kind_of(first) {
            Kind::Dollar => {
                self.token(Token::Literal);
                self.take(1, State::DollarBody)
            }
            Kind::Digit if self.state == State::Dollar => {
                self.token(Token::Other);
                self.take(0, State::Ground)
            }
            Kind::Name | Kind::Digit => {
                if usize::from(self.len) == NAME_BYTES_MAX {
                    return self.take(1, State::Lost);
                }
                self.keep(&[first]);
                self.take(1, State::DollarTag)
            }
            _ => {
                self.token(Token::Other);
                self.take(0, State::Ground)
            }
        }
    }

    /// In a dollar-quoted literal behind `$` and the part of the tag that `matched` counts.
    fn step_dollar_end(&mut self, first: u8) -> usize {
        let matched = usize::from(self.matched);
        if first == b'$' {
            if self.matched == self.len {
                return self.take(1, State::Ground);
            }
            // A `$` that ends no tag of ours may begin one.
            self.matched = 0;
            return 1;
        }
        if self.kept().get(matched) == Some(&first) {
            self.matched += 1;
            return 1;
        }
        self.take(1, State::DollarBody)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scanner_is_small_enough_to_sit_in_each_client() {
        assert!(size_of::<Scanner>() <= 256, "{}", size_of::<Scanner>());
    }

    #[test]
    fn names_end_where_the_table_of_kinds_says() {
        for byte in 0..=u8::MAX {
            for place in 0..8 {
                let mut text = *b"aZ_9$\xc3x0rest";
                text[place] = byte;
                assert_eq!(name_run(&text), run(&text, |b| !is_name_byte(b)), "{byte} {place}");
            }
        }
    }

    #[test]
    fn a_tag_too_long_to_compare_is_a_doubt() {
        let mut sql = b"SELECT $".to_vec();
        sql.extend([b't'; 65]);
        sql.extend(b"$ SET x");
        assert!(crate::scan(&sql).effects.contains(crate::Effects::UNSURE));
    }
}
