"""`redis.flush_db` and `redis.flush_all`: delete every key of one database, or of all.

Why they are `detectable`: DBSIZE 0 proves nothing, and a marker key would be written into the user's data. Instead the flush is sent
as one script which compares, in the same call, what the plan saw: the same server process, still primary, nobody flushed since
(FLUSHDB and FLUSHALL as the server counts them), not far more keys, no database more. A second sending finds the counter moved
and does nothing. Afterwards the counter together with the script's digest in the server's cache (`actions.redis.trace`) tells whether
this very step has flushed; where the two don't agree (CONFIG RESETSTAT, a flush by somebody else, a restart) nobody can tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from actions.redis.change import RedisAction, applied, not_applied, unknown
from actions.redis.check import CLUSTER_READ, SENTINEL_READ, OnConnection, grant
from actions.redis.connection import RedisConnection
from actions.redis.replies import calls, number, parse_fields, text
from actions.redis.session import SESSION, Session
from actions.redis.topology import Server, open_servers, read_server, target, writable
from actions.redis.trace import marked, new_mark, pending, script_ran
from remediator.action import Context, Permission, Reconciled
from remediator.errors import PermanentError, PlanRefused, PreconditionChanged, TemporaryError
from remediator.halting import go_on
from remediator.model import JSON, Change, Health, Impact, Plan, Receipt, Risk, Target, Verdict

_SCRIPT = """
local function call(name, ...)
  local answer = redis.pcall(name, ...)
  if type(answer) == 'table' and answer.err then error({err = 'ERR [' .. string.lower(name) .. '] ' .. answer.err}) end
  return answer
end
local function flushes()
  local stats, sum = call('INFO', 'commandstats'), 0
  for _, name in ipairs({'flushdb', 'flushall'}) do
    sum = sum + tonumber(string.match(stats, 'cmdstat_' .. name .. ':calls=(%d+)') or 0)
  end
  return sum
end
local command, run_id, flushed, most, allowed = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
if string.match(call('INFO', 'server'), 'run_id:(%x+)') ~= run_id then return 'the server was restarted or replaced' end
if not string.find(call('INFO', 'replication'), 'role:master') then return 'the server is a replica now' end
if flushes() ~= flushed then return 'somebody flushed a database of this server' end
local keys = call('DBSIZE')
if command == 'FLUSHALL' then
  keys = 0
  for db, count in string.gmatch(call('INFO', 'keyspace'), 'db(%d+):keys=(%d+)') do
    if not string.find(allowed, ',' .. db .. ',', 1, true) then return 'database ' .. db .. ' has keys now and was not planned' end
    keys = keys + tonumber(count)
  end
