"""What an API server's refusal means: its answers, turned into the project's errors. No I/O."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from actions.kubernetes.errors import AlreadyExists, ApplyConflict, Blocked, FieldConflict
from remediator.errors import Conflict, NotFound, PermanentError, PermissionMissing, RemediatorError, TemporaryError

_LONGEST_MESSAGE = 400
_LONGEST_DELAY = 3600
_OBJECTS = (('Invalid value: "{', '}"'), ('Invalid value: "map[', ']"'))
"""How servers begin and end an object that they quote: as JSON, or as Go prints it."""
_CONTEXT = re.compile(r",? error found in #\d+ byte of .*", re.DOTALL)
"""What older servers add when they can't read a body: pieces of it, whatever stands there."""
_RBAC = re.compile(r'User "[^"]*" cannot [\w*-]+ ')
_BUDGET = re.compile(r"[Dd]isruption budget (\S+)")
_MANAGER = re.compile(r'conflict with "([^"]*)"')
_SEVERAL_BUDGETS = "more than one PodDisruptionBudget"
_LONGEST_TEXT = 200


@dataclass(frozen=True)
class Answer:
    """One answer of the API server: HTTP status, headers in lower case, and the body as it came."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> dict[str, Any]:
        """Return the body as an object. Raises ValueError when it is none."""
        try:
            value = json.loads(self.body)
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
        if not isinstance(value, dict):
            raise ValueError(f"a {type(value).__name__} instead of an object")  # noqa: TRY004 (one error for both faults)
        return value

    def object(self) -> dict[str, Any]:
        """Return the body as a Kubernetes object or list. Raises ValueError when it is none: a proxy's page, say."""
        value = self.json()
        if "kind" not in value or not isinstance(value.get("metadata"), dict) or value["kind"] == "Status":
            raise ValueError(f"kind {str(value.get('kind'))[:100]!r} instead of the object")
        return value

    def items(self) -> tuple[list[dict[str, Any]], str]:
        """Return the objects of a list, and the token of its next page. Raises ValueError for what is no list: none is not nothing."""
        value = self.object()
        items = value.get("items")
        if not str(value["kind"]).endswith("List") or "items" not in value:
            raise ValueError(f"kind {str(value['kind'])[:100]!r} instead of a list")
        if items is not None and not (isinstance(items, list) and all(isinstance(item, dict) for item in items)):
            raise ValueError("items that are no objects")
        return items or [], str(value["metadata"].get("continue") or "")

    def success(self) -> dict[str, Any]:
        """Return what a write answered: the object, or the `Status` of a success (deletions, evictions). Raises ValueError."""
        value = self.json()
        if value.get("kind") == "Status" and value.get("status") == "Success":
            return value
        return self.object()

    def plain(self) -> str:
        """Return the start of a body that is plain text, for a message: kubelets and multiplexers explain themselves so."""
        if not self.headers.get("content-type", "").startswith("text/plain"):
            return ""
        text = self.body[:_LONGEST_TEXT].decode("utf-8", "replace")
        text = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
        return f" ({text})" if text else ""

    def failure(self) -> dict[str, Any]:
        """Return the `Status` object of a refusal, or an empty one when somebody other than an API server answered."""
        try:
            value = self.json()
        except ValueError:
            return {}
        if value.get("kind") != "Status":
            return {}
        details = value.get("details")
        if not isinstance(details, dict) or not details:
            return {**value, "details": {}}
        causes = details.get("causes")
        said = [cause for cause in causes if isinstance(cause, dict)] if isinstance(causes, list) else []
        return {**value, "details": {**details, "causes": said}}


def error_of(answer: Answer, *, cluster: str, request: str) -> RemediatorError:
    """Return the error that a refused request means; `request` is `VERB PATH` without its query.

    Server errors (5xx) come out as temporary: whether a write took effect is the caller's to judge.
    """
    status = answer.failure()
    said = safe_message(str(status.get("message", ""))) or f"HTTP {answer.status} without a Kubernetes Status{answer.plain()}"
    text = f"cluster {cluster!r}, {request}: {said}"
    blocked = _blocked(status, text)
    if blocked is not None:
        return blocked
    match answer.status:
        case 401:
            return PermanentError(f"{text}; the credentials of connection {cluster!r} are not accepted (missing, wrong or expired)")
        case 403 if _RBAC.search(said):
            return PermissionMissing(f"{text}; grant it, or use another connection")
        case 404 if status.get("reason") == "NotFound" and (status.get("details") or {}).get("name"):  # else the API is not served
            return NotFound(text)
        case 409:
            return _conflict(status, text)
        case 429:
            return TemporaryError(f"{text} (too many requests{_when(answer)})", delay=retry_after(answer))
        case 408 | 410:
            return TemporaryError(text)
        case code if code >= 500:
            return TemporaryError(text, delay=retry_after(answer))
    return PermanentError(text)


def _causes(status: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list((status.get("details") or {}).get("causes") or ())


def _conflict(status: Mapping[str, Any], text: str) -> RemediatorError:
    """Return the error for a 409: somebody changed the object, has made it, or owns fields of it."""
    owned = [cause for cause in _causes(status) if cause.get("reason") == "FieldManagerConflict"]
    if owned:
        fields = [_field_conflict(cause) for cause in owned]
        who = "; ".join(f"{one.field} belongs to {one.manager or one.said}" for one in fields)
        return ApplyConflict(f"{text}: {who}"[:2_000], fields=fields)
    match status.get("reason"):
        case "Conflict":
            return Conflict(text)
        case "AlreadyExists":
            return AlreadyExists(text)
    return PermanentError(text)


def _field_conflict(cause: Mapping[str, Any]) -> FieldConflict:
    said = str(cause.get("message", ""))
    found = _MANAGER.search(said)
    return FieldConflict(field=str(cause.get("field", "")), manager=found[1] if found else "", said=said)


def _blocked(status: Mapping[str, Any], text: str) -> Blocked | None:
    """Return the error for an eviction that a PodDisruptionBudget forbids. A Pod with several budgets is refused with a 500."""
    causes = [cause for cause in _causes(status) if cause.get("reason") == "DisruptionBudget"]
    if causes:
        said = "; ".join(str(cause.get("message", "")) for cause in causes)
        found = _BUDGET.search(said)
        return Blocked(f"{text} {said}".strip(), budget=found[1] if found else "")
    return Blocked(text, budget="") if _SEVERAL_BUDGETS in str(status.get("message", "")) else None


def safe_message(message: str) -> str:
    """Shorten a server's message and take out what it quotes of the object: values of environment variables and Secrets are in there."""
    message = _CONTEXT.sub("", message)
    for begin, end in _OBJECTS:
        before, found, after = message.partition(begin)
        if found:
            # To the last closing brace, as the object may quote some itself; one that was cut off ends nowhere.
            message = f"{before}Invalid value: {{…}}" + (after.rpartition(end)[2] if end in after else "")
    return message if len(message) <= _LONGEST_MESSAGE else message[:_LONGEST_MESSAGE] + "…"


def retry_after(answer: Answer) -> timedelta | None:
    """Read Retry-After in seconds, at most an hour; API servers send no other form."""
    text = answer.headers.get("retry-after", "")
    return timedelta(seconds=min(int(text[:9]), _LONGEST_DELAY)) if text.isascii() and text.isdigit() else None


def _when(answer: Answer) -> str:
    delay = retry_after(answer)
    return f"; again in {delay.total_seconds():g} s" if delay else ""
