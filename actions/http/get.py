"""`http.get`: is it there, how fast, what status, and what its JSON says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar
from urllib.parse import urljoin, urlsplit

from pydantic import Field, field_validator

from actions.http.address import HttpConnection, PathParams
from remediator import documents
from remediator.action import Check, Context, Fact, FactType, Permission, PermissionKind
from remediator.errors import CheckFailed
from remediator.httpclient import Answer, HttpClient, HttpError, open_client
from remediator.model import JSON, Value, canonical

MAX_BODY = 65_536
MAX_JSON = 30_000
"""Most bytes of the fact `json`, so that all facts together stay within 64 KiB."""
MAX_REDIRECTS = 3


class _GetParams(PathParams):
    pick: Mapping[str, str] = Field(default_factory=dict, max_length=10, description="name → JSON pointer (RFC 6901), e.g. /database/pool")

    @field_validator("pick")
    @classmethod
    def _are_pointers(cls, pick: Mapping[str, str]) -> Mapping[str, str]:
        return documents.check_pointers(pick, example="/database/pool")


class Get(Check[_GetParams]):
    """GET a path and look at what comes back.

    Any HTTP status is an answer, with one exception: 401 or 403 to the connection's own credentials fails the check.
    Redirects are followed within the same scheme, host and port, at most three; any other redirect is the answer.
    """

    name = "http.get"
    Params = _GetParams
    connection = HttpConnection
    facts: ClassVar[Mapping[str, Fact]] = {
        "reachable": Fact(FactType.BOOL, "an HTTP answer came"),
        "reason": Fact(FactType.STRING, "why not: refused, timeout, reset, closed or host_unreachable; empty when reachable"),
        "status": Fact(FactType.INT, "HTTP status; unknown when unreachable"),
        "ok": Fact(FactType.BOOL, "the status is 2xx; unknown when unreachable"),
        "latency": Fact(FactType.DURATION, "time to the last byte, with connecting; unknown when unreachable"),
        "json_found": Fact(FactType.BOOL, "the whole body is JSON; unknown when unreachable"),
        "json": Fact(FactType.DYN, "the body without its nulls, when it is JSON and small", evidence=True),
        "texts": Fact(FactType.STRING_MAP, "picked strings and booleans (as true and false) by name; what is not there is missing"),
        "numbers": Fact(FactType.DOUBLE_MAP, "picked numbers by name; what is not there is missing"),
        "truncated": Fact(FactType.BOOL, "the body, or a part of it asked for, was too large to keep"),
    }
    permissions = (Permission(PermissionKind.HTTP, ("GET",), "*"),)
    example: ClassVar[Mapping[str, Any]] = {
        "connection": "shop",
        "path": "/api/{version}/health",
        "args": {"version": "v1"},
        "query": {"verbose": True},
        "pick": {"pool": "/database/pool_usage"},
    }

    async def run(self, params: _GetParams, ctx: Context) -> Mapping[str, Value]:
        """Get once."""
        connection = ctx.connection(HttpConnection, params.connection)
        client = await ctx.client(HttpConnection, params.connection, open_client)
        what = f"connection {params.connection!r}"
        url = url_of(connection, params, what)
        try:
            answer = await _get(client, ctx, url, what)
        except HttpError as error:
            return unreachable_facts(error)
        if connection.has_credentials and answer.status in {401, 403}:
            raise CheckFailed(f"{what} refused its credentials ({answer.status})")
        return answer_facts(answer, params.pick)


def url_of(connection: HttpConnection, params: PathParams, what: str) -> str:
    """Return the encoded URL of a check. Raises `CheckFailed` for a value that can't be in a path."""
    try:
        return connection.base_url + params.target()
    except ValueError as error:
        raise CheckFailed(f"{what}: the path can't be made: {error}") from error


async def _get(client: HttpClient, ctx: Context, url: str, what: str) -> Answer:
    """Get `url`, following redirects that stay where the credentials belong."""
    answer = await client.send(ctx, "GET", url, what=what, limit=MAX_BODY)
    for _ in range(MAX_REDIRECTS):
        place = _redirected(url, answer)
        if place is None:
            break
        url = place
        answer = await client.send(ctx, "GET", url, what=what, limit=MAX_BODY)
    return answer


def _redirected(url: str, answer: Answer) -> str | None:
    """Return where an answer redirects to, when it is a place of the same scheme, host and port."""
    location = answer.headers.get("location", "")
    if answer.status not in {301, 302, 303, 307, 308} or not re.fullmatch(r"[\x21-\x7e]+", location):
        return None
    try:
        place = urljoin(url, location)
        return place if urlsplit(url)[:2] == urlsplit(place)[:2] else None
    except ValueError:
        return None


def unreachable_facts(error: HttpError) -> dict[str, Value]:
    """Return the facts of a look at what did not answer. Raises `CheckFailed` for faults of DNS, TLS, network or protocol."""
    if not error.unreachable:
        raise error.as_check() from error
    return {"reachable": False, "reason": error.reason}


def answer_facts(answer: Answer, pick: Mapping[str, str]) -> dict[str, Value]:
    """Return the facts of an answer."""
    facts: dict[str, Value] = {
        "reachable": True,
        "reason": "",
        "status": answer.status,
        "ok": 200 <= answer.status < 300,
        "latency": answer.elapsed,
        "truncated": answer.truncated,
    }
    if answer.truncated:
        # Half a document is no JSON, and not evidence that the whole is none.
        return facts
    try:
        body = documents.parse(answer.body.decode())
    except ValueError:
        return facts | {"json_found": False}
    facts |= {"json_found": True} | picked(body, pick)
    if documents.fits(body) and len(canonical(body)) <= MAX_JSON:
        facts["json"] = documents.without_nulls(body)
    else:
        facts["truncated"] = True
    return facts


def picked(body: JSON, pick: Mapping[str, str]) -> dict[str, Value]:
    """Return `texts` and `numbers`. Null, lists, objects and long texts are left out, and are unknown."""
    texts: dict[str, str] = {}
    numbers: dict[str, float] = {}
    for name, pointer in pick.items():
        match documents.follow(body, pointer):
            case bool(flag):
                texts[name] = str(flag).lower()
            case int(number) | float(number):
                numbers[name] = float(number)
            case str(text) if documents.fits_text(text):
                texts[name] = text
    return {"texts": texts, "numbers": numbers}
