"""Suspending Argo CD and Flux while something is fixed, resuming exactly that, and acting only in between (`docs/adr/0008`).

The note on the owner's own object, written together with the switch, says whose step suspended it, what was there before, and
until when that was meant to last. It is the only evidence: what carries no note of ours is never resumed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from pydantic import TypeAdapter, ValidationError

from actions.kubernetes import notes, writing
from actions.kubernetes.connection import connect
from actions.kubernetes.fields import Path, entries, owns, written
from actions.kubernetes.gitops import Reconciler, find_reconciler, read_reconciler
from actions.kubernetes.owners import OnOwner, Owner, Place, named, owner_of, refusal
from actions.kubernetes.workloads import Workload, parse_time
from remediator.action import Context, Reconciled, Settled
from remediator.errors import NotFound, PlanRefused, PreconditionChanged, RemediatorError, TemporaryError
from remediator.model import JSON, Change, Health, Impact, Plan, Receipt, Verdict, canonical, digest, to_json

ANNOTATION = "remediator.dev/suspended"
_NOTE_PATH: Path = ("metadata", "annotations", ANNOTATION)
_BUSY_AGAIN = timedelta(seconds=10)


@dataclass(frozen=True)
class Note:
    """Our suspension of an owner."""

    key: str
    """The step that suspended it."""
    at: datetime
    until: datetime
    """From then on somebody should wonder why it is still suspended. Nothing happens by itself."""
    was: JSON
    """The switch before: the automated sync policy, or `suspend`; None where nothing was said."""
    rest: str = ""
    """Digest of what else the owner's spec said then."""

    def annotation(self) -> dict[str, str | None]:
        """Return the annotation to write."""
        return {ANNOTATION: canonical(to_json(self)).decode()}


_NOTE = TypeAdapter(Note)


def read_note(found: Reconciler) -> Note | None:
    """Return our note, or None where there is none or somebody spoiled it."""
    text = found.annotations.get(ANNOTATION)
    if text is None:
        return None
    try:
        return _NOTE.validate_python(json.loads(text))
    except (ValueError, ValidationError):
        return None


def last_written(found: Reconciler, body: Mapping[str, Any]) -> datetime | None:
    """Return when our note or anything of the object itself was last written, by the server's clock; None where it does not say."""
    mine = [entry for entry in entries(found.body) if owns(entry, _NOTE_PATH)]
    its = [entry for entry in entries(body) if not entry.get("subresource") and set(entry.get("fieldsV1") or {}) - {"f:status"}]
    times = [parse_time(entry["time"]) for entry in (*mine, *its) if entry.get("time")]
    return max(times) if mine and times else None


def _rest(found: Reconciler) -> str:
    """Return the digest of an owner's spec without its switch."""
    spec = dict(found.body.get("spec") or {})
    policy = {key: value for key, value in (spec.pop("syncPolicy", None) or {}).items() if key != "automated"}
    return digest({"spec": {key: value for key, value in spec.items() if key != "suspend"}, "policy": policy})


def meddler(found: Reconciler) -> str | None:
    """Return who has changed an owner since our note was written, so that its being suspended may be their wish; None for nobody.

    Flux' switch has an owner of its own, which tells exactly. Argo CD's is not there while it is off, so everybody counts who wrote
    the Application's spec since; the server notes that by the second, so what it says is compared as well.
    """
    mine = next((entry for entry in entries(found.body) if owns(entry, _NOTE_PATH)), None)
    if mine is None:
        return "somebody (the server does not say who wrote our note)"
    others = [entry for entry in entries(found.body) if entry is not mine]
    if not found.is_argo:
        set_it = [str(entry.get("manager")) for entry in others if owns(entry, found.switch_path)]
        return None if owns(mine, found.switch_path) and not set_it else (*set_it, "somebody")[0]
    note = read_note(found)
    if note is not None and note.rest and note.rest != _rest(found):
        return "somebody"
    since = mine.get("time", "")
    wrote = [entry for entry in others if owns(entry, ("spec",)) and entry.get("time", "") > since]
    return str(wrote[0].get("manager")) if wrote else None


# --- acting through an owner -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Leave:
    """That an action may change a field, and on what terms."""

    warnings: tuple[str, ...] = ()
    through: Mapping[str, JSON] | None = None
    """The owner that must be suspended at the moment of the write; goes into the plan's intent, for `require_leave`."""

    @property
    def intent(self) -> dict[str, JSON]:
        """Return what belongs into the plan's intent."""
        return {} if self.through is None else {"through": dict(self.through)}


def kept_leave(plan: Plan) -> Leave:
    """Return the terms of a plan for its way back: whom it was done through is suspended then too, or the way back is refused."""
    return Leave(through=plan.intent.get("through"))


