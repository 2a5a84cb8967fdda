"""`notify.status_page`: one incident on the page for one of ours, nothing twice, nothing internal."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from actions.notify.status_page import StatusPage, StatusPageConnection
from remediator.action import Settled
from remediator.errors import OutcomeUnknown, PermanentError, PlanRefused, PreconditionChanged, RemediatorError, TemporaryError
from remediator.model import JSON, Plan, Receipt, canonical, to_json
from remediator.testing import ActionConformance, LocalContext
from tests.servers.http import Misbehaviour, Reply
from tests.servers.receivers import StatuspageDouble

VALUES: Mapping[str, Any] = {
    "kind": "page",
    "incident": "INC-20260101-001",
    "page": "INC-20260101-001",
    "severity": "sev1",
    "summary": "internal summary of redis-7 in shop",
    "rule": "redis-down",
    "target": "statefulset/shop/redis",
    "reason": "internal reason",
    "opened_at": "2026-01-01T10:15:00+00:00",
    "text": "internal text",
}
FIELDS = {"service": "Sync", "impact": "Rooms do not update"}
WISH = {"connection": "public", "template": "sre-customers", "fields": FIELDS, "components": {"api": "partial_outage"}, "impact": "major"}
ROOT = f"/v1/pages/{StatuspageDouble.PAGE}/incidents"


@pytest.fixture
async def page() -> AsyncIterator[StatuspageDouble]:
    """Start a status page that takes what is documented and nothing else."""
    async with StatuspageDouble() as server:
        yield server


def connect(directory: Path, url: str, key: str = StatuspageDouble.KEY) -> StatusPageConnection:
    """Return a connection to the page."""
    (directory / "key").write_text(f"{key}\n")
    raw = {"api_key": {"file": str(directory / "key")}, "page": StatuspageDouble.PAGE, "url": f"{url}/v1", "timeout": "1s"}
    return StatusPageConnection.model_validate(raw | {"components": {"api": "comp1", "web": "comp2"}})


class Teller:
    """Sends messages as the outbox does: each key again and again until it is delivered."""

    def __init__(self, server: StatuspageDouble, directory: Path) -> None:
        self.connection = connect(directory, server.url)

    def context(self, key: str, values: Mapping[str, Any]) -> LocalContext:
        """Return the context of one attempt."""
        return LocalContext({"public": self.connection}, values=values, key=key)

    async def tell(self, key: str, kind: str, wish: Mapping[str, Any] = WISH, **values: Any) -> tuple[Plan, Receipt]:
        """Plan and apply one message."""
        ctx = self.context(key, {**VALUES, "kind": kind, **values})
        try:
            plan = await StatusPage().plan(StatusPage.Params.model_validate(wish), ctx)
            return plan, await StatusPage().apply(plan, ctx)
        finally:
            await ctx.aclose()


@pytest.fixture
def teller(page: StatuspageDouble, tmp_path: Path) -> Teller:
    """Return somebody who tells the page."""
    return Teller(page, tmp_path)


class TestConformance(ActionConformance):
    """`notify.status_page` keeps the contract of actions: a read tells whether a message is on the page."""

    action = StatusPage()
    server: ClassVar[StatuspageDouble] = StatuspageDouble()

    @pytest.fixture(autouse=True)
    def _directory(self, tmp_path: Path) -> None:
        self.directory = tmp_path

    async def prepare(self) -> tuple[LocalContext, Mapping[str, Any]]:
        """Start an empty page, on the port that it had."""
        self.server.incidents.clear()
        await self.server.start()
        return LocalContext({"public": connect(self.directory, self.server.url)}, values=VALUES), WISH

    async def state(self) -> JSON:
        """What the page shows."""
        return [self.server.incidents, self.server.components]

    async def disturb(self) -> None:
        """Somebody else opens the incident meanwhile."""
        note = {"remediator": {"incident": VALUES["incident"], "keys": "0000000000000000", "status": "investigating"}}
        self.server.incidents.insert(0, {"id": "other", "status": "investigating", "metadata": note, "components": []})

    async def cleanup(self) -> None:
        """Stop it."""
        await self.server.stop()
        self.server.components = dict.fromkeys(StatuspageDouble.COMPONENTS, "operational")


async def test_course_of_an_incident(page: StatuspageDouble, teller: Teller) -> None:
    """Page creates, update updates, the end resolves; the component goes down and comes back."""
    await teller.tell("m1", "page")
    (incident,) = page.incidents
    assert (incident["name"], incident["status"], incident["impact_override"]) == (
        "Service Disruption Notification",
        "investigating",
        "major",
    )
    assert "Impact: Rooms do not update" in incident["incident_updates"][0]["body"]
    assert page.components == {"comp1": "partial_outage", "comp2": "operational"}
    await teller.tell("m2", "update", state="verifying")
    assert (incident["status"], len(incident["incident_updates"])) == ("monitoring", 2)
    assert page.components["comp1"] == "partial_outage"
    await teller.tell("m3", "resolved")
    assert (incident["status"], page.components["comp1"]) == ("resolved", "operational")
    assert [request.method for request in page.taken] == ["POST", "PATCH", "PATCH"]


@pytest.mark.parametrize("kind", ["acknowledged", "approval", "digest"])
async def test_customers_need_not_know_of_everything(page: StatuspageDouble, teller: Teller, kind: str) -> None:
    """Who has acknowledged or must approve is ours; the page is not even asked."""
    plan, _ = await teller.tell("m1", kind)
    assert (plan.noop, page.received) == (True, [])


async def test_message_that_comes_twice_is_published_once(page: StatuspageDouble, teller: Teller) -> None:
    """The page's own notes tell which messages it has, also after the end."""
    for key, kind in (("m1", "page"), ("m2", "update"), ("m3", "resolved")):
        for _ in range(3):
            await teller.tell(key, kind)
    await teller.tell("m1", "page")
    assert len(page.taken) == 3
    assert len(page.incidents) == 1


