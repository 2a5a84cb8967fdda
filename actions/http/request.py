"""`http.request`: call an endpoint that changes something (a feature flag, a job trigger, an administrative command)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, ClassVar, Literal, Self
from urllib.parse import urlencode

from pydantic import Field, model_validator

from actions.http.address import HttpConnection, PathParams, Scalar, fill_path
from remediator.action import Action, Context, Permission, PermissionKind
from remediator.errors import OutcomeUnknown, PermanentError, PlanRefused, PreconditionChanged, RemediatorError, TemporaryError
from remediator.httpclient import Answer, HttpError, open_client
from remediator.model import JSON, Change, Health, Impact, Plan, Receipt, Repeat, Risk, Target, Verdict, canonical

MAX_BODY = 16_384


class _RequestParams(PathParams):
    method: Literal["POST", "PUT", "PATCH", "DELETE"] = "POST"
    json_: Any = Field(None, alias="json", description="body, sent as JSON")
    form: Mapping[str, Scalar] | None = Field(None, description="body, sent as a form")
    expect: tuple[int, ...] = Field((200, 201, 202, 204), min_length=1, description="statuses that mean it was done")
    idempotency_header: str | None = Field(
        None, pattern=r"^[A-Za-z][A-Za-z0-9-]{0,63}$", description="header that carries the step's key, where the service knows one"
    )

    @model_validator(mode="after")
    def _body_fits(self) -> Self:
        if self.json_ is not None and self.form is not None:
            raise ValueError("give json or form, not both")
        if len(canonical([self.json_, self.form])) > MAX_BODY:
            raise ValueError(f"the body is larger than {MAX_BODY} bytes")
        if any(not 200 <= status <= 499 for status in self.expect):
            raise ValueError("expect takes final HTTP statuses, 200 to 499: a 5xx never means that it was done")
        return self


class Request(Action[_RequestParams]):
    """Send one HTTP request that changes something.

    It is never sent twice, redirects are not followed, and only a status of `expect` counts as done. 429 and other 4xx mean that
    nothing was done; everything else (5xx, a redirect, a lost answer) leaves the outcome unknown, for a person to settle.
    The connection's scope may limit `method` and `path`.
    """

    name = "http.request"
    Params = _RequestParams
    connection = HttpConnection
    risk = Risk.MEDIUM
    repeat = Repeat.NEVER
    reversible = False
    permissions = (Permission(PermissionKind.HTTP, ("POST", "PUT", "PATCH", "DELETE"), "*"),)
    example: ClassVar[Mapping[str, Any]] = {
        "connection": "flags",
        "method": "PUT",
        "path": "/api/flags/{flag}",
        "args": {"flag": "checkout-v2"},
        "json": {"enabled": False},
        "idempotency_header": "Idempotency-Key",
    }

    async def plan(self, params: _RequestParams, ctx: Context) -> Plan:
        """Spell out the whole request. Nothing is sent."""
        connection = ctx.connection(HttpConnection, params.connection)
        try:
            path, address = fill_path(params.path, params.args), params.target()
            content_type, body = _body(params)
        except ValueError as error:
            raise PlanRefused(f"connection {params.connection!r}: the request can't be made: {error}") from error
        target = f"http:{params.connection}/-/path{path}"
        url = connection.base_url + address
        # The host stands in the intent: an approval of one address must not become a request to another.
        intent: dict[str, JSON] = {"method": params.method, "url": url, "content_type": content_type, "body": body}
        intent |= {"expect": list(params.expect), "idempotency_header": params.idempotency_header}
        return Plan(
            action=self.name,
            summary=f"{params.method} {url}",
            targets=(Target(target, target, scope={"method": params.method, "path": path}),),
            intent=intent,
            precondition={"base_url": connection.base_url},
            changes=(Change(target, f"{params.method} {address}", None, body or None),),
            impact=Impact(touched=1),
            connection=params.connection,
        )

    async def apply(self, plan: Plan, ctx: Context) -> Receipt:
        """Send the request once."""
        connection = ctx.connection(HttpConnection, plan.connection)
        if connection.base_url != plan.precondition["base_url"]:
            raise PreconditionChanged(
                f"connection {plan.connection!r} now leads to {connection.base_url}, not {plan.precondition['base_url']}"
            )
        client = await ctx.client(HttpConnection, plan.connection, open_client)
        what = f"connection {plan.connection!r}"
        headers = {"Content-Type": plan.intent["content_type"]} if plan.intent["content_type"] else {}
        if plan.intent["idempotency_header"]:
            headers[plan.intent["idempotency_header"]] = ctx.key
        try:
            body = plan.intent["body"].encode() if plan.intent["content_type"] else None
            answer = await client.send(ctx, plan.intent["method"], plan.intent["url"], what=what, body=body, headers=headers)
        except HttpError as error:
            raise error.as_action() from error
        if answer.status not in plan.intent["expect"]:
            raise _refusal(answer, f"{what} answered {plan.intent['method']} with", ctx)
        return Receipt(f"{plan.summary}: {answer.status}", {"status": answer.status}, touched=tuple(target.id for target in plan.targets))

    async def verify(self, plan: Plan, receipt: Receipt, ctx: Context) -> Verdict:  # noqa: ARG002 - nothing is read
        """Compare the recorded status: the service said so, and nothing else can be read here."""
        status = receipt.data.get("status")
        if status in plan.intent["expect"]:
            return Verdict(Health.HEALTHY, f"the service answered {status}")
        return Verdict(Health.UNKNOWN, f"no expected status is on record: {status}")


def _body(params: _RequestParams) -> tuple[str, str]:
    """Return (content type, text); both empty for no body."""
    if params.form is not None:
        pairs = [(name, str(value).lower() if isinstance(value, bool) else str(value)) for name, value in params.form.items()]
        return "application/x-www-form-urlencoded", urlencode(pairs)
    if params.json_ is not None:
        return "application/json", json.dumps(params.json_, ensure_ascii=True, allow_nan=False)
    return "", ""


def _refusal(answer: Answer, what: str, ctx: Context) -> RemediatorError:
    """Return the error for a status that was not expected, by what it tells about what was done."""
    # The body may echo what was sent, so only its status is told.
    message = f"{what} {answer.status} {_phrase(answer.status)}".rstrip()
    if answer.status == HTTPStatus.TOO_MANY_REQUESTS:
        return TemporaryError(f"{message}; nothing was done", delay=answer.retry_after(ctx.now))
    if 400 <= answer.status < 500 and answer.status != HTTPStatus.REQUEST_TIMEOUT:
        return PermanentError(f"{message}; nothing was done. Correct the request or the connection's credentials")
    return OutcomeUnknown(f"{message}, which is not in expect; it may or may not have taken effect")


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
