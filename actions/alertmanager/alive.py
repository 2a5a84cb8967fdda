"""The alert by which the daemon says that it works: told to every peer, for alerts are not passed on among them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime

from actions.alertmanager.connection import AlertmanagerConnection
from remediator.action import Context
from remediator.errors import RemediatorError, TemporaryError
from remediator.httpclient import Answer, HttpError, open_client

NAME = "RemediatorAlive"


async def say_alive(ctx: Context, name: str, labels: Mapping[str, str], *, since: datetime, until: datetime) -> None:
    """Have the alert fire until `until` in all peers of a connection. Raises `TemporaryError` naming those that did not take it.

    To say it twice is to say it once, so nothing is lost with an answer.
    """
    connection = ctx.connection(AlertmanagerConnection, name)
    client = await open_client(connection, ctx)
    body = json.dumps(
        [
            {
                "labels": {**labels, "alertname": NAME},
                "annotations": {"summary": "remediator works: it takes alerts, writes down what it does, and tells people"},
                "startsAt": since.isoformat(),
                "endsAt": until.isoformat(),
            }
        ]
    ).encode()
    failed = []
    try:
        for url in connection.urls:
            what = f"Alertmanager {url} of connection {name!r}"
            try:
                answer: Answer = await client.send(
                    ctx, "POST", f"{url}/api/v2/alerts", what=what, body=body, headers={"Content-Type": "application/json"}
                )
                failed += [f"{what} answered {answer.status}: {answer.text()}"] if answer.status != 200 else []
            except (HttpError, RemediatorError) as error:
                failed.append(str(error))
    finally:
        await client.aclose()
    if failed:
        raise TemporaryError("; ".join(failed))
