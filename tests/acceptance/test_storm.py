"""A storm of alerts: all taken or refused, nothing acts by itself, people get one digest, the API answers, and it passes."""

from __future__ import annotations

import asyncio
import itertools
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from remediator.alerts import fingerprint
from tests.acceptance.world import World, leaving, open_world
from tests.servers.daemon import DaemonProcess, alert, webhook
from tests.servers.http import HttpServer, Received, Reply
from tests.servers.postgres import PostgresServer

pytestmark = [pytest.mark.xdist_group("acceptance-storm")]

RULES, DISTINCT, ALERTS, EACH = 20, 300, 10_000, 20
LIMIT = 20
SLOWEST = 3.0
"""Seconds that an answer may take while the storm blows on a machine that is busy with other tests; benchmarks hold it to one."""


def rules() -> str:
    """Return twenty rules: every other one acts by itself, the others only tell people."""
    texts = []
    for number in range(RULES):
        remedies = (
            """
    remedies:
      - name: call it
        steps: [{http.request: {connection: target, path: "/jobs/{id}", args: {id: "${labels.id}"}}}]
        verify: {within: 20s, hold: 0s, every: 200ms, until: "true"}
    guards: {cooldown: 0s, budget: [9999 per 1h]}"""
            if number % 2
            else "\n    otherwise: escalate"
        )
        texts.append(
            f"""
  - name: rule-{number}
    match: ['alertname = "Storm{number}"']
    severity: sev{1 + number % 3}
    mode: auto
    target: "thing/${{labels.id}}"{remedies}"""
        )
    return "\n".join(["rules:", *texts])


def labels(number: int) -> dict[str, str]:
    """Return the labels of one of the distinct alerts."""
    return {"alertname": f"Storm{number % RULES}", "id": f"s{number}"}


def fires(number: int, *, firing: bool = True) -> dict[str, Any]:
    """Return one of the distinct alerts."""
    own = labels(number)
    return alert(own["alertname"], firing=firing, id=own["id"])


def settings(pager: HttpServer, **storm: Any) -> dict[str, Any]:
    """Return settings with a storm breaker that is quick enough for a test."""
    return {
        "storm": {"incidents": LIMIT, "within": "3s", "calm": "1h", "digest_every": "10m", "ramp": 100, **storm},
        "connections": {"pager": {"kind": "webhook", "url": f"{pager.url}/page"}},
        "escalation": {"default": {"notify": [{"notify.webhook": {"connection": "pager"}}]}},
        "limits": {"max_acting": 20},
    }


# --- what blows


async def blow(daemon: DaemonProcess) -> Counter[tuple[int, int]]:
    """Send everything over sixteen connections; count (alert, status) of every alert's answers."""
    bodies = [[number % DISTINCT for number in range(begin, begin + EACH)] for begin in range(0, ALERTS, EACH)]
    waiting: Iterator[list[int]] = iter(bodies)
    answers: Counter[tuple[int, int]] = Counter()

    async def one_connection(session: aiohttp.ClientSession) -> None:
        for numbers in waiting:
            body = webhook(*(fires(number) for number in numbers))
            headers = {"Authorization": f"Bearer {daemon.tokens['alert_sender']}"}
            async with session.post(f"{daemon.url}/api/v1/alerts", json=body, headers=headers) as answer:
                await answer.read()
                answers.update((number, answer.status) for number in numbers)

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(one_connection(session) for _ in range(16)))
    return answers


async def ask_meanwhile(daemon: DaemonProcess, until: asyncio.Task[Any]) -> list[float]:
    """Ask what people and Prometheus ask, until the storm has blown; return how long each answer took."""
    took: list[float] = []
    for path in itertools.cycle(("/api/v1/incidents?limit=100", "/-/healthy", "/metrics", "/api/v1/status")):
        if until.done():
            return took
        began = time.monotonic()
        answer = await daemon.request("GET", path)
        took.append(time.monotonic() - began)
        assert answer.status == 200
        await asyncio.sleep(0.02)
    raise AssertionError("unreachable")