async def ask_owner(
    ctx: Context,
    cluster: str,
    thing: Workload | Mapping[str, Any],
    field: str | Path,
    *,
    on_owner: OnOwner,
) -> Leave:
    """Find out whether somebody else owns `field`, and answer as `on_owner` says. Reads only.

    Raises `PlanRefused` naming who would put the change back and when; with `through`, where the owner can't be suspended.
    """
    owner = owner_of(thing, field)
    if owner is None:
        return Leave()
    if on_owner is OnOwner.THROUGH:
        return await _through(ctx, cluster, thing, owner)
    when = await _when(ctx, cluster, thing, owner)
    if on_owner is OnOwner.REFUSE:
        raise PlanRefused(refusal(thing, field, owner, when=when))
    return Leave((f"{owner} would put it back {when}",))


async def ask_owners(ctx: Context, cluster: str, thing: Workload | Mapping[str, Any], paths: Sequence[Path], *, on_owner: OnOwner) -> Leave:
    """Ask for several fields of one object, as `ask_owner` does for one; an object has one GitOps owner."""
    leaves = [await ask_owner(ctx, cluster, thing, path, on_owner=on_owner) for path in paths]
    through = next((leave.through for leave in leaves if leave.through is not None), None)
    return Leave(tuple(dict.fromkeys(words for leave in leaves for words in leave.warnings)), through)


async def _when(ctx: Context, cluster: str, thing: Workload | Mapping[str, Any], owner: Owner) -> str:
    """Return when the owner would put its state back; by what it says itself, where that can be read."""
    if not owner.gitops:
        return owner.when
    try:
        _, found = await find_reconciler(ctx, cluster, owner, of=_body(thing))
    except RemediatorError:
        return owner.when
    return found.when


async def _through(ctx: Context, cluster: str, thing: Workload | Mapping[str, Any], owner: Owner) -> Leave:
    if not owner.gitops:
        if not owner.reconciles:
            return Leave((f"{owner} puts its own state back {owner.when}",))
        raise PlanRefused(f"{owner} can't be suspended: change it there, or set `owner: ignore` to act all the same")
    home, found = await find_reconciler(ctx, cluster, owner, of=_body(thing))
    through = {"cluster": home, "word": found.place.word, "namespace": found.place.namespace, "name": found.place.name, "uid": found.uid}
    return Leave((_terms(found, read_note(found), ctx),), through)


def _terms(found: Reconciler, note: Note | None, ctx: Context) -> str:
    if not found.suspended:
        return f"acts only while {found} is suspended, by an earlier step kubernetes.suspend_owner"
    if note is None:
        return f"{found} was suspended by somebody else: the change stands until they let it act again"
    if not is_of_run(note, ctx):
        return f"{found} has been suspended since {note.at:%Y-%m-%d %H:%M} UTC by another run: the change stands until it is resumed"
    return f"{found} is suspended by this run: the change stands until it is resumed"


async def require_leave(ctx: Context, plan: Plan) -> None:
    """Compare right before a write: the owner that the plan acts through is suspended, and at rest.

    Raises `PreconditionChanged` when it is not, `TemporaryError` while it still writes what it had begun. Does nothing for a plan
    that acts through nobody.
    """
    through = plan.intent.get("through")
    if through is None:
        return
    place = Place(through["word"], through["namespace"], through["name"])
    found = await _reread(ctx, through["cluster"], place, uid=through["uid"])
    if not found.suspended:
        raise PreconditionChanged(f"{found} is not suspended and would put the change back {found.when}: suspend it by an earlier step")
    if found.busy:
        raise TemporaryError(f"{found} is suspended, but a sync that had begun is not over; try again shortly", delay=_BUSY_AGAIN)


def _body(thing: Workload | Mapping[str, Any]) -> Mapping[str, Any]:
    return thing.body if isinstance(thing, Workload) else thing


async def _reread(ctx: Context, cluster: str, place: Place, *, uid: str) -> Reconciler:
    try:
        found = await read_reconciler(await connect(ctx, cluster), place)
    except NotFound as error:
        raise PreconditionChanged(f"{place} is gone: {error}") from error
    if found.uid != uid:
        raise PreconditionChanged(f"{place} is another object now (uid {found.uid}, planned {uid})")
    return found


def gitops_owner(body: Mapping[str, Any]) -> Owner:
    """Return the GitOps controller that manages an object. Raises `PlanRefused` where there is none."""
    owner = owner_of(body, ("metadata",))
    if owner is None or not owner.gitops:
        who = "nobody that can be suspended" if owner is None else f"{owner}, which can't be suspended"
        raise PlanRefused(f"{named(body)} is managed by {who}")
    return owner


