"""A real PgBouncer in transaction mode in front of a `PostgresServer`."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.servers.ports import eventually, free_port
from tests.servers.postgres import OS_USER, PostgresServer
from tests.servers.process import Process, find_binary


class PgBouncer:
    """Listens on `port`; few sessions at the server serve any number of clients, a transaction at a time. Use with `async with`."""

    def __init__(self, server: PostgresServer, *, sessions: int = 5) -> None:
        self.server = server
        self.sessions = sessions
        self.port = 0

    async def __aenter__(self) -> Self:
        self.port = free_port()
        self._directory = Path(tempfile.mkdtemp(prefix="remediator-pgbouncer-"))
        self._directory.chmod(0o755)
        users = self._directory / "users.txt"
        users.write_text(f'"{self.server.user}" "{self.server.password}"\n')
        config = self._directory / "pgbouncer.ini"
        config.write_text(
            f"[databases]\n* = host={self.server.host} port={self.server.port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
            f"listen_port = {self.port}\nunix_socket_dir =\nauth_type = scram-sha-256\nauth_file = {users}\n"
            f"pool_mode = transaction\ndefault_pool_size = {self.sessions}\nmax_client_conn = 200\n"
        )
        # It refuses to run as root.
        user = ["runuser", "-u", OS_USER, "--"] if os.geteuid() == 0 else []
        self._process = Process([*user, find_binary("pgbouncer", "pgbouncer"), str(config)], self._directory / "log")
        await self._process.wait_until(self._answers, what="PgBouncer")
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._process.stop()
        await eventually(self._gone, what="PgBouncer has ended", within=10)
        shutil.rmtree(self._directory, ignore_errors=True)

    async def _gone(self) -> bool:
        return self._process.ended

    async def _answers(self) -> bool:
        import asyncpg

        url = f"postgresql://{self.server.user}:{self.server.password}@127.0.0.1:{self.port}/{self.server.database}"
        try:
            connection = await asyncpg.connect(url, statement_cache_size=0, timeout=1)
        except (OSError, asyncpg.PostgresError, TimeoutError):
            return False
        await connection.close()
        return True
