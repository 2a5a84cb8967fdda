"""`kubernetes.logs`: how often containers wrote a certain line."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ClassVar, Self

from pydantic import Field, field_validator, model_validator

from actions.kubernetes.checks.failing import told
from actions.kubernetes.checks.limits import MOST_SAMPLES, texts
from actions.kubernetes.checks.patterns import searcher
from actions.kubernetes.checks.places import connect_within
from actions.kubernetes.checks.selection import SELECTION, Selection, SelectionParams, select
from actions.kubernetes.client import Client
from actions.kubernetes.connection import KubernetesConnection
from actions.kubernetes.containers import container_of, status_of
from actions.kubernetes.names import ContainerName
from actions.kubernetes.permissions import rbac
from actions.kubernetes.progress import is_ready
from actions.kubernetes.texts import clean
from actions.kubernetes.workloads import parse_time
from remediator.action import Check, Code, Context, Fact, FactType, Permission
from remediator.duration import Duration
from remediator.errors import CheckFailed, PermissionMissing, RemediatorError
from remediator.model import Value

_TOTAL = 16 * 2**20
"""Most bytes read by one look, from all Pods."""
_AT_ONCE = 4
_TIME_LENGTH = 40
"""The longest timestamp is a little shorter."""


class LogsParams(SelectionParams):
    """Whose logs, which lines, how far back, and how much of them."""

    pattern: Code | None = Field(None, min_length=1, description="regular expression (RE2's syntax), found anywhere in the line")
    contains: str | None = Field(None, min_length=1, max_length=500, description="text, found anywhere in the line, as it is")
    container: ContainerName | None = Field(
        None, description="its container; may be left out where there is one, or a default is annotated"
    )
    previous: bool = Field(False, description="read what the container's run before the present one wrote, of those that have one")
    since: Duration = Field(
        timedelta(minutes=10), ge=timedelta(seconds=1), le=timedelta(days=1), description="only lines written within this span"
    )
    max_pods: int = Field(20, ge=1, le=100, description="Pods read at most; those that are not ready first")
    max_lines: int = Field(10_000, ge=1, le=50_000, description="lines read of one Pod at most, the newest")
    max_bytes: int = Field(2**20, ge=1_000, le=4 * 2**20, description="bytes read of one Pod at most")

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            searcher(pattern)
        return pattern

    @model_validator(mode="after")
    def _one_way_to_match(self) -> Self:
        if (self.pattern is None) == (self.contains is None):
            raise ValueError("set exactly one of pattern and contains")
        return self

    @property
    def matches(self) -> Callable[[str], bool]:
        """What tells whether a line counts."""
        if self.pattern is not None:
            return searcher(self.pattern)
        wanted = self.contains or ""
        return lambda line: wanted in line


_FACTS = {
    "found": (FactType.BOOL, "whether there is any such Pod; without one nothing else is known"),
    "owner_found": (FactType.BOOL, "whether the workload named by `owner` is there; unknown without `owner`"),
    "pods": (FactType.INT, "Pods found"),
    "read": (FactType.INT, "Pods whose log was read"),
    "without_log": (FactType.INT, "Pods that have no such log: the container never ran, or has no run before the present one"),
    "unreadable": (FactType.INT, "Pods whose log could not be read; what depends on all of them is then unknown"),
    "matched": (FactType.BOOL, "whether any line matches; false only when all logs were read to the end"),
    "count": (FactType.INT, "lines that match; unknown when a log could not be read, was cut, or there was none"),
    "at_least": (FactType.INT, "lines seen that match, however much was read"),
    "pods_matched": (FactType.INT, "Pods with such a line; unknown as `count`"),
    "lines": (FactType.INT, "lines in all; unknown as `count`"),
    "first_at": (FactType.TIMESTAMP, "when the first such line was written; unknown without one, and as `count`"),
    "last_at": (FactType.TIMESTAMP, "when the last such line was written; unknown without one, and as `count`"),
    "last_age": (FactType.DURATION, "how long ago that was"),
    "truncated": (FactType.BOOL, "whether there were more Pods, lines or bytes than may be read, or more matches than are shown"),
}


class Logs(Check[LogsParams]):
    """Count the lines that match in the logs of Pods, and show the newest.

    A log is what a node still has: its newest file (10 MiB by default) of the container's present run, or with `previous` of the
    run before. Lines that earlier runs wrote, or Pods that are gone, are not seen.
    """

    name: ClassVar[str] = "kubernetes.logs"
    Params: ClassVar[type[Any]] = LogsParams
    connection = KubernetesConnection
    connection_field: ClassVar[str] = "cluster"
    facts: ClassVar[Mapping[str, Fact]] = {
        **{name: Fact(kind, text) for name, (kind, text) in _FACTS.items()},
        "matches": Fact(FactType.STRINGS, "the newest lines that match, as `POD: LINE`, oldest first", evidence=True),
    }
    permissions: ClassVar[tuple[Permission, ...]] = (*SELECTION, rbac("/pods/log", "get", why="read what containers wrote"))
    example: ClassVar[Mapping[str, Any]] = {
        "cluster": "production",
        "namespace": "shop",
        "owner": "deployment/web",
        "pattern": "(?i)connection refused|too many connections",
        "since": "5m",
    }

    async def run(self, params: LogsParams, ctx: Context) -> Mapping[str, Value]:
        """Read each Pod's log once. Raises `CheckFailed`."""
        with told(self.name):
            client, now = await connect_within(ctx, params), ctx.now
            selection = await select(client, params)
            if selection is None:
                return {"found": False, "owner_found": False}
            owned: dict[str, Value] = {"owner_found": True} if params.owner else {}
            sources = await _sources(client, selection, params)
            if not sources:
                return {**owned, "found": False}
            return {**owned, **await _facts(client, params, sources, now)}


