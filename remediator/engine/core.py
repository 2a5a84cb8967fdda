"""The engine itself: claim in hand, it reads, dispatches to the phase the run is in, and writes turns."""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar, cast

from remediator import guards
from remediator.engine import acting, byhand, leaving, people, preparing, stuck, undoing, verifying
from remediator.engine.authority import holds_approval, lacking, mandate_of, why_lapsed
from remediator.engine.freezing import under_way
from remediator.engine.seen import Seen
from remediator.engine.work import Work
from remediator.errors import Conflict, LeaseLost, PermanentError, StoreUnavailable
from remediator.execution import Execution
from remediator.expressions import Facts
from remediator.guards import Bounds, Case, Guard, Judgement
from remediator.model import JSON, Authority, IncidentState, Plan, RunState, decode_value
from remediator.records import Run, Step
from remediator.replacing import replace
from remediator.revalidation import Revalidation, Standing
from remediator.rules.model import OnFailure, Rule
from remediator.runs.turn import HistoryWantedError, Turn
from remediator.runs.undo import Later, ids_of, later, mirrored, moment
from remediator.silences.ours import Own
from remediator.silences.silencing import followed, of_incident
from remediator.store.protocol import Changes, Reads, Snapshot, Store
from remediator.trust.standing import window_of

T = TypeVar("T")

VISIBLE_AFTER = 1.0
"""Seconds after which looking and planning are written down, so that people see what a slow run is doing."""

PATIENCE = (0.1, 0.3, 1.0, 3.0, 5.0)
"""Seconds between attempts to write down what came of a call while the store is unavailable; the lease is renewed meanwhile."""

FRESH = 0.25
"""Seconds for which what Alertmanager was asked while a plan was made counts as asked right before the call."""

STOOD_STILL = 1.0
"""Seconds between the beginning of a commit and the call it allows after which everything is looked at again: who owns the run, and whether
the call is still allowed."""

_Texts = tuple[str, list[Mapping[str, JSON]], list[Mapping[str, JSON]], list[str], list[str], list[str]]

_BEGUN = frozenset({RunState.APPLYING, RunState.VERIFYING, RunState.UNDOING})
"""States in which no guard asks about budgets or cooldowns: whatever leads back to one that does reads again."""

Play = Callable[[Turn], bool | None]
"""Plays on a turn; True gives the lease back."""


