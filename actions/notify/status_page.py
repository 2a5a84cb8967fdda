"""`notify.status_page`: incidents on a public status page, through Statuspage's API or one that speaks like it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, Literal

from pydantic import Field, StrictBool, field_validator, model_validator

from actions.notify.delivery import Messenger, nothing_to_say, target_of
from actions.notify.sending import Message, PrivateUrl, Sender, open_sender
from actions.notify.showing import clip, shown
from actions.notify.templates import Audience, load
from actions.notify.wording import LATER, Kind, Nothing, Wording, Words, known_template, one_line, status_of, tidy, word
from remediator.action import Connection, Context, Permission, PermissionKind, Reconciled, SecretRef, Settled
from remediator.errors import PermanentError, PlanRefused, PreconditionChanged, TemporaryError
from remediator.httpclient import WebConnection
from remediator.model import JSON, Change, Plan, Receipt, Repeat, Target

MAX_NAME = 255
MAX_BODY = 25_000
LISTED = 50
"""Incidents that one listing holds; the newest come first."""
KEPT = 40
"""Keys of messages that an incident on the page remembers."""
OURS = "remediator"
"""Where our notes stand in an incident's metadata."""


class ComponentStatus(StrEnum):
    """Statuspage's own words."""

    OPERATIONAL = "operational"
    DEGRADED = "degraded_performance"
    PARTIAL = "partial_outage"
    MAJOR = "major_outage"
    MAINTENANCE = "under_maintenance"


class StatusPageConnection(WebConnection):
    """One status page. Its API key may change everything on all pages of the organisation: keep it as such."""

    model_config = LATER
    api_key: SecretRef = Field(description="reference of the API key, sent as Authorization: OAuth")
    page: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$", description="the page's id")
    url: PrivateUrl = Field("https://api.statuspage.io/v1", description="another address that speaks the same API")
    components: Mapping[str, str] = Field(default_factory=dict, description="components that may be changed: name → id")
    prefix: str = Field(
        "", max_length=50, description="put before an incident's id in the page's notes; two daemons that share a page need different ones"
    )

    @field_validator("components")
    @classmethod
    def _are_ids(cls, components: Mapping[str, str]) -> Mapping[str, str]:
        if wrong := sorted(name for name, ident in components.items() if not ident.isalnum() or not ident.isascii()):
            raise ValueError(f"{', '.join(wrong)}: not an id; copy it from the component's settings")
        return components

    @model_validator(mode="after")
    def _one_key(self) -> StatusPageConnection:
        if self.bearer or self.basic or any(name.lower() == "authorization" for name in self.headers):
            raise ValueError("api_key is the authorization; leave out bearer, basic and an Authorization header")
        return self


class _StatusPageParams(Wording):
    all_updates = True

    template: str = Field("general-customers", description="name of a template for customers; others could tell them what is internal")
    name: str = Field(
        "", max_length=MAX_NAME, description="title of a step's incident, or of a policy's first notice, instead of the template's"
    )
    body: str = Field("", max_length=MAX_BODY, description="what it says, instead of the template's text")
    publish: Literal["create", "update", "resolve"] = Field("create", description="what a rule's own step does")
    components: Mapping[str, ComponentStatus] = Field(
        default_factory=dict,
        description="status of components while it lasts: name from the connection's list → status; operational at its end",
    )
    impact: Literal["none", "minor", "major", "critical"] | None = Field(
        None, description="instead of what the components' status makes of it"
    )
    deliver_notifications: StrictBool = Field(True, description="also tell the page's subscribers")

    @field_validator("template")
    @classmethod
    def _is_for_customers(cls, name: str) -> str:
        if load(known_template(name) or "general").audience is not Audience.CUSTOMERS:
            raise ValueError(f"template {name!r} is not for customers; take one whose name ends in -customers")
        return name


@dataclass(frozen=True)
class _Seen:
    """What the page knows of an incident of ours."""

    open: Mapping[str, JSON] | None = None
    """The one that is not resolved."""
    told: Mapping[str, JSON] | None = None
    """The one that has this very message already."""
    busy: frozenset[str] = frozenset()
    """Components that another open incident is about."""


