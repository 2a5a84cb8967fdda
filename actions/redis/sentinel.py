"""`redis.sentinel_failover`: let the sentinels promote a replica in place of the primary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from actions.redis.change import RedisAction, applied, not_applied, unknown
from actions.redis.check import OnConnection, grant
from actions.redis.replies import SentinelView, number
from actions.redis.session import SESSION, Address, Session, Unreachable, open_session
from actions.redis.topology import SentinelViews, ask_sentinels, open_sentinel, read_server, read_view, sentinel_settings, target
from actions.redis.trace import new_mark, pending
from remediator.action import Context, Permission, Reconciled
from remediator.errors import PermanentError, PlanRefused, PreconditionChanged, TemporaryError
from remediator.model import Change, Health, Impact, Plan, Receipt, Risk, Verdict


class SentinelFailover(RedisAction[OnConnection]):
    """Sends SENTINEL FAILOVER to one sentinel, which promotes the best replica and turns the others to it.

    The plan pins the primary's address, run id and epoch; once another leads, nothing is done. A majority of the configured sentinels must
    answer, all that do must agree, and there must be a replica to promote. There is no undo: failing back is a decision of its own.
    """

    name = "redis.sentinel_failover"
    Params: ClassVar[type[Any]] = OnConnection
    risk: ClassVar[Risk] = Risk.MEDIUM
    permissions: ClassVar[tuple[Permission, ...]] = (
        SESSION,
        grant("+info", why="on the servers"),
        grant(
            "+sentinel|master",
            "+sentinel|replicas",
            "+sentinel|ckquorum",
            "+sentinel|failover",
            "+client|setname",
            "+client|list",
            why="on the sentinels",
        ),
    )
    example: ClassVar[Mapping[str, Any]] = {"connection": "sessions"}

    async def plan(self, params: OnConnection, ctx: Context) -> Plan:
        """Read all sentinels' views. Raises `PlanRefused` when there is nothing to promote or a fail-over is under way."""
        views = await ask_sentinels(ctx, params.connection)
        view = _sound(views, params.connection)
        await _has_quorum(ctx, params.connection, view.sentinel)
        thing = target(params.connection, "primary", sentinel_settings(ctx, params.connection).primary, uid=view.run_id)
        names = ", ".join(map(str, view.healthy_replicas))
        silent = (f"sentinels that don't answer: {', '.join(map(str, views.silent))}",) if views.silent else ()
        lost = ("the primary is down: writes that no replica has are lost",) if view.down else ()
        return Plan(
            action=self.name,
            summary=f"fail Redis {params.connection!r} over from {view.address} to one of {names}, chosen by the sentinels",
            targets=(thing,),
            intent={"primary": str(view.address), "run_id": view.run_id, "epoch": view.epoch},
            precondition={"replicas": len(view.healthy_replicas), "mark": new_mark()},
            changes=(Change(thing.id, "primary", str(view.address), f"one of {names}"),),
            impact=Impact(touched=1, total=1 + view.replicas),
            connection=params.connection,
            warnings=("clients are disconnected and writes fail for a moment", *lost, *silent),
        )

    async def apply(self, plan: Plan, ctx: Context) -> Receipt:
        """Read all sentinels again, then ask the first one, comparing its own view on the same connection."""
        sentinel = _unchanged(plan, await ask_sentinels(ctx, plan.connection)).sentinel
        name = sentinel_settings(ctx, plan.connection).primary
        async with open_sentinel(ctx, plan.connection, sentinel, mark=str(plan.precondition["mark"])) as session:
            _same(plan, await read_view(session, name))
            await _start(session, name)
        return _receipt(plan)

    async def observe(self, plan: Plan, receipt: Receipt, ctx: Context) -> Verdict:  # noqa: ARG002 - the plan says it all
        """Healthy when all sentinels name a new primary, which says so itself and has its replicas attached."""
        views = await ask_sentinels(ctx, plan.connection)
        view = views.agreed
        if not views.majority:
            return Verdict(Health.UNKNOWN, "too few sentinels answer")
        if views.busy or view is None:
            return Verdict(Health.UNHEALTHY, "the fail-over is still under way")
        if str(view.address) == plan.intent["primary"]:
            return Verdict(Health.UNHEALTHY, f"{view.address} still leads")
        return await _leads(ctx, plan, view)

    async def find_out(self, plan: Plan, ctx: Context) -> Reconciled:
        """Tell by the primary that the sentinels name. All of them must answer before anybody says *not applied*."""
        views = await ask_sentinels(ctx, plan.connection)
        view = views.agreed
        if views.busy or view is None:
            return unknown("a fail-over is under way, or the sentinels disagree")
        if str(view.address) != plan.intent["primary"]:
            return applied(f"{view.address} leads now", _receipt(plan))
        if views.silent:
            return unknown(f"sentinels that don't answer may have been asked: {', '.join(map(str, views.silent))}")
        for answer in views.answers:
            async with open_sentinel(ctx, plan.connection, answer.sentinel) as session:
                if await pending(session, ctx, str(plan.precondition["mark"])):
                    return unknown(f"{session.where}: the connection of this step is still open there")
        return await self._nothing_began(plan, ctx)

    async def _nothing_began(self, plan: Plan, ctx: Context) -> Reconciled:
        """Look once more, now that the step's connection is surely gone."""
        views = await ask_sentinels(ctx, plan.connection)
        view = views.agreed
        if views.busy or views.silent or view is None or str(view.address) != plan.intent["primary"] or view.epoch != plan.intent["epoch"]:
            return unknown("the sentinels' views moved while they were read; ask again")
        return not_applied(f"{view.address} still leads, in the same epoch, and no fail-over is under way")


