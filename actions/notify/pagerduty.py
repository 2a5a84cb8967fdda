"""`notify.pagerduty`: trigger, acknowledge and resolve alerts through PagerDuty's Events API v2."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, ClassVar, Literal

from pydantic import Field, StrictBool, StrictFloat, StrictInt, StrictStr, field_validator

from actions.notify.delivery import Delivery, Message, nothing_to_say, target_of
from actions.notify.sending import PrivateUrl
from actions.notify.showing import is_link, known_links, shown
from actions.notify.wording import LATER, Kind, Nothing, Telling, Words, moment, one_line, word
from remediator.action import Context, Permission, PermissionKind, SecretRef
from remediator.errors import PermanentError, PlanRefused
from remediator.httpclient import WebConnection
from remediator.model import JSON, Change, Plan, Target

MAX_SUMMARY = 1_024
MAX_KEY = 255
MAX_DETAIL = 8_000
"""Most characters of one custom detail."""
MAX_DETAILS = 300_000
"""Most bytes of all custom details; a whole event may have 512 KB."""
HOSTS: Mapping[str, str] = {"us": "https://events.pagerduty.com", "eu": "https://events.eu.pagerduty.com"}
_ROUTING_KEY = re.compile(r"[A-Za-z0-9]{32}")
_OPTIONAL = frozenset({Kind.APPROVAL, Kind.UPDATE, Kind.DIGEST})


class PagerSeverity(StrEnum):
    """PagerDuty's own words."""

    CRITICAL = "critical"
    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


def _severities() -> Mapping[str, PagerSeverity]:
    return dict(zip(("sev1", "sev2", "sev3", "sev4"), PagerSeverity, strict=True))


class PagerDutyConnection(WebConnection):
    """One integration of a PagerDuty service, of the kind Events API v2."""

    model_config = LATER
    routing_key: SecretRef = Field(description="reference of the integration key, 32 characters")
    region: Literal["us", "eu"] = Field("us", description="where the account lives")
    prefix: str = Field(
        "", max_length=50, description="put before each alert's key; two daemons that share an integration need different ones"
    )
    url: PrivateUrl | None = Field(None, description="another address than the region's, such as a gateway's; `/v2/enqueue` is added")
    severities: Mapping[str, PagerSeverity] = Field(
        default_factory=_severities,
        description="our severity → PagerDuty's: critical, error, warning, info; any other is critical",
    )

    @property
    def address(self) -> str:
        """Where events go."""
        return f"{self.url or HOSTS[self.region]}/v2/enqueue"


class _PagerDutyParams(Telling):
    trigger_on: Mapping[Kind, PagerSeverity] = Field(
        default_factory=dict,
        description="approval, update, digest → severity: raise an alert of its own for these too; a digest always does, by its severity",
    )
    event: Literal["trigger", "acknowledge", "resolve"] = Field("trigger", description="what a rule's own step sends")
    links: Mapping[str, str] = Field(default_factory=dict, max_length=10, description="title → http(s) URL")
    details: Mapping[str, StrictStr | StrictInt | StrictFloat | StrictBool] = Field(
        default_factory=dict, max_length=50, description="further custom details"
    )

    @field_validator("trigger_on")
    @classmethod
    def _are_optional(cls, kinds: Mapping[Kind, PagerSeverity]) -> Mapping[Kind, PagerSeverity]:
        if wrong := sorted(kinds.keys() - _OPTIONAL):
            raise ValueError(f"{', '.join(wrong)}: a page always triggers, acknowledged acknowledges, resolved resolves")
        return kinds


class PagerDuty(Delivery[_PagerDutyParams]):
    """Trigger, acknowledge or resolve an alert in PagerDuty.

    A page triggers, an acknowledgement here acknowledges there, the end resolves; all share one `dedup_key`, so that a message that
    comes twice changes nothing. A storm's digest stands for a thousand pages and triggers as well. Updates and questions do nothing,
    unless `trigger_on` names them.
    """

    name = "notify.pagerduty"
    Params = _PagerDutyParams
    connection = PagerDutyConnection
    permissions = (Permission(PermissionKind.HTTP, ("POST",), "/v2/enqueue", why="send events"),)
    example: ClassVar[Mapping[str, Any]] = {
        "connection": "pager",
        "text": "Restarting did not help ${labels.deployment}",
        "links": {"dashboard": "https://grafana.example.com/d/shop"},
    }

    async def plan(self, params: _PagerDutyParams, ctx: Context) -> Plan:
        """Make the events, without the key. Nothing is sent, no secret is read."""
        connection = ctx.connection(PagerDutyConnection, params.connection)
        target = target_of("pagerduty", params.connection, ctx)
        if bad := [url for url in params.links.values() if not is_link(url)]:
            raise PlanRefused(f"links: {bad[0][:200]!r} is not an http(s) URL")
        words = word(params, ctx.values, ctx.now, text=params.text)
        if isinstance(words, Nothing):
            return nothing_to_say(self.name, params.connection, target, words.why)
        events = list(_events(words, params, connection, ctx))
        if not events:
            return nothing_to_say(self.name, params.connection, target, f"a message of kind {words.kind} raises no alert")
        return self._plan(params.connection, target, events, words)

    def _plan(self, connection: str, target: Target, events: Sequence[Mapping[str, JSON]], words: Words) -> Plan:
        action = events[0]["event_action"]
        return Plan(
            action=self.name,
            summary=f"{action} in PagerDuty ({connection}): {words.subject[:100]}",
            targets=(target,),
            intent={"events": events},
            changes=(Change(target.id, "alert", None, f"{action}: {words.subject}"),),
            connection=connection,
        )

    async def messages(self, plan: Plan, ctx: Context) -> Sequence[Message]:
        """Return the events with their key. Raises `PermanentError` for a key that can't be one; never shows it."""
        connection = ctx.connection(PagerDutyConnection, plan.connection)
        key = await ctx.secret(connection.routing_key)
        if not _ROUTING_KEY.fullmatch(key):
            raise PermanentError(f"the routing key of connection {plan.connection!r} is not 32 letters and digits; correct its secret")
        bodies = (json.dumps({"routing_key": key, **event}, allow_nan=False).encode() for event in plan.intent["events"])
        return [Message(connection.address, body, secrets=(key,)) for body in bodies]


