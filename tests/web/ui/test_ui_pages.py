"""Pages: what they show to whom, and that nothing on them is more than text."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest

from remediator.errors import StoreUnavailable
from remediator.events import Kind
from remediator.freezes.windows import Dates, Effect, Freezes, Window
from remediator.lifecycle import ENDS
from remediator.model import Alert, Change, Event, IncidentState, Receipt, RunState, StepState
from remediator.reconciliation.findings import Unanswered
from remediator.records import Attempt, Ending, Pause, Step
from remediator.store.protocol import Changes, Reads
from remediator.web.ui.rendering import ago, safe_link
from remediator.web.ui.site import VIEWS
from tests.servers.surface import (
    INCIDENT,
    NOW,
    RUN,
    SECRET_LINE,
    Rules,
    Surface,
    make_approval,
    make_incident,
    make_plan,
    make_rule,
    make_run,
)
from tests.web.ui.conftest import Enter

EVIL = "<script>alert(1)</script>\u202ednuora denrut\"'"
READERS = ("viewer", "responder", "approver", "rule_editor", "admin")


@dataclass(frozen=True)
class Described:
    """What the catalogue says of an action, as far as pages show it."""

    risk: str
    reversible: bool


def path_of(path: str) -> str:
    """Fill the pattern of a page with what the store holds."""
    names = {"incident": INCIDENT, "run": RUN, "approval": f"{RUN}-A1", "rule": "site-down"}
    return path.format_map(names)


PAGES = [path_of(view.path) for view in VIEWS]


async def put(surface: Surface, **changes: object) -> None:
    await surface.service.store.transact(Reads(), lambda _: Changes(**changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("role", READERS)
async def test_every_page_answers_every_reader(enter: Enter, role: str) -> None:
    """Each page is there for all who may see it, and says so to those who may not; none fails."""
    person = await enter(role)
    for path in PAGES:
        seen = await person.look(path)
        refused = (path.endswith("/rehearsal") and role == "viewer") or (path.endswith("/undo") and role in ("viewer", "rule_editor"))
        refused = refused or (path.endswith("/export") and role in ("viewer", "rule_editor"))
        assert seen.status == (403 if refused else 200), path
        if refused:
            assert "does not include" in seen.text


async def test_every_answer_carries_the_headers(enter: Enter) -> None:
    """Nothing may be framed, sniffed, kept or run from elsewhere: on pages, refusals and the door alike."""
    person = await enter("admin")
    for path in (*PAGES, "/ui/nothing", "/ui/sign-in", "/ui/static/none.css"):
        headers = (await person.look(path)).headers
        if path.endswith("/export"):
            continue  # the API's own answer
        policy = headers["Content-Security-Policy"]
        assert "default-src 'self'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "same-origin"
        assert headers["Cache-Control"] == "no-store"


async def test_pages_hold_no_script_or_style_of_their_own(enter: Enter) -> None:
    """The policy would stop them, so there must be none: neither elements with text nor attributes."""
    person = await enter("admin")
    for path in PAGES:
        text = (await person.look(path)).text
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|javascript:", text), path


async def test_files_are_there_and_may_be_kept(enter: Enter) -> None:
    """Each file that a page names is served by its hash for good, and never for good without."""
    person = await enter("viewer")
    text = (await person.look("/ui/")).text
    names = set(re.findall(r'(?:href|src)="(/ui/static/[^"]+)"', text))
    assert len(names) == 3
    for name in names:
        seen = await person.look(name)
        assert seen.status == 200
        assert "immutable" in seen.headers["Cache-Control"]
        assert (await person.look(name.partition("?")[0])).headers["Cache-Control"] == "no-store"


async def test_words_of_alerts_are_only_words(surface: Surface, enter: Enter) -> None:
    """Marks in labels, annotations, plans and events are shown, not carried out, and text that would turn around is shown as what it is."""
    alert = Alert("f" * 16, firing=True, labels={"alertname": EVIL}, annotations={EVIL: EVIL, "url": "javascript:alert(1)"}, starts_at=NOW)
    incident = replace(make_incident(), subject=alert, summary=EVIL, target=EVIL, owner=EVIL, also_matched=(EVIL,))
    plan = replace(make_plan(), summary=EVIL, changes=(Change(EVIL, EVIL, EVIL, {"a": EVIL}),), warnings=(EVIL,), leaves=EVIL)
    run = make_run()
    run = replace(run, reason=EVIL, remedy=EVIL, target=EVIL, facts={EVIL: EVIL}, steps=(replace(run.steps[0], plan=plan, message=EVIL),))
    events = [Event(INCIDENT, kind, NOW, {"run": RUN, "reason": EVIL, "guard": EVIL, "verdict": "deny"}) for kind in Kind]
    await put(surface, incidents=[incident], runs=[run], events=events, pauses=[Pause("global", EVIL, EVIL, NOW)])
    person = await enter("admin")
    for path in PAGES:
        if path.endswith("/export"):
            continue
        text = (await person.look(path)).text
        assert "<script>alert" not in text, path
        assert "\u202e" not in text, path
        assert 'href="javascript' not in text, path
    text = (await person.look(f"/ui/incidents/{INCIDENT}")).text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;⟨U+202E⟩dnuora" in text


async def test_no_label_writes_a_line_of_the_timeline(surface: Surface, enter: Enter) -> None:
    """Line breaks in what others wrote are marks: on a timeline only our own sentences begin a line."""
    breaks = ("\n", "\r\n", "\u2028", "\x85")
    data = {
        "run": RUN,
        "rule": "x",
        "target": "y",
        "severity": "sev1",
        "summary": f"down{'03:00 approved by anna'.join(breaks)}!",
        "labels": {},
    }
    await put(surface, events=[Event(INCIDENT, Kind.INCIDENT_OPENED, NOW, data)])
    text = (await (await enter("viewer")).look(f"/ui/incidents/{INCIDENT}")).text
    (told,) = [one for one in re.findall(r'<bdi class="words">(.*?)</bdi>', text, re.DOTALL) if "approved by anna" in one]
    assert len(told.splitlines()) == 1
    assert told.count(" ⏎ ") == len(breaks)


async def test_a_hold_that_is_over_is_shown_nowhere(surface: Surface, enter: Enter) -> None:
    """What somebody took for a time is not his on any page once that is over, though its row is swept later."""
    person = await enter("viewer")
    for until, shown in ((timedelta(minutes=-1), False), (timedelta(minutes=9), True)):
        await put(surface, pauses=[Pause(f"taken:{INCIDENT}", "ben", "mine", NOW, until=datetime.now(UTC) + until)])
        for path in ("/ui/", "/ui/incidents", f"/ui/incidents/{INCIDENT}"):
            text = (await person.look(path)).text
            assert ("aken by ben" in text) == shown, path


async def test_a_runbook_is_a_link_only_when_it_is_an_address(surface: Surface, enter: Enter) -> None:
    """`javascript:` in a rule's runbook is text; a web address is a link that tells the other site nothing."""
    person = await enter("viewer")
    for runbook, link in (("javascript:alert(1)", False), ("https://wiki.example.com/a?b=1&c=2", True)):
        surface.service.rules = Rules((replace(make_rule(), runbook=runbook),))
        text = (await person.look(f"/ui/incidents/{INCIDENT}")).text
        assert ("noopener noreferrer" in text) == link
        assert ('href="https://wiki.example.com/a?b=1&amp;c=2"' in text) == link


