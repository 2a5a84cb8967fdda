"""A real PostgreSQL in a temporary directory: for tests and the demo.

    with PostgresServer(max_connections=20) as server:
        ...                       # server.dsn, server.port, server.password

It listens on 127.0.0.1 only, asks for passwords (SCRAM), and is gone with its files after `stop`. Started by root it runs as
the operating system's user `postgres`, since PostgreSQL refuses to run as root.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.servers.ports import free_port

OS_USER = "postgres"
INSTALL = "install it with: apt-get install postgresql (a Debian package), or put its bin directory into PATH"
SETTINGS: Mapping[str, str] = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "shared_buffers": "16MB",
    "fsync": "off",
    "wal_level": "replica",
    "max_wal_senders": "4",
    "shared_preload_libraries": "pg_stat_statements",
    "log_min_messages": "fatal",
    "lc_messages": "C",
    "timezone": "UTC",
}


class ServerMissingError(RuntimeError):
    """PostgreSQL is not installed here. The message says what to install."""


def find_binary(name: str) -> str:
    """Return the path of one of PostgreSQL's programs, the newest version first. Raises `ServerMissingError`."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: _version(path.parent.name), reverse=True)
    for directory in versions:
        if (directory / name).exists():
            return str(directory / name)
    found = shutil.which(name)
    if found is None:
        raise ServerMissingError(f"PostgreSQL's program {name!r} is neither under /usr/lib/postgresql nor in PATH; {INSTALL}")
    return found


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())


def _runs_as() -> str | None:
    """Return the user the server must run as, or None for the present one."""
    if os.geteuid() != 0:
        return None
    try:
        pwd.getpwnam(OS_USER)
    except KeyError:
        raise ServerMissingError(f"PostgreSQL does not run as root and there is no user {OS_USER!r}; {INSTALL}") from None
    return OS_USER


class PostgresServer:
    """One server; `start` and `stop` block for about a second. Also a context manager, sync and async."""

    host = "127.0.0.1"
    user = "postgres"
    password = "superuser-password"
    database = "postgres"

    def __init__(self, *, max_connections: int = 100, settings: Mapping[str, str] | None = None, tls: bool = False) -> None:
        self.port = 0
        self.directory: Path | None = None
        self.settings = {**SETTINGS, "max_connections": str(max_connections), **(settings or {})}
        self.tls = tls
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def dsn(self) -> str:
        """Address for the superuser, in the form of a libpq URL."""
        return self.dsn_for(self.user, self.password)

    def dsn_for(self, user: str, password: str, database: str | None = None) -> str:
        """Return the address for another user or database."""
        return f"postgresql://{user}:{password}@{self.host}:{self.port}/{database or self.database}"

    @property
    def certificate(self) -> Path:
        """The self-signed certificate for 127.0.0.1 of a server started with `tls=True`."""
        return self._data / "server.crt"

    @property
    def running(self) -> bool:
        """True while the server's process lives."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Make a fresh cluster and start it. Raises `ServerMissingError`, or `RuntimeError` with the server's log."""
        find_binary("postgres")
        self._make_directory()
        password_file = self._root / "password"
        password_file.write_text(self.password)
        shutil.chown(password_file, _runs_as() or os.geteuid())
        access = ("-U", self.user, "-A", "scram-sha-256", f"--pwfile={password_file}")
        self._call("initdb", "-D", str(self._data), *access, "-E", "UTF8", "--locale=C.UTF-8", "--no-sync")
        if self.tls:
            self._make_certificate()
        self._configure(self.settings)
        self.launch()

    def launch(self, *, takes_sessions: bool = True) -> None:
        """Start the server on its present files, on a free port at the first time and on the same port later."""
        for attempt in range(3):
            self.port = self.port or free_port()
            self._spawn()
            if self._await_ready(0 if takes_sessions else 1):
                return
            self.halt()
            if attempt < 2 and "could not bind" in self.log():
                self.port = 0
                continue
            raise RuntimeError(f"PostgreSQL did not start on port {self.port}:\n{self.log()}")

    def halt(self, how: signal.Signals = signal.SIGQUIT) -> None:
        """Stop the server and keep its files: SIGQUIT at once, SIGINT orderly."""
        if self._process is not None:
            if self._process.poll() is None:
                self._process.send_signal(how)
            self._process.wait(timeout=30)
            self._process = None

    def stop(self) -> None:
        """Stop the server and remove its files. Does nothing the second time."""
        self.halt()
        if self.directory is not None:
            shutil.rmtree(self.directory, ignore_errors=True)
            self.directory = None
        atexit.unregister(self.stop)

    def replica(self, settings: Mapping[str, str] | None = None, *, takes_sessions: bool = True) -> PostgresServer:
        """Return a started standby of this server; the caller stops it. With `hot_standby` off it takes no sessions."""
        standby = PostgresServer(settings={**self.settings, **(settings or {})})
        standby._make_directory()
        address = f"{self._conninfo} application_name=standby"
        self._call("pg_basebackup", "-d", address, "-D", str(standby._data), "-X", "stream", "-c", "fast", "--no-sync", "-R")
        standby._configure(settings or {})
        standby.launch(takes_sessions=takes_sessions)
        return standby

    def log(self) -> str:
        """Return what the server's process has written."""
        path = self._root / "log"
        return path.read_text(errors="replace")[-4000:] if path.exists() else ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.start)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await asyncio.to_thread(self.stop)

    @property
    def _root(self) -> Path:
        if self.directory is None:
            raise RuntimeError("the server has not been started, or has been stopped")
        return self.directory

    @property
    def _data(self) -> Path:
        return self._root / "data"

    @property
    def _conninfo(self) -> str:
        return f"host={self.host} port={self.port} user={self.user} password={self.password}"

    def _make_directory(self) -> None:
        if self.directory is not None:
            raise RuntimeError("the server is started already")
        self.directory = Path(tempfile.mkdtemp(prefix="remediator-postgres-"))
        shutil.chown(self.directory, _runs_as() or os.geteuid())
        atexit.register(self.stop)

    def _configure(self, settings: Mapping[str, str]) -> None:
        with (self._data / "postgresql.conf").open("a") as conf:
            conf.writelines(f"{name} = '{value}'\n" for name, value in settings.items())
            if self.tls:
                conf.write("ssl = on\n")

    def _make_certificate(self) -> None:
        names = ("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1")
        files = ("-keyout", str(self._data / "server.key"), "-out", str(self._data / "server.crt"))
        self._run("openssl", "req", "-new", "-x509", "-days", "2", "-nodes", *names, *files)

    def _call(self, program: str, *arguments: str) -> None:
        self._run(find_binary(program), *arguments)

    def _run(self, *command: str) -> None:
        done = subprocess.run(command, user=_runs_as(), cwd="/", capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{command[0]} failed ({done.returncode}):\n{done.stderr}{done.stdout}")

    def _spawn(self) -> None:
        with (self._root / "log").open("ab") as log:
            command = (find_binary("postgres"), "-D", str(self._data), "-p", str(self.port))
            self._process = subprocess.Popen(command, user=_runs_as(), cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def _await_ready(self, wanted: int) -> bool:
        """Wait until pg_isready exits with `wanted` (0 takes sessions, 1 rejects them); False when the process ended or 30 s went by."""
        deadline = time.monotonic() + 30
        command = (find_binary("pg_isready"), "-q", "-h", self.host, "-p", str(self.port))
        while self.running and time.monotonic() < deadline:
            if subprocess.run(command, check=False).returncode == wanted:
                return True
            time.sleep(0.02)
        return False
