# ruff: noqa: S608 - texts are put together from this file's own
"""SQL texts of the PostgreSQL store. Values are bound, never spliced. `{now}` is the clock: microseconds by the database's own time."""

from __future__ import annotations

from remediator.store.protocol import MOST_ATTEMPTS
from remediator.store.rows import ACKNOWLEDGED, SEVERITY

CLOCK = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
"""The database's time now, also inside a transaction that began earlier."""

# --- what transactions see ----------------------------------------------------------------------------------------------

_SEVERITY = f"'\\x{SEVERITY.hex()}'::bytea"
_ACKNOWLEDGED = f"'\\x{ACKNOWLEDGED.hex()}'::bytea"
_NEWEST_EPISODE = "SELECT * FROM episode AS one WHERE one.fingerprint = f.name ORDER BY number DESC LIMIT 1"

LOAD = f"""
WITH
wanted_approval AS MATERIALIZED (SELECT id, run, incident, body FROM approval WHERE id = ANY($1::text[])),
wanted_run AS MATERIALIZED (SELECT * FROM run WHERE id IN (
    SELECT unnest($2::text[]) UNION SELECT run FROM wanted_approval
    UNION SELECT id FROM run AS active WHERE active.incident = ANY($3::text[]) AND active.ended_at IS NULL
)),
wanted_episode AS MATERIALIZED (SELECT e.* FROM unnest($4::text[]) AS f(name) CROSS JOIN LATERAL ({_NEWEST_EPISODE}) AS e),
latest AS MATERIALIZED (
    SELECT s.rule, s.target, i.id FROM unnest($5::text[], $6::text[]) AS s(rule, target)
    CROSS JOIN LATERAL (
        SELECT id FROM incident AS one WHERE one.rule = s.rule AND one.target = s.target ORDER BY n DESC LIMIT 1
    ) AS i
),
wanted_incident AS MATERIALIZED (SELECT id, fingerprint, body FROM incident WHERE id IN (
    SELECT unnest($7::text[]) UNION SELECT unnest($3::text[]) UNION SELECT incident FROM wanted_approval
    UNION SELECT incident FROM wanted_run UNION SELECT incident FROM wanted_episode UNION SELECT id FROM latest
)),
other_episode AS (
    SELECT e.* FROM (
        SELECT DISTINCT i.fingerprint AS name FROM wanted_run AS r JOIN wanted_incident AS i ON i.id = r.incident
        WHERE r.id = ANY($2::text[]) AND i.fingerprint <> ALL($4::text[])
    ) AS f CROSS JOIN LATERAL ({_NEWEST_EPISODE}) AS e
)
SELECT 'now' AS kind, NULL::text AS k, {{now}} AS a,
    (SELECT count(*) FROM run WHERE state IN ('applying', 'verifying', 'undoing', 'outcome_unknown')) AS b,
    NULL::bigint AS c, NULL::text AS t, NULL::text AS u, NULL::bytea AS body
UNION ALL SELECT 'pause', scope, NULL, NULL, NULL, NULL, NULL, body FROM pause
UNION ALL SELECT 'era', id, set_back, NULL, NULL, NULL, NULL, NULL FROM era
UNION ALL SELECT 'approval', id, NULL, NULL, NULL, NULL, NULL, body FROM wanted_approval
UNION ALL SELECT 'approval', id, NULL, NULL, NULL, NULL, NULL, body FROM approval
    WHERE id IN (SELECT approval FROM wanted_run WHERE id = ANY($2::text[])) AND id <> ALL($1::text[])
UNION ALL SELECT 'run', id, fence, wake_at, lease_until, worker, CASE WHEN woken THEN 'woken' END, body FROM wanted_run
UNION ALL SELECT 'episode', fingerprint, number, NULL, NULL, NULL, NULL, body FROM wanted_episode
UNION ALL SELECT 'episode', fingerprint, number, NULL, NULL, NULL, NULL, body FROM other_episode
UNION ALL SELECT 'incident', id, NULL, NULL, NULL, NULL, NULL, body FROM wanted_incident
UNION ALL SELECT 'latest', rule, NULL, NULL, NULL, target, id, NULL FROM latest
UNION ALL SELECT 'chain', name, count, changed::int, archiving, head, NULL, NULL FROM chain
    WHERE name IN (SELECT id FROM wanted_incident UNION SELECT unnest($8::text[]))
UNION ALL SELECT 'lock', key, NULL, NULL, NULL, run, NULL, NULL FROM lock WHERE key = ANY($9::text[])
UNION ALL SELECT 'lock', l.key, NULL, NULL, NULL, l.run, NULL, NULL FROM unnest($18::text[]) AS p(begin)
    JOIN lock AS l ON l.key >= p.begin || '/' AND l.key < p.begin || '0'
UNION ALL (SELECT 'signal', run, n, NULL, NULL, NULL, NULL, body FROM signal WHERE run = ANY($2::text[]) ORDER BY run, n)
UNION ALL SELECT 'use', run, at, NULL, NULL, rule, target, NULL FROM use
    WHERE rule = ANY($10::text[]) AND at > {{now}} - $12::bigint AND NOT returned
UNION ALL SELECT 'written', s.rule, w.ended_at, NULL, NULL, s.target, NULL, NULL
    FROM unnest($10::text[], $11::text[]) AS s(rule, target)
    CROSS JOIN LATERAL (
        SELECT ended_at FROM run AS one WHERE one.rule = s.rule AND one.target = s.target AND one.wrote AND one.ended_at IS NOT NULL
        AND NOT EXISTS (
            SELECT 1 FROM run AS other WHERE other.incident = one.incident AND other.ended_at IS NULL AND other.chain = one.chain
        )
        ORDER BY ended_at DESC LIMIT 1
    ) AS w
UNION ALL SELECT 'day', d.name, greatest(
        (SELECT max(number) FROM incident WHERE day = d.name), (SELECT number FROM incident_day WHERE day = d.name)
    ), NULL, NULL, NULL, NULL, NULL FROM unnest($13::text[]) AS d(name)
UNION ALL (SELECT 'opened', incident, created_at, NULL, NULL, NULL, NULL, NULL FROM run
    WHERE created_at > {{now}} - $14::bigint ORDER BY created_at DESC, incident DESC LIMIT $15::bigint)
UNION ALL SELECT 'attempt', a.run, NULL, a.recovered_at, a.relapsed_at, a.rule, NULL, a.body FROM unnest($16::text[]) AS s(rule)
    CROSS JOIN LATERAL (
        SELECT * FROM attempt AS one WHERE one.rule = s.rule AND one.tried AND one.ended_at > {{now}} - $17::bigint
        ORDER BY one.ended_at DESC, one.run DESC LIMIT {MOST_ATTEMPTS}
    ) AS a
"""

