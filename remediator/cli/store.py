"""`store migrate | copy | vacuum | backup | restored`: what is done to a store from outside of the daemon."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from urllib.parse import urlsplit

import typer

from remediator.cli.failure import CommandFailed, Exit
from remediator.cli.options import DEFAULT_CONFIG_PATH, AsJson, Config
from remediator.cli.output import print_json, say
from remediator.errors import Conflict, StoreUnavailable

if TYPE_CHECKING:
    from remediator.settings.storage import StoreSettings
    from remediator.store.copy import Source, Target

T = TypeVar("T")

program = typer.Typer(
    help="Migrate, copy, vacuum and back up the store. Only `backup` may be used while the daemon runs.", no_args_is_help=True
)

StoreUrl = Annotated[
    str | None,
    typer.Option("--store", metavar="URL", help="sqlite:///path or postgresql://user@host/database; default: store.url of the settings"),
]


@program.command("migrate")
def migrate(config: Config = DEFAULT_CONFIG_PATH, store: StoreUrl = None, as_json: AsJson = False) -> None:
    """Bring the schema up to date, as a start of the daemon would, and say which version it had and has."""
    settings = _settings(config, store)
    path = settings.path
    if path is not None:
        from remediator.store import copy_sqlite

        before, after = _run(copy_sqlite.migrate(path))
    else:
        from remediator.store import copy_postgres

        before, after = _run(copy_postgres.migrate(copy_postgres.address(settings)))
    if as_json:
        print_json({"before": before, "after": after})
    else:
        say(f"schema version {before} before, {after} now" if before != after else f"schema version {after} already")


@program.command("vacuum")
def vacuum(config: Config = DEFAULT_CONFIG_PATH, store: StoreUrl = None, as_json: AsJson = False) -> None:
    """Write a stopped SQLite store anew, without the space that deleted rows left. The daemon itself gives space back bit by bit."""
    from remediator.store import copy_sqlite

    path = _settings(config, store).path
    if path is None:
        raise CommandFailed("PostgreSQL's own autovacuum does that; nothing was done", code=Exit.USAGE)
    before, after = _run(copy_sqlite.vacuum(path))
    if as_json:
        print_json({"before": before, "after": after})
    else:
        say(f"{before:,} bytes before, {after:,} now")


@program.command("backup")
def backup(
    file: Annotated[Path, typer.Argument(help="file to write; it must not exist")],
    config: Config = DEFAULT_CONFIG_PATH,
    store: StoreUrl = None,
    as_json: AsJson = False,
) -> None:
    """Copy a SQLite store, while the daemon runs if it does, and verify the copy before it gets its name."""
    from remediator.store import copy_sqlite

    path = _settings(config, store).path
    if path is None:
        raise CommandFailed("back PostgreSQL up with its own tools (pg_dump, or its continuous archiving)", code=Exit.USAGE)
    report = _run(copy_sqlite.back_up(path, file))
    if report.faults:
        raise CommandFailed(
            f"{file} was written, but the audit trail of the store is BROKEN ({report.faults[0]}): `remediator audit verify --store {file}`"
        )
    if as_json:
        print_json({"file": str(file), "bytes": file.stat().st_size, "chains": report.chains, "events": report.events})
    else:
        say(f"{file}: {file.stat().st_size:,} bytes, {report.chains} chains, {report.events} events; the audit trail holds", style="green")


@program.command("restored")
def restored(config: Config = DEFAULT_CONFIG_PATH, store: StoreUrl = None, as_json: AsJson = False) -> None:
    """Say that the store was restored, before its daemon starts: its next incidents bear names that others had, its keys are new.

    Services that remember idempotency keys, and pagers, would take a new call or page for one that they know already. What was under way
    keeps its keys. Once too often does no harm.
    """
    from remediator.store.era import restored as begin_anew

    settings = _settings(config, store)
    if settings.path is not None:
        from remediator.store.sqlite import SqliteStore

        if not settings.path.is_file():
            raise CommandFailed(f"there is no store {settings.path}", code=Exit.UNREACHABLE)
        before, after = _run(begin_anew(SqliteStore(settings.path)))
    else:
        from remediator.store import copy_postgres
        from remediator.store.postgres import PostgresStore

        before, after = _run(begin_anew(PostgresStore(copy_postgres.address(settings))))
    if as_json:
        print_json({"before": before, "after": after})
    else:
        say(f"era {after} begins: keys of new calls and pages are none that were used before", style="green")


@program.command("copy")
def copy(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="sqlite:///path or postgresql://user@host/database; its daemons are stopped")
    ],
    target: Annotated[str, typer.Argument(metavar="DST", help="the same; there must be nothing in it")],
    as_json: AsJson = False,
) -> None:
    """Copy a stopped store into an empty one of any kind, all or nothing, and verify every chain there.

    Passwords of PostgreSQL come from PGPASSWORD or ~/.pgpass.
    """
    from remediator.store.copy import copy as copy_store

    done = _run(copy_store(_source(source), _target(target), say=(lambda _text: None) if as_json else say))
    if as_json:
        print_json({"rows": dict(done.rows), "chains": done.report.chains, "events": done.report.events})
    else:
        say(
            f"{sum(done.rows.values())} rows, {done.report.chains} chains, {done.report.events} events; the audit trail holds",
            style="green",
        )
        say(f"Now set store.url to {target}, and keep the old store out of every daemon's reach.")


def _settings(config: Path, url: str | None) -> StoreSettings:
    """Return which store is meant. Raises `CommandFailed` for a URL that is none."""
    if url is None:
        from remediator.settings import read_settings

        return read_settings(config, os.environ).settings.store
    return _parsed(url)


def _parsed(url: str) -> StoreSettings:
    from pydantic import ValidationError

    from remediator.settings.storage import StoreSettings

    try:
        return StoreSettings.model_validate({"url": url if urlsplit(url).scheme else f"sqlite:{Path(url).resolve()}"})
    except ValidationError as error:
        message = error.errors(include_input=False, include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise CommandFailed(f"{url!r}: {message}", code=Exit.USAGE) from None


def _source(url: str) -> Source:
    settings = _parsed(url)
    if settings.path is not None:
        from remediator.store.copy_sqlite import SqliteSource

        return SqliteSource(settings.path)
    from remediator.store import copy_postgres

    return copy_postgres.PostgresSource(copy_postgres.address(settings))


def _target(url: str) -> Target:
    settings = _parsed(url)
    if settings.path is not None:
        from remediator.store.copy_sqlite import SqliteTarget

        return SqliteTarget(settings.path)
    from remediator.store import copy_postgres

    return copy_postgres.PostgresTarget(copy_postgres.address(settings))


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end; what stands in the way is the answer no, a database that is away can't be reached."""
    try:
        return asyncio.run(work)
    except Conflict as error:
        raise CommandFailed(str(error)) from error
    except StoreUnavailable as error:
        raise CommandFailed(str(error), code=Exit.UNREACHABLE) from error
