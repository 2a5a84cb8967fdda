"""Every channel, from the alert to the end: a policy that names all of them, doubles that take nothing undocumented, a real mail server.

The first answer of each channel is a failure: what people get in the end is once each, in order, and no secret of theirs is anywhere.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio

from tests.acceptance.world import World, open_world
from tests.servers.http import HttpServer, Reply
from tests.servers.ports import eventually
from tests.servers.receivers import DiscordDouble, PagerDutyDouble, SlackDouble, StatuspageDouble
from tests.servers.smtp import SmtpServer

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("acceptance-receivers")]

RULES = """
rules:
  - name: hopeless
    match: ['alertname = "Hopeless"']
    severity: sev1
    target: "hopeless/${labels.id}"
    runbook: https://wiki.example.com/playbooks#hopeless
    otherwise: escalate
"""
MENTION = "<!channel> @everyone <@&111111>"
FIELDS = {"service": "the shop", "impact": "orders fail"}


@dataclass
class Everybody:
    """All receivers."""

    pager: PagerDutyDouble = field(default_factory=PagerDutyDouble)
    discord: DiscordDouble = field(default_factory=DiscordDouble)
    slack: SlackDouble = field(default_factory=SlackDouble)
    page: StatuspageDouble = field(default_factory=StatuspageDouble)
    mail: SmtpServer = field(default_factory=SmtpServer)
    board: HttpServer = field(default_factory=lambda: HttpServer({"/in": Reply(200)}))

    @property
    def environment(self) -> dict[str, str]:
        """Their secrets."""
        return {
            "PAGER_ROUTING": PagerDutyDouble.KEY,
            "DISCORD_HOOK": self.discord.url + DiscordDouble.PATH,
            "SLACK_HOOK": self.slack.url + SlackDouble.PATH,
            "PAGE_KEY": StatuspageDouble.KEY,
        }

    @property
    def settings(self) -> dict[str, Any]:
        """Connections, and a policy that names them all."""
        page = {"kind": "status_page", "api_key": {"env": "PAGE_KEY"}, "page": StatuspageDouble.PAGE, "url": f"{self.page.url}/v1"}
        mail = {"kind": "email", "host": "127.0.0.1", "port": self.mail.port, "security": "none", "sender": "r@example.com"}
        notify = [
            {"notify.pagerduty": {"connection": "duty"}},
            {"notify.discord": {"connection": "room", "mentions": ["primary"], "template": "video-platform"}},
            {"notify.slack": {"connection": "chat", "mentions": ["oncall"], "template": "sre", "fields": dict(FIELDS)}},
            {"notify.email": {"connection": "mail", "to": ["l1"], "template": "vizzio", "fields": dict(FIELDS)}},
            {"notify.email": {"connection": "mail", "to": ["l2"], "template": "sre-post-incident"}},
            {
                "notify.status_page": {
                    "connection": "public",
                    "template": "sightedit-customers",
                    "fields": dict(FIELDS),
                    "components": {"api": "major_outage"},
                }
            },
            {"notify.webhook": {"connection": "board"}},
        ]
        return {
            "connections": {
                "duty": {"kind": "pagerduty", "routing_key": {"env": "PAGER_ROUTING"}, "url": self.pager.url},
                "room": {"kind": "discord", "url": {"env": "DISCORD_HOOK"}, "mentions": {"primary": "<@&111111>"}},
                "chat": {"kind": "slack", "url": {"env": "SLACK_HOOK"}, "mentions": {"oncall": "<!subteam^S0123>"}},
                "mail": {**mail, "recipients": {"l1": "l1@example.com", "l2": "l2@example.com"}},
                "public": {**page, "components": {"api": "comp1"}},
                "board": {"kind": "webhook", "url": f"{self.board.url}/in"},
            },
            "escalation": {"default": {"notify": notify}},
            "log": {"level": "debug"},
        }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def everybody() -> AsyncIterator[Everybody]:
    """Start all receivers; each begins with a failure that is worth another attempt."""
    all_ = Everybody()
    async with all_.pager, all_.discord, all_.slack, all_.page, all_.mail, all_.board:
        for one in (all_.pager, all_.discord, all_.slack, all_.page):
            one.next_replies = [Reply(503, " ".join(all_.environment.values()))]
        refusals = iter(["450 4.2.0 greylisted"])
        all_.mail.box.on_recipient = lambda _address: next(refusals, None)
        yield all_


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory, everybody: Everybody) -> AsyncIterator[World]:
    """Start the daemon."""
    directory = tmp_path_factory.mktemp("receivers")
    async with open_world(directory, rules=RULES, settings=everybody.settings, environment=everybody.environment) as opened:
        yield opened


async def test_course_of_an_incident_in_every_channel(world: World, everybody: Everybody) -> None:
    """The page reaches everybody in spite of a first failure each; the end reaches them too, and each channel shows it as its own."""
    (incident,) = (await world.fire("Hopeless", id=MENTION))["incidents"]

    def rings(state: str) -> bool:
        """Tell whether the pager has one alert, of the incident's name in the store's era."""
        return {name.partition("~")[0]: one for name, one in everybody.pager.alerts.items()} == {incident: state}

    async def paged() -> bool:
        mails = [to for to, _ in everybody.mail.box.mails]
        chats = all(server.taken for server in (everybody.discord, everybody.slack, everybody.board))
        return chats and rings("triggered") and ["l1@example.com"] in mails and bool(everybody.page.incidents)

    await eventually(paged, what="everybody is paged", within=30)
    assert everybody.page.components["comp1"] == "major_outage"
    assert (await world.daemon.command("acknowledge", incident, who="responder"))[0] == 0

    async def acknowledged() -> bool:
        return rings("acknowledged") and any("Acknowledged" in str(one.json) for one in everybody.slack.taken)

    await eventually(acknowledged, what="those who were paged hear that somebody has it", within=30)
    await world.resolve("Hopeless", id=MENTION)

    async def told() -> bool:
        post_mortem = any(to == ["l2@example.com"] for to, _ in everybody.mail.box.mails)
        return rings("resolved") and post_mortem and everybody.page.incidents[0]["status"] == "resolved"

    await eventually(told, what="everybody hears of the end", within=30)
    assert everybody.page.components["comp1"] == "operational"
    assert len(everybody.page.incidents) == 1
    keys = [request.headers["idempotency-key"] for request in everybody.board.taken]
    assert len(keys) == len(set(keys))
    kinds = [request.json["incident"]["kind"] for request in everybody.board.taken]
    assert (kinds[0], kinds[-1]) == ("page", "resolved")


async def test_no_alert_mentions_anybody_in_any_channel(world: World, everybody: Everybody) -> None:
    """Only who the policy mentions is mentioned, in pages only."""
    for request in everybody.discord.taken:
        assert request.json["allowed_mentions"] in ({"parse": []}, {"parse": [], "roles": ["111111"]})
        assert "@everyone" not in request.body.decode()
    for request in everybody.slack.taken:
        assert "<!channel>" not in request.body.decode()
    for request in everybody.page.taken:
        assert "everyone" not in request.body.decode()


async def test_secrets_of_receivers_are_nowhere(world: World, everybody: Everybody) -> None:
    """Not in the log, nor in the store, though each receiver has repeated them in its refusal."""
    log = world.daemon.log
    store = b"".join(path.read_bytes() for path in world.daemon.store.parent.iterdir() if path.is_file())
    assert "message.failed" in log
    assert store
    for secret in (PagerDutyDouble.KEY, StatuspageDouble.KEY, "s3cret-token_of-the-hook", "B000/s3cret"):
        assert secret not in log
        assert secret.encode() not in store
