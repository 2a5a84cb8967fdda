"""Every SQL text of the SQLite store, by name. Values are bound, never spliced; a test holds each against the query planner."""

from __future__ import annotations

from remediator.store.rows import SEVERITY

# --- what a transaction sees -------------------------------------------------------------------------------------------

EPISODE_NEWEST = "SELECT body FROM episode WHERE fingerprint = ? ORDER BY number DESC LIMIT 1"
EPISODES_NEWEST = """
SELECT body FROM json_each(?) AS wanted
JOIN episode ON episode.n = (SELECT n FROM episode WHERE fingerprint = wanted.value ORDER BY number DESC LIMIT 1)
"""
INCIDENTS = "SELECT body FROM json_each(?) AS wanted JOIN incident ON incident.id = wanted.value"
INCIDENT = "SELECT body FROM incident WHERE id = ?"
INCIDENT_NEWEST = "SELECT body FROM incident WHERE rule = ? AND target = ? ORDER BY n DESC LIMIT 1"
INCIDENT_LAST_NUMBER = "SELECT max(number) FROM incident WHERE day = ?"
RUN = "SELECT body, fence, wake_at FROM run WHERE id = ?"
RUN_AND_INCIDENT = """
SELECT run.body, run.fence, run.wake_at, incident.body, EXISTS (SELECT 1 FROM signal WHERE signal.run = run.id)
FROM run LEFT JOIN incident ON incident.id = run.incident WHERE run.id = ?
"""
RUNS_ACTIVE = "SELECT body, fence, wake_at FROM run WHERE incident = ? AND ended_at IS NULL ORDER BY n"
RUNS_ACTING = "SELECT count(*) FROM run WHERE state IN ('applying', 'verifying', 'undoing', 'outcome_unknown')"
RUN_LAST_WRITTEN = """
SELECT ended_at FROM run
WHERE rule = ? AND target = ? AND wrote = 1 AND ended_at IS NOT NULL
  AND NOT EXISTS (SELECT 1 FROM run AS other WHERE other.incident = run.incident AND other.ended_at IS NULL AND other.chain = run.chain)
ORDER BY ended_at DESC LIMIT 1
"""
RUNS_CREATED = "SELECT incident, created_at FROM run WHERE created_at > ? ORDER BY created_at DESC, incident DESC LIMIT ?"
APPROVAL = "SELECT body FROM approval WHERE id = ?"
SIGNALS = "SELECT body FROM signal WHERE run = ? ORDER BY n"
LOCK_HOLDER = "SELECT run FROM lock WHERE key = ?"
LOCKS_BELOW = "SELECT key, run FROM lock WHERE key >= ? || '/' AND key < ? || '0'"
USES_OF_RULE = "SELECT run, rule, target, at FROM use WHERE rule = ? AND at > ? AND returned = 0 ORDER BY at"
USES_COUNT = "SELECT count(*) FROM use WHERE rule = ? AND at > ? AND returned = 0"
ATTEMPTS_OF_RULE = """
SELECT body, recovered_at, relapsed_at FROM attempt WHERE rule = ? AND tried = ? AND ended_at > ? ORDER BY ended_at DESC, run DESC LIMIT ?
"""
PAUSES = "SELECT body FROM pause ORDER BY scope"
CHAIN = "SELECT count, head, changed, archiving FROM chain WHERE name = ?"
ERA = "SELECT id, set_back FROM era WHERE one = 1"
INCIDENT_LAST_GONE = "SELECT number FROM incident_day WHERE day = ?"

# --- what a transaction writes -------------------------------------------------------------------------------------------