def stored(daemon: DaemonProcess) -> set[str]:
    """Return the fingerprints of all episodes in the store's file."""
    connection = sqlite3.connect(f"file:{daemon.store}?mode=ro", uri=True)
    try:
        return {row[0] for row in connection.execute("SELECT fingerprint FROM episode")}
    finally:
        connection.close()


def told(pager: HttpServer) -> list[Mapping[str, Any]]:
    """Return the facts of every message that people got."""
    return [request.json["incident"] for request in pager.taken]


def digests(pager: HttpServer) -> list[Received]:
    """Return the digests that people got."""
    return [request for request in pager.taken if request.json["incident"]["kind"] == "digest"]


async def pauses(daemon: DaemonProcess) -> dict[str, Mapping[str, Any]]:
    """Return what is paused by scope."""
    return {one["scope"]: one for one in (await daemon.get("status"))["pauses"]}


def called(world: World) -> Counter[str]:
    """Count the calls by the alert's id."""
    return Counter(request.path.rpartition("/")[2] for request in world.target.received if request.path.startswith("/jobs/"))


async def is_so(what: str, test: Any, *, daemon: DaemonProcess, within: float) -> None:
    async def ask() -> bool:
        return bool(test())

    await daemon.until(ask, what=what, within=within)


async def someone_has(daemon: DaemonProcess, *, but: int) -> set[str]:
    """Have somebody acknowledge what was left to people, all `but` a few; return those once each of them is."""

    async def escalated() -> bool:
        found = [await daemon.get(f"runs?state={state}&limit=1") for state in ("waiting", "queued", "diagnosing", "planning")]
        return not any(page["items"] for page in found)

    await daemon.until(escalated, what="all were looked at", within=60)
    left = [one["id"] for one in await daemon.incidents() if one["state"] == "escalated"]
    for ident in left[but:]:
        await daemon.call("POST", f"/api/v1/incidents/{ident}/acknowledge", {})
    return set(left[:but])


# --- the tests


async def test_storm_of_alerts_is_one_digest_and_passes_by_itself(tmp_path: Path) -> None:
    """10,000 alerts, 300 distinct, 20 rules: nothing is lost, nothing acts, one digest instead of pages, and normal work afterwards."""
    async with HttpServer({"/page": Reply(200)}) as pager, open_world(tmp_path, rules=rules(), settings=settings(pager)) as world:
        daemon = world.daemon
        await world.alertmanager.post_alerts(*(labels(number) for number in range(DISTINCT)))
        blowing = asyncio.create_task(blow(daemon))
        took = await ask_meanwhile(daemon, blowing)
        answers = blowing.result()

        assert {status for _, status in answers} <= {202, 503}
        accepted = {number for number, status in answers if status == 202}
        assert {fingerprint(labels(number)) for number in accepted} <= stored(daemon)
        assert len(accepted) == DISTINCT
        assert max(took) < SLOWEST, f"the slowest answer took {max(took):.2f} s"

        await daemon.restart(kill=True)
        storm = (await pauses(daemon))["storm"]
        assert re.fullmatch(rf"\d+ incidents opened within 3s, limit {LIMIT}", storm["why"])
        await is_so("there is a digest", lambda: digests(pager), daemon=daemon, within=15)
        (digest,) = digests(pager)
        assert f"{DISTINCT} incidents" in digest.json["text"]
        assert storm["why"] in digest.json["text"]
        await _is_explained(world, pager)

        over = range(0, DISTINCT, 3)
        await world.alertmanager.post_alerts(*(labels(number) for number in over), firing=False)
        await daemon.post(*(fires(number, firing=False) for number in over))
        daemon.write_settings(storm={"calm": "1s"})
        await daemon.call("POST", "/-/reload")
        await daemon.event("system", "storm.ended", within=30)
        left = await someone_has(daemon, but=5)
        settled = await daemon.event("system", "storm.settled", within=100)
        assert settled["data"]["paged"] == len(left)
        assert not await pauses(daemon)
        await is_so("the storm's end is told", lambda: len(digests(pager)) == 2, daemon=daemon, within=15)
        assert "over" in digests(pager)[1].json["text"]

        def rest() -> set[str]:
            return {one["incident"] for one in told(pager) if one["kind"] == "page"}

        await is_so("what is left is paged by itself", lambda: left <= rest(), daemon=daemon, within=15)
        await _has_passed(world, pager, over, left)


