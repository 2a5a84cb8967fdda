"""Take secrets out of whatever is about to be stored, logged, sent or shown.

Two nets: the values that were really revealed, in every form in which they may turn up again, and the shapes that secrets
usually have. The second errs towards hiding too much. Pure but for what it has learned.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from threading import Lock
from typing import Any
from urllib.parse import quote, quote_plus

from pydantic_core import SchemaValidator
from pydantic_core.core_schema import str_schema

from remediator.model import JSON, Alert
from remediator.replacing import replace

REDACTED = "«redacted»"
SHORTEST = 6
"""Shorter values are not learned: hiding `no` wherever it stands would hide everything."""
UNMISTAKABLE = 12
"""From this length on a value found in a label is taken for the secret; a password like `postgres` is also a word."""
MOST = 1000
"""How many values are remembered; the oldest goes first. Short-lived tokens would fill the memory otherwise."""

BEGINNING = 8
"""So many characters of each form are looked for at first."""
FEW = 1000
"""So many forms, of two hundred secrets, are looked for all at once."""

# --- shapes ------------------------------------------------------------------------------------------------------------

# Texts come from outside and may be made to hurt: repetitions are bounded, possessive, or the last thing in their pattern.
_HINTS = (
    *("@", "hooks.slack.", "/api/webhooks/"),  # and no plain URL: nearly every alert has some
    *("pass", "pwd", "secret", "token", "key", "identified", "bearer", "basic", "negotiate", "cookie", "x-"),
    *("authorization", "masterauth", "primaryauth"),
    *("akia", "asia", "eyj", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat", "xox", "k_live"),
)
"""Text that holds none of these, in lower case, and no `auth` before an equals sign, matches no pattern."""
# Not `auth` alone: the plan of every run speaks of its authority. Python counts four controls among the blanks that Rust does not.
_HINT = SchemaValidator(str_schema(pattern=rf"(?i){'|'.join(map(re.escape, _HINTS))}|auth[\s\x1c-\x1f]*=", regex_engine="rust-regex"))

_TEXT_IN_QUOTES = r""""(?:\\.|[^"\\])*|'(?:\\.|[^'\\])*|\\+["'][^"'\\]*"""
_KEYS = r"(?:api|access|secret|private)[_-]?key|client[_-]?secret"
_WORDS = rf"passwords?|passwd|passphrase|pwd|pgpassword|requirepass|masterauth|{_KEYS}"
_TOKENS = r"(?:access|refresh|auth|id|session|api|bot|bearer)[_-]?token"

_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)", re.DOTALL), REDACTED),
    (re.compile(r"(?i)\b(bearer|basic|negotiate)\s+(?=[A-Za-z0-9._~+/=-]{0,40}[0-9=])[A-Za-z0-9._~+/=-]{8,}"), rf"\1 {REDACTED}"),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"), REDACTED),
    (re.compile(r"\beyJ[A-Za-z0-9_-]{8,4096}+\.[A-Za-z0-9_-]{8,4096}+\.[A-Za-z0-9_-]*"), REDACTED),
    (
        re.compile(
            r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}|xox[abeprs]-[A-Za-z0-9-]{10,}|[rs]k_live_[A-Za-z0-9]{10,})"
        ),
        REDACTED,
    ),
    (
        re.compile(r"(://(?:hooks\.slack\.com/(?:services|workflows)|[a-z.]{0,20}discord(?:app)?\.com/api/webhooks)/)[^\s\"'<>«]+"),
        rf"\1{REDACTED}",
    ),
    # user:password@ in a URL. A port and a path are no password, though an @ may follow them.
    (
        re.compile(r"(://[^\s:/?#@\"'<>«]{0,256}:)(?!\d{1,5}(?:[/?#\s,]|\Z))[^\s\"'<>@]{1,1024}+(?:@[^\s\"'<>@/]{1,256})*(?=@)"),
        rf"\1{REDACTED}",
    ),
    (
        re.compile(
            r"(?i)\b((?:proxy-)?authorization|x-[a-z-]{0,20}(?:token|key)|(?:set-)?cookie)(\\*[\"']?\s{0,8}[:=]\s{0,8}\\*[\"']?)[^\n\"'\\]+"
        ),
        rf"\1\2{REDACTED}",
    ),
)

_NAMED = re.compile(
    rf"""(?isx)
    (?P<name> (?:{_WORDS}|{_TOKENS}) (?:\\*["'])? \s{{0,8}} (?:=>|[=:]) \s{{0,8}}
            | (?:token|secret|pass|auth) \s{{0,8}} = \s{{0,8}}
            | (?:token|secret) \\*["'] \s{{0,8}} : \s{{0,8}}
            | (?:identified\s{{1,8}}by|password|requirepass|masterauth|primaryauth) \s{{1,8}} (?=["'])
            | (?:requirepass|masterauth|primaryauth) \s{{1,8}} )
    (?P<value> {_TEXT_IN_QUOTES} | [^\s"'&]+ )
    """
)
"""`password=…`, `"api_key": "…"`, `IDENTIFIED BY '…'`, in prose, JSON, DSNs and environments alike."""

