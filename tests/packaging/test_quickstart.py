"""The quickstart works as it is written, and backing up what it made: the commands are run in their order, in an empty directory."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

from tests.packaging.image import ROOT
from tests.servers.ports import free_port

DOCS = ROOT / "docs"


def blocks(page: str) -> list[str]:
    """Return a page's shell blocks."""
    return re.findall(r"```sh\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


def script() -> str:
    """Return the quickstart as one script, with the backup taken while the daemon still runs."""
    *begin, end = blocks("quickstart.md")
    return "\n".join([*begin, *blocks("how-to/back-up.md"), end])


async def test_quickstart_runs(tmp_path: Path) -> None:
    """From empty directory to a rehearsed incident with a verified audit trail, backup and export; only the ports are others."""
    ports = {"8088": free_port(), "9095": free_port()}
    text = script()
    for port, free in ports.items():
        assert port in text
        text = text.replace(port, str(free))
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "REMEDIATOR_LISTEN__PORT": str(ports["9095"]),
        "REMEDIATOR_URL": f"http://127.0.0.1:{ports['9095']}",
        "NO_COLOR": "1",
        "REMEDIATOR_CONFIG": "remediator.yaml",
    }
    process = await asyncio.create_subprocess_exec(
        "bash",
        "-emc",
        f"trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n{text}",
        cwd=tmp_path,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(60):
        output, _ = await process.communicate()
    said = output.decode()
    assert process.returncode == 0, said
    for expected in ("No problems.", "it would plan and change nothing", "show the fallback page", "rehearsed"):
        assert expected in said
    assert f"PUT http://127.0.0.1:{ports['8088']}/flags/fallback" in said
    assert "PUT" not in (tmp_path / "shop.log").read_text()
    assert said.count("The audit trail holds.") == 3
    assert {(tmp_path / name).stat().st_mode & 0o077 for name in ("alertmanager.txt", "me.txt")} == {0}
