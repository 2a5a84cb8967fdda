"""Generated rights on a real API server: enough, no more, and every difference found."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from actions.kubernetes.audit import Review, Rule, audit_rights
from actions.kubernetes.connection import KubernetesConnection, connect
from remediator.action import Audit, Check, Right
from remediator.cli import main
from remediator.errors import TemporaryError
from remediator.permissions.grants import kubernetes_manifests, policy_rules
from remediator.permissions.needs import Need, needs
from remediator.registry import Registry
from remediator.rules.compile import compile_ruleset
from remediator.rules.packs import PackSource
from remediator.testing import LocalContext
from tests.servers.kube import behaviours
from tests.servers.kube.workloads import Workloads
from tests.servers.ports import eventually

REGISTRY = Registry()
Account = Callable[..., Awaitable[LocalContext]]
RBAC = "/apis/rbac.authorization.k8s.io/v1"

RULES = """
rules:
  - name: api
    match: ['alertname = "ApiDown"']
    checks:
      pods: {kubernetes.pods: {cluster: prod, namespace: "${labels.namespace}", owner: "deployment/api"}}
      logs: {kubernetes.logs: {cluster: prod, namespace: NAMESPACE, pod: "${labels.pod}", contains: fatal}}
      node: {kubernetes.node: {cluster: prod, node: "${labels.node}"}}
    remedies:
      - name: scale
        steps:
          - kubernetes.scale: {cluster: prod, namespace: NAMESPACE, deployment: api, by: 1, max: 5}
          - kubernetes.cordon: {cluster: prod, node: worker-1}
        verify: {within: 5m, hold: 30s}
