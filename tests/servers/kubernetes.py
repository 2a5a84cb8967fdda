"""A double of a Kubernetes API server with its controllers, on a free loopback port.

A double because no API server can be had from packages without a build. It answers as a real 1.36 server was recorded to
(`tests/actions/kubernetes/recorded.json`, held against it by `test_recorded.py`): Deployments, StatefulSets, DaemonSets,
their revisions, Pods, the scale subresource and HorizontalPodAutoscalers, with optimistic locking, dry runs, RBAC and faults
on demand. The controllers (`kubernetes_controllers.py`) run at once after each write, unless `auto` is off.
"""

from __future__ import annotations

import base64
import copy
import json
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from aiohttp import web

from actions.kubernetes import KubernetesConnection
from remediator.action import SecretRef
from remediator.testing import LocalContext
from tests.servers.kubernetes_controllers import Object, exceed_deadline, stamp, sync
from tests.servers.kubernetes_patches import PatchTestError, json_patch, merge, strategic

KINDS = {
    "namespaces": ("", "v1", "Namespace"),
    "pods": ("", "v1", "Pod"),
    "deployments": ("apps", "v1", "Deployment"),
    "statefulsets": ("apps", "v1", "StatefulSet"),
    "daemonsets": ("apps", "v1", "DaemonSet"),
    "replicasets": ("apps", "v1", "ReplicaSet"),
    "controllerrevisions": ("apps", "v1", "ControllerRevision"),
    "horizontalpodautoscalers": ("autoscaling", "v2", "HorizontalPodAutoscaler"),
}
WORKLOADS = ("deployments", "statefulsets", "daemonsets")
SPEC_FIELDS = frozenset(
    [
        "replicas",
        "selector",
        "template",
        "strategy",
        "updateStrategy",
        "revisionHistoryLimit",
        "progressDeadlineSeconds",
        "paused",
        "minReadySeconds",
        "serviceName",
        "podManagementPolicy",
        "volumeClaimTemplates",
        "persistentVolumeClaimRetentionPolicy",
        "ordinals",
    ]
)
PATH = re.compile(r"/(?:api/(?P<core>v1)|apis/(?P<group>[^/]+)/(?P<version>[^/]+))(?:/namespaces/(?P<ns>[^/]+))?/(?P<rest>.+)")
VERBS = {"GET": "get", "PATCH": "patch", "POST": "create"}


@dataclass
class Refusal(Exception):
    """An answer other than success, as the `Status` object of a real server."""

    code: int
    reason: str
    message: str
    details: Object | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def response(self) -> web.Response:
        """Return it as the server would."""
        body: Object = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
        }
        if self.details is not None:
            body["details"] = self.details
        return web.json_response({**body, "code": self.code}, status=self.code, headers=self.headers)


@dataclass(frozen=True)
class Asked:
    """One request, for tests to look at."""

    method: str
    path: str
    query: dict[str, str]
    content_type: str
    user: str
    body: Any


@dataclass(frozen=True)
class User:
    """Who a token belongs to, and what it may do: `verb group/resource`, or everything."""

    name: str
    rules: frozenset[str] | None = None


