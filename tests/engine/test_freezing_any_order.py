"""Whatever windows there are, whoever freezes and thaws, however a run goes: no call begins in a freeze."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import replace
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from remediator.errors import RemediatorError
from remediator.freezes import manual
from remediator.freezes.manual import Order
from remediator.freezes.windows import Cron, Dates, Effect, Freezes, Limits, Subject, Window, asks, holds
from remediator.model import ApprovalState
from remediator.records import Pause
from remediator.rules.model import GuardSpec, OnFailure
from remediator.store.protocol import Changes, Reads
from tests.builders import NOW, alert, bounds
from tests.scripted import BUSY, Harness
from tests.stories import ANNA, TWO, act, decide, playbook

MINUTE = timedelta(minutes=1)
WORLD = frozenset({"world"})
SUBJECT = Subject("site-down", "sev1", WORLD)

limits = st.sampled_from([Limits(), Limits(rules=frozenset({"site-down"})), Limits(connections=WORLD), Limits(rules=frozenset({"other"}))])
dates = st.tuples(st.integers(-5, 40), st.integers(1, 25)).map(lambda two: Dates(NOW + two[0] * MINUTE, NOW + sum(two) * MINUTE))
crons = st.tuples(st.integers(0, 59), st.integers(1, 20)).map(lambda two: Cron(f"{two[0]} * * * *", two[1] * MINUTE, UTC))
soon = st.tuples(st.integers(1, 12), st.integers(3, 25)).map(lambda two: Dates(NOW + two[0] * MINUTE, NOW + sum(two) * MINUTE))
others = st.lists(st.builds(Window, st.just("w"), st.one_of(dates, crons), st.sampled_from(Effect), st.just(""), limits), max_size=2)
words = st.one_of(
    st.tuples(st.just("wait"), st.integers(1, 12)),
    st.tuples(st.just("freeze"), st.sampled_from([None, 3, 20])),
    st.tuples(st.just("freeze connection"), st.sampled_from([None, 3, 20])),
    st.tuples(st.sampled_from(["thaw", "fire", "approve", "sick", "well"]), st.none()),
)


class Story:
    """One harness, what people do to it, and every call that began in a freeze."""

    def __init__(self, path: Path, freezes: Freezes, *, on_failure: OnFailure, busy: set[int], slow: list[int]) -> None:
        remedies = (act("both", *TWO, on_failure=on_failure), act("again"))
        rule = playbook(*remedies, guards=GuardSpec(max_wait=30 * MINUTE, cooldown=timedelta(), budgets=()))
        self.harness = Harness(path, rule, limits=replace(bounds(), freezes=freezes))
        self.busy = busy
        self.slow = slow
        self.calls = 0
        self.pauses: dict[str, Pause] = {}
        self.broken: list[str] = []

    async def live(self, story: list[tuple[str, Any]]) -> None:
        """Go through a story, looking at every call that begins."""
        harness = self.harness
        await harness.start()
        plain = harness.engine.execution.apply

        async def apply(plan: Any, **named: Any) -> Any:
            self.calls += 1
            self._look(f"call {self.calls} ({plan.summary}) at {harness.now}", undo=plan.undoes)
            if self.calls in self.busy:
                harness.world.fault = _busy_once(harness)
            outcome = await plain(plan, **named)
            harness.now += self.slow[self.calls % len(self.slow)] * MINUTE
            return outcome

        harness.engine.execution.apply = apply  # type: ignore[method-assign]
        await harness.send(alert())
        for word, value in story:
            await self._do(word, value)
        await harness.store.aclose()

    def _look(self, call: str, *, undo: bool) -> None:
        freezes, now = self.harness.limits.freezes, self.harness.now
        frozen = [hold.words for hold in holds(freezes, self.pauses, SUBJECT, now=now) if hold.effect is Effect.FREEZE]
        if frozen:
            self.broken.append(f"{call}: {frozen}")
        if not undo and asks(freezes, SUBJECT, now=now) and not self.approved:
            self.broken.append(f"{call}: nobody agreed")

    @property
    def approved(self) -> bool:
        return any(said["state"] == ApprovalState.APPROVED.value for said in self.harness.said("approval.decided"))

    async def _do(self, word: str, value: Any) -> None:
        harness = self.harness
        if word == "wait":
            await harness.tick(value * MINUTE)
        elif word == "fire":
            await harness.send(alert())
        elif word in ("sick", "well"):
            harness.world.healthy = word == "well"
        elif word == "approve":
            await self._approve()
        elif word == "thaw":
            await self._thaw()
        else:
            scope = "freeze" if word == "freeze" else "freeze:connection:world"
            order = Order(scope, "", None if value is None else value * MINUTE)
            await harness.store.transact(Reads(), lambda snapshot: manual.freeze(snapshot, order, actor=ANNA))
        self.pauses = await harness.store.pauses()
        await harness.work()

    async def _approve(self) -> None:
        for one in (await self.harness.store.approvals(states=["pending"])).items:
            await decide(self.harness, approval=one.id, work=False)  # type: ignore[attr-defined]

    async def _thaw(self) -> None:
        runs = [one.id for one in (await self.harness.store.runs()).items]  # type: ignore[attr-defined]
        for scope in list(self.pauses):
            try:
                await self.harness.store.transact(
                    Reads(), lambda snapshot, scope=scope: manual.thaw(snapshot, scope, why="", actor=ANNA, waiting=runs)
                )
            except RemediatorError:
                await self.harness.store.transact(Reads(), lambda _snapshot: Changes())


def _busy_once(harness: Harness) -> Any:
    def fault(point: str) -> None:
        if point == "before":
            harness.world.fault = lambda _point: None
            raise BUSY

    return fault


@settings(max_examples=40, deadline=None)
@given(
    first=st.builds(Window, st.just("first"), soon),
    freezes=others,
    on_failure=st.sampled_from(OnFailure),
    busy=st.sets(st.integers(1, 4), max_size=2),
    slow=st.lists(st.integers(0, 15), min_size=1, max_size=3),
    story=st.lists(words, min_size=3, max_size=15),
)
def test_no_call_begins_in_a_freeze(
    first: Window, freezes: list[Window], on_failure: OnFailure, busy: set[int], slow: list[int], story: list[tuple[str, Any]]
) -> None:
    """Neither a step, nor a retry, nor an undo, nor the next remedy; and in an approve window no step that nobody agreed to."""
    with tempfile.TemporaryDirectory() as directory:
        told = Story(Path(directory) / "state.sqlite", Freezes((first, *freezes)), on_failure=on_failure, busy=busy, slow=slow)
        asyncio.run(told.live(story))
    assert told.broken == []
