"""Find actions, checks and kinds of connections by name, importing a system's module only when it is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from remediator.action import Action, Check, Connection, Provider
from remediator.model import JSON


class Registry:
    """The catalogue: built-in systems, entry points of group `remediator.actions`, and directories of the settings."""

    def __init__(self, paths: Iterable[Path] = ()) -> None:
        self.paths = tuple(paths)

    def action(self, name: str) -> type[Action[Any]] | None:
        """Return the action called `system.verb`, None when there is none."""
        raise NotImplementedError

    def check(self, name: str) -> type[Check[Any]] | None:
        """Return the check called `system.noun`, None when there is none."""
        raise NotImplementedError

    def connection_kind(self, kind: str) -> type[Connection] | None:
        """Return the model of a kind of connection, None when there is none."""
        raise NotImplementedError

    def connection_kinds(self) -> tuple[str, ...]:
        """Return all kinds of connections. This imports every system."""
        raise NotImplementedError

    def systems(self) -> tuple[str, ...]:
        """Return the names of all systems, without importing any."""
        raise NotImplementedError

    def catalogue(self) -> tuple[Provider, ...]:
        """Import every system and return them all, by name. Broken ones are in `problems`."""
        raise NotImplementedError

    def action_names(self, system: str | None = None) -> tuple[str, ...]:
        """Return all actions' names, or one system's. Without `system` this imports every system."""
        raise NotImplementedError

    def check_names(self, system: str | None = None) -> tuple[str, ...]:
        """Return all checks' names, or one system's. Without `system` this imports every system."""
        raise NotImplementedError

    @property
    def problems(self) -> Sequence[str]:
        """What went wrong with third parties' modules seen so far; the rest of the catalogue works."""
        raise NotImplementedError


def describe_action(cls: type[Action[Any]]) -> dict[str, JSON]:
    """Describe an action as plain JSON: name, description, risk, repeat, reversible, permissions, params (JSON Schema), example."""
    raise NotImplementedError


def describe_check(cls: type[Check[Any]]) -> dict[str, JSON]:
    """Describe a check as plain JSON: name, description, facts, permissions, params (JSON Schema), example."""
    raise NotImplementedError
