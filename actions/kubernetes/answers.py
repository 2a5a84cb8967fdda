"""What an API server's refusal means: its answers, turned into the project's errors. No I/O."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from remediator.errors import Conflict, NotFound, PermanentError, PermissionMissing, RemediatorError, TemporaryError

_LONGEST_MESSAGE = 400
_LONGEST_DELAY = 3600
_OBJECT, _END = 'Invalid value: "{', '}"'
_RBAC = re.compile(r'User "[^"]*" cannot [\w*-]+ ')


@dataclass(frozen=True)
class Answer:
    """One answer of the API server: HTTP status, headers in lower case, and the body as it came."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> dict[str, Any]:
        """Return the body as an object. Raises ValueError when it is none."""
        value = json.loads(self.body)
        if not isinstance(value, dict):
            raise ValueError(f"a {type(value).__name__} instead of an object")  # noqa: TRY004 (one error for both faults)
        return value

    def object(self) -> dict[str, Any]:
        """Return the body as a Kubernetes object or list. Raises ValueError when it is none: a proxy's page, say."""
        value = self.json()
        if "kind" not in value or "metadata" not in value or value["kind"] == "Status":
            raise ValueError(f"kind {str(value.get('kind'))[:100]!r} instead of the object")
        return value

    def failure(self) -> dict[str, Any]:
        """Return the `Status` object of a refusal, or an empty one when somebody other than an API server answered."""
        try:
            value = self.json()
        except ValueError:
            return {}
        return value if value.get("kind") == "Status" else {}


def error_of(answer: Answer, *, cluster: str, request: str) -> RemediatorError:
    """Return the error that a refused request means; `request` is `VERB PATH` without its query.

    Server errors (5xx) come out as temporary: whether a write took effect is the caller's to judge.
    """
    status = answer.failure()
    said = safe_message(str(status.get("message", ""))) or f"HTTP {answer.status} without a Kubernetes Status"
    text = f"cluster {cluster!r}, {request}: {said}"
    match answer.status:
        case 401:
            return PermanentError(f"{text}; the credentials of connection {cluster!r} are not accepted (missing, wrong or expired)")
        case 403 if _RBAC.search(said):
            return PermissionMissing(f"{text}; grant it, or use another connection")
        case 404 if status.get("reason") == "NotFound" and (status.get("details") or {}).get("name"):  # else the API is not served
            return NotFound(text)
        case 409 if status.get("reason") == "Conflict":
            return Conflict(text)
        case 429:
            return TemporaryError(f"{text} (too many requests)", delay=_retry_after(answer.headers))
        case 408 | 410:
            return TemporaryError(text)
        case code if code >= 500:
            return TemporaryError(text, delay=_retry_after(answer.headers))
    return PermanentError(text)


def safe_message(message: str) -> str:
    """Shorten a server's message and take out the object it quotes: that one holds the values of environment variables."""
    before, found, after = message.partition(_OBJECT)
    if found:
        # To the last closing brace, as the object may quote some itself; one that was cut off ends nowhere.
        message = f"{before}Invalid value: {{…}}" + (after.rpartition(_END)[2] if _END in after else "")
    return message if len(message) <= _LONGEST_MESSAGE else message[:_LONGEST_MESSAGE] + "…"


def _retry_after(headers: Mapping[str, str]) -> timedelta | None:
    """Read Retry-After in seconds; API servers send no other form."""
    text = headers.get("retry-after", "")
    return timedelta(seconds=min(int(text[:9]), _LONGEST_DELAY)) if text.isascii() and text.isdigit() else None
