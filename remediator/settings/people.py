"""The settings about people: who may call the daemon, and who hears of what."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import time, timedelta
from enum import StrEnum
from typing import Annotated, Any, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, model_validator

from remediator.duration import Duration, format_duration, parse_duration
from remediator.escalation.levels import Hours, Level, Policy, Receiver, Unless
from remediator.model import JSON
from remediator.settings.part import Name, Part, setting


class Role(StrEnum):
    """What an identity may do; what each includes is the table in `remediator.people.authentication`."""

    VIEWER = "viewer"
    RESPONDER = "responder"
    APPROVER = "approver"
    RULE_EDITOR = "rule_editor"
    ADMIN = "admin"
    ALERT_SENDER = "alert_sender"


_HEX = re.compile(r"[0-9a-f]{64}")
_EMPTY = hashlib.sha256(b"").hexdigest()


def _sha256(value: str) -> str:
    if not _HEX.fullmatch(value):
        raise ValueError("not a SHA-256 in 64 lower-case hexadecimal digits; make it with `printf %s TOKEN | sha256sum`")
    if value == _EMPTY:
        raise ValueError("this is the SHA-256 of an empty text; everybody knows it")
    return value


Sha256 = Annotated[str, AfterValidator(_sha256)]
"""SHA-256 of a token in hexadecimal digits. The token itself never stands in the settings."""


class IdentitySettings(Part):
    """A person or a program that may call the daemon, and how it proves who it is."""

    token_sha256: tuple[Sha256, ...] = setting((), "SHA-256 of each bearer token; two while one is being replaced", reload=True)
    password_sha256: tuple[Sha256, ...] = setting(
        (), "SHA-256 of each password for basic authentication, where the user is this identity's name; take a long random one", reload=True
    )
    certificate_subject: str | None = setting(
        None, "subject of a client certificate, like `CN=alertmanager,O=Example`", reload=True, min_length=1
    )
    roles: frozenset[Role] = setting(frozenset(), "viewer, responder, approver, rule_editor, admin, alert_sender", reload=True)
    groups: frozenset[Name] = setting(frozenset(), "groups that approvals may ask for", reload=True)


class Severity(Part):
    """What a severity means for people."""

    page_after: Duration = Field(
        description="longest time a page is held back while a remedy is at work", json_schema_extra={"reload": True}
    )
    description: str = setting("", "what it means, for people", reload=True)


def severities() -> dict[str, Severity]:
    """Return the severities of an installation that names none."""
    minutes = {"sev1": 3, "sev2": 10, "sev3": 30, "sev4": 120}
    return {name: Severity(page_after=timedelta(minutes=number)) for name, number in minutes.items()}


def _one_action(value: Mapping[str, Any]) -> Mapping[str, Any]:
    if len(value) != 1:
        raise ValueError("one action and its parameters, like `notify.slack: {…}`")
    return value


Notification = Annotated[Mapping[str, Mapping[str, JSON]], AfterValidator(_one_action)]
"""One notifying action by name with its parameters."""


DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def _days(value: str) -> str:
    days_of(value)
    return value


def days_of(text: str) -> frozenset[int]:
    """Read days of the week, Monday being 0. Raises ValueError.

    >>> sorted(days_of("mon-wed,sun"))
    [0, 1, 2, 6]
    """
    found: set[int] = set()
    for part in text.replace(" ", "").lower().split(","):
        first, _, last = part.partition("-")
        if first not in DAYS or (last or first) not in DAYS:
            raise ValueError(f"{text!r} are no days of the week; write them like mon-fri or mon,wed,sat-sun")
        begin, end = DAYS.index(first), DAYS.index(last or first)
        found |= {day % 7 for day in range(begin, (end if end >= begin else end + 7) + 1)}
    return frozenset(found)


def _clock(value: str) -> str:
    clock_of(value)
    return value


def clock_of(text: str) -> time:
    """Read a time of day; 24:00 is midnight. Raises ValueError.

    >>> clock_of("09:30")
    datetime.time(9, 30)
    """
    if not re.fullmatch(r"([01]?\d|2[0-3]):[0-5]\d|24:00", text):
        raise ValueError(f"{text!r} is no time of day; write it like 09:00 or 17:30")
    hours, minutes = map(int, text.split(":"))
    return time(hours % 24, minutes)


def _zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"there is no time zone {value!r}; write an IANA name like Europe/Berlin or UTC") from None
    return value


class WorkingHours(Part):
    """When people are at work. An end at or before the beginning is on the day after."""

    days: Annotated[str, AfterValidator(_days)] = setting("mon-fri", "days of the week, like `mon-fri` or `mon,wed,sat-sun`", reload=True)
    begin: Annotated[str, AfterValidator(_clock)] = setting("09:00", "time of day", reload=True, alias="from")
    end: Annotated[str, AfterValidator(_clock)] = setting("18:00", "time of day; 24:00 is midnight", reload=True, alias="to")
    timezone: Annotated[str, AfterValidator(_zone)] = setting("UTC", "IANA name of the time zone", reload=True)

    def hours(self, name: str) -> Hours:
        """As the outbox takes them."""
        return Hours(name, days_of(self.days), clock_of(self.begin), clock_of(self.end), ZoneInfo(self.timezone))


def _delays(value: Any) -> Any:
    return value if isinstance(value, Mapping) else {"": parse_duration(value) if isinstance(value, str) else value}


Delays = Annotated[
    Mapping[str, Annotated[Duration, Field(ge=timedelta())]],
    BeforeValidator(_delays, json_schema_input_type=Duration | Mapping[str, Duration]),
    PlainSerializer(
        lambda value: format_duration(value[""]) if "" in value else {name: format_duration(one) for name, one in value.items()}
    ),
]
"""One delay for all severities (under the empty name), or one for each severity that is named."""


class LevelSettings(Part):
    """Further people, and when they hear of a page."""

    after: Delays = setting(
        lambda: {"": timedelta()},
        "how long after the page first went out; or delays by severity, like `{sev1: 10m, sev2: 1h}`: other severities don't come here",
        reload=True,
    )
    notify: tuple[Notification, ...] = setting((), "actions that carry the message, each `{action: {parameters}}`", reload=True)
    severities: frozenset[Name] = setting(frozenset(), "only pages of these severities; empty: all", reload=True)
    hours: Name | None = setting(
        None, "working hours (`hours`): outside of them it waits until they begin. The most severe severity never waits", reload=True
    )
    unless: Unless = setting(
        Unless.ACKNOWLEDGED,
        "acknowledged: not told while somebody has acknowledged the incident; resolved: told unless it is resolved by then",
        reload=True,
    )

    @model_validator(mode="after")
    def _told(self) -> Self:
        if not self.notify:
            raise ValueError("notify is missing; a level without it tells nobody")
        return self


class EscalationPolicy(Part):
    """Who hears of an incident, and who next when nobody answers. Rules name a policy, never a channel."""

    notify: tuple[Notification, ...] = setting((), "level 1: actions that carry the message, each `{action: {parameters}}`", reload=True)
    hours: Name | None = setting(None, "working hours of level 1, as for other levels", reload=True)
    levels: tuple[LevelSettings, ...] = setting((), "who hears of it next, by delay", reload=True)
    update_every: Duration | None = setting(
        timedelta(minutes=20), "time between two updates to level 1 while an incident is open; null: none", reload=True, gt=timedelta()
    )
    repeat_every: Duration | None = setting(
        timedelta(hours=1), "how often the last level hears again of what nobody acknowledges; null: never", reload=True, gt=timedelta()
    )
    acknowledged_for: Duration | None = setting(
        timedelta(hours=1),
        "how long an acknowledgement holds further levels off; not resolved by then, the next one is told after all. Null: for good",
        reload=True,
        gt=timedelta(),
    )
    description: str = setting("", "what it is for, for people", reload=True)

    def policy(self, name: str, hours: Mapping[str, WorkingHours], *, severities: Sequence[str]) -> Policy:
        """As the outbox takes it. Level 1 is `notify`; without that the first of `levels`. `severities` are all there are, worst first."""
        made = [Level(1, _receivers(self.notify), hours=_hours(self.hours, hours))] if self.notify else []
        for number, one in enumerate(self.levels, len(made) + 1):
            delays = {severity: delay for severity, delay in one.after.items() if severity}
            whole = one.after.get("", timedelta())
            made.append(
                Level(number, _receivers(one.notify), whole, delays, one.severities, _hours(one.hours, hours), one.unless),
            )
        every, again, held = self.update_every, self.repeat_every, self.acknowledged_for
        return Policy(name, tuple(made), every, again, held, severities[0], frozenset(severities))

    def notifications(self) -> Iterator[tuple[tuple[str | int, ...], Notification]]:
        """Give every notification of every level with its place in the policy."""
        yield from ((("notify", number), one) for number, one in enumerate(self.notify))
        for place, level in enumerate(self.levels):
            yield from ((("levels", place, "notify", number), one) for number, one in enumerate(level.notify))

    def faults(self, hours: Collection[str], severities: Collection[str]) -> Iterator[str]:
        """Give what it names that does not exist."""
        for place, name in (("hours", self.hours), *((f"levels[{n}].hours", one.hours) for n, one in enumerate(self.levels))):
            if name is not None and name not in hours:
                yield f"{place}: there are no working hours {name!r}; name them under `hours`"
        for number, one in enumerate(self.levels):
            for severity in sorted(({*one.severities, *one.after} - {""}) - set(severities)):
                yield f"levels[{number}]: there is no severity {severity!r}; there are {', '.join(severities)}"


def _receivers(notify: Iterable[Notification]) -> tuple[Receiver, ...]:
    return tuple(Receiver(action, dict(params)) for one in notify for action, params in one.items())


def _hours(name: str | None, hours: Mapping[str, WorkingHours]) -> Hours | None:
    return None if name is None else hours[name].hours(name)


def policies() -> dict[str, EscalationPolicy]:
    """Return the escalation policies of an installation that names none: one that reaches nobody."""
    return {"default": EscalationPolicy()}


class Contact(Part):
    """How people find a person or team; shown in messages and in the UI."""

    email: str = setting("", "e-mail address", reload=True)
    chat: str = setting("", "name or id in the chat", reload=True)
    phone: str = setting("", "telephone number", reload=True)
    note: str = setting("", "anything else worth knowing at three in the morning", reload=True)

    @property
    def words(self) -> str:
        """How to reach them, on one line."""
        found = (("phone", self.phone), ("chat", self.chat), ("e-mail", self.email), ("", self.note))
        return ", ".join(f"{how} {what}".strip() for how, what in found if what)
