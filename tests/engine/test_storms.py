"""A storm's life on a real store: what people are told, calm, a person's word, crashes, a second keeper, and the way back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from remediator.escalation.levels import Level, Policy, Receiver
from remediator.escalation.outbox import InForce, Outbox
from remediator.events import Kind
from remediator.ingest.draft import Intake
from remediator.ingest.intake import reads_for
from remediator.ingest.sorting import sort
from remediator.metrics import Metrics
from remediator.model import Actor, Alert, ApprovalState, Authority, ChainedEvent, RunState
from remediator.people import operations
from remediator.records import AFTER_STORM, EVERYWHERE, STORM, SYSTEM_CHAIN, Pause, Run
from remediator.revalidation import Standing
from remediator.rules.model import Budget, GuardSpec
from remediator.store.protocol import Changes, Reads
from remediator.storms.breaker import Reset, StormLimits, is_held
from remediator.storms.keeper import Storms
from tests.builders import alert, rule, take
from tests.engine.paging import Line
from tests.scripted import Harness
from tests.stories import act, step

SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)
SECOND_ONE = "INC-20261121-002"
LIMITS = StormLimits(incidents=3, within=MINUTE, calm=5 * MINUTE, digest_every=10 * MINUTE, ramp=2)


class Weather(Harness):
    """The harness with a storm breaker, and a keeper of storms that tests let look."""

    limits_of_storm = LIMITS

    async def start(self) -> Weather:
        """Open the store and begin to keep storms, as a process does at its start."""
        await super().start()
        self.keeper = self.new_keeper()
        self.line = getattr(self, "line", None) or Line()
        self.outbox = self.new_outbox()
        return self

    def new_outbox(self) -> Outbox:
        """Make an outbox, as another replica has one. The people of each policy hear of things where its name says."""
        about = InForce(counted=lambda digest: self.keeper.counted(digest), digest_every=lambda: LIMITS.digest_every)  # noqa: PLW0108
        return Outbox(
            self.store,
            self.line,  # type: ignore[arg-type]
            lambda name: Policy(name, (Level(1, (Receiver("notify.slack", {"connection": name}),)),)),
            public_url=lambda: None,
            about=about,
            clock=lambda: self.now,
        )

    def new_keeper(self) -> Storms:
        """Make a keeper, as another replica has one."""
        return Storms(
            self.store,
            limits=lambda: self.limits_of_storm,
            rule=self.rules.get,
            severities=lambda: ("sev1", "sev2"),
            dry_run=lambda: False,
            metrics=Metrics(CollectorRegistry()),
        )

    async def opens(self, *ids: str, name: str = "SiteDown") -> list[str]:
        """Take alerts of so many things in one webhook; return their runs."""
        return await self.takes(*(alert(name, id=one) for one in ids))

    async def takes(self, *alerts: Alert) -> list[str]:
        """Take alerts, all in one webhook; return their runs."""
        items = [sort(one, [found for found in self.rules.values() if found.matches(one.labels)]) for one in alerts]
        intake = Intake(self.limits, 5 * MINUTE, {"sev1": 3 * MINUTE}, storm=self.limits_of_storm)
        reads = reads_for(items, now=self.now, limits=self.limits_of_storm)
        committed = await self.store.transact(reads, lambda snapshot: take(items, snapshot, intake))
        return [one.id for one in committed.changes.runs]

    async def looks(self, after: timedelta = timedelta()) -> None:
        """Let time pass, then let the keeper look."""
        self.now += after
        await self.keeper.look()

    async def deliver(self) -> None:
        """Deliver what is due."""
        for message in await self.store.due_messages(limit=1000):
            await self.outbox._try(message)

    async def passes(self, span: timedelta, *, by: timedelta = SECOND) -> None:
        """Let time pass, with engine, keeper and outbox at work."""
        until = self.now + span
        while self.now < until:
            self.now += by
            await self.work()
            await self.keeper.look()
            await self.deliver()

    def digests(self) -> list[str]:
        """Return the heads of the digests that people got."""
        texts = [str(values["summary"]) for values in self.line.values if values["kind"] == "digest"]
        return [text.partition(":")[0] for text in texts]

    def paged(self) -> list[str]:
        """Return the incidents that people were paged about."""
        return [str(values["incident"]) for values in self.line.values if values["kind"] == "page"]

    async def ends(self) -> None:
        """Have a person end the storm."""
        await self.store.transact(Reads(), lambda seen: operations.resume(seen, STORM, why="", actor=Actor("ann")))

    async def acknowledges(self, incident: str) -> None:
        """Have a person take an incident over."""
        await self.store.transact(Reads(incidents=[incident]), lambda seen: operations.acknowledge(seen, incident, actor=Actor("ann")))

    def over(self) -> Mapping[str, object]:
        """Return the last digest's facts."""
        return next(values for values in self.line.values if values.get("state") == "over")

    async def resolves(self, *ids: str) -> None:
        """End alerts."""
        await self.takes(*(alert(id=one, firing=False, ends_at=self.now + SECOND) for one in ids))

    async def noted(self, kind: Kind) -> list[ChainedEvent]:
        """Return the daemon's own events of a kind."""
        return [event for event in await self.store.events(SYSTEM_CHAIN) if event.kind == kind]

    async def of(self, ident: str) -> Run:
        """Return a run."""
        found = await self.store.run(ident)
        assert found is not None
        return found


