"""The invariants can fail: each test breaks the engine or the store on purpose, in one place, and a few seeds find it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from remediator import approval, execution, guards
from remediator.decide import Mandate
from remediator.engine import authority, people, preparing, undoing
from remediator.freezes import windows
from remediator.guards import freezing
from remediator.ingest import intake, receiving
from remediator.model import ApprovalState, Authority, Repeat, StepState
from remediator.replacing import replace
from remediator.runs import turn
from remediator.stopping import watchdog
from remediator.store import sqlite_queries, sqlite_write
from tests.simulation import storage
from tests.simulation.ledger import Violation
from tests.simulation.simulation import Options, simulate

Patch = pytest.MonkeyPatch
SEEDS = 60
HALF_WAY = ("two", "evict", "ask")


def first_violation(**options: Any) -> str:
    """Return the name of the first invariant that a seed finds violated; empty when none does."""
    for seed in range(SEEDS):
        try:
            simulate(seed, Options(**options))
        except Violation as error:
            return str(error).split(":", maxsplit=1)[0]
    return ""


def _allow(self: Any, _case: Any) -> Any:
    return self.allow()


def intent_is_not_written(patch: Patch) -> None:
    """The call is made, but its intent never reaches the disk."""
    plain = sqlite_write.pack

    def pack(row: Any) -> Any:
        steps = getattr(row, "steps", ())
        if any(step.state is StepState.INTENDED for step in steps):
            row = replace(row, steps=tuple(replace(one, state=StepState.PLANNED, intended_at=None) for one in steps))
        return plain(row)

    patch.setattr(sqlite_write, "pack", pack)


def fence_is_ignored(patch: Patch) -> None:
    """A worker that lost its lease goes on writing."""
    for name in ("RUN_REPLACE", "RUN_BODY"):
        patch.setattr(sqlite_queries, name, getattr(sqlite_queries, name).replace("AND fence = ?", "AND ? IS NOT NULL"))


def locks_are_ignored(patch: Patch) -> None:
    """Two runs act on one thing."""
    patch.setattr(guards.Locks, "judge", _allow)
    taken = "INSERT INTO lock (key, run) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET run = excluded.run"
    patch.setattr(sqlite_queries, "LOCK_TAKE", taken)


def approval_is_of_any_plan(patch: Patch) -> None:
    """An approval counts whatever the plan has become."""

    async def approved(_engine: Any, work: Any) -> bool:
        found = work.snapshot.approvals.get(work.run.approval or "")
        return found is not None and found.state is ApprovalState.APPROVED

    patch.setattr(preparing, "_approved", approved)


def approval_is_taken_twice(patch: Patch) -> None:
    """One person's word counts twice, also on what is closed."""
    patch.setattr(approval, "_check", lambda *_values: None)


def approval_is_not_asked_for(patch: Patch) -> None:
    """Everything may act by itself, dry runs too."""

    def auto(_engine: Any, _work: Any) -> Mandate:
        return Mandate(Authority.AUTO, ())

    for module in (authority, preparing, undoing):
        patch.setattr(module, "mandate_of", auto)


def lost_call_is_repeated(patch: Patch) -> None:
    """What nobody can look up is taken for not done."""
    plain = execution.Execution.settle

    async def settle(self: Any, plan: Any, **more: Any) -> Any:
        if self.action(plan.action).repeat is Repeat.NEVER:
            return execution.Outcome(execution.Result.TEMPORARY, "surely not")
        return await plain(self, plan, **more)

    patch.setattr(execution.Execution, "settle", settle)


def kill_switch_is_ignored(patch: Patch) -> None:
    """Nothing stops it."""
    patch.setattr(guards.KillSwitch, "judge", _allow)


def budget_is_ignored(patch: Patch) -> None:
    """It acts as often as it likes."""
    patch.setattr(guards.Budgets, "judge", _allow)


def cooldown_is_ignored(patch: Patch) -> None:
    """It acts again at once."""
    patch.setattr(guards.Cooldown, "judge", _allow)


def cap_is_ignored(patch: Patch) -> None:
    """Any number of runs acts at a time."""
    patch.setattr(guards.Concurrency, "judge", _allow)


