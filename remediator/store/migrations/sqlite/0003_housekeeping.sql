-- What leaves the store: whole chains of ended incidents, and the oldest part of the system chain, each first written to an archive.

-- One batch is one archive. `filling`: chains are still being chosen; `sealed`: its content is fixed; `recorded`: the archive is safe and
-- the system chain says so, rows may go; `purged`: they are gone. The system chain goes from after_count (not included) up to `count`.
CREATE TABLE archive (
    n INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL,
    state TEXT NOT NULL,
    after_count INTEGER,
    after_hash TEXT,
    count INTEGER,
    hash TEXT,
    recorded_at INTEGER
);
CREATE INDEX archive_unfinished ON archive (n) WHERE state <> 'purged';

-- The batch that a chain is in; nothing is appended to it any more. 0: none.
ALTER TABLE chain ADD COLUMN archiving INTEGER NOT NULL DEFAULT 0;
CREATE INDEX chain_archiving ON chain (archiving, name) WHERE archiving <> 0;

-- Up to where events may be deleted: the system chain says that they were archived.
CREATE TABLE archived (
    chain TEXT PRIMARY KEY,
    count INTEGER NOT NULL
) WITHOUT ROWID;

DROP TRIGGER event_is_kept;
CREATE TRIGGER event_is_kept BEFORE DELETE ON event
WHEN NOT EXISTS (SELECT 1 FROM archived WHERE archived.chain = OLD.chain AND archived.count >= OLD.seq)
BEGIN SELECT RAISE(ABORT, 'events are never deleted before they were archived'); END;

-- The highest number of the incidents of a day that are gone: no number is given twice, whatever the clock does.
CREATE TABLE incident_day (
    day TEXT PRIMARY KEY,
    number INTEGER NOT NULL
) WITHOUT ROWID;

CREATE INDEX episode_closed ON episode (closed_at) WHERE closed_at IS NOT NULL;
CREATE INDEX message_done ON message (due_at) WHERE pending = 0;
CREATE INDEX use_at ON use (at);
