"""`redis.config` and `redis.config_set` against a real server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from pydantic import ValidationError

from actions.redis import Config, ConfigSet
from actions.redis.config import SAFE, ConfigParams, ConfigSetParams
from remediator.action import Settled
from remediator.errors import CheckFailed, PlanRefused, PreconditionChanged
from remediator.model import JSON, Health
from remediator.testing import ActionConformance, LocalContext, assert_facts_match
from tests.actions.redis.worlds import context, terms, to_cluster, to_server, user
from tests.servers.redis import RedisCluster, RedisServer

ACTION = ConfigSet()


def wish(parameter: str, value: str | int) -> ConfigSetParams:
    """Return parameters on the connection `cache`."""
    return ConfigSetParams(connection="cache", parameter=parameter, value=value)


def setting(server: RedisServer, name: str) -> str:
    """Return a parameter's value."""
    return str(server.raw("CONFIG", "GET", name)[1].decode())


class TestConfigSet(ActionConformance):
    """`redis.config_set` conforms, under a user with exactly the declared permissions."""

    action = ACTION

    @pytest.fixture(autouse=True)
    def _on(self, server: RedisServer) -> None:
        self.server = server

    async def prepare(self) -> tuple[LocalContext, Mapping[str, Any]]:
        """Set a limit that is too small for long."""
        self.server.call("CONFIG", "SET", "maxmemory", "64mb")
        login = user(self.server, terms(self.action.permissions), db=1)
        return context(cache=to_server(self.server, **login)), {"connection": "cache", "parameter": "maxmemory", "value": "128mb"}

    async def state(self) -> JSON:
        """Everything that CONFIG GET shows."""
        flat = self.server.raw("CONFIG", "GET", "*")
        return dict(zip(map(str, flat[::2]), map(str, flat[1::2]), strict=True))

    async def disturb(self) -> None:
        """Somebody sets another limit."""
        self.server.call("CONFIG", "SET", "maxmemory", "96mb")


@pytest.mark.parametrize(
    ("parameter", "value", "stored"),
    [
        ("maxmemory", "1gb", "1073741824"),
        ("maxmemory-policy", "ALLKEYS-LRU", "allkeys-lru"),
        ("slowlog-log-slower-than", 5000, "5000"),
        ("save", "900 1 300 10", "900 1 300 10"),
        ("save", "", ""),
        ("timeout", "300", "300"),
        ("stop-writes-on-bgsave-error", "no", "no"),
        ("repl-backlog-size", "2mb", "2097152"),
    ],
)
async def test_values_are_planned_as_the_server_stores_them(server: RedisServer, parameter: str, value: str | int, stored: str) -> None:
    """`1gb` is compared as 1073741824, so that verification and undo see what CONFIG GET says."""
    before = setting(server, parameter)
    ctx = context(cache=to_server(server))
    plan = await ACTION.plan(wish(parameter, value), ctx)
    receipt = await ACTION.apply(plan, ctx)
    try:
        assert setting(server, parameter) == stored
        assert (plan.changes[0].before, plan.changes[0].after) == (before, stored)
        assert (await ACTION.verify(plan, receipt, ctx)).health is Health.HEALTHY
    finally:
        server.call("CONFIG", "SET", parameter, before)


async def test_every_safe_parameter_is_known_to_the_server(server: RedisServer) -> None:
    """The list holds no misspelt names, and nothing that names paths, modules, credentials or replication."""
    missing = [name for name in SAFE if not server.raw("CONFIG", "GET", name)]
    assert missing == []
    assert not {"dir", "dbfilename", "requirepass", "masterauth", "aclfile", "bind", "port", "replicaof", "loadmodule"} & set(SAFE)


@pytest.mark.parametrize(
    "parameter", ["dir", "dbfilename", "requirepass", "masterauth", "loadmodule", "rename-command", "bind", "maxmemory timeout"]
)
def test_dangerous_parameters_are_refused_when_rules_load(parameter: str) -> None:
    """What may lead to code, secrets or a lost server is never set."""
    with pytest.raises(ValidationError, match="not set by this action"):
        wish(parameter, "x")


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("maxmemory", "2gb\r\nCONFIG SET dir /"),
        ("maxmemory", "-1"),
        ("maxmemory", "2 gb"),
        ("maxclients", "1"),
        ("save", "900"),
        ("timeout", "x"),
    ],
)
async def test_values_of_another_form_are_refused(server: RedisServer, parameter: str, value: str) -> None:
    """A value is read before it is sent."""
    with pytest.raises(PlanRefused, match=parameter):
        await ACTION.plan(wish(parameter, value), context(cache=to_server(server)))