async def test_second_page_of_an_incident_creates_nothing(page: StatuspageDouble, teller: Teller) -> None:
    """Another level's page has another key and is about the same."""
    await teller.tell("m1", "page")
    plan, _ = await teller.tell("m2", "page", level=2)
    assert plan.noop
    assert len(page.incidents) == 1


async def test_relapse_after_the_end_is_a_new_incident_for_customers(page: StatuspageDouble, teller: Teller) -> None:
    """A resolved one is not opened again."""
    for key, kind in (("m1", "page"), ("m2", "resolved"), ("m3", "page")):
        await teller.tell(key, kind)
    assert [one["status"] for one in page.incidents] == ["investigating", "resolved"]


@pytest.mark.parametrize("kind", ["update", "resolved"])
async def test_update_of_what_was_never_published_publishes_nothing(page: StatuspageDouble, teller: Teller, kind: str) -> None:
    """Somebody took it off, or it never was for customers; other people's incidents are left alone."""
    page.incidents.append({"id": "manual1", "status": "investigating", "metadata": {}, "components": [], "incident_updates": []})
    plan, _ = await teller.tell("m1", kind)
    assert (plan.noop, page.taken) == (True, [])


async def test_s17_lost_answer_creates_no_second_incident(page: StatuspageDouble, teller: Teller) -> None:
    """The page took it and its answer was lost: that is unknown, a read tells, and the next attempt finds it."""
    ctx = teller.context("m1", VALUES)
    plan = await StatusPage().plan(StatusPage.Params.model_validate(WISH), ctx)
    page.lose_next = True
    with pytest.raises(OutcomeUnknown):
        await StatusPage().apply(plan, ctx)
    assert (await StatusPage().reconcile(plan, ctx)).settled is Settled.APPLIED
    await StatusPage().apply(plan, ctx)
    await ctx.aclose()
    await teller.tell("m1", "page")
    assert (len(page.incidents), len(page.taken)) == (1, 1)


async def test_lost_reading_is_only_temporary(page: StatuspageDouble, teller: Teller) -> None:
    """Nothing was written, and it is known that it was not."""
    ctx = teller.context("m1", VALUES)
    plan = await StatusPage().plan(StatusPage.Params.model_validate(WISH), ctx)
    page.set(f"{ROOT}/unresolved", Misbehaviour.CLOSE)
    with pytest.raises(TemporaryError):
        await StatusPage().apply(plan, ctx)
    page.replies.clear()
    assert (await StatusPage().reconcile(plan, ctx)).settled is Settled.NOT_APPLIED
    await ctx.aclose()


async def test_world_that_moved_is_planned_anew(page: StatuspageDouble, teller: Teller) -> None:
    """Another daemon published between plan and apply: nothing is created beside it."""
    ctx = teller.context("m2", VALUES)
    plan = await StatusPage().plan(StatusPage.Params.model_validate(WISH), ctx)
    await teller.tell("m1", "page")
    with pytest.raises(PreconditionChanged):
        await StatusPage().apply(plan, ctx)
    await ctx.aclose()
    assert len(page.incidents) == 1


async def test_markup_in_a_steps_words_is_none_on_the_page(page: StatuspageDouble, teller: Teller) -> None:
    """A rule may put a label into its own words; no tag and no disguised link comes of that, and the operator's link stays."""
    evil = "<a href='https://evil.example.com'>x</a> [y](https://evil.example.com)"
    await teller.tell("m1", "", {**WISH, "name": evil, "body": f"{evil} https://status.example.com"})
    published = page.taken[0].json["incident"]
    assert not set("<>") & set(published["name"] + published["body"])
    assert "](" not in published["name"] + published["body"]
    assert published["body"].endswith(" https://status.example.com")


