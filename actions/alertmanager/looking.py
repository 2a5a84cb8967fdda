"""The check `alertmanager.silences`: which silences keep certain alerts quiet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from actions.alertmanager.connection import AlertmanagerConnection
from actions.alertmanager.peers import Peers, alerts_path, has_labels, narrow, open_peers, short_lists
from actions.alertmanager.silences import Silence, read_silence
from remediator.action import Check, Context, Fact, FactType, Params, Permission, PermissionKind
from remediator.errors import CheckFailed, TemporaryError
from remediator.model import Value


class SilencesParams(Params):
    """Of which alerts."""

    connection: str
    labels: Mapping[str, str] = Field(min_length=1, max_length=64, description="the alerts have all of these, exactly")


class Silences(Check[SilencesParams]):
    """Finds the silences that keep the alerts with these labels quiet now, as Alertmanager itself matches them.

    Every peer must answer. Silences that match no alert at this moment are not seen.
    """

    name = "alertmanager.silences"
    Params = SilencesParams
    connection = AlertmanagerConnection
    facts: ClassVar[Mapping[str, Fact]] = {
        "found": Fact(FactType.BOOL, "at least one alert has the labels; when none does, everything else is unknown"),
        "count": Fact(FactType.INT, "number of silences in force for any of these alerts"),
        "own": Fact(FactType.INT, "of these, made by this daemon"),
        "ids": Fact(FactType.STRINGS, "their ids, sorted; unknown when there are more than 100"),
        "authors": Fact(FactType.STRINGS, "who made them, sorted; unknown when there are more than 100"),
        "ends_at": Fact(FactType.TIMESTAMP, "when the last of them ends; unknown when there is none"),
        "truncated": Fact(FactType.BOOL, "true when a list was too long to keep"),
    }
    permissions = (
        Permission(PermissionKind.HTTP, ("GET",), "/api/v2/alerts"),
        Permission(PermissionKind.HTTP, ("GET",), "/api/v2/silence/*"),
    )
    example: ClassVar[Mapping[str, Any]] = {"connection": "alertmanager", "labels": {"alertname": "DiskFull", "host": "db1"}}

    async def run(self, params: SilencesParams, ctx: Context) -> Mapping[str, Value]:
        """Ask all peers which silences their alerts have, then for these."""
        peers = await open_peers(ctx, params.connection)

        async def ask(url: str) -> list[Silence] | None:
            return await _at(peers, url, params.labels)

        try:
            answers = await peers.each(ask)
        except TemporaryError as error:
            raise CheckFailed(str(error)) from error
        listed = [found for found in answers.values() if found is not None]
        if not listed:
            return {"found": False, "truncated": False}
        return silences_facts({one.id: one for found in listed for one in found}, author=ctx.identity.name)


async def _at(peers: Peers, url: str, labels: Mapping[str, str]) -> list[Silence] | None:
    """Return the silences of the alerts with these labels at one peer; None when it holds no such alert."""
    alerts = [alert for alert in await peers.read_list(url, alerts_path(narrow(labels))) if has_labels(alert["labels"], labels)]
    if not alerts:
        return None
    ids = sorted({str(ident) for alert in alerts for ident in alert["status"]["silencedBy"]})
    found = [await read_silence(peers, url, ident) for ident in ids]
    return [one for one in found if one is not None and not one.over]


def silences_facts(found: Mapping[str, Silence], *, author: str) -> dict[str, Value]:
    """Return the facts of `alertmanager.silences`."""
    authors, own = [one.created_by for one in found.values()], sum(bool(one.mark(author)) for one in found.values())
    lists = short_lists(ids=sorted(found), authors=sorted(set(authors)))
    last = {"ends_at": max(one.ends_at for one in found.values())} if found else {}
    return {"found": True, "count": len(found), "own": own, "truncated": len(lists) < 2, **lists, **last}
