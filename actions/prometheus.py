"""Ask Prometheus: an instant query, a range of one series, and where an alerting rule stands.

Values from alerts enter a query only as quoted label values, at `$name` placeholders (`bind`). Unreachable is a failure here, not a
fact: Prometheus is where evidence comes from, not what is looked at.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from itertools import pairwise
from typing import Any, ClassVar, Self
from urllib.parse import urlencode

from pydantic import AwareDatetime, Field, StrictInt, StrictStr, model_validator

from remediator.action import Check, Code, Context, Fact, FactType, Params, Permission, PermissionKind, Provider
from remediator.duration import Duration
from remediator.errors import CheckFailed
from remediator.httpclient import Answer, HttpError, WebConnection, WebUrl, open_client
from remediator.model import JSON, Value

MAX_SERIES = 100
MAX_POINTS = 1_000
_MAX_MAP = 40_000
"""Most characters of `values`' keys, so that a check's facts stay within 64 KiB."""
_BODY = 4 * 1024 * 1024
_RULES_BODY = 32 * 1024 * 1024


class PrometheusConnection(WebConnection):
    """A Prometheus, or anything that answers its query API (Thanos, Mimir, VictoriaMetrics)."""

    url: WebUrl = Field(description="address up to, not including, /api/v1")


# --- placeholders ----------------------------------------------------------------------------------------------------------

_TOKEN = re.compile(
    r"""(?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|`[^`]*`)
    |(?P<skip>\s+|\#[^\n]*)
    |(?P<placeholder>\$[A-Za-z_][A-Za-z0-9_]*)
    |(?P<operator>=~|!~|!=|==|=)
    |(?P<name>[A-Za-z_:][A-Za-z0-9_:]*)
    |(?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)
_IN_STRING = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*)")
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n"}


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    start: int
    braces: bool


def _tokens(query: str) -> Iterator[_Token]:
    inside = False
    for match in _TOKEN.finditer(query):
        kind, text = match.lastgroup or "other", match.group()
        if kind == "other" and text in "\"'`":
            raise ValueError(f"column {match.start() + 1}: a string is not closed")
        if kind == "other" and text == "$":
            raise ValueError(f"column {match.start() + 1}: $ must be followed by a name, as in instance=$instance")
        if kind == "other" and text in "{}":
            if inside == (text == "{"):
                raise ValueError(f"column {match.start() + 1}: unbalanced {text}")
            inside = text == "{"
        if kind != "skip":
            yield _Token(kind, text, match.start(), inside)
    if inside:
        raise ValueError("a { is not closed")


def _is_matcher_value(tokens: Sequence[_Token], index: int) -> bool:
    """Tell whether the placeholder stands alone as the value of `label=` or `label!=` inside braces."""
    if index < 3 or index + 1 >= len(tokens) or not tokens[index].braces:
        return False
    before, label, operator, after = tokens[index - 3], tokens[index - 2], tokens[index - 1], tokens[index + 1]
    return before.text in {"{", ","} and label.kind == "name" and operator.text in {"=", "!="} and after.text in {"}", ","}


def placeholders(query: str, names: frozenset[str]) -> tuple[tuple[int, str], ...]:
    """Return (position, name) of every `$name` in `query`, each the whole value of an exact label matcher.

    Raises ValueError for a placeholder anywhere else, a name that has no value in `names`, and a value that is not used.
    """
    tokens = tuple(_tokens(query))
    found = []
    for index, token in enumerate(tokens):
        if token.kind == "string":
            _check_string(token, names)
        if token.kind != "placeholder":
            continue
        name = token.text[1:]
        if name not in names:
            raise ValueError(f"column {token.start + 1}: ${name} has no value in args")
        if not _is_matcher_value(tokens, index):
            raise ValueError(
                f"column {token.start + 1}: ${name} may only stand as the value of a label matcher, {{label=${name}}}, with = or !="
            )
        found.append((token.start, name))
    if unused := names - {name for _, name in found}:
        raise ValueError(f"args has {sorted(unused)}, which the query does not use")
    return tuple(found)


def _check_string(token: _Token, names: frozenset[str]) -> None:
    for match in _IN_STRING.finditer(token.text):
        if token.braces or match.group(1) in names:
            raise ValueError(
                f"column {token.start + 1}: {match.group()} stands inside quotes and would be taken literally; write it without quotes"
            )


