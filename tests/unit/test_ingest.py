"""What alerts change: episodes, incidents, runs and pages, alert after alert."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import timedelta

import pytest

from remediator.events import Kind
from remediator.guards import Bounds
from remediator.model import Authority, IncidentState, RunState
from remediator.store.protocol import Changes
from tests.builders import NOW, World, alert, rule

MINUTE = timedelta(minutes=1)


def kinds(changes: Changes) -> list[str]:
    return [event.kind for event in changes.events]


def nothing(changes: Changes) -> bool:
    return not any(getattr(changes, field.name) for field in fields(changes))


def test_first_firing_opens_episode_incident_run_and_page() -> None:
    """One alert, one commit: everything it leads to without looking at the world is in it."""
    changes = World(rule()).take(alert())
    (incident,), (run,), (page,), (episode,) = changes.incidents, changes.runs, changes.messages, changes.episodes
    assert incident.id == "INC-20261121-001"
    assert episode.incident == incident.id
    assert run.id == "INC-20261121-001-1"
    assert run.state is RunState.QUEUED
    assert incident.active_run == run.id
    assert kinds(changes) == [Kind.INCIDENT_OPENED, Kind.RUN_CREATED]
    assert changes.rule_texts == {run.rule_hash: {"name": "site-down"}}
    assert page.due_at == NOW + 3 * MINUTE


def test_same_alert_ten_times_makes_one_run() -> None:
    """Repeats, other receivers and other peers confirm the episode and change nothing else."""
    world = World(rule())
    world.take(alert())
    for _ in range(9):
        changes = world.take(alert(), after=MINUTE)
        assert not changes.runs
        assert not changes.events
        assert changes.episodes[0].confirmed_at == world.now
    assert len(world.snapshot.runs) == 1


def test_starts_at_is_no_identity() -> None:
    """`startsAt` may move to an earlier value and differ between peers; the open episode stays the same."""
    world = World(rule())
    world.take(alert())
    changes = world.take(alert(starts_at=NOW - timedelta(hours=1)))
    assert not changes.runs
    assert changes.episodes[0].number == 1


def test_resolved_closes_resolves_and_wakes() -> None:
    """The last episode's end resolves the incident, cancels its page and has its run look up at once."""
    world = World(rule())
    world.take(alert())
    changes = world.take(alert(firing=False, ends_at=NOW + MINUTE), after=2 * MINUTE)
    assert changes.incidents[0].state is IncidentState.RESOLVED
    assert changes.wake == ["INC-20261121-001-1"]
    assert changes.cancel_messages == ["INC-20261121-001/page/0"]
    assert kinds(changes) == [Kind.INCIDENT_RESOLVED]


def test_resolved_for_an_unknown_alert_changes_nothing() -> None:
    """Act on firing only (Robusta 345): a resolved notification never opens anything."""
    assert nothing(World(rule()).take(alert(firing=False, ends_at=NOW)))


def test_late_copy_of_a_closed_episode_opens_nothing() -> None:
    """A peer may send *firing* after another sent *resolved*: the tombstone holds it back."""
    world = World(rule())
    world.take(alert())
    world.take(alert(firing=False, ends_at=NOW + MINUTE), after=MINUTE)
    assert nothing(world.take(alert(), after=MINUTE))


def test_late_resolved_of_an_earlier_firing_closes_nothing() -> None:
    """A peer's late *resolved* speaks of the episode before; the alert that fires now goes on firing."""
    world = World(rule())
    world.take(alert())
    ended = alert(firing=False, ends_at=NOW + MINUTE)
    world.take(ended, after=MINUTE)
    world.take(alert(starts_at=NOW + 2 * MINUTE), after=2 * MINUTE)
    assert nothing(world.take(ended, after=MINUTE))
    again = alert(firing=False, starts_at=NOW + 2 * MINUTE, ends_at=NOW + 5 * MINUTE)
    assert world.take(again, after=MINUTE).incidents[0].state is IncidentState.RESOLVED


