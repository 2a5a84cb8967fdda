"""Run a cluster for tests: `python -m tests.servers.kube serve --directory DIR`, until told to stop (SIGTERM, SIGINT).

`DIR/config` is its kubeconfig, context `test`; it appears when the cluster is ready. SIGHUP starts the node simulator again (all
containers restart). With `--while-used` it ends by itself once nobody holds a lock on `DIR/users` any more.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import os
import signal
import sys
from pathlib import Path

import yaml

from tests.servers.kube.api import Api, ApiError
from tests.servers.kube.control_plane import ControlPlane, Layout, kubeconfig_of
from tests.servers.kube.nodes import ZONES
from tests.servers.kube.simulator import Simulator
from tests.servers.ports import eventually
from tests.servers.process import Process


async def serve(directory: Path, *, while_used: bool) -> None:
    """Run control plane and simulator until a signal comes or one of them fails. Raises `RuntimeError` then."""
    stop, again = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, again.set)
    plane = ControlPlane(directory)
    simulator: Process | None = None
    try:
        layout = await plane.start()
        simulator = simulate_in(directory)
        await wait_until_usable(layout)
        write_whole(directory / "config", yaml.safe_dump(kubeconfig_of(layout)))
        while not stop.is_set() and not (while_used and unused(directory / "users")):
            if again.is_set():
                again.clear()
                await simulator.stop()
                simulator = simulate_in(directory)
            plane.check()
            if simulator.ended:
                raise RuntimeError(f"the simulator ended:\n{simulator.log}")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 0.5)
    finally:
        (directory / "config").unlink(missing_ok=True)
        if simulator is not None:
            await simulator.stop()
        await plane.stop()


def simulate_in(directory: Path) -> Process:
    """Start the node simulator as a process of its own."""
    argv = ["setpriv", "--pdeathsig", "TERM", "--", sys.executable, "-m", "tests.servers.kube", "nodes", "--directory", str(directory)]
    return Process(argv, directory / "nodes.log")


async def wait_until_usable(layout: Layout) -> None:
    """Wait until Pods can be made, scheduled and measured."""
    async with Api(layout.entry, agent="remediator-tests") as api:

        async def usable() -> bool:
            try:
                nodes = await api.items("/api/v1/nodes")
                await api.get("/api/v1/namespaces/default/serviceaccounts/default")
                await api.get("/apis/metrics.k8s.io/v1beta1/nodes")
            except ApiError:
                return False
            return len([node for node in nodes if not node["spec"].get("taints")]) >= len(ZONES)

        await eventually(usable, what="nodes that are ready, a default service account and metrics", within=60, every=0.1)


def unused(users: Path) -> bool:
    """Tell whether nobody holds a (shared) lock on a file."""
    with users.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def write_whole(path: Path, text: str) -> None:
    """Write a file that appears at once, for its owner only."""
    draft = path.with_suffix(".new")
    draft.touch(mode=0o600)
    draft.write_text(text)
    draft.rename(path)


async def nodes(directory: Path) -> None:
    """Simulate the nodes of the cluster in `directory` until a signal comes."""
    layout = Layout.read(directory)
    work = asyncio.current_task()
    assert work is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, work.cancel)
    async with Api(layout.entry, agent="kubelet") as api:
        with contextlib.suppress(asyncio.CancelledError):
            await Simulator(layout, api).run()


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(prog="python -m tests.servers.kube", description=__doc__)
    parser.add_argument("what", choices=["serve", "nodes"])
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--while-used", action="store_true")
    asked = parser.parse_args()
    os.umask(0o022)
    if sys.version_info < (3, 12):
        asyncio.set_child_watcher(asyncio.PidfdChildWatcher())  # not a thread for each container
    if asked.what == "serve":
        asyncio.run(serve(asked.directory.resolve(), while_used=asked.while_used))
    else:
        asyncio.run(nodes(asked.directory.resolve()))


if __name__ == "__main__":
    main()
