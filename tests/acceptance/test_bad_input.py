"""Hostile and broken input over the real socket: each has its exact answer, nothing of it is obeyed, and the daemon lives on."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from tests.servers.daemon import Answer, DaemonProcess, alert, webhook
from tests.servers.http import HttpServer, Reply
from tests.servers.ports import eventually
from tests.servers.postgres import PostgresServer
from tests.servers.redis import RedisServer

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("acceptance-bad-input")]

RULES = """
rules:
  - name: hostile
    match: ['alertname = "Hostile"']
    mode: approve
    target: "hostile/${labels.customer}"
    checks:
      orders: {postgres.query: {connection: orders, sql: "SELECT count(*) FROM orders WHERE customer = $1", args: ["${labels.customer}"]}}
      queue: {redis.queue_length: {connection: cache, key: "${labels.customer}"}}
    remedies:
      - name: mark them
        when: checks.orders.value == 1
        steps:
          - postgres.execute:
              connection: orders
              sql: UPDATE orders SET marked = true WHERE customer = $1
              args: ["${labels.customer}"]
              max_rows: 1
        verify: {within: 20s, hold: 0s, every: 200ms, until: "true"}
    guards: {cooldown: 0s, budget: [999 per 1h]}
  - name: path
    match: ['alertname = "Path"']
    mode: approve
    target: "path/${labels.job}"
    remedies:
      - name: call it
        steps: [{http.request: {connection: target, path: "/jobs/{job}", args: {job: "${labels.job}"}}}]
        verify: {within: 20s, hold: 0s, every: 200ms, until: "true"}
    guards: {cooldown: 0s, budget: [999 per 1h]}
  - name: crowd
    match: ['alertname = "Crowd"']
    mode: approve
    target: "crowd/${labels.cluster}"
    otherwise: escalate
"""

NASTY = (
    "x'; DROP TABLE orders; --",
    'quo"ted and \\back\\slashed',
    "two\nlines\r\nFLUSHALL\r\n",
    "$(touch /tmp/owned) `id` ; rm -rf / | cat && true",
    "${labels.secret} {{ .Labels }} %s %(x)s {0}",
    "Ünïcödé \u202e right to left 😀",
    '*?[a-z]{x,y}" or "1"="1',
)
"""Label values that mean something to SQL, shells, templates, Redis or terminals."""


@dataclass
class Bench:
    """The daemon and the systems that hostile values try to reach."""

    daemon: DaemonProcess
    postgres: PostgresServer
    redis: RedisServer
    target: HttpServer


async def _fill(postgres: PostgresServer, redis: RedisServer) -> None:
    admin = await asyncpg.connect(postgres.dsn)
    await admin.execute("CREATE ROLE remediator LOGIN PASSWORD 'of-the-daemon'")
    await admin.execute("CREATE TABLE orders (customer text, marked bool NOT NULL DEFAULT false)")
    await admin.execute("GRANT SELECT, UPDATE ON orders TO remediator")
    await admin.executemany("INSERT INTO orders (customer) VALUES ($1)", [(name,) for name in (*NASTY, "innocent")])
    await admin.close()
    for name in (*NASTY, "innocent"):
        redis.call("RPUSH", name, "a", "b")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    """Start the daemon with a PostgreSQL, a Redis and a web server to reach."""
    redis = RedisServer().start()
    try:
        async with PostgresServer(max_connections=20) as postgres, HttpServer() as target:
            target.default = Reply(200)
            await _fill(postgres, redis)
            orders = {"kind": "postgres", "host": postgres.host, "port": postgres.port, "user": "remediator", "ssl": "disable"}
            connections = {
                "orders": {**orders, "password": {"env": "ORDERS_PASSWORD"}},
                "cache": {"kind": "redis", "host": "127.0.0.1", "port": redis.port},
                "target": {"kind": "http", "base_url": target.url},
            }
            directory = tmp_path_factory.mktemp("bad-input")
            environment = {"ORDERS_PASSWORD": "of-the-daemon"}
            async with DaemonProcess(directory, {"connections": connections}, rules=RULES, environment=environment) as daemon:
                yield Bench(daemon, postgres, redis, target)
    finally:
        redis.stop()


async def _send(bench: Bench, body: bytes, **headers: str) -> Answer:
    return await bench.daemon.request("POST", "/api/v1/alerts", body, who="alert_sender", headers=headers)


def _body(**changes: Any) -> bytes:
    return json.dumps({**webhook(alert("Nobody")), **changes}).encode()


BAD_BODIES = {
    "not JSON": (b"alertname=SiteDown", 400),
    "empty": (b"", 400),
    "cut off": (_body()[:-20], 400),
    "a list": (b"[]", 400),
    "invalid UTF-8": (_body().replace(b"Nobody", b"N\xff\xfe"), 400),
    "nested too deeply": (b'{"version": "4", "alerts": ' + b"[" * 100_000, 400),
    "a number of 5000 digits": (b'{"version": "4", "alerts": [' + b"9" * 5000 + b"]}", 400),
    "no version": (json.dumps({"alerts": []}).encode(), 422),
    "version 3": (_body(version="3"), 422),
    "alerts missing": (json.dumps({"version": "4"}).encode(), 422),
    "alerts a mapping": (_body(alerts={}), 422),
    "too many alerts": (_body(alerts=[1] * 10_001), 413),
    "fifty megabytes": (b'{"version": "4", "alerts": ["' + b"x" * 50_000_000 + b'"]}', 413),
}


@pytest.mark.parametrize("what", BAD_BODIES)
async def test_bad_body_has_its_answer_and_changes_nothing(bench: Bench, what: str) -> None:
    """A body that can't be taken is refused with the same 4xx every time, as a problem document, counted, and nothing is stored."""
    body, expected = BAD_BODIES[what]
    answer = await _send(bench, body)
    assert answer.status == expected, answer.body[:300]
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json["status"] == expected
    assert len(answer.body) < 1000, "the answer lands in Alertmanager's log"
    assert (await bench.daemon.request("GET", "/-/ready", who=None)).status == 200


