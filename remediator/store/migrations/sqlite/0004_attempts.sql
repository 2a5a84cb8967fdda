-- What came of each run that has ended. It stays longer than its run.

CREATE TABLE attempt (
    run TEXT PRIMARY KEY,        -- INCIDENT-NUMBER: the attempts of an incident stand together
    rule TEXT NOT NULL,
    tried INTEGER NOT NULL,      -- at least one call was made
    ended_at INTEGER NOT NULL,
    recovered_at INTEGER,        -- what counts; the body's may be older
    relapsed_at INTEGER,         -- what counts; the body's may be older
    body BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX attempt_rule ON attempt (rule, tried, ended_at);
CREATE INDEX attempt_ended ON attempt (ended_at);