# --- which logs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Source:
    """One container's log."""

    pod: str
    container: str
    ready: bool
    exists: bool

    @property
    def urgency(self) -> tuple[bool, str]:
        """Order of reading: Pods that are not ready first."""
        return self.ready, self.pod


async def _sources(client: Client, selection: Selection, params: LogsParams) -> list[Source]:
    found = []
    async for pod in selection.pods(client):
        container = container_of(pod, params.container)
        found.append(Source(pod["metadata"]["name"], container, is_ready(pod), _has_log(pod, container, previous=params.previous)))
    return sorted(found, key=lambda source: source.urgency)


def _has_log(pod: Mapping[str, Any], container: str, *, previous: bool) -> bool:
    """Tell whether the container ran, or with `previous` ran before: asking for the log of one that did not is an error."""
    status = status_of(pod, container)
    ran_before = bool((status.get("lastState") or {}).get("terminated"))
    if previous:
        return ran_before
    state = status.get("state") or {}
    return ran_before or "running" in state or "terminated" in state


# --- reading ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Match:
    """One line that matches."""

    at: datetime | None
    pod: str
    line: str


@dataclass(frozen=True)
class Read:
    """What one log holds."""

    matches: int = 0
    lines: int = 0
    size: int = 0
    first: datetime | None = None
    newest: Sequence[Match] = ()
    cut: bool = False
    error: RemediatorError | None = None


async def _facts(client: Client, params: LogsParams, sources: Sequence[Source], now: datetime) -> dict[str, Value]:
    existing = [source for source in sources if source.exists]
    reads = await _read_all(client, params, existing[: params.max_pods])
    errors = [read.error for read in reads if read.error is not None]
    refused = next((error for error in errors if isinstance(error, PermissionMissing)), None)
    if refused is not None:
        raise refused
    if errors and len(errors) == len(reads):
        raise CheckFailed(f"no log could be read: {errors[0]}") from errors[0]
    good = [read for read in reads if read.error is None]
    truncated = len(reads) < len(existing) or any(read.cut for read in good)
    facts: dict[str, Value] = {
        "found": True,
        "pods": len(sources),
        "read": len(good),
        "without_log": len(sources) - len(existing),
        "unreadable": len(errors),
        "truncated": truncated,
    }
    if not good:
        return facts  # nothing ran yet: no line proves nothing
    at_least = sum(read.matches for read in good)
    newest = heapq.nlargest(MOST_SAMPLES, (match for read in good for match in read.newest), key=lambda match: _order(match.at))
    shown, shown_cut = texts([f"{match.pod}: {match.line}" for match in newest])
    facts |= {"at_least": at_least, "matches": shown[::-1], "truncated": truncated or shown_cut or at_least > len(shown)}
    if errors or truncated:
        return {**facts, "matched": True} if at_least else facts
    return {**facts, "matched": at_least > 0, "count": at_least, **_whole(good, newest, now)}


