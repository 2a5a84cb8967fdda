"""Read the secrets that settings and rules refer to, at the moment they are needed, and teach each to the scrubber.

Values are never kept here: a rotated secret counts from its next use. No message ever holds a value, only the reference.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from remediator.action import SecretRef
from remediator.errors import PermanentError, RemediatorError, TemporaryError
from remediator.model import JSON
from remediator.secrets.scrubber import Scrubber

LARGEST = 64 * 1024
"""Most bytes of a secret's file."""

_AWS_TEMPORARY = frozenset({"ThrottlingException", "InternalServiceError", "RequestTimeout", "ServiceUnavailable"})


def _references(tree: JSON) -> Iterator[tuple[str, str]]:
    """Find references to environment variables and files in a tree of settings."""
    if isinstance(tree, list):
        for item in tree:
            yield from _references(item)
    elif isinstance(tree, dict):
        for name, item in tree.items():
            if name in ("env", "file") and isinstance(item, str) and item and len(tree) == 1:
                yield name, item
            else:
                yield from _references(item)


def name_of(ref: SecretRef) -> str:
    """Return how people know a secret: `env NAME`, `file PATH`, … Never its value."""
    return " ".join(f"{kind} {value}" for kind, value in ref.model_dump(exclude_none=True).items()) or "empty reference"


class SecretStore:
    """Reveals references: environment, files, AWS Secrets Manager; Kubernetes Secrets go through `Connections`."""

    def __init__(self, environ: Mapping[str, str], scrubber: Scrubber, *, aws: Callable[[str | None], Any] | None = None) -> None:
        """Take what secrets are read from. `aws` makes a Secrets Manager client for a region; boto3 does unless told otherwise."""
        self.scrubber = scrubber
        self._environ = environ
        self._make_aws = aws or _aws_client
        self._aws: dict[str | None, Any] = {}

    async def reveal(self, ref: SecretRef) -> str:
        """Return the value now, and teach it to the scrubber.

        Raises `PermanentError` or `TemporaryError` naming the reference.
        """
        if ref.env is not None:
            return self.learned(ref, self._from_environment(ref.env))
        if ref.file is not None:
            return self.learned(ref, await asyncio.to_thread(_from_file, Path(ref.file)))
        if ref.aws is not None:
            return self.learned(ref, await asyncio.to_thread(self._from_aws, ref.aws))
        raise PermanentError(f"secret {name_of(ref)} can't be read here: only connections can refer to secrets in a cluster")

    async def learn(self, settings: JSON) -> None:
        """Teach the scrubber all secrets that `settings` refer to and this machine holds, before they are used for the first time.

        Others may repeat them earlier: an alert, a receiver. What can't be read is passed over; its first use says why.
        """
        for kind, where in _references(settings):
            with suppress(PermanentError):
                await self.reveal(SecretRef.model_validate({kind: where}))

    def learned(self, ref: SecretRef, value: str) -> str:
        """Teach a value to the scrubber and return it. Raises `PermanentError` for an empty one, which is never meant."""
        if not value:
            raise PermanentError(f"secret {name_of(ref)} is empty")
        self.scrubber.learn(value)
        return value

    def _from_environment(self, name: str) -> str:
        try:
            return self._environ[name]
        except KeyError:
            raise PermanentError(f"secret env {name} is not set; set the environment variable {name}") from None

    def _from_aws(self, reference: str) -> str:
        name, _, key = reference.partition("#")
        text = self._aws_secret(name)
        return _field(text, key, reference) if key else text

    def _aws_secret(self, name: str) -> str:
        from botocore.exceptions import BotoCoreError, ClientError

        region = name.split(":")[3] if name.startswith("arn:") and name.count(":") >= 6 else None
        try:
            if region not in self._aws:
                self._aws[region] = self._make_aws(region)
            answer = self._aws[region].get_secret_value(SecretId=name)
        except ClientError as error:
            raise _aws_error(name, error.response.get("Error", {}).get("Code", "")) from error
        except BotoCoreError as error:
            raise TemporaryError(f"secret aws {name} can't be read: {error}") from error
        text = answer.get("SecretString")
        if not isinstance(text, str):
            raise PermanentError(f"secret aws {name} is binary; store it as text")
        return text


def _aws_client(region: str | None) -> Any:
    import boto3
    from botocore.config import Config

    config = Config(connect_timeout=3, read_timeout=5, retries={"total_max_attempts": 2, "mode": "standard"})
    return boto3.session.Session(region_name=region).client("secretsmanager", config=config)


def _aws_error(name: str, code: str) -> RemediatorError:
    message = f"secret aws {name} can't be read: {code or 'no reason given'}"
    return TemporaryError(message) if code in _AWS_TEMPORARY else PermanentError(message)


def _field(text: str, key: str, reference: str) -> str:
    try:
        fields = json.loads(text)
    except ValueError:
        raise PermanentError(f"secret aws {reference}: the secret is not JSON, so it has no field {key!r}") from None
    value = fields.get(key) if isinstance(fields, dict) else None
    if not isinstance(value, str):
        raise PermanentError(f"secret aws {reference}: the secret has no text field {key!r}")
    return value


def _from_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise PermanentError(f"secret file {path} can't be read: {error.strerror or type(error).__name__}") from None
    if len(data) > LARGEST:
        raise PermanentError(f"secret file {path} is larger than {LARGEST // 1024} KiB; that is no secret")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise PermanentError(f"secret file {path} is not UTF-8 text") from None
    return text.removesuffix("\n").removesuffix("\r")
