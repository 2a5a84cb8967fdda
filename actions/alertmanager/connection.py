"""How Alertmanager is reached: all peers of one cluster."""

from __future__ import annotations

from datetime import timedelta
from typing import ClassVar

from pydantic import Field

from remediator.duration import Duration
from remediator.httpclient import WebConnection, WebUrl

ANSWER_WITHIN = timedelta(seconds=3)
"""The longest that a peer may take before it counts as silent (`semantics.md`, 14)."""


class AlertmanagerConnection(WebConnection):
    """An Alertmanager, or all peers of one cluster: name each, never a load balancer in front of them."""

    leads_by: ClassVar[tuple[str, ...] | None] = ()
    """Peers come and go; a silence is found by its id and its mark, wherever that is."""

    urls: tuple[WebUrl, ...] = Field(min_length=1, description="address of every peer up to, not including, /api/v2")
    timeout: Duration = Field(ANSWER_WITHIN, gt=timedelta(), le=ANSWER_WITHIN, description="longest time for one peer's answer, at most 3s")
    max_silence: Duration = Field(
        timedelta(hours=1), gt=timedelta(), description="longest time for which a silence of ours may last, whatever a rule says"
    )
