"""A rule tightens, never loosens: of operator's bound, frozen rule and rule in force the strictest counts, whichever of them it is."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remediator import guards
from remediator.guards import Answer, Bounds, Case, Guard
from remediator.guards.catalogue import catalogue
from remediator.ingest.draft import Intake
from remediator.model import Authority, Impact, IncidentState, RunState
from remediator.records import Attempt, Ending, Use
from remediator.replacing import replace as quick_replace
from remediator.rules.model import Budget, BudgetScope, GuardSpec
from remediator.rules.schema import GuardsText, RuleText
from remediator.settings.limits import Limits
from remediator.settings.model import Settings
from remediator.store.protocol import Snapshot
from remediator.targets.domains import Domain
from remediator.trust.standing import lost
from tests.builders import NOW, World, alert, bounds, incident, plan, rule, run

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


@dataclass(frozen=True)
class Bound:
    """One thing that rule and operator may both bound: values from strict to loose, and a case that only the strict one stops."""

    key: str
    """Field of `GuardSpec`."""
    limit: str
    """Field of `Bounds`."""
    strict: Any
    loose: Any
    guard: Guard
    case: Callable[[], dict[str, Any]]


def _uses() -> Snapshot:
    return Snapshot(now=NOW, uses=(Use("another run", "site-down", "shop", NOW - 2 * MINUTE),))


def _written() -> Snapshot:
    return Snapshot(now=NOW, last_written={("site-down", "shop"): NOW - HOUR})


BOUNDS = [
    Bound("firing_for", "min_for", HOUR, timedelta(), guards.MinimumFiring(), lambda: {"first_firing_at": NOW - MINUTE}),
    Bound("max_age", "max_age", 10 * MINUTE, 5 * HOUR, guards.MaximumAge(), lambda: {"confirmed_at": NOW - HOUR}),
    Bound("cooldown", "min_cooldown", 2 * HOUR, timedelta(), guards.Cooldown(), lambda: {"snapshot": _written()}),
    Bound("budgets", "budgets", (Budget(1, HOUR),), (Budget(99, HOUR),), guards.Budgets(), lambda: {"snapshot": _uses()}),
    Bound("max_targets", "max_targets", 1, 40, guards.BlastRadius(), lambda: {"plans": [plan("a", impact=Impact(2))]}),
    Bound("max_percent", "max_percent", 30, 100, guards.BlastRadius(), lambda: {"plans": [plan("a", impact=Impact(1, 2))]}),
    Bound(
        "allow_shrink", "allow_shrink", False, True, guards.NeverShrink(), lambda: {"plans": [plan("a", impact=Impact(1, shrinks=True))]}
    ),
    Bound("max_domains", "max_domains", 1, 2, guards.FailureDomain(), lambda: {"domains": [Domain("nodes", "a"), Domain("nodes", "b")]}),
    Bound("max_relapses", "max_relapses", 1, 9, guards.RelapseLoop(), lambda: {"incident": incident(relapsed_at=(NOW,))}),
    Bound("max_chain", "max_chain", 1, 9, guards.Chain(), lambda: {"run": run(tried=("first",))}),
    Bound("plan_expires", "plan_expires", MINUTE, HOUR, guards.PlanExpiry(), lambda: {"run": run(planned_at=NOW - 5 * MINUTE)}),
]
ELSEWHERE = {"max_wait", "relapse_window", "arm", "max_failing", "failing_within"}
"""Bounds that no guard asks for at the moment of acting; they have tests of their own below, or (`max_wait`, `arm`) beside what asks."""
IDS = [one.key for one in BOUNDS]
WHERE = ["operator", "frozen", "in force"]


def judged(bound: Bound, *, operator: Any, frozen: Any, current: Any) -> Answer:
    """Ask the bound's guard with one value in each of the three places."""
    texts = [rule(guards=replace(GuardSpec(), **{bound.key: value})) for value in (frozen, current)]
    case = Case(run(), incident(), NOW, NOW, *texts, bounds(**{bound.limit: operator}), Snapshot(now=NOW))
    return bound.guard.judge(replace(case, **bound.case())).answer


@pytest.mark.parametrize("bound", BOUNDS, ids=IDS)
@pytest.mark.parametrize("where", WHERE)
def test_s09_s15_the_strictest_of_operator_frozen_and_current_wins(bound: Bound, where: str) -> None:
    """Strict in any one place is strict, however loose the other two are; that a rule was changed under way makes no difference."""
    values = [bound.strict if place == where else bound.loose for place in WHERE]
    assert judged(bound, operator=values[0], frozen=values[1], current=values[2]) is not Answer.ALLOW


@pytest.mark.parametrize("bound", BOUNDS, ids=IDS)
def test_loose_everywhere_is_loose(bound: Bound) -> None:
    """The cases above are stopped by the strict value and nothing else."""
    assert judged(bound, operator=bound.loose, frozen=bound.loose, current=bound.loose) is Answer.ALLOW


