-- What came of each run that has ended. It stays longer than its run.

CREATE TABLE attempt (
    run text COLLATE "C" PRIMARY KEY,    -- INCIDENT-NUMBER: the attempts of an incident stand together
    rule text COLLATE "C" NOT NULL,
    tried boolean NOT NULL,              -- at least one call was made
    ended_at bigint NOT NULL,
    recovered_at bigint,                 -- what counts; the body's may be older
    relapsed_at bigint,                  -- what counts; the body's may be older
    body bytea NOT NULL
);
CREATE INDEX attempt_rule ON attempt (rule, tried, ended_at);
CREATE INDEX attempt_ended ON attempt (ended_at);
