"""Any sequence of operations leaves the PostgreSQL store as the same small model says."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import HealthCheck, settings

from remediator.store.protocol import Store
from tests.servers.postgres import PostgresServer
from tests.store.pg import PostgresWorld
from tests.store.test_stateful import StoreMachine

_SERVER = PostgresServer()


class PostgresMachine(StoreMachine):
    """Drives a PostgreSQL store; each example has tables of its own on one server, which ends with the process."""

    def prepare(self) -> None:
        if _SERVER.directory is None:
            _SERVER.start()
        self.world = PostgresWorld(_SERVER)
        self.loop.run_until_complete(self.world.prepare())

    def make(self) -> Store:
        return self.world.make()

    def forward(self, span: timedelta) -> None:
        super().forward(span)
        self.loop.run_until_complete(self.world.move(span))

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.loop.run_until_complete(self.world.admin.close())
        super().teardown()


TestStore = PostgresMachine.TestCase
TestStore.settings = settings(max_examples=12, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))
