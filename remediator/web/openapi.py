"""The OpenAPI 3.1 document, cut from the route table. Pure."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import JsonSchemaMode

import remediator
from remediator.model import JSON, Actor
from remediator.people.authentication import Operation, Role, allows
from remediator.web.routes import Query, Route

REFERENCE = "#/components/schemas/{model}"
SECURITY: list[JSON] = [{"bearer": []}, {"basic": []}, {"certificate": []}]

PROBLEM: dict[str, JSON] = {
    "type": "object",
    "description": "Why it was refused (RFC 9457). `type` ends in a word from a closed set.",
    "required": ["type", "title", "status", "detail", "instance"],
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string"},
        "error_id": {"type": "string", "description": "of a 500: what to look for in the daemon's log"},
        "errors": {"type": "array", "items": {"type": "object"}, "description": "of a 422: every field at fault"},
        "problems": {"type": "array", "items": {"type": "string"}, "description": "faults in files"},
    },
}

ALERT: dict[str, JSON] = {
    "type": "object",
    "required": ["status", "labels", "startsAt", "fingerprint"],
    "properties": {
        "status": {"enum": ["firing", "resolved"]},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
        "startsAt": {"type": "string", "format": "date-time"},
        "endsAt": {"type": "string", "format": "date-time"},
        "generatorURL": {"type": "string"},
        "fingerprint": {"type": "string"},
    },
}


def describe(routes: Sequence[Route]) -> dict[str, JSON]:
    """Return the whole document."""
    schemas: dict[str, JSON] = {"Problem": PROBLEM, "WebhookAlert": ALERT}
    paths: dict[str, dict[str, JSON]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "remediator", "version": remediator.__version__, "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"}},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "basic": {"type": "http", "scheme": "basic"},
                "certificate": {"type": "mutualTLS"},
            },
        },
    }


def roles_of(operation: Operation) -> tuple[str, ...]:
    """Return the roles that include an operation."""
    return tuple(role.value for role in Role if allows(Actor("-", frozenset({role.value})), operation))


def _operation(route: Route, schemas: dict[str, JSON]) -> dict[str, JSON]:
    text = [route.description] if route.description else []
    if route.operation is not None:
        text.append(f"Roles: {', '.join(roles_of(route.operation))}.")
    described: dict[str, JSON] = {
        "operationId": route.name,
        "tags": [route.tag],
        "summary": route.summary,
        "description": " ".join(text),
        "parameters": [*_path_parameters(route.path), *(_query_parameter(one) for one in route.query)],
        "responses": _responses(route, schemas),
        "security": SECURITY if route.operation is not None else [],
    }
    if route.takes_body:
        schema = route.body_schema if route.body is None else _schema(route.body, schemas, "validation")
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return described


def _path_parameters(path: str) -> Iterable[JSON]:
    for name in re.findall(r"{(\w+)}", path):
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _query_parameter(query: Query) -> JSON:
    schema: dict[str, JSON] = {"type": "string"}
    if query.least is not None:
        schema = {"type": "integer", "minimum": query.least} | ({"maximum": query.most} if query.most is not None else {})
    if query.choices:
        schema["enum"] = list(query.choices)
    if query.default is not None:
        schema["default"] = query.default
    if query.many:
        schema = {"type": "array", "items": schema}
    return {"name": query.name, "in": "query", "required": query.required, "description": query.description, "schema": schema}


def _responses(route: Route, schemas: dict[str, JSON]) -> dict[str, JSON]:
    answer = route.answer
    schema = answer.shape if isinstance(answer.shape, Mapping) else _schema(answer.shape, schemas, "serialization")
    if answer.page:
        schema = _page(schema)
    refusals = _shared(route) | dict(route.refusals)
    return {
        str(answer.status): {"description": answer.description, "content": {answer.content: {"schema": schema}}},
        **{str(status): _refusal(refusals[status]) for status in sorted(refusals)},
    }


def _page(item: JSON) -> JSON:
    cursor = {
        "type": ["string", "integer", "null"],
        "description": "where the next call goes on (`before`, or `after` for events); null at the end",
    }
    properties = {"items": {"type": "array", "items": item}, "next": cursor}
    return {"type": "object", "required": ["items", "next"], "additionalProperties": False, "properties": properties}


def _shared(route: Route) -> dict[int, str]:
    """Say how requests can be refused before the handler sees them."""
    shared = {400: "The query is wrong."}
    if route.operation is not None:
        shared |= {401: "No or unknown credentials.", 403: "The role does not include this."}
    if route.takes_body:
        shared |= {
            408: "The body came too slowly.",
            413: "The body is too long.",
            415: "Not JSON, or encoded.",
            422: "The body has another shape.",
        }
    return shared | {500: "A fault of the daemon.", 503: "Not now; try again."}


def _refusal(text: str) -> JSON:
    return {"description": text, "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}}


@functools.cache
def _made(kind: Any, mode: JsonSchemaMode) -> dict[str, JSON]:
    return TypeAdapter(kind).json_schema(mode=mode, ref_template=REFERENCE)


def _schema(kind: Any, schemas: dict[str, JSON], mode: JsonSchemaMode) -> JSON:
    """Put the schema of a model and all that it needs among `schemas`; return a reference to it."""
    made = dict(_made(kind, mode))
    schemas.update(made.pop("$defs", {}))
    name: str = kind.__name__
    if "$ref" not in made:
        schemas[name] = made
    return {"$ref": f"#/components/schemas/{name}"}
