"""`kubernetes.set_env` on a real API server: what it sets, what it leaves alone, what it shows, and the way back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
from pydantic import ValidationError

from actions.kubernetes.actions.set_env import SetEnv
from actions.kubernetes.disclosure import HIDDEN
from actions.kubernetes.marks import ANNOTATION
from remediator.action import Action, Settled
from remediator.errors import PlanRefused, PreconditionChanged
from remediator.model import Health
from remediator.rules.schema import is_code
from remediator.testing import LocalContext
from tests.kubernetes.conforming import OnWorkload, is_observed, rules_for
from tests.servers.kube import behaviours
from tests.servers.kube.behaviours import Behaviour
from tests.servers.kube.workloads import Workloads
from tests.servers.ports import eventually

SET_ENV = SetEnv()
ENV = [
    {"name": "LOG_LEVEL", "value": "info"},
    {"name": "DB_PASSWORD", "value": "hunter2-in-the-template"},
    {"name": "CACHE_URL", "value": "redis://user:s3cr3t-word@cache/0"},
    {"name": "JWT_SECRET", "valueFrom": {"secretKeyRef": {"name": "auth", "key": "jwt", "optional": True}}},
]
WITH_ENV = Behaviour(behaviours.RUNS.script, more={"env": ENV})


class TestSetEnv(OnWorkload):
    action: ClassVar[Action[Any]] = SET_ENV
    first = WITH_ENV
    wish: ClassVar[Mapping[str, Any]] = {"set": {"LOG_LEVEL": "debug", "DB_POOL_SIZE": 50}, "remove": ["CACHE_URL"]}


class TestSetEnvOfStatefulSet(TestSetEnv):
    kind = "StatefulSet"


class TestSetEnvOfDaemonSet(TestSetEnv):
    kind = "DaemonSet"


def params(run: Workloads, **wish: Any) -> Any:
    """Return parameters for the Deployment `web`."""
    return SetEnv.Params(**{"cluster": "prod", "namespace": run.namespace, "deployment": "web", **wish})


async def env(run: Workloads, container: int = 0) -> dict[str, Any]:
    """Return the variables of a container of `web`, by name, in their order."""
    spec = (await run.get("Deployment", "web"))["spec"]["template"]["spec"]
    return {item["name"]: item.get("value", item.get("valueFrom")) for item in spec["containers"][container].get("env", ())}


async def apply(run: Workloads, ctx: LocalContext, **wish: Any) -> Any:
    """Plan and apply; return plan and receipt."""
    plan = await SET_ENV.plan(params(run, **wish), ctx)
    receipt = await SET_ENV.apply(plan, ctx)
    await run.until("Deployment", "web", is_observed)
    return plan, receipt


# --- what it does ------------------------------------------------------------------------------------------------------------


async def test_variables_are_set_in_place_and_nothing_else_changes(run: Workloads, ctx: LocalContext) -> None:
    """A variable keeps its place among the others, a new one comes last, and template and workload are as before otherwise."""
    before = await run("Deployment", "web", WITH_ENV)
    plan, receipt = await apply(run, ctx, set={"LOG_LEVEL": "debug", "DB_POOL_SIZE": 50, "FLAG": True})
    after = await run.get("Deployment", "web")
    assert [(change.field, change.before, change.after) for change in plan.changes] == [
        ("spec.template.spec.containers[app].env[LOG_LEVEL]", "info", "debug"),
        ("spec.template.spec.containers[app].env[DB_POOL_SIZE]", None, "50"),
        ("spec.template.spec.containers[app].env[FLAG]", None, "true"),
    ]
    assert list(await env(run)) == ["LOG_LEVEL", "DB_PASSWORD", "CACHE_URL", "JWT_SECRET", "DB_POOL_SIZE", "FLAG"]
    container = {**after["spec"]["template"]["spec"]["containers"][0], "env": ENV}
    after["spec"]["template"]["spec"]["containers"] = [container]
    assert after["spec"] == before["spec"]
    assert set(after["metadata"]["annotations"]) == {*before["metadata"]["annotations"], ANNOTATION}
    await run.available("Deployment", "web")
    assert (await SET_ENV.verify(plan, receipt, ctx)).health is Health.HEALTHY


async def test_nothing_to_do_is_a_noop_and_writes_nothing(run: Workloads, ctx: LocalContext) -> None:
    """What is already so, an absent variable to remove too, is not written again."""
    before = await run("Deployment", "web", WITH_ENV)
    plan = await SET_ENV.plan(params(run, set={"LOG_LEVEL": "info"}, remove=["NOT_THERE"]), ctx)
    receipt = await SET_ENV.apply(plan, ctx)
    assert (plan.noop, plan.changes, plan.impact.touched, receipt.touched) == (True, (), 0, ())
    assert (await run.get("Deployment", "web"))["metadata"]["generation"] == before["metadata"]["generation"]


async def test_all_named_containers_are_set_and_others_are_not(run: Workloads, ctx: LocalContext) -> None:
    """Several containers need names; those that are named change, in one write."""
    init = {"name": "prepare", "image": behaviours.IMAGE, "command": ["true"]}
    await run("Deployment", "web", [WITH_ENV, behaviours.RUNS, behaviours.RUNS], pod={"initContainers": [init]}, wait=False)
    await run.until("Deployment", "web", is_observed)
    with pytest.raises(PlanRefused, match=r"has 3 containers \(app, app-2, app-3\): say which"):
        await SET_ENV.plan(params(run, set={"A": "1"}), ctx)
    with pytest.raises(PlanRefused, match="no container nginx; it has prepare, app, app-2, app-3"):
        await SET_ENV.plan(params(run, set={"A": "1"}, containers=["nginx"]), ctx)
    before = (await run.get("Deployment", "web"))["metadata"]["generation"]
    await apply(run, ctx, set={"A": "1"}, containers=["app-2", "app-3", "prepare"])
    item = await run.get("Deployment", "web")
    assert [await env(run, number) for number in (1, 2)] == [{"A": "1"}, {"A": "1"}]
    assert item["spec"]["template"]["spec"]["initContainers"][0]["env"] == [{"name": "A", "value": "1"}]
    assert "A" not in await env(run, 0)
    assert item["metadata"]["generation"] == before + 1


async def test_removing_the_last_variable_leaves_the_template_as_if_there_had_been_none(run: Workloads, ctx: LocalContext) -> None:
    """The server drops an empty list; the rehearsal compares with exactly that."""
    await run("Deployment", "web", Behaviour(behaviours.RUNS.script, more={"env": [{"name": "A", "value": "$(B)"}, {"name": "B"}]}))
    plan, _ = await apply(run, ctx, remove=["B"])
    assert "A of container app refers to $(B)" in plan.warnings
    await apply(run, ctx, remove=["A"])
    assert "env" not in (await run.get("Deployment", "web"))["spec"]["template"]["spec"]["containers"][0]


async def test_values_are_literal_and_never_expand_to_another_variable(run: Workloads, ctx: LocalContext) -> None:
    """A label's value `$(DB_PASSWORD)` must not put the password into another variable; Kubernetes makes one `$` of two."""
    value = "$(DB_PASSWORD) costs 5$ or $$"
    await run("Deployment", "web", WITH_ENV)
    await apply(run, ctx, set={"GREETING": value, "PRICE": "5$"})
    found = await env(run)
    assert found["GREETING"] == "$$(DB_PASSWORD) costs 5$$ or $$$$"
    assert found["PRICE"] == "5$"
    again = await SET_ENV.plan(params(run, set={"GREETING": value}), ctx)
    assert again.noop


