"""`kubernetes.env` on a real API server: what a container would get that starts now, and never what a Secret holds."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from pydantic import ValidationError

from actions.kubernetes import Env
from remediator.errors import CheckFailed
from remediator.model import encode_value
from remediator.testing import LocalContext
from tests.kubernetes.looking import look, some
from tests.servers.kube import behaviours
from tests.servers.kube.behaviours import Behaviour
from tests.servers.kube.workloads import Workloads

SECRET = "correct-horse-battery-staple"


def reference(kind: str, name: str, key: str, **more: Any) -> dict[str, Any]:
    """Return a variable's `valueFrom`."""
    return {f"{kind}KeyRef": {"name": name, "key": key, **more}}


def container(*env: dict[str, Any], env_from: list[dict[str, Any]] | None = None) -> Behaviour:
    """Return a container with these variables; it need not start."""
    return Behaviour(behaviours.RUNS.script, more={"env": list(env), "envFrom": env_from or []})


async def secret(run: Workloads, name: str, **data: str) -> None:
    """Make a Secret."""
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
    await run.create("Secret", {"metadata": {"name": name}, "data": encoded})


async def config_map(run: Workloads, name: str, **data: str) -> None:
    """Make a ConfigMap."""
    await run.create("ConfigMap", {"metadata": {"name": name}, "data": data})


async def env(ctx: LocalContext, namespace: str, key: str, **more: Any) -> dict[str, Any]:
    """Look a variable of Deployment `api` up; whatever is found, a Secret's value is not in it."""
    facts = dict(await look(Env, ctx, namespace=namespace, **{"deployment": "api", "key": key, **more}))
    written = json.dumps(encode_value(facts))
    assert SECRET not in written
    assert base64.b64encode(SECRET.encode()).decode() not in written
    assert facts.pop("found") is True
    return facts


