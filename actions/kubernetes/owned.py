"""An object that somebody else may own: which one a rule means, and how it is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from actions.kubernetes.autoscalers import HPA, collection, spoken
from actions.kubernetes.client import Client
from actions.kubernetes.names import ClusterParams, Kind, Name, Reference
from actions.kubernetes.permissions import on_workloads, rbac
from remediator.errors import NotFound, PlanRefused

_CORE = {"configmap": "configmaps", "secret": "secrets"}
_WORDS = (*(kind.word for kind in Kind), *_CORE, HPA)

READ = (
    *on_workloads("get", why="see who owns it"),
    rbac("/configmaps", "get", why="see who owns it", param="configmap"),
    rbac("/secrets", "get", why="see who owns it", param="secret"),
    rbac("autoscaling/horizontalpodautoscalers", "get", why="see who owns it", param=HPA),
)
"""Rights to read such an object."""


class OwnedParams(ClusterParams):
    """An object that somebody else may own; exactly one of the names is set."""

    WORDS: ClassVar[tuple[str, ...]] = _WORDS

    deployment: Name | None = Field(None, description="name of a Deployment")
    statefulset: Name | None = Field(None, description="name of a StatefulSet")
    daemonset: Name | None = Field(None, description="name of a DaemonSet")
    configmap: Name | None = Field(None, description="name of a ConfigMap")
    secret: Name | None = Field(None, description="name of a Secret; its values are neither kept nor shown")
    horizontalpodautoscaler: Name | None = Field(None, description="name of a HorizontalPodAutoscaler")

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        named = [word for word in self.WORDS if getattr(self, word) is not None]
        if len(named) != 1:
            raise ValueError(f"exactly one of {', '.join(self.WORDS)} names the object, not {len(named)}")
        return self

    @property
    def word(self) -> str:
        """The kind of object that is named."""
        return next(word for word in self.WORDS if getattr(self, word) is not None)


async def read_owned(client: Client, params: OwnedParams) -> Mapping[str, Any]:
    """Read the object. Raises `NotFound` and what `Client.get` raises."""
    word = params.word
    name = getattr(params, word)
    if word == HPA:
        path = f"{collection(HPA, await spoken(client), params.namespace)}/{name}"
    elif word in _CORE:
        path = f"/api/v1/namespaces/{params.namespace}/{_CORE[word]}/{name}"
    else:
        path = Reference(Kind.of(word), params.namespace, name).path
    body = await client.get(path)
    return {key: value for key, value in body.items() if key not in ("data", "stringData")} if word == "secret" else body


async def find_owned(client: Client, params: OwnedParams) -> Mapping[str, Any]:
    """Read the object that a plan is for. Raises `PlanRefused` where there is none."""
    try:
        return await read_owned(client, params)
    except NotFound as error:
        raise PlanRefused(str(error)) from error
