"""Files as positioned trees: what YAML may say here, and where a fault is said to stand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remediator.rules.parse import MAX_BYTES, MAX_DEPTH, MAX_NODES, Place, parse, resolve, tree


def faults(data: str | bytes) -> list[str]:
    """Return what is wrong with a file as `line:column: message`."""
    _, problems = parse("f", data.encode() if isinstance(data, str) else data)
    return [str(problem).removeprefix("f:") for problem in problems]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("off", "off"),
        ("n", "n"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("010", 10),
        ("0o17", 15),
        ("0x1f", 31),
        ("1_000", "1_000"),
        ("-3", -3),
        ("+3", 3),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("2025-03-31", "2025-03-31"),
        ("12:30:45", "12:30:45"),
        ("10m", "10m"),
        ("1.2.3", "1.2.3"),
        ("=", "="),
        ("1" * 30, "1" * 30),
    ],
)
def test_scalars_are_yaml_1_2(text: str, value: object) -> None:
    """`no` is text and `010` is ten: YAML 1.1's surprises are not for production."""
    found = resolve(text)
    assert found == value
    assert type(found) is type(value)


def test_quoted_scalars_are_text() -> None:
    """Quotes make text of anything."""
    node, problems = parse("f", b"a: \"1\"\nb: 'true'\nc: |\n  2\n")
    assert problems == []
    assert node is not None
    assert node.plain() == {"a": "1", "b": "true", "c": "2\n"}


def test_places() -> None:
    """Keys and values know where they stand, and texts where their characters stand."""
    node, _ = parse("f", b"rules:\n  - name: a\n    when: 'x > 1'\n    text: |\n      long\n")
    assert node is not None
    rule = node.find(["rules", 0])
    assert rule.keys["when"] == Place("f", 3, 5)
    assert rule.find(["when"]).place == Place("f", 3, 11)
    assert rule.find(["when"]).inside(1, 3) == Place("f", 3, 14)
    assert rule.find(["name"]).inside(1, 1) == Place("f", 2, 11)
    assert rule.find(["text"]).inside(1, 3) == rule.find(["text"]).place
    assert node.find(["rules", 0, "nothing", 5]) == rule


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("", ["1:1: the file is empty"]),
        ("# only a comment\n", ["1:1: the file is empty"]),
        ("a: 1\n\tb: 2\n", ["2:1: a tab; indent with spaces"]),
        ("a:\n\t- b\n", ["2:1: a tab; indent with spaces"]),
        (b"a: 1\nb: \xff\n", ["2:4: byte 0xff is not UTF-8; save the file as UTF-8"]),
        ("a: ä\n".encode("utf-16"), ["1:1: byte 0xff is not UTF-8; save the file as UTF-8"]),
        ("a: 1\nb: x\0y\n", ["2:5: character '\\x00' can't stand in a file; remove it"]),
        ('a: "x\\0y"\n', ["1:4: a NUL character can't stand in a text"]),
        ("a: &x 1\n", ["1:4: anchor &x: anchors and aliases are not allowed; write the value out"]),
        ("a: *x\n", ["1:4: alias *x: anchors and aliases are not allowed; write the value out"]),
        ("a: 1\n<<: {b: 2}\n", ["2:1: merge key <<: anchors and aliases are not allowed; write the values out"]),
        ("a: !!python/name:os.system x\n", ["1:4: tag tag:yaml.org,2002:python/name:os.system: tags are not allowed; remove it"]),
        ("a: !!str 1\n", ["1:4: tag tag:yaml.org,2002:str: tags are not allowed; remove it"]),
        ("a: 1\nb: 2\na: 3\n", ["3:1: duplicate key 'a'; it stands in line 1 already"]),
        (
            "a: {b: 1, b: 2}\nc: {d: 1, d: 1}\n",
            ["1:11: duplicate key 'b'; it stands in line 1 already", "2:11: duplicate key 'd'; it stands in line 2 already"],
        ),
        ("a: 1\n---\nb: 2\n", ["2:1: a second document; write one document a file"]),
        ("? [a]\n: 1\n", ["1:3: a key must be text, not a list or a mapping"]),
        ("a: 1e400\n", ["1:4: 1e400 is not a number that can be used"]),
        ("a: .nan\nb: -.inf\n", ["1:4: .nan is not a number that can be used", "2:4: -.inf is not a number that can be used"]),
        ("a: b: c\n", ["1:5: unexpected ': '; put a value that holds ': ' in quotes, or check the indentation"]),
        ("a: @b\n", ["1:4: '@' can't begin a value; put the value in quotes"]),
        ("a: [1, 2\n", ["2:1: did not find expected ',' or ']' while parsing a flow sequence"]),
        ("a:\n  - b\n -c\n", ["3:2: did not find expected key while parsing a block mapping"]),
    ],
)
def test_files_that_are_refused(data: str | bytes, expected: list[str]) -> None:
    """Tabs, other encodings, anchors, tags, duplicates, broken syntax: each has its place and says what to do."""
    assert faults(data) == expected


def test_yaml_bomb_is_refused_at_its_first_anchor() -> None:
    """The billion laughs never expand: the first anchor ends the reading."""
    laughs = "a: &a [x, x, x, x]\n" + "".join(f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(9))
    assert faults(laughs) == ["1:4: anchor &a: anchors and aliases are not allowed; write the value out"]


def test_limits() -> None:
    """Depth, number of values and size are limited, and each limit says so."""
    assert faults("[" * MAX_DEPTH + "]" * MAX_DEPTH) == []
    assert faults("[" * 100_000) == [f"1:{MAX_DEPTH + 1}: nested more than {MAX_DEPTH} levels deep"]
    assert faults("- a\n" * (MAX_NODES - 1)) == []
    assert faults("- a\n" * MAX_NODES) == [f"{MAX_NODES}:3: more than {MAX_NODES} values in one file"]
    assert faults(b"#" * (MAX_BYTES + 1)) == [f"1:1: the file has {MAX_BYTES + 1} bytes; at most {MAX_BYTES} are read"]


def test_byte_order_mark_is_passed_over() -> None:
    """An editor's mark at the beginning of UTF-8 does no harm."""
    node, problems = parse("f", b"\xef\xbb\xbfa: 1\n")
    assert problems == []
    assert node is not None
    assert node.plain() == {"a": 1}


def test_tree_of_plain_values() -> None:
    """Values from elsewhere become a tree that gives them back."""
    value = {"a": [1, {"b": None}], "c": "x"}
    assert tree(value, Place("f", 1, 1)).plain() == value


@given(st.binary(max_size=200))
def test_bytes_raise_nothing(data: bytes) -> None:
    """Whatever a file holds, parsing gives a tree or says what is wrong."""
    node, problems = parse("f", data)
    assert node is not None or problems


@given(st.text(alphabet="ab:-[]{},&*!|>'\"#%@`? \n\t1.~", max_size=40))
def test_yaml_like_text_raises_nothing(text: str) -> None:
    """The same for text made of YAML's own signs."""
    node, problems = parse("f", text.encode())
    assert node is not None or problems
    assert all(problem.line >= 1 and problem.column >= 1 for problem in problems)
