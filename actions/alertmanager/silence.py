"""`alertmanager.silence`: keep exactly these alerts quiet for a while."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, ClassVar

from pydantic import Field

from actions.alertmanager.connection import AlertmanagerConnection
from actions.alertmanager.peers import LABEL, Peers, alerts_path, has_labels, narrow, open_peers
from actions.alertmanager.silences import Listing, Silence, Wish, end_everywhere, everywhere, listings, post
from remediator.action import Action, Context, Params, Permission, PermissionKind, Reconciled, Settled
from remediator.duration import Duration, format_duration
from remediator.errors import OutcomeUnknown, PlanRefused, PreconditionChanged, RemediatorError, TemporaryError
from remediator.model import Change, Health, Impact, Plan, Receipt, Repeat, Risk, Target, Verdict
from remediator.silences.ours import comment_of

SHORTEST = timedelta(seconds=1)


class SilenceParams(Params):
    """Which alerts, for how long."""

    connection: str
    labels: Mapping[str, str] = Field(
        min_length=1, max_length=64, description="the alerts have all of these, exactly; `${labels}` is the alert's own"
    )
    without: tuple[str, ...] = Field((), max_length=64, description="labels that are left out, so that alerts which differ by them are too")
    for_: Duration = Field(alias="for", ge=SHORTEST, description="how long; at most the connection's `max_silence`")
    comment: str = Field("", max_length=500, description="what people read there before the incident, the run and the link")
    prolongs: str = Field("", max_length=100, description="id of a silence of ours that is to end later; nothing new is made then")


class SilenceAction(Action[SilenceParams]):
    """Silences the alerts that have exactly these labels, for a while that is bounded by the connection.

    Matchers are equalities only. The comment names incident, run and link. In a cluster it is posted to one peer, which tells the others.
    Planning counts the alerts that would be silenced at this moment as what is touched.
    """

    name = "alertmanager.silence"
    Params = SilenceParams
    connection = AlertmanagerConnection
    risk = Risk.LOW
    repeat = Repeat.DETECTABLE
    reversible = True
    permissions = (
        Permission(PermissionKind.HTTP, ("GET",), "/api/v2/alerts", "to count what would be silenced"),
        Permission(PermissionKind.HTTP, ("GET", "POST"), "/api/v2/silences"),
        Permission(PermissionKind.HTTP, ("GET",), "/api/v2/silence/*"),
        Permission(PermissionKind.HTTP, ("DELETE",), "/api/v2/silence/*", "to undo it"),
    )
    example: ClassVar[Mapping[str, Any]] = {"connection": "alertmanager", "labels": {"alertname": "DiskFull", "host": "db1"}, "for": "30m"}

    async def plan(self, params: SilenceParams, ctx: Context) -> Plan:
        """Choose the labels, hold the time against the connection's bound, and count what would be silenced now."""
        peers = await open_peers(ctx, params.connection)
        labels = chosen(params.labels, params.without)
        _bounded(params, peers.connection)
        if params.prolongs:
            return await _prolonging(peers, params, labels)
        count = await _matching(peers, labels)
        made = await _made(peers, labels, ctx)
        return _plan(params, labels, mark=ctx.key, count=count, noop=bool(made))

    async def apply(self, plan: Plan, ctx: Context) -> Receipt:
        """Make it at the first peer that answers, unless it is there already; or prolong or end the one that was planned."""
        peers = await open_peers(ctx, plan.connection)
        if plan.undoes:
            ids = await end_everywhere(peers, [str(one) for one in plan.intent["ends"]])
            return Receipt(f"silence {', '.join(ids)} is ended", {"ended": list(ids)}, (plan.targets[0].id,))
        if plan.intent["prolongs"]:
            return await _prolong(peers, plan, str(plan.intent["prolongs"]))
        labels = dict(plan.intent["labels"])
        answered = await _answering(peers, labels)
        made = _marked(answered, author=ctx.identity.name, mark=str(plan.intent["mark"]))
        if made and all(one.over for one in made):
            raise PreconditionChanged(f"silence {made[0].id} was made already and is over; it is not made again")
        if made:
            return _receipt(plan, made[0].id, _holder(answered, made[0]), made[0])
        return await _make(peers, plan, answered)

    async def verify(self, plan: Plan, receipt: Receipt, ctx: Context) -> Verdict:
        """Healthy while it is in force at every peer that answers, or when it has run its time."""
        peers = await open_peers(ctx, plan.connection)
        ids = [str(one) for one in plan.intent["ends"]] if plan.undoes else [str(receipt.data["silence"])]
        found = {url: one for silence in ids for url, one in (await everywhere(peers, silence)).items()}
        if plan.undoes:
            left = [url for url, one in found.items() if one is not None and not one.over]
            return Verdict(Health.UNHEALTHY if left else Health.HEALTHY, f"still in force at {', '.join(left)}" if left else "it is ended")
        if any(one is not None and one.state == "active" for one in found.values()):
            return Verdict(Health.HEALTHY, f"silence {ids[0]} is in force")
        if any(one is not None and one.over and not _ended_early(one, receipt) for one in found.values()):
            return Verdict(Health.HEALTHY, f"silence {ids[0]} has run its time")
        return Verdict(Health.UNHEALTHY, f"silence {ids[0]} is not in force: somebody ended it")

    async def reconcile(self, plan: Plan, ctx: Context) -> Reconciled:
        """Look for the mark at every peer, or at what was to be prolonged or ended."""
        peers = await open_peers(ctx, plan.connection)
        if plan.undoes:
            return await _reconcile_end(peers, plan)
        if plan.intent["prolongs"]:
            return Reconciled(Settled.UNKNOWN, "how long the silence lasts does not tell who made it so")
        found, failed = await listings(peers, labels=dict(plan.intent["labels"]))
        made = _marked(found, author=ctx.identity.name, mark=str(plan.intent["mark"]))
        if made:
            receipt = _receipt(plan, made[0].id, _holder(found, made[0]), made[0])
            return Reconciled(Settled.APPLIED, f"silence {made[0].id} is there", receipt)
        if failed:
            return Reconciled(Settled.UNKNOWN, "; ".join(str(error) for error in failed))
        return Reconciled(Settled.NOT_APPLIED, "no peer has a silence with its mark")

    async def undo(self, plan: Plan, receipt: Receipt, ctx: Context) -> Plan:
        """Plan to end it, unless somebody has made it end at another time since."""
        peers = await open_peers(ctx, plan.connection)
        silence = str(receipt.data["silence"])
        known = [one for one in (await everywhere(peers, silence)).values() if one is not None]
        lasting = [one for one in known if not one.over]
        changed = next((one for one in lasting if one.ends_at != datetime.fromisoformat(str(receipt.data["ends_at"]))), None)
        if changed is not None:
            raise PlanRefused(f"silence {silence} was made to end at {changed.ends_at:%H:%M:%SZ}; somebody changed it since")
        return Plan(
            action=self.name,
            summary=f"end silence {silence} for {_words(plan.intent['labels'])}",
            targets=plan.targets,
            intent={"ends": [silence], "labels": plan.intent["labels"]},
            changes=(Change(plan.targets[0].id, "silence", silence, None),),
            impact=Impact(touched=1),
            connection=plan.connection,
            noop=not lasting,
            undoes=True,
        )


