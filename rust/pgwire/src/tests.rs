//! Promises of the whole crate: what is written is read back, and nothing a peer sends panics.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use proptest::collection::vec;
use proptest::prelude::*;

use crate::backend::{
    Authentication, BackendKeyData, ErrorFields, NegotiateProtocolVersion, ParameterStatus,
    command_tag, data_row_values, ready_status,
};
use crate::frame::{HEAD_BYTES, Head};
use crate::frontend::{
    BindNames, Execute, Named, Parse, SaslInitial, Startup, password, query_text, read_startup,
    startup_length,
};
use crate::{Malformed, tag, write};

/// What a writer wrote: one whole message of this type; gives its body.
fn body(tag: u8, write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = vec![0xAA]; // what is there already stays
    write(&mut out);
    assert_eq!(out.remove(0), 0xAA);
    let head = Head::read(&out).unwrap().unwrap();
    assert_eq!((head.tag, head.total()), (tag, out.len()));
    out.split_off(HEAD_BYTES)
}

/// A start-up packet around these bytes.
fn packet(content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len() + 4).unwrap();
    [&length.to_be_bytes(), content].concat()
}

type Pair = (Vec<u8>, Vec<u8>);

fn session(parameters: &[u8]) -> Result<Vec<Pair>, Malformed> {
    match read_startup(&packet(&[&[0, 3, 0, 0], parameters].concat()))? {
        Startup::Session(message) => {
            Ok(message.parameters().map(|(n, v)| (n.to_vec(), v.to_vec())).collect())
        }
        other => panic!("{other:?}"),
    }
}

fn text() -> impl Strategy<Value = Vec<u8>> {
    vec(1..=255u8, 0..40)
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..60)
}

/// Bytes that look like messages more often than random ones do.
fn garbage() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![Just(0u8), Just(1), Just(3), Just(255), Just(b'S'), any::<u8>()];
    vec(byte, 0..80)
}

/// Runs every reader over these bytes and everything the readers give.
fn read_all(bytes: &[u8]) {
    let _ = Head::read(bytes).map(|head| head.map(Head::total));
    let _ = startup_length(bytes);
    let _ = BindNames::read(bytes).map(|names| bytes.split_at(names.rest));
    let _ = Named::read(bytes);
    let _ = Execute::read(bytes);
    let _ = query_text(bytes);
    let _ = password(bytes);
    let _ = SaslInitial::read(bytes);
    let _ = BackendKeyData::read(bytes);
    let _ = ParameterStatus::read(bytes);
    let _ = ready_status(bytes);
    let _ = command_tag(bytes);
    if let Ok(parse) = Parse::read(bytes) {
        assert_eq!(parse.oids.len() % 4, 0);
    }
    if let Ok(Startup::Session(message)) = read_startup(bytes) {
        assert!(message.parameters().all(|(name, _)| !name.is_empty()));
    }
    if let Ok(authentication) = Authentication::read(bytes) {
        assert!(authentication.mechanisms().all(|name| !name.is_empty()));
    }
    if let Ok(fields) = ErrorFields::read(bytes) {
        assert!(fields.iter().all(|(code, _)| fields.get(code).is_some()));
    }
    if let Ok(negotiate) = NegotiateProtocolVersion::read(bytes) {
        assert!(negotiate.options().count() <= bytes.len());
    }
    if let Ok(values) = data_row_values(bytes) {
        let count = u16::from_be_bytes([bytes[0], bytes[1]]);
        assert_eq!(values.count(), usize::from(count));
    }
}

