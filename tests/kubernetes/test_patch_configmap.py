"""`kubernetes.patch_configmap` and `kubernetes.restart_users`: keys and lines, exactly back, and restarts that happen once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
from pydantic import ValidationError

from actions.kubernetes.actions.patch_configmap import PatchConfigmap
from actions.kubernetes.actions.restart_users import RestartUsers
from actions.kubernetes.disclosure import HIDDEN
from actions.kubernetes.fields import LAST_APPLIED
from actions.kubernetes.templates import RESTARTED_AT
from remediator.action import Settled
from remediator.errors import NotFound, NotReversible, PlanRefused, PreconditionChanged
from remediator.model import JSON, Health, Plan, canonical, to_json
from remediator.testing import ActionConformance, LocalContext, crash_at
from tests.servers.gitops import client_named
from tests.servers.kube.behaviours import RUNS, Behaviour
from tests.servers.kube.workloads import Workloads
from tests.servers.ports import eventually

Object = dict[str, Any]
PATCH, RESTART = PatchConfigmap(), RestartUsers()
LIST = "# who must not come in\ndeny 198.51.100.1;\ndeny 198.51.100.2;\n"
BLOCK: Object = {"append": {"blocklist.conf": "deny {ip};"}, "args": {"ip": "203.0.113.7"}, "grammar": {"ip": "private_address"}}


def at(namespace: str, **more: Any) -> Object:
    """Return parameters for the ConfigMap `nginx`."""
    return {"cluster": "prod", "namespace": namespace, "configmap": "nginx", **more}


@pytest.fixture
async def nginx(run: Workloads) -> Object:
    """A ConfigMap with a block list."""
    return await configmap(run)


async def configmap(run: Workloads, **more: Any) -> Object:
    """Make the ConfigMap `nginx`."""
    return await run.create("ConfigMap", {"metadata": {"name": "nginx"}, "data": {"blocklist.conf": LIST, "level": "info"}, **more})


async def plan(ctx: LocalContext, namespace: str, **wish: Any) -> Plan:
    """Plan a change of `nginx`."""
    return await PATCH.plan(PATCH.Params(**at(namespace, **wish)), ctx)


async def done(ctx: LocalContext, namespace: str, **wish: Any) -> tuple[Plan, Any]:
    """Plan a change of `nginx` and apply it."""
    made = await plan(ctx, namespace, **wish)
    return made, await PATCH.apply(made, ctx)


async def data(run: Workloads) -> Mapping[str, str]:
    """Return the values of `nginx`."""
    return (await run.get("ConfigMap", "nginx")).get("data") or {}


# --- lines ---------------------------------------------------------------------------------------------------------------------


async def test_block_list_gets_one_line_once(ctx: LocalContext, run: Workloads, nginx: Object, namespace: str) -> None:
    """The seed's security incident: one line at the end, shown alone; the same wish again finds nothing to do."""
    made, _ = await done(ctx, namespace, **BLOCK)
    assert [(change.field, change.before, change.after) for change in made.changes] == [
        ("data[blocklist.conf]", None, "+ deny 203.0.113.7;")
    ]
    assert await data(run) == {"blocklist.conf": f"{LIST}deny 203.0.113.7;\n", "level": "info"}
    assert (await plan(ctx, namespace, **BLOCK)).noop


async def test_line_is_taken_away_and_comes_back_to_its_place(ctx: LocalContext, run: Workloads, nginx: Object, namespace: str) -> None:
    """Undo of a deletion puts the very line back where it was."""
    made, receipt = await done(ctx, namespace, delete={"blocklist.conf": "deny 198.51.100.1;"})
    assert "198.51.100.1" not in (await data(run))["blocklist.conf"]
    ctx.key = "test/1/undo"
    await PATCH.apply(await PATCH.undo(made, receipt, ctx), ctx)
    assert (await data(run))["blocklist.conf"] == LIST


