"""Commands against a running daemon: what they print, and their exit codes."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from remediator.events import Kind
from remediator.model import Event, RunState
from remediator.reconciliation.findings import Unanswered
from remediator.records import SignalKind
from remediator.service import Reloaded
from remediator.store.protocol import Changes, Reads
from tests.cli.conftest import ROOT, Commands
from tests.servers.ports import eventually
from tests.servers.surface import APPROVAL, INCIDENT, NOW, RUN, SECRET_LINE, Surface, make_incident, make_run, token_of

# --- reading


async def test_incidents_for_people_and_programs(run: Commands) -> None:
    """A table by default, an array of objects with --json; newest first, filtered."""
    shown = await run("incidents")
    assert shown.code == 0
    assert shown.out.index("INC-20261121-003") < shown.out.index(INCIDENT)
    found = json.loads((await run("incidents", "--json", "--limit", "2")).out)
    assert [one["id"] for one in found] == ["INC-20261121-003", "INC-20261121-002"]
    assert (await run("incidents", "--state", "resolved")).out.strip() == "No incidents."


async def test_runs_are_listed(run: Commands) -> None:
    """Runs show where they are and why."""
    assert RUN in (await run("runs", "--incident", INCIDENT)).out
    assert json.loads((await run("runs", "--json", "--state", "failed")).out) == []


async def test_show_tells_every_event_in_words(run: Commands) -> None:
    """The timeline of an incident can be read without knowing the kinds of events."""
    shown = await run("show", INCIDENT)
    assert shown.code == 0
    assert "Incident opened, sev1: the site is down" in shown.out
    assert "Chose 'roll back'" in shown.out
    assert "planning → awaiting_approval: its risk is high" in shown.out
    assert "+3s" in shown.out
    assert SECRET_LINE not in shown.out


async def test_show_run_has_its_own_events_only(run: Commands) -> None:
    """A run's timeline leaves out what belongs to the incident alone."""
    found = json.loads((await run("show", RUN, "--json", role="responder")).out)
    assert [event["kind"] for event in found["events"]] == ["remedy.chosen", "run.entered"]
    assert found["run"]["facts"]["checks.logs.lines"] == [SECRET_LINE]
    assert "roll back" in (await run("show", RUN)).out


async def test_what_comes_from_outside_is_no_command_to_the_terminal(surface: Surface, run: Commands) -> None:
    """Escape sequences and markup in alerts are shown, never obeyed."""
    evil = Event(INCIDENT, Kind.INCIDENT_ESCALATED, NOW, {"reason": "\x1b]0;owned\x07[bold red]x[/]\u202etxt", "policy": "p"})
    await surface.service.store.transact(Reads(), lambda _: Changes(events=[evil]))
    out = (await run("show", INCIDENT)).out
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert "\\x1b]0;owned\\x07[bold red]x[/]" in out


async def test_what_comes_from_outside_writes_no_line_of_ours(surface: Surface, run: Commands) -> None:
    """A line break in an annotation must not look like a line of the plan or of the timeline that somebody decides on."""
    forged = "x\nasked because: a routine drill\nstep 1, notify.slack: say hello"
    event = Event(INCIDENT, Kind.INCIDENT_JOINED, NOW, {"fingerprint": forged})
    incident = replace(make_incident(), summary=forged)
    await surface.service.store.transact(Reads(), lambda _: Changes(incidents=[incident], events=[event]))
    for command in (["show", INCIDENT], ["incidents"], ["deny", APPROVAL, "--yes"]):
        done = await run(*command, role="sre")
        assert done.code == 0, done.error
        assert "x\\nasked because: a routine drill" in done.out, command
        assert not [line for line in done.out.splitlines() if line.strip().startswith(("asked because: a", "step 1, notify"))], command


async def test_no_colours_off_a_terminal(run: Commands) -> None:
    """A pipe gets plain text."""
    assert "\x1b[" not in (await run("status")).out


async def test_status_says_what_matters(surface: Surface, run: Commands) -> None:
    """Dry run, readiness and pauses stand in front; exit code 1 when it takes no alerts."""
    shown = await run("status")
    assert shown.code == 0
    assert "DRY RUN" in shown.out
    assert "awaiting_approval" in shown.out
    surface.service.not_ready = "the store is closed"
    shown = await run("status")
    assert shown.code == 1
    assert "the store is closed" in shown.out


