"""Alertmanager's webhook body as alerts: parsed once, distrusted throughout.

The format is Alertmanager's webhook, version 4. Fields that are not needed are ignored, whatever they hold.
One bad alert is refused by itself, with the reason; the others of its body are taken. The standard library's parser was
measured against pydantic's (one alert 7 µs against 5, a thousand 2.5 ms against 2.4): it is as quick, and it lets one alert with
broken text be told from a broken body. Pure: no I/O, no clock, no logging.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from remediator.errors import InvalidAlerts
from remediator.model import Alert
from remediator.replacing import replace

MAX_ALERTS: Final = 10_000
"""Most alerts of one body."""
MOST_TRUNCATED: Final = 10**9
"""A sender that says it left out more than this is not believed: the number goes into metrics and records."""
MAX_LABELS: Final = 128
MAX_NAME: Final = 256
MAX_VALUE: Final = 4096
"""Most characters of a label's value. A longer one refuses the alert: a cut label would be another label."""
MAX_ANNOTATIONS: Final = 64
MAX_ANNOTATION: Final = 4096
"""Characters kept of an annotation; annotations are prose and may be cut."""
MAX_URL: Final = 4096

_FINGERPRINT = re.compile(r"[0-9a-f]{16}")
_OFFSET, _PRIME, _MASK = 14_695_981_039_346_656_037, 1_099_511_628_211, 2**64 - 1
_ZERO = "0001-01-01T00:00:00Z"
"""Go's zero time: the end of every alert that fires."""
_FIRST, _LAST = datetime(1, 1, 3, tzinfo=UTC), datetime(9999, 12, 30, tzinfo=UTC)
"""Times outside are Go's zero time, or beyond what can be counted with: not set."""
_BLANK = Alert("", firing=True, labels={}, annotations={}, starts_at=_FIRST)
"""To copy an alert with all its fields changed takes half as long as to make one."""
_QUOTED = re.compile(r"\\(.)")


@dataclass(frozen=True)
class Rejected:
    """One alert of a body that was not taken. `reason` is a word from a closed set (a metric's label)."""

    index: int
    reason: str
    message: str

    def __str__(self) -> str:
        return f"alerts[{self.index}]: {self.message}"


@dataclass(frozen=True)
class Webhook:
    """One notification: the alerts that were taken, each with its own status, and those that were not.

    `truncated` counts the alerts that Alertmanager itself left out; `receiver` is freed of Alertmanager's quoting.
    """

    version: str
    group_key: str
    truncated: int
    receiver: str
    external_url: str
    alerts: tuple[Alert, ...]
    rejected: tuple[Rejected, ...] = ()
    group_labels: Mapping[str, str] = field(default_factory=dict)
    """What the alerts have in common by which they were grouped, as far as it is text."""


class _Refused(Exception):
    """Why one alert can't be taken."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def fingerprint(labels: Mapping[str, str]) -> str:
    r"""Return the fingerprint of a label set as Alertmanager computes it: FNV-1a, 64 bits, over `name \xff value \xff`, names sorted.

    >>> fingerprint({"alertname": "SiteDown"})
    'd4d26dca8fe732d5'
    """
    found = _OFFSET
    for name in sorted(labels):
        for byte in name.encode() + b"\xff" + labels[name].encode() + b"\xff":
            found = (found ^ byte) * _PRIME & _MASK
    return f"{found:016x}"


def parse_webhook(body: bytes) -> Webhook:
    """Parse a webhook's body. Raises `InvalidAlerts` (and nothing else) for a body that can't be taken as a whole.

    Its reasons: `encoding`, `json`, `nesting` and `shape` (400), `version` and `alerts` (422), `too_many_alerts` (413).
    """
    whole = _load(body)
    if not isinstance(whole, dict):
        raise InvalidAlerts(f"the body is a JSON {_kind(whole)}, not an object", reason="shape")
    if whole.get("version") != "4":
        found = repr(whole.get("version"))[:40]
        raise InvalidAlerts(f"version is {found}; this takes Alertmanager's webhook version '4'", reason="version", status=422)
    raw = whole.get("alerts")
    if not isinstance(raw, list):
        raise InvalidAlerts(f"alerts is a JSON {_kind(raw)}, not a list", reason="alerts", status=422)
    if len(raw) > MAX_ALERTS:
        raise InvalidAlerts(f"{len(raw)} alerts; at most {MAX_ALERTS} are taken at once", reason="too_many_alerts", status=413)
    truncated = whole.get("truncatedAlerts")
    # Only an escape can bring a NUL or half a surrogate pair past the parser, so most bodies need no look at each text.
    escapes = b"\\u" in body
    receiver, external_url = _prose(whole.get("receiver"), escapes=escapes), _prose(whole.get("externalURL"), escapes=escapes)
    reader = _Reader(_QUOTED.sub(r"\1", receiver) if "\\" in receiver else receiver, external_url, escapes)
    alerts, rejected = reader.read_all(raw)
    return Webhook(
        version="4",
        group_key=_prose(whole.get("groupKey"), escapes=escapes),
        truncated=min(truncated, MOST_TRUNCATED) if type(truncated) is int and truncated > 0 else 0,
        receiver=reader.receiver,
        external_url=reader.external_url,
        alerts=alerts,
        rejected=rejected,
        group_labels=_texts(whole.get("groupLabels"), escapes=escapes),
    )


def parse_alert(item: Any, *, receiver: str, external_url: str = "") -> Alert:
    """Parse one alert that did not come in a webhook's body, with the same distrust. Raises `InvalidAlerts` with its reason."""
    try:
        return _Reader(receiver, external_url, escapes=True).read(item)
    except _Refused as error:
        raise InvalidAlerts(str(error), reason=error.reason) from error