def quote(value: str) -> str:
    r"""Write `value` as a PromQL string literal.

    >>> print(quote('a"} or up{b="\n'))
    "a\"} or up{b=\"\n"
    """
    escaped = "".join(_ESCAPES.get(char) or (f"\\x{ord(char):02x}" if ord(char) < 0x20 or ord(char) == 0x7F else char) for char in value)
    return f'"{escaped}"'


def bind(query: str, args: Mapping[str, str | int]) -> str:
    """Put `args` into `query` at its placeholders, as quoted strings.

    Raises ValueError as `placeholders` does, and for an empty value: an empty matcher means *has no such label*.
    """
    result, end = [], 0
    for start, name in placeholders(query, frozenset(args)):
        value = str(args[name])
        if not value:
            raise ValueError(f"args.{name} is empty, and an empty matcher selects every series without that label")
        result += [query[end:start], quote(value)]
        end = start + 1 + len(name)
    return "".join([*result, query[end:]])


class _QueryParams(Params):
    connection: str
    query: Code = Field(min_length=1, max_length=5_000)
    args: Mapping[str, StrictStr | StrictInt] = Field(default_factory=dict, description="values of the query's $name placeholders")

    @model_validator(mode="after")
    def _placeholders_fit(self) -> Self:
        placeholders(self.query, frozenset(self.args))
        return self

    def bound(self) -> str:
        """Return the query with its values. Raises `CheckFailed` for a value that can't be one."""
        try:
            query = bind(self.query, self.args)
            query.encode()
        except ValueError as error:
            raise CheckFailed(f"the query can't be made: {error}") from error
        return query


# --- asking ----------------------------------------------------------------------------------------------------------------


async def _ask(ctx: Context, name: str, path: str, query: Mapping[str, str], *, limit: int = _BODY) -> tuple[Any, Answer]:
    """GET one endpoint and return its `data` with the answer it came in. Raises `CheckFailed`."""
    connection = ctx.connection(PrometheusConnection, name)
    client = await ctx.client(PrometheusConnection, name, open_client)
    what = f"Prometheus {name!r}"
    try:
        answer = await client.send(ctx, "GET", f"{connection.url}{path}?{urlencode(query)}", what=what, limit=limit)
    except HttpError as error:
        raise error.as_check() from error
    if answer.status in {401, 403}:
        raise CheckFailed(f"{what} refused the connection's credentials ({answer.status})")
    if answer.truncated:
        raise CheckFailed(f"{what} answered more than {limit} bytes; narrow the query")
    return _data(answer, what), answer


def _data(answer: Answer, what: str) -> Any:
    try:
        body = json.loads(answer.body)
    except (ValueError, RecursionError) as error:
        raise CheckFailed(f"{what} answered {answer.status} with something that is not JSON: {answer.text()!r}") from error
    if not isinstance(body, dict) or body.get("status") != "success" or answer.status != 200:
        said = f"{body.get('errorType')}: {body.get('error')}"[:300] if isinstance(body, dict) else answer.text()
        raise CheckFailed(f"{what} answered {answer.status}: {said}")
    if body.get("warnings"):
        # Thanos and remote reads report parts that are missing in this way: what is left is no evidence.
        raise CheckFailed(f"{what} answered with warnings, so the answer may be partial: {str(body['warnings'])[:300]}")
    return body.get("data")


def signature(labels: Mapping[str, str]) -> str:
    """Write a series' labels as Prometheus does.

    >>> signature({"__name__": "up", "job": "node", "instance": "a"})
    'up{instance="a", job="node"}'
    """
    rest = ", ".join(f"{name}={quote(value)}" for name, value in sorted(labels.items()) if name != "__name__")
    return labels.get("__name__", "") + (f"{{{rest}}}" if rest else "")


def _number(sample: Any) -> float:
    """Return the number of a `[time, "text"]` sample. Raises `CheckFailed` for anything else."""
    try:
        return float(sample[1])
    except (TypeError, ValueError, LookupError) as error:
        raise CheckFailed(f"Prometheus sent a sample that is no number: {str(sample)[:100]}") from error


def _series(data: Any, kind: str) -> list[tuple[str, Any]]:
    """Return (signature, sample or samples) of every series of a `vector`, `scalar` or `matrix`. Raises `CheckFailed`."""
    try:
        found, result = data["resultType"], data["result"]
        if found == "scalar" and kind == "vector":
            return [("", result)]
        if found != kind:
            raise CheckFailed(f"the query gives a {str(found)[:50]}, not a {kind}; a range such as [5m] needs a function around it")
        if any(entry.keys() & {"histogram", "histograms"} for entry in result):
            raise CheckFailed("the query gives native histograms; put a function such as histogram_quantile around it")
        return [(signature(entry["metric"]), entry["value" if kind == "vector" else "values"]) for entry in result]
    except (TypeError, LookupError, AttributeError) as error:
        raise CheckFailed("Prometheus sent a result of an unknown shape") from error