# --- secrets -----------------------------------------------------------------------------------------------------------------


async def test_values_that_look_secret_stand_in_no_plan_and_no_receipt(run: Workloads, ctx: LocalContext) -> None:
    """What was there before is hidden by its name or by its looks; plans are kept, shown and sent."""
    await run("Deployment", "web", WITH_ENV)
    plan, receipt = await apply(run, ctx, remove=["DB_PASSWORD", "CACHE_URL"])
    assert {change.before for change in plan.changes} == {HIDDEN}
    back = await SET_ENV.undo(plan, receipt, ctx)
    for text in (repr(plan), repr(receipt), repr(back)):
        assert "hunter2" not in text
        assert "s3cr3t" not in text
    note = (await run.get("Deployment", "web"))["metadata"]["annotations"][ANNOTATION]
    assert "hunter2" not in note


def test_secrets_are_refused_as_values_and_taken_as_references() -> None:
    """A value would be readable in the plan, the template and all its revisions; `public` is for names that only sound so."""
    base = {"cluster": "prod", "namespace": "shop", "deployment": "web"}
    for wish in ({"API_TOKEN": "x"}, {"URL": "https://user:pass-word@example.com/"}):
        with pytest.raises(ValidationError, match="keep it in a Secret"):
            SetEnv.Params(**base, set=wish)
    assert SetEnv.Params(**base, set={"TOKEN_TTL": "60"}, public=["TOKEN_TTL"]).set == {"TOKEN_TTL": "60"}
    with pytest.raises(ValidationError, match="keep it in a Secret"):
        SetEnv.Params(**base, set={"TOKEN_TTL": "https://user:pass-word@example.com/"}, public=["TOKEN_TTL"])
    with pytest.raises(ValidationError, match="more than one of"):
        SetEnv.Params(**base, set={"A": "1"}, remove=["A"])
    with pytest.raises(ValidationError, match="say what to do"):
        SetEnv.Params(**base)