def test_end_before_its_own_beginning_ends_what_it_speaks_of() -> None:
    """The sender's clock was set back in between: it is the end of this very firing, and copies of that are late ones."""
    world = World(rule())
    world.take(alert())
    ended = alert(firing=False, ends_at=NOW - MINUTE)
    assert world.take(ended, after=MINUTE).incidents[0].state is IncidentState.RESOLVED
    assert nothing(world.take(alert(), after=MINUTE))
    assert nothing(world.take(ended, after=MINUTE))
    assert world.take(alert(starts_at=NOW + MINUTE), after=MINUTE).incidents[0].relapses == 1


def test_end_by_a_clock_that_is_behind_closes_nothing_that_fires() -> None:
    """Of two Prometheis one is ten minutes behind: by its clock all is long over. It may be an end of an earlier firing as well."""
    world = World(rule())
    world.take(alert())
    behind = alert(firing=False, starts_at=NOW - 10 * MINUTE, ends_at=NOW - 6 * MINUTE)
    assert nothing(world.take(behind, after=MINUTE))
    assert nothing(world.take(replace(behind, ends_at=NOW - 11 * MINUTE), after=MINUTE))
    assert world.take(alert(firing=False, ends_at=NOW + MINUTE), after=MINUTE).incidents[0].state is IncidentState.RESOLVED


def test_tombstone_ends() -> None:
    """An alert that keeps firing with its old `startsAt` is taken seriously once the tombstone has run out."""
    world = World(rule())
    world.take(alert())
    world.take(alert(firing=False, ends_at=NOW + MINUTE), after=MINUTE)
    changes = world.take(alert(), after=6 * MINUTE)
    assert changes.episodes[0].number == 2


def test_s08_a_relapse_is_not_a_new_incident() -> None:
    """A re-fire within the relapse window reopens the incident; remedies that had succeeded then need an approval."""
    world = World(rule())
    world.take(alert())
    world.end_run(RunState.SUCCEEDED)
    (known,) = world.snapshot.incidents.values()
    world.snapshot = replace(world.snapshot, incidents={known.id: replace(known, succeeded_remedies=("restart",))})
    world.take(alert(firing=False, ends_at=NOW + MINUTE), after=MINUTE)
    changes = world.take(alert(starts_at=NOW + 2 * MINUTE), after=MINUTE)
    (incident,) = changes.incidents
    assert incident.id == known.id
    assert incident.state is IncidentState.OPEN
    assert incident.relapses == 1
    assert incident.relapsed_remedies == ("restart",)
    assert changes.runs[0].number == 2
    assert changes.messages[0].key.endswith("/page/1")


def test_after_the_relapse_window_a_new_incident_opens() -> None:
    """A day later it is another incident."""
    world = World(rule())
    world.take(alert())
    world.take(alert(firing=False, ends_at=NOW + MINUTE), after=MINUTE)
    changes = world.take(alert(starts_at=NOW + timedelta(hours=30)), after=timedelta(hours=30))
    assert changes.incidents[0].id.startswith("INC-20261122-")


def test_s05_a_joining_episode_extends_the_incident_never_the_subject() -> None:
    """Alerts of one target join one incident; `labels` keep meaning the alert that opened it."""
    world = World(rule(target="${labels.namespace}"))
    world.take(alert(namespace="shop", pod="a"))
    changes = world.take(alert(namespace="shop", pod="b"), after=MINUTE)
    (incident,) = changes.incidents
    assert incident.subject.labels["pod"] == "a"
    assert len(incident.fingerprints) == 2
    assert not changes.runs
    assert kinds(changes) == [Kind.INCIDENT_JOINED]


def test_incident_stays_open_until_its_last_episode_ends() -> None:
    """One of two alerts ending resolves nothing."""
    world = World(rule(target="${labels.namespace}"))
    world.take(alert(namespace="shop", pod="a"), alert(namespace="shop", pod="b"))
    changes = world.take(alert(namespace="shop", pod="a", firing=False, ends_at=NOW), after=MINUTE)
    assert changes.incidents[0].state is IncidentState.OPEN
    assert kinds(changes) == [Kind.EPISODE_CLOSED]
    changes = world.take(alert(namespace="shop", pod="b", firing=False, ends_at=NOW), after=MINUTE)
    assert changes.incidents[0].state is IncidentState.RESOLVED


