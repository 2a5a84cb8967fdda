"""Fixtures on a real Kubernetes API server: `kube`, `namespace`, `run`, `ctx`, `account`, `nodes`.

`pytest tests/kubernetes` starts a cluster of its own (`tests/servers/kube`); `--kubeconfig FILE --context NAME` uses another one, in
namespaces made and deleted by the tests.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from actions.kubernetes.client import Client
from actions.kubernetes.connection import KubernetesConnection, connect
from remediator.action import Identity
from remediator.errors import NotFound
from remediator.testing import LocalContext
from tests.servers import gitops
from tests.servers.kube.kubeconfig import Kubeconfig, read_kubeconfig
from tests.servers.kube.nodes import ZONES, node
from tests.servers.kube.workloads import Workloads
from tests.servers.ports import eventually

ROOT = Path(__file__).parents[2]
ONLY = "remediator.test/only"
"""Taint and label of a test's own nodes; the value is its namespace."""
Object = dict[str, Any]
Rules = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Kube:
    """The cluster, and an administrator's client (field manager `tests`)."""

    kubeconfig: Path
    context: str
    server: str
    simulated: bool
    """Whether the nodes are simulated: they then do what annotations ask for, too."""
    api: Client

    def connection(self) -> KubernetesConnection:
        """Return the administrator's connection."""
        return KubernetesConnection(kubeconfig=str(self.kubeconfig), context=self.context)

    async def storage_class(self, *, expands: bool) -> str:
        """Return a StorageClass that allows expansion, or one that doesn't; the default class where there is a choice.

        Raises `LookupError` when the cluster has none.
        """
        classes = await self.api.list("/apis/storage.k8s.io/v1/storageclasses")
        fitting = [item for item in classes if bool(item.get("allowVolumeExpansion")) is expands and item["metadata"]["name"] != "stuck"]
        if not fitting:
            raise LookupError(f"this cluster has no StorageClass with allowVolumeExpansion {expands}")
        default = "storageclass.kubernetes.io/is-default-class"
        fitting.sort(key=lambda item: (item["metadata"].get("annotations") or {}).get(default) != "true")
        return str(fitting[0]["metadata"]["name"])


# --- the cluster -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubeconfig]:
    """The cluster that was named, or one that lives as long as anybody in this run of pytest uses it."""
    given = request.config.getoption("--kubeconfig")
    if given is not None:
        named = read_kubeconfig(given, request.config.getoption("--context"))
        yield named
        asyncio.run(_tidy(named))
        return
    base = tmp_path_factory.getbasetemp()
    directory = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "kube"
    directory.mkdir(exist_ok=True)
    with (directory / "users").open("a") as users:
        fcntl.flock(users, fcntl.LOCK_SH)  # the cluster ends when the last such lock is gone, however its holder ended
        yield read_kubeconfig(_started(directory), "test")


async def _tidy(cluster: Kubeconfig) -> None:
    """Take away what tests have made for the whole of a cluster that outlives them."""
    context = LocalContext(
        {"admin": KubernetesConnection(kubeconfig=str(cluster.path), context=cluster.context)}, identity=Identity("tests")
    )
    try:
        await gitops.forget(await connect(context, "admin"))
    finally:
        await context.aclose()


def _started(directory: Path) -> Path:
    """Start the cluster in a directory unless somebody did, wait until it is ready, and return its kubeconfig."""
    config, output = directory / "config", directory / "serve.log"
    with (directory / "starting").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if config.exists():
            return config
        argv = [sys.executable, "-m", "tests.servers.kube", "serve", "--while-used", "--directory", str(directory)]
        with output.open("ab") as log:
            process = subprocess.Popen(
                argv, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, close_fds=True
            )
        deadline = time.monotonic() + 120
        while not config.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                process.terminate()
                raise RuntimeError(f"no test cluster within two minutes; logs are in {directory}:\n{output.read_text()[-2_000:]}")
            time.sleep(0.05)
        return config


@pytest.fixture
async def kube(cluster: Kubeconfig) -> AsyncIterator[Kube]:
    """The cluster and a client with all rights."""
    connection = KubernetesConnection(kubeconfig=str(cluster.path), context=cluster.context)
    context = LocalContext({"admin": connection}, identity=Identity("tests"))
    try:
        api = await connect(context, "admin")
        yield Kube(cluster.path, cluster.context, cluster.server, cluster.simulated, api)
    finally:
        await context.aclose()


