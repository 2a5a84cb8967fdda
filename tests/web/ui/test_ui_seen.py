"""Forms are about what stood on the page: a word about something that was replaced meanwhile is refused, and says what is there now."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta

import pytest

from remediator.model import RunState, StepState
from remediator.records import Pause, Run
from remediator.store.protocol import Changes, Reads
from tests.servers.surface import NOW, RUN, Surface, bearer, make_plan, make_run
from tests.web.ui.conftest import Enter, Person, Seen

RUN_PAGE = f"/ui/runs/{RUN}"


async def put(surface: Surface, **changes: object) -> None:
    await surface.service.store.transact(Reads(), lambda _: Changes(**changes))  # type: ignore[arg-type]


def form_of(seen: Seen, ident: str) -> Mapping[str, str]:
    """Return the hidden fields of a form, as a browser would send them."""
    form = seen.text.partition(f'id="form-{ident}"')[2].partition("</form>")[0]
    return dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', form))


async def swap(surface: Surface, scope: str, why: str, *, who: str, later: int = 0) -> None:
    """Lift what stops a scope, and stop it for another reason."""
    pause = Pause(scope, who, why, NOW + timedelta(seconds=later))
    await surface.service.store.transact(Reads(), lambda snapshot: Changes(lift=[scope] if scope in snapshot.pauses else []))
    await put(surface, pauses=[pause])


STOPS = [
    ("global", "/ui/", "lift-global", "/ui/do/resume"),
    ("global", "/ui/rules", "lift-global", "/ui/do/resume"),
    ("rule:site-down", "/ui/", "lift-rule:site-down", "/ui/do/resume"),
    ("rule:site-down", "/ui/rules/site-down", "go", "/ui/do/resume"),
    ("remedy:site-down/roll back", "/ui/", "lift-remedy:site-down/roll back", "/ui/do/resume"),
    ("freeze", "/ui/freezes", "thaw-freeze", "/ui/do/thaw"),
    ("storm", "/ui/", "lift-storm", "/ui/do/resume"),
]


@pytest.mark.parametrize(("scope", "page", "form", "path"), STOPS)
async def test_another_stop_than_the_one_shown_is_not_lifted(
    surface: Surface, enter: Enter, scope: str, page: str, form: str, path: str
) -> None:
    """Who lifts the stop that he read does not lift another one that was set meanwhile; he reads who set that, and why."""
    person = await enter("approver")
    await swap(surface, scope, "FIRST: deploy", who="ann")
    fields = form_of(await person.look(page), form)
    await swap(surface, scope, "SECOND: it deletes things", who="ben", later=60)
    seen = await person.send(path, {**fields, "reason": "the deploy is over"})
    assert seen.status == 409
    assert "this is not the one you saw, so nothing was lifted: ben set" in seen.problem
    assert "SECOND: it deletes things" in seen.problem
    assert (await surface.service.store.pauses())[scope].who == "ben"
    done = await person.send(path, {**form_of(seen, form), "reason": "it is mended"})
    assert done.status == 303
    assert scope not in await surface.service.store.pauses()


async def test_the_api_lifts_only_what_was_seen(surface: Surface, enter: Enter) -> None:
    """Callers of the API may say which stop they mean; without it, it is whichever is there."""
    await swap(surface, "global", "again", who="ben", later=60)
    session = (await enter("viewer")).session
    for body, status in (({"at": NOW.isoformat()}, 409), ({"at": "yesterday"}, 422), ({}, 200)):
        async with session.post(surface.url + "/api/v1/resume", json=body, headers=bearer("approver")) as answer:
            assert answer.status == status


def lost(number: int, *, later: int = 0, undo: bool = False) -> Run:
    """Make a run of two steps that lost the answer of one."""
    steps = [replace(make_run().steps[0], number=one, plan=replace(make_plan(), summary=f"call {one}")) for one in (1, 2)]
    steps = [replace(step, undo_plan=replace(make_plan(), summary=f"take back {step.number}")) for step in steps]
    steps[number - 1] = replace(steps[number - 1], state=StepState.UNKNOWN, undo_intended=undo)
    return make_run(state=RunState.OUTCOME_UNKNOWN, entered_at=NOW + timedelta(seconds=later), steps=tuple(steps), reason=f"step {number}")


async def tell(person: Person, seen: Seen, kind: str, comment: str) -> Seen:
    return await person.send(f"{RUN_PAGE}/signal", {**form_of(seen, "signal"), "kind": kind, "comment": comment})


async def test_s17_a_word_about_one_step_settles_no_other(surface: Surface, enter: Enter) -> None:
    """The question names its step; an answer that comes when the run asks about the next one is refused, and nothing is chosen for it."""
    await put(surface, runs=[lost(1)])
    person = await enter("responder")
    seen = await person.look(RUN_PAGE)
    word = seen.text.partition('id="word"')[2].partition("</section>")[0]
    assert ("call 1" in word, "call 2" in word) == (True, False)
    await put(surface, runs=[lost(2, later=9)])
    refused = await tell(person, seen, "settle_applied", "one is done")
    assert refused.status == 409
    assert "has gone on since you looked, so it was not told" in refused.problem
    assert (await surface.service.store.read(Reads(runs=[RUN]))).signals.get(RUN, ()) == ()
    word = refused.text.partition('id="word"')[2].partition("</section>")[0]
    assert ("call 2" in word, "one is done</textarea>" in word) == (True, True)
    assert "checked" not in word
    assert (await tell(person, refused, "settle_not_applied", "two is not")).status == 303
    (signal,) = (await surface.service.store.read(Reads(runs=[RUN]))).signals[RUN]
    assert (signal.kind, signal.comment) == ("settle_not_applied", "two is not")


async def test_an_undo_of_unknown_outcome_is_asked_about_as_such(surface: Surface, enter: Enter) -> None:
    """`It took effect` means the undo then, not what it was to take back."""
    await put(surface, runs=[lost(2, undo=True)])
    text = (await (await enter("responder")).look(RUN_PAGE)).text
    word = text.partition('id="word"')[2].partition("</section>")[0]
    assert "The UNDO of step 2" in word
    assert ("take back 2" in word, "call 2" in word) == (True, False)
