"""A page's way through the levels of its policy on a real store: acknowledgements, resolutions, crashes, storms, words to people."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from remediator.escalation.levels import Hours, Level, Policy, Receiver, Unless
from remediator.escalation.notice import notice
from remediator.escalation.outbox import MOST_ATTEMPTS, Outbox
from remediator.escalation.told import QUIET
from remediator.events import Kind
from remediator.model import Actor, Authority, RunState
from remediator.records import STORM, Message, MessageKind, Pause
from remediator.rules.model import ApprovalSpec
from remediator.runs import undo
from remediator.store.protocol import Changes, Reads, Snapshot
from remediator.storms import breaker
from tests.builders import NOW, alert, rule
from tests.engine.paging import FIRST, MINUTE, Paging, flaps, level, opened, three
from tests.scripted import BROKEN, ScriptedRegistry, fails_at
from tests.stories import FIRST_RUN, TWO, act, decide, playbook

Begin = Callable[..., Awaitable[Paging]]


@pytest.fixture
async def begin(tmp_path: Path) -> AsyncIterator[Begin]:
    """Start a harness with one rule and a policy; it is closed at the end."""
    async with opened(Paging, tmp_path / "state.sqlite") as start:
        yield start


async def test_unacknowledged_page_climbs_all_levels(begin: Begin) -> None:
    """Level 2 hears of it after ten minutes, level 3 after thirty, nobody twice."""
    paging = await begin()
    await paging.fires()
    assert paging.told() == ["level-1"]
    await paging.passes(9 * MINUTE)
    assert paging.told() == ["level-1"]
    await paging.passes(MINUTE)
    assert paging.told() == ["level-1", "level-2"]
    await paging.passes(60 * MINUTE)
    assert paging.told() == ["level-1", "level-2", "level-3"]
    assert "Level 2: open for 10m, nobody has acknowledged it" in paging.line.sent[2][2]


async def test_acknowledgement_stops_further_levels_and_is_told(begin: Begin) -> None:
    """Who was paged hears who has it; the others hear nothing."""
    paging = await begin()
    await paging.fires()
    await paging.passes(5 * MINUTE)
    await paging.acknowledge()
    assert paging.told("acknowledged") == ["level-1"]
    assert "anna has taken it over" in paging.line.sent[-1][2]
    await paging.passes(55 * MINUTE)
    assert paging.told() == ["level-1"]
    (postponed,) = paging.said(Kind.MESSAGE_POSTPONED)
    assert postponed["reason"] == "acknowledged"


async def test_acknowledgement_is_told_to_whose_page_s_answer_was_lost(begin: Begin) -> None:
    """The page is not tried again, so that their pager would ring on; who was never tried hears nothing."""
    paging = await begin()
    await paging.fires()
    paging.line.dead.add("level-2")
    await paging.passes(10 * MINUTE)
    paging.line.dead.clear()
    await paging.acknowledge()
    assert paging.told("acknowledged") == ["level-1", "level-2"]
    await paging.passes(30 * MINUTE)
    assert paging.told() == ["level-1"]


async def test_acknowledgement_that_leads_nowhere_runs_out(begin: Begin) -> None:
    """An hour after it the next level is told after all, then the third, at its distance."""
    paging = await begin()
    await paging.fires()
    await paging.acknowledge()
    await paging.passes(60 * MINUTE)
    assert paging.told() == ["level-1", "level-2"]
    await paging.passes(20 * MINUTE)
    assert paging.told() == ["level-1", "level-2", "level-3"]


async def test_resolution_cancels_what_is_pending_and_is_told_to_those_who_were(begin: Begin) -> None:
    """Levels 1 and 2 had the page, so they hear of the end; level 3 never hears of anything."""
    paging = await begin(policy=three(update_every=20 * MINUTE))
    await paging.fires()
    await paging.passes(12 * MINUTE)
    await paging.ends()
    assert paging.told("resolved") == ["level-1", "level-2"]
    text = paging.line.sent[-1][2]
    assert "RESOLVED" in text
    assert "It lasted 12m. It went away without us: nothing was changed." in text
    await paging.passes(120 * MINUTE)
    assert paging.told() == ["level-1", "level-2"]
    assert (await paging.store.counts())["messages.undelivered"] == 0


async def test_nobody_hears_of_the_end_of_what_nobody_was_told(begin: Begin) -> None:
    """A held page that never went out is followed by no word at all, and by no row."""
    paging = await begin(playbook())
    await paging.fires()
    paging.world.firing = False
    await paging.ends()
    await paging.passes(60 * MINUTE)
    assert paging.line.sent == []
    assert [message.kind for message in await paging.store.messages(FIRST)] == [MessageKind.PAGE]


async def test_level_2_is_told_although_level_1_can_not_be_reached(begin: Begin) -> None:
    """The next level's row does not wait for the delivery of the first; and the first is tried on."""
    paging = await begin()
    paging.line.dead.add("level-1")
    await paging.fires()
    await paging.passes(10 * MINUTE)
    assert paging.told() == ["level-2"]
    paging.line.dead.clear()
    await paging.passes(6 * MINUTE)
    assert paging.told() == ["level-2", "level-1"]