def _sound(views: SentinelViews, connection: str) -> SentinelView:
    """Return the common view. Raises `TemporaryError` or `PlanRefused` when it is no ground to act on."""
    if not views.majority:
        raise TemporaryError(f"only {len(views.answers)} of {len(views.answers) + len(views.silent)} sentinels of {connection!r} answer")
    view = views.agreed
    if view is None or views.busy:
        raise PlanRefused(f"a fail-over of {connection!r} is under way already, or its sentinels disagree")
    if len({answer.run_id for answer in views.answers}) != 1 or not view.run_id:
        raise TemporaryError(f"the sentinels of {connection!r} have not all seen the same process lead; try again")
    if not view.healthy_replicas:
        raise PlanRefused(f"{connection!r} has no replica that could take over ({view.replicas} known)")
    return view


async def _has_quorum(ctx: Context, connection: str, sentinel: Address) -> None:
    """Raise `PlanRefused` unless the sentinels can authorize a fail-over."""
    async with open_sentinel(ctx, connection, sentinel) as session:
        try:
            await session.ask("SENTINEL", "CKQUORUM", sentinel_settings(ctx, connection).primary)
        except PermanentError as error:
            if "NOQUORUM" in str(error):
                raise PlanRefused(str(error)) from error
            raise


def _same(plan: Plan, view: SentinelView) -> SentinelView:
    """Hold a view against the plan."""
    if (str(view.address), view.run_id, view.epoch) != (plan.intent["primary"], plan.intent["run_id"], plan.intent["epoch"]):
        raise PreconditionChanged(
            f"{view.address} leads now (epoch {view.epoch}); planned was {plan.intent['primary']} (epoch {plan.intent['epoch']})"
        )
    if view.busy:
        raise PreconditionChanged("a fail-over is under way already")
    return view


def _unchanged(plan: Plan, views: SentinelViews) -> SentinelView:
    """Hold all views against the plan, and demand a replica still."""
    try:
        return _same(plan, _sound(views, plan.connection))
    except PlanRefused as error:
        raise PreconditionChanged(str(error)) from error


async def _start(session: Session, name: str) -> None:
    """Send the command. Raises `TemporaryError` for a refusal that passes: right after a death replicas are not fresh enough for it."""
    try:
        await session.tell("SENTINEL", "FAILOVER", name)
    except PermanentError as error:
        if "NOGOODSLAVE" in str(error) or "INPROG" in str(error):
            raise TemporaryError(str(error)) from error
        raise


async def _leads(ctx: Context, plan: Plan, view: SentinelView) -> Verdict:
    """Ask the new primary itself."""
    try:
        async with open_session(ctx, plan.connection, address=view.address) as session:
            server = await read_server(session)
    except Unreachable as error:
        return Verdict(Health.UNHEALTHY, f"the new primary: {error}")
    attached, wanted = number(server.info, "connected_slaves"), int(plan.precondition["replicas"]) - 1
    if not server.primary:
        return Verdict(Health.UNHEALTHY, f"{view.address} was chosen and does not lead yet")
    if attached < wanted:
        return Verdict(Health.UNHEALTHY, f"{view.address} leads with {attached} replicas of {wanted} expected")
    return Verdict(Health.HEALTHY, f"{view.address} leads with {attached} replicas")


def _receipt(plan: Plan) -> Receipt:
    return Receipt(f"fail-over away from {plan.intent['primary']} started", {"old_primary": plan.intent["primary"]}, (plan.targets[0].id,))
