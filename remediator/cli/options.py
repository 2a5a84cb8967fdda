"""Options that many commands share."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from remediator.cli.client import Client
from remediator.cli.failure import CommandFailed, Exit
from remediator.cli.serve import DEFAULT_CONFIG

DEFAULT_URL = "http://127.0.0.1:9095"

Url = Annotated[str, typer.Option("--url", envvar="REMEDIATOR_URL", help="address of the daemon")]
TokenFile = Annotated[Path | None, typer.Option("--token-file", help="file that holds the token (else REMEDIATOR_TOKEN)")]
CaFile = Annotated[
    Path | None,
    typer.Option("--ca-file", envvar="REMEDIATOR_CA_FILE", help="PEM file of the authority that signed the daemon's certificate"),
]
Config = Annotated[Path, typer.Option("--config", envvar="REMEDIATOR_CONFIG", help="settings file")]
OptionalConfig = Annotated[Path | None, typer.Option("--config", help="settings file; work without a running daemon")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON for programs")]
Limit = Annotated[int, typer.Option("--limit", min=1, max=10_000, help="most items")]
Comment = Annotated[str, typer.Option("--comment", "-m", help="why; kept in the audit trail")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="don't ask")]

DEFAULT_CONFIG_PATH = Path(DEFAULT_CONFIG)


def read_token(token_file: Path | None) -> str | None:
    """Return the token from a file, else from the environment. Raises `CommandFailed` for a file that can't be read."""
    if token_file is None:
        return os.environ.get("REMEDIATOR_TOKEN", "").strip() or None
    try:
        return token_file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandFailed(f"can't read the token from {token_file}: {error}", code=Exit.USAGE) from error


def connected(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command, whose first parameter is a `Client`, the options that say which daemon to ask and as whom."""

    @functools.wraps(function)
    def command(*, url: str, token_file: Path | None, ca_file: Path | None, **own: Any) -> Any:
        return function(Client(url, read_token(token_file), ca_file), **own)

    parameters = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
    shared = [("url", Url, DEFAULT_URL), ("token_file", TokenFile, None), ("ca_file", CaFile, None)]
    parameters += [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind) for name, kind, default in shared
    ]
    keyword = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in parameters]
    command.__signature__ = inspect.Signature(keyword)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in keyword}
    return command
