"""Every SQL text of this package, as constants. Values are always bound (`$1`), never part of a text.

Catalogue names need no qualification: `PREPARE_SESSION` leaves nothing but `pg_catalog` in the search path, so that no
object made by somebody else can stand in for one of PostgreSQL's. What rules bring along (`postgres.query`,
`postgres.execute`) runs with the role's own search path.
"""

from __future__ import annotations

# --- sessions of ours ----------------------------------------------------------------------------------------------------

PREPARE_SESSION = """
SELECT set_config('search_path', 'pg_catalog', false),
       set_config('statement_timeout', $1, false),
       set_config('lock_timeout', $1, false),
       set_config('idle_session_timeout', '0', false)
"""

PROBE = "SELECT 1"

OWN_SEARCH_PATH = "SET LOCAL search_path TO DEFAULT"

LIMIT_TRANSACTION = "SELECT set_config('statement_timeout', $1, true), set_config('lock_timeout', $2, true)"

RIGHTS = """
SELECT current_user::text AS role,
       pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') AS reads_all_stats,
       pg_has_role(current_user, 'pg_signal_backend', 'USAGE') AS signals_backends
"""
"""A superuser has every role."""

IS_MEMBER = "SELECT EXISTS (SELECT FROM pg_roles r WHERE r.rolname = $1::text AND pg_has_role(current_user, r.oid, 'USAGE'))"

MAY_EXECUTE = "SELECT coalesce(has_function_privilege(to_regprocedure($1::text), 'EXECUTE'), false)"

BEYOND = """
SELECT attribute.name, 'attribute' AS verb
FROM pg_roles r, LATERAL (VALUES ('SUPERUSER', r.rolsuper), ('CREATEROLE', r.rolcreaterole), ('CREATEDB', r.rolcreatedb),
                                 ('REPLICATION', r.rolreplication), ('BYPASSRLS', r.rolbypassrls)) AS attribute(name, granted)
WHERE r.rolname = current_user AND attribute.granted
UNION ALL
SELECT other.rolname::text, 'member'
FROM pg_roles r, pg_roles other
WHERE r.rolname = current_user AND NOT r.rolsuper AND starts_with(other.rolname, 'pg_') AND pg_has_role(r.oid, other.oid, 'MEMBER')
"""
"""What a role may do beyond its grants on objects: attributes and predefined roles. A superuser has all of these anyhow."""

# --- which sessions ------------------------------------------------------------------------------------------------------

MAINTENANCE = ("pg_dump", "pg_dumpall", "pg_restore", "pg_rewind", "vacuumdb", "reindexdb", "clusterdb", "pg_amcheck", "pg_repack")
"""Names under which PostgreSQL's own tools log in; their sessions are touched only when a rule names them."""

_MAINTENANCE_ARRAY = "ARRAY[" + ", ".join(f"'{name}'" for name in MAINTENANCE) + "]"

_HOLDS_LOCK = "a.state = 'idle' AND a.pid IN (SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted)"


def _spared(*, lock_holders: bool) -> str:
    """Return the expression that says why a session is left alone; $7 is the application a rule names."""
    return f"""
CASE WHEN a.pid = pg_backend_pid() OR a.application_name = current_setting('application_name') THEN 'own'
     WHEN coalesce(r.rolsuper, true) THEN 'superuser'
     WHEN a.application_name = ANY({_MAINTENANCE_ARRAY}) AND a.application_name IS DISTINCT FROM $7::text THEN 'maintenance'
     WHEN a.pid IN (SELECT pid FROM pg_stat_progress_vacuum UNION ALL SELECT pid FROM pg_stat_progress_analyze
                    UNION ALL SELECT pid FROM pg_stat_progress_create_index UNION ALL SELECT pid FROM pg_stat_progress_cluster)
          THEN 'maintenance'
     WHEN {_HOLDS_LOCK if lock_holders else "false"} THEN 'lock'
     ELSE '' END
"""  # noqa: S608 - constants only


_FILTERS = """
($5::text IS NULL OR a.datname::text = $5) AND ($6::text IS NULL OR a.usename::text = $6)
AND ($7::text IS NULL OR a.application_name = $7)
"""

_PINNED = """
($1::int[] IS NULL OR EXISTS (SELECT FROM unnest($1, $2::timestamptz[], $3::timestamptz[]) AS pin(p, b, q)
                              WHERE p = a.pid AND b = a.backend_start AND (q IS NULL OR q = a.query_start)))
"""

IDLE = """
(a.state = 'idle' OR ($8::bool AND a.state IN ('idle in transaction', 'idle in transaction (aborted)')))
AND a.state_change < clock_timestamp() - $4::interval
"""
"""Idle longer than $4; $8: open transactions too."""

