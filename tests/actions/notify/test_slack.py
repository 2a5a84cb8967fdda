"""`notify.slack`: text from alerts can't mention, link or break out; deliveries say what may have happened."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from actions.notify.slack import MAX_TEXT, Slack, SlackConnection, escape, link, render
from actions.notify.wording import Kind, Words
from remediator.action import SecretRef
from remediator.errors import OutcomeUnknown, PermanentError, PlanRefused, RemediatorError, TemporaryError
from remediator.model import JSON, Receipt, canonical, to_json
from remediator.testing import ActionConformance, LocalContext
from tests.servers.http import HttpServer, Misbehaviour, Received, Reply
from tests.servers.ports import free_port
from tests.servers.receivers import SlackDouble

FACTS = {"incident": "INC-20260101-001", "rule": "site-down", "severity": "sev1", "url": "https://remediator.example.com/incidents/1"}
WISH = {
    "connection": "incidents",
    "text": "rolled back",
    "mentions": ["oncall"],
    "links": {"dashboard": "https://grafana.example.com/d/1?a=1&b=2"},
}
HOOK = "/services/T000/B000/s3cret"


@pytest.fixture
async def slack() -> AsyncIterator[HttpServer]:
    """Start a server that answers as Slack's webhooks do."""
    async with HttpServer({HOOK: Reply(200, "ok")}) as server:
        yield server


def connect(directory: Path, url: str) -> SlackConnection:
    """Return a connection whose secret is `url`."""
    path = directory / "hook"
    path.write_text(f"{url}\n")
    raw = {"url": {"file": str(path)}, "mentions": {"oncall": "<!subteam^S0123>", "alice": "<@U0ALICE>"}, "timeout": "1s"}
    return SlackConnection.model_validate(raw)


async def send(connection: SlackConnection, **wish: Any) -> Receipt:
    """Plan and apply one message."""
    ctx = LocalContext({"incidents": connection}, values=FACTS, key="run-1/1")
    try:
        plan = await Slack().plan(Slack.Params.model_validate(WISH | wish), ctx)
        return await Slack().apply(plan, ctx)
    finally:
        await ctx.aclose()


class TestConformance(ActionConformance):
    """`notify.slack` keeps the contract of actions."""

    action = Slack()
    server: ClassVar[HttpServer] = HttpServer({HOOK: Reply(200, "ok")})

    @pytest.fixture(autouse=True)
    def _directory(self, tmp_path: Path) -> None:
        self.directory = tmp_path

    async def prepare(self) -> tuple[LocalContext, Mapping[str, Any]]:
        """Start a Slack, on the port that it had."""
        self.server.taken.clear()
        await self.server.start()
        return LocalContext({"incidents": connect(self.directory, self.server.url + HOOK)}, values=FACTS), WISH

    async def state(self) -> JSON:
        """Every message that was taken."""
        return [request.body.decode() for request in self.server.taken]

    async def disturb(self) -> None:
        """Take the receiver away."""
        self.server.set(HOOK, Reply(404, "no_service"))

    async def cleanup(self) -> None:
        """Stop it."""
        await self.server.stop()
        self.server.set(HOOK, Reply(200, "ok"))


async def test_message_has_facts_mentions_and_links(slack: HttpServer, tmp_path: Path) -> None:
    """Severity, incident and rule as header, the text, who is mentioned, and links to incident and dashboard."""
    receipt = await send(connect(tmp_path, slack.url + HOOK))
    assert receipt.data == {"status": 200}
    (request,) = slack.received
    assert (request.method, request.path, request.headers["idempotency-key"]) == ("POST", HOOK, "run-1/1")
    blocks = request.json["blocks"]
    assert blocks[0]["text"] == {"type": "plain_text", "text": "SEV1 · INC-20260101-001 · site-down", "emoji": False}
    assert blocks[1]["text"] == {"type": "mrkdwn", "text": "rolled back", "verbatim": True}
    assert blocks[2]["text"]["text"] == "<!subteam^S0123>"
    assert [element["text"] for element in blocks[3]["elements"]] == [
        "<https://remediator.example.com/incidents/1|incident>",
        "<https://grafana.example.com/d/1?a=1&amp;b=2|dashboard>",
    ]
    assert request.json["text"] == "<!subteam^S0123> rolled back"
    assert (request.json["unfurl_links"], request.json["unfurl_media"]) == (False, False)


