"""The door: signing in and out, whose request it is, and that a form comes from our own page."""

from __future__ import annotations

import asyncio
import hmac
import html
import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from urllib.parse import quote, urlsplit

import structlog
from aiohttp import web

from remediator.events import Kind
from remediator.model import Actor
from remediator.people.authentication import Operation, allows
from remediator.web.access import LONGEST
from remediator.web.problems import Refused
from remediator.web.routes import Surface
from remediator.web.ui.entry import HEADERS, HOME, PREFIX, SessionKey
from remediator.web.ui.page import Form
from remediator.web.ui.sessions import COOKIE, SECURE_COOKIE, Ended, Sealer, Session, shown
from remediator.web.ui.throttle import Throttle

BOUNCED = "again"
"""Part of an address that was asked for once more, so that no browser does it for ever."""
NOTED_AGAIN, MOST_NOTED = timedelta(minutes=1), 10
"""Within this time the audit trail takes one sign-in of one person from one address, and so many from all addresses; the log takes all."""
WORKING = ("/rehearsal", "/undo", "/verify", "/export")
"""How paths of pages end that ask live systems or read whole chains: no other site's link starts that without a press."""
SIGN_IN, SIGN_OUT = f"{PREFIX}sign-in", f"{PREFIX}sign-out"


class Door:
    """Lets people in and knows them again. All but the sessions that were ended early is in the cookie."""

    def __init__(self, surface: Surface, session_key: SessionKey) -> None:
        self._surface = surface
        self._session_key = session_key
        self._making = asyncio.Lock()
        self._sealer: Sealer | None = None
        self._ended = Ended()
        self._throttle = Throttle()
        self._noting = asyncio.Lock()
        self._noted = Throttle(1, NOTED_AGAIN)
        self._noted_of_one = Throttle(MOST_NOTED, NOTED_AGAIN)
        self._log = structlog.get_logger("remediator.web.ui")

    async def _made(self) -> Sealer:
        async with self._making:
            if self._sealer is None:
                self._sealer = Sealer.of(await self._session_key())
        return self._sealer

    # --- who it is

    async def find(self, request: web.Request) -> tuple[Session, Actor] | None:
        """Return a request's session and whose it is, with the rights of now; None when nobody is signed in. Raises `Refused` (400)."""
        cookie = self._shown(request)
        if cookie is None:
            return None
        sealer = await self._made()
        session = sealer.read(cookie, now=datetime.now(UTC))
        if session is None or session in self._ended:
            return None
        actor = sealer.holder(session, self._surface.authenticator())
        return None if actor is None else (session, actor)

    def _shown(self, request: web.Request) -> str | None:
        """Return the cookie that a browser shows. Raises `Refused` (400) for several: a neighbour on the domain would choose who acts."""
        values = shown(request.headers.getall("Cookie", []), self._cookie(request)[0])
        if len(values) > 1:
            detail = (
                "your browser shows two different sessions, so nothing was done: another page of this host or domain has set one. "
                "Delete the cookies of this site and its domain in the browser, then sign in again. Over HTTPS this can't happen"
            )
            raise Refused(400, detail, reason="two_sessions")
        return values.pop() if values else None

    def _cookie(self, request: web.Request) -> tuple[str, str, bool]:
        """Return the cookie's name, its path, and whether it is for TLS only."""
        secure = is_secure(request, self._surface.service.settings.public_url)
        return (SECURE_COOKIE, "/", True) if secure else (COOKIE, PREFIX, False)

    async def required(self, request: web.Request) -> tuple[Session, Actor]:
        """Return the same. Raises `Refused` (401) when nobody is signed in."""
        found = await self.find(request)
        if found is None:
            raise Refused(401, "nobody is signed in", reason="unauthenticated")
        return found

    # --- in and out

    async def enter(self, request: web.Request, token: str) -> tuple[Session, Actor]:
        """Return a new session and whose it is. Raises `Refused`: 401 for a token that nobody has, 403 without a right to read, 429."""
        address, now, token = request.remote or "", datetime.now(UTC), token.strip()
        found = self._surface.authenticator().proof(token) if len(token) <= LONGEST else None
        if found is None:
            raise self._refused(address, now)
        actor, token_hash = found
        if not allows(actor, Operation.READ):
            raise Refused(403, f"{actor.name} may not read anything here; sign in with a token of your own", reason="forbidden")
        sealer = await self._made()
        expires_at = now + self._surface.service.settings.ui.session
        await self._note(Kind.SESSION_BEGAN, address, actor, now)
        return sealer.begin(actor.name, token_hash, expires_at=expires_at), actor

    def _refused(self, address: str, now: datetime) -> Refused:
        """Count a wrong token. A right one always gets in: whoever shares a proxy's address with those who guess must reach the switch."""
        wait = math.ceil(self._throttle.wait(address, now=now).total_seconds())
        if wait:
            detail = f"too many wrong tokens from {address}; wait {wait} s, then try another"
            return Refused(429, detail, reason="throttled", headers={"Retry-After": str(wait)})
        self._throttle.failed(address, now=now)
        self._log.warning("session.refused", address=address)
        return Refused(401, "this token is not known", reason="unauthenticated")

    async def leave(self, request: web.Request, session: Session, actor: Actor) -> None:
        """End a session before its time."""
        now = datetime.now(UTC)
        self._ended.add(session, now=now)
        await self._note(Kind.SESSION_ENDED, request.remote or "", actor, now)

    async def _note(self, kind: Kind, address: str, actor: Actor, now: datetime) -> None:
        """Put it into the audit trail, but not without bound: what somebody does again and again from one address is said once."""
        same, one = f"{kind} {actor.name} {address}", f"{kind} {actor.name}"
        async with self._noting:  # what could not be written is not counted as written
            if self._noted.wait(same, now=now) or self._noted_of_one.wait(one, now=now):
                self._log.info("session.noted_already", kind=kind.value, who=actor.name, address=address)
                return
            await self._surface.service.desk.note_session(kind, address, actor)
            self._noted.failed(same, now=now)
            self._noted_of_one.failed(one, now=now)

    def give(self, request: web.Request, response: web.StreamResponse, session: Session) -> None:
        """Hand a session to the browser: for these pages only, not for scripts, not for requests that other sites begin."""
        assert self._sealer is not None  # it made the session
        name, path, secure = self._cookie(request)
        lasts = int(self._surface.service.settings.ui.session.total_seconds())
        sealed = self._sealer.seal(session)
        response.set_cookie(name, sealed, path=path, max_age=lasts, httponly=True, samesite="Strict", secure=secure)

    def take_back(self, request: web.Request, response: web.Response) -> None:
        """Have the browser forget its cookie."""
        name, path, secure = self._cookie(request)
        response.del_cookie(name, path=path, secure=secure, httponly=True, samesite="Strict")

    # --- forms

    def csrf(self, session: Session) -> str:
        """Return what every form of a session carries."""
        assert self._sealer is not None  # a session was read
        return self._sealer.csrf(session)

    def check_form(self, session: Session, form: Form) -> None:
        """Refuse a form that no page of this session made (403)."""
        if not hmac.compare_digest(form.get("csrf", "").encode(), self.csrf(session).encode()):
            detail = "this form was made in an earlier session, so nothing was done: look at it again, then send it once more"
            raise Refused(403, detail, reason="old_form")


