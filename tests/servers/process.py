"""A server's process: found on PATH, started, awaited until it answers, stopped."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path


def find_binary(name: str, package: str) -> str:
    """Return the path of a program. Raises `RuntimeError` saying which Debian package has it."""
    found = shutil.which(name)
    if found is None:
        raise RuntimeError(f"{name} is not installed, and these tests need the real one: apt-get install {package}")
    return found


class Process:
    """One running program; its output goes to a file which error messages quote."""

    def __init__(self, argv: Sequence[str], log: Path, *, environment: Mapping[str, str] | None = None) -> None:
        self._log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(argv, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=environment)

    @property
    def log(self) -> str:
        """The end of what it wrote."""
        return self._log.read_text(errors="replace")[-2_000:]

    @property
    def ended(self) -> bool:
        """Whether it is no longer running."""
        return self._process.poll() is not None

    async def wait_until(self, ready: Callable[[], Awaitable[bool]], *, what: str, within: float = 30.0) -> None:
        """Poll `ready`. Raises `RuntimeError` with the program's output when it ends first or takes longer than `within` seconds."""
        deadline = asyncio.get_running_loop().time() + within
        while not await ready():
            if self._process.poll() is not None:
                raise RuntimeError(f"{what} ended with {self._process.returncode}:\n{self.log}")
            if asyncio.get_running_loop().time() > deadline:
                self.kill()
                raise RuntimeError(f"{what} is not ready after {within} s:\n{self.log}")
            await asyncio.sleep(0.02)

    async def stop(self) -> None:
        """End it, politely first."""
        self._process.terminate()
        try:
            await asyncio.to_thread(self._process.wait, 10)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()
