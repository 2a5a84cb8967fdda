"""What running SQL promises: one statement on one table, counted, all or nothing, and the truth about COMMIT."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest
from pydantic import ValidationError

from actions.postgres.connection import open_connection
from actions.postgres.execute import Execute
from remediator.errors import OutcomeUnknown, PermanentError, PermissionMissing, PlanRefused, PreconditionChanged, TemporaryError
from remediator.model import Health, Plan
from remediator.testing import LocalContext
from tests.actions.postgres.bench import DAEMON, DATABASE, Bench

EXECUTE = Execute()
LOCK = "UPDATE accounts SET locked = true WHERE owner = $1"


@pytest.fixture
async def ctx(bench: Bench) -> LocalContext:
    """Lend a context whose role may change the table of accounts, which has four rows."""
    await bench.grant_exactly(EXECUTE.permissions, "accounts", "notes")
    await bench.root.execute("TRUNCATE accounts, notes")
    await bench.root.execute("INSERT INTO accounts SELECT i, 'owner ' || i FROM generate_series(1, 4) AS i")
    return bench.context()


async def plan(ctx: LocalContext, sql: str, *args: Any, **params: Any) -> Plan:
    """Plan a statement with room for ten rows."""
    return await EXECUTE.plan(Execute.Params(**{"connection": "main", "sql": sql, "args": args, "max_rows": 10, **params}), ctx)


async def locked(bench: Bench) -> int:
    """Count the locked accounts."""
    return int(await bench.root.fetchval("SELECT count(*) FROM accounts WHERE locked"))


async def test_the_plan_names_the_table_and_counts_the_ceiling(ctx: LocalContext) -> None:
    """Target, lock and scope are the table; what is touched is the ceiling on rows; approvers see the SQL."""
    found = await plan(ctx, LOCK, "owner 1", max_rows=3)
    target = found.targets[0]
    assert target.id == target.lock == f"postgres:main/{DATABASE}/table/public.accounts"
    assert target.scope == {"database": DATABASE, "schema": "public", "table": "public.accounts"}
    assert found.impact.touched == 3
    assert found.changes[0].after == {"sql": LOCK, "args": ["owner 1"], "max_rows": 3}


async def test_s04_refusals_quote_no_rows(bench: Bench, ctx: LocalContext) -> None:
    """The server's DETAIL holds whole rows, which would go into pages and to viewers; what is wrong is said without it."""
    for text in ("UPDATE accounts SET owner = NULL WHERE id = 3", "UPDATE accounts SET id = 4 WHERE id = 3"):
        with pytest.raises(PermanentError, match="violates") as caught:
            await EXECUTE.apply(await plan(ctx, text), ctx)
        assert "DETAIL" not in str(caught.value)
        assert "(" not in str(caught.value).removesuffix("(23502)").removesuffix("(23505)")
    with pytest.raises(PermanentError) as caught:
        await EXECUTE.plan(Execute.Params(connection="main", sql="UPDATE y.z SET a = 1".replace("y", "y" * 5000), max_rows=1), ctx)
    assert len(str(caught.value)) < 1_000
    assert await locked(bench) == 0


@pytest.mark.parametrize(("ceiling", "floor"), [(3, 1), (10, 5)])
async def test_too_many_or_too_few_rows_are_rolled_back(bench: Bench, ctx: LocalContext, ceiling: int, floor: int) -> None:
    """Four rows match: a ceiling of three and a floor of five both undo everything."""
    found = await plan(ctx, "UPDATE accounts SET locked = true", max_rows=ceiling, min_rows=floor)
    with pytest.raises(PermanentError, match="4 rows, allowed are"):
        await EXECUTE.apply(found, ctx)
    assert await locked(bench) == 0


