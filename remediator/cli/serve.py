"""`remediator serve`: start the daemon. Imports nothing that only people need."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from remediator.errors import InvalidFiles, RemediatorError

DEFAULT_CONFIG = "/etc/remediator/remediator.yaml"


def main(arguments: Sequence[str]) -> int:
    """Run the daemon until it is told to stop; return the exit code."""
    parser = argparse.ArgumentParser(prog="remediator serve", description="Start the daemon.", add_help=False)
    config = os.environ.get("REMEDIATOR_CONFIG") or DEFAULT_CONFIG
    parser.add_argument("--config", type=Path, default=Path(config), help="settings file (REMEDIATOR_CONFIG)")
    path: Path = parser.parse_args(arguments).config
    try:
        return _run(path)
    except InvalidFiles as error:
        print(error, file=sys.stderr)
    except (RemediatorError, OSError) as error:
        print(f"remediator: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    return 1


def _run(path: Path) -> int:
    from remediator.app import serve

    with asyncio.Runner(loop_factory=_fast_loop()) as runner:
        runner.run(serve(path))
    return 0


def _fast_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's factory where the extra `speed` is installed."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
