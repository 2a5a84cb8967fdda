"""What a run does to the rows.

`making` (how one begins), `turn` (what a step of a run writes), `undo` (undoing one by hand) and `leftovers` (what one has left behind)
are pure; `waking` asks the store which runs wait.
"""
