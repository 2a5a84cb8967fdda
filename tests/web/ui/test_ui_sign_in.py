"""The door: who gets in, how a session is kept, how it ends."""

from __future__ import annotations

import ssl
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote

import aiohttp
import pytest
import structlog

from remediator.events import Kind
from remediator.people.authentication import Authenticator, Role
from remediator.settings import IdentitySettings, TlsSettings
from tests.servers.certificates import Authority
from tests.servers.surface import INCIDENT, RUN, Surface, identities, make_settings, serving, token_of
from tests.web.ui.conftest import Enter, Person


async def test_a_page_leads_a_stranger_to_the_door_and_back(stranger: Person) -> None:
    """Without a session every page leads to the sign-in page, and from there to where somebody wanted to go."""
    async with stranger.session.get(stranger.url + "/ui/incidents?state=all", allow_redirects=False) as answer:
        assert answer.status == 303
        assert unquote(answer.headers["Location"]) == "/ui/sign-in?to=/ui/incidents?state=all"
    done = await stranger.send("/ui/sign-in", {"token": token_of("viewer"), "to": "/ui/incidents?state=all"})
    assert (done.status, done.headers["Location"]) == (303, "/ui/incidents?state=all")
    assert "INC-20261121-001" in (await stranger.look("/ui/incidents")).text


async def test_the_bare_address_leads_to_the_overview(stranger: Person) -> None:
    """Whoever types the host's name gets to the first page."""
    await stranger.sign_in("viewer")
    seen = await stranger.look("/")
    assert seen.status == 200
    assert "Waits for a person" in seen.text


@pytest.mark.parametrize(
    "to",
    [
        *("https://evil.example/", "//evil.example/", "/ui//evil.example", "/ui/\\evil.example", "/api/v1/status"),
        *("/ui/../api/v1/status", "javascript:alert(1)", "/ui/\r\nSet-Cookie: x=y", "/ui/sign-out", ""),
    ],
)
async def test_signing_in_leads_nowhere_else(stranger: Person, to: str) -> None:
    """A link to the sign-in page can't lead to another site, nor to anything that is no page."""
    done = await stranger.send("/ui/sign-in", {"token": token_of("viewer"), "to": to})
    assert (done.status, done.headers["Location"]) == (303, "/ui/")


async def test_the_cookie_is_kept_from_scripts_and_other_sites(stranger: Person) -> None:
    """HttpOnly, SameSite=Strict, for these pages only, for eight hours; the token is not in it."""
    done = await stranger.sign_in("responder")
    cookie = done.headers["Set-Cookie"]
    for part in ("HttpOnly", "SameSite=Strict", "Path=/ui/", "Max-Age=28800"):
        assert part in cookie
    assert "Secure" not in cookie
    assert token_of("responder") not in cookie


@pytest.mark.parametrize(("forwarded", "secure"), [("https", True), ("http", False)])
async def test_the_cookie_is_secure_behind_tls(stranger: Person, forwarded: str, secure: bool) -> None:
    """Where a proxy ends TLS the browser is told to show the cookie over TLS only."""
    fields = {"token": token_of("viewer"), "to": "/ui/"}
    done = await stranger.send("/ui/sign-in", fields, **{"X-Forwarded-Proto": forwarded})
    cookie = done.headers["Set-Cookie"]
    assert ("Secure" in cookie) == secure
    assert cookie.startswith("__Host-remediator_session=" if secure else "remediator_session=")
    assert ("Path=/;" in cookie) == secure


async def test_the_cookie_is_secure_over_tls(tmp_path: Path) -> None:
    """Served over TLS by the daemon itself, the cookie is for TLS only."""
    authority = Authority(tmp_path)
    authority.issue("server")
    trust = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    tls = TlsSettings(cert=tmp_path / "server.pem", key=tmp_path / "server.key")
    async with serving(tmp_path, tls=tls) as surface, aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trust)) as session:
        done = await Person(surface, session).sign_in("viewer")
    assert "Secure" in done.headers["Set-Cookie"]


async def test_over_tls_no_other_host_of_the_domain_chooses_the_session(enter: Enter) -> None:
    """Only the cookie by the name that browsers guard is looked at; it goes with signing out, and opens no route of the API."""
    person, proxied = await enter("admin"), {"X-Forwarded-Proto": "https"}
    async with aiohttp.ClientSession() as browser:
        there = Person(person.surface, browser)
        tossed = {"Cookie": f"remediator_session={person.cookie}", **proxied}
        assert "Your token" in (await there.look("/ui/", **tossed)).text
        own = {"Cookie": f"remediator_session=tossed; __Host-remediator_session={person.cookie}", **proxied}
        seen = await there.look("/ui/", **own)
        assert "Sign out" in seen.text
        assert (await there.look("/api/v1/status", **own)).status == 401
        done = await there.send("/ui/sign-out", {"csrf": seen.csrf}, **own)
        assert done.headers["Set-Cookie"].startswith('__Host-remediator_session=""')
        assert "Secure" in done.headers["Set-Cookie"]


