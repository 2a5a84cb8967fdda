"""Refusals: problem documents everywhere, with the same headers."""

from __future__ import annotations

import pytest
from aiohttp import ClientSession

from remediator.errors import (
    ApprovalRefused,
    CheckFailed,
    Conflict,
    IllegalTransition,
    InvalidAlerts,
    InvalidFiles,
    NotFound,
    OutcomeUnknown,
    PlanRefused,
    Problem,
    RemediatorError,
    StoreUnavailable,
)
from remediator.web.problems import from_error
from tests.servers.surface import Surface, bearer

VIEWER = bearer("viewer")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/api/v1/incidents/none", 404),
        ("GET", "/api/v1/incidents/none/events", 404),
        ("GET", "/api/v1/runs/none", 404),
        ("GET", "/api/v1/approvals/none", 404),
        ("GET", "/api/v1/rules/none", 404),
        ("DELETE", "/api/v1/incidents", 405),
        ("GET", "/api/v1/alerts", 405),
        ("GET", "/api/v1/incidents?limit=0", 400),
        ("GET", "/api/v1/incidents?limit=1001", 400),
        ("GET", "/api/v1/incidents?limit=ten", 400),
        ("GET", "/api/v1/incidents?limit=1&limit=2", 400),
        ("GET", "/api/v1/incidents?limit=%2B1", 400),
        ("GET", "/api/v1/incidents?limit=%D9%A1", 400),
        ("GET", "/api/v1/incidents?unknown=1", 400),
        ("GET", "/api/v1/incidents?state=none", 400),
        ("GET", "/api/v1/incidents?rule=", 400),
        ("GET", "/api/v1/incidents?rule=a%00b", 400),
        ("GET", "/api/v1/events", 400),
        ("GET", "/api/v1/events?chain=system&after=-1", 400),
        ("GET", "/api/v1/status?verbose=1", 400),
        ("GET", "/api/v1/incidents/..%2F..%2Fetc%2Fpasswd", 404),
        ("POST", "/api/v1/pause", 403),
    ],
)
async def test_every_refusal_is_a_problem_document(surface: Surface, http: ClientSession, method: str, path: str, status: int) -> None:
    """RFC 9457: type, title, status, detail and instance, as application/problem+json, with the headers of every answer."""
    async with http.request(method, surface.url + path, headers=VIEWER) as answer:
        assert answer.status == status
        assert answer.content_type == "application/problem+json"
        found = await answer.json()
    assert found["status"] == status
    assert found["type"].startswith("urn:remediator:problem:")
    assert found["title"]
    assert found["detail"]
    assert found["instance"].startswith("/")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Server"] == "remediator"
    assert "Access-Control-Allow-Origin" not in answer.headers


async def test_405_names_what_is_possible(surface: Surface, http: ClientSession) -> None:
    """A wrong method is answered with Allow."""
    async with http.put(f"{surface.url}/api/v1/pause", headers=VIEWER) as answer:
        assert answer.headers["Allow"] == "POST"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b'"\xff"', 400),
        (b"[]", 422),
        (b"{}", 422),
        (b'{"reason": ""}', 422),
        (b'{"reason": 1}', 422),
        (b'{"reason": "x", "scope": "everything"}', 422),
        (b'{"reason": "x", "scop": "global"}', 422),
        (b'{"reason": "x", "scope": "rule:none"}', 404),
        (b'{"reason": "' + b"x" * 3000 + b'"}', 422),
        (b"[" * 5000, 400),
    ],
)
async def test_bodies_are_strict(surface: Surface, http: ClientSession, body: bytes, status: int) -> None:
    """Unknown fields, other types and broken JSON are refused with a sentence; nothing is thrown by a typing error."""
    headers = bearer("responder") | {"Content-Type": "application/json"}
    async with http.post(f"{surface.url}/api/v1/pause", data=body, headers=headers) as answer:
        assert answer.status == status
        assert (await answer.json())["detail"]
    assert await surface.service.store.pauses() == {}


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NotFound("x"), 404),
        (ApprovalRefused("x", reason="expired"), 409),
        (ApprovalRefused("x", reason="twice"), 409),
        (ApprovalRefused("x", reason="group"), 403),
        (ApprovalRefused("x", reason="requester"), 403),
        (IllegalTransition("x"), 409),
        (InvalidAlerts("x", reason="json"), 400),
        (InvalidFiles([Problem("a.yaml", 1, 2, "x")]), 422),
        (StoreUnavailable("x"), 503),
        (Conflict("x"), 503),
        (PlanRefused("x"), 422),
        (CheckFailed("x"), 502),
        (OutcomeUnknown("x"), 502),
    ],
)
def test_errors_have_their_answers(error: RemediatorError, status: int) -> None:
    """Each of the project's errors becomes the status that tells a caller what he may do; nothing is ever 429."""
    assert from_error(error).status == status
    assert (status == 503) == ("Retry-After" in from_error(error).headers)
