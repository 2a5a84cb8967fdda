"""A served surface, and people who are signed in to its pages."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.servers.surface import Surface, serving, token_of

_CSRF = re.compile(r'name="csrf" value="([^"]+)"')


@dataclass
class Seen:
    """One page."""

    status: int
    headers: Any
    text: str

    @property
    def csrf(self) -> str:
        found = _CSRF.search(self.text)
        assert found is not None, "the page has no form"
        return found[1]

    @property
    def problem(self) -> str:
        """What an alert on the page says, without marks."""
        found = re.search(r'role="alert".*?>(.*?)</(?:div|p)>', self.text, re.DOTALL)
        return "" if found is None else unescape(re.sub(r"<[^>]+>", "", found[1])).strip()


class Person:
    """Somebody with a browser that has no JavaScript."""

    def __init__(self, surface: Surface, session: aiohttp.ClientSession) -> None:
        self.surface = surface
        self.url = surface.url
        self.session = session

    async def look(self, path: str, **headers: str) -> Seen:
        """Follow a link; redirects are followed too."""
        async with self.session.get(self.url + path, headers=headers) as answer:
            return Seen(answer.status, answer.headers, await answer.text())

    async def send(self, path: str, fields: dict[str, str], **headers: str) -> Seen:
        """Send a form; what it leads to is not followed."""
        async with self.session.post(self.url + path, data=fields, headers=headers, allow_redirects=False) as answer:
            return Seen(answer.status, answer.headers, await answer.text())

    async def sign_in(self, role: str) -> Seen:
        return await self.send("/ui/sign-in", {"token": token_of(role), "to": "/ui/"})

    async def act(self, page: str, path: str, **fields: str) -> Seen:
        """Send a form of a page as the page has it."""
        seen = await self.look(page)
        return await self.send(path, {"csrf": seen.csrf, "back": page, **fields})

    @property
    def cookie(self) -> str:
        """The session cookie's text."""
        return next(one.value for one in self.session.cookie_jar if one.key == "remediator_session")


Enter = Callable[[str], Awaitable[Person]]


@pytest.fixture
async def surface(tmp_path: Path) -> AsyncIterator[Surface]:
    """Serve a surface over a filled store."""
    async with serving(tmp_path) as served:
        yield served


@pytest.fixture
async def stranger(surface: Surface) -> AsyncIterator[Person]:
    """Give somebody who is not signed in."""
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        yield Person(surface, session)


@pytest.fixture
async def enter(surface: Surface) -> AsyncIterator[Enter]:
    """Sign in with a role."""
    opened: list[aiohttp.ClientSession] = []

    async def entered(role: str) -> Person:
        opened.append(aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)))
        person = Person(surface, opened[-1])
        assert (await person.sign_in(role)).status == 303
        return person

    yield entered
    for session in opened:
        await session.close()
