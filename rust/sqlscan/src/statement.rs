//! Follows the tokens of statements and collects what they leave in the session.
//!
//! Not a grammar: a leading keyword opens one of a few short paths ([`Stage`]); function names and
//! CREATE's TEMP count wherever they stand. Where PostgreSQL would refuse the text anyway, any
//! answer is right. Next on the path: `words.rs` for the text of DO.

use crate::token::Token;
use crate::verdict::{Class, Effects, Reset, Verdict};
use crate::words::Words;

/// Where in its first few tokens a statement is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// Before the first token, or behind opening parentheses only.
    Start,
    /// Nothing more to learn from the order of tokens.
    Quiet,
    /// The statement is a known one so far; any further token makes it another.
    Known(Known),
    Set,
    SetSession,
    /// Behind SET and LOCAL, TRANSACTION or CONSTRAINTS, which may still name a variable.
    SetLocal,
    Reset,
    ResetSession,
    Prepare,
    PrepareTransaction,
    Deallocate,
    DeallocatePrepare,
    Discard,
    Unlisten,
    CloseCursor,
    Select,
    UnlockAll,
    UnlockAllOpen,
    Commit,
    Rollback,
    Declare,
    Explain,
    With,
    Do,
    DoLanguage,
}

/// Statements that resets are made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Known {
    Reset(Reset),
    AdvisoryUnlockAll,
    CloseAll,
}

/// How far the text has followed asyncpg's reset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Asyncpg {
    Nothing,
    Unlocked,
    Closed,
    Unlistened,
    Whole,
    Other,
}

/// A call of `set_config` whose arguments are being counted.
#[derive(Clone, Copy, Debug)]
struct SetConfig {
    /// The depth of parentheses of its arguments; 0 if there is no call.
    depth: u32,
    commas: u8,
    /// Tokens of the argument so far, stops at 2.
    tokens: u8,
    /// The argument's first token is the word `true`.
    truth: bool,
}

/// Follows the statements of one text, token by token.
#[derive(Clone, Debug)]
pub(crate) struct Statements {
    effects: Effects,
    /// The known reset that the text is, as long as it is one statement.
    reset: Option<Reset>,
    asyncpg: Asyncpg,
    statements: u16,
    class: Class,
    /// Whether the current statement's class is settled (or that of an earlier one was).
    class_done: bool,
    stage: Stage,
    prev: Token,
    /// The word that leads the current statement, behind EXPLAIN the explained one's.
    lead: Token,
    depth: u32,
    /// BEGIN ATOMIC and CASE that wait for their END in the body of a routine.
    body_depth: u32,
    /// An UPDATE that may be of `pg_settings`.
    updating: bool,
    set_config: SetConfig,
    /// Whether the lexer must show the bytes of this statement to `words`.
    watching: bool,
    words: Words,
}

impl Statements {
    pub(crate) const fn new() -> Self {
        Self {
            effects: Effects::empty(),
            reset: None,
            asyncpg: Asyncpg::Nothing,
            statements: 0,
            class: Class::Empty,
            class_done: false,
            stage: Stage::Start,
            prev: Token::Start,
            lead: Token::Start,
            depth: 0,
            body_depth: 0,
            updating: false,
            set_config: SetConfig { depth: 0, commas: 0, tokens: 0, truth: false },
            watching: false,
            words: Words::new(),
        }
    }

    /// Takes the next token of the text.
    #[inline]
    pub(crate) fn token(&mut self, token: Token) {
        if self.set_config.depth != 0 {
            self.on_argument(token);
        }
        if self.stage != Stage::Quiet {
            if self.stage == Stage::Start && self.prev == Token::Start {
                self.on_first(token);
            }
            self.step(token);
        }
        match token {
            Token::Open => {
                self.depth = self.depth.saturating_add(1);
                if self.prev.is_call() {
                    self.on_call(self.prev);
                } else if self.prev == Token::UnicodeName {
                    self.effects |= Effects::UNSURE;
                }
            }
            Token::Close => self.depth = self.depth.saturating_sub(1),
            Token::Semicolon if self.depth == 0 => return self.on_semicolon(),
            token if !token.is_plain() => self.on_word(token),
            _ => {}
        }
        self.prev = token;
    }

