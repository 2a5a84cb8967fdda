"""`notify.discord`: a message to a Discord channel through a webhook."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field, field_validator

from actions.notify.chat import Chat, ChatConnection, ChatParams, check_mentions
from actions.notify.delivery import Message, check_secret_url
from actions.notify.sending import parts_of
from actions.notify.showing import clip, facts_of, heading, known_links, size
from actions.notify.wording import Kind, Words, moment, one_line
from remediator.action import Context, Permission, PermissionKind, SecretRef
from remediator.model import JSON, Plan

MAX_CONTENT, MAX_TITLE, MAX_DESCRIPTION, MAX_FIELD_NAME, MAX_FIELD, MAX_EMBED = 2_000, 256, 4_096, 256, 1_024, 6_000
"""Discord's limits in characters; of an embed, title, description, fields and footer together have the last one."""
_MENTION = re.compile(r"<@(?P<role>&?)(?P<id>[0-9]{5,20})>")
_MARKS = re.compile(r"[\\*_~`|<>\[\]()#]")
_LIST = re.compile(r"(?m)^(\s*)([-+]|\d+\.)(?=\s)")
_COLOURS: Mapping[Kind | None, int] = {
    None: 0x5865F2,
    Kind.PAGE: 0xD92D20,
    Kind.APPROVAL: 0xF79009,
    Kind.UPDATE: 0x2E90FA,
    Kind.DIGEST: 0xD92D20,
    Kind.ACKNOWLEDGED: 0xFDB022,
    Kind.RESOLVED: 0x12B76A,
}


class DiscordConnection(ChatConnection):
    """One channel, reached through a webhook."""

    url: SecretRef = Field(description="reference of the webhook's URL, which is a secret; with `?thread_id=…` it posts to a thread")
    mentions: Mapping[str, str] = Field(
        default_factory=dict, description="who may be mentioned: name → Discord's text, e.g. oncall: <@&ROLE_ID>, alice: <@USER_ID>"
    )

    @field_validator("mentions")
    @classmethod
    def _are_mentions(cls, mentions: Mapping[str, str]) -> Mapping[str, str]:
        return check_mentions(mentions, _MENTION, write="<@&ROLE_ID> or <@USER_ID> with the number")


def cut(text: str, limit: int) -> str:
    """Cut text to a limit, never in the middle of a character or of an escape."""
    if size(text) <= limit:
        return text
    kept = clip(text, limit - 1)
    loose = len(kept) - len(kept.rstrip("\\"))
    return (kept[:-1] if loose % 2 else kept) + "…"


def escape(text: str) -> str:
    r"""Escape text for Discord's Markdown, so that it can't mention, link, quote or look like ours.

    >>> print(escape("[runbook](https://evil.example.com)").replace(chr(0x200B), "^"))
    \[runbook\]\(https:^//evil.example.com\)
    """
    marked = _MARKS.sub(lambda match: "\\" + match[0], text)
    listed = _LIST.sub(lambda match: f"{match[1]}{match[2][:-1]}\\{match[2][-1]}", marked)
    # A space of no width ends what would otherwise be a mention, or a link that nobody of us has written.
    return listed.replace("@", "@\u200b").replace("://", ":\u200b//")


class Discord(Chat):
    """Post a message to a Discord channel: who is mentioned, then an embed with the text, facts and links.

    Text from alerts can't mention anybody: Discord is told to heed only the roles and users that the connection lists. It knows no key
    for repeated messages: one whose answer was lost comes twice. Its rate limit is kept by waiting.
    """

    name = "notify.discord"
    service = "Discord"
    connection = DiscordConnection
    permissions = (Permission(PermissionKind.HTTP, ("POST",), "/api/webhooks/*", why="the webhook"),)
    example: ClassVar[Mapping[str, Any]] = {
        "connection": "incidents-discord",
        "text": "Restarted ${labels.deployment}: ${checks.queue.length} jobs were waiting",
        "mentions": ["on-call-primary"],
    }

    def payload(self, words: Words, mentions: Sequence[str], params: ChatParams, values: Mapping[str, Any]) -> Mapping[str, JSON]:
        """Return the webhook's payload."""
        return render(words, mentions, params.links, values)

    async def messages(self, plan: Plan, ctx: Context) -> Sequence[Message]:
        """Return the webhook's request. It waits for the message to be kept: without that, one that is not kept looks delivered."""
        url = check_secret_url(await ctx.secret(ctx.connection(DiscordConnection, plan.connection).url), plan.connection)
        waiting = f"{url}{'&' if '?' in url else '?'}wait=true"
        return [Message(waiting, json.dumps(plan.intent["payload"]).encode(), secrets=parts_of(url))]


def render(words: Words, mentions: Sequence[str], links: Mapping[str, str], values: Mapping[str, Any]) -> dict[str, JSON]:
    """Return a webhook's payload within all limits. Mentions stand before the embed, where they ring; in embeds they don't."""
    values = {} if words.public else values
    title = cut(escape(heading(words, values) or words.subject), MAX_TITLE)
    fields: list[JSON] = [
        {"name": name, "value": cut(escape(value), MAX_FIELD), "inline": True} for name, value in list(facts_of(values))[:6] if words.kind
    ]
    written = [_link(name, url) for name, url in (*known_links(values), *links.items())]
    if written:
        fields.append({"name": "Links", "value": _joined(written, MAX_FIELD), "inline": False})
    used = size(title) + sum(size(field["name"]) + size(field["value"]) for field in fields)
    embed: dict[str, JSON] = {
        "title": title,
        "description": cut(escape(words.text) or "…", min(MAX_DESCRIPTION, MAX_EMBED - used)),
        "color": _COLOURS[words.kind],
        "fields": fields,
    }
    if (opened := moment(values.get("opened_at"))) is not None:
        embed["timestamp"] = opened.isoformat()
    content = " ".join([*mentions, escape(words.subject)])
    return {"content": cut(content, MAX_CONTENT), "embeds": [embed], "allowed_mentions": allowed(mentions)}


def _link(name: str, url: str) -> str:
    return f"[{escape(one_line(name)[:60])}]({url.replace('(', '%28').replace(')', '%29')})"


def _joined(written: Sequence[str], limit: int) -> str:
    """Join links as long as they fit: half a link would lead elsewhere."""
    kept = ""
    for one in written:
        longer = f"{kept} · {one}" if kept else one
        kept = longer if size(longer) <= limit else kept
    return kept or "…"


def allowed(mentions: Sequence[str]) -> dict[str, JSON]:
    """Return whom Discord may ring: exactly these, whatever the text says."""
    found = [match for match in map(_MENTION.fullmatch, dict.fromkeys(mentions)) if match is not None]
    rung: dict[str, JSON] = {"parse": []}
    if roles := [match["id"] for match in found if match["role"]]:
        rung["roles"] = roles
    if users := [match["id"] for match in found if not match["role"]]:
        rung["users"] = users
    return rung
