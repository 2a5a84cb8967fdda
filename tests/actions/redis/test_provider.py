"""What the module offers, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from actions.redis import PROVIDER
from tests.servers.redis import binary


def test_catalogue_is_complete() -> None:
    """Every name that the catalogue promises is there."""
    actions = {"flush_db", "flush_all", "delete_keys", "config_set", "sentinel_failover", "cluster_failover", "replica_failover"}
    checks = {"ping", "memory", "replication", "hit_rate", "slowlog", "queue_length", "config"}
    assert {action.name for action in PROVIDER.actions} == {f"redis.{name}" for name in actions}
    assert {check.name for check in PROVIDER.checks} == {f"redis.{name}" for name in checks}


@pytest.mark.parametrize("unit", [*PROVIDER.actions, *PROVIDER.checks], ids=lambda unit: unit.name)
def test_examples_fit_their_parameters(unit: type) -> None:
    """The example beside each action and check is valid, and each has a description."""
    assert unit.Params.model_validate(dict(unit.example)).connection  # type: ignore[attr-defined]
    assert (unit.__doc__ or "").strip()


def test_sdk_is_not_imported_with_the_module() -> None:
    """Starting the daemon must not import what no rule needs."""
    code = "import sys, actions.redis; sys.exit('redis' in sys.modules or 'redis.asyncio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_missing_server_program_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests fail loudly instead of being skipped."""
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(RuntimeError, match="apt-get install redis-server"):
        binary("redis-server")
