"""Every pack as a whole: it compiles as shipped, lint has nothing to say, and nothing in it acts by itself."""

from __future__ import annotations

import re

import pytest

from remediator.model import Authority, Risk
from remediator.rules.compile import compile_rule
from remediator.rules.lint import lint
from remediator.rules.model import Rule
from tests.rules.packs.tables import PACKS, REGISTRY, ROOT, pack

RULES = [rule for name in PACKS for rule in pack(name).rules]


@pytest.mark.parametrize("name", PACKS)
def test_pack_compiles_as_shipped_and_lint_is_clean(name: str) -> None:
    """A new user's first `remediator check` says that all is well."""
    assert [str(problem) for problem in lint(pack(name))] == []


def test_packs_work_side_by_side() -> None:
    """Alerts that two packs know belong to the more specific one, by priority, so that lint is clean for both together."""
    both = pack(*PACKS)
    assert lint(both) == []
    assert [rule.name for rule in both.matching({"alertname": "RedisDown", "instance": "cache:9121"})] == [
        "syncwatch-redis-down",
        "redis-down",
    ]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_no_rule_acts_by_itself_as_shipped(rule: Rule) -> None:
    """Trust is earned: no shipped rule is in mode auto, and what is risky asks for people by its own text, too."""
    assert rule.mode is Authority.APPROVE
    for remedy in rule.remedies:
        assert remedy.risk is not Risk.HIGH or remedy.approval is not None, f"{remedy.name} is risky and names no approval"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_rule_survives_a_restart(rule: Rule) -> None:
    """A run's frozen rule compiles again from its stored text, to the same hash."""
    assert compile_rule(rule.source, REGISTRY).hash == rule.hash


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_rule_explains_itself(rule: Rule) -> None:
    """Each file says to a tired reader what it means, looks at, never does, and what to do by hand; each rule has a description."""
    text = (ROOT / "rules" / rule.pack / rule.file.rpartition("/")[2]).read_text()
    for word in ("WHAT THE ALERT MEANS", "LOOKS AT", "NEVER", "BY HAND"):
        assert f"# {word}" in text
    assert ("# ACTS WHEN" in text) == bool(rule.remedies)
    assert rule.description


def test_readme_lists_every_rule() -> None:
    """The table of contents is complete."""
    text = (ROOT / "rules" / "README.md").read_text()
    assert {rule.name for rule in RULES} <= set(re.findall(r"`([a-z-]+)`", text))
