"""What is told of a server's error: its meaning, never what was sent to it."""

from __future__ import annotations

import redis

from actions.redis.session import translate


def test_arguments_that_a_server_repeats_are_not_told() -> None:
    """A proxy without AUTH repeats the beginning of a long password, which no scrubber could know for one."""
    token = "A1b2" * 100
    said = f"unknown command 'AUTH', with args beginning with: 'default' '{token[:128]}' "
    told = str(translate(redis.ResponseError(said), "Redis 'cache' (h:1)", "default"))
    assert "unknown command 'AUTH'" in told
    assert token[:8] not in told