def dedup_key(name: str) -> str:
    """Return a key that PagerDuty takes: the name itself, or its hash where that is too long."""
    raw = name.encode("utf-8", "replace")
    return name if len(raw) <= MAX_KEY else hashlib.sha256(raw).hexdigest()


def _events(words: Words, params: _PagerDutyParams, connection: PagerDutyConnection, ctx: Context) -> Iterable[dict[str, JSON]]:
    """Give the events of one message. Optional alerts have keys of their own: a later page must not be folded into a warning."""
    page = connection.prefix + (one_line(shown(ctx.values, "page")) or one_line(shown(ctx.values, "incident")) or ctx.key)
    severity = connection.severities.get(shown(ctx.values, "severity"), PagerSeverity.CRITICAL)
    match words.kind:
        case None if params.event != "trigger":
            yield {"event_action": params.event, "dedup_key": dedup_key(page)}
        case None | Kind.PAGE:
            yield _trigger(page, severity, words, params, ctx)
        case Kind.ACKNOWLEDGED:
            yield {"event_action": "acknowledge", "dedup_key": dedup_key(page)}
        case Kind.RESOLVED:
            for name in (page, *(f"{page}/{kind.value}" for kind in sorted(params.trigger_on) if kind is not Kind.DIGEST)):
                yield {"event_action": "resolve", "dedup_key": dedup_key(name)}
        case Kind.DIGEST if shown(ctx.values, "state") == "over":
            yield {"event_action": "resolve", "dedup_key": dedup_key(f"{page}/digest")}
        case Kind.DIGEST:
            yield _trigger(f"{page}/digest", params.trigger_on.get(Kind.DIGEST, severity), words, params, ctx)
        case kind if kind in params.trigger_on:
            yield _trigger(f"{page}/{kind.value}", params.trigger_on[kind], words, params, ctx)


def _trigger(name: str, severity: PagerSeverity, words: Words, params: _PagerDutyParams, ctx: Context) -> dict[str, JSON]:
    values = ctx.values
    payload: dict[str, JSON] = {
        "summary": words.subject[:MAX_SUMMARY],
        "source": (one_line(shown(values, "target")) or one_line(shown(values, "rule")) or ctx.identity.name)[:MAX_KEY],
        "severity": severity.value,
        "custom_details": _details(words, params, values),
    }
    if (opened := moment(values.get("opened_at"))) is not None:
        payload["timestamp"] = opened.isoformat()
    if rule := one_line(shown(values, "rule")):
        payload |= {"class": rule[:MAX_KEY]}
    event: dict[str, JSON] = {"event_action": "trigger", "dedup_key": dedup_key(name), "payload": payload, "client": ctx.identity.name}
    links = [{"href": url, "text": one_line(title)[:100]} for title, url in (*known_links(values), *params.links.items())]
    home = shown(values, "link")
    return event | ({"links": links} if links else {}) | ({"client_url": home} if is_link(home) else {})


def _details(words: Words, params: _PagerDutyParams, values: Mapping[str, Any]) -> dict[str, JSON]:
    """Return what the responder sees first: the text, then facts that are known, then a rule's own details."""
    names = ("incident", "rule", "target", "remedy", "run", "state", "reason", "runbook", "approval", "level")
    known = {name: one_line(shown(values, name), MAX_DETAIL) for name in names}
    taken = values.get("actions_taken")
    done = [one_line(one) for one in taken][:50] if isinstance(taken, list | tuple) else []
    first: dict[str, JSON] = {"text": words.text[:MAX_DETAIL], **({"dry_run": True} if values.get("dry_run") else {})}
    details = {
        **first,
        **{name: value for name, value in known.items() if value},
        **({"actions_taken": done} if done else {}),
        **{name: one_line(value, MAX_DETAIL) if isinstance(value, str) else value for name, value in params.details.items()},
    }
    return details if len(json.dumps(details)) <= MAX_DETAILS else {**first, "left_out": "all details: together they were too large"}
