"""YAML files as trees that remember where everything stands. Pure: takes bytes, gives nodes and problems.

Stricter than YAML, for files that decide what happens to production: no anchors, aliases, tags or merge keys, no duplicate keys, one
document a file, YAML 1.2 scalars (`no`, `on` and `yes` are text, `010` is ten), and limits on size, depth and nodes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import yaml

from remediator.errors import Problem
from remediator.model import JSON

MAX_BYTES = 1_048_576
MAX_DEPTH = 32
MAX_NODES = 50_000

_INT = re.compile(r"[-+]?\d{1,18}")
_HEX = re.compile(r"0x[0-9a-fA-F]{1,15}")
_OCTAL = re.compile(r"0o[0-7]{1,20}")
_FLOAT = re.compile(r"[-+]?(\.\d+([eE][-+]?\d+)?|\d+\.\d*([eE][-+]?\d+)?|\d+[eE][-+]?\d+)")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_NESTED = (dict, list)
_WORDS: Mapping[str, bool | None] = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys(("null", "Null", "NULL", "~", ""), None),
}


class Place(NamedTuple):
    """Where something stands: lines and columns count from 1. A tuple, since each value of each file has one."""

    file: str
    line: int
    column: int

    def problem(self, message: str) -> Problem:
        """Make the problem that stands here."""
        return Problem(self.file, self.line, self.column, message)


@dataclass(frozen=True)
class Node:
    """One value of a file: a scalar, a list of nodes, or a dict from text to nodes; and where it stands."""

    value: Any
    place: Place
    keys: Mapping[str, Place] = field(default_factory=dict)
    """Where the keys of a dict stand."""
    text_at: Place | None = None
    """Where the first character of a text stands, when its characters stand in the file as they are; None when they don't."""

    @property
    def kind(self) -> str:
        """The kind of value, in YAML's words."""
        names = {dict: "mapping", list: "list", str: "text", bool: "boolean", type(None): "nothing"}
        return names.get(type(self.value), "number")

    def plain(self) -> JSON:
        """Return the value without places."""
        value = self.value
        if isinstance(value, dict):
            return {key: node.plain() if isinstance(node.value, _NESTED) else node.value for key, node in value.items()}
        if isinstance(value, list):
            return [node.plain() if isinstance(node.value, _NESTED) else node.value for node in value]
        return value

    def get(self, key: str) -> Node | None:
        """Return the node under `key`; None when there is none or this is no mapping."""
        found: Node | None = self.value.get(key) if isinstance(self.value, dict) else None
        return found

    def items(self) -> Iterator[tuple[str, Node]]:
        """Yield the entries of a mapping, nothing for anything else."""
        yield from self.value.items() if isinstance(self.value, dict) else ()

    def entries(self) -> Sequence[Node]:
        """Return the items of a list, nothing for anything else."""
        return self.value if isinstance(self.value, list) else ()

    def find(self, path: Sequence[str | int]) -> Node:
        """Return the node at `path`, or the deepest one on the way to it."""
        node = self
        for part in path:
            below = node.value.get(part) if isinstance(node.value, dict) else None
            if isinstance(node.value, list) and isinstance(part, int) and part < len(node.value):
                below = node.value[part]
            node = node if below is None else below
        return node

    def inside(self, line: int, column: int) -> Place:
        """Return where a place inside this text (from 1) stands in the file, as exactly as can be told."""
        if self.text_at is None:
            return self.place
        start = self.text_at
        return Place(start.file, start.line + line - 1, column + (start.column - 1 if line == 1 else 0))


def parse(file: str, data: bytes) -> tuple[Node | None, list[Problem]]:
    """Parse one file. Return its tree and what is wrong with it; without a tree when it can't be read at all."""
    if len(data) > MAX_BYTES:
        return None, [Problem(file, 1, 1, f"the file has {len(data)} bytes; at most {MAX_BYTES} are read")]
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        column = error.start - (before.rfind(b"\n") + 1) + 1
        return None, [
            Problem(file, before.count(b"\n") + 1, column, f"byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8")
        ]
    builder = _Builder(file, text)
    try:
        root = builder.build()
    except _Stop as stop:
        return None, [*builder.problems, stop.problem]
    except yaml.MarkedYAMLError as error:
        return None, [*builder.problems, _worded(file, text, error)]
    except yaml.reader.ReaderError as error:
        place = _position(file, text, error.position)
        return None, [place.problem(f"character {chr(error.character)!a} can't stand in a file; remove it")]
    if root is None and not builder.problems:
        builder.problems.append(Problem(file, 1, 1, "the file is empty"))
    return root, builder.problems


def tree(value: JSON, place: Place) -> Node:
    """Make a tree of plain values that all stand at one place, for what comes from elsewhere than a file."""
    if isinstance(value, Mapping):
        return Node({str(key): tree(item, place) for key, item in value.items()}, place, {str(key): place for key in value})
    if isinstance(value, list | tuple):
        return Node([tree(item, place) for item in value], place)
    return Node(value, place)


