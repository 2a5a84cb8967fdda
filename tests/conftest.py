"""Options that say which Kubernetes cluster tests/kubernetes runs against, and how long an example may take: as long as it likes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

from tests.servers.kube.kubeconfig import read_kubeconfig


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --kubeconfig and --context."""
    group = parser.getgroup("kubernetes", "tests/kubernetes: which cluster; without these, one of their own")
    group.addoption(
        "--kubeconfig", type=Path, default=None, help="kubeconfig of a cluster to test against; tests make and delete namespaces"
    )
    group.addoption("--context", default=None, help="context in that kubeconfig; its current one when absent")


def pytest_configure(config: pytest.Config) -> None:
    """Name the markers, and refuse a cluster that is not there before anything runs."""
    # How long an example takes says how busy the machine is, nothing about what is promised.
    settings.register_profile("unhurried", deadline=None)
    settings.load_profile("unhurried")
    path, context = config.getoption("--kubeconfig"), config.getoption("--context")
    if path is None and context is not None:
        raise pytest.UsageError("--context names a context of --kubeconfig, which is missing")
    if path is not None:
        try:
            read_kubeconfig(path, context)
        except (OSError, KeyError) as error:
            raise pytest.UsageError(f"--kubeconfig {path} --context {context}: {type(error).__name__}: {error}") from error
    config.addinivalue_line("markers", "simulated: needs the node simulator (asks for what no script can do); left out on other clusters")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what can only be asked of simulated nodes when somebody's own cluster is given."""
    path = config.getoption("--kubeconfig")
    if path is None or read_kubeconfig(path, config.getoption("--context")).simulated:
        return
    needing = [item for item in items if "nodes" in getattr(item, "fixturenames", ()) or item.get_closest_marker("simulated")]
    if needing:
        config.hook.pytest_deselected(items=needing)
        items[:] = [item for item in items if item not in needing]
