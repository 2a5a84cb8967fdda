"""Trust over several daemons: two of them on one PostgreSQL count together, and what one takes away the other does not have."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from remediator.engine.core import Engine
from remediator.execution import Execution
from remediator.model import RunState
from remediator.records import Run
from remediator.revalidation import Revalidation, Sources
from remediator.rules.model import Arm, Budget, GuardSpec, Rule
from remediator.store.postgres import PostgresStore
from tests.builders import alert, bounds
from tests.scripted import Harness, ScriptedConnections, ScriptedRegistry, World
from tests.servers.postgres import PostgresServer
from tests.store.pg import PostgresWorld
from tests.stories import act, playbook, step

GUARDS = GuardSpec(cooldown=timedelta(), budgets=(Budget(50, timedelta(hours=1)),), max_failing=3)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer() as made:
        yield made


class Replica(Harness):
    """A daemon's engine on a PostgreSQL that others use too. The clock is the database's, which the test moves."""

    def __init__(self, path: Path, shared: PostgresWorld, world: World, rule: Rule, **fields: Any) -> None:
        super().__init__(path, rule, world=world, **fields)
        self.shared = shared

    async def start(self) -> Replica:
        self.store: Any = self.shared.make()
        await self.store.open()
        execution = Execution(ScriptedRegistry(self.world), ScriptedConnections(), scrub=str)  # type: ignore[arg-type]
        revalidation = Revalidation(execution, lambda: Sources(alertmanager=True, prometheus=False))
        self.engine = Engine(
            self.store,
            execution,
            revalidation,
            rule=self.rules.get,
            frozen=lambda text: next(rule for rule in self.texts.values() if rule.source == text),
            bounds=lambda: self.limits,
        )
        return self

    async def ends(self, thing: str) -> Run:
        """Have this daemon take an alert and lead its run until the time for its verification is over."""
        await self.send(alert(thing=thing))
        await self.work()
        self.shared.forward(timedelta(minutes=11))
        await self.work()
        found = (await self.store.runs()).items[0]
        assert isinstance(found, Run)
        return found


@pytest.fixture
async def shared(server: PostgresServer) -> AsyncIterator[PostgresWorld]:
    made = PostgresWorld(server)
    await made.prepare()
    yield made
    await made.end()


async def test_failures_on_two_daemons_count_together(shared: PostgresWorld, tmp_path: Path) -> None:
    """Each sees what the other's runs came to: the second failure demotes, the third stops the remedy, on either."""
    world = World(things=dict.fromkeys("abcd", "bad"))
    rule = playbook(act("set it", step(thing="${labels.thing}")), guards=replace(GUARDS, arm=Arm(min_runs=4, min_success=0.75)))
    one = await Replica(tmp_path, shared, world, rule, limits=bounds()).start()
    other = await Replica(tmp_path, shared, world, rule, limits=bounds()).start()
    try:
        assert (await one.ends("a")).state is RunState.FAILED
        assert await other.store.pauses() == {}
        assert "demoted to approve" in (await other.ends("b")).reason
        assert await one.store.pauses() == await other.store.pauses()
        assert "demoted:site-down" in await one.store.pauses()
        assert (await one.ends("c")).state in (RunState.AWAITING_APPROVAL, RunState.EXPIRED)
        assert world.writes == ["a=good", "b=good"]
        found = await other.store.attempts(since=one.now - timedelta(days=9999))
        assert [(attempt.target != "", attempt.counts) for attempt in found if attempt.tried] == [(True, True)] * 2
    finally:
        for replica in (one, other):
            assert isinstance(replica.store, PostgresStore)
            await replica.store.aclose()
