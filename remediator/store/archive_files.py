"""Where archives go: a directory or a bucket. A name that is there is never written again.

`keep` returns only when the archive is safe: in a directory after file and directory were synced to the disk, in a bucket when the
service has confirmed its sum. `find` brings one back, which is how a crash between writing and noting it down is recovered from.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from remediator.errors import Conflict, PermanentError
from remediator.store.archive_s3 import Bucket, BucketSettings

_CHUNK = 1024 * 1024


class Place(Protocol):
    """Somewhere to keep archives. Its methods block: use a thread."""

    def find(self, name: str) -> Iterator[bytes] | None:
        """Return the lines of an archive; None when there is none of this name."""

    def where(self, name: str) -> str:
        """Return where an archive of this name is, for people."""

    def keep(self, name: str, file: Path) -> None:
        """Keep a finished file under a name for good. Raises `Conflict` when the name is taken."""


class Directory:
    """Archives as files, readable by their owner only. A part of one is never taken for the whole."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def find(self, name: str) -> Iterator[bytes] | None:
        """Return the lines of an archive; None when there is none of this name."""
        file = self.path / name
        return _lines_of(file) if file.exists() else None

    def where(self, name: str) -> str:
        """Return where an archive of this name is, for people."""
        return str(self.path / name)

    def keep(self, name: str, file: Path) -> None:
        """Copy a file here, synced to the disk. Raises `Conflict` when the name is taken, `PermanentError` for what the disk refuses."""
        final = self.path / name
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Its own name: another replica may be writing the same archive to the same directory.
            part = self.path / f".{name}.{uuid.uuid4().hex}.part"
            try:
                _copy(file, part)
                os.link(part, final)  # unlike a rename it never replaces a file
            finally:
                part.unlink(missing_ok=True)
            sync_directory(self.path)
        except FileExistsError as error:
            raise Conflict(f"{final} exists already") from error
        except OSError as error:
            raise PermanentError(f"{final} can't be written: {error}") from error


def _copy(file: Path, to: Path) -> None:
    descriptor = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as target, file.open("rb") as source:
        while piece := source.read(_CHUNK):
            target.write(piece)
        target.flush()
        os.fsync(target.fileno())


def sync_directory(path: Path) -> None:
    """Have a directory's names on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lines_of(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        yield from opened


class BucketPlace:
    """Archives as objects of an S3 service."""

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket

    def find(self, name: str) -> Iterator[bytes] | None:
        """Return the lines of an archive; None when there is none of this name."""
        pieces = self.bucket.get(name)
        return None if pieces is None else _lines(pieces)

    def where(self, name: str) -> str:
        """Return where an archive of this name is, for people."""
        return self.bucket.url(name)

    def keep(self, name: str, file: Path) -> None:
        """Put a file into the bucket. Raises `Conflict` when the name is taken."""
        with file.open("rb") as opened:
            self.bucket.put(name, opened)


def _lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        yield from (line + b"\n" for line in whole)
    if rest:
        yield rest


def place_at(url: str, settings: BucketSettings) -> Place:
    """Return the place that a URL names: `file:///directory` or `s3://bucket/prefix`, reached as `settings` say."""
    parts = urlsplit(url)
    if parts.scheme == "s3":
        return BucketPlace(Bucket(bucket_at(url, settings)))
    return Directory(Path(parts.path))


def bucket_at(url: str, settings: BucketSettings) -> BucketSettings:
    """Return the bucket and prefix that an `s3://` URL names."""
    parts = urlsplit(url)
    return BucketSettings(parts.netloc, parts.path.strip("/"), settings.region, settings.endpoint, settings.lock)
