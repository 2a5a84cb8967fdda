"""`redis.delete_keys`: delete the keys that match a pattern, as listed when the plan was made."""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from pydantic import Field, StrictInt, StrictStr, model_validator

from actions.redis.change import RedisAction, applied, not_applied, unknown
from actions.redis.check import CLUSTER_READ, SENTINEL_READ, OnConnection, grant
from actions.redis.connection import RedisConnection
from actions.redis.keys import fill, is_exact, key_bytes, key_text, prefix
from actions.redis.replies import text
from actions.redis.session import SESSION, Session
from actions.redis.topology import SLOTS, open_servers, read_server, target, writable
from actions.redis.trace import marked, new_mark, pending, script_ran, scripts_forgotten
from remediator.action import Code, Context, Permission, Reconciled
from remediator.errors import PermanentError, PlanRefused, PreconditionChanged, TemporaryError
from remediator.halting import go_on
from remediator.model import JSON, Change, Health, Impact, Plan, Receipt, Risk, Verdict

_SCRIPT = """
local function call(name, ...)
  local answer = redis.pcall(name, ...)
  if type(answer) == 'table' and answer.err then error({err = 'ERR [' .. string.lower(name) .. '] ' .. answer.err}) end
  return answer
end
local wanted, gone = {}, {}
for i, key in ipairs(KEYS) do
  if call('TYPE', key).ok == ARGV[i] then wanted[#wanted + 1] = i end
end
for _, i in ipairs(wanted) do
  call('UNLINK', KEYS[i])
  gone[#gone + 1] = i
end
return gone
"""
_FRESH = 0.1
"""Seconds for which an answer holds whether the call may go on: a cluster's keys go slot by slot, and there may be thousands."""
_FEW = 20
"""Keys named in messages."""


class DeleteKeysParams(OnConnection):
    """Which keys, and how many at most."""

    pattern: Code = Field(
        min_length=1,
        max_length=1024,
        description="a key, or a glob of SCAN MATCH that starts with literal text; `{name}` stands for an argument",
    )
    args: Mapping[str, StrictStr | StrictInt] = Field(
        default_factory=dict, description="values for the pattern; wildcards in them mean themselves"
    )
    max_keys: int = Field(1000, ge=1, le=10_000, description="more matches than this refuse the plan")

    @model_validator(mode="after")
    def _every_argument_is_used(self) -> Self:
        unused = [name for name in self.args if "{" + name + "}" not in self.pattern]
        if unused:
            raise ValueError(f"the pattern has no place for {', '.join(unused)}; write it as {{{unused[0]}}}")
        return self


