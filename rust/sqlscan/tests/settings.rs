//! What one SET, RESET or `set_config` sets: texts with the SQL that sets the same
//! again, and texts that are refused.
//!
//! Each text was run on PostgreSQL 15 and 18: what `current_setting` showed behind it was what it
//! showed behind the SQL beside it in a session that had other values before.
//! Not about hostile bytes (`settings_properties.rs`, which is next on the path).

#![allow(clippy::unwrap_used, clippy::panic)]

use sqlscan::{Action, Effects, Item, Name, Reset, Setting, Value, scan, setting};

/// The statements that set again what `sql` sets, joined by semicolons.
fn rewritten(sql: &str) -> Option<String> {
    let Setting::Changes(changes) = setting(sql.as_bytes())? else {
        return Some("RESET ALL".to_owned());
    };
    let mut out = Vec::new();
    for (name, action) in &changes {
        if !out.is_empty() {
            out.extend_from_slice(b"; ");
        }
        action.write_sql(name, &mut out);
    }
    Some(String::from_utf8(out).unwrap())
}

#[track_caller]
fn check(cases: &[(&str, &str)]) {
    for (sql, again) in cases {
        assert_eq!(rewritten(sql).as_deref(), Some(*again), "{sql}");
        let verdict = scan(sql.as_bytes());
        assert_eq!(verdict.statements, 1, "{sql}");
        let set = Effects::SET_VARIABLE | Effects::SET_ROLE | Effects::SET_CONFIG;
        let noted = verdict.effects.bits() & set.bits() != 0;
        assert!(noted || verdict.reset == Some(Reset::ResetAll), "the scan overlooks {sql}");
    }
}

#[track_caller]
fn check_refused(texts: &[&str]) {
    for sql in texts {
        assert_eq!(setting(sql.as_bytes()), None, "{sql}");
    }
}

