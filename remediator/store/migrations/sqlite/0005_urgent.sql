-- What is due goes out by rank: a page (or a storm's digest) before all else, and what nobody has tried yet before what failed.
-- The body says both; a quote inside a text is escaped, so that no key can look like a kind.

CREATE INDEX message_rank ON message (
    (instr(body, '","kind":"page","policy":"') = 0 AND instr(body, '","kind":"digest","policy":"') = 0) * 2
        + (instr(body, ',"attempts":0,"delivered_at":') = 0),
    due_at, n
) WHERE pending = 1;
