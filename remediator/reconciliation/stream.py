"""A JSON array of objects taken apart while it arrives, so that a list of many thousands never stands in memory whole. Pure."""

from __future__ import annotations

import codecs
import json
from typing import Any, Final

from remediator.errors import TemporaryError

MAX_ELEMENT: Final = 1024 * 1024
"""Most characters of one element; Alertmanager's alerts have one or two thousand."""
_BLANKS: Final = " \t\r\n"


class ArrayReader:
    """Takes the parts of one JSON array's text, and gives its objects as soon as each is complete.

    Every method raises `TemporaryError` when the text is not an array of objects: whoever sent it may do better the next time.
    """

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")()
        self._object = json.JSONDecoder()
        self._text = ""
        self._expected = "["
        """What may come next: `[`; `first`: an object or the end; `,`: a comma or the end; `{`: an object; empty: nothing."""

    def feed(self, part: bytes) -> list[Any]:
        """Take the next bytes; return the objects that they complete."""
        try:
            self._text += self._decode.decode(part)
        except UnicodeDecodeError as error:
            raise TemporaryError("a list that is not UTF-8") from error
        found: list[Any] = []
        at = self._skip(0)
        while at < len(self._text):
            after = self._next(at, found)
            if after is None:
                break
            at = self._skip(after)
        self._text = self._text[at:]
        if len(self._text) > MAX_ELEMENT:
            raise TemporaryError(f"a list with an element of more than {MAX_ELEMENT} characters")
        return found

    def close(self) -> None:
        """Say that nothing more comes."""
        if self._expected or self._text:
            raise TemporaryError("a list that ends in the middle")

    def _skip(self, at: int) -> int:
        while at < len(self._text) and self._text[at] in _BLANKS:
            at += 1
        return at

    def _next(self, at: int, found: list[Any]) -> int | None:
        """Take one sign or one object at `at`; return where it ends, None when there is more to come of it."""
        sign = self._text[at]
        match self._expected, sign:
            case "[", "[":
                self._expected = "first"
            case (("first" | ","), "]"):
                self._expected = ""
            case ",", ",":
                self._expected = "{"
            case (("first" | "{"), "{"):
                return self._take_object(at, found)
            case _:
                raise TemporaryError("something that is not a JSON array of objects")
        return at + 1

    def _take_object(self, at: int, found: list[Any]) -> int | None:
        try:
            element, after = self._object.raw_decode(self._text, at)
        except RecursionError as error:
            raise TemporaryError("a list with an element that is nested too deeply") from error
        except json.JSONDecodeError:
            return None  # incomplete, or broken: then `close` or the limit on one element tells
        except ValueError as error:  # an integer of thousands of digits
            raise TemporaryError("a list with a number that can't be read") from error
        found.append(element)
        self._expected = ","
        return after
