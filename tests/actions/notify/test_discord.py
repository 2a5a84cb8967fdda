"""`notify.discord`: no alert can mention, every message fits Discord's limits, and its rate limit is kept."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from actions.notify.discord import Discord, DiscordConnection, cut, escape, render, size
from actions.notify.wording import Kind, Words
from remediator.errors import OutcomeUnknown, PermanentError, PlanRefused, RemediatorError, TemporaryError
from remediator.model import JSON, Receipt, canonical, to_json
from remediator.testing import ActionConformance, LocalContext
from tests.servers.http import Misbehaviour, Received, Reply
from tests.servers.receivers import DiscordDouble, rings

VALUES: Mapping[str, Any] = {
    "kind": "page",
    "incident": "INC-20260101-001",
    "severity": "sev1",
    "summary": "Uploads fail",
    "rule": "video-uploads",
    "target": "deployment/video/api",
    "runbook": "https://wiki.example.com/uploads_(video)",
    "opened_at": "2026-01-01T10:15:00+00:00",
    "text": "SEV1 INC-20260101-001: Uploads fail",
}


@pytest.fixture
async def discord() -> AsyncIterator[DiscordDouble]:
    """Start a Discord that takes what is documented and nothing else."""
    async with DiscordDouble() as server:
        yield server


def connect(directory: Path, url: str) -> DiscordConnection:
    """Return a connection whose secret is `url`."""
    (directory / "hook").write_text(f"{url}\n")
    mentions = {"on-call-primary": "<@&111111>", "alice": "<@222222>"}
    return DiscordConnection.model_validate({"url": {"file": str(directory / "hook")}, "mentions": mentions, "timeout": "1s"})


async def tell(server: DiscordDouble, directory: Path, values: Mapping[str, Any] = VALUES, **wish: Any) -> Receipt:
    """Plan and apply one message."""
    ctx = LocalContext({"incidents": connect(directory, server.url + DiscordDouble.PATH)}, values=values, key="m/1")
    raw = {"connection": "incidents", "text": values.get("text", "x"), "mentions": ["on-call-primary"]} | wish
    try:
        return await Discord().apply(await Discord().plan(Discord.Params.model_validate(raw), ctx), ctx)
    finally:
        await ctx.aclose()


class TestConformance(ActionConformance):
    """`notify.discord` keeps the contract of actions."""

    action = Discord()
    server: ClassVar[DiscordDouble] = DiscordDouble()

    @pytest.fixture(autouse=True)
    def _directory(self, tmp_path: Path) -> None:
        self.directory = tmp_path

    async def prepare(self) -> tuple[LocalContext, Mapping[str, Any]]:
        """Start a Discord, on the port that it had."""
        self.server.taken.clear()
        await self.server.start()
        connection = connect(self.directory, self.server.url + DiscordDouble.PATH)
        return LocalContext({"incidents": connection}, values=VALUES), {"connection": "incidents", "text": "x"}

    async def state(self) -> JSON:
        """Every message that was taken."""
        return [request.body.decode() for request in self.server.taken]

    async def disturb(self) -> None:
        """Take the receiver away."""
        self.server.set(DiscordDouble.PATH, Reply(404, {"message": "Unknown Webhook", "code": 10015}))

    async def cleanup(self) -> None:
        """Stop it."""
        await self.server.stop()
        self.server.replies.clear()


async def test_page_rings_the_role_and_shows_the_facts(discord: DiscordDouble, tmp_path: Path) -> None:
    """The mention stands before the embed, where it rings; the embed has headline, text, facts and links."""
    await tell(discord, tmp_path, links={"dashboard": "https://grafana.example.com/d/1"})
    message = discord.taken[0].json
    assert rings(message) == {"roles:111111"}
    assert message["content"] == "<@&111111> SEV1 INC-20260101-001: Uploads fail"
    (embed,) = message["embeds"]
    assert embed["title"] == "🚨 SEV1 · INC-20260101-001 · video-uploads"
    assert embed["timestamp"] == "2026-01-01T10:15:00+00:00"
    fields = {field["name"]: field["value"] for field in embed["fields"]}
    assert fields["Target"] == "deployment/video/api"
    links = "[runbook](https://wiki.example.com/uploads_%28video%29) · [dashboard](https://grafana.example.com/d/1)"
    assert fields["Links"] == links


@pytest.mark.parametrize("kind", list(Kind))
async def test_each_kind_rings_only_when_somebody_is_wanted(discord: DiscordDouble, tmp_path: Path, kind: Kind) -> None:
    """Nobody is woken by an update, an acknowledgement or the end."""
    await tell(discord, tmp_path, {**VALUES, "kind": kind.value})
    message = discord.taken[0].json
    assert bool(rings(message)) == (kind in {Kind.PAGE, Kind.APPROVAL, Kind.DIGEST})


EVIL = [
    "@everyone",
    "@here",
    "<@&111111>",
    "<@222222>",
    "<@!222222>",
    "[runbook](https://evil.example.com)",
    "https://evil.example.com",
    "<id:1>",
]


@pytest.mark.parametrize("evil", EVIL)
async def test_text_of_an_alert_cannot_ring_or_link(discord: DiscordDouble, tmp_path: Path, evil: str) -> None:
    """Not even somebody who may be mentioned: only the operator's list rings, and only where it was asked for."""
    values = {**VALUES, "summary": evil, "text": evil, "rule": evil, "target": evil, "state": evil}
    await tell(discord, tmp_path, values, mentions=[])
    message = discord.taken[0].json
    assert rings(message) == set()
    assert message["allowed_mentions"] == {"parse": []}
    shown = json.dumps(message["embeds"], ensure_ascii=False) + message["content"]
    assert not re.search(r"(?<!\\)\[[^\]]*\]\(https://evil|https?://evil|@everyone|@here|(?<!\\)(?<!\\\\)<@", shown)


