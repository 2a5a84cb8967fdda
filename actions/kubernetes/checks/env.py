"""`kubernetes.env`: whether a workload's containers get an environment variable. Never what a Secret holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field, StringConstraints

from actions.kubernetes.checks.failing import told
from actions.kubernetes.checks.limits import MOST_SAMPLES
from actions.kubernetes.checks.places import connect_within
from actions.kubernetes.checks.selection import is_name
from actions.kubernetes.client import Client
from actions.kubernetes.connection import KubernetesConnection
from actions.kubernetes.containers import container_of
from actions.kubernetes.names import ContainerName, WorkloadParams
from actions.kubernetes.permissions import on_workloads, rbac
from actions.kubernetes.workloads import read_workload
from remediator.action import Check, Context, Fact, FactType, Permission
from remediator.errors import NotFound
from remediator.model import Value

_PLURALS = {"config_map": "configmaps", "secret": "secrets"}
_WORDS = {"config_map": "configmap", "secret": "secret"}


class EnvParams(WorkloadParams):
    """Which variable of which container."""

    key: Annotated[str, StringConstraints(pattern=r"^[!-<>-~]{1,253}$")] = Field(description="name of the variable")
    container: ContainerName | None = Field(
        None, description="its container; may be left out where there is one, or a default is annotated"
    )
    equals: str | None = Field(None, max_length=4096, description="compare the value with this, where it is no Secret's")
    resolve: bool = Field(True, description="look into the Secret or ConfigMap; without, the right to read them is not used")


_FACTS = {
    "found": (FactType.BOOL, "whether there is such a workload; without it nothing else is known"),
    "present": (
        FactType.BOOL,
        "whether the Pod template sets it, itself or by an object taken in whole (envFrom); unknown when that is not there",
    ),
    "source": (FactType.STRING, "where from: literal, config_map, secret, field, resource or file; unknown when not present"),
    "object": (FactType.STRING, "the Secret or ConfigMap, as secret/NAME or configmap/NAME; unknown for other sources"),
    "object_key": (FactType.STRING, "the key in it; unknown for other sources"),
    "optional": (FactType.BOOL, "whether containers start without it; unknown for other sources"),
    "resolves": (FactType.BOOL, "whether a container that starts now gets it; false as well when it is not present"),
    "empty": (FactType.BOOL, "whether its value is empty; unknown when it does not resolve or is only made at the start"),
    "equal": (FactType.BOOL, "whether its value is `equals`; unknown without that, for Secrets, and as `empty`"),
    "missing": (FactType.STRINGS, "objects and keys that are not there, as secret/NAME or secret/NAME#KEY"),
}


class Env(Check[EnvParams]):
    """Look up an environment variable in a workload's Pod template, and whether what it refers to is there.

    Tells what a container would get that starts now; running ones keep what they started with. The value of a Secret is never a
    fact: only whether the key is there, and whether it is empty. Secrets and ConfigMaps are read one by one, by name, and only when
    the variable comes from there; a Role with `resourceNames` is enough.
    """

    name: ClassVar[str] = "kubernetes.env"
    Params: ClassVar[type[Any]] = EnvParams
    connection = KubernetesConnection
    connection_field: ClassVar[str] = "cluster"
    facts: ClassVar[Mapping[str, Fact]] = {name: Fact(kind, text) for name, (kind, text) in _FACTS.items()}
    permissions: ClassVar[tuple[Permission, ...]] = (
        *on_workloads("get", why="read its Pod template"),
        rbac("/configmaps", "get", why="see whether the key that a variable refers to is there"),
        rbac("/secrets", "get", why="see whether the key that a variable refers to is there"),
    )
    example: ClassVar[Mapping[str, Any]] = {"cluster": "production", "namespace": "shop", "deployment": "api", "key": "JWT_SECRET"}

    @classmethod
    def needed(cls, params: Mapping[str, Any]) -> tuple[Permission, ...]:
        """Leave Secrets and ConfigMaps out where a rule doesn't look into them."""
        return cls.permissions if params.get("resolve", True) is not False else cls.permissions[:-2]

    async def run(self, params: EnvParams, ctx: Context) -> Mapping[str, Value]:
        """Look once. Raises `CheckFailed`."""
        with told(self.name):
            client = await connect_within(ctx, params)
            try:
                workload = await read_workload(client, params.reference)
            except NotFound:
                return {"found": False}
            name = container_of(workload.template, params.container)
            spec = workload.template["spec"]
            every = [*(spec.get("containers") or ()), *(spec.get("initContainers") or ())]
            container = next(item for item in every if item["name"] == name)
            return {"found": True, **await _look(client, params, container)}


