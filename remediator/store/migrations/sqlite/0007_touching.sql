-- Undoing a run asks what later runs that changed something did to the same objects: those at work (no end), and those ended since.

CREATE INDEX run_ended ON run (ended_at) WHERE wrote = 1;
