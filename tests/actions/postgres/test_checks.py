"""What the checks find on a real server, with exactly the declared grants, and that it is what they declare."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from actions.postgres import PROVIDER
from actions.postgres.activity import Connections, Locks, LongRunning, Ping
from actions.postgres.query import Query
from actions.postgres.statistics import ReplicationLag, Sizes, SlowQueries
from remediator.action import Check
from remediator.errors import CheckFailed
from remediator.testing import LocalContext, assert_facts_match
from tests.actions.postgres.bench import DAEMON, DATABASE, Bench


@pytest.fixture
async def ctx(bench: Bench) -> LocalContext:
    """Lend a context whose role may do what all checks together need."""
    await grant(bench, *PROVIDER.checks)
    return bench.context()


async def grant(bench: Bench, *checks: type[Check[Any]]) -> None:
    """Give the daemon's role what the checks declare, and tables to select from."""
    permissions = {permission.resource: permission for check in checks for permission in check.permissions}
    await bench.grant_exactly(permissions.values(), "accounts", "notes")


async def look(check: type[Check[Any]], ctx: LocalContext, **params: Any) -> dict[str, Any]:
    """Run a check on connection `main` and hold its facts against the declaration."""
    facts = dict(await check().run(check.Params(connection="main", **params), ctx))
    assert_facts_match(check, facts)
    return facts


@pytest.mark.parametrize("check", PROVIDER.checks, ids=lambda check: check.name)
def test_examples_and_descriptions_are_there(check: type[Check[Any]]) -> None:
    """Every check says what it does, and its example fits its parameters."""
    check.Params.model_validate(dict(check.example))
    assert (check.__doc__ or "").strip()
    assert check.permissions


@pytest.mark.parametrize("check", PROVIDER.checks, ids=lambda check: check.name)
async def test_declared_grants_are_enough_and_needed(bench: Bench, check: type[Check[Any]]) -> None:
    """With the declared grants the check answers; without any one of them it fails and names it."""
    params = {"sql": "SELECT count(*) FROM accounts"} if check is Query else {}
    await grant(bench, check)
    assert await look(check, bench.context(), **params)
    for missing in check.permissions:
        await bench.grant_exactly((permission for permission in check.permissions if permission is not missing), "accounts")
        named = {"CONNECT": "CONNECT", "member": missing.resource}.get(missing.verbs[0], "accounts")
        with pytest.raises(CheckFailed, match=named):
            await look(check, bench.context(), **params)


# --- ping ------------------------------------------------------------------------------------------------------------------


async def test_ping_tells_version_latency_and_start(ctx: LocalContext) -> None:
    """A reachable server."""
    facts = await look(Ping, ctx)
    assert (facts["reachable"], facts["reason"], facts["in_recovery"]) == (True, "", False)
    assert timedelta() < facts["latency"] < timedelta(seconds=5)
    assert facts["started"] < datetime.now(UTC)
    assert facts["version"].startswith("1")


