"""Doubles of PagerDuty, Discord, Slack and Statuspage on loopback HTTP: these services can't run here.

Each enforces what the public API documentation says of its requests (fields, words from closed sets, lengths, authorization) and answers
in its words, so that a wrong payload fails the test that sends it: PagerDuty's Events API v2 (its published OpenAPI file), Discord's
"Execute Webhook", embed and allowed-mentions objects and rate limits, Slack's incoming webhooks and Block Kit reference, Statuspage's
REST API v1 (incidents). Unknown fields are refused as well, which is stricter than the services are. What only the services do
(escalation, notification, rendering) is not here.
"""

from __future__ import annotations

import asyncio
import json
import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any
from urllib.parse import parse_qs

from tests.servers.http import HttpServer, Received, Reply


class Strict(HttpServer):
    """A server that judges each request. What `replies` says for a path goes first; `next_replies` are given out once each before all."""

    def __init__(self) -> None:
        super().__init__()
        self.next_replies: list[Reply] = []
        self.lose_next = False
        """Take the next write as it should be, and hang up instead of saying so."""

    @abstractmethod
    def judge(self, request: Received) -> Reply:
        """Return the service's answer to a request."""

    async def _answer(self, request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if request.path in self.replies and not self.next_replies:
            await super()._answer(request, reader, writer)
            return
        reply = self.next_replies.pop(0) if self.next_replies else self.judge(request)
        if 200 <= reply.status < 300 and request.method != "GET":
            self.taken.append(request)
        if self.lose_next and request.method != "GET":
            self.lose_next = False
            return
        writer.write(reply.encode())
        await writer.drain()


def units(text: str) -> int:
    """Count characters as JavaScript does, the strictest reading of a limit in characters."""
    return len(text.encode("utf-16-le")) // 2


def strays(found: Mapping[str, Any], known: str) -> Iterator[str]:
    """Name fields that the documentation does not know."""
    yield from (f"unknown field {name}" for name in found.keys() - set(known.split()))


def parsed(request: Received) -> Any:
    """Return the body as JSON, None when it is none or not called so."""
    if not request.headers.get("content-type", "").startswith("application/json"):
        return None
    try:
        return request.json
    except ValueError:
        return None


# --- PagerDuty


class PagerDutyDouble(Strict):
    """POST /v2/enqueue for one routing key; `alerts` are by dedup_key: triggered, acknowledged or resolved."""

    KEY = "R0" + "k" * 30

    def __init__(self) -> None:
        super().__init__()
        self.alerts: dict[str, str] = {}

    def judge(self, request: Received) -> Reply:
        """Answer 202, or 400 with the list of errors."""
        if (request.method, request.target) != ("POST", "/v2/enqueue"):
            return Reply(404)
        event = parsed(request)
        errors = list(self._faults(event)) if isinstance(event, dict) else ["JSON parse error"]
        if errors:
            return Reply(400, {"status": "invalid event", "message": "Event object is invalid", "errors": errors})
        words = {"trigger": "triggered", "acknowledge": "acknowledged", "resolve": "resolved"}
        key = event["dedup_key"]
        if event["event_action"] == "trigger" or self.alerts.get(key, "resolved") != "resolved":
            keeps = event["event_action"] == "trigger" and self.alerts.get(key) == "acknowledged"
            self.alerts[key] = "acknowledged" if keeps else words[event["event_action"]]
        return Reply(202, {"status": "success", "message": "Event processed", "dedup_key": key})

    def _faults(self, event: dict[str, Any]) -> Iterator[str]:
        yield from strays(event, "routing_key event_action dedup_key payload client client_url links images")
        if len(event.get("routing_key", "")) != 32:
            yield "Length of 'routing_key' is incorrect (should be 32 characters)"
        elif event["routing_key"] != self.KEY:
            yield "'routing_key' is unknown"
        if event.get("event_action") not in ("trigger", "acknowledge", "resolve"):
            yield "'event_action' is invalid"
        if not isinstance(event.get("dedup_key"), str) or not 1 <= units(event["dedup_key"]) <= 255:
            yield "'dedup_key' is missing or too long"
        if event.get("event_action") == "trigger":
            yield from _payload_faults(event.get("payload"))
        elif event.keys() - {"routing_key", "event_action", "dedup_key"}:
            yield "only a trigger takes more than a key"
        yield from _link_faults(event)


def _link_faults(event: dict[str, Any]) -> Iterator[str]:
    for link in event.get("links", ()):
        yield from strays(link, "href text")
        if not re.match(r"https?://\S+\Z", link.get("href", "")):
            yield "'links.href' is no URL"
    if not re.match(r"https?://\S+\Z", event.get("client_url", "https://x")):
        yield "'client_url' is no URL"
    if len(json.dumps(event)) > 512_000:
        yield "the event is larger than 512 KB"


def _payload_faults(payload: Any) -> Iterator[str]:
    if not isinstance(payload, dict):
        yield "'payload' is missing"
        return
    yield from strays(payload, "summary source severity timestamp component group class custom_details")
    if not isinstance(payload.get("summary"), str) or not 1 <= len(payload["summary"]) <= 1024:
        yield "'payload.summary' is missing or too long"
    if not isinstance(payload.get("source"), str) or not payload["source"]:
        yield "'payload.source' is missing"
    if payload.get("severity") not in ("critical", "error", "warning", "info"):
        yield "'payload.severity' is invalid"
    if "timestamp" in payload:
        datetime.fromisoformat(payload["timestamp"])
    if not isinstance(payload.get("custom_details", {}), dict):
        yield "'payload.custom_details' is no object"


# --- Discord


class DiscordDouble(Strict):
    """POST /api/webhooks/ID/TOKEN?wait=true."""

    PATH = "/api/webhooks/1234567890/s3cret-token_of-the-hook"

    def judge(self, request: Received) -> Reply:
        """Answer 200 with the message, 400 with Discord's form errors, 404 for another webhook."""
        if request.method != "POST" or request.path != self.PATH:
            return Reply(404, {"message": "Unknown Webhook", "code": 10015})
        query = parse_qs(request.target.partition("?")[2])
        if query.get("wait") != ["true"]:
            return Reply(204)
        message = parsed(request)
        errors = list(_message_faults(message)) if isinstance(message, dict) else ["not JSON"]
        if errors:
            return Reply(400, {"message": "Invalid Form Body", "code": 50035, "errors": errors})
        return Reply(200, {"id": "1", **message})


def _message_faults(message: dict[str, Any]) -> Iterator[str]:
    yield from strays(message, "content username avatar_url tts embeds allowed_mentions flags")
    if not message.get("content") and not message.get("embeds"):
        yield "Cannot send an empty message"
    if units(message.get("content", "")) > 2000:
        yield "content: Must be 2000 or fewer in length."
    if len(message.get("embeds", ())) > 10:
        yield "embeds: Must be 10 or fewer in length."
    embeds = message.get("embeds", [])
    for embed in embeds:
        yield from _embed_faults(embed)
    if sum(map(_embed_size, embeds)) > 6000:
        yield "embeds: Embed size exceeds maximum size of 6000"
    yield from _allowed_faults(message.get("allowed_mentions", {}))


def _embed_faults(embed: dict[str, Any]) -> Iterator[str]:
    yield from strays(embed, "title description url timestamp color footer image thumbnail author fields")
    for name, most in (("title", 256), ("description", 4096)):
        if units(embed.get(name, "")) > most:
            yield f"{name}: Must be {most} or fewer in length."
    if len(embed.get("fields", ())) > 25:
        yield "fields: Must be 25 or fewer in length."
    for field in embed.get("fields", ()):
        yield from strays(field, "name value inline")
        if not 1 <= units(field["name"]) <= 256 or not 1 <= units(field["value"]) <= 1024:
            yield "fields: This field is required, and has a limit"
    if not 0 <= embed.get("color", 0) <= 0xFFFFFF:
        yield "color: not a colour"
    if "timestamp" in embed:
        datetime.fromisoformat(embed["timestamp"])


def _embed_size(embed: dict[str, Any]) -> int:
    texts = [embed.get("title", ""), embed.get("description", ""), embed.get("footer", {}).get("text", "")]
    texts += [text for field in embed.get("fields", ()) for text in (field["name"], field["value"])]
    return sum(map(units, texts))


def _allowed_faults(allowed: dict[str, Any]) -> Iterator[str]:
    yield from strays(allowed, "parse roles users replied_user")
    for name in ("roles", "users"):
        ids = allowed.get(name, [])
        if len(ids) > 100 or not all(re.fullmatch(r"\d{5,20}", one) for one in ids):
            yield f"allowed_mentions.{name}: not snowflakes"
        if ids and name in allowed.get("parse", []):
            yield f"allowed_mentions: parse and {name} exclude each other"


def rings(message: Mapping[str, Any]) -> set[str]:
    """Return whom a message to Discord would notify: mentions in its content that are allowed. Embeds notify nobody."""
    allowed, content = message.get("allowed_mentions", {"parse": ["everyone", "roles", "users"]}), message.get("content", "")
    parse = allowed.get("parse", [])
    found = {word for word in ("@everyone", "@here") if word in content and "everyone" in parse}
    for mark, ident in re.findall(r"<@([&!]?)(\d+)>", content):
        kind = "roles" if mark == "&" else "users"
        if kind in parse or ident in allowed.get(kind, []):
            found.add(f"{kind}:{ident}")
    return found


# --- Slack


class SlackDouble(Strict):
    """POST /services/T…/B…/… with blocks."""

    PATH = "/services/T000/B000/s3cret"

    def judge(self, request: Received) -> Reply:
        """Answer ok, or 400 invalid_payload resp. invalid_blocks, or 404 no_service."""
        if request.method != "POST" or request.path != self.PATH:
            return Reply(404, "no_service")
        message = parsed(request)
        if not isinstance(message, dict) or list(strays(message, "text blocks unfurl_links unfurl_media thread_ts attachments")):
            return Reply(400, "invalid_payload")
        if not message.get("text") or units(message["text"]) > 40_000:
            return Reply(400, "no_text")
        faults = [fault for block in message.get("blocks", ()) for fault in _block_faults(block)]
        return Reply(400, f"invalid_blocks: {faults}") if faults or len(message.get("blocks", ())) > 50 else Reply(200, "ok")


def _block_faults(block: dict[str, Any]) -> Iterator[str]:
    match block:
        case {"type": "header", "text": {"type": "plain_text", **text}}:
            yield from _text_faults(text, 150)
        case {"type": "section", "text": {"type": "mrkdwn", **text}}:
            yield from _text_faults(text, 3000)
        case {"type": "section", "fields": [*fields]}:
            if not 1 <= len(fields) <= 10:
                yield "a section has 1 to 10 fields"
            for field in fields:
                yield from _text_faults({name: value for name, value in field.items() if name != "type"}, 2000)
        case {"type": "context", "elements": [*elements]}:
            if not 1 <= len(elements) <= 10:
                yield "a context has 1 to 10 elements"
            for element in elements:
                yield from _text_faults({name: value for name, value in element.items() if name != "type"}, 3000)
        case _:
            yield f"no such block: {block}"


def _text_faults(text: Mapping[str, Any], most: int) -> Iterator[str]:
    yield from strays(text, "text emoji verbatim")
    if not 1 <= units(text.get("text", "")) <= most:
        yield f"text must have 1 to {most} characters"


# --- Statuspage


class StatuspageDouble(Strict):
    """GET, POST and PATCH of /v1/pages/PAGE/incidents; `incidents` is what the page shows, the newest first."""

    KEY, PAGE = "s3cret-api-key", "abc123"
    COMPONENTS = ("comp1", "comp2")
    REALTIME = ("investigating", "identified", "monitoring", "resolved")

    def __init__(self) -> None:
        super().__init__()
        self.incidents: list[dict[str, Any]] = []
        self.components = dict.fromkeys(self.COMPONENTS, "operational")

    def judge(self, request: Received) -> Reply:
        """Answer 200 or 201 with the incident, 401, 404, or 422 with the errors."""
        if request.headers.get("authorization") != f"OAuth {self.KEY}":
            return Reply(401, {"error": "Could not authenticate"})
        root = f"/v1/pages/{self.PAGE}/incidents"
        match request.method, request.path.removeprefix(root) if request.path.startswith(root) else None:
            case "GET", "":
                limit = int(parse_qs(request.target.partition("?")[2]).get("limit", ["100"])[0])
                return Reply(200, self.incidents[:limit])
            case "GET", "/unresolved":
                return Reply(200, [one for one in self.incidents if one["status"] != "resolved"])
            case "POST", "":
                return self._write(request, None)
            case "PATCH", str(place) if place.startswith("/"):
                found = [one for one in self.incidents if one["id"] == place[1:]]
                return self._write(request, found[0]) if found else Reply(404, {"error": "Not found"})
        return Reply(404, {"error": "Not found"})

    def _write(self, request: Received, incident: dict[str, Any] | None) -> Reply:
        body = parsed(request)
        asked = body.get("incident") if isinstance(body, dict) else None
        errors = list(self._faults(asked, incident is None)) if isinstance(asked, dict) else ["incident is missing"]
        if errors or not isinstance(asked, dict):
            return Reply(422, {"error": errors})
        created = incident is None
        if incident is None:
            incident = {"id": f"inc{len(self.incidents)}", "incident_updates": [], "components": [], "shortlink": "https://stspg.io/x"}
            self.incidents.insert(0, incident)
        incident["incident_updates"].insert(0, {"body": asked.get("body"), "status": asked.get("status")})
        incident |= {name: asked[name] for name in ("name", "status", "metadata", "impact_override") if name in asked}
        self.components |= asked.get("components", {})
        known = {one["id"] for one in incident["components"]} | set(asked.get("component_ids", ()))
        incident["components"] = [{"id": one} for one in sorted(known)]
        return Reply(201 if created else 200, incident)

    def _faults(self, asked: dict[str, Any], created: bool) -> Iterator[str]:
        known = "name status impact_override metadata deliver_notifications body components component_ids"
        yield from strays(asked, known)
        if (created and not asked.get("name")) or units(asked.get("name", "")) > 255:
            yield "name is missing or longer than 255"
        if asked.get("status") not in self.REALTIME:
            yield "status is invalid"
        if not asked.get("body") or units(asked["body"]) > 25_000:
            yield "body is empty or longer than 25000"
        if asked.get("impact_override", "none") not in ("none", "minor", "major", "critical"):
            yield "impact_override is invalid"
        if not all(isinstance(one, dict) for one in asked.get("metadata", {}).values()):
            yield "top-level values of metadata must be objects"
        words = ("operational", "under_maintenance", "degraded_performance", "partial_outage", "major_outage")
        for ident, status in asked.get("components", {}).items():
            if ident not in self.components or status not in words:
                yield f"component {ident} or its status is unknown"
        if not set(asked.get("component_ids", ())) <= self.components.keys():
            yield "component_ids are unknown"
