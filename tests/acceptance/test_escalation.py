"""A page that nobody acknowledges, with the real daemon and two receivers: level 1, level 2, an acknowledgement, the end, a restart."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from tests.acceptance.world import World, open_world
from tests.servers.http import HttpServer, Received, Reply
from tests.servers.ports import eventually

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("acceptance-escalation")]

RULES = """
rules:
  - name: nobody-knows
    match: ['alertname = "Hopeless"']
    severity: sev1
    target: "hopeless/${labels.id}"
    runbook: https://wiki.example.com/playbooks#hopeless
    otherwise: escalate
  - name: rare
    match: ['alertname = "Rare"']
    severity: sev4
    target: "rare/${labels.id}"
    otherwise: escalate
"""
LEVEL_2 = 3.0
"""Seconds after which level 2 is told."""


@dataclass
class Receivers:
    """Who is told: the primary and the secondary, each on a server of its own."""

    primary: HttpServer
    secondary: HttpServer

    def of(self, server: HttpServer, incident: str, kind: str) -> list[Received]:
        """Return the messages of one kind about one incident that a server took."""
        return [one for one in server.taken if (one.json["incident"]["incident"], one.json["incident"]["kind"]) == (incident, kind)]

    async def hears(self, server: HttpServer, incident: str, kind: str, *, count: int = 1) -> Received:
        """Wait for a message; return the last one."""

        async def there() -> bool:
            return len(self.of(server, incident, kind)) >= count

        await eventually(there, what=f"{kind} {count} about {incident} was taken", within=20)
        return self.of(server, incident, kind)[-1]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def receivers() -> AsyncIterator[Receivers]:
    """Start both receivers."""
    async with HttpServer({"/page": Reply(200)}) as primary, HttpServer({"/page": Reply(200)}) as secondary:
        yield Receivers(primary, secondary)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory, receivers: Receivers) -> AsyncIterator[World]:
    """Start the daemon with a policy of two levels."""
    settings = {
        "connections": {
            "primary": {"kind": "webhook", "url": f"{receivers.primary.url}/page"},
            "secondary": {"kind": "webhook", "url": f"{receivers.secondary.url}/page"},
        },
        "severities": {"sev1": {"page_after": "3m"}, "sev4": {"page_after": "2h"}},
        "hours": {"never-now": {"days": "mon", "from": "03:00", "to": "03:01", "timezone": "UTC"}},
        "contacts": {"vp": {"phone": "+1 555 0100", "note": "asleep"}},
        "escalation": {
            "default": {
                "update_every": "5s",
                "acknowledged_for": "1h",
                "levels": [
                    {"severities": ["sev1"], "notify": [{"notify.webhook": {"connection": "primary"}}]},
                    {"severities": ["sev4"], "hours": "never-now", "notify": [{"notify.webhook": {"connection": "primary"}}]},
                    {"after": {"sev1": f"{LEVEL_2:g}s"}, "notify": [{"notify.webhook": {"connection": "secondary"}}]},
                    {"after": {"sev1": "2h"}, "notify": [{"notify.webhook": {"connection": "secondary"}}]},
                ],
            }
        },
    }
    async with open_world(tmp_path_factory.mktemp("escalation"), rules=RULES, settings=settings) as opened:
        yield opened


async def test_page_climbs_until_somebody_acknowledges_and_its_end_is_told(world: World, receivers: Receivers) -> None:
    """Level 1 at once, level 2 after its delay, both hear who has it and that it is over; what is due next is shown all along."""
    began = time.monotonic()
    (incident,) = (await world.fire("Hopeless", id="climbs"))["incidents"]
    page = await receivers.hears(receivers.primary, incident, "page")
    assert page.json["incident"]["level"] == 1
    assert page.json["incident"]["page"].partition("~")[0] == page.json["incident"]["incident"] == incident
    assert page.json["incident"]["contacts"] == {"vp": "phone +1 555 0100, asleep"}
    assert receivers.of(receivers.secondary, incident, "page") == []

    second = await receivers.hears(receivers.secondary, incident, "page")
    assert second.json["incident"]["level"] == 3
    assert "nobody has acknowledged it" in second.json["text"]
    assert time.monotonic() - began >= LEVEL_2

    update = await receivers.hears(receivers.primary, incident, "update", count=2)
    assert "It waits for a person" in update.json["text"]

    code, text = await world.daemon.command("acknowledge", incident, who="responder")
    assert code == 0, text
    for server in (receivers.primary, receivers.secondary):
        word = await receivers.hears(server, incident, "acknowledged")
        assert word.json["incident"]["acknowledged_by"]
    shown = await world.daemon.get(f"incidents/{incident}/escalation")
    assert shown["owner"]
    assert shown["holds_until"]
    (waiting,) = [one for one in shown["next"] if one["kind"] == "page"]
    assert (waiting["level"], waiting["receivers"]) == (4, ["notify.webhook:secondary"])

    await world.daemon.restart(kill=True)
    await world.resolve("Hopeless", id="climbs")
    for server in (receivers.primary, receivers.secondary):
        word = await receivers.hears(server, incident, "resolved")
        assert "RESOLVED SEV1" in word.json["text"]
        assert word.json["incident"]["resolved_at"]
    shown = await world.daemon.get(f"incidents/{incident}/escalation")
    assert [one for one in shown["next"] if one["kind"] == "page"] == []
    assert len(receivers.of(receivers.primary, incident, "page")) == 1
    assert len(receivers.of(receivers.secondary, incident, "page")) == 1
    assert await world.daemon.audit_holds()


async def test_least_severe_page_waits_for_its_hours_and_says_so(world: World, receivers: Receivers) -> None:
    """A sev4 outside the hours of its level is put off, visibly; its end is nobody's news."""
    (incident,) = (await world.fire("Rare", id="waits"))["incidents"]

    async def put_off() -> bool:
        events = await world.daemon.events(incident, "message.postponed")
        found = {event["data"]["key"]: event["data"]["reason"] for event in events}
        return found.get(f"{incident}/page/0") == "outside the hours 'never-now'"

    await eventually(put_off, what="the page waits for its hours")
    shown = await world.daemon.get(f"incidents/{incident}/escalation")
    assert (shown["paged_at"], shown["told"]) == (None, [])
    assert any(one["kind"] == "page" for one in shown["next"])
    await world.resolve("Rare", id="waits")
    (other,) = (await world.fire("Hopeless", id="after"))["incidents"]
    await receivers.hears(receivers.primary, other, "page")
    assert receivers.of(receivers.primary, incident, "page") == []
    assert receivers.of(receivers.primary, incident, "resolved") == []


async def test_pages_and_people_are_counted(world: World, receivers: Receivers) -> None:
    """Pages by level, and how long people took; the command line shows who was told and who is next."""
    (incident,) = (await world.fire("Hopeless", id="counted"))["incidents"]
    await receivers.hears(receivers.primary, incident, "page")
    await world.daemon.event(incident, "message.delivered")
    assert (await world.daemon.command("acknowledge", incident, who="responder"))[0] == 0
    await world.daemon.event(incident, "incident.acknowledged")
    code, text = await world.daemon.command("escalation", incident)
    assert code == 0, text
    assert "acknowledged it at" in text
    assert "notify.webhook:primary" in text
    assert "notify.webhook:secondary" in text

    async def counted() -> bool:
        return (
            await world.daemon.metric("remediator_pages_sent_total", level="1") >= 1
            and await world.daemon.metric("remediator_acknowledgement_seconds_count") >= 1
        )

    await eventually(counted, what="the page and its acknowledgement are counted")
