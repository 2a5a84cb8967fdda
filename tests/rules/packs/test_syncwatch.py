"""The pack `syncwatch`: which remedy is chosen for which facts. No server is asked; the facts are typed as the real checks declare them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from remediator.model import Risk, Value
from tests.rules.packs.tables import Scene, Seen, changed, choose, pack, rule, scene

MINUTE, HOUR, MS = timedelta(minutes=1), timedelta(hours=1), timedelta(milliseconds=1)

SITE: Seen = {
    "site": {"reachable": True, "status": 503, "ok": False},
    "backend": {"found": True, "previous_found": True, "age": 10 * MINUTE, "desired": 3, "available": 1, "healthy": False},
    "frontend": {"found": True, "previous_found": True, "age": 10 * MINUTE, "desired": 2, "available": 2, "healthy": True},
    "pods": {"found": True, "ready": 1, "not_ready": 2},
    "database": {"reachable": True, "reason": ""},
    "port": {"reachable": True, "reason": ""},
}
OLD: Seen = changed(SITE, backend={"age": 5 * HOUR}, frontend={"age": 5 * HOUR})
GONE: dict[str, Value] = {"reachable": False, "reason": "refused"}
DATABASE: Seen = {
    "server": {"reachable": False, "reason": "too_many_clients"},
    "port": {"reachable": True},
    "sessions": {"exhausted": True, "idle_over": 14, "percent": 97.0},
    "site": {"reachable": True, "status": 500, "ok": False},
}
DEAD: Seen = {
    "server": {"reachable": False, "reason": "primary_down"},
    "replication": {"quorum": True, "primary_down": True, "healthy_replicas": 1},
    "pods": {"found": True, "owner_found": True, "ready": 2},
}
ALONE: Seen = {"server": {"reachable": False, "reason": "refused"}, "pods": {"found": True, "owner_found": True, "ready": 0}}
FULL: Seen = {
    "server": {"reachable": True, "reason": ""},
    "replication": {"role": "primary"},
    "memory": {"max_found": True, "max_bytes": 1_000_000, "percent": 99.0, "policy": "noeviction", "system_bytes": 8_000_000},
    "pods": {"found": True, "owner_found": True, "ready": 1},
}
DRIFT: Seen = {
    "sync": {"found": True, "count": 1, "value": 450.0},
    "redis": {"reachable": True, "latency": MS / 4},
    "slow": {"found": False, "count": 0},
    "socket": {"reachable": True, "status": 101, "upgraded": True},
    "backend": {"found": True, "healthy": True, "age": 3 * HOUR, "desired": 3},
}
BACKLOG: Seen = {
    "queue": {"found": True, "length": 40, "type": "list"},
    "transcoder": {"found": True, "healthy": True, "desired": 1, "available": 1},
    "pods": {"found": True, "ready": 1, "oom_killed": 0},
}

DOWN, REDIS, QUEUE, PLAYBACK = (
    "syncwatch-site-down",
    "syncwatch-redis-down",
    "syncwatch-transcoding-backlog",
    "syncwatch-high-playback-drift",
)
DB = "syncwatch-database-down"
ROLL_BACK, FRONTEND, HAND_OVER = "roll back the recent deployment", "roll back the recent frontend", "it is the database"

SCENES = [
    scene("bad release", DOWN, SITE, ROLL_BACK, tolerates={"database", "pods"}),
    scene("bad release, load balancer refuses", DOWN, {**SITE, "site": GONE}, ROLL_BACK, tolerates={"database"}),
    scene("bad release, all ready, 5xx", DOWN, changed(SITE, backend={"available": 3}), ROLL_BACK, tolerates={"database"}),
    scene("age not recorded", DOWN, {**SITE, "backend": {"found": True, "previous_found": True, "desired": 3, "available": 1}}, None),
    scene("site answers from here", DOWN, changed(SITE, site={"status": 200, "ok": True}), None),
    scene("nothing deployed lately", DOWN, OLD, None),
    scene("load balancer alone", DOWN, {**changed(SITE, backend={"available": 3}), "site": GONE}, None),
    scene("bad release, and the database is down", DOWN, {**SITE, "database": GONE, "port": GONE}, HAND_OVER, tolerates={"database"}),
    scene("only the frontend is new", DOWN, changed(OLD, frontend={"age": MINUTE, "available": 0}), FRONTEND),
    scene("new frontend is well", DOWN, changed(OLD, frontend={"age": MINUTE}), None),
    scene("database down", DOWN, {**OLD, "database": GONE, "port": GONE}, HAND_OVER),
    scene("database full", DOWN, {**OLD, "database": {"reachable": False, "reason": "too_many_clients"}}, HAND_OVER, tolerates={"port"}),
    scene("only the login fails", DOWN, {**OLD, "database": {"reachable": False, "reason": "timeout"}}, None),
    scene("full of idle sessions", DB, DATABASE, "end idle connections"),
    scene("full of work", DB, changed(DATABASE, sessions={"idle_over": 0}), None),
    scene("full, nothing else seen", DB, {**DATABASE, "sessions": {"exhausted": True}}, None),
    scene("down", DB, {"server": GONE, "port": GONE}, None),
    scene("up again", DB, {**DATABASE, "server": {"reachable": True}, "sessions": {"exhausted": False, "idle_over": 3}}, None),
    scene("primary dead", REDIS, DEAD, "fail over"),
    scene("primary dead, replica behind", REDIS, changed(DEAD, replication={"healthy_replicas": 0}), None),
    scene("only we can't reach it", REDIS, changed(DEAD, replication={"primary_down": False}), None),
    scene("single server dead", REDIS, ALONE, "restart the StatefulSet"),
    scene("single server, pod ready", REDIS, changed(ALONE, pods={"ready": 1}), None),
    scene("ElastiCache down", REDIS, {**ALONE, "pods": {"found": False, "owner_found": False}}, None),
    scene("full, more allowed", REDIS, FULL, "raise maxmemory", max_memory=2_000_000),
    scene("full, as shipped", REDIS, FULL, "flush the database"),
    scene("a cache that evicts", REDIS, changed(FULL, memory={"policy": "allkeys-lru"}), None),
    scene("not full", REDIS, changed(FULL, memory={"percent": 60.0}), None),
    scene("overloaded backend", PLAYBACK, DRIFT, "scale the backend"),
    scene("no drift here", PLAYBACK, changed(DRIFT, sync={"value": 60.0}), None),
    scene("no metric", PLAYBACK, {**DRIFT, "sync": {"found": False}}, None),
    scene("Redis slow", PLAYBACK, changed(DRIFT, redis={"latency": 30 * MS}), None),
    scene("WebSockets refused", PLAYBACK, changed(DRIFT, socket={"status": 502, "upgraded": False}), None),
    scene("just deployed", PLAYBACK, changed(DRIFT, backend={"age": MINUTE}), None),
    scene("five already", PLAYBACK, changed(DRIFT, backend={"desired": 5}), None),
    scene("backend unwell", PLAYBACK, changed(DRIFT, backend={"healthy": False}), None),
    scene("too few transcoders", QUEUE, BACKLOG, "add transcoders"),
    scene("transcoders dead", QUEUE, changed(BACKLOG, transcoder={"healthy": False}, pods={"ready": 0}), "restart the transcoders"),
    scene("transcoders out of memory", QUEUE, changed(BACKLOG, transcoder={"healthy": False}, pods={"ready": 0, "oom_killed": 1}), None),
    scene("one transcoder stuck", QUEUE, changed(BACKLOG, transcoder={"healthy": False}), None),
    scene("three, and still too long", QUEUE, changed(BACKLOG, transcoder={"desired": 3, "available": 3}), "delete the queue"),
    scene("short again", QUEUE, changed(BACKLOG, queue={"length": 10}), None),
    scene("empty or misspelt", QUEUE, changed(BACKLOG, queue={"found": False, "length": 0}), None),
]  # fmt: skip
ACTING = [one for one in SCENES if one.remedy is not None]


@pytest.mark.parametrize("case", SCENES, ids=lambda case: f"{case.rule}: {case.name}")
def test_remedy_for_facts(case: Scene) -> None:
    """Each scene leads to exactly the remedy that the playbook says, or to a person."""
    choice = choose(rule(pack("syncwatch", **case.vars), case.rule), case.seen, case.labels)
    assert (None if choice.remedy is None else choice.remedy.name) == case.remedy, choice.reason


@pytest.mark.parametrize("case", ACTING, ids=lambda case: f"{case.rule}: {case.name}")
def test_s02_unknown_never_acts(case: Scene) -> None:
    """Take away any one check that the remedy decides on, and nothing at all is chosen, but for failures tolerated on purpose."""
    found = rule(pack("syncwatch", **case.vars), case.rule)
    remedy = next(one for one in found.remedies if one.name == case.remedy)
    assert remedy.when is not None
    used = {name.split(".")[1] for name in remedy.when.names if name.startswith("checks.")}
    for check in used - set(case.tolerates):
        choice = choose(found, {id_: facts for id_, facts in case.seen.items() if id_ != check}, case.labels)
        assert choice.remedy is None, check


def test_database_that_can_not_be_asked_does_not_hold_up_a_roll_back() -> None:
    """Only a database known to be down speaks against a roll-back; one that could not be asked is the person's to weigh, who approves."""
    choice = choose(rule(pack("syncwatch"), DOWN), changed(SITE, database=None), {})
    assert choice.remedy is not None
    assert choice.remedy.name == ROLL_BACK


def test_s02_nothing_known_nothing_done() -> None:
    """With every check failed, every rule sends a person."""
    for found in pack("syncwatch", "general").rules:
        assert choose(found, {}, {}).remedy is None, found.name


def test_remedies_that_lose_data_take_two_people() -> None:
    """Flushing Redis and deleting the queue can't be taken back."""
    rules = pack("syncwatch")
    for name, remedy in ((REDIS, "flush the database"), (QUEUE, "delete the queue")):
        found = next(one for one in rule(rules, name).remedies if one.name == remedy)
        assert found.approval is not None
        assert found.approval.quorum == 2
    assert all(one.risk is not Risk.HIGH or one.approval is not None for found in rules.rules for one in found.remedies)


def test_site_down_hands_over_to_the_database_playbook_and_not_back() -> None:
    """Site down because of its database is playbook 2, once."""
    rules = pack("syncwatch")
    assert [one.handover for one in rule(rules, DOWN).remedies] == [None, None, DB]
    assert [one.handover for one in rule(rules, DB).remedies] == [None]
