"""The rights a rule set needs: put together from declarations, narrowed by scopes, and enough on real servers."""

from __future__ import annotations

import os

import asyncpg
import kubernetes_validate
import pytest
import yaml

from actions.http.request import HttpConnection
from actions.kubernetes.connection import KubernetesConnection
from actions.postgres.connection import PostgresConnection
from actions.redis.connection import RedisConnection
from remediator.action import Audit, Connection, Permission, PermissionKind, Right
from remediator.permissions.grants import iam_policy, kubernetes_manifests, policy_rules, redis_acl, render, sql_grants
from remediator.permissions.needs import Need, kubernetes_rights, merge, needs
from remediator.registry import Registry
from remediator.rules.compile import compile_ruleset
from remediator.rules.model import Rule
from remediator.rules.packs import PackSource
from remediator.testing import LocalContext
from tests.servers.postgres import PostgresServer
from tests.servers.redis import RedisServer, in_environment

RULES = """
rules:
  - name: api
    match: ['alertname = "ApiDown"']
    checks:
      pods: {kubernetes.pods: {cluster: production, namespace: "${labels.namespace}", owner: "deployment/api"}}
      db: {postgres.connections: {connection: "${labels.instance}"}}
    remedies:
      - name: scale
        steps:
          - kubernetes.scale: {cluster: "${vars.cluster}", namespace: shop, deployment: api, by: 1, max: 5}
          - http.request: {connection: flags, method: PUT, path: /api/flags/checkout, json: {enabled: false}}
        verify: {within: 5m, hold: 30s}
"""
PACK = "vars:\n  cluster: {type: string, default: production}\n"
REGISTRY = Registry()


def rules(text: str = RULES) -> tuple[Rule, ...]:
    """Compile a pack."""
    pack = PackSource("own", {}, {"pack.yaml": PACK.encode(), "rules.yaml": text.encode()})
    return compile_ruleset([pack], REGISTRY).rules


def cluster(**more: object) -> KubernetesConnection:
    """Return a cluster's settings."""
    return KubernetesConnection.model_validate({"in_cluster": True, **more})


def postgres(**more: object) -> PostgresConnection:
    """Return a database's settings."""
    return PostgresConnection.model_validate({"host": "db", "user": "remediator", "database": "shop", **more})


def found(connections: dict[str, Connection], text: str = RULES, written: object = None) -> dict[str, Need]:
    """Return the needs of the rules, by connection."""
    return {need.connection: need for need in needs(rules(text), REGISTRY, connections, written=written or {})}  # type: ignore[arg-type]


def declared(*names: str) -> set[tuple[str, str]]:
    """Return resources and verbs that actions and checks declare."""
    kinds = [REGISTRY.action(name) or REGISTRY.check(name) for name in names]
    return {(one.resource, verb) for kind in kinds if kind is not None for one in kind.needed({}) for verb in one.verbs}


def asked(need: Need, kind: PermissionKind) -> set[tuple[str, str]]:
    """Return the same of a need."""
    return {(one.resource, verb) for one in need.of(kind) for verb in one.verbs}


OTHERS = ("statefulset", "daemonset", "controllerrevision")


def test_needs_are_exactly_what_the_calls_declare() -> None:
    """A connection that a rule or a pack's variable names gets the rights of what is called on it; others get none."""
    needed = found({"production": cluster(), "staging": cluster()})
    deployments = {one for one in declared("kubernetes.pods", "kubernetes.scale") if not any(word in one[0] for word in OTHERS)}
    assert asked(needed["production"], PermissionKind.KUBERNETES) == deployments
    assert "staging" not in needed


def test_a_label_may_select_every_connection_of_its_kind() -> None:
    """Whichever the alert selects must be able to answer."""
    needed = found({"orders": postgres(), "stock": postgres(), "cache": RedisConnection(host="r")})
    wanted = declared("postgres.connections", "postgres.ping")
    assert asked(needed["orders"], PermissionKind.POSTGRES) == asked(needed["stock"], PermissionKind.POSTGRES) == wanted
    assert "cache" not in needed


def test_requests_are_narrowed_to_what_the_rule_fixes() -> None:
    """A gateway needs to let through one method on one path, not all that the action could do."""
    needed = found({"flags": HttpConnection.model_validate({"base_url": "https://flags.example.com"})})
    assert render(list(needed.values())) == {"flags.http": "PUT /api/flags/checkout\n"}


