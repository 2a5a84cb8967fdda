"""Forms: what they do, who may send them, and what becomes of what was typed."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape

import pytest

from remediator.errors import StoreUnavailable
from remediator.model import ApprovalState, IncidentState, RunState
from remediator.settings.stopping import KillSwitchSettings
from remediator.store.protocol import Changes, Reads
from remediator.web.app import ROUTES
from remediator.web.ui.acts import ACTS
from tests.servers.surface import APPROVAL, INCIDENT, NOW, PLAN_HASH, RUN, Surface, make_run, token_of
from tests.web.ui.conftest import Enter, Seen

RUN_PAGE = f"/ui/runs/{RUN}"
INCIDENT_PAGE = f"/ui/incidents/{INCIDENT}"
DECIDE = f"/ui/approvals/{APPROVAL}/decide"
TYPED = "words that took <b>long</b> to write"


def test_every_form_leads_to_a_route_that_asks_for_a_right() -> None:
    """No form does anything that the API does not do, and none goes without a right."""
    routes = {route.name: route for route in ROUTES}
    for act in ACTS:
        assert routes[act.route].method == "POST"
        assert routes[act.route].operation is not None


def where(seen: Seen) -> str:
    """Return the page that an act leads to, without what is said there."""
    assert "?said=" in seen.headers["Location"]
    return str(seen.headers["Location"]).partition("?")[0]


# --- what they do


async def test_approving_with_a_comment(surface: Surface, enter: Enter) -> None:
    """An approver of the wanted group approves the plan that the page shows; the page says so."""
    person = await enter("sre")
    done = await person.act(RUN_PAGE, DECIDE, form="approve", plan_hash=PLAN_HASH, decision="approve", comment="go on")
    assert (done.status, where(done)) == (303, RUN_PAGE)
    approval = await surface.service.store.approval(APPROVAL)
    assert approval is not None
    assert approval.state is ApprovalState.APPROVED
    assert [(vote.who, vote.comment) for vote in approval.votes] == [("sre", "go on")]
    seen = await person.look(done.headers["Location"])
    assert "Your approval is recorded." in seen.text
    assert "go on" in seen.text


async def test_another_plan_than_the_one_seen_is_not_approved(surface: Surface, enter: Enter) -> None:
    """Who decides on a page that is older than the plan approves nothing; his comment is kept."""
    person = await enter("sre")
    seen = await person.act(RUN_PAGE, DECIDE, form="approve", plan_hash="b" * 64, decision="approve", comment=TYPED)
    assert seen.status == 409
    assert "asks for another plan than the one you saw" in seen.problem
    assert "words that took &lt;b&gt;long&lt;/b&gt; to write</textarea>" in seen.text
    approval = await surface.service.store.approval(APPROVAL)
    assert approval is not None
    assert approval.votes == ()


async def test_what_is_approved_is_what_is_shown(surface: Surface, enter: Enter) -> None:
    """The hash that is sent stands in the part with the plan, so that no form can be about another; a form without one is about none."""
    person = await enter("sre")
    shown = (await person.look(RUN_PAGE)).text
    plan = shown[shown.index('id="part-plan"') : shown.index("</section>", shown.index('id="part-plan"'))]
    assert f'<input type="hidden" name="plan_hash" value="{PLAN_HASH}" form="form-approve">' in plan
    assert shown.count('name="plan_hash"') == 1
    seen = await person.act(RUN_PAGE, DECIDE, form="approve", decision="approve")
    assert (seen.status, "asks for another plan than the one you saw" in seen.problem) == (409, True)
    assert (approval := await surface.service.store.approval(APPROVAL)) is not None
    assert approval.votes == ()


async def test_pausing_and_resuming(surface: Surface, enter: Enter) -> None:
    """The kill switch is on every page, and once it is thrown the way back is, for those who may."""
    person = await enter("approver")
    done = await person.act("/ui/rules", "/ui/do/pause", form="kill", scope="global", reason="look at this first")
    assert where(done) == "/ui/rules"
    assert (await surface.service.store.pauses())["global"].who == "approver"
    seen = await person.look("/ui/incidents")
    assert "look at this first" in seen.text
    assert "Let everything act again" in seen.text
    assert "Let everything act again" not in (await (await enter("responder")).look("/ui/")).text
    await person.act("/ui/", "/ui/do/resume", form="lift-global", scope="global", reason="")
    assert await surface.service.store.pauses() == {}


@pytest.mark.parametrize(
    ("fields", "scope", "ends"),
    [
        ({"scope": "global", "ends": "1h"}, "freeze", True),
        ({"scope": "rule:site-down", "ends": "person"}, "freeze:rule:site-down", False),
        ({"scope": "connection:prod", "ends": "until", "until": "2099-01-01T03:00"}, "freeze:connection:prod", True),
    ],
)
async def test_freezing_and_thawing(surface: Surface, enter: Enter, fields: dict[str, str], scope: str, ends: bool) -> None:
    """What is frozen by a form stands on the page with its reason, and is thawed by another."""
    person = await enter("approver")
    done = await person.act("/ui/freezes", "/ui/do/freeze", form="freeze", reason="we are <moving>", **fields)
    assert where(done) == "/ui/freezes"
    row = (await surface.service.store.pauses())[scope]
    assert (row.why, row.until is not None) == ("we are <moving>", ends)
    if fields["ends"] == "until":
        assert f"{row.until:%Y-%m-%d %H:%M %Z}" == "2099-01-01 03:00 UTC"
    assert "we are &lt;moving&gt;" in (await person.look("/ui/freezes")).text
    await person.act("/ui/freezes", "/ui/do/thaw", form="thaw", scope=scope, reason="moved")
    assert await surface.service.store.pauses() == {}


async def test_a_freeze_that_is_refused_keeps_all_that_was_typed(enter: Enter) -> None:
    """A missing reason or an end that is past: the page says what to do, and the form is as it was."""
    person = await enter("approver")
    fields = {"form": "freeze", "scope": "rule:site-down", "ends": "until", "until": "2020-01-01T03:00", "reason": TYPED}
    seen = await person.act("/ui/freezes", "/ui/do/freeze", **fields)
    assert seen.status == 422
    assert "it would be over already: 2020-01-01 03:00:00Z is past" in seen.problem
    for kept in ("to write</textarea>", 'value="2020-01-01T03:00"', 'value="rule:site-down" selected', 'value="until" selected'):
        assert kept in seen.text
    seen = await person.act("/ui/freezes", "/ui/do/freeze", **fields | {"reason": " "})
    assert (seen.status, "reason: Field required" in seen.problem) == (422, True)


@pytest.mark.parametrize(
    ("ends", "until", "words"),
    [
        ("1h", "2099-01-01T03:00", "you typed the end 2099-01-01T03:00 and chose “1h”"),
        ("person", "2099-01-01T03:00", "and chose “until somebody thaws it”"),
        ("until", "", "and gave no time"),
    ],
)
async def test_a_freeze_has_one_end(surface: Surface, enter: Enter, ends: str, until: str, words: str) -> None:
    """An end that was typed is never ignored: fields that disagree are refused, and kept."""
    person = await enter("approver")
    fields = {"form": "freeze", "scope": "global", "ends": ends, "until": until, "reason": TYPED}
    seen = await person.act("/ui/freezes", "/ui/do/freeze", **fields)
    assert seen.status == 422
    assert words in seen.problem
    assert f'value="{until}"' in seen.text
    assert await surface.service.store.pauses() == {}


async def test_taking_acknowledging_releasing(surface: Surface, enter: Enter) -> None:
    """A responder makes an incident his own for a time, and gives it back."""
    person = await enter("responder")
    await person.act(INCIDENT_PAGE, f"{INCIDENT_PAGE}/acknowledge", form="acknowledge")
    incident = await surface.service.store.incident(INCIDENT)
    assert incident is not None
    assert (incident.owner, incident.state) == ("responder", IncidentState.OPEN)
    await person.act(INCIDENT_PAGE, f"{INCIDENT_PAGE}/take", form="take", reason="I have it", span="1h")
    hold = (await surface.service.store.pauses())[f"taken:{INCIDENT}"]
    assert (hold.who, hold.why) == ("responder", "I have it")
    assert hold.until is not None
    seen = await (await enter("sre")).act(INCIDENT_PAGE, f"{INCIDENT_PAGE}/take", form="take", reason=TYPED, span="4h")
    assert seen.status == 403
    assert "taken by responder" in seen.problem
    await person.act(INCIDENT_PAGE, f"{INCIDENT_PAGE}/release", form="release", reason="done")
    assert await surface.service.store.pauses() == {}


async def test_taking_and_releasing_a_target(surface: Surface, enter: Enter) -> None:
    """A target is taken by its canonical id; one that can't be is refused with what was typed; only who has it is offered the way back."""
    person = await enter("responder")
    for target, status in (("kubernetes:nowhere/shop/", 404), ("just a name", 422)):
        seen = await person.act("/ui/freezes", "/ui/do/take-target", form="take-target", target=target, reason=TYPED)
        assert seen.status == status
        assert f'value="{target}"' in seen.text
    await person.act("/ui/freezes", "/ui/do/take-target", form="take-target", target="kubernetes:prod/shop/", reason="mine", span="1h")
    assert (await surface.service.store.pauses())["taken:target:kubernetes:prod/shop/"].why == "mine"
    assert "/ui/do/release-target" not in (await (await enter("approver")).look("/ui/")).text
    assert "/ui/do/release-target" in (await person.look("/ui/")).text
    await person.act("/ui/", "/ui/do/release-target", form="release", target="kubernetes:prod/shop/")
    assert await surface.service.store.pauses() == {}


