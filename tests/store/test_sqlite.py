"""The SQLite store: the contract, and what only it promises."""

from __future__ import annotations

import asyncio
import sqlite3
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from remediator import audit
from remediator.errors import LeaseLost
from remediator.guards.base import Case
from remediator.guards.pacing import Budgets
from remediator.model import Plan, RunState, StepState, Target
from remediator.records import Step, Use
from remediator.rules.model import Budget, BudgetScope, GuardSpec
from remediator.store import sqlite_queries
from remediator.store.protocol import Reads, Snapshot
from remediator.store.sqlite import SqliteStore
from tests.builders import bounds, rule
from tests.store.contract import StoreContract, put
from tests.store.make import LEASE, NOW, Clock, event, incident, run


class SqliteWorld:
    """A SQLite store on a temporary file, with clocks that the test moves."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = Clock()
        self.store = self.make()

    def make(self, **options: Any) -> SqliteStore:
        return SqliteStore(self.path, clock=self.clock.wall, monotonic=self.clock.monotonic, **options)

    def forward(self, span: timedelta) -> None:
        self.clock.forward(span)

    async def reopen(self) -> None:
        await self.store.aclose()
        self.store = self.make()
        await self.store.open()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[SqliteWorld]:
    made = SqliteWorld(tmp_path / "store.db")
    await made.store.open()
    yield made
    await made.store.aclose()


class TestContract(StoreContract):
    """Everything that any store promises."""


# --- leases belong to the process


async def test_a_restart_voids_all_leases(world: SqliteWorld) -> None:
    """Runs that an earlier process held are due at once, whatever wake-up they had; the earlier fence is refused after a claim."""
    await put(world.store, runs=[run(1), run(2, wake_at=None), run(3, wake_at=None)])
    await put(world.store, claim_for="w", claim=[run(1).id, run(2).id])
    held = await world.store.run(run(1).id)
    assert held is not None
    held = replace(held, state=RunState.APPLYING, wake_at=NOW + timedelta(hours=1))
    await put(world.store, runs=[held])
    await world.reopen()
    claimed = await world.store.claim("w", limit=9, lease=LEASE)
    assert sorted(one.number for one in claimed) == [1, 2]
    with pytest.raises(LeaseLost):
        await put(world.store, runs=[held])


async def test_s24_a_jump_of_the_wall_clock_does_not_end_leases(world: SqliteWorld) -> None:
    """Semantics 24: leases are timed by the monotonic clock; a clock set forward lets nobody take a run that is held."""
    await put(world.store, runs=[run()])
    await world.store.claim("w", limit=1, lease=LEASE)
    world.clock.now += timedelta(days=1)
    assert await world.store.claim("x", limit=1, lease=LEASE) == []
    assert await world.store.renew("w", [run().id], lease=LEASE) == {run().id}


async def test_a_listener_that_fails_harms_nobody(world: SqliteWorld) -> None:
    """An error in `on_wake` goes to the loop's handler; the commit stands, its waiter and other listeners are served."""
    errors: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: errors.append(context["exception"]))
    heard: list[Sequence[str]] = []
    world.store.on_wake(lambda runs: [][len(runs)])
    world.store.on_wake(heard.append)
    await put(world.store, runs=[run()])
    await asyncio.sleep(0)
    assert heard == [[run().id]]
    assert [type(error) for error in errors] == [IndexError]


# --- nothing gets slower with history


def queries() -> dict[str, str]:
    """Return every SQL text of the store by name, the lists' included."""
    named = {name: text for name, text in vars(sqlite_queries).items() if name.isupper() and isinstance(text, str)}
    lists = [("incident",), ("incident", "state"), ("incident", "rule"), ("incident", "rule", "state")]
    lists += [("run", *filters) for filters in ((), ("state",), ("rule",), ("incident",), ("rule", "state"), ("incident", "rule", "state"))]
    lists += [("approval",), ("approval", "state"), ("episode",)]
    return named | {f"page_of{one}": sqlite_queries.page_of(*one) for one in lists}


SMALL_BY_NATURE = {"PAUSES", "LOCKS", "RULE_TEXTS", "BATCH_ADD"}
"""Read whole: tables that hold what is thrown or held now, or what people wrote, not history."""

PARTIAL = ("INDEX chain_changed", "INDEX message_due", "INDEX run_leased", "INDEX archive_unfinished")
"""Indexes that hold only what is still to be done; walking them whole is walking that."""

GIVEN = ("SCAN wanted", "SCAN json_each VIRTUAL TABLE", "MATERIALIZE wanted")
"""The list of keys that is asked for, walked from its beginning to its end."""

