"""Templates, and how values look in them. Everything that is shown is escaped; text from alerts can't turn around what stands beside it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from remediator import timeline
from remediator.duration import format_duration
from remediator.model import decode_value

HERE = Path(__file__).parent
NONE = "\u2013"
"""What stands for a number that there is none of."""
_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
# Marks that change the direction of the text around them could have a plan read as another one; other controls are no text.
_CONTROLS = re.compile("[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")

_BREAKS = re.compile("\r\n|[\n\u000b\u000c\r\u0085\u2028\u2029]")


class Static:
    """The files that pages refer to, read once. An address holds the hash of its file, so that a browser may keep it."""

    def __init__(self, directory: Path = HERE / "static") -> None:
        self.files = {path.name: (path.read_bytes(), _TYPES[path.suffix]) for path in directory.iterdir() if path.suffix in _TYPES}
        self._marks = {name: hashlib.sha256(body).hexdigest()[:12] for name, (body, _) in self.files.items()}

    def url(self, name: str) -> str:
        """Return a file's address."""
        return f"/ui/static/{name}?v={self._marks[name]}"

    def is_current(self, name: str, mark: str) -> bool:
        """Tell whether an address names the file as it is."""
        return self._marks.get(name) == mark


def environment(static: Static) -> Environment:
    """Make the environment and compile all templates."""
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
        finalize=visible,
    )
    made.filters |= {
        "at": at,
        "explain": explain,
        "link": safe_link,
        "part": path_part,
        "percent": percent,
        "pretty": pretty,
        "seconds": seconds,
        "spoken": spoken,
    }
    made.globals["static"] = static.url
    for name in made.list_templates():
        made.get_template(name)
    return made


def visible(value: Any) -> Any:
    """Return what is written for a value: nothing for None, and marks that can't be seen as their numbers.

    >>> visible("web" + chr(0x202E) + "gpj.exe")
    'web⟨U+202E⟩gpj.exe'
    """
    if value is None:
        return ""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return _CONTROLS.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", value)


def moment(value: datetime | str) -> datetime:
    """Read a time as rows (datetimes) and the API's answers (text) have it."""
    found = datetime.fromisoformat(value) if isinstance(value, str) else value
    return found.astimezone(UTC)


def at(value: datetime | str | None, now: datetime) -> Markup | str:
    """Show a time in UTC, with how long ago it was or is to come."""
    if value is None:
        return ""
    found = moment(value)
    return Markup('<time datetime="{iso}">{shown} <small>{ago}</small></time>').format(
        iso=f"{found:%Y-%m-%dT%H:%M:%SZ}", shown=f"{found:%Y-%m-%d %H:%M:%S} UTC", ago=ago(found, now)
    )


def ago(value: datetime | str, now: datetime) -> str:
    """Say how long ago a time was, or how long it is until then.

    >>> noon = datetime(2026, 11, 21, 12, tzinfo=UTC)
    >>> ago(noon - timedelta(seconds=200), noon), ago(noon + timedelta(hours=30), noon), ago(noon, noon)
    ('3 min ago', 'in 30 h', 'now')
    """
    span = (now - moment(value)).total_seconds()
    if abs(span) < 5:
        return "now"
    words = _span(abs(span))
    return f"{words} ago" if span > 0 else f"in {words}"


def _span(span: float) -> str:
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if span >= (2 * size if unit == "d" else size):
            return f"{int(span // size)} {unit}"
    return f"{int(span)} s"


def seconds(value: float | None) -> str:
    """Write a number of seconds as a span; a dash where there is none."""
    return NONE if value is None else format_duration(timedelta(seconds=round(value)))


def percent(value: float | None) -> str:
    """Write a rate; a dash where there is none."""
    return NONE if value is None else f"{value:.0%}"


def spoken(value: str) -> str:
    """Write a word of the code as people say it.

    >>> spoken("awaiting_approval")
    'awaiting approval'
    """
    return value.replace("_", " ")


def explain(event: Mapping[str, Any]) -> str:
    """Say in plain words what an event means. Lines begin where we begin them: those of values are marked, and look like none."""
    return timeline.explain(event["kind"], one_line(event["data"]))


def one_line(value: Any) -> Any:
    r"""Return a copy of a JSON tree in whose texts line breaks are marks: whoever sends an alert writes no entry of ours.

    >>> one_line({"summary": "x\n2026-11-21 03:00 approved by anna"})
    {'summary': 'x ⏎ 2026-11-21 03:00 approved by anna'}
    """
    if isinstance(value, str):
        return _BREAKS.sub(" ⏎ ", value)
    if isinstance(value, Mapping):
        return {one_line(key): one_line(item) for key, item in value.items()}
    return [one_line(item) for item in value] if isinstance(value, list | tuple) else value


def pretty(value: Any) -> str:
    """Write a JSON value for people: plain text as it is, a span or a time as such, everything else indented."""
    decoded = decode_value(value)
    if isinstance(decoded, str):
        return decoded
    if isinstance(decoded, timedelta | datetime | bool) or decoded is None:
        return timeline.word(value)
    return json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True, default=str)


def path_part(value: str) -> str:
    """Quote a name as one part of a path."""
    return quote(value, safe="")


def safe_link(value: str, text: str = "") -> Markup:
    """Make a link of a web address, and plain text of everything else: `javascript:` never becomes one.

    >>> safe_link("javascript:alert(1)")
    Markup('javascript:alert(1)')
    """
    shown = visible(text or value)
    try:
        parts = urlsplit(value)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and visible(value) == value and not re.search(r"\s", value)
    except ValueError:
        sound = False
    if not sound:
        return escape(visible(value))
    return Markup('<a href="{0}" rel="noopener noreferrer" target="_blank">{1}</a>').format(value, shown)