end
if keys > most then return 'there are ' .. keys .. ' keys now, far more than planned' end
call(command, 'ASYNC')
return 'done'
"""


class _Flush(RedisAction[OnConnection]):
    """What both flushes share."""

    Params: ClassVar[type[Any]] = OnConnection
    risk: ClassVar[Risk] = Risk.HIGH
    command: ClassVar[str]
    everything: ClassVar[bool]

    async def plan(self, params: OnConnection, ctx: Context) -> Plan:
        """Count the keys of what would be flushed, on the primary. Raises `PlanRefused` for a replica, no keys, or a scope of keys."""
        settings = ctx.connection(RedisConnection, params.connection)
        limits = settings.scope.get("key")
        if limits is not None and "*" not in limits:
            raise PlanRefused(
                f"connection {params.connection!r} is limited to keys {', '.join(limits)}; a flush takes all. Use redis.delete_keys"
            )
        seen: dict[str, JSON] = {}
        sizes: dict[int, int] = {}
        followers = 0
        async with open_servers(ctx, params.connection) as sessions:
            for session in sessions:
                server = writable(session, await read_server(session))
                counted = await self._sizes(session, server, settings.db)
                seen[str(session.address)] = {"run_id": server.run_id, "flushes": _flushes(server), "keys": sum(counted.values())}
                sizes = {db: sizes.get(db, 0) + counted.get(db, 0) for db in sizes | counted}
                followers += number(server.info, "connected_slaves")
        if not sum(sizes.values()):
            raise PlanRefused(
                f"Redis {params.connection!r} has no keys in {'any database' if self.everything else f'database {settings.db}'}"
            )
        return self._plan(params.connection, sizes, seen=seen, followers=followers)

    async def _sizes(self, session: Session, server: Server, db: int) -> dict[int, int]:
        """Return keys by database, for the databases that would be flushed."""
        if not self.everything:
            return {db: int(await session.ask("DBSIZE"))}
        fields = {name: value for name, value in server.info.items() if name.startswith("db") and name[2:].isdigit()}
        return {int(name[2:]): int(parse_fields(value)["keys"]) for name, value in fields.items()}

    def _plan(self, connection: str, sizes: Mapping[int, int], *, seen: Mapping[str, JSON], followers: int) -> Plan:
        """Build the plan. The sizes move all the time: they stand in the summary and the precondition, not in what is approved."""
        targets = tuple(_database(connection, db) for db in sorted(sizes))
        listed = ", ".join(f"database {db}: {count} keys" for db, count in sorted(sizes.items()))
        return Plan(
            action=self.name,
            summary=f"delete every key of Redis {connection!r}: {listed}",
            targets=targets,
            intent={"command": self.command, "databases": sorted(sizes)},
            precondition={"servers": dict(seen), "mark": new_mark()},
            changes=tuple(Change(one.id, "keys", "all that there are", 0) for one in targets),
            impact=Impact(touched=len(targets)),
            connection=connection,
            warnings=("this can't be undone", *((f"{followers} replicas delete the same keys",) if followers else ())),
        )

    async def apply(self, plan: Plan, ctx: Context) -> Receipt:
        """Send the comparing script to each server. After the first flush of a cluster, what another was left for is in the receipt."""
        script = marked(_SCRIPT, str(plan.precondition["mark"]))
        flushed: list[str] = []
        missed: list[str] = []
        async with open_servers(ctx, plan.connection, mark=str(plan.precondition["mark"])) as sessions:
            if {str(session.address) for session in sessions} != set(plan.precondition["servers"]):
                raise PreconditionChanged(f"the primaries of {plan.connection!r} are not those that were planned")
            for number, session in enumerate(sessions):
                try:
                    await go_on(ctx)
                except TemporaryError as stop:
                    if not flushed:
                        raise
                    missed += [f"{one.address}: {stop}" for one in sessions[number:]]
                    break
                try:
                    await _send(session, plan, script)
                except (PreconditionChanged, TemporaryError, PermanentError) as error:
                    if not flushed:
                        raise
                    missed.append(f"{session.address}: {error}")
                else:
                    flushed.append(str(session.address))
        return _receipt(plan, flushed=flushed, missed=missed)

    async def observe(self, plan: Plan, receipt: Receipt, ctx: Context) -> Verdict:
        """Healthy when every server counts one flush more, in the same process. How many keys came back is said, not judged."""
        if receipt.data["missed"]:
            return Verdict(Health.UNHEALTHY, f"not flushed: {'; '.join(receipt.data['missed'])}")
        keys = 0
        async with open_servers(ctx, plan.connection) as sessions:
            for session in sessions:
                server = await read_server(session)
                seen = plan.precondition["servers"].get(str(session.address))
                if seen is None or seen["run_id"] != server.run_id:
                    return Verdict(
                        Health.UNKNOWN, f"{session.where} was restarted or replaced; an old snapshot may have brought the keys back"
                    )
                if _flushes(server) <= seen["flushes"]:
                    return Verdict(Health.UNHEALTHY, f"{session.where} counts no flush since the plan was made")
                keys += int(await session.ask("DBSIZE"))
        return Verdict(Health.HEALTHY, f"flushed; there are {keys} keys now")

    async def find_out(self, plan: Plan, ctx: Context) -> Reconciled:
        """Tell by the counters and the script's digest on every server."""
        script = marked(_SCRIPT, str(plan.precondition["mark"]))
        ran: list[str] = []
        untouched: list[str] = []
        async with open_servers(ctx, plan.connection) as sessions:
            if {str(session.address) for session in sessions} != set(plan.precondition["servers"]):
                return unknown(f"the primaries of {plan.connection!r} are not those that were planned")
            for session in sessions:
                if await pending(session, ctx, str(plan.precondition["mark"])):
                    return unknown(f"{session.where}: the connection of this step is still open there")
                done = await _was_flushed(session, plan, script)
                if done is None:
                    return unknown(f"{session.where} was restarted, flushed by somebody else, or its statistics were reset")
                (ran if done else untouched).append(str(session.address))
        if not ran:
            return not_applied("no server counts a flush since the plan was made")
        return applied("the servers count the flush and have run its script", _receipt(plan, flushed=ran, missed=untouched))


