"""The parts that stand on the ground, one function each. What a reload replaces is asked for at each use, never kept."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from datetime import datetime

from remediator.alerts import Webhook
from remediator.app.ground import Ground
from remediator.clock.keeper import ClockKeeper
from remediator.engine.core import Engine
from remediator.escalation.outbox import InForce, Outbox
from remediator.freezes.keeper import Freezer
from remediator.guards import Bounds
from remediator.housekeeping.keeper import Keeper
from remediator.ingest.draft import Intake
from remediator.ingest.receiving import Receiving
from remediator.people.desk import Desk
from remediator.reconciliation.keeper import Reconciliation
from remediator.reconciliation.peers import Peers
from remediator.responders.keeper import Takes
from remediator.revalidation import Revalidation
from remediator.rules.compile import compile_rule
from remediator.runner import Runner
from remediator.settings.stopping import AliveAlert
from remediator.silences.keeper import Silencer
from remediator.stopping.heartbeat import Heartbeat
from remediator.stopping.kill_switch import KillSwitches
from remediator.stopping.watchdog_keeper import Watchdogs
from remediator.storms.keeper import Storms

# --- runs


def make_engine(ground: Ground, bounds: Callable[[], Bounds]) -> Engine:
    """Make what leads a run on."""
    return Engine(
        ground.store,
        ground.execution,
        Revalidation(ground.execution, ground.current.sources),
        rule=ground.current.rule,
        frozen=lambda text: compile_rule(text, ground.registry),
        bounds=bounds,
        scrub=ground.scrubber.json,
    )


def make_runner(ground: Ground, engine: Engine) -> Runner:
    """Make what takes due runs and has them led on."""
    limits = ground.current.settings.limits
    return Runner(ground.store, engine.advance, worker=f"{ground.host}/{os.getpid()}", capacity=limits.workers, lease=limits.lease)


# --- alerts


def make_receiving(ground: Ground, runner: Runner, *, intake: Callable[[int], Intake], heard: Callable[[Webhook], None]) -> Receiving:
    """Make what takes webhooks; `heard` is told of each."""
    return Receiving(
        ground.store,
        runner,
        matching=ground.current.matching,
        intake=intake,
        scrubber=ground.scrubber,
        metrics=ground.metrics,
        heard=heard,
    )


def make_reconciliation(ground: Ground, receiving: Receiving) -> Reconciliation:
    """Make what finds out what webhooks missed."""
    return Reconciliation(
        ground.store,
        receiving,
        Peers(ground.connections, ground.registry),
        settings=lambda: ground.current.settings,
        matches=ground.current.takes,
        metrics=ground.metrics,
        note=ground.note,
        scrub=ground.scrubber.json,
    )


def make_storms(ground: Ground) -> Storms:
    """Make the keeper of storms."""
    return Storms(
        ground.store,
        limits=lambda: ground.current.settings.storm.limits,
        rule=ground.current.rule,
        severities=ground.current.severities,
        dry_run=lambda: ground.current.settings.dry_run,
        metrics=ground.metrics,
    )


def make_silencer(ground: Ground) -> Silencer:
    """Make the keeper of the silences that runs want."""
    return Silencer(
        ground.store,
        ground.execution,
        settings=lambda: ground.current.settings.silence,
        configured=lambda: "alertmanager" in ground.current.settings.all_connections,
        used=ground.current.silences,
        link=ground.current.link,
    )


# --- people


def make_outbox(ground: Ground, storms: Storms) -> Outbox:
    """Make what delivers messages."""
    current = ground.current
    return Outbox(
        ground.store,
        ground.execution,
        current.policy,
        public_url=lambda: current.settings.pages_url,
        about=InForce(contacts=current.contacts, counted=storms.counted, digest_every=lambda: current.settings.storm.limits.digest_every),
        on_failing=ground.metrics.messages_failing.set,
    )


def make_desk(ground: Ground, *, held: Callable[[], tuple[str, ...]], kill_switches: KillSwitches) -> Desk:
    """Make the place where people are heard; `held` names the runs at work."""
    return Desk(
        ground.store,
        rules=ground.current.rule_names,
        scrub=ground.scrubber.text,
        held=held,
        on_pauses=ground.metrics.pauses,
        still_stopped=kill_switches.still,
        connections=ground.current.connections,
        voters=ground.current.approver,
    )


def make_takes(ground: Ground) -> Takes:
    """Make the keeper of what people took for a time."""
    return Takes(ground.store, on_pauses=ground.metrics.pauses)


# --- what holds back, and what proves life


def make_kill_switches(ground: Ground, *, held: Callable[[], tuple[str, ...]]) -> KillSwitches:
    """Make what looks for the kill switch outside; `held` names the runs at work."""
    return KillSwitches(
        ground.store,
        settings=lambda: ground.current.settings.kill_switch,
        annotation=lambda one: ground.connections.annotation(one.connection, one.namespace, one.name, one.annotation),
        scrub=ground.scrubber.text,
        held=held,
        metrics=ground.metrics,
        host=ground.host,
    )


def make_freezer(ground: Ground) -> Freezer:
    """Make the keeper of freezes."""
    return Freezer(ground.store, metrics=ground.metrics, note=ground.note)


def make_watchdogs(ground: Ground, receiving: Receiving) -> Watchdogs:
    """Make the keeper of watchdogs."""
    return Watchdogs(
        ground.store,
        watch=lambda: ground.current.settings.watchdog.watch,
        dry_run=lambda: ground.current.settings.dry_run,
        metrics=ground.metrics,
        recover=receiving.recover,
    )


def make_heartbeat(ground: Ground, *, ended: Callable[[], str | None], busy: Callable[[], bool]) -> Heartbeat:
    """Make what proves that the daemon works; `ended` says what does not any more, `busy` whether runs wait for a free worker."""
    return Heartbeat(
        ground.store,
        settings=lambda: ground.current.settings.heartbeat,
        ended=ended,
        busy=busy,
        context=lambda: ground.connections.context(key="heartbeat"),
        say_alive=_say_alive(ground),
        metrics=ground.metrics,
        host=ground.host,
    )


def _say_alive(ground: Ground) -> Callable[[AliveAlert, datetime, datetime], Awaitable[None]]:
    async def say(alert: AliveAlert, since: datetime, until: datetime) -> None:
        labels = {"severity": "none", **alert.labels, "instance": ground.host}
        await ground.connections.say_alive(alert.connection, labels, since=since, until=until)

    return say


# --- the store


def make_clock(ground: Ground) -> ClockKeeper:
    """Make what notices that the store's clock was set."""
    return ClockKeeper(ground.store, metrics=ground.metrics, tolerance=lambda: ground.current.settings.limits.clock_skew)


def make_keeper(ground: Ground) -> Keeper:
    """Make the keeper of the store: checkpoints, anchors, archiving."""
    return Keeper(ground.store, settings=lambda: ground.current.settings, rules=lambda: ground.current.rules.rules, metrics=ground.metrics)
