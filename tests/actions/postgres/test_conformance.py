"""Every action passes the contract against a real server, as a role with exactly the declared grants."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest

from actions.postgres.execute import Execute
from actions.postgres.restore_point import CreateRestorePoint
from actions.postgres.sessions import TerminatePid
from remediator.model import JSON, Plan, Receipt
from remediator.testing import ActionConformance
from tests.actions.postgres.bench import DAEMON, Bench
from tests.actions.postgres.impatient import ImpatientCancelQueries, ImpatientTerminateIdle, ImpatientTerminateQueries


class OnBench(ActionConformance):
    """What all have in common: the bench, the exact grants, and waiting for the server after a crash."""

    __test__ = False
    bench: Bench

    @pytest.fixture(autouse=True)
    async def _bench(self, bench: Bench) -> None:
        self.bench = bench

    async def prepare(self) -> tuple[Any, Mapping[str, Any]]:
        await self.bench.grant_exactly(self.action.permissions, "accounts")
        await self.bench.forget_statements()
        return self.bench.context(), {"connection": "main", **await self.fault()}

    async def fault(self) -> Mapping[str, Any]:
        """Bring the faulty state about; return the parameters."""
        raise NotImplementedError

    async def settle(self, plan: Plan, receipt: Receipt | None, ctx: Any) -> None:
        await self.bench.daemon_is_quiet()

    async def cleanup(self) -> None:
        await self.bench.daemon_is_quiet()
        await self.bench.close_sessions()


class OnSessions(OnBench):
    """Actions that signal sessions: their effect is there when the session has gone or its statement has ended."""

    __test__ = False

    async def state(self) -> JSON:
        return {"sessions": await self.bench.names(), "busy": await self.bench.names("state = 'active'")}

    async def settle(self, plan: Plan, receipt: Receipt | None, ctx: Any) -> None:
        await self.bench.daemon_is_quiet()
        if await self.bench.signals_sent():
            await self.effect()

    async def effect(self) -> None:
        """Wait for what the signals do."""
        raise NotImplementedError


class TestTerminateIdle(OnSessions):
    __test__ = True
    action = ImpatientTerminateIdle()

    async def fault(self) -> Mapping[str, Any]:
        await self.bench.idle("web-1", "web-2")
        await self.bench.busy("worker")
        await self.bench.in_transaction("open")
        return {}

    async def disturb(self) -> None:
        await self.bench.run("web-2", "SELECT pg_sleep(3600)")
        await self.bench.idle("web-3")

    async def effect(self) -> None:
        await self.bench.gone("web-1")
        if "web-2" not in await self.bench.names("state = 'active'"):
            await self.bench.gone("web-2")


class TestCancelQueries(OnSessions):
    __test__ = True
    action = ImpatientCancelQueries()

    async def fault(self) -> Mapping[str, Any]:
        await self.bench.busy("slow-1", "slow-2")
        await self.bench.idle("web-1")
        return {}

    async def disturb(self) -> None:
        self.bench.sessions["slow-1"].terminate()
        await self.bench.root.fetch("SELECT pg_terminate_backend($1, 5000)", await self.bench.pid("slow-1"))
        await self.bench.busy("slow-3")

    async def effect(self) -> None:
        await self.bench.wait_until(["slow-1", "slow-2"], "state = 'idle' AND $2::interval IS NOT NULL", timedelta())


class TestTerminateQueries(OnSessions):
    __test__ = True
    action = ImpatientTerminateQueries()

    async def fault(self) -> Mapping[str, Any]:
        await self.bench.busy("slow-1", "slow-2")
        await self.bench.idle("web-1")
        return {}

    async def disturb(self) -> None:
        await self.bench.root.fetch("SELECT pg_cancel_backend($1)", await self.bench.pid("slow-1"))
        await self.bench.wait_until(["slow-1"], "state = 'idle' AND $2::interval IS NOT NULL", timedelta())
        await self.bench.busy("slow-3")

    async def effect(self) -> None:
        await self.bench.gone("slow-1", "slow-2")


class TestTerminatePid(OnSessions):
    __test__ = True
    action = TerminatePid()

    async def fault(self) -> Mapping[str, Any]:
        await self.bench.busy("slow-1")
        await self.bench.idle("web-1")
        return {"pid": await self.bench.pid("slow-1")}

    async def disturb(self) -> None:
        await self.bench.root.fetch("SELECT pg_terminate_backend($1, 5000)", await self.bench.pid("slow-1"))
        await self.bench.gone("slow-1")

    async def effect(self) -> None:
        await self.bench.gone("slow-1")


class TestExecute(OnBench):
    __test__ = True
    action = Execute()

    async def fault(self) -> Mapping[str, Any]:
        await self.bench.root.execute("TRUNCATE accounts CASCADE")
        await self.bench.root.execute("INSERT INTO accounts SELECT i, 'owner ' || i, '203.0.113.7' FROM generate_series(1, 3) AS i")
        await self.bench.root.execute("INSERT INTO accounts VALUES (4, 'somebody else', '198.51.100.1')")
        return {
            "sql": "UPDATE accounts SET locked = true WHERE last_ip = $1::text::inet AND NOT locked",
            "args": ["203.0.113.7"],
            "max_rows": 5,
        }

    async def state(self) -> JSON:
        return [list(row) for row in await self.bench.root.fetch("SELECT id, locked FROM accounts ORDER BY id")]

    async def disturb(self) -> None:
        await self.bench.root.execute("INSERT INTO accounts SELECT i, 'more', '203.0.113.7' FROM generate_series(10, 20) AS i")


class TestCreateRestorePoint(OnBench):
    __test__ = True
    action = CreateRestorePoint()
    start = ""

    async def fault(self) -> Mapping[str, Any]:
        self.start = self.start or await self.bench.root.fetchval("SELECT pg_current_wal_insert_lsn()::text")
        return {"label": "before-cleanup"}

    async def state(self) -> JSON:
        await self.bench.root.execute("SELECT pg_logical_emit_message(true, 'test', 'flush')")
        query = """
            SELECT count(*)::int FROM pg_get_wal_records_info($1::text::pg_lsn, pg_current_wal_flush_lsn())
            WHERE record_type = 'RESTORE_POINT'"""
        return {"restore points": await self.bench.root.fetchval(query, self.start)}

    async def disturb(self) -> None:
        await self.bench.root.execute(f"REVOKE EXECUTE ON FUNCTION pg_create_restore_point(text) FROM {DAEMON}")
