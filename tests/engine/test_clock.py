"""A clock that is set: everything waits as long as it was meant to, what holds automation back holds, and it is said."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from remediator.clock import keeper, stepping
from remediator.clock.keeper import PORTION, ClockKeeper
from remediator.errors import StoreUnavailable
from remediator.escalation.levels import Policy
from remediator.escalation.notice import alarm
from remediator.escalation.outbox import InForce, Outbox
from remediator.logs import level_of
from remediator.metrics import Metrics
from remediator.model import Event, RunState
from remediator.records import STORM, SYSTEM_CHAIN, Message, MessageKind, Pause
from remediator.rules.model import ApprovalSpec, GuardSpec, Rule
from remediator.store.protocol import Changes, Reads, Snapshot
from remediator.storms.breaker import first_digest
from tests.builders import alert
from tests.engine.paging import FIRST, MINUTE, Paging, flaps, level, opened
from tests.scripted import Death
from tests.store.make import NOW, run
from tests.stories import act, decide, playbook

SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


class Timed(Paging):
    """A harness with a keeper of the clock, which is looked at as often as a daemon does; the clock may be set."""

    def __init__(self, path: Path, *rules: Rule, policy: Policy | None = None) -> None:
        super().__init__(path, *rules, policy=policy)
        self.seconds = 0.0
        self.metrics = Metrics(CollectorRegistry())

    async def start(self) -> Timed:
        await super().start()
        self.clock = ClockKeeper(self.store, metrics=self.metrics, tolerance=lambda: 2 * MINUTE, clock=lambda: self.seconds)
        await self.clock.begin()
        return self

    async def passes(self, span: timedelta, *, by: timedelta = MINUTE) -> None:
        """Let time pass on both clocks, with the keeper at work too."""
        left = span
        while left > timedelta():
            part = min(by, left)
            self.now += part
            self.seconds += part.total_seconds()
            left -= part
            await self.clock.look()
            await self.work()
            await self.deliver()

    def is_set(self, by: timedelta) -> None:
        """Set the clock, forward or back."""
        self.now += by

    def steps(self, direction: str) -> float:
        """Return how many steps were counted."""
        return self.metrics.registry.get_sample_value("remediator_clock_steps_total", {"direction": direction}) or 0.0


Begin = Callable[..., Awaitable[Timed]]


@pytest.fixture
async def begin(tmp_path: Path) -> AsyncIterator[Begin]:
    """Start a harness with one rule; it is closed at the end."""
    async with opened(Timed, tmp_path / "state.sqlite") as start:
        yield start


async def test_nobody_s_page_waits_when_the_clock_is_set_back(begin: Begin) -> None:
    """Level 2 hears of it ten minutes after level 1, though the clock was set back by an hour in between, twice."""
    timed = await begin()
    await timed.fires()
    await timed.passes(4 * MINUTE)
    timed.is_set(-HOUR)
    await timed.passes(3 * MINUTE)
    timed.is_set(-HOUR)
    await timed.passes(2 * MINUTE)
    assert timed.told() == ["level-1"]
    await timed.passes(MINUTE)
    assert timed.told() == ["level-1", "level-2"]
    await timed.passes(20 * MINUTE)
    assert timed.told() == ["level-1", "level-2", "level-3"]


async def test_a_step_is_said_once_and_a_second_is_none(begin: Begin) -> None:
    """It stands in the audit trail, in the log and in a metric; what NTP does all the time does not."""
    timed = await begin()
    timed.is_set(-timedelta(seconds=1))
    await timed.passes(MINUTE)
    assert timed.said("clock.set_back") == []
    timed.is_set(-HOUR)
    await timed.passes(MINUTE)
    (said,) = timed.said("clock.set_back")
    assert said["seconds"] == pytest.approx(3600, abs=1)
    assert [level_of(event) for event in timed.events if event.kind == "clock.set_back"] == [logging.WARNING]
    assert [event.kind for event in await timed.store.events(SYSTEM_CHAIN)] == ["clock.set_back"]


async def test_a_step_forward_is_said_and_moves_nothing(begin: Begin) -> None:
    """What waits is due by then as ever; whoever looks knows why all of it came at once. Set back again it waits no longer than meant."""
    timed = await begin()
    await timed.fires()
    timed.is_set(4 * MINUTE)
    with capture_logs() as logs:
        await timed.passes(MINUTE)
    assert [one["event"] for one in logs if one["event"].startswith("clock.")] == ["clock.set_forward"]
    assert (timed.steps("forward"), timed.said("clock.set_back")) == (1, [])
    timed.is_set(-4 * MINUTE)
    await timed.passes(5 * MINUTE)
    assert timed.told() == ["level-1", "level-2"]


async def test_an_approval_ends_when_it_was_meant_to(begin: Begin) -> None:
    """Thirty minutes are not an hour and a half; a person's word within them counts."""
    timed = await begin(playbook(act(approval=ApprovalSpec())))
    await timed.fires()
    assert await timed.state() is RunState.AWAITING_APPROVAL
    await timed.passes(10 * MINUTE)
    timed.is_set(-HOUR)
    await timed.passes(19 * MINUTE)
    assert await timed.state() is RunState.AWAITING_APPROVAL
    await timed.passes(2 * MINUTE)
    assert await timed.state() is RunState.EXPIRED


