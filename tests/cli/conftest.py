"""The command line as people call it: a process of its own against a served surface."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.servers.surface import Surface, serving, token_of

ROOT = Path(__file__).parents[2]


@dataclass
class Done:
    """What a command did."""

    code: int
    out: str
    error: str


@dataclass
class Commands:
    """Runs commands against one daemon, or none."""

    url: str
    directory: Path

    async def __call__(self, *arguments: str, role: str | None = "viewer", text: bytes = b"", **environ: str) -> Done:
        """Run one command as the identity with `role`; its standard input is no terminal."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith("REMEDIATOR_")}
        environment |= {"REMEDIATOR_URL": self.url, "PYTHONPATH": str(ROOT), **environ}
        if role is not None:
            environment["REMEDIATOR_TOKEN"] = token_of(role)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "remediator.cli",
            *arguments,
            env=environment,
            cwd=self.directory,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, error = await asyncio.wait_for(process.communicate(text), 60)
        done = Done(process.returncode or 0, out.decode(), error.decode())
        assert "Traceback" not in done.error, done.error
        return done


@pytest.fixture
async def surface(tmp_path: Path) -> AsyncIterator[Surface]:
    """Serve a surface over a filled store."""
    async with serving(tmp_path) as served:
        yield served


@pytest.fixture
def run(surface: Surface, tmp_path: Path) -> Commands:
    """Return what runs commands against the served surface."""
    return Commands(surface.url, tmp_path)


@pytest.fixture
def alone(tmp_path: Path) -> Commands:
    """Return what runs commands where no daemon answers."""
    return Commands("http://127.0.0.1:1", tmp_path)