@pytest.mark.parametrize(
    ("grammar", "value"),
    [
        ("address", "203.0.113.7; } server { listen 80;"),
        ("address", "203.0.113.7\ndeny all"),
        ("address", "10.0.0.1"),  # the load balancer, say
        ("private_address", "0.0.0.0"),
        ("private_address", "127.0.0.1"),
        ("private_address", "::ffff:10.0.0.1"),
        ("private_address", "fe80::1%eth0"),
        ("network", "0.0.0.0/0"),
        ("network", "8.0.0.0/7"),
        ("network", "8.8.8.8/24"),
        ("number", "1e9"),
        ("number", "\u0661\u0662"),  # digits, but no program's that reads ASCII
        ("host", "\u212aubernetes.example"),  # the sign for Kelvin, which is a k to those who fold cases
        ("word", "a b"),
        ("word", ""),
        ("host", "evil.example;"),
    ],
)
async def test_value_from_an_alert_brings_no_syntax(ctx: LocalContext, nginx: Object, namespace: str, grammar: str, value: str) -> None:
    """Values from alerts are data: what does not fit the grammar of the rule's author is refused, and so is half the world."""
    with pytest.raises(PlanRefused, match=r"args\.ip: .* is no "):
        await plan(ctx, namespace, append={"blocklist.conf": "deny {ip};"}, args={"ip": value}, grammar={"ip": grammar})


async def test_line_of_no_key_or_a_full_list_is_refused(ctx: LocalContext, nginx: Object, namespace: str) -> None:
    """A key that is not there is a mistake, not a new list; a list has an end."""
    with pytest.raises(PlanRefused, match="there is no key 'blocklist' to edit"):
        await plan(ctx, namespace, append={"blocklist": "deny 203.0.113.7;"})
    with pytest.raises(PlanRefused, match="has 3 lines or more already"):
        await plan(ctx, namespace, **BLOCK, max_lines=3)


# --- keys ------------------------------------------------------------------------------------------------------------------------


async def test_several_keys_are_one_write(ctx: LocalContext, run: Workloads, nginx: Object, namespace: str) -> None:
    """Set, removed and appended in one write; undo restores exactly these keys, and leaves one that somebody has added since."""
    made, receipt = await done(ctx, namespace, set={"level": "warn", "new": "1"}, **BLOCK)
    assert await data(run) == {"blocklist.conf": f"{LIST}deny 203.0.113.7;\n", "level": "warn", "new": "1"}
    assert (await PATCH.verify(made, receipt, ctx)).health is Health.HEALTHY
    await run.merge("ConfigMap", "nginx", {"data": {"other": "2"}})
    ctx.key = "test/1/undo"
    await PATCH.apply(await PATCH.undo(made, receipt, ctx), ctx)
    assert await data(run) == {"blocklist.conf": LIST, "level": "info", "other": "2"}


async def test_changed_key_is_not_overwritten(ctx: LocalContext, run: Workloads, nginx: Object, namespace: str) -> None:
    """Somebody changed the same key: neither the plan nor its undo goes over that; another key's change does not matter."""
    made = await plan(ctx, namespace, set={"level": "warn"})
    await run.merge("ConfigMap", "nginx", {"data": {"other": "2"}})
    receipt = await PATCH.apply(made, ctx)
    await run.merge("ConfigMap", "nginx", {"data": {"level": "debug"}})
    with pytest.raises(PlanRefused, match="somebody changed a key since"):
        await PATCH.undo(made, receipt, ctx)
    late = await plan(ctx, namespace, set={"level": "error"})
    await run.merge("ConfigMap", "nginx", {"data": {"level": "info"}})
    with pytest.raises(PreconditionChanged, match="somebody changed a key that this plan changes"):
        await PATCH.apply(late, ctx)


async def test_immutable_and_binary_are_refused(ctx: LocalContext, run: Workloads, namespace: str) -> None:
    """What can't be changed is said before anything is tried."""
    await configmap(run, immutable=True)
    with pytest.raises(PlanRefused, match="is immutable"):
        await plan(ctx, namespace, set={"level": "warn"})
    await run.create("ConfigMap", {"metadata": {"name": "bin"}, "binaryData": {"blob": "AAEC"}})
    with pytest.raises(PlanRefused, match="blob is binary"):
        await plan(ctx, namespace, configmap="bin", set={"blob": "text"})
    with pytest.raises(PlanRefused, match="not found"):
        await plan(ctx, namespace, configmap="none", set={"level": "warn"})


