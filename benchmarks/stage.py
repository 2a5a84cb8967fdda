"""What all figures share: where files go, how much is sent, which rules and settings the daemons get."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.bodies import MATCHED, SERVICES
from benchmarks.subjects import Daemon

Say = Callable[[str], None]

OBSERVED = f"""
rules:
  - name: matched
    mode: observe
    match: ['alertname = "{MATCHED}"']
    remedies:
      - name: call
        steps: [{{http.request: {{connection: sink, path: "/act/{{pod}}", args: {{pod: "${{labels.pod}}"}}}}}}]
        verify: {{within: 1m, hold: 0s, until: "true"}}
    otherwise: escalate
"""
"""One rule without checks. Each alert opens an incident of its own with a run, which plans, and ends rehearsed."""


def acting_rules() -> str:
    """Return a rule for each service without checks, which act by themselves. Budgets are not what is measured, so they are large."""
    rules = [
        f"""  - name: acting-{number}
    mode: auto
    match: ['alertname = "{MATCHED}"', 'service = "checkout-{number}"']
    remedies:
      - name: call
        steps: [{{http.request: {{connection: sink, path: "/act/{{pod}}", args: {{pod: "${{labels.pod}}"}}}}}}]
        verify: {{within: 1m, hold: 0s, until: "true"}}
    otherwise: escalate
    guards: {{budget: [9999 per 1d]}}"""
        for number in range(SERVICES)
    ]
    return "\n".join(["rules:", *rules, ""])


def many_rules(count: int) -> str:
    """Return `count` rules for other alerts, as a large organisation has them: by name and by labels, some with regular expressions."""
    rules = []
    for number in range(count):
        severity = '"critical"' if number % 3 else '~ "critical|high"'
        match = f"""['alertname = "Service{number}Down"', 'severity ={severity}', 'cluster =~ "production-.*"']"""
        rules.append(
            f"  - {{name: service-{number}, match: {match}, mode: observe, otherwise: escalate,\n     remedies: [{{name: call, "
            f'steps: [{{http.request: {{connection: sink, path: "/act/{number}"}}}}], verify: {{within: 1m, hold: 0s, until: "true"}}}}]}}'
        )
    return "\n".join(["rules:", *rules, ""])


@dataclass(frozen=True)
class Stage:
    """One run of the benchmarks."""

    directory: Path
    """On the disk that is measured; every store and baseline lies here."""
    say: Say
    quick: bool = False

    def amount(self, whole: int, quick: int) -> int:
        """Return how much to do."""
        return quick if self.quick else whole

    @property
    def rounds(self) -> int:
        """How often baselines and daemon take turns."""
        return self.amount(7, 3)

    def daemon(self, name: str, *, rules: str = OBSERVED, world: int = 0, **settings: Any) -> Daemon:
        """Return a daemon: its pages, its actions and its Alertmanager are at `world`'s port."""
        url = f"http://127.0.0.1:{world}"
        whole = {
            "connections": {"sink": {"kind": "http", "base_url": url}, "pager": {"kind": "webhook", "url": f"{url}/page"}},
            "escalation": {"default": {"notify": [{"notify.webhook": {"connection": "pager"}}]}},
            **({"alertmanager": [url]} if world else {}),
            "storm": {"incidents": 10_000, "within": "1s"},  # what is measured is acting, not the storm breaker
            **settings,
        }
        return Daemon(self.directory / name, whole, rules=rules)