    /// Whether the lexer must hand the bytes it takes to [`Self::text`].
    #[inline]
    pub(crate) const fn watches_text(&self) -> bool {
        self.watching
    }

    /// Takes bytes of a statement whose text is watched.
    pub(crate) fn text(&mut self, bytes: &[u8]) {
        self.words.feed(bytes);
    }

    /// Notes a doubt.
    pub(crate) fn on_doubt(&mut self) {
        self.effects |= Effects::UNSURE;
    }

    /// Ends the text; there is nothing to follow behind it.
    pub(crate) fn finish(&mut self) -> Verdict {
        if self.body_depth > 0 {
            self.effects |= Effects::UNSURE;
        }
        self.end_statement();
        let reset = match self.asyncpg {
            Asyncpg::Whole => Some(Reset::Asyncpg),
            _ if self.statements == 1 => self.reset,
            _ => None,
        };
        // A doubt stays a doubt: a text that ends within a comment is no reset but an error.
        let reset = reset.filter(|_| !self.effects.contains(Effects::UNSURE));
        let effects = if reset.is_some() { Effects::empty() } else { self.effects };
        Verdict { effects, reset, statements: self.statements, class: self.class }
    }

    /// Counts a statement by its first token, unless it is empty or part of a routine's body.
    fn on_first(&mut self, token: Token) {
        if self.body_depth > 0 || token == Token::Semicolon {
            return;
        }
        self.class_done = self.statements > 0;
        self.statements = self.statements.saturating_add(1);
        self.lead = Token::Start;
    }

    fn on_semicolon(&mut self) {
        if self.body_depth > 0 {
            // The next statement of a routine's body: what it would leave counts, to be safe.
            self.stage = Stage::Start;
            self.prev = Token::Start;
        } else {
            self.end_statement();
        }
    }

    fn end_statement(&mut self) {
        let known = match self.stage {
            Stage::Known(known) => Some(known),
            Stage::DeallocatePrepare => {
                self.effects |= Effects::SQL_PREPARE;
                None
            }
            Stage::ResetSession => {
                self.effects |= Effects::SET_VARIABLE;
                None
            }
            _ => None,
        };
        if self.prev != Token::Start {
            self.reset = match known {
                Some(Known::Reset(reset)) => Some(reset),
                _ => None,
            };
            self.asyncpg = self.asyncpg.after(known);
        }
        if self.set_config.depth != 0 {
            self.effects |= Effects::SET_CONFIG;
            self.set_config.depth = 0;
        }
        if self.watching {
            self.end_watch();
        }
        self.stage = Stage::Start;
        self.prev = Token::Start;
        self.depth = 0;
        self.body_depth = 0;
        self.updating = false;
    }

    fn end_watch(&mut self) {
        let found = self.words.finish();
        self.watching = false;
        if self.lead == Token::Do {
            if found.changing || found.hidden {
                self.effects |= Effects::DO_BLOCK;
            }
            return;
        }
        // A local search_path can still make the next CREATE TABLE a temporary one.
        if found.temp {
            self.effects |= Effects::TEMP;
        }
        if found.hidden || found.recodes {
            self.effects |= Effects::UNSURE;
        }
    }

