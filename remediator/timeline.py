"""Events in words, as somebody reads them at three in the morning. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from remediator.duration import format_duration
from remediator.events import Kind
from remediator.model import JSON, decode_value

Data = Mapping[str, JSON]


_TIME = re.compile(r"^(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)(?:\.\d+)?(?:\+00:00|Z)$")


class _Words(dict[str, str]):
    """An event's data as words for a template; what is missing shows as a question mark."""

    def __missing__(self, key: str) -> str:
        return "?"


def explain(kind: str, data: Data) -> str:
    """Say what an event means. Kinds that are not known are shown as they are, with their data."""
    told = TOLD.get(kind)
    if told is None:
        return ", ".join([kind.replace(".", " ").replace("_", " "), *(f"{key} {word(value)}" for key, value in data.items())])
    return told(data) if callable(told) else told.format_map(_Words({key: word(value) for key, value in data.items()}))


def word(value: JSON) -> str:
    """Return a value as a few words.

    >>> word(["a", {"b": 1}, {"$duration": 90.0}])
    'a, b=1, 1m30s'
    """
    decoded = decode_value(value)
    if isinstance(decoded, timedelta):
        return format_duration(decoded)
    if isinstance(decoded, datetime):
        return f"{decoded:%Y-%m-%d %H:%M:%SZ}"
    if isinstance(value, Mapping):
        return " ".join(f"{key}={word(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(word, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else _TIME.sub(r"\1 \2Z", str(value))


def _opened(data: Data) -> str:
    also = f" (also matched: {word(data['also_matched'])})" if data.get("also_matched") else ""
    return _fill("Incident opened, {severity}: {summary}. Rule {rule}, target {target}", data) + also


def _created(data: Data) -> str:
    tried = f"; tried before: {word(data['tried'])}" if data.get("tried") else ""
    dry = " in DRY RUN" if data.get("dry_run") else ""
    if data.get("undoes"):
        why = f": {data['why']}" if data.get("why") else ""
        return _fill("{asked_by} asks to UNDO run {undoes}; run {run} does it", data) + dry + why
    return _fill("Run {run} begins", data) + dry + tried


def _entered(data: Data) -> str:
    reason = f": {data['reason']}" if data.get("reason") else ""
    return _fill("{was} → {state}", data) + reason


def _denied(data: Data) -> str:
    verdict = "must wait" if data.get("verdict") == "wait" else "may not go on"
    until = f" (asks again at {word(data['until'])})" if data.get("until") else ""
    return _fill("Guard {guard}: the run " + verdict + ": {reason}", data) + until


def _chosen(data: Data) -> str:
    lines = [f"Chose {data['remedy']!r}: {data.get('reason')}" if data.get("remedy") else f"Chose no remedy: {data.get('reason')}"]
    conditions = data.get("conditions")
    lines += [_condition(one) for one in conditions or () if isinstance(one, Mapping)]
    failed = {name: check["error"] for name, check in _mapping(data.get("checks")).items() if _mapping(check).get("error")}
    lines += [f"check {name} failed: {error}" for name, error in failed.items()]
    return "\n  ".join(lines)


def _condition(condition: Data) -> str:
    value = condition.get("value")
    answer = "unknown" if value is None else "true" if value else "false"
    facts = "; ".join(f"{name} = {word(_plain(fact))}" for name, fact in _mapping(condition.get("facts")).items())
    reason = f" ({condition['reason']})" if condition.get("reason") else ""
    return f"{condition.get('remedy')!r}: {answer}{reason}" + (f", since {facts}" if facts else "")


def _plain(fact: JSON) -> JSON:
    """Return an encoded duration or timestamp without its tag."""
    if isinstance(fact, Mapping) and len(fact) == 1:
        (tag, value), *_ = fact.items()
        return f"{value} s" if tag == "$duration" else value if tag == "$timestamp" else fact
    return fact


def _planned(data: Data) -> str:
    lines = [_fill("Planned {remedy}, authority {authority}", data)]
    if data.get("reasons"):
        lines[0] += f" ({word(data['reasons'])})"
    return "\n  ".join([*lines, *(line for step in data.get("steps") or () for line in step_lines(_mapping(step)))])


def step_lines(step: Data) -> list[str]:
    """Say what one step would do: its summary, then each change, then what to beware of."""
    number = step.get("step", step.get("number"))
    changes = [
        f"  {one.get('target')} {one.get('field')}: {word(one.get('before'))} → {word(one.get('after'))}"
        for one in step.get("changes") or ()
    ]
    warnings = [f"  beware: {warning}" for warning in step.get("warnings") or ()]
    nothing = " (nothing left to do)" if step.get("noop") else ""
    return [f"step {number}, {step.get('action')}: {step.get('summary')}{nothing}", *changes, *warnings]


def _asked(data: Data) -> str:
    groups = f" from {word(data['groups'])}" if data.get("groups") else ""
    return _fill("Approval {approval} asked{groups}, {quorum} needed, until {expires_at}: {reason}", {**data, "groups": groups})


def _decided(data: Data) -> str:
    verb = "approved" if data.get("decision") == "approve" else "DENIED"
    comment = f": {data['comment']}" if data.get("comment") else ""
    left = f"; the word of {word(data['left_out'])}, who may not decide any more, is left out" if data.get("left_out") else ""
    return _fill("Approval {approval} " + verb + ", now {state}", data) + left + comment


def _step(text: str) -> Callable[[Data], str]:
    def told(data: Data) -> str:
        undoing = "undo of " if data.get("undo") else ""
        seconds = f" after {data['seconds']:.1f} s" if isinstance(data.get("seconds"), int | float) else ""
        message = f": {data['message']}" if data.get("message") else ""
        return _fill("Step {step}, " + undoing + "{action}: " + text, data) + seconds + message

    return told


def _signal(data: Data) -> str:
    comment = f": {data['comment']}" if data.get("comment") else ""
    return _fill("A person says {signal}", data) + comment


def _fill(template: str, data: Data) -> str:
    return template.format_map(_Words({key: word(value) for key, value in data.items()}))


def _mapping(value: Any) -> Data:
    return value if isinstance(value, Mapping) else {}


TOLD: dict[str, str | Callable[[Data], str]] = {
    Kind.INCIDENT_OPENED: _opened,
    Kind.INCIDENT_JOINED: "Another alert joined ({fingerprint})",
    Kind.INCIDENT_REOPENED: "It fires again: relapse {relapses}. Remedies that had worked and now need approval: {remedies}",
    Kind.INCIDENT_RESOLVED: "Resolved: the last alert is over",
    Kind.INCIDENT_ESCALATED: "ESCALATED to people ({policy}): {reason}",
    Kind.INCIDENT_ACKNOWLEDGED: "Taken over by {owner}",
    Kind.INCIDENT_TAKEN: "TAKEN by {owner}, until {until}: automation keeps its hands off. {why}",
    Kind.INCIDENT_RELEASED: "Released, {owner} has it no more: {reason}",
    Kind.INCIDENT_HANDED_OVER: "Handed over from rule {rule} to rule {to}",
    Kind.EPISODE_CLOSED: "One of its alerts is over ({fingerprint}), others still fire",
    Kind.EPISODE_EXPIRED: "Taken for over ({fingerprint}): {reason}",
    Kind.EPISODE_DOUBTED: "Said to be over, which is not believed ({fingerprint}): {reason}",
    Kind.EPISODE_BELIEVED: "Over since {ends_at}, as it turned out ({fingerprint}): the watchdog is back, and nobody told of it again",
    Kind.ALERT_RECOVERED: "Found by asking Alertmanager ({source}), not brought by a webhook: {fingerprint}",
    Kind.RUN_CREATED: _created,
    Kind.RUN_ENTERED: _entered,
    Kind.GUARD_DENIED: _denied,
    Kind.REMEDY_CHOSEN: _chosen,
    Kind.PLAN_MADE: _planned,
    Kind.APPROVAL_REQUESTED: _asked,
    Kind.APPROVAL_DECIDED: _decided,
    Kind.APPROVAL_CLOSED: "Approval {approval} is {state}: {reason}",
    Kind.ACTION_INTENDED: _step("about to be done"),
    Kind.ACTION_APPLIED: _step("done"),
    Kind.ACTION_FAILED: _step("FAILED"),
    Kind.ACTION_UNKNOWN: _step("OUTCOME UNKNOWN"),
    Kind.SILENCE_MADE: "The alert is quiet in Alertmanager while {run} works (silence {silence})",
    Kind.SILENCE_ENDED: "Silence {silence} is over: {reason}",
    Kind.SILENCE_FAILED: "Could not {doing} the silence of {run}: {error}",
    Kind.VERIFICATION_READ: "Looks {health}: {message}",
    Kind.SIGNAL_RECEIVED: _signal,
    Kind.MESSAGE_DELIVERED: "Message {key} delivered to {receivers}",
    Kind.MESSAGE_FAILED: "Message {key} could not be delivered (attempt {attempts}): {error}",
    Kind.MESSAGE_POSTPONED: "Message {key} (level {level}) waits until {until}: {reason}",
    Kind.MESSAGE_FOLDED: "Message {key} is not sent by itself: the digest of {storm} tells it",
    Kind.DAEMON_STARTED: "Daemon {version} started with {rules} rules, dry run: {dry_run}",
    Kind.DAEMON_STOPPED: "Daemon stopped",
    Kind.SESSION_BEGAN: "Signed in to the web interface from {address}",
    Kind.SESSION_ENDED: "Signed out of the web interface",
    Kind.RULES_RELOADED: "Rules reloaded: {rules} in force",
    Kind.RULES_REFUSED: "Rules refused, the old ones stay in force: {problems}",
    Kind.ALERTS_TRUNCATED: "A webhook to {receiver} left {truncated} alerts out; {recovered} that nobody knew are taken in. {error}",
    Kind.RECONCILIATION_DOUBTED: "{episodes} alerts that no Alertmanager lists stay open, for now ({doubt}): {reason}",
    Kind.PAUSE_SET: "KILL SWITCH thrown for {scope}: {why}",
    Kind.PAUSE_LIFTED: "Kill switch lifted for {scope}",
    Kind.TARGET_TAKEN: "{target} TAKEN by {owner}, until {until}: automation keeps its hands off. {why}",
    Kind.TARGET_RELEASED: "{target} released, {owner} has it no more: {reason}",
    Kind.WATCHDOG_LOST: "Watchdog LOST, so nothing acts without a person: {reason}",
    Kind.WATCHDOG_HEARD: "Watchdog heard again, after {away}",
    Kind.FREEZE_SET: "FROZEN {scope}, until {until}: {why}",
    Kind.FREEZE_LIFTED: "Thawed {scope}: {why}",
    Kind.FREEZE_DOUBTED: "Nobody knows whether freeze {freeze} is in force, so that a person is asked: {reason}",
    Kind.STORM_TRIPPED: "STORM, nothing acts by itself ({storm}): {reason}",
    Kind.STORM_ENDED: "The storm has ended after {lasted}: {reason}",
    Kind.STORM_SETTLED: "All that the storm had held back was looked at again ({incidents} incidents)",
    Kind.RULE_DEMOTED: "Rule {rule} DEMOTED to {to}: {why}",
    Kind.RULE_PROMOTED: "Rule {rule} promoted to {to}: {why}",
    Kind.REMEDY_STOPPED: "Remedy {remedy} of rule {rule} STOPPED everywhere ({scope}): {why}",
    Kind.CLOCK_SET_BACK: "The clock was set back by {seconds} s: pages, approvals and {runs} runs wait no longer for it",
    Kind.STORE_RESTORED: "The store was restored: keys of calls and pages are new from now on (era {era})",
    Kind.AUDIT_CHECKPOINTED: "Audit trail checkpointed",
    Kind.AUDIT_ARCHIVED: "Ended incidents, or old events of this chain, went to the archive {file}",
}
"""How each kind is told: a template over the event's data, or a function of it."""