async def test_s18_the_kill_switch_rolls_back_what_was_not_committed(bench: Bench, ctx: LocalContext) -> None:
    """The statement may have waited for minutes: thrown meanwhile, its transaction is not committed, and later it may be done."""
    found = await plan(ctx, LOCK, "owner 1")
    ctx._halted = lambda: "paused by anna"
    with pytest.raises(TemporaryError, match=r"^stopped: paused by anna$"):
        await EXECUTE.apply(found, ctx)
    assert await locked(bench) == 0
    ctx._halted = lambda: None
    await EXECUTE.apply(found, ctx)
    assert await locked(bench) == 1


async def test_s03_changing_nothing_is_no_success(ctx: LocalContext) -> None:
    """By default at least one row must change."""
    with pytest.raises(PermanentError, match="0 rows"):
        await EXECUTE.apply(await plan(ctx, LOCK, "nobody"), ctx)


async def test_no_row_is_fine_where_the_rule_says_so(ctx: LocalContext) -> None:
    """`min_rows: 0`."""
    found = await plan(ctx, LOCK, "nobody", min_rows=0)
    receipt = await EXECUTE.apply(found, ctx)
    assert receipt.data["rows"] == 0
    assert (await EXECUTE.verify(found, receipt, ctx)).health is Health.HEALTHY


@pytest.mark.parametrize("hostile", ["owner 1' OR 'a'='a", "x'; DROP TABLE accounts; --", "$1", "\\"])
async def test_arguments_are_bound(bench: Bench, ctx: LocalContext, hostile: str) -> None:
    """Values from alerts are data."""
    with pytest.raises(PermanentError, match="0 rows"):
        await EXECUTE.apply(await plan(ctx, LOCK, hostile), ctx)
    assert await bench.root.fetchval("SELECT count(*) FROM accounts WHERE NOT locked") == 4


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1",
        "SELECT * FROM accounts FOR UPDATE",
        "UPDATE accounts SET locked = true RETURNING id",
        "WITH d AS (DELETE FROM notes RETURNING account) UPDATE accounts SET locked = true WHERE id IN (SELECT account FROM d)",
        "UPDATE accounts SET locked = true; DELETE FROM notes",
        "TRUNCATE accounts",
        "DROP TABLE accounts",
        "DO $$ BEGIN DELETE FROM accounts; END $$",
        "COMMIT",
        "ANALYZE UPDATE accounts SET locked = true",
        "CREATE TABLE copied AS SELECT * FROM accounts",
        "UPDATE pg_catalog.pg_class SET relname = 'x' WHERE relname = 'nosuch'",
        "UPDATE nosuch SET a = 1",
        "nonsense",
    ],
)
async def test_only_one_counted_change_of_one_table_is_planned(bench: Bench, ctx: LocalContext, sql: str) -> None:
    """Everything whose rows can't be counted is refused before anything runs."""
    with pytest.raises((PlanRefused, PermanentError)):
        await plan(ctx, sql)
    assert await locked(bench) == 0
    assert await bench.root.fetchval("SELECT count(*) FROM accounts") == 4


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("INSERT INTO accounts SELECT i, 'new' FROM generate_series(10, 12) AS i", 3),
        ("DELETE FROM accounts WHERE id > $1", 2),
        ("WITH picked AS (SELECT 1 AS id) UPDATE accounts SET locked = true WHERE id IN (SELECT id FROM picked)", 1),
        ("MERGE INTO accounts AS a USING (VALUES (1), (9)) AS v(id) ON a.id = v.id WHEN MATCHED THEN UPDATE SET locked = true", 1),
    ],
)
async def test_every_kind_of_change_is_counted(ctx: LocalContext, sql: str, rows: int) -> None:
    """INSERT, UPDATE, DELETE, MERGE."""
    found = await plan(ctx, sql, *([2] if "$1" in sql else []))
    receipt = await EXECUTE.apply(found, ctx)
    assert receipt.data["rows"] == rows
    assert (await EXECUTE.verify(found, receipt, ctx)).health is Health.HEALTHY


