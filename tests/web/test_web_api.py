"""The API: lists, single things, decisions, evidence, audit, status."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import ClientError, ClientSession

from remediator.audit import verify_export
from remediator.errors import StoreUnavailable
from remediator.model import RunState
from remediator.reconciliation.findings import Unanswered
from remediator.records import SignalKind
from remediator.service import Reloaded
from remediator.store.protocol import Changes, Reads
from tests.servers.surface import APPROVAL, INCIDENT, NOW, PLAN_HASH, RUN, SECRET_LINE, Surface, bearer, make_run


async def get(http: ClientSession, surface: Surface, path: str, role: str = "viewer") -> Any:
    async with http.get(surface.url + path, headers=bearer(role)) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json()


async def post(http: ClientSession, surface: Surface, path: str, body: Any, role: str) -> tuple[int, Any]:
    async with http.post(surface.url + path, json=body, headers=bearer(role)) as answer:
        return answer.status, await answer.json()


# --- lists


async def test_pages_follow_each_other_without_gap_or_double(surface: Surface, http: ClientSession) -> None:
    """`next` of a page is `before` of the next one; the last page says null."""
    seen: list[str] = []
    before = ""
    while before is not None:
        page = await get(http, surface, f"/api/v1/incidents?limit=1{f'&before={before}' if before else ''}")
        seen += [item["id"] for item in page["items"]]
        before = page["next"]
    assert seen == ["INC-20261121-003", "INC-20261121-002", "INC-20261121-001"]


async def test_lists_are_filtered(surface: Surface, http: ClientSession) -> None:
    """States may be repeated, and filters that fit nothing give an empty page."""
    assert len((await get(http, surface, "/api/v1/incidents?state=open&state=escalated"))["items"]) == 3
    assert (await get(http, surface, "/api/v1/incidents?state=resolved")) == {"items": [], "next": None}
    assert (await get(http, surface, "/api/v1/incidents?rule=none"))["items"] == []
    assert [run["id"] for run in (await get(http, surface, f"/api/v1/runs?incident={INCIDENT}&state=awaiting_approval"))["items"]] == [RUN]
    assert len((await get(http, surface, "/api/v1/approvals?state=pending"))["items"]) == 1


async def test_events_are_paged_in_order(surface: Surface, http: ClientSession) -> None:
    """Events come oldest first; `next` is the next call's `after`."""
    first = await get(http, surface, f"/api/v1/incidents/{INCIDENT}/events?limit=2")
    assert [event["seq"] for event in first["items"]] == [1, 2]
    rest = await get(http, surface, f"/api/v1/events?chain={INCIDENT}&after={first['next']}")
    assert [event["seq"] for event in rest["items"]] == [3]
    assert rest["next"] is None


# --- evidence


async def test_s04_evidence_is_for_responders_and_above(surface: Surface, http: ClientSession) -> None:
    """Facts that a check declares as evidence, and facts that no check declares, are dropped for viewers and rule editors."""
    for path in (f"/api/v1/runs/{RUN}", f"/api/v1/incidents/{INCIDENT}/events", f"/api/v1/approvals/{APPROVAL}"):
        for role in ("viewer", "rule_editor"):
            assert SECRET_LINE not in json.dumps(await get(http, surface, path, role)), f"{role} sees evidence at {path}"
    for role in ("responder", "approver", "admin"):
        run = await get(http, surface, f"/api/v1/runs/{RUN}", role)
        assert run["facts"]["checks.logs.lines"] == [SECRET_LINE]
    assert (await get(http, surface, f"/api/v1/runs/{RUN}"))["facts"] == {"checks.logs.count": 3}


