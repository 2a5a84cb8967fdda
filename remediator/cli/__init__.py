"""The command line. `main` sends `serve` straight to the daemon: what draws tables for people is never imported there.

Exit codes: 0 done; 1 the answer is no (problems found, chain broken, refused); 2 wrong usage; 3 the daemon can't be reached or can't
answer now; 4 not allowed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["serve"] and not {"-h", "--help"} & set(given):
        from remediator.cli.serve import main as serve

        return serve(given[1:])
    from remediator.cli.program import main as program

    return program(given)
