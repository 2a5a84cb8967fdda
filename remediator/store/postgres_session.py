"""Loads rows into a batch's state, and writes what the batch changed: one round trip each."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from remediator.store import postgres_queries as sql
from remediator.store.postgres_state import Keys, RunRow, State, Writes, plain, stored
from remediator.store.rows import maybe_micros, micros, pack, touches

if TYPE_CHECKING:
    import asyncpg

_PLACE = re.compile(r"\$(\d+)")

Part = tuple[str, tuple[Any, ...]]


async def load(connection: asyncpg.Connection, keys: Keys, state: State, *, clock: str) -> None:
    """Load what `keys` names. `clock` is the SQL of the time."""
    latest, usage = list(keys.latest), list(keys.usage)
    rows = await connection.fetch(
        _with_clock(sql.LOAD, clock),
        _all(keys.approvals),
        _all(keys.runs),
        _all(keys.active),
        _all(keys.fingerprints),
        [stored(rule) for rule, _ in latest],
        [stored(target) for _, target in latest],
        _all(keys.incidents),
        _all(keys.chains | keys.incidents | keys.active),
        _all(keys.locks),
        [stored(rule) for rule, _ in usage],
        [stored(target) for _, target in usage],
        keys.window,
        list(keys.days),
        keys.opened,
        keys.opened_most,
        _all(keys.attempts),
        keys.attempts_window,
        [prefix.removesuffix("/") for prefix in _all(keys.lock_prefixes)],
    )
    state.take(keys, rows)


@functools.cache
def _with_clock(text: str, clock: str) -> str:
    return text.replace("{now}", clock)


def _all(names: set[str]) -> list[str]:
    found = []
    for name in names:
        try:
            found.append(stored(name))
        except ValueError:  # no row can have such a name
            continue
    return found


async def write(
    connection: asyncpg.Connection, writes: Writes, state: State, *, more: Sequence[Part], notify: tuple[str, str] | None
) -> list[str]:
    """Write all of it in one statement, with `more` parts; return the ids of woken runs that were not loaded."""
    parts = [*more, *_parts(writes, state)]
    names = tuple(name for name, _ in parts)
    values = [value for _, arguments in parts for value in arguments]
    woken = await connection.fetchval(
        _statement(names, tuple(len(arguments) for _, arguments in parts), notify is not None), *values, *(notify or ())
    )
    return [plain(name) for name in woken or ()]


@functools.lru_cache(maxsize=1000)
def _statement(names: tuple[str, ...], counts: tuple[int, ...], notifies: bool) -> str:
    """Put parts together to one statement, and number their values through."""
    texts, used = [], 0
    for name, count in zip(names, counts, strict=True):
        texts.append(f"p_{name} AS ({_PLACE.sub(functools.partial(_shift, used), sql.PARTS[name])})")
        used += count
    woken = "(SELECT array_agg(id) FROM p_wake)" if "wake" in names else "NULL::text[]"
    notify = f", pg_notify(${used + 1}, ${used + 2})" if notifies else ""
    return f"WITH {', '.join(texts)} SELECT {woken}{notify}"


def _shift(by: int, place: re.Match[str]) -> str:
    return f"${int(place[1]) + by}"


def _parts(writes: Writes, state: State) -> list[Part]:
    """Return the parts of the statement for all that is to be written; those that concern the same table touch different rows."""
    found: list[Part] = [
        ("episodes", _columns(writes.episodes.values(), 5)),
        ("incidents", _columns(writes.incidents.values(), 8)),
        ("new_runs", _columns([_run(state, name) for name in writes.new_runs], 17)),
        ("runs", _columns([(*_run(state, name), name in writes.leased) for name in writes.runs], 18)),
        ("wake", ([stored(name) for name in writes.wakes], state.micros)),
        ("approvals", _columns(writes.approvals.values(), 5)),
        ("consumed", ([stored(name) for name in writes.consumed],)),
        ("signals", _columns([(stored(run), body) for run, bodies in writes.signals.items() for body in bodies], 2)),
        *_locks(writes),
        ("uses", _columns([(stored(u.run), stored(u.rule), stored(u.target), micros(u.at)) for u in writes.uses.values()], 4)),
        *_messages(writes, state),
        ("pauses", _columns([(stored(scope), body) for scope, body in writes.pauses.items() if body is not None], 2)),
        ("lifted", ([stored(scope) for scope, body in writes.pauses.items() if body is None],)),
        ("era", (list(writes.era.values()),)),
        ("texts", _columns([(stored(name), body) for name, body in writes.texts.items()], 2)),
        *_attempts(writes),
        ("events", _columns([(stored(chain), seq, *event) for (chain, seq), event in writes.events.items()], 4)),
        (
            "chains",
            (*_columns([(stored(chain), head.seq, head.hash) for chain, head in writes.chains.items()], 3), not writes.checkpointed),
        ),
        ("checkpointed", ([stored(chain) for chain in writes.checkpointed],)),
    ]
    return [(name, arguments) for name, arguments in found if arguments[0]]


def _attempts(writes: Writes) -> list[Part]:
    rows = [
        (stored(a.run), stored(a.rule), a.tried, micros(a.ended_at), maybe_micros(a.recovered_at), maybe_micros(a.relapsed_at), pack(a))
        for a in writes.attempts.values()
    ]
    # What one statement writes it can't see: the attempts of this batch carry their marks already.
    written = [stored(run) for run in writes.attempts]
    return [
        ("attempts", _columns(rows, 7)),
        ("recovered", (*_columns([(stored(name), at) for name, at in writes.recovered.items()], 2), written)),
        ("relapsed", (*_columns([(stored(name), at) for name, at in writes.relapsed.items()], 2), written)),
    ]


def _columns(rows: Any, count: int) -> tuple[list[Any], ...]:
    """Turn rows into one array for each column."""
    return tuple(map(list, zip(*rows, strict=True))) or ([],) * count


def _run(state: State, name: str) -> tuple[Any, ...]:
    row = state.runs[name]
    assert isinstance(row, RunRow)
    run = row.run
    return (
        stored(run.id),
        stored(run.incident),
        run.chain,
        stored(run.rule),
        stored(run.target),
        run.state.value,
        None if run.approval is None else stored(run.approval),
        micros(run.created_at),
        maybe_micros(run.ended_at),
        run.ever_wrote,
        maybe_micros(run.wake_at),
        run.fence,
        None if row.worker is None else stored(row.worker),
        row.until,
        row.woken,
        row.body,
        touches(run),
    )


def _locks(writes: Writes) -> list[Part]:
    touched = [stored(key) for key in writes.locks]
    moved = [(stored(old), stored(new)) for old, new in writes.holders.items() if new is not None]
    freed = [stored(old) for old, new in writes.holders.items() if new is None]
    gone = [stored(key) for key, holder in writes.locks.items() if holder is None]
    held = [(stored(key), stored(holder)) for key, holder in writes.locks.items() if holder is not None]
    found: list[Part] = [("locks_moved", (*_columns(moved, 2), touched)), ("locks", _columns(held, 2))]
    if freed or gone:
        found.append(("locks_freed", (freed or [""], touched, gone)))
    return found


def _messages(writes: Writes, state: State) -> list[Part]:
    new = [
        (stored(key), micros(message.due_at), message.delivered_at is not None, message.cancelled, body)
        for key, (message, body) in writes.messages.items()
    ]
    changed = [(stored(key), key in writes.cancelled, key in writes.due) for key in {**writes.cancelled, **writes.due}]
    return [("messages", _columns(new, 5)), ("messages_changed", (*(_columns(changed, 3)), state.micros))]