class StatusPage(Messenger[_StatusPageParams]):
    """Create, update and resolve an incident on a public status page, and set its components.

    A page creates, an update updates, the end resolves. The page's own metadata remember incident and message, and are looked at first,
    so that nothing is published twice. Once a person has changed the incident's status on the page, it is theirs: nothing more is written.
    Customers read a template that takes nothing from alerts, and never hear of a dry run.
    """

    name = "notify.status_page"
    Params = _StatusPageParams
    connection = StatusPageConnection
    repeat = Repeat.DETECTABLE
    permissions = (Permission(PermissionKind.HTTP, ("GET", "POST", "PATCH"), "/v1/pages/*/incidents*", why="find and write incidents"),)
    example: ClassVar[Mapping[str, Any]] = {
        "connection": "public-page",
        "template": "sre-customers",
        "fields": {"service": "the web shop", "impact": "Orders may fail", "status_page": "https://status.example.com"},
        "components": {"checkout": "partial_outage"},
        "impact": "major",
    }

    @classmethod
    def misfits(cls, params: Any, connection: Connection) -> Sequence[str]:
        """Return components that the connection does not list."""
        known = getattr(connection, "components", {})
        unknown = sorted(params.components.keys() - known.keys())
        return [f"has no components {unknown}; it has {sorted(known)}"] if unknown else []

    async def plan(self, params: _StatusPageParams, ctx: Context) -> Plan:
        """Look at the page and make the request. Nothing is written."""
        connection = ctx.connection(StatusPageConnection, params.connection)
        if faults := self.misfits(params, connection):
            raise PlanRefused(f"connection {params.connection!r} {faults[0]}")
        target = target_of("status_page", params.connection, ctx)
        if ctx.values.get("dry_run"):
            return nothing_to_say(self.name, params.connection, target, "customers are not told of a dry run")
        words = _words(params, ctx)
        verb = _verb(words)
        if isinstance(words, Nothing) or verb is None:
            why = words.why if isinstance(words, Nothing) else f"customers need not know of a message of kind {words.kind}"
            return nothing_to_say(self.name, params.connection, target, why)
        seen = await _look(params.connection, ctx)
        request = _request(verb, words, params, connection, seen, ctx)
        if why := _needless(verb, seen, request["incident"]):
            return nothing_to_say(self.name, params.connection, target, why)
        return self._plan(params.connection, target, request, words)

    def _plan(self, connection: str, target: Target, request: Mapping[str, JSON], words: Words) -> Plan:
        verb, incident = request["verb"], request["incident"]
        components = tuple(
            Change(target.id, f"component {ident}", None, status) for ident, status in incident.get("components", {}).items()
        )
        return Plan(
            action=self.name,
            summary=f"{verb} on the status page ({connection}): {words.subject[:100]}",
            targets=(target,),
            intent={"verb": verb, "incident": incident},
            precondition=request["at"],
            changes=(Change(target.id, "incident", None, f"{incident['status']}: {incident['body'][:500]}"), *components),
            connection=connection,
        )

    async def apply(self, plan: Plan, ctx: Context) -> Receipt:
        """Look again, then write once. What this very message has written already is found and not written twice."""
        if plan.noop:
            return Receipt(plan.summary)
        sender = await ctx.client(StatusPageConnection, plan.connection, open_sender)
        async with sender.turn:
            seen = await _look(plan.connection, ctx)
            if seen.told is not None:
                return _receipt(plan, seen.told, 200)
            if _at(seen.open) != plan.precondition:
                raise PreconditionChanged("the incident on the status page is not the one that was planned for; plan again")
            connection = ctx.connection(StatusPageConnection, plan.connection)
            place = "" if plan.precondition["open"] is None else f"/{plan.precondition['open']}"
            method = "PATCH" if place else "POST"
            body = json.dumps({"incident": plan.intent["incident"]}).encode()
            status, said = await _call(sender, connection, ctx, plan.connection, method=method, place=f"incidents{place}", body=body)
            return _receipt(plan, said if isinstance(said, dict) else {}, status)

    async def reconcile(self, plan: Plan, ctx: Context) -> Reconciled:
        """Look whether the page has this message."""
        seen = await _look(plan.connection, ctx)
        if seen.told is None:
            return Reconciled(Settled.NOT_APPLIED, "no incident on the status page has this message")
        return Reconciled(Settled.APPLIED, "the status page has this message", _receipt(plan, seen.told, 200))