async def test_a_run_is_told_only_what_it_takes(enter: Enter) -> None:
    """A word that a run does not wait for is refused with what it takes."""
    person = await enter("approver")
    seen = await person.act(RUN_PAGE, f"{RUN_PAGE}/signal", form="signal", kind="settle_applied", comment=TYPED)
    assert seen.status == 409
    assert "it takes nothing, not settle_applied" in seen.problem


async def test_a_rule_is_demoted_and_promoted(surface: Surface, enter: Enter) -> None:
    """What a rule has not earned is refused with what it lacks."""
    person = await enter("approver")
    await person.act("/ui/rules/site-down", "/ui/rules/site-down/demote", form="demote", to="observe", reason="it did harm")
    assert (await surface.service.store.pauses())["demoted:site-down"].mark == "observe"
    assert "it did harm" in (await person.look("/ui/")).text
    done = await person.act("/ui/rules/site-down", "/ui/rules/site-down/promote", form="promote", to="approve", reason="mended")
    assert done.status == 303
    assert (await surface.service.store.pauses())["demoted:site-down"].mark == "approve"


# --- who may


@pytest.mark.parametrize("role", ["viewer", "rule_editor"])
async def test_what_a_caller_may_not_do_is_not_offered_and_is_refused(surface: Surface, enter: Enter, role: str) -> None:
    """Pages of those who only read hold no form that changes anything; one that is sent all the same is refused, and changes nothing."""
    person = await enter(role)
    for page in ("/ui/", INCIDENT_PAGE, RUN_PAGE, "/ui/freezes", "/ui/rules/site-down"):
        text = (await person.look(page)).text
        offered = {act.path for act in ACTS if f'action="{act.path.partition("{")[0]}' in text}
        assert offered <= {"/ui/do/reload"}, page
    before = await surface.service.store.counts()
    for path, fields in (
        ("/ui/do/pause", {"scope": "global", "reason": "x"}),
        ("/ui/do/freeze", {"scope": "global", "reason": "x", "ends": "1h"}),
        (DECIDE, {"decision": "approve", "plan_hash": PLAN_HASH}),
        (f"{INCIDENT_PAGE}/take", {}),
        (f"{RUN_PAGE}/signal", {"kind": "close"}),
        ("/ui/rules/site-down/promote", {"to": "auto", "reason": "x", "force": "on"}),
    ):
        seen = await person.act("/ui/", path, **fields)
        assert seen.status == 403, path
        assert "does not include" in seen.problem
    assert (await surface.service.store.pauses(), await surface.service.store.counts()) == ({}, before)


