"""The session actions without their lower bound of ten seconds, for which a test would have to wait."""

from __future__ import annotations

from datetime import timedelta

from pydantic import Field

from actions.postgres.sessions import CancelQueries, QueriesParams, TerminateIdle, TerminateIdleParams, TerminateQueries
from remediator.duration import Duration


class ImpatientIdleParams(TerminateIdleParams):
    """Take any span."""

    idle_for: Duration = Field(timedelta(milliseconds=100))


class ImpatientQueriesParams(QueriesParams):
    """Take any span."""

    longer_than: Duration = Field(timedelta(milliseconds=100))


class ImpatientTerminateIdle(TerminateIdle):
    """End sessions idle for a moment."""

    Params = ImpatientIdleParams


class ImpatientCancelQueries(CancelQueries):
    """Cancel statements that have run for a moment."""

    Params = ImpatientQueriesParams


class ImpatientTerminateQueries(TerminateQueries):
    """End sessions whose statement has run for a moment."""

    Params = ImpatientQueriesParams
