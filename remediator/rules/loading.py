"""Loading rules while a daemon works: beside the event loop, with what did not change taken from the rules in force.

Python runs one thread at a time, so loading in a thread is not enough: the loader steps aside after each rule, the garbage collector
does not look through thousands of half-made rules, and old rules are let go one by one.
"""

from __future__ import annotations

import asyncio
import gc
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from remediator.errors import InvalidFiles, Problem
from remediator.registry import Registry
from remediator.rules.compile import RuleSet, compile_ruleset
from remediator.rules.files import read_pack
from remediator.rules.model import Rule
from remediator.rules.packs import PackSource
from remediator.settings import Settings

SWITCH = 0.0005
"""Seconds after which a loader is interrupted when the event loop wants to go on; Python's own 5 ms would delay each of its steps."""


def load_rules(settings: Settings, registry: Registry, *, old: RuleSet | None = None) -> RuleSet:
    """Read and compile all packs of the settings. Raises `InvalidFiles` with every fault of every file.

    Files that are the same as those that `old` was made of, by the same registry, are not compiled again.
    """
    sources: list[PackSource] = []
    problems: list[Problem] = []
    for name, pack in settings.packs.items():
        try:
            sources.append(read_pack(pack.path, name=name, values=pack.vars))
        except InvalidFiles as error:
            problems += error.problems
    if problems:
        raise InvalidFiles(problems)
    with _considerate(beside=old is not None):
        return compile_ruleset(
            sources,
            registry,
            tuple(settings.severities),
            escalations=tuple(settings.escalation),
            connections=tuple(settings.all_connections),
            evaluation_interval=settings.monitoring.evaluation_interval,
            resolves_after=settings.monitoring.resolves_after(prometheus=settings.prometheus is not None),
            known=None if old is None else old.files,
            between=_step_aside,
        )


async def load_beside(settings: Settings, registry: Registry, old: RuleSet) -> RuleSet:
    """Load rules in a thread while the event loop goes on. Raises `InvalidFiles`."""
    return await asyncio.to_thread(load_rules, settings, registry, old=old)


async def let_go(rules: list[Rule]) -> None:
    """Empty a list of rules that nobody needs any more. All at once they would stop everything for as long as it takes to free them."""
    await asyncio.to_thread(_let_go, rules)


def _let_go(rules: list[Rule]) -> None:
    while rules:
        rules.pop()
        _step_aside()


def _step_aside() -> None:
    """Let another thread run that wants to."""
    select.select((), (), (), 0)  # time.sleep(0) would wait for the kernel's timer slack


@contextmanager
def _considerate(*, beside: bool) -> Iterator[None]:
    """Keep the garbage collector away. What is made here has no cycles to speak of, and would be looked through time and again.

    `beside` a working event loop it stays away from that for good: looking through thousands of rules once stops everything as well.
    """
    enabled, interval = gc.isenabled(), sys.getswitchinterval()
    gc.disable()
    if beside:
        sys.setswitchinterval(SWITCH)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
        if enabled and beside:
            gc.freeze()
        if enabled:
            gc.enable()
