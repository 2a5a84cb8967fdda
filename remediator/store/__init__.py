"""Durable state. `protocol` says what a store does; `sqlite` is the default, PostgreSQL implements the same.

Nothing here decides: a store reads, hands the snapshot to a pure function, and writes what that returns, in one transaction.
"""