def _load(body: bytes) -> Any:
    try:
        return json.loads(body.decode())
    except UnicodeDecodeError as error:
        raise InvalidAlerts(f"the body is not UTF-8 at byte {error.start}", reason="encoding") from error
    except RecursionError as error:
        raise InvalidAlerts("the body is nested too deeply", reason="nesting") from error
    except json.JSONDecodeError as error:
        raise InvalidAlerts(f"the body is not JSON: {error.msg.removesuffix(' at')} at character {error.pos}", reason="json") from error
    except ValueError as error:  # an integer of thousands of digits
        raise InvalidAlerts(f"the body is not JSON that can be read: {error}", reason="json") from error


def _kind(value: Any) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def _clean(text: str) -> str:
    """Replace what no store takes: NUL characters and halves of surrogate pairs."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")


def _prose(value: Any, *, escapes: bool) -> str:
    """Return a text for people, cut and cleaned; anything else becomes empty."""
    if not isinstance(value, str):
        return ""
    return _clean(value[:MAX_URL]) if escapes else value[:MAX_URL]


def _texts(value: Any, *, escapes: bool) -> dict[str, str]:
    """Return those entries of an object that are text and of a label's size; nothing for anything else."""
    items = list(value.items())[:MAX_LABELS] if isinstance(value, dict) else []
    kept = {name: text for name, text in items if isinstance(text, str) and len(name) <= MAX_NAME and len(text) <= MAX_VALUE}
    return {_clean(name): _clean(text) for name, text in kept.items()} if escapes else kept


def _small(texts: dict[str, Any], most: int, longest: int) -> bool:
    """Tell by one look at all whether these are at most `most` texts, none longer than `longest` and each with a name of due length.

    It is so for nearly all labels and annotations; False only says that each needs a look.
    """
    try:
        return len(texts) <= most and len("".join(texts.values())) <= longest and len("".join(texts)) <= MAX_NAME and "" not in texts
    except TypeError:  # something is no text
        return False


