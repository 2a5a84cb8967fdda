"""Find out later whether a call took effect: marked connections, and scripts that leave their digest in the server's cache.

Redis keeps no idempotency keys. Three things can be read, though. A step's connection carries the step's mark as its client name: while
it still shows in CLIENT LIST, a command sent on it may yet run, and nobody may say *not applied*. And a script sent by EVAL is kept in
the server's script cache, in the same instant in which it runs: a script with the mark in its text was run if and only if its
digest is there (until a restart, which the run id tells, SCRIPT FLUSH, or, from Redis 7.4, 500 further scripts). And the server counts
how often it has run each command.
"""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import Mapping

from actions.redis.replies import calls, text
from actions.redis.session import Session, client_name
from remediator.action import Context

_PATIENCE = 50
_PAUSE = 0.05
"""A dropped connection is given 2.5 s to leave CLIENT LIST."""


def new_mark() -> str:
    """Return a text that no other plan has. It stands in the precondition, outside the hash that is approved."""
    return uuid.uuid4().hex[:16]


async def pending(session: Session, ctx: Context, mark: str) -> bool:
    """Tell whether the marked connection is still open at the server, so that what was sent on it may yet run."""
    wanted = f"name={client_name(ctx, mark)}"
    for _ in range(_PATIENCE):
        if not any(wanted in line.split() for line in text(await session.ask("CLIENT", "LIST")).splitlines()):
            return False
        await asyncio.sleep(_PAUSE)
    return True


def marked(script: str, mark: str) -> str:
    """Give a script a text of its own, so that its digest names this very step."""
    return f"-- remediator {mark}\n{script}"


async def script_ran(session: Session, script: str) -> bool:
    """Tell whether the server has run this marked script since it started."""
    digest = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
    return bool((await session.ask("SCRIPT", "EXISTS", digest))[0])


def scripts_forgotten(info: Mapping[str, str]) -> bool:
    """Tell whether the server has dropped scripts by itself, so that a missing digest proves nothing."""
    return info.get("evicted_scripts", "0") != "0"


def times_told(info: Mapping[str, str], command: str) -> int | None:
    """Return how often the server has run a (sub)command since it started; None before Redis 7.0, which counts no subcommands."""
    major = info.get("redis_version", "0").partition(".")[0]
    return calls(info, command) if major.isdigit() and int(major) >= 7 else None


def was_told(info: Mapping[str, str], command: str, *, before: int | None) -> bool:
    """Tell whether the server may have run a command since it had run it `before` times; true when that can't be known."""
    now = times_told(info, command)
    return now is None or before is None or now != before
