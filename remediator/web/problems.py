"""Problem documents (RFC 9457): what every refusal looks like, and which error becomes which answer."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import timedelta
from http import HTTPStatus

from aiohttp import web

from remediator.errors import (
    ApprovalRefused,
    IllegalTransition,
    InvalidAlerts,
    InvalidFiles,
    NotFound,
    NotYours,
    PermanentError,
    RemediatorError,
    StoreUnavailable,
    TemporaryError,
)
from remediator.model import JSON

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Server": "remediator",
    "X-Content-Type-Options": "nosniff",
}
"""Headers of every answer."""

RETRY_AFTER = timedelta(seconds=5)
"""What a refused sender is told where the error itself names no delay."""

FORBIDDING = frozenset({"group", "requester"})
"""Reasons of `ApprovalRefused` that concern the person (403); all others concern the approval's state (409)."""


class Refused(RemediatorError):
    """A request that is answered with a problem document. `reason` is a word from a closed set."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        reason: str,
        headers: Mapping[str, str] | None = None,
        close: bool = False,
        more: Mapping[str, JSON] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.reason = reason
        self.headers = dict(headers or {})
        self.close = close
        """True when the rest of the request is not read: the connection ends."""
        self.more = dict(more or {})


def document(*, status: int, detail: str, reason: str, instance: str, more: Mapping[str, JSON] | None = None) -> dict[str, JSON]:
    """Return the members of a problem document; `type` names the reason."""
    return {
        "type": f"urn:remediator:problem:{reason}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "instance": instance,
        **(more or {}),
    }


def problem(refused: Refused, instance: str) -> web.Response:
    """Render a refusal."""
    body = document(status=refused.status, detail=str(refused), reason=refused.reason, instance=instance, more=refused.more)
    response = web.Response(
        body=json.dumps(body).encode(),
        status=refused.status,
        headers={**HEADERS, **refused.headers},
        content_type="application/problem+json",
    )
    if refused.close:
        response.force_close()
    return response


def from_error(error: RemediatorError) -> Refused:
    """Say which answer an error of the daemon becomes. Messages of `RemediatorError` are written for people and hold no secrets."""
    match error:
        case Refused():
            return error
        case InvalidAlerts():
            return Refused(error.status, str(error), reason=error.reason)
        case NotFound():
            return Refused(404, str(error), reason="not_found")
        case ApprovalRefused():
            return Refused(403 if error.reason in FORBIDDING else 409, str(error), reason=error.reason)
        case NotYours():
            return Refused(403, str(error), reason="not_yours")
        case IllegalTransition():
            return Refused(409, str(error), reason="illegal_transition")
        case InvalidFiles():
            return Refused(422, str(error), reason="invalid_files", more={"problems": [str(one) for one in error.problems]})
        case TemporaryError():
            return _unavailable(error)
        case PermanentError():
            return Refused(422, str(error), reason="impossible")
        case _:
            return Refused(502, str(error), reason="unknown")


def _unavailable(error: TemporaryError) -> Refused:
    reason = "store_unavailable" if isinstance(error, StoreUnavailable) else "try_again"
    seconds = math.ceil((error.delay or RETRY_AFTER).total_seconds())
    return Refused(503, str(error), reason=reason, headers={"Retry-After": str(max(1, seconds))})


def from_http(error: web.HTTPException) -> Refused:
    """Say which answer an error of the HTTP library becomes (unknown path, wrong method)."""
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        return Refused(405, f"{error.method} is not possible here; use {allowed}", reason="method_not_allowed", headers={"Allow": allowed})
    if error.status == HTTPStatus.NOT_FOUND:
        return Refused(404, "there is nothing at this path; see /api/v1/openapi.json", reason="not_found")
    return Refused(error.status, HTTPStatus(error.status).phrase, reason="http")
