"""The daemon's side of a keeper: send an order, await its end. One keeper a connection, opened on first use."""

from __future__ import annotations

import asyncio
import base64
import errno
import json
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any

from actions.command.connection import CommandConnection
from actions.command.keeper import LARGEST, lock_address
from actions.command.output import Output
from remediator.action import Context
from remediator.errors import OutcomeUnknown, PermanentError, TemporaryError

KEEPER = Path(__file__).with_name("keeper.py")
ENDING = 2.5
"""Seconds that a command which was told to stop is awaited; the daemon leaves behind what takes longer than three."""
CLOSING = 1.8
BUFFER = 1 << 20


@dataclass(frozen=True)
class Ended:
    """How a command ended that was started."""

    code: int | None
    """None when a signal ended it, or when it has not ended at all."""
    signal: int | None
    why: str
    """`timeout` or `stopped` when it was ended, else empty."""
    seconds: float
    left: int
    """How many processes it left behind, which were ended."""
    alive: tuple[int, ...]
    """Processes that SIGKILL did not end."""
    out: Output
    err: Output

    @property
    def words(self) -> str:
        """How it ended, for people; nothing of what it printed."""
        sizes = f"{self.out.total} bytes of stdout and {self.err.total} of stderr"
        how = f"exit code {self.code}" if self.code is not None else f"signal {self.signal}" if self.signal is not None else "no end"
        early = {"timeout": f"was ended when its time was over ({how})", "stopped": f"was ended with the daemon's call ({how})"}
        text = f"{early.get(self.why, f'ended with {how}')} after {self.seconds:.1f} s, {sizes}"
        rest = f"; it left {self.left} processes behind, which were ended" if self.left else ""
        alive = f"; processes {', '.join(map(str, self.alive))} could not be ended and still run" if self.alive else ""
        return f"{text}{rest}{alive}"


class Keeper:
    """One keeper process and the calls that wait for it."""

    def __init__(self, process: subprocess.Popen[bytes], channel: socket.socket) -> None:
        self._process = process
        self._channel = channel
        self._loop = asyncio.get_running_loop()
        self._calls: dict[int, asyncio.Future[Mapping[str, Any]]] = {}
        self._numbers = count(1)
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self.lost = False
        self._loop.add_reader(channel.fileno(), self._read)

    @classmethod
    async def open(cls, _settings: CommandConnection, _ctx: Context) -> Keeper:
        """Start a keeper. Raises `TemporaryError`."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        ours.setblocking(False)
        try:
            argv = [sys.executable, "-I", "-S", str(KEEPER), str(theirs.fileno())]
            # Its own session: a Ctrl-C at a terminal is the daemon's to answer.
            process = subprocess.Popen(  # noqa: ASYNC220, S603 - once, and it returns when the child has begun
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                cwd="/",
                env={},
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            raise TemporaryError(f"commands can't be started: {error.strerror}") from error
        finally:
            theirs.close()
        keeper = cls(process, ours)
        try:
            await keeper._ready
        except BaseException:
            await keeper.aclose()
            raise
        return keeper

    async def run(self, order: Mapping[str, Any]) -> Ended:
        """Have a command run to its end.

        Raises `PermanentError` or `TemporaryError` when it was not started, `OutcomeUnknown` when its end was not heard of. Being
        cancelled ends the command first.
        """
        number = next(self._numbers)
        call = self._calls[number] = self._loop.create_future()
        try:
            self._send({"id": number, **order})
            return _ended(await asyncio.shield(call))
        except asyncio.CancelledError:
            self._tell_to_stop(number)
            await asyncio.wait({call}, timeout=ENDING)
            raise
        except BaseException:
            self._tell_to_stop(number)
            raise
        finally:
            self._calls.pop(number, None)
            if call.done() and not call.cancelled():
                call.exception()  # heard of, also by nobody

    def _send(self, message: Mapping[str, Any]) -> None:
        try:
            self._channel.send(json.dumps(message).encode())
        except BlockingIOError:
            raise TemporaryError("too many commands are being started at once; nothing was started") from None
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                raise PermanentError("the command and its environment are too large") from None
            raise TemporaryError(f"the keeper of commands is gone ({error.strerror}); nothing was started") from None

    def _tell_to_stop(self, number: int) -> None:
        if number in self._calls and not self._calls[number].done():
            with suppress(TemporaryError):  # it is gone, and its commands with it
                self._send({"stop": number})

    def _read(self) -> None:
        while True:
            try:
                data = self._channel.recv(LARGEST)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._lose()
                return
            message = json.loads(data)
            if "ready" in message:
                self._ready.set_result(None)
            elif (call := self._calls.get(message["id"])) is not None and not call.done():
                call.set_result(message)

    def _lose(self) -> None:
        """Nothing more will be heard."""
        self.lost = True
        self._loop.remove_reader(self._channel.fileno())
        if not self._ready.done():
            self._ready.set_exception(TemporaryError("commands can't be started: their keeper ended at once"))
        for call in self._calls.values():
            if not call.done():
                call.set_exception(OutcomeUnknown("the keeper of commands was ended, and the command with it"))

    async def aclose(self) -> None:
        """End all commands and the keeper. What does not end in time goes on being ended without being awaited."""
        if not self.lost:
            self._lose()
        self._channel.close()
        with suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(self._process.wait, CLOSING)


async def keeper_of(ctx: Context, connection: str) -> Keeper:
    """Return the connection's keeper, a new one when the last is gone."""
    keeper = await ctx.client(CommandConnection, connection, Keeper.open)
    if keeper.lost:
        await ctx.discard(CommandConnection, connection)
        keeper = await ctx.client(CommandConnection, connection, Keeper.open)
    return keeper


def lock_of(ctx: Context, kind: str) -> str:
    """Return the name under which a call is known on this host while any of it runs."""
    return sha256(f"{ctx.identity.name}\n{ctx.key}\n{kind}".encode()).hexdigest()[:40]


def still_runs(lock: str) -> bool:
    """Tell whether a command is under way on this host under that name, started by whichever daemon."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(lock_address(lock))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def _ended(message: Mapping[str, Any]) -> Ended:
    if "unstarted" in message:
        raise PermanentError(f"it was not started: {message['unstarted']}")
    if "lost" in message:
        raise OutcomeUnknown(f"nobody saw how the command ended: {message['lost']}")
    return Ended(
        code=message["code"],
        signal=message["signal"],
        why=message["why"],
        seconds=message["seconds"],
        left=message["left"],
        alive=tuple(message["alive"]),
        out=_output(message["out"]),
        err=_output(message["err"]),
    )


def _output(told: Mapping[str, Any]) -> Output:
    return Output(base64.b64decode(told["head"]), base64.b64decode(told["tail"]), told["total"])
