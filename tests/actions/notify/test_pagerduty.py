"""`notify.pagerduty`: trigger, acknowledge, resolve; one alert an incident, however often a message comes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from actions.notify.pagerduty import PagerDuty, PagerDutyConnection, dedup_key
from actions.notify.wording import Kind
from remediator.errors import OutcomeUnknown, PermanentError, PlanRefused, RemediatorError, TemporaryError
from remediator.escalation.notice import alarm, all_clear, facts_of
from remediator.model import JSON, Plan, Receipt, canonical, to_json
from remediator.testing import ActionConformance, LocalContext
from tests.servers.http import Misbehaviour, Received, Reply
from tests.servers.receivers import PagerDutyDouble

ENQUEUE = "/v2/enqueue"
VALUES: Mapping[str, Any] = {
    "kind": "page",
    "incident": "INC-20260101-001",
    "page": "INC-20260101-001",
    "severity": "sev2",
    "summary": "Redis is unreachable",
    "rule": "redis-down",
    "target": "statefulset/shop/redis",
    "runbook": "https://wiki.example.com/redis",
    "link": "https://remediator.example.com/ui/incidents/INC-20260101-001",
    "state": "escalated",
    "opened_at": "2026-01-01T10:15:00+00:00",
    "actions_taken": ["restarted statefulset/redis"],
    "text": "SEV2 INC-20260101-001: Redis is unreachable",
}


@pytest.fixture
async def pager() -> AsyncIterator[PagerDutyDouble]:
    """Start a PagerDuty that takes what is documented and nothing else."""
    async with PagerDutyDouble() as server:
        yield server


def connect(directory: Path, server: PagerDutyDouble, key: str = PagerDutyDouble.KEY) -> PagerDutyConnection:
    """Return a connection with a routing key."""
    (directory / "key").write_text(f"{key}\n")
    return PagerDutyConnection.model_validate({"routing_key": {"file": str(directory / "key")}, "url": server.url, "timeout": "1s"})


async def tell(connection: PagerDutyConnection, values: Mapping[str, Any], **wish: Any) -> tuple[Plan, Receipt]:
    """Plan and apply one message."""
    ctx = LocalContext({"pager": connection}, values=values, key="m/1")
    try:
        plan = await PagerDuty().plan(PagerDuty.Params.model_validate({"connection": "pager", "text": values.get("text", "x")} | wish), ctx)
        return plan, await PagerDuty().apply(plan, ctx)
    finally:
        await ctx.aclose()


class TestConformance(ActionConformance):
    """`notify.pagerduty` keeps the contract of actions."""

    action = PagerDuty()
    server: ClassVar[PagerDutyDouble] = PagerDutyDouble()

    @pytest.fixture(autouse=True)
    def _directory(self, tmp_path: Path) -> None:
        self.directory = tmp_path

    async def prepare(self) -> tuple[LocalContext, Mapping[str, Any]]:
        """Start a PagerDuty, on the port that it had."""
        self.server.taken.clear()
        await self.server.start()
        return LocalContext({"pager": connect(self.directory, self.server)}, values=VALUES), {"connection": "pager", "text": "x"}

    async def state(self) -> JSON:
        """Every event that was taken."""
        return [request.body.decode() for request in self.server.taken]

    async def disturb(self) -> None:
        """Take the receiver away."""
        self.server.set(ENQUEUE, Reply(404))

    async def cleanup(self) -> None:
        """Stop it."""
        await self.server.stop()
        self.server.replies.clear()


async def test_page_triggers_with_everything_a_responder_needs(pager: PagerDutyDouble, tmp_path: Path) -> None:
    """Severity mapped, links, details, the time it began; the incident as key."""
    _, receipt = await tell(
        connect(tmp_path, pager), VALUES, links={"dashboard": "https://grafana.example.com/d/1"}, details={"backlog": 12}
    )
    event = pager.taken[0].json
    assert receipt.data == {"status": 202}
    assert (event["event_action"], event["dedup_key"]) == ("trigger", "INC-20260101-001")
    payload = event["payload"]
    assert payload["summary"] == "SEV2 INC-20260101-001: Redis is unreachable"
    assert (payload["severity"], payload["source"], payload["class"]) == ("error", "statefulset/shop/redis", "redis-down")
    assert payload["timestamp"] == "2026-01-01T10:15:00+00:00"
    assert payload["custom_details"]["actions_taken"] == ["restarted statefulset/redis"]
    assert payload["custom_details"]["backlog"] == 12
    assert [link["text"] for link in event["links"]] == ["incident", "runbook", "dashboard"]
    assert (event["client"], event["client_url"]) == ("remediator", VALUES["link"])


async def test_course_of_an_incident(pager: PagerDutyDouble, tmp_path: Path) -> None:
    """Page, acknowledgement and end are one alert; twice the same message changes nothing, and a relapse opens it again."""
    connection, alerts = connect(tmp_path, pager), pager.alerts
    for kind, state in (("page", "triggered"), ("page", "triggered"), ("acknowledged", "acknowledged"), ("page", "acknowledged")):
        await tell(connection, {**VALUES, "kind": kind})
        assert alerts == {"INC-20260101-001": state}
    await tell(connection, {**VALUES, "kind": "resolved"})
    assert alerts == {"INC-20260101-001": "resolved"}
    await tell(connection, {**VALUES, "kind": "acknowledged"})
    assert alerts == {"INC-20260101-001": "resolved"}
    await tell(connection, VALUES)
    assert alerts == {"INC-20260101-001": "triggered"}


@pytest.mark.parametrize("kind", ["update", "approval"])
async def test_updates_and_questions_raise_nothing(pager: PagerDutyDouble, tmp_path: Path, kind: str) -> None:
    """A pager is for waking people; the page of a run that waits goes out by itself."""
    plan, receipt = await tell(connect(tmp_path, pager), {**VALUES, "kind": kind})
    assert plan.noop
    assert pager.received == []
    assert "raises no alert" in receipt.message


async def test_optional_alerts_never_swallow_the_page(pager: PagerDutyDouble, tmp_path: Path) -> None:
    """A question may raise a warning: with a key of its own, or the page to come would be folded into it; the end ends both."""
    connection, wish = connect(tmp_path, pager), {"trigger_on": {"approval": "warning"}}
    await tell(connection, {**VALUES, "kind": "approval"}, **wish)
    assert pager.taken[0].json["payload"]["severity"] == "warning"
    await tell(connection, VALUES, **wish)
    assert pager.alerts == {"INC-20260101-001/approval": "triggered", "INC-20260101-001": "triggered"}
    await tell(connection, {**VALUES, "kind": "resolved"}, **wish)
    assert set(pager.alerts.values()) == {"resolved"}


async def test_digest_of_a_storm_wakes_people_and_ends(pager: PagerDutyDouble, tmp_path: Path) -> None:
    """It stands for all pages that are held back: were it silent, a storm would reach nobody."""
    connection, storm = (
        connect(tmp_path, pager),
        {"kind": "digest", "incident": "storm-1", "severity": "sev1", "summary": "Storm: 812 incidents"},
    )
    await tell(connection, {**storm, "state": "lasts"})
    await tell(connection, {**storm, "state": "after"})
    assert pager.alerts == {"storm-1/digest": "triggered"}
    assert pager.taken[0].json["payload"]["severity"] == "critical"
    await tell(connection, {**storm, "state": "over"})
    assert pager.alerts == {"storm-1/digest": "resolved"}


async def test_alarm_of_the_daemon_itself_wakes_people_and_ends(pager: PagerDutyDouble, tmp_path: Path) -> None:
    """A lost watchdog rings, once for each loss, and its return makes it quiet: one alert, told from the next loss."""
    connection, at = connect(tmp_path, pager), datetime(2026, 11, 21, 12, tzinfo=UTC)
    words: dict[str, Any] = {"summary": "The watchdog is not heard", "text": "so it is", "policy": "default", "due": at, "dry_run": False}
    first, second = (alarm(f"watchdog:00/{number}", **words) for number in (1, 2))
    for message in (first, second, all_clear("watchdog:00/1", **words)):
        await tell(connection, facts_of(message, public_url=None))
    assert pager.alerts == {"watchdog:00/1": "resolved", "watchdog:00/2": "triggered"}
    assert pager.taken[0].json["payload"]["severity"] == "critical"


async def test_severity_that_nobody_mapped_is_critical(pager: PagerDutyDouble, tmp_path: Path) -> None:
    """Doubt wakes somebody."""
    await tell(connect(tmp_path, pager), {**VALUES, "severity": "p0"})
    assert pager.taken[0].json["payload"]["severity"] == "critical"


async def test_s13_page_in_dry_run_goes_out_and_says_so(pager: PagerDutyDouble, tmp_path: Path) -> None:
    """Marked where the phone shows it."""
    await tell(connect(tmp_path, pager), {**VALUES, "dry_run": True})
    payload = pager.taken[0].json["payload"]
    assert payload["summary"].startswith("DRY RUN · SEV2")
    assert payload["custom_details"]["dry_run"] is True


@pytest.mark.parametrize(("event", "state"), [("trigger", "triggered"), ("acknowledge", "acknowledged"), ("resolve", "resolved")])
async def test_step_of_a_rule_says_what_it_sends(pager: PagerDutyDouble, tmp_path: Path, event: str, state: str) -> None:
    """A step has no kind; it concerns its incident's alert."""
    await tell(connect(tmp_path, pager), VALUES)
    await tell(connect(tmp_path, pager), {name: value for name, value in VALUES.items() if name not in ("kind", "page")}, event=event)
    assert pager.alerts == {"INC-20260101-001": state}


