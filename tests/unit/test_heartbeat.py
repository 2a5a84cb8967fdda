"""When a beat is sent, and above all when it is not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from actions.alertmanager import AlertmanagerConnection, alive
from remediator.escalation.levels import Level, Policy, Receiver
from remediator.escalation.notice import notice
from remediator.escalation.outbox import Outbox
from remediator.metrics import Metrics
from remediator.permissions.needs import needs
from remediator.records import PROBE, Message, MessageKind
from remediator.registry import Registry
from remediator.settings.stopping import HeartbeatSettings
from remediator.stopping.heartbeat import ALIVE, Heartbeat
from remediator.store.protocol import Changes, Reads
from remediator.store.sqlite import SqliteStore
from remediator.testing import LocalContext
from tests.builders import incident, run
from tests.servers.http import HttpServer, Reply
from tests.servers.ports import eventually

MINUTE = timedelta(minutes=1)


class Fixture:
    """A store on disk with a clock that the test moves, and the heartbeat that looks at it."""

    def __init__(self, path: Path) -> None:
        self.now = datetime.now(UTC)
        self.store = SqliteStore(path, clock=lambda: self.now)
        self.metrics = Metrics(CollectorRegistry())
        self.ended: str | None = None
        self.busy = False
        self.said: list[timedelta] = []
        self.heart = Heartbeat(
            self.store,
            settings=HeartbeatSettings,
            ended=lambda: self.ended,
            busy=lambda: self.busy,
            context=lambda: LocalContext({}),
            say_alive=self._say,
            metrics=self.metrics,
            host="here",
        )

    async def _say(self, _alert: Any, since: datetime, until: datetime) -> None:
        self.said.append(until - datetime.now(UTC))
        assert since < until

    def count(self, outcome: str) -> float:
        found = self.metrics.registry.get_sample_value("remediator_heartbeats_total", {"outcome": outcome})
        assert found is not None
        return found


@pytest.fixture
async def beating(tmp_path: Path) -> AsyncIterator[Fixture]:
    """A daemon's heart, on an open store."""
    made = Fixture(tmp_path / "state.sqlite")
    await made.store.open()
    yield made
    await made.heart.aclose()
    await made.store.aclose()


async def test_beat_needs_a_durable_write_and_leaves_nothing_behind(beating: Fixture) -> None:
    """Working means that something was written and taken back."""
    assert await beating.heart.ails() is None
    assert PROBE not in await beating.store.pauses()


async def test_store_that_takes_nothing_withholds_the_beat(beating: Fixture) -> None:
    """A daemon that can't write takes no alert: whoever waits for its beat must hear of that."""
    await beating.store.aclose()
    assert "the store" in str(await beating.heart.ails())
    await beating.heart.beat(HeartbeatSettings.model_validate({"alertmanager": {}}))
    assert beating.said == []
    assert beating.count("withheld") == 1


async def test_loop_that_ended_withholds_the_beat(beating: Fixture) -> None:
    """The process lives, but does not do all that it must."""
    beating.ended = "outbox has ended"
    assert await beating.heart.ails() == "outbox has ended"


async def test_run_that_nobody_looks_at_withholds_the_beat(beating: Fixture) -> None:
    """A run that has been due for minutes while there is room for it: nobody takes it."""
    due = run(wake_at=beating.now, created_at=beating.now, entered_at=beating.now)
    await beating.store.transact(Reads(), lambda _: Changes(incidents=[incident()], runs=[due], rule_texts={due.rule_hash: {}}))
    assert await beating.heart.ails() is None
    beating.now += 3 * MINUTE
    assert "a run has been due" in str(await beating.heart.ails())
    beating.busy = True
    assert await beating.heart.ails() is None, "with all hands full it waits its turn"


async def test_message_that_nobody_delivers_withholds_the_beat(beating: Fixture) -> None:
    """What people were to be told has been lying there for minutes."""
    message = notice("one", "summary", "text", policy="default", due=beating.now, dry_run=False)
    await beating.store.transact(Reads(), lambda _: Changes(messages=[message]))
    assert await beating.heart.ails() is None
    beating.now += 3 * MINUTE
    assert "a message has been due" in str(await beating.heart.ails())


async def test_beat_is_posted_to_a_secret_url_that_nobody_sees(beating: Fixture, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The URL of a dead man's switch is a secret: it is read at each beat, and no error holds it."""
    async with HttpServer() as server:
        secret = tmp_path / "url"
        secret.write_text(f"{server.url}/ping/0451")
        settings = HeartbeatSettings.model_validate({"url": {"file": str(secret)}, "alertmanager": {}})
        server.default = Reply(200)
        await beating.heart.beat(settings)
        (received,) = server.received
        assert (received.method, received.path) == ("POST", "/ping/0451")
        assert b'"from": "remediator"' in received.body
        assert beating.count("sent") == 1
        (left,) = beating.said
        assert 2.9 * MINUTE < left <= 3 * MINUTE
        server.default = Reply(500)
        await beating.heart.beat(settings)
        assert beating.count("failed") == 1
        assert "0451" not in capfd.readouterr().out
        assert len(beating.said) == 2, "who does not answer keeps the beat from nobody else"


async def test_page_that_reaches_nobody_is_known_until_somebody_has_it(tmp_path: Path) -> None:
    """People who can't be told hear of it from whoever misses the beat. A page that one of several receivers has is no reason."""
    now, refuses = [datetime.now(UTC)], {"first": True, "second": True}

    class Line:
        """Stands for the way to the receivers: a double, because it must refuse and accept on demand."""

        async def notify(self, name: str, params: Any, **_named: Any) -> str | None:
            return "it is broken" if refuses[params["channel"]] else None

    store = SqliteStore(tmp_path / "outbox.sqlite", clock=lambda: now[0])
    await store.open()
    receivers = [Receiver("notify.slack", {"connection": "chat", "channel": channel}) for channel in refuses]
    outbox = Outbox(
        store,
        Line(),  # type: ignore[arg-type]
        lambda name: Policy(name, (Level(1, tuple(receivers)),)),
        public_url=lambda: None,
        clock=lambda: now[0],
    )
    page = Message("INC-1/page/0", MessageKind.PAGE, "default", "INC-1", {"rule": "r"}, now[0])
    await store.transact(Reads(), lambda _: Changes(messages=[page]))
    outbox.start()
    try:

        async def tried() -> bool:
            outbox.wake()
            return bool(outbox._failing)

        await eventually(tried, what="it was tried")
        assert outbox.unreached(2 * MINUTE) is None
        now[0] += 3 * MINUTE
        assert outbox.unreached(2 * MINUTE) == "INC-1/page/0"
        refuses["first"] = False

        async def reached() -> bool:
            outbox.wake()
            return outbox.unreached(2 * MINUTE) is None

        await eventually(reached, what="somebody has it")
    finally:
        await outbox.aclose()
        await store.aclose()


def test_heartbeat_needs_to_post_alerts_and_nothing_else() -> None:
    """The rights that are generated for Alertmanager hold what the heartbeat does; the alert's name is the one that is never remedied."""
    connection = AlertmanagerConnection.model_validate({"urls": ["http://alertmanager.example.com"]})
    written = {"heartbeat": {"alertmanager": {"connection": "alertmanager"}}}
    with_it, without = (needs([], Registry(), {"alertmanager": connection}, written=one)[0].rights for one in (written, {}))
    assert {(right.verb, right.resource) for right in set(with_it) - set(without)} == {("POST", "/api/v2/alerts")}
    assert alive.NAME == ALIVE
