"""All commands but `serve` in one program; what they raise becomes a sentence and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import typer

import remediator
from remediator.cli import (
    approvals,
    audit,
    catalogue,
    control,
    escalation,
    files,
    freezes,
    incidents,
    permissions,
    scorecard,
    store,
    taking,
    token,
)
from remediator.cli.failure import CommandFailed, Exit
from remediator.cli.options import DEFAULT_CONFIG_PATH, Config
from remediator.cli.output import complain, say
from remediator.errors import InvalidFiles, RemediatorError

EPILOG = "Exit codes: 0 done, 1 the answer is no, 2 wrong usage, 3 the daemon can't be reached or can't answer now, 4 not allowed."

COMMANDS = (
    files.check,
    files.rehearse,
    files.schema,
    catalogue.actions,
    catalogue.checks,
    catalogue.guards,
    permissions.permissions,
    incidents.incidents,
    incidents.runs,
    incidents.show,
    escalation.escalation,
    approvals.approvals,
    approvals.approve,
    approvals.deny,
    control.acknowledge,
    taking.take,
    taking.release,
    control.settle,
    control.signal,
    control.undo,
    freezes.freeze,
    freezes.thaw,
    freezes.freezes,
    control.pause,
    control.resume,
    control.status,
    control.reload,
    scorecard.scorecard,
    scorecard.promote,
    scorecard.demote,
    token.token,
)


def build() -> typer.Typer:
    """Put the program together."""
    program = typer.Typer(
        name="remediator",
        help="Carries out incident runbooks, carefully.",
        epilog=EPILOG,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        invoke_without_command=False,
    )
    program.callback()(_whole)
    program.command("serve")(_serve)
    for command in COMMANDS:
        program.command(command.__name__)(command)
    program.add_typer(audit.program, name="audit")
    program.add_typer(store.program, name="store")
    return program


def _version(value: bool) -> None:
    if value:
        say(remediator.__version__)
        raise typer.Exit


def _whole(version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="show the version")) -> None:
    """Carries out incident runbooks, carefully."""


def _serve(config: Config = DEFAULT_CONFIG_PATH) -> None:
    """Start the daemon."""
    from remediator.cli.serve import main as serve

    sys.exit(serve(["--config", str(Path(config))]))


def main(arguments: Sequence[str]) -> int:
    """Run one command; return its exit code."""
    try:
        build()(list(arguments), prog_name="remediator")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else Exit.OK
    except CommandFailed as error:
        complain(error)
        return error.code
    except InvalidFiles as error:
        say(error)
        return Exit.NO
    except RemediatorError as error:
        complain(error)
        return Exit.NO
    return Exit.OK
