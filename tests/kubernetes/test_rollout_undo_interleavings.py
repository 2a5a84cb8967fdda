"""`rollout_undo` under random interleavings of duplicate alerts, competing deploys, crashes and conflicts, on the real API server.

`INTERLEAVINGS_SEED=… INTERLEAVING=… pytest tests/kubernetes/test_rollout_undo_interleavings.py` plays one of them again: the same things
happen at the same awaits (how many awaits a request takes is the network's affair, so the match is close, not exact).
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from pathlib import Path

import pytest

from remediator.model import RunState, StepState
from remediator.records import Run
from remediator.store.sqlite import SqliteStore
from tests.kubernetes.conftest import Kube
from tests.kubernetes.interleaving import CHANGES_TEMPLATE, FORBIDS, Interleaving, Watch, watching
from tests.servers.kube.workloads import Workloads
from tests.servers.ports import eventually

INTERLEAVINGS = 200
AT_ONCE = 10
SEED = os.environ.get("INTERLEAVINGS_SEED", "4711")
ONLY = os.environ.get("INTERLEAVING")


async def test_rollout_undo_under_random_interleavings(
    kube: Kube, run: Workloads, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ends on the planned revision or refuses and says why; never overwrites what it did not plan for; never undoes twice."""
    numbers = range(INTERLEAVINGS) if ONLY is None else [int(ONLY)]
    outcomes: Counter[str] = Counter()
    places = asyncio.Semaphore(AT_ONCE)
    async with watching(kube.api, run.namespace) as watch:

        async def one(number: int) -> None:
            async with places:
                outcomes[await _play(kube, run, watch, tmp_path, number)] += 1

        async with asyncio.TaskGroup() as group:
            for number in numbers:
                group.create_task(one(number))
    with capsys.disabled():
        print(f"\nseed {SEED}: {dict(outcomes)}")  # noqa: T201 - to play them again
    if ONLY is None:
        assert outcomes["rolled back"] > INTERLEAVINGS / 4
        assert outcomes["refused"] > INTERLEAVINGS / 20


async def _play(kube: Kube, run: Workloads, watch: Watch, directory: Path, number: int) -> str:
    path = directory / f"{number}.sqlite"
    interleaving = Interleaving(run, kube.connection(), path, seed=f"{SEED}/{number}", name=f"web-{number}")
    try:
        await interleaving.play()
        await _caught_up(run, watch, interleaving.name)
        return await _judge(interleaving, watch)
    except Exception as error:
        error.add_note(f"seed {SEED}, interleaving {number}: {interleaving.dice.happened}, then {interleaving.dice.due}")
        raise


async def _caught_up(run: Workloads, watch: Watch, name: str) -> None:
    """Wait until the watch has seen the present version, or a later one."""

    async def seen() -> bool:
        present = (await run.get("Deployment", name))["metadata"]["resourceVersion"]
        return any(version.resource_version == present for version in watch.versions.get(name, ()))

    await eventually(seen, what=f"the watch has seen {name}", every=0.05)


async def _last_run(interleaving: Interleaving) -> Run:
    store = SqliteStore(interleaving.daemon.path, clock=lambda: interleaving.daemon.now)
    await store.open()
    interleaving.daemon.store = store
    found = await interleaving.daemon.run()
    audit = await store.verify_audit()
    await store.aclose()
    assert audit.faults == ()
    return found


async def _judge(interleaving: Interleaving, watch: Watch) -> str:
    """Hold what the API server saw against what the run says of itself; return how it ended."""
    name, happened = interleaving.name, set(interleaving.dice.happened)
    run, writes, versions = await _last_run(interleaving), watch.writes(name), watch.versions[name]
    assert len(writes) <= 1, f"undone {len(writes)} times: {writes}"
    applied = [step for step in run.steps if step.state is StepState.APPLIED]
    if writes:
        ((before, after),) = writes
        (step,) = run.steps
        assert step.plan is not None
        assert after.template == step.plan.intent["template"]
        assert before.template == step.plan.precondition["template"], "it was written onto a template that it was not planned for"
        assert before.uid == step.plan.precondition["uid"]
        assert not before.paused, "it was written although somebody had paused the rollouts"
        assert after.mark is not None
        assert after.mark.key.startswith(run.id)
    if applied:
        assert len(writes) == 1, "the run says that it was applied, and nothing was written"
        later = versions[versions.index(writes[0][1]) :]
        if not happened & {*CHANGES_TEMPLATE, "make it anew"}:
            assert later[-1].template == writes[0][1].template, "nobody else touched the template, and it is not the planned one"
        return "rolled back"
    assert run.reason, f"it ended in {run.state} and does not say why"
    assert happened & FORBIDS, f"nothing spoke against it, and it ended in {run.state}: {run.reason}"
    if run.state is RunState.OUTCOME_UNKNOWN:
        assert interleaving.died, f"only a death leaves a doubt: {run.reason}"
        return "left to a person"
    assert writes == [], f"it was written, and the run ended in {run.state}: {run.reason}"
    return "refused"