@pytest.fixture
async def weather(tmp_path: Path) -> AsyncIterator[Weather]:
    """Start with one rule that knows no remedy, so that its runs escalate, for as many things as there are alerts."""
    started = Weather(tmp_path / "state.sqlite", rule(target="thing/${labels.id}", remedies=()))
    await started.start()
    yield started
    await started.store.aclose()


async def storm(weather: Weather) -> list[str]:
    """Let a storm begin; return the runs that it holds back."""
    held = await weather.opens("a", "b", "c", "d", "e")
    assert STORM in await weather.store.pauses()
    return held


async def test_storm_tells_once_however_many_look(weather: Weather) -> None:
    """One digest some seconds after the trip, the next one `digest_every` later; restarts and other replicas add none."""
    await storm(weather)
    await weather.passes(4 * SECOND)
    assert weather.digests() == []
    await weather.passes(2 * SECOND)
    assert weather.digests() == ["Storm"]
    assert "Storm: 5 incidents" in str(weather.line.values[-1]["text"])
    await weather.restart()
    weather.outbox = weather.new_outbox()
    for minute in range(9):
        await weather.opens(*(f"{minute}-{n}" for n in range(4)))
        await weather.passes(MINUTE, by=MINUTE)
    assert weather.digests() == ["Storm"]
    await weather.passes(2 * MINUTE, by=MINUTE)
    assert weather.digests() == ["Storm", "Storm"]
    assert "Storm: 41 incidents" in str(weather.line.values[-1]["text"])
    assert weather.paged() == []


async def test_storm_is_told_even_when_nothing_can_be_counted(weather: Weather) -> None:
    """Pages are withheld from the trip on: a fault in counting must not leave everybody unaware, nor end the digests."""
    weather.limits_of_storm = replace(LIMITS, reset=Reset.PERSON)
    await storm(weather)

    async def broken(_pause: Pause) -> object:
        raise ZeroDivisionError("a bug")

    weather.keeper._tallies = broken  # type: ignore[method-assign,assignment]
    await weather.passes(6 * SECOND)
    assert weather.digests() == ["Storm"]
    assert "remediator resume --scope storm" in str(weather.line.values[-1]["text"])
    del weather.keeper._tallies
    await weather.passes(10 * MINUTE, by=MINUTE)
    assert "Storm: 5 incidents" in str(weather.line.values[-1]["text"])


async def test_storm_is_told_those_whose_pages_came_right_before_the_trip(tmp_path: Path) -> None:
    """Incidents of `db` are looked at when one of `net` trips the breaker: their pages are withheld later, and `db` gets digests too."""
    db, net = (rule(name, alertname=name, target="thing/${labels.id}", remedies=(), escalation=name) for name in ("db", "net"))
    weather = await Weather(tmp_path / "state.sqlite", db, net).start()
    await weather.opens("a", "b", "c", name="db")
    weather.now += SECOND
    await weather.opens("d", name="net")
    assert STORM in await weather.store.pauses()
    await weather.passes(20 * SECOND)
    assert sorted((kind, who) for kind, who, _ in weather.line.sent) == [("digest", "db"), ("digest", "net")]
    assert {text.partition("(")[0].rpartition(": ")[2] for _, who, text in weather.line.sent if who == "db"} == {"3 incidents "}
    await weather.passes(10 * MINUTE, by=5 * SECOND)
    assert sorted((kind, who) for kind, who, _ in weather.line.sent) == 2 * [("digest", "db")] + 2 * [("digest", "net")]
    await weather.store.aclose()


