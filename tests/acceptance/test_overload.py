"""A full disk and too many callers: refused with 503 so that Alertmanager comes again, nothing accepted is lost, and it recovers."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import resource
import select
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from tests.acceptance.world import CALLS, open_world
from tests.servers.daemon import DaemonProcess, alert, webhook
from tests.servers.ports import eventually

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("acceptance-overload")]

RULES = """
rules:
  - name: any
    match: ['alertname = "Any"']
    target: "any/${labels.id}"
    otherwise: escalate
"""
DISK = 4 * 1024 * 1024


class Disk:
    """The daemon's disk of four megabytes: a file system of its own or, where none may be mounted, a limit on the size of files."""

    def __init__(self, daemon: DaemonProcess, *, mounted: bool) -> None:
        self.daemon = daemon
        self.mounted = mounted
        self.filler = daemon.store.parent / "filler"

    def fill(self) -> None:
        """Leave no room."""
        if not self.mounted:
            self._limit(str(DISK // 8))
            self.daemon.prefix = ["prlimit", f"--fsize={DISK // 8}"]
            return
        with self.filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(4096)):
                pass

    def free(self) -> None:
        """Give the room back."""
        if self.mounted:
            self.filler.unlink()
            return
        self.daemon.prefix = []
        if self.daemon.running:
            self._limit("unlimited")

    def _limit(self, size: str) -> None:
        assert self.daemon.process is not None
        subprocess.run(["prlimit", f"--pid={self.daemon.process.pid}", f"--fsize={size}:unlimited"], check=True)


@contextmanager
def _small_disk(daemon: DaemonProcess) -> Iterator[Disk]:
    path = daemon.store.parent
    options = ["-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(path)]
    mounted = os.geteuid() == 0 and subprocess.run(["mount", *options], check=False).returncode == 0
    try:
        yield Disk(daemon, mounted=mounted)
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(path)], check=True)


async def _until_refused(daemon: DaemonProcess, accepted: set[str]) -> None:
    """Send alerts until one is refused; remember the accepted ones."""
    for number in itertools.count():
        ident = f"full-{len(accepted)}-{number}"
        answer = await daemon.request("POST", "/api/v1/alerts", webhook(alert("Any", id=ident, ballast="x" * 3000)), who="alert_sender")
        if answer.status != 202:
            assert answer.status == 503, answer.body
            assert int(answer.headers["Retry-After"]) > 0
            assert answer.headers["Content-Type"] == "application/problem+json"
            return
        accepted.add(ident)
        assert number < 2000, "a disk of four megabytes can't hold that"


async def _targets(daemon: DaemonProcess) -> set[str]:
    return {one["target"].removeprefix("any/") for one in await daemon.incidents()}


async def test_full_disk_refuses_loses_nothing_and_recovers(tmp_path: Path) -> None:
    """On a full disk webhooks are 503 and health is still answered; with room again it takes alerts by itself; a SIGKILL loses nothing."""
    daemon = DaemonProcess(tmp_path, rules=RULES)
    accepted: set[str] = set()
    with _small_disk(daemon) as disk:
        async with daemon:
            await daemon.post(alert("Any", id="before"))
            await asyncio.to_thread(disk.fill)
            await _until_refused(daemon, accepted)
            assert (await daemon.request("GET", "/-/healthy", who=None)).status == 200
            assert "before" in await _targets(daemon)
            assert await daemon.metric("remediator_webhooks_total", outcome="unavailable") >= 1
            disk.free()

            async def takes_again() -> bool:
                sent = webhook(alert("Any", id="after"))
                return (await daemon.request("POST", "/api/v1/alerts", sent, who="alert_sender")).status == 202

            await eventually(takes_again, what="it takes alerts again", within=10, every=0.1)
            await daemon.restart(kill=True)
            assert await _targets(daemon) >= {"before", "after", *accepted}
            assert await daemon.audit_holds()
            assert "run.crashed" not in daemon.log
            assert "loop_ended" not in daemon.log


