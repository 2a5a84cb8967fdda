"""Find actions, checks and kinds of connections by name, importing a system's module only when it is asked for.

Three sources, in this order: the modules under `actions/`, entry points of the group `remediator.actions`, and directories
named in the settings. A system belongs to the first source that has it; a second one of that name is refused, so that nobody
can slip another `kubernetes.scale` under a rule.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import pkgutil
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from hashlib import sha256
from importlib.metadata import entry_points
from pathlib import Path
from threading import RLock
from types import ModuleType
from typing import Any, TypeVar

from remediator.action import Action, Check, Connection, Permission, Provider
from remediator.errors import PermanentError
from remediator.model import JSON

BUILT_IN = "actions"
GROUP = "remediator.actions"

K = TypeVar("K", bound=Action[Any] | Check[Any])
T = TypeVar("T")

Load = Callable[[], object]
"""Imports a system and returns its provider, or whatever it has in that place."""


class Registry:
    """The catalogue. An instance, not a global: two daemons may have two."""

    def __init__(self, paths: Iterable[Path] = ()) -> None:
        self.paths = tuple(paths)
        self._own: dict[str, Load] = {name: _builtin(name) for name in _builtin_names()}
        self._foreign: dict[str, Load] | None = None
        self._providers: dict[str, Provider | None] = {}
        self._actions: dict[str, type[Action[Any]]] = {}
        self._checks: dict[str, type[Check[Any]]] = {}
        """Those found so far: a run asks for the same few dozens of times."""
        self._problems: list[str] = []
        self._lock = RLock()
        """Rules load in a thread while runs go on: nothing may be imported twice, which would make two classes of one."""

    def action(self, name: str) -> type[Action[Any]] | None:
        """Return the action called `system.verb`, None when there is none."""
        if name in self._actions:
            return self._actions[name]
        provider = self._provider(name.partition(".")[0])
        if provider is None:
            return None
        found = self._guarded(provider.system, lambda: _find(provider.actions, provider.later_actions, name, Action))
        if found is not None:
            self._actions[name] = found
        return found

    def check(self, name: str) -> type[Check[Any]] | None:
        """Return the check called `system.noun`, None when there is none."""
        if name in self._checks:
            return self._checks[name]
        provider = self._provider(name.partition(".")[0])
        if provider is None:
            return None
        found = self._guarded(provider.system, lambda: _find(provider.checks, provider.later_checks, name, Check))
        if found is not None:
            self._checks[name] = found
        return found

    def connection_kind(self, kind: str) -> type[Connection] | None:
        """Return the model of a kind of connection, None when there is none."""
        # Mostly the kind is called like its system, or its system is loaded already; only then are others imported, one by one.
        loaded = [system for system, provider in self._providers.items() if provider is not None]
        for system in dict.fromkeys((kind, *loaded, *self._own)):
            provider = self._provider(system)
            if provider is not None and kind in provider.connections:
                return provider.connections[kind]
        return next((one.connections[kind] for one in self._some(None) if kind in one.connections), None)

    def connection_kinds(self) -> tuple[str, ...]:
        """Return all kinds of connections. This imports every system."""
        return tuple(sorted(kind for provider in self._some(None) for kind in provider.connections))

    def systems(self) -> tuple[str, ...]:
        """Return the names of all systems, without importing any."""
        return tuple(sorted({*self._own, *self._others()}))

    def catalogue(self) -> tuple[Provider, ...]:
        """Import every system with all of its parts and return them, by name. Broken ones are in `problems`."""
        found = (self._guarded(one.system, functools.partial(complete, one)) for one in self._some(None))
        return tuple(provider for provider in found if provider is not None)

    def action_names(self, system: str | None = None) -> tuple[str, ...]:
        """Return all actions' names, or one system's. Without `system` this imports every system."""
        return tuple(sorted(name for one in self._some(system) for name in (*(kind.name for kind in one.actions), *one.later_actions)))

    def check_names(self, system: str | None = None) -> tuple[str, ...]:
        """Return all checks' names, or one system's. Without `system` this imports every system."""
        return tuple(sorted(name for one in self._some(system) for name in (*(kind.name for kind in one.checks), *one.later_checks)))

    @property
    def problems(self) -> Sequence[str]:
        """What went wrong with modules seen so far; the rest of the catalogue works."""
        return tuple(self._problems)

    # --- loading

    def _some(self, system: str | None) -> Iterable[Provider]:
        found = (self._provider(one) for one in (self.systems() if system is None else (system,)))
        return [provider for provider in found if provider is not None]

    def _provider(self, system: str) -> Provider | None:
        with self._lock:
            if system not in self._providers:
                load = self._own.get(system) or self._others().get(system)
                if load is None:
                    return None
                self._providers[system] = self._guarded(system, lambda: checked(system, load()))
            return self._providers[system]

    def _guarded(self, system: str, load: Callable[[], T]) -> T | None:
        """Import something of a system; None, and a problem, when foreign code is broken."""
        try:
            return load()
        except (Exception, SystemExit) as error:
            # Foreign code may raise anything while it is imported, and must not take the daemon down. Our own must not be broken.
            if system in self._own:
                raise
            problem = f"actions of {system!r} can't be used: {_words(error)}"
            if problem not in self._problems:
                self._problems.append(problem)
            return None

    def _others(self) -> Mapping[str, Load]:
        with self._lock:
            if self._foreign is None:
                self._foreign = {}
                for system, load, origin in (*_from_entry_points(), *self._from_directories()):
                    if system in self._own or system in self._foreign:
                        self._problems.append(f"{origin} offers {system!r}, which exists already; it is not used: give it another name")
                    else:
                        self._foreign[system] = load
            return self._foreign

    def _from_directories(self) -> Iterator[tuple[str, Load, str]]:
        for directory in self.paths:
            try:
                entries = sorted(directory.iterdir())
            except OSError as error:
                self._problems.append(f"actions_path {directory} can't be read: {error.strerror or type(error).__name__}")
                continue
            for entry in entries:
                file = entry / "__init__.py" if entry.is_dir() else entry
                if file.suffix == ".py" and not entry.name.startswith(("_", ".")) and file.is_file():
                    yield entry.stem, _from_file(entry.stem, file), str(entry)


def _builtin_names() -> list[str]:
    spec = importlib.util.find_spec(BUILT_IN)
    places = spec.submodule_search_locations if spec is not None else None
    return [module.name for module in pkgutil.iter_modules(places) if not module.name.startswith("_")] if places else []


def _builtin(system: str) -> Load:
    return lambda: getattr(importlib.import_module(f"{BUILT_IN}.{system}"), "PROVIDER", None)


def _from_entry_points() -> Iterator[tuple[str, Load, str]]:
    for point in entry_points(group=GROUP):
        distribution = point.dist.name if point.dist is not None else point.value
        yield point.name, _loaded(point.load), f"package {distribution}"


def _loaded(load: Load) -> Load:
    def provider() -> object:
        found = load()
        return getattr(found, "PROVIDER", None) if isinstance(found, ModuleType) else found

    return provider


def _from_file(system: str, file: Path) -> Load:
    def load() -> object:
        for place in (file, file.parent):
            if place.stat().st_mode & stat.S_IWOTH:
                raise PermanentError(f"{place} may be written by everybody; take that right away (chmod o-w)")
        # A name of its own: two directories may both have a `notify.py`, and neither may shadow an installed package.
        name = f"remediator_actions_{sha256(str(file).encode()).hexdigest()[:12]}_{system}"
        spec = importlib.util.spec_from_file_location(name, file)
        if spec is None or spec.loader is None:
            raise PermanentError(f"{file} is not a Python module")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # before it runs: pydantic looks its annotations up there
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return getattr(module, "PROVIDER", None)

    return load


def _words(error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}" if not isinstance(error, PermanentError) else str(error)
    return " ".join(text.split())[:500]


# --- what a provider must be -------------------------------------------------------------------------------------------


def checked(system: str, provider: object) -> Provider:
    """Return `provider` when it is one the daemon can trust to be complete. Raises `PermanentError` naming the first fault."""
    if not isinstance(provider, Provider):
        raise PermanentError("its module has no PROVIDER of type remediator.action.Provider")
    if provider.system != system:
        raise PermanentError(f"its PROVIDER is for {provider.system!r}; module, entry point and system have one name")
    for offered, later, base in ((provider.actions, provider.later_actions, Action), (provider.checks, provider.later_checks, Check)):
        for cls in offered:
            _check_class(cls, base, system)
        names = [*(cls.name for cls in offered), *later]
        if twice := [name for name in names if names.count(name) > 1]:
            raise PermanentError(f"{twice[0]} is offered twice")
        if strange := [name for name in later if not name.startswith(f"{system}.")]:
            raise PermanentError(f"{strange[0]!r} is not called {system}.…, as everything of this system is")
    for kind, model in provider.connections.items():
        if not (inspect.isclass(model) and issubclass(model, Connection)):
            raise PermanentError(f"connection kind {kind!r} is no remediator.action.Connection")
    return provider


def _find(offered: Sequence[type[K]], later: Mapping[str, str], name: str, base: type[Any]) -> type[K] | None:
    if name in later:
        return _import_part(name, later[name], base)
    return next((one for one in offered if one.name == name), None)


def _import_part(name: str, place: str, base: type[Any]) -> type[Any]:
    """Import one part of a system. Raises `PermanentError` when it is not what its name says."""
    module, _, attribute = place.partition(":")
    found: type[Any] = getattr(importlib.import_module(module), attribute, object)
    _check_class(found, base, name.partition(".")[0])
    if found.name != name:
        raise PermanentError(f"{place} is called {found.name}, not {name}")
    return found


def complete(provider: Provider) -> Provider:
    """Return a provider with all of its parts imported."""
    actions = [_import_part(name, place, Action) for name, place in provider.later_actions.items()]
    checks = [_import_part(name, place, Check) for name, place in provider.later_checks.items()]
    return replace(provider, actions=(*provider.actions, *actions), checks=(*provider.checks, *checks), later_actions={}, later_checks={})


def _check_class(cls: Any, base: type[Any], system: str) -> None:
    if not inspect.isclass(cls) or not issubclass(cls, base):
        raise PermanentError(f"{cls!r} is no remediator.action.{base.__name__}")
    declared = ("name", "Params", "example", "permissions", *(("risk", "repeat", "reversible") if base is Action else ("facts",)))
    lacks = [field for field in declared if not hasattr(cls, field)] or sorted(getattr(cls, "__abstractmethods__", ()))
    if lacks:
        raise PermanentError(f"{cls.__name__} lacks {', '.join(lacks)}")
    name: str = getattr(cls, "name", "")
    if not name.startswith(f"{system}."):
        raise PermanentError(f"{name!r} is not called {system}.…, as everything of this system is")


# --- description ---------------------------------------------------------------------------------------------------------


def describe_action(cls: type[Action[Any]]) -> dict[str, JSON]:
    """Describe an action as plain JSON: name, description, risk, repeat, reversible, permissions, params (JSON Schema), example."""
    return {
        **_described(cls),
        "risk": cls.risk.value,
        "repeat": cls.repeat.value,
        "reversible": cls.reversible,
        "notifies": cls.notifies,
    }


def describe_check(cls: type[Check[Any]]) -> dict[str, JSON]:
    """Describe a check as plain JSON: name, description, facts, permissions, params (JSON Schema), example."""
    facts = {
        name: {"type": fact.type.value, "description": fact.description, "evidence": fact.evidence} for name, fact in cls.facts.items()
    }
    return {**_described(cls), "facts": facts}


def _described(cls: type[Action[Any] | Check[Any]]) -> dict[str, JSON]:
    return {
        "name": cls.name,
        "description": inspect.cleandoc(cls.__doc__ or ""),
        "connection": cls.connection.__name__ if cls.connection is not None else None,
        "permissions": [_permission(permission) for permission in cls.permissions],
        "params": cls.Params.model_json_schema(),
        "example": dict(cls.example),
    }


def _permission(permission: Permission) -> dict[str, JSON]:
    """Describe a right; what does not narrow it is left out."""
    whole = {**asdict(permission), "kind": permission.kind.value, "verbs": list(permission.verbs)}
    return {name: value for name, value in whole.items() if value or name in ("verbs", "resource", "why")}
