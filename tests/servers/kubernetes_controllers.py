"""A tiny deployment controller, scheduler and kubelet for the double in `kubernetes.py`.

How a container behaves is the end of its image's tag: `-crash` (fails at once, CrashLoopBackOff), `-flash` (runs a second and
exits: the rollout is called complete with no Pod available), `-oom` (was killed for memory, runs again), `-slow` (never
gets ready), anything else runs well.
"""

from __future__ import annotations

import copy
import hashlib
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.servers.kubernetes import FakeCluster

Object = dict[str, Any]
REVISION = "deployment.kubernetes.io/revision"
HISTORY = "deployment.kubernetes.io/revision-history"
MANAGER = "kube-controller-manager"


def stamp(at: datetime) -> str:
    """Write a time as Kubernetes does: whole seconds, Z."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def template_hash(template: Object) -> str:
    """Return a hash of a template; not the real algorithm, which nobody may rely on."""
    return hashlib.sha1(json.dumps(bare(template), sort_keys=True).encode(), usedforsecurity=False).hexdigest()[:10]


def bare(template: Object) -> Object:
    """Return a template without the controllers' hash label."""
    result = copy.deepcopy(template)
    labels = result.get("metadata", {}).get("labels", {})
    labels.pop("pod-template-hash", None)
    return result


def behaviour(template: Object) -> str:
    """Return how the first container behaves."""
    image = str(template["spec"]["containers"][0]["image"])
    return next((word for word in ("crash", "flash", "oom", "slow") if image.endswith(f"-{word}")), "well")


def sync(cluster: FakeCluster) -> None:
    """Carry every workload as far as it gets without time passing."""
    for (resource, _, _), item in list(cluster.objects.items()):
        if resource == "deployments":
            sync_deployment(cluster, item)
        elif resource in ("statefulsets", "daemonsets"):
            sync_set(cluster, resource, item)


# --- Deployments ---------------------------------------------------------------------------------------------------------


def owned(cluster: FakeCluster, resource: str, owner: Object) -> list[Object]:
    """Return the objects of a resource that an object controls."""
    return [
        item
        for (found, _, _), item in cluster.objects.items()
        if found == resource and any(ref["uid"] == owner["metadata"]["uid"] for ref in item["metadata"].get("ownerReferences", []))
    ]


def sync_deployment(cluster: FakeCluster, deployment: Object) -> None:
    """Make or reuse the ReplicaSet of the template, divide the Pods, publish the status."""
    before = copy.deepcopy(deployment)
    sets = owned(cluster, "replicasets", deployment)
    meta, spec = deployment["metadata"], deployment["spec"]
    new = next((item for item in sets if bare(item["spec"]["template"]) == bare(spec["template"])), None)
    if spec.get("paused"):
        deployment["status"]["observedGeneration"] = meta["generation"]
        finish(cluster, before, deployment, subresource="status")
        return
    others = [item for item in sets if item is not new]
    number = max((int(item["metadata"]["annotations"][REVISION]) for item in others), default=0) + 1
    if new is None:
        new = make_replicaset(cluster, deployment, number)
    renumber(cluster, deployment, new, number)
    wish, old_wish = divide(deployment, new, others)
    scale_set(cluster, deployment, new, wish)
    for item in others:
        scale_set(cluster, deployment, item, old_wish if old_wish and item is newest(others) else 0)
    trim(cluster, deployment, others)
    meta.setdefault("annotations", {})[REVISION] = new["metadata"]["annotations"][REVISION]
    publish(cluster, deployment, new, others)
    finish(cluster, before, deployment, subresource="status")


def newest(sets: list[Object]) -> Object:
    """Return the ReplicaSet with the highest revision."""
    return max(sets, key=lambda item: int(item["metadata"]["annotations"][REVISION]))


def divide(deployment: Object, new: Object, others: list[Object]) -> tuple[int, int]:
    """Return how many Pods the new template gets and how many the old one keeps: all and none, unless the new ones fail."""
    replicas = deployment["spec"]["replicas"]
    failing = behaviour(new["spec"]["template"]) in ("crash", "slow")
    serving = [item for item in others if item["spec"]["replicas"] > 0]
    if not failing or not serving or replicas < 2:
        return replicas, 0
    return min(2, replicas), replicas - 1


