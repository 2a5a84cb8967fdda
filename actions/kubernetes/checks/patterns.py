"""Regular expressions over text from outside, in time linear in it. Pure."""

from __future__ import annotations

from collections.abc import Callable

from pydantic_core import SchemaError, SchemaValidator
from pydantic_core.core_schema import str_schema

LONGEST_PATTERN = 500


def searcher(pattern: str) -> Callable[[str], bool]:
    """Return a function that tells whether `pattern` matches anywhere in a text. Raises ValueError for what is no pattern.

    The engine is Rust's `regex`, which never backtracks (so it has no look-around and no back-references): neither a pattern nor
    a line made to hurt can stall the daemon.

    >>> searcher("(?i)out of memory|OOM")("fatal: Out of memory")
    True
    """
    if len(pattern) > LONGEST_PATTERN:
        raise ValueError(f"a pattern has at most {LONGEST_PATTERN} characters, this has {len(pattern)}")
    try:
        validator = SchemaValidator(str_schema(pattern=pattern, regex_engine="rust-regex"))
    except SchemaError as error:
        cause = str(error).partition("SchemaError: ")[2] or str(error)
        raise ValueError(f"not a pattern (RE2's and Rust's syntax): {' '.join(cause.split())}") from error
    return validator.isinstance_python
