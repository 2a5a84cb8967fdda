"""What every action must pass, and a context to run actions and checks in tests.

Derive a test class from `ActionConformance`, tell it how to reach a real system, and pytest runs the contract against it:

* the example is valid, and plans and receipts survive JSON;
* planning, verifying and planning the undo write nothing (the system's state is compared before and after);
* apply refuses a changed world; a second apply of the same plan never has a second effect;
* a crash at any suspension point of apply leaves a state that the declared class of repetition tells truly;
* undo restores what it declares to restore, also where only a person says that the call was made, or says why it can't.

`assert_facts_match` holds a check's result against its declaration.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import os
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TypeVar

import pytest

from remediator.action import SETTLED_BY, Action, Check, Connection, FactType, Identity, SecretRef, Settled
from remediator.errors import NotFound, NotReversible, OutcomeUnknown, PermanentError, PlanRefused, PreconditionChanged
from remediator.model import JSON, Health, Plan, Receipt, Repeat, Value, canonical, encode_value, from_json, to_json

C = TypeVar("C", bound=Connection)
T = TypeVar("T")


class LocalContext:
    """A `remediator.action.Context` for tests and scripts: connections by name, secrets from environment and files."""

    def __init__(
        self,
        connections: Mapping[str, Connection],
        *,
        identity: Identity | None = None,
        key: str = "test/1",
        values: Mapping[str, Value] | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        halted: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._connections = dict(connections)
        self._clients: dict[str, Any] = {}
        self._now = now
        self._halted = halted
        self.identity = identity or Identity()
        self.key = key
        self.values: Mapping[str, Value] = values or {}

    @property
    def now(self) -> datetime:
        """The present time, or what the test says."""
        return self._now()

    def connection(self, model: type[C], name: str) -> C:
        """Return the settings of connection `name`. Raises `NotFound`."""
        found = self._connections.get(name)
        if not isinstance(found, model):
            raise NotFound(f"no connection {name!r} of kind {model.__name__}")
        return found

    async def client(self, model: type[C], name: str, open_: Callable[[C, Any], Awaitable[T]]) -> T:
        """Return the client of connection `name`, opened once."""
        if name not in self._clients:
            self._clients[name] = await open_(self.connection(model, name), self)
        return self._clients[name]  # type: ignore[no-any-return]

    async def discard(self, model: type[C], name: str) -> None:  # noqa: ARG002 - part of the protocol
        """Close and forget the client of connection `name`."""
        client = self._clients.pop(name, None)
        close = getattr(client, "aclose", None) or getattr(client, "close", None)
        if close is not None:
            result = close()
            if inspect.isawaitable(result):
                await result

    async def secret(self, ref: SecretRef) -> str:
        """Return the value behind an `env` or `file` reference."""
        if ref.env is not None and ref.env in os.environ:
            return os.environ[ref.env]
        if ref.file is not None:
            return Path(ref.file).read_text().rstrip("\n")  # noqa: ASYNC240 - a small local file
        raise PermanentError(f"secret {ref!r} can't be read here")

    async def halted(self) -> str | None:
        """Return why nothing further may be done, as the test says."""
        return self._halted()

    async def aclose(self) -> None:
        """Close all clients."""
        for name in list(self._clients):
            await self.discard(Connection, name)


# --- facts ---------------------------------------------------------------------------------------------------------------

MAX_FACT_BYTES = 65_536
MAX_ROWS = 100
MAX_SAMPLE = 500


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def _is_float(value: Any) -> bool:
    return isinstance(value, float)


def _is_str(value: Any) -> bool:
    return isinstance(value, str)


def _is_dyn(value: Any) -> bool:
    if isinstance(value, Mapping):
        return _maps(value, _is_dyn)
    if isinstance(value, list):
        return _lists(value, _is_dyn)
    return isinstance(value, bool | float | str | timedelta | datetime) or _is_int(value)


def _is_row(value: Any) -> bool:
    return isinstance(value, Mapping) and _maps(value, _is_dyn)


def _lists(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(fits(item) for item in value)


def _maps(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, Mapping) and all(isinstance(key, str) and fits(item) for key, item in value.items())


_FITS: Mapping[FactType, Callable[[Any], bool]] = {
    FactType.INT: _is_int,
    FactType.DOUBLE: _is_float,
    FactType.BOOL: lambda value: isinstance(value, bool),
    FactType.STRING: _is_str,
    FactType.DURATION: lambda value: isinstance(value, timedelta),
    FactType.TIMESTAMP: lambda value: isinstance(value, datetime) and value.tzinfo is not None,
    FactType.STRINGS: lambda value: _lists(value, _is_str),
    FactType.INTS: lambda value: _lists(value, _is_int),
    FactType.STRING_MAP: lambda value: _maps(value, _is_str),
    FactType.INT_MAP: lambda value: _maps(value, _is_int),
    FactType.DOUBLE_MAP: lambda value: _maps(value, _is_float),
    FactType.ROWS: lambda value: _lists(value, _is_row),
    FactType.DYN: _is_dyn,
}


def _strings(value: Value) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for item in value.values() for text in _strings(item)]
    if isinstance(value, list):
        return [text for item in value for text in _strings(item)]
    return []


def assert_facts_match(check: Check[Any] | type[Check[Any]], facts: Mapping[str, Value]) -> None:
    """Assert that a check's result is what it declared: only declared names, of their types, none null, and small.

    Small means `semantics.md`, 4: 64 KiB in all, 100 rows or entries a fact, 500 characters a text of evidence.
    """
    for name, value in facts.items():
        assert name in check.facts, f"{check.name}: fact {name!r} is not declared; declared are {sorted(check.facts)}"
        fact = check.facts[name]
        assert _FITS[fact.type](value), f"{check.name}: fact {name!r} is {value!r}, which is no {fact.type.value}"
        if isinstance(value, list | Mapping):
            assert len(value) <= MAX_ROWS, f"{check.name}: fact {name!r} has {len(value)} entries, more than {MAX_ROWS}"
        if fact.evidence:
            longest = max((len(text) for text in _strings(value)), default=0)
            assert longest <= MAX_SAMPLE, f"{check.name}: evidence {name!r} holds a text of {longest} characters, more than {MAX_SAMPLE}"
    size = len(canonical(encode_value(dict(facts))))
    assert size <= MAX_FACT_BYTES, f"{check.name}: {size} bytes of facts, more than {MAX_FACT_BYTES}"


# --- a process that dies -----------------------------------------------------------------------------------------------


class Crash(BaseException):
    """Thrown into a coroutine where a process would have died."""


class _CrashingAt:
    """Awaits a coroutine and throws `Crash` into it at its n-th suspension (from 0).

    A dead process awaits nothing more: every further await in the coroutine's clean-up is broken off as well.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, T], suspension: int) -> None:
        self.coroutine = coroutine
        self.left = suspension

    def __await__(self) -> Generator[Any, Any, Any]:
        inner = self.coroutine.__await__()
        resume: Callable[[], Any] = functools.partial(inner.send, None)
        try:
            while True:
                yielded = resume()
                if self.left == 0:
                    self._kill(inner, yielded)
                self.left -= 1
                try:
                    resume = functools.partial(inner.send, (yield yielded))
                except BaseException as error:  # noqa: BLE001 - a cancellation, say: the coroutine decides what it means
                    resume = functools.partial(inner.throw, error)
        except StopIteration as stop:
            return stop.value

    @staticmethod
    def _kill(inner: Generator[Any, Any, Any], awaited: Any) -> NoReturn:
        for _ in range(100):
            try:
                inner.throw(Crash())
            except BaseException as error:
                # What was being awaited died with the process; an abandoned future would leave its socket in the event loop.
                if asyncio.isfuture(awaited):
                    awaited.cancel()
                raise Crash from error
        raise AssertionError("the coroutine goes on awaiting after its process died 100 times")


