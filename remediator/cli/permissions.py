"""`permissions`: the smallest rights that the rules need, written for the owner of each system, or held against what is granted.

What compiles rules and reaches systems is imported by the command, so that the others start at once.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from remediator.cli.failure import CommandFailed, Exit
from remediator.cli.options import DEFAULT_CONFIG_PATH, AsJson, Config
from remediator.cli.output import print_json, print_table, say
from remediator.errors import RemediatorError

if TYPE_CHECKING:
    from remediator.action import Audit, Right
    from remediator.connections import Connections
    from remediator.permissions.needs import Need

Names = Annotated[list[str] | None, typer.Argument(metavar="[CONNECTION]...", help="only these connections; without any, all")]
Check = Annotated[
    bool, typer.Option("--check", help="compare with what the credentials really may do; exit code 1 when rights are missing")
]
Output = Annotated[Path | None, typer.Option("--output", "-o", metavar="DIR", help="write one file for each connection and system")]
Account = Annotated[str, typer.Option("--account", metavar="NAMESPACE/NAME", help="service account that Kubernetes' roles are bound to")]

_ACCOUNT = re.compile(r"([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)/([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?)")


@dataclass(frozen=True)
class _Loaded:
    """What the settings and rules come to."""

    needs: tuple[Need, ...]
    connections: Connections


def permissions(
    connection: Names = None,
    config: Config = DEFAULT_CONFIG_PATH,
    check: Check = False,
    output: Output = None,
    account: Account = "remediator/remediator",
    as_json: AsJson = False,
) -> None:
    """Print the smallest rights that the rules need: Kubernetes' roles and bindings, SQL grants, Redis ACLs, an IAM policy, requests.

    With --check nothing is printed but the differences: exit code 0 when nothing is missing, 1 when something is, 3 when that can't be
    told.
    """
    if check and output is not None:
        raise CommandFailed("give either --check or --output", code=Exit.USAGE)
    match = _ACCOUNT.fullmatch(account)
    if match is None:
        raise CommandFailed(f"{account!r} is not a service account; write it as NAMESPACE/NAME", code=Exit.USAGE)
    found = _load(config, connection or ())
    if check:
        return _report(found.needs, asyncio.run(_audit(found)), as_json=as_json)
    from remediator.permissions.grants import render

    files = render(found.needs, account=match[3], namespace=match[1])
    if output is not None:
        return _write(files, output)
    return print_json(files) if as_json else _show(files)


def _load(config: Path, only: Sequence[str]) -> _Loaded:
    """Read settings and rules. Raises `InvalidFiles`, `InvalidSettings`, and `CommandFailed` for a connection that isn't there."""
    from remediator.action import Connection, Identity
    from remediator.connections import Connections
    from remediator.permissions.needs import needs
    from remediator.registry import Registry
    from remediator.rules.loading import load_rules
    from remediator.secrets.reading import SecretStore
    from remediator.secrets.scrubber import Scrubber
    from remediator.settings import load_settings

    settings = load_settings(config, os.environ)
    registry = Registry(settings.actions_path)
    rules = load_rules(settings, registry)
    connections = Connections(settings, registry, secrets=SecretStore(os.environ, Scrubber()), identity=Identity())
    known = {name: connections.connection(Connection, name) for name in connections.names()}
    absent = sorted(set(only) - set(known))
    if absent:
        raise CommandFailed(f"there is no connection {absent[0]!r}; there are {', '.join(known) or 'none'}", code=Exit.USAGE)
    found = needs(rules.rules, registry, known, written=settings.model_dump(mode="json", exclude_none=True))
    return _Loaded(tuple(need for need in found if not only or need.connection in only), connections)


def _show(files: Mapping[str, str]) -> None:
    for name, text in files.items():
        say(f"{'--' if name.endswith('.sql') else '#'} {name}")
        say(text)
    if not files:
        say("The rules need no rights.")


def _write(files: Mapping[str, str], directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (directory / name).write_text(text, "utf-8")
    except OSError as error:
        raise CommandFailed(f"can't write to {directory}: {error}", code=Exit.USAGE) from error
    for name in files:
        say(directory / name)


# --- what is really granted ------------------------------------------------------------------------------------------------


async def _audit(found: _Loaded) -> dict[str, Audit]:
    """Ask every system. One that can't be asked now leaves its rights unknown."""
    try:
        audits = await asyncio.gather(*(_audited(need, found.connections) for need in found.needs))
    finally:
        await found.connections.aclose()
    return {need.connection: audit for need, audit in zip(found.needs, audits, strict=True)}


async def _audited(need: Need, connections: Connections) -> Audit:
    from remediator.action import Audit

    try:
        return await need.settings.audit(need.connection, need.rights, connections.context(key=f"permissions/{need.connection}"))
    except RemediatorError as error:
        return Audit(unknown=need.rights, notes=(f"not checked: {error}",))


def _report(needs: Sequence[Need], audits: Mapping[str, Audit], *, as_json: bool) -> None:
    """Print what was found. Raises `CommandFailed` when something is missing, or can't be told."""
    if as_json:
        print_json({name: asdict(audit) for name, audit in audits.items()})
    else:
        rows = [row for need in needs for row in _rows(need, audits[need.connection])]
        print_table(("connection", "finding", "right", "for"), rows, empty="Exactly what the rules need is granted.")
    missing = sum(len(audit.missing) for audit in audits.values())
    unknown = sum(len(audit.unknown) for audit in audits.values())
    if missing:
        raise CommandFailed(f"{missing} right(s) are missing; `remediator permissions` prints what to grant")
    if unknown:
        raise CommandFailed(f"{unknown} right(s) could not be checked", code=Exit.UNREACHABLE)
    if not as_json:
        say("Nothing is missing.", style="green")


def _rows(need: Need, audit: Audit) -> list[list[Any]]:
    purposes = {(one.resource, verb): one.why for one in need.permissions for verb in one.verbs}

    def why(right: Right) -> str:
        return purposes.get((right.resource, right.verb), "")

    return [
        *([need.connection, "missing", right, why(right)] for right in audit.missing),
        *([need.connection, "unknown", right, why(right)] for right in audit.unknown),
        *([need.connection, "not needed", right, ""] for right in audit.excessive),
        *([need.connection, "note", note, ""] for note in audit.notes),
    ]
