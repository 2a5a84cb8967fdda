"""What ending sessions promises: only the planned ones, only while they are as planned, never the wrong kind."""

from __future__ import annotations

import asyncio
import dataclasses
from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from actions.postgres.execute import Execute
from actions.postgres.restore_point import CreateRestorePoint
from actions.postgres.sessions import TerminateIdle, TerminatePid
from remediator.action import Action, SecretRef, Settled
from remediator.errors import OutcomeUnknown, PermissionMissing, PlanRefused, PreconditionChanged, TemporaryError
from remediator.model import Health, Plan, Receipt
from remediator.testing import LocalContext
from tests.actions.postgres.bench import APP, DAEMON, DAEMON_PASSWORD, DATABASE, Bench
from tests.actions.postgres.impatient import ImpatientCancelQueries, ImpatientTerminateIdle, ImpatientTerminateQueries
from tests.servers.ports import free_port

IDLE = ImpatientTerminateIdle()
CANCEL = ImpatientCancelQueries()


@pytest.fixture
async def ctx(bench: Bench) -> LocalContext:
    """Lend a context whose role has exactly the declared grants."""
    await bench.grant_exactly(TerminateIdle.permissions)
    return bench.context()


async def plan(action: Action[Any], ctx: LocalContext, **params: Any) -> Plan:
    """Plan on connection `main`."""
    return await action.plan(action.Params(connection="main", **params), ctx)


def users(found: Plan) -> set[str]:
    """Return the application names of the planned sessions."""
    return {item["application"] for item in found.intent["sessions"]}


# --- which sessions ------------------------------------------------------------------------------------------------------


async def test_s12_apply_never_touches_more_than_was_planned(bench: Bench, ctx: LocalContext) -> None:
    """A session that came after planning is left alone, although it fits the wish."""
    await bench.idle("web-1")
    found = await plan(IDLE, ctx)
    await bench.idle("web-2")
    receipt = await IDLE.apply(found, ctx)
    await bench.gone("web-1")
    assert await bench.names() == ["web-2"]
    assert receipt.touched == (found.targets[0].id,)


async def test_s12_apply_leaves_alone_what_is_no_longer_idle(bench: Bench, ctx: LocalContext) -> None:
    """A planned session that works again keeps working; the receipt says that it was left alone."""
    await bench.idle("web-1", "web-2")
    found = await plan(IDLE, ctx)
    await bench.run("web-2", "SELECT pg_sleep(3600)")
    await bench.wait_until(["web-2"], "state = 'active' AND $2::interval IS NOT NULL", timedelta())
    receipt = await IDLE.apply(found, ctx)
    await bench.gone("web-1")
    assert await bench.names() == ["web-2"]
    assert "1 were left alone" in receipt.message
    assert (await IDLE.verify(found, receipt, ctx)).health is Health.HEALTHY


async def test_s12_a_session_idle_for_less_than_the_threshold_by_now_is_left_alone(bench: Bench, ctx: LocalContext) -> None:
    """Idle again, but not for as long as asked: the whole wish is compared at apply, not just the state."""
    await bench.idle("web-1", over=timedelta(milliseconds=300))
    found = await plan(IDLE, ctx, idle_for="300ms")
    changed = dataclasses.replace(found, intent={**found.intent, "wish": {**found.intent["wish"], "idle_for": "1h"}})
    with pytest.raises(PreconditionChanged, match="nothing was done"):
        await IDLE.apply(changed, ctx)
    assert await bench.names() == ["web-1"]


async def test_a_recycled_pid_is_somebody_else(bench: Bench, ctx: LocalContext) -> None:
    """A session is its pid and its start: with another start the same pid is not touched."""
    await bench.idle("web-1")
    found = await plan(IDLE, ctx)
    pinned = {**found.intent["sessions"][0], "backend_start": "2020-01-01T00:00:00.000000+00:00"}
    with pytest.raises(PreconditionChanged):
        await IDLE.apply(dataclasses.replace(found, intent={**found.intent, "sessions": [pinned]}), ctx)
    assert await bench.names() == ["web-1"]


