"""Which versions of which groups a server offers. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any


def parse_groups(answer: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return the versions of each group from an `APIGroupList`, the server's preferred one first. Raises ValueError for anything else.

    >>> parse_groups({"kind": "APIGroupList", "groups": [{"name": "policy", "versions": [{"version": "v1beta1"}]}]})
    {'policy': ('v1beta1',)}
    """
    if answer.get("kind") != "APIGroupList" or not isinstance(answer.get("groups"), list):
        raise ValueError(f"kind {str(answer.get('kind'))[:100]!r} instead of the list of groups")
    try:
        return {group["name"]: _versions(group) for group in answer["groups"]}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("groups that can't be read") from error


def _versions(group: Mapping[str, Any]) -> tuple[str, ...]:
    offered = [item["version"] for item in group.get("versions") or ()]
    preferred = (group.get("preferredVersion") or {}).get("version")
    return tuple(sorted(offered, key=lambda version: version != preferred))


def parse_core(answer: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the versions of the core group from an `APIVersions`. Raises ValueError for anything else."""
    if answer.get("kind") != "APIVersions" or not isinstance(answer.get("versions"), list):
        raise ValueError(f"kind {str(answer.get('kind'))[:100]!r} instead of the versions")
    return tuple(answer["versions"])


def parse_release(answer: Mapping[str, Any]) -> tuple[int, int]:
    """Return major and minor of a server's release; providers write the latter as `27+`. Raises ValueError.

    >>> parse_release({"major": "1", "minor": "27+"})
    (1, 27)
    """
    found = [re.match(r"\d+", str(answer.get(name, ""))) for name in ("major", "minor")]
    if found[0] is None or found[1] is None:
        raise ValueError("no release is named")
    return int(found[0][0]), int(found[1][0])


def choose(offered: Sequence[str], wanted: Sequence[str]) -> str | None:
    """Return the first of `wanted` that is offered: what one knows how to speak, the newest first.

    >>> choose(("v1", "v2beta2"), ("v2", "v2beta2", "v1"))
    'v2beta2'
    """
    return next((version for version in wanted if version in offered), None)