class FakeCluster:
    """The double: start it, point a connection at `url`, look at `objects` and `asked`."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], Object] = {}
        self.users: dict[str, User] = {"admin": User("admin")}
        self.asked: list[Asked] = []
        self.nodes = ["fake-1", "fake-2"]
        self.now = datetime(2026, 11, 21, 5, 44, 3, tzinfo=UTC)
        self.auto = True
        self.autoscaling = "v2"
        self.before_write: list[Callable[[], None]] = []
        """Called in turn, each before one live write is looked at: what somebody else does at that moment."""
        self.faults: list[Callable[[str], Refusal | str | None]] = []
        """Each may answer for a request (given `METHOD path`): a refusal, `drop-before`, `drop-after` or None; once used it is gone."""
        self.stale: dict[str, tuple[int, Object]] = {}
        self.url = ""
        self.under_way = 0
        self._numbers = 0
        self._runner: web.AppRunner | None = None

    # --- running -----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listen."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"

    async def aclose(self) -> None:
        """Stop."""
        if self._runner is not None:
            await self._runner.cleanup()

    def advance(self, span: timedelta) -> None:
        """Let time pass."""
        self.now += span

    def refuse_next(self, method: str, refusal: Refusal | str, *, path: str = "") -> None:
        """Answer the next request of this method (and path part) with a fault instead."""
        self.faults.append(lambda asked: refusal if asked.startswith(method) and path in asked else None)

    # --- the store ----------------------------------------------------------------------------------------------------

    def count(self) -> int:
        """Return the next number: resourceVersions and names are made of them."""
        self._numbers += 1
        return self._numbers

    def store(self, resource: str, item: Object, *, manager: str) -> Object:
        """Keep a new object."""
        meta = item["metadata"]
        given = dict(meta)
        meta.clear()
        meta |= {key: given.pop(key) for key in ("name", "generateName", "namespace") if key in given}
        meta |= {"uid": str(uuid.uuid4()), "resourceVersion": str(self.count())}
        if "spec" in item and resource not in ("namespaces", "horizontalpodautoscalers"):
            meta["generation"] = 1
        meta |= {"creationTimestamp": stamp(self.now), **given}
        self._own(item, {"metadata": {}}, manager=manager, subresource="")
        self.objects[resource, meta.get("namespace", ""), meta["name"]] = item
        return item

    def remove(self, resource: str, item: Object) -> None:
        """Forget an object."""
        del self.objects[resource, item["metadata"]["namespace"], item["metadata"]["name"]]

    def touch(self, item: Object, *, manager: str, before: Object, subresource: str = "") -> None:
        """Count a change as one write."""
        item["metadata"]["resourceVersion"] = str(self.count())
        self._own(item, before, manager=manager, subresource=subresource)

    def _own(self, item: Object, before: Object, *, manager: str, subresource: str) -> None:
        """Keep managedFields, as coarse as readers need them."""
        owned: Object = {}
        for part in ("annotations", "labels"):
            old, new = before["metadata"].get(part) or {}, item["metadata"].get(part) or {}
            changed: Object = {f"f:{key}": {} for key in new if old.get(key) != new[key]}
            if changed:
                owned.setdefault("f:metadata", {})[f"f:{part}"] = changed
        for key, value in (item.get("spec") or {}).items():
            if (before.get("spec") or {}).get(key) != value:
                owned.setdefault("f:spec", {})[f"f:{key}"] = {}
        entries = item["metadata"].setdefault("managedFields", [])
        for entry in entries:  # a field that somebody else set is no longer one's own
            for key in owned.get("f:spec", {}):
                entry["fieldsV1"].get("f:spec", {}).pop(key, None)
        mine = next((entry for entry in entries if entry["manager"] == manager and entry.get("subresource", "") == subresource), None)
        if mine is None:
            mine = {"manager": manager, "operation": "Update", "fieldsV1": {}, **({"subresource": subresource} if subresource else {})}
            entries.append(mine)
        mine["time"] = stamp(self.now)
        mine["fieldsV1"] = merge(mine["fieldsV1"], owned)

    def get(self, resource: str, name: str, namespace: str = "shop") -> Object:
        """Return an object as it is kept."""
        return self.objects[resource, namespace, name]

    def edit(self, resource: str, name: str, change: Object, *, manager: str = "kubectl", namespace: str = "shop") -> None:
        """Change an object as a person would: a strategic patch, at once carried out by the controllers."""
        self._replace(resource, namespace, name, strategic(self.objects[resource, namespace, name], change), manager=manager)

    def _replace(self, resource: str, namespace: str, name: str, new: Object, *, manager: str, subresource: str = "") -> Object:
        item = self.objects[resource, namespace, name]
        before = copy.deepcopy(item)
        clean(new)
        if new == before:
            return before  # nothing to write: the resourceVersion stays
        item.clear()
        item.update(new)
        if item.get("spec") != before.get("spec") and "generation" in item["metadata"]:
            item["metadata"]["generation"] += 1
        self.touch(item, manager=manager, before=before, subresource=subresource)
        answer = copy.deepcopy(item)
        if self.auto:
            sync(self)
        return answer

    # --- a few scenes ---------------------------------------------------------------------------------------------------

    def run(self, resource: str, name: str, image: str, *, replicas: int = 3, **extra: Any) -> Object:
        """Make a workload as somebody would with kubectl."""
        item = workload(resource, name, image, replicas=replicas, **extra)
        self.store(resource, complete(resource, item), manager="kubectl")
        sync(self)
        return item

    def release(self, name: str, image: str, *, resource: str = "deployments", manager: str = "pipeline") -> None:
        """Roll out another image, as a pipeline would."""
        container = self.get(resource, name)["spec"]["template"]["spec"]["containers"][0]["name"]
        self.edit(resource, name, {"spec": {"template": {"spec": {"containers": [{"name": container, "image": image}]}}}}, manager=manager)

    def exceed_deadline(self, name: str) -> None:
        """Let a Deployment's progress deadline pass."""
        exceed_deadline(self, self.get("deployments", name))

    def linger(self, name: str, *, reads: int) -> None:
        """Publish the Deployment's present Progressing condition for so many more reads, whatever happens: the lag after an undo."""
        item = next(item for item in self.get("deployments", name)["status"]["conditions"] if item["type"] == "Progressing")
        self.stale[name] = (reads, copy.deepcopy(item))

    def writes(self) -> list[Asked]:
        """Return the live writes that arrived."""
        return [asked for asked in self.asked if asked.method != "GET" and asked.query.get("dryRun") != "All"]

    # --- HTTP -----------------------------------------------------------------------------------------------------------

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self.under_way += 1
        try:
            return await self._answer(request)
        except Refusal as refusal:
            return refusal.response()
        finally:
            self.under_way -= 1

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        user = self.users.get(request.headers.get("Authorization", "").removeprefix("Bearer "))
        query = dict(request.query)
        body = json.loads(raw) if raw else None
        self.asked.append(Asked(request.method, request.path, query, request.content_type, user.name if user else "", body))
        if user is None:
            raise Refusal(401, "Unauthorized", "Unauthorized")
        fault = self._fault(f"{request.method} {request.path}")
        if isinstance(fault, Refusal):
            raise fault
        if fault == "drop-before":
            return self._hang_up(request)
        result, code = self._do(request, user, query, body)
        return self._hang_up(request) if fault == "drop-after" else web.json_response(result, status=code)

    def _fault(self, asked: str) -> Refusal | str | None:
        for fault in list(self.faults):
            found = fault(asked)
            if found is not None:
                self.faults.remove(fault)
                return found
        return None

    @staticmethod
    def _hang_up(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    def _groups(self) -> Object:
        """Say which groups are offered, in which version."""
        versions = {group: self.autoscaling if group == "autoscaling" else version for group, version, _ in KINDS.values() if group}
        offered = [(group, {"groupVersion": f"{group}/{version}", "version": version}) for group, version in versions.items()]
        groups = [{"name": group, "versions": [version], "preferredVersion": version} for group, version in offered]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}

    def _do(self, request: web.Request, user: User, query: dict[str, str], body: Any) -> tuple[Object, int]:
        if (request.method, request.path) == ("GET", "/apis"):
            return self._groups(), 200
        match = PATH.fullmatch(request.path)
        resource, _, rest = (match["rest"] if match else "").partition("/")
        if match is None or resource not in KINDS or not self._served(resource, match):
            raise web.HTTPNotFound(text="404 page not found\n")
        name, _, sub = rest.partition("/")
        namespace = match["ns"] or ""
        verb = "list" if request.method == "GET" and not name else VERBS[request.method]
        self._allow(user, verb, resource, namespace=namespace, name=name, sub=sub)
        manager = query.get("fieldManager", "unknown")
        if verb == "list":
            return self._list(resource, namespace, query), 200
        if verb == "create":
            return self._create(resource, namespace, body, manager), 201
        if (resource, namespace, name) not in self.objects:
            raise not_found(resource, name)
        if verb == "get":
            return (self._scale(resource, namespace, name) if sub else self._read(resource, namespace, name)), 200
        if self.before_write and query.get("dryRun") != "All":
            self.before_write.pop(0)()
        if sub == "scale":
            return self._write_scale(resource, namespace, name, body, query, manager), 200
        return self._patch(resource, namespace, name, body, query, request.content_type), 200

    def _served(self, resource: str, match: re.Match[str]) -> bool:
        group, version, _ = KINDS[resource]
        version = self.autoscaling if group == "autoscaling" else version
        return (match["group"] or "", match["version"] or match["core"]) == (group, version)

    def _allow(self, user: User, verb: str, resource: str, *, namespace: str, name: str, sub: str) -> None:
        group = KINDS[resource][0]
        whole = f"{resource}/{sub}" if sub else resource
        if user.rules is None or f"{verb} {group}/{whole}" in user.rules:
            return
        what = f'{qualified(resource)} "{name}"' if name else qualified(resource)
        where = f'in API group "{group}" in the namespace "{namespace}"'
        message = f'{what} is forbidden: User "{user.name}" cannot {verb} resource "{whole}" {where}'
        details = {**({"name": name} if name else {}), **({"group": group} if group else {}), "kind": resource}
        raise Refusal(403, "Forbidden", message, details)

    def _read(self, resource: str, namespace: str, name: str) -> Object:
        item = copy.deepcopy(self.objects[resource, namespace, name])
        reads, condition = self.stale.get(name, (0, {}))
        if resource == "deployments" and reads:
            self.stale[name] = (reads - 1, condition)
            conditions = [condition if old["type"] == "Progressing" else old for old in item["status"]["conditions"]]
            item["status"] |= {"conditions": conditions, "observedGeneration": item["metadata"]["generation"]}
        return typed(resource, item)

    def _list(self, resource: str, namespace: str, query: dict[str, str]) -> Object:
        selected = [
            item
            for (found, ns, _), item in sorted(self.objects.items())
            if found == resource and ns == namespace and selects(query.get("labelSelector", ""), item["metadata"].get("labels") or {})
        ]
        start = int(base64.b64decode(query["continue"])) if "continue" in query else 0
        end = start + int(query.get("limit", len(selected)))
        meta: Object = {"resourceVersion": str(self._numbers)}
        if end < len(selected):
            meta |= {"continue": base64.b64encode(str(end).encode()).decode(), "remainingItemCount": len(selected) - end}
        group, version, kind = KINDS[resource]
        items = copy.deepcopy(selected[start:end])
        return {"kind": f"{kind}List", "apiVersion": f"{group}/{version}".lstrip("/"), "metadata": meta, "items": items}

    def _create(self, resource: str, namespace: str, body: Object, manager: str) -> Object:
        item = {key: value for key, value in copy.deepcopy(body).items() if key not in ("kind", "apiVersion")}
        if resource != "namespaces":
            item["metadata"]["namespace"] = namespace
        answer = copy.deepcopy(self.store(resource, complete(resource, item), manager=manager))
        if self.auto:
            sync(self)
        return typed(resource, answer)

    def _patch(self, resource: str, namespace: str, name: str, body: Any, query: dict[str, str], content_type: str) -> Object:
        item = typed(resource, copy.deepcopy(self.objects[resource, namespace, name]))
        new = patched(item, body, content_type)
        check(resource, item, new, strict=query.get("fieldValidation") == "Strict")
        for key in ("kind", "apiVersion"):
            item.pop(key), new.pop(key)
        if query.get("dryRun") == "All":
            return typed(resource, clean(copy.deepcopy(new)))
        return typed(resource, self._replace(resource, namespace, name, new, manager=query.get("fieldManager", "unknown")))

    def _scale(self, resource: str, namespace: str, name: str) -> Object:
        item = self.objects[resource, namespace, name]
        meta = {key: item["metadata"][key] for key in ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")}
        selector = ",".join(f"{key}={value}" for key, value in item["spec"]["selector"]["matchLabels"].items())
        status = {"replicas": item["status"].get("replicas", 0), "selector": selector}
        return {
            "kind": "Scale",
            "apiVersion": "autoscaling/v1",
            "metadata": meta,
            "spec": {"replicas": item["spec"]["replicas"]},
            "status": status,
        }

    def _write_scale(self, resource: str, namespace: str, name: str, body: Object, query: dict[str, str], manager: str) -> Object:
        scale = self._scale(resource, namespace, name)
        wished: Object = merge(scale, body)
        if wished["metadata"]["resourceVersion"] != scale["metadata"]["resourceVersion"]:
            raise conflict(resource, name)
        if wished["spec"]["replicas"] < 0:
            raise negative("Scale", "autoscaling", name, wished["spec"]["replicas"])
        if query.get("dryRun") == "All":
            return wished
        item = copy.deepcopy(self.objects[resource, namespace, name])
        item["spec"]["replicas"] = wished["spec"]["replicas"]
        auto, self.auto = self.auto, False  # the answer shows the status of before the controllers ran
        try:
            self._replace(resource, namespace, name, item, manager=manager, subresource="scale")
        finally:
            self.auto = auto
        answer = self._scale(resource, namespace, name)
        if auto:
            sync(self)
        return answer


# --- the server's words -----------------------------------------------------------------------------------------------------


def qualified(resource: str) -> str:
    """Return `deployments.apps`."""
    return ".".join(part for part in (resource, KINDS[resource][0]) if part)


def not_found(resource: str, name: str) -> Refusal:
    """Return the 404."""
    details = {"name": name, "group": KINDS[resource][0], "kind": resource}
    return Refusal(404, "NotFound", f'{qualified(resource)} "{name}" not found', details)


def conflict(resource: str, name: str) -> Refusal:
    """Return the 409 of a stale resourceVersion."""
    said = "the object has been modified; please apply your changes to the latest version and try again"
    details = {"name": name, "group": KINDS[resource][0], "kind": resource}
    return Refusal(409, "Conflict", f'Operation cannot be fulfilled on {qualified(resource)} "{name}": {said}', details)


def negative(kind: str, group: str, name: str, value: int) -> Refusal:
    """Return the 422 of a negative number of replicas."""
    said = f"Invalid value: {value}: must be greater than or equal to 0"
    causes = [{"reason": "FieldValueInvalid", "message": said, "field": "spec.replicas"}]
    details = {"name": name, "group": group, "kind": kind, "causes": causes}
    return Refusal(422, "Invalid", f'{kind}.{group} "{name}" is invalid: spec.replicas: {said}', details)


def too_many(seconds: int) -> Refusal:
    """Return the 429 of an overloaded server."""
    said = "the server has received too many requests and has asked us to try again later"
    return Refusal(429, "TooManyRequests", said, {"retryAfterSeconds": seconds}, {"Retry-After": str(seconds)})


def patched(item: Object, body: Any, content_type: str) -> Object:
    """Apply a patch of any of the three kinds."""
    match content_type:
        case "application/merge-patch+json":
            result: Object = merge(item, body)
        case "application/strategic-merge-patch+json":
            result = strategic(item, body)
        case "application/json-patch+json":
            try:
                result = json_patch(item, body)
            except PatchTestError:
                raise Refusal(422, "Invalid", "the server rejected our request due to an error in our request", {}) from None
        case other:
            raise Refusal(
                415, "UnsupportedMediaType", f"the body of the request was in an unknown format - accepted media types: not {other}"
            )
    return result


def check(resource: str, item: Object, new: Object, *, strict: bool) -> None:
    """Raise what a real server refuses; drop unknown fields where it only warns."""
    name = item["metadata"]["name"]
    unknown = sorted(set(new["spec"]) - SPEC_FIELDS) if resource in WORKLOADS else []
    if unknown and strict:
        said = f'Invalid value: {json.dumps(json.dumps(item))}: strict decoding error: unknown field "spec.{unknown[0]}"'
        raise Refusal(
            422,
            "Invalid",
            f' "" is invalid: patch: {said}',
            {"causes": [{"reason": "FieldValueInvalid", "message": said, "field": "patch"}]},
        )
    for key in unknown:
        del new["spec"][key]
    if new["metadata"]["resourceVersion"] != item["metadata"]["resourceVersion"]:
        raise conflict(resource, name)
    if new["spec"].get("replicas", 0) < 0:
        raise negative(KINDS[resource][2], KINDS[resource][0], name, new["spec"]["replicas"])


def typed(resource: str, item: Object) -> Object:
    """Return an object with its kind and version in front, as in a single answer."""
    group, version, kind = KINDS[resource]
    return {"kind": kind, "apiVersion": f"{group}/{version}".lstrip("/"), **item}


def clean(item: Object) -> Object:
    """Drop what the server's encoding leaves out: empty labels and annotations."""
    for meta in (item["metadata"], item.get("spec", {}).get("template", {}).get("metadata", {})):
        for key in ("labels", "annotations"):
            if meta.get(key) == {}:
                del meta[key]
    return item


def selects(selector: str, labels: dict[str, str]) -> bool:
    """Tell whether labels fit a selector: `a=b`, `a!=b`, `a in (b,c)`, `a notin (b,c)`, `a`, `!a`."""
    for term in re.findall(r"[^,(]+(?:\([^)]*\))?", selector):
        match = re.fullmatch(r"\s*(!?)([\w./-]+)\s*(?:(==?|!=)\s*([\w.-]*)|(in|notin)\s*\(([^)]*)\))?\s*", term)
        if match is None:
            raise Refusal(400, "BadRequest", f"unable to parse requirement: {term}")
        absent, key, sign, value, word, values = match.groups()
        chosen = {item.strip() for item in values.split(",")} if word else {value}
        here = labels.get(key) in chosen if sign or word else key in labels
        if here == bool(absent or sign == "!=" or word == "notin"):
            return False
    return True


# --- objects -----------------------------------------------------------------------------------------------------------------


def workload(resource: str, name: str, image: str, *, replicas: int = 3, **meta: Any) -> Object:
    """Return a workload as somebody would write it."""
    spec: Object = {
        "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "app", "image": image}]}},
    }
    if resource != "daemonsets":
        spec["replicas"] = replicas
    return {"metadata": {"name": name, "namespace": "shop", "labels": {"app": name}, **meta}, "spec": spec}


def complete(resource: str, item: Object) -> Object:
    """Fill in what the server defaults."""
    if resource == "namespaces":
        item["metadata"].setdefault("labels", {})["kubernetes.io/metadata.name"] = item["metadata"]["name"]
        return {**item, "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}}
    if resource == "horizontalpodautoscalers":
        return {**item, "status": {"desiredReplicas": 0, "currentMetrics": None}}
    spec = item["spec"]
    pod = spec["template"]["spec"]
    for container in pod["containers"]:
        container.setdefault("resources", {})
        defaults = {"terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File", "imagePullPolicy": "IfNotPresent"}
        container |= {key: value for key, value in defaults.items() if key not in container}
    more: Object = {"restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst", "securityContext": {}}
    pod |= {key: value for key, value in {**more, "schedulerName": "default-scheduler"}.items() if key not in pod}
    rolling: Object = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}}
    if resource == "deployments":
        spec |= {"strategy": rolling, "revisionHistoryLimit": 10, "progressDeadlineSeconds": 600, **spec}
    elif resource == "statefulsets":
        spec |= {
            "serviceName": "",
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}},
            "revisionHistoryLimit": 10,
            **spec,
        }
    else:
        spec |= {
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}},
            "revisionHistoryLimit": 10,
            **spec,
        }
    return {**item, "status": {}}


async def start_cluster() -> FakeCluster:
    """Return a running double."""
    cluster = FakeCluster()
    await cluster.start()
    return cluster


class TokenContext(LocalContext):
    """A context whose secrets are their own names, and whose time is the double's."""

    async def secret(self, ref: SecretRef) -> str:
        """Return the name of the variable."""
        return ref.env or ""


def context(cluster: FakeCluster, *, token: str = "admin", key: str = "run-1/step-1", timeout: float = 5) -> TokenContext:  # noqa: S107
    """Return a context with one connection, `prod`, to the double."""
    connection = KubernetesConnection(server=cluster.url, token=SecretRef(env=token), timeout=timedelta(seconds=timeout))
    return TokenContext({"prod": connection}, key=key, now=lambda: cluster.now)
