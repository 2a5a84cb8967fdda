"""The smallest rights that a rule set needs, in each granting system's own words. Pure.

Every action and check declares what it needs; here the declarations of those that are really called are put together for each
connection, narrowed by the connection's scope, and written as Kubernetes RBAC, SQL, Redis ACL, HTTP methods or an IAM policy.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from remediator.action import Action, Check, Connection, Permission, PermissionKind
from remediator.expressions import Facts, Template, Unknown
from remediator.model import JSON
from remediator.rules.model import Rule
from remediator.rules.reading import Catalogue

OWN = ("alertmanager.standing", "prometheus.alert")
"""Checks that the daemon itself makes before it acts and while it verifies."""

_GLOB = re.compile(r"[*?\[]")
_SECRET = re.compile(r"[^/]+/[^/]+/[^/]+/[^/]+")

Kind = type[Action[Any]] | type[Check[Any]]


@dataclass(frozen=True)
class Need:
    """What the credentials of one connection must be allowed to do, and nothing else."""

    connection: str
    settings: Connection
    permissions: tuple[Permission, ...]
    secrets: tuple[tuple[str, str], ...] = ()
    """Namespace and name of each Secret that the settings refer to through this connection."""

    def of(self, kind: PermissionKind) -> tuple[Permission, ...]:
        """Return those that one system grants."""
        return tuple(one for one in self.permissions if one.kind is kind)


# --- what is needed ------------------------------------------------------------------------------------------------------


def needs(
    rules: Iterable[Rule],
    catalogue: Catalogue,
    connections: Mapping[str, Connection],
    *,
    written: Mapping[str, JSON] | None = None,
) -> tuple[Need, ...]:
    """Return what each connection needs, by name; those that need nothing are left out.

    `connections` are all of the settings. A call whose connection is chosen by a label counts for every connection of its kind.
    `written` are the settings as plain values, where references to Secrets are looked for.
    """
    found: dict[str, list[Permission]] = {name: [] for name in connections}
    for kind, connection, params in (*_calls(rules, catalogue), *_own(catalogue, connections)):
        for name, settings in connections.items():
            if kind.connection is not None and isinstance(settings, kind.connection) and connection in (None, name):
                found[name] += _narrowed(kind.permissions, params)
    secrets = _secrets(written or {})
    merged = (Need(name, connections[name], merge(found[name]), secrets.get(name, ())) for name in sorted(found))
    return tuple(need for need in merged if need.permissions or need.secrets)


def _calls(rules: Iterable[Rule], catalogue: Catalogue) -> Iterator[tuple[Kind, str | None, Mapping[str, JSON]]]:
    """Give each call: its kind, the connection it names (None: not a fixed one), and its parameters as written."""
    for rule in rules:
        for check in rule.checks:
            kind = catalogue.check(check.check)
            if kind is not None:
                yield kind, *_call(kind, check.params, rule)
        for step in (step for remedy in rule.remedies for step in remedy.steps):
            action = catalogue.action(step.action)
            if action is not None:
                yield action, *_call(action, step.params, rule)


def _own(catalogue: Catalogue, connections: Mapping[str, Connection]) -> Iterator[tuple[Kind, str | None, Mapping[str, JSON]]]:
    """Give the calls that the daemon makes by itself: to ask whether an alert still stands, and to keep a client open."""
    for name in OWN:
        kind = catalogue.check(name)
        if kind is not None:
            yield kind, None, {}
    for name, settings in connections.items():
        kind = catalogue.check(settings.keepalive) if settings.keepalive is not None else None
        if kind is not None:
            yield kind, name, {}


def _call(kind: Kind, params: Template, rule: Rule) -> tuple[str | None, Mapping[str, JSON]]:
    source = params.source if isinstance(params.source, Mapping) else {}
    connection = source.get(kind.connection_field)
    for place, expression in params.leaves:
        if place == (kind.connection_field,):
            # Only a pack's variables name a connection; what comes from an alert may select any of its kind.
            value = expression.evaluate(Facts({f"vars.{name}": value for name, value in rule.vars.items()}))
            whole = isinstance(connection, str) and connection[2:-1].strip() == expression.text.strip()
            connection = value if whole and not isinstance(value, Unknown) else None
    return (connection if isinstance(connection, str) else None), source


def _narrowed(permissions: Iterable[Permission], params: Mapping[str, JSON]) -> list[Permission]:
    """Narrow HTTP rights to the method and path that a rule fixes."""
    found = []
    for one in permissions:
        method, path = params.get("method"), params.get("path")
        verbs = (method,) if one.kind is PermissionKind.HTTP and method in one.verbs else one.verbs
        fixed = one.kind is PermissionKind.HTTP and one.resource == "*" and isinstance(path, str) and "${" not in path
        found.append(Permission(one.kind, verbs, str(path) if fixed else one.resource, one.why))
    return found


def merge(permissions: Iterable[Permission]) -> tuple[Permission, ...]:
    """Return each resource once with all verbs asked for it, sorted. What Redis' sentinels grant stays apart from its servers'."""
    found: dict[tuple[PermissionKind, str, bool], tuple[set[str], set[str]]] = {}
    for one in permissions:
        verbs, whys = found.setdefault((one.kind, one.resource, on_sentinels(one)), (set(), set()))
        verbs |= set(one.verbs)
        whys |= {one.why} - {""}
    keys = sorted(found, key=lambda key: (key[0].value, key[1], key[2]))
    return tuple(Permission(key[0], tuple(sorted(found[key][0])), key[1], "; ".join(sorted(found[key][1]))) for key in keys)


def on_sentinels(permission: Permission) -> bool:
    """Tell whether Redis' sentinels grant it; the servers know no `sentinel` commands."""
    return permission.kind is PermissionKind.REDIS and any(verb.startswith("+sentinel|") for verb in permission.verbs)