def _receipt(plan: Plan, incident: Mapping[str, JSON], status: int) -> Receipt:
    ids = tuple(target.id for target in plan.targets)
    return Receipt(f"the status page shows it: {one_line(incident.get('shortlink') or _id(incident) or '')}", {"status": status}, ids)


_VERBS: Mapping[Kind, str] = {Kind.PAGE: "create", Kind.UPDATE: "update", Kind.RESOLVED: "resolve"}


def _words(params: _StatusPageParams, ctx: Context) -> Words | Nothing:
    published = {verb: kind.value for kind, verb in _VERBS.items()}[params.publish]
    step = {} if ctx.values.get("kind") else {"kind": published, "page": "step"}
    words = word(params, {**ctx.values, **step}, ctx.now)
    if isinstance(words, Nothing):
        return words
    own = params if step or words.kind is Kind.PAGE else None
    name, body = (one_line(own.name), tidy(own.body)) if own else ("", "")
    return Words(words.kind, plain(name or words.subject), plain(body or words.text), words.audience)


def plain(text: str) -> str:
    """Return text in which a page that renders HTML or Markdown finds neither: what a rule put in may come from an alert.

    >>> plain("<b>down</b>, see [here](https://evil.example.com)").isascii()
    False
    """
    return text.replace("<", "\u2039").replace(">", "\u203a").replace("](", "] (")


def _verb(words: Words | Nothing) -> str | None:
    return None if isinstance(words, Nothing) or words.kind is None else _VERBS.get(words.kind)


def _needless(verb: str, seen: _Seen, asked: Mapping[str, JSON]) -> str:
    """Return why nothing has to be written, or must be, or an empty text."""
    if seen.told is not None:
        return "the status page has this message already"
    if verb == "create" and seen.open is not None:
        return "the incident is on the status page already"
    if verb != "create" and seen.open is None:
        return "no open incident on the status page is ours"
    note = _note(seen.open or {})
    if seen.open is not None and note.get("status") != seen.open.get("status"):
        return "a person has changed the incident's status on the page, and goes on with it there"
    if verb == "update" and note.get("said") == asked["metadata"][OURS]["said"]:
        return "the status page says just that already"
    return ""


def _request(
    verb: str, words: Words, params: _StatusPageParams, connection: StatusPageConnection, seen: _Seen, ctx: Context
) -> dict[str, JSON]:
    status = {"create": "investigating", "resolve": "resolved"}.get(verb) or status_of(ctx.values).lower()
    body = clip(words.text, MAX_BODY) or words.subject
    note = {
        "incident": _incident(connection, ctx),
        "keys": _keys(seen.open, connection, ctx),
        "status": status,
        "said": _hash(f"{status} {body}"),
    }
    incident: dict[str, JSON] = {
        "status": status,
        "body": body,
        "deliver_notifications": params.deliver_notifications,
        "metadata": {**_metadata(seen.open or {}), OURS: note},
    }
    if verb == "create":
        incident["name"] = clip(words.subject, MAX_NAME)
        if params.impact is not None:
            incident["impact_override"] = params.impact
    wanted = {connection.components[name]: status.value for name, status in params.components.items()}
    if verb == "resolve":
        # A component that another open incident is about is not well yet.
        wanted = {ident: ComponentStatus.OPERATIONAL.value for ident in wanted if ident not in seen.busy}
    if wanted and verb != "update":
        incident |= {"components": wanted, "component_ids": sorted(connection.components[name] for name in params.components)}
    return {"verb": verb, "incident": incident, "at": _at(seen.open)}


