"""An action that needs no other system: what is left is what the daemon itself costs.

`nothing.step` does nothing, for `seconds`; with `noop: true` its plan says so beforehand.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from remediator.action import Action, Context, Params, Provider
from remediator.model import Health, Impact, Plan, Receipt, Repeat, Risk, Target, Verdict


class StepParams(Params):
    """What to do nothing to."""

    name: str
    seconds: float = Field(0.0, ge=0, le=60)
    noop: bool = False


class Step(Action[StepParams]):
    """Do nothing, for a while."""

    name = "nothing.step"
    Params = StepParams
    risk = Risk.LOW
    repeat = Repeat.CONDITIONAL
    reversible = False
    permissions = ()
    example: ClassVar[Mapping[str, Any]] = {"name": "${labels.pod}"}

    async def plan(self, params: StepParams, ctx: Context) -> Plan:
        """Say what will not be done."""
        target = f"nothing:here/-/thing/{params.name}"
        return Plan(
            action=self.name,
            summary=f"Leave {params.name} alone",
            targets=(Target(target, target),),
            intent={"seconds": params.seconds},
            impact=Impact(touched=0 if params.noop else 1),
            noop=params.noop,
        )

    async def apply(self, plan: Plan, ctx: Context) -> Receipt:
        """Wait."""
        await asyncio.sleep(plan.intent["seconds"])
        return Receipt(plan.summary, touched=() if plan.noop else (plan.targets[0].id,))

    async def verify(self, plan: Plan, receipt: Receipt, ctx: Context) -> Verdict:
        """It is as it was."""
        return Verdict(Health.HEALTHY, "nothing was done")


PROVIDER = Provider("nothing", actions=(Step,))
