"""The HTTP client that all systems share."""

from __future__ import annotations

import errno
import socket
import ssl
from datetime import UTC, datetime, timedelta

import pytest

from remediator.errors import OutcomeUnknown, TemporaryError
from remediator.httpclient import HttpError, failure_of_socket, parse_retry_after

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "delay"),
    [
        ("7", timedelta(seconds=7)),
        (" 7 ", timedelta(seconds=7)),
        ("999999999", timedelta(hours=1)),
        ("Thu, 01 Jan 2026 12:00:30 GMT", timedelta(seconds=30)),
        ("Thu, 01 Jan 2026 11:00:00 GMT", timedelta()),
        ("Thu, 01 Jan 2099 11:00:00 GMT", timedelta(hours=1)),
        ("", None),
        ("-1", None),
        ("soon", None),
        ("99999999999999999999", None),
        ("Thu, 01 Jan 99999999999999999999 12:00:00 GMT", None),
        ("Thu, 01 Jan 2026 99999999999999999999:00:00 GMT", None),
        ("Thu, 01 Jan 2026 12:00:00 +99999999999999", None),
        ("٣", None),
    ],
)
def test_retry_after_is_bounded(text: str, delay: timedelta | None) -> None:
    """Seconds or a date, never negative, never more than an hour; nonsense asks for nothing."""
    assert parse_retry_after(text, NOW) == delay


@pytest.mark.parametrize(
    ("error", "reason", "unreachable"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, ""), "refused", True),
        (ConnectionResetError(), "reset", True),
        (TimeoutError(), "timeout", True),
        (OSError(errno.ETIMEDOUT, ""), "timeout", True),
        (OSError(errno.EHOSTUNREACH, ""), "host_unreachable", True),
        (OSError(errno.ENETUNREACH, ""), "network", False),
        (OSError(errno.EMFILE, ""), "network", False),
        (OSError(errno.EADDRNOTAVAIL, ""), "network", False),
        (OSError("Multiple exceptions"), "network", False),
        (socket.gaierror(socket.EAI_AGAIN, ""), "dns", False),
        (ssl.SSLError(1, ""), "tls", False),
    ],
)
def test_s01_reasons_tell_the_other_side_from_ours(error: OSError, reason: str, unreachable: bool) -> None:
    """What the other side did is a fact; DNS, TLS and this host's network are faults."""
    failure = failure_of_socket(error, "it")
    assert (failure.reason, failure.unreachable) == (reason, unreachable)


def test_s17_what_was_sent_is_unknown_what_was_not_is_temporary() -> None:
    """An action's error says whether the request may have arrived."""
    assert isinstance(HttpError("x", reason="timeout", sent=True).as_action(), OutcomeUnknown)
    assert isinstance(HttpError("x", reason="timeout", sent=False).as_action(), TemporaryError)
