//! The grammar of SET, RESET and `SELECT set_config(…)`: `VariableSetStmt` and `VariableResetStmt`
//! of `gram.y`.
//!
//! Where a text could be of two forms the tokens behind the name decide, as in PostgreSQL's LALR
//! tables. It may take a text that PostgreSQL refuses (a keyword for a time zone), never one that
//! means another thing there. Next on the path: `tokens.rs`.

use super::tokens::{Token, Tokens};
use super::{Action, Item, Name, Setting, Value};

/// Parameters that no SET leaves as it says: those of the transaction end with it, a seed is used
/// up, and `force_parallel_mode` is a parameter of its own or another name of one, by version.
const UNKNOWABLE: [&str; 5] = [
    "transaction_isolation",
    "transaction_read_only",
    "transaction_deferrable",
    "seed",
    "force_parallel_mode",
];

/// Words of a DateStyle that choose the style, and those that choose the order; `german` does both.
const DATE_STYLES: &str = "iso sql postgres german";
const DATE_ORDERS: &str = "ymd dmy mdy us euro european german";

/// `transaction_mode_item`s, the parameters that keep them for the session, and their values.
const MODES: [(&str, &str, &str); 8] = [
    ("isolation level serializable", ISOLATION, "serializable"),
    ("isolation level repeatable read", ISOLATION, "repeatable read"),
    ("isolation level read committed", ISOLATION, "read committed"),
    ("isolation level read uncommitted", ISOLATION, "read uncommitted"),
    ("read only", READ_ONLY, "on"),
    ("read write", READ_ONLY, "off"),
    ("deferrable", DEFERRABLE, "on"),
    ("not deferrable", DEFERRABLE, "off"),
];
const ISOLATION: &str = "default_transaction_isolation";
const READ_ONLY: &str = "default_transaction_read_only";
const DEFERRABLE: &str = "default_transaction_deferrable";

/// What the one statement of the text sets.
pub(super) fn statement(sql: &[u8]) -> Option<Setting> {
    let mut tokens = Tokens::new(sql);
    let Token::Word(lead) = tokens.take() else { return None };
    if lead.eq_ignore_ascii_case(b"set") {
        set(tokens)
    } else if lead.eq_ignore_ascii_case(b"reset") {
        reset(tokens)
    } else if lead.eq_ignore_ascii_case(b"select") {
        call(tokens)
    } else {
        None
    }
}

impl<'a> Tokens<'a> {
    /// The next token, not taken.
    fn peek(mut self) -> Token<'a> {
        self.take()
    }

    /// Takes these unquoted words, given with blanks between, if they are next.
    fn take_words(&mut self, words: &str) -> Option<()> {
        let mut ahead = *self;
        for word in words.split(' ') {
            match ahead.take() {
                Token::Word(is) if is.eq_ignore_ascii_case(word.as_bytes()) => {}
                _ => return None,
            }
        }
        *self = ahead;
        Some(())
    }

    /// Takes the mark `mark`, if it is next.
    fn take_mark(&mut self, mark: u8) -> Option<()> {
        let mut ahead = *self;
        let found = ahead.take() == Token::Mark(mark);
        found.then(|| *self = ahead)
    }

    /// Whether nothing follows but semicolons.
    fn at_end(mut self) -> Option<()> {
        loop {
            match self.take() {
                Token::Mark(b';') => {}
                Token::End => return Some(()),
                _ => return None,
            }
        }
    }

    /// `var_name`: identifiers joined by dots.
    fn name(&mut self) -> Option<Name> {
        let mut name = Vec::new();
        loop {
            match self.take() {
                Token::Word(word) if !is_reserved(word) && !is_no_name(word) => {
                    name.extend_from_slice(word);
                }
                Token::Quoted(quoted) => name.extend_from_slice(&quoted),
                _ => return None,
            }
            if self.take_mark(b'.').is_none() {
                return Name::new(&name);
            }
            name.push(b'.');
        }
    }

    /// `NonReservedWord_or_Sconst`.
    fn word_or_text(&mut self) -> Option<Box<[u8]>> {
        match self.take() {
            Token::Word(word) if !is_reserved(word) => Some(word.to_ascii_lowercase().into()),
            Token::Quoted(text) | Token::Text(text) => Some(text.into()),
            _ => None,
        }
    }

    /// `NumericOnly`.
    fn signed_number(&mut self) -> Option<Box<[u8]>> {
        let mut number = Vec::new();
        match self.take() {
            Token::Mark(sign @ (b'+' | b'-')) => match self.take() {
                Token::Number(digits) => {
                    number.push(sign);
                    number.extend_from_slice(digits);
                }
                _ => return None,
            },
            Token::Number(digits) => number.extend_from_slice(digits),
            _ => return None,
        }
        Some(number.into())
    }

    /// `var_value`.
    fn item(&mut self) -> Option<Item> {
        match self.peek() {
            Token::Mark(_) | Token::Number(_) => self.signed_number().map(Item::Number),
            Token::Word(word) if is_in("true false on", word) => {
                self.take();
                Some(Item::Text(word.to_ascii_lowercase().into()))
            }
            _ => self.word_or_text().map(Item::Text),
        }
    }
}

