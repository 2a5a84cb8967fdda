"""The web surface: Alertmanager's webhook, the JSON API, health, metrics. One module a noun; each route stands beside its handler.

Nothing here decides anything: a handler authenticates, checks the operation, calls `remediator.service.Service` or reads its store,
and renders the answer. Every error is a problem document (RFC 9457).
"""

from remediator.web.app import create_app
from remediator.web.listener import Listener, open_listener

__all__ = ["Listener", "create_app", "open_listener"]
