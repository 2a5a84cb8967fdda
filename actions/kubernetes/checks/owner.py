"""`kubernetes.owner`: who would put a change back, when, and whether that one is suspended, by whom and since when."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from actions.kubernetes import gitops, owned
from actions.kubernetes.checks.failing import told
from actions.kubernetes.checks.places import connect_within
from actions.kubernetes.connection import KubernetesConnection
from actions.kubernetes.gitops import Reconciler, find_reconciler
from actions.kubernetes.owners import Owner, owner_of
from actions.kubernetes.suspension import last_written, meddler, read_note
from remediator.action import Check, Context, Fact, FactType, Permission
from remediator.errors import NotFound
from remediator.model import Value


class OwnerParams(owned.OwnedParams):
    """Which object, and which of its fields."""

    field: str = Field(
        "metadata",
        pattern=r"^[A-Za-z][A-Za-z.]*$",
        max_length=100,
        description="template, replicas, env, resources, data, or another field of spec; by default the object as a whole",
    )


_FACTS = {
    "found": (FactType.BOOL, "whether there is such an object; without it nothing else is known"),
    "owner_found": (FactType.BOOL, "whether somebody else owns the field"),
    "owner": (FactType.STRING, "who: Argo CD, Flux, Helm, or the kind and name of a controller"),
    "evidence": (FactType.STRING, "what says so: a label, an annotation, a field manager, a controller reference"),
    "reconciles": (FactType.BOOL, "whether it puts its own state back by itself; suspended or not"),
    "when": (FactType.STRING, "when it would do so now"),
    "object": (FactType.STRING, "what tells a GitOps controller what to do: its kind, namespace and name"),
    "suspended": (FactType.BOOL, "whether that one does not act by itself now"),
    "suspended_by_us": (FactType.BOOL, "whether a step of ours suspended it, and nobody has changed it since"),
    "suspended_since": (FactType.TIMESTAMP, "when our step suspended it"),
    "suspended_until": (FactType.TIMESTAMP, "until when that was meant to last; nothing resumes by itself"),
    "overdue": (FactType.BOOL, "whether that time has passed"),
    "in_sync": (FactType.BOOL, "whether the cluster is as the source says, by a judgement after the last change; Flux never says so"),
}


class OwnerCheck(Check[OwnerParams]):
    """Read who else owns a field of an object, and whether that one is suspended.

    After a remedy that acted through Argo CD or Flux, a rule on their own metrics (`argocd_app_info{autosync_enabled="false"}`,
    `gotk_resource_info{suspended="true"}`) asks this check, and resumes or pages.
    """

    name: ClassVar[str] = "kubernetes.owner"
    Params: ClassVar[type[Any]] = OwnerParams
    connection = KubernetesConnection
    connection_field: ClassVar[str] = "cluster"
    facts: ClassVar[Mapping[str, Fact]] = {name: Fact(kind, text) for name, (kind, text) in _FACTS.items()}
    permissions: ClassVar[tuple[Permission, ...]] = (*owned.READ, *gitops.READ)
    example: ClassVar[Mapping[str, Any]] = {"cluster": "production", "namespace": "shop", "deployment": "web", "field": "template"}

    async def run(self, params: OwnerParams, ctx: Context) -> Mapping[str, Value]:
        """Look once. Raises `CheckFailed`."""
        with told(self.name):
            try:
                body = await owned.read_owned(await connect_within(ctx, params), params)
            except NotFound:
                return {"found": False}
            owner = owner_of(body, ("metadata",) if params.field == "metadata" else params.field)
            if owner is None:
                return {"found": True, "owner_found": False}
            facts: dict[str, Value] = {"found": True, "owner_found": True, **_of(owner)}
            if owner.gitops and owner.place is not None:
                _, reconciler = await find_reconciler(ctx, params.cluster, owner, of=body)
                facts |= _suspension(reconciler, body, ctx)
            return facts


def _of(owner: Owner) -> dict[str, Value]:
    return {"owner": owner.name, "evidence": owner.evidence, "reconciles": owner.reconciles, "when": owner.when}


def _suspension(found: Reconciler, body: Mapping[str, Any], ctx: Context) -> dict[str, Value]:
    facts: dict[str, Value] = {"object": str(found), "suspended": found.suspended, "when": found.when}
    note = read_note(found)
    ours = note is not None and found.switch == found.off and meddler(found) is None
    facts["suspended_by_us"] = ours
    if note is not None and ours:
        facts |= {"suspended_since": note.at, "suspended_until": note.until, "overdue": ctx.now > note.until}
    since = last_written(found, body)
    synced = found.in_sync(since=since) if since is not None else None
    return facts if synced is None else {**facts, "in_sync": synced}
