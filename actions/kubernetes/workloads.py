"""Workloads and their revisions, as read from the API server.

A Deployment's revisions are its ReplicaSets, those of the other kinds are ControllerRevisions; here they are one shape.
"""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, Generic, TypeVar

from actions.kubernetes.client import Client
from actions.kubernetes.names import Kind, Reference
from actions.kubernetes.templates import essence, normal, template_digest
from remediator.errors import NotFound, PlanRefused, RemediatorError, TemporaryError

R = TypeVar("R")
CHANGE_CAUSE = "kubernetes.io/change-cause"
REVISION = "deployment.kubernetes.io/revision"
_PATIENCE = 3.0
_LOOK_AGAIN = 0.1
_REVISION_HISTORY = "deployment.kubernetes.io/revision-history"


@dataclass(frozen=True)
class AsRead(Generic[R]):
    """An object as it was read, and what every object says of itself."""

    reference: R
    body: Mapping[str, Any]

    @property
    def meta(self) -> Mapping[str, Any]:
        """Its metadata."""
        return self.body["metadata"]  # type: ignore[no-any-return]

    @property
    def uid(self) -> str:
        """Its identity: another object of the same name has another."""
        return str(self.meta["uid"])

    @property
    def resource_version(self) -> str:
        """The optimistic lock of one write."""
        return str(self.meta["resourceVersion"])

    @property
    def annotations(self) -> Mapping[str, str]:
        """Its annotations."""
        return self.meta.get("annotations") or {}


@dataclass(frozen=True)
class Workload(AsRead[Reference]):
    """A Deployment, StatefulSet or DaemonSet as it was read."""

    @property
    def spec(self) -> Mapping[str, Any]:
        """What is wished."""
        return self.body["spec"]  # type: ignore[no-any-return]

    @property
    def status(self) -> Mapping[str, Any]:
        """What its controller last published."""
        return self.body.get("status") or {}

    @property
    def desired(self) -> int:
        """How many Pods it shall have."""
        if self.reference.kind is Kind.DAEMONSET:
            return int(self.status.get("desiredNumberScheduled", 0))
        return int(self.spec.get("replicas", 1))

    @property
    def paused(self) -> bool:
        """True when a person holds its rollouts."""
        return bool(self.spec.get("paused", False))

    @property
    def observed(self) -> bool:
        """True when its controller has seen the present spec; everything in the status is older otherwise."""
        return int(self.status.get("observedGeneration", 0)) >= int(self.meta.get("generation", 0))

    @property
    def strategy(self) -> Mapping[str, Any]:
        """How Pods are replaced."""
        return self.spec.get("strategy") or self.spec.get("updateStrategy") or {}

    @cached_property
    def template(self) -> dict[str, Any]:
        """Its Pod template in normal form."""
        return normal(self.spec["template"])

    @cached_property
    def template_digest(self) -> str:
        """Digest of its template."""
        return template_digest(self.spec["template"])

    @cached_property
    def essence(self) -> str:
        """Digest of its template, restarts apart."""
        return essence(self.spec["template"])


@dataclass(frozen=True)
class Revision:
    """One template that a workload has had, with the object that keeps it."""

    name: str
    uid: str
    number: int
    """Moves: a revision that becomes current again gets the highest number."""
    template: Mapping[str, Any]
    """In normal form."""
    created: datetime
    touched: datetime | None
    """When its object was last written (scaled, renumbered), status apart; None when the server keeps no such record."""
    replicas: int
    """Pods it shall have; 0 for ControllerRevisions, which have none of their own."""
    again: bool
    """True when it became current more than once."""
    cause: str = ""
    owns_pods: bool = False

    @cached_property
    def template_digest(self) -> str:
        """Digest of its template."""
        return template_digest(self.template)

    @cached_property
    def essence(self) -> str:
        """Digest of its template, restarts apart."""
        return essence(self.template)


def parse_time(text: str) -> datetime:
    """Parse a Kubernetes timestamp. Raises ValueError."""
    return datetime.fromisoformat(text)


def selector_text(selector: Mapping[str, Any]) -> str:
    """Write a LabelSelector as the API's query takes it. Raises `PlanRefused` for an empty one: that would be every Pod.

    >>> selector_text({"matchLabels": {"app": "web"}, "matchExpressions": [{"key": "tier", "operator": "In", "values": ["a", "b"]}]})
    'app=web,tier in (a,b)'
    """
    terms = [f"{key}={value}" for key, value in sorted((selector.get("matchLabels") or {}).items())]
    for item in selector.get("matchExpressions") or ():
        key, values = item["key"], ",".join(item.get("values") or ())
        match item["operator"]:
            case "In":
                terms.append(f"{key} in ({values})")
            case "NotIn":
                terms.append(f"{key} notin ({values})")
            case "Exists":
                terms.append(key)
            case _:
                terms.append(f"!{key}")
    if not terms:
        raise PlanRefused("the workload's selector is empty: it would match every Pod in the namespace")
    return ",".join(terms)


def owned_by(item: Mapping[str, Any], uid: str) -> bool:
    """Tell whether the object's controller is the one with `uid`. Labels alone say nothing."""
    owners = item["metadata"].get("ownerReferences") or ()
    return any(owner.get("controller") and owner.get("uid") == uid for owner in owners)


async def read_workload(client: Client, reference: Reference) -> Workload:
    """Read one workload. Raises `NotFound` and what `Client.get` raises."""
    return Workload(reference, await client.get(reference.path))


