//! The errors that the proxy itself sends to clients: text, SQLSTATE, detail and hint.
//!
//! Where applications match on RDS Proxy's wording, its words come first. Only fields that
//! PostgreSQL's protocol has are used (Error and Notice Message Fields). Next on the path: `pg/`.

use pgwire::write;

/// How bad an error is for the connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Severity {
    /// The request failed, the connection goes on.
    Error,
    /// The connection ends.
    Fatal,
}

/// An error for a client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Failure {
    pub(crate) severity: Severity,
    pub(crate) sqlstate: &'static [u8; 5],
    pub(crate) message: String,
    pub(crate) detail: Option<String>,
    pub(crate) hint: Option<String>,
}

impl Failure {
    pub(crate) fn fatal(sqlstate: &'static [u8; 5], message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Fatal,
            sqlstate,
            message: message.into(),
            detail: None,
            hint: None,
        }
    }

    pub(crate) fn error(sqlstate: &'static [u8; 5], message: impl Into<String>) -> Self {
        Self { severity: Severity::Error, ..Self::fatal(sqlstate, message) }
    }

    pub(crate) fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let severity = match self.severity {
            Severity::Error => "ERROR",
            Severity::Fatal => "FATAL",
        };
        let (detail, hint) = (self.detail.as_deref(), self.hint.as_deref());
        write::error(out, severity, self.sqlstate, &self.message, detail, hint);
    }
}

pub(crate) const PROTOCOL_VIOLATION: &[u8; 5] = b"08P01";
pub(crate) const CONNECTION_EXCEPTION: &[u8; 5] = b"08000";
pub(crate) const CONNECTION_FAILURE: &[u8; 5] = b"08006";
pub(crate) const FEATURE_NOT_SUPPORTED: &[u8; 5] = b"0A000";
pub(crate) const INVALID_AUTHORIZATION: &[u8; 5] = b"28000";
pub(crate) const INVALID_PASSWORD: &[u8; 5] = b"28P01";
pub(crate) const TOO_MANY_CONNECTIONS: &[u8; 5] = b"53300";
pub(crate) const LIMIT_EXCEEDED: &[u8; 5] = b"53400";
pub(crate) const PROGRAM_LIMIT_EXCEEDED: &[u8; 5] = b"54000";
pub(crate) const QUERY_CANCELED: &[u8; 5] = b"57014";
pub(crate) const ADMIN_SHUTDOWN: &[u8; 5] = b"57P01";
pub(crate) const IDLE_SESSION_TIMEOUT: &[u8; 5] = b"57P05";
pub(crate) const IDLE_TRANSACTION_TIMEOUT: &[u8; 5] = b"25P03";

/// What a client is told whose password is wrong or whose user does not exist: one text for both.
pub(crate) fn wrong_password(user: &str) -> Failure {
    Failure::fatal(INVALID_PASSWORD, format!("password authentication failed for user \"{user}\""))
}

/// The end of an orderly stop.
pub(crate) fn shutdown() -> Failure {
    Failure::fatal(ADMIN_SHUTDOWN, "terminating connection due to administrator command")
        .hint("The proxy is being stopped; connect again.")
}

/// A client broke the protocol.
pub(crate) fn violation(why: &str) -> Failure {
    Failure::fatal(PROTOCOL_VIOLATION, why)
}

/// A server went away while a client's request ran on it.
pub(crate) fn server_lost(what: &str) -> Failure {
    Failure::fatal(CONNECTION_FAILURE, "server closed the connection unexpectedly")
        .detail(format!("The database server's connection {what} while this session used it."))
        .hint("Whether the statement in progress took effect is unknown; check before a retry.")
}