async def test_storm_ends_by_itself_only_after_calm(weather: Weather) -> None:
    """Calm counts from the last time that the rate was one that trips, and anew after a restart: what came meanwhile is not known."""
    await storm(weather)
    for _ in range(6):
        await weather.looks(MINUTE)
        assert STORM in await weather.store.pauses()
        await weather.opens(*(f"{weather.now:%M}-{n}" for n in range(4)))
        await weather.looks()
    await weather.looks(4 * MINUTE)
    assert STORM in await weather.store.pauses()
    await weather.restart()
    await weather.looks(4 * MINUTE)
    assert STORM in await weather.store.pauses()
    await weather.looks(5 * MINUTE)
    assert set(await weather.store.pauses()) == {AFTER_STORM}
    (ended,) = await weather.noted(Kind.STORM_ENDED)
    assert "for 5m" in str(ended.data["reason"])


async def test_storm_with_reset_person_never_ends_by_itself(weather: Weather) -> None:
    """Calm is not enough where the settings say so."""
    weather.limits_of_storm = replace(LIMITS, reset=Reset.PERSON)
    await storm(weather)
    for _ in range(10):
        await weather.looks(timedelta(hours=1))
    assert STORM in await weather.store.pauses()
    await weather.store.transact(Reads(), lambda seen: operations.resume(seen, STORM, why="", actor=Actor("ann")))
    assert STORM not in await weather.store.pauses()
    assert (await weather.noted(Kind.STORM_ENDED))[0].actor == "ann"


async def test_what_a_storm_held_back_goes_on_slowly(weather: Weather) -> None:
    """`ramp` runs a second look up after its end, newest first, each once; until then none moves, however long that takes."""
    held = await storm(weather)
    await weather.tick(timedelta(hours=3))  # the runs look up by themselves now and then, and are held again
    assert all([is_held(await weather.of(ident)) for ident in held])
    assert len(weather.said(Kind.GUARD_DENIED)) == len(held)
    await weather.store.transact(Reads(), lambda seen: operations.resume(seen, STORM, why="", actor=Actor("ann")))
    await weather.looks()
    await weather.looks()
    turns = sorted([(await weather.of(ident)).wake_at for ident in held], key=str)
    assert turns == [weather.now + n * SECOND / 2 for n in range(len(held))]
    await weather.tick(SECOND)
    states = [(await weather.of(ident)).state for ident in held]
    assert states.count(RunState.ESCALATED) == 3
    assert states.count(RunState.WAITING) == 2


async def test_what_burns_after_a_storm_is_paged_by_itself(weather: Weather) -> None:
    """Once each run has found its way: one last digest, one page for each incident that is left, and nothing is told twice."""
    await storm(weather)
    await weather.passes(6 * SECOND)
    await weather.acknowledges(SECOND_ONE)
    await weather.resolves("a", "d")
    await weather.ends()
    await weather.passes(50 * SECOND)
    assert weather.paged() == []
    await weather.restart()
    other = weather.new_keeper()
    await weather.passes(20 * SECOND)
    await other.look()
    await weather.deliver()
    assert await weather.store.pauses() == {}
    assert weather.digests() == ["Storm", "Storm is over"]
    assert "2 incidents are open that nobody has acknowledged, each is paged by itself now" in str(weather.over()["text"])
    assert weather.paged() == ["INC-20261121-003", "INC-20261121-005"]
    assert [event.data["paged"] for event in await weather.noted(Kind.STORM_SETTLED)] == [2]
    await weather.passes(timedelta(hours=2), by=MINUTE)
    assert len(weather.paged()) == 2


async def test_what_is_too_much_to_page_stays_a_storm_for_people(weather: Weather) -> None:
    """More than the limit are left: digests go on, and each is paged once somebody has some of them."""
    await storm(weather)
    await weather.passes(6 * SECOND)
    await weather.ends()
    await weather.passes(21 * MINUTE, by=5 * SECOND)
    assert AFTER_STORM in await weather.store.pauses()
    assert weather.digests() == ["Storm", "Storm has passed, looking again", "Storm has passed, looking again"]
    assert "Once no more than 3 incidents are open" in str(weather.line.values[-1]["text"])
    assert weather.paged() == []
    for incident in ("INC-20261121-001", SECOND_ONE):
        await weather.acknowledges(incident)
    await weather.passes(2 * MINUTE, by=5 * SECOND)
    assert weather.digests()[-1] == "Storm is over"
    assert weather.paged() == ["INC-20261121-003", "INC-20261121-004", "INC-20261121-005"]