async def test_wrong_kind_of_body_is_415(bench: Bench) -> None:
    """Another content type and compressed bodies are refused unread: a few kilobytes of gzip may be gigabytes."""
    assert (await _send(bench, _body(), **{"Content-Type": "text/plain"})).status == 415
    assert (await _send(bench, gzip.compress(_body()), **{"Content-Encoding": "gzip"})).status == 415


async def test_stranger_is_refused_before_the_body(bench: Bench) -> None:
    """Without a token 401, with a role that may not send alerts 403, whatever the body."""
    assert (await bench.daemon.request("POST", "/api/v1/alerts", b"junk", who=None)).status == 401
    assert (await bench.daemon.request("POST", "/api/v1/alerts", b"junk", who="viewer")).status == 403


async def test_one_bad_alert_does_not_take_the_others_along(bench: Bench) -> None:
    """NUL, half surrogates, numbers as labels, no labels, duplicates: refused one by one and named; the good ones are stored."""
    good = alert("Crowd", cluster="mixed")
    twice = [alert("Crowd", cluster="mixed", pod="twice"), alert("Crowd", cluster="mixed", pod="twice")]
    bad = [
        {**alert("Bad"), "labels": {"alertname": "a\0b"}},
        {**alert("Bad"), "labels": {"alertname": "\ud800"}},
        {**alert("Bad"), "labels": {"alertname": 7}},
        {**alert("Bad"), "labels": {}},
        {**alert("Bad"), "status": "burning"},
        {**alert("Bad"), "startsAt": "yesterday"},
        "no alert at all",
    ]
    answer = await bench.daemon.call("POST", "/api/v1/alerts", {**webhook(good), "alerts": [*bad, good, *twice]}, who="alert_sender")
    assert answer["alerts"] == 2
    assert len(answer["rejected"]) == len(bad) + 1
    for number in range(len(bad)):
        assert any(text.startswith(f"alerts[{number}]") for text in answer["rejected"]), answer["rejected"]
    assert len(answer["incidents"]) == 1


async def test_refused_alert_is_told_in_the_log(bench: Bench) -> None:
    """Alertmanager does not read the answer: whose alert is too large for it must be able to find out why nothing is done."""
    before = len(bench.daemon.log)
    answer = await bench.daemon.call("POST", "/api/v1/alerts", webhook(alert("Large", query="x" * 5000)), who="alert_sender")
    assert answer["alerts"] == 0

    async def told() -> bool:
        return "label 'query' is too long" in bench.daemon.log[before:]

    await eventually(told, what="the log names the label that is too long")


