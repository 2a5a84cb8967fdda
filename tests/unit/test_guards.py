"""Every guard: what it lets through, what it holds back, and the words it gives for that."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remediator import guards
from remediator.action import Identity
from remediator.guards import Answer, Case, Guard
from remediator.model import Impact, Target
from remediator.records import Pause, Use
from remediator.rules.model import Budget, BudgetScope, GuardSpec
from remediator.store.protocol import Snapshot
from tests.builders import NOW, bounds, incident, plan, rule, run

HOUR = timedelta(hours=1)


def case(*, spec: GuardSpec | None = None, snapshot: Snapshot | None = None, **fields: Any) -> Case:
    frozen = rule(guards=spec or GuardSpec())
    made = Case(run(), incident(), NOW, NOW, frozen, frozen, bounds(), snapshot or Snapshot(now=NOW))
    return replace(made, **fields)


def answer(guard: Guard, judged: Case) -> Answer:
    judgement = guard.judge(judged)
    assert judgement.guard == guard.name
    assert (judgement.answer is Answer.ALLOW) == (judgement.reason == "")
    return judgement.answer


def test_all_guards_allow_an_ordinary_case() -> None:
    """Nothing speaks against a fresh alert and a small plan."""
    assert guards.judge(guards.ALL_GUARDS, case(plans=[plan("a")], run=run(planned_at=NOW))) == []


def test_every_guard_names_and_describes_itself() -> None:
    """The catalogue shows name and default of each; names are unique."""
    names = [guard.name for guard in guards.ALL_GUARDS]
    assert len(set(names)) == len(names)
    assert all(guard.description for guard in guards.ALL_GUARDS)


@pytest.mark.parametrize("scope", ["global", "rule:site-down"])
def test_kill_switch_interrupts(scope: str) -> None:
    """A thrown switch stops the rule, and says who threw it and why."""
    paused = Snapshot(now=NOW, pauses={scope: Pause(scope, "anna", "migration", NOW)})
    judgement = guards.KillSwitch().judge(case(snapshot=paused))
    assert judgement.answer is Answer.DENY
    assert judgement.interrupts
    assert "anna" in judgement.reason
    assert "migration" in judgement.reason


def test_kill_switch_of_another_rule_does_not_count() -> None:
    """A switch stops what it names."""
    paused = Snapshot(now=NOW, pauses={"rule:other": Pause("rule:other", "anna", "x", NOW)})
    assert answer(guards.KillSwitch(), case(snapshot=paused)) is Answer.ALLOW


def test_s15_deleted_or_disabled_rule_stops_its_runs() -> None:
    """The rule in force now counts, also for a run that froze an earlier text."""
    assert answer(guards.Enabled(), case(current=None)) is Answer.DENY
    assert answer(guards.Enabled(), case(current=rule(enabled=False))) is Answer.DENY


def test_s15_the_stricter_of_frozen_and_current_limits_wins() -> None:
    """Tightening a rule reaches its runs; loosening it does not."""
    strict, loose = GuardSpec(cooldown=2 * HOUR), GuardSpec(cooldown=timedelta())
    snapshot = Snapshot(now=NOW, last_written={("site-down", "shop"): NOW - HOUR})
    for frozen, current in ((strict, loose), (loose, strict)):
        judged = case(snapshot=snapshot, frozen=rule(guards=frozen), current=rule(guards=current))
        assert answer(guards.Cooldown(), judged) is Answer.WAIT


def test_old_alert_is_not_acted_on() -> None:
    """A cold start that replays stale events acts on none of them; age counts from the last confirmation."""
    judged = case(spec=GuardSpec(max_age=HOUR), confirmed_at=NOW - HOUR)
    assert answer(guards.MaximumAge(), judged) is Answer.ALLOW
    assert answer(guards.MaximumAge(), replace(judged, confirmed_at=NOW - HOUR - timedelta(seconds=1))) is Answer.DENY


def test_minimum_firing_time_waits_from_first_receipt() -> None:
    """GitHub 2018: 43 seconds are no reason to fail over. It waits exactly until `for` has passed."""
    judged = case(spec=GuardSpec(firing_for=timedelta(minutes=5)), first_firing_at=NOW - timedelta(minutes=2))
    judgement = guards.MinimumFiring().judge(judged)
    assert judgement.answer is Answer.WAIT
    assert judgement.until == NOW + timedelta(minutes=3)


def test_cooldown_waits_but_not_for_its_own_chain() -> None:
    """A second restart waits; the next remedy of the same chain does not."""
    snapshot = Snapshot(now=NOW, last_written={("site-down", "shop"): NOW - timedelta(minutes=10)})
    judgement = guards.Cooldown().judge(case(snapshot=snapshot))
    assert judgement.answer is Answer.WAIT
    assert judgement.until == NOW + timedelta(minutes=20)
    assert answer(guards.Cooldown(), case(snapshot=snapshot, run=run(number=2, chain=1))) is Answer.ALLOW


def test_cooldown_of_the_operator_is_a_floor() -> None:
    """A rule can be stricter than the operator, never looser."""
    snapshot = Snapshot(now=NOW, last_written={("site-down", "shop"): NOW - HOUR})
    judged = case(spec=GuardSpec(cooldown=timedelta()), snapshot=snapshot, bounds=bounds(min_cooldown=2 * HOUR))
    assert answer(guards.Cooldown(), judged) is Answer.WAIT


def uses(*minutes_ago: int, target: str = "shop") -> tuple[Use, ...]:
    return tuple(Use(f"run {ago}", "site-down", target, NOW - timedelta(minutes=ago)) for ago in minutes_ago)


def test_budget_waits_until_the_oldest_use_leaves_the_window() -> None:
    """Two an hour: the third waits until the first is an hour old."""
    spec = GuardSpec(budgets=(Budget(2, HOUR),))
    judgement = guards.Budgets().judge(case(spec=spec, snapshot=Snapshot(now=NOW, uses=uses(50, 10))))
    assert judgement.answer is Answer.WAIT
    assert judgement.until == NOW + timedelta(minutes=10)
    assert answer(guards.Budgets(), case(spec=spec, snapshot=Snapshot(now=NOW, uses=uses(61, 10)))) is Answer.ALLOW


def test_several_budget_windows_hold_at_once() -> None:
    """The longest wait of all windows counts."""
    spec = GuardSpec(budgets=(Budget(2, HOUR), Budget(3, timedelta(days=1))))
    judgement = guards.Budgets().judge(case(spec=spec, snapshot=Snapshot(now=NOW, uses=uses(600, 300, 10))))
    assert judgement.until == NOW + timedelta(minutes=24 * 60 - 600)


def test_budget_per_target_ignores_other_targets() -> None:
    """Units of other targets and the run's own do not count."""
    spec = GuardSpec(budgets=(Budget(1, HOUR, BudgetScope.TARGET),))
    mine = replace(uses(1)[0], run=run().id)
    snapshot = Snapshot(now=NOW, uses=(*uses(5, target="mail"), mine))
    assert answer(guards.Budgets(), case(spec=spec, snapshot=snapshot)) is Answer.ALLOW


