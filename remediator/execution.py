"""Calling checks and actions: parameters rendered, connections resolved, time limited, errors turned into values.

The one place where the engine touches the world. It decides nothing; every outcome, also a bug in an action, comes back as a value.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum
from typing import Any, TypeVar

from pydantic import ValidationError

from remediator.action import Action, Check, Connection, Context, Reconciled, Settled
from remediator.connections import Connections, Halted
from remediator.decide import CheckResult
from remediator.errors import (
    NotReversible,
    OutcomeUnknown,
    PermanentError,
    PlanRefused,
    PreconditionChanged,
    RemediatorError,
    TemporaryError,
)
from remediator.expressions import Facts, Template, Unknown
from remediator.model import Health, Plan, Receipt, Repeat, Value, Verdict, canonical, encode_value
from remediator.registry import Registry
from remediator.rules.model import CheckSpec, StepSpec
from remediator.targets.domains import Domain, domains_of
from remediator.targets.scope import outside_scope

T = TypeVar("T")

MAX_FACTS = 64 * 1024
"""Most bytes of one check's result (`semantics.md`, 4)."""

MAX_WORDS = 20_000
"""Most characters of an error's text that are looked at at all."""

EVIDENCE = "evidence"
"""Key of a receipt's data under which an action keeps what systems printed, for responders' eyes."""

PLAN_TIMEOUT = timedelta(seconds=30)
READ_TIMEOUT = timedelta(seconds=15)
STOPPING = timedelta(seconds=3)
"""How long something that was told to stop may take for it before it is left behind."""


class Result(StrEnum):
    """What came of a call that changes something."""

    APPLIED = "applied"
    REFUSED = "refused"
    """The world was not as planned; nothing was written."""
    TEMPORARY = "temporary"
    """Nothing was written; it may work later."""
    FAILED = "failed"
    """Nothing was written; it will not work."""
    UNKNOWN = "unknown"
    """It may or may not have taken effect."""


@dataclass(frozen=True)
class Outcome:
    """What came of one call."""

    result: Result
    message: str
    receipt: Receipt | None = None
    seconds: float = 0.0
    delay: timedelta | None = None
    running: bool = False
    """True when the call did not stop when told to: what a read finds now need not last."""
    lost: bool = False
    """True when its answer was lost and a read found that it had not taken effect: it may still arrive."""


class _Late(Exception):
    """It did not answer in time, and stopped when told to."""


class _LeftBehind(_Late):
    """It did not even stop when told to: it may still be at work."""


async def _limited(doing: Coroutine[Any, Any, T], limit: timedelta) -> T:
    """Await third parties' code for so long, also when it swallows being cancelled. Raises `_Late`, `_LeftBehind`."""
    task = asyncio.create_task(doing)
    try:
        done, _ = await asyncio.wait({task}, timeout=limit.total_seconds())
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait({task}, timeout=STOPPING.total_seconds())
        raise
    if not done:
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=STOPPING.total_seconds())
        if not done:
            task.add_done_callback(lambda late: late.cancelled() or late.exception())
            raise _LeftBehind(f"no answer within {limit.total_seconds():g} s, and it did not stop when told to")
        if task.cancelled():
            raise _Late(f"no answer within {limit.total_seconds():g} s")
    if task.cancelled():
        raise RuntimeError("it cancelled itself")  # a library's own cancellation must not pass for ours
    return task.result()


