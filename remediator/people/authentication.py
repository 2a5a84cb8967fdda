"""Who is calling, and what may they do. Pure: the web layer hands over what the caller showed.

Only hashes are kept. A token or password is hashed once, looked up by its hash, and compared in constant time, so that how
long an answer takes tells nothing about any secret.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import cast

from remediator.model import Actor
from remediator.settings.people import IdentitySettings, Role

__all__ = ["PERMISSIONS", "Authenticator", "Operation", "Role", "allows"]


class Operation(StrEnum):
    """What a caller may ask for."""

    SEND_ALERTS = "send_alerts"
    READ = "read"
    """Incidents, runs, approvals, rules, settings without secrets, metrics."""
    READ_EVIDENCE = "read_evidence"
    """Raw text from outside: log lines, SQL, output."""
    READ_AUDIT = "read_audit"
    """The audit trail and its verification."""
    ACKNOWLEDGE = "acknowledge"
    TAKE = "take"
    """Take an incident or a target out of automation's hands, and release one's own; admins release anybody's."""
    PAUSE = "pause"
    """Throw the kill switch. Whoever responds may stop everything."""
    RESUME = "resume"
    """Lift the kill switch. It lets things be changed again, so it asks for more than stopping them."""
    SIGNAL = "signal"
    """Lead a run on that waits for a person: settle, resume, undo, close."""
    APPROVE = "approve"
    PROMOTE = "promote"
    """Let a rule act by itself that has earned it. An unearned promotion is an admin's."""
    PROMOTE_UNEARNED = "promote_unearned"
    REHEARSE = "rehearse"
    RELOAD = "reload"


_O = Operation
_VIEWER = frozenset({_O.READ, _O.READ_AUDIT})
_RESPONDER = _VIEWER | {_O.READ_EVIDENCE, _O.ACKNOWLEDGE, _O.TAKE, _O.PAUSE, _O.SIGNAL, _O.REHEARSE}

PERMISSIONS: Mapping[Role, frozenset[Operation]] = {
    Role.VIEWER: _VIEWER,
    Role.RESPONDER: _RESPONDER,
    Role.APPROVER: _RESPONDER | {_O.APPROVE, _O.RESUME, _O.PROMOTE},
    Role.RULE_EDITOR: _VIEWER | {_O.REHEARSE, _O.RELOAD},
    Role.ADMIN: frozenset(Operation),
    Role.ALERT_SENDER: frozenset({_O.SEND_ALERTS}),
}
"""What each role includes. A sender of alerts may not read, and a person may not send alerts without that role."""


def allows(actor: Actor, operation: Operation) -> bool:
    """Tell whether one of the actor's roles includes `operation`; an unknown role includes nothing."""
    return any(operation in PERMISSIONS.get(cast("Role", role), ()) for role in actor.roles)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class Authenticator:
    """Turns tokens, passwords and certificates into actors. Immutable: a reload makes another one."""

    def __init__(self, identities: Mapping[str, IdentitySettings]) -> None:
        self._actors = {
            name: Actor(name, frozenset(role.value for role in identity.roles), frozenset(identity.groups))
            for name, identity in identities.items()
        }
        self._tokens = {digest: name for name, identity in identities.items() for digest in identity.token_sha256}
        self._passwords = {name: identity.password_sha256 for name, identity in identities.items()}
        self._subjects = {
            identity.certificate_subject: name for name, identity in identities.items() if identity.certificate_subject is not None
        }

    def approver(self, name: str) -> Actor | None:
        """Return the identity `name`; None when there is none any more, none that may approve, or none that could sign in."""
        found = self._actors.get(name)
        signs_in = name in self._tokens.values() or self._passwords.get(name) or name in self._subjects.values()
        return found if found is not None and signs_in and allows(found, Operation.APPROVE) else None

    def bearer(self, token: str) -> Actor | None:
        """Return who holds `token`, None when nobody does."""
        # The dictionary sees only the token's hash, which a caller can't steer bit by bit.
        name = self._tokens.get(_sha256(token)) if token else None
        return self._actors[name] if name is not None else None

    def proof(self, token: str) -> tuple[Actor, str] | None:
        """Return who holds `token`, and its stored hash, to which a session is bound; None when nobody does."""
        actor = self.bearer(token)
        return None if actor is None else (actor, _sha256(token))

    def holder(self, name: str, fits: Callable[[str], bool]) -> Actor | None:
        """Return the identity `name` while one of the token hashes that are stored for it `fits`: not after the token was taken away."""
        hashes = [digest for digest, owner in self._tokens.items() if owner == name]
        return self._actors.get(name) if any(fits(digest) for digest in hashes) else None

    def basic(self, user: str, password: str) -> Actor | None:
        """Return the identity `user` when `password` is one of its passwords."""
        shown = _sha256(password)
        # An unknown user costs a comparison too.
        known = self._passwords.get(user) or ("0" * 64,)
        fits = [hmac.compare_digest(shown, digest) for digest in known]
        return self._actors.get(user) if any(fits) and password else None

    def certificate(self, subject: str) -> Actor | None:
        """Return the identity with this certificate subject, written as RFC 4514 does. The listener has verified the certificate."""
        name = self._subjects.get(subject) if subject else None
        return self._actors[name] if name is not None else None
