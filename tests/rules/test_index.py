"""Finding rules by labels, and the warnings about how they stand to each other."""

from __future__ import annotations

import timeit
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remediator.errors import InvalidExpression
from remediator.replacing import replace
from remediator.rules.compile import RuleSet
from remediator.rules.index import RuleIndex
from remediator.rules.lint import lint, may_overlap
from remediator.rules.matchers import parse_matchers
from remediator.rules.model import Rule, StepSpec
from tests.builders import ENVIRONMENT, remedy

Load = Callable[..., RuleSet]


def rule(name: str, matchers: str, priority: int = 100) -> Rule:
    """Return a rule that only matches."""
    return Rule(name, tuple(parse_matchers(matchers)), (), priority=priority)


def names(rules: list[Rule]) -> list[str]:
    """Return the rules' names."""
    return [one.name for one in rules]


def test_s05_lowest_priority_comes_first() -> None:
    """Every matching rule is found; the lowest priority owns, names break ties."""
    index = RuleIndex([rule("c", 'a="b"'), rule("b", 'a="b"'), rule("z", 'a=~"b|c"', 1), rule("other", 'a="c"')])
    assert names(index.matching({"a": "b", "x": "y"})) == ["z", "b", "c"]
    assert names(index.matching({"a": "c"})) == ["z", "other"]
    assert index.matching({}) == []


@pytest.mark.parametrize(
    ("matchers", "labels", "expected"),
    [
        ('a="b",c="d"', {"a": "b", "c": "d"}, True),
        ('a="b",c="d"', {"a": "b"}, False),
        ('a="b",c!="d"', {"a": "b"}, True),
        ('a=~"b|c"', {"a": "c"}, True),
        ('a=~"b|"', {}, True),
        ('a=~"b.*"', {"a": "bc"}, True),
        ('a="",b="c"', {"b": "c"}, True),
        ('a="",b="c"', {"a": "x", "b": "c"}, False),
        ('a!="b"', {}, True),
        ('a="b",a=~"b|c"', {"a": "b"}, True),
    ],
)
def test_index_agrees_with_the_matchers(matchers: str, labels: dict[str, str], expected: bool) -> None:
    """However a rule is filed, it is found exactly when its matchers hold."""
    assert bool(RuleIndex([rule("r", matchers)]).matching(labels)) is expected


VALUES = st.sampled_from(["", "x", "y", "xy"])
LABELS = st.dictionaries(st.sampled_from(["a", "b", "c"]), st.sampled_from(["x", "y", "xy"]), max_size=3)
MATCHER = st.builds(
    lambda label, operator, value: f'{label}{operator}"{value}"',
    st.sampled_from(["a", "b", "c"]),
    st.sampled_from(["=", "!=", "=~", "!~"]),
    VALUES | st.sampled_from(["x|y", "x.*", "|x"]),
)


@given(st.lists(st.lists(MATCHER, min_size=1, max_size=3), max_size=5), LABELS)
def test_index_finds_what_asking_every_rule_finds(matchers: list[list[str]], labels: dict[str, str]) -> None:
    """The index is only a short cut."""
    rules = [rule(f"r{number}", ",".join(each)) for number, each in enumerate(matchers)]
    assert names(RuleIndex(rules).matching(labels)) == [one.name for one in rules if one.matches(labels)]


@given(st.lists(MATCHER, min_size=1, max_size=3), st.lists(MATCHER, min_size=1, max_size=3), LABELS)
def test_overlap_is_never_missed(one: list[str], other: list[str], labels: dict[str, str]) -> None:
    """When some labels match both rules, `may_overlap` says so."""
    first, second = rule("one", ",".join(one)), rule("other", ",".join(other))
    if first.matches(labels) and second.matches(labels):
        assert may_overlap(first, second)


def test_lookup_does_not_grow_with_the_rules() -> None:
    """A thousand rules for different alerts cost about as much as ten: a few microseconds."""
    labels = {"alertname": "Alert7", "namespace": "shop", "severity": "critical", "instance": "a:9090", "job": "api"}

    def seconds(count: int) -> float:
        index = RuleIndex([rule(f"r{number}", f'alertname="Alert{number}",severity=~"critical|high"') for number in range(count)])
        assert names(index.matching(labels)) == ["r7"]
        return min(timeit.repeat(lambda: index.matching(labels), number=200, repeat=5)) / 200

    assert seconds(1000) < 10 * seconds(10)
    assert seconds(1000) < 0.000_1


# --- lint ------------------------------------------------------------------------------------------------------------


def warnings(load: Load, *rules: str) -> list[str]:
    """Return the warnings about rules, each written as a flow mapping."""
    return [str(problem) for problem in lint(load("rules:\n" + "".join(f"  - {{{one}}}\n" for one in rules)))]


def test_s05_overlaps_without_priorities(load: Load) -> None:
    """Two rules that one alert could match need different priorities."""
    found = warnings(load, "name: a, match: ['alertname=\"X\"']", "name: b, match: ['alertname=~\"X|Y\"', 'ns=\"shop\"']")
    message = "rule a: an alert may match 'b' too, and both have priority 100; give one a lower number"
    assert found == [f"rules.yaml:2:1: {message}"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("match: ['alertname=\"X\"']", "match: ['alertname=\"Y\"']"),
        ("match: ['alertname=\"X\"'], priority: 5", "match: ['alertname=\"X\"']"),
        ("match: ['alertname=\"X\"'], enabled: false", "match: ['alertname=\"X\"']"),
        ("match: ['alertname=\"X\"', 'ns=\"a\"']", "match: ['alertname=\"X\"', 'ns!=\"a\"']"),
        ("match: ['team=\"a\"']", "match: ['team=~\"b|c\"', 'alertname=\"X\"']"),
    ],
)
def test_no_overlap(load: Load, one: str, other: str) -> None:
    """Rules that exclude each other, have an order, or are switched off, are no overlap."""
    assert warnings(load, f"name: a, {one}", f"name: b, {other}") == []