proptest! {
    #[test]
    fn no_bytes_panic_a_reader(bytes in garbage(), cut in 0..80usize) {
        read_all(&bytes);
        read_all(&bytes[..cut.min(bytes.len())]);
        read_all(&packet(&bytes));
        read_all(&packet(&[&[0, 3, 0, 0], bytes.as_slice()].concat()));
        read_all(&[&[0, 0, 0, 10], bytes.as_slice()].concat());
    }

    #[test]
    fn a_parse_is_read_as_written_and_no_prefix_is(
        name in text(), sql in text(), oids in vec(any::<u32>(), 0..20),
    ) {
        let oids: Vec<u8> = oids.iter().flat_map(|oid| oid.to_be_bytes()).collect();
        let body = body(tag::PARSE, |out| write::parse(out, &name, &sql, &oids));
        let read = Parse { name: &name, query: &sql, oids: &oids };
        prop_assert_eq!(Parse::read(&body), Ok(read));
        for cut in 0..body.len() {
            prop_assert!(Parse::read(&body[..cut]).is_err());
        }
        prop_assert!(Parse::read(&[body.as_slice(), &[0]].concat()).is_err());
    }

    #[test]
    fn the_names_of_a_bind_are_read_as_soon_as_both_are_there(
        portal in text(), statement in text(), rest in bytes(),
    ) {
        let mut out = Vec::new();
        write::bind_head(&mut out, &portal, &statement, rest.len());
        out.extend_from_slice(&rest);
        let head = Head::read(&out).unwrap().unwrap();
        prop_assert_eq!((head.tag, head.total()), (tag::BIND, out.len()));
        let body = &out[HEAD_BYTES..];
        let names = BindNames::read(body).unwrap();
        prop_assert_eq!((names.portal, names.statement), (&portal[..], &statement[..]));
        prop_assert_eq!(&body[names.rest..], &rest[..]);
        for cut in 0..body.len() {
            let read = BindNames::read(&body[..cut]);
            prop_assert_eq!(read, if cut < names.rest { None } else { Some(names) });
        }
    }

    #[test]
    fn named_execute_query_and_password_are_read_as_written(name in text(), rows in any::<i32>()) {
        for kind in [b'S', b'P'] {
            let read = Named { kind, name: &name };
            let describe = body(tag::DESCRIBE, |out| write::describe(out, kind, &name));
            prop_assert_eq!(Named::read(&describe), Ok(read));
            let close = body(tag::CLOSE, |out| write::close(out, kind, &name));
            prop_assert_eq!(Named::read(&close), Ok(read));
        }
        let execute = body(tag::EXECUTE, |out| write::execute(out, &name, rows));
        prop_assert_eq!(Execute::read(&execute), Ok(Execute { portal: &name, max_rows: rows }));
        prop_assert!(Execute::read(&execute[..execute.len() - 1]).is_err());
        let query = body(tag::QUERY, |out| write::query(out, &name));
        prop_assert_eq!(query_text(&query), Ok(&name[..]));
        let answer = body(tag::PASSWORD, |out| write::password(out, &name));
        prop_assert_eq!(password(&answer), Ok(&name[..]));
    }

    #[test]
    fn a_sasl_exchange_is_read_as_written(mechanism in text(), data in bytes()) {
        let first = body(tag::PASSWORD, |out| write::sasl_initial(out, &mechanism, &data));
        let read = SaslInitial { mechanism: &mechanism, data: Some(&data) };
        prop_assert!(SaslInitial::read(&first) == Ok(read));
        prop_assert!(SaslInitial::read(&[first.as_slice(), &[0]].concat()).is_err());
        let next = body(tag::PASSWORD, |out| write::sasl_response(out, &data));
        prop_assert_eq!(&next, &data);
        let next = body(tag::AUTHENTICATION, |out| write::authentication_sasl_continue(out, &data));
        prop_assert_eq!(Authentication::read(&next), Ok(Authentication::SaslContinue(&data)));
        let last = body(tag::AUTHENTICATION, |out| write::authentication_sasl_final(out, &data));
        prop_assert_eq!(Authentication::read(&last), Ok(Authentication::SaslFinal(&data)));
    }

    #[test]
    fn a_startup_message_is_read_as_written(
        minor in any::<u16>(),
        values in vec(text(), 0..20),
    ) {
        let names: Vec<Vec<u8>> = (0..values.len()).map(|n| format!("n{n}").into()).collect();
        let pairs: Vec<(&[u8], &[u8])> =
            names.iter().zip(&values).map(|(n, v)| (&n[..], &v[..])).collect();
        let mut out = Vec::new();
        write::startup(&mut out, minor, &pairs);
        prop_assert_eq!(startup_length(&out), Ok(Some(out.len())));
        let Ok(Startup::Session(message)) = read_startup(&out) else { panic!("not a session") };
        prop_assert_eq!(message.minor, minor);
        prop_assert_eq!(message.parameters().collect::<Vec<_>>(), pairs);
        for cut in 0..out.len() {
            prop_assert!(read_startup(&out[..cut]).is_err());
            if cut >= 8 {
                prop_assert!(read_startup(&packet(&out[4..cut])).is_err());
            }
        }
    }

    #[test]
    fn rows_are_read_as_written(values in vec(proptest::option::of(bytes()), 0..20)) {
        let values: Vec<Option<&[u8]>> = values.iter().map(Option::as_deref).collect();
        let row = body(tag::DATA_ROW, |out| write::data_row(out, &values));
        prop_assert_eq!(data_row_values(&row).unwrap().collect::<Vec<_>>(), values);
        for cut in 0..row.len() {
            prop_assert!(data_row_values(&row[..cut]).is_err());
        }
    }

    #[test]
    fn texts_of_a_server_are_read_as_written(name in text(), value in text(), pid in any::<u32>()) {
        let status =
            body(tag::PARAMETER_STATUS, |out| write::parameter_status(out, &name, &value));
        let read = ParameterStatus { name: &name, value: &value };
        prop_assert_eq!(ParameterStatus::read(&status), Ok(read));
        let complete = body(tag::COMMAND_COMPLETE, |out| write::command_complete(out, &name));
        prop_assert_eq!(command_tag(&complete), Ok(&name[..]));
        let negotiate = body(tag::NEGOTIATE_PROTOCOL_VERSION, |out| {
            write::negotiate(out, 2, &[&name, &value]);
        });
        let read = NegotiateProtocolVersion::read(&negotiate).unwrap();
        prop_assert_eq!(read.minor, 2);
        prop_assert_eq!(read.options().collect::<Vec<_>>(), [&name[..], &value[..]]);
        let told =
            body(tag::NOTIFICATION_RESPONSE, |out| write::notification(out, pid, &name, &value));
        prop_assert_eq!(&told[4..4 + name.len()], &name[..]);
    }
}