async def test_a_session_that_went_on_to_its_next_statement_is_not_cancelled(bench: Bench, ctx: LocalContext) -> None:
    """What is pinned is the statement, by its start."""
    await bench.busy("slow-1")
    found = await plan(CANCEL, ctx, longer_than="100ms")
    await bench.root.fetch("SELECT pg_cancel_backend($1)", await bench.pid("slow-1"))
    await bench.wait_until(["slow-1"], "state = 'idle' AND $2::interval IS NOT NULL", timedelta())
    await bench.busy("slow-1")
    with pytest.raises(PreconditionChanged):
        await CANCEL.apply(found, ctx)
    assert await bench.names("state = 'active'") == ["slow-1"]


async def test_s11_a_session_that_became_untouchable_after_planning_is_left_alone(bench: Bench, ctx: LocalContext) -> None:
    """What is never touched is compared again at apply: here a planned session has taken an advisory lock since."""
    await bench.idle("web-1", "web-2")
    found = await plan(IDLE, ctx)
    await bench.sessions["web-2"].execute("SELECT pg_advisory_lock(2)")
    await bench.wait_until(["web-2"], "state = 'idle' AND state_change < clock_timestamp() - $2::interval", timedelta(milliseconds=100))
    await IDLE.apply(found, ctx)
    await bench.gone("web-1")
    assert await bench.names() == ["web-2"]


async def test_s03_nothing_idle_is_refused(bench: Bench, ctx: LocalContext) -> None:
    """An empty set is not a plan."""
    await bench.busy("worker")
    with pytest.raises(PlanRefused, match="no sessions idle for longer than 100ms on connection 'main'"):
        await plan(IDLE, ctx)


async def test_open_transactions_are_taken_only_when_asked_for(bench: Bench, ctx: LocalContext) -> None:
    """`in_transaction` is a choice of its own, since it throws work away."""
    await bench.idle("web-1")
    await bench.in_transaction("open")
    assert users(await plan(IDLE, ctx)) == {"web-1"}
    assert users(await plan(IDLE, ctx, in_transaction=True)) == {"web-1", "open"}


async def test_the_ceiling_takes_the_longest_idle_and_says_what_is_left(bench: Bench, ctx: LocalContext) -> None:
    """With more sessions than `max` the oldest go first."""
    for name in ("old-1", "old-2", "young"):
        await bench.idle(name)
    found = await plan(IDLE, ctx, max=2)
    assert users(found) == {"old-1", "old-2"}
    assert any("1 more are left for later" in warning for warning in found.warnings)


async def test_impact_counts_all_sessions_of_clients(bench: Bench, ctx: LocalContext) -> None:
    """The guard on percentages needs the whole: root's, the daemon's and the application's."""
    await bench.idle("web-1", "web-2")
    found = await plan(IDLE, ctx, max=1)
    assert (found.impact.touched, found.impact.total) == (1, 4)


async def test_s10_all_session_actions_on_a_connection_share_one_lock(bench: Bench, ctx: LocalContext) -> None:
    """Two rules never end sessions on one server at the same time; the scope holds database and user."""
    await bench.idle("web-1")
    await bench.busy("slow-1")
    plans = [
        await plan(IDLE, ctx),
        await plan(CANCEL, ctx, longer_than="100ms"),
        await plan(TerminatePid(), ctx, pid=await bench.pid("web-1")),
    ]
    assert {target.lock for found in plans for target in found.targets} == {"postgres:main/-/sessions/-"}
    target = plans[0].targets[0]
    assert target.scope == {"database": DATABASE, "user": APP}
    assert target.id.startswith(f"postgres:main/{DATABASE}/session/{await bench.pid('web-1')}@20")


async def test_the_same_sessions_make_the_same_hash(bench: Bench, ctx: LocalContext) -> None:
    """Planned again for an approval, a plan is the same while the sessions are: time that goes by is no change."""
    await bench.idle("web-1", "web-2")
    assert (await plan(IDLE, ctx)).hash == (await plan(IDLE, ctx)).hash


# --- never these -----------------------------------------------------------------------------------------------------------