@pytest.mark.parametrize(
    "address",
    ["javascript:alert(1)", "data:text/html,x", "//x.example", "http://", "https://\u202ex", "ftp://x", "http://[", " https://x y"],
)
def test_only_web_addresses_become_links(address: str) -> None:
    """Everything else stays text."""
    assert "<a " not in safe_link(address)


async def test_s04_evidence_is_shown_to_responders_only(enter: Enter) -> None:
    """Raw log lines are on the pages of responders, and on none of a viewer's."""
    for role, shows in (("responder", True), ("viewer", False), ("rule_editor", False)):
        person = await enter(role)
        pages = [(await person.look(path)).text for path in (f"/ui/runs/{RUN}", f"/ui/incidents/{INCIDENT}")]
        assert any(SECRET_LINE in text for text in pages) == shows, role
        assert all("checks.logs.count" in text or "3" in text for text in pages)


async def test_secrets_of_the_daemon_are_taken_out_of_plans(surface: Surface, enter: Enter) -> None:
    """A plan that holds what the daemon knows as a secret shows a mark instead, on the overview as well."""
    surface.service.scrubber.learn("hunter2-and-more")
    run = make_run()
    plan = replace(make_plan(), summary="set PASSWORD=hunter2-and-more", changes=(Change("x:y/z", "env", "a", "hunter2-and-more"),))
    await put(surface, runs=[replace(run, steps=(replace(run.steps[0], plan=plan, message="hunter2-and-more"),))])
    person = await enter("admin")
    for path in ("/ui/", f"/ui/runs/{RUN}"):
        text = (await person.look(path)).text
        assert "set PASSWORD=" in text
        assert "hunter2-and-more" not in text


