"""etcd, kube-apiserver, kube-controller-manager and kube-scheduler on free loopback ports, tuned to be idle when nothing happens."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.servers.kube.api import Entry, wait_for_ready
from tests.servers.kube.certificates import ClusterAuthority, Pair, signing_key
from tests.servers.kube.kubeconfig import SIMULATED
from tests.servers.ports import free_port
from tests.servers.process import Process, find_binary

ROOT = Path(__file__).parents[3]
SERVICES = "127.77.0.0/24"
"""Cluster IPs are loopback addresses: the API server reaches the metrics server by one, and nothing leaves the machine."""
METRICS_ADDRESS = "127.77.0.10"
_ROOM = 2 * 2**30
"""Bytes that must be free in memory for etcd's data to go there; containers often have 64 MB."""


def binaries() -> Path:
    """Return the directory of the servers. Raises `RuntimeError` when they are not built."""
    found = Path(
        subprocess.run([ROOT / "scripts/kubernetes-servers", "--directory"], check=True, capture_output=True, text=True).stdout.strip()
    )
    if not found.is_dir():
        raise RuntimeError(
            f"no Kubernetes servers in {found}; these tests need the real ones: make kubernetes-servers (about six minutes, once)"
        )
    return found


@dataclass(frozen=True)
class Layout:
    """Addresses and files of one cluster; the node simulator reads them from `cluster.json`."""

    server: str
    ca: str
    admin_certificate: str
    admin_key: str
    kubelet_certificate: str
    kubelet_key: str
    front_proxy_ca: str
    kubelet_port: int
    metrics_port: int
    pods: str

    @property
    def entry(self) -> Entry:
        """The administrator's way in."""
        return Entry(self.server, self.ca, self.admin_certificate, self.admin_key)

    @classmethod
    def read(cls, directory: Path) -> Layout:
        """Read it back."""
        return cls(**json.loads((directory / "cluster.json").read_text()))


