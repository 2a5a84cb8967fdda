"""Programs on the daemon's host that print a secret's value: declared in the settings, bound to what they may fill, never in a rule.

What a program prints goes to its caller and nowhere else; what it prints to its standard error goes nowhere at all, since that may
hold the value too.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import Sequence
from datetime import timedelta
from fnmatch import fnmatchcase
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from remediator.duration import Duration
from remediator.errors import PermanentError, TemporaryError

LARGEST = 256 * 1024
"""Most bytes of one value; a Secret holds 1 MiB in all."""
_LONGEST_TIMEOUT = timedelta(minutes=1)
_PLACE = re.compile(r"\{(namespace|secret|key)\}")
_FILLS = re.compile(r"[^/\s]+/[^/\s]+/[^/\s]+")
_ALWAYS = ("PATH", "HOME", "LANG")


class SecretCommand(BaseModel):
    """A program whose standard output is the value of one key of a Secret."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    argv: tuple[str, ...] = Field(
        min_length=1,
        max_length=64,
        description="absolute path of the program and its arguments; {namespace}, {secret} and {key} stand for what is filled",
    )
    fills: tuple[str, ...] = Field(min_length=1, description="what it may fill: NAMESPACE/SECRET/KEY, each exact or a glob")
    timeout: Duration = Field(timedelta(seconds=10), description="it is ended after that; at most 1m")
    pass_env: tuple[str, ...] = Field((), description="environment variables of the daemon that it gets besides PATH, HOME and LANG")

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if not self.argv[0].startswith("/") or _PLACE.search(self.argv[0]):
            raise ValueError("argv begins with the absolute path of a program, a constant")
        if any("\0" in element for element in self.argv):
            raise ValueError("argv holds a NUL character")
        for one in self.fills:
            if not _FILLS.fullmatch(one):
                raise ValueError(f"fills: {one!r} is not written as NAMESPACE/SECRET/KEY")
        if not timedelta() < self.timeout <= _LONGEST_TIMEOUT:
            raise ValueError("timeout must be more than 0s and at most 1m")
        return self

    def may_fill(self, namespace: str, secret: str, key: str) -> bool:
        """Tell whether its value may go there."""
        wanted = (namespace, secret, key)
        return any(all(map(fnmatchcase, wanted, one.split("/"))) for one in self.fills)

    def filled(self, namespace: str, secret: str, key: str) -> tuple[str, ...]:
        """Return the argv for one key. The names hold no syntax, and there is no shell."""
        names = {"namespace": namespace, "secret": secret, "key": key}
        return tuple(_PLACE.sub(lambda place: names[place[1]], element) for element in self.argv)


async def run(name: str, command: SecretCommand, argv: Sequence[str]) -> bytes:
    """Run a program and return what it printed, without one newline at its end.

    Raises `TemporaryError` when it takes too long, `PermanentError` when it can't be started, fails, or prints nothing or too much.
    No error holds anything that it printed.
    """
    what = f"secret command {name!r} ({argv[0]})"
    environment = {one: os.environ[one] for one in (*_ALWAYS, *command.pass_env) if one in os.environ}
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=environment,
            cwd="/",
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise PermanentError(f"{what} can't be started: {reason}") from None
    try:
        async with asyncio.timeout(command.timeout.total_seconds()):
            printed = await _read(process, what)
            code = await process.wait()
    except TimeoutError:
        await _end(process)
        raise TemporaryError(f"{what} did not end within {command.timeout.total_seconds():g} s") from None
    except BaseException:
        await _end(process)
        raise
    if code != 0:
        raise PermanentError(f"{what} failed with exit code {code}; run it by hand as the daemon's user to see why")
    value = printed.removesuffix(b"\n")
    if not value:
        raise PermanentError(f"{what} printed nothing")
    return value


async def _read(process: asyncio.subprocess.Process, what: str) -> bytes:
    found = bytearray()
    stream = process.stdout
    while stream is not None and (chunk := await stream.read(2**16)):
        found += chunk
        if len(found) > LARGEST:
            raise PermanentError(f"{what} printed more than {LARGEST // 1024} KiB")
    return bytes(found)


async def _end(process: asyncio.subprocess.Process) -> None:
    """End the program and all it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