class DeleteKeys(RedisAction[DeleteKeysParams]):
    """Deletes (UNLINK) keys by pattern: SCAN lists them when planned, and only those that still have the same type are deleted.

    No match and more than `max_keys` are refused; a pattern that starts with a wildcard is, too. Keys that appear later are never
    deleted. It can't be undone; give the remedy an `approval` where the data can't be made again.
    """

    name = "redis.delete_keys"
    Params: ClassVar[type[Any]] = DeleteKeysParams
    risk: ClassVar[Risk] = Risk.MEDIUM
    permissions: ClassVar[tuple[Permission, ...]] = (
        SESSION,
        grant("+info", "+dbsize", "+scan", "+script|exists", "+client|list"),
        grant("+type", "+eval", "+unlink", keys="*", why="narrow the pattern to what may be deleted"),
        SENTINEL_READ,
        CLUSTER_READ,
    )
    example: ClassVar[Mapping[str, Any]] = {"connection": "cache", "pattern": "tts:{voice}:*", "args": {"voice": "en-1"}, "max_keys": 500}

    async def plan(self, params: DeleteKeysParams, ctx: Context) -> Plan:
        """List the keys and their types on the primaries."""
        pattern = fill(params.pattern, params.args)
        if not prefix(pattern):
            raise PlanRefused(f"the pattern {key_text(pattern.encode())!r} starts with a wildcard and would take any key; give it a prefix")
        settings = ctx.connection(RedisConnection, params.connection)
        found: dict[str, dict[bytes, str]] = {}
        run_ids: dict[str, JSON] = {}
        total = 0
        async with open_servers(ctx, params.connection) as sessions:
            for session in sessions:
                run_ids[str(session.address)] = writable(session, await read_server(session)).run_id
                room = params.max_keys - sum(map(len, found.values()))
                found[str(session.address)] = await _list(session, pattern, most=room, ceiling=params.max_keys, alone=not settings.cluster)
                total += int(await session.ask("DBSIZE"))
        if not any(found.values()):
            raise PlanRefused(f"no key of Redis {params.connection!r} matches {key_text(pattern.encode())!r}")
        return _plan(params, found, pattern=pattern, db=settings.db, run_ids=run_ids, total=total)

    async def apply(self, plan: Plan, ctx: Context) -> Receipt:
        """Delete, in one script a server (a slot, in a cluster), the listed keys that still have their type.

        After the first deletion of a cluster, what other keys were left for is in the receipt.
        """
        mark = str(plan.precondition["mark"])
        script = marked(_SCRIPT, mark)
        deleted: list[str] = []
        failed: list[str] = []
        async with open_servers(ctx, plan.connection, mark=mark) as sessions:
            await _compare(sessions, plan, script)
            parts = _parts(sessions, plan, by_slot=ctx.connection(RedisConnection, plan.connection).cluster)
            asking = _Asking(ctx)
            for number, (session, part) in enumerate(parts):
                try:
                    await asking.go_on()
                except TemporaryError as stop:
                    if not deleted:
                        raise
                    failed.append(f"{sum(len(rest) for _, rest in parts[number:])} keys: {stop}")
                    break
                try:
                    deleted += await _delete(session, part, script)
                except (PreconditionChanged, TemporaryError, PermanentError) as error:
                    if not deleted:
                        raise
                    failed.append(f"{len(part)} keys on {session.address}: {error}")
        return _receipt(plan, deleted=deleted, failed=failed)

    async def observe(self, plan: Plan, receipt: Receipt, ctx: Context) -> Verdict:
        """Healthy when no part failed. A key that was deleted and is in use again is said, not judged: producers go on."""
        if receipt.data["failed"]:
            return Verdict(Health.UNHEALTHY, f"not deleted: {'; '.join(receipt.data['failed'])}")
        async with open_servers(ctx, plan.connection) as sessions:
            back = len(await _still_there(sessions, plan)) if receipt.touched else 0
        return Verdict(
            Health.HEALTHY, f"{len(receipt.touched)} of {len(plan.targets)} keys were deleted; {back} of the listed ones exist now"
        )

    async def find_out(self, plan: Plan, ctx: Context) -> Reconciled:
        """Tell by the script's digest on the servers, and by which keys are there."""
        mark = str(plan.precondition["mark"])
        script = marked(_SCRIPT, mark)
        async with open_servers(ctx, plan.connection) as sessions:
            for session in sessions:
                if await pending(session, ctx, mark):
                    return unknown(f"{session.where}: the connection of this step is still open there")
                server = await read_server(session)
                if server.run_id != plan.precondition["run_ids"].get(str(session.address)):
                    return unknown(f"{session.where} was restarted or replaced since the plan was made")
                if scripts_forgotten(server.info):
                    return unknown(f"{session.where} has dropped scripts, so nothing shows whether this step's was run")
            ran = [await script_ran(session, script) for session in sessions]
            there = await _still_there(sessions, plan)
        gone = [key for keys in plan.intent["keys"].values() for key, _ in keys if key not in there]
        if any(ran) and gone:
            return applied(f"the script ran; {len(gone)} of the listed keys are gone", _receipt(plan, deleted=gone, failed=[]))
        if not any(ran) and not gone:
            return not_applied("the script did not run, and all listed keys are there")
        return unknown("the script ran, but all listed keys are there" if any(ran) else "the script did not run, but listed keys are gone")


async def _list(session: Session, pattern: str, *, most: int, ceiling: int, alone: bool) -> dict[bytes, str]:
    """Return matching keys and their types. Raises `PlanRefused` above `most`, as soon as it is passed."""
    if alone and is_exact(pattern):
        keys = {prefix(pattern).encode("utf-8", "surrogatepass")}
    else:
        keys = await _scan(session, pattern, most=most, ceiling=ceiling)
    listed = sorted(keys)
    types = await session.ask_many([("TYPE", key) for key in listed])
    return {key: text(kind) for key, kind in zip(listed, types, strict=True) if text(kind) != "none"}


async def _scan(session: Session, pattern: str, *, most: int, ceiling: int) -> set[bytes]:
    keys: set[bytes] = set()
    cursor: bytes = b"0"
    while True:
        cursor, page = await session.ask("SCAN", cursor, "MATCH", pattern.encode("utf-8", "surrogatepass"), "COUNT", 1000)
        keys.update(page)
        if len(keys) > most:
            raise PlanRefused(
                f"more than {ceiling} keys match {key_text(pattern.encode('utf-8', 'surrogatepass'))!r}; raise max_keys or narrow it"
            )
        if cursor == b"0":
            return keys


