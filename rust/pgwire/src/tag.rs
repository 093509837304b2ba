//! The type byte of every message of protocol version 3.
//!
//! One byte means different things in the two directions (`C` is Close from a client and
//! CommandComplete from a server): the names below are grouped by direction. Not here: start-up
//! packets, which have no type byte (`frontend.rs`). Next on the path: `frontend.rs`.

/// Query (client): a simple query.
pub const QUERY: u8 = b'Q';
/// Parse (client).
pub const PARSE: u8 = b'P';
/// Bind (client).
pub const BIND: u8 = b'B';
/// Describe (client).
pub const DESCRIBE: u8 = b'D';
/// Execute (client).
pub const EXECUTE: u8 = b'E';
/// Close (client).
pub const CLOSE: u8 = b'C';
/// Flush (client).
pub const FLUSH: u8 = b'H';
/// Sync (client).
pub const SYNC: u8 = b'S';
/// Terminate (client).
pub const TERMINATE: u8 = b'X';
/// PasswordMessage, SASLInitialResponse, SASLResponse or GSSResponse (client).
pub const PASSWORD: u8 = b'p';
/// FunctionCall (client): the fast-path interface.
pub const FUNCTION_CALL: u8 = b'F';
/// CopyFail (client).
pub const COPY_FAIL: u8 = b'f';

/// CopyData (both directions).
pub const COPY_DATA: u8 = b'd';
/// CopyDone (both directions).
pub const COPY_DONE: u8 = b'c';

/// Every Authentication message (server).
pub const AUTHENTICATION: u8 = b'R';
/// BackendKeyData (server).
pub const BACKEND_KEY_DATA: u8 = b'K';
/// ParameterStatus (server).
pub const PARAMETER_STATUS: u8 = b'S';
/// ReadyForQuery (server).
pub const READY_FOR_QUERY: u8 = b'Z';
/// ErrorResponse (server).
pub const ERROR_RESPONSE: u8 = b'E';
/// NoticeResponse (server).
pub const NOTICE_RESPONSE: u8 = b'N';
/// NotificationResponse (server).
pub const NOTIFICATION_RESPONSE: u8 = b'A';
/// RowDescription (server).
pub const ROW_DESCRIPTION: u8 = b'T';
/// DataRow (server).
pub const DATA_ROW: u8 = b'D';
/// CommandComplete (server).
pub const COMMAND_COMPLETE: u8 = b'C';
/// EmptyQueryResponse (server).
pub const EMPTY_QUERY: u8 = b'I';
/// ParseComplete (server).
pub const PARSE_COMPLETE: u8 = b'1';
/// BindComplete (server).
pub const BIND_COMPLETE: u8 = b'2';
/// CloseComplete (server).
pub const CLOSE_COMPLETE: u8 = b'3';
/// NoData (server).
pub const NO_DATA: u8 = b'n';
/// ParameterDescription (server).
pub const PARAMETER_DESCRIPTION: u8 = b't';
/// PortalSuspended (server).
pub const PORTAL_SUSPENDED: u8 = b's';
/// CopyInResponse (server).
pub const COPY_IN: u8 = b'G';
/// CopyOutResponse (server).
pub const COPY_OUT: u8 = b'H';
/// CopyBothResponse (server): streaming replication only.
pub const COPY_BOTH: u8 = b'W';
/// FunctionCallResponse (server).
pub const FUNCTION_RESPONSE: u8 = b'V';
/// NegotiateProtocolVersion (server).
pub const NEGOTIATE_PROTOCOL_VERSION: u8 = b'v';
