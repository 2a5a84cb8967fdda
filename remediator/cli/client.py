"""The daemon's API, as commands call it: one request, one answer, failures as sentences.

The token is for the daemon alone: redirects are never followed, proxies of the environment never used.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator, Mapping, Sequence
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlencode, urlsplit
from urllib.request import HTTPRedirectHandler, HTTPSHandler, OpenerDirector, ProxyHandler, Request, build_opener

from remediator.cli.failure import CommandFailed, Exit
from remediator.model import JSON

TIMEOUT = 60.0
"""Seconds for one answer; rehearsals look at live systems, verifying reads everything."""


class _NoRedirect(HTTPRedirectHandler):
    """Refuses redirects: the token is for the daemon alone."""

    def redirect_request(
        self,
        req: Request,  # noqa: ARG002
        fp: IO[bytes],  # noqa: ARG002
        code: int,  # noqa: ARG002
        msg: str,  # noqa: ARG002
        headers: HTTPMessage,  # noqa: ARG002
        newurl: str,  # noqa: ARG002
    ) -> Request | None:
        """Return nothing to follow."""
        return None


class Client:
    """Calls one daemon. `token` is sent as bearer token; `ca_file` holds the authority of its certificate."""

    def __init__(self, url: str, token: str | None, ca_file: Path | None) -> None:
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise CommandFailed(f"{url!r} is not the address of a daemon; write it like http://127.0.0.1:9095", code=Exit.USAGE)
        self.url = url.rstrip("/")
        self._token = token
        self._opener = _opener(ca_file)

    def get(self, *path: str, **query: Any) -> Any:
        """Ask for something; parts of the path are quoted, query values that are None are left out."""
        return self._json(self._request("GET", path, query, None))

    def post(self, *path: str, body: JSON = None) -> Any:
        """Ask for a change."""
        return self.post_raw(*path, body=json.dumps({} if body is None else body).encode())

    def post_raw(self, *path: str, body: bytes) -> Any:
        """Send a body as it is."""
        return self._json(self._request("POST", path, {}, body))

    def items(self, *path: str, most: int, **query: Any) -> list[Any]:
        """Collect up to `most` items of a list, page by page, newest first."""
        found: list[Any] = []
        before: str | None = None
        while len(found) < most:
            page = self.get(*path, **query, before=before, limit=min(most - len(found), 1000))
            found += page["items"]
            before = page["next"]
            if before is None:
                break
        return found

    def events(self, chain: str) -> list[Any]:
        """Collect all events of a chain, in order."""
        found: list[Any] = []
        after: int | None = 0
        while after is not None:
            page = self.get("api", "v1", "events", chain=chain, after=after, limit=1000)
            found += page["items"]
            after = page["next"]
        return found

    def lines(self, *path: str) -> Iterator[bytes]:
        """Stream an answer line by line. Raises `CommandFailed` when it breaks off."""
        try:
            with self._open(self._request("GET", path, {}, None)) as answer:
                yield from answer
        except (OSError, HTTPException) as error:
            raise self._unreachable(error) from error

    def _request(self, method: str, path: Sequence[str], query: Mapping[str, Any], body: bytes | None) -> Request:
        text = urlencode({name: value for name, value in query.items() if value is not None}, doseq=True)
        where = "/".join(quote(part, safe="") for part in path)
        headers = {"Accept": "application/json"} | ({"Content-Type": "application/json"} if body is not None else {})
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        url = f"{self.url}/{where}?{text}" if text else f"{self.url}/{where}"
        return Request(url, data=body, headers=headers, method=method)  # noqa: S310 - the scheme was checked

    def _open(self, request: Request) -> Any:
        try:
            return self._opener.open(request, timeout=TIMEOUT)
        except HTTPError as error:
            with error:
                raise _refused(error) from None

    def _json(self, request: Request) -> Any:
        try:
            with self._open(request) as answer:
                return json.loads(answer.read())
        except (OSError, HTTPException) as error:
            raise self._unreachable(error) from error
        except ValueError as error:
            raise CommandFailed(f"{self.url} did not answer like a daemon; check --url", code=Exit.UNREACHABLE) from error

    def _unreachable(self, error: Exception) -> CommandFailed:
        reason = error.reason if isinstance(error, URLError) else error
        return CommandFailed(f"no daemon answers at {self.url} ({reason}); check --url or REMEDIATOR_URL", code=Exit.UNREACHABLE)


def _opener(ca_file: Path | None) -> OpenerDirector:
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise CommandFailed(f"can't read the certificates in {ca_file}: {error}", code=Exit.USAGE) from error
    return build_opener(_NoRedirect(), ProxyHandler({}), HTTPSHandler(context=context))


def _refused(error: HTTPError) -> CommandFailed:
    detail = _detail(error)
    match error.code:
        case 401:
            return CommandFailed(f"not signed in: {detail}; set REMEDIATOR_TOKEN or --token-file", code=Exit.NOT_ALLOWED)
        case 403:
            return CommandFailed(f"not allowed: {detail}", code=Exit.NOT_ALLOWED)
        case code if code >= 500:
            return CommandFailed(f"the daemon can't answer now: {detail}", code=Exit.UNREACHABLE)
        case code if code >= 400:
            return CommandFailed(detail, code=Exit.NO)
        case code:
            return CommandFailed(f"it answered with a redirect ({code}), which is not followed; check --url", code=Exit.UNREACHABLE)


def _detail(error: HTTPError) -> str:
    """Return the sentence of a problem document and the faults it lists, or the bare status."""
    try:
        problem = json.loads(error.read(1_000_000))
        return "\n".join([str(problem["detail"]), *map(str, problem.get("problems", ()))])
    except (ValueError, KeyError, TypeError, AttributeError, OSError, HTTPException):
        return f"HTTP {error.code} {error.reason}"