async def test_another_table_under_the_same_name_stops_it(bench: Bench, ctx: LocalContext) -> None:
    """The table is pinned: what was made anew in the meantime is not what was approved."""
    await bench.root.execute("DROP TABLE IF EXISTS jobs")
    await make_jobs(bench)
    found = await plan(ctx, "DELETE FROM jobs")
    await bench.root.execute("DROP TABLE jobs")
    await make_jobs(bench)
    with pytest.raises(PreconditionChanged):
        await EXECUTE.apply(found, ctx)
    assert await bench.root.fetchval("SELECT count(*) FROM jobs") == 1


async def test_a_lock_held_by_somebody_stops_it_soon(bench: Bench, ctx: LocalContext) -> None:
    """Waiting for a lock is bounded, and nothing is written."""
    found = await plan(ctx, "UPDATE accounts SET locked = true", lock_timeout="50ms")
    async with bench.root.transaction():
        await bench.root.execute("SELECT * FROM accounts FOR UPDATE")
        with pytest.raises(TemporaryError, match="lock timeout"):
            await EXECUTE.apply(found, ctx)
    assert await locked(bench) == 0


async def test_a_slow_statement_is_stopped_and_rolled_back(bench: Bench, ctx: LocalContext) -> None:
    """The server's own timeout ends it."""
    found = await plan(ctx, "UPDATE accounts SET locked = (SELECT true FROM pg_sleep(3600))", timeout="50ms")
    with pytest.raises(TemporaryError, match="statement timeout"):
        await EXECUTE.apply(found, ctx)
    assert await locked(bench) == 0


async def test_a_constraint_that_fails_at_commit_writes_nothing(bench: Bench, ctx: LocalContext) -> None:
    """Deferred constraints are checked by COMMIT; its error says that nothing was written."""
    found = await plan(ctx, "INSERT INTO notes (id, account) VALUES (1, 99)")
    with pytest.raises(PermanentError, match="foreign key"):
        await EXECUTE.apply(found, ctx)
    assert await bench.root.fetchval("SELECT count(*) FROM notes") == 0


async def test_a_table_without_rights_is_named(bench: Bench, ctx: LocalContext) -> None:
    """Missing rights are found when planning."""
    await bench.root.execute(f"REVOKE UPDATE ON accounts FROM {DAEMON}")
    with pytest.raises(PermissionMissing, match="accounts"):
        await plan(ctx, LOCK, "owner 1")


async def test_a_session_lost_before_commit_wrote_nothing(bench: Bench, ctx: LocalContext) -> None:
    """The server rolls back what was not committed; that is known, hence temporary."""
    found = await plan(ctx, "UPDATE accounts SET locked = (SELECT true FROM pg_sleep(3600))")
    task = asyncio.ensure_future(EXECUTE.apply(found, ctx))
    await end_daemon(bench, "wait_event = 'PgSleep'")
    with pytest.raises(TemporaryError, match="connection was lost"):
        await task
    assert await locked(bench) == 0


async def test_a_lost_answer_to_commit_is_looked_up_and_was_rolled_back(bench: Bench, ctx: LocalContext) -> None:
    """The session ends while COMMIT runs a deferred trigger: the transaction's number tells that it was rolled back."""
    await slow_commit(bench)
    found = await plan(ctx, "INSERT INTO notes (id, account) VALUES (1, 1)")
    task = asyncio.ensure_future(EXECUTE.apply(found, ctx))
    await end_daemon(bench, "query = 'COMMIT' AND wait_event = 'PgSleep'")
    with pytest.raises(TemporaryError, match="rolled transaction"):
        await task
    await bench.root.execute("DROP TRIGGER slow ON notes")
    assert await bench.root.fetchval("SELECT count(*) FROM notes") == 0


