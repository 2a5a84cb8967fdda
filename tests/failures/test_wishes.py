"""What people ask for, as far as it keeps something from going wrong: locks over different actions, several budgets at once."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from remediator import guards
from remediator.model import RunState
from tests.failures.conftest import Start
from tests.failures.plant import without
from tests.servers.http import HttpServer
from tests.servers.ports import eventually
from tests.servers.redis import RedisServer

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)

DISKS = """
rules:
  - name: copy
    match: ['alertname = "DiskSlow"']
    mode: auto
    remedies:
      - name: write it anew
        steps: [{{naive.copy: {{port: {port}, disk: "m1:1"}}}}]
        verify: {{within: 20s, hold: 0s, every: 1s, until: "true"}}
  - name: wipe
    match: ['alertname = "DiskLeaks"']
    mode: auto
    remedies:
      - name: wipe it
        steps: [{{naive.wipe: {{port: {port}, prefix: "m1:1"}}}}]
        verify: {{within: 20s, hold: 0s, every: 1s, until: "true"}}
"""


@pytest.mark.parametrize("guarded", [False, True])
async def test_locks_hold_across_different_actions_on_one_resource(
    start: Start, redis: RedisServer, monkeypatch: pytest.MonkeyPatch, *, guarded: bool
) -> None:
    """A disk is wiped while another rule's other action writes it anew: what was wiped is there again, and both runs succeed."""
    if not guarded:
        without(monkeypatch, guards.Locks)
        monkeypatch.setattr("remediator.runs.turn.lock_keys", lambda _plans: ())
    redis.call("SET", "m1:1", "secrets")
    plant = await start(DISKS.format(port=redis.port))
    await plant.fires("DiskSlow", guarded=str(guarded))
    copying = asyncio.create_task(plant.work())

    async def reads() -> bool:
        return bool(redis.call("EXISTS", "copying"))

    await eventually(reads, what="the copy is under way")
    incident = await plant.fires("DiskLeaks", guarded=str(guarded))
    await plant.works_side_by_side()
    wiping = await plant.store.run(f"{incident}-1")
    assert wiping is not None
    assert bool(redis.call("EXISTS", "m1:1")) is guarded
    redis.call("LPUSH", "go", "now")
    await copying
    await plant.tick(timedelta(seconds=10))
    if guarded:
        assert wiping.state is RunState.WAITING
        assert ("lock", "wait") in plant.denials()
        assert redis.call("GET", "m1:1") is None
    else:
        assert redis.call("GET", "m1:1") == b"secrets"


FLAPS = """
rules:
  - name: flaps
    match: ['alertname = "Flaps"']
    mode: auto
    target: "host/a"
    remedies:
      - name: restart it
        steps: [{{http.request: {{connection: target, path: /restart}}}}]
        verify: {{within: 20s, hold: 0s, every: 1s, until: "true"}}
    guards: {{cooldown: 0s, relapse_window: 0s{more}}}
"""


@pytest.mark.parametrize("guarded", [False, True])
async def test_several_budget_windows_hold_at_once(start: Start, target: HttpServer, *, guarded: bool) -> None:
    """An alert comes and goes six times an hour for ten hours. Two an hour and five a day, both at once, is the default."""
    more = "" if guarded else ", budget: [9999 per 1h]"
    plant = await start(FLAPS.format(more=more), connections={"target": {"kind": "http", "base_url": target.url}})
    requests: list[int] = []
    for number in range(60):
        await plant.fires("Flaps", guarded=str(guarded), number=str(number))
        await plant.work()
        requests.append(len(target.received))
        await plant.ends()
        await plant.tick(10 * MINUTE)
    assert requests[-1] == (5 if guarded else 60)
    in_an_hour = [later - earlier for earlier, later in zip(requests, requests[6:], strict=False)]
    assert max(in_an_hour) == (2 if guarded else 6)
    if guarded:
        assert ("budget", "wait") in plant.denials()
