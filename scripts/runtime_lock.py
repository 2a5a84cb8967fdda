"""Print the part of requirements.lock that the daemon needs at run time: `python scripts/runtime_lock.py [NAME…]`.

The lock holds development's packages too; an image must not. Each pin in it says on whose account it is there (`# via`), so the
closure of pyproject.toml's dependencies and its extra `speed` can be read from the two files alone, without asking anybody. With
names, their closure is printed instead (the image's build needs setuptools). Standard library only: it runs before anything is
installed. Should it ever leave one out, `pip install --require-hashes` refuses.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROJECT = "remediator (pyproject.toml)"
_PIN = re.compile(r"(?P<name>[a-z0-9][a-z0-9._-]*)==")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def normal(requirement: str) -> str:
    """Return the name a requirement begins with, as package indexes compare names.

    >>> normal("PyYAML>=6.0.2")
    'pyyaml'
    """
    found = _NAME.match(requirement)
    if found is None:
        raise ValueError(f"{requirement!r} begins with no package's name")
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def wanted(pyproject: Mapping[str, dict[str, dict[str, list[str]]]]) -> set[str]:
    """Return the names of the packages that the daemon itself asks for."""
    project = pyproject["project"]
    return {normal(one) for one in (*project["dependencies"], *project["optional-dependencies"]["speed"])}


def pins(lock: str) -> dict[str, str]:
    """Split a lock into its pins by name, each with its hashes and comments."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in lock.splitlines():
        begins = _PIN.match(line)
        if begins is not None:
            name = normal(begins["name"])
        elif not line.startswith(" ") or not name:
            raise ValueError(f"requirements.lock: {line!r} is neither a pin nor belongs to one")
        found.setdefault(name, []).append(line)
    return {name: "\n".join(lines) for name, lines in found.items()}


def askers(pin: str) -> set[str]:
    """Return the packages on whose account a pin is in the lock; the project itself is not one."""
    comments = [line.partition("#")[2].strip().removeprefix("via").strip() for line in pin.splitlines() if line.lstrip().startswith("#")]
    return {normal(comment) for comment in comments if comment and comment != PROJECT}


def closure(names: Iterable[str], locked: Mapping[str, str]) -> list[str]:
    """Return `names` and all they need, sorted. Raises `ValueError` for a name that is not locked."""
    found = set(names)
    missing = found - locked.keys()
    if missing:
        raise ValueError(f"requirements.lock has no {', '.join(sorted(missing))}; make lock")
    while more := {name for name, pin in locked.items() if name not in found and askers(pin) & found}:
        found |= more
    return sorted(found)


def runtime_lock(root: Path = ROOT, names: Iterable[str] = ()) -> str:
    """Return the lock of the run time, or of `names`, in pip's format."""
    locked = pins((root / "requirements.lock").read_text())
    first = {normal(name) for name in names} or wanted(tomllib.loads((root / "pyproject.toml").read_text()))
    return "\n".join(locked[name] for name in closure(first, locked)) + "\n"


if __name__ == "__main__":
    sys.stdout.write(runtime_lock(Path.cwd(), sys.argv[1:]))
