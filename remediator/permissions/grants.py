"""The rights that a rule set needs, written in each granting system's own words. Pure.

Kubernetes RBAC, SQL, Redis ACL, HTTP methods and paths, an IAM policy: what one hands to the owner of a system.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import yaml

from remediator.action import PermissionKind, Right
from remediator.model import JSON
from remediator.permissions.needs import Need, kubernetes_rights, on_sentinels

# --- Kubernetes ----------------------------------------------------------------------------------------------------------

_API = "rbac.authorization.k8s.io"


def policy_rules(rights: Iterable[Right]) -> list[dict[str, JSON]]:
    """Return the rules of a Role, wherever it is: resources of one group that need the same verbs (on the same objects) share one.

    >>> policy_rules([Right("/pods", "list")])
    [{'apiGroups': [''], 'resources': ['pods'], 'verbs': ['list']}]
    """
    names: dict[tuple[str, str], set[str]] = {}
    for right in rights:
        names.setdefault((right.resource, right.verb), set()).add(right.name)
    verbs: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (resource, verb), named in names.items():
        verbs.setdefault((resource, () if "" in named else tuple(sorted(named))), []).append(verb)
    shared: dict[tuple[str, tuple[str, ...], tuple[str, ...]], list[str]] = {}
    for (resource, only), several in verbs.items():
        group, _, name = resource.partition("/")
        shared.setdefault((group, tuple(sorted(several)), only), []).append(name)
    return [_rule(*key, resources) for key, resources in sorted(shared.items())]


def _rule(group: str, verbs: Sequence[str], names: Sequence[str], resources: Sequence[str]) -> dict[str, JSON]:
    only = {"resourceNames": list(names)} if names else {}
    return {"apiGroups": [group], "resources": sorted(resources), **only, "verbs": list(verbs)}


def kubernetes_manifests(need: Need, *, account: str = "remediator", namespace: str = "remediator") -> list[dict[str, JSON]]:
    """Return a ClusterRole for what is needed everywhere and outside of namespaces, a Role for each namespace, and their bindings."""
    rights = kubernetes_rights(need)
    subject = {"kind": "ServiceAccount", "name": account, "namespace": namespace}
    found: list[dict[str, JSON]] = []
    for place in sorted({right.place for right in rights}):
        found += _role(account, place, policy_rules(right for right in rights if right.place == place), subject)
    return found


def _role(name: str, place: str, rules: list[dict[str, JSON]], subject: JSON) -> list[dict[str, JSON]]:
    prefix, meta = ("", {"name": name, "namespace": place}) if place else ("Cluster", {"name": name})
    reference = {"apiGroup": _API, "kind": f"{prefix}Role", "name": name}
    return [
        {"apiVersion": f"{_API}/v1", "kind": f"{prefix}Role", "metadata": meta, "rules": rules},
        {"apiVersion": f"{_API}/v1", "kind": f"{prefix}RoleBinding", "metadata": meta, "roleRef": reference, "subjects": [subject]},
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
    patterns = {key for one in chosen if one.resource for key in need.resources(one)}
    return [*(f"~{pattern}" for pattern in sorted(patterns)), *sorted({verb for one in chosen for verb in one.verbs})]


def http_requests(need: Need) -> str:
    """Return the requests that a gateway must let through, one line for each path."""
    return "".join(f"{','.join(one.verbs)} {one.resource}\n" for one in need.of(PermissionKind.HTTP))


def commands(need: Need) -> str:
    """Return the programs that must be on the host, one a line; their arguments stand in the connection's `allow`."""
    return "".join(f"{one.resource}\n" for one in need.of(PermissionKind.COMMAND))


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
        if PermissionKind.COMMAND in kinds:
            files[f"{need.connection}.commands"] = commands(need)
        if PermissionKind.AWS in kinds:
            files[f"{need.connection}.iam.json"] = json.dumps(iam_policy(need), indent=2) + "\n"
    return files
