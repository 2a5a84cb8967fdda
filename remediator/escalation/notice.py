"""Messages to people that belong to no incident: what happens to the daemon itself. Pure.

They lie in the outbox like all others. Their incident is the system chain, where the event is that they tell of. Most are for whoever
reads; an *alarm* is for whoever sleeps: it goes out as a page, and rings until its all-clear, which bears the same occasion.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from remediator.model import JSON, Value
from remediator.records import SYSTEM_CHAIN, Message, MessageKind, Pause
from remediator.replacing import replace

SUBJECT = "notice"
"""What the body of such a message says that it is about."""


def notice(key: str, summary: str, text: str, *, policy: str, due: datetime, dry_run: bool) -> Message:
    """Make a notice. `key` names the occasion: of two with the same key only the first is sent."""
    body: dict[str, JSON] = {"subject": SUBJECT, "summary": summary, "text": text, "dry_run": dry_run}
    return Message(key, MessageKind.UPDATE, policy, SYSTEM_CHAIN, body, due)


def alarm(occasion: str, summary: str, text: str, *, policy: str, due: datetime, dry_run: bool) -> Message:
    """Make a notice that rings, under the name of its `occasion`: the daemon can't do its work, and no incident's page would say so."""
    made = notice(alarm_key(occasion), summary, text, policy=policy, due=due, dry_run=dry_run)
    return replace(made, kind=MessageKind.PAGE, body={**made.body, "occasion": occasion})


def all_clear(occasion: str, summary: str, text: str, *, policy: str, due: datetime, dry_run: bool) -> Message:
    """Make the word that an alarm is over, which makes a pager quiet again."""
    made = notice(f"{occasion}/over", summary, text, policy=policy, due=due, dry_run=dry_run)
    return replace(made, kind=MessageKind.RESOLVED, body={**made.body, "occasion": occasion})


def occasion_of(pause: Pause) -> str:
    """Name what this very pause is an alarm's occasion of: the next one of the same scope is another."""
    return f"{pause.scope}/{pause.at:%Y%m%dT%H%M%S.%fZ}"


def alarm_key(occasion: str) -> str:
    """Return the key of an occasion's alarm."""
    return f"{occasion}/alarm"


def is_notice(message: Message) -> bool:
    """Tell whether a message belongs to no incident."""
    return message.incident == SYSTEM_CHAIN and message.body.get("subject") == SUBJECT


def facts_of(message: Message, *, public_url: str | None) -> Mapping[str, Value]:
    """Return what a receiver gets to see of a notice, and its text."""
    summary, text = (" ".join(str(message.body.get(name, "")).split()) for name in ("summary", "text"))
    lead = "DRY RUN · " if message.body.get("dry_run") else ""
    values: dict[str, Value] = {
        "kind": message.kind.value,
        # Not an incident's page, of which customers may hear, yet an alarm and its all-clear are one alert to a pager.
        "incident": str(message.body.get("occasion") or message.incident),
        "summary": summary,
        "reason": text,
        "dry_run": bool(message.body.get("dry_run")),
        "link": "" if public_url is None else f"{public_url}/status",
        **dict.fromkeys(("rule", "runbook", "approval", "run", "remedy", "state", "target", "severity"), ""),
    }
    values["text"] = f"{lead}remediator: {summary}\n{text}\nHow it is now: remediator status"
    return values
