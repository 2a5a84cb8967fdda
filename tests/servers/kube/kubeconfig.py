"""Kubeconfigs: what tests read from the one they are given, and those of narrower accounts made from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

SIMULATED = "remediator.test/simulated"
"""Name of the extension in a kubeconfig's context that says: this cluster has the node simulator. Also the label of its nodes."""


@dataclass(frozen=True)
class Kubeconfig:
    """One context of a kubeconfig."""

    path: Path
    context: str
    cluster: dict[str, Any]
    simulated: bool

    @property
    def server(self) -> str:
        """The API server's URL."""
        return str(self.cluster["server"])

    def for_token(self, token: str, path: Path) -> Path:
        """Write a kubeconfig to the same cluster whose only credential is a token; return its path."""
        cluster = dict(self.cluster)
        authority = cluster.get("certificate-authority")
        if authority:
            cluster["certificate-authority"] = str((self.path.parent / authority).resolve())
        text = yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "test", "cluster": cluster}],
                "users": [{"name": "account", "user": {"token": token}}],
                "contexts": [{"name": "test", "context": {"cluster": "test", "user": "account"}}],
                "current-context": "test",
            }
        )
        path.touch(mode=0o600)
        path.write_text(text)
        return path


def read_kubeconfig(path: Path, context: str | None) -> Kubeconfig:
    """Read one context, the current one when none is named. Raises `KeyError` when it is not there."""
    content = yaml.safe_load(path.read_text())
    name = context or content["current-context"]
    contexts = {entry["name"]: entry["context"] for entry in content["contexts"]}
    clusters = {entry["name"]: entry["cluster"] for entry in content["clusters"]}
    extensions = contexts[name].get("extensions") or ()
    simulated = any(extension["name"] == SIMULATED for extension in extensions)
    return Kubeconfig(path.resolve(), name, clusters[contexts[name]["cluster"]], simulated)
