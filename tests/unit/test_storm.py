"""The storm breaker: when it trips, what it holds back, what its digest tells. Pure."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from remediator.errors import NotFound
from remediator.escalation.digest import MOST_RUNS, Tallies, facts_of
from remediator.events import Kind
from remediator.guards import BEFORE_ACTING, BEFORE_PLANNING, BEFORE_UNDOING, BETWEEN_STEPS, ON_PLAN, Answer, Case, StormBreaker, judge
from remediator.ingest.intake import reads_for, take_all
from remediator.model import Actor, ApprovalState, RunState, StepState
from remediator.records import AFTER_STORM, STORM, SYSTEM_CHAIN, Approval, Message, MessageKind, Pause, Run, Step
from remediator.store.protocol import Changes, Snapshot
from remediator.storms import breaker
from remediator.storms.breaker import StormLimits
from tests.builders import NOW, World, alert, bounds, incident, rule, run

MINUTE = timedelta(minutes=1)
LIMITS = StormLimits(incidents=3, within=MINUTE)
THING = "thing/${labels.id}"
BROKEN = Pause(STORM, "remediator", "4 incidents opened within 1m, limit 3", NOW, since=NOW - MINUTE)
NAME = breaker.name_of(BROKEN)


class Sky(World):
    """A world whose store tells what was opened lately, as real ones do."""

    def __init__(self, limits: StormLimits | None = LIMITS) -> None:
        super().__init__(rule(target=THING), storm=limits)

    def opens(self, *names: str, after: timedelta = timedelta()) -> Changes:
        """Take alerts of so many things in one webhook."""
        changes = self.take(*(alert(id=name) for name in names), after=after)
        opened = [(one.incident, one.created_at) for one in changes.runs]
        kept = {scope: pause for scope, pause in self.snapshot.pauses.items() if scope not in changes.lift}
        pauses = {**kept, **{pause.scope: pause for pause in changes.pauses}}
        self.snapshot = replace(self.snapshot, opened=(*opened, *self.snapshot.opened), pauses=pauses)
        return changes


# --- tripping


def test_storm_breaker_trips_with_the_incident_too_many() -> None:
    """Up to the limit incidents are opened as ever; the one more is held back in the very transaction that opens it, and says why."""
    sky = Sky()
    before = sky.opens("a", "b", "c")
    assert not before.pauses
    assert {one.state for one in before.runs} == {RunState.QUEUED}
    changes = sky.opens("d", after=timedelta(seconds=30))
    (pause,), (held,) = changes.pauses, changes.runs
    assert (pause.scope, pause.why) == (STORM, "4 incidents opened within 1m, limit 3")
    assert held.state is RunState.WAITING
    assert held.reason == "storm breaker: 4 incidents opened within 1m, limit 3"
    assert breaker.is_held(held)
    page, digest = changes.messages
    assert (page.kind, page.due_at, page.body[breaker.WITHHELD_BY]) == (
        MessageKind.PAGE,
        pause.at + breaker.WITHHELD,
        breaker.name_of(pause),
    )
    assert (digest.kind, digest.policy, digest.due_at) == (MessageKind.DIGEST, "default", pause.at + breaker.FIRST_DIGEST)
    assert "storm breaker: 4 incidents opened within 1m, limit 3" in str(facts_of(digest, public_url=None)["text"])
    assert [event.kind for event in changes.events if event.chain == SYSTEM_CHAIN] == [Kind.STORM_TRIPPED]
    own = [event.kind for event in changes.events if event.chain == held.incident]
    assert own == [Kind.INCIDENT_OPENED, Kind.RUN_CREATED, Kind.RUN_ENTERED, Kind.GUARD_DENIED, Kind.MESSAGE_FOLDED]


def test_storm_breaker_counts_a_webhook_as_a_whole() -> None:
    """A webhook with more incidents than the limit trips it at once, and all of them are held back."""
    changes = Sky().opens("a", "b", "c", "d", "e")
    assert changes.pauses[0].why.startswith("5 incidents")
    assert all(breaker.is_held(one) for one in changes.runs)
    assert not changes.claim


def test_slow_incidents_are_no_storm() -> None:
    """As many incidents over a longer time than the window trip nothing."""
    sky = Sky()
    for name in "abcdefgh":
        assert not sky.opens(name, after=timedelta(seconds=21)).pauses


def test_repeated_alerts_are_no_storm() -> None:
    """However often the same alerts come, and however many join open incidents: what counts is new incidents."""
    sky = Sky()
    sky.opens("a", "b", "c")
    for number in range(50):
        joined = [alert(id="a", pod=str(number)), alert(id="a"), alert(id="b")]
        assert not sky.take(*joined, after=timedelta(seconds=1)).pauses


def test_relapses_count_as_incidents() -> None:
    """Incidents that open again are a storm just as new ones are."""
    sky = Sky()
    names = ("a", "b", "c", "d")
    for name in names:
        sky.opens(name, after=2 * MINUTE)
    sky.take(*(alert(id=name, firing=False, ends_at=sky.now + MINUTE) for name in names), after=2 * MINUTE)
    settled = {key: replace(one, active_run=None) for key, one in sky.snapshot.latest_incident.items()}
    sky.snapshot = replace(sky.snapshot, latest_incident=settled, incidents={one.id: one for one in settled.values()})
    changes = sky.take(*(alert(id=name, starts_at=sky.now + 2 * MINUTE) for name in names), after=2 * MINUTE)
    assert [one.relapses for one in changes.incidents] == [1, 1, 1, 1]
    assert changes.pauses[0].scope == STORM


def test_while_it_is_tripped_everything_opened_is_held_back() -> None:
    """Once tripped, the state decides and not the rate; it is not tripped again."""
    sky = Sky()
    sky.opens("a", "b", "c", "d")
    changes = sky.opens("late", after=timedelta(hours=2))
    assert breaker.is_held(changes.runs[0])
    assert not changes.pauses
    assert Kind.STORM_TRIPPED not in [event.kind for event in changes.events]


def test_policy_whose_first_page_is_withheld_later_hears_of_the_storm_too() -> None:
    """Its people get their first digest with that page, not with the next digest of those who knew before."""
    sky = Sky()
    sky.opens("a", "b", "c", "d")
    sky.rules = (rule(target="thing/${labels.id}", escalation="network"),)
    later = sky.opens("e", after=2 * MINUTE).messages
    (digest,) = [one for one in later if one.kind is MessageKind.DIGEST]
    assert (digest.policy, digest.due_at) == ("network", sky.now + breaker.FIRST_DIGEST)


def test_storm_withholds_pages_and_no_other_word() -> None:
    """An incident that ends and begins again in one moment of a storm: that it ended is told those who were paged, as ever."""
    sky = Sky()
    sky.opens("a", "b", "c", "d")
    known = sky.snapshot.incidents["INC-20261121-001"]
    paged = replace(known, paged_at=NOW, policy="default", active_run=None)
    sky.snapshot = replace(sky.snapshot, incidents={known.id: paged}, latest_incident={(known.rule, known.target): paged})
    ends, again = alert(id="a", firing=False, ends_at=NOW + MINUTE), alert(id="a", starts_at=NOW + 2 * MINUTE)
    webhooks = [sky.sort(ends), sky.sort(again)]
    changes, _ = take_all(webhooks, replace(sky.snapshot, now=NOW + 3 * MINUTE), sky.intake)
    due = {message.kind: message.due_at - NOW - 3 * MINUTE for message in changes.messages}
    assert due[MessageKind.RESOLVED] == timedelta()
    assert due[MessageKind.PAGE] == breaker.WITHHELD


def test_without_limits_nothing_is_a_storm() -> None:
    """Rehearsal and rule tests have no breaker, and nothing extra is read for it."""
    sky = Sky(None)
    assert not sky.opens(*(str(number) for number in range(100))).pauses
    assert reads_for(sky.sort(alert(id="a")), now=NOW).opened_within is None
    assert reads_for(sky.sort(alert(id="a")), now=NOW, limits=LIMITS).opened_most == 2 * (LIMITS.incidents + 1)


def test_after_its_end_only_what_came_since_counts() -> None:
    """A person who ends a storm gets a whole limit's worth before it trips again; until all was looked at it is the same storm."""
    sky = Sky()
    first = sky.opens("a", "b", "c", "d").pauses[0]
    ended = breaker.end(sky.snapshot, actor=Actor("ann"), why="the network is back")
    sky.snapshot = replace(sky.snapshot, pauses={AFTER_STORM: ended.pauses[0]})
    assert not sky.opens("e", "f", "g", after=timedelta(seconds=1)).pauses
    again = sky.opens("h", after=timedelta(seconds=1))
    assert again.pauses[0].scope == STORM
    assert again.lift == [AFTER_STORM]
    assert breaker.name_of(again.pauses[0]) == breaker.name_of(first)


