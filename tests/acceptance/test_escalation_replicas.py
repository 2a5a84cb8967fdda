"""Levels are rows: of two daemons on one PostgreSQL either sends the next one, also when the one that paged first is gone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from tests.acceptance.world import World, leaving, open_world
from tests.servers.daemon import DaemonProcess
from tests.servers.http import HttpServer, Received, Reply
from tests.servers.ports import eventually
from tests.servers.postgres import PostgresServer

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("acceptance-escalation-replicas")]

RULES = """
rules:
  - name: nobody-knows
    match: ['alertname = "Hopeless"']
    severity: sev1
    target: "hopeless/${labels.id}"
    otherwise: escalate
"""


@dataclass
class Pair:
    """Two daemons on one database, and one server that takes the messages of both levels."""

    world: World
    other: DaemonProcess
    pager: HttpServer

    def pages(self, incident: str, level: int, kind: str = "page") -> list[Received]:
        """Return what was taken for one level."""
        path = f"/level-{level}"
        found = [one for one in self.pager.taken if one.path == path]
        return [one for one in found if (one.json["incident"]["incident"], one.json["incident"]["kind"]) == (incident, kind)]

    async def hears(self, incident: str, level: int, kind: str = "page") -> None:
        """Wait for a message to a level."""

        async def there() -> bool:
            return bool(self.pages(incident, level, kind))

        await eventually(there, what=f"level {level} heard of {incident}: {kind}", within=30)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    """Start everything."""
    directory = tmp_path_factory.mktemp("pair")
    async with PostgresServer() as postgres, HttpServer({"/level-1": Reply(200), "/level-2": Reply(200)}) as pager:
        url = f"postgresql://{postgres.user}@127.0.0.1:{postgres.port}/{postgres.database}"
        settings = {
            "store": {"url": url, "password": {"env": "STORE_PASSWORD"}},
            "connections": {f"level-{n}": {"kind": "webhook", "url": f"{pager.url}/level-{n}"} for n in (1, 2)},
            "escalation": {
                "default": {
                    "notify": [{"notify.webhook": {"connection": "level-1"}}],
                    "levels": [{"after": "6s", "notify": [{"notify.webhook": {"connection": "level-2"}}]}],
                }
            },
        }
        environment = {"STORE_PASSWORD": postgres.password}
        async with open_world(directory, rules=RULES, settings=settings, environment=environment) as world:
            other = DaemonProcess(directory / "other", rules=RULES, environment=environment)
            other.write_settings(**{name: world.daemon.settings[name] for name in ("store", "connections", "alertmanager", "escalation")})
            await other.start()
            async with leaving(other):
                yield Pair(world, other, pager)


async def test_another_daemon_sends_the_next_level_and_the_end(pair: Pair) -> None:
    """The daemon that sent level 1 is killed; the other one sends level 2, once, hears the acknowledgement, and tells both of the end."""
    (incident,) = (await pair.world.fire("Hopeless", id="orphan"))["incidents"]
    await pair.hears(incident, 1)
    await pair.world.daemon.event(incident, "message.delivered")
    pair.world.daemon.kill()
    await pair.hears(incident, 2)
    assert len(pair.pages(incident, 2)) == 1
    assert (await pair.other.command("acknowledge", incident, who="responder"))[0] == 0
    for level in (1, 2):
        await pair.hears(incident, level, "acknowledged")
    await pair.world.daemon.start()
    await pair.world.resolve("Hopeless", id="orphan")
    for level in (1, 2):
        await pair.hears(incident, level, "resolved")

    async def all_told() -> bool:
        shown = await pair.other.get(f"incidents/{incident}/escalation")
        return not any(one["kind"] in ("page", "resolved") for one in shown["next"])

    await eventually(all_told, what="what was heard is noted as delivered, and nothing is left to tell")
    assert [len(pair.pages(incident, level)) for level in (1, 2)] == [1, 1]
    assert await pair.other.audit_holds()
