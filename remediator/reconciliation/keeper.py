"""Reconciling with Alertmanager, round after round: what was missed is taken in, what nobody will end is ended.

A round begins soon after the start and then every so often; what a webhook left out is asked for at once. Everything found goes the
way that webhooks go, so that nothing is done that a webhook would not have done, and what both bring is one. Several daemons may do
this at once without harm.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog

from remediator.alerts import Webhook
from remediator.errors import RemediatorError, TemporaryError
from remediator.events import Kind
from remediator.ingest.intake import began_anew, is_unowned, late_copy
from remediator.ingest.receiving import Receiving
from remediator.ingest.recovery import Source, listed
from remediator.metrics import Metrics
from remediator.model import JSON, Alert, Episode
from remediator.reconciliation.findings import (
    Absences,
    Doubt,
    Found,
    PeerAnswer,
    Picture,
    Unanswered,
    Wanted,
    doubt_of,
    ended,
    narrow,
    unanswered,
)
from remediator.reconciliation.peers import Patience, Peers
from remediator.settings import Settings
from remediator.settings.systems import ReconciliationSettings
from remediator.stopping.watchdog import lost
from remediator.store.protocol import Reads, Store

MOST: Final = 5_000
"""Most alerts that one question may bring in, or one round end; the rest is for the next."""
MOST_GROUPS: Final = 100
"""Most cut groups that wait to be asked for; a round finds what is missed of the others."""
MOST_NAMED: Final = 20
"""Most receivers that are warned about."""
PORTION: Final = 50
"""How many episodes are looked up, or ended, between two other things."""
PAGE: Final = 200
SPREAD: Final = 2.0
"""Seconds within which the first round begins, so that daemons started together don't all ask at once."""
PAUSE: Final = 0.5
"""Seconds between a cut webhook and asking for the rest, so that a storm of them is few questions."""
AGAIN: Final = 10.0
"""Seconds after which a round is repeated that the store broke off."""
LOOK: Final = 5.0
"""Seconds after which changed settings are noticed."""

Note = Callable[[Kind, Mapping[str, JSON]], Awaitable[object]]
"""Appends an event to the system chain."""


@dataclass(frozen=True)
class Truncation:
    """A group of which a webhook left some alerts out."""

    receiver: str
    key: str
    labels: Mapping[str, str]
    count: int
    failed: bool = False
    """It has been asked for in vain."""


