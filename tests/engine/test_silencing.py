"""Keeping an alert quiet while a run works: what rows say, and what a keeper does with them at a real Alertmanager, wherever it dies."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from actions.alertmanager import AlertmanagerConnection, ExpireSilence, SilenceAction
from remediator.action import Identity
from remediator.alerts import fingerprint
from remediator.errors import PermanentError
from remediator.execution import Execution
from remediator.model import Alert, IncidentState, Receipt, RunState, StepState
from remediator.records import SILENCE, Incident, Pause, Run, Step
from remediator.replacing import replace
from remediator.rules.model import Rule
from remediator.settings.silence import SilenceSettings
from remediator.silences import silencing
from remediator.silences.keeper import Silencer
from remediator.silences.ours import NONE, Own
from remediator.silences.silencing import Keeping, of_incident
from remediator.store.protocol import Changes, Reads, Snapshot
from remediator.store.sqlite import SqliteStore
from remediator.testing import LocalContext, crash_at
from tests.builders import alert, run
from tests.engine.conftest import Start
from tests.servers.alertmanager import AlertmanagerServer
from tests.servers.ports import eventually
from tests.stories import FIRST_RUN, TWO, act, pause, playbook

QUIET = {"silence": timedelta(minutes=10)}
SCOPE = SILENCE + FIRST_RUN


# --- what rows say ---------------------------------------------------------------------------------------------------------------


async def wished(harness: Any) -> Keeping | None:
    """Return what the run wants."""
    row = (await harness.store.pauses()).get(SCOPE)
    return None if row is None else silencing.read(row)


async def test_run_that_acts_wants_its_alert_quiet_and_says_so_in_the_same_transaction(start: Start) -> None:
    """Nothing is between the first intent and the wish: a daemon that dies after the one left the other too."""
    harness = await start(playbook(act("both", *TWO), **QUIET))
    seen: list[bool] = []
    harness.world.fault = lambda point: seen.append(point == "before") if point == "before" else None
    await harness.send(alert())
    await harness.work()
    found = await wished(harness)
    assert found is not None
    assert (found.labels, found.lasts, found.ending) == (dict(alert().labels), timedelta(minutes=10), False)
    assert seen


@pytest.mark.parametrize("end", [RunState.FAILED, RunState.INTERRUPTED])
async def test_run_that_stops_wants_the_pager_back_at_once(start: Start, end: RunState) -> None:
    """Whatever way it ends or waits for a person: in the transaction that says so."""
    harness = await start(playbook(act("both", *TWO), **QUIET))

    def fault(point: str) -> None:
        if point == "before b=good" and end is RunState.FAILED:
            raise PermanentError("no such thing")

    harness.world.fault = fault
    await harness.send(alert())
    if end is RunState.INTERRUPTED:
        harness.world.fault = lambda _point: None
        await harness.work()
        await pause(harness)
        await harness.tick(timedelta(hours=1))
    else:
        await harness.work()
    assert await harness.state() in (end, RunState.ESCALATED, RunState.FAILED)
    found = await wished(harness)
    assert found is not None
    assert found.ending


async def test_dry_run_and_rules_without_it_want_no_silence(start: Start) -> None:
    """Nothing is quiet that nobody wished to be."""
    harness = await start(playbook(act("both", *TWO)))
    await harness.send(alert())
    await harness.work()
    assert await harness.store.pauses() == {}


async def test_alert_that_came_without_all_its_labels_is_not_silenced(start: Start) -> None:
    """Fewer labels match more alerts: what says by its fingerprint that it is another one keeps nobody else's pager quiet."""
    harness = await start(playbook(act("both", *TWO), **QUIET))
    await harness.send(replace(alert(), fingerprint=alert(instance="db1").fingerprint))
    await harness.work()
    assert harness.world.writes
    assert await wished(harness) is None


def _keeping(**fields: Any) -> Keeping:
    now = datetime.now(UTC)
    made = Keeping("INC-1-1", "INC-1", "r", {"alertname": "A"}, "INC-1-1@1", since=now, lasts=timedelta(minutes=5), due_at=now)
    return replace(made, **fields)


def test_s14_exactly_the_own_silences_are_left_out() -> None:
    """By id once that is known; by mark only as long as nobody knows the id; never another incident's."""
    rows = [_keeping(silence="a"), _keeping(run="INC-1-2", mark="m2"), _keeping(run="INC-1-3", mark="m3", silence="c", lost=True)]
    other = _keeping(run="INC-2-1", incident="INC-2", silence="x")
    pauses = {one.scope: silencing.row_of(one) for one in (*rows, other)}
    made = Step(1, "alertmanager.silence", StepState.APPLIED, receipt=Receipt("made", {"silence": "s"}))
    assert of_incident(pauses, "INC-1", [replace(run(), steps=(made,))]) == Own(("a", "c", "s"), ("m2", "m3"))
    assert of_incident({}, "INC-1", []) == NONE


