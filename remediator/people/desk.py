"""Where people are heard: their votes, stops, words to runs and claims of ownership, each one durable transaction.

What each of them means is decided by the pure `remediator.people.operations`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import cast

from remediator.approval import Voters
from remediator.errors import IllegalTransition
from remediator.events import Kind
from remediator.freezes import manual
from remediator.freezes.manual import Order
from remediator.guards import Bounds
from remediator.model import Actor, Authority, Event
from remediator.people import operations, seen
from remediator.records import EVERYWHERE, SYSTEM_CHAIN, WATCHDOG, Approval, Incident, Pause, Run, SignalKind
from remediator.replacing import replace
from remediator.responders import taking
from remediator.rules.model import Rule
from remediator.runs.waking import waiting_runs
from remediator.stopping.watchdog_keeper import forget
from remediator.store.protocol import Changes, Reads, Snapshot, Store
from remediator.trust import promotion
from remediator.trust.scorecard import arms_of


async def never() -> str | None:
    """Say that nothing but the pause itself stops the daemon."""
    return None


class Desk:
    """Writes down what people say. One instance serves all surfaces of a daemon."""

    def __init__(
        self,
        store: Store,
        *,
        rules: Callable[[], Sequence[str]],
        scrub: Callable[[str], str] = lambda text: text,
        held: Callable[[], tuple[str, ...]] = lambda: (),
        on_pauses: Callable[[tuple[str, ...]], None] = lambda _scopes: None,
        connections: Callable[[], Sequence[str]] = lambda: (),
        still_stopped: Callable[[], Awaitable[str | None]] = never,
        voters: Voters | None = None,
    ) -> None:
        """`rules` names the rules in force, `scrub` takes secrets out of what people write, `held` names the runs at work here.

        `on_pauses` hears of all scopes that are paused, whenever that changed. `still_stopped` says why the kill switch can't be lifted.
        `voters` finds who may approve now.
        """
        self._store = store
        self._rules = rules
        self._scrub = scrub
        self._held = held
        self._on_pauses = on_pauses
        self._connections = connections
        self._still_stopped = still_stopped
        self._voters = voters

    async def decide_approval(self, approval: str, *, approve: bool, comment: str, actor: Actor) -> Approval:
        """Record one person's decision. Raises `NotFound`, `ApprovalRefused`."""
        comment = self._scrub(comment)

        def build(snapshot: Snapshot) -> Changes:
            return operations.decide_approval(snapshot, approval, approve=approve, comment=comment, actor=actor, voters=self._voters)

        committed = await self._store.transact(Reads(approvals=[approval]), build)
        return committed.changes.approvals[0]

    async def pause(self, scope: str, why: str, actor: Actor) -> Pause:
        """Throw the kill switch for `global` or `rule:NAME`; sticky until `resume`. Raises `NotFound`."""
        operations.check_scope(scope, tuple(self._rules()))
        why = self._scrub(why)
        await self._store.transact(Reads(), lambda snapshot: operations.pause(snapshot, scope, why=why, actor=actor, active=self._held()))
        pauses = await self._store.pauses()
        self._on_pauses(tuple(pauses))
        return pauses[scope]

    async def resume(self, scope: str, why: str, actor: Actor, *, at: datetime | None = None) -> None:
        """Lift the kill switch, end the storm, or forget a watchdog: the one that began `at`, where that is said.

        Raises `NotFound` when it was not thrown, `IllegalTransition` while a file or an annotation still throws it, or for another one.
        """
        why = self._scrub(why)

        def build(snapshot: Snapshot) -> Changes:
            seen.check_stop(snapshot, scope, at)
            return operations.resume(snapshot, scope, why=why, actor=actor)

        if scope == WATCHDOG or scope.startswith(f"{WATCHDOG}:"):
            seen.check_stop(await self._store.read(Reads()), scope, at)
            await forget(self._store, scope, why=why, actor=actor)
            return
        if scope == EVERYWHERE and (still := await self._still_stopped()) is not None:
            raise IllegalTransition(f"the kill switch can't be lifted yet: {still}")
        await self._store.transact(Reads(), build)
        self._on_pauses(tuple(await self._store.pauses()))

    async def freeze(self, order: Order, actor: Actor) -> Pause:
        """Freeze a scope, or prolong that; return what is frozen now. Raises `NotFound`, `PermanentError` for an end that is past."""
        manual.check_scope(order.scope, rules=self._rules(), connections=self._connections())
        order = replace(order, why=self._scrub(order.why))
        await self._store.transact(Reads(), lambda snapshot: manual.freeze(snapshot, order, actor=actor))
        return (await self._store.pauses())[order.scope]

    async def thaw(self, scope: str, why: str, actor: Actor, *, at: datetime | None = None) -> None:
        """End a manual freeze, where `at` is given the one that began then. Raises `NotFound`, `IllegalTransition` for another one."""
        why = self._scrub(why)
        waiting = await waiting_runs(self._store)

        def build(snapshot: Snapshot) -> Changes:
            seen.check_stop(snapshot, scope, at)
            return manual.thaw(snapshot, scope, why=why, actor=actor, waiting=waiting)

        await self._store.transact(Reads(), build)

    async def promote(self, rule: Rule, to: Authority, why: str, actor: Actor, *, force: bool, bounds: Bounds) -> None:
        """Let a rule go further again, at most as far as its file says. Raises `IllegalTransition` when it has not earned that."""
        why, window = self._scrub(why), max(arm.window for arm in arms_of(rule, bounds))
        await self._store.transact(
            Reads(attempts=[rule.name], attempts_window=window),
            lambda snapshot: promotion.promote(snapshot, rule, to, why=why, actor=actor, force=force, bounds=bounds),
        )
        self._on_pauses(tuple(await self._store.pauses()))

    async def demote(self, rule: Rule, to: Authority, why: str, actor: Actor) -> None:
        """Lower a rule below what its file says. Raises `IllegalTransition` when it is that low already."""
        why = self._scrub(why)
        await self._store.transact(Reads(), lambda snapshot: promotion.demote(snapshot, rule, to, why=why, actor=actor))
        self._on_pauses(tuple(await self._store.pauses()))

    async def signal(self, run: str, kind: SignalKind, comment: str, actor: Actor, *, asked_at: datetime | None = None) -> Run:
        """Tell a run that waits for a person how to go on; `asked_at` says to which question. Raises `NotFound`, `IllegalTransition`."""
        comment = self._scrub(comment)

        def build(snapshot: Snapshot) -> Changes:
            seen.check_question(snapshot, run, asked_at)
            return operations.signal(snapshot, run, kind, comment=comment, actor=actor)

        committed = await self._store.transact(Reads(runs=[run]), build)
        return committed.snapshot.runs[run]

    async def take(self, incident: str, why: str, actor: Actor, *, span: timedelta | None = None) -> Pause:
        """Give an incident to `actor`: automation keeps its hands off it for `span`. Raises `NotFound`, `NotYours`, `IllegalTransition`."""
        why = self._scrub(why)
        before = await self._store.runs(incident=incident, limit=1000)
        ids = taking.known_ids(cast("Run", run) for run in before.items)

        def build(snapshot: Snapshot) -> Changes:
            acknowledged = operations.acknowledge(snapshot, incident, actor=actor)
            return taking.take(snapshot, incident, why=why, span=span, actor=actor, acknowledged=acknowledged, ids=ids, scrub=self._scrub)

        committed = await self._store.transact(Reads(incidents=[incident], active_runs_of=[incident]), build)
        self._on_pauses(tuple(await self._store.pauses()))
        return committed.changes.pauses[-1]

    async def take_target(self, target: str, why: str, actor: Actor, *, span: timedelta | None = None) -> Pause:
        """Give a canonical id, or all below a prefix ending in `/`, to `actor`. Raises `NotYours`, `IllegalTransition`."""
        why = self._scrub(why)
        committed = await self._store.transact(
            Reads(), lambda snapshot: taking.take_target(snapshot, target, why=why, span=span, actor=actor, active=self._held())
        )
        self._on_pauses(tuple(await self._store.pauses()))
        return committed.changes.pauses[-1]

    async def release(self, scope: str, why: str, actor: Actor) -> None:
        """Let automation go on with what was taken under `scope`. Raises `NotFound`, `NotYours`."""
        why = self._scrub(why)
        await self._store.transact(Reads(), lambda snapshot: taking.release(snapshot, scope, why=why, actor=actor))
        self._on_pauses(tuple(await self._store.pauses()))

    async def note_session(self, kind: Kind, address: str, actor: Actor) -> None:
        """Note that somebody signed in to the web interface, or out."""
        await self._store.transact(
            Reads(), lambda snapshot: Changes(events=[Event(SYSTEM_CHAIN, kind, snapshot.now, {"address": address}, actor.name)])
        )

    async def acknowledge(self, incident: str, actor: Actor) -> Incident:
        """Make `actor` the incident's owner. Raises `NotFound`."""
        committed = await self._store.transact(
            Reads(incidents=[incident]), lambda snapshot: operations.acknowledge(snapshot, incident, actor=actor)
        )
        return committed.changes.incidents[0]
