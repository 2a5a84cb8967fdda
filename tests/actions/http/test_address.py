"""Values from alerts enter paths and queries only encoded."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from actions.http.address import HttpConnection, PathParams, encode_query, fill_path


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        ("v1", "v1"),
        (7, "7"),
        ("a b", "a%20b"),
        ("a/b", "a%2Fb"),
        ("x?admin=1", "x%3Fadmin%3D1"),
        ("x#top", "x%23top"),
        ("@evil.example.com", "%40evil.example.com"),
        ("100%", "100%25"),
        ("a..b", "a..b"),
        ("größe", "gr%C3%B6%C3%9Fe"),
        ("{other}", "%7Bother%7D"),
    ],
)
def test_value_is_one_encoded_segment(value: str | int, encoded: str) -> None:
    """Whatever has a meaning in a URL is percent-encoded."""
    assert fill_path("/api/{name}/health", {"name": value}) == f"/api/{encoded}/health"


@pytest.mark.parametrize(
    "value",
    [
        "..",
        ".",
        "../admin",
        "a/../b",
        "..\\admin",
        "a/.",
        "..;x",
        "%2e%2e",
        "%2e%2e%2fadmin",
        "%252e%252e",
        "",
        "a\r\nX-Evil: 1",
        "a\x00",
        "a\n",
        "\x7f",
    ],
)
def test_value_that_leads_elsewhere_is_refused(value: str) -> None:
    """Dot segments (which some servers decode before they route), control characters and emptiness are refused, not encoded."""
    with pytest.raises(ValueError, match=r"args\.name"):
        fill_path("/api/{name}/health", {"name": value})


@given(st.text(min_size=1))
def test_any_value_stays_in_its_segment(value: str) -> None:
    """No value adds a segment, a query, a fragment or a line."""
    try:
        path = fill_path("/api/{name}/health", {"name": value})
    except ValueError:
        return
    assert path.count("/") == 3
    assert not set(path) & set("?#\r\n \\")
    assert path.isascii()


@pytest.mark.parametrize(
    "path",
    ["api", "", "//evil.example.com/a", "http://evil.example.com/", "/a?b=1", "/a#b", "/a b", "/a\r\nb", "/../a", "/a/./b", "/a/%2e%2E/b",
     "/a/b%2F..%2Fc", "/a/b%5c..%5cc", "/a/..;x/b", "/a/%252e%252e/b",
     "/a/%zz", "/{a.b}", "/{", "/é", "/a\\b", "/%{x}"],
)  # fmt: skip
def test_path_that_is_none_is_refused_at_load(path: str) -> None:
    """A path is absolute, encoded, without query, fragment and dot segments."""
    with pytest.raises(ValidationError):
        PathParams.model_validate({"connection": "shop", "path": path, "args": {"x": "41"} if "{x}" in path else {}})


@pytest.mark.parametrize(("path", "args"), [("/{a}", {}), ("/a", {"a": "b"}), ("/{a}", {"a": "b", "c": "d"})])
def test_args_and_placeholders_must_agree_at_load(path: str, args: dict[str, Any]) -> None:
    """A placeholder without value and a value without placeholder are mistakes."""
    with pytest.raises(ValidationError, match="args"):
        PathParams.model_validate({"connection": "shop", "path": path, "args": args})


def test_query_is_data() -> None:
    """Names and values of a query are encoded; booleans are written as JSON does."""
    assert encode_query({"a": "x&b=1#\r\n", "ö": True, "n": 1}) == "?a=x%26b%3D1%23%0D%0A&%C3%B6=true&n=1"
    assert encode_query({}) == ""


@pytest.mark.parametrize(
    "url",
    ["shop.example.com", "ftp://shop.example.com", "https://", "https://user:pw@shop.example.com", "https://shop.example.com/?a=1",
     "https://shop.example.com/#a", "https://shop.example.com/a b", "file:///etc/passwd", "https://shop.example.com/\r\na"],
)  # fmt: skip
def test_base_url_without_surprises(url: str) -> None:
    """A connection's URL is http(s) with a host, and holds no credentials, query or fragment."""
    with pytest.raises(ValidationError):
        HttpConnection(base_url=url)


@pytest.mark.parametrize(
    "fields",
    [
        {"bearer": {"env": "T"}, "basic": {"username": "u", "password": {"env": "P"}}},
        {"bearer": {"env": "T"}, "headers": {"authorization": {"env": "T"}}},
        {"headers": {"Host": {"env": "T"}}},
        {"headers": {"X-A\r\nB": {"env": "T"}}},
        {"headers": {"": {"env": "T"}}},
    ],
)
def test_contradicting_credentials_are_refused(fields: dict[str, Any]) -> None:
    """One Authorization at most; header names are names; what frames a message can't be set."""
    with pytest.raises(ValidationError):
        HttpConnection.model_validate({"base_url": "https://shop.example.com", **fields})