def is_secure(request: web.Request, public_url: str | None) -> bool:
    """Tell whether the browser came by HTTPS: to us, or to whatever stands before us."""
    public = urlsplit(public_url or "")
    by_name = public.scheme == "https" and public.netloc == request.host
    return request.secure or by_name or request.headers.get("X-Forwarded-Proto", "").lower() == "https"


def check_same_site(request: web.Request, public_url: str | None) -> None:
    """Refuse what a page of another site makes a browser send (403). A proxy may have changed the Host: `public_url` is ours too."""
    headers: Mapping[str, str] = request.headers
    site, origin = headers.get("Sec-Fetch-Site"), headers.get("Origin")
    ours = {headers.get("Host"), urlsplit(public_url or "").netloc or None}
    foreign = site not in ("same-origin", "none") if site is not None else origin is not None and origin.partition("://")[2] not in ours
    if foreign:
        raise Refused(403, "a page of another site may not send this", reason="cross_site", close=request.can_read_body)


def came_from_elsewhere(request: web.Request) -> bool:
    """Tell whether somebody followed a link of another site: the browser has then kept the cookie to itself (`SameSite=Strict`)."""
    headers = request.headers
    return (
        BOUNCED not in request.query
        and headers.get("Sec-Fetch-Site") in ("cross-site", "same-site")
        and headers.get("Sec-Fetch-Mode", "navigate") == "navigate"
    )


def bounce(request: web.Request) -> web.Response:
    """Have the browser ask once more, from a page of our own: then it shows its cookie, if it has one. Where there is work people press."""
    path = own_path(request.path_qs)
    to = html.escape(f"{path}{'&' if '?' in path else '?'}{BOUNCED}=1", quote=True)
    works = path.partition("?")[0].endswith(WORKING)
    refresh = "" if works else f'<meta http-equiv="refresh" content="0;url={to}">'
    why = "A page of another site led you here. What is there asks systems, or reads much: go on if you meant to. " if works else ""
    text = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">{refresh}'
        f'<title>remediator</title></head><body><p>{why}<a href="{to}">Go on</a></p></body></html>'
    )
    return web.Response(text=text, headers=HEADERS, content_type="text/html")


def to_sign_in(to: str) -> web.Response:
    """Lead to the sign-in page, and from there to where somebody wanted to go."""
    to = own_path(to)
    query = "" if to == HOME else f"?to={quote(to, safe='/')}"
    return web.Response(status=303, headers={**HEADERS, "Location": f"{SIGN_IN}{query}"})


def own_path(path: str) -> str:
    """Return a path of these pages, the first page for anything else: nobody is led to another site.

    >>> own_path("/ui/freezes"), own_path("https://evil.example"), own_path("/ui/sign-in"), own_path("/ui/../api/v1/pause")
    ('/ui/freezes', '/ui/', '/ui/', '/ui/')
    """
    bare = path.partition("?")[0]
    sound = path.startswith(PREFIX) and path.isprintable() and path.isascii() and not any(bad in path for bad in ("\\", "//", "..", "#"))
    return path if sound and bare not in (SIGN_IN, SIGN_OUT) else HOME


def with_said(path: str, said: str) -> str:
    """Add to a path the key of what is said there.

    >>> with_said("/ui/rules?said=paused&x=1", "resumed")
    '/ui/rules?x=1&said=resumed'
    """
    bare, _, query = path.partition("?")
    kept = [pair for pair in query.split("&") if pair and not pair.startswith("said=")]
    return f"{bare}?{'&'.join([*kept, f'said={quote(said)}'])}"
