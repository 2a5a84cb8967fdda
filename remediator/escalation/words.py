"""What messages say: the values that every receiver gets, and the daemon's own words for each kind of message. Pure.

Facts marked as evidence never get here: only states, names, plans and what steps said they had done.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta

from remediator.duration import format_duration
from remediator.escalation import digest, notice
from remediator.escalation.pages import BACK, relapse_of
from remediator.escalation.told import is_told_over
from remediator.model import IncidentState, RunState, StepState, Value
from remediator.records import Incident, Message, MessageKind, Run, Step

MOST_ACTIONS = 20
"""Actions that a message lists, the latest."""
_DONE: Mapping[StepState, str] = {
    StepState.APPLIED: "",
    StepState.UNDONE: "undone: ",
    StepState.FAILED: "FAILED: ",
    StepState.UNKNOWN: "OUTCOME UNKNOWN: ",
    StepState.INTENDED: "under way: ",
}
_WANTED: Mapping[RunState, str] = {
    RunState.AWAITING_APPROVAL: "a decision: remediator approve {approval}, or remediator deny {approval}",
    RunState.OUTCOME_UNKNOWN: "somebody to find out what became of a call: remediator settle {run} applied|not_applied",
    RunState.INTERRUPTED: "somebody to say how to go on: remediator signal {run} resume|undo|close",
}


def facts_for(
    message: Message,
    incident: Incident | None,
    run: Run | None,
    *,
    public_url: str | None,
    runs: Sequence[Run] = (),
    contacts: Mapping[str, str] | None = None,
    now: datetime | None = None,
) -> Mapping[str, Value]:
    """Return what a message shows, and its text. `run` is the one it is about; `runs` are all of its incident, oldest first."""
    if message.kind is MessageKind.DIGEST:
        return digest.facts_of(message, public_url=public_url)
    if notice.is_notice(message):
        return notice.facts_of(message, public_url=public_url)
    body = message.body
    approval = run.approval if run is not None and run.state is RunState.AWAITING_APPROVAL else None
    level = body.get("level")
    values: dict[str, Value] = {
        "kind": message.kind.value,
        "incident": message.incident,
        "rule": body.get("rule", ""),
        "runbook": body.get("runbook", ""),
        "dry_run": bool(body.get("dry_run")),
        "reason": body.get("reason") or ("" if run is None else run.reason),
        "approval": body.get("approval") or approval or "",
        "run": "" if run is None else run.id,
        "remedy": "" if run is None else run.remedy or "",
        "state": "" if run is None else run.state.value,
        "link": "" if public_url is None else f"{public_url}/incidents/{message.incident}",
        "level": level if isinstance(level, int) else 1,
        "page": message.incident if incident is None else incident.key,
        "actions_taken": actions_taken(runs)[-MOST_ACTIONS:],
        "contacts": dict(contacts or {}),
    }
    if incident is not None:
        values |= _of(incident, runs, now=now or incident.updated_at)
    values["text"] = text_of(message, values)
    return values


def _of(incident: Incident, runs: Sequence[Run], *, now: datetime) -> dict[str, Value]:
    over = incident.state is IncidentState.RESOLVED and incident.resolved_at is not None
    until = incident.resolved_at if over and incident.resolved_at is not None else now
    return {
        "severity": incident.severity,
        "summary": incident.summary,
        "target": incident.target,
        "acknowledged_by": incident.owner or "" if incident.acknowledged_at is not None else "",
        "opened_at": incident.opened_at.isoformat(),
        "resolved_at": until.isoformat() if over else "",
        "duration": format_duration(timedelta(seconds=max(0, round((until - incident.opened_at).total_seconds())))),
        "outcome": outcome_of(runs) if over else "",
        "awaits": "" if over else awaited(next(reversed(_counting(runs)), None)),
    }


def actions_taken(runs: Sequence[Run]) -> list[str]:
    """Return what the runs' steps did, or may have done, in words, oldest first."""
    return [f"{run.remedy}: {_lead(step)}{step.message or step.action}" for run in runs for step in run.steps if _is_told(run, step)]


