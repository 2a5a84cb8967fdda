"""What follows from Alertmanager's lists: what is taken, what proves that an alert is over, and how long it must be said."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from remediator.errors import TemporaryError
from remediator.events import Kind
from remediator.ingest.recovery import Recovery, Source
from remediator.ingest.sorting import Sorted, sort
from remediator.model import Alert, Episode, IncidentState
from remediator.reconciliation.findings import Absences, Doubt, PeerAnswer, Picture, Wanted, doubt_of, ended, mutes_by_time, narrow
from remediator.replacing import replace
from remediator.rules.model import Rule
from remediator.store.protocol import Changes
from tests.builders import NOW, World, alert, rule, take

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
ACTIVE = {"state": "active", "silencedBy": [], "inhibitedBy": []}


def listed(one: Alert, *, receivers: tuple[str, ...] = ("remediator",), updated: datetime = NOW, **status: Any) -> dict[str, Any]:
    """Write an alert as `/api/v2/alerts` does."""
    return {
        "fingerprint": one.fingerprint,
        "labels": dict(one.labels),
        "annotations": {},
        "startsAt": one.starts_at.isoformat(),
        "endsAt": "2030-01-01T00:00:00.000Z",
        "updatedAt": updated.isoformat(),
        "receivers": [{"name": name} for name in receivers],
        "status": {**ACTIVE, **status},
    }


def picture(**wanted: Any) -> Picture:
    """Make one that wants everything for `remediator` that a rule for SiteDown matches."""
    made = Wanted(Source.MISSED, frozenset({"remediator"}), NOW, 100, {})
    return Picture(replace(made, **wanted), lambda one: one.name == "SiteDown")


def names(made: Picture) -> list[str]:
    """Return the pods of what is to be taken."""
    return [one.alert.labels.get("pod", "") for one in made.found]


# --- what is taken -----------------------------------------------------------------------------------------------------------


def test_only_active_alerts_of_our_receivers_with_a_rule_are_taken() -> None:
    """All others are known, and that is all."""
    made = picture()
    cases = {
        "ours": {},
        "both": {"receivers": ("people", "remediator")},
        "theirs": {"receivers": ("people",)},
        "nobody's": {"receivers": ()},
        "silenced": {"state": "suppressed", "silencedBy": ["s"]},
        "inhibited": {"inhibitedBy": ["f"]},
        "muted": {"mutedBy": ["weekend"]},
        "new": {"state": "unprocessed"},
    }
    for name, fields in cases.items():
        made.add(listed(alert(pod=name), **fields), peer="http://a")
    made.add(listed(alert("Other")), peer="http://a")
    assert names(made) == ["ours", "both"]
    assert len(made.known) == len(cases) + 1


@pytest.mark.parametrize("silenced_first", [True, False])
def test_s14_silence_of_any_peer_counts(*, silenced_first: bool) -> None:
    """In whatever order the peers answer."""
    made = picture()
    items = [listed(alert(), state="suppressed", silencedBy=["s"]), listed(alert())]
    for place, item in enumerate(items if silenced_first else items[::-1]):
        made.add(item, peer=f"http://{place}")
    assert (made.found, len(made.known)) == ([], 1)


def test_alert_that_may_still_come_by_webhook_is_left_alone() -> None:
    """It began within the grace."""
    made = picture(before=NOW - MINUTE)
    made.add(listed(alert(pod="young", starts_at=NOW)), peer="http://a")
    made.add(listed(alert(pod="old", starts_at=NOW - HOUR)), peer="http://a")
    assert names(made) == ["old"]


def test_s24_alert_that_began_in_our_future_is_not_waited_for() -> None:
    """Its Prometheus' clock is an hour ahead: an alert that was missed would be found an hour late."""
    made = picture(before=NOW - MINUTE, ahead=NOW + MINUTE)
    for name, began in {"just now": NOW, "a little ahead": NOW + MINUTE, "ahead": NOW + HOUR}.items():
        made.add(listed(alert(pod=name, starts_at=began)), peer="http://a")
    assert names(made) == ["ahead"]


