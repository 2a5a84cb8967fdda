"""Real Redis servers, sentinels and clusters on free loopback ports, in temporary directories."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.servers.ports import eventually, free_port

if TYPE_CHECKING:
    from redis import Redis

HOST = "127.0.0.1"
SENTINEL_NAME = "cache"


def binary(name: str) -> str:
    """Return the path of a server's program. Raises `RuntimeError` saying what to install."""
    found = shutil.which(name)
    if found is None:
        package = "redis-sentinel" if name == "redis-sentinel" else "redis-server"
        raise RuntimeError(f"{name} is not on this machine: apt-get install {package} (Redis 7.0 or newer)")
    return found


def until(condition: Callable[[], bool], *, what: str, within: float = 20.0) -> None:
    """Poll `condition` until it is true, without an event loop. Raises `AssertionError` naming `what`."""
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within} s: {what}")
        time.sleep(0.02)


class RedisServer:
    """One redis-server (or, through `program`, a sentinel). `options` are lines of redis.conf by name.

    `password` is the default user's. Users are made through `admin()` with ACL SETUSER.
    """

    def __init__(self, *, password: str | None = None, options: Mapping[str, str] | None = None, program: str = "redis-server") -> None:
        self.port = free_port()
        self.password = password
        self.options = dict(options or {})
        self.program = program
        self.directory: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """`host:port`."""
        return f"{HOST}:{self.port}"

    def start(self, *, wait: bool = True) -> RedisServer:
        """Start it (again) on its port with the configuration file it had, and wait until it answers PING."""
        command = binary(self.program)
        if self.directory is None:
            self.directory = Path(tempfile.mkdtemp(prefix="redis-"))
            (self.directory / "redis.conf").write_text(self._configuration())
        log = (self.directory / "log").open("ab")
        with log:
            self._process = subprocess.Popen([command, str(self.directory / "redis.conf")], stdout=log, stderr=log)
        if wait:
            until(self._answers, what=f"{self.program} on port {self.port} answers; see {self.directory}/log")
        return self

    def stop(self) -> None:
        """End it and remove its directory."""
        self.kill()
        if self.directory is not None:
            shutil.rmtree(self.directory, ignore_errors=True)
            self.directory = None

    def kill(self) -> None:
        """End it as a crash would (SIGKILL); `start` brings it back."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Keep it from running (SIGSTOP) inside the block: connections are accepted by the kernel, nothing answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    @property
    def running(self) -> bool:
        """True while the process lives."""
        return self._process is not None and self._process.poll() is None

    @contextlib.contextmanager
    def admin(self, db: int = 0) -> Iterator[Redis]:
        """Lend a synchronous client with all rights; replies are bytes."""
        import redis

        with redis.Redis(host=HOST, port=self.port, db=db, password=self.password, protocol=2, socket_timeout=10) as client:
            yield client

    def call(self, *words: Any, db: int = 0) -> Any:
        """Send one command with all rights."""
        with self.admin(db) as client:
            return client.execute_command(*words)  # type: ignore[no-untyped-call]

    def raw(self, *words: Any) -> Any:
        """Send one command with all rights and return the reply as the server gave it, in bytes."""
        with self.admin() as client:
            client.response_callbacks.clear()
            return client.execute_command(*words)  # type: ignore[no-untyped-call]

    def info(self, section: str) -> dict[str, Any]:
        """Return one section of INFO."""
        found: dict[str, Any] = self.call("INFO", section)
        return found

    def _configuration(self) -> str:
        lines = {"bind": HOST, "port": str(self.port), "dir": str(self.directory), "save": '""', "appendonly": "no"}
        lines |= {"repl-diskless-sync-delay": "0", "repl-ping-replica-period": "1"}
        if self.password is not None:
            lines |= {"requirepass": self.password, "masterauth": self.password}
        return "".join(f"{name} {value}\n" for name, value in (lines | self.options).items())

    def _answers(self) -> bool:
        import redis

        if self._process is None or self._process.poll() is not None:
            log = (self.directory / "log").read_text()[-2000:] if self.directory else ""
            raise AssertionError(f"{self.program} on port {self.port} ended: {log}")
        try:
            return self.call("PING") in (True, b"PONG")
        except (redis.ConnectionError, redis.TimeoutError):
            return False


class Sentinel(RedisServer):
    """One redis-sentinel that watches `primary` under the name `cache`, quorum 2."""

    def __init__(self, primary: RedisServer, *, down_after_ms: int = 500) -> None:
        super().__init__(program="redis-sentinel")
        self.primary = primary
        self.down_after_ms = down_after_ms

    def _configuration(self) -> str:
        name = SENTINEL_NAME
        lines = [f"bind {HOST}", f"port {self.port}", f"dir {self.directory}"]
        lines += [f"sentinel monitor {name} {HOST} {self.primary.port} 2", f"sentinel down-after-milliseconds {name} {self.down_after_ms}"]
        lines += [f"sentinel failover-timeout {name} 4000", f"sentinel parallel-syncs {name} 2"]
        if self.primary.password is not None:
            lines.append(f"sentinel auth-pass {name} {self.primary.password}")
        return "\n".join(lines) + "\n"

    def master(self) -> dict[bytes, bytes]:
        """Return SENTINEL MASTER as it answers."""
        flat = self.raw("SENTINEL", "MASTER", SENTINEL_NAME)
        return dict(zip(flat[::2], flat[1::2], strict=True))


class SentinelSet:
    """One primary, two replicas, three sentinels with quorum 2; a dead primary is replaced in about two seconds."""

    def __init__(self, *, down_after_ms: int = 500, password: str | None = None) -> None:
        first = RedisServer(password=password)
        follow = {"replicaof": f"{HOST} {first.port}"}
        self.servers = (first, RedisServer(options=follow, password=password), RedisServer(options=follow, password=password))
        self.sentinels = tuple(Sentinel(first, down_after_ms=down_after_ms) for _ in range(3))

    def start(self) -> SentinelSet:
        """Start all six and wait until everybody knows everybody."""
        for server in (*self.servers, *self.sentinels):
            server.start()
        self._hurry()
        until(lambda: self.healthy, what="the sentinels see one primary, two replicas and each other", within=40)
        return self

    def stop(self) -> None:
        """End all six."""
        for server in (*self.sentinels, *self.servers):
            server.stop()

    @property
    def primary(self) -> RedisServer:
        """The server that the first sentinel takes for the primary."""
        port = int(self.sentinels[0].master()[b"port"])
        return next(server for server in self.servers if server.port == port)

    @property
    def healthy(self) -> bool:
        """True when all sentinels agree on a living primary with two replicas in sync, and nothing is in progress."""
        views = [sentinel.master() for sentinel in self.sentinels]
        if len({view[b"port"] for view in views}) > 1 or any(view[b"flags"] != b"master" for view in views):
            return False
        if any(view[b"num-other-sentinels"] != b"2" for view in views):
            return False
        return all(self._replicas_fine(sentinel) for sentinel in self.sentinels) and self._in_sync()

    def _replicas_fine(self, sentinel: Sentinel) -> bool:
        rows = sentinel.raw("SENTINEL", "REPLICAS", SENTINEL_NAME)
        found = [dict(zip(row[::2], row[1::2], strict=True)) for row in rows]
        return len(found) == 2 and all(row[b"flags"] == b"slave" and row[b"master-link-status"] == b"ok" for row in found)

    def _in_sync(self) -> bool:
        info = self.primary.info("replication")
        return info["role"] == "master" and info["connected_slaves"] == 2 and all(info[f"slave{n}"]["state"] == "online" for n in range(2))

    def _hurry(self) -> None:
        """Let the sentinels look at their servers twice a second instead of every ten seconds.

        Not more often: three times that period is how old their knowledge of a replica may be for it to be promoted.
        """
        for sentinel in self.sentinels:
            sentinel.raw("SENTINEL", "DEBUG", "INFO-PERIOD", 500, "PUBLISH-PERIOD", 200)

    def set_quorum(self, quorum: int) -> None:
        """Set how many sentinels must agree; more than three keep them from failing over."""
        for sentinel in self.sentinels:
            sentinel.raw("SENTINEL", "SET", SENTINEL_NAME, "quorum", quorum)

    def restore(self) -> None:
        """Start what was killed and wait until all is well again."""
        for server in (*self.servers, *self.sentinels):
            if not server.running:
                server.start()
        self._hurry()
        until(lambda: self.healthy, what="the sentinel set is well again", within=40)

    async def settled(self) -> None:
        """Wait until all is well, without blocking the event loop for long."""
        await eventually(self._healthy, what="the sentinel set is well", within=40)

    async def _healthy(self) -> bool:
        return self.healthy


class RedisCluster:
    """A Redis Cluster of three primaries with one replica each. `cluster-node-timeout` is small."""

    def __init__(self, *, node_timeout_ms: int = 1500) -> None:
        self.node_timeout = timedelta(milliseconds=node_timeout_ms)
        options = {"cluster-enabled": "yes", "cluster-node-timeout": str(node_timeout_ms), "cluster-config-file": "nodes.conf"}
        options["cluster-replica-validity-factor"] = "0"
        self.servers = tuple(RedisServer(options=options | {"cluster-port": str(free_port())}) for _ in range(6))

    def start(self) -> RedisCluster:
        """Start six servers, join them, give out the slots, attach the replicas, wait until the state is ok."""
        for server in self.servers:
            server.start()
        first, *others = self.servers
        for other in others:
            first.call("CLUSTER", "MEET", HOST, other.port, other.options["cluster-port"])
        until(lambda: all(len(self.nodes(server)) == 6 for server in self.servers), what="six nodes know each other")
        for number, (low, high) in enumerate(((0, 5460), (5461, 10922), (10923, 16383))):
            self.servers[number].call("CLUSTER", "ADDSLOTSRANGE", low, high)
            self.servers[number + 3].call("CLUSTER", "REPLICATE", self.id(self.servers[number]))
        until(lambda: self.healthy, what="the cluster's state is ok everywhere", within=40)
        return self

    def stop(self) -> None:
        """End all six."""
        for server in self.servers:
            server.stop()

    def id(self, server: RedisServer) -> str:
        """Return a node's id."""
        return str(server.raw("CLUSTER", "MYID").decode())

    def nodes(self, server: RedisServer) -> list[list[str]]:
        """Return the lines of CLUSTER NODES as one server sees them, split at spaces."""
        return [line.split() for line in server.raw("CLUSTER", "NODES").decode().splitlines()]

    def pair(self, number: int = 0) -> tuple[RedisServer, RedisServer]:
        """Return (primary, replica) of the n-th pair of servers, whichever leads now."""
        one, other = self.servers[number], self.servers[number + 3]
        return (one, other) if one.info("replication")["role"] == "master" else (other, one)

    @staticmethod
    def tag(number: int, nth: int = 0) -> str:
        """Return the n-th hash tag (`{text}`) whose slot belongs to the given pair of servers."""
        from redis.crc import key_slot

        low, high = ((0, 5460), (5461, 10922), (10923, 16383))[number]
        words = (f"t{one}" for one in itertools.count())
        found = (word for word in words if low <= key_slot(word.encode()) <= high)
        return "{" + next(itertools.islice(found, nth, None)) + "}"

    @property
    def healthy(self) -> bool:
        """True when every node sees three primaries with slots, three linked replicas and nobody failing."""
        return all(self._sees_all_well(server) for server in self.servers)

    def _sees_all_well(self, server: RedisServer) -> bool:
        if b"cluster_state:ok" not in server.raw("CLUSTER", "INFO"):
            return False
        nodes = self.nodes(server)
        leads = [line for line in nodes if "master" in line[2] and len(line) > 8]
        clean = all("fail" not in line[2] and "handshake" not in line[2] and line[7] == "connected" for line in nodes)
        own = server.info("replication")
        linked = (own["role"] == "master" and own["connected_slaves"] == 1) or own.get("master_link_status") == "up"
        return clean and linked and len(leads) == 3 and len({line[3] for line in nodes if "slave" in line[2]}) == 3

    def restore(self) -> None:
        """Start what was killed and wait until all is well again."""
        for server in self.servers:
            if not server.running:
                server.start()
        until(lambda: self.healthy, what="the cluster is well again", within=60)

    async def settled(self) -> None:
        """Wait until all is well, without blocking the event loop for long."""
        await eventually(self._healthy, what="the cluster is well", within=40)

    async def _healthy(self) -> bool:
        return self.healthy


def in_environment(name: str, value: str) -> dict[str, str]:
    """Put a secret into the environment and return the reference to it, as settings write it."""
    os.environ[name] = value
    return {"env": name}