async def test_more_than_a_configmap_holds_is_refused(ctx: LocalContext, nginx: Object, namespace: str) -> None:
    """1 MiB is the limit of all values together."""
    with pytest.raises(PlanRefused, match="more than the 1048576 that a ConfigMap may have"):
        await plan(ctx, namespace, set={"big": "x" * 1024 * 1024})


async def test_secret_in_a_configmap_is_never_written_down(ctx: LocalContext, run: Workloads, namespace: str) -> None:
    """A value that looks like a secret is neither shown nor kept nor hashed, so its change can't be undone; and none is put in."""
    await run.create("ConfigMap", {"metadata": {"name": "nginx"}, "data": {"db_password": "hunter2-correct-horse", "level": "info"}})
    made, receipt = await done(ctx, namespace, remove=["db_password"], set={"level": "warn"})
    written = canonical([to_json(made), to_json(receipt)]).decode()
    assert "hunter2" not in written
    assert next(change.before for change in made.changes if "password" in change.field) == HIDDEN
    assert "can't be undone" in made.warnings[1]
    with pytest.raises(NotReversible, match="may be a secret"):
        await PATCH.undo(made, receipt, ctx)
    with pytest.raises(PlanRefused, match="looks like a secret"):
        await plan(ctx, namespace, set={"api_key": "0123456789abcdef0123"})


async def test_gitops_owner_of_a_key_is_named(ctx: LocalContext, run: Workloads, kube: Any, namespace: str) -> None:
    """What Flux applies it puts back; a key of the same ConfigMap that its source does not have is nobody's."""
    labels = {"kustomize.toolkit.fluxcd.io/name": "shop", "kustomize.toolkit.fluxcd.io/namespace": namespace}
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "nginx", "labels": labels}, "data": {"level": "info"}}
    await kube.api.apply(run.path("ConfigMap", "nginx"), body, manager="kustomize-controller")
    with pytest.raises(PlanRefused, match=r"managed by Flux \(manager kustomize-controller of data.level\)"):
        await plan(ctx, namespace, set={"level": "warn"})
    assert not (await plan(ctx, namespace, set={"extra": "1"})).noop
    assert "would put it back" in (await plan(ctx, namespace, set={"level": "warn"}, owner="ignore")).warnings[0]


async def test_argo_cd_owns_what_it_applied(ctx: LocalContext, run: Workloads, kube: Any, namespace: str) -> None:
    """By client-side apply the annotation says what its source has, also of a key that somebody else wrote since."""
    meta = {
        "name": "nginx",
        "annotations": {LAST_APPLIED: '{"data": {"level": "info"}}'},
        "labels": {"argocd.argoproj.io/instance": "shop"},
    }
    async with client_named(kube.connection(), "argocd-controller") as own:
        await own.create(run.path("ConfigMap"), {"metadata": meta, "data": {"level": "info", "free": "1"}})
    assert not (await plan(ctx, namespace, set={"free": "2"})).noop
    await run.merge("ConfigMap", "nginx", {"data": {"level": "debug"}})
    with pytest.raises(PlanRefused, match="managed by Argo CD"):
        await plan(ctx, namespace, set={"level": "warn"})


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({}, "1 to 20 keys"),
        ({"set": {"a": "1"}, "remove": ["a"]}, "more than one of"),
        ({"append": {"a": "deny {ip};"}, "args": {"ip": "x"}}, "each of args needs its grammar"),
        ({"append": {"a": "deny all;"}, "args": {"ip": "x"}, "grammar": {"ip": "word"}}, "has no place"),
        ({"append": {"a": "one\ntwo"}}, "take one line"),
        ({"delete": {"a": " "}}, "take one line"),
        ({"set": {"a/b": "1"}}, "String should match pattern"),
    ],
)
def test_ambiguous_wishes_are_errors_at_load(wish: Object, said: str) -> None:
    """What is ambiguous never becomes a plan."""
    with pytest.raises(ValidationError, match=said):
        PATCH.Params(**at("shop", **wish))