ACTIVE = "a.state = 'active' AND a.query_start < clock_timestamp() - $4::interval AND $8::bool IS NOT NULL"
"""A statement runs longer than $4."""

PID = "a.pid = $8::int AND $4::interval IS NOT NULL"
"""The session with pid $8, whatever it does."""


def candidates(condition: str) -> str:
    """Return the statement that reads the sessions of which `condition` (one of the above) is true.

    $1..$3: pinned pids, backend_starts and query_starts (an element of $3 may be null: any), or null for all sessions.
    $4 threshold, $5 database, $6 user, $7 application (null: any), $8 belongs to the condition. Rows: the longest first;
    `spared` says why a session is left alone, and is empty for one that may be touched.
    """
    return f"""
SELECT a.pid, a.backend_start, a.query_start, coalesce(a.datname::text, '') AS database, coalesce(a.usename::text, '') AS "user",
       a.application_name AS application, coalesce(a.state, '') AS state, a.state_change,
       {_spared(lock_holders=condition == IDLE)} AS spared
FROM pg_stat_activity AS a LEFT JOIN pg_roles AS r ON r.oid = a.usesysid
WHERE a.backend_type = 'client backend' AND {_PINNED} AND {_FILTERS} AND {condition}
ORDER BY CASE a.state WHEN 'active' THEN a.query_start ELSE a.state_change END, a.pid
"""  # noqa: S608 - constants only


def signal(function: str, condition: str) -> str:
    """Return the one statement that compares every pinned session again and signals those still as planned.

    The selection is complete before the first signal is sent, and holds no session that the role may not signal: an
    error in the middle would leave half of it done.
    """
    return f"""
WITH chosen AS MATERIALIZED ({candidates(condition)})
SELECT pid, backend_start, {function}(pid) AS signalled FROM chosen WHERE spared = '' AND $1::int[] IS NOT NULL
"""  # noqa: S608 - constants only


PRESENT = """
SELECT a.pid, a.backend_start, CASE WHEN a.state = 'active' THEN a.query_start END AS query_start
FROM pg_stat_activity AS a JOIN unnest($1::int[], $2::timestamptz[]) AS pin(p, b) ON a.pid = pin.p AND a.backend_start = pin.b
"""

SESSION_COUNT = "SELECT count(*)::int FROM pg_stat_activity WHERE backend_type = 'client backend'"

# --- checks --------------------------------------------------------------------------------------------------------------

PING = "SELECT pg_is_in_recovery() AS in_recovery, current_setting('server_version') AS version, pg_postmaster_start_time() AS started"

LIMITS = """
SELECT current_setting('max_connections')::int AS max,
       (SELECT sum(setting::int)::int FROM pg_settings WHERE name IN ('superuser_reserved_connections', 'reserved_connections')) AS reserved
"""

CONNECTIONS = f"""
SELECT coalesce(a.datname::text, '') AS database, coalesce(a.state, 'starting') AS state, coalesce(a.application_name, '') AS application,
       count(*)::int AS sessions,
       (count(*) FILTER (WHERE spared = '' AND state = 'idle' AND age > $1::interval))::int AS idle_over,
       (count(*) FILTER (WHERE spared = '' AND state LIKE 'idle in transaction%' AND age > $1::interval))::int AS idle_in_transaction_over,
       max(age) FILTER (WHERE spared = '' AND state = 'idle') AS idle_longest
FROM (SELECT a.*, clock_timestamp() - a.state_change AS age, {_spared(lock_holders=True).replace("$7::text", "NULL")} AS spared
      FROM pg_stat_activity AS a LEFT JOIN pg_roles AS r ON r.oid = a.usesysid
      WHERE a.backend_type = 'client backend') AS a
GROUP BY 1, 2, 3
"""  # noqa: S608 - constants only

LONG_RUNNING = """
SELECT a.pid, a.usename::text AS "user", a.datname::text AS database, a.application_name AS application, a.state,
       coalesce(a.wait_event_type, '') AS wait,
       coalesce(a.state = 'active' AND a.query_start < clock_timestamp() - $1::interval, false) AS is_statement,
       CASE WHEN a.state = 'active' THEN clock_timestamp() - a.query_start END AS statement_age,
       clock_timestamp() - a.xact_start AS transaction_age, left(a.query, 500) AS query
FROM pg_stat_activity AS a
WHERE a.backend_type = 'client backend' AND a.pid <> pg_backend_pid() AND a.application_name <> current_setting('application_name')
  AND ($2::text IS NULL OR a.datname::text = $2)
  AND ((a.state = 'active' AND a.query_start < clock_timestamp() - $1::interval) OR a.xact_start < clock_timestamp() - $1::interval)
ORDER BY least(a.xact_start, CASE WHEN a.state = 'active' THEN a.query_start END), a.pid
"""

