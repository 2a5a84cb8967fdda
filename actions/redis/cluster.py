"""`redis.cluster_failover`: let a replica of one shard of a Redis Cluster take over."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field

from actions.redis.change import RedisAction, applied, not_applied, unknown
from actions.redis.check import CLUSTER_READ, OnConnection, grant
from actions.redis.replies import ClusterNode, number, parse_nodes, was_synced
from actions.redis.session import SESSION, Address, Session, Unreachable, open_session
from actions.redis.topology import Server, cluster_nodes, covered, read_server, target
from actions.redis.trace import new_mark, pending, times_told, was_told
from remediator.action import Context, Permission, Reconciled
from remediator.errors import PlanRefused, PreconditionChanged
from remediator.model import Change, Health, Impact, Plan, Receipt, Risk, Verdict

_NODE = r"^([0-9a-f]{40}|(\[[0-9A-Fa-f:]+\]|[A-Za-z0-9._-]+):[0-9]{1,5})$"
_MANUAL_TIMEOUT = 6.0
"""Redis gives up a manual fail-over after 5 s."""
_PAUSE = 0.1


class ClusterFailoverParams(OnConnection):
    """Which shard, and which of its replicas."""

    primary: str = Field(pattern=_NODE, description="the shard's present primary: node id or host:port as CLUSTER NODES shows it")
    replica: str | None = Field(
        None, pattern=_NODE, description="who takes over: node id or host:port; left out: the one that has most of the data"
    )
    force: bool = Field(
        False,
        description="for a primary that the cluster takes for failed: don't wait for it (FORCE); writes that the replica lacks are lost",
    )


class ClusterFailover(RedisAction[ClusterFailoverParams]):
    """Sends CLUSTER FAILOVER to a replica: with a living primary a coordinated switch without loss, with `force` an election without it.

    Node ids are pinned. `force` is refused while the primary lives, its absence while it has failed. TAKEOVER, which goes past the
    cluster's majority, is not offered: that is for a person. The risk is high because `force` may lose writes. There is no undo.
    Redis elects nobody for the same primary twice within two node timeouts: told again too soon it does nothing, and verification says so.
    """

    name = "redis.cluster_failover"
    Params: ClassVar[type[Any]] = ClusterFailoverParams
    risk: ClassVar[Risk] = Risk.HIGH
    permissions: ClassVar[tuple[Permission, ...]] = (SESSION, CLUSTER_READ, grant("+info", "+cluster|failover", "+client|list"))
    example: ClassVar[Mapping[str, Any]] = {"connection": "shards", "primary": "10.0.0.5:6379"}

    async def plan(self, params: ClusterFailoverParams, ctx: Context) -> Plan:
        """Find the shard and the replica to promote. Raises `PlanRefused` when there is none, or `force` does not fit."""
        nodes = await cluster_nodes(ctx, params.connection)
        primary = _named(nodes, params.primary)
        if not primary.leads:
            raise PlanRefused(f"{params.primary} is no primary with slots; it is {', '.join(sorted(primary.flags))}")
        _fits(primary, force=params.force)
        replica, server = await _choose(ctx, params, nodes, primary)
        return _plan(params, primary, replica, server)

    async def apply(self, plan: Plan, ctx: Context) -> Receipt:
        """Compare, on the replica itself, who it is and whom it follows, then ask it to take over."""
        async with _replica_session(plan, ctx, mark=str(plan.precondition["mark"])) as session:
            server = await read_server(session)
            own, primary = _seen(plan, await _nodes(session))
            if "slave" not in own.flags or own.primary != plan.intent["primary"]:
                raise PreconditionChanged(f"{session.where} does not follow the planned primary any more")
            if server.run_id != plan.precondition["run_id"] or primary is None or not primary.leads:
                raise PreconditionChanged(f"{session.where} or its primary was restarted or replaced since the plan was made")
            try:
                _fits(primary, force=bool(plan.intent["force"]))
            except PlanRefused as error:
                raise PreconditionChanged(str(error)) from error
            _in_sync(session, server, force=bool(plan.intent["force"]))
            await session.tell("CLUSTER", "FAILOVER", *(["FORCE"] if plan.intent["force"] else []))
        return _receipt(plan)

    async def observe(self, plan: Plan, receipt: Receipt, ctx: Context) -> Verdict:  # noqa: ARG002 - the plan says it all
        """Healthy when the replica leads all of the shard's slots, the seeds agree, and (without `force`) the old primary follows it."""
        async with _replica_session(plan, ctx) as session:
            await read_server(session)
            own, old = _seen(plan, await _nodes(session))
        if not own.leads:
            return Verdict(Health.UNHEALTHY, f"{own.address} does not lead yet")
        if not plan.intent["force"] and (old is None or old.primary != own.id or not old.well):
            return Verdict(Health.UNHEALTHY, f"{own.address} leads; the old primary does not follow it yet")
        if not any(node.id == own.id and node.leads for node in await cluster_nodes(ctx, plan.connection)):
            return Verdict(Health.UNHEALTHY, f"{own.address} leads; the rest of the cluster does not know it yet")
        return Verdict(Health.HEALTHY, f"{own.address} leads {covered([own])} slots")

    async def find_out(self, plan: Plan, ctx: Context) -> Reconciled:
        """Tell by the replica's role, and by how often it has been told to take over. A running attempt is waited for, up to 6 s."""
        async with _replica_session(plan, ctx) as session:
            if await pending(session, ctx, str(plan.precondition["mark"])):
                return unknown(f"{session.where}: the connection of this step is still open there")
            server = await read_server(session)
            told = server.run_id != plan.precondition["run_id"] or was_told(
                server.info, "cluster|failover", before=plan.precondition["told"]
            )
            own, _ = _seen(plan, await _nodes(session))
            for _ in range(int(_MANUAL_TIMEOUT / _PAUSE) if told else 0):
                if own.leads:
                    break
                await asyncio.sleep(_PAUSE)
                own, _ = _seen(plan, await _nodes(session))
        if own.leads and told:
            return applied(f"{own.address} leads", _receipt(plan))
        if own.leads:
            return unknown(f"{own.address} leads, but not because of this step: the cluster elected it")
        if own.primary != plan.intent["primary"]:
            return unknown(f"{own.address} follows somebody else now")
        return not_applied(f"{own.address} still follows its primary, and no attempt can be under way")