BATCH = "SELECT batch FROM daemon WHERE instance = $1"

# --- what transactions write: parts of one statement, each with its own $1, $2, … ----------------------------------------------

_RUN_COLUMNS = (
    "id, incident, chain, rule, target, state, approval, created_at, ended_at, wrote, wake_at, fence, worker, lease_until, woken, body, "
    "touches"
)
_RUN_ARRAYS = (
    "$1::text[], $2::text[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::text[], $8::bigint[], $9::bigint[], $10::boolean[], "
    "$11::bigint[], $12::bigint[], $13::text[], $14::bigint[], $15::boolean[], $16::bytea[], $17::bytea[]"
)

PARTS = {
    "marker": """INSERT INTO daemon (instance, batch, seen_at) VALUES ($1::text, $2::bigint, $3::bigint)
        ON CONFLICT (instance) DO UPDATE SET batch = excluded.batch, seen_at = excluded.seen_at""",
    "episodes": """INSERT INTO episode (fingerprint, number, incident, closed_at, body)
        SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[], $4::bigint[], $5::bytea[])
        ON CONFLICT (fingerprint, number) DO UPDATE
        SET incident = excluded.incident, closed_at = excluded.closed_at, body = excluded.body""",
    "incidents": """INSERT INTO incident (id, day, number, rule, target, state, fingerprint, body)
        SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::text[], $8::bytea[])
        ON CONFLICT (id) DO UPDATE SET rule = excluded.rule, target = excluded.target, state = excluded.state,
        fingerprint = excluded.fingerprint, body = excluded.body""",
    "new_runs": f"INSERT INTO run ({_RUN_COLUMNS}) SELECT * FROM unnest({_RUN_ARRAYS})",
    "runs": f"""UPDATE run SET state = x.state, approval = x.approval, ended_at = x.ended_at, wrote = x.wrote, wake_at = x.wake_at,
        fence = x.fence, woken = x.woken, body = coalesce(x.body, run.body), touches = x.touches,
        worker = CASE WHEN x.leased THEN x.worker ELSE run.worker END,
        lease_until = CASE WHEN x.leased THEN x.lease_until ELSE run.lease_until END
        FROM unnest({_RUN_ARRAYS}, $18::boolean[]) AS x({_RUN_COLUMNS}, leased) WHERE run.id = x.id""",
    "wake": """UPDATE run SET wake_at = least(coalesce(wake_at, $2::bigint), $2::bigint), woken = worker IS NOT NULL
        WHERE id = ANY($1::text[]) AND ended_at IS NULL RETURNING id""",
    "approvals": """INSERT INTO approval (id, run, incident, state, body)
        SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bytea[])
        ON CONFLICT (id) DO UPDATE SET state = excluded.state, body = excluded.body""",
    "consumed": "DELETE FROM signal WHERE run = ANY($1::text[])",
    "signals": "INSERT INTO signal (run, body) SELECT * FROM unnest($1::text[], $2::bytea[])",
    "locks_moved": """UPDATE lock SET run = x.new FROM unnest($1::text[], $2::text[]) AS x(old, new)
        WHERE lock.run = x.old AND lock.key <> ALL($3::text[])""",
    "locks_freed": "DELETE FROM lock WHERE (run = ANY($1::text[]) AND key <> ALL($2::text[])) OR key = ANY($3::text[])",
    "locks": """INSERT INTO lock (key, run) SELECT * FROM unnest($1::text[], $2::text[])
        ON CONFLICT (key) DO UPDATE SET run = excluded.run""",
    "uses": """INSERT INTO use (run, rule, target, at, returned)
        SELECT *, false FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[])
        ON CONFLICT (run) DO UPDATE SET rule = excluded.rule, target = excluded.target, at = excluded.at, returned = excluded.returned""",
    "messages": """INSERT INTO message (key, due_at, delivered, cancelled, body)
        SELECT * FROM unnest($1::text[], $2::bigint[], $3::boolean[], $4::boolean[], $5::bytea[]) ON CONFLICT (key) DO NOTHING""",
    "messages_changed": """UPDATE message
        SET cancelled = cancelled OR x.cancel, due_at = CASE WHEN x.due THEN least(due_at, $4::bigint) ELSE due_at END
        FROM unnest($1::text[], $2::boolean[], $3::boolean[]) AS x(key, cancel, due)
        WHERE message.key = x.key AND NOT delivered AND NOT cancelled""",
    "pauses": """INSERT INTO pause (scope, body) SELECT * FROM unnest($1::text[], $2::bytea[])
        ON CONFLICT (scope) DO UPDATE SET body = excluded.body""",
    "era": "INSERT INTO era (id) SELECT unnest($1::text[]) ON CONFLICT (one) DO UPDATE SET id = excluded.id",
    "lifted": "DELETE FROM pause WHERE scope = ANY($1::text[])",
    "attempts": """INSERT INTO attempt (run, rule, tried, ended_at, recovered_at, relapsed_at, body)
        SELECT * FROM unnest($1::text[], $2::text[], $3::boolean[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bytea[])
        ON CONFLICT (run) DO UPDATE SET tried = excluded.tried, ended_at = excluded.ended_at, body = excluded.body,
        recovered_at = coalesce(attempt.recovered_at, excluded.recovered_at),
        relapsed_at = coalesce(attempt.relapsed_at, excluded.relapsed_at)""",
    "recovered": """UPDATE attempt SET recovered_at = x.at FROM unnest($1::text[], $2::bigint[]) AS x(name, at)
        WHERE attempt.run >= x.name || '-' AND attempt.run < x.name || '.' AND recovered_at IS NULL AND attempt.run <> ALL($3::text[])""",
    "relapsed": """UPDATE attempt SET relapsed_at = x.at FROM unnest($1::text[], $2::bigint[]) AS x(name, at)
        WHERE attempt.run >= x.name || '-' AND attempt.run < x.name || '.' AND relapsed_at IS NULL AND attempt.run <> ALL($3::text[])""",
    "texts": "INSERT INTO rule_text (hash, body) SELECT * FROM unnest($1::text[], $2::bytea[]) ON CONFLICT (hash) DO NOTHING",
    "events": "INSERT INTO event (chain, seq, hash, body) SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[], $4::bytea[])",
    "chains": """INSERT INTO chain (name, count, head, changed) SELECT *, $4::boolean FROM unnest($1::text[], $2::bigint[], $3::text[])
        ON CONFLICT (name) DO UPDATE SET count = excluded.count, head = excluded.head, changed = excluded.changed""",
    "checkpointed": "UPDATE chain SET changed = false WHERE name = ANY($1::text[]) AND name <> 'system'",
}

