"""Making and ending silences at real Alertmanagers: alone, two that don't know of each other, and a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio
from pydantic import ValidationError

from actions.alertmanager import AlertmanagerConnection, ExpireAnySilence, ExpireSilence, SilenceAction, Silences
from actions.alertmanager.silence import chosen
from remediator.action import Identity, Settled
from remediator.errors import OutcomeUnknown, PlanRefused, PreconditionChanged, TemporaryError
from remediator.model import JSON, Health, Plan, Receipt, Risk
from remediator.testing import ActionConformance, LocalContext, assert_facts_match
from tests.servers.alertmanager import AlertmanagerServer
from tests.servers.http import HttpServer, Received, Reply
from tests.servers.ports import eventually, free_port

ALERT = {"alertname": "SiteDown", "host": "web1"}
KEY = "INC-20261121-001-1/1"
VALUES = {"incident": "INC-20261121-001", "run": "INC-20261121-001-1", "rule": "site-down", "link": "https://remediator.example/i"}
SILENCE, EXPIRE, EXPIRE_ANY = SilenceAction(), ExpireSilence(), ExpireAnySilence()


@pytest_asyncio.fixture
async def server(tmp_path: Any) -> AsyncIterator[AlertmanagerServer]:
    """An Alertmanager that holds one alert."""
    async with AlertmanagerServer(tmp_path / "one") as one:
        await one.post_alerts(ALERT)
        yield one


def context(*urls: str, key: str = KEY, **fields: Any) -> LocalContext:
    """Return a context whose connection `main` is these peers."""
    connection = AlertmanagerConnection(urls=urls, **fields)
    return LocalContext({"main": connection}, identity=Identity("remediator"), key=key, values=VALUES)


def wish(**fields: Any) -> Any:
    """Return parameters for the alert."""
    return SILENCE.Params.model_validate({"connection": "main", "labels": ALERT, "for": "10m", **fields})


async def make(ctx: LocalContext, **fields: Any) -> tuple[Plan, Any]:
    """Plan and apply a silence."""
    plan = await SILENCE.plan(wish(**fields), ctx)
    return plan, await SILENCE.apply(plan, ctx)


async def lasting(server: AlertmanagerServer) -> list[dict[str, Any]]:
    """Return the silences in force."""
    return [one for one in await server.silences() if one["status"]["state"] == "active"]


class _OnServer(ActionConformance):
    """What both conformance suites have in common."""

    @pytest.fixture(autouse=True)
    def _on(self, server: AlertmanagerServer) -> None:
        self.server = server

    async def state(self) -> JSON:
        """All silences in force, without what moves by itself."""
        return sorted([one["matchers"], one["createdBy"], one["comment"]] for one in await lasting(self.server))

    async def cleanup(self) -> None:
        """End everything."""
        for one in await lasting(self.server):
            await self.server.expire_silence(one["id"])


class TestSilence(_OnServer):
    """`alertmanager.silence` conforms."""

    action = SILENCE

    @pytest.fixture(autouse=True)
    def _contexts(self) -> None:
        self.contexts: list[LocalContext] = []

    async def prepare(self) -> tuple[LocalContext, Mapping[str, Any]]:
        """Return a step's context."""
        self.contexts.append(context(self.server.url))
        return self.contexts[-1], {"connection": "main", "labels": ALERT, "for": "10m"}

    async def cleanup(self) -> None:
        """End everything; what follows is another step."""
        await super().cleanup()
        for ctx in self.contexts:
            ctx.key = f"{KEY}{len(self.contexts)}"

    async def settle(self, plan: Plan, receipt: Receipt | None, ctx: Any) -> None:
        """Let a request that was on its way when the process died arrive."""
        seen: list[JSON] = []

        async def still() -> bool:
            seen.append(await self.state())
            return len(seen) > 3 and seen[-1] == seen[-4]

        if receipt is None:
            await eventually(still, what="nothing more arrives")

    async def disturb(self) -> None:
        """Somebody silences the same alert."""
        await self.server.silence(**ALERT)


class TestExpireSilence(_OnServer):
    """`alertmanager.expire_silence` conforms."""

    action = EXPIRE

    async def prepare(self) -> tuple[LocalContext, Mapping[str, Any]]:
        """Make a silence of our own for an incident, and one of somebody else."""
        await self.server.silence(comment=f"[remediator {KEY}]", created_by="remediator", **ALERT)
        await self.server.silence(**ALERT)
        return context(self.server.url), {"connection": "main", "incident": "INC-20261121-001"}

    async def disturb(self) -> None:
        """Somebody else ends it."""
        for one in await lasting(self.server):
            await self.server.expire_silence(one["id"])


