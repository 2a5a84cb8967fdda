"""A container's environment variables, with what they are taken from."""

from __future__ import annotations

import base64
from typing import Any

from tests.servers.kube.api import Api, ApiError

Object = dict[str, Any]


async def environment_of(container: Object, pod: Object, api: Api, *, address: str) -> dict[str, str]:
    """Return the variables of a container. Raises `LookupError` with a kubelet's words when a ConfigMap, Secret or key is missing."""
    namespace = pod["metadata"]["namespace"]
    found: dict[str, str] = {}
    for source in container.get("envFrom") or ():
        kind = "configMapRef" if "configMapRef" in source else "secretRef"
        data = await _data(api, kind, source[kind], namespace)
        found |= {source.get("prefix", "") + key: value for key, value in data.items()}
    for variable in container.get("env") or ():
        value = await _value(variable, pod, api, address=address)
        if value is not None:
            found[variable["name"]] = value
    return found


async def _value(variable: Object, pod: Object, api: Api, *, address: str) -> str | None:
    source = variable.get("valueFrom")
    if source is None:
        return str(variable.get("value", ""))
    if "fieldRef" in source:
        meta = pod["metadata"]
        fields = {
            "metadata.name": meta["name"],
            "metadata.namespace": meta["namespace"],
            "metadata.uid": meta["uid"],
            "spec.nodeName": pod["spec"].get("nodeName", ""),
            "status.podIP": address,
        }
        return str(fields.get(source["fieldRef"]["fieldPath"], ""))
    kind = next((kind for kind in ("configMapKeyRef", "secretKeyRef") if kind in source), None)
    if kind is None:
        return ""
    wanted = source[kind]
    data = await _data(api, kind, wanted, pod["metadata"]["namespace"])
    if wanted["key"] in data:
        return data[wanted["key"]]
    if wanted.get("optional"):
        return None
    what = "Secret" if kind.startswith("secret") else "ConfigMap"
    raise LookupError(f"couldn't find key {wanted['key']} in {what} {pod['metadata']['namespace']}/{wanted['name']}")


async def _data(api: Api, kind: str, reference: Object, namespace: str) -> dict[str, str]:
    resource = "secrets" if kind.startswith("secret") else "configmaps"
    try:
        item = await api.get(f"/api/v1/namespaces/{namespace}/{resource}/{reference['name']}")
    except ApiError as error:
        if reference.get("optional"):
            return {}
        raise LookupError(f'{resource.removesuffix("s")} "{reference["name"]}" not found') from error
    data: dict[str, str] = item.get("data") or {}
    return {key: base64.b64decode(value).decode(errors="replace") for key, value in data.items()} if resource == "secrets" else data
