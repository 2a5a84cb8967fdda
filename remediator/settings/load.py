"""Read the settings file and the environment into `Settings`, with every fault at its place."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from remediator.action import Action, Connection
from remediator.errors import InvalidFiles, Problem
from remediator.model import JSON
from remediator.registry import Registry
from remediator.rules.parse import Node, parse
from remediator.settings.faults import Fault, dotted, faults_of, nearest
from remediator.settings.model import Settings
from remediator.settings.part import Part

Loc = tuple[str | int, ...]
"""A place in the settings: keys and indexes from the top."""
PREFIX = "REMEDIATOR_"
_PATH_KEYS = frozenset({"kubeconfig", "ca"})
P = TypeVar("P", bound=Part)


@dataclass(frozen=True)
class Loaded:
    """Settings with the places they came from, so that what only the catalogue can judge is reported there too."""

    settings: Settings
    tree: Node
    environment: Mapping[Loc, str]
    """Names of the environment's variables by what they set."""

    def check(self, registry: Registry) -> None:
        """Hold connections and escalation against the catalogue. Raises `InvalidFiles` with every fault at once."""
        faults = [*_escalation_faults(self.settings, registry), *_connection_faults(self.settings, registry)]
        if faults:
            raise InvalidFiles([_problem(fault, self.tree, self.environment) for fault in faults])

    def check_rules(self, rules: Collection[str]) -> None:
        """Hold freezes against the names of the loaded rules: one of a rule that is not there freezes nothing. Raises `InvalidFiles`."""
        faults = [
            Fault(("freezes", name, "rules"), f"freezes.{name}.rules: there is no rule {rule!r}{nearest(rule, rules)}")
            for name, freeze in self.settings.freezes.items()
            for rule in sorted(freeze.rules - set(rules))
        ]
        if faults:
            raise InvalidFiles([_problem(fault, self.tree, self.environment) for fault in faults])

    def doubts(self, registry: Registry) -> list[Problem]:
        """Return warnings of connections, which `check` has found to be valid. Reads files that they name."""
        found = {name: (_connection_loc(self.settings, name), model) for name, model in _connections(self.settings, registry)}
        models = {name: model for name, (_, model) in found.items()}
        faults = [Fault(loc, text, at_key=True) for name, (loc, model) in found.items() for text in model.doubts(name, models)]
        faults += _silent_policies(self.settings, registry)
        return [_problem(fault, self.tree, self.environment) for fault in faults]


def load_settings(path: Path, environ: Mapping[str, str]) -> Settings:
    """Read `path`, apply `REMEDIATOR_A__B` from `environ`, and validate. Raises `InvalidFiles` with every fault at once.

    Connections and escalation are held against the catalogue by `read_settings(…).check(registry)`.
    """
    return read_settings(path, environ).settings