async def test_the_first_ping_leaves_its_connection_as_the_kept_one(bench: Bench, ctx: LocalContext) -> None:
    """Later pings open and close their own; the daemon holds one session, not more."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE usename = $1"
    await look(Ping, ctx)
    await look(Ping, ctx)
    await look(Connections, ctx)
    assert await bench.root.fetchval(query, DAEMON) == 1


# --- connections -----------------------------------------------------------------------------------------------------------


async def test_connections_counts_by_state_database_and_application(bench: Bench, ctx: LocalContext) -> None:
    """Used, free and percent of the limit; the daemon's session and root's are counted."""
    await bench.idle("web-1", "web-2")
    await bench.busy("worker")
    await bench.in_transaction("open")
    facts = await look(Connections, ctx, idle_over="100ms")
    assert (facts["used"], facts["max"], facts["reserved"], facts["free"]) == (6, 30, 3, 21)
    assert facts["percent"] == pytest.approx(20.0)
    assert facts["exhausted"] is False
    assert facts["by_state"] == {"idle": 3, "active": 2, "idle in transaction": 1}
    assert facts["by_database"] == {DATABASE: 6}
    assert facts["by_application"]["web-1"] == 1
    assert (facts["idle_over"], facts["idle_in_transaction_over"]) == (2, 1)
    assert facts["idle_longest"] > timedelta(milliseconds=100)


async def test_connections_leaves_idle_counts_out_when_activity_is_not_tracked(bench: Bench, ctx: LocalContext) -> None:
    """With track_activities off nobody knows who is idle: unknown, not zero."""
    await (await bench.connect("blind", user="postgres", password=bench.server.password)).execute("SET track_activities = off")
    facts = await look(Connections, ctx)
    assert facts["by_state"]["disabled"] == 1
    assert not {"idle_over", "idle_in_transaction_over", "idle_longest"} & set(facts)


# --- long_running, locks -----------------------------------------------------------------------------------------------------


async def test_long_running_finds_statements_and_transactions(bench: Bench, ctx: LocalContext) -> None:
    """A sleeping statement and an open transaction; SQL text is evidence and cut to 500 characters."""
    await bench.busy("slow-1", statement=f"SELECT pg_sleep(3600) /* {'x' * 900} */")
    await bench.in_transaction("open")
    facts = await look(LongRunning, ctx, longer_than="100ms")
    assert (facts["found"], facts["count"], facts["transactions"], facts["truncated"]) == (True, 1, 2, False)
    assert facts["pids"] == [await bench.pid("slow-1")]
    assert facts["longest"] > timedelta(milliseconds=100)
    texts = [row["query"] for row in facts["rows"] if row["application"] == "slow-1"]
    assert [len(text) for text in texts] == [500]
    assert LongRunning.facts["rows"].evidence


async def test_long_running_without_any_is_a_true_zero(bench: Bench, ctx: LocalContext) -> None:
    """The server answered and the database is there: zero is known."""
    await bench.idle("web-1")
    facts = await look(LongRunning, ctx, longer_than="1h", database=DATABASE)
    assert (facts["found"], facts["count"], facts["longest"], facts["pids"]) == (True, 0, timedelta(), [])


@pytest.mark.parametrize("name", ["nosuch", "shop'; DROP TABLE accounts; --", "SHOP"])
async def test_s03_long_running_in_no_such_database_knows_nothing(bench: Bench, ctx: LocalContext, name: str) -> None:
    """`found: false` and no counts: zero statements in a database that is not there prove nothing."""
    assert await look(LongRunning, ctx, database=name) == {"found": False}
    assert await bench.root.fetchval("SELECT to_regclass('public.accounts') IS NOT NULL")


async def test_s04_more_than_twenty_samples_are_truncated(bench: Bench, ctx: LocalContext) -> None:
    """The count stays true, the samples are cut and say so."""
    names = [f"slow-{number}" for number in range(21)]
    await bench.busy(*names)
    facts = await look(LongRunning, ctx, longer_than="100ms")
    assert (facts["count"], len(facts["rows"]), len(facts["pids"]), facts["truncated"]) == (21, 20, 21, True)


async def test_locks_names_waiters_and_the_one_who_blocks_them(bench: Bench, ctx: LocalContext) -> None:
    """A waits for B waits for the holder: one root blocker, two waiters."""
    await bench.root.execute("GRANT ALL ON accounts TO shop_app")
    await bench.in_transaction("holder")
    await bench.sessions["holder"].execute("LOCK TABLE accounts IN ACCESS EXCLUSIVE MODE")
    for name in ("waiter-1", "waiter-2"):
        await bench.run(name, "SELECT count(*) FROM accounts")
        await bench.wait_until([name], "wait_event_type = 'Lock' AND $2::interval IS NOT NULL", timedelta())
    facts = await look(Locks, ctx)
    assert (facts["waiting"], facts["blockers"]) == (2, 1)
    assert facts["blocker_pids"] == [await bench.pid("holder")]
    assert facts["longest_wait"] > timedelta()
    assert {row["relation"] for row in facts["rows"]} == {"public.accounts"}


async def test_locks_without_any(bench: Bench, ctx: LocalContext) -> None:
    """Nobody waits."""
    facts = await look(Locks, ctx)
    assert (facts["waiting"], facts["blockers"], facts["blocker_pids"], facts["longest_wait"]) == (0, 0, [], timedelta())


# --- slow_queries, sizes -------------------------------------------------------------------------------------------------------


async def test_slow_queries_reads_the_slowest_first(bench: Bench, ctx: LocalContext) -> None:
    """Mean time decides; the text is evidence."""
    await bench.forget_statements()
    await (await bench.connect("web-1")).execute("SELECT pg_sleep(0.05)")
    facts = await look(SlowQueries, ctx, database=DATABASE, limit=1)
    assert (facts["found"], facts["reason"]) == (True, "")
    assert "pg_sleep" in facts["rows"][0]["query"]
    assert facts["slowest_mean"] >= timedelta(milliseconds=50)
    assert facts["truncated"] is True
    assert facts["since"] < datetime.now(UTC)


async def test_s03_slow_queries_without_the_extension_is_not_found(bench: Bench, ctx: LocalContext) -> None:
    """A database without pg_stat_statements has no slow queries to tell about: nothing is known."""
    await bench.root.execute(f"GRANT CONNECT ON DATABASE template1 TO {DAEMON}")
    assert await look(SlowQueries, bench.context(database="template1")) == {"found": False, "reason": "no_extension"}
    assert await look(SlowQueries, ctx, database="nosuch") == {"found": False, "reason": "no_database"}


async def test_sizes_measures_databases_and_largest_tables(bench: Bench, ctx: LocalContext) -> None:
    """Bytes, the largest first."""
    await bench.root.execute("DROP TABLE IF EXISTS fat; CREATE TABLE fat AS SELECT repeat('x', 1000) FROM generate_series(1, 1000)")
    await bench.root.execute("ANALYZE fat")
    facts = await look(Sizes, ctx, tables=1)
    assert list(facts["tables"]) == ["public.fat"]
    assert facts["tables"]["public.fat"] > 1_000_000
    assert facts["total"] == sum(facts["databases"].values())
    assert facts["databases"][DATABASE] > facts["tables"]["public.fat"]


async def test_sizes_waits_no_longer_than_the_statement_timeout_for_a_lock(bench: Bench, ctx: LocalContext) -> None:
    """A table under an exclusive lock makes the check fail: unknown, and soon."""
    async with bench.root.transaction():
        await bench.root.execute("LOCK TABLE accounts IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(CheckFailed, match="measuring"):
            await look(Sizes, bench.context(statement_timeout="100ms"), tables=100)


# --- query ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "args", "value"),
    [
        ("SELECT 42", [], 42),
        ("SELECT 2::numeric / 4", [], 0.5),
        ("SELECT 7::numeric", [], 7),
        ("SELECT $1::text", ["a'; DROP TABLE accounts; --"], "a'; DROP TABLE accounts; --"),
        ("SELECT $1::int + $2::int", [1, 2], 3),
        ("SELECT $1 = ANY($2::text[])", ["a", ["a", "b"]], True),
        ("SELECT interval '90 seconds'", [], timedelta(seconds=90)),
        ("SELECT timestamptz '2024-05-06 07:08:09Z'", [], datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)),
        ("SELECT date '2024-05-06'", [], "2024-05-06"),
        ("SELECT $1::text::uuid", ["6f9619ff-8b86-d011-b42d-00cf4fc964ff"], "6f9619ff-8b86-d011-b42d-00cf4fc964ff"),
        ("SELECT ARRAY[1, NULL, 3]", [], [1, 3]),
        ("SELECT '{\"a\": 1}'::jsonb", [], '{"a": 1}'),
        ("SELECT '\\xdeadbeef'::bytea", [], "deadbeef"),
        ("SHOW transaction_read_only", [], "on"),
        ("VALUES (1), (2)", [], 1),
        ("SELECT repeat('x', 1000)", [], "x" * 500),
    ],
)
async def test_query_returns_the_first_value_in_its_type(ctx: LocalContext, text: str, args: list[Any], value: Any) -> None:
    """Values of PostgreSQL's types become values of the expression language; arguments are bound."""
    facts = await look(Query, ctx, sql=text, args=args)
    assert facts["value"] == value
    assert type(facts["value"]) is type(value)
    assert (facts["found"], facts["value_found"]) == (True, True)


