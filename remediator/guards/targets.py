"""Guards about what a plan would really touch. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from remediator.guards.base import Case, Guard, Judgement
from remediator.targets.scope import lies_in, outside_scope


@dataclass(frozen=True)
class EmptyTarget(Guard):
    """Refuses plans without a target."""

    name: str = "empty_target"
    description: str = "Every step that changes something names what it touches: empty is never everything. Always on."

    def judge(self, case: Case) -> Judgement:
        """Deny when a plan has no target."""
        for plan in case.plans:
            if not plan.targets and not plan.noop:
                return self.deny(f"{plan.action} names no target: {plan.summary}")
        return self.allow()


@dataclass(frozen=True)
class BlastRadius(Guard):
    """Refuses plans that touch too much."""

    name: str = "blast_radius"
    description: str = (
        "A plan touches at most `max_targets` things and `max_percent` of the whole. Default: 10 targets, 100 %; operator's bound 50."
    )
    rule: str = "guards.max_targets, guards.max_percent"
    limit: str = "limits.max_targets, limits.max_percent, connections.NAME.max_targets"

    def judge(self, case: Case) -> Judgement:
        """Deny when a plan touches more than the strictest bound."""
        percent = min(spec.max_percent for spec in case.specs)
        for plan in case.plans:
            per_connection = [most for scoped, _, most in case.scopes if scoped is plan and most is not None]
            most = min(*(spec.max_targets for spec in case.specs), *per_connection)
            touched, total = plan.impact.touched, plan.impact.total
            if touched > most:
                return self.deny(f"{plan.action} would touch {touched} things, at most {most} are allowed")
            if total and touched * 100 > percent * total:
                return self.deny(f"{plan.action} would touch {touched} of {total}, at most {percent} % are allowed")
        return self.allow()


@dataclass(frozen=True)
class NeverShrink(Guard):
    """Refuses taking capacity away during an incident."""

    name: str = "never_shrink"
    description: str = "A plan does not take capacity away during an incident, unless the rule says `allow_shrink`. Default: on."
    rule: str = "guards.allow_shrink"
    limit: str = "limits.allow_shrink"

    def judge(self, case: Case) -> Judgement:
        """Deny plans that shrink."""
        if all(spec.allow_shrink for spec in case.specs):
            return self.allow()
        for plan in case.plans:
            if plan.impact.shrinks:
                return self.deny(f"{plan.action} takes capacity away during an incident: {plan.summary}")
        return self.allow()


@dataclass(frozen=True)
class Scope(Guard):
    """Refuses targets outside the connection's scope."""

    name: str = "scope"
    description: str = (
        "Every target lies within its connection's scope (namespaces, databases, keys). Default: no limit declared, no limit."
    )
    limit: str = "connections.NAME.scope"

    def judge(self, case: Case) -> Judgement:
        """Deny when a target is outside."""
        for plan, scope, _ in case.scopes:
            outside = outside_scope(plan.targets, scope)
            if outside is not None:
                return self.deny(f"{plan.action} is outside the scope of connection {plan.connection!r}: {outside}")
        return self.allow()


@dataclass(frozen=True)
class NotItself(Guard):
    """Refuses acting on the daemon itself and on what it depends on."""

    name: str = "not_itself"
    description: str = "No target is the daemon itself (pod, owner, node, store) or something it depends on. Not overridable by rules."
    limit: str = "protected"

    def judge(self, case: Case) -> Judgement:
        """Deny when a target is protected."""
        for plan in case.plans:
            for target in plan.targets:
                for protected in case.bounds.identity.protected:
                    if lies_in(target.id, protected) or lies_in(target.lock, protected):
                        return self.deny(f"{plan.action} would touch {target.id}, which is protected by {protected}")
        return self.allow()
