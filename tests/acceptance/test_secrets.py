"""Secrets are in the memory of the daemon and nowhere else: not in log, answers, metrics, events, messages, output or the store."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from urllib.parse import quote

import asyncpg
import pytest
import pytest_asyncio

from tests.acceptance.world import World, open_world
from tests.servers.daemon import alert
from tests.servers.http import HttpServer, Reply
from tests.servers.ports import eventually
from tests.servers.postgres import PostgresServer

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("acceptance-secrets")]

SECRETS = {
    "ORDERS_PASSWORD": "pg+Kj8/word='quoted'&7Qz",
    "WRONG_PASSWORD": "wrong-Hs92kf0sLq",
    "TARGET_TOKEN": "target-Xw71mNq0aP",
    "PAGER_KEY": "signing-Zt55bVc3rE",
}

RULES = """
rules:
  - name: rows
    match: ['alertname = "Rows"']
    mode: approve
    target: "rows/${labels.connection}/${labels.id}"
    checks:
      count: {postgres.query: {connection: "${labels.connection}", sql: SELECT count(*) FROM orders}}
      echo: {http.get: {connection: target, path: /echo}}
    remedies:
      - name: mark them
        when: checks.count.value >= 0
        steps:
          - postgres.execute:
              connection: "${labels.connection}"
              sql: UPDATE orders SET marked = 1 WHERE id = $1
              args: ["${labels.id}"]
              max_rows: 1
        verify: {within: 20s, hold: 0s, every: 200ms, until: "true"}
      - name: never
        when: checks.echo.status == 999
        steps: [{http.request: {connection: target, path: /jobs}}]
    guards: {cooldown: 0s, budget: [999 per 1h]}
  - name: refused
    match: ['alertname = "Refused"']
    mode: auto
    target: "refused/${labels.id}"
    remedies:
      - name: call it
        steps:
          - http.request: {connection: target, path: "/refuse/{id}", args: {id: "${labels.id}"}, json: {note: "${annotations.summary}"}}
    guards: {cooldown: 0s, budget: [999 per 1h]}
"""


@dataclass
class Place:
    """The world, with the systems whose secrets are at stake."""

    world: World
    postgres: PostgresServer
    pager: HttpServer

    def secrets(self) -> Mapping[str, str]:
        return {**SECRETS, **{f"token of {role}": token for role, token in self.world.daemon.tokens.items()}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    """Start everything: connections that work, that are refused, and a service and a receiver that repeat what they were told."""
    async with PostgresServer(max_connections=20) as postgres, HttpServer() as pager:
        admin = await asyncpg.connect(postgres.dsn)
        password = SECRETS["ORDERS_PASSWORD"].replace("'", "''")
        await admin.execute(f"CREATE ROLE remediator LOGIN PASSWORD '{password}'")
        await admin.execute("CREATE TABLE orders (id text PRIMARY KEY, marked int NOT NULL DEFAULT 0)")
        await admin.execute("INSERT INTO orders VALUES ('fine')")
        await admin.execute("GRANT SELECT, UPDATE ON orders TO remediator")
        await admin.close()
        orders = {"kind": "postgres", "host": postgres.host, "port": postgres.port, "user": "remediator", "ssl": "disable"}
        connections = {
            "orders": {**orders, "password": {"env": "ORDERS_PASSWORD"}, "aliases": ["good"]},
            "locked": {**orders, "password": {"env": "WRONG_PASSWORD"}, "aliases": ["bad"]},
            "target": {"bearer": {"env": "TARGET_TOKEN"}},
            "pager": {"kind": "webhook", "url": f"{pager.url}/page", "signing": {"env": "PAGER_KEY"}},
        }
        settings = {
            "connections": connections,
            "escalation": {"default": {"notify": [{"notify.webhook": {"connection": "pager"}}]}},
            "log": {"level": "debug"},
            "limits": {"checkpoint_every": "1s"},
        }
        directory = tmp_path_factory.mktemp("secrets")
        async with open_world(directory, rules=RULES, settings=settings, environment=SECRETS) as world:
            echo = " ".join(SECRETS.values())
            world.target.set("/echo", Reply(200, {"authorization": f"Bearer {SECRETS['TARGET_TOKEN']}", "echo": echo}))
            world.target.default = Reply(409, f"no: Bearer {SECRETS['TARGET_TOKEN']} {echo}")
            pager.set("/page", Reply(500, f"key was {SECRETS['PAGER_KEY']} {echo}"))
            yield Place(world, postgres, pager)


async def _everything_fails(place: Place) -> None:
    """Have a run work, then a password be wrong, a database be down, and a service and a receiver repeat what they were told."""
    world, daemon = place.world, place.world.daemon
    (fine,) = (await world.fire("Rows", connection="good", id="fine"))["incidents"]
    await daemon.approve(f"{fine}-1")
    await daemon.reaches(f"{fine}-1", "succeeded")
    (locked,) = (await world.fire("Rows", connection="bad", id="locked"))["incidents"]
    run = await daemon.reaches(f"{locked}-1", "escalated")
    assert "refus" in run["reason"] or "password" in run["reason"] or "28P01" in run["reason"], run["reason"]
    (refused,) = (await world.fire("Refused", id="x"))["incidents"]
    await daemon.reaches(f"{refused}-1", "failed")
    assert place.world.target.received[-1].headers["authorization"] == f"Bearer {SECRETS['TARGET_TOKEN']}"
    place.postgres.halt()
    (down,) = (await world.fire("Rows", connection="good", id="down"))["incidents"]
    await daemon.reaches(f"{down}-1", "escalated")
    place.postgres.launch()
    await _failed_then_taken(place, refused)


async def _failed_then_taken(place: Place, incident: str) -> None:
    await place.world.daemon.event(incident, "message.failed")
    place.pager.set("/page", Reply(200))

    async def taken() -> bool:
        return bool(place.pager.taken)

    await eventually(taken, what="the receiver took a message", within=15)


async def _alerts_hold_the_password(place: Place) -> None:
    """Send alerts whose annotation or label holds the database's password."""
    summary = f"login failed with {SECRETS['ORDERS_PASSWORD']} for shop"
    sent = {**alert("Refused", id="annotated"), "annotations": {"summary": summary}}
    await place.world.alertmanager.post_alerts({"alertname": "Refused", "id": "annotated"})
    (incident,) = (await place.world.daemon.post(sent))["incidents"]
    await place.world.daemon.reaches(f"{incident}-1", "failed")
    labelled = alert("Refused", id=f"login with {SECRETS['ORDERS_PASSWORD']}")
    (other,) = (await place.world.daemon.post(labelled))["incidents"]
    await place.world.daemon.reaches(f"{other}-1", "failed", "escalated", "cancelled")