async def test_query_rows_are_counted_and_cut(ctx: LocalContext) -> None:
    """More rows than max_rows: truncated, and the count is unknown."""
    facts = await look(Query, ctx, sql="SELECT i AS n, NULL AS nothing FROM generate_series(1, 3) AS i", max_rows=3)
    assert (facts["count"], facts["truncated"]) == (3, False)
    assert facts["rows"] == [{"n": 1}, {"n": 2}, {"n": 3}]
    facts = await look(Query, ctx, sql="SELECT i AS n FROM generate_series(1, 4) AS i", max_rows=3)
    assert "count" not in facts
    assert (len(facts["rows"]), facts["truncated"]) == (3, True)


async def test_s04_query_facts_stay_below_64_kilobytes(ctx: LocalContext) -> None:
    """A hundred wide rows are cut to what fits."""
    columns = ", ".join(f"repeat('é', 400) AS c{number}" for number in range(10))
    facts = await look(Query, ctx, sql=f"SELECT {columns} FROM generate_series(1, 100)", max_rows=100)  # noqa: S608
    assert facts["truncated"] is True
    assert 0 < len(facts["rows"]) < 100
    assert facts["count"] == 100


async def test_s03_query_without_rows_knows_nothing_else(ctx: LocalContext) -> None:
    """No row is found: false."""
    assert await look(Query, ctx, sql="SELECT id FROM accounts WHERE id = -1") == {"found": False}


