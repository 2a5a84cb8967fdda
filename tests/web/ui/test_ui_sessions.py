"""Sessions and the throttle by themselves: what a cookie proves, and for how long."""

from __future__ import annotations

import base64
import hashlib
import json
from datetime import UTC, datetime, timedelta

import pytest

from remediator.errors import PermanentError
from remediator.people.authentication import Authenticator, Role
from remediator.settings import IdentitySettings
from remediator.web.ui.sessions import Ended, Kept, Sealer, Session
from remediator.web.ui.throttle import Throttle

NOW = datetime(2026, 11, 21, 3, 0, tzinfo=UTC)
LATER = NOW + timedelta(hours=8)
KEY = "k" * 32


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def authenticator(**tokens: tuple[str, ...]) -> Authenticator:
    """Make identities, each with these tokens."""
    return Authenticator(
        {name: IdentitySettings(token_sha256=tuple(map(sha256, own)), roles=frozenset({Role.VIEWER})) for name, own in tokens.items()}
    )


def session_of(sealer: Sealer, name: str = "anna", shown: str = "first") -> Session:
    return sealer.begin(name, sha256(shown), expires_at=LATER)


def test_what_was_sealed_is_read() -> None:
    """A cookie gives back its session until that is over, and not a moment longer."""
    sealer = Sealer.of(KEY)
    session = session_of(sealer)
    assert sealer.read(sealer.seal(session), now=NOW) == session
    assert sealer.read(sealer.seal(session), now=LATER) is None


def test_replicas_with_one_key_read_each_others_sessions() -> None:
    """The same configured key reads a session anywhere; another key, or none, reads nothing."""
    cookie = Sealer.of(KEY).seal(session_of(Sealer.of(KEY)))
    assert Sealer.of(KEY).read(cookie, now=NOW) is not None
    assert Sealer.of("x" * 32).read(cookie, now=NOW) is None
    assert Sealer.of(None).read(cookie, now=NOW) is None


@pytest.mark.parametrize("cookie", ["", ".", "a", "a.b", "é.é", "\udc80.x", "a" * 10_000, f"{'a' * 3000}.{'b' * 43}"])
def test_what_is_no_cookie_of_ours_is_nobody(cookie: str) -> None:
    """Whatever a browser sends instead of a cookie is nobody, and no error."""
    assert Sealer.of(KEY).read(cookie, now=NOW) is None


def test_a_changed_cookie_is_nobody() -> None:
    """Another name, or a later end, breaks the signature; so does each single letter."""
    sealer = Sealer.of(KEY)
    body, _, signature = sealer.seal(session_of(sealer)).partition(".")
    fields = json.loads(base64.urlsafe_b64decode(body + "=="))
    for place, value in ((2, "admin"), (3, fields[3] + 3600)):
        forged = [*fields[:place], value, *fields[place + 1 :]]
        text = base64.urlsafe_b64encode(json.dumps(forged).encode()).decode().rstrip("=")
        assert sealer.read(f"{text}.{signature}", now=NOW) is None
    for place in range(len(body)):
        other = "A" if body[place] != "A" else "B"
        assert sealer.read(f"{body[:place]}{other}{body[place + 1 :]}.{signature}", now=NOW) is None


def test_a_forms_mark_is_no_cookie() -> None:
    """What is signed for one purpose is worth nothing for another."""
    sealer = Sealer.of(KEY)
    session = session_of(sealer)
    assert sealer.read(f"{session.id}.{sealer.csrf(session)}", now=NOW) is None
    assert sealer.csrf(session) != sealer.csrf(session_of(sealer))


def test_a_session_ends_with_its_token() -> None:
    """It holds while the hash of the token it began with is in the settings: not after a rotation, not for another identity's token."""
    sealer = Sealer.of(KEY)
    session = session_of(sealer, "anna", "first")
    for tokens, holds in ((("first",), True), (("second", "first"), True), (("second",), False), ((), False)):
        found = sealer.holder(session, authenticator(anna=tokens, bert=("other",)))
        assert (found is not None) == holds
    assert sealer.holder(session, authenticator(bert=("first",))) is None
    assert sealer.holder(session_of(sealer, "bert", "first"), authenticator(anna=("first",), bert=("other",))) is None


def test_a_cookie_holds_neither_token_nor_hash() -> None:
    """Whoever reads a cookie can't sign in elsewhere with what is in it."""
    sealer = Sealer.of(KEY)
    cookie = sealer.seal(session_of(sealer))
    text = cookie + base64.urlsafe_b64decode(cookie.partition(".")[0] + "==").decode()
    assert "first" not in text
    assert sha256("first") not in text


def test_a_short_key_lets_nobody_in() -> None:
    """A key that could be guessed is refused with its length and what to do, and never shown."""
    with pytest.raises(PermanentError, match="31 characters, 32 are needed") as caught:
        Sealer.of("s" * 31)
    assert "sss" not in str(caught.value)


def test_ended_sessions_are_forgotten_when_they_would_be_over() -> None:
    """Signing out is remembered as long as it matters."""
    ended, sealer = Ended(), Sealer.of(KEY)
    first, second = session_of(sealer), sealer.begin("anna", sha256("first"), expires_at=LATER + timedelta(hours=2))
    ended.add(first, now=NOW)
    assert first in ended
    assert second not in ended
    ended.add(second, now=LATER + timedelta(hours=1))
    assert second in ended
    assert first not in ended


def test_what_was_written_is_shown_once_to_its_session() -> None:
    """On its page, to whoever signed in, not after five minutes; so much is kept and no more."""
    kept, sealer = Kept(2, 10), Sealer.of(KEY)
    first, second, third = (session_of(sealer) for _ in range(3))
    kept.put(first, "/ui/freezes", "words", now=NOW)
    assert kept.take(second, "/ui/freezes", now=NOW) is None
    assert kept.take(first, "/ui/", now=NOW) is None
    assert kept.take(first, "/ui/freezes", now=NOW) == "words"
    assert kept.take(first, "/ui/freezes", now=NOW) is None
    kept.put(first, "/ui/", "words", now=NOW)
    assert kept.take(first, "/ui/", now=NOW + timedelta(minutes=5)) is None
    kept.put(first, "/ui/", "x" * 11, now=NOW)
    assert kept.take(first, "/ui/", now=NOW) is None
    for one in (first, second, third):
        kept.put(one, "/ui/", "words", now=NOW)
    assert [kept.take(one, "/ui/", now=NOW) for one in (first, second, third)] == [None, "words", "words"]


def test_throttle_holds_one_address_back_for_a_while() -> None:
    """Three failures within a minute close the door to that address until the first of them is a minute old, and to no other."""
    throttle = Throttle(3, timedelta(minutes=1))
    for second in range(3):
        assert not throttle.wait("a", now=NOW + timedelta(seconds=second))
        throttle.failed("a", now=NOW + timedelta(seconds=second))
    assert throttle.wait("a", now=NOW + timedelta(seconds=10)) == timedelta(seconds=50)
    assert not throttle.wait("b", now=NOW + timedelta(seconds=10))
    assert not throttle.wait("a", now=NOW + timedelta(seconds=61))


def test_throttle_remembers_so_many_addresses() -> None:
    """Many addresses take no more memory than a bound; the ones that failed longest ago are forgotten."""
    throttle = Throttle(1, timedelta(minutes=1), addresses=2)
    for address in "abc":
        throttle.failed(address, now=NOW)
    assert [bool(throttle.wait(address, now=NOW)) for address in "abc"] == [False, True, True]
