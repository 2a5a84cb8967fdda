"""What the settings say about one Redis: address, credentials, TLS, time limits, and how its primary is found."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from remediator.action import Audit, Connection, Context, Permission, Right, SecretRef
from remediator.duration import Duration

HostPort = Annotated[str, StringConstraints(pattern=r"^(\[[0-9A-Fa-f:]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}$")]
"""`host:port`; an IPv6 address stands in brackets."""


class SentinelSettings(BaseModel):
    """The sentinels that watch this Redis. They are asked for the primary at each use: it moves."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    nodes: tuple[HostPort, ...] = Field(
        min_length=1, description="all sentinels, host:port; every one that answers must agree on the primary"
    )
    primary: str = Field(pattern=r"^[A-Za-z0-9._-]+$", description="the name under which the sentinels know the primary")
    username: str | None = None
    password: SecretRef | None = None


class RedisConnection(Connection):
    """One Redis: a server (`host`), a primary known to sentinels (`sentinel`), or a cluster (`host` and `cluster: true`).

    `scope` knows two dimensions: `db` (numbers as text) and `key` (globs such as `cache:*`). With a `key` entry other than `*`
    no flush is ever planned. What concerns a whole server (settings, fail-overs) lies outside of any such scope: give it a connection of
    its own. The user needs the ACL terms that each check and action declares.
    """

    leads_by: ClassVar[tuple[str, ...] | None] = ("host", "port", "db", "sentinel", "cluster", "seeds")

    host: str | None = Field(None, description="name or address; left out with `sentinel`")
    port: int = Field(6379, ge=1, le=65535)
    db: int = Field(0, ge=0, description="number of the database; always 0 in a cluster")
    username: str | None = Field(None, description="ACL user; left out: `default`")
    password: SecretRef | None = None
    tls: bool = False
    ca_file: str | None = Field(None, description="certificates to trust instead of the system's; only with `tls`")
    connect_timeout: Duration = Field(timedelta(seconds=2), description="longest wait for TCP and TLS")
    command_timeout: Duration = Field(timedelta(seconds=5), description="longest wait for one answer")
    sentinel: SentinelSettings | None = None
    cluster: bool = Field(False, description="true: Redis Cluster, found through `host` and `seeds`")
    seeds: tuple[HostPort, ...] = Field((), description="more nodes of the cluster, asked when `host` does not answer")

    def placed(self, permission: Permission) -> tuple[str | None, Permission] | None:
        """Leave out what is asked of sentinels or of a cluster where there are none."""
        on_sentinels = any(verb.startswith("+sentinel|") for verb in permission.verbs)
        left_out = (self.sentinel is None and on_sentinels) or (not self.cluster and permission.verbs == ("+cluster|nodes",))
        return None if left_out else (None, permission)

    async def audit(self, name: str, rights: Sequence[Right], ctx: Context) -> Audit:
        """Ask the servers what the user may do. Raises `RemediatorError` when they can't be asked."""
        from actions.redis.audit import audit_rights

        return await audit_rights(ctx, name, rights)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.host is None) == (self.sentinel is None):
            raise ValueError("give either `host` or `sentinel`: with sentinels the primary's address comes from them")
        if self.cluster and (self.sentinel is not None or self.db):
            raise ValueError("a cluster has neither sentinels nor databases other than 0")
        if self.seeds and not self.cluster:
            raise ValueError("`seeds` are for `cluster: true`")
        if self.ca_file is not None and not self.tls:
            raise ValueError("`ca_file` without `tls: true` would be ignored")
        if not self.connect_timeout or not self.command_timeout:
            raise ValueError("time limits must be longer than 0s")
        return self
