"""A long run with faults, held afterwards against what the sender knows.

    python -m benchmarks.soak [--minutes 30] [--store sqlite|postgres] [--rate 20] [--every 15] [--seed N]

A sender posts alerts as Alertmanager would: again and again until each is answered 2xx, some of them twice at once. Meanwhile daemons are
killed, stopped with SIGSTOP, and restarted, and a PostgreSQL loses its sessions or is restarted. At the end, with nothing disturbed any
more, the store, the sink of the actions and the sender's record must agree, alert by alert, and the audit trail must verify.
Status 1, with every disagreement, when they don't. The seed is printed; it chooses the faults, not their effect.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg

from benchmarks import bodies, subjects
from benchmarks.shared import SAFE
from benchmarks.stage import Stage, acting_rules
from benchmarks.subjects import ROOT, Daemon
from tests.servers.ports import eventually
from tests.servers.postgres import PostgresServer

Rows = Callable[[str], Awaitable[list[Any]]]


@dataclass
class Sent:
    """What the sender knows."""

    accepted: set[int] = field(default_factory=set)
    """Numbers of alerts that were answered 2xx."""
    answers: Counter[int] = field(default_factory=Counter)
    """By status; 0 where none came."""
    open: set[asyncio.Task[None]] = field(default_factory=set)


async def send(daemons: list[Daemon], world: int, sent: Sent, *, rate: float, until: float, chance: random.Random) -> None:
    """Post one alert after the other; every third is one that a rule matches."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
        number = 0
        while time.monotonic() < until:
            number += 1
            name = bodies.MATCHED if number % 3 == 0 else bodies.UNMATCHED
            alert = bodies.alert(number, name)
            await subjects.ask(world, "POST", "/api/v2/alerts", [alert])
            for _ in range(2 if chance.random() < 0.2 else 1):
                task = asyncio.create_task(_until_accepted(session, daemons, sent, number, bodies.webhook(alert), chance))
                sent.open.add(task)
                task.add_done_callback(sent.open.discard)
            await asyncio.sleep(1 / rate)
        await asyncio.gather(*sent.open)


async def _until_accepted(
    session: aiohttp.ClientSession, daemons: list[Daemon], sent: Sent, number: int, body: bytes, chance: random.Random
) -> None:
    while True:
        daemon = chance.choice(daemons)
        headers = {"Authorization": f"Bearer {daemon.token}", "Content-Type": "application/json"}
        try:
            async with session.post(f"{daemon.url}/api/v1/alerts", data=body, headers=headers) as answer:
                status = answer.status
        except (aiohttp.ClientError, TimeoutError):
            status = 0
        sent.answers[status] += 1
        if 200 <= status < 300:
            sent.accepted.add(number)
            return
        await asyncio.sleep(1 + chance.random())


# --- faults ---------------------------------------------------------------------------------------------------------------


async def killed(daemon: Daemon) -> None:
    """SIGKILL, and a new start."""
    daemon.kill()
    await asyncio.sleep(0.5)
    await daemon.start()


async def stalled(daemon: Daemon) -> None:
    """SIGSTOP for longer than a lease lasts."""
    daemon.signal(signal.SIGSTOP)
    await asyncio.sleep(12)
    daemon.signal(signal.SIGCONT)


async def restarted(daemon: Daemon) -> None:
    """SIGTERM, and a new start."""
    await daemon.restart()


