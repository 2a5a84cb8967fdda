"""`notify.slack`: a message to a Slack channel through an incoming webhook."""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, ClassVar

from pydantic import Field, field_validator

from actions.notify.delivery import Delivery, Message, check_secret_url, nothing_to_say, target_of
from actions.notify.sending import parts_of
from actions.notify.showing import clip, facts_of, heading, is_link, known_links, size, unknown_mentions
from actions.notify.wording import CALLING, LATER, Kind, Nothing, Telling, Words, one_line, word
from remediator.action import Connection, Context, Permission, PermissionKind, SecretRef
from remediator.errors import PlanRefused
from remediator.httpclient import WebConnection
from remediator.model import JSON, Change, Plan

MAX_TEXT = 3_000
"""Slack's limit for the text of a section block."""
MAX_HEADER = 150
MAX_FIELD = 2_000
"""Slack's limit for each text of a section's fields."""
_MENTION = re.compile(r"<!(here|channel|everyone)>|<@[UW][A-Z0-9]{2,20}>|<!subteam\^S[A-Z0-9]{2,20}>")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


class SlackConnection(WebConnection):
    """One channel, reached through an incoming webhook."""

    model_config = LATER
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


class _SlackParams(Telling):
    mentions: tuple[str, ...] = Field((), max_length=10, description="names from the connection's list")
    mention_on: frozenset[Kind] = Field(CALLING, description="kinds of messages that mention; a rule's own step always does")
    links: Mapping[str, str] = Field(default_factory=dict, max_length=10, description="title → http(s) URL")


def escape(text: str, limit: int = MAX_TEXT) -> str:
    """Escape text for mrkdwn, so that it can't mention or link, and cut it to `limit` characters, never inside an entity.

    >>> escape("<!channel> & co")
    '&lt;!channel&gt; &amp; co'
    """
    parts = [_ENTITIES.get(char, char) for char in text if char >= " " or char == "\n"]
    ends = list(accumulate(map(size, parts)))
    if not ends or ends[-1] <= limit:
        return "".join(parts)
    return "".join(parts[: bisect_left(ends, limit)]) + "…"


def link(title: str, url: str) -> str:
    """Write a link. Raises ValueError for a URL that is not http(s) or that could end the link early."""
    if not is_link(url):
        raise ValueError(f"{url[:200]!r} is not an http(s) URL")
    return f"<{escape(url, 2_000)}|{escape(title, 100).replace('|', '/')}>"


class Slack(Delivery[_SlackParams]):
    """Post a message to a Slack channel, with the incident's severity, id, rule and links.

    Text from alerts can't mention anybody: only names from the connection's own list can. Slack knows no key for repeated messages: one
    whose answer was lost comes twice. When Slack asks for a pause, all messages of the connection wait.
    """

    name = "notify.slack"
    Params = _SlackParams
    connection = SlackConnection
    permissions = (Permission(PermissionKind.HTTP, ("POST",), "/services/*", why="the incoming webhook"),)
    example: ClassVar[Mapping[str, Any]] = {
        "connection": "incidents",
        "text": "Rolled back ${labels.deployment}: error rate was ${checks.errors.value}",
        "mentions": ["oncall"],
        "links": {"dashboard": "https://grafana.example.com/d/shop"},
    }

    @classmethod
    def misfits(cls, params: Any, connection: Connection) -> Sequence[str]:
        """Return names that the connection does not list."""
        return unknown_mentions(params, connection)

    async def plan(self, params: _SlackParams, ctx: Context) -> Plan:
        """Render the message. Nothing is sent, no secret is read."""
        connection = ctx.connection(SlackConnection, params.connection)
        if faults := self.misfits(params, connection):
            raise PlanRefused(f"connection {params.connection!r} {faults[0]}")
        target = target_of("slack", params.connection, ctx)
        words = word(params, ctx.values, ctx.now, text=params.text)
        if isinstance(words, Nothing):
            return nothing_to_say(self.name, params.connection, target, words.why)
        called = params.mentions if words.kind is None or words.kind in params.mention_on else ()
        try:
            payload = render(words, [connection.mentions[name] for name in called], params.links, ctx.values)
        except ValueError as error:
            raise PlanRefused(f"links: {error}") from error
        return Plan(
            action=self.name,
            summary=f"tell Slack ({params.connection}): {one_line(words.text)[:100]}",
            targets=(target,),
            intent={"payload": payload},
            changes=(Change(target.id, "message", None, escape(words.text)),),
            connection=params.connection,
        )

    async def messages(self, plan: Plan, ctx: Context) -> Sequence[Message]:
        """Return the webhook's request."""
        url = await ctx.secret(ctx.connection(SlackConnection, plan.connection).url)
        body = json.dumps(plan.intent["payload"]).encode()
        return [Message(check_secret_url(url, plan.connection), body, secrets=parts_of(url))]


def render(words: Words, mentions: list[str], links: Mapping[str, str], values: Mapping[str, Any]) -> dict[str, JSON]:
    """Return an incoming webhook's payload. Raises ValueError for a link that is none."""
    text = escape(words.text)
    values = {} if words.public else values
    blocks: list[JSON] = []
    if header := heading(words, values) or (words.subject if words.public else ""):
        blocks.append({"type": "header", "text": {"type": "plain_text", "text": clip(header, MAX_HEADER), "emoji": False}})
    # verbatim: Slack shall not turn words of an alert into links and channels.
    blocks.append({"type": "section", "text": {"type": "mrkdwn", "text": text or "…", "verbatim": True}})
    if words.kind is not None and (facts := list(facts_of(values))):
        blocks.append({"type": "section", "fields": [_field(name, value) for name, value in facts[:10]]})
    if mentions:
        blocks.append({"type": "section", "text": {"type": "mrkdwn", "text": " ".join(mentions), "verbatim": True}})
    if lines := [*(link(title, url) for title, url in known_links(values)), *(link(title, url) for title, url in links.items())]:
        blocks.append({"type": "context", "elements": [{"type": "mrkdwn", "text": line} for line in lines[:10]]})
    return {"text": " ".join([*mentions, text])[:MAX_TEXT], "blocks": blocks, "unfurl_links": False, "unfurl_media": False}


def _field(name: str, value: str) -> JSON:
    return {"type": "mrkdwn", "text": f"*{name}*\n{escape(value, MAX_FIELD - 40)}", "verbatim": True}
