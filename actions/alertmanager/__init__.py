"""Alertmanager: which alerts it holds, whether one of them still fires, and silences that end by themselves."""

from __future__ import annotations

from actions.alertmanager.alerts import Alerts
from actions.alertmanager.connection import AlertmanagerConnection
from actions.alertmanager.standing import StandingCheck, is_own_silence, standing
from remediator.action import Provider

__all__ = ["PROVIDER", "AlertmanagerConnection", "Alerts", "StandingCheck", "is_own_silence", "standing"]

PROVIDER = Provider("alertmanager", checks=(Alerts, StandingCheck), connections={"alertmanager": AlertmanagerConnection})
