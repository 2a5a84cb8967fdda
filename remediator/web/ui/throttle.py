"""Slow down those who guess: so many wrong tokens from one address, then none is taken for a while. Pure."""

from __future__ import annotations

from collections import OrderedDict
from datetime import datetime, timedelta

MOST = 10
"""Failed sign-ins of one address within `WITHIN`."""
WITHIN = timedelta(minutes=1)
ADDRESSES = 10_000
"""So many addresses are remembered; the ones that failed longest ago are forgotten first."""


class Throttle:
    """Counts failures by address."""

    def __init__(self, most: int = MOST, within: timedelta = WITHIN, *, addresses: int = ADDRESSES) -> None:
        self._most = most
        self._within = within
        self._addresses = addresses
        self._failures: OrderedDict[str, list[datetime]] = OrderedDict()

    def wait(self, address: str, *, now: datetime) -> timedelta:
        """Return how long an address has to wait before it may try again; zero: it may now."""
        lately = self._lately(address, now)
        return timedelta() if len(lately) < self._most else lately[-self._most] + self._within - now

    def failed(self, address: str, *, now: datetime) -> None:
        """Count a failure."""
        self._failures[address] = [*self._lately(address, now), now][-self._most :]
        self._failures.move_to_end(address)
        while len(self._failures) > self._addresses:
            self._failures.popitem(last=False)

    def _lately(self, address: str, now: datetime) -> list[datetime]:
        return [at for at in self._failures.get(address, []) if now - at < self._within]