async def test_the_overview_names_first_what_waits(surface: Surface, enter: Enter) -> None:
    """Approvals, unknown outcomes and escalated incidents that nobody has come before all else, the severest first."""
    unknown = replace(make_run(), id="INC-20261121-002-1", incident="INC-20261121-002", state=RunState.OUTCOME_UNKNOWN, approval=None)
    escalated = [replace(make_incident(number), state=IncidentState.ESCALATED, severity=f"sev{6 - number}") for number in (3, 4)]
    await put(surface, runs=[unknown], incidents=escalated)
    text = (await (await enter("responder")).look("/ui/")).text
    order = [
        text.index(words) for words in ("Approval wanted", "Outcome unknown", "INC-20261121-004", "INC-20261121-003", "Open incidents")
    ]
    assert order == sorted(order)
    assert text.count("I have it") == 2


async def test_nothing_that_waits_is_hidden_by_what_is_newer(surface: Surface, enter: Enter) -> None:
    """Of many the overview shows what expires first and the severest, counts the rest, and leads to it."""
    old = replace(make_incident(4), state=IncidentState.ESCALATED, summary="nobody has this one")
    severe = replace(make_incident(5), severity="sev1", summary="the severest that is open", acknowledged_at=NOW)
    heard = [replace(make_incident(n), state=IncidentState.ESCALATED, severity="sev3", acknowledged_at=NOW) for n in range(10, 570)]
    await put(surface, incidents=[old, severe])
    await put(surface, incidents=[*heard, *(replace(make_incident(n), severity="sev4") for n in range(600, 1200))])
    soon = datetime.now(UTC) + timedelta(minutes=5)
    runs = [
        make_run(id=f"INC-20261121-{n:03d}-1", incident=f"INC-20261121-{n:03d}", approval=f"INC-20261121-{n:03d}-1-A1")
        for n in range(10, 70)
    ]
    asked = [replace(make_approval(), id=str(run.approval), run=run.id, incident=run.incident) for run in runs]
    asked[0] = replace(asked[0], expires_at=soon)
    stuck = [make_run(id=f"INC-20261121-{n:03d}-1", incident=f"INC-20261121-{n:03d}", state=RunState.INTERRUPTED) for n in range(100, 153)]
    await put(surface, runs=[*runs, *stuck], approvals=asked)
    person = await enter("responder")
    text = (await person.look("/ui/")).text
    assert "nobody has this one" in text
    assert text.count("Approval wanted") == 50
    assert text.index("INC-20261121-010-1") < text.index("INC-20261121-011-1")
    assert "11 more approvals are wanted" in text
    assert "3 more runs wait for your word" in text
    assert "the severest that is open" in text
    assert f"{560 + 600 + 4 - 50} more are open" in text
    assert (await person.look("/ui/runs?state=stuck")).text.count('data-label="Run"') == 50
    waiting = (await person.look("/ui/runs?state=approval")).text
    assert waiting.count("awaiting approval</span>") == 50
    assert "state=approval&amp;before=" in waiting