CHECKS = "checks: {b: {kubernetes.rollout: {cluster: c, namespace: n, deployment: d}}, q: {prometheus.query: {query: up}}}, match: ['a=b']"
STEPS = "steps: [{kubernetes.scale: {cluster: c, deployment: d, replicas: 3}}]"


@pytest.mark.parametrize(
    "when", ["!checks.b.reachable", "checks.b.reachable == false", "checks.b.ready < 1 && false == checks.b.reachable"]
)
def test_s01_unreachable_needs_a_second_vantage(load: Load, when: str) -> None:
    """One check that can't reach something proves little: the fault may lie between."""
    (found,) = warnings(load, f"name: a, {CHECKS}, remedies: [{{name: x, when: '{when}', {STEPS}}}]")
    assert "remedy 'x' acts because checks.b can't reach its target" in found
    assert "confirm it from a second vantage" in found


def test_s01_second_vantage_satisfies(load: Load) -> None:
    """Another check in the same condition is a second vantage."""
    when = "!checks.b.reachable && checks.q.value < 1"
    assert warnings(load, f"name: a, {CHECKS}, remedies: [{{name: x, when: '{when}', {STEPS}}}]") == []


def test_remedies_that_are_never_reached(load: Load) -> None:
    """A remedy without a condition hides those after it; `next` after the last leads nowhere."""
    first = f"{{name: x, {STEPS}}}"
    second = f"{{name: y, when: 'checks.q.value > 1', {STEPS}, on_failure: next}}"
    found = warnings(load, f"name: a, {CHECKS}, remedies: [{first}, {second}]")
    assert [one.partition("rule a: ")[2] for one in found] == [
        "remedy 'x' has no condition, so those after it are only reached when it was tried before",
        "remedy 'y' says on_failure: next, but it is the last",
    ]


@pytest.mark.parametrize(
    ("until", "count"),
    [("true", 1), ('labels.ns == "shop"', 1), ("alert.resolved", 0), ("checks.q.value < 1", 0), ("known(checks.q.value)", 0)],
)
def test_verification_that_looks_at_nothing(load: Load, until: str, count: int) -> None:
    """`until: true` would call a success whatever came of it: unknown is not success, and unseen is not either."""
    found = warnings(load, f"name: a, {CHECKS}, remedies: [{{name: x, {STEPS}, verify: {{within: 10m, hold: 1m, until: '{until}'}}}}]")
    assert len([one for one in found if "looks neither at the alert nor at a check" in one]) == count


def test_bad_matcher_is_no_rule() -> None:
    """The helper of these tests doesn't hide errors."""
    with pytest.raises(InvalidExpression):
        rule("r", "a=")


@pytest.mark.parametrize(("where", "count"), [("annotations.d", 1), ("labels.d", 0)])
def test_annotations_should_not_choose_the_target(load: Load, where: str, count: int) -> None:
    """Alertmanager confirms the labels of an alert before acting, its annotations are whatever the sender wrote."""
    steps = f"steps: [{{kubernetes.scale: {{cluster: c, deployment: '${{{where}}}', replicas: 3}}}}]"
    found = warnings(load, f"name: a, match: ['a=b'], remedies: [{{name: x, {steps}}}]")
    assert len([one for one in found if "takes a parameter from an annotation" in one]) == count


def acting(name: str, *steps: tuple[str, dict[str, str]]) -> Rule:
    """Return a rule with one remedy of steps, each an action of `kubernetes` with its parameters."""
    made = [StepSpec(number, f"kubernetes.{action}", ENVIRONMENT.template(dict(given))) for number, (action, given) in enumerate(steps, 1)]
    return replace(rule(name, f'alertname="{name}"'), remedies=(remedy("fix", steps=tuple(made)),))


SUSPEND, RESUME = ("suspend_owner", {"deployment": "web"}), ("resume_owner", {"deployment": "web"})
ANY = ("resume_owner", {"deployment": "web", "suspended_by": "remediator"})
UNDO = ("rollout_undo", {"deployment": "web", "owner": "through"})


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ([acting("a", SUSPEND, UNDO, RESUME)], []),
        ([acting("a", SUSPEND, UNDO), acting("b", ANY)], []),
        ([acting("a", ("scale", {"owner": "through"}))], []),
        ([acting("a", ("rollout_undo", {"owner": "ignore"}))], []),
        ([acting("a", UNDO)], ["no step before it suspends the owner"]),
        ([acting("a", UNDO, SUSPEND, RESUME)], ["no step before it suspends the owner"]),
        ([acting("a", SUSPEND, UNDO)], ["nothing resumes it"]),
        ([acting("a", SUSPEND, UNDO), acting("b", RESUME)], ["nothing resumes it"]),
        ([acting("a", RESUME, SUSPEND, UNDO)], ["nothing resumes it"]),
        ([acting("a", SUSPEND, UNDO), replace(acting("b", ANY), enabled=False)], ["nothing resumes it"]),
    ],
)
def test_acting_through_an_owner_needs_its_suspension_and_an_end_of_that(rules: list[Rule], said: list[str]) -> None:
    """GitOps owns the field: through it a step changes something only while an earlier one has suspended it; somebody must resume it."""
    found = [problem.message for problem in lint(RuleSet.of(rules))]
    assert [words for words in said if sum(words in one for one in found) == 1] == said
    assert len(found) == len(said)
