"""What the settings of clusters allow and hardly mean: two names for one cluster, and a server that nobody verifies."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from actions.kubernetes.connection import KubernetesConnection
from actions.kubernetes.doubts import may_meet, place_of

SERVER = "https://10.0.0.1:6443"


def kubeconfig(directory: Path, name: str, **servers: Mapping[str, Any]) -> str:
    """Write a kubeconfig with one context for each cluster, and return its path."""
    path = directory / name
    text = {
        "contexts": [{"name": one, "context": {"cluster": one, "user": "me"}} for one in servers],
        "clusters": [{"name": one, "cluster": dict(cluster)} for one, cluster in servers.items()],
        "users": [{"name": "me", "user": {"token": "hunter2"}}],
    }
    path.write_text(json.dumps(text))
    return str(path)


def doubts(**connections: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return what is told about each connection, where anything is."""
    models = {name: KubernetesConnection.model_validate(one) for name, one in connections.items()}
    found = {name: list(model.doubts(name, models)) for name, model in models.items()}
    return {name: texts for name, texts in found.items() if texts}


def test_s10_two_names_for_one_cluster_have_two_locks_for_one_object(tmp_path: Path) -> None:
    """The later name has the warning, by whatever way it leads there; the token beside is never told."""
    path = kubeconfig(tmp_path, "config", here={"server": f"{SERVER}/"}, there={"server": "https://10.0.0.2"})
    found = doubts(
        one={"server": "https://10.0.0.1:6443"},
        two={"kubeconfig": path, "context": "here"},
        three={"kubeconfig": path, "context": "there"},
        four={"server": "https://10.0.0.2:443", "scope": {"namespace": ["shop"]}},
    )
    assert list(found) == ["two", "four"]
    assert "connections.two and connections.one both lead to https://10.0.0.1:6443" in found["two"][0]
    assert "two runs may act on the same object at once" in found["two"][0]
    assert "hunter2" not in str(found)


@pytest.mark.parametrize(
    ("one", "other", "meet"),
    [
        ({}, {}, True),
        ({"namespace": ["shop"]}, {}, True),
        ({"namespace": ["shop"]}, {"namespace": ["cart"]}, False),
        ({"namespace": ["shop-1"]}, {"namespace": ["cart", "shop-*"]}, True),
        ({"namespace": ["cart"]}, {"namespace": ["shop-*"]}, False),
        ({"namespace": ["shop-*"]}, {"namespace": ["*-eu"]}, True),
        ({"namespace": ["shop"], "node": ["a-*"]}, {"namespace": ["cart"], "node": ["a-1"]}, True),
        ({"namespace": ["shop"], "node": ["a-*"]}, {"namespace": ["cart"]}, False),
    ],
)
def test_scopes_apart_from_each_other_need_no_warning(one: Any, other: Any, meet: bool) -> None:
    """A connection for each team, say: what can't lie in both scopes is never locked twice."""
    assert may_meet(one, other) is may_meet(other, one) is meet
    assert bool(doubts(one={"server": SERVER, "scope": one}, other={"server": SERVER, "scope": other})) is meet


def test_a_server_that_nobody_verifies_is_told(tmp_path: Path) -> None:
    """`insecure-skip-tls-verify`, in the context that is used and in no other."""
    path = kubeconfig(tmp_path, "config", good={"server": SERVER}, bad={"server": "https://b", "insecure-skip-tls-verify": True})
    found = doubts(good={"kubeconfig": path, "context": "good"}, bad={"kubeconfig": path, "context": "bad"})
    assert list(found) == ["bad"]
    assert "insecure-skip-tls-verify" in found["bad"][0]
    only = kubeconfig(tmp_path, "only", bad={"server": "https://c", "insecure-skip-tls-verify": True})
    assert list(doubts(only={"kubeconfig": only})) == ["only"]


@pytest.mark.parametrize(
    "text", [None, "", "[", "clusters: []", "contexts: [{name: a, context: {cluster: b}}]\nclusters: [{name: b, cluster: {}}]"]
)
def test_what_can_not_be_read_here_is_left_out(tmp_path: Path, text: str | None) -> None:
    """The settings may be checked on another machine than the daemon's: no error, and no guess."""
    path = tmp_path / "config"
    if text is not None:
        path.write_text(text)
    assert doubts(one={"kubeconfig": str(path)}, two={"kubeconfig": str(path)}) == {}


def test_a_pods_own_cluster_is_one_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside of a Pod its address is known, outside it is still the same for both."""
    inside = KubernetesConnection(in_cluster=True)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert list(doubts(a={"in_cluster": True}, b={"in_cluster": True}, c={"server": SERVER})) == ["b"]
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    assert place_of(inside) == place_of(KubernetesConnection(server="https://[fd00::1]")) == "https://[fd00::1]:443"
