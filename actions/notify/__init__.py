"""Tell people: `notify.slack` and `notify.webhook`. Messages take no locks, and in dry run are only rendered."""

from __future__ import annotations

from actions.notify.slack import Slack, SlackConnection
from actions.notify.webhook import Webhook, WebhookConnection
from remediator.action import Provider

PROVIDER = Provider("notify", actions=(Slack, Webhook), connections={"slack": SlackConnection, "webhook": WebhookConnection})

__all__ = ["PROVIDER"]