def test_escaped_text_reads_as_it_was() -> None:
    """Markdown is shown, not rendered."""
    assert escape("*a* _b_ ~c~ `d` ||e||\n> f\n- g\n1. h\n# i") == (
        "\\*a\\* \\_b\\_ \\~c\\~ \\`d\\` \\|\\|e\\|\\|\n\\> f\n\\- g\n1\\. h\n\\# i"
    )


@given(st.text(max_size=50), st.integers(2, 40))
def test_cut_text_fits_and_ends_in_no_half_escape(text: str, limit: int) -> None:
    """Characters beyond the basic plane count twice, as in the strictest reading."""
    short = cut(escape(text), limit)
    assert size(short) <= limit
    if short.endswith("…") and not text.endswith("…"):
        assert (len(short[:-1]) - len(short[:-1].rstrip("\\"))) % 2 == 0


@given(
    values=st.fixed_dictionaries(
        {name: st.text(max_size=7_000) for name in ("summary", "rule", "target", "severity", "remedy", "runbook")}
    ),
    text=st.text(max_size=9_000),
    kind=st.sampled_from([None, *Kind]),
)
def test_no_values_break_discords_limits(values: dict[str, str], text: str, kind: Kind | None) -> None:
    """Whatever an alert says: 2000, 256, 4096, 1024 and 6000 hold, and nobody but the listed is rung."""
    links = {f"{number}-{'x' * 90}": f"https://example.com/{'y' * 900}" for number in range(10)}
    payload = render(Words(kind, values["summary"] or "s", text), ["<@&111111>"], links, values | {"incident": "INC-1"})
    wire = json.dumps(payload).encode()
    answer = DiscordDouble().judge(Received("POST", f"{DiscordDouble.PATH}?wait=true", {"content-type": "application/json"}, wire))
    assert answer.status == 200, answer.body
    assert rings(payload) == {"roles:111111"}


def test_longest_text_fits() -> None:
    """4096 for the description, 6000 for the embed with its fields."""
    values = {"incident": "INC-1", "severity": "sev1", **dict.fromkeys(("target", "state", "remedy", "acknowledged_by"), "*" * 500)}
    payload = render(Words(Kind.PAGE, "s", "*" * 20_000), [], {}, values)
    embed = payload["embeds"][0]
    assert size(embed["description"]) <= 4_096
    answer = DiscordDouble().judge(
        Received("POST", f"{DiscordDouble.PATH}?wait=true", {"content-type": "application/json"}, json.dumps(payload).encode())
    )
    assert answer.status == 200, answer.body


async def test_channel_of_customers_shows_nothing_internal(discord: DiscordDouble, tmp_path: Path) -> None:
    """With a template for customers, headline, facts and links stay out as well."""
    values = {**VALUES, "page": "INC-20260101-001", "state": "applying"}
    await tell(discord, tmp_path, values, mentions=[], template="sre-customers", fields={"service": "Sync"})
    (request,) = discord.taken
    assert request.json["embeds"][0]["title"] == "Service Disruption Notification"
    for word in ("INC-", "video", "wiki", "Uploads", "applying"):
        assert word not in request.body.decode()