/// Whether `word` is one of `words`, which blanks separate, in any case.
fn is_in(words: &str, word: &[u8]) -> bool {
    words.split(' ').any(|one| one.as_bytes().eq_ignore_ascii_case(word))
}

/// Whether an unquoted word is a keyword that is no value of a SET and no name, in PostgreSQL 15
/// or 18.
fn is_reserved(word: &[u8]) -> bool {
    let words = match word.first().map_or(0, |letter| letter | 0x20) {
        b'a' => "all analyse analyze and any array as asc asymmetric",
        b'b' => "both",
        b'c' => {
            "case cast check collate column constraint create current_catalog \
             current_date current_role current_time current_timestamp current_user"
        }
        b'd' => "default deferrable desc distinct do",
        b'e' => "else end except",
        b'f' => "false fetch for foreign from",
        b'g' => "grant group",
        b'h' => "having",
        b'i' => "in initially intersect into",
        b'l' => "lateral leading limit localtime localtimestamp",
        b'n' => "not null",
        b'o' => "offset on only or order",
        b'p' => "placing primary",
        b'r' => "references returning",
        b's' => "select session_user some symmetric system_user",
        b't' => "table then to trailing true",
        b'u' => "union unique user using",
        b'v' => "variadic",
        b'w' => "when where window with",
        _ => return false,
    };
    is_in(words, word)
}

/// Whether an unquoted word is a keyword that is a value, but no name of a parameter.
fn is_no_name(word: &[u8]) -> bool {
    let words = match word.first().map_or(0, |letter| letter | 0x20) {
        b'a' => "authorization",
        b'b' => "binary",
        b'c' => "collation concurrently cross current_schema",
        b'f' => "freeze full",
        b'i' => "ilike inner is isnull",
        b'j' => "join",
        b'l' => "left like",
        b'n' => "natural notnull",
        b'o' => "outer overlaps",
        b'r' => "right",
        b's' => "similar",
        b't' => "tablesample",
        b'v' => "verbose",
        _ => return false,
    };
    is_in(words, word)
}

/// Behind SET. A SESSION there is a prefix, the beginning of a special form, or a name.
fn set(tokens: Tokens<'_>) -> Option<Setting> {
    set_rest(tokens).or_else(|| {
        let mut behind = tokens;
        behind.take_words("session")?;
        set_rest(behind)
    })
}

