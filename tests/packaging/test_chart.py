"""The chart, rendered offline by Helm's own library: valid manifests, nothing that runs as root, and no right beyond what is declared."""

from __future__ import annotations

import base64
import copy
import json
import re
import subprocess
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import helm_python as helm
import kubernetes_validate
import pytest
import yaml
from prometheus_client import CollectorRegistry

from remediator import __version__
from remediator.identity import find_identity
from remediator.metrics import Metrics
from remediator.permissions.needs import is_cluster_scoped
from remediator.registry import Registry
from remediator.rules.compile import compile_ruleset
from remediator.rules.packs import PackSource
from remediator.settings import Settings, load_settings
from tests.packaging.image import ROOT, dockerfile
from tests.servers.process import find_binary

CHART = ROOT / "helm/remediator"
VALUES = {path.stem: path.read_text() for path in sorted((ROOT / "tests/packaging/values").glob("*.yaml"))} | {"defaults": "{}"}
CUSTOM = {"ServiceMonitor", "PrometheusRule"}
"""Kinds of Prometheus' operator, whose schemas are not Kubernetes'."""
VERSIONS = ("1.25.0", "1.30.0", kubernetes_validate.latest_version())

Document = Mapping[str, Any]


def values(name: str, **more: Any) -> dict[str, Any]:
    """Return one of the values files, with top-level keys replaced."""
    return {**yaml.safe_load(VALUES[name]), **more}


def render(given: Mapping[str, Any], *, release: str = "remediator", namespace: str = "ops") -> list[Document]:
    """Render the chart and return its documents."""
    with helm.Chart.load(CHART) as chart:
        rendered = chart.render(values=dict(given), name=release, namespace=namespace)
    texts = [text for path, text in rendered.items() if path.endswith(".yaml")]
    return [document for text in texts for document in yaml.safe_load_all(text) if document]


def of(documents: list[Document], kind: str) -> list[Document]:
    """Return the documents of one kind."""
    return [document for document in documents if document["kind"] == kind]


def pod(documents: list[Document]) -> Document:
    """Return the Pod's spec."""
    (deployment,) = of(documents, "Deployment")
    spec: Document = deployment["spec"]["template"]["spec"]
    return spec


def environment(documents: list[Document]) -> dict[str, str]:
    """Return the container's variables as the Pod named `pod-1` on `node-1` gets them."""
    fields = {"metadata.name": "pod-1", "metadata.namespace": "ops", "spec.nodeName": "node-1"}
    found = {}
    for variable in pod(documents)["containers"][0]["env"]:
        source = variable.get("valueFrom", {})
        found[variable["name"]] = variable.get("value") or fields.get(source.get("fieldRef", {}).get("fieldPath"), "secret")
    return found


def settings(documents: list[Document], directory: Path) -> Settings:
    """Load the rendered remediator.yaml as the daemon would in the Pod."""
    maps = {one["metadata"]["name"]: one["data"] for one in of(documents, "ConfigMap")}
    (mounted,) = [volume["configMap"]["name"] for volume in pod(documents)["volumes"] if volume["name"] == "settings"]
    path = directory / "remediator.yaml"
    path.write_text(maps[mounted]["remediator.yaml"])
    return load_settings(path, environment(documents))


