"""The smallest rights that a rule set needs. Pure.

Every action and check declares what it needs; here the declarations of those that are really called are put together for each
connection, narrowed by what the rules fix (a namespace, the name of a workload, a path) and by the connection's scope. `grants.py`
writes them in each system's own words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from remediator.action import Action, Check, Connection, Permission, PermissionKind, Right
from remediator.expressions import Facts, Template
from remediator.model import JSON
from remediator.rules.model import Rule
from remediator.rules.reading import Catalogue
from remediator.targets.scope import is_system

OWN = ("alertmanager.standing", "prometheus.alert")
"""Checks that the daemon itself makes before it acts and while it verifies."""

SILENCES = ("alertmanager.silence", "alertmanager.expire_silence")
"""Actions by which the daemon itself keeps an alert quiet while a run works on it."""

ALIVE = Permission(PermissionKind.HTTP, ("POST",), "/api/v2/alerts", "say that the daemon works")
"""What the heartbeat needs of Alertmanager."""

CLUSTER_SCOPED = frozenset(
    {
        "/namespaces",
        "/nodes",
        "/persistentvolumes",
        "apiextensions.k8s.io/customresourcedefinitions",
        "apiregistration.k8s.io/apiservices",
        "metrics.k8s.io/nodes",
        "networking.k8s.io/ingressclasses",
        "node.k8s.io/runtimeclasses",
        "rbac.authorization.k8s.io/clusterrolebindings",
        "rbac.authorization.k8s.io/clusterroles",
        "scheduling.k8s.io/priorityclasses",
        "storage.k8s.io/csidrivers",
        "storage.k8s.io/csinodes",
        "storage.k8s.io/storageclasses",
        "storage.k8s.io/volumeattachments",
    }
)
"""Resources of Kubernetes that lie in no namespace: a Role can't grant them."""

NAMEABLE = frozenset({"get", "patch", "update", "delete"})
"""Verbs of Kubernetes that are asked for one object by its name, so that they can be granted for it alone."""

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
    configmaps: tuple[tuple[str, str], ...] = ()
    """Namespace and name of the ConfigMap that throws the kill switch."""

    def of(self, kind: PermissionKind) -> tuple[Permission, ...]:
        """Return those that one system grants."""
        return tuple(one for one in self.permissions if one.kind is kind)

    @property
    def rights(self) -> tuple[Right, ...]:
        """All of it, verb by verb; what something wider covers is left out."""
        others = [one for one in self.permissions if one.kind is not PermissionKind.KUBERNETES]
        each = {Right(resource, verb) for one in others for verb in one.verbs for resource in self.resources(one)}
        return tuple(sorted(each | kubernetes_rights(self)))

    def resources(self, permission: Permission) -> tuple[str, ...]:
        """Return what a permission is for; Redis' keys are narrowed to the connection's scope."""
        if permission.kind is PermissionKind.REDIS and permission.resource == "*":
            return tuple(self.settings.scope.get("key", ("*",)))
        return (permission.resource,)


