"""The settings about what is kept: the store, how long it keeps things, archives and anchors."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, ValidationInfo, model_validator

from remediator.action import SecretRef
from remediator.duration import Duration
from remediator.settings.part import HttpUrl, Part, PlaceUrl, directory, place, setting


def _store_url(value: str, info: ValidationInfo) -> str:
    parts = urlsplit(value)
    if parts.scheme == "sqlite":
        if parts.netloc or parts.query or parts.fragment or not parts.path.strip("/"):
            raise ValueError("not a SQLite URL; write sqlite:///absolute/path.sqlite or sqlite:relative.sqlite")
        path = str(directory(info) / parts.path)
        return f"sqlite://{path}" if path.startswith("/") else f"sqlite:{path}"
    if parts.scheme not in ("postgresql", "postgres"):
        raise ValueError("no such kind of store; write sqlite:///path or postgresql://user@host/database")
    if parts.password is not None or "password" in parts.query:
        raise ValueError("a password doesn't belong in the URL; refer to it with store.password")
    return value


class StoreSettings(Part):
    """Where the durable state is kept."""

    url: Annotated[str, AfterValidator(_store_url)] = setting(
        "sqlite:///var/lib/remediator/remediator.sqlite",
        "`sqlite:///absolute/path`, `sqlite:relative/path` (one daemon), or `postgresql://user@host/database` (any number of daemons)",
        reload=False,
    )
    password: SecretRef | None = setting(None, "reference to PostgreSQL's password", reload=False)
    connections: int = setting(8, "most PostgreSQL connections that one daemon opens", reload=False, ge=4, le=100)
    pgbouncer: bool = setting(
        False, "a PgBouncer in transaction mode stands between daemon and database: nothing is prepared or listened for", reload=False
    )

    @model_validator(mode="after")
    def _independent(self) -> Self:
        if self.password is not None and self.password.kubernetes is not None:
            raise ValueError("the store's password can't be in a cluster that this daemon may have to heal; refer to env, file or aws")
        return self

    @property
    def path(self) -> Path | None:
        """The SQLite file; None for PostgreSQL."""
        parts = urlsplit(self.url)
        return Path(parts.path) if parts.scheme == "sqlite" else None


def _anchor_place(value: str, info: ValidationInfo) -> str:
    return value if value == "log" else place(value, info)


class RetentionSettings(Part):
    """How long what is over stays in the store, and where it goes then."""

    after: Duration | None = setting(
        timedelta(days=90),
        "how long an incident stays after its end with all that belongs to it, and how far back the system chain goes; null: for ever",
        reload=True,
        ge=timedelta(days=7),
    )
    archive: PlaceUrl | None = setting(
        None,
        "where archives go: `file:///directory` or `s3://bucket/prefix`. Default: `archive` beside a SQLite store; for PostgreSQL nothing "
        "leaves the store without it",
        reload=True,
    )
    every: Duration = setting(timedelta(days=1), "time between two rounds", reload=True, ge=timedelta(minutes=1))


class AuditSettings(Part):
    """How the audit trail is made provable."""

    anchor: Annotated[str, AfterValidator(_anchor_place)] | None = setting(
        "log",
        "where each checkpoint is noted outside the store: `log`, `file:///path` (it only grows) or `s3://bucket/prefix`; null: nowhere",
        reload=True,
    )


class S3Settings(Part):
    """The S3 service that `s3://` places are on. Credentials are those that the AWS SDK finds by itself."""

    region: str | None = setting(None, "region; default: as the AWS SDK finds it", reload=True, min_length=1)
    endpoint: HttpUrl | None = setting(None, "another service than AWS", reload=True)
    lock: Duration | None = setting(
        None,
        "how long nobody can delete an object (object lock in compliance mode; the bucket must allow it)",
        reload=True,
        ge=timedelta(days=1),
    )
