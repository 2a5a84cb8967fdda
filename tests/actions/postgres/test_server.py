"""The test server itself: it fails loudly where PostgreSQL is missing, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.servers import postgres
from tests.servers.postgres import PostgresServer, ServerMissingError


def test_a_missing_binary_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """No skip, no fall-back."""
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(Path, "glob", lambda *_: iter(()))
    with pytest.raises(ServerMissingError, match="apt-get install postgresql"):
        PostgresServer().start()


def test_a_server_that_does_not_start_shows_its_log() -> None:
    """A wrong setting is named."""
    server = PostgresServer(settings={"shared_buffers": "nonsense"})
    with pytest.raises(RuntimeError, match="shared_buffers"):
        server.start()
    server.stop()


def test_stop_removes_the_files_and_may_be_called_twice() -> None:
    """Nothing is left in the temporary directory."""
    server = PostgresServer()
    server.start()
    directory = server.directory
    assert directory is not None
    assert directory.exists()
    server.stop()
    server.stop()
    assert not directory.exists()
    assert not server.running


def test_versions_are_ordered_by_number() -> None:
    """9.6 is older than 15."""
    assert sorted(["9.6", "15", "14"], key=postgres._version) == ["9.6", "14", "15"]
