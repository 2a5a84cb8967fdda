"""Failure domains: zones, regions, clusters of which one at a time is acted in. Pure.

While a run acts in a domain it holds the lock `domain:GROUP/DOMAIN/RUN`. These never collide: whoever is about to act reads all below
`domain:GROUP/` inside the transaction that takes its own, and so sees everybody who acts in that group.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from remediator.model import Plan

LOCK = "domain:"
"""Beginning of the keys of these locks."""


@dataclass(frozen=True, order=True)
class Domain:
    """One failure domain, in the group of which one at a time is acted in."""

    group: str
    name: str

    @property
    def prefix(self) -> str:
        """Beginning of the locks of the whole group."""
        return f"{LOCK}{self.group}/"

    def lock(self, run: str) -> str:
        """Return the lock that a run holds while it acts here.

        >>> Domain("eu", "eu-west-1a").lock("INC-20261121-001-1")
        'domain:eu/eu-west-1a/INC-20261121-001-1'
        """
        return f"{self.prefix}{self.name}/{run}"


def domains_of(plan: Plan, *, domain: str = "", group: str = "") -> tuple[Domain, ...]:
    """Return the domains that a plan touches; `domain` and `group` are those of its connection.

    A target's own domain counts more than its connection's. Without a group the connection is one: its zones are its domains. What has
    no domain (a Deployment, say, whose Pods are spread over zones) is in none.
    """
    if plan.noop:
        return ()
    found = {(group or target.id.partition("/")[0], target.domain or domain) for target in plan.targets}
    return tuple(sorted(Domain(group, name.replace("/", "_")) for group, name in found if name))


def held(locks: Mapping[str, str], group: str) -> Sequence[tuple[str, str]]:
    """Return who acts where in a group: (domain, run), in the order of their names."""
    prefix = f"{LOCK}{group}/"
    return sorted((key.removeprefix(prefix).rpartition("/")[0], run) for key, run in locks.items() if key.startswith(prefix))


def prefixes(domains: Iterable[Domain]) -> tuple[str, ...]:
    """Return the beginnings of all locks that whoever acts in `domains` must have seen."""
    return tuple(sorted({domain.prefix for domain in domains}))
