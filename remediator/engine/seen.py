"""What this daemon saw of calls whose outcome it could not write down, so that people read that and nothing that was made up."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

from remediator.errors import RemediatorError
from remediator.execution import Outcome
from remediator.records import Run, Step

MOST = 1000
"""So many calls are remembered, the newest."""
UNSEEN = "the daemon that made the {what} stopped, or lost its store, before it wrote down what came of it"
NO_LEASE = "this daemon could not renew its lease on the run, since the store did not answer in time"

_Call = tuple[str, int, datetime | None, bool]


class Watched:
    """One call on its way."""

    def __init__(self) -> None:
        """Begin; it is not answered yet."""
        self._began = asyncio.get_running_loop().time()
        self._answer = ""

    def answered(self, outcome: Outcome) -> None:
        """Hear what came of it."""
        self._answer = f" was answered after {self._lasted()} ({outcome.message}), and that could not be written down"

    def words(self, error: BaseException) -> str:
        """Say how far it had come when `error` ended it here."""
        why = str(error) if isinstance(error, RemediatorError) else NO_LEASE
        return f"{self._answer or f' was let go of after {self._lasted()}'}: {why}"

    def _lasted(self) -> str:
        return f"{asyncio.get_running_loop().time() - self._began:.1f} s"


class Seen:
    """The memory of one process. Another one knows nothing of its calls, and says so."""

    def __init__(self) -> None:
        """Remember nothing yet."""
        self._words: dict[_Call, str] = {}

    @contextmanager
    def call(self, run: Run, step: Step, *, undo: bool = False) -> Iterator[Watched]:
        """Watch a call from its beginning until its outcome is durable. What ends it before that is remembered, and raised."""
        watched = Watched()
        try:
            yield watched
        except (asyncio.CancelledError, RemediatorError) as error:
            self._words[_named(run, step, undo=undo)] = watched.words(error)
            for oldest in list(self._words)[:-MOST]:
                del self._words[oldest]
            raise

    def lost(self, run: Run, step: Step, *, undo: bool = False) -> str:
        """Say why nobody wrote down what came of a call that was intended."""
        what = "undo" if undo else "call"
        words = self._words.get(_named(run, step, undo=undo))
        return UNSEEN.format(what=what) if words is None else f"the {what}{words}"


def _named(run: Run, step: Step, *, undo: bool) -> _Call:
    """Name this very call: the next attempt at the same step is another one."""
    return run.id, step.number, step.intended_at, undo
