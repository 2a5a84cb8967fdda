"""Commands under a real daemon: from the alert to the command's end, and what a killed daemon leaves."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.world import World, open_world
from tests.servers.ports import eventually

RULES = """
rules:
  - name: commanded
    mode: auto
    match: ['alertname = "Commanded"']
    remedies:
      - name: command
        steps: [{command.run: {connection: here, argv: [PATH, act, "{queue}"], args: {queue: "${labels.queue}"} MORE}}]
        verify: {within: 20s, hold: 0s, every: 200ms, until: "true"}
"""
DETECT = ", repeat: detectable, detect: [PATH, look]"
PROGRAM = """#!/bin/sh
case "$1" in
  act) echo $$ >> DIR/pids; [ -e DIR/slow ] && sleep 100; touch DIR/done; echo did "$2" "$TOKEN" ;;
  look) test -e DIR/done ;;
esac
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """Return a program that acts at once, or slowly while a file `slow` is there."""
    path = tmp_path / "tool"
    path.write_text(PROGRAM.replace("DIR", str(tmp_path)))
    path.chmod(0o755)
    (tmp_path / "token").write_text("s3cret-token-of-the-tool")
    return path


@asynccontextmanager
async def opened(program: Path, more: str = "") -> AsyncIterator[World]:
    """Start everything, with a rule that runs the program."""
    here: dict[str, Any] = {
        "kind": "command",
        "allow": [[str(program), "act", "*"], [str(program), "look"]],
        "user": str(os.getuid()),
        "grace": "300ms",
        "env": {"PATH": "/usr/bin:/bin", "TOKEN": {"file": str(program.with_name("token"))}},
    }
    rules = RULES.replace("MORE", more).replace("PATH", str(program))
    async with open_world(program.parent, rules=rules, settings={"connections": {"here": here}}) as world:
        yield world


async def begun(program: Path) -> int:
    """Wait until the command is under way, and return its process."""
    pids = program.with_name("pids")

    async def there() -> bool:
        return pids.exists() and pids.read_text().endswith("\n")

    await eventually(there, what="the command is under way")
    return int(pids.read_text().split()[-1])


async def gone(pid: int) -> None:
    """Wait until a process is gone."""

    async def is_gone() -> bool:
        return str(pid) not in os.listdir("/proc")  # noqa: PTH208 - one look

    await eventually(is_gone, what=f"process {pid} is gone")


async def test_alert_runs_a_command_and_its_output_is_scrubbed(program: Path) -> None:
    """From the webhook to the receipt; the secret that the command printed is in no event, no API and no file of the store."""
    async with opened(program) as world:
        (incident,) = (await world.fire("Commanded", queue="a b"))["incidents"]
        run = await world.daemon.reaches(f"{incident}-1", "succeeded")
        assert "did a b" in str(run)
        assert "s3cret" not in str(run)
        assert await world.daemon.audit_holds()
        await world.daemon.stop()
        assert not any(b"s3cret" in path.read_bytes() for path in world.daemon.store.parent.glob("*.sqlite*"))


async def test_s17_killed_daemon_takes_its_command_along_and_a_person_is_asked(program: Path) -> None:
    """SIGKILL of the daemon ends the command; afterwards nobody can tell, nothing is run again, and it waits for a person."""
    program.with_name("slow").touch()
    async with opened(program) as world:
        (incident,) = (await world.fire("Commanded", queue="a"))["incidents"]
        pid = await begun(program)
        world.daemon.kill()
        await gone(pid)
        await world.daemon.start()
        run = await world.daemon.reaches(f"{incident}-1", "outcome_unknown")
        assert "command.run" in run["reason"]
        assert program.with_name("pids").read_text().split() == [str(pid)]


async def test_s17_detectable_command_is_run_again_after_a_crash(program: Path) -> None:
    """Where the rule's `detect` says that nothing was done, the restarted daemon runs it once more."""
    slow = program.with_name("slow")
    slow.touch()
    async with opened(program, DETECT) as world:
        (incident,) = (await world.fire("Commanded", queue="a"))["incidents"]
        pid = await begun(program)
        world.daemon.kill()
        await gone(pid)
        slow.unlink()
        await world.daemon.start()
        await world.daemon.reaches(f"{incident}-1", "succeeded")
        assert len(program.with_name("pids").read_text().split()) == 2