async def test_status_names_an_alertmanager_that_does_not_answer(surface: Surface, run: Commands) -> None:
    """Without it nothing is confirmed and ends are not heard; nothing is said while all answer."""
    assert "ALERTMANAGER" not in (await run("status")).out
    surface.service.silent = Unanswered("Alertmanager http://am:9093 did not answer in time", NOW)
    assert "ALERTMANAGER DOES NOT ANSWER: Alertmanager http://am:9093 did not answer in time" in (await run("status")).out


# --- exit codes


async def test_exit_codes(run: Commands, alone: Commands) -> None:
    """0 done, 1 no, 2 usage, 3 unreachable, 4 not allowed: one sentence each, never a traceback."""
    assert (await run("status")).code == 0
    missing = await run("show", "INC-20261121-999")
    assert (missing.code, missing.error.count("\n")) == (1, 1)
    assert (await run("show")).code == 2
    assert (await run("status", "--url", "nonsense")).code == 2
    assert (await run("status", "--token-file", "/nonexistent")).code == 2
    unreachable = await alone("status")
    assert unreachable.code == 3
    assert "REMEDIATOR_URL" in unreachable.error
    assert (await run("status", role=None)).code == 4
    refused = await run("pause", "--reason", "x", role="viewer")
    assert refused.code == 4
    assert "viewer" in refused.error


async def test_token_file_goes_before_environment(run: Commands, tmp_path: Path) -> None:
    """A token in a file is used, its newline removed."""
    file = tmp_path / "token"
    file.write_text(token_of("responder") + "\n")
    assert (await run("pause", "--reason", "x", "--token-file", str(file), role="viewer")).code == 0