@pytest.fixture
async def namespace(kube: Kube) -> AsyncIterator[str]:
    """A fresh namespace; deleted afterwards, without waiting until everything in it is gone."""
    name = f"remediator-test-{secrets.token_hex(4)}"
    labels = {"remediator.test/run": str(os.getpid())}
    made = await kube.api.create("/api/v1/namespaces", {"metadata": {"name": name, "labels": labels}})

    async def usable() -> bool:
        try:
            await kube.api.get(f"/api/v1/namespaces/{name}/serviceaccounts/default")
        except NotFound:
            return False
        return True

    try:
        await eventually(usable, what=f"the default service account of {name}")
        yield name
    finally:
        await kube.api.delete(f"/api/v1/namespaces/{name}", uid=made["metadata"]["uid"])


@pytest.fixture
def run(kube: Kube, namespace: str) -> Workloads:
    """Make workloads in the namespace, as `Workloads` says.

    `await run("Deployment", "web", behaviours.RUNS, replicas=2)`
    """
    return Workloads(kube.api, namespace)


# --- who acts ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def ctx(kube: Kube) -> AsyncIterator[LocalContext]:
    """A context whose connection `prod` has all rights."""
    context = LocalContext({"prod": kube.connection()})
    yield context
    await context.aclose()


@pytest.fixture
async def account(kube: Kube, cluster: Kubeconfig, namespace: str, tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[LocalContext]]]:
    """Make service accounts: contexts whose connection `prod` has exactly the rights asked for.

    `await account(rules, cluster_rules=…, key=…)`: `rules` are RBAC policy rules in the namespace, `cluster_rules` in the whole
    cluster. Every account has what all authenticated users have as well (`system:basic-user`, `system:discovery`).
    """
    contexts: list[LocalContext] = []
    wide: list[tuple[str, str]] = []

    async def make(rules: Rules = (), *, cluster_rules: Rules = (), key: str = "test/1", name: str = "") -> LocalContext:
        name = name or f"account-{secrets.token_hex(3)}"
        token = await _new_account(kube.api, namespace, name)
        await _grant(kube.api, namespace, name, rules)
        if cluster_rules:
            wide.extend(await _grant_everywhere(kube.api, namespace, name, cluster_rules))
        path = cluster.for_token(token, tmp_path / f"{name}.kubeconfig")
        context = LocalContext({"prod": KubernetesConnection(kubeconfig=str(path))}, key=key)
        contexts.append(context)
        await _wait_for_rights(context, namespace, rules, cluster_rules)
        return context

    yield make
    for context in contexts:
        await context.aclose()
    for path, uid in wide:
        await kube.api.delete(path, uid=uid)


async def _new_account(api: Client, namespace: str, name: str) -> str:
    """Make a service account and return a token for it."""
    base = f"/api/v1/namespaces/{namespace}/serviceaccounts"
    await api.create(base, {"metadata": {"name": name}})
    answer = await api.create(f"{base}/{name}/token", {"spec": {"expirationSeconds": 3_600}})
    return str(answer["status"]["token"])


async def _grant(api: Client, namespace: str, name: str, rules: Rules) -> None:
    base = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}"
    await api.create(f"{base}/roles", {"metadata": {"name": name}, "rules": [dict(rule) for rule in rules]})
    await api.create(f"{base}/rolebindings", {"metadata": {"name": name}, **_binding("Role", name, namespace, name)})


async def _grant_everywhere(api: Client, namespace: str, name: str, rules: Rules) -> list[tuple[str, str]]:
    """Return the paths and uids of what was made."""
    base, unique = "/apis/rbac.authorization.k8s.io/v1", f"{namespace}-{name}"
    role = await api.create(f"{base}/clusterroles", {"metadata": {"name": unique}, "rules": [dict(rule) for rule in rules]})
    made = [(f"{base}/clusterroles/{unique}", str(role["metadata"]["uid"]))]
    body = {"metadata": {"name": unique}, **_binding("ClusterRole", unique, namespace, name)}
    binding = await api.create(f"{base}/clusterrolebindings", body)
    return [(f"{base}/clusterrolebindings/{unique}", str(binding["metadata"]["uid"])), *made]


