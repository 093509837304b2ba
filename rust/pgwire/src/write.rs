//! Values to bytes: every message of ours, appended to a buffer.
//!
//! Texts end at their first NUL, so that nothing can be smuggled into a message behind one: texts
//! that come off the wire hold none, others are checked where they enter (configuration). Lengths
//! and counts saturate instead of wrapping; PostgreSQL refuses any message far below that.
//! Not here: when a message may be sent (I8). Next on the path: `core/pg/`, which calls these.

use crate::tag;

/// The version word of protocol 3 with this minor version.
const fn version(minor: u16) -> u32 {
    3 << 16 | minor as u32
}

const CANCEL_REQUEST: u32 = 1234 << 16 | 5678;
const OID_TEXT: u32 = 25;

/// Appends the length word and what `body` appends.
fn counted(out: &mut Vec<u8>, rest_bytes: usize, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    put_u32(out, 0);
    body(out);
    let length = (out.len() - start).saturating_add(rest_bytes);
    if let Some(word) = out.get_mut(start..start + 4) {
        word.copy_from_slice(&i32::try_from(length).unwrap_or(i32::MAX).to_be_bytes());
    }
}

/// Appends a whole message.
fn message(out: &mut Vec<u8>, tag: u8, body: impl FnOnce(&mut Vec<u8>)) {
    out.push(tag);
    counted(out, 0, body);
}

/// Appends a message without a body.
fn bare(out: &mut Vec<u8>, tag: u8) {
    out.extend_from_slice(&[tag, 0, 0, 0, 4]);
}

fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_be_bytes());
}

fn put_u16(out: &mut Vec<u8>, value: u16) {
    out.extend_from_slice(&value.to_be_bytes());
}

/// Appends a count of things, and says how many of them may follow.
fn put_count(out: &mut Vec<u8>, count: usize) -> usize {
    let count = u16::try_from(count).unwrap_or(u16::MAX);
    put_u16(out, count);
    usize::from(count)
}

/// Appends a text up to its first NUL, and a NUL.
fn put_text(out: &mut Vec<u8>, text: &[u8]) {
    match std::ffi::CStr::from_bytes_until_nul(text) {
        Ok(cut) => out.extend_from_slice(cut.to_bytes()),
        Err(_) => out.extend_from_slice(text),
    }
    out.push(0);
}

/// Appends a value with its length in front, -1 for NULL.
fn put_value(out: &mut Vec<u8>, value: Option<&[u8]>) {
    match value {
        None => put_u32(out, u32::MAX),
        Some(value) => {
            put_u32(out, u32::try_from(value.len()).unwrap_or(i32::MAX as u32));
            out.extend_from_slice(value);
        }
    }
}

// ---- what a client sends ----

/// Appends a StartupMessage of protocol 3 with these parameters; a pair with an empty name would
/// end the list and is left out.
pub fn startup(out: &mut Vec<u8>, minor: u16, parameters: &[(&[u8], &[u8])]) {
    counted(out, 0, |out| {
        put_u32(out, version(minor));
        for (name, value) in parameters {
            if name.first().is_some_and(|byte| *byte != 0) {
                put_text(out, name);
                put_text(out, value);
            }
        }
        out.push(0);
    });
}

/// Appends a CancelRequest. `secret` is what the server's BackendKeyData held.
pub fn cancel_request(out: &mut Vec<u8>, pid: u32, secret: &[u8]) {
    counted(out, 0, |out| {
        put_u32(out, CANCEL_REQUEST);
        put_u32(out, pid);
        out.extend_from_slice(secret);
    });
}

/// Appends a Query.
pub fn query(out: &mut Vec<u8>, sql: &[u8]) {
    message(out, tag::QUERY, |out| put_text(out, sql));
}

/// Appends a Parse. `oids_raw` is as [`crate::frontend::Parse::oids`] gives it; bytes behind the
/// last whole OID are left out.
pub fn parse(out: &mut Vec<u8>, name: &[u8], sql: &[u8], oids_raw: &[u8]) {
    message(out, tag::PARSE, |out| {
        put_text(out, name);
        put_text(out, sql);
        let count = put_count(out, oids_raw.len() / 4);
        out.extend_from_slice(oids_raw.get(..count * 4).unwrap_or_default());
    });
}

/// Appends the start of a Bind: its head and both names. Exactly `rest_bytes` more bytes (formats
/// and values) must follow from elsewhere.
pub fn bind_head(out: &mut Vec<u8>, portal: &[u8], statement: &[u8], rest_bytes: usize) {
    out.push(tag::BIND);
    counted(out, rest_bytes, |out| {
        put_text(out, portal);
        put_text(out, statement);
    });
}

/// Appends the beginning of a Parse up to and with its name; the `rest_bytes` of text and parameter
/// types follow from elsewhere.
pub fn parse_head(out: &mut Vec<u8>, name: &[u8], rest_bytes: usize) {
    out.push(tag::PARSE);
    counted(out, rest_bytes, |out| put_text(out, name));
}

