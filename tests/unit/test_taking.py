"""What a hold covers: the incident, its target, canonical ids and what lies below them, and capacity around them."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remediator import guards
from remediator.guards import Answer
from remediator.model import Impact, Plan, StepState, Target
from remediator.records import Pause, Step
from remediator.responders import taking
from remediator.rules.model import GuardSpec
from remediator.store.protocol import Snapshot
from remediator.targets.scope import lies_in
from tests.builders import NOW, bounds, plan, run
from tests.unit.test_guards import case

API = "kubernetes:prod/shop/deployment/api"


def hold(*covers: str, **fields: object) -> Pause:
    """Make a hold on another incident than the one of `run()`."""
    return Pause("taken:INC-20261121-009", "anna", "looking", NOW, covers=tuple(covers), **fields)  # type: ignore[arg-type]


def shrinks(ident: str) -> Plan:
    """Make a plan that takes capacity away."""
    return plan(ident, impact=Impact(1, shrinks=True))


def judged(held: Pause, *plans: Plan, **fields: object) -> guards.Judgement:
    snapshot = Snapshot(now=NOW, pauses={held.scope: held})
    allowing = GuardSpec(allow_shrink=True)
    return guards.Responder().judge(case(spec=allowing, snapshot=snapshot, plans=plans, bounds=bounds(), **fields))


@pytest.mark.parametrize(
    ("held", "ident", "covered"),
    [
        (API, API, True),
        (API, f"{API}/container/web", True),
        (API, f"{API}-2", False),
        (API, "kubernetes:prod/shop/deployment", False),
        ("kubernetes:prod/shop/", API, True),
        ("kubernetes:prod/", API, True),
        ("kubernetes:prod/sh", API, False),
        ("kubernetes:prod2/", API, False),
    ],
)
def test_a_hold_covers_an_id_and_what_lies_below_it(held: str, ident: str, *, covered: bool) -> None:
    """The beginning of a name is not a place."""
    assert lies_in(ident, held) is covered


@given(st.text(min_size=1), st.text())
def test_nothing_covers_what_does_not_begin_with_it(held: str, ident: str) -> None:
    """Whatever people type."""
    assert not lies_in(ident, held) or ident.startswith(held)


def test_owner_of_what_a_plan_touches_counts() -> None:
    """A Pod of the Deployment that somebody has taken is theirs too: both have one lock."""
    pod = plan()
    pod = Plan("test.act", "restart", (Target("kubernetes:prod/shop/pod/api-1", API),), {}, impact=Impact(1))
    judgement = judged(hold(API), pod)
    assert judgement.answer is Answer.DENY
    assert judgement.interrupts
    assert judgement.reason.startswith("INC-20261121-009 taken by anna since 2026-11-21 12:00:00Z: looking")


def test_plan_with_nothing_to_do_is_in_nobodys_way() -> None:
    """It touches nothing."""
    assert judged(hold(API), plan(API, noop=True)).answer is Answer.ALLOW


@pytest.mark.parametrize(
    ("held", "ident", "denied"),
    [
        ((API,), "kubernetes:prod/shop/deployment/other", True),
        ((API,), "kubernetes:prod/-/node/worker-1", True),
        (("kubernetes:prod/-/node/worker-1",), API, True),
        ((API,), "kubernetes:prod/blog/deployment/web", False),
        ((API,), "kubernetes:stage/shop/deployment/api", False),
        ((), "redis:cache/-/config/maxclients", True),
    ],
)
def test_no_capacity_goes_away_around_somebody_at_work(held: tuple[str, ...], ident: str, *, denied: bool) -> None:
    """Slack 2021: hosts went away under the responders. `allow_shrink` does not count there; where nobody knows where, nowhere."""
    assert (judged(hold(*held), shrinks(ident)).answer is Answer.DENY) is denied
    assert judged(hold(*held), plan(ident)).answer is Answer.ALLOW


def test_hold_ends_to_the_moment() -> None:
    """Whether or not its row was removed yet."""
    assert judged(hold(API, until=NOW + timedelta(seconds=1)), plan(API)).answer is Answer.DENY
    assert judged(hold(API, until=NOW), plan(API)).answer is Answer.ALLOW


def test_seal_is_worth_nothing_under_another_hold() -> None:
    """Neither a later one of the same person, nor one of somebody else, nor one on another thing."""
    first = hold(API)
    led = run(led_by=(taking.seal(first),))
    assert judged(first, plan(API), run=led).answer is Answer.ALLOW
    for other in (hold(API, until=NOW + timedelta(hours=1)),):
        assert judged(other, plan(API), run=led).answer is Answer.ALLOW, "the same hold, for another time"
    later = Pause(first.scope, "anna", "", NOW + timedelta(seconds=1), covers=(API,))
    theirs = Pause(first.scope, "ben", "", NOW, covers=(API,))
    target = Pause(f"taken:target:{API}", "anna", "", NOW)
    for other in (later, theirs, target):
        assert judged(other, plan(API), run=led).answer is Answer.DENY


def test_everything_that_runs_planned_or_held_is_covered() -> None:
    """Targets, locks and the way back; the locks on failure domains are no things."""
    steps = (
        Step(1, "test.act", StepState.APPLIED, plan(API), undo_plan=plan("x:y/-/z/back")),
        Step(2, "test.act", StepState.SKIPPED),
    )
    seen = taking.known_ids([run(steps=steps, locks=("kubernetes:prod/shop/pvc/data", "domain:eu/a/INC-20261121-001-1"))])
    assert seen == {API, "x:y/-/z/back", "kubernetes:prod/shop/pvc/data"}
