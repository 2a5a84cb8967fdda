"""Hypothesis drives the simulation: any order of alerts, ends, words, crashes, reloads and time keeps the same invariants."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from remediator.records import EVERYWHERE, FREEZE, FREEZE_RULE
from tests.simulation import chaos
from tests.simulation.daemon import no_clock_but_the_loops
from tests.simulation.people import WORDS
from tests.simulation.simulation import Options, Simulation

RULES = ("set", "two", "job", "evict", "ask", "careful", "next", "watch", "over")
things = st.sampled_from(["t0", "t1", "shared"])
FAULTS = [one for one in dict.fromkeys(chaos.FAULTS) if one not in (chaos.crash, chaos.kill_switch, chaos.reload)]


class Machine(RuleBasedStateMachine):
    """One simulation, whose people and faults are hypothesis'."""

    @initialize(seed=st.integers(0, 2**16), replicas=st.integers(1, 2))
    def begin(self, seed: int, replicas: int) -> None:
        self.simulation = Simulation(seed, Options(replicas=replicas, strikes=0.0))
        self.clocks = no_clock_but_the_loops(self.simulation.dice, self.simulation.crashes)
        self.clocks.__enter__()
        self.simulation.do(self.simulation.open())

    def do(self, doing: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        self.simulation.do(doing())

    def asynchronously(self, doing: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """Begin something that takes its own time."""
        self.simulation.loop.spawn(self.simulation.loop.outside, doing())
        self.advance(0.1)

    @rule(name=st.sampled_from(RULES), thing=things, number=st.integers(0, 1))
    def send(self, name: str, thing: str, number: int) -> None:
        async def fire() -> None:
            self.simulation.world.fire(name, thing, number)

        self.do(fire)

    @rule(place=st.integers(0, 20))
    def resolve(self, place: int) -> None:
        async def end() -> None:
            alarms = list(self.simulation.world.alarms.values())
            if alarms:
                self.simulation.world.end(alarms[place % len(alarms)])

        self.do(end)

    @rule(who=st.integers(0, 3), approve=st.booleans(), place=st.integers(0, 20))
    @precondition(lambda self: bool(self.simulation.ledger.approvals))
    def decide(self, who: int, place: int, *, approve: bool) -> None:
        approvals = sorted(self.simulation.ledger.approvals)
        self.do(lambda: self.simulation.people[who].decide(approvals[-1 - place % len(approvals)], approve=approve))

    @rule(who=st.integers(0, 3), word=st.integers(0, 2))
    @precondition(lambda self: any(run.state in WORDS for run in self.simulation.ledger.waiting()))
    def lead_on(self, who: int, word: int) -> None:
        run = next(run for run in self.simulation.ledger.waiting() if run.state in WORDS)
        self.do(lambda: self.simulation.people[who].say(run.id, WORDS[run.state][word]))

    @rule(scope=st.sampled_from([EVERYWHERE, "rule:set", "rule:job"]))
    def pause(self, scope: str) -> None:
        self.do(lambda: self.simulation.people[0].pause(scope))

    @rule(scope=st.sampled_from([EVERYWHERE, "rule:set", "rule:job"]))
    def resume(self, scope: str) -> None:
        self.do(lambda: self.simulation.people[1].lift(scope))

    @rule(scope=st.sampled_from([FREEZE, f"{FREEZE_RULE}set"]), seconds=st.sampled_from([None, 5, 40]))
    def freeze(self, scope: str, seconds: int | None) -> None:
        self.do(lambda: self.simulation.people[2].freeze(scope, None if seconds is None else timedelta(seconds=seconds)))

    @rule(who=st.integers(0, 1), place=st.integers(0, 20), seconds=st.sampled_from([None, 20]))
    @precondition(lambda self: bool(self.simulation.ledger.incidents))
    def take(self, who: int, place: int, seconds: int | None) -> None:
        incidents = sorted(self.simulation.ledger.incidents)
        span = None if seconds is None else timedelta(seconds=seconds)
        self.do(lambda: self.simulation.people[who].take(incidents[-1 - place % len(incidents)], span))

    @rule(place=st.integers(0, 20))
    @precondition(lambda self: bool(self.simulation.ledger.pauses))
    def give_back(self, place: int) -> None:
        scopes = sorted(self.simulation.ledger.pauses)
        self.do(lambda: self.simulation.people[0].give_back(scopes[place % len(scopes)]))

    @rule(host=st.integers(0, 1))
    def crash(self, host: int) -> None:
        self.simulation.kill(self.simulation.hosts[host % len(self.simulation.hosts)])

    @rule(fault=st.sampled_from(FAULTS))
    def fault(self, fault: Any) -> None:
        self.asynchronously(lambda: fault(self.simulation))

    @rule()
    def reload(self) -> None:
        self.asynchronously(lambda: chaos.reload(self.simulation))

    @rule(seconds=st.sampled_from([0.05, 1.0, 8.0, 35.0]))
    def advance(self, seconds: float) -> None:
        self.do(lambda: asyncio.sleep(seconds))

    def teardown(self) -> None:
        if not hasattr(self, "simulation"):
            return
        try:
            if self.simulation.ledger.found is None and not self.simulation.crashes:
                self.do(self._to_rest)
        finally:
            self.simulation.close()
            self.clocks.__exit__(None, None, None)

    async def _to_rest(self) -> None:
        await asyncio.sleep(100)  # faults that were begun end by themselves
        await self.simulation.calm_down()
        await self.simulation.rest()
        await self.simulation.final_checks()


Machine.TestCase.settings = settings(
    max_examples=25, stateful_step_count=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


class TestAnyOrder(Machine.TestCase):  # type: ignore[misc,name-defined]
    """Any order of what people and failures do keeps every invariant, and comes to rest."""
