"""What containers do, asked for by their own commands, so that a Pod behaves alike under the simulator and on a real cluster.

A behaviour is a script for `sh -c` in busybox, with a readiness probe where that is the point. The simulator has no list of
scripts: it runs them, as a kubelet would, in a directory of the container's own (`workingDir: /tmp` on a real cluster, so files
are named relatively). Two things can't be had that way and are told by fixed words: being killed for memory (the script's first
line is `OOM_LINE`), and an image that can't be pulled (`NO_IMAGE`).
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Object = dict[str, Any]
IMAGE = "busybox:1.36"
NO_IMAGE = "registry.invalid/remediator/none:1"
"""`.invalid` never resolves (RFC 2606)."""
OOM_LINE = "# uses more memory than it may"
USAGE = "remediator.test/usage"
"""Annotation of a Pod: what the simulator's metrics API says it uses, as JSON: {"app": {"cpu": "250m", "memory": "64Mi"}}."""
UNPRIVILEGED: Object = {"runAsNonRoot": True, "runAsUser": 65_534, "seccompProfile": {"type": "RuntimeDefault"}}
"""What clusters that enforce the restricted Pod security standard ask for; the simulator runs everything as nobody anyway."""
FOREVER = "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done"


@dataclass(frozen=True)
class Behaviour:
    """One container's command, probe and image; `healthy` says whether its Pod becomes Ready and stays so."""

    script: str
    healthy: bool = True
    probe: Sequence[str] | None = None
    image: str = IMAGE
    memory: str = "64Mi"
    more: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the container."""

    def container(self, name: str = "app") -> Object:
        """Return the container's part of a Pod."""
        container: Object = {
            "name": name,
            "image": self.image,
            "command": ["sh", "-c", self.script],
            "workingDir": "/tmp",
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": self.memory}},
        }
        if self.probe:
            container["readinessProbe"] = {"exec": {"command": list(self.probe)}, "periodSeconds": 1, "failureThreshold": 1}
        return {**container, **self.more}


RUNS = Behaviour(f"echo started; {FOREVER}")
"""Ready at once, runs until it is told to end."""
EXITS_AT_ONCE = Behaviour("echo fatal: no configuration >&2; exit 1", healthy=False)
"""Fails at once, every time: CrashLoopBackOff, last state Error with exit code 1."""
EXITS_AFTER_A_SECOND = Behaviour("echo started; sleep 1; echo fatal: lost its database >&2; exit 1", healthy=False)
"""Runs for a second, counts as ready meanwhile, fails: roll-outs of it are called complete."""
COMPLETES = Behaviour("echo done; exit 0", healthy=False)
"""Ends with 0 at once: also CrashLoopBackOff under restartPolicy Always, last state Completed."""
OUT_OF_MEMORY = Behaviour(f"{OOM_LINE}\nsleep 1; x=$(head -c 256m /dev/zero | tr '\\0' x); sleep 3600", healthy=False, memory="16Mi")
"""Killed for memory after a second, again and again: last state OOMKilled with exit code 137."""
NEVER_READY = Behaviour(RUNS.script, healthy=False, probe=["test", "-e", "ready"])
"""Runs, and its readiness probe fails for ever."""
NO_SUCH_IMAGE = Behaviour(RUNS.script, healthy=False, image=NO_IMAGE)
"""Its image can't be pulled: ErrImagePull, ImagePullBackOff."""
IGNORES_TERM = Behaviour("trap '' TERM; while :; do sleep 1; done")
"""Does not end when asked: deleted Pods go when their grace period is over."""


def ready_after(seconds: float) -> Behaviour:
    """Return a container that runs at once and gets ready after some seconds."""
    return Behaviour(f"sleep {seconds:g}; touch ready; {FOREVER}", probe=["test", "-e", "ready"])


def exits_after(seconds: float, code: int = 1) -> Behaviour:
    """Return a container that runs for some seconds and ends with a code, again and again."""
    return Behaviour(f"echo started; sleep {seconds:g}; exit {code}", healthy=False)


def logs(*lines: str) -> Behaviour:
    """Return a container that writes these lines to its log and runs on."""
    return Behaviour(f"printf '%s\\n' {shlex.join(lines)}; {FOREVER}")


def logs_then_fails(*lines: str, code: int = 1) -> Behaviour:
    """Return a container that writes these lines and ends with a code, again and again: `previous` logs hold them."""
    return Behaviour(f"printf '%s\\n' {shlex.join(lines)}; exit {code}", healthy=False)


def writes_files(files: Mapping[str, str]) -> Behaviour:
    """Return a container that runs with these small files (name: text) in its working directory, for `exec` to look at."""
    writes = "; ".join(f"printf %s {shlex.quote(text)} > {shlex.quote(name)}" for name, text in files.items())
    return Behaviour(f"{writes}; {FOREVER}")


def pod_spec(*behaviours: Behaviour, grace: int = 1, **more: Any) -> Object:
    """Return a Pod's spec with one container per behaviour: `app`, `app-2` …; `more` are further fields of the spec."""
    names = ["app", *(f"app-{number}" for number in range(2, len(behaviours) + 1))]
    containers = [behaviour.container(name) for behaviour, name in zip(behaviours, names, strict=True)]
    basics = {"terminationGracePeriodSeconds": grace, "automountServiceAccountToken": False, "securityContext": UNPRIVILEGED}
    return {"containers": containers, **basics, **more}
