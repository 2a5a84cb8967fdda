"""How many webhooks a second are durably accepted, against the baselines, in interleaved rounds."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Protocol

from benchmarks import subjects
from benchmarks.bodies import MATCHED, UNMATCHED
from benchmarks.client import Order
from benchmarks.stage import Stage, many_rules
from benchmarks.subjects import Daemon
from benchmarks.table import Figure, ratio

CONCURRENCY = 64


class Subject(Protocol):
    """Whatever takes webhooks."""

    port: int

    @property
    def token(self) -> str: ...


@dataclass
class Contender:
    """A subject with what it gets, and its results so far."""

    name: str
    subject: Subject
    count: int
    alertname: str = UNMATCHED
    repeat: int = 1
    """How often each alert is sent in one turn; with more than one, the same alerts in every turn."""
    each: int = 1
    """Alerts in a webhook."""
    rates: list[float] = field(default_factory=list)
    first: int = 0

    @property
    def rate(self) -> float:
        """Median over the rounds."""
        return median(self.rates)


async def _take_turn(contender: Contender, stage: Stage) -> None:
    order = Order(
        *(contender.subject.port, contender.count // contender.repeat, contender.subject.token),
        name=contender.alertname,
        first=contender.first,
        connections=CONCURRENCY,
        repeat=contender.repeat,
        each=contender.each,
    )
    contender.first += contender.count * contender.each if contender.repeat == 1 else 0
    came = await subjects.load(order)
    if came.accepted != contender.count:
        raise RuntimeError(f"{contender.name}: {contender.count} sent, answers {came.statuses}")
    contender.rates.append(came.accepted / came.seconds)
    note = f"   the load generator used {came.cpu / came.seconds:.0%} of a processor"
    if isinstance(contender.subject, Daemon) and contender.alertname == MATCHED:
        left = contender.subject.count("SELECT count(*) FROM run WHERE ended_at IS NULL")
        await contender.subject.idle()
        note += f", {left} of {contender.count // contender.repeat} runs were left to do at the end"
    stage.say(f"  {contender.name:<12} {contender.rates[-1]:>9,.0f}/s{note}")


async def rounds(stage: Stage, contenders: Sequence[Contender]) -> None:
    """Let everybody take turns; each round begins with another one, so that no neighbour is always the same."""
    for number in range(stage.rounds + 1):
        if number == 0:
            stage.say("warming up")
        else:
            stage.say(f"round {number} of {stage.rounds}")
        turn = number % len(contenders)
        for contender in (*contenders[turn:], *contenders[:turn]):
            await _take_turn(contender, stage)
        if number == 0:
            for contender in contenders:
                contender.rates.clear()


@asynccontextmanager
async def _started(stage: Stage, **rules: str) -> AsyncIterator[dict[str, Daemon]]:
    """Start a daemon for each named text of rules, with a world for their pages."""
    async with AsyncExitStack() as stack:
        around = await stack.enter_async_context(subjects.world())
        found = {}
        for name, text in rules.items():
            daemon = stage.daemon(name, rules=text, world=around.port) if text else stage.daemon(name, world=around.port)
            found[name] = await stack.enter_async_context(daemon)
        yield found


async def accept(stage: Stage) -> list[Figure]:
    """Measure alerts that no rule matches, repeated alerts of open incidents, and alerts that open one with a run, against C and D."""
    count = stage.amount(6000, 2000)
    async with (
        subjects.baseline("c", stage.directory) as c,
        subjects.baseline("d", stage.directory) as d,
        _started(stage, plain="", open="", runs="") as daemons,
    ):
        base, ceiling = Contender("C", c, count), Contender("D", d, count)
        plain = Contender("no rule", daemons["plain"], count)
        again = Contender("repeated", daemons["open"], count, MATCHED, repeat=20)
        runs = Contender("with run", daemons["runs"], count // 4, MATCHED)
        await rounds(stage, [base, ceiling, plain, again, runs])
        stored = daemons["plain"].count("SELECT count(*) FROM episode")
        if stored != plain.first:
            raise RuntimeError(f"{plain.first} alerts were accepted, {stored} are stored")
    return [
        ratio("accepted webhooks, no rule matches", plain.rate, base.rate, of="C", least=2),
        ratio("accepted webhooks, each repeats an alert of an open incident", again.rate, base.rate, of="C", least=1.5),
        ratio("accepted webhooks, each opens an incident with a run", runs.rate, base.rate, of="C", least=None),
        ratio("the client can do more than that: baseline D", ceiling.rate, plain.rate, of="no rule", least=1.2),
    ]


async def rules(stage: Stage) -> list[Figure]:
    """Measure a thousand rules against one."""
    count = stage.amount(6000, 2000)
    async with _started(stage, one=many_rules(1), thousand=many_rules(1000)) as daemons:
        one, thousand = Contender("1 rule", daemons["one"], count), Contender("1,000 rules", daemons["thousand"], count)
        await rounds(stage, [one, thousand])
    return [ratio("accepted webhooks with 1,000 rules", thousand.rate, one.rate, of="1 rule", least=0.9)]