def read_settings(path: Path, environ: Mapping[str, str]) -> Loaded:
    """Read settings as `load_settings` does, keeping the places for `Loaded.check`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidFiles([Problem(str(path), 1, 1, f"can't be read: {error.strerror or type(error).__name__}")]) from None
    tree, problems = parse(str(path), data)
    if tree is not None and not isinstance(tree.value, dict):
        problems.append(tree.place.problem("the settings are a mapping of names to values"))
    if tree is None or problems:
        raise InvalidFiles(problems)
    plain = tree.plain()
    environment = _override(plain, environ)
    directory = path.absolute().parent
    try:
        settings = Settings.model_validate(_with_paths(plain, directory), context={"directory": directory})
    except ValidationError as error:
        raise InvalidFiles([_problem(fault, tree, environment) for fault in faults_of(error, Settings)]) from None
    return Loaded(settings, tree, environment)


def _problem(fault: Fault, tree: Node, environment: Mapping[Loc, str]) -> Problem:
    for loc, variable in environment.items():
        if fault.loc[: len(loc)] == loc:
            return Problem(f"${variable}", 1, 1, fault.message)
    if fault.at_key:
        key = tree.find(fault.loc[:-1]).keys.get(str(fault.loc[-1]))
        if key is not None:
            return key.problem(fault.message)
    return tree.find(fault.loc).place.problem(fault.message)


# --- environment -------------------------------------------------------------------------------------------------------


def _override(data: dict[str, Any], environ: Mapping[str, str]) -> dict[Loc, str]:
    """Put what `REMEDIATOR_A__B` says into the tree; return which variable set what. Raises `InvalidFiles`."""
    problems: list[Problem] = []
    found: dict[Loc, str] = {}
    for variable in sorted(name for name in environ if name.startswith(PREFIX)):
        loc = tuple(variable.removeprefix(PREFIX).lower().split("__"))
        if _is_foreign(loc):
            continue
        tree, wrong = parse(f"${variable}", environ[variable].encode("utf-8", "surrogateescape"))
        if tree is None or wrong:
            problems += wrong
            continue
        try:
            found[_put(data, loc, tree.plain())] = variable
        except LookupError as error:
            problems.append(Problem(f"${variable}", 1, 1, str(error.args[0])))
    if problems:
        raise InvalidFiles(problems)
    return found


def _is_foreign(loc: tuple[str, ...]) -> bool:
    """Tell whether a variable that looks like no setting means something else.

    Secrets may be called so, and Kubernetes sets REMEDIATOR_PORT and more for a Service of that name. A near miss is a typing error.
    """
    known = list(Settings.model_fields)
    return len(loc) == 1 and loc[0] not in known and not difflib.get_close_matches(loc[0], known, cutoff=0.8)


def _put(tree: dict[str, Any], loc: tuple[str, ...], value: JSON) -> Loc:
    """Set `value` at `loc`, through keys that stand there in whatever case; return the place. Raises LookupError."""
    if loc[0] not in Settings.model_fields:
        raise LookupError(f"{dotted(loc)} is not known{nearest(loc[0], Settings.model_fields)}")
    at: list[str] = []
    for number, word in enumerate(loc):
        key = next((key for key in tree if key.lower().replace("-", "_").replace(".", "_") == word), word)
        at.append(key)
        if number == len(loc) - 1:
            tree[key] = value
            break
        below = tree.get(key)
        if below is None:
            below = tree[key] = {}
        if not isinstance(below, dict):
            raise LookupError(f"{dotted(at)} is no mapping, so {loc[number + 1]} can't be set in it")  # noqa: TRY004 - a wrong place
        tree = below
    return tuple(at)


# --- paths ---------------------------------------------------------------------------------------------------------------


def _with_paths(data: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Let paths inside of connections, endpoints and references start at the settings file's directory; leave out empty sections."""
    return {name: value if name == "packs" else _resolved(value, directory) for name, value in data.items() if value is not None}


def _resolved(value: JSON, directory: Path) -> JSON:
    if isinstance(value, list):
        return [_resolved(item, directory) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"file"} and isinstance(value["file"], str) and value["file"]:
        return {"file": str(directory / value["file"])}
    return {
        name: str(directory / Path(item).expanduser()) if _is_path(name) and isinstance(item, str) and item else _resolved(item, directory)
        for name, item in value.items()
    }


def _is_path(name: str) -> bool:
    return name in _PATH_KEYS or name.endswith("_file")


# --- what only the catalogue knows --------------------------------------------------------------------------------------


def _connection_loc(settings: Settings, name: str) -> Loc:
    return ("connections", name) if name in settings.connections else (name,)


def _connections(settings: Settings, registry: Registry) -> Iterator[tuple[str, Connection]]:
    for name, raw in settings.all_connections.items():
        model = registry.connection_kind(str(raw["kind"]))
        if model is not None:
            yield name, model.model_validate({key: value for key, value in raw.items() if key != "kind"})


def _connection_faults(settings: Settings, registry: Registry) -> Iterator[Fault]:
    for name, raw in settings.all_connections.items():
        loc = _connection_loc(settings, name)
        kind = str(raw["kind"])
        model = registry.connection_kind(kind)
        if model is None:
            yield Fault((*loc, "kind"), f"{dotted(loc)}: there is no kind {kind!r}{nearest(kind, registry.connection_kinds())}")
        else:
            yield from _faults_under(loc, model, {key: value for key, value in raw.items() if key != "kind"})