def _named(nodes: Sequence[ClusterNode], name: str) -> ClusterNode:
    found = [node for node in nodes if name in (node.id, str(node.address))]
    if len(found) != 1:
        known = ", ".join(str(node.address) for node in nodes if node.leads)
        raise PlanRefused(f"{len(found)} nodes of the cluster are called {name!r}; its primaries are {known}")
    return found[0]


def _fits(primary: ClusterNode, *, force: bool) -> None:
    """Raise `PlanRefused` when `force` and the primary's state don't go together."""
    if force and not primary.failed:
        raise PlanRefused(f"the cluster does not take {primary.address} for failed; without `force` nothing is lost")
    if not force and not primary.well:
        raise PlanRefused(
            f"{primary.address} is {', '.join(sorted(primary.flags))}, and a coordinated switch needs it; "
            "the cluster elects by itself, or use `force`"
        )


async def _choose(
    ctx: Context, params: ClusterFailoverParams, nodes: Sequence[ClusterNode], primary: ClusterNode
) -> tuple[ClusterNode, Server]:
    """Pick the replica: the one named, else the one with most data; among equals the lowest id, so that a second look agrees."""
    wanted = _named(nodes, params.replica) if params.replica is not None else None
    found: list[tuple[int, str, ClusterNode, Server]] = []
    for node in nodes:
        if node.primary == primary.id and node.well and (wanted is None or node.id == wanted.id):
            server = await _candidate(ctx, params, node)
            if server is not None:
                # With a living primary all catch up before the switch: what they have at this moment decides nothing.
                found.append((-number(server.info, "slave_repl_offset") if params.force else 0, node.id, node, server))
    if not found:
        raise PlanRefused(f"no healthy replica of {primary.address}" + (f" called {params.replica}" if params.replica else ""))
    best = min(found, key=lambda one: one[:2])
    return best[2], best[3]


async def _candidate(ctx: Context, params: ClusterFailoverParams, node: ClusterNode) -> Server | None:
    """Return the replica's state when it could take over, else None."""
    try:
        async with open_session(ctx, params.connection, address=node.address) as session:
            server = await read_server(session)
            _in_sync(session, server, force=params.force)
    except (Unreachable, PreconditionChanged):
        return None
    return server


def _in_sync(session: Session, server: Server, *, force: bool) -> None:
    """Raise `PreconditionChanged` when the replica's link does not fit: up for a coordinated switch, down and once synced for `force`."""
    link = server.info.get("master_link_status")
    if server.primary or link != ("down" if force else "up"):
        raise PreconditionChanged(f"{session.where}: role {server.info.get('role')}, link to its primary {link}")
    if not was_synced(server.info):
        raise PreconditionChanged(f"{session.where} has not got all data of its primary")


def _plan(params: ClusterFailoverParams, primary: ClusterNode, replica: ClusterNode, server: Server) -> Plan:
    thing = target(params.connection, "shard", primary.id, uid=primary.id)
    slots = f"{covered([primary])} slots of Redis {params.connection!r}"
    return Plan(
        action=ClusterFailover.name,
        summary=f"{'force' if params.force else 'switch'} {slots} from {primary.address} to {replica.address}",
        targets=(thing,),
        intent={"primary": primary.id, "replica": replica.id, "address": str(replica.address), "force": params.force},
        precondition={"run_id": server.run_id, "told": times_told(server.info, "cluster|failover"), "mark": new_mark()},
        changes=(Change(thing.id, "primary", str(primary.address), str(replica.address)),),
        impact=Impact(touched=1),
        connection=params.connection,
        warnings=("writes that the replica has not got are lost",) if params.force else ("writes wait for up to some seconds",),
    )


def _replica_session(plan: Plan, ctx: Context, mark: str = "") -> Any:
    return open_session(ctx, plan.connection, address=Address.parse(str(plan.intent["address"])), mark=mark)


async def _nodes(session: Session) -> tuple[ClusterNode, ...]:
    return parse_nodes(await session.ask("CLUSTER", "NODES"), asked=session.address)


def _seen(plan: Plan, nodes: Sequence[ClusterNode]) -> tuple[ClusterNode, ClusterNode | None]:
    """Return the replica's view of itself and of its planned primary. Raises `PreconditionChanged` when another node listens there."""
    own = next((node for node in nodes if "myself" in node.flags), None)
    if own is None or own.id != plan.intent["replica"]:
        raise PreconditionChanged(f"another node listens at {plan.intent['address']} now")
    return own, next((node for node in nodes if node.id == plan.intent["primary"]), None)


def _receipt(plan: Plan) -> Receipt:
    return Receipt(f"{plan.intent['address']} was told to take over", {"replica": plan.intent["replica"]}, (plan.targets[0].id,))