def make_replicaset(cluster: FakeCluster, deployment: Object, number: int) -> Object:
    """Make the ReplicaSet of the present template."""
    meta, spec = deployment["metadata"], deployment["spec"]
    key = template_hash(spec["template"])
    template = copy.deepcopy(spec["template"])
    template["metadata"].setdefault("labels", {})["pod-template-hash"] = key
    labels = {**spec["template"]["metadata"]["labels"], "pod-template-hash": key}
    item: Object = {
        "metadata": {
            "name": f"{meta['name']}-{key}",
            "namespace": meta["namespace"],
            "labels": labels,
            "annotations": {REVISION: str(number)},
            "ownerReferences": [owner_reference("apps/v1", "Deployment", meta)],
        },
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": {**spec["selector"]["matchLabels"], "pod-template-hash": key}},
            "template": template,
        },
        "status": {"replicas": 0, "observedGeneration": 1},
    }
    return cluster.store("replicasets", item, manager=MANAGER)


def owner_reference(version: str, kind: str, meta: Object) -> Object:
    """Return a controller reference."""
    return {"apiVersion": version, "kind": kind, "name": meta["name"], "uid": meta["uid"], "controller": True, "blockOwnerDeletion": True}


def renumber(cluster: FakeCluster, deployment: Object, new: Object, number: int) -> None:
    """Give the ReplicaSet the number of the present revision, and copy the Deployment's annotations to it."""
    before = copy.deepcopy(new)
    annotations, replicas = new["metadata"]["annotations"], deployment["spec"]["replicas"]
    old = annotations[REVISION]
    if int(old) < number:
        annotations[HISTORY] = f"{annotations[HISTORY]},{old}" if HISTORY in annotations else old
        annotations[REVISION] = str(number)
    annotations.update({key: value for key, value in deployment["metadata"].get("annotations", {}).items() if key != REVISION})
    annotations["deployment.kubernetes.io/desired-replicas"] = str(replicas)
    annotations["deployment.kubernetes.io/max-replicas"] = str(replicas + max(1, -(-replicas // 4)))
    finish(cluster, before, new)


def scale_set(cluster: FakeCluster, deployment: Object, item: Object, wish: int) -> None:
    """Set a ReplicaSet's replicas and make or delete its Pods."""
    before = copy.deepcopy(item)
    if item["spec"]["replicas"] != wish:
        item["spec"]["replicas"] = wish
        item["metadata"]["generation"] += 1
        finish(cluster, before, item)
        before = copy.deepcopy(item)
    kind = behaviour(item["spec"]["template"])
    fit_pods(cluster, item, wish, template=item["spec"]["template"], owner=owner_reference("apps/v1", "ReplicaSet", item["metadata"]))
    serving = wish if kind in ("well", "oom") else 0
    status: Object = {"replicas": wish, "terminatingReplicas": 0, "observedGeneration": item["metadata"]["generation"]}
    if wish:
        status["fullyLabeledReplicas"] = wish
    if serving:
        status |= {"readyReplicas": serving, "availableReplicas": serving}
    item["status"] = status
    finish(cluster, before, item, subresource="status")


def trim(cluster: FakeCluster, deployment: Object, others: list[Object]) -> None:
    """Forget the oldest ReplicaSets beyond the Deployment's limit."""
    empty = sorted(
        (item for item in others if item["spec"]["replicas"] == 0), key=lambda item: int(item["metadata"]["annotations"][REVISION])
    )
    for item in empty[: max(0, len(empty) - deployment["spec"].get("revisionHistoryLimit", 10))]:
        cluster.remove("replicasets", item)
        others.remove(item)


def publish(cluster: FakeCluster, deployment: Object, new: Object, others: list[Object]) -> None:
    """Write the Deployment's counts and conditions."""
    now, spec = stamp(cluster.now), deployment["spec"]
    sets = [new, *others]
    total = sum(item["spec"]["replicas"] for item in sets)
    available = sum(item["status"].get("availableReplicas", 0) for item in sets)
    counts = {"replicas": total, "updatedReplicas": new["spec"]["replicas"], "readyReplicas": available, "availableReplicas": available}
    status: Object = {
        "observedGeneration": deployment["metadata"]["generation"],
        **{name: number for name, number in counts.items() if number},
    }
    if total > available:
        status["unavailableReplicas"] = max(total, spec["replicas"]) - available
    status["terminatingReplicas"] = 0
    status["conditions"] = conditions(
        deployment, new, done=total == new["spec"]["replicas"] == spec["replicas"], available=available, now=now
    )
    deployment["status"] = status


def conditions(deployment: Object, new: Object, *, done: bool, available: int, now: str) -> list[Object]:
    """Return the conditions; a condition that says the same keeps its times."""
    name = new["metadata"]["name"]
    enough = available >= deployment["spec"]["replicas"]
    done = done and (enough or behaviour(new["spec"]["template"]) == "flash")
    old = {item["type"]: item for item in deployment["status"].get("conditions", [])}
    stalled = old.get("Progressing", {})
    if done:
        progress = ("True", "NewReplicaSetAvailable", f'ReplicaSet "{name}" has successfully progressed.')
    elif stalled.get("reason") == "ProgressDeadlineExceeded" and f'"{name}"' in stalled["message"]:
        progress = (stalled["status"], stalled["reason"], stalled["message"])
    else:
        progress = ("True", "ReplicaSetUpdated", f'ReplicaSet "{name}" is progressing.')
    has = ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
    lacks = ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
    wished = {"Available": has if enough else lacks, "Progressing": progress}
    result = []
    for kind, (status, reason, message) in wished.items():
        fresh = {"type": kind, "status": status, "lastUpdateTime": now, "lastTransitionTime": now, "reason": reason, "message": message}
        before = old.get(kind, {})
        same = all(before.get(key) == fresh[key] for key in ("status", "reason", "message"))
        result.append(
            before if same else {**fresh, "lastTransitionTime": before["lastTransitionTime"] if before.get("status") == status else now}
        )
    return result


def exceed_deadline(cluster: FakeCluster, deployment: Object) -> None:
    """Let the progress deadline pass."""
    before, now = copy.deepcopy(deployment), stamp(cluster.now)
    newest_set = newest(owned(cluster, "replicasets", deployment))
    for item in deployment["status"]["conditions"]:
        if item["type"] == "Progressing":
            message = f'ReplicaSet "{newest_set["metadata"]["name"]}" has timed out progressing.'
            item |= {
                "status": "False",
                "reason": "ProgressDeadlineExceeded",
                "message": message,
                "lastUpdateTime": now,
                "lastTransitionTime": now,
            }
    finish(cluster, before, deployment, subresource="status")


# --- StatefulSets and DaemonSets ---------------------------------------------------------------------------------------------


def sync_set(cluster: FakeCluster, resource: str, item: Object) -> None:
    """Make or renumber the ControllerRevision of the template, fit the Pods, publish the status."""
    before = copy.deepcopy(item)
    meta, spec = item["metadata"], item["spec"]
    revisions = owned(cluster, "controllerrevisions", item)
    data = {"spec": {"template": {"$patch": "replace", **spec["template"]}}}
    new = next((found for found in revisions if found["data"] == data), None)
    highest = max((found["revision"] for found in revisions), default=0)
    kind = {"statefulsets": "StatefulSet", "daemonsets": "DaemonSet"}[resource]
    key = template_hash(spec["template"])
    if new is None:
        new = {
            "metadata": {
                "name": f"{meta['name']}-{key}",
                "namespace": meta["namespace"],
                "labels": {**spec["template"]["metadata"]["labels"], "controller.kubernetes.io/hash": key},
                "ownerReferences": [owner_reference("apps/v1", kind, meta)],
            },
            "data": copy.deepcopy(data),
            "revision": highest + 1,
        }
        cluster.store("controllerrevisions", new, manager=MANAGER)
    elif new["revision"] < highest:
        old, new["revision"] = copy.deepcopy(new), highest + 1
        finish(cluster, old, new)
    replicas = spec["replicas"] if resource == "statefulsets" else len(cluster.nodes)
    label = new["metadata"]["name"] if resource == "statefulsets" else key
    template = copy.deepcopy(spec["template"])
    template["metadata"]["labels"]["controller-revision-hash"] = label
    for pod in owned(cluster, "pods", item):
        if pod["metadata"]["labels"]["controller-revision-hash"] != label:
            cluster.remove("pods", pod)
    fit_pods(cluster, item, replicas, template=template, owner=owner_reference("apps/v1", kind, meta))
    serving = replicas if behaviour(template) in ("well", "oom") else 0
    item["status"] = set_status(resource, item, new, replicas=replicas, serving=serving)
    finish(cluster, before, item, subresource="status")


def set_status(resource: str, item: Object, revision: Object, *, replicas: int, serving: int) -> Object:
    """Return the status of a StatefulSet or DaemonSet."""
    observed = {"observedGeneration": item["metadata"]["generation"]}
    if resource == "daemonsets":
        scheduled = ("currentNumberScheduled", "desiredNumberScheduled", "updatedNumberScheduled")
        return {
            **observed,
            **dict.fromkeys(scheduled, replicas),
            "numberMisscheduled": 0,
            "numberReady": serving,
            "numberAvailable": serving,
        }
    current = (
        revision["metadata"]["name"]
        if serving == replicas
        else (item.get("status") or {}).get("currentRevision", revision["metadata"]["name"])
    )
    counts = {"replicas": replicas, "readyReplicas": serving, "availableReplicas": serving, "updatedReplicas": replicas}
    return {**observed, **counts, "currentRevision": current, "updateRevision": revision["metadata"]["name"], "collisionCount": 0}


# --- Pods --------------------------------------------------------------------------------------------------------------------


def fit_pods(cluster: FakeCluster, owner_object: Object, wish: int, *, template: Object, owner: Object) -> None:
    """Make and delete Pods until there are `wish`."""
    pods = owned(cluster, "pods", owner_object)
    for pod in pods[wish:]:
        cluster.remove("pods", pod)
    for _ in range(len(pods), wish):
        make_pod(cluster, template=template, namespace=owner_object["metadata"]["namespace"], owner=owner)


def make_pod(cluster: FakeCluster, *, template: Object, namespace: str, owner: Object) -> Object:
    """Make one Pod of a template, with the status its behaviour gives."""
    number = cluster.count()
    pod: Object = {
        "metadata": {
            "name": f"{owner['name']}-{number:05x}",
            "generateName": f"{owner['name']}-",
            "namespace": namespace,
            "labels": dict(template["metadata"]["labels"]),
            "ownerReferences": [owner],
        },
        "spec": {**copy.deepcopy(template["spec"]), "nodeName": cluster.nodes[number % len(cluster.nodes)]},
        "status": pod_status(template, cluster.now, number),
    }
    return cluster.store("pods", pod, manager=MANAGER)


def pod_status(template: Object, at: datetime, number: int) -> Object:
    """Return a Pod's status as a kubelet publishes it."""
    kind, now, container = behaviour(template), stamp(at), template["spec"]["containers"][0]
    up = kind in ("well", "oom")
    ready = "True" if up else "False"
    made = {"status": "True", "lastProbeTime": None, "lastTransitionTime": now}
    readiness = {"status": ready, "lastProbeTime": None, "lastTransitionTime": now, "reason": "ContainersNotReady"}
    state: Object = {"running": {"startedAt": now}}
    last: Object = {}
    if kind in ("crash", "flash"):
        state = {"waiting": {"reason": "CrashLoopBackOff", "message": f"back-off 16s restarting failed container={container['name']}"}}
        code, reason = (1, "Error") if kind == "crash" else (0, "Completed")
        last = {
            "terminated": {"exitCode": code, "reason": reason, "startedAt": now, "finishedAt": now, "containerID": f"containerd://{number}"}
        }
    elif kind == "oom":
        last = {
            "terminated": {
                "exitCode": 137,
                "reason": "OOMKilled",
                "startedAt": now,
                "finishedAt": now,
                "containerID": f"containerd://{number}",
            }
        }
    elif kind == "slow":
        state = {"waiting": {"reason": "ContainerCreating"}}
    return {
        "phase": "Pending" if kind == "slow" else "Running",
        "conditions": [
            {"type": "Initialized", **made},
            {"type": "ContainersReady", **readiness},
            {"type": "Ready", **readiness},
            {"type": "PodScheduled", **made},
        ],
        "hostIP": "127.0.0.1",
        "podIP": f"10.244.0.{number % 250}",
        "podIPs": [{"ip": f"10.244.0.{number % 250}"}],
        "startTime": now,
        "containerStatuses": [
            {
                "name": container["name"],
                "state": state,
                "lastState": last,
                "ready": up,
                "restartCount": {"crash": 3, "flash": 3, "oom": 2}.get(kind, 0),
                "image": container["image"],
                "imageID": f"sha256:{container['image']}",
                "started": up,
            }
        ],
        "qosClass": "Burstable",
    }


def finish(cluster: FakeCluster, before: Object, item: Object, *, subresource: str = "") -> None:
    """Count a controller's change as one write, if there was one."""
    if before != item:
        cluster.touch(item, manager=MANAGER, before=before, subresource=subresource)
