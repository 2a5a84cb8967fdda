"""The expression language: what compiles, what an unknown does, what templates keep."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remediator.action import FactType
from remediator.errors import InvalidExpression
from remediator.expressions import LONGEST, Environment, Expression, Facts, Template, Unknown

TYPES = {
    "labels": FactType.STRING_MAP,
    "annotations": FactType.STRING_MAP,
    "alert.name": FactType.STRING,
    "alert.starts_at": FactType.TIMESTAMP,
    "alert.resolved": FactType.BOOL,
    "vars.namespace": FactType.STRING,
    "vars.max": FactType.INT,
    "checks.backend.age": FactType.DURATION,
    "checks.backend.ready": FactType.INT,
    "checks.backend.desired": FactType.INT,
    "checks.backend.found": FactType.BOOL,
    "checks.db.latency": FactType.DOUBLE,
    "checks.db.total": FactType.DOUBLE,
    "checks.db.by_state": FactType.INT_MAP,
    "checks.db.rows": FactType.ROWS,
    "checks.db.reasons": FactType.STRINGS,
    "checks.db.any": FactType.DYN,
}
VALUES: dict[str, Any] = {
    "labels": {"namespace": "shop", "a.b": "dotted"},
    "annotations": {},
    "alert.name": "SiteDown",
    "alert.starts_at": datetime(2025, 3, 31, 12, tzinfo=UTC),
    "vars.namespace": "shop",
    "vars.max": 3,
    "checks.backend.age": timedelta(minutes=20),
    "checks.backend.ready": 0,
    "checks.backend.desired": 2,
    "checks.backend.found": True,
    "checks.db.by_state": {"idle": 3},
    "checks.db.rows": [{"pid": 7, "age": timedelta(minutes=20), "since": datetime(2025, 3, 31, tzinfo=UTC)}],
    "checks.db.reasons": ["OOMKilled", "Error"],
    "checks.db.total": 0.0,
}
FACTS = Facts(VALUES, {"checks.db": "check db failed: connection refused", "alert.resolved": "it is only computed during verification"})


@pytest.fixture
def env() -> Environment:
    """Return an environment with one name of each type."""
    return Environment(TYPES)


def value(env: Environment, text: str, facts: Facts = FACTS) -> Any:
    """Compile and evaluate."""
    return env.compile(text).evaluate(facts)


def refusal(env: Environment, text: str, **options: Any) -> tuple[int, int, str]:
    """Return line, column and message of a text that must not compile."""
    with pytest.raises(InvalidExpression) as caught:
        env.compile(text, **options)
    return caught.value.line, caught.value.column, str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('labels.namespace == "shop"', True),
        ('labels["a.b"] == "dotted"', True),
        ("checks.backend.ready < checks.backend.desired", True),
        ("checks . backend . ready + 1", 1),
        ('checks.backend.age < duration("30m")', True),
        ('checks.db.reasons.exists(r, r == "OOMKilled")', True),
        ("checks.db.by_state.idle > 2", True),
        ('alert.starts_at > timestamp("2025-01-01T00:00:00Z")', True),
        ('checks.db.rows.exists(r, r.pid == 7 && duration(r.age) > duration("10m"))', True),
        ('checks.db.rows.all(r, timestamp(r.since) < timestamp("2026-01-01T00:00:00Z"))', True),
        ("size(checks.db.reasons)", 2),
        ("vars.max", 3),
        ("checks.backend.found // a comment\n && true", True),
    ],
)
def test_values(env: Environment, text: str, expected: object) -> None:
    """Facts of every type can be used as CEL uses them."""
    assert value(env, text) == expected


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("1 + 1", FactType.INT),
        ("1.5", FactType.DOUBLE),
        ("true", FactType.BOOL),
        ('"a"', FactType.STRING),
        ('duration("1m")', FactType.DURATION),
        ("alert.starts_at", FactType.TIMESTAMP),
        ("checks.db.reasons", FactType.STRINGS),
        ("[1, 2]", FactType.INTS),
        ("labels", FactType.STRING_MAP),
        ('{"a": 1}', FactType.INT_MAP),
        ('{"a": 1.0}', FactType.DOUBLE_MAP),
        ("checks.db.rows", FactType.ROWS),
        ("checks.db.rows[0].pid", FactType.DYN),
        ("[true]", FactType.DYN),
    ],
)
def test_type_of_result(env: Environment, text: str, kind: FactType) -> None:
    """Every expression knows the type of its result before it is evaluated."""
    assert env.compile(text).type is kind


# --- additions to CEL (decision 25) ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("written", "days"), [("7d", 7), ("1w2d", 9), ("24h", 1)])
def test_s25_durations_take_days_and_weeks(env: Environment, written: str, days: int) -> None:
    """`d` and `w` are understood, which CEL itself doesn't."""
    assert value(env, f'duration("{written}")') == timedelta(days=days)


