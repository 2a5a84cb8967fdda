"""Telling people: delivers the outbox through the notifying actions that an escalation policy names.

At least once, never blocking a run: a message is a row, retried with growing delays, and each receiver that has it is remembered.
"""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import cast

import structlog

from remediator.errors import RemediatorError, TemporaryError
from remediator.escalation import climbing, told
from remediator.escalation.levels import Policy, Receiver
from remediator.escalation.pages import (
    TRIED_FOR,
    UNLESS_PAGED,
    Drop,
    Later,
    Send,
    Step,
    Verdict,
    climbs,
    is_paged_by_another,
    to_those_told,
)
from remediator.escalation.words import facts_for, still_wanted
from remediator.events import Kind
from remediator.execution import Execution
from remediator.model import Event, Value
from remediator.records import Incident, Message, MessageKind, Run, keyed
from remediator.replacing import replace
from remediator.stopping.watchdog import lost, reason_of
from remediator.store.protocol import Changes, Reads, Snapshot, Store
from remediator.storms.breaker import WITHHELD_BY, StormLimits, first_digest, folded_into, named, next_digest, withheld, withhold

FIRST_RETRY = timedelta(seconds=2)
SHORTEST_WAIT = timedelta(seconds=1)
MOST_ATTEMPTS = 300
"""So often, in about a day, it is tried to deliver what is no page; pages are tried for as long as their incident is open."""
LONGEST_RETRY = timedelta(minutes=5)
FORGET_FAILING = timedelta(minutes=15)
"""So long a failure counts without another attempt: longer than the longest retry, so that one which another replica tries on runs out."""
LONGEST_SLEEP = timedelta(seconds=5)
MOMENT = timedelta(milliseconds=20)
"""What is committed within so long is looked through once: a run commits several times in a row, and nobody is told sooner than this."""
DELIVERY_TIMEOUT = timedelta(seconds=20)
LAST_CALL = timedelta(seconds=3)
"""So long deliveries under way may take to their end when it stops: one that is cut off is made again, later."""
BATCH = 40
"""Most incidents whose messages are on their way at a time; due ones are only looked for while fewer than half as many are."""
PAGES_AGAIN = 12
"""So many may be on their way when a page is begun that has failed before: while a pager hangs, hundreds of them must leave room."""
OTHERS_AGAIN = 18
"""The same of other messages that have failed before. Fewer than half of `BATCH`, so that what is due goes on to be looked for."""
MOST_DUE = 1000
"""Most due messages that are read at once. The store gives pages and digests first, and of these what nobody has tried yet; of all some."""
URGENT = frozenset({MessageKind.PAGE, MessageKind.DIGEST})
FOLDED_AGAIN = timedelta(minutes=10)
"""A page that was due in a storm looks up again so often: should it be let out at this very moment, it is that late."""
COUNTED_WITHIN = timedelta(seconds=20)
"""A storm whose incidents take longer to count is told without counts."""
MOST_RUNS = 100
"""Runs of an incident, the newest, that a message tells of."""


Policies = Callable[[str], Policy]
"""Finds an escalation policy by name; one that is gone gives the default."""


async def _as_it_is(digest: Message) -> Message | None:
    return digest


@dataclass(frozen=True)
class InForce:
    """What else messages are made of, as it is in force now."""

    contacts: Callable[[], Mapping[str, str]] = dict
    """How to reach whom, by name."""
    counted: Callable[[Message], Awaitable[Message | None]] = _as_it_is
    """Returns a storm's digest with what it tells of now; None while that is nothing to its policy's people."""
    digest_every: Callable[[], timedelta] = lambda: StormLimits.digest_every
    """Time between two digests of a storm."""


