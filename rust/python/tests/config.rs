//! The configuration's JSON, read without an interpreter.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../src/config.rs"]
#[allow(unreachable_pub)]
mod config;

use ledger::Limit;
use proxy_core::config::{ClientAuth, Config, PoolMode};
use proxy_core::sink::Address;
use serde_json::{Value, json};

fn example() -> Value {
    json!({
        "name": "orders", "workers": 3, "paused": ["d"], "reconnect": [["*", 7]],
        "allow": ["127.0.0.1/8", "::1/128", "10.1.2.3"],
        "client_connections_max": 100,
        "credentials": [
            {"user": "app", "client_auth": {"md5": "0123456789abcdef0123456789abcdef"},
             "databases": [], "server_user": "db", "server_password": "hunter2"},
            {"user": "me", "client_auth": {"trust": true}, "databases": ["d"],
             "server_user": "me", "server_password": null},
        ],
        "targets": [{"tcp": "[::1]:5432"}, {"unix": "/run/s"}], "target_name": "db1:5432",
        "mode": "transaction", "limit": {"percent": 100}, "min_connections": 0,
        "max_idle_percent": 50, "borrow_timeout_ms": 1, "idle_timeout_ms": 2,
        "max_lifetime_ms": 3, "check_delay_ms": 4, "idle_client_timeout_ms": 5,
        "idle_transaction_timeout_ms": 6, "query_timeout_ms": 7, "query_wait_notify_ms": 8,
        "login_timeout_ms": 9, "connect_timeout_ms": 10, "init_query": "",
        "prepared_statements_max": 200,
    })
}

fn parse(value: &Value) -> Result<Config, config::InvalidConfig> {
    config::parse_config(value.to_string().as_bytes())
}

#[test]
fn a_whole_configuration_is_read() {
    let config = parse(&example()).unwrap();
    assert_eq!((config.workers, config.mode), (3, PoolMode::Transaction));
    assert_eq!(config.limit, Limit::Percent(100));
    assert_eq!(config.targets.last(), Some(&Address::Unix("/run/s".to_owned())));
    let auths: Vec<&ClientAuth> = config.credentials.iter().map(|one| &one.client_auth).collect();
    let md5 = *b"0123456789abcdef0123456789abcdef";
    assert_eq!(auths, [&ClientAuth::Md5(md5), &ClientAuth::Trust]);
    let networks: Vec<(String, u8)> =
        config.allow.iter().map(|net| (net.address.to_string(), net.prefix)).collect();
    let expected = [("127.0.0.0", 8), ("::1", 128), ("10.1.2.3", 32)];
    assert_eq!(networks, expected.map(|(address, prefix)| (address.to_owned(), prefix)));
}

#[test]
fn pauses_and_orders_to_reconnect_are_read_and_no_target_need_be_known() {
    let mut early = example();
    early["targets"] = json!([]);
    let config = parse(&early).unwrap();
    assert_eq!(config.paused, ["d"]);
    assert_eq!(config.reconnect, [("*".to_owned(), 7)]);
    assert_eq!(config.targets, []);
}

#[test]
fn what_does_not_fit_is_refused_by_name_of_the_rule() {
    for (field, value, rule) in [
        ("limit", json!({"percent": 101}), "limit"),
        ("limit", json!({"connections": 0}), "limit"),
        ("login_timeout_ms", json!(0), "login_timeout_ms"),
        ("workers", json!(0), "workers"),
        ("workers", json!(65), "workers"),
        ("reconnect", json!([["d"]]), "wrong type"),
        ("allow", json!(["10.0.0.0/33"]), "10.0.0.0/33"),
        ("mode", json!("statement"), "wrong type"),
        ("surplus", json!(1), "unknown"),
    ] {
        let mut wrong = example();
        wrong[field] = value;
        let error = parse(&wrong).unwrap_err();
        assert!(error.to_string().contains(rule), "{field}: {error}");
    }
}

#[test]
fn an_error_never_shows_a_secret() {
    let mut wrong = example();
    wrong["credentials"][0]["client_auth"] = json!({"scram": "hunter2"});
    let mut mistyped = example();
    mistyped["workers"] = json!("hunter2");
    for value in [wrong, mistyped] {
        let error = parse(&value).unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
}
