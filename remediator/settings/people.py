"""The settings about people: who may call the daemon, and who hears of what."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from remediator.duration import Duration
from remediator.model import JSON
from remediator.settings.part import Name, Part, setting


class Role(StrEnum):
    """What an identity may do; what each includes is the table in `remediator.authentication`."""

    VIEWER = "viewer"
    RESPONDER = "responder"
    APPROVER = "approver"
    RULE_EDITOR = "rule_editor"
    ADMIN = "admin"
    ALERT_SENDER = "alert_sender"


_HEX = re.compile(r"[0-9a-f]{64}")
_EMPTY = hashlib.sha256(b"").hexdigest()


def _sha256(value: str) -> str:
    if not _HEX.fullmatch(value):
        raise ValueError("not a SHA-256 in 64 lower-case hexadecimal digits; make it with `printf %s TOKEN | sha256sum`")
    if value == _EMPTY:
        raise ValueError("this is the SHA-256 of an empty text; everybody knows it")
    return value


Sha256 = Annotated[str, AfterValidator(_sha256)]
"""SHA-256 of a token in hexadecimal digits. The token itself never stands in the settings."""


class IdentitySettings(Part):
    """A person or a program that may call the daemon, and how it proves who it is."""

    token_sha256: tuple[Sha256, ...] = setting((), "SHA-256 of each bearer token; two while one is being replaced", reload=True)
    password_sha256: tuple[Sha256, ...] = setting(
        (), "SHA-256 of each password for basic authentication, where the user is this identity's name; take a long random one", reload=True
    )
    certificate_subject: str | None = setting(
        None, "subject of a client certificate, like `CN=alertmanager,O=Example`", reload=True, min_length=1
    )
    roles: frozenset[Role] = setting(frozenset(), "viewer, responder, approver, rule_editor, admin, alert_sender", reload=True)
    groups: frozenset[Name] = setting(frozenset(), "groups that approvals may ask for", reload=True)


class Severity(Part):
    """What a severity means for people."""

    page_after: Duration = Field(
        description="longest time a page is held back while a remedy is at work", json_schema_extra={"reload": True}
    )
    description: str = setting("", "what it means, for people", reload=True)


def severities() -> dict[str, Severity]:
    """Return the severities of an installation that names none."""
    minutes = {"sev1": 3, "sev2": 10, "sev3": 30, "sev4": 120}
    return {name: Severity(page_after=timedelta(minutes=number)) for name, number in minutes.items()}


def _one_action(value: Mapping[str, Any]) -> Mapping[str, Any]:
    if len(value) != 1:
        raise ValueError("one action and its parameters, like `notify.slack: {…}`")
    return value


Notification = Annotated[Mapping[str, Mapping[str, JSON]], AfterValidator(_one_action)]
"""One notifying action by name with its parameters."""


class EscalationPolicy(Part):
    """Who hears of an incident. Rules name a policy, never a channel."""

    notify: tuple[Notification, ...] = setting((), "actions that carry the message, each `{action: {parameters}}`", reload=True)
    description: str = setting("", "what it is for, for people", reload=True)


def policies() -> dict[str, EscalationPolicy]:
    """Return the escalation policies of an installation that names none: one that reaches nobody."""
    return {"default": EscalationPolicy()}


class Contact(Part):
    """How people find a person or team; shown in messages and in the UI."""

    email: str = setting("", "e-mail address", reload=True)
    chat: str = setting("", "name or id in the chat", reload=True)
    phone: str = setting("", "telephone number", reload=True)
    note: str = setting("", "anything else worth knowing at three in the morning", reload=True)
