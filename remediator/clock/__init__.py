"""A clock that is set: noticed, said, and nobody waits longer for it.

`stepping` (pure) moves what waits by as much as the store's clock was set back; `keeper` notices, by a clock that nobody sets.
"""
