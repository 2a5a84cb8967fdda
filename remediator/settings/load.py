"""Read the settings file and the environment into `Settings`, with every fault at its place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from remediator.settings.model import Settings


def load_settings(path: Path, environ: Mapping[str, str]) -> Settings:
    """Read `path`, apply `REMEDIATOR_A__B` from `environ`, and validate. Raises `InvalidFiles` with every fault at once."""
    raise NotImplementedError


def reloadable_changes(old: Settings, new: Settings) -> tuple[Settings, list[str]]:
    """Return the settings to go on with, and the dotted names of changed fields that wait for a restart."""
    raise NotImplementedError
