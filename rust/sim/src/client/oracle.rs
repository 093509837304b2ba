//! The oracle: each reply must be the one that a direct connection would have given.
//!
//! The client's own backend (its shadow) has read the same messages and runs as far as the replies
//! that have come. What cannot be foreseen (when a cancel strikes, whether the proxy refuses a
//! request) the shadow is told when it shows, and only where it may show. Next on the path:
//! `../checks.rs`.

use pgwire::backend::{ErrorFields, data_row_values};
use pgwire::tag;

use super::{Client, Leave, Stage};
use crate::backend::sql::read_tag;
use crate::net::show;
use crate::wire::message;

/// Later than any sleep ends.
const FOREVER: u64 = u64::MAX;

struct Error {
    severity: Vec<u8>,
    code: [u8; 5],
    text: String,
    detail: String,
}

fn read_error(body: &[u8]) -> Result<Error, String> {
    let fields = ErrorFields::read(body).map_err(|m| m.0.to_owned())?;
    let field = |code| fields.get(code).unwrap_or_default().to_vec();
    let text = |code| String::from_utf8_lossy(&field(code)).into_owned();
    let code = field(b'C').try_into().map_err(|_| "an error without SQLSTATE".to_owned())?;
    Ok(Error { severity: field(b'V'), code, text: text(b'M'), detail: text(b'D') })
}

/// Whether a server says that a message came amid copy data. Which one it names is the first that
/// the proxy sent for the client's.
fn is_out_of_sync(reply: &[u8]) -> bool {
    let text = reply.get(5..).and_then(|body| read_error(body).ok()).map(|error| error.text);
    reply[0] == tag::ERROR_RESPONSE
        && text.is_some_and(|text| text.starts_with("unexpected message type"))
}

impl Client {
    /// A reply has come.
    pub(super) fn reply(&mut self, tag: u8, body: &[u8], leave: &Leave) -> Result<(), String> {
        self.check_rows(tag, body)?;
        if leave.hostile || self.uncertain {
            return self.uncompared(tag, body);
        }
        match tag {
            tag::NOTICE_RESPONSE => return Ok(()),
            tag::NOTIFICATION_RESPONSE if self.shadow.session.kept.listens.is_some() => {
                return Ok(());
            }
            tag::PARAMETER_STATUS => return self.note_parameter(body),
            tag::ERROR_RESPONSE => {
                let error = read_error(body)?;
                if error.text.contains("_pyproxy_") {
                    return Err(format!("a server's own name was shown: {}", error.text));
                }
                if error.severity == b"FATAL" && !self.expects(tag, body) {
                    return self.fatal_or_wrong(body, leave);
                }
                self.settle_error(&error, leave);
                if self.uncertain {
                    return Ok(());
                }
                if self.is_refusal(&error, leave) {
                    self.shadow.refuse();
                    return Ok(());
                }
                if error.severity == b"FATAL" {
                    self.told_fatal = Some(error.code);
                }
            }
            _ => {}
        }
        self.compare(tag, body)?;
        if tag == tag::READY_FOR_QUERY {
            self.readies += 1;
            self.check_told(leave)?;
        }
        Ok(())
    }

    /// Rows and copy data carry their owner's tag.
    fn check_rows(&self, tag: u8, body: &[u8]) -> Result<(), String> {
        let foreign = |value: &[u8]| read_tag(value).is_some_and(|owner| owner != self.tag);
        let is_foreign = match tag {
            tag::DATA_ROW => data_row_values(body)
                .map_err(|m| m.0.to_owned())?
                .any(|value| value.is_some_and(foreign)),
            tag::COPY_DATA => foreign(body.strip_suffix(b"\n").unwrap_or(body)),
            _ => false,
        };
        if is_foreign { Err(format!("I2: a foreign row: {}", show(body))) } else { Ok(()) }
    }

