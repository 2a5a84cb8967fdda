"""`redis.replica_failover`: swap a primary and its replica that nobody else manages, or promote the replica of a dead primary."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from actions.redis.change import RedisAction, applied, not_applied, unknown
from actions.redis.check import OnConnection, grant
from actions.redis.connection import RedisConnection
from actions.redis.replies import Replica, number, parse_fields, parse_replicas, text, was_synced
from actions.redis.session import SESSION, Address, Session, Unreachable, open_session
from actions.redis.topology import Server, read_server, target
from actions.redis.trace import new_mark, pending, times_told, was_told
from remediator.action import Context, Permission, Reconciled
from remediator.errors import PlanRefused, PreconditionChanged, TemporaryError
from remediator.model import JSON, Change, Health, Impact, Plan, Receipt, Risk, Verdict

_TIMEOUT_MS = 10_000
"""A coordinated swap that takes longer is given up by Redis, and the primary goes on."""
_GIVEN_UP = _TIMEOUT_MS / 1000 + 2
_PAUSE = 0.1
_BEHIND = 16 << 20
"""Bytes a replica may lag before a coordinated swap, during which writes wait."""


class ReplicaFailoverParams(OnConnection):
    """The two servers, each by its connection."""

    replica: str = Field(min_length=1, description="connection of the replica that takes over; `connection` is the primary's")
    primary_down: bool = Field(
        False, description="true: the primary is dead; promote the replica alone (REPLICAOF NO ONE), losing what it lacks"
    )


class ReplicaFailover(RedisAction[ReplicaFailoverParams]):
    """Swaps roles with FAILOVER TO (Redis 6.2), which waits until the replica has everything and gives up after 10 s.

    With `primary_down` it promotes the replica alone, and only if the primary can't be reached from here and the replica has lost it,
    too. A dead primary that comes back is a primary still: fence it. Where sentinels or a cluster manage the servers it is refused.
    Clients are not moved: their address must follow the primary. There is no undo.
    """

    name = "redis.replica_failover"
    Params: ClassVar[type[Any]] = ReplicaFailoverParams
    risk: ClassVar[Risk] = Risk.HIGH
    permissions: ClassVar[tuple[Permission, ...]] = (
        SESSION,
        grant("+info", "+client|list", why="on both servers"),
        grant("+failover", why="on the primary, for a coordinated swap"),
        grant("+replicaof", why="on the replica, for `primary_down`"),
    )
    example: ClassVar[Mapping[str, Any]] = {"connection": "cache", "replica": "cache-replica"}

    async def plan(self, params: ReplicaFailoverParams, ctx: Context) -> Plan:
        """Read both servers and hold them against what was asked for."""
        for name in (params.connection, params.replica):
            settings = ctx.connection(RedisConnection, name)
            if settings.sentinel is not None or settings.cluster:
                raise PlanRefused(f"connection {name!r} has sentinels or a cluster, which manage fail-overs; use their action")
            if settings.scope:
                raise PlanRefused(f"connection {name!r} is limited to {', '.join(settings.scope)}; a fail-over concerns the whole server")
        if params.primary_down:
            return await _plan_promotion(params, ctx)
        return await _plan_swap(params, ctx)

    async def apply(self, plan: Plan, ctx: Context) -> Receipt:
        """Read both again, then send FAILOVER to the primary, or REPLICAOF NO ONE to the replica."""
        if plan.intent["primary_down"]:
            await _demand_dead(plan.connection, ctx, error=PreconditionChanged)
        async with open_session(ctx, _told_connection(plan), mark=str(plan.precondition["mark"])) as session:
            server = await read_server(session)
            if server.run_id != plan.precondition["run_id"]:
                raise PreconditionChanged(f"{session.where} was restarted or replaced since the plan was made")
            try:
                if plan.intent["primary_down"]:
                    _promotable(session, server)
                    await session.tell("REPLICAOF", "NO", "ONE")
                else:
                    _swappable(session, server, Address.parse(str(plan.intent["to"])))
                    to = Address.parse(str(plan.intent["to"]))
                    await session.tell("FAILOVER", "TO", to.host, to.port, "TIMEOUT", _TIMEOUT_MS)
            except PlanRefused as error:
                raise PreconditionChanged(str(error)) from error
        return _receipt(plan)

    async def observe(self, plan: Plan, receipt: Receipt, ctx: Context) -> Verdict:  # noqa: ARG002 - the plan says it all
        """Healthy when the replica leads and, after a swap, the old primary follows it."""
        async with open_session(ctx, str(plan.intent["replica"])) as session:
            new = await read_server(session)
            if not new.primary:
                return Verdict(Health.UNHEALTHY, f"{session.where} does not lead yet")
        if plan.intent["primary_down"]:
            return await _alone(plan, ctx)
        async with open_session(ctx, plan.connection) as session:
            old = await read_server(session)
        if old.primary or old.info.get("master_link_status") != "up":
            return Verdict(Health.UNHEALTHY, f"{session.where} does not follow the new primary yet")
        return Verdict(Health.HEALTHY, f"Redis {plan.intent['replica']!r} leads, {session.where} follows it")

    async def find_out(self, plan: Plan, ctx: Context) -> Reconciled:
        """Tell by the replica's role and the server's count of the command. A swap under way is waited for, up to 12 s."""
        command = "replicaof" if plan.intent["primary_down"] else "failover"
        async with open_session(ctx, _told_connection(plan)) as session:
            if await pending(session, ctx, str(plan.precondition["mark"])):
                return unknown(f"{session.where}: the connection of this step is still open there")
            server = await read_server(session)
            told = server.run_id != plan.precondition["run_id"] or was_told(server.info, command, before=plan.precondition["told"])
        leads = await _leads(plan, ctx)
        for _ in range(int(_GIVEN_UP / _PAUSE) if told else 0):
            if leads:
                break
            await asyncio.sleep(_PAUSE)
            leads = await _leads(plan, ctx)
        if leads and told:
            return applied(f"Redis {plan.intent['replica']!r} leads", _receipt(plan))
        if leads:
            return unknown(f"Redis {plan.intent['replica']!r} leads, but not because of this step")
        return not_applied(f"Redis {plan.intent['replica']!r} still follows, and no attempt can be under way")


# --- a coordinated swap --------------------------------------------------------------------------------------------------


async def _plan_swap(params: ReplicaFailoverParams, ctx: Context) -> Plan:
    settings = ctx.connection(RedisConnection, params.replica)
    async with open_session(ctx, params.replica) as session:
        follower = await read_server(session)
        if follower.primary or follower.info.get("master_link_status") != "up":
            raise PlanRefused(f"{session.where} is not a replica in sync (role {follower.info.get('role')}); name the replica's connection")
    async with open_session(ctx, params.connection) as session:
        server = await read_server(session)
        if follower.info.get("master_replid") != server.info.get("master_replid"):
            raise PlanRefused(f"Redis {params.replica!r} replicates another stream than that of {session.where}")
        to = await _as_seen(session, server, Address(settings.host or "", settings.port))
        _swappable(session, server, to)
        await _unmanaged(session)
        return _plan(params, session.address, to, server=server, command="failover")


async def _as_seen(session: Session, server: Server, replica: Address) -> Address:
    """Return the replica's address as its primary knows it: FAILOVER TO takes no other."""
    known = [one.address for one in parse_replicas(server.info)] if server.primary else []
    try:
        rows = await asyncio.get_running_loop().getaddrinfo(replica.host, replica.port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise TemporaryError(f"the name {replica.host!r} can't be resolved") from error
    hosts = {replica.host, *(row[4][0] for row in rows)}
    found = [one for one in known if one.port == replica.port and one.host in hosts]
    if len(found) != 1:
        raise PlanRefused(f"{session.where} has no replica at {replica}; it has {', '.join(map(str, known)) or 'none'}")
    return found[0]


def _swappable(session: Session, server: Server, to: Address) -> Replica:
    """Return the replica in the primary's eyes. Raises `PlanRefused` unless it is online and near."""
    if not server.primary:
        raise PlanRefused(f"{session.where} is a replica itself")
    if server.info.get("cluster_enabled") == "1":
        raise PlanRefused(f"{session.where} belongs to a cluster; use redis.cluster_failover")
    if server.info.get("master_failover_state", "no-failover") != "no-failover":
        raise PlanRefused(f"{session.where}: a fail-over is under way already")
    found = next((one for one in parse_replicas(server.info) if one.address == to), None)
    if found is None or not found.healthy or found.behind > _BEHIND:
        seen = "gone" if found is None else f"online {found.online}, {found.behind} bytes and {found.lag} s behind"
        raise PlanRefused(f"{session.where}: its replica {to} is not in sync ({seen})")
    return found


# --- a dead primary ------------------------------------------------------------------------------------------------------


async def _plan_promotion(params: ReplicaFailoverParams, ctx: Context) -> Plan:
    await _demand_dead(params.connection, ctx, error=PlanRefused)
    settings = ctx.connection(RedisConnection, params.connection)
    primary = Address(settings.host or "", settings.port)
    async with open_session(ctx, params.replica) as session:
        server = await read_server(session)
        _promotable(session, server)
        await _unmanaged(session)
        if number(server.info, "master_port") != primary.port:
            raise PlanRefused(f"{session.where} replicates {server.info.get('master_host')}:{server.info['master_port']}, not {primary}")
        return _plan(params, primary, session.address, server=server, command="replicaof")


async def _demand_dead(connection: str, ctx: Context, *, error: type[PlanRefused | PreconditionChanged]) -> None:
    """Raise `error` when the primary answers, even if only to say that it is busy; it may live on and take writes."""
    try:
        async with open_session(ctx, connection) as session:
            await session.ask("INFO", "replication")
    except Unreachable as found:
        if found.reason not in {"refused", "timeout", "closed"}:
            raise error(f"the primary lives: {found}") from found
        return
    raise error(f"{session.where} answers; a promotion would make two primaries. Leave out `primary_down` for a swap")


def _promotable(session: Session, server: Server) -> None:
    """Raise `PlanRefused` unless this is a replica that has lost its primary and holds a whole copy of its data."""
    if server.primary:
        raise PlanRefused(f"{session.where} is a primary already")
    if server.info.get("cluster_enabled") == "1":
        raise PlanRefused(f"{session.where} belongs to a cluster; use redis.cluster_failover")
    if server.info.get("master_link_status") != "down":
        raise PlanRefused(f"{session.where} still talks to its primary: it is not down")
    keys = any(name.startswith("db") and name[2:].isdigit() for name in server.info)
    if not was_synced(server.info) or not keys:
        raise PlanRefused(f"{session.where} has no keys, or has not been in sync since it started; promoting it may lose everything")


async def _alone(plan: Plan, ctx: Context) -> Verdict:
    """After a promotion: healthy as long as the old primary has not come back as a second one."""
    try:
        await _demand_dead(plan.connection, ctx, error=PreconditionChanged)
    except PreconditionChanged:
        return Verdict(
            Health.UNHEALTHY,
            f"Redis {plan.intent['replica']!r} leads, but the old primary {plan.connection!r} is back: two primaries, fence one",
        )
    return Verdict(Health.HEALTHY, f"Redis {plan.intent['replica']!r} leads alone")


# --- both ----------------------------------------------------------------------------------------------------------------


async def _unmanaged(session: Session) -> None:
    """Raise `PlanRefused` when sentinels watch this server: they would turn it back."""
    clients = text(await session.ask("CLIENT", "LIST")).splitlines()
    names = {parse_fields(line.replace(" ", ",")).get("name", "") for line in clients}
    if any(name.startswith("sentinel-") for name in names):
        raise PlanRefused(f"sentinels watch {session.where}; use redis.sentinel_failover")


async def _leads(plan: Plan, ctx: Context) -> bool:
    async with open_session(ctx, str(plan.intent["replica"])) as session:
        return (await read_server(session)).primary


def _told_connection(plan: Plan) -> str:
    """Return the connection of the server that gets the command."""
    return str(plan.intent["replica"]) if plan.intent["primary_down"] else plan.connection


def _plan(params: ReplicaFailoverParams, primary: Address, to: Address, *, server: Server, command: str) -> Plan:
    things = (target(params.connection, "primary", "-"), target(params.replica, "primary", "-"))
    intent: dict[str, JSON] = {"replica": params.replica, "from": str(primary), "to": str(to), "primary_down": params.primary_down}
    how = "promote" if params.primary_down else "swap roles:"
    lost = "writes that the replica has not got are lost; fence the old primary: when it comes back it is a primary still"
    return Plan(
        action=ReplicaFailover.name,
        summary=f"{how} {to} takes over from {primary} as primary of Redis {params.connection!r}",
        targets=things,
        intent=intent,
        precondition={"run_id": server.run_id, "told": times_told(server.info, command), "mark": new_mark()},
        changes=(Change(things[0].id, "primary", str(primary), str(to)),),
        impact=Impact(touched=2, total=2),
        connection=params.connection,
        warnings=(
            lost if params.primary_down else "writes wait for up to 10 s",
            "clients that know the primary's address must be told the new one",
        ),
    )


def _receipt(plan: Plan) -> Receipt:
    return Receipt(
        f"{plan.intent['to']} was told to take over from {plan.intent['from']}", dict(plan.intent), tuple(one.id for one in plan.targets)
    )
