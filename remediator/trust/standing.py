"""Trust: what came of a run, when a rule loses the mode auto, and when a remedy is stopped everywhere. Pure.

A rule's file says how far it may go at most; its record decides how far it does. Losing trust is automatic and happens in the
transaction that ends the failed run; getting it back needs a person.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta

from remediator.duration import format_duration
from remediator.model import SYSTEM, Authority, RunState, StepState, digest
from remediator.records import DEMOTED, INEFFECTIVE, PROMOTED, Attempt, Ending, Incident, Pause, Run
from remediator.rules.model import Arm, GuardSpec, Rule
from remediator.store.protocol import Snapshot

LONGEST_WORDS = 300
"""Characters of a failure's words that are kept as evidence."""
SHOWN = 5
"""Failed attempts that are named as evidence."""

_TRIED = {
    RunState.SUCCEEDED: Ending.SUCCESS,
    RunState.FAILED: Ending.FAILURE,
    RunState.UNDONE: Ending.UNDONE,
    RunState.DENIED: Ending.STOPPED,
    RunState.CANCELLED: Ending.STOPPED,
}
"""What came of a run that made at least one call; in every other end nobody can tell."""

_UNTRIED = {RunState.REHEARSED: Ending.WOULD_HAVE, RunState.CANCELLED: Ending.CANCELLED, RunState.SUCCEEDED: Ending.CANCELLED}
"""What came of a run that made none; in every other end nothing was tried."""


# --- what came of a run ------------------------------------------------------------------------------------------------


def was_tried(run: Run) -> bool:
    """Tell whether a run made at least one call, whatever came of it."""
    return run.wrote or any(step.state is StepState.FAILED for step in run.steps)


def ending_of(run: Run) -> Ending:
    """Say what came of a run that has ended. One that was stopped between its calls, and not resumed, says nothing about its remedy."""
    if not was_tried(run):
        return _UNTRIED.get(run.state, Ending.NOT_TRIED)
    if run.resume_state is not None:
        return Ending.STOPPED
    return _TRIED.get(run.state, Ending.UNKNOWN)


def attempt_of(run: Run, incident: Incident, rule: Rule, snapshot: Snapshot) -> Attempt:
    """Write down what came of a run that has ended."""
    episode = snapshot.episodes.get(incident.subject.fingerprint)
    return Attempt(
        run=run.id,
        incident=run.incident,
        rule=run.rule,
        target=run.target,
        ending=ending_of(run),
        tried=was_tried(run),
        opened_at=incident.opened_at if episode is None else episode.opened_at,
        ended_at=run.ended_at or snapshot.now,
        remedy=run.remedy or "",
        remedy_hash=run.remedy_hash,
        mode=_mode(run, rule),
        dry_run=run.dry_run,
        reason=run.reason[:LONGEST_WORDS],
        recovered_at=incident.resolved_at,
    )


def _mode(run: Run, rule: Rule) -> Authority:
    if run.dry_run or run.state is RunState.REHEARSED:
        return Authority.OBSERVE
    if run.asked:
        return Authority.APPROVE
    return Authority.AUTO if was_tried(run) else rule.mode


# --- how far a rule's record lets it go -----------------------------------------------------------------------------------


_DOES = ("match", "for", "target", "checks", "remedies", "alive")
"""Keys of a rule's text that say when it acts, on what and how."""


def mark_of(rule: Rule) -> str:
    """Return what a promotion rests on: when the rule acts, on what and how. Change that, and a person has to look again."""
    text = rule.source.get("rule")
    does = {key: text[key] for key in _DOES if key in text} if isinstance(text, Mapping) else {}
    return digest([sorted(remedy.hash for remedy in rule.remedies), does, rule.source.get("vars")])


def caps(rules: Iterable[Rule], pauses: Mapping[str, Pause], *, earn: bool) -> list[tuple[Authority, str]]:
    """Return what a rule's record lowers its authority to, and why. `rules` are its texts, the frozen one and the one in force."""
    found: list[tuple[Authority, str]] = []
    for rule in rules:
        demoted = pauses.get(DEMOTED + rule.name)
        if demoted is not None:
            limit = Authority(demoted.mark or Authority.APPROVE)
            found.append((limit, f"the rule was demoted to {limit} by {demoted.who} at {demoted.at:%Y-%m-%d %H:%M:%SZ}: {demoted.why}"))
        if earn and rule.mode is Authority.AUTO:
            promoted = pauses.get(PROMOTED + rule.name)
            if promoted is None:
                found.append((Authority.APPROVE, "the rule has not been promoted to auto (limits.earn)"))
            elif promoted.mark != mark_of(rule):
                found.append((Authority.APPROVE, "what it does was changed since it was promoted to auto (limits.earn)"))
    return list(dict.fromkeys(found))