@pytest.mark.parametrize(("firing", "paged"), [(True, 3), (False, 0)])
async def test_what_is_being_remedied_when_a_storm_is_over_is_paged_only_if_that_lasts(tmp_path: Path, firing: bool, paged: int) -> None:
    """Automation gets the minutes that it has for any new incident; then people hear."""
    remedy = act("set it", step(thing="${labels.id}"))
    many = GuardSpec(budgets=(Budget(50, timedelta(hours=1)),))
    acting = rule(target="thing/${labels.id}", remedies=(remedy,), severity="sev1", guards=many)
    weather = await Weather(tmp_path / "state.sqlite", acting).start()
    weather.world.things = dict.fromkeys("abcde", "bad")
    await storm(weather)
    await weather.passes(6 * SECOND)
    await weather.resolves("a", "b")
    await weather.ends()
    await weather.passes(80 * SECOND)
    assert weather.digests() == ["Storm", "Storm is over"]
    assert weather.paged() == []
    weather.world.firing = firing
    await weather.passes(4 * MINUTE)
    assert len(weather.paged()) == paged
    await weather.store.aclose()


@pytest.fixture
async def remedied(tmp_path: Path) -> AsyncIterator[Weather]:
    """Let a storm end, of which one incident of two alerts is left, and let its remedy, held back until then, help the first of them."""
    weather = await Weather(tmp_path / "state.sqlite", rule(target="thing/${labels.id}", severity="sev1", remedies=(act(),))).start()
    await weather.takes(*(alert(id=one) for one in "abcde"), alert(id="a", instance="2"))
    await weather.passes(6 * SECOND)
    await weather.resolves("b", "c", "d", "e")
    await weather.ends()
    await weather.passes(10 * SECOND)
    weather.world.firing = False
    await weather.passes(40 * SECOND)
    assert (await weather.of("INC-20261121-001-1")).state is RunState.SUCCEEDED
    assert AFTER_STORM in await weather.store.pauses()
    yield weather
    await weather.store.aclose()


async def test_what_burns_on_after_a_success_is_left_of_a_storm(remedied: Weather) -> None:
    """The remedy helped one alert, another one burns on: the last digest counts it, and it is paged then, once."""
    await remedied.passes(20 * SECOND)
    assert "1 incidents are open" in str(remedied.over()["text"])
    assert remedied.paged() == ["INC-20261121-001"]
    await remedied.passes(timedelta(hours=2), by=MINUTE)
    assert remedied.paged() == ["INC-20261121-001"]


async def test_alert_that_joins_what_a_storm_held_back_is_paged(remedied: Weather) -> None:
    """Nothing seemed to be left of the storm: a page that was not sent for that keeps nobody from hearing of what joins."""
    await remedied.takes(alert(id="a", instance="2", firing=False, ends_at=remedied.now))
    await remedied.passes(20 * SECOND)
    assert "Nothing is left; whatever comes is paged by itself." in str(remedied.over()["text"])
    await remedied.takes(alert(id="a", instance="3"))
    await remedied.passes(170 * SECOND)
    assert remedied.paged() == []
    await remedied.passes(12 * SECOND)
    assert remedied.paged() == ["INC-20261121-001"]
    await remedied.passes(timedelta(hours=2), by=MINUTE)
    assert remedied.paged() == ["INC-20261121-001"]


async def test_storm_whose_runs_wait_for_guards_is_not_over(tmp_path: Path) -> None:
    """What becomes of them is not known yet; the digests say how many wait, and what waits for an approval."""
    patient = rule(target="thing/${labels.id}", remedies=(), guards=GuardSpec(firing_for=14 * MINUTE, max_wait=20 * MINUTE))
    asking = rule("asking", alertname="Asking", target="asks/${labels.id}", mode=Authority.APPROVE, remedies=(act(),))
    weather = await Weather(tmp_path / "state.sqlite", patient, asking).start()
    await storm(weather)
    (asks,) = await weather.opens("z", name="Asking")
    await weather.passes(6 * SECOND)
    await weather.ends()
    await weather.passes(11 * MINUTE, by=5 * SECOND)
    assert (await weather.of(asks)).state is RunState.AWAITING_APPROVAL
    assert weather.digests() == ["Storm", "Storm has passed, looking again"]
    assert "waiting 5, awaiting_approval 1" in str(weather.line.values[-1]["text"])
    assert AFTER_STORM in await weather.store.pauses()
    await weather.resolves("a", "b", "c")
    await weather.passes(10 * MINUTE, by=5 * SECOND)
    assert weather.digests()[-1] == "Storm is over"
    assert len(weather.paged()) == 3
    await weather.store.aclose()


