"""Failures of automation that acted on what it did not know: errors taken for values, an empty set for everything, zero for success."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from remediator import guards
from remediator.decide import CheckResult, with_checks
from remediator.engine import preparing
from remediator.expressions import Facts
from remediator.model import RunState
from tests.failures.conftest import Start
from tests.failures.plant import OPEN_WIDE, Plant, without
from tests.servers.http import HttpServer
from tests.servers.postgres import PostgresServer
from tests.servers.redis import HOST, RedisServer

VALUES = """
rules:
  - name: invalid-value
    match: ['alertname = "InvalidValue"']
    mode: auto
    checks:
      value: {postgres.query: {connection: config, sql: "SELECT value FROM config WHERE name = 'limits'"}}
    remedies:
      - name: delete the cached copy
        when: "!checks.value.found"
        steps: [{redis.delete_keys: {connection: cache, pattern: "config:limits"}}]
        verify: {within: 20s, hold: 0s, every: 1s, until: "true"}
"""


def takes_errors_for_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the guard out: a check that fails has found nothing."""

    def plainly(facts: Facts, results: Sequence[CheckResult]) -> Facts:
        return with_checks(facts, [CheckResult(one.id, {"found": False}) if one.error else one for one in results])

    monkeypatch.setattr(preparing, "with_checks", plainly)


@pytest.mark.parametrize("guarded", [False, True])
async def test_facebook_2010_an_error_is_not_evidence(
    start: Start, postgres: PostgresServer, redis: RedisServer, monkeypatch: pytest.MonkeyPatch, *, guarded: bool
) -> None:
    """The database answers with an error. Taken for *no such value*, it has the good copy deleted; an error makes the decision unknown."""
    admin = await asyncpg.connect(postgres.dsn)
    await admin.execute("DROP TABLE IF EXISTS config; DROP ROLE IF EXISTS looks; CREATE ROLE looks LOGIN PASSWORD 'l'")
    await admin.execute("CREATE TABLE config (name text, value text); INSERT INTO config VALUES ('limits', '100')")
    await admin.close()  # `looks` may not read the table: every query is an error, though the value is there
    monkeypatch.setenv("LOOKS", "l")
    redis.call("SET", "config:limits", "100")
    config = {"kind": "postgres", "host": postgres.host, "port": postgres.port, "user": "looks", "ssl": "disable"}
    cache = {"kind": "redis", "host": HOST, "port": redis.port}
    if not guarded:
        takes_errors_for_values(monkeypatch)
    plant = await start(VALUES, connections={"config": {**config, "password": {"env": "LOOKS"}}, "cache": cache})
    await plant.fires("InvalidValue", guarded=str(guarded))
    run = await plant.works()
    if guarded:
        assert redis.call("GET", "config:limits") == b"100"
        assert run.state is RunState.ESCALATED
        assert "unknown" in run.reason
        assert "permission denied" in run.reason
    else:
        assert redis.call("GET", "config:limits") is None, run.reason
        assert run.remedy == "delete the cached copy"


def wipe(port: int, *, extra: str = "") -> str:
    """Return the rule that wipes the disks of a machine that is taken out of service."""
    return f"""
rules:
  - name: decommission
    match: ['alertname = "Decommission"']
    mode: auto
    target: "machine/${{labels.machine}}"
    remedies:
      - name: wipe its disks
        steps: [{{naive.wipe: {{port: {port}, prefix: "${{labels.machine}}:"}}}}]
        verify: {{within: 20s, hold: 0s, every: 1s, until: "true"}}
    guards: {{cooldown: 0s{extra}}}
"""


def disks(redis: RedisServer, *, a_machine: int = 20) -> None:
    """Put disks into ten machines."""
    redis.call("MSET", *(word for machine in range(10) for disk in range(a_machine) for word in (f"m{machine}:{disk}", "data")))


@pytest.mark.parametrize("guarded", [False, True])
async def test_google_cdn_disks_an_empty_set_is_not_everything(
    start: Start, redis: RedisServer, monkeypatch: pytest.MonkeyPatch, *, guarded: bool
) -> None:
    """Run again on a machine whose disks were wiped already, the list is empty, which the machines take for all disks."""
    disks(redis)
    if not guarded:
        without(monkeypatch, guards.EmptyTarget)
    plant = await start(wipe(redis.port))
    await plant.fires("Decommission", machine="m99", guarded=str(guarded))
    run = await plant.works()
    if guarded:
        assert redis.call("DBSIZE") == 200
        assert run.state is RunState.ESCALATED
        assert plant.denials() == [("empty_target", "deny")]
        assert "names no target" in run.reason
    else:
        assert redis.call("DBSIZE") == 0


@pytest.mark.parametrize("guarded", [False, True])
async def test_google_cdn_disks_a_plan_touches_no_more_than_its_cap(start: Start, redis: RedisServer, *, guarded: bool) -> None:
    """The list has a thousand disks. By default ten are the most, and fifty whatever a rule says; here rule and operator allow more."""
    disks(redis, a_machine=100)
    loose: dict[str, Any] = {"limits": {"max_targets": 10_000}}
    plant = await start(wipe(redis.port, extra=", max_targets: 10000"), **({} if guarded else loose))
    await plant.fires("Decommission", machine="m1", cap=str(guarded))
    run = await plant.works()
    if guarded:
        assert redis.call("DBSIZE") == 1000
        assert run.reason == "guard blast_radius: naive.wipe would touch 100 things, at most 50 are allowed"
        assert plant.denials()[-1] == ("blast_radius", "deny")
    else:
        assert redis.call("DBSIZE") == 900


USELESS = """
rules:
  - name: stuck
    match: ['alertname = "Stuck"']
    mode: auto
    target: "queue/${{labels.queue}}"
    remedies:
      - name: restart the consumer
        steps: [{{http.request: {{connection: target, path: /restart}}}}]
        {verify}
    {guards}
"""


async def _repeats(plant: Plant, times: int) -> None:
    """Have Alertmanager repeat itself: the alert fires on and on, whatever is done."""
    for _ in range(times):
        await plant.tick(timedelta(minutes=6))
        await plant.receive(firing=True)
        await plant.work()


@pytest.mark.parametrize("guarded", [False, True])
async def test_39_identical_requests_unknown_is_not_success(start: Start, target: HttpServer, *, guarded: bool) -> None:
    """A remedy that nobody verifies "succeeds" and is done again for as long as the alert fires; verified, it is done once and told."""
    loose = {"verify": 'verify: {within: 20s, hold: 0s, every: 1s, until: "true"}', "guards": OPEN_WIDE}
    rules = USELESS.format(**({"verify": "", "guards": ""} if guarded else loose))
    plant = await start(rules, connections={"target": {"kind": "http", "base_url": target.url}})
    await plant.fires("Stuck", queue="q", guarded=str(guarded))
    await plant.work()
    await _repeats(plant, 38)
    requests = [one for one in target.received if one.path == "/restart"]
    if guarded:
        assert len(requests) == 1
        first = await plant.store.run(f"{plant.incident}-1")
        assert first is not None
        assert first.state in (RunState.FAILED, RunState.ESCALATED), first.reason
        assert await plant.told() != []
    else:
        assert len(requests) == 39
        assert all("succeeded" not in reason for reason in await plant.told())