class _Stop(Exception):
    """Reading goes no further."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


@dataclass
class _Open:
    """A list or mapping being read: its node, and the key that waits for its value."""

    node: Node
    keys: dict[str, Place]
    key: str | None = None
    waiting: bool = False
    """True when a key was read and its value is next."""


class _Builder:
    """Builds the tree from the parser's events, without recursion."""

    def __init__(self, file: str, text: str) -> None:
        self.file = file
        self.text = text
        self.problems: list[Problem] = []
        self.stack: list[_Open] = []
        self.root: Node | None = None
        self.count = 0

    def build(self) -> Node | None:
        """Read all events. Raises `_Stop`, or PyYAML's errors."""
        for event in yaml.parse(self.text, Loader=yaml.CSafeLoader):
            if isinstance(event, yaml.NodeEvent):
                self._node(event)
            elif isinstance(event, yaml.CollectionEndEvent):
                self.stack.pop()
            elif isinstance(event, yaml.DocumentStartEvent) and self.root is not None:
                raise _Stop(self._place(event).problem("a second document; write one document a file"))
        return self.root

    def _place(self, event: yaml.Event) -> Place:
        mark = event.start_mark
        return Place(self.file, mark.line + 1, mark.column + 1) if mark is not None else Place(self.file, 1, 1)

    def _node(self, event: yaml.NodeEvent) -> None:
        place = self._place(event)
        self.count += 1
        if self.count > MAX_NODES:
            raise _Stop(place.problem(f"more than {MAX_NODES} values in one file"))
        if isinstance(event, yaml.AliasEvent):
            raise _Stop(place.problem(f"alias *{event.anchor}: anchors and aliases are not allowed; write the value out"))
        if event.anchor is not None:
            raise _Stop(place.problem(f"anchor &{event.anchor}: anchors and aliases are not allowed; write the value out"))
        if (tag := getattr(event, "tag", None)) is not None:
            raise _Stop(place.problem(f"tag {tag}: tags are not allowed; remove it"))
        if isinstance(event, yaml.ScalarEvent):
            self._scalar(event, place)
            return
        keys: dict[str, Place] = {}
        node = Node({} if isinstance(event, yaml.MappingStartEvent) else [], place, keys)
        if self._expects_key():
            raise _Stop(place.problem("a key must be text, not a list or a mapping"))
        self._add(node)
        if len(self.stack) >= MAX_DEPTH:
            raise _Stop(place.problem(f"nested more than {MAX_DEPTH} levels deep"))
        self.stack.append(_Open(node, keys))

    def _expects_key(self) -> bool:
        return bool(self.stack) and isinstance(self.stack[-1].node.value, dict) and not self.stack[-1].waiting

    def _scalar(self, event: yaml.ScalarEvent, place: Place) -> None:
        if self._expects_key():
            self._key(event.value, place)
            return
        value: Any = event.value
        if "\0" in value:
            raise _Stop(place.problem("a NUL character can't stand in a text"))
        if event.style in (None, ""):
            value = resolve(event.value)
            if _NOT_FINITE.fullmatch(event.value) or (isinstance(value, float) and not math.isfinite(value)):
                self.problems.append(place.problem(f"{event.value} is not a number that can be used"))
        self._add(Node(value, place, text_at=self._text_at(event, place)))

    def _text_at(self, event: yaml.ScalarEvent, place: Place) -> Place | None:
        """Return where a text's first character stands, if its characters follow there as they are."""
        start, end = event.start_mark, event.end_mark
        quotes = 1 if event.style in ("'", '"') else 0
        if (
            start is None
            or end is None
            or event.style in ("|", ">")
            or start.line != end.line
            or end.column - start.column != len(event.value) + 2 * quotes
        ):
            return None
        return Place(place.file, place.line, place.column + quotes)

    def _key(self, key: str, place: Place) -> None:
        top = self.stack[-1]
        if key == "<<":
            raise _Stop(place.problem("merge key <<: anchors and aliases are not allowed; write the values out"))
        if key in top.keys:
            self.problems.append(place.problem(f"duplicate key {key!r}; it stands in line {top.keys[key].line} already"))
        else:
            top.keys[key] = place
        top.key, top.waiting = key, True

    def _add(self, node: Node) -> None:
        if not self.stack:
            self.root = node
            return
        top = self.stack[-1]
        if isinstance(top.node.value, list):
            top.node.value.append(node)
        else:
            top.node.value[top.key] = node
            top.waiting = False


def resolve(text: str) -> JSON:
    """Return what a plain scalar means by YAML 1.2's core schema.

    >>> resolve("no"), resolve("010"), resolve("1.5"), resolve("true")
    ('no', 10, 1.5, True)
    """
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    if _HEX.fullmatch(text) or _OCTAL.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


def _worded(file: str, text: str, error: yaml.MarkedYAMLError) -> Problem:
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)
    message = (error.problem or "it is not YAML").removesuffix(".")
    lines = text.split("\n")
    found = lines[line - 1][column - 1 : column] if line <= len(lines) else ""
    if "tab" in message or found == "\t":
        return Problem(file, line, column, "a tab; indent with spaces")
    if "cannot start any token" in message:
        message = f"{found!r} can't begin a value; put the value in quotes"
    elif "mapping values are not allowed" in message:
        message = "unexpected ': '; put a value that holds ': ' in quotes, or check the indentation"
    elif error.context:
        message = f"{message} {error.context}"
    return Problem(file, line, column, message)


def _position(file: str, text: str, position: int) -> Place:
    before = text[: max(position, 0)]
    return Place(file, before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1)
