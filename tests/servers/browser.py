"""A real browser: Debian's Chromium, driven by playwright, and axe, which finds what keeps people from using a page."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, async_playwright

DESKTOP: Any = {"width": 1280, "height": 900}
PHONE: Any = {"width": 390, "height": 844}


def find_chromium(own: str) -> str:
    """Return the path of a Chromium that runs: the one of `CHROMIUM`, on the PATH, or playwright's `own`. Raises `RuntimeError`."""
    tried = []
    for path in (os.environ.get("CHROMIUM"), shutil.which("chromium"), own):
        if path is not None and Path(path).exists():
            done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False, timeout=60)
            if done.returncode == 0 and "Chrom" in done.stdout:
                return path
            tried.append(f"{path} can't be run: {(done.stderr or done.stdout).strip()[:200]}")
    raise RuntimeError(f"there is no Chromium, and these tests need a real one: `make browser` ({'; '.join(tried) or 'none was found'})")


@asynccontextmanager
async def open_browser() -> AsyncIterator[Browser]:
    """Start a browser without a screen."""
    async with async_playwright() as playwright:
        path = find_chromium(playwright.chromium.executable_path)
        browser = await playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield browser
        finally:
            await browser.close()


async def faults_of(page: Page, *rules: str) -> list[str]:
    """Return what axe finds on a page, in words; empty when it finds nothing. With `rules` only these are looked at."""
    options: dict[str, Any] = {"resultTypes": ["violations"]} | ({"runOnly": list(rules)} if rules else {})
    found = (await Axe().run(page, options=options)).response["violations"]
    return [f"{one['id']}: {one['help']}: {[node['html'][:160] for node in one['nodes']][:3]}" for one in found]
