//! Promises of the whole crate: both roles agree with the RFCs, with PostgreSQL and with each
//! other, and nothing a peer sends gets further than an error.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use proptest::collection::vec;
use proptest::prelude::*;

use crate::{Challenge, ScramClient, ScramError, ScramKeys, ScramServer, Verifier, scram};

/// RFC 7677 §3: user `user`, password `pencil`.
const CLIENT_FIRST: &str = "n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
const SERVER_FIRST: &str = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                            s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
const CLIENT_FINAL: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                            p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
const SERVER_FINAL: &str = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";

/// Made by PostgreSQL 15: `CREATE ROLE … PASSWORD …`, then `pg_authid.rolpassword`.
const POSTGRESQL_MADE: [(&str, &str); 2] = [
    (
        "pencil",
        "SCRAM-SHA-256$4096:k0q40Q6FG1Xx2c940bVAkA==$CjrtIoqh9Bo26xBZJfx11IatCxUJDOBqNogYyaLxaM4=\
         :sqy/71LyzV0nvOh1VscResihsfLPWzpBYJdCGGIdZrU=",
    ),
    (
        "pässwörd",
        "SCRAM-SHA-256$4096:Zr+ieIefSweP6o1R5t3DoA==$serqPQxxXyGSijbRcldsNXfb8kFWN3eT/MnI0oglFtQ=\
         :cmK7m/Lqv3REZnn5LsxVGo6/28JkHlTrcg4VADtE77s=",
    ),
];

/// A verifier that is cheap to make.
fn verifier() -> Verifier {
    Verifier::from_password(b"pencil", b"salt", 2)
}

/// A client that has sent its first message to a server that has answered.
fn asked(verifier: &Verifier) -> (ScramClient, ScramServer, Vec<u8>) {
    let client = ScramClient::new([1; 18]);
    let mut server = ScramServer::new(verifier, [2; 18]);
    let challenge = server.first(&client.first()).unwrap();
    (client, server, challenge)
}

/// Runs a whole exchange; gives what the server and then the client make of it.
fn exchange(
    verifier: &Verifier,
    password: &[u8],
) -> (Result<(), ScramError>, Result<(), ScramError>) {
    let (mut client, mut server, challenge) = asked(verifier);
    let Challenge { salt, iterations } = client.server_first(&challenge, 10_000).unwrap();
    let last = client.finish(&ScramKeys::derive(password, &salt, iterations)).unwrap();
    match server.finish(&last) {
        Ok(proof) => (Ok(()), client.verify(&proof)),
        Err(error) => (Err(error), client.verify(b"e=invalid-proof")),
    }
}

/// Does this as the client's first message, on a fresh exchange.
fn server_first(message: &[u8]) -> Result<Vec<u8>, ScramError> {
    ScramServer::new(&verifier(), [2; 18]).first(message)
}

/// The client's verdict on a challenge, on a fresh exchange.
fn client_asked(challenge: &[u8]) -> Result<Challenge, ScramError> {
    ScramClient::new([1; 18]).server_first(challenge, 100_000)
}

fn is_malformed<T>(result: Result<T, ScramError>) -> bool {
    matches!(result, Err(ScramError::Malformed(_)))
}

#[test]
fn the_client_says_what_rfc_7677_says() {
    let nonce = "rOprNGfwEbeRWgbNEkqO".to_owned();
    let mut client = ScramClient::with_user_and_nonce("user", nonce);
    assert_eq!(client.first(), CLIENT_FIRST.as_bytes());
    let Challenge { salt, iterations } =
        client.server_first(SERVER_FIRST.as_bytes(), 4096).unwrap();
    assert_eq!(iterations, 4096);
    let keys = ScramKeys::derive(b"pencil", &salt, iterations);
    assert_eq!(client.finish(&keys).unwrap(), CLIENT_FINAL.as_bytes());
    assert_eq!(client.verify(SERVER_FINAL.as_bytes()), Ok(()));
}