# --- making --------------------------------------------------------------------------------------------------------------------


async def test_silence_matches_exactly_the_labels_and_names_incident_run_and_link(server: AlertmanagerServer) -> None:
    """Equalities only, all labels but those left out; whoever reads it in Alertmanager knows why, and where to look."""
    await make(context(server.url), labels={**ALERT, "replica": "a"}, without=["replica"], comment="while\nfixing")
    (found,) = await lasting(server)
    assert sorted(one["name"] for one in found["matchers"]) == ["alertname", "host"]
    assert all(one["isEqual"] and not one["isRegex"] for one in found["matchers"])
    assert found["createdBy"] == "remediator"
    for word in ("while fixing", "INC-20261121-001 ", "INC-20261121-001-1)", "https://remediator.example/i", f"[remediator {KEY}]"):
        assert word in found["comment"]
    span = datetime.fromisoformat(found["endsAt"]) - datetime.now(UTC)
    assert timedelta(minutes=9) < span < timedelta(minutes=11)


@pytest.mark.parametrize("value", ['quote"d', "back\\slash", "new\nline", "größe", "a=~.*", ".*", "${x}"])
async def test_odd_label_is_matched_as_it_is(server: AlertmanagerServer, value: str) -> None:
    """A label's value is data: it silences the alert that has it, and no other."""
    await server.post_alerts({"alertname": "Odd", "odd": value}, {"alertname": "Odd", "odd": "other"})
    plan, _ = await make(context(server.url), labels={"alertname": "Odd", "odd": value})
    assert plan.impact.touched == 1
    states = {alert["labels"].get("odd"): alert["status"]["state"] for alert in await server.alerts()}
    assert (states[value], states["other"]) == ("suppressed", "active")


@pytest.mark.parametrize(
    ("labels", "without", "why"),
    [
        ({"alertname": "A"}, ["alertname"], "no label is left"),
        ({"alertname": "A", "host": ""}, [], "label host is empty"),
        ({"alertname": "A", "a-b": "c"}, [], "no name of a label"),
    ],
)
def test_s03_silence_of_everything_is_refused(labels: Mapping[str, str], without: list[str], why: str) -> None:
    """Empty is not everything: no matcher, or one for an empty value, would silence what nobody meant."""
    with pytest.raises(PlanRefused, match=why):
        chosen(labels, without)
    with pytest.raises(ValidationError):
        SILENCE.Params.model_validate({"connection": "main", "labels": {}, "for": "1m"})


async def test_connection_bounds_how_long(server: AlertmanagerServer) -> None:
    """A rule can't silence for longer than the operator allows on this connection."""
    with pytest.raises(PlanRefused, match="longer than 5m, the `max_silence`"):
        await SILENCE.plan(wish(), context(server.url, max_silence="5m"))
    assert await server.silences() == []


async def test_blast_radius_of_a_silence_is_what_it_would_silence(server: AlertmanagerServer) -> None:
    """Labels that many alerts share are many things touched."""
    await server.post_alerts(*({"alertname": "SiteDown", "host": f"web{number}"} for number in range(5)))
    plan = await SILENCE.plan(wish(labels={"alertname": "SiteDown"}), context(server.url))
    assert plan.impact.touched == 5


async def test_s17_silence_that_was_made_already_is_found_by_its_mark(server: AlertmanagerServer) -> None:
    """After a lost answer the same step makes no second silence; another step, whose key begins alike, makes its own."""
    plan, receipt = await make(context(server.url))
    again = await SILENCE.apply(plan, context(server.url))
    assert again.data == receipt.data
    await make(context(server.url, key=KEY + "0"))
    assert len(await lasting(server)) == 2


async def test_s17_silence_that_somebody_ended_is_not_made_again(server: AlertmanagerServer) -> None:
    """Whoever ended it wants to hear the alert."""
    plan, receipt = await make(context(server.url))
    await server.expire_silence(receipt.data["silence"])
    with pytest.raises(PreconditionChanged, match="is over"):
        await SILENCE.apply(plan, context(server.url))
    assert await lasting(server) == []
    assert (await SILENCE.verify(plan, receipt, context(server.url))).health is Health.UNHEALTHY