/// `set_rest`: a name with TO or `=`, whatever the name is, or a special form.
fn set_rest(mut tokens: Tokens<'_>) -> Option<Setting> {
    let mut generic = tokens;
    if let Some(name) = generic.name() {
        if generic.take_mark(b'=').or_else(|| generic.take_words("to")).is_some() {
            return assignment(generic, name);
        }
    }
    if tokens.take_words("time zone").is_some() {
        time_zone(tokens)
    } else if tokens.take_words("schema").is_some() {
        let Token::Text(schema) = tokens.take() else { return None };
        finish(tokens, "search_path", Action::Set(Value::text(&schema)))
    } else if tokens.take_words("names").is_some() {
        names(tokens)
    } else if tokens.take_words("role").is_some() {
        let role = tokens.word_or_text()?;
        let name = Name::new(b"role")?;
        let action = Action::set(&name, Value::text(&role));
        changes(tokens, vec![(name, action)])
    } else if tokens.take_words("session authorization").is_some() {
        let action = match tokens.take_words("default") {
            Some(()) => Action::Default,
            None => Action::Set(Value::text(&tokens.word_or_text()?)),
        };
        finish(tokens, "session_authorization", action)
    } else if tokens.take_words("session characteristics as transaction").is_some() {
        characteristics(tokens)
    } else if tokens.take_words("xml option").is_some() {
        let option: &[u8] = match tokens.take_words("document") {
            Some(()) => b"document",
            None => tokens.take_words("content").map(|()| b"content")?,
        };
        finish(tokens, "xmloption", Action::Set(Value::text(option)))
    } else {
        None
    }
}

/// Behind `name =`: DEFAULT or a list of values.
fn assignment(mut tokens: Tokens<'_>, name: Name) -> Option<Setting> {
    if tokens.take_words("default").is_some() {
        return changes(tokens, vec![(name, Action::Default)]);
    }
    let mut items = vec![tokens.item()?];
    while tokens.take_mark(b',').is_some() {
        items.push(tokens.item()?);
    }
    let action = Action::set(&name, Value::List(items));
    changes(tokens, vec![(name, action)])
}

/// Behind TIME ZONE: `zone_value` without intervals.
fn time_zone(mut tokens: Tokens<'_>) -> Option<Setting> {
    let action = if tokens.take_words("local").or_else(|| tokens.take_words("default")).is_some() {
        Action::Default
    } else {
        match tokens.peek() {
            // No keyword is a time zone's name without quotes; these two mean other things.
            Token::Word(word) if is_no_name(word) || is_in("interval", word) => {
                return None;
            }
            Token::Mark(_) | Token::Number(_) => {
                Action::Set(Value::List(vec![Item::Number(tokens.signed_number()?)]))
            }
            _ => Action::Set(Value::text(&tokens.word_or_text()?)),
        }
    };
    finish(tokens, "timezone", action)
}

/// Behind NAMES: `opt_encoding`.
fn names(mut tokens: Tokens<'_>) -> Option<Setting> {
    let mut action = Action::Default;
    if tokens.take_words("default").is_none() {
        if let Token::Text(encoding) = tokens.peek() {
            tokens.take();
            action = Action::Set(Value::text(&encoding));
        }
    }
    finish(tokens, "client_encoding", action)
}

/// Behind SESSION CHARACTERISTICS AS TRANSACTION: `transaction_mode_list`; the last of each kind
/// counts.
fn characteristics(mut tokens: Tokens<'_>) -> Option<Setting> {
    let mut found: Vec<(Name, Action)> = Vec::new();
    loop {
        let (name, value) = mode(&mut tokens)?;
        let name = Name::new(name.as_bytes())?;
        found.retain(|(earlier, _)| *earlier != name);
        found.push((name, Action::Set(Value::text(value.as_bytes()))));
        if tokens.take_mark(b',').is_none() && tokens.at_end().is_some() {
            return changes(tokens, found);
        }
    }
}

/// `transaction_mode_item`: the parameter that keeps it for the session, and its value.
fn mode(tokens: &mut Tokens<'_>) -> Option<(&'static str, &'static str)> {
    let (_, name, value) = MODES.iter().find(|(words, ..)| tokens.take_words(words).is_some())?;
    Some((*name, *value))
}

