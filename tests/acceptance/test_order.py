"""Notifications as they really come: late, out of order, resolved first, mixed, again after the end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
import pytest_asyncio

from tests.acceptance.world import CALLS, World, open_world
from tests.servers.daemon import alert, webhook
from tests.servers.ports import eventually

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("acceptance-order")]

ASKS = """
  - name: asks
    match: ['alertname = "Ask"']
    mode: approve
    target: "ask/${labels.group}"
    remedies:
      - name: call it
        steps: [{http.request: {connection: target, path: "/jobs/{id}", args: {id: "${labels.group}"}}}]
        verify: {within: 20s, hold: 0s, every: 200ms, until: "true"}
"""
TOMBSTONE = 3.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """Start everything; tombstones last three seconds, so that tests can outlive them."""
    settings = {"limits": {"tombstone": f"{TOMBSTONE:g}s"}}
    async with open_world(tmp_path_factory.mktemp("order"), rules=CALLS + ASKS, settings=settings) as opened:
        yield opened


async def _state(world: World, incident: str) -> str:
    return str((await world.daemon.get(f"incidents/{incident}"))["state"])


async def test_resolved_of_an_unknown_alert_is_taken_and_opens_nothing(world: World) -> None:
    """A resolved notification of an alert that was never seen is accepted, and is no incident."""
    before = len(await world.daemon.incidents())
    answer = await world.daemon.post(alert("Call", firing=False, id="never-seen"))
    assert (answer["resolved"], answer["incidents"], answer["rejected"]) == (1, [], [])
    assert len(await world.daemon.incidents()) == before
    assert world.calls("never-seen") == 0


async def test_resolved_first_does_not_hide_the_firing_that_follows(world: World) -> None:
    """When the resolved copy of an unknown alert overtakes the firing one, the later firing one still opens an incident: it may be true."""
    await world.daemon.post(alert("Ask", firing=False, group="overtaken"))
    answer = await world.daemon.post(alert("Ask", group="overtaken"))
    assert len(answer["incidents"]) == 1


async def test_late_firing_copy_after_the_end_does_not_act_again(world: World) -> None:
    """A peer's late copy of what is resolved already, within the tombstone, opens and reopens nothing."""
    started = datetime.now(UTC) - timedelta(minutes=1)
    await world.alertmanager.post_alerts({"alertname": "Call", "id": "late"})
    (incident,) = (await world.daemon.post(alert("Call", started=started, id="late")))["incidents"]
    await world.daemon.reaches(f"{incident}-1", "succeeded")
    await world.daemon.post(alert("Call", firing=False, started=started, id="late"))
    assert await _state(world, incident) == "resolved"
    for _ in range(3):
        answer = await world.daemon.post(alert("Call", started=started, id="late"))
        assert answer["incidents"] == []
    assert await _state(world, incident) == "resolved"
    assert len(await world.daemon.runs(incident)) == 1
    assert world.calls("late") == 1


async def test_refire_is_a_relapse_and_needs_approval(world: World) -> None:
    """After the tombstone a new firing reopens the same incident; the remedy that had succeeded then waits for a person."""
    (incident,) = (await world.fire("Call", id="relapse"))["incidents"]
    await world.daemon.reaches(f"{incident}-1", "succeeded")
    await world.resolve("Call", id="relapse")
    ended = datetime.now(UTC)

    async def tombstone_is_over() -> bool:
        return datetime.now(UTC) - ended > timedelta(seconds=TOMBSTONE + 0.2)

    await eventually(tombstone_is_over, what="the tombstone is over")
    await world.alertmanager.post_alerts({"alertname": "Call", "id": "relapse"})
    answer = await world.daemon.post(alert("Call", started=datetime.now(UTC), id="relapse"))
    assert answer["incidents"] == [incident]
    approval = await world.daemon.asked(f"{incident}-2")
    assert world.calls("relapse") == 1
    assert "relapse" in approval["reason"] or "again" in approval["reason"], approval["reason"]
    whole = await world.daemon.get(f"incidents/{incident}")
    assert (whole["state"], whole["relapses"], whole["relapsed_remedies"]) == ("open", 1, ["call it"])
    await world.daemon.approve(f"{incident}-2")
    await world.daemon.reaches(f"{incident}-2", "succeeded")
    assert world.calls("relapse") == 2