async def test_s11_own_sessions_are_never_ended(bench: Bench, ctx: LocalContext) -> None:
    """Sessions under the daemon's application_name (another replica's, its store's) are excluded, and the refusal says so."""
    await bench.idle("remediator-test")
    with pytest.raises(PlanRefused, match="the daemon's own"):
        await plan(IDLE, ctx, user=APP)
    with pytest.raises(PlanRefused, match="the daemon's own"):
        await plan(TerminatePid(), ctx, pid=await bench.pid("remediator-test"))


async def test_s11_superusers_sessions_are_excluded_with_a_note(bench: Bench, ctx: LocalContext) -> None:
    """A person at a prompt during the incident keeps it."""
    await bench.root.execute("SELECT 1")
    await bench.connect("idle-root", user="postgres", password=bench.server.password)
    await bench.idle("web-1")
    found = await plan(IDLE, ctx)
    assert users(found) == {"web-1"}
    pid = str(await bench.pid("idle-root"))
    assert any("superusers'" in warning and pid in warning for warning in found.warnings)
    with pytest.raises(PlanRefused, match="superusers'"):
        await plan(TerminatePid(), ctx, pid=await bench.pid("idle-root"))


async def test_s11_backends_that_are_no_clients_can_not_be_named(bench: Bench, ctx: LocalContext) -> None:
    """Autovacuum, the checkpointer and WAL senders are no sessions of clients, whatever pid is given."""
    pid = await bench.root.fetchval("SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'")
    with pytest.raises(PlanRefused, match=f"no session with pid {pid}"):
        await plan(TerminatePid(), ctx, pid=pid)


async def test_s11_maintenance_is_left_alone_unless_named(bench: Bench, ctx: LocalContext) -> None:
    """A backup is not a leaked connection."""
    await bench.idle("pg_dump", "web-1")
    assert users(await plan(IDLE, ctx)) == {"web-1"}
    assert users(await plan(IDLE, ctx, application="pg_dump")) == {"pg_dump"}


async def test_s11_a_running_create_index_is_left_alone(bench: Bench, ctx: LocalContext) -> None:
    """Cancelling CREATE INDEX CONCURRENTLY would leave an invalid index behind."""
    await bench.root.execute("CREATE TABLE IF NOT EXISTS big (id int)")
    await bench.root.execute(f"ALTER TABLE big OWNER TO {APP}; GRANT CREATE ON SCHEMA public TO {APP}")
    await bench.in_transaction("holder")
    await bench.sessions["holder"].execute("INSERT INTO big VALUES (1)")
    await bench.run("builder", "CREATE INDEX CONCURRENTLY IF NOT EXISTS big_id ON big (id)")
    builds = "pid IN (SELECT pid FROM pg_stat_progress_create_index) AND query_start < clock_timestamp() - $2::interval"
    await bench.wait_until(["builder"], builds, timedelta(milliseconds=100))
    with pytest.raises(PlanRefused, match="maintenance"):
        await plan(CANCEL, ctx, longer_than="100ms", application="builder")


async def test_s11_an_idle_holder_of_an_advisory_lock_is_left_alone(bench: Bench, ctx: LocalContext) -> None:
    """Leader election by advisory lock looks idle for hours; it can still be ended by name of its pid."""
    await bench.idle("web-1")
    await (await bench.connect("leader")).execute("SELECT pg_advisory_lock(1)")
    await bench.wait_until(["leader"], "state = 'idle' AND state_change < clock_timestamp() - $2::interval", timedelta(milliseconds=100))
    found = await plan(IDLE, ctx)
    assert users(found) == {"web-1"}
    assert any("advisory lock" in warning for warning in found.warnings)
    assert users(await plan(TerminatePid(), ctx, pid=await bench.pid("leader"))) == {"leader"}


@pytest.mark.parametrize("hostile", ["shop' OR 'a'='a", "x'; DROP TABLE accounts; --", "%", "shop\\", '"shop"', "$1"])
@pytest.mark.parametrize("field", ["database", "user", "application"])
async def test_filters_are_exact_values_and_never_sql(bench: Bench, ctx: LocalContext, field: str, hostile: str) -> None:
    """Values from alerts are data: a hostile one matches nothing and breaks nothing."""
    await bench.idle("web-1")
    with pytest.raises(PlanRefused):
        await plan(IDLE, ctx, **{field: hostile})
    assert await bench.root.fetchval("SELECT to_regclass('public.accounts') IS NOT NULL")


