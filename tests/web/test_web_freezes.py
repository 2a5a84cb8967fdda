"""Freezes through the API: who may begin and end one, what is refused, and what is listed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from aiohttp import ClientSession

from remediator.freezes.windows import Calendar, Cron, Dates, Effect, Freezes, Limits, Window
from tests.servers.surface import Surface, bearer

NOW = datetime.now(UTC)
DAY = timedelta(days=1)


async def post(http: ClientSession, surface: Surface, path: str, body: Any, role: str = "responder") -> tuple[int, Any]:
    async with http.post(surface.url + path, json=body, headers=bearer(role)) as answer:
        return answer.status, await answer.json()


async def get(http: ClientSession, surface: Surface, path: str) -> Any:
    async with http.get(surface.url + path, headers=bearer("viewer")) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json()


async def test_responder_freezes_and_approver_thaws(surface: Surface, http: ClientSession) -> None:
    """Whoever may pause may freeze; letting things be changed again asks for more."""
    status, row = await post(http, surface, "/api/v1/freeze", {"reason": "migration", "for": "2h"})
    assert (status, row["scope"], row["who"]) == (200, "freeze", "responder")
    left = datetime.fromisoformat(row["until"]) - datetime.now(UTC)
    assert timedelta(minutes=119) < left <= timedelta(hours=2)
    assert (await post(http, surface, "/api/v1/thaw", {}))[0] == 403
    assert (await post(http, surface, "/api/v1/freeze", {"reason": "x"}, "viewer"))[0] == 403
    assert (await post(http, surface, "/api/v1/thaw", {"reason": "done"}, "approver"))[0] == 200
    assert await surface.service.store.pauses() == {}
    status, problem = await post(http, surface, "/api/v1/thaw", {}, "approver")
    assert (status, "frozen by hand is nothing" in problem["detail"]) == (404, True)


async def test_lifting_the_kill_switch_lifts_no_freeze(surface: Surface, http: ClientSession) -> None:
    """The two are apart: neither word ends the other."""
    await post(http, surface, "/api/v1/freeze", {"reason": "migration"})
    assert (await post(http, surface, "/api/v1/resume", {}, "approver"))[0] == 404
    assert (await post(http, surface, "/api/v1/resume", {"scope": "freeze"}, "approver"))[0] == 422
    assert list(await surface.service.store.pauses()) == ["freeze"]


async def test_typing_errors_are_no_freezes(surface: Surface, http: ClientSession) -> None:
    """What would freeze nothing is refused: an unknown rule or connection, an end that is past, two ends, no reason."""
    for body, status in (
        ({"reason": "x", "scope": "rule:site-dwon"}, 404),
        ({"reason": "x", "scope": "connection:prdo"}, 404),
        ({"reason": "x", "until": "2020-01-01T00:00:00Z"}, 422),
        ({"reason": "x", "until": "2030-01-01T00:00:00"}, 422),
        ({"reason": "x", "until": "2030-01-01T00:00:00Z", "for": "2h"}, 422),
        ({"reason": "x", "for": "0s"}, 422),
        ({"reason": "", "for": "2h"}, 422),
        ({"reason": "x", "scope": "storm"}, 422),
    ):
        found, _ = await post(http, surface, "/api/v1/freeze", body)
        assert found == status, body
    assert await surface.service.store.pauses() == {}
    for scope in ("rule:site-down", "connection:prod"):
        assert (await post(http, surface, "/api/v1/freeze", {"reason": "x", "scope": scope}))[0] == 200
    assert sorted(await surface.service.store.pauses()) == ["freeze:connection:prod", "freeze:rule:site-down"]


async def test_list_shows_what_is_in_force_and_what_comes(surface: Surface, http: ClientSession) -> None:
    """In force first, then by when they begin; limits, reason and who are there, and what nobody knows."""
    surface.service.freezes = Freezes(
        (
            Window("broken", Calendar(problem="x.ics can't be read")),
            Window("later", Dates(NOW + 2 * DAY, NOW + 3 * DAY)),
            Window("nightly", Cron("0 0 * * *", timedelta(hours=24), UTC), Effect.APPROVE, "quiet", Limits(rules=frozenset({"site-down"}))),
            Window("over", Dates(NOW - 2 * DAY, NOW - DAY)),
            Window("soon", Dates(NOW + DAY, None)),
        )
    )
    await post(http, surface, "/api/v1/freeze", {"reason": "migration", "scope": "rule:site-down"})
    items = (await get(http, surface, "/api/v1/freezes"))["items"]
    assert [(one["name"], one["in_force"]) for one in items] == [
        ("freeze:rule:site-down", True),
        ("nightly", True),
        ("soon", False),
        ("later", False),
        ("broken", False),
        ("over", False),
    ]
    by_hand, nightly, soon, later, broken, over = items
    assert (by_hand["who"], by_hand["until"], by_hand["rules"], by_hand["reason"]) == ("responder", None, ["site-down"], "migration")
    assert (nightly["effect"], nightly["rules"], nightly["reason"], nightly["source"]) == ("approve", ["site-down"], "quiet", "cron")
    assert datetime.fromisoformat(soon["next"]) == NOW + DAY
    assert datetime.fromisoformat(later["next"]) == NOW + 2 * DAY
    assert broken["doubt"] == "x.ics can't be read"
    assert (over["next"], over["until"]) == (None, None)
    status = await get(http, surface, "/api/v1/status")
    assert {one["name"] for one in status["freezes"]} == {"freeze:rule:site-down", "nightly", "broken"}
