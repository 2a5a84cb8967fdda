"""The checks against a real Prometheus."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import pytest
import pytest_asyncio

from actions.prometheus import AlertRule, PrometheusConnection, Query, Range, read_alert
from remediator.action import Check, SecretRef
from remediator.errors import CheckFailed
from remediator.model import Value
from remediator.testing import LocalContext, assert_facts_match
from tests.servers.http import HttpServer, Misbehaviour, Reply
from tests.servers.ports import eventually, free_port
from tests.servers.prometheus import PrometheusServer

RULES = """
groups:
  - name: test
    rules:
      - {alert: Broken, expr: broken > 0, labels: {severity: critical}}
      - {alert: Never, expr: vector(0) > 1}
      - {alert: Faulty, expr: 'broken * on(kind) group_left two_of_a_kind'}
      - {alert: Slow, expr: broken > 0, for: 1h}
"""

METRICS = """
broken{kind="x",name="a"} %d
two_of_a_kind{kind="x",n="1"} 1
two_of_a_kind{kind="x",n="2"} 1
odd{name="quote\\"d"} 7
odd{name="back\\\\slash"} 8
odd{name="new\\nline"} 9
nothing NaN
"""


class World:
    """A Prometheus that scrapes what the test says."""

    def __init__(self, exporter: HttpServer, prometheus: PrometheusServer, ctx: LocalContext) -> None:
        self.exporter = exporter
        self.prometheus = prometheus
        self.ctx = ctx

    def show(self, broken: int) -> None:
        """Change the metric that the alerts look at."""
        self.exporter.set("/metrics", Reply(body=METRICS % broken, headers={"Content-Type": "text/plain; version=0.0.4"}))

    async def run(self, check: Check[Any], **params: Any) -> Any:
        """Run a check and hold its facts against its declaration."""
        facts = await check.run(check.Params.model_validate({"connection": "main", **params}), self.ctx)
        assert_facts_match(check, facts)
        return facts

    async def rule(self, name: str, after: datetime) -> Mapping[str, Value]:
        """Read where the rule `name` stands for the alert that it raises here."""
        labels = {
            "alertname": name,
            "severity": "critical",
            "name": "a",
            "kind": "x",
            "instance": self.exporter.address,
            "job": "test",
            "dc": "eu",
        }
        return await self.run(AlertRule(), alertname=name, labels=labels, after=after)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[HttpServer, PrometheusServer]]:
    """One exporter and one Prometheus for all tests here."""
    async with HttpServer({"/metrics": Reply(body=METRICS % 1)}) as exporter:
        directory: Path = tmp_path_factory.mktemp("prometheus")
        async with PrometheusServer(directory, rules=RULES, targets=[exporter.address], external_labels={"dc": "eu"}) as prometheus:
            yield exporter, prometheus


@pytest_asyncio.fixture(loop_scope="module")
async def world(shared: tuple[HttpServer, PrometheusServer]) -> AsyncIterator[World]:
    """Return the servers with a fresh context; the metric says broken."""
    exporter, prometheus = shared
    ctx = LocalContext({"main": PrometheusConnection(url=prometheus.url)})
    found = World(exporter, prometheus, ctx)
    found.show(1)

    async def scraped() -> bool:
        return [sample["value"][1] for sample in await prometheus.query("broken")] == ["1"]

    await eventually(scraped, what="the metric is scraped")
    yield found
    await ctx.aclose()


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_query_gives_value_and_series(world: World) -> None:
    """One series has a value, and its labels are its signature."""
    facts = await world.run(Query(), query='odd{name="quote\\"d"}')
    assert facts["value"] == 7.0
    assert list(facts["values"]) == [f'odd{{instance="{world.exporter.address}", job="test", name="quote\\"d"}}']
    assert (await world.run(Query(), query="2 + 2"))["value"] == 4.0


@pytest.mark.parametrize(("value", "number"), [('quote"d', 7.0), ("back\\slash", 8.0), ("new\nline", 9.0)])
async def test_odd_label_values_select_exactly_their_series(world: World, value: str, number: float) -> None:
    """The escaping is Prometheus' own: hostile characters select the series that has them."""
    assert (await world.run(Query(), query="odd{name=$name}", args={"name": value}))["value"] == number


@pytest.mark.parametrize("value", ['x"} or odd{name!="', "x} or odd", 'a"\n} or vector(1) #', "x\\", "'", "\x00"])
async def test_injected_label_selects_nothing(world: World, value: str) -> None:
    """A label's value that tries to be PromQL is a name that no series has."""
    assert await world.run(Query(), query="odd{name=$name}", args={"name": value}) == {"found": False, "truncated": False}


async def test_nan_of_a_real_series_is_unknown(world: World) -> None:
    """The series is found; its value is not known."""
    assert await world.run(Query(), query="nothing") == {"found": True, "count": 1, "truncated": False}


async def test_bad_query_fails_with_prometheus_own_words(world: World) -> None:
    """A query that Prometheus refuses is a failed check with its message."""
    with pytest.raises(CheckFailed, match="parse error"):
        await world.run(Query(), query="sum(")
    with pytest.raises(CheckFailed, match="gives a matrix"):
        await world.run(Query(), query="broken[1m]")


async def test_range_reads_the_window(world: World) -> None:
    """The points of one series over the window, to the newest."""

    async def two_points() -> bool:
        facts = await world.run(Range(), query='odd{name="quote\\"d"}', window="10s", step="1s")
        return bool(facts.get("samples", 0) >= 2)

    await eventually(two_points, what="two points a second apart")
    facts = await world.run(Range(), query='odd{name="quote\\"d"}', window="10s", step="1s")
    assert (facts["min"], facts["max"], facts["last"], facts["change"], facts["increase"]) == (7.0, 7.0, 7.0, 0.0, 0.0)
    assert await world.run(Range(), query="odd{name=$n}", args={"n": "none"}, window="1m") == {"found": False}


async def test_s19_alert_ends_on_an_evaluation_after_apply(world: World) -> None:
    """A firing alert is not over; after the metric recovers it is, on a later evaluation, external labels or not."""
    await world.prometheus.wait_for_alert("Broken", "firing")
    assert (await world.rule("Broken", datetime.now(UTC) - timedelta(minutes=1)))["active"] is True
    world.show(0)
    applied = datetime.now(UTC)

    async def over() -> bool:
        facts = await world.rule("Broken", applied)
        return facts["evaluated_after"] is True and facts["active"] is False

    await eventually(over, what="the alert is over")
    facts = await world.run(AlertRule(), alertname="Broken", labels={"severity": "critical"}, after=applied)
    assert facts == {"rule_found": True, "evaluated_after": True, "active": False, "state": "inactive"}


async def test_s19_future_evaluation_is_not_yet_there(world: World) -> None:
    """No evaluation is after a moment that has not come."""
    assert (await world.rule("Never", datetime.now(UTC) + timedelta(hours=1)))["evaluated_after"] is False


async def test_s19_rule_that_fails_to_evaluate_is_unknown(world: World) -> None:
    """Prometheus reports no alerts for a rule that it can't evaluate; that is not recovery."""

    async def failed() -> bool:
        groups = (await world.prometheus.get("/api/v1/rules"))["groups"]
        return any(rule["health"] == "err" for group in groups for rule in group["rules"] if rule["name"] == "Faulty")

    await eventually(failed, what="the faulty rule is evaluated")
    assert await world.rule("Faulty", datetime.now(UTC) - timedelta(minutes=5)) == {"rule_found": True, "evaluated_after": False}


async def test_s19_pending_alert_is_active(world: World) -> None:
    """An alert in its `for` is active again."""
    await world.prometheus.wait_for_alert("Slow", "pending")
    facts = await world.run(
        AlertRule(), alertname="Slow", labels={"alertname": "Slow", "name": "a"}, after=datetime.now(UTC) - timedelta(minutes=5)
    )
    assert "state" not in facts
    labels = {"alertname": "Slow", "name": "a", "kind": "x", "instance": world.exporter.address, "job": "test"}
    assert (await world.run(AlertRule(), alertname="Slow", labels=labels))["state"] == "pending"


async def test_unknown_alert_name_has_no_rule(world: World) -> None:
    """A rule that Prometheus does not have leaves everything else unknown."""
    assert await world.run(AlertRule(), alertname="Nobody", labels={}) == {"rule_found": False}


# --- a Prometheus in trouble: doubles that answer what real servers were seen to answer ---------------------------------------


async def fails(url: str, **connection: Any) -> str:
    """Return the words with which a query fails."""
    ctx = LocalContext({"main": PrometheusConnection(url=url, **connection)})
    try:
        with pytest.raises(CheckFailed) as caught:
            await Query().run(Query.Params(connection="main", query="up"), ctx)
        return str(caught.value)
    finally:
        await ctx.aclose()


async def test_s01_unreachable_prometheus_is_a_failed_check() -> None:
    """Prometheus is where evidence comes from: without it nothing is known."""
    assert "'main' refused the connection" in await fails(f"http://127.0.0.1:{free_port()}")


async def test_hanging_prometheus_fails_in_time() -> None:
    """A server that never answers costs the connection's timeout and no more."""
    async with HttpServer() as server:
        server.default = Misbehaviour.HANG
        began = time.monotonic()
        assert "did not answer in time" in await fails(server.url, timeout="500ms")
        assert time.monotonic() - began < 2


async def test_partial_answer_is_no_evidence() -> None:
    """Thanos reports missing stores as warnings beside a result: what is left out can't be known."""
    body = {"status": "success", "data": {"resultType": "vector", "result": []}, "warnings": ["store unavailable"]}
    async with HttpServer({"/api/v1/query": Reply(body=body)}) as server:
        assert "may be partial" in await fails(server.url)


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply(401, "no"), "refused the connection's credentials"),
        (Reply(502, "<html>bad gateway</html>"), "not JSON"),
        (Reply(200, {"status": "success", "data": {"resultType": "vector", "result": [{"metric": {}}]}}), "unknown shape"),
        (Reply(200, {"status": "success", "data": None}), "unknown shape"),
        (Reply(200, "x" * 5_000_000), "more than"),
        (Reply(302, headers={"Location": "http://127.0.0.1:1/"}), "not JSON"),
        (Misbehaviour.CUT, "hung up"),
        (Misbehaviour.RESET, "broke the connection"),
        (Misbehaviour.GARBAGE, "not HTTP"),
    ],
)
async def test_strange_answers_fail_the_check(reply: Reply | Misbehaviour, words: str) -> None:
    """Whatever is not a whole, successful answer of the API leaves the facts unknown."""
    async with HttpServer({"/api/v1/query": reply}) as server:
        assert words in await fails(server.url)
        assert len(server.received) == 1