def test_s25_references_to_secrets_take_no_value_from_an_alert() -> None:
    """`semantics.md`, 25: `from_secret` is code; `set` is data."""
    schema = SetEnv.Params.model_json_schema()
    assert is_code(schema, ("from_secret", "JWT_SECRET", "name"))
    assert is_code(schema, ("public", 0))
    assert not is_code(schema, ("set", "LOG_LEVEL"))


async def test_reference_is_replaced_only_when_told(run: Workloads, ctx: LocalContext) -> None:
    """A variable that comes from elsewhere has an owner elsewhere."""
    await run("Deployment", "web", WITH_ENV)
    for wish in ({"set": {"JWT_SECRET": "x"}, "public": ["JWT_SECRET"]}, {"remove": ["JWT_SECRET"]}):
        with pytest.raises(PlanRefused, match="JWT_SECRET takes its value from secret auth, key jwt; change it there"):
            await SET_ENV.plan(params(run, **wish), ctx)
    other = {"JWT_SECRET": {"name": "auth-backup", "key": "jwt"}}
    with pytest.raises(PlanRefused, match="JWT_SECRET takes its value from"):
        await SET_ENV.plan(params(run, from_secret=other), ctx)
    plan, _ = await apply(run, ctx, from_secret=other, replace_references=True)
    assert [(change.before, change.after) for change in plan.changes] == [("from secret auth, key jwt", "from secret auth-backup, key jwt")]
    assert any("is not looked up" in warning for warning in plan.warnings)
    assert (await env(run))["JWT_SECRET"] == {"secretKeyRef": {"name": "auth-backup", "key": "jwt"}}
    assert (await SET_ENV.plan(params(run, from_secret=other), ctx)).noop


async def test_variable_that_is_set_twice_is_refused(run: Workloads, ctx: LocalContext) -> None:
    """Which of two counts is nothing to guess about."""
    twice = [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]
    await run("Deployment", "web", Behaviour(behaviours.RUNS.script, more={"env": twice}))
    with pytest.raises(PlanRefused, match="container app: A is set more than once"):
        await SET_ENV.plan(params(run, set={"B": "1"}), ctx)


# --- the world moves ---------------------------------------------------------------------------------------------------------


async def test_undo_goes_back_to_exactly_the_template_before(run: Workloads, ctx: LocalContext) -> None:
    """The same ReplicaSet becomes current again; nobody sees that there was anything in between but by the note."""
    before = await run("Deployment", "web", WITH_ENV)
    plan, receipt = await apply(run, ctx, set={"LOG_LEVEL": "debug"}, remove=["DB_PASSWORD", "CACHE_URL"])
    back = await SET_ENV.undo(plan, receipt, ctx)
    undone = await SET_ENV.apply(back, ctx)
    after = await run.available("Deployment", "web")
    assert after["spec"] == before["spec"]
    assert (await SET_ENV.verify(back, undone, ctx)).health is Health.HEALTHY
    sets = await run.api.list(run.path("ReplicaSet"), {"labelSelector": "app=web"})
    assert len(sets) == 2
    assert (await SET_ENV.reconcile(back, ctx)).settled is Settled.APPLIED


