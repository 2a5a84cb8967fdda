"""The scorecard, promotions and demotions."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Literal

from aiohttp import web
from pydantic import Field

from remediator.model import Authority, to_json
from remediator.people.authentication import Operation, allows
from remediator.records import Attempt
from remediator.rules.model import Rule
from remediator.trust.scorecard import Card, arms_of, card
from remediator.web.bodies import Body
from remediator.web.problems import Refused
from remediator.web.routes import Answer, Call, Query, Route, missing, ok

Why = Annotated[str, Field(min_length=1, max_length=2000, description="why; kept in the audit trail")]


class PromoteBody(Body):
    """How far a rule may go again, and why."""

    to: Literal["approve", "auto"] = "auto"
    reason: Why
    force: bool = Field(False, description="though it has not earned it; only for admins, and noted in the audit trail")


class DemoteBody(Body):
    """How far a rule may go at most, and why."""

    to: Literal["observe", "approve"] = "approve"
    reason: Why


@dataclass(frozen=True)
class Scorecard:
    """The cards of all rules, in the order of names, or of one."""

    items: tuple[Card, ...]


async def show(call: Call) -> web.Response:
    """Show what rules and their remedies have been worth."""
    name = call.query["rule"]
    rules = [_rule(call, name)] if name else sorted(call.service.rules.rules, key=lambda rule: rule.name)
    return ok(to_json(Scorecard(tuple(await cards(call, rules, name)))))


async def cards(call: Call, rules: list[Rule], name: str | None) -> list[Card]:
    """Return the cards of `rules`; `name` is the one rule that is asked for, None for all."""
    service, now = call.service, datetime.now(UTC)
    bounds = service.bounds()
    windows = [arm.window for rule in rules for arm in arms_of(rule, bounds)]
    found: list[Attempt] = await service.store.attempts(since=now - max(windows), rule=name) if windows else []
    pauses = await service.store.pauses()
    own: dict[str, list[Attempt]] = {}
    for attempt in found:
        own.setdefault(attempt.rule, []).append(attempt)
    return [card(rule, own.get(rule.name, []), pauses, bounds, now=now) for rule in rules]


def _rule(call: Call, name: str) -> Rule:
    rule = call.service.rules.rule(name)
    if rule is None:
        raise missing("rule", name)
    return rule


async def promote(call: Call) -> web.Response:
    """Let a rule go further again. What has not been earned needs an admin, and is noted as forced."""
    sent, rule = call.sent(PromoteBody), _rule(call, call.path("rule"))
    if sent.force and not allows(call.actor, Operation.PROMOTE_UNEARNED):
        raise Refused(403, f"{call.actor.name} may promote what has earned it; forcing a promotion is an admin's", reason="forbidden")
    desk, bounds = call.service.desk, call.service.bounds()
    await desk.promote(rule, Authority(sent.to), sent.reason, call.actor, force=sent.force, bounds=bounds)
    return ok(to_json((await cards(call, [rule], rule.name))[0]))


async def demote(call: Call) -> web.Response:
    """Lower a rule. Whoever may stop everything may do that."""
    sent, rule = call.sent(DemoteBody), _rule(call, call.path("rule"))
    await call.service.desk.demote(rule, Authority(sent.to), sent.reason, call.actor)
    return ok(to_json((await cards(call, [rule], rule.name))[0]))


ROUTES = (
    Route(
        "GET",
        "/api/v1/scorecard",
        "getScorecard",
        "Show what rules and their remedies have been worth",
        show,
        Operation.READ,
        Answer("A card for each rule.", Scorecard),
        "rules",
        query=(Query("rule", "only the card of this rule"),),
        refusals={404: "There is no such rule."},
    ),
    Route(
        "POST",
        "/api/v1/rules/{rule}/promote",
        "promoteRule",
        "Let a rule go further again",
        promote,
        Operation.PROMOTE,
        Answer("It may; its card.", Card),
        "rules",
        body=PromoteBody,
        refusals={404: "There is no such rule.", 409: "It has not earned that, or its file does not let it go so far."},
    ),
    Route(
        "POST",
        "/api/v1/rules/{rule}/demote",
        "demoteRule",
        "Lower how far a rule may go",
        demote,
        Operation.PAUSE,
        Answer("It is demoted until somebody promotes it; its card.", Card),
        "rules",
        body=DemoteBody,
        refusals={404: "There is no such rule.", 409: "It goes no further already."},
    ),
)