async def crash_at(coroutine: Coroutine[Any, Any, T], suspension: int) -> T | None:
    """Run a coroutine and break it off at its n-th suspension (from 0), as if the process had died there.

    Returns its result when it ended before, None when it was broken off.
    """
    try:
        return await _CrashingAt(coroutine, suspension)  # type: ignore[no-any-return]
    except Crash:
        await asyncio.sleep(0)  # the event loop forgets what the dead process waited for
        return None


class ActionConformance(ABC):
    """The contract of one action against one real system; derive, implement the abstract parts, name it `Test…`.

    Each test gets a fresh `world` through `prepare`. `state` must return everything the action could change, as JSON.
    """

    action: ClassVar[Action[Any]]
    crash_points: ClassVar[int] = 40
    """How many suspension points of `apply` are tried; raise it for actions with more calls."""
    settles: ClassVar[bool] = True
    """False where the state read right after apply is not yet final (verification needs time)."""

    @abstractmethod
    async def prepare(self) -> tuple[Any, Mapping[str, Any]]:
        """Bring the system into the faulty state; return (context, parameters as a rule writes them)."""

    @abstractmethod
    async def state(self) -> JSON:
        """Read everything that the action could change, without what moves by itself (times, counters)."""

    @abstractmethod
    async def disturb(self) -> None:
        """Change the world as somebody else would between plan and apply, so that the plan's precondition fails or its set is stale."""

    async def settle(self, plan: Plan, receipt: Receipt | None, ctx: Any) -> None:  # noqa: B027 - most systems answer when they are done
        """Wait until the effect is visible, for systems that work asynchronously."""

    async def cleanup(self) -> None:  # noqa: B027 - a fresh system needs none
        """Undo what `prepare` did."""

    @pytest.fixture
    async def world(self) -> Any:
        """Prepare the system; the value is (context, validated parameters)."""
        ctx, raw = await self.prepare()
        try:
            yield ctx, self.action.Params.model_validate(raw)
        finally:
            await self.cleanup()
            await ctx.aclose()

    def test_declaration_is_complete(self) -> None:
        """The example fits the parameters, the description and the permissions are there, repetition matches undo."""
        self.action.Params.model_validate(dict(self.action.example))
        assert (self.action.__doc__ or "").strip()
        assert self.action.permissions or self.action.notifies
        overridden = type(self.action).undo is not Action.undo
        assert self.action.reversible == overridden
        if self.action.repeat is not Repeat.NEVER:
            assert type(self.action).reconcile is not Action.reconcile

    async def test_plan_writes_nothing(self, world: Any) -> None:
        """Dry run never writes: the state before and after planning is the same, and the plan says what it will do."""
        ctx, params = world
        before = canonical(await self.state())
        plan = await self.action.plan(params, ctx)
        assert canonical(await self.state()) == before
        assert plan.summary
        assert plan.targets
        assert plan.action == self.action.name
        assert from_json(Plan, to_json(plan)).hash == plan.hash

    async def test_apply_does_what_the_plan_says(self, world: Any) -> None:
        """Apply changes the state, verify says healthy, and planning the same wish again finds nothing left to do or a new plan."""
        ctx, params = world
        plan = await self.action.plan(params, ctx)
        before = canonical(await self.state())
        receipt = await self.action.apply(from_json(Plan, to_json(plan)), ctx)
        receipt = from_json(Receipt, to_json(receipt))
        await self.settle(plan, receipt, ctx)
        after = canonical(await self.state())
        assert after != before or self.action.notifies
        verdict = await self.action.verify(plan, receipt, ctx)
        assert verdict.health is Health.HEALTHY, verdict.message
        assert canonical(await self.state()) == after

    async def test_apply_never_exceeds_the_plan_when_the_world_moved(self, world: Any) -> None:
        """Somebody changes the world after planning: apply refuses, or touches only what was planned and is still there."""
        ctx, params = world
        plan = await self.action.plan(params, ctx)
        await self.disturb()
        before = canonical(await self.state())
        try:
            receipt = await self.action.apply(plan, ctx)
        except (PreconditionChanged, PermanentError):
            assert canonical(await self.state()) == before
        else:
            planned = {target.id for target in plan.targets}
            assert set(receipt.touched) <= planned | set(plan.intent.get("members", ()))

    async def test_second_apply_has_no_second_effect(self, world: Any) -> None:
        """The same plan applied twice has the effect of once, or is refused; class `never` is exempt and never repeated."""
        ctx, params = world
        plan = await self.action.plan(params, ctx)
        if self.action.repeat_of(plan) is Repeat.NEVER:
            return
        receipt = await self.action.apply(plan, ctx)
        await self.settle(plan, receipt, ctx)
        once = canonical(await self.state())
        with contextlib.suppress(PreconditionChanged, PermanentError):
            await self.action.apply(plan, ctx)
        assert canonical(await self.state()) == once

    async def test_crash_at_any_point_is_told_truly(self, world: Any) -> None:
        """After a crash at each suspension of apply, `reconcile` says applied only if it was, and not-applied only if it was not."""
        ctx, params = world
        for point in range(self.crash_points):
            plan = await self.action.plan(params, ctx)
            before = canonical(await self.state())
            receipt = await crash_at(self.action.apply(plan, ctx), point)
            await ctx.aclose()
            await self.settle(plan, receipt, ctx)
            changed = canonical(await self.state()) != before
            found = await self.action.reconcile(plan, ctx)
            if self.action.repeat_of(plan) is Repeat.NEVER:
                assert found.settled is Settled.UNKNOWN
            elif found.settled is Settled.APPLIED:
                assert found.receipt is not None
                assert changed or plan.noop, f"crash at suspension {point}: said applied, but nothing changed"
            elif found.settled is Settled.NOT_APPLIED:
                assert not changed, f"crash at suspension {point}: said not applied, but the state changed"
            elif self.action.repeat_of(plan) is Repeat.CONDITIONAL:
                raise AssertionError(f"a conditional action can always tell: {found.message}")
            if receipt is not None:
                return
            await self.cleanup()
            await ctx.aclose()
            ctx2, raw = await self.prepare()
            await ctx2.aclose()
            params = self.action.Params.model_validate(raw)
        raise AssertionError(f"apply has more than {self.crash_points} suspensions; raise crash_points")

    async def test_undo_restores(self, world: Any) -> None:
        """Where declared, the undo plan brings the state back; where not, undo says why."""
        ctx, params = world
        plan = await self.action.plan(params, ctx)
        before = canonical(await self.state())
        receipt = await self.action.apply(plan, ctx)
        await self.settle(plan, receipt, ctx)
        after = canonical(await self.state())
        if not self.action.reversible:
            with pytest.raises(NotReversible):
                await self.action.undo(plan, receipt, ctx)
            return
        back = await self.action.undo(plan, receipt, ctx)
        assert back.undoes
        assert canonical(await self.state()) == after, "planning the undo wrote something"
        try:
            undone = await self.action.apply(from_json(Plan, to_json(back)), ctx)
        except OutcomeUnknown:
            raise AssertionError("undo lost its answer on a healthy system") from None
        await self.settle(back, undone, ctx)
        assert canonical(await self.state()) == before

    @pytest.mark.parametrize("moved", [False, True])
    async def test_undo_without_a_result_restores_or_says_why(self, world: Any, *, moved: bool) -> None:
        """The answer was lost and a person settled it as applied: the result is found by reading, or the undo is refused in words.

        Also where somebody changed the world since (`moved`), when there is mostly nothing to find.
        """
        ctx, params = world
        plan = await self.action.plan(params, ctx)
        before = canonical(await self.state())
        await self.settle(plan, await self.action.apply(plan, ctx), ctx)
        if moved and self.action.reversible:
            await self.disturb()
        after = canonical(await self.state())
        said = Receipt("settled as applied by anna: I looked", {SETTLED_BY: "anna"})
        back, refusal = None, ""
        try:
            back = await self.action.undo(plan, await self.action.recall(plan, said, ctx), ctx)
        except (PlanRefused, NotReversible) as error:
            refusal = str(error)
        assert back is not None or refusal
        assert moved or back is not None or not self.action.reversible, refusal
        assert canonical(await self.state()) == after, "planning the undo wrote something"
        if back is not None and not moved:
            assert back.undoes
            assert not back.noop
            await self.settle(back, await self.action.apply(from_json(Plan, to_json(back)), ctx), ctx)
            assert canonical(await self.state()) == before
