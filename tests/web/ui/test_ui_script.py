"""What the script of the pages must not do: exchange a plan, or move a button, under somebody's hand."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta

import pytest
from playwright.async_api import Page, expect

from remediator.events import Kind
from remediator.model import ApprovalState, Event, RunState
from remediator.records import Pause
from remediator.store.protocol import Changes, Reads
from remediator.web.ui import live
from tests.servers.browser import PHONE, open_browser
from tests.servers.surface import APPROVAL, INCIDENT, NOW, RUN, Surface, make_approval, make_incident, make_plan, make_run, token_of


@asynccontextmanager
async def looking_at(surface: Surface, path: str, *, is_live: bool = True, clock: bool = False) -> AsyncIterator[Page]:
    """Open a page as somebody who may approve, and wait until it is live. With `clock` its time may be moved on."""
    async with open_browser() as browser:
        page = await (await browser.new_context(viewport=PHONE)).new_page()
        page.set_default_timeout(10_000)
        if clock:
            await page.clock.install()
        await enter(page, surface, "sre")
        await page.goto(surface.url + path)
        await expect(page.locator("#live.on" if is_live else "#live")).to_be_visible()
        yield page


async def enter(page: Page, surface: Surface, role: str) -> None:
    """Sign in."""
    await page.goto(f"{surface.url}/ui/sign-in")
    await page.get_by_label("Your token").fill(token_of(role))
    await page.get_by_role("button", name="Sign in").click()
    await page.wait_for_url("**/ui/")


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
        await expect(page.locator("#part-plan").get_by_text("roll web back to revision 42")).to_be_visible()
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
        await expect(page.locator("#part-plan").get_by_text("roll web back to revision 42")).to_be_visible()
        await expect(page.get_by_text("roll web back to revision 7")).to_have_count(0)
        await page.get_by_role("button", name="Approve").click()
        await expect(page.get_by_role("alert")).to_contain_text("is void already")
        assert await votes(surface, APPROVAL, other) == []


async def test_nobody_acts_as_somebody_else_than_his_page_says(surface: Surface) -> None:
    """Once another person signs in, in the same browser, an open page exchanges nothing and says so; what is pressed there is not done."""
    async with looking_at(surface, f"/ui/runs/{RUN}") as page:
        await expect(page.locator(".who")).to_have_text("sre")
        assert (box := await page.locator(".who").bounding_box()) is not None
        assert box["width"] > 10  # on a phone too
        await expect(page.locator("#approve")).to_contain_text("You decide as sre.")
        await enter(await page.context.new_page(), surface, "admin")
        await put(surface, Changes(runs=[replace(make_run(), reason="something new")]))
        await page.bring_to_front()
        await expect(page.locator("#stale")).to_contain_text("You are signed in as admin now")
        await expect(page.locator("#live.lost")).to_contain_text("You are signed in as admin now. Reload.")
        await expect(page.get_by_text("something new")).to_have_count(0)
        await page.get_by_role("button", name="Approve").click()
        await expect(page.get_by_role("alert")).to_contain_text("made in an earlier session, so nothing was done")
        await expect(page.locator(".who")).to_have_text("admin")
        assert await votes(surface, APPROVAL) == []


async def test_what_moves_takes_no_press_and_what_stays_keeps_the_focus(surface: Surface) -> None:
    """A banner that moves a button holds it for a moment; what did not change is not exchanged, though others write into it."""
    async with looking_at(surface, f"/ui/runs/{RUN}") as page:
        await page.evaluate("""() => {
            document.documentElement.style.overflowAnchor = 'none';
            document.querySelector('#approve textarea').setAttribute('data-of-a-password-manager', '');
            const deny = [...document.querySelectorAll('#approve button')].at(-1);
            new MutationObserver(() => { if (deny.disabled) document.body.dataset.wasHeld = '' }).observe(deny, { attributes: true });
        }""")
        await page.locator("#part-head").get_by_role("link", name=INCIDENT).focus()
        await put(surface, Changes(runs=[replace(make_run(), reason="news")], pauses=[Pause("freeze", "anna", "from elsewhere", NOW)]))
        await expect(page.locator("body[data-was-held]")).to_be_visible()
        await expect(page.get_by_text("news", exact=True)).to_be_visible()
        await expect(page.get_by_role("button", name="Deny")).to_be_enabled()
        await expect(page.locator("#part-head").get_by_role("link", name=INCIDENT)).to_be_focused()
        await expect(page.locator("[data-of-a-password-manager]")).to_have_count(1)
        await expect(page.locator("#stale")).to_have_count(0)


async def test_a_dead_connection_is_found(surface: Surface, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a word of the daemon for fifteen seconds a page asks for a new connection; one that is refused says why."""
    monkeypatch.setattr(live, "LOOK_EVERY", 3600.0)  # it says nothing
    async with looking_at(surface, "/ui/", clock=True) as page:
        async with page.expect_request("**/ui/live*"):
            await page.clock.fast_forward(20_000)
        await expect(page.locator("#live.on")).to_be_visible()
        await page.context.clear_cookies()
        await page.clock.fast_forward(20_000)
        await expect(page.locator("#live.lost")).to_have_text("You are signed out. Reload to sign in.")