async def test_next_level_survives_a_death_right_after_the_page(begin: Begin) -> None:
    """Dead between the receiver's answer and its note, the daemon sends the page again, and the next level once."""
    paging = await begin()
    paging.line.dies_after = True
    await paging.fires()
    assert paging.told() == ["level-1"]
    await paging.passes(10 * MINUTE)
    assert paging.told() == ["level-1", "level-1", "level-2"]


async def test_updates_come_while_it_is_open_with_what_is_awaited(begin: Begin) -> None:
    """Level 1 hears every twenty minutes what was done and what is waited for, also once somebody has it, until it is resolved."""
    paging = await begin(policy=three(update_every=20 * MINUTE))
    await paging.fires()
    await paging.acknowledge()
    before = paging.told("update")
    await paging.passes(41 * MINUTE)
    assert paging.told("update")[len(before) :] == ["level-1", "level-1"]
    text = paging.line.sent[-1][2]
    assert "Open for 40m, taken over by anna, not resolved." in text
    assert "Nothing has been done yet." in text
    assert f"It waits for a person: run {FIRST}-1 is escalated, and nothing is at work." in text
    await paging.ends()
    await paging.passes(60 * MINUTE)
    assert len(paging.told("update")) == len(before) + 2


async def test_resolved_message_says_whether_the_remedy_helped(begin: Begin) -> None:
    """The page went out at its deadline; the run ends well afterwards, and the last word tells what was done."""
    paging = await begin(playbook())
    await paging.send_and_work()
    paging.now += 4 * MINUTE
    await paging.deliver()
    assert paging.told() == ["level-1"]
    paging.world.firing = False
    await paging.ends()
    await paging.passes(4 * MINUTE)
    assert await paging.state() is RunState.SUCCEEDED
    assert paging.told("resolved") == ["level-1"]
    text = paging.line.sent[-1][2]
    assert "'set a' helped." in text
    assert "set a: a is good" in text
    assert paging.line.values[-1]["actions_taken"] == ["set a: a is good"]


async def test_relapse_pages_anew_and_asks_for_a_new_acknowledgement(begin: Begin) -> None:
    """What somebody acknowledged, and was told to be over, is not acknowledged when it comes back: the relapse climbs from level 1."""
    paging = await begin()
    await paging.fires()
    await paging.acknowledge()
    await paging.ends()
    paging.line.sent.clear()
    await paging.passes(6 * MINUTE)
    await paging.fires()
    await paging.passes(9 * MINUTE)
    assert paging.told() == ["level-1"]
    await paging.passes(MINUTE)
    assert paging.told() == ["level-1", "level-2"]
    await paging.ends()
    await paging.passes(QUIET)
    assert paging.told("resolved") == ["level-1", "level-2"]


@pytest.mark.parametrize("mode", [Authority.APPROVE, Authority.AUTO])
async def test_what_comes_and_goes_every_three_minutes_climbs_by_the_clock_of_its_first_page(begin: Begin, mode: Authority) -> None:
    """Its levels are told by their delays from the first page on, each as soon as it fires then; nobody hears the same at each flap."""
    paging = await begin(playbook(mode=mode), policy=three(update_every=20 * MINUTE))
    if mode is Authority.AUTO:
        paging.world.fault = fails_at("before", BROKEN)
    await paging.fires()
    assert paging.told() == ["level-1"]
    began = paging.now
    await flaps(paging, 3)
    assert paging.told() == ["level-1", "level-1"]  # told that it was over, its pager must ring again
    assert paging.told("resolved") == ["level-1"]
    await paging.passes(began + 10 * MINUTE - paging.now)
    assert paging.told() == ["level-1", "level-1", "level-2"]
    (_, again, _) = [text for kind, _, text in paging.line.sent if kind == "page"]
    assert "It is not over: it came back once, the first time it fired was 3m ago." in again
    await flaps(paging, 7)
    assert paging.told() == ["level-1", "level-1", "level-2", "level-3"]
    assert paging.told("resolved") == ["level-1"]
    updates = [text for kind, who, text in paging.line.sent if (kind, who) == ("update", "level-1") and "Open for" in text]
    assert len(updates) == 1
    assert "It came back" in updates[0]
    await paging.ends()
    await paging.passes(QUIET)
    assert paging.told("resolved") == ["level-1", "level-1", "level-2", "level-3"]


