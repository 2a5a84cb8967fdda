"""Programs that commands run, in a directory that nobody else writes to."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actions.command.connection import CommandConnection
from remediator.testing import LocalContext

Write = Callable[[str, str], str]


@pytest.fixture
def program(tmp_path: Path) -> Write:
    """Return a function that writes a shell script and returns its path."""

    def write(name: str, text: str) -> str:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return str(path)

    return write


def connection(*allow: str | tuple[str, ...], **more: Any) -> CommandConnection:
    """Return a connection that runs as whoever runs the tests, everything of the programs given alone."""
    listed = [(one, "**") if isinstance(one, str) else one for one in allow]
    return CommandConnection.model_validate({"allow": listed, "user": str(os.getuid()), "grace": "300ms", **more})


def context(*allow: str | tuple[str, ...], key: str = "run-1/1", **more: Any) -> LocalContext:
    """Return a context whose connection `here` is such a one."""
    return LocalContext({"here": connection(*allow, **more)}, key=key)


def replace_program(path: str) -> None:
    """Put another file with nearly the same contents into the place of a program."""
    file = Path(path)
    text = file.read_text()
    file.unlink()
    file.write_text(f"{text}\n# another one\n")
    file.chmod(0o755)
