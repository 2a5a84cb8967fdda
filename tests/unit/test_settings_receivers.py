"""Messages of a policy are held against the connections they name when settings load, never when a page has to be sent."""

from __future__ import annotations

from pathlib import Path

import pytest

from remediator.errors import InvalidFiles
from remediator.registry import Registry
from remediator.settings.load import read_settings

CONNECTIONS = """
connections:
  chat: {kind: slack, url: {env: HOOK}, mentions: {oncall: "<!here>"}}
  mail: {kind: email, host: mail.example.com, sender: a@example.com, recipients: {l1: b@example.com}}
  public: {kind: status_page, api_key: {env: KEY}, page: abc, components: {api: c1}}
  pager: {kind: pagerduty, routing_key: {env: KEY}}
  room: {kind: discord, url: {env: HOOK}, mentions: {primary: "<@&111111>"}}
"""


def faults(directory: Path, notify: str) -> str:
    """Return what is wrong with a policy's only message, an empty text when nothing is."""
    path = directory / "remediator.yaml"
    path.write_text(f"{CONNECTIONS}escalation: {{default: {{notify: [{{{notify}}}]}}}}\n")
    try:
        read_settings(path, {}).check(Registry())
    except InvalidFiles as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    "notify",
    [
        "notify.slack: {connection: chat, mentions: [oncall], template: sre}",
        "notify.discord: {connection: room, mentions: [primary], template: video-platform}",
        "notify.pagerduty: {connection: pager, trigger_on: {approval: warning}}",
        "notify.email: {connection: mail, to: [l1], template: sre-post-incident}",
        "notify.status_page: {connection: public, components: {api: major_outage}}",
    ],
)
def test_messages_that_fit_are_taken(tmp_path: Path, notify: str) -> None:
    """Every channel, with what its connection lists."""
    assert faults(tmp_path, notify) == ""


@pytest.mark.parametrize(
    ("notify", "silent"),
    [
        ("notify.slack: {connection: chat}", False),
        ("notify.slack: {connection: chat, kinds: [update, resolved]}", True),
        ("notify.email: {connection: mail, to: [l1], template: sre-post-incident}", True),
        ("notify.email: {connection: mail, to: [l1], template: sre}", False),
        ("notify.status_page: {connection: public}", True),
        ("notify.pagerduty: {connection: pager, kinds: [page]}", False),
    ],
)
def test_policy_that_pages_nobody_is_doubted(tmp_path: Path, notify: str, silent: bool) -> None:
    """Each message would count as delivered, and nobody would come."""
    path = tmp_path / "remediator.yaml"
    path.write_text(f"{CONNECTIONS}escalation: {{default: {{notify: [{{{notify}}}]}}}}\n")
    found = [str(doubt) for doubt in read_settings(path, {}).doubts(Registry()) if "nobody is paged" in str(doubt)]
    assert len(found) == silent
    assert all("remediator.yaml:8:14: escalation.default: nobody is paged" in doubt for doubt in found)


@pytest.mark.parametrize(
    ("notify", "fault"),
    [
        ("notify.slack: {connection: chatt}", "there is no connection 'chatt'; did you mean chat"),
        ("notify.slack: {connection: room}", "connection 'room' is of kind discord, which notify.slack can't use"),
        ("notify.slack: {connection: chat, mentions: [all]}", "connection 'chat' allows no mention of ['all']; it allows ['oncall']"),
        ("notify.discord: {connection: room, mentions: [x]}", "connection 'room' allows no mention of ['x']"),
        ("notify.email: {connection: mail, to: [l2]}", "connection 'mail' has no recipients ['l2']; it has ['l1']"),
        ("notify.status_page: {connection: public, components: {db: major_outage}}", "connection 'public' has no components ['db']"),
        ("notify.slack: {connection: chat, kinds: [pages]}", "kinds"),
        ("notify.slack: {connection: chat, template: sree}", "there is no template 'sree'"),
        ("notify.slack: {connection: chat, template: sre, fields: {sevrice: x}}", "templates know no ['sevrice']"),
        ("notify.email: {connection: mail, to: [l1], template: vizzio-customers}", "template vizzio-customers needs `fields` with service"),
        ("notify.pagerduty: {connection: pager, trigger_on: {page: info}}", "a page always triggers"),
    ],
)
def test_what_does_not_fit_is_named_with_its_place(tmp_path: Path, notify: str, fault: str) -> None:
    """A kind, a mention, a recipient, a component, a template or a field that is not known."""
    found = faults(tmp_path, notify)
    assert fault in found
    assert "remediator.yaml:8:" in found