async def test_acknowledgement_holds_while_it_comes_and_goes(begin: Begin) -> None:
    """Whoever has it is not asked again with each flap, as long as nobody was told that it is over; it runs out as any does."""
    paging = await begin()
    await paging.fires()
    await flaps(paging, 1)
    await paging.acknowledge()
    began = paging.now
    await flaps(paging, 10)
    assert paging.told() == ["level-1", "level-1"]
    assert (await paging.incident()).acknowledged_at == began
    await paging.passes(began + 61 * MINUTE - paging.now)
    assert paging.told() == ["level-1", "level-1", "level-2"]


async def test_relapse_after_an_end_that_lasted_is_paged_from_the_first_level_on(begin: Begin) -> None:
    """Whoever heard of the end a while ago has gone back to bed: the clock begins anew, and so does the hold of a remedy at work."""
    paging = await begin()
    await paging.fires()
    await paging.passes(9 * MINUTE)
    await paging.ends()
    await paging.passes(QUIET + MINUTE)
    await paging.fires()
    await paging.passes(9 * MINUTE)
    assert paging.told() == ["level-1", "level-1"]
    await paging.passes(MINUTE)
    assert paging.told() == ["level-1", "level-1", "level-2"]


async def test_level_that_was_not_reached_before_the_relapse_is_tried_on(begin: Begin) -> None:
    """Its page was dropped with the end; the relapse climbs on for the others, and tells whoever never heard of it."""
    paging = await begin()
    paging.line.dead.add("level-1")
    await paging.fires()
    await flaps(paging, 1)
    assert paging.told() == []
    paging.line.dead.clear()
    await paging.passes(6 * MINUTE)
    assert paging.told() == ["level-1"]
    await paging.passes(MINUTE)
    assert paging.told() == ["level-1", "level-2"]


async def test_relapse_that_nobody_was_paged_about_before_is_held_for_its_remedy(begin: Begin) -> None:
    """Its first firing was over before its page was due: nothing climbs, and the next page waits for the remedy as any."""
    paging = await begin(playbook())
    await paging.fires()
    await paging.passes(2 * MINUTE)
    await paging.ends()
    await paging.passes(MINUTE)
    await paging.send(alert(starts_at=paging.now))
    (page,) = await paging.waiting(await paging.incident())
    assert (page.key, page.due_at) == (f"{FIRST}/page/1", paging.now + 3 * MINUTE)


async def test_late_word_of_an_end_never_closes_what_fires_again(begin: Begin) -> None:
    """Whether the word that all is well came is not known; when it fires again that word is dropped, and a later one goes to all."""
    paging = await begin()
    await paging.fires()
    paging.line.dead.add("level-1")
    await paging.ends()
    await paging.passes(6 * MINUTE)
    await paging.fires()
    paging.line.dead.clear()
    await paging.passes(6 * MINUTE)
    assert paging.told("resolved") == []
    assert paging.told() == ["level-1", "level-1", "level-2"]  # the first one may have been told that it was over
    await paging.ends()
    await paging.passes(QUIET)
    assert paging.told("resolved") == ["level-1", "level-2"]


async def test_undecided_approval_climbs_with_its_page(begin: Begin) -> None:
    """Level 2 gets the question too, with the words to answer it."""
    paging = await begin(playbook(mode=Authority.APPROVE))
    await paging.fires()
    assert (paging.told(), paging.told("approval")) == (["level-1"], ["level-1"])
    await paging.passes(10 * MINUTE)
    assert paging.told() == ["level-1", "level-2"]
    assert f"Approve: remediator approve {FIRST}-1-A" in paging.line.sent[-1][2]


@pytest.mark.parametrize("mode", [Authority.APPROVE, Authority.OBSERVE])
async def test_s21_rule_that_may_not_act_by_itself_pages_at_once(begin: Begin, mode: Authority) -> None:
    """Nothing is going to help by itself, so nothing holds the page back."""
    paging = await begin(playbook(mode=mode))
    await paging.fires()
    assert paging.told() == ["level-1"]


async def test_s21_hold_is_counted_from_the_first_firing_receipt(begin: Begin) -> None:
    """Further copies of the alert don't prolong it, whichever replica sends the page."""
    paging = await begin(playbook())
    await paging.send_and_work()
    for _ in range(2):
        paging.now += MINUTE
        await paging.send_and_work()
        await paging.deliver()
    assert paging.told() == []
    paging.outbox = paging.new_outbox()
    paging.now += MINUTE
    await paging.deliver()
    assert paging.told() == ["level-1"]


