"""Freezes: what is frozen, what comes, and the forms that begin and end them."""

from __future__ import annotations

from remediator.freezes.windows import Source
from remediator.store.protocol import Reads
from remediator.web.freezes import views
from remediator.web.ui.holds import about
from remediator.web.ui.page import Page, Shown, View

LASTS = ("30m", "1h", "2h", "4h", "8h", "24h", "72h")
"""For how long people may choose to freeze without typing a time."""


async def show(page: Page) -> Shown:
    """Show what is frozen now, then what comes."""
    snapshot = await page.service.store.read(Reads())
    found = [(one, about(one)) for one in views(page.service.freezes, snapshot.pauses, now=snapshot.now)]
    data = {
        "in_force": [one for one in found if one[0].in_force or one[0].doubt],
        "to_come": [one for one in found if not (one[0].in_force or one[0].doubt)],
        "manual": Source.MANUAL,
        "rules": sorted(rule.name for rule in page.service.rules.rules),
        "connections": sorted(page.service.settings.all_connections),
        "lasts": LASTS,
        "chosen": page.query.get("scope", "global"),
    }
    return Shown("freezes.html", "Freezes", data)


VIEWS = (View("/ui/freezes", show),)
