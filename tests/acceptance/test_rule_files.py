"""Broken rule files: a start refuses them with file, line and column; a reload leaves the old rules in force and says so."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.acceptance.world import CALLS, open_world
from tests.servers.daemon import DaemonProcess, alert
from tests.servers.http import HttpServer, Reply
from tests.servers.ports import eventually

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("acceptance-rule-files")]

GOOD = """
rules:
  - name: good
    match: ['alertname = "Good"']
    otherwise: escalate
"""
ANOTHER = """
  - name: another
    match: ['alertname = "Another"']
    otherwise: escalate
"""

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)

FAULTS = {
    "unknown-key.yaml": (GOOD + "    remedys: []\n", r":6:5: unknown key 'remedys'.*remedies"),
    "bad-cel.yaml": (GOOD + "    remedies: [{name: x, when: labels.a ==, steps: [{http.request: {}}]}]\n", r":6:\d+: "),
    "unknown-action.yaml": (GOOD + "    remedies: [{name: x, steps: [{postgres.terminate_idel: {}}]}]\n", r":6:\d+: .*terminate_idle"),
    "bomb.yaml": (BOMB, r":1:4: "),
    "anchor.yaml": (GOOD.replace("match: [", "match: &m ["), r":4:\d+: "),
    "tab.yaml": ("rules:\n\t- name: x\n", r":2:1: "),
    "twice.yaml": (GOOD + "    otherwise: escalate\n", r":6:5: .*otherwise"),
    "two-documents.yaml": (GOOD + "---\nrules: []\n", r":\d+:1: "),
    "tag.yaml": ("rules: !!python/object/apply:os.system ['exit 7']\n", r":1:8: "),
    "a-list.yaml": ("- rules\n", r":1:1: "),
}
"""Each file, and where its fault must be found."""


async def test_start_names_every_fault_of_every_file(tmp_path: Path) -> None:
    """A start with broken files ends at once with exit code 1 and FILE:LINE:COLUMN of each, and has not made a store."""
    files = {name: text for name, (text, _) in FAULTS.items()}
    daemon = DaemonProcess(tmp_path, packs={"broken": {**files, "one.yaml": GOOD, "two.yaml": GOOD}})
    (tmp_path / "packs" / "broken" / "latin.yaml").write_bytes("rules: [] # größer\n".encode("latin-1"))
    code, output = await daemon.run_to_end()
    assert code == 1
    for name, (_, fault) in FAULTS.items():
        assert re.search(re.escape(name) + fault, output), f"{name} in\n{output}"
    assert re.search(r"latin\.yaml:1:\d+: ", output), output
    assert re.search(r"two\.yaml:3:11: a second rule 'good'; the first stands in .*\.yaml:3", output), output
    assert "Traceback" not in output
    assert not daemon.store.exists()


async def test_start_names_a_file_that_it_may_not_read(tmp_path: Path) -> None:
    """A file or a directory without permission is a fault with its name, never a smaller set of rules."""
    # The superuser may read everything: take exactly that from it.
    prefix = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    daemon = DaemonProcess(tmp_path, packs={"a": {"rules.yaml": GOOD}, "b": {"rules.yaml": f"rules:{ANOTHER}"}}, prefix=prefix)
    file, directory = tmp_path / "packs/a/rules.yaml", tmp_path / "packs/b"
    file.chmod(0)
    directory.chmod(0)
    try:
        code, output = await daemon.run_to_end()
    finally:
        file.chmod(0o600)
        directory.chmod(0o700)
    assert code == 1
    assert f"{file}:1:1: Permission denied" in output, output
    assert f"{directory}:1:1: the directory can't be read: Permission denied" in output, output
    assert "Traceback" not in output


async def test_start_refuses_settings_with_place(tmp_path: Path) -> None:
    """An unknown key of the settings is refused with its line, and the nearest name."""
    daemon = DaemonProcess(tmp_path)
    with daemon.config.open("a") as config:
        config.write("dry_rum: true\n")
    lines = len(daemon.config.read_text().splitlines())
    code, output = await daemon.run_to_end()
    assert code == 1
    assert re.search(rf"remediator\.yaml:{lines}:1: .*dry_rum.*dry_run", output), output


# --- reload


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def daemon(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[DaemonProcess]:
    """Start a daemon with one good rule."""
    async with DaemonProcess(tmp_path_factory.mktemp("reload"), rules=GOOD) as started:
        yield started


async def _trigger(daemon: DaemonProcess, how: str, *, good: bool) -> None:
    """Have it reload; a change of a file is noticed by itself."""
    if how == "SIGHUP":
        daemon.signal(signal.SIGHUP)
    elif how == "API":
        answer = await daemon.request("POST", "/-/reload", who="rule_editor")
        assert answer.status == (200 if good else 422)
        assert good or any(re.search(r"rules\.yaml:7:\d+: ", problem) for problem in answer.json["problems"]), answer.json


async def _success(daemon: DaemonProcess, value: int) -> None:
    async def told() -> bool:
        return await daemon.metric("remediator_rules_last_reload_successful") == value

    await eventually(told, what=f"remediator_rules_last_reload_successful is {value}", within=12, every=0.1)


@pytest.mark.parametrize("how", ["SIGHUP", "API", "file change"])
async def test_bad_reload_keeps_the_old_rules(daemon: DaemonProcess, how: str) -> None:
    """A reload of a broken file changes nothing: the old rules match, metric and audit say so; mended, the new ones are in force."""
    (daemon.directory / "packs" / "test" / "more.yml").unlink(missing_ok=True)
    daemon.write_rules(GOOD)
    await daemon.call("POST", "/-/reload", who="rule_editor")
    refused = len(await daemon.events("system", "rules.refused"))
    daemon.write_rules(GOOD + ANOTHER.replace("- name: another", "- nmae: another"))
    await _trigger(daemon, how, good=False)
    await _success(daemon, 0)
    assert [rule["name"] for rule in (await daemon.get("rules"))["items"]] == ["good"]
    assert await daemon.metric("remediator_rules_loaded") == 1
    assert len(await daemon.events("system", "rules.refused")) > refused
    assert (await daemon.post(alert("Another", how=how)))["incidents"] == []
    assert len((await daemon.post(alert("Good", how=how)))["incidents"]) == 1
    if how == "file change":
        daemon.write_rules(GOOD)
        daemon.write_rules(f"rules:{ANOTHER}", file="more.yml")
    else:
        daemon.write_rules(GOOD + ANOTHER)
    await _trigger(daemon, how, good=True)
    await _success(daemon, 1)
    assert sorted(rule["name"] for rule in (await daemon.get("rules"))["items"]) == ["another", "good"]
    assert len((await daemon.post(alert("Another", how=how)))["incidents"]) == 1


async def test_reload_that_breaks_settings_changes_nothing(daemon: DaemonProcess) -> None:
    """A settings file that is not YAML any more leaves identities, limits and rules as they were."""
    text = daemon.config.read_text()
    daemon.config.write_text(text + "\nlimits: [")
    code, output = await daemon.command("reload", who="rule_editor")
    assert code == 1
    assert "remediator.yaml" in output
    await _success(daemon, 0)
    assert (await daemon.get("status", who="viewer"))["ready"]
    daemon.config.write_text(text)
    code, _ = await daemon.command("reload", who="rule_editor")
    assert code == 0
    await _success(daemon, 1)


async def test_vanished_pack_keeps_the_old_rules(daemon: DaemonProcess) -> None:
    """A pack's directory that is gone for a moment (a failed mount, a checkout under way) is not an empty set of rules."""
    pack = daemon.directory / "packs" / "test"
    rules = len((await daemon.get("rules"))["items"])
    pack.rename(pack.with_name("away"))
    try:
        answer = await daemon.request("POST", "/-/reload", who="rule_editor")
        assert answer.status == 422, answer.body
        assert len((await daemon.get("rules"))["items"]) == rules
    finally:
        pack.with_name("away").rename(pack)
    await daemon.call("POST", "/-/reload", who="rule_editor")


