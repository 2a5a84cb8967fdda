"""What one transaction about a run writes, verb by verb. Pure.

The engine looks at the world, then takes a turn: inside the transaction a `Turn` is made from the fresh snapshot, the engine's
choice is played on it, and `changes` is what becomes durable. Every rule about pages, locks, budgets, approvals and the
incident's state that follows from a transition lives here, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from remediator.escalation.notice import notice
from remediator.escalation.pages import page_key
from remediator.events import Kind
from remediator.guards import Answer, Bounds, Judgement, lock_keys
from remediator.lifecycle import ENDS, HOLDS_PAGE, advance
from remediator.model import JSON, SYSTEM, ApprovalState, Authority, Event, IncidentState, Plan, RunState, StepState
from remediator.records import (
    DEMOTED,
    STORM,
    SYSTEM_CHAIN,
    Approval,
    Attempt,
    Incident,
    Message,
    MessageKind,
    Pause,
    Run,
    Signal,
    Step,
    Use,
)
from remediator.replacing import replace
from remediator.rules.model import ApprovalSpec, Rule
from remediator.runs.leftovers import left_behind, told, without
from remediator.runs.making import new_run
from remediator.store.protocol import Changes, Snapshot
from remediator.storms import breaker
from remediator.targets.domains import Domain
from remediator.trust import standing

NEEDS_PERSON = frozenset(
    {
        RunState.DENIED,
        RunState.EXPIRED,
        RunState.FAILED,
        RunState.UNDONE,
        RunState.ESCALATED,
        RunState.OUTCOME_UNKNOWN,
        RunState.INTERRUPTED,
    }
)
"""States after which the incident is a person's business."""

_LED_ON = frozenset({RunState.SUCCEEDED, RunState.CANCELLED, RunState.REHEARSED})
"""Ends after which an incident may stay open: its next notification leads on, or people have had its page."""

_WAITS_WHERE_IT_IS = frozenset({RunState.WAITING, RunState.AWAITING_APPROVAL, RunState.INTERRUPTED})
"""States that a run does not leave to wait for a guard: what it has done already is not planned anew."""


_BETWEEN_CALLS = frozenset({RunState.APPLYING, RunState.AWAITING_APPROVAL})
"""States in which a run has made calls, maybe, and nobody has looked yet whether they helped."""


class HistoryWantedError(Exception):
    """What a run's end leads to rests on the rule's attempts, and the snapshot does not hold them."""


