"""The runner: takes due runs from the store, has the engine advance them, and keeps their leases.

No run lives only here: what a runner holds is a lease on a row. It stops working on a run the moment its lease is in doubt.
"""

from __future__ import annotations

import asyncio
import functools
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import structlog

from remediator.errors import LeaseLost, RemediatorError, TemporaryError
from remediator.records import Run
from remediator.store.protocol import Store

LONGEST_SLEEP = timedelta(seconds=5)
"""Without being woken, look for due runs this often."""
SHORTEST_SLEEP = timedelta(milliseconds=20)
"""When nothing was due, look again no sooner than this without being woken."""
RETRY_AFTER = timedelta(seconds=2)


class Runner:
    """Works on up to `capacity` runs at a time. `start` once, `aclose` once."""

    def __init__(
        self,
        store: Store,
        advance: Callable[[Run], Awaitable[None]],
        *,
        worker: str,
        capacity: int,
        lease: timedelta,
    ) -> None:
        """`advance` leads one claimed run on; `worker` names this process among all that share the store."""
        self._store = store
        self._advance = advance
        self.worker = worker
        self._capacity = capacity
        self._lease = lease
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._woken = asyncio.Event()
        self._loops: list[asyncio.Task[None]] = []
        self._log = structlog.get_logger("runner")
        self._draining = False
        self._reserved = 0

    @property
    def free(self) -> int:
        """How many more runs it could take now; 0 while it drains."""
        return 0 if self._draining else max(0, self._capacity - len(self._tasks) - self._reserved)

    @contextmanager
    def reserve(self, wanted: int) -> Iterator[int]:
        """Keep room for up to `wanted` runs that are about to be committed with this worker's lease; gives how many there is room for."""
        granted = min(self.free, wanted)
        self._reserved += granted
        try:
            yield granted
        finally:
            self._reserved -= granted

    @property
    def alive(self) -> bool:
        """Whether it still takes runs and keeps their leases."""
        return bool(self._loops) and not any(task.done() for task in self._loops)

    @property
    def held(self) -> tuple[str, ...]:
        """Ids of the runs it works on."""
        return tuple(self._tasks)

    def start(self) -> None:
        """Begin. The lease keeper runs before any work is taken."""
        self._store.on_wake(self._wake)
        self._loops = [
            asyncio.create_task(self._keep_leases(), name="leases"),
            asyncio.create_task(self._take_due(), name="claims"),
        ]

    async def aclose(self, *, grace: timedelta = timedelta(seconds=10)) -> None:
        """Stop taking runs, let those under way come to a rest for `grace`, then let go of the others.

        A call cut off here was intended before and is looked into by whoever takes the run next.
        """
        self._draining = True
        if self._loops:
            self._loops[1].cancel()
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=grace.total_seconds())
        for task in (*self._tasks.values(), *self._loops):
            task.cancel()
        await asyncio.gather(*self._tasks.values(), *self._loops, return_exceptions=True)

    def take(self, runs: Sequence[Run]) -> None:
        """Work on runs whose lease this worker holds already."""
        for run in runs:
            task = asyncio.create_task(self._work(run, after=self._tasks.get(run.id)), name=f"run {run.id}")
            self._tasks[run.id] = task
            task.add_done_callback(functools.partial(self._done, run.id))

    def _done(self, ident: str, task: asyncio.Task[None]) -> None:
        if self._tasks.get(ident) is task:
            del self._tasks[ident]
        self._woken.set()

    def _wake(self, _runs: Sequence[str]) -> None:
        self._woken.set()

    async def _work(self, run: Run, after: asyncio.Task[None] | None = None) -> None:
        """Advance one run; whatever goes wrong, its row stays and its lease runs out."""
        log = self._log.bind(run_id=run.id, incident_id=run.incident, rule=run.rule)
        if after is not None:
            # The run was claimed again between the commit that gave its lease back and the end of the task that made it.
            await asyncio.wait({after})
        try:
            await self._advance(run)
        except LeaseLost:
            log.warning("run.lease_lost")
        except TemporaryError as error:
            log.warning("run.delayed", error=str(error))
        except RemediatorError as error:
            log.error("run.stuck", error=str(error))  # noqa: TRY400 - its message says it all
        except Exception:
            log.exception("run.crashed")

    async def _take_due(self) -> None:
        while True:
            self._woken.clear()
            try:
                claimed = await self._store.claim(self.worker, limit=self.free, lease=self._lease) if self.free else []
                self.take(claimed)
                # The store had nothing due: where our clock is ahead of the store's, it only seems so, and must not be asked all the time.
                pause = max(await self._pause(), 0.0 if claimed else SHORTEST_SLEEP.total_seconds())
            except TemporaryError as error:
                self._log.warning("claim.delayed", error=str(error))
                pause = RETRY_AFTER.total_seconds() * random.uniform(0.5, 1.5)  # noqa: S311 - jitter
            except Exception:  # noqa: BLE001 - without this loop nothing is ever done again
                self._log.exception("claim.crashed")
                pause = RETRY_AFTER.total_seconds()
            try:
                async with asyncio.timeout(pause):
                    await self._woken.wait()
            except TimeoutError:
                pass

    async def _pause(self) -> float:
        """Return for how long nothing is due."""
        if not self.free:
            return LONGEST_SLEEP.total_seconds()
        due = await self._store.next_wake()
        longest = LONGEST_SLEEP.total_seconds()
        return longest if due is None else min(longest, max(0.0, (due - datetime.now(UTC)).total_seconds()))

    async def _keep_leases(self) -> None:
        """Renew leases three times within their length; let go of a run whose lease is lost or could not be renewed."""
        while True:
            await asyncio.sleep(self._lease.total_seconds() / 3)
            held = self.held
            kept = await self._renew(held) if held else set()
            for ident in held:
                task = self._tasks.get(ident)
                if ident not in kept and task is not None:
                    task.cancel()

    async def _renew(self, held: Sequence[str]) -> set[str]:
        """Renew leases; try again for a third of their length, so that a store that is away for a moment cuts no call off."""
        span = self._lease.total_seconds() / 3
        until = time.monotonic() + span
        while True:
            try:
                async with asyncio.timeout(until - time.monotonic()):
                    return await self._store.renew(self.worker, held, lease=self._lease)
            except (TemporaryError, TimeoutError) as error:
                if time.monotonic() + span / 8 < until:
                    await asyncio.sleep(span / 8)
                    continue
                self._log.error("lease.not_renewed", error=str(error), runs=len(held))
            except Exception:  # noqa: BLE001 - in doubt nothing is kept, and the keeper lives on
                self._log.exception("lease.crashed", runs=len(held))
            return set()
