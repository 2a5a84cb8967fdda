"""From a webhook to a durable record.

`intake` is pure and says what alerts change; `receiving` takes bodies, groups them and talks to the store.
"""