async def test_remedy_that_helped_keeps_the_next_level_from_being_paged_meanwhile(begin: Begin) -> None:
    """Alertmanager says minutes later that it is over: until then nobody further is woken."""
    paging = await begin(playbook(act(), severity="sev1"), policy=Policy("production", (level(1), level(2, 1)), urgent="sev1"))
    await paging.send_and_work()
    paging.now += 3 * MINUTE
    await paging.deliver()
    paging.world.firing = False
    await paging.passes(4 * MINUTE)
    assert await paging.state() is RunState.SUCCEEDED
    assert paging.told() == ["level-1"]
    await paging.passes(5 * MINUTE)
    assert paging.told() == ["level-1", "level-2"]


@pytest.mark.parametrize(("severity", "told"), [("sev2", []), ("sev1", ["level-1"])])
async def test_hours_delay_a_page_but_not_of_the_most_severe(begin: Begin, severity: str, told: list[str]) -> None:
    """On a Saturday a sev2 of a policy with office hours waits for Monday, and its timeline says so; a sev1 does not."""
    office = Hours("office", frozenset(range(5)), time(9), time(17), UTC)
    paging = await begin(rule(remedies=(), severity=severity), policy=Policy("p", (level(1, hours=office),), urgent="sev1"))
    await paging.fires()
    assert paging.told() == told
    reasons = {data["reason"] for data in paging.said(Kind.MESSAGE_POSTPONED)}
    assert reasons == (set() if told else {"outside the hours 'office'"})
    paging.now = datetime(2026, 11, 23, 9, tzinfo=UTC)
    await paging.deliver()
    assert paging.told() == ["level-1"]


async def test_storm_puts_levels_and_updates_off(begin: Begin) -> None:
    """While a storm lasts its digests tell of everything; what had been paged before climbs on when it is over."""
    paging = await begin(policy=three(update_every=5 * MINUTE))
    await paging.fires()
    updates = len(paging.told("update"))
    since = paging.now + MINUTE
    storm = Pause(STORM, "remediator", "60 incidents", since, since=since)
    await paging.store.transact(Reads(), lambda _seen: Changes(pauses=[storm]))
    await paging.passes(20 * MINUTE)
    assert (paging.told(), len(paging.told("update"))) == (["level-1"], updates)
    await paging.store.transact(Reads(), lambda _seen: Changes(lift=[STORM]))
    await paging.passes(2 * MINUTE)
    assert paging.told() == ["level-1", "level-2"]


async def test_storm_keeps_no_end_from_those_who_were_paged(begin: Begin) -> None:
    """An incident that was paged right before the storm was noticed belongs to it; that it is over is told all the same."""
    paging = await begin()
    await paging.fires()
    storm = Pause(STORM, "remediator", "60 incidents", paging.now, since=paging.now - MINUTE)
    await paging.store.transact(Reads(), lambda _seen: Changes(pauses=[storm]))
    await paging.acknowledge()
    await paging.ends()
    assert (paging.told("acknowledged"), paging.told("resolved")) == (["level-1"], ["level-1"])


async def test_digests_climb_with_the_age_of_the_storm(begin: Begin) -> None:
    """The first digest goes to level 1; one that is made ten minutes later to level 2 as well."""
    paging = await begin()
    began = Pause(STORM, "remediator", "60 incidents", paging.now, since=paging.now)
    first = breaker.first_digest(began, "production", at=paging.now, dry_run=False)
    await paging.store.transact(
        Reads(), lambda _seen: Changes(pauses=[began], messages=[replace(first, body={**first.body, "severity": "sev2"})])
    )
    await paging.passes(16 * MINUTE)
    assert paging.told("digest") == ["level-1", "level-1", "level-2"]


async def test_what_a_storm_withheld_is_sent_even_when_nobody_lets_it_out(begin: Begin) -> None:
    """Its row looks up by itself: should the storm's end be noticed by nobody, it goes out all the same within the hour, and climbs."""
    paging = await begin()
    began = Pause(STORM, "remediator", "60 incidents", paging.now, since=paging.now)
    await paging.store.transact(Reads(), lambda _seen: Changes(pauses=[began]))
    await paging.fires()
    await paging.passes(30 * MINUTE)
    assert paging.told() == []
    assert len(paging.said(Kind.MESSAGE_FOLDED)) == 1
    await paging.store.transact(Reads(), lambda _seen: Changes(lift=[STORM]))
    await paging.passes(45 * MINUTE)
    assert paging.told() == ["level-1", "level-2"]


