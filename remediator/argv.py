"""Commands as data: an argv with places for values from outside, and an operator's list of what is allowed. Pure.

A command is an argv, never a shell string. Constants come from the rule's author; a value from outside fills a whole
element and nothing less, is never an option, and never goes into a command whose elements an interpreter reads as code.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

REST = "**"
"""Last element of a pattern: any number of further elements, none included."""

MOST_ELEMENTS = 64
LONGEST_ARGV = 8192
"""Most characters of an argv in all."""
LONGEST_VALUE = 1000
"""Most characters of one value from outside."""

_PLACE = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_INTERPRETERS = frozenset(
    [
        *("sh", "ash", "bash", "dash", "ksh", "mksh", "zsh", "fish", "csh", "tcsh", "busybox", "toybox"),
        *("python", "perl", "ruby", "node", "nodejs", "php", "lua", "tclsh", "awk", "gawk", "mawk", "sed"),
        *("env", "xargs", "find", "nohup", "setsid", "timeout", "nice", "stdbuf", "su", "sudo", "doas", "runuser", "chroot", "ssh"),
        *("unshare", "nsenter", "psql", "mysql", "mongo", "mongosh", "redis-cli", "sqlite"),
    ]
)
"""Programs that read an argument as a program, or as a command to run: data given to them could become code."""
_VERSION = re.compile(r"[\d.]+$")


def places(argv: Sequence[str], args: Mapping[str, str]) -> dict[str, str]:
    """Return those of `args` that have a place in `argv`."""
    return {match[1]: args[match[1]] for element in argv if (match := _PLACE.fullmatch(element)) and match[1] in args}


def fill(argv: Sequence[str], args: Mapping[str, str], *, options: Collection[str] = ()) -> tuple[str, ...]:
    """Return `argv` with each element that is exactly `{name}` replaced by the value of `args`; braces elsewhere are literal.

    Values of the names in `options` may begin with `-`, for the rule's author says so; others only after an element `--`.
    Raises ValueError when a value has no place or could be taken for an option or for code, and for an argv that no system takes.

    >>> fill(["pkill", "-KILL", "-x", "{process}"], {"process": "ffmpeg"})
    ('pkill', '-KILL', '-x', 'ffmpeg')
    """
    # Of several places the first counts: what is safe after `--` is not yet so before it.
    backwards = reversed(list(enumerate(argv)))
    found = {match[1]: index for index, element in backwards if (match := _PLACE.fullmatch(element)) and match[1] in args}
    missing = sorted(args.keys() - found.keys())
    if missing:
        raise ValueError(f"args.{missing[0]} has no place: an element of argv must be exactly {{{missing[0]}}}")
    if args:
        _require_data_only(argv)
    for name, value in args.items():
        _require_plain(name, value, guarded=name in options or "--" in argv[: found[name]])
    filled = tuple(args[match[1]] if (match := _PLACE.fullmatch(element)) and match[1] in args else element for element in argv)
    _require_sound(filled)
    return filled


def _require_data_only(argv: Sequence[str]) -> None:
    """Raise ValueError for a command that would read data as code."""
    if _PLACE.fullmatch(argv[0]):
        raise ValueError("the program itself (the first element of argv) must be a constant")
    for element in argv:
        program = _VERSION.sub("", PurePosixPath(element).name)
        if program in _INTERPRETERS:
            raise ValueError(f"{element!r} in argv may run its arguments as code: it takes constants only, no args")


def _require_plain(name: str, value: str, *, guarded: bool) -> None:
    if not value or len(value) > LONGEST_VALUE or not value.isprintable():
        raise ValueError(f"args.{name} must be 1 to {LONGEST_VALUE} printable characters")
    if value.startswith("-") and not guarded:
        raise ValueError(f"args.{name} begins with '-' and would be taken for an option: put the element '--' before it")


def _require_sound(argv: Sequence[str]) -> None:
    if not argv or not argv[0].strip():
        raise ValueError("argv names no program")
    if len(argv) > MOST_ELEMENTS or sum(map(len, argv)) > LONGEST_ARGV:
        raise ValueError(f"argv has more than {MOST_ELEMENTS} elements or {LONGEST_ARGV} characters")
    if any("\0" in element for element in argv):
        raise ValueError("argv holds a NUL character")


def is_allowed(argv: Sequence[str], patterns: Sequence[Sequence[str]]) -> bool:
    """Tell whether one of `patterns` fits the whole argv, element by element: exact, or a glob (case counts).

    A glob never fits an element that begins with `-` unless it begins with `-` itself, so that `*` allows no options.
    A last element `**` fits any further elements, options included. No pattern allows nothing.

    >>> is_allowed(["truncate", "-s", "0", "/var/log/app.log"], [["truncate", "-s", "0", "/var/log/*"]])
    True
    """
    return any(_fits(argv, pattern) for pattern in patterns)


def _fits(argv: Sequence[str], pattern: Sequence[str]) -> bool:
    if pattern and pattern[-1] == REST:
        pattern = pattern[:-1]
        argv = argv[: len(pattern)]
    if not pattern or len(argv) != len(pattern):
        return False
    return all(_element_fits(element, one) for element, one in zip(argv, pattern, strict=True))


def _element_fits(element: str, pattern: str) -> bool:
    if element == pattern:
        return True
    hidden = element.startswith("-") and not pattern.startswith("-")
    climbs = ".." in PurePosixPath(element).parts  # /var/log/* must not let /var/log/../../etc pass
    return not hidden and not climbs and fnmatchcase(element, pattern)
