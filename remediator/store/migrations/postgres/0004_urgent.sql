-- What is due goes out by rank: a page (or a storm's digest) before all else, and what nobody has tried yet before what failed.
-- The body says both; a quote inside a text is escaped, so that no key can look like a kind.

CREATE INDEX message_rank ON message (
    (CASE
        WHEN position('","kind":"page","policy":"'::bytea IN body) > 0 OR position('","kind":"digest","policy":"'::bytea IN body) > 0 THEN 0
        ELSE 2
    END + CASE WHEN position(',"attempts":0,"delivered_at":'::bytea IN body) > 0 THEN 0 ELSE 1 END),
    due_at, n
) WHERE NOT delivered AND NOT cancelled;
