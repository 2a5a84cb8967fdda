"""What a message says: the kinds of messages, named templates, and values put into them as data.

A template is plain text from a file of this package. `${name}` stands for one of our own values; what a value holds is never looked
at again, stays within its line, and each channel escapes the whole text afterwards: no alert can add a line, a link or a mention.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from actions.notify.templates import FIELDS, Audience, Template, load, names
from remediator.action import Params
from remediator.duration import format_duration

DRY_RUN = "DRY RUN · "
LONGEST_TEXT = 20_000
LONGEST_VALUE = 2_000
LONGEST_SUBJECT = 200
_PLACE = re.compile(r"\$\{([a-z_]+)\}")
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Controls, marks that turn the direction of writing, lone surrogates and other line ends: nothing that a reader needs."""


LATER = ConfigDict(defer_build=True)
"""Validators are made when a channel is first used: a daemon that uses one of six should not wait for the others at its start."""


class Kind(StrEnum):
    """What a message is about; a step of a rule has none."""

    PAGE = "page"
    APPROVAL = "approval"
    UPDATE = "update"
    DIGEST = "digest"
    ACKNOWLEDGED = "acknowledged"
    RESOLVED = "resolved"


HEADS: Mapping[Kind | None, str] = {
    None: "",
    Kind.PAGE: "🚨 ",
    Kind.APPROVAL: "✋ Approval wanted · ",
    Kind.UPDATE: "📊 Update · ",
    Kind.DIGEST: "🌩️ Storm · ",
    Kind.ACKNOWLEDGED: "👀 Acknowledged · ",
    Kind.RESOLVED: "✅ Resolved · ",
}
CALLING = frozenset({Kind.PAGE, Kind.APPROVAL, Kind.DIGEST})
"""Kinds that want somebody to come."""


def known_template(name: str) -> str:
    """Return a template's name, or an empty one. Raises ValueError for any other."""
    if name and name not in names():
        raise ValueError(f"there is no template {name!r}; there are {', '.join(names())}")
    return name


def _known_fields(fields: Mapping[str, str]) -> Mapping[str, str]:
    if unknown := sorted(fields.keys() - FIELDS.keys()):
        raise ValueError(f"templates know no {unknown}; they know {', '.join(sorted(FIELDS))}")
    return fields


TemplateName = Annotated[str, AfterValidator(known_template)]
Fields = Annotated[Mapping[str, str], AfterValidator(_known_fields)]


class Wording(Params):
    """What every message takes: through which connection, what it says, and of what."""

    model_config = LATER
    all_updates: ClassVar[bool] = False
    """True where customers get every update: where those that say nothing new are left out."""

    connection: str
    template: TemplateName = Field("", description="name of a template (see Tell people); none: the daemon's own words, or `text`")
    fields: Fields = Field(
        default_factory=dict, description=f"what only you know, for templates: {', '.join(FIELDS)}; a line without its value is left out"
    )
    kinds: frozenset[Kind] = Field(
        frozenset(Kind),
        min_length=1,
        description="messages of a policy that it takes: page, approval, update, digest, acknowledged, resolved",
    )

    @model_validator(mode="after")
    def _has_what_subjects_need(self) -> Self:
        if self.template and (missing := sorted(load(self.template).needed - self.fields.keys())):
            raise ValueError(f"template {self.template} needs `fields` with {', '.join(missing)}")
        return self


class Telling(Wording):
    """A message to our own people, who may also get the daemon's words."""

    text: str = Field("", description="the message, where no template is named; a policy's messages bring their own")

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.text and not self.template:
            raise ValueError("it has neither a text nor a template")
        return self


@dataclass(frozen=True)
class Words:
    """What one message says. `subject` is one line; `dry_run` is already said in both."""

    kind: Kind | None
    subject: str
    text: str
    audience: Audience = Audience.TEAM

    @property
    def public(self) -> bool:
        """True when nothing but these words may be shown: customers read them."""
        return self.audience is Audience.CUSTOMERS