#[test]
fn the_server_says_what_rfc_7677_says() {
    let salt = scram::decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
    let verifier = Verifier::from_password(b"pencil", &salt, 4096);
    let mut server =
        ScramServer::with_nonce(&verifier, "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0".to_owned());
    assert_eq!(server.first(CLIENT_FIRST.as_bytes()).unwrap(), SERVER_FIRST.as_bytes());
    assert_eq!(server.finish(CLIENT_FINAL.as_bytes()).unwrap(), SERVER_FINAL.as_bytes());
}

#[test]
fn verifiers_are_those_that_postgresql_makes() {
    for (password, text) in POSTGRESQL_MADE {
        let stored = Verifier::parse(text).unwrap();
        assert_eq!(stored.to_string(), text);
        let made = Verifier::from_password(password.as_bytes(), &stored.salt, stored.iterations);
        assert_eq!(made, stored);
        assert_eq!(exchange(&stored, password.as_bytes()), (Ok(()), Ok(())));
        assert_eq!(exchange(&stored, b"pen").0, Err(ScramError::WrongProof));
    }
}

#[test]
fn passwords_are_prepared_as_postgresql_prepares_them() {
    let same = |left: &[u8], right: &[u8]| {
        Verifier::from_password(left, b"salt", 1) == Verifier::from_password(right, b"salt", 1)
    };
    assert!(same("I\u{ad}X".as_bytes(), b"IX"), "RFC 4013 §3, soft hyphen");
    assert!(same("\u{2168}".as_bytes(), b"IX"), "RFC 4013 §3, ROMAN NUMERAL NINE");
    assert!(same("a\u{a0}b".as_bytes(), b"a b"), "no-break space");
    assert!(!same(b"a\x07", b"a"), "prohibited characters leave a password as it is");
    assert!(!same(b"\xff\xad", b"\xff"), "and so does what is not UTF-8");
    assert!(!same("\u{ad}".as_bytes(), b""), "and so does an empty result");
}

#[test]
fn keys_of_a_salted_password_are_those_of_the_password() {
    let salted = scram::salted_password(b"pencil", b"salt", 7);
    let kept = ScramKeys::from_salted_password(*salted);
    let derived = ScramKeys::derive(b"pencil", b"salt", 7);
    assert_eq!(kept.client_key, derived.client_key);
    assert_eq!(kept.server_key, derived.server_key);
}

#[test]
fn malformed_verifiers_are_refused() {
    let key = scram::encode(&[7; 32]);
    let long_salt = scram::encode(&[7; 1_025]);
    for bad in [
        String::new(),
        "pencil".to_owned(),
        "md5b15721e6326bc6e9a7c72a38963ec03d".to_owned(),
        "SCRAM-SHA-256".to_owned(),
        format!("SCRAM-SHA-1$1:c2FsdA==${key}:{key}"),
        format!("SCRAM-SHA-256$1:c2FsdA==${key}"),
        format!("SCRAM-SHA-256$1:c2FsdA==${key}:{key}$"),
        format!("SCRAM-SHA-256$1:c2FsdA==${key}:{key}:{key}"),
        format!("SCRAM-SHA-256$0:c2FsdA==${key}:{key}"),
        format!("SCRAM-SHA-256$-1:c2FsdA==${key}:{key}"),
        format!("SCRAM-SHA-256$+1:c2FsdA==${key}:{key}"),
        format!("SCRAM-SHA-256$2147483648:c2FsdA==${key}:{key}"),
        format!("SCRAM-SHA-256$:c2FsdA==${key}:{key}"),
        format!("SCRAM-SHA-256$1:${key}:{key}"),
        format!("SCRAM-SHA-256$1:c2FsdA=${key}:{key}"),
        format!("SCRAM-SHA-256$1:{long_salt}${key}:{key}"),
        format!("SCRAM-SHA-256$1:c2FsdA==${key}:{}", scram::encode(&[7; 31])),
        format!("SCRAM-SHA-256$1:c2FsdA==${}:{key}", scram::encode(&[7; 33])),
        format!("SCRAM-SHA-256$1:c2FsdA==${key}:{key}\n"),
    ] {
        assert!(Verifier::parse(&bad).is_err(), "{bad}");
    }
    assert!(Verifier::parse(&format!("SCRAM-SHA-256$2147483647:c2FsdA==${key}:{key}")).is_ok());
}