EPISODE_PUT = """
INSERT INTO episode (fingerprint, number, closed_at, body) VALUES (?, ?, ?, ?)
ON CONFLICT (fingerprint, number) DO UPDATE SET closed_at = excluded.closed_at, body = excluded.body
"""
EPISODE_BODY = "UPDATE episode SET body = ? WHERE fingerprint = ? AND number = ?"
INCIDENT_PUT = """
INSERT INTO incident (id, day, number, rule, target, state, body) VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET rule = excluded.rule, target = excluded.target, state = excluded.state, body = excluded.body
"""
INCIDENT_BODY = "UPDATE incident SET body = ? WHERE id = ?"
RUN_INSERT = """
INSERT INTO run (id, incident, chain, rule, target, state, ended_at, wrote, touches, wake_at, fence, leased, woken, created_at, body)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, ?, ?) ON CONFLICT (id) DO NOTHING
"""
RUN_REPLACE = """
UPDATE run SET state = ?, ended_at = ?, wrote = ?, touches = ?, wake_at = CASE WHEN woken = 1 THEN wake_at ELSE ? END, body = ?
WHERE id = ? AND fence = ? RETURNING CASE WHEN ended_at IS NULL THEN wake_at END
"""
RUN_BODY = "UPDATE run SET body = ? WHERE id = ? AND fence = ? RETURNING CASE WHEN ended_at IS NULL THEN wake_at END"
RUN_FENCE = "SELECT fence FROM run WHERE id = ?"
RUN_CLAIM = """
UPDATE run SET leased = 1, woken = 0, fence = fence + ? WHERE id = ? AND ended_at IS NULL RETURNING body, fence, wake_at
"""
RUN_RELEASE = "UPDATE run SET leased = 0, woken = 0 WHERE id = ? RETURNING CASE WHEN ended_at IS NULL THEN wake_at END"
RUN_WAKE = """
UPDATE run SET wake_at = min(coalesce(wake_at, ?1), ?1), woken = leased WHERE id = ?2 AND ended_at IS NULL RETURNING wake_at
"""
RUN_VOID_LEASES = """
UPDATE run SET leased = 0, woken = 0, wake_at = CASE WHEN ended_at IS NULL THEN min(coalesce(wake_at, ?1), ?1) ELSE wake_at END
WHERE leased = 1
"""
APPROVAL_PUT = """
INSERT INTO approval (id, state, body) VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE SET state = excluded.state, body = excluded.body
"""
SIGNAL_ADD = "INSERT INTO signal (run, body) VALUES (?, ?)"
SIGNALS_CONSUME = "DELETE FROM signal WHERE run = ?"
LOCK_TAKE = "INSERT INTO lock (key, run) VALUES (?, ?) ON CONFLICT (key) DO NOTHING"
LOCKS_RELEASE = "DELETE FROM lock WHERE run = ?"
LOCKS_MOVE = "UPDATE lock SET run = ? WHERE run = ?"
USE_PUT = """
INSERT INTO use (run, rule, target, at, returned) VALUES (?, ?, ?, ?, 0)
ON CONFLICT (run) DO UPDATE SET rule = excluded.rule, target = excluded.target, at = excluded.at, returned = excluded.returned
"""
MESSAGE_ADD = "INSERT INTO message (key, due_at, pending, body) VALUES (?, ?, ?, ?) ON CONFLICT (key) DO NOTHING"
MESSAGE_PUT = "UPDATE message SET due_at = ?, pending = ?, body = ? WHERE key = ?"
MESSAGE = "SELECT body FROM message WHERE key = ?"
MESSAGE_PENDING = "SELECT body FROM message WHERE key = ? AND pending = 1"
PAUSE_PUT = "INSERT INTO pause (scope, body) VALUES (?, ?) ON CONFLICT (scope) DO UPDATE SET body = excluded.body"
PAUSE_LIFT = "DELETE FROM pause WHERE scope = ?"
ATTEMPT_PUT = """
INSERT INTO attempt (run, rule, tried, ended_at, recovered_at, relapsed_at, body) VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (run) DO UPDATE SET tried = excluded.tried, ended_at = excluded.ended_at, body = excluded.body,
    recovered_at = coalesce(recovered_at, excluded.recovered_at), relapsed_at = coalesce(relapsed_at, excluded.relapsed_at)
"""
ATTEMPTS_RECOVERED = """
UPDATE attempt SET recovered_at = ?1 WHERE run >= ?2 || '-' AND run < ?2 || '.' AND recovered_at IS NULL
"""
ATTEMPTS_RELAPSED = """
UPDATE attempt SET relapsed_at = ?1 WHERE run >= ?2 || '-' AND run < ?2 || '.' AND relapsed_at IS NULL
"""
RULE_TEXT_ADD = "INSERT INTO rule_text (hash, body) VALUES (?, ?) ON CONFLICT (hash) DO NOTHING"
ERA_PUT = "INSERT INTO era (one, id) VALUES (1, ?) ON CONFLICT (one) DO UPDATE SET id = excluded.id"
ERA_BEGIN = "INSERT INTO era (one, id) VALUES (1, ?) ON CONFLICT (one) DO UPDATE SET id = excluded.id WHERE era.id = ''"
ERA_END = "UPDATE era SET id = '' WHERE one = 1"
SET_BACK = "UPDATE era SET set_back = set_back + ? WHERE one = 1"
MESSAGES_WAITING = "SELECT body FROM message WHERE pending = 1"
EVENT_ADD = "INSERT INTO event (chain, seq, hash, body) VALUES (?, ?, ?, ?)"
CHAIN_PUT = """
INSERT INTO chain (name, count, head, changed) VALUES (?, ?, ?, 1)
ON CONFLICT (name) DO UPDATE SET count = excluded.count, head = excluded.head, changed = 1
"""
CHAIN_GROW = "UPDATE chain SET count = ?, head = ? WHERE name = ?"
CHAINS_CHANGED = "SELECT name, count, head FROM chain WHERE changed = 1 ORDER BY name LIMIT ?"
CHAIN_CHECKPOINTED = "UPDATE chain SET changed = 0 WHERE name = ?"

