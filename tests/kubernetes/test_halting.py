"""The kill switch, a lost lease, authority taken away: within one call nothing is written after that (`semantics.md`, 18)."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import pytest

from actions.kubernetes.actions.apply import Apply
from actions.kubernetes.actions.patch_configmap import PatchConfigmap
from actions.kubernetes.actions.restart_users import RestartUsers
from actions.kubernetes.actions.restore_secret import RestoreSecret
from actions.kubernetes.actions.scale import Scale
from actions.kubernetes.connection import connect
from actions.kubernetes.secret_commands import SecretCommand
from actions.kubernetes.templates import RESTARTED_AT
from remediator.action import Action, Settled
from remediator.errors import OutcomeUnknown, TemporaryError
from remediator.model import Health
from remediator.testing import LocalContext
from tests.kubernetes.conftest import Kube
from tests.kubernetes.meddling import before_writes
from tests.servers.kube.workloads import Workloads

VOLUME = {"volumes": [{"name": "config", "configMap": {"name": "one"}}]}


class Switch:
    """A kill switch, and a context that heeds it."""

    def __init__(self, kube: Kube, **settings: Any) -> None:
        self.reason: str | None = None
        self.ctx = LocalContext({"prod": kube.connection().model_copy(update=settings)}, halted=lambda: self.reason)

    async def throw(self) -> None:
        """Throw it."""
        self.reason = "paused by anna"

    async def after_one(self, verb: str) -> None:
        """Have it thrown after the first live write of this verb of the client."""
        client: Any = await connect(self.ctx, "prod")
        plain = getattr(client, verb)

        async def write(*args: Any, **more: Any) -> Any:
            made = await plain(*args, **more)
            if not more.get("dry_run"):
                await self.throw()
            return made

        setattr(client, verb, write)


async def config_map(run: Workloads, name: str) -> None:
    """Make a ConfigMap."""
    await run.create("ConfigMap", {"metadata": {"name": name}, "data": {"rate": "1"}})


def wish(run: Workloads, **more: Any) -> dict[str, Any]:
    """Return parameters in the test's namespace."""
    return {"cluster": "prod", "namespace": run.namespace, **more}


async def test_s18_restart_users_stops_between_two_users(run: Workloads, kube: Kube) -> None:
    """Thrown after the first restart: the second workload keeps its Pods, the receipt says so, and it is not called healthy."""
    await config_map(run, "one")
    for name in ("api", "web"):
        await run("Deployment", name, pod=VOLUME)
    action, switch = RestartUsers(), Switch(kube)
    plan = await action.plan(action.Params(**wish(run, configmap="one")), switch.ctx)
    await switch.after_one("patch")
    receipt = await action.apply(plan, switch.ctx)
    assert receipt.touched == (plan.targets[0].id,)
    assert "1 of 2 were restarted; stopped: paused by anna" in receipt.message
    for name, restarted in (("api", True), ("web", False)):
        meta = (await run.get("Deployment", name))["spec"]["template"]["metadata"]
        assert (RESTARTED_AT in (meta.get("annotations") or {})) is restarted
    verdict = await action.verify(plan, receipt, switch.ctx)
    assert verdict.health is Health.UNKNOWN
    found = await action.reconcile(plan, switch.ctx)
    assert found.settled is Settled.APPLIED
    assert found.receipt is not None
    assert found.receipt.touched == receipt.touched
    await switch.ctx.aclose()


def three(run: Workloads) -> Any:
    """Return the parameters of an apply of three ConfigMaps."""
    manifests = [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "1"}} for name in ("one", "two", "three")
    ]
    return Apply.Params(**wish(run, manifest=manifests))


async def maps(run: Workloads, kube: Kube) -> set[str]:
    """Return which of the three there are."""
    items = await kube.api.list(f"/api/v1/namespaces/{run.namespace}/configmaps")
    return {item["metadata"]["name"] for item in items} & {"one", "two", "three"}


async def test_s18_apply_stops_between_two_objects(run: Workloads, kube: Kube) -> None:
    """Thrown after the first of three manifests: the others are not written, the receipt says so, and verification is unhealthy."""
    action, switch = Apply(), Switch(kube)
    plan = await action.plan(three(run), switch.ctx)
    await switch.after_one("apply")
    receipt = await action.apply(plan, switch.ctx)
    assert receipt.touched == (plan.targets[0].id,)
    assert "1 of 3 were written; stopped: paused by anna" in receipt.message
    assert (await action.verify(plan, receipt, switch.ctx)).health is Health.UNHEALTHY
    assert await maps(run, kube) == {"one"}
    await switch.ctx.aclose()


