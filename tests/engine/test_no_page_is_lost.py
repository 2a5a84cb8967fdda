"""No page is lost: whatever happens in whatever order, an open incident that nobody has acknowledged goes on to be told."""

from __future__ import annotations

import asyncio
import tempfile
from datetime import timedelta
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from remediator.escalation.levels import Policy, held_until
from remediator.escalation.pages import relapse_of
from remediator.lifecycle import HOLDS_PAGE
from remediator.model import Authority, IncidentState, RunState
from remediator.records import Incident, Message, MessageKind
from remediator.rules.model import Rule
from tests.builders import rule
from tests.engine.paging import FIRST, MINUTE, Paging, level
from tests.scripted import BROKEN
from tests.stories import playbook

RULES = {
    "hopeless": rule(remedies=()),
    "auto": playbook(),
    "approve": playbook(mode=Authority.APPROVE),
}
WORDS = st.sampled_from(
    [
        *("fires", "ends", "acknowledge", "remedy fails", "remedy helps", "dies", "level-1 dead", "level-2 dead", "level-1 mute", "alive"),
        *range(1, 45, 6),
    ]
)
POLICIES = st.sampled_from(
    [
        Policy("p", (level(1), level(2, 10), level(3, 30)), urgent="sev1", acknowledged_for=60 * MINUTE, repeat_every=45 * MINUTE),
        Policy("p", (level(1), level(2, 0), level(3, 5)), urgent="sev1", acknowledged_for=20 * MINUTE, update_every=20 * MINUTE),
        Policy("p", (level(1, 5), level(2, 15)), urgent="sev1", repeat_every=30 * MINUTE),
        Policy("p", (level(1),), urgent="sev1"),
    ]
)


class Story(Paging):
    """Lives through a sequence of events, and holds the outbox to its promise after each."""

    async def lives(self, words: list[str | int]) -> None:
        """Live through events; a number lets so many minutes pass."""
        for word in words:
            await self._happens(word)
            await self._keeps_its_promise(word)
        await self._reaches_everybody()

    async def _happens(self, word: str | int) -> None:
        match word:
            case int():
                await self.passes(timedelta(minutes=word), by=3 * MINUTE)
            case "fires":
                self.world.firing = True
                await self.fires()
            case "ends":
                self.world.firing = False
                await self.ends()
            case "acknowledge":
                if await self.store.incident(FIRST) is not None:
                    await self.acknowledge()
            case "remedy fails":
                self.world.fault = self._breaks
            case "remedy helps":
                self.world.fault = lambda _point: None
            case "dies":
                self.line.dies_after = True
                await self.deliver()
            case "alive":
                self.line.dead.clear()
                self.line.mute.clear()
            case _:
                who, how = word.split()
                {"dead": self.line.dead, "mute": self.line.mute}[how].add(who)

    @staticmethod
    def _breaks(point: str) -> None:
        if point == "before":
            raise BROKEN

    async def _keeps_its_promise(self, after: str | int) -> None:
        incident = await self.store.incident(FIRST)
        if incident is None or self._acknowledged_for_good(incident) or not await self._needs_a_person(incident):
            return
        waiting = await self.waiting(incident)
        if waiting:
            held = held_until(self.policy, incident.acknowledged_at)
            last = max(self.now, held or self.now) + 45 * MINUTE
            assert min(one.due_at for one in waiting) <= last, f"after {after!r}: the next page is too far off"
            return
        assert self.policy.repeat_every is None, f"after {after!r}: nothing is due"
        assert await self._all_levels(incident), f"after {after!r}: a level is left out"

    def _acknowledged_for_good(self, incident: Incident) -> bool:
        return incident.acknowledged_at is not None and self.policy.acknowledged_for is None

    async def _needs_a_person(self, incident: Incident) -> bool:
        """Tell whether nothing is going to help by itself, or not in time."""
        if incident.state is IncidentState.RESOLVED:
            return False
        run = await self.store.run(f"{incident.id}-{incident.runs}")
        assert run is not None
        if run.state is RunState.SUCCEEDED:
            return False  # it helped, as far as can be seen; Alertmanager has not said so yet, or says so by a relapse
        return run.state not in HOLDS_PAGE or run.created_at + 3 * MINUTE <= self.now

    async def _all_levels(self, incident: Incident) -> bool:
        begun = {row.body["level"] for row in await self._climbing(incident) if row.body.get("sending")}
        return begun == {one.number for one in self.policy.levels}

    async def _climbing(self, incident: Incident) -> list[Message]:
        """Return the pages of the firings whose climb goes on."""
        since = incident.relapses if incident.climb_from is None else incident.climb_from
        rows = [row for row in await self.store.messages(incident.id) if row.kind is MessageKind.PAGE]
        return [row for row in rows if (relapse_of(row) or 0) >= since]

    async def _reaches_everybody(self) -> None:
        """In the end: with all receivers alive, everybody is told of what stays open, unless somebody has it for good."""
        self.line.dead.clear()
        self.line.mute.clear()
        self.line.dies_after = False
        incident = await self.store.incident(FIRST)
        if incident is None or not await self._needs_a_person(incident):
            return
        for _ in range(3):
            await self.passes(60 * MINUTE, by=10 * MINUTE)
        incident = await self.incident()
        if await self._needs_a_person(incident) and not self._acknowledged_for_good(incident):
            pages = await self._climbing(incident)
            got = {mark.partition("#")[0] for row in pages for mark in row.delivered_to}
            gave_up = {row.body.get("level") for row in pages if row.cancelled and row.body.get("sending")}
            for one in self.policy.levels:
                assert one.receivers[0].name in got or one.number in gave_up, f"level {one.number} never heard of it"
            if incident.acknowledged_at is None:
                last = {who: kind for kind, who, _ in self.line.sent if kind in ("page", "resolved")}
                assert set(last.values()) <= {"page"}, f"somebody believes that it is over: {last}"


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(sorted(RULES)), POLICIES, st.lists(WORDS, max_size=12))
def test_open_incident_that_nobody_acknowledges_goes_on_to_be_told(name: str, policy: Policy, words: list[str | int]) -> None:
    """After any sequence of firings, ends, acknowledgements, deaths, dead receivers and time the next page is due, or all were told."""

    async def live(one: Rule) -> None:
        with tempfile.TemporaryDirectory() as directory, capture_logs():
            story = Story(Path(directory) / "state.sqlite", one, policy=policy)
            await story.start()
            try:
                await story.lives(["fires", *words])
            finally:
                await story.store.aclose()

    asyncio.run(live(RULES[name]))
