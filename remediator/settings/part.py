"""What all parts of the settings are made of: their base, fields that say whether a reload applies them, names, paths, URLs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo

NAME = r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$"
Name = Annotated[str, Field(pattern=NAME)]
"""A name that people give to a connection, policy, pack, person or severity."""

MIB = 1024 * 1024


class Part(BaseModel):
    """Base of all parts of the settings: unknown keys are errors, values don't change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def setting(default: Any, description: str, *, reload: bool, **limits: Any) -> Any:
    """Declare a field with its default, its meaning and whether a reload applies it.

    A callable default is called for each instance. `limits` are pydantic's (`ge`, `le`, `min_length`, …).
    """
    how: dict[str, Any] = {"default_factory": default} if callable(default) else {"default": default}
    return Field(description=description, json_schema_extra={"reload": reload}, **how, **limits)


def directory(info: ValidationInfo) -> Path:
    """Return where relative paths start: the settings file's directory while a file is read."""
    return Path((info.context or {}).get("directory", ""))


def _path(value: Path, info: ValidationInfo) -> Path:
    if not value.parts:
        raise ValueError("an empty path; write the path of a file or directory")
    return directory(info) / value


FilePath = Annotated[Path, AfterValidator(_path)]
"""A path; a relative one starts at the settings file's directory."""


def _http_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("not an http(s) URL; write it like https://host:port/path")
    if parts.username is not None or parts.password is not None:
        raise ValueError("credentials don't belong in a URL; refer to them with bearer, username or password")
    if parts.query or parts.fragment:
        raise ValueError("a base URL has no query and no fragment")
    return value.rstrip("/")


HttpUrl = Annotated[str, AfterValidator(_http_url)]
"""A base URL, without credentials, query and trailing slash."""


def place(value: str, info: ValidationInfo) -> str:
    """Check the address of a directory, file or bucket; a relative path starts at the settings file's directory."""
    parts = urlsplit(value)
    if parts.scheme == "s3":
        if not parts.netloc or parts.query or parts.fragment or parts.username is not None:
            raise ValueError("not a bucket; write s3://bucket/prefix")
        return value.rstrip("/")
    if parts.scheme != "file" or parts.netloc or parts.query or parts.fragment or not parts.path.strip("/"):
        raise ValueError("no such place; write file:///absolute/path, file:relative/path or s3://bucket/prefix")
    return (directory(info).resolve() / parts.path).as_uri()


PlaceUrl = Annotated[str, AfterValidator(place)]
"""A directory or file, or a bucket and prefix."""
