//! What each kind of statement leaves behind: a table of texts with their verdicts.
//!
//! Not about cuts or hostile bytes (`properties.rs`). They were run on
//! PostgreSQL 15: none that left state there goes without an effect.
//! Next on the path: `properties.rs`.

use sqlscan::{Class, Effects, Reset, Verdict, scan};

const NONE: Effects = Effects::empty();

#[track_caller]
fn check(cases: &[(&str, Effects)]) {
    for (sql, effects) in cases {
        assert_eq!(scan(sql.as_bytes()).effects, *effects, "{sql}");
    }
}

#[test]
fn plain_statements_leave_nothing() {
    check(&[
        ("", NONE),
        ("SELECT abalance FROM pgbench_accounts WHERE aid = 12345;", NONE),
        ("UPDATE t SET role = 'x', temp = 1 WHERE set = 2", NONE),
        ("INSERT INTO temp VALUES (1) ON CONFLICT DO UPDATE SET x = 1", NONE),
        ("SELECT 'SET x = 1; LISTEN a'", NONE),
        ("SELECT 1 /* ; SET x = 1; /* nested */ ; SET y = 1 */ -- ; SET z", NONE),
        ("SELECT $$; SET x = 1;$$, $a$ $b$; SET x $b$ $a$", NONE),
        ("SELECT a$b$ ; SELECT 1 FROM c$b$", NONE),
        ("SELECT $1, $2", NONE),
        ("SELECT \"set\", \"a;b\"\"; SET x\" FROM t", NONE),
        ("SELECT E'it\\'s; SET x = 1'", NONE),
        ("SELECT nextval FROM t", NONE),
        ("SELECT current_setting('x')", NONE),
        ("BEGIN; SELECT 1; COMMIT", NONE),
        ("COPY t FROM STDIN", NONE),
        ("NOTIFY a; UNLISTEN a", NONE),
        ("DECLARE c CURSOR FOR SELECT 1", NONE),
        ("DECLARE c CURSOR WITHOUT HOLD FOR SELECT 1", NONE),
        ("ALTER ROLE r SET work_mem = '1MB'", NONE),
        ("ALTER SYSTEM SET work_mem = '1MB'", NONE),
        ("GRANT EXECUTE ON FUNCTION f() TO PUBLIC", NONE),
        ("CREATE TRIGGER t BEFORE INSERT ON x EXECUTE FUNCTION f()", NONE),
        ("CREATE FUNCTION f() RETURNS int LANGUAGE sql SET x = 1 AS $$SET a = 1; SELECT 1$$", NONE),
        ("CREATE FUNCTION f() RETURNS int AS 'SET a = 1; SELECT 1' LANGUAGE sql", NONE),
        ("CREATE RULE r AS ON INSERT TO t DO ALSO (SELECT 1; SELECT 2)", NONE),
        ("SELECT 1 INTO perm", NONE),
    ]);
}

#[test]
fn variables_set_for_the_session_count() {
    let set = Effects::SET_VARIABLE;
    check(&[
        ("SET x = 1", set),
        ("/* a */ -- b\n set\tSESSION x TO 1", set),
        ("SET TIME ZONE 'UTC'", set),
        ("SET NAMES 'utf8'", set),
        ("SET SCHEMA 'a'", set),
        ("SET XML OPTION DOCUMENT", set),
        ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", set),
        ("RESET x", set),
        ("RESET ALL; SELECT 1", set),
        ("RESET TIME ZONE", set),
        ("BEGIN; SET x = 1", set),
        ("SELECT 1;;; SET x = 1;", set),
        ("SET local.x = 1", set),
        ("SET transaction.x = 1", set),
        ("SET constraints . x TO 1", set),
        ("SET session.x = 1", set),
        ("SELECT 'a'--'\n'b'; SET x = 1", set),
        ("SELECT 'a\\'; SET x = 1 --'", set),
        ("SELECT E'a\\\\'; SET x = 1 --'", set),
        ("SELECT E'a'\n'b\\'; SET y = 1', 1; SET x = 1", set),
        ("SELECT E'a' -- c\n 'b\\'', 1; SET x = 1 --'", set),
        ("SELECT U&'a\\'; SET x = 1 --'", set),
        ("SELECT 1 $a$; $a$; SET x = 1", set),
        ("SELECT 1+--c\n2; SET x = 1", set),
        ("SELECT 1 /**//* */ ; SET x = 1", set),
        ("SELECT 1 /*/ */*/ */ ; SET x = 1", set),
        ("SELECT $x$ $x $$ $xy$ $x$; SET x = 1", set),
    ]);
}