@given(st.lists(st.integers(0, 300), max_size=8), st.integers(1, 4), st.integers(1, 200))
def test_budget_is_exact(ago: list[int], count: int, window: int) -> None:
    """It allows exactly when fewer than `count` uses lie inside the window; when it waits, then it will allow at `until`."""
    spec = GuardSpec(budgets=(Budget(count, timedelta(minutes=window)),))
    made = tuple(Use(f"{number}", "site-down", "shop", NOW - timedelta(minutes=minutes)) for number, minutes in enumerate(ago))
    judgement = guards.Budgets().judge(case(spec=spec, snapshot=Snapshot(now=NOW, uses=made)))
    assert (judgement.answer is Answer.ALLOW) == (sum(minutes < window for minutes in ago) < count)
    if judgement.until is not None:
        later = guards.Budgets().judge(case(spec=spec, snapshot=Snapshot(now=judgement.until, uses=made)))
        assert later.answer is Answer.ALLOW


def test_fleet_wide_cap_waits() -> None:
    """AWS 2011: never more at once than the cap."""
    assert answer(guards.Concurrency(), case(snapshot=Snapshot(now=NOW, acting=10))) is Answer.WAIT
    assert answer(guards.Concurrency(), case(snapshot=Snapshot(now=NOW, acting=9))) is Answer.ALLOW


def test_s10_locks_are_what_will_be_touched() -> None:
    """Two rules with different targets exclude each other when their plans touch the same thing; noops lock nothing."""
    snapshot = Snapshot(now=NOW, locks={"kubernetes:a/shop/deployment/web": "INC-20261121-009-1"})
    touching = plan("kubernetes:a/shop/deployment/web")
    judgement = guards.Locks().judge(case(snapshot=snapshot, plans=[touching]))
    assert judgement.answer is Answer.WAIT
    assert "INC-20261121-009-1" in judgement.reason
    assert answer(guards.Locks(), case(snapshot=snapshot, plans=[replace(touching, noop=True)])) is Answer.ALLOW
    own = Snapshot(now=NOW, locks={"kubernetes:a/shop/deployment/web": run().id})
    assert answer(guards.Locks(), case(snapshot=own, plans=[touching])) is Answer.ALLOW


