"""Who is calling, and what may they do. Pure: the web layer hands over what the caller showed."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from remediator.model import Actor
from remediator.settings.model import IdentitySettings, Role

__all__ = ["Authenticator", "Operation", "Role", "allows"]


class Operation(StrEnum):
    """What a caller may ask for."""

    SEND_ALERTS = "send_alerts"
    READ = "read"
    READ_EVIDENCE = "read_evidence"
    ACKNOWLEDGE = "acknowledge"
    PAUSE = "pause"
    RESUME = "resume"
    SIGNAL = "signal"
    APPROVE = "approve"
    REHEARSE = "rehearse"
    RELOAD = "reload"
    READ_AUDIT = "read_audit"


def allows(actor: Actor, operation: Operation) -> bool:
    """Tell whether one of the actor's roles includes `operation`."""
    raise NotImplementedError


class Authenticator:
    """Turns tokens, passwords and certificates into actors."""

    def __init__(self, identities: Mapping[str, IdentitySettings]) -> None:
        self.identities = identities

    def bearer(self, token: str) -> Actor | None:
        """Return who holds `token`, None when nobody does."""
        raise NotImplementedError

    def basic(self, user: str, password: str) -> Actor | None:
        """Return the identity `user` when `password` is one of its passwords."""
        raise NotImplementedError

    def certificate(self, subject: str) -> Actor | None:
        """Return the identity with this certificate subject."""
        raise NotImplementedError