async def test_literals_may_be_compared(ctx: LocalContext, namespace: str, run: Workloads) -> None:
    """A literal is there; what refers to other variables is only known once a container starts."""
    variables = [
        {"name": "MODE", "value": "blue"},
        {"name": "EMPTY"},
        {"name": "MADE", "value": "http://$(HOST)/"},
        {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
        {"name": "MODE", "value": "green"},
    ]
    await run("Deployment", "api", container(*variables), replicas=0, wait=False)
    there = {"present": True, "source": "literal", "resolves": True, "missing": []}
    assert await env(ctx, namespace, "MODE", equals="green") == {**there, "empty": False, "equal": True}
    assert await env(ctx, namespace, "MODE", equals="blue") == {**there, "empty": False, "equal": False}
    assert await env(ctx, namespace, "EMPTY") == {**there, "empty": True}
    assert await env(ctx, namespace, "MADE", equals="http://$(HOST)/") == there
    assert await env(ctx, namespace, "POD") == {**there, "source": "field"}
    assert await env(ctx, namespace, "CPU") == {**there, "source": "resource"}
    assert await env(ctx, namespace, "mode") == {"present": False, "resolves": False, "missing": []}


async def test_a_secret_is_looked_into_but_never_shown(ctx: LocalContext, namespace: str, run: Workloads) -> None:
    """Whether the key is there, and whether it is empty; not even `equals` tells its value."""
    await secret(run, "api", JWT=SECRET, BLANK="")
    variables = [
        {"name": "JWT_SECRET", "valueFrom": reference("secret", "api", "JWT")},
        {"name": "BLANK", "valueFrom": reference("secret", "api", "BLANK")},
        {"name": "LOST_KEY", "valueFrom": reference("secret", "api", "GONE")},
        {"name": "LOST", "valueFrom": reference("secret", "gone", "JWT")},
        {"name": "MAYBE", "valueFrom": reference("secret", "gone", "JWT", optional=True)},
    ]
    await run("Deployment", "api", container(*variables), replicas=0, wait=False)
    there = {"present": True, "source": "secret", "object": "secret/api", "optional": False}
    jwt = await env(ctx, namespace, "JWT_SECRET", equals=SECRET)
    assert jwt == {**there, "object_key": "JWT", "resolves": True, "missing": [], "empty": False}
    blank = await env(ctx, namespace, "BLANK")
    assert (blank["resolves"], blank["empty"]) == (True, True)
    lost = {**there, "object_key": "GONE", "resolves": False, "missing": ["secret/api#GONE"]}
    assert await env(ctx, namespace, "LOST_KEY") == lost
    gone = {**there, "object": "secret/gone", "object_key": "JWT", "resolves": False, "missing": ["secret/gone"]}
    assert await env(ctx, namespace, "LOST") == gone
    assert await env(ctx, namespace, "MAYBE") == {**gone, "optional": True}
    unread = await env(ctx, namespace, "JWT_SECRET", resolve=False)
    assert unread == {**there, "object_key": "JWT"}


async def test_a_config_maps_value_may_be_compared(ctx: LocalContext, namespace: str, run: Workloads) -> None:
    """It is no secret."""
    await config_map(run, "api", origins="https://shop.example")
    await run(
        "Deployment", "api", container({"name": "CORS", "valueFrom": reference("configMap", "api", "origins")}), replicas=0, wait=False
    )
    facts = await env(ctx, namespace, "CORS", equals="https://shop.example")
    assert some(facts, "source", "object", "object_key", "resolves", "equal", "empty") == {
        "source": "config_map",
        "object": "configmap/api",
        "object_key": "origins",
        "resolves": True,
        "equal": True,
        "empty": False,
    }


async def test_whole_objects_give_their_keys(ctx: LocalContext, namespace: str, run: Workloads) -> None:
    """Of several the last one counts, with its prefix; what env itself names comes before all of them."""
    await secret(run, "first", KEY="one", OTHER="x", NAMED="y")
    await config_map(run, "second", KEY="two")
    await config_map(run, "third", KEY="three")
    env_from = [
        {"secretRef": {"name": "first"}},
        {"configMapRef": {"name": "second"}},
        {"prefix": "APP_", "configMapRef": {"name": "third"}},
        {"configMapRef": {"name": "nowhere", "optional": True}},
    ]
    await run("Deployment", "api", container({"name": "NAMED", "value": "literal"}, env_from=env_from), replicas=0, wait=False)
    key = await env(ctx, namespace, "KEY", equals="two")
    assert some(key, "object", "resolves", "equal", "missing") == {
        "object": "configmap/second",
        "resolves": True,
        "equal": True,
        "missing": ["configmap/nowhere"],
    }
    prefixed = await env(ctx, namespace, "APP_KEY", equals="three")
    assert some(prefixed, "object", "object_key", "equal") == {"object": "configmap/third", "object_key": "KEY", "equal": True}
    other = await env(ctx, namespace, "OTHER", equals="x")
    assert some(other, "source", "resolves", "equal") == {"source": "secret", "resolves": True}
    assert (await env(ctx, namespace, "NAMED"))["source"] == "literal"


async def test_s03_a_missing_object_leaves_it_open_what_was_in_it(ctx: LocalContext, namespace: str, run: Workloads) -> None:
    """`semantics.md`, 3: whether a Secret that is gone had the key can't be told; that no container starts without it can."""
    await run("Deployment", "api", container(env_from=[{"secretRef": {"name": "gone"}}]), replicas=0, wait=False)
    assert await env(ctx, namespace, "JWT_SECRET") == {"resolves": False, "missing": ["secret/gone"]}
    assert await env(ctx, namespace, "JWT_SECRET", resolve=False) == {}
    assert await look(Env, ctx, namespace=namespace, deployment="away", key="X") == {"found": False}


async def test_env_of_the_container_that_is_meant(ctx: LocalContext, namespace: str, run: Workloads) -> None:
    """Of several containers, the one that is named."""
    await run("Deployment", "api", [container({"name": "A", "value": "1"}), container()], replicas=0, wait=False)
    with pytest.raises(CheckFailed, match="app, app-2: say which"):
        await look(Env, ctx, namespace=namespace, deployment="api", key="A")
    assert (await env(ctx, namespace, "A", container="app"))["present"] is True
    assert (await env(ctx, namespace, "A", container="app-2"))["present"] is False


async def test_only_the_object_in_question_is_read(account, ctx: LocalContext, namespace: str, run: Workloads) -> None:
    """A Role with `resourceNames` is enough; a literal needs no right on Secrets at all, and a refusal is no missing key."""
    await secret(run, "api", JWT=SECRET)
    variables = ({"name": "MODE", "value": "blue"}, {"name": "JWT_SECRET", "valueFrom": reference("secret", "api", "JWT")})
    await run("Deployment", "api", container(*variables), replicas=0, wait=False)
    deployments = {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["get"]}
    narrow = await account([{"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["api"], "verbs": ["get"]}, deployments])
    assert (await env(narrow, namespace, "JWT_SECRET"))["resolves"] is True
    without = await account([deployments])
    assert (await env(without, namespace, "MODE"))["resolves"] is True
    with pytest.raises(CheckFailed, match=r'secrets "api" is forbidden: .* cannot get resource "secrets"'):
        await look(Env, without, namespace=namespace, deployment="api", key="JWT_SECRET")


def test_keys_are_names_of_variables() -> None:
    """An equals sign or a line break is none."""
    for bad in ("", "A=B", "A\nB", "ä", "x" * 254):
        with pytest.raises(ValidationError):
            Env.Params(cluster="prod", namespace="shop", deployment="api", key=bad)