async def test_s18_a_way_back_that_stops_half_way_is_not_called_undone(run: Workloads, kube: Kube) -> None:
    """Thrown after the first of three objects was taken away again: nobody verifies an undo, so people are asked and told how far."""
    action, switch = Apply(), Switch(kube)
    plan = await action.plan(three(run), switch.ctx)
    back = await action.undo(plan, await action.apply(plan, switch.ctx), switch.ctx)
    switch.ctx.key = "test/1/undo"
    await switch.after_one("delete")
    with pytest.raises(OutcomeUnknown, match="1 of 3 were written; stopped: paused by anna"):
        await action.apply(back, switch.ctx)
    assert await maps(run, kube) == {"one", "two"}
    found = await action.reconcile(back, switch.ctx)
    assert found.settled is Settled.UNKNOWN
    assert "1 of 3 objects" in found.message
    await switch.ctx.aclose()
    later = Switch(kube).ctx
    assert len((await action.apply(back, later)).touched) == 3
    assert (await action.reconcile(back, later)).settled is Settled.APPLIED
    assert not await maps(run, kube)
    await later.aclose()


@pytest.mark.parametrize(
    ("action", "more"),
    [
        (PatchConfigmap(), {"configmap": "one", "set": {"rate": "2"}}),
        (Scale(), {"deployment": "web", "replicas": 2}),
        (
            Apply(),
            {"manifest": {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "one"}, "data": {"rate": "2"}}, "force": True},
        ),
    ],
    ids=["patch_configmap", "scale", "apply"],
)
async def test_s18_a_write_that_met_a_conflict_is_not_tried_again(
    run: Workloads, kube: Kube, action: Action[Any], more: Mapping[str, Any]
) -> None:
    """Somebody wrote at the same moment, and the switch was thrown: the one write of these calls is never made. Later it may be."""
    await config_map(run, "one")
    await run("Deployment", "web", wait=False)
    kind, name = ("Deployment", "web") if "deployment" in more else ("ConfigMap", "one")
    switch = Switch(kube)
    plan = await action.plan(action.Params(**wish(run, **more)), switch.ctx)

    async def meddle() -> None:
        await run.merge(kind, name, {"metadata": {"labels": {"seen": "true"}}})
        await switch.throw()

    await before_writes(switch.ctx, meddle, verb="apply" if isinstance(action, Apply) else "patch")
    with pytest.raises(TemporaryError, match=r"^stopped: paused by anna$"):
        await action.apply(plan, switch.ctx)
    assert (await run.get("ConfigMap", "one"))["data"] == {"rate": "1"}
    assert (await run.get("Deployment", "web"))["spec"]["replicas"] == 1
    switch.reason = None
    assert (await action.apply(plan, switch.ctx)).touched
    await switch.ctx.aclose()


async def test_s18_restore_secret_writes_nothing_after_its_commands(run: Workloads, kube: Kube) -> None:
    """The commands that print the values may take a minute each: thrown meanwhile, no further one is run, and nothing is written."""
    await run.create("Secret", {"metadata": {"name": "app"}, "stringData": {"other": "1"}})
    command = SecretCommand(argv=(sys.executable, "-c", "print(1)"), fills=(f"{run.namespace}/app/*",))
    action, switch = RestoreSecret(), Switch(kube, secret_commands={"vault": command})
    plan = await action.plan(action.Params(**wish(run, secret="app", keys=["A", "B"], from_command="vault")), switch.ctx)
    answers = iter((None, "paused by anna"))
    switch.ctx._halted = lambda: next(answers)
    with pytest.raises(TemporaryError, match=r"^stopped: paused by anna$"):
        await action.apply(plan, switch.ctx)
    answers = iter((None, None, "paused by anna"))
    with pytest.raises(TemporaryError, match=r"^stopped: paused by anna$"):
        await action.apply(plan, switch.ctx)
    assert set((await run.get("Secret", "app"))["data"]) == {"other"}
    await switch.ctx.aclose()