async def test_a_hostile_application_name_is_matched_exactly(bench: Bench, ctx: LocalContext) -> None:
    """A name full of quotes is just a name."""
    name = "a'; DROP TABLE accounts; --"
    await bench.idle(name, "web-1")
    found = await plan(IDLE, ctx, application=name)
    await IDLE.apply(found, ctx)
    await bench.gone(name)
    assert await bench.names() == ["web-1"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"idle_for": "9s"},
        {"idle_for": "0"},
        {"max": 0},
        {"max": 501},
        {"database": ""},
        {"user": "x" * 64},
        {"pattern": "x"},
        {"idle_for": -600},
    ],
)
def test_parameters_outside_their_bounds_are_refused(wrong: dict[str, Any]) -> None:
    """Ten seconds is the least; an empty filter is no filter by mistake."""
    with pytest.raises(ValidationError):
        TerminateIdle.Params(connection="main", **wrong)


@pytest.mark.parametrize("pid", [0, -1, 2**31, 2**63, "12; DROP"])
def test_pids_are_positive_and_fit_31_bits(pid: Any) -> None:
    """A label's number is not trusted."""
    with pytest.raises(ValidationError):
        TerminatePid.Params(connection="main", pid=pid)


# --- what became of it -----------------------------------------------------------------------------------------------------


async def test_reconcile_tells_the_effect_and_not_its_cause(bench: Bench, ctx: LocalContext) -> None:
    """Sessions that ended by themselves count as the effect, and the receipt says that nobody can tell."""
    await bench.idle("web-1")
    found = await plan(IDLE, ctx)
    assert (await IDLE.reconcile(found, ctx)).settled is Settled.NOT_APPLIED
    await bench.sessions["web-1"].close()
    await bench.gone("web-1")
    reconciled = await IDLE.reconcile(found, ctx)
    assert reconciled.settled is Settled.APPLIED
    assert reconciled.receipt is not None
    assert "can't be told" in reconciled.receipt.message


async def test_reconcile_with_some_left_is_not_applied_and_applying_again_finishes(bench: Bench, ctx: LocalContext) -> None:
    """The class is conditional: what is left is ended by sending the statement again."""
    await bench.idle("web-1", "web-2")
    found = await plan(IDLE, ctx)
    await bench.sessions["web-1"].close()
    await bench.gone("web-1")
    assert (await IDLE.reconcile(found, ctx)).settled is Settled.NOT_APPLIED
    receipt = await IDLE.apply(found, ctx)
    await bench.gone("web-2")
    assert len(receipt.touched) == 1
    assert (await IDLE.reconcile(found, ctx)).settled is Settled.APPLIED


async def test_verify_is_unhealthy_while_a_session_is_still_there(bench: Bench, ctx: LocalContext) -> None:
    """Signalled is not gone."""
    await bench.idle("web-1")
    found = await plan(IDLE, ctx)
    receipt = Receipt("pretended", {"sessions": found.intent["sessions"]})
    verdict = await IDLE.verify(found, receipt, ctx)
    assert verdict.health is Health.UNHEALTHY
    assert "1 of 1 are still there" in verdict.message


async def test_one_apply_sends_one_signalling_statement(bench: Bench, ctx: LocalContext) -> None:
    """All comparisons and all signals are in one statement, sent once."""
    await bench.idle("web-1", "web-2")
    found = await plan(IDLE, ctx)
    await bench.forget_statements()
    await IDLE.apply(found, ctx)
    assert await bench.signals_sent() == 1