"""


def needed(text: str, namespace: str, **settings: Any) -> Need:
    """Return what a rule set needs on the connection `prod`."""
    pack = PackSource("own", {}, {"pack.yaml": b"{}", "rules.yaml": text.replace("NAMESPACE", namespace).encode()})
    connection = KubernetesConnection.model_validate({"in_cluster": True, "scope": {"namespace": [namespace]}, **settings})
    (need,) = needs(compile_ruleset([pack], REGISTRY).rules, REGISTRY, {"prod": connection})
    return need


async def granted(account: Account, need: Need, **more: Any) -> LocalContext:
    """Return the context of an account with exactly the rights that the manifests grant."""
    manifests = kubernetes_manifests(need)
    rules = {one["kind"]: one["rules"] for one in manifests if "rules" in one}
    return await account(rules.get("Role", ()), cluster_rules=rules.get("ClusterRole", ()), **more)


# --- reading rules as the server does -----------------------------------------------------------------------------------------

GRANTS: list[dict[str, Any]] = [
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]},
    {"apiGroups": [""], "resources": ["pods/*"], "verbs": ["*"]},
    {"apiGroups": ["*"], "resources": ["*/log"], "verbs": ["get"]},
    {"apiGroups": ["apps"], "resources": ["*"], "verbs": ["get", "patch"]},
    {"apiGroups": ["*"], "resources": ["deployments/scale"], "verbs": ["*"]},
    {"apiGroups": [""], "resources": ["configmaps", "pods"], "resourceNames": ["web", "api"], "verbs": ["get", "list", "create"]},
]
ASKED = [
    Right(resource, verb, name=name)
    for resource, verb, name in product(
        ("/pods", "/pods/log", "/configmaps", "apps/deployments", "apps/deployments/scale", "/deployments"),
        ("get", "list", "create", "patch"),
        ("", "web", "other"),
    )
]


@pytest.mark.parametrize("grant", GRANTS)
async def test_rules_are_read_exactly_as_the_server_reads_them(account: Account, namespace: str, grant: dict[str, Any]) -> None:
    """Wildcards, subresources and names: for every question our answer is the authorizer's."""
    client = await connect(await account([grant]), "prod")
    rule = Rule.parse(grant)

    async def server(right: Right) -> bool:
        group, _, resource = right.resource.partition("/")
        resource, _, sub = resource.partition("/")
        attributes = {"namespace": namespace, "group": group, "resource": resource, "subresource": sub, "verb": right.verb}
        review = {"spec": {"resourceAttributes": {**attributes, "name": right.name}}}
        answer = await client.create("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)
        return bool(answer["status"]["allowed"])

    answers = await asyncio.gather(*map(server, ASKED))
    assert any(answers) is not (grant["resources"] == ["pods/*"]), "a pods/* is no wildcard"
    assert {right: rule.allows(right) for right in ASKED} == dict(zip(ASKED, answers, strict=True))


# --- exactly, too little, too much ----------------------------------------------------------------------------------------------


async def test_exactly_what_is_generated_is_neither_too_little_nor_too_much(account: Account, namespace: str) -> None:
    """An account with the generated roles and nothing else has nothing missing and nothing to spare, in any namespace looked at."""
    need = needed(RULES, namespace)
    ctx = await granted(account, need)
    assert {right.place for right in need.rights} == {namespace, ""}, "nodes lie in no namespace"
    assert await audit_rights(ctx, "prod", need.rights) == Audit()


async def test_every_single_right_that_is_taken_away_is_missed(kube, account: Account, namespace: str) -> None:
    """One verb on one resource, in a Role or a ClusterRole: exactly that one is named."""
    need = needed(RULES, namespace)
    ctx = await granted(account, need, name="narrow")
    roles = {namespace: f"{RBAC}/namespaces/{namespace}/roles/narrow", "": f"{RBAC}/clusterroles/{namespace}-narrow"}
    assert len(need.rights) > 10
    for right in need.rights:
        left = [one for one in need.rights if one.place == right.place]
        await kube.api.patch(roles[right.place], {"rules": policy_rules(one for one in left if one != right)})
        seen = Audit()

        async def missed(right: Right = right) -> bool:
            nonlocal seen
            seen = await audit_rights(ctx, "prod", need.rights)
            return seen == Audit(missing=(right,))

        await eventually(missed, what=f"{right} is missed, and nothing else", within=10, every=0.05)
        await kube.api.patch(roles[right.place], {"rules": policy_rules(left)})


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ({"apiGroups": [""], "resources": ["secrets"], "verbs": ["list"]}, [("/secrets", "list", "")]),
        ({"apiGroups": ["apps"], "resources": ["*"], "verbs": ["*"]}, [("apps/*", "*", "")]),
        ({"apiGroups": ["apps"], "resources": ["deployments/scale"], "verbs": ["patch"]}, [("apps/deployments/scale", "patch", "")]),
        ({"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["db"], "verbs": ["get"]}, [("/secrets", "get", "db")]),
        ({"apiGroups": ["apps"], "resources": ["deployments/scale"], "resourceNames": ["api"], "verbs": ["patch"]}, []),
    ],
)
async def test_what_is_granted_beyond_the_need_is_named(
    kube, account: Account, namespace: str, extra: dict[str, Any], named: list[tuple[str, str, str]]
) -> None:
    """Another resource, a wildcard, the same without a name, one object more; not what is needed anyhow."""
    need = needed(RULES, namespace)
    ctx = await granted(account, need, name="narrow")
    own = [one for one in need.rights if one.place == namespace]
    await kube.api.patch(f"{RBAC}/namespaces/{namespace}/roles/narrow", {"rules": [*policy_rules(own), extra]})
    wanted = Audit(excessive=tuple(Right(resource, verb, namespace, name) for resource, verb, name in named))

    async def found() -> bool:
        return await audit_rights(ctx, "prod", need.rights) == wanted

    await eventually(found, what=f"{wanted} is found", within=10, every=0.05)


async def test_rights_in_all_namespaces_are_told_once(account: Account, namespace: str) -> None:
    """A ClusterRole beyond the need shows everywhere; a Role instead of a ClusterRole leaves nodes out of reach."""
    need = needed(RULES, namespace)
    rules = {one["kind"]: one["rules"] for one in kubernetes_manifests(need) if "rules" in one}
    secrets = {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}
    ctx = await account(rules["Role"], cluster_rules=[*rules["ClusterRole"], secrets])
    assert await audit_rights(ctx, "prod", need.rights) == Audit(excessive=(Right("/secrets", "get"),))
    ctx = await account([*rules["Role"], *rules["ClusterRole"]])
    assert set((await audit_rights(ctx, "prod", need.rights)).missing) == {right for right in need.rights if not right.place}


async def test_an_incomplete_list_is_no_proof(kube, account: Account, namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an authorizer can't list its rules, each right is asked for by itself, and it is said that there may be more."""
    parse = Review.parse

    def incomplete(place: str, answer: Mapping[str, Any]) -> Review:
        return parse(place, {"status": {**answer["status"], "resourceRules": [], "incomplete": True, "evaluationError": "webhook"}})

    need = needed(RULES, namespace)
    ctx = await granted(account, need)
    monkeypatch.setattr(Review, "parse", incomplete)
    found = await audit_rights(ctx, "prod", need.rights)
    assert (found.missing, found.excessive) == ((), ())
    assert f"namespace {namespace}: more may be granted than the server lists: webhook" in found.notes
    bare = await audit_rights(await account(), "prod", need.rights)
    assert bare.missing == tuple(sorted(need.rights))


# --- narrowed rights are enough ----------------------------------------------------------------------------------------------------

CHECKS = {
    "kubernetes.rollout": ["deployment: web", "statefulset: db"],
    "kubernetes.pods": ["owner: deployment/web", "owner: statefulset/db", 'selector: "app=web"', "pod: alone"],
    "kubernetes.logs": ["owner: deployment/web, contains: x", "pod: alone, contains: x"],
    "kubernetes.events": ["type: Warning"],
    "kubernetes.usage": ["owner: deployment/web"],
    "kubernetes.hpa": ["deployment: web"],
    "kubernetes.env": ["deployment: web, key: HOME"],
    "kubernetes.owner": ["deployment: web, field: replicas", "statefulset: db, field: replicas"],
}
ACTIONS = {
    "kubernetes.scale": ["deployment: web, replicas: 2", "statefulset: db, by: 1, max: 4"],
    "kubernetes.rollout_restart": ["deployment: web", "statefulset: db"],
    "kubernetes.set_env": ["deployment: web, set: {A: '1'}"],
    "kubernetes.set_resources": ["statefulset: db, limits: {memory: 128Mi}"],
    "kubernetes.autoscale": ["deployment: web, min: 2, max: 4, cpu: 70"],
    "kubernetes.patch": ["kind: ConfigMap, name: settings, type: merge, patch: {data: {a: '2'}}"],
    "kubernetes.patch_configmap": ["configmap: settings, set: {a: '3'}"],
    "kubernetes.apply": ["manifest: {apiVersion: v1, kind: ConfigMap, metadata: {name: made}, data: {a: '1'}}"],
    "kubernetes.restore_secret": ["secret: db, keys: [password], from_secret: {namespace: NAMESPACE, name: backup}"],
    "kubernetes.delete_pod": ["pod: alone, bare: true"],
}


def only(name: str, wish: str, namespace: str, *, action: bool) -> Need:
    """Return what one call alone needs."""
    call = f"{name}: {{cluster: prod, namespace: {namespace}, {wish}}}"
    head = "rules:\n  - name: one\n    match: ['alertname = \"A\"']\n"
    steps = f"    remedies:\n      - name: act\n        steps: [{{{call}}}]\n        verify: {{within: 5m, hold: 30s}}\n"
    return needed(head + (steps if action else f"    checks: {{one: {{{call}}}}}\n    remedies: []\n"), namespace)


async def workloads(run: Workloads) -> None:
    """Make what the calls are about."""
    await asyncio.gather(
        run("Deployment", "web", behaviours.RUNS),
        run("StatefulSet", "db", behaviours.RUNS),
        run("Pod", "alone"),
        run.create("ConfigMap", {"metadata": {"name": "settings"}, "data": {"a": "1"}}),
        run.create("Secret", {"metadata": {"name": "db"}, "data": {}}),
        run.create("Secret", {"metadata": {"name": "backup"}, "stringData": {"password": "x"}}),
    )


def wishes(of: Mapping[str, Sequence[str]], namespace: str) -> list[tuple[str, str]]:
    """Return names with each of their wishes."""
    return [(name, wish.replace("NAMESPACE", namespace)) for name, several in of.items() for wish in several]


async def test_narrowed_rights_are_enough_for_every_check(account: Account, run: Workloads, namespace: str) -> None:
    """Only the named kind and, where it can be, only the named object: each check finds what it looks for all the same."""
    await workloads(run)
    for name, wish in wishes(CHECKS, namespace):
        need = only(name, wish, namespace, action=False)
        ctx = await granted(account, need)
        kind = REGISTRY.check(name)
        assert kind is not None
        params = kind.Params.model_validate({"cluster": "prod", "namespace": namespace, **yaml.safe_load(f"{{{wish}}}")})
        assert issubclass(kind, Check)
        assert await _settled(lambda kind=kind, params=params, ctx=ctx: kind().run(params, ctx)), f"{name} {wish}"


async def test_narrowed_rights_are_enough_for_every_action(account: Account, run: Workloads, namespace: str) -> None:
    """Planning, the write and the reading afterwards, each with what was generated for that one call."""
    await workloads(run)
    for name, wish in wishes(ACTIONS, namespace):
        need = only(name, wish, namespace, action=True)
        assert not [right for right in need.rights if right.verb == "patch" and not right.name and right.resource.startswith("apps/")]
        ctx = await granted(account, need, key=f"{name}/{wish}")
        kind = REGISTRY.action(name)
        assert kind is not None
        params = kind.Params.model_validate({"cluster": "prod", "namespace": namespace, **yaml.safe_load(f"{{{wish}}}")})
        plan = await _settled(lambda kind=kind, params=params, ctx=ctx: kind().plan(params, ctx))
        assert not any("could not" in warning for warning in plan.warnings), plan.warnings
        receipt = await _settled(lambda kind=kind, plan=plan, ctx=ctx: kind().apply(plan, ctx))
        await kind().verify(plan, receipt, ctx)
        await kind().reconcile(plan, ctx)


async def _settled(call: Callable[[], Awaitable[Any]]) -> Any:
    """Repeat a call while a controller has not seen the change before it."""
    result: list[Any] = []

    async def done() -> bool:
        try:
            result.append(await call())
        except TemporaryError:
            return False
        return True

    await eventually(done, what="the call is carried out", within=20, every=0.2)
    return result[0]


# --- the command -------------------------------------------------------------------------------------------------------------------


def settings_file(directory: Path, config: Path, namespace: str) -> Path:
    """Write settings and a pack for the command."""
    (directory / "own").mkdir()
    (directory / "own" / "pack.yaml").write_text("{}")
    (directory / "own" / "rules.yaml").write_text(RULES.replace("NAMESPACE", namespace))
    connection = {"kind": "kubernetes", "kubeconfig": str(config), "scope": {"namespace": [namespace]}}
    path = directory / "remediator.yaml"
    path.write_text(yaml.safe_dump({"connections": {"prod": connection}, "packs": {"own": {"path": str(directory / "own")}}}))
    return path


async def command(*arguments: object) -> int:
    """Run it in a thread, as it starts an event loop of its own."""
    return await asyncio.to_thread(main, ["permissions", *map(str, arguments)])


async def test_the_command_prints_what_makes_its_check_pass(
    kube, account: Account, namespace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Missing before the printed manifests are applied (1), exact afterwards (0), not to be told when nobody answers (3)."""
    await account(name="remediator")  # its Role is empty
    config = tmp_path / "remediator.kubeconfig"
    settings = settings_file(tmp_path, config, namespace)
    assert await command("--check", "--config", settings, "--json") == 1
    found = json.loads(capsys.readouterr().out)["prod"]
    assert {"resource": "apps/deployments/scale", "verb": "patch", "place": namespace, "name": "api"} in found["missing"]
    assert await command("--config", settings, "--account", f"{namespace}/remediator", "--output", tmp_path / "out") == 0
    applied = []
    for manifest in yaml.safe_load_all((tmp_path / "out" / "prod.yaml").read_text()):
        kind, meta = manifest["kind"], manifest["metadata"]
        if kind.startswith("Cluster"):  # others test on this cluster too
            meta["name"] = f"{namespace}-remediator"
            manifest.get("roleRef", {})["name"] = meta["name"]
        place = f"/namespaces/{meta['namespace']}" if "namespace" in meta else ""
        path = f"{RBAC}{place}/{kind.lower()}s/{meta['name']}"
        made = await kube.api.apply(path, manifest, manager="tests", force=True)
        applied += [(path, made["metadata"]["uid"])] if not place else []
    try:

        async def exact() -> bool:
            capsys.readouterr()
            return await command("--check", "--config", settings) == 0

        await eventually(exact, what="nothing is missing", within=20, every=0.1)
        assert capsys.readouterr().out.splitlines() == ["Exactly what the rules need is granted.", "Nothing is missing."]
    finally:
        for path, uid in applied:
            await kube.api.delete(path, uid=uid)
    config.write_text(config.read_text().replace(kube.server, "https://127.0.0.1:1"))
    assert await command("--check", "--config", settings) == 3
    assert "not checked: cluster 'prod' can't be reached" in capsys.readouterr().out
