"""Telling people: every message reaches every receiver, whatever a single message, receiver or reload does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from remediator.escalation.levels import Level, Policy, Receiver
from remediator.escalation.outbox import BATCH, MOST_DUE, OTHERS_AGAIN, Outbox
from remediator.escalation.words import text_of
from remediator.events import Kind
from remediator.model import ChainedEvent, RunState, StepState
from remediator.records import STORM, SYSTEM_CHAIN, Message, MessageKind, Pause, Step
from remediator.store.protocol import Changes, Reads
from remediator.store.sqlite import SqliteStore
from remediator.storms.breaker import WITHHELD_BY, name_of
from tests.servers.ports import eventually
from tests.store.make import NOW, incident, run

SLACK = Receiver("notify.slack", {"connection": "chat", "channel": "#ops"})


class Line:
    """Stands for the way to the receivers: a double, because faults, hangs and bugs must come on demand."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str]] = []
        self.fault: Callable[[str, Mapping[str, Any]], Awaitable[str | None]] | None = None

    async def notify(self, name: str, params: Mapping[str, Any], *, key: str, values: Any, timeout: Any) -> str | None:  # noqa: ASYNC109
        if self.fault is not None and (fault := await self.fault(name, params)) is not None:
            return fault
        self.sent.append((str(params.get("channel", name)), key.split("/", 1)[0]))
        return None


class Post:
    """A store with messages, and an outbox that delivers them."""

    def __init__(self, store: SqliteStore) -> None:
        self.store, self.line, self.events = store, Line(), list[ChainedEvent]()
        self.receivers: Sequence[Receiver] = (SLACK,)
        self.outbox = Outbox(store, self.line, lambda name: Policy(name, (Level(1, tuple(self.receivers)),)), public_url=lambda: None)  # type: ignore[arg-type]
        store.on_commit(self.events.extend)

    async def put(self, *keys: str) -> None:
        now = datetime.now(UTC) - timedelta(seconds=1)
        messages = [Message(f"{key}/page/0", MessageKind.PAGE, "default", key, {"rule": "r"}, now) for key in keys]
        await self.store.transact(Reads(), lambda _snapshot: Changes(messages=messages))
        self.outbox.wake()

    def said(self, kind: Kind) -> list[Mapping[str, Any]]:
        return [event.data for event in self.events if event.kind == kind]


@pytest.fixture
async def post(tmp_path: Path) -> AsyncIterator[Post]:
    """Start an outbox on an empty store."""
    store = SqliteStore(tmp_path / "state.sqlite")
    await store.open()
    made = Post(store)
    made.outbox.start()
    yield made
    await made.outbox.aclose()
    await store.aclose()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what it waits for is on disk
            await asyncio.sleep(0.01)


async def test_poison_message_does_not_keep_a_page_from_anybody(post: Post) -> None:
    """A message that can't even be put together is put off and told; the next one goes out."""
    plain = post.store.incident

    async def incident(ident: str) -> Any:
        if ident == "poison":
            raise ValueError("what is this?")
        return await plain(ident)

    post.store.incident = incident  # type: ignore[method-assign,assignment]
    with capture_logs() as logs:
        await post.put("poison", "INC-1")
        await until(lambda: ("#ops", "INC-1") in post.line.sent)
        await post.put("INC-2")
        await until(lambda: ("#ops", "INC-2") in post.line.sent)
    assert [data["key"] for data in post.said(Kind.MESSAGE_FAILED)] == ["poison/page/0"]
    assert any(entry["event"] == "message.failed" and entry["log_level"] == "error" for entry in logs)


