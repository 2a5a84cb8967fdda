"""A small catalogue of checks and actions that exist only to be named in rule files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Annotated, Any, ClassVar, Literal

import pytest
from pydantic import Field

from remediator.action import Action, Check, Code, Connection, Fact, FactType, Params
from remediator.duration import Duration
from remediator.errors import InvalidFiles
from remediator.model import Repeat, Risk
from remediator.rules.compile import PackSource, RuleSet, compile_ruleset


class Cluster(Connection):
    """A connection that is never opened."""


class RolloutParams(Params):
    cluster: str
    namespace: str = Field(pattern=r"^[a-z0-9-]+$")
    deployment: str


class Rollout(Check[RolloutParams]):
    """Look at a rollout."""

    name = "kubernetes.rollout"
    Params = RolloutParams
    connection = Cluster
    connection_field = "cluster"
    facts: ClassVar[Mapping[str, Fact]] = {
        "age": Fact(FactType.DURATION, "time since it changed"),
        "ready": Fact(FactType.INT, "ready replicas"),
        "desired": Fact(FactType.INT, "wished replicas"),
        "latency": Fact(FactType.DOUBLE, "seconds"),
        "reasons": Fact(FactType.STRINGS, "why containers ended"),
        "logs": Fact(FactType.STRINGS, "last lines", evidence=True),
        "rows": Fact(FactType.ROWS, "pods"),
        "reachable": Fact(FactType.BOOL, "whether it answers"),
    }
    permissions = ()
    example: ClassVar[Mapping[str, Any]] = {"cluster": "production", "namespace": "shop", "deployment": "api"}

    async def run(self, params: Any, ctx: Any) -> Mapping[str, Any]:
        raise NotImplementedError


class QueryParams(Params):
    query: Code
    args: dict[str, str] = Field(default_factory=dict)


class Query(Rollout):
    """Ask Prometheus."""

    name = "prometheus.query"
    Params = QueryParams
    connection = None
    facts: ClassVar[Mapping[str, Fact]] = {"value": Fact(FactType.DOUBLE, "the value"), "reachable": Fact(FactType.BOOL, "it answers")}


class ScaleParams(Params):
    cluster: str
    deployment: str
    replicas: int = Field(ge=1, le=100)
    wait: Duration = timedelta(minutes=5)
    strategy: Literal["fast", "slow"] = "fast"
    factor: float = 1.0
    labels: dict[str, str] = Field(default_factory=dict)
    names: tuple[Annotated[str, Field(max_length=20)], ...] = ()
    force: bool = False


class Scale(Action[ScaleParams]):
    """Change the number of replicas."""

    name = "kubernetes.scale"
    Params = ScaleParams
    connection = Cluster
    connection_field = "cluster"
    risk = Risk.LOW
    repeat = Repeat.CONDITIONAL
    reversible = True
    permissions = ()
    example: ClassVar[Mapping[str, Any]] = {"cluster": "production", "deployment": "api", "replicas": 3}

    async def plan(self, params: Any, ctx: Any) -> Any:
        raise NotImplementedError

    async def apply(self, plan: Any, ctx: Any) -> Any:
        raise NotImplementedError

    async def verify(self, plan: Any, receipt: Any, ctx: Any) -> Any:
        raise NotImplementedError


class RolloutUndo(Scale):
    """Go back to the revision before."""

    name = "kubernetes.rollout_undo"
    Params = RolloutParams
    risk = Risk.MEDIUM
    undo_restores_fault = True


class Flush(Scale):
    """Empty a database."""

    name = "redis.flush_db"
    risk = Risk.HIGH
    reversible = False


class ScriptParams(Params):
    sql: Code
    args: dict[str, str | int] = Field(default_factory=dict)


class Execute(Scale):
    """Run one statement."""

    name = "postgres.execute"
    Params = ScriptParams
    connection = None
    risk = Risk.HIGH
    reversible = False


class SlackParams(Params):
    text: str


class Slack(Scale):
    """Tell people."""

    name = "notify.slack"
    Params = SlackParams
    connection = None
    reversible = False
    notifies = True


class FakeCatalogue:
    """Names the classes above."""

    actions: ClassVar[dict[str, type[Action[Any]]]] = {kind.name: kind for kind in (Scale, RolloutUndo, Flush, Execute, Slack)}
    checks: ClassVar[dict[str, type[Check[Any]]]] = {kind.name: kind for kind in (Rollout, Query)}

    def action(self, name: str) -> type[Action[Any]] | None:
        return self.actions.get(name)

    def check(self, name: str) -> type[Check[Any]] | None:
        return self.checks.get(name)

    def action_names(self) -> tuple[str, ...]:
        return tuple(self.actions)

    def check_names(self) -> tuple[str, ...]:
        return tuple(self.checks)


@pytest.fixture
def catalogue() -> FakeCatalogue:
    """Return the catalogue of fakes."""
    return FakeCatalogue()


@pytest.fixture
def load(catalogue: FakeCatalogue) -> Callable[..., RuleSet]:
    """Return a function that compiles one text (or files by name) as the pack `shop`."""

    def compile_(files: str | bytes | Mapping[str, str | bytes], **options: Any) -> RuleSet:
        if isinstance(files, str | bytes):
            files = {"rules.yaml": files}
        data = {path: text.encode() if isinstance(text, str) else text for path, text in files.items()}
        return compile_ruleset([PackSource("shop", options.pop("vars", {}), data)], catalogue, **options)

    return compile_


@pytest.fixture
def problems(load: Callable[..., RuleSet]) -> Callable[..., list[str]]:
    """Return a function that gives the problems of a text as `file:line:column: message`."""

    def find(files: str | bytes | Mapping[str, str | bytes], **options: Any) -> list[str]:
        with pytest.raises(InvalidFiles) as caught:
            load(files, **options)
        return [str(problem) for problem in caught.value.problems]

    return find
