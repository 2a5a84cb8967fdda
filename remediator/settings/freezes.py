"""The settings about freezes: windows in which nothing acts, or nothing without a person."""

from __future__ import annotations

import zoneinfo
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, WithJsonSchema, model_validator

from remediator.duration import Duration
from remediator.freezes.windows import Calendar, Cron, Dates, Effect, Freezes, Limits, Schedule, Window
from remediator.settings.part import FilePath, Name, Part, setting

LONGEST = timedelta(days=366)


def _zone(value: str) -> str:
    try:
        zoneinfo.ZoneInfo(value)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"there is no time zone {value!r}; write an IANA name like Europe/Berlin or UTC") from None
    return value


Zone = Annotated[str, AfterValidator(_zone)]
"""A time zone by its IANA name."""


def _cron(value: str) -> str:
    from cronsim import CronSim, CronSimError

    if len(value.split()) != 5:
        raise ValueError(f"{value!r} is not a cron expression of five fields: minute, hour, day of month, month, day of week")
    try:
        if next(CronSim(value, datetime(2024, 1, 1, tzinfo=UTC)), None) is None:
            raise ValueError(f"{value!r} never comes")
    except CronSimError as error:
        raise ValueError(f"{value!r} is not a cron expression: {str(error).lower()}") from None
    return value


CronExpression = Annotated[str, AfterValidator(_cron)]
"""A cron expression of five fields."""


def _moment(value: Any) -> datetime:
    if isinstance(value, datetime):
        return value
    if isinstance(value, str) and len(value) > len("2026-12-24"):
        with suppress(ValueError):
            return datetime.fromisoformat(value)
    raise ValueError(f"{value!r} is not a date with a time; write it like 2026-12-24T18:00 or 2026-12-24T18:00+01:00")


Moment = Annotated[
    datetime,
    BeforeValidator(_moment),
    PlainSerializer(datetime.isoformat, return_type=str),
    WithJsonSchema({"type": "string", "examples": ["2026-12-24T18:00", "2026-12-24T18:00+01:00"]}),
]
"""A date with a time, as ISO 8601; without an offset it is one of the window's `timezone`."""


class FreezeSettings(Part):
    """A window in which nothing acts, or nothing without a person. It has either `cron` and `for`, or `from` and/or `until`, or `ical`."""

    cron: CronExpression | None = setting(
        None, "when it begins, in `timezone`: minute, hour, day of month, month, day of week", reload=True
    )
    lasts: Duration | None = setting(
        None, "how long after each beginning it is over, in elapsed time", reload=True, alias="for", gt=timedelta(), le=LONGEST
    )
    begin: Moment | None = setting(None, "when it begins, once; none: it has begun", reload=True, alias="from")
    until: Moment | None = setting(None, "when it is over; none: never", reload=True)
    ical: FilePath | None = setting(None, "iCalendar file; each of its events is such a window", reload=True)
    timezone: Zone | None = setting(
        None, "IANA name of the zone of `cron`, of times without offset, and of a calendar's all-day events", reload=True
    )
    effect: Effect = setting(Effect.FREEZE, "freeze: nothing acts; approve: a person is asked before anything acts", reload=True)
    reason: str = setting("", "why; people read it where something was held back", reload=True, max_length=500)
    rules: frozenset[str] = setting(frozenset(), "only these rules; empty: all", reload=True)
    connections: frozenset[Name] = setting(frozenset(), "only what acts on these connections; empty: all", reload=True)
    severities: frozenset[Name] = setting(frozenset(), "only incidents of these severities; empty: all", reload=True)

    @model_validator(mode="after")
    def _one_schedule(self) -> Self:
        kinds = [self.cron is not None, self.begin is not None or self.until is not None, self.ical is not None]
        if sum(kinds) != 1:
            raise ValueError("when is it? write one of: cron with for and timezone; from and/or until; ical with timezone")
        if (self.cron is None) != (self.lasts is None):
            raise ValueError("cron and for belong together: the one says when it begins, the other how long it lasts")
        if self.timezone is None and (self.cron is not None or self.ical is not None or self._naive()):
            raise ValueError("timezone is missing; write an IANA name like Europe/Berlin or UTC")
        if isinstance(dates := self.schedule(), Dates) and dates.begin is not None and dates.end is not None and dates.end <= dates.begin:
            raise ValueError("until is not after from")
        return self

    def _naive(self) -> bool:
        return any(one is not None and one.tzinfo is None for one in (self.begin, self.until))

    @property
    def zone(self) -> tzinfo:
        """The window's time zone."""
        return zoneinfo.ZoneInfo(self.timezone) if self.timezone is not None else UTC

    def schedule(self, calendar: Calendar | None = None) -> Schedule:
        """Return when it is; `calendar` holds what was read from `ical`."""
        if self.cron is not None and self.lasts is not None:
            return Cron(self.cron, self.lasts, self.zone)
        if self.ical is not None:
            return calendar or Calendar()
        return Dates(earliest(self.begin, self.zone), latest(self.until, self.zone))


def earliest(at: datetime | None, zone: tzinfo) -> datetime | None:
    """Return the first moment that a beginning may mean, in UTC: an hour that comes twice counts from its first time."""
    return None if at is None else min(_meanings(at, zone))


def latest(at: datetime | None, zone: tzinfo) -> datetime | None:
    """Return the last moment that an end may mean, in UTC: an hour that comes twice counts up to its second time."""
    return None if at is None else max(_meanings(at, zone))


def _meanings(at: datetime, zone: tzinfo) -> list[datetime]:
    """Return what a time may mean: two moments where it has no offset and its hour comes twice, or never, in `zone`."""
    if at.tzinfo is not None:
        return [at.astimezone(UTC)]
    return [at.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1)]


def windows_of(settings: Mapping[str, FreezeSettings], calendars: Mapping[str, Calendar]) -> Freezes:
    """Return the windows of the settings in the order of their names; `calendars` holds what was read, by the window's name."""
    return Freezes(tuple(_window(name, settings[name], calendars.get(name)) for name in sorted(settings)))


def _window(name: str, one: FreezeSettings, calendar: Calendar | None) -> Window:
    limits = Limits(one.rules, one.connections, one.severities)
    return Window(name, one.schedule(calendar), one.effect, one.reason, limits)
