"""The watchdog: which alert is one, whom it speaks for, and what its loss and its return write."""

from __future__ import annotations

from datetime import timedelta

import pytest

from remediator.decide import Mandate, watched
from remediator.errors import InvalidExpression
from remediator.escalation.notice import alarm_key
from remediator.events import Kind
from remediator.ingest.intake import take_all
from remediator.ingest.recovery import Recovery, Source, believed
from remediator.model import SYSTEM, Alert, Authority, IncidentState
from remediator.records import WATCHDOG, WATCHDOG_AWAITED, MessageKind, Pause
from remediator.replacing import replace
from remediator.stopping import watchdog
from remediator.store.protocol import Changes, Snapshot
from tests.builders import NOW, World, alert, bounds, incident, rule, take

MINUTE = timedelta(minutes=1)
WATCH = watchdog.watch(('alertname = "Watchdog"',), 5 * MINUTE)
ALL = rule("everything", alertname="Watchdog")


def _world() -> World:
    return World(ALL, watch=WATCH, bounds=bounds())


def test_watchdog_opens_no_incident_whatever_matches() -> None:
    """The alert that always fires is no incident, also where a rule matches it."""
    changes = _world().take(alert("Watchdog"))
    assert not changes.incidents
    assert not changes.runs
    assert changes.episodes[0].note == watchdog.NOTE


def test_resolved_watchdog_is_lost_at_once_and_back_with_the_next() -> None:
    """That it is over is itself the bad news; the next one that fires lifts the pause, and each is told once."""
    world = _world()
    world.take(alert("Watchdog"))
    lost = world.take(alert("Watchdog", firing=False, ends_at=NOW + MINUTE), after=MINUTE)
    (pause,) = lost.pauses
    assert pause.scope.startswith("watchdog:")
    assert [event.kind for event in lost.events] == [Kind.WATCHDOG_LOST]
    (message,) = lost.messages
    assert message.policy == "default"
    assert message.kind is MessageKind.PAGE, "nobody would hear of it in the night"
    assert "remediator resume --scope" in str(message.body["text"])
    back = world.take(alert("Watchdog", starts_at=NOW + 2 * MINUTE), after=MINUTE)
    assert list(back.lift) == [pause.scope]
    assert [event.kind for event in back.events] == [Kind.WATCHDOG_HEARD]
    assert list(back.cancel_messages) == [message.key]
    (quiet,) = back.messages
    assert quiet.kind is MessageKind.RESOLVED
    assert alarm_key(str(quiet.body["occasion"])) == message.key
    assert not world.take(alert("Watchdog", starts_at=NOW + 2 * MINUTE), after=MINUTE).messages


def test_lost_and_heard_in_one_transaction_is_heard() -> None:
    """Webhooks of one moment share a transaction: what the later of two says of a watchdog holds."""
    world = _world()
    world.take(alert("Watchdog"))
    world.take(alert("Watchdog", firing=False, ends_at=NOW + MINUTE), after=MINUTE)
    again = alert("Watchdog", starts_at=NOW + 2 * MINUTE)
    changes = world.take(again, alert("Watchdog", firing=False, ends_at=NOW + timedelta(seconds=1)), after=2 * MINUTE)
    assert [pause.scope.partition(":")[0] for pause in changes.pauses] == ["settling"]
    assert len(changes.lift) == 1


def test_without_stale_after_nothing_is_lost() -> None:
    """Switched off, the alert is still no incident, and its end means nothing."""
    world = World(ALL, watch=watchdog.watch(('alertname = "Watchdog"',), None), bounds=bounds())
    world.take(alert("Watchdog"))
    changes = world.take(alert("Watchdog", firing=False, ends_at=NOW + MINUTE), after=MINUTE)
    assert not changes.pauses
    assert not changes.messages


@pytest.mark.parametrize(
    ("scope", "cluster", "speaks"),
    [
        ("watchdog", "eu", True),
        ("watchdog:0123456789abcdef", "eu", True),
        ("watchdog:0123456789abcdef@eu", "eu", True),
        ("watchdog:0123456789abcdef@eu", "us", False),
        ("watchdog:0123456789abcdef@eu", "", True),
        ("watchdog:awaited", "eu", False),
        ("storm", "eu", False),
    ],
)
def test_watchdog_of_a_cluster_speaks_for_its_alerts(scope: str, cluster: str, speaks: bool) -> None:
    """One with a label `cluster` counts for that cluster, and for alerts that don't say theirs; one without for all."""
    labels = {"cluster": cluster} if cluster else {}
    found = watchdog.lost({scope: Pause(scope, "remediator", "why", NOW)}, labels)
    assert (found is not None) is speaks