async def test_secret_that_a_plan_met_is_shown_to_nobody(http: ClientSession, surface: Surface) -> None:
    """What a workload's field held before may be a password of the daemon's own: not even those who may see evidence see that."""
    paths = (f"/api/v1/runs/{RUN}", f"/api/v1/approvals/{APPROVAL}")
    for path in paths:
        assert "web:43" in json.dumps(await get(http, surface, path, "admin"))
    surface.service.scrubber.learn("web:43")
    for path in paths:
        found = json.dumps(await get(http, surface, path, "admin"))
        assert "web:43" not in found
        assert "web:42" in found


async def test_s04_events_say_when_evidence_was_left_out(surface: Surface, http: ClientSession) -> None:
    """An event without its evidence says so, since its hash can't be recomputed from what is shown."""
    events = (await get(http, surface, f"/api/v1/incidents/{INCIDENT}/events"))["items"]
    assert [event["redacted"] for event in events] == [False, True, False]
    assert events[1]["data"]["conditions"][0]["facts"] == {"checks.logs.count": 3}
    whole = (await get(http, surface, f"/api/v1/incidents/{INCIDENT}/events", "responder"))["items"]
    assert [event["redacted"] for event in whole] == [False, False, False]


async def test_s04_rehearsal_shows_evidence_to_responders_only(surface: Surface, http: ClientSession) -> None:
    """A rule editor may rehearse, but sees counts instead of raw lines."""
    alert = {"labels": {"alertname": "SiteDown"}}
    status, found = await post(http, surface, "/api/v1/rehearse", alert, "rule_editor")
    assert status == 200
    assert found["rehearsals"][0]["checks"]["logs"]["facts"] == {"count": 3}
    assert SECRET_LINE not in json.dumps(found)
    _, found = await post(http, surface, "/api/v1/rehearse", alert, "responder")
    assert SECRET_LINE in json.dumps(found)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ('{"labels": {"a": "\\ud800"}}', 422),
        ('{"labels": {"\\ud800": "a"}}', 422),
        ('{"labels": {"a": 1}}', 422),
        ('{"labels": {}}', 422),
        *(('{"labels": {"a": "b"}, "x": ' + "[" * depth + "]" * depth + "}", None) for depth in range(930, 1000, 5)),
    ],
)
async def test_rehearsal_of_anything_is_an_answer(surface: Surface, http: ClientSession, body: str, status: int | None) -> None:
    """Whatever is sent, the answer says what is wrong with it; nothing is a fault of the daemon."""
    headers = bearer("responder") | {"Content-Type": "application/json"}
    async with http.post(f"{surface.url}/api/v1/rehearse", data=body, headers=headers) as answer:
        assert answer.status in ((200, 400) if status is None else (status,)), await answer.text()


# --- decisions


async def test_approval_shows_the_whole_plan(surface: Surface, http: ClientSession) -> None:
    """Before deciding, a person sees what changes, on what, before and after."""
    found = await get(http, surface, f"/api/v1/approvals/{APPROVAL}")
    assert found["plan_is_current"] is True
    (step,) = found["plan"]
    assert step["plan"]["changes"] == [
        {"target": "kubernetes:prod/shop/Deployment/web", "field": "image", "before": "web:43", "after": "web:42"}
    ]
    assert found["incident"]["summary"] == "the site is down"


async def test_approval_by_the_group_is_recorded_under_the_tokens_name(surface: Surface, http: ClientSession) -> None:
    """The audit trail names the identity of the token, not what a caller says about himself."""
    status, found = await post(http, surface, f"/api/v1/approvals/{APPROVAL}", {"decision": "approve", "plan_hash": PLAN_HASH}, "sre")
    assert (status, found["state"]) == (200, "approved")
    events = await surface.service.store.events(INCIDENT)
    assert (events[-1].kind, events[-1].actor) == ("approval.decided", "sre")


async def test_approval_outside_the_group_is_403(surface: Surface, http: ClientSession) -> None:
    """The role alone does not do: the approval asks for a group."""
    status, found = await post(http, surface, f"/api/v1/approvals/{APPROVAL}", {"decision": "approve"}, "approver")
    assert (status, found["type"]) == (403, "urn:remediator:problem:group")
    approval = await surface.service.store.approval(APPROVAL)
    assert approval is not None
    assert approval.votes == ()


