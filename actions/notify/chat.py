"""Messages to a channel of a chat: what such channels have in common. Who may be mentioned stands in the connection's own list."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field

from actions.notify.delivery import Delivery, nothing_to_say, target_of
from actions.notify.showing import is_link, unknown_mentions
from actions.notify.wording import CALLING, LATER, Kind, Nothing, Telling, Words, one_line, word
from remediator.action import Connection, Context, SecretRef
from remediator.errors import PlanRefused
from remediator.httpclient import WebConnection
from remediator.model import JSON, Change, Plan


class ChatConnection(WebConnection):
    """One channel, reached through a webhook."""

    model_config = LATER
    url: SecretRef
    mentions: Mapping[str, str] = Field(default_factory=dict)


class ChatParams(Telling):
    """A message, whom it mentions, and links beside it."""

    mentions: tuple[str, ...] = Field((), max_length=10, description="names from the connection's list")
    mention_on: frozenset[Kind] = Field(CALLING, description="kinds of messages that mention; a rule's own step always does")
    links: Mapping[str, str] = Field(default_factory=dict, max_length=10, description="title → http(s) URL")


def check_mentions(mentions: Mapping[str, str], form: re.Pattern[str], *, write: str) -> Mapping[str, str]:
    """Return mentions that all have the service's form. Raises ValueError, which says what to `write`."""
    for name, text in mentions.items():
        if not form.fullmatch(text):
            raise ValueError(f"mentions.{name}: {text!r} is no mention; write {write}")
    return mentions


class Chat(Delivery[ChatParams]):
    """A message to a channel. Derived classes say how the service wants it."""

    service: ClassVar[str]
    """The service's name, as people write it."""
    Params = ChatParams
    connection: ClassVar[type[ChatConnection]]

    @abstractmethod
    def payload(self, words: Words, mentions: Sequence[str], params: ChatParams, values: Mapping[str, Any]) -> Mapping[str, JSON]:
        """Return what is posted; `mentions` are in the service's own form."""

    def escaped(self, text: str) -> str:
        """Return the message's text as it is shown to who approves it."""
        return text

    @classmethod
    def misfits(cls, params: Any, connection: Connection) -> Sequence[str]:
        """Return names that the connection does not list."""
        return unknown_mentions(params, connection)

    async def plan(self, params: ChatParams, ctx: Context) -> Plan:
        """Render the message. Nothing is sent, no secret is read."""
        connection = ctx.connection(self.connection, params.connection)
        if faults := self.misfits(params, connection):
            raise PlanRefused(f"connection {params.connection!r} {faults[0]}")
        if bad := [url for url in params.links.values() if not is_link(url)]:
            raise PlanRefused(f"links: {bad[0][:200]!r} is not an http(s) URL")
        target = target_of(self.service.lower(), params.connection, ctx)
        words = word(params, ctx.values, ctx.now, text=params.text)
        if isinstance(words, Nothing):
            return nothing_to_say(self.name, params.connection, target, words.why)
        called = params.mentions if words.kind is None or words.kind in params.mention_on else ()
        payload = self.payload(words, [connection.mentions[name] for name in called], params, ctx.values)
        return Plan(
            action=self.name,
            summary=f"tell {self.service} ({params.connection}): {one_line(words.text)[:100]}",
            targets=(target,),
            intent={"payload": dict(payload)},
            changes=(Change(target.id, "message", None, self.escaped(words.text)),),
            connection=params.connection,
        )