async def test_s04_query_leaves_out_a_value_that_is_too_large(ctx: LocalContext) -> None:
    """A list of a hundred long texts is no fact: unknown, and truncated says so."""
    facts = await look(Query, ctx, sql="SELECT array_agg(repeat('x', 500)) FROM generate_series(1, 100)")
    assert facts["truncated"] is True
    assert "value" not in facts


@pytest.mark.parametrize("text", ["SELECT 'NaN'::float8", "SELECT 'NaN'::numeric", "SELECT '-infinity'::float8"])
async def test_query_not_a_number_is_no_value(ctx: LocalContext, text: str) -> None:
    """Comparisons with NaN prove nothing."""
    facts = await look(Query, ctx, sql=text)
    assert facts["value_found"] is False


async def test_query_null_is_no_value(ctx: LocalContext) -> None:
    """There are no nullable facts."""
    facts = await look(Query, ctx, sql="SELECT max(id) FROM accounts WHERE id = -1")
    assert facts["value_found"] is False
    assert "value" not in facts


@pytest.mark.parametrize(
    "text",
    [
        "DELETE FROM accounts",
        "WITH d AS (DELETE FROM accounts RETURNING id) SELECT count(*) FROM d",
        "SELECT 1; DELETE FROM accounts",
        "COMMIT",
        "TRUNCATE accounts",
        "COPY accounts TO PROGRAM 'cat'",
        "DO $$ BEGIN DELETE FROM accounts; END $$",
        "SELECT nextval('notes_id_seq')",
        "SELECT * FROM accounts FOR UPDATE",
        "SET ROLE postgres",
    ],
)
async def test_query_can_not_write(bench: Bench, ctx: LocalContext, text: str) -> None:
    """Whatever a rule's author writes by mistake, a check changes nothing; the check fails, and the next one works."""
    await bench.root.execute("TRUNCATE accounts CASCADE; INSERT INTO accounts VALUES (1, 'somebody')")
    await bench.root.execute(f"GRANT ALL ON accounts TO {DAEMON}; GRANT ALL ON SEQUENCE notes_id_seq TO {DAEMON}")
    with pytest.raises(CheckFailed):
        await look(Query, ctx, sql=text)
    assert await bench.root.fetchval("SELECT count(*) FROM accounts") == 1
    assert (await look(Query, ctx, sql="SELECT 1"))["value"] == 1


@pytest.mark.parametrize(
    "text",
    [
        "SELECT pg_terminate_backend(1)",
        "SELECT PG_CANCEL_BACKEND (1)",
        "SELECT pg_advisory_lock(1)",
        "SELECT set_config('a.b', 'c', false)",
    ],
)
def test_query_refuses_functions_that_act(text: str) -> None:
    """A read-only transaction does not stop them, so they are refused by name."""
    with pytest.raises(ValidationError, match="a check only reads"):
        Query.Params(connection="main", sql=text)


async def test_query_stops_at_its_timeout(ctx: LocalContext) -> None:
    """A slow query is unknown, and the kept connection lives on."""
    with pytest.raises(CheckFailed, match="statement timeout"):
        await look(Query, ctx, sql="SELECT pg_sleep(3600)", timeout="50ms")
    assert (await look(Query, ctx, sql="SELECT 1"))["value"] == 1


async def test_query_arguments_of_the_wrong_type_are_explained(ctx: LocalContext) -> None:
    """The message says what the driver expected."""
    with pytest.raises(CheckFailed, match=r"\$1"):
        await look(Query, ctx, sql="SELECT $1::int", args=["seven"])


async def test_query_sees_the_roles_own_search_path(bench: Bench, ctx: LocalContext) -> None:
    """Unqualified names are found as for any client; the daemon's own statements see pg_catalog only."""
    assert (await look(Query, ctx, sql="SHOW search_path"))["value"] == '"$user", public'
    assert (await look(Query, ctx, sql="SELECT count(*) FROM accounts"))["found"] is True


async def test_replication_lag_without_standbys_is_not_found(ctx: LocalContext) -> None:
    """No standby: nothing is known about lag."""
    assert await look(ReplicationLag, ctx) == {"found": False, "role": "primary"}