#[test]
fn a_mock_looks_like_a_verifier_is_stable_and_never_matches() {
    let mock = Verifier::mock("nobody", &[1; 32]);
    assert_eq!(mock, Verifier::mock("nobody", &[1; 32]));
    assert_ne!(mock.salt, Verifier::mock("somebody", &[1; 32]).salt);
    assert_ne!(mock.salt, Verifier::mock("nobody", &[2; 32]).salt);
    assert_eq!((mock.iterations, mock.salt.len()), (4096, 16));
    assert_eq!(exchange(&mock, b"").0, Err(ScramError::WrongProof));
}

#[test]
fn no_secret_is_printed() {
    let verifier = verifier();
    let keys = ScramKeys::derive(b"pencil", b"salt", 2);
    let (mut client, mut server, challenge) = asked(&verifier);
    client.server_first(&challenge, 2).unwrap();
    client.finish(&keys).unwrap();
    server.finish(b"").unwrap_err();
    let printed = format!("{verifier:?} {keys:?} {client:?} {server:?}");
    let expected = "Verifier { iterations: 2, .. } <secret> ScramClient(Proved) ScramServer(Over)";
    assert_eq!(printed, expected);
}

#[test]
fn first_messages_that_postgresql_refuses_are_refused() {
    for good in ["n,,n=,r=abc", "y,,n=,r=abc", "n,,n=any=2Cbody,r=abc", "n,,n=,r=abc,x=1,y="] {
        assert!(server_first(good.as_bytes()).is_ok(), "{good}");
    }
    for unsupported in ["p=tls-server-end-point,,n=,r=abc", "n,a=root,n=,r=abc", "n,,m=x,n=,r=abc"]
    {
        let refused = server_first(unsupported.as_bytes());
        assert!(matches!(refused, Err(ScramError::Unsupported(_))), "{unsupported}");
    }
    let long = format!("n,,n=,r={}", "a".repeat(4_096));
    for bad in [
        "",
        "n",
        "n,",
        "n,,",
        "x,,n=,r=abc",
        "n,,r=abc",
        "n,,r=abc,n=",
        "n,,n=",
        "n,,n=,",
        "n,,n=,r=",
        "n,,n=,r=a b",
        "n,,n=,r=ä",
        "n,,n=,r=a\0",
        "n,,n=,r=abc,",
        "n,,n=,r=abc,x",
        "n,,n=,r=abc,1=",
        "n,,n,r=abc",
        "n,b=,n=,r=abc",
        &long,
    ] {
        assert!(is_malformed(server_first(bad.as_bytes())), "{bad}");
    }
    assert!(is_malformed(server_first(b"n,,n=\xff,r=abc")));
}

#[test]
fn last_messages_that_postgresql_refuses_are_refused() {
    let answer = |change: &dyn Fn(&str) -> String| {
        let (mut client, mut server, challenge) = asked(&verifier());
        client.server_first(&challenge, 2).unwrap();
        let last = client.finish(&ScramKeys::derive(b"pencil", b"salt", 2)).unwrap();
        server.finish(change(std::str::from_utf8(&last).unwrap()).as_bytes())
    };
    assert!(answer(&str::to_owned).is_ok());
    assert!(is_malformed(answer(&|_| String::new())));
    assert!(is_malformed(answer(&|last| last.replace("c=biws", "c=eSws"))));
    assert!(is_malformed(answer(&|last| last.replace("c=biws,", ""))));
    assert!(is_malformed(answer(&|last| last.replace(",r=", ",r=A"))));
    assert!(is_malformed(answer(&|last| last.replace(",p=", "A,p="))));
    assert!(is_malformed(answer(&|last| last.replace(",p=", ",p=AA==,p="))));
    assert!(is_malformed(answer(&|last| last.replace(",p=", ",P="))));
    assert!(is_malformed(answer(&|last| last.trim_end_matches('=').to_owned())));
    assert!(is_malformed(answer(&|last| format!("{last},x=1"))));
    assert!(is_malformed(answer(&|last| format!("{last}{}", "A".repeat(4_096)))));
    // An extension is covered by the proof: adding one makes the proof wrong, not the message.
    assert_eq!(answer(&|last| last.replace(",p=", ",x=1,p=")), Err(ScramError::WrongProof));
}

