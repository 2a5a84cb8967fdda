"""`redis.queue_length`: how many entries a list, stream, sorted set or set holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from actions.redis.check import CLUSTER_READ, SENTINEL_READ, OnConnection, RedisCheck, grant
from actions.redis.connection import RedisConnection
from actions.redis.replies import text
from actions.redis.session import SESSION, Session, open_session
from actions.redis.topology import SLOTS, cluster_nodes, open_server
from remediator.action import Context, Fact, FactType, Permission
from remediator.errors import PermanentError, TemporaryError
from remediator.model import Value

LENGTH = {"list": "LLEN", "stream": "XLEN", "zset": "ZCARD", "set": "SCARD"}


class QueueLengthParams(OnConnection):
    """Which key. It is data: it may come from labels, and is sent as it is."""

    key: str = Field(min_length=1, max_length=1024, description="the queue's key, e.g. transcoding:queue or bull:mail:wait")
    type: Literal["list", "stream", "zset", "set"] | None = Field(None, description="what it must be; left out: any of the four")


class QueueLength(RedisCheck[QueueLengthParams]):
    """Reads LLEN, XLEN, ZCARD or SCARD by the key's type; any other type fails the check.

    Redis removes a list with its last entry, so a missing key is an empty queue: `length` 0, `found` false. A misspelt key looks the
    same; a rule that acts on short queues should ask for `found`, or for consumers, too.
    """

    name = "redis.queue_length"
    Params: ClassVar[type[Any]] = QueueLengthParams
    facts: ClassVar[Mapping[str, Fact]] = {
        "found": Fact(FactType.BOOL, "true when the key exists, i.e. holds at least one entry (a stream may be empty)"),
        "length": Fact(FactType.INT, "entries; 0 for a missing key"),
        "type": Fact(FactType.STRING, "list, stream, zset, set, or none"),
    }
    permissions: ClassVar[tuple[Permission, ...]] = (
        SESSION,
        grant("+type", "+llen", "+xlen", "+zcard", "+scard", keys="*"),
        SENTINEL_READ,
        CLUSTER_READ,
    )
    example: ClassVar[Mapping[str, Any]] = {"connection": "cache", "key": "transcoding:queue"}

    async def look(self, params: QueueLengthParams, ctx: Context) -> Mapping[str, Value]:
        """Read the key's type, then its length."""
        key = params.key.encode("utf-8", "surrogatepass")
        if not ctx.connection(RedisConnection, params.connection).cluster:
            async with open_server(ctx, params.connection) as session:
                return await _measure(session, key, params.type)
        address = await _owner(ctx, params.connection, key)
        async with open_session(ctx, params.connection, address=address) as session:
            return await _measure(session, key, params.type)


async def _measure(session: Session, key: bytes, wanted: str | None) -> dict[str, Value]:
    found = text(await session.ask("TYPE", key))
    if found == "none":
        return {"found": False, "length": 0, "type": found}
    if found not in LENGTH or (wanted is not None and found != wanted):
        raise PermanentError(f"the key holds a {found}, not a {wanted or 'list, stream, zset or set'}; check the name of the queue")
    return {"found": True, "length": int(await session.ask(LENGTH[found], key)), "type": found}


async def _owner(ctx: Context, connection: str, key: bytes) -> Any:
    """Return the address of the primary that serves the key's slot."""
    from redis.crc import key_slot

    slot = key_slot(key, SLOTS)
    for node in await cluster_nodes(ctx, connection):
        for part in node.slots if node.leads else ():
            low, _, high = part.partition("-")
            if int(low) <= slot <= int(high or low):
                return node.address
    raise TemporaryError(f"no primary of cluster {connection!r} serves slot {slot}")
