"""Alerts that join an incident after its remedy's success: paged by themselves, when they last."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from remediator.model import RunState
from tests.builders import alert
from tests.engine.paging import MINUTE, Paging
from tests.stories import act, playbook


@pytest.fixture
async def paging(tmp_path: Path) -> AsyncIterator[Paging]:
    """Start with an incident whose remedy succeeded, and of whose alert nobody has told the end."""
    made = await Paging(tmp_path / "state.sqlite", playbook(act(), severity="sev1", target="site")).start()
    await made.send(alert(instance="1"))
    await made.work()
    made.world.firing = False
    await made.passes(2 * MINUTE)
    assert await made.state() is RunState.SUCCEEDED
    yield made
    await made.store.aclose()


async def test_s21_joined_alert_that_is_over_in_time_pages_nobody(paging: Paging) -> None:
    """Its page was held for as long as the cause that was remedied may take, and is not about the others."""
    await paging.send(alert(instance="2"))
    await paging.passes(MINUTE)
    await paging.send(alert(instance="2", firing=False, ends_at=paging.now))
    await paging.passes(10 * MINUTE)
    assert paging.told() == []


async def test_s21_each_joined_alert_has_a_page_of_its_own(paging: Paging) -> None:
    """The end of one is not the end of another that joined while the first one's page was held, or later."""
    await paging.send(alert(instance="2"))
    await paging.passes(MINUTE)
    await paging.send(alert(instance="3"))
    await paging.send(alert(instance="2", firing=False, ends_at=paging.now))
    await paging.passes(2 * MINUTE)
    assert paging.told() == []
    await paging.passes(2 * MINUTE)
    assert paging.told() == ["level-1"]


async def test_s21_two_joined_alerts_page_once(paging: Paging) -> None:
    """Both last: one page tells of the incident, and neither waits for the other."""
    await paging.send(alert(instance="2"))
    await paging.passes(MINUTE)
    await paging.send(alert(instance="3"))
    await paging.passes(3 * MINUTE)
    assert paging.told() == ["level-1"]
    await paging.passes(2 * MINUTE)
    assert paging.told() == ["level-1"]


async def test_s21_alert_that_joins_once_more_is_paged(paging: Paging) -> None:
    """That its first firing was over in time says nothing of its second, which began before the end of the first was told."""
    await paging.send(alert(instance="2"))
    await paging.passes(MINUTE)
    again = paging.now
    await paging.passes(MINUTE)
    await paging.send(alert(instance="2", firing=False, ends_at=again - MINUTE / 2))
    await paging.passes(5 * MINUTE)
    await paging.send(alert(instance="2", starts_at=again))
    await paging.passes(10 * MINUTE)
    assert paging.told() == ["level-1"]
