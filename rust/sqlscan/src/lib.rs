//! A token-level look at PostgreSQL's SQL text: what may a statement leave behind in the session?
//!
//! Not a parser: it knows how the text is cut into tokens and statements (`scan.l`), which words
//! lead a statement and which function names matter. It never allocates, never panics, takes linear
//! time and a fixed state. Whoever has a doubt pins: an effect too many costs a shared connection,
//! an effect too few leaks one client's state to another. For a text that the scan finds to set
//! something, [`setting`] says what, if that is one statement of constants.
//!
//! Two things that the text does not show are the caller's to know. The scan holds for sessions
//! with `standard_conforming_strings` on (a plain literal knows no backslash), and for client
//! encodings whose trailing bytes are never ASCII (not SJIS, BIG5, GBK, UHC, GB18030, JOHAB or
//! SHIFT_JIS_2004, which may hide a backslash in a letter). Where either fails, treat every text as
//! [`Effects::UNSURE`]. What functions of the user's own do is not visible here either.
//!
//! Path: [`Scanner`] (`lexer.rs`) cuts tokens, `token.rs` names them, `statement.rs` follows
//! statements, `words.rs` reads the body of DO; `setting.rs` stands beside. Next: `verdict.rs`.

mod lexer;
mod setting;
mod statement;
mod token;
mod verdict;
mod words;

pub use lexer::Scanner;
pub use setting::{Action, Item, Name, Setting, Value, setting};
pub use verdict::{Class, Effects, EffectsIter, Reset, Verdict};

/// Looks at a whole text, as one [`Scanner`] that is fed once.
///
/// `sql`: the text of a Query or Parse message without its final zero byte, any length. Returns
/// what it may leave in the session; never fails (text that PostgreSQL refuses gets some verdict).
#[must_use]
pub fn scan(sql: &[u8]) -> Verdict {
    let mut scanner = Scanner::new();
    scanner.feed(sql);
    scanner.finish()
}