async def test_credentials_are_read_at_each_request(tmp_path: Path) -> None:
    """A rotated token is used by the next request."""
    token = tmp_path / "token"
    body = {"status": "success", "data": {"resultType": "scalar", "result": [0, "1"]}}
    async with HttpServer({"/api/v1/query": Reply(body=body)}) as server:
        ctx = LocalContext({"main": PrometheusConnection(url=server.url, bearer=SecretRef(file=str(token)))})
        for text in ("one", "two"):
            token.write_text(f"{text}\n")
            facts: Value = await Query().run(Query.Params(connection="main", query="1"), ctx)
            assert facts["value"] == 1.0
        await ctx.aclose()
        assert [request.headers["authorization"] for request in server.received] == ["Bearer one", "Bearer two"]


async def test_s19_failed_scrape_is_told_from_an_alert_that_is_over(world: World) -> None:
    """Both leave the rule inactive; what is said of the scrape is as of the very evaluation that found it so."""

    async def reading(scraped: bool | None) -> None:
        async def there() -> bool:
            facts = await world.rule("Broken", datetime.now(UTC) - timedelta(minutes=1))
            return (facts["active"], facts.get("scraped")) == (False, scraped)

        await eventually(there, what=f"the rule is inactive, and whether its target is scraped is {scraped}")

    world.exporter.set("/metrics", Reply(500))
    await reading(scraped=False)
    world.show(0)
    await reading(scraped=True)
    world.prometheus.targets = []
    await world.prometheus.reload()
    try:
        await reading(scraped=None)
    finally:
        world.prometheus.targets = [world.exporter.address]
        await world.prometheus.reload()


