"""Which silences in Alertmanager are this daemon's, and which of these are one incident's own: all that asks for it asks here. Pure.

A silence is ours when this daemon is its author and its comment ends with a mark, which names the step or the wish that it was made for,
and so the run and the incident. Nothing else in a comment makes it ours: whoever writes an incident's id there, rules included, only
speaks of it. Where a silence's id is known, from a row or a receipt, the id alone decides: a copy of it is somebody else's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from remediator.model import Value


@dataclass(frozen=True)
class Own:
    """The silences that don't speak against acting, since they were made for the incident itself."""

    ids: tuple[str, ...] = ()
    """Exactly these."""
    marks: tuple[str, ...] = ()
    """Those with one of these marks: their ids are not known yet."""
    incident: str = ""
    """Those whose mark names this incident."""

    @property
    def is_told_by_comments(self) -> bool:
        """Whether a silence whose id is not among those known may be one of these."""
        return bool(self.marks or self.incident)

    def has_mark(self, mark: str) -> bool:
        """Tell whether a silence of ours with this mark is one of these."""
        return bool(mark) and (mark in self.marks or (bool(self.incident) and incident_of(mark) == self.incident))


NONE = Own()
"""No silence at all."""


# --- marks


def written(author: str, mark: str) -> str:
    """Write a mark as it stands at the end of a comment.

    >>> written("remediator", "INC-20261121-001-1/2")
    '[remediator INC-20261121-001-1/2]'
    """
    return f"[{author} {mark}]"


def mark_of(created_by: str, comment: str, *, author: str) -> str:
    """Return the mark of a silence that `author` made; empty for any other.

    >>> mark_of("remediator", "for INC-20261121-002 [remediator INC-20261121-001-1/2]", author="remediator")
    'INC-20261121-001-1/2'
    """
    found = re.search(rf"\[{re.escape(author)} ([^\s\[\]]+)\]\s*\Z", comment) if created_by == author else None
    return "" if found is None else found[1]


def incident_of(mark: str) -> str:
    """Return the incident that a mark names: a step's is `INCIDENT-RUN~ERA/STEP`, a kept silence's `INCIDENT-RUN@TIME`.

    >>> incident_of("INC-20261121-001-1~3f9a0c11/2")
    'INC-20261121-001'
    """
    return re.split("[/@~]", mark, maxsplit=1)[0].rpartition("-")[0]


def comment_of(values: Mapping[str, Value], *, author: str, mark: str, words: str = "") -> str:
    """Write what people read in Alertmanager: why it is silent, where to look, and the mark."""
    incident, run, link = (str(values.get(name, "")) for name in ("incident", "run", "link"))
    why = f"{author} works on {incident} (rule {values.get('rule', '')}, run {run})" if incident else f"made by {author}"
    lines = (words, why, link, written(author, mark))
    return " ".join(" ".join(line.split()) for line in lines if line)
