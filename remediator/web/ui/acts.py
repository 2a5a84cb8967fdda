"""What people do on pages: each form leads to one route of the API, whose rights, body and handler are used as they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from remediator.model import JSON
from remediator.records import FREEZE
from remediator.web.problems import Refused
from remediator.web.ui import said
from remediator.web.ui.page import Form
from remediator.web.ui.said import Done

Fields = Mapping[str, JSON]


@dataclass(frozen=True)
class Act:
    """One form's way."""

    path: str
    route: str
    """Name of the API's route that does it."""
    body: Callable[[Form], Fields]
    """Makes the route's JSON body of the form's fields."""
    said: Callable[[Done], str]
    """Says afterwards what was done."""
    to: str = ""
    """The page to go to afterwards, from the parts of the path and `{new}`, the id that the route answered; empty: the form's own."""


def only(*names: str, **renamed: str) -> Callable[[Form], Fields]:
    """Take these fields as they are, those that are empty left out. `renamed` gives other fields' names in the form."""
    wanted = {**{name: name for name in names}, **renamed}

    def body(form: Form) -> Fields:
        return {name: form[field].strip() for name, field in wanted.items() if form.get(field, "").strip()}

    return body


def _frozen(form: Form) -> Fields:
    """Say what is frozen, for a time, until a moment in UTC, or until somebody ends it."""
    fields = dict(only("scope", "reason")(form))
    how, until = form.get("ends", ""), form.get("until", "").strip()
    if (how == "until") != bool(until):
        raise Refused(422, _other_end(how, until), reason="two_ends")
    if how == "until":
        fields["until"] = f"{until}Z"
    elif how != "person":
        fields["for"] = how
    return fields


def _other_end(how: str, until: str) -> str:
    if not until:
        return "you chose “until the time given”, and gave no time: type it, or choose how long"
    chosen = "until somebody thaws it" if how == "person" else how
    return f"you typed the end {until} and chose “{chosen}”: choose “until the time given”, or empty the time, so that both say the same"


def _thawed(form: Form) -> Fields:
    scope = form.get("scope", "")
    return {**only("reason", "at")(form), "scope": "global" if scope == FREEZE else scope.removeprefix(f"{FREEZE}:")}


def _decided(form: Form) -> Fields:
    """Name the plan that was on the page in any case: a form without one is about no plan, which is refused."""
    return {**only("decision", "comment")(form), "plan_hash": form.get("plan_hash", "")}


def _forced(form: Form) -> Fields:
    return {**only("to", "reason")(form), "force": form.get("force") == "on"}


ACTS: tuple[Act, ...] = (
    Act("/ui/do/pause", "pause", only("scope", "reason"), said.paused),
    Act("/ui/do/resume", "resume", only("scope", "reason", "at"), said.resumed),
    Act("/ui/do/freeze", "freeze", _frozen, said.frozen),
    Act("/ui/do/thaw", "thaw", _thawed, said.thawed),
    Act("/ui/do/take-target", "takeTarget", only("target", "reason", **{"for": "span"}), said.taken),
    Act("/ui/do/release-target", "releaseTarget", only("target", "reason"), said.released),
    Act("/ui/do/reload", "reload", lambda _form: {}, said.reloaded),
    Act("/ui/incidents/{incident}/acknowledge", "acknowledgeIncident", lambda _form: {}, said.acknowledged),
    Act("/ui/incidents/{incident}/take", "takeIncident", only("reason", **{"for": "span"}), said.taken),
    Act("/ui/incidents/{incident}/release", "releaseIncident", only("reason"), said.released),
    Act("/ui/approvals/{approval}/decide", "decideApproval", _decided, said.decided),
    Act("/ui/runs/{run}/signal", "signalRun", only("kind", "comment", "entered_at"), said.told),
    Act("/ui/runs/{run}/undo", "undoRun", only("comment"), said.undone, to="/ui/runs/{new}"),
    Act("/ui/rules/{rule}/promote", "promoteRule", _forced, said.moved),
    Act("/ui/rules/{rule}/demote", "demoteRule", only("to", "reason"), said.moved),
)
"""Every form of the interface but signing in and out."""


def raw(fields: Fields) -> bytes:
    """Write a body as a caller of the API would send it."""
    return json.dumps(fields).encode()


def new_of(answer: Mapping[str, Any]) -> str:
    """Return the id of the run that an answer tells of; empty where there is none."""
    run = answer.get("run")
    return str(run["id"]) if isinstance(run, Mapping) else ""
