"""The rows of the durable state as frozen values: incidents, runs, steps, approvals, messages, pauses.

Pure like `remediator.model`, which holds the words these are made of. A row is replaced whole, never edited in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from remediator.model import (
    JSON,
    Alert,
    ApprovalState,
    Authority,
    IncidentState,
    Plan,
    Receipt,
    RunState,
    StepState,
)

SYSTEM_CHAIN = "system"
"""The audit chain of what belongs to no incident: start, settings, reload, kill switch, sign-in, checkpoints."""

EVERYWHERE = "global"
"""The kill switch's scope that stops every rule."""

ONE_RULE = "rule:"
"""Beginning of the scopes of the kill switch for one rule: `rule:NAME`."""

STORM = "storm"
"""Scope of the storm breaker: while it is thrown, runs are held back and people get digests (`remediator.storms.breaker`)."""

SILENCE = "silence:"
"""Beginning of scopes that stop nothing: `silence:RUN` tells of the silence that a run wants (`remediator.silences.silencing`)."""

AFTER_STORM = "storm:after"
"""Scope that holds from a storm's end until all that it held back was looked at again. It stops nothing."""

WATCHDOG = "watchdog"
"""Scope that holds while no watchdog was ever heard; `watchdog:…` while one is not heard any more (`remediator.stopping.watchdog`)."""

PROBE = "heartbeat:probe"
"""Scope that is there for a moment while it is looked whether the store can be written. It stops nothing."""

WATCHDOG_AWAITED = "watchdog:awaited"
"""Scope that says since when a watchdog is awaited that was never heard. It stops nothing."""

SETTLING = "settling:"
"""Beginning of scopes that stop nothing: `settling:watchdog:…` says since when a watchdog that had been lost is heard again."""

TAKEN = "taken:"
"""Beginning of the scopes of what people have taken: `taken:INCIDENT`. Automation keeps its hands off (`remediator.responders.taking`)."""

TAKEN_TARGET = "taken:target:"
"""Beginning of the scopes of canonical ids that people have taken, whatever the incident: `taken:target:ID`."""

FREEZE = "freeze"
"""Scope of a manual freeze of everything: nothing acts until its `until`, or until a person thaws it (`remediator.freezes.windows`)."""

FREEZE_RULE = "freeze:rule:"
"""Beginning of the scopes of manual freezes of one rule: `freeze:rule:NAME`."""

FREEZE_CONNECTION = "freeze:connection:"
"""Beginning of the scopes of manual freezes of one connection: `freeze:connection:NAME`."""

LOADED = "loaded:"
"""Beginning of scopes that stop nothing: `loaded:HASH` says when a set of rules was first loaded anywhere (`remediator.guards.rollout`)."""

DEMOTED = "demoted:"
"""Begins the scope that lowers a rule's authority to the pause's `mark`: `demoted:RULE`. Only a person lifts it, by promoting."""

PROMOTED = "promoted:"
"""Begins the scope that notes who promoted a rule to auto, and on what text (`mark`): `promoted:RULE`. It stops nothing."""

INEFFECTIVE = "remedy:"
"""Begins the scope that stops one remedy everywhere, since it failed on several targets: `remedy:RULE/REMEDY`. Only a person lifts it."""


def keyed(name: str, era: str) -> str:
    """Return what services outside know something of this name by: no other that ever bears the name is known by it.

    >>> keyed("INC-20261121-001", "3f9a0c11"), keyed("INC-20261121-001", "")
    ('INC-20261121-001~3f9a0c11', 'INC-20261121-001')
    """
    return f"{name}~{era}" if era else name


@dataclass(frozen=True)
class Incident:
    """What is wrong: all open episodes of one rule on one target."""

    id: str
    """`INC-YYYYMMDD-NNN`, also the name of its audit chain."""
    rule: str
    target: str
    severity: str
    state: IncidentState
    subject: Alert
    """The alert that opened it; `labels` and `alert` in expressions always mean this one."""
    opened_at: datetime
    updated_at: datetime
    fingerprints: tuple[str, ...]
    """Fingerprints of its open episodes, in the order in which they joined. Empty once all are resolved."""
    resolved_at: datetime | None = None
    owner: str | None = None
    relapses: int = 0
    runs: int = 0
    """How many runs it has had; the next run's number is this plus one."""
    active_run: str | None = None
    """The run that has not ended, if there is one."""
    last_end: RunState | None = None
    """How its latest run ended; None when it has fired again since, with that or another run still at work."""
    handovers: tuple[str, ...] = ()
    """Rules that handed it over, oldest first; none takes it twice."""
    succeeded_remedies: tuple[str, ...] = ()
    relapsed_remedies: tuple[str, ...] = ()
    """Remedies that had succeeded before a relapse; they need an approval now."""
    relapsed_at: tuple[datetime, ...] = ()
    """When it fired again though a remedy had succeeded, oldest first; at most the newest `MOST_RELAPSES`."""
    summary: str = ""
    also_matched: tuple[str, ...] = ()
    """Rules of lower priority that matched too."""
    acknowledged_at: datetime | None = None
    """When its owner said so last; a relapse must be acknowledged anew."""
    paged_at: datetime | None = None
    """When its latest page began to go out; None while nobody was paged."""
    policy: str = ""
    """The escalation policy by which people were paged."""
    climb_from: int | None = None
    """The firing (its number of `relapses`) whose page began the climb that goes on; None before it, and after an end that lasted."""
    era: str = ""
    """The store's era in which it was opened; empty for one opened before there were any."""

    @property
    def key(self) -> str:
        """What pagers know it by: its id, which another incident of a store that was restored or begun anew may bear too, and the era."""
        return keyed(self.id, self.era)