async def find_workload(client: Client, reference: Reference) -> Workload:
    """Read the workload that a plan is for. Raises `PlanRefused` when it is going, and with the nearest names where there is none."""
    try:
        workload = await read_workload(client, reference)
    except NotFound as error:
        raise PlanRefused(f"{error}{await _nearest(client, reference)}") from error
    if "deletionTimestamp" in workload.meta:
        raise PlanRefused(f"{reference} is being deleted")
    return workload


async def _nearest(client: Client, reference: Reference) -> str:
    """Return a hint with the nearest names, or nothing where listing is not allowed or fails."""
    try:
        names = [item["metadata"]["name"] for item in await client.list(reference.collection)]
    except RemediatorError:
        return ""
    close = difflib.get_close_matches(reference.name, names, n=3, cutoff=0.5)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; namespace {reference.namespace} has {len(names)} {reference.kind.plural}, none of a similar name"


async def read_history(client: Client, workload: Workload) -> tuple[Revision, ...]:
    """Read the revisions that the workload owns, oldest number first."""
    reference = workload.reference
    query = {"labelSelector": selector_text(workload.spec["selector"])}
    if reference.kind is Kind.DEPLOYMENT:
        items = await client.list(f"/apis/apps/v1/namespaces/{reference.namespace}/replicasets", query)
        found = [_of_replicaset(item) for item in items if owned_by(item, workload.uid)]
    else:
        items = await client.list(f"/apis/apps/v1/namespaces/{reference.namespace}/controllerrevisions", query)
        found = [_of_controllerrevision(item) for item in items if owned_by(item, workload.uid)]
    return tuple(sorted(found, key=lambda revision: (revision.number, revision.created)))


def _of_replicaset(item: Mapping[str, Any]) -> Revision:
    meta = item["metadata"]
    annotations = meta.get("annotations") or {}
    number = annotations.get(REVISION, "")
    return Revision(
        name=meta["name"],
        uid=meta["uid"],
        number=int(number) if number.isdigit() else 0,
        template=normal(item["spec"]["template"]),
        created=parse_time(meta["creationTimestamp"]),
        touched=_touched(meta),
        replicas=int(item["spec"].get("replicas", 1)),
        again=bool(annotations.get(_REVISION_HISTORY)),
        cause=annotations.get(CHANGE_CAUSE, ""),
        owns_pods=True,
    )


def _of_controllerrevision(item: Mapping[str, Any]) -> Revision:
    meta = item["metadata"]
    created, touched = parse_time(meta["creationTimestamp"]), _touched(meta)
    return Revision(
        name=meta["name"],
        uid=meta["uid"],
        number=int(item["revision"]),
        template=normal(item["data"]["spec"]["template"]),
        created=created,
        touched=touched,
        replicas=0,
        # The controller writes one again only to give it a higher number; without a record, that can't be excluded.
        again=touched is None or touched > created,
        cause=(meta.get("annotations") or {}).get(CHANGE_CAUSE, ""),
    )


def _touched(meta: Mapping[str, Any]) -> datetime | None:
    times = [entry["time"] for entry in meta.get("managedFields") or () if entry.get("time") and not entry.get("subresource")]
    return max(map(parse_time, times), default=None)


def template_touched(workload: Workload) -> datetime | None:
    """Return when somebody who owns fields of the template last wrote the workload: at or after the last template change."""
    times = []
    for entry in workload.meta.get("managedFields") or ():
        owns = "f:template" in ((entry.get("fieldsV1") or {}).get("f:spec") or {})
        if owns and entry.get("time") and not entry.get("subresource"):
            times.append(parse_time(entry["time"]))
    return max(times, default=None)


async def read_pods(client: Client, workload: Workload, revisions: Sequence[Revision] = ()) -> list[dict[str, Any]]:
    """Read the Pods that the workload owns, through its ReplicaSets where it is a Deployment.

    With `revisions` only the Pods of those. Found by selector and kept by owner: a Pod that merely wears the labels is not one.
    """
    namespace = workload.reference.namespace
    query = {"labelSelector": selector_text(workload.spec["selector"])}
    pods = await client.list(f"/api/v1/namespaces/{namespace}/pods", query)
    if workload.reference.kind is not Kind.DEPLOYMENT:
        mine = [pod for pod in pods if owned_by(pod, workload.uid)]
        return [pod for pod in mine if not revisions or _is_of(pod, revisions)]
    sets = revisions or await read_history(client, workload)
    return [pod for pod in pods if any(owned_by(pod, revision.uid) for revision in sets)]


def _is_of(pod: Mapping[str, Any], revisions: Sequence[Revision]) -> bool:
    """Tell whether a StatefulSet's or DaemonSet's Pod has one of the revisions: its label is their name, or the end of it."""
    label = (pod["metadata"].get("labels") or {}).get("controller-revision-hash", "")
    return bool(label) and any(revision.name == label or revision.name.endswith(f"-{label}") for revision in revisions)


async def until_observed(client: Client, workload: Workload) -> Workload:
    """Return the workload as it is once its controller has seen its spec; as it is after three seconds otherwise.

    Controllers take milliseconds: a change a moment ago, an earlier step's for instance, is no reason to give up.
    """
    waited = 0.0
    while not workload.observed and waited < _PATIENCE:
        await asyncio.sleep(_LOOK_AGAIN)
        waited += _LOOK_AGAIN
        workload = await read_workload(client, workload.reference)
    return workload


def require_observed(workload: Workload) -> None:
    """Raise `TemporaryError` while the controller has not seen the present spec: nothing can be said about it yet."""
    if not workload.observed:
        seen, generation = workload.status.get("observedGeneration", 0), workload.meta.get("generation", 0)
        raise TemporaryError(f"{workload.reference}: its controller has seen generation {seen} of {generation}; try again shortly")
