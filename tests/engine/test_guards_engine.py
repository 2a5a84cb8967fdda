"""Every guard, in the engine: each holds a run back in a story of its own, and is named in the trail and counted in the metrics."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from remediator.action import Identity
from remediator.freezes import manual
from remediator.freezes.manual import Order
from remediator.guards import ALL_GUARDS, Guard
from remediator.metrics import Metrics
from remediator.model import Authority, Impact, RunState
from remediator.records import FREEZE, STORM, Pause, SignalKind
from remediator.replacing import replace
from remediator.responders import taking
from remediator.rules.model import Budget, GuardSpec, Rule
from remediator.store.protocol import Changes, Reads, Snapshot
from tests.builders import alert, bounds
from tests.engine.conftest import Start
from tests.scripted import Harness, ScriptedAction
from tests.stories import ANNA, TWO, act, decide, lift, pause, playbook, tell

ROOT = Path(__file__).resolve().parents[2]
Doing = Callable[[Harness], Awaitable[None]]
MINUTE = timedelta(minutes=1)


async def nothing(_harness: Harness) -> None:
    """Do nothing."""


async def put(harness: Harness, build: Callable[[Snapshot], Changes]) -> None:
    """Write something."""
    await harness.store.transact(Reads(), build)


async def frozen(harness: Harness) -> None:
    """Freeze everything."""
    await put(harness, lambda snapshot: manual.freeze(snapshot, Order(FREEZE, "x"), actor=ANNA))


async def taken(harness: Harness) -> None:
    """Take the thing."""
    await put(harness, lambda snapshot: taking.take_target(snapshot, "test:world/-/thing/a", why="x", span=None, actor=ANNA))


async def stormy(harness: Harness) -> None:
    """Let there be a storm."""
    await put(harness, lambda snapshot: Changes(pauses=[Pause(STORM, "remediator", "too many", snapshot.now)]))


async def stopped(harness: Harness) -> None:
    """Have the remedy stopped everywhere."""
    await put(harness, lambda snapshot: Changes(pauses=[Pause("remedy:site-down/set a", "remediator", "it failed", snapshot.now)]))


async def locked(harness: Harness) -> None:
    """Have another run hold the lock."""
    await put(harness, lambda _snapshot: Changes(take_locks={"test:world/-/thing/a": "another run"}))


async def aged(harness: Harness) -> None:
    """Let two hours pass before anybody looks."""
    harness.now += timedelta(hours=2)


async def disabled(harness: Harness) -> None:
    """Disable the rule after it matched."""
    harness.rules.update({name: replace(rule, enabled=False) for name, rule in harness.rules.items()})


@dataclass(frozen=True)
class Story:
    """What makes a guard hold a run back."""

    rule: Rule = field(default_factory=playbook)
    limits: dict[str, Any] = field(default_factory=dict)
    before: Doing = nothing
    """Happens before the alert comes."""
    after: Doing = nothing
    """Happens before anybody works on its run."""
    impact: Impact | None = None
    plan: dict[str, Any] = field(default_factory=dict)


def limited(**spec: Any) -> Rule:
    """Make a rule with limits."""
    return playbook(guards=GuardSpec(**spec))


STORIES: dict[str, Story] = {
    "kill_switch": Story(before=pause),
    "enabled": Story(after=disabled),
    "responder": Story(before=taken),
    "freeze": Story(before=frozen),
    "storm": Story(after=stormy),
    "maximum_age": Story(after=aged),
    "minimum_firing": Story(limited(firing_for=5 * MINUTE)),
    "budget": Story(limited(budgets=(Budget(0, MINUTE),))),
    "concurrency": Story(limits={"max_acting": 0}),
    "ineffective": Story(before=stopped),
    "empty_target": Story(plan={"targets": ()}),
    "not_itself": Story(limits={"identity": Identity(protected=frozenset({"test:world/-/thing/a"}))}),
    "never_shrink": Story(impact=Impact(1, shrinks=True)),
    "blast_radius": Story(impact=Impact(11)),
    "chain": Story(limited(max_chain=0)),
    "relapse_loop": Story(limited(max_relapses=0)),
    "lock": Story(before=locked),
}
ELSEWHERE = {
    "cooldown": "tests/engine/test_engine.py::test_cooldown_holds_the_next_incident_of_the_target",
    "scope": "tests/engine/test_takeover.py::test_plan_that_names_no_connection_is_not_carried_out",
    "plan_expiry": "tests/engine/test_takeover.py::test_plan_that_is_always_too_old_does_not_go_round_for_ever",
    "failure_domain": "tests/engine/test_domains.py::test_plan_that_reaches_into_two_domains_is_denied",
}
"""Guards whose stories take more than one step, by their tests in the engine."""


@pytest.mark.parametrize("guard", sorted(STORIES))
async def test_guard_holds_a_run_back_and_is_named_and_counted(start: Start, monkeypatch: pytest.MonkeyPatch, guard: str) -> None:
    """Nothing is written; the trail says which guard, what and why; its counter goes up by one."""
    story = STORIES[guard]
    if story.impact is not None or story.plan:
        plain, changed = ScriptedAction._plan, dict(story.plan) | ({"impact": story.impact} if story.impact else {})
        monkeypatch.setattr(ScriptedAction, "_plan", lambda *values, **more: replace(plain(*values, **more), **changed))
    harness = await start(story.rule, limits=bounds(**story.limits))
    metrics = Metrics(CollectorRegistry(), guards=[one.name for one in ALL_GUARDS])
    await story.before(harness)
    await harness.send(alert())
    await story.after(harness)
    await harness.work()
    said = harness.said("guard.denied")
    assert [one["guard"] for one in said] == [guard]
    assert said[0]["reason"]
    assert harness.world.writes == []
    metrics.observe([event for event in harness.events if event.kind == "guard.denied"])
    labels = {"guard": guard, "verdict": str(said[0]["verdict"])}
    assert metrics.registry.get_sample_value("remediator_guard_denials_total", labels) == 1


def test_every_guard_is_tried_in_the_engine_and_told_of() -> None:
    """A guard that is added has a story here or a test of its own, stands in the reference, and has its counters from the start."""
    names = {guard.name for guard in ALL_GUARDS}
    assert names == STORIES.keys() | ELSEWHERE.keys()
    for place in ELSEWHERE.values():
        path, _, name = place.partition("::")
        assert f"async def {name}(" in (ROOT / path).read_text()
    listed = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/reference/guards.md").read_text(), re.MULTILINE)
    assert names <= set(listed)
    metrics = Metrics(CollectorRegistry(), guards=[guard.name for guard in ALL_GUARDS])
    for name in names:
        for verdict in ("wait", "deny"):
            found = metrics.registry.get_sample_value("remediator_guard_denials_total", {"guard": name, "verdict": verdict})
            assert found == 0, name


def test_the_daemon_counts_every_guard(tmp_path: Path) -> None:
    """The real daemon's metrics know every guard before it says anything: `increase()` sees the first denial."""
    from remediator.app.daemon import Daemon
    from remediator.settings import Settings, StoreSettings

    daemon = Daemon(Settings(store=StoreSettings(url=f"sqlite://{tmp_path}/state.sqlite")), environ={})
    for guard in ALL_GUARDS:
        assert isinstance(guard, Guard)
        labels = {"guard": guard.name, "verdict": "deny"}
        assert daemon.metrics.registry.get_sample_value("remediator_guard_denials_total", labels) == 0, guard.name