/// Behind RESET.
fn reset(mut tokens: Tokens<'_>) -> Option<Setting> {
    if tokens.take_words("all").is_some() {
        return tokens.at_end().map(|()| Setting::ResetAll);
    }
    let mut generic = tokens;
    if let Some(name) = generic.name() {
        if generic.at_end().is_some() {
            return changes(generic, vec![(name, Action::Default)]);
        }
    }
    if tokens.take_words("time zone").is_some() {
        finish(tokens, "timezone", Action::Default)
    } else {
        tokens.take_words("session authorization")?;
        finish(tokens, "session_authorization", Action::Default)
    }
}

/// Behind SELECT: a plain call of `set_config` for the session, and at most a label.
fn call(mut tokens: Tokens<'_>) -> Option<Setting> {
    if function(&mut tokens, b"pg_catalog").is_some() {
        tokens.take_mark(b'.')?;
    }
    function(&mut tokens, b"set_config")?;
    tokens.take_mark(b'(')?;
    let Token::Text(name) = tokens.take() else { return None };
    let name = Name::new(&name)?;
    tokens.take_mark(b',')?;
    let action = match tokens.take() {
        Token::Text(text) => Action::set(&name, Value::Raw(text.into())),
        Token::Word(word) if word.eq_ignore_ascii_case(b"null") => Action::Default,
        _ => return None,
    };
    tokens.take_mark(b',')?;
    match tokens.take() {
        Token::Text(text) if is_false(&text) => {}
        Token::Word(word) if word.eq_ignore_ascii_case(b"false") => {}
        _ => return None,
    }
    tokens.take_mark(b')')?;
    if tokens.take_words("as").is_some() {
        let (Token::Word(_) | Token::Quoted(_)) = tokens.take() else { return None };
    }
    changes(tokens, vec![(name, action)])
}

/// Takes the name `name` of a function or a schema, if it is next.
fn function(tokens: &mut Tokens<'_>, name: &[u8]) -> Option<()> {
    let mut ahead = *tokens;
    let found = match ahead.take() {
        Token::Word(word) => word.eq_ignore_ascii_case(name),
        Token::Quoted(quoted) => quoted == name,
        _ => false,
    };
    found.then(|| *tokens = ahead)
}

/// Whether the type `boolean` reads the text as false: the beginnings of words count, too.
fn is_false(text: &[u8]) -> bool {
    let word = text.trim_ascii().to_ascii_lowercase();
    let begins = |whole: &[u8], least: usize| word.len() >= least && whole.starts_with(&word);
    begins(b"false", 1) || begins(b"no", 1) || begins(b"off", 2) || word == b"0"
}

/// The end of a statement that sets one parameter.
fn finish(tokens: Tokens<'_>, name: &str, action: Action) -> Option<Setting> {
    changes(tokens, vec![(Name::new(name.as_bytes())?, action)])
}

/// The end of a statement: its changes, if all of them can be known.
fn changes(tokens: Tokens<'_>, mut found: Vec<(Name, Action)>) -> Option<Setting> {
    tokens.at_end()?;
    let is_known = |(name, action): &(Name, Action)| match (name.as_str(), action) {
        ("datestyle", Action::Set(value)) => is_whole_date_style(value),
        (name, _) => !UNKNOWABLE.contains(&name),
    };
    if !found.iter().all(is_known) {
        return None;
    }
    if let [(name, action)] = found.as_slice() {
        if name.as_str() == "session_authorization" {
            let role = match action {
                Action::Default => Action::Default,
                _ => Action::RoleNone,
            };
            found.push((Name::new(b"role")?, role));
        }
    }
    Some(Setting::Changes(found))
}

/// Whether a DateStyle says both style and order; otherwise it keeps one of before.
fn is_whole_date_style(value: &Value) -> bool {
    let texts: Vec<&[u8]> = match value {
        Value::Raw(text) => vec![text],
        Value::List(items) => {
            items.iter().map(|(Item::Text(text) | Item::Number(text))| text.as_ref()).collect()
        }
    };
    let words =
        || texts.iter().flat_map(|text| text.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
    words().all(|word| is_in(DATE_STYLES, word) || is_in(DATE_ORDERS, word))
        && words().any(|word| is_in(DATE_STYLES, word))
        && words().any(|word| is_in(DATE_ORDERS, word))
}