COUNTED_WHOLE = {"COUNT_RUNS", "COUNT_INCIDENTS"}
"""Gauges over all rows: walk an index in a reader's thread, never the rows."""


@pytest.mark.parametrize("name", queries())
async def test_no_query_scans_a_table(world: SqliteWorld, name: str) -> None:
    """Every query walks an index, and none sorts, so that a million past rows slow nothing down."""
    text = queries()[name]
    values = ["1"] * (("?1" in text) + ("?2" in text) or text.count("?"))
    plan = [row[3] for row in world.store._writer.execute(f"EXPLAIN QUERY PLAN {text}", values)]
    for line in plan:
        if name in SMALL_BY_NATURE or line.startswith(("SEARCH", "CORRELATED SCALAR SUBQUERY", *GIVEN)) or line.endswith(PARTIAL):
            continue
        if name in COUNTED_WHOLE:
            assert "SCAN" in line
            assert "USING COVERING INDEX" in line
            continue
        raise AssertionError(f"{name}: {line}")
    assert not any("TEMP B-TREE" in line for line in plan), plan


async def test_a_run_that_ended_before_there_was_a_column_is_found_by_its_body(world: SqliteWorld) -> None:
    """No row of an older version is passed over: it is searched, if slowly."""
    plan = Plan("a.b", "sets it", (Target("k:c/-/x/a", "k:c/-/x/a"),), {})
    ended = run(1, steps=(Step(1, "a.b", StepState.APPLIED, plan),), state=RunState.SUCCEEDED, ended_at=NOW)
    await put(world.store, runs=[ended])
    world.store._writer.execute("UPDATE run SET touches = NULL")
    assert await world.store.touching(["k:c/-/x/a"], since=NOW) == [ended]


@given(
    st.lists(st.tuples(st.integers(0, 90), st.booleans()), max_size=12),
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 60), st.sampled_from(BudgetScope)), min_size=1, max_size=3),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
async def test_s07_budget_decides_the_same_on_the_uses_that_matter(
    world: SqliteWorld, ages: list[tuple[int, bool]], budgets: list[tuple[int, int, BudgetScope]]
) -> None:
    """Thousands of uses are counted, and read only where a budget is used up: what is decided, and said, is the same as on all of them."""
    name = uuid.uuid4().hex
    uses = [Use(f"{name}-{n}", name, "t" if own else "other", NOW - timedelta(minutes=age)) for n, (age, own) in enumerate(ages)]
    await put(world.store, uses=uses)
    spec = GuardSpec(budgets=tuple(Budget(count, timedelta(minutes=span), per) for count, span, per in budgets))
    frozen = rule(name, guards=spec)
    reads = Reads(usage=[(name, "t")], usage_window=timedelta(minutes=60))
    some = replace(reads, usage_from=[(one.count, one.window) for one in spec.budgets])
    seen, every = await world.store.read(some), await world.store.read(reads)
    case = Case(run(id=f"{name}-0", rule=name, target="t"), incident(), NOW, NOW, frozen, frozen, bounds(), Snapshot(now=NOW))
    assert not case.bounds.budgets
    judged = [Budgets().judge(replace(case, snapshot=Snapshot(now=NOW, uses=one.uses))) for one in (seen, every)]
    assert judged[0] == judged[1]
    assert set(seen.uses) <= set(every.uses)
    if all(len(uses) < count for count, _, _ in budgets):
        assert seen.uses == ()


# --- the audit in the file


@pytest.fixture
async def chained(world: SqliteWorld) -> SqliteWorld:
    """Fill a store with three chains of several events, a checkpoint over them, and one more event."""
    for number in range(1, 4):
        await put(world.store, events=[event("a", n=number), event("b", n=number), event("c", n=number)])
    await world.store.checkpoint()
    await put(world.store, events=[event("a", n=4)])
    assert (await world.store.verify_audit()).faults == ()
    return world


def forge(world: SqliteWorld, *statements: str) -> None:
    """Change the file as somebody with write access would."""
    for statement in ("DROP TRIGGER event_is_final", "DROP TRIGGER event_is_kept", *statements):
        world.store._writer.execute(statement)


