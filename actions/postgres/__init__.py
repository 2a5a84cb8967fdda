"""PostgreSQL 14 and newer: sessions, statements, locks, sizes, replication, and one's own SQL."""

from __future__ import annotations

from actions.postgres.activity import Connections, Locks, LongRunning, Ping
from actions.postgres.connection import PostgresConnection
from actions.postgres.execute import Execute
from actions.postgres.query import Query
from actions.postgres.restore_point import CreateRestorePoint
from actions.postgres.sessions import CancelQueries, TerminateIdle, TerminatePid, TerminateQueries
from actions.postgres.statistics import ReplicationLag, Sizes, SlowQueries
from remediator.action import Provider

PROVIDER = Provider(
    system="postgres",
    actions=(TerminateIdle, CancelQueries, TerminateQueries, TerminatePid, Execute, CreateRestorePoint),
    checks=(Ping, Connections, LongRunning, Locks, SlowQueries, Sizes, ReplicationLag, Query),
    connections={"postgres": PostgresConnection},
)

__all__ = ["PROVIDER", "PostgresConnection"]
