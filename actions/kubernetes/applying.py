"""Server-side apply of one object: what it would change and who owns that, the write, whether it happened, and the way back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from actions.kubernetes import notes, touched, writing
from actions.kubernetes.client import Client
from actions.kubernetes.disclosure import shown
from actions.kubernetes.errors import ApplyConflict, FieldConflict
from actions.kubernetes.fields import entries, owns
from actions.kubernetes.manifests import leaves
from actions.kubernetes.objects import OURS, ObjectReference, Thing, lowered, own_parts, settled
from actions.kubernetes.patches import ignored, unmentioned
from actions.kubernetes.paths import ABSENT, Absent, Place, at, differences, words
from actions.kubernetes.templates import images, normal, template_digest
from actions.kubernetes.workloads import require_observed
from remediator.action import Context
from remediator.errors import NotFound, PermanentError, PlanRefused, TemporaryError
from remediator.model import JSON, Change, canonical, digest

_MOST_LISTED = 10
_UNTYPED = "failed to create typed"
"""What servers that know no strict validation say of fields that are not in the schema, with a 500."""


@dataclass(frozen=True)
class Applied:
    """What applying one manifest would change."""

    reference: ObjectReference
    manifest: Mapping[str, Any]
    before: Thing | None
    """None where there is no such object: it would be made."""
    after: Mapping[str, Any]
    """Its own parts as they would be."""
    places: Sequence[Place]
    """Where it would differ; for an object that would be made, everything that the manifest says."""
    warnings: tuple[str, ...]

    @property
    def own(self) -> dict[str, Any]:
        """Its own parts as they are."""
        return own_parts(self.before.body) if self.before else {}

    @property
    def in_template(self) -> bool:
        """True when the Pod template of a workload would change, or the workload be made."""
        made_or_changed = self.before is None or any(place[:2] == ("spec", "template") for place in self.places)
        return self.reference.workload is not None and made_or_changed

    def changes(self) -> list[tuple[Place, JSON | Absent, JSON | Absent]]:
        """Return each place with what stands there before and after."""
        return [(place, at(self.own, place), at(self.after, place)) for place in self.places]

    @property
    def shrinks(self) -> bool:
        """True when there may be fewer Pods: a bound is lowered, or an autoscaler is made, which may take some away at once."""
        return lowered(self.changes()) if self.before else self.reference.kind.kind == "HorizontalPodAutoscaler"

    def told(self, target: str) -> list[Change]:
        """Return what people need to see."""
        return [Change(target, words(place), shown(place, before), shown(place, after)) for place, before, after in self.changes()]

    def intent(self) -> dict[str, JSON]:
        """Return what a plan's intent says about it."""
        final = {"template": template_digest(self.after["spec"]["template"])} if self.in_template else {}
        return {
            **self.reference.intent,
            "manifest": dict(self.manifest),
            "creates": self.before is None,
            "after": touched.left(self.after, self.places, self._was) if self.before else touched.noted(self.after, self.places),
            **final,
        }

    def precondition(self) -> dict[str, JSON]:
        """Return what must still be so when it is written."""
        workload = self.before.workload if self.before else None
        template = {"template": workload.template_digest} if workload is not None and self.in_template else {}
        return {"uid": self.before.uid if self.before else "", "touched": self._was, **template}

    @property
    def _was(self) -> list[JSON]:
        return touched.noted(self.own, self.places, meta=self.before.meta) if self.before else []


# --- planning ----------------------------------------------------------------------------------------------------------


