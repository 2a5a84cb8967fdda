"""The channels of a command in a container: bytes on two of them, and how it ended on a third.

Each message starts with a byte that names its channel; how the server cuts messages has no meaning, neither in the middle of a character
nor of the status. Versions 5 and 4 of the protocol differ only in how a client closes stdin, which is never opened here.
"""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from actions.kubernetes.answers import safe_message
from remediator.errors import OutcomeUnknown, PermanentError, RemediatorError

PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io")
"""Ways of speaking in which the exit code is told, the newest first."""

_STDOUT, _STDERR, _STATUS = 1, 2, 3
_MOST_DISCARDED = 256 * 2**20
_LONGEST_STATUS = 65_536
_IN_GOOD_ORDER = (1000, 1005, 0)
_LINGERING = 1.0
"""Seconds after the status until the server must have closed: servers may send the last output after it."""

_NO_PROCESS = re.compile(r"unable to start container process|starting container process caused")
"""What runtimes say when they could not start a process: the command isn't there, above all."""
_NOT_REACHED = re.compile(r"container not found|pod does not exist|error dialing backend: dial tcp")
"""What kubelets and API servers say, in place of a stream, when there was nothing to start a process in."""


def was_never_started(refusal: str) -> bool:
    """Tell whether a server error in place of a stream says for certain that no process was started."""
    return _NOT_REACHED.search(refusal) is not None


@dataclass(frozen=True)
class ExecResult:
    """How a command ended, and what it wrote, up to the limit; `truncated` tells that there was or may have been more."""

    exit_code: int
    stdout: bytes
    stderr: bytes
    truncated: bool


@dataclass
class _Channel:
    """What came on one channel: the first `limit` bytes, and how many there were in all."""

    limit: int
    kept: bytearray = field(default_factory=bytearray)
    size: int = 0

    def take(self, data: bytes) -> None:
        self.kept += data[: max(self.limit - len(self.kept), 0)]
        self.size += len(data)


class Channels:
    """The client's side of one command. `limit` bytes of each stream are kept; what comes after is read and thrown away.

    Closing at the limit would kill some commands and hide the exit code of all of them.
    """

    def __init__(self, what: str, *, limit: int) -> None:
        self._what = what
        self._streams = {_STDOUT: _Channel(limit), _STDERR: _Channel(limit), _STATUS: _Channel(_LONGEST_STATUS)}
        self._status: dict[str, Any] | None = None

    async def run(self, socket: aiohttp.ClientWebSocketResponse, *, timeout: float) -> ExecResult:  # noqa: ASYNC109
        """Read until the command has ended.

        Raises `OutcomeUnknown` when it does not within `timeout` seconds, or the connection breaks before the exit code came, and
        `PermanentError` when the runtime says that it could not start it.
        """
        if socket.protocol not in PROTOCOLS:
            raise self._unknown("the server speaks a protocol without exit codes")
        try:
            async with asyncio.timeout(timeout):
                await self._read(socket, until_status=True)
        except TimeoutError as error:
            raise self._unknown(f"it did not end within {timeout:g} s and may still be running") from error
        closed = False
        try:
            async with asyncio.timeout(_LINGERING):
                closed = await self._read(socket, until_status=False)
        except TimeoutError:
            pass  # the exit code is known, and that some output may be missing is said
        return self._result(complete=closed)

    async def _read(self, socket: aiohttp.ClientWebSocketResponse, *, until_status: bool) -> bool:
        """Take messages; with `until_status` only as far as the status. Returns whether the server closed in good order."""
        while True:
            message = await socket.receive()
            if message.type is aiohttp.WSMsgType.BINARY:
                self._take(message.data)
                if until_status and self._status is not None:
                    return False
            elif self._status is not None:
                # The code of the message: the socket's own also tells whether our answer to it could still be sent.
                return message.type is aiohttp.WSMsgType.CLOSE and message.data in _IN_GOOD_ORDER
            else:
                raise self._unknown("the connection ended before its exit code came")

    def _take(self, data: bytes) -> None:
        stream = self._streams.get(data[0]) if data else None
        if stream is None:
            return
        stream.take(data[1:])
        if sum(one.size for one in self._streams.values()) > _MOST_DISCARDED:
            raise self._unknown(f"it wrote more than {_MOST_DISCARDED // 2**20} MiB")
        if data[0] == _STATUS and len(data) > 1:
            self._status = _status(bytes(stream.kept))

    def _result(self, *, complete: bool) -> ExecResult:
        out, err = self._streams[_STDOUT], self._streams[_STDERR]
        truncated = not complete or any(one.size > len(one.kept) for one in (out, err))
        return ExecResult(self._exit_code(), bytes(out.kept), bytes(err.kept), truncated)

    def _exit_code(self) -> int:
        status = self._status or {}
        if status.get("status") == "Success":
            return 0
        causes = (status.get("details") or {}).get("causes") or ()
        codes = [str(cause.get("message", "")) for cause in causes if cause.get("reason") == "ExitCode"]
        if status.get("reason") == "NonZeroExitCode" and codes and re.fullmatch(r"-?[0-9]{1,10}", codes[0]):
            return int(codes[0])
        said = safe_message(str(status.get("message", ""))) or "no reason given"
        if _NO_PROCESS.search(str(status.get("message", ""))):
            raise PermanentError(f"{self._what}: the command could not be started: {said}")
        raise self._unknown(f"it ended without an exit code: {said}")

    def _unknown(self, why: str) -> RemediatorError:
        """Return the error for a command of which nobody can say what it did. What it wrote is told by its size alone."""
        out, err = self._streams[_STDOUT].size, self._streams[_STDERR].size
        return OutcomeUnknown(f"{self._what}: {why}; seen: {out} bytes of stdout, {err} bytes of stderr")


def _status(data: bytes) -> dict[str, Any] | None:
    """Return the `Status` object, None while it is not complete."""
    try:
        value = json.loads(data)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
