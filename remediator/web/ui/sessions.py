"""Sessions: who is signed in, in a signed cookie and nowhere else. Pure, but for the secret that it is given.

A cookie says whose session it is and until when, and is *bound* to the hash that the settings keep of the token that was shown: without
that hash in the settings there is no session. The token itself is never in it. Rights are looked up at each request.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import secrets
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from remediator.errors import PermanentError
from remediator.model import Actor
from remediator.people.authentication import Authenticator

COOKIE = "remediator_session"
SECURE_COOKIE = f"__Host-{COOKIE}"
"""Its name over HTTPS: by it a browser lets no other host of the domain, and nothing that came without TLS, set the cookie."""
LEAST = 32
"""Characters of a configured key, at least."""
LONGEST = 2048
"""Longest cookie that is looked at."""
VERSION = 1


@dataclass(frozen=True)
class Session:
    """One sign-in."""

    id: str
    name: str
    expires_at: datetime
    bond: str
    """Made of the stored hash of the token that was shown."""


class Sealer:
    """Signs and reads cookies with one key. Every purpose has a key of its own, so that no signature fits elsewhere."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    @classmethod
    def of(cls, text: str | None) -> Sealer:
        """Make one of the configured secret, or a random one where there is none. Raises `PermanentError` for a short one."""
        if text is None:
            return cls(secrets.token_bytes(32))
        if len(text) < LEAST:
            raise PermanentError(f"ui.session_key has {len(text)} characters, {LEAST} are needed: nobody can sign in; make a longer one")
        return cls(hashlib.sha256(b"remediator/session-key\0" + text.encode()).digest())

    def begin(self, name: str, token_hash: str, *, expires_at: datetime) -> Session:
        """Make a session of an identity, bound to the stored hash of the token that it showed."""
        return Session(secrets.token_hex(16), name, expires_at, self._bond(name, token_hash))

    def holder(self, session: Session, authenticator: Authenticator) -> Actor | None:
        """Return whose session it is, with the rights of now; None when the token it began with is not in force any more."""
        return authenticator.holder(
            session.name, lambda token_hash: hmac.compare_digest(self._bond(session.name, token_hash), session.bond)
        )

    def seal(self, session: Session) -> str:
        """Return a session as the cookie's text."""
        fields = [VERSION, session.id, session.name, int(session.expires_at.timestamp()), session.bond]
        body = _encode(json.dumps(fields).encode())
        return f"{body}.{self._sign('cookie', body)}"

    def read(self, text: str, *, now: datetime) -> Session | None:
        """Return the session that a cookie tells of; None when it was not made here, was changed, or is over."""
        body, _, signature = text[:LONGEST].partition(".")
        if not hmac.compare_digest(signature.encode(), self._sign("cookie", body).encode()):
            return None
        try:
            version, ident, name, expires, bond = json.loads(_decode(body))
        except (ValueError, binascii.Error):
            return None
        session = Session(ident, name, datetime.fromtimestamp(expires, UTC), bond)
        return session if version == VERSION and now < session.expires_at else None

    def csrf(self, session: Session) -> str:
        """Return what every form of a session carries, and no other page can know."""
        return self._sign("csrf", session.id)

    def _bond(self, name: str, token_hash: str) -> str:
        return self._sign("bond", f"{name}\0{token_hash}")

    def _sign(self, purpose: str, text: str) -> str:
        return _encode(hmac.digest(self._key, f"{purpose}\0{text}".encode("utf-8", "surrogatepass"), "sha256"))


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


class Ended:
    """Sessions that people signed out of, until they would be over anyway. Known to this process only."""

    def __init__(self) -> None:
        self._until: dict[str, datetime] = {}

    def add(self, session: Session, *, now: datetime) -> None:
        """Remember the end of a session."""
        self._until = {ident: until for ident, until in self._until.items() if now < until}
        self._until[session.id] = session.expires_at

    def __contains__(self, session: Session) -> bool:
        return session.id in self._until


def shown(headers: Iterable[str], name: str) -> set[str]:
    """Return the different values that a browser shows for a cookie, from its `Cookie` headers.

    >>> sorted(shown(["a=1; b=2; a=3"], "a"))
    ['1', '3']
    """
    pairs = (pair.strip().partition("=") for header in headers for pair in header.split(";"))
    return {value for key, _, value in pairs if key == name}


class Kept:
    """What was written in forms whose session was over, until it is shown to whoever has signed in. In memory, and not for long."""

    def __init__(self, most: int = 50, longest: int = 32_000, lasts: timedelta = timedelta(minutes=5)) -> None:
        self._most = most
        self._longest = longest
        self._lasts = lasts
        self._of: OrderedDict[str, tuple[datetime, str, str]] = OrderedDict()

    def put(self, session: Session, page: str, text: str, *, now: datetime) -> None:
        """Keep what was written on a page, for a session that has just begun. The oldest goes first; what is too long is not kept."""
        if len(text) <= self._longest:
            self._of[session.id] = now, page, text
        while len(self._of) > self._most:
            self._of.popitem(last=False)

    def take(self, session: Session, page: str, *, now: datetime) -> str | None:
        """Return what is kept for a page, once; None where there is nothing."""
        at, of, text = self._of.get(session.id, (now, "", ""))
        if not text or of != page:
            return None
        del self._of[session.id]
        return text if now - at < self._lasts else None
