"""Options that say which Kubernetes cluster tests/kubernetes runs against, and how long an example may take: as long as it likes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import settings

from tests.servers.kube.kubeconfig import read_kubeconfig

UNTIL = {"simulation": 0.3, "acceptance": 0.85}
"""By which part of a run the files of an area have begun that take long; those of others are spread over all of it."""


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
    """Spread the files where they are run side by side, and leave out what can't be asked of a given cluster."""
    if config.getoption("loadscopereorder", True) is False:
        items.sort(key=_places([str(item.path.relative_to(config.rootpath)) for item in items]))
    _leave_out_simulated(config, items)


def _places(paths: Sequence[str]) -> Callable[[pytest.Item], tuple[float, str]]:
    """Return where in a run an item's file stands: what computes beside what waits, and nothing long alone at the end."""
    files: dict[str, dict[str, None]] = {}
    for path in paths:
        files.setdefault(_area(path), {})[path] = None
    places = {
        path: UNTIL.get(area, 1.0) * (number + 0.5) / len(found)
        for area, found in files.items()
        for number, path in enumerate(sorted(found))
    }

    def place(item: pytest.Item) -> tuple[float, str]:
        path = str(item.path.relative_to(item.config.rootpath))
        return places[path], path

    return place


def _area(path: str) -> str:
    return path.split("/")[1]


def _leave_out_simulated(config: pytest.Config, items: list[pytest.Item]) -> None:
    path = config.getoption("--kubeconfig")
    if path is None or read_kubeconfig(path, config.getoption("--context")).simulated:
        return
    needing = [item for item in items if "nodes" in getattr(item, "fixturenames", ()) or item.get_closest_marker("simulated")]
    if needing:
        config.hook.pytest_deselected(items=needing)
        items[:] = [item for item in items if item not in needing]
