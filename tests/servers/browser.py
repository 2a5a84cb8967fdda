"""A real browser: Debian's Chromium, driven by playwright, and axe, which finds what keeps people from using a page."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, async_playwright

from tests.servers.process import find_binary

DESKTOP: Any = {"width": 1280, "height": 900}
PHONE: Any = {"width": 390, "height": 844}


def find_chromium() -> str:
    """Return Chromium's path. Raises `AssertionError` where it can't be run: Ubuntu's package only leads to snap."""
    binary = find_binary("chromium", "chromium")
    tried = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False, timeout=60)
    assert (tried.returncode, "Chromium" in tried.stdout) == (0, True), (
        f"{binary} can't be run ({(tried.stderr or tried.stdout).strip()[:200]}). On Ubuntu the package chromium "
        "is an empty one that leads to snap: install a real Chromium (Debian's package, say) as /usr/bin/chromium"
    )
    return binary


@asynccontextmanager
async def open_browser() -> AsyncIterator[Browser]:
    """Start a browser without a screen."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox", "--disable-gpu"])
        try:
            yield browser
        finally:
            await browser.close()


async def faults_of(page: Page, *rules: str) -> list[str]:
    """Return what axe finds on a page, in words; empty when it finds nothing. With `rules` only these are looked at."""
    options: dict[str, Any] = {"resultTypes": ["violations"]} | ({"runOnly": list(rules)} if rules else {})
    found = (await Axe().run(page, options=options)).response["violations"]
    return [f"{one['id']}: {one['help']}: {[node['html'][:160] for node in one['nodes']][:3]}" for one in found]
