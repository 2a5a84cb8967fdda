"""What a Redis user really may do, asked with ACL DRYRUN, which carries nothing out. Redis 7 has it, and it needs `+acl|dryrun` itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from actions.redis.connection import RedisConnection
from actions.redis.session import Address, Session
from actions.redis.topology import open_sentinel, open_servers
from remediator.action import Audit, Context, Right
from remediator.errors import PermanentError

_KEY = "{key}"
_COMMANDS: dict[str, tuple[str, ...]] = {
    "client|list": (),
    "client|setname": ("x",),
    "cluster|failover": (),
    "cluster|nodes": (),
    "config|get": ("maxmemory",),
    "config|set": ("maxmemory", "1mb"),
    "dbsize": (),
    "eval": ("return 1", "1", _KEY),
    "failover": (),
    "flushall": (),
    "flushdb": (),
    "info": (),
    "llen": (_KEY,),
    "ping": (),
    "replicaof": ("no", "one"),
    "scan": ("0",),
    "scard": (_KEY,),
    "script|exists": ("x",),
    "select": ("0",),
    "sentinel|ckquorum": ("x",),
    "sentinel|failover": ("x",),
    "sentinel|master": ("x",),
    "sentinel|replicas": ("x",),
    "slowlog|get": (),
    "time": (),
    "type": (_KEY,),
    "unlink": (_KEY,),
    "xlen": (_KEY,),
    "zcard": (_KEY,),
}
"""Arguments with which each command may be asked about; DRYRUN counts them."""
_WORST: dict[str, tuple[str, ...]] = {
    "acl|setuser": ("x",),
    "config|set": ("maxmemory", "1mb"),
    "debug": ("sleep", "0"),
    "eval": ("return 1", "0"),
    "flushall": (),
    "flushdb": (),
    "get": (_KEY,),
    "keys": ("*",),
    "module|load": ("x",),
    "replicaof": ("no", "one"),
    "set": (_KEY, "x"),
    "shutdown": (),
    "unlink": (_KEY,),
}
_ELSEWHERE = "remediator-outside-of-its-scope"


async def audit_rights(ctx: Context, connection: str, rights: Sequence[Right]) -> Audit:
    """Ask every server that takes writes, and every sentinel. Raises `TemporaryError` and `PermanentError` for those that don't answer."""
    settings = ctx.connection(RedisConnection, connection)
    on_sentinels = [right for right in rights if right.verb.startswith("+sentinel|")]
    on_servers = [right for right in rights if right not in on_sentinels]
    async with contextlib.AsyncExitStack() as stack:
        servers = await stack.enter_async_context(open_servers(ctx, connection))
        audits = [await _asked(session, on_servers, worst=True) for session in servers]
        for node in settings.sentinel.nodes if settings.sentinel and on_sentinels else ():
            session = await stack.enter_async_context(open_sentinel(ctx, connection, Address.parse(node)))
            audits.append(await _asked(session, on_sentinels, worst=False))
    return Audit(
        missing=_together(audit.missing for audit in audits),
        excessive=_together(audit.excessive for audit in audits),
        unknown=_together(audit.unknown for audit in audits),
        notes=tuple(dict.fromkeys(note for audit in audits for note in audit.notes)),
    )


def _together(found: Iterable[Sequence[Right]]) -> tuple[Right, ...]:
    return tuple(sorted({right for each in found for right in each}))


async def _asked(session: Session, rights: Sequence[Right], *, worst: bool) -> Audit:
    try:
        answers = {right: await _may(session, right.verb, _COMMANDS, key=right.resource) for right in rights}
        excess = await _excess(session, rights) if worst else []
    except PermanentError as error:
        return Audit(unknown=tuple(rights), notes=(f"not checked: {error}; grant +acl|dryrun (Redis 7) for as long as you check",))
    missing = tuple(right for right, yes in answers.items() if yes is False)
    unknown = tuple(right for right, yes in answers.items() if yes is None)
    return Audit(missing, tuple(excess), unknown, ("of what is granted beyond, only the most dangerous commands were looked for",))


async def _excess(session: Session, rights: Sequence[Right]) -> list[Right]:
    """Return dangerous commands that are not needed, and needed ones that reach keys out of scope."""
    needed = {right.verb for right in rights}
    keys = [right.resource for right in rights if right.resource] or ["x"]
    found = [Right("", f"+{name}") for name in _WORST if f"+{name}" not in needed and await _may(session, f"+{name}", _WORST, key=keys[0])]
    for right in rights:
        outside = right.resource and not any(fnmatchcase(_ELSEWHERE, key) for key in keys)
        if outside and await _may(session, right.verb, _COMMANDS, key=_ELSEWHERE):
            found.append(Right("*", right.verb))
    return found


async def _may(session: Session, term: str, commands: dict[str, tuple[str, ...]], *, key: str) -> bool | None:
    """Ask about one command; None where it is not known how to ask. A pattern as a key is matched by what covers the pattern."""
    name = term.removeprefix("+")
    if name not in commands:
        return None
    arguments = commands[name]
    if _KEY in arguments and not key:
        arguments = ("return 1", "0") if name == "eval" else ("x",)
    words = [*name.split("|"), *(key if word == _KEY else word for word in arguments)]
    reply = await session.ask("ACL", "DRYRUN", session.user, *words)
    return bytes(reply) == b"OK"