async def test_what_is_over_before_its_storm_is_told_to_nobody(begin: Begin) -> None:
    """Its page is withheld, not sent, and then not wanted."""
    paging = await begin()
    began = Pause(STORM, "remediator", "60 incidents", paging.now, since=paging.now)
    await paging.store.transact(Reads(), lambda _seen: Changes(pauses=[began]))
    await paging.fires()
    await paging.ends()
    await paging.store.transact(Reads(), lambda _seen: Changes(lift=[STORM]))
    await paging.passes(90 * MINUTE)
    assert paging.line.sent == []
    assert await paging.store.next_message() is None


@pytest.mark.parametrize(("ends", "told"), [(True, []), (False, ["level-1", "level-2"])])
async def test_s21_alert_that_joins_after_the_success_is_paged_unless_it_ends(begin: Begin, ends: bool, told: list[str]) -> None:
    """Its page climbs like any; the incident's own was dropped with the success."""
    paging = await begin(playbook(act(), severity="sev1", target="site"))
    await paging.send(alert(instance="1"))
    await paging.work()
    paging.world.firing = False
    await paging.passes(2 * MINUTE)
    assert await paging.state() is RunState.SUCCEEDED
    await paging.send(alert(instance="2"))
    await paging.passes(MINUTE)
    await paging.send(*(alert(instance=one, firing=False, ends_at=paging.now) for one in (("1", "2") if ends else ("1",))))
    await paging.passes(15 * MINUTE)
    assert paging.told() == told


async def test_s21_alert_that_joins_what_people_were_paged_about_pages_nobody_again(begin: Begin) -> None:
    """The page that is out climbs as long as the incident is open, whichever of its alerts keeps it so."""
    paging = await begin(playbook(act(), severity="sev1", target="site", mode=Authority.APPROVE))
    await paging.send(alert(instance="1"))
    await paging.work()
    await paging.deliver()
    await decide(paging)
    paging.world.firing = False
    await paging.passes(2 * MINUTE)
    assert await paging.state() is RunState.SUCCEEDED
    await paging.send(alert(instance="2"))
    await paging.passes(7 * MINUTE)
    assert paging.told() == ["level-1"]
    await paging.passes(2 * MINUTE)
    assert paging.told() == ["level-1", "level-2"]


async def test_remedy_that_a_storm_held_back_is_paged_when_it_fails(begin: Begin) -> None:
    """Only digests told of its incident, and pagers take pages only: from the failure on it climbs, until somebody has it."""
    paging = await begin(playbook(act(), severity="sev1"))
    began = Pause(STORM, "remediator", "60 incidents", paging.now, since=paging.now)
    await paging.store.transact(Reads(), lambda _seen: Changes(pauses=[began]))
    await paging.fires()
    assert await paging.state() is RunState.WAITING
    paging.now += 5 * MINUTE
    paging.world.fault = fails_at("before", BROKEN)
    await paging.store.transact(
        Reads(runs=[FIRST_RUN]), lambda seen: Changes(lift=[STORM], runs=[breaker.release(seen.runs[FIRST_RUN], at=seen.now)])
    )
    await paging.passes(MINUTE)
    assert await paging.state() is RunState.FAILED
    assert (paging.told("update"), paging.told()) == (["level-1"], ["level-1"])
    await paging.passes(10 * MINUTE)
    assert paging.told() == ["level-1", "level-2"]
    await paging.ends()
    assert paging.told("resolved") == ["level-1", "level-2"]


async def test_end_reaches_a_receiver_whose_message_a_reload_changed(begin: Begin) -> None:
    """It gets other words since, through the same connection: its alert must not stay open for ever."""
    paging = await begin()
    await paging.fires()
    changed = Receiver("notify.slack", {"connection": "level-1", "template": "sre"})
    paging.policy = Policy("production", (Level(1, (changed,)), level(2, 10)), urgent="sev1")
    await paging.ends()
    assert paging.told("resolved") == ["level-1"]


def mail(number: int, **params: str) -> Receiver:
    """Make a receiver of the connection that all share, for people of its own."""
    return Receiver("notify.slack", {"connection": "mail", "to": f"people-{number}", **params})


@pytest.mark.parametrize("template", [{}, {"template": "sre"}])
async def test_end_reaches_exactly_those_who_were_told_of_several_with_one_name(begin: Begin, template: dict[str, str]) -> None:
    """A reload words messages anew: whom they go to tells receivers of one connection apart, and who was never told hears nothing."""
    first, second = Level(1, (mail(1), mail(2))), Level(2, (mail(3),), timedelta(minutes=10))
    paging = await begin(policy=Policy("production", (first, second), urgent="sev1"))
    await paging.fires()
    changed = Level(1, (mail(2, **template), mail(1, **template)))
    paging.policy = Policy("production", (changed, Level(2, (mail(3, **template),), timedelta(minutes=10))), urgent="sev1")
    sent = addressed(paging)
    await paging.ends()
    assert sorted(sent) == ["people-1", "people-2"]


