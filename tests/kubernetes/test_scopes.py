"""Every action of the package, planned on a real API server: its targets carry what scope and identity guards compare."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from actions.kubernetes import PROVIDER
from remediator.action import Action, Identity
from remediator.model import Plan
from remediator.registry import complete
from remediator.targets.scope import outside_scope
from remediator.testing import LocalContext
from tests.kubernetes.conftest import Kube, OwnNodes
from tests.kubernetes.removing import protected_by
from tests.kubernetes.test_resize_pvc import claim
from tests.kubernetes.test_suspension import at, step, wanted
from tests.servers.gitops import define, path
from tests.servers.kube import behaviours
from tests.servers.kube.workloads import Workloads

pytestmark = pytest.mark.simulated  # it makes nodes and kinds of its own
Object = dict[str, Any]
ACTIONS: dict[str, Action[Any]] = {kind.name.removeprefix("kubernetes."): kind() for kind in complete(PROVIDER).actions}
ON_NODES = {"cordon", "uncordon", "drain"}
MAP = {"metadata": {"name": "settings"}, "data": {"a": "1"}}


class World:
    """A namespace with something for each action to act on."""

    def __init__(self, kube: Kube, run: Workloads, nodes: OwnNodes) -> None:
        self.kube, self.run, self.nodes = kube, run, nodes
        settings = {"scope": {"namespace": ("*",), "node": ("sim-*",)}, "exec_allow": (("true",),)}
        self.ctx = LocalContext({"prod": kube.connection().model_copy(update=settings)})

    async def web(self, **wish: Any) -> Object:
        """Make a Deployment, and name it."""
        await self.run("Deployment", "web", behaviours.RUNS, replicas=2)
        return at(self.run.namespace, **wish)

    async def pods(self, **wish: Any) -> Object:
        """Make a Deployment, and name one of its Pods."""
        await self.web()
        return self.here(pod=(await self.run.pods("web"))[0]["metadata"]["name"], **wish)

    async def configmap(self, **wish: Any) -> Object:
        """Make a ConfigMap that a Deployment uses, and name it."""
        await self.run.create("ConfigMap", MAP)
        using = behaviours.Behaviour(behaviours.RUNS.script, more={"envFrom": [{"configMapRef": {"name": "settings"}}]})
        await self.run("Deployment", "web", using)
        return self.here(**wish)

    async def secrets(self) -> Object:
        """Make a Secret without a key, and one with it."""
        for name, data in (("app", {}), ("source", {"TOKEN": "correct-horse-battery"})):
            await self.run.create("Secret", {"metadata": {"name": name}, "stringData": data})
        return self.here(secret="app", keys=["TOKEN"], from_secret={"name": "source"})

    async def made(self, **wish: Any) -> Object:
        """Make nothing."""
        return self.here(**wish)

    async def two_releases(self) -> Object:
        """Make a Deployment with something to go back to."""
        wish = await self.web()
        await self.run.release("Deployment", "web", behaviours.logs("second"))
        return wish

    async def volume(self) -> Object:
        """Make a claim that may grow."""
        await claim(self.run, await self.kube.storage_class(expands=True))
        return self.here(claim="data", size="20Gi")

    async def flux(self, *, suspended: bool, **wish: Any) -> Object:
        """Make a Deployment that Flux applies."""
        namespace = self.run.namespace
        await define(self.kube.api, "kustomizations")
        labels = {"kustomize.toolkit.fluxcd.io/name": "shop", "kustomize.toolkit.fluxcd.io/namespace": namespace}
        spec = {"interval": "10m", "path": "./web", "prune": True, "sourceRef": {"kind": "GitRepository", "name": "shop"}}
        body = {"apiVersion": "kustomize.toolkit.fluxcd.io/v1", "kind": "Kustomization", "metadata": {"name": "shop"}, "spec": spec}
        await self.kube.api.create(path("kustomizations", namespace), body)
        await self.run.create("Deployment", wanted(behaviours.RUNS, labels=labels))
        await self.run.available("Deployment", "web")
        if suspended:
            await step(ACTIONS["suspend_owner"], self.ctx, 1, at(namespace))
        return at(namespace, **wish)

    async def node(self, **wish: Any) -> Object:
        """Make a node with Pods on it, and name it."""
        name = await self.nodes()
        await self.run("Deployment", "web", behaviours.RUNS, replicas=2, pod=self.nodes.only)
        if "anybodys" in wish:
            await self.nodes.merge(name, {"spec": {"unschedulable": True}})
        return {"cluster": "prod", "node": name, **wish}

    def here(self, **wish: Any) -> Object:
        """Return parameters in the namespace."""
        return {"cluster": "prod", "namespace": self.run.namespace, **wish}


APART = {"min_schedulable": 0, "min_per_zone": 0, "others_out": True}
WISHES: dict[str, Callable[[World], Awaitable[Object]]] = {
    "rollout_undo": lambda world: world.two_releases(),
    "rollout_restart": lambda world: world.web(),
    "scale": lambda world: world.web(replicas=3),
    "set_env": lambda world: world.web(set={"A": "1"}),
    "set_resources": lambda world: world.web(limits={"memory": "128Mi"}),
    "patch": lambda world: world.configmap(kind="ConfigMap", name="settings", type="merge", patch={"data": {"a": "2"}}),
    "apply": lambda world: world.made(manifest={"apiVersion": "v1", "kind": "ConfigMap", **MAP}),
    "autoscale": lambda world: world.web(min=2, max=5, cpu=70),
    "patch_configmap": lambda world: world.configmap(configmap="settings", set={"a": "2"}),
    "restart_users": lambda world: world.configmap(configmap="settings"),
    "restore_secret": lambda world: world.secrets(),
    "suspend_owner": lambda world: world.flux(suspended=False),
    "resume_owner": lambda world: world.flux(suspended=True, out_of_sync=True),
    "delete_pod": lambda world: world.pods(),
    "evict_pod": lambda world: world.pods(),
    "exec": lambda world: world.pods(argv=["true"]),
    "resize_pvc": lambda world: world.volume(),
    "cordon": lambda world: world.node(min_schedulable=0),
    "uncordon": lambda world: world.node(anybodys=True),
    "drain": lambda world: world.node(**APART),
}
"""How to make something for each action to do, and the wish for it."""


def test_every_action_is_here() -> None:
    """A new action needs a line above."""
    assert set(WISHES) == set(ACTIONS)


@pytest.fixture
async def world(kube: Kube, run: Workloads, nodes: OwnNodes) -> Any:
    """A namespace for one action."""
    made = World(kube, run, nodes)
    yield made
    await made.ctx.aclose()


@pytest.mark.parametrize("name", sorted(ACTIONS))
async def test_s09_every_target_is_held_against_the_scope(name: str, world: World) -> None:
    """Namespaces outside of the list refuse the plan target by target; nodes need an entry of their own."""
    plan = await planned(name, world)
    namespace = world.run.namespace
    inside = {"namespace": (namespace,), "node": ("sim-*",)}
    assert plan.targets
    assert outside_scope(plan.targets, inside) is None
    for target in plan.targets:
        is_node = "/-/node/" in target.id
        assert target.scope == ({"node": target.id.rpartition("/")[2]} if is_node else {"namespace": namespace})
        for scope in ({"namespace": ("elsewhere",)}, {"namespace": ()}, {"namespace": ("elsewhere",), "node": ("elsewhere",)}):
            assert outside_scope([target], scope) is not None
        assert (outside_scope([target], {"namespace": ("*",)}) is not None) is is_node
    assert any("/-/node/" in target.id for target in plan.targets) is (name in ON_NODES)


@pytest.mark.parametrize("name", sorted(ACTIONS))
async def test_s11_every_target_is_known_to_the_identity_guard(name: str, world: World) -> None:
    """What lies in the daemon's namespace is refused, by id and by lock; so is its node."""
    plan = await planned(name, world)
    own = f"kubernetes:prod/-/node/{world.nodes.names[0]}" if name in ON_NODES else f"kubernetes:prod/{world.run.namespace}/"
    assert protected_by(plan, Identity(protected=frozenset({own})))
    assert not protected_by(plan, Identity(protected=frozenset({"kubernetes:prod/elsewhere/", "kubernetes:prod/-/node/elsewhere"})))
    for target in plan.targets:
        assert target.uid or name in ("apply", "autoscale")
        assert target.lock.startswith((f"kubernetes:prod/{world.run.namespace}/", "kubernetes:prod/-/node/-"))


async def planned(name: str, world: World) -> Plan:
    """Plan an action in its world."""
    wish = await WISHES[name](world)
    world.ctx.key = "INC-1-1/9"
    action = ACTIONS[name]
    return await action.plan(action.Params(**wish), world.ctx)
