"""Read YAML strictly, keeping the place of everything: YAML 1.2's plain values, no duplicate keys, no tags, bounded size.

YAML 1.1's surprises (`no` is false, `010` is eight, `1:30` is ninety) don't exist here: such words are texts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from remediator.errors import InvalidFiles, Problem
from remediator.model import JSON

Loc = tuple[str | int, ...]
"""A place in a tree: keys and indexes from the top."""
Place = tuple[int, int]
"""Line and column, from 1."""

MOST_BYTES = 1024 * 1024
MOST_NODES = 100_000
DEEPEST = 50

_INT = re.compile(r"[-+]?[0-9]+")
_BASED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS = {
    "": None,
    "~": None,
    "null": None,
    "Null": None,
    "NULL": None,
    "true": True,
    "True": True,
    "TRUE": True,
    "false": False,
    "False": False,
    "FALSE": False,
}
_STRING = "tag:yaml.org,2002:str"
_RESOLVER: Any = yaml.resolver.Resolver()
"""Knows the tag that a plain word gets by itself; any other was written out."""


@dataclass
class Document:
    """A tree of plain values with the places of its keys and values."""

    name: str
    data: JSON = None
    keys: dict[Loc, Place] = field(default_factory=dict)
    values: dict[Loc, Place] = field(default_factory=dict)

    def problem(self, loc: Sequence[str | int], message: str, *, key: bool = False) -> Problem:
        """Make a problem at `loc`, or at the nearest place above it that stands in the file; `key` points at the key itself."""
        at = tuple(loc)
        if key and at in self.keys:
            return Problem(self.name, *self.keys[at], message)
        while at and at not in self.values:
            at = at[:-1]
        return Problem(self.name, *self.values.get(at, (1, 1)), message)


def parse_document(text: str, name: str) -> Document:
    """Parse one YAML document; an empty one is an empty mapping. Raises `InvalidFiles` with every fault."""
    if len(text) > MOST_BYTES:
        raise InvalidFiles([Problem(name, 1, 1, f"larger than {MOST_BYTES // 1024} KiB; split it")])
    try:
        node = yaml.compose(text, Loader=_loader())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)
        raise InvalidFiles([Problem(name, *place, f"not YAML: {error.problem or error.context}")]) from None
    except (yaml.YAMLError, RecursionError) as error:
        raise InvalidFiles([Problem(name, 1, 1, f"not YAML: {' '.join(str(error).split())}")]) from None
    document = Document(name)
    builder = _Builder(document)
    document.data = builder.build(node, ()) if node is not None else {}
    if builder.problems:
        raise InvalidFiles(builder.problems)
    return document


def _loader() -> Any:
    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Builder:
    """Turns nodes into plain values, noting places and faults."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._nodes = 0
        self.problems: list[Problem] = []

    def build(self, node: yaml.Node, loc: Loc) -> JSON:
        """Return the value of `node`, which stands at `loc`."""
        self._nodes += 1
        self._document.values[loc] = _place(node)
        if self._nodes > MOST_NODES or len(loc) > DEEPEST:
            if self._nodes <= MOST_NODES + 1:
                self._fault(node, f"more than {MOST_NODES} values or {DEEPEST} levels; anchors count each time they are used")
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, loc)
        if isinstance(node, yaml.SequenceNode):
            self._plain_tag(node, "tag:yaml.org,2002:seq")
            return [self.build(item, (*loc, index)) for index, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        return self._scalar(node)

    def _mapping(self, node: yaml.MappingNode, loc: Loc) -> dict[str, JSON]:
        self._plain_tag(node, "tag:yaml.org,2002:map")
        found: dict[str, JSON] = {}
        for key_node, value_node in node.value:
            key = self._scalar(key_node) if isinstance(key_node, yaml.ScalarNode) else None
            if key_node.value == "<<" and not key_node.style:
                self._fault(key_node, "merge keys (<<) are not supported; write the fields out")
            elif not isinstance(key, str):
                self._fault(key_node, f"the key {key_node.value if key is not None else ''!r} is not a text; put it in quotes")
            elif key in found:
                line, _ = self._document.keys[(*loc, key)]
                self._fault(key_node, f"the key {key!r} stands here a second time; it is already in line {line}")
            else:
                self._document.keys[(*loc, key)] = _place(key_node)
                found[key] = self.build(value_node, (*loc, key))
        return found

    def _scalar(self, node: yaml.ScalarNode) -> JSON:
        text: str = node.value
        if node.style:  # quoted or a block: a text, always
            self._plain_tag(node, _STRING)
            return text
        self._plain_tag(node, _RESOLVER.resolve(yaml.ScalarNode, text, (True, False)))
        return plain(text)

    def _plain_tag(self, node: yaml.Node, tag: str) -> None:
        if node.tag not in (tag, "!"):
            self._fault(node, f"the tag {node.tag!r} is not supported; write a plain value")

    def _fault(self, node: yaml.Node, message: str) -> None:
        self.problems.append(Problem(self._document.name, *_place(node), message))


def _place(node: yaml.Node) -> Place:
    return node.start_mark.line + 1, node.start_mark.column + 1


def plain(text: str) -> JSON:
    """Return what an unquoted YAML 1.2 word means.

    >>> [plain(word) for word in ("true", "no", "010", "0x1F", "1e3", "~", "1:30")]
    [True, 'no', 10, 31, 1000.0, None, '1:30']
    """
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text) if len(text) <= 30 else text
    if _BASED.fullmatch(text):
        return int(text, 0)
    return float(text) if _FLOAT.fullmatch(text) else text
