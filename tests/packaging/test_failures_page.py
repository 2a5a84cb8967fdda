"""docs/failures.md: every published failure has a row, and what stops it, its default and its tests exist."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from remediator.guards import ALL_GUARDS
from remediator.guards.catalogue import MOMENTS, catalogue
from tests.packaging.image import ROOT

PAGE = (ROOT / "docs/failures.md").read_text()
FAILURES = (
    *("Facebook, 2010", "Google, CDN disks", "GitHub, 2012", "GitHub, 2018", "Reddit, 2016", "Azure, 2012", "AWS EBS, 2011"),
    *("AWS DynamoDB, 2025", "Google, 2019", "Slack, 2021", "Cloudflare, 2020", "Robusta #345", "cold start", "39 identical requests"),
    *("rollout undo", "Robusta's queue", "prometheus-am-executor", "GitOps"),
)
"""Beginnings of the rows that must be there: what was published."""
WISHES = ("Page only", "Several budget", "Locks across", "Several replicas", "useless", "Silence", "shadow mode", "Undo", "Approvals")
Row = tuple[str, str, str, str]


def rows(text: str) -> Sequence[Row]:
    """Return the four cells of each row of a table."""
    found = [tuple(cell.strip() for cell in line.strip("|").split(" | ")) for line in text.splitlines() if line.startswith("| ")]
    return [(one[0], one[1], one[2], one[3]) for one in found if one[0] not in ("what happened", "what is asked for", "---")]


FIRST, _, SECOND = PAGE.partition("## What people ask for")
TABLE = rows(FIRST)
ALL = [*TABLE, *rows(SECOND)]
IDS = [row[0][:30] for row in ALL]


def test_no_failure_is_missing() -> None:
    """Whoever removes a row says so here."""
    for table, wanted in ((TABLE, FAILURES), (rows(SECOND), WISHES)):
        assert len(table) == len(wanted)
        assert [name for name, row in zip(wanted, table, strict=True) if name not in row[0]] == []


@pytest.mark.parametrize("row", ALL, ids=IDS)
def test_what_stops_it_exists(row: Row) -> None:
    """Each row names guards of the catalogue, or places in the code that are there; and says what holds by default."""
    names = {guard.name for guard in ALL_GUARDS}
    quoted = re.findall(r"`([^`]+)`", row[1])
    places = [one for one in quoted if ".py" in one]
    known = [one for one in quoted if one in names]
    assert known or places
    assert [one for one in quoted if one not in names and one not in places and ":" not in one] == []
    for place in places:
        path, _, symbol = place.partition("::")
        assert (ROOT / path).exists(), place
        found: object = importlib.import_module(path.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
        for part in filter(None, symbol.split(".")):
            found = getattr(found, part)
    assert row[2]


@pytest.mark.parametrize("row", ALL, ids=IDS)
def test_its_tests_exist(row: Row) -> None:
    """Each row names tests by path and name, and each is there."""
    quoted = re.findall(r"`([^`]+)`", row[3])
    assert quoted
    for one in quoted:
        path, _, name = one.partition("::")
        assert (ROOT / path).is_file(), one
        assert not name or name in defined(ROOT / path), one


@pytest.mark.parametrize("row", TABLE, ids=[row[0][:30] for row in TABLE])
def test_the_failure_itself_is_reproduced(row: Row) -> None:
    """The first test of each published failure is one that reproduces it against real servers, with guard off and on."""
    first = re.findall(r"`([^`]+)`", row[3])[0]
    assert first.startswith(("tests/failures/", "tests/kubernetes/test_failures.py"))


def defined(path: Path) -> set[str]:
    """Return the names of a file's tests."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_test_of_a_failure_is_in_the_table() -> None:
    """A failure that is reproduced is told of."""
    files = [*(ROOT / "tests/failures").glob("test_*.py"), ROOT / "tests/kubernetes/test_failures.py"]
    names = {name for path in files for name in defined(path) if name.startswith("test_")}
    assert [name for name in sorted(names) if name not in PAGE] == []


def test_every_guard_says_what_holds_by_default() -> None:
    """`remediator guards` has a default, a moment and its keys for each; the reference says what each moment is."""
    told = set(re.findall(r"^\| ([\w ]+) \|", (ROOT / "docs/reference/guards.md").read_text(), re.MULTILINE))
    assert {moment for _, moment in MOMENTS} <= told
    for one in catalogue():
        assert one["default"], one
        assert one["asked"], one
        assert isinstance(one["rule"], str)