def test_duration_keeps_cel_notation(env: Environment) -> None:
    """What CEL takes beyond our notation still works."""
    assert value(env, 'duration("-1.5h")') == timedelta(hours=-1.5)


@pytest.mark.parametrize(
    "text",
    [
        "checks.db.latency < 5",
        "5 > checks.db.latency",
        "checks.db.latency == 3",
        "checks.db.latency > -1",
        "checks.db.latency * 2 < 10",
        "checks.db.latency < 2 * 3",
        "checks.db.latency / 3 == 1",
        "checks.db.latency < 0x10",
    ],
)
def test_s25_int_literals_are_widened_beside_a_double(env: Environment, text: str) -> None:
    """Nobody must write `5.0` to compare a double."""
    assert value(env, text, Facts({"checks.db.latency": 3.0})) is True


def test_int_variables_are_not_widened(env: Environment) -> None:
    """Only literals are widened: mixing an int fact with a double is an error that says how to convert."""
    assert refusal(env, "checks.db.latency < checks.backend.ready") == (
        1,
        19,
        "< can't take (double, int); convert one side, for instance double(x)",
    )


def test_s25_known_tells_what_is_known(env: Environment) -> None:
    """`known` is never unknown itself; a key of a map counts."""
    assert value(env, "known(checks.backend.age)") is True
    assert value(env, "known(checks.db.latency)") is False
    assert value(env, "known(labels.namespace) && !known(labels.other)") is True
    assert value(env, "known(checks.db.by_state.idle)") is True
    assert value(env, "known(checks.db.latency) && checks.db.latency < 5") is False


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("known(1)", (1, 1), "known() takes one name, like known(checks.backend.age)"),
        ('known(labels["a"])', (1, 1), "known() takes one name, like known(checks.backend.age)"),
        ("known(checks.db.latencyy)", (1, 7), "there is no name 'checks.db.latencyy'; did you mean 'checks.db.latency'?"),
        ("known(checks.backend.age.x)", (1, 7), "there is no name 'checks.backend.age.x'; did you mean 'checks.backend.age'?"),
    ],
)
def test_known_takes_a_name(env: Environment, text: str, place: tuple[int, int], message: str) -> None:
    """`known` of anything but a name is refused when rules load."""
    assert refusal(env, text) == (*place, message)


# --- unknown (decisions 2, 3, 25) ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('labels.missing == "x"', "labels.missing is missing"),
        ('labels["missing.too"] == "x"', 'labels["missing.too"] is missing'),
        ("checks.db.latency < 5", "checks.db.latency is unknown: check db failed: connection refused"),
        ("alert.resolved", "alert.resolved is unknown: it is only computed during verification"),
        ("checks.db.by_state.active > 1", "checks.db.by_state.active is missing"),
        ("1 / checks.backend.ready > 1", "'1 / checks.backend.ready > 1' has no value: division by zero"),
        ("5 % checks.backend.ready > 1", "'5 % checks.backend.ready > 1' has no value: modulus by zero"),
        ("vars.max + 9223372036854775807 > 0", "'vars.max + 9223372036854775807 > 0' has no value: integer overflow"),
        ('checks.db.reasons[7] == "x"', "'checks.db.reasons[7] == \"x\"' has no value: Index error: index=7 size=2"),
        ("checks.db.rows.exists(r, r.nothing == 1)", "'checks.db.rows.exists(r, r.nothing == 1)' reads a key 'nothing' that is not there"),
        ("int(labels.namespace) > 1", "'int(labels.namespace) > 1' has no value: cannot convert string to int"),
    ],
)
def test_s25_what_is_missing_is_unknown_and_named(env: Environment, text: str, reason: str) -> None:
    """An error while evaluating is never true or false: it is unknown, and says what is missing and why."""
    assert value(env, text) == Unknown(reason)