    /// One step along the path that the leading keyword opened.
    fn step(&mut self, token: Token) {
        self.stage = match self.stage {
            Stage::Start => match token {
                // A parenthesis or, in an empty statement, a semicolon: still before the keyword.
                Token::Open | Token::Semicolon => Stage::Start,
                _ => {
                    // A routine's body stays part of its CREATE.
                    if self.body_depth == 0 {
                        self.lead = token;
                    }
                    self.on_lead(token)
                }
            },
            // The end of a statement is no token of it: `end_statement` looks at the stage.
            stage if token == Token::Semicolon && self.depth == 0 => stage,
            Stage::Quiet | Stage::Known(_) => Stage::Quiet,
            Stage::Set | Stage::SetSession | Stage::SetLocal => self.step_set(token),
            Stage::Reset => match token {
                Token::All => {
                    self.effects |= Effects::SET_VARIABLE;
                    Stage::Known(Known::Reset(Reset::ResetAll))
                }
                Token::Session => Stage::ResetSession,
                _ => self.on_variable(token),
            },
            Stage::ResetSession if token == Token::Authorization => self.note(Effects::SET_ROLE),
            Stage::ResetSession => self.note(Effects::SET_VARIABLE),
            Stage::Prepare if token == Token::Transaction => Stage::PrepareTransaction,
            // `transaction` is also a fine name for a prepared statement.
            Stage::PrepareTransaction if token == Token::Literal => Stage::Quiet,
            Stage::Prepare | Stage::PrepareTransaction => self.note(Effects::SQL_PREPARE),
            Stage::Deallocate if token == Token::Prepare => Stage::DeallocatePrepare,
            Stage::Deallocate | Stage::DeallocatePrepare if token == Token::All => {
                self.effects |= Effects::DISCARD;
                Stage::Known(Known::Reset(Reset::DeallocateAll))
            }
            Stage::Deallocate | Stage::DeallocatePrepare => self.note(Effects::SQL_PREPARE),
            Stage::Discard => Self::step_discard(token),
            Stage::Unlisten if token == Token::Star => {
                Stage::Known(Known::Reset(Reset::UnlistenAll))
            }
            Stage::CloseCursor if token == Token::All => Stage::Known(Known::CloseAll),
            Stage::Select if token == Token::UnlockAll => Stage::UnlockAll,
            Stage::UnlockAll if token == Token::Open => Stage::UnlockAllOpen,
            Stage::UnlockAllOpen if token == Token::Close => Stage::Known(Known::AdvisoryUnlockAll),
            Stage::Unlisten | Stage::CloseCursor => Stage::Quiet,
            Stage::Select | Stage::UnlockAll | Stage::UnlockAllOpen => Stage::Quiet,
            Stage::Commit | Stage::Rollback => self.step_end(token),
            Stage::Declare if token == Token::For => Stage::Quiet,
            Stage::Declare if token == Token::Hold && self.prev == Token::With => {
                self.note(Effects::HOLD_CURSOR)
            }
            Stage::Declare => Stage::Declare,
            Stage::Explain => self.step_explain(token),
            Stage::With => self.step_with(token),
            Stage::Do | Stage::DoLanguage => self.step_do(token),
        };
    }

    /// The first word of a statement.
    fn on_lead(&mut self, token: Token) -> Stage {
        let (class, stage) = match token {
            Token::Select => (Class::Select, Stage::Select),
            Token::Values | Token::Table => (Class::Select, Stage::Quiet),
            Token::Insert | Token::Update | Token::Delete | Token::Merge => {
                (Class::Write, Stage::Quiet)
            }
            Token::Begin | Token::StartWord => (Class::Begin, Stage::Quiet),
            Token::Commit | Token::End => (Class::Commit, Stage::Commit),
            Token::Rollback | Token::Abort => (Class::Rollback, Stage::Rollback),
            Token::Savepoint | Token::Release => (Class::Savepoint, Stage::Quiet),
            Token::Copy => (Class::Copy, Stage::Quiet),
            Token::Set => {
                self.watching = true;
                (Class::Set, Stage::Set)
            }
            Token::Reset => (Class::Set, Stage::Reset),
            Token::With => (Class::Other, Stage::With),
            Token::Do => {
                self.watching = true;
                (Class::Other, Stage::Do)
            }
            Token::Prepare => (Class::Other, Stage::Prepare),
            Token::Deallocate => (Class::Other, Stage::Deallocate),
            Token::Unlisten => (Class::Other, Stage::Unlisten),
            Token::CloseWord => (Class::Other, Stage::CloseCursor),
            Token::Declare => (Class::Other, Stage::Declare),
            Token::Explain => (Class::Other, Stage::Explain),
            Token::Discard => {
                self.effects |= Effects::DISCARD;
                (Class::Other, Stage::Discard)
            }
            Token::Execute => (Class::Other, self.note(Effects::SQL_PREPARE)),
            Token::Listen => (Class::Other, self.note(Effects::LISTEN)),
            Token::Load => (Class::Other, self.note(Effects::LOAD)),
            _ => (Class::Other, Stage::Quiet),
        };
        self.set_class(class);
        if matches!(token, Token::Explain | Token::Create) {
            // What these run inside does not change what the statement is.
            self.class_done = true;
        }
        stage
    }

