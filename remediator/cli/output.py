"""What commands print: tables and colours for people, JSON for programs.

Labels, annotations and comments come from outside: control characters in them are made visible, so that no alert can write to a terminal
what it likes, and nothing in them is taken for markup.
"""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from remediator.model import JSON

WIDE = 200
"""Columns when nobody looks at it on a terminal."""

STYLES = {
    "open": "yellow",
    "escalated": "bold red",
    "failed": "bold red",
    "outcome_unknown": "bold red",
    "interrupted": "bold red",
    "unhealthy": "red",
    "awaiting_approval": "bold yellow",
    "pending": "bold yellow",
    "resolved": "green",
    "succeeded": "green",
    "approved": "green",
    "high": "bold red",
    "medium": "yellow",
    "sev1": "bold red",
}
"""Colours of words that people look for."""


def clean(value: object) -> str:
    r"""Return `value` as text without anything that a terminal would obey.

    >>> clean("a\x1b[31mb")
    'a\\x1b[31mb'
    """
    text = "" if value is None else str(value)
    if text.isprintable():
        return text
    return "".join(letter if letter == "\n" or not _obeyed(letter) else _visible(letter) for letter in text)


def one_line(value: JSON) -> JSON:
    r"""Return a copy of a JSON tree with line breaks in its texts made visible: whoever sends an alert must not write lines of ours.

    >>> one_line({"summary": "x\nasked because: a drill"})
    {'summary': 'x\\nasked because: a drill'}
    """
    if isinstance(value, str):
        return value.replace("\n", "\\n")
    if isinstance(value, Mapping):
        return {str(one_line(key)): one_line(item) for key, item in value.items()}
    return [one_line(item) for item in value] if isinstance(value, list | tuple) else value


def _obeyed(letter: str) -> bool:
    return unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _visible(letter: str) -> str:
    return letter.encode("unicode_escape", "surrogatepass").decode("ascii")


def console(*, error: bool = False) -> Console:
    """Return where to print to. No colours off a terminal or with NO_COLOR."""
    stream = sys.stderr if error else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else WIDE, highlight=False, markup=False, emoji=False)


def say(text: object, *, style: str | None = None) -> None:
    """Print a line of text."""
    console().print(Text(clean(text), style=style or ""), soft_wrap=True)


def complain(text: object) -> None:
    """Print a line to stderr."""
    console(error=True).print(Text(clean(text), style="bold red"), soft_wrap=True)


def print_json(value: JSON) -> None:
    """Print JSON for programs; outside of ASCII everything is escaped."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """Print a table, or `empty` when there are no rows."""
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(cell(value) for value in row))
    if table.row_count:
        console().print(table)
    else:
        say(empty)


def cell(value: object) -> Text:
    """Return one value as a table's cell of one line; a `Text` is one already."""
    if isinstance(value, bool):
        return Text("yes" if value else "no")
    if isinstance(value, Text):
        return value
    text = clean(one_line(value))
    return Text(text, style=STYLES.get(text, ""))


def short_time(value: object) -> str:
    """Return an API's timestamp as `YYYY-MM-DD HH:MM:SSZ`.

    >>> short_time("2026-11-21T08:00:01.123456Z")
    '2026-11-21 08:00:01Z'
    """
    text = str(value or "")
    return f"{text[:10]} {text[11:19]}Z" if len(text) >= 19 and text[10] == "T" else text