def test_roles_stand_in_each_namespace_of_the_scope() -> None:
    """Exact names become a Role each, and no ClusterRole; what a rule does in one namespace is granted there alone."""
    (need,) = found({"production": cluster(scope={"namespace": ["shop", "checkout"]})}).values()
    manifests = kubernetes_manifests(need)
    assert [(one["kind"], one["metadata"]["namespace"]) for one in manifests] == [
        (kind, place) for place in ("checkout", "shop") for kind in ("Role", "RoleBinding")
    ]
    for one in manifests:
        kubernetes_validate.validate(one, kubernetes_validate.latest_version(), strict=True)
    assert "patch" not in str(manifests[0])
    assert {"apiGroups": ["apps"], "resources": ["deployments/scale"], "resourceNames": ["api"], "verbs": ["get", "patch"]} in manifests[2][
        "rules"
    ]


@pytest.mark.parametrize("scope", [{}, {"namespace": ["shop", "shop-*"]}])
def test_patterns_need_a_cluster_role(scope: dict[str, list[str]]) -> None:
    """RBAC knows no patterns. What a rule does in a namespace that it names needs no more than a Role there."""
    (need,) = found({"production": cluster(scope=scope)}).values()
    manifests = kubernetes_manifests(need)
    assert [one["kind"] for one in manifests] == ["ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"]
    assert "patch" not in str(manifests[0])


def test_a_place_outside_of_the_scope_is_granted_to_checks_only() -> None:
    """No plan may touch it, so no right to change it is handed out; looking is not held against scopes."""
    (need,) = found({"production": cluster(scope={"namespace": ["checkout"]})}, RULES.replace('"${labels.namespace}"', "front")).values()
    assert {right.place for right in kubernetes_rights(need)} == {"front"}
    assert not any(right.verb == "patch" for right in kubernetes_rights(need))


THROUGH = """
rules:
  - name: api
    match: ['alertname = "ApiDown"']
    checks: {}
    remedies:
      - name: stop its owner
        steps: [{kubernetes.suspend_owner: {cluster: production, namespace: shop, deployment: api, lasts: 1h}}]
        verify: {within: 5m, hold: 30s}
"""


def test_gitops_is_granted_where_it_is() -> None:
    """Argo CD and Flux have their objects elsewhere than the workload, perhaps in another cluster."""
    own = cluster(argocd_namespace="argo", gitops_cluster="hub", scope={"namespace": ["shop"]})
    needed = found({"production": own, "hub": cluster(scope={"namespace": ["argo", "flux-system"]})}, THROUGH)
    assert kubernetes_rights(needed["production"]) == {Right("apps/deployments", "get", "shop", "api")}
    places: dict[str, set[str]] = {}
    for right in kubernetes_rights(needed["hub"]):
        places.setdefault(right.resource, set()).add(right.place)
    assert places == {
        "argoproj.io/applications": {"argo"},
        "kustomize.toolkit.fluxcd.io/kustomizations": {"argo", "flux-system"},
        "helm.toolkit.fluxcd.io/helmreleases": {"argo", "flux-system"},
    }


@pytest.mark.parametrize(
    ("owner", "resource", "name"),
    [
        ("deployment/api", "apps/deployments", "api"),
        ("statefulset/db", "apps/statefulsets", "db"),
        ("${labels.owner}", "apps/daemonsets", ""),
    ],
)
def test_a_workload_that_a_rule_names_is_granted_alone(owner: str, resource: str, name: str) -> None:
    """Its kind and its name; what an alert's label will say is granted on every kind."""
    (need,) = found({"production": cluster()}, RULES.replace("deployment/api", owner)).values()
    rights = {
        right for right in kubernetes_rights(need) if right.resource.startswith("apps/") and right.place == "" and right.verb == "get"
    }
    assert Right(resource, "get", "", name) in rights
    assert (len(rights) == 1) is bool(name)


