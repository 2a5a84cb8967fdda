"""What goes wrong in a simulation, one small function a kind; a seed decides which, when, and for how long."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from remediator.errors import RemediatorError
from remediator.model import IncidentState, RunState, StepState
from remediator.records import EVERYWHERE, FREEZE, FREEZE_CONNECTION, FREEZE_RULE, TAKEN, Run, SignalKind
from tests.simulation.daemon import GoneError
from tests.simulation.storage import Remote

if TYPE_CHECKING:
    from tests.simulation.simulation import Host, Simulation

Fault = Callable[["Simulation"], Awaitable[None]]


async def rage(simulation: Simulation, seconds: float) -> None:
    """Let alerts fire and faults strike for so long, then wait until none is left."""
    dice, loop = simulation.dice, asyncio.get_running_loop()
    alarms = dice.randint(2, 9) if simulation.options.alarms is None else simulation.options.alarms
    count = dice.randint(0, 14) if simulation.options.faults is None else simulation.options.faults
    tasks: list[asyncio.Task[Any]] = [loop.create_task(_alarm(simulation, dice.random() * seconds * 0.7)) for _ in range(alarms)]
    for _ in range(count):
        fault = dice.choice(FAULTS)
        tasks.append(loop.create_task(_strike(simulation, fault, dice.random() * seconds)))
    meddling = [loop.create_task(between_steps(simulation))] if simulation.ledger.max_acting == 1 else []
    meddling += [loop.create_task(freezes(simulation)), loop.create_task(takes(simulation))] if simulation.hands else []
    if simulation.weather:
        meddling += [loop.create_task(one(simulation)) for one in (connection_freezes, prometheus_dies, bursts)]
    await asyncio.sleep(seconds)
    for task in meddling:
        task.cancel()
    await asyncio.gather(*tasks)


async def _alarm(simulation: Simulation, after: float) -> None:
    """Have one alert fire, and perhaps end and fire again."""
    dice = simulation.dice
    await asyncio.sleep(after)
    names = simulation.options.rules or tuple(simulation.editions[0].rules)
    rule, thing = dice.choice(names), dice.choice(("t0", "t0", "t1", "t2", "shared"))
    alarm = simulation.world.fire(rule, thing, dice.randint(0, 1))
    for _ in range(dice.choice((0, 0, 1, 2))):
        await asyncio.sleep(dice.uniform(1, 40))
        simulation.world.end(alarm)
        await asyncio.sleep(dice.uniform(1, 40))
        alarm = simulation.world.fire(rule, thing, alarm.number)


async def _strike(simulation: Simulation, fault: Fault, after: float) -> None:
    await asyncio.sleep(after)
    simulation.faults[fault.__name__.replace("_", " ").strip()] += 1
    await fault(simulation)


def _host(simulation: Simulation) -> Host:
    return simulation.dice.choice(simulation.hosts)


async def crash(simulation: Simulation) -> None:
    """Kill a daemon."""
    simulation.kill(_host(simulation))


async def crash_often(simulation: Simulation) -> None:
    """Kill daemons, one shortly after the other."""
    for _ in range(4):
        simulation.kill(_host(simulation))
        await asyncio.sleep(simulation.dice.random() * 3)


async def stop(simulation: Simulation) -> None:
    """Stop a daemon as SIGSTOP does, often for longer than its lease."""
    host = _host(simulation)
    if host.process is not None and not host.process.dead and not host.process.stopped:
        simulation.loop.stop_process(host.process, simulation.dice.choice((1, 12, 35, 90)))


async def restart_orderly(simulation: Simulation) -> None:
    """Drain a daemon."""
    await simulation.drain(_host(simulation))


async def store_cut_off(simulation: Simulation) -> None:
    """A replica can't reach the store; it still reaches everything else."""
    store = _host(simulation).store
    if isinstance(store, Remote):
        store.cut = True
        await asyncio.sleep(simulation.dice.choice((2, 20, 60)))
        store.cut = False


async def store_answers_lost(simulation: Simulation) -> None:
    """What a replica commits is committed, but it never hears so."""
    store = _host(simulation).store
    if isinstance(store, Remote):
        store.loses_answers = simulation.dice.choice((0.05, 0.3))
        await asyncio.sleep(simulation.dice.uniform(5, 30))
        store.loses_answers = 0.0


async def wake_ups_lost(simulation: Simulation) -> None:
    """Notifications get lost; polling must find what is due."""
    store = _host(simulation).store
    if isinstance(store, Remote):
        store.deaf = 0.8


