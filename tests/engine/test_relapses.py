"""Alerts that come and go while runs are at work: one run at a time, no lost page, no remedy repeated unasked."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from remediator.events import Kind
from remediator.model import IncidentState, RunState
from remediator.replacing import replace
from remediator.rules.model import ApprovalSpec, GuardSpec, Rule
from tests.builders import alert
from tests.engine.conftest import Start
from tests.scripted import LOST, Harness, fails_at
from tests.stories import act, decide, due, playbook, step

MINUTE = timedelta(minutes=1)
EAGER = GuardSpec(cooldown=timedelta())


async def flap(harness: Harness) -> None:
    """Let the alert end and begin again."""
    harness.now += MINUTE
    await harness.send(alert(firing=False, ends_at=harness.now))
    harness.now += MINUTE
    await harness.send(alert(starts_at=harness.now))


async def test_relapse_while_a_run_verifies_makes_no_second_run(start: Start) -> None:
    """The incident is open again, and its one run sees for itself that the alert fires."""
    harness = await start(playbook(guards=EAGER))
    await harness.send(alert())
    await harness.work()
    await flap(harness)
    await harness.work()
    assert await harness.store.run("INC-20261121-001-2") is None
    incident = await harness.incident()
    assert (incident.state, incident.active_run, incident.relapses) == (IncidentState.OPEN, "INC-20261121-001-1", 1)
    assert await harness.state() is RunState.VERIFYING
    assert harness.world.writes == ["a=good"]


@pytest.mark.parametrize("state", [RunState.OUTCOME_UNKNOWN, RunState.AWAITING_APPROVAL])
async def test_s21_relapse_of_what_waits_for_a_person_pages_at_once(start: Start, state: RunState) -> None:
    """Nothing is at work, so nothing holds the new page back."""
    remedy = act("once", step(1, "test.once")) if state is RunState.OUTCOME_UNKNOWN else act(approval=ApprovalSpec())
    harness = await start(playbook(remedy))
    harness.world.fault = fails_at("before", LOST)
    await harness.send(alert())
    await harness.work()
    assert await harness.state() is state
    await flap(harness)
    await harness.work()
    assert await harness.state() is state
    assert await harness.store.run("INC-20261121-001-2") is None
    assert "INC-20261121-001/page/1" in await due(harness)


async def test_run_is_not_cancelled_for_an_end_that_is_over(start: Start) -> None:
    """The alert was resolved when the run was read, and fires again when it is written: the run goes on."""
    harness = await start()
    await harness.send(alert())
    harness.now += MINUTE
    await harness.send(alert(firing=False, ends_at=harness.now))
    harness.now += MINUTE
    plain, relapsed = harness.store.transact, False

    async def transact(*arguments: Any) -> Any:
        nonlocal relapsed
        if not relapsed:
            relapsed = True
            await harness.send(alert(starts_at=harness.now))
        return await plain(*arguments)

    harness.store.transact = transact  # type: ignore[method-assign]
    await harness.work()
    assert await harness.state() is RunState.VERIFYING
    assert harness.world.writes == ["a=good"]


async def test_s08_firing_on_after_a_success_is_a_relapse(start: Start) -> None:
    """No end was reported in between; still the remedy did not last: it needs an approval now, and the page is a new one."""
    harness = await start(playbook(guards=EAGER))
    await harness.send(alert())
    await harness.work()
    harness.world.firing = False
    await harness.tick(MINUTE)
    assert await harness.state() is RunState.SUCCEEDED
    harness.world.firing, harness.world.things["a"] = True, "bad"
    harness.now += 10 * MINUTE
    await harness.send(alert())
    await harness.work()
    assert await harness.state(2) is RunState.AWAITING_APPROVAL
    assert harness.world.writes == ["a=good"]
    assert "INC-20261121-001/page/1" in await due(harness)
    assert harness.said(Kind.INCIDENT_REOPENED)[0]["remedies"] == ["set a"]


async def test_s08_a_success_of_long_ago_does_not_count_against_the_remedy(start: Start) -> None:
    """Beyond the relapse window the remedy acts by itself again; the page is a new one all the same."""
    harness = await start(playbook(guards=EAGER))
    await harness.send(alert())
    await harness.work()
    harness.world.firing = False
    await harness.tick(MINUTE)
    harness.world.firing, harness.world.things["a"] = True, "bad"
    harness.now += timedelta(hours=25)
    await harness.send(alert())
    await harness.work()
    assert harness.world.writes == ["a=good", "a=good"]
    harness.now += 3 * MINUTE
    assert "INC-20261121-001/page/1" in await due(harness)


@pytest.mark.parametrize(
    ("rules", "whose"),
    [
        ({"other": replace(playbook(guards=EAGER), name="other")}, "is other's by now"),
        ({"site-down": replace(playbook(guards=EAGER), enabled=False)}, "no enabled rule takes it by now"),
        ({}, "no enabled rule takes it by now"),
    ],
    ids=["another rule's", "disabled", "deleted"],
)
async def test_what_fires_on_and_is_not_its_rules_any_more_is_peoples(start: Start, rules: dict[str, Rule], whose: str) -> None:
    """A reload took the alert from its rule after the success had cancelled the page: nothing acts, and somebody is paged, once."""
    harness = await start(playbook(guards=EAGER))
    await harness.send(alert())
    await harness.work()
    harness.world.firing = False
    await harness.tick(MINUTE)
    assert await harness.state() is RunState.SUCCEEDED
    harness.world.firing, harness.world.things["a"] = True, "bad"
    harness.rules = rules
    await harness.send(alert())
    assert (await harness.incident()).state is IncidentState.OPEN  # a copy that was under way
    for _ in range(2):
        harness.now += 10 * MINUTE
        await harness.send(alert())
        await harness.work()
    incident = await harness.incident()
    assert (incident.state, incident.runs, incident.relapses) == (IncidentState.ESCALATED, 1, 1)
    assert harness.world.writes == ["a=good"]
    assert "INC-20261121-001/page/1" in await due(harness)
    assert [event["reason"] for event in harness.said(Kind.INCIDENT_ESCALATED)] == [
        f"it fires on after a success of site-down, and {whose}"
    ]


# --- several alerts of one incident ----------------------------------------------------------------------------------------------


async def helped(start: Start, *instances: str) -> Harness:
    """Have a remedy end the alert that opened an incident, of which nobody has told the end yet."""
    harness = await start(playbook(target="site", guards=EAGER))
    for instance in instances:
        await harness.send(alert(instance=instance))
    await harness.work()
    harness.world.firing = False
    await harness.tick(MINUTE)
    assert await harness.state() is RunState.SUCCEEDED
    return harness


async def test_s21_success_for_one_alert_cancels_no_page_while_another_of_its_incident_fires(start: Start) -> None:
    """Verification looked at the alert that opened it: the page waits for the end of the other one, up to its deadline."""
    harness = await helped(start, "1", "2")
    await harness.send(alert(firing=False, ends_at=harness.now, instance="1"))
    assert await due(harness) == set()
    harness.now += 3 * MINUTE
    assert "INC-20261121-001/page/0" in await due(harness)


async def test_success_pages_nobody_once_all_alerts_of_its_incident_are_over(start: Start) -> None:
    """As before."""
    harness = await helped(start, "1", "2")
    await harness.send(alert(firing=False, ends_at=harness.now, instance="1"), alert(firing=False, ends_at=harness.now, instance="2"))
    harness.now += 5 * MINUTE
    assert await due(harness) == set()


async def test_s08_alert_that_joins_after_the_success_is_a_relapse(start: Start) -> None:
    """It began when the remedy had been called a success: it gets a run and a page at once, and not with its next repetition."""
    harness = await helped(start, "1")
    harness.now += timedelta(seconds=20)
    harness.world.firing, harness.world.things["a"] = True, "bad"
    await harness.send(alert(instance="2", starts_at=harness.now))
    incident = await harness.incident()
    assert (incident.active_run, incident.relapses, incident.subject.labels["instance"]) == ("INC-20261121-001-2", 1, "2")
    await harness.work()
    assert await harness.state(2) is RunState.AWAITING_APPROVAL
    assert "INC-20261121-001/page/1" in await due(harness)


async def test_late_alert_of_the_same_cause_is_no_relapse(start: Start) -> None:
    """It began before the remedy helped, and came later: it joins, and is over soon."""
    harness = await helped(start, "1")
    harness.now += timedelta(seconds=20)
    await harness.send(alert(instance="2"))
    incident = await harness.incident()
    assert (incident.active_run, incident.relapses, len(incident.fingerprints)) == (None, 0, 2)


async def test_s21_late_alert_of_the_same_cause_is_paged_when_it_lasts(start: Start) -> None:
    """Nobody is woken for what ends soon after the remedy; what does not is paged within `page_after`, not when it is repeated."""
    harness = await helped(start, "1")
    await harness.send(alert(instance="2"))
    harness.now += 3 * MINUTE - timedelta(seconds=1)
    assert await due(harness) == set()
    harness.now += timedelta(seconds=1)
    (key,) = await due(harness)
    assert key.startswith("INC-20261121-001/page/0/joined/")


async def test_next_run_is_about_an_alert_that_fires(start: Start) -> None:
    """The alert that opened the incident is over: another run of it looks after the one that is not."""
    harness = await helped(start, "1", "2")
    await harness.send(alert(firing=False, ends_at=harness.now, instance="1"))
    harness.world.firing, harness.world.things["a"] = True, "bad"
    harness.now += 15 * MINUTE
    await harness.send(alert(instance="2"))
    assert (await harness.incident()).subject.labels["instance"] == "2"
    await harness.work()
    await decide(harness, approval="INC-20261121-001-2-A")
    assert harness.world.writes == ["a=good", "a=good"]