def test_what_lies_in_no_namespace_needs_a_cluster_role() -> None:
    """Nodes, volumes and storage classes can't be granted by a Role, whatever the scope; a namespace itself can."""
    rights = (("/nodes", "get"), ("/nodes", "list"), ("storage.k8s.io/storageclasses", "get"), ("/pods", "list"), ("/namespaces", "get"))
    need = Need(
        "prod",
        cluster(scope={"namespace": ["shop"], "node": ["worker-1"]}),
        merge(Permission(PermissionKind.KUBERNETES, (verb,), resource) for resource, verb in rights),
    )
    assert kubernetes_rights(need) == {
        Right("/nodes", "get", "", "worker-1"),
        Right("/nodes", "list"),
        Right("storage.k8s.io/storageclasses", "get"),
        Right("/pods", "list", "shop"),
        Right("/namespaces", "get", "shop"),
    }


def test_an_empty_scope_is_not_everything() -> None:
    """A scope that allows no namespace grants in none."""
    (need,) = found({"production": cluster(scope={"namespace": []})}).values()
    assert kubernetes_manifests(need) == []


def test_secrets_referred_to_are_read_by_name() -> None:
    """References to a cluster's Secrets need `get` on these alone, through the cluster they name."""
    written = {"connections": {"flags": {"kind": "http", "bearer": {"kubernetes": "production/shop/flags/token"}}}}
    needed = found({"production": cluster(scope={"namespace": []})}, written=written)
    role, binding = kubernetes_manifests(needed["production"])
    assert role["metadata"] == binding["metadata"] == {"name": "remediator", "namespace": "shop"}
    assert role["rules"] == [{"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["flags"], "verbs": ["get"]}]


def test_every_declaration_can_be_written() -> None:
    """Each action and check of the catalogue renders for its own kind of connection, without a wildcard in RBAC."""
    for provider in REGISTRY.catalogue():
        for kind in (*provider.actions, *provider.checks):
            for one in policy_rules(kubernetes_rights(Need("it", Connection(), merge(kind.permissions)))):
                assert "*" not in str(one)
            written = render([Need("it", Connection(), merge(kind.permissions))])
            assert bool(written) is bool(kind.permissions)


def test_iam_policy_names_actions_and_resources() -> None:
    """One statement a resource."""
    need = Need("aws", Connection(), merge([Permission(PermissionKind.AWS, ("rds:RebootDBInstance",), "arn:aws:rds:*:*:db:orders")]))
    assert iam_policy(need)["Statement"] == [
        {"Effect": "Allow", "Action": ["rds:RebootDBInstance"], "Resource": "arn:aws:rds:*:*:db:orders"}
    ]


def test_names_are_quoted_in_grants() -> None:
    """A role's name is data, also when somebody chose an odd one."""
    need = Need("db", postgres(user='a"; DROP TABLE x; --'), merge([Permission(PermissionKind.POSTGRES, ("member",), "pg_read_all_stats")]))
    assert sql_grants(need).startswith('GRANT pg_read_all_stats TO "a""; DROP TABLE x; --";')


DATABASE = """
rules:
  - name: connections
    match: ['alertname = "TooManyConnections"']
    checks: {server: {postgres.connections: {connection: orders, idle_over: 10m}}}
    remedies:
      - name: end idle connections
        steps: [{postgres.terminate_idle: {connection: orders, idle_for: 10m, max: 5}}]
        verify: {within: 5m, hold: 30s}
"""


async def test_grants_are_enough_on_a_real_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new role with exactly these grants can do what the rule does; without them it is refused."""
    monkeypatch.setenv("GRANTS_TEST_PASSWORD", "s3cret")
    with PostgresServer() as server:
        settings = postgres(
            host=server.host, port=server.port, database="postgres", password={"env": "GRANTS_TEST_PASSWORD"}, ssl="disable"
        )
        (need,) = found({"orders": settings}, DATABASE).values()
        admin = await asyncpg.connect(server.dsn)
        await admin.execute("CREATE ROLE remediator LOGIN PASSWORD 's3cret'; REVOKE CONNECT ON DATABASE postgres FROM PUBLIC")
        await admin.execute(sql_grants(need))
        check = REGISTRY.check("postgres.connections")
        assert check is not None
        ctx = LocalContext({"orders": settings})
        facts = await check().run(check.Params.model_validate({"connection": "orders", "idle_over": "10m"}), ctx)
        assert facts["idle_over"] == 0
        assert await settings.audit("orders", need.rights, ctx) == Audit()
        await admin.execute(
            "REVOKE pg_signal_backend FROM remediator; GRANT pg_write_all_data TO remediator; ALTER ROLE remediator CREATEDB"
        )
        found_out = await settings.audit("orders", need.rights, ctx)
        assert found_out.missing == (Right("pg_signal_backend", "member"),)
        assert set(found_out.excessive) == {Right("pg_write_all_data", "member"), Right("CREATEDB", "attribute")}
        await admin.close()
        await ctx.aclose()


CACHE = """
rules:
  - name: memory
    match: ['alertname = "RedisFull"']
    checks: {memory: {redis.memory: {connection: cache}}, jobs: {redis.queue_length: {connection: cache, key: "jobs:video"}}}
    remedies:
      - name: forget sessions
        steps: [{redis.delete_keys: {connection: cache, pattern: "jobs:*"}}]
        verify: {within: 5m, hold: 30s}
"""


async def _audited(server: RedisServer, settings: RedisConnection, rights: tuple[Right, ...], ctx: LocalContext) -> None:
    """The user may not ask, then has exactly its terms, then too few, too many, and keys out of its scope."""
    assert not any("cluster" in right.verb or "sentinel" in right.verb for right in rights)
    found = await settings.audit("cache", rights, ctx)
    assert set(found.unknown) == set(rights)
    assert "lacks +acl|dryrun" in found.notes[0]
    for terms, missing, excessive in (
        (["+acl|dryrun"], set(), set()),
        (["-unlink"], {Right("jobs:*", "+unlink")}, set()),
        (["+unlink", "+flushall"], set(), {Right("", "+flushall")}),
        (
            ["-flushall", "-unlink", "allkeys"],
            {Right("jobs:*", "+unlink")},
            {Right("*", "+type"), Right("*", "+llen"), Right("*", "+eval")},
        ),
    ):
        server.call("ACL", "SETUSER", "remediator", *terms)
        found = await settings.audit("cache", rights, ctx)
        assert set(found.missing) == missing
        assert excessive <= set(found.excessive)
        assert bool(found.excessive) is bool(excessive)
        assert not found.unknown


async def test_acl_is_enough_on_a_real_server_and_narrowed_to_the_scope() -> None:
    """A user with exactly these terms can look at the queue; keys outside of the connection's scope stay closed to it."""
    server = RedisServer()
    server.start()
    try:
        password = in_environment("ACL_TEST_PASSWORD", "s3cret")
        settings = RedisConnection.model_validate(
            {"host": "127.0.0.1", "port": server.port, "username": "remediator", "password": password, "scope": {"key": ["jobs:*"]}}
        )
        (need,) = found({"cache": settings}, CACHE).values()
        lines = [line for line in redis_acl(need).splitlines() if not line.startswith("#")]
        assert "~jobs:*" in lines[0]
        assert "~* " not in lines[0]
        with server.admin() as client:
            client.execute_command(*lines[0].split())
            client.execute_command("ACL", "SETUSER", "remediator", ">s3cret")
            client.lpush("jobs:video", "a", "b")
            assert client.execute_command("ACL", "DRYRUN", "remediator", "GET", "other") != "OK"
        ctx = LocalContext({"cache": settings})
        check = REGISTRY.check("redis.queue_length")
        assert check is not None
        facts = await check().run(check.Params.model_validate({"connection": "cache", "key": "jobs:video"}), ctx)
        assert facts["length"] == 2
        await _audited(server, settings, need.rights, ctx)
        await ctx.aclose()
    finally:
        server.stop()
        os.environ.pop("ACL_TEST_PASSWORD", None)


def test_files_can_be_handed_over() -> None:
    """One file for each connection and system, in a form its tools read."""
    files = render(list(found({"production": cluster(), "orders": postgres()}).values()))
    assert set(files) == {"production.yaml", "orders.sql"}
    assert [one["kind"] for one in yaml.safe_load_all(files["production.yaml"])] == [
        "ClusterRole",
        "ClusterRoleBinding",
        "Role",
        "RoleBinding",
    ]
    assert all(line.startswith(("GRANT ", "-- ")) for line in files["orders.sql"].splitlines())
