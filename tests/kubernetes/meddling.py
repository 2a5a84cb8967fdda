"""What somebody else does to a workload at the worst moment: between an action's read and its write, again and again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from actions.kubernetes.connection import connect
from remediator.testing import LocalContext

Meddle = Callable[[], Awaitable[Any]]


async def before_writes(ctx: LocalContext, *meddles: Meddle, verb: str = "patch") -> list[Any]:
    """Have each of `meddles` happen right before one live write of the context's client; return the list of bodies that it sends."""
    client: Any = await connect(ctx, "prod")
    plain, waiting, sent = getattr(client, verb), list(meddles), []

    async def write(path: str, body: Any, **more: Any) -> Any:
        if more.get("dry_run"):
            return await plain(path, body, **more)
        sent.append(body)
        if waiting:
            await waiting.pop(0)()
        return await plain(path, body, **more)

    setattr(client, verb, write)
    return sent