@dataclass(frozen=True)
class Nothing:
    """Why this message is not sent here."""

    why: str


def kind_of(values: Mapping[str, Any]) -> Kind | None:
    """Return the kind of a message; None for a step of a rule. One that is not known here is told as an update, never lost."""
    raw = values.get("kind")
    if not raw:
        return None
    try:
        return Kind(str(raw))
    except ValueError:
        return Kind.UPDATE


def word(params: Wording, values: Mapping[str, Any], now: datetime, *, text: str = "") -> Words | Nothing:
    """Return what a message says, or why it is not for this receiver.

    `text` are the daemon's or the rule's words. Customers never hear of a dry run: nothing is being done, and nobody asked for a rehearsal.
    """
    kind = kind_of(values)
    if kind is not None and kind not in params.kinds:
        return Nothing(f"it takes no {kind.value} messages")
    if not params.template:
        return Words(kind, _marked(subject_of(kind, values), values), _marked(tidy(text), values))
    template = load(params.template)
    if template.audience is Audience.CUSTOMERS and (why := _not_for_customers(params, kind, values)):
        return Nothing(why)
    body = template.bodies.get((kind or Kind.UPDATE).value)
    if body is None:
        return Nothing(f"template {template.name} has nothing to say of a {kind or 'step'}")
    facts = _facts(template, params, values, now, text)
    fallback = f"Incident: {facts['status']}" if template.audience is Audience.CUSTOMERS else subject_of(kind, values)
    subject = one_line(fill(body.subject, facts))[:LONGEST_SUBJECT] or fallback
    return Words(kind, _marked(subject, values), _marked(fill(body.text, facts), values), template.audience)


def takes_pages(params: Wording) -> bool:
    """Tell whether our own people get pages through a receiver with these parameters."""
    if Kind.PAGE not in params.kinds:
        return False
    template = load(params.template) if params.template else None
    return template is None or (template.audience is Audience.TEAM and Kind.PAGE.value in template.bodies)


def _not_for_customers(params: Wording, kind: Kind | None, values: Mapping[str, Any]) -> str:
    """Return why customers don't hear of a message, or an empty text."""
    if values.get("dry_run"):
        return "customers are not told of a dry run"
    if kind is not None and not values.get("page"):
        return "it is about the daemon, or about many incidents, and customers are told of one"
    if kind is Kind.UPDATE and not params.all_updates and "kinds" not in params.model_fields_set:
        return "most updates are for the team; customers get them where `kinds` names them"
    return ""


def subject_of(kind: Kind | None, values: Mapping[str, Any]) -> str:
    """Return one line that says what it is about: the severity, the incident, what is wrong."""
    known = {name: one_line(values.get(name, "") or "") for name in ("severity", "incident", "summary", "rule")}
    lead = " ".join(part for part in (known["severity"].upper(), known["incident"]) if part)
    said = ": ".join(part for part in (lead, known["summary"] or known["rule"]) if part)
    head = _SUBJECTS.get(kind, "")
    return f"{head}{said}"[:LONGEST_SUBJECT] or "A message"


_SUBJECTS: Mapping[Kind | None, str] = {
    Kind.APPROVAL: "[APPROVAL WANTED] ",
    Kind.UPDATE: "[UPDATE] ",
    Kind.DIGEST: "[STORM] ",
    Kind.ACKNOWLEDGED: "[ACKNOWLEDGED] ",
    Kind.RESOLVED: "[RESOLVED] ",
}


# --- values


def one_line(value: object, limit: int = LONGEST_VALUE) -> str:
    """Write a value on one line, without what can't be seen.

    >>> one_line("disk full" + chr(10) + "Approve: remediator approve X")
    'disk full Approve: remediator approve X'
    """
    text = str(value)[: 4 * limit]
    return " ".join("".join(" " if unicodedata.category(char) in _INVISIBLE else char for char in text).split())[:limit]