async def test_why_somebody_cannot_decide_is_said_before_he_tries(enter: Enter) -> None:
    """An approver who is not in the wanted group sees why; a viewer sees that his role is not enough; neither is offered the button."""
    for role, words in (("approver", "approver is in none of the groups sre"), ("viewer", "do not include approving")):
        text = (await (await enter(role)).look(RUN_PAGE)).text
        assert words in text
        assert 'value="approve"' not in text
    assert 'value="approve"' in (await (await enter("sre")).look(RUN_PAGE)).text


async def test_forcing_a_promotion_is_an_admins(enter: Enter) -> None:
    """An approver who adds the field by hand is refused by the API's own rule."""
    person = await enter("approver")
    fields = {"to": "auto", "reason": "x", "force": "on"}
    seen = await person.act("/ui/rules/site-down", "/ui/rules/site-down/promote", form="promote", **fields)
    assert seen.status == 403
    assert "forcing a promotion is an admin's" in seen.problem


# --- from where


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
    ],
)
async def test_another_site_sends_no_form(surface: Surface, enter: Enter, headers: dict[str, str]) -> None:
    """A page of another site, or one without an origin, can send nothing, with whatever mark."""
    person = await enter("admin")
    csrf = (await person.look("/ui/")).csrf
    for path in ("/ui/do/pause", "/ui/sign-out", "/ui/sign-in"):
        seen = await person.send(path, {"csrf": csrf, "scope": "global", "reason": "x", "token": "x"}, **headers)
        assert seen.status == 403
        assert "a page of another site may not send this" in seen.text
    assert await surface.service.store.pauses() == {}


