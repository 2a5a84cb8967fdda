"""What commands print in containers, as facts. Pure.

Each parser takes the outputs by Pod, and raises ValueError when one is not what it says.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping

from actions.kubernetes.checks.disk_free import Mount, parse_df
from actions.kubernetes.checks.limits import MOST_ROWS, fit, largest, small
from actions.kubernetes.checks.processes import Process, parse_ps
from actions.kubernetes.texts import clean
from remediator import documents
from remediator.action import Fact, FactType
from remediator.model import Value, canonical

_NUMBER = re.compile(r"[+-]?[0-9]{1,300}(?:\.[0-9]{0,300})?(?:[eE][+-]?[0-9]{1,3})?")
_MOST_JSON = 20_000
"""Bytes of the fact `json`."""

Outputs = Mapping[str, str]
"""What was printed, by Pod."""


# --- df --------------------------------------------------------------------------------------------------------------------

DF_FACTS: Mapping[str, Fact] = {
    "mount_count": Fact(FactType.INT, "df: lines of the tables"),
    "worst_used_percent": Fact(FactType.DOUBLE, "df: largest share in use of one file system; unknown when none says any"),
    "least_available": Fact(FactType.INT, "df: fewest bytes available on one; unknown for -h and -i, which say no bytes"),
    "worst_mount": Fact(FactType.STRING, "df: where the fullest one is mounted", evidence=True),
    "used_percent": Fact(FactType.DOUBLE_MAP, "df: share in use by mount point, of the fullest Pod", evidence=True),
    "mounts": Fact(
        FactType.ROWS, "df: pod, filesystem, mount, used_percent, size, used, available (bytes); the fullest first", evidence=True
    ),
}


def df_facts(outputs: Outputs) -> dict[str, Value]:
    """Return the facts of df's tables. Raises ValueError."""
    found = [(pod, mount) for pod, text in outputs.items() for mount in parse_df(text)]
    found.sort(key=lambda item: -1.0 if item[1].used_percent is None else item[1].used_percent, reverse=True)
    shares: dict[str, float] = {}
    for _, mount in found:
        if mount.used_percent is not None:
            shares[mount.mount] = max(mount.used_percent, shares.get(mount.mount, 0.0))
    rows, rows_cut = fit((_mount_row(pod, mount) for pod, mount in found), MOST_ROWS)
    by_mount, map_cut = largest(shares)
    available = [mount.available for _, mount in found if mount.available is not None]
    return {
        "mount_count": len(found),
        **({"worst_used_percent": found[0][1].used_percent, "worst_mount": clean(found[0][1].mount)} if shares else {}),
        **({"least_available": min(available)} if available else {}),
        "used_percent": by_mount,
        "mounts": list(rows),
        **({"truncated": True} if rows_cut or map_cut else {}),
    }


def _mount_row(pod: str, mount: Mount) -> dict[str, Value]:
    values: dict[str, Value] = {
        "pod": pod,
        "filesystem": clean(mount.filesystem),
        "mount": clean(mount.mount),
        "used_percent": mount.used_percent,
        "size": mount.size,
        "used": mount.used,
        "available": mount.available,
    }
    return {name: value for name, value in values.items() if value is not None}


# --- ps --------------------------------------------------------------------------------------------------------------------

PS_FACTS: Mapping[str, Fact] = {
    "processes": Fact(FactType.INT, "ps: processes, ps itself among them"),
    "zombies": Fact(FactType.INT, "ps: those that ended and that nobody waited for"),
    "process_counts": Fact(FactType.INT_MAP, "ps: processes by program, the hundred most frequent", evidence=True),
    "oldest_seconds": Fact(FactType.DOUBLE_MAP, "ps: age in seconds of the oldest by program; only with a column ELAPSED", evidence=True),
    "process_list": Fact(
        FactType.ROWS, "ps: pod, pid, program, command, age, cpu_percent, memory_percent; the oldest first", evidence=True
    ),
}