# --- the two writes ----------------------------------------------------------------------------------------------------


def suspending(action: str, cluster: str, found: Reconciler, *, lasts: timedelta = timedelta(), note: Note | None = None) -> Plan:
    """Plan to suspend an owner; with `note`, which takes back its resumption, exactly as that one says."""
    target = found.target(cluster)
    what = "the automated sync of " if found.is_argo else ""
    return Plan(
        action=action,
        summary=f"Suspend {what}{found}, until a later step or a person resumes it",
        targets=(target,),
        intent={
            **_place(found),
            "to": "suspended",
            "was": found.switch,
            "lasts": lasts.total_seconds(),
            "note": to_json(note) if note is not None else None,
        },
        precondition={"uid": found.uid, "switch": found.switch},
        changes=(Change(target.id, written(found.switch_path), found.switch, found.off),),
        impact=Impact(touched=1),
        connection=cluster,
        warnings=(f"nothing that {found} manages is brought up to date meanwhile",),
        undoes=note is not None,
        leaves=f"{what}{found} on {cluster} is suspended",
    )


def resuming(action: str, cluster: str, found: Reconciler, note: Note | None, *, undoes: bool = False) -> Plan:
    """Plan to resume what `note` says; without one, what an earlier step of this run will have suspended by then."""
    was = note.was if note is not None else found.switch
    target = found.target(cluster)
    return Plan(
        action=action,
        summary=f"Resume {found}" + ("" if note is not None else ", if an earlier step of this run has suspended it by then"),
        targets=(target,),
        intent={**_place(found), "to": "resumed", "was": was, "note": to_json(note) if note is not None else None},
        precondition={"uid": found.uid},
        changes=(Change(target.id, written(found.switch_path), found.off, was),),
        impact=Impact(touched=1),
        connection=cluster,
        undoes=undoes,
    )


def nothing_to_do(action: str, cluster: str, found: Reconciler, why: str, *, undoes: bool = False) -> Plan:
    """Plan nothing, and say why."""
    target, intent = found.target(cluster), {**_place(found), "to": "as it is"}
    return Plan(action, why, (target,), intent, {"uid": found.uid}, connection=cluster, noop=True, undoes=undoes)


def _place(found: Reconciler) -> dict[str, JSON]:
    return {"word": found.place.word, "namespace": found.place.namespace, "name": found.place.name}


async def rehearse(ctx: Context, cluster: str, found: Reconciler, note: Note | None = None) -> None:
    """Let the server check the write without making it: a suspension, or with `note` its end."""
    client = await connect(ctx, cluster)
    if note is None:
        body = found.switched(found.off, Note(ctx.key, ctx.now, ctx.now, found.switch).annotation(), locked=False)
    else:
        body = found.switched(note.was, {ANNOTATION: None}, locked=False)
    await client.patch(found.path, body, dry_run=True)  # not locked: its controller writes its status all the time


async def planned(plan: Plan, ctx: Context) -> Reconciler:
    """Read the owner that a plan is for. Raises `PreconditionChanged` when it is gone or another one."""
    place = Place(plan.intent["word"], plan.intent["namespace"], plan.intent["name"])
    return await _reread(ctx, plan.connection, place, uid=plan.targets[0].uid)


async def apply_switch(plan: Plan, ctx: Context) -> Receipt:
    """Compare the owner with the plan, then set switch and note in one write locked by resourceVersion."""
    if plan.noop:
        return Receipt(plan.summary)
    write = _suspend if plan.intent["to"] == "suspended" else _resume
    return await writing.until_no_conflict(lambda: write(plan, ctx), ctx)


async def _suspend(plan: Plan, ctx: Context) -> Receipt:
    found = await planned(plan, ctx)
    there, note = read_note(found), _planned_note(plan)
    if note is None:
        now = ctx.now
        note = Note(ctx.key, now, now + timedelta(seconds=plan.intent["lasts"]), plan.intent["was"])
    if there is not None and there.key == note.key and found.suspended:
        return _receipt(plan, there)
    if found.switch != plan.precondition["switch"]:
        raise PreconditionChanged(f"{found}: somebody changed {written(found.switch_path)} since the plan was made")
    note = replace(note, rest=_rest(found))
    client = await connect(ctx, plan.connection)
    await client.patch(found.path, found.switched(found.off, note.annotation()))
    return _receipt(plan, note)


