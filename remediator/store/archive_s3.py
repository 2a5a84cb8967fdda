"""A bucket of an S3 service, where objects are made once and never replaced; object lock is asked for where settings say so.

boto3 is imported when the first call is made. Credentials are those that the AWS SDK finds by itself.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, BinaryIO

from remediator.errors import Conflict, PermanentError, TemporaryError

_CHUNK = 1024 * 1024

_PASSING = frozenset({"SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "503", "500", "Throttling"})


@dataclass(frozen=True)
class BucketSettings:
    """Where a bucket is. `lock` is how long nobody, not even its owner, can delete an object (object lock, compliance mode)."""

    bucket: str
    prefix: str = ""
    region: str | None = None
    endpoint: str | None = None
    lock: timedelta | None = None


class Bucket:
    """Puts and gets objects. Every call blocks: use a thread. Raises `TemporaryError`, `PermanentError`."""

    def __init__(self, settings: BucketSettings) -> None:
        self.settings = settings

    @cached_property
    def _client(self) -> Any:
        import boto3
        from botocore.config import Config

        config = Config(connect_timeout=5, read_timeout=60, retries={"mode": "standard", "max_attempts": 3})
        session = boto3.session.Session(region_name=self.settings.region)
        return session.client("s3", endpoint_url=self.settings.endpoint, config=config)

    def url(self, name: str) -> str:
        """Return where an object is, for people."""
        return f"s3://{self.settings.bucket}/{self._key(name)}"

    def put(self, name: str, content: BinaryIO) -> None:
        """Put an open file. Raises `Conflict` when there is an object of this name."""
        lock: dict[str, Any] = {}
        if self.settings.lock is not None:
            lock = {"ObjectLockMode": "COMPLIANCE", "ObjectLockRetainUntilDate": datetime.now(UTC) + self.settings.lock}
        sum_ = base64.b64encode(_digest(content)).decode()
        content.seek(0)
        # The service compares the sum with what arrived, and refuses to replace an object, whoever made it.
        self._call("put_object", name, Body=content, ChecksumAlgorithm="SHA256", ChecksumSHA256=sum_, IfNoneMatch="*", **lock)

    def get(self, name: str) -> Iterator[bytes] | None:
        """Return an object's content in pieces; None when there is none."""
        try:
            found = self._call("get_object", name)
        except FileNotFoundError:
            return None
        pieces: Iterator[bytes] = found["Body"].iter_chunks(_CHUNK)
        return pieces

    def _key(self, name: str) -> str:
        return f"{self.settings.prefix.strip('/')}/{name}".lstrip("/")

    def _call(self, verb: str, name: str, **values: Any) -> Any:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return getattr(self._client, verb)(Bucket=self.settings.bucket, Key=self._key(name), **values)
        except ClientError as error:
            raise _described(error, self.url(name)) from error
        except BotoCoreError as error:
            raise TemporaryError(f"{self.url(name)} can't be reached: {error}") from error


def _digest(content: BinaryIO) -> bytes:
    sum_ = hashlib.sha256()
    while piece := content.read(_CHUNK):
        sum_.update(piece)
    return sum_.digest()


def _described(error: Any, url: str) -> Exception:
    code = str(error.response.get("Error", {}).get("Code", ""))
    if code in ("NoSuchKey", "404"):
        return FileNotFoundError(url)
    if code in ("PreconditionFailed", "ConditionalRequestConflict", "412", "409"):
        return Conflict(f"{url} exists already")
    if code in _PASSING:
        return TemporaryError(f"{url}: the service answered {code}; it is tried again later")
    return PermanentError(f"{url}: the service answered {error}; look at the bucket's name, its rights, and whether it has object lock")
