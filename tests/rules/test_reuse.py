"""Loading again: what did not change is taken from the rules in force, and whoever is served meanwhile does not wait for it."""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from pathlib import Path

import pytest

from benchmarks.rules import rule, settings, write
from remediator.errors import InvalidFiles
from remediator.registry import Registry
from remediator.rules.compile import RuleSet
from remediator.rules.loading import let_go, load_beside, load_rules
from remediator.settings import Settings

COUNT = 150


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    """Return a pack of three files."""
    write(tmp_path / "many", COUNT)
    return tmp_path / "many"


def same(old: RuleSet, new: RuleSet) -> int:
    """Count rules that are the very same objects."""
    return sum(new.rule(one.name) is one for one in old.rules)


def edit(pack: Path, old: str, new: str, *, file: str = "rules-00000.yaml") -> None:
    """Change a file."""
    path = pack / file
    path.write_text(path.read_text().replace(old, new))


def test_only_changed_files_are_compiled_again(pack: Path) -> None:
    """Unchanged files give the same rules; a changed one gives what a fresh load would give."""
    registry = Registry()
    first = load_rules(settings(pack), registry)
    again = load_rules(settings(pack), registry, old=first)
    assert (same(first, again), again.hash) == (COUNT, first.hash)
    edit(pack, "sev2", "sev3")
    changed = load_rules(settings(pack), registry, old=again)
    assert same(first, changed) == COUNT - 50
    fresh = load_rules(settings(pack), Registry())
    assert (changed.hash, changed.rules) == (fresh.hash, fresh.rules)
    (pack / "rules-00050.yaml").unlink()
    assert len(load_rules(settings(pack), registry, old=changed).rules) == COUNT - 50


def test_what_a_file_depends_on_is_part_of_it(pack: Path) -> None:
    """The pack's defaults and variables, and the names that the settings know, compile every file again."""
    registry = Registry()
    plain = settings(pack)
    first = load_rules(plain, registry)
    (pack / "pack.yaml").write_text("vars: {mode: {type: string, default: a}}\ndefaults: {priority: 7}\n")
    second = load_rules(plain, registry, old=first)
    assert (same(first, second), {one.priority for one in second.rules}) == (0, {7})
    named = plain.model_dump(mode="json", exclude_none=True, exclude_unset=True)
    named["packs"]["many"]["vars"] = {"mode": "b"}
    third = load_rules(Settings.model_validate(named), registry, old=second)
    assert (same(second, third), third.rules[0].vars) == (0, {"mode": "b"})
    named["connections"] = {"other": named["connections"]["sink"]}
    with pytest.raises(InvalidFiles, match="there is no connection 'sink'"):
        load_rules(Settings.model_validate(named), registry, old=third)


def test_faults_of_all_files_come_in_one_pass_also_beside_known_ones(pack: Path) -> None:
    """Faults within files and between them, of changed files, next to files that are taken as they are."""
    registry = Registry()
    first = load_rules(settings(pack), registry)
    edit(pack, "status >= 500", "statuss >= 500")
    edit(pack, "http.request:", "http.requets:", file="rules-00050.yaml")
    (pack / "twice.yaml").write_text(f"rules:\n{rule(120)}")
    with pytest.raises(InvalidFiles) as caught:
        load_rules(settings(pack), registry, old=first)
    problems = caught.value.problems
    by_file = {
        name: [one for one in problems if one.file.endswith(name)] for name in ("rules-00000.yaml", "rules-00050.yaml", "twice.yaml")
    }
    assert {name: len(found) for name, found in by_file.items()} == {"rules-00000.yaml": 50, "rules-00050.yaml": 50, "twice.yaml": 1}
    assert "a second rule 'service-120'" in by_file["twice.yaml"][0].message


async def test_event_loop_goes_on_while_rules_load(tmp_path: Path) -> None:
    """The loop comes round all the time; afterwards the collector and the interpreter are as they were."""
    write(tmp_path / "many", 1000)
    interval, rounds, longest = sys.getswitchinterval(), 0, 0.0
    old = load_rules(settings(tmp_path / "many"), Registry())
    write(tmp_path / "many", 950)
    loading = asyncio.create_task(load_beside(settings(tmp_path / "many"), Registry(), RuleSet.of(old.rules)))
    while not loading.done():
        began = time.perf_counter()
        await asyncio.sleep(0.001)
        rounds, longest = rounds + 1, max(longest, time.perf_counter() - began)
    new = await loading
    assert rounds > 50
    assert longest < 0.5  # on a machine that others use too; benchmarks/rules.py measures
    assert (gc.isenabled(), sys.getswitchinterval()) == (True, interval)
    retired = list(old.rules)
    await let_go(retired)
    assert (retired, len(new.rules)) == ([], 950)