async def test_a_word_given_after_the_clock_was_set_back_counts(begin: Begin) -> None:
    """The run goes on as if nothing had been: it acts, once, and is verified within its time."""
    timed = await begin(playbook(act(approval=ApprovalSpec())))
    await timed.fires()
    timed.is_set(-HOUR)
    await timed.passes(MINUTE)
    await decide(timed)
    assert timed.world.writes == ["a=good"]
    assert await timed.state() is RunState.VERIFYING
    await timed.passes(11 * MINUTE)
    assert await timed.state() is RunState.FAILED


async def test_a_verification_that_holds_ends_when_it_was_meant_to(begin: Begin) -> None:
    """It neither fails at once, nor waits an hour more for its end."""
    timed = await begin(playbook(act()))
    await timed.fires()
    assert await timed.state() is RunState.VERIFYING
    await timed.passes(3 * MINUTE)
    timed.is_set(-HOUR)
    await timed.passes(6 * MINUTE)
    assert await timed.state() is RunState.VERIFYING
    await timed.passes(2 * MINUTE)
    assert await timed.state() is RunState.FAILED


async def test_what_entered_its_state_just_before_it_was_noticed_keeps_its_time(begin: Begin) -> None:
    """Begun by the clock as it is now, it would fail at once were it moved: what can't be told is left as it is."""
    timed = await begin(playbook(act()))
    timed.is_set(-HOUR)
    await timed.fires()
    assert await timed.state() is RunState.VERIFYING
    await timed.passes(timedelta(seconds=5))
    assert len(timed.said("clock.set_back")) == 1
    assert await timed.state() is RunState.VERIFYING


async def test_a_cooldown_does_not_end_early(begin: Begin) -> None:
    """What was used stays used: after a step back the next run waits for longer, never for less."""
    timed = await begin(playbook(act(), guards=GuardSpec(cooldown=30 * MINUTE, max_wait=5 * MINUTE)))
    await timed.fires()
    timed.world.firing = False
    await timed.ends()
    assert await timed.state() is RunState.SUCCEEDED
    await timed.passes(25 * MINUTE)
    timed.is_set(-20 * MINUTE)
    timed.world.firing = True
    timed.world.things["a"] = "bad"
    await timed.send(alert(starts_at=timed.now))
    await timed.passes(10 * MINUTE)
    assert timed.world.writes == ["a=good"]


async def test_times_that_a_worker_wrote_back_are_moved_when_it_lets_go(begin: Begin) -> None:
    """A run that was at work while it was moved is written as its worker knew it, with the times of before."""
    timed = await begin(playbook(act(approval=ApprovalSpec())))
    await timed.fires()
    before = await timed.run()
    timed.is_set(-HOUR)
    await timed.passes(timedelta(seconds=5))
    moved = await timed.run()
    assert before.deadline is not None
    assert moved.deadline == pytest.approx(before.deadline - HOUR, abs=timedelta(seconds=1))
    await timed.store.transact(Reads(), lambda _snapshot: Changes(runs=[before]))
    await timed.passes(timedelta(seconds=5))
    assert (await timed.run()).deadline == moved.deadline