def cap_is_ignored_when_going_on(patch: Patch) -> None:
    """A run that was interrupted, or asked between two steps, goes on beside as many others as may act."""
    patch.setattr(guards, "GOING_ON", ())


def freeze_is_ignored(patch: Patch) -> None:
    """Nothing is frozen."""
    patch.setattr(guards.Freeze, "judge", _allow)


def responder_is_ignored(patch: Patch) -> None:
    """It gets in the way of whoever has taken something."""
    patch.setattr(guards.Responder, "judge", _allow)


def size_is_ignored(patch: Patch) -> None:
    """A plan touches as much as it likes."""
    patch.setattr(guards.BlastRadius, "judge", _allow)


def freeze_is_asked_before_planning_only(patch: Patch) -> None:
    """A freeze that begins between the first look and a call is not seen."""
    for name in ("ON_PLAN", "BEFORE_ACTING", "GOING_ON", "BETWEEN_STEPS", "BEFORE_UNDOING"):
        patch.setattr(guards, name, tuple(guard for guard in getattr(guards, name) if not isinstance(guard, guards.Freeze)))


def windows_are_ignored(patch: Patch) -> None:
    """What people freeze holds, what the settings freeze does not."""
    patch.setattr(windows, "around", lambda *_values: (None, None))


def connections_are_never_frozen(patch: Patch) -> None:
    """A freeze of a connection holds nothing that acts on it."""
    patch.setattr(windows, "connections_of", lambda _plans: frozenset())
    patch.setattr(freezing, "connections_of", lambda _plans: frozenset())


def domains_are_ignored(patch: Patch) -> None:
    """Two zones of one connection are acted in at once."""
    patch.setattr(guards.FailureDomain, "judge", _allow)


def storm_is_ignored(patch: Patch) -> None:
    """Whatever opens at once is acted on at once."""
    patch.setattr(guards.StormBreaker, "judge", _allow)


def watchdog_is_ignored(patch: Patch) -> None:
    """What acts by itself goes on doing so while nobody hears whether alerts get here."""
    patch.setattr(authority, "watched", lambda held, *_values: held)


def every_end_is_believed(patch: Patch) -> None:
    """What Alertmanager calls resolved is over, also when Prometheus is dead."""
    plain = watchdog.lost
    patch.setattr(watchdog, "lost", lambda pauses, labels: None if "number" in labels else plain(pauses, labels))


def nobody_is_told(patch: Patch) -> None:
    """A run that needs a person says so to nobody."""
    patch.setattr(turn.Turn, "_needs_person", lambda *_values: None)


def success_stands_whatever_fires(patch: Patch) -> None:
    """What was called a success is never doubted again."""
    patch.setattr(intake, "try_again", lambda *_values, **_named: None)


def alerts_are_answered_too_early(patch: Patch) -> None:
    """2xx before the commit."""
    plain = receiving.Receiving._attempt

    async def attempt(self: Any, batch: Any) -> None:
        for one in batch:
            one.settle(())
        await plain(self, batch)

    patch.setattr(receiving.Receiving, "_attempt", attempt)


def leases_outlive_their_process(patch: Patch) -> None:
    """After a restart nobody takes what the dead process held."""
    patch.setattr(storage.SimStore, "_void_leases", lambda _self: None)


def outcome_is_forgotten(patch: Patch) -> None:
    """What was answered is taken for not done."""
    plain = execution.Execution._apply

    async def apply(self: Any, *values: Any, **more: Any) -> Any:
        outcome = await plain(self, *values, **more)
        forgets = outcome.result is execution.Result.APPLIED
        return replace(outcome, result=execution.Result.TEMPORARY) if forgets else outcome

    patch.setattr(execution.Execution, "_apply", apply)


def word_is_followed_twice(patch: Patch) -> None:
    """The word of before counts, although it was followed a moment ago."""
    plain = people.await_word

    async def await_word(engine: Any, work: Any) -> None:
        signals = work.snapshot.signals.get(work.run.id, ())
        if not signals:
            await plain(engine, work)
            return
        await engine.turn(work, lambda one: people._PLAYS[signals[-1].kind](one, signals[-1]))

    patch.setattr(people, "await_word", await_word)


