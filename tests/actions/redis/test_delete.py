"""`redis.delete_keys` and the grammar of its patterns, against real servers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from actions.redis import DeleteKeys
from actions.redis.delete import DeleteKeysParams
from actions.redis.keys import escape_glob, fill, key_bytes, key_text, prefix
from actions.redis.session import Session
from remediator.action import Settled
from remediator.errors import OutcomeUnknown, PlanRefused, PreconditionChanged, TemporaryError
from remediator.model import JSON, Health
from remediator.targets.scope import outside_scope
from remediator.testing import ActionConformance, LocalContext
from tests.actions.redis.worlds import NASTY, context, dump, is_json, terms, to_cluster, to_server, user
from tests.servers.redis import RedisCluster, RedisServer

ACTION = DeleteKeys()


def wish(pattern: str, **more: Any) -> DeleteKeysParams:
    """Return parameters on the connection `cache`."""
    return DeleteKeysParams.model_validate({"connection": "cache", "pattern": pattern} | more)


class TestDeleteKeys(ActionConformance):
    """`redis.delete_keys` conforms, under a user with exactly the declared permissions."""

    action = ACTION

    @pytest.fixture(autouse=True)
    def _on(self, server: RedisServer) -> None:
        self.server = server

    async def prepare(self) -> tuple[LocalContext, Mapping[str, Any]]:
        """Keys of several types, some outside of the pattern."""
        self.server.call("FLUSHALL")
        with self.server.admin(1) as client:
            client.mset({"tts:a:1": "x", "tts:a:2": "x", "other": "x"})
            client.rpush("tts:a:list", "1", "2")
            client.hset("tts:b:1", "f", "v")
        login = user(self.server, terms(self.action.permissions), db=1)
        return context(cache=to_server(self.server, **login)), {"connection": "cache", "pattern": "tts:{voice}:*", "args": {"voice": "a"}}

    async def state(self) -> JSON:
        """All keys."""
        return dump(self.server)

    async def disturb(self) -> None:
        """Delete a key, change the type of one, add one."""
        with self.server.admin(1) as client:
            client.delete("tts:a:1", "tts:a:2")
            client.rpush("tts:a:2", "now a list")
            client.set("tts:a:3", "new")


async def test_s12_only_planned_keys_of_the_same_type_are_deleted(server: RedisServer) -> None:
    """Apply touches a subset of what was approved, never an addition."""
    with server.admin() as client:
        client.mset({"q:1": "x", "q:2": "x", "q:3": "x"})
        ctx = context(cache=to_server(server))
        plan = await ACTION.plan(wish("q:*"), ctx)
        client.delete("q:1", "q:2")
        client.rpush("q:2", "another type")
        client.set("q:4", "an addition")
        receipt = await ACTION.apply(plan, ctx)
    assert sorted(dump(server)["0"]) == ["q:2", "q:4"]
    assert receipt.touched == ("redis:cache/0/key/q:3",)
    assert (await ACTION.verify(plan, receipt, ctx)).health is Health.HEALTHY


async def test_s03_no_match_is_refused(server: RedisServer) -> None:
    """Empty is not everything, and not success either."""
    with pytest.raises(PlanRefused, match="no key of Redis 'cache' matches"):
        await ACTION.plan(wish("nothing:*"), context(cache=to_server(server)))


async def test_more_keys_than_the_ceiling_are_refused(server: RedisServer) -> None:
    """A pattern that takes more than was foreseen is a mistake until a person says otherwise."""
    server.call("MSET", *[word for number in range(11) for word in (f"k:{number}", "x")])
    ctx = context(cache=to_server(server))
    with pytest.raises(PlanRefused, match="more than 10 keys"):
        await ACTION.plan(wish("k:*", max_keys=10), ctx)
    plan = await ACTION.plan(wish("k:*", max_keys=11), ctx)
    assert (plan.impact.touched, plan.impact.total) == (11, 11)


@pytest.mark.parametrize("pattern", ["*", "?*", "[a-z]*", "*:cache"])
async def test_pattern_without_prefix_is_refused(server: RedisServer, pattern: str) -> None:
    """What starts with a wildcard may take any key of any application."""
    server.call("SET", "k", "x")
    with pytest.raises(PlanRefused, match="starts with a wildcard"):
        await ACTION.plan(wish(pattern), context(cache=to_server(server)))


async def test_s03_empty_argument_is_refused(server: RedisServer) -> None:
    """`{tenant}*` with an empty tenant would be `*`."""
    with pytest.raises(PlanRefused, match="'tenant' of the key pattern is empty"):
        await ACTION.plan(wish("{tenant}*", args={"tenant": ""}), context(cache=to_server(server)))


def test_unused_argument_is_an_error_when_rules_load() -> None:
    """A misspelt place would leave the pattern without its value."""
    with pytest.raises(ValidationError, match="no place for tenat"):
        wish("t:{tenant}:*", args={"tenat": "x"})


async def test_exact_key_needs_no_scan(server: RedisServer) -> None:
    """A queue is deleted by its name; names with glob characters are written with a backslash or as arguments."""
    server.call("RPUSH", "transcoding:queue", "1")
    server.call("RPUSH", "transcoding:[x]", "1")
    ctx = context(cache=to_server(server))
    await ACTION.apply(await ACTION.plan(wish("transcoding:queue"), ctx), ctx)
    await ACTION.apply(await ACTION.plan(wish("transcoding:{q}", args={"q": "[x]"}), ctx), ctx)
    assert dump(server) == {}
    assert "cmdstat_scan" not in server.info("commandstats")


async def test_s25_argument_is_data_in_a_pattern(server: RedisServer) -> None:
    """A label with wildcards, spaces, line breaks and a NUL means exactly itself."""
    with server.admin() as client:
        client.set(f"t:{NASTY}:1", "x")
        client.mset({"t:a:1": "x", "t:aXbYcd^-e \r\nFLUSHALL\r\n:1": "x"})
        ctx = context(cache=to_server(server))
        plan = await ACTION.plan(wish("t:{tenant}:*", args={"tenant": NASTY}), ctx)
        assert len(plan.targets) == 1
        assert is_json(dict(plan.intent))
        assert not any(char in plan.targets[0].id for char in "\r\n\x00")
        await ACTION.apply(plan, ctx)
        assert sorted(client.keys("*")) == [b"t:a:1", b"t:aXbYcd^-e \r\nFLUSHALL\r\n:1"]


async def test_keys_that_are_no_text_are_deleted_exactly(server: RedisServer) -> None:
    """Keys are bytes; a plan shows what can't be printed as escapes and finds it again."""
    with server.admin() as client:
        client.mset({b"b:\xff\x00": "x", b"b:\\xff\\x00": "x"})
        ctx = context(cache=to_server(server))
        plan = await ACTION.plan(wish("b:*"), ctx)
        assert sorted(one.scope["key"] for one in plan.targets) == ["b:\\\\xff\\\\x00", "b:\\xff\\x00"]
        await ACTION.apply(plan, ctx)
    assert dump(server) == {}