def test_no_more_alerts_are_kept_than_allowed() -> None:
    """The rest is counted, and known."""
    made = picture(most=2)
    for number in range(5):
        made.add(listed(alert(pod=str(number))), peer="http://a")
    assert (names(made), made.left, len(made.known)) == (["0", "1"], 3, 5)


def test_only_alerts_of_the_group_are_taken() -> None:
    """Filters narrow the question; comparing decides."""
    made = picture(labels={"namespace": "shop"})
    made.add(listed(alert(pod="in", namespace="shop")), peer="http://a")
    made.add(listed(alert(pod="out", namespace="other")), peer="http://a")
    assert names(made) == ["in"]


def test_bad_alert_is_refused_alone_and_nonsense_is_no_list() -> None:
    """A label too long refuses its alert; what is no alert at all refuses the whole answer."""
    made = picture()
    made.add(listed(alert(pod="x" * 5000)), peer="http://a")
    made.add({**listed(alert(pod="b")), "startsAt": "yesterday"}, peer="http://a")
    assert (made.found, made.refused, len(made.known)) == ([], ["size", "time"], 2)
    for item in (None, 5, [], {}, {"fingerprint": "f"}, {**listed(alert()), "fingerprint": ""}, {**listed(alert()), "receivers": [1]}):
        with pytest.raises(TemporaryError):
            made.add(item, peer="http://a")


def test_s25_only_plain_values_become_filters() -> None:
    """Nothing that any version of the filter's grammar could read differently."""
    labels = {"alertname": "Site Down", "bad name": "x", "path": 'a"b', "nl": "a\nb", "re": ".*", "empty": "", "up": "ü"}
    assert narrow(labels) == ['alertname="Site Down"']
    assert len(narrow({f"l{number}": "v" for number in range(50)})) == 20


@pytest.mark.parametrize(
    ("text", "mutes"),
    [
        ("route: {receiver: a}", False),
        ("mute_time_intervals:\n- name: weekend\n", False),
        ("time_intervals:\n- name: weekend\nroute:\n  receiver: a\n", False),
        ("route:\n  routes:\n  - mute_time_intervals: [weekend]\n", True),
        ("route: {routes: [{active_time_intervals: [office]}]}", True),
        ("route:\n  active_time_intervals:\n  - office\n", True),
    ],
)
def test_routes_muted_by_time_are_seen(text: str, *, mutes: bool) -> None:
    """A definition alone mutes nothing."""
    assert mutes_by_time(text) is mutes


# --- what absence proves -------------------------------------------------------------------------------------------------------

GOOD = PeerAnswer("http://a", age=HOUR, alerts=3)


@pytest.mark.parametrize(
    ("peers", "doubt"),
    [
        ([GOOD, replace(GOOD, url="http://b")], None),
        ([GOOD, PeerAnswer("http://b", "it did not answer")], Doubt.UNANSWERED),
        ([GOOD, replace(GOOD, url="http://b", age=MINUTE)], Doubt.RESTARTED),
        ([GOOD, replace(GOOD, url="http://b", age=-HOUR)], Doubt.RESTARTED),
        ([GOOD, replace(GOOD, url="http://b", alerts=0)], Doubt.EMPTY),
        ([], Doubt.UNANSWERED),
    ],
)
def test_absence_proves_something_only_when_every_peer_can_know(peers: list[PeerAnswer], doubt: Doubt | None) -> None:
    """One that is away, young or empty leaves it open."""
    found, words = doubt_of(peers, settle=10 * MINUTE, needs_alerts=True)
    assert found is doubt
    assert bool(words) is (doubt is not None)
    assert "http://b" in words or "http://a" not in words
    assert doubt_of([replace(GOOD, alerts=0)], settle=MINUTE, needs_alerts=False) == (None, "")


def episode(**fields: Any) -> Episode:
    """Make an open episode."""
    return replace(Episode(alert().fingerprint, 1, NOW, NOW, NOW, labels=alert().labels), **fields)


