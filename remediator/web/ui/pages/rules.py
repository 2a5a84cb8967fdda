"""Rules: how each has done, how far it may go, and its text as it was loaded."""

from __future__ import annotations

import yaml

from remediator.model import Authority
from remediator.rules.model import Rule
from remediator.trust.scorecard import Card
from remediator.web.routes import missing
from remediator.web.scorecard import cards
from remediator.web.ui.page import Page, Shown, View


async def show_list(page: Page) -> Shown:
    """List all rules with their cards."""
    rules = sorted(page.service.rules.rules, key=lambda rule: rule.name)
    found: list[Card] = await cards(page.call, rules, None)
    return Shown("rules.html", "Rules", {"rows": list(zip(rules, found, strict=True))})


async def show(page: Page) -> Shown:
    """Show one rule: its record, its limits, its text."""
    name = page.part("rule")
    rule = page.service.rules.rule(name)
    if rule is None:
        raise missing("rule", name)
    (card,) = await cards(page.call, [rule], rule.name)
    data = {
        "rule": rule,
        "card": card,
        "text": _text(rule),
        "higher": [one for one in Authority if card.authority.rank < one.rank <= rule.mode.rank and one is not Authority.OBSERVE],
        "lower": [one for one in Authority if one.rank < card.authority.rank and one is not Authority.AUTO],
    }
    return Shown("rule.html", f"Rule {name}", data)


def _text(rule: Rule) -> str:
    """Write a rule as it was loaded, after defaults and variables."""
    shown = {name: value for name, value in rule.source.items() if value}
    return yaml.safe_dump(shown, sort_keys=False, allow_unicode=True, width=110)


VIEWS = (View("/ui/rules", show_list), View("/ui/rules/{rule}", show))
