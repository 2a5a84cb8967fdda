"""The example of docs/how-to/write-a-rule.md does what the page says."""

from __future__ import annotations

import re
from datetime import timedelta

import yaml

from remediator.rules.compile import PackSource, RuleSet, compile_ruleset
from remediator.rules.lint import lint
from remediator.settings import Settings
from tests.rules.packs.tables import REGISTRY, ROOT, Seen, changed, choose, rule

PAGE = (ROOT / "docs" / "how-to" / "write-a-rule.md").read_text()
BLOCKS = dict(re.findall(r"```yaml\n# (\S+)\n(.*?)```", PAGE, re.DOTALL))
STUCK: Seen = {
    "queue": {"found": True, "length": 80},
    "done": {"found": True, "value": 0.0},
    "workers": {"found": True, "age": timedelta(hours=3), "healthy": True},
}


def example() -> RuleSet:
    """Compile the page's pack."""
    files = {name: text.encode() for name, text in BLOCKS.items() if name.startswith("rules/")}
    settings = Settings.model_validate(yaml.safe_load(BLOCKS["remediator.yaml"]))
    names = (*settings.connections, "prometheus")
    return compile_ruleset([PackSource("thumbnails", {}, files)], REGISTRY, tuple(settings.severities), connections=names)


def test_example_compiles_and_lint_is_clean() -> None:
    """Settings, pack and rule are complete, and fit each other by name."""
    assert set(BLOCKS) == {"remediator.yaml", "rules/thumbnails/pack.yaml", "rules/thumbnails/thumbnailer-stuck.yaml"}
    assert lint(example()) == []


def test_example_matches_the_alert_that_the_page_rehearses() -> None:
    """The labels of the page's alert.json find the rule."""
    (found,) = example().matching({"alertname": "ThumbnailerStuck", "severity": "warning"})
    assert found.name == "thumbnailer-stuck"


def test_example_does_what_the_page_says() -> None:
    """Jobs wait and none get done: restart. Some get done, a fresh release, or anything unknown: a person."""
    found = rule(example(), "thumbnailer-stuck")
    chosen = choose(found, STUCK, {}).remedy
    assert chosen is not None
    assert chosen.name == "restart the workers"
    for other in (
        changed(STUCK, done={"value": 3.0}),
        changed(STUCK, workers={"age": timedelta(minutes=5)}),
        changed(STUCK, queue={"found": False, "length": 0}),
        changed(STUCK, done=None),
    ):
        assert choose(found, other, {}).remedy is None