@pytest.mark.parametrize("text", ["<!channel>", "<@U123>", "<https://evil.example.com|runbook>", "<!subteam^S1>", "a\r<!here>"])
async def test_text_of_an_alert_cannot_mention_or_link(slack: HttpServer, tmp_path: Path, text: str) -> None:
    """What stands in a label is text, in the message and in its fallback."""
    await send(connect(tmp_path, slack.url + HOOK), text=text, mentions=[], links={})
    message = slack.received[0].json
    assert "<" not in message["text"]
    assert "<" not in message["blocks"][1]["text"]["text"]


def test_text_is_cut_at_slacks_limit_and_not_inside_an_entity() -> None:
    """3,000 characters after escaping; a cut text ends in an ellipsis."""
    assert escape("x" * MAX_TEXT) == "x" * MAX_TEXT
    assert escape("x" * (MAX_TEXT + 1)) == "x" * (MAX_TEXT - 1) + "…"
    cut = escape("<" * MAX_TEXT)
    assert cut == "&lt;" * 749 + "…"


@given(st.text(max_size=4_000))
def test_any_text_is_escaped_and_short(text: str) -> None:
    """No text keeps an angle bracket or a lone ampersand, or exceeds the limit."""
    escaped = escape(text)
    assert len(escaped) <= MAX_TEXT
    assert not set("<>") & set(escaped)
    assert escaped.count("&") == sum(escaped.count(entity) for entity in ("&amp;", "&lt;", "&gt;"))


@pytest.mark.parametrize("url", ["javascript:alert(1)", "https://a.example.com/>|<!channel>", "https://a b", "ftp://a", "", "https://a|b"])
async def test_link_that_is_none_is_refused(slack: HttpServer, tmp_path: Path, url: str) -> None:
    """A link leads to http(s), and can't end early."""
    with pytest.raises(PlanRefused, match="not an http"):
        await send(connect(tmp_path, slack.url + HOOK), links={"x": url})
    assert slack.received == []


def test_link_title_is_escaped() -> None:
    """A title can't end the link either."""
    assert link("a|b><!channel>", "https://x.example.com") == "<https://x.example.com|a/b&gt;&lt;!channel&gt;>"


def test_missing_facts_leave_no_gaps() -> None:
    """Without facts of an incident there is only the text; a runbook that is no URL is no link."""
    assert render(Words(None, "", "hello"), [], {}, {"runbook": "see wiki"})["blocks"] == [
        {"type": "section", "text": {"type": "mrkdwn", "text": "hello", "verbatim": True}}
    ]


async def test_only_allowed_mentions(slack: HttpServer, tmp_path: Path) -> None:
    """A name that the connection does not list mentions nobody: the plan is refused and names those it may."""
    with pytest.raises(PlanRefused, match=r"\['everyone'\].*\['alice', 'oncall'\]"):
        await send(connect(tmp_path, slack.url + HOOK), mentions=["everyone"])
    assert slack.received == []


@pytest.mark.parametrize("text", ["@oncall", "<!channel> and more", "<@alice>", "<https://x.example.com>", "<!everything>"])
def test_mention_of_the_settings_is_a_mention(text: str) -> None:
    """The allow list holds Slack's own mentions and nothing else."""
    with pytest.raises(ValidationError, match="no mention"):
        SlackConnection.model_validate({"url": {"env": "HOOK"}, "mentions": {"a": text}})


