"""What the script of the pages must not do: exchange a plan, or move a button, under somebody's hand."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta

from playwright.async_api import Page, expect

from remediator.events import Kind
from remediator.model import ApprovalState, Event, RunState
from remediator.records import Pause
from remediator.store.protocol import Changes, Reads
from tests.servers.browser import open_browser
from tests.servers.surface import APPROVAL, INCIDENT, NOW, RUN, Surface, make_approval, make_plan, make_run, token_of


@asynccontextmanager
async def looking_at(surface: Surface, path: str) -> AsyncIterator[Page]:
    """Open a page as somebody who may approve, and wait until it is live."""
    async with open_browser() as browser:
        page = await browser.new_page()
        page.set_default_timeout(10_000)
        await page.goto(surface.url)
        await page.get_by_label("Your token").fill(token_of("sre"))
        await page.get_by_role("button", name="Sign in").click()
        await page.wait_for_url("**/ui/")
        await page.goto(surface.url + path)
        await expect(page.locator("#live.on")).to_be_visible()
        yield page


async def test_a_plan_is_not_exchanged_under_the_button(surface: Surface) -> None:
    """When another plan is asked about, the one that somebody looks at stays, with a note; pressing approves neither."""
    async with looking_at(surface, f"/ui/runs/{RUN}") as page:
        other = f"{RUN}-A2"
        plan = replace(make_plan(), summary="roll web back to revision 7")
        run = make_run()
        run = replace(run, approval=other, plan_hash="b" * 64, steps=(replace(run.steps[0], plan=plan),))
        asked = replace(make_approval(), id=other, plan_hash="b" * 64)
        void = replace(make_approval(), state=ApprovalState.VOID)
        event = Event(INCIDENT, Kind.APPROVAL_REQUESTED, NOW + timedelta(seconds=9), {"run": RUN, "approval": other})
        changes = Changes(runs=[run], approvals=[void, asked], events=[event])
        await surface.service.store.transact(Reads(), lambda _: changes)
        await expect(page.get_by_text("Below is still the plan you were reading")).to_be_visible()
        await expect(page.get_by_text("roll web back to revision 42")).to_be_visible()
        await page.get_by_role("button", name="Approve").click()
        await expect(page.get_by_role("alert")).to_contain_text("is void already")
        assert await votes(surface, APPROVAL, other) == []
        await expect(page.get_by_text("roll web back to revision 7").first).to_be_visible()


async def test_a_plan_is_not_exchanged_by_way_of_none(surface: Surface) -> None:
    """While a plan is made anew the page sees none: what comes then is not put in the place of the one that was read either."""
    async with looking_at(surface, f"/ui/runs/{RUN}") as page:
        other, run = f"{RUN}-A2", make_run()
        void = replace(make_approval(), state=ApprovalState.VOID)
        between = replace(run, state=RunState.PLANNING, reason="it is planned anew", approval=None, plan_hash="")
        await put(surface, Changes(runs=[between], approvals=[void]))
        await expect(page.get_by_text("it is planned anew")).to_be_visible()
        plan = replace(make_plan(), summary="roll web back to revision 7")
        again = replace(run, reason="asked anew", approval=other, plan_hash="b" * 64, steps=(replace(run.steps[0], plan=plan),))
        await put(surface, Changes(runs=[again], approvals=[replace(make_approval(), id=other, plan_hash="b" * 64)]))
        await expect(page.get_by_text("asked anew", exact=True)).to_be_visible()
        await expect(page.get_by_text("Below is still the plan you were reading")).to_be_visible()
        await expect(page.get_by_text("roll web back to revision 42")).to_be_visible()
        await expect(page.get_by_text("roll web back to revision 7")).to_have_count(0)
        await page.get_by_role("button", name="Approve").click()
        await expect(page.get_by_role("alert")).to_contain_text("is void already")
        assert await votes(surface, APPROVAL, other) == []


async def put(surface: Surface, changes: Changes) -> None:
    """Have something happen to the run that is looked at."""
    event = Event(INCIDENT, Kind.INCIDENT_ACKNOWLEDGED, NOW + timedelta(seconds=9), {"owner": "anna"})
    await surface.service.store.transact(Reads(), lambda _: replace(changes, events=[event]))


async def votes(surface: Surface, *approvals: str) -> list[str]:
    """Return who has voted on any of these."""
    found = [await surface.service.store.approval(name) for name in approvals]
    return [vote.who for one in found if one is not None for vote in one.votes]


async def test_a_refused_form_keeps_its_words_while_things_change(surface: Surface) -> None:
    """What was sent and refused stays as it was typed, while the rest of the page goes on being live."""
    async with looking_at(surface, "/ui/freezes") as page:
        await page.get_by_label("Why?", exact=True).fill("we <move>")
        await page.get_by_label("How long", exact=True).select_option("until")
        await page.get_by_label("Time given, in UTC").fill("2020-01-01T03:00")
        await page.get_by_role("button", name="Freeze", exact=True).click()
        await expect(page.get_by_role("alert")).to_contain_text("would be over already")
        await expect(page.locator("#live.on")).to_be_visible()
        await put(surface, Changes(pauses=[Pause("freeze", "anna", "from elsewhere", NOW)]))
        await expect(page.get_by_role("region", name="Freeze: everything")).to_contain_text("from elsewhere")
        await expect(page.get_by_label("Why?", exact=True)).to_have_value("we <move>")
        await expect(page.get_by_label("How long", exact=True)).to_have_value("until")
        await page.get_by_label("Time given, in UTC").fill("2099-01-01T03:00")
        await page.get_by_label("What", exact=True).select_option("rule:site-down")
        await page.get_by_role("button", name="Freeze", exact=True).click()
        await expect(page.get_by_text("Frozen.")).to_be_visible()
    assert (await surface.service.store.pauses())["freeze:rule:site-down"].why == "we <move>"


async def test_a_page_says_whether_it_is_live(surface: Surface) -> None:
    """Once the daemon is gone the page says so, whatever it shows."""
    async with looking_at(surface, "/ui/") as page:
        await expect(page.locator("#live")).to_contain_text("Page of")
        await surface.listener.aclose()
        await expect(page.locator("#live.lost")).to_contain_text("What you see is not live.")
