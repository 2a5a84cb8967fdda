"""The web interface as somebody on call uses it: a real browser, a real daemon, a real Alertmanager."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, expect

from tests.acceptance.world import CALLS, World, open_world
from tests.servers.browser import DESKTOP, PHONE, faults_of, open_browser
from tests.servers.http import Reply
from tests.servers.redis import RedisServer

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("acceptance-web-interface")]

RULES = (
    CALLS.replace("mode: auto", "mode: approve")
    + """
  - name: looks
    match: ['alertname = "Look"']
    severity: sev1
    target: "look/${labels.id}"
    runbook: https://wiki.example.com/playbooks#look
    remedies: []
    otherwise: escalate
  - name: memory
    match: ['alertname = "Memory"']
    mode: auto
    target: "cache/${labels.id}"
    remedies:
      - name: evict
        steps: [{redis.config_set: {connection: cache, parameter: maxmemory-policy, value: allkeys-lru}}]
        verify: {within: 60s, hold: 0s, every: 200ms, until: "true"}
    guards: {cooldown: 0s, budget: [999 per 1h]}
"""
)


@dataclass
class Desk:
    """Everything that runs, and a browser."""

    world: World
    browser: Browser

    @asynccontextmanager
    async def signed_in(self, who: str = "approver", *, host: str = "127.0.0.1", **options: Any) -> AsyncIterator[Page]:
        """Open a browser of its own and sign in; nothing on the way may break the policy of the pages."""
        context = await self.browser.new_context(**{"viewport": DESKTOP} | options)
        page = await context.new_page()
        page.set_default_timeout(10_000)
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        await page.goto(f"http://{host}:{self.world.daemon.port}/")
        await page.get_by_label("Your token").fill(self.world.daemon.tokens[who])
        await page.get_by_role("button", name="Sign in").click()
        await expect(page.get_by_role("heading", name="Overview")).to_be_visible()
        try:
            yield page
        finally:
            await context.close()
        assert [words for words in said if "Failed to load resource" not in words] == []

    async def asked(self, ident: str) -> str:
        """Fire an alert about a call that wants an approval; return its run."""
        await self.world.fire("Call", id=ident)
        incident = await self.world.daemon.opened(rule="calls", id=ident)
        await self.world.daemon.asked(f"{incident['id']}-1")
        return f"{incident['id']}-1"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def desk(tmp_path_factory: pytest.TempPathFactory, redis: RedisServer) -> AsyncIterator[Desk]:
    """Start all, once."""
    window = {"far-away": {"from": "2099-01-01T00:00+00:00", "until": "2099-01-02T00:00+00:00", "reason": "backups"}}
    settings = {"freezes": window, "connections": {"cache": {"kind": "redis", "host": "127.0.0.1", "port": redis.port}}}
    async with open_world(tmp_path_factory.mktemp("pages"), rules=RULES, settings=settings) as world, open_browser() as browser:
        yield Desk(world, browser)


def link(desk: Desk, path: str) -> str:
    return f"{desk.world.daemon.url}{path}"


async def test_somebody_on_call_does_it_all_on_pages(desk: Desk) -> None:
    """An incident appears by itself, its plan is read and approved, and the page shows by itself that it succeeded."""
    async with desk.signed_in() as page:
        run = await desk.asked("first")
        await page.get_by_role("link", name="call it").first.click()  # it came without a reload
        await expect(page.get_by_role("heading", name="Approve this plan?")).to_be_visible()
        await expect(page.get_by_text(f"POST {desk.world.target.url}/jobs/first").first).to_be_visible()
        assert desk.world.calls("first") == 0
        await page.get_by_label("Comment").fill("looks right")
        await page.get_by_role("button", name="Approve").click()
        await expect(page.get_by_text("Your approval is recorded.")).to_be_visible()
        await expect(page.locator("h1 .succeeded")).to_be_visible()
        assert desk.world.calls("first") == 1
        await expect(page.get_by_text("looks right").first).to_be_visible()
    approval = (await desk.world.daemon.get(f"approvals/{(await desk.world.daemon.run(run))['approval']}"))["approval"]
    assert [(vote["who"], vote["comment"]) for vote in approval["votes"]] == [("approver", "looks right")]


async def test_freezing_thawing_stopping_resuming(desk: Desk) -> None:
    """What is frozen or stopped stands on top of every page at once, holds runs back, and is lifted there."""
    async with desk.signed_in() as page, desk.signed_in("viewer") as other:
        await page.goto(link(desk, "/ui/freezes"))
        await page.get_by_label("Why?", exact=True).fill("we move")
        await page.get_by_role("button", name="Freeze").click()
        await expect(page.get_by_text("You froze everything.")).to_be_visible()
        await expect(other.get_by_role("region", name="Freeze: everything")).to_contain_text("we move")
        await page.get_by_text("Thaw").first.click()
        await page.get_by_role("button", name="Thaw it").click()
        await expect(page.get_by_text("Nothing is frozen.")).to_be_visible()
        await expect(other.get_by_role("region", name="Freeze: everything")).to_have_count(0)
        await page.get_by_text("Stop everything").first.click()
        await page.get_by_label("Why stop?").fill("something is odd")
        await page.get_by_role("button", name="Stop everything now").click()
        await expect(other.get_by_role("region", name="Kill switch")).to_contain_text("something is odd")
        assert [pause["scope"] for pause in (await desk.world.daemon.get("status"))["pauses"]] == ["global"]
        await page.get_by_text("Resume", exact=True).click()
        await page.get_by_role("button", name="Let everything act again").click()
        await expect(other.get_by_role("region", name="Kill switch")).to_have_count(0)
    assert (await desk.world.daemon.get("status"))["pauses"] == []


async def test_all_of_it_works_without_scripts(desk: Desk) -> None:
    """With JavaScript switched off somebody signs in, approves, denies, freezes, thaws, stops and resumes."""
    approved, denied = await desk.asked("plain"), await desk.asked("denied")
    async with desk.signed_in(java_script_enabled=False) as page:
        await page.goto(link(desk, f"/ui/runs/{approved}"))
        await page.get_by_role("button", name="Approve").click()
        await expect(page.get_by_text("Your approval is recorded.")).to_be_visible()
        await page.goto(link(desk, f"/ui/runs/{denied}"))
        await page.get_by_role("button", name="Deny").click()
        await expect(page.get_by_text("You denied it: this plan was not carried out.")).to_be_visible()
        await page.goto(link(desk, "/ui/freezes"))
        await page.get_by_label("What", exact=True).select_option("connection:target")
        await page.get_by_label("Why?", exact=True).fill("we move")
        await page.get_by_role("button", name="Freeze").click()
        await page.get_by_text("Thaw").first.click()
        await page.get_by_role("button", name="Thaw it").click()
        await expect(page.get_by_text("Nothing is frozen.")).to_be_visible()
        await page.get_by_text("Stop everything").first.click()
        await page.get_by_label("Why stop?").fill("odd")
        await page.get_by_role("button", name="Stop everything now").click()
        await page.get_by_text("Resume", exact=True).click()
        await page.get_by_role("button", name="Let everything act again").click()
        await expect(page.get_by_role("region", name="Kill switch")).to_have_count(0)
    await desk.world.daemon.reaches(approved, "succeeded")
    await desk.world.daemon.reaches(denied, "denied")
    assert (desk.world.calls("plain"), desk.world.calls("denied")) == (1, 0)


async def test_what_somebody_writes_is_not_exchanged_under_his_hands(desk: Desk) -> None:
    """A page that changes while a comment is written keeps it and says that there is something new."""
    run = await desk.asked("writing")
    async with desk.signed_in() as page:
        await page.goto(link(desk, f"/ui/runs/{run}"))
        await page.get_by_label("Comment").fill("half a sent")
        await desk.world.daemon.approve(run, who="admin")
        await desk.world.daemon.reaches(run, "succeeded")
        await expect(page.locator("h1 .succeeded")).to_be_visible()
        await expect(page.get_by_label("Comment")).to_have_value("half a sent")
        await expect(page.get_by_text("Below is still the plan you were reading")).to_be_visible()
        await page.get_by_role("button", name="Approve").click()
        await expect(page.get_by_role("alert")).to_contain_text("is approved already")
    assert desk.world.calls("writing") == 1


async def test_what_a_run_did_is_taken_back(desk: Desk, redis: RedisServer) -> None:
    """What undoing would do is shown first and changes nothing; asked for, it is done by a run of its own, on whose page one ends up."""
    redis.call("CONFIG", "SET", "maxmemory-policy", "noeviction")
    (incident,) = (await desk.world.fire("Memory", id="undone"))["incidents"]
    await desk.world.daemon.reaches(f"{incident}-1", "succeeded")
    async with desk.signed_in() as page:
        await page.goto(link(desk, f"/ui/runs/{incident}-1"))
        await page.get_by_role("link", name="Show what undoing would do").click()
        await expect(page.get_by_text("noeviction").first).to_be_visible()
        assert redis.call("CONFIG", "GET", "maxmemory-policy")[1] == b"allkeys-lru"
        await page.get_by_label("Why?").fill("queues were evicted")
        await page.get_by_role("button", name="Undo it").click()
        await expect(page.get_by_role("heading", name=f"Run {incident}-2")).to_be_visible()
        await desk.world.daemon.reaches(f"{incident}-2", "undone")
        await expect(page.locator("h1 .undone")).to_be_visible()
        assert redis.call("CONFIG", "GET", "maxmemory-policy")[1] == b"noeviction"
        await page.goto(link(desk, f"/ui/runs/{incident}-1"))
        await expect(page.get_by_text("is undone already")).to_be_visible()


async def test_a_link_of_another_site_needs_no_second_sign_in(desk: Desk) -> None:
    """Who follows a link in a chat's page comes to the incident, though browsers keep the strict cookie from such a request."""
    await desk.world.fire("Look", id="linked")
    incident = await desk.world.daemon.opened(rule="looks", id="linked")
    address = f"http://localhost:{desk.world.daemon.port}/ui/incidents/{incident['id']}"
    desk.world.target.replies["/chat"] = Reply(200, f'<a href="{address}">the incident</a>'.encode(), headers={"Content-Type": "text/html"})
    async with desk.signed_in(host="localhost") as page:
        await page.goto(f"{desk.world.target.url}/chat")
        await page.get_by_role("link").click()
        await expect(page.get_by_role("heading", name=incident["id"])).to_be_visible()


