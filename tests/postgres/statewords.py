"""The vocabulary of the state walk: every kind of statement that changes or reads a session.

A statement is SQL text with values for its parameters; its constants carry a tag of the client, so
that a foreign one is known at sight. Names of temporary tables, cursors and prepared statements
are the same for all clients (a leak is met by name); what a database shares (advisory locks,
channels, sequences) has names of its own for each client. Nothing here knows the wire or the
proxy. Next on the path: `statewalk.py`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

ROLES = ("guest", "leak_one", "Leak Two")
# What both databases of a room hold. Functions are trusted by the proxy: these leave nothing
# behind themselves, however they are called.
SCHEMA_SQL = (
    *(f"CREATE SEQUENCE seq_c{slot}" for slot in range(4)),
    "GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO PUBLIC",
    "CREATE SCHEMA tenant",
    'CREATE SCHEMA "Tenant"',
    'GRANT USAGE ON SCHEMA tenant, "Tenant" TO PUBLIC',
    "CREATE VIEW tenant.place AS SELECT 'lower'::text AS name",
    "CREATE VIEW \"Tenant\".place AS SELECT 'upper'::text AS name",
    "CREATE VIEW public.place AS SELECT 'public'::text AS name",
    'GRANT SELECT ON tenant.place, "Tenant".place, public.place TO PUBLIC',
    """CREATE FUNCTION set_for_now(text) RETURNS text LANGUAGE plpgsql AS $$BEGIN
         PERFORM set_config('app.tenant_id', $1, true);
         RETURN current_setting('app.tenant_id'); END$$""",
    """CREATE FUNCTION set_inside() RETURNS text LANGUAGE plpgsql SET work_mem = '3MB' AS $$BEGIN
         RETURN current_setting('work_mem'); END$$""",
    """CREATE FUNCTION set_and_undone(text) RETURNS text LANGUAGE plpgsql AS $$BEGIN
         PERFORM set_config('app.tenant_id', $1, false);
         RAISE EXCEPTION 'undo'; EXCEPTION WHEN raise_exception THEN
         RETURN coalesce(nullif(current_setting('app.tenant_id', true), ''), 'none'); END$$""",
)
ROLE_DEFAULTS = (
    "work_mem = '6MB'",
    "\"app.color\" = 'role default'",
    "search_path = tenant, public",
)

# Settings with values that PostgreSQL takes, and some that it refuses. None of them ends a
# statement early, fills a log or changes what a server sends unasked. Not here: `temp_buffers`,
# which a process refuses for ever once anybody on it has used a temporary table.
PLAIN: dict[str, tuple[str, ...]] = {
    "work_mem": ("5MB", "7000", "8 MB", "64kB", "much", "-1", ""),
    "statement_timeout": ("10min", "600001", "0", "x"),
    "lock_timeout": ("11min", "0"),
    "idle_in_transaction_session_timeout": ("12min", "0"),
    "datestyle": ("ISO, DMY", "German", "SQL, MDY", "iso", "nonsense"),
    "intervalstyle": ("iso_8601", "postgres_verbose", "sql_standard", "later"),
    "timezone": ("Europe/Rome", "UTC", "-3.5", "No/Where", "<+02>-02"),
    "extra_float_digits": ("3", "0", "-15", "99"),
    "bytea_output": ("escape", "hex", "ESCAPE", "octal"),
    "standard_conforming_strings": ("off", "on", "off", "maybe"),
    "backslash_quote": ("on", "off", "safe_encoding"),
    "escape_string_warning": ("off", "on"),
    "default_transaction_isolation": ("serializable", "repeatable read", "read committed", "best"),
    "default_transaction_read_only": ("on", "off", "TRUE"),
    "default_transaction_deferrable": ("on", "off"),
    "client_min_messages": ("warning", "error", "notice", "loud"),
    "client_encoding": ("LATIN1", "UTF8", "sql_ascii", "SJIS", "EBCDIC"),
    "synchronous_commit": ("off", "local", "on"),
    "row_security": ("off", "on"),
    "enable_seqscan": ("off", "on", "yes", "f", "perhaps"),
    "constraint_exclusion": ("on", "partition"),
    "xmlbinary": ("hex", "base64"),
    "default_text_search_config": ("pg_catalog.simple", "no.where"),
    "quote_all_identifiers": ("on", "off"),
    "plan_cache_mode": ("force_custom_plan", "force_generic_plan", "auto"),
    "session_replication_role": ("replica", "origin"),
    "check_function_bodies": ("off", "on"),
    "geqo_seed": ("0.5", "1e-1", "2"),
    "max_connections": ("7",),
    "no_such_setting": ("1",),
    "Random_Page_Cost": ("3.25", "+2", "0x"),
}
# Only the walk's own names: which customs a session may be asked for by name, see `statewalk.py`.
CUSTOM = ("app.tenant_id", "app.color", "app.blob", "deep.er.name")
CUSTOM_SPELT = {
    "app.tenant_id": ("app.tenant_id", "APP.Tenant_Id", '"app"."tenant_id"', '"app.tenant_id"'),
    "app.color": ("app.color", 'app."color"', "App.COLOR"),
    "app.blob": ("app.blob",),
    "deep.er.name": ("deep.er.name", '"deep"."er".name'),
}
BAD_NAMES = ('"app.odd name"', '"app.1st"', '"app."', '"x y"')
PATHS = (
    "tenant",
    '"Tenant"',
    "tenant, public",
    '"Tenant", public',
    "public",
    "''",
    "nowhere",
    '"$user", public',
    "pg_catalog, public",
    "public, pg_temp",
    '"a, b", "with ""quotes""", public',
    "Tenant, PUBLIC",
    "'tenant', 'public'",
    "'tenant, public'",
)
TIME_ZONES = (
    "'Europe/Rome'",
    "LOCAL",
    "DEFAULT",
    "-7",
    "+5.5",
    "INTERVAL '-08:00' HOUR TO MINUTE",
    "'PST8PDT'",
    "'No/Where'",
    "utc",
)


