"""The rights this package needs, and telling which one is missing before anything is sent."""

from __future__ import annotations

from actions.postgres import sql
from actions.postgres.session import Session
from remediator.action import Context, Permission, PermissionKind
from remediator.errors import PermissionMissing

CONNECT = Permission(PermissionKind.POSTGRES, ("CONNECT",), "the connection's database", "opens a session")
READ_ALL_STATS = Permission(PermissionKind.POSTGRES, ("member",), "pg_read_all_stats", "sees the state of other roles' sessions")
SIGNAL_BACKEND = Permission(PermissionKind.POSTGRES, ("member",), "pg_signal_backend", "cancels and ends other roles' sessions")

_COLUMNS = {READ_ALL_STATS: "reads_all_stats", SIGNAL_BACKEND: "signals_backends"}


async def require_rights(session: Session, ctx: Context, *needed: Permission) -> None:
    """Check that the connection's role has `needed`. Raises `PermissionMissing` naming the grant.

    Without pg_read_all_stats PostgreSQL does not refuse: it hides the sessions of others, and few would be taken for none.
    """
    found = await session.read(ctx, "reading the role's rights", lambda connection: connection.fetchrow(sql.RIGHTS))
    for permission in needed:
        if not found[_COLUMNS[permission]]:
            raise PermissionMissing(
                f"role {found['role']!r} on {session.settings.place} is no member of {permission.resource} ({permission.why}); "
                f"a superuser can give it: GRANT {permission.resource} TO {found['role']}"
            )