async def test_s15_bounds_that_the_operator_tightens_reach_a_run_under_way(start: Start) -> None:
    """People agreed to a plan; before it is carried out the operator allows less: it is not carried out, and no rule can change that."""
    harness = await start(playbook(mode=Authority.APPROVE, guards=GuardSpec(allow_shrink=True)))
    await harness.send(alert())
    await harness.work()
    harness.limits = replace(harness.limits, identity=Identity(protected=frozenset({"test:world/-/thing/a"})), plan_expires=MINUTE)
    await decide(harness)
    assert [one["guard"] for one in harness.said("guard.denied")] == ["not_itself"]
    assert harness.world.writes == []
    assert await harness.state() is RunState.ESCALATED


async def test_s11_s15_what_is_protected_while_a_run_is_interrupted_is_left_alone(start: Start) -> None:
    """Somebody throws the kill switch, has the daemon keep off a thing, and resumes: the further step on that thing is not carried out."""
    harness = await start(playbook(act("both", *TWO)))
    plain = harness.engine.execution.apply

    async def apply(*arguments: Any, **named: Any) -> Any:
        outcome = await plain(*arguments, **named)
        await pause(harness)
        return outcome

    harness.engine.execution.apply = apply  # type: ignore[method-assign]
    await harness.send(alert())
    await harness.work()
    assert await harness.state() is RunState.INTERRUPTED
    await lift(harness)
    harness.limits = replace(harness.limits, identity=Identity(protected=frozenset({"test:world/-/thing/b"})))
    await tell(harness, SignalKind.RESUME)
    assert harness.world.writes == ["a=good"]
    run = await harness.run()
    assert (run.state, "guard not_itself" in run.reason) == (RunState.ESCALATED, True)


@pytest.mark.parametrize(("rule", "operator", "waits"), [(1, 15, 1), (15, 1, 1), (15, 15, 15)])
async def test_s06_longest_wait_is_the_shorter_of_rule_and_operator(start: Start, rule: int, operator: int, waits: int) -> None:
    """Neither rule nor operator alone decides how long a run may wait: whoever wants to know sooner does."""
    harness = await start(limited(max_wait=rule * MINUTE), limits=bounds(max_acting=0, max_wait=operator * MINUTE))
    await harness.send(alert())
    await harness.work()
    await harness.tick(waits * MINUTE - timedelta(seconds=1))
    assert await harness.state() is RunState.WAITING
    await harness.tick(timedelta(seconds=1))
    assert await harness.state() is RunState.ESCALATED


async def test_s06_rule_that_asks_for_long_firing_waits_no_longer_for_other_guards(start: Start) -> None:
    """`for` is waited for besides `max_wait`; where the alert has fired that long already, nothing is added to what else may hold back."""
    harness = await start(limited(firing_for=60 * MINUTE), limits=bounds(max_acting=0))
    await harness.send(alert())
    harness.now += 60 * MINUTE
    await harness.send(alert())
    await harness.work()
    assert (await harness.run()).deadline == harness.now + 15 * MINUTE
    await harness.tick(15 * MINUTE - timedelta(seconds=1))
    assert await harness.state() is RunState.WAITING
    await harness.tick(timedelta(seconds=1))
    assert (await harness.state(), "concurrency" in (await harness.run()).reason) == (RunState.ESCALATED, True)


async def test_s06_time_until_an_alert_has_fired_long_enough_is_no_wait_for_other_guards(start: Start) -> None:
    """A run that waited for `for` has all of `max_wait` left when that is over."""
    harness = await start(limited(firing_for=30 * MINUTE), limits=bounds(max_acting=0))
    await harness.send(alert())
    await harness.work()
    for _ in range(44):
        await harness.tick(MINUTE)
    assert await harness.state() is RunState.WAITING
    await harness.tick(MINUTE)
    assert await harness.state() is RunState.ESCALATED
