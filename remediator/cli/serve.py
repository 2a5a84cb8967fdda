"""`remediator serve`: start the daemon. Imports nothing that only people need."""

from __future__ import annotations

import argparse
import asyncio
import os
import ssl
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
    with _without("rich"), trusting_nobody():
        import aiohttp  # noqa: F401 - it would read the system's authorities, twice, for contexts that no client of ours uses
        import structlog  # noqa: F401 - it would import rich for tracebacks in colours, three megabytes that a daemon has no use for
    from remediator.app.serving import serve

    with asyncio.Runner(loop_factory=_fast_loop()) as runner:
        runner.run(serve(path))
    return 0


@contextmanager
def _without(module: str) -> Iterator[None]:
    """Let a module look as if it were not installed, for what is imported inside the block."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]  # import's own sign for a module that can't be had
    try:
        yield
    finally:
        del sys.modules[module]


@contextmanager
def trusting_nobody() -> Iterator[None]:
    """Let TLS contexts made inside the block trust no authority: what would use one by mistake is refused, and two megabytes stay free."""

    def nothing(context: ssl.SSLContext) -> None:
        """Stand in for the method of `SSLContext`'s base, which looks for the system's authorities."""

    ssl.SSLContext.set_default_verify_paths = nothing  # type: ignore[assignment]
    try:
        yield
    finally:
        del ssl.SSLContext.set_default_verify_paths


def _fast_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's factory where the extra `speed` is installed."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