async def test_plan_reads_no_secret() -> None:
    """Rendering needs no URL, so that a dry run needs none."""
    ctx = LocalContext({"incidents": SlackConnection(url=SecretRef(env="NOT_SET"), mentions={"oncall": "<!here>"})}, values=FACTS)
    plan = await Slack().plan(Slack.Params.model_validate(WISH), ctx)
    assert (plan.changes[0].after, plan.connection) == ("rolled back", "incidents")
    with pytest.raises(PermanentError):
        await Slack().apply(plan, ctx)


@pytest.mark.parametrize(
    ("status", "error"),
    [*((status, TemporaryError) for status in (429, 500, 503)), *((status, PermanentError) for status in (302, 400, 403, 404, 410))],
)
async def test_refusals_are_told_without_the_secret(slack: HttpServer, tmp_path: Path, status: int, error: type[RemediatorError]) -> None:
    """Overload is temporary with the delay asked for, a refusal is permanent with the receiver's words, never with the secret URL."""
    body = f"invalid_payload at {slack.url}{HOOK} " + "x" * 500
    slack.set(HOOK, Reply(status, body, headers={"Retry-After": "30"}))
    with pytest.raises(error, match=f"{status}: invalid_payload at ") as caught:
        await send(connect(tmp_path, slack.url + HOOK))
    assert "s3cret" not in str(caught.value)
    assert len(str(caught.value)) < 300
    if isinstance(caught.value, TemporaryError):
        assert caught.value.delay == timedelta(seconds=30)


@pytest.mark.parametrize("misbehaviour", [Misbehaviour.HANG, Misbehaviour.CLOSE, Misbehaviour.RESET])
async def test_s17_lost_answer_is_unknown(slack: HttpServer, tmp_path: Path, misbehaviour: Misbehaviour) -> None:
    """A message whose answer was lost may have arrived; it is not sent again here."""
    slack.set(HOOK, misbehaviour)
    with pytest.raises(OutcomeUnknown) as caught:
        await send(connect(tmp_path, slack.url + HOOK))
    assert len(slack.received) == 1
    assert "s3cret" not in str(caught.value)


async def test_receiver_that_is_down_is_temporary(tmp_path: Path) -> None:
    """Nothing was sent: try later."""
    with pytest.raises(TemporaryError, match="refused the connection") as caught:
        await send(connect(tmp_path, f"http://127.0.0.1:{free_port()}{HOOK}"))
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://hooks.example.com/s3cret", "not a url s3cret", "https://[s3cret", "ftp://127.0.0.1/s3cret", "https://h:s3cret/", ""]
)
async def test_secret_url_must_be_https(tmp_path: Path, url: str) -> None:
    """A secret is not sent where everybody on the way can read it, and a wrong one is not shown."""
    with pytest.raises(PermanentError) as caught:
        await send(connect(tmp_path, url))
    assert "s3cret" not in str(caught.value)


async def test_plan_and_receipt_hold_no_secret(slack: HttpServer, tmp_path: Path) -> None:
    """What is stored could be shown to anybody."""
    ctx = LocalContext({"incidents": connect(tmp_path, slack.url + HOOK)}, values=FACTS)
    plan = await Slack().plan(Slack.Params.model_validate(WISH), ctx)
    receipt = await Slack().apply(plan, ctx)
    await ctx.aclose()
    assert b"s3cret" not in canonical([to_json(plan), to_json(receipt)])


# --- kinds of messages, against what Slack documents of its limits


@pytest.fixture
async def strict() -> AsyncIterator[SlackDouble]:
    """Start a Slack that refuses what the documentation does not know."""
    async with SlackDouble() as server:
        yield server


def about(kind: str, **more: Any) -> dict[str, Any]:
    """Return the values of a policy's message."""
    known = {
        "kind": kind,
        "target": "deployment/shop/web",
        "state": "applying",
        "link": FACTS["url"],
        "opened_at": "2026-01-01T10:00:00+00:00",
    }
    return {name: value for name, value in FACTS.items() if name != "url"} | known | {"text": "the daemon's words"} | more


