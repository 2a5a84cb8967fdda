"""What people are told, and when: a page is held while a remedy works, goes out on failure or at its deadline, once for each receiver."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.acceptance.world import World, open_world
from tests.servers.daemon import alert
from tests.servers.http import HttpServer, Received, Reply
from tests.servers.ports import eventually

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("acceptance-messages")]

RULES = """
rules:
  - name: held
    match: ['alertname = "Held"']
    severity: sev2
    mode: auto
    target: "held/${labels.id}"
    runbook: https://wiki.example.com/playbooks#held
    remedies:
      - name: call it
        steps: [{http.request: {connection: target, path: "/jobs/{id}", args: {id: "${labels.id}"}}}]
        verify: {within: 20s, hold: 0s, every: 200ms, until: "true"}
    guards: {cooldown: 0s, budget: [999 per 1h]}
  - name: urgent
    match: ['alertname = "Urgent"']
    severity: sev1
    mode: auto
    target: "urgent/${labels.id}"
    remedies:
      - name: call it
        steps: [{http.request: {connection: target, path: "/slow/{id}", args: {id: "${labels.id}"}}}]
        verify: {within: 20s, hold: 0s, every: 200ms, until: "true"}
    guards: {cooldown: 0s, budget: [999 per 1h]}
  - name: nobody-knows
    match: ['alertname = "Hopeless"']
    severity: sev2
    target: "hopeless/${labels.id}"
    otherwise: escalate
"""
PAGE_AFTER = 2.0
SETTINGS = {
    "severities": {"sev1": {"page_after": f"{PAGE_AFTER:g}s"}, "sev2": {"page_after": "10m"}, "sev3": {"page_after": "10m"}},
    "escalation": {"default": {"notify": [{"notify.webhook": {"connection": "pager"}}]}},
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pager() -> AsyncIterator[HttpServer]:
    """Start the receiver of messages."""
    async with HttpServer({"/page": Reply(200)}) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory, pager: HttpServer) -> AsyncIterator[World]:
    """Start everything."""
    settings = {**SETTINGS, "connections": {"pager": {"kind": "webhook", "url": f"{pager.url}/page"}}}
    async with open_world(tmp_path_factory.mktemp("messages"), rules=RULES, settings=settings) as opened:
        yield opened


def _of(pager: HttpServer, incident: str, kind: str, *, taken: bool = True) -> list[Received]:
    """Return the messages of one kind about one incident that were taken, or came at all."""
    found = pager.taken if taken else pager.received
    return [request for request in found if (request.json["incident"]["incident"], request.json["incident"]["kind"]) == (incident, kind)]


async def _told(pager: HttpServer, incident: str, kind: str, *, within: float = 15.0) -> Received:
    async def there() -> bool:
        return bool(_of(pager, incident, kind))

    await eventually(there, what=f"a {kind} about {incident} was taken", within=within)
    return _of(pager, incident, kind)[0]


async def _noted(world: World, key: str) -> None:
    """Wait until the daemon has written down that a message was delivered: killed before, it would rightly send it again."""

    async def there() -> bool:
        events = await world.daemon.events(key.partition("/")[0], "message.delivered")
        return any(event["data"]["key"] == key for event in events)

    await eventually(there, what=f"{key} is delivered")


async def test_s21_nobody_is_paged_when_the_remedy_helps(world: World, pager: HttpServer) -> None:
    """While a remedy of mode auto is at work the page is held, and it never goes out when the alert ends."""
    (incident,) = (await world.fire("Held", id="helps"))["incidents"]
    await world.daemon.reaches(f"{incident}-1", "succeeded")
    await world.resolve("Held", id="helps")
    assert (await world.daemon.get(f"incidents/{incident}"))["state"] == "resolved"
    assert (await world.daemon.get("status"))["counts"].get("messages.undelivered", 0) == 0
    assert [request for request in pager.received if incident in request.body.decode()] == []


async def test_s21_page_goes_out_at_once_when_the_remedy_fails(world: World, pager: HttpServer) -> None:
    """A remedy that fails releases the page long before its deadline; it names what happened, the runbook, and where to look."""
    world.target.set("/jobs/fails", Reply(409))
    began = time.monotonic()
    (incident,) = (await world.fire("Held", id="fails"))["incidents"]
    page = await _told(pager, incident, "page")
    assert time.monotonic() - began < 5
    text = page.json["text"]
    for word in ("SEV2", incident, "Held in a test", "failed", "https://wiki.example.com/playbooks#held"):
        assert word in text
    assert "DRY RUN" not in text
    await _told(pager, incident, "update")
    await world.daemon.event(incident, "message.delivered")


async def test_s21_page_goes_out_at_its_deadline(world: World, pager: HttpServer) -> None:
    """A remedy that is still at work when the severity's time is up holds the page no longer, and goes on."""
    began = time.monotonic()
    (incident,) = (await world.fire("Urgent", id="late"))["incidents"]
    await world.daemon.reaches(f"{incident}-1", "applying")
    assert _of(pager, incident, "page", taken=False) == []
    await _told(pager, incident, "page")
    assert PAGE_AFTER - 0.1 < time.monotonic() - began < PAGE_AFTER + 3
    assert (await world.daemon.run(f"{incident}-1"))["state"] == "applying"
    world.target.gate.set()
    await world.daemon.reaches(f"{incident}-1", "succeeded")
    world.target.gate.clear()


