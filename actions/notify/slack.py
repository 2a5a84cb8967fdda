"""`notify.slack`: a message to a Slack channel through an incoming webhook."""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Mapping
from itertools import accumulate
from typing import Any, ClassVar

from pydantic import Field, field_validator

from actions.notify.delivery import Delivery, Message, check_secret_url, shown, target_of
from remediator.action import Context, Params, SecretRef
from remediator.errors import PlanRefused
from remediator.httpclient import WebConnection
from remediator.model import JSON, Change, Plan

MAX_TEXT = 3_000
"""Slack's limit for the text of a section block."""
MAX_HEADER = 150
_MENTION = re.compile(r"<!(here|channel|everyone)>|<@[UW][A-Z0-9]{2,20}>|<!subteam\^S[A-Z0-9]{2,20}>")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


class SlackConnection(WebConnection):
    """One channel, reached through an incoming webhook."""

    url: SecretRef = Field(description="reference of the incoming webhook's URL, which is a secret")
    mentions: Mapping[str, str] = Field(
        default_factory=dict, description="who may be mentioned: name → Slack's text, e.g. oncall: <!subteam^S0123>, all: <!channel>"
    )

    @field_validator("mentions")
    @classmethod
    def _are_mentions(cls, mentions: Mapping[str, str]) -> Mapping[str, str]:
        for name, text in mentions.items():
            if not _MENTION.fullmatch(text):
                raise ValueError(f"mentions.{name}: {text!r} is no mention; write <@U…>, <!subteam^S…>, <!here> or <!channel>")
        return mentions


class _SlackParams(Params):
    connection: str
    text: str = Field(min_length=1, description="the message; cut at 3,000 characters")
    mentions: tuple[str, ...] = Field((), max_length=10, description="names from the connection's list")
    links: Mapping[str, str] = Field(default_factory=dict, max_length=10, description="title → http(s) URL")


def escape(text: str, limit: int = MAX_TEXT) -> str:
    """Escape text for mrkdwn, so that it can't mention or link, and cut it to `limit` characters, never inside an entity.

    >>> escape("<!channel> & co")
    '&lt;!channel&gt; &amp; co'
    """
    parts = [_ENTITIES.get(char, char) for char in text if char >= " " or char == "\n"]
    if sum(map(len, parts)) <= limit:
        return "".join(parts)
    ends = list(accumulate(map(len, parts)))
    return "".join(parts[: bisect_left(ends, limit)]) + "…"


def link(title: str, url: str) -> str:
    """Write a link. Raises ValueError for a URL that is not http(s) or that could end the link early."""
    if not re.fullmatch(r"https?://[^\s<>|\x00-\x1f]+", url) or len(url) > 1_000:
        raise ValueError(f"{url[:200]!r} is not an http(s) URL")
    return f"<{escape(url, 2_000)}|{escape(title, 100).replace('|', '/')}>"


class Slack(Delivery[_SlackParams]):
    """Post a message to a Slack channel, with the incident's severity, id, rule and links.

    Text from alerts can't mention anybody: only names from the connection's own list can.
    """

    name = "notify.slack"
    Params = _SlackParams
    connection = SlackConnection
    example: ClassVar[Mapping[str, Any]] = {
        "connection": "incidents",
        "text": "Rolled back ${labels.deployment}: error rate was ${checks.errors.value}",
        "mentions": ["oncall"],
        "links": {"dashboard": "https://grafana.example.com/d/shop"},
    }

    async def plan(self, params: _SlackParams, ctx: Context) -> Plan:
        """Render the message. Nothing is sent, no secret is read."""
        connection = ctx.connection(SlackConnection, params.connection)
        if unknown := sorted(set(params.mentions) - connection.mentions.keys()):
            raise PlanRefused(f"connection {params.connection!r} allows no mention of {unknown}; it allows {sorted(connection.mentions)}")
        target = target_of("slack", params.connection, ctx)
        text = escape(params.text)
        try:
            payload = render(text, [connection.mentions[name] for name in params.mentions], params.links, ctx.values)
        except ValueError as error:
            raise PlanRefused(f"links: {error}") from error
        return Plan(
            action=self.name,
            summary=f"tell Slack ({params.connection}): {params.text[:100]}",
            targets=(target,),
            intent={"payload": payload},
            changes=(Change(target.id, "message", None, text),),
            connection=params.connection,
        )

    async def message(self, plan: Plan, ctx: Context) -> Message:
        """Return the webhook's request."""
        url = await ctx.secret(ctx.connection(SlackConnection, plan.connection).url)
        body = json.dumps(plan.intent["payload"]).encode()
        return Message(check_secret_url(url, plan.connection), body, secrets=(url,))


def render(text: str, mentions: list[str], links: Mapping[str, str], values: Mapping[str, Any]) -> dict[str, JSON]:
    """Return an incoming webhook's payload from escaped text. Raises ValueError for a link that is none."""
    severity, incident, rule = (shown(values, name) for name in ("severity", "incident", "rule"))
    blocks: list[JSON] = []
    if header := " · ".join(part for part in (severity.upper(), incident, rule) if part):
        blocks.append({"type": "header", "text": {"type": "plain_text", "text": header[:MAX_HEADER], "emoji": False}})
    # verbatim: Slack shall not turn words of an alert into links and channels.
    blocks.append({"type": "section", "text": {"type": "mrkdwn", "text": text, "verbatim": True}})
    if mentions:
        blocks.append({"type": "section", "text": {"type": "mrkdwn", "text": " ".join(mentions), "verbatim": True}})
    if lines := [*_known_links(values), *(link(title, url) for title, url in links.items())]:
        blocks.append({"type": "context", "elements": [{"type": "mrkdwn", "text": line} for line in lines[:10]]})
    return {"text": " ".join([*mentions, text])[:MAX_TEXT], "blocks": blocks, "unfurl_links": False, "unfurl_media": False}


def _known_links(values: Mapping[str, Any]) -> list[str]:
    """Return links to the incident and its runbook, where they are known and are URLs."""
    found = []
    for title, name in (("incident", "url"), ("runbook", "runbook")):
        try:
            found.append(link(title, shown(values, name)))
        except ValueError:
            continue
    return found
