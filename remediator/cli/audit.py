"""`audit verify`, `audit export`: show that nothing in the trail was rewritten, and take it elsewhere."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from remediator.cli.client import Client
from remediator.cli.failure import CommandFailed, Exit
from remediator.cli.options import AsJson, connected
from remediator.cli.output import complain, print_json, say

if TYPE_CHECKING:
    from remediator.audit import Head

program = typer.Typer(help="Verify and export the audit trail.", no_args_is_help=True)

Anchors = Annotated[list[str], typer.Option("--anchor", metavar="CHAIN:COUNT:HASH", help="a head that was kept outside; may be repeated")]
AnchorFile = Annotated[
    Path | None,
    typer.Option("--anchors", metavar="FILE", help="anchors that were kept outside: what audit.anchor wrote, or a log with them"),
]
Archives = Annotated[list[Path], typer.Option("--archive", metavar="FILE", help="an archive; may be repeated. No daemon is asked")]


@program.command("verify")
@connected
def verify(
    client: Client,
    file: Annotated[Path | None, typer.Option("--file", help="an export; `-` reads stdin. No daemon is asked")] = None,
    store: Annotated[Path | None, typer.Option("--store", help="a SQLite store, which is only read. No daemon is asked")] = None,
    archive: Archives = [],  # noqa: B006
    anchor: Anchors = [],  # noqa: B006
    anchors: AnchorFile = None,
    as_json: AsJson = False,
) -> None:
    """Verify the audit trail of the running daemon, of an export, a store's file or archives; exit code 1 when it is broken."""
    if (file is not None) + (store is not None) + bool(archive) > 1:
        raise CommandFailed("give one of --file, --store and --archive", code=Exit.USAGE)
    heads = [*[_anchor(text) for text in anchor], *(_anchors(anchors) if anchors is not None else [])]
    if archive:
        found = _verify_archives(archive, heads)
    elif store is not None:
        found = asyncio.run(_verify_store(store, heads))
    elif file is not None or heads:
        from remediator.audit import verify_export

        lines = _lines(file) if file is not None else client.lines("api", "v1", "audit", "export")
        found = asdict(verify_export(lines, anchors=heads))
    else:
        found = client.get("api", "v1", "audit", "verify")
    _report(found, as_json=as_json)


def _verify_archives(files: list[Path], heads: list[Head]) -> dict[str, Any]:
    from remediator.store.archive import check_anchors, read_archive

    readings = [read_archive(_lines(file)) for file in files]
    findings = [reading.findings() for reading in readings]
    faults = [f"{file.name}: {fault}" for file, one in zip(files, findings, strict=True) for fault in one.faults]
    return {
        "chains": sum(one.chains for one in findings),
        "events": sum(one.events for one in findings),
        "checkpoints": sum(one.checkpoints for one in findings),
        "faults": faults + check_anchors(readings, heads),
    }


def _report(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(found)
    else:
        say(f"{found['chains']} chains, {found['events']} events, {found['checkpoints']} checkpoints")
        for fault in found["faults"]:
            complain(fault)
    if found["faults"]:
        raise CommandFailed(
            f"the audit trail is BROKEN: {len(found['faults'])} fault(s). Keep the store as it is, and compare it with exports and backups"
        )
    if not as_json:
        say("The audit trail holds.", style="green")


def _anchor(text: str) -> Head:
    from remediator.store.anchors import read_anchor

    try:
        return read_anchor(text)
    except ValueError as error:
        raise CommandFailed(str(error), code=Exit.USAGE) from None


def _anchors(file: Path) -> list[Head]:
    from remediator.store.anchors import read_anchors

    try:
        return read_anchors(file.read_text("utf-8", "replace"))
    except (OSError, ValueError) as error:
        raise CommandFailed(f"can't read anchors from {file}: {error}", code=Exit.USAGE) from error


def _lines(file: Path) -> Iterator[bytes]:
    if str(file) == "-":
        yield from sys.stdin.buffer
        return
    try:
        with file.open("rb") as opened:
            yield from opened
    except OSError as error:
        raise CommandFailed(f"can't read {file}: {error}", code=Exit.USAGE) from error


async def _verify_store(path: Path, heads: list[Head]) -> dict[str, Any]:
    """Verify a copy, so that the file itself is only read and a daemon may go on with it."""
    from remediator.store.anchors import check_store
    from remediator.store.sqlite import SqliteStore

    with tempfile.TemporaryDirectory(prefix="remediator-verify-") as directory:
        copy = Path(directory, "copy.sqlite")
        await asyncio.to_thread(_copy, path, copy)
        store = SqliteStore(copy)
        await store.open()
        try:
            found = asdict(await store.verify_audit())
            return {**found, "faults": [*found["faults"], *await check_store(store, heads)]}
        finally:
            await store.aclose()


def _copy(path: Path, to: Path) -> None:
    if not path.is_file():
        raise CommandFailed(f"there is no file {path}", code=Exit.USAGE)
    try:
        source = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        with closing(source), closing(sqlite3.connect(to)) as target:
            source.backup(target)
    except sqlite3.Error as error:
        raise CommandFailed(f"can't read {path} as a store: {error}") from error


@program.command("export")
@connected
def export(
    client: Client,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="file to write; without it, stdout")] = None,
) -> None:
    """Export every event as JSON lines, which `audit verify --file` verifies anywhere."""
    lines = client.lines("api", "v1", "audit", "export")
    if output is None:
        _write(sys.stdout.buffer, lines)
        sys.stdout.buffer.flush()
        return
    # A part must never be taken for the whole: the name appears when everything is there.
    part = output.with_name(f"{output.name}.part")
    try:
        # Evidence is in it: a file of our own making, which only its owner can read.
        part.unlink(missing_ok=True)
        part.touch(0o600, exist_ok=False)
        with part.open("wb") as opened:
            _write(opened, lines)
        part.replace(output)
    except OSError as error:
        raise CommandFailed(f"can't write {output}: {error}", code=Exit.USAGE) from error


def _write(to: BinaryIO, lines: Iterable[bytes]) -> None:
    last = b""
    for line in lines:
        to.write(line)
        last = line
    if not last.startswith(b'{"end":'):
        raise CommandFailed("the export broke off; what was written is not complete", code=Exit.UNREACHABLE)