class Execution:
    """Calls checks and actions on behalf of runs."""

    def __init__(
        self,
        registry: Registry,
        connections: Connections,
        *,
        scrub: Callable[[str], str],
        scrub_facts: Callable[[Any], Any] = lambda facts: facts,
        on_check: Callable[[str, float], None] = lambda _outcome, _seconds: None,
        on_verb: Callable[[str, float], None] = lambda _verb, _seconds: None,
    ) -> None:
        """`scrub` takes secrets out of texts, `scrub_facts` out of what checks found.

        `on_check` hears outcome and seconds of every check, `on_verb` verb and seconds of every reading of an action.
        """
        self._registry = registry
        self._connections = connections
        self._scrub = scrub
        self._scrub_facts = scrub_facts
        self._on_check = on_check
        self._on_verb = on_verb

    # --- checks

    async def run_checks(self, specs: Sequence[CheckSpec], facts: Facts, *, key: str) -> list[CheckResult]:
        """Run checks side by side, each with its own time limit."""
        results = await asyncio.gather(*(self._check(spec, facts, key) for spec in specs))
        for result in results:
            self._on_check("ok" if result.error is None else "failed", result.seconds)
        return results

    async def _check(self, spec: CheckSpec, facts: Facts, key: str) -> CheckResult:
        began = time.monotonic()
        try:
            found = await _limited(self._run_check(spec, facts, key), spec.timeout)
        except Exception as error:  # noqa: BLE001 - a bug in one check must not stop the others; it makes its facts unknown
            return CheckResult(spec.id, error=self.words(error), seconds=time.monotonic() - began)
        return CheckResult(spec.id, found, seconds=time.monotonic() - began)

    async def _run_check(self, spec: CheckSpec, facts: Facts, key: str) -> Mapping[str, Value]:
        kind = self._registry.check(spec.check)
        if kind is None:
            raise PermanentError(f"there is no check {spec.check!r}")
        params = self._params(kind, spec.params, facts)
        found = await kind().run(params, self._connections.context(key=f"{key}/{spec.id}"))
        known: dict[str, Value] = self._scrub_facts({name: value for name, value in found.items() if name in kind.facts})
        if len(canonical(encode_value(known))) > MAX_FACTS:
            raise PermanentError(f"it returned more than {MAX_FACTS // 1024} KiB")
        return known

    async def ask(self, check: str, params: Mapping[str, Any], *, timeout: timedelta) -> Mapping[str, Value]:  # noqa: ASYNC109
        """Run one check by name with literal parameters. Raises `TemporaryError` when it could not tell in time."""
        kind = self._registry.check(check)
        if kind is None:
            raise TemporaryError(f"there is no check {check!r}")
        try:
            return await _limited(self._ask(kind, params), timeout)
        except Exception as error:
            raise TemporaryError(f"{check}: {self.words(error)}") from error

    async def _ask(self, kind: type[Check[Any]], params: Mapping[str, Any]) -> Mapping[str, Value]:
        return await kind().run(kind.Params.model_validate(dict(params)), self._connections.context(key=kind.name))

    # --- actions

    def kind(self, name: str) -> type[Action[Any]] | None:
        """Return the action of that name, None when there is none any more."""
        return self._registry.action(name)

    def action(self, name: str) -> Action[Any]:
        """Return an instance of the action. Raises `PermanentError` when there is none of that name."""
        kind = self._registry.action(name)
        if kind is None:
            raise PermanentError(f"there is no action {name!r}")
        return kind()

    async def plan(self, spec: StepSpec, facts: Facts, *, key: str, values: Mapping[str, Value]) -> Plan:
        """Plan one step. Raises `PlanRefused` with the reason, whatever it was, or `TemporaryError`."""
        action = self.action(spec.action)
        params = self._params(type(action), spec.params, facts)
        there = self._leads_to(action, str(getattr(params, action.connection_field, "")))  # also should that change while it is planned
        made = await self._reading(action.plan(params, self._context(key, values)), PLAN_TIMEOUT, "plan", spec.action)
        return replace(made, leads_to=there or self._leads_to(action, made.connection))

    def _leads_to(self, action: Action[Any], name: str) -> str:
        """Return where an action's connection leads now; nothing where it has none, or none of its kind is there any more."""
        if action.connection is None or not name:
            return ""
        try:
            settings: Connection = self._connections.connection(action.connection, name)
        except RemediatorError:
            return ""
        return settings.leads_to()

    def _moved(self, plan: Plan) -> str | None:
        """Return why a plan is no plan for what its connection leads to by now; None when it is."""
        if not plan.leads_to or plan.leads_to == self._leads_to(self.action(plan.action), plan.connection):
            return None
        return f"connection {plan.connection!r} leads elsewhere since a change of the settings"

    def scope_of(self, plan: Plan) -> tuple[Plan, dict[str, tuple[str, ...]], int | None]:
        """Return a plan with the scope and the most targets of its connection."""
        kind = self.action(plan.action).connection
        if kind is None:
            return plan, {}, None
        if not plan.connection:
            raise PermanentError(f"{plan.action} made a plan that names no connection, so its scope can't be checked")
        settings: Connection = self._connections.connection(kind, plan.connection)
        return plan, {name: tuple(values) for name, values in settings.scope.items()}, settings.max_targets

    def domains_of(self, plans: Sequence[Plan]) -> tuple[Domain, ...]:
        """Return the failure domains that plans touch, each once."""
        found: set[Domain] = set()
        for plan in plans:
            kind = self.action(plan.action).connection
            if kind is None or not plan.connection:
                found.update(domains_of(plan))
                continue
            settings: Connection = self._connections.connection(kind, plan.connection)
            found.update(domains_of(plan, domain=settings.failure_domain, group=settings.domain_group))
        return tuple(sorted(found))

    async def apply(
        self,
        plan: Plan,
        *,
        key: str,
        values: Mapping[str, Value],
        timeout: timedelta,  # noqa: ASYNC109
        halted: Halted | None = None,
    ) -> Outcome:
        """Carry out a plan once. A lost answer is looked into with a read, where the action's class allows that.

        `halted` tells an action that writes more than once why it must not go on.
        """
        action = self.action(plan.action)
        began = time.monotonic()
        if (moved := self._moved(plan)) is not None:
            return Outcome(Result.REFUSED, moved)
        outcome = await self._apply(action, plan, self._connections.context(key=key, values=values, halted=halted), timeout)
        if outcome.result is Result.UNKNOWN and not outcome.running:
            outcome = await self.settle(plan, key=key, values=values, lost=outcome.message)
        return Outcome(outcome.result, outcome.message, outcome.receipt, time.monotonic() - began, outcome.delay, lost=outcome.lost)

    async def _apply(self, action: Action[Any], plan: Plan, ctx: Context, timeout: timedelta) -> Outcome:  # noqa: ASYNC109
        try:
            receipt = await _limited(action.apply(plan, ctx), timeout)
        except PreconditionChanged as error:
            return Outcome(Result.REFUSED, self.words(error))
        except TemporaryError as error:
            return Outcome(Result.TEMPORARY, self.words(error), delay=error.delay)
        except PermanentError as error:
            return Outcome(Result.FAILED, self.words(error))
        except OutcomeUnknown as error:
            return Outcome(Result.UNKNOWN, self.words(error))
        except _LeftBehind as error:
            return Outcome(Result.UNKNOWN, self.words(error), running=True)
        except Exception as error:  # noqa: BLE001 - late, or a bug in an action: nobody can say whether it had written by then
            return Outcome(Result.UNKNOWN, self.words(error))
        return Outcome(Result.APPLIED, self._scrub(receipt.message), self._shown(receipt))

    def _shown(self, receipt: Receipt) -> Receipt:
        """Take secrets out of what a receipt shows people. The rest of its data must stay as it is: undo needs it."""
        if EVIDENCE not in receipt.data:
            return receipt
        return replace(receipt, data={**receipt.data, EVIDENCE: self._scrub_facts(receipt.data[EVIDENCE])})

    async def settle(self, plan: Plan, *, key: str, values: Mapping[str, Value], lost: str) -> Outcome:
        """Read whether an intended call took effect; class `never` and a failed reading stay unknown."""
        action = self.action(plan.action)
        if action.repeat_of(plan) is Repeat.NEVER:
            return Outcome(Result.UNKNOWN, f"{lost}; {plan.action} can't be looked into by reading")
        if (moved := self._moved(plan)) is not None:
            return Outcome(Result.UNKNOWN, f"{lost}; and it can't be looked into: {moved}")
        try:
            reading: Reconciled = await self._reading(
                action.reconcile(plan, self._context(key, values)), READ_TIMEOUT, "reconcile", plan.action
            )
        except RemediatorError as error:
            return Outcome(Result.UNKNOWN, f"{lost}; and it could not be looked into: {self.words(error)}")
        if reading.settled is Settled.APPLIED:
            return Outcome(
                Result.APPLIED, f"{reading.message} (found by reading, after: {lost})", reading.receipt or Receipt(reading.message)
            )
        if reading.settled is Settled.NOT_APPLIED:
            return Outcome(Result.TEMPORARY, f"it had not taken effect: {reading.message} (after: {lost})", lost=True)
        return Outcome(Result.UNKNOWN, f"{lost}; {reading.message}")

    async def verify(self, plan: Plan, receipt: Receipt, *, key: str) -> Verdict:
        """Read once whether a step's effect is well. An error makes it unknown."""
        action = self.action(plan.action)
        if (moved := self._moved(plan)) is not None:
            return Verdict(Health.UNKNOWN, moved)
        try:
            return await self._reading(action.verify(plan, receipt, self._context(key, {})), READ_TIMEOUT, "verify", plan.action)
        except RemediatorError as error:
            return Verdict(Health.UNKNOWN, self.words(error))

    async def plan_undo(self, plan: Plan, receipt: Receipt, *, key: str, made: str) -> Plan:
        """Plan the way back of the call that was made with the key `made`. Raises `NotReversible` or `PlanRefused`."""
        action = self.action(plan.action)
        if (moved := self._moved(plan)) is not None:
            raise PlanRefused(f"{moved}, and what was done stands where it led then")

        async def way_back() -> Plan:
            known = await action.recall(plan, receipt, self._context(made, {}))
            return await action.undo(plan, known, self._context(key, {}))

        back: Plan = await self._reading(way_back(), PLAN_TIMEOUT, "plan", f"undo of {plan.action}")
        return replace(back, leads_to=plan.leads_to or self._leads_to(action, back.connection))

    # --- for the daemon itself

    async def carry(
        self,
        name: str,
        params: Mapping[str, Any],
        *,
        key: str,
        values: Mapping[str, Value],
        timeout: timedelta,  # noqa: ASYNC109
    ) -> Receipt:
        """Plan an action with literal parameters and carry it out at once, within its connection's scope; each takes at most `timeout`.

        Raises what the action raises, `PlanRefused` for parameters that don't fit and outside of the scope, and `OutcomeUnknown` when
        nobody can say what came of it.
        """
        action = self.action(name)
        ctx = self._context(key, values)
        try:
            wanted = action.Params.model_validate(dict(params))
        except ValidationError as error:
            raise PlanRefused(f"the parameters of {name} don't fit: {self.words(error)}") from None
        made = await self._reading(action.plan(wanted, ctx), timeout, "plan", name)
        plan, scope, _ = self.scope_of(made)
        outside = outside_scope(plan.targets, scope)
        if outside is not None:
            raise PlanRefused(f"{name} is outside the scope of connection {plan.connection!r}: {outside}")
        try:
            return await _limited(action.apply(plan, ctx), timeout)
        except RemediatorError as error:
            raise type(error)(self.words(error)) from error
        except Exception as error:
            raise OutcomeUnknown(self.words(error)) from error

    # --- messages

    async def notify(
        self,
        name: str,
        params: Mapping[str, Any],
        *,
        key: str,
        values: Mapping[str, Value],
        timeout: timedelta,  # noqa: ASYNC109
    ) -> str | None:
        """Send a message by a notifying action; return None, or what went wrong. An action with a `text` gets `values["text"]`."""
        ctx = self._context(key, values)
        try:
            action = self.action(name)
            if not action.notifies:
                return f"{name} does not notify people; an escalation policy takes notify actions only"
            filled = {"text": values["text"], **params} if "text" in action.Params.model_fields else dict(params)
            await _limited(_deliver(action, filled, ctx), timeout)
        except Exception as error:  # noqa: BLE001 - one broken receiver must not keep a page from the others
            return self.words(error)
        return None

    # --- shared

    def _context(self, key: str, values: Mapping[str, Value]) -> Context:
        return self._connections.context(key=key, values=values)

    async def _reading(self, reading: Coroutine[Any, Any, T], limit: timedelta, verb: str, name: str) -> T:
        """Await a verb that only reads; every error that is not already one of ours becomes `TemporaryError` or `PlanRefused`."""
        began = time.monotonic()
        try:
            return await _limited(reading, limit)
        except _Late as error:
            raise TemporaryError(f"{verb} of {name}: {error}") from None
        except TemporaryError as error:
            raise TemporaryError(self.words(error), delay=error.delay) from error
        except (PlanRefused, NotReversible) as error:
            raise type(error)(self.words(error)) from error
        except Exception as error:
            raise PlanRefused(f"{verb} of {name}: {self.words(error)}") from error
        finally:
            self._on_verb(verb, time.monotonic() - began)

    def _params(self, kind: type[Action[Any] | Check[Any]], template: Template, facts: Facts) -> Any:
        """Render and validate parameters, with the connection resolved. Raises `PlanRefused`."""
        rendered = template.render(facts)
        if isinstance(rendered, Unknown):
            raise PlanRefused(f"a parameter of {kind.name} is unknown: {rendered.reason}")
        raw = dict(rendered or {})
        field = kind.connection_field
        if kind.connection is not None and isinstance(raw.get(field), str):
            # A pack's variables are the operator's own words and may name a connection; what comes from an alert only selects one.
            used = {name for place, expression in template.leaves if place == (field,) for name in expression.names}
            interpolated = any(not name.startswith("vars.") for name in used)
            raw[field] = self._connections.resolve_name(kind.connection, raw[field], interpolated=interpolated)
        try:
            return kind.Params.model_validate(raw)
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors(include_input=False))
            raise PlanRefused(f"the parameters of {kind.name} don't fit: {faults}") from None

    def words(self, error: BaseException) -> str:
        """Return an error in words fit for people and the audit: scrubbed, one line, not endless."""
        if isinstance(error, ValidationError):
            # Its own text shows the values, and one of them may be a secret.
            text = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors(include_input=False))
        else:
            text = str(error) if isinstance(error, RemediatorError | _Late) else f"{type(error).__name__}: {error}"
        return self._scrub(" ".join(text[:MAX_WORDS].split()))[:1000]


async def _deliver(action: Action[Any], params: Mapping[str, Any], ctx: Context) -> None:
    plan = await action.plan(action.Params.model_validate(params), ctx)
    await action.apply(plan, ctx)