@given(
    values=st.fixed_dictionaries(
        {name: st.text(max_size=2_000) for name in ("summary", "rule", "target", "severity", "incident", "text", "link")}
    )
)
async def test_no_values_break_pagerdutys_schema(values: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever an alert says, the event is one that PagerDuty takes."""
    double = PagerDutyDouble()
    connection = connect(tmp_path_factory.mktemp("pager"), double).model_copy(update={"url": "https://pager.example.com"})
    ctx = LocalContext({"pager": connection}, values={**VALUES, **values, "page": values["incident"]})
    plan = await PagerDuty().plan(PagerDuty.Params(connection="pager", text=values["text"] or "x"), ctx)
    (message,) = await PagerDuty().messages(plan, ctx)
    assert message.url == "https://pager.example.com/v2/enqueue"
    answer = double.judge(Received("POST", ENQUEUE, {"content-type": "application/json"}, message.body))
    assert answer.status == 202, answer.body


async def test_two_daemons_on_one_integration_keep_apart(pager: PagerDutyDouble, tmp_path: Path) -> None:
    """Both count incidents from 001: a prefix keeps the one from resolving the other's alert."""
    production = connect(tmp_path, pager)
    staging = production.model_copy(update={"prefix": "staging/"})
    for connection in (production, staging):
        await tell(connection, VALUES)
    await tell(staging, {**VALUES, "kind": "resolved"})
    assert pager.alerts == {"INC-20260101-001": "triggered", "staging/INC-20260101-001": "resolved"}


async def test_details_too_large_for_an_event_do_not_keep_the_page(pager: PagerDutyDouble, tmp_path: Path) -> None:
    """It goes out with its text alone."""
    await tell(connect(tmp_path, pager), VALUES, details={f"d{number}": "\u2026" * 8_000 for number in range(50)})
    details = pager.taken[0].json["payload"]["custom_details"]
    assert details == {"text": VALUES["text"], "left_out": "all details: together they were too large"}


def test_long_key_stays_the_same_key() -> None:
    """PagerDuty takes 255 characters; a hash of more is as good."""
    assert dedup_key("INC-1") == "INC-1"
    assert dedup_key("x" * 256) == dedup_key("x" * 256)
    assert len(dedup_key("x" * 256)) == 64


@pytest.mark.parametrize(
    ("reply", "error", "delay"),
    [
        (Reply(400, {"status": "invalid event", "errors": [f"bad key {PagerDutyDouble.KEY}"]}), PermanentError, None),
        (Reply(429, "slow down", headers={"Retry-After": "30"}), TemporaryError, timedelta(seconds=30)),
        (Reply(429), TemporaryError, None),
        (Reply(500), TemporaryError, None),
        (Reply(503), TemporaryError, None),
        (Reply(403, PagerDutyDouble.KEY), PermanentError, None),
        (Reply(302, headers={"Location": "https://elsewhere.example.com"}), PermanentError, None),
    ],
)
async def test_refusals_are_told_without_the_key(
    pager: PagerDutyDouble, tmp_path: Path, reply: Reply, error: type[RemediatorError], delay: timedelta | None
) -> None:
    """202 is done, 400 won't get better, 429 and 5xx are tried again."""
    pager.set(ENQUEUE, reply)
    with pytest.raises(error) as caught:
        await tell(connect(tmp_path, pager), VALUES)
    assert PagerDutyDouble.KEY not in str(caught.value)
    assert getattr(caught.value, "delay", None) == delay


async def test_s17_lost_answer_is_unknown(pager: PagerDutyDouble, tmp_path: Path) -> None:
    """The event may have arrived; sent again it has the same key."""
    pager.set(ENQUEUE, Misbehaviour.CLOSE)
    with pytest.raises(OutcomeUnknown):
        await tell(connect(tmp_path, pager), VALUES)
    assert len(pager.received) == 1


async def test_plan_and_receipt_hold_no_key(pager: PagerDutyDouble, tmp_path: Path) -> None:
    """What is stored could be shown to anybody."""
    plan, receipt = await tell(connect(tmp_path, pager), VALUES)
    assert PagerDutyDouble.KEY.encode() not in canonical([to_json(plan), to_json(receipt)])


@pytest.mark.parametrize("key", ["too-short", "", "R0" + "k" * 29 + "\n", "R0" + "k" * 31])
async def test_key_that_can_not_be_one_is_not_sent(pager: PagerDutyDouble, tmp_path: Path, key: str) -> None:
    """Nor shown."""
    with pytest.raises(PermanentError, match="not 32 letters and digits") as caught:
        await tell(connect(tmp_path, pager, f"{key} x"), VALUES)
    assert not key or key not in str(caught.value)
    assert pager.received == []


async def test_link_that_is_none_is_refused(pager: PagerDutyDouble, tmp_path: Path) -> None:
    """Links lead to http(s)."""
    with pytest.raises(PlanRefused, match="not an http"):
        await tell(connect(tmp_path, pager), VALUES, links={"x": "javascript:alert(1)"})


@pytest.mark.parametrize(
    "settings",
    [
        {"url": "http://events.example.com"},
        {"region": "mars"},
        {"severities": {"sev1": "fatal"}},
        {"url": "https://u:p@events.example.com"},
    ],
)
def test_wrong_settings_are_found_when_they_load(settings: dict[str, Any]) -> None:
    """The key is not sent where everybody on the way can read it."""
    with pytest.raises(ValidationError):
        PagerDutyConnection.model_validate({"routing_key": {"env": "KEY"}} | settings)


def test_regions() -> None:
    """Accounts of the European region live elsewhere."""
    at = {region: PagerDutyConnection.model_validate({"routing_key": {"env": "K"}, "region": region}).address for region in ("us", "eu")}
    assert at == {"us": "https://events.pagerduty.com/v2/enqueue", "eu": "https://events.eu.pagerduty.com/v2/enqueue"}


@pytest.mark.parametrize("kind", [Kind.PAGE, Kind.RESOLVED, Kind.ACKNOWLEDGED])
def test_what_a_page_does_can_not_be_changed(kind: Kind) -> None:
    """Only what is optional can be made to trigger."""
    with pytest.raises(ValidationError, match="a page always triggers"):
        PagerDuty.Params.model_validate({"connection": "pager", "text": "x", "trigger_on": {kind.value: "info"}})