def _lead(step: Step) -> str:
    return "being undone: " if step.undo_intended and step.state is StepState.APPLIED else _DONE[step.state]


def _is_told(run: Run, step: Step) -> bool:
    """Tell whether a step did something that no other run's step tells of: what an undo took back stands with the run that had done it."""
    if run.undoes:
        return step.intended_at is not None and step.state is not StepState.UNDONE
    return step.state in _DONE and not (step.state is StepState.FAILED and step.intended_at is None)


def _counting(runs: Sequence[Run]) -> Sequence[Run]:
    """Leave out undos that ended before they touched anything (denied, refused, rehearsed): all is as it was before them."""
    return [run for run in runs if not run.undoes or run.ended_at is None or _touched(run)]


def _touched(run: Run) -> bool:
    """Tell whether a run may have changed something itself: an undo begins with steps that another run had carried out."""
    if run.undoes:
        return any(step.intended_at is not None or step.state is StepState.UNDONE for step in run.steps)
    return run.wrote


def outcome_of(runs: Sequence[Run]) -> str:
    """Say whether a remedy helped, of an incident that is over."""
    runs = _counting(runs)
    acted = [run for run in runs if _touched(run)]
    last = runs[-1] if runs else None
    if last is not None and last.state is RunState.REHEARSED:
        return f"It went away without us: {last.remedy!r} was only rehearsed."
    if not acted:
        return "It went away without us: nothing was changed."
    run = acted[-1]
    if run.state is RunState.SUCCEEDED:
        return f"{run.remedy!r} helped."
    if run.ended_at is None:
        return f"Whether {run.remedy!r} helped is not known: its run is {run.state.value}."
    return f"{run.remedy!r} is not known to have helped: its run is {run.state.value}, {run.reason}".rstrip(", ") + "."


def awaited(run: Run | None) -> str:
    """Say what an open incident waits for."""
    if run is None:
        return "a person: nothing is at work"
    wanted = _WANTED.get(run.state)
    if wanted is not None:
        return wanted.format(approval=run.approval or "", run=run.id)
    if run.ended_at is None:
        return f"run {run.id}, which is {run.state.value}"
    if run.state is RunState.SUCCEEDED:
        return "the end of its alert: the remedy helped, as far as it can be seen"
    return f"a person: run {run.id} is {run.state.value}, and nothing is at work"


# --- text --------------------------------------------------------------------------------------------------------------


def text_of(message: Message, values: Mapping[str, Value]) -> str:
    """Write a message as a person reads it first at three in the morning: what, where, what the daemon did, what to do.

    Words from outside stay within their line: an annotation must not write a line of ours, such as what to approve.
    """
    values = {name: _line(value) if isinstance(value, str) else value for name, value in values.items()}
    lead = "DRY RUN · " if values["dry_run"] else ""
    head = {MessageKind.ACKNOWLEDGED: "ACKNOWLEDGED ", MessageKind.RESOLVED: "RESOLVED "}.get(message.kind, "")
    name = f"{lead}{head}{values.get('severity', '').upper()} {values['incident']}"
    lines = [f"{name}: {values.get('summary', '')} [{values['rule']}]".strip(), *_said(message, values)]
    if values["runbook"]:
        lines.append(f"Runbook: {values['runbook']}")
    lines.append(f"Timeline: remediator show {values['incident']}" + (f"  {values['link']}" if values["link"] else ""))
    return "\n".join(lines)


def _line(text: str) -> str:
    return " ".join(text.split())


