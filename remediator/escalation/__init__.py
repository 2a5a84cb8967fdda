"""Telling people: what is said, to whom and when.

`levels` (who is told when), `climbing` (what becomes of a message), `words`, `digest` and `notice` are pure; `outbox` is the loop that
delivers.
"""
