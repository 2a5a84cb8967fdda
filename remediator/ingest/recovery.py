"""Alerts that no webhook brings: found missing, cut off or gone by asking Alertmanager, or believed to be over in the end. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from remediator.model import JSON, Alert, Episode


class Source(StrEnum):
    """Why an alert is taken that no webhook brought."""

    MISSED = "missed"
    """It fires, and no open episode knew it, or one did that was said to be over before."""
    TRUNCATED = "truncated"
    """Its webhook left it out."""
    LISTED = "listed"
    """It was said to be over, which was doubted, and Alertmanager has it firing all the same, be it silenced."""
    GONE = "gone"
    """No Alertmanager knows it any more, so its episode ends."""
    BELIEVED = "believed"
    """It was said to be over while a watchdog was lost, which has long been heard again, and nobody has told of it since."""


@dataclass(frozen=True)
class Recovery:
    """How reconciliation came by an alert. `data` is what its event tells."""

    source: Source
    data: Mapping[str, JSON] = field(default_factory=dict)
    confirmed_at: datetime | None = None
    """When the alert was last confirmed: by its sender to Alertmanager; for one that is gone, to the episode that is to end. An
    episode that was confirmed later than that is left alone."""


def listed(episode: Episode) -> tuple[Alert, Recovery]:
    """Return that an open episode fires on which was said to be over while a watchdog was lost."""
    ends_at = episode.ends_at
    alert = Alert(episode.fingerprint, firing=True, labels=episode.labels, annotations={}, starts_at=episode.starts_at, ends_at=ends_at)
    data: dict[str, JSON] = {"doubted_end": None if ends_at is None else ends_at.isoformat()}
    return alert, Recovery(Source.LISTED, data, episode.confirmed_at)


def believed(episode: Episode) -> tuple[Alert, Recovery]:
    """Return the end of an open episode that was said to be over while a watchdog was lost."""
    ends_at = episode.ends_at
    alert = Alert(episode.fingerprint, firing=False, labels=episode.labels, annotations={}, starts_at=episode.starts_at, ends_at=ends_at)
    data: dict[str, JSON] = {"ends_at": None if ends_at is None else ends_at.isoformat()}
    return alert, Recovery(Source.BELIEVED, data, episode.confirmed_at)
