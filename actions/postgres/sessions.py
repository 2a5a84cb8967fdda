"""Actions on sets of sessions: end idle ones, cancel or end long-running statements, end one session.

All four work alike. The plan pins each session by pid and `backend_start` (statements by their start as well), since a
pid alone may soon belong to somebody else. Apply is **one** statement in which the server compares every pinned session
again with the whole wish (still idle, still for that long, filters) and signals those that still fit: a subset of the
plan, never an addition.

Never touched: the daemon's own sessions, superusers' sessions, maintenance (PostgreSQL's own tools, VACUUM, ANALYZE,
CREATE INDEX, CLUSTER), idle holders of advisory locks (`terminate_pid` can end those), and everything that is no client:
WAL senders, autovacuum, workers.

How they may be repeated: `conditional`, for the server compares in the same call, and sending it again finds only what
is left. `reconcile` tells about the effect, not about its cause: a session that ended by itself looks exactly like one
that was ended, PostgreSQL keeps no record, and the receipt says so. "Applied" means that some of the planned sessions
are gone and none is left that the statement would still pick; "not applied" that one is left, so that the statement
can't have run to its end.

All of them lock `postgres:CONNECTION/-/sessions/-`: two rules never end sessions on one server at the same time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, TypeVar
from urllib.parse import quote

from pydantic import Field

from actions.postgres import sql
from actions.postgres.connection import PostgresConnection
from actions.postgres.rights import CONNECT, READ_ALL_STATS, SIGNAL_BACKEND, require_rights
from actions.postgres.session import Session, kept_session
from remediator.action import Action, Context, Params, Reconciled, Settled
from remediator.duration import Duration, format_duration
from remediator.errors import PlanRefused, PreconditionChanged
from remediator.model import JSON, Change, Health, Impact, Plan, Receipt, Repeat, Risk, Target, Verdict

MOST = 500
"""Most sessions one plan may hold, whatever the rule says."""

Name = Field(None, min_length=1, max_length=63)


class SessionParams(Params):
    """Which sessions, by exact values. What is left out is not compared."""

    connection: str
    database: str | None = Name
    user: str | None = Name
    application: str | None = Name


class TerminateIdleParams(SessionParams):
    """Parameters of `postgres.terminate_idle`."""

    idle_for: Duration = Field(timedelta(minutes=10), ge=timedelta(seconds=10), description="idle at least this long")
    in_transaction: bool = Field(False, description="also sessions idle in an open transaction; their work is rolled back")
    max: int = Field(10, ge=1, le=MOST, description="most sessions to end, the longest idle first")


class QueriesParams(SessionParams):
    """Parameters of `postgres.cancel_queries` and `postgres.terminate_queries`."""

    longer_than: Duration = Field(timedelta(minutes=5), ge=timedelta(seconds=10), description="running at least this long")
    max: int = Field(10, ge=1, le=MOST, description="most statements to stop, the longest first")


class TerminatePidParams(SessionParams):
    """Parameters of `postgres.terminate_pid`. The filters make sure that the pid is who it is taken for."""

    pid: int = Field(ge=1, le=2**31 - 1)


P = TypeVar("P", bound=SessionParams)


@dataclass(frozen=True)
class Wish:
    """What is asked for, as the statements take it ($4 to $8)."""

    threshold: timedelta
    filters: tuple[str | None, str | None, str | None]
    detail: bool | int
    ceiling: int

    @property
    def values(self) -> tuple[Any, ...]:
        """The bound values from $4 on."""
        return (self.threshold, *self.filters, self.detail)


@dataclass(frozen=True)
class Pin:
    """One session, or one statement of one, that nothing else can be taken for."""

    id: str
    pid: int
    backend_start: str
    query_start: str | None = None

    @classmethod
    def of(cls, value: Mapping[str, JSON]) -> Pin:
        """Read what a plan or a receipt holds."""
        return cls(value["id"], value["pid"], value["backend_start"], value.get("query_start"))

    @property
    def key(self) -> tuple[int, datetime]:
        """Pid and start: what identifies a session."""
        return self.pid, datetime.fromisoformat(self.backend_start)


def _bind(pins: Sequence[Pin]) -> tuple[list[int], list[datetime], list[datetime | None]]:
    starts = [datetime.fromisoformat(pin.query_start) if pin.query_start else None for pin in pins]
    return [pin.pid for pin in pins], [pin.key[1] for pin in pins], starts


def _moment(value: datetime) -> str:
    return value.astimezone(UTC).isoformat(timespec="microseconds")


class SessionAction(Action[P]):
    """What the four actions share. Subclasses say which sessions, and with which function they are signalled."""

    connection = PostgresConnection
    repeat = Repeat.CONDITIONAL
    reversible = False
    permissions = (CONNECT, READ_ALL_STATS, SIGNAL_BACKEND)
    condition: ClassVar[str]
    function: ClassVar[str] = "pg_terminate_backend"
    pins_statement: ClassVar[bool] = False
    """True where the plan is about the statement that runs, and the session's next one must be left alone."""
    verb: ClassVar[str] = "end"
    after: ClassVar[str] = "ended"

    def wish(self, params: P) -> Wish:
        """Turn parameters into what the statements take. They are also the plan's `wish`, from which apply reads them."""
        raise NotImplementedError

    def describe(self, params: P) -> str:
        """Name the sessions asked for, as in *no … on connection main*."""
        raise NotImplementedError

    async def plan(self, params: P, ctx: Context) -> Plan:
        """List the sessions as they are now, the longest first, no more than the ceiling."""
        session = await kept_session(params.connection, ctx)
        await require_rights(session, ctx, READ_ALL_STATS, SIGNAL_BACKEND)
        wish = self.wish(params)
        values = (None, None, None, *wish.values)
        what = f"reading sessions on {session.settings.place}"
        rows = await session.read(ctx, what, lambda connection: connection.fetch(sql.candidates(self.condition), *values))
        total = await session.read(ctx, what, lambda connection: connection.fetchval(sql.SESSION_COUNT))
        warnings = tuple(_left_alone(rows))
        chosen = [row for row in rows if not row["spared"]]
        if not chosen:
            raise PlanRefused("; ".join((f"no {self.describe(params)} on connection {params.connection!r}", *warnings)))
        if len(chosen) > wish.ceiling:
            warnings += (f"{len(chosen) - wish.ceiling} more are left for later: the ceiling is {wish.ceiling}",)
        return self._plan(params, chosen[: wish.ceiling], total, warnings)

    def _plan(self, params: P, rows: Sequence[Mapping[str, Any]], total: int, warnings: tuple[str, ...]) -> Plan:
        targets = tuple(_target(params.connection, row) for row in rows)
        pins = [self._pin(target, row) for target, row in zip(targets, rows, strict=True)]
        described = [f"{row['state']}: {row['user']} on {row['database']} ({row['application'] or 'no application name'})" for row in rows]
        return Plan(
            action=self.name,
            summary=f"{self.verb} {len(rows)} {self.describe(params)} on connection {params.connection!r}, of {total} sessions in all",
            targets=targets,
            intent={"wish": params.model_dump(mode="json"), "sessions": pins},
            precondition={"since": {target.id: _moment(_since(row)) for target, row in zip(targets, rows, strict=True)}},
            changes=tuple(Change(target.id, "session", text, self.after) for target, text in zip(targets, described, strict=True)),
            impact=Impact(touched=len(rows), total=total),
            connection=params.connection,
            warnings=warnings,
        )

    def _pin(self, target: Target, row: Mapping[str, Any]) -> dict[str, JSON]:
        pin = {"id": target.id, "pid": row["pid"], "backend_start": _moment(row["backend_start"])}
        shown = {"user": row["user"], "database": row["database"], "application": row["application"]}
        started = {"query_start": _moment(row["query_start"])} if self.pins_statement else {}
        return {**pin, **started, **shown}

    async def apply(self, plan: Plan, ctx: Context) -> Receipt:
        """Signal the pinned sessions that still are as planned, in one statement."""
        session, wish, pins = await self._open(plan, ctx)
        await require_rights(session, ctx, READ_ALL_STATS, SIGNAL_BACKEND)
        text, values = sql.signal(self.function, self.condition), (*_bind(pins), *wish.values)
        rows = await session.write(ctx, plan.summary, lambda connection: connection.fetch(text, *values))
        signalled = {(row["pid"], row["backend_start"]) for row in rows if row["signalled"]}
        done = [pin for pin in pins if pin.key in signalled]
        if not done:
            raise PreconditionChanged(f"none of the {len(pins)} planned sessions is as it was planned any more; nothing was done")
        rest = f"; {len(pins) - len(done)} were left alone, for they had changed" if len(done) < len(pins) else ""
        return _receipt(plan, done, f"{self.after} {len(done)} of {len(pins)} planned sessions{rest}")

    async def verify(self, plan: Plan, receipt: Receipt, ctx: Context) -> Verdict:
        """Look whether what was signalled is gone."""
        session = await kept_session(plan.connection, ctx)
        pins = [Pin.of(item) for item in receipt.data["sessions"]]
        present = await self._present(session, pins, ctx)
        total = await session.read(ctx, "counting sessions", lambda connection: connection.fetchval(sql.SESSION_COUNT))
        if present:
            pids = ", ".join(str(pin.pid) for pin in present[:10])
            return Verdict(Health.UNHEALTHY, f"{len(present)} of {len(pins)} are still there (pid {pids}); {total} sessions in all")
        return Verdict(Health.HEALTHY, f"all {len(pins)} are gone; {total} sessions in all")

    async def reconcile(self, plan: Plan, ctx: Context) -> Reconciled:
        """Look whether the statement would still find something to do. The module says what the answers mean."""
        session, wish, pins = await self._open(plan, ctx)
        text, values = sql.candidates(self.condition), (*_bind(pins), *wish.values)
        rows = await session.read(ctx, "reading planned sessions", lambda connection: connection.fetch(text, *values))
        left = sum(1 for row in rows if not row["spared"])
        present = await self._present(session, pins, ctx)
        gone = [pin for pin in pins if pin not in present]
        if left or not gone:
            return Reconciled(Settled.NOT_APPLIED, f"of {len(pins)} planned sessions {len(gone)} are gone, and {left} are still as planned")
        message = f"{len(gone)} of {len(pins)} planned sessions are gone; whether they were ended or ended by themselves can't be told"
        return Reconciled(Settled.APPLIED, message, _receipt(plan, gone, message))

    async def _open(self, plan: Plan, ctx: Context) -> tuple[Session, Wish, list[Pin]]:
        params = self.Params.model_validate(dict(plan.intent["wish"]))
        pins = [Pin.of(item) for item in plan.intent["sessions"]]
        return await kept_session(plan.connection, ctx), self.wish(params), pins

    async def _present(self, session: Session, pins: Sequence[Pin], ctx: Context) -> list[Pin]:
        """Return the pins whose session (statement, where that is pinned) is still there."""
        pids, starts, _ = _bind(pins)
        rows = await session.read(ctx, "reading planned sessions", lambda connection: connection.fetch(sql.PRESENT, pids, starts))
        found = {(row["pid"], row["backend_start"]): row["query_start"] for row in rows}
        if not self.pins_statement or self.function == "pg_terminate_backend":
            return [pin for pin in pins if pin.key in found]
        return [pin for pin in pins if pin.key in found and found[pin.key] == datetime.fromisoformat(str(pin.query_start))]


