"""The promises of `remediator.store.archive.Archivable`, as tests that every store must pass.

Derive a `Test…` class and give it a `world` fixture, as for `tests/store/contract.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date, timedelta
from typing import Any

import pytest

from remediator import audit
from remediator.errors import Conflict
from remediator.model import ApprovalState, IncidentState, RunState
from remediator.records import SYSTEM_CHAIN, Use
from remediator.store.archive import Archivable, ArchiveReading, ArchiveWriter, Batch, read_archive
from remediator.store.protocol import Store
from tests.store.contract import World, put, see
from tests.store.make import NOW, approval, episode, event, incident, message, run

LATER = NOW + timedelta(days=100)
"""Everything made at `NOW` is old by then."""


def leaving(store: Store) -> Archivable:
    assert isinstance(store, Archivable)
    return store


async def ended(store: Store, number: int, **fields: Any) -> None:
    """Put an incident that is over, with all that an incident can have."""
    name, mark = f"INC-20261121-{number:03d}", f"f{number}"
    of = replace(incident(number), fingerprints=(), state=IncidentState.RESOLVED, resolved_at=NOW, subject=_subject(mark), **fields)
    done = run(1, of=number, state=RunState.SUCCEEDED, ended_at=NOW, wake_at=None, rule_hash=f"text{number}")
    await put(
        store,
        incidents=[of],
        runs=[done],
        episodes=[episode(mark, 1, incident=name, closed_at=NOW, ends_at=NOW), episode(mark, 2, incident=name, closed_at=NOW, ends_at=NOW)],
        approvals=[approval(done, state=ApprovalState.APPROVED)],
        messages=[message(f"{name}/page/0", incident=name, delivered_at=NOW), message(f"{done.id}/x", incident=name, cancelled=True)],
        uses=[Use(done.id, done.rule, done.target, NOW)],
        rule_texts={f"text{number}": {"name": "site-down"}},
        events=[event(name, "incident.opened", fingerprint=mark), event(name), event(name, "incident.resolved", fingerprint=mark)],
    )


def _subject(mark: str) -> Any:
    return replace(incident().subject, fingerprint=mark)


async def write(store: Store, batch: Batch) -> bytes:
    """Return an archive's content."""
    writer = ArchiveWriter(batch)
    lines = [writer.begin()]
    for part in await leaving(store).parts(batch):
        lines += [writer.event(one) for one in await store.events(part.chain, after=part.after.count) if one.seq <= part.upto.count]
        lines.append(writer.chain(part))
        lines += [writer.record(one) for one in await leaving(store).records(batch, part.chain)]
    return b"".join([*lines, writer.end()])


async def archive(store: Store, *, most: int = 500) -> list[bytes]:
    """Archive and delete everything that is old by `LATER`; return the archives."""
    found = []
    while (batch := await leaving(store).seal(before=LATER, most=most)) is not None:
        found.append(await write(store, batch))
        await leaving(store).archived(batch, file=batch.name, sha256="0" * 64)
        while await leaving(store).purge(recorded_before=LATER, limit=7):
            assert (await store.verify_audit()).faults == ()
    return found


def read(archives: Sequence[bytes]) -> list[ArchiveReading]:
    readings = [read_archive(one.splitlines(keepends=True)) for one in archives]
    assert [reading.findings().faults for reading in readings] == [()] * len(archives)
    return readings


async def exported(store: Store) -> list[bytes]:
    writer = audit.Export()
    names = [SYSTEM_CHAIN, *(name for name, _, _ in await store.chains() if name != SYSTEM_CHAIN)]
    return [*[writer.line(one) for name in names for one in await store.events(name)], writer.end()]


