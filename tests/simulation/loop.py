"""An event loop without a clock: time is virtual, and the order of what is ready comes from a seed.

Every callback belongs to a `Process` (by its context), which can be killed or stopped between any two callbacks, that is between any
two awaits. What a dead process had waiting never runs, not even its `finally` blocks; what a stopped one has waiting runs when it goes on.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import random
from collections.abc import Callable, Coroutine
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

T = TypeVar("T")

START = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
LONGEST_STEP = 40e-6
"""Most seconds of virtual time that one callback takes. Without any, a loop that waits for nothing would never end."""


class Process:
    """What is killed and stopped as a whole. Its wall clock may be wrong by `skew`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.dead = False
        self.stopped = False
        self.skew = timedelta()
        self.steps = 0
        """Callbacks run so far."""
        self.tasks: list[asyncio.Task[Any]] = []
        self.context = contextvars.copy_context()
        self.context.run(_CURRENT.set, self)

    def __repr__(self) -> str:
        return f"<{self.name}>"


_CURRENT: contextvars.ContextVar[Process] = contextvars.ContextVar("process")


def current() -> Process:
    """Return the process that the running callback belongs to."""
    return _CURRENT.get()


class SimTime(datetime):
    """Stands in for `datetime` in modules that ask it for the time: now is what the running process' own wall clock says."""

    @classmethod
    def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
        """Return the virtual time."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimLoop)
        return loop.wall() + current().skew


class SimLoop(asyncio.BaseEventLoop):
    """The loop. `before_step` is called with each process about to run a callback, and may kill or stop it."""

    def __init__(self, dice: random.Random) -> None:
        super().__init__()
        self.dice = dice
        self.seconds = 1000.0
        self.jumps = timedelta()
        self.shuffles = True
        """Whether what is ready runs in any order, and not in the order in which it became ready."""
        self.before_step: Callable[[Process], None] = lambda _process: None
        self.failures: list[str] = []
        self._aside: list[asyncio.Handle] = []
        self.outside = Process("outside")
        self.set_task_factory(self._make_task)
        self.set_exception_handler(self._failed)

    def time(self) -> float:
        """Return the virtual monotonic clock."""
        return self.seconds

    def wall(self) -> datetime:
        """Return the true virtual wall clock, or what all machines agree on after `jumps`."""
        return START + timedelta(seconds=round(self.seconds - 1000.0, 6)) + self.jumps

    def _failed(self, _loop: Any, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.failures.append(f"{context.get('message')}: {type(error).__name__}: {error}")

    # --- processes

    def spawn(self, process: Process, doing: Coroutine[Any, Any, T], *, name: str = "") -> asyncio.Task[T]:
        """Start a task that belongs to a process."""
        task = asyncio.Task(doing, loop=self, name=name or None, context=process.context)
        process.tasks.append(task)
        return task

    def _make_task(self, loop: Any, doing: Any, context: Any = None) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(doing, loop=loop, context=context)
        process = (context or contextvars.copy_context()).get(_CURRENT, self.outside)
        process.tasks.append(task)
        if len(process.tasks) > 500:
            process.tasks[:] = [one for one in process.tasks if not one.done()]
        return task

    def kill(self, process: Process) -> None:
        """End a process: nothing of it runs again."""
        process.dead = True

    def stop_process(self, process: Process, seconds: float) -> None:
        """Stop a process as SIGSTOP does, and let it go on later."""
        process.stopped = True
        self.call_later(seconds, self._go_on, process, context=self.outside.context)

    def _go_on(self, process: Process) -> None:
        process.stopped = False
        waiting = [handle for handle in self._aside if handle._context.get(_CURRENT, self.outside) is process]  # type: ignore[attr-defined]
        self._aside = [handle for handle in self._aside if handle not in waiting]
        self._ready.extend(waiting)  # type: ignore[attr-defined]

    # --- running

    def drive(self, task: asyncio.Future[Any], *, broken: Callable[[], bool]) -> None:
        """Run until the task is done, or something is broken."""
        asyncio.events._set_running_loop(self)
        try:
            while not task.done() and not broken():
                self._run_once()
        finally:
            asyncio.events._set_running_loop(None)

    def _run_once(self) -> None:
        ready, waiting = self._ready, self._scheduled  # type: ignore[attr-defined]
        while waiting and waiting[0]._cancelled:
            heapq.heappop(waiting)
        if not ready:
            if not waiting:
                raise RuntimeError("everything waits for something that can't happen")
            self.seconds = max(self.seconds, waiting[0]._when)
        while waiting and waiting[0]._when <= self.seconds:
            ready.append(heapq.heappop(waiting))
        if ready:
            self._step(self._pick(ready))

    def _pick(self, ready: Any) -> asyncio.Handle:
        place = self.dice.randrange(len(ready)) if self.shuffles and len(ready) > 1 else 0
        ready.rotate(-place)
        handle: asyncio.Handle = ready.popleft()
        ready.rotate(place)
        return handle

    def _step(self, handle: asyncio.Handle) -> None:
        if handle.cancelled():
            return
        process = handle._context.get(_CURRENT, self.outside)  # type: ignore[attr-defined]
        if process is not self.outside and not process.dead and not process.stopped:
            self.before_step(process)
        if process.dead:
            return
        if process.stopped:
            self._aside.append(handle)
            return
        process.steps += 1
        self.seconds += self.dice.random() * LONGEST_STEP
        handle._run()

    # --- what a loop without sockets needs

    def _process_events(self, _events: Any) -> None:
        raise NotImplementedError

    def _write_to_self(self) -> None:
        raise NotImplementedError

    def bury(self, *processes: Process) -> None:
        """Close the loop; break off what dead processes had under way, without letting it do anything any more."""
        for process in (*processes, self.outside):
            for task in process.tasks:
                if not task.done():
                    task._log_destroy_pending = False  # type: ignore[attr-defined]
                    for _ in range(20):
                        with suppress(BaseException):
                            task.get_coro().close()  # type: ignore[union-attr]
                            break
            process.tasks.clear()
        self._ready.clear()  # type: ignore[attr-defined]
        self._scheduled.clear()  # type: ignore[attr-defined]
        self._aside.clear()
        self.close()
