"""The doubles refuse what the services' documentation does not allow: one that took everything would prove nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.servers.http import Received
from tests.servers.receivers import DiscordDouble, PagerDutyDouble, SlackDouble, StatuspageDouble, Strict, rings

JSON_BODY = {"content-type": "application/json"}
EVENT = {
    "routing_key": PagerDutyDouble.KEY,
    "event_action": "trigger",
    "dedup_key": "INC-1",
    "payload": {"summary": "s", "source": "x", "severity": "critical"},
}
SECTION = {"type": "section", "text": {"type": "mrkdwn", "text": "x"}}
INCIDENT = {"name": "n", "status": "investigating", "body": "b", "metadata": {"a": {}}}


def answer(double: Strict, path: str, body: Any, method: str = "POST", **headers: str) -> int:
    """Return the status of one request."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return double.judge(Received(method, path, JSON_BODY | headers, data)).status


@pytest.mark.parametrize(
    "change",
    [
        {"routing_key": "short"},
        {"routing_key": "R9" + "k" * 30},
        {"event_action": "fire"},
        {"dedup_key": ""},
        {"dedup_key": "x" * 256},
        {"payload": None},
        {"payload": {"summary": "", "source": "x", "severity": "critical"}},
        {"payload": {"summary": "x" * 1025, "source": "x", "severity": "critical"}},
        {"payload": {"summary": "s", "source": "x", "severity": "sev1"}},
        {"payload": {"summary": "s", "severity": "info"}},
        {"payload": {"summary": "s", "source": "x", "severity": "info", "details": {}}},
        {"links": [{"href": "javascript:x"}]},
        {"client_url": "x"},
        {"event_action": "resolve"},
        {"images": [], "extra": 1},
    ],
)
def test_pagerduty_refuses(change: dict[str, Any]) -> None:
    """400 for each, 202 without it."""
    assert answer(PagerDutyDouble(), "/v2/enqueue", EVENT) == 202
    assert answer(PagerDutyDouble(), "/v2/enqueue", EVENT | change) == 400


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"content": ""},
        {"content": "x" * 2001},
        {"content": "x", "embeds": [{"title": "x" * 257}]},
        {"content": "x", "embeds": [{"description": "x" * 4097}]},
        {"content": "x", "embeds": [{"description": "x" * 4096}, {"description": "x" * 1905}]},
        {"content": "x", "embeds": [{"fields": [{"name": "", "value": "x"}]}]},
        {"content": "x", "embeds": [{"fields": [{"name": "x", "value": "x" * 1025}]}]},
        {"content": "x", "embeds": [{"color": -1}]},
        {"content": "x", "allowed_mentions": {"parse": ["roles"], "roles": ["111111"]}},
        {"content": "x", "allowed_mentions": {"roles": ["everyone"]}},
        {"content": "x", "text": "x"},
    ],
)
def test_discord_refuses(message: dict[str, Any]) -> None:
    """400 for each; without `wait` nobody learns of it."""
    path = f"{DiscordDouble.PATH}?wait=true"
    assert answer(DiscordDouble(), path, {"content": "x" * 2000}) == 200
    assert answer(DiscordDouble(), path, message) == 400
    assert answer(DiscordDouble(), DiscordDouble.PATH, message) == 204


def test_discord_rings_whom_it_would() -> None:
    """Without allowed_mentions everybody who is named, and nobody named in an embed."""
    assert rings({"content": "@everyone <@&123456> <@234567>"}) == {"@everyone", "roles:123456", "users:234567"}
    assert rings({"content": "x", "embeds": [{"description": "@everyone"}]}) == set()
    assert rings({"content": "<@&123456> <@234567>", "allowed_mentions": {"parse": [], "roles": ["123456"]}}) == {"roles:123456"}


@pytest.mark.parametrize(
    "message",
    [
        {"blocks": [SECTION]},
        {"text": "x", "blocks": [{"type": "header", "text": {"type": "plain_text", "text": "x" * 151}}]},
        {"text": "x", "blocks": [{"type": "section", "text": {"type": "mrkdwn", "text": "x" * 3001}}]},
        {"text": "x", "blocks": [{"type": "section", "text": {"type": "mrkdwn", "text": ""}}]},
        {"text": "x", "blocks": [{"type": "section", "fields": []}]},
        {"text": "x", "blocks": [{"type": "section", "fields": [{"type": "mrkdwn", "text": "x" * 2001}]}]},
        {"text": "x", "blocks": [{"type": "context", "elements": [{"type": "mrkdwn", "text": "x"}] * 11}]},
        {"text": "x", "blocks": [SECTION] * 51},
        {"text": "x", "blocks": [{"type": "carousel"}]},
        {"text": "x", "channel": "#general"},
    ],
)
def test_slack_refuses(message: dict[str, Any]) -> None:
    """400 for each."""
    assert answer(SlackDouble(), SlackDouble.PATH, {"text": "x", "blocks": [SECTION]}) == 200
    assert answer(SlackDouble(), SlackDouble.PATH, message) == 400


@pytest.mark.parametrize(
    "change",
    [
        {"name": ""},
        {"name": "x" * 256},
        {"status": "broken"},
        {"body": "x" * 25_001},
        {"body": ""},
        {"impact_override": "huge"},
        {"metadata": {"a": "text"}},
        {"components": {"comp1": "down"}},
        {"components": {"comp9": "major_outage"}},
        {"component_ids": ["comp9"]},
        {"severity": "sev1"},
    ],
)
def test_statuspage_refuses(change: dict[str, Any]) -> None:
    """422 for each, and 401 without the key."""
    path, key = f"/v1/pages/{StatuspageDouble.PAGE}/incidents", f"OAuth {StatuspageDouble.KEY}"
    assert answer(StatuspageDouble(), path, {"incident": INCIDENT}, authorization=key) == 201
    assert answer(StatuspageDouble(), path, {"incident": INCIDENT | change}, authorization=key) == 422
    assert answer(StatuspageDouble(), path, {"incident": INCIDENT}) == 401


@pytest.mark.parametrize("body", [b"{", b"[]", b"\xff"])
def test_what_is_not_json_is_refused(body: bytes) -> None:
    """By all of them."""
    assert answer(PagerDutyDouble(), "/v2/enqueue", body) == 400
    assert answer(DiscordDouble(), f"{DiscordDouble.PATH}?wait=true", body) == 400
    assert answer(SlackDouble(), SlackDouble.PATH, body) == 400
    key = f"OAuth {StatuspageDouble.KEY}"
    assert answer(StatuspageDouble(), f"/v1/pages/{StatuspageDouble.PAGE}/incidents", body, authorization=key) == 422