class Statement(NamedTuple):
    """SQL with the values of its parameters; `kind` names its place in the vocabulary."""

    kind: str
    sql: str
    values: tuple[bytes | None, ...] = ()


class Words:
    """The statements of one life of one client; all chance comes from `dice`."""

    def __init__(
        self, dice: random.Random, slot: int, life: int, sequence: int, named: bool
    ) -> None:
        """Take client `slot` (0 to 3) in its `life` (0 to 9) of a numbered sequence.

        `named` sequences change `application_name` and never say RESET, others the other way round:
        the proxy mixes the two up where they share a message or a transaction.
        """
        self.dice = dice
        self.named = named
        self.slot = slot
        self.serial = 0
        self.tag_head = f"c{slot}.{life}"
        # A server that is being reset may still hold the locks of a client that has gone, so no
        # other life takes the same.
        self.lock_base = (sequence % 1_000_000) * 1000 + slot * 100 + life * 10

    def tag(self) -> str:
        """Return a text that no other client ever writes."""
        self.serial += 1
        return f"{self.tag_head}-{self.serial}"

    def one(self, *choices: str) -> str:
        """Return one of some texts."""
        return self.dice.choice(choices)

    def unless_named(self, *choices: str) -> str:
        """Return one of some texts; in a named sequence none that begins with RESET."""
        return self.one(*(each for each in choices if not self.named or each[:5] != "RESET"))

    # Values

    def value(self) -> str:
        """Return a value for a custom setting: of odd characters and lengths, tagged mostly."""
        tag = self.tag()
        odd = ("", "Ärger-", "it's ", 'say "x" ', "back\\slash ", "two\nlines ", "a, b", "{x,y} ")
        choice = self.dice.random()
        if choice < 0.5:
            return tag
        if choice < 0.56:
            return ""
        if choice < 0.62:
            return self.one("Blue", "blue", "BLUE", "off", "1")
        if choice < 0.7:
            return (tag + "-").ljust(self.dice.choice((127, 130, 300, 4000)), "x")
        return self.dice.choice(odd) + tag

    def literal(self, text: str) -> str:
        """Return a literal for a value, in one of the notations."""
        choice = self.dice.random()
        if choice < 0.15 or "\\" in text:
            return "E'" + text.replace("\\", "\\\\").replace("'", "''").replace("\n", "\\n") + "'"
        if choice < 0.2 and "$" not in text:
            return f"$v${text}$v$"
        return "'" + text.replace("'", "''") + "'"

    def plain(self) -> tuple[str, str]:
        """Return a setting's name and a value."""
        name = self.dice.choice(tuple(PLAIN))
        return name, self.dice.choice(PLAIN[name])

    def assignment(self) -> str:
        """Return what follows SET: a name and a value, of any kind."""
        choice, to = self.dice.random(), self.one(" TO ", " = ", "=", " to ", " /* to */ = ")
        if choice < 0.35:
            name, value = self.plain()
            as_word = value.isidentifier() and self.dice.random() < 0.5
            written = value if as_word else self.literal(value)
            spelt = self.one(name, name, name.upper(), f'"{name.lower()}"')
            return f"{spelt}{to}{written}"
        if choice < 0.65:
            return f"{self.custom()}{to}{self.literal(self.value())}"
        if choice < 0.82:
            return f"search_path{to}{self.path()}"
        if choice < 0.92 and self.named:
            return f"application_name{to}{self.literal(self.value()[:200])}"
        if choice < 0.95:
            return f"{self.one(*BAD_NAMES)}{to}'x'"
        return f"{self.one('work_mem', 'search_path', 'app.color', 'timezone')}{to}DEFAULT"

    def path(self) -> str:
        """Return a search path as SET takes it, now and then a long one."""
        if self.dice.random() < 0.15:
            long = ", ".join(
                f'"{self.tag()}-{"s" * 20}"' for _ in range(self.dice.randrange(4, 14))
            )
            return f"{long}, {self.one('tenant', 'public')}"
        return self.one(*PATHS)

    def custom(self) -> str:
        """Return the name of a custom setting, in one of its spellings."""
        return self.one(*CUSTOM_SPELT[self.one(*CUSTOM)])

    # Settings

    def set_session(self) -> Statement:
        """SET, SET SESSION."""
        return Statement(
            "set", f"{self.one('SET', 'SET', 'SET SESSION', 'set')} {self.assignment()}"
        )

    def set_local(self) -> Statement:
        """SET LOCAL."""
        return Statement("set local", f"SET LOCAL {self.assignment()}")

    def reset(self) -> Statement:
        """RESET of a setting."""
        if self.named:
            return self.set_local()
        name = self.one(*PLAIN) if self.dice.random() < 0.5 else self.one("search_path", *CUSTOM)
        return Statement("reset", f"RESET {name}")

    def reset_all(self) -> Statement:
        """RESET ALL."""
        if self.named:
            return self.set_session()
        return Statement("reset all", self.one("RESET ALL", "reset all", "RESET /* all */ ALL"))

    def discard(self) -> Statement:
        """Forget one kind of state, or all of it."""
        what = self.one("ALL", "ALL", "PLANS", "TEMP", "SEQUENCES", "TEMPORARY")
        return Statement(f"discard {what.lower()}", f"DISCARD {what}")

    def driver_reset(self) -> Statement:
        """Return one statement of those that drivers' pools send; asyncpg's is `pool_reset`."""
        sql = self.one("CLOSE ALL", "UNLISTEN *", "SELECT pg_advisory_unlock_all()")
        return Statement("driver reset", sql)

    def set_config(self) -> Statement:
        """Call set_config with constants, or with parameters."""
        if self.dice.random() < 0.6:
            name, value = self.one(*CUSTOM), self.value()
        elif self.dice.random() < 0.3:
            name, value = "search_path", self.path()
        else:
            name, value = self.plain()
        local = self.one("true", "false")
        kind = "set_config local" if local == "true" else "set_config"
        call = self.one("set_config", "pg_catalog.set_config", "SET_CONFIG")
        choice = self.dice.random()
        if choice < 0.3:
            return Statement(
                kind, f"SELECT {call}($1, $2, {local})", (name.encode(), value.encode())
            )
        if choice < 0.4:
            values = (name.encode(), value.encode(), local.encode())
            return Statement(kind, f"SELECT {call}($1, $2, $3)", values)
        if choice < 0.45:
            return Statement(kind, f"SELECT {call}('{name}', NULL, {local})")
        return Statement(kind, f"SELECT {call}('{name}', {self.literal(value)}, {local})")

    def update_settings(self) -> Statement:
        """UPDATE of pg_settings, which calls set_config."""
        sql = "UPDATE pg_settings SET setting = '5432' WHERE name = 'work_mem'"
        return Statement("update pg_settings", sql)

    def special_set(self) -> Statement:
        """Write the forms of SET with a grammar of their own."""
        scope = self.one("", "", "SESSION ", "LOCAL ")
        zone = self.one(*TIME_ZONES)
        names = self.one("NAMES 'LATIN1'", "NAMES 'UTF8'", "NAMES DEFAULT", "NAMES", "NAMES 'x'")
        modes = self.one(
            "READ ONLY", "READ WRITE", "ISOLATION LEVEL SERIALIZABLE", "READ ONLY, NOT DEFERRABLE"
        )
        sql = self.unless_named(
            f"SET {scope}TIME ZONE {zone}",
            f"SET {scope}{names}",
            f"SET {scope}SCHEMA {self.one(repr('tenant'), repr('Tenant'), repr('nowhere'))}",
            f"SET SESSION CHARACTERISTICS AS TRANSACTION {modes}",
            f"SET TRANSACTION {modes}",
            f"SET {scope}XML OPTION {self.one('DOCUMENT', 'CONTENT')}",
            "SET CONSTRAINTS ALL DEFERRED",
            "RESET TIME ZONE",
        )
        return Statement("special set", sql)

    def role(self) -> Statement:
        """SET ROLE, SET SESSION AUTHORIZATION and their resets."""
        role = self.one(*ROLES)
        named = self.one(f'"{role}"', f"'{role}'")
        sql = self.unless_named(
            f"SET ROLE {named}",
            f"SET LOCAL ROLE {named}",
            f"SET SESSION ROLE {named}",
            "SET ROLE NONE",
            "RESET ROLE",
            "SET ROLE nobody",
            f"SET SESSION AUTHORIZATION {named}",
            f"SET LOCAL SESSION AUTHORIZATION {named}",
            "SET SESSION AUTHORIZATION DEFAULT",
            "RESET SESSION AUTHORIZATION",
            f"SELECT set_config('role', '{role}', {self.one('true', 'false')})",
        )
        return Statement("role", sql)

    def function(self) -> Statement:
        """Functions that set something and leave nothing; DO, which is looked into."""
        tag = self.tag()
        sql = self.one(
            f"SELECT public.set_for_now('{tag}')",
            "SELECT public.set_inside()",
            f"SELECT public.set_and_undone('{tag}')",
            f"DO $$BEGIN PERFORM set_config('app.tenant_id', '{tag}', false); END$$",
            f"DO $$BEGIN PERFORM set_config('app.tenant_id', '{tag}', true); END$$",
            f"DO $$BEGIN EXECUTE 'SET work_mem = ' || {self.dice.randrange(100, 900)}; END$$",
            "CREATE OR REPLACE FUNCTION pg_temp.mem() RETURNS text LANGUAGE sql SET work_mem"
            " FROM CURRENT AS $$SELECT current_setting('work_mem')$$",
            "SELECT pg_temp.mem()",
        )
        return Statement("function", sql)

    # Transactions

    def begin(self) -> Statement:
        """BEGIN in its forms."""
        sql = self.one(
            "BEGIN",
            "BEGIN",
            "begin work",
            "START TRANSACTION",
            "BEGIN ISOLATION LEVEL REPEATABLE READ",
            "START TRANSACTION READ ONLY",
        )
        return Statement("begin", sql)

    def commit(self) -> Statement:
        """COMMIT in its forms."""
        return Statement("commit", self.one("COMMIT", "COMMIT", "END", "COMMIT AND CHAIN"))

    def rollback(self) -> Statement:
        """ROLLBACK in its forms."""
        sql = self.one("ROLLBACK", "ROLLBACK", "ABORT", "ROLLBACK AND CHAIN")
        return Statement("rollback", sql)

    def savepoint(self) -> Statement:
        """SAVEPOINT, RELEASE, ROLLBACK TO."""
        name = self.one("sp", "sp", '"Sp"')
        sql = self.one(
            f"SAVEPOINT {name}",
            f"SAVEPOINT {name}",
            f"RELEASE {name}",
            f"ROLLBACK TO {name}",
            f"ROLLBACK TO SAVEPOINT {name}",
        )
        return Statement("savepoint", sql)

    def fault(self) -> Statement:
        """Fail, as applications do."""
        sql = self.one("SELECT 1/0", "SELECT nothing", "SELEC 1", "SELECT 'x'::int", "SET")
        return Statement("fault", sql)

    # Names

    def prepare(self) -> Statement:
        """PREPARE, EXECUTE, DEALLOCATE; the names are those of all clients."""
        name, tag = self.one("p0", "p1", '"P0"'), self.tag()
        sql = self.one(
            f"PREPARE {name} AS SELECT '{tag}'",
            f"PREPARE {name} AS SELECT '{tag}', current_setting('search_path')",
            f"PREPARE {name} AS SELECT set_config('app.tenant_id', '{tag}', false)",
            f"EXECUTE {name}",
            f"EXECUTE {name}",
            f"DEALLOCATE {name}",
            "DEALLOCATE ALL",
            "DEALLOCATE PREPARE ALL",
        )
        return Statement("prepare", sql)

    def temporary(self) -> Statement:
        """Temporary tables, views and sequences; the names are those of all clients."""
        name, tag = self.one("tmp_0", "tmp_1"), self.tag()
        ends = self.one("", "", " ON COMMIT DROP", " ON COMMIT DELETE ROWS")
        sql = self.one(
            f"CREATE TEMP TABLE {name} (tag text){ends}",
            f"CREATE TEMP TABLE {name}{ends} AS SELECT '{tag}'::text AS tag",
            f"SELECT '{tag}'::text AS tag INTO TEMP {name}",
            f"CREATE TABLE pg_temp.{name} (tag text)",
            f"INSERT INTO {name} VALUES ('{tag}')",
            f"SELECT tag FROM {name}",
            f"SELECT tag FROM pg_temp.{name}",
            f"DROP TABLE {name}",
            f"DROP TABLE IF EXISTS {name}",
            "CREATE TEMP SEQUENCE IF NOT EXISTS tmp_seq",
            f"CREATE OR REPLACE TEMP VIEW tmp_view AS SELECT '{tag}'::text AS tag",
            "SELECT tag FROM tmp_view",
        )
        return Statement("temporary", sql)

    def lock(self) -> Statement:
        """Advisory locks on keys that only this life of this client takes."""
        key = self.lock_base + self.dice.randrange(2)
        sql = self.one(
            f"SELECT pg_advisory_lock({key})",
            f"SELECT pg_advisory_lock({key})",
            f"SELECT pg_advisory_lock_shared({key})",
            f"SELECT pg_try_advisory_lock({key})",
            f"SELECT pg_advisory_unlock({key})",
            f"SELECT pg_advisory_unlock({key})",
            f"SELECT pg_advisory_unlock_shared({key})",
            "SELECT pg_advisory_unlock_all()",
            f"SELECT pg_advisory_xact_lock({key})",
            f"SELECT pg_try_advisory_xact_lock({self.lock_base // 1000}, {key % 1000})",
        )
        return Statement("lock", sql)

    def cursor(self) -> Statement:
        """Cursors, also WITH HOLD; the names are those of all clients."""
        name, rows = self.one("cur_0", "cur_1"), f"VALUES ('{self.tag()}'), ('{self.tag()}')"
        sql = self.one(
            f"DECLARE {name} CURSOR WITH HOLD FOR {rows}",
            f"DECLARE {name} SCROLL CURSOR WITH HOLD FOR {rows}",
            f"DECLARE {name} CURSOR FOR {rows}",
            f"FETCH 1 FROM {name}",
            f"FETCH ALL FROM {name}",
            f"MOVE 1 FROM {name}",
            f"CLOSE {name}",
            "CLOSE ALL",
        )
        return Statement("cursor", sql)

    def listen(self) -> Statement:
        """LISTEN, NOTIFY, UNLISTEN on this client's channels."""
        channel = self.one(f"chan_{self.slot}", f'"Chan_{self.slot}"')
        sql = self.one(
            f"LISTEN {channel}",
            f"LISTEN {channel}",
            f"NOTIFY {channel}, '{self.tag()}'",
            f"NOTIFY {channel}",
            f"SELECT pg_notify('chan_{self.slot}', '{self.tag()}')",
            f"UNLISTEN {channel}",
            "UNLISTEN *",
        )
        return Statement("listen", sql)

    def sequence(self) -> Statement:
        """Sequences; only this client draws from its own."""
        name = f"public.seq_c{self.slot}"
        sql = self.one(
            f"SELECT nextval('{name}')",
            f"SELECT currval('{name}')",
            "SELECT lastval()",
            f"SELECT setval('{name}', {self.dice.randrange(1, 1000)})",
        )
        return Statement("sequence", sql)

    def load(self) -> Statement:
        """LOAD of a library that every server has."""
        return Statement("load", "LOAD 'plpgsql'")

    # Reading

    def read(self) -> Statement:
        """Read one thing that depends on the session."""
        sql = self.one(
            f"SHOW {self.dice.choice(tuple(PLAIN))}",
            "SHOW search_path",
            "SHOW TIME ZONE",
            "SHOW SESSION AUTHORIZATION",
            "SELECT current_user, session_user",
            "SELECT name FROM place",
            "SELECT coalesce(nullif(current_setting('app.tenant_id', true), ''), 'none')",
            "SELECT '2026-03-04'::date, '1 day 2 hours'::interval, '\\x41'::bytea, 0.1::float8",
            "SELECT E'a\\\\b', 'c\\d'",
            f"SELECT '{self.tag()}'",
            "",
        )
        return Statement("read", sql)


Word = Callable[[Words], Statement]
# How often each kind comes up, of all that is neither transaction control nor a look.
WEIGHTS: Sequence[tuple[int, Word]] = (
    (16, Words.set_session),
    (9, Words.set_local),
    (5, Words.reset),
    (4, Words.reset_all),
    (5, Words.discard),
    (2, Words.driver_reset),
    (12, Words.set_config),
    (1, Words.update_settings),
    (6, Words.special_set),
    (8, Words.role),
    (7, Words.function),
    (9, Words.prepare),
    (9, Words.temporary),
    (7, Words.lock),
    (6, Words.cursor),
    (6, Words.listen),
    (7, Words.sequence),
    (1, Words.load),
    (20, Words.read),
    (5, Words.fault),
)