class TestPatchConfigmap(ActionConformance):
    action: ClassVar[Any] = PATCH
    crash_points: ClassVar[int] = 20

    @pytest.fixture(autouse=True)
    async def where(self, run: Workloads, kube: Any, namespace: str) -> None:
        """Keep the cluster for the whole test."""
        self.run, self.kube, self.namespace = run, kube, namespace

    async def prepare(self) -> tuple[LocalContext, Mapping[str, Any]]:
        """Make the ConfigMap."""
        await configmap(self.run)
        return LocalContext({"prod": self.kube.connection()}), at(self.namespace, set={"level": "warn"}, remove=["none"], **BLOCK)

    async def state(self) -> JSON:
        """Return its values."""
        return dict(await data(self.run))

    async def disturb(self) -> None:
        """Let somebody set the same key."""
        await self.run.merge("ConfigMap", "nginx", {"data": {"level": "debug"}})

    async def cleanup(self) -> None:
        """Delete it."""
        await self.run.delete("ConfigMap", "nginx")


# --- its users ---------------------------------------------------------------------------------------------------------------------


async def users(run: Workloads) -> None:
    """Run a Deployment that mounts it, a StatefulSet that reads a variable from it, and a Deployment that does neither."""
    await configmap(run)
    volume = {"volumes": [{"name": "config", "configMap": {"name": "nginx"}}]}
    reads = Behaviour(RUNS.script, more={"envFrom": [{"configMapRef": {"name": "nginx"}}]})
    await run("Deployment", "web", pod=volume)
    await run("StatefulSet", "db", reads)
    await run("Deployment", "other")
    await run("Deployment", "off", pod=volume, replicas=0, wait=False)


async def restarts(run: Workloads) -> dict[str, str | None]:
    """Return each workload's restart annotation."""
    names = (("Deployment", "web"), ("StatefulSet", "db"), ("Deployment", "other"), ("Deployment", "off"))
    found = {}
    for kind, name in names:
        meta = (await run.get(kind, name))["spec"]["template"]["metadata"]
        found[name] = (meta.get("annotations") or {}).get(RESTARTED_AT)
    return found


async def restart_plan(ctx: LocalContext, namespace: str, **wish: Any) -> Plan:
    """Plan a restart of the users of `nginx`."""
    return await RESTART.plan(RESTART.Params(**at(namespace, **wish)), ctx)


async def test_exactly_its_users_are_restarted_once(ctx: LocalContext, run: Workloads, namespace: str) -> None:
    """Who mounts it or reads variables from it, and has Pods; a second apply of the same step restarts nothing."""
    await users(run)
    made = await restart_plan(ctx, namespace)
    assert [target.id.split("/", 1)[1] for target in made.targets] == [f"{namespace}/deployment/web", f"{namespace}/statefulset/db"]
    assert any("uses it by variables of app" in warning for warning in made.warnings)
    receipt = await RESTART.apply(made, ctx)
    once = await restarts(run)
    assert (once["other"], once["off"]) == (None, None)
    assert once["web"] == once["db"] == made.intent["restarted_at"]
    assert (await RESTART.apply(made, ctx)).touched == receipt.touched
    assert await restarts(run) == once

    async def is_healthy() -> bool:
        return (await RESTART.verify(made, receipt, ctx)).health is Health.HEALTHY

    await run.available("StatefulSet", "db")
    await eventually(is_healthy, what="the users are restarted and well", within=90, every=0.5)


async def test_more_users_than_allowed_or_none_is_refused(ctx: LocalContext, run: Workloads, namespace: str) -> None:
    """An empty set is no target, and a large one is not what was meant."""
    await users(run)
    with pytest.raises(PlanRefused, match=r"2 workloads use .*more than max_users 1"):
        await restart_plan(ctx, namespace, max_users=1)
    with pytest.raises(PlanRefused, match=r"no workload with Pods .* uses configmap"):
        await restart_plan(ctx, namespace, configmap="none")


async def test_user_that_changed_stops_all_before_the_first(ctx: LocalContext, run: Workloads, namespace: str) -> None:
    """Somebody released one of the users since: none is restarted."""
    await users(run)
    made = await restart_plan(ctx, namespace)
    await run.merge("StatefulSet", "db", {"spec": {"template": {"metadata": {"annotations": {"release": "2"}}}}})
    with pytest.raises(PreconditionChanged, match="somebody changed the Pod template"):
        await RESTART.apply(made, ctx)
    assert set((await restarts(run)).values()) == {None}