@dataclass(frozen=True)
class Origin:
    """Where a variable's value comes from."""

    kind: str
    name: str
    key: str
    optional: bool

    @property
    def object(self) -> str:
        """The object's name in facts."""
        return f"{_WORDS[self.kind]}/{self.name}"

    @property
    def facts(self) -> dict[str, Value]:
        """What the template alone tells."""
        return {"present": True, "source": self.kind, "object": self.object, "object_key": self.key, "optional": self.optional}


async def _look(client: Client, params: EnvParams, container: Mapping[str, Any]) -> dict[str, Value]:
    named = [item for item in container.get("env") or () if item.get("name") == params.key]
    if not named:
        return await _from_whole_objects(client, params, container)
    last = named[-1]  # of several the last one counts, and any before what comes from whole objects
    source = last.get("valueFrom")
    if not source:
        return {"present": True, "source": "literal", "resolves": True, "missing": [], **_value(params, str(last.get("value") or ""))}
    for field, kind in (("configMapKeyRef", "config_map"), ("secretKeyRef", "secret")):
        if found := source.get(field):
            origin = Origin(kind, str(found.get("name", "")), str(found.get("key", "")), bool(found.get("optional")))
            return await _from_key(client, params, origin)
    if "fileKeyRef" in source:
        return {"present": True, "source": "file"}  # only the node can tell
    return {"present": True, "source": "resource" if "resourceFieldRef" in source else "field", "resolves": True, "missing": []}


def _value(params: EnvParams, value: str) -> dict[str, Value]:
    """Return what may be said of a value that is no Secret's; one that refers to other variables is only made at the start."""
    if "$" in value:
        return {}
    return {"empty": not value, **({} if params.equals is None else {"equal": value == params.equals})}


async def _from_key(client: Client, params: EnvParams, origin: Origin) -> dict[str, Value]:
    if not params.resolve:
        return origin.facts
    data = await _read(client, params.namespace, origin)
    if data is None or origin.key not in data:
        missing = origin.object if data is None else f"{origin.object}#{origin.key}"
        return {**origin.facts, "resolves": False, "missing": [missing]}
    return {**origin.facts, "resolves": True, "missing": [], **_of_object(params, origin, data[origin.key])}


def _of_object(params: EnvParams, origin: Origin, value: str) -> dict[str, Value]:
    if origin.kind == "secret":
        return {"empty": not value}
    return {"empty": not value, **({} if params.equals is None else {"equal": value == params.equals})}


async def _from_whole_objects(client: Client, params: EnvParams, container: Mapping[str, Any]) -> dict[str, Value]:
    """Look through envFrom from its end: of several objects with the key the last one counts."""
    fitting = [origin for origin in map(_whole, container.get("envFrom") or ()) if params.key.startswith(origin.key)]
    if fitting and not params.resolve:
        return {}  # whether they have the key can't be told
    absent: list[Origin] = []
    for whole in reversed(fitting):
        data, key = await _read(client, params.namespace, whole), params.key.removeprefix(whole.key)
        if data is None:
            absent.append(whole)
        elif key in data:
            origin = Origin(whole.kind, whole.name, key, whole.optional)
            starts = all(item.optional for item in absent)
            return {**origin.facts, "resolves": starts, "missing": _names(absent), **_of_object(params, origin, data[key])}
    # One that is not there may have had the key.
    return {**({} if absent else {"present": False}), "resolves": False, "missing": _names(absent)}


def _names(origins: Sequence[Origin]) -> list[Value]:
    return [origin.object for origin in origins][:MOST_SAMPLES]


def _whole(item: Mapping[str, Any]) -> Origin:
    """Return an entry of envFrom, with its prefix in the place of a key."""
    kind, reference = ("secret", item["secretRef"]) if "secretRef" in item else ("config_map", item.get("configMapRef") or {})
    return Origin(kind, str(reference.get("name", "")), str(item.get("prefix") or ""), bool(reference.get("optional")))


async def _read(client: Client, namespace: str, origin: Origin) -> Mapping[str, str] | None:
    """Return an object's data, None when it is not there."""
    if not is_name(origin.name):
        return None
    try:
        found = await client.get(f"/api/v1/namespaces/{namespace}/{_PLURALS[origin.kind]}/{origin.name}")
    except NotFound:
        return None
    data: Mapping[str, str] = found.get("data") or {}
    return data