def test_s14_mark_names_its_incident_and_no_other() -> None:
    """Those of steps and of kept silences alike; a mark of nobody's is of no incident, also not of an unnamed one."""
    own = Own(incident="INC-20261121-001")
    assert own.has_mark("INC-20261121-001-1/2")
    assert own.has_mark("INC-20261121-001-3@120000")
    assert not own.has_mark("INC-20261121-0011-1/2")
    assert not own.has_mark("INC-20261121-001")
    assert not Own().has_mark("")
    assert not NONE.has_mark("x")


def test_only_one_daemon_sees_to_a_silence_at_a_time() -> None:
    """Who claims it has it for a while; then another one may."""
    keeping = _keeping()
    snapshot = Snapshot(now=keeping.due_at, pauses={keeping.scope: silencing.row_of(keeping)}, runs={})
    taken, changes = silencing.claim(snapshot, keeping.run)
    assert taken is not None
    assert taken.ending, "its run is not there any more"
    after = replace(snapshot, pauses={keeping.scope: changes.pauses[0]})
    assert silencing.claim(after, keeping.run)[0] is None
    assert silencing.claim(replace(after, now=keeping.due_at + silencing.PATIENCE), keeping.run)[0] is not None


def test_what_can_not_be_ended_is_let_go_once_it_is_over_by_itself() -> None:
    """It is tried again until then, and told once."""
    keeping = _keeping(silence="a", ends_at=datetime.now(UTC) + timedelta(minutes=1), ending=True)
    snapshot = Snapshot(now=keeping.due_at, pauses={keeping.scope: silencing.row_of(keeping)})
    fields: dict[str, Any] = {"doing": "end", "error": "refused", "lost": False, "lease": timedelta(minutes=2)}
    first = silencing.failed(snapshot, keeping, **fields)
    assert (len(first.events), len(first.lift)) == (1, 0)
    again = silencing.failed(replace(snapshot, pauses={keeping.scope: first.pauses[0]}), keeping, **fields)
    assert (len(again.events), len(again.lift)) == (0, 0)
    late = replace(snapshot, now=keeping.due_at + timedelta(minutes=3), pauses={keeping.scope: first.pauses[0]})
    assert silencing.failed(late, keeping, **fields).lift == [keeping.scope]


# --- what a keeper does ------------------------------------------------------------------------------------------------------------


class _Registry:
    """Knows the two actions."""

    def action(self, name: str) -> Any:
        return {"alertmanager.silence": SilenceAction, "alertmanager.expire_silence": ExpireSilence}.get(name)

    def check(self, _name: str) -> Any:
        return None


class _Connections:
    """One connection."""

    def __init__(self, url: str) -> None:
        self.model = AlertmanagerConnection(urls=(url,))
        self.made: list[LocalContext] = []

    def context(self, *, key: str = "", values: Any = None, halted: Any = None) -> Any:
        self.made.append(LocalContext({"alertmanager": self.model}, identity=Identity("remediator"), key=key, values=values))
        return self.made[-1]

    def connection(self, _kind: Any, _name: str) -> AlertmanagerConnection:
        return self.model

    async def aclose(self) -> None:
        for context in self.made:
            await context.aclose()