@dataclass(frozen=True)
class _Call:
    """One call of a rule (or of the daemon itself)."""

    kind: Kind
    connection: str | None
    """None: chosen by a label, so any of its kind."""
    params: Mapping[str, JSON]
    """As far as they are fixed; None for what only an alert tells."""

    def reaches(self, name: str, settings: Connection) -> bool:
        """Tell whether it may be made on a connection."""
        return self.kind.connection is not None and isinstance(settings, self.kind.connection) and self.connection in (None, name)

    def permissions(self, settings: Connection) -> Iterator[tuple[str | None, Permission]]:
        """Give what it needs, narrowed to what the rule fixes, and the connection that it is needed on (None: the call's own)."""
        if issubclass(self.kind, Action) and _is_outside(self.params.get("namespace"), settings):
            return  # a scope keeps every plan away from there
        for one in self.kind.needed(self.params):
            narrowed = self._on_object(_of_request(one, self.params))
            placed = settings.placed(narrowed) if narrowed is not None else None
            if placed is not None:
                yield placed[0], self._at_place(placed[1])

    def _on_object(self, one: Permission) -> Permission | None:
        """Narrow to the one object that a parameter names; None when the call names something else by another parameter."""
        words, plain = one.param.split(), replace(one, param="")
        fields = self.kind.Params.model_fields
        if any(word in fields for word in words):
            word = next((word for word in words if word in self.params), None)
            if word is None:
                return None
            name = self.params[word]
        elif words and "owner" in fields and fields["owner"].default is None:
            if "owner" not in self.params:
                return None
            word, _, name = str(self.params["owner"] or f"{words[0]}/").partition("/")
            if word not in words:
                return None
        else:
            return plain
        return replace(plain, names=(name,)) if name and isinstance(name, str) else plain

    def _at_place(self, one: Permission) -> Permission:
        namespace = self.params.get("namespace")
        if one.kind is PermissionKind.KUBERNETES and one.place is None and isinstance(namespace, str):
            return replace(one, place=namespace)
        return one


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
    rules = list(rules)
    for call in (*_calls(rules, catalogue), *_own(catalogue, connections), *_silences(rules, catalogue, connections)):
        for name, settings in connections.items():
            if call.reaches(name, settings):
                for other, permission in call.permissions(settings):
                    found.setdefault(other or name, []).append(permission)
    secrets, configmaps = _secrets(written or {}), _configmaps(written or {})
    for name in _alive(written or {}):
        found.setdefault(name, []).append(ALIVE)
    known = sorted(set(found) & set(connections))
    merged = (Need(name, connections[name], merge(found[name]), secrets.get(name, ()), configmaps.get(name, ())) for name in known)
    return tuple(need for need in merged if need.permissions or need.secrets or need.configmaps)


def _calls(rules: Iterable[Rule], catalogue: Catalogue) -> Iterator[_Call]:
    for rule in rules:
        for check in rule.checks:
            kind = catalogue.check(check.check)
            if kind is not None:
                yield _call(kind, check.params, rule)
        for step in (step for remedy in rule.remedies for step in remedy.steps):
            action = catalogue.action(step.action)
            if action is not None:
                yield _call(action, step.params, rule)


def _own(catalogue: Catalogue, connections: Mapping[str, Connection]) -> Iterator[_Call]:
    """Give the calls that the daemon makes by itself: to ask whether an alert still stands, and to keep a client open."""
    for name in OWN:
        kind = catalogue.check(name)
        if kind is not None:
            yield _Call(kind, None, {})
    for name, settings in connections.items():
        kind = catalogue.check(settings.keepalive) if settings.keepalive is not None else None
        if kind is not None:
            yield _Call(kind, name, {})


def _silences(rules: Iterable[Rule], catalogue: Catalogue, connections: Mapping[str, Connection]) -> Iterator[_Call]:
    """Give the calls that keep alerts quiet, where a rule wants that."""
    kinds = [catalogue.action(name) for name in SILENCES]
    if "alertmanager" in connections and any(rule.silence is not None for rule in rules):
        yield from (_Call(kind, "alertmanager", {}) for kind in kinds if kind is not None)


def _call(kind: Kind, params: Template, rule: Rule) -> _Call:
    """Return a call with what is known of its parameters before any alert: constants, and the pack's variables."""
    known = params.partial(Facts({f"vars.{name}": value for name, value in rule.vars.items()}))
    known = known if isinstance(known, Mapping) else {}
    connection = known.get(kind.connection_field)
    return _Call(kind, connection if isinstance(connection, str) else None, known)


def _of_request(one: Permission, params: Mapping[str, JSON]) -> Permission:
    """Narrow an HTTP right to the method and path that a rule fixes."""
    if one.kind is not PermissionKind.HTTP:
        return one
    method, path = params.get("method"), params.get("path")
    verbs = (method,) if isinstance(method, str) and method in one.verbs else one.verbs
    return replace(one, verbs=verbs, resource=path if one.resource == "*" and isinstance(path, str) else one.resource)


def _is_outside(namespace: JSON, settings: Connection) -> bool:
    """Tell whether a namespace that a rule fixes is outside of the scope."""
    allowed = settings.scope.get("namespace")
    if not isinstance(namespace, str):
        return False
    return is_system(namespace, settings.scope) or (allowed is not None and not any(fnmatchcase(namespace, one) for one in allowed))