async def test_only_allowed_mentions(discord: DiscordDouble, tmp_path: Path) -> None:
    """A name that the connection does not list mentions nobody: the plan is refused and names those it may."""
    with pytest.raises(PlanRefused, match=r"\['everyone'\].*\['alice', 'on-call-primary'\]"):
        await tell(discord, tmp_path, mentions=["everyone"])
    assert discord.received == []


@pytest.mark.parametrize("text", ["@everyone", "@here", "<@&abc>", "<#123456>", "<@&123456> and more", "123456"])
def test_mention_of_the_settings_is_a_role_or_a_person(text: str) -> None:
    """Everybody can't be mentioned: one alert rule written badly would wake a company."""
    with pytest.raises(ValidationError, match="no mention"):
        DiscordConnection.model_validate({"url": {"env": "HOOK"}, "mentions": {"a": text}})


async def test_it_waits_until_the_message_is_kept(discord: DiscordDouble, tmp_path: Path) -> None:
    """Without `wait` Discord says 204 also to a message that it drops; a thread in the secret's query stays."""
    connection = connect(tmp_path, f"{discord.url}{DiscordDouble.PATH}?thread_id=42")
    ctx = LocalContext({"incidents": connection}, values=VALUES)
    receipt = await Discord().apply(await Discord().plan(Discord.Params(connection="incidents", text="x"), ctx), ctx)
    await ctx.aclose()
    assert receipt.data == {"status": 200}
    assert discord.taken[0].target.endswith("?thread_id=42&wait=true")


async def test_rate_limit_is_kept(discord: DiscordDouble, tmp_path: Path) -> None:
    """After the last message of a window the next one waits for its end; a 429 is waited for, and the message is posted once."""
    window = {"X-RateLimit-Limit": "5", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset-After": "0.3"}
    limited = {"message": "You are being rate limited.", "retry_after": 0.2, "global": False}
    discord.next_replies = [Reply(200, {"id": "1"}, headers=window), Reply(429, limited, headers={"X-RateLimit-Reset-After": "0.2"})]
    ctx = LocalContext({"incidents": connect(tmp_path, discord.url + DiscordDouble.PATH)}, values=VALUES)
    plan = await Discord().plan(Discord.Params(connection="incidents", text="x"), ctx)
    first = await Discord().apply(plan, ctx)
    second = await Discord().apply(plan, ctx)
    await ctx.aclose()
    assert (first.data, second.data) == ({"status": 200}, {"status": 200})
    assert (len(discord.received), len(discord.taken)) == (3, 2)


@pytest.mark.parametrize(("status", "error"), [(400, PermanentError), (401, PermanentError), (404, PermanentError), (500, TemporaryError)])
async def test_refusals_are_told_without_the_secret(
    discord: DiscordDouble, tmp_path: Path, status: int, error: type[RemediatorError]
) -> None:
    """A webhook's address is its only key."""
    token = DiscordDouble.PATH.rpartition("/")[2]
    discord.set(DiscordDouble.PATH, Reply(status, f"not {discord.url}{DiscordDouble.PATH}?wait=true, nor {DiscordDouble.PATH} or {token}"))
    with pytest.raises(error, match=str(status)) as caught:
        await tell(discord, tmp_path)
    assert "s3cret" not in str(caught.value)


async def test_s17_lost_answer_is_unknown(discord: DiscordDouble, tmp_path: Path) -> None:
    """The message may have arrived; here it is not sent again."""
    discord.set(DiscordDouble.PATH, Misbehaviour.RESET)
    with pytest.raises(OutcomeUnknown) as caught:
        await tell(discord, tmp_path)
    assert len(discord.received) == 1
    assert "s3cret" not in str(caught.value)


async def test_plan_and_receipt_hold_no_secret(discord: DiscordDouble, tmp_path: Path) -> None:
    """What is stored could be shown to anybody."""
    ctx = LocalContext({"incidents": connect(tmp_path, discord.url + DiscordDouble.PATH)}, values=VALUES)
    plan = await Discord().plan(Discord.Params(connection="incidents", text="x"), ctx)
    receipt = await Discord().apply(plan, ctx)
    await ctx.aclose()
    assert b"s3cret" not in canonical([to_json(plan), to_json(receipt)])


async def test_s13_page_in_dry_run_goes_out_and_says_so(discord: DiscordDouble, tmp_path: Path) -> None:
    """Marked where the phone shows it, and in the headline."""
    await tell(discord, tmp_path, {**VALUES, "dry_run": True})
    message = discord.taken[0].json
    assert "DRY RUN · SEV1" in message["content"]
    assert "DRY RUN · SEV1" in message["embeds"][0]["title"]