# --- work ---------------------------------------------------------------------------------------------------------------------

CLAIM = """
WITH expired AS (
    SELECT id, 0 AS late, lease_until AS at FROM run
    WHERE worker IS NOT NULL AND ended_at IS NULL AND lease_until <= {now} ORDER BY lease_until, id LIMIT $2 FOR UPDATE SKIP LOCKED
),
due AS (
    SELECT id, 1 AS late, wake_at AS at FROM run
    WHERE worker IS NULL AND ended_at IS NULL AND wake_at IS NOT NULL AND wake_at <= {now}
    ORDER BY wake_at LIMIT $2 FOR UPDATE SKIP LOCKED
),
taken AS (SELECT * FROM (SELECT * FROM expired UNION ALL SELECT * FROM due) AS both_kinds ORDER BY late, at LIMIT $2)
UPDATE run SET worker = $1::text, lease_until = {now} + $3::bigint, woken = false, fence = fence + 1
FROM taken WHERE run.id = taken.id AND run.ended_at IS NULL
RETURNING run.body, run.fence, run.wake_at, taken.late, taken.at
"""
RENEW = """
UPDATE run SET lease_until = {now} + $3::bigint
WHERE id = ANY($2::text[]) AND worker = $1::text AND lease_until > {now} RETURNING id
"""
GIVE_BACK = """
UPDATE run SET worker = NULL, lease_until = 0, woken = false,
    wake_at = CASE WHEN ended_at IS NULL THEN least(coalesce(wake_at, {now}), {now}) ELSE wake_at END
WHERE worker = ANY($1::text[])
"""
NEXT_WAKE = """
SELECT least(
    (SELECT min(wake_at) FROM run WHERE worker IS NULL AND ended_at IS NULL AND wake_at IS NOT NULL),
    (SELECT min(lease_until) FROM run WHERE worker IS NOT NULL AND ended_at IS NULL)
)
"""
IS_DUE = """
SELECT EXISTS (SELECT 1 FROM run WHERE worker IS NULL AND ended_at IS NULL AND wake_at IS NOT NULL AND wake_at <= {now})
    OR EXISTS (SELECT 1 FROM run WHERE worker IS NOT NULL AND ended_at IS NULL AND lease_until <= {now})
"""
MESSAGES_DUE = """
WITH ranked AS (
    SELECT key, due_at, n, CASE
        WHEN position('","kind":"page","policy":"'::bytea IN body) > 0 OR position('","kind":"digest","policy":"'::bytea IN body) > 0 THEN 0
        ELSE 2
    END + CASE WHEN position(',"attempts":0,"delivered_at":'::bytea IN body) > 0 THEN 0 ELSE 1 END AS rank FROM message
    WHERE NOT delivered AND NOT cancelled AND due_at <= {now} AND (sender IS NULL OR sender = $1::text OR sender_until <= {now})
        AND NOT EXISTS (SELECT 1 FROM schema_version WHERE version > $4::int)
),
placed AS (SELECT *, row_number() OVER (PARTITION BY rank ORDER BY due_at, n) AS place FROM ranked),
chosen AS (SELECT key, rank FROM placed ORDER BY place > $2::bigint / 4, rank, due_at, n LIMIT $2::bigint),
due AS (
    SELECT m.key, m.due_at, m.n, m.body, m.sender, m.sender_until, rank FROM chosen JOIN message AS m ON m.key = chosen.key
    WHERE NOT m.delivered AND NOT m.cancelled AND m.due_at <= {now} AND (m.sender IS NULL OR m.sender = $1::text OR m.sender_until <= {now})
    FOR UPDATE OF m SKIP LOCKED
),
held AS (
    UPDATE message SET sender = $1::text, sender_until = {now} + $3::bigint FROM due
    WHERE message.key = due.key AND (due.sender IS DISTINCT FROM $1::text OR due.sender_until < {now} + $3::bigint / 2)
)
SELECT body, due_at FROM due ORDER BY rank, due_at, n
"""
"""A quarter of them is each rank's. `due` asks again what `ranked` did: another daemon may have taken a row since."""
MESSAGE_NEXT = """
SELECT min(CASE WHEN sender IS NULL OR sender = $1::text THEN due_at ELSE greatest(due_at, sender_until) END) FROM (
    SELECT * FROM message WHERE NOT delivered AND NOT cancelled ORDER BY due_at, n LIMIT 1000
) AS undelivered
"""
MESSAGE_PUT = """
UPDATE message SET due_at = $2::bigint, delivered = $3::boolean, cancelled = $4::boolean OR (cancelled AND NOT $3::boolean),
    sender = NULL, sender_until = 0, body = $5::bytea
WHERE key = $1::text RETURNING key
"""
MESSAGES_GIVEN_BACK = "UPDATE message SET sender = NULL, sender_until = 0 WHERE sender = $1::text AND NOT delivered AND NOT cancelled"
CHAINS_CHANGED = "SELECT name, count, head FROM chain WHERE changed ORDER BY name LIMIT $1"
ERA_BEGIN = "INSERT INTO era (id) VALUES ('{}') ON CONFLICT (one) DO NOTHING"
SET_BACK = "UPDATE era SET set_back = set_back + $1::bigint"
MESSAGES_SET_BACK = """
UPDATE message SET due_at = due_at - $1::bigint, sender_until = least(sender_until, {now} + $2::bigint)
WHERE NOT delivered AND NOT cancelled
"""
LEASES_SET_BACK = """
UPDATE run SET lease_until = least(lease_until, {now} + $1::bigint) WHERE worker IS NOT NULL AND ended_at IS NULL
"""
KEEPER_SET_BACK = "UPDATE keeper SET until = until - $1::bigint"
FORGET_DAEMONS = "DELETE FROM daemon WHERE seen_at < {now} - 7 * 86400 * 1000000::bigint"