async def test_paused_user_is_refused(ctx: LocalContext, run: Workloads, namespace: str) -> None:
    """A user whose Pods would stay as they are can't be restarted this way, and that is said before the others are."""
    await users(run)
    await run.merge("Deployment", "web", {"spec": {"paused": True}})
    await run.until("Deployment", "web", lambda item: item["status"]["observedGeneration"] == item["metadata"]["generation"])
    with pytest.raises(PlanRefused, match="is paused"):
        await restart_plan(ctx, namespace)


async def test_cut_off_in_the_middle_is_told_truly(ctx: LocalContext, run: Workloads, namespace: str) -> None:
    """Died between the restarts: reading tells which were restarted, and verification does not call that done."""
    await users(run)
    made = await restart_plan(ctx, namespace)
    seen: set[int] = set()
    for point in range(200):
        await crash_at(RESTART.apply(made, ctx), point)
        await ctx.aclose()
        annotations = await restarts(run)
        restarted = sum(annotations[name] is not None for name in ("web", "db"))
        seen.add(restarted)
        found = await RESTART.reconcile(made, ctx)
        if restarted == 0:
            assert found.settled is Settled.NOT_APPLIED
        else:
            assert found.settled is Settled.APPLIED
            assert found.receipt is not None
            assert len(found.receipt.touched) == restarted
        if restarted == 1 and found.receipt is not None:
            assert (await RESTART.verify(made, found.receipt, ctx)).health is Health.UNKNOWN
        if restarted == 2:
            break
    assert seen >= {0, 2}


async def test_users_of_a_secret_are_found_without_reading_it(account: Any, run: Workloads, namespace: str) -> None:
    """The declared rights are sufficient, and none on Secrets is among them."""
    await run.create("Secret", {"metadata": {"name": "app"}, "stringData": {"key": "value"}})
    await run("Deployment", "web", pod={"volumes": [{"name": "keys", "projected": {"sources": [{"secret": {"name": "app"}}]}}]})
    rules = []
    for permission in RESTART.permissions:
        group, _, resource = permission.resource.partition("/")
        rules.append({"apiGroups": [group], "resources": [resource], "verbs": list(permission.verbs)})
    ctx = await account(rules)
    made = await RESTART.plan(RESTART.Params(cluster="prod", namespace=namespace, secret="app"), ctx)
    assert [target.id.rpartition("/")[2] for target in made.targets] == ["web"]
    await RESTART.apply(made, ctx)


class TestRestartUsers(ActionConformance):
    action: ClassVar[Any] = RESTART
    crash_points: ClassVar[int] = 60

    @pytest.fixture(autouse=True)
    async def where(self, run: Workloads, kube: Any, namespace: str) -> None:
        """Keep the cluster for the whole test."""
        self.run, self.kube, self.namespace = run, kube, namespace

    async def prepare(self) -> tuple[LocalContext, Mapping[str, Any]]:
        """Run one user."""
        await configmap(self.run)
        await self.run("Deployment", "web", pod={"volumes": [{"name": "config", "configMap": {"name": "nginx"}}]})
        return LocalContext({"prod": self.kube.connection()}), at(self.namespace)

    async def state(self) -> JSON:
        """Return its template."""
        return (await self.run.get("Deployment", "web"))["spec"]["template"]

    async def settle(self, plan: Plan, receipt: Any, ctx: Any) -> None:
        """Wait until the restart is through."""
        if receipt is None:
            return

        async def is_healthy() -> bool:
            return (await RESTART.verify(plan, receipt, ctx)).health is Health.HEALTHY

        await eventually(is_healthy, what="it is restarted and well", within=90, every=0.5)

    async def disturb(self) -> None:
        """Let somebody release something."""
        await self.run.merge("Deployment", "web", {"spec": {"template": {"metadata": {"annotations": {"release": "2"}}}}})

    async def cleanup(self) -> None:
        """Delete the user."""
        for kind, name in (("Deployment", "web"), ("ConfigMap", "nginx")):
            try:
                await self.run.delete(kind, name)
            except NotFound:
                continue
            await self.run.until_gone(kind, name)
