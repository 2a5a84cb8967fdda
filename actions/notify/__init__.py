"""Tell people: chat, pager, mail, status page, any webhook. Messages take no locks, and in dry run a rule's own are only rendered.

What is told stands in `wording` and `templates`, how it is sent in `sending` and `delivery`; each channel has its module.
"""

from __future__ import annotations

from actions.notify.discord import Discord, DiscordConnection
from actions.notify.email import Email, EmailConnection
from actions.notify.pagerduty import PagerDuty, PagerDutyConnection
from actions.notify.slack import Slack, SlackConnection
from actions.notify.status_page import StatusPage, StatusPageConnection
from actions.notify.webhook import Webhook, WebhookConnection
from remediator.action import Provider

PROVIDER = Provider(
    "notify",
    actions=(Discord, Email, PagerDuty, Slack, StatusPage, Webhook),
    connections={
        "discord": DiscordConnection,
        "email": EmailConnection,
        "pagerduty": PagerDutyConnection,
        "slack": SlackConnection,
        "status_page": StatusPageConnection,
        "webhook": WebhookConnection,
    },
)

__all__ = ["PROVIDER"]
