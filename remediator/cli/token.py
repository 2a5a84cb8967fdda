"""`token`: make a token for the API. The daemon keeps only its hash."""

from __future__ import annotations

import hashlib
import secrets
from typing import Annotated

import typer

from remediator.cli.failure import CommandFailed, Exit
from remediator.cli.options import AsJson
from remediator.cli.output import print_json, say

BYTES = 32


def token(
    name: Annotated[str, typer.Argument(help="identity that will own it")] = "NAME",
    role: Annotated[list[str], typer.Option("--role", help="role of the identity; may be repeated")] = ["viewer"],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Make a token; it is shown this once. Nothing is stored: put the shown lines into the settings and reload."""
    from remediator.settings.people import Role

    unknown = sorted(set(role) - {one.value for one in Role})
    if unknown:
        raise CommandFailed(f"no role {', '.join(unknown)}; there are {', '.join(Role)}", code=Exit.USAGE)
    made = secrets.token_urlsafe(BYTES)
    digest = hashlib.sha256(made.encode()).hexdigest()
    if as_json:
        return print_json({"name": name, "token": made, "token_sha256": digest, "roles": role})
    say(made)
    say("")
    say("# Give the line above to its owner, once. These belong into remediator.yaml, under `identities`:")
    return say(f"#   {name}:\n#     token_sha256: [{digest}]\n#     roles: [{', '.join(role)}]")