@pytest.mark.parametrize("text", ["0.0 / checks.db.total < 0.1", "1.0 / checks.db.total > 0.1", "!(0.0 / (checks.db.total) > 0.1)"])
def test_s03_zero_of_zero_proves_nothing(env: Environment, text: str) -> None:
    """Dividing doubles by zero has no value; CEL by itself would make `1.0 / 0.0 > 0.1` true."""
    found = value(env, text)
    assert isinstance(found, Unknown)
    assert found.reason.endswith("has no value: division by zero")


def test_not_a_number_is_unknown(env: Environment) -> None:
    """A fact that is NaN or infinite compares as false with everything; so it counts as unknown."""
    for number in (float("nan"), float("inf")):
        found = value(env, "checks.db.latency < 5", Facts({"checks.db.latency": number}))
        assert found == Unknown(f"checks.db.latency is unknown: it is {number}, which is not a number")


@pytest.mark.parametrize(("text", "expected"), [("checks.db.latency < 5 || true", True), ("checks.db.latency < 5 && false", False)])
def test_s02_absorption_is_accepted(env: Environment, text: str, expected: bool) -> None:
    """What is true or false whatever the unknown were is true or false."""
    assert value(env, text) is expected


def test_the_missing_key_is_the_one_named() -> None:
    """When two maps are read at one key, the reason names the map that lacks it."""
    env = Environment({"labels": FactType.STRING_MAP, "annotations": FactType.STRING_MAP})
    facts = Facts({"labels": {"a": "x"}, "annotations": {}})
    assert value(env, "labels.a == annotations.a", facts) == Unknown("annotations.a is missing")


def test_fact_wins_over_reason_of_its_check(env: Environment) -> None:
    """A reason for a whole check tells why its other facts are unknown; a reason for the fact itself makes it unknown."""
    facts = Facts({"checks.backend.age": timedelta(), "checks.backend.ready": 1}, {"checks.backend": "x", "checks.backend.ready": "stale"})
    assert value(env, "checks.backend.age", facts) == timedelta()
    assert value(env, "checks.backend.desired", facts) == Unknown("checks.backend.desired is unknown: x")
    assert value(env, "checks.backend.ready", facts) == Unknown("checks.backend.ready is unknown: stale")


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("checks.backend.ready", "3"),
        ("checks.backend.ready", True),
        ("checks.backend.ready", 3.0),
        ("checks.backend.ready", None),
        ("checks.backend.ready", 2**63),
        ("checks.backend.found", 1),
        ("checks.backend.age", 3),
        ("checks.db.latency", "x"),
        ("checks.db.latency", True),
        ("checks.db.reasons", ["a", 1]),
        ("checks.db.reasons", "abc"),
        ("checks.db.by_state", {"a": "b"}),
        ("checks.db.by_state", ["a"]),
        ("checks.db.rows", [1]),
        ("checks.db.any", object()),
        ("alert.name", "a\0b"),
        ("alert.name", "\ud800"),
        ("labels", {"a": "x\0y"}),
        ("alert.starts_at", datetime(2025, 1, 1)),  # noqa: DTZ001 - the point of the case
    ],
)
def test_fact_of_another_type_is_unknown(env: Environment, name: str, wrong: object) -> None:
    """A check that breaks its declaration, or text that CEL would cut, makes unknown and never raises."""
    assert isinstance(value(env, name, Facts({name: wrong})), Unknown)


def test_lists_and_ints_of_python_are_taken(env: Environment) -> None:
    """Tuples serve as lists, and an int where a double is declared."""
    assert value(env, "checks.db.reasons", Facts({"checks.db.reasons": ("a",)})) == ["a"]
    assert value(env, "checks.db.latency", Facts({"checks.db.latency": 3})) == 3.0


def test_evaluation_is_bounded(env: Environment) -> None:
    """A condition that loops over everything times everything ends, as unknown."""
    rows = Facts({"checks.db.rows": [{"a": 1}] * 100})
    inner = "checks.db.rows.all(c, checks.db.rows.all(d, true))"
    found = value(env, f"checks.db.rows.all(a, checks.db.rows.all(b, {inner}))", rows)
    assert isinstance(found, Unknown)
    assert "Iteration budget exceeded" in found.reason


def test_results_that_are_no_values_are_unknown(env: Environment) -> None:
    """Null, bytes and infinities don't leave an expression."""
    assert isinstance(value(env, "checks.db.any", Facts({"checks.db.any": None})), Unknown)
    assert isinstance(value(env, "checks.db.latency * 1e300", Facts({"checks.db.latency": 1e300})), Unknown)
    assert isinstance(value(env, 'checks.backend.found ? [b"a"] : []'), Unknown)