async def test_a_long_story_is_told_from_its_end(surface: Surface, enter: Enter) -> None:
    """Of thousands of events the newest are on the page, and all for who asks; why an early run acted is never told as if it had not."""
    noted = [Event(INCIDENT, Kind.INCIDENT_ACKNOWLEDGED, NOW + timedelta(seconds=n), {"owner": f"owner-{n:04d}"}) for n in range(10, 1310)]
    late = make_run(id=f"{INCIDENT}-2", number=2, approval=None, created_at=NOW + timedelta(seconds=1300))
    chosen = {"run": late.id, "remedy": "roll back", "reason": "late", "checks": {}, "conditions": []}
    await put(surface, runs=[late], events=[*noted, Event(INCIDENT, Kind.REMEDY_CHOSEN, NOW + timedelta(seconds=1310), chosen)])
    person = await enter("viewer")
    text = (await person.look(f"/ui/incidents/{INCIDENT}")).text
    assert text.count('class="when"') == 200
    assert "The newest 200 of 1304 events" in text
    assert "owner-1309" in text
    assert text.count("Chose <strong>roll back</strong>") == 1
    assert "It was decided long before" in text
    everything = (await person.look(f"/ui/incidents/{INCIDENT}?events=all")).text
    assert everything.count('class="when"') == 1304
    assert everything.count("Chose <strong>roll back</strong>") == 2
    early = (await person.look(f"/ui/runs/{RUN}")).text
    assert "Chose <strong>roll back</strong>" in early
    assert early.count('class="when"') == 2


async def test_a_list_says_how_far_it_looked(surface: Surface, enter: Enter) -> None:
    """That none of the newest fits is not said as if none did."""
    await put(surface, incidents=[replace(make_incident(n), severity="sev4") for n in range(10, 1015)])
    person = await enter("viewer")
    seen = (await person.look("/ui/incidents?severity=sev1")).text
    assert "None of the newest 1000 fits" in seen
    further = re.search(r'href="(/ui/incidents\?[^"]*before=[^"]*)">Look further', seen)
    assert further is not None
    assert INCIDENT in (await person.look(further[1].replace("&amp;", "&"))).text
    assert "No incident fits" in (await person.look("/ui/incidents?severity=sev2&state=resolved")).text


async def test_what_holds_everything_is_on_every_page(surface: Surface, enter: Enter) -> None:
    """Dry run, kill switch, storm, a watchdog that is not heard and freezes of everything are said on top of each page."""
    later = datetime.now(UTC) + timedelta(hours=1)
    everything = Window("release", Dates(NOW - timedelta(days=1), later), reason="release week")
    asks = Window("nights", Dates(NOW - timedelta(days=1), later), Effect.APPROVE)
    surface.service.freezes = Freezes((everything, asks))
    pauses = [Pause("global", "anna", "look first", NOW), Pause("storm", "remediator", "too many", NOW, since=NOW)]
    pauses += [
        Pause("watchdog:0ca4c9bb6dd3c6b9", "remediator", "not again within 5m", NOW, since=NOW),
        Pause("freeze", "bert", "moving", NOW),
    ]
    await put(surface, pauses=pauses)
    text = (await (await enter("viewer")).look("/ui/catalogue")).text
    for words in (
        "Dry run",
        "look first",
        "by anna",
        "Storm",
        "Watchdog not heard",
        "release week",
        "Approvals only: everything",
        "moving",
    ):
        assert words in text
    assert "Stop everything" not in text