@pytest.mark.parametrize("order", [1, -1])
async def test_of_two_sessions_none_is_taken(surface: Surface, enter: Enter, order: int) -> None:
    """Another page of the host or domain has set one of them: whichever it is, nothing is done, and people are told why."""
    own, other = await enter("approver"), await enter("viewer")
    csrf = (await own.look("/ui/")).csrf
    cookies = "; ".join([f"remediator_session={one}" for one in (own.cookie, other.cookie)][::order])
    async with aiohttp.ClientSession(headers={"Cookie": cookies}) as browser:
        there = Person(surface, browser)
        done = await there.send("/ui/do/pause", {"csrf": csrf, "back": "/ui/", "form": "kill", "scope": "global", "reason": "x"})
        for seen in (done, await there.look("/ui/"), await there.look("/ui/live")):
            assert seen.status == 400
            assert "your browser shows two different sessions, so nothing was done" in seen.text
    assert await surface.service.store.pauses() == {}
    twice = {"Cookie": f"remediator_session={own.cookie}; remediator_session={own.cookie}"}
    async with aiohttp.ClientSession(headers=twice) as browser:
        assert "Sign out" in (await Person(surface, browser).look("/ui/")).text


async def test_unknown_tokens_are_refused_then_throttled(surface: Surface, stranger: Person) -> None:
    """After ten wrong tokens an address has to wait; the right one always gets in, for nobody may lock the person on call out."""
    for _ in range(10):
        seen = await stranger.send("/ui/sign-in", {"token": "wrong", "to": "/ui/"})
        assert seen.status == 401
        assert seen.problem == "this token is not known"
        assert "WWW-Authenticate" not in seen.headers
    seen = await stranger.sign_in("nobody")
    assert seen.status == 429
    assert 0 < int(seen.headers["Retry-After"]) <= 60
    assert "too many wrong tokens from 127.0.0.1" in seen.problem
    assert (await stranger.sign_in("admin")).status == 303


async def test_who_may_not_read_does_not_get_in(stranger: Person) -> None:
    """The token of an Alertmanager opens no page."""
    seen = await stranger.sign_in("alert_sender")
    assert seen.status == 403
    assert "may not read anything here" in seen.problem
    assert "Set-Cookie" not in seen.headers


async def test_passwords_and_bearer_tokens_open_no_page(stranger: Person) -> None:
    """Pages know sessions only: credentials that a browser adds by itself can't be used by another site."""
    for headers in ({"Authorization": f"Bearer {token_of('admin')}"}, {"Authorization": "Basic YWRtaW46cGFzc3dvcmQtb2YtYWRtaW4="}):
        assert "Your token" in (await stranger.look("/ui/", **headers)).text


async def test_the_session_is_worth_nothing_at_the_api(surface: Surface, enter: Enter) -> None:
    """A session cookie opens no route of the API."""
    person = await enter("admin")
    async with person.session.post(
        person.url + "/api/v1/pause", json={"reason": "x"}, cookies={"remediator_session": person.cookie}
    ) as answer:
        assert answer.status == 401
    assert await surface.service.store.pauses() == {}


async def test_s22_signing_in_and_out_are_in_the_audit_trail(surface: Surface, enter: Enter) -> None:
    """The system chain says who signed in and out, from where; what was refused is in the log only, lest it fills the chain."""
    person = await enter("approver")
    await person.sign_in("nobody")
    await person.act("/ui/", "/ui/sign-out")
    events = [event for event in await surface.service.store.events("system") if event.kind.startswith("session.")]
    assert [(event.kind, event.actor, dict(event.data)) for event in events] == [
        (Kind.SESSION_BEGAN, "approver", {"address": "127.0.0.1"}),
        (Kind.SESSION_ENDED, "approver", {"address": "127.0.0.1"}),
    ]


async def test_signing_in_again_and_again_does_not_fill_the_audit_trail(surface: Surface, stranger: Person) -> None:
    """Within a minute one sign-in of one person from one address is noted; who signs in is never refused for it."""
    for _ in range(12):
        seen = await stranger.sign_in("viewer")
        assert seen.status == 303
    await stranger.sign_in("admin")
    events = [event for event in await surface.service.store.events("system") if event.kind == Kind.SESSION_BEGAN]
    assert [event.actor for event in events] == ["viewer", "admin"]


async def test_signing_out_ends_the_session_itself(enter: Enter) -> None:
    """A copy of the cookie is worth nothing after signing out."""
    person = await enter("viewer")
    copy = person.cookie
    done = await person.act("/ui/", "/ui/sign-out")
    assert done.headers["Location"] == "/ui/sign-in?said=out"
    assert "You are signed out." in (await person.look("/ui/sign-in?said=out")).text
    async with aiohttp.ClientSession(cookies={"remediator_session": copy}) as session, session.get(person.url + "/ui/") as answer:
        assert "Your token" in await answer.text()