# --- holding back


def _case(**fields: object) -> Case:
    own = run()
    made = Case(own, incident(), NOW, NOW, rule(), rule(), bounds(), Snapshot(now=NOW, pauses={STORM: BROKEN}))
    return replace(made, **fields)  # type: ignore[arg-type]


def test_storm_makes_runs_wait_and_is_asked_before_looking_and_before_acting() -> None:
    """A run waits without a time; nothing that other guards say about it matters meanwhile, an old alert above all."""
    (said,) = judge(BEFORE_PLANNING, _case(confirmed_at=NOW - timedelta(days=1)))
    assert (said.guard, said.answer, said.until) == ("storm", Answer.WAIT, None)
    assert said.reason == "storm breaker: 4 incidents opened within 1m, limit 3"
    assert any(isinstance(one, StormBreaker) for one in BEFORE_ACTING)


def test_storm_lets_what_was_begun_be_finished() -> None:
    """Half a remedy is worse than a whole one or none: further steps, and the way back, are not held up. Nor are plans shown."""
    for judges in (ON_PLAN, BETWEEN_STEPS, BEFORE_UNDOING):
        assert not any(isinstance(one, StormBreaker) for one in judges)


@pytest.mark.parametrize(
    ("state", "goes_on"), [(ApprovalState.APPROVED, True), (ApprovalState.PENDING, False), (ApprovalState.VOID, False)]
)
def test_storm_lets_a_run_go_on_that_people_approved(state: ApprovalState, *, goes_on: bool) -> None:
    """A person who looked at this very plan knows more than a rate does."""
    approval = Approval("A", run().id, run().incident, "hash", state, NOW, NOW + MINUTE, "mode approve")
    seen = Snapshot(now=NOW, pauses={STORM: BROKEN}, approvals={"A": approval})
    assert (judge([StormBreaker()], _case(run=replace(run(), approval="A"), snapshot=seen)) == []) is goes_on