# --- checks ------------------------------------------------------------------------------------------------------------------


class Query(Check[_QueryParams]):
    """Evaluate a PromQL expression now.

    A value that is NaN or infinite leaves every fact computed from it unknown.
    """

    name = "prometheus.query"
    Params = _QueryParams
    connection = PrometheusConnection
    facts: ClassVar[Mapping[str, Fact]] = {
        "found": Fact(FactType.BOOL, "the expression gave at least one series"),
        "count": Fact(FactType.INT, "number of series; unknown when there are none"),
        "value": Fact(FactType.DOUBLE, "the value; unknown unless there is exactly one series"),
        "min": Fact(FactType.DOUBLE, "smallest value of all series"),
        "max": Fact(FactType.DOUBLE, "largest value of all series"),
        "values": Fact(FactType.DOUBLE_MAP, 'value by series, `up{job="node"}`; unknown when there are more than 100'),
        "truncated": Fact(FactType.BOOL, "true when `values` was too large to keep"),
    }
    permissions = (Permission(PermissionKind.HTTP, ("GET",), "/api/v1/query"),)
    example: ClassVar[Mapping[str, Any]] = {
        "connection": "main",
        "query": 'sum(rate(http_requests_total{code=~"5..", service=$service}[5m]))',
        "args": {"service": "${labels.service}"},
    }

    async def run(self, params: _QueryParams, ctx: Context) -> Mapping[str, Value]:
        """Query once."""
        data, _ = await _ask(ctx, params.connection, "/api/v1/query", {"query": params.bound()})
        return query_facts([(name, _number(sample)) for name, sample in _series(data, "vector")])


def query_facts(series: Sequence[tuple[str, float]]) -> dict[str, Value]:
    """Return the facts of `prometheus.query` from (signature, value) pairs."""
    facts: dict[str, Value] = {"found": bool(series), "truncated": False}
    if not series:
        return facts
    facts["count"] = len(series)
    values = [value for _, value in series]
    if not all(math.isfinite(value) for value in values):
        return facts
    if len(series) == 1:
        facts["value"] = values[0]
    facts |= {"min": min(values), "max": max(values)}
    if len(series) > MAX_SERIES or sum(len(name.encode()) for name, _ in series) > _MAX_MAP:
        # A shortened map would make `values.all(…)` true of what was cut away.
        return facts | {"truncated": True}
    return facts | {"values": dict(series)}


class _RangeParams(_QueryParams):
    window: Duration = Field(description="how far back to look")
    step: Duration | None = Field(None, description="time between two points; default a sixtieth of the window, at least 1s")

    @model_validator(mode="after")
    def _points_fit(self) -> Self:
        if self.window < timedelta(seconds=1) or (self.step is not None and self.step < timedelta(seconds=1)):
            raise ValueError("window and step are at least 1s")
        if self.window / self.spacing > MAX_POINTS:
            raise ValueError(f"window/step gives more than {MAX_POINTS} points")
        return self

    @property
    def spacing(self) -> timedelta:
        """Time between two points."""
        return self.step or max(self.window / 60, timedelta(seconds=1))


class Range(Check[_RangeParams]):
    """Evaluate a PromQL expression over the last `window`, for one series.

    More than one series leaves all but `found` and `count` unknown. `span` tells how much of the window really had data.
    """

    name = "prometheus.range"
    Params = _RangeParams
    connection = PrometheusConnection
    facts: ClassVar[Mapping[str, Fact]] = {
        "found": Fact(FactType.BOOL, "the expression gave at least one series"),
        "count": Fact(FactType.INT, "number of series; unknown when there are none"),
        "samples": Fact(FactType.INT, "number of points of the series"),
        "span": Fact(FactType.DURATION, "time from its first to its last point"),
        "min": Fact(FactType.DOUBLE, "smallest value"),
        "max": Fact(FactType.DOUBLE, "largest value"),
        "avg": Fact(FactType.DOUBLE, "mean value"),
        "first": Fact(FactType.DOUBLE, "oldest value"),
        "last": Fact(FactType.DOUBLE, "newest value"),
        "change": Fact(FactType.DOUBLE, "newest minus oldest value, for gauges"),
        "increase": Fact(FactType.DOUBLE, "growth of a counter from its first point on, restarts from zero allowed for"),
    }
    permissions = (Permission(PermissionKind.HTTP, ("GET",), "/api/v1/query_range"),)
    example: ClassVar[Mapping[str, Any]] = {
        "connection": "main",
        "query": "process_resident_memory_bytes{instance=$instance}",
        "args": {"instance": "${labels.instance}"},
        "window": "1h",
    }

    async def run(self, params: _RangeParams, ctx: Context) -> Mapping[str, Value]:
        """Query once, up to now."""
        query = {
            "query": params.bound(),
            "start": f"{(ctx.now - params.window).timestamp():.3f}",
            "end": f"{ctx.now.timestamp():.3f}",
            "step": f"{params.spacing.total_seconds():.3f}",
        }
        data, _ = await _ask(ctx, params.connection, "/api/v1/query_range", query)
        return range_facts([samples for _, samples in _series(data, "matrix")])


