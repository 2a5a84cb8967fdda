"""Conditions and `${…}` templates: CEL, type-checked when rules load, never guessing when a fact is missing.

Additions to CEL (`semantics.md`, 25): `known(checks.c.f)`, days and weeks in `duration("7d")`, integer literals widened beside a
double, and division by zero without a value for doubles too. Inside rows and `dyn` values, spans are text in seconds (`"90s"`) and times
are RFC 3339 text: `duration(row.age) > duration("10m")`. Pure: no I/O, no clock, no logging.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from remediator import cel
from remediator.action import FactType
from remediator.errors import InvalidExpression
from remediator.model import JSON, Value, canonical, encode_value

LONGEST = 4096
"""Most characters of one expression."""
MAPS = frozenset({FactType.STRING_MAP, FactType.INT_MAP, FactType.DOUBLE_MAP})
_FORMATTED = frozenset({FactType.STRING, FactType.INT, FactType.BOOL})
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NO_VALUE = re.compile(r'No value with name "([^"]+)"')
_NO_KEY = re.compile(r'Key not found in map : "(.*)"', re.DOTALL)
_BAD_PATTERN = "invalid regular expression"


@dataclass(frozen=True)
class Unknown:
    """A value that is not known. `reason` names the missing thing and why it is missing."""

    reason: str


@dataclass(frozen=True)
class Facts:
    """What is known: flat qualified names to values, and names (or prefixes such as `checks.backend`) to why they are unknown.

    A reason for a name itself makes it unknown; a reason for a prefix tells why what has no value under it has none.
    """

    values: Mapping[str, Value] = field(default_factory=dict)
    unknown: Mapping[str, str] = field(default_factory=dict)

    def lookup(self, name: str) -> Value | Unknown:
        """Return the value of a qualified name, or why it is unknown."""
        if name in self.values and name not in self.unknown:
            return self.values[name]
        parts = name.split(".")
        prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
        reason = next((self.unknown[prefix] for prefix in prefixes if prefix in self.unknown), "it was not established")
        return Unknown(f"{name} is unknown: {reason}")


@dataclass(frozen=True)
class _Use:
    """One name as an expression uses it: the CEL variable that carries it, and the key when a map is read at one constant key."""

    slot: str
    name: str
    type: FactType
    key: str | None = None
    asked: bool = False
    """True inside `known(…)`: the variable carries whether it is known."""

    @property
    def shown(self) -> str:
        """The name with its key, as the author would write it."""
        if self.key is None:
            return self.name
        return f"{self.name}.{self.key}" if _IDENTIFIER.fullmatch(self.key) else f'{self.name}["{self.key}"]'

    def read(self, facts: Facts) -> Value | Unknown:
        """Return what the facts hold for it."""
        value = facts.lookup(self.name)
        if isinstance(value, Unknown) or self.key is None:
            return value
        if isinstance(value, Mapping) and self.key in value:
            return value[self.key]
        return Unknown(f"{self.shown} is missing")


@dataclass(frozen=True)
class Expression:
    """A compiled expression; equal to any other with the same text, type and names."""

    text: str
    type: FactType
    names: tuple[str, ...] = ()
    """Names it uses, sorted; a map read at one constant key counts with it (`labels.namespace`)."""
    _uses: tuple[_Use, ...] = field(default=(), compare=False, repr=False)
    _program: Any = field(default=None, compare=False, repr=False)

    def evaluate(self, facts: Facts) -> Value | Unknown:
        """Return the value, or `Unknown` naming what is missing and why. Never raises."""
        data: dict[str, Any] = {}
        missing: dict[str, str] = {}
        for use in self._uses:
            if use.slot in data or use.slot in missing:
                continue
            try:
                data[use.slot] = _bound(use, facts)
            except ValueError as error:
                missing[use.slot] = str(error)
        try:
            return cel.checked(cel.evaluate(self._program, data))
        except ValueError as error:
            return Unknown(self._reason(str(error), missing, facts))

    def _reason(self, message: str, missing: Mapping[str, str], facts: Facts) -> str:
        """Word CEL's run-time error in the rule's terms: names and the rule's own text, never a value, which may be evidence."""
        if found := _NO_VALUE.search(message):
            return missing.get(found[1], message)
        if found := _NO_KEY.search(message):
            keyed = [use.shown for use in self._uses if use.key == found[1] and isinstance(use.read(facts), Unknown)]
            key = f"a key {found[1]!r}" if found[1] in self.text else "a key"
            return f"{keyed[0]} is missing" if keyed else f"{self.text!r} reads {key} that is not there"
        if _BAD_PATTERN in message:
            return f"{self.text!r} has no value: the text that it matches with is not a regular expression"
        cause = message.partition(": ")[2] if message.partition(": ")[0].isupper() else message
        return f"{self.text!r} has no value: {cause}"

    def trace(self, facts: Facts) -> dict[str, JSON]:
        """Return every name it uses with its encoded value, or `{"unknown": reason}`."""
        found: dict[str, JSON] = {}
        for use in sorted(self._uses, key=lambda use: use.shown):
            value = use.read(facts)
            found[use.shown] = {"unknown": value.reason} if isinstance(value, Unknown) else encode_value(value)
        return found