# --- errors when rules load ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "column", "message"),
    [
        ("checks.backnd.age == 1", 1, 1, "there is no name 'checks.backnd.age'; did you mean 'checks.backend.age'?"),
        ("true &&\n  checks.backend.agee", 2, 3, "there is no name 'checks.backend.agee'; did you mean 'checks.backend.age'?"),
        ("check.backend.age", 1, 1, "there is no name 'check.backend.age'; did you mean 'checks.backend.age'?"),
        ("1 > nothing", 1, 5, "there is no name 'nothing'"),
        ("checks.backend", 1, 1, "checks.backend is not a value by itself; name what you mean of it: age, desired, found, ready"),
        ("checks.db.reasons.exists(r, rr == 'a')", 1, 29, "there is no name 'rr'"),
        ("siz(labels)", 1, 1, "there is no function 'siz'; did you mean 'size'?"),
        ('alert.name.startswith("a")', 1, 12, "there is no function 'startswith'; did you mean 'startsWith'?"),
        ("alert.resolved and true", 1, 16, "unexpected 'and'; write &&"),
        ("vars.max = 1", 1, 10, "unexpected '='; write == to compare"),
        ("vars.max >", 1, 11, "syntax error: it ends too early"),
        ("vars.max 3", 1, 10, "syntax error: unexpected '3'"),
        ("'abc", 1, 1, 'syntax error: unexpected "\'"'),
        ("", 1, 1, "the expression is empty"),
        ("  // only a comment", 1, 1, "the expression is empty"),
        ('alert.name == "é" && é', 1, 22, "syntax error: unexpected 'é'"),
        ("vars.max + 'a'", 1, 10, "+ can't take (int, string); convert one side, for instance int(x) or string(x)"),
        ("vars.max && true", 1, 10, "&& can't take (int, bool); compare it first: both sides must be bool"),
        ("checks.backend.age > 5", 1, 20, '> can\'t take (duration, int); write a span of time as duration("10m")'),
        ("vars.max == null", 1, 10, "== can't take (int, null_type); no fact is null: ask known(name), or the fact's own …_found"),
        ('duration("9x")', 1, 10, '"9x" is not a duration; write it like 90s, 10m, 1h30m or 7d'),
        ('timestamp("2024")', 1, 11, '"2024" is not a time; write it like 2025-03-31T12:00:00Z'),
        ('alert.name.matches("[")', 1, 20, '"[" is not a regular expression: missing ]: ['),
        ('alert.name.matches("a(?=b)")', 1, 20, '"a(?=b)" is not a regular expression: invalid perl operator: (?='),
        ("1 / 0", 1, 1, "'1 / 0' has no value: division by zero"),
        ('int("x")', 1, 1, "'int(\"x\")' has no value: cannot convert string to int"),
        ("null", 1, 1, "its result is of type null, which nothing here takes"),
        ('b"a"', 1, 1, "its result is of type bytes, which nothing here takes"),
        ('"a\\u0000b"', 1, 1, "a NUL character can't stand in an expression"),
        ("(" * 60 + "1" + ")" * 60, 1, 1, "it is nested too deeply"),
        ("1" * (LONGEST + 1), 1, 1, f"the expression has {LONGEST + 1} characters; at most {LONGEST} are allowed"),
    ],
)
def test_faults_are_found_when_rules_load(env: Environment, text: str, line: int, column: int, message: str) -> None:
    """Every fault has its place in the author's text and is worded for the author."""
    assert refusal(env, text) == (line, column, message)


def test_condition_must_be_a_bool(env: Environment) -> None:
    """Nothing is true by being there: a condition's type is checked when rules load."""
    assert refusal(env, "vars.max", expects=FactType.BOOL)[2] == "it must be of type bool and is of type int"
    message = "it must be of type bool and is of type dyn; compare it, for instance x == true"
    assert refusal(env, "checks.db.rows[0].ok", expects=FactType.BOOL)[2] == message


def test_places_survive_rewriting(env: Environment) -> None:
    """Durations, widened literals, known() and guarded divisions before a fault don't move it."""
    before = 'duration("7d") > checks.backend.age && 1 < checks.db.latency / checks.db.total && known(checks.backend.age) && '
    assert refusal(env, before + "nothing") == (1, len(before) + 1, "there is no name 'nothing'")


