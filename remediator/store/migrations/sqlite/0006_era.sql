-- Which life of this store it is: random, made when the store was, and made anew when somebody says that it was restored. Runs and
-- incidents bear the era that they were made in, since a restored store gives their names again.

CREATE TABLE era (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    id TEXT NOT NULL,
    set_back INTEGER NOT NULL DEFAULT 0     -- by how much the clock was set back in all, where what waits was moved with it; microseconds
) WITHOUT ROWID;
