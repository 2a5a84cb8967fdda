"""Alertmanager: which alerts it holds, whether one of them still fires, and silences that end by themselves."""

from __future__ import annotations

from actions.alertmanager.alerts import Alerts
from actions.alertmanager.connection import AlertmanagerConnection
from actions.alertmanager.expire import ExpireAnySilence, ExpireSilence
from actions.alertmanager.looking import Silences
from actions.alertmanager.silence import SilenceAction
from actions.alertmanager.standing import StandingCheck, standing
from remediator.action import Provider

__all__ = [
    "PROVIDER",
    "AlertmanagerConnection",
    "Alerts",
    "ExpireAnySilence",
    "ExpireSilence",
    "SilenceAction",
    "Silences",
    "StandingCheck",
    "standing",
]

PROVIDER = Provider(
    "alertmanager",
    actions=(SilenceAction, ExpireSilence, ExpireAnySilence),
    checks=(Alerts, StandingCheck, Silences),
    connections={"alertmanager": AlertmanagerConnection},
)