async def test_page_of_what_a_storm_changed_is_sent_at_once(tmp_path: Path) -> None:
    """A remedy that failed never hides in a digest: its page goes out in the middle of the storm, and climbs."""
    weather = await Weather(tmp_path / "state.sqlite", rule(target="thing/${labels.id}", remedies=(act(),))).start()
    (first,) = await weather.opens("a")
    await weather.work()
    assert (await weather.of(first)).state is RunState.VERIFYING
    await storm(weather)
    await weather.passes(15 * MINUTE, by=MINUTE)
    assert (await weather.of(first)).state is RunState.FAILED
    assert weather.paged() == ["INC-20261121-001"]
    await weather.store.aclose()


async def test_storm_that_comes_back_holds_back_again(weather: Weather) -> None:
    """A second storm while the first one's victims get their turns: who has not had it waits on, who comes meanwhile too."""
    held = await storm(weather)
    await weather.store.transact(Reads(), lambda seen: operations.resume(seen, STORM, why="", actor=Actor("ann")))
    await weather.looks()
    weather.now += SECOND / 4
    more = await weather.opens("v", "w", "x", "y", "z")
    assert set(await weather.store.pauses()) == {STORM}
    await weather.tick(MINUTE)
    assert all([is_held(await weather.of(ident)) for ident in (*held, *more)])


async def test_storm_cancels_what_resolves_meanwhile(weather: Weather) -> None:
    """An incident that is over needs nobody's turn: its run ends at once, storm or not."""
    held = await storm(weather)
    await weather.resolves("a")
    await weather.work()
    assert (await weather.of(held[0])).state is RunState.CANCELLED
    assert is_held(await weather.of(held[1]))


async def test_kill_switch_counts_more_than_a_storm(weather: Weather) -> None:
    """Whoever looks up during both is interrupted, so that the storm's end alone starts nothing."""
    held = await storm(weather)
    await weather.store.transact(Reads(), lambda seen: Changes(pauses=[Pause(EVERYWHERE, "ann", "stop", seen.now)]))
    await weather.store.transact(Reads(), lambda seen: operations.resume(seen, STORM, why="", actor=Actor("ann")))
    await weather.looks()
    await weather.tick(MINUTE)
    assert {(await weather.of(ident)).state for ident in held} == {RunState.INTERRUPTED}


async def test_storm_stops_a_planned_run_before_its_call_and_lets_an_approved_one_make_it(tmp_path: Path) -> None:
    """A run that was under way when the storm began makes no first call by itself; one that people approved does."""
    asking = rule(mode=Authority.APPROVE, target="thing/${labels.id}", remedies=(act(),))
    weather = await Weather(tmp_path / "state.sqlite", asking).start()
    (first,) = await weather.opens("a")
    await weather.work()
    assert (await weather.of(first)).state is RunState.AWAITING_APPROVAL
    await storm(weather)
    approval = (await weather.of(first)).approval or ""
    approver = Actor("ann", frozenset({"approver"}))

    await weather.store.transact(
        Reads(approvals=[approval]),
        lambda seen: operations.decide_approval(seen, approval, approve=True, comment="", actor=approver),
    )
    await weather.work()
    assert weather.world.writes == ["a=good"]
    found = await weather.store.approval(approval)
    assert found is not None
    assert found.state is not ApprovalState.PENDING
    await weather.store.aclose()


async def test_storm_that_begins_while_a_run_plans_holds_it_before_its_first_call(tmp_path: Path) -> None:
    """The guard is asked again inside the transaction that would begin to act."""
    acting = rule(target="thing/${labels.id}", remedies=(act(),))
    weather = await Weather(tmp_path / "state.sqlite", acting).start()
    (first,) = await weather.opens("a")
    (run,) = await weather.store.claim("me", limit=1, lease=timedelta(seconds=30))

    revalidation = weather.engine.revalidation
    asked = revalidation.standing

    async def standing(subject: Alert, *_: object) -> tuple[Standing, str]:
        """Answer as ever, but a moment too late: the storm has begun."""
        pause = Pause(STORM, "remediator", "so it is", weather.now, since=weather.now)
        await weather.store.transact(Reads(), lambda _seen: Changes(pauses=[pause]))
        return await asked(subject)

    revalidation.standing = standing  # type: ignore[method-assign,assignment]
    await weather.engine.advance(run)
    assert weather.world.writes == []
    assert is_held(await weather.of(first))
    assert (await weather.store.locks()) == {}
    await weather.store.aclose()