def test_too_many_names_of_one_type() -> None:
    """An expression that uses more names than there are slots is refused, not miscompiled."""
    types = {f"checks.a.f{number}": FactType.INT for number in range(40)}
    text = " + ".join(types)
    assert refusal(Environment(types), text)[2] == "it uses more than 32 names of type int; split it"
    few = " + ".join(list(types)[:32])
    assert value(Environment(types), few, Facts(dict.fromkeys(types, 1))) == 32


# --- what it tells about itself --------------------------------------------------------------------------------------


def test_names_and_trace(env: Environment) -> None:
    """The trace holds each name that was used, with its value or why it has none."""
    text = 'labels.namespace == "shop" && checks.backend.age < duration("1h") && checks.db.latency < 5 && labels.other == ""'
    expression = env.compile(text)
    assert expression.names == ("checks.backend.age", "checks.db.latency", "labels.namespace", "labels.other")
    assert expression.trace(FACTS) == {
        "checks.backend.age": {"$duration": 1200.0},
        "checks.db.latency": {"unknown": "checks.db.latency is unknown: check db failed: connection refused"},
        "labels.namespace": "shop",
        "labels.other": {"unknown": "labels.other is missing"},
    }


def test_equal_by_text() -> None:
    """Rules that hold expressions compare by what was written, however often they were compiled."""
    one, other = Environment(TYPES), Environment(TYPES)
    assert one.compile("vars.max > 1") == other.compile("vars.max > 1")
    assert hash(one.compile("vars.max > 1")) == hash(other.compile("vars.max > 1"))
    assert one.compile("vars.max > 1") != one.compile("vars.max > 2")
    assert one.template({"a": "${vars.max}"}) == other.template({"a": "${vars.max}"})
    assert hash(one.template({"a": "${vars.max}"})) == hash(other.template({"a": "${vars.max}"}))


def test_one_text_two_types() -> None:
    """Programs are shared between rules; types are not."""
    as_int = Environment({"vars.x": FactType.INT}).compile("vars.x")
    as_text = Environment({"vars.x": FactType.STRING}).compile("vars.x")
    assert as_int.evaluate(Facts({"vars.x": 1})) == 1
    assert as_text.evaluate(Facts({"vars.x": "a"})) == "a"
    assert isinstance(as_int.evaluate(Facts({"vars.x": "a"})), Unknown)


@given(st.text(max_size=60))
def test_compiling_raises_nothing_else(text: str) -> None:
    """Whatever stands in a rule file, compiling gives an expression or `InvalidExpression`."""
    found: Expression | InvalidExpression
    try:
        found = Environment(TYPES).compile(text)
    except InvalidExpression as error:
        found = error
    if isinstance(found, Expression):
        found.evaluate(FACTS)
    else:
        assert str(found)
        assert min(found.line, found.column) >= 1


WORDS = st.sampled_from(
    [
        *TYPES,
        "known(",
        "duration(",
        '"7d"',
        "labels.x",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        "/",
        "<",
        "==",
        "&&",
        "!",
        "-",
        "1",
        "0",
        "2.5",
        ".",
        ",",
    ]
)


@given(st.lists(WORDS, max_size=12))
def test_compiling_words_raises_nothing_else(words: list[str]) -> None:
    """The same for texts made of the language's own words."""
    found: Expression | None = None
    with contextlib.suppress(InvalidExpression):
        found = Environment(TYPES).compile(" ".join(words))
    if found is not None:
        assert set(found.trace(FACTS)) == set(found.names)
        found.evaluate(FACTS)


@given(st.text(max_size=80))
def test_values_of_labels_are_data(text: str) -> None:
    """No text in a label is anything but text: it comes out as it went in, or is unknown."""
    expression = Environment(TYPES).compile("labels.x")
    found = expression.evaluate(Facts({"labels": {"x": text}}))
    assert found == text or isinstance(found, Unknown)
    assert isinstance(found, Unknown) == ("\0" in text or any("\ud800" <= one <= "\udfff" for one in text))


