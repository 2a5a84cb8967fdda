"""Which Pods of a node go when it is drained, and which stay. Pure but for `read_node_pods`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from actions.kubernetes.client import Client
from actions.kubernetes.controllers import Controller, Object, has_ended, is_mirror, name_of, namespace_of, uid_of
from actions.kubernetes.progress import is_terminating
from remediator.errors import PlanRefused


async def read_node_pods(client: Client, node: str) -> list[Object]:
    """Read all Pods on a node, of all namespaces."""
    return list(await client.list("/api/v1/pods", {"fieldSelector": f"spec.nodeName={node}"}))


@dataclass(frozen=True)
class Load:
    """The Pods of a node, sorted by what becomes of them."""

    going: tuple[Object, ...]
    """Those to evict, by name."""
    leaving: tuple[Object, ...]
    """Those that somebody deletes already."""

    @property
    def names(self) -> str:
        """The names of all that is still to go."""
        pods = [f"{namespace_of(pod)}/{name_of(pod)}" for pod in (*self.going, *self.leaving)]
        return ", ".join(pods[:5]) + (f" and {len(pods) - 5} more" if len(pods) > 5 else "")

    def __len__(self) -> int:
        return len(self.going) + len(self.leaving)


def load_of(pods: Sequence[Object]) -> Load:
    """Sort the Pods of a node. Those of DaemonSets and static ones stay, and those that have ended hold nothing up."""
    moving = [pod for pod in pods if not (is_mirror(pod) or has_ended(pod) or _is_daemon(pod))]
    moving.sort(key=lambda pod: (namespace_of(pod), name_of(pod)))
    return Load(
        going=tuple(pod for pod in moving if not is_terminating(pod)),
        leaving=tuple(pod for pod in moving if is_terminating(pod)),
    )


def _is_daemon(pod: Object) -> bool:
    owners = pod["metadata"].get("ownerReferences") or ()
    return any(owner.get("controller") and owner.get("kind") == "DaemonSet" for owner in owners)


def refuse_load(load: Load, controllers: Mapping[str, Controller | None], *, bare: bool, local_data: bool) -> None:
    """Raise `PlanRefused` for Pods that nobody would replace, and for data that would be lost, unless told."""
    alone = [pod for pod in load.going if controllers[uid_of(pod)] is None]
    if alone and not bare:
        raise PlanRefused(f"{_list(alone)} have no controller, so nobody would make others: set `bare: true` if that is meant")
    keeping = [pod for pod in load.going if any("emptyDir" in volume for volume in (pod["spec"].get("volumes") or ()))]
    if keeping and not local_data:
        raise PlanRefused(f"{_list(keeping)} keep data in an emptyDir, which would be lost: set `local_data: true` if that is meant")


def _list(pods: Sequence[Object]) -> str:
    names = [f"{namespace_of(pod)}/{name_of(pod)}" for pod in pods]
    return f"{len(names)} Pods ({', '.join(names[:5])}{', …' if len(names) > 5 else ''})"
