"""A log that nobody reads: nobody waits for it, what it took is whole, and what was left out is counted."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from remediator import logstream
from remediator.logstream import PatientStream, patient


def _gap(lost: int) -> str:
    return f"left out: {lost}\n"


@pytest.fixture
def pipe() -> Iterator[tuple[int, TextIO]]:
    """Give a pipe's end to read, without waiting, and its other end."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    with os.fdopen(writer, "w") as end:
        yield reader, end
    os.close(reader)


def _stream(end: TextIO) -> PatientStream:
    stream = patient(end, gap=_gap)
    assert isinstance(stream, PatientStream)
    return stream


def _read(reader: int) -> str:
    found = b""
    while True:
        try:
            found += os.read(reader, 1 << 20)
        except BlockingIOError:
            return found.decode()


def test_full_pipe_is_not_waited_for(pipe: tuple[int, TextIO]) -> None:
    """Lines that a full pipe does not take wait their turn, whole and in order."""
    reader, end = pipe
    stream = _stream(end)
    lines = [f"{number} {'x' * 10_000}\n" for number in range(100)]
    for line in lines:
        stream.write(line)
    found = _read(reader)
    assert 0 < len(found) < len("".join(lines)), "the pipe was full"
    while more := (stream.flush(), _read(reader))[1]:
        found += more
    assert found == "".join(lines)


def test_what_is_left_out_is_counted(pipe: tuple[int, TextIO], monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond what is kept lines are left out, and one says how many, once it can be written."""
    monkeypatch.setattr(logstream, "MOST", 100_000)
    reader, end = pipe
    stream = _stream(end)
    lines = [f"{number:04} {'x' * 1_000}\n" for number in range(1_000)]
    for line in lines:
        stream.write(line)
    found = _read(reader)
    while more := (stream.flush(), _read(reader))[1]:
        found += more
    kept = found.splitlines(keepends=True)
    assert kept[:-1] == lines[: len(kept) - 1]
    assert kept[-1] == _gap(len(lines) - len(kept) + 1)


async def test_rest_is_written_without_a_further_line(pipe: tuple[int, TextIO]) -> None:
    """The last line before a quiet time does not wait for the next one."""
    reader, end = pipe
    text = "x" * 200_000 + "\n"
    _stream(end).write(text)
    found = ""
    async with asyncio.timeout(10):
        while found != text:
            found += _read(reader)
            await asyncio.sleep(0)


def test_pipe_whose_reader_is_gone_is_an_error() -> None:
    """Whoever logs is told, as by any stream; nothing is heaped up."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone:
        stream = _stream(gone)
        for _ in range(3):
            with pytest.raises(BrokenPipeError):
                stream.write("x\n")
        stream.flush()


def test_files_are_written_as_ever(tmp_path: Path) -> None:
    """A file never makes anybody wait for a reader, and a stream without a descriptor is none of the system's."""
    with (tmp_path / "log").open("w") as file:
        assert patient(file, gap=_gap) is file
    text = io.StringIO()
    assert patient(text, gap=_gap) is text