async def test_a_lost_answer_to_commit_is_looked_up_and_was_committed(
    bench: Bench, ctx: LocalContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer is lost after the server committed: the number tells that it did, and the receipt is given."""
    await lose_answers_to_commit(monkeypatch)
    found = await plan(ctx, LOCK, "owner 1")
    receipt = await EXECUTE.apply(found, ctx)
    assert receipt.data["rows"] == 1
    assert await locked(bench) == 1
    assert (await EXECUTE.verify(found, receipt, ctx)).health is Health.HEALTHY


async def test_s17_another_server_under_the_same_address_can_not_vouch(
    bench: Bench, ctx: LocalContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a fail-over the transaction's number may be somebody else's: neither look-up nor verify believes it."""
    found = await plan(ctx, LOCK, "owner 1")
    receipt = await EXECUTE.apply(found, ctx)
    moved = dataclasses.replace(receipt, data={**receipt.data, "server": "2020-01-01 00:00:00+00"})
    assert (await EXECUTE.verify(found, moved, ctx)).health is Health.UNKNOWN
    await lose_answers_to_commit(monkeypatch)
    monkeypatch.setattr("actions.postgres.sql.TRANSACTION_ID", "SELECT pg_current_xact_id_if_assigned()::text AS number, 'other' AS server")
    with pytest.raises(OutcomeUnknown, match="says nothing"):
        await EXECUTE.apply(await plan(ctx, LOCK, "owner 2"), ctx)


async def test_s17_a_lost_answer_that_can_not_be_looked_up_is_outcome_unknown(
    bench: Bench, ctx: LocalContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No new connection either: only a person can say."""
    await lose_answers_to_commit(monkeypatch)
    found = await plan(ctx, LOCK, "owner 1")
    opened = [0]

    async def once(*args: Any) -> Any:
        opened[0] += 1
        if opened[0] > 1:
            raise TemporaryError("no way in")
        return await open_connection(*args)

    monkeypatch.setattr("actions.postgres.execute.open_connection", once)
    with pytest.raises(OutcomeUnknown, match="can't be looked up: no way in"):
        await EXECUTE.apply(found, ctx)
    assert await locked(bench) == 1


async def lose_answers_to_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the server commit and then cut the connection, as a network would after the last packet out."""
    import asyncpg

    genuine = asyncpg.Connection.execute

    async def execute(self: Any, query: str, *args: Any, **options: Any) -> Any:
        answer = await genuine(self, query, *args, **options)
        if query == "COMMIT":
            self.terminate()
            raise asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")
        return answer

    monkeypatch.setattr(asyncpg.Connection, "execute", execute)


async def make_jobs(bench: Bench) -> None:
    """Make a table with one row that the daemon's role may change."""
    await bench.root.execute("CREATE TABLE jobs (id int); INSERT INTO jobs VALUES (1)")
    await bench.root.execute(f"GRANT ALL ON jobs TO {DAEMON}")


async def slow_commit(bench: Bench) -> None:
    """Make COMMIT sleep when a note was added."""
    await bench.root.execute("""
        CREATE OR REPLACE FUNCTION sleep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(3600); RETURN NULL; END';
        CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON notes DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION sleep();
    """)


async def end_daemon(bench: Bench, condition: str) -> None:
    """End the daemon's session as soon as it is where `condition` says."""
    query = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1 AND {condition}"  # noqa: S608
    from tests.servers.ports import eventually

    async def ended() -> bool:
        return bool(await bench.root.fetch(query, DAEMON))

    await eventually(ended, what=f"the daemon's session is where {condition}")


@pytest.mark.parametrize("wrong", [{"max_rows": 0}, {"max_rows": 1, "min_rows": 2}, {"timeout": "11m"}, {"sql": ""}, {"args": [{"a": 1}]}])
def test_parameters_outside_their_bounds_are_refused(wrong: dict[str, Any]) -> None:
    """A ceiling is a must."""
    with pytest.raises(ValidationError):
        Execute.Params(**{"connection": "main", "sql": LOCK, "max_rows": 1, **wrong})


def test_the_sql_is_marked_as_code() -> None:
    """Rules can't interpolate into it (decision 25)."""
    assert Execute.Params.model_json_schema()["properties"]["sql"]["x-remediator-code"] is True