async def test_outbox_survives_a_bug_in_reading(post: Post) -> None:
    """The loop that pages never ends because of one exception."""
    plain, calls = post.store.due_messages, 0

    async def due_messages(**named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise KeyError("bug")
        return await plain(**named)

    post.store.due_messages = due_messages  # type: ignore[method-assign]
    await post.put("INC-1")
    post.outbox.wake()
    await until(lambda: calls > 0)
    post.outbox.wake()
    await until(lambda: post.line.sent == [("#ops", "INC-1")])


async def test_policy_without_receivers_is_loud(post: Post) -> None:
    """A page that goes nowhere is never called delivered: an event, an error in the log, and another attempt."""
    post.receivers = ()
    with capture_logs() as logs:
        await post.put("INC-1")
        await until(lambda: bool(post.said(Kind.MESSAGE_FAILED)))
    assert "names nobody" in post.said(Kind.MESSAGE_FAILED)[0]["error"]
    assert post.said(Kind.MESSAGE_DELIVERED) == []
    assert any(entry["log_level"] == "error" for entry in logs)
    assert (await post.store.counts())["messages.undelivered"] == 1


async def test_hanging_receiver_delays_no_other_page(post: Post) -> None:
    """One dead chat costs its own messages time, not those of other receivers or incidents."""
    hang = asyncio.Event()

    async def fault(_name: str, params: Mapping[str, Any]) -> str | None:
        if params["channel"] == "#dead":
            await hang.wait()
        return None

    post.line.fault = fault
    post.receivers = (Receiver("notify.slack", {"connection": "chat", "channel": "#dead"}), SLACK)
    await post.put("INC-1", "INC-2")
    await until(lambda: sorted(post.line.sent) == [("#ops", "INC-1"), ("#ops", "INC-2")])
    hang.set()


def hanging(post: Post) -> asyncio.Event:
    """Have every receiver hang until the event is set, but for that of the policy `other`, which is well."""
    other = Receiver("notify.slack", {"connection": "chat", "channel": "#other"})
    post.outbox._policies = lambda name: Policy(name, (Level(1, (other if name == "other" else SLACK,)),))
    hang = asyncio.Event()

    async def fault(_name: str, params: Mapping[str, Any]) -> str | None:
        await (asyncio.sleep(0) if params["channel"] == "#other" else hang.wait())
        return None

    post.line.fault = fault
    return hang


async def test_page_goes_before_all_else_that_waits_for_a_receiver_that_hangs(post: Post) -> None:
    """Hundreds of updates that are due since long cost a new page no more time than those that are under way."""
    hang = hanging(post)
    now = datetime.now(UTC) - timedelta(minutes=1)
    updates = [Message(f"INC-{one}/told", MessageKind.UPDATE, "default", f"INC-{one}", {"rule": "r"}, now) for one in range(3 * BATCH)]
    await post.store.transact(Reads(), lambda _snapshot: Changes(messages=updates))
    post.outbox.wake()
    await until(lambda: len(post.outbox._flying) == BATCH)
    await post.put("urgent")
    hang.set()
    await until(lambda: len(post.line.sent) == 3 * BATCH + 1)
    assert post.line.sent.index(("#ops", "urgent")) <= 2 * BATCH


async def test_what_is_new_goes_at_once_while_pages_hang_since_long(post: Post) -> None:
    """A pager that is away for an hour keeps neither a page nor a word, for people whose receiver is well, however many wait for it."""
    hang = hanging(post)
    now = datetime.now(UTC) - timedelta(minutes=1)
    tried = [Message(f"INC-{one}/page/0", MessageKind.PAGE, "default", f"INC-{one}", {"rule": "r"}, now, 7) for one in range(3 * BATCH)]
    words = [Message(f"WORD-{one}/told", MessageKind.UPDATE, "default", f"WORD-{one}", {"rule": "r"}, now, 7) for one in range(3 * BATCH)]
    await post.store.transact(Reads(), lambda _snapshot: Changes(messages=[*tried, *words]))
    post.outbox.wake()
    await until(lambda: len(post.outbox._flying) == OTHERS_AGAIN)
    new = [Message(f"{kind}/1", kind, "other", f"NEW-{kind}", {"rule": "r"}, now) for kind in (MessageKind.PAGE, MessageKind.UPDATE)]
    await post.store.transact(Reads(), lambda _snapshot: Changes(messages=new))
    post.outbox.wake()
    await until(lambda: len(post.line.sent) == 2)
    hang.set()
    await until(lambda: len(post.line.sent) == 6 * BATCH + 2)


async def test_words_are_not_hidden_by_pages_that_fail_however_many_are_due(post: Post) -> None:
    """More pages that were tried before than are read at once: what else is due, for people whose receiver is well, is told."""
    hanging(post)
    now = datetime.now(UTC) - timedelta(minutes=1)
    pages = [Message(f"INC-{one}/page/0", MessageKind.PAGE, "default", f"INC-{one}", {"rule": "r"}, now, 7) for one in range(MOST_DUE + 1)]
    words = [Message(f"WORD-{one}/told", MessageKind.UPDATE, "other", f"WORD-{one}", {"rule": "r"}, now, one) for one in range(2)]
    await post.store.transact(Reads(), lambda _snapshot: Changes(messages=[*pages, *words]))
    post.outbox.wake()
    await until(lambda: len(post.line.sent) == 2)
    assert sorted(post.line.sent) == [("#other", "WORD-0"), ("#other", "WORD-1")]


async def test_receivers_that_move_in_the_policy_are_neither_skipped_nor_told_twice(post: Post) -> None:
    """Who has a message is remembered by what the receiver is, not by its place in the list."""
    second = Receiver("notify.slack", {"connection": "chat", "channel": "#boss"})
    failing = True

    async def fault(_name: str, params: Mapping[str, Any]) -> str | None:
        return "down" if failing and params["channel"] == "#boss" else None

    post.line.fault = fault
    post.receivers = (SLACK, second)
    await post.put("INC-1")
    await until(lambda: bool(post.said(Kind.MESSAGE_FAILED)))
    failing, post.receivers = False, (second, SLACK)
    await post.outbox.aclose()  # from here on this test alone delivers
    (message,) = await _undelivered(post)
    assert len(message.delivered_to) == 1
    await post.outbox._deliver(message)
    assert post.line.sent == [("#ops", "INC-1"), ("#boss", "INC-1")]


async def test_delivery_under_way_comes_to_its_end_before_it_stops(post: Post) -> None:
    """A restart sends nobody the same page twice, and delays none, unless its receiver hangs."""
    begun, goes_on = asyncio.Event(), asyncio.Event()

    async def slow(_name: str, _params: Mapping[str, Any]) -> str | None:
        begun.set()
        await goes_on.wait()
        return None

    post.line.fault = slow
    await post.put("INC-1")
    await begun.wait()
    stopping = asyncio.create_task(post.outbox.aclose())
    await asyncio.sleep(0)
    goes_on.set()
    await stopping
    assert post.line.sent == [("#ops", "INC-1")]
    assert len(post.said(Kind.MESSAGE_DELIVERED)) == 1
    assert await _undelivered(post) == []


async def test_receiver_that_hangs_does_not_keep_it_from_stopping(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was cut off is still to be delivered."""
    monkeypatch.setattr("remediator.escalation.outbox.LAST_CALL", timedelta(milliseconds=50))
    begun = asyncio.Event()

    async def hangs(_name: str, _params: Mapping[str, Any]) -> str | None:
        begun.set()
        await asyncio.Event().wait()
        return None

    post.line.fault = hangs
    await post.put("INC-1")
    await begun.wait()
    async with asyncio.timeout(5):
        await post.outbox.aclose()
    assert [message.key for message in await _undelivered(post)] == ["INC-1/page/0"]


async def test_clock_ahead_of_the_store_s_asks_for_nothing_over_and_over(post: Post) -> None:
    """What is due by this machine's clock only is waited for, not polled without a pause."""
    await post.outbox.aclose()
    later = Message("INC-1/page/0", MessageKind.PAGE, "default", "INC-1", {}, datetime.now(UTC) + timedelta(minutes=1))
    await post.store.transact(Reads(), lambda _snapshot: Changes(messages=[later]))
    post.outbox._clock = lambda: datetime.now(UTC) + timedelta(minutes=10)
    assert await post.outbox._pause() == 0.5
    post.outbox._clock = lambda: later.due_at - timedelta(milliseconds=100)
    assert await post.outbox._pause() == pytest.approx(0.1)


async def _undelivered(post: Post) -> list[Message]:
    post.store._clock = lambda: datetime.now(UTC) + timedelta(hours=1)
    return await post.store.due_messages(limit=10)


def test_words_of_an_alert_write_no_line_of_ours() -> None:
    """An annotation with line breaks can't say what to approve."""
    message = Message("k", MessageKind.PAGE, "default", "INC-1", {}, datetime.now(UTC))
    values = {"dry_run": False, "incident": "INC-1", "rule": "r", "state": "", "runbook": "", "link": ""}
    text = text_of(message, {**values, "summary": "down\nApprove: remediator approve OTHER"})
    assert not any(line.startswith("Approve") for line in text.splitlines())


# --- storms


async def test_message_that_a_storm_s_digest_tells_is_not_sent(post: Post) -> None:
    """While the breaker is tripped a page is withheld, with an event that says so; the digests go out side by side."""
    first, second = incident(1), incident(2)
    changed = Step(1, "test.act", StepState.APPLIED)
    runs = [run(of=1), run(of=2, state=RunState.ESCALATED, steps=(changed,), ended_at=NOW, wake_at=None)]
    storm = Pause(STORM, "remediator", "60 incidents opened within 1m, limit 50", NOW, since=NOW)
    name = name_of(storm)
    digests = [Message(f"{name}/{one}/0", MessageKind.DIGEST, one, SYSTEM_CHAIN, {"storm": name}, NOW) for one in ("default", "network")]
    incidents = [replace(one, runs=1) for one in (first, second)]
    await post.store.transact(Reads(), lambda _seen: Changes(pauses=[storm], incidents=incidents, runs=runs, messages=digests))
    await post.put(first.id, second.id)

    async def told() -> bool:
        waits = [row.body.get(WITHHELD_BY) for row in await post.store.messages(first.id)]
        return len(post.line.sent) == 3 and bool(post.said(Kind.MESSAGE_FOLDED)) and waits == [name]

    await eventually(told, what="all that is to be sent is sent", within=5)
    assert sorted(key for _, key in post.line.sent) == [second.id, name, name]
    (folded,) = post.said(Kind.MESSAGE_FOLDED)
    assert folded["key"] == f"{first.id}/page/0"