async def test_a_form_of_another_session_does_nothing_and_loses_nothing(surface: Surface, enter: Enter) -> None:
    """A form with another session's mark, or none, is shown again with what was typed, and a mark that is good."""
    person = await enter("admin")
    other = (await (await enter("admin")).look("/ui/")).csrf
    for mark in (other, ""):
        fields = {"csrf": mark, "back": "/ui/rules", "form": "kill", "scope": "global", "reason": TYPED}
        seen = await person.send("/ui/do/pause", fields)
        assert seen.status == 403
        assert "made in an earlier session" in seen.problem
        assert "to write</textarea>" in seen.text
        assert await surface.service.store.pauses() == {}
        assert seen.csrf not in (other, "")
    await person.send("/ui/do/pause", {**fields, "csrf": seen.csrf})
    assert "global" in await surface.service.store.pauses()


async def test_a_form_after_the_session_does_nothing_and_loses_nothing(surface: Surface, enter: Enter) -> None:
    """Whoever was signed out meanwhile is told that nothing was done; after signing in the form is there with all that was typed."""
    person = await enter("admin")
    csrf = (await person.look("/ui/freezes")).csrf
    person.session.cookie_jar.clear()
    fields = {"form": "freeze", "scope": "rule:site-down", "ends": "4h", "until": "", "reason": TYPED}
    seen = await person.send("/ui/do/freeze", {"csrf": csrf, "back": "/ui/freezes", **fields})
    assert seen.status == 401
    assert "nothing was done" in seen.problem
    kept = re.search(r'name="kept" value="([^"]+)"', seen.text)
    assert kept is not None
    assert csrf not in kept[1]
    seen = await person.send("/ui/sign-in", {"token": "wrong", "to": "/ui/freezes", "kept": unescape(kept[1])})
    assert (seen.status, kept[0] in seen.text) == (401, True)
    seen = await person.send("/ui/sign-in", {"token": token_of("admin"), "to": "/ui/freezes", "kept": unescape(kept[1])})
    assert (seen.status, seen.headers["Location"], seen.text) == (303, "/ui/freezes", "")  # no page: the history would hold the token
    script = await person.look("/ui/freezes", **{"Sec-Fetch-Mode": "cors"})
    assert (script.status, "to write</textarea>" in script.text) == (200, False)
    seen = await person.look("/ui/freezes")
    assert "you were signed out when you sent this" in seen.problem
    assert "to write</textarea>" in seen.text
    assert await surface.service.store.pauses() == {}
    done = await person.send("/ui/do/freeze", {"csrf": seen.csrf, "back": "/ui/freezes", **fields})
    assert where(done) == "/ui/freezes"
    assert "to write</textarea>" not in (await person.look("/ui/freezes")).text


