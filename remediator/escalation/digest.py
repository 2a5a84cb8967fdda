"""Digests: one message that tells what a thousand pages would. Pure.

A digest is made from the runs of a storm's incidents, one for each escalation policy, so that everybody hears of what is theirs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from remediator.model import JSON, Value
from remediator.records import SYSTEM_CHAIN, Message, MessageKind, Run
from remediator.rules.model import Rule

DEFAULT_POLICY = "default"
MOST_RUNS = 10_000
"""A digest counts so many incidents; a storm that is larger is said to be larger."""
SHOWN = 10
"""Rules, targets and incidents that a digest names."""
LONGEST = 120
"""Most characters of a target's name."""


@dataclass
class Tally:
    """What one policy's people must know, growing run by run."""

    runs: int = 0
    held: int = 0
    """Runs that were held back."""
    rules: Counter[str] = field(default_factory=Counter)
    targets: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    severities: Counter[str] = field(default_factory=Counter)
    samples: dict[str, list[str]] = field(default_factory=dict)
    """The first few incidents by severity."""

    def add(self, run: Run, severity: str) -> None:
        """Count the run of one incident."""
        self.held += bool(run.storm)
        self.runs += 1
        self.rules[run.rule] += 1
        self.targets[run.target] += 1
        self.states[run.state.value] += 1
        self.severities[severity] += 1
        few = self.samples.setdefault(severity, [])
        if len(few) < SHOWN:
            few.append(run.incident)


@dataclass
class Tallies:
    """All policies' tallies of one storm. Of an incident with several runs the newest counts, which must be added first."""

    severities: Sequence[str]
    """From the most severe on."""
    by_policy: dict[str, Tally] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    more: bool = False
    """True when there was more to count than is counted."""

    def add(self, run: Run, rule: Rule | None) -> None:
        """Count a run, unless a newer one of its incident was. `rule` is the one in force by that name."""
        if run.incident in self.seen:
            return
        if len(self.seen) >= MOST_RUNS:
            self.more = True
            return
        self.seen.add(run.incident)
        policy, severity = (DEFAULT_POLICY, "") if rule is None else (rule.escalation, rule.severity)
        self.by_policy.setdefault(policy, Tally()).add(run, severity)

    def messages(self, storm: str, part: str, *, at: datetime, **words: JSON) -> list[Message]:
        """Return a digest for each policy. `part` says which of the storm's it is, so that each is queued once, whoever makes it."""
        return [
            Message(f"{storm}/{policy}/{part}", MessageKind.DIGEST, policy, SYSTEM_CHAIN, {**self.of(policy), "storm": storm, **words}, at)
            for policy in sorted(self.by_policy)
        ]

    def of(self, policy: str) -> dict[str, JSON]:
        """Return what a digest of a policy's people counts; empty when nothing of it is theirs."""
        return self._body(self.by_policy[policy]) if policy in self.by_policy else {}

    def _body(self, tally: Tally) -> dict[str, JSON]:
        ranks = {severity: rank for rank, severity in enumerate(self.severities)}
        worst = sorted(tally.severities, key=lambda one: (ranks.get(one, len(ranks)), one))
        samples: list[JSON] = [incident for severity in worst for incident in tally.samples[severity]]
        return {
            "subject": "digest",
            "incidents": tally.runs,
            "more": self.more,
            "held": tally.held,
            "severity": worst[0] if worst else "",
            "severities": [[severity or "unknown", tally.severities[severity]] for severity in worst],
            "rules": _most(tally.rules),
            "rules_in_all": len(tally.rules),
            "targets": _most(tally.targets),
            "states": [[state, count] for state, count in tally.states.most_common()],
            "samples": samples[:SHOWN],
        }


def _most(counts: Counter[str]) -> list[JSON]:
    return [[name[:LONGEST], count] for name, count in sorted(counts.items(), key=lambda one: (-one[1], one[0]))[:SHOWN]]


# --- as people read it


def facts_of(message: Message, *, public_url: str | None) -> Mapping[str, Value]:
    """Return what a receiver gets to see of a digest, and its text."""
    body = message.body
    count = f"{body.get('incidents', 'many')}{'+' if body.get('more') else ''}"
    values: dict[str, Value] = {
        "kind": message.kind.value,
        "incident": str(body.get("storm", "")),
        "severity": str(body.get("severity", "")),
        "summary": f"{_HEADS.get(str(body.get('phase')), 'Storm')}: {count} incidents",
        "dry_run": bool(body.get("dry_run")),
        "reason": str(body.get("why", "")),
        "state": str(body.get("phase", "")),
        "link": "" if public_url is None else f"{public_url}/incidents",
        **dict.fromkeys(("rule", "runbook", "approval", "run", "remedy", "target"), ""),
    }
    values["text"] = "\n".join(_lines(body, values))
    return values


_HEADS = {"lasts": "Storm", "after": "Storm has passed, looking again", "over": "Storm is over"}


def _lines(body: Mapping[str, JSON], values: Mapping[str, Value]) -> Iterable[str]:
    """Give the lines of a digest. Names from outside stay within their line."""
    lead = "DRY RUN · " if values["dry_run"] else ""
    severities = f" ({_counts(body, 'severities')})" if "severities" in body else ""
    yield f"{lead}{str(values['severity']).upper()} {values['incident']}: {values['summary']}{severities}".replace("  ", " ")
    yield f"Why: {values['reason']}"
    if body.get("phase") != "over":
        yield f"This stands for one page each, until it is over. {body.get('held', 'Some')} were held back: nothing is done about those."
    yield from _what(body) if "rules" in body else ()
    yield str(body.get("next", ""))
    yield "All of them: remediator incidents" + (f"  {values['link']}" if values["link"] else "")


def _what(body: Mapping[str, JSON]) -> Iterable[str]:
    further = int(str(body.get("rules_in_all", 0))) - len(_pairs(body, "rules"))
    yield f"By rule: {_counts(body, 'rules')}" + (f", and {further} rules more" if further > 0 else "")
    yield f"Most on: {_counts(body, 'targets')}"
    yield f"Now: {_counts(body, 'states')}"
    samples = body.get("samples")
    yield f"Among them: {', '.join(map(str, samples)) if isinstance(samples, list) else ''}"


def _pairs(body: Mapping[str, JSON], name: str) -> list[JSON]:
    pairs = body.get(name)
    return pairs if isinstance(pairs, list) else []


def _counts(body: Mapping[str, JSON], name: str) -> str:
    pairs = [one for one in _pairs(body, name) if isinstance(one, list | tuple) and len(one) == 2]
    return ", ".join(f"{' '.join(str(what).split())} {count}" for what, count in pairs) or "none"
