"""Which remedy, and how much authority."""

from __future__ import annotations

from dataclasses import replace

import pytest

from remediator.decide import CheckResult, choose_remedy, mandate, plans_hash, subject_facts, with_checks
from remediator.ingest.sorting import sort
from remediator.model import Authority, Impact, Risk, decode_value, encode_value
from remediator.rules.model import ApprovalSpec, Rule
from tests.builders import alert, bounds, incident, plan, remedy, rule


def facts(*results: CheckResult, of: Rule | None = None) -> object:
    return with_checks(subject_facts(of or rule(), alert()), results)


FEW = remedy("few", "checks.pods.ready < 2")
MANY = remedy("many", "checks.pods.ready >= 2")
ANYWAY = remedy("anyway")


def test_first_true_condition_wins() -> None:
    """Order is the rule's."""
    playbook = rule(remedies=(FEW, MANY, ANYWAY))
    choice = choose_remedy(playbook, facts(CheckResult("pods", {"ready": 3})))
    assert choice.remedy is MANY
    assert [condition.value for condition in choice.conditions] == [False, True]
    assert choice.conditions[0].why == {"checks.pods.ready": 3}


def test_s02_unknown_stops() -> None:
    """Facebook 2010: an error is not evidence. A failed check stops the list, also before a remedy without a condition."""
    playbook = rule(remedies=(FEW, ANYWAY))
    choice = choose_remedy(playbook, facts(CheckResult("pods", error="connection refused")))
    assert choice.remedy is None
    assert "connection refused" in choice.reason


def test_s02_unknown_goes_on_only_where_the_remedy_says_so() -> None:
    """`on_unknown: next` is the exception that must be written down."""
    playbook = rule(remedies=(replace(FEW, unknown_is_next=True), ANYWAY))
    choice = choose_remedy(playbook, facts(CheckResult("pods", error="timeout")))
    assert choice.remedy is ANYWAY


def test_s03_empty_is_not_everything() -> None:
    """A check that found nothing leaves its counts out, and what is left out is unknown."""
    choice = choose_remedy(rule(remedies=(FEW,)), facts(CheckResult("pods", {"found": False})))
    assert choice.remedy is None
    assert "could not establish" in choice.reason


def test_s07_a_chain_never_tries_a_remedy_twice() -> None:
    """Tried remedies are passed over, and the trace says so."""
    choice = choose_remedy(rule(remedies=(ANYWAY, remedy("other"))), facts(), tried=["anyway"])
    assert choice.remedy is not None
    assert choice.remedy.name == "other"
    assert "already tried" in choice.conditions[0].reason


def test_no_remedy_is_a_reason() -> None:
    """Nothing true, nothing done, and it says why."""
    assert choose_remedy(rule(remedies=(FEW,)), facts(CheckResult("pods", {"ready": 9}))).reason == "no remedy's condition is true"


@pytest.mark.parametrize(
    ("fields", "expected", "reason"),
    [
        ({}, Authority.AUTO, ""),
        ({"bounds": bounds(dry_run=True)}, Authority.OBSERVE, "dry_run"),
        ({"bounds": bounds(authority=Authority.OBSERVE)}, Authority.OBSERVE, "operator"),
        ({"bounds": bounds(knows_alertmanager=False)}, Authority.APPROVE, "no Alertmanager"),
        ({"rule": rule(mode=Authority.APPROVE)}, Authority.APPROVE, "mode"),
        ({"current": rule(mode=Authority.OBSERVE)}, Authority.OBSERVE, "mode"),
        ({"remedy": remedy(approval=ApprovalSpec())}, Authority.APPROVE, "asks for an approval"),
        ({"remedy": remedy(risk=Risk.HIGH)}, Authority.APPROVE, "risk"),
        ({"plan_risk": Risk.HIGH}, Authority.APPROVE, "risk"),
        ({"remedy": remedy(), "incident": incident(relapsed_remedies=("restart",))}, Authority.APPROVE, "relapse"),
    ],
)
def test_s13_authority_is_the_least_of_all(fields: dict[str, object], expected: Authority, reason: str) -> None:
    """Every bound lowers it by itself, and is named."""
    arguments = {"rule": rule(), "bounds": bounds(), **fields}
    given, held = arguments.pop("rule"), arguments.pop("bounds")
    found = mandate(given, held, **arguments)
    assert found.authority is expected
    assert reason in "; ".join(found.reasons)
    assert bool(found.reasons) == (expected is not Authority.AUTO)


@pytest.mark.parametrize(("target", "expected"), [("node/n1", "approve"), ("pod/p", "approve"), ("deployment/web", "auto")])
def test_s11_uncertain_identity_asks_before_touching_nodes_and_pods(target: str, expected: str) -> None:
    """A daemon that does not know where it runs might be running just there."""
    uncertain = replace(bounds(), identity=replace(bounds().identity, certain=False))
    assert mandate(rule(), uncertain, plans=[plan(f"kubernetes:a/shop/{target}")]).authority == expected
    assert mandate(rule(), bounds(), plans=[plan(f"kubernetes:a/shop/{target}")]).authority is Authority.AUTO


def test_s12_the_hash_covers_what_is_done_not_how_it_is_told() -> None:
    """Prose, warnings, impact and precondition may differ; target, intent, changes and the remedy's text may not."""
    first = plan("a")
    same = replace(first, summary="other words", warnings=("w",), impact=Impact(touched=3), precondition={"x": 1})
    assert plans_hash([first], "r") == plans_hash([same], "r")
    assert plans_hash([first], "r") != plans_hash([plan("b")], "r")
    assert plans_hash([first], "r") != plans_hash([first], "changed")
    assert plans_hash([first, plan("b")], "r") != plans_hash([plan("b"), first], "r")


def test_the_best_rule_owns_an_alert_and_the_others_are_told() -> None:
    """Rules come best first; one that is disabled owns nothing, and where nothing else matches that is said."""
    found = sort(alert(), [rule("off", enabled=False), rule("first"), rule("second")])
    assert found.rule is not None
    assert found.rule.name == "first"
    assert found.also == ("off", "second")
    nobody = sort(alert(), [rule("off", enabled=False)])
    assert (nobody.rule, nobody.note) == (None, "only disabled rules match: off")
    assert (sort(alert(), []).rule, sort(alert(), []).note) == (None, "no rule matches")


@pytest.mark.parametrize(
    "foreign", [{"$duration": "soon"}, {"$duration": 1e300}, {"$timestamp": "yesterday"}, {"$timestamp": 5}, {"$timestamp": "2026-01-01"}]
)
def test_foreign_maps_that_look_like_ours_stay_what_they_are(foreign: dict[str, object]) -> None:
    """What another system answers may have our tags as keys; a run that stored it must still load."""
    assert decode_value(encode_value({"a": [foreign]})) == {"a": [foreign]}
