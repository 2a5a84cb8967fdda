"""Write the settings' reference page. `python -m remediator.settings.reference` prints it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from remediator.action import SecretRef
from remediator.duration import format_duration
from remediator.model import JSON
from remediator.settings.model import Settings

EXAMPLE = """\
dry_run: true
limits: {authority: approve}
alertmanager: [http://alertmanager-0:9093, http://alertmanager-1:9093]
prometheus: {url: https://prometheus.example.com, bearer: {file: secrets/prometheus-token}}
connections:
  production: {kind: kubernetes, in_cluster: true, scope: {namespace: [shop, "shop-*"]}}
  cache: {kind: redis, host: redis.shop, password: {env: REDIS_PASSWORD}}
  chat: {kind: slack, url: {env: SLACK_WEBHOOK_URL}}
escalation:
  default: {notify: [{notify.slack: {connection: chat}}]}
identities:
  alertmanager: {token_sha256: [c47757abe4020b9168d0776f6c91617f9290e790ac2f6ce2bd6787c74ad88199], roles: [alert_sender]}
packs:
  shop: {path: packs/web-service, vars: {namespace: shop}}
"""
"""A settings file to start from; a test loads it."""

_HEAD = (
    """# Settings

<!-- Generated from the models in remediator/settings by `python -m remediator.settings.reference`; do not edit. -->

One YAML file, `remediator.yaml`, named with `--config`. Relative paths start at its directory. Every field can be overridden by an
environment variable: `REMEDIATOR_` and the field's path in upper case, its parts joined by two underscores, its value written as in
YAML: `REMEDIATOR_LIMITS__MAX_ACTING=3`. Unknown fields are errors.

Secrets never stand in this file: where one is needed, write a [reference](#secretref). Durations are written like `90s`, `10m`, `1h30m`
or `7d`. *Reload* says whether a reload (`SIGHUP`, `POST /-/reload`) applies a change; otherwise it waits for a restart.

```yaml
"""
    + EXAMPLE
    + """```
"""
)


def settings_reference() -> str:
    """Return the reference page in Markdown."""
    sections = (section for model in _models(Settings, set()) for section in _section(model))
    return "\n".join([_HEAD, *sections])


def _models(model: type[BaseModel], seen: set[type[BaseModel]]) -> Iterator[type[BaseModel]]:
    """Give a model and all models its fields use, each once, in the order of the fields."""
    if model in seen:
        return
    seen.add(model)
    yield model
    for info in model.model_fields.values():
        for found in _models_in(info.annotation):
            yield from _models(found, seen)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


def _section(model: type[BaseModel]) -> Iterator[str]:
    title = "All settings" if model is Settings else model.__name__
    yield f"## {title}\n\n{' '.join((model.__doc__ or '').split())}\n"
    yield "| field | value | default | reload | meaning |\n|---|---|---|---|---|"
    properties = model.model_json_schema()["properties"]
    for name, info in model.model_fields.items():
        written = info.alias or name
        cells = (f"`{written}`", _type(properties[written]), _default(info), _reload(model, info), info.description or "")
        yield f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"
    yield ""


def _type(node: Mapping[str, Any]) -> str:
    """Return a schema's kind of value in words."""
    if "$ref" in node:
        name = node["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})" if name not in _WORDS else _WORDS[name]
    if "anyOf" in node:
        return " or ".join(dict.fromkeys(_type(one) for one in node["anyOf"] if one.get("type") != "null"))
    if "enum" in node:
        return ", ".join(f"`{one}`" for one in node["enum"])
    if node.get("type") == "array":
        return f"list of {_type(node['items'])}"
    if node.get("type") == "object":
        inner = next(iter(node.get("patternProperties", {}).values()), node.get("additionalProperties"))
        return f"names to {_type(inner)}" if isinstance(inner, dict) and inner else "mapping"
    if "1h30m" in node.get("examples", ()):
        return "duration"
    return {"string": "text", "integer": "whole number", "boolean": "true or false", "number": "number"}.get(
        str(node.get("type")), "any value"
    )


_WORDS = {
    "Authority": "`observe`, `approve`, `auto`",
    "Reset": "`auto`, `person`",
    "Role": "role",
    "Unless": "`acknowledged`, `resolved`",
    "Effect": "`freeze`, `approve`",
}


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True)
    if value is None or value == "":
        return "none"
    if isinstance(value, BaseModel):
        return "its defaults"
    text = json.dumps(_plain(value), ensure_ascii=False)
    return f"`{text.strip(chr(34))}`"


def _plain(value: Any) -> JSON:
    if isinstance(value, Mapping):
        return _plain(value[""]) if set(value) == {""} else {name: _plain(item) for name, item in value.items()}
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_defaults=True)
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return format_duration(value) if isinstance(value, timedelta) else value


def _reload(model: type[BaseModel], info: FieldInfo) -> str:
    if model is SecretRef:
        return "as the field it stands in"
    if any(True for _ in _models_in(info.annotation)) and isinstance(info.get_default(call_default_factory=True), BaseModel):
        return "by field"
    extra = info.json_schema_extra
    return "yes" if isinstance(extra, dict) and extra.get("reload") is True else "no"


if __name__ == "__main__":
    sys.stdout.write(settings_reference())
