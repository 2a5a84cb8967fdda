"""Putting the parts together: what the settings know is held against the rules."""

from __future__ import annotations

from pathlib import Path

import pytest

from remediator.app import load_rules
from remediator.errors import InvalidFiles
from remediator.registry import Registry
from remediator.settings import load_settings

RULE = """
rules:
  - name: site
    match: ['alertname = "SiteDown"']
    severity: {severity}
    escalation: {escalation}
    checks:
      site: {{http.get: {{connection: {connection}, path: /health}}}}
"""


def load(tmp_path: Path, **words: str) -> None:
    pack = tmp_path / "pack"
    pack.mkdir()
    (pack / "site.yaml").write_text(RULE.format(**{"severity": "sev1", "escalation": "default", "connection": "shop", **words}))
    (tmp_path / "remediator.yaml").write_text(
        "connections:\n  shop: {kind: http, base_url: 'https://shop.example.com'}\npacks:\n  mine: {path: pack}\n"
    )
    load_rules(load_settings(tmp_path / "remediator.yaml", {}), Registry())


def test_rules_that_fit_the_settings_load(tmp_path: Path) -> None:
    """Names that the settings have are fine."""
    load(tmp_path)


@pytest.mark.parametrize(
    ("words", "line", "expected"),
    [({"severity": "sev9"}, 5, "sev9"), ({"escalation": "nobody"}, 6, "nobody"), ({"connection": "shpo"}, 8, "shop")],
)
def test_names_that_the_settings_do_not_have_are_refused_at_their_place(
    tmp_path: Path, words: dict[str, str], line: int, expected: str
) -> None:
    """A typing error in a rule is found when it loads, not when the site is down; the nearest name is told."""
    with pytest.raises(InvalidFiles) as caught:
        load(tmp_path, **words)
    (problem,) = caught.value.problems
    assert problem.line == line
    assert expected in problem.message