async def _is_explained(world: World, pager: HttpServer) -> None:
    """While the storm lasts: who was held back says so, and is neither acted on nor paged."""
    tripped = (await world.daemon.events("system", "storm.tripped"))[0]["at"]
    found = await world.daemon.incidents()
    assert len(found) == DISTINCT
    late = [one for one in found if one["opened_at"] >= tripped]
    assert len(late) >= DISTINCT - LIMIT
    (run,) = await world.daemon.runs(late[0]["id"])
    assert run["state"] == "waiting"
    assert "storm breaker" in run["reason"]
    assert (await world.daemon.events(late[0]["id"], "guard.denied"))[0]["data"]["guard"] == "storm"
    assert await world.daemon.events(late[0]["id"], "message.folded")
    assert len(called(world)) <= LIMIT
    assert not {one["incident"] for one in told(pager)} & {one["id"] for one in late}
    assert await world.daemon.metric("remediator_storm") == 1


async def _has_passed(world: World, pager: HttpServer, over: range, left: set[str]) -> None:
    """Afterwards: what still fires was decided anew, once; what was over was left alone; the next incident is paged by itself."""
    daemon = world.daemon
    singles = [one for one in told(pager) if one["kind"] != "digest"]
    tripped = (await daemon.events("system", "storm.tripped"))[0]["at"]
    early = {one["id"] for one in await daemon.incidents() if one["opened_at"] < tripped}
    assert {one["incident"] for one in singles} <= early | left

    acting = {f"s{number}" for number in range(1, DISTINCT, 2) if number not in over}

    def all_called() -> bool:
        return acting <= called(world).keys()

    await is_so("what still fires was acted on", all_called, daemon=daemon, within=30)
    assert set(called(world).values()) == {1}
    ended = {one["target"].removeprefix("thing/") for one in await daemon.incidents() if one["state"] == "resolved"}
    assert {f"s{number}" for number in over} <= ended
    await daemon.post(alert("Storm0", id="afterwards"))
    late = await daemon.opened(rule="rule-0", id="afterwards")

    def paged() -> bool:
        return any(one["incident"] == late["id"] for one in told(pager))

    await is_so("a later incident is paged by itself", paged, daemon=daemon, within=15)
    assert len(digests(pager)) == 2
    assert await daemon.audit_holds()


ASKING = """
rules:
  - name: asking
    match: ['alertname = "Asking"']
    severity: sev2
    mode: approve
    target: "thing/${labels.id}"
    remedies:
      - name: call it
        steps: [{http.request: {connection: target, path: "/jobs/{id}", args: {id: "${labels.id}"}}}]
        verify: {within: 20s, hold: 0s, every: 200ms, until: "true"}
    guards: {cooldown: 0s, budget: [9999 per 1h]}
"""