async def test_end_reaches_nobody_who_shares_a_connection_with_those_who_were_told(begin: Begin) -> None:
    """A reload moves the team to another channel: the customers, who get mail as it did, are not taken for it."""
    customers = Level(2, (mail(2),), 30 * MINUTE)
    paging = await begin(policy=Policy("production", (Level(1, (mail(1),)), customers), urgent="sev1"))
    await paging.fires()
    sent = addressed(paging)
    paging.policy = Policy("production", (level(1), customers), urgent="sev1")
    await paging.ends()
    assert paging.told() == ["mail"]
    assert sent == []


def addressed(paging: Paging) -> list[str]:
    """Have whom messages go to by mail noted from now on, in the list that is returned."""
    sent: list[str] = []
    plain = paging.line.notify

    async def notify(name: str, params: Mapping[str, Any], **rest: Any) -> str | None:
        sent.append(str(params.get("to", params["connection"])))
        return await plain(name, params, **rest)

    paging.line.notify = notify  # type: ignore[method-assign,assignment]
    return sent


async def test_what_was_told_in_earnest_ends_in_earnest(begin: Begin) -> None:
    """Somebody disarms the daemon during the incident: customers, who never hear of a dry run, must hear that it is over."""
    paging = await begin()
    await paging.fires()
    paging.limits = replace(paging.limits, dry_run=True)
    await paging.ends()
    assert (paging.told("resolved"), paging.line.values[-1]["dry_run"]) == (["level-1"], False)


async def test_what_is_no_page_is_given_up_after_a_day(begin: Begin) -> None:
    """A chat that is gone for good must not get what is long over, over and over; pages are tried on, and the record says so."""
    paging = await begin()
    paging.line.dead.add("level-1")
    await paging.fires()
    rows = [one for one in await paging.store.due_messages(limit=9) if one.kind is MessageKind.PAGE]
    assert rows == []
    paging.now += timedelta(hours=1)
    for message in await paging.store.due_messages(limit=9):
        await paging.store.update_message(replace(message, attempts=MOST_ATTEMPTS - 1))
    await paging.deliver()
    (kept,) = [one for one in await paging.waiting(await paging.incident()) if one.attempts]
    assert (kept.key, kept.attempts) == (f"{FIRST}/page/0", MOST_ATTEMPTS)
    given_up = [one for one in await paging.store.messages(FIRST_RUN) if one.cancelled]
    assert [one.kind for one in given_up] == [MessageKind.UPDATE]
    last = (await paging.store.events(FIRST))[-1]
    assert (last.kind, last.data["key"]) == (Kind.MESSAGE_FAILED, given_up[0].key)
    assert str(last.data["error"]).startswith(f"given up after {MOST_ATTEMPTS} attempts")


async def test_receivers_that_were_away_for_hours_hear_everything_once(begin: Begin) -> None:
    """One update and one page of each level, and the last level once more: not all that was to be said meanwhile, all at once."""
    paging = await begin(policy=three(update_every=20 * MINUTE, repeat_every=60 * MINUTE))
    paging.line.dead |= {"level-1", "level-2", "level-3"}
    await paging.fires()
    await paging.passes(6 * 60 * MINUTE)
    paging.line.dead.clear()
    await paging.passes(10 * MINUTE)
    assert sorted(paging.told()) == ["level-1", "level-2", "level-3", "level-3"]
    regular = [text for kind, _, text in paging.line.sent if kind == "update" and "Open for" in text]
    assert len(regular) == 1
    assert sum("Told again" in text for kind, _, text in paging.line.sent if kind == "page") == 1


async def test_what_a_run_came_to_is_told_with_the_end_of_its_incident_when_that_is_over(begin: Begin) -> None:
    """Of a chat that was away meanwhile: *it is escalated*, heard after *resolved*, must not sound like a relapse."""
    paging = await begin()
    paging.line.dead |= {"level-1", "level-2", "level-3"}
    await paging.fires()
    await paging.passes(60 * MINUTE)
    await paging.ends()
    over = paging.now
    paging.line.dead.clear()
    await paging.passes(30 * MINUTE)
    assert "level-1" in paging.told("resolved")
    (text,) = [text for kind, _, text in paging.line.sent if kind == "update"]
    assert "is escalated" in text
    assert f"The incident is over, since {over.isoformat()}." in text


