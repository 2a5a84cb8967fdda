"""Telling people: delivers the outbox through the notifying actions that an escalation policy names.

At least once, never blocking a run: a message is a row, retried with growing delays, and each receiver that has it is remembered.
"""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import structlog

from remediator import digest, notice
from remediator.errors import RemediatorError, TemporaryError
from remediator.events import Kind
from remediator.execution import Execution
from remediator.model import JSON, Event, IncidentState, RunState, Value
from remediator.model import digest as hash_of
from remediator.records import Incident, Message, MessageKind, Run
from remediator.replacing import replace
from remediator.store.protocol import Store
from remediator.storm import folded_into

FIRST_RETRY = timedelta(seconds=2)
LONGEST_RETRY = timedelta(minutes=5)
LONGEST_SLEEP = timedelta(seconds=5)
DELIVERY_TIMEOUT = timedelta(seconds=20)
BATCH = 40
"""Most incidents whose messages are on their way at a time; due ones are only looked for while fewer than half as many are."""
MOST_DUE = 200


@dataclass(frozen=True)
class Receiver:
    """One way of a policy: a notifying action and its parameters."""

    action: str
    params: Mapping[str, JSON]

    @property
    def name(self) -> str:
        """What the audit calls it: the action and its connection."""
        connection = self.params.get("connection")
        return f"{self.action}:{connection}" if connection else self.action

    @property
    def mark(self) -> str:
        """What a message remembers it by: also its parameters, never its place in the policy, which a reload may change."""
        return f"{self.name}#{hash_of(dict(self.params))[:8]}"


Receivers = Callable[[str], Sequence[Receiver]]
"""Finds a policy's receivers."""


