"""The contract between the daemon and what it can do: actions, checks, connections, permissions.

This is all that a module under `actions/` (or a third party's) imports. It does no I/O. The daemon lends each call a
`Context`; an action never keeps one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Generic, Protocol, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from remediator.errors import NotReversible, PlanRefused
from remediator.model import Plan, Receipt, Repeat, Risk, Value, Verdict, digest

# --- parameters --------------------------------------------------------------------------------------------------------


class Params(BaseModel):
    """Base of every action's and check's parameters: unknown keys are errors, values don't change.

    Spans of time are `remediator.duration.Duration` fields and are written `10m`, `1h30m`, `7d` in rules.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)


CODE = {"x-remediator-code": True}
"""JSON-Schema mark of a parameter that is code (SQL, PromQL, a path, a selector, a pattern)."""

Code = Annotated[str, Field(json_schema_extra=CODE)]
"""A parameter that is code: takes no `${…}` interpolation, only constants; values go through an `args` parameter."""


# --- connections -------------------------------------------------------------------------------------------------------


class SecretRef(BaseModel):
    """Where a secret is kept. Exactly one of the fields is set. The value itself never stands in settings or rules."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    env: str | None = Field(None, description="name of an environment variable")
    file: str | None = Field(None, description="path of a file; read again at each use, trailing newline removed")
    kubernetes: str | None = Field(None, description="CLUSTER/NAMESPACE/SECRET/KEY")
    aws: str | None = Field(None, description="ARN or name in Secrets Manager, with #KEY for one field of a JSON secret")

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if sum(bool(value) for value in (self.env, self.file, self.kubernetes, self.aws)) != 1:
            raise ValueError("a reference names exactly one place: env, file, kubernetes or aws")
        return self


_DOMAIN = r"^([A-Za-z0-9][A-Za-z0-9._-]{0,62})?$"


class Connection(BaseModel):
    """A named system in the settings (`semantics.md`, 9). Each system's module derives its own.

    `scope` narrows what plans may touch on it: for each name a list of exact values or globs, e.g.
    `{namespace: [shop, "shop-*"]}`. A target whose value fits none of them is refused. No entry: no limit.
    `aliases` are the exact values of alert labels that may select this connection.
    `domain` and `domain_group` say where it lies, so that one failure domain at a time is acted in (`remediator.targets.domains`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    keepalive: ClassVar[str | None] = None
    """A check that the daemon runs now and then on every connection of this kind, so that its client is open before it is needed:
    a server that takes no more clients can still be looked at (`semantics.md`, 1)."""

    leads_by: ClassVar[tuple[str, ...] | None] = None
    """The fields that say where it leads: what was approved, or done, there is not done, or undone, elsewhere. None: all of its own."""

    scope: Mapping[str, tuple[str, ...]] = Field(default_factory=dict)
    failure_domain: str = Field("", alias="domain", pattern=_DOMAIN, description="failure domain that all of it lies in: `eu-west-1a`")
    domain_group: str = Field("", pattern=_DOMAIN, description="failure domains of one group are acted in one at a time; default: itself")
    aliases: tuple[str, ...] = ()
    max_targets: int | None = Field(None, ge=1, description="most things one plan may touch on this connection")

    def leads_to(self) -> str:
        """Return what tells where this connection leads: the same text for the same place, and no other."""
        names = set(type(self).model_fields) - set(Connection.model_fields) if self.leads_by is None else set(self.leads_by)
        return digest(self.model_dump(mode="json", include=names))

    def doubts(self, name: str, all_: Mapping[str, Connection]) -> Sequence[str]:
        """Return what these settings, called `name` among `all_` connections, allow and hardly mean, for `remediator check`.

        May read files that they name, and leaves out what can't be told from here. Asks no system.
        """
        return ()

    def placed(self, permission: Permission) -> tuple[str | None, Permission] | None:
        """Return on which connection (None: this one) and at which place a permission is needed, as far as these settings say that.

        None when it isn't needed with them.
        """
        return None, permission

    async def audit(self, name: str, rights: Sequence[Right], ctx: Context) -> Audit:
        """Compare what the credentials of this connection, called `name`, may do with the rights they need. Changes nothing.

        Raises `RemediatorError` when the system can't be asked now. Kinds of systems that can't be asked at all say so in a note.
        """
        return Audit(notes=("not checked: this kind of system can't be asked what credentials may do",))


C = TypeVar("C", bound=Connection)
P = TypeVar("P", bound=Params)
T = TypeVar("T")


@dataclass(frozen=True)
class Identity:
    """Who this daemon is, so that it never acts on itself (`semantics.md`, 11).

    `name` is sent as PostgreSQL's application_name, Redis' client name, Kubernetes' field manager and HTTP's User-Agent.
    `protected` are canonical ids (or prefixes ending in `/`) that no plan may touch: itself, its store, what it depends on.
    """

    name: str = "remediator"
    protected: frozenset[str] = frozenset()
    certain: bool = True
    """False when the daemon could not find out where it runs itself."""


class Context(Protocol):
    """What the daemon lends to one call of an action or a check."""

    @property
    def now(self) -> datetime:
        """The time this call began, UTC."""

    @property
    def identity(self) -> Identity:
        """Who this daemon is."""

    @property
    def key(self) -> str:
        """A text that is the same at every repetition of the same step and different for every other (idempotency key)."""

    @property
    def values(self) -> Mapping[str, Value]:
        """Facts of the incident for people's eyes (`incident`, `rule`, `severity`, `summary`, …); notifications show them."""

    def connection(self, model: type[C], name: str) -> C:
        """Return the settings of connection `name`, which must be of `model`. Raises `NotFound`."""

    async def client(self, model: type[C], name: str, open_: Callable[[C, Context], Awaitable[T]]) -> T:
        """Return the client of connection `name`, opened by `open_` on first use, kept and closed by the daemon.

        The daemon closes it through its `aclose`, else its `close` method; either may be async. A client that stopped
        working is thrown away with `discard`.
        """

    async def discard(self, model: type[C], name: str) -> None:
        """Close and forget the client of connection `name`; the next `client` opens another."""

    async def secret(self, ref: SecretRef) -> str:
        """Return the value of a secret now. Raises `PermanentError` naming the reference (never a value)."""

    async def halted(self) -> str | None:
        """Return why this call must do nothing further (the kill switch, a lost lease, authority taken away); None when it may.

        An `apply` that writes more than once, or waits before it does, asks before each write, and ends with a receipt of what was done.
        """


# --- permissions -------------------------------------------------------------------------------------------------------


class PermissionKind(StrEnum):
    """Which system grants it."""

    KUBERNETES = "kubernetes"
    AWS = "aws"
    POSTGRES = "postgres"
    REDIS = "redis"
    HTTP = "http"
    COMMAND = "command"


@dataclass(frozen=True)
class Permission:
    """A right that an action or check needs, in the granting system's own words.

    Kubernetes: `resource` is `GROUP/RESOURCE[/SUBRESOURCE]` (`apps/deployments`, `/pods/log`), `verbs` its RBAC verbs.
    PostgreSQL: `resource` is a predefined role or object, `verbs` the privileges (`member`, `SELECT`).
    Redis: `verbs` are ACL terms (`+ping`, `+config|set`), `resource` a key pattern or empty.
    AWS: `verbs` are IAM actions, `resource` an ARN pattern. HTTP: `verbs` methods, `resource` a path pattern.
    Commands: `verbs` is `run`, `resource` a program's absolute path.
    """

    kind: PermissionKind
    verbs: tuple[str, ...]
    resource: str = ""
    why: str = ""
    param: str = ""
    """The parameter that names the one object which this is for; several are alternatives, with spaces between. A call that leaves it
    out does not need it, and where a rule fixes its value the grant can be for that object alone. `owner: PARAM/NAME` names it as well."""
    names: tuple[str, ...] = ()
    """Only these objects of the resource; none: any."""
    place: str | None = None
    """The namespace it is for; None: where the call acts, by its parameter `namespace` and its connection's scope; "*": anywhere in the
    scope; "": in all namespaces."""


@dataclass(frozen=True, order=True)
class Right:
    """One verb on one resource at one place: what permissions come down to, and what can be compared with the truth."""

    resource: str
    verb: str
    place: str = ""
    """A namespace; empty: in all of them, or where the system knows none."""
    name: str = ""
    """Only this object; empty: any."""

    def __str__(self) -> str:
        what = f"{self.verb} {self.resource} {self.name}".strip()
        return f"{what} in namespace {self.place}" if self.place else what


@dataclass(frozen=True)
class Audit:
    """What credentials really may do, held against what they need."""

    missing: tuple[Right, ...] = ()
    excessive: tuple[Right, ...] = ()
    """Granted, and not needed."""
    unknown: tuple[Right, ...] = ()
    """Needed, and the system did not tell this time."""
    notes: tuple[str, ...] = ()
    """What was not compared, and why."""


# --- actions -----------------------------------------------------------------------------------------------------------


SETTLED_BY = "settled_by"
"""Key of a receipt that a person stands for, since the call's own answer is lost. It holds nothing else."""


class Settled(StrEnum):
    """What a read after a crash or a lost answer could tell about an intended call."""

    APPLIED = "applied"
    NOT_APPLIED = "not_applied"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Reconciled:
    """What `reconcile` found, with the receipt when the call had taken effect."""

    settled: Settled
    message: str
    receipt: Receipt | None = None


class Action(ABC, Generic[P]):
    """Something that changes the world, in four verbs. One instance serves all calls; it keeps no state.

    The class' docstring is its description: one sentence, then what to know before using it.
    """

    name: ClassVar[str]
    """`system.verb_object`, as rules write it."""
    Params: ClassVar[type[Any]]
    connection: ClassVar[type[Connection] | None] = None
    """The kind of connection it works on."""
    connection_field: ClassVar[str] = "connection"
    """The parameter that names the connection."""
    risk: ClassVar[Risk]
    repeat: ClassVar[Repeat]
    reversible: ClassVar[bool]
    undo_restores_fault: ClassVar[bool] = False
    """True when undoing brings back what was seen unhealthy; `on_failure: undo` is then refused at load."""
    notifies: ClassVar[bool] = False
    """True for messages to people: they take no locks and no budget, and are only rendered in dry run."""
    permissions: ClassVar[tuple[Permission, ...]]
    example: ClassVar[Mapping[str, Any]]
    """Parameters as a rule would write them."""

    @classmethod
    def needed(cls, params: Mapping[str, Any]) -> tuple[Permission, ...]:  # noqa: ARG003 - the whole of it by default
        """Return what one call needs, as far as a rule fixes its parameters; what only an alert will tell is None in `params`.

        For what `Permission.param` can't say: an action on any kind of object needs the rights on the kind that a rule names.
        """
        return cls.permissions

    @classmethod
    def undoable(cls, params: Mapping[str, Any]) -> bool:  # noqa: ARG003 - it is the same for all calls of most actions
        """Tell whether a call with these parameters, as far as a rule fixes them, can be undone."""
        return cls.reversible

    @classmethod
    def misfits(cls, params: Any, connection: Connection) -> Sequence[str]:  # noqa: ARG003 - what has no names fits
        """Return what in valid parameters does not fit the connection that they name, in words that follow "connection NAME".

        For messages of escalation policies: a name that the connection does not know must be found when settings load.
        """
        return ()

    @classmethod
    def pages(cls, params: Any) -> bool:  # noqa: ARG003 - most messages go to our people
        """Tell whether a policy's page reaches our own people through such parameters: not a post-mortem, nor a customers' notice."""
        return True

    def repeat_of(self, plan: Plan) -> Repeat:
        """Return how this call may be repeated, for actions of which a rule says so."""
        return self.repeat

    @abstractmethod
    async def plan(self, params: P, ctx: Context) -> Plan:
        """Read the world and resolve the wish to absolute targets. Writes nothing.

        Raises `PlanRefused` for an empty, ambiguous or forbidden target, `TemporaryError` when the world can't be read.
        """

    @abstractmethod
    async def apply(self, plan: Plan, ctx: Context) -> Receipt:
        """Compare the world with the plan's precondition, then make the change.

        Raises `PreconditionChanged`, `TemporaryError` or `PermanentError` when nothing was written, `OutcomeUnknown` when it can't be told.
        """

    @abstractmethod
    async def verify(self, plan: Plan, receipt: Receipt, ctx: Context) -> Verdict:
        """Read once whether the change took effect and what it changed is well. Writes nothing."""

    async def reconcile(self, plan: Plan, ctx: Context) -> Reconciled:
        """Read whether an intended `apply(plan)` took effect, after a crash or a lost answer. Writes nothing.

        Classes `conditional` and `detectable` override it; class `never` can't tell.
        """
        return Reconciled(Settled.UNKNOWN, f"{self.name} leaves no trace that a read could find")

    async def recall(self, plan: Plan, receipt: Receipt, ctx: Context) -> Receipt:
        """Return the receipt that `undo` is given; of a call of which only a person says that it was made, one that is found by reading.

        `ctx` is the call's own, with its key. Raises `PlanRefused` when nothing shows any more what the call did. An action whose `undo`
        needs no receipt returns what it is given.
        """
        if SETTLED_BY not in receipt.data or not self.reversible:
            return receipt
        found = await self.reconcile(plan, ctx)
        if found.settled is Settled.APPLIED and found.receipt is not None:
            return found.receipt
        raise PlanRefused(
            f"it was {receipt.message}; its own result is lost, and can't be found out by reading: {found.message}. Take it back by hand"
        )

    async def undo(self, plan: Plan, receipt: Receipt, ctx: Context) -> Plan:
        """Plan the way back: a plan of this same action (`undoes=True`) which `apply` carries out. Writes nothing.

        Raises `NotReversible`, or `PlanRefused` when somebody changed the world since.
        """
        raise NotReversible(f"{self.name} can't be undone")


# --- checks ------------------------------------------------------------------------------------------------------------


class FactType(StrEnum):
    """Type of a fact, in the words of the expression language."""

    INT = "int"
    DOUBLE = "double"
    BOOL = "bool"
    STRING = "string"
    DURATION = "duration"
    TIMESTAMP = "timestamp"
    STRINGS = "list(string)"
    INTS = "list(int)"
    STRING_MAP = "map(string, string)"
    INT_MAP = "map(string, int)"
    DOUBLE_MAP = "map(string, double)"
    ROWS = "list(map(string, dyn))"
    DYN = "dyn"


@dataclass(frozen=True)
class Fact:
    """One field of a check's result. `evidence` marks raw text from outside: scrubbed, for responders only, never in plans."""

    type: FactType
    description: str
    evidence: bool = False


class Check(ABC, Generic[P]):
    """Something that only looks. A fact it could not establish is left out of the result and is then *unknown*."""

    name: ClassVar[str]
    Params: ClassVar[type[Any]]
    connection: ClassVar[type[Connection] | None] = None
    connection_field: ClassVar[str] = "connection"
    facts: ClassVar[Mapping[str, Fact]]
    permissions: ClassVar[tuple[Permission, ...]]
    example: ClassVar[Mapping[str, Any]]

    @classmethod
    def needed(cls, params: Mapping[str, Any]) -> tuple[Permission, ...]:  # noqa: ARG003 - the whole of it by default
        """Return what one call needs, as far as a rule fixes its parameters; see `Action.needed`."""
        return cls.permissions

    @abstractmethod
    async def run(self, params: P, ctx: Context) -> Mapping[str, Value]:
        """Look once and return facts by name. Raises `CheckFailed` when it could not tell."""


@dataclass(frozen=True)
class Provider:
    """What one module under `actions/` offers; each module has one named `PROVIDER`."""

    system: str
    actions: tuple[type[Action[Any]], ...] = ()
    checks: tuple[type[Check[Any]], ...] = ()
    connections: Mapping[str, type[Connection]] = field(default_factory=dict)
    """Connection kinds by the name used as `kind` in the settings."""
    later_actions: Mapping[str, str] = field(default_factory=dict)
    """Further actions by name, each as `package.module:Class`, imported when a rule uses it: a large system costs what is used of it."""
    later_checks: Mapping[str, str] = field(default_factory=dict)
    """Further checks, in the same way."""
