"""What the daemon can do and look at."""

from __future__ import annotations

import asyncio

from aiohttp import web

from remediator.model import JSON
from remediator.people.authentication import Operation
from remediator.registry import Registry, describe_action, describe_check
from remediator.web.routes import Answer, Call, Route, ok


def _schema(fields: dict[str, JSON]) -> dict[str, JSON]:
    common: dict[str, JSON] = {
        "name": {"type": "string"},
        "description": {"type": "string"},
        "permissions": {"type": "array"},
        "params": {"type": "object", "description": "JSON Schema of the parameters"},
        "example": {"type": "object"},
    }
    item = {"type": "object", "required": sorted({*common, *fields}), "properties": common | fields}
    return {
        "type": "object",
        "required": ["items", "problems"],
        "properties": {
            "items": {"type": "array", "items": item},
            "problems": {"type": "array", "items": {"type": "string"}, "description": "modules that could not be loaded"},
        },
    }


ACTIONS = _schema({"risk": {"enum": ["low", "medium", "high"]}, "reversible": {"type": "boolean"}})
CHECKS = _schema({"facts": {"type": ["object", "array"]}})


def actions(registry: Registry) -> dict[str, JSON]:
    """Describe every action, in the order of names."""
    items = [describe_action(action) for provider in registry.catalogue() for action in provider.actions]
    return {"items": sorted(items, key=lambda item: str(item["name"])), "problems": list(registry.problems)}


def checks(registry: Registry) -> dict[str, JSON]:
    """Describe every check, in the order of names."""
    items = [describe_check(check) for provider in registry.catalogue() for check in provider.checks]
    return {"items": sorted(items, key=lambda item: str(item["name"])), "problems": list(registry.problems)}


async def list_actions(call: Call) -> web.Response:
    """List all actions. Importing every system may take a second, which no webhook should wait for."""
    return ok(await asyncio.to_thread(actions, call.service.registry))


async def list_checks(call: Call) -> web.Response:
    """List all checks."""
    return ok(await asyncio.to_thread(checks, call.service.registry))


ROUTES = (
    Route(
        "GET",
        "/api/v1/actions",
        "listActions",
        "List the catalogue of actions",
        list_actions,
        Operation.READ,
        Answer("All actions.", ACTIONS),
        "catalogue",
    ),
    Route(
        "GET",
        "/api/v1/checks",
        "listChecks",
        "List the catalogue of checks",
        list_checks,
        Operation.READ,
        Answer("All checks.", CHECKS),
        "catalogue",
    ),
)