class Outbox:
    """Delivers due messages. `start` once, `aclose` once."""

    def __init__(self, store: Store, execution: Execution, receivers: Receivers, *, public_url: Callable[[], str | None]) -> None:
        self._store = store
        self._execution = execution
        self._receivers = receivers
        self._public_url = public_url
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._flying: dict[str, asyncio.Task[None]] = {}
        """Deliveries under way by incident."""
        self._log = structlog.get_logger("outbox")

    def start(self) -> None:
        """Begin delivering."""
        self._task = asyncio.create_task(self._deliver_due(), name="outbox")

    def wake(self) -> None:
        """Look for due messages now."""
        self._woken.set()

    async def aclose(self) -> None:
        """Stop; what was not delivered stays in the store."""
        tasks = [*([self._task] if self._task is not None else []), *self._flying.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _deliver_due(self) -> None:
        while True:
            self._woken.clear()
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
            except TimeoutError:
                pass

    async def _start_due(self) -> None:
        """Begin to deliver what is due: side by side, since one dead receiver must not hold up a page, but in order for an incident."""
        if len(self._flying) > BATCH // 2:
            return  # to read all that is due each time one has landed would take longer than to deliver it
        for message in await self._store.due_messages(limit=MOST_DUE):
            lane = message.key if message.kind is MessageKind.DIGEST else message.incident
            if lane not in self._flying and len(self._flying) < BATCH:
                task = asyncio.create_task(self._try(message), name=f"message {message.key}")
                self._flying[lane] = task
                task.add_done_callback(functools.partial(self._landed, lane))

    def _landed(self, lane: str, _task: asyncio.Task[None]) -> None:
        self._flying.pop(lane, None)
        self._woken.set()

    async def _pause(self) -> float:
        due = await self._store.next_message()
        longest, shortest = LONGEST_SLEEP.total_seconds(), 0.5 if self._flying else 0.01
        return longest if due is None else min(longest, max(shortest, (due - datetime.now(UTC)).total_seconds()))

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
        """Send one message to every receiver that does not have it yet."""
        incident = await self._store.incident(message.incident)
        run = await self._latest_run(message, incident)
        if not still_wanted(message, incident, run):
            await self._store.update_message(replace(message, cancelled=True))
            return
        storm = folded_into(message, run, await self._store.pauses())
        if storm is not None:
            folded = Event(message.incident, Kind.MESSAGE_FOLDED, datetime.now(UTC), {"key": message.key, "storm": storm})
            await self._store.update_message(replace(message, cancelled=True), events=[folded])
            return
        values = facts_for(message, incident, run, public_url=self._public_url())
        receivers = {receiver.mark: receiver for receiver in self._receivers(message.policy)}
        left = [receiver for mark, receiver in receivers.items() if mark not in message.delivered_to]
        faults = await asyncio.gather(*(self._send(receiver, f"{message.key}/{receiver.mark}", values) for receiver in left))
        reached = [receiver.mark for receiver, fault in zip(left, faults, strict=True) if fault is None]
        errors = [f"{receiver.name}: {fault}" for receiver, fault in zip(left, faults, strict=True) if fault is not None]
        if not receivers:
            self._log.error("message.without_receivers", key=message.key, policy=message.policy)
            errors = [f"escalation policy {message.policy!r} names nobody: this reaches no one until its `notify` is filled in"]
        await self._note(message, (*message.delivered_to, *reached), errors)

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
        now = datetime.now(UTC)
        attempts = message.attempts + 1
        if errors:
            delay = min(FIRST_RETRY * 2 ** min(attempts - 1, 10), LONGEST_RETRY) * random.uniform(0.8, 1.2)  # noqa: S311 - jitter
            after = replace(message, attempts=attempts, delivered_to=tuple(reached), error="; ".join(errors)[:1000], due_at=now + delay)
            event = Event(message.incident, Kind.MESSAGE_FAILED, now, {"key": message.key, "error": after.error, "attempts": attempts})
            self._log.warning("message.failed", key=message.key, error=after.error, attempts=attempts)
            # One event tells that it fails; the retries are counted in the row, so that an outage does not fill the audit.
            await self._store.update_message(after, events=[event] if attempts == 1 else [])
            return
        after = replace(message, attempts=attempts, delivered_to=tuple(reached), delivered_at=now, error="")
        event = Event(message.incident, Kind.MESSAGE_DELIVERED, now, {"key": message.key, "receivers": list(reached)})
        await self._store.update_message(after, events=[event])


def facts_for(message: Message, incident: Incident | None, run: Run | None, *, public_url: str | None) -> Mapping[str, Value]:
    """Return what a message shows, and its text. Facts marked as evidence never get here: only states, names and plans do."""
    if message.kind is MessageKind.DIGEST:
        return digest.facts_of(message, public_url=public_url)
    if notice.is_notice(message):
        return notice.facts_of(message, public_url=public_url)
    body = message.body
    values: dict[str, Value] = {
        "kind": message.kind.value,
        "incident": message.incident,
        "rule": body.get("rule", ""),
        "runbook": body.get("runbook", ""),
        "dry_run": bool(body.get("dry_run")),
        "reason": body.get("reason") or ("" if run is None else run.reason),
        "approval": body.get("approval", ""),
        "run": "" if run is None else run.id,
        "remedy": "" if run is None else run.remedy or "",
        "state": "" if run is None else run.state.value,
        "link": "" if public_url is None else f"{public_url}/api/v1/incidents/{message.incident}",
    }
    if incident is not None:
        values |= {"severity": incident.severity, "summary": incident.summary, "target": incident.target}
    values["text"] = text_of(message, values)
    return values


def text_of(message: Message, values: Mapping[str, Value]) -> str:
    """Write a message as a person reads it first at three in the morning: what, where, what the daemon did, what to do.

    Words from outside stay within their line: an annotation must not write a line of ours, such as what to approve.
    """
    values = {name: " ".join(value.split()) if isinstance(value, str) else value for name, value in values.items()}
    lead = "DRY RUN · " if values["dry_run"] else ""
    lines = [f"{lead}{values.get('severity', '').upper()} {values['incident']}: {values.get('summary', '')} [{values['rule']}]".strip()]
    if message.kind is MessageKind.APPROVAL:
        lines.append(f"Approval wanted: {values['remedy']!r}, because {values['reason']}.")
        steps = message.body.get("steps")
        lines += [f"  {step['step']}. {step['summary']}" for step in steps] if isinstance(steps, list) else []
        lines.append(f"Approve: remediator approve {values['approval']}   Deny: remediator deny {values['approval']}")
    elif message.kind is MessageKind.UPDATE:
        lines.append(f"Run {values['run']} is {message.body.get('subject', '')}: {values['reason']}")
    elif values["state"]:
        lines.append(f"Run {values['run']} is {values['state']}" + (f": {values['reason']}" if values["reason"] else ""))
    if values["runbook"]:
        lines.append(f"Runbook: {values['runbook']}")
    lines.append(f"Timeline: remediator show {values['incident']}" + (f"  {values['link']}" if values["link"] else ""))
    return "\n".join(lines)


def still_wanted(message: Message, incident: Incident | None, run: Run | None) -> bool:
    """Tell whether a message still says something: not a page of what resolved meanwhile, nor a question that was replaced."""
    if incident is None or message.kind in (MessageKind.UPDATE, MessageKind.DIGEST):
        return True
    if message.kind is MessageKind.PAGE:
        return incident.state is not IncidentState.RESOLVED
    return run is None or (run.state is RunState.AWAITING_APPROVAL and run.approval == message.body.get("approval"))