async def target_cut_off(simulation: Simulation) -> None:
    """Nobody reaches the target."""
    simulation.world.network.target_cut = True
    await asyncio.sleep(simulation.dice.uniform(1, 40))
    simulation.world.network.target_cut = False


async def target_unreliable(simulation: Simulation) -> None:
    """Requests and answers get lost, come late, are refused."""
    network, dice = simulation.world.network, simulation.dice
    network.refused, network.swallowed = dice.choice((0, 0.2)), dice.choice((0, 0.2))
    network.answer_lost, network.late = dice.choice((0, 0.3, 0.7)), dice.choice((0, 0.3, 0.7))
    network.broken = dice.choice((0, 0, 0.3))


async def alertmanager_cut_off(simulation: Simulation) -> None:
    """Alertmanager can't be asked."""
    simulation.world.network.alertmanager_cut = True
    await asyncio.sleep(simulation.dice.uniform(1, 40))
    simulation.world.network.alertmanager_cut = False


async def silence(simulation: Simulation) -> None:
    """Somebody silences an alert, and lifts that later."""
    alarms = list(simulation.world.alarms.values())
    if alarms:
        alarm = simulation.dice.choice(alarms)
        alarm.silenced = True
        await asyncio.sleep(simulation.dice.uniform(1, 40))
        alarm.silenced = False


async def clock_jumps(simulation: Simulation) -> None:
    """All clocks are set, forward or back."""
    simulation.loop.jumps += timedelta(seconds=simulation.dice.choice((-90, -5, 5, 90, 200)))


async def clock_off(simulation: Simulation) -> None:
    """One machine's clock is off."""
    process = _host(simulation).process
    if process is not None:
        process.skew = timedelta(seconds=simulation.dice.choice((-100, -3, 3, 100)))


async def kill_switch(simulation: Simulation) -> None:
    """A person pauses everything or one rule, and lifts that later."""
    rules = sorted(simulation.editions[0].rules)
    scope = simulation.dice.choice((EVERYWHERE, f"rule:{simulation.dice.choice(rules)}"))
    await simulation.people[0].pause(scope)
    await asyncio.sleep(simulation.dice.uniform(1, 60))
    await simulation.people[1].lift(scope)


async def reload(simulation: Simulation) -> None:
    """One daemon, or all, load other rules; during a roll-out replicas differ."""
    edition = simulation.dice.choice(simulation.editions)
    for host in simulation.dice.choice((simulation.hosts, [_host(simulation)])):
        host.loaded.edition = edition
        if host.daemon is not None and host.daemon.ready:
            daemon = host.daemon
            try:
                await daemon.request(lambda daemon=daemon: daemon.reload(edition))  # type: ignore[misc]
            except (GoneError, RemediatorError):  # noting it is all that failed
                continue


async def somebody_else_writes(simulation: Simulation) -> None:
    """A person changes things behind the daemon's back."""
    for _ in range(simulation.dice.randint(1, 4)):
        simulation.world.spoil(simulation.dice.choice(sorted(simulation.world.things)))
        await asyncio.sleep(simulation.dice.random() * 10)


async def between_steps(simulation: Simulation) -> None:
    """Wait for runs with a step done and one to do, and have people stop them right there, or Alertmanager cut off; then let them go on."""
    dice = random.Random(simulation.seed)  # noqa: S311 - no secret
    while True:
        await asyncio.sleep(0.02)
        run = next((run for run in simulation.ledger.runs.values() if _half_done(run)), None)
        if run is None:
            continue
        simulation.faults["between steps"] += 1
        if dice.random() < 0.5:
            await simulation.people[0].pause(EVERYWHERE)
            await asyncio.sleep(dice.uniform(0.5, 5))
            await simulation.people[1].lift(EVERYWHERE)
        else:
            simulation.world.network.alertmanager_cut = True
            await asyncio.sleep(dice.uniform(4, 8))
            simulation.world.network.alertmanager_cut = False
        await asyncio.sleep(dice.uniform(0.1, 5))
        await _let_go_on(simulation, run.id)