def _since(row: Mapping[str, Any]) -> datetime:
    """Return since when the session has been as it is."""
    since = row["query_start"] if row["state"] == "active" else row["state_change"]
    return since if isinstance(since, datetime) else row["backend_start"]


def _receipt(plan: Plan, pins: Sequence[Pin], message: str) -> Receipt:
    wanted = {pin.id for pin in pins}
    sessions = [item for item in plan.intent["sessions"] if item["id"] in wanted]
    return Receipt(message=message, data={"sessions": sessions}, touched=tuple(pin.id for pin in pins))


def _target(connection: str, row: Mapping[str, Any]) -> Target:
    """Name a session; a database name is quoted as in a URL, since it may hold any character."""
    start = _moment(row["backend_start"])
    return Target(
        id=f"postgres:{connection}/{quote(row['database'], safe='')}/session/{row['pid']}@{start}",
        lock=f"postgres:{connection}/-/sessions/-",
        scope={"database": row["database"], "user": row["user"]},
        uid=f"{row['pid']}@{start}",
    )


_WHY = {
    "own": "the daemon's own",
    "superuser": "superusers', which the daemon never ends",
    "maintenance": "maintenance (name the application to include a tool; a VACUUM or CREATE INDEX is always left alone)",
    "lock": "holding an advisory lock (a leader elected by it looks idle)",
}