FORGERIES = {
    "an event's text": "UPDATE event SET body = replace(body, '\"n\":2', '\"n\":7') WHERE chain = 'b' AND seq = 2",
    "an event's hash": "UPDATE event SET hash = replace(hash, 'a', 'b') WHERE chain = 'b' AND seq = 2",
    "an event in the middle": "DELETE FROM event WHERE chain = 'b' AND seq = 2",
    "the first event": "DELETE FROM event WHERE chain = 'b' AND seq = 1",
    "the last event": "DELETE FROM event WHERE chain = 'b' AND seq = 3",
    "the last event after the checkpoint": "DELETE FROM event WHERE chain = 'a' AND seq = 4",
    "an event's place": "UPDATE event SET seq = 9 WHERE chain = 'b' AND seq = 3",
    "an event's chain": "UPDATE event SET chain = 'bb' WHERE chain = 'b' AND seq = 3",
    "an event made up": "INSERT INTO event SELECT chain, 4, hash, body FROM event WHERE chain = 'b' AND seq = 3",
    "all events of a chain": "DELETE FROM event WHERE chain = 'b'",
    "a checkpoint": "DELETE FROM event WHERE chain = 'system'",
    "a body that is not JSON": "UPDATE event SET body = X'FF' WHERE chain = 'b' AND seq = 2",
}


@pytest.mark.parametrize("what", FORGERIES)
async def test_every_forgery_in_the_file_is_found(chained: SqliteWorld, what: str) -> None:
    """Whatever is changed, removed or added in the table of events, verifying names the chain."""
    forge(chained, FORGERIES[what])
    faults = (await chained.store.verify_audit()).faults
    assert faults
    assert any(word in fault for fault in faults for word in ("b event", "b:", "bb", "a:", "system"))


async def test_s22_a_chain_cut_or_removed_together_with_its_row_is_found(chained: SqliteWorld) -> None:
    """Semantics 22: who hides a chain's end, or the whole chain, from the list of chains too, is betrayed by the checkpoint."""
    cut = "UPDATE chain SET count = 2, head = (SELECT hash FROM event WHERE chain = 'b' AND seq = 2) WHERE name = 'b'"
    forge(chained, "DELETE FROM event WHERE chain = 'b' AND seq = 3", cut)
    assert (await chained.store.verify_audit()).faults == ("b: a checkpoint counted 3 events, event 3 is missing",)
    chained.store._writer.execute("DELETE FROM event WHERE chain = 'b'")
    chained.store._writer.execute("DELETE FROM chain WHERE name = 'b'")
    assert (await chained.store.verify_audit()).faults == ("b: a checkpoint counted 3 events, event 3 is missing",)


async def test_s22_a_chain_rewritten_with_new_hashes_is_found(chained: SqliteWorld) -> None:
    """Semantics 22: a whole chain written anew, all hashes right, still is not the one that the checkpoint saw."""
    head = audit.empty("b")
    forge(chained)
    for number in range(1, 4):
        forged, body = audit.seal(event("b", n=number * 10), seq=number, previous=head.hash)
        chained.store._writer.execute("UPDATE event SET hash = ?, body = ? WHERE chain = 'b' AND seq = ?", (forged.hash, body, number))
        head = audit.Head("b", number, forged.hash)
    chained.store._writer.execute("UPDATE chain SET head = ? WHERE name = 'b'", (head.hash,))
    assert (await chained.store.verify_audit()).faults == ("b event 3: is not the one that a checkpoint recorded; it was rewritten",)


async def test_events_can_not_be_changed_by_sql_of_the_program(chained: SqliteWorld) -> None:
    """The table itself refuses updates and deletions, so that no bug of ours can rewrite history."""
    for statement in ("UPDATE event SET hash = 'x'", "DELETE FROM event"):
        with pytest.raises(sqlite3.IntegrityError, match="events are never"):
            chained.store._writer.execute(statement)


async def test_verifying_goes_on_beside_writing(world: SqliteWorld) -> None:
    """Chains that grow while they are verified give no false alarm, and writers go on."""
    await asyncio.gather(*(put(world.store, events=[event(f"c{number}"), event("a")]) for number in range(1000)))
    verifying = asyncio.create_task(world.store.verify_audit())
    written = 0
    while not verifying.done():
        await put(world.store, events=[event("a"), event(f"c{written % 1000}"), event("zz")])
        await world.store.checkpoint()
        written += 1
    report = await verifying
    assert report.faults == ()
    assert report.events >= 2000
    assert written


async def test_an_export_verifies_without_the_store(chained: SqliteWorld) -> None:
    """Events read through the store's lists make an export that holds, and that betrays a changed byte."""
    export = audit.Export()
    lines = [export.line(one) for chain, _, _ in await chained.store.chains() for one in await chained.store.events(chain)]
    lines.append(export.end())
    findings = audit.verify_export(lines)
    assert (findings.chains, findings.events, findings.faults) == (4, 11, ())
    lines[4] = lines[4].replace(b'"n":1', b'"n":2')
    assert audit.verify_export(lines).faults