async def rehearse(client: Client, ctx: Context, reference: ObjectReference, manifest: Mapping[str, Any], *, force: bool) -> Applied:
    """Let the server rehearse the apply of one manifest. Raises `PlanRefused` naming managers and fields of a conflict."""
    before = await read_thing(client, reference)
    if before is not None and "deletionTimestamp" in before.meta:
        raise PlanRefused(f"{reference} is being deleted")
    before = await settled(client, before) if before is not None else None
    body = _with_notes(manifest, notes.noted(ctx.key))
    try:
        made, taken = await _sent(client, ctx, reference, body, force=force, dry_run=True)
    except ApplyConflict as error:
        raise PlanRefused(conflict_report(reference, error.fields)) from error
    except TemporaryError as error:
        if _UNTYPED not in str(error):
            raise
        raise PlanRefused(f"{reference}: the server does not know these fields: {error}") from error
    after = own_parts(made)
    spoken = [(place, at(manifest, place)) for place in leaves(manifest)]
    if unknown := ignored([(place, None if wish is ABSENT else wish) for place, wish in spoken], after):
        raise PlanRefused(f"{reference}: the server leaves {listed(unknown)} out; it does not know that in {reference.api_version}")
    places = differences(own_parts(before.body), after) if before else [place for place, _ in spoken]
    warnings = _judged(before, after, places, spoken, manager=ctx.identity.name) if before else []
    found = Applied(reference, manifest, before, after, places, (*_taken(reference, taken, ctx), *warnings))
    _refuse_unsafe(found)
    return found


def conflict_report(reference: ObjectReference, fields: Sequence[FieldConflict]) -> str:
    """Return who owns which of the fields that an apply would change, in words."""
    owners: dict[str, list[str]] = {}
    for one in fields:
        owners.setdefault(one.manager or one.said, []).append(one.field)
    who = "; ".join(f"{manager} owns {', '.join(names[:_MOST_LISTED])}" for manager, names in owners.items())
    return f"{reference}: others own what would change: {who}. Leave those fields out, or set `force: true` to take them over"


async def _sent(
    client: Client, ctx: Context, reference: ObjectReference, body: Mapping[str, Any], *, force: bool, dry_run: bool = False
) -> tuple[dict[str, Any], tuple[FieldConflict, ...]]:
    """Apply, and return the object with the fields that were taken over. What this daemon set itself in another way is no conflict."""
    manager = ctx.identity.name
    try:
        return await client.apply(reference.path, body, manager=manager, dry_run=dry_run), ()
    except ApplyConflict as error:
        if not force and any(one.manager != manager for one in error.fields):
            raise
        return await client.apply(reference.path, body, manager=manager, force=True, dry_run=dry_run), error.fields


def _taken(reference: ObjectReference, fields: Sequence[FieldConflict], ctx: Context) -> list[str]:
    others = [one for one in fields if one.manager != ctx.identity.name]
    return [f"{reference}: takes {one.field} over from {one.manager or one.said}" for one in others]


def _judged(
    before: Thing, after: Mapping[str, Any], places: Sequence[Place], spoken: Sequence[tuple[Place, JSON | Absent]], *, manager: str
) -> list[str]:
    """Hold the changed places against what the manifest says. Raises `PlanRefused`; returns warnings."""
    own = own_parts(before.body)
    mentions = [(place, None if wish is ABSENT else wish) for place, wish in spoken]
    overwritten, added = unmentioned([(place, at(own, place) is not ABSENT) for place in places], mentions)
    given_up = [place for place in overwritten if at(after, place) is ABSENT and _is_ours(before, place, manager)]
    serious = [place for place in overwritten if place not in given_up and place[0] != "metadata"]
    if serious:
        raise PlanRefused(
            f"{before.reference}: the server would also change {listed(serious)}, which the manifest does not speak of "
            "(an admission webhook, perhaps)"
        )
    found = [f"{before.reference}: {words(place)} goes, as an earlier apply set it and this one does not" for place in given_up]
    return [*found, *(f"{before.reference}: the server adds {words(place)} by itself" for place in added[:_MOST_LISTED])]


def _is_ours(before: Thing, place: Place, manager: str) -> bool:
    """Tell whether an earlier apply of this daemon set a field: leaving it out takes it away."""
    path = tuple("*" if part.startswith("[") else part for part in place)
    mine = [entry for entry in entries(before.body) if entry.get("manager") == manager and entry.get("operation") == "Apply"]
    return any(owns(entry, path) for entry in mine)


