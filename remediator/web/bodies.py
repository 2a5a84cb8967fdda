"""Bodies of requests: read within bounds of size and time, JSON only, never unpacked."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from aiohttp import web
from pydantic import BaseModel, ConfigDict, ValidationError

from remediator.web.problems import Refused

B = TypeVar("B", bound=BaseModel)


class Body(BaseModel):
    """Base of all JSON bodies: unknown keys are errors. It is made ready at its first use; all of them at once hold megabytes."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class Room:
    """Room in memory for bodies in hand: from before they are read until they are answered."""

    def __init__(self, size: int) -> None:
        """Allow `size` bytes altogether."""
        self._size = size
        self._held = 0

    def take(self, request: web.Request, *, limit: int) -> int:
        """Take room for a request's body, to be given back; one that does not say how long it is may be `limit` bytes long.

        Return how much. Raises `Refused` (503) when there is none: Alertmanager sends again, and what is in hand is worked off meanwhile.
        """
        declared = request.content_length
        wanted = limit if declared is None else min(declared, limit)
        if self._held + wanted > self._size:
            detail = f"bodies of {self._held} bytes are in hand already, and {self._size} is the most (listen.max_bodies); send it again"
            raise Refused(503, detail, reason="busy", headers={"Retry-After": "1"}, close=True)
        self._held += wanted
        return wanted

    def give_back(self, taken: int) -> None:
        """Give back what was taken."""
        self._held -= taken

    @contextmanager
    def hold(self, request: web.Request, *, limit: int) -> Iterator[None]:
        """Keep room for a request's body meanwhile, as `take` does."""
        taken = self.take(request, limit=limit)
        try:
            yield
        finally:
            self.give_back(taken)


async def read_body(request: web.Request, *, limit: int, seconds: float, kind: str = "application/json") -> bytes:
    """Return the body of at most `limit` bytes that arrived within `seconds`.

    Raises `Refused`: 413 as soon as it is known to be longer, 415 for another type or a coding, 408 when it is too slow.
    """
    _check_type(request, kind)
    declared = request.content_length
    if declared is not None and declared > limit:
        raise _too_large(limit)
    try:
        if request.content.is_eof():  # mostly all of it came with the headers
            return _bounded(request.content.read_nowait(), limit)
        async with asyncio.timeout(seconds):
            return await _collect(request, limit)
    except TimeoutError:
        raise Refused(408, f"the body did not arrive within {seconds:g} s", reason="slow_body", close=True) from None
    except web.RequestPayloadError:
        raise Refused(400, "the body is not framed as its headers say", reason="broken_body", close=True) from None


async def _collect(request: web.Request, limit: int) -> bytes:
    body = bytearray()
    while chunk := await request.content.readany():
        body += chunk
        if len(body) > limit:
            raise _too_large(limit)
    return bytes(body)


def _bounded(body: bytes, limit: int) -> bytes:
    if len(body) > limit:
        raise _too_large(limit)
    return body


def _too_large(limit: int) -> Refused:
    return Refused(413, f"the body is longer than {limit} bytes (listen.max_body)", reason="too_large", close=True)


def _check_type(request: web.Request, kind: str) -> None:
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        headers = {"Accept-Encoding": "identity"}
        raise Refused(415, "send the body without Content-Encoding", reason="encoded_body", headers=headers, close=True)
    if request.content_type != kind:
        what = "JSON" if kind == "application/json" else "a form"
        raise Refused(415, f"send {what} with Content-Type: {kind}", reason="wrong_type", close=True)


def parse_body(raw: bytes, model: type[B]) -> B:
    """Validate a body. Raises `Refused`: 400 for what is not JSON, 422 for JSON of another shape, naming every field at fault."""
    try:
        return model.model_validate_json(raw, strict=True)
    except ValidationError as error:
        faults = [
            {"at": ".".join(str(part) for part in one["loc"]), "message": one["msg"]}
            for one in error.errors(include_url=False, include_input=False, include_context=False)
        ]
        if any(one["type"] == "json_invalid" for one in error.errors(include_input=False, include_context=False)):
            raise Refused(400, f"the body is not JSON: {faults[0]['message']}", reason="not_json") from None
        detail = "; ".join(f"{one['at'] or 'the body'}: {one['message']}" for one in faults)
        raise Refused(422, detail, reason="invalid_body", more={"errors": faults}) from None