_SECRET_KEY = re.compile(rf"(?i)(?:{_WORDS}|token|authorization|cookie)\Z")
"""Ends of keys whose values are secret in a tree."""


def _hide_named(match: re.Match[str]) -> str:
    value = match["value"]
    opening = re.match(r"\\*[\"']", value)
    return match["name"] + (opening[0] if opening else "") + REDACTED


# --- forms of a value --------------------------------------------------------------------------------------------------


def _parts(secret: str) -> Iterator[str]:
    """Give the value, without blanks around it, and each long line of a value of several lines: libraries quote single lines."""
    yield secret
    yield secret.strip()
    lines = secret.splitlines()
    if len(lines) > 1:
        yield from (line.strip() for line in lines if len(line.strip()) >= 16)


def _base64(secret: str) -> Iterator[str]:
    """Give what base64 makes of the value wherever it stands inside of a longer text: one form for each of three offsets."""
    data = secret.encode("utf-8", "surrogatepass")
    for offset in range(3):
        text = base64.b64encode(bytes(offset) + data).decode().rstrip("=")
        whole = (offset + len(data)) % 3 == 0
        core = text[(0, 2, 3)[offset] : None if whole else -1]
        yield core
        yield core.translate(str.maketrans("+/", "-_"))
    yield base64.b64encode(data).decode()


def _forms(secret: str) -> set[str]:
    forms = {secret, *_base64(secret)}
    percent = {
        quote(secret, safe="", errors="surrogatepass"),
        quote(secret, errors="surrogatepass"),
        quote_plus(secret, errors="surrogatepass"),
    }
    forms |= percent | {re.sub(r"%[0-9A-F]{2}", lambda code: code[0].lower(), text) for text in percent}
    for ensure_ascii in (True, False):
        escaped = json.dumps(secret, ensure_ascii=ensure_ascii)[1:-1]
        forms |= {escaped, json.dumps(escaped, ensure_ascii=ensure_ascii)[1:-1], escaped.replace("/", "\\/")}
    forms |= {repr(secret)[1:-1], html.escape(secret), secret.encode("utf-8", "surrogatepass").hex(), secret.replace("'", "''")}
    return _without_covered(form for form in forms if len(form) >= SHORTEST)


def _without_covered(forms: Iterable[str]) -> set[str]:
    """Leave out forms that hold another one: hiding that one is enough."""
    kept: set[str] = set()
    for form in sorted(forms, key=len):
        if not any(other in form for other in kept):
            kept.add(form)
    return kept


# --- the scrubber ------------------------------------------------------------------------------------------------------


class _Known:
    """The forms of all secrets that are known, and a quick look for them. Replaced whole when another is learned."""

    def __init__(self, forms: Iterable[str]) -> None:
        self.forms = tuple(forms)

    @cached_property
    def _beginnings(self) -> SchemaValidator:
        """What ASCII texts are that may hold one of the forms. To make it of hundreds takes milliseconds."""
        beginnings = {form[:BEGINNING] for form in self.forms if form.isascii()}
        pattern = "|".join("".join(f"\\x{ord(letter):02x}" for letter in one) for one in beginnings)
        return SchemaValidator(str_schema(pattern=pattern or r"[^\s\S]", regex_engine="rust-regex"))

    def within(self, text: str) -> bool:
        """Tell whether one of the forms is in `text`.

        As in `_hints`, one look for all is quicker: of ten secrets' forms, one after the other, each alert would take 10 µs.
        """
        if not self.forms or (len(self.forms) <= FEW and text.isascii() and not self._beginnings.isinstance_python(text)):
            return False
        return any(form in text for form in self.forms)