async def test_s20_undo_is_refused_when_somebody_prolonged_it(server: AlertmanagerServer) -> None:
    """Somebody who made it last longer wants it: undoing would take his silence away."""
    plan, receipt = await make(context(server.url))
    (found,) = await lasting(server)
    await server.prolong(found, timedelta(hours=2))
    with pytest.raises(PlanRefused, match="somebody changed it since"):
        await SILENCE.undo(plan, receipt, context(server.url))


async def test_prolonging_keeps_the_silence_and_never_shortens_it(server: AlertmanagerServer) -> None:
    """The same silence ends later; a shorter wish changes nothing."""
    _, receipt = await make(context(server.url))
    _, longer = await make(context(server.url), **{"for": "30m"}, prolongs=receipt.data["silence"])
    assert longer.data["silence"] == receipt.data["silence"]
    assert longer.data["ends_at"] > receipt.data["ends_at"]
    _, same = await make(context(server.url), **{"for": "1m"}, prolongs=receipt.data["silence"])
    assert same.data["ends_at"] == longer.data["ends_at"]
    assert len(await server.silences()) == 1


async def test_prolonging_never_makes_an_ended_silence_anew(server: AlertmanagerServer) -> None:
    """Alertmanager would make a new one under another id; whoever ended it wants to hear the alert."""
    _, receipt = await make(context(server.url))
    plan = await SILENCE.plan(wish(prolongs=receipt.data["silence"]), context(server.url))
    await server.expire_silence(receipt.data["silence"])
    with pytest.raises(PreconditionChanged, match="is over"):
        await SILENCE.apply(plan, context(server.url))
    with pytest.raises(PlanRefused, match="is over"):
        await SILENCE.plan(wish(prolongs=receipt.data["silence"]), context(server.url))
    assert await lasting(server) == []


async def test_somebody_elses_silence_is_not_prolonged(server: AlertmanagerServer) -> None:
    """Only what was made here is made to last longer."""
    other = await server.silence(created_by="alice", **ALERT)
    with pytest.raises(PlanRefused, match="by 'alice'"):
        await SILENCE.plan(wish(prolongs=other), context(server.url))