async def test_two_daemons_on_one_page_keep_apart(page: StatuspageDouble, tmp_path: Path) -> None:
    """Both count incidents from 001: a prefix keeps the one from resolving what the other published."""
    production, staging = Teller(page, tmp_path), Teller(page, tmp_path)
    staging.connection = staging.connection.model_copy(update={"prefix": "staging/"})
    await production.tell("m1", "page")
    await staging.tell("m1", "page")
    await staging.tell("m2", "resolved")
    assert [one["status"] for one in page.incidents] == ["resolved", "investigating"]


async def test_person_who_writes_between_plan_and_apply_is_not_overwritten(page: StatuspageDouble, teller: Teller) -> None:
    """The page is read again right before it is written."""
    await teller.tell("m1", "page")
    ctx = teller.context("m2", {**VALUES, "kind": "resolved"})
    plan = await StatusPage().plan(StatusPage.Params.model_validate(WISH), ctx)
    page.incidents[0]["status"] = "identified"
    with pytest.raises(PreconditionChanged):
        await StatusPage().apply(plan, ctx)
    await ctx.aclose()
    assert page.incidents[0]["status"] == "identified"


async def test_component_of_another_open_incident_stays_down(page: StatuspageDouble, teller: Teller) -> None:
    """Two incidents, one component: the end of the first does not make it well."""
    await teller.tell("m1", "page")
    await teller.tell("m2", "page", incident="INC-20260101-002", page="INC-20260101-002")
    await teller.tell("m3", "resolved")
    assert page.components["comp1"] == "partial_outage"
    await teller.tell("m4", "resolved", incident="INC-20260101-002", page="INC-20260101-002")
    assert page.components["comp1"] == "operational"


async def test_update_that_says_nothing_new_is_not_published(page: StatuspageDouble, teller: Teller) -> None:
    """A run has many steps; subscribers hear of what changes for them."""
    await teller.tell("m1", "page")
    for number, state in enumerate(("applying", "applying", "verifying", "verifying", "verifying")):
        await teller.tell(f"u{number}", "update", state=state)
    assert [one["status"] for one in page.incidents[0]["incident_updates"]] == ["monitoring", "identified", "investigating"]


@pytest.mark.parametrize("kind", ["update", "resolved"])
async def test_incident_that_a_person_goes_on_with_is_theirs(page: StatuspageDouble, teller: Teller, kind: str) -> None:
    """Somebody wrote on the page what they know better; an alert that ends must not announce that all is well over their heads."""
    await teller.tell("m1", "page")
    page.incidents[0]["status"] = "identified"
    plan, receipt = await teller.tell("m2", kind)
    assert (plan.noop, page.incidents[0]["status"]) == (True, "identified")
    assert "a person has changed" in receipt.message


async def test_notes_of_other_programs_stay(page: StatuspageDouble, teller: Teller) -> None:
    """What somebody else keeps in the incident's metadata is sent back as it was."""
    await teller.tell("m1", "page")
    page.incidents[0]["metadata"]["tickets"] = {"id": "OPS-1"}
    await teller.tell("m2", "resolved")
    assert page.incidents[0]["metadata"]["tickets"] == {"id": "OPS-1"}
    assert page.incidents[0]["status"] == "resolved"


async def test_nothing_internal_is_published(page: StatuspageDouble, teller: Teller) -> None:
    """Whatever the daemon and the alert say: customers read the operator's words, and times."""
    for key, kind in (("m1", "page"), ("m2", "update"), ("m3", "resolved")):
        await teller.tell(key, kind)
    published = json.dumps([request.json["incident"] | {"metadata": None} for request in page.taken])
    for word in ("internal", "redis", "shop", "INC-"):
        assert word not in published


async def test_s13_customers_never_hear_of_a_dry_run(page: StatuspageDouble, teller: Teller) -> None:
    """Pages to our people go out marked; a public page is no place for rehearsals."""
    plan, receipt = await teller.tell("m1", "page", dry_run=True)
    assert (plan.noop, page.received) == (True, [])
    assert "dry run" in receipt.message


@pytest.mark.parametrize(("publish", "statuses"), [("create", ["investigating"]), ("update", ["identified"]), ("resolve", ["resolved"])])
async def test_step_of_a_rule_says_what_it_does(page: StatuspageDouble, teller: Teller, publish: str, statuses: list[str]) -> None:
    """With its own words, if it has some."""
    if publish != "create":
        await teller.tell("m0", "page")
    await teller.tell("m1", "", {**WISH, "publish": publish, "name": "Slow sync", "body": "We know."}, state="applying")
    assert [one["status"] for one in page.incidents] == statuses
    assert page.incidents[0]["incident_updates"][0]["body"] == "We know."