class FlushDb(_Flush):
    """Deletes every key of the connection's database (FLUSHDB ASYNC), in a cluster on all primaries.

    Never on a replica, and never where the connection's scope names keys. It can't be undone and always asks a person.
    """

    name = "redis.flush_db"
    command: ClassVar[str] = "FLUSHDB"
    everything: ClassVar[bool] = False
    permissions: ClassVar[tuple[Permission, ...]] = (
        SESSION,
        grant("+info", "+dbsize", "+eval", "+flushdb", "+script|exists", "+client|list"),
        SENTINEL_READ,
        CLUSTER_READ,
    )
    example: ClassVar[Mapping[str, Any]] = {"connection": "cache"}


class FlushAll(_Flush):
    """Deletes every key of every database (FLUSHALL ASYNC), in a cluster on all primaries.

    Every database that holds keys must lie within the connection's scope. It can't be undone and always asks a person.
    """

    name = "redis.flush_all"
    command: ClassVar[str] = "FLUSHALL"
    everything: ClassVar[bool] = True
    permissions: ClassVar[tuple[Permission, ...]] = (
        SESSION,
        grant("+info", "+dbsize", "+eval", "+flushall", "+script|exists", "+client|list"),
        SENTINEL_READ,
        CLUSTER_READ,
    )
    example: ClassVar[Mapping[str, Any]] = {"connection": "cache"}


def _database(connection: str, db: int) -> Target:
    """Name a database as a target: all its keys."""
    return target(connection, "db", str(db), db=db, scope={"db": str(db), "key": "*"})


def _flushes(server: Server) -> int:
    return calls(server.info, "flushdb") + calls(server.info, "flushall")


async def _send(session: Session, plan: Plan, script: str) -> None:
    """Flush one server, if it is as planned in the instant of the flush. Up to twice the planned keys (and 1,000) are no surprise."""
    seen = plan.precondition["servers"][str(session.address)]
    listed = "".join(f",{db}" for db in plan.intent["databases"]) + ","
    words: Sequence[str | int] = (str(plan.intent["command"]), seen["run_id"], seen["flushes"], seen["keys"] * 2 + 1000, listed)
    answer = text(await session.tell("EVAL", script, 0, *words))
    if answer != "done":
        raise PreconditionChanged(f"{session.where}: {answer}; nothing was deleted")


async def _was_flushed(session: Session, plan: Plan, script: str) -> bool | None:
    """Tell whether this step flushed this server; None when it can't be told."""
    seen = plan.precondition["servers"][str(session.address)]
    server = await read_server(session)
    ran = await script_ran(session, script)
    if server.run_id != seen["run_id"]:
        return None
    if _flushes(server) == seen["flushes"] and not ran:
        return False
    return True if ran and _flushes(server) > seen["flushes"] else None


def _receipt(plan: Plan, *, flushed: Sequence[str], missed: Sequence[str]) -> Receipt:
    message = f"{plan.intent['command']} on {', '.join(flushed)}" + (f"; not on {'; '.join(missed)}" if missed else "")
    return Receipt(message, {"flushed": list(flushed), "missed": list(missed)}, tuple(one.id for one in plan.targets))