def ps_facts(outputs: Outputs) -> dict[str, Value]:
    """Return the facts of ps' tables. Raises ValueError."""
    found = [(pod, process) for pod, text in outputs.items() for process in parse_ps(text)]
    if not found:
        raise ValueError("a table without processes: at least ps itself should stand there")
    oldest: dict[str, float] = {}
    for _, process in found:
        if process.age is not None:
            oldest[process.name] = max(process.age.total_seconds(), oldest.get(process.name, 0.0))
    found.sort(key=lambda item: item[1].age.total_seconds() if item[1].age is not None else 0.0, reverse=True)
    rows, rows_cut = fit((_process_row(pod, process) for pod, process in found), MOST_ROWS)
    counts, counts_cut = largest(Counter(process.name for _, process in found))
    ages, ages_cut = largest(oldest)
    return {
        "processes": len(found),
        "zombies": sum(process.zombie for _, process in found),
        "process_counts": counts,
        **({"oldest_seconds": ages} if oldest else {}),
        "process_list": list(rows),
        **({"truncated": True} if rows_cut or counts_cut or ages_cut else {}),
    }


def _process_row(pod: str, process: Process) -> dict[str, Value]:
    values: dict[str, Value] = {
        "pod": pod,
        "pid": process.pid,
        "program": clean(process.name),
        "command": clean(process.command)[:200],
        "age": process.age,
        "cpu_percent": process.cpu_percent,
        "memory_percent": process.memory_percent,
    }
    return {name: value for name, value in values.items() if value is not None}


# --- numbers and lines -----------------------------------------------------------------------------------------------------

NUMBER_FACTS: Mapping[str, Fact] = {
    "number": Fact(FactType.DOUBLE, "number: what was printed; unknown when it ran in several Pods"),
    "number_max": Fact(FactType.DOUBLE, "number: the largest of all Pods"),
    "number_min": Fact(FactType.DOUBLE, "number: the smallest of all Pods"),
    "number_sum": Fact(FactType.DOUBLE, "number: all Pods' together"),
}
LINES_FACTS: Mapping[str, Fact] = {"line_count": Fact(FactType.INT, "lines: lines printed that are not blank, all Pods' together")}


def number_facts(outputs: Outputs) -> dict[str, Value]:
    """Return the facts of one number each. Raises ValueError."""
    numbers = [_number(text.strip()) for text in outputs.values()]
    return {
        **({"number": numbers[0]} if len(numbers) == 1 else {}),
        "number_max": max(numbers),
        "number_min": min(numbers),
        "number_sum": math.fsum(numbers),
    }


def _number(text: str) -> float:
    if not _NUMBER.fullmatch(text) or not math.isfinite(float(text)):
        raise ValueError(f"the output is not one number: {text[:60]!r}")
    return float(text)


def lines_facts(outputs: Outputs) -> dict[str, Value]:
    """Return the number of lines."""
    return {"line_count": sum(bool(line.strip()) for text in outputs.values() for line in text.splitlines())}


# --- JSON ------------------------------------------------------------------------------------------------------------------

JSON_FACTS: Mapping[str, Fact] = {
    "json": Fact(FactType.DYN, "json: the document without its nulls, when it is small", evidence=True),
    "json_numbers": Fact(FactType.DOUBLE_MAP, "json: picked numbers by name; what is not there is missing"),
    "json_texts": Fact(FactType.STRING_MAP, "json: picked strings and booleans by name; what is not there is missing", evidence=True),
}


def json_facts(output: str, pick: Mapping[str, str]) -> dict[str, Value]:
    """Return the facts of one JSON document. Raises ValueError, also for what other programs would not read alike (NaN, huge numbers)."""
    document = documents.parse(output)
    picked = {name: documents.follow(document, pointer) for name, pointer in pick.items()}
    shown, cut = small({name: clean(_text(item)) for name, item in picked.items() if isinstance(item, bool | str)})
    facts: dict[str, Value] = {
        "json_numbers": {
            name: float(item) for name, item in picked.items() if isinstance(item, int | float) and not isinstance(item, bool)
        },
        "json_texts": shown,
        **({"truncated": True} if cut else {}),
    }
    kept = documents.fits(document) and len(canonical(document)) <= _MOST_JSON
    return {**facts, "json": documents.without_nulls(document)} if kept else {**facts, "truncated": True}


def _text(item: str | bool) -> str:
    return item if isinstance(item, str) else str(item).lower()