def looked(absences: Absences, now: float, *, certain: bool = True, absent: bool = True, **fields: Any) -> timedelta:
    """Make one round over one episode."""
    absences.begin(now=now, certain=certain, most=2 * MINUTE)
    lasted = absences.look(episode(**fields)) if absent else timedelta()
    absences.end()
    return lasted


def test_absence_lasts_from_the_first_certain_look() -> None:
    """Round after round."""
    absences = Absences()
    assert [looked(absences, 60.0 * number).total_seconds() for number in range(4)] == [0, 60, 120, 180]


def test_time_in_which_nobody_looked_does_not_count() -> None:
    """A daemon that was stopped for an hour has looked twice, not for an hour; doubtful rounds count for nothing, nor what lies beside."""
    absences = Absences()
    assert looked(absences, 0) == timedelta()
    assert looked(absences, 3600) == 2 * MINUTE
    assert looked(absences, 3660, certain=False) == timedelta()
    assert looked(absences, 3720) == 2 * MINUTE
    assert looked(absences, 3780) == 3 * MINUTE


def test_alert_that_was_seen_or_confirmed_meanwhile_begins_anew() -> None:
    """Any peer's word, also in a doubtful round, and any webhook's."""
    absences = Absences()
    looked(absences, 0)
    assert looked(absences, 60) == MINUTE
    looked(absences, 120, certain=False, absent=False)
    assert looked(absences, 180) == timedelta()
    assert looked(absences, 240) == MINUTE
    assert looked(absences, 300, confirmed_at=NOW + MINUTE) == timedelta()
    assert absences.contradicted == 1
    assert len(absences) == 1


def test_doubt_alone_begins_no_absence() -> None:
    """An alert first missed in a doubtful round is not yet missed."""
    absences = Absences()
    looked(absences, 0, certain=False)
    assert len(absences) == 0


# --- how it is taken --------------------------------------------------------------------------------------------------------------


class Recovering(World):
    """A world that also takes what reconciliation found."""

    def recover(self, one: Alert, recovery: Recovery) -> Changes:
        """Take one alert in this way."""
        matching: list[Rule] = [found for found in self.rules if found.matches(one.labels)]
        item: Sorted = replace(sort(one, matching if one.firing else []), recovery=recovery)
        changes = take([item], replace(self.snapshot, now=self.now), self.intake)
        self.snapshot = replace(
            self.snapshot,
            episodes={**self.snapshot.episodes, **{found.fingerprint: found for found in changes.episodes}},
            incidents={**self.snapshot.incidents, **{found.id: found for found in changes.incidents}},
            latest_incident={(found.rule, found.target): found for found in changes.incidents} or self.snapshot.latest_incident,
        )
        return changes


def kinds(changes: Changes) -> list[str]:
    """Name what happened."""
    return [event.kind for event in changes.events]


def test_missed_alert_is_an_incident_that_says_where_it_came_from() -> None:
    """Everything that a webhook leads to, and one event more."""
    world = Recovering(rule())
    changes = world.recover(alert(), Recovery(Source.MISSED, {"peer": "http://a"}, NOW - 50 * MINUTE))
    assert kinds(changes) == [Kind.INCIDENT_OPENED, Kind.RUN_CREATED, Kind.ALERT_RECOVERED]
    assert changes.events[-1].data == {"fingerprint": alert().fingerprint, "source": "missed", "peer": "http://a"}
    assert len(changes.runs) == 1


def test_age_of_a_missed_alert_counts_from_its_senders_last_word() -> None:
    """`max_age` must see that nobody has confirmed it for long; a sender's clock ahead of ours makes it no younger than now."""
    for updated, confirmed in ((NOW - HOUR, NOW - HOUR), (NOW + HOUR, NOW), (None, NOW)):
        (made,) = Recovering(rule()).recover(alert(), Recovery(Source.MISSED, {}, updated)).episodes
        assert (made.confirmed_at, made.opened_at) == (confirmed, NOW)