def _binding(kind: str, role: str, namespace: str, account: str) -> Object:
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role}
    return {"roleRef": reference, "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace}]}


async def _wait_for_rights(context: LocalContext, namespace: str, rules: Rules, cluster_rules: Rules) -> None:
    """Wait until the API server's authorizer has heard of the last right of each kind."""
    client = await connect(context, "prod")
    for rule, where in ((rules[-1:], namespace), (cluster_rules[-1:], "")):
        if not rule or "nonResourceURLs" in rule[0]:
            continue
        resource, _, sub = str(rule[0]["resources"][-1]).partition("/")
        attributes = {"namespace": where, "verb": rule[0]["verbs"][-1], "group": rule[0]["apiGroups"][-1], "resource": resource}
        attributes |= {"subresource": sub, "name": (rule[0].get("resourceNames") or [""])[-1]}
        review = {"spec": {"resourceAttributes": attributes}}

        async def allowed(review: Object = review) -> bool:
            answer = await client.create("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)
            return bool(answer["status"]["allowed"])

        await eventually(allowed, what=f"the account may {rule[0]['verbs'][-1]} {resource}")


# --- nodes of one's own --------------------------------------------------------------------------------------------------------


class OwnNodes:
    """`await nodes("zone-a")` makes a simulated node that only Pods of this test's namespace come to, with `nodes.only` in their spec."""

    def __init__(self, api: Client, namespace: str) -> None:
        self._api = api
        self._namespace = namespace
        self.names: list[str] = []
        toleration = {"key": ONLY, "operator": "Equal", "value": namespace, "effect": "NoSchedule"}
        self.only: Object = {"nodeSelector": {ONLY: namespace}, "tolerations": [toleration]}
        """Fields of a Pod's spec: `run("Deployment", "web", pod=nodes.only)`."""

    async def __call__(self, zone: str = next(iter(ZONES.values()))) -> str:
        """Make a node in a zone, wait until it is ready, and return its name."""
        name = f"sim-{secrets.token_hex(4)}"
        taint = {"key": ONLY, "value": self._namespace, "effect": "NoSchedule"}
        body = node(name, zone=zone, taints=[taint])
        body["metadata"]["labels"][ONLY] = self._namespace
        await self._api.create("/api/v1/nodes", body)
        self.names.append(name)
        await self.until(name, _is_ready, what="it is ready")
        return name

    async def get(self, name: str) -> Object:
        """Read a node."""
        return await self._api.get(f"/api/v1/nodes/{name}")

    async def merge(self, name: str, body: Object) -> Object:
        """Merge-patch a node: `{"metadata": {"annotations": {"remediator.test/ready": "Unknown"}}}`, say."""
        return await self._api.patch(f"/api/v1/nodes/{name}", body)

    async def until(self, name: str, condition: Callable[[Object], bool], *, what: str, within: float = 30.0) -> Object:
        """Poll a node until a condition holds, and return it."""
        seen: Object = {}

        async def holds() -> bool:
            nonlocal seen
            seen = await self.get(name)
            return condition(seen)

        await eventually(holds, what=f"node {name}: {what}", within=within, every=0.05)
        return seen

    async def aclose(self) -> None:
        """Delete the nodes."""
        for name in self.names:
            try:
                item = await self.get(name)
            except NotFound:
                continue
            await self._api.delete(f"/api/v1/nodes/{name}", uid=item["metadata"]["uid"])


def _is_ready(item: Object) -> bool:
    conditions = {entry["type"]: entry["status"] for entry in item["status"].get("conditions") or ()}
    pending = [taint for taint in item["spec"].get("taints") or () if taint["key"].startswith("node.kubernetes.io/")]
    return conditions.get("Ready") == "True" and not pending


@pytest.fixture
async def nodes(kube: Kube, namespace: str) -> AsyncIterator[OwnNodes]:
    """Nodes of the test's own, to cordon, drain and break; only on simulated clusters (tests that ask for it are left out on others)."""
    own = OwnNodes(kube.api, namespace)
    yield own
    await own.aclose()