@dataclass(frozen=True)
class Step:
    """One step of a run's remedy, planned, intended, carried out (`semantics.md`, 16)."""

    number: int
    action: str
    state: StepState
    plan: Plan | None = None
    receipt: Receipt | None = None
    undo_plan: Plan | None = None
    """Set once undoing this step was planned; its own intent and receipt follow the same states."""
    undo_receipt: Receipt | None = None
    undo_intended: bool = False
    message: str = ""
    """Why it is in this state, for people."""
    intended_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def wrote(self) -> bool:
        """True when it may have changed something."""
        return self.state in (StepState.APPLIED, StepState.UNKNOWN, StepState.UNDONE, StepState.INTENDED)


@dataclass(frozen=True)
class Run:
    """One attempt to remedy an incident. Only the holder of its lease, by `fence`, may replace it."""

    id: str
    """`INC-YYYYMMDD-NNN-R`, R counting the incident's runs from 1."""
    incident: str
    number: int
    rule: str
    rule_hash: str
    """Key of the frozen rule text this run follows."""
    target: str
    state: RunState
    created_at: datetime
    entered_at: datetime
    """When it entered `state`."""
    wake_at: datetime | None
    """When a worker should look at it; None when it waits for an outside event or has ended."""
    fence: int = 0
    """Fencing token: each claim raises it, and only its newest value may write."""
    chain: int = 1
    """Number of the incident's run that began this chain of remedies."""
    tried: tuple[str, ...] = ()
    """Remedies that earlier runs of the chain tried."""
    failures: tuple[str, ...] = ()
    """What came of these, in words, for whoever takes over when the chain ends."""
    chain_wrote: bool = False
    """True when an earlier run of the chain changed something."""
    remedy: str | None = None
    remedy_hash: str = ""
    dry_run: bool = False
    facts: Mapping[str, JSON] = field(default_factory=dict)
    """Facts by qualified name, encoded with `encode_value`, as the decision used them."""
    unknown: Mapping[str, str] = field(default_factory=dict)
    """Why which facts are unknown."""
    steps: tuple[Step, ...] = ()
    planned_at: datetime | None = None
    plan_hash: str = ""
    """Hash over all steps' plans; what an approval is bound to."""
    approval: str | None = None
    """Id of the approval it waits for or holds."""
    asked: int = 0
    """How many approvals it has asked for."""
    drifts: int = 0
    """Approvals voided because the world had moved."""
    deadline: datetime | None = None
    """When the present state times out."""
    waiting_since: datetime | None = None
    applied_at: datetime | None = None
    """When its last external call ended."""
    healthy_since: datetime | None = None
    locks: tuple[str, ...] = ()
    reason: str = ""
    """The latest explanation, for people."""
    ended_at: datetime | None = None
    resume_state: RunState | None = None
    """Where an interrupted run was."""
    storm: str = ""
    """The storm that held it back, by its beginning; it stays when the run is let go on."""
    undoes: str = ""
    """The run that it undoes because a person asked for it; its steps are those of that run then."""
    asked_by: str = ""
    """Who asked for it, who therefore can't approve it; empty: the daemon made it."""
    led_by: tuple[str, ...] = ()
    """Holds (`taking.seal`) whose holder told it to go on; under these it is not stopped."""
    word_at: datetime | None = None
    """When a person last said that it shall go on: approved it, or resumed it."""
    left_since: datetime | None = None
    """Since when it is left to replicas that know its rule; None: by whoever has it now the rule is known."""
    era: str = ""
    """The store's era in which it was made; empty for one made before there were any."""

    @property
    def key(self) -> str:
        """What the keys of its calls begin with, the same for as long as it lives: its id, and the era that tells it from a namesake."""
        return keyed(self.id, self.era)

    @property
    def wrote(self) -> bool:
        """True when at least one of its own steps may have changed something."""
        return any(step.wrote for step in self.steps)

    @property
    def ever_wrote(self) -> bool:
        """True when it, or an earlier run of its chain, may have changed something. An undo begins with steps that another run took."""
        if self.undoes:
            return any(step.intended_at is not None or step.state is StepState.UNDONE for step in self.steps)
        return self.chain_wrote or self.wrote


@dataclass(frozen=True)
class Vote:
    """One person's decision on an approval."""

    who: str
    approve: bool
    comment: str
    at: datetime


