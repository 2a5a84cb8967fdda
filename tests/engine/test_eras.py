"""Names are given again by a store that is restored or begun anew; what services outside know calls and pages by is not."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from remediator.rules.model import StepSpec
from remediator.store.copy_sqlite import back_up
from remediator.store.era import restored
from remediator.store.protocol import Changes, Reads
from remediator.store.sqlite import SqliteStore
from tests.builders import ENVIRONMENT, alert, remedy, rule
from tests.engine.paging import HOPELESS, Line, Paging
from tests.scripted import Harness, ScriptedConnections

STEP = StepSpec(1, "test.set", ENVIRONMENT.template({"thing": "a"}))
ACTING = rule(remedies=(remedy(steps=(STEP,)),))


class Noting(Line):
    """A line that notes by which keys it was called, and what a pager would call the incident."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: list[str] = []

    async def notify(self, name: str, params: Mapping[str, Any], *, key: str, values: Mapping[str, Any], timeout: Any) -> str | None:  # noqa: ASYNC109
        self.keys.append(key)
        return await super().notify(name, params, key=key, values=values, timeout=timeout)


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Return the keys of all calls that write."""
    noted: set[str] = set()
    plain = ScriptedConnections.context

    def context(self: ScriptedConnections, *, key: str = "", **more: Any) -> Any:
        if key.startswith("INC-") and key.endswith("/1"):
            noted.add(key)
        return plain(self, key=key, **more)

    monkeypatch.setattr(ScriptedConnections, "context", context)
    return noted


async def paged(path: Path) -> Paging:
    """Page somebody for an alert, on a store that is there or is begun by that."""
    paging = Paging(path, HOPELESS)
    paging.line = Noting()
    await paging.start()
    await paging.fires()
    await paging.store.aclose()
    return paging


async def test_calls_of_a_store_begun_anew_bear_other_keys(tmp_path: Path, keys: set[str]) -> None:
    """Both stores call their first run of the day the same; a server that remembers the first one's call carries out the second's."""
    names = []
    for file in ("old.sqlite", "new.sqlite"):
        harness = await Harness(tmp_path / file, ACTING).start()
        await harness.send(alert())
        await harness.work()
        names.append((await harness.run()).id)
        await harness.store.aclose()
    assert names == ["INC-20261121-001-1"] * 2
    assert len(keys) == 2


async def test_a_run_under_way_keeps_its_keys_when_its_store_was_restored(tmp_path: Path, keys: set[str]) -> None:
    """A call that was made before the copy is found again by its key; only runs that begin from then on bear the new era."""
    harness = await Harness(tmp_path / "state.sqlite", ACTING).start()
    await harness.send(alert())
    await harness.work()
    before = (await harness.run()).key
    await harness.store.aclose()
    _, era = await restored(SqliteStore(tmp_path / "state.sqlite"))
    await harness.start()
    await harness.work()
    assert (await harness.run()).key == before
    assert {key.partition("/")[0] for key in keys} == {before}
    assert era not in before
    await harness.store.aclose()


async def test_a_restored_store_pages_by_names_that_no_pager_knows(tmp_path: Path) -> None:
    """What was opened after the copy was made is forgotten; the incident that gets its name is another alert to a pager."""
    copy = tmp_path / "copy.sqlite"
    await restored(SqliteStore(copy))
    shutil.copy(copy, tmp_path / "state.sqlite")
    lost = await paged(tmp_path / "state.sqlite")
    shutil.copy(copy, tmp_path / "state.sqlite")
    await restored(SqliteStore(tmp_path / "state.sqlite"))
    now = await paged(tmp_path / "state.sqlite")
    first, second = lost.line.values[0], now.line.values[0]
    assert first["incident"] == second["incident"]
    assert first["page"] != second["page"]
    assert isinstance(lost.line, Noting)
    assert isinstance(now.line, Noting)
    assert not set(lost.line.keys) & set(now.line.keys)


async def test_a_step_tells_of_the_incident_as_its_policy_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a step opened in a pager, or on a status page, is what the end of the incident closes there."""
    told: list[str] = []
    plain = ScriptedConnections.context

    def context(self: ScriptedConnections, *, key: str = "", values: Mapping[str, Any] | None = None, **more: Any) -> Any:
        if "remedy" in (values or {}):
            told.append(str((values or {}).get("page")))
        return plain(self, key=key, values=values, **more)

    monkeypatch.setattr(ScriptedConnections, "context", context)
    say = StepSpec(1, "test.tell", ENVIRONMENT.template({"thing": "a"}))
    paging = Paging(tmp_path / "state.sqlite", rule(remedies=(remedy(steps=(say,)),), severity="sev2"))
    await paging.start()
    await paging.fires()
    await paging.passes(timedelta(minutes=20))
    await paging.ends()
    await paging.store.aclose()
    assert paging.world.told
    assert set(told) == {str(values["page"]) for values in paging.line.values}


async def test_a_backup_of_a_store_whose_clock_was_set_back_keeps_its_pages_in_time(tmp_path: Path) -> None:
    """A climb is told by all that the clock was set back; where a backup forgot that, level 2 would come later by as much."""
    path = tmp_path / "state.sqlite"
    paging = await Paging(path, HOPELESS).start()
    await paging.store.transact(Reads(), lambda _snapshot: Changes(set_back=timedelta(hours=1)))
    await paging.fires()
    await paging.store.aclose()
    await back_up(path, tmp_path / "backup.sqlite")
    again = Paging(tmp_path / "backup.sqlite", HOPELESS)
    await again.start()
    await again.passes(timedelta(minutes=10))
    await again.store.aclose()
    assert [who for kind, who, _ in (*paging.line.sent, *again.line.sent) if kind == "page"] == ["level-1", "level-2"]
