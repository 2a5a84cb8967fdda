"""Who is calling: bearer token, basic credentials or client certificate, turned into an actor by the `Authenticator`."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from remediator.model import Actor
from remediator.people.authentication import Authenticator, Operation, allows
from remediator.web.problems import Refused

CHALLENGE = 'Bearer realm="remediator", Basic realm="remediator", charset="UTF-8"'
LONGEST = 4096
"""Longest value of `Authorization` that is looked at."""

_SHORT = {
    "commonName": "CN",
    "countryName": "C",
    "domainComponent": "DC",
    "localityName": "L",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "stateOrProvinceName": "ST",
    "streetAddress": "STREET",
    "userId": "UID",
}


def authenticate(request: web.Request, authenticator: Authenticator) -> Actor:
    """Return who sent the request. Raises `Refused` (401), which never says what was wrong with the credentials."""
    header = request.headers.get("Authorization")
    actor = _from_header(header, authenticator) if header is not None else _from_certificate(request, authenticator)
    if actor is None:
        detail = (
            "these credentials are not known"
            if header is not None
            else "sign in with a bearer token, basic credentials or a client certificate"
        )
        raise Refused(401, detail, reason="unauthenticated", headers={"WWW-Authenticate": CHALLENGE}, close=request.can_read_body)
    return actor


def authorise(request: web.Request, actor: Actor, operation: Operation) -> None:
    """Let `actor` pass when one of its roles includes `operation`. Raises `Refused` (403)."""
    if not allows(actor, operation):
        roles = ", ".join(sorted(actor.roles)) or "no role"
        detail = f"{actor.name} has {roles}, which does not include {operation.value}"
        raise Refused(403, detail, reason="forbidden", close=request.can_read_body)


def check_origin(request: web.Request) -> None:
    """Refuse what a page of another site makes a browser send (403): browsers add basic credentials and certificates by themselves."""
    headers = request.headers
    site = headers.get("Sec-Fetch-Site")
    origin = headers.get("Origin")
    foreign = (
        site not in ("same-origin", "none")
        if site is not None
        else origin is not None and origin.partition("://")[2] != headers.get("Host")
    )
    if foreign:
        raise Refused(403, "a page of another site may not send this", reason="cross_site", close=request.can_read_body)


def _from_header(header: str, authenticator: Authenticator) -> Actor | None:
    scheme, _, value = header.partition(" ")
    value = value.strip()
    if not value or len(value) > LONGEST:
        return None
    match scheme.lower():
        case "bearer":
            return authenticator.bearer(value)
        case "basic":
            return _basic(value, authenticator)
        case _:
            return None


def _basic(value: str, authenticator: Authenticator) -> Actor | None:
    try:
        user, colon, password = base64.b64decode(value, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return authenticator.basic(user, password) if colon else None


def _from_certificate(request: web.Request, authenticator: Authenticator) -> Actor | None:
    transport = request.transport
    shown: Mapping[str, Any] | None = transport.get_extra_info("peercert") if transport is not None else None
    return authenticator.certificate(subject_of(shown)) if shown else None


def subject_of(certificate: Mapping[str, Any]) -> str:
    r"""Write the subject of a verified certificate as RFC 4514 does, most specific name first.

    >>> subject_of({"subject": ((("organizationName", "Example, Inc."),), (("commonName", "alertmanager"),))})
    'CN=alertmanager,O=Example\\, Inc.'
    """
    names = (
        "+".join(f"{_SHORT.get(key, key)}={_escape(value)}" for key, value in part) for part in reversed(certificate.get("subject", ()))
    )
    return ",".join(names)


def _escape(value: str) -> str:
    escaped = "".join(f"\\{letter}" if letter in '\\,+"<>;' else letter for letter in value).replace("\0", "\\00")
    if escaped[:1] in ("#", " "):
        escaped = f"\\{escaped}"
    return f"{escaped[:-1]}\\ " if escaped.endswith(" ") and len(value) > 1 else escaped