@dataclass(frozen=True)
class _Reader:
    r"""Reads the alerts of one body. `escapes` says that the body holds `\u` escapes, so that texts need a look."""

    receiver: str
    external_url: str
    escapes: bool

    def read_all(self, raw: list[Any]) -> tuple[tuple[Alert, ...], tuple[Rejected, ...]]:
        """Return the alerts that can be taken, one for each fingerprint, and why the others can't."""
        taken: dict[str, tuple[int, Alert]] = {}
        rejected: list[Rejected] = []
        disputed: set[str] = set()
        for index, item in enumerate(raw):
            try:
                alert = self.read(item)
            except _Refused as error:
                rejected.append(Rejected(index, error.reason, str(error)))
                continue
            earlier = taken.get(alert.fingerprint)
            if earlier is None and not disputed:
                taken[alert.fingerprint] = (index, alert)
                continue
            if earlier is not None and earlier[1].labels != alert.labels:
                # One fingerprint for two label sets: it is not what Alertmanager would have sent, for either.
                disputed.add(alert.fingerprint)
                del taken[alert.fingerprint]
                rejected += _keep_later(taken, earlier[0], _own(earlier[1]))
            rejected += _keep_later(taken, index, _own(alert) if alert.fingerprint in disputed else alert)
        return tuple(alert for _, alert in taken.values()), tuple(rejected)

    def read(self, item: Any) -> Alert:
        """Return one alert. Raises `_Refused`."""
        if not isinstance(item, dict):
            raise _Refused("shape", f"it is a JSON {_kind(item)}, not an object")
        status = item.get("status")
        if status not in ("firing", "resolved"):
            raise _Refused("status", f"status is {_shown(status)}; it must be firing or resolved")
        labels = self._labels(item.get("labels"))
        starts_at = _time(item.get("startsAt"), "startsAt")
        if starts_at is None:
            raise _Refused("time", "startsAt is missing or zero")
        given = item.get("fingerprint")
        return replace(
            _BLANK,
            fingerprint=given if isinstance(given, str) and _FINGERPRINT.fullmatch(given) else fingerprint(labels),
            firing=status == "firing",
            labels=labels,
            annotations=self._annotations(item.get("annotations")),
            starts_at=starts_at,
            ends_at=_time(item.get("endsAt"), "endsAt"),
            generator_url=_prose(item.get("generatorURL"), escapes=self.escapes),
            receiver=self.receiver,
            external_url=self.external_url,
        )

    def _labels(self, raw: Any) -> dict[str, str]:
        """Return the labels unchanged, without empty ones (which count as missing)."""
        if not isinstance(raw, dict) or not raw:
            raise _Refused("labels", "it has no labels" if raw in (None, {}) else f"labels is a JSON {_kind(raw)}, not an object")
        if len(raw) > MAX_LABELS:
            raise _Refused("size", f"it has {len(raw)} labels; at most {MAX_LABELS} are taken")
        for name, value in () if not self.escapes and _small(raw, MAX_LABELS, MAX_VALUE) else raw.items():
            if not isinstance(value, str):
                raise _Refused("labels", f"label {_shown(name)} is a JSON {_kind(value)}, not a string")
            if not name or len(name) > MAX_NAME or len(value) > MAX_VALUE:
                raise _Refused("size", f"label {_shown(name)} is too long or has no name ({len(name)} and {len(value)} characters)")
            if self.escapes and (fault := _fault(name) or _fault(value)):
                raise _Refused("text", f"label {_shown(name)} holds {fault}")
        labels = {name: value for name, value in raw.items() if value} if "" in raw.values() else raw
        if not labels:
            raise _Refused("labels", "all its labels are empty")
        return labels

    def _annotations(self, raw: Any) -> dict[str, str]:
        """Return the annotations, cut to size; what is not text is left out."""
        if not isinstance(raw, dict):
            return {}
        if not self.escapes and _small(raw, MAX_ANNOTATIONS, MAX_ANNOTATION):
            return raw
        kept = {name: value[:MAX_ANNOTATION] for name, value in raw.items() if isinstance(value, str) and len(name) <= MAX_NAME}
        if len(kept) > MAX_ANNOTATIONS:
            kept = dict(list(kept.items())[:MAX_ANNOTATIONS])
        return {_clean(name): _clean(value) for name, value in kept.items()} if self.escapes else kept


def _keep_later(taken: dict[str, tuple[int, Alert]], index: int, alert: Alert) -> list[Rejected]:
    """Keep the later of two alerts with one fingerprint: started later, then resolved before firing, then further down the body."""
    earlier = taken.get(alert.fingerprint)
    if earlier is None:
        taken[alert.fingerprint] = (index, alert)
        return []
    number, other = earlier
    kept, dropped = (number, other), index
    if (alert.starts_at, not alert.firing) >= (other.starts_at, not other.firing):
        kept, dropped = (index, alert), number
        del taken[alert.fingerprint]
    taken[alert.fingerprint] = kept
    return [Rejected(dropped, "duplicate", f"fingerprint {alert.fingerprint} is sent twice; alerts[{kept[0]}] is the later one")]


def _own(alert: Alert) -> Alert:
    return replace(alert, fingerprint=fingerprint(alert.labels))


def _fault(text: str) -> str:
    if "\0" in text:
        return "a NUL character"
    return "half a surrogate pair" if any("\ud800" <= character <= "\udfff" for character in text) else ""


def _shown(value: Any) -> str:
    """Show a value from outside in a message: short, and without control characters."""
    return ascii(value[:60] if isinstance(value, str) else value)[:80]


def _time(raw: Any, name: str) -> datetime | None:
    """Return a time in UTC; None when it is missing or Go's zero time."""
    if raw is None or raw in ("", _ZERO):
        return None
    try:
        found = datetime.fromisoformat(raw) if isinstance(raw, str) else None
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise _Refused("time", f"{name} is {_shown(raw)}; it must be a time like 2025-03-31T12:00:00Z")
    if not _FIRST <= found <= _LAST:
        return None
    return found if found.tzinfo is UTC else found.astimezone(UTC)