async def _everything_said(place: Place) -> dict[str, bytes]:
    """Collect all that leaves the daemon: the log, every GET of the API, metrics, messages, the command line, the store's files."""
    daemon = place.world.daemon
    said = {"the log": daemon.log_file.read_bytes()}
    paths = ["status", "incidents?limit=1000", "runs?limit=1000", "approvals", "rules", "actions", "checks", "openapi.json", "audit/export"]
    incidents = await daemon.incidents()
    for one in incidents:
        paths += [f"incidents/{one['id']}", f"incidents/{one['id']}/events"]
        paths += [f"runs/{one['id']}-{number + 1}" for number in range(one["runs"])]
    paths += [f"approvals/{approval['id']}" for approval in (await daemon.get("approvals"))["items"] if "id" in approval]
    paths += [f"events?chain={chain}&limit=1000" for chain in ("system", *(one["id"] for one in incidents))]
    paths += [f"rules/{rule['name']}" for rule in (await daemon.get("rules"))["items"]]
    for path in paths:
        for who in ("admin", "viewer"):
            said[f"GET {path} as {who}"] = (await daemon.request("GET", f"/api/v1/{path}", who=who)).body
    said["the metrics"] = (await daemon.request("GET", "/metrics", who=None)).body
    nobody = {"Authorization": f"Bearer {daemon.tokens['admin']}x"}
    said["a refusal"] = (await daemon.request("GET", "/api/v1/incidents", headers=nobody, who=None)).body
    for request in place.pager.received:
        said[f"message {len(said)}"] = request.body
    for words in (("status",), ("incidents",), ("runs", "--json"), ("show", "system"), *(("show", one["id"]) for one in incidents)):
        said[f"remediator {' '.join(words)}"] = (await daemon.command(*words))[1].encode()
    await daemon.stop()
    for file in sorted(daemon.store.parent.iterdir()):
        said[f"the file {file.name}"] = file.read_bytes()
    await daemon.start()
    return said


def _forms(secret: str) -> set[bytes]:
    plain = secret.encode()
    return {
        plain,
        base64.b64encode(plain),
        quote(secret, safe="").encode(),
        json.dumps(secret)[1:-1].encode(),
        repr(secret)[1:-1].encode(),
        plain.hex().encode(),
    }


async def test_no_secret_is_found_anywhere(place: Place) -> None:
    """After all that can go wrong, not one secret, in any usual form, is in anything that the daemon said or stored."""
    await _everything_fails(place)
    await _alerts_hold_the_password(place)
    said = await _everything_said(place)
    assert len(said) > 50
    found = [
        (where, name) for where, text in said.items() for name, secret in place.secrets().items() for form in _forms(secret) if form in text
    ]
    assert found == []
