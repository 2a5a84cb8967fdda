"""Lists and gauges, read in a thread on a reading connection."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from remediator import audit
from remediator.model import ApprovalState, ChainedEvent, Episode, IncidentState, RunState
from remediator.records import Approval, Attempt, Incident, Run
from remediator.store import sqlite_queries as sql
from remediator.store.paging import page_of, row_before
from remediator.store.protocol import Page, Pressing
from remediator.store.rows import ACKNOWLEDGED, SEVERITY, micros, named, quoted, unpack, unpack_attempt, unpack_run


def page(
    connection: sqlite3.Connection,
    table: str,
    *,
    read: Callable[..., object],
    equal: Mapping[str, str | None],
    states: Sequence[str],
    before: str | None,
    limit: int,
) -> Page:
    """Return rows of `table` whose columns equal what `equal` gives (None: any), in one of `states` (none: any), newest first."""
    filters = {column: value for column, value in equal.items() if value is not None}
    choices = [{**filters, "state": state} for state in dict.fromkeys(states)] or [filters]
    rows: list[Any] = []
    for choice in choices:
        rows += connection.execute(sql.page_of(table, *choice), (*choice.values(), row_before(before), limit + 1))
    rows.sort(key=lambda row: -row[0])
    return page_of(rows, limit=limit, read=read)


def incidents(connection: sqlite3.Connection, *, states: Sequence[str], rule: str | None, before: str | None, limit: int) -> Page:
    """List incidents."""
    read = lambda body: unpack(Incident, body)  # noqa: E731
    return page(connection, "incident", read=read, equal={"rule": rule}, states=states, before=before, limit=limit)


def pressing(
    connection: sqlite3.Connection, *, states: Sequence[str], severities: Sequence[str], acknowledged: bool | None, limit: int
) -> Pressing:
    """List incidents by severity."""
    query = sql.pressing(states=len(states), severities=len(severities), acknowledged=acknowledged)
    rows = connection.execute(query, (limit, SEVERITY, ACKNOWLEDGED, *named(severities), *states)).fetchall()
    return Pressing(tuple(unpack(Incident, body) for body, _ in rows), rows[0][1] if rows else 0)


def runs(
    connection: sqlite3.Connection, *, states: Sequence[str], incident: str | None, rule: str | None, before: str | None, limit: int
) -> Page:
    """List runs."""
    return page(connection, "run", read=unpack_run, equal={"incident": incident, "rule": rule}, states=states, before=before, limit=limit)


def touching(connection: sqlite3.Connection, *, ids: Sequence[str], since: datetime) -> list[Run]:
    """Find runs by what they name."""
    names = json.dumps([name.decode() for name in quoted(ids)])
    # Those at work first: one that ends between the two readings is found twice, never missed.
    rows = connection.execute(sql.RUNS_AT_WORK_TOUCHING, (names,)).fetchall()
    rows += connection.execute(sql.RUNS_ENDED_TOUCHING, (names, micros(since))).fetchall()
    return [unpack_run(*row) for _, row in sorted({n: row for n, *row in rows}.items())]


def approvals(connection: sqlite3.Connection, *, states: Sequence[str], before: str | None, limit: int) -> Page:
    """List approvals."""
    read = lambda body: unpack(Approval, body)  # noqa: E731
    return page(connection, "approval", read=read, equal={}, states=states, before=before, limit=limit)


def episodes(connection: sqlite3.Connection, *, open_only: bool, before: str | None, limit: int) -> Page:
    """List episodes."""
    query = sql.EPISODES_OPEN if open_only else sql.page_of("episode")
    rows = connection.execute(query, (row_before(before), limit + 1)).fetchall()
    return page_of(rows, limit=limit, read=lambda body: unpack(Episode, body))


def events(connection: sqlite3.Connection, chain: str, *, after: int, limit: int) -> list[ChainedEvent]:
    """Return a chain's events in order."""
    return [audit.read_body(body, hash=digest) for digest, body in connection.execute(sql.EVENTS, (chain, after, limit))]


def chains(connection: sqlite3.Connection, *, after: str, limit: int) -> list[tuple[str, int, str]]:
    """Return (chain, count, head hash) in the order of names."""
    return connection.execute(sql.CHAINS, (after, limit)).fetchall()


def counts(connection: sqlite3.Connection) -> dict[str, int]:
    """Return the gauges, those that are zero too."""
    found = {f"runs.{state}": 0 for state in RunState} | {f"incidents.{state}": 0 for state in IncidentState}
    found |= {f"runs.{state}": count for state, count in connection.execute(sql.COUNT_RUNS)}
    found |= {f"incidents.{state}": count for state, count in connection.execute(sql.COUNT_INCIDENTS)}
    for name, query in (
        ("episodes.open", sql.COUNT_EPISODES_OPEN),
        ("messages.undelivered", sql.COUNT_MESSAGES),
        (f"approvals.{ApprovalState.PENDING}", sql.COUNT_APPROVALS_PENDING),
    ):
        found[name] = connection.execute(query).fetchone()[0]
    return found


def attempts(connection: sqlite3.Connection, *, since: datetime, rule: str | None, limit: int) -> list[Attempt]:
    """List attempts."""
    if rule is None:
        return [unpack_attempt(*row) for row in connection.execute(sql.ATTEMPTS, (micros(since), limit))]
    found = [
        unpack_attempt(*row) for tried in (0, 1) for row in connection.execute(sql.ATTEMPTS_OF_RULE, (rule, tried, micros(since), limit))
    ]
    return sorted(found, key=lambda attempt: (attempt.ended_at, attempt.run), reverse=True)[:limit]