def test_every_limit_of_a_rule_has_a_bound_of_the_operator() -> None:
    """Whatever a rule may say about guards is bounded by `limits`, and is tried here."""
    keys = {one.name for one in fields(GuardSpec)}
    assert {one.key for one in BOUNDS} | ELSEWHERE == keys
    assert Bounds(budgets=(Budget(1, HOUR),)).spec == replace(Bounds().spec, budgets=(Budget(1, HOUR),))
    said = (
        {("budget" if one.limit == "budgets" else one.limit) for one in BOUNDS} | (ELSEWHERE - {"relapse_window"}) | {"min_relapse_window"}
    )
    assert said <= set(Limits.model_fields)
    words = {"budgets": "budget", "firing_for": "for_"}
    assert {words.get(key, key) for key in keys} <= {*GuardsText.model_fields, *RuleText.model_fields}


def test_settings_and_bounds_have_the_same_defaults() -> None:
    """What holds when the operator says nothing is written in one way."""
    limits, default = Limits(), Bounds()
    for one in fields(Bounds):
        if one.name in Limits.model_fields and one.name != "arm":
            assert getattr(limits, one.name) == getattr(default, one.name), one.name
    assert (limits.budgets, limits.arm.arm) == (default.budgets, default.arm)
    assert Limits(budget=("2 per 1h per target",)).budgets[0].per == "target"


def test_bounds_that_were_read_and_changed_are_the_changed_ones() -> None:
    """A reload makes changed copies of bounds that guards have read already."""
    loose = Bounds(max_targets=40)
    assert loose.spec.max_targets == 40
    assert quick_replace(loose, max_targets=1).spec.max_targets == 1
    assert replace(loose, max_targets=2).spec.max_targets == 2


@pytest.mark.parametrize("text", ["2 in 1h", "per 1h", "2 per soon", "2 per 0s"])
def test_budget_that_can_not_be_read_is_refused(text: str) -> None:
    """An operator who mistypes a bound does not run without it."""
    with pytest.raises(ValueError, match="budget"):
        Limits(budget=(text,))


def test_operator_who_lets_nothing_be_old_enough_is_told() -> None:
    """`min_for` as long as `max_age` would stop every rule for ever."""
    with pytest.raises(ValueError, match="min_for must be shorter"):
        Limits(min_for=HOUR, max_age=HOUR)


@pytest.mark.parametrize(("own", "operator", "relapse"), list(itertools.product([timedelta(), DAY], [timedelta(), DAY], [True])))
def test_s08_relapse_window_is_the_longer_of_rule_and_operator(own: timedelta, operator: timedelta, *, relapse: bool) -> None:
    """A rule can't have the operator's relapses count as new incidents, by which the same remedy would need no approval."""
    looks = rule(guards=replace(GuardSpec(), relapse_window=own))
    world = World(looks, bounds=bounds(min_relapse_window=operator))
    assert isinstance(world.intake, Intake)
    world.take(alert())
    world.end_run(RunState.SUCCEEDED)
    world.take(alert(firing=False, ends_at=NOW), after=MINUTE)
    world.take(alert(starts_at=NOW + HOUR), after=HOUR)
    (first, *further) = world.snapshot.incidents.values()
    assert (first.relapses == 1) is (relapse and max(own, operator) > timedelta())
    assert bool(further) is (first.relapses == 0)
    assert first.state is not IncidentState.RESOLVED or further


@pytest.mark.parametrize("where", [None, *WHERE])
@pytest.mark.parametrize(("key", "strict"), [("max_failing", 2), ("failing_within", DAY)])
def test_strictest_count_of_failures_stops_a_remedy(key: str, strict: Any, where: str | None) -> None:
    """It failed on two targets, one two hours ago: stopped where any of the three texts has that for too many, or looks back that far."""
    kept = {"max_failing": 2, "failing_within": HOUR} if key == "failing_within" else {"max_failing": 9, "failing_within": DAY}
    specs = [replace(GuardSpec(), **(kept | ({key: strict} if place == where else {}))) for place in WHERE]
    latest, earlier = (
        Attempt(
            f"run {ago}",
            "INC",
            "site-down",
            f"target {ago}",
            Ending.FAILURE,
            tried=True,
            opened_at=NOW,
            ended_at=NOW - ago * HOUR,
            remedy="x",
        )
        for ago in (0, 2)
    )
    found = lost(latest, Snapshot(now=NOW, attempts={"site-down": (earlier,)}), specs, autonomous=False)
    assert [one.scope for one in found] == ([] if where is None else ["remedy:site-down/x"])


def test_guards_name_keys_that_exist() -> None:
    """What `remediator guards` says can be looked up: the rule's keys and those of the settings."""
    for one in catalogue():
        for key in filter(None, str(one["rule"]).split(", ")):
            first, _, rest = key.partition(".")
            assert (rest in GuardsText.model_fields) if rest else (first in {*RuleText.model_fields, "for"}), key
        for key in filter(None, str(one["limit"]).split(", ")):
            first, _, rest = key.partition(".")
            assert first in Settings.model_fields, key
            assert first != "limits" or rest in Limits.model_fields, key


