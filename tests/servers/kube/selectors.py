"""Label selectors, as they stand in queries."""

from __future__ import annotations

import re
from collections.abc import Mapping


def selects(selector: str, labels: Mapping[str, str]) -> bool:
    """Tell whether labels fit: `a=b`, `a!=b`, `a in (b,c)`, `a notin (b,c)`, `a`, `!a`. Raises ValueError for anything else."""
    for term in re.findall(r"[^,(]+(?:\([^)]*\))?", selector):
        match = re.fullmatch(r"\s*(!?)([\w./-]+)\s*(?:(==?|!=)\s*([\w.-]*)|(in|notin)\s*\(([^)]*)\))?\s*", term)
        if match is None:
            raise ValueError(f"no selector: {term!r}")
        absent, key, sign, value, word, values = match.groups()
        chosen = {item.strip() for item in values.split(",")} if word else {value}
        here = labels.get(key) in chosen if sign or word else key in labels
        if here == bool(absent or sign == "!=" or word == "notin"):
            return False
    return True