#[test]
fn transaction_scoped_settings_leave_nothing() {
    check(&[
        ("SET LOCAL x = 1", NONE),
        ("SET LOCAL ROLE a", NONE),
        ("SET LOCAL SESSION AUTHORIZATION a", NONE),
        ("SET LOCAL session.x = 1", NONE),
        ("SET LOCAL search_path = 'tenant1'", NONE),
        ("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE", NONE),
        ("SET CONSTRAINTS ALL DEFERRED", NONE),
        ("SET CONSTRAINTS a.b IMMEDIATE", NONE),
        ("SET LOCAL search_path = 'public, pg_temp'", Effects::TEMP),
        ("SET LOCAL search_path = E'\\x70g_temp'", Effects::UNSURE),
    ]);
}

#[test]
fn roles_and_seeds_count_by_every_name_they_have() {
    check(&[
        ("SET ROLE a", Effects::SET_ROLE),
        ("SET SESSION ROLE a", Effects::SET_ROLE),
        ("SET \"Role\" = 'a'", Effects::SET_ROLE),
        ("SET SESSION AUTHORIZATION a", Effects::SET_ROLE),
        ("SET SESSION SESSION AUTHORIZATION a", Effects::SET_ROLE),
        ("SET session_authorization TO a", Effects::SET_ROLE),
        ("RESET ROLE", Effects::SET_ROLE),
        ("RESET SESSION AUTHORIZATION", Effects::SET_ROLE),
        ("SET SEED TO 0.5", Effects::SEED),
        ("SET LOCAL seed = 0.5", Effects::SEED),
        ("SELECT setseed(0.5)", Effects::SEED),
    ]);
}

#[test]
fn set_config_counts_unless_it_is_plainly_local() {
    let set = Effects::SET_CONFIG;
    check(&[
        ("SELECT set_config('a.b', 'c', true)", NONE),
        ("SELECT set_config('a.b', concat('c', f(1, 2)), TRUE), 1", NONE),
        ("SELECT set_config('a.b', 'c', false)", set),
        ("SELECT set_config('a.b', 'c', 'true')", set),
        ("SELECT set_config('a.b', 'c', $1)", set),
        ("SELECT set_config('a.b', 'c', true and false)", set),
        ("SELECT set_config('a.b', 'c', not true)", set),
        ("SELECT set_config('a.b', 'c', is_local => true)", set),
        ("SELECT set_config('a.b', set_config('a.c', 'c', false), true)", set),
        ("SELECT set_config('a.b', 'c', true), set_config('a.b', 'c', false)", set),
        ("SELECT pg_catalog . \"set_config\" /* x */ ('a.b', 'c', false)", set),
        ("SELECT set_config('a.b', 'c'", set),
        ("SELECT \"SET_CONFIG\"('a.b', 'c', false)", NONE),
        ("SELECT U&\"set\\005fconfig\"('a.b', 'c', false)", Effects::UNSURE),
        ("SELECT U&\"x\" FROM t", NONE),
        ("SELECT U&\"f\"(1)", Effects::UNSURE),
        ("SELECT U&\"f!005f\" UESCAPE '!' (1)", Effects::UNSURE),
        ("SELECT set_config('search_path', 'pg_temp', true)", Effects::TEMP),
        ("SELECT set_limit(0.5)", set),
        ("UPDATE pg_settings SET setting = 'x' WHERE name = 'y'", set),
        ("WITH a AS (UPDATE pg_catalog.pg_settings SET setting = 1) SELECT 1", set),
        ("SELECT * FROM pg_settings", NONE),
    ]);
}

