"""The Dockerfile as data, and its build carried out without a container engine.

`python -m tests.packaging.image DIRECTORY` carries the first stage out with pip and an index, as an engine would; the tests take the
locked packages from where they run instead, so that they need no network.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent.parent
PREFIX = "/opt/remediator"


@dataclass(frozen=True)
class Instruction:
    """One instruction: its word in capitals, and the rest with continued lines joined."""

    word: str
    text: str

    @property
    def argv(self) -> list[str]:
        """The exec form's list. Raises `ValueError` for the shell form."""
        found: list[str] = json.loads(self.text)
        return found

    @property
    def pairs(self) -> dict[str, str]:
        """The `name=value` words of ENV and LABEL."""
        return dict(word.split("=", 1) for word in shlex.split(self.text))


@dataclass
class Stage:
    """One stage of the build, from its FROM on."""

    base: str
    name: str
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, word: str) -> list[Instruction]:
        """Return the instructions of one kind, in order."""
        return [one for one in self.instructions if one.word == word]

    def last(self, word: str) -> Instruction:
        """Return the one that counts where a later one replaces an earlier one."""
        return self.all(word)[-1]


def parse(text: str) -> list[Stage]:
    """Split a Dockerfile into its stages; what stands before the first FROM is left out."""
    stages: list[Stage] = []
    joined = ""
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        joined += line.strip()
        if joined.endswith("\\"):
            joined = joined[:-1] + " "
            continue
        word, _, rest = joined.partition(" ")
        joined = ""
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            stages.append(Stage(base, name))
        elif stages:
            stages[-1].instructions.append(Instruction(word, rest.strip()))
    return stages


def dockerfile() -> list[Stage]:
    """Return the stages of the project's Dockerfile."""
    return parse((ROOT / "Dockerfile").read_text())


Install = Callable[[str, Path], None]
"""Carries out an installation from a lock: takes the RUN line and the directory it is for."""


def carry_out(stage: Stage, directory: Path, *, install: Install | None = None) -> Path:
    """Carry out a build stage's COPY and RUN lines in `directory`; return what stands for /opt/remediator.

    `install`, where given, is called for the lines that need an index.
    """
    source, prefix = directory / "src", directory / "opt"
    source.mkdir()
    for one in stage.instructions:
        if one.word == "COPY":
            copy(one.text, source)
        elif one.word == "RUN":
            command = one.text.replace(PREFIX, str(prefix))
            if install is not None and "--require-hashes" in command:
                install(command, source)
            else:
                run(command, source)
    return prefix


def copy(text: str, source: Path) -> None:
    """Carry out `COPY FROM… TO`."""
    *names, to = text.split()
    for name in names:
        target = source / name if to == "./" else source / to
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, target)


def interpreter() -> Path:
    """Return a Python of the version that runs now, one that other users may run where there is any."""
    name = f"python3.{sys.version_info.minor}"
    found = [Path(sys.base_prefix, "bin", name).resolve(), Path("/usr/local/bin", name), Path("/usr/bin", name)]
    return next((path for path in found if path.exists() and open_to_all(path)), found[0])


def open_to_all(path: Path) -> bool:
    """Tell whether every user may get to `path` and run it."""
    return all(place.stat().st_mode & 0o005 == 0o005 for place in (path, *path.parents))


def run(command: str, source: Path) -> None:
    """Carry out one RUN line. Raises `RuntimeError` with what it printed when it fails."""
    # The image's `python` is a plain interpreter; the one under the tests' environment is the nearest thing here.
    shims = source.parent / "bin"
    if not shims.exists():
        shims.mkdir()
        (shims / "python").symlink_to(interpreter())
    environment = {**os.environ, "PATH": f"{shims}:{os.environ['PATH']}", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(
        ["/bin/sh", "-ec", command], cwd=source, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"RUN {command}\nended with {done.returncode}:\n{done.stdout[-4_000:]}")


def install_from_here(command: str, source: Path) -> None:
    """Stand in for `pip … install --require-hashes -r LOCK`: link the very versions of LOCK from the environment of the tests.

    A double, so that tests need no index: what it installs are the files that pip installed from the same lock, and no others.
    """
    words = shlex.split(command)
    pip = next(word for word in words if word.endswith("bin/pip"))
    python = Path(words[words.index("--python") + 1]) if "--python" in words else source / Path(pip).parent / "python"
    asked = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    target = Path(subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip())
    came_along = {path.name for path in target.iterdir()}
    for name, version in locked((source / words[words.index("-r") + 1]).read_text()).items():
        if name in came_along:  # an older version, from the interpreter
            shutil.rmtree(target / name)
        link(name, version, target)


def locked(lock: str) -> Mapping[str, str]:
    """Return name and version of every pin of a lock that counts on this machine."""
    pins = [Requirement(line.rstrip("\\ ")) for line in lock.splitlines() if line and line[0] not in " #"]
    return {pin.name: next(iter(pin.specifier)).version for pin in pins if pin.marker is None or pin.marker.evaluate()}


def link(name: str, version: str, target: Path) -> None:
    """Link an installed distribution's files into another site-packages. Raises `RuntimeError` when it is not the version locked."""
    try:
        found = distribution(name)
    except PackageNotFoundError:
        raise RuntimeError(f"{name} {version} is locked but not installed: make install") from None
    if found.version != version:
        raise RuntimeError(f"{name} {found.version} is installed, {version} is locked: make install")
    files = [file for file in found.files or () if file.parts[0] != ".." and file.suffix != ".pyc"]
    for file in files:
        place = target / file
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file.locate(), place)
        except OSError:  # another file system
            shutil.copy(file.locate(), place)


if __name__ == "__main__":
    where = Path(sys.argv[1]).resolve()
    where.mkdir()
    sys.stdout.write(f"{carry_out(dockerfile()[0], where)}\n")
