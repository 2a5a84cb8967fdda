"""`notify.slack`: a message to a Slack channel through an incoming webhook."""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, ClassVar

from pydantic import Field, field_validator

from actions.notify.chat import Chat, ChatConnection, ChatParams, check_mentions
from actions.notify.delivery import Message, check_secret_url
from actions.notify.sending import parts_of
from actions.notify.showing import clip, facts_of, heading, is_link, known_links, size
from actions.notify.wording import Words
from remediator.action import Context, Permission, PermissionKind, SecretRef
from remediator.model import JSON, Plan

MAX_TEXT = 3_000
"""Slack's limit for the text of a section block."""
MAX_HEADER = 150
MAX_FIELD = 2_000
"""Slack's limit for each text of a section's fields."""
_MENTION = re.compile(r"<!(here|channel|everyone)>|<@[UW][A-Z0-9]{2,20}>|<!subteam\^S[A-Z0-9]{2,20}>")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


class SlackConnection(ChatConnection):
    """One channel, reached through an incoming webhook."""

    url: SecretRef = Field(description="reference of the incoming webhook's URL, which is a secret")
    mentions: Mapping[str, str] = Field(
        default_factory=dict, description="who may be mentioned: name → Slack's text, e.g. oncall: <!subteam^S0123>, all: <!channel>"
    )

    @field_validator("mentions")
    @classmethod
    def _are_mentions(cls, mentions: Mapping[str, str]) -> Mapping[str, str]:
        return check_mentions(mentions, _MENTION, write="<@U…>, <!subteam^S…>, <!here> or <!channel>")


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


class Slack(Chat):
    """Post a message to a Slack channel, with the incident's severity, id, rule and links.

    Text from alerts can't mention anybody: only names from the connection's own list can. Slack knows no key for repeated messages: one
    whose answer was lost comes twice. When Slack asks for a pause, all messages of the connection wait.
    """

    name = "notify.slack"
    service = "Slack"
    connection = SlackConnection
    permissions = (Permission(PermissionKind.HTTP, ("POST",), "/services/*", why="the incoming webhook"),)
    example: ClassVar[Mapping[str, Any]] = {
        "connection": "incidents",
        "text": "Rolled back ${labels.deployment}: error rate was ${checks.errors.value}",
        "mentions": ["oncall"],
        "links": {"dashboard": "https://grafana.example.com/d/shop"},
    }

    def payload(self, words: Words, mentions: Sequence[str], params: ChatParams, values: Mapping[str, Any]) -> Mapping[str, JSON]:
        """Return the incoming webhook's payload."""
        return render(words, mentions, params.links, values)

    def escaped(self, text: str) -> str:
        """Return the text in mrkdwn."""
        return escape(text)

    async def messages(self, plan: Plan, ctx: Context) -> Sequence[Message]:
        """Return the webhook's request."""
        url = await ctx.secret(ctx.connection(SlackConnection, plan.connection).url)
        body = json.dumps(plan.intent["payload"]).encode()
        return [Message(check_secret_url(url, plan.connection), body, secrets=parts_of(url))]


def render(words: Words, mentions: Sequence[str], links: Mapping[str, str], values: Mapping[str, Any]) -> dict[str, JSON]:
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