def lost_at(demoted: Pause | None) -> datetime | None:
    """Return since when a rule earns auto anew: when its record demoted it, whatever people made of that since. None: it never was."""
    if demoted is None:
        return None
    return demoted.at if demoted.who == SYSTEM.name else demoted.since


def window_of(specs: Iterable[GuardSpec]) -> timedelta:
    """Return how far back attempts matter to any of these limits."""
    spans = [span for spec in specs for span in (spec.failing_within, *([spec.arm.window] if spec.arm is not None else []))]
    return max(spans, default=timedelta())


# --- losing trust -----------------------------------------------------------------------------------------------------------


def fallen(history: Sequence[Attempt], arm: Arm, *, now: datetime, since: datetime | None) -> str | None:
    """Return why a rule is no longer to be trusted with auto, None while it is.

    Of its newest `min_runs` attempts (those that are not there yet taken for successes) too many were none. `history` is newest first,
    `since` the last promotion: what was known then was forgiven.
    """
    start = now - arm.window if since is None else max(since, now - arm.window)
    newest = [attempt for attempt in history if attempt.counts and attempt.ended_at > start][: arm.min_runs]
    failed = [attempt for attempt in newest if not attempt.succeeded]
    if (arm.min_runs - len(failed)) / arm.min_runs >= arm.min_success - 1e-9:
        return None
    return (
        f"{len(failed)} of its last {len(newest)} attempts were no success, which leaves less than {arm.min_success:.0%} of "
        f"{arm.min_runs}: {evidence(failed)}"
    )


def spread(history: Sequence[Attempt], spec: GuardSpec, latest: Attempt, *, now: datetime) -> str | None:
    """Return why a remedy is to be stopped everywhere: it failed on too many targets within the window; None while it is not."""
    if spec.max_failing is None:
        return None
    since = now - spec.failing_within
    failed: dict[str, Attempt] = {}
    for attempt in history:
        if attempt.remedy == latest.remedy and attempt.counts and not attempt.succeeded and attempt.ended_at > since:
            failed.setdefault(attempt.target, attempt)
    if len(failed) < spec.max_failing:
        return None
    return f"it did not help on {len(failed)} targets within {format_duration(spec.failing_within)}: {evidence(failed.values())}"


def evidence(failed: Iterable[Attempt]) -> str:
    """Name failed attempts, the newest first."""
    all_ = list(failed)
    shown = [f"{one.run} on {one.target} ({_came(one)})" for one in all_[:SHOWN]]
    more = len(all_) - len(shown)
    return ", ".join(shown) + (f", and {more} more" if more > 0 else "")


def _came(attempt: Attempt) -> str:
    return "it came back" if attempt.ending is Ending.SUCCESS else attempt.ending.value


def stop_of(rule: str, remedy: str) -> str:
    """Return the scope of the pause that stops a remedy everywhere."""
    return f"{INEFFECTIVE}{rule}/{remedy}"


def lost(
    latest: Attempt,
    snapshot: Snapshot,
    specs: Sequence[GuardSpec],
    *,
    autonomous: bool,
) -> list[Pause]:
    """Return what follows from an attempt that was no success: the remedy stopped everywhere, the rule demoted, both, or nothing.

    `snapshot` must hold the rule's attempts; `autonomous` says whether the rule acts alone at present.
    """
    now = snapshot.now
    earlier = snapshot.attempts[latest.rule]
    history = [latest, *(attempt for attempt in earlier if attempt.run != latest.run)]
    found = []
    stopped = stop_of(latest.rule, latest.remedy)
    if stopped not in snapshot.pauses:
        whys = (spread(history, spec, latest, now=now) for spec in specs)
        found += [Pause(stopped, SYSTEM.name, why, now) for why in [next(filter(None, whys), None)] if why is not None]
    if autonomous:
        promoted = snapshot.pauses.get(PROMOTED + latest.rule)
        since = None if promoted is None else promoted.at
        falls = (fallen(history, spec.arm, now=now, since=since) for spec in specs if spec.arm is not None)
        demoted = next(filter(None, falls), None)
        if demoted is not None:
            found.append(Pause(DEMOTED + latest.rule, SYSTEM.name, demoted, now, mark=Authority.APPROVE.value))
    return found


def with_failures(reason: str, failures: Sequence[str]) -> str:
    """Add to a chain's last words what its earlier remedies came to, so that people need not look for it."""
    if not failures or _BEFORE in reason:
        return reason
    return f"{reason}{_BEFORE}{' | '.join(failures)}"


_BEFORE = "; tried before: "
