"""`redis.config` reads one configuration parameter; `redis.config_set` changes one of a list of safe ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from pydantic import Field, field_validator

from actions.redis.change import RedisAction, applied, not_applied, unknown
from actions.redis.check import SENTINEL_READ, OnConnection, RedisCheck, grant
from actions.redis.replies import number, parse_pairs
from actions.redis.session import SESSION, Session
from actions.redis.topology import Server, open_server, read_server, target
from actions.redis.trace import new_mark, pending
from remediator.action import Context, Fact, FactType, Permission, Reconciled
from remediator.errors import PlanRefused, PreconditionChanged
from remediator.model import Change, Health, Impact, Plan, Receipt, Risk, Value, Verdict

_SECRET = re.compile(r"pass|auth|secret|^masteruser$|key-file")
"""Parameters whose value is a secret or leads to one; new ones of later versions are likely to be caught too."""

_UNITS = {"": 1, "b": 1, "k": 1000, "kb": 1 << 10, "m": 10**6, "mb": 1 << 20, "g": 10**9, "gb": 1 << 30}


def _memory(value: str) -> str:
    """Write a size in bytes, as CONFIG GET answers.

    >>> _memory("2gb")
    '2147483648'
    """
    found = re.fullmatch(r"(\d{1,18})([a-z]{0,2})", value.lower())
    if found is None or found[2] not in _UNITS:
        raise ValueError(f"{value!r} is not a size; write it like 2gb, 512mb or 1048576")
    return str(int(found[1]) * _UNITS[found[2]])


def _whole(least: int, most: int) -> Callable[[str], str]:
    def read(value: str) -> str:
        if not re.fullmatch(r"-?\d{1,18}", value) or not least <= int(value) <= most:
            raise ValueError(f"{value!r} is not a whole number from {least} to {most}")
        return str(int(value))

    return read


def _one_of(*words: str) -> Callable[[str], str]:
    def read(value: str) -> str:
        if value.lower() not in words:
            raise ValueError(f"{value!r} is none of {', '.join(words)}")
        return value.lower()

    return read


def _save(value: str) -> str:
    """Check the form `SECONDS CHANGES …`; empty switches snapshots off."""
    if not re.fullmatch(r"(\d{1,9} \d{1,9}( \d{1,9} \d{1,9})*)?", value):
        raise ValueError(f"{value!r} is not of the form `SECONDS CHANGES [SECONDS CHANGES …]`")
    return value


_SWITCH = _one_of("yes", "no")
_POLICY = _one_of(
    "noeviction", "allkeys-lru", "allkeys-lfu", "allkeys-random", "volatile-lru", "volatile-lfu", "volatile-random", "volatile-ttl"
)
SAFE: Mapping[str, Callable[[str], str]] = {
    "active-expire-effort": _whole(1, 10),
    "activedefrag": _SWITCH,
    "appendfsync": _one_of("always", "everysec", "no"),
    "latency-monitor-threshold": _whole(0, 3_600_000),
    "lazyfree-lazy-eviction": _SWITCH,
    "lazyfree-lazy-expire": _SWITCH,
    "maxclients": _whole(100, 1_000_000),
    "maxmemory": _memory,
    "maxmemory-policy": _POLICY,
    "maxmemory-samples": _whole(1, 64),
    "min-replicas-max-lag": _whole(0, 3600),
    "min-replicas-to-write": _whole(0, 100),
    "repl-backlog-size": _memory,
    "save": _save,
    "slowlog-log-slower-than": _whole(-1, 3_600_000_000),
    "slowlog-max-len": _whole(0, 100_000),
    "stop-writes-on-bgsave-error": _SWITCH,
    "tcp-keepalive": _whole(0, 86_400),
    "timeout": _whole(0, 31_536_000),
}
"""What may be set, and how a value is read. Paths, modules, credentials, ports and replication are not here, on purpose."""

_WARNINGS = {
    ("save", ""): "snapshots are switched off: a restart loses everything since the last one",
    ("stop-writes-on-bgsave-error", "no"): "writes go on although the last snapshot failed",
    ("min-replicas-to-write", "0"): "writes are accepted without any replica",
    ("appendfsync", "no"): "the system decides when the log reaches the disk",
}


# --- the check ---------------------------------------------------------------------------------------------------------


class ConfigParams(OnConnection):
    """Which parameter."""

    parameter: str = Field(
        pattern=r"^[a-z][a-z0-9-]{0,63}$", description="one parameter of CONFIG GET; no wildcards, none that holds a secret"
    )

    @field_validator("parameter")
    @classmethod
    def _no_secret(cls, value: str) -> str:
        if _SECRET.search(value):
            raise ValueError(f"{value!r} may hold a secret and is never read")
        return value


class Config(RedisCheck[ConfigParams]):
    """Reads one parameter with CONFIG GET. Managed services often forbid that, and the check fails there."""

    name = "redis.config"
    Params: ClassVar[type[Any]] = ConfigParams
    facts: ClassVar[Mapping[str, Fact]] = {
        "found": Fact(FactType.BOOL, "true when the server knows the parameter"),
        "value": Fact(FactType.STRING, "its value, sizes in bytes; unknown when it is not found"),
        "number_found": Fact(FactType.BOOL, "true when the value is a whole number"),
        "number": Fact(FactType.INT, "the value as a number; unknown when it is none"),
    }
    permissions: ClassVar[tuple[Permission, ...]] = (SESSION, grant("+config|get"), SENTINEL_READ)
    example: ClassVar[Mapping[str, Any]] = {"connection": "cache", "parameter": "maxmemory-policy"}

    async def look(self, params: ConfigParams, ctx: Context) -> Mapping[str, Value]:
        """Read the parameter."""
        async with open_server(ctx, params.connection) as session:
            found = await _read(session, params.parameter)
        if found is None:
            return {"found": False, "number_found": False}
        facts: dict[str, Value] = {"found": True, "value": found, "number_found": re.fullmatch(r"-?\d{1,18}", found) is not None}
        if facts["number_found"]:
            facts["number"] = int(found)
        return facts


async def _read(session: Session, parameter: str) -> str | None:
    return parse_pairs(await session.ask("CONFIG", "GET", parameter)).get(parameter)


# --- the action ----------------------------------------------------------------------------------------------------------


class ConfigSetParams(OnConnection):
    """Which parameter, and its new value."""

    parameter: str = Field(description="one of: " + ", ".join(SAFE))
    value: str | int = Field(description="sizes like 2gb, numbers, words, yes or no, as in redis.conf")

    @field_validator("parameter")
    @classmethod
    def _safe(cls, value: str) -> str:
        if value not in SAFE:
            raise ValueError(f"{value!r} is not set by this action; it sets {', '.join(SAFE)}")
        return value


class ConfigSet(RedisAction[ConfigSetParams]):
    """Sets one configuration parameter of one server with CONFIG SET, until its next restart: redis.conf is not rewritten.

    With sentinels, the primary's; replicas keep theirs. `maxmemory` is refused below what is in use, above the host's memory, and 0.
    """

    name = "redis.config_set"
    Params: ClassVar[type[Any]] = ConfigSetParams
    risk: ClassVar[Risk] = Risk.MEDIUM
    reversible: ClassVar[bool] = True
    permissions: ClassVar[tuple[Permission, ...]] = (SESSION, grant("+info", "+config|get", "+config|set", "+client|list"), SENTINEL_READ)
    example: ClassVar[Mapping[str, Any]] = {"connection": "cache", "parameter": "maxmemory", "value": "2gb"}

    async def plan(self, params: ConfigSetParams, ctx: Context) -> Plan:
        """Read the value before, in the server's own form, and hold the wish against the server's memory."""
        try:
            after = SAFE[params.parameter](str(params.value))
        except ValueError as error:
            raise PlanRefused(f"{params.parameter}: {error}") from error
        async with open_server(ctx, params.connection) as session:
            server = await read_server(session)
            before = await _read(session, params.parameter)
            if before is None:
                raise PlanRefused(f"{session.where} has no parameter {params.parameter!r}")
        if before != after:
            _sane(params.parameter, after, server, where=session.where)
        return _plan(self.name, params.connection, server, parameter=params.parameter, before=before, after=after)

    async def apply(self, plan: Plan, ctx: Context) -> Receipt:
        """Compare server and value with the plan, then set."""
        parameter, after = str(plan.intent["parameter"]), str(plan.intent["after"])
        async with open_server(ctx, plan.connection, mark=str(plan.precondition["mark"])) as session:
            _same_server(plan, await read_server(session), where=session.where)
            found = await _read(session, parameter)
            if found != plan.intent["before"]:
                raise PreconditionChanged(f"{session.where}: {parameter} is {found!r}, planned from {plan.intent['before']!r}")
            if not plan.noop:
                await session.tell("CONFIG", "SET", parameter, after)
        return _receipt(plan)

    async def observe(self, plan: Plan, receipt: Receipt, ctx: Context) -> Verdict:  # noqa: ARG002 - the plan says it all
        """Healthy when the server answers with the new value."""
        parameter, after = str(plan.intent["parameter"]), plan.intent["after"]
        async with open_server(ctx, plan.connection) as session:
            found = await _read(session, parameter)
        return Verdict(
            Health.HEALTHY if found == after else Health.UNHEALTHY, f"{session.where}: {parameter} is {found!r}, wanted {after!r}"
        )

    async def find_out(self, plan: Plan, ctx: Context) -> Reconciled:
        """Tell by the value: the wished one is in force, or the old one is."""
        async with open_server(ctx, plan.connection) as session:
            if await pending(session, ctx, str(plan.precondition["mark"])):
                return unknown(f"{session.where}: the connection of this step is still open there")
            found = await _read(session, str(plan.intent["parameter"]))
        if found == plan.intent["after"]:
            return applied("the wished value is in force", _receipt(plan))
        if found == plan.intent["before"]:
            return not_applied("the old value is in force")
        return unknown(f"the value is {found!r}, neither the old nor the wished one")

    async def undo(self, plan: Plan, receipt: Receipt, ctx: Context) -> Plan:  # noqa: ARG002 - the plan says it all
        """Plan to set the old value, unless somebody has set another one since."""
        parameter, before, after = (str(plan.intent[name]) for name in ("parameter", "before", "after"))
        async with open_server(ctx, plan.connection) as session:
            server = await read_server(session)
            found = await _read(session, parameter)
        if found != after:
            raise PlanRefused(f"{session.where}: {parameter} is {found!r}, not the {after!r} that was set; somebody changed it since")
        return _plan(self.name, plan.connection, server, parameter=parameter, before=after, after=before, undoes=True)


def _sane(parameter: str, after: str, server: Server, *, where: str) -> None:
    """Refuse what would hurt at once."""
    if parameter != "maxmemory":
        return
    used, host = number(server.info, "used_memory"), number(server.info, "total_system_memory")
    if int(after) == 0:
        raise PlanRefused(f"{where}: maxmemory 0 means no limit; name a size")
    if int(after) < used:
        raise PlanRefused(f"{where} uses {used} bytes; maxmemory {after} would evict or refuse writes at once")
    if int(after) > host:
        raise PlanRefused(f"{where} has {host} bytes on its host; maxmemory {after} would make the system swap or kill it")


def _plan(action: str, connection: str, server: Server, *, parameter: str, before: str, after: str, undoes: bool = False) -> Plan:
    thing = target(connection, "config", parameter)
    warnings = [_WARNINGS[parameter, after]] if (parameter, after) in _WARNINGS else []
    if parameter == "maxmemory-policy" and not after.startswith(("noev", "volatile")):
        warnings.append("keys without a time to live may be evicted: no place for queues")
    shrinks = parameter in {"maxmemory", "maxclients"} and 0 < int(after) < int(before)
    return Plan(
        action=action,
        summary=f"set {parameter} of Redis {connection!r} from {before!r} to {after!r}, until its next restart",
        targets=(thing,),
        intent={"parameter": parameter, "before": before, "after": after},
        precondition={"run_id": server.run_id, "mark": new_mark()},
        changes=(Change(thing.id, parameter, before, after),),
        impact=Impact(touched=1, shrinks=shrinks),
        connection=connection,
        warnings=tuple(warnings),
        noop=before == after,
        undoes=undoes,
    )


def _same_server(plan: Plan, server: Server, *, where: str) -> None:
    if server.run_id != plan.precondition["run_id"]:
        raise PreconditionChanged(f"{where} was restarted or replaced since the plan was made")


def _receipt(plan: Plan) -> Receipt:
    parameter, after = plan.intent["parameter"], plan.intent["after"]
    return Receipt(
        f"{parameter} is {after!r} now", {"parameter": parameter, "before": plan.intent["before"], "after": after}, (plan.targets[0].id,)
    )
