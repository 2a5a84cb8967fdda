"""What is said after an act: the truth about what was done, by whom it was done only, and not for long."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from html import unescape

import pytest

from remediator.records import Pause
from remediator.store.protocol import Changes, Reads
from remediator.web.ui import said
from tests.servers.surface import NOW, RUN, Surface
from tests.web.ui.conftest import Enter, Person, Seen


def words(seen: Seen) -> str:
    """Return what a page says was done, without when."""
    found = re.search(r'<p class="note good" role="status">(.*?)<span', seen.text)
    return "" if found is None else unescape(found[1]).strip()


async def done(person: Person, page: str, path: str, **fields: str) -> str:
    """Send a form; return what is said then."""
    answer = await person.act(page, path, **fields)
    assert answer.status == 303, answer.problem
    return words(await person.look(answer.headers["Location"]))


async def test_stopping_one_rule_is_not_called_stopping_everything(surface: Surface, enter: Enter) -> None:
    """The words name what was stopped, and what was let go on."""
    person = await enter("approver")
    page = "/ui/rules/site-down"
    assert await done(person, page, "/ui/do/pause", scope="rule:site-down", reason="odd") == (
        "You stopped the rule site-down. Other rules went on."
    )
    assert (await done(person, page, "/ui/do/resume", scope="rule:site-down")).startswith("You lifted the stop of the rule site-down.")
    assert (await done(person, page, "/ui/do/pause", scope="global", reason="odd")).startswith("You threw the kill switch.")
    await surface.service.store.transact(Reads(), lambda _: Changes(pauses=[Pause("storm", "remediator", "41 incidents", NOW, since=NOW)]))
    assert (await done(person, "/ui/", "/ui/do/resume", scope="storm")).startswith("You ended the storm.")


async def test_a_second_press_says_whose_stop_stands(surface: Surface, enter: Enter) -> None:
    """Who throws a switch that somebody else has thrown hears that his own reason is not the one that is kept; so does who freezes."""
    first, second = await enter("responder"), await enter("approver")
    await done(first, "/ui/", "/ui/do/pause", scope="global", reason="it deletes things")
    said_ = await done(second, "/ui/", "/ui/do/pause", scope="global", reason="odd")
    assert said_ == "Nothing new: everything had been stopped already, by responder. That stop stands; your reason was not noted."
    assert (await surface.service.store.pauses())["global"].why == "it deletes things"
    await done(first, "/ui/freezes", "/ui/do/freeze", scope="rule:site-down", reason="we move", ends="person")
    said_ = await done(second, "/ui/freezes", "/ui/do/freeze", scope="rule:site-down", reason="a demo", ends="1h")
    assert said_ == "Nothing new: the rule site-down had been frozen already, for longer, by responder. That freeze stands."


@pytest.mark.parametrize("page", ["/ui/?said=", "/ui/sign-in?said="])
async def test_no_link_says_that_anything_was_done(enter: Enter, page: str) -> None:
    """Neither a word, nor what another session sealed, says anything: signed in or at the door."""
    one, other = await enter("approver"), await enter("admin")
    answer = await one.act("/ui/", "/ui/do/pause", scope="global", reason="odd")
    sealed = answer.headers["Location"].partition("said=")[2]
    assert "threw the kill switch" in (await one.look(f"/ui/?said={sealed}")).text
    for value in (sealed, "paused", "resumed", f"{sealed}0", "%ff", "a.b", ""):
        assert "threw the kill switch" not in (await other.look(page + value)).text
        assert words(await other.look(page + value)) == ""


async def test_a_link_of_another_site_says_to_nobody_that_he_is_signed_out(enter: Enter) -> None:
    """Only the way out of our own pages does."""
    person = await enter("viewer")
    assert "You are signed out." in (await person.look("/ui/sign-in?said=out")).text
    elsewhere = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert "You are signed out." not in (await person.look("/ui/sign-in?said=out", **elsewhere)).text


async def test_what_was_said_is_not_said_for_long(enter: Enter) -> None:
    """It carries when it became true, and an address that is kept says nothing after half a minute."""
    then = datetime.now(UTC)
    sealed = said.sealed("You threw it.", key="k", now=then)
    assert said.opened(sealed, key="k", now=then + timedelta(seconds=20)) == said.Said("You threw it.", then.replace(microsecond=0))
    assert said.opened(sealed, key="k", now=then + timedelta(seconds=31)) is None
    person = await enter("approver")
    answer = await person.act("/ui/", "/ui/do/pause", scope="global", reason="odd")
    assert re.search(r"You threw the kill switch\..*<time datetime=", (await person.look(answer.headers["Location"])).text)


async def test_denying_is_called_so(enter: Enter) -> None:
    """The words say what was not done: the plan that was asked about."""
    fields = {"plan_hash": "a" * 64, "decision": "deny"}
    said_ = await done(await enter("sre"), f"/ui/runs/{RUN}", f"/ui/approvals/{RUN}-A1/decide", **fields)
    assert said_ == "You denied it: this plan was not carried out."