class Reconciliation:
    """Holds the store against what Alertmanager lists. `run` is for ever; `heard` is told of every webhook."""

    def __init__(
        self,
        store: Store,
        receiving: Receiving,
        peers: Peers,
        *,
        settings: Callable[[], Settings],
        matches: Callable[[Alert], bool],
        metrics: Metrics,
        note: Note,
        scrub: Callable[[JSON], JSON],
    ) -> None:
        """Hold on to the parts.

        `settings` gives those in force, `matches` whether a rule takes an alert; `scrub` takes secrets out of what `note` keeps.
        """
        self._store = store
        self._receiving = receiving
        self._peers = peers
        self._settings = settings
        self._matches = matches
        self._metrics = metrics
        self._note = note
        self._scrub = scrub
        self._absences = Absences()
        self._asked: frozenset[str] = frozenset()
        self._doubt: Doubt | None = None
        self._contradicted: frozenset[tuple[str, datetime | None]] = frozenset()
        """Fingerprint and doubted end of the episodes whose alerts were listed by the last round all the same."""
        self._said: dict[str, str] = {}
        self._unanswered: Unanswered | None = None
        self._cut: dict[tuple[str, str], Truncation] = {}
        self._unnamed: set[str] = set()
        self._wake = asyncio.Event()
        self._log = structlog.get_logger("remediator.reconciliation")

    @property
    def _bounds(self) -> ReconciliationSettings:
        return self._settings().reconciliation

    @property
    def unanswered(self) -> Unanswered | None:
        """Which Alertmanagers did not answer when they were asked last; None when all did, or none is asked."""
        return self._unanswered if self._connections() else None

    def _connections(self) -> list[str]:
        """Return the connections to ask, none when it is switched off."""
        settings = self._settings()
        wanted = settings.reconciliation
        return [name for name in wanted.connections if name in settings.all_connections] if wanted.enabled else []

    # --- when

    async def run(self) -> None:
        """Reconcile until cancelled."""
        due = time.monotonic() + random.uniform(0, SPREAD)  # noqa: S311 - to spread load, not to keep a secret
        while True:
            wait = min(due - time.monotonic(), LOOK)
            if wait <= 0:
                began, well = time.monotonic(), await self.round()
                every = self._bounds.every.total_seconds()
                due = began + (every if well else min(every, AGAIN)) * random.uniform(0.9, 1.1)  # noqa: S311
            elif await self._woken(wait):
                await asyncio.sleep(PAUSE)
                await self._ask_for_cut()
            due = min(due, time.monotonic() + 1.1 * self._bounds.every.total_seconds())

    async def _woken(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return False
        self._wake.clear()
        return True

    def heard(self, webhook: Webhook) -> None:
        """Hear of a webhook that was taken: remember a cut group, and warn when its receiver is not among those that are asked for."""
        unnamed = webhook.receiver not in self._bounds.receivers
        if not (unnamed or webhook.truncated) or not self._connections():
            return
        if unnamed and webhook.receiver:
            self._warn_unnamed(webhook.receiver)
        if not webhook.truncated:
            return
        key = (webhook.receiver, webhook.group_key)
        before = self._cut.get(key)
        if before is None and len(self._cut) >= MOST_GROUPS:
            self._metrics.reconciliation_cut_groups.labels("left").inc()
            return
        failed = before is not None and before.failed
        self._cut[key] = Truncation(webhook.receiver, webhook.group_key, webhook.group_labels, webhook.truncated, failed)
        self._wake.set()

    def _warn_unnamed(self, receiver: str) -> None:
        if receiver not in self._unnamed and len(self._unnamed) < MOST_NAMED:
            self._unnamed.add(receiver)
            self._log.warning(
                "reconciliation.receiver_unnamed", receiver=receiver[:200], hint="name it in reconciliation.receivers, or nothing is found"
            )

    # --- a round

    async def round(self) -> bool:
        """Hold everything against Alertmanager once; tell whether it got to its end. Never raises `RemediatorError`."""
        names = self._connections()
        if not names:
            return True
        began = time.monotonic()
        try:
            outcome = await self._reconcile(names)
        except RemediatorError as error:
            outcome = "failed"
            self._log.warning("reconciliation.failed", error=str(error))
        self._metrics.reconciled(outcome, time.monotonic() - began, at=datetime.now(UTC).timestamp())
        return outcome != "failed"

    async def _reconcile(self, names: Sequence[str]) -> str:
        bounds = self._bounds
        now = datetime.now(UTC)
        wanted = Wanted(Source.MISSED, frozenset(bounds.receivers), now - bounds.grace, MOST, {}, ahead=now + bounds.grace)
        picture, answers = await self._ask(names, wanted)
        doubt, reason = doubt_of(answers, settle=bounds.settle, needs_alerts=bounds.needs_alerts)
        await self._take_missed(picture, answers)
        await self._end_gone(picture, answers, doubt=doubt, reason=reason)
        await self._ask_for_cut()
        return "complete" if doubt is None else "doubtful"

    async def _ask(self, names: Sequence[str], wanted: Wanted) -> tuple[Picture, list[PeerAnswer]]:
        picture = Picture(wanted, self._matches)
        patience = Patience(self._bounds.timeout, self._bounds.max_bytes)
        answers = await self._peers.read(names, picture, filters=narrow(wanted.labels), patience=patience)
        for reason in picture.refused:
            self._metrics.rejected(reason)
        if picture.left:
            self._log.warning("reconciliation.too_many", taken=MOST, left=picture.left)
        self._unanswered = unanswered(answers, self._unanswered, now=datetime.now(UTC))
        self._say("peers", "" if self._unanswered is None else self._unanswered.words)
        return picture, answers

    def _say(self, about: str, words: str) -> None:
        """Log what is wrong when it begins, changes and ends, not each minute."""
        if words != self._said.get(about, ""):
            (self._log.warning if words else self._log.info)(f"reconciliation.{about}", problem=words or "none any more")
        self._said[about] = words

    async def _take_missed(self, picture: Picture, answers: Sequence[PeerAnswer]) -> None:
        found = await self._unknown(picture.found)
        mutes = [answer.url for answer in answers if answer.mutes]
        if mutes and not self._bounds.despite_time_intervals:
            words = f"{', '.join(mutes)}: routes may be muted by time, which its alerts don't show; what was missed is not taken in"
            self._say("muted", words)
            return
        self._say("muted", "")
        if found:
            opened = await self._receiving.recover([(one.alert, one.recovery) for one in found])
            self._log.warning("reconciliation.recovered", alerts=len(found), incidents=list(opened[:20]))

    async def _unknown(self, found: Sequence[Found]) -> list[Found]:
        """Return those alerts of which the store does not know that they fire."""
        tombstone = self._settings().limits.tombstone
        unknown: list[Found] = []
        for begin in range(0, len(found), PORTION):
            portion = found[begin : begin + PORTION]
            snapshot = await self._store.read(Reads(fingerprints=[one.alert.fingerprint for one in portion]))
            for one in portion:
                episode = snapshot.episodes.get(one.alert.fingerprint)
                if _is_news(one.alert, episode, now=snapshot.now, tombstone=tombstone):
                    unknown.append(one)
            await asyncio.sleep(0)
        return unknown

    # --- what is gone

    async def _end_gone(self, picture: Picture, answers: Sequence[PeerAnswer], *, doubt: Doubt | None, reason: str) -> None:
        bounds, asked = self._bounds, frozenset(answer.url for answer in answers)
        if asked != self._asked:  # what others did not know proves nothing about these
            self._asked, self._absences = asked, Absences()
        absences = self._absences
        absences.begin(now=time.monotonic(), certain=doubt is None, most=2 * bounds.every)
        gone: list[Found] = []
        doubted: list[Episode] = []
        absent, before = 0, None
        pauses, watch = await self._store.pauses(), self._settings().watchdog.watch
        while True:
            page = await self._store.episodes(open_only=True, before=before, limit=PAGE)
            for episode in page.items:
                if not isinstance(episode, Episode):
                    continue
                if episode.fingerprint in picture.known:
                    doubted += [episode] if episode.ends_at is not None else []
                    continue
                absent += 1
                if not watch.watches(episode.labels) and lost(pauses, episode.labels) is not None:
                    continue  # nobody tells Alertmanager either: how long it has known nothing is counted anew once the watchdog is back
                lasted = absences.look(episode)
                if bounds.close_after is not None and doubt is None and lasted >= bounds.close_after and len(gone) < MOST:
                    gone.append(ended(episode, absent=lasted, peers=answers))
            before = page.next
            if before is None:
                break
            await asyncio.sleep(0)
        absences.end()
        await self._keep_open(doubted)
        self._metrics.reconciliation_absent.set(absent)
        self._metrics.reconciliation_alerts.set(len(picture.known))
        contradicted = f"{absences.contradicted} alerts come by webhook that no Alertmanager asked knows" if absences.contradicted else ""
        self._say("contradicted", contradicted)
        await self._tell_doubt(doubt, reason, absent)
        if gone:
            await self._receiving.recover([(one.alert, one.recovery) for one in gone])
            self._log.warning("reconciliation.expired", episodes=len(gone))

    async def _keep_open(self, doubted: Sequence[Episode]) -> None:
        """Take back doubted ends of what this round and the last one list: one round may have asked before the end was told."""
        found = [one for one in doubted if (one.fingerprint, one.ends_at) in self._contradicted]
        self._contradicted = frozenset((one.fingerprint, one.ends_at) for one in doubted)
        if found:
            await self._receiving.recover([listed(one) for one in found])
            self._log.warning("reconciliation.fires_on", episodes=len(found))

    async def _tell_doubt(self, doubt: Doubt | None, reason: str, absent: int) -> None:
        """Tell why episodes stay open although nobody lists their alerts, once for each reason."""
        told = doubt if absent else None
        if told is not None and told is not self._doubt:
            await self._note(Kind.RECONCILIATION_DOUBTED, {"doubt": told.value, "reason": reason, "episodes": absent})
        self._doubt = told

    # --- what webhooks left out

    async def _ask_for_cut(self) -> None:
        """Ask for what webhooks left out, group by group; what can't be had now stays for the next round."""
        cut, self._cut = self._cut, {}
        for key, group in cut.items():
            try:
                await self._recover_group(group)
            except RemediatorError as error:
                await self._note_cut_failure(group, str(error))
                self._cut.setdefault(key, Truncation(group.receiver, group.key, group.labels, group.count, failed=True))

    async def _recover_group(self, group: Truncation) -> None:
        names = self._connections()
        if not names:
            return
        picture, answers = await self._ask(names, Wanted(Source.TRUNCATED, frozenset({group.receiver}), None, MOST, group.labels))
        if all(answer.error for answer in answers):
            raise TemporaryError("; ".join(answer.error for answer in answers))
        unknown = await self._unknown(picture.found)
        await self._receiving.recover([(one.alert, one.recovery) for one in picture.found])
        self._metrics.reconciliation_cut_groups.labels("recovered").inc()
        if unknown or group.failed:
            await self._note_cut(group, recovered=len(unknown), error="")

    async def _note_cut_failure(self, group: Truncation, error: str) -> None:
        self._metrics.reconciliation_cut_groups.labels("failed").inc()
        self._log.warning("reconciliation.cut_group_failed", receiver=group.receiver[:200], truncated=group.count, error=error)
        if group.failed:
            return
        try:
            await self._note_cut(group, recovered=0, error=error)
        except RemediatorError as failure:
            self._log.warning("reconciliation.unnoted", error=str(failure))

    async def _note_cut(self, group: Truncation, *, recovered: int, error: str) -> None:
        labels = self._scrub(dict(group.labels))
        data = {"receiver": group.receiver, "group": labels, "truncated": group.count, "recovered": recovered, "error": error}
        await self._note(Kind.ALERTS_TRUNCATED, data)


def _is_news(alert: Alert, episode: Episode | None, *, now: datetime, tombstone: timedelta) -> bool:
    """Tell whether no open episode knows an alert that is listed, and it is no late copy of a closed one.

    One that is known and nobody's is news too: no rule took it when it was told, or its webhook came to a replica whose rules are older.
    """
    if episode is None:
        return True
    if not episode.open:
        return not late_copy(alert, episode, now=now, tombstone=tombstone)
    return is_unowned(episode) or began_anew(alert, episode)