async def test_what_was_moved_is_looked_at_less_and_less_and_once_at_the_end(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it is read each time, and a hundred thousand runs may wait; what is written back late is moved all the same."""
    timed = await begin(playbook(act(approval=ApprovalSpec(expires=2 * HOUR))))
    await timed.fires()
    before = await timed.run()
    timed.is_set(-HOUR)
    await timed.clock.look()
    moved, seen, read = await timed.run(), list[Reads](), timed.store.read

    async def counted(reads: Reads) -> Snapshot:
        seen.append(reads)
        return await read(reads)

    monkeypatch.setattr(timed.store, "read", counted)
    for _ in range(175):
        await looks(timed)
    assert 0 < sum(bool(reads.runs) for reads in seen) < 10
    await timed.store.transact(Reads(), lambda _snapshot: Changes(runs=[before]))
    for _ in range(5):
        await looks(timed)
    assert (await timed.run()).deadline == moved.deadline
    seen.clear()
    for _ in range(20):
        await looks(timed)
    assert not any(reads.runs for reads in seen)


def test_only_what_is_as_before_is_moved() -> None:
    """A time that was written since, by the clock as it is now, stays."""
    before = stepping.times_of(run(deadline=NOW + HOUR, healthy_since=NOW))
    now: Any = stepping.earlier(run(deadline=NOW + HOUR, healthy_since=NOW - 3 * HOUR), before, HOUR)
    assert (now.deadline, now.healthy_since, now.waiting_since) == (NOW, NOW - 3 * HOUR, None)


# --- steps that follow each other, replicas, faults


async def looks(timed: Timed, *others: ClockKeeper) -> None:
    """Let a few seconds pass, and have everybody look at the clock."""
    timed.now += 5 * SECOND
    timed.seconds += 5
    for one in (timed.clock, *others):
        await one.look()


def keeper_of(timed: Timed) -> ClockKeeper:
    """Make a further daemon's keeper, as one that begins has it."""
    return ClockKeeper(timed.store, metrics=timed.metrics, tolerance=lambda: 2 * MINUTE, clock=lambda: timed.seconds)


async def test_a_step_right_after_a_step_is_handled(begin: Begin) -> None:
    """Between two looks each: the second is not taken for what was handled already."""
    timed = await begin()
    await timed.fires()
    for _ in range(2):
        timed.is_set(-HOUR)
        await looks(timed)
    await timed.passes(10 * MINUTE)
    assert timed.told() == ["level-1", "level-2"]
    assert len(timed.said("clock.set_back")) == 2


async def test_two_replicas_handle_each_of_many_steps_once(begin: Begin) -> None:
    """Whatever the clock does between two looks, forward and back, by months."""
    timed = await begin()
    other = keeper_of(timed)
    await other.begin()
    for hours in (-1, 2, -3, -1, 30 * 24, -31 * 24, 20 * 24):
        timed.is_set(hours * HOUR)
        await looks(timed, other)
    assert [round(one["seconds"] / 3600) for one in timed.said("clock.set_back")] == [1, 3, 1, 31 * 24]


async def test_times_that_a_worker_wrote_back_are_moved_by_all_steps(begin: Begin) -> None:
    """It had the run in its hands while the clock was set back twice."""
    timed = await begin(playbook(act(approval=ApprovalSpec())))
    await timed.fires()
    before = await timed.run()
    for _ in range(2):
        timed.is_set(-HOUR)
        await looks(timed)
    moved = await timed.run()
    await timed.store.transact(Reads(), lambda _snapshot: Changes(runs=[before]))
    await looks(timed)
    assert (await timed.run()).deadline == moved.deadline
    assert before.deadline is not None
    assert moved.deadline == pytest.approx(before.deadline - 2 * HOUR, abs=SECOND)


@pytest.mark.parametrize("dies", [True, False])
async def test_runs_are_moved_with_the_word_though_its_answer_is_lost(begin: Begin, monkeypatch: pytest.MonkeyPatch, *, dies: bool) -> None:
    """Nobody would know afterwards that it was not done, whether the process lives on or not."""
    timed = await begin(playbook(act(approval=ApprovalSpec())))
    await timed.fires()
    transact = timed.store.transact

    async def loses_its_answer(reads: Reads, build: Any) -> Any:
        await transact(reads, build)
        raise StoreUnavailable("the answer is lost")

    timed.is_set(-HOUR)
    with monkeypatch.context() as patch:
        patch.setattr(timed.store, "transact", loses_its_answer)
        with pytest.raises(StoreUnavailable):
            await looks(timed)
    if dies:
        timed.clock = keeper_of(timed)
        await timed.clock.begin()
    await timed.passes(31 * MINUTE)
    assert await timed.state() is RunState.EXPIRED


async def test_the_clock_of_whoever_delivered_a_message_is_not_the_store_s(begin: Begin) -> None:
    """On PostgreSQL a daemon's own clock may be ahead: what it says of a digest is no proof that the store's was set back."""
    timed = await begin()
    word = alarm("x", "Something", "happened", policy="p", due=timed.now, dry_run=False)
    await timed.store.transact(Reads(), lambda _snapshot: Changes(messages=[word]))
    policy, line = timed.policy, cast("Any", timed.line)
    ahead = Outbox(timed.store, line, lambda _name: policy, public_url=lambda: None, clock=lambda: timed.now + 10 * MINUTE)
    for message in await timed.store.due_messages(limit=9):
        await ahead._try(message)
    assert [event.kind for event in await timed.store.events(SYSTEM_CHAIN)] == ["message.delivered"]
    await keeper_of(timed).begin()
    assert timed.said("clock.set_back") == []


async def test_all_that_wait_are_moved_with_the_word_though_nobody_lives_on(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes next sees that the step was handled, and by whom it was not finished nobody knows."""
    timed = await begin()
    waiting = [run(of=number, entered_at=timed.now, deadline=timed.now + HOUR, wake_at=None) for number in range(1, PORTION + 2)]
    await timed.store.transact(Reads(), lambda _snapshot: Changes(runs=waiting))
    timed.now += MINUTE
    timed.seconds += 60
    await timed.clock.look()
    timed.is_set(-HOUR)
    monkeypatch.setattr(timed.clock, "_move", died)
    with pytest.raises(Death):
        await timed.clock.look()
    timed.clock = keeper_of(timed)
    await timed.clock.begin()
    await looks(timed)
    found = await timed.store.read(Reads(runs=[one.id for one in waiting]))
    late = [one.deadline for one in found.runs.values() if one.deadline is None or one.deadline > timed.began + SECOND]
    assert (len(found.runs), late) == (PORTION + 1, [])


async def test_a_start_does_not_wait_until_very_many_runs_are_moved(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alerts are taken at once; those that are not moved with the word are moved beside the work, from the first look on."""
    timed = await begin()
    waiting = [run(of=number, entered_at=timed.now, wake_at=timed.now + DAY) for number in range(1, PORTION + 2)]
    await timed.store.transact(Reads(), lambda _seen: Changes(runs=waiting, events=[Event(SYSTEM_CHAIN, "daemon.started", timed.now)]))

    async def left() -> int:
        found = await timed.store.read(Reads(runs=[one.id for one in waiting]))
        return sum(one.wake_at == waiting[0].wake_at for one in found.runs.values())

    monkeypatch.setattr(keeper, "AT_ONCE", PORTION)
    timed.is_set(-HOUR)
    timed.clock = keeper_of(timed)
    await timed.clock.begin()
    assert await left() == 1
    await looks(timed)
    assert await left() == 0


async def test_what_entered_its_state_while_all_that_waits_is_read_keeps_its_time(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    """To read a hundred thousand runs takes its time: what began by the clock as it is now did so also when it is read at last."""
    timed = await begin()
    await looks(timed)
    timed.is_set(-HOUR)
    begun = run(entered_at=timed.now, deadline=timed.now + DAY, wake_at=None)
    await timed.store.transact(Reads(), lambda _seen: Changes(runs=[begun]))
    listed = timed.store.runs

    async def slowly(**wanted: Any) -> Any:
        timed.now += 10 * MINUTE
        return await listed(**wanted)

    monkeypatch.setattr(timed.store, "runs", slowly)
    await looks(timed)
    assert timed.said("clock.set_back")
    assert await timed.store.run(begun.id) == begun


async def died() -> None:
    """Stand for a process that ends."""
    raise Death


# --- messages that are on their way meanwhile


async def test_a_word_that_somebody_has_it_is_told_though_the_clock_was_set_back(begin: Begin) -> None:
    """It waits for its receiver while the acknowledgement that it tells of is moved."""
    timed = await begin()
    await timed.fires()
    await timed.passes(5 * MINUTE)
    timed.line.dead.add("level-1")
    await timed.acknowledge()
    timed.is_set(-HOUR)
    await timed.passes(MINUTE)
    timed.line.dead.clear()
    await timed.passes(5 * MINUTE)
    assert timed.told("acknowledged") == ["level-1"]


async def test_a_message_that_is_put_off_while_the_clock_is_set_back_waits_no_longer(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was decided by the old clock, and is written down when all else that waits has been moved."""
    timed = await begin(policy=Policy("p", (level(1, 5),), urgent="sev1"))
    plain = timed.outbox._put_off

    async def late(*args: Any) -> None:
        timed.is_set(-HOUR)
        await looks(timed)
        monkeypatch.undo()
        await plain(*args)

    monkeypatch.setattr(timed.outbox, "_put_off", late)
    await timed.fires()
    await timed.passes(4 * MINUTE)
    assert timed.told() == []
    await timed.passes(MINUTE)
    assert timed.told() == ["level-1"]


async def test_a_message_that_was_read_by_the_old_clock_waits_no_longer(begin: Begin) -> None:
    """All that waits was moved between the reading of it and what becomes of it."""
    timed = await begin(policy=Policy("p", (level(1, 5),), urgent="sev1"))
    await timed.send_and_work()
    page = next(one for one in await timed.store.due_messages(limit=9) if one.kind is MessageKind.PAGE)
    timed.is_set(-HOUR)
    await looks(timed)
    await timed.outbox._try(page)
    await timed.passes(6 * MINUTE)
    assert timed.told() == ["level-1"]


async def test_the_next_digest_of_a_storm_comes_in_time_though_the_clock_is_set_back_while_this_one_is_counted(begin: Begin) -> None:
    """Counting takes a while; people go on to hear of the storm all the same."""
    timed = await begin()
    storm = Pause(STORM, "remediator", "60 incidents opened within 1m, limit 50", timed.now, since=timed.now)
    digest = first_digest(storm, "p", at=timed.now, dry_run=False)
    await timed.store.transact(Reads(), lambda _snapshot: Changes(pauses=[storm], messages=[digest]))

    async def counted(message: Message) -> Message:
        timed.is_set(-HOUR)
        await looks(timed)
        return message

    timed.outbox._about = InForce(counted=counted)
    timed.now += 5 * SECOND
    timed.seconds += 5
    await timed.deliver()
    timed.outbox._about = InForce()
    await timed.passes(14 * MINUTE)
    assert timed.told("digest") == ["level-1"]
    await timed.passes(MINUTE)
    assert timed.told("digest") == ["level-1"] * 2


# --- what goes by the time of something that is over


@pytest.mark.parametrize("same_machine", [True, False])
async def test_what_fires_again_after_the_clock_was_set_back_by_months_is_paged(begin: Begin, *, same_machine: bool) -> None:
    """Its end lies in the future: neither is it a late copy of what is over, nor does yesterday's acknowledgement hold."""
    timed = await begin()
    await timed.fires()
    await flaps(timed, 2)
    await timed.acknowledge()
    await timed.ends()
    timed.is_set(-90 * DAY)
    await timed.passes(20 * MINUTE)
    timed.line.sent.clear()
    await timed.send(alert(starts_at=timed.now if same_machine else timed.now + 90 * DAY))
    await timed.passes(31 * MINUTE)
    assert timed.told() == ["level-1", "level-2", "level-3"]


async def test_acknowledgement_runs_out_in_time_though_the_clock_was_set_back_by_months(begin: Begin) -> None:
    """It was given by a clock that was months ahead: nobody is left asleep until that time comes."""
    timed = await begin()
    await timed.fires()
    await timed.passes(5 * MINUTE)
    await timed.acknowledge()
    await timed.passes(10 * MINUTE)
    timed.is_set(-90 * DAY)
    await timed.passes(49 * MINUTE)
    assert timed.told() == ["level-1"]
    await timed.passes(2 * MINUTE)
    assert timed.told() == ["level-1", "level-2"]


async def test_what_fires_on_after_a_success_is_not_waited_for_by_a_clock_that_was_set_back(begin: Begin) -> None:
    """Its remedy helped, they say; it did not, and neither a run nor a level waits for the day by which the clock was set back."""
    timed = await begin(playbook(act()))
    await timed.fires()
    await timed.passes(4 * MINUTE)
    timed.world.firing = False
    await timed.passes(MINUTE)
    assert await timed.state() is RunState.SUCCEEDED
    assert timed.told() == ["level-1"]
    timed.is_set(-DAY)
    timed.world.firing = True
    await timed.passes(10 * MINUTE)
    assert timed.told() == ["level-1", "level-2"]
    await timed.send(alert(starts_at=timed.began))
    assert (await timed.incident()).relapses == 1


async def test_a_page_that_reaches_nobody_is_known_to_be_late_by_a_clock_that_was_set_back(begin: Begin) -> None:
    """The heartbeat stops then, as it would have."""
    timed = await begin()
    timed.line.dead.add("level-1")
    await timed.fires()
    await timed.passes(MINUTE)
    timed.is_set(-DAY)
    timed.outbox._tell_failing()
    await timed.passes(29 * MINUTE)
    assert timed.outbox.unreached(30 * MINUTE) is None
    await timed.passes(2 * MINUTE)
    assert timed.outbox.unreached(30 * MINUTE) == f"{FIRST}/page/0"


def test_a_run_that_is_left_to_newer_rules_is_left_no_longer() -> None:
    """Two minutes by any clock."""
    before = run(left_since=NOW)
    assert stepping.earlier(before, stepping.times_of(before), HOUR).left_since == NOW - HOUR
