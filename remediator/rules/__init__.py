"""Rule files: parsed with places, checked against the catalogue, compiled into frozen rules, found by labels.

Only `files` reads from disk; everything else here is pure and must stay so.
"""