def test_one_ends_while_another_begins_is_no_relapse() -> None:
    """Order inside one body means nothing: an incident that never lacked a firing alert was never resolved."""
    world = World(rule(target="${labels.namespace}"))
    world.take(alert(namespace="shop", pod="a"))
    ended = alert(namespace="shop", pod="a", firing=False, ends_at=NOW)
    changes = world.take(ended, alert(namespace="shop", pod="b"), after=MINUTE)
    assert changes.incidents[0].relapses == 0
    assert changes.incidents[0].state is IncidentState.OPEN


def test_alert_of_two_targets_in_one_body_numbers_two_incidents() -> None:
    """Numbers run on inside one transaction."""
    changes = World(rule(target="${labels.namespace}")).take(alert(namespace="shop"), alert(namespace="mail"))
    assert [incident.id for incident in changes.incidents] == ["INC-20261121-001", "INC-20261121-002"]


def test_unmatched_alert_is_kept_with_its_reason() -> None:
    """The decision not to act is explained, too."""
    changes = World().take(alert())
    assert changes.episodes[0].note == "no rule matches"
    assert not changes.incidents


def test_disabled_rule_owns_nothing_and_says_so() -> None:
    """A disabled rule is named as the reason."""
    changes = World(rule(enabled=False)).take(alert())
    assert changes.episodes[0].note == "only disabled rules match: site-down"
    assert not changes.runs


def test_rule_added_later_takes_an_alert_that_still_fires() -> None:
    """An episode without an incident is looked at again with each notification."""
    world = World()
    world.take(alert())
    world.rules = (rule(),)
    assert len(world.take(alert(), after=MINUTE).runs) == 1


def test_s03_unknown_target_is_not_every_target() -> None:
    """A missing label never groups strangers together: the fingerprint does."""
    changes = World(rule(target="${labels.namespace}")).take(alert())
    assert changes.incidents[0].target == alert().fingerprint
    assert "namespace" in str(changes.events[0].data["note"])


def test_incident_whose_run_was_cancelled_gets_another_one() -> None:
    """A run cancelled by a silence must not leave its incident without an owner when the silence ends."""
    world = World(rule())
    world.take(alert())
    world.end_run(RunState.CANCELLED)
    assert world.take(alert(), after=MINUTE).runs[0].number == 2


def test_incident_that_fires_on_after_success_gets_another_run() -> None:
    """A remedy that only seemed to help is followed up, but copies that were under way when the alert ended don't count."""
    world = World(rule())
    world.take(alert())
    world.end_run(RunState.SUCCEEDED)
    assert not world.take(alert(), after=4 * MINUTE).runs
    assert world.take(alert(), after=2 * MINUTE).runs[0].number == 2


@pytest.mark.parametrize("ended", [RunState.FAILED, RunState.DENIED, RunState.REHEARSED, RunState.ESCALATED])
def test_incident_in_peoples_hands_gets_no_further_run(ended: RunState) -> None:
    """One attempt, then a human (GitHub 2012)."""
    world = World(rule())
    world.take(alert())
    world.end_run(ended)
    assert not world.take(alert(), after=MINUTE).runs


@pytest.mark.parametrize(
    ("bounds", "mode"),
    [
        (Bounds(dry_run=True, knows_alertmanager=True), Authority.AUTO),
        (Bounds(dry_run=False, knows_alertmanager=False), Authority.AUTO),
        (Bounds(dry_run=False, knows_alertmanager=True), Authority.APPROVE),
    ],
)
def test_s21_only_a_run_that_may_act_by_itself_holds_the_page(bounds: Bounds, mode: Authority) -> None:
    """Whoever must be asked is told at once."""
    changes = World(rule(mode=mode), bounds=bounds).take(alert())
    assert changes.messages[0].due_at == NOW


def test_new_runs_are_claimed_only_as_far_as_the_worker_has_room() -> None:
    """The rest stays in the rows for whoever is free."""
    changes = World(rule(target="${labels.namespace}"), worker="me", capacity=1).take(alert(namespace="a"), alert(namespace="b"))
    assert len(changes.runs) == 2
    assert changes.claim == [changes.runs[0].id]


def test_incident_number_belongs_to_the_day_it_was_asked_for() -> None:
    """Around midnight, or between two clocks, a number of yesterday under today's name could be one that is taken."""
    world = World(rule(), day=(NOW - timedelta(days=1)).date())
    (incident,) = world.take(alert()).incidents
    assert incident.id == "INC-20261120-001"