async def tell(server: SlackDouble, directory: Path, values: Mapping[str, Any], **wish: Any) -> dict[str, Any]:
    """Send a policy's message; return what arrived."""
    connection = connect(directory, server.url + SlackDouble.PATH)
    params = Slack.Params.model_validate({"connection": "incidents", "text": values["text"], "mentions": ["oncall"]} | wish)
    ctx = LocalContext({"incidents": connection}, values=values, key="m/1")
    await Slack().apply(await Slack().plan(params, ctx), ctx)
    await ctx.aclose()
    found: dict[str, Any] = server.taken[-1].json
    return found


@pytest.mark.parametrize("kind", list(Kind))
async def test_each_kind_says_what_it_is_and_mentions_only_when_somebody_is_wanted(strict: SlackDouble, tmp_path: Path, kind: Kind) -> None:
    """Nobody is woken by an update, an acknowledgement or the end."""
    message = await tell(strict, tmp_path, about(kind.value))
    assert "SEV1 · INC-20260101-001 · site-down" in message["blocks"][0]["text"]["text"]
    assert ("<!subteam" in json.dumps(message)) == (kind in {Kind.PAGE, Kind.APPROVAL, Kind.DIGEST})
    fields = [field["text"] for block in message["blocks"] for field in block.get("fields", ())]
    assert "*Target*\ndeployment/shop/web" in fields
    assert "*Opened*\n2026-01-01 10:00 UTC" in fields


async def test_resolution_is_told_as_one(strict: SlackDouble, tmp_path: Path) -> None:
    """The headline and the facts tell that it is over."""
    message = await tell(strict, tmp_path, about("resolved", resolved_at="2026-01-01T10:45:00+00:00"))
    assert message["blocks"][0]["text"]["text"].startswith("✅ Resolved · SEV1")
    assert "*Resolved*\n2026-01-01 10:45 UTC" in json.dumps(message, ensure_ascii=False).replace("\\n", "\n")


async def test_s13_page_in_dry_run_goes_out_and_says_so(strict: SlackDouble, tmp_path: Path) -> None:
    """Escalation pages always go out, marked."""
    message = await tell(strict, tmp_path, about("page", dry_run=True))
    assert "DRY RUN" in message["blocks"][0]["text"]["text"]
    assert message["blocks"][1]["text"]["text"].startswith("DRY RUN · ")


async def test_kinds_that_are_not_wanted_are_not_sent(strict: SlackDouble, tmp_path: Path) -> None:
    """A receiver may leave kinds to others; the plan says why nothing is sent, and it counts as done."""
    ctx = LocalContext({"incidents": connect(tmp_path, strict.url + SlackDouble.PATH)}, values=about("update"))
    plan = await Slack().plan(Slack.Params.model_validate({"connection": "incidents", "text": "x", "kinds": ["page"]}), ctx)
    receipt = await Slack().apply(plan, ctx)
    assert (plan.noop, strict.received) == (True, [])
    assert "it takes no update messages" in receipt.message


def test_kind_that_does_not_exist_is_found_when_settings_load() -> None:
    """Never at three in the morning."""
    with pytest.raises(ValidationError, match="kinds"):
        Slack.Params.model_validate({"connection": "incidents", "text": "x", "kinds": ["paging"]})


@given(
    values=st.fixed_dictionaries({name: st.text(max_size=3_000) for name in ("summary", "rule", "target", "severity", "reason", "text")})
)
def test_no_values_break_slacks_limits(values: dict[str, str]) -> None:
    """Whatever an alert says, the payload is one that Slack takes, and mentions nobody."""
    words = Words(Kind.PAGE, "s", values["text"])
    payload = render(words, [], {}, values | {"kind": "page", "incident": "INC-1"})
    answer = SlackDouble().judge(
        Received(
            "POST", SlackDouble.PATH, {"content-type": "application/json"}, json.dumps(payload | {"text": payload["text"] or "x"}).encode()
        )
    )
    assert answer.status == 200, answer.body
    marked = [block["text"]["text"] for block in payload["blocks"] if block.get("text", {}).get("type") == "mrkdwn"]
    marked += [field["text"] for block in payload["blocks"] for field in block.get("fields", ())]
    assert "<" not in payload["text"] + "".join(marked)


