"""Run commands on the daemon's own host: the action `command.run`, and the connection that says what may be run, and as whom."""

from __future__ import annotations

from actions.command.connection import CommandConnection
from remediator.action import Provider

PROVIDER = Provider("command", connections={"command": CommandConnection}, later_actions={"command.run": "actions.command.run:Run"})

__all__ = ["PROVIDER"]