# --- planning ----------------------------------------------------------------------------------------------------------------


def chosen(labels: Mapping[str, str], without: Sequence[str]) -> dict[str, str]:
    """Return the labels that a silence matches. Raises `PlanRefused` when none is left, or one can't be matched exactly.

    >>> chosen({"alertname": "SiteDown", "replica": "a"}, ["replica"])
    {'alertname': 'SiteDown'}
    """
    left = {name: value for name, value in labels.items() if name not in without}
    if not left:
        raise PlanRefused("no label is left to match: that would silence every alert there is")
    for name, value in left.items():
        if not LABEL.fullmatch(name):
            raise PlanRefused(f"{name!r} is no name of a label that every Alertmanager can match; leave it out by `without`")
        if not value:
            raise PlanRefused(f"label {name} is empty, which matches every alert that lacks it; leave it out by `without`")
    return left


def _bounded(params: SilenceParams, connection: AlertmanagerConnection) -> None:
    if params.for_ > connection.max_silence:
        asked, most = format_duration(params.for_), format_duration(connection.max_silence)
        raise PlanRefused(f"for {asked} is longer than {most}, the `max_silence` of connection {params.connection!r}")


def _words(labels: Mapping[str, str]) -> str:
    return ", ".join(f'{name}="{value}"' for name, value in sorted(labels.items()))


