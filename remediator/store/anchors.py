"""Anchors: where the system chain's checkpoints are noted down outside of the store, so that a chain written anew is noticed.

An anchor is `system:NUMBER:HASH` of a checkpoint, which covers everything before it. Who rewrites the store can make all hashes fit each
other, but not those that lie elsewhere. Of use is only a place that the daemon's host can add to and not change.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import structlog

from remediator.audit import Head, check_claim, newest
from remediator.errors import Conflict, PermanentError, StoreCorrupt
from remediator.records import SYSTEM_CHAIN
from remediator.store.archive_files import bucket_at, sync_directory
from remediator.store.archive_s3 import Bucket, BucketSettings
from remediator.store.protocol import Store

_ANCHOR = re.compile(r"(?P<chain>.+):(?P<count>[1-9][0-9]{0,18}):(?P<hash>[0-9a-f]{64})")

PORTION = 1000
"""Events read at a time."""


def write_anchor(head: Head) -> str:
    """Write an anchor as text.

    >>> write_anchor(Head("system", 41, "ab" * 32))[:14]
    'system:41:abab'
    """
    return f"{head.chain}:{head.count}:{head.hash}"


def read_anchor(text: str) -> Head:
    """Read an anchor. Raises ValueError."""
    match = _ANCHOR.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:100]!r} is not an anchor; write it like system:41:HASH")
    return Head(match["chain"], int(match["count"]), match["hash"])


def read_anchors(text: str) -> list[Head]:
    """Read anchors out of a file: one a line, or anywhere in the lines of a log. Raises ValueError when there is none.

    A last line that was cut off by a crash is left out.
    """
    found = [Head(match[1], int(match[2]), match[3]) for match in re.finditer(r"\b(system):([1-9][0-9]{0,18}):([0-9a-f]{64})\b", text)]
    if not found:
        raise ValueError("it holds no anchor, which reads like system:41:HASH")
    return found


class AnchorPlace(Protocol):
    """Somewhere outside of the store. `keep` blocks: use a thread."""

    def keep(self, head: Head) -> None:
        """Note an anchor down for good. Raises `TemporaryError`, `PermanentError`."""


class LogAnchors:
    """A line in the log, wherever that is sent."""

    def keep(self, head: Head) -> None:
        """Log an anchor."""
        structlog.get_logger("remediator").info("audit.anchored", anchor=write_anchor(head))


class FileAnchors:
    """A file that only grows, one anchor a line; of use on another machine's disk, or with `chattr +a`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def keep(self, head: Head) -> None:
        """Append an anchor and sync it to the disk. Raises `PermanentError` for what the disk refuses."""
        try:
            created = not self.path.exists()
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                # A line that a crash cut off must not spoil this one.
                size = os.fstat(descriptor).st_size
                begun = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
                os.write(descriptor, f"{chr(10) if begun else ''}{write_anchor(head)}\n".encode())
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if created:
                sync_directory(self.path.parent)
        except OSError as error:
            raise PermanentError(f"audit.anchor: {self.path} can't be written: {error}") from error


class BucketAnchors:
    """An object each; with object lock nobody can take them back."""

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket

    def keep(self, head: Head) -> None:
        """Put an anchor as an object of its own. Raises `StoreCorrupt` when another checkpoint of this number was anchored."""
        text = f"{write_anchor(head)}\n".encode()
        name = f"{head.chain}-{head.count:012d}.anchor"
        try:
            self.bucket.put(name, io.BytesIO(text))
        except Conflict:
            known = b"".join(self.bucket.get(name) or ())
            if known != text:
                raise StoreCorrupt(
                    f"{self.bucket.url(name)} names another event {head.count} of the system chain: one was rewritten"
                ) from None


def anchors_at(where: str, settings: BucketSettings) -> AnchorPlace:
    """Return the place that `audit.anchor` names: `log`, `file:///path` or `s3://bucket/prefix`."""
    if where == "log":
        return LogAnchors()
    parts = urlsplit(where)
    return BucketAnchors(Bucket(bucket_at(where, settings))) if parts.scheme == "s3" else FileAnchors(Path(parts.path))


async def check_store(store: Store, anchors: Sequence[Head]) -> list[str]:
    """Hold anchors of the system chain against a store; return the faults.

    Older ones than what the store still has are left out; the newest must be there.
    """
    wanted = _by_count(anchors)
    last, seen, first = newest(anchors), 0, 0
    faults = []
    while portion := await store.events(SYSTEM_CHAIN, after=seen, limit=PORTION):
        first = first or portion[0].seq
        for event in portion:
            seen = event.seq
            faults += [fault for head in wanted.get(seen, ()) if (fault := check_claim(head, event.hash))]
    missing = (head for heads in wanted.values() for head in heads if head.count > seen or (head.count < first and head == last))
    return faults + [text for head in missing if (text := check_claim(head, None))]


def _by_count(anchors: Iterable[Head]) -> dict[int, list[Head]]:
    found: dict[int, list[Head]] = {}
    for head in dict.fromkeys(anchors):
        if head.chain == SYSTEM_CHAIN:
            found.setdefault(head.count, []).append(head)
    return found