async def test_page_of_a_level_is_tried_however_often_another_is_told_again(begin: Begin) -> None:
    """A reload that makes another level the last one takes nothing from those who were not reached."""
    paging = await begin(policy=three(repeat_every=60 * MINUTE))
    await paging.fires()
    await paging.passes(60 * MINUTE)
    paging.line.dead.add("level-3")
    await paging.passes(100 * MINUTE)
    paging.policy = Policy("p", (level(1), level(2, 40), level(3, 30)), urgent="sev1", repeat_every=60 * MINUTE)
    await paging.passes(60 * MINUTE)
    paging.line.dead.clear()
    await paging.passes(10 * MINUTE)
    assert paging.told() == ["level-1", "level-2", "level-3", "level-2", "level-3"]


async def test_page_that_reached_nobody_counts_until_its_incident_is_over(begin: Begin) -> None:
    """The heartbeat rests on it: a daemon whose last page is not needed any more must not be called dead for it."""
    paging = await begin()
    paging.line.dead.add("level-1")
    await paging.fires()
    await paging.passes(3 * MINUTE)
    assert paging.outbox.unreached(2 * MINUTE) == f"{FIRST}/page/0"
    await paging.ends()
    assert paging.outbox.unreached(2 * MINUTE) is None


async def test_clock_behind_the_store_s_makes_no_receiver_be_asked_without_a_pause(begin: Begin) -> None:
    """What failed is due again some time after it was due, whatever this machine's clock says."""
    paging = await begin()
    paging.line.dead.add("level-1")
    behind = lambda: paging.now - timedelta(minutes=10)  # noqa: E731 - a clock
    paging.outbox = Outbox(paging.store, paging.line, lambda _name: paging.policy, public_url=lambda: None, clock=behind)  # type: ignore[arg-type]
    await paging.fires()
    assert await paging.store.due_messages(limit=9) == []


async def test_notice_about_the_daemon_goes_to_those_who_hear_of_the_most_severe(begin: Begin) -> None:
    """It belongs to no incident and waits for no hours; the least severe's mailbox is not the place for it."""
    mailbox, oncall = level(1, severities=frozenset({"sev4"})), level(2, severities=frozenset({"sev1"}))
    paging = await begin(policy=Policy("p", (mailbox, oncall), urgent="sev1"))
    told = notice("watchdog/lost", "The watchdog is not heard", "Nothing acts by itself.", policy="p", due=paging.now, dry_run=False)
    began = Pause(STORM, "remediator", "60 incidents", paging.now, since=paging.now)
    digest = breaker.first_digest(began, "p", at=paging.now, dry_run=False)
    await paging.store.transact(Reads(), lambda _seen: Changes(pauses=[began], messages=[told, digest]))
    await paging.passes(MINUTE)
    assert (paging.told("update"), paging.told("digest")) == (["level-2"], ["level-2"])


async def test_level_that_only_a_resolution_stops_is_told_although_acknowledged(begin: Begin) -> None:
    """A manager who wants to know how long it lasts hears of it, whoever has it."""
    paging = await begin(policy=Policy("p", (level(1), level(2, 10), level(3, 30, unless=Unless.RESOLVED)), urgent="sev1"))
    await paging.fires()
    await paging.acknowledge()
    await paging.passes(120 * MINUTE)
    assert paging.told() == ["level-1", "level-3"]


async def test_reload_reaches_a_page_on_its_way(begin: Begin) -> None:
    """Levels are taken from the policy in force when they are due."""
    paging = await begin()
    await paging.fires()
    paging.policy = Policy("production", (level(1), level(2, 20)), urgent="sev1")
    await paging.passes(19 * MINUTE)
    assert paging.told() == ["level-1"]
    await paging.passes(MINUTE)
    assert paging.told() == ["level-1", "level-2"]


async def test_page_of_a_severity_that_a_reload_took_away_climbs_like_the_most_severe(begin: Begin) -> None:
    """Open incidents keep the name that severities had: they must not climb to nobody, nor wait for hours, since others are in force."""
    office = Hours("office", frozenset(range(5)), time(9), time(17), UTC)

    def named(name: str) -> tuple[Level, Level]:
        return level(1, after_by={name: 0 * MINUTE}), level(2, after_by={name: 10 * MINUTE}, hours=office)

    paging = await begin(policy=Policy("p", named("sev2"), urgent="sev2", severities=frozenset({"sev2"})))
    await paging.fires()
    paging.policy = Policy("p", named("high"), urgent="high", update_every=20 * MINUTE, severities=frozenset({"high"}))
    await paging.passes(9 * MINUTE)
    assert paging.told() == ["level-1"]
    await paging.passes(MINUTE)
    assert paging.told() == ["level-1", "level-2"]
    assert paging.said(Kind.MESSAGE_FAILED) == []