async def test_held_page_survives_sigkill(world: World, pager: HttpServer) -> None:
    """The hold is a row: killed before the deadline and started again, the daemon pages, once."""
    (incident,) = (await world.fire("Urgent", id="killed"))["incidents"]
    await world.daemon.reaches(f"{incident}-1", "applying")
    await world.daemon.restart(kill=True)
    await _told(pager, incident, "page")
    await _noted(world, f"{incident}/page/0")
    await world.daemon.restart(kill=True)
    (other,) = (await world.fire("Hopeless", id="after-kill"))["incidents"]
    await _told(pager, other, "page")
    assert len(_of(pager, incident, "page", taken=False)) == 1


async def test_taken_message_is_sent_once(world: World, pager: HttpServer) -> None:
    """A page that the receiver took is not sent again: not by copies of the alert, not by a reload, not after a restart."""
    (incident,) = (await world.fire("Hopeless", id="once"))["incidents"]
    await _told(pager, incident, "page")
    await _told(pager, incident, "update")
    for _ in range(3):
        await world.daemon.post(alert("Hopeless", id="once"))
    await world.daemon.call("POST", "/-/reload")
    await world.daemon.restart()
    (other,) = (await world.fire("Hopeless", id="after"))["incidents"]
    await _told(pager, other, "page")
    assert len(_of(pager, incident, "page", taken=False)) == 1
    assert len(_of(pager, incident, "update", taken=False)) == 1


async def test_message_is_repeated_with_its_key_until_taken(world: World, pager: HttpServer) -> None:
    """While the receiver is down the page is tried again, with the same Idempotency-Key, and counted as failed; then taken once."""
    pager.set("/page", Reply(503))
    (incident,) = (await world.fire("Hopeless", id="down"))["incidents"]

    async def tried_twice() -> bool:
        return len(_of(pager, incident, "page", taken=False)) >= 2

    await eventually(tried_twice, what="the page was tried twice", within=15)
    pager.set("/page", Reply(200))
    await _told(pager, incident, "page")
    tries = _of(pager, incident, "page", taken=False)
    assert len({request.headers["idempotency-key"] for request in tries}) == 1
    assert len(await world.daemon.events(incident, "message.failed")) >= 1
    delivered = [event for event in await world.daemon.events(incident, "message.delivered") if "/page/" in event["data"]["key"]]
    assert len(delivered) <= 1
    await world.daemon.event(incident, "message.delivered")
    assert len(_of(pager, incident, "page")) == 1


async def test_s13_dry_run_pages_and_says_so(world: World, pager: HttpServer) -> None:
    """In dry run nothing is called, and the page goes out at once, marked: nobody must believe that something was done."""
    world.daemon.write_settings(dry_run=True)
    await world.daemon.call("POST", "/-/reload")
    try:
        (incident,) = (await world.fire("Held", id="dry"))["incidents"]
        run = await world.daemon.reaches(f"{incident}-1", "rehearsed")
        assert run["dry_run"] is True
        page = await _told(pager, incident, "page")
        assert page.json["text"].startswith("DRY RUN")
        assert page.json["incident"]["dry_run"] is True
        assert world.calls("dry") == 0
    finally:
        world.daemon.write_settings(dry_run=False)
        await world.daemon.call("POST", "/-/reload")
    assert await world.daemon.audit_holds()