@dataclass(frozen=True)
class Approval:
    """A question to people, bound to a plan's hash. Single use."""

    id: str
    run: str
    incident: str
    plan_hash: str
    state: ApprovalState
    requested_at: datetime
    expires_at: datetime
    reason: str
    """Why a person is asked (mode, risk, relapse, Alertmanager silent, …)."""
    groups: tuple[str, ...] = ()
    quorum: int = 1
    requester: str = "remediator"
    votes: tuple[Vote, ...] = ()


class MessageKind(StrEnum):
    """What a message to people is."""

    PAGE = "page"
    APPROVAL = "approval"
    UPDATE = "update"
    ACKNOWLEDGED = "acknowledged"
    RESOLVED = "resolved"
    DIGEST = "digest"
    """One message for all incidents of a storm; its `incident` is the system chain."""


@dataclass(frozen=True)
class Message:
    """A message to people, kept in the outbox until it is delivered. Delivered at least once, de-duplicated by `key`."""

    key: str
    kind: MessageKind
    policy: str
    """Escalation policy that names the receivers."""
    incident: str
    body: Mapping[str, JSON]
    due_at: datetime
    """Not before then: a held page is a message with a later time."""
    attempts: int = 0
    delivered_at: datetime | None = None
    cancelled: bool = False
    error: str = ""
    delivered_to: tuple[str, ...] = ()
    """Receivers that already have it, so that a retry skips them."""


@dataclass(frozen=True)
class Pause:
    """What holds automation back: a thrown kill switch, a storm, a freeze, a lost watchdog, what somebody has taken, a demotion, and more.

    The beginning of `scope` tells which it is; the constants above say what each does, and who or what ends it.
    """

    scope: str
    who: str
    why: str
    at: datetime
    since: datetime | None = None
    """When the storm began, when a lost watchdog was last heard, from when on one that is back is known to have been alive, or when its
    record demoted a rule that a person has lowered or raised since."""
    until: datetime | None = None
    """When it ends by itself; only a freeze, or what somebody took for a time, may."""
    covers: tuple[str, ...] = ()
    """Canonical ids that a taken incident is about, as far as its plans named them."""
    target: str = ""
    """The target of a taken incident."""
    mark: str = ""
    """What a scope of its kind says besides: to what a rule is demoted, on which text it was promoted."""


class SignalKind(StrEnum):
    """What a person may tell a run that waits for one."""

    SETTLE_APPLIED = "settle_applied"
    SETTLE_NOT_APPLIED = "settle_not_applied"
    RESUME = "resume"
    UNDO = "undo"
    CLOSE = "close"


@dataclass(frozen=True)
class Signal:
    """A person's word to a run, consumed by the run's next transition."""

    run: str
    kind: SignalKind
    who: str
    comment: str
    at: datetime


@dataclass(frozen=True)
class Use:
    """One unit of budget, used by a run with its first call, whatever comes of that (`semantics.md`, 7)."""

    run: str
    rule: str
    target: str
    at: datetime


MOST_RELAPSES = 20
"""Relapses whose time an incident keeps."""


class Ending(StrEnum):
    """What came of an attempt. *Tried* means that at least one call of the remedy was made."""

    SUCCESS = "success"
    """Verified: the condition was true without a break for as long as it had to be."""
    FAILURE = "failure"
    """A call failed, or the remedy was carried out and did not help in time."""
    UNDONE = "undone"
    """It did not help, and was taken back."""
    UNKNOWN = "unknown"
    """It was tried, and nobody can tell whether it helped: no success."""
    STOPPED = "stopped"
    """A person stopped it before it could be judged: neither success nor failure."""
    WOULD_HAVE = "would_have"
    """A rehearsal: the remedy was planned and not carried out."""
    CANCELLED = "cancelled"
    """The alert ended, or another rule took over, before anything was tried."""
    NOT_TRIED = "not_tried"
    """Nothing was tried: no remedy fitted, it could not be planned, a guard or a person said no."""


@dataclass(frozen=True)
class Attempt:
    """What came of one run that has ended: what the scorecard counts, and what a rule's trust rests on.

    It stays longer than its run. Of a run that ends twice (undone by hand after a success) the last end counts.
    """

    run: str
    incident: str
    rule: str
    target: str
    ending: Ending
    tried: bool
    """At least one call was made, whatever came of it. Only what was tried says anything about the remedy."""
    opened_at: datetime
    """Since when the alert fired that this was an attempt to end."""
    ended_at: datetime
    remedy: str = ""
    """Empty when none was chosen."""
    remedy_hash: str = ""
    mode: Authority = Authority.OBSERVE
    """With how much authority it went: observe (rehearsed), approve (people were asked), auto."""
    dry_run: bool = False
    reason: str = ""
    recovered_at: datetime | None = None
    """When the alert ended, by whatever cause."""
    relapsed_at: datetime | None = None
    """When it fired again within the relapse window after a success."""

    @property
    def succeeded(self) -> bool:
        """True for a success that lasted: a relapse counts against the remedy."""
        return self.tried and self.ending is Ending.SUCCESS and self.relapsed_at is None

    @property
    def counts(self) -> bool:
        """True when it says something about the remedy: it was tried, and no person stopped it."""
        return self.tried and self.ending is not Ending.STOPPED