DATABASE_EXISTS = "SELECT EXISTS (SELECT FROM pg_database WHERE datname::text = $1)"

LOCKS = """
SELECT a.pid, pg_blocking_pids(a.pid) AS blockers, clock_timestamp() - coalesce(l.waitstart, a.query_start) AS waited, l.locktype, l.mode,
       CASE WHEN l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
            THEN l.relation::regclass::text END AS relation,
       a.usename::text AS "user", a.datname::text AS database, a.application_name AS application, left(a.query, 500) AS query,
       count(*) OVER ()::int AS waiting
FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid
WHERE NOT l.granted
ORDER BY waited DESC NULLS LAST, a.pid LIMIT 100
"""

STATEMENTS_SCHEMA = """
SELECT set_config('search_path', 'pg_catalog, ' || quote_ident(n.nspname), true)
FROM pg_extension AS e JOIN pg_namespace AS n ON n.oid = e.extnamespace WHERE e.extname = 'pg_stat_statements'
"""

SLOW_QUERIES = """
SELECT s.queryid::text AS id, d.datname::text AS database, s.calls, s.mean_exec_time AS mean_ms, s.total_exec_time AS total_ms,
       s.max_exec_time AS max_ms, s.rows, left(s.query, 500) AS query
FROM pg_stat_statements AS s LEFT JOIN pg_database AS d ON d.oid = s.dbid
WHERE s.calls >= $1::bigint AND ($2::text IS NULL OR d.datname::text = $2)
ORDER BY s.mean_exec_time DESC LIMIT $3::int
"""

SLOW_SINCE = "SELECT stats_reset FROM pg_stat_statements_info"

DATABASE_SIZES = """
SELECT datname::text AS name, pg_database_size(oid) AS bytes FROM pg_database WHERE NOT datistemplate ORDER BY 2 DESC
"""

TABLE_SIZES = """
SELECT n.nspname || '.' || c.relname AS name, pg_total_relation_size(c.oid) AS bytes
FROM (SELECT oid, relname, relnamespace FROM pg_class
      WHERE relkind IN ('r', 'm') AND relnamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)
      ORDER BY relpages DESC LIMIT $1::int) AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace
ORDER BY 2 DESC NULLS LAST
"""

IN_RECOVERY = "SELECT pg_is_in_recovery()"

STANDBYS = """
SELECT application_name AS name, coalesce(client_addr::text, '') AS address, coalesce(state, '') AS state, coalesce(sync_state, '') AS sync,
       replay_lag AS lag, pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn)::bigint AS bytes
FROM pg_stat_replication WHERE state IS DISTINCT FROM 'backup' ORDER BY bytes DESC NULLS FIRST
"""

STANDBY = """
SELECT coalesce((SELECT status = 'streaming' FROM pg_stat_wal_receiver), false) AS receiving,
       pg_wal_lsn_diff(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())::bigint AS bytes,
       clock_timestamp() - pg_last_xact_replay_timestamp() AS since_replay
"""

# --- actions ---------------------------------------------------------------------------------------------------------------

EXPLAIN = "EXPLAIN (VERBOSE, FORMAT JSON) "
"""Goes before the rule's own constant text; nothing is executed."""

TABLE_ID = (
    "SELECT c.oid::bigint FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = $2"
)

TRANSACTION_ID = "SELECT pg_current_xact_id_if_assigned()::text AS number, pg_postmaster_start_time()::text AS server"

TRANSACTION_STATUS = "SELECT CASE WHEN pg_postmaster_start_time()::text = $2 THEN pg_xact_status($1::text::xid8) END"
"""Null as well on a server that was started since: after a fail-over the same number may be another transaction's."""

RESTORE_POINT_RIGHTS = """
SELECT pg_is_in_recovery() AS in_recovery, current_setting('wal_level') AS wal_level, current_user::text AS role,
       has_function_privilege('pg_create_restore_point(text)', 'EXECUTE') AS allowed
"""

LOCAL_COMMIT = "SELECT set_config('synchronous_commit', 'local', true), pg_current_xact_id()::text"
"""A transaction with an id is flushed when it commits, and so is what stands before it in the log."""

CREATE_RESTORE_POINT = "SELECT pg_create_restore_point($1)::text"

FLUSHED = "SELECT pg_current_wal_flush_lsn() >= $1::text::pg_lsn"