class HousekeepingContract:
    """Tests of one store."""

    async def test_an_ended_incident_leaves_with_everything_and_nothing_else_does(self, world: World) -> None:
        """What belongs to it is in the archive and gone from the store; its neighbour, still open, keeps all of it."""
        store = world.store
        await ended(store, 1)
        open_ = incident(2, fingerprints=("f2",))
        await put(store, incidents=[open_], runs=[run(1, of=2)], episodes=[episode("f2", incident=open_.id)], events=[event(open_.id)])
        world.forward(timedelta(days=100))
        (content,) = await archive(store)
        (reading,) = read([content])
        assert [part.chain for part in reading.parts] == ["INC-20261121-001"]
        for table, count in {"incident": 1, "run": 1, "approval": 1, "use": 1, "message": 2, "episode": 2}.items():
            assert content.count(f'{{"record":"{table}"'.encode()) == count, table
        assert await store.incident("INC-20261121-001") is None
        assert await store.run("INC-20261121-001-1") is None
        assert await store.approval("INC-20261121-001-1-A1") is None
        assert await store.events("INC-20261121-001") == []
        assert (await store.episodes()).items == (episode("f2", incident=open_.id),)
        assert await store.incident(open_.id) == open_
        assert len(await store.events(open_.id)) == 1
        assert (await store.verify_audit()).faults == ()

    @pytest.mark.parametrize(
        "why", ["open", "active run", "open episode", "touched lately", "pending page", "run ended lately", "lock", "no end"]
    )
    async def test_nothing_that_is_under_way_or_recent_leaves(self, world: World, why: str) -> None:
        """Whatever is open, held, undelivered, or happened lately keeps its incident in the store."""
        store, name = world.store, "INC-20261121-001"
        await ended(store, 1)
        one = await store.incident(name)
        done = await store.run(f"{name}-1")
        assert one is not None
        assert done is not None
        changes: dict[str, dict[str, Any]] = {
            "open": {"incidents": [replace(one, state=IncidentState.ESCALATED)]},
            "active run": {"runs": [run(2, of=1, wake_at=None)]},
            "open episode": {"episodes": [episode("f1", 3, incident=name)]},
            "touched lately": {"incidents": [replace(one, updated_at=LATER)]},
            "pending page": {"messages": [message(f"{name}-1/page", incident=name)]},
            "run ended lately": {"runs": [replace(done, ended_at=LATER)]},
            "lock": {"take_locks": {"k:p/-/x/y": done.id}},
            "no end": {"incidents": [replace(one, fingerprints=("f1",))]},
        }
        await put(store, **changes[why])
        world.forward(timedelta(days=100))
        assert await archive(store) == []
        assert await store.run(done.id) is not None

    async def test_a_sealed_chain_takes_nothing_more(self, world: World) -> None:
        """Between sealing and deleting an incident can be read and not changed, so that an archive has one content only."""
        store = world.store
        await ended(store, 1)
        assert await leaving(store).seal(before=LATER) is not None
        with pytest.raises(Conflict, match="archive"):
            await put(store, events=[event("INC-20261121-001", "incident.acknowledged")])
        await put(store, events=[event("INC-20261121-002")])
        assert len(await store.events("INC-20261121-001")) == 3

    async def test_a_crash_between_archive_and_deletion_loses_and_doubles_nothing(self, world: World) -> None:
        """After a restart the same batch comes back with the same content and name; recorded once, it is never recorded again."""
        await ended(world.store, 1)
        await ended(world.store, 2)
        batch = await leaving(world.store).seal(before=LATER)
        assert batch is not None
        content = await write(world.store, batch)
        await world.reopen()
        await ended(world.store, 3)
        again = await leaving(world.store).seal(before=LATER)
        assert again == batch
        assert await write(world.store, again) == content
        await leaving(world.store).archived(again, file="a", sha256="0" * 64)
        await world.reopen()
        with pytest.raises(Conflict, match="recorded"):
            await leaving(world.store).archived(again, file="a", sha256="0" * 64)
        other = await leaving(world.store).seal(before=LATER)
        assert other is not None
        assert other.name != batch.name
        assert [part.chain for part in await leaving(world.store).parts(other)] == ["INC-20261121-003"]
        while await leaving(world.store).purge(recorded_before=LATER, limit=3):
            await world.reopen()
            assert (await world.store.verify_audit()).faults == ()
        assert [name for name, _, _ in await world.store.chains()] == ["INC-20261121-003", SYSTEM_CHAIN]

    async def test_nothing_is_deleted_before_the_system_chain_says_so(self, world: World) -> None:
        """A batch that is sealed only is safe from `purge`; so is one that was recorded a moment ago."""
        await ended(world.store, 1)
        batch = await leaving(world.store).seal(before=LATER)
        assert batch is not None
        assert await leaving(world.store).purge(recorded_before=LATER, limit=100) == 0
        await leaving(world.store).archived(batch, file="a", sha256="0" * 64)
        assert await leaving(world.store).purge(recorded_before=NOW - timedelta(minutes=1), limit=100) == 0
        assert len(await world.store.events("INC-20261121-001")) == 3

    async def test_s22_checkpoints_of_archived_chains_still_verify(self, world: World) -> None:
        """Semantics 22: archiving moves whole chains and keeps their heads; store, export and archive each verify."""
        await ended(world.store, 1)
        await world.store.checkpoint()
        await ended(world.store, 2)
        await world.store.checkpoint()
        world.forward(timedelta(days=100))
        read(await archive(world.store, most=1))
        report = await world.store.verify_audit()
        assert (report.faults, report.chains) == ((), 1)
        assert audit.verify_export(await exported(world.store)).faults == ()
        (last,) = [one for one in await world.store.events(SYSTEM_CHAIN) if one.kind == audit.ARCHIVED][-1:]
        assert audit.archived_heads(last)

    async def test_s22_the_system_chain_loses_its_oldest_part_and_holds(self, world: World) -> None:
        """Its pieces follow each other from archive to archive, the store's part follows the last one, and a checkpoint stays."""
        store = world.store
        for number in range(5):
            await put(store, events=[event(SYSTEM_CHAIN, "daemon.started", n=number)])
            await store.checkpoint()
        world.forward(timedelta(days=100))
        whole = await store.events(SYSTEM_CHAIN)
        archives = await archive(store)
        await put(store, events=[event(SYSTEM_CHAIN, "daemon.started", n=5)])
        await store.checkpoint()
        world.forward(timedelta(days=100))
        pieces = [part for reading in read(archives) for part in reading.parts]
        assert pieces[0].after == audit.empty(SYSTEM_CHAIN)
        left = await store.events(SYSTEM_CHAIN)
        assert (left[0].seq, left[0].previous) == (pieces[-1].upto.count + 1, pieces[-1].upto.hash)
        assert left[0].kind == audit.CHECKPOINT
        assert whole[-1] in left
        assert audit.verify_export(await exported(store)).faults == ()
        assert (await store.verify_audit()).faults == ()

    async def test_s22_a_chain_that_stays_is_claimed_again(self, world: World) -> None:
        """When the only checkpoint that spoke of a long-lived chain leaves, a new one speaks of it first, so that hiding it still shows."""
        store = world.store
        await put(store, incidents=[incident(1)], events=[event("INC-20261121-001")])
        await store.checkpoint()
        await put(store, events=[event("INC-20261121-002")])
        await store.checkpoint()
        world.forward(timedelta(days=100))
        assert await archive(store)
        claims = {head.chain for one in await store.events(SYSTEM_CHAIN) for head in audit.checkpointed(one)}
        assert "INC-20261121-001" in claims

    async def test_no_incident_number_is_given_twice(self, world: World) -> None:
        """A day whose incidents are all gone goes on counting, should the clock come back to it."""
        await ended(world.store, 7)
        world.forward(timedelta(days=100))
        await archive(world.store)
        assert (await see(world.store, incident_numbers=date(2026, 11, 21))).next_incident_number == 8

    async def test_budgets_do_not_change_when_their_incident_leaves(self, world: World) -> None:
        """A use stays until it is old itself, whatever became of its run."""
        await ended(world.store, 1)
        await archive(world.store)
        reads = {"usage": [("site-down", "shop1")], "usage_window": timedelta(days=1)}
        assert [use.run for use in (await see(world.store, **reads)).uses] == ["INC-20261121-001-1"]
        assert await leaving(world.store).tidy(before=NOW, limit=10) == 0
        assert await leaving(world.store).tidy(before=NOW + timedelta(seconds=1), limit=10) == 1
        assert (await see(world.store, **reads)).uses == ()

    async def test_tidying_takes_what_nothing_refers_to(self, world: World) -> None:
        """Old closed episodes without a rule and done messages without an incident go; others of the same age stay."""
        store, name = world.store, incident().id
        kept = episode("f1", incident=name, closed_at=NOW)
        await put(
            store,
            incidents=[incident()],
            episodes=[kept, episode("f2", closed_at=NOW), episode("f3"), episode("f4", closed_at=LATER)],
            messages=[message("digest", incident="", delivered_at=NOW), message("m", incident=name, delivered_at=NOW), message("due")],
        )
        before = NOW + timedelta(days=1)
        assert [await leaving(store).tidy(before=before, limit=1) for _ in range(3)] == [2, 0, 0]
        assert {one.fingerprint for one in (await store.episodes()).items} == {"f1", "f3", "f4"}  # type: ignore[attr-defined]
        await put(store, messages=[message("m", incident=name)])
        assert [one.key for one in await store.due_messages(limit=9)] == ["due"]

    async def test_a_rule_text_stays_while_a_run_follows_it(self, world: World) -> None:
        """Texts of runs that are there stay, others go, and one that went can come back."""
        await ended(world.store, 1)
        await put(world.store, rule_texts={"nobody": {"name": "x"}})
        assert await leaving(world.store).forget_rule_texts() == 1
        assert await world.store.rule_text("text1") == {"name": "site-down"}
        await archive(world.store)
        assert await leaving(world.store).forget_rule_texts() == 1
        await ended(world.store, 1)
        assert await world.store.rule_text("text1") == {"name": "site-down"}

    async def test_space_comes_back(self, world: World) -> None:
        """What was deleted is given back a few pages at a time, until nothing is left to give."""
        for number in range(1, 40):
            await ended(world.store, number)
        await archive(world.store)
        for _ in range(1000):
            if not await leaving(world.store).give_back(pages=5):
                break
        else:
            raise AssertionError("pages are still free")
        assert (await world.store.verify_audit()).faults == ()
