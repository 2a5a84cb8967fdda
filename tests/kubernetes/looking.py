"""Running checks of Kubernetes as rules do, and holding what they say against their declaration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from remediator.action import Check
from remediator.model import Value
from remediator.testing import LocalContext, assert_facts_match


async def look(check: type[Check[Any]], ctx: LocalContext, **params: Any) -> Mapping[str, Value]:
    """Run a check with parameters as a rule would write them, on `prod`; the facts are of their declared types, and small."""
    facts = await check().run(check.Params.model_validate({"cluster": "prod", **params}), ctx)
    assert_facts_match(check, facts)
    return facts


def some(facts: Mapping[str, Value], *names: str) -> dict[str, Value]:
    """Return only these facts; one that is unknown is missing."""
    return {name: facts[name] for name in names if name in facts}
