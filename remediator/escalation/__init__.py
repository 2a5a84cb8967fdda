"""Telling people: what is said, to whom and when.

`levels` (who is told when), `pages` (what the messages about an incident are), `climbing` (what becomes of one that is due), `told` (what
those hear further who were told), `words`, `digest` and `notice` are pure; `outbox` is the loop that delivers.
"""
