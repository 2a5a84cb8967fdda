-- A budget counts the uses of its rule, also where it counts by target. Nothing gives a unit back: `returned` stays false.

DROP INDEX use_target;
