"""The real daemon, which dies by SIGKILL at a labelled point: `python -m tests.servers.dying serve --config …`.

The labels come from outside the product: each transaction is named for what it does to a run (`applying 1:intended`), each call of an
action for its step. `REMEDIATOR_TEST_POINTS` names a file to which every point that is passed is appended; `REMEDIATOR_TEST_DIES` is
`LABEL` with a target after `@`: the process ends there, the first time that this point is reached for that target.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from remediator.cli import main
from remediator.execution import Execution
from remediator.store.postgres import PostgresStore
from remediator.store.protocol import Build, Changes, Committed, Reads, Snapshot
from remediator.store.sqlite import SqliteStore

DIES = os.environ.get("REMEDIATOR_TEST_DIES", "")
POINTS = os.environ.get("REMEDIATOR_TEST_POINTS", "")


def passes(point: str) -> None:
    """Note a point, and die if it is the one."""
    if POINTS:
        with Path(POINTS).open("a") as file:
            file.write(f"{point}\n")
    if point == DIES:
        os.kill(os.getpid(), signal.SIGKILL)


def label_of(changes: Changes, snapshot: Snapshot) -> str:
    """Name a transaction for what it does to a run, with the run's target; empty when it is about none."""
    for run in changes.runs:
        steps = " ".join(f"{step.number}:{step.state.value}" for step in run.steps)
        return f"{run.state.value} {steps}".strip() + f"@{run.target}"
    for approval in changes.approvals:
        return f"vote {approval.state.value}@{snapshot.runs[approval.run].target}"
    for signalled in changes.signals:
        return f"told {signalled.kind.value}@{snapshot.runs[signalled.run].target}"
    return ""


def _dying(transact: Callable[..., Any]) -> Callable[..., Any]:
    async def dies(self: Any, reads: Reads, build: Build) -> Committed:
        label = ""

        def labelled(snapshot: Snapshot) -> Changes:
            nonlocal label
            changes = build(snapshot)
            label = label_of(changes, snapshot)
            if label:
                passes(f"before the commit of {label}")
            return changes

        committed: Committed = await transact(self, reads, labelled)
        if label:
            passes(f"after the commit of {label}")
        return committed

    return dies


def _calling(apply: Callable[..., Any]) -> Callable[..., Any]:
    async def dies(self: Any, plan: Any, *, key: str, values: Any, **more: Any) -> Any:
        place = f"{key.partition('/')[2]}@{values['target']}"
        passes(f"before the call of {place}")
        outcome = await apply(self, plan, key=key, values=values, **more)
        passes(f"after the call of {place}")
        return outcome

    return dies


if __name__ == "__main__":
    for store in (SqliteStore, PostgresStore):
        store.transact = _dying(store.transact)  # type: ignore[attr-defined,method-assign]
    Execution.apply = _calling(Execution.apply)  # type: ignore[method-assign]
    sys.exit(main())
