"""The file that throws the kill switch, against a person who lifts it: what was seen before his word counts no more after it."""

from __future__ import annotations

from pathlib import Path

from prometheus_client import CollectorRegistry

from remediator.metrics import Metrics
from remediator.model import Actor
from remediator.people import operations
from remediator.records import EVERYWHERE, MessageKind
from remediator.replacing import replace
from remediator.settings.stopping import KillSwitchSettings, StopConfigMap
from remediator.stopping.kill_switch import KillSwitches
from remediator.store.protocol import Reads
from remediator.store.sqlite import SqliteStore


async def test_what_was_seen_before_a_resume_throws_nothing_after_it(tmp_path: Path) -> None:
    """The file is looked at for a call while its row is there; then it is taken away and a person resumes, all within a second."""
    store = SqliteStore(tmp_path / "state.sqlite")
    await store.open()
    try:
        file = tmp_path / "stop"
        switches = _switches(store, file)
        file.write_text("migration")
        await switches.look_at_file()
        assert EVERYWHERE in await store.pauses()
        assert switches.stopped() is not None  # a call that was about to be made
        file.unlink()
        assert await switches.still() is None
        await store.transact(Reads(), lambda seen: operations.resume(seen, EVERYWHERE, why="over", actor=Actor("anna")))
        await switches.look_at_file()
        assert await store.pauses() == {}
        assert switches.stopped() is None
    finally:
        await store.aclose()


async def test_switch_that_nobody_is_known_to_have_thrown_rings_until_it_is_lifted(tmp_path: Path) -> None:
    """A file says no name, and a folder that can't be looked into counts as one; a person who pauses by the API has said so himself."""
    store = SqliteStore(tmp_path / "state.sqlite")
    await store.open()
    anna = Actor("anna")
    try:
        file = tmp_path / "stop"
        file.write_text("migration")
        await _switches(store, file).look_at_file()
        (rings,) = await store.due_messages(limit=9)
        assert (rings.kind, rings.policy) == (MessageKind.PAGE, "default")
        assert "migration" in str(rings.body["text"])
        await store.transact(Reads(), lambda seen: operations.resume(seen, EVERYWHERE, why="over", actor=anna))
        (quiet,) = await store.due_messages(limit=9)
        assert (quiet.kind, quiet.body["occasion"]) == (MessageKind.RESOLVED, rings.body["occasion"])
        await store.update_message(replace(quiet, cancelled=True))
        await store.transact(Reads(), lambda seen: operations.pause(seen, EVERYWHERE, why="deploy", actor=anna))
        await store.transact(Reads(), lambda seen: operations.resume(seen, EVERYWHERE, why="over", actor=anna))
        assert await store.due_messages(limit=9) == []
    finally:
        await store.aclose()


def _switches(store: SqliteStore, file: Path) -> KillSwitches:
    async def annotation(_configmap: StopConfigMap) -> str | None:
        return None

    return KillSwitches(
        store,
        settings=lambda: KillSwitchSettings(file=file),
        annotation=annotation,
        scrub=lambda text: text,
        held=lambda: (),
        metrics=Metrics(CollectorRegistry(), guards=[], actions=[], version="0"),
        host="here",
    )