def test_missed_alert_that_a_webhook_brought_meanwhile_changes_nothing() -> None:
    """Between the question and the transaction."""
    world = Recovering(rule())
    world.take(alert())
    changes = world.recover(alert(), Recovery(Source.MISSED))
    assert (changes.episodes, changes.events, changes.runs) == ([], [], [])


def test_late_word_of_a_peer_reopens_nothing() -> None:
    """A peer that was not yet told of the end still lists the alert; within the tombstone that is a late copy."""
    world = Recovering(rule())
    world.take(alert())
    world.take(alert(firing=False, ends_at=NOW + MINUTE), after=MINUTE)
    assert not world.recover(alert(), Recovery(Source.MISSED)).runs


def test_cut_alert_that_is_known_is_confirmed() -> None:
    """As its webhook would have done, were it not cut."""
    world = Recovering(rule())
    world.take(alert())
    world.now += HOUR
    (made,) = world.recover(alert(), Recovery(Source.TRUNCATED, {}, NOW + 59 * MINUTE)).episodes
    assert made.confirmed_at == NOW + 59 * MINUTE
    (made,) = world.recover(alert(), Recovery(Source.TRUNCATED, {}, NOW - HOUR)).episodes
    assert made.confirmed_at == NOW + 59 * MINUTE


def test_gone_alert_resolves_its_incident_and_says_why() -> None:
    """The normal end, with the reason before it."""
    world = Recovering(rule())
    world.take(alert())
    world.now += HOUR
    gone = ended(world.snapshot.episodes[alert().fingerprint], absent=15 * MINUTE, peers=[GOOD])
    changes = world.recover(gone.alert, gone.recovery)
    assert kinds(changes) == [Kind.EPISODE_EXPIRED, Kind.INCIDENT_RESOLVED]
    assert "no Alertmanager has known the alert for 15m" in str(changes.events[0].data["reason"])
    assert changes.incidents[0].state is IncidentState.RESOLVED
    assert changes.episodes[0].closed_at == world.now


def test_episode_that_was_confirmed_meanwhile_does_not_end() -> None:
    """A webhook that comes between the look and the transaction wins; so does a new episode of the same alert."""
    world = Recovering(rule())
    world.take(alert())
    gone = ended(world.snapshot.episodes[alert().fingerprint], absent=HOUR, peers=[GOOD])
    world.take(alert(), after=MINUTE)
    assert world.recover(gone.alert, gone.recovery).episodes == []
    world.take(alert(firing=False, ends_at=NOW + 2 * MINUTE), after=MINUTE)
    world.take(alert(starts_at=NOW + HOUR), after=HOUR)
    assert world.recover(gone.alert, gone.recovery).episodes == []


def test_alert_of_the_future_ends_too() -> None:
    """A sender's clock that was ahead must not keep its episode open for ever."""
    world = Recovering(rule())
    world.take(alert(starts_at=NOW + 24 * HOUR))
    gone = ended(world.snapshot.episodes[alert().fingerprint], absent=HOUR, peers=[GOOD])
    assert kinds(world.recover(gone.alert, gone.recovery)) == [Kind.EPISODE_EXPIRED, Kind.INCIDENT_RESOLVED]


def test_moments_that_cannot_be_are_no_moments() -> None:
    """Whatever `updatedAt` holds."""
    for raw in ("0001-01-01T00:00:00.000Z", "9999-12-31T23:59:59+00:00", "soon", None, 5, "2026-11-21T12:00:00"):
        made = picture()
        made.add({**listed(alert()), "updatedAt": raw}, peer="http://a")
        assert made.found[0].recovery.confirmed_at is None
    made = picture()
    made.add({**listed(alert()), "updatedAt": "2026-11-21T13:00:00.123456789+01:00"}, peer="http://a")
    assert made.found[0].recovery.confirmed_at == datetime(2026, 11, 21, 12, 0, 0, 123456, tzinfo=UTC)