async def test_second_decision_is_409(surface: Surface, http: ClientSession) -> None:
    """An approval is used once."""
    path = f"/api/v1/approvals/{APPROVAL}"
    assert (await post(http, surface, path, {"decision": "deny"}, "sre"))[0] == 200
    status, found = await post(http, surface, path, {"decision": "approve"}, "sre")
    assert (status, found["type"]) == (409, "urn:remediator:problem:closed")


async def test_decision_about_another_plan_is_refused(surface: Surface, http: ClientSession) -> None:
    """Who says which plan he saw can't approve another one."""
    status, found = await post(http, surface, f"/api/v1/approvals/{APPROVAL}", {"decision": "approve", "plan_hash": "b" * 64}, "sre")
    assert (status, found["type"]) == (409, "urn:remediator:problem:other_plan")


async def test_stale_question_shows_no_plan(surface: Surface, http: ClientSession) -> None:
    """When the run has planned anew, the old question does not show the new plan as if it were asked for."""
    moved = make_run(plan_hash="c" * 64)
    await surface.service.store.transact(Reads(), lambda _: Changes(runs=[moved]))
    found = await get(http, surface, f"/api/v1/approvals/{APPROVAL}")
    assert found["plan_is_current"] is False
    assert found["plan"] == []


async def test_signal_reaches_the_run(surface: Surface, http: ClientSession) -> None:
    """A person's word is stored for the run, under his name."""
    unknown = make_run(state=RunState.OUTCOME_UNKNOWN)
    await surface.service.store.transact(Reads(), lambda _: Changes(runs=[unknown]))
    body = {"kind": "settle_not_applied", "comment": "looked at it"}
    status, found = await post(http, surface, f"/api/v1/runs/{RUN}/signals", body, "responder")
    assert (status, found["id"]) == (200, RUN)
    seen = await surface.service.store.read(Reads(runs=[RUN]))
    assert [(one.kind, one.who, one.comment) for one in seen.signals[RUN]] == [(SignalKind.SETTLE_NOT_APPLIED, "responder", "looked at it")]


async def test_signal_that_does_not_fit_is_409(surface: Surface, http: ClientSession) -> None:
    """A run that waits for an approval takes no signal."""
    status, found = await post(http, surface, f"/api/v1/runs/{RUN}/signals", {"kind": "close"}, "responder")
    assert (status, found["type"]) == (409, "urn:remediator:problem:illegal_transition")


async def test_acknowledge_makes_the_caller_owner(surface: Surface, http: ClientSession) -> None:
    """The owner is who the token belongs to."""
    status, found = await post(http, surface, f"/api/v1/incidents/{INCIDENT}/acknowledge", {}, "responder")
    assert (status, found["owner"]) == (200, "responder")


# --- kill switch, reload, status


async def test_pause_is_thrown_shown_and_lifted(surface: Surface, http: ClientSession) -> None:
    """A responder stops everything; everybody sees it; an approver lifts it; lifting it twice is 404."""
    status, found = await post(http, surface, "/api/v1/pause", {"reason": "deploying"}, "responder")
    assert (status, found["scope"], found["who"], found["why"]) == (200, "global", "responder", "deploying")
    assert [pause["scope"] for pause in (await get(http, surface, "/api/v1/status"))["pauses"]] == ["global"]
    assert (await get(http, surface, "/api/v1/rules/site-down"))["paused"] is True
    assert (await post(http, surface, "/api/v1/resume", {}, "approver"))[0] == 200
    assert (await post(http, surface, "/api/v1/resume", {}, "approver"))[0] == 404