def test_s13_lost_watchdog_lowers_auto_to_approve_and_nothing_to_more() -> None:
    """Authority is the least of all that bounds it: a lost watchdog takes auto away, and never gives anything."""
    pauses = {"watchdog:00": Pause("watchdog:00", "remediator", "not again within 5m", NOW, since=NOW - 5 * MINUTE)}
    lowered = watched(Mandate(Authority.AUTO), pauses, incident())
    assert lowered.authority is Authority.APPROVE
    assert "the watchdog alert was last heard at" in lowered.reasons[0]
    assert watched(Mandate(Authority.OBSERVE), pauses, incident()).authority is Authority.OBSERVE
    assert watched(Mandate(Authority.AUTO), {}, incident()).authority is Authority.AUTO


def test_s21_lost_watchdog_holds_no_page_back() -> None:
    """A page is held only for a run that acts by itself; while the watchdog is lost none does."""
    world = World(rule(), watch=WATCH)
    world.take(alert("Watchdog"))
    world.take(alert("Watchdog", firing=False, ends_at=NOW + MINUTE), after=MINUTE)
    changes = world.take(alert())
    assert changes.messages[0].due_at == world.now


def test_never_heard_is_awaited_from_the_first_start_on() -> None:
    """What was never heard is lost after `stale_after`, counted in a row: a daemon that restarts all the time does not wait for ever."""
    first = watchdog.never_heard(Snapshot(NOW), 5 * MINUTE, dry_run=False)
    (awaited,) = first.pauses
    assert awaited.scope == WATCHDOG_AWAITED
    later = Snapshot(NOW + 4 * MINUTE, pauses={WATCHDOG_AWAITED: awaited})
    assert not watchdog.never_heard(later, 5 * MINUTE, dry_run=False).pauses
    last = watchdog.never_heard(Snapshot(NOW + 5 * MINUTE, pauses={WATCHDOG_AWAITED: awaited}), 5 * MINUTE, dry_run=False)
    assert [pause.scope for pause in last.pauses] == [WATCHDOG]
    assert list(last.lift) == [WATCHDOG_AWAITED]
    held = watchdog.heard({WATCHDOG: last.pauses[0]}, alert("Watchdog"), now=NOW, dry_run=False)
    assert list(held.lift) == [WATCHDOG]


def test_forgotten_watchdog_is_closed() -> None:
    """A person's word that it will not come back ends its episode, so that nobody misses it again."""
    world = _world()
    world.take(alert("Watchdog"))
    (episode,) = world.snapshot.episodes.values()
    silent = watchdog.silent(Snapshot(NOW + 9 * MINUTE), episode, 5 * MINUTE, dry_run=False, due=NOW)
    scope = silent.pauses[0].scope
    snapshot = Snapshot(NOW + 9 * MINUTE, episodes={episode.fingerprint: episode}, pauses={scope: silent.pauses[0]})
    changes = watchdog.forget(snapshot, scope, why="the cluster is gone", actor=SYSTEM)
    assert changes.episodes[0].closed_at == snapshot.now
    assert list(changes.lift) == [scope]
    assert not changes.pauses


def _over(name: str = "SiteDown", *, cluster: str = "") -> Alert:
    labels = {"cluster": cluster} if cluster else {}
    return alert(name, firing=False, starts_at=NOW, ends_at=NOW + MINUTE, **labels)


def _seeing(*before: Alert) -> World:
    """Return a world that has heard of `before`, and hears its watchdog."""
    world = World(rule(), watch=WATCH)
    world.take(*before, alert("Watchdog"))
    return world


def _blind(*before: Alert) -> World:
    """Return one whose watchdog is lost since."""
    world = _seeing(*before)
    world.take(_over("Watchdog"), after=MINUTE)
    return world


def test_s19_what_is_called_resolved_while_the_watchdog_is_lost_is_not_over() -> None:
    """A dead Prometheus has all its alerts called resolved: the incident stays open, its page stays due, and the timeline says why."""
    world = _blind(alert())
    changes = world.take(_over(), after=MINUTE)
    (known,) = world.snapshot.incidents.values()
    assert known.state is IncidentState.OPEN
    assert [event.kind for event in changes.events] == [Kind.EPISODE_DOUBTED]
    assert (changes.incidents, changes.cancel_messages, changes.messages, changes.recovered) == ([], [], [], {})
    assert world.snapshot.episodes[alert().fingerprint].open
    assert not world.take(_over(), after=MINUTE).events, "told twice"


def test_s19_a_watchdog_s_end_counts_before_the_ends_beside_it() -> None:
    """All of one webhook's alerts end at once when Prometheus is dead, whatever their order."""
    world = World(rule(), watch=WATCH)
    world.take(alert(), alert("Watchdog"))
    world.take(_over(), _over("Watchdog"), after=MINUTE)
    assert {one.state for one in world.snapshot.incidents.values()} == {IncidentState.OPEN}


HEARD = alert("Watchdog", starts_at=NOW + MINUTE)