/// Appends a Describe. `kind` is `S` (statement) or `P` (portal).
pub fn describe(out: &mut Vec<u8>, kind: u8, name: &[u8]) {
    named(out, tag::DESCRIBE, kind, name);
}

/// Appends a Close. `kind` is `S` (statement) or `P` (portal).
pub fn close(out: &mut Vec<u8>, kind: u8, name: &[u8]) {
    named(out, tag::CLOSE, kind, name);
}

fn named(out: &mut Vec<u8>, tag: u8, kind: u8, name: &[u8]) {
    message(out, tag, |out| {
        out.push(kind);
        put_text(out, name);
    });
}

/// Appends an Execute. `max_rows` of 0 means all.
pub fn execute(out: &mut Vec<u8>, portal: &[u8], max_rows: i32) {
    message(out, tag::EXECUTE, |out| {
        put_text(out, portal);
        out.extend_from_slice(&max_rows.to_be_bytes());
    });
}

/// Appends a Sync.
pub fn sync(out: &mut Vec<u8>) {
    bare(out, tag::SYNC);
}

/// Appends a Flush.
pub fn flush(out: &mut Vec<u8>) {
    bare(out, tag::FLUSH);
}

/// Appends a Terminate.
pub fn terminate(out: &mut Vec<u8>) {
    bare(out, tag::TERMINATE);
}

/// Appends a PasswordMessage: a password or an md5 answer.
pub fn password(out: &mut Vec<u8>, password: &[u8]) {
    message(out, tag::PASSWORD, |out| put_text(out, password));
}

/// Appends a SASLInitialResponse with the mechanism's first message.
pub fn sasl_initial(out: &mut Vec<u8>, mechanism: &[u8], data: &[u8]) {
    message(out, tag::PASSWORD, |out| {
        put_text(out, mechanism);
        put_value(out, Some(data));
    });
}

/// Appends a SASLResponse.
pub fn sasl_response(out: &mut Vec<u8>, data: &[u8]) {
    message(out, tag::PASSWORD, |out| out.extend_from_slice(data));
}

/// Appends a CopyFail; the server reports `why` in its error.
pub fn copy_fail(out: &mut Vec<u8>, why: &[u8]) {
    message(out, tag::COPY_FAIL, |out| put_text(out, why));
}

/// Appends a CopyData (either side sends it).
pub fn copy_data(out: &mut Vec<u8>, data: &[u8]) {
    message(out, tag::COPY_DATA, |out| out.extend_from_slice(data));
}

/// Appends a CopyDone (either side sends it).
pub fn copy_done(out: &mut Vec<u8>) {
    bare(out, tag::COPY_DONE);
}

// ---- what a server sends ----

fn authentication(out: &mut Vec<u8>, kind: u32, data: &[u8]) {
    message(out, tag::AUTHENTICATION, |out| {
        put_u32(out, kind);
        out.extend_from_slice(data);
    });
}

/// Appends an AuthenticationOk.
pub fn authentication_ok(out: &mut Vec<u8>) {
    authentication(out, 0, &[]);
}

/// Appends an AuthenticationCleartextPassword.
pub fn authentication_cleartext(out: &mut Vec<u8>) {
    authentication(out, 3, &[]);
}

/// Appends an AuthenticationMD5Password.
pub fn authentication_md5(out: &mut Vec<u8>, salt: [u8; 4]) {
    authentication(out, 5, &salt);
}

/// Appends an AuthenticationSASL that offers these mechanisms, the preferred one first.
pub fn authentication_sasl(out: &mut Vec<u8>, mechanisms: &[&str]) {
    message(out, tag::AUTHENTICATION, |out| {
        put_u32(out, 10);
        for mechanism in mechanisms {
            put_text(out, mechanism.as_bytes());
        }
        out.push(0);
    });
}

/// Appends an AuthenticationSASLContinue.
pub fn authentication_sasl_continue(out: &mut Vec<u8>, data: &[u8]) {
    authentication(out, 11, data);
}

/// Appends an AuthenticationSASLFinal.
pub fn authentication_sasl_final(out: &mut Vec<u8>, data: &[u8]) {
    authentication(out, 12, data);
}

/// Appends a ParameterStatus.
pub fn parameter_status(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    message(out, tag::PARAMETER_STATUS, |out| {
        put_text(out, name);
        put_text(out, value);
    });
}

/// Appends a BackendKeyData. `secret` has 4 bytes for clients of protocol 3.0, up to 256 from 3.2
/// on.
pub fn backend_key_data(out: &mut Vec<u8>, pid: u32, secret: &[u8]) {
    message(out, tag::BACKEND_KEY_DATA, |out| {
        put_u32(out, pid);
        out.extend_from_slice(secret);
    });
}

/// Appends a ReadyForQuery. `status` is `I`, `T` or `E`.
pub fn ready_for_query(out: &mut Vec<u8>, status: u8) {
    message(out, tag::READY_FOR_QUERY, |out| out.push(status));
}