#[test]
fn sql_prepare_counts_but_two_phase_commit_does_not() {
    let prepare = Effects::SQL_PREPARE;
    check(&[
        ("PREPARE a AS SELECT 1", prepare),
        ("PREPARE transaction AS SELECT 1", prepare),
        ("PREPARE TRANSACTION 'a'", NONE),
        ("COMMIT PREPARED 'a'", NONE),
        ("EXECUTE a(1)", prepare),
        ("EXPLAIN EXECUTE a", prepare),
        ("EXPLAIN (ANALYZE, COSTS off) EXECUTE a", prepare),
        ("EXPLAIN ANALYZE VERBOSE CREATE TABLE t AS EXECUTE a", prepare),
        ("CREATE TABLE t (a, b) AS EXECUTE a", prepare),
        ("DEALLOCATE a", prepare),
        ("DEALLOCATE PREPARE a", prepare),
        ("DEALLOCATE prepare", prepare),
        ("DEALLOCATE \"all\"", prepare),
    ]);
}

#[test]
fn temporary_objects_count() {
    let temp = Effects::TEMP;
    check(&[
        ("CREATE TEMP TABLE t (a int)", temp),
        ("CREATE TEMPORARY SEQUENCE s", temp),
        ("CREATE LOCAL TEMPORARY TABLE t (a int)", temp),
        ("CREATE GLOBAL TEMP TABLE t (a int)", temp),
        ("CREATE OR REPLACE TEMP VIEW v AS SELECT 1", temp),
        ("EXPLAIN ANALYZE CREATE TEMP TABLE t AS SELECT 1", temp),
        ("SELECT 1 INTO TEMP t", temp),
        ("SELECT 1 INTO TEMPORARY TABLE t", temp),
        ("SELECT 1 INTO LOCAL TEMP t", temp),
        ("CREATE TABLE pg_temp.t (a int)", temp),
        ("CREATE FUNCTION \"pg_temp\".f() RETURNS int LANGUAGE sql AS 'SELECT 1'", temp),
        ("SELECT 1 INTO PG_TEMP_3.t", temp),
        ("CREATE TABLE temp (a int)", NONE),
        ("SELECT temp FROM temp", NONE),
    ]);
}

#[test]
fn functions_count_wherever_they_are_called() {
    check(&[
        ("SELECT pg_advisory_lock(1)", Effects::ADVISORY_LOCK),
        ("SELECT pg_try_advisory_lock_shared (1, 2)", Effects::ADVISORY_LOCK),
        ("INSERT INTO t SELECT pg_advisory_lock_shared(1)", Effects::ADVISORY_LOCK),
        ("SELECT pg_advisory_xact_lock(1), pg_try_advisory_xact_lock(1)", NONE),
        ("SELECT pg_advisory_unlock(1)", NONE),
        ("SELECT nextval('s')", Effects::SEQUENCE),
        ("INSERT INTO t VALUES (setval('s', 1))", Effects::SEQUENCE),
        ("SELECT currval('s'), lastval()", Effects::SEQUENCE_READ),
        ("SELECT dblink_connect_u('a')", Effects::FOREIGN_SESSION),
        ("SELECT pg_replication_origin_session_setup('a')", Effects::FOREIGN_SESSION),
        ("SELECT pg_backup_start('a')", Effects::FOREIGN_SESSION),
        ("SELECT pg_create_physical_replication_slot('a', true, true)", Effects::FOREIGN_SESSION),
    ]);
}

#[test]
fn the_rest_of_session_state_counts() {
    check(&[
        ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", Effects::HOLD_CURSOR),
        ("DECLARE c BINARY SCROLL CURSOR WITH HOLD FOR SELECT 1", Effects::HOLD_CURSOR),
        ("LISTEN a", Effects::LISTEN),
        ("LOAD 'auto_explain'", Effects::LOAD),
        ("DISCARD ALL; SELECT 1", Effects::DISCARD),
        ("SELECT 1; DEALLOCATE ALL", Effects::DISCARD),
        ("SET x = 1; LISTEN a", Effects::SET_VARIABLE | Effects::LISTEN),
    ]);
}

