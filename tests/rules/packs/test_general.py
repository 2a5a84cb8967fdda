"""The pack `general`: which remedy is chosen for which facts. No server is asked; the facts are typed as the real checks declare them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.rules.packs.tables import Scene, Seen, changed, choose, pack, rule, scene

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
API = {"namespace": "shop", "deployment": "api"}

BAD_RELEASE: Seen = {
    "rollout": {"found": True, "previous_found": True, "age": 20 * MINUTE, "desired": 3, "available": 2, "complete": False},
    "pods": {"found": True, "total": 4, "ready": 2, "not_ready": 2, "crash_looping": 2, "oom_killed": 0},
}
LOST_NODE = changed(BAD_RELEASE, rollout={"complete": True}, pods={"crash_looping": 0})
CRASHING: Seen = {
    "rollout": {"found": True, "previous_found": True, "age": 48 * HOUR, "desired": 3, "available": 0},
    "pods": {"found": True, "total": 3, "ready": 0, "not_ready": 3, "crash_looping": 3, "oom_killed": 0},
}
FULL: Seen = {"server": {"exhausted": False, "percent": 86.0, "idle_over": 12, "idle_in_transaction_over": 0}}
BLOCKED: Seen = {
    "locks": {"waiting": 7, "blockers": 1, "blocker_pids": [4711], "longest_wait": 3 * MINUTE},
    "long": {"found": True, "count": 0},
    "slowest": {"found": False, "reason": "no_extension"},
}
REDIS_DEAD: Seen = {
    "server": {"reachable": False, "reason": "refused"},
    "sentinels": {"quorum": True, "primary_down": True, "healthy_replicas": 2},
}
REDIS_FULL: Seen = {
    "memory": {"max_found": True, "max_bytes": 1_000_000, "percent": 97.0, "policy": "noeviction", "system_bytes": 10_000_000},
    "hits": {"found": False},
}
BACKLOG: Seen = {
    "queue": {"found": True, "length": 500, "type": "list"},
    "workers": {"found": True, "healthy": True, "desired": 2, "available": 2},
    "pods": {"found": True, "ready": 2, "oom_killed": 0},
}
JOBS = {"namespace": "shop", "deployment": "mailer", "queue": "mail", "instance": "cache:9121"}

UNDO, RESTART = "put the previous revision back", "restart it"
END, END_TRANSACTIONS = "end idle connections", "end connections idle in a transaction"
END_BLOCKER, CANCEL = "end the session that others wait for", "cancel the long statements"

CONNECTIONS, DEPLOYMENT, JOB_QUEUE = "database-connections", "deployment-unhealthy", "queue-backlog"
DEAD_WORKERS: Seen = changed(BACKLOG, workers={"healthy": False}, pods={"ready": 0})
FULL_SERVER: Seen = {"server": {"reachable": False, "reason": "too_many_clients"}, "sessions": {"exhausted": True}}

SCENES = [
    scene("bad release", DEPLOYMENT, BAD_RELEASE, UNDO, labels=API),
    scene("it was done, then crashed", DEPLOYMENT, changed(BAD_RELEASE, rollout={"complete": True}), UNDO, labels=API),
    scene("it was done, then a node was lost", DEPLOYMENT, LOST_NODE, None, labels=API),
    scene("old release", DEPLOYMENT, changed(BAD_RELEASE, rollout={"age": 2 * HOUR}), None, labels=API),
    scene("first release", DEPLOYMENT, changed(BAD_RELEASE, rollout={"previous_found": False}), None, labels=API),
    scene("it is well by now", DEPLOYMENT, changed(BAD_RELEASE, rollout={"available": 3}), None, labels=API),
    scene("no such deployment", DEPLOYMENT, {**BAD_RELEASE, "rollout": {"found": False}}, None, labels=API),
    scene("all crash", DEPLOYMENT, CRASHING, RESTART, labels=API),
    scene("some still serve", DEPLOYMENT, changed(CRASHING, pods={"ready": 1}), None, labels=API),
    scene("out of memory", DEPLOYMENT, changed(CRASHING, pods={"oom_killed": 1}), None, labels=API),
    scene("no room for pods", DEPLOYMENT, changed(CRASHING, pods={"crash_looping": 0}), None, labels=API),
    scene("no pods at all", DEPLOYMENT, {**CRASHING, "pods": {"found": False}}, None, labels=API),
    scene("idle sessions", CONNECTIONS, FULL, END),
    scene("full and exhausted", CONNECTIONS, changed(FULL, server={"exhausted": True, "percent": 97.0}), END),
    scene("few taken", CONNECTIONS, changed(FULL, server={"percent": 40.0}), None),
    scene("all at work", CONNECTIONS, changed(FULL, server={"idle_over": 0}), None),
    scene("open transactions", CONNECTIONS, changed(FULL, server={"idle_over": 0, "idle_in_transaction_over": 5}), END_TRANSACTIONS),
    scene("exhausted, nothing else seen", CONNECTIONS, {"server": {"exhausted": True}}, None),
    scene("other threshold", CONNECTIONS, FULL, None, connections_percent=90.0),
    scene("one blocks all", "database-queries", BLOCKED, END_BLOCKER),
    scene("two block", "database-queries", changed(BLOCKED, locks={"blockers": 2, "blocker_pids": [1, 2]}), None),
    scene("prepared transaction blocks", "database-queries", changed(BLOCKED, locks={"blocker_pids": []}), None),
    scene("only just waiting", "database-queries", changed(BLOCKED, locks={"longest_wait": MINUTE / 2}), None),
    scene("long and in the way", "database-queries", changed(BLOCKED, locks={"blocker_pids": [1, 2]}, long={"count": 2}), CANCEL),
    scene("long but alone", "database-queries", changed(BLOCKED, locks={"waiting": 0, "blocker_pids": []}, long={"count": 2}), None),
    scene("server full", "database-down", FULL_SERVER, "it is full"),
    scene("server down", "database-down", {"server": {"reachable": False, "reason": "refused"}}, None),
    scene("server answers", "database-down", {"server": {"reachable": True}, "sessions": {"exhausted": False}}, None),
    scene("primary dead", "redis-down", REDIS_DEAD, "fail over"),
    scene("only we can't reach it", "redis-down", changed(REDIS_DEAD, sentinels={"primary_down": False}), None),
    scene("only they can't reach it", "redis-down", changed(REDIS_DEAD, server={"reachable": True}), None),
    scene("no quorum", "redis-down", changed(REDIS_DEAD, sentinels={"quorum": False}), None),
    scene("no replica", "redis-down", changed(REDIS_DEAD, sentinels={"healthy_replicas": 0}), None),
    scene("no sentinels", "redis-down", {**REDIS_DEAD, "sentinels": {"role": "primary"}}, None),
    scene("full, more allowed", "redis-memory", REDIS_FULL, "raise maxmemory", max_memory=2_000_000),
    scene("full, as shipped", "redis-memory", REDIS_FULL, None),
    scene("full, less allowed", "redis-memory", REDIS_FULL, None, max_memory=900_000),
    scene("more than the host has", "redis-memory", REDIS_FULL, None, max_memory=20_000_000),
    scene("a cache that evicts", "redis-memory", changed(REDIS_FULL, memory={"policy": "allkeys-lru"}), None, max_memory=2_000_000),
    scene("room left", "redis-memory", changed(REDIS_FULL, memory={"percent": 50.0}), None, max_memory=2_000_000),
    scene("no limit", "redis-memory", {"memory": {"max_found": False, "policy": "noeviction"}}, None, max_memory=2_000_000),
    scene("too few workers", JOB_QUEUE, BACKLOG, "add workers", labels=JOBS),
    scene("enough workers", JOB_QUEUE, changed(BACKLOG, workers={"desired": 6, "available": 6}), None, labels=JOBS),
    scene("short queue", JOB_QUEUE, changed(BACKLOG, queue={"length": 5}), None, labels=JOBS),
    scene("wrong key or empty queue", JOB_QUEUE, changed(BACKLOG, queue={"found": False, "length": 0}), None, labels=JOBS),
    scene("workers unwell", JOB_QUEUE, changed(BACKLOG, workers={"healthy": False}, pods={"ready": 1}), None, labels=JOBS),
    scene("workers gone", JOB_QUEUE, DEAD_WORKERS, "restart the workers", labels=JOBS),
    scene("workers switched off", JOB_QUEUE, changed(DEAD_WORKERS, workers={"desired": 0}), None, labels=JOBS),
    scene("a pod, its owner not named", "pod-crash-looping", {"owner": {"found": True}, "ended": {"found": True}}, None),
    scene("a StatefulSet", "statefulset-unhealthy", {"rollout": {"found": True}, "pods": {"found": True}}, None),
    scene("an endpoint", "endpoint-down", {"answer": {"reachable": False, "reason": "refused"}}, None),
]  # fmt: skip
ACTING = [one for one in SCENES if one.remedy is not None]


@pytest.mark.parametrize("case", SCENES, ids=lambda case: f"{case.rule}: {case.name}")
def test_remedy_for_facts(case: Scene) -> None:
    """Each scene leads to exactly the remedy that the runbook says, or to a person."""
    choice = choose(rule(pack("general", **case.vars), case.rule), case.seen, case.labels)
    assert (None if choice.remedy is None else choice.remedy.name) == case.remedy, choice.reason


@pytest.mark.parametrize("case", ACTING, ids=lambda case: f"{case.rule}: {case.name}")
def test_s02_unknown_never_acts(case: Scene) -> None:
    """Take away any one check that the remedy decides on, and nothing is chosen, neither it nor a later one; the reason is told."""
    found = rule(pack("general", **case.vars), case.rule)
    remedy = next(one for one in found.remedies if one.name == case.remedy)
    assert remedy.when is not None
    used = {name.split(".")[1] for name in remedy.when.names if name.startswith("checks.")}
    for check in used:
        choice = choose(found, {id_: facts for id_, facts in case.seen.items() if id_ != check}, case.labels)
        assert choice.remedy is None, check
        assert "no answer" in choice.reason


ALERTS: dict[str, tuple[str, dict[str, str]]] = {
    "KubeDeploymentRolloutStuck": ("deployment-unhealthy", API),
    "KubeDeploymentReplicasMismatch": ("deployment-unhealthy", API),
    "KubernetesDeploymentReplicasMismatch": ("deployment-unhealthy", API),
    "KubeStatefulSetReplicasMismatch": ("statefulset-unhealthy", {"namespace": "shop", "statefulset": "db"}),
    "PostgresqlTooManyConnections": ("database-connections", {"instance": "db:9187"}),
    "PostgreSQLMaxConnectionsReached": ("database-connections", {"instance": "db:9187"}),
    "PostgresqlDown": ("database-down", {"instance": "db:9187"}),
    "PostgresqlSlowQueries": ("database-queries", {"instance": "db:9187"}),
    "PostgresqlTooManyLocksAcquired": ("database-queries", {}),
    "RedisDown": ("redis-down", {"instance": "cache:9121"}),
    "RedisMissingMaster": ("redis-down", {}),
    "RedisOutOfConfiguredMaxmemory": ("redis-memory", {"instance": "cache:9121"}),
    "QueueBacklog": ("queue-backlog", JOBS),
    "BlackboxProbeFailed": ("endpoint-down", {"instance": "https://shop.example.com"}),
}


@pytest.mark.parametrize("alertname", ALERTS)
def test_names_that_people_have(alertname: str) -> None:
    """The alerts of kube-prometheus, awesome-prometheus-alerts and the exporters' mixins find their rule, and only that."""
    name, labels = ALERTS[alertname]
    assert [one.name for one in pack("general").matching({"alertname": alertname, **labels})] == [name]


def test_crash_looping_pod_is_acted_on_only_when_the_alert_names_its_deployment() -> None:
    """What a Pod belongs to is never guessed from its name."""
    labels = {"alertname": "KubePodCrashLooping", "namespace": "shop", "pod": "api-6d9f7c9c5d-x2lqz"}
    rules = pack("general")
    assert [one.name for one in rules.matching(labels)] == ["pod-crash-looping"]
    assert [one.name for one in rules.matching({**labels, "deployment": "api"})] == ["deployment-unhealthy"]


def test_own_alert_names_are_variables() -> None:
    """Queues and endpoints have no common alert names; a team writes its own as a variable."""
    rules = pack("general", queue_alerts="CeleryHighQueueLength|MailQueueLong")
    assert [one.name for one in rules.matching({"alertname": "MailQueueLong", **JOBS})] == ["queue-backlog"]
    assert rules.matching({"alertname": "QueueBacklog", **JOBS}) == []