#[test]
fn the_nonce_of_another_exchange_is_refused() {
    let verifier = verifier();
    let (mut client, _, challenge) = asked(&verifier);
    client.server_first(&challenge, 2).unwrap();
    let last = client.finish(&ScramKeys::derive(b"pencil", b"salt", 2)).unwrap();
    let mut replayed = ScramServer::new(&verifier, [3; 18]);
    replayed.first(&client.first()).unwrap();
    assert!(is_malformed(replayed.finish(&last)));
}

#[test]
fn a_server_takes_each_message_once_and_nothing_after_an_error() {
    let first = ScramClient::new([1; 18]).first();
    let mut server = ScramServer::new(&verifier(), [2; 18]);
    assert_eq!(server.finish(b"c=biws"), Err(ScramError::OutOfOrder));
    assert_eq!(server.first(&first), Err(ScramError::OutOfOrder));

    let (mut client, mut server, challenge) = asked(&verifier());
    client.server_first(&challenge, 2).unwrap();
    let last = client.finish(&ScramKeys::derive(b"pencil", b"salt", 2)).unwrap();
    assert!(server.finish(&last).is_ok());
    assert_eq!(server.finish(&last), Err(ScramError::OutOfOrder));

    let (_, mut server, _) = asked(&verifier());
    assert_eq!(server.first(&first), Err(ScramError::OutOfOrder));
    assert_eq!(server.finish(&last), Err(ScramError::OutOfOrder));
}

#[test]
fn a_client_takes_each_message_once_and_nothing_after_an_error() {
    let keys = ScramKeys::derive(b"pencil", b"salt", 2);
    let mut client = ScramClient::new([1; 18]);
    assert_eq!(client.finish(&keys), Err(ScramError::OutOfOrder));
    let mut client = ScramClient::new([1; 18]);
    assert_eq!(client.verify(b"v="), Err(ScramError::OutOfOrder));
    let (mut client, mut server, challenge) = asked(&verifier());
    client.server_first(&challenge, 2).unwrap();
    let proof = server.finish(&client.finish(&keys).unwrap()).unwrap();
    assert_eq!(client.verify(&proof), Ok(()));
    assert_eq!(client.verify(&proof), Err(ScramError::OutOfOrder));
    assert_eq!(client.server_first(&challenge, 2), Err(ScramError::OutOfOrder));
}

#[test]
fn a_hostile_challenge_costs_nothing() {
    let nonce = scram::encode(&[1; 18]);
    assert!(client_asked(format!("r={nonce}x,s=c2FsdA==,i=100000").as_bytes()).is_ok());
    let huge = format!("r={nonce}{},s=c2FsdA==,i=1", "x".repeat(1 << 20));
    for bad in [
        String::new(),
        "e=other-error".to_owned(),
        "r=,s=c2FsdA==,i=1".to_owned(),
        format!("r={nonce},s=c2FsdA==,i=1"),
        format!("r=x{nonce},s=c2FsdA==,i=1"),
        format!("r={}x,s=c2FsdA==,i=1", scram::encode(&[2; 18])),
        format!("r={nonce}\u{7f},s=c2FsdA==,i=1"),
        format!("r={nonce}x"),
        format!("r={nonce}x,s=,i=1"),
        format!("r={nonce}x,s=!!!!,i=1"),
        format!("r={nonce}x,s=c2FsdA==,i="),
        format!("r={nonce}x,s=c2FsdA==,i=0"),
        format!("r={nonce}x,s=c2FsdA==,i=-1"),
        format!("r={nonce}x,s=c2FsdA==,i=2147483648"),
        format!("r={nonce}x,s=c2FsdA==,i=99999999999999999999"),
        format!("r={nonce}x,s=c2FsdA==,i=1,"),
        format!("r={nonce}x,s=c2FsdA==,i=1,x=1"),
        format!("r={nonce}x,i=1,s=c2FsdA=="),
        huge,
    ] {
        assert!(is_malformed(client_asked(bad.as_bytes())), "{bad}");
    }
    for costly in ["100001", "2147483647"] {
        let challenge = format!("r={nonce}x,s=c2FsdA==,i={costly}");
        assert_eq!(client_asked(challenge.as_bytes()), Err(ScramError::TooManyIterations));
    }
    let refused = client_asked(b"m=x,r=y");
    assert!(matches!(refused, Err(ScramError::Unsupported(_))));
}

