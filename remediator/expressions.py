"""Conditions and `${…}` templates: CEL, type-checked when rules load, never guessing when a fact is missing.

Pure: no I/O, no clock, no logging. Nothing outside this module touches the CEL library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from remediator.action import FactType
from remediator.model import JSON, Value


@dataclass(frozen=True)
class Unknown:
    """A value that is not known. `reason` names the missing thing and why it is missing."""

    reason: str


@dataclass(frozen=True)
class Facts:
    """What is known: flat qualified names to values, and names (or prefixes such as `checks.backend`) to why they are unknown."""

    values: Mapping[str, Value] = field(default_factory=dict)
    unknown: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Expression:
    """A compiled expression; equal to any other with the same text and type."""

    text: str
    type: FactType
    names: tuple[str, ...] = ()
    """Qualified names it uses, sorted."""

    def evaluate(self, facts: Facts) -> Value | Unknown:
        """Return the value, or `Unknown` when it can't be told."""
        raise NotImplementedError

    def trace(self, facts: Facts) -> dict[str, JSON]:
        """Return every name it uses with its encoded value, or `{"unknown": reason}`."""
        raise NotImplementedError


@dataclass(frozen=True)
class Template:
    """A compiled tree of constants and strings with `${…}`; equal to any other with the same source."""

    source: JSON
    names: tuple[str, ...] = ()
    constant: bool = False

    def render(self, facts: Facts) -> JSON | Unknown:
        """Return the tree with every expression replaced by its value, or `Unknown`."""
        raise NotImplementedError


class Environment:
    """The names that expressions may use, with their types. Immutable; compiles expressions and templates."""

    def __init__(self, types: Mapping[str, FactType]) -> None:
        self.types = dict(types)

    def compile(self, text: str, *, expects: FactType | None = None) -> Expression:
        """Compile `text`. Raises `InvalidExpression` with line and column inside `text`."""
        raise NotImplementedError

    def template(self, tree: JSON, *, path: str = "") -> Template:
        """Compile every `${…}` in `tree`; `path` names the tree in messages. Raises `InvalidExpression`."""
        raise NotImplementedError