class _BreaksOff(HttpServer):
    """A server that takes a POST and hangs up instead of answering."""

    async def _answer(self, request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if request.method == "POST":
            writer.transport.abort()
            return
        await super()._answer(request, reader, writer)


# --- peers -----------------------------------------------------------------------------------------------------------------------


async def test_silence_is_made_at_a_peer_that_answers(server: AlertmanagerServer) -> None:
    """One dead peer does not keep it from being made; that it was made there says the receipt."""
    dead = f"http://127.0.0.1:{free_port()}"
    plan, receipt = await make(context(dead, server.url))
    assert (receipt.data["peer"], len(await lasting(server))) == (server.url, 1)
    assert (await SILENCE.verify(plan, receipt, context(dead, server.url))).health is Health.HEALTHY


async def test_silence_without_any_peer_is_tried_again(server: AlertmanagerServer) -> None:
    """When nobody answers nothing was written."""
    with pytest.raises(TemporaryError):
        await SILENCE.plan(wish(), context(f"http://127.0.0.1:{free_port()}"))
    plan = await SILENCE.plan(wish(), context(server.url))
    await server.stop()
    with pytest.raises(TemporaryError):
        await SILENCE.apply(plan, context(server.url))


async def test_s17_lost_answer_is_unknown_until_every_peer_was_asked() -> None:
    """A peer that breaks off after the POST may have made it: nobody says that it was not."""
    async with _BreaksOff({"/api/v2/alerts": Reply(body=[]), "/api/v2/silences": Reply(body=[])}) as broken:
        ctx = context(broken.url)
        plan = await SILENCE.plan(wish(), ctx)
        with pytest.raises(OutcomeUnknown):
            await SILENCE.apply(plan, ctx)
        broken.set("/api/v2/silences", Reply(500))
        assert (await SILENCE.reconcile(plan, ctx)).settled is Settled.UNKNOWN


async def test_cluster_takes_a_silence_at_one_peer_and_ends_it_at_all(tmp_path: Any) -> None:
    """It gossips: made at one, in force at both, ended at both when this returns."""
    async with (
        AlertmanagerServer(tmp_path / "a", cluster=True) as first,
        AlertmanagerServer(tmp_path / "b", peers=[first.cluster_address]) as second,
    ):
        await first.wait_for_peers(2)
        ctx = context(first.url, second.url)
        plan, receipt = await make(ctx)

        async def at_both() -> bool:
            return len(await lasting(first)) == len(await lasting(second)) == 1

        await eventually(at_both, what="both have it")
        assert (await lasting(first))[0]["id"] == (await lasting(second))[0]["id"] == receipt.data["silence"]
        back = await SILENCE.undo(plan, receipt, ctx)
        await SILENCE.apply(back, ctx)
        assert await lasting(first) == await lasting(second) == []


# --- ending ----------------------------------------------------------------------------------------------------------------------


async def test_somebody_elses_silence_is_not_ended(server: AlertmanagerServer) -> None:
    """By id it is refused, by incident it is not found, although its comment names the incident."""
    other = await server.silence(created_by="alice", comment="INC-20261121-001", **ALERT)
    ctx = context(server.url)
    with pytest.raises(PlanRefused, match=r"made by 'alice'.*expire_any_silence"):
        await EXPIRE.plan(EXPIRE.Params(connection="main", silence=other), ctx)
    assert (await EXPIRE.plan(EXPIRE.Params(connection="main", incident="INC-20261121-001"), ctx)).noop
    assert len(await lasting(server)) == 1


async def test_somebody_elses_silence_is_ended_only_by_name_and_approval(server: AlertmanagerServer) -> None:
    """The action that may do it has a high risk, so that a person is asked, who sees whose it is."""
    other = await server.silence(created_by="alice", comment="maintenance", **ALERT)
    assert EXPIRE_ANY.risk is Risk.HIGH
    ctx = context(server.url)
    plan = await EXPIRE_ANY.plan(EXPIRE_ANY.Params(connection="main", silence=other), ctx)
    assert "alice" in plan.changes[0].field
    assert "maintenance" in plan.changes[0].field
    receipt = await EXPIRE_ANY.apply(plan, ctx)
    assert await lasting(server) == []
    assert (await EXPIRE_ANY.verify(plan, receipt, ctx)).health is Health.HEALTHY


async def test_somebody_elses_silence_that_was_changed_since_is_left(server: AlertmanagerServer) -> None:
    """What was approved is the silence as it was seen."""
    other = await server.silence(created_by="alice", **ALERT)
    ctx = context(server.url)
    plan = await EXPIRE_ANY.plan(EXPIRE_ANY.Params(connection="main", silence=other), ctx)
    (found,) = await lasting(server)
    await server.prolong(found, timedelta(hours=2))
    with pytest.raises(PreconditionChanged, match="somebody changed it since"):
        await EXPIRE_ANY.apply(plan, ctx)
    assert len(await lasting(server)) == 1


def test_s03_ending_no_named_silence_is_refused() -> None:
    """Nothing named would mean every silence."""
    with pytest.raises(ValidationError, match="exactly one"):
        EXPIRE.Params(connection="main")


# --- looking -------------------------------------------------------------------------------------------------------------------


async def test_silences_of_alerts_are_told(server: AlertmanagerServer) -> None:
    """Count, ids, whose they are and when the last ends, as Alertmanager itself matches them, regular expressions included."""
    _, receipt = await make(context(server.url))
    other = await server.silence(created_by="alice", lasts=3000, host="web1")
    facts = dict(await Silences().run(Silences.Params(connection="main", labels=ALERT), context(server.url)))
    assert_facts_match(Silences, facts)
    assert (facts["found"], facts["count"], facts["own"]) == (True, 2, 1)
    assert facts["ids"] == sorted([receipt.data["silence"], other])
    assert facts["authors"] == ["alice", "remediator"]
    assert facts["ends_at"] > datetime.now(UTC) + timedelta(minutes=45)


async def test_s03_no_alert_leaves_its_silences_unknown(server: AlertmanagerServer) -> None:
    """That no alert is there does not mean that nothing is silenced; an alert without silences has none."""
    facts = await Silences().run(Silences.Params(connection="main", labels={"alertname": "Other"}), context(server.url))
    assert facts == {"found": False, "truncated": False}
    facts = await Silences().run(Silences.Params(connection="main", labels=ALERT), context(server.url))
    assert (facts["count"], facts["ids"], "ends_at" in facts) == (0, [], False)
