-- When a run was made: the storm breaker counts the incidents that were given one lately. Runs made before this column existed don't count.

ALTER TABLE run ADD COLUMN created_at INTEGER;
CREATE INDEX run_created ON run (created_at, incident);
