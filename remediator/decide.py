"""Deciding: which rule, which remedy, with how much authority, and why. Pure: no I/O, no clock, no logging.

The live daemon, rehearsal and tests share these functions; nothing else chooses a remedy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from remediator.duration import format_duration
from remediator.expressions import Facts, Unknown
from remediator.guards import Bounds
from remediator.model import JSON, Alert, Authority, Plan, Risk, Value, digest, encode_value
from remediator.records import Incident, Pause
from remediator.rules.model import Remedy, Rule
from remediator.stopping.watchdog import lost, reason_of
from remediator.trust.standing import caps

# --- facts -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CheckResult:
    """What one check gave: facts by their own names, or why it failed."""

    id: str
    facts: Mapping[str, Value] = field(default_factory=dict)
    error: str | None = None
    seconds: float = 0.0


def subject_facts(rule: Rule, alert: Alert, *, incident: str = "") -> Facts:
    """Return what is known without looking: the subject's labels and annotations, and the rule's vars.

    `alert.resolved` is unknown here; only verification computes it.
    """
    values: dict[str, Value] = {
        "labels": dict(alert.labels),
        "annotations": dict(alert.annotations),
        "alert.name": alert.name,
        "alert.severity": alert.labels.get("severity", ""),
        "alert.fingerprint": alert.fingerprint,
        "alert.starts_at": alert.starts_at,
        "incident.id": incident,
    }
    values |= {f"vars.{name}": value for name, value in rule.vars.items()}
    return Facts(values, {"alert.resolved": "it is only computed during verification"})


def with_checks(facts: Facts, results: Sequence[CheckResult]) -> Facts:
    """Add checks' results; what a failed check would have told is unknown, with its error as the reason."""
    values, unknown = dict(facts.values), dict(facts.unknown)
    for result in results:
        name = f"checks.{result.id}"
        if result.error is not None:
            unknown[name] = f"check {result.id} failed: {result.error}"
            continue
        unknown[name] = f"check {result.id} could not establish it"
        values |= {f"{name}.{fact}": value for fact, value in result.facts.items()}
    return Facts(values, unknown)


def encode_facts(facts: Facts) -> dict[str, JSON]:
    """Encode the checks' facts for a row."""
    return {name: encode_value(value) for name, value in facts.values.items() if name.startswith("checks.")}


# --- which remedy --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Condition:
    """How one remedy's condition came out: true, false, or unknown with its reason; `why` holds the facts it used."""

    remedy: str
    value: bool | None
    why: Mapping[str, JSON] = field(default_factory=dict)
    reason: str = ""

    def to_json(self) -> JSON:
        """Return it as an event shows it."""
        return {"remedy": self.remedy, "value": self.value, "facts": dict(self.why), "reason": self.reason}


@dataclass(frozen=True)
class Choice:
    """The remedy to try, or None with the reason; and the conditions in the order in which they were asked."""

    remedy: Remedy | None
    reason: str
    conditions: tuple[Condition, ...] = ()


def choose_remedy(rule: Rule, facts: Facts, *, tried: Sequence[str] = ()) -> Choice:
    """Return the first remedy whose condition is true. An unknown condition stops the list (`semantics.md`, 2).

    Remedies in `tried` are passed over: a chain never tries one twice.
    """
    conditions: list[Condition] = []
    for remedy in rule.remedies:
        if remedy.name in tried:
            conditions.append(Condition(remedy.name, value=False, reason="already tried in this chain"))
            continue
        condition = _condition(remedy, facts)
        conditions.append(condition)
        if condition.value:
            return Choice(remedy, f"{remedy.name!r}: its condition is true", tuple(conditions))
        if condition.value is None and not remedy.unknown_is_next:
            return Choice(None, f"stopped at {remedy.name!r}, whose condition is unknown: {condition.reason}", tuple(conditions))
    reason = "no remedy's condition is true" if rule.remedies else "the rule has no remedies"
    return Choice(None, reason, tuple(conditions))


def _condition(remedy: Remedy, facts: Facts) -> Condition:
    if remedy.when is None:
        return Condition(remedy.name, value=True, reason="it has no condition")
    value = remedy.when.evaluate(facts)
    why = remedy.when.trace(facts)
    if isinstance(value, Unknown):
        return Condition(remedy.name, None, why, value.reason)
    return Condition(remedy.name, bool(value), why)


# --- how much authority ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mandate:
    """How far a run may go by itself, and every reason that lowered it."""

    authority: Authority
    reasons: tuple[str, ...] = ()


