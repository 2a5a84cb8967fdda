"""`alertmanager.expire_silence` and `alertmanager.expire_any_silence`: end silences before their time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self, TypeVar

from pydantic import Field, model_validator

from actions.alertmanager.connection import AlertmanagerConnection
from actions.alertmanager.peers import Peers, open_peers
from actions.alertmanager.silences import Silence, end_everywhere, everywhere, listings
from remediator.action import Action, Context, Params, Permission, PermissionKind, Reconciled, Settled
from remediator.errors import PlanRefused, PreconditionChanged, TemporaryError
from remediator.model import Change, Health, Impact, Plan, Receipt, Repeat, Risk, Target, Verdict
from remediator.silences.ours import Own

P = TypeVar("P", bound=Params)


class ExpireParams(Params):
    """Which silences: one by its id, or all that this daemon made for one incident."""

    connection: str
    silence: str = Field("", max_length=100, description="its id")
    incident: str = Field("", max_length=100, description="all silences that this daemon made for this incident")
    mark: str = Field("", max_length=200, description="the one that this daemon made in this step; for its own use")

    @model_validator(mode="after")
    def _names_one(self) -> Self:
        if sum(map(bool, (self.silence, self.incident, self.mark))) != 1:
            raise ValueError("give exactly one of silence, incident and mark: nothing named would mean every silence there is")
        return self


class ExpireAnyParams(Params):
    """Which silence."""

    connection: str
    silence: str = Field(min_length=1, max_length=100, description="its id")


class _Expire(Action[P]):
    """What both have in common."""

    connection = AlertmanagerConnection
    repeat = Repeat.DETECTABLE
    reversible = False
    permissions = (
        Permission(PermissionKind.HTTP, ("GET",), "/api/v2/silences"),
        Permission(PermissionKind.HTTP, ("GET", "DELETE"), "/api/v2/silence/*"),
    )

    async def apply(self, plan: Plan, ctx: Context) -> Receipt:
        """End those of the plan that are still in force and as they were."""
        return await end_planned(plan, ctx)

    async def verify(self, plan: Plan, receipt: Receipt, ctx: Context) -> Verdict:  # noqa: ARG002 - the plan says it all
        """Healthy when no peer that answers has one in force."""
        left = await still_lasting(plan, ctx)
        return Verdict(Health.UNHEALTHY, f"still in force: {', '.join(left)}") if left else Verdict(Health.HEALTHY, "they are ended")

    async def reconcile(self, plan: Plan, ctx: Context) -> Reconciled:
        """Read whether they are ended: nobody can tell by whom, and it makes no difference."""
        left = await still_lasting(plan, ctx)
        if left:
            return Reconciled(Settled.NOT_APPLIED, f"still in force: {', '.join(left)}")
        ids = [str(one) for one in plan.intent["members"]]
        return Reconciled(Settled.APPLIED, "they are ended", Receipt("they are ended", {"ended": ids}, _touched(plan)))


class ExpireSilence(_Expire[ExpireParams]):
    """Ends silences that this daemon made, by id or by incident, at all peers. Somebody else's are refused.

    An ended silence stays ended: it can't be undone, but a new one can be made.
    """

    name = "alertmanager.expire_silence"
    Params = ExpireParams
    risk = Risk.LOW
    example: ClassVar[Mapping[str, Any]] = {"connection": "alertmanager", "incident": "${incident.id}"}

    async def plan(self, params: ExpireParams, ctx: Context) -> Plan:
        """Find them and see whose they are. Every peer must answer where they are not named by id: one may have what others have not."""
        peers = await open_peers(ctx, params.connection)
        if params.silence:
            found = await by_id(peers, params.silence)
            if not found.mark(ctx.identity.name):
                raise PlanRefused(
                    f"silence {found.id} was made by {found.created_by!r}, not by this daemon; "
                    f"`{ExpireAnySilence.name}` ends others' silences, after an approval"
                )
            return _plan(self.name, params.connection, [found])
        return _plan(self.name, params.connection, await _ours(peers, params), what=params.incident or params.mark)


class ExpireAnySilence(_Expire[ExpireAnyParams]):
    """Ends one silence, whoever made it, named by its id. Its risk is high, so a person is asked every time."""

    name = "alertmanager.expire_any_silence"
    Params = ExpireAnyParams
    risk = Risk.HIGH
    example: ClassVar[Mapping[str, Any]] = {"connection": "alertmanager", "silence": "8e8a4e05-2b7d-4d3e-9f1c-1c2a9e5b0c11"}

    async def plan(self, params: ExpireAnyParams, ctx: Context) -> Plan:
        """Read it, so that whoever is asked sees whose it is and why it was made."""
        return _plan(self.name, params.connection, [await by_id(await open_peers(ctx, params.connection), params.silence)])


async def by_id(peers: Peers, silence: str) -> Silence:
    """Return a silence by its id, as it is in force where it is. Raises `PlanRefused` when no peer has it."""
    known = [one for one in (await everywhere(peers, silence)).values() if one is not None]
    if not known:
        raise PlanRefused(f"no peer of connection {peers.name!r} has a silence {silence!r}")
    return next((one for one in known if not one.over), known[0])


async def _ours(peers: Peers, params: ExpireParams) -> list[Silence]:
    found, failed = await listings(peers)
    if failed:
        raise TemporaryError("; ".join(str(error) for error in failed))
    author, own = peers.ctx.identity.name, Own(marks=(params.mark,) if params.mark else (), incident=params.incident)
    ours = {one.id: one for listing in found for one in listing.silences if not one.over and own.has_mark(one.mark(author))}
    return [ours[ident] for ident in sorted(ours)]


def _plan(action: str, connection: str, found: Sequence[Silence], *, what: str = "") -> Plan:
    lasting = [one for one in found if not one.over]
    targets = tuple(_target(connection, one.id, one.matchers) for one in found) or (_target(connection, f"of-{what}"),)
    shown = [_change(connection, one) for one in lasting]
    return Plan(
        action=action,
        summary=f"end silence {', '.join(one.id for one in lasting)}" if lasting else f"no silence is left to end {what}".strip(),
        targets=targets,
        intent={"members": [one.id for one in lasting], "ends": {one.id: one.ends_at.isoformat() for one in lasting}},
        changes=tuple(shown),
        impact=Impact(touched=len(lasting)),
        connection=connection,
        noop=not lasting,
    )


def _change(connection: str, silence: Silence) -> Change:
    return Change(_target(connection, silence.id).id, f"silence by {silence.created_by}: {silence.comment[:200]}", "in force", None)


def _target(connection: str, silence: str, matchers: Sequence[tuple[str, str]] | None = None) -> Target:
    """Name a silence. The connection's scope may limit any label that it matches exactly, by an entry `label_NAME`."""
    ident = f"alertmanager:{connection}/-/silence/{silence}"
    return Target(ident, ident, {f"label_{name}": value for name, value in matchers or ()})