def target_of(connection: str, labels: Mapping[str, str]) -> Target:
    """Name what is silenced. The connection's scope may limit any label, by an entry `label_NAME`."""
    name = hashlib.sha256("\0".join(f"{name}={value}" for name, value in sorted(labels.items())).encode()).hexdigest()[:16]
    ident = f"alertmanager:{connection}/-/silence/{name}"
    return Target(ident, ident, {f"label_{name}": value for name, value in labels.items()})


async def _matching(peers: Peers, labels: Mapping[str, str]) -> int:
    """Count the alerts that have the labels, at whichever peers answer. Raises `TemporaryError` when none does."""
    path = alerts_path(narrow(labels))

    async def ask(url: str) -> set[str]:
        return {str(alert["fingerprint"]) for alert in await peers.read_list(url, path) if has_labels(alert["labels"], labels)}

    answers = await peers.whoever(ask)
    found = [answer for answer in answers.values() if not isinstance(answer, RemediatorError)]
    if not found:
        raise TemporaryError("; ".join(str(answer) for answer in answers.values()))
    return len(set().union(*found))


async def _answering(peers: Peers, labels: Mapping[str, str]) -> list[Listing]:
    """List the silences of all peers that answer. Raises `TemporaryError` when none does."""
    found, failed = await listings(peers, labels=labels)
    if not found:
        raise TemporaryError("; ".join(str(error) for error in failed))
    return found


def _marked(found: Sequence[Listing], *, author: str, mark: str) -> list[Silence]:
    """Return what was made for a step, what is in force first."""
    return sorted((one for listing in found for one in listing.silences if one.mark(author) == mark), key=lambda one: one.over)


def _holder(found: Sequence[Listing], silence: Silence) -> str:
    return next(one.url for one in found if silence in one.silences)


async def _made(peers: Peers, labels: Mapping[str, str], ctx: Context) -> list[Silence]:
    return _marked(await _answering(peers, labels), author=ctx.identity.name, mark=ctx.key)


def _plan(params: SilenceParams, labels: Mapping[str, str], *, mark: str, count: int, noop: bool = False) -> Plan:
    target = target_of(params.connection, labels)
    for_ = format_duration(params.for_)
    return Plan(
        action=SilenceAction.name,
        summary=f"let silence {params.prolongs} last for {for_} from now" if params.prolongs else f"silence {_words(labels)} for {for_}",
        targets=(target,),
        intent={
            "labels": dict(labels),
            "seconds": params.for_.total_seconds(),
            "mark": mark,
            "words": params.comment,
            "prolongs": params.prolongs,
        },
        changes=(Change(target.id, "silenced for", None, for_),),
        impact=Impact(touched=max(1, count)),
        connection=params.connection,
        warnings=() if count or params.prolongs else ("no alert has these labels now",),
        noop=noop,
    )


# --- making ------------------------------------------------------------------------------------------------------------------


async def _make(peers: Peers, plan: Plan, answered: Sequence[Listing]) -> Receipt:
    """Post it to one peer after the other until one has it. A lost answer ends the search: that peer may have it."""
    author, labels = peers.ctx.identity.name, dict(plan.intent["labels"])
    comment = comment_of(peers.ctx.values, author=author, mark=str(plan.intent["mark"]), words=str(plan.intent["words"]))
    refused: RemediatorError | None = None
    for listing in answered:
        wish = Wish(labels, listing.now, listing.now + timedelta(seconds=float(plan.intent["seconds"])), comment)
        try:
            silence = await post(peers, listing.url, wish)
        except OutcomeUnknown:
            raise
        except RemediatorError as error:
            refused = error
            continue
        return await _looked_at(peers, plan, silence, listing.url)
    raise refused or TemporaryError("no peer took it")