class ControlPlane:
    """The four servers in `directory`; etcd's data and the Pods' files live outside of it and are removed by `stop`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._processes: list[Process] = []
        self._data = _scratch("etcd")
        self._pods = _scratch("pods", tempfile.gettempdir())

    async def start(self) -> Layout:
        """Start all of them and wait until they answer."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._bin = binaries()
        etcd = await self._start_etcd()
        await self._start_apiserver(etcd)
        self._start_controllers()
        return self.layout

    async def stop(self) -> None:
        """Stop them, the API server's clients first, and remove what they kept."""
        for process in reversed(self._processes):
            await process.stop()
        self._processes.clear()
        for path in (self._data, self._pods):
            shutil.rmtree(path, ignore_errors=True)

    def check(self) -> None:
        """Raise `RuntimeError` when one of them ended."""
        for process in self._processes:
            if process.ended:
                raise RuntimeError(f"a server of the cluster ended:\n{process.log}")

    def _run(self, name: str, *argv: str) -> Process:
        # The kernel ends them should this process die without stopping them.
        guard = [find_binary("setpriv", "util-linux"), "--pdeathsig", "KILL", "--"]
        environment = {**os.environ, "GOMAXPROCS": "2", "GOGC": "200"}
        process = Process([*guard, *argv], self.directory / f"{name}.log", environment=environment)
        self._processes.append(process)
        return process

    async def _start_etcd(self) -> str:
        client, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
        self._run(
            "etcd",
            find_binary("etcd", "etcd-server"),
            f"--data-dir={self._data}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--heartbeat-interval=1000",
            "--election-timeout=5000",
            "--initial-election-tick-advance=true",
            "--log-level=warn",
            "--logger=zap",
        )
        return client

    async def _start_apiserver(self, etcd: str) -> None:
        authority = ClusterAuthority(self.directory / "pki")
        proxies = ClusterAuthority(self.directory / "pki-front-proxy")
        serving = authority.pair("kube-apiserver")
        kubelet = authority.pair("kubelet")
        admin = authority.pair("admin", groups=("system:masters",))
        proxy = proxies.pair("front-proxy")
        self._accounts = signing_key(self.directory / "pki" / "accounts.key")
        port = free_port()
        self.layout = Layout(
            server=f"https://127.0.0.1:{port}",
            ca=str(authority.ca),
            admin_certificate=str(admin.certificate),
            admin_key=str(admin.key),
            kubelet_certificate=str(kubelet.certificate),
            kubelet_key=str(kubelet.key),
            front_proxy_ca=str(proxies.ca),
            kubelet_port=free_port(),
            metrics_port=free_port(),
            pods=str(self._pods),
        )
        (self.directory / "cluster.json").write_text(json.dumps(vars(self.layout)))
        self._authority = authority
        process = self._run(
            "apiserver", str(self._bin / "kube-apiserver"), *self._apiserver_flags(etcd, port, serving=serving, proxy=proxy, kubelet=admin)
        )
        await process.wait_until(lambda: wait_for_ready(self.layout.entry), what="kube-apiserver", within=120)

    def _apiserver_flags(self, etcd: str, port: int, *, serving: Pair, proxy: Pair, kubelet: Pair) -> list[str]:
        return [
            f"--etcd-servers={etcd}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--secure-port={port}",
            "--endpoint-reconciler-type=none",  # Endpoints may not hold loopback addresses
            f"--service-cluster-ip-range={SERVICES}",
            f"--tls-cert-file={serving.certificate}",
            f"--tls-private-key-file={serving.key}",
            f"--client-ca-file={self.layout.ca}",
            "--authorization-mode=RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--api-audiences=https://kubernetes.default.svc",
            f"--service-account-key-file={self._accounts}",
            f"--service-account-signing-key-file={self._accounts}",
            f"--kubelet-certificate-authority={self.layout.ca}",
            f"--kubelet-client-certificate={kubelet.certificate}",
            f"--kubelet-client-key={kubelet.key}",
            "--kubelet-preferred-address-types=InternalIP",
            f"--requestheader-client-ca-file={self.layout.front_proxy_ca}",
            "--requestheader-allowed-names=front-proxy",
            "--requestheader-username-headers=X-Remote-User",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            f"--proxy-client-cert-file={proxy.certificate}",
            f"--proxy-client-key-file={proxy.key}",
            "--enable-priority-and-fairness=false",
            "--profiling=false",
            "--event-ttl=30m",
        ]

    def _start_controllers(self) -> None:
        kubeconfig = self.directory / "controllers.kubeconfig"
        kubeconfig.write_text(yaml.safe_dump(kubeconfig_of(self.layout)))
        self._run(
            "controller-manager",
            str(self._bin / "kube-controller-manager"),
            f"--kubeconfig={kubeconfig}",
            "--bind-address=127.0.0.1",
            f"--secure-port={free_port()}",
            "--port=0",
            "--leader-elect=false",
            f"--root-ca-file={self.layout.ca}",
            f"--service-account-private-key-file={self._accounts}",
            # Nothing here needs routes, clouds or certificates.
            "--controllers=*,-cloud-node-lifecycle,-route,-service,-nodeipam,-csrapproving,-csrcleaner,-csrsigning,-attachdetach,-ephemeral-volume,-ttl",
            "--kube-api-qps=300",
            "--kube-api-burst=500",
            "--node-monitor-period=5s",
            "--node-monitor-grace-period=2m",
            "--node-startup-grace-period=2m",
            "--pvclaimbinder-sync-period=1m",
            # An autoscaler that answers within a test.
            "--horizontal-pod-autoscaler-sync-period=2s",
            "--horizontal-pod-autoscaler-downscale-stabilization=5s",
            "--horizontal-pod-autoscaler-cpu-initialization-period=1s",
            "--horizontal-pod-autoscaler-initial-readiness-delay=1s",
            "--concurrent-gc-syncs=4",
            "--concurrent-namespace-syncs=4",
            "--profiling=false",
        )
        address = f"127.0.0.1:{free_port()}"
        config = self.directory / "scheduler.yaml"
        config.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "kubescheduler.config.k8s.io/v1beta1",
                    "kind": "KubeSchedulerConfiguration",
                    "clientConnection": {"kubeconfig": str(kubeconfig), "qps": 300, "burst": 500},
                    "leaderElection": {"leaderElect": False},
                    "parallelism": 1,
                    "enableProfiling": False,
                    "healthzBindAddress": address,
                    "metricsBindAddress": address,
                }
            )
        )
        self._run(
            "scheduler", str(self._bin / "kube-scheduler"), f"--config={config}", "--bind-address=127.0.0.1", f"--secure-port={free_port()}"
        )


def kubeconfig_of(layout: Layout) -> dict[str, Any]:
    """Return the administrator's kubeconfig, context `test`."""
    extensions = [{"name": SIMULATED, "extension": {"simulated": True}}]
    user = {"client-certificate": layout.admin_certificate, "client-key": layout.admin_key}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": {"server": layout.server, "certificate-authority": layout.ca}}],
        "users": [{"name": "admin", "user": user}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin", "extensions": extensions}}],
        "current-context": "test",
    }


def _scratch(what: str, parent: str | None = None) -> Path:
    """Make a directory, in memory where that can be; and remove those of processes that died without doing so."""
    memory = Path("/dev/shm")
    roomy = os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > _ROOM
    base = Path(parent) if parent else memory if roomy else Path(tempfile.gettempdir())
    prefix = f"remediator-{what}-"
    for left in base.glob(f"{prefix}*"):
        if not Path("/proc", left.name.removeprefix(prefix)).exists():
            shutil.rmtree(left, ignore_errors=True)
    path = base / f"{prefix}{os.getpid()}"
    path.mkdir(mode=0o711)
    return path