async def test_undo_is_refused_when_somebody_changed_the_template_since(run: Workloads, ctx: LocalContext) -> None:
    """`semantics.md`, 20: undo compares the world first."""
    await run("Deployment", "web", WITH_ENV)
    plan, receipt = await apply(run, ctx, set={"LOG_LEVEL": "debug"})
    await run.release("Deployment", "web", behaviours.logs("another release"), wait=False)
    with pytest.raises(PlanRefused, match="somebody changed the Pod template since"):
        await SET_ENV.undo(plan, receipt, ctx)


async def test_undo_is_refused_when_the_template_before_is_no_longer_kept(run: Workloads, ctx: LocalContext) -> None:
    """The template is kept by its revision alone, never by us."""
    await run("Deployment", "web", WITH_ENV, spec={"revisionHistoryLimit": 0})
    plan, receipt = await apply(run, ctx, set={"LOG_LEVEL": "debug"})
    await run.available("Deployment", "web")

    async def one_left() -> bool:
        return len(await run.api.list(run.path("ReplicaSet"), {"labelSelector": "app=web"})) == 1

    await eventually(one_left, what="the old ReplicaSet is gone")
    with pytest.raises(PlanRefused, match="no longer kept"):
        await SET_ENV.undo(plan, receipt, ctx)


async def test_paused_and_changed_since_are_refused(run: Workloads, ctx: LocalContext) -> None:
    """A person who pauses holds the rollouts; one who releases meanwhile has the last word."""
    await run("Deployment", "web", WITH_ENV)
    plan = await SET_ENV.plan(params(run, set={"LOG_LEVEL": "debug"}), ctx)
    await run.merge("Deployment", "web", {"spec": {"paused": True}})
    await run.until("Deployment", "web", is_observed)
    with pytest.raises(PlanRefused, match="is paused"):
        await SET_ENV.plan(params(run, set={"LOG_LEVEL": "debug"}), ctx)
    with pytest.raises(PreconditionChanged, match="paused"):
        await SET_ENV.apply(plan, ctx)
    await run.merge("Deployment", "web", {"spec": {"paused": False}})
    await run.release("Deployment", "web", behaviours.logs("another release"), wait=False)
    with pytest.raises(PreconditionChanged, match="changed the Pod template"):
        await SET_ENV.apply(plan, ctx)
    assert (await SET_ENV.reconcile(plan, ctx)).settled is Settled.UNKNOWN


async def test_gitops_owner_is_refused_unless_told(run: Workloads, ctx: LocalContext) -> None:
    """Who would put the template back is named."""
    tracking = {"argocd.argoproj.io/tracking-id": f"shop:apps/Deployment:{run.namespace}/web"}
    await run("Deployment", "web", WITH_ENV, annotations=tracking)
    with pytest.raises(PlanRefused, match="managed by Argo CD"):
        await SET_ENV.plan(params(run, set={"LOG_LEVEL": "debug"}), ctx)
    plan = await SET_ENV.plan(params(run, set={"LOG_LEVEL": "debug"}, owner="ignore"), ctx)
    assert "Argo CD" in plan.warnings[0]


async def test_exactly_the_declared_rights_suffice(run: Workloads, ctx: LocalContext, account: Any) -> None:
    """Plan, apply, verify, reconcile and undo work with what the action says it needs, and with nothing else."""
    await run("Deployment", "web", WITH_ENV)
    narrow = await account(rules_for(SetEnv.needed({})))
    plan = await SET_ENV.plan(params(run, set={"LOG_LEVEL": "debug"}), narrow)
    receipt = await SET_ENV.apply(plan, narrow)
    await run.available("Deployment", "web")
    assert (await SET_ENV.verify(plan, receipt, narrow)).health is Health.HEALTHY
    assert (await SET_ENV.reconcile(plan, narrow)).settled is Settled.APPLIED
    await SET_ENV.apply(await SET_ENV.undo(plan, receipt, narrow), narrow)
    assert (await env(run))["LOG_LEVEL"] == "info"