@pytest.mark.parametrize(("value", "why"), [("0", "no limit"), ("1", "would evict"), ("999999gb", "swap or kill")])
async def test_maxmemory_that_hurts_at_once_is_refused(server: RedisServer, value: str, why: str) -> None:
    """Neither no limit, nor less than is in use, nor more than the host has."""
    server.call("CONFIG", "SET", "maxmemory", "64mb")
    with pytest.raises(PlanRefused, match=why):
        await ACTION.plan(wish("maxmemory", value), context(cache=to_server(server)))


async def test_value_already_in_force_is_a_noop(server: RedisServer) -> None:
    """There is nothing to do, and apply does nothing."""
    server.call("CONFIG", "SET", "timeout", 77)
    ctx = context(cache=to_server(server))
    plan = await ACTION.plan(wish("timeout", 77), ctx)
    assert plan.noop
    server.call("CONFIG", "RESETSTAT")
    await ACTION.apply(plan, ctx)
    assert "cmdstat_config|set" not in server.info("commandstats")


async def test_s12_restart_between_plan_and_apply_is_noticed(server: RedisServer) -> None:
    """Another process may have another configuration file."""
    ctx = context(cache=to_server(server))
    plan = await ACTION.plan(wish("timeout", 99), ctx)
    server.kill()
    server.start()
    with pytest.raises(PreconditionChanged, match="restarted or replaced"):
        await ACTION.apply(plan, ctx)


async def test_undo_is_refused_when_somebody_changed_it_since(server: RedisServer) -> None:
    """Undo compares the world first."""
    ctx = context(cache=to_server(server))
    plan = await ACTION.plan(wish("timeout", 99), ctx)
    receipt = await ACTION.apply(plan, ctx)
    server.call("CONFIG", "SET", "timeout", 5)
    with pytest.raises(PlanRefused, match="somebody changed it"):
        await ACTION.undo(plan, receipt, ctx)
    assert (await ACTION.reconcile(plan, ctx)).settled is Settled.UNKNOWN


async def test_lowering_capacity_is_marked_as_shrinking(server: RedisServer) -> None:
    """The guard *never shrink in an incident* needs to know."""
    server.call("CONFIG", "SET", "maxmemory", "128mb")
    ctx = context(cache=to_server(server))
    assert (await ACTION.plan(wish("maxmemory", "64mb"), ctx)).impact.shrinks
    assert not (await ACTION.plan(wish("maxmemory", "256mb"), ctx)).impact.shrinks


async def test_cluster_is_refused(cluster: RedisCluster) -> None:
    """Nobody could say which of the nodes it would be."""
    with pytest.raises(Exception, match="is a cluster") as caught:
        await ACTION.plan(wish("timeout", 1), context(cache=to_cluster(cluster)))
    assert type(caught.value).__name__ == "PermanentError"


async def test_check_reads_a_parameter(server: RedisServer) -> None:
    """Values are text; whole numbers come as numbers, too."""
    server.call("CONFIG", "SET", "maxmemory", "1mb")
    ctx = context(cache=to_server(server))
    facts = await Config().run(ConfigParams(connection="cache", parameter="maxmemory"), ctx)
    assert facts == {"found": True, "value": "1048576", "number_found": True, "number": 1048576}
    assert_facts_match(Config, facts)
    facts = await Config().run(ConfigParams(connection="cache", parameter="save"), ctx)
    assert facts == {"found": True, "value": "", "number_found": False}
    facts = await Config().run(ConfigParams(connection="cache", parameter="no-such-thing"), ctx)
    assert facts == {"found": False, "number_found": False}


@pytest.mark.parametrize("parameter", ["requirepass", "masterauth", "masteruser", "tls-key-file-pass", "*", "max*", "Maxmemory", "a b"])
def test_secret_parameters_and_wildcards_are_never_read(parameter: str) -> None:
    """`CONFIG GET *` would show the passwords."""
    with pytest.raises(ValidationError):
        ConfigParams(connection="cache", parameter=parameter)


async def test_managed_service_without_config_fails_the_check(server: RedisServer) -> None:
    """Where CONFIG is not allowed the facts are unknown, and the message names the permission."""
    login = user(server, (["+client|setname", "+select"], []))
    with pytest.raises(CheckFailed, match=r"lacks \+config\|get"):
        await Config().run(ConfigParams(connection="cache", parameter="timeout"), context(cache=to_server(server, **login)))