class Engine:
    """Advances runs. One instance serves all workers of a daemon."""

    def __init__(
        self,
        store: Store,
        execution: Execution,
        revalidation: Revalidation,
        *,
        rule: Callable[[str], Rule | None],
        frozen: Callable[[JSON], Rule],
        bounds: Callable[[], Bounds],
        scrub: Callable[[JSON], JSON] = lambda value: value,
    ) -> None:
        """`rule` finds the rule in force by name, `frozen` compiles a stored rule text.

        `scrub` takes secrets out of what becomes an event.
        """
        self.store = store
        self.execution = execution
        self.revalidation = revalidation
        self.rule = rule
        self.seen = Seen()
        self._frozen = frozen
        self.bounds = bounds
        self._scrub = scrub
        self._phases: Mapping[RunState, Callable[[Engine, Work], Awaitable[None]]] = {
            RunState.QUEUED: preparing.begin,
            RunState.WAITING: preparing.begin,
            RunState.DIAGNOSING: preparing.diagnose,
            RunState.PLANNING: preparing.plan,
            RunState.AWAITING_APPROVAL: people.await_approval,
            RunState.APPLYING: acting.act,
            RunState.VERIFYING: verifying.verify,
            RunState.UNDOING: undoing.undo,
            RunState.OUTCOME_UNKNOWN: people.await_word,
            RunState.INTERRUPTED: people.await_word,
        }

        self._by_hand: Mapping[RunState, Callable[[Engine, Work], Awaitable[None]]] = {
            **self._phases,
            RunState.QUEUED: byhand.begin,
            RunState.WAITING: byhand.begin,
            RunState.DIAGNOSING: byhand.plan,
            RunState.PLANNING: byhand.plan,
            RunState.AWAITING_APPROVAL: byhand.await_approval,
        }

    async def advance(self, run: Run) -> None:
        """Lead a claimed run on until it ends or must wait; its lease is given back then.

        Raises `LeaseLost` when another worker owns it by now, `StoreUnavailable` when nothing can be made durable. Whatever else
        goes wrong is told to people and ends the run or leaves it to them, and is raised then.
        """
        try:
            if await leaving.left_to_others(self, run):
                return
            work = await self._load(run)
            try:
                while not work.parked:
                    phases = self._by_hand if work.run.undoes else self._phases
                    await phases[work.run.state](self, work)
            finally:
                work.forget_question()
        except (LeaseLost, Conflict, StoreUnavailable):
            raise
        except Exception as error:
            await stuck.give_up(self, run, error)
            raise

    # --- reading and writing

    async def _load(self, run: Run) -> Work:
        current = self.rule(run.rule)
        run = run if run.left_since is None or current is None else replace(run, left_since=None)
        frozen = current if current is not None and current.hash == run.rule_hash else await self._frozen_rule(run)
        work = Work(run, frozen, current, Snapshot(now=run.entered_at), self.bounds())
        await self.look(work)
        known = {name: decode_value(value) for name, value in run.facts.items()}
        subject = work.subject()
        work.facts = Facts({**subject.values, **known}, {**subject.unknown, **run.unknown})
        return work

    async def _frozen_rule(self, run: Run) -> Rule:
        text = await self.store.rule_text(run.rule_hash)
        if text is None:
            raise PermanentError(f"the rule text {run.rule_hash} of run {run.id} is missing from the store")
        return self._frozen(text)

    async def look(self, work: Work) -> None:
        """Read the rows that the run stands on again, and take the rule and the bounds in force now."""
        self.renew(work)
        work.snapshot = await self.store.read(self._reads(work))

    def renew(self, work: Work) -> None:
        """Take the rule and the bounds in force now."""
        work.current = self.rule(work.run.rule)
        work.bounds = self.bounds()

    def _reads(self, work: Work, locks: Sequence[str] = (), below: Sequence[str] = ()) -> Reads:
        begun = work.run.state in _BEGUN
        budgets = [] if begun else list(dict.fromkeys((one.count, one.window) for spec in work.specs() for one in spec.budgets))
        return Reads(
            runs=[work.run.id, *_earlier(work.run), *([work.run.undoes] if work.run.undoes else [])],
            locks=locks,
            lock_prefixes=below,
            usage=[] if begun else [(work.run.rule, work.run.target)],
            usage_window=max((window for _, window in budgets), default=timedelta(days=1)),
            usage_from=budgets,
            attempts=[work.run.rule] if work.judged else [],
            attempts_window=window_of(work.specs()) if work.judged else timedelta(),
        )

    async def turn(self, work: Work, play: Play, *, park: bool = False, locks: Sequence[str] = (), below: Sequence[str] = ()) -> None:
        """Play on a fresh snapshot and make it durable together with the pending events.

        The lease is given back when `park` is set, when `play` returns True, and when the run ends. The snapshot shows who holds
        `locks`, and all locks `below` beginnings.
        """
        made: list[tuple[Turn, bool]] = []

        def build(snapshot: Snapshot) -> Changes:
            turn = Turn(work.run, snapshot, work.rule, events=list(work.events), bounds=work.bounds, current=work.current)
            parks = bool(play(turn)) or park or turn.run.ended_at is not None
            made[:] = [(turn, parks)]
            changes = followed(self.scrubbed(turn).changes(release=parks), turn.run, work.rule, snapshot, over=work.alert_over)
            return mirrored(changes, turn.run, snapshot)

        began = time.monotonic()
        try:
            committed = await self.store.transact(self._reads(work, locks, below), build)
        except HistoryWantedError:  # nothing was written; the rule's record is read only when a remedy failed
            work.judged = True
            committed = await self.store.transact(self._reads(work, locks, below), build)
        work.written_at, work.seen_at = began, asyncio.get_running_loop().time()
        turn, work.parked = made[0]
        work.run, work.events = turn.run, []
        work.snapshot = replace(committed.snapshot, incidents={**committed.snapshot.incidents, turn.incident.id: turn.incident})

    async def overtaken(self, work: Work, *, undo: bool = False) -> str | None:
        """Look again right before a call, if this process, or its disk, stood still since it began to write the intent down.

        Return what speaks against the call by now; None when nothing does. Raises `LeaseLost`, `StoreUnavailable`.
        """
        if time.monotonic() - work.written_at < STOOD_STILL:
            return None
        row = (await self.store.read(Reads(runs=[work.run.id]))).runs.get(work.run.id)
        if row is None or row.fence != work.run.fence:
            raise LeaseLost(f"run {work.run.id} was taken over by another worker before its call")
        against = await self.halted(work, undo=undo)
        if against is not None or undo:
            return against
        standing, words = await self.standing(work)
        return None if _suffices(standing, approved=holds_approval(work)) else words

    async def insist(self, work: Work, play: Play, *, park: bool = False) -> None:
        """Make durable what came of a call, also when the store needs a moment: nothing else knows it."""
        for delay in PATIENCE:
            try:
                await self.turn(work, play, park=park)
            except StoreUnavailable:
                await asyncio.sleep(delay)
            else:
                return
        await self.turn(work, play, park=park)

    def scrubbed(self, turn: Turn) -> Turn:
        """Take secrets out of what a turn puts into the audit, into messages and before people's eyes."""
        # All at once: nearly always there is nothing to hide, and one look at everything is enough to see that.
        rest = [[attempt.reason for attempt in turn.attempts], [pause.why for pause in turn.pauses], list(_failures(turn.successor))]
        everything = [turn.run.reason, [event.data for event in turn.events], [message.body for message in turn.messages], *rest]
        clean = self._scrub(everything)
        if clean is not everything:
            reason, data, bodies, reasons, whys, failures = cast("_Texts", clean)
            turn.run = replace(turn.run, reason=reason)
            turn.events = [replace(event, data=one) for event, one in zip(turn.events, data, strict=True)]
            turn.messages = [replace(message, body=one) for message, one in zip(turn.messages, bodies, strict=True)]
            turn.attempts = [replace(attempt, reason=one) for attempt, one in zip(turn.attempts, reasons, strict=True)]
            turn.pauses = [replace(pause, why=one) for pause, one in zip(turn.pauses, whys, strict=True)]
            if turn.successor is not None:
                turn.successor = replace(turn.successor, failures=tuple(failures))
        return turn

    async def visibly(self, work: Work, doing: Coroutine[Any, Any, T]) -> T:
        """Await `doing`; when it takes long, write down first what the run is at."""
        task = asyncio.create_task(doing)
        try:
            await asyncio.wait({task}, timeout=VISIBLE_AFTER)
            if not task.done() and work.events:
                await self.turn(work, lambda _turn: None)
            return await task
        finally:
            task.cancel()

    async def stop(self, work: Work, state: RunState, reason: str, *, unjudged: bool = False) -> None:
        """End the run, or leave it to a person."""
        await self.turn(work, lambda turn: turn.stop(state, reason, unjudged=unjudged), park=True)

    # --- guards

    def judge(self, judges: Sequence[Guard], work: Work, snapshot: Snapshot | None = None, plans: Sequence[Plan] = ()) -> list[Judgement]:
        """Ask guards about a run; return those that do not allow."""
        seen = snapshot or work.snapshot
        incident = seen.incidents[work.run.incident]
        episode = seen.episodes.get(incident.subject.fingerprint)
        confirmed_at = incident.opened_at if episode is None else episode.confirmed_at
        case = Case(
            run=work.run,
            incident=incident,
            confirmed_at=max(confirmed_at, work.vouched_at or confirmed_at),
            first_firing_at=incident.opened_at if episode is None else episode.opened_at,
            frozen=work.rule,
            current=work.current,
            bounds=work.bounds,
            snapshot=seen,
            plans=plans,
            scopes=[self.execution.scope_of(plan) for plan in plans if not plan.noop],
            domains=self.execution.domains_of(plans),
        )
        return guards.judge(judges, case)

    def max_wait(self, work: Work) -> timedelta:
        """Return how long guards may hold the run back, since it began to wait: `max_wait` from when its alert has fired long enough."""
        episode = work.snapshot.episodes.get(work.incident.subject.fingerprint)
        fired = work.incident.opened_at if episode is None else episode.opened_at
        due = fired + max(spec.firing_for for spec in work.specs())
        young = max(timedelta(), due - (work.run.waiting_since or work.snapshot.now))
        return min(spec.max_wait for spec in work.specs()) + young

    def stopped(self) -> str | None:
        """Look now, right before a call, whether the kill switch is thrown from outside; return by what."""
        return self.bounds().stopped or None

    async def held(self, work: Work, against: Sequence[Judgement]) -> None:
        """Let the run wait, stop or escalate, as guards said."""
        await self.turn(work, lambda turn: turn.hold(against, max_wait=self.max_wait(work)), park=True)

    async def halted(self, work: Work, *, undo: bool = False) -> str | None:
        """Return why a call under way must make no further write (`semantics.md`, 18); None when it may. Not even `work` is changed."""
        if (stopped := self.stopped()) is not None:
            return stopped
        seen = copy.copy(work)
        try:
            await self.look(seen)
        except StoreUnavailable as error:
            return f"whether somebody stopped it can't be read: {error}"
        row = seen.snapshot.runs.get(work.run.id)
        if row is None or row.fence != work.run.fence:
            return "another worker has taken the run over"
        # A way back that was begun is gone to its end, should a freeze begin meanwhile.
        stopping = guards.STOPPED_BY_HAND if work.run.undoes else guards.STOPPED
        against = self.judge(stopping if undo else guards.BETWEEN_STEPS, seen, plans=under_way(seen.run))
        if against:
            return against[0].reason
        if undo:
            held = (byhand.authority_of if work.run.undoes else mandate_of)(self, seen)
            return "nothing may be changed any more" if held.authority is Authority.OBSERVE else None
        lack = lacking(self, seen, approved=holds_approval(seen))
        words = (why_lapsed(seen), *lack[1]) if lack is not None else ()
        return None if lack is None else "its authority was taken away: " + "; ".join(one for one in words if one)

    # --- what several phases ask or do

    async def later(self, run: Run, steps: Sequence[Step]) -> list[Later]:
        """Return what other runs have done since to the things that `steps` of a run touched, and what is still in force of it."""
        ids = ids_of(steps)
        if not ids:
            return []
        others = await self.store.touching(ids, since=min(moment(run, step) for step in steps))
        return later(run, steps, others, self.execution.kind)

    async def gone(self, work: Work) -> bool:
        """Cancel a run whose alert is resolved before anything was begun; tell whether the alert was."""
        if work.incident.state is not IncidentState.RESOLVED or work.run.wrote:
            return False

        def play(turn: Turn) -> bool:
            if turn.incident.state is IncidentState.RESOLVED:
                turn.stop(RunState.CANCELLED, "the alert is resolved")
                return True
            return False  # it fires again since this was read: another look

        await self.turn(work, play)
        return True

    async def stands(self, work: Work, *, approved: bool) -> bool:
        """Ask Alertmanager right before a call. When the alert does not stand, lead the run elsewhere and return False."""
        standing, words = await self.standing(work)
        if _suffices(standing, approved=approved):
            return True
        if standing in (Standing.UNASKED, Standing.SILENT):
            await people.ask(self, work, [words])
        elif work.run.wrote:
            await self.verify_what_was_done(work, words)
        else:
            await self.stop(work, RunState.CANCELLED, words)
        return False

    def ask_ahead(self, work: Work) -> None:
        """Begin to ask Alertmanager, so that its answer is there when the plan is made."""
        task = asyncio.create_task(self.revalidation.standing(work.incident.subject, _own(work)))
        work.asked = (asyncio.get_running_loop().time(), task)

    async def standing(self, work: Work) -> tuple[Standing, str]:
        """Return how the alert stands now. An answer to what was asked ahead counts while it is fresh, and once."""
        asked, work.asked = work.asked, None
        if asked is not None:
            at, task = asked
            if asyncio.get_running_loop().time() - at <= FRESH:
                return await task
            task.cancel()
        return await self.revalidation.standing(work.incident.subject, _own(work))

    async def verify_what_was_done(self, work: Work, reason: str) -> None:
        """Start no further step, and see what the others have done."""
        await self.turn(work, lambda turn: acting.begin_verifying(turn, work, f"no further step: {reason}"))

    async def remedy_failed(self, work: Work, reason: str) -> None:
        """Do what the remedy says about failing (`semantics.md`, 16 and 20)."""
        await self.turn(work, lambda turn: self.failed(turn, work, reason))

    def failed(self, turn: Turn, work: Work, reason: str, *, verified: bool = False) -> bool:
        """Do on a turn what `remedy_failed` does; tell whether the lease is given back.

        `verified`: all steps went well, but it did not help.
        """
        remedy = work.remedy
        tried = {*turn.run.tried, remedy.name}
        left = any(other.name not in tried for other in work.rule.remedies)
        changed = any(step.wrote and not self.execution.action(step.action).notifies for step in turn.run.steps)
        if changed and remedy.on_failure is OnFailure.UNDO:
            turn.move(RunState.UNDOING, reason)
            return False
        if remedy.on_failure is OnFailure.NEXT and left and (verified or not changed):
            turn.fail_and_continue(reason)
        else:
            turn.stop(RunState.FAILED, reason)
        return True


def _suffices(standing: Standing, *, approved: bool) -> bool:
    """Tell whether a call may be made by what Alertmanager said; where it says nothing, a person's approval is enough."""
    return standing is Standing.FIRING or (approved and standing in (Standing.UNASKED, Standing.SILENT))


def _own(work: Work) -> Own:
    """Return the silences that don't speak against acting: those of the incident's runs, and of its chain's steps."""
    before = [work.snapshot.runs[name] for name in _earlier(work.run) if name in work.snapshot.runs]
    return of_incident(work.snapshot.pauses, work.run.incident, (*before, work.run))


def _earlier(run: Run) -> list[str]:
    """Return the runs of its chain before it."""
    return [f"{run.incident}-{number}" for number in range(run.chain, run.number)]


def _failures(successor: Run | None) -> Sequence[str]:
    return () if successor is None else successor.failures
