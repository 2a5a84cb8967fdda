"""The promises of `remediator.store.protocol`, as tests that every store must pass.

Derive a `Test…` class and give it a `world` fixture: an open store, a way to let time pass, and a way to close and open it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date, timedelta
from typing import Any, Protocol

import pytest
from prometheus_client import CollectorRegistry

from remediator import audit
from remediator.clock.keeper import ClockKeeper
from remediator.errors import Conflict, LeaseLost, NotFound
from remediator.metrics import Metrics
from remediator.model import ApprovalState, Event, IncidentState, Plan, Receipt, RunState, StepState, Target
from remediator.records import EVERYWHERE, SYSTEM_CHAIN, MessageKind, Pause, Run, Step, Use, Vote
from remediator.store.protocol import Changes, Committed, Reads, Snapshot, Store
from tests.builders import faults_of
from tests.store.make import LEASE, NOW, alert, approval, episode, event, incident, message, run, signal

HOUR = timedelta(hours=1)


class World(Protocol):
    """A store under test."""

    store: Store

    def forward(self, span: timedelta) -> None:
        """Let time pass for the store."""

    async def reopen(self) -> None:
        """Close the store in an orderly way and open it again; `store` is the new one."""


async def put(store: Store, **changes: Any) -> Committed:
    """Write without reading."""
    return await store.transact(Reads(), lambda _seen: Changes(**changes))


async def see(store: Store, **reads: Any) -> Snapshot:
    """Read inside a transaction, and hold the read without one against it."""
    committed = await store.transact(Reads(**reads), lambda _seen: Changes())
    assert replace(await store.read(Reads(**reads)), now=NOW) == replace(committed.snapshot, now=NOW)
    return committed.snapshot


def refuse(_seen: Snapshot) -> Changes:
    """Build nothing, but an error."""
    raise ZeroDivisionError("this decision fails")


class Heard:
    """What `on_wake` and `on_commit` told."""

    def __init__(self, store: Store) -> None:
        self.wakes: list[list[str]] = []
        self.events: list[str] = []
        store.on_wake(lambda runs: self.wakes.append(list(runs)))
        store.on_commit(lambda events: self.events.extend(f"{one.chain}/{one.seq}" for one in events))

    async def new(self) -> list[list[str]]:
        """Return the calls since the last time, once the loop has made them."""
        for _ in range(5):
            await asyncio.sleep(0)
        calls, self.wakes[:] = list(self.wakes), []
        return calls


class StoreContract:
    """Tests of one store; the sections follow the protocol."""

    # --- rows come back as they were

    async def test_episodes_come_back_with_their_incident(self, world: World) -> None:
        """`fingerprints` brings the newest episode of each, and the incident that it belongs to."""
        old, new = episode(number=1, closed_at=NOW, ends_at=NOW), episode(number=2, incident=incident().id, note="again")
        await put(world.store, episodes=[old, new], incidents=[incident()])
        seen = await see(world.store, fingerprints=["f1", "f2"])
        assert seen.episodes == {"f1": new}
        assert seen.incidents == {incident().id: incident()}

    async def test_a_run_comes_back_whole(self, world: World) -> None:
        """`runs` brings the run, its incident, the newest episode of the incident's subject, its signals and its approval."""
        plan = Plan("a.b", "does", (Target("x:y/-/k/n", "x:y/-/k/n"),), {"replicas": 5})
        step = Step(1, "a.b", StepState.APPLIED, plan, Receipt("done", {"uid": "7"}), intended_at=NOW, finished_at=NOW)
        facts = {"checks.a.age": {"$duration": 1.5}, "checks.a.list": [1, 2.5, True, None, "ü"], "checks.a.nan": float("inf")}
        whole = run(steps=(step,), facts=facts, unknown={"c.d": "timed out"}, approval="INC-20261121-001-1-A1", state=RunState.APPLYING)
        asked = approval(whole, votes=(Vote("ann", approve=True, comment="ok", at=NOW),), state=ApprovalState.APPROVED)
        await put(world.store, episodes=[episode()], incidents=[incident()], runs=[whole], approvals=[asked], signals=[signal(whole.id)])
        seen = await see(world.store, runs=[whole.id, "INC-20261121-009-1"])
        assert seen.runs == {whole.id: whole}
        assert seen.incidents == {incident().id: incident()}
        assert seen.episodes == {"f1": episode()}
        assert seen.approvals == {asked.id: asked}
        assert seen.signals == {whole.id: (signal(whole.id),)}
        assert await world.store.run(whole.id) == whole
        assert await world.store.incident(incident().id) == incident()
        assert await world.store.approval(asked.id) == asked

    async def test_the_era_stays_until_a_new_one_is_begun(self, world: World) -> None:
        """Each store has one from its first moment on; it survives restarts, and every snapshot tells it."""
        era = (await see(world.store)).era
        assert era
        await world.reopen()
        assert (await see(world.store)).era == era
        with pytest.raises(ZeroDivisionError):
            await world.store.transact(Reads(), refuse)
        await put(world.store, era="abcd1234")
        assert (await see(world.store)).era == "abcd1234"
        await world.reopen()
        assert (await see(world.store)).era == "abcd1234"

    # --- a clock that is set back

    async def test_what_waits_in_the_outbox_waits_no_longer_when_the_clock_is_set_back(self, world: World) -> None:
        """Undelivered messages are due earlier by as much; those that come with the word, and what was delivered, are not moved."""
        kept = message("told", due_at=NOW + HOUR, delivered_at=NOW)
        await put(world.store, messages=[message("soon", due_at=NOW + HOUR), message("now"), kept])
        world.forward(-2 * HOUR)
        await put(world.store, set_back=2 * HOUR, messages=[message("new", due_at=NOW)])
        assert [one.key for one in await world.store.due_messages(limit=9)] == ["now"]
        world.forward(HOUR)
        assert [one.key for one in await world.store.due_messages(limit=9)] == ["now", "soon"]
        assert {one.key: one.due_at for one in await world.store.messages("told")} == {}
        world.forward(HOUR)
        assert len(await world.store.due_messages(limit=9)) == 3
        await world.reopen()
        assert (await see(world.store)).set_back == 2 * HOUR
        await put(world.store, set_back=HOUR)
        assert (await see(world.store)).set_back == 3 * HOUR

    async def test_a_clock_that_was_set_back_is_handled_once(self, world: World) -> None:
        """Two daemons notice it; one of them moves what waits and says so; runs and approvals keep what is left of their time."""
        waiting = run(wake_at=NOW + HOUR, deadline=NOW + HOUR, state=RunState.AWAITING_APPROVAL, approval=f"{run().id}-A1")
        ended = run(2, wake_at=None, ended_at=NOW, state=RunState.SUCCEEDED)
        rows = {"incidents": [incident()], "approvals": [approval(waiting)], "episodes": [episode(confirmed_at=NOW)]}
        await put(
            world.store, runs=[waiting, ended], messages=[message("held", due_at=NOW + HOUR)], uses=[Use(ended.id, "r", "t", NOW)], **rows
        )
        seconds = [0.0]
        metrics = Metrics(CollectorRegistry())
        first, second = (ClockKeeper(world.store, metrics=metrics, tolerance=timedelta, clock=lambda: seconds[0]) for _ in range(2))
        world.forward(timedelta(minutes=1))
        for keeper in (first, second):
            await keeper.begin()
        world.forward(timedelta(seconds=5) - 2 * HOUR)
        seconds[0] += 5
        for keeper in (first, second, first):
            await keeper.look()
        seen = await see(world.store, runs=[waiting.id, ended.id], fingerprints=["f1"], usage=[("r", "t")], usage_window=24 * HOUR)
        found = seen.runs[waiting.id]
        assert (found.wake_at, found.deadline, found.entered_at) == (NOW - HOUR, NOW - HOUR, NOW - 2 * HOUR)
        assert seen.approvals[f"{run().id}-A1"].expires_at == NOW + timedelta(minutes=30) - 2 * HOUR
        assert (seen.runs[ended.id], seen.uses[0].at) == (ended, NOW)
        assert seen.episodes["f1"].confirmed_at <= seen.now
        assert [one.kind for one in await world.store.events(SYSTEM_CHAIN)] == ["clock.set_back"]
        world.forward(timedelta(minutes=59))
        assert [one.key for one in await world.store.due_messages(limit=9)] == ["held"]
        assert [one.id for one in await world.store.claim("w", limit=9, lease=LEASE)] == [waiting.id]

    async def test_a_clock_that_was_set_back_while_nobody_ran_is_noticed_at_the_start(self, world: World) -> None:
        """The newest event lies in the future: what waits is due when it would have been, had the time stood still since."""
        await put(world.store, events=[event(SYSTEM_CHAIN, "daemon.started")], messages=[message("held", due_at=NOW + HOUR)])
        world.forward(-3 * HOUR)
        metrics = Metrics(CollectorRegistry())
        for _ in range(2):
            await ClockKeeper(world.store, metrics=metrics, tolerance=lambda: timedelta(minutes=2), clock=lambda: 0.0).begin()
        assert (await see(world.store)).set_back == 3 * HOUR
        world.forward(HOUR)
        assert [one.key for one in await world.store.due_messages(limit=9)] == ["held"]

    # --- more of what comes back

    async def test_an_approval_brings_its_run_and_incident(self, world: World) -> None:
        """`approvals` brings each one's run and incident."""
        asked = approval(run())
        await put(world.store, incidents=[incident()], runs=[run()], approvals=[asked])
        seen = await see(world.store, approvals=[asked.id, "none"])
        assert (seen.approvals, seen.runs, seen.incidents) == ({asked.id: asked}, {run().id: run()}, {incident().id: incident()})

    async def test_active_runs_leave_out_ended_ones(self, world: World) -> None:
        """`active_runs_of` brings the incident and its runs that have not ended."""
        ended = run(1, state=RunState.FAILED, ended_at=NOW, wake_at=None)
        await put(world.store, incidents=[incident()], runs=[ended, run(2), run(1, of=2)])
        seen = await see(world.store, active_runs_of=[incident().id])
        assert seen.runs == {run(2).id: run(2)}
        assert seen.incidents == {incident().id: incident()}

    async def test_the_latest_incident_of_a_subject(self, world: World) -> None:
        """`latest_incident` brings the newest of each (rule, target), resolved or not, even when an older one is written later."""
        first, second = incident(1, target="t"), incident(2, target="t", state=IncidentState.RESOLVED, resolved_at=NOW)
        await put(world.store, incidents=[first])
        await put(world.store, incidents=[second])
        await put(world.store, incidents=[replace(first, summary="touched")])
        seen = await see(world.store, latest_incident=[("site-down", "t"), ("site-down", "u")])
        assert seen.latest_incident == {("site-down", "t"): second}

    async def test_a_handed_over_incident_is_found_under_its_new_rule(self, world: World) -> None:
        """An incident that changes its rule is the latest of the new rule, and no longer of the old one."""
        await put(world.store, incidents=[incident()])
        await put(world.store, incidents=[incident(rule="other")])
        seen = await see(world.store, latest_incident=[("site-down", "shop1"), ("other", "shop1")])
        assert list(seen.latest_incident) == [("other", "shop1")]

    async def test_runs_made_lately_are_told_with_their_incidents(self, world: World) -> None:
        """`opened_within` brings the newest runs made since then, at most `opened_most`; unasked, nothing."""
        await put(world.store, runs=[run(of=one, created_at=NOW - timedelta(seconds=one)) for one in (40, 3, 1, 2)])
        await put(world.store, runs=[run(2, of=3, created_at=NOW)])
        names = [(f"INC-20261121-{one:03d}", NOW - timedelta(seconds=ago)) for one, ago in ((3, 0), (1, 1), (2, 2), (3, 3))]
        assert list((await see(world.store, opened_within=timedelta(seconds=30))).opened) == names
        assert list((await see(world.store, opened_within=timedelta(seconds=30), opened_most=2)).opened) == names[:2]
        assert list((await see(world.store)).opened) == []

    async def test_incident_numbers_count_by_day(self, world: World) -> None:
        """Numbers go on after the highest of the day, beyond 999 too, and begin anew each day."""
        numbers = [7, 999, 1000]
        await put(world.store, incidents=[replace(incident(), id=f"INC-20261121-{number:03d}", target=str(number)) for number in numbers])
        assert (await see(world.store, incident_numbers=date(2026, 11, 21))).next_incident_number == 1001
        assert (await see(world.store, incident_numbers=date(2026, 11, 22))).next_incident_number == 1

    async def test_rule_texts_are_kept_as_first_written(self, world: World) -> None:
        """A frozen rule text belongs to its hash."""
        await put(world.store, rule_texts={"h": {"name": "a", "list": [1]}})
        await put(world.store, rule_texts={"h": {"name": "b"}, "i": {}})
        assert await world.store.rule_text("h") == {"name": "a", "list": [1]}
        assert await world.store.rule_text("i") == {}
        assert await world.store.rule_text("j") is None

    async def test_everything_survives_a_restart(self, world: World) -> None:
        """What was acknowledged is there after closing and opening again."""
        await put(world.store, episodes=[episode()], incidents=[incident()], runs=[run()], events=[event()], take_locks={"k": run().id})
        chains = await world.store.chains()
        await world.reopen()
        seen = await see(world.store, fingerprints=["f1"], runs=[run().id], locks=["k"])
        assert (seen.episodes, seen.runs, seen.locks) == ({"f1": episode()}, {run().id: run()}, {"k": run().id})
        assert await world.store.chains() == chains
        await put(world.store, events=[event(kind="run.ended")])
        assert (await world.store.verify_audit()).faults == ()

    async def test_of_a_row_given_twice_the_last_one_counts(self, world: World) -> None:
        """Lists by state follow the last one too."""
        await put(world.store, incidents=[incident()], episodes=[episode()])
        rows = {"incidents": [incident(state=IncidentState.RESOLVED), incident()], "episodes": [episode(closed_at=NOW), episode()]}
        await world.store.transact(Reads(fingerprints=["f1"], incidents=[incident().id]), lambda _seen: Changes(**rows))
        assert (await world.store.incidents(states=["open"])).items == (incident(),)
        assert (await world.store.episodes(open_only=True)).items == (episode(),)

    # --- a transaction stands or falls alone

    async def test_an_error_of_build_reaches_its_caller_and_writes_nothing(self, world: World) -> None:
        """What `build` raises is raised, and its neighbours in the same group commit are not touched."""
        work = [
            put(world.store, incidents=[incident(1)], events=[event("a")]),
            world.store.transact(Reads(), refuse),
            put(world.store, incidents=[incident(2)], events=[event("a")]),
        ]
        results = await asyncio.gather(*work, return_exceptions=True)
        assert [isinstance(result, ZeroDivisionError) for result in results] == [False, True, False]
        assert set((await see(world.store, incidents=[incident(1).id, incident(2).id])).incidents) == {incident(1).id, incident(2).id}
        assert [one.seq for one in await world.store.events("a")] == [1, 2]

    async def test_a_refused_transaction_leaves_no_part_of_itself(self, world: World) -> None:
        """A conflict found late takes back everything the transaction wrote before, the chain of events included."""
        await put(world.store, take_locks={"k": "other"}, runs=[run(9)])
        heard = Heard(world.store)
        refused = put(
            world.store,
            episodes=[episode()],
            incidents=[incident()],
            runs=[run(1)],
            claim_for="w",
            claim=[run(1).id],
            pauses=[Pause(EVERYWHERE, "ann", "no", NOW)],
            messages=[message()],
            take_locks={"j": "me", "k": "me"},
            events=[event("c")],
        )
        neighbour = put(world.store, events=[event("c", "incident.opened")])
        results = await asyncio.gather(refused, neighbour, return_exceptions=True)
        assert isinstance(results[0], Conflict)
        seen = await see(world.store, fingerprints=["f1"], incidents=[incident().id], runs=[run(1).id], locks=["j", "k"])
        assert (seen.episodes, seen.incidents, seen.runs, seen.pauses) == ({}, {}, {}, {})
        assert seen.locks == {"k": "other"}
        assert await world.store.due_messages(limit=9) == []
        assert await world.store.renew("w", [run(1).id], lease=LEASE) == set()
        assert await heard.new() == []
        assert [(one.seq, one.kind) for one in await world.store.events("c")] == [(1, "incident.opened")]

    async def test_transactions_see_those_before_them(self, world: World) -> None:
        """Many transactions at once count like one after the other."""

        async def open_one(number: int) -> str:
            def build(seen: Snapshot) -> Changes:
                name = f"INC-20261121-{seen.next_incident_number:03d}"
                return Changes(incidents=[replace(incident(), id=name, target=f"t{number}")])

            committed = await world.store.transact(Reads(incident_numbers=NOW.date()), build)
            return committed.changes.incidents[0].id

        names = await asyncio.gather(*(open_one(number) for number in range(50)))
        assert sorted(names) == [f"INC-20261121-{number:03d}" for number in range(1, 51)]

    async def test_a_cancelled_waiter_neither_undoes_nor_breaks_its_batch(self, world: World) -> None:
        """Cancelling who waits for a commit does not take the commit back: a receipt must not get lost on shutdown."""
        tasks = [asyncio.create_task(put(world.store, incidents=[incident(number)])) for number in (1, 2, 3)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results[1], asyncio.CancelledError)
        await put(world.store)
        assert len((await see(world.store, incidents=[incident(number).id for number in (1, 2, 3)])).incidents) == 3

    async def test_commits_are_told_with_their_events(self, world: World) -> None:
        """`on_commit` hears the events of each commit once, in their order, and nothing of what was refused."""
        heard = Heard(world.store)
        await put(world.store, events=[event("a"), event("b"), event("a")])
        await asyncio.gather(world.store.transact(Reads(), refuse), put(world.store, events=[event("b")]), return_exceptions=True)
        await heard.new()
        assert heard.events == ["a/1", "b/1", "a/2", "b/2"]

    # --- fences and leases

    async def test_only_the_newest_fence_may_write(self, world: World) -> None:
        """A run is replaced only under its stored fence; else LeaseLost, and nothing of the transaction is written."""
        await put(world.store, runs=[run()])
        (claimed,) = await world.store.claim("w", limit=1, lease=LEASE)
        assert claimed.fence == 1
        with pytest.raises(LeaseLost):
            await put(world.store, runs=[replace(run(), state=RunState.APPLYING)], incidents=[incident()])
        assert await world.store.incident(incident().id) is None
        await put(world.store, runs=[replace(claimed, state=RunState.DIAGNOSING)])
        assert (await world.store.run(run().id)) == replace(claimed, state=RunState.DIAGNOSING)

    async def test_a_new_run_may_not_take_an_existing_runs_place(self, world: World) -> None:
        """Inserting over a run that somebody has claimed meanwhile is refused like any stale write."""
        await put(world.store, runs=[run()])
        await world.store.claim("w", limit=1, lease=LEASE)
        with pytest.raises(LeaseLost):
            await put(world.store, runs=[run(reason="again")])

    async def test_claims_give_each_run_to_one_worker(self, world: World) -> None:
        """Workers that claim at once share the due runs, in the order in which they became due; none gets one twice."""
        await put(world.store, runs=[run(number, wake_at=NOW - timedelta(seconds=number)) for number in range(1, 10)])
        shares = await asyncio.gather(*(world.store.claim(f"w{worker}", limit=4, lease=LEASE) for worker in range(4)))
        taken = [one.number for share in shares for one in share]
        assert sorted(taken) == list(range(1, 10))
        assert [one.number for one in shares[0]] == [9, 8, 7, 6]
        assert [len(share) for share in shares] == [4, 4, 1, 0]

    async def test_claims_leave_what_is_not_due(self, world: World) -> None:
        """A run sleeps until its wake-up; one without waits for a word; one that ended is never claimed."""
        ended = run(3, state=RunState.FAILED, ended_at=NOW)
        await put(world.store, runs=[run(1, wake_at=NOW + timedelta(minutes=1)), run(2, wake_at=None), ended])
        assert await world.store.claim("w", limit=9, lease=LEASE) == []
        assert await world.store.next_wake() == NOW + timedelta(minutes=1)
        world.forward(timedelta(minutes=1))
        assert [one.number for one in await world.store.claim("w", limit=9, lease=LEASE)] == [1]

    async def test_a_lease_that_ran_out_is_taken_over(self, world: World) -> None:
        """Without renewing, another worker gets the run with a higher fence, whatever wake-up was written, and the first is shut out."""
        await put(world.store, runs=[run()])
        (first,) = await world.store.claim("w1", limit=1, lease=LEASE)
        first = replace(first, state=RunState.APPLYING, wake_at=None)
        await put(world.store, runs=[first])
        assert await world.store.next_wake() == NOW + LEASE
        world.forward(LEASE)
        assert await world.store.renew("w1", [first.id], lease=LEASE) == set()
        (second,) = await world.store.claim("w2", limit=1, lease=LEASE)
        assert second == replace(first, fence=2)
        with pytest.raises(LeaseLost):
            await put(world.store, runs=[replace(first, reason="I am late")])
        assert await world.store.renew("w2", [first.id], lease=LEASE) == {first.id}

    async def test_renewing_keeps_a_lease(self, world: World) -> None:
        """A renewed lease is not taken over, and only its holder can renew it."""
        await put(world.store, runs=[run(1), run(2)])
        await world.store.claim("w1", limit=2, lease=LEASE)
        for _ in range(3):
            world.forward(LEASE * 0.9)
            assert await world.store.renew("w1", [run(1).id, "none"], lease=LEASE) == {run(1).id}
            assert await world.store.renew("w2", [run(1).id], lease=LEASE) == set()
        assert [one.number for one in await world.store.claim("w2", limit=9, lease=LEASE)] == [2]

    async def test_a_released_run_sleeps_until_its_wake_up(self, world: World) -> None:
        """`release` ends the lease with the commit; the run is then due when it says."""
        await put(world.store, runs=[run()])
        (held,) = await world.store.claim("w", limit=1, lease=LEASE)
        await put(world.store, runs=[replace(held, wake_at=NOW + timedelta(minutes=5))], release=[held.id])
        assert await world.store.renew("w", [held.id], lease=LEASE) == set()
        assert await world.store.claim("w", limit=1, lease=LEASE) == []
        assert await world.store.next_wake() == NOW + timedelta(minutes=5)

    async def test_a_run_can_be_born_in_a_workers_hands(self, world: World) -> None:
        """`claim` of a run inserted by the same transaction: nobody else gets it, and its fence is as written."""
        heard = Heard(world.store)
        await put(world.store, runs=[run()], claim_for="w", claim=[run().id])
        assert await heard.new() == []
        assert await world.store.claim("x", limit=1, lease=LEASE) == []
        assert await world.store.renew("w", [run().id], lease=LEASE) == {run().id}
        await put(world.store, runs=[run(reason="at work")])

    async def test_claiming_an_existing_run_shuts_out_its_former_holder(self, world: World) -> None:
        """`claim` of a run that existed raises its fence; while another worker holds it, it is refused."""
        await put(world.store, runs=[run()])
        (first,) = await world.store.claim("w1", limit=1, lease=LEASE)
        with pytest.raises(Conflict):
            await put(world.store, claim_for="w2", claim=[run().id])
        world.forward(LEASE)
        await put(world.store, claim_for="w2", claim=[run().id])
        with pytest.raises(LeaseLost):
            await put(world.store, runs=[first])
        await put(world.store, runs=[replace(first, fence=first.fence + 1)])

    async def test_an_ended_run_can_not_be_claimed_by_name(self, world: World) -> None:
        """`claim` of a run that has ended, or that there is none of, fails the transaction."""
        await put(world.store, runs=[run(state=RunState.FAILED, ended_at=NOW)])
        for name in (run().id, "none"):
            with pytest.raises(Conflict):
                await put(world.store, claim_for="w", claim=[name])

    async def test_an_ended_run_is_not_taken_over(self, world: World) -> None:
        """A holder that ended its run and never released it leaves nothing to claim."""
        await put(world.store, runs=[run()])
        (held,) = await world.store.claim("w", limit=1, lease=LEASE)
        await put(world.store, runs=[replace(held, state=RunState.FAILED, ended_at=NOW, wake_at=NOW)])
        world.forward(LEASE * 2)
        assert await world.store.claim("x", limit=1, lease=LEASE) == []
        assert await world.store.next_wake() is None

    # --- waking

    async def test_new_due_runs_are_announced(self, world: World) -> None:
        """`on_wake` hears of unleased runs that a commit made due, not of those that sleep or are held."""
        heard = Heard(world.store)
        await put(world.store, runs=[run(1), run(2, wake_at=None), run(3)], claim_for="w", claim=[run(3).id])
        assert await heard.new() == [[run(1).id]]

    async def test_an_earlier_timer_is_announced_without_ids(self, world: World) -> None:
        """A wake-up before the one that `next_wake` told last calls `on_wake([])`; a later one does not."""
        await put(world.store, runs=[run(1, wake_at=NOW + timedelta(minutes=5))])
        assert await world.store.next_wake() == NOW + timedelta(minutes=5)
        heard = Heard(world.store)
        await put(world.store, runs=[run(2, wake_at=NOW + timedelta(minutes=9))])
        assert await heard.new() == []
        await put(world.store, runs=[run(3, wake_at=NOW + timedelta(minutes=1))])
        assert await heard.new() == [[]]
        assert await world.store.next_wake() == NOW + timedelta(minutes=1)

    async def test_a_released_run_that_is_due_is_announced(self, world: World) -> None:
        """Giving back a run that is due again at once is news to other workers."""
        await put(world.store, runs=[run()])
        (held,) = await world.store.claim("w", limit=1, lease=LEASE)
        heard = Heard(world.store)
        await put(world.store, runs=[replace(held, reason="again")], release=[held.id])
        assert await heard.new() == [[held.id]]

    async def test_wake_reaches_sleeping_and_held_runs_but_not_ended_ones(self, world: World) -> None:
        """`wake` announces the run whoever holds it, and makes it due."""
        ended = run(3, state=RunState.FAILED, ended_at=NOW, wake_at=None)
        await put(world.store, runs=[run(1, wake_at=None), run(2), ended], claim_for="w", claim=[run(2).id])
        heard = Heard(world.store)
        await put(world.store, wake=[run(1).id, run(2).id, run(3).id, "none"])
        assert await heard.new() == [[run(1).id, run(2).id]]
        assert [one.number for one in await world.store.claim("x", limit=9, lease=LEASE)] == [1]

    async def test_a_word_to_a_held_run_is_not_lost(self, world: World) -> None:
        """A run woken while it was held is due as soon as it is released, even when its holder wrote a later wake-up, once."""
        await put(world.store, runs=[run()])
        (held,) = await world.store.claim("w", limit=1, lease=LEASE)
        await put(world.store, wake=[held.id])
        await put(world.store, runs=[replace(held, wake_at=None)], release=[held.id])
        (again,) = await world.store.claim("w", limit=1, lease=LEASE)
        await put(world.store, runs=[replace(again, wake_at=None)], release=[held.id])
        assert await world.store.claim("w", limit=1, lease=LEASE) == []

    # --- locks, budgets, pauses

    async def test_locks_are_taken_all_or_none(self, world: World) -> None:
        """One held key refuses them all; taking again what one holds is fine."""
        await put(world.store, take_locks={"a": "r1", "b": "r1"})
        with pytest.raises(Conflict, match="r1"):
            await put(world.store, take_locks={"c": "r2", "b": "r2"})
        assert await world.store.locks() == {"a": "r1", "b": "r1"}
        await put(world.store, take_locks={"b": "r1", "c": "r1"})
        assert (await see(world.store, locks=["b", "c", "d"])).locks == {"b": "r1", "c": "r1"}

    async def test_of_two_runs_that_want_a_lock_one_gets_it(self, world: World) -> None:
        """Two transactions at once: one conflict, one holder."""
        wants = [put(world.store, take_locks={"a": name, "b": name}) for name in ("r1", "r2", "r3")]
        results = await asyncio.gather(*wants, return_exceptions=True)
        assert sorted(type(result).__name__ for result in results) == ["Committed", "Conflict", "Conflict"]
        assert len(set((await world.store.locks()).values())) == 1

    async def test_locks_are_released_and_moved_by_run(self, world: World) -> None:
        """A successor takes over all locks, and may take what its predecessor releases in the same transaction."""
        await put(world.store, take_locks={"a": "r1", "b": "r1", "z": "r9"})
        await put(world.store, move_locks={"r1": "r2"}, take_locks={"c": "r2"})
        assert await world.store.locks() == {"a": "r2", "b": "r2", "c": "r2", "z": "r9"}
        await put(world.store, release_locks=["r2"], take_locks={"a": "r3"})
        assert await world.store.locks() == {"a": "r3", "z": "r9"}

    async def test_locks_below_a_prefix_are_read_by_whoever_holds_them(self, world: World) -> None:
        """What is held below it is there, exactly; what only begins alike, or was given back, is not."""
        held = {"d:eu/a/r1": "r1", "d:eu/b/r2": "r2", "d:eu2/a/r3": "r3", "d:eu": "r4", "d:eu0": "r5", "d:e": "r6", "d:us/a/r7": "r7"}
        for key, name in held.items():
            await put(world.store, take_locks={key: name})
        assert (await see(world.store, lock_prefixes=["d:eu/"])).locks == {"d:eu/a/r1": "r1", "d:eu/b/r2": "r2"}
        seen = await see(world.store, lock_prefixes=["d:eu/", "d:us/", "d:none/"], locks=["d:e", "x"])
        assert set(seen.locks) == {"d:eu/a/r1", "d:eu/b/r2", "d:us/a/r7", "d:e"}
        await put(world.store, move_locks={"r1": "r9"}, release_locks=["r2"])
        assert (await see(world.store, lock_prefixes=["d:eu/"])).locks == {"d:eu/a/r1": "r9"}

    async def test_of_many_that_look_below_a_prefix_at_once_each_sees_who_came_before(self, world: World) -> None:
        """Whoever finds nothing below it takes a lock there: of all that try at the same time one does."""

        def alone(number: int) -> Any:
            def build(snapshot: Snapshot) -> Changes:
                return Changes() if snapshot.locks else Changes(take_locks={f"d:eu/{number}/r{number}": f"r{number}"})

            return build

        reads = Reads(lock_prefixes=["d:eu/"])
        for begin in (0, 10):  # the second time after all that one run held was given back in the same batch
            giving = [put(world.store, release_locks=[f"r{number}" for number in range(10)])] if begin else []
            await asyncio.gather(*giving, *(world.store.transact(reads, alone(begin + number)) for number in range(10)))
            assert len(await world.store.locks()) == 1
        ((holder,),) = [list((await world.store.locks()).values())]
        assert holder in {f"r{number}" for number in range(10, 20)}

    async def test_usage_counts_by_rule_within_the_window(self, world: World) -> None:
        """`usage` brings uses of the rule that are younger than the window, oldest first; no other rule's, whatever its target."""
        ages = {"r1": 1, "r2": 30, "r3": 2}
        uses = [Use(name, "site-down", f"t-{name}", NOW - timedelta(hours=age)) for name, age in ages.items()]
        await put(world.store, uses=[*uses, Use("r4", "other", "t-r1", NOW), Use("r5", "other", "x", NOW)])
        seen = await see(world.store, usage=[("site-down", "t-r1")], usage_window=timedelta(hours=24))
        assert [use.run for use in seen.uses] == ["r3", "r1"]
        seen = await see(world.store, usage=[("site-down", "t-r1")], usage_window=timedelta(hours=48))
        assert [use.run for use in seen.uses] == ["r2", "r3", "r1"]

    async def test_s07_run_that_acts_again_has_one_unit_from_its_latest_time(self, world: World) -> None:
        """A run that planned again uses no second unit of budget, and its only one is as young as its last call."""
        for minutes in (30, 10):
            await put(world.store, uses=[Use("r1", "site-down", "t", NOW - timedelta(minutes=minutes))])
        seen = await see(world.store, usage=[("site-down", "t")], usage_window=timedelta(hours=1))
        assert [(use.run, use.at) for use in seen.uses] == [("r1", NOW - timedelta(minutes=10))]

    async def test_last_written_is_the_end_of_the_last_chain_that_wrote(self, world: World) -> None:
        """Cooldown counts from there: not from runs that changed nothing, nor from a chain that still goes on."""
        applied = (Step(1, "a.b", StepState.APPLIED),)
        ends = [NOW - timedelta(minutes=minutes) for minutes in (30, 20, 10)]
        wrote = run(1, target="t", state=RunState.SUCCEEDED, steps=applied, ended_at=ends[0])
        idle = run(2, target="t", chain=2, state=RunState.DENIED, ended_at=ends[1])
        failed = run(3, target="t", chain=3, state=RunState.FAILED, steps=applied, ended_at=ends[2])
        successor = run(4, target="t", chain=3, chain_wrote=True)
        await put(world.store, runs=[wrote, idle, failed, successor])
        subject = ("site-down", "t")
        assert (await see(world.store, usage=[subject])).last_written == {subject: ends[0]}
        await put(world.store, runs=[replace(successor, state=RunState.ESCALATED, ended_at=NOW)])
        assert (await see(world.store, usage=[subject, ("x", "y")])).last_written == {subject: NOW}

    async def test_acting_counts_runs_that_may_be_changing_things(self, world: World) -> None:
        """Applying, verifying, undoing and outcome_unknown count, and stop to count when they move on."""
        states = [RunState.APPLYING, RunState.VERIFYING, RunState.UNDOING, RunState.OUTCOME_UNKNOWN, RunState.AWAITING_APPROVAL]
        runs = [run(number, state=state) for number, state in enumerate(states, start=1)]
        await put(world.store, runs=runs)
        assert (await see(world.store)).acting == 4
        await put(world.store, runs=[replace(runs[0], state=RunState.FAILED, ended_at=NOW), replace(runs[4], state=RunState.APPLYING)])
        await put(world.store, runs=[replace(runs[1], state=RunState.INTERRUPTED)])
        assert (await see(world.store)).acting == 3

    async def test_acting_follows_runs_that_were_read_before_they_are_written(self, world: World) -> None:
        """The count and the row's place in it are right also for a run that is given twice, and one whose transaction fails."""
        await put(world.store, runs=[run(number) for number in (1, 2, 3)])

        async def write(*runs: Run, **more: Any) -> int:
            await world.store.transact(Reads(runs=[run(number).id for number in (1, 2, 3)]), lambda _seen: Changes(runs=runs, **more))
            return (await put(world.store)).snapshot.acting

        applying = [run(number, state=RunState.APPLYING) for number in (1, 2, 3)]
        assert await write(*applying) == 3
        assert await write(replace(applying[0], reason="another"), replace(applying[1], state=RunState.WAITING)) == 2
        assert await write(replace(applying[0], state=RunState.WAITING), applying[0]) == 2
        assert await write(replace(applying[2], state=RunState.VERIFYING), replace(applying[2], state=RunState.WAITING)) == 1
        with pytest.raises(LeaseLost):
            await write(replace(applying[0], state=RunState.WAITING), replace(applying[1], fence=7))
        assert (await put(world.store)).snapshot.acting == (await see(world.store)).acting == 1
        assert [row.id for row in (await world.store.runs(states=[RunState.APPLYING])).items] == [run(1).id]
        stored = await world.store.run(run(1).id)
        assert stored is not None
        assert stored.reason == applying[0].reason

    async def test_a_pause_is_seen_by_every_transaction_until_it_is_lifted(self, world: World) -> None:
        """Kill switches are sticky, survive a restart, and are lifted one by one."""
        pauses = [Pause(EVERYWHERE, "ann", "storm", NOW), Pause("rule:site-down", "bob", "loops", NOW)]
        await put(world.store, pauses=pauses)
        assert (await see(world.store)).pauses == {one.scope: one for one in pauses}
        await world.reopen()
        assert await world.store.pauses() == {one.scope: one for one in pauses}
        await put(world.store, lift=[EVERYWHERE, "rule:none"])
        assert (await see(world.store)).pauses == {"rule:site-down": pauses[1]}

    async def test_a_freeze_keeps_its_end_and_is_replaced_by_a_longer_one(self, world: World) -> None:
        """The end of a freeze survives a restart; one that is prolonged is the same row with another end."""
        short = Pause("freeze", "ann", "release", NOW, until=NOW + timedelta(hours=2))
        await put(world.store, pauses=[short])
        await world.reopen()
        assert await world.store.pauses() == {"freeze": short}
        endless = Pause("freeze", "bob", "migration", NOW)
        await put(world.store, pauses=[endless])
        assert (await see(world.store)).pauses == {"freeze": endless}

    async def test_signals_are_consumed_once_as_seen(self, world: World) -> None:
        """`consumed` uses up the signals that the snapshot showed, oldest first, and none that it did not show."""
        await put(world.store, runs=[run()], signals=[signal(run().id, comment="one"), signal(run().id, comment="two")])
        await put(world.store, consumed=[run().id])
        seen = await see(world.store, runs=[run().id])
        assert [one.comment for one in seen.signals[run().id]] == ["one", "two"]
        changes = Changes(consumed=[run().id], signals=[signal(run().id, comment="three")])
        await world.store.transact(Reads(runs=[run().id]), lambda _seen: changes)
        assert [one.comment for one in (await see(world.store, runs=[run().id])).signals[run().id]] == ["three"]

    # --- messages

    async def test_a_message_is_inserted_once(self, world: World) -> None:
        """A message with a known key is left as it is, even when it is delivered already."""
        await put(world.store, messages=[message(body={"title": "first"})])
        await put(world.store, messages=[message(body={"title": "second"})])
        (due,) = await world.store.due_messages(limit=9)
        assert due == message(body={"title": "first"})
        await world.store.update_message(replace(due, delivered_at=NOW, attempts=1))
        await put(world.store, messages=[message()])
        assert await world.store.due_messages(limit=9) == []

    async def test_messages_are_due_oldest_first(self, world: World) -> None:
        """Held messages wait for their time; due ones come in its order."""
        later = NOW + timedelta(minutes=3)
        await put(world.store, messages=[message("b"), message("held", due_at=later), message("a", due_at=NOW - timedelta(seconds=1))])
        assert [one.key for one in await world.store.due_messages(limit=9)] == ["a", "b"]
        assert [one.key for one in await world.store.due_messages(limit=1)] == ["a"]
        await put(world.store, cancel_messages=["a", "b"])
        assert await world.store.next_message() == later
        world.forward(timedelta(minutes=3))
        assert [one.key for one in await world.store.due_messages(limit=9)] == ["held"]

    async def test_a_new_page_is_due_before_all_else_however_much_that_is(self, world: World) -> None:
        """Of what is due pages and digests come first, and of each what nobody has tried yet, whatever a key or a body says.

        Yet a quarter of what is asked for is each of these four's, where that much of it is due: pages that fail hide no end of others.
        """
        old = [message(f"INC-{one}/told", kind=MessageKind.UPDATE, due_at=NOW - timedelta(hours=1)) for one in range(30)]
        odd = message('x","kind":"page","policy":"', kind=MessageKind.UPDATE, body={"kind": "page", "attempts": 0}, due_at=old[0].due_at)
        failed = [message(f"INC-{one}/page/0", attempts=7, due_at=NOW - timedelta(minutes=1)) for one in range(30)]
        tried = message("tried", kind=MessageKind.UPDATE, attempts=1, due_at=NOW - timedelta(hours=2))
        new = [message("page"), message("digest", kind=MessageKind.DIGEST), message("held", due_at=NOW + timedelta(minutes=1))]
        await put(world.store, messages=[*old, odd, *failed, tried, *new])
        ranked = ["page", "digest", *(one.key for one in failed), *(one.key for one in old), odd.key, tried.key]
        assert [one.key for one in await world.store.due_messages(limit=99)] == ranked
        assert [one.key for one in await world.store.due_messages(limit=1)] == ["page"]
        assert [one.key for one in await world.store.due_messages(limit=3)] == ranked[:3]
        assert [one.key for one in await world.store.due_messages(limit=8)] == [*ranked[:5], old[0].key, old[1].key, tried.key]
        await world.store.update_message(replace(message("page"), attempts=1))
        assert [one.key for one in await world.store.due_messages(limit=1)] == ["digest"]

    async def test_a_held_page_is_released_or_cancelled(self, world: World) -> None:
        """`release_messages` makes a held message due now; `cancel_messages` stops it; neither touches a delivered one."""
        held = NOW + timedelta(minutes=3)
        await put(world.store, messages=[message(key, due_at=held) for key in ("released", "cancelled", "both")])
        await put(world.store, messages=[message("sent", delivered_at=NOW)])
        await put(world.store, release_messages=["released", "both", "sent", "none"], cancel_messages=["cancelled", "both", "sent"])
        assert [one.key for one in await world.store.due_messages(limit=9)] == ["released"]
        assert await world.store.next_message() == NOW

    async def test_a_message_cancelled_during_an_attempt_does_not_come_back(self, world: World) -> None:
        """The sender's note of a failed attempt leaves the message cancelled; events of the attempt are chained."""
        await put(world.store, messages=[message()])
        (due,) = await world.store.due_messages(limit=1)
        await put(world.store, cancel_messages=[due.key])
        await world.store.update_message(replace(due, attempts=1, error="refused"), events=[event(kind="message.failed")])
        assert await world.store.due_messages(limit=9) == []
        assert await world.store.next_message() is None
        assert [one.kind for one in await world.store.events(event().chain)] == ["message.failed"]

    async def test_messages_of_an_owner_come_back_as_they_are(self, world: World) -> None:
        """Those of the incident, of its run, not of one whose id only begins alike; cancelled and released ones as the columns say."""
        first, run_, other = "INC-20261121-001", "INC-20261121-001-1", "INC-20261121-0011"
        later = NOW + timedelta(hours=1)
        keys = [f"{first}/page/0", f"{first}/page/0/2", f"{first}/resolved/0", f"{run_}/failed", f"{other}/page/0"]
        await put(world.store, messages=[message(key, due_at=later) for key in keys])
        await put(world.store, cancel_messages=[keys[1]], release_messages=[keys[0]])
        found = await world.store.messages(first)
        assert [(one.key, one.cancelled, one.due_at) for one in found] == [
            (keys[0], False, NOW),
            (keys[1], True, later),
            (keys[2], False, later),
        ]
        assert [one.key for one in await world.store.messages(run_)] == [keys[3]]
        assert await world.store.messages("INC-20261121-002") == []

    async def test_an_unknown_message_can_not_be_updated(self, world: World) -> None:
        """Noting an attempt on a message that is not there is an error, and writes no event."""
        with pytest.raises(NotFound):
            await world.store.update_message(message("none"), events=[event()])
        assert await world.store.events(event().chain) == []

    # --- events and the audit

    async def test_events_are_chained_in_order(self, world: World) -> None:
        """Events of a transaction follow one another in each chain, and what is told is what is stored."""
        committed = await put(world.store, events=[event("a", "x.one", n=1), event("b", "x.two"), event("a", "x.three", deep={"l": [1]})])
        assert [(one.chain, one.seq, one.kind) for one in committed.events] == [("a", 1, "x.one"), ("b", 1, "x.two"), ("a", 2, "x.three")]
        assert await world.store.events("a") == [committed.events[0], committed.events[2]]
        assert await world.store.events("a", after=1, limit=5) == [committed.events[2]]
        assert faults_of(await world.store.events("a"), "a") == []
        assert await world.store.chains() == [("a", 2, committed.events[2].hash), ("b", 1, committed.events[1].hash)]
        assert await world.store.chains(after="a", limit=1) == [("b", 1, committed.events[1].hash)]

    async def test_s22_a_checkpoint_holds_what_changed_since_the_last(self, world: World) -> None:
        """Semantics 22: a checkpoint names the chains that changed; without changes there is none."""
        assert await world.store.checkpoint() is None
        await put(world.store, events=[event("a"), event("b"), event(SYSTEM_CHAIN, "daemon.started")])
        first = await world.store.checkpoint()
        assert first is not None
        assert {head.chain: head.count for head in audit.checkpointed(first)} == {"a": 1, "b": 1, SYSTEM_CHAIN: 1}
        assert await world.store.checkpoint() is None
        await put(world.store, events=[event("b")])
        second = await world.store.checkpoint()
        assert second is not None
        assert {head.chain: head.count for head in audit.checkpointed(second)} == {"b": 2}
        report = await world.store.verify_audit()
        assert (report.chains, report.events, report.checkpoints, report.faults) == (3, 6, 2, ())

    async def test_an_event_that_json_can_not_hold_fails_alone(self, world: World) -> None:
        """Bad data is the caller's error; the chain goes on without a gap."""
        bad = put(world.store, events=[event("a"), Event("a", "x.bad", NOW, {"at": NOW})])
        results = await asyncio.gather(bad, put(world.store, events=[event("a")]), return_exceptions=True)
        assert isinstance(results[0], TypeError)
        assert [one.seq for one in await world.store.events("a")] == [1]
        assert (await world.store.verify_audit()).faults == ()

    # --- lists and gauges

    async def test_lists_are_paged_newest_first(self, world: World) -> None:
        """Following `next` gives every row once, newest first, also while rows are replaced."""
        for number in range(1, 8):
            await put(world.store, incidents=[incident(number)], episodes=[episode(f"f{number}")])
        await put(world.store, incidents=[incident(2, summary="touched")])
        assert await _all(world.store.incidents, limit=3) == [incident(n).id for n in range(7, 0, -1)]
        assert await _all(world.store.episodes, limit=7, key="fingerprint") == [f"f{n}" for n in range(7, 0, -1)]
        with pytest.raises(NotFound):
            await world.store.incidents(before="x'; --")

    async def test_lists_are_filtered(self, world: World) -> None:
        """States, rule and incident narrow a list; several states give one list in order."""
        states = [RunState.QUEUED, RunState.FAILED, RunState.APPLYING, RunState.QUEUED]
        for number, state in enumerate(states, start=1):
            await put(world.store, runs=[run(number, of=1 + number % 2, state=state, rule=f"r{number % 2}")])
        assert await _numbers(world.store, states=[RunState.QUEUED]) == [4, 1]
        assert await _numbers(world.store, states=[RunState.QUEUED, RunState.FAILED]) == [4, 2, 1]
        assert await _numbers(world.store, rule="r1") == [3, 1]
        assert await _numbers(world.store, rule="r1", states=[RunState.QUEUED], incident=incident(2).id) == [1]
        assert await _numbers(world.store, incident=incident(1).id, limit=1) == [4]
        assert await _numbers(world.store, incident="none") == []

    async def test_runs_are_found_by_what_they_touched(self, world: World) -> None:
        """Those that wrote and name an id as a whole text, whatever it holds, that have not ended before; also the ones at work."""

        def wrote(number: int, ident: str, **fields: Any) -> Run:
            plan = Plan("a.b", "sets it", (Target(ident, ident),), {})
            return run(number, steps=(Step(1, "a.b", StepState.APPLIED, plan),), **fields)

        old, later = NOW - timedelta(hours=1), NOW + timedelta(hours=1)
        odd = 'k:c/-/x/"%_\\ü\0\n'
        rows = [
            wrote(1, "k:c/-/x/a", ended_at=old),
            wrote(2, "k:c/-/x/a", ended_at=NOW),
            wrote(3, "k:c/-/x/ab", ended_at=later),
            wrote(4, "k:c/-/x/a", ended_at=None),
            replace(wrote(5, "k:c/-/x/a", ended_at=later), steps=()),
            wrote(6, odd, ended_at=later),
        ]
        await put(world.store, runs=rows)

        async def found(*ids: str) -> list[int]:
            return [one.number for one in await world.store.touching(ids, since=NOW)]

        assert await found("k:c/-/x/a") == [2, 4]
        assert await found(odd, "k:c/-/x/ab") == [3, 6]
        assert await found("k:c/-/x/", "%", "a") == []
        assert await found() == []
        assert await world.store.touching(["k:c/-/x/ab"], since=NOW) == [rows[2]]

    async def test_an_ended_run_is_found_by_its_plans_not_by_its_words(self, world: World) -> None:
        """What an ended run touched stands beside its body, which is long to search; its reason, say, names nothing that it touched."""
        plan = Plan("a.b", "sets it", (Target("k:c/-/x/a", "k:c/-/x/a"),), {})
        begun = run(1, steps=(Step(1, "a.b", StepState.APPLIED, plan),), reason='also "k:c/-/x/b"', facts={"about": "k:c/-/x/b"})
        await put(world.store, runs=[begun])
        assert await world.store.touching(["k:c/-/x/a"], since=NOW) == [begun]
        ended = replace(begun, state=RunState.SUCCEEDED, ended_at=NOW)
        await put(world.store, runs=[ended])
        assert await world.store.touching(["k:c/-/x/a"], since=NOW) == [ended]
        assert await world.store.touching(["k:c/-/x/b"], since=NOW) == []
        again = replace(ended, steps=(*ended.steps, Step(2, "a.b", StepState.UNKNOWN, replace(plan, targets=(Target("k:c/-/x/b", "l"),)))))
        await put(world.store, runs=[again])
        assert await world.store.touching(["k:c/-/x/b"], since=NOW) == [again]

    async def test_lists_of_incidents_episodes_and_approvals_are_filtered(self, world: World) -> None:
        """By state, by rule, open ones only."""
        first, second = incident(1), incident(2, state=IncidentState.RESOLVED, rule="other")
        asked, used = approval(run(1)), approval(run(2), state=ApprovalState.APPROVED)
        episodes = [episode("f1"), episode("f2", closed_at=NOW)]
        await put(world.store, incidents=[first, second], approvals=[asked, used], episodes=episodes)
        assert (await world.store.incidents(states=["resolved"])).items == (second,)
        assert (await world.store.incidents(rule="site-down", states=["open", "resolved"])).items == (first,)
        assert (await world.store.approvals(states=["pending"])).items == (asked,)
        assert (await world.store.approvals()).items == (used, asked)
        assert (await world.store.episodes(open_only=True)).items == (episodes[0],)

    async def test_what_presses_is_found_however_old_it_is(self, world: World) -> None:
        """Of all incidents the severest come first, then the newest; how many there are is told too."""
        await put(world.store, incidents=[incident(1), incident(2, severity="sev2"), incident(3, severity="odd")])
        await put(world.store, incidents=[incident(n, severity="sev4") for n in range(4, 20)])
        await put(world.store, incidents=[incident(20), incident(21, state=IncidentState.RESOLVED)])
        order = ["sev1", "sev2", "sev3", "sev4"]
        found = await world.store.pressing(states=["open", "escalated"], severities=order, limit=4)
        assert [one.id for one in found.items] == [incident(n).id for n in (20, 1, 2, 19)]
        assert found.total == 20
        last = await world.store.pressing(states=["open"], severities=order)
        assert last.items[-1] == incident(3, severity="odd")
        assert (await world.store.pressing(states=["escalated"], severities=order)).total == 0
        assert [one.id for one in (await world.store.pressing(states=["open"], severities=[], limit=1)).items] == [incident(20).id]

    async def test_no_label_makes_an_incident_look_acknowledged_or_less_severe(self, world: World) -> None:
        """What an alert says is never taken for what is known of its incident."""
        forged = {"a": "b", "acknowledged_at": "2026-11-21", "severity": "sev4", "z": '],"acknowledged_at":"2026"', "\0": "😀\0"}
        rule = 'r","severity":"sev4","state":"open'
        unheard = incident(1, subject=replace(alert(), labels=forged), rule=rule, target='],"acknowledged_at":"', summary="],")
        heard = incident(2, severity="sév1", acknowledged_at=NOW, also_matched=("x",))
        await put(world.store, incidents=[heard, unheard, incident(3, severity="sev2")])
        order = ["sev1", "sév1", "sev2", "sev4"]
        states = ["open", "escalated"]
        found = await world.store.pressing(states=states, severities=order)
        assert found.items == (unheard, heard, incident(3, severity="sev2"))
        assert (await world.store.pressing(states=states, severities=order, acknowledged=True)).items == (heard,)
        nobodys = await world.store.pressing(states=states, severities=order, acknowledged=False, limit=1)
        assert (nobodys.items, nobodys.total) == ((unheard,), 2)

    async def test_each_commit_leaves_another_mark(self, world: World) -> None:
        """What changes no count changes the mark; reading changes nothing."""
        await put(world.store, incidents=[incident()])
        mark = await world.store.mark()
        await world.store.read(Reads())
        assert await world.store.mark() == mark
        await put(world.store, incidents=[incident(owner="anna")])
        assert await world.store.mark() != mark

    async def test_a_chain_has_a_length(self, world: World) -> None:
        """It grows with each event; a chain that is not there has none."""
        await put(world.store, events=[event("a"), event("a")])
        assert (await world.store.length("a"), await world.store.length("b")) == (2, 0)

    async def test_counts_are_gauges_with_zeros(self, world: World) -> None:
        """Every state has a gauge, also when nothing is in it."""
        assert set((await world.store.counts()).values()) == {0}
        runs = [run(1), run(2), run(3, state=RunState.FAILED, ended_at=NOW)]
        await put(
            world.store,
            runs=runs,
            incidents=[incident()],
            episodes=[episode(), episode("f2", closed_at=NOW)],
            messages=[message("a"), message("b", delivered_at=NOW)],
            approvals=[approval(run(1))],
        )
        found = {name: count for name, count in (await world.store.counts()).items() if count}
        assert found == {
            "runs.queued": 2,
            "runs.failed": 1,
            "incidents.open": 1,
            "episodes.open": 1,
            "messages.undelivered": 1,
            "approvals.pending": 1,
        }
        assert {f"runs.{state}" for state in RunState} <= set(await world.store.counts())

    async def test_hostile_text_is_data(self, world: World) -> None:
        """Quotes, NULs, wildcards and emoji in labels, targets and keys come back as they are and change nothing else."""
        nasty = "'; DROP TABLE run; -- %_\x00\n☃ \U0001f600"
        hostile = incident(target=nasty, subject=alert(nasty, label=nasty), summary=nasty)
        await put(world.store, incidents=[hostile], episodes=[episode(nasty)], take_locks={nasty: nasty}, events=[event(nasty, text=nasty)])
        seen = await see(world.store, latest_incident=[("site-down", nasty)], fingerprints=[nasty], locks=[nasty])
        assert seen.latest_incident == {("site-down", nasty): hostile}
        assert (seen.episodes[nasty].fingerprint, seen.locks) == (nasty, {nasty: nasty})
        assert (await world.store.events(nasty))[0].data == {"text": nasty}


async def _all(page: Callable[..., Any], *, limit: int, key: str = "id") -> list[str]:
    found: list[str] = []
    before = None
    while True:
        part = await page(before=before, limit=limit)
        found += (getattr(item, key) for item in part.items)
        before = part.next
        if before is None:
            return found


async def _numbers(store: Store, **filters: Any) -> Sequence[int]:
    return [item.number for item in (await store.runs(**filters)).items]  # type: ignore[attr-defined]
