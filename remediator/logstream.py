"""A stream for log lines that never waits for whoever reads them: a pipe that nobody empties must not stop what is being done.

A full pipe, a terminal that was told to stop (Ctrl-S), a journal that hangs: what it does not take is kept for a while, then left out
and counted.
"""

from __future__ import annotations

import asyncio
import os
import select
import stat
from collections import deque
from collections.abc import Callable
from threading import Lock
from typing import Final, TextIO

AT_ONCE: Final = 4096
"""Bytes that a pipe takes without waiting once it says that it takes any: PIPE_BUF on Linux."""
MOST: Final = 4 * 1024 * 1024
"""Most bytes that are kept."""
AGAIN: Final = 0.1
"""Seconds after which it is tried again."""


class PatientStream:
    """Writes to a descriptor what that takes now, and the rest later. Raises `OSError` as the descriptor does."""

    def __init__(self, descriptor: int, *, gap: Callable[[int], str]) -> None:
        """`gap` makes the line that says how many writes were left out."""
        self._descriptor = descriptor
        self._gap = gap
        self._left: deque[memoryview] = deque()
        self._size = 0
        self._lost = 0
        self._planned = False
        self._lock = Lock()
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)

    def write(self, text: str) -> None:
        """Take whole lines. Never waits."""
        with self._lock:
            self._keep(text)
            self._write_on()
        self._plan()

    def flush(self) -> None:
        """Write what is taken by now."""
        with self._lock:
            self._write_on()

    def _keep(self, text: str) -> None:
        data = memoryview(text.encode("utf-8", "backslashreplace"))
        if self._size + len(data) > MOST:
            self._lost += 1
            return
        self._left.append(data)
        self._size += len(data)

    def _write_on(self) -> None:
        while self._left and self._poll.poll(0):
            data = self._left.popleft()
            self._size -= len(data)
            try:
                written = os.write(self._descriptor, data[:AT_ONCE])
            except BlockingIOError:
                written = 0
            rest = data[written:]
            if rest:
                self._left.appendleft(rest)
                self._size += len(rest)
            if not written:
                return
            if self._lost and not self._left:
                lost, self._lost = self._lost, 0
                self._keep(self._gap(lost))

    def _plan(self) -> None:
        """Have it tried again soon, where there is an event loop to do so; else the next line does."""
        if not self._left or self._planned:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        self._planned = True
        loop.call_later(AGAIN, self._again)

    def _again(self) -> None:
        self._planned = False
        try:
            self.flush()
        except OSError:  # as for every line: what can't be logged must not stop what is being done
            return
        self._plan()


def patient(stream: TextIO, *, gap: Callable[[int], str]) -> TextIO | PatientStream:
    """Return a stream for `stream`'s descriptor that never waits; `stream` itself where it is a file, or none of the system's."""
    try:
        descriptor = stream.fileno()
        waits = not stat.S_ISREG(os.fstat(descriptor).st_mode)
    except (OSError, ValueError):
        return stream
    return PatientStream(descriptor, gap=gap) if waits else stream
