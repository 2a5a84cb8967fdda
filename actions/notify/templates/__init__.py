"""Named templates: what an organisation says to its team and its customers. Files of this directory, checked when they are read.

A file `NAME.yaml` gives the templates `NAME` (the team), `NAME-customers` (status page, customers' mail) and `NAME-post-incident`.
Each has, for each kind of message that it knows, a subject and a text; of other kinds it says nothing.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources

from remediator.errors import PermanentError
from remediator.model import JSON

PLACE = re.compile(r"\$\{([^}]*)\}")
PUBLIC = ("incident", "severity", "status", "opened_at", "resolved_at", "duration", "now", "date")
"""What customers may be told: nothing that an alert's text or a plan could hold."""
OURS = (
    *("summary", "rule", "target", "runbook", "reason", "remedy", "run", "state", "approval", "link", "level", "acknowledged_by"),
    *("text", "actions", "contacts"),
)
"""What the team may be told besides: the daemon's facts. `text` are the daemon's own words, or a rule's."""
FIELDS: Mapping[str, str] = {
    "service": "what is affected, as people call it",
    "impact": "what users notice",
    "workaround": "what users can do meanwhile",
    "eta": "when it may be over",
    "updates_every": "how often people hear of it",
    "status_page": "address of the status page",
    "war_room": "where the team meets",
    "commander": "who leads",
    "next_steps": "what is done next",
    "root_cause": "why it happens, where that is known beforehand",
    "follow_up": "where the post-mortem will stand",
    "team": "who signs",
}
"""What only the operator knows, given as `fields`."""


class Audience(StrEnum):
    """Who reads it."""

    TEAM = "team"
    CUSTOMERS = "customers"
    POST_INCIDENT = "post_incident"


@dataclass(frozen=True)
class Body:
    """What a template says of one kind of message."""

    subject: str
    text: str


@dataclass(frozen=True)
class Template:
    """One named template. `bodies` are by kind of message."""

    name: str
    audience: Audience
    bodies: Mapping[str, Body]

    @property
    def needed(self) -> frozenset[str]:
        """The fields without which a subject could not be written."""
        return frozenset(place for body in self.bodies.values() for place in PLACE.findall(body.subject)) & FIELDS.keys()


@functools.cache
def names() -> tuple[str, ...]:
    """Return the names of all templates."""
    return tuple(_name(stem, audience) for stem in _stems() for audience in Audience)


@functools.cache
def load(name: str) -> Template:
    """Return a template. Raises `PermanentError` when there is none of that name, or its file is wrong."""
    for stem in _stems():
        for audience in Audience:
            if _name(stem, audience) == name:
                return Template(name, audience, _bodies(name, audience, _read(stem).get(audience.value, {})))
    raise PermanentError(f"there is no template {name!r}; there are {', '.join(names())}")


def _name(stem: str, audience: Audience) -> str:
    return stem if audience is Audience.TEAM else f"{stem}-{audience.value.replace('_', '-')}"


def _stems() -> tuple[str, ...]:
    found = (entry.name for entry in resources.files(__name__).iterdir())
    return tuple(sorted(name.removesuffix(".yaml") for name in found if name.endswith(".yaml")))


@functools.cache
def _read(stem: str) -> Mapping[str, JSON]:
    import yaml

    found: Mapping[str, JSON] = yaml.safe_load((resources.files(__name__) / f"{stem}.yaml").read_text("utf-8"))
    return found


def _bodies(name: str, audience: Audience, raw: Mapping[str, Mapping[str, str]]) -> Mapping[str, Body]:
    allowed = {*PUBLIC, *FIELDS, *(() if audience is Audience.CUSTOMERS else OURS)}
    for kind, said in raw.items():
        if unknown := sorted({place for text in said.values() for place in PLACE.findall(text)} - allowed):
            raise PermanentError(f"template {name} uses {unknown} for {kind}; it may use {sorted(allowed)}")
    return {kind: Body(said["subject"], said["text"]) for kind, said in raw.items()}
