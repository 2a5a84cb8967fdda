"""Reading a pack's files from disk: the only module of `remediator.rules` that does I/O."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from remediator.errors import InvalidFiles, Problem
from remediator.model import JSON
from remediator.rules.packs import PackSource
from remediator.rules.parse import MAX_BYTES

MAX_FILES = 2_000
_SUFFIXES = (".yaml", ".yml")


def read_pack(path: Path, *, name: str = "", values: Mapping[str, JSON] | None = None) -> PackSource:
    """Read all `.yaml` and `.yml` files directly in a pack's directory; `values` are the settings' variables.

    Hidden files and subdirectories are passed over. Links are followed inside the directory only: Kubernetes links a ConfigMap's files
    to hidden directories beside them.
    Raises `InvalidFiles` naming everything that could not be read: no directory, no permission, not a regular file, too large.
    """
    problems: list[Problem] = []
    files: dict[str, bytes] = {}
    for entry in _entries(path):
        try:
            if entry.is_symlink() and not entry.resolve().is_relative_to(path.resolve()):
                problems.append(_problem(entry, f"it is a link that leads out of the pack, to {entry.resolve()}"))
                continue
            files[str(entry)] = _read(entry)
        except (OSError, RuntimeError) as error:
            problems.append(_problem(entry, getattr(error, "strerror", None) or str(error)))
    if not files and not problems:
        problems.append(_problem(path, "it holds no .yaml file"))
    if problems:
        raise InvalidFiles(problems)
    return PackSource(name or path.name, values or {}, files)


def _entries(path: Path) -> Iterator[Path]:
    try:
        entries = sorted(entry for entry in path.iterdir() if entry.suffix in _SUFFIXES and not entry.name.startswith("."))
    except OSError as error:
        raise InvalidFiles([_problem(path, f"the directory can't be read: {error.strerror}")]) from error
    if len(entries) > MAX_FILES:
        raise InvalidFiles([_problem(path, f"it holds {len(entries)} files; at most {MAX_FILES} are read")])
    return iter(entries)


def _read(path: Path) -> bytes:
    """Read one file. Raises OSError with the reason, also for what is not a regular file (a pipe would block)."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(0, "it is not a regular file")
        if status.st_size > MAX_BYTES:
            raise OSError(0, f"the file has {status.st_size} bytes; at most {MAX_BYTES} are read")
        with os.fdopen(handle, "rb", closefd=False) as file:
            return file.read(MAX_BYTES + 1)
    finally:
        os.close(handle)


def _problem(path: Path, message: str) -> Problem:
    return Problem(str(path), 1, 1, message)