MUTATIONS: list[tuple[Callable[[Patch], None], set[str], dict[str, Any]]] = [
    (intent_is_not_written, {"never_again", "never_twice", "effective_twice", "durable"}, {"strikes": 0.02}),
    (fence_is_ignored, {"fenced", "ended_stays", "acting_locked", "never_again"}, {"replicas": 2, "strikes": 0.04, "alarms": 9}),
    (locks_are_ignored, {"lock", "acting_locked"}, {"alarms": 9}),
    (
        approval_is_of_any_plan,
        {"approved_plan", "approval_once"},
        {"alarms": 9, "faults": 14, "rules": ("ask", "careful"), "seconds": 180.0},
    ),
    (approval_is_taken_twice, {"quorum", "approval_closed"}, {"rules": ("ask", "careful"), "alarms": 6}),
    (approval_is_not_asked_for, {"approved", "dry"}, {}),
    (lost_call_is_repeated, {"never_again", "never_twice"}, {"strikes": 0.02, "rules": ("job", "evict")}),
    (kill_switch_is_ignored, {"paused"}, {"faults": 14}),
    (budget_is_ignored, {"budget"}, {"alarms": 14, "faults": 0, "strikes": 0.0, "rules": ("set", "job"), "seconds": 180.0, "hands": False}),
    (cooldown_is_ignored, {"cooldown"}, {"alarms": 9}),
    (cap_is_ignored, {"max_acting"}, {"alarms": 14, "rules": ("set", "job", "evict"), "faults": 0}),
    (
        cap_is_ignored_when_going_on,
        {"max_acting"},
        {
            "alarms": 14,
            "faults": 4,
            "rules": ("two", "ask"),
            "max_acting": 1,
            "replicas": 1,
            "strikes": 0.0,
            "seconds": 150.0,
            "hands": False,
        },
    ),
    (freeze_is_ignored, {"frozen"}, {"alarms": 9, "hands": True}),
    (freeze_is_asked_before_planning_only, {"frozen"}, {"alarms": 9, "hands": True, "rules": ("ask", "careful", *HALF_WAY)}),
    (windows_are_ignored, {"frozen"}, {"alarms": 9, "hands": True}),
    (connections_are_never_frozen, {"frozen"}, {"alarms": 14, "faults": 0, "strikes": 0.0, "hands": False, "weather": True}),
    (domains_are_ignored, {"one_domain"}, {"alarms": 20, "faults": 0, "strikes": 0.0, "hands": False, "weather": True, "seconds": 150.0}),
    (storm_is_ignored, {"storm"}, {"alarms": 9, "faults": 4, "hands": False, "weather": True, "seconds": 150.0}),
    (watchdog_is_ignored, {"watched"}, {"alarms": 9, "hands": False, "weather": True}),
    (every_end_is_believed, {"believed"}, {"alarms": 9, "faults": 0, "hands": False, "weather": True}),
    (responder_is_ignored, {"taken"}, {"alarms": 9, "hands": True}),
    (size_is_ignored, {"blast"}, {"alarms": 20, "faults": 0, "strikes": 0.0, "rules": ("set", "evict"), "hands": False}),
    (nobody_is_told, {"person_told", "owned"}, {}),
    (success_stands_whatever_fires, {"told_of"}, {"ends_told_after": timedelta(seconds=30), "tombstone": timedelta(seconds=15)}),
    (alerts_are_answered_too_early, {"accepted", "accepted_run"}, {}),
    (leases_outlive_their_process, {"settles", "durable"}, {"replicas": 1, "strikes": 0.02}),
    (word_is_followed_twice, {"word_once"}, {}),
    (outcome_is_forgotten, {"never_again", "never_twice"}, {"rules": ("job",)}),
]


@pytest.mark.parametrize(("mutate", "names", "options"), MUTATIONS, ids=[mutate.__name__ for mutate, _, _ in MUTATIONS])
def test_broken_engine_is_caught(mutate: Callable[[Patch], None], names: set[str], options: dict[str, Any], monkeypatch: Patch) -> None:
    """The mutation violates the invariant that stands for what it breaks."""
    mutate(monkeypatch)
    assert first_violation(**options) in names