def test_run_that_is_let_go_on_waits_for_guards_as_long_as_any() -> None:
    """The time that a storm took is not counted against `max_wait`."""
    held = breaker.hold(replace(run(), state=RunState.WAITING, waiting_since=NOW - timedelta(hours=1)), BROKEN, now=NOW)
    assert held.wake_at == NOW + breaker.BACKSTOP
    freed = breaker.release(held, at=NOW + MINUTE)
    assert (freed.wake_at, freed.waiting_since, freed.storm) == (NOW + MINUTE, NOW + MINUTE, NAME)
    assert not breaker.is_held(freed)


def test_ending_needs_a_storm() -> None:
    """Nobody ends what isn't; the answer says what is paused instead."""
    with pytest.raises(NotFound, match="paused is nothing"):
        breaker.end(Snapshot(now=NOW), actor=Actor("ann"), why="")


# --- messages


def _page(kind: MessageKind = MessageKind.PAGE) -> Message:
    return Message("INC-20261121-001/page/0", kind, "default", run().incident, {}, NOW)


WROTE = Step(1, "test.act", StepState.APPLIED)
HELD = replace(run(), storm=NAME)
AFTER = Pause(AFTER_STORM, "ann", BROKEN.why, NOW + MINUTE, since=BROKEN.since)
OLD = NOW - timedelta(hours=1)