def test_children_lock_their_owner() -> None:
    """A pod's lock is its Deployment's; keys are sorted and unique."""
    pods = plan("x", targets=(Target("pod/b", "deployment/web"), Target("pod/a", "deployment/web"), Target("pod/c", "deployment/api")))
    assert guards.lock_keys([pods]) == ("deployment/api", "deployment/web")


def test_s03_empty_target_is_a_hard_error() -> None:
    """Google's CDN disks: empty never means everything."""
    assert answer(guards.EmptyTarget(), case(plans=[plan()])) is Answer.DENY


def test_blast_radius_counts_things_and_percent() -> None:
    """The strictest of rule, operator and connection wins."""
    touching = plan("a", impact=Impact(touched=11, total=100))
    assert answer(guards.BlastRadius(), case(plans=[touching])) is Answer.DENY
    wide = GuardSpec(max_targets=100)
    assert answer(guards.BlastRadius(), case(spec=wide, plans=[touching])) is Answer.ALLOW
    assert answer(guards.BlastRadius(), case(spec=replace(wide, max_percent=10), plans=[touching])) is Answer.DENY
    assert answer(guards.BlastRadius(), case(spec=wide, plans=[touching], bounds=bounds(max_targets=5))) is Answer.DENY
    assert answer(guards.BlastRadius(), case(spec=wide, plans=[touching], scopes=[(touching, {}, 3)])) is Answer.DENY


def test_never_shrink_in_an_incident() -> None:
    """Slack 2021: capacity is not taken away, unless frozen and current rule both allow it."""
    shrinking = plan("a", impact=Impact(touched=1, shrinks=True))
    assert answer(guards.NeverShrink(), case(plans=[shrinking])) is Answer.DENY
    allowing = GuardSpec(allow_shrink=True)
    assert answer(guards.NeverShrink(), case(spec=allowing, plans=[shrinking])) is Answer.ALLOW
    assert answer(guards.NeverShrink(), case(spec=allowing, current=rule(), plans=[shrinking])) is Answer.DENY


def test_s09_targets_lie_in_the_connections_scope() -> None:
    """The scope is held against the plan's real targets, not against what the rule says."""
    touching = plan("a", targets=(Target("a", "a", {"namespace": "kube-system"}),), connection="production")
    judged = case(plans=[touching], scopes=[(touching, {"namespace": ("shop", "shop-*")}, None)])
    judgement = guards.Scope().judge(judged)
    assert judgement.answer is Answer.DENY
    assert "production" in judgement.reason


@pytest.mark.parametrize("protected", ["kubernetes:a/ops/deployment/remediator", "kubernetes:a/ops/", "kubernetes:a/ops"])
def test_s11_it_never_acts_on_itself(protected: str) -> None:
    """Neither on its own id, nor on anything inside what is protected; similar names are something else."""
    judged = case(bounds=bounds(identity=Identity(protected=frozenset({protected}))))
    assert answer(guards.NotItself(), replace(judged, plans=[plan("kubernetes:a/ops/deployment/remediator")])) is Answer.DENY
    owned = plan("x", targets=(Target("pod/1", "kubernetes:a/ops/deployment/remediator"),))
    assert answer(guards.NotItself(), replace(judged, plans=[owned])) is Answer.DENY
    assert answer(guards.NotItself(), replace(judged, plans=[plan("kubernetes:a/opsx/deployment/remediator")])) is Answer.ALLOW


def test_plans_expire() -> None:
    """AWS DynamoDB 2025: an old plan is never applied; the run looks at the world again."""
    judged = case(run=run(planned_at=NOW - timedelta(minutes=6)))
    assert answer(guards.PlanExpiry(), judged) is Answer.WAIT
    assert answer(guards.PlanExpiry(), replace(judged, run=run(planned_at=NOW - timedelta(minutes=4)))) is Answer.ALLOW


def test_a_deny_ends_the_asking() -> None:
    """Waits before it are still told; nothing after it is asked."""
    paused = Snapshot(now=NOW, pauses={"global": Pause("global", "anna", "x", NOW)}, acting=99)
    assert [one.guard for one in guards.judge(guards.BEFORE_PLANNING, case(snapshot=paused))] == ["kill_switch"]


def test_budget_of_nothing_denies() -> None:
    """`0 per 1h` is a rule that never acts, not one that fails to be judged."""
    assert answer(guards.Budgets(), case(spec=GuardSpec(budgets=(Budget(0, HOUR),)))) is Answer.DENY