async def test_an_answer_lost_after_sending_is_outcome_unknown(bench: Bench, ctx: LocalContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon's own session ends with the statement in flight: nobody knows what happened."""
    await bench.idle("web-1")
    found = await plan(IDLE, ctx)
    values = "SELECT $1::int[], $2::timestamptz[], $3::timestamptz[], $4::interval, $5::text, $6::text, $7::text, $8::bool"
    slow = f"SELECT 1 AS pid, now() AS backend_start, true AS signalled FROM pg_sleep(3600), ({values}) AS bound"  # noqa: S608
    monkeypatch.setattr("actions.postgres.sql.signal", lambda *_: slow)
    task = asyncio.ensure_future(IDLE.apply(found, ctx))
    await bench.wait_until(["remediator-test"], "state = 'active' AND wait_event = 'PgSleep' AND $2::interval IS NOT NULL", timedelta())
    await bench.root.fetch("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1", DAEMON)
    with pytest.raises(OutcomeUnknown, match="had been sent"):
        await task


async def test_a_kept_connection_found_dead_before_sending_is_replaced(bench: Bench, ctx: LocalContext) -> None:
    """Dead before the call is not unknown: the call is made over a new connection."""
    await bench.idle("web-1")
    found = await plan(IDLE, ctx)
    await bench.root.fetch("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = $1", DAEMON)
    await IDLE.apply(found, ctx)
    await bench.gone("web-1")
    assert await bench.names() == []


async def test_a_refused_connection_is_temporary(bench: Bench) -> None:
    """Nothing was sent, and it may work later."""
    with pytest.raises(TemporaryError, match="refused the connection"):
        await plan(IDLE, bench.context(port=free_port()))


async def test_wrong_credentials_are_a_missing_permission_without_the_secret(bench: Bench, tmp_path: Any) -> None:
    """The message names the role and the place, never the password."""
    secret = tmp_path / "password"
    secret.write_text("not-the-password")
    with pytest.raises(PermissionMissing) as caught:
        await plan(IDLE, bench.context(password=SecretRef(file=str(secret))))
    assert DAEMON in str(caught.value)
    assert "not-the-password" not in str(caught.value)
    assert DAEMON_PASSWORD not in str(caught.value)


# --- grants ------------------------------------------------------------------------------------------------------------------

WISHES: list[tuple[Action[Any], dict[str, Any]]] = [
    (IDLE, {}),
    (CANCEL, {}),
    (ImpatientTerminateQueries(), {}),
    (TerminatePid(), {"pid": 1}),
    (Execute(), {"sql": "UPDATE accounts SET locked = true WHERE id = 1", "max_rows": 1}),
    (CreateRestorePoint(), {"label": "point"}),
]
MISSING = [(action, params, missing) for action, params in WISHES for missing in action.permissions]


@pytest.mark.parametrize(("action", "params", "missing"), MISSING, ids=[f"{a.name}-{m.resource}" for a, _, m in MISSING])
async def test_each_declared_grant_is_necessary_and_named_when_it_is_missing(bench: Bench, action: Any, params: Any, missing: Any) -> None:
    """With one grant taken away the action fails before it writes, and the message names what is missing."""
    await bench.idle("web-1")
    await bench.busy("slow-1")
    asked = {**params, "pid": await bench.pid("web-1")} if "pid" in params else params
    await bench.grant_exactly((permission for permission in action.permissions if permission is not missing), "accounts")
    named = {"CONNECT": "CONNECT", "member": missing.resource, "EXECUTE": r"EXECUTE on pg_create_restore_point"}.get(
        missing.verbs[0], "accounts"
    )
    with pytest.raises(PermissionMissing, match=named):
        await plan(action, bench.context(), **asked)
    assert await bench.names() == ["slow-1", "web-1"]


async def test_a_grant_revoked_between_plan_and_apply_is_named_and_nothing_is_ended(bench: Bench, ctx: LocalContext) -> None:
    """Half a set is never ended because the other half may not be."""
    await bench.idle("web-1", "web-2")
    found = await plan(IDLE, ctx)
    await bench.root.execute(f"REVOKE pg_signal_backend FROM {DAEMON}")
    with pytest.raises(PermissionMissing, match="GRANT pg_signal_backend"):
        await IDLE.apply(found, ctx)
    assert await bench.names() == ["web-1", "web-2"]


async def test_cancelling_keeps_the_session(bench: Bench, ctx: LocalContext) -> None:
    """Only the statement ends; the session can go on."""
    await bench.busy("slow-1")
    receipt = await CANCEL.apply(await plan(CANCEL, ctx, longer_than="100ms"), ctx)
    await bench.wait_until(["slow-1"], "state = 'idle' AND $2::interval IS NOT NULL", timedelta())
    assert receipt.message == "cancelled 1 of 1 planned sessions"
    assert await bench.sessions["slow-1"].fetchval("SELECT 42") == 42
