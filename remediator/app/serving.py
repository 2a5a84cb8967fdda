"""Running the daemon with its web surface until somebody ends it."""

from __future__ import annotations

import asyncio
import gc
import os
import signal as signals
from contextlib import AsyncExitStack
from pathlib import Path

import structlog

from remediator.app.daemon import Daemon
from remediator.logs import configure
from remediator.model import SYSTEM
from remediator.service import Reloaded
from remediator.settings import read_settings

YOUNG = 10_000
"""Objects more than before that start the garbage collector. A few runs at work make 700, Python's own number, many times a second, and
looking through them found nothing but took a tenth of all processor time."""


async def serve(path: Path) -> None:
    """Run the daemon until SIGTERM or SIGINT; SIGHUP reloads. Raises `RemediatorError` when it can't start."""
    from remediator.web import create_app, open_listener

    loaded = read_settings(path, os.environ)
    settings = loaded.settings
    daemon = Daemon(settings, path=path)
    loaded.check(daemon.registry)
    loaded.check_rules([rule.name for rule in daemon.rules.rules])
    configure(settings.log, daemon.scrubber)
    stop = asyncio.Event()
    _obey_signals(daemon, stop)
    app = create_app(daemon, daemon.metrics, daemon.authenticator, session_key=daemon.session_key)
    async with AsyncExitStack() as stack:
        await daemon.start()
        stack.push_async_callback(daemon.aclose)
        listener = await open_listener(app, settings.listen)
        stack.push_async_callback(listener.aclose)
        _calm_collector()
        log = structlog.get_logger("remediator")
        log.info("daemon.ready", url=listener.url, dry_run=settings.dry_run, rules=len(daemon.rules.rules))
        await stop.wait()


def _obey_signals(daemon: Daemon, stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    reloads: set[asyncio.Task[Reloaded]] = set()

    def reload() -> None:
        task = loop.create_task(daemon.reload(SYSTEM))
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    for name in (signals.SIGTERM, signals.SIGINT):
        loop.add_signal_handler(name, stop.set)
    loop.add_signal_handler(signals.SIGHUP, reload)


def _calm_collector() -> None:
    """Have the garbage collector leave alone what is there now: a storm makes it run often, and it need not look through all that."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG)
