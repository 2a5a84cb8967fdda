"""Asking within one call whether it may still go on (`semantics.md`, 18), and saying in its receipt that it could not."""

from __future__ import annotations

from remediator.action import Context
from remediator.errors import RemediatorError, TemporaryError

_STOPPED = "stopped: "


async def go_on(ctx: Context) -> None:
    """Return when the call may make its next write. To be asked right before each one that another write or a wait came before.

    Raises `TemporaryError` with the reason when nothing further may be done: should the call have written nothing yet, then everything
    is asked again before it is tried again. A call that has written something ends with a receipt that says `stopped`.
    """
    if (reason := await ctx.halted()) is not None:
        raise TemporaryError(f"{_STOPPED}{reason}")


def stopped(error: RemediatorError) -> str:
    """Say in a receipt what ended a call half-way: what `go_on` raised, or any other error after which the rest was left."""
    text = str(error)
    return text if text.startswith(_STOPPED) else _STOPPED + text