@pytest.mark.parametrize("value", NASTY, ids=range(len(NASTY)))
async def test_hostile_label_reaches_systems_as_data(bench: Bench, value: str) -> None:
    """SQL, shell, template and protocol syntax in a label is compared, bound and shown as text; it is never obeyed."""
    (incident,) = (await bench.daemon.post(alert("Hostile", customer=value, secret="swordfish")))["incidents"]
    await bench.daemon.approve(f"{incident}-1")
    run = await bench.daemon.reaches(f"{incident}-1", "succeeded")
    assert run["facts"]["checks.queue.length"] == 2
    assert run["steps"][0]["plan"]["intent"]["args"] == [value]
    assert (await bench.daemon.get(f"incidents/{incident}"))["subject"]["labels"]["customer"] == value
    connection = await asyncpg.connect(bench.postgres.dsn)
    try:
        rows = dict(await connection.fetch("SELECT customer, marked FROM orders"))
    finally:
        await connection.close()
    assert rows[value] is True
    assert rows["innocent"] is False
    assert len(rows) == len(NASTY) + 1
    assert bench.redis.call("DBSIZE") == len(NASTY) + 1
    code, shown = await bench.daemon.command("show", incident)
    assert code == 0
    assert "\u202e" not in shown
    assert "\r" not in shown


@pytest.mark.parametrize("job", ["../admin", "..%2fadmin", "a/../../admin", "a\nGET /admin HTTP/1.1", ""])
async def test_label_never_leads_to_another_path(bench: Bench, job: str) -> None:
    """A label that would turn a request to another path is refused at planning: a person is told, and nothing is sent."""
    (incident,) = (await bench.daemon.post(alert("Path", job=job, n=repr(job))))["incidents"]
    await bench.daemon.reaches(f"{incident}-1", "escalated", "failed")
    assert [request.target for request in bench.target.received if "admin" in request.target] == []


async def test_label_with_url_syntax_stays_one_segment(bench: Bench) -> None:
    """Slashes, question marks and fragments in a label arrive percent-encoded, inside of the one segment that the rule names."""
    (incident,) = (await bench.daemon.post(alert("Path", job="a/b?admin=1#x")))["incidents"]
    await bench.daemon.approve(f"{incident}-1")
    await bench.daemon.reaches(f"{incident}-1", "succeeded")
    assert [request.target for request in bench.target.received] == ["/jobs/a%2Fb%3Fadmin%3D1%23x"]


async def test_ten_thousand_alerts_are_taken_within_bounds(bench: Bench) -> None:
    """The largest webhook is accepted whole, into one incident; memory stays bounded, and others are answered meanwhile."""
    alerts = [alert("Crowd", cluster="large", pod=f"pod-{number}") for number in range(10_000)]
    sending = asyncio.create_task(bench.daemon.post(*alerts))
    slowest = 0.0
    while not sending.done():
        began = time.monotonic()
        assert (await bench.daemon.request("GET", "/-/healthy", who=None)).status == 200
        slowest = max(slowest, time.monotonic() - began)
        await asyncio.sleep(0.02)
    answer = await sending
    assert (answer["alerts"], answer["rejected"], len(answer["incidents"])) == (10_000, [], 1)
    whole = await bench.daemon.get(f"incidents/{answer['incidents'][0]}")
    assert len(whole["fingerprints"]) == 10_000
    assert slowest < 5, f"a health check took {slowest:.1f} s"
    assert bench.daemon.peak_rss < 400_000_000
    await bench.daemon.restart(kill=True)
    assert len((await bench.daemon.get(f"incidents/{whole['id']}"))["fingerprints"]) == 10_000


async def test_it_lives_and_the_trail_holds(bench: Bench) -> None:
    """After all of it the daemon takes alerts, every refusal was counted, and the audit trail verifies."""
    await bench.daemon.post(alert("Crowd", cluster="after"))
    assert await bench.daemon.audit_holds()
    assert "Traceback" not in bench.daemon.log
