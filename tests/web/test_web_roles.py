"""Who may do what: every route against every role."""

from __future__ import annotations

import pytest
from aiohttp import ClientSession

from remediator.people.authentication import Operation, Role
from remediator.web.app import ROUTES
from remediator.web.routes import Route
from tests.servers.surface import Surface, bearer

READERS = {Role.VIEWER, Role.RESPONDER, Role.APPROVER, Role.RULE_EDITOR, Role.ADMIN}
RESPONDERS = {Role.RESPONDER, Role.APPROVER, Role.ADMIN}

EXPECTED: dict[str, set[Role]] = {
    "receiveAlerts": {Role.ALERT_SENDER, Role.ADMIN},
    "acknowledgeIncident": RESPONDERS,
    **dict.fromkeys(("takeIncident", "releaseIncident", "takeTarget", "releaseTarget"), RESPONDERS),
    "signalRun": RESPONDERS,
    "undoRun": RESPONDERS,
    "decideApproval": {Role.APPROVER, Role.ADMIN},
    "pause": RESPONDERS,
    "resume": {Role.APPROVER, Role.ADMIN},
    "freeze": RESPONDERS,
    "thaw": {Role.APPROVER, Role.ADMIN},
    "listFreezes": READERS,
    "promoteRule": {Role.APPROVER, Role.ADMIN},
    "demoteRule": RESPONDERS,
    "getScorecard": READERS,
    "rehearse": RESPONDERS | {Role.RULE_EDITOR},
    "reload": {Role.RULE_EDITOR, Role.ADMIN},
    "exportAudit": RESPONDERS,
    "verifyAudit": READERS,
    **dict.fromkeys(
        (
            "listIncidents",
            "getIncident",
            "listIncidentEvents",
            "getIncidentEscalation",
            "listRuns",
            "getRun",
            "listApprovals",
            "getApproval",
        ),
        READERS,
    ),
    **dict.fromkeys(("listEvents", "listRules", "getRule", "listActions", "listChecks", "getStatus"), READERS),
}
"""Written down by hand: a change of the table in the code must be wanted here too."""

OPEN = {"getHealthy", "getReady", "getMetrics", "getOpenapi"}


def path_of(route: Route) -> str:
    return route.path.replace("{incident}", "x").replace("{run}", "x").replace("{approval}", "x").replace("{rule}", "x")


def test_every_route_has_a_decision() -> None:
    """No route is left to chance: it is open on purpose, or its roles are written down."""
    assert {route.name for route in ROUTES} == EXPECTED.keys() | OPEN
    assert {route.name for route in ROUTES if route.operation is None} == OPEN


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
async def test_roles(surface: Surface, http: ClientSession, route: Route) -> None:
    """A role outside of the expected ones gets 403, one inside gets past that; without credentials it is 401."""
    url = surface.url + path_of(route)
    for role in Role:
        async with http.request(route.method, url, headers=bearer(role)) as answer:
            refused = answer.status == 403
        allowed = route.name in OPEN or role in EXPECTED[route.name]
        assert refused != allowed, f"{role} on {route.name}: {answer.status}"
    async with http.request(route.method, url) as answer:
        assert (answer.status == 401) == (route.name not in OPEN)


async def test_nothing_is_changed_by_those_who_may_not(surface: Surface, http: ClientSession) -> None:
    """A refused change is no change."""
    for role in (Role.VIEWER, Role.ALERT_SENDER, Role.RULE_EDITOR):
        async with http.post(f"{surface.url}/api/v1/pause", json={"reason": "x"}, headers=bearer(role)) as answer:
            assert answer.status == 403
    assert await surface.service.store.pauses() == {}


async def test_responder_may_stop_but_not_let_act(surface: Surface, http: ClientSession) -> None:
    """Letting a run act again (resume, undo) asks for more than ending it: it needs what lifting the kill switch needs."""
    url = f"{surface.url}/api/v1/runs/none/signals"
    for kind, status in (("resume", 403), ("undo", 403), ("close", 404), ("settle_applied", 404)):
        async with http.post(url, json={"kind": kind}, headers=bearer(Role.RESPONDER)) as answer:
            assert answer.status == status, kind
        async with http.post(url, json={"kind": kind}, headers=bearer(Role.APPROVER)) as answer:
            assert answer.status == 404, kind


async def test_responder_may_see_an_undo_but_not_ask_for_it(surface: Surface, http: ClientSession) -> None:
    """So it is with undoing an ended run: what it would do is for all who respond."""
    url = f"{surface.url}/api/v1/runs/none/undo"
    for role, plan, status in (
        (Role.RESPONDER, True, 404),
        (Role.RESPONDER, False, 403),
        (Role.APPROVER, False, 404),
        (Role.VIEWER, True, 403),
    ):
        async with http.post(url, json={"plan": plan}, headers=bearer(role)) as answer:
            assert answer.status == status, (role, plan)


def test_operations_are_all_used() -> None:
    """An operation that no route asks for would be a right to nothing. Forcing a promotion is asked about by the promotion's route."""
    assert {route.operation for route in ROUTES} - {None} == set(Operation) - {Operation.PROMOTE_UNEARNED}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
async def test_pages_of_other_sites_change_nothing(surface: Surface, http: ClientSession, headers: dict[str, str], status: int) -> None:
    """A browser adds basic credentials and certificates by itself, so what another site's page sends is refused."""
    url = f"{surface.url}/api/v1/incidents/INC-20261121-001/acknowledge"
    async with http.post(url, headers=bearer(Role.RESPONDER) | headers) as answer:
        assert answer.status == status
