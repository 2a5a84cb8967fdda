"""Finding the rules that match an alert without asking every rule. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from remediator.rules.matchers import Pattern
from remediator.rules.model import MatchOperator, Rule

Pair = tuple[str, str]


class RuleIndex:
    """Rules by one of the labels they ask for. The lookup costs what the alert's labels lead to, not the number of rules.

    Each rule is filed under its most distinguishing equality matcher (`alertname = "X"`, or `=~ "x|y"` under both values); rules that
    have none are asked one by one.
    """

    def __init__(self, rules: Iterable[Rule]) -> None:
        self._rules = sorted(rules, key=_order)
        self._filed: dict[Pair, list[Rule]] = {}
        self._rest: list[Rule] = []
        shared = Counter(pair for rule in self._rules for choice in _choices(rule) for pair in choice)
        for rule in self._rules:
            choices = sorted(_choices(rule), key=lambda choice: (max(shared[pair] for pair in choice), len(choice)))
            if not choices:
                self._rest.append(rule)
            for pair in choices[0] if choices else ():
                self._filed.setdefault(pair, []).append(rule)

    def matching(self, labels: Mapping[str, str]) -> list[Rule]:
        """Return the rules whose matchers all hold, best first: by priority, then by name. Disabled rules are among them."""
        filed = self._filed
        # A label has one value, so each rule is met at most once.
        found = [rule for pair in labels.items() if pair in filed for rule in filed[pair] if rule.matches(labels)]
        if self._rest:
            found += [rule for rule in self._rest if rule.matches(labels)]
        if len(found) > 1:
            found.sort(key=_order)
        return found


def _order(rule: Rule) -> tuple[int, str]:
    return rule.priority, rule.name


def _choices(rule: Rule) -> Iterator[tuple[Pair, ...]]:
    """Yield, for each matcher of a rule that can be filed, the labels that an alert needs one of."""
    for matcher in rule.match:
        if matcher.operator is MatchOperator.EQUAL and matcher.value:
            yield ((matcher.label, matcher.value),)
        elif matcher.operator is MatchOperator.MATCHES and isinstance(matcher.pattern, Pattern) and matcher.pattern.values:
            values = sorted(matcher.pattern.values)
            if all(values) and len(values) <= 64:
                yield tuple((matcher.label, value) for value in values)
