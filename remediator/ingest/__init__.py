"""From a webhook to a durable record.

`sorting` (whose an alert is) and `intake` (what alerts change) are pure; `receiving` takes bodies, groups them and talks to the store.
"""