async def _looked_at(peers: Peers, plan: Plan, silence: str, url: str) -> Receipt:
    """Read what was made at the peer that made it: undoing compares with exactly that."""
    try:
        found = (await everywhere(peers, silence)).get(url)
    except TemporaryError as error:
        raise OutcomeUnknown(f"silence {silence} was made, and could not be read afterwards: {error}") from error
    if found is None:
        raise OutcomeUnknown(f"Alertmanager {url} took silence {silence} and does not have it")
    return _receipt(plan, silence, url, found)


def _receipt(plan: Plan, silence: str, url: str, found: Silence) -> Receipt:
    data = {"silence": silence, "peer": url, "ends_at": found.ends_at.isoformat(), "labels": dict(plan.intent["labels"])}
    return Receipt(f"silence {silence} is in force until {found.ends_at:%Y-%m-%d %H:%M:%SZ}", data, (plan.targets[0].id,))


def _ended_early(found: Silence, receipt: Receipt) -> bool:
    return found.ends_at < datetime.fromisoformat(str(receipt.data["ends_at"]))


# --- prolonging ----------------------------------------------------------------------------------------------------------------


async def _lasting(peers: Peers, silence: str, labels: Mapping[str, str]) -> tuple[str, Silence]:
    """Return a silence of ours that is in force, and a peer that has it. Raises `PlanRefused` when it is no such one."""
    known = {url: one for url, one in (await everywhere(peers, silence)).items() if one is not None}
    if any(one.over for one in known.values()) or not known:
        raise PlanRefused(f"silence {silence} is over: somebody ended it, or it has run its time; it is not made again")
    url, found = next(iter(known.items()))
    if not found.mark(peers.ctx.identity.name) or found.matchers != tuple(sorted(labels.items())):
        raise PlanRefused(f"silence {silence} is not the one that was made here: by {found.created_by!r}, for {found.matchers}")
    return url, found


async def _prolonging(peers: Peers, params: SilenceParams, labels: Mapping[str, str]) -> Plan:
    await _lasting(peers, params.prolongs, labels)
    return _plan(params, labels, mark=peers.ctx.key, count=1)


async def _prolong(peers: Peers, plan: Plan, silence: str) -> Receipt:
    """Let it end later, never earlier. Raises `PreconditionChanged` when it is over by now: it is not made again."""
    labels = dict(plan.intent["labels"])
    try:
        url, found = await _lasting(peers, silence, labels)
    except PlanRefused as error:
        raise PreconditionChanged(str(error)) from error
    listing = next((one for one in await _answering(peers, labels) if one.url == url), None)
    if listing is None:
        raise TemporaryError(f"Alertmanager {url} did not answer again")
    ends = max(found.ends_at, listing.now + timedelta(seconds=float(plan.intent["seconds"])))
    got = await post(peers, url, Wish(labels, found.starts_at, ends, found.comment, silence))
    if got != silence:
        # Somebody ended it in this very moment, and Alertmanager made another: that one must not stay.
        await end_everywhere(peers, [got])
        raise PreconditionChanged(f"silence {silence} was ended while it was to be prolonged")
    return await _looked_at(peers, plan, silence, url)


async def _reconcile_end(peers: Peers, plan: Plan) -> Reconciled:
    ids = [str(one) for one in plan.intent["ends"]]
    found = [one for silence in ids for one in (await everywhere(peers, silence)).values()]
    if any(one is not None and not one.over for one in found):
        return Reconciled(Settled.NOT_APPLIED, "it is still in force")
    return Reconciled(Settled.APPLIED, "it is ended", Receipt("it is ended", {"ended": ids}, (plan.targets[0].id,)))
