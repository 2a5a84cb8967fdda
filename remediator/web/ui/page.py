"""What a view gets and gives: a signed-in caller with a path in, a template with its data out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from remediator.model import Actor
from remediator.people.authentication import Operation, allows
from remediator.service import Service
from remediator.web.problems import Refused
from remediator.web.routes import Call, Surface
from remediator.web.ui.sessions import Session

Form = Mapping[str, str]
"""A form's fields as they were sent; of a field that came twice, the last one."""


@dataclass(frozen=True)
class Failed:
    """A form that was refused: what was typed is shown again, with the reason."""

    form: str
    """Which form of the page."""
    refused: Refused
    values: Form

    @property
    def message(self) -> str:
        """Why, for people."""
        return str(self.refused)

    @property
    def details(self) -> list[str]:
        """Single faults, where there are several."""
        problems = self.refused.more.get("problems")
        return [str(one) for one in problems] if isinstance(problems, list) else []


@dataclass(frozen=True)
class Page:
    """One page asked for by somebody who is signed in and may see it."""

    call: Call
    session: Session
    path: str
    """The page's own address with its query, for forms to come back to."""
    query: Mapping[str, str]
    now: datetime
    failed: Failed | None = None
    written: str = ""
    """The store's mark before anything of the page was read; empty: unknown."""

    @property
    def service(self) -> Service:
        """The daemon."""
        return self.call.service

    @property
    def surface(self) -> Surface:
        """What all handlers share."""
        return self.call.surface

    @property
    def actor(self) -> Actor:
        """Who asks."""
        return self.call.actor

    def part(self, name: str) -> str:
        """Return a part of the path."""
        return self.call.path(name)

    def may(self, operation: Operation) -> bool:
        """Tell whether the caller may do something, so that what he may not do is not offered."""
        return allows(self.actor, operation)

    def asking(self, **query: Any) -> Call:
        """Return the call as a route of the API sees it, with these parameters."""
        return replace(self.call, query=query)

    def has_failed(self, form: str) -> bool:
        """Tell whether this form was just refused."""
        return self.failed is not None and self.failed.form == form


@dataclass(frozen=True)
class Shown:
    """What a view gives: a template and its data."""

    template: str
    title: str
    data: Mapping[str, Any] = field(default_factory=dict)
    chain: str | None = ""
    """Whose events make the page change: an incident's; empty: everything does; None: it stays as it is."""


@dataclass(frozen=True)
class Moved:
    """What a view gives when the thing is shown elsewhere."""

    to: str


Look = Callable[[Page], Awaitable[Any]]


@dataclass(frozen=True)
class View:
    """A page: its path, what shows it, and who may see it."""

    path: str
    look: Look
    operation: Operation = Operation.READ