#[test]
fn set_takes_lists_of_constants_with_their_exact_case() {
    check(&[
        ("SET search_path TO A, \"A\", 'a, b'", r#"SET "search_path" TO 'a', 'A', 'a, b'"#),
        ("SET search_path = ''", r#"SET "search_path" TO ''"#),
        ("SET search_path = \"$user\", public", r#"SET "search_path" TO '$user', 'public'"#),
        ("SET search_path = \"a\"\"b\", 'c\"d'", r#"SET "search_path" TO 'a"b', 'c"d'"#),
        ("SET search_path = a,-5", r#"SET "search_path" TO 'a', -5"#),
        ("SET search_path = pg_temp", r#"SET "search_path" TO 'pg_temp'"#),
        ("SET application_name TO 'it''s'", r#"SET "application_name" TO 'it''s'"#),
        ("SET application_name TO ''''", r#"SET "application_name" TO ''''"#),
        ("SET application_name TO'x'", r#"SET "application_name" TO 'x'"#),
        ("SET application_name = 'a;--/*'", r#"SET "application_name" TO 'a;--/*'"#),
        ("SET application_name = $$it's$$", r#"SET "application_name" TO 'it''s'"#),
        ("SET application_name = $q$a$$b$qq$q$", r#"SET "application_name" TO 'a$$b$qq'"#),
        ("SET application_name = UPPER", r#"SET "application_name" TO 'upper'"#),
        ("SET application_name = a$b_1", r#"SET "application_name" TO 'a$b_1'"#),
        ("SET application_name = none", r#"SET "application_name" TO 'none'"#),
        ("SET application_name = left", r#"SET "application_name" TO 'left'"#),
        ("SET work_mem = '12MB'", r#"SET "work_mem" TO '12MB'"#),
        ("SET statement_timeout TO 0", r#"SET "statement_timeout" TO 0"#),
        ("SET app.x = '\u{e9}'", "SET \"app\".\"x\" TO '\u{e9}'"),
        ("SET standard_conforming_strings = on", r#"SET "standard_conforming_strings" TO 'on'"#),
        ("SET jit TO TRUE", r#"SET "jit" TO 'true'"#),
        ("SET jit TO False", r#"SET "jit" TO 'false'"#),
        ("SET jit TO off", r#"SET "jit" TO 'off'"#),
        ("SET DateStyle = 'ISO, MDY'", r#"SET "datestyle" TO 'ISO, MDY'"#),
        ("SET datestyle TO sql, European", r#"SET "datestyle" TO 'sql', 'european'"#),
        ("SET datestyle = 'German'", r#"SET "datestyle" TO 'German'"#),
        ("SET search_path TO DEFAULT", r#"RESET "search_path""#),
        ("SET SESSION app.x = Default", r#"RESET "app"."x""#),
    ]);
}

#[test]
fn numbers_stay_as_written() {
    check(&[
        ("SET extra_float_digits = -3", "SET \"extra_float_digits\" TO -3"),
        ("SET extra_float_digits=-3", "SET \"extra_float_digits\" TO -3"),
        ("SET extra_float_digits = - /* x */ 3", "SET \"extra_float_digits\" TO -3"),
        ("SET extra_float_digits = +3", "SET \"extra_float_digits\" TO +3"),
        ("SET app.x = 007", "SET \"app\".\"x\" TO 007"),
        ("SET app.x = 1.50", "SET \"app\".\"x\" TO 1.50"),
        ("SET app.x = .5", "SET \"app\".\"x\" TO .5"),
        ("SET app.x = 5.", "SET \"app\".\"x\" TO 5."),
        ("SET app.x = 1e3", "SET \"app\".\"x\" TO 1e3"),
        ("SET app.x = 1.5E-3", "SET \"app\".\"x\" TO 1.5E-3"),
        ("SET app.x = 99999999999999999999", "SET \"app\".\"x\" TO 99999999999999999999"),
    ]);
}

#[test]
fn names_have_one_form() {
    check(&[
        ("SET TimeZone = 'UTC'", r#"SET "timezone" TO 'UTC'"#),
        ("SET \"TimeZone\" = 'UTC'", r#"SET "timezone" TO 'UTC'"#),
        ("SET App . Tenant_Id = 'A'", r#"SET "app"."tenant_id" TO 'A'"#),
        ("SET \"App.Tenant_Id\" = 'A'", r#"SET "app"."tenant_id" TO 'A'"#),
        ("SET a.b.c = 1", r#"SET "a"."b"."c" TO 1"#),
        ("SET _a.b$1 = 1", r#"SET "_a"."b$1" TO 1"#),
        ("SET sort_mem = 64", r#"SET "work_mem" TO 64"#),
        ("SET vacuum_mem = 1024", r#"SET "maintenance_work_mem" TO 1024"#),
        ("SET SESSION session.x = 1", r#"SET "session"."x" TO 1"#),
        ("SET session.x = 1", r#"SET "session"."x" TO 1"#),
        ("SET local.x = 1", r#"SET "local"."x" TO 1"#),
        ("SET transaction.x = 1", r#"SET "transaction"."x" TO 1"#),
        ("SET constraints.x = 1", r#"SET "constraints"."x" TO 1"#),
        ("SET time.zone = 1", r#"SET "time"."zone" TO 1"#),
        ("SET role.x = 'none'", r#"SET "role"."x" TO 'none'"#),
        ("SET names.x = 1", r#"SET "names"."x" TO 1"#),
        ("SET \"select\".\"left\" = 1", r#"SET "select"."left" TO 1"#),
        ("RESET session.x", r#"RESET "session"."x""#),
        ("RESET DateStyle", r#"RESET "datestyle""#),
        ("RESET \"TimeZone\"", r#"RESET "timezone""#),
    ]);
    assert_eq!(Name::new(b"Sort_Mem").unwrap().as_str(), "work_mem");
    let longest = "n".repeat(63);
    assert!(Name::new(longest.as_bytes()).is_some());
    assert!(Name::new(format!("a.{longest}").as_bytes()).is_some());
    for bad in ["", ".", "a.", ".a", "a..b", "1a", "a.1", "a b", "\"a\"", "a-b", "\u{e9}"] {
        assert_eq!(Name::new(bad.as_bytes()), None, "{bad}");
    }
    assert_eq!(Name::new(format!("a.{longest}n").as_bytes()), None);
}

#[test]
fn special_forms_are_settings_of_their_parameters() {
    check(&[
        ("SET TIME ZONE 'Europe/Berlin'", r#"SET "timezone" TO 'Europe/Berlin'"#),
        ("SET SESSION TIME ZONE UTC", r#"SET "timezone" TO 'utc'"#),
        ("SET TIME ZONE \"UTC\"", r#"SET "timezone" TO 'UTC'"#),
        ("SET TIME ZONE -7.5", r#"SET "timezone" TO -7.5"#),
        ("SET TIME ZONE LOCAL", r#"RESET "timezone""#),
        ("SET TIME ZONE DEFAULT", r#"RESET "timezone""#),
        ("RESET TIME ZONE", r#"RESET "timezone""#),
        ("SET NAMES 'UTF8'", r#"SET "client_encoding" TO 'UTF8'"#),
        ("SET NAMES", r#"RESET "client_encoding""#),
        ("SET SESSION NAMES DEFAULT;", r#"RESET "client_encoding""#),
        ("SET SCHEMA 'A, b'", r#"SET "search_path" TO 'A, b'"#),
        ("SET SESSION SCHEMA $$x$$", r#"SET "search_path" TO 'x'"#),
        ("SET XML OPTION DOCUMENT", r#"SET "xmloption" TO 'document'"#),
        ("SET SESSION XML OPTION content", r#"SET "xmloption" TO 'content'"#),
        (
            "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ",
            r#"SET "default_transaction_isolation" TO 'repeatable read'"#,
        ),
        (
            "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY, READ WRITE NOT DEFERRABLE",
            concat!(
                r#"SET "default_transaction_read_only" TO 'off'; "#,
                r#"SET "default_transaction_deferrable" TO 'off'"#,
            ),
        ),
        (
            "SET SESSION SESSION CHARACTERISTICS AS TRANSACTION READ ONLY \
             ISOLATION LEVEL READ COMMITTED, DEFERRABLE;",
            concat!(
                r#"SET "default_transaction_read_only" TO 'on'; "#,
                r#"SET "default_transaction_isolation" TO 'read committed'; "#,
                r#"SET "default_transaction_deferrable" TO 'on'"#,
            ),
        ),
        (
            "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE",
            r#"SET "default_transaction_isolation" TO 'serializable'"#,
        ),
        (
            "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ UNCOMMITTED",
            r#"SET "default_transaction_isolation" TO 'read uncommitted'"#,
        ),
    ]);
}

#[test]
fn roles_go_to_a_user_to_none_or_back_and_so_they_do_with_a_session_user() {
    check(&[
        ("SET ROLE b", r#"SET "role" TO 'b'"#),
        ("SET SESSION ROLE B", r#"SET "role" TO 'b'"#),
        ("SET ROLE 'b'", r#"SET "role" TO 'b'"#),
        ("SET \"Role\" TO \"b\"", r#"SET "role" TO 'b'"#),
        ("SET ROLE NONE", "SET ROLE NONE"),
        ("SET ROLE 'none'", "SET ROLE NONE"),
        ("SET role = none", "SET ROLE NONE"),
        ("SELECT set_config('role', 'none', false)", "SET ROLE NONE"),
        ("SET role TO DEFAULT", "RESET ROLE"),
        ("RESET ROLE", "RESET ROLE"),
        ("RESET SESSION AUTHORIZATION", "RESET SESSION AUTHORIZATION; RESET ROLE"),
        ("SET SESSION AUTHORIZATION DEFAULT", "RESET SESSION AUTHORIZATION; RESET ROLE"),
        ("SET SESSION AUTHORIZATION b", r#"SET "session_authorization" TO 'b'; SET ROLE NONE"#),
        (
            "SET SESSION SESSION AUTHORIZATION \"b\"",
            r#"SET "session_authorization" TO 'b'; SET ROLE NONE"#,
        ),
        ("RESET session_authorization", "RESET SESSION AUTHORIZATION; RESET ROLE"),
        (
            "SELECT set_config('session_authorization', NULL, false)",
            "RESET SESSION AUTHORIZATION; RESET ROLE",
        ),
        ("SET session_authorization = 'b'", r#"SET "session_authorization" TO 'b'; SET ROLE NONE"#),
        (
            "SELECT set_config('session_authorization', 'b', false)",
            "SELECT pg_catalog.set_config('session_authorization', 'b', false); SET ROLE NONE",
        ),
    ]);
    let quoted = setting(b"SELECT set_config('role', 'NONE', false)").unwrap();
    let raw = Action::Set(Value::Raw((*b"NONE").into()));
    assert_eq!(quoted, Setting::Changes(vec![(Name::new(b"role").unwrap(), raw)]));
}

#[test]
fn set_config_takes_its_text_whole() {
    let call = "SELECT pg_catalog.set_config(";
    for (sql, arguments) in [
        (
            "SELECT set_config('search_path', 'A, \"b\"', false)",
            "'search_path', 'A, \"b\"', false)",
        ),
        ("select pg_catalog.Set_Config('App.X', '', 'f');", "'app.x', '', false)"),
        (
            "SELECT pg_catalog . \"set_config\"('app.x', 'it''s', 'No') AS x",
            "'app.x', 'it''s', false)",
        ),
        ("SELECT set_config('app.x', '1', ' Off ') AS \"select\"", "'app.x', '1', false)"),
        ("SELECT set_config('app.x', '1', 'of') AS select", "'app.x', '1', false)"),
        ("SELECT set_config('app.x', '1', 'fals') AS x", "'app.x', '1', false)"),
        ("SELECT set_config('app.x', '1', '0')", "'app.x', '1', false)"),
        ("SELECT set_config($$app.x$$, $a$1$a$, FALSE)", "'app.x', '1', false)"),
        ("SELECT set_config('DateStyle', 'sql,ymd', false)", "'datestyle', 'sql,ymd', false)"),
        ("SELECT set_config('sort_mem', '64', false)", "'work_mem', '64', false)"),
    ] {
        check(&[(sql, &format!("{call}{arguments}"))]);
    }
    check(&[("SELECT set_config('app.x', NULL, false)", r#"RESET "app"."x""#)]);
}

#[test]
fn reset_all_is_known() {
    for sql in ["RESET ALL", "reset /* x */ all;; -- y", "\tReset\nAll ; "] {
        assert_eq!(setting(sql.as_bytes()), Some(Setting::ResetAll), "{sql}");
    }
}

#[test]
fn comments_blanks_and_semicolons_do_not_matter() {
    let plain = setting(b"SET app.x = 'a'").unwrap();
    for sql in [
        " SET app.x = 'a';",
        "/* /* nested */ */SET/**/app--.y\n.--\rx=/*;*/'a'/**/;;--",
        "-- first\n\tset\x0capp.x\r\nto 'a' ; ; ",
    ] {
        assert_eq!(setting(sql.as_bytes()).as_ref(), Some(&plain), "{sql}");
    }
}

#[test]
fn what_does_not_stay_or_is_not_plain_is_refused() {
    check_refused(&[
        "",
        ";",
        "SELECT 1",
        "SHOW search_path",
        "SET LOCAL app.x = 1",
        "SET LOCAL TIME ZONE 'UTC'",
        "SET LOCAL ROLE b",
        "SET SESSION LOCAL app.x = 1",
        "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        "SET TRANSACTION SNAPSHOT 'x'",
        "SET SESSION TRANSACTION READ ONLY",
        "SET CONSTRAINTS ALL DEFERRED",
        "SET app.x FROM CURRENT",
        "SET transaction_isolation = 'serializable'",
        "SET transaction_read_only TO on",
        "SELECT set_config('transaction_deferrable', 'on', false)",
        "RESET TRANSACTION ISOLATION LEVEL",
        "RESET transaction_isolation",
        "SET seed = 0.5",
        "SET force_parallel_mode = off",
        "SET app.x = 1; SELECT 1",
        "SET app.x = 1; SET app.y = 2",
        "; SET app.x = 1",
        "EXPLAIN SELECT set_config('app.x', '1', false)",
        "(SELECT set_config('app.x', '1', false))",
        "ALTER ROLE a SET app.x = 1",
    ]);
}

#[test]
fn a_date_style_that_keeps_a_part_of_the_old_one_is_refused() {
    check_refused(&[
        "SET DateStyle = 'ISO'",
        "SET datestyle TO dmy",
        "SET \"DATESTYLE\" TO 'ISO,'",
        "SET datestyle = 'iso, default'",
        "SET datestyle = ''",
        "SET datestyle = DEFAULT, iso",
        "SELECT set_config('DateStyle', 'ISO', false)",
    ]);
}

#[test]
fn values_that_are_not_known_from_the_text_are_refused() {
    let long = "w".repeat(64);
    let [word, quoted] = [format!("SET app.x = {long}"), format!("SET app.x = \"{long}\"")];
    check_refused(&[
        &word,
        &quoted,
        "SET app.x = $1",
        "SET app.x = E'a'",
        "SET app.x = e'\\n'",
        "SET app.x = U&'a'",
        "SET app.x = U&'d!0061' UESCAPE '!'",
        "SET app.x = N'a'",
        "SET app.x = B'1'",
        "SET app.x = X'1f'",
        "SET app.x = 'a' 'b'",
        "SET app.x = 'a'\n'b'",
        "SET app.x = 'a' || 'b'",
        "SET app.x = 'a'::text",
        "SET app.x = 1 + 1",
        "SET app.x = (1)",
        "SET app.x = upper('a')",
        "SET app.x = \u{e9}",
        "SET app.x = 0x10",
        "SET app.x = 1_000",
        "SET app.x = 1..2",
        "SET app.x = 1a",
        "SET app.x = 1e",
        "SET app.x = - -1",
        "SET app.x =@ 1",
        "SET app.x := 1",
        "SET TIME ZONE INTERVAL '1' HOUR",
        "SET TIME ZONE interval",
        "SELECT set_config('app.x', $1, false)",
        "SELECT set_config('app.x', 'a' || 'b', false)",
        "SELECT set_config('app.x', E'a', false)",
        "SELECT set_config(E'app.x', 'a', false)",
        "SELECT set_config('app.x', 'a'::text, false)",
        "SELECT set_config('app.x', 'a', true)",
        "SELECT set_config('app.x', 'a', 't')",
        "SELECT set_config('app.x', 'a', 'o')",
        "SELECT set_config('app.x', 'a', '')",
        "SELECT set_config('app.x', 'a', 'falsey')",
        "SELECT set_config('app.x', 'a', 0)",
        "SELECT set_config('app.x', 'a', NULL)",
        "SELECT set_config('app.x', 'a', not true)",
        "SELECT set_config('app.x', 'a', is_local => false)",
    ]);
}

#[test]
fn what_postgresql_would_not_take_is_refused() {
    let long = format!("SET app.{} = 1", "n".repeat(64));
    let long_call = format!("SELECT set_config('app.{}', '1', false)", "n".repeat(64));
    check_refused(&[
        &long,
        &long_call,
        "SET",
        "SET SESSION",
        "SET app.x",
        "SET app.x =",
        "SET app.x = a,",
        "SET app.x = a b",
        "SET app.x = 'a' b",
        "SET app.x = 'a",
        "SET app.x = \"a",
        "SET app.x = \"\"",
        "SET app.x = $a$b",
        "SET app.x = $1a$b$1a$",
        "SET app.x = 1 /* open",
        "SET app.x = 1 --\n'",
        "SET app.x = 1, DEFAULT",
        "SET app.x = select",
        "SET app.x = NULL",
        "SET app.x TO = 1",
        "SET 'app.x' = 1",
        "SET app. = 1",
        "SET .x = 1",
        "SET app..x = 1",
        "SET app.1 = 1",
        "SET select = 1",
        "SET left.x = 1",
        "SET authorization = 1",
        "SET \u{e9}.x = 1",
        "SET \"a b\".x = 1",
        "SET U&\"app\".x = 1",
    ]);
    assert_eq!(setting(b"SET app.x = 'a\0b'"), None);
    assert_eq!(setting(b"SET app.x = 'a' --\0"), None);
}

#[test]
fn special_forms_that_postgresql_would_not_take_are_refused() {
    check_refused(&[
        "SET TIME ZONE",
        "SET TIME ZONE 'UTC', 'UTC'",
        "SET TIME ZONE left",
        "SET NAMES utf8",
        "SET SCHEMA public",
        "SET SCHEMA DEFAULT",
        "SET ROLE",
        "SET ROLE DEFAULT",
        "SET ROLE a, b",
        "SET ROLE current_user",
        "SET SESSION AUTHORIZATION",
        "SET SESSION AUTHORIZATION NULL",
        "SET SESSION CHARACTERISTICS AS TRANSACTION",
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ",
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY,",
        "SET CHARACTERISTICS AS TRANSACTION READ ONLY",
        "SET XML OPTION",
        "SET XML OPTION x",
        "RESET",
        "RESET 'app.x'",
        "RESET ALL x",
        "RESET app.x, app.y",
        "SELECT set_config('app.x', 'a', false) AS",
        "SELECT set_config('app.x', 'a', false) AS 'x'",
        "SELECT set_config('app.x', 'a', false",
        "SELECT set_config('app.x', 'a')",
        "SELECT set_config('app x', 'a', false)",
        "SELECT set_config('', 'a', false)",
        "SELECT \"SET_CONFIG\"('app.x', 'a', false)",
        "SELECT public.set_config('app.x', 'a', false)",
        "SELECT set_config('app.x', 'a', false), 1",
        "SELECT set_config('app.x', 'a', false) FROM t",
    ]);
}

#[test]
fn only_what_postgresql_takes_for_the_same_is_equal() {
    let same = |a: &str, b: &str| setting(a.as_bytes()).unwrap() == setting(b.as_bytes()).unwrap();
    assert!(same("SET search_path TO A", "SET SESSION \"SEARCH_PATH\" = 'a'"));
    assert!(same("SET SCHEMA 'a'", "SET search_path = a"));
    assert!(same("SET TIME ZONE LOCAL", "RESET timezone"));
    assert!(same("SET sort_mem = 64", "SET work_mem = 64"));
    assert!(!same("SET search_path TO a", "SET search_path TO \"A\""));
    assert!(!same("SET search_path TO 'a, b'", "SET search_path TO a, b"));
    assert!(!same("SET search_path TO 'a, b'", "SELECT set_config('search_path', 'a, b', false)"));
    assert!(!same("SET app.x = 'a'", "SET app.x = 'a '"));
    assert!(!same("SET ROLE NONE", "RESET ROLE"));
}

#[test]
fn values_of_any_length_and_bytes_are_written_as_they_are() {
    let long = "x'".repeat(1 << 19);
    let sql = format!("SET app.x = '{}'", long.replace('\'', "''"));
    let Some(Setting::Changes(changes)) = setting(sql.as_bytes()) else { panic!("refused") };
    let value = Value::List(vec![Item::Text(long.as_bytes().into())]);
    assert_eq!(changes, [(Name::new(b"app.x").unwrap(), Action::Set(value))]);
    assert_eq!(rewritten(&sql), Some(sql.replace("app.x =", "\"app\".\"x\" TO")));

    let name = Name::new(b"app.x").unwrap();
    let mut out = b"-".to_vec();
    Value::Raw((*b"\x01\\\xff'\n").into()).write_sql(&name, &mut out);
    assert_eq!(
        out.as_slice(),
        b"-SELECT pg_catalog.set_config('app.x', E'\x01\\\\\xff''\n', false)"
    );
    check(&[
        ("SET app.x = 'a\\'", r#"SET "app"."x" TO E'a\\'"#),
        ("SET search_path = 'a\\''b', c", r#"SET "search_path" TO E'a\\''b', 'c'"#),
    ]);
}