# --- single rows and lists ------------------------------------------------------------------------------------------------------

INCIDENT = "SELECT body FROM incident WHERE id = $1"
RUN = "SELECT body, fence, wake_at FROM run WHERE id = $1"
APPROVAL = "SELECT body FROM approval WHERE id = $1"
PAUSES = "SELECT body FROM pause ORDER BY scope"
LOCKS = "SELECT key, run FROM lock"
RUNS_TOUCHING = """
SELECT body, fence, wake_at FROM run WHERE wrote AND (ended_at IS NULL OR ended_at >= $1)
    AND EXISTS (SELECT 1 FROM unnest($2::bytea[]) AS s(name) WHERE position(s.name IN coalesce(run.touches, run.body)) > 0)
ORDER BY n
"""
ATTEMPTS = "SELECT body, recovered_at, relapsed_at FROM attempt WHERE ended_at > $1 ORDER BY ended_at DESC, run DESC LIMIT $2"
ATTEMPTS_OF_RULE = """
SELECT body, recovered_at, relapsed_at FROM attempt WHERE rule = $1 AND tried = $2 AND ended_at > $3
ORDER BY ended_at DESC, run DESC LIMIT $4
"""
RULE_TEXT = "SELECT body FROM rule_text WHERE hash = $1"
PRESSING = f"""
WITH found AS MATERIALIZED (
    SELECT n, (
        SELECT min(place) FROM unnest($2::bytea[]) WITH ORDINALITY AS s(name, place)
        WHERE substring(body FROM position({_SEVERITY} IN body) + {len(SEVERITY)} FOR length(s.name)) = s.name
    ) AS rank
    FROM incident WHERE state = ANY($1::text[]) AND ($3::boolean IS NULL OR (position({_ACKNOWLEDGED} IN body) > 0) = $3::boolean)
),
first AS (SELECT n, rank FROM found ORDER BY rank NULLS LAST, n DESC LIMIT $4)
SELECT incident.body, (SELECT count(*) FROM found)
FROM first JOIN incident ON incident.n = first.n ORDER BY rank NULLS LAST, first.n DESC
"""
MARK = "SELECT coalesce(string_agg(instance || ' ' || batch, ', ' ORDER BY instance), '') FROM daemon"
CHAIN_COUNT = "SELECT count FROM chain WHERE name = $1"
EPISODES_OPEN = "SELECT n, body FROM episode WHERE closed_at IS NULL AND n < $1 ORDER BY n DESC LIMIT $2"
EVENTS = "SELECT hash, body FROM event WHERE chain = $1 AND seq > $2 ORDER BY seq LIMIT $3"
CHAINS = "SELECT name, count, head FROM chain WHERE name > $1 ORDER BY name LIMIT $2"
COUNTS = """
SELECT 'runs.' || state AS name, count(*) AS count FROM run GROUP BY state
UNION ALL SELECT 'incidents.' || state, count(*) FROM incident GROUP BY state
UNION ALL SELECT 'episodes.open', count(*) FROM episode WHERE closed_at IS NULL
UNION ALL SELECT 'messages.undelivered', count(*) FROM message WHERE NOT delivered AND NOT cancelled
UNION ALL SELECT 'approvals.pending', count(*) FROM approval WHERE state = 'pending'
"""


