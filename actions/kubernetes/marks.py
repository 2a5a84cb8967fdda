"""The note that this daemon leaves on a workload whose template it changes: in the workload's metadata, in the same write.

It tells later readings what was ours (so that `age` leaves it out), what was rolled away from (so that nothing goes
back there), and, after a crash, whether a write took effect. Never in the Pod template: that would make another revision.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from pydantic import TypeAdapter, ValidationError

from remediator.model import canonical, to_json

ANNOTATION = "remediator.dev/last-change"
_REMEMBERED = timedelta(days=7)
_MOST = 5  # one more is added by the change that follows


@dataclass(frozen=True)
class RolledAway:
    """A template that was left because it was bad."""

    essence: str
    uid: str
    at: datetime


@dataclass(frozen=True)
class Mark:
    """Our last change of a workload's template."""

    key: str
    """The idempotency key of the step that made it."""
    action: str
    at: datetime
    template: str
    """Digest of the template it made."""
    revision: int
    """The number that the controller gives to that template. A higher one means that somebody changed it again."""
    changed_at: datetime | None = None
    """When a person or pipeline had last changed the template before us; None when that could not be told."""
    rolled_away: tuple[RolledAway, ...] = ()
    same_release: tuple[str, ...] = ()
    """Essences of templates that are the same release but for our own adjustments (variables, resources): nothing to roll back to."""

    def written(self) -> dict[str, str]:
        """Return the annotation to write."""
        return {ANNOTATION: canonical(to_json(self)).decode()}

    def is_of(self, key: str, template: str) -> bool:
        """Tell whether the step with `key` made the template with this digest."""
        return self.key == key and self.template == template

    def remembered(self, now: datetime) -> tuple[RolledAway, ...]:
        """Return what was rolled away from and is still worth remembering, newest last."""
        return tuple(item for item in self.rolled_away if now - item.at < _REMEMBERED)[-(_MOST - 1) :]


_MARK = TypeAdapter(Mark)


def read_mark(annotations: Mapping[str, str]) -> Mark | None:
    """Return our note, or None where there is none or somebody spoiled it."""
    text = annotations.get(ANNOTATION)
    if text is None:
        return None
    try:
        return _MARK.validate_python(json.loads(text))
    except (ValueError, ValidationError):
        return None
