"""Manifests as rules write them or files hold them: what they may say, and the objects they name.

Checked as far as a text can be; what the server makes of it, its rehearsal tells. Reading a file is the only I/O here.
"""

from __future__ import annotations

import asyncio
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from actions.kubernetes.names import LONGEST_NAME, NAME
from actions.kubernetes.objects import OURS, ObjectKind, ObjectReference, allowed
from actions.kubernetes.patches import PLACEHOLDER, Scalar, bind
from actions.kubernetes.paths import Place, by_name
from remediator.errors import PlanRefused
from remediator.model import JSON, canonical

LARGEST = 262_144
MOST = 20
_SUFFIXES = (".yaml", ".yml", ".json")
_METADATA = frozenset({"name", "namespace", "labels", "annotations"})


def check_manifests(manifests: Sequence[JSON]) -> None:
    """Check what every manifest says of itself. Raises ValueError naming the one."""
    if not manifests:
        raise ValueError("there is no manifest")
    if len(manifests) > MOST or len(canonical(list(manifests))) > LARGEST:
        raise ValueError(f"more than {MOST} manifests, or {LARGEST} bytes")
    seen = set()
    for number, manifest in enumerate(manifests, start=1):
        try:
            named = _check_manifest(manifest)
        except ValueError as error:
            raise ValueError(f"manifest {number}: {error}") from None
        if named in seen:
            raise ValueError(f"manifest {number}: {' '.join(named)} is there already")
        seen.add(named)


def _check_manifest(manifest: JSON) -> tuple[str, str]:
    """Return kind and name of the object."""
    if not isinstance(manifest, Mapping):
        raise ValueError("it is not a mapping")  # noqa: TRY004 - pydantic takes ValueErrors
    kind, _ = kind_of(manifest)
    meta = manifest.get("metadata")
    if not isinstance(meta, Mapping) or not isinstance(meta.get("name"), str):
        raise ValueError("metadata.name is missing")  # noqa: TRY004 - as above
    name = meta["name"]
    if not PLACEHOLDER.fullmatch(name):
        check_name(name)
    if strange := sorted(set(meta) - _METADATA):
        raise ValueError(f"metadata.{strange[0]} is not a manifest's to say")
    if "status" in manifest:
        raise ValueError("status is its controller's to say")
    if noted := [key for key in meta.get("annotations") or {} if key.startswith(OURS)]:
        raise ValueError(f"annotation {noted[0]} is this daemon's own note")
    return kind.kind, name


def kind_of(manifest: Mapping[str, Any]) -> tuple[ObjectKind, str]:
    """Return a manifest's kind and version. Raises ValueError for kinds that may not be changed, and for another kind of that name."""
    kind, api = allowed(str(manifest.get("kind"))), str(manifest.get("apiVersion", ""))
    group, _, version = api.rpartition("/")
    if group != kind.group or not version:
        raise ValueError(
            f"apiVersion {api[:60]!r} has no {kind.kind}; it is in {kind.group or 'the core group'} ({', '.join(kind.versions)})"
        )
    return kind, version


def check_name(name: str) -> None:
    """Raise ValueError for what is no name of an object."""
    if not re.fullmatch(NAME, name) or len(name) > LONGEST_NAME:
        raise ValueError(f"{name[:60]!r} is no name of an object")


def bound(manifests: Sequence[JSON], args: Mapping[str, Scalar], namespace: str) -> list[tuple[ObjectReference, dict[str, Any]]]:
    """Return each object's reference and manifest, with values bound and the namespace filled in. Raises ValueError."""
    found: list[tuple[ObjectReference, dict[str, Any]]] = []
    for manifest in manifests:
        whole = bind(manifest, args)
        kind, version = kind_of(whole)
        meta = whole["metadata"]
        name = str(meta["name"])
        check_name(name)
        if meta.get("namespace", namespace) != namespace:
            raise ValueError(f"{kind.kind} {name} is for namespace {str(meta['namespace'])[:63]!r}, the step for {namespace!r}")
        reference = ObjectReference(kind, version, namespace, name)
        if any((one.kind, one.name) == (kind, name) for one, _ in found):
            raise ValueError(f"two manifests name {reference} with these args")
        found.append((reference, {**whole, "metadata": {**meta, "namespace": namespace}}))
    return found


def leaves(tree: JSON, place: Place = ()) -> list[Place]:
    """Return the places that a manifest says something at, but for its own name and kind."""
    below = tree if isinstance(tree, Mapping) else by_name(tree)
    if not below:
        return [place]
    found = []
    for key, item in below.items():
        identity = (not place and key in ("apiVersion", "kind")) or (place == ("metadata",) and key in ("name", "namespace"))
        if not identity and not (key == "name" and place and place[-1].startswith("[")):
            found += leaves(item, (*place, key))
    return found


# --- files -------------------------------------------------------------------------------------------------------------


def check_file(path: str) -> None:
    """Raise ValueError unless it is an absolute path of a YAML or JSON file, without detours."""
    if not path.startswith("/") or ".." in Path(path).parts or not path.endswith(_SUFFIXES):
        raise ValueError(f"{path[:200]!r} is no absolute path of a {', '.join(_SUFFIXES)} file")


async def read_manifests(path: str) -> list[JSON]:
    """Read the manifests of a file on the daemon's host, in their order. Raises `PlanRefused`, which never quotes what is in it."""
    try:
        text = await asyncio.to_thread(_read, Path(path))
    except OSError as error:
        raise PlanRefused(f"manifests {path}: {error.strerror or error}") from error
    import yaml

    try:
        found = [item for item in yaml.safe_load_all(text) if item is not None]
        check_manifests(found)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise PlanRefused(f"manifests {path}: no YAML{f' (line {mark.line + 1})' if mark else ''}") from None
    except ValueError as error:
        raise PlanRefused(f"manifests {path}: {error}") from error
    return found


def _read(path: Path) -> str:
    with path.open("rb") as file:
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError("no regular file")
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise OSError(f"larger than {LARGEST} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise OSError("no UTF-8") from None