def page_of(table: str, *filters: str) -> str:
    """Return the query for a part of a table, newest first, where each column of `filters` equals a value.

    Table and columns are names from this package's code, never a caller's text. The values come first, then the place, then the limit.
    """
    columns = "n, body, fence, wake_at" if table == "run" else "n, body"
    where = "".join(f"{column} = ${place} AND " for place, column in enumerate(filters, start=1))
    place = len(filters) + 1
    return f"SELECT {columns} FROM {table} WHERE {where}n < ${place} ORDER BY n DESC LIMIT ${place + 1}"


# --- verifying the audit --------------------------------------------------------------------------------------------------------

EVENTS_FROM = "SELECT chain, seq, hash, body FROM event WHERE (chain, seq) > ($1, $2) ORDER BY chain, seq LIMIT $3"
EVENTS_AFTER = "SELECT chain, seq, hash, body FROM event WHERE chain = $1 AND seq > $2 ORDER BY seq LIMIT $3"
EVENT_HASH = "SELECT hash FROM event WHERE chain = $1 AND seq = $2"
CHAIN = "SELECT count, head, changed FROM chain WHERE name = $1"
CHAINS_AND_ENDS = """
SELECT name, count, head, (SELECT max(seq) FROM event WHERE chain = name), (SELECT hash FROM event WHERE chain = name AND seq = count)
FROM chain WHERE name > $1 ORDER BY name LIMIT $2
"""