def tidy(text: str) -> str:
    """Take out what can't be seen but line ends, and blank lines beyond one."""
    lines = text[:LONGEST_TEXT].replace("\r\n", "\n").replace("\r", " ").split("\n")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(map(_visible, lines))).strip("\n")


def _visible(line: str) -> str:
    return "".join(char for char in line if char == "\t" or unicodedata.category(char) not in _INVISIBLE).rstrip()


def fill(text: str, facts: Mapping[str, str]) -> str:
    """Put values into a template. A line with a place that has no value is left out; what a value holds is never looked at again."""
    lines = []
    for line in text.split("\n"):
        places = _PLACE.findall(line)
        if all(facts.get(place) for place in places):
            lines.append(_PLACE.sub(lambda match: facts[match[1]], line))
    return tidy("\n".join(lines))


def _facts(template: Template, params: Wording, values: Mapping[str, Any], now: datetime, text: str) -> Mapping[str, str]:
    own = {name: one_line(value) for name, value in params.fields.items()}
    severity = one_line(values.get("severity", "") or "").upper()
    known = {
        **own,
        **_times(values, now),
        "status": status_of(values),
        "severity": severity,
        "incident": one_line(values.get("incident", "")),
    }
    if template.audience is Audience.CUSTOMERS:
        return known
    plain = {name: one_line(value) for name, value in values.items() if isinstance(value, str)}
    return {**plain, **known, **_lists(values), "level": level_of(values), "text": tidy(text)}


def level_of(values: Mapping[str, Any]) -> str:
    """Return the level of an escalation that has gone beyond the first one, else nothing."""
    level = values.get("level")
    return str(level) if isinstance(level, int) and level > 1 else ""


def _lists(values: Mapping[str, Any]) -> Mapping[str, str]:
    actions, contacts = values.get("actions_taken"), values.get("contacts")
    done = map(one_line, actions) if isinstance(actions, list | tuple) else ()
    ways = contacts.items() if isinstance(contacts, Mapping) else ()
    return {"actions": "; ".join(done), "contacts": "; ".join(f"{one_line(name)}: {one_line(how)}" for name, how in ways)}


def _times(values: Mapping[str, Any], now: datetime) -> Mapping[str, str]:
    opened, resolved = moment(values.get("opened_at")), moment(values.get("resolved_at"))
    found = {"now": _clock(now), "date": f"{now.astimezone(UTC):%Y-%m-%d}"}
    found |= {name: _clock(at) for name, at in (("opened_at", opened), ("resolved_at", resolved)) if at is not None}
    if opened is not None and (resolved or now) >= opened:
        found["duration"] = format_duration(timedelta(seconds=int(((resolved or now) - opened).total_seconds())))
    return found


def moment(value: object) -> datetime | None:
    """Return a time that came as ISO 8601 or as itself; None for anything else."""
    if isinstance(value, datetime):
        return value if value.tzinfo else value.replace(tzinfo=UTC)
    try:
        found = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return None if found is None else found if found.tzinfo else found.replace(tzinfo=UTC)


def _clock(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


_STATUSES: Mapping[str, str] = {
    **dict.fromkeys(("applying", "undoing"), "Identified"),
    **dict.fromkeys(("verifying", "succeeded", "undone"), "Monitoring"),
}


def status_of(values: Mapping[str, Any]) -> str:
    """Return where it stands in a status page's words: Investigating, Identified, Monitoring, Resolved.

    >>> status_of({"kind": "update", "state": "verifying"})
    'Monitoring'
    """
    if kind_of(values) is Kind.RESOLVED:
        return "Resolved"
    return _STATUSES.get(str(values.get("state", "")), "Investigating")


def _marked(text: str, values: Mapping[str, Any]) -> str:
    """Say that it is a dry run, unless that is said already."""
    return f"{DRY_RUN}{text}" if values.get("dry_run") and not text.startswith(DRY_RUN.strip(" ·")) else text