async def _resume(plan: Plan, ctx: Context) -> Receipt:
    found = await planned(plan, ctx)
    note, wanted = read_note(found), _planned_note(plan)
    if wanted is not None and note is None and found.switch == wanted.was:
        return _receipt(plan, wanted)
    if wanted is None and (note is None or not is_of_run(note, ctx)):
        return Receipt(f"{found} was not suspended by this run and stays as it is", {"note": None})
    if note is None or (wanted is not None and note.key != wanted.key):
        raise PreconditionChanged(f"{found}: the note of our suspension is gone or another one since the plan was made")
    refuse_meddled(found, error=PreconditionChanged)
    client = await connect(ctx, plan.connection)
    await client.patch(found.path, found.switched(note.was, {ANNOTATION: None}))
    return _receipt(plan, note)


def refuse_meddled(found: Reconciler, *, error: type[RemediatorError] = PlanRefused) -> None:
    """Raise `error` unless an owner that carries our note is just as we left it: what a person suspended is never resumed."""
    if found.switch != found.off:
        raise error(f"{found}: somebody changed {written(found.switch_path)} since we suspended it; it is theirs now")
    who = meddler(found)
    if who is not None:
        raise error(f"{found}: {who} changed it since we suspended it, so that it is suspended may be their wish; resume it by hand")


def _planned_note(plan: Plan) -> Note | None:
    return _parsed(plan.intent["note"])


def note_of(receipt: Receipt) -> Note | None:
    """Return the note that a step wrote or took away, None where it did neither."""
    return _parsed(receipt.data.get("note"))


def _parsed(value: JSON) -> Note | None:
    return None if value is None else _NOTE.validate_python(value)


def is_of_run(note: Note, ctx: Context) -> bool:
    """Tell whether a step of this very run wrote the note."""
    return notes.run_of(note.key) == notes.run_of(ctx.key)


def _receipt(plan: Plan, note: Note) -> Receipt:
    return Receipt(plan.summary, {"note": to_json(note), "to": plan.intent["to"]}, (plan.targets[0].id,))


async def reconcile_switch(plan: Plan, ctx: Context) -> Reconciled:
    """Tell from switch and note, which one write sets together, whether it took effect."""
    try:
        found = await planned(plan, ctx)
    except PreconditionChanged as error:
        return Reconciled(Settled.UNKNOWN, str(error))
    suspends = plan.intent["to"] == "suspended"
    return (_reconcile_suspension if suspends else _reconcile_resumption)(plan, ctx, found)


def _reconcile_suspension(plan: Plan, ctx: Context, found: Reconciler) -> Reconciled:
    note, wanted = read_note(found), _planned_note(plan)
    if note is not None and note.key == (wanted.key if wanted is not None else ctx.key):
        return Reconciled(Settled.APPLIED, f"{found} carries this step's note", _receipt(plan, note))
    if found.switch == plan.precondition["switch"]:
        return Reconciled(Settled.NOT_APPLIED, f"{found} is not suspended and has no note of this step")
    return Reconciled(Settled.UNKNOWN, f"{found} was changed by somebody else")


def _reconcile_resumption(plan: Plan, ctx: Context, found: Reconciler) -> Reconciled:
    note, wanted = read_note(found), _planned_note(plan)
    if note is not None and (note.key == wanted.key if wanted is not None else is_of_run(note, ctx)):
        return Reconciled(Settled.NOT_APPLIED, f"{found} still carries the note of its suspension")
    if note is None and (wanted is None or found.switch == wanted.was):
        touched = (plan.targets[0].id,) if found.switch == plan.intent["was"] else ()
        receipt = Receipt(plan.summary, {"note": plan.intent["note"], "to": "resumed"}, touched)
        return Reconciled(Settled.APPLIED, f"{found} carries no note of ours any more", receipt)
    return Reconciled(Settled.UNKNOWN, f"{found} was changed by somebody else")


async def verify_switch(plan: Plan, receipt: Receipt, ctx: Context) -> Verdict:
    """Read once whether the owner is as this step left it, and at rest if it was suspended."""
    try:
        found = await planned(plan, ctx)
    except PreconditionChanged as error:
        return Verdict(Health.UNKNOWN, str(error))
    if not receipt.touched:
        return Verdict(Health.HEALTHY, receipt.message)
    if plan.intent["to"] == "resumed":
        well = found.switch == plan.intent["was"] and read_note(found) is None
        return Verdict(Health.HEALTHY if well else Health.UNKNOWN, f"{found} " + ("acts again" if well else "was changed after this step"))
    if not found.suspended:
        return Verdict(Health.UNKNOWN, f"{found} is not suspended any more: somebody let it act again")
    if found.busy:
        return Verdict(Health.UNKNOWN, f"{found} is suspended, but a sync that had begun is not over")
    return Verdict(Health.HEALTHY, f"{found} is suspended and at rest")