def _refuse_unsafe(found: Applied) -> None:
    """Raise `PlanRefused` for another number of Pods, and for a template that would not roll out."""
    if found.before is None:
        return
    for place, before, after in found.changes():
        if place == ("spec", "replicas"):
            raise PlanRefused(
                f"{found.reference} has {before} replicas, and {after} would be another number: leave spec.replicas out of the manifest; "
                "kubernetes.scale sets it, which knows autoscalers and never shrinks by mistake"
            )
    workload = found.before.workload
    if workload is not None and found.in_template:
        require_observed(workload)
        writing.refuse_unreplaceable(workload)


def listed(places: Sequence[Place]) -> str:
    """Write some places for a message."""
    return ", ".join(words(place) for place in places[:_MOST_LISTED])


# --- the write ---------------------------------------------------------------------------------------------------------


async def read_thing(client: Client, reference: ObjectReference) -> Thing | None:
    """Read the object, None where there is none. Raises `PlanRefused` when the server does not offer its kind in that version."""
    try:
        return Thing(reference, await client.get(reference.path))
    except NotFound:
        return None
    except PermanentError as error:
        offered = await client.served(reference.kind.group)
        if reference.version in offered:
            raise
        group = reference.kind.group or "core"
        raise PlanRefused(f"{reference}: the server offers {group} in {', '.join(offered)}, not {reference.version}") from error


async def write(client: Client, ctx: Context, one: Mapping[str, Any], there: Thing | None, *, force: bool) -> dict[str, Any]:
    """Apply the manifest of one object of a plan, locked to the version that was read; return the object."""
    reference = ObjectReference.planned(one)
    annotations = {**_own_notes(there), **notes.noted(ctx.key), **await mark_for(client, ctx, one, there)}
    body = _with_notes(one["manifest"], annotations)
    if there is not None:
        # Both: a resourceVersion alone would let the server make the object anew if it went meanwhile.
        body["metadata"] |= {"uid": there.uid, "resourceVersion": there.resource_version}
    made, _ = await _sent(client, ctx, reference, body, force=force and there is not None)
    return made


def _own_notes(there: Thing | None) -> dict[str, str]:
    """Return the notes of this daemon that are there: the server takes away what an apply no longer says, and they would be forgotten."""
    return {} if there is None else {key: text for key, text in there.annotations.items() if key.startswith(OURS)}


def _with_notes(manifest: Mapping[str, Any], annotations: Mapping[str, str]) -> dict[str, Any]:
    meta = manifest["metadata"]
    return {**manifest, "metadata": {**meta, "annotations": {**(meta.get("annotations") or {}), **annotations}}}


async def mark_for(client: Client, ctx: Context, one: Mapping[str, Any], there: Thing | None) -> dict[str, str]:
    """Return the note about a changed template, which later readings of the workload's history need."""
    workload = there.workload if there is not None else None
    if workload is None or "template" not in one:
        return {}
    history = await writing.read_known(client, workload)
    wished = touched.restored(own_parts(workload.body), touched.sayable(one["after"]))
    adjusts = images(normal(wished["spec"]["template"])) == images(workload.template)
    mark = writing.new_mark(history, ctx, action="kubernetes.apply", template=wished["spec"]["template"], leaves=False, adjusts=adjusts)
    return replace(mark, template=one["template"]).written()  # what is hidden in the plan is missing in `wished`


def receipt_of(number: int, one: Mapping[str, Any], body: Mapping[str, Any], manager: str) -> dict[str, JSON]:
    """Return what a receipt says about one object that was written."""
    others = [entry for entry in entries(body) if entry.get("manager") != manager and (owns(entry, ("spec",)) or owns(entry, ("data",)))]
    return {
        "number": number,
        "uid": body["metadata"]["uid"],
        "created": bool(one["creates"]) and not others,
        "whole": essence(body),
        "after": one["after"],
        **({"template": one["template"]} if "template" in one else {}),
    }


def essence(body: Mapping[str, Any]) -> str:
    """Digest of what people wish of an object, its labels included: equal as long as nobody changed that."""
    own = own_parts(body)
    return digest(canonical({**own, "metadata": own["metadata"]["labels"]}).decode())