async def test_a_taken_away_token_ends_its_sessions_at_once(tmp_path: Path) -> None:
    """A reload that removes a token, or replaces it, ends what began with it; a changed role counts from the next request."""
    known = identities()
    changed: dict[str, Mapping[str, IdentitySettings]] = {"now": known}
    async with (
        serving(tmp_path, authenticator=lambda: Authenticator(changed["now"])) as surface,
        aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session,
    ):
        person = Person(surface, session)
        await person.sign_in("approver")
        assert "Stop everything" in (await person.look("/ui/")).text
        lowered = known["approver"].model_copy(update={"roles": frozenset({Role.VIEWER})})
        changed["now"] = known | {"approver": lowered}
        assert "Stop everything" not in (await person.look("/ui/")).text
        rotated = known["approver"].model_copy(update={"token_sha256": ("0" * 64,)})
        changed["now"] = known | {"approver": rotated}
        assert "Your token" in (await person.look("/ui/")).text


async def test_who_follows_a_link_from_elsewhere_stays_signed_in(enter: Enter) -> None:
    """Browsers keep a strict cookie from requests that another site began: the page has them ask again from a page of ours."""
    person = await enter("viewer")
    elsewhere = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    async with aiohttp.ClientSession() as session, session.get(person.url + '/ui/incidents?rule="><b>', headers=elsewhere) as answer:
        text = await answer.text()
    assert answer.status == 200
    assert 'http-equiv="refresh" content="0;url=/ui/' in text
    assert "<b>" not in text
    assert "Your token" not in text
    for path in (f"/ui/incidents/{INCIDENT}/rehearsal", "/ui/audit/verify", "/ui/audit/export", f"/ui/runs/{RUN}/undo?x=1"):
        async with aiohttp.ClientSession() as session, session.get(person.url + path, headers=elsewhere) as answer:
            text = await answer.text()
        assert "http-equiv" not in text  # it would begin work that nobody asked for
        assert f'<a href="{path}{"&amp;" if "?" in path else "?"}again=1">Go on</a>' in text
    again = {**elsewhere, "Cookie": ""}
    async with aiohttp.ClientSession() as session, session.get(person.url + "/ui/?again=1", headers=again) as answer:
        assert "Your token" in await answer.text()


async def test_it_can_be_switched_off(tmp_path: Path) -> None:
    """With ui.enabled false there is no page, and the API is as before."""
    async with serving(tmp_path, ui={"enabled": False}) as surface, aiohttp.ClientSession() as session:
        for path in ("/", "/ui", "/ui/", "/ui/sign-in", "/ui/static/style.css", "/ui/live"):
            async with session.get(surface.url + path) as answer:
                assert answer.status == 404, path
        async with session.get(surface.url + "/-/healthy") as answer:
            assert answer.status == 200


def test_a_key_in_the_cluster_is_refused() -> None:
    """The key may not lie where the daemon may have to heal."""
    with pytest.raises(ValueError, match="can't be in a cluster"):
        make_settings(ui={"session_key": {"kubernetes": "prod/ns/secret/key"}})


async def test_replicas_share_sessions_by_a_key(tmp_path: Path) -> None:
    """With one session key somebody who signed in at one replica is signed in at the other; without, he is not."""

    async def key() -> str:
        return "of both replicas, 32 letters long"

    for shared, words in ((key, "Waits for a person"), (None, "Your token")):
        more = {} if shared is None else {"session_key": shared}
        one, other = tmp_path / f"one-{words}", tmp_path / f"other-{words}"
        one.mkdir()
        other.mkdir()
        async with (
            serving(one, **more) as first,
            serving(other, **more) as second,
            aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session,
        ):
            await Person(first, session).sign_in("viewer")
            assert words in (await Person(second, session).look("/ui/")).text


async def test_a_key_that_is_too_short_is_said_at_the_start(tmp_path: Path) -> None:
    """Nobody finds out at three in the morning: the log says it, and so does the page for signing in, while the API works."""

    async def key() -> str:
        return "short"

    with structlog.testing.capture_logs() as said:
        async with serving(tmp_path, session_key=key) as surface, aiohttp.ClientSession() as session:
            seen = await Person(surface, session).sign_in("viewer")
            assert (seen.status, "5 characters, 32 are needed" in seen.problem) == (422, True)
            async with session.get(surface.url + "/-/healthy") as answer:
                assert answer.status == 200
    assert [one["event"] for one in said if one["log_level"] == "error"] == ["session.key_unusable"]


def test_nothing_of_it_is_imported_before_somebody_looks() -> None:
    """A daemon that nobody looks at pays neither memory nor time for pages."""
    code = "import sys, remediator.app, remediator.web; print(*(name for name in sys.modules if 'jinja' in name or 'web.ui.' in name))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["remediator.web.ui.entry"]