async def test_storm_that_a_person_ends_lets_an_approved_run_go_on(tmp_path: Path) -> None:
    """With `reset: person` calm ends nothing; a run that people approve acts meanwhile; `resume --scope storm` lets the others go on."""
    async with HttpServer({"/page": Reply(200)}) as pager:
        chosen = settings(pager, reset="person", within="1s", calm="0s")
        async with open_world(tmp_path, rules=ASKING, settings=chosen) as world:
            daemon, names = world.daemon, [f"a{number}" for number in range(LIMIT + 5)]
            await world.fire("Asking", id="first")
            first = f"{(await daemon.opened(rule='asking', id='first'))['id']}-1"
            await daemon.asked(first)
            await world.alertmanager.post_alerts(*({"alertname": "Asking", "id": one} for one in names))
            await daemon.post(*(alert("Asking", id=one) for one in names))
            await daemon.event("system", "storm.tripped")
            await daemon.approve(first)
            await daemon.reaches(first, "succeeded")
            assert called(world) == {"first": 1}

            await is_so("there is a digest", lambda: digests(pager), daemon=daemon, within=15)
            assert "resume --scope storm" in digests(pager)[0].json["text"]
            assert "storm" in await pauses(daemon)
            for gone in [names.pop() for _ in range(5)]:  # as many are left as are no storm
                await world.resolve("Asking", id=gone)
            assert (await daemon.command("resume", "--scope", "storm", "-m", "the network is back"))[0] == 0
            ended = await daemon.event("system", "storm.ended")
            assert (ended["actor"], ended["data"]["reason"]) == ("admin", "the network is back")
            await daemon.event("system", "storm.settled", within=30)

            async def waiting() -> bool:
                return len((await daemon.get("approvals?state=pending&limit=100"))["items"]) == len(names)

            await daemon.until(waiting, what="what was held back asks for approvals", within=20)
            await is_so("the storm's end is told", lambda: len(digests(pager)) == 2, daemon=daemon, within=15)
            assert called(world) == {"first": 1}
            assert len([one for one in told(pager) if one["kind"] == "approval"]) <= LIMIT


async def test_storm_over_two_replicas_is_one_storm(tmp_path: Path) -> None:
    """Half of it arrives at each of two daemons: it trips once, one digest goes out, either ends it, each call is made once."""
    async with HttpServer({"/page": Reply(200)}) as pager, PostgresServer() as postgres:
        url = f"postgresql://{postgres.user}@127.0.0.1:{postgres.port}/{postgres.database}"
        chosen = {**settings(pager), "store": {"url": url, "password": {"env": "STORE_PASSWORD"}}}
        environment = {"STORE_PASSWORD": postgres.password}
        async with open_world(tmp_path, rules=rules(), settings=chosen, environment=environment) as world:
            first = world.daemon
            other = DaemonProcess(tmp_path / "other", rules=rules(), environment=environment)
            shared = ("store", "connections", "alertmanager", "storm", "escalation", "limits")
            other.write_settings(**{name: first.settings[name] for name in shared})
            async with leaving(other):
                await other.start()
                await _storms_over(world, other, pager)


async def _storms_over(world: World, other: DaemonProcess, pager: HttpServer) -> None:
    first, count = world.daemon, 4 * LIMIT
    await world.alertmanager.post_alerts(*(labels(number) for number in range(count)))
    halves = [(first, range(0, count, 2)), (other, range(1, count, 2))]
    await asyncio.gather(*(daemon.post(fires(number)) for daemon, numbers in halves for number in numbers))
    assert len(await first.events("system", "storm.tripped")) == 1
    assert "storm" in await pauses(other)
    await is_so("there is a digest", lambda: digests(pager), daemon=first, within=15)
    before = called(world)
    assert len(before) <= LIMIT

    first.kill()
    await other.call("POST", "/api/v1/resume", {"scope": "storm", "reason": "it has passed"})
    await first.start()
    await first.event("system", "storm.ended", within=30)
    await someone_has(first, but=3)
    await first.event("system", "storm.settled", within=100)
    acting = {f"s{number}" for number in range(1, count, 2)}
    await is_so("what still fires was acted on", lambda: acting <= called(world).keys(), daemon=first, within=40)
    await is_so("its end is told", lambda: len(digests(pager)) >= 2, daemon=first, within=15)
    assert set(called(world).values()) == {1}
    assert len(await first.events("system", "storm.settled")) == 1
    assert len(digests(pager)) == 2