def _secrets(written: JSON) -> dict[str, tuple[tuple[str, str], ...]]:
    """Return the Secrets that settings refer to, by the connection they are read through."""
    found: dict[str, set[tuple[str, str]]] = {}
    for reference in _references(written):
        cluster, namespace, secret, _ = reference.split("/")
        found.setdefault(cluster, set()).add((namespace, secret))
    return {cluster: tuple(sorted(names)) for cluster, names in found.items()}


def _references(value: JSON) -> Iterator[str]:
    if isinstance(value, Mapping):
        reference = value.get("kubernetes") if len(value) == 1 else None
        if isinstance(reference, str) and _SECRET.fullmatch(reference):
            yield reference
        for item in value.values():
            yield from _references(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _references(item)


# --- Kubernetes ----------------------------------------------------------------------------------------------------------


def verbs_by_resource(permissions: Iterable[Permission]) -> dict[str, list[str]]:
    """Return the Kubernetes rights as `GROUP/RESOURCE[/SUBRESOURCE]` to sorted verbs; others are passed over."""
    chosen = merge(one for one in permissions if one.kind is PermissionKind.KUBERNETES)
    return {one.resource: list(one.verbs) for one in chosen}


def policy_rules(permissions: Iterable[Permission]) -> list[dict[str, JSON]]:
    """Return the rules of a Role: resources of one group that need the same verbs share one.

    >>> policy_rules([Permission(PermissionKind.KUBERNETES, ("list",), "/pods")])
    [{'apiGroups': [''], 'resources': ['pods'], 'verbs': ['list']}]
    """
    shared: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for resource, verbs in verbs_by_resource(permissions).items():
        group, _, name = resource.partition("/")
        shared.setdefault((group, tuple(verbs)), []).append(name)
    return [{"apiGroups": [group], "resources": sorted(names), "verbs": list(verbs)} for (group, verbs), names in sorted(shared.items())]


def kubernetes_manifests(need: Need, *, account: str = "remediator", namespace: str = "remediator") -> list[dict[str, JSON]]:
    """Return Roles and bindings for a cluster: one Role in each namespace of the connection's scope.

    A scope that is missing or holds patterns can't be said in RBAC; then a ClusterRole is what remains, and the scope holds alone.
    """
    rules, scope = policy_rules(need.permissions), need.settings.scope.get("namespace")
    subject = {"kind": "ServiceAccount", "name": account, "namespace": namespace}
    found: list[dict[str, JSON]] = []
    if rules and (scope is None or any(_GLOB.search(one) for one in scope)):
        found += _role(account, None, rules, subject)
    elif rules:
        for one in sorted(scope or ()):
            found += _role(account, one, rules, subject)
    for one in sorted({place for place, _ in need.secrets}):
        names = [name for place, name in need.secrets if place == one]
        read = [{"apiGroups": [""], "resources": ["secrets"], "resourceNames": names, "verbs": ["get"]}]
        found += _role(f"{account}-secrets", one, read, subject)
    return found


def _role(name: str, namespace: str | None, rules: list[dict[str, JSON]], subject: JSON) -> list[dict[str, JSON]]:
    prefix, meta = ("", {"name": name, "namespace": namespace}) if namespace is not None else ("Cluster", {"name": name})
    api = "rbac.authorization.k8s.io"
    reference = {"apiGroup": api, "kind": f"{prefix}Role", "name": name}
    return [
        {"apiVersion": f"{api}/v1", "kind": f"{prefix}Role", "metadata": meta, "rules": rules},
        {"apiVersion": f"{api}/v1", "kind": f"{prefix}RoleBinding", "metadata": meta, "roleRef": reference, "subjects": [subject]},
    ]


# --- the others ------------------------------------------------------------------------------------------------------------


def sql_grants(need: Need) -> str:
    """Return the grants for a PostgreSQL role; what depends on a statement is left to a person, as a comment."""
    role, database = (_quoted(str(getattr(need.settings, name, name))) for name in ("user", "database"))
    lines = []
    for one in need.of(PermissionKind.POSTGRES):
        match one.verbs:
            case ("member",):
                lines.append(f"GRANT {one.resource} TO {role};  -- {one.why}")
            case ("CONNECT",):
                lines.append(f"GRANT CONNECT ON DATABASE {database} TO {role};")
            case ("EXECUTE",):
                lines.append(f"GRANT EXECUTE ON FUNCTION {one.resource} TO {role};  -- {one.why}")
            case _:
                lines.append(f"-- {role} needs {', '.join(one.verbs)} on {one.resource}: {one.why}")
    return "\n".join(lines) + "\n"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def redis_acl(need: Need) -> str:
    """Return the ACL commands for a Redis user, for servers and sentinels apart. The password is given separately."""
    user = getattr(need.settings, "username", None) or "remediator"
    return "".join(
        f"# on the {place}\nACL SETUSER {user} on resetkeys resetchannels -@all {' '.join(_terms(need, sentinels=sentinels))}\n"
        for place, sentinels in (("servers", False), ("sentinels", True))
        if _terms(need, sentinels=sentinels)
    )


def _terms(need: Need, *, sentinels: bool) -> list[str]:
    """Return patterns and terms; a pattern for all keys is narrowed to the connection's scope."""
    chosen = [one for one in need.of(PermissionKind.REDIS) if on_sentinels(one) is sentinels]
    keys = need.settings.scope.get("key", ("*",))
    patterns = {key for one in chosen if one.resource for key in (keys if one.resource == "*" else (one.resource,))}
    return [*(f"~{pattern}" for pattern in sorted(patterns)), *sorted({verb for one in chosen for verb in one.verbs})]


def http_requests(need: Need) -> str:
    """Return the requests that a gateway must let through, one line for each path."""
    return "".join(f"{','.join(one.verbs)} {one.resource}\n" for one in need.of(PermissionKind.HTTP))


def iam_policy(need: Need) -> dict[str, JSON]:
    """Return the IAM policy document."""
    chosen = need.of(PermissionKind.AWS)
    statements = [{"Effect": "Allow", "Action": list(one.verbs), "Resource": one.resource or "*"} for one in chosen]
    return {"Version": "2012-10-17", "Statement": statements}


def render(found: Sequence[Need], *, account: str = "remediator", namespace: str = "remediator") -> dict[str, str]:
    """Return the files to hand to each system's owner: name to text. What is not needed has no file."""
    files: dict[str, str] = {}
    for need in found:
        kinds = {one.kind for one in need.permissions}
        manifests = kubernetes_manifests(need, account=account, namespace=namespace)
        if manifests:
            files[f"{need.connection}.yaml"] = yaml.safe_dump_all(manifests, sort_keys=False)
        if PermissionKind.POSTGRES in kinds:
            files[f"{need.connection}.sql"] = sql_grants(need)
        if PermissionKind.REDIS in kinds:
            files[f"{need.connection}.acl"] = redis_acl(need)
        if PermissionKind.HTTP in kinds:
            files[f"{need.connection}.http"] = http_requests(need)
        if PermissionKind.AWS in kinds:
            files[f"{need.connection}.iam.json"] = json.dumps(iam_policy(need), indent=2) + "\n"
    return files