# --- manifests -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VALUES)
def test_chart_lints_strictly(name: str) -> None:
    """Helm finds nothing but the missing icon."""
    report = helm.lint(CHART, values(name), strict=True)
    assert report["errors"] == []
    assert [message["error"] for message in report["messages"]] == ["icon is recommended"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", VALUES)
def test_every_manifest_is_valid(name: str, version: str) -> None:
    """Strictly: an unknown field, which Kubernetes would drop, is an error. Kinds of Prometheus' operator are tested below."""
    documents = render(values(name))
    for document in documents:
        if document["kind"] not in CUSTOM:
            kubernetes_validate.validate(document, version, strict=True)
        assert document["metadata"]["labels"]["app.kubernetes.io/instance"] == "remediator"
    names = [(one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"]) for one in documents]
    assert len(set(names)) == len(names)


def test_chart_and_project_have_one_version() -> None:
    """A release is one thing."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)


@pytest.mark.parametrize("name", VALUES)
def test_the_pod_can_do_as_little_as_possible(name: str) -> None:
    """Not root, nothing written but the state, no capability, no privilege to gain, the runtime's system-call filter; in every variant."""
    spec = pod(render(values(name)))
    user = int(dockerfile()[-1].last("USER").text.partition(":")[0])
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == spec["securityContext"]["fsGroup"] == user
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    writable = [mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")]
    assert writable == [dockerfile()[-1].last("VOLUME").text]
    assert container["args"] == dockerfile()[-1].last("CMD").argv
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    assert not any("subPath" in mount for mount in container["volumeMounts"])


@pytest.mark.parametrize("name", sorted(VALUES.keys() - {"replicas"}))
def test_there_is_never_a_second_pod_of_one_file(name: str) -> None:
    """SQLite has one owner, also while a new version replaces the old one."""
    (deployment,) = of(render(values(name)), "Deployment")
    assert deployment["spec"]["replicas"] == 1
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}


def test_pods_that_share_a_database_replace_one_another_without_a_gap() -> None:
    """With PostgreSQL there are as many as wished, one of them at most is away, they are spread, and no volume is made."""
    documents = render(values("replicas"))
    (deployment,) = of(documents, "Deployment")
    assert deployment["spec"]["replicas"] == 3
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    (budget,) = of(documents, "PodDisruptionBudget")
    assert budget["spec"] == {"maxUnavailable": 1, "selector": deployment["spec"]["selector"]}
    (spread,) = pod(documents)["topologySpreadConstraints"]
    assert spread["labelSelector"] == deployment["spec"]["selector"]
    assert of(documents, "PersistentVolumeClaim") == []
    assert {"name": "state", "emptyDir": {}} in pod(documents)["volumes"]


def test_one_pod_on_a_database_has_no_disruption_budget() -> None:
    """It could only block drains."""
    assert of(render(values("replicas", replicas=1)), "PodDisruptionBudget") == []


def test_several_pods_need_a_database() -> None:
    """Each with a file of its own, they would act side by side without knowing of one another."""
    with pytest.raises(helm.HelmError, match="replicas: several Pods need a database"):
        render(values("armed", replicas=2))


def test_a_release_without_rights_gets_no_token() -> None:
    """A token that nobody needs can only be stolen."""
    assert pod(render(values("defaults")))["automountServiceAccountToken"] is False
    assert pod(render(values("armed")))["automountServiceAccountToken"] is True
    (account,) = of(render(values("armed")), "ServiceAccount")
    assert account["automountServiceAccountToken"] is False


def test_the_audit_trail_outlives_the_release() -> None:
    """Uninstalling does not delete the claim; an existing one is used and none made."""
    (claim,) = of(render(values("defaults")), "PersistentVolumeClaim")
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    other = render(values("cluster-wide"))
    assert of(other, "PersistentVolumeClaim") == []
    assert {"name": "state", "persistentVolumeClaim": {"claimName": "state"}} in pod(other)["volumes"]


def test_probes_speak_as_the_listener_does() -> None:
    """With TLS in the settings the probes use it."""
    for name, scheme in (("armed", "HTTP"), ("cluster-wide", "HTTPS")):
        (container,) = pod(render(values(name)))["containers"]
        probes = [container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")]
        assert [probe["path"] for probe in probes] == ["/-/healthy", "/-/healthy", "/-/ready"]
        assert {probe["scheme"] for probe in probes} == {scheme}


def test_service_and_network_policy_lead_to_the_pod() -> None:
    """Selectors match the Pod's labels; a policy without peers lets nobody in, since an empty list would let everybody in."""
    documents = render(values("armed"))
    (deployment,) = of(documents, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    selectors = [of(documents, "Service")[0]["spec"]["selector"], of(documents, "NetworkPolicy")[0]["spec"]["podSelector"]["matchLabels"]]
    for selector in [*selectors, deployment["spec"]["selector"]["matchLabels"]]:
        assert selector.items() <= labels.items()
    (closed,) = of(render(values("bare")), "NetworkPolicy")
    assert "ingress" not in closed["spec"]
    assert closed["spec"]["policyTypes"] == ["Ingress", "Egress"]


# --- what the daemon reads ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VALUES)
def test_the_daemon_takes_the_settings(name: str, tmp_path: Path) -> None:
    """The rendered file is one the daemon loads, listening where the Service leads; without a word about it, in dry run."""
    documents = render(values(name))
    loaded = settings(documents, tmp_path)
    given = values(name)
    assert loaded.dry_run is given.get("settings", {}).get("dry_run", True)
    assert loaded.listen.port == pod(documents)["containers"][0]["ports"][0]["containerPort"]
    assert loaded.listen.host == given.get("listen", {}).get("host", "0.0.0.0")
    stored = given.get("settings", {}).get("store", {}).get("url", "sqlite:///var/lib/remediator/remediator.sqlite")
    assert loaded.store.url == stored
    assert loaded.listen.max_body == 16 * 1024 * 1024


def test_packs_are_where_the_settings_say(tmp_path: Path) -> None:
    """Each pack is a mounted ConfigMap or a directory of the image; the files in values compile."""
    documents = render(values("armed"))
    spec = pod(documents)
    mounts = {mount["name"]: mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]}
    sources = {volume["name"]: volume["configMap"]["name"] for volume in spec["volumes"] if "configMap" in volume}
    packs = settings(documents, tmp_path).packs
    assert str(packs["general"].path) == "/usr/share/remediator/rules/general"
    assert packs["general"].vars == {"idle_for": "10m"}
    assert str(packs["own"].path) == mounts["rules-own"]
    assert (sources["rules-own"], sources["rules-shared"]) == ("remediator-rules-own", "shared-rules")
    (own,) = [one["data"] for one in of(documents, "ConfigMap") if one["metadata"]["name"] == "remediator-rules-own"]
    pack = PackSource("own", {}, {name: text.encode() for name, text in own.items()})
    assert [rule.name for rule in compile_ruleset([pack], Registry()).rules] == ["api-restart"]


@pytest.mark.parametrize("name", VALUES)
def test_s11_the_pod_knows_where_it_runs(name: str, tmp_path: Path) -> None:
    """It never acts on itself: from what the chart hands it, its identity is certain, and its namespace and node are protected."""
    documents = render(values(name))
    loaded = settings(documents, tmp_path)
    found = find_identity({"KUBERNETES_SERVICE_HOST": "10.0.0.1", **environment(documents)}, loaded)
    assert found.certain
    if "production" in loaded.connections:
        assert {"kubernetes:production/ops/", "kubernetes:production/-/node/node-1"} <= found.protected


def test_secrets_are_only_referred_to() -> None:
    """Variables and files come from Secrets that exist; the chart makes none, so no value can stand in its values."""
    documents = render(values("armed"))
    assert of(documents, "Secret") == []
    variables = {one["name"]: one.get("valueFrom") for one in pod(documents)["containers"][0]["env"]}
    assert variables["SLACK_WEBHOOK_URL"] == {"secretKeyRef": {"name": "remediator-chat", "key": "url"}}
    (volume,) = [one for one in pod(documents)["volumes"] if one["name"] == "secret-orders"]
    assert volume["secret"] == {"secretName": "remediator-orders", "defaultMode": 0o440}


def test_pods_that_share_a_database_share_sessions(tmp_path: Path) -> None:
    """Several Pods sign sessions of the web interface with one key, made by the chart, whose value stands in no values and no settings."""
    documents = render(values("replicas"))
    (secret,) = of(documents, "Secret")
    assert len(base64.b64decode(secret["data"]["key"])) == 48
    assert secret["data"]["key"] not in (CHART / "values.yaml").read_text()
    variables = {one["name"]: one.get("valueFrom") for one in pod(documents)["containers"][0]["env"]}
    assert variables["REMEDIATOR_SESSION_KEY"] == {"secretKeyRef": {"name": secret["metadata"]["name"], "key": "key"}}
    key = settings(documents, tmp_path).ui.session_key
    assert key is not None
    assert key.env == "REMEDIATOR_SESSION_KEY"


@pytest.mark.parametrize(
    "given",
    [
        values("armed"),
        values("replicas", sessionKey={"create": False}),
        values("replicas", settings={**values("replicas")["settings"], "ui": {"session_key": {"env": "OWN"}}}),
        values("replicas", settings={**values("replicas")["settings"], "ui": {"enabled": False}}),
    ],
    ids=["one-pod", "not-wanted", "own-key", "no-pages"],
)
def test_no_session_key_is_made_where_none_is_needed(given: Mapping[str, Any]) -> None:
    """One Pod makes its own; a key of the operator's wins."""
    documents = render(given)
    assert of(documents, "Secret") == []
    assert "REMEDIATOR_UI__SESSION_KEY" not in environment(documents)


def restart_sum(given: Mapping[str, Any]) -> str:
    """Return the checksum that makes the Deployment start its Pod anew."""
    (deployment,) = of(render({"settings": given}), "Deployment")
    found: str = deployment["spec"]["template"]["metadata"]["annotations"]["checksum/restart"]
    return found


def test_calls_may_end_within_the_pods_own_grace(tmp_path: Path) -> None:
    """The daemon gives calls under way all but thirty seconds of what the Pod is given, unless the settings say otherwise."""

    def grace(name: str, **given: Any) -> timedelta:
        directory = tmp_path / name
        directory.mkdir()
        return settings(render(given), directory).limits.shutdown_grace

    assert grace("default") == timedelta(minutes=2)
    assert grace("longer", terminationGracePeriodSeconds=630) == timedelta(minutes=10)
    assert grace("short", terminationGracePeriodSeconds=30) == timedelta()
    assert grace("own", settings={"limits": {"shutdown_grace": "5s", "max_acting": 3}}) == timedelta(seconds=5)


def test_only_what_needs_a_restart_restarts() -> None:
    """Each setting that a reload does not apply changes the Pod; rules, connections and limits that a reload applies do not."""
    needs_restart = [
        {"listen": {"max_body": 2048}},
        {"log": {"level": "debug"}},
        {"actions_path": ["/opt/own"]},
        {"limits": {"workers": 3}},
        {"limits": {"lease": "1m"}},
    ]
    covered = {(name, *(part if name == "limits" else ())) for one in needs_restart for name, part in one.items()}
    fixed = {("limits", name) for name, info in Settings.model_fields["limits"].annotation.model_fields.items() if not reloads(info)}
    fixed |= {(name,) for name, info in Settings.model_fields.items() if not reloads(info)}
    assert covered == fixed - {("store",)}
    assert len({restart_sum({}), *map(restart_sum, needs_restart)}) == len(needs_restart) + 1
    assert restart_sum({"ui": {"session_key": {"env": "OWN"}}}) != restart_sum({})
    for applied in (
        {"dry_run": False},
        {"ui": {"enabled": False}},
        {"limits": {"max_acting": 2}},
        {"alertmanager": ["http://a:9093"]},
        {"public_url": "http://x"},
    ):
        assert restart_sum(applied) == restart_sum({})


def reloads(info: Any) -> bool:
    """Tell whether a reload applies a field of the settings."""
    return bool(info.json_schema_extra["reload"])


# --- rights ------------------------------------------------------------------------------------------------------------------


def granted(document: Document) -> set[tuple[str, str]]:
    """Return what a Role allows, as GROUP/RESOURCE and verb."""
    return {
        (f"{group}/{resource}", verb)
        for rule in document["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def declared(names: list[str], *, wide: bool | None = None) -> set[tuple[str, str]]:
    """Return what actions and checks declare; with `wide` only what is needed in the whole cluster, or only the rest."""
    registry = Registry()
    kinds = [kind for name in names for kind in (registry.action(name), registry.check(name))]
    rights = [one for kind in kinds if kind is not None for one in kind.permissions if one.kind == "kubernetes"]
    chosen = [one for one in rights if wide in (None, one.place == "" or is_cluster_scoped(one.resource))]
    return {(one.resource, verb) for one in chosen for verb in one.verbs}


def test_roles_are_exactly_what_is_declared() -> None:
    """A Role in each namespace with the rights of the chosen actions and checks, no more and no less, bound to the Pod's account."""
    documents = render(values("armed"))
    roles = {one["metadata"]["namespace"]: one for one in of(documents, "Role") if one["metadata"]["name"] == "remediator"}
    assert set(roles) == {"shop", "checkout"}
    for role in roles.values():
        assert granted(role) == declared(values("armed")["rbac"]["actions"])
    assert of(documents, "ClusterRole") == of(documents, "ClusterRoleBinding") == []
    bindings = of(documents, "RoleBinding")
    assert {one["metadata"]["namespace"] for one in bindings} == {"shop", "checkout", "platform"}
    for binding in bindings:
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": pod(documents)["serviceAccountName"], "namespace": "ops"}]
        assert binding["roleRef"]["name"] == binding["metadata"]["name"]


@pytest.mark.parametrize("name", sorted({*Registry().action_names(), *Registry().check_names()}))
def test_every_action_and_check_can_be_granted(name: str) -> None:
    """Each name gives exactly its own rights, those in the whole cluster by a ClusterRole; without any there is no Role."""
    documents = render({"rbac": {"actions": [name], "namespaces": ["shop"]}})
    for kind, wide in (("Role", False), ("ClusterRole", True)):
        wanted = declared([name], wide=wide)
        assert [granted(role) for role in of(documents, kind)] == ([wanted] if wanted else [])


@pytest.mark.parametrize("name", ["kubernetes.drain", "kubernetes.node"])
def test_all_pods_of_a_node_are_seen_whatever_their_namespace(name: str) -> None:
    """A Role in some namespaces does not show who else is on a node."""
    (role,) = of(render({"rbac": {"actions": [name], "namespaces": ["shop"]}}), "ClusterRole")
    assert ("/pods", "list") in granted(role)


def test_a_cluster_role_is_made_only_when_asked_for() -> None:
    """`clusterWide` grants the same rights everywhere, under a name that two releases don't share."""
    documents = render(values("cluster-wide"))
    (role,) = of(documents, "ClusterRole")
    assert granted(role) == declared(["kubernetes.rollout_undo"])
    assert role["metadata"]["name"] == "ops-remediator"
    assert of(documents, "ClusterRoleBinding")[0]["subjects"] == [{"kind": "ServiceAccount", "name": "healer", "namespace": "ops"}]
    assert of(documents, "Role") == []


def test_secrets_are_read_one_by_one() -> None:
    """Only the named Secrets can be read, and none can be listed."""
    (role,) = [one for one in of(render(values("armed")), "Role") if one["metadata"]["name"] == "remediator-secrets"]
    assert role["metadata"]["namespace"] == "shop"
    assert role["rules"] == [{"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["api-key"], "verbs": ["get"]}]


def test_kill_switch_needs_one_configmap_only() -> None:
    """The ConfigMap that stops the daemon can be read, alone, where it is; nobody gets more where it lies in another cluster."""
    documents = render(values("armed"))
    (role,) = [one for one in of(documents, "Role") if one["metadata"]["name"] == "remediator-kill-switch"]
    assert role["metadata"]["namespace"] == "platform"
    assert role["rules"] == [{"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["remediator"], "verbs": ["get"]}]
    (binding,) = [one for one in of(documents, "RoleBinding") if one["metadata"]["name"] == "remediator-kill-switch"]
    assert binding["subjects"][0]["namespace"] == "ops"
    given = values("armed")
    given["settings"]["connections"]["production"] = {"kind": "kubernetes", "kubeconfig": "/etc/kubeconfig"}
    assert "remediator-kill-switch" not in str(render(given))


def test_no_right_is_a_wildcard() -> None:
    """Whatever is chosen, nothing is granted by `*`."""
    everything = sorted({*Registry().action_names(), *Registry().check_names()})
    documents = render({"rbac": {"actions": everything, "namespaces": ["shop"]}})
    assert "*" not in str([one["rules"] for one in (*of(documents, "Role"), *of(documents, "ClusterRole"))])


# --- refusals --------------------------------------------------------------------------------------------------------------

BAD: Mapping[str, Any] = {
    "replicas": 0,
    "image": {"digest": "sha256:short"},
    "settings": {"store": {"url": "sqlite:///tmp/x"}},
    "packs": {"own": {"path": "/a", "files": {"pack.yaml": "{}"}}},
    "secrets": {"env": {"TOKEN": "s3cret"}},
    "listen": {"port": "9095"},
    "persistence": {"accessModes": ["ReadWriteMany"]},
    "rbac": {"namespaces": ["*"]},
    "terminationGracePeriodSeconds": 1,
    "prometheusRule": {"pausedFor": "long"},
    "networkPolicy": {"from": [{}]},
}


@pytest.mark.parametrize("key", BAD)
def test_the_schema_refuses_bad_values(key: str) -> None:
    """Typos, a second Pod, a shared volume, wildcards and values of secrets are refused before anything is rendered."""
    with helm.Chart.load(CHART) as chart:
        chart.validate_schema({})
        with pytest.raises(helm.HelmValuesError, match=key):
            chart.validate_schema({key: copy.deepcopy(BAD[key])})


@pytest.mark.parametrize(
    "more", [{"settings": {"packs": {}}}, {"settings": {"listen": {"host": "::"}}}, {"packs": {"own": {"files": {"a.yaml": ""}}}}]
)
def test_the_schema_keeps_what_is_the_charts_own(more: Mapping[str, Any]) -> None:
    """What the chart fills in can't be written twice, and a pack without pack.yaml is none."""
    with helm.Chart.load(CHART) as chart, pytest.raises(helm.HelmValuesError):
        chart.validate_schema(dict(more))


def test_unknown_actions_are_refused() -> None:
    """A misspelt name would grant nothing, and be noticed in the middle of an incident."""
    with pytest.raises(helm.HelmRenderError, match=r'there is no action or check \\?"kubernetes.scal\\?"'):
        render({"rbac": {"actions": ["kubernetes.scal"], "namespaces": ["shop"]}})


def test_rights_need_a_place() -> None:
    """Neither everywhere nor nowhere is guessed."""
    with pytest.raises(helm.HelmRenderError, match=r"rbac\.namespaces"):
        render({"rbac": {"actions": ["kubernetes.scale"]}})


# --- alerts on the daemon --------------------------------------------------------------------------------------------------


@pytest.fixture
def groups() -> Document:
    """Give the alert rules of the chart."""
    (rule,) = of(render(values("armed")), "PrometheusRule")
    spec: Document = rule["spec"]
    return spec


def test_alerts_name_metrics_that_exist(groups: Document) -> None:
    """Every series of the daemon's that an expression names is there from the start, with that label value."""
    exposed = Metrics(CollectorRegistry()).render().decode()
    for rule in groups["groups"][0]["rules"]:
        for name, matchers in re.findall(r"(remediator_\w+)\{([^}]*)\}", rule["expr"]):
            wanted = [match for match in re.findall(r'\w+="\w+"', matchers) if not match.startswith(("job=", "namespace="))]
            lines = [line for line in exposed.splitlines() if line.startswith((f"{name}{{", f"{name} "))]
            assert any(all(match in line for match in wanted) for line in lines), (name, wanted)


def test_alerts_fire_when_they_should(groups: Document, tmp_path: Path) -> None:
    """Prometheus' own checker runs the rules: each alert fires on its trouble, and a healthy daemon fires none."""
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(groups))
    labels = 'job="remediator", namespace="ops", instance="a"'
    healthy = {
        f"up{{{labels}}}": "1x300",
        f'remediator_webhooks_total{{{labels}, outcome="invalid"}}': "0x300",
        f"remediator_rules_last_reload_successful{{{labels}}}": "1x300",
        f"remediator_messages_failing{{{labels}}}": "0x300",
        f'remediator_runs{{{labels}, state="outcome_unknown"}}': "0x300",
        f'remediator_runs{{{labels}, state="interrupted"}}': "0x300",
        f"remediator_paused{{{labels}}}": "0x300",
        f"remediator_paused_rules{{{labels}}}": "0x300",
        f"remediator_storm{{{labels}}}": "0x300",
        f"remediator_stopped_remedies{{{labels}}}": "0x300",
        f"remediator_demoted_rules{{{labels}}}": "0x300",
        f"remediator_reconciliation_last_complete_timestamp_seconds{{{labels}}}": "0+60x300",
        f'remediator_alerts_received_total{{{labels}, status="firing"}}': "0+1x300",
        f"remediator_watchdog_stale{{{labels}}}": "0x300",
        f'remediator_kill_switch_unreadable{{{labels}, source="configmap"}}': "0x300",
        f"remediator_freezes_unreadable{{{labels}}}": "0x300",
        f'remediator_clock_steps_total{{{labels}, direction="back"}}': "0x300",
        f'remediator_heartbeats_total{{{labels}, outcome="withheld"}}': "0x300",
        f'remediator_alerts_rejected_total{{{labels}, reason="size"}}': "0x300",
    }
    sick = {
        series: {"0x300": "1+1x300", "1x300": "0x300", "0+1x300": "5x300", "0+60x300": "60x300"}[course]
        for series, course in healthy.items()
    }
    sick |= {f"{name}{{{labels}}}": "1x300" for name in ("remediator_paused", "remediator_storm")}
    sick[f'remediator_kill_switch_unreadable{{{labels}, source="configmap"}}'] = "1x300"
    sick['ALERTS{alertname="SiteDown", alertstate="firing", remediate="yes"}'] = "1x300"
    alerts = [rule["alert"] for rule in groups["groups"][0]["rules"]]
    cases = [
        {
            "interval": "1m",
            "input_series": [{"series": series, "values": course} for series, course in world.items()],
            "promql_expr_test": [
                {
                    "expr": f'count(ALERTS{{alertname="{alert}", alertstate="firing"}}) or vector(0)',
                    "eval_time": "290m",
                    "exp_samples": [{"labels": "{}", "value": firing}],
                }
                for alert in alerts
            ],
        }
        for world, firing in ((healthy, 0), (sick, 1))
    ]
    (tmp_path / "test.yaml").write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": cases}))
    promtool = find_binary("promtool", "prometheus")
    for command in (["check", "rules", "rules.yaml"], ["test", "rules", "test.yaml"]):
        done = subprocess.run([promtool, *command], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert len(alerts) == 19


def test_example_holds_the_same_alerts(groups: Document, tmp_path: Path) -> None:
    """Who installs without Helm gets the same rules from `examples/alerts.yaml`, for a job `remediator`; Prometheus takes the file."""
    path = ROOT / "examples/alerts.yaml"
    text = re.sub(r"^#.*\n", "", path.read_text(), flags=re.MULTILINE)
    written = json.dumps(groups).replace(', namespace=\\"ops\\"', "").replace("job, namespace, instance", "job, instance")
    wanted = json.loads(written)
    assert "namespace" not in text
    assert yaml.safe_load(text) == wanted, f"write it anew:\n{yaml.safe_dump(wanted, sort_keys=False, width=140)}"
    checked = subprocess.run([find_binary("promtool", "prometheus"), "check", "rules", path], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_example_of_routes_is_valid() -> None:
    """Alertmanager's own checker takes the routes that page when the daemon dies."""
    path = ROOT / "examples/alertmanager.yaml"
    tool = find_binary("amtool", "prometheus-alertmanager")
    checked = subprocess.run([tool, "check-config", path], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    for labels, receiver in (
        ("alertname=RemediatorAlive", "nobody"),
        ("alertname=Watchdog", "remediator"),
        ("alertname=RemediatorBackstop remediate=yes", "pager"),
        ("alertname=SiteDown remediate=yes", "remediator"),
        ("alertname=Other", "pager"),
    ):
        command = [tool, "config", "routes", "test", f"--config.file={path}", f"--verify.receivers={receiver}", *labels.split()]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        assert found.returncode == 0, (labels, found.stdout + found.stderr)