def merge(permissions: Iterable[Permission]) -> tuple[Permission, ...]:
    """Return each resource once with all verbs asked for it, sorted. What Redis' sentinels grant stays apart from its servers'."""
    found: dict[tuple[Any, ...], tuple[set[str], set[str]]] = {}
    for one in permissions:
        key = (one.kind.value, one.resource, on_sentinels(one), one.place is not None, one.place or "", one.names, one.param)
        verbs, whys = found.setdefault(key, (set(), set()))
        verbs |= set(one.verbs)
        whys |= {one.why} - {""}
    return tuple(_merged(key, verbs, whys) for key, (verbs, whys) in sorted(found.items(), key=lambda item: item[0]))


def _merged(key: tuple[Any, ...], verbs: set[str], whys: set[str]) -> Permission:
    kind, resource, _, placed, place, names, param = key
    why = "; ".join(sorted(whys))
    return Permission(PermissionKind(kind), tuple(sorted(verbs)), resource, why, param, names, place if placed else None)


def verbs_by_resource(permissions: Iterable[Permission]) -> dict[str, list[str]]:
    """Return the Kubernetes rights as `GROUP/RESOURCE[/SUBRESOURCE]` to sorted verbs, for any object; others are passed over."""
    chosen = merge(replace(one, param="", names=(), place=None) for one in permissions if one.kind is PermissionKind.KUBERNETES)
    return {one.resource: list(one.verbs) for one in chosen}


def is_cluster_scoped(resource: str) -> bool:
    """Tell whether `GROUP/RESOURCE[/SUBRESOURCE]` lies in no namespace.

    >>> is_cluster_scoped("/nodes/proxy"), is_cluster_scoped("apps/deployments")
    (True, False)
    """
    group, _, rest = resource.partition("/")
    return f"{group}/{rest.partition('/')[0]}" in CLUSTER_SCOPED


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


def _configmaps(written: Mapping[str, JSON]) -> dict[str, tuple[tuple[str, str], ...]]:
    """Return the ConfigMap that throws the kill switch, by the connection it is read through."""
    switch = written.get("kill_switch")
    configmap = switch.get("configmap") if isinstance(switch, Mapping) else None
    if not isinstance(configmap, Mapping):
        return {}
    return {str(configmap["connection"]): ((str(configmap["namespace"]), str(configmap["name"])),)}


def _alive(written: Mapping[str, JSON]) -> Iterator[str]:
    """Give the connection through which Alertmanager is told that the daemon works."""
    heartbeat = written.get("heartbeat")
    alert = heartbeat.get("alertmanager") if isinstance(heartbeat, Mapping) else None
    if isinstance(alert, Mapping):
        yield str(alert["connection"])


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


def kubernetes_rights(need: Need) -> set[Right]:
    """Return each right at its place: a namespace that a rule or the scope names, else the whole cluster.

    A scope that is missing or holds patterns can't be said in RBAC; then the cluster is what remains, and the scope holds alone.
    """
    found = {Right("/secrets", "get", place, name) for place, name in need.secrets}
    found |= {Right("/configmaps", "get", place, name) for place, name in need.configmaps}
    for one in need.of(PermissionKind.KUBERNETES):
        for verb in one.verbs:
            names = _names(one, verb, need.settings) or ("",)
            found |= {Right(one.resource, verb, place, name) for place in _places(one, verb, need.settings) for name in names}
    return {right for right in found if not _wider(right) & found}


def _names(one: Permission, verb: str, settings: Connection) -> tuple[str, ...]:
    """Return the only objects that a right is for, none for any."""
    if verb not in NAMEABLE:
        return ()
    nodes = settings.scope.get("node", ())
    exact = one.resource == "/nodes" and nodes and not any(_GLOB.search(node) for node in nodes)
    return one.names or (tuple(nodes) if exact else ())


def _places(one: Permission, verb: str, settings: Connection) -> tuple[str, ...]:
    """Return the namespaces that a right is for; "" for the whole cluster."""
    # A namespace itself counts as lying in itself.
    if is_cluster_scoped(one.resource) and not (one.resource.startswith("/namespaces") and verb in NAMEABLE):
        return ("",)
    if one.place not in (None, "*"):
        return (one.place,)
    scope = settings.scope.get("namespace")
    return ("",) if scope is None or any(_GLOB.search(place) for place in scope) else tuple(scope)


def _wider(right: Right) -> set[Right]:
    """Return the rights that make this one needless."""
    return {replace(right, place=place, name=name) for place in {right.place, ""} for name in {right.name, ""}} - {right}
