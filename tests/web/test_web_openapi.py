"""The OpenAPI document: valid, complete, and true of what is really answered."""

from __future__ import annotations

from typing import Any

from aiohttp import ClientSession, web
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from prometheus_client import CollectorRegistry

from remediator.metrics import Metrics
from remediator.people.authentication import Authenticator
from remediator.web import create_app
from remediator.web.app import ROUTES
from remediator.web.openapi import describe
from remediator.web.ui.entry import NAMES as PAGES
from tests.servers.surface import APPROVAL, INCIDENT, RUN, Rules, Surface, SurfaceService, bearer, make_settings, webhook

GOOD: list[tuple[str, str, str, Any]] = [
    ("GET", "/api/v1/incidents", "/api/v1/incidents", None),
    ("GET", "/api/v1/incidents/{incident}", f"/api/v1/incidents/{INCIDENT}", None),
    ("GET", "/api/v1/incidents/{incident}/events", f"/api/v1/incidents/{INCIDENT}/events", None),
    ("POST", "/api/v1/incidents/{incident}/acknowledge", f"/api/v1/incidents/{INCIDENT}/acknowledge", None),
    ("GET", "/api/v1/incidents/{incident}/escalation", f"/api/v1/incidents/{INCIDENT}/escalation", None),
    ("POST", "/api/v1/incidents/{incident}/take", f"/api/v1/incidents/{INCIDENT}/take", {"reason": "I have it", "for": "2h"}),
    ("GET", "/api/v1/incidents/{incident}", f"/api/v1/incidents/{INCIDENT}", None),
    ("POST", "/api/v1/incidents/{incident}/release", f"/api/v1/incidents/{INCIDENT}/release", {}),
    ("POST", "/api/v1/targets/take", "/api/v1/targets/take", {"target": "kubernetes:prod/shop/"}),
    ("POST", "/api/v1/targets/release", "/api/v1/targets/release", {"target": "kubernetes:prod/shop/"}),
    ("GET", "/api/v1/runs", "/api/v1/runs", None),
    ("GET", "/api/v1/runs/{run}", f"/api/v1/runs/{RUN}", None),
    ("GET", "/api/v1/approvals", "/api/v1/approvals", None),
    ("GET", "/api/v1/approvals/{approval}", f"/api/v1/approvals/{APPROVAL}", None),
    ("POST", "/api/v1/approvals/{approval}", f"/api/v1/approvals/{APPROVAL}", {"decision": "approve"}),
    ("POST", "/api/v1/pause", "/api/v1/pause", {"reason": "test"}),
    ("POST", "/api/v1/resume", "/api/v1/resume", {}),
    ("POST", "/api/v1/freeze", "/api/v1/freeze", {"reason": "test", "for": "2h"}),
    ("GET", "/api/v1/freezes", "/api/v1/freezes", None),
    ("POST", "/api/v1/thaw", "/api/v1/thaw", {}),
    ("GET", "/api/v1/events", "/api/v1/events?chain=system", None),
    ("GET", "/api/v1/rules", "/api/v1/rules", None),
    ("GET", "/api/v1/rules/{rule}", "/api/v1/rules/site-down", None),
    ("GET", "/api/v1/scorecard", "/api/v1/scorecard", None),
    ("POST", "/api/v1/rules/{rule}/demote", "/api/v1/rules/site-down/demote", {"reason": "test", "to": "observe"}),
    ("POST", "/api/v1/rules/{rule}/promote", "/api/v1/rules/site-down/promote", {"reason": "test", "to": "approve", "force": True}),
    ("GET", "/api/v1/actions", "/api/v1/actions", None),
    ("GET", "/api/v1/checks", "/api/v1/checks", None),
    ("GET", "/api/v1/status", "/api/v1/status", None),
    ("GET", "/api/v1/audit/verify", "/api/v1/audit/verify", None),
    ("GET", "/-/healthy", "/-/healthy", None),
    ("GET", "/-/ready", "/-/ready", None),
    ("POST", "/-/reload", "/-/reload", None),
    ("GET", "/api/v1/openapi.json", "/api/v1/openapi.json", None),
    ("POST", "/api/v1/alerts", "/api/v1/alerts", webhook()),
    ("POST", "/api/v1/rehearse", "/api/v1/rehearse", {"labels": {"alertname": "SiteDown"}}),
]


def test_document_is_valid() -> None:
    """It is an OpenAPI 3.1 document, and every name of an operation is there once."""
    document = describe(ROUTES)
    OpenAPIV31SpecValidator(document).validate()
    assert len({route.name for route in ROUTES}) == len(ROUTES)


def test_every_route_is_described_and_every_description_is_a_route(tmp_path: Any) -> None:
    """The server's own table and the document name the same routes; pages for people are no part of the API."""
    service = SurfaceService(None, make_settings(), Rules(()))  # type: ignore[arg-type]
    app = create_app(service, Metrics(CollectorRegistry()), lambda: Authenticator({}))
    routes = [route for route in app.router.routes() if isinstance(route, web.ResourceRoute) and route.name not in PAGES]
    served = {(route.method, route.resource.canonical) for route in routes}
    described = {(method.upper(), path) for path, item in describe(ROUTES)["paths"].items() for method in item}
    assert served == described


def test_every_operation_tells_its_roles_and_refusals() -> None:
    """Whoever reads the document knows who may call it and how it refuses."""
    for item in describe(ROUTES)["paths"].values():
        for operation in item.values():
            assert {"400", "500", "503"} <= operation["responses"].keys()
            if operation["security"]:
                assert {"401", "403"} <= operation["responses"].keys()
                assert "Roles: " in operation["description"]
            if "requestBody" in operation:
                assert {"408", "413", "415", "422"} <= operation["responses"].keys()


async def test_answers_are_as_described(surface: Surface, http: ClientSession) -> None:
    """Every good answer has the status and the shape that the document promises."""
    document = describe(ROUTES)
    for method, path, url, body in GOOD:
        # `sre` may approve and is in the group; `admin` may everything else.
        headers = bearer("sre" if "approvals" in path else "admin") | {"Content-Type": "application/json"}
        sent = {"data": body} if isinstance(body, bytes) else {"json": body} if body is not None else {}
        async with http.request(method, surface.url + url, headers=headers, **sent) as answer:
            text = await answer.text()
            operation = document["paths"][path][method.lower()]
            status = next(iter(operation["responses"]))
            assert answer.status == int(status), f"{method} {url}: {text}"
            schema = operation["responses"][status]["content"]["application/json"]["schema"]
            whole = {**schema, "components": document["components"]}
            OAS31Validator(whole).validate(await answer.json())
    tested = {(method, path) for method, path, _, _ in GOOD}
    streamed = {("GET", "/metrics"), ("GET", "/api/v1/audit/export")}
    streamed |= {("POST", "/api/v1/runs/{run}/signals"), ("POST", "/api/v1/runs/{run}/undo")}
    assert tested | streamed == {(route.method, route.path) for route in ROUTES}