/// Appends an ErrorResponse with the fields S, V, C, M and, if given, D and H.
pub fn error(
    out: &mut Vec<u8>,
    severity: &str,
    code: &[u8; 5],
    text: &str,
    detail: Option<&str>,
    hint: Option<&str>,
) {
    report(out, tag::ERROR_RESPONSE, severity, code, [Some(text), detail, hint]);
}

/// Appends a NoticeResponse with the fields S, V, C, M and, if given, D and H.
pub fn notice(
    out: &mut Vec<u8>,
    severity: &str,
    code: &[u8; 5],
    text: &str,
    detail: Option<&str>,
    hint: Option<&str>,
) {
    report(out, tag::NOTICE_RESPONSE, severity, code, [Some(text), detail, hint]);
}

fn report(out: &mut Vec<u8>, tag: u8, severity: &str, code: &[u8; 5], texts: [Option<&str>; 3]) {
    message(out, tag, |out| {
        for (field, text) in
            [(b'S', severity.as_bytes()), (b'V', severity.as_bytes()), (b'C', code)]
        {
            out.push(field);
            put_text(out, text);
        }
        for (field, text) in [b'M', b'D', b'H'].into_iter().zip(texts) {
            if let Some(text) = text {
                out.push(field);
                put_text(out, text.as_bytes());
            }
        }
        out.push(0);
    });
}

/// Appends a NegotiateProtocolVersion: we go on with protocol 3.`minor` and do not know `options`.
/// Its version word holds major and minor, as PostgreSQL sends and libpq expects it.
pub fn negotiate(out: &mut Vec<u8>, minor: u16, options: &[&[u8]]) {
    message(out, tag::NEGOTIATE_PROTOCOL_VERSION, |out| {
        put_u32(out, version(minor));
        put_u32(out, u32::try_from(options.len()).unwrap_or(u32::MAX));
        for option in options {
            put_text(out, option);
        }
    });
}

/// Appends a ParseComplete.
pub fn parse_complete(out: &mut Vec<u8>) {
    bare(out, tag::PARSE_COMPLETE);
}

/// Appends a BindComplete.
pub fn bind_complete(out: &mut Vec<u8>) {
    bare(out, tag::BIND_COMPLETE);
}

/// Appends a CloseComplete.
pub fn close_complete(out: &mut Vec<u8>) {
    bare(out, tag::CLOSE_COMPLETE);
}

/// Appends a NoData.
pub fn no_data(out: &mut Vec<u8>) {
    bare(out, tag::NO_DATA);
}

/// Appends an EmptyQueryResponse.
pub fn empty_query(out: &mut Vec<u8>) {
    bare(out, tag::EMPTY_QUERY);
}

/// Appends a PortalSuspended.
pub fn portal_suspended(out: &mut Vec<u8>) {
    bare(out, tag::PORTAL_SUSPENDED);
}

/// Appends a CommandComplete with this command tag (`SELECT 1`).
pub fn command_complete(out: &mut Vec<u8>, command_tag: &[u8]) {
    message(out, tag::COMMAND_COMPLETE, |out| put_text(out, command_tag));
}

/// Appends a RowDescription of columns of type text in text format that belong to no table.
pub fn row_description_text(out: &mut Vec<u8>, columns: &[&str]) {
    message(out, tag::ROW_DESCRIPTION, |out| {
        let count = put_count(out, columns.len());
        for column in columns.iter().take(count) {
            put_text(out, column.as_bytes());
            put_u32(out, 0); // no table …
            put_u16(out, 0); // … and no column of it
            put_u32(out, OID_TEXT);
            put_u16(out, u16::MAX); // of variable size (-1)
            put_u32(out, u32::MAX); // no type modifier (-1)
            put_u16(out, 0); // text format
        }
    });
}

/// Appends a DataRow; `None` is NULL.
pub fn data_row(out: &mut Vec<u8>, values: &[Option<&[u8]>]) {
    message(out, tag::DATA_ROW, |out| {
        let count = put_count(out, values.len());
        for value in values.iter().take(count) {
            put_value(out, *value);
        }
    });
}

/// Appends a CopyInResponse in text format that says nothing about columns.
pub fn copy_in_response(out: &mut Vec<u8>) {
    message(out, tag::COPY_IN, |out| out.extend_from_slice(&[0; 3]));
}

/// Appends a CopyOutResponse in text format that says nothing about columns.
pub fn copy_out_response(out: &mut Vec<u8>) {
    message(out, tag::COPY_OUT, |out| out.extend_from_slice(&[0; 3]));
}

/// Appends a NotificationResponse.
pub fn notification(out: &mut Vec<u8>, pid: u32, channel: &[u8], payload: &[u8]) {
    message(out, tag::NOTIFICATION_RESPONSE, |out| {
        put_u32(out, pid);
        put_text(out, channel);
        put_text(out, payload);
    });
}

/// Appends a ParameterDescription of these types.
pub fn parameter_description(out: &mut Vec<u8>, oids: &[u32]) {
    message(out, tag::PARAMETER_DESCRIPTION, |out| {
        let count = put_count(out, oids.len());
        for oid in oids.iter().take(count) {
            put_u32(out, *oid);
        }
    });
}