@dataclass
class Turn:
    """One transaction about one run."""

    run: Run
    snapshot: Snapshot
    rule: Rule
    events: list[Event] = field(default_factory=list)
    incident: Incident = field(init=False)
    successor: Run | None = None
    approvals: list[Approval] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    release_messages: list[str] = field(default_factory=list)
    cancel_messages: list[str] = field(default_factory=list)
    take_locks: dict[str, str] = field(default_factory=dict)
    release_locks: list[str] = field(default_factory=list)
    move_locks: dict[str, str] = field(default_factory=dict)
    uses: list[Use] = field(default_factory=list)
    consumed: list[str] = field(default_factory=list)
    texts: dict[str, JSON] = field(default_factory=dict)
    attempts: list[Attempt] = field(default_factory=list)
    pauses: list[Pause] = field(default_factory=list)
    bounds: Bounds | None = None
    """What a failed run's rule is judged by; None: its failure has no consequences for the rule."""
    current: Rule | None = None
    """The rule of that name in force now."""

    def __post_init__(self) -> None:
        self.incident = self.snapshot.incidents[self.run.incident]

    @property
    def now(self) -> datetime:
        """The store's clock."""
        return self.snapshot.now

    def changes(self, *, release: bool) -> Changes:
        """Return what becomes durable; `release` gives the lease back."""
        if self.run.state not in HOLDS_PAGE and page_key(self.incident) not in self.release_messages:
            # Also a page that was put on hold after the run had got there, by a relapse while it waits for a person.
            self.release_messages.append(page_key(self.incident))
        return Changes(
            runs=[self.run] if self.successor is None else [self.run, self.successor],
            incidents=[] if self.incident is self.snapshot.incidents[self.incident.id] else [self.incident],
            release=[self.run.id] if release or self.run.ended_at is not None else [],
            approvals=self.approvals,
            messages=self.messages,
            release_messages=self.release_messages,
            cancel_messages=self.cancel_messages,
            take_locks=self.take_locks,
            release_locks=self.release_locks,
            move_locks=self.move_locks,
            uses=self.uses,
            consumed=self.consumed,
            rule_texts=self.texts,
            attempts=self.attempts,
            pauses=self.pauses,
            events=self.events,
        )

    # --- words

    def say(self, kind: Kind, **data: JSON) -> None:
        """Add an event to the incident's chain."""
        self.events.append(Event(self.incident.id, kind, self.now, {"run": self.run.id, "rule": self.run.rule, **data}))

    def tell(self, suffix: str, kind: MessageKind, **body: JSON) -> None:
        """Queue a message to the rule's escalation policy, once per run and `suffix`."""
        body = {"run": self.run.id, "rule": self.run.rule, "runbook": self.rule.runbook, "dry_run": self.run.dry_run, **body}
        key = f"{self.run.id}/{suffix}"
        self.messages.append(Message(key, kind, self.rule.escalation, self.incident.id, body, self.now))

    # --- moving

    def move(self, state: RunState, reason: str) -> None:
        """Move the run, and do what follows from its new state for page, incident, locks, budget and approval."""
        was, reason = self.run, without(reason)
        if state in ENDS or state in NEEDS_PERSON:
            reason = told(standing.with_failures(reason, was.failures) if state in NEEDS_PERSON else reason, was.steps)
        self.run, event = advance(was, state, now=self.now, reason=reason)
        self.events.append(event)
        if state not in HOLDS_PAGE:
            self.release_messages.append(page_key(self.incident))
        if state in NEEDS_PERSON:
            self._needs_person(state, reason)
        elif state in ENDS:
            self._tell_of_leftovers(state)
        if self.run.ended_at is not None:
            self._end(state)

    def sleep(self, at: datetime | None) -> None:
        """Have a worker look at the run again at `at`; None: when somebody wakes it."""
        self.run = replace(self.run, wake_at=at)

    def _needs_person(self, state: RunState, reason: str) -> None:
        self.tell(f"{state.value}@{self.now:%H%M%S%f}", MessageKind.UPDATE, subject=state.value, reason=reason)
        if self.incident.state is IncidentState.OPEN and not self._left_as_it_was():
            if self.run.undoes:
                self._page_anew()
            self._escalate(reason)

    def _escalate(self, reason: str) -> None:
        self.incident = replace(self.incident, state=IncidentState.ESCALATED, updated_at=self.now)
        self.say(Kind.INCIDENT_ESCALATED, reason=reason, policy=self.rule.escalation)

    def _left_as_it_was(self) -> bool:
        """Tell whether the run is an undo that took nothing back: then the incident is as it was before somebody asked for it."""
        return bool(self.run.undoes) and all(step.state is StepState.APPLIED and not step.undo_intended for step in self.run.steps)

    def _page_anew(self) -> None:
        """Page for an incident whose remedy was taken back: its page may have been cancelled when that was a success."""
        self.incident = replace(self.incident, relapses=self.incident.relapses + 1, climb_from=None)
        body: dict[str, JSON] = {"subject": "page", "rule": self.run.rule, "runbook": self.rule.runbook, "dry_run": self.run.dry_run}
        self.messages.append(Message(page_key(self.incident), MessageKind.PAGE, self.rule.escalation, self.incident.id, body, self.now))

    def _tell_of_leftovers(self, state: RunState) -> None:
        """Tell people what a run leaves behind that ends without them otherwise: nothing takes it back by itself."""
        if left_behind(self.run.steps):
            self.tell("left", MessageKind.UPDATE, subject=state.value, reason=self.run.reason)

    def _end(self, state: RunState) -> None:
        self._count()
        active = None if self.incident.active_run == self.run.id else self.incident.active_run
        last = self.incident.last_end if self._left_as_it_was() else state
        self.incident = replace(self.incident, active_run=active, last_end=last, updated_at=self.now)
        self.release_locks.append(self.run.id)
        self.close_approval(ApprovalState.VOID, f"the run ended: {state.value}")
        if self.incident.state is IncidentState.OPEN and self._left_as_it_was() and last not in _LED_ON:
            # It fired again while the undo was at work, so that it got no run of its own, and nothing else will give it one.
            self.release_messages.append(page_key(self.incident))
            self._escalate(f"it fired again while an undo was at work, which changed nothing: {self.run.reason}")

    # --- trust

    def _count(self) -> None:
        """Write down what came of the ended run; what was tried and was no success may cost its rule or its remedy the trust."""
        if self.run.undoes:
            self._count_undone()
            return
        attempt = standing.attempt_of(self.run, self.incident, self.rule, self.snapshot)
        self.attempts.append(attempt)
        for pause in self._lost_by(attempt):
            self._lose(pause, attempt)

    def _lost_by(self, attempt: Attempt) -> Sequence[Pause]:
        """Return what an attempt costs its rule and its remedy. Raises `HistoryWantedError`."""
        if self.bounds is None or not attempt.counts or attempt.succeeded:
            return ()
        if self.run.rule not in self.snapshot.attempts:
            raise HistoryWantedError
        rules = [self.rule, *([self.current] if self.current is not None else [])]
        specs = [self.bounds.spec, *(rule.guards for rule in rules)]
        return standing.lost(attempt, self.snapshot, specs, autonomous=self._autonomous(rules, self.bounds))

    def _is_ineffective(self, reason: str) -> bool:
        """Tell whether the remedy is stopped everywhere, or will be by this very failure."""
        scope = standing.stop_of(self.run.rule, self.run.remedy or "")
        if scope in self.snapshot.pauses:
            return True
        failed, _ = advance(self.run, RunState.FAILED, now=self.now, reason=reason)
        attempt = standing.attempt_of(failed, self.incident, self.rule, self.snapshot)
        return any(pause.scope == scope for pause in self._lost_by(attempt))

    def _count_undone(self) -> None:
        """Let a success that a person had undone be no success any more; the undo itself is no attempt of the rule's."""
        other = self.snapshot.runs.get(self.run.undoes)
        if self.run.state is RunState.UNDONE and other is not None:
            undone = replace(other, state=RunState.UNDONE, reason=self.run.reason)
            self.attempts.append(standing.attempt_of(undone, self.incident, self.rule, self.snapshot))

    def _autonomous(self, rules: Sequence[Rule], bounds: Bounds) -> bool:
        limits = [*(rule.mode for rule in rules), bounds.authority]
        limits += [limit for limit, _ in standing.caps(rules, self.snapshot.pauses, earn=bounds.earn)]
        return all(limit is Authority.AUTO for limit in limits)

    def _lose(self, pause: Pause, attempt: Attempt) -> None:
        """Demote the rule, or stop the remedy everywhere, and tell people."""
        self.pauses.append(pause)
        demoted = pause.scope.startswith(DEMOTED)
        kind = Kind.RULE_DEMOTED if demoted else Kind.REMEDY_STOPPED
        data: dict[str, JSON] = {"scope": pause.scope, "rule": attempt.rule, "run": attempt.run, "why": pause.why}
        data |= {"to": pause.mark} if demoted else {"remedy": attempt.remedy}
        self.events.append(Event(SYSTEM_CHAIN, kind, self.now, data, SYSTEM.name))
        of_rule = f"remedy {attempt.remedy!r} of rule {attempt.rule!r} is stopped everywhere"
        words = f"rule {attempt.rule!r} is demoted to {pause.mark}" if demoted else of_rule
        self.run = replace(self.run, reason=f"{self.run.reason}; {words}")
        way = f"`remediator promote {attempt.rule}`" if demoted else f"`remediator resume --scope '{pause.scope}'`"
        text = f"{pause.why}. Only a person lifts that: {way}"
        key = f"{pause.scope}@{self.now:%Y%m%dT%H%M%S%f}"
        # The incident's own page says it too, in its run's reason; this one does not end with the incident.
        self.messages.append(notice(key, words, text, policy=self.rule.escalation, due=self.now, dry_run=self.run.dry_run))

    # --- before planning

    def denied(self, judgement: Judgement) -> None:
        """Record what a guard said."""
        until = None if judgement.until is None else judgement.until.isoformat()
        self.say(Kind.GUARD_DENIED, guard=judgement.guard, verdict=judgement.answer.value, reason=judgement.reason, until=until)

    def hold(self, against: Sequence[Judgement], *, max_wait: timedelta) -> None:
        """Do what guards said: interrupt, escalate, or wait and ask again; a wait beyond `max_wait` escalates."""
        for judgement in against:
            if judgement.answer is Answer.DENY or self.run.reason != judgement.reason:
                self.denied(judgement)
        deny = next((judgement for judgement in against if judgement.answer is Answer.DENY), None)
        if deny is not None:
            state = RunState.INTERRUPTED if deny.interrupts else RunState.ESCALATED
            self.stop(state, f"guard {deny.guard}: {deny.reason}", unjudged=True)
            return
        if any(judgement.until is None for judgement in against):
            self._hold_for_storm(against[-1].reason)
            return
        latest = max(against, key=lambda judgement: judgement.until or self.now)
        since = self.run.waiting_since or self.now
        if self.now - since >= max_wait:
            self._waited_too_long(latest)
            return
        if self.run.state not in _WAITS_WHERE_IT_IS:
            self.move(RunState.WAITING, f"guard {latest.guard}: {latest.reason}")
        wake = min(latest.until or self.now, since + max_wait)
        self.run = replace(self.run, wake_at=wake, deadline=since + max_wait, waiting_since=since, reason=latest.reason)

    def _waited_too_long(self, judgement: Judgement) -> None:
        """Escalate; a run that was interrupted is a person's already, who hears that his word could not be followed."""
        words = f"waited longer than allowed for guard {judgement.guard}: {judgement.reason}"
        if self.run.state is not RunState.INTERRUPTED:
            self.move(RunState.ESCALATED, words)
            return
        self.run = replace(self.run, wake_at=None, deadline=None, waiting_since=None, reason=words)
        self.tell(f"waited@{self.now:%H%M%S%f}", MessageKind.UPDATE, subject=self.run.state.value, reason=words)

    def _hold_for_storm(self, reason: str) -> None:
        """Wait for the end of a storm; when that came since the guard was asked, decide anew at once."""
        pause = self.snapshot.pauses.get(STORM)
        if self.run.state is not RunState.WAITING:
            self.move(RunState.WAITING, reason)
        self.run = replace(self.run, wake_at=self.now) if pause is None else breaker.hold(self.run, pause, now=self.now)

    def stop(self, state: RunState, reason: str, *, unjudged: bool = False) -> None:
        """Interrupt or escalate, remembering where an interrupted run was.

        `unjudged`: it was stopped between its calls, before its remedy could show what it is worth, so that it counts for nothing.
        """
        was = self.run.state
        if unjudged and was in _BETWEEN_CALLS:
            self.run = replace(self.run, resume_state=was)
        self.move(state, reason)
        if state is RunState.INTERRUPTED:
            self.close_approval(ApprovalState.VOID, reason)
            self.run = replace(self.run, resume_state=was, waiting_since=None)

    # --- approval

    def ask(self, spec: ApprovalSpec, *, authority: str, reasons: Sequence[str], steps: Sequence[JSON]) -> None:
        """Ask people for an approval of exactly the present plan."""
        number = 1 + self.run.asked
        ident = f"{self.run.id}-A{number}" if number > 1 else f"{self.run.id}-A"
        reason = "; ".join(reasons) or f"the authority is {authority}"
        self.move(RunState.AWAITING_APPROVAL, reason)
        approval = Approval(
            id=ident,
            run=self.run.id,
            incident=self.incident.id,
            plan_hash=self.run.plan_hash,
            state=ApprovalState.PENDING,
            requested_at=self.now,
            expires_at=self.now + spec.expires,
            reason=reason,
            groups=tuple(sorted(spec.groups)),
            quorum=spec.quorum,
        )
        self.approvals.append(approval)
        expires = approval.expires_at
        self.run = replace(self.run, approval=ident, asked=number, deadline=expires, wake_at=expires, waiting_since=None)
        self.say(
            Kind.APPROVAL_REQUESTED,
            approval=ident,
            hash=self.run.plan_hash,
            groups=list(approval.groups),
            quorum=spec.quorum,
            expires_at=approval.expires_at.isoformat(),
            reason=reason,
        )
        self.tell(f"approval/{number}", MessageKind.APPROVAL, subject="approval", approval=ident, reason=reason, steps=list(steps))

    def close_approval(self, state: ApprovalState, reason: str) -> None:
        """Close the run's approval, if it is still pending or not yet used."""
        approval = None if self.run.approval is None else self.snapshot.approvals.get(self.run.approval)
        # The steps of an undo were carried out before it began; from the moment it takes its locks it goes by what was agreed to.
        used = bool(self.run.locks) if self.run.undoes else self.run.wrote
        unused = approval is not None and approval.state is ApprovalState.APPROVED and not used
        if approval is None or not (unused or approval.state is ApprovalState.PENDING):
            return
        self.approvals.append(replace(approval, state=state))
        self.run = replace(self.run, approval=None)
        self.say(Kind.APPROVAL_CLOSED, approval=approval.id, state=state.value, reason=reason)

    # --- acting

    def begin_acting(self, plans: Sequence[Plan], domains: Sequence[Domain] = ()) -> None:
        """Enter `applying`: take every lock, that on the failure domains too, reserve a unit of budget. The approval is used up by this.

        The first call's intent is committed with it, and from then on nobody can be sure that no call was made: a refusal is an
        answer, and whoever looks after a crash sees the intent only. So the unit is used for good, once for a run however often it
        plans again (`semantics.md`, 7).
        """
        self.move(RunState.APPLYING, "all guards allow")
        own = [domain.lock(self.run.id) for domain in domains]
        self.take_locks = dict.fromkeys([*lock_keys(plans), *own], self.run.id)
        # What it waits for later, an undo in a freeze say, has nothing to do with how long it waited to begin.
        self.run = replace(self.run, locks=tuple(sorted({*self.run.locks, *self.take_locks})), waiting_since=None)
        if plans:  # messages to people take no budget
            self.uses.append(Use(self.run.id, self.run.rule, self.run.target, self.now))

    def give_back(self) -> None:
        """Give locks back: nothing was written, and the steps will be planned anew. A chain's locks stay; budget is used by the call."""
        if self.run.chain == self.run.number:
            self.release_locks.append(self.run.id)
            self.run = replace(self.run, locks=())
        self.run = replace(self.run, steps=())

    def set_step(self, step: Step) -> None:
        """Replace one step."""
        self.run = replace(self.run, steps=tuple(step if old.number == step.number else old for old in self.run.steps))

    def intend(self, step: Step, *, undo: bool = False) -> None:
        """Write down that a call is about to be made."""
        if undo:
            self.set_step(replace(step, undo_intended=True, intended_at=self.now))
        else:
            self.set_step(replace(step, state=StepState.INTENDED, intended_at=self.now))
        self.say(Kind.ACTION_INTENDED, step=step.number, action=step.action, undo=undo)

    def record(self, kind: Kind, step: Step, *, undo: bool = False, seconds: float | None = None, **data: JSON) -> None:
        """Write down what came of a call."""
        self.set_step(replace(step, finished_at=self.now))
        self.run = replace(self.run, applied_at=self.now)
        self.say(kind, step=step.number, action=step.action, undo=undo, message=step.message, seconds=seconds, **data)

    # --- ends

    def succeed(self, reason: str, *, resolved: bool) -> None:
        """End well. The page is cancelled when the alert itself was seen resolved, else it stays with its deadline.

        It stays as well while another alert of the incident is open: verification looked at the subject alone.
        """
        self.move(RunState.SUCCEEDED, reason)
        if resolved and set(self.incident.fingerprints) <= {self.incident.subject.fingerprint}:
            self.cancel_messages.append(page_key(self.incident))
        remedies = dict.fromkeys((*self.incident.succeeded_remedies, *([self.run.remedy] if self.run.remedy else [])))
        self.incident = replace(self.incident, succeeded_remedies=tuple(remedies))

    def fail_and_continue(self, reason: str) -> None:
        """End this remedy and begin a successor in the same chain, which keeps the locks (`semantics.md`, 7).

        There is none when the remedy is stopped everywhere: what fails in many places is looked at by people, with the evidence, and
        not followed by something stronger in all of them.
        """
        if self._is_ineffective(reason):
            self.move(RunState.FAILED, f"{reason}; no other remedy is tried, for this one does not help elsewhere either")
            return
        page_held = page_key(self.incident)
        self.run, event = advance(self.run, RunState.FAILED, now=self.now, reason=told(reason, self.run.steps))
        self.events.append(event)
        self._tell_of_leftovers(RunState.FAILED)
        self._count()
        self.close_approval(ApprovalState.VOID, "its remedy failed")
        self.release_messages.append(page_held)
        self.incident = replace(self.incident, last_end=RunState.FAILED, updated_at=self.now)
        self.incident, successor, created = new_run(
            self.incident, self.rule, now=self.now, dry_run=self.run.dry_run, era=self.snapshot.era, after=self.run
        )
        self.successor = replace(successor, locks=self.run.locks)
        self.move_locks = {self.run.id: successor.id}
        self.events.append(created)

    def hand_over(self, to: Rule, reason: str) -> None:
        """End this run and let another rule look at the same incident (once per incident)."""
        self.say(Kind.INCIDENT_HANDED_OVER, to=to.name, reason=reason)
        self.release_locks.append(self.run.id)  # a chain that ends here may hold some
        self.run, event = advance(self.run, RunState.CANCELLED, now=self.now, reason=reason)
        self.events.append(event)
        self._count()
        self.incident = replace(
            self.incident, last_end=RunState.CANCELLED, updated_at=self.now, handovers=(*self.incident.handovers, self.run.rule)
        )
        self.incident, self.successor, created = new_run(self.incident, to, now=self.now, dry_run=self.run.dry_run, era=self.snapshot.era)
        self.texts[to.hash] = to.source
        self.events.append(created)

    def signalled(self, signal: Signal) -> None:
        """Use up a person's word."""
        self.consumed.append(self.run.id)
        self.events.append(
            Event(
                self.incident.id,
                Kind.SIGNAL_RECEIVED,
                self.now,
                {"run": self.run.id, "rule": self.run.rule, "signal": signal.kind.value, "comment": signal.comment},
                actor=signal.who,
            )
        )
