"""What must hold after every commit, every call and at the end. It keeps its own books and computes its own sums.

The books follow what became durable (`take`) and what reached the outside (`sent`, `effective`, `accepted`), never the engine's memory.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta

from remediator.escalation.pages import page_key
from remediator.events import Kind
from remediator.lifecycle import ACTING, ENDS, WAITS_FOR_PERSON
from remediator.model import Alert, ApprovalState, Authority, ChainedEvent, Episode, IncidentState, RunState, StepState
from remediator.records import (
    EVERYWHERE,
    FREEZE,
    FREEZE_CONNECTION,
    FREEZE_RULE,
    INEFFECTIVE,
    STORM,
    TAKEN,
    Approval,
    Incident,
    Message,
    MessageKind,
    Pause,
    Run,
    Step,
)
from remediator.rules.model import BudgetScope, Rule
from remediator.runs.turn import NEEDS_PERSON
from remediator.stopping.watchdog import lost
from remediator.store.protocol import Changes, Committed
from tests.simulation.loop import Process
from tests.simulation.playbooks import in_window
from tests.simulation.world import WATCHDOG

NEVER = "sim.post"
TOMBSTONE = timedelta(minutes=2)
"""How long an end holds against copies that were under way."""
_FINAL = frozenset({ApprovalState.DENIED, ApprovalState.EXPIRED, ApprovalState.VOID})
_QUIET_ENDS = frozenset({RunState.SUCCEEDED, RunState.CANCELLED, RunState.REHEARSED})
"""Ends after which an incident may stay open without a run: nobody needs to be told, or somebody was."""


class Violation(AssertionError):
    """Something happened that must never happen."""


class Ledger:
    """The books of one simulation."""

    def __init__(self, texts: Iterable[Rule], max_acting: int, *, windows: bool = False, tombstone: timedelta = TOMBSTONE) -> None:
        self.tombstone = tombstone
        self.max_acting = max_acting
        self.windows = windows
        self.rules = {rule.hash: rule for rule in texts}
        self.runs: dict[str, Run] = {}
        self.incidents: dict[str, Incident] = {}
        self.episodes: dict[str, Episode] = {}
        self.approvals: dict[str, Approval] = {}
        self.locks: dict[str, str] = {}
        self.pauses: set[str] = set()
        self.held_back: dict[str, Pause] = {}
        """The rows behind `pauses`: who, since when, until when."""
        self.led: dict[str, list[tuple[str, datetime]]] = {}
        """Who told a run something, and when."""
        self.heads: dict[str, tuple[int, str]] = {}
        self.updates: dict[str, Message] = {}
        self.folded: set[str] = set()
        """Messages that a storm's digests told instead."""
        self.intended: Counter[str] = Counter()
        self.words: Counter[str] = Counter()
        """Words of people by run that it has not followed yet."""
        self.calls: Counter[str] = Counter()
        self.effects: Counter[str] = Counter()
        self.versions: dict[str, int] = {}
        """What each call that sets a thing made of its version last."""
        self.reached: Counter[str] = Counter()
        """Things that each call changed."""
        self.began: dict[str, tuple[Run, datetime]] = {}
        """When each run last entered `applying` from `planning`."""
        self.beside: set[str] = set()
        """Acting runs that came back to verify or to undo, which waits for no cap."""
        self.used: dict[str, str] = {}
        """Run's plan hash by approval that it acted with."""
        self.pages: dict[str, bool] = {}
        """Whether each page that was ever queued goes out, or went, unless something else ends it."""
        self.now = datetime.min.replace(tzinfo=UTC)
        """The store's time of the newest transaction; a clock may be set back."""
        self.alerts: dict[tuple[str, datetime], Alert] = {}
        self.log: list[str] = []
        """One line for each event and each thing that happened outside: what a replay must repeat."""
        self.checks: Counter[str] = Counter()
        self.moves: Counter[tuple[str, str]] = Counter()
        """How often a run went from one state to another."""
        self.found: Violation | None = None

    def hold(self, name: str, *, that: bool, words: str = "") -> None:
        """Check an invariant. Raises `Violation`, and remembers the first."""
        self.checks[name] += 1
        if not that:
            self.found = self.found or Violation(f"{name}: {words}")
            raise self.found

    # --- after each commit

    def take(self, durable: Sequence[Committed]) -> None:
        """Follow transactions that are durable now."""
        for one in durable:
            self._chains(one.events)
            blind = dict(self.held_back)
            self._pauses(one.changes)
            self._believes(one.changes, blind)
            self._words(one)
            before = {run.id: self.runs.get(run.id) for run in one.changes.runs}
            self._approvals(one.changes)
            self._locks(one.changes)
            self._begins(one, before)
            for run in one.changes.runs:
                self._run(run, before[run.id], one)
            self._capped(one.changes, before)
            self.incidents.update({incident.id: incident for incident in one.changes.incidents})
            self.episodes.update({episode.fingerprint: episode for episode in one.changes.episodes})
            self._messages(one)
            self._owners(one.changes)
        self._acting_hold_their_locks()

    def _chains(self, events: Sequence[ChainedEvent]) -> None:
        from remediator import audit

        for event in events:
            seq, head = self.heads.get(event.chain, (0, audit.genesis(event.chain)))
            self.hold("chained", that=(event.seq, event.previous) == (seq + 1, head), words=f"{event.chain}/{event.seq} after {seq}")
            self.heads[event.chain] = (event.seq, event.hash)
            if event.kind == Kind.MESSAGE_FOLDED:
                self.folded.add(str(event.data["key"]))
            self.log.append(f"{event.at.isoformat()} {event.chain}/{event.seq} {event.kind} {event.hash}")
            if event.kind == Kind.RUN_ENTERED:
                self.moves[str(event.data["was"]), str(event.data["state"])] += 1

    def _words(self, one: Committed) -> None:
        self.words.update(signal.run for signal in one.changes.signals)
        for signal in one.changes.signals:
            self.led.setdefault(signal.run, []).append((signal.who, signal.at))
        heard = Counter(str(event.data["run"]) for event in one.events if event.kind == Kind.SIGNAL_RECEIVED)
        self.words.subtract(heard)
        for run in heard:
            self.hold("word_once", that=self.words[run] >= 0, words=f"{run} followed one word more than once")

    def _pauses(self, changes: Changes) -> None:
        self.held_back |= {pause.scope: pause for pause in changes.pauses}
        self.held_back = {scope: pause for scope, pause in self.held_back.items() if scope not in changes.lift}
        self.pauses = set(self.held_back)

    def _believes(self, changes: Changes, before: Mapping[str, Pause]) -> None:
        """No incident ends while a watchdog is lost, before the transaction and after it."""
        for incident in changes.incidents:
            known = self.incidents.get(incident.id)
            if incident.state is IncidentState.RESOLVED and (known is None or known.state is not IncidentState.RESOLVED):
                labels = incident.subject.labels
                blind = lost(before, labels) is not None and lost(self.held_back, labels) is not None
                self.hold("believed", that=not blind, words=f"{incident.id} ends while the watchdog is lost")

    def _run(self, run: Run, before: Run | None, one: Committed) -> None:
        known = {} if before is None else {step.number: step for step in before.steps}
        if before is not None:
            self.hold("ended_stays", that=before.ended_at is None, words=f"{run.id} was {before.state} and is {run.state}")
            self.hold("fenced", that=run.fence >= before.fence, words=f"{run.id}: fence {run.fence} writes after {before.fence}")
        for step in run.steps:
            old = known.get(step.number)
            if step.state is StepState.INTENDED and (old is None or old.state is not StepState.INTENDED):
                self._intent(run, step, f"{run.key}/{step.number}", one.snapshot.now)
                self._not_too_much(run, step)
            if step.undo_intended and (old is None or not old.undo_intended):
                self._intent(run, step, f"{run.key}/{step.number}/undo", one.snapshot.now)
        self.runs[run.id] = run

    def _intent(self, run: Run, step: Step, key: str, now: datetime) -> None:
        self.intended[key] += 1
        in_force = [pause for pause in self.held_back.values() if pause.until is None or now < pause.until]
        frozen = [pause.scope for pause in in_force if pause.scope in (FREEZE, f"{FREEZE_RULE}{run.rule}")]
        behind = {target.id.partition(":")[2].partition("/")[0] for target in (() if step.plan is None else step.plan.targets)}
        of_connections = [f"{FREEZE_CONNECTION}{name}" for name in sorted(behind)]
        self.checks["frozen_connection"] += len(of_connections)
        frozen += [pause.scope for pause in in_force if pause.scope in of_connections]
        frozen += ["a window"] if self.windows and in_window(now) else []
        self.hold("frozen", that=not frozen, words=f"{key} was intended at {now} during {frozen}")
        taken = [pause for pause in in_force if pause.scope.startswith(TAKEN) and self._in_the_way(pause, run, step)]
        self.hold("taken", that=not taken, words=f"{key} was intended while {taken} was taken")
        useless = f"{INEFFECTIVE}{run.rule}/{run.remedy}" in self.pauses and not key.endswith("/undo") and not run.undoes
        self.hold("ineffective", that=not useless, words=f"{key} was intended though {run.remedy!r} was stopped everywhere")
        stopped = self.pauses & {EVERYWHERE, f"rule:{run.rule}"}
        self.hold("paused", that=not stopped, words=f"{key} was intended while {stopped} was paused")
        self.hold("dry", that=not self._dry(run), words=f"{key} of a dry run was intended")
        if not key.endswith("/undo"):
            self._one_domain(run, step, key)
            blind = lost(self.held_back, self.incidents[run.incident].subject.labels) is not None
            self.hold(
                "watched", that=not blind or self._is_agreed_to(run), words=f"{key} was intended by itself while the watchdog was lost"
            )
        never = step.action == NEVER and not key.endswith("/undo")
        self.hold("never_again", that=not (never and self.calls[key]), words=f"{key} was sent once, and is intended again")

    def _is_agreed_to(self, run: Run) -> bool:
        approval = None if run.approval is None else self.approvals.get(run.approval)
        return approval is not None and approval.state is ApprovalState.APPROVED

    def _one_domain(self, run: Run, step: Step, key: str) -> None:
        """A run that has begun, and its chain, act in a failure domain until it ends; nobody else begins in another one of the group."""
        own = _domains([step])
        for other in self.runs.values():
            if other.ended_at is None and other.id != run.id and (other.incident, other.chain) != (run.incident, run.chain):
                waits = bool(other.undoes) and other.state not in ACTING  # what it is to take back was done by the run before it
                begun = _domains([one for one in other.steps if one.wrote and not waits])
                clash = [(group, name) for group, name in own for where, there in begun if where == group and there != name]
                self.hold("one_domain", that=not clash, words=f"{key} was intended in {clash} while {other.id} acts in {begun}")

    def _in_the_way(self, pause: Pause, run: Run, step: Step) -> bool:
        """Tell whether a step gets in the way of a person who has taken something and has not led this run on since."""
        if any(who == pause.who and at >= pause.at for who, at in self.led.get(run.id, ())):
            return False
        ids = set() if step.plan is None else {name for target in step.plan.targets for name in (target.id, target.lock)}
        same = pause.scope == f"{TAKEN}{run.incident}" or (pause.target != "" and pause.target == run.target)
        return same or bool(ids & set(pause.covers))

    def _not_too_much(self, run: Run, step: Step) -> None:
        if step.plan is None:
            return
        touched, most = len(list(step.plan.intent.get("members") or [""])), self._most(run)  # type: ignore[call-overload]
        self.hold("blast", that=touched <= most, words=f"{run.id}/{step.number} would touch {touched}, at most {most} are allowed")

    def _most(self, run: Run) -> int:
        return self.rules[run.rule_hash].guards.max_targets

    def _dry(self, run: Run) -> bool:
        rule = self.rules.get(run.rule_hash)
        return run.dry_run or (rule is not None and rule.mode is Authority.OBSERVE)

    # --- entering applying: guards and approvals

    def _begins(self, one: Committed, before: dict[str, Run | None]) -> None:
        entered = {
            str(event.data["run"])
            for event in one.events
            if event.kind == Kind.RUN_ENTERED and event.data["state"] == RunState.APPLYING and event.data["was"] == RunState.PLANNING
        }
        for run in one.changes.runs:
            if run.id in entered:
                self._may_begin(run, one.snapshot.now)
                self.began[run.id] = (run, one.snapshot.now)

    def _may_begin(self, run: Run, now: datetime) -> None:
        rule = self.rules[run.rule_hash]
        held = STORM in self.pauses and not self._is_agreed_to(run)
        self.hold("storm", that=not held, words=f"{run.id} begins by itself in a storm")
        self._within_budget(run, rule, now)
        self._cooled_down(run, rule, now)
        self._approved(run, rule)

    def _capped(self, changes: Changes, before: dict[str, Run | None]) -> None:
        acting = {run.id for run in self.runs.values() if run.state in ACTING}
        self.beside &= acting
        for run in changes.runs:
            was = before[run.id]
            if run.id not in acting or (was is not None and was.state in ACTING):
                continue
            if run.state is RunState.APPLYING:
                self.hold("max_acting", that=len(acting) <= self.max_acting, words=f"{run.id} begins or goes on beside {acting - {run.id}}")
            else:
                self.beside.add(run.id)
        self.hold("max_acting", that=len(acting - self.beside) <= self.max_acting, words=f"{acting} act")

    def _within_budget(self, run: Run, rule: Rule, now: datetime) -> None:
        if not _takes_budget(run):
            return
        for budget in rule.guards.budgets:
            used = [
                other.id
                for other, at in self.began.values()  # whatever came of its calls
                if other.rule == run.rule
                and other.id != run.id
                and (budget.per is BudgetScope.RULE or other.target == run.target)
                and at > now - budget.window
                and _takes_budget(other)
            ]
            self.hold("budget", that=len(used) < budget.count, words=f"{run.id} begins after {used}, the budget is {budget}")

    def _cooled_down(self, run: Run, rule: Rule, now: datetime) -> None:
        if run.chain != run.number:
            return
        open_chains = {(other.incident, other.chain) for other in self.runs.values() if other.ended_at is None and other.id != run.id}
        ends = [
            other.ended_at
            for other in self.runs.values()
            if other.ended_at is not None
            and (other.rule, other.target) == (run.rule, run.target)
            and (other.incident, other.chain) not in open_chains
            and other.ever_wrote
        ]
        last = max(ends, default=None)
        cool = last is None or now >= last + rule.guards.cooldown
        self.hold("cooldown", that=cool, words=f"{run.id} begins at {now}, the last one ended at {last}")

    def _approved(self, run: Run, rule: Rule) -> None:
        approval = None if run.approval is None else self.approvals.get(run.approval)
        remedy = next(one for one in rule.remedies if one.name == run.remedy)
        asked = rule.mode is not Authority.AUTO or remedy.approval is not None
        agreed = approval is not None and approval.state is ApprovalState.APPROVED
        self.hold("approved", that=agreed or not asked, words=f"{run.id} begins without the approval that its rule asks for")
        if approval is None or not agreed:
            return
        self.hold("approved_plan", that=approval.plan_hash == run.plan_hash, words=f"{run.id} acts on another plan than {approval.id}")
        self.hold("approved_run", that=approval.run == run.id, words=f"{run.id} acts with {approval.id}")
        used = self.used.setdefault(approval.id, f"{run.id} {run.plan_hash}")
        self.hold("approval_once", that=used == f"{run.id} {run.plan_hash}", words=f"{approval.id} was used by {used}, now by {run.id}")

    def _approvals(self, changes: Changes) -> None:
        for new in changes.approvals:
            old = self.approvals.get(new.id)
            if old is not None:
                legal = old.state is ApprovalState.PENDING or (old.state is ApprovalState.APPROVED and new.state in _FINAL)
                same = old.state is new.state and old.votes == new.votes
                self.hold("approval_closed", that=legal or same, words=f"{new.id} goes from {old.state} to {new.state}")
            voters = [vote.who for vote in new.votes if vote.approve]
            enough = len(set(voters)) >= new.quorum
            self.hold("quorum", that=new.state is not ApprovalState.APPROVED or enough, words=f"{new.id} by {voters} of {new.quorum}")
            self.approvals[new.id] = new

    # --- locks

    def _locks(self, changes: Changes) -> None:
        self.locks = {key: run for key, run in self.locks.items() if run not in changes.release_locks}
        self.locks = {key: changes.move_locks.get(run, run) for key, run in self.locks.items()}
        for key, run in changes.take_locks.items():
            holder = self.locks.setdefault(key, run)
            self.hold("lock", that=holder == run, words=f"{run} takes {key}, which {holder} holds")

    def _acting_hold_their_locks(self) -> None:
        for run in self.runs.values():
            if run.state in ACTING:
                steps = [step for step in run.steps if step.wrote or run.state is RunState.APPLYING]
                wanted = {target.lock for step in steps if step.plan is not None and not step.plan.noop for target in step.plan.targets}
                missing = {key for key in wanted if self.locks.get(key) != run.id}
                self.hold("acting_locked", that=not missing, words=f"{run.id} is {run.state} without {missing}")

    # --- nobody is forgotten

    def _messages(self, one: Committed) -> None:
        self.updates.update({message.key: message for message in one.changes.messages})
        self.pages |= {message.key: True for message in one.changes.messages if message.kind is MessageKind.PAGE}
        self.pages |= dict.fromkeys(set(one.changes.cancel_messages) & set(self.pages), False)
        self.now = one.snapshot.now
        for event in one.events:
            if event.kind == Kind.RUN_ENTERED and event.data["state"] in NEEDS_PERSON:
                run, state = str(event.data["run"]), str(event.data["state"])
                told = any(message.key.startswith(f"{run}/{state}@") for message in one.changes.messages)
                goes_on = any(other.chain == self.runs[run].chain and other.number > self.runs[run].number for other in one.changes.runs)
                self.hold("person_told", that=told or goes_on, words=f"{run} is {state} and nobody is told")

    def _owners(self, changes: Changes) -> None:
        touched = {run.incident for run in changes.runs} | {incident.id for incident in changes.incidents}
        for incident in (self.incidents[ident] for ident in sorted(touched)):
            active = [run.id for run in self.runs.values() if run.incident == incident.id and run.ended_at is None]
            expected = [] if incident.active_run is None else [incident.active_run]
            self.hold("one_run", that=active == expected, words=f"{incident.id} says {expected}, at work are {active}")
            owned = incident.state is not IncidentState.OPEN or bool(active) or incident.last_end in _QUIET_ENDS
            self.hold("owned", that=owned, words=f"{incident.id} is open, its last run is {incident.last_end}, and nobody has it")

    # --- what happens outside

    def sent(self, key: str, action: str, process: Process) -> None:
        """A request that writes leaves the daemon."""
        self.calls[key] += 1
        self.log.append(f"sent {key} {action} {process.name}")
        self.hold("intended", that=self.intended[key] > 0, words=f"{key} was sent without a durable intent")
        if action == NEVER:
            self.hold("never_twice", that=self.calls[key] == 1, words=f"{key} was sent {self.calls[key]} times")
        run = self.runs[re.split("[~/]", key)[0]]
        self.hold("dry_writes", that=not self._dry(run), words=f"{key} of a dry run was sent")

    def effective(self, key: str, what: str, process: Process) -> None:
        """A write took effect."""
        self.effects[key] += 1
        self.log.append(f"effective {key} {what} {process.name}")
        version = int(what.partition("@")[2] or 0)
        # A call that came late after its answer was lost, and was overwritten by somebody else: what is planned from that is not the same.
        anew = key in self.versions and version > self.versions[key] + 1
        self.versions[key] = version
        self.hold("effective_twice", that=self.effects[key] == 1 or anew, words=f"{key} took effect {self.effects[key]} times")
        step = key.partition("#")[0]
        self.reached[step] += 1
        run = self.runs[re.split("[~/]", step)[0]]
        self.hold("blast", that=self.reached[step] <= self._most(run), words=f"{step} touched {self.reached[step]} things")

    def accepted(self, alerts: Iterable[Alert]) -> None:
        """A webhook was answered with 2xx."""
        for alert in alerts:
            episode = self.episodes.get(alert.fingerprint)
            if alert.firing:
                self.alerts[alert.fingerprint, alert.starts_at] = alert
                self.hold("accepted", that=episode is not None, words=f"{alert.labels} has no episode")
            if alert.firing and episode is not None:
                known = episode.incident in self.incidents and self.incidents[episode.incident].runs > 0
                covered = known or alert.name not in {rule.name for rule in self.rules.values()}
                may_miss = alert.name in ("evict", "job")  # deleted or disabled in one edition
                self.hold("accepted_run", that=covered or may_miss, words=f"{alert.labels} started no run")
                if episode.open and episode.incident in self.incidents and not may_miss:
                    self._told_of(self.incidents[episode.incident])

    def _told_of(self, incident: Incident) -> None:
        """An alert was just said to fire: its incident is being worked on, or was called a success a moment ago, or people know of it."""
        run = None if incident.active_run is None else self.runs[incident.active_run]
        at_work = run is not None and not run.undoes
        just_now = incident.last_end is not None and self.now - incident.updated_at <= self.tombstone
        told = incident.state is not IncidentState.OPEN or self.pages.get(page_key(incident), False)
        self.hold(
            "told_of", that=at_work or just_now or told, words=f"{incident.id} fires, its last run is {incident.last_end}, and nobody knows"
        )

    # --- the end

    def waiting(self) -> list[Run]:
        """Return all runs that only a person leads on."""
        return [run for run in self.runs.values() if run.state in WAITS_FOR_PERSON]

    def unfinished(self) -> list[str]:
        """Say what is not over yet."""
        words = [f"{run.id} is {run.state}: {run.reason}" for run in self.runs.values() if run.state not in ENDS]
        words += [f"{one.id} is {one.state}" for one in self.incidents.values() if one.state is not IncidentState.RESOLVED]
        words += [f"{one.labels} is open" for one in self.episodes.values() if one.open and one.labels["alertname"] != WATCHDOG[0]]
        return words + [f"{key} is held by {run}" for key, run in self.locks.items()]


def _domains(steps: Iterable[Step]) -> set[tuple[str, str]]:
    """Return group and name of the failure domains that steps touch."""
    targets = [target for step in steps if step.plan is not None for target in step.plan.targets if target.domain]
    return {(target.id.partition("/")[0], target.domain) for target in targets}


def _takes_budget(run: Run) -> bool:
    """Tell whether a run that begins has anything to change; messages to people take no budget."""
    return any(step.plan is not None and step.plan.targets and not step.plan.noop for step in run.steps)
