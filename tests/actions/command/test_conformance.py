"""`command.run` keeps the contract of actions, for each class of repetition that a rule may declare."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from actions.command.run import Run
from remediator.model import JSON
from remediator.testing import ActionConformance, LocalContext
from tests.actions.command.conftest import Write, context, replace_program

FLAG = """
case "$1" in
  on) echo on > {file} ;;
  off) rm -f {file} ;;
  is-on) test -e {file} ;;
esac
"""


class _Flag(ActionConformance):
    """A command that sets a flag, and its opposite."""

    action = Run()

    @pytest.fixture(autouse=True)
    def _program(self, tmp_path: Path, program: Write) -> None:
        self.flag = tmp_path / "flag"
        self.path = program("flagctl", FLAG.format(file=self.flag))

    def wish(self) -> dict[str, Any]:
        """Return the parameters."""
        return {"connection": "here", "argv": [self.path, "on"], "undo": [self.path, "off"], "touches": ["flag"]}

    async def prepare(self) -> tuple[LocalContext, Mapping[str, Any]]:
        """Take the flag away."""
        self.flag.unlink(missing_ok=True)
        return context(self.path), self.wish()

    async def state(self) -> JSON:
        """Whether the flag is there."""
        return self.flag.exists()

    async def disturb(self) -> None:
        """Put another program into the place of the one that was planned."""
        replace_program(self.path)


class TestNever(_Flag):
    """Where the rule says nothing, nobody can tell."""


class TestDetectable(_Flag):
    """Where the rule has a command that can tell."""

    def wish(self) -> dict[str, Any]:
        """Return the parameters with `detect`."""
        return {**super().wish(), "repeat": "detectable", "detect": [self.path, "is-on"]}