# --- work -------------------------------------------------------------------------------------------------------------------

RUNS_DUE = """
SELECT id FROM run WHERE leased = 0 AND ended_at IS NULL AND wake_at IS NOT NULL AND wake_at <= ? ORDER BY wake_at LIMIT ?
"""
RUN_NEXT_WAKE = "SELECT min(wake_at) FROM run WHERE leased = 0 AND ended_at IS NULL AND wake_at IS NOT NULL"
RANKS = (0, 1, 2, 3)
MESSAGES_DUE = """
SELECT body FROM message
WHERE pending = 1
    AND (instr(body, '","kind":"page","policy":"') = 0 AND instr(body, '","kind":"digest","policy":"') = 0) * 2
        + (instr(body, ',"attempts":0,"delivered_at":') = 0) = ?
    AND due_at <= ?
ORDER BY due_at, n LIMIT ? OFFSET ?
"""
"""Those of one of `RANKS`, by the index `message_rank`."""
MESSAGE_NEXT = "SELECT min(due_at) FROM message WHERE pending = 1"

# --- lists ------------------------------------------------------------------------------------------------------------------


def page_of(table: str, *filters: str) -> str:
    """Return the query for a part of a table, newest first, where each column of `filters` equals a value.

    Table and columns are names from this package's code, never a caller's text. The first filter is the one whose index is
    walked; the plus sign keeps the planner from choosing another, which could mean to sort a million rows.
    """
    columns = "n, body, fence, wake_at" if table == "run" else "n, body"
    where = "".join(f"{'+' if place else ''}{column} = ? AND " for place, column in enumerate(filters))
    return f"SELECT {columns} FROM {table} WHERE {where}n < ? ORDER BY n DESC LIMIT ?"  # noqa: S608 - see the docstring


def pressing(*, states: int, severities: int, acknowledged: bool | None) -> str:
    """Return the query for incidents in the order of severities. Bound are: the limit, `SEVERITY`, `ACKNOWLEDGED`, severities, states."""
    said = f"substr(body, instr(body, ?2) + {len(SEVERITY)}, length(?{{0}})) = ?{{0}}"
    ranks = " ".join(f"WHEN {said.format(rank + 4)} THEN {rank}" for rank in range(severities))
    wanted = ", ".join(f"?{place + severities + 4}" for place in range(states))
    heard = "" if acknowledged is None else f"AND (instr(body, ?3) > 0) = {int(acknowledged)}"
    return f"""
WITH found AS MATERIALIZED (
    SELECT n, CASE {ranks or "WHEN 1 THEN 0"} ELSE {severities} END AS rank FROM incident WHERE state IN ({wanted}) {heard}
),
first AS (SELECT n, rank FROM found ORDER BY rank, n DESC LIMIT ?1)
SELECT incident.body, (SELECT count(*) FROM found) FROM first JOIN incident ON incident.n = first.n ORDER BY rank, first.n DESC
"""  # noqa: S608 - put together from numbers and this file's own words