def _plan(
    params: DeleteKeysParams, found: Mapping[str, Mapping[bytes, str]], *, pattern: str, db: int, run_ids: Mapping[str, JSON], total: int
) -> Plan:
    listed = {address: [[key_text(key), kind] for key, kind in keys.items()] for address, keys in found.items() if keys}
    flat = [(key, kind) for keys in listed.values() for key, kind in keys]
    targets = {key: target(params.connection, "key", key, db=db, scope={"db": str(db), "key": key}) for key, _ in flat}
    shown = ", ".join(key for key, _ in flat[:_FEW]) + (f" and {len(flat) - _FEW} more" if len(flat) > _FEW else "")
    return Plan(
        action="redis.delete_keys",
        summary=f"delete {len(flat)} of {total} keys of Redis {params.connection!r}, database {db}: {shown}",
        targets=tuple(targets.values()),
        intent={"pattern": key_text(pattern.encode("utf-8", "surrogatepass")), "database": db, "keys": listed, "ceiling": params.max_keys},
        precondition={"run_ids": dict(run_ids), "mark": new_mark()},
        changes=tuple(Change(targets[key].id, "key", kind, "deleted") for key, kind in flat),
        impact=Impact(touched=len(flat), total=max(total, len(flat))),
        connection=params.connection,
        warnings=("this can't be undone",),
    )


async def _compare(sessions: Sequence[Session], plan: Plan, script: str) -> None:
    """Hold the servers against the plan. Raises `PreconditionChanged`, also when this very step has run already."""
    if {str(session.address) for session in sessions} != set(plan.precondition["run_ids"]):
        raise PreconditionChanged(f"the primaries of {plan.connection!r} are not those that were planned")
    for session in sessions:
        server = await read_server(session)
        if server.run_id != plan.precondition["run_ids"][str(session.address)] or not server.primary:
            raise PreconditionChanged(f"{session.where} was restarted, replaced or demoted since the plan was made")
        if await script_ran(session, script):
            raise PreconditionChanged(f"{session.where} has run this very step already")


@dataclass
class _Asking:
    """Whether the call may go on, asked no more often than an answer gets old."""

    ctx: Context
    asked_at: float = -math.inf

    async def go_on(self) -> None:
        now = asyncio.get_running_loop().time()
        if now - self.asked_at >= _FRESH:
            self.asked_at = now
            await go_on(self.ctx)


Listed = list[tuple[str, str]]
"""Keys as text, with their types."""


def _parts(sessions: Sequence[Session], plan: Plan, *, by_slot: bool) -> list[tuple[Session, Listed]]:
    """Divide the listed keys into what one script may touch: a server's keys, in a cluster those of one slot."""
    from redis.crc import key_slot

    parts: dict[tuple[str, int], Listed] = defaultdict(list)
    for address, keys in plan.intent["keys"].items():
        for key, kind in keys:
            parts[address, key_slot(key_bytes(key), SLOTS) if by_slot else 0].append((key, kind))
    at = {str(session.address): session for session in sessions}
    return [(at[address], part) for (address, _), part in parts.items()]


async def _delete(session: Session, part: Listed, script: str) -> list[str]:
    """Run the script and return the keys that it deleted."""
    keys = [key_bytes(key) for key, _ in part]
    gone = await session.tell("EVAL", script, len(keys), *keys, *(kind for _, kind in part))
    return [part[int(index) - 1][0] for index in gone]


async def _still_there(sessions: Sequence[Session], plan: Plan) -> set[str]:
    """Return the listed keys that exist with the listed type."""
    there: set[str] = set()
    for session in sessions:
        keys = plan.intent["keys"].get(str(session.address), [])
        types = await session.ask_many([("TYPE", key_bytes(key)) for key, _ in keys])
        there |= {key for (key, kind), now in zip(keys, types, strict=True) if text(now) == kind}
    return there


def _receipt(plan: Plan, *, deleted: Sequence[str], failed: Sequence[str]) -> Receipt:
    ids = {one.scope["key"]: one.id for one in plan.targets}
    message = f"{len(deleted)} of {len(plan.targets)} keys deleted" + (f"; failed: {'; '.join(failed)}" if failed else "")
    return Receipt(message, {"deleted": list(deleted), "failed": list(failed)}, tuple(ids[key] for key in deleted))