# --- values in and out ------------------------------------------------------------------------------------------------


def _bound(use: _Use, facts: Facts) -> Any:
    """Return what CEL gets for one name. Raises ValueError when there is nothing, or not what was declared."""
    if use.asked:
        return not isinstance(use.read(facts), Unknown)
    value = facts.lookup(use.name)
    if isinstance(value, Unknown):
        raise ValueError(value.reason)  # noqa: TRY004 - one error for everything that has no value
    try:
        return cel.ENCODERS[use.type](value)
    except (TypeError, AttributeError, OverflowError):
        raise ValueError(f"{use.name} is unknown: it should be of type {use.type} and is a Python {type(value).__name__}") from None
    except ValueError as error:
        raise ValueError(f"{use.name} is unknown: {error}") from None


# --- templates --------------------------------------------------------------------------------------------------------

_Part = str | Expression


@dataclass(frozen=True)
class Template:
    """A compiled tree of constants and strings with `${…}`; equal to any other with the same source."""

    source: JSON
    names: tuple[str, ...] = ()
    constant: bool = False
    """True when it holds no `${…}`."""
    leaves: tuple[tuple[tuple[str | int, ...], Expression], ...] = field(default=(), compare=False, repr=False)
    """The scalars that are exactly one `${…}`, by their place in the tree, and parts of longer text likewise."""
    _tree: Any = field(default=None, compare=False, repr=False)

    def __hash__(self) -> int:
        return hash(canonical(self.source))

    def render(self, facts: Facts) -> JSON | Unknown:
        """Return the tree with every expression replaced by its value, or the first `Unknown`.

        A scalar that is exactly one `${…}` keeps its type, so times and spans in it are native.
        """
        return _render(self._tree, facts)

    def partial(self, facts: Facts) -> JSON:
        """Return the tree with every expression replaced by its value, and by None where that is unknown."""
        return _partial(self._tree, facts)


@dataclass(frozen=True)
class _Text:
    """A scalar with interpolations. One expression alone keeps its type."""

    parts: tuple[_Part, ...]

    def render(self, facts: Facts) -> Value | Unknown:
        """Return its value."""
        if len(self.parts) == 1 and isinstance(self.parts[0], Expression):
            return self.parts[0].evaluate(facts)
        texts = []
        for part in self.parts:
            value = part if isinstance(part, str) else part.evaluate(facts)
            if isinstance(value, Unknown):
                return value
            texts.append(str(value).lower() if isinstance(value, bool) else str(value))
        return "".join(texts)


def _render(node: Any, facts: Facts) -> JSON | Unknown:
    if isinstance(node, _Text):
        return node.render(facts)
    if isinstance(node, dict):
        rendered = {key: _render(item, facts) for key, item in node.items()}
        return next((item for item in rendered.values() if isinstance(item, Unknown)), rendered)
    if isinstance(node, list):
        items = [_render(item, facts) for item in node]
        return next((item for item in items if isinstance(item, Unknown)), items)
    return node


def _partial(node: Any, facts: Facts) -> JSON:
    if isinstance(node, dict):
        return {key: _partial(item, facts) for key, item in node.items()}
    if isinstance(node, list):
        return [_partial(item, facts) for item in node]
    rendered = _render(node, facts)
    return None if isinstance(rendered, Unknown) else rendered


# --- compiling --------------------------------------------------------------------------------------------------------