async def test_every_page_says_that_alertmanager_does_not_answer(surface: Surface, enter: Enter) -> None:
    """Without it ends are not heard and nothing is confirmed: nobody should wonder why nothing is done."""
    person = await enter("viewer")
    assert "does not answer" not in (await person.look("/ui/")).text
    surface.service.silent = Unanswered("Alertmanager http://am:9093 did not answer in time", datetime.now(UTC) - timedelta(minutes=3))
    for path in ("/ui/", f"/ui/incidents/{INCIDENT}", f"/ui/runs/{RUN}"):
        text = (await person.look(path)).text
        assert "Alertmanager does not answer" in text
        assert "http://am:9093 did not answer in time" in text
        assert "3 min ago" in text or "3m ago" in text


async def test_a_rules_own_stop_is_no_banner(surface: Surface, enter: Enter) -> None:
    """What holds one rule, remedy or incident back stands on the overview, and not on top of each page."""
    await put(surface, pauses=[Pause("rule:site-down", "anna", "noisy", NOW), Pause(f"taken:{INCIDENT}", "bert", "mine", NOW)])
    person = await enter("viewer")
    assert "Rule site-down is stopped" in (await person.look("/ui/")).text
    assert "noisy" not in (await person.look("/ui/catalogue")).text


async def test_why_it_did_not_act_is_answered(surface: Surface, enter: Enter) -> None:
    """Every guard that spoke against a run is named with its reason, every condition with the facts it was decided on."""
    denied = {"run": RUN, "guard": "cooldown", "verdict": "wait", "reason": "a remedy ended 3m ago", "until": "2026-11-21T03:30:00+00:00"}
    await put(surface, events=[Event(INCIDENT, Kind.GUARD_DENIED, NOW + timedelta(seconds=4), denied)])
    text = (await (await enter("responder")).look(f"/ui/incidents/{INCIDENT}")).text
    for words in ("must wait", "<strong>cooldown</strong>", "a remedy ended 3m ago", "checks.logs.count", "roll back", "minimum firing"):
        assert words in text


async def test_incidents_are_filtered_and_paged(surface: Surface, enter: Enter) -> None:
    """State, rule and severity narrow the list; what does not fit on a page is on the next."""
    many = [replace(make_incident(number), severity="sev3" if number % 2 else "sev1") for number in range(4, 64)]
    await put(surface, incidents=[*many, replace(make_incident(2), state=IncidentState.RESOLVED)])
    person = await enter("viewer")
    first = (await person.look("/ui/incidents")).text
    assert first.count('data-label="Incident"') == 50
    older = re.search(r'href="(/ui/incidents\?[^"]*before=[^"]*)">Older', first)
    assert older is not None
    assert (await person.look(older[1].replace("&amp;", "&"))).text.count('data-label="Incident"') == 12
    resolved = (await person.look("/ui/incidents?state=resolved")).text
    assert resolved.count('data-label="Incident"') == 1
    assert "INC-20261121-002" in resolved
    rare = (await person.look("/ui/incidents?state=all&severity=sev3&rule=site-down")).text
    assert "sev1</span>" not in rare
    assert (await person.look("/ui/incidents?rule=none")).text.count('data-label="Incident"') == 0


@pytest.mark.parametrize("query", ["before=x", "before=%00", "state=none", "rule=%F0%9F%92%A5", "severity=' OR 1=1", "before=" + "9" * 400])
async def test_queries_that_mean_nothing_are_no_fault(enter: Enter, query: str) -> None:
    """Whatever stands in the address, a page or a refusal comes back."""
    assert (await (await enter("viewer")).look(f"/ui/incidents?{query}")).status in (200, 400, 404)


