"""The text level of expressions: tokens, and the rewriting that turns our small additions into plain CEL.

CEL's compiler reports positions and types but gives no syntax tree, so the additions (`known`, days and weeks, widened integer
literals, checked division) are made on tokens, which keep their place: every error is reported where the author wrote it.
Names are replaced by numbered slots of their type (`checks.db.used` → `__int_0`), so that one CEL environment and one program
cache serve all rules: an environment of their own would cost each rule 160 KB. Pure: no I/O, no clock, no logging.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from cel_expr_python import cel

from remediator.action import FactType
from remediator.duration import parse_duration
from remediator.errors import InvalidExpression
from remediator.model import Value

SLOTS_PER_TYPE = 32
"""How many different names of one type one expression may use."""

_TOKEN = re.compile(
    r"""(?P<space>\s+|//[^\n]*)
      | (?P<string>[rRbB]{0,2}(?:\"{3}(?:[^\\]|\\.)*?\"{3}|'{3}(?:[^\\]|\\.)*?'{3}|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'))
      | (?P<number>(?:0[xX][0-9a-fA-F]+|\d+\.\d+(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?|\d+[eE][+-]?\d+|\d+)[uU]?)
      | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<sign>&&|\|\||[=!<>]=|.)""",
    re.VERBOSE | re.DOTALL,
)
_RAW_STRING = re.compile(r"[rR]?(\"{3}|'{3}|\"|')(.*)\1", re.DOTALL)
_NUL = re.compile(r"\\(?:x00|X00|u0000|U00000000|000)")
_OPEN = {"(": ")", "[": "]", "{": "}"}
_WIDENED = frozenset({"_<_", "_<=_", "_>_", "_>=_", "_==_", "_!=_", "_+_", "_-_", "_*_", "_/_"})
_WIDEST = 2**53


@dataclass(slots=True)
class Token:
    """One lexical element: what the author wrote and where, and what CEL gets instead (`out`)."""

    kind: str
    text: str
    start: int
    out: str


def tokenize(text: str, start: int = 0) -> Iterator[Token]:
    """Cut `text` into tokens from offset `start`; spaces and comments are tokens too, nothing is lost."""
    for match in _TOKEN.finditer(text, start):
        kind = match.lastgroup or "sign"
        yield Token(kind, match.group(), match.start(), match.group())


def closing_brace(text: str, start: int, longest: int) -> int | None:
    """Return the offset of the `}` that ends an expression beginning at `start`; braces in strings don't count.

    Only `longest` characters are looked at, so that broken text costs no more than a long expression.
    """
    depth = 0
    for token in tokenize(text[: start + longest + 1], start):
        if token.text == "{":
            depth += 1
        elif token.text == "}":
            if depth == 0:
                return token.start
            depth -= 1
    return None


def plain_string(literal: str) -> str | None:
    """Return the text of a CEL string literal, or None when it holds escapes or bytes."""
    match = _RAW_STRING.fullmatch(literal)
    if match is None or ("\\" in match[2] and literal[0] not in "rR"):
        return None
    return match[2]


# --- the shared CEL environment ----------------------------------------------------------------------------------------

_CEL_TYPES: dict[FactType, cel.Type] = {
    FactType.INT: cel.Type.INT,
    FactType.DOUBLE: cel.Type.DOUBLE,
    FactType.BOOL: cel.Type.BOOL,
    FactType.STRING: cel.Type.STRING,
    FactType.DURATION: cel.Type.DURATION,
    FactType.TIMESTAMP: cel.Type.TIMESTAMP,
    FactType.STRINGS: cel.Type.List(cel.Type.STRING),
    FactType.INTS: cel.Type.List(cel.Type.INT),
    FactType.STRING_MAP: cel.Type.Map(cel.Type.STRING, cel.Type.STRING),
    FactType.INT_MAP: cel.Type.Map(cel.Type.STRING, cel.Type.INT),
    FactType.DOUBLE_MAP: cel.Type.Map(cel.Type.STRING, cel.Type.DOUBLE),
    FactType.ROWS: cel.Type.List(cel.Type.Map(cel.Type.STRING, cel.Type.DYN)),
    FactType.DYN: cel.Type.DYN,
}
_FACT_TYPES = {kind.name(): fact for fact, kind in _CEL_TYPES.items()}


def slot(kind: FactType, number: int) -> str:
    """Return the CEL variable that stands for the `number`-th name of a type."""
    return f"__{kind.name.lower()}_{number}"


def _nonzero(value: float) -> float:
    """Let a denominator pass. CEL divides doubles by zero without a word, and `0/0` or infinity is no evidence."""
    if value == 0 or math.isnan(value):
        raise ZeroDivisionError("division by zero")
    return value


@functools.cache
def _shared() -> cel.Env:
    variables = {slot(kind, number): _CEL_TYPES[kind] for kind in FactType for number in range(SLOTS_PER_TYPE)}
    overloads = [cel.Overload(f"nonzero_{kind.name()}", kind, [kind], impl=_nonzero) for kind in (cel.Type.DOUBLE, cel.Type.INT)]
    return cel.NewEnv(variables=variables, functions=[cel.FunctionDecl("nonzero", overloads)])


@functools.lru_cache(maxsize=8192)
def program(text: str) -> cel.Expression:
    """Compile rewritten text, once for all rules that share it. Raises RuntimeError with CEL's message."""
    return _shared().compile(text)


def type_of(compiled: cel.Expression) -> FactType | None:
    """Return the type of a program's result; None for types that no parameter or condition takes (bytes, null, types)."""
    name: str = compiled.return_type().name()
    if name in _FACT_TYPES:
        return _FACT_TYPES[name]
    return FactType.DYN if name.startswith(("LIST<", "MAP<")) else None


def constant(text: str) -> Any:
    """Evaluate CEL text that uses no names. Raises ValueError with CEL's message when it has no value."""
    try:
        result = program(text).eval(data={})
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    if result.type() == cel.Type.ERROR:
        raise ValueError(str(result.plain_value()))
    return result.plain_value()


def evaluate(compiled: cel.Expression, data: dict[str, Any]) -> Any:
    """Evaluate a program. Raises ValueError with CEL's message when it has no value (a name without one, an overflow, …)."""
    try:
        result = compiled.eval(data=data)
        failed = result.type() == cel.Type.ERROR
        value = result.plain_value()
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    if failed:
        raise ValueError(str(value))
    return value


# --- values in and out ------------------------------------------------------------------------------------------------


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    # The library cuts texts at a NUL: "a\0b" would equal "a".
    if "\0" in value:
        raise ValueError("it holds a NUL character")
    return value


def _int(value: Any) -> int:
    if type(value) is not int:
        raise TypeError
    if not -(2**63) <= value < 2**63:
        raise ValueError("it does not fit into 64 bits")
    return value


def _double(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    if not math.isfinite(value):
        raise ValueError(f"it is {value}, which is not a number")
    return float(value)


def _exactly(kind: type) -> Callable[[Any], Any]:
    def encode(value: Any) -> Any:
        if not isinstance(value, kind):
            raise TypeError
        return value

    return encode


def _time(value: Any) -> datetime:
    if not isinstance(value, datetime):
        raise TypeError
    if value.tzinfo is None:
        raise ValueError("it is a time without a time zone")
    return value.astimezone(UTC)


def _list(item: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def encode(value: Any) -> Any:
        if not isinstance(value, list | tuple):
            raise TypeError
        return [item(one) for one in value]

    return encode


def _map(item: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: {_text(key): item(one) for key, one in value.items()}


def _any(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, timedelta):
        return f"{value.total_seconds():f}s"
    if isinstance(value, datetime):
        return _time(value).isoformat().replace("+00:00", "Z")
    if isinstance(value, int):
        return _int(value)
    if isinstance(value, float):
        return _double(value)
    if isinstance(value, str):
        return _text(value)
    return _map(_any)(value) if isinstance(value, Mapping) else _list(_any)(value)


ENCODERS: Mapping[FactType, Callable[[Any], Any]] = {
    FactType.INT: _int,
    FactType.DOUBLE: _double,
    FactType.BOOL: _exactly(bool),
    FactType.STRING: _text,
    FactType.DURATION: _exactly(timedelta),
    FactType.TIMESTAMP: _time,
    FactType.STRINGS: _list(_text),
    FactType.INTS: _list(_int),
    FactType.STRING_MAP: _map(_text),
    FactType.INT_MAP: _map(_int),
    FactType.DOUBLE_MAP: _map(_double),
    FactType.ROWS: _list(_map(_any)),
    FactType.DYN: _any,
}
"""What CEL gets for a fact of each type. They raise TypeError for another type, ValueError for a value CEL can't hold."""


def checked(value: Any) -> Value:
    """Let a result pass that is a value of ours. Raises ValueError for bytes, null, infinities and what is not a number."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"the result is {value}, which is not a number")
    if value is None or isinstance(value, bytes | bytearray):
        raise ValueError("the result is null" if value is None else "the result is bytes")
    if isinstance(value, list):
        return [checked(item) for item in value]
    if isinstance(value, dict):
        return {str(key): checked(item) for key, item in value.items()}
    if not isinstance(value, bool | int | float | str | timedelta | datetime):
        raise ValueError(f"the result is a {type(value).__name__}")  # noqa: TRY004 - callers of CEL handle one error
    return value


# --- rewriting ---------------------------------------------------------------------------------------------------------


class Source:
    """The tokens of one expression, without spaces for looking around and with them for writing it out."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.all = list(tokenize(text))
        self.tokens = [token for token in self.all if token.kind != "space"]

    def at(self, index: int) -> str:
        """Return the text of token `index`, or nothing beyond either end."""
        return self.tokens[index].text if 0 <= index < len(self.tokens) else ""

    def rewritten(self) -> str:
        """Return the text that CEL gets."""
        return "".join(token.out for token in self.all)

    def error(self, message: str, offset: int) -> InvalidExpression:
        """Make the error for a place in the author's text."""
        line = self.text.count("\n", 0, offset) + 1
        return InvalidExpression(message, line=line, column=offset - (self.text.rfind("\n", 0, offset) + 1) + 1)

    def locate(self, line: int, column: int) -> int:
        """Return the index of the token at a place (from 1) in the rewritten text; beyond the end the number of tokens."""
        lines = self.rewritten().split("\n")
        wanted = sum(len(one) + 1 for one in lines[: line - 1]) + column - 1
        position = 0
        for token in self.all:
            position += len(token.out)
            if wanted < position and token.kind != "space":
                return self.tokens.index(token)
        return len(self.tokens)

    def chains(self) -> Iterator[tuple[int, list[str]]]:
        """Yield every dotted name that begins an operand: index of its first token, and its parts."""
        index = 0
        while index < len(self.tokens):
            if self.tokens[index].kind != "name" or self.at(index - 1) == ".":
                index += 1
                continue
            first, parts = index, [self.tokens[index].text]
            while self.at(index + 1) == "." and index + 2 < len(self.tokens) and self.tokens[index + 2].kind == "name":
                index += 2
                parts.append(self.tokens[index].text)
            yield first, parts
            index += 1

    def blank(self, first: int, last: int, out: str) -> None:
        """Replace the tokens `first` to `last` by `out`."""
        for token in self.tokens[first : last + 1]:
            token.out = ""
        self.tokens[first].out = out

    def close(self, index: int) -> int:
        """Return the index of the bracket that closes the one at `index`, or the last token."""
        ends: list[str] = []
        for position in range(index, len(self.tokens)):
            text = self.at(position)
            if text in _OPEN:
                ends.append(_OPEN[text])
            elif ends and text == ends[-1]:
                ends.pop()
                if not ends:
                    return position
        return len(self.tokens) - 1

    def operand_end(self, index: int) -> int:
        """Return the index of the last token of the operand that begins at `index`: signs, a primary, members, calls."""
        while self.at(index) in ("-", "!"):
            index += 1
        last = self.close(index) if self.at(index) in _OPEN else index
        while True:
            if self.at(last + 1) == "." and last + 2 < len(self.tokens):
                last += 2
            elif self.at(last + 1) in ("(", "["):
                last = self.close(last + 1)
            else:
                return last


def guard_divisions(source: Source) -> None:
    """Make every division whose denominator may be zero fail, for doubles too."""
    for index, token in enumerate(source.tokens):
        if token.text != "/" or index + 1 >= len(source.tokens):
            continue
        last = source.operand_end(index + 1)
        if last >= len(source.tokens) or (last == index + 1 and _is_nonzero(source.tokens[last])):
            continue
        source.tokens[index + 1].out = "nonzero(" + source.tokens[index + 1].out
        source.tokens[last].out += ")"


def _is_nonzero(token: Token) -> bool:
    return token.kind == "number" and any(digit in token.text.lower().split("e")[0] for digit in "123456789abcdf")


def check_literals(source: Source) -> None:
    """Rewrite durations with days and weeks, and refuse constant durations, times and patterns that CEL would only find out later."""
    for token in source.tokens:
        if token.kind == "string" and ("\0" in token.text or _NUL.search(token.text)):
            raise source.error("a NUL character can't stand in an expression", token.start)
    for index, token in enumerate(source.tokens):
        literal = source.tokens[index + 2] if index + 2 < len(source.tokens) else None
        if source.at(index + 1) != "(" or source.at(index + 3) != ")" or literal is None or literal.kind != "string":
            continue
        method = source.at(index - 1) == "."
        if token.text == "duration" and not method:
            _check_duration(source, literal)
        elif token.text == "timestamp" and not method:
            _check_constant(source, literal, f"timestamp({literal.text})", "is not a time; write it like 2025-03-31T12:00:00Z")
        elif token.text == "matches" and method:
            _check_constant(source, literal, f'"".matches({literal.text})', "is not a regular expression")


def _check_duration(source: Source, literal: Token) -> None:
    written = plain_string(literal.text)
    try:
        literal.out = f'"{parse_duration(written).total_seconds():.3f}s"' if written is not None else literal.text
    except ValueError:
        # CEL's own notation goes beyond ours: 1.5h, -10m, 100us.
        _check_constant(source, literal, f"duration({literal.text})", "is not a duration; write it like 90s, 10m, 1h30m or 7d")


def _check_constant(source: Source, literal: Token, text: str, message: str) -> None:
    try:
        constant(text)
    except ValueError as error:
        cause = str(error).partition("invalid regular expression: ")[2]
        raise source.error(f"{literal.text} {message}" + (f": {cause}" if cause else ""), literal.start) from error


def widen(source: Source, operator: str, index: int, kinds: Sequence[str]) -> bool:
    """Write the integer literal beside a binary operator as a double, if that is what the other side is. Tell whether it did."""
    if operator not in _WIDENED or sorted(kinds) != ["double", "int"]:
        return False
    beside = index - 1
    if kinds[1] == "int":
        beside = index + 2 if source.at(index + 1) == "-" else index + 1
    if not 0 <= beside < len(source.tokens):
        return False
    token = source.tokens[beside]
    if token.kind != "number" or not re.fullmatch(r"\d+|0[xX][0-9a-fA-F]+", token.out) or int(token.out, 0) > _WIDEST:
        return False
    token.out = f"{int(token.out, 0)}.0"
    return True


# --- CEL's messages in the author's terms ---------------------------------------------------------------------------------

_ERROR = re.compile(r"ERROR: <input>:(\d+):(\d+): (.*)")
_OVERLOAD = re.compile(r"found no matching overload for '([^']+)' applied to '\((.*)\)'")
_UNDECLARED = re.compile(r"undeclared reference to '([^']*)'")
FUNCTIONS = (
    "all", "bool", "contains", "double", "duration", "endsWith", "exists", "exists_one", "filter", "getDate", "getDayOfMonth",
    "getDayOfWeek", "getFullYear", "getHours", "getMilliseconds", "getMinutes", "getMonth", "getSeconds", "has", "int", "known",
    "map", "matches", "size", "startsWith", "string", "timestamp",
)  # fmt: skip
"""The functions and macros that expressions may use, for suggestions."""
_WORDS = {"and": "&&", "or": "||", "not": "!", "AND": "&&", "OR": "||", "NOT": "!", "True": "true", "False": "false"}


@dataclass(frozen=True)
class Fault:
    """CEL's first complaint: where (token index), about what, and the parts that matter."""

    index: int
    message: str
    operator: str = ""
    kinds: tuple[str, ...] = ()
    undeclared: str = ""


def read_fault(source: Source, error: RuntimeError) -> Fault:
    """Take CEL's compile error apart."""
    match = _ERROR.search(str(error))
    if match is None:
        text = str(error).partition(": ")[2].partition(" [")[0]
        return Fault(0, "it is nested too deeply" if "recursion" in text else text or str(error))
    index = source.locate(int(match[1]), int(match[2]))
    message = match[3].removesuffix(" [INVALID_ARGUMENT]")
    if found := _OVERLOAD.search(message):
        kinds = tuple(found[2].replace("google.protobuf.", "").lower().split(", "))
        return Fault(index, message, operator=found[1], kinds=kinds)
    if found := _UNDECLARED.search(message):
        return Fault(index, message, undeclared=found[1].rpartition(".")[2])
    return Fault(index, message)


def describe(source: Source, fault: Fault) -> str:
    """Word a fault that is not about an unknown name."""
    if fault.operator:
        sign = fault.operator.strip("_").replace("_", "").removeprefix("@")
        text = f"{sign} can't take ({', '.join(fault.kinds)})"
        return text + _hint(sign, fault.kinds)
    found = source.at(fault.index)
    for index in (fault.index, fault.index - 1):
        if source.at(index) in _WORDS:
            return f"unexpected {source.at(index)!r}; write {_WORDS[source.at(index)]}"
    if "Syntax error" in fault.message:
        if found == "=":
            return "unexpected '='; write == to compare"
        return f"syntax error: unexpected {found!r}" if found else "syntax error: it ends too early"
    return fault.message


def _hint(sign: str, kinds: Sequence[str]) -> str:
    names = set(kinds)
    if sign == "?:":
        return "; the condition must be a bool and both results of one type"
    if {"double", "int"} <= names:
        return "; convert one side, for instance double(x)"
    if "null_type" in names:
        return "; no fact is null: ask known(name), or the fact's own …_found"
    if "duration" in names and names & {"int", "double", "string"}:
        return '; write a span of time as duration("10m")'
    if sign in ("&&", "||", "!"):
        return "; compare it first: both sides must be bool"
    if "string" in names and names & {"int", "double"}:
        return "; convert one side, for instance int(x) or string(x)"
    return ""
