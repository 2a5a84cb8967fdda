"""`check`, `rehearse`, `schema`: rules and settings before they meet an incident.

What compiles rules is imported by the commands that do, so that the others start at once.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from remediator.cli.client import Client
from remediator.cli.failure import CommandFailed, Exit
from remediator.cli.options import DEFAULT_CONFIG_PATH, AsJson, Config, OptionalConfig, connected
from remediator.cli.output import complain, one_line, print_json, print_table, say
from remediator.errors import InvalidFiles, Problem
from remediator.model import JSON, Alert
from remediator.timeline import step_lines, word

if TYPE_CHECKING:
    from remediator.rules.compile import RuleSet
    from remediator.rules.packs import PackSource

Paths = Annotated[list[Path] | None, typer.Argument(metavar="[PATH]...", help="packs, rule files or settings files; without any, --config")]
AlertFile = Annotated[Path, typer.Argument(metavar="ALERT.json", help="a webhook's body or one alert; `-` reads stdin")]

PACK = "pack.yaml"


def check(paths: Paths = None, config: Config = DEFAULT_CONFIG_PATH, as_json: AsJson = False) -> None:
    """Validate settings and rules; print every problem as FILE:LINE:COLUMN: MESSAGE, exit code 1 when there is one."""
    problems: set[Problem] = set()
    warnings: set[Problem] = set()
    for path in paths or [config]:
        try:
            warnings |= set(_warnings(path))
        except InvalidFiles as error:
            problems |= set(error.problems)
    _report(sorted(problems), sorted(warnings), as_json=as_json)


def _report(problems: Sequence[Problem], warnings: Sequence[Problem], *, as_json: bool) -> None:
    found = [(one, "error") for one in problems] + [(one, "warning") for one in warnings]
    if as_json:
        print_json([{"severity": severity, **asdict(problem)} for problem, severity in found])
    else:
        for problem, severity in found:
            say(problem if severity == "error" else f"{problem.file}:{problem.line}:{problem.column}: warning: {problem.message}")
    if problems:
        raise CommandFailed(f"{len(problems)} problem(s)")
    if not as_json:
        say("No problems." if not warnings else f"No problems, {len(warnings)} warning(s).", style="green")


def _warnings(path: Path) -> list[Problem]:
    """Check the packs that `path` is, holds or belongs to, or settings with their packs. Raises `InvalidFiles`."""
    from remediator.rules.lint import lint

    if not path.exists():
        raise CommandFailed(f"there is no {path}", code=Exit.USAGE)
    packs = _packs(path)
    if packs or path.is_dir():
        return lint(_compile_packs(packs or [path]))
    from remediator.registry import Registry
    from remediator.rules.loading import load_rules
    from remediator.settings import read_settings

    loaded = read_settings(path, os.environ)
    registry = Registry(loaded.settings.actions_path)
    loaded.check(registry)
    rules = load_rules(loaded.settings, registry)
    loaded.check_rules([rule.name for rule in rules.rules])
    return [*loaded.doubts(registry), *lint(rules)]


def _packs(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted({found.parent for found in path.rglob(PACK)})
    return [path.parent] if (path.parent / PACK).is_file() or _holds_rules(path) else []


def _holds_rules(path: Path) -> bool:
    """Tell a file of rules, whose pack has no head, from a settings file."""
    return any(line.startswith(b"rules:") for line in path.read_bytes().splitlines())


def _compile_packs(packs: Sequence[Path]) -> RuleSet:
    from remediator.registry import Registry
    from remediator.rules.compile import compile_ruleset
    from remediator.rules.files import read_pack

    sources: list[PackSource] = []
    problems: list[Problem] = []
    for pack in packs:
        try:
            sources.append(read_pack(pack, name=pack.resolve().name))
        except InvalidFiles as error:
            problems += error.problems
    if problems:
        raise InvalidFiles(problems)
    return compile_ruleset(sources, Registry())


@connected
def rehearse(client: Client, alert: AlertFile, config: OptionalConfig = None, as_json: AsJson = False) -> None:
    """Say what would be done about an alert, changing nothing: by the running daemon, or with --config without one."""
    raw = _read(alert)
    traces = client.post_raw("api", "v1", "rehearse", body=raw)["rehearsals"] if config is None else asyncio.run(_offline(raw, config))
    if as_json:
        return print_json(traces)
    if config is not None:
        complain("Without the daemon's store: cooldowns, budgets, pauses and relapses are not known here.")
    for trace in traces:
        print_trace(one_line(trace))
    return None


def _read(file: Path) -> bytes:
    try:
        return sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise CommandFailed(f"can't read {file}: {error}", code=Exit.USAGE) from error


async def _offline(raw: bytes, config: Path) -> list[JSON]:
    """Rehearse with the settings' rules and connections, on an empty store that is thrown away; the daemon's own is not touched."""
    from remediator.app.daemon import Daemon
    from remediator.settings import StoreSettings, load_settings
    from remediator.web.rehearsal import read_alerts

    alerts = read_alerts(raw, datetime.now(UTC))
    settings = load_settings(config, os.environ)
    with tempfile.TemporaryDirectory(prefix="remediator-rehearse-") as directory:
        store = StoreSettings(url=f"sqlite://{directory}/empty.sqlite")
        daemon = Daemon(settings.model_copy(update={"store": store}))
        return await _rehearse(daemon, alerts)


async def _rehearse(daemon: Any, alerts: Sequence[Alert]) -> list[JSON]:
    await daemon.store.open()
    try:
        return [dict(await daemon.rehearse(alert)) for alert in alerts]
    finally:
        await daemon.store.aclose()
        await daemon.connections.aclose()


def print_trace(trace: Mapping[str, Any]) -> None:
    """Print one rehearsal for people."""
    say(f"{trace.get('outcome', '')}", style="bold")
    say(f"rule {trace.get('rule') or 'none'}, target {trace.get('target', 'none')}, remedy {trace.get('remedy') or 'none'}")
    if trace.get("also_matched"):
        say(f"also matched: {word(trace['also_matched'])}")
    if "authority" in trace:
        say(f"authority {trace['authority']}: {word(trace.get('authority_reasons', []))}")
    held = [*trace.get("guards", ()), *trace.get("plan_guards", ())]
    if held:
        print_table(("guard", "verdict", "reason"), ([one["guard"], one["verdict"], one["reason"]] for one in held), empty="")
    facts = [
        [f"{check}.{name}", word(value)] for check, one in trace.get("checks", {}).items() for name, value in one.get("facts", {}).items()
    ]
    facts += [[check, f"FAILED: {one['error']}"] for check, one in trace.get("checks", {}).items() if one.get("error")]
    if facts:
        print_table(("fact", "value"), facts, empty="")
    for condition in trace.get("conditions", ()):
        value = {True: "true", False: "false"}.get(condition["value"], "unknown")
        say(f"{condition['remedy']!r}: {value} {condition.get('reason', '')}".rstrip())
    for step in (trace.get("plan") or {}).get("steps", ()):
        for line in step_lines(step):
            say(line)


def schema() -> None:
    """Print the JSON Schema of rule files, for editors."""
    from remediator.registry import Registry
    from remediator.rules.schema import json_schema

    catalogue = Registry().catalogue()
    actions = [action for provider in catalogue for action in provider.actions]
    print_json(json_schema(actions, [check for provider in catalogue for check in provider.checks]))