async def test_s19_scrape_of_another_target_says_nothing(world: World) -> None:
    """The alert's other labels tell its target from one of the same name elsewhere; hostile values select nothing."""
    labels = {"name": "a", "kind": "x", "severity": "critical", "job": "test", "instance": world.exporter.address}

    async def scraped(**other: str) -> Any:
        facts = await world.run(AlertRule(), alertname="Never", labels=labels | {"alertname": "Never"} | other, after=datetime.now(UTC))
        return facts.get("scraped")

    async def known() -> bool:
        return await scraped() is True

    await eventually(known, what="the rule was evaluated when the target was scraped")
    for other in ({"job": "x"}, {"instance": 'x"} or up{job!="'}, {"job": ""}):
        assert await scraped(**other) is None


@pytest.mark.parametrize(("ups", "scraped"), [({"eu": "0", "us": "1"}, False), ({"eu": "1", "us": "0"}, True), ({"us": "0"}, None)])
async def test_s19_target_of_the_same_name_in_another_cluster_says_nothing(ups: Mapping[str, str], *, scraped: bool | None) -> None:
    """What answers for many clusters has a target of the same job and instance in each.

    A double, in the shapes that a Prometheus 2.42 answers in: here there is none that asks several others.
    """
    now = datetime.now(UTC)
    rule = {"type": "alerting", "name": "A", "labels": {}, "alerts": [], "health": "ok", "lastEvaluation": now.isoformat()}
    rules = {"status": "success", "data": {"groups": [{"name": "g", "rules": [rule], "lastEvaluation": now.isoformat()}]}}
    found = [
        {"metric": {"__name__": "up", "job": "node", "instance": "a", "cluster": cluster}, "value": [now.timestamp(), up]}
        for cluster, up in ups.items()
    ]
    query = {"status": "success", "data": {"resultType": "vector", "result": found}}
    async with HttpServer({"/api/v1/rules": Reply(body=rules), "/api/v1/query": Reply(body=query)}) as server:
        ctx = LocalContext({"main": PrometheusConnection(url=server.url)})
        labels = {"alertname": "A", "job": "node", "instance": "a", "cluster": "eu"}
        reading = await read_alert(ctx, "main", alertname="A", labels=labels, after=now - timedelta(minutes=1))
        assert (reading.active, reading.scraped) == (False, scraped)
        assert f"time={quote_plus(now.isoformat())}" in server.received[-1].target
        await ctx.aclose()


async def test_s24_clock_of_prometheus_ahead_is_allowed_for() -> None:
    """An evaluation that only looks later because Prometheus' clock is ahead is not after apply."""
    there = datetime.now(UTC) + timedelta(minutes=5)
    rule = {
        "type": "alerting",
        "name": "A",
        "labels": {},
        "alerts": [],
        "health": "ok",
        "lastEvaluation": there.isoformat(),
        "state": "inactive",
    }
    body = {"status": "success", "data": {"groups": [{"name": "g", "rules": [rule], "lastEvaluation": there.isoformat()}]}}
    reply = Reply(body=body, headers={"Date": format_datetime(there + timedelta(seconds=10), usegmt=True)})
    async with HttpServer({"/api/v1/rules": reply}) as server:
        ctx = LocalContext({"main": PrometheusConnection(url=server.url)})
        for after, evaluated in ((datetime.now(UTC), False), (datetime.now(UTC) - timedelta(minutes=1), True)):
            reading = await read_alert(ctx, "main", alertname="A", labels={}, after=after)
            assert (reading.evaluated_after, reading.active) == (evaluated, False)
        await ctx.aclose()
