"""Values from alerts enter PromQL only as quoted label values."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from actions.prometheus import Query, bind, quote


@pytest.mark.parametrize(
    ("query", "value", "bound"),
    [
        ("up{instance=$instance}", "10.0.0.1:9100", 'up{instance="10.0.0.1:9100"}'),
        ("up{instance!=$instance}", "a", 'up{instance!="a"}'),
        ("up{ job = 'x' , instance = $instance , }", "a", "up{ job = 'x' , instance = \"a\" , }"),
        ("a{instance=$instance} / b{instance=$instance}", "n", 'a{instance="n"} / b{instance="n"}'),
        ("up{instance=$instance} # instance=$other}", "a", 'up{instance="a"} # instance=$other}'),
        ('up{code=~"5..$",instance=$instance}', "a", 'up{code=~"5..$",instance="a"}'),
    ],
)
def test_placeholder_becomes_a_quoted_string(query: str, value: str, bound: str) -> None:
    """`$name` as the whole value of an exact matcher is replaced by a string literal; nothing else of the query changes."""
    assert bind(query, {"instance": value}) == bound


@pytest.mark.parametrize(
    ("value", "literal"),
    [
        ('x"} or vector(1) or up{a="', '"x\\"} or vector(1) or up{a=\\""'),
        ("x\\", '"x\\\\"'),
        ("x\n} or up", '"x\\n} or up"'),
        ("\x00\x1b\x7f", '"\\x00\\x1b\\x7f"'),
        ("'`$instance", '"\'`$instance"'),
        ("größe", '"größe"'),
    ],
)
def test_hostile_label_stays_inside_its_string(value: str, literal: str) -> None:
    """Quotes, backslashes, newlines and control characters of a label's value are escaped as PromQL reads them."""
    assert bind("up{instance=$instance}", {"instance": value}) == f"up{{instance={literal}}}"


@given(st.text(min_size=1))
def test_any_value_gives_one_closed_string(value: str) -> None:
    """Whatever the value, its literal is one string from end to end, so nothing can break out of it."""
    literal = quote(value)
    assert re.fullmatch(r'"(\\.|[^"\\\n\x00-\x1f])*"', literal)
    assert bind("up{a=$a}", {"a": value}) == f"up{{a={literal}}}"


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("$instance", "may only stand"),
        ("up{$instance}", "may only stand"),
        ("up{instance=~$instance}", "may only stand"),
        ("up{instance!~$instance}", "may only stand"),
        ("up{instance==$instance}", "may only stand"),
        ("up > $instance", "may only stand"),
        ("up[$instance]", "may only stand"),
        ("sum by ($instance) (up)", "may only stand"),
        ("label == $instance", "may only stand"),
        ("up{a=$instance $instance}", "may only stand"),
        ('up{a="b" instance=$instance}', "may only stand"),
        ('up{instance="$instance"}', "inside quotes"),
        ('label_replace(up{instance=$instance},"a","$instance","b","(.*)")', "inside quotes"),
        ("up{instance=$other}", "no value in args"),
        ("up", "does not use"),
        ("up{instance=$}", "must be followed by a name"),
        ("up{instance=$1}", "must be followed by a name"),
        ('up{instance="a', "not closed"),
        ("up{instance=$instance", "not closed"),
        ("up}{instance=$instance}", "unbalanced"),
        ("up{{instance=$instance}}", "unbalanced"),
    ],
)
def test_placeholder_anywhere_else_is_refused_at_load(query: str, problem: str) -> None:
    """Only a whole matcher value may come from data; regular expressions, names, numbers and quoted text may not."""
    with pytest.raises(ValidationError, match=problem):
        Query.Params.model_validate({"connection": "main", "query": query, "args": {"instance": "a"}})


def test_s03_empty_value_is_refused() -> None:
    """An empty matcher selects all series without the label: empty is not everything."""
    with pytest.raises(ValueError, match="empty"):
        bind("up{instance=$instance}", {"instance": ""})
