"""What a page says when the store is gone: what was typed, so that nothing is lost, and what stops the daemon all the same."""

from __future__ import annotations

from collections.abc import Iterator

from markupsafe import Markup

from remediator.settings.stopping import KillSwitchSettings
from remediator.web.ui.page import Form
from remediator.web.ui.rendering import visible

WRITTEN = ("reason", "comment", "target", "until")
"""Fields that people type."""


def typed(form: Form) -> Markup:
    """Show what somebody has typed, to be copied; empty when that is nothing."""
    rows = [Markup("<dt>{}</dt><dd>{}</dd>").format(name, visible(form[name])) for name in WRITTEN if form.get(name, "").strip()]
    return Markup("<h2>What you wrote</h2><dl>{}</dl>").format(Markup("").join(rows)) if rows else Markup("")


def ways_to_stop(settings: KillSwitchSettings) -> Markup:
    """Say how everything is stopped without the store, by what the settings name."""
    rows = Markup("").join(Markup("<li>{}</li>").format(way) for way in _ways(settings))
    begins = "Without its store it begins no call, since each is written down first; one that is under way is finished."
    return Markup("<h2>To stop it all the same</h2><p>{} So that it stays so once the store is back:</p><ul>{}</ul>").format(begins, rows)


def _ways(settings: KillSwitchSettings) -> Iterator[Markup]:
    if settings.file is not None:
        yield Markup("on its machine: <code>touch {}</code>").format(settings.file)
    if (one := settings.configmap) is not None:
        words = Markup("in the cluster of {}: <code>kubectl -n {} annotate configmap {} {}=why</code>")
        yield words.format(one.connection, one.namespace, one.name, one.annotation)
    if settings.file is None and settings.configmap is None:
        yield Markup("stop the process, or all replicas: the settings name no other way (<code>kill_switch</code>)")