async def freezes(simulation: Simulation) -> None:
    """Have a person freeze everything or one rule, for a time or until somebody thaws it, again and again."""
    dice = random.Random(f"freezes {simulation.seed}")  # noqa: S311 - no secret
    while True:
        await asyncio.sleep(dice.uniform(1, 25))
        scope = dice.choice((FREEZE, FREEZE, f"{FREEZE_RULE}{dice.choice(sorted(simulation.editions[0].rules))}"))
        await simulation.people[2].freeze(scope, timedelta(seconds=dice.choice((3, 10, 40))) if dice.random() < 0.5 else None)
        simulation.faults["freeze"] += 1
        await asyncio.sleep(dice.uniform(1, 30))
        if scope in simulation.ledger.pauses:
            await simulation.people[3].give_back(scope)


async def takes(simulation: Simulation) -> None:
    """Have a person take an incident that is open, at any moment, now and then lead its run on, and give it back."""
    dice = random.Random(f"takes {simulation.seed}")  # noqa: S311 - no secret
    while True:
        await asyncio.sleep(dice.uniform(0.5, 12))
        open_ones = [one.id for one in simulation.ledger.incidents.values() if one.state is not IncidentState.RESOLVED]
        if not open_ones:
            continue
        incident, who = dice.choice(open_ones), simulation.people[dice.choice((0, 3))]
        await who.take(incident, timedelta(seconds=dice.choice((5, 30))) if dice.random() < 0.5 else None)
        simulation.faults["take"] += 1
        await asyncio.sleep(dice.uniform(0.5, 10))
        stopped = [run.id for run in simulation.ledger.waiting() if run.incident == incident and run.state is RunState.INTERRUPTED]
        for run in stopped:
            await who.say(run, dice.choice((SignalKind.RESUME, SignalKind.UNDO, SignalKind.CLOSE)))
        await asyncio.sleep(dice.uniform(0.5, 20))
        if f"{TAKEN}{incident}" in simulation.ledger.pauses:
            await who.give_back(f"{TAKEN}{incident}")


async def connection_freezes(simulation: Simulation) -> None:
    """Have a person freeze a connection, again and again."""
    dice = random.Random(f"connections {simulation.seed}")  # noqa: S311 - no secret
    while True:
        await asyncio.sleep(dice.uniform(1, 25))
        scope = f"{FREEZE_CONNECTION}{dice.choice(('east', 'west'))}"
        await simulation.people[2].freeze(scope, timedelta(seconds=dice.choice((3, 10, 40))) if dice.random() < 0.5 else None)
        simulation.faults["connection freeze"] += 1
        await asyncio.sleep(dice.uniform(1, 25))
        if scope in simulation.ledger.pauses:
            await simulation.people[3].give_back(scope)


async def prometheus_dies(simulation: Simulation) -> None:
    """Have Prometheus die and come back, again and again."""
    dice = random.Random(f"prometheus {simulation.seed}")  # noqa: S311 - no secret
    while True:
        await asyncio.sleep(dice.uniform(5, 80))
        simulation.faults["prometheus dies"] += 1
        simulation.world.prometheus_dies()
        await asyncio.sleep(dice.uniform(2, 60))
        simulation.world.prometheus_returns()


async def bursts(simulation: Simulation) -> None:
    """Have many alerts begin at once."""
    dice = random.Random(f"bursts {simulation.seed}")  # noqa: S311 - no secret
    names = simulation.options.rules or tuple(simulation.editions[0].rules)
    while True:
        await asyncio.sleep(dice.uniform(10, 90))
        simulation.faults["burst"] += 1
        for _ in range(dice.randint(4, 9)):
            simulation.world.fire(dice.choice(names), dice.choice(("t0", "t1", "t2")), dice.randint(0, 1))
            await asyncio.sleep(dice.random() * 0.5)


def _half_done(run: Run) -> bool:
    return run.state is RunState.APPLYING and run.wrote and any(step.state is StepState.PLANNED for step in run.steps)


async def _let_go_on(simulation: Simulation, ident: str) -> None:
    run = simulation.ledger.runs[ident]
    if run.state is RunState.INTERRUPTED:
        await simulation.people[0].say(ident, SignalKind.RESUME)
    elif run.state is RunState.AWAITING_APPROVAL and run.approval is not None:
        await simulation.people[1].decide(run.approval, approve=True)


FAULTS: tuple[Fault, ...] = (
    crash,
    crash,
    crash_often,
    stop,
    stop,
    restart_orderly,
    store_cut_off,
    store_answers_lost,
    wake_ups_lost,
    target_cut_off,
    target_unreliable,
    target_unreliable,
    alertmanager_cut_off,
    silence,
    clock_jumps,
    clock_off,
    kill_switch,
    reload,
    somebody_else_writes,
)