async def test_group_of_mixed_statuses_is_taken_alert_by_alert(world: World) -> None:
    """The group's status says nothing: its firing alerts open, its resolved ones close, in whatever order they stand."""
    (first,) = (await world.daemon.post(alert("Ask", group="one")))["incidents"]
    body = webhook(alert("Ask", group="two"), alert("Ask", firing=False, group="one"), alert("Ask", group="three"), status="resolved")
    answer = await world.daemon.call("POST", "/api/v1/alerts", body, who="alert_sender")
    assert (answer["firing"], answer["resolved"], len(answer["incidents"])) == (2, 1, 2)
    assert await _state(world, first) == "resolved"
    await world.daemon.reaches(f"{first}-1", "cancelled")
    for incident in answer["incidents"]:
        assert await _state(world, incident) == "open"
        await world.daemon.asked(f"{incident}-1")


async def test_incident_ends_with_its_last_alert(world: World) -> None:
    """Several alerts of one target are one incident with one run; it stays open until the last of them is resolved."""
    (incident,) = (await world.daemon.post(alert("Ask", group="many", pod="a")))["incidents"]
    assert (await world.daemon.post(alert("Ask", group="many", pod="b"), alert("Ask", group="many", pod="c")))["incidents"] == []
    await world.daemon.asked(f"{incident}-1")
    await world.daemon.post(alert("Ask", firing=False, group="many", pod="a"), alert("Ask", firing=False, group="many", pod="c"))
    assert await _state(world, incident) == "open"
    assert (await world.daemon.run(f"{incident}-1"))["state"] == "awaiting_approval"
    await world.daemon.post(alert("Ask", firing=False, group="many", pod="b"))
    assert await _state(world, incident) == "resolved"
    await world.daemon.reaches(f"{incident}-1", "cancelled")
    assert len(await world.daemon.runs(incident)) == 1


async def test_resolved_while_waiting_voids_the_approval(world: World) -> None:
    """An approval of a run whose alert has ended meanwhile takes no decision any more, and nothing is done."""
    (incident,) = (await world.fire("Ask", group="gone"))["incidents"]
    approval = await world.daemon.asked(f"{incident}-1")
    await world.resolve("Ask", group="gone")
    await world.daemon.reaches(f"{incident}-1", "cancelled")
    body = {"decision": "approve", "plan_hash": approval["plan_hash"]}
    answer = await world.daemon.request("POST", f"/api/v1/approvals/{approval['id']}", body, who="approver")
    assert answer.status == 409
    assert world.calls("gone") == 0


async def test_truncated_group_is_counted(world: World) -> None:
    """Alerts that the sender left out are counted, so that an incomplete picture is seen."""
    before = await world.daemon.metric("remediator_alerts_truncated_total")
    body = webhook(alert("Nobody", id="t"), truncatedAlerts=7)
    await world.daemon.call("POST", "/api/v1/alerts", body, who="alert_sender")
    assert await world.daemon.metric("remediator_alerts_truncated_total") == before + 7


async def test_alert_gone_from_alertmanager_is_not_acted_on(world: World) -> None:
    """A firing webhook of which Alertmanager knows nothing (late, forged, resolved meanwhile) leads to no call."""
    (incident,) = (await world.daemon.post(alert("Call", id="forged")))["incidents"]
    run = await world.daemon.reaches(f"{incident}-1", "cancelled")
    assert "Alertmanager" in run["reason"]
    assert world.calls("forged") == 0


async def test_silenced_alert_is_not_acted_on(world: World) -> None:
    """An alert that somebody silenced is left alone."""
    await world.alertmanager.silence(alertname="Call", id="silenced")
    (incident,) = (await world.fire("Call", id="silenced"))["incidents"]
    run = await world.daemon.reaches(f"{incident}-1", "cancelled")
    assert "silenced" in run["reason"]
    assert world.calls("silenced") == 0


async def test_every_chain_still_verifies(world: World) -> None:
    """After all of it the audit trail holds."""
    assert await world.daemon.audit_holds()