    fn set_class(&mut self, class: Class) {
        if !self.class_done {
            self.class = class;
        }
    }

    /// Notes effects that the order of tokens has shown; there is no more to learn from it.
    fn note(&mut self, effects: Effects) -> Stage {
        self.effects |= effects;
        Stage::Quiet
    }

    /// A variable's name behind SET or RESET.
    fn on_variable(&mut self, token: Token) -> Stage {
        self.note(match token {
            Token::Role | Token::SessionAuthorization => Effects::SET_ROLE,
            Token::Seed => Effects::SEED,
            _ => Effects::SET_VARIABLE,
        })
    }

    fn step_set(&mut self, token: Token) -> Stage {
        match (self.stage, token) {
            (Stage::Set, Token::Session) => Stage::SetSession,
            (Stage::Set, Token::Local | Token::Transaction | Token::Constraints) => Stage::SetLocal,
            (Stage::SetSession, Token::Session) => Stage::SetSession,
            (Stage::SetSession, Token::Authorization) => self.note(Effects::SET_ROLE),
            // `local.x`, `transaction.x` and `constraints.x` are names of variables.
            (Stage::SetLocal, Token::Dot | Token::Equals | Token::To) => {
                self.note(Effects::SET_VARIABLE)
            }
            // The generator keeps its seed when the transaction ends.
            (Stage::SetLocal, Token::Seed) => self.note(Effects::SEED),
            (Stage::SetLocal, _) => Stage::Quiet,
            _ => self.on_variable(token),
        }
    }

    fn step_discard(token: Token) -> Stage {
        let reset = match token {
            Token::All => Reset::DiscardAll,
            Token::Plans => Reset::DiscardPlans,
            Token::Sequences => Reset::DiscardSequences,
            Token::Temp | Token::Temporary => Reset::DiscardTemp,
            _ => return Stage::Quiet,
        };
        Stage::Known(Known::Reset(reset))
    }

    fn step_end(&mut self, token: Token) -> Stage {
        match token {
            Token::Work | Token::Transaction => return self.stage,
            Token::Prepared => self.set_class(Class::Other),
            Token::To if self.stage == Stage::Rollback => self.set_class(Class::Savepoint),
            _ => {}
        }
        Stage::Quiet
    }

    fn step_explain(&mut self, token: Token) -> Stage {
        match token {
            Token::Analyze | Token::Analyse | Token::Verbose | Token::Open | Token::Close => {
                Stage::Explain
            }
            _ if self.depth > 0 => Stage::Explain,
            _ => {
                self.lead = token;
                match self.on_lead(token) {
                    // Explained, it unlocks nothing: no part of asyncpg's reset.
                    Stage::Select => Stage::Quiet,
                    stage => stage,
                }
            }
        }
    }

    fn step_with(&mut self, token: Token) -> Stage {
        match token {
            Token::Insert | Token::Delete | Token::Merge => {}
            Token::Update if !matches!(self.prev, Token::For | Token::Key) => {}
            Token::Select | Token::Values | Token::Table if self.depth == 0 => {
                self.set_class(Class::Select);
                return Stage::With;
            }
            _ => return Stage::With,
        }
        self.set_class(Class::Write);
        Stage::Quiet
    }

    fn step_do(&mut self, token: Token) -> Stage {
        match (self.stage, token) {
            (_, Token::Language) => Stage::DoLanguage,
            (Stage::DoLanguage, Token::Plpgsql) => Stage::Do,
            // Of other languages we know no words; two literals may be one, cut within a word.
            (Stage::DoLanguage, _) => self.note(Effects::DO_BLOCK),
            (_, Token::Literal) if self.prev == Token::Literal => self.note(Effects::DO_BLOCK),
            _ => Stage::Do,
        }
    }

