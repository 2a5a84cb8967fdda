# ruff: noqa: S608 - texts are put together from this file's own
"""SQL texts of what leaves the PostgreSQL store. Values are bound, never spliced. `{now}` is the clock, as in `postgres_queries`."""

from __future__ import annotations

KEEP = """
INSERT INTO keeper (instance, until) VALUES ($1::text, {now} + $2::bigint)
ON CONFLICT (one) DO UPDATE SET instance = excluded.instance, until = excluded.until
WHERE keeper.instance = excluded.instance OR keeper.until <= {now} RETURNING {now}
"""
KEEPER_GIVEN_BACK = "DELETE FROM keeper WHERE instance = $1::text"

# --- batches ----------------------------------------------------------------------------------------------------------------

BATCH_UNFINISHED = """
SELECT n, name, state, (SELECT count(*) FROM chain WHERE archiving <> 0 AND archiving = archive.n) FROM archive
WHERE state IN ('filling', 'sealed') LIMIT 1
"""
BATCH_ADD = "INSERT INTO archive (name, state) VALUES ('', 'filling') RETURNING n"
BATCH_NAME = "UPDATE archive SET name = $2 WHERE n = $1"
BATCH_SEAL = """
UPDATE archive SET state = 'sealed', after_count = $2, after_hash = $3, count = $4, hash = $5 WHERE n = $1 AND state = 'filling' RETURNING n
"""
BATCH_DROP = "DELETE FROM archive WHERE n = $1 AND state = 'filling'"
BATCH_RECORD = "UPDATE archive SET state = 'recorded', recorded_at = $2 WHERE n = $1 AND state = 'sealed' RETURNING n"
BATCH_PURGED = "UPDATE archive SET state = 'purged' WHERE n = $1 AND state = 'recorded'"
BATCH_SYSTEM = "SELECT after_count, after_hash, count, hash FROM archive WHERE n = $1"
BATCH_PURGEABLE = "SELECT n FROM archive WHERE state = 'recorded' AND recorded_at <= $1 ORDER BY n LIMIT 1"

# --- choosing ------------------------------------------------------------------------------------------------------------------

INCIDENTS_RESOLVED = "SELECT n, body FROM incident WHERE state = 'resolved' AND n > $1 ORDER BY n LIMIT $2"
HEADS = "SELECT name, count FROM chain WHERE name = ANY($1::text[])"
FINGERPRINTED = """
SELECT chain, body FROM event WHERE chain = ANY($1::text[]) AND position('"fingerprint":'::bytea IN body) > 0 ORDER BY chain, seq
"""

# OFFSET 0 keeps an inner query one of its own: the planner would otherwise rather walk the index of all that is undelivered, or open.
_UNDELIVERED = """EXISTS (
    SELECT 1 FROM (SELECT delivered, cancelled FROM message AS m WHERE m.key >= {0} || '/' AND m.key < {0} || '0' OFFSET 0) AS own
    WHERE NOT own.delivered AND NOT own.cancelled
)"""
_MAY_GO = f"""
SELECT x.name FROM unnest($1::text[], $2::bytea[], $3::bigint[]) AS x(name, body, count)
WHERE EXISTS (SELECT 1 FROM incident AS i WHERE i.id = x.name AND i.body = x.body)
AND EXISTS (SELECT 1 FROM chain AS c WHERE c.name = x.name AND c.count = x.count AND c.archiving = 0)
AND NOT EXISTS (SELECT 1 FROM run AS r WHERE r.incident = x.name AND (
    r.ended_at IS NULL OR r.ended_at >= $4::bigint OR EXISTS (SELECT 1 FROM lock WHERE lock.run = r.id) OR {_UNDELIVERED.format("r.id")}
))
AND NOT {_UNDELIVERED.format("x.name")}
AND x.name <> ALL (ARRAY(
    SELECT f.incident FROM unnest($5::text[], $6::text[]) AS f(incident, name)
    CROSS JOIN LATERAL (SELECT closed_at FROM episode AS e WHERE e.fingerprint = f.name AND e.incident = f.incident OFFSET 0) AS own
    WHERE own.closed_at IS NULL
))
"""
MAY_GO = _MAY_GO
CHAINS_SEAL = f"""
UPDATE chain SET archiving = $7::bigint WHERE name IN ({_MAY_GO}) AND archiving = 0
AND EXISTS (SELECT 1 FROM archive WHERE n = $7::bigint AND state = 'filling')
"""
CHAINS_RECLAIM = "UPDATE chain SET changed = true WHERE name = ANY($1::text[]) AND archiving = 0"
ARCHIVED_UPTO = "SELECT count FROM archived WHERE chain = $1"
ARCHIVED_PUT = """
INSERT INTO archived (chain, count) SELECT * FROM unnest($1::text[], $2::bigint[])
ON CONFLICT (chain) DO UPDATE SET count = greatest(archived.count, excluded.count)
"""

# --- what is in a batch ----------------------------------------------------------------------------------------------------------

CHAINS_SEALED = "SELECT name, count, head FROM chain WHERE archiving <> 0 AND archiving = $1 ORDER BY name"
RUNS_OF = "SELECT id, body FROM run WHERE incident = $1 ORDER BY n"
APPROVALS_OF = "SELECT body FROM approval WHERE id >= $1::text || '-A' AND id < $1::text || '-B' ORDER BY id"
USES_OF = "SELECT run, rule, target, at, returned FROM use WHERE run = $1"
MESSAGES_OF = "SELECT body, due_at, cancelled FROM message WHERE key >= $1::text || '/' AND key < $1::text || '0' ORDER BY key"
EPISODES_OF = "SELECT body FROM episode WHERE fingerprint = $1 AND incident = $2 ORDER BY number"

