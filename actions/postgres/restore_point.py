"""Create a named restore point in the write-ahead log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from actions.postgres import sql
from actions.postgres.connection import PostgresConnection
from actions.postgres.rights import CONNECT
from actions.postgres.session import Session, kept_session
from remediator.action import Action, Context, Params, Permission, PermissionKind
from remediator.errors import PermissionMissing, PlanRefused, PreconditionChanged
from remediator.model import Change, Health, Impact, Plan, Receipt, Repeat, Risk, Target, Verdict

if TYPE_CHECKING:
    import asyncpg


class CreateRestorePointParams(Params):
    """Parameters of `postgres.create_restore_point`."""

    connection: str
    label: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:-]{0,62}$", description="name of the point, for recovery_target_name")


class CreateRestorePoint(Action[CreateRestorePointParams]):
    """Write a named point into the write-ahead log, to which a recovery from a base backup can go back.

    It changes no data. Class `never`: the log can't be read by SQL, so after a crash nobody can tell whether the point was
    written; a second one of the same name would do no harm, since recovery stops at the first.
    """

    name = "postgres.create_restore_point"
    Params = CreateRestorePointParams
    connection = PostgresConnection
    risk = Risk.LOW
    repeat = Repeat.NEVER
    reversible = False
    permissions = (CONNECT, Permission(PermissionKind.POSTGRES, ("EXECUTE",), "pg_create_restore_point(text)", "writes the restore point"))
    example: ClassVar[Mapping[str, Any]] = {"connection": "main", "label": "before-cleanup"}

    async def plan(self, params: CreateRestorePointParams, ctx: Context) -> Plan:
        """Check that a point can be written."""
        session = await kept_session(params.connection, ctx)
        refusal = await _refusal(session, ctx)
        if refusal:
            raise PlanRefused(refusal)
        target = f"postgres:{params.connection}/-/restore_point/{params.label}"
        return Plan(
            action=self.name,
            summary=f"create restore point {params.label!r} on connection {params.connection!r}",
            targets=(Target(target, target),),
            intent={"label": params.label},
            changes=(Change(target, "restore point", None, params.label),),
            impact=Impact(touched=1),
            connection=params.connection,
        )

    async def apply(self, plan: Plan, ctx: Context) -> Receipt:
        """Write the point and wait until it is on disk."""
        session = await kept_session(plan.connection, ctx)
        refusal = await _refusal(session, ctx)
        if refusal:
            raise PreconditionChanged(refusal)
        label = plan.intent["label"]

        async def create(connection: asyncpg.Connection) -> Any:
            async with connection.transaction():
                await connection.fetchrow(sql.LOCAL_COMMIT)
                return await connection.fetchval(sql.CREATE_RESTORE_POINT, label)

        lsn = await session.write(ctx, f"creating restore point {label!r}", create)
        return Receipt(f"restore point {label!r} is at {lsn}", {"lsn": lsn, "label": label}, (plan.targets[0].id,))

    async def verify(self, plan: Plan, receipt: Receipt, ctx: Context) -> Verdict:
        """Look whether the log is on disk beyond the point."""
        session = await kept_session(plan.connection, ctx)
        lsn = receipt.data["lsn"]
        flushed = await session.read(ctx, "reading the log's position", lambda connection: connection.fetchval(sql.FLUSHED, lsn))
        if flushed:
            return Verdict(Health.HEALTHY, f"the write-ahead log is on disk beyond {lsn}")
        return Verdict(Health.UNHEALTHY, f"the write-ahead log is not yet on disk up to {lsn}")


async def _refusal(session: Session, ctx: Context) -> str:
    """Say why no point can be written here, or return an empty text. Raises `PermissionMissing`."""
    found = await session.read(ctx, "reading the server's state", lambda connection: connection.fetchrow(sql.RESTORE_POINT_RIGHTS))
    place = session.settings.place
    if not found["allowed"]:
        raise PermissionMissing(
            f"role {found['role']!r} on {place} lacks EXECUTE on pg_create_restore_point(text); "
            f"a superuser can give it: GRANT EXECUTE ON FUNCTION pg_create_restore_point(text) TO {found['role']}"
        )
    if found["in_recovery"]:
        return f"{place} is a standby; restore points are written on the primary"
    if found["wal_level"] == "minimal":
        return f"{place} has wal_level = minimal, with which no restore point can be used"
    return ""
