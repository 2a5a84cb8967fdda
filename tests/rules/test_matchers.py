"""Alertmanager's matchers: syntax, meaning, and regular expressions that can't stall anything."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remediator.errors import InvalidExpression
from remediator.rules.matchers import MAX_LENGTH, Pattern, parse_matchers
from remediator.rules.model import Matcher, MatchOperator


def shown(text: str) -> list[tuple[str, str, str]]:
    """Return label, operator and value of each matcher."""
    return [(one.label, one.operator.value, one.value) for one in parse_matchers(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('alertname = "SiteDown"', [("alertname", "=", "SiteDown")]),
        ("alertname=SiteDown", [("alertname", "=", "SiteDown")]),
        ('severity =~ "critical|high"', [("severity", "=~", "critical|high")]),
        ('a!="b"', [("a", "!=", "b")]),
        ('a!~"b.*"', [("a", "!~", "b.*")]),
        ('{a="b", c=~"d"}', [("a", "=", "b"), ("c", "=~", "d")]),
        ('{a="b",}', [("a", "=", "b")]),
        ('a="b", c="d"', [("a", "=", "b"), ("c", "=", "d")]),
        ("{}", []),
        ('"größe.x"="ü"', [("größe.x", "=", "ü")]),
        ("größe=ü", [("größe", "=", "ü")]),
        (r'a="x\"y\\z\n\t"', [("a", "=", 'x"y\\z\n\t')]),
        (r'a="\u00e4\U0001F600\x41\101"', [("a", "=", "ä😀AA")]),
        ('a=""', [("a", "=", "")]),
        ('a="${vars.x}"', [("a", "=", "${vars.x}")]),
    ],
)
def test_syntax(text: str, expected: list[tuple[str, str, str]]) -> None:
    """Quoted and bare names and values, lists in braces, escapes as Go has them."""
    assert shown(text) == expected


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("", 1, 'the matcher is empty; write it like alertname = "SiteDown"'),
        ("alertname", 10, "it ends where one of = != =~ !~ must follow"),
        ("alertname =", 12, "it ends where a value must follow"),
        ('= "a"', 1, "unexpected '='; a label name must stand here"),
        ('a == "b"', 4, "unexpected '='; a value must stand here"),
        ('a ! "b"', 3, "unexpected '!'; quote it"),
        ('a = "b', 5, "unexpected '\"'; a quote is never closed"),
        ("a = 'b'", 5, 'unexpected "\'"; quote it'),
        ('{a="b"', 1, "the brace is never closed"),
        ('a="b" c="d"', 7, "unexpected 'c'; separate matchers by commas"),
        ('""="b"', 1, "the label name is empty"),
        (r'a="\q"', 4, "unknown escape \\q"),
        (r'a="x\x00"', 5, "\\x00 is not a character a label can hold"),
        (r'a="\ud800"', 4, "\\ud800 is not a character a label can hold"),
        (r'a="\xff"', 4, "\\xff is not a character a label can hold"),
        ('a =~ "("', 6, "'(' is not a regular expression of RE2: missing ): ("),
        ('a =~ "(?=b)"', 6, "'(?=b)' is not a regular expression of RE2: invalid perl operator: (?="),
        (r'a =~ "(b)\\1"', 6, r"'(b)\\1' is not a regular expression of RE2: invalid escape sequence: \1"),
        ('a =~ "x)|(y"', 6, "'x)|(y' is not a regular expression of RE2: unexpected ): x)|(y"),
        ('a =~ "x{5000}"', 6, "'x{5000}' is not a regular expression of RE2: invalid repetition size: {5000}"),
        (f'a="{"x" * MAX_LENGTH}"', 1, f"the matcher has {MAX_LENGTH + 4} characters; at most {MAX_LENGTH} are allowed"),
    ],
)
def test_faults(text: str, column: int, message: str) -> None:
    """Each fault has its column and says what must stand there."""
    with pytest.raises(InvalidExpression) as caught:
        parse_matchers(text)
    assert (caught.value.column, str(caught.value)) == (column, message)


@pytest.mark.parametrize(
    ("text", "labels", "expected"),
    [
        ('a="b"', {"a": "b"}, True),
        ('a="b"', {}, False),
        ('a=""', {}, True),
        ('a!="b"', {}, True),
        ('a!="b"', {"a": "b"}, False),
        ('a=~"b|c"', {"a": "c"}, True),
        ('a=~"b|c"', {"a": "bc"}, False),
        ('a=~"b.*"', {"a": "bcd"}, True),
        ('a=~"b.*"', {"a": "abc"}, False),
        ('a=~"x|y.*z"', {"a": "xz"}, False),
        ('a=~".*"', {}, True),
        ('a=~".+"', {}, False),
        ('a!~"b.+"', {"a": "bc"}, False),
        ('a!~"b.+"', {}, True),
        ('a=~"(?i)SHOP"', {"a": "shop"}, True),
        ('a=~"a.b"', {"a": "a\nb"}, False),
        ('a=~"a"', {"a": "a\n"}, False),
        ('a=~"[[:alpha:]]+"', {"a": "shop"}, True),
        ('a=~"b|"', {}, True),
    ],
)
def test_meaning(text: str, labels: dict[str, str], expected: bool) -> None:
    """A missing label is the empty text; regular expressions are RE2's and match the whole value."""
    (one,) = parse_matchers(text)
    assert one.matches(labels) is expected


def test_no_expression_takes_exponential_time() -> None:
    """An expression that would keep Python's `re` busy for years answers at once."""
    pattern = Pattern("(a+)+b|(a|aa)+c|(.*)*d")
    started = time.perf_counter()
    assert pattern.fullmatch("a" * 4000) is None
    assert time.perf_counter() - started < 1


def test_alternations_of_plain_words_are_known() -> None:
    """`critical|high` is a set of values, which the index can file a rule under."""
    assert Pattern("critical|high").values == {"critical", "high"}
    assert Pattern("a.b").values is None
    assert Pattern("(a|b)").values is None


NAMES = st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)
VALUES = st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)


@given(NAMES, st.sampled_from([MatchOperator.EQUAL, MatchOperator.NOT_EQUAL]), VALUES)
def test_round_trip(name: str, operator: MatchOperator, value: str) -> None:
    """A matcher that is written out reads back as itself, whatever its label and value hold."""
    matcher = Matcher(name, operator, value)
    assert parse_matchers(str(matcher)) == [matcher]


@given(st.text(max_size=40) | st.text(alphabet='ab={}!~,"\\ |*(', max_size=20))
def test_raises_nothing_else(text: str) -> None:
    """Whatever stands in a rule file, it is a list of matchers or `InvalidExpression`."""
    try:
        found = parse_matchers(text)
    except InvalidExpression:
        return
    for one in found:
        assert one.matches({one.label: "x"}) in (True, False)


@given(st.text(alphabet="ab|", max_size=8), st.text(alphabet="ab|", max_size=4))
def test_words_match_as_the_expression_would(text: str, value: str) -> None:
    """The short cut for plain alternations never answers otherwise than RE2."""
    by_expression = Pattern(f"(?:{text})")
    assert by_expression.values is None
    assert Pattern(text).fullmatch(value) == by_expression.fullmatch(value)
