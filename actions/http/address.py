"""Where a request goes: connections, and paths and queries into which values from alerts enter only encoded. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import ClassVar, Self
from urllib.parse import quote, unquote, urlencode

from pydantic import Field, StrictBool, StrictFloat, StrictInt, StrictStr, model_validator

from remediator.action import Code, Connection, Params
from remediator.duration import Duration
from remediator.httpclient import WebConnection, WebUrl

Scalar = StrictStr | StrictInt | StrictFloat | StrictBool
"""A value of a query or a form."""

_PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_PATH = re.compile(r"/(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class HttpConnection(WebConnection):
    """A web service. Paths of checks and actions are appended to `base_url`; its host, port and scheme never change."""

    leads_by: ClassVar[tuple[str, ...] | None] = ("base_url",)

    base_url: WebUrl = Field(description="scheme, host, perhaps port and path prefix, e.g. https://shop.example.com/api")


class TcpConnection(Connection):
    """A host and a port, for systems of which only reachability is asked."""

    host: str = Field(min_length=1, pattern=r"^[A-Za-z0-9._:-]+$")
    port: int = Field(ge=1, le=65_535)
    timeout: Duration = Field(timedelta(seconds=5), gt=timedelta())


def check_path(path: str, names: frozenset[str]) -> None:
    """Check a path's text. Raises ValueError for what is no absolute path, and for placeholders without value or values without place."""
    found = set(_PLACEHOLDER.findall(path))
    plain = _PLACEHOLDER.sub("x", path)
    if not _PATH.fullmatch(plain) or plain.startswith("//"):
        raise ValueError(f"{path!r} is not a path: it starts with one /, is percent-encoded, and has no query or fragment (use query)")
    if _has_dots(plain):
        raise ValueError(f"{path!r} has a . or .. segment; write the path it leads to")
    if found - names:
        raise ValueError(f"{path!r} has {sorted(found - names)}, which args does not give")
    if names - found:
        raise ValueError(f"args has {sorted(names - found)}, which {path!r} does not use")


def _has_dots(text: str) -> bool:
    """Tell whether a server could read a `.` or `..` segment in `text`: as it stands or decoded, with backslashes or `;` parameters."""
    readings = (text, unquote(text), unquote(unquote(text)))
    return any(part.partition(";")[0] in {".", ".."} for reading in readings for part in re.split(r"[/\\]", reading))


def encode_segment(name: str, value: str | int) -> str:
    """Percent-encode one value for a path. Raises ValueError for values that could lead to another path.

    A slash is encoded, but some servers decode before they route: so `..` between slashes is refused, not encoded.
    """
    text = str(value)
    if not text:
        raise ValueError(f"args.{name} is empty, which would make it another path")
    if _CONTROL.search(text):
        raise ValueError(f"args.{name} holds control characters")
    if _has_dots(text):
        raise ValueError(f"args.{name} holds a . or .. segment")
    return quote(text, safe="")


def fill_path(path: str, args: Mapping[str, str | int]) -> str:
    """Return `path` with every `{name}` replaced by its encoded value. Raises ValueError."""
    check_path(path, frozenset(args))
    return _PLACEHOLDER.sub(lambda match: encode_segment(match.group(1), args[match.group(1)]), path)


def encode_query(query: Mapping[str, Scalar]) -> str:
    """Return `?a=b&…`, or nothing for no query; booleans as true and false."""
    pairs = [(name, str(value).lower() if isinstance(value, bool) else str(value)) for name, value in query.items()]
    return "?" + urlencode(pairs) if pairs else ""


class PathParams(Params):
    """What every check and action on a web endpoint has."""

    connection: str
    path: Code = Field(description="absolute path below the connection's base_url; {name} stands for a value of args")
    args: Mapping[str, StrictStr | StrictInt] = Field(default_factory=dict, description="values of the path's {name} placeholders")
    query: Mapping[str, Scalar] = Field(default_factory=dict, description="the query string, as data")

    @model_validator(mode="after")
    def _placeholders_fit(self) -> Self:
        check_path(self.path, frozenset(self.args))
        return self

    def target(self) -> str:
        """Return the encoded path with its query. Raises ValueError for a value that can't be in a path."""
        return fill_path(self.path, self.args) + encode_query(self.query)