def test_s13_authority_of_the_operator_is_a_ceiling() -> None:
    """The mode of a rule goes no further than `limits.authority`, and a lower mode stays what it is."""
    from remediator.decide import mandate

    for own, operator in itertools.product(Authority, Authority):
        least = min(own, operator, key=lambda one: one.rank)
        assert mandate(rule(mode=own), bounds(authority=operator)).authority is least


# --- for any case and any texts ------------------------------------------------------------------------------------------------------

_spans = st.sampled_from([timedelta(), MINUTE, 10 * MINUTE, HOUR, 5 * HOUR, DAY])
_longer = _spans.filter(bool)
_budgets = st.lists(st.builds(Budget, st.integers(0, 4), _longer, st.sampled_from(BudgetScope)), max_size=3).map(tuple)
_specs = st.builds(
    GuardSpec,
    firing_for=_spans,
    max_age=_longer,
    cooldown=_spans,
    budgets=_budgets,
    max_targets=st.integers(1, 6),
    max_percent=st.integers(1, 100),
    max_domains=st.integers(1, 3),
    allow_shrink=st.booleans(),
    plan_expires=_longer,
    max_relapses=st.none() | st.integers(1, 4),
    max_chain=st.none() | st.integers(1, 4),
)
_ORDER = [Answer.ALLOW, Answer.WAIT, Answer.DENY]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw a run in any situation, with any text frozen and in force."""
    ago = st.integers(0, 300).map(lambda minutes: NOW - minutes * MINUTE)
    uses = [Use(f"run {n}", "site-down", draw(st.sampled_from(["shop", "else"])), draw(ago)) for n in range(draw(st.integers(0, 6)))]
    written = {("site-down", "shop"): draw(ago)} if draw(st.booleans()) else {}
    touched, total = draw(st.integers(0, 8)), draw(st.none() | st.integers(8, 12))
    plans = [plan("a", impact=Impact(touched, total, shrinks=draw(st.booleans())))]
    frozen, current = (rule(guards=draw(_specs)) for _ in range(2))
    return Case(
        run(planned_at=draw(ago), tried=tuple("abc"[: draw(st.integers(0, 3))])),
        incident(relapsed_at=(NOW,) * draw(st.integers(0, 4))),
        draw(ago),
        draw(ago),
        frozen,
        draw(st.sampled_from([current, frozen])),
        bounds(),
        Snapshot(now=NOW, uses=tuple(uses), last_written=written),
        plans,
        domains=[Domain("nodes", name) for name in "abc"[: draw(st.integers(0, 3))]],
    )


@settings(max_examples=150, deadline=None, derandomize=True)
@given(case=cases(), more=_specs, where=st.sampled_from(["frozen", "current"]))
def test_s15_no_text_loosens_what_another_one_bounds(case: Case, more: GuardSpec, where: str) -> None:
    """Whatever a rule says in one text: where the others alone hold a run back, it is held back, for as long and as firmly."""
    kept = case.frozen if where == "current" else case.current
    alone = replace(case, frozen=kept, current=kept)
    both = replace(case, **{where: rule(guards=more), ("frozen" if where == "current" else "current"): kept})
    for guard in guards.ALL_GUARDS:
        before, after = guard.judge(alone), guard.judge(both)
        assert _ORDER.index(after.answer) >= _ORDER.index(before.answer), guard.name
        if before.until is not None and after.until is not None:
            assert after.until >= before.until, guard.name


@settings(max_examples=150, deadline=None, derandomize=True)
@given(case=cases(), spec=_specs)
def test_no_rule_loosens_what_the_operator_bounds(case: Case, spec: GuardSpec) -> None:
    """What the operator's bounds alone hold back is held back under any rule."""
    limits = {"min_for": spec.firing_for, "max_age": spec.max_age, "min_cooldown": spec.cooldown, "budgets": spec.budgets}
    limits |= {"max_targets": spec.max_targets, "max_percent": spec.max_percent, "max_domains": spec.max_domains}
    limits |= {"allow_shrink": spec.allow_shrink, "plan_expires": spec.plan_expires}
    tight = replace(case, bounds=bounds(**limits))
    widest = GuardSpec(timedelta(), 9 * DAY, timedelta(), (), DAY, 999, 100, 99, allow_shrink=True, plan_expires=9 * DAY)
    alone = replace(tight, frozen=rule(guards=widest), current=None)
    for guard in guards.ALL_GUARDS:
        if guard.name != "enabled":  # a rule that is gone is stopped, which is the point there
            assert _ORDER.index(guard.judge(tight).answer) >= _ORDER.index(guard.judge(alone).answer), guard.name
