"""The kill switch."""

from __future__ import annotations

from typing import Annotated

from aiohttp import web
from pydantic import AwareDatetime, Field

from remediator.model import to_json
from remediator.people.authentication import Operation
from remediator.records import EVERYWHERE, Pause
from remediator.web.bodies import Body
from remediator.web.routes import Answer, Call, Route, ok

Scope = Annotated[str, Field(pattern=r"^(global|rule:.{1,200})$", description="`global`, or `rule:NAME`")]


Lifted = Annotated[
    str,
    Field(
        pattern=r"^(global|storm|rule:.{1,200}|watchdog:.{1,300}|remedy:.{1,500})$",
        description="`global`, `rule:NAME`, `storm`: end the storm, `watchdog:…`: that one will not come back, or `remedy:RULE/REMEDY`: it "
        "may be tried again",
    ),
]


class PauseBody(Body):
    """What to stop, and why."""

    scope: Scope = EVERYWHERE
    reason: Annotated[str, Field(min_length=1, max_length=2000, description="why; kept in the audit trail")]


class ResumeBody(Body):
    """What to let go on."""

    scope: Lifted = EVERYWHERE
    reason: Annotated[str, Field(max_length=2000, description="why; kept in the audit trail")] = ""
    at: Annotated[
        AwareDatetime | None, Field(description="when the stop that was seen began (its `since`, else its `at`); another one is not lifted")
    ] = None


async def pause(call: Call) -> web.Response:
    """Throw the kill switch. The service refuses a rule that doesn't exist: a typing error must not look like a stop."""
    sent = call.sent(PauseBody)
    return ok(to_json(await call.service.desk.pause(sent.scope, sent.reason, call.actor)))


async def resume(call: Call) -> web.Response:
    """Lift the kill switch, or end a storm."""
    sent = call.sent(ResumeBody)
    await call.service.desk.resume(sent.scope, sent.reason, call.actor, at=sent.at)
    return ok({"scope": sent.scope, "paused": False})


ROUTES = (
    Route(
        "POST",
        "/api/v1/pause",
        "pause",
        "Throw the kill switch",
        pause,
        Operation.PAUSE,
        Answer("It is thrown, and stays so until somebody lifts it.", Pause),
        "control",
        body=PauseBody,
        refusals={404: "There is no such rule."},
    ),
    Route(
        "POST",
        "/api/v1/resume",
        "resume",
        "Lift the kill switch, or end a storm",
        resume,
        Operation.RESUME,
        Answer(
            "It is lifted.",
            {"type": "object", "required": ["scope", "paused"], "properties": {"scope": {"type": "string"}, "paused": {"const": False}}},
        ),
        "control",
        body=ResumeBody,
        refusals={404: "It was not thrown.", 409: "A file or an annotation still throws it, or it is another one than was seen."},
    ),
)
