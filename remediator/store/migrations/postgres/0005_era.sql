-- Which life of this store it is: random, made when the store was, and made anew when somebody says that it was restored. Runs and
-- incidents bear the era that they were made in, since a restored store gives their names again.

CREATE TABLE era (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    id text COLLATE "C" NOT NULL,
    set_back bigint NOT NULL DEFAULT 0   -- by how much the clock was set back in all, where what waits was moved with it; microseconds
);