# --- templates -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ("${vars.max}", 3),
        ("${checks.backend.age}", timedelta(minutes=20)),
        ("${alert.starts_at}", datetime(2025, 3, 31, 12, tzinfo=UTC)),
        ("${checks.db.reasons}", ["OOMKilled", "Error"]),
        ("${true}", True),
        ("a-${vars.max}-${true}-${vars.namespace}", "a-3-true-shop"),
        (" ${vars.max}", " 3"),
        ("$${vars.max}", "${vars.max}"),
        ("a$${x}${vars.max}", "a${x}3"),
        ("$", "$"),
        ("$vars {x}", "$vars {x}"),
        ("${'}'}", "}"),
        ('${ {"a": "b"}.a }', "b"),
        ("${vars.max}${vars.max}", "33"),
        ({"a": ["${vars.max}", 1, None, 1.5, True], "b": {"c": "x"}}, {"a": [3, 1, None, 1.5, True], "b": {"c": "x"}}),
    ],
)
def test_s25_templates(env: Environment, tree: Any, expected: Any) -> None:
    """Alone an expression keeps its type; inside text only string, int and bool are formatted; `$${` is literal."""
    found = env.template(tree).render(FACTS)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("tree", "line", "column", "message"),
    [
        ("${vars.max", 1, 1, "this ${ is never closed; write $${ for a literal one"),
        ("x ${checks.backend.age}", 1, 5, "a value of type duration can't stand inside text; write string(…), or let it stand alone"),
        ("x ${checks.db.latency}", 1, 5, "a value of type double can't stand inside text; write string(…), or let it stand alone"),
        ("x ${checks.db.rows[0].pid}", 1, 5, "a value of type dyn can't stand inside text; write string(…), or let it stand alone"),
        ("ab\n${nothing}", 2, 3, "there is no name 'nothing'"),
        ("${}", 1, 3, "the expression is empty"),
        ({"a": [1, "${nothing}"]}, 1, 3, "a.1: there is no name 'nothing'"),
        ({"${a}": 1}, 1, 1, "a key can't hold ${…}: '${a}'"),
    ],
)
def test_template_faults(env: Environment, tree: Any, line: int, column: int, message: str) -> None:
    """A fault in a template has its place in the text and in the tree."""
    with pytest.raises(InvalidExpression) as caught:
        env.template(tree)
    assert (caught.value.line, caught.value.column, str(caught.value)) == (line, column, message)


@pytest.mark.parametrize(
    "text",
    [
        "labels[checks.db.reasons[0]] == 'x'",
        "checks.db.by_state[checks.db.reasons[0]] > 1",
        "{'a': 1}[checks.db.reasons[0]] == 1",
        "'x'.matches(checks.db.reasons[0] + '(')",
    ],
)
def test_s04_reasons_hold_no_values(env: Environment, text: str) -> None:
    """A fact may be evidence, and reasons go to viewers and into pages: they name what was read, never what it held."""
    found = env.compile(text, expects=FactType.BOOL).evaluate(FACTS)
    assert isinstance(found, Unknown)
    assert "OOMKilled" not in found.reason


def test_messages_of_a_template_begin_with_the_place(env: Environment) -> None:
    """It says where in the tree the fault is."""
    with pytest.raises(InvalidExpression, match=r"^params\.a: there is no name"):
        env.template({"params": {"a": "${nothing}"}})


def test_unknown_in_a_template_is_unknown(env: Environment) -> None:
    """One missing label makes the whole tree unknown; nothing is rendered halfway."""
    template = env.template({"a": ["x", "${labels.other}"], "b": "${vars.max}"})
    assert template.render(FACTS) == Unknown("labels.other is missing")


def test_template_tells_names_and_constancy(env: Environment) -> None:
    """A template knows the names it uses, and whether it uses none."""
    template = env.template({"a": "${labels.namespace}-${vars.max}", "b": 1})
    assert template.names == ("labels.namespace", "vars.max")
    assert not template.constant
    assert [path for path, _ in template.leaves] == [("a",), ("a",)]
    assert env.template({"a": "$${x}"}).constant


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60))
def test_constant_text_renders_as_itself(text: str) -> None:
    """Text without `${` is never changed."""
    template = Environment(TYPES).template(text.replace("${", "$"))
    assert template.render(Facts()) == text.replace("${", "$")


@given(st.text(alphabet="${}'\" \\ax1", max_size=30))
def test_templates_raise_nothing_else(text: str) -> None:
    """Whatever text a parameter holds, it is a template or an `InvalidExpression`."""
    found: Template | None = None
    with contextlib.suppress(InvalidExpression):
        found = Environment(TYPES).template(text)
    if found is not None:
        assert found.render(FACTS) is not None
