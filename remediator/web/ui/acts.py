"""What people do on pages: each form leads to one route of the API, whose rights, body and handler are used as they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from remediator.model import JSON
from remediator.records import FREEZE
from remediator.web.ui.page import Form

Fields = Mapping[str, JSON]


@dataclass(frozen=True)
class Act:
    """One form's way."""

    path: str
    route: str
    """Name of the API's route that does it."""
    body: Callable[[Form], Fields] = dict
    """Makes the route's JSON body of the form's fields."""
    said: str = ""
    """Key of what is said afterwards (`SAID`); may hold a field of the form."""
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
    how = form.get("ends", "")
    if how == "until":
        fields["until"] = f"{form.get('until', '').strip()}Z"
    elif how != "person":
        fields["for"] = how
    return fields


def _thawed(form: Form) -> Fields:
    scope = form.get("scope", "")
    return {**only("reason", "at")(form), "scope": "global" if scope == FREEZE else scope.removeprefix(f"{FREEZE}:")}


def _decided(form: Form) -> Fields:
    """Name the plan that was on the page in any case: a form without one is about no plan, which is refused."""
    return {**only("decision", "comment")(form), "plan_hash": form.get("plan_hash", "")}


def _forced(form: Form) -> Fields:
    return {**only("to", "reason")(form), "force": form.get("force") == "on"}


ACTS: tuple[Act, ...] = (
    Act("/ui/do/pause", "pause", only("scope", "reason"), "paused"),
    Act("/ui/do/resume", "resume", only("scope", "reason", "at"), "resumed"),
    Act("/ui/do/freeze", "freeze", _frozen, "frozen"),
    Act("/ui/do/thaw", "thaw", _thawed, "thawed"),
    Act("/ui/do/take-target", "takeTarget", only("target", "reason", **{"for": "span"}), "taken"),
    Act("/ui/do/release-target", "releaseTarget", only("target", "reason"), "released"),
    Act("/ui/do/reload", "reload", lambda _form: {}, "reloaded"),
    Act("/ui/incidents/{incident}/acknowledge", "acknowledgeIncident", lambda _form: {}, "acknowledged"),
    Act("/ui/incidents/{incident}/take", "takeIncident", only("reason", **{"for": "span"}), "taken"),
    Act("/ui/incidents/{incident}/release", "releaseIncident", only("reason"), "released"),
    Act("/ui/approvals/{approval}/decide", "decideApproval", _decided, "{decision}"),
    Act("/ui/runs/{run}/signal", "signalRun", only("kind", "comment", "entered_at"), "signalled"),
    Act("/ui/runs/{run}/undo", "undoRun", only("comment"), "undo", to="/ui/runs/{new}"),
    Act("/ui/rules/{rule}/promote", "promoteRule", _forced, "promoted"),
    Act("/ui/rules/{rule}/demote", "demoteRule", only("to", "reason"), "demoted"),
)
"""Every form of the interface but signing in and out."""

SAID: Mapping[str, str] = {
    "paused": "The kill switch is thrown. Calls under way finish, nothing further is started.",
    "resumed": "Lifted. What was interrupted waits for a person's word, run by run.",
    "frozen": "Frozen.",
    "thawed": "Thawed. What waited looks again.",
    "reloaded": "Settings and rules were read again and are in force.",
    "acknowledged": "You are the owner now.",
    "taken": "It is yours: automation keeps its hands off.",
    "released": "Released. What was stopped waits for a person's word.",
    "approve": "Your approval is recorded.",
    "deny": "Denied. Nothing is changed.",
    "signalled": "The run was told and goes on from here.",
    "undo": "This run does the undo.",
    "promoted": "Promoted.",
    "demoted": "Demoted.",
    "out": "You are signed out.",
}
"""What is said after an act, by key: an address names the key only, so that no link can put words on a page."""


def raw(fields: Fields) -> bytes:
    """Write a body as a caller of the API would send it."""
    return json.dumps(fields).encode()


def new_of(answer: Mapping[str, Any]) -> str:
    """Return the id of the run that an answer tells of; empty where there is none."""
    run = answer.get("run")
    return str(run["id"]) if isinstance(run, Mapping) else ""
