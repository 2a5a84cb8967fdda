"""The kill switch by a ConfigMap's annotation: the real daemon, the real API server, and exactly the right that is generated for it."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from actions.kubernetes.connection import KubernetesConnection
from remediator.identity import find_identity
from remediator.permissions.grants import kubernetes_manifests
from remediator.permissions.needs import needs
from remediator.registry import Registry
from remediator.settings import Settings
from remediator.testing import LocalContext
from tests.acceptance.world import World, open_world
from tests.kubernetes.conftest import Kube

ANNOTATION = "remediator.dev/stop"
RBAC = "/apis/rbac.authorization.k8s.io/v1"


@dataclass
class Stop:
    """The world, and the ConfigMap that stops its daemon."""

    world: World
    kube: Kube
    namespace: str
    name: str = "remediator"

    @property
    def path(self) -> str:
        return f"/api/v1/namespaces/{self.namespace}/configmaps"

    async def annotate(self, value: str | None) -> None:
        """Set the annotation, or remove it."""
        await self.kube.api.patch(f"{self.path}/{self.name}", {"metadata": {"annotations": {ANNOTATION: value}}})

    async def thrown(self) -> dict[str, Any]:
        """Wait until the switch is thrown; return its row."""
        found: dict[str, Any] = (await self.world.daemon.until(self.pauses, what="the switch is thrown"))[0]
        return found

    async def pauses(self) -> list[dict[str, Any]]:
        return [one for one in (await self.world.daemon.get("status"))["pauses"] if one["scope"] == "global"]

    async def resume(self) -> tuple[int, str]:
        return await self.world.daemon.command("resume", "-m", "over")

    async def acts(self) -> bool:
        """Tell whether an alert is acted on."""
        ident = secrets.token_hex(4)
        (incident,) = (await self.world.fire("Call", id=ident))["incidents"]
        run = await self.world.daemon.reaches(f"{incident}-1", "succeeded", "interrupted")
        return run["state"] == "succeeded" and self.world.calls(ident) == 1

    async def unreadable(self) -> bool:
        return await self.world.daemon.metric("remediator_kill_switch_unreadable", source="configmap") == 1


@pytest.fixture
async def stop(kube: Kube, namespace: str, account: Callable[..., Awaitable[LocalContext]], tmp_path: Path) -> AsyncIterator[Stop]:
    """A daemon with the one right that `remediator permissions` writes for this, and no scope that would hold the namespace."""
    written = {"kill_switch": {"configmap": {"connection": "prod", "namespace": namespace, "name": "remediator"}}}
    connection = KubernetesConnection.model_validate({"in_cluster": True, "scope": {"namespace": ["elsewhere"]}})
    (need,) = needs([], Registry(), {"prod": connection}, written=written)
    (role,) = [one for one in kubernetes_manifests(need) if one["kind"] == "Role"]
    assert role["metadata"]["namespace"] == namespace
    assert role["rules"] == [{"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["remediator"], "verbs": ["get"]}]
    context = await account(role["rules"], name="stopper")
    kubeconfig = context.connection(KubernetesConnection, "prod").kubeconfig
    settings = {"connections": {"prod": {"kind": "kubernetes", "kubeconfig": kubeconfig, "scope": {"namespace": ["elsewhere"]}}}, **written}
    made = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "remediator"}}
    await kube.api.create(f"/api/v1/namespaces/{namespace}/configmaps", made)
    async with open_world(tmp_path, settings=settings) as world:
        yield Stop(world, kube, namespace)


async def test_annotation_throws_the_switch_and_only_a_person_lifts_it(stop: Stop) -> None:
    """Its value is the reason; it can't be lifted while it is there, and its end, a kill or a restart lifts nothing."""
    assert await stop.acts()
    await stop.annotate("cluster upgrade")
    pause = await stop.thrown()
    assert pause["who"] == f"configmap:prod/{stop.namespace}/remediator {ANNOTATION}"
    assert pause["why"] == "cluster upgrade"
    assert not await stop.acts()
    code, output = await stop.resume()
    assert (code, "remove it first" in output) == (1, True), output
    await stop.world.daemon.restart(kill=True)
    assert not await stop.acts()
    await stop.annotate(None)
    await stop.world.daemon.restart(kill=True)
    assert not await stop.acts()
    code, output = await stop.resume()
    assert code == 0, output
    assert await stop.acts()
    for value in ("", "false"):
        await stop.annotate(value)
        await stop.thrown()
        await stop.annotate(None)
        assert (await stop.resume())[0] == 0, "it is read anew when somebody wants to lift it"


async def test_annotation_set_while_the_daemon_was_down_holds_from_the_first_moment(stop: Stop) -> None:
    """It is read before anything is begun."""
    stop.world.daemon.kill()
    await stop.annotate("before it starts")
    await stop.world.daemon.start()
    assert not await stop.acts()


async def test_configmap_that_can_not_be_read_counts_as_it_was_last(stop: Stop) -> None:
    """Its cluster may be what is broken: unset it stays unset, set it stays set, and a metric tells; deleted it is not there."""
    daemon = stop.world.daemon
    assert not await stop.unreadable()
    bindings = f"{RBAC}/namespaces/{stop.namespace}/rolebindings"
    (binding,) = [one for one in await stop.kube.api.list(bindings) if one["metadata"]["name"].startswith("stopper")]
    await stop.kube.api.delete(f"{bindings}/{binding['metadata']['name']}", uid=binding["metadata"]["uid"])
    await daemon.until(stop.unreadable, what="the metric tells that it can't be read")
    assert await stop.acts()
    assert daemon.log.count("kill_switch.unreadable") == 1
    again = {key: binding[key] for key in ("apiVersion", "kind", "roleRef", "subjects") if key in binding}
    again |= {"metadata": {"name": binding["metadata"]["name"]}}
    await stop.kube.api.create(bindings, again)
    await stop.annotate("set")
    await stop.thrown()
    (binding,) = [one for one in await stop.kube.api.list(bindings) if one["metadata"]["name"].startswith("stopper")]
    await stop.kube.api.delete(f"{bindings}/{binding['metadata']['name']}", uid=binding["metadata"]["uid"])
    await daemon.until(stop.unreadable, what="the metric tells that it can't be read")
    await stop.annotate(None)
    code, output = await stop.resume()
    assert (code, "as far as is known" in output) == (1, True), output
    await stop.kube.api.create(bindings, again)
    found = await stop.kube.api.get(f"{stop.path}/{stop.name}")
    await stop.kube.api.delete(f"{stop.path}/{stop.name}", uid=found["metadata"]["uid"])

    async def lifted() -> bool:
        return (await stop.resume())[0] == 0

    await daemon.until(lifted, what="a ConfigMap that is not there stops nothing")


def test_s11_no_plan_may_touch_the_configmap_that_stops_us(kube: Kube) -> None:
    """What stops the daemon is protected like the daemon itself: no rule takes that back."""
    settings = Settings.model_validate(
        {
            "connections": {"prod": {"kind": "kubernetes", "kubeconfig": str(kube.kubeconfig)}},
            "kill_switch": {"configmap": {"connection": "prod", "namespace": "ops", "name": "remediator"}},
        }
    )
    assert "kubernetes:prod/ops/configmap/remediator" in find_identity({}, settings, host="here").protected