class Scrubber:
    """Knows the secrets that were revealed and what secrets look like. Safe to use from several threads."""

    def __init__(self) -> None:
        self._learned: OrderedDict[str, frozenset[str]] = OrderedDict()
        self._known = _Known(())
        self._lock = Lock()

    def learn(self, secret: str) -> None:
        """Remember a secret's value, in the forms in which it may turn up again. Shorter than six characters: ignored."""
        with self._lock:
            if secret in self._learned:
                self._learned.move_to_end(secret)
                return
            self._learned[secret] = frozenset(form for part in _parts(secret) if len(part) >= SHORTEST for form in _forms(part))
            while len(self._learned) > MOST:
                self._learned.popitem(last=False)
            self._known = _Known({form for forms in self._learned.values() for form in forms if form not in REDACTED})

    def text(self, text: str) -> str:
        """Return `text` with every secret replaced. Doing it twice is doing it once."""
        known = self._known
        if known.within(text):
            text = _cut(text, [form for form in known.forms if form in text])
        if _hints(text):
            for pattern, replacement in _PATTERNS:
                text = pattern.sub(replacement, text)
            text = _NAMED.sub(_hide_named, text)
        return text

    def holds(self, text: str) -> bool:
        """Tell whether `text` holds a secret that was revealed, and is too long to stand there by chance."""
        known = self._known
        return known.within(text) and any(form in text for form in known.forms if len(form) >= UNMISTAKABLE)

    def alert(self, alert: Alert) -> Alert:
        """Return an alert as it may be kept: annotations scrubbed, labels that hold a revealed secret left out.

        A label is not cut, for it would be another label, and a remedy might act on it. A missing one is unknown, and unknown stops.
        """
        labels = alert.labels
        if not self._suspects("\n".join((*labels, *labels.values(), *alert.annotations.values(), alert.generator_url))):
            return alert
        annotations = {name: self.text(text) for name, text in alert.annotations.items()}
        if self.holds("\n".join((*labels, *labels.values()))):
            labels = {name: text for name, text in labels.items() if not self.holds(name) and not self.holds(text)}
        return replace(alert, labels=labels, annotations=annotations, generator_url=self.text(alert.generator_url))

    def json(self, value: JSON) -> JSON:
        """Return a JSON tree with every secret in keys, strings and numbers replaced; the tree itself when there is nothing to suspect."""
        # Nearly all trees hold nothing; to look once at all their texts in a row takes a fifth of the time.
        return self._clean(value) if self._suspects("\n".join(_texts(value))) else value

    def _suspects(self, text: str) -> bool:
        """Tell whether `text`, or any part that it was joined from, may hold a secret."""
        return self._known.within(text) or _hints(text)

    def _clean(self, value: JSON) -> JSON:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return self._mapping(value)
        if isinstance(value, list | tuple):
            return [self._clean(item) for item in value]
        if isinstance(value, int | float) and not isinstance(value, bool) and self._known.within(str(value)):
            return REDACTED
        return value

    def _mapping(self, value: Mapping[Any, JSON]) -> dict[str, JSON]:
        clean: dict[str, JSON] = {}
        for name, item in value.items():
            key = self.text(str(name))
            while key in clean:  # two hidden keys must not swallow one another
                key += "'"
            clean[key] = REDACTED if _SECRET_KEY.search(key) and _holds_secret(item) else self._clean(item)
        return clean


def _hints(text: str) -> bool:
    """Tell whether `text` may match a pattern.

    Every alert and every line of the log is looked at, so it must be quick: pydantic's engine takes 1 µs for what `re` takes 30 and
    searches for one word after the other take 12. It refuses halves of surrogate pairs, hence ASCII only.
    """
    if text.isascii():
        return _HINT.isinstance_python(text)
    return any(map(text.lower().__contains__, (*_HINTS, "auth")))


def _texts(value: JSON) -> list[str]:
    """Return all texts of a tree: keys, strings, and numbers as they are written."""
    found: list[str] = []
    _gather(value, found)
    return found


def _gather(value: JSON, found: list[str]) -> None:
    if isinstance(value, str):
        found.append(value)
    elif isinstance(value, dict) or isinstance(value, Mapping):  # noqa: SIM101 - a dict is told from others much faster than a mapping
        found += map(str, value)
        _gather_all(value.values(), found)
    elif isinstance(value, list | tuple):
        _gather_all(value, found)
    elif value is not None and not isinstance(value, bool):
        found.append(str(value))


def _gather_all(values: Iterable[JSON], found: list[str]) -> None:
    for value in values:
        if isinstance(value, str):
            found.append(value)
        else:
            _gather(value, found)


def _holds_secret(item: JSON) -> bool:
    return isinstance(item, str | int | float) and not isinstance(item, bool) and item != ""


def _cut(text: str, forms: Iterable[str]) -> str:
    """Replace every stretch of `text` that `forms` cover, however they overlap. What is already hidden stays as it is."""
    hidden = list(_spans(text, (REDACTED,)))
    spans = [span for span in _spans(text, forms) if not any(start <= span[0] and span[1] <= end for start, end in hidden)]
    pieces, position = [], 0
    for start, end in _merged([*spans, *hidden]):
        pieces += [text[position:start], REDACTED]
        position = end
    return "".join([*pieces, text[position:]])


def _spans(text: str, forms: Iterable[str]) -> Iterator[tuple[int, int]]:
    for form in forms:
        start = text.find(form)
        while start >= 0:
            yield start, start + len(form)
            start = text.find(form, start + 1)


def _merged(spans: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Unite spans that overlap. Two that only touch stay two."""
    current: tuple[int, int] | None = None
    for start, end in sorted(spans):
        if current is None:
            current = start, end
        elif start < current[1]:
            current = current[0], max(current[1], end)
        else:
            yield current
            current = start, end
    if current is not None:
        yield current
