"""Evictions on servers newer than the tests' own cluster, by the recorded answers of a real 1.36 server.

The cluster of these tests is 1.20, which knows evictions of policy/v1beta1 alone; 1.22 and later know policy/v1, and 1.25 knows nothing
else. The double here gives recorded answers: the refusal of an eviction, byte by byte, and releases as `/version` tells them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from actions.kubernetes.budgets import read_budgets
from actions.kubernetes.client import Client, Endpoint
from actions.kubernetes.errors import Blocked
from actions.kubernetes.removal import Pin, Way
from tests.servers.http import HttpServer, Reply

RECORDED: list[dict[str, Any]] = json.loads(Path(__file__).with_name("recorded-1.36.json").read_text())
EVICTION = next(item for item in RECORDED if item["note"] == "evict a Pod against its budget: 429")
POD = str(EVICTION["request"]["path"]).split("/")[-2]
PIN = Pin("kubernetes:prod/shop/pod/web", "shop", POD, "uid-1", None)


async def _nobody(renew: bool) -> None:
    return None


def server(minor: str) -> HttpServer:
    """Return a server of a release that refuses the recorded eviction as recorded."""
    refusal = Reply(EVICTION["response"]["status"], EVICTION["response"]["body"])
    return HttpServer({"/version": Reply(200, {"major": "1", "minor": minor}), EVICTION["request"]["path"]: refusal})


@pytest.mark.parametrize(
    ("minor", "version"),
    [("20", "policy/v1beta1"), ("21+", "policy/v1beta1"), ("22", "policy/v1"), ("27+", "policy/v1"), ("36", "policy/v1")],
)
async def test_each_release_is_asked_in_a_version_that_it_knows(minor: str, version: str) -> None:
    """The request is the recorded one, and has the uid besides; the refusal names the budget, and is not tried again."""
    async with server(minor) as running:
        client = Client(Endpoint("prod", running.url, _nobody), manager="remediator")
        for dry_run in (True, False):
            running.received.clear()
            with pytest.raises(Blocked, match="needs 5 healthy pods and has 5 currently") as caught:
                await Way(evict=True, grace=7).send(client, PIN, dry_run=dry_run)
            assert caught.value.budget == "web"
            sent = running.received[-1]
            assert [one.method for one in running.received].count("POST") == 1
            assert ("dryRun=All" in sent.target) is dry_run
            options = {"preconditions": {"uid": "uid-1"}, "gracePeriodSeconds": 7}
            meta = {"name": POD, "namespace": "shop"}
            assert sent.json == {"apiVersion": version, "kind": "Eviction", "metadata": meta, "deleteOptions": options}
        await client.aclose()


async def test_budgets_are_read_in_the_newest_version_and_mean_what_it_says() -> None:
    """An empty selector is every Pod in policy/v1; the answer has the shape of the recorded budget."""
    item = {
        "metadata": {"name": "web", "namespace": "shop", "resourceVersion": "646", "generation": 1},
        "spec": {"minAvailable": 5, "selector": {}, "unhealthyPodEvictionPolicy": "AlwaysAllow"},
        "status": {"observedGeneration": 1, "disruptionsAllowed": 0, "currentHealthy": 5, "desiredHealthy": 5, "expectedPods": 5},
    }
    groups = {"kind": "APIGroupList", "groups": [{"name": "policy", "versions": [{"version": "v1"}]}]}
    listed = {"kind": "PodDisruptionBudgetList", "metadata": {}, "items": [item]}
    replies = {"/apis": Reply(200, groups), "/apis/policy/v1/namespaces/shop/poddisruptionbudgets": Reply(200, listed)}
    async with HttpServer(replies) as running:
        client = Client(Endpoint("prod", running.url, _nobody), manager="remediator")
        (found,) = await read_budgets(client, "shop")
        await client.aclose()
    pod = {"metadata": {"labels": {}}, "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}
    assert found.covers(pod)
    assert "5 healthy, 5 needed" in (found.objection(pod) or "")
    assert found.objection({**pod, "status": {"phase": "Running"}}) is None
