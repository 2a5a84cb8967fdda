-- The ids of all that the plans of an ended run named, each as it stands in the body, one after the other: a long body is long to search.
-- NULL where it is not ended, changed nothing, or ended before there was this column; then its body is searched.

ALTER TABLE run ADD COLUMN touches BLOB;
