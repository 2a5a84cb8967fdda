"""`remediator check` of settings: what the daemon would not start with, and what it would do and nobody means."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Commands

SETTINGS = """\
connections:
  prod: {kind: kubernetes, server: "https://10.0.0.1:6443"}
  again:
    kind: kubernetes
    kubeconfig: config
"""
KUBECONFIG = """\
contexts: [{name: a, context: {cluster: a}}]
clusters: [{name: a, cluster: {server: "https://10.0.0.1:6443", insecure-skip-tls-verify: true}}]
"""


async def test_check_warns_of_doubtful_connections_at_their_place(alone: Commands, tmp_path: Path) -> None:
    """Paths count from the settings file; warnings are no failure."""
    settings = tmp_path / "remediator.yaml"
    settings.write_text(SETTINGS)
    (tmp_path / "config").write_text(KUBECONFIG)
    done = await alone("check", str(settings))
    assert done.code == 0, done.out + done.error
    lines = [line for line in done.out.splitlines() if line.startswith(f"{settings}:3:3: warning: connections.again")]
    assert len(lines) == 2
    found = json.loads((await alone("check", "--json", str(settings))).out)
    assert {(one["severity"], one["line"]) for one in found} == {("warning", 3)}


async def test_check_finds_what_the_daemon_would_not_start_with(alone: Commands, tmp_path: Path) -> None:
    """Connections are held against their kinds, as at start."""
    settings = tmp_path / "remediator.yaml"
    settings.write_text("connections:\n  prod: {kind: kubernetes}\n  cache: {kind: rediss}\n")
    done = await alone("check", str(settings))
    assert done.code == 1
    assert f"{settings}:2:9: connections.prod: set exactly one of kubeconfig, in_cluster and server" in done.out
    assert f"{settings}:3:17: connections.cache: there is no kind 'rediss'; did you mean redis?" in done.out