async def test_kill_on_a_full_disk_comes_back(tmp_path: Path) -> None:
    """SIGKILL while the disk is full, then a start: either it serves what it has, or says plainly why not; with room it has everything."""
    daemon = DaemonProcess(tmp_path, rules=RULES)
    accepted: set[str] = set()
    with _small_disk(daemon) as disk:
        await daemon.start()
        await asyncio.to_thread(disk.fill)
        await _until_refused(daemon, accepted)
        daemon.kill()
        daemon.launch()

        async def ended_or_serves() -> bool:
            try:
                return not daemon.running or (await daemon.request("GET", "/-/healthy", who=None)).status == 200
            except aiohttp.ClientError:
                return False

        await eventually(ended_or_serves, what="it serves, or ends")
        if not daemon.running:
            assert daemon.process is not None
            assert daemon.process.returncode == 1
            assert "disk" in daemon.log or "full" in daemon.log
            assert "Traceback" not in daemon.log
        daemon.kill()
        disk.free()
        async with daemon:
            assert await _targets(daemon) >= accepted
            assert await daemon.audit_holds()


# --- many callers


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def daemon(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[DaemonProcess]:
    """Start a daemon that takes 400 connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    async with DaemonProcess(tmp_path_factory.mktemp("many"), {"listen": {"max_connections": 400}}, rules=RULES) as started:
        yield started
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _request(daemon: DaemonProcess, ident: str) -> bytes:
    body = json.dumps(webhook(alert("Any", id=ident))).encode()
    head = (
        "POST /api/v1/alerts HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
        f"Authorization: Bearer {daemon.tokens['alert_sender']}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def test_three_hundred_connections_at_once_are_all_answered(daemon: DaemonProcess) -> None:
    """300 connections that all hold half a request, then finish it at once, are all answered 202 well within Alertmanager's ten seconds."""
    connections = [await asyncio.open_connection("127.0.0.1", daemon.port) for _ in range(300)]
    requests = [_request(daemon, f"many-{number}") for number in range(300)]
    for (_, writer), request in zip(connections, requests, strict=True):
        writer.write(request[: len(request) // 2])
    assert (await daemon.request("GET", "/-/ready", who=None)).status == 200
    began = time.monotonic()
    for (_, writer), request in zip(connections, requests, strict=True):
        writer.write(request[len(request) // 2 :])
    answers = await asyncio.gather(*(reader.read() for reader, _ in connections))
    took = time.monotonic() - began
    for _, writer in connections:
        writer.close()
    assert {answer.split(b"\r\n", 1)[0] for answer in answers} == {b"HTTP/1.1 202 Accepted"}
    assert took < 5, f"it took {took:.1f} s"
    await daemon.restart(kill=True)
    assert await _targets(daemon) >= {f"many-{number}" for number in range(300)}


async def test_connections_beyond_the_bound_are_503(daemon: DaemonProcess) -> None:
    """A caller beyond `listen.max_connections` is told 503 with Retry-After, not left hanging; when others go, it is served."""
    held = [await asyncio.open_connection("127.0.0.1", daemon.port) for _ in range(400)]

    async def turned_away() -> bool:
        return (await daemon.request("GET", "/-/healthy", who=None)).status == 503

    await eventually(turned_away, what="one more is answered 503", within=5)
    answer = await daemon.request("POST", "/api/v1/alerts", webhook(alert("Any", id="beyond")), who="alert_sender")
    assert answer.status == 503
    assert int(answer.headers["Retry-After"]) > 0
    for _, writer in held:
        writer.close()

    async def served() -> bool:
        return (await daemon.request("GET", "/-/healthy", who=None)).status == 200

    await eventually(served, what="it serves again", within=5)


async def test_open_files_do_not_run_out_unnoticed(daemon: DaemonProcess) -> None:
    """After the crowd has gone the process holds hardly more open files than before it came."""
    assert daemon.process is not None
    folder = Path(f"/proc/{daemon.process.pid}/fd")

    async def few() -> bool:
        return len(await asyncio.to_thread(lambda: list(folder.iterdir()))) < 60

    await eventually(few, what="it has closed its connections", within=10)


async def test_log_that_nobody_reads_stops_nothing(tmp_path: Path) -> None:
    """Whoever takes the log hangs, and the pipe to it is full: alerts are taken, acted on, and people are answered."""
    reader, writer = os.pipe()
    log = os.fdopen(writer, "wb")
    while select.select([], [log], [], 0)[1]:
        os.write(log.fileno(), b"-" * 4096)
    async with open_world(tmp_path, rules=CALLS, starts=False) as world:
        world.daemon.output = log
        await world.daemon.start()
        for number in range(5):
            (incident,) = (await world.fire("Call", id=f"unread-{number}"))["incidents"]
            await world.daemon.reaches(f"{incident}-1", "succeeded")
        assert await world.daemon.stop() == 0
    log.close()
    os.close(reader)