def range_facts(series: Sequence[Sequence[Any]]) -> dict[str, Value]:
    """Return the facts of `prometheus.range` from each series' `[time, "text"]` samples."""
    if not series:
        return {"found": False}
    facts: dict[str, Value] = {"found": True, "count": len(series)}
    if len(series) > 1:
        return facts
    samples = series[0]
    values = [_number(sample) for sample in samples]
    facts |= {"samples": len(values), "span": timedelta(seconds=float(samples[-1][0]) - float(samples[0][0]))}
    if not all(math.isfinite(value) for value in values):
        return facts
    computed = {
        "min": min(values),
        "max": max(values),
        "avg": sum(values) / len(values),
        "first": values[0],
        "last": values[-1],
        "change": values[-1] - values[0],
        "increase": sum((after - before if after >= before else after for before, after in pairwise(values)), 0.0),
    }
    return facts | {name: value for name, value in computed.items() if math.isfinite(value)}


# --- alerting rules -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AlertReading:
    """Where an alerting rule stands for one alert. None: it can't be told."""

    rule_found: bool
    evaluated_after: bool | None = None
    active: bool | None = None
    state: str | None = None
    """`firing`, `pending` or `inactive`."""
    evaluations: tuple[str, ...] = ()
    """When the rules that may have raised the alert were last evaluated, as Prometheus writes it."""
    scraped: bool | None = None
    """Its target was scraped when they were; None: no target has the alert's `job` and `instance`."""


def read_rules(groups: Sequence[JSON], *, alertname: str, labels: Mapping[str, str], after: datetime | None) -> AlertReading:
    """Read `/api/v1/rules` for the alert with `labels`.

    Alertmanager's copy of an alert has more labels than the rule's (external labels), so the rule's labels must be among the
    subject's. A rule's alert that contradicts none of them but has further labels could be the subject with a label dropped on the
    way: then it can't be told. Relabelling that *replaces* a label's value can't be seen from here.
    """
    rules = [(group, rule) for group in groups for rule in group["rules"] if _may_be(rule, alertname, labels)]
    if not rules:
        return AlertReading(rule_found=False)
    evaluated = None if after is None else all(_evaluated_after(group, rule, after) for group, rule in rules)
    times = tuple(sorted({rule["lastEvaluation"] for _, rule in rules if rule.get("lastEvaluation")}))
    alerts = [alert for _, rule in rules for alert in rule.get("alerts") or () if not _contradicts(alert["labels"], labels)]
    states = {alert["state"] for alert in alerts if all(labels.get(name) == value for name, value in alert["labels"].items())}
    if states:
        return AlertReading(rule_found=True, evaluated_after=evaluated, active=True, state="firing" if "firing" in states else "pending")
    if alerts or any(rule.get("health") != "ok" for _, rule in rules):
        return AlertReading(rule_found=True, evaluated_after=evaluated)
    return AlertReading(rule_found=True, evaluated_after=evaluated, active=False, state="inactive", evaluations=times)


