"""What stands beside a message's text: its headline, facts and links, the same in every channel. Nothing here is escaped yet."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from actions.notify.wording import HEADS, Kind, Words, level_of, moment, one_line
from remediator.action import Connection


def heading(words: Words, values: Mapping[str, Any]) -> str:
    """Return a message's headline: what it is, of which severity, which incident and rule."""
    known = [one_line(shown(values, name)) for name in ("severity", "incident", "rule")]
    level = level_of(values)
    parts = [known[0].upper(), *known[1:], f"level {level}" if level and words.kind is Kind.PAGE else ""]
    said = " · ".join(part for part in parts if part)
    lead = "DRY RUN · " if values.get("dry_run") else ""
    return f"{HEADS[words.kind]}{lead}{said}" if said else ""


def facts_of(values: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Give the facts that stand beside a message, as far as they are known."""
    for title, name in (("Target", "target"), ("State", "state"), ("Remedy", "remedy"), ("Acknowledged by", "acknowledged_by")):
        if text := one_line(shown(values, name)):
            yield title, text[:500]
    for title, name in (("Opened", "opened_at"), ("Resolved", "resolved_at")):
        if (at := moment(values.get(name))) is not None:
            yield title, f"{at:%Y-%m-%d %H:%M} UTC"


def known_links(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return links to the incident and its runbook, where they are known and are URLs."""
    found = (("incident", shown(values, "link") or shown(values, "url")), ("runbook", shown(values, "runbook")))
    return [(title, url) for title, url in found if is_link(url)]


def shown(values: Mapping[str, Any], name: str) -> str:
    """Return one of the incident's facts as text, empty when there is none."""
    return str(values.get(name, "") or "")


def is_link(url: str) -> bool:
    """Tell whether a text is an http(s) URL, and nothing that could end a link early."""
    return len(url) <= 1_000 and re.fullmatch(r"https?://[^\s<>|\"\x00-\x1f]+", url) is not None


def unknown_mentions(params: Any, connection: Connection) -> Sequence[str]:
    """Return what is wrong with the names that a message mentions."""
    wanted, known = getattr(params, "mentions", ()), getattr(connection, "mentions", {})
    unknown = sorted(set(wanted) - known.keys())
    return [f"allows no mention of {unknown}; it allows {sorted(known)}"] if unknown else []


def size(text: str) -> int:
    """Count characters as the strictest reader of the limits would: in units of UTF-16."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def clip(text: str, limit: int) -> str:
    """Cut text to so many of those units, never in the middle of a character."""
    return text if size(text) <= limit else text.encode("utf-16-le", "surrogatepass")[: 2 * limit].decode("utf-16-le", "ignore")