def _touched(plan: Plan) -> tuple[str, ...]:
    return tuple(target.id for target in plan.targets)


async def end_planned(plan: Plan, ctx: Context) -> Receipt:
    """End a plan's silences. Raises `PreconditionChanged` when somebody has made one of them end at another time since."""
    peers = await open_peers(ctx, plan.connection)
    ids = [str(one) for one in plan.intent["members"]]
    for ident in ids:
        known = [one for one in (await everywhere(peers, ident)).values() if one is not None and not one.over]
        moved = [one for one in known if one.ends_at.isoformat() != plan.intent["ends"][ident]]
        if moved and plan.action == ExpireAnySilence.name:
            raise PreconditionChanged(
                f"silence {ident} ends at {moved[0].ends_at:%H:%M:%SZ} by now: somebody changed it since it was looked at"
            )
    ended = await end_everywhere(peers, ids)
    return Receipt(f"silence {', '.join(ended) or '(none)'} is ended", {"ended": list(ended)}, _touched(plan))


async def still_lasting(plan: Plan, ctx: Context) -> list[str]:
    """Return which of a plan's silences are in force at a peer that answers."""
    peers = await open_peers(ctx, plan.connection)
    left = []
    for ident in plan.intent["members"]:
        known = (await everywhere(peers, str(ident))).values()
        left += [str(ident)] if any(one is not None and not one.over for one in known) else []
    return left
