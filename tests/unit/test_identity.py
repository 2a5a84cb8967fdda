"""The daemon knows itself, so that it never acts on itself (`semantics.md`, 11)."""

from __future__ import annotations

from typing import Any

import pytest

from remediator.identity import find_identity
from remediator.settings.model import Settings

POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "POD_NAME": "remediator-7d9f8b6c5d-x2x4z", "POD_NAMESPACE": "ops", "NODE_NAME": "node-3"}
CLUSTERS = {"prod": {"kind": "kubernetes", "in_cluster": True}, "eu": {"kind": "kubernetes", "kubeconfig": "x"}}


def settings(**fields: Any) -> Settings:
    """Make settings of these fields."""
    return Settings.model_validate(fields)


def test_s11_in_a_pod_its_namespace_and_node_are_protected_in_every_cluster() -> None:
    """Which connection is our own cluster can't be told: everything in a namespace and on a node of these names is left alone."""
    identity = find_identity(POD, settings(connections=CLUSTERS))
    for cluster in CLUSTERS:
        prefix = f"kubernetes:{cluster}"
        assert {f"{prefix}/ops/", f"{prefix}/-/namespace/ops", f"{prefix}/-/node/node-3"} <= identity.protected
    assert identity.certain


@pytest.mark.parametrize("missing", ["POD_NAME", "POD_NAMESPACE", "NODE_NAME"])
@pytest.mark.parametrize("how", ["absent", "empty"])
def test_s11_identity_is_uncertain_when_the_pod_does_not_say_it_all(missing: str, how: str) -> None:
    """A Pod without the downward API does not know itself; deletes and node-level actions then need a person."""
    environ = {name: value for name, value in POD.items() if name != missing} | ({missing: ""} if how == "empty" else {})
    identity = find_identity(environ, settings(connections=CLUSTERS))
    assert not identity.certain
    assert not any(one.endswith(("//", "/node/", "/namespace/")) for one in identity.protected)


def test_s11_on_a_machine_it_may_be_a_node() -> None:
    """Outside of Pods the machine itself is protected, under its long and its short name."""
    identity = find_identity({}, settings(connections=CLUSTERS), host="web-1.example.com")
    assert {"kubernetes:prod/-/node/web-1", "kubernetes:prod/-/node/web-1.example.com"} <= identity.protected
    assert identity.certain


@pytest.mark.parametrize(("host", "contained"), [("", False), ("0a1b2c3d4e5f", True)])
def test_s11_identity_is_uncertain_in_a_container_or_without_a_name(host: str, contained: bool) -> None:
    """A container does not know on which node it runs."""
    connections = {"engine": {"kind": "docker"}}
    identity = find_identity({}, settings(connections=connections), host=host, contained=contained)
    assert not identity.certain
    assert identity.protected == ({f"docker:engine/-/container/{host}"} if host else set())


def test_s11_its_own_database_is_protected_through_every_connection() -> None:
    """A connection to the server of our store does not reach our database; other databases and servers it does."""
    connections = {
        "same": {"kind": "postgres", "host": "DB.internal", "database": "shop"},
        "port": {"kind": "postgres", "host": "db.internal", "port": 6432},
        "other": {"kind": "postgres", "host": "db2.internal"},
    }
    identity = find_identity({}, settings(store={"url": "postgresql://r@db.internal/remediator"}, connections=connections), host="h")
    assert {one for one in identity.protected if one.startswith("postgres:")} == {"postgres:same/remediator/"}


def test_s11_the_operators_list_is_added() -> None:
    """`protected` of the settings stands beside what was found."""
    found = find_identity({}, settings(), host="h").protected
    assert find_identity({}, settings(protected=["redis:cache/"]), host="h").protected == {*found, "redis:cache/"}