#[test]
fn a_server_that_does_not_know_the_password_is_not_believed() {
    let verdict = |change: &dyn Fn(&[u8]) -> Vec<u8>| {
        let (mut client, mut server, challenge) = asked(&verifier());
        client.server_first(&challenge, 2).unwrap();
        let last = client.finish(&ScramKeys::derive(b"pencil", b"salt", 2)).unwrap();
        client.verify(&change(&server.finish(&last).unwrap()))
    };
    assert_eq!(verdict(&<[u8]>::to_vec), Ok(()));
    let guess = format!("v={}", scram::encode(&[0; 32]));
    assert_eq!(verdict(&|_| guess.clone().into_bytes()), Err(ScramError::WrongProof));
    assert_eq!(verdict(&|_| b"e=other-error".to_vec()), Err(ScramError::WrongProof));
    assert!(is_malformed(verdict(&|_| Vec::new())));
    assert!(is_malformed(verdict(&|_| b"v=".to_vec())));
    assert!(is_malformed(verdict(&|_| b"v=AAAA".to_vec())));
    assert!(is_malformed(verdict(&|proof| [proof, b",x=1"].concat())));
}

proptest! {
    #[test]
    fn the_right_password_gets_in_and_no_other(
        password in vec(any::<u8>(), 0..100), other in vec(any::<u8>(), 0..100),
        salt in vec(any::<u8>(), 1..40), iterations in 1..4u32,
    ) {
        let verifier = Verifier::from_password(&password, &salt, iterations);
        prop_assert_eq!(exchange(&verifier, &password), (Ok(()), Ok(())));
        if verifier != Verifier::from_password(&other, &salt, iterations) {
            prop_assert_eq!(exchange(&verifier, &other).0, Err(ScramError::WrongProof));
        }
        let parsed = Verifier::parse(&verifier.to_string());
        prop_assert_eq!(parsed.as_ref(), Ok(&verifier));
    }

    #[test]
    fn no_garbage_passes_or_panics(
        bytes in vec(any::<u8>(), 0..100), text in "[a-z=,0-9$:]{0,60}",
    ) {
        for message in [&bytes[..], text.as_bytes()] {
            let (mut client, mut server, challenge) = asked(&verifier());
            prop_assert!(server.finish(message).is_err());
            prop_assert!(client_asked(message).is_err());
            let _ = server_first(message);
            client.server_first(&challenge, 2).unwrap();
            client.finish(&ScramKeys::derive(b"pencil", b"salt", 2)).unwrap();
            prop_assert!(client.verify(message).is_err());
        }
        prop_assert!(Verifier::parse(&text).is_err());
    }

    #[test]
    fn one_changed_bit_anywhere_keeps_a_client_out(
        at in any::<proptest::sample::Index>(), bit in 0..8,
    ) {
        let (mut client, mut server, challenge) = asked(&verifier());
        client.server_first(&challenge, 2).unwrap();
        let mut last = client.finish(&ScramKeys::derive(b"pencil", b"salt", 2)).unwrap();
        let at = at.index(last.len());
        last[at] ^= 1u8 << bit;
        prop_assert!(server.finish(&last).is_err());
    }
}
