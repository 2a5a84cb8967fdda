"""The reference pages name everything there is."""

from __future__ import annotations

from pathlib import Path

from remediator.cli.program import COMMANDS
from remediator.web.app import ROUTES

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


def test_api_page_names_every_route() -> None:
    """A route that is not in the reference does not exist for people."""
    text = (REFERENCE / "api.md").read_text()
    for route in ROUTES:
        assert f"`{route.method} {route.path}`" in text, route.path


def test_cli_page_names_every_command() -> None:
    """So it is with commands."""
    text = (REFERENCE / "cli.md").read_text()
    for command in COMMANDS:
        assert f"`{command.__name__}" in text, command.__name__