async def test_slacks_pause_is_kept_by_all_messages(strict: SlackDouble, tmp_path: Path) -> None:
    """One 429 with a short Retry-After is waited for and the message sent once; with a long one nobody knocks again meanwhile."""
    strict.next_replies = [Reply(429, "rate_limited", headers={"Retry-After": "1"})]
    ctx = LocalContext({"incidents": connect(tmp_path, strict.url + SlackDouble.PATH)}, values=FACTS)
    plan = await Slack().plan(Slack.Params.model_validate({"connection": "incidents", "text": "x"}), ctx)
    await Slack().apply(plan, ctx)
    assert (len(strict.received), len(strict.taken)) == (2, 1)
    strict.next_replies = [Reply(429, "rate_limited", headers={"Retry-After": "60"})]
    with pytest.raises(TemporaryError, match="429") as first:
        await Slack().apply(plan, ctx)
    with pytest.raises(TemporaryError, match="wants no messages for another") as second:
        await Slack().apply(plan, ctx)
    await ctx.aclose()
    assert first.value.delay == timedelta(seconds=60)
    assert second.value.delay is not None
    assert timedelta(seconds=55) < second.value.delay <= timedelta(seconds=60)
    assert len(strict.received) == 3


async def test_channel_of_customers_shows_nothing_internal(strict: SlackDouble, tmp_path: Path) -> None:
    """With a template for customers, headline, facts and links stay out as well."""
    values = about("page", page="INC-20260101-001", runbook="https://wiki.example.com/x", summary="internal")
    message = await tell(strict, tmp_path, values, mentions=[], template="sre-customers", fields={"service": "Sync"})
    shown = json.dumps(message)
    assert message["blocks"][0]["text"]["text"] == "Service Disruption Notification"
    for word in ("INC-", "site-down", "shop/web", "wiki", "internal", "remediator", "applying"):
        assert word not in shown


async def test_receiver_is_asked_again_after_five_minutes_at_most(strict: SlackDouble, tmp_path: Path) -> None:
    """Whatever pause it asks for: a page is worth another knock."""
    strict.next_replies = [Reply(429, "rate_limited", headers={"Retry-After": "3600"})]
    ctx = LocalContext({"incidents": connect(tmp_path, strict.url + SlackDouble.PATH)}, values=FACTS)
    plan = await Slack().plan(Slack.Params.model_validate({"connection": "incidents", "text": "x"}), ctx)
    with pytest.raises(TemporaryError, match="429"):
        await Slack().apply(plan, ctx)
    with pytest.raises(TemporaryError) as caught:
        await Slack().apply(plan, ctx)
    await ctx.aclose()
    assert caught.value.delay is not None
    assert caught.value.delay <= timedelta(minutes=5)


async def test_kill_switch_ends_the_wait_for_slack(strict: SlackDouble, tmp_path: Path) -> None:
    """A step that waits before it writes asks first whether it may."""
    strict.next_replies = [Reply(429, "rate_limited", headers={"Retry-After": "1"})]
    connection = connect(tmp_path, strict.url + SlackDouble.PATH)
    ctx = LocalContext({"incidents": connection}, values=FACTS, halted=lambda: "the kill switch is on")
    plan = await Slack().plan(Slack.Params.model_validate({"connection": "incidents", "text": "x"}), ctx)
    with pytest.raises(TemporaryError, match="the kill switch is on"):
        await Slack().apply(plan, ctx)
    await ctx.aclose()
    assert len(strict.received) == 1
