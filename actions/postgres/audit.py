"""What a PostgreSQL role really may do, asked with the server's own functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from actions.postgres import sql
from actions.postgres.session import kept_session
from remediator.action import Audit, Context, Right

if TYPE_CHECKING:
    import asyncpg

_QUESTIONS = {"member": sql.IS_MEMBER, "EXECUTE": sql.MAY_EXECUTE}


async def audit_rights(ctx: Context, connection: str, rights: Sequence[Right]) -> Audit:
    """Compare memberships and functions. What one's own SQL needs is not known here. Raises the errors of `Session.read`."""
    session = await kept_session(connection, ctx)
    return await session.read(ctx, "reading the role's rights", lambda opened: _audit(opened, rights))


async def _audit(connection: asyncpg.Connection, rights: Sequence[Right]) -> Audit:
    missing, notes = [], []
    for right in rights:
        question = _QUESTIONS.get(right.verb)
        if question is not None:
            missing += [] if await connection.fetchval(question, right.resource) else [right]
        elif right.verb != "CONNECT":  # it is connected
            notes.append(f"not checked: {right}")
    members = {right.resource for right in rights if right.verb == "member"}
    beyond = [Right(row["name"], row["verb"]) for row in await connection.fetch(sql.BEYOND) if row["name"] not in members]
    return Audit(tuple(missing), tuple(sorted(beyond)), notes=tuple(notes))