async def test_what_is_not_there_is_said(enter: Enter) -> None:
    """Unknown incidents, runs, rules and pages are answered with a page that says so."""
    person = await enter("viewer")
    for path in (
        "/ui/incidents/none",
        "/ui/runs/none",
        "/ui/rules/none",
        "/ui/approvals/none",
        "/ui/none",
        "/ui/incidents/a%2Fb",
        "/ui/runs/a%00b",
        "/ui/runs/%ff",
    ):
        seen = await person.look(path)
        assert seen.status == 404
        assert "there is no" in seen.text, path
        assert "Overview" in seen.text


async def test_an_approvals_address_leads_to_its_run(enter: Enter) -> None:
    """A link in a message names the approval; all that the decision needs is on the run's page."""
    seen = await (await enter("viewer")).look(f"/ui/approvals/{RUN}-A1")
    assert "Approve this plan?" in seen.text
    for words in ("roll web back to revision 42", "web:43", "web:42", "a" * 64, "its risk is high", "1 person of sre"):
        assert words in seen.text


async def test_beside_the_button_stands_what_is_approved(surface: Surface, enter: Enter) -> None:
    """Who jumps to the button reads there what each step does, how much of it, its risk, and whether it can be taken back."""
    risky = replace(make_run().steps[0], number=2, plan=replace(make_plan(), summary="delete it all", changes=(), warnings=("mind",)))
    await put(surface, runs=[replace(make_run(), steps=(make_run().steps[0], risky))])
    kinds = {"kubernetes.rollout_undo": Described(reversible=False, risk="high")}
    surface.service.registry.action = kinds.get  # type: ignore[method-assign, assignment]
    text = (await (await enter("sre")).look(f"/ui/runs/{RUN}")).text
    box = re.sub(r"<[^>]+>", "", text.partition('id="form-approve"')[2].partition("</form>")[0])
    assert "1. roll web back to revision 42" in box
    assert "1 change, touches 3 of 3" in box
    assert "risk high, can NOT be undone" in box
    assert "2. delete it all" in box
    assert "0 changes, touches 3 of 3" in box
    assert "beware: 1 warning above" in box
    overview = (await (await enter("viewer")).look("/ui/")).text
    assert f'href="/ui/runs/{RUN}#part-plan"' in overview


async def test_a_viewer_is_not_asked_to_decide(surface: Surface, enter: Enter) -> None:
    """The link to a plan says what he can do with it."""
    assert ">Look at it</a>" in (await (await enter("viewer")).look(f"/ui/incidents/{INCIDENT}")).text
    assert ">Look at it and decide</a>" in (await (await enter("approver")).look(f"/ui/incidents/{INCIDENT}")).text


async def test_every_page_says_which_installation_it_is(surface: Surface, enter: Enter) -> None:
    """Nobody takes production for staging: the host of `public_url` stands on top, and in the tab."""
    person = await enter("viewer")
    surface.service.settings = surface.service.settings.model_copy(update={"public_url": "https://staging.example.com/x"})
    for path in ("/ui/", f"/ui/runs/{RUN}", "/ui/nothing"):
        text = (await person.look(path)).text
        assert '<span class="place"><bdi>staging.example.com</bdi></span>' in text
        assert "· staging.example.com</title>" in text


async def test_an_unknown_outcome_asks_what_happened(surface: Surface, enter: Enter) -> None:
    """The run's page says what to do, and offers just what the run takes."""
    run = replace(make_run(), state=RunState.OUTCOME_UNKNOWN)
    await put(surface, runs=[replace(run, steps=(replace(run.steps[0], state=StepState.UNKNOWN),))])
    text = (await (await enter("responder")).look(f"/ui/runs/{RUN}")).text
    assert set(re.findall(r'name="kind" id="[^"]*" value="([^"]+)"', text)) == {"settle_applied", "settle_not_applied", "close"}
    assert "Look at the system itself" in text