#[test]
fn lengths_of_startup_packets_outside_of_8_to_10_000_are_refused() {
    for length in [0, 3, 4, 7, 10_001, 1 << 30, i32::MAX as u32, 1 << 31, u32::MAX] {
        assert!(startup_length(&length.to_be_bytes()).is_err(), "{length}");
    }
    for length in [8, 9, 10_000u32] {
        assert_eq!(startup_length(&length.to_be_bytes()), Ok(Some(length as usize)));
    }
    for n in 0..4 {
        assert_eq!(startup_length(&[0; 4][..n]), Ok(None));
    }
}

#[test]
fn requests_are_told_from_versions() {
    let read = |content: &[u8]| format!("{:?}", read_startup(&packet(content)));
    assert_eq!(read(&[4, 210, 22, 47]), "Ok(Ssl)");
    assert_eq!(read(&[4, 210, 22, 48]), "Ok(GssEnc)");
    assert_eq!(read(&[4, 210, 22, 49]), "Ok(Unsupported { major: 1234, minor: 5681 })");
    assert_eq!(read(&[0, 2, 0, 0, 1, 2]), "Ok(Unsupported { major: 2, minor: 0 })");
    assert_eq!(read(&[0, 4, 0, 0]), "Ok(Unsupported { major: 4, minor: 0 })");
    assert!(read(&[4, 210, 22, 47, 0]).starts_with("Err"));
}

#[test]
fn a_cancel_request_is_read_as_written_with_a_secret_of_1_to_256_bytes() {
    for (bytes, good) in [(0, false), (1, true), (4, true), (256, true), (257, false)] {
        let secret = vec![7; bytes];
        let mut out = Vec::new();
        write::cancel_request(&mut out, 42, &secret);
        let read = read_startup(&out);
        assert_eq!(read == Ok(Startup::Cancel { pid: 42, secret: &secret }), good, "{bytes}");
        assert!(!format!("{read:?}").contains('7'), "a secret was printed");
    }
}

