"""What the credentials of a cluster really may do, held against what they need. Only asks: self-subject reviews store nothing.

A `SelfSubjectRulesReview` lists the rules that apply in one namespace, without telling which of them apply in all, so whatever is
needed everywhere or outside of namespaces is asked for right by right. What is granted in namespaces that no rule concerns is looked
for in `default` and `kube-system` only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from actions.kubernetes.client import Client
from actions.kubernetes.connection import connect
from remediator.action import Audit, Context, Right

_REVIEWS = "/apis/authorization.k8s.io/v1"
_ALWAYS_LOOKED_AT = ("default", "kube-system")
_EVERYBODY = frozenset(
    {
        Right("authorization.k8s.io/selfsubjectaccessreviews", "create"),
        Right("authorization.k8s.io/selfsubjectrulesreviews", "create"),
        Right("authentication.k8s.io/selfsubjectreviews", "create"),
    }
)
"""What the role system:basic-user gives to everybody who is let in."""


@dataclass(frozen=True)
class Rule:
    """One rule of a Role, as a server lists it; `*` stands for everything in the first three."""

    verbs: tuple[str, ...]
    groups: tuple[str, ...]
    resources: tuple[str, ...]
    names: tuple[str, ...] = ()

    @classmethod
    def parse(cls, rule: Mapping[str, Any]) -> Rule:
        """Read a rule of a review or of a Role."""
        return cls(*(tuple(rule.get(key) or ()) for key in ("verbs", "apiGroups", "resources", "resourceNames")))

    def allows(self, right: Right) -> bool:
        """Tell whether this rule alone grants a right, exactly as the server's RBAC authorizer reads it.

        `pods` does not cover `pods/log`, nor does `pods/*`; `*/log` and `*` do. A rule with names grants nothing on any other object,
        and nothing that is asked without a name: lists, watches, creations.
        """
        group, _, resource = right.resource.partition("/")
        if not {"*", right.verb} & set(self.verbs) or not {"*", group} & set(self.groups):
            return False
        _, _, sub = resource.partition("/")
        if not {"*", resource, *([f"*/{sub}"] if sub else [])} & set(self.resources):
            return False
        return not self.names or right.name in self.names

    def rights(self, place: str) -> Iterable[Right]:
        """Give each right on its own; `*` stays as it is."""
        for group in self.groups:
            for resource in self.resources:
                for verb in self.verbs:
                    for name in self.names or ("",):
                        yield Right(f"{group}/{resource}", verb, place, name)


@dataclass(frozen=True)
class Review:
    """The rules that apply in one namespace. `incomplete` says why there may be more; empty when there are not."""

    place: str
    rules: tuple[Rule, ...]
    incomplete: str = ""

    @classmethod
    def parse(cls, place: str, answer: Mapping[str, Any]) -> Review:
        """Read a `SelfSubjectRulesReview`."""
        status = answer.get("status") or {}
        reason = str(status.get("evaluationError") or "an authorizer can't list its rules")
        rules = tuple(Rule.parse(rule) for rule in status.get("resourceRules") or ())
        return cls(place, rules, reason if status.get("incomplete") else "")

    def allows(self, right: Right) -> bool:
        """Tell whether a rule grants a right in this namespace."""
        return any(rule.allows(right) for rule in self.rules)

    def excess(self, needed: Sequence[Right]) -> set[Right]:
        """Return what is granted here beyond what is needed here or everywhere."""
        granted = {right for rule in self.rules for right in rule.rights(self.place)}
        return {one for one in granted if replace(one, place="") not in _EVERYBODY and not any(_covers(need, one) for need in needed)}


def _covers(need: Right, granted: Right) -> bool:
    """Tell whether a granted right is no more than a needed one."""
    same = (need.resource, need.verb) == (granted.resource, granted.verb)
    return same and need.place in ("", granted.place) and need.name in ("", granted.name)


async def audit_rights(ctx: Context, cluster: str, rights: Sequence[Right]) -> Audit:
    """Compare the credentials of connection `cluster` with the rights they need. Raises the errors of `Client.create`."""
    client = await connect(ctx, cluster)
    places = sorted({right.place for right in rights if right.place} | set(_ALWAYS_LOOKED_AT))
    reviews = dict(zip(places, await asyncio.gather(*(_review(client, place) for place in places)), strict=True))
    doubtful = [right for right in rights if not _listed(right, reviews)]
    allowed = await asyncio.gather(*(_is_allowed(client, right) for right in doubtful))
    missing = [right for right, yes in zip(doubtful, allowed, strict=True) if not yes]
    notes = [
        f"namespace {place}: more may be granted than the server lists: {review.incomplete}"
        for place, review in reviews.items()
        if review.incomplete
    ]
    excess = _gathered([review.excess(rights) for review in reviews.values()])
    return Audit(tuple(sorted(missing)), tuple(sorted(excess)), notes=tuple(notes))


def _listed(right: Right, reviews: Mapping[str, Review]) -> bool:
    """Tell whether a complete review shows that a right is granted. Whatever it does not show is asked for all the same."""
    review = reviews.get(right.place)
    return review is not None and not review.incomplete and review.allows(right)


def _gathered(excesses: Sequence[set[Right]]) -> set[Right]:
    """Say once what is granted in every namespace that was looked at."""
    everywhere = set.intersection(*({replace(one, place="") for one in excess} for excess in excesses))
    return everywhere | {one for excess in excesses for one in excess if replace(one, place="") not in everywhere}


async def _review(client: Client, place: str) -> Review:
    body = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": {"namespace": place}}
    return Review.parse(place, await client.create(f"{_REVIEWS}/selfsubjectrulesreviews", body))


async def _is_allowed(client: Client, right: Right) -> bool:
    """Ask the server's authorizers themselves, whichever they are."""
    group, _, resource = right.resource.partition("/")
    resource, _, sub = resource.partition("/")
    wanted = {"group": group, "resource": resource, "subresource": sub, "verb": right.verb, "namespace": right.place, "name": right.name}
    attributes = {key: value for key, value in wanted.items() if value}
    body = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": {"resourceAttributes": attributes}}
    answer = await client.create(f"{_REVIEWS}/selfsubjectaccessreviews", body)
    return bool((answer.get("status") or {}).get("allowed"))