async def test_a_person_settles_an_unknown_outcome(surface: Surface, enter: Enter) -> None:
    """What somebody found is told to the run, once."""
    changes = Changes(runs=[replace(make_run(), state=RunState.OUTCOME_UNKNOWN)])
    await surface.service.store.transact(Reads(), lambda _: changes)
    person = await enter("responder")
    done = await person.act(RUN_PAGE, f"{RUN_PAGE}/signal", form="signal", kind="settle_not_applied", comment="I looked")
    assert where(done) == RUN_PAGE
    (signal,) = (await surface.service.store.read(Reads(runs=[RUN]))).signals[RUN]
    assert (signal.kind, signal.who, signal.comment) == ("settle_not_applied", "responder", "I looked")
    fields = {"form": "signal", "kind": "settle_applied", "comment": TYPED, "entered_at": NOW.isoformat()}
    seen = await person.act(RUN_PAGE, f"{RUN_PAGE}/signal", **fields)
    assert seen.status == 409
    assert "was told settle_not_applied already" in seen.problem
    assert 'value="settle_applied" required checked' in seen.text


async def test_bodies_that_are_no_forms_are_refused(enter: Enter) -> None:
    """JSON, files, too many fields and megabytes are refused before anything is done with them."""
    person = await enter("admin")
    url = person.url + "/ui/do/pause"
    many = "&".join(f"f{number}=x" for number in range(100))
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    for data, headers, status in (
        (b"{}", {"Content-Type": "application/json"}, 415),
        (b"x", {"Content-Type": "multipart/form-data; boundary=x"}, 415),
        (many.encode(), form, 400),
        (b"a=%ff", form, 400),
        (b"a" * 70_000, form, 413),
    ):
        async with person.session.post(url, data=data, headers=headers) as answer:
            assert answer.status == status
            assert answer.content_type == "text/html"


async def test_the_way_back_stays_on_these_pages(enter: Enter) -> None:
    """A form that names another address as its page leads to the overview."""
    person = await enter("admin")
    csrf = (await person.look("/ui/")).csrf
    done = await person.send("/ui/do/pause", {"csrf": csrf, "back": "https://evil.example/", "scope": "global", "reason": "x"})
    assert where(done) == "/ui/"


async def test_no_link_puts_words_on_a_page(enter: Enter) -> None:
    """What is said after an act is one of a few sentences; anything else in the address says nothing."""
    person = await enter("viewer")
    text = (await person.look("/ui/?said=All+is+well,+go+home")).text
    assert "go home" not in text.replace("back", "")


@pytest.mark.parametrize("is_set", [True, False])
async def test_without_the_store_nothing_typed_is_lost_and_the_way_to_stop_is_said(
    surface: Surface, enter: Enter, monkeypatch: pytest.MonkeyPatch, is_set: bool
) -> None:
    """Who stops everything just when the store is gone gets his reason back, and reads what stops it all the same."""
    person = await enter("approver")
    csrf = (await person.look("/ui/")).csrf
    if is_set:
        outside = {"file": "/var/lib/remediator/stop", "configmap": {"connection": "prod", "namespace": "platform", "name": "remediator"}}
        settings = KillSwitchSettings.model_validate(outside)
        surface.service.settings = surface.service.settings.model_copy(update={"kill_switch": settings})

    async def down(*_: object, **__: object) -> None:
        raise StoreUnavailable("the store can't be reached")

    for name in ("read", "transact", "incidents", "approvals", "runs"):
        monkeypatch.setattr(surface.service.store, name, down)
    seen = await person.send("/ui/do/pause", {"csrf": csrf, "back": "/ui/", "form": "kill", "scope": "global", "reason": TYPED})
    assert (seen.status, seen.headers["Retry-After"]) == (503, "5")
    assert "words that took &lt;b&gt;long&lt;/b&gt; to write" in seen.text
    assert "Without its store it begins no call" in seen.text
    if is_set:
        assert "touch /var/lib/remediator/stop" in seen.text
        assert "kubectl -n platform annotate configmap remediator remediator.dev/stop=why" in seen.text
    else:
        assert "the settings name no other way" in seen.text
    assert csrf not in seen.text


async def test_a_form_whose_page_is_gone_is_answered(enter: Enter) -> None:
    """Where the form's own page can't be shown again, the reason why it was refused is."""
    person = await enter("sre")
    csrf = (await person.look("/ui/")).csrf
    seen = await person.send("/ui/runs/none/signal", {"csrf": csrf, "back": "/ui/runs/none", "kind": "close"})
    assert seen.status == 404
    assert seen.problem == "there is no run 'none'"
