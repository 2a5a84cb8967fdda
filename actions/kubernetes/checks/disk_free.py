"""What `df` prints, of GNU and of busybox, as values. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_HEADER = re.compile(r"Filesystem +(?P<type>Type +)?(?P<unit>\S+) +I?Used +(?:Avail|Available|IFree) +(?:\S+%|Capacity) +Mounted on *")
_UNIT = re.compile(r"(?P<number>[0-9]{1,9})(?P<prefix>[kKMGTPE]?)(?P<decimal>B?)-blocks")
_TOKEN = re.compile(r"\S+")
_AMOUNT = re.compile(r"-|-?[0-9]+(?:[.,][0-9]+)?[a-zA-Z]{0,3}")
_SHARE = re.compile(r"-|[0-9]{1,4}%")
_POWERS = " KMGTPE"


@dataclass(frozen=True)
class Mount:
    """One line of the table. What it does not say, or only rounded (`df -h`), is None."""

    filesystem: str
    mount: str
    used_percent: float | None
    size: int | None = None
    """In bytes, as the next two."""
    used: int | None = None
    available: int | None = None


def parse_df(text: str) -> list[Mount]:
    r"""Parse the output of `df`, also with -P, -h, -k, -m, -B, -T or -i. Raises ValueError for anything else.

    >>> parse_df("Filesystem 1K-blocks Used Available Use% Mounted on\noverlay 100 41 59 41% /")
    [Mount(filesystem='overlay', mount='/', used_percent=41.0, size=102400, used=41984, available=60416)]
    """
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    header = _HEADER.fullmatch(lines[0].strip()) if lines else None
    if header is None:
        raise ValueError("the output does not begin with df's header (Filesystem … Mounted on)")
    unit, columns = _unit(header["unit"]), 6 if header["type"] else 5
    return [_mount(row, columns, unit) for row in _rows(lines[1:])]


def _unit(word: str) -> int | None:
    """Return the bytes of one block; None for inodes and for rounded sizes."""
    match = _UNIT.fullmatch(word)
    if match is None:
        return None
    # 1K and 1M are powers of 1024, 1kB and 1MB of 1000, 1B is a byte.
    power = _POWERS.index(match["prefix"].upper() or " ")
    base: int = 1000 if match["decimal"] else 1024
    return int(match["number"]) * int(base**power)


def _rows(lines: Sequence[str]) -> Iterator[str]:
    """Give the table's rows: after a long file system's name, the rest stands on a line of its own, which begins with blanks."""
    row = ""
    for line in lines:
        if row and not line[0].isspace():
            yield row
            row = ""
        row = f"{row} {line}" if row else line
    if row:
        yield row


def _mount(row: str, columns: int, unit: int | None) -> Mount:
    """Split a row. Names may hold blanks: the share of use, between amounts and a path, is what is looked for."""
    tokens = list(_TOKEN.finditer(row))
    for index in range(columns - 1, len(tokens) - 1):
        amounts = [token[0] for token in tokens[index - 3 : index]]
        is_share = _SHARE.fullmatch(tokens[index][0]) is not None and tokens[index + 1][0].startswith("/")
        if is_share and all(_AMOUNT.fullmatch(amount) for amount in amounts):
            name = row[tokens[0].start() : tokens[index - columns + 1].end()]
            share = tokens[index][0].rstrip("%")
            sizes = [_bytes(amount, unit) for amount in amounts]
            return Mount(name, row[tokens[index + 1].start() :], None if share == "-" else float(share), *sizes)
    raise ValueError(f"not a line of df's table: {row[:100]!r}")


def _bytes(amount: str, unit: int | None) -> int | None:
    return int(amount) * unit if unit is not None and amount.lstrip("-").isdigit() else None