#[test]
fn parameters_of_a_session_must_be_pairs_with_a_terminator_as_the_last_byte() {
    let pair = (b"user".to_vec(), b"a".to_vec());
    assert_eq!(session(b"user\0a\0\0"), Ok(vec![pair]));
    assert_eq!(session(b"\0"), Ok(vec![]));
    for bad in [
        &b""[..],
        b"user",
        b"user\0",
        b"user\0a",
        b"user\0a\0",
        b"user\0\0",
        b"user\0a\0\0x",
        b"user\0a\0\0\0",
        b"user\0a\0user\0b\0\0",
    ] {
        assert!(session(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn a_session_has_64_parameters_at_most() {
    let many = |count: usize| {
        let mut pairs: Vec<u8> =
            (0..count).flat_map(|n| format!("p{n}\0v\0").into_bytes()).collect();
        pairs.push(0);
        session(&pairs).map(|pairs| pairs.len())
    };
    assert_eq!(many(64), Ok(64));
    assert!(many(65).is_err());
}

#[test]
fn bytes_behind_the_end_of_a_client_message_are_refused() {
    assert!(query_text(b"").is_err());
    assert!(query_text(b"select 1").is_err());
    assert!(query_text(b"select 1\0;\0").is_err());
    assert!(password(b"a\0b\0").is_err());
    assert_eq!(password(b"\0"), Ok(&b""[..]));
    assert!(Named::read(b"Sname\0x").is_err());
    assert!(Named::read(b"Xname\0").is_err());
    assert!(Named::read(b"").is_err());
    assert!(Execute::read(b"\0\0\0\0\0\0").is_err());
    assert!(Parse::read(b"\0\0\xff\xff\0\0\0\0").is_err());
}

#[test]
fn a_sasl_message_without_data_is_told_from_one_with_none() {
    assert!(SaslInitial::read(b"X\0\xff\xff\xff\xff").unwrap().data.is_none());
    assert_eq!(SaslInitial::read(b"X\0\0\0\0\0").unwrap().data, Some(&b""[..]));
    for bad in [&b"X\0\xff\xff\xff\xfe"[..], b"X\0\x7f\xff\xff\xffa", b"X\0\0\0\0\x01"] {
        assert!(SaslInitial::read(bad).is_err());
    }
}

#[test]
fn authentication_requests_are_read_as_written() {
    let read = |write: fn(&mut Vec<u8>)| {
        let body = body(tag::AUTHENTICATION, write);
        let read = Authentication::read(&body).unwrap();
        format!("{read:?} {}", read.mechanisms().count())
    };
    assert_eq!(read(write::authentication_ok), "Ok 0");
    assert_eq!(read(write::authentication_cleartext), "Cleartext 0");
    let md5 = read(|out| write::authentication_md5(out, [1, 2, 3, 4]));
    assert_eq!(md5, "Md5 { salt: [1, 2, 3, 4] } 0");
    let sasl = body(tag::AUTHENTICATION, |out| {
        write::authentication_sasl(out, &["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"]);
    });
    let names: Vec<&[u8]> = Authentication::read(&sasl).unwrap().mechanisms().collect();
    assert_eq!(names, [&b"SCRAM-SHA-256-PLUS"[..], b"SCRAM-SHA-256"]);
}

#[test]
fn malformed_authentication_requests_are_refused() {
    for bad in [
        &b""[..],
        b"\0\0\0",
        b"\0\0\0\0x",
        b"\0\0\0\x03x",
        b"\0\0\0\x05abc",
        b"\0\0\0\x05abcde",
        b"\0\0\0\x0a",
        b"\0\0\0\x0aX",
        b"\0\0\0\x0aX\0",
        b"\0\0\0\x0a\0X\0\0",
        b"\0\0\0\x0aX\0\0\0",
    ] {
        assert!(Authentication::read(bad).is_err(), "{bad:?}");
    }
    assert_eq!(Authentication::read(b"\0\0\0\x07"), Ok(Authentication::Other(7)));
}

#[test]
fn a_cancel_key_has_4_to_256_bytes_and_is_never_printed() {
    for (bytes, good) in [(0, false), (3, false), (4, true), (32, true), (256, true), (257, false)]
    {
        let secret = vec![7; bytes];
        let key = body(tag::BACKEND_KEY_DATA, |out| write::backend_key_data(out, 42, &secret));
        let read = BackendKeyData::read(&key);
        assert_eq!(read == Ok(BackendKeyData { pid: 42, secret: &secret }), good, "{bytes}");
        assert!(!format!("{read:?}").contains('7'), "a secret was printed");
    }
}

#[test]
fn ready_for_query_holds_one_of_three_bytes() {
    for status in [b'I', b'T', b'E'] {
        let ready = body(tag::READY_FOR_QUERY, |out| write::ready_for_query(out, status));
        assert_eq!(ready_status(&ready), Ok(status));
    }
    for bad in [&b""[..], b"X", b"II", b"\0", b"i"] {
        assert!(ready_status(bad).is_err());
    }
}

#[test]
fn errors_are_read_as_written() {
    let written = body(tag::ERROR_RESPONSE, |out| {
        write::error(out, "FATAL", b"53300", "too many", Some("40 of 40"), Some("wait"));
    });
    let fields: Vec<u8> =
        ErrorFields::read(&written).unwrap().iter().map(|field| field.0).collect();
    assert_eq!(fields, b"SVCMDH");
    let read = ErrorFields::read(&written).unwrap();
    assert_eq!(read.get(b'V'), Some(&b"FATAL"[..]));
    assert_eq!(read.get(b'C'), Some(&b"53300"[..]));
    assert_eq!(read.get(b'H'), Some(&b"wait"[..]));
    let notice = body(tag::NOTICE_RESPONSE, |out| {
        write::notice(out, "NOTICE", b"00000", "hello\0Csmuggled", None, None);
    });
    let read = ErrorFields::read(&notice).unwrap();
    assert_eq!((read.get(b'M'), read.get(b'D')), (Some(&b"hello"[..]), None));
    assert_eq!(read.iter().count(), 4);
}

#[test]
fn errors_of_any_shape_are_read() {
    assert_eq!(ErrorFields::read(b"\0").unwrap().get(b'C'), None);
    let huge = [b"Mx".as_slice(), &vec![b'x'; 1 << 20], b"\0\xf0?\0\0"].concat();
    let read = ErrorFields::read(&huge).unwrap();
    assert_eq!(read.get(b'M').map(<[u8]>::len), Some((1 << 20) + 1));
    assert_eq!((read.get(0xf0), read.get(b'C')), (Some(&b"?"[..]), None));
    for bad in [&b""[..], b"M", b"Mx", b"Mx\0", b"Mx\0\0x", b"\0\0"] {
        assert!(ErrorFields::read(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn a_negotiation_is_read_with_and_without_the_major_version() {
    let read = |word: u32, count: u32| {
        let body = [&word.to_be_bytes()[..], &count.to_be_bytes(), b"a\0"].concat();
        NegotiateProtocolVersion::read(&body).map(|read| read.minor)
    };
    assert_eq!(read(3 << 16 | 2, 1), Ok(2));
    assert_eq!(read(2, 1), Ok(2));
    for (word, count) in [(4 << 16, 1), (2, 0), (2, 2), (2, u32::MAX)] {
        assert!(read(word, count).is_err());
    }
}

#[test]
fn messages_without_a_body_have_none() {
    type Writer = fn(&mut Vec<u8>);
    let writers: [(u8, Writer); 10] = [
        (tag::SYNC, write::sync),
        (tag::FLUSH, write::flush),
        (tag::TERMINATE, write::terminate),
        (tag::COPY_DONE, write::copy_done),
        (tag::PARSE_COMPLETE, write::parse_complete),
        (tag::BIND_COMPLETE, write::bind_complete),
        (tag::CLOSE_COMPLETE, write::close_complete),
        (tag::NO_DATA, write::no_data),
        (tag::EMPTY_QUERY, write::empty_query),
        (tag::PORTAL_SUSPENDED, write::portal_suspended),
    ];
    for (tag, write) in writers {
        assert!(body(tag, write).is_empty());
    }
}

#[test]
fn layouts_without_a_reader_are_those_of_the_manual() {
    let columns = body(tag::ROW_DESCRIPTION, |out| write::row_description_text(out, &["a"]));
    assert_eq!(columns, b"\0\x01a\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0");
    let types = body(tag::PARAMETER_DESCRIPTION, |out| write::parameter_description(out, &[25]));
    assert_eq!(types, b"\0\x01\0\0\0\x19");
    assert_eq!(body(tag::COPY_IN, write::copy_in_response), [0, 0, 0]);
    assert_eq!(body(tag::COPY_OUT, write::copy_out_response), [0, 0, 0]);
    assert_eq!(body(tag::COPY_DATA, |out| write::copy_data(out, b"\0x")), b"\0x");
    assert_eq!(body(tag::COPY_FAIL, |out| write::copy_fail(out, b"why")), b"why\0");
    let told = body(tag::NOTIFICATION_RESPONSE, |out| write::notification(out, 1, b"c", b"p"));
    assert_eq!(told, b"\0\0\0\x01c\0p\0");
}

#[test]
fn a_nul_inside_a_name_smuggles_nothing_in() {
    let mut out = Vec::new();
    write::startup(&mut out, 0, &[(b"user", b"a\0user\0root"), (b"", b"x"), (b"\0b", b"y")]);
    let Ok(Startup::Session(message)) = read_startup(&out) else { panic!("not a session") };
    assert_eq!(message.parameters().collect::<Vec<_>>(), [(&b"user"[..], &b"a"[..])]);
}

#[test]
fn a_bind_longer_than_a_message_can_be_claims_a_length_that_servers_refuse() {
    let mut out = Vec::new();
    write::bind_head(&mut out, b"", b"s", i32::MAX as usize);
    assert_eq!(Head::read(&out).unwrap().unwrap().body, i32::MAX as u32 - 4);
}
