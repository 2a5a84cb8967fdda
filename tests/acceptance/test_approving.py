"""Several people who must agree, with the real daemon: whose right was taken away meanwhile does not count."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.world import CALLS, World, open_world
from tests.servers.daemon import RefusedError

pytestmark = [pytest.mark.xdist_group("acceptance-approving")]

RULES = CALLS.replace("- name: call it", "- name: call it\n        approval: {from: [sre], quorum: 2}")
PEOPLE = ("anna", "ben", "cleo")


def identity(name: str, **fields: Any) -> Mapping[str, Any]:
    """Return the settings of somebody whose token is `token of NAME`."""
    digest = hashlib.sha256(f"token of {name}".encode()).hexdigest()
    return {"token_sha256": [digest], "roles": ["approver"], "groups": ["sre"], **fields}


async def agrees(world: World, who: str, approval: Mapping[str, Any]) -> Any:
    """Approve as somebody; return the approval."""
    body = {"decision": "approve", "plan_hash": approval["plan_hash"]}
    return await world.daemon.call("POST", f"/api/v1/approvals/{approval['id']}", body, who=who)


@pytest.mark.parametrize("fields", [None, {"roles": ["responder"]}, {"groups": ["dev"]}])
async def test_vote_does_not_outlast_the_right_to_vote(tmp_path: Path, fields: Mapping[str, Any] | None) -> None:
    """Anna agrees, then her identity, role or group goes: Ben's word is the first of two, and all of it is on record."""
    async with open_world(tmp_path, rules=RULES, settings={"identities": {name: identity(name) for name in PEOPLE}}) as world:
        world.daemon.tokens |= {name: f"token of {name}" for name in PEOPLE}
        (incident,) = (await world.fire("Call", id="two"))["incidents"]
        approval = await world.daemon.asked(f"{incident}-1")
        assert (await agrees(world, "anna", approval))["state"] == "pending"
        if fields is None:
            del world.daemon.settings["identities"]["anna"]
        world.daemon.write_settings(identities={"anna": identity("anna", **fields)} if fields else {})
        await world.daemon.call("POST", "/-/reload")
        decided = await agrees(world, "ben", approval)
        assert (decided["state"], [vote["who"] for vote in decided["votes"]]) == ("pending", ["ben"])
        with pytest.raises(RefusedError):
            await agrees(world, "anna", approval)
        assert world.calls("two") == 0
        assert (await agrees(world, "cleo", approval))["state"] == "approved"
        await world.daemon.reaches(f"{incident}-1", "succeeded")
        told = [event["data"].get("left_out") for event in await world.daemon.events(incident, "approval.decided")]
        assert told == [None, ["anna"], None]


@pytest.mark.parametrize("fields", [None, {"roles": ["responder"]}, {"groups": ["dev"]}, {"token_sha256": []}])
async def test_s15_full_quorum_does_not_outlast_the_right_to_vote(tmp_path: Path, fields: Mapping[str, Any] | None) -> None:
    """Both agree while a freeze holds the run back, then Anna's identity, role, group or only token goes: both are asked anew, by name."""
    async with open_world(tmp_path, rules=RULES, settings={"identities": {name: identity(name) for name in PEOPLE}}) as world:
        world.daemon.tokens |= {name: f"token of {name}" for name in PEOPLE}
        (incident,) = (await world.fire("Call", id="full"))["incidents"]
        approval = await world.daemon.asked(f"{incident}-1")
        await world.cli("freeze", "-m", "not now", who="responder")
        for who in ("anna", "ben"):
            await agrees(world, who, approval)
        await world.daemon.reaches(f"{incident}-1", "waiting")
        if fields is None:
            del world.daemon.settings["identities"]["anna"]
        world.daemon.write_settings(identities={"anna": identity("anna", **fields)} if fields else {})
        await world.daemon.call("POST", "/-/reload")
        await world.cli("thaw", "-m", "now")
        await world.daemon.reaches(f"{incident}-1", "awaiting_approval")
        assert world.calls("full") == 0
        again = (await world.daemon.call("GET", f"/api/v1/approvals/{incident}-1-A2"))["approval"]
        assert again["reason"].startswith("anna, who agreed to it, may not approve it any more")
        for who in ("ben", "cleo"):
            await agrees(world, who, again)
        await world.daemon.reaches(f"{incident}-1", "succeeded")
        assert world.calls("full") == 1