# --- deleting ----------------------------------------------------------------------------------------------------------------------

CHAINS_LEFT = """
SELECT name, count, (SELECT min(seq) FROM event WHERE event.chain = name), (SELECT count(*) FROM event WHERE event.chain = name)
FROM chain WHERE archiving <> 0 AND archiving = $1 ORDER BY name LIMIT $2
"""
INCIDENT_BODIES = "SELECT body FROM incident WHERE id = ANY($1::text[])"
PURGE = """
WITH runs AS MATERIALIZED (SELECT id FROM run WHERE incident = ANY($1::text[])),
owners AS MATERIALIZED (SELECT id FROM runs UNION ALL SELECT unnest($1::text[])),
days AS (
    INSERT INTO incident_day (day, number)
    SELECT day, max(number) FROM (SELECT day, number FROM incident WHERE id = ANY($1::text[]) OFFSET 0) AS own
    WHERE day IS NOT NULL GROUP BY day
    ON CONFLICT (day) DO UPDATE SET number = greatest(incident_day.number, excluded.number)
),
p_approval AS (
    DELETE FROM approval USING runs WHERE approval.id >= runs.id || '-A' AND approval.id < runs.id || '-B' RETURNING 1
),
p_signal AS (DELETE FROM signal USING runs WHERE signal.run = runs.id RETURNING 1),
p_message AS (
    DELETE FROM message USING owners WHERE message.key >= owners.id || '/' AND message.key < owners.id || '0' RETURNING 1
),
p_episode AS (
    DELETE FROM episode USING unnest($2::text[], $3::text[]) AS f(incident, name)
    WHERE episode.fingerprint = f.name AND episode.incident = f.incident RETURNING 1
),
p_run AS (DELETE FROM run USING runs WHERE run.id = runs.id RETURNING 1),
p_incident AS (DELETE FROM incident WHERE id = ANY($1::text[]) RETURNING 1),
p_event AS (
    DELETE FROM event USING unnest($1::text[], $4::bigint[]) AS c(name, upto)
    WHERE event.chain = c.name AND event.seq <= c.upto RETURNING 1
)
SELECT (SELECT count(*) FROM p_approval) + (SELECT count(*) FROM p_signal) + (SELECT count(*) FROM p_message)
    + (SELECT count(*) FROM p_episode) + (SELECT count(*) FROM p_run) + (SELECT count(*) FROM p_incident) + (SELECT count(*) FROM p_event)
"""
CHAINS_DROP = """
WITH gone AS (
    DELETE FROM chain WHERE name = ANY($1::text[]) AND archiving = $2::bigint
    AND NOT EXISTS (SELECT 1 FROM event WHERE event.chain = chain.name) RETURNING name
),
unneeded AS (DELETE FROM archived USING gone WHERE archived.chain = gone.name)
SELECT count(*) FROM gone
"""
EVENT_FIRST = "SELECT min(seq) FROM event WHERE chain = $1"
EVENTS_DROP = "DELETE FROM event WHERE chain = $1 AND seq <= $2"

# --- bounded tables -----------------------------------------------------------------------------------------------------------------

ATTEMPTS_OLD = "SELECT run FROM attempt WHERE ended_at < $1 ORDER BY ended_at LIMIT $2"
USES_OLD = """
SELECT run FROM use WHERE at < $1 AND NOT EXISTS (SELECT 1 FROM run AS r WHERE r.id = use.run AND r.ended_at IS NULL) ORDER BY at LIMIT $2
"""
MESSAGES_DONE = """
SELECT n, due_at, body FROM message
WHERE (delivered OR cancelled) AND (due_at, n) > ($1, $2) AND due_at < $3 ORDER BY due_at, n LIMIT $4
"""
EPISODES_CLOSED = """
SELECT n, closed_at, body FROM episode
WHERE closed_at IS NOT NULL AND (closed_at, n) > ($1, $2) AND closed_at < $3 ORDER BY closed_at, n LIMIT $4
"""
INCIDENTS_THERE = "SELECT id FROM incident WHERE id = ANY($1::text[])"
ORPHANS_DROP = """
WITH p_use AS (DELETE FROM use WHERE run = ANY($1::text[]) AND at < $4::bigint RETURNING 1),
p_message AS (DELETE FROM message WHERE n = ANY($2::bigint[]) AND (delivered OR cancelled) RETURNING 1),
p_episode AS (DELETE FROM episode WHERE n = ANY($3::bigint[]) AND closed_at < $4::bigint RETURNING 1),
p_attempt AS (DELETE FROM attempt WHERE run = ANY($5::text[]) AND ended_at < $4::bigint RETURNING 1)
SELECT (SELECT count(*) FROM p_attempt) + (SELECT count(*) FROM p_use) + (SELECT count(*) FROM p_message) + (SELECT count(*) FROM p_episode)
"""
RULE_HASHES = r"""
SELECT max(n), array_agg(DISTINCT hash) FROM (
    SELECT n, substring(convert_from(body, 'UTF8') FROM '"rule_hash":"((?:[^"\\]|\\.)*)"') AS hash FROM run WHERE n > $1 ORDER BY n LIMIT $2
) AS page
"""
RULE_TEXTS_DROP = "DELETE FROM rule_text WHERE hash <> ALL($1::text[])"
