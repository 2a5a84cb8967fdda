-- Rows hold their record as JSON in `body`; the other columns are there to find them. Times are microseconds since 1970, UTC.
-- `n` numbers the rows of a table in the order in which they came, for lists (newest first) and their pages.

CREATE TABLE episode (
    n INTEGER PRIMARY KEY,
    fingerprint TEXT NOT NULL,
    number INTEGER NOT NULL,
    closed_at INTEGER,
    body BLOB NOT NULL,
    UNIQUE (fingerprint, number)
);
CREATE INDEX episode_open ON episode (closed_at) WHERE closed_at IS NULL;

CREATE TABLE incident (
    n INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    day TEXT,                    -- YYYYMMDD out of the id, with the number that follows it
    number INTEGER,
    rule TEXT NOT NULL,
    target TEXT NOT NULL,
    state TEXT NOT NULL,
    body BLOB NOT NULL
);
CREATE INDEX incident_number ON incident (day, number);
CREATE INDEX incident_subject ON incident (rule, target, n);
CREATE INDEX incident_rule ON incident (rule, n);
CREATE INDEX incident_state ON incident (state, n);

CREATE TABLE run (
    n INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    incident TEXT NOT NULL,
    chain INTEGER NOT NULL,
    rule TEXT NOT NULL,
    target TEXT NOT NULL,
    state TEXT NOT NULL,
    ended_at INTEGER,
    wrote INTEGER NOT NULL,      -- it, or an earlier run of its chain, may have changed something
    wake_at INTEGER,             -- what counts; the body's may be older
    fence INTEGER NOT NULL,      -- what counts; the body's may be older
    leased INTEGER NOT NULL,     -- a worker of this process has it; who and how long is in memory, so a restart voids it
    woken INTEGER NOT NULL,      -- something woke it while it was leased: it is due again as soon as it is released
    body BLOB NOT NULL
);
CREATE INDEX run_incident ON run (incident, n);
CREATE INDEX run_rule ON run (rule, n);
CREATE INDEX run_state ON run (state, n);
CREATE INDEX run_due ON run (wake_at) WHERE leased = 0 AND ended_at IS NULL AND wake_at IS NOT NULL;
CREATE INDEX run_leased ON run (id) WHERE leased = 1;
CREATE INDEX run_acting ON run (state) WHERE state IN ('applying', 'verifying', 'undoing', 'outcome_unknown');
CREATE INDEX run_written ON run (rule, target, ended_at) WHERE wrote = 1 AND ended_at IS NOT NULL;

CREATE TABLE signal (
    n INTEGER PRIMARY KEY,
    run TEXT NOT NULL,
    body BLOB NOT NULL
);
CREATE INDEX signal_run ON signal (run, n);

CREATE TABLE approval (
    n INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL,
    body BLOB NOT NULL
);
CREATE INDEX approval_state ON approval (state, n);

CREATE TABLE lock (
    key TEXT PRIMARY KEY,
    run TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX lock_run ON lock (run);

CREATE TABLE use (
    run TEXT PRIMARY KEY,
    rule TEXT NOT NULL,
    target TEXT NOT NULL,
    at INTEGER NOT NULL,
    returned INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX use_rule ON use (rule, at) WHERE returned = 0;
CREATE INDEX use_target ON use (target, at) WHERE returned = 0;

CREATE TABLE message (
    n INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    due_at INTEGER NOT NULL,
    pending INTEGER NOT NULL,    -- neither delivered nor cancelled
    body BLOB NOT NULL
);
CREATE INDEX message_due ON message (due_at, n) WHERE pending = 1;

CREATE TABLE pause (
    scope TEXT PRIMARY KEY,
    body BLOB NOT NULL
) WITHOUT ROWID;

CREATE TABLE rule_text (
    hash TEXT PRIMARY KEY,
    body TEXT NOT NULL
) WITHOUT ROWID;

-- The audit trail. `body` is exactly what `hash` covers (see remediator/audit.py); nothing updates or deletes these rows.
CREATE TABLE event (
    chain TEXT NOT NULL,
    seq INTEGER NOT NULL,
    hash TEXT NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (chain, seq)
) WITHOUT ROWID;

CREATE TRIGGER event_is_final BEFORE UPDATE ON event BEGIN SELECT RAISE(ABORT, 'events are never changed'); END;
CREATE TRIGGER event_is_kept BEFORE DELETE ON event BEGIN SELECT RAISE(ABORT, 'events are never deleted'); END;

CREATE TABLE chain (
    name TEXT PRIMARY KEY,
    count INTEGER NOT NULL,
    head TEXT NOT NULL,
    changed INTEGER NOT NULL     -- since the last checkpoint
) WITHOUT ROWID;
CREATE INDEX chain_changed ON chain (name) WHERE changed = 1;