# --- the page


def _incident(connection: StatusPageConnection, ctx: Context) -> str:
    return connection.prefix + (one_line(shown(ctx.values, "page")) or one_line(shown(ctx.values, "incident")) or ctx.key)


def _key(connection: StatusPageConnection, ctx: Context) -> str:
    """Return what stands for this message on the page; its own key would show how we work."""
    return _hash(f"{connection.prefix}{ctx.key}")


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


def _keys(incident: Mapping[str, JSON] | None, connection: StatusPageConnection, ctx: Context) -> str:
    return " ".join([*_note(incident or {}).get("keys", "").split()[-KEPT + 1 :], _key(connection, ctx)])


def _note(incident: Mapping[str, JSON]) -> Mapping[str, str]:
    """Return what we wrote into an incident's metadata, nothing where somebody else wrote otherwise."""
    ours = _metadata(incident).get(OURS, {})
    return {name: value for name, value in ours.items() if isinstance(value, str)}


def _metadata(incident: Mapping[str, JSON]) -> Mapping[str, Mapping[str, JSON]]:
    """Return an incident's metadata as far as it is well-formed: other programs' notes are sent back as they are."""
    metadata = incident.get("metadata")
    return {name: value for name, value in metadata.items() if isinstance(value, dict)} if isinstance(metadata, dict) else {}


def _id(incident: Mapping[str, JSON] | None) -> str | None:
    found = (incident or {}).get("id")
    return found if isinstance(found, str) and found.isalnum() and found.isascii() else None


def _at(incident: Mapping[str, JSON] | None) -> dict[str, JSON]:
    """Return where an incident stands, for a plan's precondition."""
    return {"open": _id(incident), "status": (incident or {}).get("status")}


async def _look(name: str, ctx: Context) -> _Seen:
    """Read the open incidents, and the newest ones of all. Raises `TemporaryError` for a page that can't be read."""
    connection = ctx.connection(StatusPageConnection, name)
    sender = await ctx.client(StatusPageConnection, name, open_sender)
    _, unresolved = await _call(sender, connection, ctx, name, method="GET", place="incidents/unresolved")
    _, newest = await _call(sender, connection, ctx, name, method="GET", place=f"incidents?limit={LISTED}")
    if not isinstance(unresolved, list) or not isinstance(newest, list):
        raise TemporaryError(f"the status page {name!r} did not answer with lists of incidents")
    here, key = _incident(connection, ctx), _key(connection, ctx)
    ours = [one for one in unresolved if isinstance(one, dict) and _id(one) and _note(one).get("incident") == here]
    others = [one for one in unresolved if isinstance(one, dict) and one not in ours]
    told = [one for one in (*unresolved, *newest) if isinstance(one, dict) and key in _note(one).get("keys", "").split()]
    busy = frozenset(str(part.get("id")) for one in others for part in one.get("components") or () if isinstance(part, dict))
    return _Seen(ours[0] if ours else None, told[0] if told else None, busy)


async def _call(
    sender: Sender, connection: StatusPageConnection, ctx: Context, name: str, *, method: str, place: str, body: bytes = b""
) -> tuple[int, JSON]:
    """Send one request; return its status and what it says."""
    key = await ctx.secret(connection.api_key)
    if not key.isascii() or not key.isprintable() or not key:
        raise PermanentError(f"the API key of connection {name!r} can't be sent as a header; correct its secret")
    headers = {"Authorization": f"OAuth {key}", "Content-Type": "application/json", "Idempotency-Key": ctx.key}
    url = f"{connection.url}/pages/{connection.page}/{place}"
    answer = await sender.send(Message(url, body, headers, (key,), method), ctx, what=f"the status page of connection {name!r}")
    try:
        return answer.status, json.loads(answer.body)
    except ValueError:
        if method == "GET":
            raise TemporaryError(f"the status page of connection {name!r} answered with something that is not JSON") from None
        return answer.status, {}