def _whole(reads: Sequence[Read], newest: Sequence[Match], now: datetime) -> dict[str, Value]:
    """Return the facts that need all logs to the end."""
    facts: dict[str, Value] = {"lines": sum(read.lines for read in reads), "pods_matched": sum(read.matches > 0 for read in reads)}
    firsts = [read.first for read in reads if read.first is not None]
    lasts = [match.at for match in newest if match.at is not None]
    if firsts and lasts:
        facts |= {"first_at": min(firsts), "last_at": max(lasts), "last_age": now - max(lasts)}
    return facts


def _order(at: datetime | None) -> float:
    return at.timestamp() if at is not None else 0.0


async def _read_all(client: Client, params: LogsParams, sources: Sequence[Source]) -> list[Read]:
    """Read logs, a few at once, until 16 MiB are read; fewer results than sources tell that some were left out."""
    reads: list[Read] = []
    matches = params.matches
    for start in range(0, len(sources), _AT_ONCE):
        if sum(read.size for read in reads) >= _TOTAL:
            break
        reads += await asyncio.gather(*(_read(client, params, source, matches) for source in sources[start : start + _AT_ONCE]))
    return reads


async def _read(client: Client, params: LogsParams, source: Source, matches: Callable[[str], bool]) -> Read:
    """Read one log. Raises nothing: what goes wrong is told in the result, so that the others are read to their end."""
    query = {
        "container": source.container,
        "timestamps": "true",
        "sinceSeconds": str(max(1, round(params.since.total_seconds()))),
        "tailLines": str(params.max_lines + 1),  # one more tells that there are more
        "limitBytes": str(params.max_bytes + 1),
        **({"previous": "true"} if params.previous else {}),
    }
    try:
        body, cut = await client.text(f"/api/v1/namespaces/{params.namespace}/pods/{source.pod}/log", query, limit=params.max_bytes)
    except RemediatorError as error:
        return Read(error=error)
    return look_through(body, matches, pod=source.pod, cut=cut, max_lines=params.max_lines)


def look_through(body: bytes, matches: Callable[[str], bool], *, pod: str, cut: bool, max_lines: int) -> Read:
    """Count the lines of a log with timestamps that match; a last line that was cut off is left out."""
    lines = body.decode(errors="replace").split("\n")
    if not cut and (said := _words_of_the_node(lines)):
        return Read(size=len(body), error=CheckFailed(f"pod {pod}: the node sent no log, or not all of it: {said}"))
    if cut or lines[-1] == "":
        lines.pop()
    more = len(lines) > max_lines
    count, first, newest = 0, None, []
    for line in lines[-max_lines:]:
        at, said = split_time(line)
        if matches(said):
            count += 1
            first = at if first is None else first
            newest.append(Match(at, pod, said[:500]))
            del newest[:-MOST_SAMPLES]
    return Read(matches=count, lines=min(len(lines), max_lines), size=len(body), first=first, newest=newest, cut=cut or more)


def _words_of_the_node(lines: Sequence[str]) -> str:
    """Return what a node says in the place of a log, or of its rest; nothing where it says nothing.

    It has promised success by then, and writes its error behind what it has sent. Each line of a log begins with its time and ends;
    an error does neither. A log without any times, which some nodes send, is no error unless it is a single such line.
    """
    last = lines[-1]
    if not last or split_time(last)[0] is not None or (len(lines) > 1 and split_time(lines[0])[0] is None):
        return ""
    return clean(last)


def split_time(line: str) -> tuple[datetime | None, str]:
    """Split the timestamp off a line; None where there is none.

    >>> split_time("2026-11-21T05:44:03.123456789Z hello")[1]
    'hello'
    """
    time, blank, said = line.partition(" ")
    if not blank or len(time) > _TIME_LENGTH:
        return None, line
    try:
        at = parse_time(time)
    except ValueError:
        return None, line
    return (at, said) if at.tzinfo is not None else (None, line)