async def test_tokens_never_follow_a_redirect(surface: Surface, tmp_path: Path) -> None:
    """An answer that sends elsewhere is an error: the token is for the daemon alone."""
    seen: list[bytes] = []

    async def redirect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(f"HTTP/1.1 302 Found\r\nLocation: {surface.url}/api/v1/status\r\nContent-Length: 0\r\n\r\n".encode())
        writer.close()

    server = await asyncio.start_server(redirect, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    done = await Commands(f"http://127.0.0.1:{port}", tmp_path)("status")
    server.close()
    assert done.code == 3
    assert "redirect" in done.error
    assert len(seen) == 1


# --- deciding


async def test_approve_without_a_terminal_needs_yes(surface: Surface, run: Commands) -> None:
    """Where nobody can be asked, nothing is decided unless --yes is said."""
    done = await run("approve", APPROVAL, role="sre")
    assert done.code == 2
    assert "--yes" in done.error
    assert (await run("approve", APPROVAL, "--json", role="sre")).code == 2
    approval = await surface.service.store.approval(APPROVAL)
    assert approval is not None
    assert approval.votes == ()


async def test_approve_shows_the_plan_and_is_recorded(surface: Surface, run: Commands) -> None:
    """The plan is printed, the decision is stored under the token's identity."""
    done = await run("approve", APPROVAL, "--yes", "-m", "looks right", role="sre")
    assert done.code == 0, done.error
    assert "web:43 → web:42" in done.out
    assert "touches kubernetes:prod/shop/Deployment/web" in done.out
    approval = await surface.service.store.approval(APPROVAL)
    assert approval is not None
    assert [(vote.who, vote.approve, vote.comment) for vote in approval.votes] == [("sre", True, "looks right")]
    assert (await run("approve", APPROVAL, "--yes", role="sre")).code == 1
    assert (await run("approvals")).out.strip() == "Nothing waits for an approval."


@pytest.mark.parametrize(("word", "state"), [("y\n", "approved"), ("n\n", "pending"), ("\n", "pending")])
async def test_approve_asks_on_a_terminal(surface: Surface, word: str, state: str) -> None:
    """On a terminal the plan is shown first, then the question; anything but yes decides nothing."""
    controller, terminal = pty.openpty()
    environment = os.environ | {"REMEDIATOR_URL": surface.url, "REMEDIATOR_TOKEN": token_of("sre"), "PYTHONPATH": str(ROOT)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "remediator.cli", "approve", APPROVAL, env=environment, stdin=terminal, stdout=terminal, stderr=terminal
    )
    os.close(terminal)
    os.set_blocking(controller, False)
    shown = bytearray()

    async def asked() -> bool:
        with suppress(OSError):
            shown.extend(os.read(controller, 65536))
        return b"approve this plan?" in shown

    await eventually(asked, what="the question")
    assert b"web:42" in shown
    os.write(controller, word.encode())
    code = await asyncio.wait_for(process.wait(), 30)
    os.close(controller)
    assert code == (0 if state == "approved" else 1)
    approval = await surface.service.store.approval(APPROVAL)
    assert approval is not None
    assert approval.state == state


async def test_deny(surface: Surface, run: Commands) -> None:
    """One denial denies."""
    assert (await run("deny", APPROVAL, "--yes", role="sre")).code == 0
    approval = await surface.service.store.approval(APPROVAL)
    assert approval is not None
    assert approval.state == "denied"


async def test_outside_the_group_is_not_allowed(run: Commands) -> None:
    """The group's refusal is exit code 4 and says which group."""
    done = await run("approve", APPROVAL, "--yes", role="approver")
    assert done.code == 4
    assert "sre" in done.error


async def test_settle_and_signal(surface: Surface, run: Commands) -> None:
    """A person's word reaches the run; one that does not fit is refused."""
    assert (await run("signal", RUN, "close", role="responder")).code == 1
    unknown = make_run(state=RunState.OUTCOME_UNKNOWN, reason="step 1 may or may not have taken effect")
    await surface.service.store.transact(Reads(), lambda _: Changes(runs=[unknown]))
    done = await run("settle", RUN, "applied", "-m", "saw it", role="responder")
    assert done.code == 0, done.error
    assert "was told: settle_applied. It was outcome_unknown: step 1 may or may not" in done.out
    seen = await surface.service.store.read(Reads(runs=[RUN]))
    assert [one.kind for one in seen.signals[RUN]] == [SignalKind.SETTLE_APPLIED]
    assert (await run("settle", RUN, "maybe", role="responder")).code == 2


async def test_pause_and_resume(surface: Surface, run: Commands) -> None:
    """The kill switch in two words; a rule that does not exist is refused."""
    assert (await run("pause", role="responder")).code == 2
    assert (await run("pause", "-m", "deploying", role="responder")).code == 0
    again = (await run("pause", "-m", "it deletes things", role="approver")).out
    assert "global had been paused already by responder" in again
    assert "because: deploying. That stands; your reason was not noted." in again
    assert (await run("pause", "--rule", "none", "-m", "x", role="responder")).code == 1
    assert (await run("pause", "--rule", "site-down", "-m", "x", role="responder")).code == 0
    assert set(await surface.service.store.pauses()) == {"global", "rule:site-down"}
    assert "PAUSED global by responder" in (await run("status")).out
    assert (await run("resume", role="responder")).code == 4
    assert (await run("resume", role="approver")).code == 0
    assert (await run("resume", role="approver")).code == 1


async def test_acknowledge(run: Commands) -> None:
    """An incident gets an owner."""
    assert "responder" in (await run("acknowledge", INCIDENT, role="responder")).out


async def test_take_and_release(surface: Surface, run: Commands) -> None:
    """*I have it*: lists and status say who has what; another person is told, the holder or an admin gives it back."""
    done = await run("take", INCIDENT, "-m", "looking at it", "--for", "2h", role="responder")
    assert done.code == 0
    assert f"TAKEN {INCIDENT} by responder since" in done.out
    assert "looking at it" in done.out
    assert f"TAKEN {INCIDENT} by responder" in (await run("status")).out
    assert f"TAKEN {INCIDENT} by responder" in (await run("show", INCIDENT)).out
    listed = json.loads((await run("incidents", "--json")).out)
    assert [one["taken"] for one in listed if one["id"] == INCIDENT] == ["responder"]
    refused = await run("take", INCIDENT, role="approver")
    assert refused.code == 4
    assert "taken by responder" in refused.error
    assert (await run("release", INCIDENT, role="approver")).code == 4
    assert (await run("release", INCIDENT, role="admin")).code == 0
    assert (await run("release", INCIDENT, role="responder")).code == 1
    assert await surface.service.store.pauses() == {}


async def test_take_a_target(surface: Surface, run: Commands) -> None:
    """By its canonical id; a connection that does not exist is refused, for a typing error must not look like a stop."""
    assert (await run("take", role="responder")).code == 2
    assert (await run("take", INCIDENT, "--target", "kubernetes:prod/shop/", role="responder")).code == 2
    for wrong in ("kubernetes:nowhere/shop/", "shop", "kubernetes:prod"):
        assert (await run("take", "--target", wrong, role="responder")).code == 1
    for span in ("soon", "30d", "0s"):
        assert (await run("take", "--target", "kubernetes:prod/shop/", "--for", span, role="responder")).code == 1
    assert await surface.service.store.pauses() == {}
    assert (await run("take", "--target", "kubernetes:prod/shop/", role="responder")).code == 0
    assert set(await surface.service.store.pauses()) == {"taken:target:kubernetes:prod/shop/"}
    assert (await run("release", "--target", "kubernetes:prod/shop/", role="responder")).code == 0


async def test_refused_reload_prints_every_problem(surface: Surface, run: Commands) -> None:
    """Exit code 1, and each fault on a line of its own."""
    assert (await run("reload", role="admin")).code == 0
    surface.service.reloaded = Reloaded(ok=False, rules=1, problems=("a.yaml:1:2: x", "b.yaml:3:4: y"))
    done = await run("reload", role="admin")
    assert done.code == 1
    assert "a.yaml:1:2: x\nb.yaml:3:4: y" in done.error


async def test_rehearse_through_the_daemon(run: Commands, tmp_path: Path) -> None:
    """One alert with nothing but labels is enough; `-` reads stdin; what is no alert is refused."""
    alert = tmp_path / "alert.json"
    alert.write_text('{"labels": {"alertname": "SiteDown"}}')
    done = await run("rehearse", str(alert), role="responder")
    assert done.code == 0, done.error
    assert "it would act by itself on SiteDown" in done.out
    found = json.loads((await run("rehearse", "-", "--json", role="responder", text=alert.read_bytes())).out)
    assert found[0]["rule"] == "site-down"
    assert (await run("rehearse", "-", role="responder", text=b"{")).code == 1
    assert (await run("rehearse", "-", role="responder", text=b'{"labels": {"a": 1}}')).code == 1


# --- audit


async def test_audit_through_export_store_and_api(run: Commands, tmp_path: Path) -> None:
    """The trail is verified by the daemon, from an export, and from the store's file while the daemon goes on."""
    export = tmp_path / "audit.jsonl"
    assert (await run("audit", "verify")).code == 0
    assert (await run("audit", "export", "-o", str(export), role="responder")).code == 0
    assert (await run("audit", "verify", "--file", str(export), role=None)).code == 0
    done = await run("audit", "verify", "--store", str(tmp_path / "state.sqlite"), "--json", role=None)
    assert (done.code, json.loads(done.out)["events"]) == (0, 3)
    assert (await run("audit", "export", role="viewer")).code == 4


async def test_export_is_for_its_owner_only(run: Commands, tmp_path: Path) -> None:
    """It holds evidence, which not everybody on the machine may see; an old file's looser mode does not stay."""
    (tmp_path / "audit.jsonl").touch(0o644)
    (tmp_path / "audit.jsonl.part").touch(0o644)
    done = await run("audit", "export", "-o", "audit.jsonl", role="responder")
    assert done.code == 0, done.error
    assert (tmp_path / "audit.jsonl").stat().st_mode & 0o777 == 0o600


async def test_broken_audit_is_exit_code_1(run: Commands, tmp_path: Path) -> None:
    """A changed, a shortened and a foreign file are all said to be broken."""
    export = tmp_path / "audit.jsonl"
    await run("audit", "export", "-o", str(export), role="responder")
    whole = export.read_bytes()
    lines = whole.splitlines(keepends=True)
    for broken in (whole.replace(b"site", b"sire", 1), b"".join(lines[:-1]), b"".join(lines[1:]), b"hello\n", b""):
        export.write_bytes(broken)
        done = await run("audit", "verify", "--file", str(export), role=None)
        assert done.code == 1, broken
        assert "BROKEN" in done.error
    export.write_bytes(whole)
    anchored = await run("audit", "verify", "--file", str(export), "--anchor", f"system:9:{'0' * 64}", role=None)
    assert anchored.code == 1
    assert (await run("audit", "verify", "--file", str(export), "--anchor", "x", role=None)).code == 2


async def test_broken_export_leaves_no_file(alone: Commands, tmp_path: Path) -> None:
    """Without an answer there is no file that could be taken for an export."""
    assert (await alone("audit", "export", "-o", str(tmp_path / "x.jsonl"))).code == 3
    assert not (tmp_path / "x.jsonl").exists()