def _left_alone(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say which sessions would fit the wish and are excluded all the same."""
    texts = []
    for word, why in _WHY.items():
        pids = [str(row["pid"]) for row in rows if row["spared"] == word]
        if pids:
            texts.append(f"excluded: {len(pids)} (pid {', '.join(pids[:10])}) {why}")
    return texts


class TerminateIdle(SessionAction[TerminateIdleParams]):
    """End sessions that have been idle for long, the longest first.

    A well-behaved pool reconnects. Sessions with an open transaction are only taken with `in_transaction: true`, and lose it.
    """

    name = "postgres.terminate_idle"
    Params = TerminateIdleParams
    risk = Risk.MEDIUM
    condition = sql.IDLE
    example: ClassVar[Mapping[str, Any]] = {"connection": "main", "idle_for": "10m", "database": "shop", "max": 10}

    def wish(self, params: TerminateIdleParams) -> Wish:
        """Idle longer than asked."""
        filters = (params.database, params.user, params.application)
        return Wish(params.idle_for, filters, params.in_transaction, params.max)

    def describe(self, params: TerminateIdleParams) -> str:
        """Name the idle sessions."""
        state = "idle (also in a transaction)" if params.in_transaction else "idle"
        return f"sessions {state} for longer than {format_duration(params.idle_for)}{_filter_words(params)}"


class QueriesAction(SessionAction[QueriesParams]):
    """What cancelling and ending long-running statements share."""

    Params = QueriesParams
    condition = sql.ACTIVE
    pins_statement = True

    def wish(self, params: QueriesParams) -> Wish:
        """Run longer than asked."""
        return Wish(params.longer_than, (params.database, params.user, params.application), True, params.max)

    def describe(self, params: QueriesParams) -> str:
        """Name the long-running statements."""
        return f"statements running for longer than {format_duration(params.longer_than)}{_filter_words(params)}"


class CancelQueries(QueriesAction):
    """Cancel statements that have run for long; their sessions live on, their transactions fail.

    The statement is pinned by its start: a session that has gone on to its next statement is left alone. PostgreSQL has no
    call that compares and signals in one instant, so a statement that ends within the microseconds between may cost the next one.
    """

    name = "postgres.cancel_queries"
    risk = Risk.MEDIUM
    function = "pg_cancel_backend"
    verb = "cancel"
    after = "cancelled"
    example: ClassVar[Mapping[str, Any]] = {"connection": "main", "longer_than": "5m", "database": "shop", "max": 5}


class TerminateQueries(QueriesAction):
    """End the sessions whose statements have run for long: for statements that do not react to being cancelled."""

    name = "postgres.terminate_queries"
    risk = Risk.HIGH
    example: ClassVar[Mapping[str, Any]] = {"connection": "main", "longer_than": "10m", "database": "shop", "max": 5}


class TerminatePid(SessionAction[TerminatePidParams]):
    """End one session by its pid, whatever it is doing; its transaction is rolled back.

    The plan pins the session's start as well, and the filters refuse a pid that belongs to somebody else by now.
    """

    name = "postgres.terminate_pid"
    Params = TerminatePidParams
    risk = Risk.HIGH
    condition = sql.PID
    example: ClassVar[Mapping[str, Any]] = {"connection": "main", "pid": 4711, "database": "shop"}

    def wish(self, params: TerminatePidParams) -> Wish:
        """Have exactly this pid."""
        return Wish(timedelta(), (params.database, params.user, params.application), params.pid, 1)

    def describe(self, params: TerminatePidParams) -> str:
        """Name the one session."""
        return f"session with pid {params.pid}{_filter_words(params)}"


def _filter_words(params: SessionParams) -> str:
    named = {"database": params.database, "user": params.user, "application": params.application}
    return "".join(f", {word} {value!r}" for word, value in named.items() if value is not None)
