"""An admission webhook on loopback that changes objects as a test says; for API servers on this machine only."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

from actions.kubernetes.client import Client
from tests.servers.certificates import Authority
from tests.servers.ports import eventually

CONFIGURATIONS = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
Change = Callable[[Mapping[str, Any]], Sequence[Mapping[str, Any]]]
"""Takes the object that is to be written, returns a JSON patch."""


@asynccontextmanager
async def mutating(
    api: Client, namespace: str, directory: Path, *, group: str, resource: str, name: str, change: Change
) -> AsyncIterator[None]:
    """Have `change` applied to one object whenever it is written, rehearsals included; it must set the annotation `webhook`."""
    authority = Authority(directory / "webhook")

    async def review(request: web.Request) -> web.Response:
        asked = (await request.json())["request"]
        wanted = change(asked["object"]) if asked.get("name") == name else ()
        patch = base64.b64encode(json.dumps(list(wanted)).encode()).decode()
        answer = {"uid": asked["uid"], "allowed": True, "patchType": "JSONPatch", "patch": patch}
        return web.json_response({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": answer})

    app = web.Application()
    app.router.add_post("/", review)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=authority.issue("webhook")).start()
    port = runner.addresses[0][1]
    await api.patch(f"/api/v1/namespaces/{namespace}", {"metadata": {"labels": {"remediator.test/webhook": namespace}}})
    hook = {
        "name": "change.remediator.test",
        "clientConfig": {"url": f"https://127.0.0.1:{port}/", "caBundle": base64.b64encode(authority.ca.read_bytes()).decode()},
        "rules": [{"apiGroups": [group], "apiVersions": ["*"], "operations": ["CREATE", "UPDATE"], "resources": [resource]}],
        "namespaceSelector": {"matchLabels": {"remediator.test/webhook": namespace}},
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
        "failurePolicy": "Ignore",
    }
    made = await api.create(CONFIGURATIONS, {"metadata": {"name": namespace}, "webhooks": [hook]})
    try:
        await _until_asked(api, f"{'/apis/' + group if group else '/api'}/v1/namespaces/{namespace}/{resource}/{name}")
        yield
    finally:
        await api.delete(f"{CONFIGURATIONS}/{namespace}", uid=made["metadata"]["uid"])
        await runner.cleanup()


async def _until_asked(api: Client, path: str) -> None:
    """Wait until the API server has heard of the webhook: it then changes what is rehearsed."""

    async def asked() -> bool:
        got = await api.patch(path, {"metadata": {"labels": {"probe": "x"}}}, dry_run=True)
        return "webhook" in (got["metadata"].get("annotations") or {})

    await eventually(asked, what="the webhook is asked")