async def test_status_tells_of_an_alertmanager_that_does_not_answer(surface: Surface, http: ClientSession) -> None:
    """Which one, and why; nothing when all answer."""
    assert (await get(http, surface, "/api/v1/status"))["alertmanager"] == ""
    surface.service.silent = Unanswered("Alertmanager http://am:9093 did not answer in time", NOW)
    assert (await get(http, surface, "/api/v1/status"))["alertmanager"] == "Alertmanager http://am:9093 did not answer in time"


async def test_refused_reload_lists_every_problem(surface: Surface, http: ClientSession) -> None:
    """A reload that fails is a 422 which names each fault and says that the old rules stay."""
    surface.service.reloaded = Reloaded(ok=False, rules=7, problems=("rules.yaml:1:2: no such action",))
    status, found = await post(http, surface, "/-/reload", None, "admin")
    assert status == 422
    assert found["problems"] == ["rules.yaml:1:2: no such action"]
    assert "stay in force" in found["detail"]


async def test_ready_tells_why_not(surface: Surface, http: ClientSession) -> None:
    """Healthy means that it answers; ready means that it takes alerts."""
    surface.service.not_ready = "the store is closed"
    async with http.get(f"{surface.url}/-/ready") as answer:
        assert answer.status == 503
        assert (await answer.json())["detail"] == "the store is closed"
    async with http.get(f"{surface.url}/-/healthy") as answer:
        assert answer.status == 200


async def test_metrics_count_requests_by_route(surface: Surface, http: ClientSession) -> None:
    """Prometheus gets its text format without credentials; labels are names of routes, never paths."""
    await get(http, surface, f"/api/v1/runs/{RUN}")
    async with http.get(f"{surface.url}/nothing/at/all") as answer:
        assert answer.status == 404
    async with http.get(f"{surface.url}/metrics") as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        text = await answer.text()
    assert 'remediator_http_request_duration_seconds_count{route="getRun",status="2xx"} 1.0' in text
    assert 'remediator_http_request_duration_seconds_count{route="other",status="4xx"} 1.0' in text
    assert RUN not in text


# --- audit


async def test_export_verifies_by_itself(surface: Surface, http: ClientSession) -> None:
    """An export is complete: whoever has it can verify every chain and every checkpoint, and sees when its end is missing."""
    await surface.service.store.checkpoint()
    async with http.get(f"{surface.url}/api/v1/audit/export", headers=bearer("responder")) as answer:
        assert answer.status == 200
        lines = (await answer.read()).splitlines(keepends=True)
    found = verify_export(lines)
    assert found.faults == ()
    assert (found.chains, found.checkpoints) == (2, 1)
    assert json.loads(lines[0])["chain"] == "system"
    assert verify_export(lines[:-1]).faults
    assert verify_export([lines[0].replace(b"remediator", b"somebodyel", 1), *lines[1:]]).faults


async def test_broken_export_is_never_taken_for_whole(surface: Surface, http: ClientSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the store fails in the middle, the transfer breaks off: no client sees a good end."""
    await surface.service.store.checkpoint()
    events = surface.service.store.events

    async def failing(chain: str, **bounds: int) -> Any:
        if chain != "system":
            raise StoreUnavailable("the disk is gone")
        return await events(chain, **bounds)

    monkeypatch.setattr(surface.service.store, "events", failing)
    async with http.get(f"{surface.url}/api/v1/audit/export", headers=bearer("responder")) as answer:
        assert answer.status == 200
        with pytest.raises(ClientError):
            await answer.read()


async def test_verification_finds_nothing_wrong(surface: Surface, http: ClientSession) -> None:
    """The daemon verifies its own trail on request."""
    assert (await get(http, surface, "/api/v1/audit/verify"))["faults"] == []


async def test_run_without_step_plan_is_shown(surface: Surface, http: ClientSession) -> None:
    """A run that has not planned yet is shown as it is."""
    early = replace(make_run(), steps=(), remedy=None, approval=None, plan_hash="")
    await surface.service.store.transact(Reads(), lambda _: Changes(runs=[early]))
    assert (await get(http, surface, f"/api/v1/runs/{RUN}"))["steps"] == []