async def test_severity_that_a_policy_tells_nobody_of_is_loud(begin: Begin) -> None:
    """A page that nobody gets is never called delivered."""
    paging = await begin(policy=Policy("p", (level(1, severities=frozenset({"sev1"})),), urgent="sev1"))
    await paging.fires()
    assert any("names nobody for sev2" in str(data["error"]) for data in paging.said(Kind.MESSAGE_FAILED))
    assert (await paging.store.counts())["messages.undelivered"] > 0


async def test_failing_messages_are_counted_until_they_are_taken(begin: Begin) -> None:
    """The gauge that wakes whoever watches the daemon: it does not dip between two attempts, and ends with the delivery."""
    paging = await begin()
    counts: list[int] = []
    paging.outbox._on_failing = counts.append
    paging.line.dead.add("level-1")
    await paging.fires()
    paging.outbox._tell_failing()
    await paging.passes(5 * MINUTE)
    paging.outbox._tell_failing()
    paging.line.dead.clear()
    await paging.passes(7 * MINUTE)
    paging.outbox._tell_failing()
    assert counts == [2, 2, 0]


async def test_page_about_which_nothing_can_be_decided_is_sent(begin: Begin) -> None:
    """A row that can't be understood, or a bug, must not keep a page from people."""
    paging = await begin()
    await paging.fires()
    broken = Message(f"{FIRST}/page/0/7", MessageKind.PAGE, "default", FIRST, {"rule": "r", "climb": {"began": "?"}}, paging.now)
    await paging.store.transact(Reads(), lambda _seen: Changes(messages=[broken]))
    with capture_logs() as logs:
        await paging.deliver()
    assert paging.told() == ["level-1", "level-1"]
    assert [entry["key"] for entry in logs if entry["event"] == "page.undecided"] == [broken.key]


# --- an undo by hand ---------------------------------------------------------------------------------------------------------------


async def undo_asked_for(begin: Begin, *pauses: Pause) -> Paging:
    """Have a remedy that people agreed to help, with its page out, and Ben ask to undo it while `pauses` are in force."""
    paging = await begin(playbook(act("both", *TWO, approval=ApprovalSpec())), policy=three(update_every=20 * MINUTE))
    await paging.fires()
    await decide(paging)
    paging.world.firing = False
    await paging.passes(4 * MINUTE)
    paging.world.firing = True
    kinds, ben = ScriptedRegistry(paging.world).action, Actor("ben", frozenset({"approver"}), frozenset())

    def ask(seen: Snapshot) -> Changes:
        return undo.begin(seen, FIRST_RUN, why="", actor=ben, kinds=kinds, dry_run=False)

    await paging.store.transact(Reads(), lambda _seen: Changes(pauses=pauses))
    await paging.store.transact(Reads(runs=[FIRST_RUN]), ask)
    await paging.work()
    return paging


@pytest.mark.parametrize(("approve", "outcome"), [(False, "'both' helped."), (None, "'both' helped."), (True, "its run is undone")])
async def test_what_was_done_is_told_once_whatever_became_of_its_undo(begin: Begin, approve: bool | None, outcome: str) -> None:
    """An undo begins with the steps of the run that it undoes: they were not done twice, and a refused one leaves a success a success."""
    paging = await undo_asked_for(begin)
    if approve is not None:
        await decide(paging, approval=f"{FIRST}-2-A", approve=approve)
    await paging.passes(20 * MINUTE)
    done = ["both: undone: a is bad", "both: undone: b is bad"] if approve else ["both: a is good", "both: b is good"]
    (update,) = [
        values for values in paging.line.values if values["kind"] == "update" and values.get("awaits") and values["run"] != FIRST_RUN
    ][-1:]
    assert update["actions_taken"] == done
    awaited = {True: "is undone", False: "the end of its alert", None: f"remediator approve {FIRST}-2-A"}[approve]
    assert awaited in update["awaits"]
    await paging.ends()
    await paging.passes(5 * MINUTE)
    word = [values for values in paging.line.values if values["kind"] == "resolved"][-1]
    assert word["actions_taken"] == done
    assert outcome in word["outcome"]


async def test_question_about_an_undo_is_asked_in_a_storm(begin: Begin) -> None:
    """Somebody wants it now: no digest tells of it."""
    storm = Pause(STORM, "remediator", "60 incidents", NOW, since=NOW)
    paging = await undo_asked_for(begin, storm)
    await paging.deliver()
    assert paging.told("approval") == ["level-1", "level-1"]
