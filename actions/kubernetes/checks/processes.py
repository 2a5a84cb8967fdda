"""What `ps` prints, of procps and of busybox, as values. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

_COMMANDS = ("COMMAND", "CMD")
_ELAPSED = re.compile(r"(?:(?:(?P<days>[0-9]{1,10})-)?(?P<hours>[0-9]{1,2}):)?(?P<minutes>[0-9]{1,2}):(?P<seconds>[0-9]{2})")
_MINUTES = re.compile(r"(?P<minutes>[0-9]{1,6}):(?P<seconds>[0-9]{0,2})")
"""Busybox before 1.34 knows no hours, and cuts off what does not fit into seven characters."""
_SHORT = re.compile(r"(?P<number>[0-9]{1,6})(?P<unit>[dh])(?P<rest>[0-9]{2})?")
"""Later ones: 5h32 is hours and minutes, 1d04 days and hours, 120d days."""
_LONGEST = timedelta(days=36_525)
"""procps 4.0.0 to 4.0.4 subtract without a sign: a process begun since `ps` read the clock is 441077234 days old, or 4123168608 seconds."""
_TREE = re.compile(r"^(?:[| ]*\\_ +)+")


@dataclass(frozen=True)
class Process:
    """One line of the table. What it does not say is None."""

    pid: int
    name: str
    """Its program, without directory and arguments."""
    command: str
    age: timedelta | None = None
    zombie: bool = False
    cpu_percent: float | None = None
    memory_percent: float | None = None


def parse_ps(text: str) -> list[Process]:
    r"""Parse the output of `ps`, whose table has a column PID and ends with the command. Raises ValueError for anything else.

    Ages need the column ELAPSED: `ps -eo pid,etimes,args` with procps, `ps -o pid,etime,args` with either.

    >>> [(one.name, one.age) for one in parse_ps("  PID ELAPSED COMMAND\n    7   01:05 /usr/bin/ffmpeg -i a.mp4")]
    [('ffmpeg', datetime.timedelta(seconds=65))]
    """
    lines = [line for line in text.splitlines() if line.strip()]
    header = lines[0].split() if lines else []
    if "PID" not in header or header[-1] not in _COMMANDS or sum(word in _COMMANDS for word in header) != 1:
        raise ValueError("the output does not begin with ps' header: one column PID, and one for the command as the last")
    if "STARTED" in header:
        raise ValueError("the column STARTED holds blanks; ask for etime or etimes instead of start or lstart")
    return [_process(line, header) for line in lines[1:]]


def _process(line: str, header: list[str]) -> Process:
    values = line.split(maxsplit=len(header) - 1)
    fields = dict(zip(header, values, strict=False))
    if len(values) < len(header) or not fields["PID"].isdigit():
        raise ValueError(f"not a line of ps' table: {line[:100]!r}")
    command, state = _TREE.sub("", values[-1].strip()), fields.get("STAT", fields.get("S", ""))
    if "STAT" in fields and command[:2] in ("< ", "N "):
        command = command[2:]  # busybox writes the niceness of a process apart from its state
    return Process(
        pid=int(fields["PID"]),
        name=program(command),
        command=command,
        age=parse_elapsed(fields["ELAPSED"]) if "ELAPSED" in fields else None,
        zombie=state.startswith("Z") or command.endswith("<defunct>"),
        cpu_percent=_number(fields, "%CPU"),
        memory_percent=_number(fields, "%MEM"),
    )


def program(command: str) -> str:
    """Return the name of the program in a command line.

    >>> [program(text) for text in ("/usr/sbin/nginx -g x", "nginx: worker process", "[kthreadd]", "{run.sh} /bin/sh /run.sh", "-bash")]
    ['nginx', 'nginx', 'kthreadd', 'run.sh', 'bash']
    """
    if command[:1] in ("[", "{"):
        closed, found, _ = command[1:].partition("]" if command[0] == "[" else "}")
        if found:
            return closed
    first = command.split(maxsplit=1)[0] if command else ""
    return first.rstrip("/").rpartition("/")[2].rstrip(":").removeprefix("-") or first


def parse_elapsed(text: str) -> timedelta:
    """Parse the time since a process started: seconds, `[[DD-]hh:]mm:ss`, or busybox' `5h32`, `1d04`. Raises ValueError.

    A century or more is what some versions of procps print for a process that has just begun: it is none at all.

    >>> [str(parse_elapsed(text)) for text in ("75", "1-02:03:04", "5h32", "1d04")]
    ['0:01:15', '1 day, 2:03:04', '5:32:00', '1 day, 4:00:00']
    """
    if text.isascii() and text.isdigit() and len(text) <= 10:
        return _possible(seconds=int(text))
    if match := _ELAPSED.fullmatch(text) or _MINUTES.fullmatch(text):
        return _possible(**{unit: int(value or 0) for unit, value in match.groupdict().items()})
    if match := _SHORT.fullmatch(text):
        number, rest = int(match["number"]), int(match["rest"] or 0)
        return timedelta(days=number, hours=rest) if match["unit"] == "d" else timedelta(hours=number, minutes=rest)
    raise ValueError(f"{text[:40]!r} is no time since a start")


def _possible(*, days: int = 0, hours: int = 0, minutes: int = 0, seconds: int = 0) -> timedelta:
    if days >= _LONGEST.days:  # before it overflows
        return timedelta()
    elapsed = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    return elapsed if elapsed < _LONGEST else timedelta()


def _number(fields: Mapping[str, str], name: str) -> float | None:
    try:
        return float(fields[name])
    except (KeyError, ValueError):
        return None