@pytest.mark.parametrize(
    ("of", "pause", "kind", "folds"),
    [
        pytest.param(run(), BROKEN, MessageKind.PAGE, True, id="an incident of the storm is not paged"),
        pytest.param(run(), BROKEN, MessageKind.APPROVAL, True, id="nor are people asked about it"),
        pytest.param(run(), BROKEN, MessageKind.UPDATE, True, id="nor told that nothing could be done"),
        pytest.param(HELD, AFTER, MessageKind.UPDATE, True, id="also afterwards"),
        pytest.param(replace(HELD, created_at=OLD), BROKEN, MessageKind.PAGE, True, id="an older one that it held back is in the digest"),
        pytest.param(replace(run(), created_at=OLD), BROKEN, MessageKind.PAGE, False, id="an older one that it did not touch is not"),
        pytest.param(replace(run(), steps=(WROTE,)), BROKEN, MessageKind.UPDATE, False, id="what was changed is always told"),
        pytest.param(replace(run(), chain_wrote=True), BROKEN, MessageKind.UPDATE, False, id="by an earlier remedy too"),
        pytest.param(replace(run(), drifts=1), BROKEN, MessageKind.APPROVAL, False, id="who approved hears that the world moved"),
        pytest.param(replace(run(), created_at=NOW + 2 * MINUTE), AFTER, MessageKind.PAGE, False, id="what came after it is paged"),
        pytest.param(run(), None, MessageKind.PAGE, False, id="without a storm everything is"),
        pytest.param(None, BROKEN, MessageKind.PAGE, False, id="what nobody can place goes out"),
        pytest.param(run(), BROKEN, MessageKind.DIGEST, False, id="a digest above all"),
    ],
)
def test_which_messages_a_digest_stands_for(of: Run | None, pause: Pause | None, kind: MessageKind, *, folds: bool) -> None:
    """What a storm's digest lists is not told singly; what was, or may have been, changed always is."""
    pauses = {} if pause is None else {pause.scope: pause}
    assert breaker.folded_into(_page(kind), of, pauses) == (NAME if folds else None)


def _many(count: int, *, since: datetime = NOW) -> list[Run]:
    return [
        replace(run(), id=f"INC-{n}-1", incident=f"INC-{n}", target=f"node/{n % 3}", storm=NAME, created_at=since) for n in range(count)
    ]


def test_digest_counts_by_rule_target_and_state_and_names_the_worst_first() -> None:
    """Each policy's people hear of theirs: what tripped, how many of what, examples, and what to do."""
    tallies = Tallies(("sev1", "sev2"))
    minor = rule("minor", severity="sev2")
    for one in _many(100):
        tallies.add(replace(one, rule="minor"), minor)
    tallies.add(replace(run(), incident="INC-worst", target="db/orders"), rule())
    tallies.add(replace(run(), incident="INC-other", rule="far"), rule("far", escalation="network"))
    ours, network = tallies.messages(NAME, "0", at=NOW, phase="lasts", why="storm breaker: so it is", next="End it.", dry_run=True)
    assert (ours.key, network.key) == (f"{NAME}/default/0", f"{NAME}/network/0")
    facts = facts_of(ours, public_url="https://r.example.com/ui")
    assert facts["link"] == "https://r.example.com/ui/incidents"
    text = str(facts["text"])
    for words in ("DRY RUN", "SEV1", "101 incidents", "sev1 1, sev2 100", "minor 100, site-down 1", "node/0 34", "storm breaker: so it is"):
        assert words in text
    assert "Among them: INC-worst, INC-0, " in text
    assert "End it." in text
    assert facts["incident"] == NAME
    assert "1 incidents" in str(facts_of(network, public_url=None)["text"])


def test_digest_is_small_however_large_the_storm() -> None:
    """It fits every receiver, says when there was more than it counts, and counts an incident once."""
    tallies = Tallies(("sev1",))
    for one in _many(MOST_RUNS + 5):
        tallies.add(replace(one, rule=f"rule-{one.incident}", target=f"{one.incident}\nApprove: anything " + "x" * 1000), rule())
    tallies.add(_many(1)[0], rule())
    (message,) = tallies.messages(NAME, "0", at=NOW, phase="lasts", why="", next="", dry_run=False)
    text = str(facts_of(message, public_url=None)["text"])
    assert f"{MOST_RUNS}+ incidents" in text
    assert len(text) < 3000
    assert len(text.splitlines()) == 9
