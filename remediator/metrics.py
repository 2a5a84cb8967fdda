"""Metrics for Prometheus: one class, built in one constructor, every label from a closed set and initialised."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry

from remediator.model import ChainedEvent


class Metrics:
    """All metrics of one daemon."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry

    def observe(self, events: Sequence[ChainedEvent]) -> None:
        """Count what committed events say happened."""
        raise NotImplementedError