class Outbox:
    """Delivers due messages. `start` once, `aclose` once."""

    def __init__(
        self,
        store: Store,
        execution: Execution,
        policies: Policies,
        *,
        public_url: Callable[[], str | None],
        about: InForce | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        on_failing: Callable[[int], None] = lambda _count: None,
    ) -> None:
        """`policies` and `public_url` give what is in force now; links are `/incidents`, `/incidents/ID` and `/status` below the latter.

        `on_failing` hears how many messages could not be delivered when this daemon tried last.
        """
        self._store = store
        self._execution = execution
        self._policies = policies
        self._public_url = public_url
        self._about = about or InForce()
        self._clock = clock
        self._on_failing = on_failing
        self._failing: dict[str, datetime] = {}
        """Messages that could not be delivered, and when that was last tried here; another replica may have had more luck since."""
        self._unreached: dict[str, datetime] = {}
        """Pages among these that nobody has, and since when that is tried."""
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._flying: dict[str, asyncio.Task[None]] = {}
        """Deliveries under way by incident."""
        self._log = structlog.get_logger("outbox")

    def start(self) -> None:
        """Begin delivering."""
        self._task = asyncio.create_task(self._deliver_due(), name="outbox")

    @property
    def alive(self) -> bool:
        """Whether it still looks for what is due."""
        return self._task is not None and not self._task.done()

    def unreached(self, late: timedelta) -> str | None:
        """Return the key of a page that has reached nobody for so long, though it was tried; None when there is none."""
        now = self._clock()
        return next((key for key, since in self._unreached.items() if key in self._failing and now - since >= late), None)

    def wake(self) -> None:
        """Look for due messages now."""
        self._woken.set()

    async def aclose(self) -> None:
        """Stop; what was not delivered stays in the store. Takes `LAST_CALL` at most where a receiver hangs."""
        looking, flying = [self._task] if self._task is not None else [], list(self._flying.values())
        for task in looking:
            task.cancel()
        if flying:
            await asyncio.wait(flying, timeout=LAST_CALL.total_seconds())
        for task in flying:
            task.cancel()
        await asyncio.gather(*looking, *flying, return_exceptions=True)

    async def _deliver_due(self) -> None:
        while True:
            self._woken.clear()
            self._tell_failing()
            try:
                await self._start_due()
                pause = await self._pause()
            except TemporaryError as error:
                self._log.warning("outbox.delayed", error=str(error))
                pause = LONGEST_SLEEP.total_seconds()
            except Exception:  # noqa: BLE001 - whatever it is, pages must go on being sent
                self._log.exception("outbox.crashed")
                pause = LONGEST_SLEEP.total_seconds()
            try:
                async with asyncio.timeout(pause):
                    await self._woken.wait()
                    await asyncio.sleep(MOMENT.total_seconds())
            except TimeoutError:
                pass

    def _tell_failing(self) -> None:
        now = self._clock()
        # What was written down before the clock was set back is as old as now, or nothing would become of its age.
        self._failing = {key: min(at, now) for key, at in self._failing.items() if at > now - FORGET_FAILING}
        self._unreached = {key: min(at, now) for key, at in self._unreached.items() if key in self._failing}
        self._on_failing(len(self._failing))

    async def _start_due(self) -> None:
        """Begin to deliver what is due: side by side, since one dead receiver must not hold up a page, but in order for an incident."""
        if len(self._flying) > BATCH // 2:
            return  # to read all that is due each time one has landed would take longer than to deliver it
        due = await self._store.due_messages(limit=MOST_DUE)
        # What has failed before, for hundreds of incidents maybe, must not keep what nobody has tried yet from a receiver that is well.
        for message in sorted(due, key=lambda one: (one.kind not in URGENT, one.attempts > 0)):
            lane = message.key if message.kind is MessageKind.DIGEST else message.incident
            room = BATCH if not message.attempts else PAGES_AGAIN if message.kind in URGENT else OTHERS_AGAIN
            if lane not in self._flying and len(self._flying) < room:
                task = asyncio.create_task(self._try(message), name=f"message {message.key}")
                self._flying[lane] = task
                task.add_done_callback(functools.partial(self._landed, lane))

    def _landed(self, lane: str, _task: asyncio.Task[None]) -> None:
        self._flying.pop(lane, None)
        self._woken.set()

    async def _pause(self) -> float:
        due = await self._store.next_message()
        if due is None:
            return LONGEST_SLEEP.total_seconds()
        left = (due - self._clock()).total_seconds()
        # What is due by our clock only, which may be ahead of the store's, must not be asked for over and over.
        return min(LONGEST_SLEEP.total_seconds(), max(0.5 if self._flying or left < 0 else 0.01, left))

    async def _try(self, message: Message) -> None:
        """Deliver one message; one that can't even be put together is put off, and said to be so."""
        try:
            await self._deliver(message)
        except TemporaryError as error:
            self._log.warning("outbox.delayed", key=message.key, error=str(error))
            await asyncio.sleep(FIRST_RETRY.total_seconds())
        except Exception as error:  # noqa: BLE001 - a poison message must not keep the others
            self._log.exception("message.failed", key=message.key)
            with suppress(RemediatorError):
                await self._note(message, message.delivered_to, [f"it can't be put together ({type(error).__name__})"])

    async def _deliver(self, message: Message) -> None:
        """Do what is due about one message: send it to every receiver that does not have it yet, put it off, or drop it."""
        before = await self._store.read(Reads())
        if message.due_at > before.now:
            return  # the clock was set back since it was read: it comes again when it is due
        incident = await self._store.incident(message.incident)
        run = await self._latest_run(message, incident)
        if not still_wanted(message, incident, run):
            await self._drop(message)
            return
        storm = None if to_those_told(message) else folded_into(message, run, await self._store.pauses())
        if storm is not None:
            await self._fold(message, storm)
            return
        match await self._decide_or_send(message, incident, run):
            case Send(message=made, receivers=receivers):
                await self._send_all(made, receivers, incident, run, before)
            case Later(message=waiting, why=why):
                await self._put_off(message, waiting, why, before)
            case _:
                await self._drop(message)

    async def _decide_or_send(self, message: Message, incident: Incident | None, run: Run | None) -> Verdict:
        """Decide what becomes of a message; a page about which nothing can be decided goes to everybody who hears of things first."""
        try:
            return await self._decide(message, incident, run)
        except RemediatorError:
            raise
        except Exception:
            if message.kind is not MessageKind.PAGE or incident is None:
                raise
            self._log.exception("page.undecided", key=message.key)
            return Send(message, self._policies(message.policy).first_at(incident.severity, self._clock())[0])

    async def _decide(self, message: Message, incident: Incident | None, run: Run | None) -> Verdict:
        """Decide what becomes of a message; the rows that follow from it are durable before anything is sent."""
        policy = self._policies(message.policy)
        if incident is not None and message.kind in (MessageKind.ACKNOWLEDGED, MessageKind.RESOLVED):
            return await self._word(message, incident, policy)
        if message.kind is MessageKind.DIGEST:
            return await self._digest(message, policy)
        if incident is None or not climbs(message):
            return climbing.other(message, incident, policy, now=self._clock())
        if message.body.get(UNLESS_PAGED) and await self._leaves_it(message, incident):
            return Drop("another page stands for it")
        rows = await self._store.messages(incident.id) if climbing.looks_around(message, incident) else []
        made: list[Step] = []

        def build(snapshot: Snapshot) -> Changes:
            made[:] = [climbing.step(snapshot, message, run, policy, rows=rows)]
            return made[0].changes

        await self._store.transact(Reads(incidents=[incident.id]), build)
        for key in made[0].changes.cancel_messages:
            self._unreached.pop(key, None)
            self._failing.pop(key, None)
        await self._begun(message, made[0].verdict)
        return made[0].verdict

    async def _begun(self, message: Message, verdict: Verdict) -> None:
        """Make durable that a first attempt begins, before it does: should nobody note how it ended, some may have the message."""
        if isinstance(verdict, Send) and verdict.message.body != message.body:
            now = (await self._store.read(Reads())).now
            # Due later, or another replica would send it too.
            await self._store.update_message(replace(verdict.message, due_at=now + TRIED_FOR))

    async def _word(self, message: Message, incident: Incident, policy: Policy) -> Verdict:
        """Decide about the word that somebody has it, or that it is over."""
        away = lost(await self._store.pauses(), incident.subject.labels) if message.kind is MessageKind.RESOLVED else None
        if away is not None:  # it may only be that nobody says any more that it is not over
            return Later(replace(message, due_at=max(self._clock(), message.due_at) + climbing.IN_A_STORM), reason_of(away))
        rows = await self._store.messages(incident.id)
        step = told.word(message, incident, rows, policy, now=self._clock())
        for key in (*step.changes.cancel_messages, *(row.key for row in rows if row.cancelled)):
            self._unreached.pop(key, None)  # nobody needs it any more
        if step.changes.cancel_messages:
            await self._store.transact(Reads(), lambda _snapshot: step.changes)
        await self._begun(message, step.verdict)
        return step.verdict

    async def _leaves_it(self, message: Message, incident: Incident) -> bool:
        """Tell whether another page stands for one; where a storm withheld that, it is due now."""
        rows = await self._store.messages(incident.id)
        if not is_paged_by_another(message, rows):
            return False
        if left := withheld(incident, rows):
            await self._store.transact(Reads(), lambda _snapshot: Changes(release_messages=left))
        return True

    async def _digest(self, message: Message, policy: Policy) -> Verdict:
        """Count what a storm's digest tells of, and queue the next one. What can't be counted is told without counts."""
        now, pauses = self._clock(), await self._store.pauses()
        if message.body.get("phase") == "over":
            return climbing.other(message, None, policy, now=now)
        if named(str(message.body.get("storm")), pauses) is None:
            return Drop("the storm is over")
        try:
            async with asyncio.timeout(COUNTED_WITHIN.total_seconds()):
                counted = await self._about.counted(message)
        except Exception:  # noqa: BLE001 - pages are withheld: whatever is wrong with the counts, people must hear of the storm
            self._log.exception("digest.uncounted", key=message.key)
            counted = message
        if counted is None:
            return Later(replace(message, due_at=max(now, message.due_at) + climbing.IN_A_STORM))
        every = self._about.digest_every()  # counting took a while: by the store's clock as it is now, which may have been set back
        await self._store.transact(Reads(), lambda snapshot: Changes(messages=[next_digest(message, at=snapshot.now + every)]))
        return climbing.other(counted, None, policy, now=now)

    async def _send_all(
        self, message: Message, receivers: Sequence[Receiver], incident: Incident | None, run: Run | None, before: Snapshot
    ) -> None:
        values = await self._values(message, incident, run)
        by_mark = {receiver.mark: receiver for receiver in receivers}
        left = [receiver for mark, receiver in by_mark.items() if mark not in message.delivered_to]
        # A store that was restored makes messages of the same keys again: these are others to whoever remembers the first ones.
        key = keyed(message.key, before.era)
        faults = await asyncio.gather(*(self._send(receiver, f"{key}/{receiver.mark}", values) for receiver in left))
        reached = [receiver.mark for receiver, fault in zip(left, faults, strict=True) if fault is None]
        errors = [f"{receiver.name}: {fault}" for receiver, fault in zip(left, faults, strict=True) if fault is not None]
        if not by_mark:
            severity = "" if incident is None else f" for {incident.severity}"
            self._log.error("message.without_receivers", key=message.key, policy=message.policy)
            errors = [f"escalation policy {message.policy!r} names nobody{severity}: this reaches no one until its `notify` is filled in"]
        if errors and (moved := (await self._store.read(Reads())).set_back - before.set_back):
            message = replace(message, due_at=message.due_at - moved)  # the clock was set back meanwhile, and what waits moved with it
        await self._note(message, (*message.delivered_to, *reached), errors)

    async def _values(self, message: Message, incident: Incident | None, run: Run | None) -> Mapping[str, Value]:
        runs: list[Run] = []
        if incident is not None and incident.runs:
            page = await self._store.runs(incident=incident.id, limit=MOST_RUNS)
            runs = [cast("Run", one) for one in reversed(page.items)]
        return facts_for(
            message, incident, run, public_url=self._public_url(), runs=runs, contacts=self._about.contacts(), now=self._clock()
        )

    async def _drop(self, message: Message, *events: Event) -> None:
        await self._store.update_message(replace(message, cancelled=True), events=events)
        self._failing.pop(message.key, None)

    async def _fold(self, message: Message, storm: str) -> None:
        """Leave it to a storm's digest to tell what a message would. A page is only withheld: it is sent when the storm is over."""
        events = [Event(message.incident, Kind.MESSAGE_FOLDED, self._clock(), {"key": message.key, "storm": storm})]
        known = message.body.get(WITHHELD_BY) == storm
        if not known:
            await self._await_digest(message, storm)
        if message.kind is not MessageKind.PAGE:
            await self._drop(message, *events)
            return
        waiting = withhold(message, storm, until=(await self._store.read(Reads())).now + FOLDED_AGAIN)
        await self._store.update_message(waiting, events=[] if known else events)
        self._failing.pop(message.key, None)

    async def _await_digest(self, message: Message, storm: str) -> None:
        """Queue a storm's first digest for those whom a message was for: they may hear of nothing else. Its key makes it once."""

        def build(snapshot: Snapshot) -> Changes:
            pause = named(storm, snapshot.pauses)
            dry_run = bool(message.body.get("dry_run"))
            return Changes(messages=[first_digest(pause, message.policy, at=snapshot.now, dry_run=dry_run)] if pause is not None else [])

        await self._store.transact(Reads(), build)

    async def _put_off(self, message: Message, waiting: Message, why: str, before: Snapshot) -> None:
        """Write down until when a message waits, and once for each reason that it does. `before`: as it was when that was decided."""
        seen = await self._store.read(Reads())
        moved = seen.set_back - before.set_back  # the clock was set back meanwhile, and what waits moved with it
        # The store's clock may be ahead of ours: what it calls due must not become due again at once, over and over.
        due_at = max(waiting.due_at - moved, seen.now + SHORTEST_WAIT)
        waiting = replace(waiting, body={**waiting.body, "waits": why}, due_at=due_at)
        events = []
        if why and message.body.get("waits") != why:
            data = {"key": message.key, "level": waiting.body.get("level", 1), "until": waiting.due_at.isoformat(), "reason": why}
            events = [Event(message.incident, Kind.MESSAGE_POSTPONED, self._clock(), data)]
        await self._store.update_message(waiting, events=events)
        self._failing.pop(message.key, None)

    async def _latest_run(self, message: Message, incident: Incident | None) -> Run | None:
        ident = message.body.get("run")
        if isinstance(ident, str):
            return await self._store.run(ident)
        if incident is not None and incident.runs:
            return await self._store.run(f"{incident.id}-{incident.runs}")
        return None

    async def _send(self, receiver: Receiver, key: str, values: Mapping[str, Value]) -> str | None:
        """Send to one receiver; return None, or what went wrong."""
        return await self._execution.notify(receiver.action, receiver.params, key=key, values=values, timeout=DELIVERY_TIMEOUT)

    async def _note(self, message: Message, reached: Sequence[str], errors: Sequence[str]) -> None:
        """Write down how far the delivery got, and when to try again."""
        now = self._clock()
        attempts = message.attempts + 1
        if errors:
            delay = min(FIRST_RETRY * 2 ** min(attempts - 1, 10), LONGEST_RETRY) * random.uniform(0.8, 1.2)  # noqa: S311 - jitter
            given_up = attempts >= MOST_ATTEMPTS and message.kind is not MessageKind.PAGE
            error = f"given up after {attempts} attempts: {'; '.join(errors)}" if given_up else "; ".join(errors)
            # The store's clock may be ahead of ours: its due time counts, or a receiver that is down would be asked without a pause.
            due_at = max(now, message.due_at) + delay
            after = replace(message, attempts=attempts, delivered_to=tuple(reached), error=error[:1000], due_at=due_at, cancelled=given_up)
            event = Event(message.incident, Kind.MESSAGE_FAILED, now, {"key": message.key, "error": after.error, "attempts": attempts})
            self._log.warning("message.failed", key=message.key, error=after.error, attempts=attempts)
            self._failing[message.key] = now
            if reached:
                self._unreached.pop(message.key, None)
            elif message.kind is MessageKind.PAGE:
                self._unreached.setdefault(message.key, now)
            # One event tells that it fails; the retries are counted in the row, so that an outage does not fill the audit.
            await self._store.update_message(after, events=[event] if attempts == 1 or given_up else [])
            if given_up:
                self._failing.pop(message.key, None)
            return
        after = replace(message, attempts=attempts, delivered_to=tuple(reached), delivered_at=now, error="")
        data = {"key": message.key, "receivers": list(reached), "message": message.kind.value, "level": message.body.get("level", 1)}
        event = Event(message.incident, Kind.MESSAGE_DELIVERED, now, data)
        await self._store.update_message(after, events=[event])
        self._failing.pop(message.key, None)