#[test]
fn a_do_counts_if_any_word_of_it_could_change_the_session() {
    let block = Effects::DO_BLOCK;
    check(&[
        ("DO $$BEGIN PERFORM 1; INSERT INTO t VALUES (1); END$$", NONE),
        ("DO LANGUAGE plpgsql 'BEGIN NULL; END'", NONE),
        ("DO $$BEGIN SET x = 1; END$$", block),
        ("DO 'BEGIN PERFORM Set_Config(''a'', ''b'', false); END'", block),
        ("DO $$BEGIN EXECUTE 'LIS' || 'TEN a'; END$$", block),
        ("DO E'BEGIN \\x73ET x = 1; END'", block),
        ("DO 'BEGIN SE'\n'T x = 1; END'", block),
        ("DO U&'BEGIN !0073ET x = 1; END' UESCAPE '!'", block),
        ("DO LANGUAGE plperl $$x$$", block),
        ("DO $$BEGIN NULL; END$$; SELECT 'set'", NONE),
        ("DO $$x; PERFORM pg_advisory_lock(1)$$", block),
    ]);
}

#[test]
fn bodies_of_routines_count_only_too_much() {
    let body = "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; END";
    assert_eq!(scan(body.as_bytes()).statements, 1);
    assert_eq!(scan(body.as_bytes()).effects, NONE);
    let two = format!("{body}; SET x = 1");
    assert_eq!(scan(two.as_bytes()).statements, 2);
    check(&[
        (two.as_str(), Effects::SET_VARIABLE),
        (
            "CREATE PROCEDURE p() BEGIN ATOMIC SELECT 1 case; END; SET x = 1",
            Effects::SET_VARIABLE | Effects::UNSURE,
        ),
        ("CREATE PROCEDURE p() BEGIN ATOMIC SELECT nextval('s'); END", Effects::SEQUENCE),
    ]);
}

#[test]
fn text_that_ends_too_early_is_a_doubt() {
    for sql in [
        "SELECT '",
        "SELECT 'a''",
        "SELECT E'\\",
        "SELECT \"a",
        "SELECT $a$ $a",
        "SELECT /* /* */",
        "SELECT U&'",
        "SELECT E'\\'",
        "DISCARD ALL /*",
    ] {
        let verdict = scan(sql.as_bytes());
        assert!(verdict.effects.contains(Effects::UNSURE), "{sql}");
        assert_eq!(verdict.reset, None, "{sql}");
    }
    check(&[("SELECT 1 --", NONE), ("SELECT E'a'", NONE), ("SELECT \"a\"", NONE)]);
}

#[test]
fn known_resets_are_known_in_any_dress_and_have_no_effects() {
    let asyncpg = "SELECT pg_advisory_unlock_all();\nCLOSE ALL;\nUNLISTEN *;\nRESET ALL;";
    for (sql, reset) in [
        ("DISCARD ALL", Reset::DiscardAll),
        (" ; /* x */ discard -- y\n all ; ; ", Reset::DiscardAll),
        ("DEALLOCATE ALL;", Reset::DeallocateAll),
        ("DEALLOCATE PREPARE ALL", Reset::DeallocateAll),
        ("RESET ALL", Reset::ResetAll),
        ("UNLISTEN *", Reset::UnlistenAll),
        ("DISCARD TEMP", Reset::DiscardTemp),
        ("DISCARD TEMPORARY", Reset::DiscardTemp),
        ("DISCARD PLANS", Reset::DiscardPlans),
        ("DISCARD SEQUENCES", Reset::DiscardSequences),
        (asyncpg, Reset::Asyncpg),
        ("SELECT pg_advisory_unlock_all(); CLOSE ALL; RESET ALL", Reset::Asyncpg),
    ] {
        let verdict = scan(sql.as_bytes());
        assert_eq!(verdict.reset, Some(reset), "{sql}");
        assert!(verdict.effects.is_empty(), "{sql}");
    }
    for sql in [
        "DISCARD ALL; DISCARD ALL",
        "DISCARD ALL x",
        "DISCARD \"all\"",
        "RESET ALL; SELECT 1",
        "CLOSE ALL",
        "CLOSE ALL; UNLISTEN *; RESET ALL",
        "UNLISTEN a",
        "EXPLAIN SELECT pg_advisory_unlock_all(); CLOSE ALL; RESET ALL",
        "SELECT pg_advisory_unlock_all(), 1; CLOSE ALL; RESET ALL",
    ] {
        assert_eq!(scan(sql.as_bytes()).reset, None, "{sql}");
    }
    assert_eq!(scan(format!("{asyncpg} SELECT 1").as_bytes()).reset, None);
}