@pytest.mark.parametrize(("scheme", "rules"), [("light", ()), ("dark", ("color-contrast",))], ids=["light", "dark"])
async def test_axe_finds_nothing_and_a_phone_shows_it_all(desk: Desk, scheme: str, rules: tuple[str, ...]) -> None:
    """No page keeps anybody out, with banners and open forms, in either scheme; on a phone nothing is wider than the screen.

    The schemes differ by their colours only, so that the second time only these are looked at.
    """
    run = await desk.asked(f"axe-{scheme}")
    incident = run.removesuffix("-1")
    paths = [
        *("/ui/", "/ui/incidents?state=all", f"/ui/incidents/{incident}", f"/ui/incidents/{incident}/rehearsal", "/ui/runs"),
        *(f"/ui/runs/{run}", "/ui/freezes", "/ui/rules", "/ui/rules/calls", "/ui/catalogue", "/ui/audit/verify", "/ui/none"),
    ]
    async with desk.signed_in("admin", color_scheme=scheme) as page:
        for path in paths:
            await _sound(page, link(desk, path), *rules)
        await desk.world.daemon.call("POST", "/api/v1/pause", {"reason": "axe looks at the banner"})
        try:
            await _sound(page, link(desk, "/ui/"), *rules)
            await expect(page.get_by_text("axe looks at the banner")).not_to_have_count(0)
        finally:
            await desk.world.daemon.call("POST", "/api/v1/resume", {})
        # What moves as the banner goes takes no press for a moment: a press that begins before that is lost.
        await expect(page.get_by_text("axe looks at the banner")).to_have_count(0)
        await page.get_by_role("button", name="Sign out").click()
        await expect(page.get_by_text("You are signed out.")).to_be_visible()
        assert await faults_of(page) == []


async def _sound(page: Page, address: str, *rules: str) -> None:
    """Look at a page with its boxes open (of many alike, the first ones), at both widths."""
    await page.set_viewport_size(DESKTOP)
    await page.goto(address)
    await page.evaluate("for (const one of [...document.querySelectorAll('main details')].slice(0, 5)) one.open = true")
    assert await faults_of(page, *rules) == [], address
    await page.set_viewport_size(PHONE)
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), address


async def test_the_keyboard_reaches_everything(desk: Desk) -> None:
    """The first tab leads past the navigation; the kill switch opens with a key."""
    async with desk.signed_in() as page:
        await page.keyboard.press("Tab")
        await expect(page.get_by_role("link", name="To the content")).to_be_focused()
        await page.locator("#kill summary").focus()
        await page.keyboard.press("Enter")
        await expect(page.get_by_label("Why stop?")).to_be_visible()
