"""Read Redis' replies: INFO, CLUSTER NODES, flat lists of pairs. Pure; raises `PermanentError` for what it can't understand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actions.redis.session import Address
from remediator.errors import PermanentError


def text(value: Any) -> str:
    """Turn a reply's bytes or number into text; what is not UTF-8 is replaced."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def parse_info(reply: Any) -> dict[str, str]:
    r"""Read INFO into field → value, all sections together.

    >>> parse_info(b"# Memory\r\nused_memory:10\r\n")
    {'used_memory': '10'}
    """
    lines = (line for line in text(reply).splitlines() if line and not line.startswith("#"))
    return dict(line.partition(":")[::2] for line in lines)


def parse_fields(value: str) -> dict[str, str]:
    """Read the value of one INFO field that holds more: `ip=127.0.0.1,port=6380,state=online`.

    >>> parse_fields("calls=1,usec=30")
    {'calls': '1', 'usec': '30'}
    """
    return dict(part.partition("=")[::2] for part in value.split(","))


def parse_pairs(reply: Any) -> dict[str, str]:
    """Read a flat list of names and values, as CONFIG GET and SENTINEL give it."""
    if not isinstance(reply, list) or len(reply) % 2:
        raise PermanentError(f"expected a list of names and values, got {type(reply).__name__}")
    return {text(name): text(value) for name, value in zip(reply[::2], reply[1::2], strict=True)}


def number(info: Mapping[str, str], field: str) -> int:
    """Return a field as int. Raises `PermanentError` when it is missing or something else."""
    try:
        return int(info[field])
    except (KeyError, ValueError):
        raise PermanentError(f"the server's INFO has no whole number {field!r} (found {info.get(field)!r})") from None


def require(info: Mapping[str, str], field: str) -> str:
    """Return a field. Raises `PermanentError` when it is missing."""
    if field not in info:
        raise PermanentError(f"the server's INFO has no {field!r}")
    return info[field]


def calls(info: Mapping[str, str], command: str) -> int:
    """Return how often the server has run a command since it started, from INFO commandstats."""
    found = info.get(f"cmdstat_{command}")
    return int(parse_fields(found)["calls"]) if found is not None else 0


@dataclass(frozen=True)
class Replica:
    """A replica as its primary sees it. `lag` counts seconds since its last word, `behind` bytes of the stream."""

    address: Address
    online: bool
    lag: int
    behind: int

    @property
    def healthy(self) -> bool:
        """True when it is online and has not been silent for longer than Redis' own default of min-replicas-max-lag."""
        return self.online and self.lag <= 10


def parse_replicas(info: Mapping[str, str]) -> tuple[Replica, ...]:
    """Read the `slaveN` fields of a primary's INFO replication."""
    written = number(info, "master_repl_offset")
    rows = (parse_fields(value) for name, value in info.items() if name.startswith("slave") and name[5:].isdigit())
    return tuple(
        Replica(Address(row["ip"], int(row["port"])), row["state"] == "online", int(row["lag"]), max(0, written - int(row["offset"])))
        for row in rows
    )


def was_synced(info: Mapping[str, str]) -> bool:
    """Tell whether a replica has held a whole copy of its primary's data since it started, and is not loading another now.

    A link that is down and never was up counts -1 seconds.
    """
    if info.get("master_sync_in_progress") != "0":
        return False
    return info.get("master_link_status") == "up" or number(info, "master_link_down_since_seconds") >= 0


@dataclass(frozen=True)
class ClusterNode:
    """One line of CLUSTER NODES, as the asked node sees it."""

    id: str
    address: Address
    flags: frozenset[str]
    primary: str
    """Id of the primary that it replicates; empty for a primary."""
    epoch: int
    linked: bool
    slots: tuple[str, ...]

    @property
    def leads(self) -> bool:
        """True for a primary that serves slots."""
        return "master" in self.flags and bool(self.slots)

    @property
    def failed(self) -> bool:
        """True once the majority says so; a mere suspicion (`fail?`) is not enough."""
        return "fail" in self.flags

    @property
    def well(self) -> bool:
        """True when nobody doubts it."""
        return not self.flags & {"fail", "fail?", "noaddr", "handshake"} and (self.linked or "myself" in self.flags)


def parse_nodes(reply: Any, *, asked: Address) -> tuple[ClusterNode, ...]:
    """Read CLUSTER NODES. A node that does not know its own address yet gets the one it was asked at."""
    return tuple(_node(line.split(), asked) for line in text(reply).splitlines() if line)


def _node(words: Sequence[str], asked: Address) -> ClusterNode:
    try:
        identity, place, flags, primary, _, _, epoch, link = words[:8]
        address = Address.parse(place.partition(",")[0].partition("@")[0])
    except ValueError:
        raise PermanentError(f"a line of CLUSTER NODES can't be read: {' '.join(words)[:200]!r}") from None
    if not address.host:
        address = Address(asked.host, address.port)
    slots = tuple(word for word in words[8:] if not word.startswith("["))
    return ClusterNode(
        identity, address, frozenset(flags.split(",")), "" if primary == "-" else primary, int(epoch), link == "connected", slots
    )


@dataclass(frozen=True)
class SentinelView:
    """The primary as one sentinel sees it."""

    sentinel: Address
    address: Address
    run_id: str
    epoch: int
    flags: frozenset[str]
    healthy_replicas: tuple[Address, ...]
    replicas: int

    @property
    def down(self) -> bool:
        """True when this sentinel takes the primary for down."""
        return bool(self.flags & {"s_down", "o_down"})

    @property
    def busy(self) -> bool:
        """True while this sentinel leads a fail-over."""
        return "failover_in_progress" in self.flags


def parse_sentinel(sentinel: Address, primary: Any, replicas: Any) -> SentinelView:
    """Read SENTINEL MASTER and SENTINEL REPLICAS."""
    fields = parse_pairs(primary)
    flags = frozenset(fields["flags"].split(","))
    rows = [parse_pairs(row) for row in replicas]
    dead = bool(flags & {"s_down", "o_down"})
    healthy = tuple(sorted(Address(row["ip"], int(row["port"])) for row in rows if _promotable(row, primary_down=dead)))
    where = Address(fields["ip"], int(fields["port"]))
    return SentinelView(sentinel, where, fields["runid"], int(fields["config-epoch"]), flags, healthy, len(rows))


def _promotable(row: Mapping[str, str], *, primary_down: bool) -> bool:
    """Tell whether a sentinel could promote this replica: up, allowed to lead, and in sync while the primary lives."""
    flags = set(row["flags"].split(","))
    if flags & {"s_down", "o_down", "disconnected"} or row.get("slave-priority") == "0":
        return False
    return primary_down or row.get("master-link-status") == "ok"
