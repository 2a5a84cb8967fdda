"""Kubernetes: checks and actions on workloads, Pods, nodes and volumes.

Speaks raw JSON to the API server. The SDK is imported only to load a kubeconfig, on first use.
`checks/` only read; `actions/` change; the modules here are what both stand on, and hold no action of their own. Each action and
check is a module called like itself, imported when a rule uses it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from actions.kubernetes.connection import KubernetesConnection
from remediator.action import Provider

if TYPE_CHECKING:
    from actions.kubernetes.actions.apply import Apply
    from actions.kubernetes.actions.autoscale import Autoscale
    from actions.kubernetes.actions.cordon import Cordon
    from actions.kubernetes.actions.delete_pod import DeletePod
    from actions.kubernetes.actions.drain import Drain
    from actions.kubernetes.actions.evict_pod import EvictPod
    from actions.kubernetes.actions.exec import Exec
    from actions.kubernetes.actions.patch import Patch
    from actions.kubernetes.actions.patch_configmap import PatchConfigmap
    from actions.kubernetes.actions.resize_pvc import ResizePvc
    from actions.kubernetes.actions.restart_users import RestartUsers
    from actions.kubernetes.actions.restore_secret import RestoreSecret
    from actions.kubernetes.actions.resume_owner import ResumeOwner
    from actions.kubernetes.actions.rollout_restart import RolloutRestart
    from actions.kubernetes.actions.rollout_undo import RolloutUndo
    from actions.kubernetes.actions.scale import Scale
    from actions.kubernetes.actions.set_env import SetEnv
    from actions.kubernetes.actions.set_resources import SetResources
    from actions.kubernetes.actions.suspend_owner import SuspendOwner
    from actions.kubernetes.actions.uncordon import Uncordon
    from actions.kubernetes.checks.env import Env
    from actions.kubernetes.checks.events import Events
    from actions.kubernetes.checks.exec import ExecCheck
    from actions.kubernetes.checks.hpa import Hpa
    from actions.kubernetes.checks.logs import Logs
    from actions.kubernetes.checks.node import Node
    from actions.kubernetes.checks.owner import OwnerCheck
    from actions.kubernetes.checks.pods import Pods
    from actions.kubernetes.checks.pvc import Pvc
    from actions.kubernetes.checks.rollout import Rollout
    from actions.kubernetes.checks.usage import Usage

_ACTIONS = {
    "rollout_undo": "RolloutUndo",
    "rollout_restart": "RolloutRestart",
    "scale": "Scale",
    "autoscale": "Autoscale",
    "set_env": "SetEnv",
    "set_resources": "SetResources",
    "patch": "Patch",
    "apply": "Apply",
    "patch_configmap": "PatchConfigmap",
    "restart_users": "RestartUsers",
    "restore_secret": "RestoreSecret",
    "delete_pod": "DeletePod",
    "evict_pod": "EvictPod",
    "exec": "Exec",
    "cordon": "Cordon",
    "uncordon": "Uncordon",
    "drain": "Drain",
    "resize_pvc": "ResizePvc",
    "suspend_owner": "SuspendOwner",
    "resume_owner": "ResumeOwner",
}
_CHECKS = {
    "rollout": "Rollout",
    "pods": "Pods",
    "logs": "Logs",
    "events": "Events",
    "env": "Env",
    "usage": "Usage",
    "exec": "ExecCheck",
    "pvc": "Pvc",
    "hpa": "Hpa",
    "node": "Node",
    "owner": "OwnerCheck",
}
_MODULES = {
    **{name: f"actions.kubernetes.actions.{module}" for module, name in _ACTIONS.items()},
    **{name: f"actions.kubernetes.checks.{module}" for module, name in _CHECKS.items()},
}

PROVIDER = Provider(
    system="kubernetes",
    connections={"kubernetes": KubernetesConnection},
    later_actions={f"kubernetes.{module}": f"{_MODULES[name]}:{name}" for module, name in _ACTIONS.items()},
    later_checks={f"kubernetes.{module}": f"{_MODULES[name]}:{name}" for module, name in _CHECKS.items()},
)

__all__ = [
    "PROVIDER",
    "Apply",
    "Autoscale",
    "Cordon",
    "DeletePod",
    "Drain",
    "Env",
    "Events",
    "EvictPod",
    "Exec",
    "ExecCheck",
    "Hpa",
    "KubernetesConnection",
    "Logs",
    "Node",
    "OwnerCheck",
    "Patch",
    "PatchConfigmap",
    "Pods",
    "Pvc",
    "ResizePvc",
    "RestartUsers",
    "RestoreSecret",
    "ResumeOwner",
    "Rollout",
    "RolloutRestart",
    "RolloutUndo",
    "Scale",
    "SetEnv",
    "SetResources",
    "SuspendOwner",
    "Uncordon",
    "Usage",
]


def __getattr__(name: str) -> object:
    """Import an action or check that is asked for by its class."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
