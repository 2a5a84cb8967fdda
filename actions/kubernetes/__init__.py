"""Kubernetes: checks and actions on workloads.

Speaks raw JSON to the API server. The SDK is imported only to load a kubeconfig, on first use.
`checks/` only read; `actions/` change; the modules here are what both stand on, and hold no action of their own.
"""

from actions.kubernetes.actions.rollout_restart import RolloutRestart
from actions.kubernetes.actions.rollout_undo import RolloutUndo
from actions.kubernetes.actions.scale import Scale
from actions.kubernetes.checks.pods import Pods
from actions.kubernetes.checks.rollout import Rollout
from actions.kubernetes.connection import KubernetesConnection
from remediator.action import Provider

PROVIDER = Provider(
    system="kubernetes",
    actions=(RolloutUndo, RolloutRestart, Scale),
    checks=(Rollout, Pods),
    connections={"kubernetes": KubernetesConnection},
)

__all__ = ["PROVIDER", "KubernetesConnection", "Pods", "Rollout", "RolloutRestart", "RolloutUndo", "Scale"]