async def test_s09_each_key_is_held_against_the_scope(server: RedisServer) -> None:
    """A glob may reach keys outside of the connection's scope; the targets show each."""
    server.call("MSET", "cache:1", "x", "cachet", "x")
    plan = await ACTION.plan(wish("cache*"), context(cache=to_server(server)))
    assert "cachet" in str(outside_scope(plan.targets, {"key": ("cache:*",), "db": ("0",)}))


async def test_s17_queue_filled_again_after_a_lost_answer_is_not_called_untouched(server: RedisServer) -> None:
    """The queue was deleted, the answer lost, and producers went on: the key exists, but *not applied* would be a lie."""
    server.call("RPUSH", "jobs", "old")
    ctx = context(cache=to_server(server))
    plan = await ACTION.plan(wish("jobs"), ctx)
    await ACTION.apply(plan, ctx)
    server.call("RPUSH", "jobs", "new")
    assert (await ACTION.reconcile(plan, ctx)).settled is Settled.UNKNOWN
    with pytest.raises(PreconditionChanged, match="this very step"):
        await ACTION.apply(plan, ctx)
    assert server.call("LRANGE", "jobs", 0, -1) == [b"new"]


async def test_s17_lost_answer_is_found_later(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server stops before it answers; when it goes on, the deletion runs and can be told."""
    server.call("MSET", "k:1", "x", "k:2", "x")
    ctx = context(cache=to_server(server, command_timeout="300ms"))
    plan = await ACTION.plan(wish("k:*"), ctx)
    original = Session.tell

    async def tell(self: Session, *words: Any) -> Any:
        with server.frozen():
            return await original(self, *words)

    monkeypatch.setattr(Session, "tell", tell)
    with pytest.raises(OutcomeUnknown):
        await ACTION.apply(plan, ctx)
    found = await ACTION.reconcile(plan, ctx)
    assert found.settled is Settled.APPLIED
    assert found.receipt is not None
    assert len(found.receipt.touched) == 2
    assert dump(server) == {}


async def test_cluster_keys_are_found_on_all_primaries(cluster: RedisCluster) -> None:
    """Keys of several slots and servers are listed together and deleted slot by slot."""
    for number in range(3):
        for nth in range(2):
            cluster.pair(number)[0].call("SET", f"tts:{cluster.tag(number, nth)}:1", "x")
    ctx = context(cache=to_cluster(cluster))
    plan = await ACTION.plan(wish("tts:*"), ctx)
    assert len(plan.targets) == 6
    receipt = await ACTION.apply(plan, ctx)
    assert len(receipt.touched) == 6
    assert [dump(cluster.pair(number)[0]) for number in range(3)] == [{}, {}, {}]
    assert (await ACTION.verify(plan, receipt, ctx)).health is Health.HEALTHY
    assert (await ACTION.reconcile(plan, ctx)).settled is Settled.APPLIED


async def test_s18_the_kill_switch_ends_a_deletion_between_two_slots(cluster: RedisCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thrown after the first slot's keys are gone: all others are left, and the receipt says how many and why."""
    monkeypatch.setattr("actions.redis.delete._FRESH", 0.0)
    for number in range(3):
        cluster.pair(number)[0].call("SET", f"tts:{cluster.tag(number)}:1", "x")
    answers = iter(["paused by anna", None, "paused by anna", None])
    ctx = LocalContext({"cache": to_cluster(cluster)}, halted=lambda: next(answers))
    plan = await ACTION.plan(wish("tts:*"), ctx)
    with pytest.raises(TemporaryError, match=r"^stopped: paused by anna$"):
        await ACTION.apply(plan, ctx)
    receipt = await ACTION.apply(plan, ctx)
    assert len(receipt.touched) == 1
    assert receipt.data["failed"] == ["2 keys: stopped: paused by anna"]
    assert (await ACTION.verify(plan, receipt, ctx)).health is Health.UNHEALTHY
    assert sum(dump(cluster.pair(number)[0]) == {} for number in range(3)) == 1


async def test_ten_thousand_keys_go_in_one_script(server: RedisServer) -> None:
    """The largest plan works."""
    with server.admin() as client:
        client.mset({f"k:{number}": "x" for number in range(10_000)})
    ctx = context(cache=to_server(server))
    plan = await ACTION.plan(wish("k:*", max_keys=10_000), ctx)
    receipt = await ACTION.apply(plan, ctx)
    assert len(receipt.touched) == 10_000
    assert len(plan.summary) < 1000
    assert dump(server) == {}


@given(st.binary(max_size=40))
def test_key_text_is_read_back(key: bytes) -> None:
    """Every key survives being written as text, and the text prints."""
    written = key_text(key)
    assert key_bytes(written) == key
    assert all(char.isprintable() for char in written)


@given(
    value=st.text(st.sampled_from("ab*?[]\\^-\n {}"), min_size=1, max_size=8), other=st.text(st.sampled_from("ab*?[]\\^-\n {}"), max_size=8)
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
def test_escaped_value_matches_itself_only(server: RedisServer, value: str, other: str) -> None:
    """Redis' own matcher agrees: the escaped value matches the value, and nothing else."""
    with server.admin() as client:
        client.flushdb()
        client.mset({f"k:{value}": "x", f"k:{other}": "x"})
        assert client.keys("k:" + escape_glob(value)) == [f"k:{value}".encode()]


def test_values_are_filled_in_one_pass() -> None:
    """A value that looks like a place is not filled again, and braces of hash tags stay."""
    assert fill("{a}:{b}:{tag}", {"a": "{b}", "b": "x"}) == "{b}:x:{tag}"
    assert prefix(fill("{a}*", {"a": "*"})) == "*"