EPISODES_OPEN = "SELECT n, body FROM episode WHERE closed_at IS NULL AND n < ? ORDER BY n DESC LIMIT ?"
EVENTS = "SELECT hash, CAST(body AS BLOB) FROM event WHERE chain = ? AND seq > ? ORDER BY seq LIMIT ?"
CHAIN_COUNT = "SELECT count FROM chain WHERE name = ?"
CHAINS = "SELECT name, count, head FROM chain WHERE name > ? ORDER BY name LIMIT ?"
LOCKS = "SELECT key, run FROM lock"
RUNS_AT_WORK_TOUCHING = """
SELECT n, body, fence, wake_at FROM run WHERE wrote = 1 AND ended_at IS NULL
  AND EXISTS (SELECT 1 FROM json_each(?) AS wanted WHERE instr(run.body, CAST(wanted.value AS BLOB)) > 0)
"""
RUNS_ENDED_TOUCHING = """
WITH wanted AS MATERIALIZED (SELECT CAST(value AS BLOB) AS name FROM json_each(?))
SELECT n, body, fence, wake_at FROM run WHERE wrote = 1 AND ended_at >= ?
  AND EXISTS (SELECT 1 FROM wanted WHERE instr(coalesce(run.touches, run.body), wanted.name) > 0)
"""
ATTEMPTS = "SELECT body, recovered_at, relapsed_at FROM attempt WHERE ended_at > ? ORDER BY ended_at DESC, run DESC LIMIT ?"
RULE_TEXT = "SELECT body FROM rule_text WHERE hash = ?"

COUNT_RUNS = "SELECT state, count(*) FROM run GROUP BY state"
COUNT_INCIDENTS = "SELECT state, count(*) FROM incident GROUP BY state"
COUNT_EPISODES_OPEN = "SELECT count(*) FROM episode WHERE closed_at IS NULL"
COUNT_MESSAGES = "SELECT count(*) FROM message WHERE pending = 1"
COUNT_APPROVALS_PENDING = "SELECT count(*) FROM approval WHERE state = 'pending'"

# --- archiving ------------------------------------------------------------------------------------------------------------------

