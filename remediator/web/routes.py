"""What a route is: handler, operation, query, body and answers in one value; server and OpenAPI document are made from it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from aiohttp import web
from pydantic import BaseModel

from remediator.metrics import Metrics
from remediator.model import JSON, Actor
from remediator.people.authentication import Authenticator, Operation, allows
from remediator.service import Service
from remediator.web.bodies import Room
from remediator.web.evidence import open_facts, without_evidence
from remediator.web.problems import HEADERS, Refused

B = TypeVar("B", bound=BaseModel)

NOBODY = Actor("nobody")
"""Who calls a route that asks for no credentials."""


@dataclass(frozen=True)
class Surface:
    """What all handlers share."""

    service: Service
    authenticator: Callable[[], Authenticator]
    """Gives the authenticator in force; a reload replaces it."""
    metrics: Metrics
    document: Callable[[], Mapping[str, JSON]]
    """The OpenAPI document."""
    max_body: int
    """Most bytes of a body."""
    room: Room
    """For bodies of all requests together."""
    body_timeout: float
    """Seconds that a body may take to arrive."""
    verifying: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Lets one verification of the audit run at a time."""


@dataclass(frozen=True)
class Call:
    """One authenticated, authorised, parsed request."""

    surface: Surface
    request: web.Request
    actor: Actor
    query: Mapping[str, Any]
    """Every declared parameter by name, with its default where it was left out."""
    raw: bytes = b""
    body: BaseModel | None = None
    parts: Mapping[str, str] | None = None
    """Parts of the path, where another path than the route's led here."""

    @property
    def service(self) -> Service:
        """The daemon."""
        return self.surface.service

    async def without_evidence(self, value: JSON) -> JSON:
        """Return `value` as the caller may see it: without raw log lines and SQL text where his role does not include evidence."""
        if allows(self.actor, Operation.READ_EVIDENCE):
            return value
        visible = await asyncio.to_thread(open_facts, self.service.registry)
        return await asyncio.to_thread(without_evidence, value, visible)

    def path(self, name: str) -> str:
        """Return a part of the path."""
        return (self.request.match_info if self.parts is None else self.parts)[name]

    def sent(self, model: type[B]) -> B:
        """Return the body, which the route declared to be a `model`."""
        assert isinstance(self.body, model)
        return self.body


Handle = Callable[[Call], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Query:
    """One query parameter. `many` ones may be repeated and give a tuple."""

    name: str
    description: str
    default: Any = None
    required: bool = False
    many: bool = False
    choices: tuple[str, ...] = ()
    least: int | None = None
    most: int | None = None
    """Bounds of a whole number; `least` set makes it one."""


LIMIT = Query("limit", "most items in the answer", default=100, least=1, most=1000)
BEFORE = Query("before", "`next` of the page before; leave out for the newest")


@dataclass(frozen=True)
class Answer:
    """The good answer of a route. `shape` is a dataclass or model whose JSON Schema is published, or a schema itself."""

    description: str
    shape: Any = None
    status: int = 200
    content: str = "application/json"
    page: bool = False
    """True for a part of a list: `{items: [shape], next}`."""


@dataclass(frozen=True)
class Route:
    """One route. `operation` None: open to everybody who can reach the port."""

    method: str
    path: str
    name: str
    """Name in the OpenAPI document and label of its metrics."""
    summary: str
    handle: Handle
    operation: Operation | None
    answer: Answer
    tag: str
    description: str = ""
    query: tuple[Query, ...] = ()
    body: type[BaseModel] | None = None
    body_schema: Mapping[str, JSON] | None = None
    """Schema of a body that the handler takes raw."""
    refusals: Mapping[int, str] = field(default_factory=dict)
    """Answers of its own besides those that all routes share, by status."""

    @property
    def takes_body(self) -> bool:
        """True when a request carries a JSON body."""
        return self.body is not None or self.body_schema is not None


def ok(value: JSON) -> web.Response:
    """Render a good answer."""
    return web.Response(body=json.dumps(value).encode(), headers=HEADERS, content_type="application/json")


def missing(what: str, name: str) -> Refused:
    """Say that there is no such thing."""
    return Refused(404, f"there is no {what} {name!r}", reason="not_found")
