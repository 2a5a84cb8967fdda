"""From a webhook to a durable record.

`sorting` (whose an alert is), `intake` (what alerts change), `incidents` (what becomes of theirs) and `draft` (what is to be written) are
pure; `receiving` takes bodies, groups them and talks to the store.
"""