#[test]
fn statements_are_counted_and_the_first_is_classed() {
    for (sql, statements, class) in [
        ("", 0, Class::Empty),
        (" ; -- x\n;", 0, Class::Empty),
        ("BEGIN", 1, Class::Begin),
        ("START TRANSACTION", 1, Class::Begin),
        ("COMMIT AND CHAIN", 1, Class::Commit),
        ("END WORK", 1, Class::Commit),
        ("COMMIT PREPARED 'a'", 1, Class::Other),
        ("ABORT", 1, Class::Rollback),
        ("ROLLBACK WORK TO SAVEPOINT a", 1, Class::Savepoint),
        ("RELEASE a", 1, Class::Savepoint),
        ("SET LOCAL x = 1", 1, Class::Set),
        ("((SELECT 1));SELECT 2", 2, Class::Select),
        ("VALUES (1)", 1, Class::Select),
        ("WITH a AS (SELECT 1) SELECT * FROM a FOR UPDATE", 1, Class::Select),
        ("WITH a AS (DELETE FROM t RETURNING 1) SELECT * FROM a", 1, Class::Write),
        ("WITH a AS (SELECT 1) INSERT INTO t TABLE a", 1, Class::Write),
        ("insert into t values (1); commit", 2, Class::Write),
        ("COPY t TO STDOUT", 1, Class::Copy),
        ("EXPLAIN INSERT INTO t VALUES (1)", 1, Class::Other),
        ("CREATE RULE r AS ON INSERT TO t DO (SELECT 1; SELECT 2); SELECT 3", 2, Class::Other),
    ] {
        let Verdict { statements: count, class: first, .. } = scan(sql.as_bytes());
        assert_eq!((count, first), (statements, class), "{sql}");
    }
    assert_eq!(scan("SELECT 1;".repeat(70_000).as_bytes()).statements, u16::MAX);
}

#[test]
fn what_postgresql_was_seen_to_keep_has_an_effect() {
    for sql in [
        "select $\u{e9}$;$\u{e9}$;set a.b=1",
        "select 1e5;set a.b=1",
        "select 1 -/*;*/- 2;set a.b=1",
        "select 1 \"a\"\"\";set a.b=1",
        "select 'a'\n'\\' ;set a.b=1;--'",
        "select E'a'\n'\\'' ;set a.b=1;--'",
        "select n'a\\';set a.b=1;--'",
        "explain (analyze) update pg_settings set setting='123' where name='work_mem'",
        "update only pg_catalog.pg_settings as p set setting='1' where name='work_mem'",
        "select query_to_xml('select set_config(''a.b'',''1'',false)',true,true,'')",
        "explain analyze (select pg_advisory_lock(1))",
        "copy (select set_config('a.b','1',false)) to stdout",
        "create or replace temp recursive view v(a) as select 1",
        "with q as (select 1) select * into temp z from q",
        "begin; set local search_path=PG_TEMP; create table zq(a int); commit",
        "begin; select set_config('search_path','PG_TEMP',true); create table z(a int); commit",
        "create function f() returns int begin atomic select 1 end; end;set a.b=1",
        "create function f() returns int begin atomic select 1 case; select 2; end;set a.b=1",
        "do $$begin perform U&\"s\\0065t_config\" ('a.b','1',false); end$$",
        "do language 'plpgsql' $$begin set a.b=1; end$$",
        "begin; declare q cursor with hold for select 1; commit",
        "set xml option document",
        "set time zone local",
    ] {
        assert!(!scan(sql.as_bytes()).effects.is_empty(), "{sql}");
    }
}

#[test]
fn effects_are_a_set_with_names() {
    let set = Effects::TEMP | Effects::LISTEN;
    assert!(set.contains(Effects::TEMP) && !set.contains(Effects::LOAD));
    assert_eq!(set.iter().collect::<Vec<_>>(), [Effects::TEMP, Effects::LISTEN]);
    assert_eq!(format!("{set:?}"), "{\"TEMP\", \"LISTEN\"}");
}
