"""What a command printed, as it may be kept: text, of bounded length, without halves of words at the cut. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Output:
    """The first and last bytes of one stream, and how many bytes there were in all."""

    head: bytes = b""
    tail: bytes = b""
    total: int = 0

    @property
    def truncated(self) -> bool:
        """True when the middle was thrown away."""
        return self.total > len(self.head) + len(self.tail)

    @property
    def text(self) -> str:
        """What was kept, as text fit for a terminal.

        What is no UTF-8 and control characters become `�`. At a cut whole lines are dropped, so that no secret stands there
        by half, where it would not be recognised any more.
        """
        if not self.truncated:
            return _clean(self.head + self.tail)
        head, tail = _whole(self.head), _whole(self.tail[::-1])[::-1]
        return f"{_clean(head)}\n… {self.total - len(head) - len(tail)} bytes are left out …\n{_clean(tail)}"


def _whole(data: bytes) -> bytes:
    """Return `data` up to its last end of a line, else up to its last blank, else nothing.

    >>> _whole(b"password: s3cr")
    b'password:'
    """
    for blank in (b"\n", b" "):
        end = data.rfind(blank)
        if end >= 0:
            return data[:end]
    return b""


def _clean(data: bytes) -> str:
    return _CONTROL.sub("�", data.decode(errors="replace").replace("\r\n", "\n"))
