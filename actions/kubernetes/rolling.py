"""What actions have in common whose one write is a workload's Pod template: reading whether it happened, and whether it helped."""

from __future__ import annotations

from actions.kubernetes import writing
from actions.kubernetes.connection import connect
from actions.kubernetes.names import Reference
from remediator.action import Action, Context, P, Reconciled
from remediator.model import Plan, Receipt, Verdict


class Rolling(Action[P]):
    """An action that has a workload roll out another template."""

    async def verify(self, plan: Plan, receipt: Receipt, ctx: Context) -> Verdict:  # noqa: ARG002
        """Read once whether the template is rolled out and its Pods are new, available, and stay up."""
        return await writing.verify_template(plan, ctx, await connect(ctx, plan.connection), Reference.planned(plan))

    async def reconcile(self, plan: Plan, ctx: Context) -> Reconciled:
        """Tell by our note, which the same write leaves, whether it took effect."""
        return await writing.reconcile_template(plan, ctx, await connect(ctx, plan.connection), Reference.planned(plan))