def _escalation_faults(settings: Settings, registry: Registry) -> Iterator[Fault]:
    for policy, settings_of in settings.escalation.items():
        for place, entry in settings_of.notifications():
            for name, params in entry.items():
                loc: Loc = ("escalation", policy, *place, name)
                action = registry.action(name)
                if action is None or not action.notifies:
                    known = [one for one in registry.action_names() if (found := registry.action(one)) is not None and found.notifies]
                    yield Fault(loc, f"{dotted(loc[:-1])}: {name!r} is no action that notifies people{nearest(name, known)}", at_key=True)
                else:
                    # The message itself is filled in when it is sent.
                    text = {"text": "…"} if "text" in action.Params.model_fields else {}
                    faults = [*_faults_under(loc, action.Params, {**text, **params})]
                    yield from faults or _misfits(loc, action, {**text, **params}, settings, registry)


def _misfits(loc: Loc, action: type[Action[Any]], params: Mapping[str, JSON], settings: Settings, registry: Registry) -> Iterator[Fault]:
    """Hold a message against the connection that it names: else it would be found out when a page can't be sent."""
    name = params.get(action.connection_field)
    if action.connection is None or not isinstance(name, str):
        return
    where, raw = (*loc, action.connection_field), settings.all_connections.get(name)
    if raw is None:
        yield Fault(where, f"{dotted(where)}: there is no connection {name!r}{nearest(name, settings.all_connections)}")
        return
    model = registry.connection_kind(str(raw["kind"]))
    if model is None or not issubclass(model, action.connection):
        yield Fault(where, f"{dotted(where)}: connection {name!r} is of kind {raw['kind']}, which {action.name} can't use")
        return
    try:
        connection = model.model_validate({key: value for key, value in raw.items() if key != "kind"})
    except ValidationError:
        return  # told where the connection stands
    for text in action.misfits(action.Params.model_validate(params), connection):
        yield Fault(loc, f"{dotted(loc)}: connection {name!r} {text}", at_key=True)


def _silent_policies(settings: Settings, registry: Registry) -> Iterator[Fault]:
    """Name policies whose receivers all leave pages to others; one without receivers is told elsewhere."""
    for policy, settings_of in settings.escalation.items():
        entries = [(name, params) for _, entry in settings_of.notifications() for name, params in entry.items()]
        if entries and not any(_pages(name, params, registry) for name, params in entries):
            loc: Loc = ("escalation", policy)
            yield Fault(loc, f"{dotted(loc)}: nobody is paged: each receiver leaves pages out, by its `kinds` or its template", at_key=True)


def _pages(name: str, params: Mapping[str, JSON], registry: Registry) -> bool:
    action = registry.action(name)
    if action is None:
        return True
    text = {"text": "…"} if "text" in action.Params.model_fields else {}
    try:
        return action.pages(action.Params.model_validate({**text, **params}))
    except ValidationError:
        return True  # told as a fault


def _faults_under(loc: Loc, model: type[BaseModel], data: Mapping[str, JSON]) -> Iterator[Fault]:
    try:
        model.model_validate(data)
    except ValidationError as error:
        for fault in faults_of(error, model):
            yield Fault((*loc, *fault.loc), f"{dotted(loc)}: {fault.message}", at_key=fault.at_key)


# --- reload --------------------------------------------------------------------------------------------------------------


def reloadable_changes(old: Settings, new: Settings) -> tuple[Settings, list[str]]:
    """Return the settings to go on with, and the dotted names of changed fields that wait for a restart.

    Fields that a reload can't apply keep their old values.
    """
    waiting: list[str] = []
    return _merged(old, new, (), waiting), waiting


def _merged(old: P, new: P, loc: Loc, waiting: list[str]) -> P:
    kept: dict[str, Any] = {}
    for name, info in type(new).model_fields.items():
        before, after = getattr(old, name), getattr(new, name)
        if before == after:
            continue
        extra = info.json_schema_extra
        reloadable = isinstance(extra, dict) and extra.get("reload") is True
        if isinstance(before, Part) and isinstance(after, Part):
            kept[name] = _merged(before, after, (*loc, name), waiting)
        elif not reloadable:
            kept[name] = before
            waiting.append(dotted((*loc, name)))
    return new.model_copy(update=kept)