@pytest.mark.parametrize(
    ("world", "webhooks"),
    [
        pytest.param(_blind(alert()), [[HEARD], [_over()]], id="lost until this moment"),
        pytest.param(_blind(alert()), [[HEARD], [_over()], [_over("Watchdog")]], id="heard and lost again"),
        pytest.param(_seeing(alert()), [[_over()], [_over("Watchdog")]], id="lost a moment later"),
    ],
)
def test_s19_nothing_is_believed_in_a_moment_in_which_the_watchdog_is_lost(world: World, webhooks: list[list[Alert]]) -> None:
    """After an outage many webhooks share a transaction, in any order: an old word of the watchdog's proves none of the ends beside it."""
    items = [world.sort(*alerts) for alerts in webhooks]
    changes, _ = take_all(items, replace(world.snapshot, now=world.now + 2 * MINUTE), world.intake)
    assert not [one for one in changes.incidents if one.state is IncidentState.RESOLVED]
    assert Kind.EPISODE_DOUBTED in [event.kind for event in changes.events]


def test_s19_another_cluster_s_watchdog_casts_no_doubt() -> None:
    """Only a watchdog that speaks for the alert makes its end doubtful."""
    world = World(rule(), watch=WATCH)
    world.take(alert(cluster="us"), alert("Watchdog", cluster="eu"))
    world.take(_over("Watchdog", cluster="eu"), after=MINUTE)
    world.take(_over(cluster="us"), after=MINUTE)
    assert {one.state for one in world.snapshot.incidents.values()} == {IncidentState.RESOLVED}


def test_alert_that_fires_on_was_never_over() -> None:
    """Told of again it is neither a relapse nor doubtful any more, so that its next end is believed as any."""
    world = _blind(alert())
    world.take(_over(), after=MINUTE)
    world.take(alert("Watchdog", starts_at=NOW + 2 * MINUTE), after=MINUTE)
    changes = world.take(alert(starts_at=NOW + 2 * MINUTE), after=MINUTE)
    assert (changes.runs, changes.relapsed) == ([], {})
    assert world.snapshot.episodes[alert().fingerprint].ends_at is None
    world.take(alert(firing=False, starts_at=NOW + 2 * MINUTE, ends_at=NOW + 9 * MINUTE), after=5 * MINUTE)
    assert {one.state for one in world.snapshot.incidents.values()} == {IncidentState.RESOLVED}


def _recover(world: World, found: Alert, recovery: Recovery) -> Changes:
    """Take an alert that no webhook brought."""
    items = [replace(one, recovery=recovery) for one in world.sort(found)]
    return take(items, replace(world.snapshot, now=world.now), world.intake)


def test_end_that_nobody_gainsaid_is_believed_and_says_since_when() -> None:
    """The incident ends in the usual way; one that was told of meanwhile is left alone."""
    world = _blind(alert())
    world.take(_over(), after=MINUTE)
    world.take(alert("Watchdog", starts_at=NOW + 2 * MINUTE), after=MINUTE)
    end = believed(world.snapshot.episodes[alert().fingerprint])
    changes = _recover(world, *end)
    assert [event.kind for event in changes.events] == [Kind.EPISODE_BELIEVED, Kind.INCIDENT_RESOLVED]
    assert changes.episodes[0].ends_at == NOW + MINUTE
    world.take(alert(), after=MINUTE)
    assert not _recover(world, *end).events


def test_s19_alert_that_no_alertmanager_knows_is_not_over_while_the_watchdog_is_lost() -> None:
    """What reconciliation finds gone is as little proof as a webhook: Alertmanager is told nothing either."""
    world = _blind(alert())
    changes = _recover(world, replace(_over(), ends_at=None), Recovery(Source.GONE, {}, NOW))
    assert not changes.incidents
    assert changes.episodes[0].open


def test_word_that_all_is_well_waits_to_see_whether_the_watchdog_is_lost() -> None:
    """The watchdog of a Prometheus that died does not end before its other alerts; without a watchdog nobody waits."""
    for watching in (WATCH, watchdog.Watch()):
        world = World(rule(), watch=watching)
        world.take(alert())
        (known,) = world.snapshot.incidents.values()
        paged = replace(known, paged_at=NOW, policy="default")
        world.snapshot = replace(world.snapshot, incidents={known.id: paged}, latest_incident={(known.rule, known.target): paged})
        (word,) = world.take(_over(), after=MINUTE).messages
        assert word.due_at - world.now == (watchdog.PROOF if watching is WATCH else timedelta())


@pytest.mark.parametrize("name", ["x" * 5000, "eu\nus", "m\u00fcnchen", "eu@us", "\x1b[2J"])
def test_odd_name_of_a_cluster_is_none(name: str) -> None:
    """A label from outside never makes a key that no database, header or terminal takes; the watchdog then speaks for all."""
    scope = watchdog.scope_of("0" * 16, {"cluster": name})
    assert scope == "watchdog:" + "0" * 16
    assert watchdog.lost({scope: Pause(scope, "remediator", "why", NOW)}, {"cluster": "eu"}) is not None


def test_matcher_that_is_none_is_refused() -> None:
    """A typing error must not mean that nothing is watched."""
    with pytest.raises(InvalidExpression):
        watchdog.watch(("alertname == Watchdog",), None)
