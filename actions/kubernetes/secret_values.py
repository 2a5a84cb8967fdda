"""Values of Secrets on their way from a source to a target: held in memory for one write, and in no text.

What may be said of a value is whether it is there, and whether it is the same as another one. No digest of it is ever kept: a short
secret is guessed from one in no time.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from urllib.parse import quote

from actions.kubernetes import secret_commands
from actions.kubernetes.client import Client
from actions.kubernetes.connection import KubernetesConnection, connect
from actions.kubernetes.fields import entries, owns
from actions.kubernetes.names import object_target
from remediator.action import Context
from remediator.errors import NotFound, OutcomeUnknown, PermanentError, PlanRefused, RemediatorError, TemporaryError
from remediator.halting import go_on
from remediator.targets.scope import outside_scope

REFUSED_TYPES = ("kubernetes.io/service-account-token", "bootstrap.kubernetes.io/token", "helm.sh/release.v1")
"""Secrets that the system makes itself: neither a source nor a target."""


class State(StrEnum):
    """What may be said of a key."""

    MISSING = "missing"
    EMPTY = "empty"
    PRESENT = "present"


def state_of(body: Mapping[str, Any] | None, key: str) -> State:
    """Return whether a Secret has a value for a key."""
    value = ((body or {}).get("data") or {}).get(key)
    return State.MISSING if value is None else State.PRESENT if value else State.EMPTY


def encoded(value: bytes) -> str:
    """Return a value as a Secret holds it."""
    return base64.b64encode(value).decode()


def wrote_alone(body: Mapping[str, Any], key: str, manager: str) -> bool:
    """Tell whether the value of a key is still the one that `manager` wrote: the server takes a field away from who is overwritten."""
    owners = [str(entry.get("manager")) for entry in entries(body) if owns(entry, ("data", key))]
    return owners == [manager]


@dataclass(frozen=True)
class Source:
    """Where values come from: another Secret of the cluster (`namespace`, `name`), or a command of the settings (`command`)."""

    namespace: str = ""
    name: str = ""
    command: str = ""

    @classmethod
    def planned(cls, intent: Mapping[str, Any]) -> Source:
        """Return what `intent` was written from."""
        return cls(intent["namespace"], intent["name"], intent["command"])

    @property
    def intent(self) -> dict[str, str]:
        """Return it as plain values, for a plan."""
        return {"namespace": self.namespace, "name": self.name, "command": self.command}

    def __str__(self) -> str:
        return f"secret command {self.command!r}" if self.command else f"secret {self.namespace}/{self.name}"


async def read_secret(client: Client, namespace: str, name: str) -> dict[str, Any] | None:
    """Read a Secret; None when there is none."""
    try:
        return await client.get(secret_path(namespace, name))
    except NotFound:
        return None


def secret_path(namespace: str, name: str = "") -> str:
    """Return the path of a Secret, or of all."""
    return "/".join(filter(None, (f"/api/v1/namespaces/{namespace}/secrets", name)))


def refuse_source(ctx: Context, cluster: str, source: Source, *, to: tuple[str, str], keys: Sequence[str]) -> None:
    """Raise `PlanRefused` unless the settings let values come from there and go to these keys of the Secret `to`."""
    settings = ctx.connection(KubernetesConnection, cluster)
    namespace, name = to
    if source.command:
        command = settings.secret_commands.get(source.command)
        if command is None:
            known = ", ".join(sorted(settings.secret_commands)) or "none"
            raise PlanRefused(f"connection {cluster!r} has no secret command {source.command!r}; it has {known}")
        for key in keys:
            if not command.may_fill(namespace, name, key):
                raise PlanRefused(f"{source} may not fill {namespace}/{name}/{key}; it may fill {', '.join(command.fills)}")
        return
    target = object_target(cluster, "secret", namespace=source.namespace, name=source.name, uid="")
    outside = outside_scope([target], settings.scope)
    if outside is not None:
        raise PlanRefused(f"{source} can't be read from: {outside}")


async def values_of(ctx: Context, cluster: str, source: Source, *, to: tuple[str, str], keys: Mapping[str, str]) -> dict[str, bytes]:
    """Return the value for each key of `keys` (target key: source key). Raises `TemporaryError`, `PermanentError`."""
    refuse_source(ctx, cluster, source, to=to, keys=list(keys))
    if source.command:
        command = ctx.connection(KubernetesConnection, cluster).secret_commands[source.command]
        found: dict[str, bytes] = {}
        for key in keys:
            await go_on(ctx)
            found[key] = await secret_commands.run(source.command, command, command.filled(*to, key))
        return found
    body = await read_secret(await connect(ctx, cluster), source.namespace, source.name)
    return {key: value_in(body, source, wanted) for key, wanted in keys.items()}


def value_in(body: Mapping[str, Any] | None, source: Source, key: str) -> bytes:
    """Return one value of a source that was read. Raises `PermanentError` when there is none."""
    if body is None:
        raise PermanentError(f"{source} is not there")
    if str(body.get("type")) in REFUSED_TYPES:
        raise PermanentError(f"{source} is of type {body.get('type')}, which belongs to the system")
    try:
        value = base64.b64decode((body.get("data") or {}).get(key, ""), validate=True)
    except binascii.Error:
        value = b""
    if not value:
        raise PermanentError(f"{source} has no value for {key!r}")
    return value


@contextmanager
def unsaid(values: Iterable[bytes], *, what: str) -> Iterator[None]:
    """Let no error of ours out whose text holds a value in any form: a webhook's refusal may quote the object that it refuses."""
    values = tuple(values)
    try:
        yield
    except RemediatorError as error:
        if not any(form in str(error) for value in values for form in _forms(value)):
            raise
        raise _reworded(error, f"{what}: {type(error).__name__}; the server's words are not repeated, since they hold a value") from None


def _forms(value: bytes) -> tuple[str, ...]:
    text = value.decode("utf-8", "replace")
    return (text, encoded(value), base64.urlsafe_b64encode(value).decode(), json.dumps(text)[1:-1], repr(text)[1:-1], quote(text))


def _reworded(error: RemediatorError, text: str) -> RemediatorError:
    if isinstance(error, OutcomeUnknown):
        return OutcomeUnknown(text)
    return TemporaryError(text, delay=error.delay) if isinstance(error, TemporaryError) else PermanentError(text)
