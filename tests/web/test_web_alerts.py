"""The webhook: stored before it is answered, and an answer that makes Alertmanager do the right thing."""

from __future__ import annotations

import base64
from collections.abc import Mapping

import pytest
from aiohttp import ClientSession

from remediator.errors import StoreUnavailable
from tests.servers.surface import INCIDENT, Surface, bearer, webhook

JSON = {"Content-Type": "application/json"}
SENDER = bearer("alert_sender")


def url(surface: Surface) -> str:
    return f"{surface.url}/api/v1/alerts"


def sample(surface: Surface, name: str, labels: Mapping[str, str]) -> float:
    value = surface.metrics.registry.get_sample_value(name, dict(labels))
    return 0.0 if value is None else value


async def test_webhook_is_answered_202_after_accept_returned(surface: Surface, http: ClientSession) -> None:
    """202 means that the service has taken the body; the answer says what became of it."""
    async with http.post(url(surface), data=webhook(), headers=SENDER | JSON) as answer:
        assert answer.status == 202
        assert await answer.json() == {"alerts": 1, "firing": 1, "resolved": 0, "incidents": [INCIDENT], "rejected": []}
    assert surface.service.bodies == [webhook()]
    assert surface.service.senders == ["alert_sender"]
    assert sample(surface, "remediator_webhooks_total", {"outcome": "accepted"}) == 1


async def test_basic_credentials_are_accepted(surface: Surface, http: ClientSession) -> None:
    """Alertmanager may sign in with basic credentials: the user is the identity's name."""
    code = base64.b64encode(b"alert_sender:password-of-alert_sender").decode()
    async with http.post(url(surface), data=webhook(), headers={"Authorization": f"Basic {code}", **JSON}) as answer:
        assert answer.status == 202


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        "Basic",
        "Basic !!!",
        "Basic " + base64.b64encode(b"alert_sender").decode(),
        "Basic " + base64.b64encode(b"alert_sender:wrong").decode(),
        "Basic " + base64.b64encode(b"\xff\xfe:x").decode(),
        "Digest x",
        "Bearer " + "x" * 7000,
    ],
)
async def test_bad_credentials_get_401_with_a_challenge(surface: Surface, http: ClientSession, header: str | None) -> None:
    """Unknown credentials are 401 with WWW-Authenticate, whatever they look like; nothing is taken and nothing is told."""
    headers = JSON if header is None else {"Authorization": header, **JSON}
    async with http.post(url(surface), data=webhook(), headers=headers) as answer:
        assert answer.status == 401
        assert "Bearer" in answer.headers["WWW-Authenticate"]
        text = await answer.text()
    assert "wrong" not in text
    assert surface.service.bodies == []
    assert sample(surface, "remediator_webhooks_total", {"outcome": "unauthorized"}) == 1


async def test_store_unavailable_is_503_with_retry_after(surface: Surface, http: ClientSession) -> None:
    """What can't be committed is answered 503, the only kind of answer that Alertmanager repeats."""
    surface.service.fails = StoreUnavailable("the disk is full")
    async with http.post(url(surface), data=webhook(), headers=SENDER | JSON) as answer:
        assert answer.status == 503
        assert int(answer.headers["Retry-After"]) >= 1
        assert (await answer.json())["type"] == "urn:remediator:problem:store_unavailable"
    assert sample(surface, "remediator_webhooks_total", {"outcome": "unavailable"}) == 1


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"{", 400), (b"\xff\xfe{}", 400), (b"[]", 400), (b'{"version": "4"}', 422), (b'{"version": "3", "alerts": []}', 422), (b"", 400)],
)
async def test_bad_bodies_are_4xx_and_counted(surface: Surface, http: ClientSession, body: bytes, status: int) -> None:
    """A body that can't be taken would only come again: it is a 4xx, counted by its reason, never a 5xx."""
    async with http.post(url(surface), data=body, headers=SENDER | JSON) as answer:
        assert answer.status == status
        assert answer.content_type == "application/problem+json"
    assert sample(surface, "remediator_webhooks_total", {"outcome": "invalid"}) == 1


async def test_one_bad_alert_does_not_refuse_the_others(surface: Surface, http: ClientSession) -> None:
    """Single alerts are refused by themselves, and the answer names them."""
    good = {
        "status": "firing",
        "labels": {"alertname": "A"},
        "annotations": {},
        "startsAt": "2026-11-21T03:00:00Z",
        "fingerprint": "0" * 16,
    }
    async with http.post(url(surface), data=webhook(alerts=[good, {"status": "on fire"}]), headers=SENDER | JSON) as answer:
        assert answer.status == 202
        found = await answer.json()
    assert found["alerts"] == 1
    assert len(found["rejected"]) == 1


async def test_faults_are_500_and_tell_nothing(surface: Surface, http: ClientSession) -> None:
    """A fault of ours is a 500 (so Alertmanager repeats) with a number for the log, never the exception's text."""
    surface.service.fails = ValueError("secret internals")
    async with http.post(url(surface), data=webhook(), headers=SENDER | JSON) as answer:
        assert answer.status == 500
        problem = await answer.json()
    assert "secret" not in str(problem)
    assert problem["error_id"] in problem["detail"]