    /// A call of one of the functions that matter.
    fn on_call(&mut self, function: Token) {
        self.effects |= match function {
            Token::SetLimit => Effects::SET_CONFIG,
            Token::SequenceWrite => Effects::SEQUENCE,
            Token::SequenceRead => Effects::SEQUENCE_READ,
            Token::SetSeed => Effects::SEED,
            Token::AdvisoryLock => Effects::ADVISORY_LOCK,
            Token::Foreign => Effects::FOREIGN_SESSION,
            Token::RunsText => Effects::UNSURE,
            // A call within the arguments of another is not followed.
            Token::SetConfig if self.set_config.depth != 0 => Effects::SET_CONFIG,
            Token::SetConfig => {
                self.set_config =
                    SetConfig { depth: self.depth, commas: 0, tokens: 0, truth: false };
                self.watching = true;
                Effects::empty()
            }
            _ => Effects::empty(),
        };
    }

    /// A token within the arguments of `set_config`: is the third one just the word `true`?
    fn on_argument(&mut self, token: Token) {
        let call = &mut self.set_config;
        match token {
            Token::Comma if self.depth == call.depth => {
                *call = SetConfig { commas: call.commas.saturating_add(1), tokens: 0, ..*call };
            }
            Token::Close if self.depth == call.depth => {
                if !(call.commas == 2 && call.tokens == 1 && call.truth) {
                    self.effects |= Effects::SET_CONFIG;
                }
                self.set_config.depth = 0;
            }
            _ => {
                call.truth = call.tokens == 0 && token == Token::True;
                call.tokens = call.tokens.saturating_add(1).min(2);
            }
        }
    }

    /// Words that matter wherever they stand.
    fn on_word(&mut self, token: Token) {
        match token {
            Token::PgTemp => self.effects |= Effects::TEMP,
            Token::Temp | Token::Temporary => {
                let created = match self.prev {
                    Token::Create | Token::Replace | Token::Global | Token::Local => true,
                    // A table may be called temp; only SELECT's INTO makes a temporary one.
                    Token::Into => !matches!(self.lead, Token::Insert | Token::Merge),
                    _ => false,
                };
                if created {
                    self.effects |= Effects::TEMP;
                }
            }
            Token::Update => self.updating = true,
            Token::PgSettings if self.updating => self.effects |= Effects::SET_CONFIG,
            Token::Uescape if self.prev == Token::UnicodeName => self.effects |= Effects::UNSURE,
            Token::Execute if self.lead == Token::Create && self.prev == Token::As => {
                self.effects |= Effects::SQL_PREPARE;
            }
            Token::Atomic | Token::Case | Token::End if self.lead == Token::Create => {
                self.on_body(token);
            }
            _ => {}
        }
    }

    /// Follows the SQL-standard body of a routine, whose semicolons end no statement.
    fn on_body(&mut self, token: Token) {
        match token {
            Token::Atomic if self.prev == Token::Begin && self.body_depth == 0 => {
                self.body_depth = 1;
                self.stage = Stage::Start;
            }
            // Behind AS or a dot the words are labels.
            _ if self.body_depth == 0 || matches!(self.prev, Token::As | Token::Dot) => {}
            Token::Case => self.body_depth = self.body_depth.saturating_add(1),
            Token::End => self.body_depth -= 1,
            _ => {}
        }
    }
}

impl Asyncpg {
    const fn after(self, known: Option<Known>) -> Self {
        match (self, known) {
            (Self::Nothing, Some(Known::AdvisoryUnlockAll)) => Self::Unlocked,
            (Self::Unlocked, Some(Known::CloseAll)) => Self::Closed,
            (Self::Closed, Some(Known::Reset(Reset::UnlistenAll))) => Self::Unlistened,
            (Self::Closed | Self::Unlistened, Some(Known::Reset(Reset::ResetAll))) => Self::Whole,
            _ => Self::Other,
        }
    }
}