def nearest(name: str, known: Sequence[str]) -> str:
    """Return `; did you mean …?` with the nearest of the known names, or nothing."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


class Environment:
    """The names that expressions may use, with their types. Compiles expressions and templates, each text once."""

    def __init__(self, types: Mapping[str, FactType]) -> None:
        self.types = dict(types)
        self._compiled: dict[tuple[str, FactType | None], Expression] = {}
        self._roots = {name.partition(".")[0] for name in types}

    def compile(self, text: str, *, expects: FactType | None = None) -> Expression:
        """Compile `text`. Raises `InvalidExpression` with line and column inside `text`, naming the nearest valid name."""
        if (text, expects) not in self._compiled:
            self._compiled[text, expects] = self._fresh(text, expects)
        return self._compiled[text, expects]

    def _fresh(self, text: str, expects: FactType | None) -> Expression:
        if len(text) > LONGEST:
            raise InvalidExpression(f"the expression has {len(text)} characters; at most {LONGEST} are allowed")
        source = cel.Source(text)
        if not source.tokens:
            raise InvalidExpression("the expression is empty")
        uses = self._replace_names(source)
        cel.check_literals(source)
        cel.guard_divisions(source)
        compiled = self._compile(source)
        kind = cel.type_of(compiled)
        if kind is None:
            raise InvalidExpression(f"its result is of type {compiled.return_type().name().lower()}, which nothing here takes")
        if expects is not None and kind is not expects:
            raise InvalidExpression(_misfit(kind, expects))
        expression = Expression(text, kind, tuple(sorted({use.shown for use in uses})), tuple(uses), compiled)
        if not uses and isinstance(result := expression.evaluate(Facts()), Unknown):
            raise InvalidExpression(result.reason)
        return expression

    def _compile(self, source: cel.Source) -> Any:
        """Compile, widening one integer literal after the other until CEL agrees or nothing is left to widen."""
        while True:
            try:
                return cel.program(source.rewritten())
            except RuntimeError as error:
                fault = cel.read_fault(source, error)
                if cel.widen(source, fault.operator, fault.index, fault.kinds):
                    continue
                raise self._explain(source, fault) from error

    def _explain(self, source: cel.Source, fault: cel.Fault) -> InvalidExpression:
        index = fault.index
        if not fault.undeclared:
            place = source.tokens[index].start if index < len(source.tokens) else len(source.text)
            return source.error(cel.describe(source, fault), place)
        # CEL points at the dot of a member and at the bracket of a call; people look for the name.
        index = next((at for at in (index, index + 1, index - 1) if source.at(at) == fault.undeclared), index)
        place = source.tokens[index].start
        if source.at(index) in ("and", "or", "not", "True", "False"):
            return source.error(cel.describe(source, fault), place)
        if source.at(index + 1) == "(":
            return source.error(f"there is no function {fault.undeclared!r}{nearest(fault.undeclared, cel.FUNCTIONS)}", place)
        for first, parts in source.chains():
            if first <= index < first + 2 * len(parts):
                return source.error(self._no_such(".".join(parts)), source.tokens[first].start)
        return source.error(self._no_such(fault.undeclared), place)

    def _replace_names(self, source: cel.Source) -> list[_Use]:
        """Put slots in the place of names; return what the slots stand for."""
        uses: list[_Use] = []
        slots: dict[tuple[str, str | None], str] = {}

        def slot(kind: FactType, name: str, key: str | None) -> str:
            number = sum(1 for taken in slots.values() if taken.rpartition("_")[0] == cel.slot(kind, 0).rpartition("_")[0])
            if (name, key) not in slots and number >= cel.SLOTS_PER_TYPE:
                raise InvalidExpression(f"it uses more than {cel.SLOTS_PER_TYPE} names of type {kind}; split it")
            return slots.setdefault((name, key), cel.slot(kind, number))

        for first, parts in list(source.chains()):
            if parts == ["known"] and source.at(first + 1) == "(":
                name, key, last = self._asked(source, first)
                use = _Use(slot(FactType.BOOL, f"known {name}", key), name, self.types[name], key, asked=True)
                source.blank(first, last, use.slot)
            elif source.at(first - 1) == "(" and source.at(first - 2) == "known" and source.at(first - 3) != ".":
                continue
            elif (found := self._resolve(source, first, parts)) is not None:
                kind = self.types[found]
                use = _Use(slot(kind, found, None), found, kind, _key(source, first, parts, found) if kind in MAPS else None)
                source.blank(first, first + 2 * found.count("."), use.slot)
            else:
                continue
            uses.append(use)
        return uses

    def _resolve(self, source: cel.Source, first: int, parts: Sequence[str]) -> str | None:
        """Return the declared name that a chain begins with; None for a variable of a macro or a function."""
        for length in range(len(parts), 0, -1):
            name = ".".join(parts[:length])
            if name in self.types:
                return name
        if parts[0] not in self._roots or (len(parts) == 1 and source.at(first + 1) == "("):
            return None
        called = len(parts) > 1 and source.at(first + 2 * len(parts) - 1) == "("
        raise source.error(self._no_such(".".join(parts[:-1] if called else parts)), source.tokens[first].start)

    def _no_such(self, name: str) -> str:
        under = sorted(known.removeprefix(f"{name}.") for known in self.types if known.startswith(f"{name}."))
        if under:
            return f"{name} is not a value by itself; name what you mean of it: {', '.join(under[:12])}"
        parent = name.rpartition(".")[0]
        siblings = [known for known in self.types if known.startswith(f"{parent}.")]
        return f"there is no name {name!r}{nearest(name, siblings) or nearest(name, list(self.types))}"

    def _asked(self, source: cel.Source, first: int) -> tuple[str, str | None, int]:
        """Read `known(NAME)`: return the name, the key of a map or None, and the index of the closing bracket."""
        inside = next((found for found in source.chains() if found[0] == first + 2), None)
        last = source.close(first + 1)
        if inside is None or last != first + 2 + 2 * len(inside[1]) - 1:
            raise source.error("known() takes one name, like known(checks.backend.age)", source.tokens[first].start)
        name = self._resolve(source, first + 2, inside[1])
        rest = inside[1][name.count(".") + 1 :] if name else []
        if name is None or len(rest) > (1 if self.types[name] in MAPS else 0):
            raise source.error(self._no_such(".".join(inside[1])), source.tokens[first + 2].start)
        return name, rest[0] if rest else None, last

    def template(self, tree: JSON) -> Template:
        """Compile every `${…}` in `tree`. Raises `InvalidExpression`; its message begins with the place in the tree."""
        leaves: list[tuple[tuple[str | int, ...], Expression]] = []
        compiled = self._node(tree, (), leaves)
        names = sorted({name for _, leaf in leaves for name in leaf.names})
        return Template(tree, tuple(names), not leaves, tuple(leaves), compiled)

    def _node(self, node: JSON, place: tuple[str | int, ...], leaves: list[tuple[tuple[str | int, ...], Expression]]) -> Any:
        if isinstance(node, dict):
            for key in node:
                if "${" in str(key):
                    raise InvalidExpression(_at(place, f"a key can't hold ${{…}}: {key!r}"))
            return {key: self._node(item, (*place, key), leaves) for key, item in node.items()}
        if isinstance(node, list):
            return [self._node(item, (*place, number), leaves) for number, item in enumerate(node)]
        if not isinstance(node, str) or "${" not in node:
            return node
        try:
            parts = tuple(self._parts(node))
        except InvalidExpression as error:
            raise InvalidExpression(_at(place, str(error)), line=error.line, column=error.column) from error
        leaves.extend((place, part) for part in parts if isinstance(part, Expression))
        return _Text(parts) if any(isinstance(part, Expression) for part in parts) else "".join(str(part) for part in parts)

    def _parts(self, text: str) -> Iterator[_Part]:
        """Cut a scalar into constants and compiled expressions."""
        pieces = list(split(text))
        for offset, piece, is_code in pieces:
            if not is_code:
                yield piece
                continue
            try:
                expression = self.compile(piece)
            except InvalidExpression as error:
                raise _moved(error, text, offset) from error
            if len(pieces) > 1 and expression.type not in _FORMATTED:
                message = f"a value of type {expression.type} can't stand inside text; write string(…), or let it stand alone"
                raise _moved(InvalidExpression(message), text, offset)
            yield expression


def split(text: str) -> Iterator[tuple[int, str, bool]]:
    """Cut text with `${…}` into (offset, piece, whether it is code); `$${` is a literal `${`.

    Raises `InvalidExpression` where a `${` is not closed.
    """
    constant, position, begun = "", 0, 0
    while (dollar := text.find("${", position)) >= 0:
        if text.startswith("$${", dollar - 1) and dollar > position:
            constant += text[position : dollar - 1] + "${"
            position = dollar + 2
            continue
        end = cel.closing_brace(text, dollar + 2, LONGEST)
        if end is None:
            raise _moved(InvalidExpression("this ${ is never closed; write $${ for a literal one"), text, dollar)
        if constant + text[position:dollar]:
            yield begun, constant + text[position:dollar], False
        yield dollar + 2, text[dollar + 2 : end], True
        constant, position, begun = "", end + 1, end + 1
    if constant + text[position:]:
        yield begun, constant + text[position:], False


def _moved(error: InvalidExpression, text: str, offset: int) -> InvalidExpression:
    """Move an error inside an expression to its place in the text around it."""
    lines = text.count("\n", 0, offset)
    start = offset - (text.rfind("\n", 0, offset) + 1) if error.line == 1 else 0
    return InvalidExpression(str(error), line=error.line + lines, column=error.column + start)


def _at(place: tuple[str | int, ...], message: str) -> str:
    where = ".".join(str(part) for part in place)
    return f"{where}: {message}" if where else message


def _misfit(kind: FactType, expects: FactType) -> str:
    hint = "; compare it, for instance x == true" if expects is FactType.BOOL and kind is FactType.DYN else ""
    return f"it must be of type {expects} and is of type {kind}{hint}"


def _key(source: cel.Source, first: int, parts: Sequence[str], name: str) -> str | None:
    """Return the constant key at which a map is read, `labels.a` or `labels["a"]`, else None."""
    length = name.count(".") + 1
    after = first + 2 * length - 1
    if len(parts) > length:
        return parts[length] if source.at(after + 2) != "(" else None
    if source.at(after) == "[" and source.at(after + 2) == "]" and source.tokens[after + 1].kind == "string":
        return cel.plain_string(source.at(after + 1))
    return None