def _said(message: Message, values: Mapping[str, Value]) -> Iterator[str]:
    body = message.body
    if message.kind is MessageKind.APPROVAL:
        yield from _question(message, values)
    elif message.kind is MessageKind.ACKNOWLEDGED:
        yield f"{values.get('acknowledged_by') or 'Somebody'} has taken it over."
    elif message.kind is MessageKind.RESOLVED:
        yield f"It lasted {values.get('duration', '')}. {values.get('outcome', '')}".rstrip()
        yield from _done(values)
    elif message.kind is MessageKind.UPDATE and relapse_of(message) is not None:
        back = f" It came back {_times(message)}." if relapse_of(message) else ""
        yield f"Open for {values.get('duration', '')}, {_owner(values)}.{back}"
        yield from _done(values) if values.get("actions_taken") else ("Nothing has been done yet.",)
        yield f"It waits for {values.get('awaits', '')}."
    elif message.kind is MessageKind.UPDATE:
        yield f"Run {values['run']} is {body.get('subject', '')}: {values['reason']}"
        if values.get("resolved_at"):  # heard after *resolved*, it would sound like a relapse
            yield f"The incident is over, since {values['resolved_at']}."
    else:
        yield from _page(message, values)


def _question(message: Message, values: Mapping[str, Value]) -> Iterator[str]:
    yield f"Approval wanted: {values['remedy']!r}, because {values['reason']}."
    steps = message.body.get("steps")
    yield from (f"  {step['step']}. {_line(str(step['summary']))}" for step in steps) if isinstance(steps, list) else ()
    yield f"Approve: remediator approve {values['approval']}   Deny: remediator deny {values['approval']}"


def _times(message: Message) -> str:
    times = relapse_of(message) or 0
    return "once" if times == 1 else f"{times} times"


def _page(message: Message, values: Mapping[str, Value]) -> Iterator[str]:
    if message.body.get(BACK):
        yield f"It is not over: it came back {_times(message)}, the first time it fired was {values.get('duration', '')} ago."
    if message.body.get("again") or values.get("level", 1) > 1:
        again = " Told again." if message.body.get("again") else ""
        yield f"Level {values['level']}: open for {values.get('duration', '')}, {_owner(values)}.{again}"
    if values["state"]:
        yield f"Run {values['run']} is {values['state']}" + (f": {values['reason']}" if values["reason"] else "")
    if values.get("level", 1) > 1 or message.body.get("again"):
        yield from _done(values)
    if values.get("approval"):
        yield f"Approve: remediator approve {values['approval']}   Deny: remediator deny {values['approval']}"
    elif "acknowledged_by" in values and not values["acknowledged_by"]:
        yield f"Acknowledge: remediator acknowledge {values['incident']}"


def _owner(values: Mapping[str, Value]) -> str:
    owner = values.get("acknowledged_by")
    return f"taken over by {owner}, not resolved" if owner else "nobody has acknowledged it"


def _done(values: Mapping[str, Value]) -> Iterator[str]:
    actions = values.get("actions_taken")
    if actions:
        yield "Done:"
        yield from (f"  {_line(str(one))}" for one in actions)


def still_wanted(message: Message, incident: Incident | None, run: Run | None) -> bool:
    """Tell whether a message still says something: not a page of what resolved meanwhile, nor a question that was replaced."""
    if message.kind is MessageKind.DIGEST or incident is None:
        return True
    match message.kind:
        case MessageKind.PAGE:
            return incident.state is not IncidentState.RESOLVED
        case MessageKind.ACKNOWLEDGED:
            # Earlier than the word says: the clock was set back since, and the acknowledgement moved. Later: it is another one.
            at = incident.acknowledged_at
            return at is not None and at <= datetime.fromisoformat(str(message.body["at"])) and not is_told_over(incident)
        case MessageKind.RESOLVED:
            return incident.state is IncidentState.RESOLVED and incident.relapses == message.body.get("relapses")
        case MessageKind.APPROVAL:
            return run is None or (run.state is RunState.AWAITING_APPROVAL and run.approval == message.body.get("approval"))
        case _:
            return True
