"""The checks against real Alertmanagers: one, two that don't know of each other, and a cluster."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml

from actions.alertmanager import AlertmanagerConnection, Alerts, StandingCheck, standing
from actions.alertmanager.peers import open_peers
from actions.alertmanager.silences import list_of
from remediator.action import Identity
from remediator.errors import CheckFailed, TemporaryError
from remediator.rules.schema import is_code
from remediator.testing import LocalContext, assert_facts_match
from tests.servers.alertmanager import AlertmanagerServer
from tests.servers.http import HttpServer, Misbehaviour, Reply
from tests.servers.ports import eventually, free_port

pytestmark = pytest.mark.asyncio(loop_scope="module")

INHIBITING = yaml.safe_dump(
    {
        "route": {"receiver": "nowhere"},
        "receivers": [{"name": "nowhere"}],
        "inhibit_rules": [{"source_matchers": ['alertname="ClusterDown"'], "target_matchers": ['tier="app"'], "equal": ["case"]}],
    }
)


class World:
    """Two Alertmanagers that don't gossip, and a context whose connections are one of them, both, or one and a broken one."""

    def __init__(self, one: AlertmanagerServer, two: AlertmanagerServer, case: str) -> None:
        self.one, self.two = one, two
        self.labels = {"alertname": "SiteDown", "tier": "app", "case": case}
        self.connections: dict[str, AlertmanagerConnection] = {}
        self.connect("one", one.url)
        self.connect("both", one.url, two.url)
        self.connect("two", two.url)
        self.contexts: list[LocalContext] = []

    def connect(self, name: str, *urls: str) -> None:
        """Add a connection."""
        self.connections[name] = AlertmanagerConnection(urls=urls)

    def context(self) -> LocalContext:
        """Return a context over the connections."""
        ctx = LocalContext(self.connections, identity=Identity("remediator"))
        self.contexts.append(ctx)
        return ctx

    async def stands(self, connection: str = "one", *, fingerprint: str = "", **params: Any) -> dict[str, Any]:
        """Run `alertmanager.standing` for this test's alert."""
        fingerprint = fingerprint or await self.one.fingerprint(**self.labels)
        raw = {"connection": connection, "fingerprint": fingerprint, "labels": self.labels, **params}
        facts = dict(await StandingCheck().run(StandingCheck.Params.model_validate(raw), self.context()))
        assert_facts_match(StandingCheck, facts)
        return facts

    async def counts(self, connection: str = "one", **params: Any) -> dict[str, Any]:
        """Run `alertmanager.alerts`."""
        facts = dict(await Alerts().run(Alerts.Params.model_validate({"connection": connection, **params}), self.context()))
        assert_facts_match(Alerts, facts)
        return facts


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def servers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[AlertmanagerServer, AlertmanagerServer]]:
    """Two Alertmanagers for all tests here."""
    directory = tmp_path_factory.mktemp("alertmanager")
    async with AlertmanagerServer(directory / "one", config=INHIBITING) as one, AlertmanagerServer(directory / "two") as two:
        yield one, two


