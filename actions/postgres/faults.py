"""What the driver's errors mean: unreachable, not allowed, may work later, will never work."""

from __future__ import annotations

import re
import socket
import ssl
from errno import ECONNREFUSED
from typing import Literal

from remediator.errors import PermanentError, PermissionMissing, RemediatorError, TemporaryError

Reason = Literal["refused", "timeout", "too_many_clients", "starting_up", "shutting_down", "closed"]
"""Why a server could not be reached: a fact, not a failure (`semantics.md`, 1)."""

LATER = frozenset({"57014", "55P03", "40001", "40P01"})
"""Cancelled (a timeout, mostly), lock not to be had, serialisation failure, deadlock."""
LATER_CLASSES = frozenset({"53", "58", "XX"})
"""Out of resources, a fault of the system, a fault inside PostgreSQL."""


LONGEST = 500
"""Most characters of the server's words that are kept."""


class UnreachableError(TemporaryError):
    """The server did not take or keep the connection; `reason` says how."""

    def __init__(self, message: str, *, reason: Reason) -> None:
        super().__init__(message)
        self.reason = reason


def driver_errors() -> tuple[type[Exception], ...]:
    """Return the classes of errors that asyncpg raises for what server, network and arguments do."""
    import asyncpg

    return (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)


def connect_fault(error: Exception, place: str) -> RemediatorError:
    """Turn the error of an attempt to connect to `place` into one of ours.

    Only what the server's side surely did is `UnreachableError`. DNS, TLS and the local network are faults of the way there.
    """
    import asyncpg

    if isinstance(error, asyncpg.PostgresError):
        return _refusal(error, place)
    if isinstance(error, TimeoutError):
        return UnreachableError(f"{place} did not answer in time", reason="timeout")
    if isinstance(error, ConnectionRefusedError) or _all_refused(error):
        return UnreachableError(f"{place} refused the connection: nothing listens there", reason="refused")
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return UnreachableError(f"{place} closed the connection while it was opened", reason="closed")
    if isinstance(error, ssl.SSLError):
        return TemporaryError(f"TLS with {place} failed: {error}; compare ssl and ca_file with the server's certificate")
    if isinstance(error, socket.gaierror):
        return TemporaryError(f"the host name of {place} does not resolve: {error}")
    return TemporaryError(f"connecting to {place} failed: {type(error).__name__}: {error}")


def told(error: BaseException) -> str:
    """Return what the server says is wrong, without DETAIL and HINT: they quote rows, and errors are shown to everybody."""
    import asyncpg

    said = error.args[0] if isinstance(error, asyncpg.PostgresError) and error.args else error
    return str(said)[:LONGEST]


def _refusal(error: Exception, place: str) -> RemediatorError:
    """Read the SQLSTATE with which the server turned a new connection down."""
    state, said = str(getattr(error, "sqlstate", "") or ""), told(error)
    if state == "53300":
        return UnreachableError(f"{place} has no connection slot left: {said}", reason="too_many_clients")
    if state in {"57P01", "57P02"} or (state == "57P03" and "shut" in str(error)):
        return UnreachableError(f"{place} is shutting down: {said}", reason="shutting_down")
    if state == "57P03":
        return UnreachableError(f"{place} does not take connections yet: {said}", reason="starting_up")
    if state.startswith("08"):
        return UnreachableError(f"{place} closed the connection while it was opened", reason="closed")
    if state.startswith("28"):
        return PermissionMissing(f"{place}: the server refused the credentials or the address: {said}")
    if state == "42501":
        return PermissionMissing(f"{place}: the role lacks CONNECT on the database: {said}")
    if state.startswith(("53", "58", "XX")):
        return TemporaryError(f"{place} could not open a session ({state}): {said}")
    return PermanentError(f"{place} refused the connection ({state}): {said}")


def _all_refused(error: Exception) -> bool:
    """Tell whether every address of a host name refused: Python then wraps the errors in one without a number."""
    codes = re.findall(r"\[Errno (\d+)\]", str(error))
    return isinstance(error, OSError) and error.errno is None and bool(codes) and set(codes) == {str(ECONNREFUSED)}


def statement_fault(error: Exception, doing: str, *, closed: bool) -> RemediatorError:
    """Turn the error of a statement into one of ours; `closed` tells whether the connection is gone.

    `UnreachableError`: the connection was lost. `PermanentError`: the server refused before it did anything.
    """
    import asyncpg

    if isinstance(error, TimeoutError):
        return UnreachableError(f"{doing}: the server did not answer in time", reason="timeout")
    state, said = str(getattr(error, "sqlstate", "") or ""), told(error)
    if isinstance(error, asyncpg.InternalClientError):
        # The driver's state no longer fits the server's: so it is when the server ends an idle session as we use it.
        return UnreachableError(f"{doing}: the connection is broken: {said}", reason="closed")
    if closed or isinstance(error, OSError) or state.startswith("08") or state in {"57P01", "57P02", "57P03"}:
        return UnreachableError(f"{doing}: the connection was lost: {said}", reason="closed")
    if state == "42501":
        return PermissionMissing(f"{doing}: {said}; grant the daemon's role what is missing")
    if isinstance(error, asyncpg.PostgresError) and (state in LATER or state[:2] in LATER_CLASSES):
        return TemporaryError(f"{doing}: {said} ({state})")
    return PermanentError(f"{doing}: {said}" + (f" ({state})" if state else ""))