    fn uncompared(&mut self, tag: u8, body: &[u8]) -> Result<(), String> {
        match tag {
            tag::PARAMETER_STATUS => drop(self.note_parameter(body)),
            tag::READY_FOR_QUERY => self.readies += 1,
            tag::ERROR_RESPONSE => {
                if let Ok(error) = read_error(body) {
                    if error.severity == b"FATAL" {
                        self.told_fatal = Some(error.code);
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The shadow's next reply, run as far as needed; parameters are compared in another way.
    fn expected(&mut self) -> Option<&[u8]> {
        loop {
            while self.shadow.out.front().is_some_and(|reply| reply[0] == b'S') {
                self.shadow.take_reply();
            }
            if !self.shadow.out.is_empty() || !self.shadow.step(FOREVER) {
                break;
            }
        }
        self.shadow.out.front().map(Vec::as_slice)
    }

    fn expects(&mut self, tag: u8, body: &[u8]) -> bool {
        // A FATAL error is expected only from what has been read: nothing is run for it.
        let bytes = message(tag, body);
        self.shadow.out.front() == Some(&bytes)
    }

    fn compare(&mut self, tag: u8, body: &[u8]) -> Result<(), String> {
        let actual = message(tag, body);
        let failed = self.shadow.status() == b'E';
        let Some(expected) = self.expected() else {
            return Err(format!("I2: an answer to nothing: {}", show(&actual)));
        };
        // In a failed transaction the server says so first when the proxy prepares a statement
        // again.
        if failed && tag == tag::ERROR_RESPONSE && read_error(body)?.code == *b"25P02" {
            self.uncertain = expected != actual;
            if self.uncertain {
                return Ok(());
            }
        }
        let Some(expected) = self.expected() else { return Ok(()) };
        if expected != actual && !(is_out_of_sync(expected) && is_out_of_sync(&actual)) {
            let expected = show(expected);
            return Err(format!("heard {} instead of {expected}", show(&actual)));
        }
        self.shadow.take_reply();
        Ok(())
    }

    /// A cancel shows: the shadow is cancelled where it stands.
    fn settle_error(&mut self, error: &Error, leave: &Leave) {
        let may_show = self.cancels > 0 || leave.query_timeout;
        if error.code != *b"57014" || error.detail.contains("waited for a server") || !may_show {
            return;
        }
        if error.text.starts_with("COPY from stdin") {
            return;
        }
        // What has been answered already lies behind; the next thing that can be cancelled was.
        while self.shadow.out.iter().all(|reply| reply[0] == b'S') {
            if self.shadow.is_in_extended_copy() {
                // Whether its Syncs were counted depends on the moment.
                self.uncertain = true;
                return;
            }
            if self.shadow.cancel() {
                // With a query_timeout, whose cancel it was cannot be told.
                if !leave.query_timeout {
                    self.cancels = self.cancels.saturating_sub(1);
                }
                return;
            }
            if !self.shadow.step(FOREVER) {
                return;
            }
        }
    }

    /// Whether the proxy itself may have refused the request, and has.
    fn is_refusal(&self, error: &Error, leave: &Leave) -> bool {
        let between = self.shadow.is_between_requests()
            && self.shadow.out.iter().all(|reply| reply[0] == b'S');
        let timed_out = error.code == *b"08000"
            && error.text.starts_with("Timed-out waiting")
            && (leave.borrow_timeout || leave.faults);
        let cancelled = error.code == *b"57014"
            && error.detail.contains("waited for a server")
            && self.cancels > 0;
        between && (timed_out || cancelled)
    }

    /// What it was told is what it has (a true value at each ReadyForQuery).
    pub(super) fn check_told(&self, leave: &Leave) -> Result<(), String> {
        if leave.hostile {
            return Ok(());
        }
        for (name, value) in &self.shadow.session.reportable() {
            // What is pipelined behind a reset runs before the proxy can put the name back.
            if name == "application_name" && self.has_reset && leave.pipelined {
                continue;
            }
            if self.told.get(name) != Some(value) {
                let told = self.told.get(name);
                return Err(format!("{name} is {value} and the client was told {told:?}"));
            }
        }
        Ok(())
    }

    /// A FATAL error that ends the connection: only for a reason that exists.
    pub(super) fn fatal_or_wrong(&mut self, body: &[u8], leave: &Leave) -> Result<(), String> {
        let error = read_error(body)?;
        let allowed = match &error.code {
            b"57P01" => leave.stopping || leave.faults || self.removable,
            b"28P01" => self.removable,
            b"57P05" => leave.idle_timeout,
            b"25P03" => leave.idle_transaction_timeout,
            b"57014" => leave.query_timeout,
            b"08006" => leave.faults || leave.query_timeout,
            b"08000" => leave.borrow_timeout || leave.faults || leave.connect_timeout,
            b"08P01" if error.text == "the login took too long" => self.stage == Stage::Login,
            b"08P01" => self.rude || leave.hostile || self.shadow_dies(),
            _ => leave.hostile,
        };
        if error.severity != b"FATAL" || !allowed && !leave.hostile {
            let code = String::from_utf8_lossy(&error.code).into_owned();
            return Err(format!("an error for no reason: {code} {} {}", error.text, error.detail));
        }
        self.told_fatal = Some(error.code);
        Ok(())
    }

    /// Whether a direct connection would have ended this client as well.
    fn shadow_dies(&mut self) -> bool {
        while self.shadow.step(FOREVER) {}
        self.shadow.ended
    }
}