@pytest_asyncio.fixture(loop_scope="module")
async def world(servers: tuple[AlertmanagerServer, AlertmanagerServer], request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """Return the servers with an alert of this test's own, firing at the first one."""
    found = World(*servers, case=request.node.name)
    await found.one.post_alerts(found.labels)
    yield found
    for ctx in found.contexts:
        await ctx.aclose()


async def test_s14_firing_alert_is_firing(world: World) -> None:
    """An alert that nobody silenced fires, and every peer's answer is in the facts."""
    assert await world.stands() == {
        "found": True,
        "firing": True,
        "silenced": False,
        "inhibited": False,
        "silence_ids": [],
        "peers_asked": 1,
        "peers_answered": 1,
        "states": {world.one.url: "firing"},
    }


async def test_s14_fingerprint_with_other_labels_is_not_the_alert(world: World) -> None:
    """Whoever sends a webhook may lend another alert's fingerprint to labels of his choice: what is acted on must be what fires."""
    facts = await world.stands(labels=world.labels | {"namespace": "payments"})
    assert not facts["firing"]
    facts = await world.stands(labels=world.labels | {"alertname": "Other/Alert|"})
    assert not facts["firing"]


async def test_s14_resolved_alert_is_absent(world: World) -> None:
    """A resolved alert fires no more; whether it is silenced is then unknown (empty is not everything)."""
    fingerprint = await world.one.fingerprint(**world.labels)
    await world.one.post_alerts(world.labels, firing=False)

    async def gone() -> bool:
        return not (await world.stands(fingerprint=fingerprint))["firing"]

    await eventually(gone, what="the alert is gone")
    facts = await world.stands(fingerprint=fingerprint)
    facts.pop("up_for")
    assert facts == {"found": False, "firing": False, "peers_asked": 1, "peers_answered": 1, "states": {world.one.url: "absent"}}


async def test_s14_silenced_alert_is_told(world: World) -> None:
    """A person's silence counts from the moment it is made, and its id is told."""
    silence = await world.one.silence(case=world.labels["case"])
    facts = await world.stands()
    assert (facts["firing"], facts["silenced"], facts["silence_ids"]) == (True, True, [silence])
    await world.one.expire_silence(silence)
    assert (await world.stands())["silenced"] is False


async def test_s14_inhibited_alert_is_told(world: World) -> None:
    """An alert that another one inhibits is not silenced, but inhibited."""
    await world.one.post_alerts({"alertname": "ClusterDown", "case": world.labels["case"]})

    async def inhibited() -> bool:
        return bool((await world.stands())["inhibited"])

    await eventually(inhibited, what="the alert is inhibited")
    facts = await world.stands()
    assert (facts["silenced"], facts["states"]) == (False, {world.one.url: "inhibited"})


async def test_s14_firing_needs_one_peer(world: World) -> None:
    """A peer that does not know the alert does not make it resolved."""
    facts = await world.stands("both")
    assert (facts["firing"], facts["silenced"], facts["peers_answered"]) == (True, False, 2)
    assert facts["states"] == {world.one.url: "firing", world.two.url: "absent"}


async def test_s14_silence_of_any_peer_counts(world: World) -> None:
    """A silence made at one peer, not yet known to the other, silences."""
    await world.two.post_alerts(world.labels)
    silence = await world.two.silence(case=world.labels["case"])
    facts = await world.stands("both")
    assert (facts["silenced"], facts["silence_ids"]) == (True, [silence])
    assert facts["states"] == {world.one.url: "firing", world.two.url: "silenced"}


async def test_s14_own_silence_does_not_count(world: World) -> None:
    """A silence made by this daemon for this incident is no reason not to act; any other is."""
    await world.one.silence(comment="fixing it [remediator INC-20260101-001-1/1]", created_by="remediator", case=world.labels["case"])
    assert (await world.stands(marker="INC-20260101-001"))["silenced"] is False
    assert (await world.stands(marker="INC-20260101-002"))["silenced"] is True
    assert (await world.stands(marker="INC-20260101-00"))["silenced"] is True
    assert (await world.stands())["silenced"] is True


async def test_s14_silence_that_only_speaks_of_the_incident_counts(world: World) -> None:
    """A rule's step for one incident may name another in its comment: it is the silence of the one that it was made for."""
    words = "as in INC-20260101-001 [remediator INC-20260101-002-1/1]"
    await world.one.silence(comment=words, created_by="remediator", case=world.labels["case"])
    assert (await world.stands(marker="INC-20260101-001"))["silenced"] is True
    assert (await world.stands(marker="INC-20260101-002"))["silenced"] is False


async def test_s14_somebody_elses_silence_with_the_marker_counts(world: World) -> None:
    """A person who mentions the incident in his silence means it."""
    await world.one.silence(comment="hands off, INC-20260101-001", created_by="alice", case=world.labels["case"])
    assert (await world.stands(marker="INC-20260101-001"))["silenced"] is True


async def test_s14_own_and_other_silences_together(world: World) -> None:
    """One foreign silence beside the own one is enough."""
    await world.one.silence(comment="[remediator INC-20260101-001-2@120000]", created_by="remediator", case=world.labels["case"])
    other = await world.one.silence(comment="maintenance", created_by="bob", case=world.labels["case"])
    facts = await world.stands(marker="INC-20260101-001")
    assert (facts["silenced"], facts["silence_ids"]) == (True, [other])


@pytest.mark.parametrize("label", ['quote"d', "back\\slash", "new\nline", 'x",alertname="y', "größe", "a=~.*"])
async def test_alerts_selects_exactly_the_odd_label(world: World, label: str) -> None:
    """A label's value is data: it selects the alerts that have it and no others, whatever is in it."""
    await world.one.post_alerts({"alertname": label, "case": world.labels["case"], "odd": label})
    facts = await world.counts(labels={"odd": label, "case": world.labels["case"]})
    assert (facts["count"], facts["names"]) == (1, [label])
    assert (await world.stands(fingerprint=facts["fingerprints"][0], labels={"alertname": label}))["firing"] is True


async def test_alerts_counts_over_all_peers(world: World) -> None:
    """An alert held by two peers counts once, and as silenced when one of them says so."""
    case = world.labels["case"]
    for server in (world.one, world.two):
        await server.post_alerts(world.labels, {"alertname": "Other", "case": case})
    await world.two.silence(alertname="Other", case=case)
    facts = await world.counts("both", labels={"case": case})
    assert (facts["count"], facts["firing"], facts["silenced"], facts["inhibited"]) == (2, 1, 1, 0)
    assert facts["names"] == ["Other", "SiteDown"]
    assert len(facts["fingerprints"]) == 2
    some = await world.counts("both", labels={"case": case}, matchers=[{"label": "alertname", "op": "=~", "value": "Site.*"}])
    assert some["names"] == ["SiteDown"]


async def test_s03_no_matching_alert_leaves_counts_unknown(world: World) -> None:
    """Nothing found is not zero of everything."""
    assert await world.counts(labels={"case": "no such case"}) == {"found": False, "truncated": False}


async def test_s03_alerts_without_any_filter_is_refused() -> None:
    """No filter would mean every alert there is."""
    with pytest.raises(ValueError, match="give matchers or labels"):
        Alerts.Params.model_validate({"connection": "one"})


async def test_s04_too_many_alerts_are_not_shortened(world: World) -> None:
    """A list cut to 100 would lie about what is not in it: it is unknown instead."""
    case = world.labels["case"]
    await world.one.post_alerts(*({"alertname": "Many", "case": case, "n": str(number)} for number in range(101)))
    facts = await world.counts(labels={"case": case, "alertname": "Many"})
    assert (facts["count"], facts["truncated"], facts["names"]) == (101, True, ["Many"])
    assert "fingerprints" not in facts


# --- peers in trouble ------------------------------------------------------------------------------------------------------------


async def test_s14_peer_that_is_down_fails_the_check(world: World) -> None:
    """A peer that can't be asked may know of a silence: nothing is known, and the message names it."""
    dead = f"http://127.0.0.1:{free_port()}"
    world.connect("half", world.one.url, dead)
    with pytest.raises(CheckFailed, match=dead):
        await world.stands("half")
    with pytest.raises(CheckFailed, match=dead):
        await world.counts("half", labels={"case": world.labels["case"]})
    with pytest.raises(TemporaryError, match=dead):
        await standing(world.context(), "half", fingerprint="0", labels=world.labels)


async def test_s14_hanging_peer_fails_within_three_seconds(world: World) -> None:
    """A socket that takes the request and never answers costs three seconds, not more."""
    async with HttpServer() as hanging:
        hanging.default = Misbehaviour.HANG
        world.connect("hanging", world.one.url, hanging.url)
        fingerprint = await world.one.fingerprint(**world.labels)
        began = time.monotonic()
        with pytest.raises(CheckFailed, match=f"{hanging.url} .*did not answer in time"):
            await world.stands("hanging", fingerprint=fingerprint)
        assert 2.5 < time.monotonic() - began < 3.5


async def test_s14_all_silent_peers_are_named(world: World) -> None:
    """One message names every peer that did not answer."""
    one, two = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    world.connect("none", one, two)
    with pytest.raises(CheckFailed, match=f"{one}.*; .*{two}"):
        await world.stands("none")


@pytest.mark.parametrize(
    "reply",
    [
        *(Reply(500, "oops"), Reply(200, "not json"), Reply(200, [{"no": "alert"}]), Reply(200, {"a": 1}), Reply(401), Misbehaviour.RESET),
        *(Reply(200, {}), Reply(200, '""'), Reply(200, [])),
    ],
)
async def test_s14_strange_answer_is_no_answer(world: World, reply: Reply | Misbehaviour) -> None:
    """A peer that answers nonsense did not answer: an empty object is no empty list, and nobody knows how long this one is up."""
    async with HttpServer({"/api/v2/alerts": reply}) as strange:
        world.connect("strange", world.one.url, strange.url)
        with pytest.raises(CheckFailed, match=strange.url):
            await world.stands("strange")


async def test_s19_peer_that_was_restarted_says_so(world: World, tmp_path: Path) -> None:
    """A restarted peer has forgotten every alert: how long the youngest of them is up tells what its absence is worth."""
    fingerprint = await world.one.fingerprint(**world.labels)
    async with AlertmanagerServer(tmp_path / "young") as young:
        world.connect("young", world.two.url, young.url)
        facts = await world.stands("young", fingerprint=fingerprint)
        assert not facts["found"]
        assert timedelta(seconds=-1) <= facts["up_for"] < (await world.stands("two", fingerprint=fingerprint))["up_for"]
        await young.post_alerts(world.labels)
        assert "up_for" not in await world.stands("young", fingerprint=fingerprint)


@pytest.mark.parametrize("listed", [{}, ""])
async def test_s03_empty_is_no_list_of_silences(world: World, listed: Any) -> None:
    """Whoever answers an empty object has not said that there is no silence."""
    async with HttpServer({"/api/v2/silences": Reply(200, json.dumps(listed))}) as strange:
        world.connect("strange", strange.url)
        peers = await open_peers(world.context(), "strange")
        with pytest.raises(TemporaryError, match=strange.url):
            await list_of(peers, strange.url)


async def test_s14_silence_gone_meanwhile_counts(world: World) -> None:
    """A silence that can't be read any more is not known to be ours: it counts."""
    alert = {"fingerprint": "f", "labels": world.labels, "status": {"silencedBy": ["s"], "inhibitedBy": [], "state": "suppressed"}}
    async with HttpServer({"/api/v2/alerts": Reply(body=[alert])}) as server:
        world.connect("gone", server.url)
        facts = await world.stands("gone", fingerprint="f", marker="INC-20260101-001")
        assert facts["silenced"] is True
        assert [request.path for request in server.received] == ["/api/v2/alerts", "/api/v2/silence/s"]
        server.set("/api/v2/silence/s", Reply(500))
        with pytest.raises(CheckFailed, match="answered 500 about silence s"):
            await world.stands("gone", fingerprint="f", marker="INC-20260101-001")


async def test_cluster_shares_silences(world: World, tmp_path_factory: pytest.TempPathFactory) -> None:
    """In a cluster a silence made at one peer is soon known to the other, under the same id."""
    directory = tmp_path_factory.mktemp("cluster")
    async with (
        AlertmanagerServer(directory / "a", cluster=True) as first,
        AlertmanagerServer(directory / "b", peers=[first.cluster_address]) as second,
    ):
        await first.wait_for_peers(2)
        await first.post_alerts(world.labels)
        await second.post_alerts(world.labels)
        silence = await first.silence(case=world.labels["case"])
        world.connect("cluster", first.url, second.url)

        async def shared() -> bool:
            facts = await world.stands("cluster")
            return set(facts["states"].values()) == {"silenced"} and facts["silence_ids"] == [silence]

        await eventually(shared, what="both peers know the silence")


async def test_s25_matchers_are_code() -> None:
    """A label's value in a regular expression would be an expression itself; values from alerts go through `labels`, which are exact."""
    schema = Alerts.Params.model_json_schema()
    assert all(is_code(schema, ("matchers", 0, part)) for part in ("label", "op", "value"))
    assert not is_code(schema, ("labels", "cluster"))