def _contradicts(found: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return any(name in labels and labels[name] != value for name, value in found.items())


def _may_be(rule: Mapping[str, JSON], alertname: str, labels: Mapping[str, str]) -> bool:
    """Tell whether the rule may have raised the subject: its name, and no constant label that says otherwise."""
    constant = {name: value for name, value in (rule.get("labels") or {}).items() if "{{" not in value}
    return rule.get("type") == "alerting" and rule["name"] == alertname and not _contradicts(constant, labels)


def _evaluated_after(group: Mapping[str, JSON], rule: Mapping[str, JSON], after: datetime) -> bool:
    """Tell whether the rule, and its group as a whole, began a successful evaluation after `after`."""
    times = [datetime.fromisoformat(part["lastEvaluation"]) for part in (group, rule) if part.get("lastEvaluation")]
    return bool(times) and rule.get("health") == "ok" and min(times) > after


async def read_alert(ctx: Context, connection: str, *, alertname: str, labels: Mapping[str, str], after: datetime | None) -> AlertReading:
    """Ask Prometheus where an alerting rule stands. `after` is on our clock. Raises `CheckFailed`.

    A scrape that fails takes a target's series away, and with them its alerts: for an inactive rule it is asked besides whether the
    target was scraped at that evaluation.
    """
    data, answer = await _ask(ctx, connection, "/api/v1/rules", {"type": "alert"}, limit=_RULES_BODY)
    if after is not None:
        after += _ahead(answer, ctx.now)
    try:
        reading = read_rules(data["groups"], alertname=alertname, labels=labels, after=after)
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise CheckFailed(f"Prometheus {connection!r} sent rules of an unknown shape") from error
    if not (labels.get("job") and labels.get("instance")):
        return reading
    ups = [await _up(ctx, connection, labels, when) for when in reading.evaluations]
    known = [up for up in ups if up is not None]
    return replace(reading, scraped=all(known) if known else None)


async def _up(ctx: Context, connection: str, labels: Mapping[str, str], when: str) -> bool | None:
    """Tell whether the target with these labels was scraped as it should at a moment; None when there is no such target."""
    query = bind("up{job=$job, instance=$instance}", {name: labels[name] for name in ("job", "instance")})
    data, _ = await _ask(ctx, connection, "/api/v1/query", {"query": query, "time": when})
    try:
        found = [entry for entry in data["result"] if not _contradicts(entry["metric"], {**labels, "__name__": "up"})]
        return all(_number(entry["value"]) == 1 for entry in found) if found else None
    except (TypeError, LookupError, AttributeError) as error:
        raise CheckFailed("Prometheus sent a result of an unknown shape") from error


def _ahead(answer: Answer, began: datetime) -> timedelta:
    """Return how far Prometheus' clock is ahead of ours: its evaluation times would look later than they were."""
    try:
        there = parsedate_to_datetime(answer.headers.get("date", ""))
    except ValueError:
        return timedelta()
    return max(there - (began + answer.elapsed), timedelta()) if there.tzinfo else timedelta()


class _AlertParams(Params):
    connection: str
    alertname: str = Field(min_length=1)
    labels: Mapping[str, str] = Field(default_factory=dict, description="the alert's labels as Alertmanager sent them")
    after: AwareDatetime | None = Field(None, description="an evaluation after this moment is asked for")


class AlertRule(Check[_AlertParams]):
    """Read where the rule behind an alert stands: inactive, pending or firing, and whether it was evaluated after a moment.

    Labels whose values `alert_relabel_configs` replaces make the alert look inactive: relabel by adding labels instead.
    """

    name = "prometheus.alert"
    Params = _AlertParams
    connection = PrometheusConnection
    facts: ClassVar[Mapping[str, Fact]] = {
        "rule_found": Fact(FactType.BOOL, "an alerting rule of this name could have raised the alert"),
        "evaluated_after": Fact(FactType.BOOL, "it was evaluated, without fault, after `after`; unknown without `after`"),
        "active": Fact(FactType.BOOL, "it is pending or firing for these labels; unknown when its last evaluation failed"),
        "state": Fact(FactType.STRING, "inactive, pending or firing"),
        "scraped": Fact(
            FactType.BOOL,
            "the target with the alert's `job` and `instance` was scraped when the inactive rule was evaluated; unknown without one",
        ),
    }
    permissions = (
        Permission(PermissionKind.HTTP, ("GET",), "/api/v1/rules"),
        Permission(PermissionKind.HTTP, ("GET",), "/api/v1/query", "whether an alert's target is scraped"),
    )
    example: ClassVar[Mapping[str, Any]] = {"connection": "main", "alertname": "SiteDown", "labels": {"service": "shop"}}

    async def run(self, params: _AlertParams, ctx: Context) -> Mapping[str, Value]:
        """Read the rules once."""
        reading = await read_alert(ctx, params.connection, alertname=params.alertname, labels=params.labels, after=params.after)
        facts = {name: getattr(reading, name) for name in self.facts}
        return {name: value for name, value in facts.items() if value is not None}


PROVIDER = Provider("prometheus", checks=(Query, Range, AlertRule), connections={"prometheus": PrometheusConnection})
