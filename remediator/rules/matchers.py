r"""Alertmanager's label matchers: `a = "b"`, `a =~ "x|y"`, `{a="b", "quoted name"!~'c'}`.

Regular expressions are RE2, as in Alertmanager: linear in the text, so that neither a rule nor an alert can stall the daemon, and
anchored at both ends. Python's `re` would accept other expressions and could take exponential time.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from remediator import cel
from remediator.action import FactType
from remediator.errors import InvalidExpression
from remediator.rules.model import Matcher, MatchOperator

MAX_LENGTH = 4096
_TOKEN = re.compile(
    r"""\s*(?:(?P<quoted>"(?:[^"\\\n]|\\.)*")|(?P<operator>=~|!~|!=|=)|(?P<sign>[{},])|(?P<word>[^\s{}!=~,\\"'`]+)|(?P<bad>\S))""",
    re.DOTALL,
)
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-7]{3}|.)", re.DOTALL)
_ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\\": "\\", '"': '"'}
_LITERALS = re.compile(r"[A-Za-z0-9_ :/@%,-]*(?:\|[A-Za-z0-9_ :/@%,-]*)*")


class Pattern:
    """A regular expression of a matcher, anchored at both ends.

    `values` are the only texts it matches when it is a plain alternation like `critical|high`, else None.
    """

    def __init__(self, text: str) -> None:
        """Compile `text`. Raises `InvalidExpression`."""
        if len(text) > MAX_LENGTH:
            raise InvalidExpression(f"the regular expression has {len(text)} characters; at most {MAX_LENGTH} are allowed")
        if "\0" in text:
            raise InvalidExpression("a NUL character can't stand in a regular expression")
        self.text = text
        self.values = frozenset(text.split("|")) if _LITERALS.fullmatch(text) else None
        literal = json.dumps(f"^(?:{text})$", ensure_ascii=False)
        try:
            # By itself first: `a)|(b` is none, but would become one between the anchors.
            cel.constant(f'"".matches({json.dumps(text, ensure_ascii=False)})')
            cel.constant(f'"".matches({literal})')
        except ValueError as error:
            cause = str(error).partition("invalid regular expression: ")[2] or str(error)
            raise InvalidExpression(f"{text!r} is not a regular expression of RE2: {cause}") from error
        self._program = cel.program(f"{cel.slot(FactType.STRING, 0)}.matches({literal})")
        # Labels repeat: the same few values come with every notification.
        self._matches = functools.lru_cache(maxsize=1024)(functools.partial(_ask, self._program))

    def fullmatch(self, text: str) -> str | None:
        """Return `text` when the whole of it matches, else None."""
        found = text in self.values if self.values is not None else self._matches(text)
        return text if found else None


def _ask(program: Any, text: str) -> bool:
    return bool(cel.evaluate(program, {cel.slot(FactType.STRING, 0): text}))


# Rules repeat too: thousands of them ask for the same few clusters and severities.
_pattern = functools.lru_cache(maxsize=4096)(Pattern)


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    start: int


def parse_matchers(text: str) -> list[Matcher]:
    """Parse one matcher, or a list of them in braces or separated by commas.

    Raises `InvalidExpression` with the column. `{}` has no matchers. A value that holds `${` is left as it is, without its regular
    expression: `matcher` makes that once the value is known.
    """
    if len(text) > MAX_LENGTH:
        raise InvalidExpression(f"the matcher has {len(text)} characters; at most {MAX_LENGTH} are allowed")
    tokens = list(_tokens(text))
    if tokens and tokens[0].text == "{" and tokens[0].kind == "sign":
        if tokens[-1].text != "}" or tokens[-1].kind != "sign":
            raise InvalidExpression("the brace is never closed", column=tokens[0].start + 1)
        tokens = tokens[1:-1]
    elif not tokens:
        raise InvalidExpression('the matcher is empty; write it like alertname = "SiteDown"')
    found: list[Matcher] = []
    while tokens:
        found.append(_matcher(tokens[:3], len(text)))
        if len(tokens) > 3 and tokens[3].text != ",":
            raise InvalidExpression(f"unexpected {tokens[3].text!r}; separate matchers by commas", column=tokens[3].start + 1)
        tokens = tokens[4:]
    return found


def _tokens(text: str) -> Iterator[_Token]:
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup or ""
        if kind == "bad":
            hint = "; quote it" if match["bad"] != '"' else "; a quote is never closed"
            raise InvalidExpression(f"unexpected {match['bad']!r}{hint}", column=match.start(kind) + 1)
        yield _Token(kind, match[kind], match.start(kind))


def _matcher(tokens: list[_Token], end: int) -> Matcher:
    shape = [token.kind for token in tokens]
    wanted = [({"word", "quoted"}, "a label name"), ({"operator"}, "one of = != =~ !~"), ({"word", "quoted"}, "a value")]
    for number, (kinds, meaning) in enumerate(wanted):
        if number >= len(shape):
            raise InvalidExpression(f"it ends where {meaning} must follow", column=end + 1)
        if shape[number] not in kinds:
            raise InvalidExpression(f"unexpected {tokens[number].text!r}; {meaning} must stand here", column=tokens[number].start + 1)
    name, operator, value = _text(tokens[0]), MatchOperator(tokens[1].text), _text(tokens[2])
    if not name:
        raise InvalidExpression("the label name is empty", column=tokens[0].start + 1)
    try:
        # Variables are filled in when a rule is compiled; only then it is known what the expression is.
        return Matcher(name, operator, value) if "${" in value else matcher(name, operator, value)
    except InvalidExpression as error:
        raise InvalidExpression(str(error), column=tokens[2].start + 1) from error


def matcher(label: str, operator: MatchOperator, value: str) -> Matcher:
    """Make a matcher. Raises `InvalidExpression` for a regular expression that RE2 doesn't take."""
    if operator in (MatchOperator.MATCHES, MatchOperator.NOT_MATCHES):
        return Matcher(label, operator, value, _pattern(value))
    return Matcher(label, operator, value)


def _text(token: _Token) -> str:
    """Return what a token means: a word as it is, a quoted text with Go's escapes resolved."""
    if token.kind == "word":
        return token.text

    def escaped(match: re.Match[str]) -> str:
        code = match[1]
        if code in _ESCAPES:
            return _ESCAPES[code]
        if len(code) == 1:
            raise InvalidExpression(f"unknown escape \\{code}", column=token.start + match.start() + 2)
        number = int(code, 8) if code[0] in "01234567" else int(code[1:], 16)
        if number == 0 or number > 0x10FFFF or 0xD800 <= number <= 0xDFFF or (code[0] in "x01234567" and number > 0x7F):
            raise InvalidExpression(f"\\{code} is not a character a label can hold", column=token.start + match.start() + 2)
        return chr(number)

    return _ESCAPE.sub(escaped, token.text[1:-1])