async def test_without_the_store_there_is_a_page_that_says_so(surface: Surface, enter: Enter, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the store can't be read, pages say that, with the status that says to come again."""
    person = await enter("viewer")

    async def down(*_: object, **__: object) -> None:
        raise StoreUnavailable("the store can't be reached")

    for name in ("read", "incidents", "approvals", "runs"):
        monkeypatch.setattr(surface.service.store, name, down)
    seen = await person.look("/ui/")
    assert (seen.status, seen.headers["Retry-After"]) == (503, "5")
    assert "the store can&#x27;t be reached" in seen.text


async def test_a_fault_of_ours_is_a_page_that_tells_nothing(surface: Surface, enter: Enter, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug gives its number for the log, and no more."""
    person = await enter("viewer")
    monkeypatch.setattr(surface.service, "bounds", lambda: 1 / 0)
    seen = await person.look("/ui/")
    assert seen.status == 500
    assert seen.headers["Content-Type"].startswith("text/html")
    assert "error_id" in seen.text
    assert "ZeroDivision" not in seen.text


def test_times_are_said_as_people_say_them() -> None:
    """Seconds, minutes, hours, days, past and to come."""
    said = [ago(NOW - timedelta(seconds=span), NOW) for span in (0, 20, 61, 3600, 100_000, 200_000, -90)]
    assert said == ["now", "20 s ago", "1 min ago", "1 h ago", "27 h ago", "2 d ago", "in 1 min"]


@pytest.mark.parametrize("state", list(RunState))
async def test_runs_of_every_state_have_a_page(surface: Surface, enter: Enter, state: RunState) -> None:
    """Whatever became of a run and its steps, its page, its incident's and the overview can be shown."""
    steps = [Step(number, "test.gone", one) for number, one in enumerate(StepState, 1)]
    steps += [
        replace(make_run().steps[0], number=20, undo_plan=make_plan(), undo_receipt=Receipt("undone"), intended_at=NOW, finished_at=NOW)
    ]
    ended = NOW if state in ENDS else None
    facts = {"checks.a.age": {"$duration": 90.0}, "checks.a.at": {"$timestamp": NOW.isoformat()}, "labels.x": "y", "checks.a.l": [1]}
    run = replace(make_run(), state=state, steps=tuple(steps), ended_at=ended, deadline=NOW, facts=facts)
    run = replace(run, locks=("a", "b"), failures=("x",), unknown={"checks.a.b": "no"})
    await put(surface, runs=[run])
    person = await enter("admin")
    for path in (f"/ui/runs/{RUN}", f"/ui/incidents/{INCIDENT}", "/ui/", "/ui/runs"):
        assert (await person.look(path)).status == 200, path
    text = (await person.look(f"/ui/runs/{RUN}")).text
    assert state.value.replace("_", " ") in text
    assert "Show what undoing would do" not in text  # nobody knows what some of its steps did


async def test_a_rules_page_shows_what_it_has_been_worth(surface: Surface, enter: Enter) -> None:
    """Successes, failures with their reasons, and a remedy that is stopped everywhere with the way to let it go on."""
    now = datetime.now(UTC)
    base = Attempt(
        RUN, INCIDENT, "site-down", "web", Ending.SUCCESS, tried=True, opened_at=now - timedelta(minutes=9), ended_at=now, remedy="undo"
    )
    attempts = [replace(base, run=f"{RUN}{number}", recovered_at=now) for number in range(3)]
    attempts += [
        replace(base, run="failed", ending=Ending.FAILURE, reason="it did <not> help"),
        replace(base, run="r", ending=Ending.WOULD_HAVE, tried=False),
    ]
    await put(surface, attempts=attempts, pauses=[Pause("remedy:site-down/undo", "remediator", "failed on 3 targets", now)])
    text = (await (await enter("approver")).look("/ui/rules/site-down")).text
    for words in ("3 (75%)", "it did &lt;not&gt; help", "failed on 3 targets", "Let it be tried again", "9m", "name: site-down"):
        assert words in text
    assert "75%" in (await (await enter("viewer")).look("/ui/rules")).text