async def cut_off(server: PostgresServer) -> None:
    """Every session of the daemons is ended by the database."""
    ours = "pid != pg_backend_pid() AND application_name = 'remediator'"
    await _query(server, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {ours}")


async def _query(server: PostgresServer, query: str) -> list[Any]:
    dsn = server.dsn_for(server.user, server.password, "remediator")
    connection = await asyncpg.connect(dsn, server_settings={"search_path": "remediator"})
    try:
        return [tuple(row) for row in await connection.fetch(query)]
    finally:
        await connection.close()


async def disturb(
    daemons: list[Daemon], server: PostgresServer | None, *, until: float, chance: random.Random, every: float
) -> Counter[str]:
    """Inject one fault after the other."""
    done: Counter[str] = Counter()
    while time.monotonic() < until - 30:
        await asyncio.sleep(chance.uniform(0.5, 1.5) * every)
        daemon = chance.choice(daemons)
        name = chance.choice(("SIGKILL", "SIGSTOP", "SIGTERM", *(("sessions ended",) if server is not None else ())))
        if server is not None and name == "sessions ended":
            await cut_off(server)
        else:
            await {"SIGKILL": killed, "SIGSTOP": stalled, "SIGTERM": restarted}[name](daemon)
        done[name] += 1
        print(f"  {time.strftime('%X')} {name}", flush=True)
    return done


# --- the reckoning --------------------------------------------------------------------------------------------------------


async def disagreements(rows: Rows, arrivals: Counter[str], sent: Sent) -> list[str]:
    """Hold store, sink and sender against each other; return every disagreement in words."""
    found = []
    stored = {row[0] for row in await rows("SELECT fingerprint FROM episode")}
    names = {number: bodies.MATCHED if number % 3 == 0 else bodies.UNMATCHED for number in sent.accepted}
    prints = {number: bodies.alert(number, name)["fingerprint"] for number, name in names.items()}
    found += [f"alert {number} was accepted and is not stored" for number, one in prints.items() if one not in stored]
    runs: dict[str, list[str]] = {}
    for state, body in await rows("SELECT r.state, i.body FROM run r JOIN incident i ON i.id = r.incident"):
        subject = (json.loads(body) if isinstance(body, str | bytes) else body)["subject"]["fingerprint"]
        runs.setdefault(subject, []).append(state)
    for number, name in names.items():
        states, calls = runs.get(prints[number], []), arrivals[f"checkout-{number:09d}"]
        if name == bodies.UNMATCHED:
            if states or calls:
                found.append(f"alert {number} matches no rule, but has runs {states} and {calls} calls")
        elif len(states) != 1:
            found.append(f"alert {number} has runs {states}, not one")
        elif calls != 1 if states == ["succeeded"] else calls > 1:
            found.append(f"alert {number}: its run is {states[0]}, and its action arrived {calls} times")
    known = {f"checkout-{number:09d}" for number in sent.accepted}
    found += [f"an action arrived for {name}, whose alert was never accepted" for name in arrivals if name not in known]
    return found


async def soak(options: argparse.Namespace, folder: Path) -> int:
    """Do it all; return the exit status."""
    chance = random.Random(options.seed)
    print(f"seed {options.seed}, {options.minutes:g} minutes, {options.rate:g} alerts/s, store {options.store}", flush=True)
    async with AsyncExitStack() as stack:
        around = await stack.enter_async_context(subjects.world())
        server = stack.enter_context(PostgresServer(settings=SAFE)) if options.store == "postgres" else None
        daemons = await _daemons(stack, folder, around.port, server)
        sent, until = Sent(), time.monotonic() + options.minutes * 60
        _, faults = await asyncio.gather(
            send(daemons, around.port, sent, rate=options.rate, until=until, chance=random.Random(options.seed)),
            disturb(daemons, server, until=until, chance=chance, every=options.every),
        )
        rows = _rows(daemons[0], server)

        async def rested() -> bool:
            return not await rows("SELECT 1 FROM run WHERE ended_at IS NULL AND state != 'outcome_unknown' LIMIT 1")

        await eventually(rested, what="every run has ended, or waits for a person", within=300, every=1)
        arrivals = Counter(
            name for name, _ in await subjects.ask(around.port, "GET", "/arrivals")
        )  # after the last run, lest one be missed
        found = await disagreements(rows, arrivals, sent)
        states = Counter(row[0] for row in await rows("SELECT state FROM run"))
        status, text = await daemons[0].command("audit", "verify", within=120)
    print(f"faults: {dict(faults)}\nanswers: {dict(sent.answers)}")
    print(f"alerts accepted: {len(sent.accepted):,}; actions called: {arrivals.total():,}")
    print(f"runs: {dict(states)}\naudit verify: {'holds' if status == 0 else text}\ndisagreements: {len(found)}")
    print("\n".join(found[:50]))
    return int(bool(found) or status != 0)


async def _daemons(stack: AsyncExitStack, folder: Path, world: int, server: PostgresServer | None) -> list[Daemon]:
    stage = Stage(folder, print)
    limits, names = {"max_acting": 10_000}, ("one",)
    more: dict[str, Any] = {}
    if server is not None:
        connection = await asyncpg.connect(server.dsn)
        await connection.execute("CREATE DATABASE remediator")
        await connection.close()
        names = ("one", "two")
        more = {
            "store": {"url": f"postgresql://{server.user}@{server.host}:{server.port}/remediator", "password": {"env": "STORE_PASSWORD"}}
        }
    found = []
    for name in names:
        daemon = stage.daemon(name, rules=acting_rules(), world=world, limits=limits, **more)
        daemon.environment["STORE_PASSWORD"] = server.password if server else ""
        found.append(await stack.enter_async_context(daemon))
    return found


def _rows(daemon: Daemon, server: PostgresServer | None) -> Rows:
    async def rows(query: str) -> list[Any]:
        if server is not None:
            return await _query(server, query)
        connection = sqlite3.connect(f"file:{daemon.store}?mode=ro", uri=True, timeout=10)
        try:
            return connection.execute(query).fetchall()
        finally:
            connection.close()

    return rows


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rate", type=float, default=20, help="alerts a second; a third of them is acted on")
    parser.add_argument("--every", type=float, default=15, help="mean seconds between two faults")
    parser.add_argument("--store", choices=("sqlite", "postgres"), default="postgres", help="postgres: two daemons share it (default)")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix=".soak-", dir=ROOT) as folder:
        return asyncio.run(soak(options, Path(folder)))


if __name__ == "__main__":
    sys.exit(main())
