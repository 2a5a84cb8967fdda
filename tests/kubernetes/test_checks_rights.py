"""Every check's declared rights: enough for what a rule asks, and each of them needed, on a real API server.

The rights are those that `remediator permissions` would grant for the rule: the check's declaration, narrowed to what the rule fixes.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from actions.kubernetes import PROVIDER
from actions.kubernetes.connection import KubernetesConnection
from remediator.action import Right
from remediator.errors import CheckFailed
from remediator.permissions.needs import needs
from remediator.registry import Registry, complete
from remediator.rules.compile import compile_ruleset
from remediator.rules.packs import PackSource
from remediator.testing import LocalContext
from tests.kubernetes.conftest import Kube
from tests.kubernetes.looking import look
from tests.servers.kube.behaviours import RUNS, Behaviour
from tests.servers.kube.workloads import Workloads

CHECKS = {check.name: check for check in complete(PROVIDER).checks}
ELSEWHERE = {"kubernetes.owner"}
"""What it may have to read depends on the owner; its own tests have some."""
ALLOWED = (("true",),)
CALLS: dict[str, dict[str, Any]] = {
    "kubernetes.rollout": {"deployment": "web"},
    "kubernetes.rollout statefulset": {"statefulset": "db"},
    "kubernetes.pods": {"owner": "deployment/web"},
    "kubernetes.pods statefulset": {"owner": "statefulset/db"},
    "kubernetes.pods selector": {"selector": "app=web"},
    "kubernetes.logs": {"owner": "deployment/web", "contains": "x"},
    "kubernetes.events": {"object": "deployment/web"},
    "kubernetes.env secret": {"deployment": "web", "key": "SECRET"},
    "kubernetes.env config map": {"deployment": "web", "key": "ORIGIN"},
    "kubernetes.env unresolved": {"deployment": "web", "key": "SECRET", "resolve": False},
    "kubernetes.usage": {"owner": "deployment/web"},
    "kubernetes.exec": {"pod": "one", "argv": ["true"]},
    "kubernetes.pvc": {"claim": "data"},
    "kubernetes.hpa": {"deployment": "web"},
    "kubernetes.node": {"selector": "kubernetes.io/os"},
    "kubernetes.node with Pods": {"node": "NODE", "count_pods": True},
}
UNUSED = {
    "kubernetes.env secret": {("/configmaps", "get")},
    "kubernetes.env config map": {("/secrets", "get")},
}
"""Which kind of object a variable comes from only the template tells; a rule can't, so both may have to be read."""


async def prepare(kube: Kube, run: Workloads) -> None:
    """Make what the checks look at."""
    await run.create("Secret", {"metadata": {"name": "api"}, "data": {"JWT": base64.b64encode(b"x").decode()}})
    await run.create("ConfigMap", {"metadata": {"name": "api"}, "data": {"origin": "y"}})
    variables = [
        {"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "api", "key": "JWT"}}},
        {"name": "ORIGIN", "valueFrom": {"configMapKeyRef": {"name": "api", "key": "origin"}}},
    ]
    storage_class = await kube.storage_class(expands=True)
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}, "storageClassName": storage_class}
    await run.create("PersistentVolumeClaim", {"metadata": {"name": "data"}, "spec": spec})
    await run("Deployment", "web", Behaviour(RUNS.script, more={"env": variables}))
    await run("StatefulSet", "db")
    await run("Pod", "one")


def granted(name: str, params: Mapping[str, Any], namespace: str) -> list[Right]:
    """Return what `remediator permissions` finds that a rule with this one check needs."""
    written = {"cluster": "prod", **params, **({} if name == "kubernetes.node" else {"namespace": namespace})}
    rule = {
        "name": "r",
        "match": ['alertname = "A"'],
        "checks": {"c": {name: written}},
        "otherwise": "escalate",
    }
    pack = PackSource("own", {}, {"pack.yaml": b"{}", "rules.yaml": json.dumps({"rules": [rule]}).encode()})
    registry = Registry()
    rules = compile_ruleset([pack], registry).rules
    connection = KubernetesConnection.model_validate({"in_cluster": True, "scope": {"namespace": [namespace]}})
    (need,) = needs(rules, registry, {"prod": connection})
    return list(need.rights)


def policy(rights: Iterable[Right], *, wide: bool) -> list[dict[str, Any]]:
    """Return the policy rules for rights in a namespace, or in the whole cluster."""
    found = []
    for right in rights:
        if (right.place == "") is wide:
            group, _, resource = right.resource.partition("/")
            rule = {"apiGroups": [group], "resources": [resource], "verbs": [right.verb]}
            found.append({**rule, **({"resourceNames": [right.name]} if right.name else {})})
    return found


async def lend(account: Any, rights: list[Right], kube: Kube) -> LocalContext:
    """Return a context with exactly these rights, whose connection allows the command of these tests."""
    narrow: LocalContext = await account(policy(rights, wide=False), cluster_rules=policy(rights, wide=True))
    settings = narrow.connection(KubernetesConnection, "prod")
    return LocalContext({"prod": settings.model_copy(update={"exec_allow": ALLOWED})})


@pytest.mark.parametrize("call", CALLS)
async def test_declared_rights_are_enough_and_each_is_needed(account, kube: Kube, namespace: str, run: Workloads, call: str) -> None:
    """With what is declared the check tells; with any one right less it fails, and names verb and resource."""
    name = call.partition(" ")[0]
    await prepare(kube, run)
    node = (await run.pods("web"))[0]["spec"]["nodeName"]
    params = {key: node if value == "NODE" else value for key, value in CALLS[call].items()}
    where = {} if name == "kubernetes.node" else {"namespace": namespace}
    rights = granted(name, params, namespace)
    assert rights
    enough = await lend(account, rights, kube)
    assert "found" in await look(CHECKS[name], enough, **where, **params)
    await enough.aclose()
    for right in rights:
        if await _is_not_asked_for(call, right, kube):
            continue
        less = await lend(account, [one for one in rights if one != right], kube)
        resource = right.resource.partition("/")[2]
        with pytest.raises(CheckFailed, match=rf'cannot {right.verb} resource "{resource}"'):
            await look(CHECKS[name], less, **where, **params)
        await less.aclose()


async def _is_not_asked_for(call: str, right: Right, kube: Kube) -> bool:
    """Tell whether this server, or this variable, needs less than is declared."""
    older = right.resource == "/pods/exec" and right.verb == "create" and await kube.api.release() < (1, 35)
    return older or (right.resource, right.verb) in UNUSED.get(call, set())


def test_every_check_is_tried() -> None:
    """A new check comes with its rights held against a server."""
    assert {call.partition(" ")[0] for call in CALLS} | ELSEWHERE == CHECKS.keys()


def test_no_check_may_write() -> None:
    """Checks get, list and nothing else; a command in a container is the one exception, and operators must allow each."""
    for check in CHECKS.values():
        for permission in check.permissions:
            if permission.resource != "/pods/exec":
                assert set(permission.verbs) <= {"get", "list"}, check.name