def mandate(
    rule: Rule,
    bounds: Bounds,
    *,
    current: Rule | None = None,
    remedy: Remedy | None = None,
    incident: Incident | None = None,
    plan_risk: Risk = Risk.LOW,
    plans: Sequence[Plan] = (),
    skew: timedelta = timedelta(),
) -> Mandate:
    """Return the effective authority: the least of all that bound it (`semantics.md`, 13).

    `current` is the rule in force now, which may be stricter than the frozen `rule`; `plan_risk` the highest risk of `plans`; `skew`
    how far ahead of our clock the alert said it began.
    """
    modes = [rule.mode] if current is None else [rule.mode, current.mode]
    strictest = min(modes, key=lambda mode: mode.rank)
    limits = [(Authority.OBSERVE, "dry_run is on")] if bounds.dry_run else []
    if bounds.authority is not Authority.AUTO:
        limits.append((bounds.authority, f"the operator's limit is {bounds.authority}"))
    if strictest is not Authority.AUTO:
        limits.append((strictest, f"the rule's mode is {strictest}"))
    limits += [(Authority.APPROVE, reason) for reason in _world_asks(bounds, skew=skew, plans=plans)]
    limits += [(Authority.APPROVE, reason) for reason in _remedy_asks(remedy, current, incident=incident, plan_risk=plan_risk)]
    least = min((limit for limit, _ in limits), key=lambda limit: limit.rank, default=Authority.AUTO)
    return Mandate(least, tuple(reason for _, reason in limits))


def lowered(held: Mandate, reasons: Sequence[str]) -> Mandate:
    """Return a mandate that goes no further than an approval when there are further reasons to ask."""
    if not reasons:
        return held
    return Mandate(min(held.authority, Authority.APPROVE, key=lambda authority: authority.rank), (*held.reasons, *reasons))


def watched(held: Mandate, pauses: Mapping[str, Pause], incident: Incident) -> Mandate:
    """Return a mandate that goes no further than an approval while a watchdog is lost that speaks for the incident's alert."""
    away = lost(pauses, incident.subject.labels)
    return held if away is None else lowered(held, [reason_of(away)])


def trusted(held: Mandate, rules: Sequence[Rule], pauses: Mapping[str, Pause], *, earn: bool) -> Mandate:
    """Return a mandate that goes no further than the rule's record lets it; `rules` are its texts, `earn` whether auto must be earned."""
    limits = caps(rules, pauses, earn=earn)
    if not limits:
        return held
    least = min((held.authority, *(limit for limit, _ in limits)), key=lambda authority: authority.rank)
    return Mandate(least, (*held.reasons, *(reason for _, reason in limits)))


def _world_asks(bounds: Bounds, *, skew: timedelta, plans: Sequence[Plan]) -> Iterator[str]:
    """Give the reasons for an approval that lie in what the daemon can't be sure of."""
    if not bounds.knows_alertmanager:
        yield "no Alertmanager is configured that could confirm the alert"
    if skew > bounds.clock_skew:
        yield f"the alert began {format_duration(skew)} ahead of our clock: one of the two clocks is wrong"
    if not bounds.identity.certain and any(_may_carry_us(plan) for plan in plans):
        yield "the daemon could not find out where it runs itself, and this touches a node or pod"


def _remedy_asks(remedy: Remedy | None, current: Rule | None, *, incident: Incident | None, plan_risk: Risk) -> Iterator[str]:
    """Give the reasons for an approval that lie in the remedy."""
    if remedy is not None and any(text.approval is not None for text in texts_of(remedy, current)):
        yield "the remedy asks for an approval"
    if remedy is not None and incident is not None and remedy.name in incident.relapsed_remedies:
        yield "it had succeeded before this relapse"
    if plan_risk is Risk.HIGH or (remedy is not None and remedy.risk is Risk.HIGH):
        yield "its risk is high"


def texts_of(remedy: Remedy, current: Rule | None) -> Sequence[Remedy]:
    """Return a remedy as the run froze it, and as the rule in force has it, where it still does (`semantics.md`, 15)."""
    return [remedy, *(one for one in (current.remedies if current is not None else ()) if one.name == remedy.name)]


def _may_carry_us(plan: Plan) -> bool:
    """Tell whether a plan touches something that this daemon may be running on or in (`semantics.md`, 11)."""
    return any(target.id.rsplit("/", 2)[-2:-1] in (["node"], ["pod"]) for target in plan.targets)


# --- plans -----------------------------------------------------------------------------------------------------------


def plans_hash(plans: Sequence[Plan], remedy_hash: str) -> str:
    """Return what an approval is bound to: all steps' plans, in order, and the remedy's text."""
    return digest([remedy_hash, *(plan.hash for plan in plans)])