class World:
    """A store with one acting run, a real Alertmanager, and keepers that come and go."""

    def __init__(self, path: Path, server: AlertmanagerServer) -> None:
        self.path, self.server = path, server
        self.connections = _Connections(server.url)
        self.store = SqliteStore(path)
        self.number = 0

    async def begins(self) -> Run:
        """Write down an acting run that wants its alert quiet."""
        self.number += 1
        now = datetime.now(UTC)
        labels = {"alertname": "A", "n": str(self.number)}
        subject = Alert(fingerprint(labels), firing=True, labels=labels, annotations={}, starts_at=now)
        name = f"INC-20261121-{self.number:03d}"
        incident = Incident(
            name, "r", "t", "sev2", IncidentState.OPEN, subject, now, now, (subject.fingerprint,), runs=1, active_run=f"{name}-1"
        )
        run = Run(f"{name}-1", name, 1, "r", "h", "t", RunState.APPLYING, now, now, None, locks=("l",))
        rule = Rule("r", (), (), silence=timedelta(minutes=10))
        snapshot = Snapshot(now=now, incidents={name: incident})
        await self.store.transact(
            Reads(),
            lambda _: Changes(
                runs=[run], incidents=[incident], pauses=silencing.follow(run, rule, snapshot, over=False), rule_texts={"h": {}}
            ),
        )
        return run

    async def ends(self, run: Run) -> None:
        """Have the run end."""
        now = datetime.now(UTC)
        over = replace(run, state=RunState.FAILED, ended_at=now)

        def build(snapshot: Snapshot) -> Changes:
            return silencing.followed(Changes(runs=[over]), over, Rule("r", (), ()), replace(snapshot, now=now))

        await self.store.transact(Reads(runs=[run.id]), build)

    def keeper(self) -> Silencer:
        """Return a keeper of a new process."""
        execution = Execution(_Registry(), self.connections, scrub=str)  # type: ignore[arg-type]
        return Silencer(
            self.store,
            execution,
            settings=lambda: SilenceSettings(lease=timedelta(minutes=2)),
            configured=lambda: True,
            used=lambda: True,
            link=lambda _incident: "",
        )

    async def lasting(self, run: Run) -> list[str]:
        """Return the run's silences that are in force."""
        found = [one for one in await self.server.silences() if one["status"]["state"] == "active" and f"{run.id}@" in one["comment"]]
        return [one["id"] for one in found]

    async def row(self, run: Run) -> Keeping | None:
        """Return the run's row."""
        found: Pause | None = (await self.store.pauses()).get(SILENCE + run.id)
        return None if found is None else silencing.read(found)

    async def dies(self, run: Run, point: int) -> bool:
        """Have a keeper see to the run, and die at a suspension; tell whether it came to its end before."""
        done: list[bool] = []

        async def attend() -> None:
            await self.keeper()._attend(run.id)
            done.append(True)

        await crash_at(attend(), point)
        await self.connections.aclose()
        gc.collect()  # what the dead process left is complained of here, and not in the middle of something else
        return bool(done)

    async def patience_is_over(self, run: Run) -> None:
        """Let the time pass for which a dead keeper's claim holds."""
        keeping = await self.row(run)
        if keeping is not None:
            row = silencing.row_of(replace(keeping, due_at=datetime.now(UTC)))
            await self.store.transact(Reads(), lambda _: Changes(pauses=[row]))


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """Start all."""
    async with AlertmanagerServer(tmp_path / "alertmanager") as server:
        found = World(tmp_path / "state.sqlite", server)
        await found.store.open()
        yield found
        await found.connections.aclose()
        await found.store.aclose()


async def test_s17_keeper_that_dies_anywhere_leaves_one_silence_that_ends(world: World) -> None:
    """Killed at any point of making it: the next one finds it by its mark and makes no second; when the run ends, none is left."""
    for point in range(200):
        run = await world.begins()
        whole = await world.dies(run, point)
        await world.patience_is_over(run)
        await world.keeper()._attend(run.id)
        assert len(await world.lasting(run)) == 1, f"died at {point}"
        await world.ends(run)
        await world.keeper()._attend(run.id)
        assert (await world.lasting(run), await world.row(run)) == ([], None), f"died at {point}"
        if whole:
            return
    raise AssertionError("it never comes to its end")


async def test_s17_keeper_that_dies_while_it_ends_one_is_followed_by_another(world: World) -> None:
    """Killed at any point of ending it, and also when the run ended right after the silence was made and nobody had noted its id."""
    for point in range(200):
        run = await world.begins()
        await world.dies(run, point)
        await world.ends(run)
        whole = await world.dies(run, point)
        await world.patience_is_over(run)

        async def nothing_is_left(run: Run = run) -> bool:
            await world.patience_is_over(run)
            await world.keeper()._attend(run.id)
            return await world.lasting(run) == [] and await world.row(run) is None

        await eventually(nothing_is_left, what=f"nothing is left after dying at {point}")
        if whole and point > 20:
            return
    raise AssertionError("it never comes to its end")


async def test_silence_outlives_no_record_of_it(world: World) -> None:
    """Given up while it was being made: whoever made it ends it, since nobody else knows of it."""
    run = await world.begins()
    keeper = world.keeper()
    keeping = await keeper._claim(run.id)
    assert keeping is not None
    await world.store.transact(Reads(), lambda _: Changes(lift=[keeping.scope]))
    await keeper._make(keeping)
    assert await world.lasting(run) == []