@given(st.text(max_size=500), st.text(max_size=30_000).filter(str.strip))
def test_no_words_break_the_limits(name: str, body: str) -> None:
    """255 for the name, 25,000 for the body, whatever a rule puts into them."""
    if len(name) > 255 or len(body) > 25_000:
        with pytest.raises(ValidationError):
            StatusPage.Params.model_validate({**WISH, "name": name, "body": body})
    else:
        assert StatusPage.Params.model_validate({**WISH, "name": name, "body": body}).body == body


@pytest.mark.parametrize(
    ("status", "error", "delay"),
    [
        (401, PermanentError, None),
        (422, PermanentError, None),
        (420, TemporaryError, 20),
        (429, TemporaryError, 20),
        (503, TemporaryError, 20),
    ],
)
async def test_refusals_are_told_without_the_key(
    page: StatuspageDouble, teller: Teller, status: int, error: type[RemediatorError], delay: int | None
) -> None:
    """420 is Statuspage's way to ask for calm."""
    page.set(f"{ROOT}/unresolved", Reply(status, f"no {StatuspageDouble.KEY}", headers={"Retry-After": "20"} if delay else {}))
    with pytest.raises(error, match=str(status)) as caught:
        await teller.tell("m1", "page")
    assert "s3cret" not in str(caught.value)
    assert getattr(caught.value, "delay", None) == (timedelta(seconds=delay) if delay else None)


@pytest.mark.parametrize("answer", ["<html>", {"error": "x"}, '{"a": '])
async def test_page_that_answers_nonsense_is_left_alone(page: StatuspageDouble, teller: Teller, answer: Any) -> None:
    """What is not a list of incidents is not *no incidents*."""
    page.set(f"{ROOT}/unresolved", Reply(200, answer))
    with pytest.raises(TemporaryError):
        await teller.tell("m1", "page")
    assert {request.method for request in page.received} == {"GET"}


async def test_odd_incidents_of_others_are_no_trouble(page: StatuspageDouble, teller: Teller) -> None:
    """Their metadata may be anything."""
    for number, metadata in enumerate((None, [], {"remediator": "x"}, {"remediator": {"incident": 7, "keys": None}})):
        page.incidents.append({"id": f"odd{number}", "status": "investigating", "metadata": metadata, "components": None})
    await teller.tell("m1", "page")
    assert len(page.taken) == 1


@pytest.mark.parametrize(
    ("wish", "fault"),
    [
        ({"template": "sre"}, "not for customers"),
        ({"template": "nope"}, "there is no template"),
        ({"components": {"api": "on fire"}}, "components"),
        ({"kinds": ["paging"]}, "kinds"),
        ({"text": "x"}, "text"),
        ({"fields": {}, "template": "syncwatch-customers"}, "needs `fields` with service"),
    ],
)
def test_wrong_parameters_are_found_when_settings_load(wish: dict[str, Any], fault: str) -> None:
    """A page is never given the daemon's own words: it has no parameter for them."""
    with pytest.raises(ValidationError, match=fault):
        StatusPage.Params.model_validate(WISH | wish)


async def test_component_that_is_not_listed_is_refused(page: StatuspageDouble, teller: Teller) -> None:
    """Only what the connection lists may be changed."""
    with pytest.raises(PlanRefused, match=r"no components \['db'\]; it has \['api', 'web'\]"):
        await teller.tell("m1", "page", {**WISH, "components": {"db": "major_outage"}})
    assert page.received == []


@pytest.mark.parametrize(
    "settings",
    [{"url": "http://api.example.com/v1"}, {"bearer": {"env": "X"}}, {"page": "a/b"}, {"components": {"api": "../x"}}, {"page": ""}],
)
def test_wrong_settings_are_found_when_they_load(settings: dict[str, Any]) -> None:
    """The key goes to https only, and ids are ids."""
    with pytest.raises(ValidationError):
        StatusPageConnection.model_validate({"api_key": {"env": "KEY"}, "page": "abc123"} | settings)


async def test_plan_and_receipt_hold_no_key(teller: Teller) -> None:
    """What is stored could be shown to anybody."""
    plan, receipt = await teller.tell("m1", "page")
    assert b"s3cret" not in canonical([to_json(plan), to_json(receipt)])


async def test_key_that_can_not_be_a_header_is_not_sent(page: StatuspageDouble, tmp_path: Path) -> None:
    """Nor shown."""
    teller = Teller(page, tmp_path)
    (tmp_path / "key").write_text("s3cret\r\nX-Other: 1")
    with pytest.raises(PermanentError) as caught:
        await teller.tell("m1", "page")
    assert "s3cret" not in str(caught.value)
    assert page.received == []
