"""What it can do and look at, and what holds it back."""

from __future__ import annotations

import asyncio

from remediator.guards.catalogue import catalogue as guards
from remediator.web.catalogue import actions, checks
from remediator.web.ui.page import Page, Shown, View


async def show(page: Page) -> Shown:
    """List actions, checks and guards. Importing every system may take a second, which no webhook should wait for."""
    registry = page.service.registry
    found, looks = await asyncio.to_thread(actions, registry), await asyncio.to_thread(checks, registry)
    data = {"actions": found["items"], "checks": looks["items"], "guards": guards(), "problems": found["problems"]}
    return Shown("catalogue.html", "Catalogue", data, chain=None)


VIEWS = (View("/ui/catalogue", show),)