async def test_reload_puts_everything_in_force_at_once(tmp_path: Path) -> None:
    """A reload that waits for a slow calendar has changed nothing yet: what was armed elsewhere never acts at the new address."""
    calendar = tmp_path / "calendar.ics"
    os.mkfifo(calendar)
    async with open_world(tmp_path, rules=CALLS) as world, HttpServer() as production:
        daemon, production.default = world.daemon, Reply(200)
        connections = {"target": {"kind": "http", "base_url": production.url}}
        freezes = {"releases": {"ical": str(calendar), "timezone": "UTC"}}
        daemon.write_settings(dry_run=True, connections=connections, freezes=freezes)
        reloading = asyncio.create_task(daemon.call("POST", "/-/reload", {}))
        writer = await _read_by_somebody(calendar)
        (before,) = (await world.fire("Call", id="before"))["incidents"]
        await daemon.reaches(f"{before}-1", "succeeded")
        os.write(writer, b"BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:test\r\nEND:VCALENDAR\r\n")
        os.close(writer)
        assert (await reloading)["ok"]
        (after,) = (await world.fire("Call", id="after"))["incidents"]
        await daemon.reaches(f"{after}-1", "rehearsed")
        assert (world.calls("before"), world.calls("after"), production.received) == (1, 0, [])


async def _read_by_somebody(fifo: Path) -> int:
    """Wait until somebody reads; return the other end."""
    ends: list[int] = []

    async def opened() -> bool:
        try:
            ends.append(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:  # nobody does yet
            return False
        return True

    await eventually(opened, what=f"{fifo} is read")
    return ends[0]


async def test_reload_names_what_stops_nothing_since_its_rule_was_renamed(daemon: DaemonProcess) -> None:
    """Who paused, froze or demoted a rule hears that a rename has set it free: what is thrown is thrown for a name."""
    daemon.write_rules(GOOD)
    await daemon.call("POST", "/-/reload", who="rule_editor")
    await daemon.call("POST", "/api/v1/pause", {"scope": "rule:good", "reason": "it restarts too much"})
    await daemon.call("POST", "/api/v1/freeze", {"scope": "rule:good", "reason": "a sale"})
    assert "rule:good" not in (await daemon.command("reload"))[1]
    daemon.write_rules(GOOD.replace("name: good", "name: better"))
    code, output = await daemon.command("reload")
    assert (code, output.count("holds nothing back: nothing has that name")) == (0, 2), output
    assert "freeze:rule:good" in output
    for word in ("resume", "thaw"):
        await daemon.call("POST", f"/api/v1/{word}", {"scope": "rule:good"})
    assert "holds nothing back" not in (await daemon.command("reload"))[1]
