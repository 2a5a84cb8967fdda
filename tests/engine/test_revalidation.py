"""Whether an alert stands, and whether it is over: silence and absence prove nothing."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest

from remediator.errors import TemporaryError
from remediator.expressions import Unknown
from remediator.model import RunState
from remediator.revalidation import Revalidation, Sources
from tests.builders import NOW, alert, incident
from tests.engine.conftest import Start
from tests.stories import playbook

INACTIVE = {"rule_found": True, "evaluated_after": True, "active": False}


class Answers:
    """Answers checks by name: a double, since what is asked for here are answers that no server gives on demand."""

    def __init__(self, **answers: Any) -> None:
        self._answers = {name.replace("_", "."): answer for name, answer in answers.items()}

    async def ask(self, check: str, params: Mapping[str, Any], *, timeout: timedelta) -> Mapping[str, Any]:  # noqa: ASYNC109
        found = self._answers[check]
        if isinstance(found, Exception):
            raise found
        return dict(found)


async def resolved(*, prometheus: bool = True, alive: str | None = "up", **answers: Any) -> bool | Unknown:
    sources = Sources(alertmanager=True, prometheus=prometheus, settle=timedelta(minutes=10))
    made = Revalidation(Answers(**answers), lambda: sources)  # type: ignore[arg-type]
    return await made.resolved(incident(), after=NOW, alive=alive)


async def test_s19_alert_gone_with_its_target_is_unknown() -> None:
    """The series that raised the alert may have ended because what it watched is gone."""
    assert await resolved(prometheus_alert=INACTIVE, prometheus_query={"found": True}) is True
    for answer in ({"found": False}, {}, TemporaryError("refused")):
        assert isinstance(await resolved(prometheus_alert=INACTIVE, prometheus_query=answer), Unknown)


async def test_s19_alive_without_prometheus_is_unknown() -> None:
    """The rule asks for a proof that nobody can give."""
    gone = {"firing": False, "up_for": timedelta(hours=1)}
    assert isinstance(await resolved(prometheus=False, alertmanager_standing=gone), Unknown)
    assert await resolved(prometheus=False, alive=None, alertmanager_standing=gone) is True


async def test_s19_alertmanager_that_forgot_the_alert_proves_nothing() -> None:
    """One that was restarted holds no alert until Prometheus sends them again; how long that takes is `reconciliation.settle`."""
    for up_for, over in ((timedelta(minutes=9), False), (timedelta(hours=-1), False), (timedelta(minutes=10), True)):
        found = await resolved(prometheus=False, alive=None, alertmanager_standing={"firing": False, "up_for": up_for})
        assert (found is True) == over
        assert isinstance(found, Unknown) != over


async def test_s19_firing_needs_no_look_at_the_target() -> None:
    """What fires is not over, whether or not its target can be seen."""
    assert await resolved(prometheus_alert={**INACTIVE, "active": True}) is False


@pytest.mark.parametrize(
    ("ahead", "state"), [(timedelta(minutes=2), RunState.VERIFYING), (timedelta(minutes=3), RunState.AWAITING_APPROVAL)]
)
async def test_s24_clock_skew_lowers_authority_to_approve(start: Start, ahead: timedelta, state: RunState) -> None:
    """An alert that begins in our future shows that a clock is wrong: times then prove little, and a person is asked."""
    harness = await start(playbook())
    await harness.send(alert(starts_at=NOW + ahead))
    await harness.work()
    assert await harness.state() is state
    assert ("clock" in (await harness.run()).reason) == (state is RunState.AWAITING_APPROVAL)
