"""Every decision that the design rests on has tests named after it, and the pages name tests that exist."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.packaging.image import ROOT

DECISIONS = range(1, 27)
_NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


@pytest.fixture(scope="module")
def names() -> Mapping[Path, set[str]]:
    """Names of all tests by file."""
    found: dict[Path, set[str]] = defaultdict(set)
    for path in (ROOT / "tests").rglob("*.py"):
        text = path.read_text()
        if "def test_" in text:
            nodes = ast.walk(ast.parse(text))
            found[path] = {
                node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
            }
    return found


def test_each_decision_has_tests_named_after_it(names: Mapping[Path, set[str]]) -> None:
    """A decision without a test is a wish."""
    carried = {int(number) for found in names.values() for name in found for number in re.findall(r"_s(\d\d)(?=_)", name)}
    assert set(DECISIONS) <= carried
    assert carried <= set(DECISIONS)


def test_the_page_lists_every_decision_with_a_test_of_its_own(names: Mapping[Path, set[str]]) -> None:
    """Each row names tests that exist, of which one at least carries the row's number."""
    page = (ROOT / "docs/how-it-is-tested.md").read_text()
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \| (.+) \|$", page, re.MULTILINE)
    assert [int(number) for number, _, _ in rows] == list(DECISIONS)
    for number, _, tests in rows:
        named = _NAMED.findall(tests)
        assert [one for one in named if one[1] not in names[ROOT / one[0]]] == []
        assert all(f"_s{int(number):02}_" in name for _, name in named)
        assert named
