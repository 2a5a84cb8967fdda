"""The scorecard's routes: what they show, and whom and what they refuse."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from aiohttp import ClientSession

from remediator.people.authentication import Role
from remediator.records import DEMOTED, Attempt, Ending, Pause
from remediator.store.protocol import Changes, Reads
from tests.servers.surface import Surface, bearer

RULE = "/api/v1/rules/site-down"


async def ask(http: ClientSession, method: str, url: str, *, role: str = Role.ADMIN, **body: Any) -> tuple[int, Any]:
    sent = {"json": body} if body else {}
    async with http.request(method, url, headers=bearer(role), **sent) as answer:
        return answer.status, await answer.json()


async def test_a_card_shows_what_the_store_counted(surface: Surface, http: ClientSession) -> None:
    """Attempts within the window, by remedy; those of other rules are theirs."""
    now = datetime.now(UTC)
    at = [now - timedelta(days=days) for days in (1, 2, 40)]
    rows = [
        Attempt(f"INC-{n}-1", f"INC-{n}", "site-down", "t", Ending.SUCCESS, tried=True, opened_at=one, ended_at=one, remedy="roll back")
        for n, one in enumerate(at)
    ]
    other = Attempt("INC-9-1", "INC-9", "other", "t", Ending.FAILURE, tried=True, opened_at=now, ended_at=now, remedy="x")
    await surface.service.store.transact(Reads(), lambda _: Changes(attempts=[*rows, other]))
    for url in ("/api/v1/scorecard", "/api/v1/scorecard?rule=site-down"):
        status, found = await ask(http, "GET", surface.url + url, role=Role.VIEWER)
        assert status == 200
        (card,) = found["items"]
        assert (card["rule"], card["mode"], card["authority"], card["earned"]) == ("site-down", "approve", "approve", False)
        assert (card["score"]["attempts"], card["score"]["successes"]) == (2, 2)
        assert [one["remedy"] for one in card["remedies"]] == ["roll back"]
    status, found = await ask(http, "GET", f"{surface.url}/api/v1/scorecard?rule=nobody")
    assert (status, found["type"]) == (404, "urn:remediator:problem:not_found")


async def test_the_files_mode_is_the_ceiling(surface: Surface, http: ClientSession) -> None:
    """A rule of mode approve can't be promoted to auto, not even by force."""
    status, found = await ask(http, "POST", f"{surface.url}{RULE}/promote", reason="x", force=True)
    assert status == 409
    assert "has `mode: approve` in its file" in found["detail"]
    status, _ = await ask(http, "POST", f"{surface.url}/api/v1/rules/nobody/promote", reason="x")
    assert status == 404


async def test_forcing_is_an_admins(surface: Surface, http: ClientSession) -> None:
    """An approver may promote what has earned it, and no more."""
    status, found = await ask(http, "POST", f"{surface.url}{RULE}/promote", role=Role.APPROVER, reason="x", force=True)
    assert (status, found["type"]) == (403, "urn:remediator:problem:forbidden")


async def test_demoting_and_back(surface: Surface, http: ClientSession) -> None:
    """A responder lowers a rule; the same again, or what would raise it, is refused; an approver raises it, up to its file's mode."""
    status, card = await ask(http, "POST", f"{surface.url}{RULE}/demote", role=Role.RESPONDER, reason="odd", to="observe")
    assert (status, card["authority"], card["demoted"]["who"]) == (200, "observe", "responder")
    for to in ("observe", "approve"):
        status, found = await ask(http, "POST", f"{surface.url}{RULE}/demote", role=Role.RESPONDER, reason="odd", to=to)
        assert (status, "goes no further than observe already" in found["detail"]) == (409, True)
    status, card = await ask(http, "POST", f"{surface.url}{RULE}/promote", role=Role.APPROVER, reason="fine", to="approve")
    assert (status, card["authority"]) == (200, "approve")
    status, found = await ask(http, "POST", f"{surface.url}{RULE}/promote", role=Role.APPROVER, reason="fine", to="approve")
    assert (status, "is not demoted below approve" in found["detail"]) == (409, True)


async def test_resume_lifts_no_demotion(surface: Surface, http: ClientSession) -> None:
    """Its way back is a promotion, which asks for a record."""
    await surface.service.store.transact(
        Reads(), lambda seen: Changes(pauses=[Pause(DEMOTED + "site-down", "remediator", "bad", seen.now, mark="approve")])
    )
    status, _ = await ask(http, "POST", f"{surface.url}/api/v1/resume", scope="demoted:site-down", reason="x")
    assert status == 422
    assert DEMOTED + "site-down" in await surface.service.store.pauses()