BATCH_UNFINISHED = "SELECT n, name, state, recorded_at FROM archive WHERE state <> 'purged' AND state <> 'recorded' ORDER BY n LIMIT 1"
BATCH_ADD = "INSERT INTO archive (name, state) VALUES ('', 'filling') RETURNING n"
BATCH_NAME = "UPDATE archive SET name = ? WHERE n = ?"
BATCH_SEAL = "UPDATE archive SET state = 'sealed', after_count = ?, after_hash = ?, count = ?, hash = ? WHERE n = ? AND state = 'filling'"
BATCH_RECORD = "UPDATE archive SET state = 'recorded', recorded_at = ? WHERE n = ? AND state = 'sealed'"
BATCH_PURGED = "UPDATE archive SET state = 'purged' WHERE n = ?"
BATCH_DROP = "DELETE FROM archive WHERE n = ?"
BATCH_SYSTEM = "SELECT after_count, after_hash, count, hash FROM archive WHERE n = ?"
BATCH_PURGEABLE = """
SELECT n FROM archive WHERE state <> 'purged' AND state = 'recorded' AND recorded_at <= ? ORDER BY n LIMIT 1
"""
BATCH_SIZE = "SELECT count(*) FROM chain WHERE archiving <> 0 AND archiving = ?"
INCIDENTS_RESOLVED = "SELECT n, id, body FROM incident WHERE state = 'resolved' AND n > ? ORDER BY n LIMIT ?"
RUNS_OF = "SELECT id, ended_at, body FROM run WHERE incident = ? ORDER BY n"
LOCKED_BY = "SELECT 1 FROM lock WHERE run = ? LIMIT 1"
MESSAGES_OF = "SELECT n, pending, body FROM message WHERE key >= ? || '/' AND key < ? || '0' ORDER BY key"
APPROVALS_OF = "SELECT n, body FROM approval WHERE id >= ? || '-A' AND id < ? || '-B' ORDER BY id"
USES_OF = "SELECT run, rule, target, at, returned FROM use WHERE run = ?"
EPISODES_OF = "SELECT n, closed_at, body FROM episode WHERE fingerprint = ? ORDER BY number"
CHAIN_SEAL = "UPDATE chain SET archiving = ? WHERE name = ? AND archiving = 0"
CHAIN_RECLAIM = "UPDATE chain SET changed = 1 WHERE name = ? AND archiving = 0"
CHAINS_SEALED = "SELECT name, count, head FROM chain WHERE archiving <> 0 AND archiving = ? ORDER BY name"
CHAIN_SEALED = "SELECT name, count FROM chain WHERE archiving <> 0 AND archiving = ? ORDER BY name LIMIT 1"
CHAIN_DROP = "DELETE FROM chain WHERE name = ?"
ARCHIVED_PUT = "INSERT INTO archived (chain, count) VALUES (?, ?) ON CONFLICT (chain) DO UPDATE SET count = max(count, excluded.count)"
ARCHIVED_UPTO = "SELECT count FROM archived WHERE chain = ?"
ARCHIVED_DROP = "DELETE FROM archived WHERE chain = ?"
EVENT_FIRST = "SELECT min(seq) FROM event WHERE chain = ?"
EVENTS_DROP = "DELETE FROM event WHERE chain = ? AND seq <= ?"
INCIDENT_ROW = "SELECT day, number, body FROM incident WHERE id = ?"
INCIDENT_DAY_PUT = """
INSERT INTO incident_day (day, number) VALUES (?, ?) ON CONFLICT (day) DO UPDATE SET number = max(number, excluded.number)
"""
INCIDENT_DROP = "DELETE FROM incident WHERE id = ?"
RUN_DROP = "DELETE FROM run WHERE id = ?"
USE_DROP = "DELETE FROM use WHERE run = ?"
MESSAGE_DROP = "DELETE FROM message WHERE n = ?"
APPROVAL_DROP = "DELETE FROM approval WHERE n = ?"
EPISODE_DROP = "DELETE FROM episode WHERE n = ?"

# --- bounded tables -----------------------------------------------------------------------------------------------------------

RUN_ENDED = "SELECT ended_at FROM run WHERE id = ?"
ATTEMPTS_OLD = "SELECT run FROM attempt WHERE ended_at < ? ORDER BY ended_at LIMIT ?"
ATTEMPT_DROP = "DELETE FROM attempt WHERE run = ?"
USES_OLD = "SELECT run FROM use WHERE at < ? ORDER BY at LIMIT ?"
MESSAGES_DONE = "SELECT n, due_at, body FROM message WHERE pending = 0 AND (due_at, n) > (?, ?) AND due_at < ? ORDER BY due_at, n LIMIT ?"
EPISODES_CLOSED = """
SELECT n, closed_at, body FROM episode
WHERE closed_at IS NOT NULL AND (closed_at, n) > (?, ?) AND closed_at < ? ORDER BY closed_at, n LIMIT ?
"""
RULE_TEXTS = "SELECT hash FROM rule_text"
RULE_TEXT_DROP = "DELETE FROM rule_text WHERE hash = ?"
RUN_BODIES = "SELECT n, body FROM run WHERE n > ? ORDER BY n LIMIT ?"

# --- verifying the audit --------------------------------------------------------------------------------------------------------

EVENTS_FROM = "SELECT chain, seq, CAST(hash AS TEXT), CAST(body AS BLOB) FROM event WHERE (chain, seq) > (?, ?) ORDER BY chain, seq LIMIT ?"
EVENTS_AFTER = "SELECT chain, seq, CAST(hash AS TEXT), CAST(body AS BLOB) FROM event WHERE chain = ? AND seq > ? ORDER BY seq LIMIT ?"
EVENT_HASH = "SELECT hash FROM event WHERE chain = ? AND seq = ?"
CHAINS_AND_ENDS = """
SELECT name, count, head, (SELECT max(seq) FROM event WHERE chain = name), (SELECT hash FROM event WHERE chain = name AND seq = count)
FROM chain WHERE name > ? ORDER BY name LIMIT ?
"""
