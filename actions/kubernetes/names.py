"""What a name may look like, and which object it names: nothing else ever goes into a path."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Annotated, ClassVar, Self

from pydantic import Field, StringConstraints, model_validator

from remediator.action import Params
from remediator.model import JSON, Plan, Target

_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"

NAME = rf"{_LABEL}(\.{_LABEL})*"
LONGEST_NAME = 253

Namespace = Annotated[str, StringConstraints(pattern=rf"^{_LABEL}$", max_length=63)]
"""A DNS-1123 label, as the API server demands of namespaces."""

Name = Annotated[str, StringConstraints(pattern=rf"^{NAME}$", max_length=LONGEST_NAME)]
"""A DNS-1123 subdomain, as the API server demands of workloads."""


ContainerName = Annotated[str, StringConstraints(pattern=rf"^{_LABEL}$", max_length=63)]
"""A DNS-1123 label, as the API server demands of containers."""

DataKey = Annotated[str, StringConstraints(pattern=r"^[-._a-zA-Z0-9]+$", max_length=LONGEST_NAME)]
"""A key of a ConfigMap or Secret, as the API server demands."""


class Kind(Enum):
    """The kinds of workload that have revisions."""

    DEPLOYMENT = ("deployment", "deployments", "Deployment")
    STATEFULSET = ("statefulset", "statefulsets", "StatefulSet")
    DAEMONSET = ("daemonset", "daemonsets", "DaemonSet")

    def __init__(self, word: str, plural: str, kind: str) -> None:
        self.word = word
        self.plural = plural
        self.kind = kind

    @classmethod
    def of(cls, word: str) -> Kind:
        """Return the kind that rules write as `word`. Raises ValueError for any other word."""
        for kind in cls:
            if kind.word == word:
                return kind
        raise ValueError(f"{word!r} is not one of {', '.join(kind.word for kind in cls)}")


def object_id(cluster: str, word: str, *, namespace: str, name: str) -> str:
    """Return the canonical id of an object in a namespace. It is what is locked, so there is one for each object, whoever acts on it.

    >>> object_id("prod", "deployment", namespace="shop", name="web")
    'kubernetes:prod/shop/deployment/web'
    """
    return f"kubernetes:{cluster}/{namespace}/{word}/{name}"


def object_target(cluster: str, word: str, *, namespace: str, name: str, uid: str) -> Target:
    """Return an object in a namespace as a plan's target."""
    ident = object_id(cluster, word, namespace=namespace, name=name)
    return Target(id=ident, lock=ident, scope={"namespace": namespace}, uid=uid)


@dataclass(frozen=True)
class Reference:
    """One workload by name. The name fits the grammar: it came from `Name` and `Namespace` fields or from the server."""

    kind: Kind
    namespace: str
    name: str

    @property
    def collection(self) -> str:
        """Path of all workloads of this kind in the namespace."""
        return f"/apis/apps/v1/namespaces/{self.namespace}/{self.kind.plural}"

    @property
    def path(self) -> str:
        """Path of the workload itself."""
        return f"{self.collection}/{self.name}"

    def __str__(self) -> str:
        return f"{self.kind.word} {self.namespace}/{self.name}"

    @property
    def intent(self) -> dict[str, JSON]:
        """What a plan's intent says about it."""
        return {"kind": self.kind.word, "namespace": self.namespace, "name": self.name}

    @classmethod
    def planned(cls, plan: Plan) -> Reference:
        """Return the workload that a plan is for."""
        return cls(Kind.of(plan.intent["kind"]), plan.intent["namespace"], plan.intent["name"])

    def target(self, cluster: str, uid: str) -> Target:
        """Return the plan's target."""
        return object_target(cluster, self.kind.word, namespace=self.namespace, name=self.name, uid=uid)


class ClusterParams(Params):
    """Where to look: a connection of kind `kubernetes`, and a namespace."""

    cluster: str = Field(min_length=1, description="name of the connection")
    namespace: Namespace = Field(description="namespace of the workload")


class ScalableParams(ClusterParams):
    """A workload that has a number of replicas; exactly one of the names is set."""

    KINDS: ClassVar[tuple[Kind, ...]] = (Kind.DEPLOYMENT, Kind.STATEFULSET)

    deployment: Name | None = Field(None, description="name of a Deployment")
    statefulset: Name | None = Field(None, description="name of a StatefulSet")

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        named = [kind.word for kind in self.KINDS if getattr(self, kind.word) is not None]
        if len(named) != 1:
            words = ", ".join(kind.word for kind in self.KINDS)
            raise ValueError(f"exactly one of {words} names the workload, not {len(named)}")
        return self

    @property
    def reference(self) -> Reference:
        """The workload that is named."""
        kind = next(kind for kind in self.KINDS if getattr(self, kind.word) is not None)
        return Reference(kind, self.namespace, getattr(self, kind.word))


class WorkloadParams(ScalableParams):
    """A workload that has revisions; exactly one of the names is set."""

    KINDS: ClassVar[tuple[Kind, ...]] = tuple(Kind)

    daemonset: Name | None = Field(None, description="name of a DaemonSet")
