"""Which Pods a check is about, and reading them page by page.

Thousands of Pods are never kept at once: a page is turned into what the facts need before the next is read.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import Field, StringConstraints, model_validator

from actions.kubernetes.client import Client
from actions.kubernetes.names import LONGEST_NAME, NAME, ClusterParams, Kind, Name, Reference
from actions.kubernetes.permissions import HISTORY, PODS, on_workloads
from actions.kubernetes.workloads import read_workload, selector_text
from remediator.action import Code, Permission
from remediator.errors import CheckFailed, NotFound

PAGE = 200
"""Objects of one page: two megabytes of large Pods."""
MOST_OBJECTS = 10_000

_OWNER = rf"^({'|'.join(kind.word for kind in Kind)})/{NAME}$"
_LABEL_VALUE = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_NAME = re.compile(NAME)
_PLACE = re.compile(r"\{(\w+)\}")

SELECTION: tuple[Permission, ...] = (*on_workloads("get", why="read the owner's selector"), *HISTORY[:1], *PODS)
"""What it takes to find the Pods."""


def is_name(text: str) -> bool:
    """Tell whether an object can be called so: a name that another object refers to must not lead a path anywhere else.

    >>> is_name("web-secrets"), is_name("../../kube-system/secrets/admin")
    (True, False)
    """
    return len(text) <= LONGEST_NAME and _NAME.fullmatch(text) is not None


def places(selector: str) -> frozenset[str]:
    """Return the names of a selector's places."""
    return frozenset(_PLACE.findall(selector))


def filled(selector: str, args: Mapping[str, str]) -> str:
    """Return a label selector with its `{name}` places filled. Raises ValueError for values that aren't label values, and for nothing.

    >>> filled("app={app},tier=web", {"app": "shop"})
    'app=shop,tier=web'
    """
    if places(selector) != args.keys():
        raise ValueError(f"the selector's places {sorted(places(selector))} and args {sorted(args)} differ")
    for name, value in args.items():
        if not _LABEL_VALUE.fullmatch(value):
            raise ValueError(f"args.{name}: {value!r} is not a label value")
    if not selector.strip(" ,"):
        raise ValueError("an empty selector would match everything")
    return _PLACE.sub(lambda place: args[place[1]], selector)


class SelectionParams(ClusterParams):
    """Which Pods: those a workload owns (`owner: deployment/web`), those a label selector matches, or one by name."""

    owner: Annotated[str, StringConstraints(pattern=_OWNER)] | None = Field(None, description="KIND/NAME of the workload")
    selector: Code | None = Field(None, min_length=1, description="label selector; `{name}` stands for the value of `args`")
    args: Mapping[str, str] = Field(default_factory=dict, description="values for places: label values")
    pod: Name | None = Field(None, description="name of one Pod")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if sum(way is not None for way in (self.owner, self.selector, self.pod)) != 1:
            raise ValueError("set exactly one of owner, selector and pod")
        if len((self.owner or "").partition("/")[2]) > LONGEST_NAME:
            raise ValueError(f"owner: a name has at most {LONGEST_NAME} characters")
        if self.selector is not None or self.selector_args:
            filled(self.selector or "", self.selector_args)
        return self

    @property
    def selector_args(self) -> Mapping[str, str]:
        """Values for the selector's places: all of `args`, unless a check has other places too."""
        return self.args

    @property
    def reference(self) -> Reference | None:
        """The workload that is named as owner."""
        word, _, name = (self.owner or "").partition("/")
        return Reference(Kind.of(word), self.namespace, name) if self.owner else None


@dataclass(frozen=True)
class Selection:
    """Pods of a namespace: what to ask the server for, and whose to keep of its answer."""

    namespace: str
    query: Mapping[str, str]
    owners: frozenset[str] | None = None
    """Uids of their controllers; None: of whomever."""

    async def pods(self, client: Client) -> AsyncIterator[Mapping[str, Any]]:
        """Read the Pods one after the other. Raises as `pages`."""
        if self.owners is not None and not self.owners:
            return
        async for pod in objects(client, f"/api/v1/namespaces/{self.namespace}/pods", self.query):
            if self.owners is None or _controller(pod) in self.owners:
                yield pod


def _controller(item: Mapping[str, Any]) -> str | None:
    owners = item["metadata"].get("ownerReferences") or ()
    return next((owner.get("uid") for owner in owners if owner.get("controller")), None)


async def select(client: Client, params: SelectionParams) -> Selection | None:
    """Return which Pods `params` mean, None when the workload named by `owner` is not there.

    A workload's Pods are found by its selector and kept by owner reference: a Pod that merely wears the labels is not one.
    """
    reference = params.reference
    if params.selector is not None:
        return Selection(params.namespace, {"labelSelector": filled(params.selector, params.selector_args)})
    if reference is None:
        return Selection(params.namespace, {"fieldSelector": f"metadata.name={params.pod}"})
    try:
        workload = await read_workload(client, reference)
    except NotFound:
        return None
    query = {"labelSelector": selector_text(workload.spec["selector"])}
    if reference.kind is not Kind.DEPLOYMENT:
        return Selection(params.namespace, query, frozenset((workload.uid,)))
    sets = objects(client, f"/apis/apps/v1/namespaces/{params.namespace}/replicasets", query)
    owners = frozenset([item["metadata"]["uid"] async for item in sets if _controller(item) == workload.uid])
    return Selection(params.namespace, query, owners)


async def objects(client: Client, path: str, query: Mapping[str, str] | None = None) -> AsyncIterator[dict[str, Any]]:
    """Read a collection's objects, holding one page at a time. Raises as `Client.get`, and `CheckFailed` beyond 10,000 objects."""
    more: dict[str, str] = {}
    for _ in range(MOST_OBJECTS // PAGE):
        page = await client.get(path, {**(query or {}), "limit": str(PAGE), **more})
        items, token = page.pop("items", None) or [], page.get("metadata", {}).get("continue")
        del page
        items.reverse()
        while items:
            yield items.pop()
        if not token:
            return
        more = {"continue": token}
    raise CheckFailed(f"GET {path}: more than {MOST_OBJECTS} objects; narrow the selector")