async def test_a_page_too_many_says_that_it_is_one(surface: Surface, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is not followed since many are is not told that the daemon can't be reached."""
    monkeypatch.setattr(live, "MOST", 0)
    async with looking_at(surface, "/ui/", is_live=False) as page:
        await expect(page.locator("#live.lost")).to_contain_text("This page is not live: too many pages are open")


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
        await expect(page.get_by_text("You froze the rule site-down.")).to_be_visible()
    assert (await surface.service.store.pauses())["freeze:rule:site-down"].why == "we <move>"


async def test_a_page_that_is_new_is_fetched_once(surface: Surface) -> None:
    """Where nothing happened since it was made, the beginning of its stream does not fetch it again; a change does."""
    async with looking_at(surface, "/ui/runs") as page:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        await page.reload()
        await expect(page.locator("#live.on")).to_be_visible()
        assert [url for url in asked if url.endswith("/ui/runs")] == [f"{surface.url}/ui/runs"]
        await put(
            surface,
            Changes(runs=[replace(make_run(), state=RunState.FAILED, ended_at=NOW)], events=[Event(INCIDENT, Kind.RUN_ENTERED, NOW, {})]),
        )
        await expect(page.locator("#part-list")).to_contain_text("failed")
        assert len([url for url in asked if url.endswith("/ui/runs")]) == 2


async def test_a_page_says_whether_it_is_live(surface: Surface) -> None:
    """Once the daemon is gone the page says so, whatever it shows."""
    async with looking_at(surface, "/ui/") as page:
        await expect(page.locator("#live")).to_contain_text("Page of")
        await surface.listener.aclose()
        await expect(page.locator("#live.lost")).to_contain_text("What you see is not live.")


async def test_long_words_push_nothing_out_of_sight(surface: Surface) -> None:
    """On a phone the overview stays short whatever alerts say, and its link leads to the plan, not past it."""
    long = "the disk of a very long name is full " * 80
    incidents = [replace(make_incident(number), summary=long, target=f"x/{'y' * 3000}") for number in range(1, 13)]
    await surface.service.store.transact(Reads(), lambda _: Changes(incidents=incidents, runs=[make_run()]))
    async with looking_at(surface, "/ui/") as page:
        assert await page.evaluate("document.documentElement.scrollHeight") < 9000
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        await page.get_by_role("link", name="roll back").first.click()
        await expect(page.get_by_role("heading", name="What it will do")).to_be_in_viewport()
        await expect(page.locator("#part-plan ins").first).to_be_in_viewport()
